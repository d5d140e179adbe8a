"""From banked rows to torch, without a copy; how many threads it may take."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import NDArray


def tensor_of(rows: NDArray[Any]) -> torch.Tensor:
    """A tensor that borrows the memory of banked rows.

    torch has no read-only tensors.  Banked rows lie in a private memory map or in RAM, so what is
    written to the tensor reaches no file, but it is seen by whoever reads the same rows later in
    this process: write to a clone.

    Args:
        rows: From a FeatureTable.
    """
    borrowed = rows.view()
    borrowed.flags.writeable = True
    return torch.from_numpy(borrowed)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """In here PyTorch takes so many threads.

    Small networks gain nothing from threads, and beside other work lose twentyfold.

    Besides, another number of threads would give other bits.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
