"""Frozen transformers continued from banked states: plain PyTorch, with the bank's own weights.

An adapter that lives in the last blocks of a frozen network trains on the states before its first
block, which never change.  Extraction banks these states and writes, beside them, the blocks that
follow (see `vqbank.store.tail`); here they go on.  What a tower is made of stands in its
configuration, so that another transformer of these parts needs no code here: an extractor names its
weights as these modules do, and says its sizes.

The arithmetic is that of the networks that were cut (open_clip's and timm's blocks), in the same
order.  Measured on a CPU with random weights, as a part of the largest value of the feature:

    states in float32        0 for every cut of ViT-B/32 and of PE at its depth of 24; at most 1e-6
                             where a product runs over another number of rows or tokens, which sums
                             in another order
    states in float16        2.2e-4 for ViT-B/32, 1.0e-4 for PE
    states in bfloat16       1.8e-3 for ViT-B/32, 1.2e-3 for PE
"""

from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vqbank.store.errors import DamagedShardError, in_words
from vqbank.store.tail import Tower, read_tower

Activation = Literal["gelu", "quick_gelu"]
MOST_SIZE = 2**24
"""No width, number of tokens or of blocks of a tower reaches this."""


class QuickGelu(nn.Module):
    """x sigmoid(1.702 x), OpenAI's approximation of GELU."""

    def forward(self, values: Tensor) -> Tensor:
        """Of any shape."""
        return values * torch.sigmoid(1.702 * values)


_ACTIVATIONS: dict[Activation, type[nn.Module]] = {"gelu": nn.GELU, "quick_gelu": QuickGelu}


def _perceptron(width: int, hidden: int, activation: Activation) -> nn.Sequential:
    layers = {
        "c_fc": nn.Linear(width, hidden),
        "gelu": _ACTIVATIONS[activation](),
        "c_proj": nn.Linear(hidden, width),
    }
    return nn.Sequential(OrderedDict(layers))


