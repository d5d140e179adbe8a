"""Convolutional block attention (CBAM, ECCV 2018): which channels matter, and which places.

As Jongchan/attention-module has it, which is for pictures; a picture is a clip of one frame.

Shape letters: b clips, c channels, t frames of the longest clip, h w pixels; `real` [b, t] are the
frames that a clip has, and behind them are zeros.
"""

import torch
from torch import Tensor, nn

from vqbank.regressors.layers import linear
from vqbank.regressors.tadaconv import convolution, mean_of_real, normalised, only_real

MOMENTUM = 0.01  # of the official normalisation


class Cbam(nn.Module):
    """The two maps of a feature, by which it is to be multiplied.

    The official network takes the second map of what the first one left; DVLTA-VQA (equation 7)
    takes both of the same feature.

    Args of the constructor:
        width: c.
        reduction: of the channels inside the first map's two layers.
        kernel: frames, rows and columns of the second map's convolution, odd; officially 1, 7, 7.
        normalise: whether batch normalisation follows it, as it does officially.
        generator: draws the start.
    """

    def __init__(
        self,
        width: int,
        *,
        reduction: int,
        kernel: tuple[int, int, int],
        normalise: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        inner = max(1, width // reduction)
        self.mlp = nn.Sequential(
            linear(width, inner, generator=generator),
            nn.ReLU(),
            linear(inner, width, generator=generator),
        )
        self.conv = convolution(2, 1, kernel, generator=generator)
        self.bn = nn.BatchNorm3d(1, momentum=MOMENTUM) if normalise else None

    def channels(self, values: Tensor, real: Tensor) -> Tensor:
        """[b, c, 1, 1, 1], each from 0 to 1, of [b, c, t, h, w]."""
        behind = ~real[:, None, :, None, None]
        largest = values.masked_fill(behind, -torch.inf).amax(dim=(2, 3, 4))
        found = self.mlp(mean_of_real(values, real)) + self.mlp(largest)
        return torch.sigmoid(found)[:, :, None, None, None]

    def places(self, values: Tensor, real: Tensor) -> Tensor:
        """[b, 1, t, h, w], each from 0 to 1, of [b, c, t, h, w]."""
        pooled = [values.amax(dim=1, keepdim=True), values.mean(dim=1, keepdim=True)]
        found = self.conv(only_real(torch.cat(pooled, dim=1), real))
        return torch.sigmoid(found if self.bn is None else normalised(self.bn, found, real))
