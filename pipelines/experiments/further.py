"""Test sets: rated videos beside the splits, which every fitted head predicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vqbank.pipelines.experiments.rated import RatedVideos
from vqbank.pipelines.recipe import Protocol, Recipe
from vqbank.pipelines.splits.split import LEAST_TESTED, Split, too_small
from vqbank.store.errors import RecipeError, VqbankError
from vqbank.store.schema import FURTHER_TEST, Video


@dataclass(frozen=True)
class FurtherSet:
    """Videos that are tested by every head of an experiment, and on their own scale."""

    name: str
    """In tables."""
    rated: RatedVideos
    """With the features of the videos that are trained on, in the same roles."""

    @classmethod
    def all_of(
        cls, recipe: Recipe, rated: RatedVideos, *, weights: Mapping[str, str] | None = None
    ) -> "list[FurtherSet]":
        """The further test parts of a recipe's own videos, and then those that `test` names.

        Args:
            recipe: of the run.
            rated: what it trains on.
            weights: as of `RatedVideos.of`.

        Raises:
            VqbankError: as `RatedVideos.of` does, naming the set; or if two have one name.
        """
        sources: list[tuple[str, Recipe, str | None]] = [
            (part.removeprefix(FURTHER_TEST), recipe, part) for part in rated.further_parts
        ]
        for name, own in recipe.test.items():
            update = {
                "videos": None,
                "labels": own.file,
                "score": own.score,
                "score_name": own.score_name,
                "protocol": Protocol(),
            }
            sources.append((name, recipe.model_copy(update=update), own.part))
        names = [name for name, _, _ in sources]
        if len(set(names)) < len(names):
            raise RecipeError(f"test sets share a name: {', '.join(names)}; rename one")
        found = []
        for name, source, part in sources:
            try:
                further = cls(name, RatedVideos.of(source, weights=weights, part=part))
                further.check()
            except VqbankError as error:
                raise type(error)(f"test set {name}: {error}") from error
            found.append(further)
        return found

    def check(self) -> None:
        """Refuse what nothing can be measured by.

        Raises:
            RecipeError: saying what there is.
        """
        mos = self.rated.mos
        if problem := too_small(np.arange(len(mos)), mos, LEAST_TESTED):
            raise RecipeError(
                f"it has {problem}, and needs {LEAST_TESTED} or more, with different scores"
            )

    def trained_on(self, rated: RatedVideos, splits: Sequence[Split]) -> list[int]:
        """Which of its videos are in a training part: by id, as the same file, or by their scene.

        Scenes are compared within a data set, by whose name ids begin; others may have numbers.

        Args:
            rated: what is trained on.
            splits: of these.
        """
        trained = sorted({row for split in splits for row in split.train.tolist()})
        videos = [rated.table.videos[row] for row in trained]
        ids = {video.id for video in videos}
        scenes = {_scene(video) for video in videos if video.scene is not None}
        files = {key: {own[row] for row in trained} for key, own in rated.files.items() if own}
        return [
            row
            for row, video in enumerate(self.rated.table.videos)
            if video.id in ids
            or _scene(video) in scenes
            or any(own[row] in files.get(key, ()) for key, own in self.rated.files.items())
        ]


def _scene(video: Video) -> tuple[str, str | None]:
    return video.id.partition("/")[0], video.scene
