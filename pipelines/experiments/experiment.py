"""Experiments as data: cells on shared splits; each finished cell is a record that is kept."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from vqbank.pipelines.experiments.fits import Cell, Fits, SplitResult
from vqbank.pipelines.experiments.fitting import Fitted, Telling
from vqbank.pipelines.experiments.found import (
    as_json,
    files_sha256,
    head_record,
    labels_text,
    scores_sha256,
    set_record,
    sha256,
    software,
)
from vqbank.pipelines.experiments.further import FurtherSet
from vqbank.pipelines.experiments.rated import RatedVideos
from vqbank.pipelines.experiments.shared_splits import SharedSplits
from vqbank.pipelines.log import log
from vqbank.pipelines.recipe import Protocol, Recipe, required
from vqbank.pipelines.results.head_record import HeadRecord
from vqbank.pipelines.results.provenance import (
    Source,
    seen_by_weights,
    unknown_provenance,
    unknown_weights,
)
from vqbank.pipelines.results.record import Record
from vqbank.pipelines.results.records import joined, read_records, to_json
from vqbank.pipelines.results.set_record import SetRecord
from vqbank.pipelines.splits.split import first_alike
from vqbank.regressors import make_head
from vqbank.store.errors import RecipeError
from vqbank.store.files import write_atomically
from vqbank.store.words import few


@dataclass(frozen=True)
class Experiment:
    """Cells on the same videos and the same splits, so that their numbers can be compared."""

    title: str
    rated: RatedVideos
    """Those videos that have the features of every cell."""
    cells: Sequence[Cell]
    protocol: Protocol
    sets: Sequence[FurtherSet] = ()
    """What every fitted head predicts beside the test parts of the splits."""
    overlap: Literal["stop", "mark"] = "stop"
    """Whether videos of a test set may be trained on; its lines are marked then."""
    given: SharedSplits | None = None
    """Splits in place of those that the protocol makes, such as smaller training parts of them."""

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
            RecipeError: if it names no heads, or as `RatedVideos.of` and `FurtherSet.all_of` do.
            ManifestError: as `RatedVideos.of` does.
            MissingFeatureError: as `RatedVideos.of` does.
            UnknownNameError: if there is no such head.
        """
        rated = RatedVideos.of(recipe, weights=weights)
        named = {label: recipe.head(label) for label in required(recipe, "heads", option="--head")}
        heads = {label: make_head(name, **own) for label, (name, own) in named.items()}
        cells = [Cell(label, head, rated.table.roles) for label, head in heads.items()]
        sets = FurtherSet.all_of(recipe, rated, weights=weights)
        return cls(title, rated, cells, recipe.protocol, sets, recipe.overlap)

    @cached_property
    def splits(self) -> SharedSplits:
        """Made or read once, for all cells; or as given."""
        return self.given or SharedSplits.of(self.protocol, self.rated)

    def run(
        self, *, jobs: int = 1, watch: Telling | None = None, keep: Path | None = None
    ) -> Iterator[Record]:
        """A record for every cell, as soon as its last split is done.

        Args:
            jobs: processes; results are the same.
            watch: told of costs, steps and epochs, and of every fit that is done.
            keep: a folder in which each record is put in its place at once, under the hash of all
                that its fits depend on.  Cells that it holds are not computed again: a run that
                was killed goes on after the last cell that it finished.  Of runs with test sets,
                or one split, fitted heads are kept as well: another test set is predicted by them.
                None keeps nothing.

        Raises:
            RecipeError: as `SharedSplits.check` does, before anything is fitted; if cells share a
                label; if one starts from a head that was trained on tested videos; if nothing is
                tested, or a test set has videos that are trained on; or if a record in `keep` is
                damaged.
            HeadError: if a head cannot be fitted on a split.
        """
        if len({cell.label for cell in self.cells}) < len(self.cells):
            raise RecipeError(f"cells share a label: {', '.join(c.label for c in self.cells)}")
        self.splits.check((cell.head for cell in self.cells), self.rated.mos)
        self._refuse_sets()
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
        for result in self.fits(list(missing.values()), keep).run(jobs=jobs, watch=watch):
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

    def fits(self, cells: Sequence[Cell], keep: Path | None = None) -> Fits:
        """All fits of some of the cells, of which `run` makes records.

        Args:
            cells: of this experiment.
            keep: as of `run`.
        """
        by_label = {cell.label: cell for cell in cells}
        kept = {}
        if keep is not None and (self.sets or len(self.splits) == 1):
            kept = {cell.label: keep / self.key(cell) for cell in cells}
        return Fits(self.rated.table, self.rated.mos, by_label, self.splits, self.sets, kept)

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
        head, sets = records[0].heads[0], self.set_records(cell)
        kept_sets = zip(records[0].test_sets, head.sets, strict=True)
        held = {_content(one): scores for one, scores in kept_sets}
        if lacking := [one.name for one in sets if _content(one) not in held]:
            self._tell_of_more(cell, lacking, keep)
            return None
        update = {"name": cell.label, "sets": [held[_content(one)] for one in sets]}
        today = self._record(cell, head.model_copy(update=update))
        for name in ("features", "ids", "mos", "tests", "validations"):
            if getattr(records[0], name) != getattr(today, name):
                raise RecipeError(
                    f"{path} is not the record of the cell that it is named by: it has other "
                    f"{name}; remove it"
                )
        return today

    def _tell_of_more(self, cell: Cell, lacking: Sequence[str], keep: Path | None) -> None:
        """Say whether a cell is trained again to be tested on more sets."""
        names = few(lacking)
        if self.fits([cell], keep).has_heads(cell.label):
            log.info(
                "%s: its kept heads are tested on %s, and not trained again", cell.label, names
            )
        else:
            log.warning(
                "%s is trained again to be tested on %s: its heads were not kept, as they are of "
                "runs with test sets or one split",
                cell.label, names,
            )  # fmt: skip

    def set_records(self, cell: Cell) -> list[SetRecord]:
        """The test sets, as a cell sees them."""
        every = zip(self.sets, self._trained_on, strict=True)
        return [set_record(one, cell, trained_on=trained) for one, trained in every]

    @cached_property
    def _trained_on(self) -> list[list[int]]:
        """Of each test set the videos that are trained on."""
        return [one.trained_on(self.rated, self.splits.rows) for one in self.sets]

    def _refuse_sets(self) -> None:
        """Nothing to test, or a test set with videos that are trained on and may not be.

        Raises:
            RecipeError: naming the set, some of the videos, and what to do.
        """
        if not (self.sets or self.splits.tests_itself):
            raise RecipeError(
                f"splits {self.splits.name} train on all videos, and nothing is tested; name a "
                "test set by --test FILE, or in the recipe's `test`"
            )
        if self.overlap == "mark":
            return
        for one, rows in zip(self.sets, self._trained_on, strict=True):
            if rows:
                videos = one.rated.table.videos
                names = few([videos[row].id for row in rows])
                raise RecipeError(
                    f"test set {one.name}: {len(rows)} of its {len(videos)} videos are trained on, "
                    f"by id, as the same file or by their scene: {names}; leave them out, or "
                    "mark its lines by --overlap mark"
                )

    def _refuse_what_was_seen(self) -> None:
        """A head that goes on from one which was trained on videos that are tested here.

        Raises:
            RecipeError: naming the head, and some of the videos.
            HeadError: if the head that it starts from cannot be read.
        """
        tested = sorted({row for split in self.splits.rows for row in split.test.tolist()})
        every = [("", [self.rated.table.videos[row].id for row in tested])]
        every += [
            (f" in test set {one.name}", [video.id for video in one.rated.table.videos])
            for one in self.sets
        ]
        for cell in self.cells:
            for where, ids in every:
                if seen := cell.head.seen_before(ids):
                    raise RecipeError(
                        f"{cell.label} starts from a head that was trained on {len(seen)} of the "
                        f"{len(ids)} videos that are tested here{where}: {few(seen)}; start from "
                        "one that was trained on other videos"
                    )

    def key(self, cell: Cell) -> str:
        """A hash of everything that changes the numbers of a cell: the name of its record."""
        head, parameters = cell.head, cell.head.get_params()
        # On a GPU sums go in another order; of several of a kind it makes no difference which.
        device = str(parameters.get("device", "cpu")).partition(":")[0]
        stands_on = self._stands_on(cell)
        content = {
            "head": head.name,
            "parameters": as_json({n: v for n, v in parameters.items() if n not in head.unkept}),
            "features": [[role, self.rated.table.specs[role].key] for role in cell.roles],
            "files": [files_sha256(self.rated, role) for role in cell.roles],
            "shared": self._shared,
            "software": software(),
            **head.depends_on(),
        } | ({} if device == "cpu" else {"device": device})
        content |= {"stands_on": stands_on} if stands_on else {}
        return sha256(content)[:32]

    def _stands_on(self, cell: Cell) -> Mapping[str, Any]:
        """What a cell's head takes of the bank beside rows, read once."""
        known = self._known
        # scikit-learn leaves out the middle of a long repr of a head.
        place = f"{cell.head.name} {cell.head.get_params()} {cell.roles}"
        if place not in known:
            known[place] = cell.head.stands_on(self.rated.table.select(cell.roles))
        return known[place]

    @cached_property
    def _known(self) -> dict[str, Mapping[str, Any]]:
        return {}

    @cached_property
    def _shared(self) -> str:
        """A hash of what all cells share: videos, scenes and scores in their order, and splits."""
        videos = [[video.id, video.scene] for video in self.rated.table.videos]
        sides = [
            [side.tolist() for side in (split.train, split.validation, split.test)]
            for split in self.splits.rows
        ]
        texts = [self.splits.name, self.splits.text, self.rated.score_name]
        return sha256([videos, self.rated.mos.tolist(), sides, texts])

    @cached_property
    def _sides_sha256(self) -> str:
        """Of the ids on every side: equal for equal splits of the same videos in any order."""
        ids = [video.id for video in self.rated.table.videos]
        return sha256(
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
        return self._record(cell, head_record(cell, self.key(cell), self.splits, results))

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
            labels=labels_text(labels),
            videos=len(ids),
            ids=ids,
            mos=rated.mos.tolist(),
            splits=splits.text,
            splits_name=splits.name,
            splits_sha256=self._sides_sha256,
            mos_sha256=scores_sha256(ids, rated.mos.tolist()),
            mos_kind=labels.kind if labels is not None else "",
            test_videos=[len(split.test) for split in splits.rows],
            train_videos=[len(split.train) for split in splits.rows],
            tests=tests,
            validations=[split.validation.tolist() for split in splits.rows],
            same_test_as=first_alike(splits.rows),
            directions=splits.directions,
            number_selected_by=(
                "mean over all splits"
                if self.protocol.statistic == "mean"
                else "median over all splits"
            ),
            test_sets=self.set_records(cell),
            software=software(),
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


def _content(test_set: SetRecord) -> str:
    """A hash of what its numbers depend on, beside the fitted heads."""
    return sha256([test_set.ids, test_set.mos, test_set.files_sha256])
