"""Any image or video backbone of timm, torchvision or transformers, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from vqbank.extractors.base import IMPLIED, ClipFn, Extractor, Output, WeightedExtractor
from vqbank.extractors.libraries import LIBRARIES, PUBLISHED, Library, described
from vqbank.extractors.sampling import (
    ClipPerSecond,
    EveryClip,
    EveryNth,
    KeyFrames,
    Sampling,
)
from vqbank.extractors.views import CROPPING, ResizeCrop, normalise
from vqbank.extractors.weights import (
    RANDOM,
    WeightFile,
    find_weights,
    weights_identity,
    weights_origin,
)
from vqbank.store.errors import RecipeError, UnknownNameError, WeightsError, unknown_name

if TYPE_CHECKING:
    import torch
    from torch import Tensor


_MODEL = "torchvision:resnet18"
# What torchvision says of it, repeated so that it is listed without importing torchvision.
_WIDTH = 512
_FILE = WeightFile(
    choice=PUBLISHED,
    url="https://download.pytorch.org/models/resnet18-f37072fd.pth",
    save_as="resnet18-f37072fd.pth",
    publisher="PyTorch, torchvision",
    licence="BSD-3-Clause",
    trained_on=("ImageNet-1k",),
    sha256_begins="f37072fd",
)


@dataclass(frozen=True, kw_only=True)
class Backbone(WeightedExtractor):
    """The pooled output of a backbone, before any classifier.

    Image models see key frames, video models a clip of consecutive frames from the start of every
    second.  Size, interpolation, mean and standard deviation are those that the library states for
    the model.
    """

    model: str = _MODEL
    """One of

    - "timm:NAME", with or without the tag of the weights, such as
      "timm:vit_small_patch14_dinov2.lvd142m";
    - "torchvision:NAME" of an image model or "torchvision:video/NAME" of a video model, with or
      without the weights, such as "torchvision:video/swin3d_t.KINETICS400_V1";
    - "transformers:FOLDER" with config.json, preprocessor_config.json and, unless `weights` says
      otherwise, the weights.  What the library calls pooled is taken, the image features of a model
      of images and texts, and where there is neither the mean over all tokens (VideoMAE)."""
    weights: str = PUBLISHED
    """"published" (those that the tag means, or in the folder), "random", or the path of a file."""
    length: Annotated[int, Field(ge=1)] = field(default=16, metadata=IMPLIED)
    """Frames of a clip, for video models."""
    frames: Literal["seconds", "every"] = field(default="seconds", metadata=IMPLIED)
    """A frame or a clip from the start of every second, or every frame, in clips that follow each
    other where the model is one of videos."""

    name = "backbone"
    version = 1

    def __post_init__(self) -> None:
        library, _, name = self.model.partition(":")
        if library not in LIBRARIES:
            raise UnknownNameError(unknown_name("library of backbone", library, LIBRARIES))
        if not name:
            raise RecipeError(f"backbone: model {self.model!r} names no model of {library}")

    @property
    def offers(self) -> tuple[Output, ...]:
        """The pooled output."""
        width = _WIDTH if self.model == _MODEL else self._library.width
        return (Output("pooled", (width,)),)

    @property
    def sampling(self) -> Sampling:
        """The frames that `frames` names, or clips of `length` frames for a video model.

        Raises:
            RecipeError: if the model was made for another number of frames.
        """
        if not self._library.is_video:
            return KeyFrames() if self.frames == "seconds" else EveryNth(1)
        fixed = self._library.frames
        if fixed is not None and fixed != self.length:
            raise RecipeError(
                f"backbone: {self.model} takes clips of {fixed} frames, not {self.length}; set "
                f"length: {fixed}"
            )
        return ClipPerSecond(self.length) if self.frames == "seconds" else EveryClip(self.length)

    @property
    def batch_clips(self) -> int:  # type: ignore[override]  # a constant of all other extractors
        """Eight images; one clip, as clips gain nothing from company, and are large."""
        return 1 if self._library.is_video else 8

    @property
    def view(self) -> ResizeCrop:
        """Resize and crop, as the library states for the model."""
        return self._library.view

    @property
    def files(self) -> tuple[WeightFile, ...]:
        """The one that the model's name means."""
        return (_FILE if self.model == _MODEL else self._library.file,)

    @property
    def _library(self) -> Library:
        library, _, name = self.model.partition(":")
        return described(library, name, LIBRARIES[library].state_of(name))

    @property
    def _choice(self) -> str:
        """Published weights of a folder lie in it.

        Raises:
            WeightsError: if none are published.
        """
        if self.weights != PUBLISHED:
            return self.weights
        if not self._library.file.url:
            raise WeightsError(
                f"backbone: no weights of {self.model} are published; give the path of a file"
            )
        return self._library.published

    def parameters(self) -> dict[str, Any]:
        """As for every extractor with weights; `model` in full, mean and standard deviation."""
        assert not self.tiny  # raises: there is none
        library = self._library
        return {
            **Extractor.parameters(self),
            "weights": weights_identity(self._choice, *self.files, extractor=self.name),
            "model": library.identity,
            "mean": list(library.mean),
            "std": list(library.std),
        }

    def origin(self) -> Mapping[str, Any]:
        """Publisher, licence and training data of the published file; a local one has none."""
        return weights_origin(self._choice, *self.files, extractor=self.name)

    @property
    def modules(self) -> tuple[str, ...]:
        """torchvision for the view.

        The libraries import the file of a model when they make it, and so with its width.
        """
        assert self._library.width
        return CROPPING

    def build(self, device: torch.device) -> ClipFn:
        """The network.

        Raises:
            WeightsError: if the file is missing, unsafe or of another network.
        """
        from vqbank.extractors.loading import random_weights

        library = self._library
        if self.weights == RANDOM:
            with random_weights():
                network = library.network()
        else:
            path = find_weights(self._choice, *self.files, extractor=self.name)
            network = library.filled(path)
        network = network.to(device).eval().requires_grad_(False)

        def pooled(clips: Tensor) -> Mapping[str, Tensor]:
            pixels = normalise(clips, library.mean, library.std)
            if not library.is_video:
                pixels = pixels[:, 0]
            return {"pooled": library.pooled(network, pixels)[:, None]}

        return pooled
