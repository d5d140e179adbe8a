"""What a recipe names, read: videos with banked features and a MOS each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from vqbank.pipelines.entries import with_keys
from vqbank.pipelines.labels import Labels, read_labels
from vqbank.pipelines.labels.match import Match, assumed_data_set, match, unclear_pair
from vqbank.pipelines.labels.videos import videos_of
from vqbank.pipelines.manifest import is_manifest, read_videos, scores
from vqbank.pipelines.recipe import Recipe, required
from vqbank.pipelines.splits.file import same_videos
from vqbank.regressors import HEADS
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import ManifestError, MissingFeatureError, RecipeError
from vqbank.store.layout import VideoFacts
from vqbank.store.schema import FURTHER_TEST, FeatureSpec, Video
from vqbank.store.table import FeatureTable


@dataclass(frozen=True)
class RatedVideos:
    """Videos with features and a MOS each: what heads are fitted on and tried on."""

    table: FeatureTable
    mos: NDArray[np.float64]
    """[n], on the data set's own scale."""
    score_name: str = "MOS"
    """Such as MOS or pseudo-score."""
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
    in_table: NDArray[np.bool_] | None = None
    """[len(stated)]: which of `stated` are in the table; None where all are."""
    taken_for: str = ""
    """The bank's data set that videos were taken to be of, where their file states another."""
    files: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By feature key, the hash of the file that each video was when it was banked."""
    further_parts: Sequence[str] = ()
    """Parts of the same manifest or label file that are test sets of their own, and not in here."""

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        *,
        weights: Mapping[str, str] | None = None,
        part: str | None = None,
    ) -> "RatedVideos":
        """Read what a recipe names.

        Args:
            recipe: features go by the bank's names, keys, or the names of the recipe's extractors.
            weights: of extractors, where the bank has a feature of several.
            part: of the videos that are read; None for all, but for further test parts
                (`test-NAME`) where the protocol goes by parts.

        Raises:
            RecipeError: if it names no videos, bank or features, or videos and labels; if no video
                is of the part; or if videos of a label file shall be dropped.
            ManifestError: if a video has no score.
            MissingFeatureError: if a video lacks a feature, and is not to be dropped.
        """
        store = FeatureStore(required(recipe, "bank", option="--bank"))
        required(recipe, "features", option="--features")
        features = with_keys(recipe, weights=weights).features
        specs = [store.resolve(name) for name in features.values()]
        labels, stated, further = _stated(recipe, part)
        videos = _banked(labels, stated, store, specs)
        taken_for = _taken_for(stated, videos)
        kept = _with_all_features(recipe, store, specs, videos)
        some = [video for video, has in zip(videos, kept, strict=True) if has]
        videos = some or videos  # with none, the table says what is lacking
        try:
            table = store.table(videos, features)
        except MissingFeatureError as error:
            if labels is not None or recipe.missing == "drop":
                raise
            raise MissingFeatureError(f"{error}; or drop these videos by --missing drop") from error
        files = {spec.key: _files(store, spec, videos) for spec in specs}
        return cls(
            table=table,
            mos=_scores(recipe, videos),
            score_name=recipe.score_name,
            labels=labels,
            filled=_filled(store, specs, videos),
            left_out=_left_out(store, specs, videos),
            stated=() if kept.all() else stated,
            in_table=None if kept.all() else kept,
            taken_for=taken_for,
            files=files,
            further_parts=further,
        )

    @property
    def dropped(self) -> list[str]:
        """Ids of the videos that were dropped, because they lack a feature."""
        if self.in_table is None:
            return []
        return [video.id for video, has in zip(self.stated, self.in_table, strict=True) if not has]


def _scores(recipe: Recipe, videos: Sequence[Video]) -> NDArray[np.float64]:
    """[n]; NaN where no video has one, and no head of the recipe learns from scores.

    Raises:
        ManifestError: if a video has none otherwise.
    """
    heads = [HEADS[recipe.head(label)[0]] for label in recipe.heads]
    if all(video.mos is None for video in videos) and not any(one.needs_scores for one in heads):
        return np.full(len(videos), np.nan)
    return np.array(scores(videos))


def _stated(
    recipe: Recipe, part: str | None
) -> tuple[Labels | None, Sequence[Video], Sequence[str]]:
    """The label file if it is one, the videos by their own ids, and parts that are sets apart."""
    if recipe.labels is not None and recipe.videos is not None:
        raise RecipeError("videos and labels both name the videos; give one of them")
    source = recipe.labels or required(recipe, "videos", option="--videos or --labels")
    labels: Labels | None = None
    stated: Sequence[Video]
    if recipe.labels is not None and not is_manifest(source):
        labels = read_labels(source, score=recipe.score)
        stated = videos_of(labels.rows, labels.path.stem)
    elif recipe.score is not None:
        raise RecipeError(
            f"score {recipe.score!r} is a column of a label file, and {source} is none: a "
            "manifest's scores are its column mos"
        )
    else:
        stated = read_videos(source)
    parts = list(dict.fromkeys(video.part or "" for video in stated))
    further = [name for name in parts if name.startswith(FURTHER_TEST)]
    if part is None and recipe.protocol.splits != "official":
        further = []  # parts are nothing then
    wanted = set(parts) - set(further) if part is None else {part}
    kept = [row for row, video in enumerate(stated) if (video.part or "") in wanted]
    if len(kept) == len(stated):
        return labels, stated, ()
    if not kept:
        known = ", ".join(filter(None, parts)) or "none"
        raise RecipeError(f"{source} has no video of part {part!r}; its parts are {known}")
    if labels is not None:
        rows = tuple(labels.rows[row] for row in kept)
        labels = replace(labels, rows=rows, split_columns={}, orders=None)  # those are of all
    return labels, [stated[row] for row in kept], further if part is None else ()


def _banked(
    labels: Labels | None,
    stated: Sequence[Video],
    store: FeatureStore,
    specs: Sequence[FeatureSpec],
) -> list[Video]:
    """The same videos by the ids of the bank."""
    if labels is None:
        return _banked_manifest(stated, store, specs)
    try:
        return banked_videos(labels, store, specs)
    except MissingFeatureError as error:
        raise MissingFeatureError(
            f"{error}; to leave such videos out, make a manifest by `vqbank labels import`, "
            "and give it by --videos, with --missing drop"
        ) from error


def _with_all_features(
    recipe: Recipe, store: FeatureStore, specs: Sequence[FeatureSpec], videos: Sequence[Video]
) -> NDArray[np.bool_]:
    """[n]: which videos stay; all of them, unless those that lack a feature are to be dropped."""
    if recipe.missing != "drop":
        return np.ones(len(videos), bool)
    if recipe.labels is not None and not is_manifest(recipe.labels):
        raise RecipeError(
            "videos of a label file are not dropped, as lines may be wrong: make a manifest by "
            "`vqbank labels import`, and give it by --videos, with --missing drop"
        )
    found = [store.find(spec, [video.id for video in videos]) for spec in specs]
    return np.array([None not in own for own in zip(*found, strict=True)])


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
    return {
        name: count
        for name, probes in _probes(store, specs, videos)
        if (count := sum(bool(probe.get("filled_columns")) for probe in probes))
    }


def _left_out(
    store: FeatureStore, specs: Sequence[FeatureSpec], videos: Sequence[Video]
) -> dict[str, int]:
    """By feature, how many rows an import left out; features without such are left out."""
    return {
        name: count
        for name, probes in _probes(store, specs, videos)
        if (count := max((probe.get("dropped_rows", 0) for probe in probes), default=0))
    }


def _probes(
    store: FeatureStore, specs: Sequence[FeatureSpec], videos: Sequence[Video]
) -> Iterator[tuple[str, list[VideoFacts]]]:
    """By feature, what is recorded of those videos that have it."""
    for spec in specs:
        places = store.find(spec, [video.id for video in videos])
        found = [place for place in places if place is not None]
        yield spec.name, [one.source.video(one.place).probe for one in found]


def _files(store: FeatureStore, spec: FeatureSpec, videos: Sequence[Video]) -> list[str]:
    """Of each video the hash of the file that it was.

    Raises:
        ManifestError: if the same file stands under two ids, which may stand on two sides of a
            split; both are named.
    """
    first: dict[str, Video] = {}
    files = []
    for video, found in zip(videos, store.find(spec, [v.id for v in videos]), strict=True):
        if found is None:
            continue
        sha256 = found.source.video(found.place).fingerprint.sha256
        other = first.setdefault(sha256, video)
        if other is not video and (video.scene is None or video.scene != other.scene):
            raise ManifestError(
                f"{other.id} and {video.id} are the same file; give both the same scene, "
                "or leave one out"
            )
        files.append(sha256)
    return files
