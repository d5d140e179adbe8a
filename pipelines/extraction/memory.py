"""The memory that computations on a CPU share."""

import ctypes
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

LARGE_BYTES = 64 * 2**20
"""Who needed more memory than this gives it back to the system at once: glibc would keep what every
thread has ever used, 1.5 GB after some frames of 4K."""

# glibc's; others keep less.
_give_back = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


class Allowance:
    """Memory that threads take and give back, and for which nobody waits."""

    def __init__(self, size_bytes: int) -> None:
        self._left_bytes = size_bytes
        self._changing = threading.Lock()

    def take(self, needed_bytes: int) -> bool:
        """Whether there were so many bytes left; they are taken then."""
        with self._changing:
            if needed_bytes > self._left_bytes:
                return False
            self._left_bytes -= needed_bytes
            return True

    def give_back(self, taken_bytes: int) -> None:
        """Let others have them."""
        with self._changing:
            self._left_bytes += taken_bytes


class WorkingMemory:
    """Memory that several threads share: who needs more than is left waits, in turn."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._taken_bytes = 0
        self._turns: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def reserved(self, needed_bytes: int) -> Iterator[None]:
        """Hold so many bytes of it; waits until they are free.

        A need above the whole size is met once nobody else holds any.  Needs are met in the order
        in which they came, so that a large one waits for no small one that came later.
        """
        if not needed_bytes:
            yield
            return
        turn = object()
        with self._changed:
            self._turns.append(turn)
            self._changed.wait_for(
                lambda: (
                    self._turns[0] is turn
                    # Alone, anybody may.
                    and self._taken_bytes + needed_bytes <= max(self._size_bytes, needed_bytes)
                )
            )
            self._turns.popleft()
            self._taken_bytes += needed_bytes
            self._changed.notify_all()
        try:
            yield
        finally:
            if needed_bytes > LARGE_BYTES and _give_back is not None:
                _give_back(0)
            with self._changed:
                self._taken_bytes -= needed_bytes
                self._changed.notify_all()
