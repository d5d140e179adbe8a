"""Run extractors over videos: every video is decoded once, whatever is asked of it.

The way of one video: which features are missing? none: next, no decode, no model.  Else the union
of all wanted frames is decoded in order in bounded chunks; each chunk goes to the device once;
every extractor's view takes its frames as they pass; full clips of many videos fill one batch per
extractor; rows go to one writer per feature; a shard counts once it is committed.
"""

import platform
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extractors import video as decoding
from extractors.base import ClipFn, Extractor
from extractors.sampling import Clips, Timeline
from extractors.views import ClipView, View
from store.bank import FeatureStore, Ledger
from store.errors import (
    BankError,
    DecodeError,
    InvalidFeatureError,
    ManifestError,
    UnknownNameError,
    unknown_name,
)
from store.schema import Feature, FeatureSpec, Fingerprint, Video
from store.shard import ShardWriter

CHUNK_BYTES = 64 * 2**20
"""Decoded frames that are held at once, unless one frame is larger."""
DECODING_THREADS = 2
FLUSH_BYTES = 256 * 2**20
FLUSH_SECONDS = 300.0
"""A shard is committed once it holds this much or is this old: what a kill costs at most."""
THREADS = 1
"""Of a network on a CPU: fixed, because another number may change the last bit of a feature."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one video."""

    video: Video
    failures: Mapping[str, str]
    """Reason by feature key; empty if everything that was asked for is banked."""
    cached: bool
    """Whether nothing had to be done."""


@dataclass(eq=False)
class _Course:
    """One video on its way."""

    video: Video
    fingerprint: Fingerprint
    probe: dict[str, Any]
    open_jobs: int = 0
    failures: dict[str, str] = field(default_factory=dict)


