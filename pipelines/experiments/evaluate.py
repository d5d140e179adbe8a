"""Try heads on splits of a table: fit on the training rows, predict the test rows, measure."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from joblib import cpu_count
from numpy.typing import NDArray
from sklearn.base import clone

from vqbank.pipelines.entries import with_keys
from vqbank.pipelines.experiments.fitting import Telling
from vqbank.pipelines.experiments.processes import in_workers
from vqbank.pipelines.labels import Labels, read_labels
from vqbank.pipelines.labels.match import Match, assumed_data_set, match, unclear_pair
from vqbank.pipelines.labels.videos import videos_of
from vqbank.pipelines.manifest import is_manifest, read_videos, scores
from vqbank.pipelines.recipe import Protocol, Recipe, required
from vqbank.pipelines.splits.file import same_videos, splits_file
from vqbank.pipelines.splits.ours import refuse_without_scenes, scene_splits
from vqbank.pipelines.splits.schemes import SCHEMES, named_splits, scheme_of
from vqbank.pipelines.splits.split import (
    LEAST_TESTED,
    Split,
    first_alike,
    splits_without,
    too_small,
)
from vqbank.regressors import make_head
from vqbank.regressors.base import Head
from vqbank.regressors.metrics import QualityMetrics, quality_metrics
from vqbank.regressors.pooled_head import PooledHead
from vqbank.regressors.pooling import PooledTable, pooled, pooled_width
from vqbank.regressors.progress import Cost
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import (
    HeadError,
    ManifestError,
    MissingFeatureError,
    RecipeError,
    VqbankError,
)
from vqbank.store.schema import FeatureSpec, Video
from vqbank.store.table import FeatureTable

WORTH_WORKERS_SECONDS = 10.0
"""What is left of a trial goes to worker processes if it takes longer: to start them takes some."""
TOGETHER = 4
"""Splits whose networks are trained at the same time: a number that neither cores nor processes
change, so that results are the same; more gain little, and leave other cores without work."""
LONG_OPERATIONS = 1e10
"""Of a fit, which then takes a few seconds or more: it is done in a process that can be killed."""
MEASURED_VIDEOS = 600
"""Of the small fit by which a long one is foretold."""


Task = tuple[str, Sequence[tuple[int, Split]]]
"""A head, and the splits that it is tried on with their numbers."""
TABLE_BYTES = 2**30
"""A table up to this size is read into memory once, for all splits of heads of whole series."""


@dataclass(frozen=True, slots=True, eq=False)
class SplitResult:
    """One head on one split."""

    head: str
    split: int
    metrics: QualityMetrics
    """Of the test rows."""
    selection: str
    """By which rule the head's hyper-parameters or epoch were chosen; never on test rows."""
    rows: NDArray[np.int64]
    """Test rows of the table."""
    mos: NDArray[np.float64]
    predicted: NDArray[np.float64]


