"""Q-CLIP's samplings: which few frames of a video, evenly spaced, by chance or by motion."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vqbank.extractors.sampling import (
    Clips,
    MotionSampling,
    Sampling,
    Timeline,
    Uniform,
    generator,
    one_row_per_clip,
)
from vqbank.store.errors import RecipeError


@dataclass(frozen=True, slots=True)
class RandomFrames:
    """`count` different frames, drawn at random, in time order: Q-CLIP's RandSampl.

    A video of fewer frames repeats some, as `Uniform` does.
    """

    count: int
    stream: str = "frames"
    """Name of the random stream that, with `seed`, the frames are drawn from."""
    seed: int = 0

    def clips(self, timeline: Timeline) -> Clips:
        """[count, 1]."""
        if len(timeline) < self.count:
            return Uniform(self.count).clips(timeline)
        source = generator(timeline.video_id, self.stream, self.seed, 0)
        drawn = source.choice(len(timeline), self.count, replace=False, shuffle=False)
        return one_row_per_clip(np.sort(drawn).astype(np.int64)[:, None])


@dataclass(frozen=True, slots=True)
class UniformRandomStart:
    """Every floor(n / count)-th frame from a random one of the first so many: UNIRandStart.

    A video of fewer frames repeats some, as `Uniform` does.
    """

    count: int
    stream: str = "start"
    """Name of the random stream that, with `seed`, the start is drawn from."""
    seed: int = 0

    def clips(self, timeline: Timeline) -> Clips:
        """[count, 1]."""
        if len(timeline) < self.count:
            return Uniform(self.count).clips(timeline)
        stride = len(timeline) // self.count
        start = generator(timeline.video_id, self.stream, self.seed, 0).integers(stride)
        return one_row_per_clip((start + stride * np.arange(self.count, dtype=np.int64))[:, None])


@dataclass(frozen=True, slots=True)
class Draws:
    """Several choices of frames that one rule draws, one after the other, of seeds from 0 on.

    A head that is trained on them sees another choice at every step.
    """

    rules: tuple[RandomFrames | UniformRandomStart, ...]

    @classmethod
    def of(cls, rule: Sampling | MotionSampling, draws: int) -> "Draws":
        """So many draws of a rule, the first of them its own.

        Raises:
            RecipeError: if it draws nothing.
        """
        if not isinstance(rule, RandomFrames | UniformRandomStart):
            raise RecipeError(
                f"draws is {draws}, and {type(rule).__name__} draws no frames at random: leave it "
                "out, or take random or uniform-random-start"
            )
        return cls(tuple(replace(rule, seed=rule.seed + number) for number in range(draws)))

    def clips(self, timeline: Timeline) -> Clips:
        """[draws count, 1]."""
        drawn = [rule.clips(timeline).frames for rule in self.rules]
        return one_row_per_clip(np.concatenate(drawn))


@dataclass(frozen=True, slots=True)
class MseSortedUniform:
    """Frames of all degrees of motion: Q-CLIP's MSESortedUNI.

    Of all frames in the order of their motion (equal ones in time order) those at the ranks
    round(linspace(0, n - 1, count)), then in time order.  A video of fewer frames repeats some, as
    `Uniform` does.
    """

    count: int

    def clips_by_motion(self, timeline: Timeline, motion: NDArray[np.float32]) -> Clips:
        """[count, 1]."""
        ranks = Uniform(self.count).clips(timeline).frames
        if len(timeline) < self.count:
            return one_row_per_clip(ranks)
        return one_row_per_clip(np.sort(np.argsort(motion, kind="stable")[ranks], axis=0))


@dataclass(frozen=True, slots=True)
class SegMseMean:
    """From each of `count` equal segments the frame whose motion is nearest their mean.

    Q-CLIP's SegMSEMean.  Segment i is [floor(i n / count), floor((i + 1) n / count)); of equally
    near frames the earliest counts.  A video of fewer frames repeats some, as `Uniform` does.
    """

    count: int

    def clips_by_motion(self, timeline: Timeline, motion: NDArray[np.float32]) -> Clips:
        """[count, 1]."""
        # fsum does not depend on the order of adding, and so not on the processor.
        return _nearest(timeline, motion, self.count, lambda part: math.fsum(part) / len(part))


@dataclass(frozen=True, slots=True)
class SegMseMedian:
    """As `SegMseMean`, nearest the median: Q-CLIP's SegMSEMedian.

    The median of an even number of frames is the mean of the middle two, which are equally near.
    """

    count: int

    def clips_by_motion(self, timeline: Timeline, motion: NDArray[np.float32]) -> Clips:
        """[count, 1]."""
        return _nearest(timeline, motion, self.count, lambda part: float(np.median(part)))


def _nearest(
    timeline: Timeline,
    motion: NDArray[np.float32],
    count: int,
    centre: Callable[[NDArray[np.float64]], float],
) -> Clips:
    """From each segment the first of the frames whose motion is nearest its centre."""
    if len(timeline) < count:
        return Uniform(count).clips(timeline)
    edges = np.arange(count + 1, dtype=np.int64) * len(timeline) // count
    frames = np.empty((count, 1), dtype=np.int64)
    for segment, (start, stop) in enumerate(pairwise(edges)):
        part = motion[start:stop].astype(np.float64)
        frames[segment] = start + np.argmin(np.abs(part - centre(part)))
    return one_row_per_clip(frames)


@dataclass(frozen=True, slots=True)
class Mixed:
    """Q-CLIP's Mixed: a head draws one of several samplings for every video and epoch.

    So all that need no draw are banked, one after the other: `Uniform`, `MseSortedUniform`,
    `SegMseMean`, `SegMseMedian`.  The first of them is what a head is tested on.
    """

    count: int
    """Frames by each of the four rules."""

    def clips_by_motion(self, timeline: Timeline, motion: NDArray[np.float32]) -> Clips:
        """[4 count, 1]."""
        kinds = (MseSortedUniform, SegMseMean, SegMseMedian)
        by_motion = [kind(self.count).clips_by_motion(timeline, motion) for kind in kinds]
        chosen = [Uniform(self.count).clips(timeline), *by_motion]
        return one_row_per_clip(np.concatenate([clips.frames for clips in chosen]))


FRAME_SAMPLINGS: dict[str, Callable[[int], Sampling | MotionSampling]] = {
    "uniform": Uniform,
    "random": RandomFrames,
    "uniform-random-start": UniformRandomStart,
    "mse-sorted-uniform": MseSortedUniform,
    "seg-mse-mean": SegMseMean,
    "seg-mse-median": SegMseMedian,
    "mixed": Mixed,
}
"""Q-CLIP's samplings (Figure 4) by name; each is made from the number of frames."""