class _Job:
    """One extractor on one video: frames pass, clips fill, rows arrive."""

    def __init__(
        self,
        course: _Course,
        extractor: Extractor,
        specs: Mapping[str, FeatureSpec],
        timeline: Timeline,
    ) -> None:
        self.course = course
        self.extractor = extractor
        self.specs = specs
        self.clips: Clips = extractor.sampling.clips(timeline)
        count = len(self.clips.frames)
        self.clips_to_fill = count
        self.refusal: str | None = None
        """Why the network would not take a clip, if so."""
        self.ended = False
        self._clips_to_compute = count
        self._timeline = timeline
        self._rows: list[Mapping[str, NDArray[Any]]] = [{}] * count
        self._partial: dict[int, tuple[Tensor, int]] = {}
        wanted = self.clips.frames.reshape(-1)
        self._side = extractor.side(timeline, self.clips)
        self._order = np.argsort(wanted, kind="stable")
        self._sorted = wanted[self._order]

    def take(self, frame_index: NDArray[np.int64], frames: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Let decoded frames pass; yields every clip that they complete.

        Args:
            frame_index: [k], increasing.
            frames: uint8 [k, 3, h, w].
        """
        length = self.clips.frames.shape[1]
        hits = [
            (place, *divmod(int(position), length))
            for place, index in enumerate(frame_index)
            for position in self._order[slice(*np.searchsorted(self._sorted, [index, index + 1]))]
        ]
        for (_, clip, slot), picture in zip(hits, self._viewed(hits, frames), strict=True):
            if clip not in self._partial:
                self._partial[clip] = (picture.new_empty((length, *picture.shape)), 0)
            tensor, filled = self._partial.pop(clip)
            tensor[slot] = picture
            if filled + 1 < length:
                self._partial[clip] = (tensor, filled + 1)
                continue
            self.clips_to_fill -= 1
            yield clip, tensor

    def _viewed(self, hits: Sequence[tuple[int, int, int]], frames: Tensor) -> list[Tensor]:
        """What the view makes of frame `place` for `clip`, for every (place, clip, slot)."""
        view = self.extractor.view
        groups: dict[int | None, list[int]] = {}
        for number, (_, clip, _) in enumerate(hits):
            groups.setdefault(clip if isinstance(view, ClipView) else None, []).append(number)
        pictures: list[Tensor] = [frames] * len(hits)
        for group, numbers in groups.items():
            places = sorted({hits[number][0] for number in numbers})
            if isinstance(view, ClipView):
                assert group is not None
                own: View = view.of_clip(self._timeline, group)
            else:
                own = view
            with torch.inference_mode():
                seen = dict(zip(places, own(frames[places]), strict=True))
            for number in numbers:
                pictures[number] = seen[hits[number][0]]
        return pictures

    def put(self, clip: int, rows: Mapping[str, NDArray[Any]]) -> bool:
        """Keep the rows of one clip; True once the last one has come."""
        self._rows[clip] = rows
        self._clips_to_compute -= 1
        return self._clips_to_compute == 0

    def feature(self, output: str) -> Feature:
        """The finished feature of one output.

        Raises:
            InvalidFeatureError: if a row is not finite; names video, feature and row.
        """
        frame_index = self.clips.rows.reshape(-1)
        kept = frame_index >= 0
        try:
            return Feature(
                values=np.concatenate([rows[output] for rows in self._rows])[kept],
                pts_seconds=self._timeline.pts_seconds[frame_index[kept]],
                frame_index=frame_index[kept],
                side={
                    side.name: np.concatenate(list(self._side[side.name]))[kept]
                    for side in self.specs[output].side
                },
            )
        except InvalidFeatureError as error:
            name = self.specs[output].name
            raise InvalidFeatureError(f"{self.course.video.id}: {name}: {error}") from error


class _Batch:
    """Clips of any videos that wait for one extractor's network."""

    def __init__(self, extractor: Extractor, device: torch.device) -> None:
        self._extractor = extractor
        self._device = device
        self._waiting: dict[tuple[int, ...], list[tuple[_Job, int, Tensor]]] = {}
        self._clip_fn: ClipFn | None = None

    def add(self, job: _Job, clip: int, tensor: Tensor) -> Iterator[_Job]:
        """Queue one clip; yields the jobs whose last rows came."""
        shape = tuple(tensor.shape)
        waiting = self._waiting.setdefault(shape, [])
        waiting.append((job, clip, tensor))
        if len(waiting) == self._extractor.batch_clips:
            yield from self._run(self._waiting.pop(shape))

    def flush(self) -> Iterator[_Job]:
        """Compute what is left."""
        while self._waiting:
            yield from self._run(self._waiting.popitem()[1])

    def _run(self, waiting: list[tuple[_Job, int, Tensor]]) -> Iterator[_Job]:
        if self._clip_fn is None:
            self._clip_fn = self._extractor.build(self._device)
        clips = torch.stack([tensor for _, _, tensor in waiting])
        # Always the same shape: another one could change the last bit of a row.
        padding = self._extractor.batch_clips - len(clips)
        if padding:
            clips = torch.cat([clips, clips.new_zeros((padding, *clips.shape[1:]))])
        try:
            with torch.inference_mode(), self._extractor.precision(self._device):
                rows_by_output = self._clip_fn(clips)
        except InvalidFeatureError as error:  # all clips of a batch have the same shape
            for job in dict.fromkeys(job for job, _, _ in waiting):
                if not job.ended and job.refusal is None:
                    job.refusal = f"{job.course.video.id}: {error}"
                    yield job
            return
        outputs = {
            name: (rows.float() if rows.is_floating_point() else rows).cpu().numpy()
            for name, rows in rows_by_output.items()
        }
        for place, (job, clip, _) in enumerate(waiting):
            if job.put(clip, {name: rows[place].copy() for name, rows in outputs.items()}):
                yield job


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
    ) -> None:
        """Resolve what is asked for; no video is opened and no model is loaded yet.

        Raises:
            ManifestError: if two files stand under one id.
            UnknownNameError: if there is no such decoder.
            WeightsError: if an extractor's weights are not at hand.
        """
        if decoder not in decoding.DECODERS:
            raise UnknownNameError(unknown_name("decoder", decoder, decoding.DECODERS))
        self.videos = _distinct(videos)
        self.decoded_videos = 0
        self.decoded_frames = 0
        """Frames that came out of the decoder and were looked at."""
        self._store = store
        self._decoder = decoder
        self._device = device
        self._specs = {extractor: extractor.specs(decoder=decoder) for extractor in extractors}
        self._batches = {extractor: _Batch(extractor, device) for extractor in extractors}
        self._writers: dict[FeatureSpec, ShardWriter] = {}
        self._ledger = Ledger(store.path)
        self._provenance = {
            "software": {name: version(name) for name in ("vqbank", "torch", "numpy")},
            "host": platform.node(),
            "device": str(device),
        }

    @property
    def specs(self) -> list[FeatureSpec]:
        """Everything that a video has when it is done."""
        return [spec for specs in self._specs.values() for spec in specs.values()]

    def run(self) -> Generator[Outcome, None, None]:
        """Extract what is missing; yields every video once, when its fate is known.

        What was computed is committed when the loop ends, also when it is left early.

        Raises:
            ChangedVideoError: if another file is banked under a video's id.
            BankError: if the bank cannot be written.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(THREADS)
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32, also in convolutions
        try:
            yield from self._run()
            self._commit(list(self._writers))
            self._store.refresh()
        except BankError:
            raise
        except BaseException:  # left early: keep what is finished
            self._commit(list(self._writers))
            raise
        finally:
            for writer in self._writers.values():
                writer.abandon()
            self._writers.clear()
            torch.set_num_threads(threads)

    def _run(self) -> Iterator[Outcome]:
        for video in self.videos:
            todo = self._todo(video)
            if not todo:
                yield Outcome(video, {}, cached=True)
                continue
            try:
                probe = decoding.probe(video.path)
                course = _Course(video, _fingerprint(video.path), probe.record())
            except DecodeError as error:
                course = _Course(video, Fingerprint(0, ""), {})
                for specs in todo.values():
                    self._fail(course, specs, str(error))
                yield Outcome(video, course.failures, cached=False)
                continue

            timeline = Timeline(
                probe.pts_seconds,
                probe.header_frames,
                probe.rate,
                video_id=video.id,
                height=probe.height,
                width=probe.width,
            )
            jobs = [_Job(course, e, specs, timeline) for e, specs in todo.items()]
            course.open_jobs = len(jobs) + 1  # one more while the video is still decoding
            try:
                for job, clip, tensor in self._clips(course, probe, jobs):
                    yield from self._finish(self._batches[job.extractor].add(job, clip, tensor))
            except DecodeError as error:
                for job in jobs:
                    if job.clips_to_fill and not job.ended:
                        job.ended = True
                        course.open_jobs -= 1
                        self._fail(course, job.specs, str(error))
            self._commit([s for s, writer in self._writers.items() if _is_due(writer)])
            yield from self._close(course)
        for batch in self._batches.values():
            yield from self._finish(batch.flush())

    def _todo(self, video: Video) -> dict[Extractor, Mapping[str, FeatureSpec]]:
        """The extractors of which this video lacks an output."""
        todo: dict[Extractor, Mapping[str, FeatureSpec]] = {}
        at_hand = None
        for extractor, specs in self._specs.items():
            lacking = {o: s for o, s in specs.items() if self._store.missing(s, [video])}
            if lacking:
                todo[extractor] = lacking
            for output in specs.keys() - lacking.keys():
                at_hand = at_hand or _fingerprint_at_hand(video.path)
                if at_hand is not None:
                    self._store.check_file(specs[output], video, at_hand)
        return todo

    def _clips(
        self, course: _Course, probe: decoding.Probe, jobs: Sequence[_Job]
    ) -> Iterator[tuple[_Job, int, Tensor]]:
        """Decode the union of all wanted frames once; yields full clips of every job."""
        wanted = np.unique(np.concatenate([job.clips.frames.reshape(-1) for job in jobs]))
        chunk = max(1, CHUNK_BYTES // (probe.height * probe.width * 3))
        self.decoded_videos += 1
        decoded = decoding.decode(
            course.video.path,
            probe,
            wanted,
            decoder=self._decoder,
            chunk=chunk,
            threads=DECODING_THREADS,
        )
        for frame_index, pictures in decoded:
            self.decoded_frames += len(pictures)
            course.probe["shortfall"] = decoded.shortfall
            frames = torch.from_numpy(pictures).to(self._device).permute(0, 3, 1, 2)
            for job in jobs:
                for clip, tensor in job.take(frame_index, frames):
                    yield job, clip, tensor

    def _finish(self, jobs: Iterator[_Job]) -> Iterator[Outcome]:
        for job in jobs:
            job.ended = True
            if job.refusal is not None:
                self._fail(job.course, job.specs, job.refusal)
                yield from self._close(job.course)
                continue
            for output, spec in job.specs.items():
                try:
                    self._bank(job, spec, job.feature(output))
                except InvalidFeatureError as error:
                    self._fail(job.course, {output: spec}, str(error))
            yield from self._close(job.course)

    def _close(self, course: _Course) -> Iterator[Outcome]:
        course.open_jobs -= 1
        if course.open_jobs == 0:
            yield Outcome(course.video, course.failures, cached=False)

    def _fail(self, course: _Course, specs: Mapping[str, FeatureSpec], reason: str) -> None:
        for spec in specs.values():
            course.failures[spec.key] = reason
            with self._writing():
                self._ledger.append(
                    video=course.video.id, key=spec.key, status="failed", reason=reason
                )

    def _bank(self, job: _Job, spec: FeatureSpec, feature: Feature) -> None:
        course = job.course
        with self._writing():
            if spec not in self._writers:
                self._writers[spec] = self._store.writer(spec, provenance=self._provenance)
            self._writers[spec].add(
                course.video.id, feature, fingerprint=course.fingerprint, probe=course.probe
            )

    def _commit(self, specs: Sequence[FeatureSpec]) -> None:
        for spec in specs:
            writer = self._writers.pop(spec)
            try:
                with self._writing():
                    writer.commit()
            except BaseException:
                writer.abandon()
                raise

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise BankError(
                f"{self._store.path} cannot be written ({error.strerror}); what was committed "
                "is safe, run the same command again once it can be"
            ) from error


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


def _is_due(writer: ShardWriter) -> bool:
    age = time.monotonic() - writer.started
    return writer.payload_bytes >= FLUSH_BYTES or age >= FLUSH_SECONDS


def _fingerprint(path: Path) -> Fingerprint:
    try:
        return Fingerprint.of(path)
    except OSError as error:
        raise DecodeError(f"{path} cannot be read: {error.strerror}") from error


def _fingerprint_at_hand(path: Path) -> Fingerprint | None:
    """Of a banked video's file; None where it is not there, or cannot be read."""
    try:
        return Fingerprint.of(path)
    except (OSError, ValueError):  # ValueError: a path with a NUL
        return None
