"""How a person or a batch system stops a run."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPED = 130
"""The exit code of a shell for a command that Ctrl-C ended."""


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """In here SIGINT and SIGTERM raise KeyboardInterrupt, so that what is finished is kept.

    A second one ends the process there and then: nothing that is committed can be harmed by that,
    and decoders end with their parent.  Outside the main thread nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM)

    def end(number: int, frame: FrameType | None) -> None:
        os._exit(STOPPED)

    def stop(number: int, frame: FrameType | None) -> None:
        for each in signals:
            signal.signal(each, end)
        raise KeyboardInterrupt

    before = {each: signal.signal(each, stop) for each in signals}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
