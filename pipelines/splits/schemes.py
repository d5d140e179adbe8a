"""Splits by their names, such as `scene10` and `videval100`."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vqbank.pipelines.labels import Labels
from vqbank.pipelines.splits import ours, papers
from vqbank.pipelines.splits.file import read_splits, splits_file
from vqbank.pipelines.splits.split import Split
from vqbank.pipelines.terminal import counted
from vqbank.regressors.holdout import scenes_of
from vqbank.store.errors import RecipeError, UnknownNameError, unknown_name
from vqbank.store.schema import Video

MOST_SPLITS = 10_000


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
        if len(split.train) == 0 or (len(split.test) == 0 and scheme != "all"):
            raise RecipeError(
                f"splits {name}: number {number} has {len(split.train)} training and "
                f"{len(split.test)} test rows of {len(videos)}; both need some"
            )
    return splits


def _refuse_false_name(path: Path, videos: Sequence[Video], splits: Sequence[Split]) -> None:
    """A file of splits that are called by scene holds such.

    Raises:
        RecipeError: if it does not, or no video has a scene to tell.
    """
    name = splits_file(path).name
    if name.rstrip("0123456789") not in BY_SCENE:
        return
    ours.refuse_without_scenes(f"{name} of {path}", videos)
    scenes = scenes_of(videos)
    for number, split in enumerate(splits):
        shared = {scenes[row] for row in split.train} & {scenes[row] for row in split.test}
        if shared:
            raise RecipeError(
                f"{path} is called {name}, so by scene, and its split {number} has scene "
                f"{min(shared)!r} on both sides; make it again by `vqbank split make`"
            )


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


BY_SCENE = ("scene", "threeway", "kfold")
"""Those of `SCHEMES` that need scenes; `rqvqa` needs one of every video."""
SCHEMES = {
    "scene": Scheme(10, ours.by_scene, "80/20 by scene"),
    "threeway": Scheme(10, ours.threeway, "60/20/20 by scene, the middle to choose epochs by"),
    "kfold": Scheme(5, ours.folds, "as many folds, by scene; each is tested once"),
    "random": Scheme(10, ours.random, "80/20 by video, scenes or not"),
    "official": Scheme(None, ours.official, "the part column"),
    "all": Scheme(None, ours.everything, "all videos are trained on, test sets alone are tested"),
    "across": Scheme(None, ours.across, "leave one data set out; the id begins with its name"),
    "columns": Scheme(None, papers.columns, "the split columns of a label file (pyiqa)"),
    "vsfa": Scheme(10, papers.vsfa, "60/20/20 from a .mat file's index (VSFA, MDTVSFA)"),
    "videval": Scheme(
        100, papers.videval, "80/20 by video, random_state ceil(8.8 i), i from 1 (VIDEVAL)"
    ),
    "fastvqa": Scheme(
        10, papers.fastvqa, "80/20 by video, random.seed(42 (k+1)) (FAST-VQA, DOVER, MaxVQA)"
    ),
    "minimalistic": Scheme(
        10, papers.minimalistic, "60/20/20 by video, np.random.seed(k) (MinimalisticVQA)"
    ),
    "rqvqa": Scheme(10, papers.rqvqa, "80/20 by content, np.random.seed(10 (k+1)) (RQ-VQA)"),
}
"""What `named_splits` knows, by name without number."""
