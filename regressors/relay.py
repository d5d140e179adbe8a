"""Epochs of networks that are trained in other processes, told in this one as they come."""

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Listener

from regressors.training import Epoch, Watch

WAITING = 64
"""Processes that may wait until their epoch is taken."""


@dataclass(frozen=True)
class Told:
    """What `watch` is in other processes: it can be pickled."""

    address: str
    key: bytes
    """By which our processes are known."""

    def __call__(self, epoch: Epoch | None) -> None:
        """Tell of an epoch; of none, that there will be no more."""
        with Client(self.address, authkey=self.key) as connection:
            connection.send(epoch)


@contextmanager
def relayed(watch: Watch) -> Iterator[Told]:
    """A watch for other processes: what it is told there, `watch` is told here, by a thread.

    Raises:
        Exception: what `watch` raises; processes that go on to tell then fail.
    """
    key = secrets.token_bytes(32)
    listener = Listener(backlog=WAITING, authkey=key)
    told = Told(str(listener.address), key)
    with ThreadPoolExecutor(1) as thread:
        listening = thread.submit(_listen, listener, watch)
        try:
            yield told
        finally:
            with suppress(OSError):  # of a thread that has failed, as is seen next
                told(None)
            listening.result()


def _listen(listener: Listener, watch: Watch) -> None:
    with listener:  # closed if `watch` fails, so that nobody waits
        while True:
            try:
                with listener.accept() as connection:
                    epoch = connection.recv()
            except (EOFError, ConnectionError, AuthenticationError):
                continue  # of a process that was killed as it told, or of none of ours
            if epoch is None:
                return
            watch(epoch)
