"""RealBasicVSR: videos of four times the height and width, frame by frame.

Source: Chan et al., "Investigating Tradeoffs in Real-World Video Super-Resolution", CVPR 2022, and
the official code: `RealBasicVSRNet`, `BasicVSRNet`, `SPyNet` and `flow_warp` of open-mmlab/mmagic,
under whose keys the state dict stands.

A frame depends on all others of its clip, through one recurrence in either direction of time, so
that a clip cannot be cut into shorter ones.  What is computed here is what the official code
computes of the whole clip, in less memory:

- frames are cleaned, flows estimated and frames enlarged one by one;
- of the backward recurrence one state per frame waits on the CPU, wherever the network is: 4 bytes
  x width x h x w each;
- a frame is enlarged in strips of rows, each with as many further rows as its values depend on
  (the enlargement alone has a small receptive field).

None of the three changes a formula; a convolution may sum in another order for another shape.

Shape letters: t frames, h w pixels of the small video, d channels.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vqbank.extractors.views import IMAGENET_MEAN, IMAGENET_STD

SCALE = 4
_CLEANINGS = 3  # at most
_CLEAN = 255 / 255
"""Below this mean |residue| of the whole clip cleaning ends.  That of the official configuration:
real pictures are always below after the first time."""
_LEVELS = 6  # of SPyNet's pyramid
_STRIP_ROWS = 64  # of the small frame: 1080p needs 34 MB per 16 channels
_HALO_ROWS = 2  # two convolutions at x 4, one at x 2, one at x 1: 2/4 + 1/2 + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What the network is built from; by default as it is published."""

    width: int = 64
    """Channels everywhere but in SPyNet."""
    cleaning_blocks: int = 20
    propagation_blocks: int = 20
    """Residual blocks in either direction of time."""
    flow_widths: tuple[int, ...] = (32, 64, 32, 16)
    """Channels between the convolutions of one level of SPyNet."""


class RealBasicVsr(nn.Module):
    """Clips [t, 3, h, w] to frames [3, 4 h, 4 w]; RGB, 0 to 1."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width = architecture.width
        self.image_cleaning = nn.Sequential(
            _ResidualBlocks(3, width, architecture.cleaning_blocks),
            nn.Conv2d(width, 3, 3, padding=1),
        )
        self.basicvsr = BasicVsr(architecture)

    def clean(self, frames: Tensor) -> tuple[Tensor, list[float]]:
        """Add the residue of the cleaning network until it is small, three times at most.

        Args:
            frames: [t, 3, h, w]; not changed.

        Returns:
            frames of the same shape, and mean |residue| over the clip each time.
        """
        sizes: list[float] = []
        while not sizes or (len(sizes) < _CLEANINGS and sizes[-1] >= _CLEAN):
            residues = torch.cat([self.image_cleaning(frame[None]) for frame in frames])
            sizes.append(float(residues.abs().mean()))
            frames = frames + residues
        return frames, sizes

    def upscaled(self, frames: Tensor) -> Iterator[Tensor]:
        """The frames [3, 4 h, 4 w] one by one, not clipped to 0 ... 1; arguments as of `clean`."""
        yield from self.basicvsr.upscaled(self.clean(frames)[0])


class BasicVsr(nn.Module):
    """The recurrence over clean frames: Chan et al., "BasicVSR", CVPR 2021."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width, blocks = architecture.width, architecture.propagation_blocks
        self.spynet = SpyNet(architecture.flow_widths)
        self.backward_resblocks = _ResidualBlocks(3 + width, width, blocks)
        self.forward_resblocks = _ResidualBlocks(3 + width, width, blocks)
        self.fusion = nn.Conv2d(2 * width, width, 1)
        self.upsample1 = _PixelShuffle(width)
        self.upsample2 = _PixelShuffle(width)
        self.conv_hr = nn.Conv2d(width, width, 3, padding=1)
        self.conv_last = nn.Conv2d(width, 3, 3, padding=1)
        self._width = width

    def upscaled(self, frames: Tensor) -> Iterator[Tensor]:
        """The frames [3, 4 h, 4 w] one by one, of clean ones [t, 3, h, w]."""
        start = frames.new_zeros(1, self._width, *frames.shape[-2:])
        last = len(frames) - 1
        later = []  # the states of the backward recurrence, the last one first
        state = start
        for place in range(last, -1, -1):
            if place < last:
                state = warped(state, self.spynet(frames[place, None], frames[place + 1, None]))
            state = self.backward_resblocks(torch.cat([frames[place, None], state], dim=1))
            later.append(state.cpu())
        state = start
        for place, frame in enumerate(frames):
            if place > 0:
                state = warped(state, self.spynet(frames[place, None], frames[place - 1, None]))
            state = self.forward_resblocks(torch.cat([frame[None], state], dim=1))
            both = torch.cat([later.pop().to(state.device), state], dim=1)
            yield self.enlarged(both, frame[None])[0]

    def enlarged(self, states: Tensor, frames: Tensor, strip_rows: int = _STRIP_ROWS) -> Tensor:
        """The states of both directions [1, 2 d, h, w], and the frame, to [1, 3, 4 h, 4 w].

        Args:
            states: backward first.
            frames: [1, 3, h, w].
            strip_rows: how many rows of the small frame are enlarged at a time; changes nothing.
        """
        picture = functional.interpolate(
            frames, scale_factor=SCALE, mode="bilinear", align_corners=False
        )
        height = states.shape[-2]
        for top in range(0, height, strip_rows):
            bottom = min(top + strip_rows, height)
            first, stop = max(0, top - _HALO_ROWS), min(bottom + _HALO_ROWS, height)
            maps = _leaky(self.fusion(states[..., first:stop, :]))
            maps = _leaky(self.upsample2(_leaky(self.upsample1(maps))))
            detail = self.conv_last(_leaky(self.conv_hr(maps)))
            own = detail[..., SCALE * (top - first) : SCALE * (bottom - first), :]
            picture[..., SCALE * top : SCALE * bottom, :] += own
        return picture


