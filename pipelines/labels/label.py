"""The nouns of label files: one rated video, and a file of them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vqbank.store.errors import ManifestError
from vqbank.store.schema import Part

IndexMeaning = Literal["row numbers from 0", "row numbers from 1", "reference ids"]

# One video under two published names: KoNViD-1k's ID.mp4 is ID_original_centercrop_960x540_8s.mp4
# (or `_cut_`), YouTube-UGC's NAME is NAME_crf_10_ss_00_t_20.0.mp4.
_LONG_NAME = re.compile(r"(\d+)_(?:original|cut)_centercrop_960x540_8s|(.+)_crf_10_ss_00_t_20\.0")


@dataclass(frozen=True, slots=True)
class Label:
    """What a label file says about one video."""

    name: str
    """The video as the file states it; `row-0001` and so on where the file has no names."""
    mos: float | None
    """On the file's own scale; None where the file leaves it empty, as test parts do."""
    place: str
    """Where it stands: `file:line` of text, `file: scores(12)` of a .mat."""
    scene: str | None = None
    """Videos of one content share it; None where the file does not tell."""
    part: Part | None = None
    """The official part, where the file states it."""
    std: float | None = None
    """Standard deviation of the ratings."""
    ratings: int | None = None
    """How many people rated."""
    other_scores: Mapping[str, float] = field(default_factory=dict)
    """Further scores of the same video by column: other kinds of MOS, other questions."""

    @property
    def key(self) -> str:
        """What two sources have in common: the name without folders and suffix, lower case."""
        return key_of(self.name)


def parts_of(name: str) -> tuple[str, ...]:
    """Folders and file of `name`, in lower case: `./Set/A.mp4` and `set\\a.mp4` are one video."""
    parts = name.lower().replace("\\", "/").split("/")
    return tuple(part for part in parts if part not in ("", ".")) or (name.lower(),)


def stem_of(name: str) -> str:
    """`name` without folders and suffix.

    A suffix is a dot and up to four letters or digits with a letter among them, so that `a.mp4`
    loses one and `clip_0.5` does not; but `3339962845.0` is an id that was read as a number.
    """
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    stem, dot, suffix = last.rpartition(".")
    is_suffix = dot and stem and len(suffix) <= 4 and suffix.isalnum() and not suffix.isdecimal()
    if is_suffix or (stem.isdecimal() and suffix == "0"):
        return stem
    return last


def key_of(name: str) -> str:
    """The stem of `name` in lower case; known long names become short ones."""
    last = stem_of(name)
    long = _LONG_NAME.fullmatch(last.lower())
    return (long[1] or long[2]) if long else last.lower()


@dataclass(frozen=True, slots=True, eq=False)
class Orders:
    """Random orders that a file brings along, from which others cut their splits (`index`)."""

    groups: NDArray[np.int64]
    """[n]: group of each row, 0 to m - 1; each row its own where `index` holds row numbers."""
    orders: NDArray[np.int64]
    """[k, m]: k orders of the m groups."""
    meaning: IndexMeaning
    """What the file's numbers are."""


@dataclass(frozen=True, eq=False)
class Labels:
    """A label file, read.

    Rows keep the file's order, which is how features without names are matched to them.
    """

    path: Path
    layout: str
    """Which layout was recognised, and by what: a line for people."""
    rows: tuple[Label, ...]
    score: str
    """The column that became `mos`, as the file calls it."""
    kind: str = ""
    """Which kind of MOS that is, where a data set has several (CVD2014: original, realigned)."""
    scene_rule: str = ""
    """By which rule rows got their scene; empty where they have none."""
    scene_note: str = ""
    """What a reader should know of these scenes, or of why there are none."""
    named: bool = True
    """Whether the file names its videos."""
    split_columns: Mapping[str, tuple[Part, ...]] = field(default_factory=dict)
    """Splits that stand in columns: a part per row, by column."""
    orders: Orders | None = None
    """The file's `index`, where it has one."""
    notes: tuple[str, ...] = ()
    """What a reader of the import should know."""

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The name of every row."""
        return tuple(row.name for row in self.rows)

    @cached_property
    def mos(self) -> NDArray[np.float64]:
        """[n]: the score of every row.

        Raises:
            ManifestError: naming the first row that has none.
        """
        without = [row for row in self.rows if row.mos is None]
        if without:
            raise ManifestError(
                f"{without[0].place}: {without[0].name} has no score, like {len(without) - 1} more "
                f"of {len(self)} rows"
            )
        return np.array([row.mos for row in self.rows], np.float64)

    def with_notes(self, *notes: str) -> "Labels":
        """The same with more notes; empty ones are left out."""
        return replace(self, notes=(*self.notes, *(note for note in notes if note)))
