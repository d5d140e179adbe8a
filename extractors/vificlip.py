"""ViFi-CLIP: CLIP's image tower fine-tuned on videos, frame by frame, as DVLTA-VQA uses it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from vqbank.extractors.base import IMPLIED, ClipFn, Output, WeightedExtractor
from vqbank.extractors.clip_towers import (
    CONTEXT,
    EMBEDDING,
    OPENAI_B16,
    TINY_TOWERS,
    architecture,
    published,
    text_bank,
    text_identity,
    to_unit_length,
)
from vqbank.extractors.sampling import SINGLE_FRAMES, ConsecutiveFrames, SegmentCentres
from vqbank.extractors.views import IMAGENET_MEAN, IMAGENET_STD, OpenCvShortSideCrop, normalise
from vqbank.extractors.weights import WeightFile, find_weights, weights_identity
from vqbank.store.schema import FeatureSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vqbank.store.text import TextBank

_TABLE = "token_embedding.weight"
_FRAMES = 32
_PATCH = 16  # pixels, of the tiny tower as well


@dataclass(frozen=True, kw_only=True)
class ViFiClip(WeightedExtractor):
    """ViFi-CLIP ViT-B/16 (CVPR 2023) on 32 frames: [512] of each, not scaled to unit length.

    A video's own feature is the mean of its rows.  `tokens` are all places of a frame, the class
    token first, each normalised and projected as the class token is, which is the feature: maps of
    what it comes from, such as the similarity of every place to a prompt.  The text bank
    "vificlip.text" has the prompts, by the template of the published checkpoint "a photo of a
    NAME.".

    Frames: short side to 256 as OpenCV does it, centre square of 224, statistics of ImageNet, not
    CLIP's.
    """

    weights: str = "k400"
    """"k400", "random", "random-tiny", or the path of a checkpoint of ViFi-CLIP without learnt
    prompts."""
    frames: Literal["centres", "consecutive"] = field(default="centres", metadata=IMPLIED)
    """The middle frame of each of 32 equal parts of the video, as the checkpoint is tested, or 32
    that follow each other, from its middle."""
    token_table: str = field(default="openai", compare=False)
    """Where the text tower's token embeddings come from, which the checkpoint does not hold:
    "openai", or the path of a state dict of OpenAI's ViT-B/16.  Read for the text bank alone, and
    part of its key."""
    prompts: tuple[str, ...] = field(
        default=("a photo of a high quality.", "a photo of a low quality."), compare=False
    )
    """What the text bank holds; without any, the token table is not needed.  No frame's row depends
    on them."""

    name = "vificlip"
    version = 1
    batch_clips = 4
    has_tiny = True
    files = (
        WeightFile(
            choice="k400",
            url="https://github.com/muzairkhattak/ViFi-CLIP",  # the README links to the file
            save_as="vifi_clip_10_epochs_k400_full_finetuned.pth",
            publisher="the authors of ViFi-CLIP",
            licence="MIT",
            trained_on=("WIT-400M", "Kinetics-400"),
            entry="model",
        ),
    )

    @property
    def offers(self) -> tuple[Output, ...]:
        """The feature, and the tokens that it is the first of."""
        places = (self._crop // _PATCH) ** 2
        tokens = Output("tokens", (1 + places, EMBEDDING), usual=False)
        return Output("feature", (EMBEDDING,)), tokens

    @property
    def sampling(self) -> SegmentCentres | ConsecutiveFrames:
        """As `frames` says."""
        return SINGLE_FRAMES[self.frames](_FRAMES)

    @property
    def view(self) -> OpenCvShortSideCrop:
        """Squares of the size that the network takes."""
        return OpenCvShortSideCrop(40 if self.tiny else 256, self._crop, "mmcv")

    @property
    def _crop(self) -> int:
        return 32 if self.tiny else 224

    @property
    def configuration(self) -> Mapping[str, Any]:
        """Sizes of both towers, in open_clip's words: CLIP ViT-B/16 as OpenAI trained it."""
        return TINY_TOWERS if self.tiny else published("ViT-B-16-quickgelu")

    def load(self, *, with_table: bool) -> torch.nn.Module:
        """The network on the CPU, filled with the weights.

        Args:
            with_table: whether the token table is read too; without it there is no text.

        Raises:
            WeightsError: if a file is missing, unsafe or of another network.
        """
        import torch

        from vqbank.extractors.loading import check_keys, random_weights, stream_state_dict

        if self.is_random:
            with random_weights():
                return architecture(self.configuration)
        path = find_weights(self.weights, *self.files, extractor=self.name, has_tiny=True)
        state = our_keys(dict(stream_state_dict(path, *self.files)))
        with torch.device("meta"):
            network = architecture(self.configuration)
        expected = network.state_dict()
        table = {_TABLE: expected.pop(_TABLE)}
        check_keys(expected, state, path)
        if with_table:
            found = self._table_path()
            own = {k: v.float() for k, v in stream_state_dict(found, OPENAI_B16) if k == _TABLE}
            check_keys(table, own, found)
            state |= own
        network.load_state_dict(state, strict=with_table, assign=True)
        return network

    def _table_path(self) -> Any:
        return find_weights(self.token_table, OPENAI_B16, extractor=f"{self.name}'s token_table")

    @property
    def modules(self) -> tuple[str, ...]:
        """open_clip."""
        return ("open_clip",)

    def build(self, device: torch.device) -> ClipFn:
        """The image tower.

        Raises:
            WeightsError: as `load`.
        """
        import torch

        tower: Any = self.load(with_table=False).visual
        tower = tower.to(device).eval().requires_grad_(False)

        wanted = {output.name for output in self.wanted}
        last = self.configuration["vision_cfg"]["layers"] - 1

        def embed(clips: Tensor) -> Mapping[str, Tensor]:
            pictures = normalise(clips[:, 0], IMAGENET_MEAN, IMAGENET_STD)
            return {"feature": tower(pictures)[:, None]}

        def with_places(clips: Tensor) -> Mapping[str, Tensor]:
            found = tower.forward_intermediates(
                normalise(clips[:, 0], IMAGENET_MEAN, IMAGENET_STD),
                indices=[last],
                output_fmt="NLC",
                output_extra_tokens=True,
            )
            first, others = found["image_intermediates_prefix"][0], found["image_intermediates"][0]
            tokens = tower.ln_post(torch.cat([first, others], dim=1)) @ tower.proj
            rows = {"feature": found["image_features"], "tokens": tokens}
            return {name: value[:, None] for name, value in rows.items() if name in wanted}

        return with_places if "tokens" in wanted else embed

    def text_spec(self) -> FeatureSpec | None:
        """The identity of the text bank of the prompts; None where there are none.

        Raises:
            WeightsError: if the weights or the token table are not at hand.
        """
        from vqbank.store.text import text_spec

        if not self.prompts:
            return None
        table = {}
        if not self.is_random:
            extractor = f"{self.name}'s token_table"
            table["token_table"] = weights_identity(
                self.token_table, OPENAI_B16, extractor=extractor
            )
        parameters = {**table, **self.parameters()}
        identity = text_identity(self.name, self.version, CONTEXT, parameters)
        return text_spec(f"{self.name}.text", self.prompts, EMBEDDING, identity, **self.origin())

    def text(self, device: torch.device) -> TextBank:
        """The prompts through the text tower.

        Raises:
            WeightsError: as `load`.
        """
        network: Any = self.load(with_table=True).to(device).eval()
        return text_bank(
            to_unit_length(network.encode_text),
            network.logit_scale,
            self.prompts,
            context=CONTEXT,
            precision=self.precision(device),
        )


def our_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of ViFi-CLIP under OpenAI's names, in float32; without what it learnt to prompt.

    `prompt_learner.complete_text_embeddings` holds token embeddings of the classes that the
    checkpoint was trained on, and no part of the network.
    """
    ours = {}
    for official, value in state.items():
        key = official.removeprefix("module.")
        if key.startswith("prompt_learner."):
            continue
        key = key.replace("image_encoder.", "visual.", 1) if key.startswith("image_") else key
        ours[key.removeprefix("text_encoder.")] = value.float()
    return ours