@dataclass(frozen=True)
class Trial:
    """Heads to be tried on the features and scores of some videos."""

    title: str
    score_name: str
    """Such as MOS or pseudo-score."""
    table: FeatureTable
    mos: NDArray[np.float64]
    """[n], on the data set's own scale."""
    heads: Mapping[str, Head]
    """Unfitted, by name."""
    protocol: Protocol
    labels: Labels | None = None
    """The label file, with the same rows, where the scores come from one."""
    filled: Mapping[str, int] = field(default_factory=dict)
    """By feature, how many videos came with values that were not finite, and at their import got
    the mean over all videos, those of test parts included."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """By feature, how many rows of its file an import left out, as none of their values was
    finite."""
    stated: Sequence[Video] = ()
    """All videos of the manifest, by its own ids, where some that lack a feature were dropped:
    splits are made of all, and then without these."""
    kept: NDArray[np.bool_] | None = None
    """Of `stated`, which are in the table."""
    taken_for: str = ""
    """The bank's data set that videos were taken to be of, where their file states another."""

    @classmethod
    def of(cls, recipe: Recipe, *, title: str, weights: Mapping[str, str] | None = None) -> "Trial":
        """Read what a recipe names.

        Args:
            recipe: features go by the bank's names, keys, or the names of the recipe's extractors.
            title: for tables.
            weights: of extractors, where the bank has a feature of several.

        Raises:
            RecipeError: if it names no videos, bank, features or heads, or videos and labels; or if
                videos of a label file shall be dropped.
            ManifestError: if a video has no score.
            MissingFeatureError: if a video lacks a feature, and is not to be dropped.
        """
        if recipe.labels is not None and recipe.videos is not None:
            raise RecipeError("videos and labels both name the videos; give one of them")
        source = recipe.labels or required(recipe, "videos", option="--videos or --labels")
        store = FeatureStore(required(recipe, "bank", option="--bank"))
        required(recipe, "features", option="--features")
        features = with_keys(recipe, weights=weights).features
        labels = None
        specs = [store.resolve(name) for name in features.values()]
        if recipe.labels is None or is_manifest(source):
            if recipe.score is not None:
                raise RecipeError(
                    f"score {recipe.score!r} is a column of a label file, and {source} is none: a "
                    "manifest's scores are its column mos"
                )
            stated = read_videos(source)
            videos = _banked_manifest(stated, store, specs)
        else:
            labels = read_labels(source, score=recipe.score)
            videos = banked_videos(labels, store, specs)
            stated = videos_of(labels.rows, labels.path.stem)
        kept = np.ones(len(videos), bool)
        if recipe.missing == "drop":
            if labels is not None:
                raise RecipeError(
                    "videos of a label file are not dropped, as lines may be wrong: make a "
                    "manifest by `vqbank labels import`"
                )
            found = [store.find(spec, [video.id for video in videos]) for spec in specs]
            kept = np.array([None not in own for own in zip(*found, strict=True)])
        taken_for = _taken_for(stated, videos)
        some = [video for video, has in zip(videos, kept, strict=True) if has]
        videos = some or videos  # with none, the table says what is lacking
        try:
            table = store.table(videos, features)
        except MissingFeatureError as error:
            if labels is not None or recipe.missing == "drop":
                raise
            raise MissingFeatureError(f"{error}; or drop these videos by --missing drop") from error
        for spec in specs:
            _refuse_one_file_in_two_scenes(store, spec, videos)
        named = {label: recipe.head(label) for label in required(recipe, "heads", option="--head")}
        return cls(
            title=title,
            score_name=recipe.score_name,
            table=table,
            mos=np.array(scores(videos)),
            heads={label: make_head(name, **own) for label, (name, own) in named.items()},
            protocol=recipe.protocol,
            labels=labels,
            filled=_filled(store, specs, videos),
            left_out=_left_out(store, specs, videos),
            stated=() if kept.all() else stated,
            kept=None if kept.all() else kept,
            taken_for=taken_for,
        )

    @cached_property
    def splits(self) -> list[Split]:
        """Rows to fit and rows to test, as the protocol says."""
        protocol, videos = self.protocol, self.stated or self.table.videos
        if protocol.splits != "scene":
            splits = named_splits(protocol.splits, videos, labels=self.labels)
        else:
            refuse_without_scenes("scene", videos)
            splits = scene_splits(
                videos,
                count=protocol.count,
                test_fraction=protocol.test_fraction,
                min_test_scenes=protocol.min_test_scenes,
                seed=protocol.seed,
            )
        return splits if self.kept is None else splits_without(splits, self.kept)

    @property
    def dropped(self) -> list[str]:
        """Ids of the videos that were dropped, because they lack a feature."""
        if self.kept is None:
            return []
        return [video.id for video, has in zip(self.stated, self.kept, strict=True) if not has]

    @cached_property
    def splits_name(self) -> str:
        """The name of the scheme, also where a file holds what it made."""
        name = self.protocol.splits
        return splits_file(Path(name)).name if name.endswith(".json") else name

    @property
    def leaves_out_sets(self) -> bool:
        """Whether whole data sets are tested by heads that saw others, each with its own scale."""
        return self.splits_name == "across"

    @property
    def protocol_text(self) -> str:
        """How the splits are made, in a sentence."""
        alone = sum(video.scene is None for video in self.table.videos)
        caution = f" {alone} videos have no scene and count as one each." if alone else ""
        dropped = ""
        if self.stated:
            counts = f"{len(self.dropped)} of {len(self.stated)}"
            dropped = f" {counts} videos lack a feature and are left out of every side."
        repeated = self._repeated_text
        if self.protocol.splits == "scene":
            return (
                f"{len(self.splits)} random splits, {self.protocol.test_fraction:.0%} of the "
                f"scenes for testing (seed {self.protocol.seed}), no scene on two sides."
                f"{caution}{dropped}{repeated}"
            )
        if self.protocol.splits.endswith(".json"):
            file = Path(self.protocol.splits).name
            how = f"The {len(self.splits)} splits {self.splits_name} of {file}."
        else:
            scheme, _ = scheme_of(self.protocol.splits)
            how = f"Splits {self.protocol.splits}: {SCHEMES[scheme].about}."
        if any(len(split.validation) for split in self.splits):
            how += (
                " Epochs are chosen on the validation part; heads without epochs are not fitted "
                "on it."
            )
        if self.leaves_out_sets:
            how += (
                " Training scores are in standard deviations from the mean of their own data set, "
                "and so are predictions."
            )
        how += dropped + repeated
        scenes = [video.scene for video in self.table.videos if video.scene is not None]
        if len(set(scenes)) < len(scenes) and self.mixed_scenes:
            how += (
                f" Scenes stand on both sides in {self.mixed_scenes} of {len(self.splits)}: what "
                "is tested was seen in training, in other versions."
            )
        return how

    @property
    def _repeated_text(self) -> str:
        """Where splits are fewer than their name says, or the same ones again."""
        text, made = "", len(self.splits)
        if self.splits_asked > made:
            text += f" {self.splits_asked} were asked for: there are no more different test parts."
        different = len(set(first_alike(self.splits)))
        if different < made:
            text += (
                f" Only {different} of the {made} test parts are different: intervals and paired "
                "tests count those that repeat once."
            )
        return text

    @property
    def splits_asked(self) -> int:
        """How many splits the protocol asks for; 0 where the videos or a file decide."""
        if self.protocol.splits == "scene":
            return self.protocol.count
        try:
            return scheme_of(self.splits_name)[1]
        except VqbankError:  # a file of splits may have any name
            return 0

    @property
    def directions(self) -> list[str]:
        """Per split, from which data sets to which, where whole ones are left out; else none."""
        if not self.leaves_out_sets:
            return []
        sets = np.array([video.id.partition("/")[0] for video in self.table.videos])
        return [
            f"{' + '.join(sorted(set(sets[split.train])))} → "
            f"{' + '.join(sorted(set(sets[split.test])))}"
            for split in self.splits
        ]

    def check_splits(self) -> None:
        """Refuse parts of splits that no head can be fitted on or measured by.

        Raises:
            RecipeError: naming the split, the part and what to do.
        """
        fewest = max(head.min_videos for head in self.heads.values())
        epochs = any(head.has_epochs for head in self.heads.values())
        for number, split in enumerate(self.splits):
            parts = [("training", split.train, fewest), ("test", split.test, LEAST_TESTED)]
            if epochs and len(split.validation):
                parts.append(("validation", split.validation, 2))
            for part, rows, least in parts:
                if problem := too_small(rows, self.mos, least):
                    first = f" ({self.table.videos[rows[0]].id})" if len(rows) else ""
                    raise RecipeError(
                        f"split {number} of {self.splits_name}: its {part} part has {problem}"
                        f"{first}, and needs {least} or more, with different scores; take splits "
                        "with a larger one (the recipe's `min_test_scenes` or `test_fraction`, "
                        "another number of folds, other --splits), or more videos"
                    )

    @cached_property
    def mixed_scenes(self) -> int:
        """In how many splits a scene stands in training and in test."""
        scenes = np.array([video.scene or f"\0{video.id}" for video in self.table.videos])
        return sum(
            bool(set(scenes[split.train]) & set(scenes[split.test])) for split in self.splits
        )

    @property
    def has_random_weights(self) -> bool:
        """Whether any feature comes from weights that nobody trained."""
        return any(spec.uses_random_weights for spec in self.table.specs.values())

    def run(self, *, jobs: int = 1, watch: Telling | None = None) -> Iterator[SplitResult]:
        """Every head on every split; heads are cloned, never fitted in place.

        Args:
            jobs: processes.  They start only if, by the time of the first splits, what is left
                takes longer than starting them, but at once for networks too large for a stack, and
                for fits that take long, because a process can be ended; results are the same.
            watch: told what fits that take long will cost, before the first of them, and of their
                steps and the epochs of networks as they come, if in processes by a thread.

        Raises:
            RecipeError: as `check_splits` does, before anything is fitted.
            HeadError: if a head cannot be fitted on a split.
        """
        self.check_splits()
        table = self.table
        kinds = [isinstance(head, PooledHead) for head in self.heads.values()]
        if not all(kinds):
            table = table.in_memory(budget_bytes=TABLE_BYTES)
        if any(kinds):
            table = PooledTable(table, pooled(table))
        trial = replace(self, table=table, labels=None)
        splits = list(enumerate(self.splits))
        together = {n: h for n, h in self.heads.items() if h.trains_together(trial.table)}
        rest = {n: h for n, h in self.heads.items() if n not in together}
        large = [name for name, head in rest.items() if head.shares(trial.table)]
        long = trial._long(rest)
        if watch is not None:
            costs = [trial.cost(n, splits[0][1].train, fits=len(splits), jobs=jobs) for n in long]
            for cost in filter(None, costs):
                watch(cost)
        alone = [name for name in rest if name not in (*large, *long)]
        yield from trial._in_turn([(n, [one]) for one in splits for n in alone], jobs, watch)
        yield from trial._in_processes([(n, [one]) for one in splits for n in long], jobs, watch)
        parts = [splits[at : at + TOGETHER] for at in range(0, len(splits), TOGETHER)]
        yield from trial._in_turn([(n, part) for part in parts for n in together], jobs, watch)
        # Networks that start processes by themselves, which share the features.
        for at in range(0, len(splits), jobs):
            for name in large:
                yield from trial.run_splits(name, splits[at : at + jobs], watch, jobs=jobs)

    def _in_turn(
        self, tasks: Sequence[Task], jobs: int, watch: Telling | None
    ) -> Iterator[SplitResult]:
        """One after the other, or in processes where that is worth it."""
        heads = len({name for name, _ in tasks})
        started = time.monotonic()
        for number, task in enumerate(tasks):
            if number == heads and jobs > 1:  # every head has shown how long it takes
                left = (len(tasks) - number) * (time.monotonic() - started) / number
                if left > WORTH_WORKERS_SECONDS:
                    yield from self._in_processes(tasks[number:], jobs, watch)
                    return
            yield from self.run_splits(*task, watch)

    def _in_processes(
        self, tasks: Sequence[Task], jobs: int, watch: Telling | None
    ) -> Iterator[SplitResult]:
        for results in in_workers(self.run_splits, tasks, jobs=jobs, watch=watch):
            yield from results

    def _long(self, names: Iterable[str]) -> list[str]:
        """Heads whose fits take long."""
        most = max(len(split.train) for split in self.splits)
        return [name for name in names if takes_long(self.heads[name], self.table, most)]

    def cost(self, name: str, rows: NDArray[np.int64], *, fits: int, jobs: int = 1) -> Cost | None:
        """What fits of a head on such rows will take, by one on a few of them.

        Args:
            name: of the head, one on pooled features.
            rows: of the table, of one fit.
            fits: how many there will be.
            jobs: how many at the same time.

        Returns:
            None where the few rows cannot be fitted: they share a score, or have too few scenes.
        """
        head = self.heads[name]
        some = np.sort(np.random.default_rng(0).permutation(rows)[:MEASURED_VIDEOS])
        if not isinstance(head, PooledHead) or len(np.unique(self.mos[some])) < 2:
            return None
        table, width = self.table.subset(some), pooled_width(self.table.specs.values())
        small = head.small(len(rows))
        started = time.monotonic()
        try:
            small.fit(table, self.mos[some])
        except HeadError:  # all rows may have scenes enough; if not, their own fit says so
            return None
        took = time.monotonic() - started
        seconds = took * head.operations(len(rows), width) / small.operations(len(some), width)
        return Cost(name, len(rows), seconds, fits, seconds * math.ceil(fits / jobs))

    def run_splits(
        self,
        name: str,
        splits: Sequence[tuple[int, Split]],
        watch: Telling | None = None,
        *,
        jobs: int = 1,
    ) -> list[SplitResult]:
        """One head on some splits with their numbers, at the same time where it can be.

        Args:
            name: of the head.
            splits: with their numbers.
            watch: told of every epoch of a network, and every step of another fit.
            jobs: processes that a network may start.
        """
        mos = self._training_mos(split for _, split in splits)
        heads = [clone(self.heads[name]) for _ in splits]
        for head in heads:
            head.watch, head.processes = watch, jobs
        fitted = type(heads[0]).fit_many(
            heads,
            self.table,
            mos,
            [split.train for _, split in splits],
            [split.validation for _, split in splits],
        )
        results = []
        for (number, split), head in zip(splits, fitted, strict=True):
            predicted = head.predict(self.table.subset(split.test))
            results.append(
                SplitResult(
                    head=name,
                    split=number,
                    metrics=quality_metrics(self.mos[split.test], predicted),
                    selection=head.selection_,
                    rows=split.test,
                    mos=self.mos[split.test],
                    predicted=predicted,
                )
            )
        return results

    def _training_mos(self, splits: Iterable[Split]) -> NDArray[np.float64]:
        """[n]: where sets are left out, in deviations from the mean of the own data set.

        Scales differ between sets.  Rows of a test part are of a set that nobody trains on.

        Raises:
            RecipeError: if a data set stands on both sides of a split.
        """
        if not self.leaves_out_sets:
            return self.mos
        sets = np.array([video.id.partition("/")[0] for video in self.table.videos])
        for split in splits:
            both = set(sets[split.train]) & set(sets[split.test])
            if both:
                raise RecipeError(
                    f"splits {self.splits_name} leave whole data sets out, and {min(both)} stands "
                    "on both sides of one of them; make them by `vqbank split make`"
                )
        out = np.empty_like(self.mos)
        for name in set(sets):
            own = self.mos[sets == name]
            out[sets == name] = (own - own.mean()) / (own.std() or 1.0)
        return out