class SpyNet(nn.Module):
    """Optical flow in a pyramid: Ranjan and Black, CVPR 2017, with six levels, without batch norm.

    Pictures are normalised by ImageNet's mean and standard deviation.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.basic_module = nn.ModuleList(_FlowResidue(widths) for _ in range(_LEVELS))

    def forward(self, frames: Tensor, others: Tensor) -> Tensor:
        """Where each pixel of `frames` is found in `others`, both [b, 3, h, w].

        Returns:
            [b, 2, h, w]: pixels to the right and downwards.
        """
        size = frames.shape[-2:]
        coarsest = 2 ** (_LEVELS - 1)  # pixels that become one
        padded = [-(-side // coarsest) * coarsest for side in size]
        flow = self._flow(self._pyramid(frames, padded), self._pyramid(others, padded))
        flow = functional.interpolate(flow, size=size, mode="bilinear", align_corners=False)
        shrunk = [size[1] / padded[1], size[0] / padded[0]]
        return flow * flow.new_tensor(shrunk)[:, None, None]

    def _flow(self, frames: list[Tensor], others: list[Tensor]) -> Tensor:
        flow = torch.zeros_like(frames[0][:, :2])
        for level, (frame, other) in enumerate(zip(frames, others, strict=True)):
            if level > 0:
                doubled = functional.interpolate(
                    flow, scale_factor=2, mode="bilinear", align_corners=True
                )
                flow = 2 * doubled
            found = warped(other, flow, beyond="border")
            flow = flow + self.basic_module[level](torch.cat([frame, found, flow], dim=1))
        return flow

    def _pyramid(self, frames: Tensor, size: list[int]) -> list[Tensor]:
        """Normalised frames, the smallest first."""
        resized = functional.interpolate(frames, size=size, mode="bilinear", align_corners=False)
        # The constants that the official state dict has as `mean` and `std`.
        mean = frames.new_tensor(IMAGENET_MEAN)[:, None, None]
        std = frames.new_tensor(IMAGENET_STD)[:, None, None]
        pyramid = [(resized - mean) / std]
        for _ in range(_LEVELS - 1):
            pyramid.append(functional.avg_pool2d(pyramid[-1], 2))
        return pyramid[::-1]


def warped(maps: Tensor, flow: Tensor, *, beyond: Literal["zeros", "border"] = "zeros") -> Tensor:
    """What the flow [b, 2, h, w] finds in maps [b, d, h, w], bilinear.

    Args:
        maps: to look in.
        flow: to the right and downwards, in pixels.
        beyond: what is found outside of the maps.
    """
    height, width = maps.shape[-2:]
    rows = torch.arange(height, device=flow.device, dtype=flow.dtype)[:, None]
    columns = torch.arange(width, device=flow.device, dtype=flow.dtype)
    x = 2 * (columns + flow[:, 0]) / max(width - 1, 1) - 1
    y = 2 * (rows + flow[:, 1]) / max(height - 1, 1) - 1
    places = torch.stack([x, y], dim=-1)
    maps = maps.to(places.dtype)  # the flow is in float32 in any case
    return functional.grid_sample(maps, places, padding_mode=beyond, align_corners=True)


def _leaky(maps: Tensor) -> Tensor:
    return functional.leaky_relu(maps, 0.1, inplace=True)


class _ResidualBlocks(nn.Module):
    """A convolution and residual blocks without normalisation."""

    def __init__(self, channels: int, width: int, blocks: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Sequential(*(_ResidualBlock(width) for _ in range(blocks))),
        )

    def forward(self, maps: Tensor) -> Tensor:
        return self.main(maps)


class _ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.conv2(self.conv1(maps).relu_())


class _PixelShuffle(nn.Module):
    """Twice the height and width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.upsample_conv = nn.Conv2d(width, 4 * width, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        return functional.pixel_shuffle(self.upsample_conv(maps), 2)


class _FlowResidue(nn.Module):
    """One level of SPyNet: frame, what was found in the other one, and the flow so far to 2 d."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        channels = (8, *widths, 2)
        layers = [
            nn.Sequential(OrderedDict(conv=nn.Conv2d(one, two, 7, padding=3)))
            for one, two in pairwise(channels)
        ]
        for hidden in layers[:-1]:
            hidden.append(nn.ReLU(inplace=True))
        self.basic_module = nn.Sequential(*layers)

    def forward(self, maps: Tensor) -> Tensor:
        return self.basic_module(maps)
