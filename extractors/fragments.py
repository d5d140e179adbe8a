"""Fragments: small squares of a frame at full resolution, put side by side."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from vqbank.extractors.sampling import Timeline, generator
from vqbank.extractors.views import View

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Fragments:
    """Small squares at full resolution, one from every cell of a grid, put side by side.

    FAST-VQA's `get_spatial_fragments`: the offset of a square in its cell is random, and the same
    for every frame of a clip.  Extractors that name the same stream and seed share their offsets.
    """

    grid: int = 7
    """How many cells there are along either axis."""
    side: int = 32
    """Height and width of a fragment, in pixels."""
    stream: str = "fragments"
    seed: int = 0
    small_videos: Literal["official", "corrected"] = "official"
    """What happens to frames whose short side is below grid x side.  They are enlarged to that in
    any case; the official function then lays the grid of the size before, so that all fragments
    come from the upper left; "corrected" lays the grid of the enlarged frame."""

    def offsets(self, timeline: Timeline, clip: int) -> NDArray[np.int64]:
        """[grid, grid, 2]: rows and columns of each fragment in its cell, for clip number `clip`.

        Drawn from `sampling.generator`: all rows first, then all columns; zeros, without a draw,
        where the cells are not larger than a fragment.
        """
        source = generator(timeline.video_id, self.stream, self.seed, clip)
        bounds = self.bounds(timeline.height, timeline.width)
        shape = (self.grid, self.grid)
        drawn = [source.integers(b, size=shape) if b else np.zeros(shape, int) for b in bounds]
        return np.stack(drawn, axis=-1)

    def bounds(self, height: int, width: int) -> tuple[int, int]:
        """How many rows and columns there are to draw from; the last one that fits is not."""
        if self.small_videos == "corrected":
            scale = _enlargement(height, width, self.grid * self.side)
            height, width = int(height * scale), int(width * scale)
        rows, columns = (max(0, size // self.grid - self.side) for size in (height, width))
        return rows, columns

    def cut(self, frames: Tensor, offsets: NDArray[np.int64]) -> Tensor:
        """The fragments at these offsets.

        Args:
            frames: [k, 3, h, w], 0 to 255.
            offsets: [grid, grid, 2].

        Returns:
            [k, 3, grid side, grid side] of the same dtype; integers are truncated after enlarging.
        """
        size = self.grid * self.side
        if self.small_videos == "corrected":
            frames = _enlarged(frames, size)
        height, width = frames.shape[-2:]
        pictures = _enlarged(frames, size)
        mosaic = frames.new_empty((*frames.shape[:2], size, size))
        for row, column in np.ndindex(self.grid, self.grid):
            # The official function fails where a frame is smaller than a fragment: not below 0.
            top = max(0, min(height // self.grid * row, height - self.side))
            left = max(0, min(width // self.grid * column, width - self.side))
            top += int(offsets[row, column, 0])
            left += int(offsets[row, column, 1])
            y, x = row * self.side, column * self.side
            square = pictures[..., top : top + self.side, left : left + self.side]
            mosaic[..., y : y + self.side, x : x + self.side] = square
        return mosaic

    def of_clip(self, timeline: Timeline, clip: int) -> View:
        """uint8 [k, 3, grid side, grid side]."""
        return partial(self.cut, offsets=self.offsets(timeline, clip))


def _enlargement(height: int, width: int, side: int) -> float:
    """The official factor; for some heights it leaves the short side one pixel short of `side`."""
    return 1 / min(height / side, width / side, 1)


def _enlarged(frames: Tensor, side: int) -> Tensor:
    """Frames of at least `side` x `side`, bilinear without antialiasing, truncated.

    To the last bit what `torch.nn.functional.interpolate` makes of frames / 255 on several threads;
    on one it rounds otherwise, which moves one value in 10000 by a level.
    """
    height, width = frames.shape[-2:]
    scale = _enlargement(height, width, side)
    if scale == 1:
        return frames
    pixels = frames / 255
    left, right, share = _neighbours(width, scale, frames.device)
    rows = _between(pixels[..., left], pixels[..., right], share)
    upper, lower, share = _neighbours(height, scale, frames.device)
    pixels = _between(rows[..., upper, :], rows[..., lower, :], share[:, None])
    return (pixels * 255).to(frames.dtype)


def _neighbours(count: int, scale: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each of int(count scale) pixels the two old ones around it, and the share of the second.

    In float32, as torch computes it: the last bits decide what is truncated.
    """
    import torch

    places = np.arange(int(count * scale), dtype=np.float32) + np.float32(0.5)
    places = np.maximum(places * np.float32(1 / scale) - np.float32(0.5), 0)
    first = np.minimum(places.astype(np.int64), count - 1)
    share = np.clip(places - first.astype(np.float32), 0, 1)
    second = np.minimum(first + 1, count - 1)
    found = (torch.from_numpy(array).to(device) for array in (first, second, share))
    return next(found), next(found), next(found)


def _between(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """first (1 - share) + second share, the first product and the sum in one rounding."""
    fused = first.double() * (1 - share).double() + (second * share).double()
    return fused.float()


@dataclass(frozen=True, slots=True)
class RedrawnFragments:
    """Several mosaics of every frame of a clip, each with offsets of its own.

    For networks whose official input has new offsets after every few frames of a clip.
    """

    fragments: Fragments
    draws: int

    def offsets(self, timeline: Timeline, clip: int) -> NDArray[np.int64]:
        """[draws, grid, grid, 2]: those of the clips draws clip, draws clip + 1, ..."""
        numbers = range(self.draws * clip, self.draws * (clip + 1))
        return np.stack([self.fragments.offsets(timeline, number) for number in numbers])

    def of_clip(self, timeline: Timeline, clip: int) -> View:
        """uint8 [k, draws, 3, grid side, grid side]."""
        import torch

        offsets = self.offsets(timeline, clip)
        return lambda frames: torch.stack([self.fragments.cut(frames, o) for o in offsets], dim=1)
