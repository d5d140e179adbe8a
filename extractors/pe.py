"""Perception Encoder: what Q-CLIP reads of eight frames, and the state after one of its blocks."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from vqbank.extractors.base import ClipFn, Output, WeightedExtractor
from vqbank.extractors.sampling import FRAME_SAMPLINGS, MotionSampling, Sampling
from vqbank.extractors.tail import open_clip_text, tower
from vqbank.extractors.views import normalise
from vqbank.extractors.weights import (
    WeightFile,
    check_keys,
    find_weights,
    random_weights,
    stream_state_dict,
)
from vqbank.store.errors import UnknownNameError, unknown_name
from vqbank.store.schema import FeatureSpec
from vqbank.store.tail import Tail
from vqbank.store.text import TextBank, text_spec

LEVELS = tuple(
    f"X X X a video of {level} quality" for level in ("bad", "poor", "fair", "good", "excellent")
)
"""[5]: Q-CLIP's prompts in the order of its code; it learns what stands in place of the Xs."""
_HALF = (0.5, 0.5, 0.5)  # mean and standard deviation of the pictures
_BLOCKS = 24
_CONTEXT = 32  # tokens of a prompt
_VOCABULARY = 49408
_POOL_HEADS = 8
_COUNT = 8  # frames of a video
_PATCH = 14


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Of a network of this kind; each has 24 blocks in its image tower and patches of 14 x 14."""

    side: int
    width: int
    heads: int
    embedding: int
    text_width: int
    text_heads: int
    text_layers: int

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.side // _PATCH

    @property
    def tokens(self) -> int:
        return self.grid**2 + 1


_LARGE = _Sizes(336, 1024, 16, 1024, 1024, 16, 24)  # PE-Core-L14-336
_TINY = _Sizes(56, 32, 4, 32, 16, 2, 2)


@dataclass(frozen=True, slots=True)
class PilSquash:
    """Both sides to a size, bilinear with antialiasing, to the last bit as Pillow does it.

    Pillow's `Image.resize`: weights of 22 bits, rounded to 8 bits after the rows and again after
    the columns.  That is Pillow 11; Pillow 13 takes the columns of some portrait pictures first,
    which moves a value by at most one level.
    """

    side: int

    def __call__(self, frames: Tensor) -> Tensor:
        """[k, 3, side, side]."""
        height, width = frames.shape[-2:]
        across = torch.from_numpy(_pil_weights(width, self.side)).to(frames.device)
        down = torch.from_numpy(_pil_weights(height, self.side)).to(frames.device)
        # Whole numbers below 2^53: double precision is exact in whatever order it sums.
        return torch.stack(
            [_rounded(down @ _rounded(f.double() @ across.T)) for f in frames]
        ).byte()


def _rounded(sums: Tensor) -> Tensor:
    return ((sums + 2**21) / 2**22).floor_().clamp_(0, 255)


def _pil_weights(length: int, target: int) -> NDArray[np.float64]:
    """[target, length], whole numbers: how much of each old pixel is in each new one, by 2^22."""
    scale = length / target
    reach = max(scale, 1.0)
    weights = np.zeros((target, length))
    for place in range(target):
        centre = (place + 0.5) * scale
        first = max(0, int(centre - reach + 0.5))
        last = min(length, int(centre + reach + 0.5))
        # In Pillow's order, as the last bit decides how halves are rounded.
        distance = (np.arange(first, last) - centre + 0.5) * (1 / reach)
        share = np.maximum(0.0, 1 - np.abs(distance))
        weights[place, first:last] = np.floor(share / sum(share.tolist()) * 2**22 + 0.5)
    return weights


class PeCore(nn.Module):
    """Image and text tower of PE-Core, of the parts that open_clip makes it of.

    Args of the constructor:
        sizes: of both towers.
        rope: as for `Pe`.
    """

    def __init__(self, sizes: _Sizes, rope: Literal["official", "qclip"] = "official") -> None:
        super().__init__()
        import timm
        from open_clip.transformer import TextTransformer

        with torch.device("cpu"):  # the table of rotations, which no file holds
            self.trunk: Any = timm.create_model(
                "vit_pe_core_large_patch14_336",
                img_size=sizes.side,
                embed_dim=sizes.width,
                num_heads=sizes.heads,
                ref_feat_shape=(sizes.grid, sizes.grid),
                num_classes=0,
            )
        self.proj = nn.Parameter(torch.randn(sizes.width, sizes.embedding) * sizes.width**-0.5)
        self.text = TextTransformer(
            context_length=_CONTEXT,
            vocab_size=_VOCABULARY,
            width=sizes.text_width,
            heads=sizes.text_heads,
            layers=sizes.text_layers,
            output_dim=sizes.embedding,
        )
        with torch.device("cpu"):  # nor the causal mask
            self.text.attn_mask = self.text.build_causal_mask()
        self.logit_scale = nn.Parameter(torch.zeros(()))
        if rope == "qclip":
            self.trunk.rope.pos_embed = self.rotation(rope)
            for block in self.trunk.blocks:
                block.attn.num_prefix_tokens = 0

    def rotation(self, rope: Literal["official", "qclip"]) -> Tensor:
        """[n, 2 d / heads]: sines and cosines for every token; one of them is not rotated."""
        table = self.trunk.rope.pos_embed
        if len(table) > self.trunk.patch_embed.num_patches:  # it has the token already
            return table
        sine, cosine = table[:1].chunk(2, dim=-1)
        still = torch.cat([torch.zeros_like(sine), torch.ones_like(cosine)], dim=-1)
        return torch.cat([still, table] if rope == "official" else [table, still])

    def states(self, pictures: Tensor, last: int) -> Iterator[Tensor]:
        """The states [b, n, d] after block 0, 1, ..., `last` of normalised pictures."""
        state, rotation = self.trunk._pos_embed(self.trunk.patch_embed(pictures))
        state = self.trunk.norm_pre(state)
        for block in self.trunk.blocks[: last + 1]:
            state = block(state, rope=rotation)
            yield state

    def pool(self, state: Tensor) -> Tensor:
        """[b, d] of the state after the last block."""
        return self.trunk.forward_head(self.trunk.norm(state), pre_logits=True)


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
    cut: Annotated[int, Field(ge=0, lt=_BLOCKS)] = 18
    """The block after which `tokens` is taken, counted from 0.  Q-CLIP's code has its first adapter
    behind block 18; the paper has it beside block 18, which needs the state after 17."""
    frames: str = "uniform"
    """Which eight frames: a name in FRAME_SAMPLINGS."""
    rope: Literal["official", "qclip"] = "official"
    """Which row of the table rotates which token.  Q-CLIP's release has a copy of the network from
    before Meta's correction: there the class token is rotated as the first patch, every patch as
    the next one, and the last not at all."""
    prompts: tuple[str, ...] = field(default=LEVELS, compare=False)
    """Of the text bank, and those whose tokens the tail keeps.  No frame's row depends on them."""

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
    cut_output = "tokens"

    @property
    def sizes(self) -> _Sizes:
        """Of both towers."""
        return _TINY if self.tiny else _LARGE

    @property
    def offers(self) -> tuple[Output, ...]:
        """`pooled`, `feature` and `tokens`."""
        sizes = self.sizes
        return (
            Output("pooled", (sizes.width,)),
            Output("feature", (sizes.embedding,)),
            Output("tokens", (sizes.tokens, sizes.width), usual=False),
        )

    @property
    def sampling(self) -> Sampling | MotionSampling:
        """Eight frames.

        Raises:
            UnknownNameError: if there is no such rule.
        """
        if self.frames not in FRAME_SAMPLINGS:
            raise UnknownNameError(unknown_name("choice of frames", self.frames, FRAME_SAMPLINGS))
        return FRAME_SAMPLINGS[self.frames](_COUNT)

    @property
    def view(self) -> PilSquash:
        """Squares of the size that the network takes."""
        return PilSquash(self.sizes.side)

    @property
    def tail_prompts(self) -> tuple[str, ...]:
        """The prompts."""
        return self.prompts

    def parameters(self) -> dict[str, Any]:
        """As for every extractor, without what sampling and `specs` say."""
        parameters = super().parameters()
        del parameters["cut"], parameters["frames"]
        return parameters

    def specs(self, *, decoder: str, motion: str = "") -> dict[str, FeatureSpec]:
        """As for every extractor; the block of the cut stands in the key of the tokens alone.

        Raises:
            WeightsError: if the weights are not at hand.
            UnknownNameError: if there is no such rule for the frames.
        """
        specs = super().specs(decoder=decoder, motion=motion)
        if "tokens" in specs:
            identity = {**specs["tokens"].identity, "cut": self.cut}
            specs["tokens"] = replace(specs["tokens"], identity=identity)
        return specs

    def load(self) -> PeCore:
        """Both towers on the CPU, filled with the weights.

        Raises:
            WeightsError: if the file is missing, unsafe or of another network.
        """
        if self.is_random:
            with random_weights():
                network = PeCore(self.sizes, self.rope)
                # timm starts so small that features vanish in half precision.
                for weight in network.trunk.parameters():
                    if weight.ndim > 1:
                        nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
            return network
        path = find_weights(self.weights, *self.files, extractor=self.name, has_tiny=True)
        state = our_keys(dict(stream_state_dict(path, *self.files)))
        with torch.device("meta"):
            network = PeCore(self.sizes, self.rope)
        check_keys(network.state_dict(), state, path)
        network.load_state_dict(state, assign=True)
        return network

    @property
    def modules(self) -> tuple[str, ...]:
        """timm and open_clip."""
        return ("timm", "open_clip.transformer")

    def build(self, device: torch.device) -> ClipFn:
        """The image tower, as far as it is wanted.

        Raises:
            WeightsError: as `load`.
        """
        wanted = {output.name for output in self.wanted}
        network = self.load()
        del network.text
        network = network.to(device).eval().requires_grad_(False)
        last = self.cut if wanted == {"tokens"} else _BLOCKS - 1

        def encode(clips: Tensor) -> Mapping[str, Tensor]:
            rows = {}
            for block, state in enumerate(
                network.states(normalise(clips[:, 0], _HALF, _HALF), last)
            ):
                if block == self.cut:
                    rows["tokens"] = state
            if last == _BLOCKS - 1:
                rows["pooled"] = network.pool(state)
                rows["feature"] = rows["pooled"] @ network.proj
            return {name: values[:, None] for name, values in rows.items() if name in wanted}

        return encode

    def text_spec(self) -> FeatureSpec | None:
        """The identity of the text bank of the prompts; None where there are none.

        Raises:
            WeightsError: if the weights are not at hand.
        """
        if not self.prompts:
            return None
        parameters = self.parameters()
        del parameters["rope"]
        identity = {
            "extractor": self.name,
            "version": self.version,
            "tokenizer": "OpenAI CLIP, lower-cased byte pairs",
            "context_length": _CONTEXT,
            **parameters,
        }
        width = self.sizes.embedding
        return text_spec(f"{self.name}.text", self.prompts, width, identity, **self.origin())

    def text(self, device: torch.device) -> TextBank:
        """The prompts through the text tower.

        Raises:
            WeightsError: as `load`.
        """
        network = self.load().to(device).eval()
        with torch.inference_mode(), self.precision(device):
            rows = network.text(tokens_of(self.prompts).to(device)).float()
            scale = network.logit_scale.exp().item()
        unit = nn.functional.normalize(rows, dim=-1)
        return TextBank(self.prompts, unit.cpu().numpy(), scale)

    def tail(self) -> Tail:
        """Blocks behind the cut with their pooling, the text tower, and the prompts' tokens.

        Raises:
            WeightsError: as `load`.
        """
        network, sizes = self.load(), self.sizes
        state = {
            key.replace("transformer.resblocks.", "blocks."): value
            for key, value in official_keys(network.state_dict()).items()
            if key.startswith("visual.")
        }
        ours = {}
        for key, value in state.items():
            key = re.sub(r"^visual\.", "", key).replace("attn_pool.attn.", "attn_pool.")
            block = re.match(r"blocks\.(\d+)\.", key)
            behind = int(block[1]) > self.cut if block else key.startswith(_BEHIND_BLOCKS)
            if behind:
                ours[key] = value
        ours["rotation"] = network.rotation(self.rope)
        image = tower(
            ours,
            width=sizes.width,
            heads=sizes.heads,
            hidden=4 * sizes.width,
            activation="gelu",
            cut=self.cut,
            layers=_BLOCKS,
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
            context=_CONTEXT,
            vocabulary=_VOCABULARY,
        )
        tokens = zip(self.prompts, tokens_of(self.prompts).tolist(), strict=True)
        return Tail({"image": image, "text": text}, dict(tokens))


