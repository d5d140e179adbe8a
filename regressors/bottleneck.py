"""Bottleneck transformer blocks that a head trains: self-attention over the places of a map.

Srinivas et al., "Bottleneck Transformers for Visual Recognition", CVPR 2021, as RQ-VQA stacks them
on the last map of Swin-B.  Modules bear the names of RQ-VQA's checkpoints.  Shape letters: n maps,
y rows and x columns of a map, c channels, h heads, d channels of a head.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from vqbank.regressors.layers import start_uniform


class Stack(nn.Module):
    """Several blocks, one after the other.

    Args of the constructor:
        blocks: how many.
        channels: c.
        bottleneck: channels inside a block.
        heads: h.
        head_channels: d.
        size: (y, x).
        generator: draws the weights; a block begins as the identity and a ReLU.
    """

    def __init__(
        self,
        *,
        blocks: int,
        channels: int,
        bottleneck: int,
        heads: int,
        head_channels: int,
        size: tuple[int, int],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *[Block(channels, bottleneck, heads, head_channels, size) for _ in range(blocks)]
        )
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                start_uniform(part, part.in_channels**-0.5, generator=generator)
            if isinstance(part, RelativeLogits):
                part.start(generator)

    def forward(self, maps: Tensor) -> Tensor:
        """[n, c, y, x] to the same shape, not negative."""
        return self.net(maps)


class Block(nn.Module):
    """Narrow, attend, widen, add."""

    def __init__(
        self, channels: int, bottleneck: int, heads: int, head_channels: int, size: tuple[int, int]
    ) -> None:
        super().__init__()
        attended = heads * head_channels
        norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(norm.weight)
        self.net = nn.Sequential(
            _pointwise(channels, bottleneck),
            nn.BatchNorm2d(bottleneck),
            nn.ReLU(),
            Attention(bottleneck, heads, head_channels, size),
            nn.Identity(),  # where the original halves the map
            nn.BatchNorm2d(attended),
            nn.ReLU(),
            _pointwise(attended, channels),
            norm,
        )

    def forward(self, maps: Tensor) -> Tensor:
        """[n, c, y, x] to the same shape."""
        return torch.relu(maps + self.net(maps))


class Attention(nn.Module):
    """Multi-head self-attention over all places of a map, with relative positions."""

    def __init__(
        self, channels: int, heads: int, head_channels: int, size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.heads = heads
        self.scale = head_channels**-0.5
        attended = heads * head_channels
        self.to_qk = _pointwise(channels, 2 * attended)
        self.to_v = _pointwise(channels, attended)
        self.pos_emb = RelativeLogits(size, head_channels)

    def forward(self, maps: Tensor) -> Tensor:
        """[n, c, y, x] to [n, h d, y, x]."""
        query, key = self.to_qk(maps).chunk(2, dim=1)
        query, key, value = (
            part.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)
            for part in (query, key, self.to_v(maps))
        )
        query = query * self.scale
        mixed = scaled_dot_product_attention(
            query, key, value, attn_mask=self.pos_emb(query), scale=1.0
        )
        return mixed.transpose(2, 3).flatten(1, 2).unflatten(2, maps.shape[2:])


class RelativeLogits(nn.Module):
    """What an attention logit gets for how far the key lies from the query, by rows and columns."""

    def __init__(self, size: tuple[int, int], head_channels: int) -> None:
        super().__init__()
        self.size = size
        self.rel_height, self.rel_width = (
            nn.Parameter(torch.zeros(2 * side - 1, head_channels)) for side in size
        )

    def start(self, generator: torch.Generator) -> None:
        """Draw both tables, normally, of deviation d^-1/2."""
        for table in (self.rel_height, self.rel_width):
            deviation = table.shape[1] ** -0.5
            with torch.no_grad():
                table.copy_(torch.randn(table.shape, generator=generator) * deviation)

    def forward(self, queries: Tensor) -> Tensor:
        """Scaled queries [n, h, y x, d] to logits [n, h, y x, y x], the key's place last."""
        grid = queries.unflatten(2, self.size)
        downwards, across = (_distances(side, queries.device) for side in self.size)
        by_row, by_column = grid @ self.rel_height.T, grid @ self.rel_width.T
        rows = torch.take_along_dim(by_row, downwards[None, None, :, None], dim=-1)
        columns = torch.take_along_dim(by_column, across[None, None, None], dim=-1)
        return (rows[..., :, None] + columns[..., None, :]).flatten(4).flatten(2, 3)


def _distances(side: int, device: torch.device) -> Tensor:
    """[query, key] along one side: which row of a table of 2 side - 1 tells of it."""
    place = torch.arange(side, device=device)
    return place - place[:, None] + side - 1


def _pointwise(channels: int, out: int) -> nn.Conv2d:
    with torch.device("meta"):  # as in `start_uniform`
        return nn.Conv2d(channels, out, 1, bias=False)
