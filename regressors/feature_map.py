"""Feature maps of clips through two 1x1x1 convolutions to one row per video: FAST-VQA's own head.

Shape letters: b videos, t clips of the longest of them, c channels, p places of a map (time, rows
and columns, laid flat).
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from vqbank.regressors.layers import dropout, linear


class MapPooling(nn.Module):
    """c -> hidden, GELU, -> width at every place of a map, and the mean over places and clips.

    FAST-VQA's `VQAHead` with another width at its end.  The second layer stands behind the means,
    which comes to the same, but for rounding.

    Args of the constructor:
        channels: c.
        hidden: width between the layers.
        width: of what comes out.
        bias: of the second layer.
        generator: draws the start.
    """

    def __init__(
        self, channels: int, hidden: int, width: int, *, bias: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.hidden = linear(channels, hidden, generator=generator)
        self.out = linear(hidden, width, generator=generator)
        if not bias:
            self.out.register_parameter("bias", None)

    def forward(
        self, maps: Tensor, real: Tensor, *, probability: float = 0.0, noise: Tensor | None = None
    ) -> Tensor:
        """[b, width].

        Args:
            maps: [b, t, c, p].
            real: [b, t] bool.
            probability: of dropout before both layers, at every place.
            noise: of the batch; None where nothing is dropped.
        """
        if noise is not None:
            maps = _dropped(maps, probability, noise)
        inner = gelu(self.hidden.weight @ maps + self.hidden.bias[:, None])
        if noise is not None:
            inner = _dropped(inner, probability, noise + 1)
        clips = inner.mean(dim=3) * real.unsqueeze(2)
        return self.out(clips.sum(dim=1) / real.sum(dim=1, keepdim=True))

    def places(self, maps: Tensor) -> Tensor:
        """[b, t, p]: what each place of maps [b, t, c, p] says, of networks of one output."""
        inner = gelu(self.hidden.weight @ maps + self.hidden.bias[:, None])
        return self.out(inner.transpose(2, 3))[..., 0]


def channels_first(maps: Tensor) -> Tensor:
    """[b, t, c, p] float32 of [b, t, c, ...]."""
    return maps.reshape(*maps.shape[:3], -1).float()


def _dropped(values: Tensor, probability: float, noise: Tensor) -> Tensor:
    """As three axes, of which `dropout` tells places apart up to 2^20 each."""
    return dropout(values.flatten(2), probability, noise).reshape(values.shape)
