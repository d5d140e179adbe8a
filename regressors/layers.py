"""Layers whose start, noise and recurrence do not depend on what is trained beside them."""

import hashlib
import math
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _NormBase

from vqbank.store.errors import HeadError

CACHED = 2**14
"""Values of a slab of steps: a dozen such slabs, in float32, are what a core's cache holds."""
FEWEST_STEPS = 8
"""Of a slab, so that products of its rows are worth a call."""


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


class Frozen(nn.Module):
    """A network that is used as it is: neither trained nor kept with a head, always in evaluation.

    What it holds must not come of a generator: networks of every seed share it.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001  # as nn.Module has it
        """Stay as it is."""
        return super().train(False)

    def forward(self, *values: Any, **named: Any) -> Any:
        """What the network says."""
        return self.network(*values, **named)


def learnt(network: nn.Module) -> dict[str, Tensor]:
    """What training changes of a network, and what is kept of it, by name.

    Parameters that want a gradient, and the running statistics of PyTorch's normalisations that are
    not `Frozen`.

    Raises:
        HeadError: if statistics are means over all steps (`momentum=None`): no file has their
            count.
    """
    found: dict[str, Tensor] = {
        name: value for name, value in network.named_parameters() if value.requires_grad
    }
    frozen = tuple(f"{name}." for name, part in network.named_modules() if isinstance(part, Frozen))
    for place, part in network.named_modules():
        if not isinstance(part, _NormBase) or f"{place}.".startswith(frozen):
            continue
        if part.track_running_stats and part.momentum is None:
            raise HeadError(f"{place}: give a normalisation a momentum, such as PyTorch's 0.1")
        for name in ("running_mean", "running_var"):
            if (value := getattr(part, name)) is not None:
                found[f"{place}.{name}" if place else name] = value
    return found


def frozen_sha256(network: nn.Module) -> str | None:
    """A hash of the weights that a network uses and does not learn; None where there are none."""
    own = learnt(network)
    frozen = {
        name: value
        for name, value in network.state_dict().items()
        if name not in own and not name.endswith("num_batches_tracked")
    }
    if not frozen:
        return None
    digest = hashlib.sha256()
    for name, value in sorted(frozen.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class GruLayer(nn.Module):
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
        return self._states(rows, self.weight_ih_l0, self.bias_ih_l0)

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
        return self._states(rows, weight, bias)

    def _states(self, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # In float32 also under mixed precision: errors of a state go on into all that follow.
        given = rows, weight, bias, self.weight_hh_l0, self.bias_hh_l0
        states, *_ = _Recurrence.apply(*(one.float()[None] for one in given))
        return states[0]


class _Recurrence(torch.autograd.Function):
    """k GRUs at once, forward and backward written out.

    With g = W_i x + b_i, a = W_hn h + b_hn, r = s(g_r + W_hr h + b_hr) and z alike:
    n = tanh(g_n + r a), h' = n + z (h - n) (as PyTorch; Cho et al., EMNLP 2014).
    Autograd over single steps would spend ten times as long in bookkeeping.  On a processor steps
    are NumPy's, whose calls and views of such small arrays cost half of PyTorch's.

    A step is a few calls on contiguous memory: videos stand last, and gates in slabs; biases are a
    column of their weights, rows and states having a one for it; 1/r and 1/z, which are
    1 + exp(-x), divide what r and z would multiply.  All that need not be done step by step is done
    for as many steps as a processor's cache has room for.
    """

    @staticmethod
    def forward(
        rows: Tensor, weight_in: Tensor, bias_in: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, ...]:
        """States [k, b, t, h]; also what `backward` needs, steps first.

        These are all states and a one; 1/r, 1/z and a; and n.

        Args:
            rows: [k, b, t, d].
            weight_in: [k, 3h, d], of rows.
            bias_in: [k, 3h].
            weight: [k, 3h, h], of states.
            bias: [k, 3h].
        """
        members, videos, steps, width_in = rows.shape
        width = weight.shape[2]
        many = _steps_at_once(members * width * videos, steps)
        inwards = torch.cat([weight_in, bias_in[..., None]], dim=2)
        onwards = torch.cat([weight, bias[..., None]], dim=2)
        for signed in (inwards, onwards):
            signed[:, : 2 * width].neg_()
        states = rows.new_zeros(steps + 1, members, width + 1, videos)
        states[:, :, width] = 1
        opened = rows.new_empty(steps, members, 3 * width, videos)
        news = rows.new_empty(steps, members, width, videos)
        out = rows.new_empty(members, videos, steps, width)
        xp, (rows_, inwards_, onwards_, states_, opened_, news_, out_) = _arrays(
            rows.transpose(1, 2),
            inwards.transpose(1, 2),
            onwards,
            states,
            opened,
            news,
            out.permute(2, 0, 3, 1),
        )
        _, (laid, product, begun) = _arrays(
            rows.new_ones(many, videos, width_in + 1),
            rows.new_empty(many, videos, 3 * width),
            rows.new_empty(many, members, 3 * width, videos),
        )
        hidden = states_[:, :, :width]
        pairs, a = opened_[:, :, : 2 * width], opened_[:, :, 2 * width :]
        resets, updates = pairs[:, :, :width], pairs[:, :, width:]
        begun_pairs, begun_news = begun[:, :, : 2 * width], begun[:, :, 2 * width :]
        ones = xp.ones_like(pairs[0])  # quicker to add than a number
        for begin in range(0, steps, many):
            end = min(begin + many, steps)
            given, gates = laid[: end - begin], product[: end - begin]
            for member in range(members):
                given[:, :, :width_in] = rows_[member, begin:end]
                xp.matmul(
                    given.reshape(-1, width_in + 1),
                    inwards_[member],
                    out=gates.reshape(-1, 3 * width),
                )
                begun[: end - begin, member] = gates.swapaxes(1, 2)
            with np.errstate(over="ignore"):  # where 1/r is infinite, r is 0
                for step in range(begin, end):
                    pair, n = pairs[step], news_[step]
                    before, after = hidden[step], hidden[step + 1]
                    xp.matmul(onwards_, states_[step], out=opened_[step])
                    xp.add(pair, begun_pairs[step - begin], out=pair)
                    xp.exp(pair, out=pair)
                    xp.add(pair, ones, out=pair)
                    xp.divide(a[step], resets[step], out=n)
                    xp.add(n, begun_news[step - begin], out=n)
                    xp.tanh(n, out=n)
                    xp.subtract(before, n, out=after)
                    xp.divide(after, updates[step], out=after)
                    xp.add(after, n, out=after)
            out_[begin:end] = hidden[begin + 1 : end + 1]
        return out, states, opened, news

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what `backward` needs."""
        rows, weight_in, _, weight, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)  # as zeros, of what is not differentiable
        ctx.save_for_backward(rows, weight_in, weight, *output[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        """Of the states, to all inputs."""
        rows, weight_in, weight, states, opened, news = ctx.saved_tensors
        members, videos, steps, width_in = rows.shape
        width = weight.shape[2]
        many = _steps_at_once(members * width * videos, steps)
        # From the gradients of r, z and a, and from what comes by z, to that of the state before.
        unit = torch.eye(width, dtype=grad.dtype, device=grad.device).expand(members, -1, -1)
        back = torch.cat([weight.transpose(1, 2), unit], dim=2)  # [k, h, 4h]
        grad_inwards = grad.new_zeros(members, 3 * width, width_in + 1)
        grad_onwards = grad.new_zeros(members, 3 * width, width + 1)
        grad_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else rows.new_empty(0, 0, 0)
        xp, (rows_, weight_in_, back_, states_, opened_, news_, grad_) = _arrays(
            rows.transpose(1, 2),
            weight_in,
            back,
            states,
            opened,
            news,
            grad.permute(2, 0, 3, 1),
        )
        _, (grad_inwards_, grad_onwards_, grad_rows_) = _arrays(
            grad_inwards, grad_onwards, grad_rows.transpose(1, 2)
        )
        slab = many, members, width, videos
        _, (one, carried, laid, factors, totals, to_new, spare) = _arrays(
            grad.new_ones(1),
            grad.new_zeros(slab[1:]),
            rows.new_ones(many, videos, width_in + 1),
            grad.new_empty(many, members, 4, width, videos),
            *(grad.new_empty(slab) for _ in range(3)),
        )
        for end in range(steps, 0, -many):
            begin = max(0, end - many)
            count = end - begin
            factor, total, d, r = (each[:count] for each in (factors, totals, to_new, spare))
            of_r, of_z, of_a, z = (factor[:, :, part] for part in range(4))
            own, n = opened_[begin:end], news_[begin:end]
            # By what the gradient of a state is multiplied to be that of W_h h + b_h for r, z and
            # a, and of the state before by z.
            xp.reciprocal(own[:, :, :width], out=r)
            xp.reciprocal(own[:, :, width : 2 * width], out=z)
            xp.subtract(one, z, out=total)
            xp.subtract(states_[begin + 1 : end + 1, :, :width], n, out=of_z)
            xp.multiply(of_z, total, out=of_z)
            xp.multiply(n, n, out=d)
            xp.subtract(one, d, out=d)
            xp.multiply(d, total, out=d)
            xp.multiply(d, r, out=of_a)
            xp.multiply(of_a, own[:, :, 2 * width :], out=of_r)
            xp.subtract(one, r, out=r)
            xp.multiply(of_r, r, out=of_r)
            total[:] = grad_[begin:end]
            wide, flat = total[:, :, None], factor.reshape(count, members, 4 * width, videos)
            for step in reversed(range(count)):
                xp.add(total[step], carried, out=total[step])
                xp.multiply(factor[step], wide[step], out=factor[step])
                xp.matmul(back_, flat[step], out=carried)
            xp.multiply(total, d, out=z)  # now of g_n, which r does not multiply
            given = laid[:count]
            for member in range(members):
                gates = flat[:, member].swapaxes(0, 1).reshape(4, width, -1)
                state = states_[begin:end, member].swapaxes(0, 1).reshape(width + 1, -1)
                grad_onwards_[member] += gates[:3].reshape(3 * width, -1) @ state.swapaxes(0, 1)
                gates[2] = gates[3]
                opening = gates[:3].reshape(3 * width, -1)
                given[:, :, :width_in] = rows_[member, begin:end]
                grad_inwards_[member] += opening @ given.reshape(-1, width_in + 1)
                if ctx.needs_input_grad[0]:
                    moved = opening.swapaxes(0, 1) @ weight_in_[member]
                    grad_rows_[member, begin:end] = moved.reshape(count, videos, width_in)
        return (
            grad_rows if ctx.needs_input_grad[0] else None,
            grad_inwards[:, :, :width_in],
            grad_inwards[:, :, width_in],
            grad_onwards[:, :, :width],
            grad_onwards[:, :, width],
        )

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Members of a stack are further GRUs of the same steps."""
        moved = [
            one.expand(info.batch_size, *one.shape) if axis is None else one.movedim(axis, 0)
            for one, axis in zip(inputs, in_dims, strict=True)
        ]
        axes = (0, 1, 1, 1)  # of the members in what `forward` gives
        found = _Recurrence.apply(*(one.flatten(0, 1) for one in moved))
        shape = (info.batch_size, -1)
        return tuple(
            one.unflatten(axis, shape) for one, axis in zip(found, axes, strict=True)
        ), axes


def _steps_at_once(values: int, steps: int) -> int:
    """Of slabs that have so many values for each of the steps."""
    return min(steps, max(FEWEST_STEPS, CACHED // values))


def _arrays(*tensors: Tensor) -> tuple[Any, tuple[Any, ...]]:
    """NumPy and views of the tensors' memory where it can see it, else PyTorch and the tensors.

    Either has the functions of the other under the same names.
    """
    if tensors[0].device.type != "cpu":
        return torch, tensors
    return np, tuple(tensor.numpy() for tensor in tensors)
