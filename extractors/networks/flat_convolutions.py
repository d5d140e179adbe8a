"""3-D convolutions that span only space or only time, run as the 2-D ones that they are."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d
from torch.nn.utils.fusion import fuse_conv_bn_eval


def flatten_convolutions(network: nn.Module) -> None:
    """Make a network of clips [b, c, f, h, w] faster on one core, the same up to rounding.

    - Batch normalisation after a convolution is folded into its weights.
    - Kernels of 1 x k x k run on frames, those of k x 1 x 1 on rows of pixels, as 2-D convolutions.
      On one thread PyTorch 2 gives small 3-D ones, and unstrided ones whose kernel is 1 x 1 in
      space, to `slow_conv3d`, which unfolds them into a matrix; 2-D ones of many frames go to
      oneDNN.
    - What remains in 3-D gets weights with channels last.  Of clips in
      `torch.channels_last_3d` every 2-D picture is then a view, and nothing is moved in memory.
    - ReLU overwrites its input, which nobody else reads after a normalisation or a sum.

    Args:
        network: changed in place; frozen, in evaluation mode, with a BatchNorm3d directly after
            each Conv3d in the order of children, as in PyTorchVideo's ResNets.

    Raises:
        ValueError: if it has a MaxPool3d over time.
    """
    for (name, convolution), (following, norm) in pairwise(list(network.named_children())):
        if isinstance(convolution, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d):
            setattr(network, name, _flat(fuse_conv_bn_eval(convolution, norm)))
            setattr(network, following, nn.Identity())
    for name, child in network.named_children():
        if isinstance(child, nn.MaxPool3d):
            setattr(network, name, _FramePool(child))
        elif isinstance(child, nn.ReLU):
            child.inplace = True
        else:
            flatten_convolutions(child)


def _flat(convolution: nn.Conv3d) -> nn.Module:
    steps = zip(convolution.kernel_size, convolution.stride, convolution.padding, strict=True)
    still = [step == (1, 1, 0) for step in steps]  # along time, height and width
    plain = convolution.groups == 1 and max(convolution.dilation) == 1
    if plain and still[0]:
        return _FrameConvolution(convolution)
    if plain and all(still[1:]):
        return _TimeConvolution(convolution)
    return convolution.to(memory_format=torch.channels_last_3d)


class _FrameConvolution(nn.Module):
    """1 x k x k: every frame by itself."""

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        self.weight = _frozen(convolution.weight[:, :, 0])
        self.bias = convolution.bias
        # PyTorchVideo gives NumPy's integers, which not every function takes.
        self.stride = [int(step) for step in convolution.stride[1:]]
        self.padding = [int(step) for step in convolution.padding[1:]]

    def forward(self, clips: Tensor) -> Tensor:
        return _clips(
            conv2d(_frames(clips), self.weight, self.bias, self.stride, self.padding), clips
        )


class _TimeConvolution(nn.Module):
    """k x 1 x 1, not strided in space: a picture of frames by pixels."""

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        self.weight = _frozen(convolution.weight[..., 0])
        self.bias = convolution.bias
        self.stride = [int(convolution.stride[0]), 1]
        self.padding = [int(convolution.padding[0]), 0]

    def forward(self, clips: Tensor) -> Tensor:
        flat = conv2d(clips.flatten(3), self.weight, self.bias, self.stride, self.padding)
        return flat.unflatten(3, clips.shape[3:])


class _FramePool(nn.Module):
    """The largest of 1 x k x k."""

    def __init__(self, pool: Any) -> None:
        super().__init__()
        sizes = (pool.kernel_size, pool.stride, pool.padding)
        if [size[0] for size in sizes] != [1, 1, 0]:
            raise ValueError(f"{pool} pools over time; only pools of frames can be flattened")
        self.kernel, self.stride, self.padding = (list(size[1:]) for size in sizes)

    def forward(self, clips: Tensor) -> Tensor:
        return _clips(max_pool2d(_frames(clips), self.kernel, self.stride, self.padding), clips)


def _frozen(weight: Tensor) -> nn.Parameter:
    channels_last = weight.contiguous(memory_format=torch.channels_last)
    return nn.Parameter(channels_last, requires_grad=False)


def _frames(clips: Tensor) -> Tensor:
    return clips.transpose(1, 2).flatten(0, 1)


def _clips(frames: Tensor, like: Tensor) -> Tensor:
    return frames.unflatten(0, (len(like), like.shape[2])).transpose(1, 2)
