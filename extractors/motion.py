"""How much changes from frame to frame, and how much detail a frame has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from vqbank.extractors.base import ClipFn, Extractor, Output
from vqbank.extractors.sampling import Neighbours
from vqbank.extractors.views import Native

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_PIECE = 2**18
"""Values that are squared at a time: in double precision they fit a processor's cache."""


@dataclass(frozen=True, kw_only=True)
class Motion(Extractor):
    """Frame difference, spatial information and temporal information of every frame.

    Columns of `series`, all from 8-bit RGB:

    0. m_t = (MSE(v_t, v_{t+1}) + MSE(v_t, v_{t-1})) / 2 over the h w 3 values of a frame, 0 to
       65025 (Q-CLIP, equation 13).  The sum of squares is exact, so that ties stay ties.
    1. SI, the standard deviation over space of the Sobel gradient magnitude of the luma, without
       the border (ITU-T P.910); 0 for a frame with fewer than three rows or columns.
    2. TI, the standard deviation over space of the luma's difference to the previous frame
       (ITU-T P.910).

    Luma is 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601) of full-range RGB, 0 to 255, and standard
    deviations are of the population.  The first frame has no previous and the last no next one:
    there the only neighbour stands on both sides, so that no made-up zero enters a statistic.  A
    video of one frame has no motion: columns 0 and 2 are 0.
    """

    name = "motion"
    version = 1
    offers = (Output("series", (3,), "float32"),)  # float16 would make ties of unequal frames
    batch_clips = 1
    working_bytes_per_pixel = 48

    sampling = Neighbours()
    view = Native()

    def build(self, device: torch.device) -> ClipFn:
        """The function; there are no weights."""
        return _series


def _series(clips: Tensor) -> Mapping[str, Tensor]:
    import torch

    return {"series": torch.stack([_series_of_clip(clip) for clip in clips.contiguous()])}


def _series_of_clip(frames: Tensor) -> Tensor:
    """[f, 3, h, w] to [f - 2, 3]: one frame at a time, so that a frame's company changes no bit."""
    import torch

    changes = [_mean_squared_error(one, other) for one, other in pairwise(frames)]
    rows = []
    previous = _luma(frames[0])
    for before, after, frame in zip(changes, changes[1:], frames[1:-1], strict=False):
        luma = _luma(frame)
        rows.append([(before + after) / 2, _spatial_information(luma), _spread(luma - previous)])
        previous = luma
    return torch.tensor(rows, dtype=torch.float32, device=frames.device)


def _mean_squared_error(one: Tensor, other: Tensor) -> float:
    # Exact in any order and in any pieces: every partial sum is an integer that a double holds.
    import torch

    total = 0.0
    pieces = zip(one.flatten().split(_PIECE), other.flatten().split(_PIECE), strict=True)
    for first, second in pieces:
        difference = (first.to(torch.int16) - second).double()
        total += float(difference.dot(difference))
    return total / one.numel()


def _luma(frame: Tensor) -> Tensor:
    red, green, blue = frame
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _spatial_information(luma: Tensor) -> float:
    if min(luma.shape) < 3:
        return 0.0
    by_column = luma[:-2] + 2 * luma[1:-1] + luma[2:]
    by_row = luma[:, :-2] + 2 * luma[:, 1:-1] + luma[:, 2:]
    across, down = by_column[:, 2:] - by_column[:, :-2], by_row[2:] - by_row[:-2]
    return _spread((across.square_() + down.square_()).sqrt_())


def _spread(values: Tensor) -> float:
    return float(values.double().std(correction=0))
