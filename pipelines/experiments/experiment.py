"""Experiments as data: cells on shared splits; each finished cell is a record that is kept."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from vqbank.pipelines.experiments.fits import Cell, Fits, SplitResult
from vqbank.pipelines.experiments.fitting import Fitted, Telling
from vqbank.pipelines.experiments.rated import RatedVideos
from vqbank.pipelines.experiments.shared_splits import SharedSplits
from vqbank.pipelines.recipe import Protocol, Recipe, required
from vqbank.pipelines.results.provenance import (
    Source,
    seen_by_weights,
    unknown_provenance,
    unknown_weights,
)
from vqbank.pipelines.results.record import HeadRecord, Mapped, Record
from vqbank.pipelines.results.records import joined, read_records, to_json
from vqbank.pipelines.results.statistics import METRICS, Statistics
from vqbank.pipelines.splits.split import first_alike
from vqbank.regressors import make_head
from vqbank.store.errors import RecipeError
from vqbank.store.files import write_atomically
from vqbank.store.words import few

SOFTWARE = ("vqbank", "numpy", "scipy", "scikit-learn", "torch")
"""What computes the numbers of a cell; another version may give others."""


@dataclass(frozen=True)
class Experiment:
    """Cells on the same videos and the same splits, so that their numbers can be compared."""

    title: str
    rated: RatedVideos
    """Those videos that have the features of every cell."""
    cells: Sequence[Cell]
    protocol: Protocol

    @classmethod
    def of(
        cls, recipe: Recipe, *, title: str, weights: Mapping[str, str] | None = None
    ) -> "Experiment":
        """Every head of a recipe on all of its features.

        Args:
            recipe: names videos, bank, features, heads and protocol.
            title: for tables.
            weights: of extractors, where the bank has a feature of several.

        Raises:
            RecipeError: if it names no heads, or as `RatedVideos.of` does.
            ManifestError: as `RatedVideos.of` does.
            MissingFeatureError: as `RatedVideos.of` does.
            UnknownNameError: if there is no such head.
        """
        rated = RatedVideos.of(recipe, weights=weights)
        named = {label: recipe.head(label) for label in required(recipe, "heads", option="--head")}
        heads = {label: make_head(name, **own) for label, (name, own) in named.items()}
        cells = [Cell(label, head, rated.table.roles) for label, head in heads.items()]
        return cls(title, rated, cells, recipe.protocol)

    @cached_property
    def splits(self) -> SharedSplits:
        """Made or read once, for all cells."""
        return SharedSplits.of(self.protocol, self.rated)

    def run(
        self, *, jobs: int = 1, watch: Telling | None = None, keep: Path | None = None
    ) -> Iterator[Record]:
        """A record for every cell, as soon as its last split is done.

        Args:
            jobs: processes; results are the same.
            watch: told of costs, steps and epochs, and of every fit that is done.
            keep: a folder in which each record is put in its place at once, under the hash of all
                that its numbers depend on.  Cells that it holds are not computed again: a run that
                was killed goes on after the last cell that it finished.  None keeps nothing.

        Raises:
            RecipeError: as `SharedSplits.check` does, before anything is fitted; if cells share a
                label; if one starts from a head that was trained on tested videos; or if a record
                in `keep` is damaged.
            HeadError: if a head cannot be fitted on a split.
        """
        if len({cell.label for cell in self.cells}) < len(self.cells):
            raise RecipeError(f"cells share a label: {', '.join(c.label for c in self.cells)}")
        self.splits.check((cell.head for cell in self.cells), self.rated.mos)
        self._refuse_what_was_seen()
        missing: dict[str, Cell] = {}
        for cell in self.cells:
            if (record := self._read(cell, keep)) is None:
                missing[cell.label] = cell
            else:
                yield record
                if watch is not None:
                    for split in range(len(self.splits)):
                        watch(Fitted(cell.label, split))
        if not missing:
            return
        found: dict[str, list[SplitResult]] = {label: [] for label in missing}
        for result in self.fits(list(missing.values())).run(jobs=jobs, watch=watch):
            found[result.cell].append(result)
            if watch is not None:
                watch(Fitted(result.cell, result.split))
            if len(found[result.cell]) == len(self.splits):
                record = self.record(missing[result.cell], found.pop(result.cell))
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    path = keep / f"{record.heads[0].cell}.json"
                    write_atomically(path, to_json(record).encode())
                yield record

    def fits(self, cells: Sequence[Cell]) -> Fits:
        """All fits of some of the cells, of which `run` makes records."""
        by_label = {cell.label: cell for cell in cells}
        return Fits(self.rated.table, self.rated.mos, by_label, self.splits)

    def _read(self, cell: Cell, keep: Path | None) -> Record | None:
        """The head that a folder holds of a cell, in a record that says all else as of today.

        Raises:
            RecipeError: if the file there is damaged, or of other videos, scores or splits.
        """
        key = self.key(cell)
        path = None if keep is None else keep / f"{key}.json"
        if path is None or not path.exists():
            return None
        records = read_records(path)
        if [head.cell for record in records for head in record.heads] != [key]:
            raise RecipeError(
                f"{path} is not the record of the cell that it is named by; remove it"
            )
        head = records[0].heads[0].model_copy(update={"name": cell.label})
        today = self._record(cell, head)
        for name in ("features", "ids", "mos", "tests", "validations"):
            if getattr(records[0], name) != getattr(today, name):
                raise RecipeError(
                    f"{path} is not the record of the cell that it is named by: it has other "
                    f"{name}; remove it"
                )
        return today

    def _refuse_what_was_seen(self) -> None:
        """A head that goes on from one which was trained on videos that are tested here.

        Raises:
            RecipeError: naming the head, and some of the videos.
            HeadError: if the head that it starts from cannot be read.
        """
        tested = sorted({row for split in self.splits.rows for row in split.test.tolist()})
        ids = [self.rated.table.videos[row].id for row in tested]
        for cell in self.cells:
            if seen := cell.head.seen_before(ids):
                raise RecipeError(
                    f"{cell.label} starts from a head that was trained on {len(seen)} of the "
                    f"{len(ids)} videos that are tested here: {few(seen)}; start from one that "
                    "was trained on other videos"
                )

    def key(self, cell: Cell) -> str:
        """A hash of everything that changes the numbers of a cell: the name of its record."""
        head, parameters = cell.head, cell.head.get_params()
        # On a GPU sums go in another order; of several of a kind it makes no difference which.
        device = str(parameters.get("device", "cpu")).partition(":")[0]
        content = {
            "head": head.name,
            "parameters": _json({n: v for n, v in parameters.items() if n not in head.unkept}),
            "features": [[role, self.rated.table.specs[role].key] for role in cell.roles],
            "files": [self._files(role) for role in cell.roles],
            "shared": self._shared,
            "software": _software(),
            **head.depends_on(),
        } | ({} if device == "cpu" else {"device": device})
        return _sha256(content)[:32]

    def _files(self, role: str) -> str:
        """A hash of whose features these are: of the videos' files, or of the values themselves."""
        table = self.rated.table
        files = self.rated.files.get(table.specs[role].key)
        if files is not None:
            return _sha256(list(files))
        digest = hashlib.sha256()
        for row in range(len(table)):
            digest.update(np.ascontiguousarray(table.series(role, row)).tobytes())
        return digest.hexdigest()

    @cached_property
    def _shared(self) -> str:
        """A hash of what all cells share: videos, scenes and scores in their order, and splits."""
        videos = [[video.id, video.scene] for video in self.rated.table.videos]
        sides = [
            [side.tolist() for side in (split.train, split.validation, split.test)]
            for split in self.splits.rows
        ]
        texts = [self.splits.name, self.splits.text, self.rated.score_name]
        return _sha256([videos, self.rated.mos.tolist(), sides, texts])

    @cached_property
    def _sides_sha256(self) -> str:
        """Of the ids on every side: equal for equal splits of the same videos in any order."""
        ids = [video.id for video in self.rated.table.videos]
        return _sha256(
            [
                [sorted(ids[row] for row in side.tolist()) for side in sides]
                for sides in ((s.train, s.validation, s.test) for s in self.splits.rows)
            ]
        )

    def record(self, cell: Cell, results: Sequence[SplitResult]) -> Record:
        """What was found of a cell.

        Args:
            cell: of this experiment.
            results: one for each split, in any order.
        """
        return self._record(cell, _head_record(cell, self.key(cell), self.splits, results))

    def _record(self, cell: Cell, head: HeadRecord) -> Record:
        """Of one head, on the features of its cell."""
        rated, splits = self.rated, self.splits
        specs = {role: rated.table.specs[role] for role in cell.roles}
        names = {spec.name for spec in specs.values()}
        ids = [video.id for video in rated.table.videos]
        tests = [split.test.tolist() for split in splits.rows]
        tested = sorted({row for test in tests for row in test})
        labels = rated.labels
        return Record(
            title=self.title,
            score_name=rated.score_name,
            features={role: spec.key for role, spec in specs.items()},
            sources={role: Source.of(spec) for role, spec in specs.items()},
            provenance_unknown=unknown_provenance(specs),
            filled={name: count for name, count in rated.filled.items() if name in names},
            left_out={name: count for name, count in rated.left_out.items() if name in names},
            random_weights=any(spec.uses_random_weights for spec in specs.values()),
            seen_by_weights=seen_by_weights(specs, (ids[row] for row in tested)),
            seen_per_split=[seen_by_weights(specs, (ids[row] for row in test)) for test in tests],
            weights_unknown=unknown_weights(specs),
            taken_for=rated.taken_for,
            labels=f"{labels.path.name}: {labels.layout}" if labels is not None else None,
            videos=len(ids),
            ids=ids,
            mos=rated.mos.tolist(),
            splits=splits.text,
            splits_name=splits.name,
            splits_sha256=self._sides_sha256,
            mos_sha256=_sha256(sorted(zip(ids, rated.mos.tolist(), strict=True))),
            mos_kind=labels.kind if labels is not None else "",
            test_videos=[len(split.test) for split in splits.rows],
            train_videos=[len(split.train) for split in splits.rows],
            tests=tests,
            validations=[split.validation.tolist() for split in splits.rows],
            same_test_as=first_alike(splits.rows),
            directions=splits.directions,
            software=_software(),
            heads=[head],
        )