def takes_long(head: Head, table: FeatureTable, videos: int) -> bool:
    """Whether one fit on so many videos takes so long that Ctrl-C could not wait for it."""
    width = pooled_width(table.specs.values())
    return isinstance(head, PooledHead) and head.operations(videos, width) > LONG_OPERATIONS


def all_cores() -> int:
    """How many processes this machine, or its batch system, has room for."""
    return int(cpu_count())


def banked_videos(labels: Labels, store: FeatureStore, specs: Sequence[FeatureSpec]) -> list[Video]:
    """A video for each row of a label file, in its order, under the id that the bank has.

    Names are paired by `vqbank.pipelines.labels.match`: by their ends, without suffix and case.

    Args:
        labels: as read.
        store: the bank.
        specs: the features that every video must have.

    Raises:
        ManifestError: if a row fits several banked videos.
        MissingFeatureError: if rows fit none.
    """
    banked = sorted(set.intersection(*(set(store.video_ids(spec)) for spec in specs)))
    stated = videos_of(labels.rows, labels.path.stem)
    exact = {video_id: place for place, video_id in enumerate(banked)}
    if all(video.id in exact for video in stated):
        return stated
    found = match(labels.names, banked)
    if found.unclear:
        row, _ = found.unclear[0]
        raise ManifestError(
            f"{labels.rows[row].place}: {unclear_pair(found, labels.names, banked)} of "
            f"{store.path}, like {len(found.unclear) - 1} more rows; give a manifest with ids"
        )
    if found.only_one:
        row = found.only_one[0]
        names = ", ".join(spec.key for spec in specs)
        raise MissingFeatureError(
            f"{len(found.only_one)} of the {len(labels)} videos of {labels.path} have no {names} "
            f"in {store.path}, the first is {labels.names[row]} ({labels.rows[row].place})"
        )
    id_of = {row: banked[place] for row, place in found.pairs}
    return [replace(video, id=id_of[row]) for row, video in enumerate(stated)]


