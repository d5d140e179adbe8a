"""Files of splits: JSON by video id, that `vqbank split make` writes."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vqbank.pipelines.labels.match import match
from vqbank.pipelines.splits.split import Split
from vqbank.store.documents import MOST_JSON_BYTES, file_bytes, json_value
from vqbank.store.errors import RecipeError, naming
from vqbank.store.schema import Video

SPLITS_FORMAT = 1


def write_splits(path: Path, name: str, videos: Sequence[Video], splits: Sequence[Split]) -> None:
    """Keep splits by video id, in JSON; `train` and `validation` have no row in common there.

    Raises:
        RecipeError: if a split tests nothing, which needs no file.
    """
    if any(len(split.test) == 0 for split in splits):
        raise RecipeError(f"splits {name} have no test part, and need no file: give their name")
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
