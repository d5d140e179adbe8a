"""One extractor on one video, and the clips of many videos that wait for one network."""

import ctypes
import errno
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqbank.extractors.base import ClipFn, Extractor
from vqbank.extractors.sampling import Clips, MotionSampling, Timeline
from vqbank.extractors.views import ClipView, View
from vqbank.store.errors import InvalidFeatureError, VqbankError, WeightsError
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, Video

LARGE_BYTES = 64 * 2**20
"""Who needed more memory than this gives it back to the system at once: glibc would keep what every
thread has ever used, 1.5 GB after some frames of 4K."""
RETAINED_BYTES = 256 * 2**20
"""A video's frames, after the view, that wait in memory until its motion series is known; where
there are more, the video is decoded a second time."""

# How libraries say it that raise a RuntimeError: torch on a CPU, C++, CUDA and what is built on it.
_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
# glibc's; others keep less.
_give_back = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, of the computer's memory or of a device's."""
    if isinstance(error, VqbankError):  # it may quote one
        return False
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY):
        return True
    return isinstance(error, (MemoryError, torch.OutOfMemoryError))


@dataclass(eq=False)
class Course:
    """One video on its way."""

    video: Video
    fingerprint: Fingerprint
    probe: dict[str, Any]
    timeline: Timeline
    jobs: "list[Job]" = field(default_factory=list)
    """That take frames as they pass."""
    retained: "list[Retained]" = field(default_factory=list)
    """That wait for the motion series."""
    finished: "list[Job]" = field(default_factory=list)
    """Whose rows are all there, while the video is still decoding."""
    motion: NDArray[np.float32] | None = None
    """Column 0 of the motion series, once it is known."""
    decoding: bool = True
    frames: int = 0
    """Decoded and looked at, so far."""
    open: int = 0
    """Jobs whose fate is not known."""
    failures: dict[str, str] = field(default_factory=dict)


class Job:
    """One extractor on one video: frames pass, clips fill, rows arrive."""

    def __init__(
        self,
        course: Course,
        extractor: Extractor,
        specs: Mapping[str, FeatureSpec],
        clips: Clips,
    ) -> None:
        self.course = course
        self.extractor = extractor
        self.specs = specs
        self.clips = clips
        count = len(clips.frames)
        self.clips_to_fill = count
        self.clips_to_compute = count
        self.ended = False
        self._side = extractor.side(course.timeline, clips)
        self._rows: list[Mapping[str, NDArray[Any]]] = [{}] * count
        self._nbytes = 0
        self._partial: dict[int, tuple[Tensor, int]] = {}
        wanted = clips.frames.reshape(-1)
        self._order = np.argsort(wanted, kind="stable")
        self._sorted = wanted[self._order]

    def take(
        self, frame_index: NDArray[np.int64], frames: Tensor, *, viewed: bool = False
    ) -> list[tuple[int, Tensor]]:
        """Let decoded frames pass, in order; returns every clip that they complete.

        Args:
            frame_index: [k], increasing.
            frames: uint8 [k, 3, h, w]; or what the view makes of them.
            viewed: whether the view has seen them.
        """
        length = self.clips.frames.shape[1]
        partial = self._partial  # `drop` may put another in its place meanwhile
        hits = [
            (place, *divmod(int(position), length))
            for place, index in enumerate(frame_index)
            for position in self._order[slice(*np.searchsorted(self._sorted, [index, index + 1]))]
        ]
        pictures = [frames[place] for place, _, _ in hits] if viewed else self._view(hits, frames)
        full = []
        for (_, clip, slot), picture in zip(hits, pictures, strict=True):
            if clip not in partial:
                partial[clip] = (picture.new_empty((length, *picture.shape)), 0)
            tensor, filled = partial.pop(clip)
            tensor[slot] = picture
            if filled + 1 < length:
                partial[clip] = (tensor, filled + 1)
            else:
                full.append((clip, tensor))
        return full

    def _view(self, hits: Sequence[tuple[int, int, int]], frames: Tensor) -> list[Tensor]:
        """What the view makes of frame `place` for `clip`, for every (place, clip, slot)."""
        view = self.extractor.view
        groups: dict[int, list[int]] = {}
        for number, (_, clip, _) in enumerate(hits):
            groups.setdefault(clip if isinstance(view, ClipView) else 0, []).append(number)
        pictures: list[Tensor] = [frames] * len(hits)
        for clip, numbers in groups.items():
            places = sorted({hits[number][0] for number in numbers})
            own: View
            own = view.of_clip(self.course.timeline, clip) if isinstance(view, ClipView) else view
            with torch.inference_mode():
                seen = dict(zip(places, own(frames[places]), strict=True))
            for number in numbers:
                pictures[number] = seen[hits[number][0]]
        return pictures

    @property
    def nbytes(self) -> int:
        """Of all rows, of every output."""
        return self._nbytes

    def put(self, clip: int, rows: Mapping[str, NDArray[Any]]) -> None:
        """Keep the rows of one clip."""
        self._rows[clip] = rows
        self._nbytes += sum(array.nbytes for array in rows.values())
        self.clips_to_compute -= 1

    def drop(self) -> None:
        """Forget what was gathered: it will not be needed."""
        self.ended = True
        self._rows, self._partial = [], {}

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
                pts_seconds=self.course.timeline.pts_seconds[frame_index[kept]],
                frame_index=frame_index[kept],
                side={
                    side.name: np.concatenate(list(self._side[side.name]))[kept]
                    for side in self.specs[output].side
                },
            )
        except InvalidFeatureError as error:
            name = self.specs[output].name
            raise InvalidFeatureError(f"{self.course.video.id}: {name}: {error}") from error


class Retained:
    """An extractor whose frames are chosen by motion, while the series is being computed.

    Every frame waits as the view makes it, if they all fit; else the video is decoded again once
    the series is known, and so it is where the view differs from clip to clip.
    """

    def __init__(
        self, course: Course, extractor: Extractor, specs: Mapping[str, FeatureSpec]
    ) -> None:
        self.extractor = extractor
        self.specs = specs
        self.again = isinstance(extractor.view, ClipView)
        """Whether the video has to be decoded again."""
        self._course = course
        self._frames: list[Tensor] = []
        self._frame_index: list[NDArray[np.int64]] = []

    def take(self, frame_index: NDArray[np.int64], frames: Tensor) -> None:
        """Keep what the view makes of every frame: uint8 [k, 3, h, w]."""
        view = self.extractor.view
        if self.again or isinstance(view, ClipView):
            return
        with torch.inference_mode():
            seen = view(frames)
        if seen[0].nbytes * len(self._course.timeline) > RETAINED_BYTES:
            self.again = True
            self._frames.clear()
            return
        # A view that changes nothing gives frames that are about to be overwritten; one that cuts
        # keeps all that it was cut from.
        self._frames.append(seen.clone() if _is_a_part(seen, frames) else seen)
        self._frame_index.append(frame_index)

    def job(self, motion: NDArray[np.float32]) -> Job:
        """The job, now that its clips are known."""
        sampling = self.extractor.sampling
        assert isinstance(sampling, MotionSampling)
        clips = sampling.clips_by_motion(self._course.timeline, motion)
        return Job(self._course, self.extractor, self.specs, clips)

    def clips(self, job: Job) -> Iterator[tuple[int, Tensor]]:
        """The clips of the frames that waited."""
        for frame_index, frames in zip(self._frame_index, self._frames, strict=True):
            yield from job.take(frame_index, frames, viewed=True)


def one_line(error: BaseException) -> str:
    """What an error says, with its kind where that is not one of ours."""
    text = " ".join(str(error).split())
    return text if isinstance(error, VqbankError) else f"{type(error).__name__}: {text}"


def _is_a_part(seen: Tensor, frames: Tensor) -> bool:
    storage = seen.untyped_storage()
    return storage.nbytes() > seen.nbytes or (
        storage.data_ptr() == frames.untyped_storage().data_ptr()
    )


class Room:
    """Memory that several threads share: who needs more than is left waits, in turn."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._taken_bytes = 0
        self._turns: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def of(self, needed_bytes: int) -> Iterator[None]:
        """Hold so much; who needs more than there is gets it once nobody else holds any."""
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


