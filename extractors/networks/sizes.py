"""Sizes of networks, from which the shapes of features follow before anything heavy is imported."""

from collections.abc import Iterable
from dataclasses import dataclass
from operator import floordiv

_BASE_SIZE = (32, 224, 224)  # of the clip for which windows have the size of their tables
_PE_PATCH = 14  # pixels along a side

Axes = tuple[int, int, int]
"""A number for time, one for height, one for width."""


def axes(values: Iterable[int]) -> Axes:
    """The three values, for a type checker too."""
    t, h, w = values
    return t, h, w


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSwinSizes:
    """What a Video Swin Transformer is built from; by default that of FAST-VQA-B."""

    size: Axes = _BASE_SIZE
    """Frames, height and width of a clip; the network takes no other."""
    grid: int = 7
    """Fragments along height and along width."""
    patch: Axes = (2, 4, 4)
    width: int = 96
    """Channels of the first stage; every stage has twice those of the one before."""
    depths: tuple[int, ...] = (2, 2, 6, 2)
    """Blocks of each stage."""
    heads: tuple[int, ...] = (3, 6, 12, 24)
    tables: Axes = (8, 7, 7)
    """The window of which the bias tables hold all relative positions."""
    gated: bool = True
    """Whether all stages but the last have fragment tables."""

    @property
    def window(self) -> Axes:
        """The official adaptive rule: a smaller clip has windows smaller than its tables."""
        scaled = zip(self.tables, self.size, _BASE_SIZE, strict=True)
        return axes(table * size // base for table, size, base in scaled)

    @property
    def map_shape(self) -> tuple[int, int, int, int]:
        """Channels, time, height and width of the final map."""
        last = len(self.depths) - 1
        t, h, w = self.tokens(last)
        return self.width << last, t, h, w

    def tokens(self, stage: int) -> Axes:
        """How many there are along each axis."""
        t, h, w = map(floordiv, self.size, self.patch)
        return t, h >> stage, w >> stage


@dataclass(frozen=True, slots=True, kw_only=True)
class MplugOwl2Sizes:
    """mPLUG-Owl2's; the defaults are those of OneAlign, 8.198 billion parameters."""

    image_side: int = 448
    patch_side: int = 14
    vision_width: int = 1024
    vision_inner: int = 4096
    vision_layers: int = 24
    vision_heads: int = 16
    queries: int = 64
    abstractor_inner: int = 2816
    abstractor_layers: int = 6
    abstractor_heads: int = 16
    vocabulary: int = 32_000
    width: int = 4096
    inner: int = 11_008
    layers: int = 32
    heads: int = 32
    rms_norm_eps: float = 1e-5

    @property
    def grid_side(self) -> int:
        """Patches along a side of the picture."""
        return self.image_side // self.patch_side


@dataclass(frozen=True, slots=True)
class PeSizes:
    """Perception Encoder's; each has patches of 14 x 14."""

    side: int
    width: int
    heads: int
    embedding: int
    text_width: int
    text_heads: int
    text_layers: int
    layers: int = 24

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.side // _PE_PATCH

    @property
    def tokens(self) -> int:
        """Patches of a picture, and the class token."""
        return self.grid**2 + 1
