"""Which rows are fitted and which are tested: our own splits, and those of papers by name."""

import itertools
import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sklearn.model_selection import GroupKFold, train_test_split

from vqbank.pipelines.labels import Labels, Orders
from vqbank.pipelines.labels.match import match
from vqbank.pipelines.terminal import counted
from vqbank.regressors.holdout import hold_out_scenes, scenes_of
from vqbank.store.documents import MOST_JSON_BYTES, file_bytes, json_value
from vqbank.store.errors import HeadError, RecipeError, UnknownNameError, naming, unknown_name
from vqbank.store.schema import Part, Video

SPLITS_FORMAT = 1
MOST_SPLITS = 10_000
LEAST_TESTED = 2
"""Videos of a test part: of fewer there is no correlation."""


def _no_rows() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Every row is on one side; rows ascend.

    In splits by scene all videos of a scene are on the same side; splits that a paper made by row
    are kept as published, and `audit` says what they mix.
    """

    train: NDArray[np.int64]
    """What a head may see, `validation` included."""
    test: NDArray[np.int64]
    validation: NDArray[np.int64] = field(default_factory=_no_rows)
    """Rows of `train` that the protocol sets aside to choose epochs.

    Heads without epochs leave them out.  Empty: heads take such rows out of `train` themselves.
    """


def scene_splits(
    videos: Sequence[Video],
    *,
    count: int,
    test_fraction: float = 0.2,
    seed: int = 0,
    min_test_scenes: int = 1,
) -> list[Split]:
    """Random splits by scene, each with another test part; one without a scene is its own.

    `count` of them, or all that there are, where so few scenes allow no more.  Split k depends on
    `seed`, k and the names of the scenes, not on the order of the videos nor on `count`.

    Args:
        videos: the rows.
        count: number of splits, at most.
        test_fraction: of scenes, rounded; 0.2 is what the field uses.
        seed: another seed, other splits.
        min_test_scenes: tested even where the fraction gives fewer.

    Raises:
        RecipeError: if `count`, the fraction or `min_test_scenes` is impossible for these videos.
    """
    if count < 1:
        raise RecipeError(f"the number of splits is at least 1; got {count}")
    scenes = np.array(scenes_of(videos))
    found: dict[bytes, NDArray[np.bool_]] = {}
    wanted = count
    for number in itertools.count():
        try:
            test = hold_out_scenes(
                videos,
                fraction=test_fraction,
                rng=np.random.default_rng([seed, number]),
                at_least=min_test_scenes,
            )
        except HeadError as error:
            raise RecipeError(f"no test part: {error}") from error
        if number == 0:
            wanted = min(count, math.comb(len(set(scenes)), len(set(scenes[test]))))
        found.setdefault(test.tobytes(), test)
        if len(found) == wanted:
            break
    return [_split(test) for test in found.values()]


def official_split(videos: Sequence[Video]) -> Split:
    """The split of the data set's own `part` column: train and validation against test.

    Raises:
        RecipeError: if a video has no part, a side is empty, or a scene stands on both.
    """
    for video in videos:
        if video.part is None:
            raise RecipeError(
                f"{video.id} has no part; fill the manifest's part column or split by scene"
            )
    split = _of_parts([video.part for video in videos])
    if len(split.train) == 0 or len(split.test) == 0:
        raise RecipeError(
            f"the part column puts {len(split.train)} videos into train and validation and "
            f"{len(split.test)} into test; both need some"
        )
    scenes = scenes_of(videos)
    shared = {scenes[row] for row in split.train} & {scenes[row] for row in split.test}
    if shared:
        raise RecipeError(
            f"scene {min(shared)!r} stands in train and in test; split by scene, or leave the "
            "scene column empty if these are different scenes"
        )
    return split


@dataclass(frozen=True, slots=True)
class Scheme:
    """Splits that have a name."""

    count: int | None
    """How many, unless the name says so; None: the videos or the file decide."""
    make: Callable[[Sequence[Video], Labels | None, int], list[Split]]
    about: str


def named_splits(
    name: str, videos: Sequence[Video], *, labels: Labels | None = None
) -> list[Split]:
    """The splits called `name`, such as `videval100` or `scene10`, or those of a `.json` file.

    Args:
        name: a key of `SCHEMES`, with how many of them where it takes a number; or the path of
            what `vqbank split make` wrote.
        videos: the rows.  Splits of papers go by their order, which is the label file's.
        labels: the label file, for those that it states itself; rows as in `videos`.

    Raises:
        UnknownNameError: if there is no such scheme.
        RecipeError: if the scheme is impossible for these videos.
    """
    if name.endswith(".json"):
        splits = read_splits(Path(name), videos)
        _refuse_false_name(Path(name), videos, splits)
        return splits
    scheme, count = scheme_of(name)
    if len(videos) < 2:
        raise RecipeError(f"splits {name}: {counted(len(videos), 'video')} cannot be split")
    if labels is not None and len(labels) != len(videos):
        raise RecipeError(
            f"splits {name}: {labels.path} has {len(labels)} rows, and there are {len(videos)} "
            "videos; splits of a label file need all of its rows in its order"
        )
    splits = SCHEMES[scheme].make(videos, labels, count)
    for number, split in enumerate(splits):
        if len(split.train) == 0 or len(split.test) == 0:
            raise RecipeError(
                f"splits {name}: number {number} has {len(split.train)} training and "
                f"{len(split.test)} test rows of {len(videos)}; both need some"
            )
    return splits


def first_alike(splits: Sequence[Split]) -> list[int]:
    """For each split the number of the first one with the same test part: of most, their own.

    Our own random splits never repeat.  Those of papers are kept as published, and may: what
    repeats is no further evidence.
    """
    first: dict[bytes, int] = {}
    return [first.setdefault(split.test.tobytes(), place) for place, split in enumerate(splits)]


def too_small(rows: NDArray[np.int64], mos: NDArray[np.float64], least: int) -> str:
    """What a part of a split has, where it is too little to fit or to measure; else empty.

    Args:
        rows: of the part.
        mos: [n], of all videos; NaN where there is no score.
        least: videos that it needs.
    """
    if len(rows) < least:
        return counted(len(rows), "video")
    if np.isfinite(mos[rows]).all() and len(np.unique(mos[rows])) < 2:
        return f"{counted(len(rows), 'video')} of one score, {mos[rows[0]]:g}"
    return ""


def refuse_without_scenes(name: str, videos: Sequence[Video]) -> None:
    """Splits by scene are not made where nobody said which videos show one scene.

    They would be random ones under another name, with versions of one content on both sides.
    Single videos without a scene are scenes of their own.

    Raises:
        RecipeError: if no video has a scene.
    """
    if not any(video.scene is not None for video in videos):
        raise RecipeError(
            f"splits {name} are by scene, and none of these {len(videos)} videos has one: fill the "
            "manifest's column `scene`, or let `vqbank labels import --scene PATTERN` find scenes "
            "in the names (`--scene '(.+)'` says that each video is one of its own); or split by "
            "video, as by `--splits random10`"
        )


def _refuse_false_name(path: Path, videos: Sequence[Video], splits: Sequence[Split]) -> None:
    """A file of splits that are called by scene holds such.

    Raises:
        RecipeError: if it does not, or no video has a scene to tell.
    """
    name = splits_file(path).name
    if name.rstrip("0123456789") not in BY_SCENE:
        return
    refuse_without_scenes(f"{name} of {path}", videos)
    scenes = scenes_of(videos)
    for number, split in enumerate(splits):
        shared = {scenes[row] for row in split.train} & {scenes[row] for row in split.test}
        if shared:
            raise RecipeError(
                f"{path} is called {name}, so by scene, and its split {number} has scene "
                f"{min(shared)!r} on both sides; make it again by `vqbank split make`"
            )


def splits_without(splits: Sequence[Split], kept: NDArray[np.bool_]) -> list[Split]:
    """The same splits of fewer videos.

    Args:
        splits: of n videos.
        kept: [n].

    Raises:
        RecipeError: if a side loses all of its rows.
    """
    number = np.cumsum(kept) - 1
    fewer = []
    for place, split in enumerate(splits):
        train, test, validation = (
            number[side[kept[side]]] for side in (split.train, split.test, split.validation)
        )
        if (
            len(train) == 0
            or len(test) == 0
            or (len(validation) == 0) != (not len(split.validation))
        ):
            raise RecipeError(f"split {place} has a side of which no video has all features")
        fewer.append(replace(split, train=train, test=test, validation=validation))
    return fewer


def same_videos(ids: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """For each id the known one that means the same video, as far as there is one.

    Ids begin with the name of a data set, which is often that of a file.  So where none of the ids
    is known as it stands, what follows that name is compared, as names of label files are.
    """
    if not set(ids).isdisjoint(known):
        return {video_id: video_id for video_id in set(ids) & set(known)}
    found = match([_without_set(video_id) for video_id in ids], [_without_set(k) for k in known])
    return {ids[one]: known[two] for one, two in found.pairs}


def _without_set(video_id: str) -> str:
    return video_id.partition("/")[2] or video_id


def scheme_of(name: str) -> tuple[str, int]:
    """The scheme and the number of splits in `name`; 0 where the videos or a file decide.

    Raises:
        UnknownNameError: if there is no such scheme.
        RecipeError: if it takes no number, or the number is 0 or above `MOST_SPLITS`.
    """
    match = re.fullmatch(r"([a-z-]+)(\d*)", name)
    if match is None or match[1] not in SCHEMES:
        raise UnknownNameError(unknown_name("splits", name, SCHEMES))
    default = SCHEMES[match[1]].count
    if default is None and match[2]:
        raise RecipeError(f"splits {name}: {match[1]} takes no number")
    count = int(match[2][:9]) if match[2] else default or 0
    if default is not None and not 1 <= count <= MOST_SPLITS:
        raise RecipeError(
            f"splits {name}: the number of splits is at least 1, and {MOST_SPLITS:,} at most"
        )
    return match[1], count


def write_splits(path: Path, name: str, videos: Sequence[Video], splits: Sequence[Split]) -> None:
    """Keep splits by video id, in JSON; `train` and `validation` have no row in common there."""
    content = {
        "vqbank_splits": SPLITS_FORMAT,
        "name": name,
        "videos": [video.id for video in videos],
        "splits": [
            {
                "train": np.setdiff1d(split.train, split.validation).tolist(),
                "validation": split.validation.tolist(),
                "test": split.test.tolist(),
            }
            for split in splits
        ],
    }
    with naming(path):
        path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


_Rows = list[Annotated[int, Field(ge=0)]]


class _Sides(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    train: _Rows = Field(min_length=1)
    validation: _Rows
    test: _Rows = Field(min_length=1)


class SplitsFile(BaseModel):
    """What `write_splits` writes."""

    model_config = ConfigDict(extra="forbid", strict=True)

    vqbank_splits: Literal[1]
    name: str
    """By which they were made, such as `videval100`."""
    videos: list[str]
    splits: list[_Sides] = Field(min_length=1)


def splits_file(path: Path) -> SplitsFile:
    """The file as it stands.

    Raises:
        RecipeError: if it is no such file, or names a video twice.
    """
    content = json_value(
        file_bytes(path, RecipeError, most_bytes=MOST_JSON_BYTES), path, RecipeError
    )
    if not isinstance(content, dict) or content.get("vqbank_splits") != SPLITS_FORMAT:
        raise RecipeError(f"{path} was not written by `vqbank split make`, or by a newer one")
    try:
        file = SplitsFile.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(step) for step in problem["loc"])
        raise RecipeError(f"{path}: {place}: {problem['msg'].lower()}") from error
    twice = [video for video, count in Counter(file.videos).items() if count > 1]
    if twice:
        raise RecipeError(f"{path}: video {twice[0]!r} stands there twice")
    return file


def read_splits(path: Path, videos: Sequence[Video]) -> list[Split]:
    """What `write_splits` wrote, for these videos in whatever order.

    The same videos under the name of another data set, such as that of another label file, are
    found as `same_videos` finds them.

    Raises:
        RecipeError: if the file is no such file, or names other videos.
    """
    file = splits_file(path)
    known = [video.id for video in videos]
    paired = same_videos(file.videos, known)
    ids = [paired.get(video_id, video_id) for video_id in file.videos]
    row_of = {video_id: row for row, video_id in enumerate(known)}
    strange = sorted(set(ids) ^ set(row_of))
    if strange:
        where = "the splits" if strange[0] not in row_of else "the videos"
        raise RecipeError(
            f"{path} splits {len(ids)} videos, here are {len(videos)}; {strange[0]!r} and "
            f"{len(strange) - 1} more stand in {where} only"
        )
    here = np.array([row_of[video] for video in ids], np.int64)
    splits = []
    for number, sides in enumerate(file.splits):
        rows = [*sides.train, *sides.validation, *sides.test]
        if sorted(rows) != list(range(len(ids))):
            raise RecipeError(f"{path}: split {number} does not hold every video once")
        validation = here[sides.validation]
        splits.append(
            Split(
                train=np.sort(np.concatenate([here[sides.train], validation])),
                test=np.sort(here[sides.test]),
                validation=np.sort(validation),
            )
        )
    return splits


def _split(test: NDArray[np.bool_]) -> Split:
    return Split(train=np.flatnonzero(~test), test=np.flatnonzero(test))


def _of_parts(parts: Sequence[Part | None]) -> Split:
    test = np.array([part == "test" for part in parts], dtype=bool)
    validation = np.array([part == "validation" for part in parts], dtype=bool)
    return Split(np.flatnonzero(~test), np.flatnonzero(test), np.flatnonzero(validation))


def _in_order(order: Sequence[int] | NDArray[np.int64], train: int, validation: int = 0) -> Split:
    """The first `train` rows of an order, the next `validation`, and the rest to test."""
    rows = np.asarray(order, np.int64)
    held = rows[train : train + validation]
    return Split(
        train=np.sort(rows[: train + validation]),
        test=np.sort(rows[train + validation :]),
        validation=np.sort(held),
    )


def _by_scene(videos: Sequence[Video], labels: Labels | None, count: int) -> list[Split]:
    refuse_without_scenes(f"scene{count}", videos)
    return scene_splits(videos, count=count)


def _threeway(videos: Sequence[Video], labels: Labels | None, count: int) -> list[Split]:
    refuse_without_scenes(f"threeway{count}", videos)
    splits = []
    for number, split in enumerate(scene_splits(videos, count=count)):
        train = [videos[row] for row in split.train]
        try:
            held = hold_out_scenes(train, fraction=0.25, rng=np.random.default_rng([0, number, 1]))
        except HeadError as error:
            raise RecipeError(f"no validation part: {error}") from error
        splits.append(Split(split.train, split.test, split.train[held]))
    return splits


def _random(videos: Sequence[Video], labels: Labels | None, count: int) -> list[Split]:
    return scene_splits([Video(video.id, video.path) for video in videos], count=count)


def _folds(videos: Sequence[Video], labels: Labels | None, count: int) -> list[Split]:
    refuse_without_scenes(f"kfold{count}", videos)
    scenes = scenes_of(videos)
    if count < 2 or len(set(scenes)) < count:
        raise RecipeError(
            f"{count} folds need 2 folds or more and a scene for each; there are "
            f"{len(set(scenes))} scenes"
        )
    folds = GroupKFold(count, shuffle=True, random_state=0)
    found = folds.split(np.empty(len(videos)), groups=scenes)
    return [Split(train.astype(np.int64), test.astype(np.int64)) for train, test in found]


def _official(videos: Sequence[Video], labels: Labels | None, count: int) -> list[Split]:
    return [official_split(videos)]


def _across(videos: Sequence[Video], labels: Labels | None, count: int) -> list[Split]:
    """Each data set in turn is tested by a head that saw the others; an id begins with it."""
    sets = np.array([video.id.partition("/")[0] for video in videos])
    names = sorted(set(sets))
    if len(names) < 2:
        raise RecipeError(f"leaving out a data set needs two; all ids begin with {names[0]}/")
    return [_split(sets == name) for name in names]


def _columns(videos: Sequence[Video], labels: Labels | None, count: int) -> list[Split]:
    if labels is None or not labels.split_columns:
        where = "a label file" if labels is None else f"{labels.path}, which has none"
        raise RecipeError(f"splits `columns` are columns of {where}; pyiqa's meta files have them")
    return [_of_parts(parts) for parts in labels.split_columns.values()]


def _videval(videos: Sequence[Video], labels: Labels | None, count: int) -> list[Split]:
    rows = np.arange(len(videos))
    return [
        Split(*(np.sort(side) for side in train_test_split(rows, test_size=0.2, random_state=seed)))
        for seed in (math.ceil(8.8 * number) for number in range(1, count + 1))
    ]


def _fastvqa(videos: Sequence[Video], labels: Labels | None, count: int) -> list[Split]:
    splits = []
    for number in range(count):
        order = list(range(len(videos)))
        random.Random(42 * (number + 1)).shuffle(order)
        splits.append(_in_order(order, int(0.8 * len(videos))))
    return splits


def _minimalistic(videos: Sequence[Video], labels: Labels | None, count: int) -> list[Split]:
    n = len(videos)
    return [
        _in_order(_permutation(seed, n), int(n * 0.6), int(n * 0.8) - int(n * 0.6))
        for seed in range(count)
    ]


def _rqvqa(videos: Sequence[Video], labels: Labels | None, count: int) -> list[Split]:
    alone = [video.id for video in videos if video.scene is None]
    if alone:
        raise RecipeError(
            f"RQ-VQA splits contents, and {len(alone)} videos have no scene, the first is "
            f"{alone[0]}; fill the manifest's scene column"
        )
    contents = {scene: number for number, scene in enumerate(dict.fromkeys(scenes_of(videos)))}
    content = np.array([contents[scene] for scene in scenes_of(videos)])
    m = len(contents)
    return [
        _split(~np.isin(content, _permutation((number + 1) * 10, m)[: int(m * 0.8)]))
        for number in range(count)
    ]


def _vsfa(videos: Sequence[Video], labels: Labels | None, count: int) -> list[Split]:
    if labels is None or labels.orders is None:
        where = (
            "a .mat label file" if labels is None else f"{labels.path}, which has none to be used"
        )
        raise RecipeError(f"VSFA's splits are cut from the `index` of {where}")
    orders: Orders = labels.orders
    if count > len(orders.orders):
        raise RecipeError(
            f"{labels.path} has {len(orders.orders)} orders in `index`; {count} splits asked for"
        )
    m = orders.orders.shape[1]
    # Floating point as VSFA.py has it: of 1200 groups, 721 are trained on and not 720.
    train, rest = math.ceil((1 - 0.2 - 0.2) * m), math.ceil((1 - 0.2) * m)
    splits = []
    for order in orders.orders[:count]:
        place = np.empty(m, np.int64)
        place[order] = np.arange(m)
        of_row = place[orders.groups]
        test = of_row >= rest
        validation = (of_row >= train) & ~test
        splits.append(
            Split(np.flatnonzero(~test), np.flatnonzero(test), np.flatnonzero(validation))
        )
    return splits


def _permutation(seed: int, count: int) -> NDArray[np.int64]:
    """What `np.random.seed(seed); np.random.permutation(count)` gives, seed for seed."""
    return np.random.RandomState(seed).permutation(count).astype(np.int64)


BY_SCENE = ("scene", "threeway", "kfold")
"""Those of `SCHEMES` that need scenes; `rqvqa` needs one of every video."""
SCHEMES = {
    "scene": Scheme(10, _by_scene, "80/20 by scene"),
    "threeway": Scheme(10, _threeway, "60/20/20 by scene, the middle to choose epochs by"),
    "kfold": Scheme(5, _folds, "as many folds, by scene; each is tested once"),
    "random": Scheme(10, _random, "80/20 by video, scenes or not"),
    "official": Scheme(None, _official, "the part column"),
    "across": Scheme(None, _across, "leave one data set out; the id begins with its name"),
    "columns": Scheme(None, _columns, "the split columns of a label file (pyiqa)"),
    "vsfa": Scheme(10, _vsfa, "60/20/20 from a .mat file's index (VSFA, MDTVSFA)"),
    "videval": Scheme(
        100, _videval, "80/20 by video, random_state ceil(8.8 i), i from 1 (VIDEVAL)"
    ),
    "fastvqa": Scheme(
        10, _fastvqa, "80/20 by video, random.seed(42 (k+1)) (FAST-VQA, DOVER, MaxVQA)"
    ),
    "minimalistic": Scheme(
        10, _minimalistic, "60/20/20 by video, np.random.seed(k) (MinimalisticVQA)"
    ),
    "rqvqa": Scheme(10, _rqvqa, "80/20 by content, np.random.seed(10 (k+1)) (RQ-VQA)"),
}
"""What `named_splits` knows, by name without number."""
