"""CLIP: the pooled embedding of frames, and the state of all tokens after a block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from vqbank.extractors.base import IMPLIED, ClipFn, Output, WeightedExtractor
from vqbank.extractors.clip_towers import OPENAI_B32, architecture, tokens_of
from vqbank.extractors.sampling import EveryNth, KeyFrames
from vqbank.extractors.tail import open_clip_early, open_clip_image, open_clip_text
from vqbank.extractors.views import CLIP_MEAN, CLIP_STD, CROPPING, ShortSideCrop, Squash, normalise
from vqbank.extractors.weights import HUB, WeightFile
from vqbank.store.errors import RecipeError, UnknownNameError, unknown_name

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vqbank.store.tail import Tail

_MODEL = "ViT-B-32-quickgelu"  # OpenAI trained with QuickGELU; plain ViT-B-32 has GELU
# What open_clip says of it, repeated so that its keys are computed without importing open_clip.
_CONFIGURATION: dict[str, Any] = {
    "embed_dim": 512,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 512,
        "heads": 8,
        "layers": 12,
    },
}
_PREPROCESSING: dict[str, Any] = {
    "mean": CLIP_MEAN,
    "std": CLIP_STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
# As wide as ViT-B/32 where it ends, so that its rows fit heads, and as deep, so that recipes cut
# both alike.
_TINY: dict[str, Any] = {
    "embed_dim": 512,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": 64,
        "layers": 12,
        "width": 32,
        "head_width": 16,
        "patch_size": 16,
    },
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
_NONE = WeightFile(  # stands for a local file where no weights of a model are published
    choice="",  # that nobody can name
    url="https://github.com/mlfoundations/open_clip",
    save_as="",
    publisher="nobody",
    licence="none",
    trained_on=(),
)
_VIEWS: dict[str, type[ShortSideCrop | Squash]] = {"shortest": ShortSideCrop, "squash": Squash}
# Sizes that OpenAI's own state dict lists beside the tensors of the network.
_SIZES = ("input_resolution", "context_length", "vocab_size")


RAM_PROMPTS = tuple(" ".join([*["X"] * 16, word]) for word in ("excellent", "mediocre", "terrible"))
"""[3]: RAM-VQA's, which learns what stands in place of the Xs."""
# Parts of a configuration that the tail's blocks have, or that stand before any cut.
_PLAIN_IMAGE = {"image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio"}
_PLAIN_TEXT = {"context_length", "vocab_size", "width", "heads", "layers"}


