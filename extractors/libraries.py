"""What timm, torchvision and transformers say of their models, and how they build them."""

from __future__ import annotations

import hashlib
import json
import math
import re
from abc import ABC, abstractmethod
from difflib import get_close_matches
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vqbank.extractors.views import ResizeCrop
from vqbank.extractors.weights import HUB, WeightFile
from vqbank.store.errors import RecipeError, UnknownNameError, WeightsError, in_words, unknown_name
from vqbank.store.ordinary import open_ordinary

if TYPE_CHECKING:
    from torch import Tensor, nn

PUBLISHED = "published"
"""The choice of the weights that a model's name means."""
_INTERPOLATIONS: dict[str, Literal["bilinear", "bicubic"]] = {
    "bilinear": "bilinear",
    "bicubic": "bicubic",
}

# Their published weights see pictures scaled as TensorFlow did, and do that inside.
_INCEPTIONS = ("googlenet", "inception_v3")
# What parts of the names of weights say of their training data, in timm and in torchvision.
_DATA_SETS = {
    "in1k": "ImageNet-1k",
    "in12k": "ImageNet-12k",
    "in21k": "ImageNet-21k",
    "in22k": "ImageNet-22k",
    "imagenet1k": "ImageNet-1k",
    "imagenet22k": "ImageNet-22k",
    "kinetics400": "Kinetics-400",
    "laion2b": "LAION-2B",
    "lvd142m": "LVD-142M",
    "webli": "WebLI",
}


class Library(ABC):
    """What one library says about one of its models, and how it builds it."""

    view: ResizeCrop
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    identity: str
    """What stands for the model in a key."""
    file: WeightFile
    """The published file of its weights; without an address if they are not published."""
    published: str = PUBLISHED
    """What `find_weights` is to look for: that file, or a folder."""
    is_video: bool = False
    frames: int | None = None
    """Frames of a clip, where the model takes no other number; else None."""

    @abstractmethod
    def __init__(self, name: str) -> None:
        """Look the model up.

        Raises:
            UnknownNameError: if the library has no such model.
            RecipeError: if it is one that cannot be used here.
        """

    @staticmethod
    def state_of(name: str) -> str:
        """What may change while the name stays: the files of a folder."""
        return ""

    @abstractmethod
    def network(self) -> nn.Module:
        """The network as its library makes it, with a random start."""

    @abstractmethod
    def filled(self, path: Path) -> nn.Module:
        """The network filled with the weights of a file."""

    @abstractmethod
    def pooled(self, network: nn.Module, pixels: Tensor) -> Tensor:
        """[b, 3, h, w], or [b, f, 3, h, w] for a video model, to [b, d]."""

    @cached_property
    def width(self) -> int:
        """Numbers in the pooled output, found without weights and without computing anything."""
        import torch

        clip = (self.frames or 16,) if self.is_video else ()
        try:
            with torch.device("meta"):
                network = self.network().eval()
                return int(self.pooled(network, torch.empty(1, *clip, 3, *self.view.crop)).shape[1])
        except RuntimeError as error:
            raise RecipeError(
                f"backbone: {self.identity} cannot be built without computing: {error}"
            ) from error


class _Timm(Library):
    def __init__(self, name: str) -> None:
        import timm

        architecture, _, tag = name.partition(".")
        if not timm.is_model(architecture):
            raise _unknown("timm", architecture, timm.list_models())
        tagged = timm.list_pretrained(f"{architecture}.*")
        if tag and name not in tagged:
            raise _unknown("timm", name, tagged)
        configuration = timm.get_pretrained_cfg(name)
        self._name = name
        self.identity = f"timm:{configuration.architecture}.{configuration.tag}"
        data = timm.data.resolve_data_config(pretrained_cfg=configuration.to_dict())
        if data["crop_mode"] not in ("center", "squash"):
            raise RecipeError(f"backbone: {self.identity} wants crop mode {data['crop_mode']!r}")
        _, height, width = data["input_size"]
        # As timm's own transform for evaluation does.
        sides = tuple(math.floor(side / data["crop_pct"]) for side in (height, width))
        both = data["crop_mode"] == "squash" or height != width
        self.view = ResizeCrop(
            (sides[0], sides[1]) if both else sides[0],
            (height, width),
            _interpolation(self.identity, data["interpolation"]),
        )
        self.mean, self.std = _triple(data["mean"]), _triple(data["std"])
        url = configuration.url or ""
        if configuration.hf_hub_id:
            stored = configuration.hf_hub_filename or "model.safetensors"
            url = f"{HUB}{configuration.hf_hub_id}/resolve/main/{stored}"
        self.file = WeightFile(
            choice=PUBLISHED,
            url=url,
            save_as=f"{self.identity.removeprefix('timm:')}{Path(url).suffix}",
            publisher="timm",
            licence=configuration.license or "unknown",
            trained_on=_data_sets(configuration.tag or ""),
        )

    def network(self) -> nn.Module:
        import timm

        return timm.create_model(self._name)

    def filled(self, path: Path) -> nn.Module:
        """timm renames the keys of the models' original files where it knows them."""
        import timm
        import torch

        from vqbank.extractors.loading import check_keys, load_state_dict

        state = load_state_dict(path, self.file)
        try:
            return timm.create_model(
                self._name, pretrained=True, pretrained_cfg_overlay={"state_dict": state}
            )
        except (RuntimeError, LookupError) as error:
            with torch.device("meta"):
                check_keys(self.network().state_dict(), state, path)
            raise WeightsError(f"{path} holds the weights of another network: {error}") from error

    def pooled(self, network: nn.Module, pixels: Tensor) -> Tensor:
        features: Any = network
        return features.forward_head(features.forward_features(pixels), pre_logits=True)


