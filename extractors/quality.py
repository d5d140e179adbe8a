"""UNIQUE's ResNet-34: how well every frame is rendered, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from vqbank.extractors.base import IMPLIED, ClipFn, Output, WeightedExtractor
from vqbank.extractors.sampling import (
    Clips,
    EvenlySpaced,
    EveryNth,
    RowsOfBlocks,
    Sampling,
    Timeline,
)
from vqbank.extractors.views import IMAGENET_MEAN, IMAGENET_STD, AlignedPatches, Native, normalise
from vqbank.extractors.weights import RANDOM, TINY, WeightFile, find_weights
from vqbank.store.schema import SideSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vqbank.extractors.networks.unique import Unique

_PATCHES = 4
_TINY_BLOCKS = (1, 1, 1, 1)
_DATA_PARALLEL = "module."  # before every key of the authors' own file
_PYIQA_ENTRY = "params"  # in which most of pyiqa's files hold their state dict


@dataclass(frozen=True, kw_only=True)
class Quality(WeightedExtractor):
    """Means and standard deviations over space of the stages of UNIQUE's ResNet-34.

    Zhang et al., "Uncertainty-Aware Blind Image Quality Assessment in the Laboratory and Wild",
    IEEE TIP 2021, as A2INet uses it (section 3.1).  `stages`: 64, 128, 256 and 512 means, each
    followed by as many unbiased standard deviations.  `score`, of full frames: UNIQUE's own mean
    and variance of the quality (its demo prints the variance as "std", and resizes frames first,
    which is not done here).  Pixels are normalised by ImageNet's mean and standard deviation.
    """

    weights: str = "unique"
    """"unique", "random", "random-tiny", or the path of a plain state dict under the official keys
    `backbone.*` and `fc.*`, with or without `module.` before them, or with one as its entry
    `params`."""
    mode: Literal["full", "preprocessed"] = field(default="full", metadata=IMPLIED)
    """All frames at full resolution (A2INet FR), or 128 evenly spaced frames, of which four patches
    of 768 x 768 at random places are seen and averaged (A2INet PR).  The places are the same in all
    frames of a video and stand in the side array `offsets`."""
    frames: Literal["every", "blocks"] = field(default="every", metadata=IMPLIED)
    """Every frame of these, or those that `slowfast` has a row for in blocks of the same mode."""
    seed: int = field(default=0, metadata=IMPLIED)
    """Seed of the random stream that the patches' places are drawn from."""

    name = "quality"
    version = 1
    batch_clips = 1  # full frames are large
    has_tiny = True
    files = (
        WeightFile(
            choice="unique",
            url="https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/UNIQUE.pt",
            save_as="UNIQUE.pt",
            publisher="Weixia Zhang et al., mirrored by pyiqa",
            licence="unknown",
            trained_on=("ImageNet-1k", "LIVE", "CSIQ", "KADID-10k", "BID", "LIVE-C", "KonIQ-10k"),
            sha256="129d149e9d98463ca2fc28cd64c395b31ea3a812244a47b20eb860d41b583ea1",
            size=89_401_061,
        ),
    )

    @property
    def offers(self) -> tuple[Output, ...]:
        """`stages`, with the patches' places where there are any; else also `score`."""
        if self.mode == "preprocessed":
            places = SideSpec("offsets", (_PATCHES, 2), "int32")
            return (Output("stages", (1920,), side=(places,)),)
        return Output("stages", (1920,)), Output("score", (2,), "float32", usual=False)

    @property
    def sampling(self) -> Sampling:
        """The frames that `mode` and `frames` name."""
        if self.mode == "full":
            return EveryNth(1) if self.frames == "every" else RowsOfBlocks()
        return EvenlySpaced(128) if self.frames == "every" else RowsOfBlocks(spaced=128)

    @property
    def view(self) -> Native | AlignedPatches:
        """Whole frames or patches, as `mode` names them."""
        return Native() if self.mode == "full" else self._patches

    @property
    def _patches(self) -> AlignedPatches:
        return AlignedPatches(_PATCHES, 768, seed=self.seed)

    def side(self, timeline: Timeline, clips: Clips) -> Mapping[str, NDArray[Any]]:
        """`offsets` [t, 1, 4, 2]: row and column of each patch's upper left pixel."""
        if self.mode == "full":
            return {}
        offsets = self._patches.offsets(timeline).astype(np.int32)
        return {"offsets": np.broadcast_to(offsets, (*clips.rows.shape, *offsets.shape))}

    @property
    def modules(self) -> tuple[str, ...]:
        """UNIQUE's network, of torchvision's parts."""
        return ("vqbank.extractors.networks.resnet", "vqbank.extractors.networks.unique")

    def build(self, device: torch.device) -> ClipFn:
        """The network with its head.

        The function raises InvalidFeatureError for frames of at most 32 x 32.

        Raises:
            WeightsError: if the file is missing, unsafe or of another network.
        """
        import torch

        from vqbank.extractors.networks.resnet import spatial_statistics, stages

        network = self._network().to(device).eval().requires_grad_(False)
        wanted = {output.name for output in self.wanted}

        def statistics(clips: Tensor) -> Mapping[str, Tensor]:
            # [b, 1, 3, h, w], or [b, 1, patches, 3, h, w].
            pictures = clips.flatten(0, -4)
            maps = stages(network.backbone, normalise(pictures, IMAGENET_MEAN, IMAGENET_STD))
            found = {}
            if "stages" in wanted:
                rows = torch.cat([spatial_statistics(stage) for stage in maps], dim=1)
                found["stages"] = rows.unflatten(0, (len(clips), -1)).mean(dim=1, keepdim=True)
            if "score" in wanted:
                found["score"] = network.score(maps[-1])[:, None]
            return found

        return statistics

    def _network(self) -> Unique:
        from vqbank.extractors.loading import load_state_dict, random_weights
        from vqbank.extractors.networks.resnet import fill_resnet
        from vqbank.extractors.networks.unique import BLOCKS, Unique

        with random_weights():
            network = Unique(blocks=_TINY_BLOCKS if self.tiny else BLOCKS)
        if self.weights not in (RANDOM, TINY):
            path = find_weights(self.weights, *self.files, extractor=self.name, has_tiny=True)
            contained = replace(self.file, entry=_PYIQA_ENTRY)
            state = {
                key.removeprefix(_DATA_PARALLEL): value
                for key, value in load_state_dict(path, self.file, contained).items()
            }
            fill_resnet(network, state, path)
        return network