_BEHIND_BLOCKS = ("ln_post.", "attn_pool.", "proj")


def tokens_of(prompts: tuple[str, ...]) -> Tensor:
    """Token numbers [n, 32]; of a longer prompt the last one is the end."""
    return _tokenizer()(list(prompts), _CONTEXT)


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    import open_clip

    return open_clip.SimpleTokenizer()


# Meta's names of the image tower's parts, and timm's, which stand in PeCore.
_NAMES = (
    ("visual.conv1.", "trunk.patch_embed.proj."),
    ("visual.class_embedding", "trunk.cls_token"),
    ("visual.positional_embedding", "trunk.pos_embed"),
    ("visual.ln_pre.", "trunk.norm_pre."),
    ("visual.ln_post.", "trunk.norm."),
    ("visual.attn_pool.probe", "trunk.attn_pool.latent"),
    ("visual.attn_pool.layernorm.", "trunk.attn_pool.norm."),
    ("visual.attn_pool.attn.out_proj.", "trunk.attn_pool.proj."),
    ("visual.attn_pool.mlp.c_fc.", "trunk.attn_pool.mlp.fc1."),
    ("visual.attn_pool.mlp.c_proj.", "trunk.attn_pool.mlp.fc2."),
    ("visual.transformer.resblocks.", "trunk.blocks."),
)
_BLOCK_NAMES = (
    (".ln_1.", ".norm1."),
    (".ln_2.", ".norm2."),
    (".attn.in_proj_", ".attn.qkv."),
    (".attn.out_proj.", ".attn.proj."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
)
_POOL = "visual.attn_pool.attn.in_proj_"


def our_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under the names of `PeCore`, in float32.

    Args:
        state: under Meta's keys (`visual.conv1.weight`, ...), with or without the prefix "module.",
            or under open_clip's (`visual.trunk.`, `text.`).
    """
    ours = {}
    for official, value in state.items():
        value = value.float()
        key = official.removeprefix("module.")
        if key == "visual.trunk.head.weight":
            ours["proj"] = value.T.contiguous()
        elif key == "visual.trunk.head.bias" and not value.any():
            continue  # timm's, where Meta has none
        elif key.startswith(("visual.trunk.", "text.")) or key == "logit_scale":
            ours[key.removeprefix("visual.")] = value
        elif key == "visual.proj":
            ours["proj"] = value
        elif key.startswith(_POOL):  # the query's third stands for itself
            width = len(value) // 3
            part = key.removeprefix(_POOL)
            ours[f"trunk.attn_pool.q.{part}"] = value[:width]
            ours[f"trunk.attn_pool.kv.{part}"] = value[width:]
        elif key.startswith("visual."):
            name = next((key.replace(a, b, 1) for a, b in _NAMES if key.startswith(a)), key)
            if name.startswith("trunk.blocks."):
                name = next((name.replace(a, b) for a, b in _BLOCK_NAMES if a in name), name)
            elif name == "trunk.cls_token":
                value = value[None, None]
            elif name == "trunk.pos_embed":
                value = value[None]
            ours[name] = value
        else:
            ours[f"text.{key}"] = value
    return ours


def official_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The other way round: Meta's state dict of ours."""
    official = {}
    for name, value in state.items():
        key = name.removeprefix("text.")
        if match := re.fullmatch(r"trunk\.attn_pool\.q\.(\w+)", name):
            value = torch.cat([value, state[f"trunk.attn_pool.kv.{match[1]}"]])
            key = f"{_POOL}{match[1]}"
        elif name.startswith("trunk.attn_pool.kv."):
            continue
        elif name == "proj":
            key = "visual.proj"
        elif name.startswith("trunk."):
            key = next(name.replace(b, a, 1) for a, b in _NAMES if name.startswith(b))
            if name.startswith("trunk.blocks."):
                key = next(key.replace(b, a) for a, b in _BLOCK_NAMES if b in key)
            elif name == "trunk.cls_token":
                value = value[0, 0]
            elif name == "trunk.pos_embed":
                value = value[0]
        official[key] = value
    return official
