"""mPLUG-Owl2 on LLaMA 2, the network of Q-Align: a ViT, an abstractor and a language model.

Ye et al., "mPLUG-Owl2: Revolutionizing Multi-modal Large Language Model with Modality
Collaboration", CVPR 2024.  Modules bear the names of the official state dict.  Shape letters:
n pictures, t positions, d width.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from vqbank.extractors.networks.sizes import MplugOwl2Sizes

TEXT, IMAGE = 0, 1
"""The two modalities, as the official keys number their own weights."""

Segments = Sequence[tuple[int, int]]
"""Runs of positions of one modality: (TEXT or IMAGE, how many), in order."""

_VISION_EPS = 1e-6
_FEED_FORWARD_EPS = 1e-6  # of the abstractor's inner norm; its other norms have PyTorch's 1e-5
_ROPE_BASE = 10_000.0
_SINE_BASE = 10_000.0


class Past(NamedTuple):
    """What the language model made of earlier positions."""

    hidden: Tensor
    """[1, t, d]: after the final norm."""
    keys_values: tuple[tuple[Tensor, Tensor], ...]
    """Keys, already rotated, and values of every layer: [1, heads, t, d / heads] each."""


class MplugOwl2(nn.Module):
    """The whole network, with the language model's head, which `decode` does not run."""

    model: Any  # a tree of modules

    def __init__(self, configuration: MplugOwl2Sizes) -> None:
        super().__init__()
        c = configuration
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(c.vocabulary, c.width),
                "layers": nn.ModuleList([_DecoderLayer(c) for _ in range(c.layers)]),
                "norm": nn.RMSNorm(c.width, c.rms_norm_eps),
                "vision_model": _VisionTower(c),
                "visual_abstractor": _Abstractor(c),
            }
        )
        self.lm_head = nn.Linear(c.width, c.vocabulary, bias=False)
        self.head_width = c.width // c.heads

    def see(self, pictures: Tensor) -> Tensor:
        """Pictures as the language model reads them.

        Args:
            pictures: [n, 3, image_side, image_side], normalised with CLIP's mean and deviation.

        Returns:
            [n, queries + 1, d], the last one being the learned end of a picture.
        """
        return self.model["visual_abstractor"](self.model["vision_model"](pictures))

    def read(self, ids: Sequence[int]) -> Tensor:
        """Token ids as the language model reads them: [1, t, d]."""
        tokens = self.model["embed_tokens"]
        return tokens(torch.tensor([ids], device=tokens.weight.device))

    def decode(self, embeddings: Tensor, segments: Segments, past: Past | None = None) -> Past:
        """The language model; every position sees itself and what comes before, pictures too.

        Args:
            embeddings: [n, t, d].
            segments: which of the t positions are text and which picture.
            past: what came before them, the same for all n.

        Returns:
            Hidden states and keys and values of the t positions, without those of `past`.
        """
        before = 0 if past is None else past.hidden.shape[1]
        count = embeddings.shape[1]
        visible = torch.ones(count, before + count, dtype=torch.bool, device=embeddings.device)
        visible = visible.tril(before)
        rotation = _rotation(before, count, self.head_width, embeddings)
        hidden, keys_values = embeddings, []
        for number, layer in enumerate(self.model["layers"]):
            earlier = None if past is None else past.keys_values[number]
            hidden, made = layer(hidden, segments, rotation, visible, earlier)
            keys_values.append(made)
        return Past(self.model["norm"](hidden), tuple(keys_values))


