"""Which frames of a video are looked at: arithmetic on presented times and counts.

Shape letters: n presented frames, t clips, f frames of a clip, r rows that a clip gives.
"""

import hashlib
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Timeline:
    """What is known of a video's frames before any is decoded."""

    pts_seconds: NDArray[np.float64]
    """[n]: presentation times, increasing."""
    header_frames: int
    """Frames according to the container's header; 0 where it says nothing."""
    rate: float
    """Average frames per second according to the container; 0 where it says nothing."""
    video_id: str
    """What random choices are drawn from."""
    height: int
    """Of a presented frame, in pixels."""
    width: int

    def __len__(self) -> int:
        return len(self.pts_seconds)

    @property
    def frames_by_header(self) -> int:
        """For rules that were written for the header's count: that, or the presented count."""
        return self.header_frames if self.header_frames > 0 else len(self)

    @property
    def rounded_rate(self) -> int:
        """Whole frames per second, halves to even (29.97 is 30, 12.5 is 12)."""
        return round(self.rate)


def generator(video_id: str, stream: str, seed: int, clip: int) -> np.random.Generator:
    """The one source of random choices: the same for the same video, stream, seed and clip.

    Seeded with the first 16 bytes of the sha256 of the four, joined by newlines (stream first), as
    a little-endian integer, so that neither the run nor the order of videos matters.
    """
    text = f"{stream}\n{seed}\n{clip}\n{video_id}"
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


class Clips(NamedTuple):
    """The frames of every clip and the rows that each clip gives."""

    frames: NDArray[np.int64]
    """[t, f]: frame indices in presentation order, each below n."""
    rows: NDArray[np.int64]
    """[t, r]: the frame that stands for each row; -1 where the row is padding and is dropped."""


class Sampling(Protocol):
    """Anything that chooses frames; a frozen dataclass, so that it can be part of a key."""

    def clips(self, timeline: Timeline) -> Clips:
        """The clips of one video; at least one for a video with at least one frame."""
        ...


def _one_row_per_clip(frames: NDArray[np.int64]) -> Clips:
    return Clips(frames, frames[:, :1])


@dataclass(frozen=True, slots=True)
class KeyFrames:
    """One frame per second: frames 0, r, 2r, ... with r the rounded frame rate.

    The rule of RQ-VQA's `extract_frame`; where the rate is unknown every frame is a key frame, as
    there.
    """

    def clips(self, timeline: Timeline) -> Clips:
        """[t, 1] with t = ceil(n / r)."""
        step = max(1, timeline.rounded_rate)
        return _one_row_per_clip(np.arange(0, len(timeline), step, dtype=np.int64)[:, None])


@dataclass(frozen=True, slots=True)
class Uniform:
    """A fixed number of frames, first and last included: round(linspace(0, n-1, count)).

    The rule of Q-CLIP; a video of fewer frames repeats some.
    """

    count: int

    def clips(self, timeline: Timeline) -> Clips:
        """[count, 1]."""
        frames = np.round(np.linspace(0, len(timeline) - 1, self.count)).astype(np.int64)
        return _one_row_per_clip(frames[:, None])


@dataclass(frozen=True, slots=True)
class EveryNth:
    """Frames 0, step, 2 step, ..."""

    step: int

    def clips(self, timeline: Timeline) -> Clips:
        """[t, 1] with t = ceil(n / step)."""
        return _one_row_per_clip(np.arange(0, len(timeline), self.step, dtype=np.int64)[:, None])


@dataclass(frozen=True, slots=True)
class ClipPerSecond:
    """A clip of consecutive frames from the start of every whole second.

    The rule of RQ-VQA and SimpleVQA: clip i is frames [i r, i r + length) with r the rounded rate,
    for i below floor(N / r) with N the header's count; frames past the end repeat the last one.
    Where the rate is unknown their loader makes ten clips of the start; a video shorter than a
    second, which their loader cannot read, gives one clip.
    """

    length: int = 32

    def clips(self, timeline: Timeline) -> Clips:
        """[t, length]."""
        step = timeline.rounded_rate
        count = timeline.frames_by_header // step if step > 0 else 10
        starts = step * np.arange(max(1, count), dtype=np.int64)
        frames = starts[:, None] + np.arange(self.length)
        return _one_row_per_clip(np.minimum(frames, len(timeline) - 1))


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Every frame together with the one before and the one after it.

    A clip is `block` consecutive frames with one more on either side and gives one row per frame.
    At the ends the only neighbour stands on both sides.
    """

    block: int = field(default=8, compare=False)
    """Changes no row, only how many come at a time; not part of a key."""

    def clips(self, timeline: Timeline) -> Clips:
        """Frames [t, block + 2] and rows [t, block] with t = ceil(n / block)."""
        count = len(timeline)
        starts = np.arange(0, count, self.block, dtype=np.int64)
        rows = starts[:, None] + np.arange(self.block)
        frames = starts[:, None] + np.arange(-1, self.block + 1)
        frames = np.abs(frames)  # -1 is 1: the mirror image
        frames = np.where(frames >= count, 2 * (count - 1) - frames, frames)
        return Clips(np.clip(frames, 0, count - 1), np.where(rows < count, rows, -1))
