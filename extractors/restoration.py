"""Video super-resolution, for extractors that look at what it makes of a reduced video."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vqbank.extractors.base import WeightedExtractor
from vqbank.extractors.weights import RANDOM, TINY, WeightFile, find_weights

if TYPE_CHECKING:
    from torch import Tensor

    from vqbank.extractors.networks.real_basic_vsr import RealBasicVsr

SCALE = 4
"""By what frames are reduced, and enlarged again."""
_PREFIX = "generator_ema."  # of the averaged weights, with which the official code tests
_CONSTANTS = ("basicvsr.spynet.mean", "basicvsr.spynet.std")  # ImageNet's, in every file


@dataclass(frozen=True, kw_only=True)
class RestoringExtractor(WeightedExtractor):
    """An extractor whose weights are RealBasicVSR's."""

    batch_clips = 1  # a clip of full frames is large
    has_tiny = True
    files = (
        WeightFile(
            choice="reds",
            url="https://download.openmmlab.com/mmediting/restorers/real_basicvsr/realbasicvsr_c64b20_1x30x8_lr5e-5_150k_reds_20211104-52f77c2c.pth",
            save_as="realbasicvsr_c64b20_1x30x8_lr5e-5_150k_reds_20211104-52f77c2c.pth",
            publisher="OpenMMLab, MMagic (formerly MMEditing)",
            licence="Apache-2.0",
            trained_on=("REDS",),
            entry="state_dict",
            sha256_begins="52f77c2c",
        ),
    )

    def load(self) -> RealBasicVsr:
        """The super-resolution network, ready to compute, on the CPU.

        Raises:
            WeightsError: if the file is missing, unsafe or of another network.
        """
        from vqbank.extractors.loading import check_keys, random_weights, stream_state_dict
        from vqbank.extractors.networks.real_basic_vsr import Architecture, RealBasicVsr

        tiny = Architecture(width=4, cleaning_blocks=1, propagation_blocks=1, flow_widths=(4,))
        with random_weights():
            network = RealBasicVsr(tiny if self.tiny else Architecture())
        if self.weights not in (RANDOM, TINY):
            path = find_weights(self.weights, *self.files, extractor=self.name, has_tiny=True)
            state = {
                key.removeprefix(_PREFIX): value.float()
                for key, value in stream_state_dict(path, self.file)
                if key.startswith(_PREFIX) and not key.endswith(_CONSTANTS)
            }
            check_keys(network.state_dict(), state, path)
            network.load_state_dict(state)
        return network.eval().requires_grad_(False)

    @property
    def modules(self) -> tuple[str, ...]:
        """The network that restores frames."""
        return ("vqbank.extractors.networks.real_basic_vsr",)


def restored(network: RealBasicVsr, frames: Tensor) -> Iterator[Tensor]:
    """Each frame of a clip, reduced and enlarged again: float32 [3, h, w], 0 to 1.

    Args:
        network: from `RestoringExtractor.load`.
        frames: uint8 [f, 3, h, w], h and w multiples of four; all of them, because a frame's result
            depends on those before and after it.
    """
    import torch

    small = torch.cat([reduced(frame[None] / 255) for frame in frames])
    for enlarged in network.upscaled(small):
        yield enlarged.clamp(0, 1)


def reduced(pixels: Tensor) -> Tensor:
    """[b, 3, h, w] to [b, 3, h / 4, w / 4], bicubic with antialiasing; may overshoot 0 ... 1."""
    from torch.nn import functional

    size = [side // SCALE for side in pixels.shape[-2:]]
    return functional.interpolate(
        pixels, size=size, mode="bicubic", align_corners=False, antialias=True
    )


def cropped(side: int) -> int:
    """Rows or columns without those that are too many for a multiple of four."""
    return side // SCALE * SCALE
