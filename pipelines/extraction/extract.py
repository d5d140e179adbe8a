"""Run extractors over videos: every video is decoded once, whatever is asked of it.

`one_video` is the way of one video.  Many are on it at once: child processes decode, threads of
this process run views and networks, one thread writes, and an event loop hands things on.  Nothing
piles up: a chunk is asked for only while what waits for networks fits HELD_BYTES.  Threads compute,
they do not import: what they need is imported before the first of them starts.
"""

import asyncio
import platform
import queue
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext, suppress
from importlib import import_module
from importlib.metadata import version

import torch
from joblib import cpu_count

from vqbank.extractors import make_extractor
from vqbank.extractors.base import Extractor, WeightedExtractor
from vqbank.extractors.isolated import PATIENCE_SECONDS, Decoder
from vqbank.extractors.loading import FILE_MODULES
from vqbank.extractors.video import DECODERS
from vqbank.pipelines.extraction import assembly
from vqbank.pipelines.extraction.banking import Banking
from vqbank.pipelines.extraction.batch import Batch
from vqbank.pipelines.extraction.companions import Companions
from vqbank.pipelines.extraction.marks import Marks
from vqbank.pipelines.extraction.memory import Allowance, WorkingMemory
from vqbank.pipelines.extraction.networks import Networks
from vqbank.pipelines.extraction.one_video import OneVideo, Outcome
from vqbank.pipelines.extraction.resources import Counts, Resources
from vqbank.pipelines.extraction.threads import InWork, Threads
from vqbank.pipelines.extraction.wanted import Wanted
from vqbank.pipelines.stopping import ASKED
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import BankError, ManifestError, UnknownNameError, unknown_name
from vqbank.store.schema import FeatureSpec, Video
from vqbank.store.words import counted

HELD_BYTES = 256 * 2**20
"""Clips that wait for a network or are in one."""
DECODING_THREADS = 1
"""FFmpeg's decoding threads in one decoder process."""
TENDING_SECONDS = 1.0
"""Between two looks at what is due by the clock, and at whether the run is to end."""
WAITING_SECONDS = 300.0
"""A clip of a rare shape waits no longer than this for others to fill its batch."""
PROGRESS_SECONDS = 30.0
"""Between two lines of progress in the ledger."""
UNTAKEN_OUTCOMES = 64
"""No further video is begun while so many have ended that the caller has not been given."""
THREADS = 1
"""Threads of one network on a CPU: fixed, because another number may change the last bit of a
feature.  Several batches are computed side by side instead."""
WORKING_BYTES = 512 * 2**20
"""For the computation of large frames on a CPU, of all threads together."""
MODULES = ("numcodecs.zstd", "numpy.ma")
"""What the threads that write and that run the event loop need, whatever is extracted."""
SOFTWARE = {name: version(name) for name in ("vqbank", "torch", "numpy")}
"""As commits record it; asked for here because asking imports, and workers extract in threads."""


