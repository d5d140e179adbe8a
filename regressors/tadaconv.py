"""Temporally adaptive convolution: a 2-D kernel that every frame of a clip calibrates for itself.

"TAda! Temporally-Adaptive Convolutions for Video Understanding" (ICLR 2022), as its official code,
alibaba-mmai-research/TAdaConv, has it; names of weights are those of that code where it has them.

Shape letters: b clips, c channels, t frames of the longest clip, h w pixels.  Frames behind the
last one of a clip are zeros everywhere, as the zeros at its ends are, so that a clip comes to the
same in any company; `real` [b, t] says which are none of them.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d, pad, relu

from vqbank.regressors.layers import start_uniform

KERNEL = 3  # frames that a route sees at a time, twice, and over which features are averaged
REDUCTION = 4  # of the channels inside a route


def convolution(
    width_in: int,
    width: int,
    kernel: tuple[int, int, int],
    *,
    generator: torch.Generator,
    stride: tuple[int, int, int] = (1, 1, 1),
    bias: bool = False,
) -> nn.Conv3d:
    """A 3-D convolution with as many zeros around as keep its size, and PyTorch's default start.

    Args:
        width_in: c that goes in.
        width: c that comes out.
        kernel: frames, rows and columns, odd.
        generator: draws the start, uniform in +-1/sqrt(inputs of a value).
        stride: of the same axes.
        bias: whether a number is added to every channel.
    """
    around = tuple(size // 2 for size in kernel)
    with torch.device("meta"):  # as in `start_uniform`
        layer = nn.Conv3d(width_in, width, kernel, stride, around, bias=bias)  # type: ignore[arg-type]
    start_uniform(layer, layer.weight[0].numel() ** -0.5, generator=generator)
    return layer


def only_real(values: Tensor, real: Tensor) -> Tensor:
    """[b, c, t, h, w] with zeros in place of frames that are not real."""
    return values * real[:, None, :, None, None]


def normalised(norm: nn.BatchNorm3d, values: Tensor, real: Tensor) -> Tensor:
    """Batch normalisation of [b, c, t, h, w], with zeros behind a clip; statistics see none."""
    if not norm.training or bool(real.all()):
        return only_real(norm(values), real)
    frames = values.transpose(1, 2)
    out = torch.zeros_like(frames)
    out[real] = norm(frames[real].unsqueeze(2)).squeeze(2)
    return out.transpose(1, 2)


def mean_of_real(values: Tensor, real: Tensor) -> Tensor:
    """[b, c]: the mean over the real frames of [b, c, t, h, w], and over space."""
    return values.mean(dim=(3, 4)).sum(dim=2) / real.sum(dim=1, keepdim=True)


class Route(nn.Module):
    """By what each frame multiplies every input channel of the kernel: official `RouteFuncMLP`.

    It begins as 1 everywhere.
    """

    def __init__(self, width: int, *, generator: torch.Generator) -> None:
        super().__init__()
        inner, along = max(1, width // REDUCTION), (KERNEL, 1, 1)
        self.g = convolution(width, width, (1, 1, 1), generator=generator, bias=True)
        self.a = convolution(width, inner, along, generator=generator, bias=True)
        self.bn = nn.BatchNorm3d(inner)
        self.b = convolution(inner, width, along, generator=generator)
        nn.init.zeros_(self.b.weight)

    def forward(self, values: Tensor, real: Tensor) -> Tensor:
        """[b, c, t, 1, 1] of [b, c, t, h, w]."""
        frames = values.mean(dim=(3, 4), keepdim=True)
        clip = mean_of_real(values, real)[:, :, None, None, None]
        inner = self.a(only_real(frames + self.g(clip), real))
        return self.b(relu(normalised(self.bn, inner, real))) + 1


class TadaConv(nn.Module):
    """A 3x3 convolution of every frame whose kernel the frame calibrates: official `TAdaConv2d`.

    The kernel's input channels are multiplied by the route, which is the same as to multiply the
    channels that go in.

    Args of the constructor:
        width_in: c that goes in.
        width: c that comes out.
        stride: over rows and columns.
        generator: draws the start.
    """

    def __init__(
        self, width_in: int, width: int, *, stride: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.rf = Route(width_in, generator=generator)
        steps = (1, stride, stride)
        self.conv = convolution(width_in, width, (1, 3, 3), generator=generator, stride=steps)

    def forward(self, values: Tensor, real: Tensor) -> Tensor:
        """[b, c', t, h', w'] of [b, c, t, h, w]."""
        return self.conv(values * self.rf(values, real))


class Aggregation(nn.Module):
    """What a convolution gave, and its mean over neighbouring frames, each normalised, together.

    At the ends of a clip zeros count in the mean.  The second norm begins as 0.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm3d(width)
        self.avgpool_bn = nn.BatchNorm3d(width)
        nn.init.zeros_(self.avgpool_bn.weight)

    def forward(self, values: Tensor, real: Tensor) -> Tensor:
        """[b, c, t, h, w] of the same, before any activation."""
        ends = (0, 0, 0, 0, KERNEL // 2, KERNEL // 2)  # avg_pool3d pads no clip below its kernel
        pooled = avg_pool3d(pad(only_real(values, real), ends), (KERNEL, 1, 1), 1)
        return normalised(self.bn, values, real) + normalised(self.avgpool_bn, pooled, real)
