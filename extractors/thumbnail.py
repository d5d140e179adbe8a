"""Small pictures of a video, for reports and tables: nothing learns from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from vqbank.extractors.base import IMPLIED, ClipFn, Extractor, Output
from vqbank.extractors.sampling import SegmentCentres
from vqbank.extractors.views import LetterBox

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Thumbnail(Extractor):
    """What a video looks like: the middle frame of each of `count` equal parts, small.

    The long side is resized to `side_pixels`, bilinear and antialiased, and the picture stands in
    the middle of a black square, so that rows of upright and wide videos have one shape.
    """

    side_pixels: Annotated[int, Field(ge=16, le=512)] = field(default=96, metadata=IMPLIED)
    """Height and width of the square."""
    count: Annotated[int, Field(ge=1)] = field(default=1, metadata=IMPLIED)

    name = "thumbnail"
    version = 1

    @property
    def offers(self) -> tuple[Output, ...]:
        """`pixels`: RGB, 0 to 255."""
        return (Output("pixels", (3, self.side_pixels, self.side_pixels), "uint8"),)

    @property
    def sampling(self) -> SegmentCentres:
        """The middle frames of equal parts."""
        return SegmentCentres(self.count)

    @property
    def view(self) -> LetterBox:
        """Resize and pad."""
        return LetterBox(self.side_pixels)

    def build(self, device: torch.device) -> ClipFn:
        """The function; there are no weights."""
        return _pixels


def _pixels(clips: Tensor) -> Mapping[str, Tensor]:
    return {"pixels": clips.float()}  # as rows are; whole numbers, so that uint8 holds them
