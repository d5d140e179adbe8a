"""Which frames of a video are looked at: arithmetic on presented times and counts.

Shape letters: n presented frames, t clips, f frames of a clip, r rows that a clip gives.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

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
    """Height of a presented frame, in pixels."""
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


@runtime_checkable
class MotionSampling(Protocol):
    """Chooses frames by what they show: by the series of frame differences; also frozen.

    The key of that series, `motion.series`, becomes part of the extractor's key.
    """

    def clips_by_motion(self, timeline: Timeline, motion: NDArray[np.float32]) -> Clips:
        """The clips of one video; motion [n] is column 0 of its `motion.series`."""
        ...


def one_row_per_clip(frames: NDArray[np.int64]) -> Clips:
    """Clips [t, f], each of which its first frame stands for."""
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
        return one_row_per_clip(np.arange(0, len(timeline), step, dtype=np.int64)[:, None])


@dataclass(frozen=True, slots=True)
class Uniform:
    """A fixed number of frames, first and last included: round(linspace(0, n-1, count)).

    The rule of Q-CLIP; a video of fewer frames repeats some.
    """

    count: int

    def clips(self, timeline: Timeline) -> Clips:
        """[count, 1]."""
        frames = np.round(np.linspace(0, len(timeline) - 1, self.count)).astype(np.int64)
        return one_row_per_clip(frames[:, None])


@dataclass(frozen=True, slots=True)
class EveryNth:
    """Frames 0, step, 2 step, ..."""

    step: int

    def clips(self, timeline: Timeline) -> Clips:
        """[t, 1] with t = ceil(n / step)."""
        return one_row_per_clip(np.arange(0, len(timeline), self.step, dtype=np.int64)[:, None])


@dataclass(frozen=True, slots=True)
class EveryClip:
    """A video cut into clips of consecutive frames; the last one repeats the last frame."""

    length: int = 32

    def clips(self, timeline: Timeline) -> Clips:
        """[t, length] with t = ceil(n / length)."""
        starts = np.arange(0, len(timeline), self.length, dtype=np.int64)
        frames = starts[:, None] + np.arange(self.length)
        return one_row_per_clip(np.minimum(frames, len(timeline) - 1))


@dataclass(frozen=True, slots=True)
class ClipPerSecond:
    """A clip of consecutive frames from the start of every whole second.

    The rule of RQ-VQA and SimpleVQA: clip i is frames [i r, i r + length) with r the rounded rate,
    for i below floor(N / r) with N the header's count; only the first N frames are read, and the
    last of them is repeated where a clip goes on.
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
        last = min(len(timeline), timeline.frames_by_header) - 1
        return one_row_per_clip(np.minimum(frames, last))


