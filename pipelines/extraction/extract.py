"""Run extractors over videos: every video is decoded once, whatever is asked of it.

The way of one video: which features are missing? none: next, no decode, no model.  Else the union
of all wanted frames is decoded in order in bounded chunks; each chunk goes to the device once;
every extractor's view takes its frames as they pass; full clips of many videos fill one batch per
extractor; rows go to one writer per feature; a shard counts once it is committed.

Who works: child processes decode, threads of this process run views and networks, one thread
writes, and the loop of `Extraction` hands things on.  Nothing piles up: a chunk is asked for only
while what waits for networks fits HELD_BYTES.  Threads compute, they do not import: what they need
is imported before the first of them starts.
"""

import os
import platform
import queue
import socket
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import cpu_count
from numpy.typing import NDArray

from vqbank.extractors import make_extractor, specs_of
from vqbank.extractors.base import Extractor, WeightedExtractor
from vqbank.extractors.isolated import PATIENCE_SECONDS, Chunk, Decoder, End
from vqbank.extractors.sampling import MotionSampling, Timeline
from vqbank.extractors.video import DECODERS, Probe
from vqbank.extractors.weights import FILE_MODULES
from vqbank.pipelines.extraction.jobs import (
    Batch,
    Course,
    Job,
    Retained,
    Room,
    is_out_of_memory,
    one_line,
)
from vqbank.pipelines.stopping import ASKED
from vqbank.store.bank import FeatureStore, writing
from vqbank.store.errors import (
    BankError,
    ChangedVideoError,
    DamagedShardError,
    DecodeError,
    DecoderDiedError,
    InvalidFeatureError,
    ManifestError,
    UnknownNameError,
    unknown_name,
)
from vqbank.store.ledger import Failure, Ledger, changed_files
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, Video
from vqbank.store.shard_writer import ShardWriter
from vqbank.store.tail import Tail, has_tail, write_tail
from vqbank.store.text import TextBank, has_text, write_text

HELD_BYTES = 256 * 2**20
"""Clips that wait for a network or are in one."""
DECODING_THREADS = 1
"""Of one decoder process."""
FLUSH_BYTES = 256 * 2**20
FLUSH_SECONDS = 300.0
"""A shard is committed once it holds this much or is this old: what a kill costs at most."""
LOOKING_SECONDS = 1.0
"""For the next video that is not banked, before the loop goes on."""
PROGRESS_SECONDS = 30.0
"""Between two lines of progress in the ledger."""
THREADS = 1
"""Of one network on a CPU: fixed, because another number may change the last bit of a feature.
Several batches are computed side by side instead."""
WORKING_BYTES = 512 * 2**20
"""For the computation of large frames on a CPU, of all threads together."""
UNWRITTEN_BYTES = 512 * 2**20
"""Rows of finished videos that may wait for the disk."""
WRITING_MODULES = ("numcodecs.zstd",)
"""What the thread that writes needs, whatever it writes."""
SOFTWARE = {name: version(name) for name in ("vqbank", "torch", "numpy")}
"""As commits record it; asked for here because asking imports, and workers extract in threads."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one video."""

    video: Video
    failures: Mapping[str, str]
    """Reason by feature key; empty if everything that was asked for is banked."""
    cached: bool
    """Whether nothing had to be done."""
    frames: int = 0
    """That were decoded for it and looked at."""


