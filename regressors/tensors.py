"""From banked rows to torch, without a copy."""

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