class _Torchvision(Library):
    def __init__(self, name: str) -> None:
        from torchvision import models

        self.is_video = name.startswith("video/")
        self._name, _, tag = name.removeprefix("video/").partition(".")
        known = models.list_models(module=models.video if self.is_video else models)
        if self._name not in known:
            prefix = "video/" if self.is_video else ""
            videos = [f"video/{video}" for video in models.list_models(module=models.video)]
            raise _unknown("torchvision", f"{prefix}{self._name}", [*known, *videos])
        choices = models.get_model_weights(self._name)
        if tag and tag not in choices.__members__:
            raise UnknownNameError(unknown_name(f"weights of {name}", tag, choices.__members__))
        weights = choices[tag] if tag else choices.DEFAULT
        self.identity = (
            f"torchvision:{'video/' if self.is_video else ''}{self._name}.{weights.name}"
        )
        preset = weights.transforms()
        crop = preset.crop_size * (2 if len(preset.crop_size) == 1 else 1)
        sides = preset.resize_size
        self.view = ResizeCrop(
            sides[0] if len(sides) == 1 else (sides[0], sides[1]),
            (crop[0], crop[1]),
            _interpolation(self.identity, preset.interpolation.value),
            antialias=not self.is_video and bool(preset.antialias),
        )
        self.mean, self.std = _triple(preset.mean), _triple(preset.std)
        self.file = WeightFile(
            choice=PUBLISHED,
            url=weights.url,
            save_as=weights.url.rsplit("/", 1)[-1],
            publisher="PyTorch, torchvision",
            licence="BSD-3-Clause",
            trained_on=_data_sets(weights.name),
            sha256_begins=Path(weights.url).stem.rpartition("-")[2],
        )

    def network(self) -> nn.Module:
        return self._headless(self._whole())

    def filled(self, path: Path) -> nn.Module:
        import torch

        from vqbank.extractors.loading import check_keys, load_state_dict

        network = self._whole()
        expected = network.state_dict()
        # The files of densenets are older than the names of their layers.
        state = {
            re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): value
            for key, value in load_state_dict(path, self.file).items()
        }
        # As torch does for files from before it counted batches.
        for key in expected.keys() - state.keys():
            if key.endswith(".num_batches_tracked"):
                state[key] = torch.zeros_like(expected[key])
        check_keys(expected, state, path)
        network.load_state_dict(state)
        return self._headless(network)

    def _headless(self, network: nn.Module) -> nn.Module:
        """Without the last linear layer, before which all but a few of its models have pooled."""
        from torch import nn

        linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise RecipeError(f"backbone: {self.identity} has no linear classifier to take off")
        network.set_submodule(linear[-1], nn.Identity())
        return network

    def _whole(self) -> nn.Module:
        from torchvision import models

        options: dict[str, Any] = {}
        if self._name.startswith("vit_"):  # they want to be told the size of the picture
            options = {"image_size": self.view.crop[0]}
        elif self._name in _INCEPTIONS:
            options = {"transform_input": True, "init_weights": False}
        return models.get_model(self._name, **options)

    def pooled(self, network: nn.Module, pixels: Tensor) -> Tensor:
        return network(pixels.transpose(1, 2) if self.is_video else pixels)


