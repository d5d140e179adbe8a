"""Bottleneck transformer blocks: residual blocks whose spatial convolution is self-attention.

Srinivas et al., "Bottleneck Transformers for Visual Recognition", CVPR 2021, as RQ-VQA stacks them
on the last map of Swin-B.  Modules bear the names of RQ-VQA's checkpoints.  Shape letters: n maps,
s side of a map, c channels, h heads, d channels of a head.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class BottleneckStack(nn.Module):
    """Several blocks, one after the other."""

    def __init__(
        self,
        *,
        blocks: int,
        channels: int,
        bottleneck: int,
        heads: int,
        head_channels: int,
        side: int,
    ) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *[_Block(channels, bottleneck, heads, head_channels, side) for _ in range(blocks)]
        )

    def forward(self, maps: Tensor) -> Tensor:
        """[n, c, s, s] to the same shape, not negative."""
        return self.net(maps)


class _Block(nn.Module):
    """Narrow, attend, widen, add."""

    def __init__(
        self, channels: int, bottleneck: int, heads: int, head_channels: int, side: int
    ) -> None:
        super().__init__()
        attended = heads * head_channels
        norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(norm.weight)  # a block begins as the identity
        self.net = nn.Sequential(
            nn.Conv2d(channels, bottleneck, 1, bias=False),
            nn.BatchNorm2d(bottleneck),
            nn.ReLU(),
            Attention(bottleneck, heads, head_channels, side),
            nn.Identity(),  # where the original halves the map
            nn.BatchNorm2d(attended),
            nn.ReLU(),
            nn.Conv2d(attended, channels, 1, bias=False),
            norm,
        )

    def forward(self, maps: Tensor) -> Tensor:
        return torch.relu(maps + self.net(maps))


class Attention(nn.Module):
    """Multi-head self-attention over all places of a map, with relative positions."""

    def __init__(self, channels: int, heads: int, head_channels: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = head_channels**-0.5
        attended = heads * head_channels
        self.to_qk = nn.Conv2d(channels, 2 * attended, 1, bias=False)
        self.to_v = nn.Conv2d(channels, attended, 1, bias=False)
        self.pos_emb = RelativeLogits(side, head_channels)

    def forward(self, maps: Tensor) -> Tensor:
        """[n, c, s, s] to [n, h d, s, s]."""
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

    def __init__(self, side: int, head_channels: int) -> None:
        super().__init__()
        self.side = side
        shape = (2 * side - 1, head_channels)
        self.rel_height = nn.Parameter(torch.randn(shape) * head_channels**-0.5)
        self.rel_width = nn.Parameter(torch.randn(shape) * head_channels**-0.5)

    def forward(self, queries: Tensor) -> Tensor:
        """Scaled queries [n, h, s^2, d] to logits [n, h, s^2, s^2], the key's place last."""
        side = self.side
        grid = queries.unflatten(2, (side, side))
        place = torch.arange(side, device=queries.device)
        distance = place - place[:, None] + side - 1  # [query, key], an index of the tables
        by_row, by_column = grid @ self.rel_height.T, grid @ self.rel_width.T
        rows = torch.take_along_dim(by_row, distance[None, None, :, None], dim=-1)
        columns = torch.take_along_dim(by_column, distance[None, None, None], dim=-1)
        return (rows[..., :, None] + columns[..., None, :]).flatten(4).flatten(2, 3)