class Extraction:
    """One run over a manifest."""

    def __init__(
        self,
        videos: Sequence[Video],
        extractors: Sequence[Extractor],
        store: FeatureStore,
        *,
        decoder: str,
        device: torch.device,
        batch_clips: Mapping[str, int] | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
        threads: int | None = None,
        leaving: threading.Event | None = None,
    ) -> None:
        """Resolve what is asked for; no video is opened and no model is loaded yet.

        Args:
            videos: A video that stands there twice is done once.
            extractors: In any order.
            store: Where features go.
            decoder: A name of `video.DECODERS`.
            device: Of the networks.
            batch_clips: Clips in a batch by extractor's name, where it is not to be found out.
            patience_seconds: How long a decoder may show no sign of life.
            threads: Cores to use on a CPU; all if None.
            leaving: Once set, by another thread, a run ends as by Ctrl-C; None for what Ctrl-C
                itself sets, in case that Python loses its exception.

        Raises:
            ManifestError: if two files stand under one id.
            UnknownNameError: if there is no such decoder.
            WeightsError: if an extractor's weights are not at hand.
        """
        if decoder not in DECODERS:
            raise UnknownNameError(unknown_name("decoder", decoder, DECODERS))
        self.videos = _distinct(videos)
        self.extractors = tuple(extractors)
        self.store = store
        self.decoder = decoder
        self.device = device
        self.batch_clips = dict(batch_clips or {})
        self.patience_seconds = patience_seconds
        self.counts = Counts()
        self._leaving = leaving or ASKED
        self._attempt: str | None = None
        self._wanted = Wanted(self.extractors, store, decoder=decoder)
        cores = threads or cpu_count()
        # Twice as many as work, because some wait: for a device, a lock, a library's own threads.
        self._threads = 2 * (1 if device.type != "cpu" else cores)
        self.held_limit = HELD_BYTES
        """Bytes of clips that wait for a network or are in one."""
        if device.type == "cuda":
            self.held_limit = torch.cuda.mem_get_info(device)[1] // 8
        memory = WorkingMemory(WORKING_BYTES)
        self.batches = {
            extractor: Batch(
                extractor,
                device,
                self.batch_clips.get(extractor.name),
                largest_bytes=self.held_limit // 4,
                memory=memory,
            )
            for extractor in {*self.extractors, self._wanted.motion}
        }
        self.decoders = [
            Decoder(decoder, threads=DECODING_THREADS, patience_seconds=patience_seconds)
            for _ in range(max(1, cores // DECODING_THREADS))
        ]
        self._companions = Companions(self._wanted, store, device)
        self._provenance = {
            "software": SOFTWARE,
            "host": platform.node(),
            "device": str(device),
        }
        self._marks = Marks(store)
        self._in_work = InWork()

    def take(self, videos: Sequence[Video], *, attempt: str | None = None) -> None:
        """Run over these next; networks that are loaded stay so.

        Args:
            videos: A video that stands there twice is done once.
            attempt: Of whoever gave them out, and wants to know from the ledger with which ones
                was begun if this process dies.

        Raises:
            ManifestError: if two files stand under one id.
        """
        self._attempt = attempt
        self.videos = _distinct(videos)

    @property
    def specs(self) -> list[FeatureSpec]:
        """Everything that a video has when it is done."""
        return self._wanted.specs

    @property
    def decoded_videos(self) -> int:
        """Passes over a video, the extra ones included."""
        return self.counts.decoded_videos

    @property
    def extra_passes(self) -> int:
        """As `Counts.extra_passes`."""
        return self.counts.extra_passes

    @property
    def decoded_frames(self) -> int:
        """Frames that came out of a decoder and were looked at."""
        return self.counts.decoded_frames

    @property
    def held_bytes(self) -> int:
        """Of clips that wait for a network or are in one; read for display."""
        return sum(batch.held_bytes for batch in self.batches.values())

    @property
    def run_seconds(self) -> float:
        """Seconds that the run has taken until now, or that the last one took; 0 before any."""
        return self._in_work.seconds

    @property
    def networks_wait(self) -> float:
        """Of `run_seconds`, those in which nothing was in work but decoding."""
        return self._in_work.idle_seconds

    @property
    def decoding_waits(self) -> float:
        """Of `run_seconds`, those in which a decoder had frames and nobody took them: the mean."""
        return self._in_work.decoding_waits / len(self.decoders)

    def run(self) -> Generator[Outcome, None, None]:
        """Extract what is missing; yields every video once, when its fate is known.

        What was computed is committed when the loop ends, also when it is left early: whoever may
        leave closes this generator (`contextlib.closing`), because the work goes on beside the
        loop, until UNTAKEN_OUTCOMES videos have ended that nobody asked for.

        Raises:
            BankError: if the bank cannot be written.
            WeightsError: if a network cannot be built.
            KeyboardInterrupt: if it was told to leave.
        """
        self._forget_clips()  # of a run that a second interrupt has ended
        threads_before = torch.get_num_threads()
        torch.set_num_threads(THREADS)
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32, also in convolutions
        self._in_work = InWork()
        self._in_work.begin()
        banking = Banking(self.store, self._provenance, self._in_work)
        threads = Threads(self._threads, self._in_work)
        try:
            self._marks.started(self.specs, len(self.videos))
            if self._wanted.lacked_by_any(self.videos) or not self._companions.are_there:
                import_for(self.extractors)
            yield from self._outcomes(banking, threads)
            banking.commit()
            self._marks.ended(self._passes())
            self.store.refresh()
        except BaseException as error:
            if not isinstance(error, (GeneratorExit, KeyboardInterrupt)):
                for batch in self.batches.values():  # else they stay as long as the error is known
                    batch.unload()
            try:  # keep what is finished; where the disk was full it may still find room
                with suppress(BankError) if isinstance(error, BankError) else nullcontext():
                    banking.commit()
            finally:
                with suppress(BankError):
                    self._marks.left(error, self._passes())
            raise
        finally:
            for decoder in self.decoders:
                decoder.close()
            # Whoever leaves early does not wait for batches that nobody wants any more.
            threads.close()
            banking.abandon()
            self._forget_clips()
            self._in_work.end()
            torch.set_num_threads(threads_before)

    def _outcomes(self, banking: Banking, threads: Threads) -> Iterator[Outcome]:
        """What comes out of an event loop, which runs in a thread of its own.

        The caller's thread may have a loop already, as in a notebook, and is the one that Ctrl-C
        interrupts wherever it is; a loop could be left in any state.
        """
        outcomes: queue.SimpleQueue[Outcome | None] = queue.SimpleQueue()
        count = 0
        with closing(asyncio.new_event_loop()) as loop, ThreadPoolExecutor(1, "vqbank-loop") as one:
            one.submit(bool).result()  # interrupted in here, a thread may start of which none knows
            work = loop.create_task(self._extract_all(banking, threads, outcomes))
            try:  # an interrupt may come between any two lines
                ended = one.submit(loop.run_until_complete, work)
                ended.add_done_callback(lambda _: outcomes.put(None))
                while (outcome := _next(outcomes)) is not None:
                    loop.call_soon_threadsafe(self._in_work.wake)
                    count += 1
                    yield outcome
            finally:
                loop.call_soon_threadsafe(work.cancel)
            try:
                ended.result()
            except BaseExceptionGroup as group:
                raise _first(group) from None
            except asyncio.CancelledError:
                raise KeyboardInterrupt from None
        total = counted(len(self.videos), "video")
        assert count == len(self.videos), f"{count} of {total} ended: this is a bug in vqbank"

    async def _extract_all(
        self, banking: Banking, threads: Threads, outcomes: "queue.SimpleQueue[Outcome | None]"
    ) -> None:
        """Set one video after the other on its way, as decoders become free."""
        run = asyncio.current_task()
        assert run is not None
        decoders: asyncio.LifoQueue[Decoder] = asyncio.LifoQueue()
        for decoder in self.decoders:
            decoders.put_nowait(decoder)
        try:
            async with asyncio.TaskGroup() as tasks:
                resources = Resources(
                    wanted=self._wanted,
                    device=self.device,
                    counts=self.counts,
                    marks=self._marks,
                    in_work=self._in_work,
                    threads=threads,
                    networks=Networks(self.batches, self.device, threads, tasks),
                    banking=banking,
                    decoders=decoders,
                    allowance=Allowance(self._retained_bytes),
                    held_limit=self.held_limit,
                )
                tending = [
                    tasks.create_task(self._tend(resources, run)),
                    tasks.create_task(self._flush_when_idle(resources)),
                ]
                for extractor in self.extractors:
                    tasks.create_task(self._companions.write(extractor, threads, self._provenance))
                async with asyncio.TaskGroup() as videos:
                    for video in self.videos:
                        while outcomes.qsize() >= UNTAKEN_OUTCOMES:
                            await self._in_work.changed()
                        decoder = await decoders.get()
                        videos.create_task(self._extract(video, decoder, resources, outcomes.put))
                for task in tending:
                    task.cancel()
        finally:
            await banking.drained()

    async def _extract(
        self,
        video: Video,
        decoder: Decoder,
        resources: Resources,
        tell: Callable[[Outcome], None],
    ) -> None:
        outcome = await OneVideo(video, resources, attempt=self._attempt).extract(decoder)
        self._marks.count(cached=outcome.cached, failed=bool(outcome.failures))
        tell(outcome)

    async def _flush_when_idle(self, resources: Resources) -> None:
        """Compute half-filled batches when nothing else is left that could fill them."""
        while True:
            await resources.in_work.changed()
            if not resources.in_work.count and resources.decoders.qsize() == len(self.decoders):
                resources.networks.flush()

    async def _tend(self, resources: Resources, run: "asyncio.Task[None]") -> None:
        """See to what is due by the clock, and to it that a run ends which is to end."""
        told = time.monotonic()
        while not self._leaving.is_set():
            await asyncio.sleep(TENDING_SECONDS)
            resources.in_work.wake()
            resources.networks.flush(older_than=WAITING_SECONDS)
            await resources.banking.commit_old()
            if time.monotonic() - told > PROGRESS_SECONDS:
                told = time.monotonic()
                self._marks.running(self._passes())
        run.cancel()

    def _forget_clips(self) -> None:
        for batch in self.batches.values():
            batch.clear()

    @property
    def _retained_bytes(self) -> int:
        """For the frames of videos that are decoded, and of as many that wait for their motion."""
        return 2 * len(self.decoders) * assembly.RETAINED_BYTES

    def _passes(self) -> dict[str, int]:
        return {"decoded_videos": self.decoded_videos, "decoded_frames": self.decoded_frames}


def _next(outcomes: "queue.SimpleQueue[Outcome | None]") -> Outcome | None:
    while True:  # a signal that comes just before a wait does not end it, and is seen after it
        with suppress(queue.Empty):
            return outcomes.get(timeout=TENDING_SECONDS)


def _distinct(videos: Sequence[Video]) -> tuple[Video, ...]:
    """Each id once.

    Raises:
        ManifestError: if two files stand under one id.
    """
    by_id: dict[str, Video] = {}
    for video in videos:
        first = by_id.setdefault(video.id, video)
        if first.path != video.path:
            raise ManifestError(f"{first.path} and {video.path} both have the id {video.id!r}")
    return tuple(by_id.values())


def import_for(extractors: Iterable[Extractor]) -> None:
    """Import what threads will need to run these; to be called while none of them runs.

    Two threads that import a library for the first time see each other's half-made modules.

    Raises:
        ImportError: if one is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what libraries say of each other
        # Every run makes the motion series, to know whether others are chosen by it.
        for extractor in (*extractors, make_extractor("motion")):
            trained = isinstance(extractor, WeightedExtractor) and not extractor.is_random
            for name in (*extractor.modules, *(FILE_MODULES if trained else ())):
                import_module(name)
        for name in MODULES:
            import_module(name)


def _first(error: BaseException) -> BaseException:
    """What went wrong first, where tasks were cancelled for it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
