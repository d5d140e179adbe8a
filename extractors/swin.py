"""Swin-B and RQ-VQA's attention blocks on it: the spatial feature of key frames."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vqbank.extractors.base import ClipFn, Output, WeightedExtractor
from vqbank.extractors.sampling import KeyFrames
from vqbank.extractors.views import IMAGENET_MEAN, IMAGENET_STD, OpenCvShortSideCrop, normalise
from vqbank.extractors.weights import WeightFile, find_weights
from vqbank.store.errors import WeightsError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vqbank.extractors.networks.spatial_branch import SpatialBranch

_PUBLISHED_AT = "https://github.com/sunwei925/RQ-VQA"  # the README links to the files
_SIDE = 384
_TINY_DEPTHS = (2, 1, 1, 1)  # as wide as Swin-B, so that its rows fit heads
_WIDTH = 1024
_PLACES = 12  # along a side of the last map
_WITHOUT_BLOCKS = ("lsvq", "imagenet22k")


@dataclass(frozen=True, kw_only=True)
class Swin(WeightedExtractor):
    """The spatial branch of RQ-VQA, frozen: Swin-B at 384 pixels and three attention blocks on it.

    Frames as there: short side to 384 without antialiasing, centre square, ImageNet's mean and
    standard deviation.  Outputs: `feature` is the mean of the map after the attention blocks,
    `backbone` the mean before them, `tokens` the map before them, row by row, for heads with
    attention of their own.  Checkpoints without attention blocks give the last two.
    """

    weights: str = "rqvqa"
    """"rqvqa" (one of the ten trained on KVQ), "lsvq" (what those started from), "imagenet22k",
    "random", "random-tiny", or the path of a file in the layout of one of them."""

    name = "swin"
    version = 1
    batch_clips = 2
    has_tiny = True
    files = (
        WeightFile(
            choice="rqvqa",
            url=_PUBLISHED_AT,
            save_as="rqvqa_kvq_v0.pth",
            publisher="Wei Sun, RQ-VQA",
            licence="Apache-2.0 according to the README",
            trained_on=("ImageNet-22k", "LSVQ", "KVQ"),
            on_page=True,
        ),
        WeightFile(
            choice="lsvq",
            url=_PUBLISHED_AT,
            save_as="Swin_b_384_in22k_SlowFast_Fast_LSVQ.pth",
            publisher="Wei Sun, RQ-VQA",
            licence="Apache-2.0 according to the README",
            trained_on=("ImageNet-22k", "LSVQ"),
            on_page=True,
        ),
        WeightFile(
            choice="imagenet22k",
            url="https://huggingface.co/timm/swin_base_patch4_window12_384.ms_in22k/resolve/main/model.safetensors",
            save_as="swin_base_patch4_window12_384.ms_in22k.safetensors",
            publisher="Microsoft, converted by timm",
            licence="MIT",
            trained_on=("ImageNet-22k",),
        ),
    )

    sampling = KeyFrames()
    view = OpenCvShortSideCrop(_SIDE, _SIDE, "rq-vqa")

    @property
    def offers(self) -> tuple[Output, ...]:
        """Before and after the attention blocks, where the weights have any."""
        before = (
            Output("backbone", (_WIDTH,)),
            Output("tokens", (_PLACES**2, _WIDTH), usual=False),
        )
        if self.weights in _WITHOUT_BLOCKS:
            return before
        return Output("feature", (_WIDTH,)), *before

    @property
    def modules(self) -> tuple[str, ...]:
        """The network, of parts of timm."""
        return ("timm.models.swin_transformer", "vqbank.extractors.networks.spatial_branch")

    def build(self, device: torch.device) -> ClipFn:
        """Swin and, where `feature` is wanted, the attention blocks.

        Raises:
            WeightsError: if the file is missing, unsafe or of another network, or has no attention
                blocks though `feature` is wanted.
        """
        wanted = {output.name for output in self.wanted}
        network = self._network().to(device).eval().requires_grad_(False)
        if "feature" in wanted and not len(network.bot4.net):
            raise WeightsError(
                f"the weights {self.weights!r} have no attention blocks, which swin.feature needs; "
                f"take {self.files[0].url}, or ask for outputs: [backbone]"
            )

        def average(clips: Tensor) -> Mapping[str, Tensor]:
            seen = network.see(normalise(clips[:, 0], IMAGENET_MEAN, IMAGENET_STD))
            rows = {"backbone": seen.mean(dim=(2, 3)), "tokens": seen.flatten(2).transpose(1, 2)}
            if "feature" in wanted:
                rows["feature"] = network.bot4(seen).mean(dim=(2, 3))
            return {name: values[:, None] for name, values in rows.items() if name in wanted}

        return average

    def _network(self) -> SpatialBranch:
        from vqbank.extractors.loading import random_weights
        from vqbank.extractors.networks.spatial_branch import DEPTHS, SpatialBranch

        if self.is_random:
            with random_weights():
                return SpatialBranch(depths=_TINY_DEPTHS if self.tiny else DEPTHS)
        path = find_weights(self.weights, *self.files, extractor=self.name, has_tiny=True)
        return load_network(path, *self.files)


def load_network(path: Path, *files: WeightFile) -> SpatialBranch:
    """The network of a checkpoint, with the attention blocks and the head that it holds.

    Args:
        path: one of RQ-VQA's checkpoints, its LSVQ checkpoint, or timm's of Swin-B.
        *files: what is expected there.

    Raises:
        WeightsError: if the file is missing, unsafe or of another network.
    """
    from vqbank.extractors.loading import check_keys, load_state_dict, random_weights
    from vqbank.extractors.networks.spatial_branch import BLOCKS, SpatialBranch

    state = {
        key: value.float() if value.is_floating_point() else value
        for key, value in our_keys(load_state_dict(path, *files)).items()
    }
    head = state.get("quality.0.weight")
    with random_weights():  # not on the meta device: timm computes tables while it builds
        network = SpatialBranch(
            blocks=BLOCKS if any(key.startswith("bot4.") for key in state) else 0,
            head_inputs=None if head is None else head.shape[-1],
            filled=True,
        )
    check_keys(network.state_dict(), state, path)
    network.load_state_dict(state, assign=True)
    return network


def our_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under the names of `SpatialBranch`, without what timm computes itself.

    RQ-VQA's files name Swin as timm 0.6 did: a stage ends with the merging that now begins the
    next, and two tables stand among the weights.  ImageNet's classifier is left out.

    Args:
        state: under the keys of RQ-VQA (with DataParallel's prefix or without) or of timm.
    """
    ours = {}
    for official, value in state.items():
        key = re.sub(r"^(module\.)?(feature_extraction\.)*", "", official)
        if key.endswith((".attn_mask", ".relative_position_index")) or key.startswith("head."):
            continue
        if not key.startswith(("bot4.", "quality.")):
            key = f"swin.{key}"
        ours[key] = value
    if any(key.startswith("swin.layers.0.downsample.") for key in ours):
        moved = re.compile(r"^swin\.layers\.(\d)\.downsample\.")
        ours = {
            moved.sub(lambda match: f"swin.layers.{int(match[1]) + 1}.downsample.", key): value
            for key, value in ours.items()
        }
    return ours
