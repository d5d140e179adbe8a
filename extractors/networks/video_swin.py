"""Video Swin Transformer with the gated relative position bias of FAST-VQA, and its quality head.

Source: Wu et al., FAST-VQA, ECCV 2022, and the official code, which differs from the paper: the
gate between the two bias tables is the distance of two tokens in fragments, not whether there is
one.  Patches, patch merging and index tables are torchvision's; without fragment tables the network
is torchvision's `swin3d_t`.

Shape letters: b clips, t h w tokens, s windows of a frame, l tokens of a window, d channels.
"""

from collections import OrderedDict
from operator import mod

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.swin_transformer import PatchMerging
from torchvision.models.video.swin_transformer import PatchEmbed3d, ShiftedWindowAttention3d

from vqbank.extractors.networks.sizes import Axes, VideoSwinSizes, axes

_HIDDEN = 64  # channels of the quality head
_MASKED = -100.0  # what Swin adds for tokens that the cyclic shift made neighbours


class FastVqaNetwork(nn.Module):
    """Backbone and head under the keys of the official files.

    `prepare` has to be called between loading weights and computing.
    """

    def __init__(self, architecture: VideoSwinSizes) -> None:
        super().__init__()
        self.fragments_backbone = _VideoSwin(architecture)
        self.vqa_head = nn.Sequential(
            OrderedDict(
                fc_hid=nn.Conv3d(architecture.map_shape[0], _HIDDEN, 1),
                gelu=nn.GELU(),
                fc_last=nn.Conv3d(_HIDDEN, 1, 1),
            )
        )

    def prepare(self) -> None:
        """Compute, once, the attention bias of every block from its tables."""
        for module in self.modules():
            if isinstance(module, _GatedWindowAttention):
                module.prepare()

    def forward(self, clips: Tensor) -> Tensor:
        """Normalised clips [b, 3, *size] to final maps [b, *map_shape]."""
        return self.fragments_backbone(clips)

    def scores(self, maps: Tensor) -> Tensor:
        """Final maps to local scores [b, t, h, w]; their mean is the official score, unscaled."""
        return self.vqa_head(maps)[:, 0]


class _VideoSwin(nn.Module):
    def __init__(self, architecture: VideoSwinSizes) -> None:
        super().__init__()
        patch, width = list(architecture.patch), architecture.width
        self.patch_embed = PatchEmbed3d(patch, embed_dim=width, norm_layer=nn.LayerNorm)
        stages = range(len(architecture.depths))
        self.layers = nn.ModuleList(_Stage(architecture, stage) for stage in stages)
        self.norm = nn.LayerNorm(architecture.map_shape[0])

    def forward(self, clips: Tensor) -> Tensor:
        tokens = self.patch_embed(clips)
        for stage in self.layers:
            tokens = stage(tokens)
        return self.norm(tokens).permute(0, 4, 1, 2, 3)


