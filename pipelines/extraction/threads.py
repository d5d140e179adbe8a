"""What a run has at work beside its event loop: threads that compute, and one that writes."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

Result = TypeVar("Result")


class InWork:
    """How much of one run is in work, a way to wait until that changes, and the run's clock."""

    def __init__(self) -> None:
        """The run has not begun: its clock stands at 0."""
        self.count = 0
        """Calls that threads and the disk have not come back from."""
        self.decoding_waits = 0.0
        """Seconds in which decoders had frames and nobody took them, summed over decoders."""
        self._changed = asyncio.Event()
        self._begun = 0.0
        self._ended: float | None = 0.0
        self._idle_seconds = 0.0
        self._idle_since = 0.0

    @property
    def seconds(self) -> float:
        """Seconds that the run has taken until now, or until its end."""
        return self._now() - self._begun

    @property
    def idle_seconds(self) -> float:
        """Of these, the seconds in which nothing was in work."""
        idle = 0.0 if self.count else self._now() - self._idle_since
        return self._idle_seconds + idle

    def begin(self) -> None:
        """The run begins, and its clock."""
        self._begun = self._idle_since = time.monotonic()
        self._ended = None

    def end(self) -> None:
        """The run has ended: its clock stands still."""
        self._ended = time.monotonic()

    def _now(self) -> float:
        return time.monotonic() if self._ended is None else self._ended

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count something as long as it is in work."""
        if self.count == 0:
            self._idle_seconds += time.monotonic() - self._idle_since
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1
            if self.count == 0:
                self._idle_since = time.monotonic()
            self.wake()

    async def changed(self) -> None:
        """Wait until something has ended."""
        await self._changed.wait()

    def wake(self) -> None:
        """Let everybody who waits look again."""
        self._changed.set()  # wakes who waits now,
        self._changed.clear()  # and nobody who comes later


class Threads:
    """So many threads that compute; one call may ask to be alone."""

    def __init__(self, count: int, in_work: InWork) -> None:
        self._pool = ThreadPoolExecutor(count, "vqbank-compute")
        self._in_work = in_work
        self._computing = 0
        self._wanting_alone = 0

    async def __call__(self, call: Callable[..., Result], *arguments: Any) -> Result:
        """What a call returns, computed in a thread."""
        while self._wanting_alone:
            await self._in_work.changed()
        return await self._computed(call, *arguments)

    async def alone(self, call: Callable[..., Result], *arguments: Any) -> Result:
        """Likewise, while nothing else is computed."""
        self._wanting_alone += 1
        try:
            while self._computing:
                await self._in_work.changed()
            return await self._computed(call, *arguments)
        finally:
            self._wanting_alone -= 1
            self._in_work.wake()

    async def _computed(self, call: Callable[..., Result], *arguments: Any) -> Result:
        with self._in_work.one():
            self._computing += 1
            try:
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._pool, call, *arguments)
            finally:
                self._computing -= 1

    def close(self) -> None:
        """Begin nothing more; what a thread is at ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)
