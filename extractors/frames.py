"""Small frames as they are, for heads that start from pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from vqbank.extractors.base import IMPLIED, ClipFn, Extractor, Output
from vqbank.extractors.sampling import SINGLE_FRAMES, ConsecutiveFrames, SegmentCentres
from vqbank.extractors.views import CROPPING, ShortSideCrop

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Frames(Extractor):
    """One row per frame: the clip of a video that DVLTA-VQA's temporal context module sees.

    The frames of extractor `vificlip`, or `count` that follow each other, which show motion.  The
    short side is resized to 8/7 of `side_pixels`, bilinear and antialiased, and
    the centre cut out: 256 and 224, or 128 and 112, as ViFi-CLIP and Torchvision's video networks
    do.
    """

    side_pixels: Literal[112, 224] = field(default=112, metadata=IMPLIED)
    """Height and width of a frame."""
    count: Annotated[int, Field(ge=1)] = field(default=32, metadata=IMPLIED)
    frames: Literal["centres", "consecutive"] = field(default="centres", metadata=IMPLIED)
    """The middle frame of each of `count` equal parts of the video, or `count` that follow each
    other, from its middle."""

    name = "frames"
    version = 1

    @property
    def offers(self) -> tuple[Output, ...]:
        """`pixels`: RGB, 0 to 255."""
        return (Output("pixels", (3, self.side_pixels, self.side_pixels), "uint8"),)

    @property
    def sampling(self) -> SegmentCentres | ConsecutiveFrames:
        """As `frames` says."""
        return SINGLE_FRAMES[self.frames](self.count)

    @property
    def view(self) -> ShortSideCrop:
        """Resize and crop."""
        return ShortSideCrop(self.side_pixels * 8 // 7, self.side_pixels)

    @property
    def modules(self) -> tuple[str, ...]:
        """torchvision for the view."""
        return CROPPING

    def build(self, device: torch.device) -> ClipFn:
        """The function; there are no weights."""
        return _pixels


def _pixels(clips: Tensor) -> Mapping[str, Tensor]:
    return {"pixels": clips.float()}  # as rows are; whole numbers, so that uint8 holds them
