"""Rows that stay in the bank until a step asks for them."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqbank.regressors.tensors import tensor_of
from vqbank.store.table import FeatureTable


class BankedRows:
    """The rows of some videos one after the other, of which a step reads those that it sees.

    Of a video that is read for the first time all rows are read, to compare its checksum.
    """

    def __init__(
        self,
        table: FeatureTable,
        role: str,
        spans: Mapping[int, tuple[int, int]],
        device: torch.device,
        checked: Callable[[str, int, NDArray[np.int64], Tensor], None],
    ) -> None:
        """Read nothing.

        Args:
            table: where the videos are.
            role: of these.
            spans: by row of the table, where its first row lies here, and where its last one ends.
            device: where rows are wanted.
            checked: refuses values that are not finite, of a role, a row of the table, and which
                of its rows these are.
        """
        self.device = device
        self._table = table
        self._role = role
        self._rows = np.array(list(spans), np.int64)
        self._starts = np.array([start for start, _ in spans.values()], np.int64)
        self._checked = checked

    def index_select(self, axis: int, places: Tensor) -> Tensor:
        """Rows [n, d] at these places [n], as `Tensor.index_select` gives them.

        Raises:
            HeadError: naming video and row, for a value that is not finite.
        """
        assert axis == 0, "rows are chosen"
        wanted = places.cpu().numpy()
        video = np.searchsorted(self._starts, wanted, side="right") - 1
        parts: list[Tensor] = []
        for own in np.split(wanted, np.flatnonzero(np.diff(video)) + 1):
            number = int(np.searchsorted(self._starts, own[0], side="right")) - 1
            row, within = int(self._rows[number]), own - self._starts[number]
            distinct, again = np.unique(within, return_inverse=True)
            read = tensor_of(self._table.some_rows(self._role, row, distinct)).flatten(1)
            self._checked(self._role, row, distinct, read)
            parts.append(read[torch.from_numpy(again)])
        return torch.cat(parts).to(self.device)
