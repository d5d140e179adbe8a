"""What happens to a frame as it streams by: resize and crop; then what a network wants: normalise.

A view keeps frames as 8-bit pictures, so that what waits for a full clip is small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
import PIL.Image
import PIL.ImageFile  # else Image.fromarray would import it, in whatever thread
from numpy.typing import NDArray

from vqbank.extractors.sampling import Timeline, generator

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Interpolation = Literal["bilinear", "bicubic"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CROPPING = ("torchvision.transforms.v2", "torchvision.transforms.v2.functional")
"""Modules of those views that cut out the centre, for `Extractor.modules`."""


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
    interpolation: Interpolation = "bilinear"

    def __call__(self, frames: Tensor) -> Tensor:
        """[k, 3, height, width], antialiased."""
        return _resize(frames, [self.height, self.width], self.interpolation)


@dataclass(frozen=True, slots=True)
class ShortSideCrop:
    """Resize the short side, keep the aspect ratio, cut a square from the centre."""

    side: int
    crop: int
    interpolation: Interpolation = "bilinear"

    def __call__(self, frames: Tensor) -> Tensor:
        """[k, 3, crop, crop], antialiased."""
        resized = _resize(frames, _short_side(frames, self.side), self.interpolation)
        return _center_crop(resized, [self.crop])


@dataclass(frozen=True, slots=True)
class LetterBox:
    """Resize the long side, keep the aspect ratio, and stand the picture in a black square."""

    side: int

    def __call__(self, frames: Tensor) -> Tensor:
        """[k, 3, side, side], antialiased; an odd bar is the wider one below or on the right."""
        import torch

        height, width = letter_boxed(self.side, *frames.shape[-2:])
        top, left = (self.side - height) // 2, (self.side - width) // 2
        square = torch.zeros(
            (*frames.shape[:-2], self.side, self.side), dtype=frames.dtype, device=frames.device
        )
        resized = _resize(frames, [height, width], "bilinear")
        square[..., top : top + height, left : left + width] = resized
        return square


def letter_boxed(side: int, height: int, width: int) -> tuple[int, int]:
    """Height and width of the picture in a square of `side`, rounded, at least one pixel."""
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _resize(
    frames: Tensor, size: list[int], interpolation: Interpolation, *, antialias: bool = True
) -> Tensor:
    if list(frames.shape[-2:]) == size:
        return frames
    if antialias:
        return resize_like_pillow(frames, size[0], size[1], interpolation)
    # Here, because torchvision takes longer to import than all else, and few views need it.
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as transforms

    return transforms.resize(frames, size, InterpolationMode(interpolation), antialias=False)


def _center_crop(frames: Tensor, size: list[int]) -> Tensor:
    from torchvision.transforms.v2 import functional as transforms

    return transforms.center_crop(frames, size)


def resize_like_pillow(
    frames: Tensor, height: int, width: int, interpolation: Interpolation
) -> Tensor:
    """uint8 [k, 3, h, w] to [k, 3, height, width] as Pillow does it, to the last bit.

    Torch's own weights of 16 bits, where Pillow's have 22, move one value in a thousand by a level.
    """
    import torch

    if frames.device.type == "cpu":
        pictures = frames.permute(0, 2, 3, 1).contiguous().numpy()
        filter_name = PIL.Image.Resampling[interpolation.upper()]
        rows = frames.shape[-2]
        # Width first, as Pillow has always done; since Pillow 13 it begins with the other axis
        # where a picture is tall, and differs by a level.
        resized = [
            PIL.Image.fromarray(one)
            .resize((width, rows), filter_name)
            .resize((width, height), filter_name)
            for one in pictures
        ]
        return torch.from_numpy(np.stack([np.asarray(one) for one in resized])).permute(0, 3, 1, 2)
    narrow = resize_last_axis(frames, width, interpolation)
    return resize_last_axis(narrow.transpose(-1, -2), height, interpolation).transpose(-1, -2)


def resize_last_axis(pictures: Tensor, length: int, interpolation: Interpolation) -> Tensor:
    """uint8 [..., w] to [..., length] in Pillow's fixed-point arithmetic (its Resample.c)."""
    import torch

    columns, weights = _taps(pictures.shape[-1], length, interpolation)
    total = torch.full((*pictures.shape[:-1], length), 1 << (_BITS - 1), device=pictures.device)
    total = total.int()
    for column, weight in zip(columns, weights, strict=True):
        at = torch.from_numpy(column).to(pictures.device)
        total += pictures[..., at] * torch.from_numpy(weight).to(pictures.device)
    return (total >> _BITS).clamp(0, 255).byte()


_BITS = 22  # of a weight after the point


def _taps(
    length: int, target: int, interpolation: Interpolation
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """For every tap [taps, target]: the pixel that is read and its weight, 2^22 being one."""
    scale = length / target
    stretch = max(scale, 1.0)
    support = {"bilinear": 1, "bicubic": 2}[interpolation] * stretch
    centre = (np.arange(target) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), length)
    pixel = first + np.arange(int(np.ceil(support)) * 2 + 1)[:, None]
    x = np.abs((pixel - centre + 0.5) / stretch)
    if interpolation == "bilinear":
        weight = np.maximum(1 - x, 0)
    else:
        near = (1.5 * x - 2.5) * x * x + 1  # Keys' cubic with a = -0.5
        far = ((x - 5) * x + 8) * x * -0.5 + 2
        weight = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    weight[pixel >= last] = 0
    weight /= weight.sum(axis=0)
    fixed = np.trunc(weight * (1 << _BITS) + np.copysign(0.5, weight)).astype(np.int32)
    return np.minimum(pixel, length - 1), fixed


