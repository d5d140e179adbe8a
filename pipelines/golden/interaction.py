"""Players of the transformers that RAM-VQA's temporal interaction is made of."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vqbank.pipelines.golden.fixture import Check, Fixture, array, fill
from vqbank.regressors.temporal_interaction import CrossClip, FrameIntegration, MutualAttention

_HEADS = 4


def entries(fixture: Fixture, prefix: str) -> dict[str, Tensor]:
    """Those of the fixture's letter that begin so, filled, without the prefix."""
    listed = fixture.recipe["state_dict"]
    shapes = listed.get(fixture.letter, listed)
    return {
        key.removeprefix(prefix): torch.from_numpy(np.asarray(fill(key, tuple(shape))))
        for key, shape in shapes.items()
        if key.startswith(prefix)
    }


def drawn(described: Any) -> Tensor:
    """An input `[name, shape]`."""
    name, shape = described
    return torch.from_numpy(array(name, tuple(shape)))


def play_xclip_cct(fixture: Fixture) -> Iterator[Check]:
    """X-CLIP's block with a message per frame, its tower, and its integration of frames."""
    relative = fixture.recipe["tolerance"]["rel_to_max"]
    given, letter = fixture.input, fixture.letter
    tower = entries(fixture, "visual.")
    width = len(tower["class_embedding"])
    blocks = [_cross_clip(tower, number, width) for number in range(2)]
    tokens, many, _ = given["block_x"]["array"][1]
    official = drawn(given["block_x"]["array"]).requires_grad_()  # [n, b t, d]
    state = official.transpose(0, 1).unflatten(0, (given["B"], given["T"]))
    messages = blocks[0].messages(state)
    yield fixture.close("block_msg", messages.transpose(0, 1), relative)
    out = blocks[0](state).flatten(0, 1).transpose(0, 1)
    yield fixture.close("block_y", out, relative)
    weights = drawn([f"xclip_cct/{letter}/block_g", [tokens, many, width]])
    (gradient,) = torch.autograd.grad((out * weights).sum(), official)
    yield fixture.close("block_gx", gradient, relative)
    with torch.inference_mode():
        pixels = drawn(given["image"]["array"])
        state = embedded(pixels, tower).unflatten(0, (-1, given["T"]))
        for block in blocks:
            state = block(state)
        last = state.flatten(0, 1)
        norm = nn.LayerNorm(width)
        norm.load_state_dict({"weight": tower["ln_post.weight"], "bias": tower["ln_post.bias"]})
        yield fixture.close("cls", norm(last[:, 0]) @ tower["proj"], relative)
        yield fixture.close("patches", last[:, 1:], relative)
    frames = drawn(given["mit_x"]["array"]).requires_grad_()
    mit = FrameIntegration(
        frames.shape[2],
        frames.shape[2] // 64,
        frames=frames.shape[1],
        layers=given["mit_layers"],
        skip=True,
    )
    mit.load_state_dict(entries(fixture, "mit."))
    video = mit(frames)
    yield fixture.close("mit_y", video, relative)
    weights = drawn([f"xclip_cct/{letter}/mit_g", list(video.shape)])
    (gradient,) = torch.autograd.grad((video * weights).sum(), frames)
    yield fixture.close("mit_gx", gradient, relative)


def _cross_clip(tower: Mapping[str, Tensor], number: int, width: int) -> CrossClip:
    """A block of X-CLIP, which has one frame to a message."""
    prefix = f"transformer.resblocks.{number}."
    own = {key.removeprefix(prefix): v for key, v in tower.items() if key.startswith(prefix)}
    layer = CrossClip(width, _HEADS, frames=1)
    layer.load_state_dict(
        {key if key.startswith("message") else f"block.{key}": v for key, v in own.items()}
    )
    return layer


def embedded(pixels: Tensor, tower: Mapping[str, Tensor]) -> Tensor:
    """[b, n, d]: what the first block of a CLIP tower gets, with places as many as tokens."""
    kernel = tower["conv1.weight"]
    patches = nn.functional.conv2d(pixels, kernel, stride=kernel.shape[-1]).flatten(2)
    first = tower["class_embedding"].expand(len(pixels), 1, -1)
    placed = torch.cat([first, patches.transpose(1, 2)], dim=1) + tower["positional_embedding"]
    return nn.functional.layer_norm(
        placed, placed.shape[-1:], tower["ln_pre.weight"], tower["ln_pre.bias"]
    )


