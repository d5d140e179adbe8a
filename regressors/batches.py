"""The rows of many videos as padded batches: from memory, or streamed from the bank."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqbank.regressors.alignment import Alignment, Placement
from vqbank.regressors.banked import BankedRows
from vqbank.regressors.companions import Companions
from vqbank.regressors.tensors import tensor_of
from vqbank.store.errors import HeadError
from vqbank.store.schema import FeatureSpec
from vqbank.store.table import FeatureTable

READ_BYTES = 2**26
"""Of a read, but for a longer video: long enough for a disk, and little beside a budget."""
FINITE_ROWS = 4096
"""Rows that are looked at together for values that are not finite."""
BLOCK_BYTES = 2**24
"""Of the rows, in float32, of several videos whose statistics are taken at once."""
WINDOW_SHARE = 8
"""A streamed window takes this part of the budget; it is held as read, aligned and batched."""
Choose = Callable[[str, int], NDArray[np.int64]]
"""Which rows of a role a step sees, of a video that has so many."""


class PaddedBatch(NamedTuple):
    """b videos, padded to the longest."""

    values: dict[str, Tensor]
    """By role, in the order of roles: [b, t, *shape], rows as they were banked, in shape and dtype;
    float32 where the head standardises them.  On padded rows they are finite, and mean nothing."""
    mask: Tensor
    """[b, t] bool: true for real rows.  They come first; every video has at least one."""
    noise: Tensor
    """[] int64, what `dropout` draws from: another number for every member and step."""
    own: dict[str, Tensor] = {}  # noqa: RUF012  # a mapping that cannot change is no pytree
    """By role whose rows are no rows of the grid, the mask [b, its t] of these; see
    `Alignment.own`."""

    @property
    def rows(self) -> Tensor:
        """[b, t, d of all roles on the grid] float32, flat, those of one video side by side."""
        first, *others = map(self.series, (role for role in self.values if role not in self.own))
        return torch.cat([first, *others], dim=2) if others else first

    def mask_of(self, role: str) -> Tensor:
        """[b, t] bool: which rows of a role are real."""
        return self.own.get(role, self.mask)

    def series(self, role: str) -> Tensor:
        """[b, t, d] float32: the rows of a role, laid flat."""
        values = self.values[role]
        return values.reshape(*values.shape[:2], -1).float()


@dataclass(frozen=True)
class Input:
    """What a network is told of the rows of a role before it sees any."""

    shape: tuple[int, ...]
    """Of a row."""
    dtype: torch.dtype
    """Of a row in a batch."""
    beside: Companions = field(default_factory=Companions)
    """What its bank has beside it: a tail, tokens of prompts, text banks."""

    @property
    def width(self) -> int:
        """d, the values of a row."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Scaling:
    """Mean and deviation of every value of a row, by role."""

    mean: Mapping[str, Tensor]
    """[d] float32."""
    deviation: Mapping[str, Tensor]
    """[d] float32; 1 where a value never changes."""

    def to(self, device: torch.device) -> "Scaling":
        """The same on a device."""
        moved = (
            {role: value.to(device) for role, value in values.items()}
            for values in (self.mean, self.deviation)
        )
        return Scaling(*moved)


