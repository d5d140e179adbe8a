"""How a person or a batch system stops a run."""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPPED = 130
"""The exit code of a shell for a command that Ctrl-C ended."""


AGAIN_SECONDS = 0.02
"""After which an interrupt that was lost comes again."""
ASKED = threading.Event()
"""Set by the first signal.  Python can lose the KeyboardInterrupt that a handler raises, where it
comes in the middle of a collection of garbage; loops that last look here too."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(STOPPED)


def _stop(number: int, frame: FrameType | None) -> None:
    _next_ends()
    ASKED.set()
    raise KeyboardInterrupt


def _leave(number: int, frame: FrameType | None) -> None:
    if _imports(frame):  # what a module does of an interrupt nobody knows, and nothing has begun
        os.write(2, b"stopped\n")
        os._exit(STOPPED)
    _next_ends()
    raise KeyboardInterrupt


def _over() -> None:
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)


_OURS = (_end, _stop, _leave)


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _next_ends() -> None:
    for each in _SIGNALS:
        if signal.getsignal(each) in _OURS:
            signal.signal(each, _end)


@contextmanager
def left_by_signals() -> Iterator[None]:
    """In here, a whole command, SIGINT and SIGTERM end it: at once while it imports.

    Elsewhere they raise KeyboardInterrupt, so that files that are half written are removed.  A
    second one ends the process there and then.  When the command has ended, and Python takes its
    modules apart, which lasts with large libraries, they change nothing: the exit code is the
    command's.
    """
    atexit.register(_over)
    with _handled_by(_leave):
        yield


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """In here SIGINT and SIGTERM raise KeyboardInterrupt, so that what is finished is kept.

    A second one ends the process there and then: nothing that is committed can be harmed by that,
    and decoders and workers end with their parent.  Within another of these, and outside the main
    thread, nothing is changed.
    """
    with _handled_by(_stop):
        yield


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """A signal that is ignored, as SIGINT is behind `nohup` and `&`, stays so."""
    main = threading.current_thread() is threading.main_thread()
    known = {each: signal.getsignal(each) for each in _SIGNALS}
    within = (_stop, _end) if handler is _stop else _OURS
    if not main or any(one in within for one in known.values()):
        yield
        return
    before = {each: one for each, one in known.items() if one is not signal.SIG_IGN}
    for each in before:
        signal.signal(each, handler)
    hook, again = sys.unraisablehook, list[threading.Timer]()

    def given_again(lost: "sys.UnraisableHookArgs") -> None:
        """Python drops, and prints, what is raised while an object goes: it is raised again."""
        if not (before and issubclass(lost.exc_type, KeyboardInterrupt)):
            hook(lost)
            return
        for each in before:
            signal.signal(each, handler)
        again.append(threading.Timer(AGAIN_SECONDS, os.kill, [os.getpid(), next(iter(before))]))
        again[-1].daemon = True
        again[-1].start()

    sys.unraisablehook = given_again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for timer in again:
            timer.cancel()
        for each, one in before.items():
            # Who was told to stop and is still there is ended by the next.
            signal.signal(each, _end if one is _leave and ASKED.is_set() else one)
        if handler is _stop:
            ASKED.clear()
