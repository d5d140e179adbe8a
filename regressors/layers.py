"""Layers whose start, noise and recurrence do not depend on what is trained beside them."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def linear(width_in: int, width_out: int, *, generator: torch.Generator) -> nn.Linear:
    """A linear layer with PyTorch's default start, uniform in +-1/sqrt(width_in).

    Drawn from `generator`; `nn.Linear` itself would draw from the global one.
    """
    layer = nn.utils.skip_init(nn.Linear, width_in, width_out)
    start_uniform(layer, 1 / math.sqrt(width_in), generator=generator)
    return layer


def start_uniform(layer: nn.Module, bound: float, *, generator: torch.Generator) -> None:
    """Draw every parameter of a layer uniformly in +-bound."""
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)


def dropout(values: Tensor, probability: float, noise: Tensor, *, layer: int = 0) -> Tensor:
    """Values of which each is 0 with `probability`, and else divided by 1 - `probability`.

    Which ones is a function of `noise`, `layer` and their place, not of any generator and not of
    padding, so that it is the same whoever is trained in the same stack.

    Args:
        values: [b, ..., d].
        probability: 0 to below 1.
        noise: of the batch.
        layer: tells several dropouts of one network apart.
    """
    number = noise + layer * 0x5851F42D4C957F2D
    places = torch.zeros((), dtype=torch.int64, device=values.device)
    for axis, size in enumerate(values.shape):
        shape = [1] * values.ndim
        shape[axis] = size
        places = places * 2**20 + torch.arange(size, device=values.device).view(shape)
    # The finaliser of SplitMix64 (Steele et al., OOPSLA 2014); int64 wraps.
    mixed = places * _signed(0x9E3779B97F4A7C15) + number
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
        return self._states(nn.functional.linear(rows, self.weight_ih_l0, self.bias_ih_l0))

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
        return self._states(nn.functional.linear(rows, weight, bias))

    def _states(self, gates: Tensor) -> Tensor:
        states, *_ = _Recurrence.apply(gates[None], self.weight_hh_l0[None], self.bias_hh_l0[None])
        return states[0]


class _Recurrence(torch.autograd.Function):
    """The steps of k GRUs at once, forward and backward written out.

    With r, z, n the reset, update and new gate and a = W_hn h + b_hn:
    n = tanh(gates_n + r a), h' = (1 - z) n + z h (as PyTorch; Cho et al., EMNLP 2014).
    Autograd over single steps would spend ten times as long in bookkeeping.
    """

    @staticmethod
    def forward(gates: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        """States [k, b, t, h] of gates [k, b, t, 3h], weight [k, 3h, h] and bias [k, 3h].

        Also what `backward` needs, steps first: the gates r and z beside a, and n.
        """
        members, videos, steps, _ = gates.shape
        width = weight.shape[2]
        gates = gates.permute(2, 0, 1, 3)
        gate_n = gates[..., 2 * width :].contiguous()
        # What the product is added to: of n the bias alone, as r multiplies a and not gates_n.
        inputs = gates.new_empty(gates.shape)  # steps first in memory too
        reset_update = slice(2 * width)
        torch.add(
            gates[..., reset_update], bias[:, None, reset_update], out=inputs[..., reset_update]
        )
        inputs[..., 2 * width :] = bias[:, None, 2 * width :]
        transposed = weight.transpose(1, 2)
        states = gates.new_zeros(steps + 1, members, videos, width)
        opened = gates.new_empty(steps, members, videos, 3 * width)
        news = gates.new_empty(steps, members, videos, width)
        per_step = zip(
            inputs.unbind(),
            gate_n.unbind(),
            opened.unbind(),
            opened[..., : 2 * width].unbind(),
            opened[..., :width].unbind(),
            opened[..., width : 2 * width].unbind(),
            opened[..., 2 * width :].unbind(),
            news.unbind(),
            states[:-1].unbind(),
            states[1:].unbind(),
            strict=True,
        )
        for added, start, gate, rz, r, z, a, n, before, after in per_step:
            torch.baddbmm(added, before, transposed, out=gate)
            rz.sigmoid_()
            torch.addcmul(start, r, a, out=n).tanh_()
            torch.lerp(n, before, z, out=after)
        out = states[1:].permute(1, 2, 0, 3).contiguous()
        return out, states, opened, news

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what `backward` needs."""
        _, weight, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(weight, *output[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the states, to gates, weight and bias."""
        weight, states, opened, n = ctx.saved_tensors
        steps, members, videos, width = n.shape
        grad = grad.permute(2, 0, 1, 3).contiguous()
        r, z, a = opened.split(width, dim=3)
        # By what the gradient of a state is multiplied, for W_h h + b_h of r, z and n, and for h.
        factors = torch.empty(steps, members, videos, 4, width, dtype=n.dtype, device=n.device)
        to_new = (1 - z) * (1 - n * n)
        torch.mul(to_new * a, r * (1 - r), out=factors[..., 0, :])
        torch.mul(states[:-1] - n, z * (1 - z), out=factors[..., 1, :])
        torch.mul(to_new, r, out=factors[..., 2, :])
        factors[..., 3, :] = z
        own = torch.eye(width, dtype=n.dtype, device=n.device).expand(members, -1, -1)
        onwards = torch.cat([weight, own], dim=1)
        inner = torch.empty_like(factors)
        totals = torch.empty_like(n)
        carried = torch.zeros_like(n[0])
        per_step = zip(
            grad.unbind(),
            totals.unbind(),
            totals[:, :, :, None].unbind(),
            factors.unbind(),
            inner.unbind(),
            inner.flatten(3).unbind(),
            strict=True,
        )
        for given, total, spread, factor, share, flat_share in reversed(list(per_step)):
            torch.add(given, carried, out=total)
            torch.mul(spread, factor, out=share)
            torch.bmm(flat_share, onwards, out=carried)
        flat = inner[..., :3, :].flatten(3)
        by_member = flat.permute(1, 0, 2, 3).flatten(1, 2)  # [k, t * b, 3h]
        before = states[:-1].permute(1, 0, 2, 3).flatten(1, 2)
        grad_weight = by_member.transpose(1, 2) @ before
        grad_bias = by_member.sum(dim=1)
        flat[..., 2 * width :] = totals * to_new  # of gates_n, which r does not multiply
        return flat.permute(1, 2, 0, 3), grad_weight, grad_bias

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Members of a stack are further GRUs of the same steps."""
        moved = [
            one.expand(info.batch_size, *one.shape) if axis is None else one.movedim(axis, 0)
            for one, axis in zip(inputs, in_dims, strict=True)
        ]
        gates, weight, bias = (one.flatten(0, 1) for one in moved)
        out, *kept = _Recurrence.apply(gates, weight, bias)
        shape = (info.batch_size, -1)
        return (
            (out.unflatten(0, shape), *(one.unflatten(1, shape) for one in kept)),
            (0, *[1] * len(kept)),
        )