def evaluate(
    experiment: Experiment,
    *,
    jobs: int = 1,
    watch: Telling | None = None,
    keep: Path | None = None,
) -> Record:
    """Run the experiment of one feature set: one record of all its heads, in their order.

    Args:
        experiment: whose cells are all on the same features.
        jobs: as of `Experiment.run`.
        watch: as of `Experiment.run`.
        keep: as of `Experiment.run`.

    Raises:
        RecipeError: as `Experiment.run` does, or, before anything is fitted, if cells are of
            different features.
        HeadError: as `Experiment.run` does.
    """
    first, *others = experiment.cells
    for cell in others:
        if cell.roles != first.roles:
            raise RecipeError(
                f"cells {first.label} and {cell.label} are on other features "
                f"({', '.join(first.roles)}; {', '.join(cell.roles)}), and cannot be one record; "
                "run them one by one"
            )
    records = {r.heads[0].name: r for r in experiment.run(jobs=jobs, watch=watch, keep=keep)}
    return joined([records[cell.label] for cell in experiment.cells])


def _head_record(
    cell: Cell, key: str, splits: SharedSplits, results: Sequence[SplitResult]
) -> HeadRecord:
    results = sorted(results, key=lambda result: result.split)
    per_split = {
        metric: np.array([getattr(result.metrics, metric) for result in results])
        for metric in METRICS
    }
    different = sorted(set(first_alike(splits.rows)))
    return HeadRecord(
        name=cell.label,
        parameters=_json(cell.head.get_params()),
        selection=[result.selection for result in results],
        held_out=[result.held_out for result in results if result.held_out is not None],
        undefined=int(np.isnan(per_split["srcc"]).sum()),
        statistics={m: Statistics.of(values, different) for m, values in per_split.items()},
        per_split={metric: values.tolist() for metric, values in per_split.items()},
        fits=[result.metrics.fit for result in results],
        mappings=[
            Mapped(kind=r.metrics.mapping, parameters=list(r.metrics.parameters)) for r in results
        ],
        predicted=[result.predicted.tolist() for result in results],
        seconds=[result.seconds for result in results],
        cell=key,
    )


@cache
def _software() -> dict[str, str]:
    return {name: version(name) for name in SOFTWARE}


def _json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
