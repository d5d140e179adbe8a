import math
import socket
import stat
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import joblib
import numpy as np
import pytest

from vqbank.regressors import relay
from vqbank.regressors.progress import Epoch
from vqbank.regressors.relay import relayed

FIRST, SECOND, THIRD = (Epoch(0, number, 3, 0.5, 0.1, 1, 0.1) for number in (1, 2, 3))


def told_elsewhere(work, told):
    joblib.Parallel(n_jobs=2)([joblib.delayed(work)(told)])


def test_a_watch_is_told_while_another_process_works(tmp_path):
    heard, first, second = tmp_path / "heard", FIRST, SECOND  # values: this module stays here

    def work(told):
        told(first)
        until = time.monotonic() + 60
        while not heard.exists():  # made by the watch
            assert time.monotonic() < until
            time.sleep(0.01)
        told(second)

    epochs = []

    def watch(one):
        epochs.append(one)
        heard.touch()

    with relayed(watch) as told:
        told_elsewhere(work, told)

    assert epochs == [FIRST, SECOND]


def test_a_watch_that_fails_ends_the_work_and_says_why():
    epochs, known = [], [FIRST, SECOND, THIRD]

    def watch(one):
        epochs.append(one)
        raise ValueError("the disk is full")

    def work(told):
        for one in known:
            told(one)

    with pytest.raises(ValueError, match="disk is full"), relayed(watch) as told:
        told_elsewhere(work, told)

    assert epochs == [FIRST]


@pytest.mark.parametrize(
    "said",
    [
        b"",  # and it goes, as one that dies
        b'["half a message',
        b"\xff" * 20 + b"\n",
        b"\x7f\xff\xff\xff" + b"x" * 2**16,  # an oversized length, in the words of connections
        b"x" * 2**20,
        b"[" * 4000 + b"\n",
        b'["another key", 0, 1, 3, 0.5, 0.1, 1, 0.1]\n',
        b"{}\n",
        b"1\n",
    ],
)
def test_what_strangers_say_harms_nobody(said):
    epochs = []
    with relayed(epochs.append) as told:
        with connected_to(told) as stranger:
            with suppress(OSError):  # it is cut short
                stranger.sendall(said)
            told(FIRST)
        told(SECOND)

    assert epochs == [FIRST, SECOND]


def connected_to(told):
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(told.address)
    connection.settimeout(30)
    return connection


def test_silent_connections_hold_up_nobody_however_many(monkeypatch):
    epochs = []
    begun = time.monotonic()
    with relayed(epochs.append) as told, ExitStack() as silent:
        for _ in range(3 * relay.WAITING):
            silent.enter_context(connected_to(told))
        for one in (FIRST, SECOND):
            told(one)
        assert time.monotonic() - begun < relay.PATIENCE_SECONDS

    assert epochs == [FIRST, SECOND]


def test_a_silent_connection_is_dropped(monkeypatch):
    monkeypatch.setattr(relay, "PATIENCE_SECONDS", 0.05)
    with relayed(print) as told, connected_to(told) as silent:
        assert silent.recv(1) == b""


def test_nobody_else_of_the_machine_can_connect():
    with relayed(print) as told:
        folder = Path(told.address).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()


def test_numbers_arrive_as_they_were():
    epochs = []
    one = Epoch(0, 1, 3, 1 / 3, math.inf, 1, np.float32(0.1))
    with relayed(epochs.append) as told:
        told(one)

    assert epochs == [one]


def test_a_long_name_of_the_temporary_folder_is_no_hindrance(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    epochs = []
    with relayed(epochs.append) as told:
        told(FIRST)
    assert epochs == [FIRST]


def test_what_interrupts_the_work_is_raised():
    with pytest.raises(KeyboardInterrupt), relayed(print):
        raise KeyboardInterrupt
