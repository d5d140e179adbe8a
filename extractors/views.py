"""What happens to a frame as it streams by: resize and crop; then what a network wants: normalise.

A view keeps frames as 8-bit pictures, so that what waits for a full clip is small.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from extractors.sampling import Timeline

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class View(Protocol):
    """Anything that maps frames one by one; a frozen dataclass, so that it can be part of a key."""

    def __call__(self, frames: Tensor) -> Tensor:
        """uint8 [k, 3, h, w] RGB to uint8 [k, *shape], each frame on its own.

        The shape is [3, h', w'], or has the patches of a frame before these.
        """
        ...


@runtime_checkable
class ClipView(Protocol):
    """A view that differs from clip to clip, such as one with random offsets; also frozen.

    What is random draws from `sampling.generator(timeline.video_id, stream, seed, clip)` alone, so
    that extractors that name the same stream share their offsets.
    """

    def of_clip(self, timeline: Timeline, clip: int) -> View:
        """The view of every frame of clip number `clip` of this video."""
        ...


@dataclass(frozen=True, slots=True)
class Native:
    """Frames as they are."""

    def __call__(self, frames: Tensor) -> Tensor:
        """The same frames."""
        return frames


@dataclass(frozen=True, slots=True)
class Squash:
    """Resize to a fixed height and width; the aspect ratio is not kept."""

    height: int
    width: int
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __call__(self, frames: Tensor) -> Tensor:
        """[k, 3, height, width], antialiased."""
        return _resize(frames, [self.height, self.width], self.interpolation)


@dataclass(frozen=True, slots=True)
class ShortSideCrop:
    """Resize the short side, keep the aspect ratio, cut a square from the centre."""

    side: int
    crop: int
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __call__(self, frames: Tensor) -> Tensor:
        """[k, 3, crop, crop], antialiased."""
        height, width = frames.shape[-2:]
        # The long side is truncated, as PIL-based transforms and OpenAI's preprocessing do.
        if height <= width:
            size = [self.side, int(self.side * width / height)]
        else:
            size = [int(self.side * height / width), self.side]
        return transforms.center_crop(_resize(frames, size, self.interpolation), [self.crop])


def _resize(frames: Tensor, size: list[int], interpolation: str) -> Tensor:
    if list(frames.shape[-2:]) == size:
        return frames
    return transforms.resize(frames, size, InterpolationMode(interpolation), antialias=True)


def normalise(
    frames: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Tensor:
    """(x / 255 - mean) / std per channel: uint8 [..., 3, h, w] to float32 of the same shape.

    The result is contiguous: convolutions choose their algorithm, and so the last bits of their
    results, by how their input lies in memory.
    """
    shape = (3, 1, 1)
    scale = torch.tensor(std, device=frames.device).reshape(shape) * 255
    shift = torch.tensor(mean, device=frames.device).reshape(shape) * 255
    return (frames.contiguous().float() - shift) / scale
