"""Try heads on splits of a table: fit on the training rows, predict the test rows, measure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from pipelines.manifest import read_videos, scores
from pipelines.recipe import Protocol, Recipe, required
from pipelines.splits import Split, official_split, scene_splits
from regressors import Head, make_head
from regressors.metrics import QualityMetrics, quality_metrics
from store.bank import FeatureStore
from store.errors import ManifestError
from store.schema import FeatureSpec, Video
from store.table import FeatureTable


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

    @classmethod
    def of(cls, recipe: Recipe, *, title: str) -> "Trial":
        """Read what a recipe names.

        Raises:
            RecipeError: if it names no videos, bank, features or heads.
            ManifestError: if a video has no score.
            MissingFeatureError: if a video lacks a feature.
        """
        videos = read_videos(required(recipe, "videos", option="--videos"))
        store = FeatureStore(required(recipe, "bank", option="--bank"))
        features = required(recipe, "features", option="--features")
        table = store.table(videos, features)
        for name in features.values():
            _refuse_one_file_in_two_scenes(store, store.resolve(name), videos)
        named = {label: recipe.head(label) for label in required(recipe, "heads", option="--head")}
        return cls(
            title=title,
            score_name=recipe.score_name,
            table=table,
            mos=np.array(scores(videos)),
            heads={label: make_head(name, **own) for label, (name, own) in named.items()},
            protocol=recipe.protocol,
        )

    @cached_property
    def splits(self) -> list[Split]:
        """Rows to fit and rows to test, as the protocol says."""
        protocol = self.protocol
        if protocol.splits == "official":
            return [official_split(self.table.videos)]
        return scene_splits(
            self.table.videos,
            count=protocol.count,
            test_fraction=protocol.test_fraction,
            min_test_scenes=protocol.min_test_scenes,
            seed=protocol.seed,
        )

    @property
    def protocol_text(self) -> str:
        """How the splits are made, in a sentence."""
        if self.protocol.splits == "official":
            return "The data set's own training and test part."
        alone = sum(video.scene is None for video in self.table.videos)
        caution = f" {alone} videos have no scene and count as one each." if alone else ""
        return (
            f"{self.protocol.count} random splits, {self.protocol.test_fraction:.0%} of the scenes "
            f"for testing (seed {self.protocol.seed}), no scene on two sides.{caution}"
        )

    @property
    def has_random_weights(self) -> bool:
        """Whether any feature comes from weights that nobody trained."""
        return any(spec.uses_random_weights for spec in self.table.specs.values())

    def run(self) -> Iterator[SplitResult]:
        """Every head on every split; heads are cloned, never fitted in place."""
        for number, split in enumerate(self.splits):
            train = self.table.subset(split.train)
            test = self.table.subset(split.test)
            for name, head in self.heads.items():
                fitted = clone(head).fit(train, self.mos[split.train])
                predicted = fitted.predict(test)
                yield SplitResult(
                    head=name,
                    split=number,
                    metrics=quality_metrics(self.mos[split.test], predicted),
                    selection=fitted.selection_,
                    rows=split.test,
                    mos=self.mos[split.test],
                    predicted=predicted,
                )


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
