"""Perception Encoder: what Q-CLIP reads of eight frames, and the state after one of its blocks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from vqbank.extractors.base import IMPLIED, ClipFn, Output, WeightedExtractor
from vqbank.extractors.clip_towers import text_bank, text_identity, to_unit_length, tokens_of
from vqbank.extractors.frame_sampling import FRAME_SAMPLINGS, Draws
from vqbank.extractors.networks.sizes import PeSizes
from vqbank.extractors.sampling import MotionSampling, Sampling
from vqbank.extractors.tail import open_clip_text, tower
from vqbank.extractors.views import Squash, normalise
from vqbank.extractors.weights import WeightFile
from vqbank.store.errors import UnknownNameError, unknown_name
from vqbank.store.schema import FeatureSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vqbank.extractors.networks.pe_core import PeCore
    from vqbank.store.tail import Tail
    from vqbank.store.text import TextBank

_WORDS = ("bad", "poor", "fair", "good", "excellent")
LEVELS = tuple(f"X X X a video of {level} quality" for level in _WORDS)
"""[5]: Q-CLIP's prompts in the order of its code; it learns what stands in place of the Xs."""
COMPARED = tuple(
    f"{context}a video of {level} quality"
    for context in ("X X X ", "")
    for level in (*_WORDS, "low", "high")
)
"""Five levels and an antonym pair, with words to learn and without."""
_HALF = (0.5, 0.5, 0.5)  # mean and standard deviation of the pictures
_POOL_HEADS = 8
_COUNT = 8  # frames of a video

_LARGE = PeSizes(336, 1024, 16, 1024, 1024, 16, 24)  # PE-Core-L14-336
_TINY = PeSizes(56, 32, 4, 32, 32, 2, 24)  # both towers of one width and depth, as adapters need


