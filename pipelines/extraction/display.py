"""What a person sees of a run: one live display, or plain lines where there is no terminal."""

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from vqbank.pipelines.console import console, styled
from vqbank.pipelines.extraction.extract import Extraction
from vqbank.pipelines.extraction.one_video import Outcome
from vqbank.pipelines.stopping import stopped_by_signals
from vqbank.pipelines.terminal import counted, plain, say

LOG_SECONDS = 60.0
"""Between two lines where there is no terminal."""
FAILURES = 5
"""Last failures that the live display shows."""
BAR_COLUMNS = 30
RECENT_VIDEOS = 256
"""Speed is that of so many last videos: bursts even out, and a slower disk is soon seen."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where the work inside a run stands."""

    extra_passes: int
    """Passes over a video."""
    decoded_frames: int
    network_seconds: Mapping[str, float]
    """By extractor."""
    held: float
    """Share, 0 to 1, of the memory for clips that wait for a network or are in one."""
    decoding_waits: float
    """Share, 0 to 1, of the run's time in which a decoder had frames and nobody took them."""
    networks_wait: float
    """Share, 0 to 1, of the run's time in which nothing was in work but decoding."""


def snapshot(extraction: Extraction) -> Snapshot:
    """Where an extraction in this process stands; may be called from another thread."""
    run_seconds = max(extraction.run_seconds, 1e-3)
    seconds: dict[str, float] = {}
    for extractor, batch in extraction.batches.items():
        seconds[extractor.name] = seconds.get(extractor.name, 0.0) + batch.seconds
    return Snapshot(
        extra_passes=extraction.extra_passes,
        decoded_frames=extraction.decoded_frames,
        network_seconds=seconds,
        held=extraction.held_bytes / extraction.held_limit,
        decoding_waits=extraction.decoding_waits / run_seconds,
        networks_wait=extraction.networks_wait / run_seconds,
    )


def show_extraction(
    extraction: Extraction, outcomes: Generator[Outcome, None, None] | None = None
) -> set[str]:
    """Run to the end and show how it goes, on standard error; gives the ids of failed videos.

    Args:
        extraction: What is run.
        outcomes: Of the same videos, where the work is done elsewhere.

    Raises:
        VqbankError: as `Extraction.run`.
    """
    total = len(extraction.videos)
    if outcomes is not None:
        return Display(total).show(outcomes)
    with stopped_by_signals():
        return Display(total, lambda: snapshot(extraction)).show(extraction.run())