class _Multiway(nn.Module):
    """Weights of its own for each modality (modality-adaptive module of mPLUG-Owl2)."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.multiway = nn.ModuleList([make(), make()])

    def forward(self, inputs: Tensor, segments: Segments) -> Tensor:
        parts = inputs.split([length for _, length in segments], dim=1)
        chosen = [self.multiway[modality] for modality, _ in segments]
        return torch.cat([way(part) for way, part in zip(chosen, parts, strict=True)], dim=1)


class _DecoderLayer(nn.Module):
    def __init__(self, c: MplugOwl2Sizes) -> None:
        super().__init__()

        def linear() -> nn.Module:
            return nn.Linear(c.width, c.width, bias=False)

        def norm() -> nn.Module:
            return nn.RMSNorm(c.width, c.rms_norm_eps)

        self.heads = c.heads
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": linear(),
                "k_proj": _Multiway(linear),
                "v_proj": _Multiway(linear),
                "o_proj": linear(),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(c.width, c.inner, bias=False),
                "up_proj": nn.Linear(c.width, c.inner, bias=False),
                "down_proj": nn.Linear(c.inner, c.width, bias=False),
            }
        )
        self.input_layernorm = _Multiway(norm)
        self.post_attention_layernorm = _Multiway(norm)

    def forward(
        self,
        hidden: Tensor,
        segments: Segments,
        rotation: tuple[Tensor, Tensor],
        visible: Tensor,
        earlier: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        attention, mlp = self.self_attn, self.mlp
        inputs = self.input_layernorm(hidden, segments)
        query = _rotate(_heads(attention["q_proj"](inputs), self.heads), rotation)
        key = _rotate(_heads(attention["k_proj"](inputs, segments), self.heads), rotation)
        value = _heads(attention["v_proj"](inputs, segments), self.heads)
        keys, values = key, value
        if earlier is not None:
            keys, values = (
                torch.cat([old.expand(len(new), -1, -1, -1), new], dim=2)
                for old, new in zip(earlier, (key, value), strict=True)
            )
        mixed = scaled_dot_product_attention(query, keys, values, attn_mask=visible)
        hidden = hidden + attention["o_proj"](_joined(mixed))
        inputs = self.post_attention_layernorm(hidden, segments)
        gated = silu(mlp["gate_proj"](inputs)) * mlp["up_proj"](inputs)
        return hidden + mlp["down_proj"](gated), (key, value)


def _rotation(start: int, count: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [count, width] of the rotary embedding (Su et al. 2021), halves rotated."""
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=like.device) / width
    positions = torch.arange(start, start + count, dtype=torch.float32, device=like.device)
    angles = torch.outer(positions, 1 / _ROPE_BASE**exponents).repeat(1, 2)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def _rotate(inputs: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cosines, sines = rotation
    first, second = inputs.chunk(2, dim=-1)
    return inputs * cosines + torch.cat([-second, first], dim=-1) * sines


def _heads(inputs: Tensor, heads: int) -> Tensor:
    """[n, t, d] to [n, heads, t, d / heads]."""
    return inputs.unflatten(-1, (heads, -1)).transpose(1, 2)


def _joined(inputs: Tensor) -> Tensor:
    """[n, heads, t, d / heads] to [n, t, d]."""
    return inputs.transpose(1, 2).flatten(2)


class _VisionTower(nn.Module):
    """A ViT whose first norm comes before the blocks; all its tokens are kept."""

    encoder: Any

    def __init__(self, c: MplugOwl2Sizes) -> None:
        super().__init__()
        self.embeddings = _VisionEmbeddings(c)
        layers = nn.ModuleList([_VisionLayer(c) for _ in range(c.vision_layers)])
        self.encoder = nn.ModuleDict({"layers": layers})
        self.post_layernorm = nn.LayerNorm(c.vision_width, _VISION_EPS)

    def forward(self, pictures: Tensor) -> Tensor:
        """[n, 3, h, w] to [n, 1 + patches, vision width], the class token first."""
        hidden = self.embeddings(pictures)
        for layer in self.encoder["layers"]:
            hidden = layer(hidden)
        return self.post_layernorm(hidden)


class _VisionEmbeddings(nn.Module):
    def __init__(self, c: MplugOwl2Sizes) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, c.vision_width))
        positions = 0.02 * torch.randn(1, 1 + c.grid_side**2, c.vision_width)
        self.position_embedding = nn.Parameter(positions)
        self.patch_embed = nn.Conv2d(3, c.vision_width, c.patch_side, c.patch_side, bias=False)
        self.pre_layernorm = nn.LayerNorm(c.vision_width, _VISION_EPS)

    def forward(self, pictures: Tensor) -> Tensor:
        patches = self.patch_embed(pictures).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        return self.pre_layernorm(tokens + self.position_embedding)


class _VisionLayer(nn.Module):
    def __init__(self, c: MplugOwl2Sizes) -> None:
        super().__init__()
        width = c.vision_width
        self.heads = c.vision_heads
        self.self_attn = nn.ModuleDict(
            {"query_key_value": nn.Linear(width, 3 * width), "dense": nn.Linear(width, width)}
        )
        self.input_layernorm = nn.LayerNorm(width, _VISION_EPS)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, c.vision_inner), "fc2": nn.Linear(c.vision_inner, width)}
        )
        self.post_attention_layernorm = nn.LayerNorm(width, _VISION_EPS)

    def forward(self, hidden: Tensor) -> Tensor:
        fused = self.self_attn["query_key_value"](self.input_layernorm(hidden))
        # Head by head, and within a head query, key, value.
        heads = fused.unflatten(-1, (self.heads, 3, -1)).transpose(1, 2)
        mixed = scaled_dot_product_attention(*heads.unbind(3))
        hidden = hidden + self.self_attn["dense"](_joined(mixed))
        inner = self.mlp["fc1"](self.post_attention_layernorm(hidden))
        return hidden + self.mlp["fc2"](inner * torch.sigmoid(1.702 * inner))  # quick GELU