class RotaryAttention(nn.Module):
    """Self-attention whose queries and keys are rotated by their place (RoPE, arXiv 2104.09864).

    Weights are named as those of `torch.nn.MultiheadAttention`.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, state: Tensor, rotation: Tensor) -> Tensor:
        """[b, n, d] of [b, n, d].

        Args:
            state: after the norm.
            rotation: [n, 2 d / heads]: sines, then cosines, each angle twice for a pair of values.
        """
        projected = functional.linear(state, self.in_proj_weight, self.in_proj_bias)
        query, key, value = projected.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = _rotated(query, rotation), _rotated(key, rotation)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


def _rotated(values: Tensor, rotation: Tensor) -> Tensor:
    """Pairs of values as points of a plane, turned."""
    sine, cosine = rotation.chunk(2, dim=-1)
    turned = torch.stack([-values[..., 1::2], values[..., ::2]], dim=-1).flatten(-2)
    return (values * cosine + turned * sine).contiguous()


class Block(nn.Module):
    """Attention and a perceptron of two layers, each after a norm and added to what was there.

    Args of the constructor:
        width: d.
        heads: of the attention.
        hidden: width between the layers of the perceptron.
        activation: between them.
        rotary: whether places are told by rotation.
    """

    def __init__(
        self, *, width: int, heads: int, hidden: int, activation: Activation, rotary: bool = False
    ) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = (
            RotaryAttention(width, heads)
            if rotary
            else nn.MultiheadAttention(width, heads, batch_first=True)
        )
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = _perceptron(width, hidden, activation)

    def forward(
        self, state: Tensor, *, mask: Tensor | None = None, rotation: Tensor | None = None
    ) -> Tensor:
        """The state after the block, [b, n, d].

        Args:
            state: [b, n, d].
            mask: [n, n], added to attention without rotation.
            rotation: for attention with it.
        """
        normed = self.ln_1(state)
        if isinstance(self.attn, RotaryAttention):
            assert rotation is not None
            attended = self.attn(normed, rotation)
        else:
            attended, _ = self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)
        state = state + attended
        return state + self.mlp(self.ln_2(state))


class AttentionPool(nn.Module):
    """One learnt query that looks at all tokens, then a perceptron: the Perception Encoder's."""

    def __init__(self, *, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.probe = nn.Parameter(torch.empty(1, 1, width))
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.layernorm = nn.LayerNorm(width)
        self.mlp = _perceptron(width, hidden, "gelu")

    def forward(self, state: Tensor) -> Tensor:
        """[b, d] of tokens [b, n, d]."""
        count, width = state.shape[0], state.shape[-1]
        weights, biases = (
            part.split([width, 2 * width]) for part in (self.in_proj_weight, self.in_proj_bias)
        )
        probe = functional.linear(self.probe.expand(count, -1, -1), weights[0], biases[0])
        seen = functional.linear(state, weights[1], biases[1])
        query = probe.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = seen.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        pooled = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return (pooled + self.mlp(self.layernorm(pooled)))[:, 0]


class ImageTail(nn.Module):
    """An image tower from the state after one of its blocks.

    A head with adapters runs the blocks itself, and then `pool` and `project`:

        for number in tail.numbers:
            state = adapter[number](tail.block(number, state))
        feature = tail.project(tail.pool(state))

    Args of the constructor, which are the tower's configuration:
        width: d.
        heads: of the blocks' attention.
        hidden: width inside the blocks' perceptrons.
        activation: of these.
        cut: the block, counted from 0, after which the banked state was taken.
        layers: blocks of the uncut tower.
        embedding: e, width of the feature.
        places: n, tokens of a state, where blocks rotate; the table is among the weights.
        pool_heads: of the attention pooling; None where the first token stands for the picture.
    """

    rotation: Tensor | None

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        hidden: int,
        activation: Activation,
        cut: int,
        layers: int,
        embedding: int,
        places: int | None = None,
        pool_heads: int | None = None,
    ) -> None:
        super().__init__()
        self.cut = cut
        self.numbers = range(cut + 1, layers)
        """Of the blocks that follow the cut."""
        rotary = places is not None
        self.blocks = nn.ModuleDict(
            {
                str(number): Block(
                    width=width, heads=heads, hidden=hidden, activation=activation, rotary=rotary
                )
                for number in self.numbers
            }
        )
        self.ln_post = nn.LayerNorm(width)
        self.attn_pool = (
            None
            if pool_heads is None
            else AttentionPool(width=width, heads=pool_heads, hidden=hidden)
        )
        self.proj = nn.Parameter(torch.empty(width, embedding))
        table = None if places is None else torch.empty(places, 2 * width // heads)
        self.register_buffer("rotation", table)

    def block(self, number: int, state: Tensor) -> Tensor:
        """The state [b, n, d] after block `number`, of the state before it."""
        return self.blocks[str(number)](state, rotation=self.rotation)

    def pool(self, state: Tensor) -> Tensor:
        """[b, d] of the state [b, n, d] after the last block."""
        normed = self.ln_post(state)
        return normed[:, 0] if self.attn_pool is None else self.attn_pool(normed)

    def project(self, pooled: Tensor) -> Tensor:
        """[b, e] of [b, d]: the feature, not scaled to unit length."""
        return pooled @ self.proj

    def forward(self, state: Tensor) -> Tensor:
        """The feature [b, e] of the state [b, n, d] after block `cut`."""
        for number in self.numbers:
            state = self.block(number, state)
        return self.project(self.pool(state))


class TextTail(nn.Module):
    """A causal text tower, whole, from the embeddings of tokens.

    Prompts are learnt by putting parameters in the place of some of `embed(tokens)`.

    Args of the constructor, which are the tower's configuration:
        width: d.
        heads: of the blocks' attention.
        hidden: width inside the blocks' perceptrons.
        activation: of these.
        layers: blocks.
        embedding: e, width of the feature.
        context: tokens of a prompt at most.
        vocabulary: tokens that are known.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        hidden: int,
        activation: Activation,
        layers: int,
        embedding: int,
        context: int,
        vocabulary: int,
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.empty(context, width))
        self.blocks = nn.ModuleDict(
            {
                str(number): Block(width=width, heads=heads, hidden=hidden, activation=activation)
                for number in range(layers)
            }
        )
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embedding))

    def embed(self, tokens: Tensor) -> Tensor:
        """[n, l, d] of token numbers [n, l], before anything is said of their places."""
        return self.token_embedding(tokens)

    def place(self, embeddings: Tensor) -> Tensor:
        """[n, l, d]: what the first block gets."""
        return embeddings + self.positional_embedding[: embeddings.shape[1]]

    def block(self, number: int, state: Tensor) -> Tensor:
        """The state [n, l, d] after block `number`, of the state before it."""
        length = state.shape[1]
        mask = torch.full((length, length), -torch.inf, device=state.device, dtype=state.dtype)
        return self.blocks[str(number)](state, mask=mask.triu(1))

    def pool(self, state: Tensor, ends: Tensor) -> Tensor:
        """[n, d] of the state after the last block; `ends` [n] are the places of the last token.

        They are `tokens.argmax(dim=1)`: the end of a text has the highest number.
        """
        return self.ln_final(state)[torch.arange(len(state), device=state.device), ends]

    def project(self, pooled: Tensor) -> Tensor:
        """[n, e] of [n, d]: the feature, not scaled to unit length."""
        return pooled @ self.text_projection

    def forward(self, embeddings: Tensor, ends: Tensor) -> Tensor:
        """The feature [n, e] of token embeddings [n, l, d].

        As the tower is causal, what lies behind the last end may be cut off: l need not be the
        whole context.
        """
        state = self.place(embeddings)
        for number in range(len(self.blocks)):
            state = self.block(number, state)
        return self.project(self.pool(state, ends))


def load_tail(folder: Path) -> ImageTail:
    """The image tower of a tail, frozen, on the CPU.

    Args:
        folder: from `vqbank.store.tail.tail_folder`, or a copy of it anywhere.

    Raises:
        MissingFeatureError: if there is no tail.
        DamagedShardError: if it is not what was written, or of parts that are not known here.
    """
    return image_tail(read_tower(folder, "image"), folder)


def load_text_tail(folder: Path) -> TextTail:
    """The text tower of a tail, frozen, on the CPU; arguments and errors as for `load_tail`."""
    return text_tail(read_tower(folder, "text"), folder)


def image_tail(tower: Tower, where: Path) -> ImageTail:
    """An image tower that was read, frozen, on the CPU.

    Args:
        tower: what was read.
        where: it was read from, for messages.

    Raises:
        DamagedShardError: if it is of parts that are not known here.
    """
    return _filled(ImageTail, tower, where, "image")


def text_tail(tower: Tower, where: Path) -> TextTail:
    """A text tower that was read; arguments and errors as for `image_tail`."""
    return _filled(TextTail, tower, where, "text")


def tensors_of(tower: Tower, where: Path, name: str) -> dict[str, Tensor]:
    """Weights of a tower that was read, on the CPU, for what is no tower: see `image_tail`.

    Raises:
        DamagedShardError: if some are not finite.
    """
    try:
        return _tensors(tower)
    except ValueError as error:
        raise DamagedShardError(f"{where}: its {name} tower is damaged: {error}") from error


def _filled(kind: Any, tower: Tower, where: Path, name: str) -> Any:
    try:
        _check_sizes(tower)
        with torch.device("meta"):  # no memory for what a configuration may say
            network = kind(**tower.configuration)
        wanted = network.state_dict()
        given = {key: tower.tensors[key].shape for key in tower.tensors}
        if given != {key: tuple(value.shape) for key, value in wanted.items()}:
            raise ValueError("its weights have other names or shapes than its configuration")
        network.load_state_dict(_tensors(tower), assign=True)
    except (
        TypeError, LookupError, ValueError, ArithmeticError, AssertionError, RuntimeError
    ) as error:  # fmt: skip
        raise DamagedShardError(
            f"{where}: its {name} tower is damaged, or of parts that this vqbank does not know: "
            f"{in_words(error)}"
        ) from error
    return network.eval().requires_grad_(False)


def _check_sizes(tower: Tower) -> None:
    """Refuse a configuration of more blocks than there are weights, or of sizes that none has.

    Raises:
        ValueError: naming it.
    """
    for key, value in tower.configuration.items():
        if isinstance(value, int) and not 0 <= value < MOST_SIZE:
            raise ValueError(f"{key} cannot be {value}")
    blocks = {key.split(".")[1] for key in tower.tensors if key.startswith("blocks.")}
    layers = tower.configuration["layers"] - tower.configuration.get("cut", -1) - 1
    if layers != len(blocks):
        raise ValueError(f"it has {len(blocks)} blocks, not {layers}")


def _tensors(tower: Tower) -> dict[str, Tensor]:
    """Copied to where PyTorch puts tensors: last bits depend on how memory is aligned.

    Raises:
        ValueError: naming weights that are not finite.
    """
    tensors = {name: torch.tensor(array) for name, array in tower.tensors.items()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has values that are not finite")
    return tensors