@dataclass(frozen=True, kw_only=True)
class Pe(WeightedExtractor):
    """PE-Core-L/14 at 336 pixels (arXiv 2504.13181) on eight frames of a video, as Q-CLIP uses it.

    `pooled` is what attention pooling makes of a frame, `feature` its projection into the space of
    the text, not scaled to unit length.  `tokens` is the state of all tokens after block `cut`, the
    class token first: what Q-CLIP's adapters go on from, with the tail that is banked beside it.
    The text bank "pe.text" has the prompts.

    Frames become squares without regard to the aspect ratio, as Pillow resizes.
    """

    weights: str = "facebook"
    """"facebook", "timm", "random", "random-tiny", or the path of a file like either."""
    cut: Annotated[int, Field(ge=0, lt=_LARGE.layers)] = field(default=18, metadata=IMPLIED)
    """The block after which `tokens` is taken, counted from 0.  Q-CLIP's code has its first adapter
    behind block 18; the paper has it beside block 18, which needs the state after 17."""
    frames: str = field(default="uniform", metadata=IMPLIED)
    """Name of the rule for the eight frames, as in FRAME_SAMPLINGS."""
    draws: Annotated[int, Field(ge=1, le=64)] = field(default=1, metadata=IMPLIED)
    """Of rules that draw frames at random: how many choices are banked, one after the other.  A
    head takes another one at every step."""
    rope: Literal["official", "qclip"] = "official"
    """Which row of the table rotates which token.  Q-CLIP's release has a copy of the network from
    before Meta's correction: there the class token is rotated as the first patch, every patch as
    the next one, and the last not at all."""
    prompts: tuple[str, ...] = field(default=LEVELS, compare=False)
    """What the text bank holds, and whose tokens the tail keeps.  No row depends on them."""

    name = "pe"
    version = 1
    batch_clips = 2
    has_tiny = True
    files = (
        WeightFile(
            choice="facebook",
            url="https://huggingface.co/facebook/PE-Core-L14-336/resolve/main/PE-Core-L14-336.pt",
            save_as="PE-Core-L14-336.pt",
            publisher="Meta",
            licence="Apache-2.0",
            trained_on=("MetaCLIP", "PE Video Dataset"),
        ),
        WeightFile(
            choice="timm",
            url="https://huggingface.co/timm/PE-Core-L-14-336/resolve/main/open_clip_model.safetensors",
            save_as="PE-Core-L-14-336.open_clip.safetensors",
            publisher="Meta, converted by timm",
            licence="Apache-2.0",
            trained_on=("MetaCLIP", "PE Video Dataset"),
        ),
    )
    cut_outputs = ("tokens", "pooled")

    @property
    def sizes(self) -> PeSizes:
        """Sizes of both towers."""
        return _TINY if self.tiny else _LARGE

    @property
    def offers(self) -> tuple[Output, ...]:
        """`pooled`, `feature` and `tokens`."""
        sizes = self.sizes
        return (
            Output("pooled", (sizes.width,)),
            Output("feature", (sizes.embedding,)),
            Output(
                "tokens",
                (sizes.tokens, sizes.width),
                usual=False,
                identity=lambda: {"cut": self.cut},
            ),
        )

    @property
    def sampling(self) -> Sampling | MotionSampling:
        """Eight frames, or as many choices of eight as `draws`.

        Raises:
            UnknownNameError: if there is no such rule.
            RecipeError: if several draws are asked of a rule that draws nothing.
        """
        if self.frames not in FRAME_SAMPLINGS:
            raise UnknownNameError(unknown_name("choice of frames", self.frames, FRAME_SAMPLINGS))
        rule = FRAME_SAMPLINGS[self.frames](_COUNT)
        return rule if self.draws == 1 else Draws.of(rule, self.draws)

    @property
    def view(self) -> Squash:
        """Squares of the size that the network takes."""
        return Squash(self.sizes.side, self.sizes.side)

    @property
    def tail_prompts(self) -> tuple[str, ...]:
        """The prompts, and all that Q-CLIP compares with in its Table 4."""
        return tuple(dict.fromkeys((*self.prompts, *COMPARED)))

    def described_view(self) -> Any:
        """As for every extractor, under the name that this resize had when it was first banked.

        It was a view of this extractor alone, with Pillow's pixels to the last bit, as now.
        """
        described = super().described_view()
        if self.view != Squash(self.sizes.side, self.sizes.side):
            return described
        return {"kind": "PilSquash", "side": described["height"]}

    def parameters(self) -> dict[str, Any]:
        """As for every extractor; the tiny form had another text tower at first."""
        found = super().parameters()
        return {**found, "text_layers": self.sizes.text_layers} if self.tiny else found

    def load(self) -> PeCore:
        """Both towers on the CPU, filled with the weights.

        Raises:
            WeightsError: if the file is missing, unsafe or of another network.
        """
        from vqbank.extractors.networks.pe_core import our_keys

        return self.network(self._architecture, renamed=our_keys)

    def _architecture(self) -> PeCore:
        from torch import nn

        from vqbank.extractors.networks.pe_core import PeCore

        network = PeCore(self.sizes, self.rope)
        if self.is_random:
            # timm starts so small that features vanish in half precision.
            for weight in network.trunk.parameters():
                if weight.ndim > 1:
                    nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
        return network

    @property
    def modules(self) -> tuple[str, ...]:
        """The network, of parts of timm and open_clip."""
        return ("timm", "open_clip.transformer", "vqbank.extractors.networks.pe_core")

    def build(self, device: torch.device) -> ClipFn:
        """The image tower, as far as it is wanted.

        Raises:
            WeightsError: as `load`.
        """
        wanted = {output.name for output in self.wanted}
        network = self.load()
        del network.text
        network = network.to(device).eval().requires_grad_(False)
        end = self.sizes.layers - 1
        last = self.cut if wanted == {"tokens"} else end

        def encode(clips: Tensor) -> Mapping[str, Tensor]:
            rows = {}
            for block, state in enumerate(
                network.states(normalise(clips[:, 0], _HALF, _HALF), last)
            ):
                if block == self.cut:
                    rows["tokens"] = state
            if last == end:
                rows["pooled"] = network.pool(state)
                rows["feature"] = rows["pooled"] @ network.proj
            return {name: values[:, None] for name, values in rows.items() if name in wanted}

        return encode

    def text_spec(self) -> FeatureSpec | None:
        """The identity of the text bank of the prompts; None where there are none.

        Raises:
            WeightsError: if the weights are not at hand.
        """
        from vqbank.extractors.networks.pe_core import CONTEXT
        from vqbank.store.text import text_spec

        if not self.prompts:
            return None
        parameters = {key: value for key, value in self.parameters().items() if key != "rope"}
        identity = text_identity(self.name, self.version, CONTEXT, parameters)
        width = self.sizes.embedding
        return text_spec(f"{self.name}.text", self.prompts, width, identity, **self.origin())

    def text(self, device: torch.device) -> TextBank:
        """The prompts through the text tower.

        Raises:
            WeightsError: as `load`.
        """
        from vqbank.extractors.networks.pe_core import CONTEXT

        network = self.load().to(device).eval()
        return text_bank(
            to_unit_length(network.text),
            network.logit_scale,
            self.prompts,
            context=CONTEXT,
            precision=self.precision(device),
        )

    def tail(self, output: str) -> Tail:
        """Blocks behind the cut with their pooling, the text tower, and the prompts' tokens.

        `pooled` is a cut behind the last block, of which heads take the projection.

        Raises:
            WeightsError: as `load`.
        """
        from vqbank.extractors.networks.pe_core import CONTEXT, VOCABULARY, official_keys
        from vqbank.store.tail import Tail

        network, sizes = self.load(), self.sizes
        cut = self.cut if output == "tokens" else sizes.layers - 1
        state = {
            key.replace("transformer.resblocks.", "blocks."): value
            for key, value in official_keys(network.state_dict()).items()
            if key.startswith("visual.")
        }
        ours = {}
        for key, value in state.items():
            key = re.sub(r"^visual\.", "", key).replace("attn_pool.attn.", "attn_pool.")
            block = re.match(r"blocks\.(\d+)\.", key)
            behind = int(block[1]) > cut if block else key.startswith(_BEHIND_BLOCKS)
            if behind:
                ours[key] = value
        ours["rotation"] = network.rotation(self.rope)
        image = tower(
            ours,
            width=sizes.width,
            heads=sizes.heads,
            hidden=4 * sizes.width,
            activation="gelu",
            cut=cut,
            layers=sizes.layers,
            embedding=sizes.embedding,
            places=sizes.tokens,
            pool_heads=_POOL_HEADS,
        )
        text = open_clip_text(
            network.text.state_dict(),
            width=sizes.text_width,
            heads=sizes.text_heads,
            hidden=4 * sizes.text_width,
            activation="gelu",
            layers=sizes.text_layers,
            embedding=sizes.embedding,
            context=CONTEXT,
            vocabulary=VOCABULARY,
        )
        prompts = self.tail_prompts
        tokens = zip(prompts, tokens_of(prompts, CONTEXT).tolist(), strict=True)
        return Tail({"image": image, "text": text}, dict(tokens))


_BEHIND_BLOCKS = ("ln_post.", "attn_pool.", "proj")