@dataclass(frozen=True)
class Window:
    """The aligned rows of some videos, one after the other."""

    rows: NDArray[np.int64]
    """[w], of the table."""
    flat: Mapping[str, Any]
    """By role, [sum of t, d], as banked: a Tensor, or BankedRows where rows are read in part."""
    spans: Mapping[int, tuple[int, int]]
    """By row of the table: where its first aligned row lies, and where its last one ends."""
    shapes: Mapping[str, tuple[int, ...]]
    """By role, of a row."""
    own: Mapping[str, Mapping[int, tuple[int, int]]] = field(default_factory=dict)
    """By role whose rows are no rows of the grid, what `spans` says of the others."""

    def spans_of(self, role: str) -> Mapping[int, tuple[int, int]]:
        """By row of the table: where the first row of a role lies, and where its last one ends."""
        return self.own.get(role, self.spans)

    def among(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the rows that the window has, in their own order."""
        return rows[np.isin(rows, self.rows)]

    def series(self, role: str, row: int) -> Tensor:
        """[t, d] of one video."""
        start, stop = self.spans_of(role)[row]
        return self.flat[role][start:stop]

    def blocks(self, role: str, rows: Sequence[int]) -> Iterator[Tensor]:
        """[v, t, d] of neighbours among these videos that are of one length.

        Of few rows in all, or a view of one video, as a window may be all that memory has room for.
        """
        spans = self.spans_of(role)
        for _, alike in groupby(rows, key=lambda row: spans[row][1] - spans[row][0]):
            series = [self.series(role, row) for row in alike]
            many = max(1, BLOCK_BYTES // series[0].numel() // 4)
            for start in range(0, len(series), many):
                some = series[start : start + many]
                yield torch.stack(some) if len(some) > 1 else some[0][None]

    def padded(
        self,
        members: Sequence[NDArray[np.int64]],
        scalings: Sequence[Scaling | None],
        chosen: Sequence[Choose] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Values [k, b, t, *shape] by role, and masks [k, b, t], of b videos for each of k members.

        The mask of the first role is that of all but `own`.

        Args:
            members: rows of the table, b for each.
            scalings: of each member, or None for all.
            chosen: of each member, which rows it sees of a video; None for all.
        """
        grid, device = next(iter(self.flat)), next(iter(self.flat.values())).device
        placed, masks, values = {}, {}, {}
        for role in (grid, *self.own):
            placed[role], mask = self._places(role, members, chosen)
            masks[role] = mask.to(device)
        for role, flat in self.flat.items():
            places = placed.get(role, placed[grid])
            wanted = places.flatten().to(device)
            out = flat.index_select(0, wanted).unflatten(0, places.shape)
            if scalings[0] is not None:
                out = out.float()
            for own, scaling in zip(out, scalings, strict=True):
                if scaling is not None:
                    own.sub_(scaling.mean[role]).div_(scaling.deviation[role])
            values[role] = out.reshape(*places.shape, *self.shapes[role])
        return values, masks

    def _places(
        self, role: str, members: Sequence[NDArray[np.int64]], chosen: Sequence[Choose] | None
    ) -> tuple[Tensor, Tensor]:
        """Where the rows of a role lie that members see, and which of these are real: [k, b, t]."""
        known = self.spans_of(role)
        spans = torch.tensor([[known[row] for row in rows.tolist()] for rows in members])
        first, counts = spans[..., 0], spans[..., 1] - spans[..., 0]
        seen = None
        if chosen is not None:
            seen, counts = _seen([partial(choose, role) for choose in chosen], counts)
        row = torch.arange(int(counts.max()))
        # Behind its last row a video has that row again.
        within = torch.minimum(row, counts[..., None] - 1)
        places = first[..., None] + (within if seen is None else seen.gather(2, within))
        return places, row < counts[..., None]


class Series:
    """The features of a table on one grid of rows, held in memory where they fit the budget.

    Memory holds rows as the bank does, in half precision if it does; batches are float32.
    """

    def __init__(
        self,
        table: FeatureTable,
        alignment: Alignment,
        *,
        average: bool,
        budget_bytes: int,
        device: torch.device,
        in_part: bool = False,
    ) -> None:
        """Look at lengths only; values are read by `windows`.

        Args:
            table: n videos.
            alignment: of its roles.
            average: one row per video, the mean over its aligned rows in float32, in place of all.
            budget_bytes: what rows may take in memory.
            device: where batches are made.
            in_part: whether steps see some rows of a video, as they are banked: these are then read
                as steps come, where memory has no room for all.

        Raises:
            HeadError: if the alignment is not of these roles, or a role has rows without values.
        """
        self.table = table
        self.alignment = alignment
        self.average = average
        self.budget_bytes = budget_bytes
        self.device = device
        self._held: Window | None = None
        self._lengths = np.zeros(len(table), np.int64)
        self._subsets: dict[bytes, FeatureTable] = {}
        self._counts: dict[tuple[bytes, int], list[int]] = {}
        alignment.check(table.roles)
        own = [role for role in table.roles[1:] if role in alignment.own]
        self.own = () if average else tuple(own)
        # Kept, as a packed series has no videos in its table.
        self._own_lengths = {role: table.lengths(role) for role in self.own}
        as_banked = not average and alignment.slots is None and not alignment.on_grid(table.roles)
        self.in_part = in_part and as_banked
        for role, spec in table.specs.items():
            if np.prod(spec.shape, dtype=np.int64) == 0:
                raise HeadError(f"{role} = {spec.key} has rows without values")

    def lengths(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """[len(rows)]: rows of these videos on the grid, at least 1.

        Raises:
            HeadError: naming the video, if roles that are aligned by frame have none in common.
        """
        # One by one, as videos of which nothing is wanted may have no grid.
        for row in rows[self._lengths[rows] == 0].tolist():
            self._lengths[row] = 1 if self.average else self.alignment.length(self.table, row)
        return self._lengths[rows]

    def lengths_of(self, role: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """[len(rows)]: rows of a role, on the grid or beside it."""
        return self._own_lengths[role][rows] if role in self.own else self.lengths(rows)

    def batch_bytes(self, lengths: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of a video in a batch, in float32, if it is padded to so many rows of the grid.

        Args:
            lengths: rows of the grid, any number of them.
            rows: videos, to the longest of which roles are padded that are beside it.
        """
        beside = sum(int(self.lengths_of(r, rows).max()) * self.widths[r] for r in self.own)
        on_grid = sum(width for role, width in self.widths.items() if role not in self.own)
        return 4 * (lengths * on_grid + beside)

    @cached_property
    def inputs(self) -> dict[str, Input]:
        """Of rows on the grid, by role."""
        return inputs_of(self.table.specs, self.alignment, average=self.average)

    @cached_property
    def widths(self) -> dict[str, int]:
        """d by role; in memory a row of any shape is laid flat."""
        return {role: one.width for role, one in self.inputs.items()}

    def sizes(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """[len(rows)]: bytes of these videos, as held in memory."""
        sizes = np.zeros(len(rows), np.int64)
        for role, one in self.inputs.items():
            sizes += self.lengths_of(role, rows) * (one.width * one.dtype.itemsize)
        return sizes

    def fits(self, rows: NDArray[np.int64]) -> bool:
        """Whether these videos can be held in memory."""
        return int(self.sizes(rows).sum()) <= self.budget_bytes

    def hold(self, rows: NDArray[np.int64]) -> bool:
        """Read these videos into memory, once, if they fit the budget; whether they do.

        Raises:
            HeadError: naming video, role and row, for a value that is not finite.
        """
        if self._holds(rows):
            return True
        if not self.fits(rows):
            return False
        self._held = None  # never two at once
        self._held = self._read(rows)
        return True

    def packed(self, rows: NDArray[np.int64]) -> "Packed":
        """For another process: these videos, which have to fit, held, and nothing of the bank."""
        self.hold(rows)
        assert self._held is not None
        empty = copy(self)
        empty.table, empty._subsets, empty._held = self.table.subset([]), {}, None
        flat = {role: values.cpu().numpy() for role, values in self._held.flat.items()}
        return Packed(empty, self._held.rows, flat, self._held.spans, self._held.own)

    def windows(
        self, rows: NDArray[np.int64], *, rng: np.random.Generator, at_least: int = 1
    ) -> Iterator[Window]:
        """All these videos once: in the one window that `hold` has read, or streamed.

        Streamed windows are of neighbours on disk, in shuffled order, and are read anew each time;
        none outlives the next one.

        Args:
            rows: Of the table.
            rng: Order of the windows.
            at_least: Videos in every window, if there are so many.

        Raises:
            HeadError: naming video, role and row, for a value that is not finite; or if
                `at_least` videos do not fit the budget.
        """
        if self._held is not None and self._holds(rows):
            yield self._held
            return
        if self.in_part:
            yield self._unread(rows)
            return
        key = rows.tobytes()
        if key not in self._subsets:
            self._subsets[key] = self.table.subset(rows)
        chosen = self._subsets[key]
        if (key, at_least) not in self._counts:
            counts = self._videos_of_windows(rows[chosen.neighbours], at_least)
            self._counts[key, at_least] = counts
        for places, window in chosen.windows(videos=self._counts[key, at_least], rng=rng):
            yield self._aligned(rows[places], window)

    def _unread(self, rows: NDArray[np.int64]) -> Window:
        """All these videos in one window, of which a batch reads the rows that it has."""
        empty = self._window(rows, {})
        flat = {
            role: BankedRows(
                self.table, role, empty.spans_of(role), self.device, self._refuse_not_finite_rows
            )
            for role in self.table.roles
        }
        return replace(empty, flat=flat)

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {role: one.shape for role, one in self.inputs.items()}

    def _holds(self, rows: NDArray[np.int64]) -> bool:
        return self._held is not None and self._held.spans.keys() >= set(rows.tolist())

    def _window_bytes(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """[len(rows)]: of each video in a window; what is read may be more than is kept of it."""
        read = sum(
            self.table.lengths(role)[rows] * one.width * one.dtype.itemsize
            for role, one in self.inputs.items()
        )
        return np.maximum(read, self.sizes(rows))

    def _videos_of_windows(self, rows: NDArray[np.int64], at_least: int) -> list[int]:
        """How many of these neighbours, one after the other, each window takes."""
        at_least = min(at_least, len(rows))
        sizes = self._window_bytes(rows)
        counts = _runs(sizes, most=self.budget_bytes // WINDOW_SHARE, at_least=at_least)
        if not counts:
            raise HeadError(
                f"windows of at least {at_least} videos, of {sizes.mean() / 2**20:.1f} MiB and up "
                f"to {sizes.max() / 2**20:.1f} MiB, do not fit an eighth of "
                f"{self.budget_bytes / 2**30:g} GiB; raise memory_gib, or lower batch_size"
            )
        return counts

    def _read(self, rows: NDArray[np.int64]) -> Window:
        """All of some videos, by reads of neighbours."""
        flat = {
            role: torch.empty(
                int(self.lengths_of(role, rows).sum()),
                one.width,
                dtype=one.dtype,
                device=self.device,
            )
            for role, one in self.inputs.items()
        }
        whole = self._window(rows, flat)
        chosen = self.table.subset(rows)
        sizes = self._window_bytes(rows[chosen.neighbours]).clip(max=READ_BYTES)
        counts = _runs(sizes, most=READ_BYTES, at_least=1)
        for places, window in chosen.windows(videos=counts, rng=np.random.default_rng(0)):
            part = self._aligned(rows[places], window)
            for row in part.rows.tolist():
                for role in flat:
                    whole.series(role, row)[:] = part.series(role, row)
        return whole

    def _window(self, rows: NDArray[np.int64], flat: Mapping[str, Tensor]) -> Window:
        """Of rows that lie one video after the other in `flat`."""

        def spans(role: str) -> dict[int, tuple[int, int]]:
            ends = np.cumsum(self.lengths_of(role, rows)).tolist()
            return dict(zip(rows.tolist(), zip([0, *ends[:-1]], ends, strict=True), strict=True))

        own = {role: spans(role) for role in self.own}
        return Window(rows, flat, spans(self.table.roles[0]), self._shapes, own)

    def _aligned(
        self, rows: NDArray[np.int64], read: Mapping[str, tuple[NDArray[Any], NDArray[np.int64]]]
    ) -> Window:
        """A window from what the table read: the same memory where rows stand as they are."""
        placements = [self.alignment.place(self.table, row) for row in rows.tolist()]
        flat = {}
        for role, (values, offsets) in read.items():
            laid = values.reshape(len(values), -1)
            self._refuse_not_finite(role, rows, laid, offsets)
            moved = any(placed[role] is not None for placed in placements)
            if moved or self.average or self._is_mean(role):
                laid = np.concatenate(
                    [
                        self._on_grid(role, laid[start:stop], placed[role])
                        for placed, start, stop in zip(
                            placements, offsets[:-1].tolist(), offsets[1:].tolist(), strict=True
                        )
                    ]
                )
            flat[role] = tensor_of(laid).to(self.device)
        return self._window(rows, flat)

    def _on_grid(
        self, role: str, values: NDArray[Any], placement: Placement | None
    ) -> NDArray[Any]:
        if self._is_mean(role):
            values = values.mean(axis=0, keepdims=True, dtype=np.float32)
        placed = values if placement is None else placement(values)
        if self.average:
            return placed.mean(axis=0, keepdims=True, dtype=np.float32)
        return placed

    def _is_mean(self, role: str) -> bool:
        others = self.alignment.on_grid(self.table.roles)
        return role in others and self.alignment.rule(role) == "mean"

    def _refuse_not_finite_rows(
        self, role: str, row: int, rows: NDArray[np.int64], values: Tensor
    ) -> None:
        if values.is_floating_point() and not values.isfinite().all():
            (bad, *_) = (~torch.isfinite(values)).any(dim=1).nonzero()[:, 0].tolist()
            raise HeadError(
                f"{role} of {self.table.videos[row].id} is not finite in row {rows[bad]}; "
                "bank it again, or leave the video out"
            )

    def _refuse_not_finite(
        self, role: str, rows: NDArray[np.int64], values: NDArray[Any], offsets: NDArray[np.int64]
    ) -> None:
        tensor = tensor_of(values)
        if not tensor.is_floating_point():
            return
        # A sum is finite only if all of it is; which row it was is asked only then.  In parts,
        # because what is summed in float32 is first copied to it.
        sums = [part.sum(dtype=torch.float32) for part in tensor.split(FINITE_ROWS)]
        if torch.stack(sums).isfinite().all():
            return
        for bad in (~torch.isfinite(tensor)).any(dim=1).nonzero()[:1, 0].tolist():
            place = int(np.searchsorted(offsets, bad, side="right")) - 1
            raise HeadError(
                f"{role} of {self.table.videos[rows[place]].id} is not finite in row "
                f"{bad - int(offsets[place])}; bank it again, or leave the video out"
            )


class Packed(NamedTuple):
    """A series that is held, as arrays: joblib hands these on by memory map, so that all processes
    share one copy."""

    empty: Series
    rows: NDArray[np.int64]
    flat: Mapping[str, NDArray[Any]]
    spans: Mapping[int, tuple[int, int]]
    own: Mapping[str, Mapping[int, tuple[int, int]]]

    def unpacked(self) -> Series:
        """As it was; of its table, features are known and no videos."""
        flat = {role: tensor_of(one).to(self.empty.device) for role, one in self.flat.items()}
        shapes = self.empty._shapes
        self.empty._held = Window(self.rows, flat, self.spans, shapes, self.own)
        return self.empty


def inputs_of(
    specs: Mapping[str, FeatureSpec], alignment: Alignment, *, average: bool
) -> dict[str, Input]:
    """What rows of these features are on a grid: as banked, but float32 where rows are mixed."""
    others = alignment.on_grid(list(specs))
    found = {}
    for role, spec in specs.items():
        mixed = role in others and alignment.rule(role) in {"mean", "interpolate"}
        dtype = torch.float32
        if not (average or mixed or spec.stored_dtype == "bfloat16"):
            dtype = torch.from_numpy(np.empty(0, spec.storage_dtype)).dtype
        found[role] = Input(spec.shape, dtype)
    return found


def taken_of(inputs: Mapping[str, Input]) -> dict[str, dict[str, dict[str, str]]]:
    """What the card tells of all that a network took beside rows, for which these were its inputs.

    Empty where it took nothing.
    """
    taken = {role: dict(one.beside.taken) for role, one in inputs.items() if one.beside.taken}
    return {"companions": taken} if taken else {}


def _seen(
    chosen: Sequence[Callable[[int], NDArray[np.int64]]], counts: Tensor
) -> tuple[Tensor, Tensor]:
    """Rows [k, b, t] that members choose of videos with `counts` [k, b] rows, and how many."""
    rows = [
        [choose(count) for count in own]
        for choose, own in zip(chosen, counts.tolist(), strict=True)
    ]
    lengths = torch.tensor([[len(one) for one in own] for own in rows])
    most = int(lengths.max())
    filled = [[np.pad(one, (0, most - len(one)), mode="edge") for one in own] for own in rows]
    return torch.from_numpy(np.array(filled)), lengths


def _runs(sizes: NDArray[np.int64], *, most: int, at_least: int) -> list[int]:
    """Lengths of long runs of `sizes` with sums up to `most`; none where that cannot be.

    Args:
        sizes: [n].
        most: the largest sum.
        at_least: the shortest run.
    """
    sums = np.concatenate([[0], np.cumsum(sizes)])
    earliest = np.searchsorted(sums, sums - most).tolist()  # from where a run fits, by its end
    before: dict[int, int] = {}
    ends = [0]
    for end in range(at_least, len(sums)):
        place = bisect_left(ends, earliest[end])
        if place < len(ends) and ends[place] <= end - at_least:
            before[end] = ends[place]
            ends.append(end)
    counts: list[int] = []
    end = len(sizes)
    if end not in before:
        return []
    while end:
        counts.append(end - before[end])
        end = before[end]
    return counts[::-1]