def _taken_for(stated: Sequence[Video], videos: Sequence[Video]) -> str:
    """The data set of the bank's videos, where neither the ids nor the names stated it.

    Raises:
        ManifestError: if they would be of several.
    """
    names = [video.id for video in stated]
    ids = [video.id for video in videos]
    pairs = tuple((row, row) for row in range(len(ids)))
    return assumed_data_set(Match(pairs, (), (), ()), names, ids)


def _banked_manifest(
    videos: Sequence[Video], store: FeatureStore, specs: Sequence[FeatureSpec]
) -> list[Video]:
    """The same videos, under the ids of the bank where it knows them by another data set's name."""
    banked = sorted(set.intersection(*(set(store.video_ids(spec)) for spec in specs)))
    paired = same_videos([video.id for video in videos], banked)
    return [replace(video, id=paired.get(video.id, video.id)) for video in videos]


def _filled(
    store: FeatureStore, specs: Sequence[FeatureSpec], videos: Sequence[Video]
) -> dict[str, int]:
    """By feature, how many of the videos an import filled; features without such are left out."""
    counts = {}
    for spec in specs:
        places = store.find(spec, [video.id for video in videos])
        records = [found.source.video(found.place) for found in places if found is not None]
        filled = [record for record in records if record.probe.get("filled_columns")]
        if filled:
            counts[spec.name] = len(filled)
    return counts


def _left_out(
    store: FeatureStore, specs: Sequence[FeatureSpec], videos: Sequence[Video]
) -> dict[str, int]:
    """By feature, how many rows an import left out; features without such are left out."""
    counts = {}
    for spec in specs:
        places = store.find(spec, [video.id for video in videos])
        records = [found.source.video(found.place) for found in places if found is not None]
        told = [record.probe.get("dropped_rows", 0) for record in records]
        if count := max(told, default=0):
            counts[spec.name] = count
    return counts


def _refuse_one_file_in_two_scenes(
    store: FeatureStore, spec: FeatureSpec, videos: Sequence[Video]
) -> None:
    """The same file under two ids would stand on two sides of a split.

    Raises:
        ManifestError: naming both ids.
    """
    first: dict[str, Video] = {}
    for video, place in zip(videos, store.find(spec, [v.id for v in videos]), strict=True):
        if place is None:
            continue
        shard, number = place
        other = first.setdefault(shard.video(number).fingerprint.sha256, video)
        if other is not video and (video.scene is None or video.scene != other.scene):
            raise ManifestError(
                f"{other.id} and {video.id} are the same file; give both the same scene, "
                "or leave one out"
            )
