"""How a person or a batch system stops a run."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPED = 130
"""The exit code of a shell for a command that Ctrl-C ended."""


ASKED = threading.Event()
"""Set by the first signal.  Python can lose the KeyboardInterrupt that a handler raises, where it
comes in the middle of a collection of garbage; loops that last look here too."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(STOPPED)


def _stop(number: int, frame: FrameType | None) -> None:
    for each in _SIGNALS:
        signal.signal(each, _end)
    ASKED.set()
    raise KeyboardInterrupt


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """In here SIGINT and SIGTERM raise KeyboardInterrupt, so that what is finished is kept.

    A second one ends the process there and then: nothing that is committed can be harmed by that,
    and decoders and workers end with their parent.  Within another of these, and outside the main
    thread, nothing is changed.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) in (_stop, _end):
        yield
        return
    before = {each: signal.signal(each, _stop) for each in _SIGNALS}
    try:
        yield
    finally:
        ASKED.clear()
        for each, handler in before.items():
            signal.signal(each, handler)
