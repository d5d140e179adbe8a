"""State dicts of heads that others publish, as `torch.save` wrote them."""

import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from vqbank.regressors.ensemble import check_shapes
from vqbank.store.errors import HeadError, in_words
from vqbank.store.ordinary import open_ordinary

_UNREADABLE = (
    OSError, EOFError, RuntimeError, LookupError, AttributeError, ValueError, TypeError,
    AssertionError, OverflowError, MemoryError, struct.error, pickle.UnpicklingError,
    zipfile.BadZipFile,
)  # fmt: skip
"""What `torch.load(weights_only=True)` raises for damaged files, found by trying."""


def read_official(
    weights: Path,
    named: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
    shapes: Callable[[], Mapping[str, tuple[int, ...]]],
    *,
    head: str,
) -> dict[str, Tensor]:
    """The parameters of a network, float32, of an official checkpoint.

    Args:
        weights: a state dict that `torch.save` wrote; nothing in it is executed.
        named: from the official names to those of the network.
        shapes: gives those of the network's parameters, by name, once the file is known to be
            one of this head.
        head: name of the head, for messages.

    Raises:
        HeadError: if the file cannot be read without running code, or holds other tensors.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an unusual protocol either loads or is refused
            ours = dict(named(torch.load(weights, "cpu", weights_only=True, mmap=_mapped(weights))))
    except _UNREADABLE as error:
        said = in_words(error) if isinstance(error, OSError) else str(error)
        first, *_ = said.splitlines() or ["it ends early"]
        problem = f"it lacks {first}" if isinstance(error, KeyError) else first
        raise HeadError(f"{weights} is no checkpoint of {head}'s paper: {problem}") from error
    for name, value in ours.items():
        dense = isinstance(value, Tensor) and value.layout == torch.strided
        if not dense or value.is_quantized or value.device.type != "cpu":
            raise HeadError(f"{weights} is no checkpoint of {head}'s paper: {name} is no tensor")
    check_shapes(ours, dict(shapes()), weights)  # before anything is copied
    state = {name: value.float() for name, value in ours.items()}
    for name, value in state.items():
        if not value.isfinite().all():
            raise HeadError(f"{weights} is damaged: {name} has values that are not finite")
    return state


def _mapped(weights: Path) -> bool:
    """Whether the file is one of which tensors can be mapped, as torch writes them since 1.6.

    Raises:
        OSError: if it is no ordinary file.
        ValueError: if a part of it is compressed, which `torch.save` never does: a file of a few
            bytes could unfold to any length.
    """
    with open_ordinary(weights) as file:
        if not zipfile.is_zipfile(file):
            return False
        with zipfile.ZipFile(file) as archive:
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise ValueError("it is a compressed archive, which torch.save does not write")
    return True