class _Transformers(Library):
    def __init__(self, name: str) -> None:
        from transformers import AutoConfig, AutoImageProcessor

        self.published = name
        digest = hashlib.sha256(self.state_of(name).encode()).hexdigest()
        try:
            folder = Path(name).expanduser()
            self._configuration = AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            processor = AutoImageProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, ImportError) as error:
            raise RecipeError(
                f"backbone: {name} is no model of transformers: {in_words(error)}"
            ) from error
        self.identity = f"transformers:{self._configuration.model_type}:{digest}"
        self.frames = getattr(self._configuration, "num_frames", None)
        self.is_video = self.frames is not None
        self.view = _view_of_processor(name, processor)
        self.mean, self.std = _triple(processor.image_mean), _triple(processor.image_std)
        self.file = WeightFile(
            choice=PUBLISHED,
            url=f"{HUB}models",
            save_as=Path(name).name,
            publisher="unknown (local folder)",
            licence="unknown",
            trained_on=(),
        )

    @staticmethod
    def state_of(name: str) -> str:
        """The two files that describe the model.

        Raises:
            RecipeError: if one of them is missing.
        """
        described = []
        for file in ("config.json", "preprocessor_config.json"):
            path = Path(name).expanduser() / file
            try:
                with open_ordinary(path) as opened:
                    described.append(json.load(opened))
            except (OSError, ValueError) as error:
                raise RecipeError(f"backbone: {path} cannot be read: {in_words(error)}") from error
        return json.dumps(described, sort_keys=True)

    def network(self) -> nn.Module:
        from transformers import AutoModel

        return AutoModel.from_config(self._configuration, trust_remote_code=False)

    def filled(self, path: Path) -> nn.Module:
        """transformers renames keys as for the files it writes itself; heads are left out."""
        import torch

        from vqbank.extractors.loading import load_state_dict

        with torch.device("meta"):
            kind: Any = type(self.network())
        network, found = kind.from_pretrained(
            None,
            config=self._configuration,
            state_dict=load_state_dict(path, self.file),
            output_loading_info=True,
            dtype=torch.float32,
        )
        wrong = {
            what: sorted(map(str, found[what])) for what in ("missing_keys", "mismatched_keys")
        }
        if any(wrong.values()):
            named = ", ".join((wrong["missing_keys"] + wrong["mismatched_keys"])[:5])
            raise WeightsError(
                f"{path} holds the weights of another network; missing or of another shape: {named}"
            )
        return network

    def pooled(self, network: nn.Module, pixels: Tensor) -> Tensor:
        from torch import Tensor

        model: Any = network
        if hasattr(model, "get_image_features"):
            found = model.get_image_features(pixel_values=pixels)
        else:
            found = model(pixel_values=pixels)
        if isinstance(found, Tensor):
            return found
        given = found.get("pooler_output")
        return found.last_hidden_state.mean(dim=1) if given is None else given


LIBRARIES: dict[str, type[Library]] = {
    "timm": _Timm,
    "torchvision": _Torchvision,
    "transformers": _Transformers,
}


@cache
def described(library: str, name: str, state: str) -> Library:
    """What a library says of a model, asked once.

    Args:
        library: a name of LIBRARIES.
        name: of the model.
        state: of its files, from `Library.state_of`.

    Raises:
        UnknownNameError: if the library has no such model.
        RecipeError: if it is one that cannot be used here.
    """
    return LIBRARIES[library](name)


def _data_sets(tag: str) -> tuple[str, ...]:
    """Those that the name of weights tells of; most say how they were trained, not on what."""
    parts = tag.lower().split("_")
    return tuple(dict.fromkeys(_DATA_SETS[part] for part in parts if part in _DATA_SETS))


def _unknown(library: str, name: str, known: list[str]) -> UnknownNameError:
    """Libraries have a thousand models: only the nearest names are listed."""
    near = ", ".join(get_close_matches(name, known, n=3)) or "nothing"
    return UnknownNameError(f"{library} has no model {name!r}; near it is {near}")


def _interpolation(model: str, name: str) -> Literal["bilinear", "bicubic"]:
    if name not in _INTERPOLATIONS:
        raise RecipeError(f"backbone: {model} wants {name!r} interpolation, which is not offered")
    return _INTERPOLATIONS[name]


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


def _view_of_processor(name: str, processor: Any) -> ResizeCrop:
    """What transformers' image processor does to a picture.

    Raises:
        RecipeError: if it does something else than to resize, cut the centre and normalise.
    """
    from PIL.Image import Resampling

    scales = math.isclose(processor.rescale_factor, 1 / 255)
    if not (processor.do_resize and processor.do_rescale and processor.do_normalize and scales):
        raise RecipeError(f"backbone: {name} does not resize, scale to 0...1 and normalise")
    size = {key: value for key, value in dict(processor.size).items() if value is not None}
    cut = dict(processor.crop_size) if processor.do_center_crop else size
    resize: int | tuple[int, int]
    if size.keys() == {"shortest_edge"}:
        resize = size["shortest_edge"]
    elif size.keys() == {"height", "width"}:
        resize = size["height"], size["width"]
    else:
        raise RecipeError(f"backbone: {name} resizes to {size}, which is not offered")
    if not {"height", "width"} <= cut.keys():
        raise RecipeError(f"backbone: {name} gives pictures of no fixed size: {size}")
    interpolation = Resampling(processor.resample).name.lower()
    return ResizeCrop(resize, (cut["height"], cut["width"]), _interpolation(name, interpolation))
