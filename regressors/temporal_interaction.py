"""RAM-VQA's temporal interaction of the frames of a clip, and their integration.

"RAM-VQA" (IEEE TIP 2026), section III-B; it has no public code.  The parts are those of VRT
(JingyunLiang/VRT, mutual attention) and of X-CLIP (microsoft/VideoX, messages and integration),
whose names of weights are kept.  What the paper leaves open is said where it is decided.

Shape letters: b clips, t frames of a clip, n tokens of a frame with the class token first, d width,
c parts of a clip.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from vqbank.regressors.tail import Block


class MutualAttention(nn.Module):
    """TMAT, equations 7 to 11: pairs of neighbours look at each other, and at both together.

    Every other layer is shifted by one frame.  The first and the last frame then have no partner:
    each looks at itself in its place.  (VRT rolls the clip, so that these two are a pair; it masks
    that in self-attention, and in mutual attention it does not.)  Positions are told by the tokens
    already: VRT's sine and relative terms are left out.  Equation 10 is followed, which
    concatenates, not the text, which averages.

    Args of the constructor:
        width: d.
        heads: of both attentions.
        shifted: by one frame.
    """

    def __init__(self, width: int, heads: int, *, shifted: bool) -> None:
        super().__init__()
        self.heads = heads
        self.shifted = shifted
        self.norm1 = nn.LayerNorm(width)
        self.qkv_mut = nn.Linear(width, 3 * width)
        self.qkv_self = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(2 * width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc11 = nn.Linear(width, 2 * width)
        self.fc12 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, state: Tensor) -> Tensor:
        """[b, t, n, d] of [b, t, n, d], t even."""
        state = state + self.mixed(self.norm1(state))
        return state + self.perceptron(self.norm2(state))

    def mixed(self, normed: Tensor) -> Tensor:
        """[b, t, n, d]: what frames take from their pair."""
        if not self.shifted:
            return self.of_pairs(normed)
        ends = self.of_ends(normed[:, :1], normed[:, -1:])
        if normed.shape[1] == 2:
            return torch.cat(ends, dim=1)
        return torch.cat([ends[0], self.of_pairs(normed[:, 1:-1]), ends[1]], dim=1)

    def of_pairs(self, normed: Tensor) -> Tensor:
        """Of frames 0 and 1, 2 and 3, and so on."""
        pairs = normed.unflatten(1, (-1, 2)).flatten(0, 1)  # [p, 2, n, d]
        both = torch.cat([self.mutual(*pairs.unbind(1)), self.joint(pairs.flatten(1, 2))], dim=-1)
        return self.proj(both).reshape(normed.shape)

    def of_ends(self, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Of the two frames without a partner, [b, 1, n, d] each."""
        alone = torch.cat([first, last], dim=1).flatten(0, 1)
        beside = self.mutual(alone, alone)[:, : alone.shape[1]]
        both = self.proj(torch.cat([beside, self.joint(alone)], dim=-1))
        one, other = both.unflatten(0, (-1, 2)).unbind(1)
        return one[:, None], other[:, None]

    def mutual(self, first: Tensor, second: Tensor) -> Tensor:
        """[p, 2n, d]: what tokens [p, n, d] of each frame find in the other, the first's first."""
        one, other = self.qkv_mut(first), self.qkv_mut(second)
        return torch.cat([self.attended(one, other), self.attended(other, one)], dim=1)

    def joint(self, tokens: Tensor) -> Tensor:
        """[p, m, d]: what tokens [p, m, d] find among themselves."""
        projected = self.qkv_self(tokens)
        return self.attended(projected, projected)

    def attended(self, asking: Tensor, asked: Tensor, bias: Tensor | None = None) -> Tensor:
        """Queries of [p, m, 3d] at keys and values of another: [p, m, d]."""
        query, _, _ = _by_head(asking, self.heads)
        _, key, value = _by_head(asked, self.heads)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return mixed.transpose(1, 2).flatten(2)

    def perceptron(self, normed: Tensor) -> Tensor:
        """GEGLU, twice as wide inside."""
        return self.fc2(functional.gelu(self.fc11(normed)) * self.fc12(normed))


