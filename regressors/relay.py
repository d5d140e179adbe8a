"""Epochs of networks that are trained in other processes, told in this one as they come."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Listener
from threading import Thread
from typing import Any

from regressors.member import Epoch, Watch

WAITING = 64
"""Processes that may wait until their epoch is taken."""


@dataclass(frozen=True)
class Told:
    """What `watch` is in other processes: it can be pickled."""

    address: Any
    """Host and port."""
    key: bytes
    """By which our processes are known."""

    def __call__(self, epoch: Epoch | None) -> None:
        """Tell of an epoch, and wait until that is done; of none, that there will be no more.

        Raises:
            EOFError: if `watch` failed.
        """
        with Client(self.address, authkey=self.key) as connection:
            connection.send(epoch)
            connection.recv()


@contextmanager
def relayed(watch: Watch) -> Iterator[Told]:
    """A watch for other processes: what it is told there, `watch` is told here, by a thread.

    Raises:
        Exception: what `watch` raises; processes that go on to tell fail.
    """
    key = secrets.token_bytes(32)
    listener = Listener(("127.0.0.1", 0), backlog=WAITING, authkey=key)
    told = Told(listener.address, key)
    failures: list[Exception] = []
    thread = Thread(target=_listen, args=(listener, watch, failures), daemon=True)
    thread.start()
    try:
        yield told
    finally:
        with suppress(EOFError, OSError):  # if it cannot be told, it is not waited for
            told(None)
            thread.join()
        if failures:
            raise failures[0]


def _listen(listener: Listener, watch: Watch, failures: list[Exception]) -> None:
    with listener:
        while True:
            try:
                connection = listener.accept()
            except (EOFError, ConnectionError, AuthenticationError):
                continue  # of a process that was killed as it told, or of none of ours
            with connection:
                try:
                    epoch = connection.recv()
                except (EOFError, OSError):
                    continue  # killed likewise
                if epoch is not None and not failures:
                    try:
                        watch(epoch)
                    except Exception as error:  # noqa: BLE001 (raised where it was asked for)
                        failures.append(error)
                if epoch is None or not failures:  # who gets no answer ends its training
                    with suppress(OSError):
                        connection.send(True)
                if epoch is None:
                    return
