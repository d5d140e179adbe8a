"""Several label files of one data set to one list of videos; they must agree where they meet."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vqbank.pipelines.labels.kinds import refuse_other_kind
from vqbank.pipelines.labels.label import Label, Labels
from vqbank.pipelines.labels.match import match, unclear_pair
from vqbank.store.errors import ManifestError

TOLERANCE = 1e-4
"""Scores of one video may differ by this: some files keep four decimals."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What two files say of the videos that both rate."""

    shared: int
    """Videos that both name."""
    compared: int
    """Those to which both give a score."""
    largest: float
    """Largest difference of their scores."""
    only_one: tuple[str, ...]
    """Names that the second file does not have."""
    only_two: tuple[str, ...]
    unclear: str
    """A name of the first that may be several of the second, in words; they were not compared."""
    caution: str
    """Where nothing shows that both are on one scale: both ranges, in words."""


@dataclass(frozen=True, slots=True)
class Merged:
    """Label files of one data set, joined."""

    rows: tuple[Label, ...]
    cautions: tuple[str, ...]
    """As of `Agreement`, for every two files."""


def agreement(one: Labels, two: Labels) -> Agreement:
    """Compare the scores of the videos that both files name.

    Raises:
        ManifestError: if a file names no videos, the files hold different kinds of MOS, a score
            differs by more than `TOLERANCE` (names the video, both scores and their places), or no
            video is scored in both and the ranges of the scores have nothing in common.
    """
    refuse_other_kind(one, two)
    if not one.named or not two.named:
        raise ManifestError(
            f"{(two if one.named else one).path} names no videos, so it can neither be compared "
            "nor joined with another file"
        )
    found = match(one.names, two.names)
    shared = [(one.rows[i], two.rows[j]) for i, j in found.pairs]
    scored = [
        (first, second, abs(first.mos - second.mos))
        for first, second in shared
        if first.mos is not None and second.mos is not None
    ]
    worst = max(scored, key=lambda entry: entry[2], default=None)
    if worst is not None and worst[2] > TOLERANCE:
        first, second, _ = worst
        many = sum(difference > TOLERANCE for *_, difference in scored)
        raise ManifestError(
            f"{first.name} has {first.mos:g} in {first.place} and {second.mos:g} in "
            f"{second.place}; {many} of {len(scored)} shared videos differ by more than "
            f"{TOLERANCE:g}, so these are different scores and cannot be mixed"
            f"{_other_column(two, shared)}{_other_column(one, [(b, a) for a, b in shared])}"
        )
    return Agreement(
        shared=len(shared),
        compared=len(scored),
        largest=worst[2] if worst is not None else 0.0,
        only_one=tuple(one.names[row] for row in found.only_one),
        only_two=tuple(two.names[row] for row in found.only_two),
        unclear=unclear_pair(found, one.names, two.names),
        caution="" if scored else _scale_caution(one, two),
    )


def _scale_caution(one: Labels, two: Labels) -> str:
    """That nothing shows that two files are on one scale.

    Raises:
        ManifestError: if their ranges have nothing in common.
    """
    scores = [[row.mos for row in labels.rows if row.mos is not None] for labels in (one, two)]
    if not all(scores):
        return ""
    (low, high), (low_two, high_two) = ((min(some), max(some)) for some in scores)
    ranges = (
        f"{one.path} has scores from {low:g} to {high:g}, {two.path} from {low_two:g} to "
        f"{high_two:g}, and no video is scored in both"
    )
    if high < low_two or high_two < low:
        raise ManifestError(
            f"{ranges}, so these are two scales; `labels import` with a --name for "
            "each file keeps two data sets apart"
        )
    return f"{ranges}: nothing shows that both are on one scale"


def merged(files: Sequence[Labels]) -> Merged:
    """The rows of all files in their order; a video that several name stands once.

    What the first leaves open (score, scene, part, std, ratings) the next fills in.

    Raises:
        ManifestError: as `agreement` does, or if a name may be one of two.
    """
    rows = list(files[0].rows)
    cautions = []
    for number, labels in enumerate(files[1:], 1):
        names = [row.name for row in rows]
        found = match(names, labels.names)
        if found.unclear:
            raise ManifestError(
                f"{rows[found.unclear[0][0]].place}: {unclear_pair(found, names, labels.names)} of "
                f"{labels.path}"
            )
        cautions += [agreement(earlier, labels).caution for earlier in files[:number]]
        for row, other in found.pairs:
            rows[row] = _filled(rows[row], labels.rows[other])
        rows.extend(labels.rows[row] for row in found.only_two)
    return Merged(tuple(rows), tuple(filter(None, cautions)))


def _filled(row: Label, other: Label) -> Label:
    return replace(
        row,
        mos=other.mos if row.mos is None else row.mos,
        scene=row.scene or other.scene,
        part=row.part or other.part,
        std=other.std if row.std is None else row.std,
        ratings=other.ratings if row.ratings is None else row.ratings,
    )


def _other_column(two: Labels, shared: Sequence[tuple[Label, Label]]) -> str:
    """Which further column of `two` has the scores of the other file, in words."""
    if not shared:
        return ""
    for column in shared[0][1].other_scores:
        if all(
            first.mos is not None
            and abs(first.mos - second.other_scores.get(column, float("inf"))) <= TOLERANCE
            for first, second in shared
        ):
            return f"; column {column!r} of {two.path} has the same as the other file"
    return ""