NEIGHBOURS_BYTES = 96 * 2**20
"""How large the frames of a clip of `Neighbours` may be together, unless three are larger."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Every frame together with the one before and the one after it.

    A clip is `block` consecutive frames, fewer where frames are large, with one more on either
    side, and gives one row per frame.  At the ends the only neighbour stands on both sides.
    """

    block: int = field(default=8, compare=False)
    """Changes no row, only how many come at a time; not part of a key."""

    def clips(self, timeline: Timeline) -> Clips:
        """Frames [t, block + 2] and rows [t, block] with t = ceil(n / block)."""
        count = len(timeline)
        frame_bytes = 3 * timeline.height * timeline.width
        block = max(1, min(self.block, NEIGHBOURS_BYTES // max(1, frame_bytes) - 2))
        starts = np.arange(0, count, block, dtype=np.int64)
        rows = starts[:, None] + np.arange(block)
        frames = starts[:, None] + np.arange(-1, block + 1)
        frames = np.abs(frames)  # -1 is 1: the mirror image
        frames = np.where(frames >= count, 2 * (count - 1) - frames, frames)
        return Clips(np.clip(frames, 0, count - 1), np.where(rows < count, rows, -1))


@dataclass(frozen=True, slots=True)
class RandomSegments:
    """Runs of frames, each from a random start inside its equal share of the video.

    FAST-VQA's `FragmentSampleFrames`, with starts that are the same whenever a video is met again
    (there they are never seeded).  Segment g begins at g floor(n / segments) and is entered up to
    `bound - 1` frames later; its frames are `step` apart and wrap around the end, so that they may
    decrease, and loop in a short video.  n is the presented count, as decord's.
    """

    segments: int
    """How many equal parts the video has."""
    joined: int
    """Segments that make one clip, one after the other."""
    length: int
    """Frames taken from a segment."""
    step: int = 2
    stream: str = "starts"
    """Name of the random stream that, with `seed`, the starts are drawn from."""
    seed: int = 0

    def bound(self, count: int) -> int:
        """How many starts there are to draw from in a video of `count` frames.

        0 where a segment is not longer than what is taken from it: then it is entered at once.
        """
        return max(0, count // self.segments - self.length * self.step)

    def frames(self, count: int, starts: NDArray[np.int64]) -> NDArray[np.int64]:
        """The clips [segments / joined, joined length], given how late each segment is entered.

        Args:
            count: n.
            starts: [segments], each below `bound(count)`, or 0.
        """
        first = np.arange(self.segments) * (count // self.segments) + starts
        frames = first[:, None] + np.arange(self.length) * self.step
        return (frames % count).reshape(-1, self.joined * self.length)

    def clips(self, timeline: Timeline) -> Clips:
        """[segments / joined, joined length]."""
        count = len(timeline)
        bound = self.bound(count)
        starts = np.zeros(self.segments, dtype=np.int64)
        if bound:
            for segment in range(self.segments):
                source = generator(timeline.video_id, self.stream, self.seed, segment)
                starts[segment] = source.integers(bound)
        return one_row_per_clip(self.frames(count, starts))


@dataclass(frozen=True, slots=True)
class ClipWithinSecond:
    """A clip of frames from within every whole second.

    The rule of MinimalisticVQA's `extract_temporal_feature.py` for chunks of one second of r
    frames, r being the rounded rate and floor(N / r) their number with N the header's count.  Of
    more than `length` frames it takes those in the middle, [r // 2 - length // 2, ...), or every
    (r // length)-th from the first; of fewer it takes all and repeats the last one of the second.
    A video shorter than a second, or of unknown rate, which their loader cannot read, counts as
    one second.
    """

    length: int = 32
    placed: Literal["middle", "spread"] = "middle"

    def clips(self, timeline: Timeline) -> Clips:
        """[t, length]."""
        rate, count = timeline.rounded_rate, timeline.frames_by_header
        whole_seconds = rate > 0 and count >= rate
        second = rate if whole_seconds else len(timeline)
        starts = second * np.arange(count // rate if whole_seconds else 1, dtype=np.int64)
        if second <= self.length:
            within = np.minimum(np.arange(self.length), second - 1)
        elif self.placed == "middle":
            within = second // 2 - self.length // 2 + np.arange(self.length)
        else:
            within = second // self.length * np.arange(self.length)
        return one_row_per_clip(np.minimum(starts[:, None] + within, len(timeline) - 1))


@dataclass(frozen=True, slots=True)
class EvenlySpaced:
    """`count` frames at the same interval, floor(i n / count); all of a video that has no more.

    The preprocessed input of A2INet, which takes 128.
    """

    count: int = 128

    def clips(self, timeline: Timeline) -> Clips:
        """[min(n, count), 1]."""
        return one_row_per_clip(_evenly_spaced(len(timeline), self.count)[:, None])


def _evenly_spaced(frames: int, count: int | None) -> NDArray[np.int64]:
    if count is None or frames <= count:
        return np.arange(frames, dtype=np.int64)
    return np.arange(count, dtype=np.int64) * frames // count


@dataclass(frozen=True, slots=True)
class Blocks:
    """Blocks of 64 frames, 32 of which are looked at and give a row each.

    The rule of TCSVT-2022-BVQA's `CNNfeatures_Motion.py`, which A2INet follows.  In a block the
    frames are trunc(linspace(0, 63, 32)): 0, 2, ..., 60, 63.  Blocks follow each other; the last
    one ends with the video and so overlaps the one before, and of it only the rows count that lie
    behind the others.  A video of at most 64 frames is one block, trunc(linspace(0, n - 1, 32)).
    """

    spaced: int | None = None
    """The blocks are made of this many evenly spaced frames; None means of all frames."""

    def clips(self, timeline: Timeline) -> Clips:
        """Frames and rows [t, 32] with t = ceil(n / 64)."""
        chosen = _evenly_spaced(len(timeline), self.spaced)
        count = len(chosen)
        followed = max(0, -(-count // 64) - 1)  # blocks that another one follows
        starts = np.append(64 * np.arange(followed), max(0, count - 64))
        # Equal to torch's linspace in float32: 31 is prime, so that a whole quotient is an end or
        # a multiple of it, both of which float32 holds.
        within = np.arange(32) * (min(count, 64) - 1) // 31
        places = starts[:, None] + within
        new = (np.arange(followed + 1)[:, None] < followed) | (places >= 64 * followed)
        return Clips(chosen[places], np.where(new, chosen[places], -1))


@dataclass(frozen=True, slots=True)
class RowsOfBlocks:
    """The frames that stand for the rows of `Blocks`, one by one."""

    spaced: int | None = None
    """How many evenly spaced frames the blocks are made of; None means of all frames."""

    def clips(self, timeline: Timeline) -> Clips:
        """[t, 1] with t the rows of `Blocks`: 32 for a video of at most 64 frames, else n / 2."""
        rows = Blocks(self.spaced).clips(timeline).rows
        return one_row_per_clip(rows[rows >= 0][:, None])


@dataclass(frozen=True, slots=True)
class SegmentCentres:
    """The frame in the middle of each of `count` equal parts: floor((i + 1/2) n / count).

    The test rule of mmaction for clips of one frame, with which ViFi-CLIP takes 32; a video of
    fewer frames repeats some.
    """

    count: int

    def clips(self, timeline: Timeline) -> Clips:
        """[count, 1]."""
        odd = 2 * np.arange(self.count, dtype=np.int64) + 1
        return one_row_per_clip((odd * len(timeline) // (2 * self.count))[:, None])


@dataclass(frozen=True, slots=True)
class ContinuousClips:
    """Clips of consecutive frames: some spread evenly, for testing, then some from random starts.

    RAM-VQA's, by the rules of FAST-VQA and mmaction: test clip i starts at
    floor((i + 1/2) (n - length + 1) / test), a training clip anywhere in 0 ... n - length.  A video
    of fewer frames than a clip is entered at 0 and goes round.
    """

    length: int = 32
    test: int = 3
    train: int = 0
    stream: str = "starts"
    """Name of the random stream that, with `seed`, training clips' starts are drawn from."""
    seed: int = 0

    def clips(self, timeline: Timeline) -> Clips:
        """[test + train, length]."""
        count = len(timeline)
        starts = max(1, count - self.length + 1)  # to choose from
        odd = 2 * np.arange(self.test, dtype=np.int64) + 1
        spread = odd * starts // (2 * self.test) if count >= self.length else 0 * odd
        drawn = [
            int(generator(timeline.video_id, self.stream, self.seed, clip).integers(starts))
            for clip in range(self.train)
        ]
        first = np.append(spread, np.array(drawn, dtype=np.int64))
        return one_row_per_clip((first[:, None] + np.arange(self.length)) % count)


@dataclass(frozen=True, slots=True)
class ConsecutiveFrames:
    """`count` frames that follow each other, from the middle of the video, one by one.

    The one test clip of `ContinuousClips`: they begin at floor((n - count + 1) / 2), and a video of
    fewer frames is entered at 0 and goes round.
    """

    count: int = 32

    def clips(self, timeline: Timeline) -> Clips:
        """[count, 1]."""
        clip = ContinuousClips(self.count, test=1).clips(timeline)
        return one_row_per_clip(clip.frames.T)


SINGLE_FRAMES: dict[str, Callable[[int], SegmentCentres | ConsecutiveFrames]] = {
    "centres": SegmentCentres,
    "consecutive": ConsecutiveFrames,
}
"""How DVLTA-VQA's frames are chosen, by name; each is made from their number."""