@dataclass(frozen=True, kw_only=True)
class Clip(WeightedExtractor):
    """Image embeddings before they are scaled to unit length, and tokens, of any open_clip model.

    `embedding` is what `encode_image` gives.  `tokens` is the state of all tokens after block
    `cut`, the class token first: what a head goes on from that adapts the later blocks, such as
    RAM-VQA's.  It is offered where the image tower is open_clip's own transformer; ResNets and
    towers that open_clip takes from timm have the embedding only.

    Frames become squares as open_clip's preprocessing for the model and its weights says; for the
    default model as OpenAI's does: short side to 224, bicubic, centre square, CLIP's mean and
    standard deviation.
    """

    weights: str = "openai"
    """A name that open_clip has for published weights of the model, "random", "random-tiny", or the
    path of a file with the whole CLIP: open_clip's safetensors, or a plain state dict under
    OpenAI's keys.  Text tower and logit_scale must be there too, so that a file of another model is
    not taken for this one.  Frames for a local file are preprocessed as for the first published
    weights of the model."""
    model: str = _MODEL
    """A name that open_clip has for a model.  Weights that were trained with QuickGELU need the one
    that ends in "-quickgelu"."""
    cut: Annotated[int, Field(ge=0)] | None = field(default=None, metadata=IMPLIED)
    """The block after which `tokens` is taken, counted from 0; None means the last one."""
    frame_step: Annotated[int, Field(ge=0)] = field(default=0, metadata=IMPLIED)
    """Take frames 0, n, 2n, ... (RAM-VQA: 8); 0 means one frame per second."""
    resize_mode: Literal["shortest", "squash"] | None = field(default=None, metadata=IMPLIED)
    """Short side to size and centre square, or both sides to size (RAM-VQA: "squash"); None means
    as open_clip has it for the model."""
    prompts: tuple[str, ...] = field(default=RAM_PROMPTS, compare=False)
    """Those whose tokens the tail keeps, for heads that learn prompts.  No row depends on them."""
    whole_tail: bool = field(default=False, compare=False)
    """Whether the tail has the tower up to the cut, too, for heads that start layers of their own
    from it (RAM-VQA).  No row depends on it; where it is missing, the next run adds it."""

    name = "clip"
    version = 2
    batch_clips = 8
    has_tiny = True
    files = (OPENAI_B32,)

    @property
    def offers(self) -> tuple[Output, ...]:
        """The embedding, and the tokens where the image tower is open_clip's own transformer.

        Raises:
            UnknownNameError: if open_clip has no such model.
            RecipeError: if it cannot be built without a download.
        """
        embedding = Output("embedding", (self.configuration["embed_dim"],))
        tower = self.configuration["vision_cfg"]
        if "timm_model_name" in tower or not isinstance(tower["layers"], int):
            return (embedding,)
        tokens = (tower["image_size"] // tower["patch_size"]) ** 2 + 1
        shape = (tokens, tower["width"])
        cut = Output("tokens", shape, usual=False, identity=lambda: {"cut": self.block})
        return embedding, cut

    @property
    def sampling(self) -> KeyFrames | EveryNth:
        """Key frames, or every `frame_step`-th frame."""
        return EveryNth(self.frame_step) if self.frame_step else KeyFrames()

    @property
    def view(self) -> ShortSideCrop | Squash:
        """Squares of the size that the model takes."""
        size = self.configuration["vision_cfg"]["image_size"]
        preprocessing = self.preprocessing
        mode = self.resize_mode or preprocessing["resize_mode"]
        return _VIEWS[mode](size, size, preprocessing["interpolation"])

    @property
    def configuration(self) -> dict[str, Any]:
        """Sizes of both towers, in open_clip's words.

        Raises:
            UnknownNameError: if open_clip has no such model.
            RecipeError: if it cannot be built without a download.
        """
        if self.tiny:
            return _TINY
        if self.model == _MODEL:
            return _CONFIGURATION
        import open_clip

        known = open_clip.list_models()
        if self.model not in known:
            raise UnknownNameError(unknown_name("open_clip model", self.model, known))
        configuration = open_clip.get_model_config(self.model)
        if "hf_model_name" in configuration["text_cfg"] or "multimodal_cfg" in configuration:
            raise RecipeError(
                f"clip: open_clip fetches parts of {self.model} from elsewhere, or it writes text; "
                "take a model with two plain towers"
            )
        return configuration

    @property
    def preprocessing(self) -> dict[str, Any]:
        """`mean` and `std` [3] of RGB from 0 to 1, `interpolation` and `resize_mode`.

        Raises:
            RecipeError: as `file`.
        """
        if self.tiny or self.model == _MODEL:
            return _PREPROCESSING
        published = self._published()
        facts = published.get(self.weights, next(iter(published.values()), {}))
        return {key: facts.get(key, usual) for key, usual in _PREPROCESSING.items()}

    @property
    def file(self) -> WeightFile:
        """The published file that is meant; the first of the model where a local one is.

        Raises:
            RecipeError: if the published weights were trained with another activation.
        """
        candidates = self._candidates
        return next((file for file in candidates if file.choice == self.weights), candidates[0])

    @property
    def _candidates(self) -> tuple[WeightFile, ...]:
        if self.tiny or self.model == _MODEL:
            return self.files
        published = self._published().items()
        return tuple(_file(choice, facts["hf_hub"]) for choice, facts in published) or (_NONE,)

    def _published(self) -> dict[str, Mapping[str, Any]]:
        """What open_clip knows of published weights that have the model's activation, by name."""
        import open_clip

        quick = self.configuration.get("quick_gelu", False)
        fitting = {}
        for choice in open_clip.list_pretrained_tags_by_model(self.model):
            facts = open_clip.get_pretrained_cfg(self.model, choice)
            if facts.get("quick_gelu", False) == quick:
                fitting[choice] = facts
            elif choice == self.weights:
                raise RecipeError(
                    f"clip: weights {choice!r} were trained with QuickGELU, which {self.model} "
                    f"does not have; take model {self.model + '-quickgelu'!r}"
                )
        return fitting

    @property
    def block(self) -> int:
        """The block after which the tokens are taken.

        Raises:
            RecipeError: if the tower has no such block.
        """
        last = self.configuration["vision_cfg"]["layers"] - 1
        if self.cut is not None and self.cut > last:
            raise RecipeError(f"clip: cut {self.cut}, but {self.model} has blocks 0 to {last}")
        return last if self.cut is None else self.cut

    def parameters(self) -> dict[str, Any]:
        """As for every extractor; of a model that is named, mean and standard deviation too.

        The default model goes unnamed: it was banked before others could be chosen.
        """
        parameters = super().parameters()
        if self.tiny:  # whose tower had four blocks before
            parameters["layers"] = self.configuration["vision_cfg"]["layers"]
        if self.model == _MODEL:
            del parameters["model"]
            return parameters
        return {**parameters, **{key: list(self.preprocessing[key]) for key in ("mean", "std")}}

    def load(self) -> torch.nn.Module:
        """The whole CLIP on the CPU, filled with the weights; the image tower is its `visual`.

        Raises:
            WeightsError: if the file is missing, unsafe or of another network.
        """
        return self.network(lambda: architecture(self.configuration), renamed=_without_sizes)

    @property
    def cut_outputs(self) -> tuple[str, ...]:
        """The tokens, of models whose towers are made of the parts that a tail has."""
        image, text = self.configuration["vision_cfg"], self.configuration["text_cfg"]
        plain = image.keys() <= _PLAIN_IMAGE and text.keys() <= _PLAIN_TEXT
        return ("tokens",) if plain and isinstance(image["layers"], int) else ()

    @property
    def tail_prompts(self) -> tuple[str, ...]:
        """The prompts."""
        return self.prompts

    @property
    def tail_towers(self) -> tuple[str, ...]:
        """The tower up to the cut, where the tail is to be whole."""
        return ("early",) if self.whole_tail else ()

    def tail(self, output: str) -> Tail:
        """Blocks behind the cut, the text tower, and the prompts' tokens.

        Raises:
            WeightsError: as `load`.
        """
        from vqbank.store.tail import Tail

        network: Any = self.load()
        configuration = self.configuration
        shared = {
            "activation": "quick_gelu" if configuration.get("quick_gelu") else "gelu",
            "embedding": configuration["embed_dim"],
        }
        sizes = configuration["vision_cfg"]
        image = open_clip_image(
            network.visual.state_dict(),
            cut=self.block,
            layers=sizes["layers"],
            width=sizes["width"],
            heads=sizes["width"] // sizes.get("head_width", 64),
            hidden=int(sizes["width"] * sizes.get("mlp_ratio", 4)),
            **shared,
        )
        sizes = configuration["text_cfg"]
        text = open_clip_text(
            getattr(network, "text", network).state_dict(),
            layers=sizes["layers"],
            width=sizes["width"],
            heads=sizes["heads"],
            hidden=4 * sizes["width"],
            context=sizes["context_length"],
            vocabulary=sizes["vocab_size"],
            **shared,
        )
        numbers = tokens_of(self.prompts, sizes["context_length"])
        towers = {"image": image, "text": text}
        if self.whole_tail:
            towers["early"] = open_clip_early(network.visual.state_dict(), cut=self.block)
        return Tail(
            towers,
            dict(zip(self.prompts, numbers.tolist(), strict=True)),
        )

    @property
    def modules(self) -> tuple[str, ...]:
        """open_clip, and torchvision for the view."""
        return ("open_clip", *CROPPING)

    def build(self, device: torch.device) -> ClipFn:
        """The image tower.

        Raises:
            WeightsError: as `load`.
        """
        import torch

        tower: Any = self.load().visual
        tower = tower.to(device).eval().requires_grad_(False)
        mean, std = self.preprocessing["mean"], self.preprocessing["std"]
        wanted = {output.name for output in self.wanted}

        def embed(clips: Tensor) -> Mapping[str, Tensor]:
            return {"embedding": tower(normalise(clips[:, 0], mean, std))[:, None]}

        def cut(clips: Tensor) -> Mapping[str, Tensor]:
            found = tower.forward_intermediates(
                normalise(clips[:, 0], mean, std),
                indices=[self.block],
                stop_early="embedding" not in wanted,
                intermediates_only="embedding" not in wanted,
                output_fmt="NLC",
                output_extra_tokens=True,
            )
            first, others = found["image_intermediates_prefix"][0], found["image_intermediates"][0]
            rows = {"tokens": torch.cat([first, others], dim=1)[:, None]}
            if "embedding" in wanted:
                rows["embedding"] = found["image_features"][:, None]
            return rows

        return cut if "tokens" in wanted else embed


def _without_sizes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key not in _SIZES}


def _file(choice: str, hub: str) -> WeightFile:
    """The file at `owner/repository/` or `owner/repository/name` of Hugging Face."""
    owner, repository, name = hub.split("/")
    name = name or "open_clip_model.safetensors"
    page = f"{HUB}{owner}/{repository}"
    return WeightFile(
        choice=choice,
        url=f"{page}/resolve/main/{name}",
        save_as=repository + PurePosixPath(name).suffix,
        publisher=owner,
        licence=f"see {page}",
        trained_on=(),
    )