class Batch:
    """Clips of any videos that wait for one extractor's network."""

    def __init__(
        self,
        extractor: Extractor,
        device: torch.device,
        size: int | None = None,
        *,
        largest_bytes: int,
        room: Room,
    ) -> None:
        """No model is loaded yet.

        Args:
            extractor: Whose clips.
            device: Of the network.
            size: Clips; None means as the extractor says on a CPU, and as pays on a device.
            largest_bytes: Of the clips of a batch whose size is found out.
            room: What all networks together may take to compute large frames.
        """
        self.extractor = extractor
        self.size = size or extractor.batch_clips
        """Clips; always this many, because another shape could change the last bit of a row."""
        self._size_is_open = size is None and device.type != "cpu"
        self._largest_bytes = largest_bytes
        self._since: dict[tuple[int, ...], float] = {}
        self.waiting_bytes = 0
        self.seconds = 0.0
        """Spent in the network."""
        self._device = device
        self._room = room
        self._waiting: dict[tuple[int, ...], list[tuple[Job, int, Tensor]]] = {}
        self._clip_fn: ClipFn | None = None
        self._building = threading.Lock()

    def add(self, job: Job, clip: int, tensor: Tensor) -> list[tuple[Job, int, Tensor]]:
        """Queue one clip; returns a full batch, or nothing."""
        waiting = self._waiting.setdefault(tuple(tensor.shape), [])
        self._since.setdefault(tuple(tensor.shape), time.monotonic())
        waiting.append((job, clip, tensor))
        self.waiting_bytes += tensor.nbytes
        return self._pop(tuple(tensor.shape)) if len(waiting) >= self.size else []

    def pop(self, *, older_than: float = 0.0) -> list[tuple[Job, int, Tensor]]:
        """What waits, though it fills no batch; nothing if nothing has waited for so many seconds.

        The first clip of a rare shape would otherwise wait for the end of the run.
        """
        now = time.monotonic()
        shape = next((s for s, since in self._since.items() if now - since >= older_than), None)
        return self._pop(shape) if shape is not None else []

    def _pop(self, shape: tuple[int, ...]) -> list[tuple[Job, int, Tensor]]:
        found = self._waiting.pop(shape)
        del self._since[shape]
        self.waiting_bytes -= sum(tensor.nbytes for _, _, tensor in found)
        return found

    def compute(
        self, waiting: Sequence[tuple[Job, int, Tensor]]
    ) -> list[Mapping[str, NDArray[Any]]]:
        """Rows of every clip by output; may run in several threads at once.

        Raises:
            InvalidFeatureError: if clips of this shape cannot be computed.
            WeightsError: if the network cannot be built, or does not fit into memory.
        """
        clip = waiting[0][2]
        clip_fn = self._built(clip)
        needed = self.extractor.working_bytes_per_pixel * clip.shape[-2] * clip.shape[-1]
        with self._room.of(needed if self._device.type == "cpu" else 0):
            return self._rows(clip_fn, waiting)

    def _rows(
        self, clip_fn: ClipFn, waiting: Sequence[tuple[Job, int, Tensor]]
    ) -> list[Mapping[str, NDArray[Any]]]:
        begun = time.perf_counter()
        tensors = [tensor for _, _, tensor in waiting]
        clips = torch.stack(tensors) if len(tensors) > 1 else tensors[0][None]
        size = self.size
        if self._device.type != "cpu":  # there the next power of two does, and costs less
            size = min(size, 1 << (len(clips) - 1).bit_length())
        padding = size - len(clips)
        if padding > 0:
            clips = torch.cat([clips, clips.new_zeros((padding, *clips.shape[1:]))])
        with torch.inference_mode(), self.extractor.precision(self._device):
            rows_by_output = clip_fn(clips)
        outputs = {
            name: (rows.float() if rows.is_floating_point() else rows).cpu().numpy()
            for name, rows in rows_by_output.items()
        }
        self.seconds += time.perf_counter() - begun
        return [
            {name: rows[place].copy() for name, rows in outputs.items()}
            for place in range(len(waiting))
        ]

    def _built(self, clip: Tensor) -> ClipFn:
        with self._building:
            if self._clip_fn is None:
                try:
                    self._clip_fn = self.extractor.build(self._device)
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                    raise WeightsError(  # no video is at fault: it would be said of every one
                        f"the network of {self.extractor.name} does not fit into the memory of "
                        f"{self._device}: {one_line(error)}"
                    ) from error
                if self._size_is_open:
                    with torch.inference_mode(), self.extractor.precision(self._device):
                        largest = max(1, min(256, self._largest_bytes // clip.nbytes))
                        self.size = batch_that_pays(
                            self._clip_fn, clip, min(self.size, largest), largest=largest
                        )
            return self._clip_fn


def batch_that_pays(clip_fn: ClipFn, clip: Tensor, size: int, *, largest: int) -> int:
    """The smallest batch beyond which twice as many clips gain less than a twentieth.

    Args:
        clip_fn: Of an extractor.
        clip: One clip, on the device.
        size: To begin with; it is halved where it does not fit into memory.
        largest: Not tried beyond.

    Raises:
        torch.OutOfMemoryError: if one clip does not fit.
    """
    best, best_rate = 0, 0.0
    while size <= largest:
        try:
            rate = _clips_per_second(clip_fn, clip.expand(size, *clip.shape))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if best:
                return best
            if size == 1:
                raise
            size //= 2
            continue
        if rate < best_rate * 1.05:
            return best
        best, best_rate = size, rate
        size *= 2
    return best


def _clips_per_second(clip_fn: ClipFn, clips: Tensor) -> float:
    clips = clips.contiguous()
    for rows in clip_fn(clips).values():  # the first time, kernels are chosen
        rows.cpu()
    begun = time.perf_counter()
    for rows in clip_fn(clips).values():
        rows.cpu()
    return len(clips) / (time.perf_counter() - begun)
