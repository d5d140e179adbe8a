"""Which names of two sources mean the same video."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from vqbank.pipelines.labels.label import key_of, parts_of
from vqbank.store.errors import ManifestError

PART_FOLDERS = frozenset(["train", "val", "valid", "validation", "test"])
SHOWN_NEAR = 20
"""Unmatched names for which near ones are looked for: each is compared with all."""


@dataclass(frozen=True, slots=True)
class Match:
    """Pairs of row numbers, and what is left over."""

    pairs: tuple[tuple[int, int], ...]
    only_one: tuple[int, ...]
    only_two: tuple[int, ...]
    unclear: tuple[tuple[int, tuple[int, ...]], ...]
    """Rows of the first that fit several of the second; no pair is made of them."""


def match(one: Sequence[str], two: Sequence[str]) -> Match:
    """Pair names by what they share: folders as far as both state them, no suffix, no case.

    A folder that all names of a source begin with says nothing, unless it is a part (`train/`).
    Then one name must end as the other does; or, where the folders differ, the bare names must be
    unique on both sides and hold a letter: `Test1/x_D01.avi` is `Test1/City/x_D01.avi`, but
    `batch1/722` is not `batch2/722`.
    """
    paths_one, paths_two = _paths(one), _paths(two)
    of_one, of_two = _by_key(paths_one), _by_key(paths_two)
    fits: dict[int, list[int]] = {}
    fitted: dict[int, list[int]] = {}
    for key, rows in of_one.items():
        others = of_two.get(key, [])
        alone = len(rows) == 1 and len(others) == 1 and not key.isdecimal()
        for row in rows:
            tails = {other: _tail(paths_one[row], paths_two[other]) for other in others}
            shorter = {other: min(len(paths_one[row]), len(paths_two[other])) for other in others}
            good = [other for other in others if alone or tails[other] == shorter[other]]
            best = max((tails[other] for other in good), default=0)
            fits[row] = [other for other in good if tails[other] == best]
            for other in fits[row]:
                fitted.setdefault(other, []).append(row)
    pairs, unclear = [], []
    for row, others in fits.items():
        if len(others) == 1 and len(fitted[others[0]]) == 1:
            pairs.append((row, others[0]))
        elif others:
            unclear.append((row, tuple(others)))
    taken_one = {row for row, _ in pairs} | {row for row, _ in unclear}
    taken_two = {row for _, row in pairs} | {row for _, rows in unclear for row in rows}
    return Match(
        pairs=tuple(sorted(pairs)),
        only_one=tuple(row for row in range(len(one)) if row not in taken_one),
        only_two=tuple(row for row in range(len(two)) if row not in taken_two),
        unclear=tuple(sorted(unclear)),
    )


def unclear_pair(found: Match, one: Sequence[str], two: Sequence[str]) -> str:
    """The first name of `one` that has no pair because several fit, in words; empty if none."""
    if not found.unclear:
        return ""
    row, others = found.unclear[0]
    also = ", and so may another" if len(others) == 1 else ""
    return f"{one[row]} may be {' or '.join(two[other] for other in others[:3])}{also}"


def assumed_data_set(found: Match, one: Sequence[str], two: Sequence[str]) -> str:
    """The data set that names of `one` were taken to be of, though they do not state it.

    Ids begin with their data set.  `0000.mp4` fits `kvq/train/0000.mp4`, and may be of another data
    set that numbers its videos, too: who pairs by `match` says so with this.

    Args:
        found: `match(one, two)`.
        one: names as a file states them.
        two: ids.

    Returns:
        The data set; empty where all names that have a pair state it, or there are none.

    Raises:
        ManifestError: if the names would be of several.
    """
    first: dict[str, tuple[int, int]] = {}
    for row, other in found.pairs:
        data_set, *rest = parts_of(two[other])
        if rest and data_set not in parts_of(one[row])[:-1]:
            first.setdefault(two[other].partition("/")[0], (row, other))
    if len(first) > 1:
        (row, other), (row_two, other_two) = list(first.values())[:2]
        raise ManifestError(
            f"{one[row]} fits {two[other]}, and {one[row_two]} fits {two[other_two]}: one list of "
            "names is not taken for videos of several data sets; begin each name with its data set"
        )
    return next(iter(first), "")


def near_names(names: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """For the first unmatched names, the nearest of the known: perhaps a spelling mistake."""
    by_key = {key_of(name): name for name in known}
    keys = list(by_key)
    near = {}
    for name in names[:SHOWN_NEAR]:
        found = get_close_matches(key_of(name), keys, n=1, cutoff=0.7)
        if found:
            near[name] = by_key[found[0]]
    return near


def _paths(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Folders and key of each name, without the folders that all begin with."""
    paths = [(*parts_of(name)[:-1], key_of(name)) for name in names]
    drop = 0
    for folders in zip(*(path[:-1] for path in paths), strict=False):
        if len(set(folders)) > 1 or folders[0] in PART_FOLDERS:
            break
        drop += 1
    return [path[drop:] for path in paths]


def _by_key(paths: Sequence[tuple[str, ...]]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, path in enumerate(paths):
        rows.setdefault(path[-1], []).append(row)
    return rows


def _tail(one: tuple[str, ...], two: tuple[str, ...]) -> int:
    """How many last parts are equal."""
    count = 0
    for left, right in zip(reversed(one), reversed(two), strict=False):
        if left != right:
            break
        count += 1
    return count
