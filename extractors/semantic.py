"""ResNet-50: what is seen, stage by stage, in every frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from vqbank.extractors.base import IMPLIED, ClipFn, Output, WeightedExtractor
from vqbank.extractors.sampling import EvenlySpaced, EveryNth, RowsOfBlocks, Sampling
from vqbank.extractors.views import IMAGENET_MEAN, IMAGENET_STD, Native, ShortSide, View, normalise
from vqbank.extractors.weights import RANDOM, WeightFile, find_weights

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Semantic(WeightedExtractor):
    """Means and standard deviations over space of ResNet-50's stages (A2INet, section 3.1; VSFA).

    `stages`: 256, 512, 1024 and 2048 means, each followed by as many unbiased standard deviations.
    `last`: those of the last stage alone, VSFA's 4096 numbers.  Frames keep their aspect ratio;
    pixels are normalised by ImageNet's mean and standard deviation.
    """

    weights: str = "imagenet1k_v1"
    """"imagenet1k_v1", "random", "random-tiny", or the path of a plain state dict under
    torchvision's keys."""
    mode: Literal["full", "preprocessed"] = field(default="full", metadata=IMPLIED)
    """All frames at full resolution (A2INet FR, VSFA), or 128 evenly spaced frames with the short
    side resized to 540 (A2INet PR)."""
    frames: Literal["every", "blocks"] = field(default="every", metadata=IMPLIED)
    """Every frame of these, or those that `slowfast` has a row for in blocks of the same mode."""

    name = "semantic"
    version = 1
    offers = (Output("stages", (7680,)), Output("last", (4096,), usual=False))
    batch_clips = 1  # full frames are large
    has_tiny = True
    files = (
        WeightFile(
            choice="imagenet1k_v1",
            url="https://download.pytorch.org/models/resnet50-0676ba61.pth",
            save_as="resnet50-0676ba61.pth",
            publisher="PyTorch, torchvision",
            licence="BSD-3-Clause",
            trained_on=("ImageNet-1k",),
            sha256_begins="0676ba61",
        ),
    )

    @property
    def sampling(self) -> Sampling:
        """The frames that `mode` and `frames` name."""
        if self.mode == "full":
            return EveryNth(1) if self.frames == "every" else RowsOfBlocks()
        return EvenlySpaced(128) if self.frames == "every" else RowsOfBlocks(spaced=128)

    @property
    def view(self) -> View:
        """The size that `mode` names, a fifth of it where the network is tiny."""
        return Native() if self.mode == "full" else ShortSide(108 if self.tiny else 540)

    @property
    def modules(self) -> tuple[str, ...]:
        """torchvision."""
        return ("torchvision.models.resnet", "vqbank.extractors.networks.resnet")

    def build(self, device: torch.device) -> ClipFn:
        """The network without its classifier.

        The function raises InvalidFeatureError for frames of at most 32 x 32.

        Raises:
            WeightsError: if the file is missing, unsafe or of another network.
        """
        import torch

        from vqbank.extractors.networks.resnet import spatial_statistics, stages

        network = self._network().to(device).eval().requires_grad_(False)
        wanted = {output.name for output in self.wanted}

        def statistics(clips: Tensor) -> Mapping[str, Tensor]:
            maps = stages(network, normalise(clips[:, 0], IMAGENET_MEAN, IMAGENET_STD))
            rows = [spatial_statistics(stage)[:, None] for stage in maps]
            found = {"stages": torch.cat(rows, dim=2), "last": rows[-1]}
            return {name: values for name, values in found.items() if name in wanted}

        return statistics

    def _network(self) -> nn.Module:
        from torchvision.models.resnet import Bottleneck, ResNet, resnet50

        from vqbank.extractors.loading import load_state_dict, random_weights
        from vqbank.extractors.networks.resnet import fill_resnet

        with random_weights():
            if self.tiny:
                return ResNet(Bottleneck, [1, 1, 1, 1], width_per_group=8)
            network = resnet50()
        if self.weights != RANDOM:
            path = find_weights(self.weights, *self.files, extractor=self.name, has_tiny=True)
            fill_resnet(network, load_state_dict(path, *self.files), path)
        return network
