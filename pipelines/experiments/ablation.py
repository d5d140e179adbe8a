"""Which features help: cells on parts of the features, all on the same splits."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vqbank.pipelines.experiments.experiment import Experiment
from vqbank.pipelines.experiments.fits import Cell
from vqbank.pipelines.experiments.fitting import Telling
from vqbank.pipelines.experiments.sets import ALL, Sets, check_ways, sets_of
from vqbank.pipelines.experiments.shared_splits import SharedSplits
from vqbank.pipelines.results.record import Record
from vqbank.pipelines.splits.split import Split
from vqbank.regressors.base import Head
from vqbank.regressors.holdout import hold_out_scenes, scenes_of
from vqbank.store.errors import HeadError, RecipeError

HELD_OUT = 0.25
"""Of the scenes of a training part, by which the greedy way chooses."""


@dataclass(frozen=True, slots=True)
class Row:
    """A line of an ablation: what was tried, and its record of one head."""

    head: str
    features: str
    """The name of the set, such as "without motion"; ALL of the full model."""
    record: Record


def ablate(
    experiment: Experiment,
    *,
    ways: Sequence[str],
    own: Sequence[Sequence[str]] = (),
    jobs: int = 1,
    watch: Telling | None = None,
    keep: Path | None = None,
) -> list[Row]:
    """Try every head of an experiment on sets of its features.

    All sets of all heads are cells of one experiment: features are read and pooled once, splits
    made once, and fits of all cells share the processes.

    Args:
        experiment: whose cells are the heads, on all features.
        ways: of WAYS.
        own: further sets of roles.
        jobs: as of `Experiment.run`.
        watch: as of `Experiment.run`.
        keep: as of `Experiment.run`.

    Returns:
        The full model of each head, and then the sets, head by head; the greedy ones last.

    Raises:
        RecipeError: as `Experiment.run` does, or if there is no such role.
        UnknownNameError: if there is no such way.
        HeadError: as `Experiment.run` does.
    """
    check_ways(ways)
    sets = sets_of(experiment.rated.table.roles, ways, own)
    heads = {cell.label: cell.head for cell in experiment.cells}
    rows = list(_run(experiment, heads, sets, jobs=jobs, watch=watch, keep=keep))
    if "greedy" in ways:
        for label, head in heads.items():
            steps = _greedy(experiment, head, jobs=jobs, watch=watch, keep=keep)
            named = {f"greedy {len(one)}: {' + '.join(one)}": one for one in steps}
            rows += _run(experiment, {label: head}, named, jobs=jobs, watch=watch, keep=keep)
    return rows


def cells_of(heads: Mapping[str, Head], sets: Sets) -> dict[tuple[str, str], Cell]:
    """A cell for each head and set; that of the full model has the head's own label."""
    return {
        (label, name): Cell(label if name == ALL else f"{label}, {name}", head, roles)
        for label, head in heads.items()
        for name, roles in sets.items()
    }


def _run(
    experiment: Experiment,
    heads: Mapping[str, Head],
    sets: Sets,
    *,
    jobs: int,
    watch: Telling | None,
    keep: Path | None,
) -> Iterator[Row]:
    cells = cells_of(heads, sets)
    every = replace(experiment, cells=list(cells.values()), given=experiment.splits)
    records = {r.heads[0].name: r for r in every.run(jobs=jobs, watch=watch, keep=keep)}
    for (label, name), cell in cells.items():
        yield Row(label, name, records[cell.label])


def _greedy(
    experiment: Experiment, head: Head, *, jobs: int, watch: Telling | None, keep: Path | None
) -> list[tuple[str, ...]]:
    """Sets that grow by the feature that helps most, judged on rows held out of training parts."""
    inner = replace(experiment, given=held_out_of_training(experiment.splits), sets=())
    roles = experiment.rated.table.roles
    chosen: list[tuple[str, ...]] = []
    while len(chosen) < len(roles):
        so_far = chosen[-1] if chosen else ()
        grown = [
            tuple(r for r in roles if r in (*so_far, role)) for role in roles if role not in so_far
        ]
        sets = {" + ".join(one): one for one in grown}
        rows = list(_run(inner, {head.name: head}, sets, jobs=jobs, watch=watch, keep=keep))
        best = max(rows, key=lambda row: row.record.heads[0].statistics["srcc"].median)
        chosen.append(sets[best.features])
    return chosen


def held_out_of_training(splits: SharedSplits) -> SharedSplits:
    """Splits of the training parts alone: whole scenes of each are tested, and no test row is seen.

    Raises:
        RecipeError: if a training part has too few scenes.
    """

    def inner(number: int, split: Split) -> Split:
        videos = [splits.videos[row] for row in split.train.tolist()]
        rng = np.random.default_rng([1, number])
        try:
            held = hold_out_scenes(videos, fraction=HELD_OUT, rng=rng)
        except HeadError as error:
            raise RecipeError(f"split {number}, greedy: {error}") from error
        return Split(split.train[~held], split.train[held])

    rows = [inner(number, split) for number, split in enumerate(splits.rows)]
    changed = f"Of each training part {HELD_OUT:.0%} of the scenes are tested, and nothing else."
    return replace(splits, rows=rows, name=f"{splits.name}, held out", changed=changed)


def with_fraction(splits: SharedSplits, fraction: float) -> SharedSplits:
    """The same splits with some of the scenes of each training part; of less a part of more.

    Args:
        splits: whose test parts stay.
        fraction: of the scenes of a training part, above 0 and at most 1.

    Raises:
        RecipeError: if it is none.
    """
    if not 0 < fraction <= 1:
        raise RecipeError(f"a fraction of scenes lies above 0 and is at most 1; got {fraction:g}")
    if fraction == 1:
        return splits

    def smaller(number: int, split: Split) -> Split:
        scenes = np.array(scenes_of([splits.videos[row] for row in split.train.tolist()]))
        names = np.array(sorted(set(scenes.tolist())))
        order = np.random.default_rng([2, number]).permutation(len(names))
        kept = names[order[: max(1, round(fraction * len(names)))]]
        train = split.train[np.isin(scenes, kept)]
        return Split(train, split.test, np.intersect1d(split.validation, train))

    rows = [smaller(number, split) for number, split in enumerate(splits.rows)]
    changed = f"Of each training part {fraction:.4g} of the scenes are trained on."
    return replace(splits, rows=rows, name=f"{splits.name}, {fraction:.4g}", changed=changed)


def learning_curve(
    experiment: Experiment,
    fractions: Sequence[float],
    *,
    jobs: int = 1,
    watch: Telling | None = None,
    keep: Path | None = None,
) -> list[Row]:
    """Every head of an experiment on some of the training scenes, on the same test parts.

    Args:
        experiment: whose cells are the heads.
        fractions: of the scenes, each above 0 and at most 1.
        jobs: as of `Experiment.run`.
        watch: as of `Experiment.run`.
        keep: as of `Experiment.run`.

    Returns:
        Fraction by fraction; the sets of features are called by them, and ALL is the whole.

    Raises:
        RecipeError: as `Experiment.run` does, or if a fraction is none.
    """
    heads = {cell.label: cell.head for cell in experiment.cells}
    rows: list[Row] = []
    for fraction in sorted(set(fractions) | {1.0}):
        given = with_fraction(experiment.splits, fraction)
        name = ALL if fraction == 1 else f"{fraction:.4g} of the training scenes"
        sets = {name: experiment.rated.table.roles}
        part = replace(experiment, given=given)
        rows += _run(part, heads, sets, jobs=jobs, watch=watch, keep=keep)
    return rows
