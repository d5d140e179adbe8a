import time
from multiprocessing.connection import Client

import joblib
import pytest

from regressors.member import Epoch
from regressors.relay import relayed

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


def test_a_process_that_dies_as_it_tells_harms_no_other():
    epochs = []
    with relayed(epochs.append) as told:
        Client(told.address).close()
        told(FIRST)

    assert epochs == [FIRST]


def test_what_interrupts_the_work_is_raised():
    with pytest.raises(KeyboardInterrupt), relayed(print):
        raise KeyboardInterrupt
