"""FAST-VQA: what a video transformer sees in fragments of a few clips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from vqbank.extractors.base import IMPLIED, ClipFn, Output, WeightedExtractor
from vqbank.extractors.fragments import Fragments, RedrawnFragments
from vqbank.extractors.networks.sizes import VideoSwinSizes
from vqbank.extractors.sampling import Clips, ContinuousClips, RandomSegments, Timeline
from vqbank.extractors.views import IMAGENET_MEAN, IMAGENET_STD, normalise
from vqbank.extractors.weights import RANDOM, TINY, WeightFile
from vqbank.store.errors import RecipeError
from vqbank.store.schema import SideSpec

if TYPE_CHECKING:  # it imports torchvision.models
    import torch
    from torch import Tensor

    from vqbank.extractors.networks.video_swin import FastVqaNetwork

_RELEASE = "https://github.com/TimothyHTimothy/FAST-VQA/releases/download/v2.0.0"
_FRAGMENT = 32  # pixels
# Wide patches, so that there is little to attend to.
_TINY: dict[str, Any] = {"patch": (2, 16, 16), "width": 16, "depths": (2, 2), "heads": (2, 4)}

Name = Literal["fast-b", "faster", "fast-m"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """One of the official configurations."""

    segments: int
    """How many equal parts the video has."""
    joined: int
    """How many segments make a clip."""
    length: int
    """Frames from each segment."""
    draws: int
    """How often a clip gets new offsets: every 32, 8 and 8 frames."""
    grid: int
    architecture: Mapping[str, Any]
    """Sizes in which it differs from FAST-VQA-B, by the names in `VideoSwinSizes`."""


_MODELS: dict[Name, _Model] = {
    "fast-b": _Model(segments=4, joined=1, length=32, draws=1, grid=7, architecture={}),
    "faster": _Model(segments=8, joined=8, length=4, draws=4, grid=7, architecture={}),
    "fast-m": _Model(
        segments=4,
        joined=1,
        length=16,
        draws=2,
        grid=4,
        architecture={"tables": (4, 4, 4), "gated": False},
    ),
}


@dataclass(frozen=True, kw_only=True)
class FastVqa(WeightedExtractor):
    """One row per clip: FAST-VQA-B and -M have four clips of a video, FasterVQA one.

    Clips as the official code takes them, but the same whenever a video is met again: runs of every
    second frame from random starts in equal parts of the video, fragments of 32 pixels at random
    offsets, ImageNet's mean and standard deviation.  The official feature of a video, which RQ-VQA
    uses, is the mean of the rows of `feature`, and the official score the mean of those of `score`.
    """

    weights: str = "fast-b"
    """"fast-b", "faster" or "fast-m" (all trained on LSVQ), "random", "random-tiny", or the path of
    a file in their layout."""
    model: Name | None = None
    """Which model a local file, which has to say it, or random weights are for; None means
    FAST-VQA-B.  The published files say it themselves."""
    small_videos: Literal["official", "corrected"] = "official"
    """What happens where a short side is below 224 (-M: 128) pixels; see `fragments.Fragments`."""
    frames: Literal["segments", "consecutive"] = field(default="segments", metadata=IMPLIED)
    """As the official code takes them, or one clip of frames that follow each other, from the
    middle of the video (DVLTA-VQA)."""
    stream: str = "fragments"
    """Name of the random stream that, with `seed`, offsets and starts are drawn from; extractors
    that name the same one share their offsets."""
    seed: int = 0

    name = "fastvqa"
    version = 1
    batch_clips = 1
    has_tiny = True
    files = tuple(
        WeightFile(
            choice=choice,
            url=f"{_RELEASE}/{name}",
            save_as=name,
            publisher="FAST-VQA's authors",
            licence="MIT",
            trained_on=("Kinetics-400", "LSVQ"),
            entry="state_dict",
        )
        for choice, name in (
            ("fast-b", "FAST_VQA_B_1_4.pth"),
            ("faster", "FAST_VQA_3D_1_1.pth"),
            ("fast-m", "FAST_VQA_M_1_4.pth"),
        )
    )

    def __post_init__(self) -> None:
        if self.weights in _MODELS and self.model not in (None, self.weights):
            raise RecipeError(
                f"fastvqa: weights {self.weights!r} are not those of model {self.model!r}; "
                f"take weights: {self.model}"
            )
        if self.weights not in (*_MODELS, RANDOM, TINY) and self.model is None:
            raise RecipeError(
                f"fastvqa: weights {self.weights!r} do not say which model they are for, as the "
                f"keys of several are the same; say model: {', '.join(_MODELS)}"
            )

    @property
    def architecture(self) -> VideoSwinSizes:
        """Sizes of the network."""
        model = self._model
        side = model.grid * _FRAGMENT
        further = {**model.architecture, **(_TINY if self.tiny else {})}
        return VideoSwinSizes(
            size=(model.joined * model.length, side, side), grid=model.grid, **further
        )

    @property
    def offers(self) -> tuple[Output, ...]:
        """The mean of the final map, the map itself, its means over space and over time, a score.

        The map has axes channels, time, height and width.  All have the frames of the clip [f] and
        the offsets of its fragments beside them: [grid, grid, 2], or several of these.
        """
        channels, t, h, w = self.architecture.map_shape
        model = self._model
        draws = () if model.draws == 1 else (model.draws,)
        side = (
            SideSpec("frames", (model.joined * model.length,), "int32"),
            SideSpec("offsets", (*draws, model.grid, model.grid, 2), "int16"),
        )
        return (
            Output("feature", (channels,), side=side),
            Output("map", (channels, t, h, w), side=side, usual=False),
            Output("temporal", (channels, t), side=side, usual=False),
            Output("spatial", (channels, h, w), side=side, usual=False),
            Output("score", (1,), "float32", side=side, usual=False),
        )

    @property
    def sampling(self) -> RandomSegments | ContinuousClips:
        """Runs of every second frame, see `RandomSegments`; or one clip from the middle."""
        model = self._model
        if self.frames == "consecutive":
            return ContinuousClips(model.joined * model.length, test=1)
        return RandomSegments(
            model.segments,
            model.joined,
            model.length,
            stream=f"{self.stream}-starts",
            seed=self.seed,
        )

    @property
    def fragments(self) -> Fragments:
        """Fragments with one set of offsets."""
        return Fragments(self._model.grid, _FRAGMENT, self.stream, self.seed, self.small_videos)

    @property
    def view(self) -> Fragments | RedrawnFragments:
        """Fragments, once for each set of offsets of a clip where it has several."""
        draws = self._model.draws
        return self.fragments if draws == 1 else RedrawnFragments(self.fragments, draws)

    def parameters(self) -> dict[str, Any]:
        """As for every extractor, with the model that is meant."""
        return {**super().parameters(), "model": self._model_name}

    def side(self, timeline: Timeline, clips: Clips) -> Mapping[str, NDArray[Any]]:
        """The frames of each clip and the offsets of its fragments."""
        offsets = [self.view.offsets(timeline, clip) for clip in range(len(clips.frames))]
        return {"frames": clips.frames[:, None], "offsets": np.stack(offsets)[:, None]}

    def load(self) -> FastVqaNetwork:
        """The whole network, ready to compute, on the CPU.

        Raises:
            WeightsError: if the file is missing, unsafe or of another network.
        """
        from vqbank.extractors.networks.video_swin import FastVqaNetwork

        network = self.network(lambda: FastVqaNetwork(self.architecture))
        network.eval().requires_grad_(False).prepare()
        return network

    def rows(self, network: FastVqaNetwork, clips: Tensor) -> Mapping[str, Tensor]:
        """What is wanted of uint8 clips of fragments, as a ClipFn gives it.

        Args:
            network: from `load`.
            clips: [b, f, 3, h, w], or [b, f, draws, 3, h, w] where offsets are drawn several times.
        """
        import torch

        if self._model.draws > 1:  # each for as many frames
            slots = torch.arange(clips.shape[1], device=clips.device)
            clips = clips[:, slots, slots * self._model.draws // len(slots)]
        channels_first = normalise(clips, IMAGENET_MEAN, IMAGENET_STD).transpose(1, 2)
        maps = network(channels_first)
        rows = {
            "feature": maps.mean(dim=(2, 3, 4)),
            "map": maps,
            "temporal": maps.mean(dim=(3, 4)),
            "spatial": maps.mean(dim=2),
            "score": network.scores(maps).mean(dim=(1, 2, 3))[:, None],
        }
        return {output.name: rows[output.name][:, None] for output in self.wanted}

    @property
    def modules(self) -> tuple[str, ...]:
        """The network."""
        return ("vqbank.extractors.networks.video_swin",)

    def build(self, device: torch.device) -> ClipFn:
        """Backbone and head.

        Raises:
            WeightsError: if the file is missing, unsafe or of another network.
        """
        return partial(self.rows, self.load().to(device))

    @property
    def _model_name(self) -> Name:
        named = next((name for name in _MODELS if name == self.weights), None)
        return named or self.model or "fast-b"

    @property
    def _model(self) -> _Model:
        return _MODELS[self._model_name]