def _by_head(projected: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = projected.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return query, key, value


class CrossClip(nn.Module):
    """CCCT, equations 12 to 14: parts of a clip tell each other by message tokens.

    The class tokens of a part's frames make one message (equation of r_c, a linear layer); messages
    look at each other; every frame then reads the message of its part beside its own tokens, which
    does not outlive the layer.  With one frame to a part this is X-CLIP's block.

    Args of the constructor:
        width: d.
        heads: of both attentions.
        frames: of a part.  The paper does not say how many; 8 of 32 are assumed.
    """

    def __init__(self, width: int, heads: int, *, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.message_fc = nn.Linear(frames * width, width)
        self.message_ln = nn.LayerNorm(width)
        self.message_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.block = Block(width=width, heads=heads, hidden=4 * width, activation="quick_gelu")

    def forward(self, state: Tensor) -> Tensor:
        """[b, t, n, d] of [b, t, n, d], t a multiple of a part's frames."""
        messages = self.messages(state).repeat_interleave(self.frames, dim=1)
        beside = torch.cat([state, messages[:, :, None]], dim=2)
        told = self.block(beside.flatten(0, 1))[:, :-1]
        return told.unflatten(0, state.shape[:2])

    def messages(self, state: Tensor) -> Tensor:
        """[b, c, d], after they have looked at each other."""
        parts = state[:, :, 0].unflatten(1, (-1, self.frames)).flatten(2)
        messages = self.message_fc(parts)
        normed = self.message_ln(messages)
        attended, _ = self.message_attn(normed, normed, normed, need_weights=False)
        return messages + attended


class TemporalInteraction(nn.Module):
    """Layers of TMAT and CCCT, one after the other, either of which can be left out.

    Args of the constructor:
        width: d.
        heads: of all attentions.
        layers: L_c, of each.
        frames: of a part of a clip.
        mutual: whether there is a TMAT in every layer.
        messages: whether there is a CCCT.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        layers: int,
        frames: int,
        mutual: bool = True,
        messages: bool = True,
    ) -> None:
        super().__init__()
        numbers = range(layers)
        self.tmat = nn.ModuleList(
            MutualAttention(width, heads, shifted=number % 2 == 1) for number in numbers if mutual
        )
        self.ccct = nn.ModuleList(
            CrossClip(width, heads, frames=frames) for _ in numbers if messages
        )
        self.layers = layers

    def forward(self, state: Tensor) -> Tensor:
        """[b, t, n, d] of [b, t, n, d]."""
        for number in range(self.layers):
            for parts in (self.tmat, self.ccct):
                if len(parts):
                    state = parts[number](state)
        return state


class FrameIntegration(nn.Module):
    """MIT, equation 15: frames, with their places, look at each other, and are averaged.

    Args of the constructor:
        width: of a frame.
        heads: of the attention.
        frames: t, of a clip.
        layers: blocks.
        skip: whether frames are added again to what becomes of them, as in X-CLIP's code, though
            not in the paper's equation.
    """

    def __init__(
        self, width: int, heads: int, *, frames: int, layers: int = 1, skip: bool = False
    ) -> None:
        super().__init__()
        self.skip = skip
        self.positional_embedding = nn.Parameter(torch.empty(1, frames, width))
        self.resblocks = nn.ModuleList(
            Block(width=width, heads=heads, hidden=4 * width, activation="quick_gelu")
            for _ in range(layers)
        )

    def forward(self, frames: Tensor) -> Tensor:
        """[b, width] of [b, t, width]."""
        state = frames + self.positional_embedding
        for block in self.resblocks:
            state = cast(Tensor, block(state))
        return (state + frames if self.skip else state).mean(dim=1)
