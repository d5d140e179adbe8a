"""Labels to the rows of a manifest, and to the files of a folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vqbank.pipelines.labels.label import Label
from vqbank.pipelines.labels.match import match, near_names
from vqbank.pipelines.manifest import VIDEO_SUFFIXES
from vqbank.store.errors import ManifestError
from vqbank.store.schema import Video

RAW_SUFFIX = ".yuv"
"""Frames and nothing else, as LIVE-Qualcomm has them: found, but no decoder knows their size."""
LABELLED_SUFFIXES = VIDEO_SUFFIXES | {RAW_SUFFIX}


def videos_of(rows: Sequence[Label], dataset: str) -> list[Video]:
    """One video per row, in the same order; its path is the name that the file states."""
    return [_video(row, f"{dataset}/{row.name.lstrip('/')}", Path(row.name)) for row in rows]


@dataclass(frozen=True, slots=True)
class Reconciled:
    """Labels and the files of a folder."""

    videos: tuple[Video, ...]
    """Rows that have a file, in the labels' order; ids by the file's place in the folder."""
    without_file: tuple[Label, ...]
    without_label: tuple[str, ...]
    """Files relative to the folder."""
    unclear: tuple[tuple[Label, tuple[str, ...]], ...]
    """Rows that fit several files."""
    near: dict[str, str]
    """For rows without a file, a file without a row whose name is nearly the same."""


def reconcile(rows: Sequence[Label], folder: Path, dataset: str) -> Reconciled:
    """Find the file of each row below a folder.

    Raises:
        ManifestError: if the folder is none, or has no videos.
    """
    if not folder.is_dir():
        raise ManifestError(f"--videos {folder} is no folder")
    files = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in LABELLED_SUFFIXES
    )
    if not files:
        raise ManifestError(f"{folder} holds no videos ({', '.join(sorted(LABELLED_SUFFIXES))})")
    found = match([row.name for row in rows], files)
    without_file = tuple(rows[row] for row in found.only_one)
    without_label = tuple(files[file] for file in found.only_two)
    return Reconciled(
        videos=tuple(
            _video(rows[row], f"{dataset}/{files[file]}", folder.absolute() / files[file])
            for row, file in found.pairs
        ),
        without_file=without_file,
        without_label=without_label,
        unclear=tuple(
            (rows[row], tuple(files[file] for file in several)) for row, several in found.unclear
        ),
        near=near_names([row.name for row in without_file], without_label),
    )


def _video(row: Label, id: str, path: Path) -> Video:
    return Video(
        id=id,
        path=path,
        mos=row.mos,
        scene=row.scene,
        part=row.part,
        std=row.std,
        n_ratings=row.ratings,
    )