class Display:
    """Counts outcomes, and says how far they are."""

    def __init__(
        self,
        total: int,
        snapshot: Callable[[], Snapshot] | None = None,
        *,
        log_seconds: float = LOG_SECONDS,
    ) -> None:
        """Begin to count, and the time.

        Args:
            total: Videos of the run.
            snapshot: Looks into the work, where it is done in this process.
            log_seconds: Between two lines where there is no terminal.
        """
        self.total = total
        self.cached = 0
        """Videos that were banked before."""
        self.extracted = 0
        self.failed: set[str] = set()
        self._snapshot = snapshot
        self._log_seconds = log_seconds
        self._frames = 0
        self._last_failures: deque[str] = deque(maxlen=FAILURES)
        self._begun = time.monotonic()
        self._recent = deque([(self._begun, self.frames)], maxlen=RECENT_VIDEOS)
        """When a video that was not banked before ended, and the frames decoded until then."""

    def show(self, outcomes: Generator[Outcome, None, None]) -> set[str]:
        """Loop over outcomes and show them; gives the ids of failed videos.

        A terminal gets one live display; anything else a line for each failure as it happens, and
        a short one every `log_seconds`.  Both end with a summary.
        """
        terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        with self._live() if terminal else self._logged(), closing(outcomes):
            for outcome in outcomes:
                lines = self.add(outcome)
                for line in () if terminal else lines:
                    say(line, err=True)
        if terminal and len(self.failed) > FAILURES:
            say("`vqbank status BANK --failed` lists all failures", err=True)
        say(self.summary(), err=True)
        return self.failed

    def add(self, outcome: Outcome) -> list[str]:
        """Count one video; gives a line for each reason of which it failed."""
        if outcome.cached:
            self.cached += 1
            if len(self._recent) == 1:  # looking at what is done is not yet the work
                self._recent[0] = (time.monotonic(), self.frames)
            return []
        if outcome.failures:
            self.failed.add(outcome.video.id)
        else:
            self.extracted += 1
        self._frames += outcome.frames
        self._recent.append((time.monotonic(), self.frames))
        reasons = dict.fromkeys(outcome.failures.values())
        lines = [plain(f"failed: {outcome.video.id}: {reason}") for reason in reasons]
        self._last_failures.extend(lines)
        return lines

    @property
    def frames(self) -> int:
        """That were decoded and looked at."""
        return self._frames if self._snapshot is None else self._snapshot().decoded_frames

    @property
    def seconds_left(self) -> float | None:
        """If the rest is as slow as the last videos, and nothing of it is banked; None at first."""
        left = self.total - self.cached - self.extracted - len(self.failed)
        speed, _ = self._speeds()
        return left / speed if speed else None

    def line(self) -> str:
        """How far it is, in one short line of a log."""
        ended = self.cached + self.extracted + len(self.failed)
        failed = f", {len(self.failed)} failed" if self.failed else ""
        speed, _ = self._speeds()
        left = self.seconds_left
        eta = f"{_clock(left)} left" if left is not None else "time left not known yet"
        return f"{ended} of {counted(self.total, 'video')}{failed}, {speed:.2f} videos/s, {eta}"

    def summary(self) -> str:
        """What was done, in one line."""
        frames = counted(self.frames, "frame")
        text = f"{counted(self.total, 'video')}: {self._counts()}; {frames} decoded"
        if self._snapshot is None:
            return text
        # A video that could not be opened counts as one pass here, and had none.
        passes = self._snapshot().extra_passes
        return f"{text}, {passes} extra passes for frames chosen by motion" if passes > 0 else text

    def __rich__(self) -> Group:
        """The live display; rendered by a thread of Rich."""
        seen = self.cached + self.extracted + len(self.failed)
        head = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=self.total, completed=seen, width=BAR_COLUMNS)
        head.add_row(bar, f"{seen} of {counted(self.total, 'video')}: {self._counts()}")
        facts = [styled(line, overflow="ellipsis", no_wrap=True) for line in self._facts()]
        failures = [
            styled(line, style="red", overflow="ellipsis", no_wrap=True)
            for line in tuple(self._last_failures)
        ]
        return Group(head, *facts, *failures)

    def _counts(self) -> str:
        return f"{self.cached} banked before, {self.extracted} extracted, {len(self.failed)} failed"

    def _facts(self) -> list[str]:
        videos, frames = self._speeds()
        elapsed, left = max(time.monotonic() - self._begun, 1e-3), self.seconds_left
        eta = f"{_clock(left)} left" if left is not None else "time left not known yet"
        facts = [f"{videos:.2f} videos/s, {frames:.0f} frames/s", f"{_clock(elapsed)} gone, {eta}"]
        if self._snapshot is None:
            return facts
        now = self._snapshot()
        computed = sum(now.network_seconds.values())
        if computed:
            longest = sorted(now.network_seconds.items(), key=lambda item: -item[1])
            shares = (f"{name} {seconds / computed:.0%}" for name, seconds in longest if seconds)
            facts.append(f"networks: {', '.join(shares)}")
        facts.append(
            f"decoders waited {now.decoding_waits:.0%} of the time for networks, "
            f"networks {now.networks_wait:.0%} for decoders, "
            f"clips fill {now.held:.0%} of their memory"
        )
        return facts

    def _speeds(self) -> tuple[float, float]:
        """Videos and frames per second, of late."""
        begun, frames = self._recent[0]
        seconds = max(time.monotonic() - begun, 1e-3)
        return (len(self._recent) - 1) / seconds, (self.frames - frames) / seconds

    def _live(self) -> Live:
        return Live(self, console=console(err=True), refresh_per_second=2)

    @contextmanager
    def _logged(self) -> Iterator[None]:
        """A line every so often, also while no video ends."""
        over = threading.Event()

        def log() -> None:
            while not over.wait(self._log_seconds):
                say(self.line(), err=True)

        thread = threading.Thread(target=log, name="vqbank-log", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
