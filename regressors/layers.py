"""Layers whose start, noise and recurrence do not depend on what is trained beside them."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def linear(width_in: int, width_out: int, *, generator: torch.Generator) -> nn.Linear:
    """A linear layer with PyTorch's default start, uniform in +-1/sqrt(width_in).

    Drawn from `generator`; `nn.Linear` itself would draw from the global one.
    """
    with torch.device("meta"):
        layer = nn.Linear(width_in, width_out)
    start_uniform(layer, 1 / math.sqrt(width_in), generator=generator)
    return layer


def start_uniform(layer: nn.Module, bound: float, *, generator: torch.Generator) -> None:
    """Draw every parameter of a layer uniformly in +-bound.

    A layer that was made on the meta device, so that nothing was drawn from PyTorch's global
    generator, gets its memory here: `to_empty`, which is for that, imports sympy, for seconds.
    """
    for name, parameter in list(layer.named_parameters(recurse=False)):
        drawn = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
        layer.register_parameter(name, nn.Parameter(drawn))


def dropout(values: Tensor, probability: float, noise: Tensor) -> Tensor:
    """Values of which each is 0 with `probability`, and else divided by 1 - `probability`.

    Which ones is a function of `noise` and their place, not of any generator and not of padding, so
    that it is the same whoever is trained in the same stack.

    Args:
        values: [b, ..., d].
        probability: 0 to below 1.
        noise: of the batch.
    """
    places = torch.zeros((), dtype=torch.int64, device=values.device)
    for axis, size in enumerate(values.shape):
        shape = [1] * values.ndim
        shape[axis] = size
        places = places * 2**20 + torch.arange(size, device=values.device).view(shape)
    # The finaliser of SplitMix64 (Steele et al., OOPSLA 2014); int64 wraps.
    mixed = places * _signed(0x9E3779B97F4A7C15) + noise
    mixed = (mixed ^ _shifted(mixed, 30)) * _signed(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ _shifted(mixed, 27)) * _signed(0x94D049BB133111EB)
    uniform = _shifted(mixed ^ _shifted(mixed, 31), 40).float() / 2**24
    return torch.where(uniform < probability, 0.0, values / (1 - probability))


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def _shifted(number: Tensor, bits: int) -> Tensor:
    """Without the sign that int64 shifts in."""
    return (number >> bits) & (2 ** (64 - bits) - 1)


class Gru(nn.Module):
    """PyTorch's GRU of one layer, one direction and a start of zeros: [b, t, d] to [b, t, width].

    The names, shapes and order of its parameters are those of `nn.GRU`, whose numbers it gives.
    Unlike it, it can be stacked by `torch.func.vmap`, and several of a stack run as one: a step of
    all of them costs little more than a step of one.  Rows after the last real one may hold
    anything finite: no earlier row sees them.
    """

    def __init__(self, width_in: int, width: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.weight_ih_l0 = nn.Parameter(torch.empty(3 * width, width_in))
        self.weight_hh_l0 = nn.Parameter(torch.empty(3 * width, width))
        self.bias_ih_l0 = nn.Parameter(torch.empty(3 * width))
        self.bias_hh_l0 = nn.Parameter(torch.empty(3 * width))
        start_uniform(self, 1 / math.sqrt(width), generator=generator)

    def forward(self, rows: Tensor) -> Tensor:
        """States [b, t, width] after each row of [b, t, d]."""
        return self._states(nn.functional.linear(rows, self.weight_ih_l0), self.bias_ih_l0)

    def behind(self, layer: nn.Linear, rows: Tensor) -> Tensor:
        """`self(layer(rows))`, with the layer taken into the GRU's first product if that is less.

        Two linear layers without an activation between them are one, but for rounding.  The gates
        of VSFA's GRU are 96 wide, the rows that it gets 128, of which a batch has thousands.
        """
        if len(self.weight_ih_l0) >= layer.out_features:
            return self(layer(rows))
        weight = self.weight_ih_l0 @ layer.weight
        bias: Tensor = self.bias_ih_l0
        if layer.bias is not None:
            bias = bias + self.weight_ih_l0 @ layer.bias
        return self._states(nn.functional.linear(rows, weight), bias)

    def _states(self, gates: Tensor, bias: Tensor) -> Tensor:
        """Of the product of rows with the weights, without its bias."""
        states, *_ = _Recurrence.apply(
            gates[None], bias[None], self.weight_hh_l0[None], self.bias_hh_l0[None]
        )
        return states[0]


class _Recurrence(torch.autograd.Function):
    """The steps of k GRUs at once, forward and backward written out.

    With r, z, n the reset, update and new gate and a = W_hn h + b_hn:
    n = tanh(gates_n + r a), h' = (1 - z) n + z h (as PyTorch; Cho et al., EMNLP 2014).
    Autograd over single steps would spend ten times as long in bookkeeping.  On a processor steps
    are NumPy's, whose calls and views of such small arrays cost half of PyTorch's.

    Gates stand in slabs of their own, so that what a step reads and writes is contiguous.
    """

    @staticmethod
    def forward(
        gates: Tensor, gates_bias: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, ...]:
        """States [k, b, t, h] of gates [k, b, t, 3h], weight [k, 3h, h] and biases [k, 3h].

        Also what `backward` needs, steps first: all states, r beside z and a, and n.
        """
        members, videos, steps, _ = gates.shape
        width = weight.shape[2]
        slabs = gates.unflatten(3, (3, width)).permute(2, 3, 0, 1, 4)  # [t, 3, k, b, h]
        start = (slabs[:, 2] + gates_bias[:, None, 2 * width :]).contiguous()
        onwards = weight.unflatten(1, (3, width)).permute(1, 0, 3, 2).contiguous()  # [3, k, h, h]
        opened = slabs + (bias + gates_bias).unflatten(1, (3, width)).transpose(0, 1)[:, :, None]
        # Of n the bias alone, as r multiplies a and not gates_n.
        opened[:, 2] = bias[:, None, 2 * width :]
        # sigmoid(x) = tanh(x / 2) / 2 + 1 / 2, which cannot overflow.
        opened[:, :2] *= 0.5
        onwards[:2] *= 0.5
        opened = opened.contiguous()
        states = gates.new_zeros(steps + 1, members, videos, width)
        news = gates.new_empty(steps, members, videos, width)
        product = gates.new_empty(3, members, videos, width)
        xp, (start_, onwards_, opened_, states_, news_, product_) = _arrays(
            start, onwards, opened, states, news, product
        )
        for step in range(steps):
            before, after, n, gate = states_[step], states_[step + 1], news_[step], opened_[step]
            xp.matmul(before, onwards_, out=product_)
            xp.add(gate, product_, out=gate)
            both, a = gate[:2], gate[2]
            xp.tanh(both, out=both)
            xp.multiply(both, 0.5, out=both)
            xp.add(both, 0.5, out=both)
            xp.multiply(gate[0], a, out=n)
            xp.add(n, start_[step], out=n)
            xp.tanh(n, out=n)
            xp.subtract(before, n, out=after)
            xp.multiply(after, gate[1], out=after)
            xp.add(after, n, out=after)
        return states[1:].permute(1, 2, 0, 3).contiguous(), states, opened, news

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what `backward` needs."""
        _, _, weight, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(weight, *output[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        """Of the states, to gates, their bias, weight and bias."""
        weight, states, opened, n = ctx.saved_tensors
        steps, members, videos, width = n.shape
        grad = grad.permute(2, 0, 1, 3).contiguous()
        r, z, a = opened.unbind(1)
        # By what the gradient of a state is multiplied, for W_h h + b_h of r, z and n, and for h.
        factors = n.new_empty(steps, 4, members, videos, width)
        to_new = torch.mul(n, n).neg_().add_(1).mul_(1 - z)
        torch.mul(to_new, a, out=factors[:, 0]).mul_(torch.addcmul(r, r, r, value=-1))
        torch.sub(states[:-1], n, out=factors[:, 1]).mul_(torch.addcmul(z, z, z, value=-1))
        torch.mul(to_new, r, out=factors[:, 2])
        factors[:, 3] = z
        onwards = weight.unflatten(1, (3, width)).transpose(0, 1).contiguous()  # [3, k, h, h]
        totals = torch.empty_like(n)
        carried, product = torch.zeros_like(n[0]), n.new_empty(3, members, videos, width)
        xp, (grad_, factors_, onwards_, totals_, carried_, product_) = _arrays(
            grad, factors, onwards, totals, carried, product
        )
        for step in reversed(range(steps)):
            total, share = totals_[step], factors_[step]
            xp.add(grad_[step], carried_, out=total)
            xp.multiply(share, total, out=share)
            xp.matmul(share[:3], onwards_, out=product_)
            xp.add(share[3], product_[0], out=carried_)
            xp.add(carried_, product_[1], out=carried_)
            xp.add(carried_, product_[2], out=carried_)
        inner = factors[:, :3].permute(2, 1, 4, 0, 3).flatten(3)  # [k, 3, h, t * b]
        before = states[:-1].permute(1, 0, 2, 3).flatten(1, 2)  # [k, t * b, h]
        grad_weight = (inner.flatten(1, 2) @ before).view_as(weight)
        grad_bias = inner.sum(dim=3).flatten(1)
        torch.mul(totals, to_new, out=factors[:, 2])  # of gates_n, which r does not multiply
        grad_gates = factors[:, :3].permute(2, 3, 0, 1, 4).flatten(3)
        of_new = factors[:, 2].sum(dim=(0, 2))
        grad_gates_bias = torch.cat([grad_bias[:, : 2 * width], of_new], dim=1)
        return grad_gates, grad_gates_bias, grad_weight, grad_bias

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Members of a stack are further GRUs of the same steps."""
        moved = [
            one.expand(info.batch_size, *one.shape) if axis is None else one.movedim(axis, 0)
            for one, axis in zip(inputs, in_dims, strict=True)
        ]
        axes = (0, 1, 2, 1)  # of the members in what `forward` gives
        found = _Recurrence.apply(*(one.flatten(0, 1) for one in moved))
        shape = (info.batch_size, -1)
        return tuple(
            one.unflatten(axis, shape) for one, axis in zip(found, axes, strict=True)
        ), axes


def _arrays(*tensors: Tensor) -> tuple[Any, tuple[Any, ...]]:
    """NumPy and views of the tensors' memory where it can see it, else PyTorch and the tensors.

    Either has the functions of the other under the same names.
    """
    if tensors[0].device.type != "cpu":
        return torch, tensors
    return np, tuple(tensor.numpy() for tensor in tensors)
