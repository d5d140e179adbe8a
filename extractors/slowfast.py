"""SlowFast R50: motion features of a clip per second, or of every second frame."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from vqbank.extractors.base import IMPLIED, ClipFn, Output, WeightedExtractor
from vqbank.extractors.sampling import Blocks, ClipPerSecond, ClipWithinSecond, Sampling
from vqbank.extractors.views import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Native,
    ShortSide,
    Squash,
    View,
    normalise,
)
from vqbank.extractors.weights import WeightFile
from vqbank.store.errors import InvalidFeatureError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Chunks = Literal[
    "rq-vqa",
    "simplevqa",
    "minimalisticvqa",
    "minimalisticvqa-uniform",
    "blocks-full",
    "blocks-preprocessed",
]
Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]

SLOW_FRAMES = [i * 31 // 7 for i in range(8)]
"""Which of 32 frames the slow pathway sees: trunc(linspace(0, 31, 8))."""

_CHUNKS: dict[Chunks, tuple[Sampling, View]] = {
    "rq-vqa": (ClipPerSecond(32), Squash(224, 224)),
    "simplevqa": (ClipPerSecond(32), Squash(224, 224)),
    "minimalisticvqa": (ClipWithinSecond(32, "middle"), Squash(224, 224)),
    "minimalisticvqa-uniform": (ClipWithinSecond(32, "spread"), Squash(224, 224)),
    "blocks-full": (Blocks(), Native()),
    "blocks-preprocessed": (Blocks(spaced=128), ShortSide(540)),
}
_NORMALISATIONS: dict[str, Statistics] = {
    "slowfast": ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225)),  # PyTorchVideo's own
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
}
_STAGES = 5  # blocks after these pool and classify
_DEPTH = 50
_TINY_DEPTH = 18  # a block per stage, each as wide as in R50, so that its rows fit heads


@dataclass(frozen=True, kw_only=True)
class SlowFast(WeightedExtractor):
    """Features of slowfast_r50 (Feichtenhofer et al., ICCV 2019), in float32.

    Of a chunk of 32 frames: `fast`, the fast pathway averaged over time and space, and `slowfast`,
    2048 numbers of the slow pathway and then the 256 of the fast one.  Lateral connections run from
    fast to slow only, so the slow pathway, which costs nine times as much, changes nothing in
    `fast` and is run for `slowfast` alone.

    Of a block of 64 frames: `blocks`, for each of the 32 that are looked at, 256 means and 256
    unbiased standard deviations over space of the fast pathway; `frame_index` says which frame.
    """

    weights: str = "kinetics400"
    """"kinetics400", "random", "random-tiny", or the path of a file like SLOWFAST_8x8_R50.pyth,
    with both pathways."""
    chunks: Chunks = field(default="rq-vqa", metadata=IMPLIED)
    """Which frames, and at what size.

    - "rq-vqa", "simplevqa": 32 consecutive frames from the start of every second, squashed to
      224 x 224.
    - "minimalisticvqa": the middle 32 frames of every second; "minimalisticvqa-uniform": 32 frames
      spread over every second.
    - "blocks-full": blocks of 64 frames at their own size (A2INet FR, TCSVT-2022-BVQA).
    - "blocks-preprocessed": the same of 128 evenly spaced frames, short side 540 (A2INet PR).
    """
    normalisation: Literal["slowfast", "imagenet"] = "slowfast"
    """(x / 255 - 0.45) / 0.225, with which the network was trained, or ImageNet's mean and standard
    deviation, which TCSVT-2022-BVQA uses."""

    name = "slowfast"
    version = 3
    batch_clips = 1  # the fast pathway is a tenth slower in batches of two
    has_tiny = True
    files = (
        WeightFile(
            choice="kinetics400",
            url="https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/SLOWFAST_8x8_R50.pyth",
            save_as="SLOWFAST_8x8_R50.pyth",
            publisher="Meta AI, PyTorchVideo model zoo",
            licence="Apache-2.0",
            trained_on=("Kinetics-400",),
            entry="model_state",
        ),
    )

    @property
    def offers(self) -> tuple[Output, ...]:
        """`blocks` of blocks; else `fast` and, where asked for, `slowfast`."""
        if isinstance(self.sampling, Blocks):
            return (Output("blocks", (512,)),)
        return Output("fast", (256,)), Output("slowfast", (2304,), usual=False)

    @property
    def sampling(self) -> Sampling:
        """The frames that `chunks` names."""
        return _CHUNKS[self.chunks][0]

    @property
    def view(self) -> View:
        """The size that `chunks` names, a fifth of it where the network is tiny."""
        usual = _CHUNKS[self.chunks][1]
        if not self.tiny or isinstance(usual, Native):
            return usual
        return ShortSide(108) if isinstance(usual, ShortSide) else Squash(45, 45)

    @property
    def modules(self) -> tuple[str, ...]:
        """pytorchvideo, and a faster form of its layers."""
        return ("pytorchvideo.models.slowfast", "vqbank.extractors.networks.flat_convolutions")

    def build(self, device: torch.device) -> ClipFn:
        """The fast pathway, or both where the slow one is asked for.

        The function of blocks raises InvalidFeatureError for frames of at most 32 x 32.

        Raises:
            WeightsError: if the file is missing, unsafe or of another network.
        """
        import torch
        from torch import nn

        from vqbank.extractors.networks.flat_convolutions import flatten_convolutions

        stages = self.stages()
        flatten_convolutions(stages)
        fast = nn.Sequential(*[_fast(stage) for stage in stages])
        mean, std = _NORMALISATIONS[self.normalisation]
        wanted = {output.name for output in self.wanted}

        def pixels(clips: Tensor) -> Tensor:
            channels_first = normalise(clips, mean, std).transpose(1, 2)  # [b, 3, f, h, w]
            return channels_first.contiguous(memory_format=torch.channels_last_3d)

        def averages(clips: Tensor) -> Mapping[str, Tensor]:
            return {"fast": fast(pixels(clips)).mean(dim=(2, 3, 4))[:, None]}

        def averages_of_both(clips: Tensor) -> Mapping[str, Tensor]:
            maps = pathways(stages, pixels(clips))
            both = [values.mean(dim=(2, 3, 4))[:, None] for values in maps]
            found = {"fast": both[1], "slowfast": torch.cat(both, dim=2)}
            return {name: values for name, values in found.items() if name in wanted}

        def statistics(clips: Tensor) -> Mapping[str, Tensor]:
            # One by one: a block of full frames is large.
            rows = [frame_statistics(fast(pixels(clip[None]))[0]) for clip in clips]
            return {"blocks": torch.stack(rows)}

        if "slowfast" in wanted:
            stages.to(device)
            return averages_of_both
        fast.to(device)
        return statistics if isinstance(self.sampling, Blocks) else averages

    def stages(self) -> nn.ModuleList:
        """The five stages of both pathways with these weights, on the CPU, frozen.

        Raises:
            WeightsError: if the file is missing, unsafe or of another network.
        """
        from torch import nn

        whole: Any = self.network(partial(architecture, _TINY_DEPTH if self.tiny else _DEPTH))
        return nn.ModuleList(whole.blocks[:_STAGES]).eval().requires_grad_(False)


def architecture(depth: int = _DEPTH) -> nn.Module:
    """The whole slowfast_r50, classifier included, or one of another depth in its place."""
    with warnings.catch_warnings():
        # fvcore, which it imports, still calls torch.jit.script.
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
        from pytorchvideo.models.slowfast import create_slowfast
    return create_slowfast(model_depth=depth, slowfast_fusion_conv_kernel_size=(7, 1, 1))


def _fast(stage: Any) -> nn.Module:
    return stage.multipathway_blocks[1]


def pathways(stages: nn.ModuleList, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """What both pathways end with.

    Args:
        stages: as from `SlowFast.stages`.
        pixels: normalised [b, 3, 32, h, w].

    Returns:
        slow [b, 2048, 8, h / 32, w / 32] and fast [b, 256, 32, h / 32, w / 32].
    """
    maps = [pixels[:, :, SLOW_FRAMES], pixels]
    for stage in stages:
        maps = stage(maps)
    slow, fast = maps
    return slow, fast


def frame_statistics(maps: Tensor) -> Tensor:
    """[d, f, h, w] to [f, 2 d]: mean and unbiased standard deviation over space, frame by frame.

    `global_std_pool3d` and its neighbour in TCSVT-2022-BVQA's `CNNfeatures_Motion.py`.

    Raises:
        InvalidFeatureError: if a map has one value only, which does not deviate.
    """
    import torch

    values = maps.flatten(2)
    if values.shape[2] == 1:
        raise InvalidFeatureError("frames of at most 32 x 32 are too small for slowfast's blocks")
    return torch.cat([values.mean(dim=2), values.std(dim=2)]).T.contiguous()
