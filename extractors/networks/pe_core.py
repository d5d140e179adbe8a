"""Perception Encoder's two towers (arXiv 2504.13181), and its state dicts under Meta's names."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vqbank.extractors.networks.sizes import PeSizes

CONTEXT = 32
"""How many tokens a prompt has, padding included."""
VOCABULARY = 49408


class PeCore(nn.Module):
    """Image and text tower of PE-Core, of the parts that open_clip makes it of.

    Args of the constructor:
        sizes: of both towers.
        rope: as for extractor `pe`.
    """

    def __init__(self, sizes: PeSizes, rope: Literal["official", "qclip"] = "official") -> None:
        super().__init__()
        import timm
        from open_clip.transformer import TextTransformer

        with torch.device("cpu"):  # the table of rotations, which no file holds
            self.trunk: Any = timm.create_model(
                "vit_pe_core_large_patch14_336",
                img_size=sizes.side,
                embed_dim=sizes.width,
                num_heads=sizes.heads,
                depth=sizes.layers,
                ref_feat_shape=(sizes.grid, sizes.grid),
                num_classes=0,
            )
        self.proj = nn.Parameter(torch.randn(sizes.width, sizes.embedding) * sizes.width**-0.5)
        self.text = TextTransformer(
            context_length=CONTEXT,
            vocab_size=VOCABULARY,
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
