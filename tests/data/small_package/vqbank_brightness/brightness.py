"""How bright each frame is."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vqbank.extractors.base import ClipFn, Extractor, Output
from vqbank.extractors.sampling import EveryNth
from vqbank.extractors.views import Native


@dataclass(frozen=True, kw_only=True)
class Brightness(Extractor):
    """Mean and deviation of each colour."""

    name: ClassVar[str] = "brightness"
    version: ClassVar[int] = 1

    every: int = 2
    """Frames from one row to the next."""

    @property
    def offers(self) -> tuple[Output, ...]:
        return (Output("colours", (6,), "float32"),)

    @property
    def sampling(self) -> EveryNth:
        return EveryNth(self.every)

    @property
    def view(self) -> Native:
        return Native()

    def build(self, device: torch.device) -> ClipFn:
        return colours


def colours(clips: Tensor) -> dict[str, Tensor]:
    """uint8 [b, 1, 3, h, w] to rows [b, 1, 6]; each clip by itself, so that none moves another."""
    rows = []
    for (frame,) in clips.contiguous():
        flat = frame.flatten(1).double()
        rows.append(torch.cat([flat.mean(1), flat.std(1)])[None].float())
    return {"colours": torch.stack(rows)}