class _Stage(nn.Module):
    """[b, t, h, w, d] to the input of the next stage."""

    def __init__(self, architecture: VideoSwinSizes, stage: int) -> None:
        super().__init__()
        width = architecture.width << stage
        depth = architecture.depths[stage]
        self.blocks = nn.Sequential(*[_Block(architecture, stage, n) for n in range(depth)])
        last = stage + 1 == len(architecture.depths)
        self.downsample = nn.Identity() if last else PatchMerging(width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.downsample(self.blocks(tokens))


class _Block(nn.Module):
    """[b, t, h, w, d] to the same shape."""

    def __init__(self, architecture: VideoSwinSizes, stage: int, number: int) -> None:
        super().__init__()
        width = architecture.width << stage
        self.norm1 = nn.LayerNorm(width)
        self.attn = _GatedWindowAttention(architecture, stage, shifted=number % 2 == 1)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(width, 4 * width), gelu=nn.GELU(), fc2=nn.Linear(4 * width, width)
            )
        )

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class _GatedWindowAttention(ShiftedWindowAttention3d):  # type: ignore[misc]
    """Attention inside windows, with bias R g + F (1 - g).

    R is the relative table, F the fragment table and g the distance of two tokens in fragments,
    rows and columns added.
    """

    relative_position_bias_table: Tensor
    relative_position_index: Tensor
    bias: Tensor
    """Made by `prepare`: [1 or temporal windows, s, heads, l, l]."""

    def __init__(self, architecture: VideoSwinSizes, stage: int, *, shifted: bool) -> None:
        heads = architecture.heads[stage]
        super().__init__(architecture.width << stage, list(architecture.tables), [0, 0, 0], heads)
        self.tables = architecture.tables
        self.tokens = architecture.tokens(stage)
        self.window = axes(map(min, architecture.window, self.tokens))
        assert not any(map(mod, self.tokens, self.window))  # no size here needs padding
        # No shift where one window spans the axis; shifting by a whole window changes nothing.
        self.shift = axes(
            table // 2 % window if shifted and window < count else 0
            for table, window, count in zip(self.tables, self.window, self.tokens, strict=True)
        )
        self.grid = architecture.grid
        self.gated = architecture.gated and stage + 1 < len(architecture.depths)
        if self.gated:
            table = torch.empty_like(self.relative_position_bias_table)
            self.fragment_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))

    def prepare(self) -> None:
        """Compute `bias`, shift mask included; one for all times where time is not shifted."""
        t, h, w = self.window
        index = self.relative_position_index.unflatten(0, self.tables).unflatten(3, self.tables)
        index = index[:t, :h, :w, :t, :h, :w].reshape(t * h * w, t * h * w)
        positions = [
            torch.arange(count, device=index.device).roll(-shift)
            for count, shift in zip(self.tokens, self.shift, strict=True)
        ]
        with torch.no_grad():
            bias = self.relative_position_bias_table[index].permute(2, 0, 1).contiguous()
            bias = bias[None, None]
            if self.gated:
                fragments = self.fragment_position_bias_table[index].permute(2, 0, 1).contiguous()
                cells = zip(positions, (1, self.grid, self.grid), self.tokens, strict=True)
                gate = self._distances([place * cell // count for place, cell, count in cells])
                bias = torch.addcmul(fragments, gate, bias - fragments)
            if any(self.shift):
                around = [p < s for p, s in zip(positions, self.shift, strict=True)]
                bias = bias + _MASKED * (self._distances(around) > 0)
        self.register_buffer("bias", bias, persistent=False)

    def _distances(self, axes: list[Tensor]) -> Tensor:
        """[1 or temporal windows, s, 1, l, l]: of the tokens of each window, axes added.

        Args:
            axes: a coordinate of the tokens along time, height and width.
        """
        places = torch.stack(torch.meshgrid(axes, indexing="ij"), dim=-1).float()
        windows = _partition(places[None], self.window)[0]
        if not self.shift[0]:
            windows = windows[:1]
        return torch.cdist(windows, windows, p=1).unsqueeze(2)

    def forward(self, tokens: Tensor) -> Tensor:
        axes = (1, 2, 3)
        shifted = tokens.roll([-shift for shift in self.shift], axes) if any(self.shift) else tokens
        projected = self.qkv(_partition(shifted, self.window))
        # [clips and temporal windows, 3, s, heads, l, d / heads]
        parts = projected.flatten(0, 1).unflatten(-1, (3, self.num_heads, -1))
        parts = parts.permute(0, 3, 1, 4, 2, 5)
        attended = torch.stack(
            [
                functional.scaled_dot_product_attention(
                    query, key, value, attn_mask=self.bias[number % len(self.bias)]
                )
                for number, (query, key, value) in enumerate(parts)
            ]
        )
        merged = self.proj(attended.transpose(2, 3).flatten(3))
        merged = _merge(merged, tokens.shape, self.window)
        return merged.roll(self.shift, axes) if any(self.shift) else merged


def _partition(tokens: Tensor, window: Axes) -> Tensor:
    """[b, t, h, w, d] to [b, temporal windows, s, l, d]."""
    t, h, w = window
    split = tokens.unflatten(3, (-1, w)).unflatten(2, (-1, h)).unflatten(1, (-1, t))
    return split.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6).flatten(2, 3)


def _merge(windows: Tensor, shape: torch.Size, window: Axes) -> Tensor:
    """The inverse of `_partition`, from clips and temporal windows in one axis."""
    b, *tokens, d = shape
    counts = [count // size for count, size in zip(tokens, window, strict=True)]
    return windows.view(b, *counts, *window, d).permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(shape)