class _Abstractor(nn.Module):
    """Learned queries gather what the ViT sees into a few positions of the language model."""

    encoder: Any

    def __init__(self, c: MplugOwl2Sizes) -> None:
        super().__init__()
        self.query_embeds = nn.Parameter(torch.randn(1, c.queries, c.vision_width))
        self.vit_eos = nn.Parameter(torch.randn(1, 1, c.width))
        layers = nn.ModuleList([_AbstractorLayer(c) for _ in range(c.abstractor_layers)])
        self.encoder = nn.ModuleDict({"layers": layers})
        self.visual_fc = nn.Linear(c.vision_width, c.width)

    def forward(self, seen: Tensor) -> Tensor:
        """[n, 1 + patches, vision width] to [n, queries + 1, width]."""
        queries = self.query_embeds.expand(len(seen), -1, -1)
        for layer in self.encoder["layers"]:
            queries = layer(queries, seen)
        return torch.cat([self.visual_fc(queries), self.vit_eos.expand(len(seen), -1, -1)], dim=1)


class _AbstractorLayer(nn.Module):
    crossattention: Any

    def __init__(self, c: MplugOwl2Sizes) -> None:
        super().__init__()
        width, inner = c.vision_width, c.abstractor_inner
        mlp = nn.ModuleDict(
            {
                "w1": nn.Linear(width, inner),
                "w2": nn.Linear(inner, width),
                "w3": nn.Linear(width, inner),
                "ffn_ln": nn.LayerNorm(inner, _FEED_FORWARD_EPS),
            }
        )
        output = {"out_proj": nn.Linear(width, width), "norm2": nn.LayerNorm(width), "mlp": mlp}
        self.crossattention = nn.ModuleDict(
            {
                "attention": _CrossAttention(c),
                "output": nn.ModuleDict(output),
                "norm1": nn.LayerNorm(width),
                "normk": nn.LayerNorm(width),
            }
        )

    def forward(self, queries: Tensor, seen: Tensor) -> Tensor:
        parts = self.crossattention
        output = parts["output"]
        mlp = output["mlp"]
        queries = parts["norm1"](queries)  # the residual starts here
        mixed = parts["attention"](queries, torch.cat([queries, parts["normk"](seen)], dim=1))
        queries = queries + output["out_proj"](mixed)
        inputs = output["norm2"](queries)
        inner = mlp["ffn_ln"](silu(mlp["w1"](inputs)) * mlp["w3"](inputs))
        return queries + mlp["w2"](inner)


class _CrossAttention(nn.Module):
    q_pos_embed: Tensor
    k_pos_embed: Tensor

    def __init__(self, c: MplugOwl2Sizes) -> None:
        super().__init__()
        width = c.vision_width
        self.heads = c.abstractor_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        queries = sines(torch.arange(c.queries), width)
        self.register_buffer("q_pos_embed", queries)
        self.register_buffer("k_pos_embed", grid_sines(c.grid_side, width))

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        positions = torch.cat([self.q_pos_embed, self.k_pos_embed])
        query = _heads(self.query(queries + self.q_pos_embed), self.heads)
        key = _heads(self.key(keys + positions), self.heads)
        value = _heads(self.value(keys), self.heads)
        return _joined(scaled_dot_product_attention(query, key, value))


def sines(positions: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of positions [t] at width / 2 frequencies: float32 [t, width]."""
    exponents = torch.arange(width // 2, dtype=torch.float64) / (width // 2)
    angles = torch.outer(positions.double(), _SINE_BASE**-exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def grid_sines(side: int, width: int) -> Tensor:
    """Positions of the ViT's tokens: float32 [1 + side^2, width].

    Zeros for the class token; of a patch first its column, then its row, as in MAE's code.
    """
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    halves = [sines(axis.flatten(), width // 2) for axis in (columns, rows)]
    return torch.cat([torch.zeros(1, width), torch.cat(halves, dim=1)])
