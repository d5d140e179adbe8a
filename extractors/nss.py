"""Natural scene statistics: the 36 numbers of BRISQUE, without its regression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from vqbank.extractors.base import ClipFn, Extractor, Output
from vqbank.extractors.sampling import KeyFrames
from vqbank.extractors.views import Native
from vqbank.store.errors import InvalidFeatureError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_SHORTEST_SIDE = 16  # at half size the 7 x 7 window still has an inside
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (-1, 1))  # rows and columns to roll by, BRISQUE's order


@dataclass(frozen=True, kw_only=True)
class Nss(Extractor):
    """BRISQUE's natural scene statistics of key frames, at full and at half size.

    Mittal, Moorthy, Bovik, "No-Reference Image Quality Assessment in the Spatial Domain", IEEE TIP
    2012, as pyiqa computes them and before any scaling.  For each of the two sizes: shape and
    variance of the normalised luma, then shape, mean, left and right variance of its products with
    the neighbours in four directions.

    A frame without texture leaves some of these undefined, and pyiqa then gives NaN or stops.
    Black frames are common in real videos, so the limit stands in their place: a side of a
    distribution that has no samples has variance 0, and a field that is 0 everywhere has variance 0
    and the smallest shape of pyiqa's table, 0.2, towards which a field tends as ever fewer of its
    values differ from 0.  Wherever pyiqa's numbers are finite, these are the same.
    """

    name = "nss"
    version = 1
    offers = (Output("brisque", (36,), "float32"),)
    batch_clips = 1

    working_bytes_per_pixel = 96

    sampling = KeyFrames()
    view = Native()

    def parameters(self) -> dict[str, Any]:
        """As for every extractor, with pyiqa's version."""
        return {**super().parameters(), "pyiqa": version("pyiqa")}

    @property
    def modules(self) -> tuple[str, ...]:
        """pyiqa's filters."""
        return ("pyiqa.archs.func_util", "pyiqa.matlab_utils", "pyiqa.utils.color_util")

    def build(self, device: torch.device) -> ClipFn:
        """The function; there are no weights.

        It raises InvalidFeatureError for frames of fewer than 16 rows or columns.
        """
        import torch
        from pyiqa.archs.func_util import estimate_ggd_param, normalize_img_with_gauss
        from pyiqa.matlab_utils import imresize
        from pyiqa.utils.color_util import to_y_channel

        def statistics(luma: Tensor) -> Tensor:
            field = normalize_img_with_gauss(luma)
            if field.any():
                shape, deviation = estimate_ggd_param(field)
            else:
                shape, deviation = _shapes(field)[:1], field.new_zeros(1)
            numbers = [shape, deviation.square()]
            for shift in _NEIGHBOURS:
                numbers += asymmetric_statistics(field * torch.roll(field, shift, dims=(-2, -1)))
            return torch.cat(numbers)

        def brisque(frame: Tensor) -> Tensor:
            height, width = frame.shape[-2:]
            if min(height, width) < _SHORTEST_SIDE:
                raise InvalidFeatureError(
                    f"frames of {width} x {height} are too small for nss, which needs "
                    f"{_SHORTEST_SIDE} x {_SHORTEST_SIDE}"
                )
            full = to_y_channel(frame[None].float().div_(255), 255.0)
            half = imresize(full, scale=0.5, antialiasing=True)
            return torch.cat([statistics(full), statistics(half)])

        def of_clips(clips: Tensor) -> Mapping[str, Tensor]:
            # One frame at a time, so that a frame's company changes no bit.
            return {"brisque": torch.stack([brisque(clip[0])[None] for clip in clips])}

        return of_clips


def asymmetric_statistics(products: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shape, mean, left and right variance of an asymmetric generalised Gaussian, each [1].

    Moment matching as in BRISQUE (equations 7 to 10) and in pyiqa's `estimate_aggd_param`, in the
    same order of operations, with the limits that `Nss` states.

    Args:
        products: [1, 1, h, w].
    """
    import torch

    left, right = products.clamp(max=0), products.clamp(min=0)
    deviations = []
    for side in (left, right):
        count = side.count_nonzero().clamp(min=1)  # no samples, no variance
        deviations.append(torch.sqrt(side.square().sum(dim=(-1, -2)) / count))
    left_deviation, right_deviation = deviations
    ratio = left_deviation / right_deviation
    asymmetry = (ratio.pow(3) + 1) * (ratio + 1), (ratio.square() + 1).square()
    power = products.square().mean(dim=(-1, -2))
    concentration = products.abs().mean(dim=(-1, -2)).square() / power
    target = concentration * asymmetry[0] / asymmetry[1]
    # One side alone is as asymmetric from the left (ratio infinite) as from the right (ratio 0).
    target = torch.where(torch.isfinite(target), target, concentration).nan_to_num(0.0)
    shapes = _shapes(products)
    one, two, three = (torch.lgamma(n / shapes) for n in (1.0, 2.0, 3.0))
    shape = shapes[((2 * two - (one + three)).exp() - target).abs().argmin(dim=-1)]
    one, two, three = (torch.lgamma(n / shape) for n in (1.0, 2.0, 3.0))
    left_deviation, right_deviation = left_deviation.squeeze(-1), right_deviation.squeeze(-1)
    mean = (right_deviation - left_deviation) * torch.exp(two - (one + three) / 2)
    return shape, mean, left_deviation.square(), right_deviation.square()


def _shapes(like: Tensor) -> Tensor:
    """pyiqa's table of shapes, 0.2 to 10 by thousandths."""
    import torch

    return torch.arange(0.2, 10 + 0.001, 0.001).to(like)
