"""The start of networks of common layers: drawn from one generator, as PyTorch itself draws it."""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

EMBEDDING_DEVIATION = 0.02
"""Of parameters that stand in no layer: class tokens, places, contexts (CoOp's and CLIP's)."""
Network = TypeVar("Network", bound=nn.Module)


def drawn(make: Callable[[], Network], generator: torch.Generator) -> Network:
    """A network whose parameters come from a generator, and nothing from PyTorch's global one.

    Linear and convolution layers start uniform in +-1 / sqrt(fan-in), attention as PyTorch's does,
    norms as ones and zeros, parameters of no layer normal with a deviation of 0.02.

    Args:
        make: makes the network, without `Frozen` parts and without running statistics.
        generator: draws its start.
    """
    with torch.device("meta"):
        network = make()
    for part in network.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            start = _start(part, name, torch.empty(parameter.shape), generator)
            part.register_parameter(name, nn.Parameter(start))
    for part in network.modules():
        if isinstance(part, nn.MultiheadAttention):
            nn.init.zeros_(part.out_proj.bias)
    return network


def _start(part: nn.Module, name: str, empty: Tensor, generator: torch.Generator) -> Tensor:
    if isinstance(part, nn.LayerNorm):
        return empty.fill_(1.0 if name == "weight" else 0.0)
    if isinstance(part, nn.Linear | nn.Conv2d):
        bound = 1 / math.sqrt(part.weight[0].numel())
        return empty.uniform_(-bound, bound, generator=generator)
    if isinstance(part, nn.MultiheadAttention):
        if name == "in_proj_bias":
            return empty.zero_()
        rows, columns = empty.shape
        bound = math.sqrt(6 / (rows + columns))  # Glorot's, as PyTorch has it
        return empty.uniform_(-bound, bound, generator=generator)
    return empty.normal_(0.0, EMBEDDING_DEVIATION, generator=generator)