@dataclass(eq=False)
class _Lane:
    """One decoder process and the video that it is at."""

    decoder: Decoder
    video: Video | None = None
    todo: Mapping[Extractor, Mapping[str, FeatureSpec]] = field(default_factory=dict)
    content: Fingerprint | None = None
    """Of its file before it was opened; None where it cannot be read."""
    course: Course | None = None
    jobs: Sequence[Job | Retained] = ()
    """That take frames in this pass."""
    chunk: Chunk | None = None
    """That is being looked at."""
    looking: int = 0
    """Jobs that have not done with the chunk."""


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
        self.decoded_videos = 0
        """Passes over a video, the extra ones included."""
        self.extra_passes = 0
        """Over videos whose frames are chosen by motion and do not fit into memory until it is
        known."""
        self.decoded_frames = 0
        """Frames that came out of the decoder and were looked at."""
        self.decoding_waits = 0.0
        """Seconds in which decoders had frames and nobody took them, summed over decoders."""
        self.networks_wait = 0.0
        """Seconds in which nothing was in work but decoding."""
        self.extractors = tuple(extractors)
        self.store = store
        self.decoder = decoder
        self.device = device
        self.batch_clips = dict(batch_clips or {})
        self.patience_seconds = patience_seconds
        self._leaving = leaving or ASKED
        self._attempt: str | None = None
        self._specs = {extractor: specs_of(extractor, decoder=decoder) for extractor in extractors}
        motion = make_extractor("motion")
        self._motion = next((e for e in extractors if e == motion), motion)
        self._motion_spec = specs_of(self._motion, decoder=decoder)["series"]
        cores = threads or cpu_count()
        # Twice as many as work, because some wait: for a device, a lock, a library's own threads.
        self._threads = 2 * (1 if device.type != "cpu" else cores)
        self.held_limit = HELD_BYTES
        """Bytes of clips that wait for a network or are in one."""
        if device.type == "cuda":
            self.held_limit = torch.cuda.mem_get_info(device)[1] // 8
        room = Room(WORKING_BYTES)
        self.batches = {
            extractor: Batch(
                extractor,
                device,
                self.batch_clips.get(extractor.name),
                largest_bytes=self.held_limit // 4,
                room=room,
            )
            for extractor in {*extractors, self._motion}
        }
        per_decoder = DECODING_THREADS
        self.lanes = [
            _Lane(Decoder(decoder, threads=DECODING_THREADS, patience_seconds=patience_seconds))
            for _ in range(max(1, cores // per_decoder))
        ]
        self._writers: dict[FeatureSpec, ShardWriter] = {}
        self._ledger = Ledger(store.path)
        self._provenance = {
            "software": SOFTWARE,
            "host": platform.node(),
            "device": str(device),
        }
        self._imported = False
        self._changed_before: Mapping[tuple[str, str], Failure] = {}
        self._again: deque[Course] = deque()
        self._alone: deque[tuple[Batch, list[tuple[Job, int, torch.Tensor]]]] = deque()
        """Batches that found no memory, and are tried once more while nothing else is computed."""
        self._more = True
        self._outcomes: deque[Outcome] = deque()
        self._counts = {"done": 0, "failed": 0, "cached": 0}
        self._held_bytes = 0
        self._tasks = 0
        self._writes = 0
        self._unwritten_bytes = 0
        self._committing = False
        self._done: queue.SimpleQueue[tuple[Future[Any], Callable[[Future[Any]], None]]]
        self._done = queue.SimpleQueue()

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
        return [spec for specs in self._specs.values() for spec in specs.values()]

    @property
    def held_bytes(self) -> int:
        """Of clips that wait for a network or are in one; read for display."""
        return self._held_bytes + sum(batch.waiting_bytes for batch in self.batches.values())

    def todo(
        self, video: Video, content: Fingerprint | None
    ) -> dict[Extractor, Mapping[str, FeatureSpec]]:
        """The extractors of which this video lacks an output, and which these are.

        The motion series is among them where something else needs it.

        Args:
            video: One of the run's.
            content: Of its file, which what is banked is compared with; None where it is not there.

        Raises:
            ChangedVideoError: if another file is banked under the video's id.
        """
        todo: dict[Extractor, Mapping[str, FeatureSpec]] = {}
        banked: list[FeatureSpec] = []
        for extractor, specs in self._specs.items():
            lacking = {o: s for o, s in specs.items() if self.store.missing(s, [video])}
            if lacking:
                todo[extractor] = lacking
            banked.extend(specs[output] for output in specs.keys() - lacking.keys())
        if any(isinstance(extractor.sampling, MotionSampling) for extractor in todo):
            if self.store.missing(self._motion_spec, [video]):
                todo.setdefault(self._motion, {"series": self._motion_spec})
            else:
                banked.append(self._motion_spec)
        if content is not None:
            for spec in banked:
                self.store.check_file(spec, video, content)
        return todo

    def run(self) -> Generator[Outcome, None, None]:
        """Extract what is missing; yields every video once, when its fate is known.

        What was computed is committed when the loop ends, also when it is left early.

        Raises:
            BankError: if the bank cannot be written.
            WeightsError: if a network cannot be built.
            KeyboardInterrupt: if it was told to leave.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(THREADS)
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32, also in convolutions
        self._woken, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        self._pool = ThreadPoolExecutor(self._threads, "vqbank-compute")
        self._disk = ThreadPoolExecutor(1, "vqbank-write")
        try:
            with writing(self.store.path):
                self._ledger.append(
                    status="started",
                    host=platform.node(),
                    process=os.getpid(),
                    keys=[spec.key for spec in self.specs],
                    videos=len(self.videos),
                )
            with suppress(BankError):  # a damaged ledger, as `status` tells, stops no work
                self._changed_before = changed_files(self.store.path)
            yield from self._run()
            self._leave()
            with writing(self.store.path):
                self._ledger.append(status="ended", **self._progress())
            self.store.refresh()
        except BaseException as error:
            self._pool.shutdown(wait=False, cancel_futures=True)
            try:  # keep what is finished; where the disk was full it may still find room
                with suppress(BankError) if isinstance(error, BankError) else nullcontext():
                    self._leave()
            finally:
                with suppress(BankError), writing(self.store.path):
                    self._ledger.append(**_ending(error), **self._progress())
            raise
        finally:
            for lane in self.lanes:
                lane.decoder.close()
            # Whoever leaves early does not wait for batches that nobody wants any more.
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._disk.shutdown(cancel_futures=True)
            for writer in self._writers.values():
                writer.abandon()
            self._writers.clear()
            self._woken.close()
            self._wake.close()
            torch.set_num_threads(threads)

    def _leave(self) -> None:
        """Commit what is finished."""
        self._disk.shutdown()  # after what waits for it
        self._commit(list(self._writers))

    def _run(self) -> Iterator[Outcome]:
        videos = iter(self.videos)
        self._more = True
        told = time.monotonic()
        self._ended = 0
        self._write_companions()
        while True:
            if self._leaving.is_set():
                raise KeyboardInterrupt
            for lane in self.lanes:
                if lane.video is None:
                    self._start(lane, videos)
            busy = [lane for lane in self.lanes if lane.video is not None]
            while self._outcomes:
                yield self._outcomes.popleft()
            idle = not busy and not self._tasks and not self._writes and not self._alone
            if idle and self._more:
                continue
            if idle and not self._flush():
                assert self._ended == len(self.videos), "a video's fate is not known"
                return
            self._advance(busy)
            if time.monotonic() - told > PROGRESS_SECONDS:
                told = time.monotonic()
                with writing(self.store.path):
                    self._ledger.append(status="running", durable=False, **self._progress())

    def _progress(self) -> dict[str, Any]:
        return {
            **self._counts,
            "decoded_videos": self.decoded_videos,
            "decoded_frames": self.decoded_frames,
        }

    def _start(self, lane: _Lane, videos: Iterator[Video]) -> None:
        """Give an idle lane its next video: one that has to be decoded again, else a new one."""
        if self._again:
            course = self._again.popleft()
            lane.video, lane.course, lane.jobs = course.video, course, course.jobs
            lane.decoder.open(course.video.path)
            return
        begun = time.monotonic()
        for video in videos:
            content = _fingerprint(video.path)
            try:
                todo = self.todo(video, content)
            except ChangedVideoError as error:
                course = _unopened(video, len(self._specs))
                for specs in self._specs.values():
                    self._fail(course, specs, str(error), changed=True)
                self._settle(course, len(self._specs))
                continue
            if content is not None:
                self._tell_restored(video)
            if todo:
                self._import()
                if self._attempt is not None:
                    with writing(self.store.path):
                        self._ledger.append(
                            status="begun", durable=False, video=video.id, attempt=self._attempt
                        )
                lane.video, lane.todo, lane.content, lane.course = video, todo, content, None
                lane.decoder.open(video.path)
                return
            self._end(Outcome(video, {}, cached=True))
            if time.monotonic() - begun > LOOKING_SECONDS:
                return
        self._more = False

    def _import(self) -> None:
        """All that threads of this run may need, before the first of them starts."""
        if not self._imported:
            import_for(self.extractors)
            self._imported = True

    def _advance(self, busy: Sequence[_Lane]) -> None:
        """Wait until something has happened, and see to it."""
        full = self.held_bytes > self.held_limit or self._unwritten_bytes > UNWRITTEN_BYTES
        if self._alone:
            full = True  # until it has been tried
            if not self._tasks:
                self._compute(*self._alone[0], alone=True)
        elif full and not self._tasks and not self._writes:
            self._flush()  # many half-filled batches
        asking = [] if full else [lane for lane in busy if lane.chunk is None]
        seconds = min([1.0, *(lane.decoder.seconds_left for lane in asking)])
        begun = time.monotonic()
        ready = wait([self._woken, *(lane.decoder.fileno() for lane in asking)], timeout=seconds)
        waited = time.monotonic() - begun
        if full:
            self.decoding_waits += waited * len(busy)
        elif not self._tasks and not self._writes:
            self.networks_wait += waited
        if self._woken in ready:
            self._woken.recv(4096)
        for lane in asking:
            self._receive(lane, ready=lane.decoder.fileno() in ready)
        while not self._done.empty():
            future, then = self._done.get()
            then(future)
        self._commit_what_is_due()
        for batch in self.batches.values() if not self._alone else ():
            while waiting := batch.pop(older_than=FLUSH_SECONDS):
                self._compute(batch, waiting)

    def _receive(self, lane: _Lane, *, ready: bool) -> None:
        video = lane.video
        assert video is not None
        try:
            if not ready:
                lane.decoder.check()
                return
            answer = lane.decoder.receive()
            if isinstance(answer, Probe):
                self._begin(lane, video, answer)
            elif isinstance(answer, End):
                self._end_of_decoding(lane, shortfall=answer.shortfall)
            else:
                self._look(lane, answer)
        except DecodeError as error:
            self._end_of_decoding(lane, error=error)
        except Exception as error:
            if lane.video is None or not is_out_of_memory(error):  # None: decoding has ended
                error.add_note(f"at {video.id}")
                raise
            lane.decoder.close()  # it may be in the middle of the video
            if lane.course is not None and not lane.jobs:
                lane.course = None  # of which not all jobs were made
            reason = f"{video.path}: there is no memory to look at it: {one_line(error)}"
            self._end_of_decoding(lane, error=DecodeError(reason))

    def _begin(self, lane: _Lane, video: Video, probe: Probe) -> None:
        """The video is open: which frames of it are wanted?

        Raises:
            DecodeError: if the file was not there before.
        """
        again = lane.course is not None
        if lane.course is None:
            timeline = Timeline(
                probe.pts_seconds,
                probe.header_frames,
                probe.rate,
                video_id=video.id,
                height=probe.height,
                width=probe.width,
            )
            if lane.content is None:
                raise DecodeError(f"{video.path} could not be read, and then could: try again")
            lane.course = Course(video, lane.content, probe.record(), timeline)
            self._enlist(lane.course, lane.todo)
        course = lane.course
        if not course.jobs:
            lane.video, lane.course = None, None
            return
        course.decoding = True
        lane.jobs = [*course.jobs, *([] if again else course.retained)]
        wanted = np.unique(np.concatenate([job.clips.frames.reshape(-1) for job in course.jobs]))
        self.decoded_videos += 1
        lane.decoder.decode(wanted)

    def _enlist(self, course: Course, todo: Mapping[Extractor, Mapping[str, FeatureSpec]]) -> None:
        video = course.video
        damage = ""
        if self._motion not in todo and any(
            isinstance(extractor.sampling, MotionSampling) for extractor in todo
        ):
            try:
                course.motion = self.store.read(self._motion_spec, video.id).values[:, 0]
            except DamagedShardError as error:
                damage = str(error)
        course.open = len(todo)
        for extractor, specs in todo.items():
            sampling = extractor.sampling
            try:
                if not isinstance(sampling, MotionSampling):
                    clips = sampling.clips(course.timeline)
                elif damage:
                    raise InvalidFeatureError(f"no motion series: {damage}")
                elif course.motion is not None:
                    clips = sampling.clips_by_motion(course.timeline, course.motion)
                else:
                    course.retained.append(Retained(course, extractor, specs))
                    continue
                course.jobs.append(Job(course, extractor, specs, clips))
            except InvalidFeatureError as error:
                self._fail(course, specs, str(error))
                self._settle(course, 1)

    def _look(self, lane: _Lane, chunk: Chunk) -> None:
        """Let every job that is left take its frames of a chunk."""
        assert lane.course is not None
        lane.course.frames += len(chunk.frame_index)
        self.decoded_frames += len(chunk.frame_index)
        frames = torch.from_numpy(chunk.pictures).to(self.device).permute(0, 3, 1, 2)
        jobs = [job for job in lane.jobs if isinstance(job, Retained) or not job.ended]
        lane.chunk, lane.looking = chunk, len(jobs)
        for job in jobs:

            def taken(
                future: "Future[list[tuple[int, torch.Tensor]] | None]",
                job: Job | Retained = job,
            ) -> None:
                if isinstance(job, Job):
                    self._clips(job, future)
                else:
                    self._kept(lane, job, future)
                lane.looking -= 1
                self._looked(lane)

            self._submit(job.take, chunk.frame_index, frames, then=taken)
        self._looked(lane)

    def _looked(self, lane: _Lane) -> None:
        if lane.looking == 0 and lane.chunk is not None:
            lane.decoder.release(lane.chunk)
            lane.chunk = None

    def _clips(self, job: Job, future: "Future[list[tuple[int, torch.Tensor]] | None]") -> None:
        try:
            clips = future.result() or []
        except Exception as error:
            if not self._is_refusal(error):
                error.add_note(f"in the view of {job.extractor.name}, at {job.course.video.id}")
                raise
            self._refuse(job, one_line(error))
            return
        for clip, tensor in clips:
            self._add(job, clip, tensor)

    def _kept(self, lane: _Lane, retained: Retained, future: "Future[Any]") -> None:
        try:
            future.result()
        except Exception as error:
            course = lane.course
            assert course is not None
            if not self._is_refusal(error):
                error.add_note(f"in the view of {retained.extractor.name}, at {course.video.id}")
                raise
            if retained in course.retained:
                course.retained.remove(retained)
                self._fail(course, retained.specs, one_line(error))
                self._settle(course, 1)

    @staticmethod
    def _is_refusal(error: Exception) -> bool:
        """Whether it costs one video and not the run."""
        return isinstance(error, InvalidFeatureError) or is_out_of_memory(error)

    def _add(self, job: Job, clip: int, tensor: torch.Tensor) -> None:
        job.clips_to_fill -= 1
        full = self.batches[job.extractor].add(job, clip, tensor)
        if full:
            self._compute(self.batches[job.extractor], full)

    def _compute(
        self, batch: Batch, waiting: list[tuple[Job, int, torch.Tensor]], *, alone: bool = False
    ) -> None:
        held = sum(tensor.nbytes for _, _, tensor in waiting)
        size = batch.size
        self._held_bytes += held

        def computed(future: "Future[list[Mapping[str, NDArray[Any]]]]") -> None:
            self._held_bytes -= held
            jobs = list(dict.fromkeys(job for job, _, _ in waiting))
            if alone:
                self._alone.popleft()
            try:
                rows = future.result()
            except Exception as error:
                if not self._is_refusal(error):
                    videos = ", ".join(job.course.video.id for job in jobs)
                    error.add_note(f"in {batch.extractor.name}, at {videos}")
                    raise
                if isinstance(error, InvalidFeatureError):  # all clips have the same shape
                    for job in jobs:
                        self._refuse(job, str(error))
                    return
                # On a CPU a batch keeps its shape, so that no bit changes: it can only be tried
                # while nothing else needs memory, and then no clip of this shape fits.
                fixed = self.device.type == "cpu"
                if fixed and not alone:
                    self._alone.append((batch, waiting))
                    return
                if fixed or len(waiting) == 1:
                    what = f"a batch of {size} clips" if fixed else "one clip"
                    for job in jobs:
                        reason = f"{what} of {batch.extractor.name} does not fit into memory"
                        self._refuse(job, f"{reason}: {one_line(error)}")
                    return
                batch.size = min(batch.size, max(1, size // 2))  # the other thread may have halved
                half = len(waiting) // 2
                for some in (waiting[:half], waiting[half:]):
                    self._compute(batch, some)
                return
            for (job, clip, _), of_clip in zip(waiting, rows, strict=True):
                if not job.ended:
                    job.put(clip, of_clip)
                    if job.clips_to_compute == 0:
                        self._finish(job)

        self._submit(batch.compute, waiting, then=computed)

    def _write_companions(self) -> None:
        """See to it that the bank has the text banks and tails that go with the features."""
        for extractor, specs in self._specs.items():
            text = extractor.text_spec()
            if text is not None and not has_text(self.store, text):
                self._import()

                def text_made(future: Future[TextBank], spec: FeatureSpec = text) -> None:
                    write_text(self.store, spec, future.result(), provenance=self._provenance)

                self._submit(extractor.text, self.device, then=text_made)
            cut = specs.get(extractor.cut_output)
            if cut is not None and not has_tail(self.store, cut, extractor.tail_prompts):
                self._import()

                def tail_made(future: Future[Tail], spec: FeatureSpec = cut) -> None:
                    write_tail(self.store, spec, future.result())

                self._submit(extractor.tail, then=tail_made)

    def _flush(self) -> bool:
        """Compute half-filled batches; False if there are none."""
        flushed = False
        for batch in self.batches.values():
            while waiting := batch.pop():
                self._compute(batch, waiting)
                flushed = True
        return flushed

    def _finish(self, job: Job) -> None:
        """All rows are there."""
        course = job.course
        course.finished.append(job)
        if job.extractor == self._motion and course.retained:
            course.motion = job.feature("series").values[:, 0]
        if not course.decoding:
            self._bank_finished(course)

    def _end_of_decoding(
        self, lane: _Lane, *, shortfall: int = 0, error: DecodeError | None = None
    ) -> None:
        course, video = lane.course, lane.video
        assert video is not None
        jobs = [job for job in lane.jobs if isinstance(job, Job)]
        lane.video, lane.course, lane.jobs, lane.chunk = None, None, (), None
        died = isinstance(error, DecoderDiedError)
        if course is None:
            course = _unopened(video, len(lane.todo))
            for specs in lane.todo.values():
                self._fail(course, specs, str(error), lane.decoder.traceback if died else "")
            self._settle(course, len(lane.todo))
            return
        course.decoding = False
        course.probe["shortfall"] = max(shortfall, course.probe.get("shortfall", 0))
        self._record_health(course, error)
        for job in jobs if error is not None else ():
            # Damage costs what wanted frames at or after it; where the decoder died, nobody knows
            # how far it would have come.
            if (job.clips_to_fill or died) and not job.ended and job.clips_to_compute:
                self._refuse(job, str(error), lane.decoder.traceback if died else "")
        self._bank_finished(course)

    def _record_health(self, course: Course, error: DecodeError | None) -> None:
        health = {"error": str(error)} if error is not None else {}
        with writing(self.store.path):
            self._ledger.append(
                status="decoded", durable=False, video=course.video.id, **course.probe, **health
            )

    def _refuse(self, job: Job, reason: str, traceback: str = "") -> None:
        if job.ended:
            return
        job.drop()
        reason = _without_id(reason, job.course.video)
        self._fail(job.course, job.specs, reason, traceback)
        if job.extractor == self._motion:
            for retained in job.course.retained:
                self._fail(job.course, retained.specs, f"no motion series: {reason}")
            count, job.course.retained = len(job.course.retained), []
            self._settle(job.course, count)
        self._settle(job.course, 1)

    def _bank_finished(self, course: Course) -> None:
        """Hand finished jobs to the disk; with the motion known, begin what waited for it."""
        for job in course.finished:
            job.ended = True
            self._writes += 1
            self._unwritten_bytes += job.nbytes
            self._submit(self._bank, job, then=self._banked(job), pool=self._disk)
        course.finished = []
        if course.motion is None or not course.retained:
            return
        retained, course.retained, course.jobs = course.retained, [], []
        for waited in retained:
            try:
                job = waited.job(course.motion)
            except InvalidFeatureError as error:
                self._fail(course, waited.specs, str(error))
                self._settle(course, 1)
                continue
            if waited.again:
                course.jobs.append(job)
            for clip, tensor in waited.clips(job):
                self._add(job, clip, tensor)
        if course.jobs:
            self._again.append(course)
            self.extra_passes += 1

    def _bank(self, job: Job) -> dict[str, str]:
        """Write all outputs of a job; returns the reason by the output that was refused."""
        course = job.course
        if _fingerprint(course.video.path) != course.fingerprint:
            reason = (
                f"{course.video.path} was replaced, changed or taken away while it was being read; "
                "nothing of it is banked, run the same command again once it stays as it is"
            )
            return dict.fromkeys(job.specs, reason)
        refused = {}
        for output, spec in job.specs.items():
            try:
                feature = job.feature(output)
            except Exception as error:
                if not self._is_refusal(error):
                    error.add_note(f"in {spec.name}, at {course.video.id}")
                    raise
                refused[output] = one_line(error)
                continue
            try:
                self._write(course, spec, feature)
            except InvalidFeatureError as error:
                refused[output] = str(error)
        return refused

    def _banked(self, job: Job) -> Callable[[Future[dict[str, str]]], None]:
        def banked(future: Future[dict[str, str]]) -> None:
            self._writes -= 1
            self._unwritten_bytes -= job.nbytes
            for output, reason in future.result().items():
                self._fail(job.course, {output: job.specs[output]}, reason)
            job.drop()
            self._settle(job.course, 1)

        return banked

    def _write(self, course: Course, spec: FeatureSpec, feature: Feature) -> None:
        with writing(self.store.path):
            if spec not in self._writers:
                self._writers[spec] = self.store.writer(spec, provenance=self._provenance)
            try:
                self._writers[spec].add(
                    course.video.id, feature, fingerprint=course.fingerprint, probe=course.probe
                )
            except InvalidFeatureError:
                raise  # before anything was written
            except BaseException:  # half a row may lie there
                self._writers.pop(spec).abandon()
                raise

    def _fail(
        self,
        course: Course,
        specs: Mapping[str, FeatureSpec],
        reason: str,
        traceback: str = "",
        *,
        changed: bool = False,
    ) -> None:
        reason = _without_id(reason, course.video)
        with writing(self.store.path):
            kept = self._ledger.keep_traceback(traceback) if traceback else None
            about = {"changed": True} if changed else {}
            for spec in specs.values():
                course.failures[spec.key] = reason
                self._ledger.append(
                    video=course.video.id,
                    key=spec.key,
                    status="failed",
                    reason=reason,
                    traceback=kept,
                    **about,
                )

    def _tell_restored(self, video: Video) -> None:
        """That the banked file lies there again, if another one was found before."""
        for spec in self.specs:
            failure = self._changed_before.get((video.id, spec.key))
            if failure is not None:
                with writing(self.store.path):
                    self._ledger.append(
                        status="restored",
                        video=video.id,
                        key=spec.key,
                        changed=False,
                        until=failure.time,
                    )

    def _settle(self, course: Course, count: int) -> None:
        """So many extractors of a video have come to their end."""
        course.open -= count
        if count and course.open == 0:
            self._end(Outcome(course.video, course.failures, cached=False, frames=course.frames))

    def _end(self, outcome: Outcome) -> None:
        self._ended += 1
        kind = "cached" if outcome.cached else "failed" if outcome.failures else "done"
        self._counts[kind] += 1
        self._outcomes.append(outcome)

    def _submit(
        self,
        call: Callable[..., Any],
        *arguments: Any,
        then: Callable[[Future[Any]], None],
        pool: ThreadPoolExecutor | None = None,
    ) -> None:
        """Run in a thread; `then` sees the result in the loop."""
        computing = pool is None
        self._tasks += computing

        def finished(future: Future[Any]) -> None:
            self._tasks -= computing
            if not future.cancelled():
                then(future)

        def wake(future: Future[Any]) -> None:
            self._done.put((future, finished))
            try:
                self._wake.send(b"\0")
            except OSError:  # full of wakes, or the run is over
                return

        (pool or self._pool).submit(call, *arguments).add_done_callback(wake)

    def _commit_what_is_due(self) -> None:
        """In the writer's thread, which alone touches writers during the run."""
        due = [s for s, w in list(self._writers.items()) if _is_due(w)]
        if due and not self._committing:
            self._writes += 1
            self._committing = True

            def committed(future: Future[None]) -> None:
                self._writes -= 1
                self._committing = False
                future.result()

            self._submit(self._commit, due, then=committed, pool=self._disk)

    def _commit(self, specs: Sequence[FeatureSpec]) -> None:
        for spec in specs:
            writer = self._writers.pop(spec, None)
            if writer is None:
                continue
            try:
                with writing(self.store.path):
                    writer.commit()
            except BaseException:
                writer.abandon()
                raise


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


def _without_id(reason: str, video: Video) -> str:
    """A reason stands beside the video's id, with which many errors begin."""
    return reason.removeprefix(f"{video.id}: ")


def _is_due(writer: ShardWriter) -> bool:
    age = time.monotonic() - writer.started
    return writer.payload_bytes >= FLUSH_BYTES or age >= FLUSH_SECONDS


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
        for name in WRITING_MODULES:
            import_module(name)


def _ending(error: BaseException) -> dict[str, Any]:
    """What the ledger says of a run that did not come to its end."""
    if isinstance(error, (GeneratorExit, KeyboardInterrupt)):
        return {"status": "stopped"}
    notes = getattr(error, "__notes__", [])
    return {"status": "crashed", "reason": "; ".join([one_line(error), *notes])}


def _unopened(video: Video, count: int) -> Course:
    """Of a video of which nothing is known, and so many extractors have to be told."""
    unknown = Timeline(np.zeros(0), 0, 0.0, video_id=video.id, height=0, width=0)
    return Course(video, Fingerprint(0, ""), {}, unknown, open=count)


def _fingerprint(path: Path) -> Fingerprint | None:
    """Of a video's file; None where it is not there, or cannot be read."""
    try:
        return Fingerprint.of(path)
    except (OSError, ValueError):  # ValueError: a path with a NUL
        return None