def normalise(
    frames: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Tensor:
    """(x / 255 - mean) / std per channel: uint8 [..., 3, h, w] to float32 of the same shape.

    The result is contiguous: convolutions choose their algorithm, and so the last bits of their
    results, by how their input lies in memory.
    """
    import torch

    shape = (3, 1, 1)
    scale = torch.tensor(std, device=frames.device).reshape(shape) * 255
    shift = torch.tensor(mean, device=frames.device).reshape(shape) * 255
    return (frames.contiguous().float() - shift) / scale


@dataclass(frozen=True, slots=True)
class ShortSide:
    """Resize the short side, up or down, and keep the aspect ratio."""

    side: int
    interpolation: Interpolation = "bilinear"

    def __call__(self, frames: Tensor) -> Tensor:
        """[k, 3, h', w'] with min(h', w') = side, antialiased; the long side is truncated."""
        return _resize(frames, _short_side(frames, self.side), self.interpolation)


def _short_side(frames: Tensor, side: int) -> list[int]:
    height, width = frames.shape[-2:]
    # The long side is truncated, as PIL-based transforms and OpenAI's preprocessing do.
    if height <= width:
        return [side, int(side * width / height)]
    return [int(side * height / width), side]


@dataclass(frozen=True, slots=True)
class AlignedPatches:
    """Patches at random places, the same in every frame of a video.

    The preprocessed input of A2INet's quality branch: four patches of 768 x 768.  A frame that is
    lower or narrower than a patch gives patches as high or wide as itself.
    """

    count: int = 4
    side: int = 768
    stream: str = "patches"
    seed: int = 0

    def offsets(self, timeline: Timeline) -> NDArray[np.int64]:
        """[count, 2]: row and column of each patch's upper left pixel; all are equally likely."""
        source = generator(timeline.video_id, self.stream, self.seed, 0)
        frame = np.array([timeline.height, timeline.width])
        return source.integers(np.maximum(frame - self.side, 0) + 1, size=(self.count, 2))

    def of_clip(self, timeline: Timeline, clip: int) -> View:
        """uint8 [k, count, 3, h', w'], the same for every clip."""
        import torch

        offsets = self.offsets(timeline).tolist()
        side = self.side
        return lambda frames: torch.stack(
            [frames[..., y : y + side, x : x + side] for y, x in offsets], dim=1
        )


@dataclass(frozen=True, slots=True)
class ResizeCrop:
    """Resize, then cut a rectangle from the centre: what libraries do for their own models."""

    resize: int | tuple[int, int]
    """The short side, whereby the aspect ratio is kept, or height and width."""
    crop: tuple[int, int]
    """Height and width; a smaller picture gets a black border."""
    interpolation: Interpolation
    antialias: bool = True

    def __call__(self, frames: Tensor) -> Tensor:
        """[k, 3, *crop]."""
        wanted = self.resize
        size = _short_side(frames, wanted) if isinstance(wanted, int) else list(wanted)
        resized = _resize(frames, size, self.interpolation, antialias=self.antialias)
        return _center_crop(resized, list(self.crop))


@dataclass(frozen=True, slots=True)
class OpenCvShortSideCrop:
    """Short side to `side` with OpenCV's bilinear resize, a square of `crop` from the centre.

    Bit for bit cv2.resize with INTER_LINEAR on 8-bit pictures: 11-bit weights, no antialiasing.
    """

    side: int
    crop: int
    rounding: Literal["rq-vqa", "mmcv"]
    """How the long side and the square's offset are rounded: the former truncated and the latter to
    nearest, half to even (RQ-VQA's `extract_frame`, torchvision's `CenterCrop`), or the former half
    up and the latter truncated (mmcv's `rescale_size`, mmaction's `CenterCrop`)."""

    def __call__(self, frames: Tensor) -> Tensor:
        """[k, 3, crop, crop]."""
        height, width = frames.shape[-2:]
        short = min(height, width)
        (left, left_weight), (right, right_weight) = self._taps(width, short, frames.device)
        (upper, upper_weight), (lower, lower_weight) = self._taps(height, short, frames.device)
        across = frames[..., left] * left_weight + frames[..., right] * right_weight
        across >>= 4
        top = (across[..., upper, :] * upper_weight[:, None]) >> 16
        bottom = (across[..., lower, :] * lower_weight[:, None]) >> 16
        return ((top + bottom + 2) >> 2).byte()

    def _taps(
        self, length: int, short: int, device: torch.device
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Along one axis: the two old pixels of each new one that is kept, and their weights."""
        exact = length * (self.side / short)
        if self.rounding == "rq-vqa":
            target = int(exact) if length > short else self.side
            offset = round((target - self.crop) / 2)
        else:
            target = int(exact + 0.5)
            offset = (target - self.crop) // 2
        places = np.arange(offset, offset + self.crop)
        at = ((places + 0.5) * (length / target) - 0.5).astype(np.float32)
        first = np.floor(at).astype(np.int64)
        share = at - first.astype(np.float32)
        return _tap(first, 1 - share, length, device), _tap(first + 1, share, length, device)


def _tap(
    pixel: NDArray[np.int64], weight: NDArray[np.float32], length: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    import torch

    fixed = np.rint(2048 * weight).astype(np.int32)
    return (
        torch.from_numpy(pixel.clip(0, length - 1)).to(device),
        torch.from_numpy(fixed).to(device),
    )
