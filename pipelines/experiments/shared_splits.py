"""The splits that all cells of an experiment share, and what is said of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vqbank.pipelines.experiments.rated import RatedVideos
from vqbank.pipelines.recipe import Protocol
from vqbank.pipelines.splits.file import splits_file
from vqbank.pipelines.splits.ours import refuse_without_scenes, scene_splits
from vqbank.pipelines.splits.schemes import MOST_SPLITS, SCHEMES, named_splits, scheme_of
from vqbank.pipelines.splits.split import (
    LEAST_TESTED,
    Split,
    first_alike,
    splits_without,
    too_small,
)
from vqbank.regressors.base import Head
from vqbank.regressors.holdout import scenes_of
from vqbank.store.errors import HeadError, RecipeError, VqbankError
from vqbank.store.schema import Video

LEAST_HELD_OUT = 2
"""Videos to choose epochs by: of fewer there is no SRCC."""


@dataclass(frozen=True)
class SharedSplits:
    """Rows to fit and rows to test, as the protocol says."""

    protocol: Protocol
    name: str
    """Of the scheme, also where a file holds what it made."""
    rows: Sequence[Split]
    """Of `videos`."""
    videos: Sequence[Video]
    """Those that are fitted or tested."""
    stated: int
    """How many videos there were before those that lack a feature were dropped."""
    changed: str = ""
    """What was done to what the protocol makes, in a sentence; empty where it was nothing."""

    @classmethod
    def of(cls, protocol: Protocol, rated: RatedVideos) -> "SharedSplits":
        """Make or read them; of all stated videos, and then without those that were dropped.

        Raises:
            UnknownNameError: if there is no such scheme.
            RecipeError: if the scheme is impossible for these videos, or a side of a split is left
                with none.
        """
        name, videos = protocol.splits, rated.stated or rated.table.videos
        if name == "scene":
            refuse_without_scenes("scene", videos)
            rows = scene_splits(
                videos,
                count=protocol.count,
                test_fraction=protocol.test_fraction,
                min_test_scenes=protocol.min_test_scenes,
                seed=protocol.seed,
            )
        else:
            rows = named_splits(name, videos, labels=rated.labels)
            name = splits_file(Path(name)).name if name.endswith(".json") else name
        if rated.in_table is not None:
            rows = splits_without(rows, rated.in_table)
        if len(rows) > MOST_SPLITS:
            raise RecipeError(
                f"splits {name} are {len(rows):,}, and {MOST_SPLITS:,} are the most that an "
                "experiment takes"
            )
        return cls(protocol, name, rows, rated.table.videos, len(videos))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tests_itself(self) -> bool:
        """Whether there are test parts; else all videos are trained on, for test sets."""
        return self.name != "all"

    @property
    def leaves_out_sets(self) -> bool:
        """Whether whole data sets are tested by heads that saw others, each with its own scale."""
        return self.name == "across"

    @property
    def text(self) -> str:
        """How the splits are made, in a sentence or more."""
        return f"{self._made} {self.changed}" if self.changed else self._made

    @property
    def _made(self) -> str:
        protocol, made = self.protocol, len(self)
        alone = sum(video.scene is None for video in self.videos)
        dropped = ""
        if self.stated > len(self.videos):
            counts = f"{self.stated - len(self.videos)} of {self.stated}"
            dropped = f" {counts} videos lack a feature and are left out of every side."
        if protocol.splits == "scene":
            caution = f" {alone} videos have no scene and count as one each." if alone else ""
            return (
                f"{made} random splits, {protocol.test_fraction:.0%} of the scenes for testing "
                f"(seed {protocol.seed}), no scene on two sides.{caution}{dropped}{self._repeated}"
            )
        if protocol.splits.endswith(".json"):
            how = f"The {made} splits {self.name} of {Path(protocol.splits).name}."
        else:
            scheme, _ = scheme_of(protocol.splits)
            how = f"Splits {protocol.splits}: {SCHEMES[scheme].about}."
        if any(len(split.validation) for split in self.rows):
            how += (
                " Epochs are chosen on the validation part; heads without epochs are not fitted "
                "on it."
            )
        if self.leaves_out_sets:
            how += (
                " Training scores are in standard deviations from the mean of their own data set, "
                "and so are predictions."
            )
        how += dropped + self._repeated
        scenes = [video.scene for video in self.videos if video.scene is not None]
        if len(set(scenes)) < len(scenes) and self.mixed_scenes:
            how += (
                f" Scenes stand on both sides in {self.mixed_scenes} of {made}: what "
                "is tested was seen in training, in other versions."
            )
        return how

    @property
    def _repeated(self) -> str:
        """Where splits are fewer than their name says, or the same ones again."""
        text, made = "", len(self)
        if self.asked > made:
            text += f" {self.asked} were asked for: there are no more different test parts."
        different = len(set(first_alike(self.rows)))
        if different < made:
            text += (
                f" Only {different} of the {made} test parts are different: intervals and paired "
                "tests count those that repeat once."
            )
        return text

    @property
    def asked(self) -> int:
        """How many splits the protocol asks for; 0 where the videos or a file decide."""
        if self.protocol.splits == "scene":
            return self.protocol.count
        try:
            return scheme_of(self.name)[1]
        except VqbankError:  # a file of splits may have any name
            return 0

    @cached_property
    def data_sets(self) -> NDArray[np.str_]:
        """[n]: what each id begins with."""
        return np.array([video.id.partition("/")[0] for video in self.videos])

    @property
    def directions(self) -> list[str]:
        """Per split, from which data sets to which, where whole ones are left out; else none."""
        if not self.leaves_out_sets:
            return []
        return [
            f"{' + '.join(sorted(set(self.data_sets[split.train])))} → "
            f"{' + '.join(sorted(set(self.data_sets[split.test])))}"
            for split in self.rows
        ]

    @cached_property
    def mixed_scenes(self) -> int:
        """In how many splits a scene stands in training and in test."""
        scenes = np.array([video.scene or f"\0{video.id}" for video in self.videos])
        return sum(bool(set(scenes[split.train]) & set(scenes[split.test])) for split in self.rows)

    def check(self, heads: Iterable[Head], mos: NDArray[np.float64]) -> None:
        """Refuse parts of splits that no head can be fitted on, choose by, or be measured by.

        Raises:
            RecipeError: naming the split, the part and what to do.
        """
        heads = list(heads)
        fewest = max(head.min_videos for head in heads)
        networks = [head for head in heads if head.has_epochs]
        scenes = max(head.least_scenes for head in heads)
        for number, split in enumerate(self.rows):
            self._refuse_small(number, "training", split.train, mos, fewest)
            if self.tests_itself:
                self._refuse_small(number, "test", split.test, mos, LEAST_TESTED)
            if networks and len(split.validation):
                self._refuse_small(number, "validation", split.validation, mos, LEAST_HELD_OUT)
            else:
                for head in networks:
                    self._refuse_small_held_out(number, split, head, mos)
            self._refuse_few_scenes(number, np.setdiff1d(split.train, split.validation), scenes)

    def _refuse_small(
        self, number: int, side: str, rows: NDArray[np.int64], mos: NDArray[np.float64], least: int
    ) -> None:
        if problem := too_small(rows, mos, least):
            first = f" ({self.videos[rows[0]].id})" if len(rows) else ""
            raise RecipeError(
                f"split {number} of {self.name}: its {side} part has {problem}"
                f"{first}, and needs {least} or more, with different scores; take splits "
                "with a larger one (the recipe's `min_test_scenes` or `test_fraction`, "
                "another number of folds, other --splits), or more videos"
            )

    def _refuse_small_held_out(
        self, number: int, split: Split, head: Head, mos: NDArray[np.float64]
    ) -> None:
        """What a network holds out of a training part, by its own rule, to choose epochs.

        Args:
            number: of the split.
            split: without a validation part.
            head: with epochs.
            mos: [n].
        """
        videos = [self.videos[row] for row in split.train.tolist()]
        try:
            every = head.held_out(videos)
        except HeadError as error:
            raise RecipeError(
                f"split {number} of {self.name}: {head.name} chooses its epoch on training "
                f"scenes: {error}"
            ) from error
        for held in every:
            self._refuse_small(
                number,
                f"held-out (whole scenes, by {head.name})",
                split.train[held],
                mos,
                LEAST_HELD_OUT,
            )

    def _refuse_few_scenes(self, number: int, rows: NDArray[np.int64], least: int) -> None:
        scenes = set(scenes_of([self.videos[row] for row in rows.tolist()]))
        if len(scenes) < least:
            raise RecipeError(
                f"split {number} of {self.name}: its {len(rows)} training videos are of one "
                f"scene, {min(scenes)!r}, and heads choose by folds of scenes: {least} or "
                "more are needed; take splits with a larger training part, or more videos"
            )

    def training_mos(
        self, mos: NDArray[np.float64], splits: Iterable[Split]
    ) -> NDArray[np.float64]:
        """[n]: where sets are left out, in deviations from the mean of the own data set.

        Scales differ between sets.  Rows of a test part are of a set that nobody trains on.

        Raises:
            RecipeError: if a data set stands on both sides of a split.
        """
        if not self.leaves_out_sets:
            return mos
        for split in splits:
            both = set(self.data_sets[split.train]) & set(self.data_sets[split.test])
            if both:
                raise RecipeError(
                    f"splits {self.name} leave whole data sets out, and {min(both)} stands "
                    "on both sides of one of them; make them by `vqbank split make`"
                )
        out = np.empty_like(mos)
        for name in set(self.data_sets):
            own = mos[self.data_sets == name]
            out[self.data_sets == name] = (own - own.mean()) / (own.std() or 1.0)
        return out