class _AsVrt(MutualAttention):
    """What VRT has and RAM-VQA leaves out: terms of position, the other order of halves, and that
    the last frame and the first one, a pair when a clip is rolled, look at each other."""

    position: Tensor | float = 0.0
    """[1, n, d], added before mutual attention."""
    bias: Tensor | None = None
    """[heads, 2n, 2n], of self-attention."""

    def mutual(self, first: Tensor, second: Tensor) -> Tensor:
        one, other = (self.qkv_mut(frame + self.position) for frame in (first, second))
        return torch.cat([self.attended(other, one), self.attended(one, other)], dim=1)

    def joint(self, tokens: Tensor) -> Tensor:
        projected, count = self.qkv_self(tokens), tokens.shape[1]
        bias = None if self.bias is None else self.bias[:, :count, :count]
        return self.attended(projected, projected, bias)

    def of_ends(self, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        before, after = last[:, 0], first[:, 0]
        alone = torch.cat([self.joint(before), self.joint(after)], dim=1)
        mixed = self.proj(torch.cat([self.mutual(before, after), alone], dim=-1))
        one, other = mixed.unflatten(1, (2, -1)).unbind(1)
        return other[:, None], one[:, None]


def play_vrt_tmsa(fixture: Fixture) -> Iterator[Check]:
    """VRT's two blocks on pairs of frames, with its terms of position and without."""
    relative = fixture.recipe["tolerance"]["rel_to_max"]
    given = fixture.input["tokens"]
    clip = drawn(given["x"]["array"]).requires_grad_()  # [b, d, t, 1, n]
    state = clip[:, :, :, 0].permute(0, 2, 3, 1)
    count = state.shape[2]
    blocks = [_as_vrt(fixture, number) for number in range(2)]
    for name, placed in (("tokens", True), ("tokens_nopos", False)):
        if placed:
            tables = entries(fixture, "tokens.")
            position = torch.from_numpy(fixture.expected["tokens_position_bias"])
            index = torch.from_numpy(fixture.expected["tokens_rel_index"]).long()
        for number, block in enumerate(blocks):
            block.position, block.bias = 0.0, None
            if placed:
                table = tables[f"blocks.{number}.attn.relative_position_bias_table"]
                block.position = position
                block.bias = table[index].permute(2, 0, 1)
        first = blocks[0](state)
        yield fixture.close(f"{name}_block0", first[:, :, None], relative)
        normed = blocks[0].norm1(state)
        if placed:
            yield fixture.close("tokens_attn0_in", _in_pairs(normed), relative)
            inner = blocks[0].perceptron(_in_pairs(normed))
            yield fixture.close("tokens_mlp", inner, relative)
        yield fixture.close(f"{name}_attn0_out", _in_pairs(blocks[0].mixed(normed)), relative)
        normed = blocks[1].norm1(first)
        if placed:
            yield fixture.close("tokens_attn1_in", _in_pairs(normed.roll(-1, 1)), relative)
        mixed = blocks[1].mixed(normed).roll(-1, 1)
        yield fixture.close(f"{name}_attn1_out", _in_pairs(mixed), relative)
        out = blocks[1](first).permute(0, 3, 1, 2)[:, :, :, None]
        yield fixture.close(f"{name}_y", out, relative)
        if placed:
            weights = drawn([f"vrt_tmsa/{fixture.letter}/tokens/g", list(out.shape)])
            (gradient,) = torch.autograd.grad((out * weights).sum(), clip)
            yield fixture.close("tokens_gx", gradient, relative)
    mask = torch.zeros(state.shape[1] // 2, 2 * count, 2 * count)
    mask[-1, :count, count:] = mask[-1, count:, :count] = -100
    yield fixture.equal("tokens_mask", mask)


def _as_vrt(fixture: Fixture, number: int) -> _AsVrt:
    own = entries(fixture, f"tokens.blocks.{number}.")
    layer = _AsVrt(len(own["norm1.weight"]), _HEADS, shifted=number == 1)
    table = "attn.relative_position_bias_table"
    layer.load_state_dict(
        {re.sub(r"^(attn|mlp)\.", "", key): v for key, v in own.items() if key != table}
    )
    return layer


def _in_pairs(state: Tensor) -> Tensor:
    """[b t / 2, 2n, d]: both frames of each pair side by side."""
    return state.unflatten(1, (-1, 2)).flatten(0, 1).flatten(1, 2)
