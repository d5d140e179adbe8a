"""Manifests: which videos, their scores and scenes."""

import csv
import io
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from vqbank.pipelines.log import log
from vqbank.store.documents import file_text
from vqbank.store.errors import ManifestError, naming, unknown_name
from vqbank.store.ordinary import open_ordinary
from vqbank.store.schema import PARTS, Video, is_part

COLUMNS = ("id", "path", "mos", "scene", "part", "std", "n_ratings")
MOST_BYTES = 2**27
"""A million rows."""
MOST_DIGITS = 10
"""Of a number of people; Python makes no number of more than 4,300."""
MOST_HEADER_CHARACTERS = 4096
VIDEO_SUFFIXES = frozenset([
    ".264", ".265", ".266", ".3g2", ".3gp", ".amv", ".apv", ".asf", ".avc", ".avi", ".avs2",
    ".avs3", ".bik", ".cavs", ".dav", ".divx", ".dnxhd", ".dnxhr", ".dv", ".dvd", ".evc", ".evo",
    ".f4v", ".flc", ".fli", ".flv", ".gif", ".gxf", ".h261", ".h263", ".h264", ".h265", ".h266",
    ".hevc", ".ifv", ".ismv", ".ivf", ".ivr", ".kux", ".m1v", ".m2t", ".m2ts", ".m2v", ".m4v",
    ".mj2", ".mjpeg", ".mjpg", ".mk3d", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mpv",
    ".mts", ".mxf", ".mxg", ".nsv", ".nut", ".nuv", ".obu", ".ogm", ".ogv", ".ps", ".psp", ".qt",
    ".rcv", ".rm", ".rmvb", ".roq", ".smk", ".swf", ".tod", ".tp", ".trp", ".ts", ".ty", ".vc1",
    ".vc2", ".viv", ".vob", ".vvc", ".webm", ".wmv", ".wtv", ".y4m",
])  # fmt: skip
"""What a folder's videos end with: the extensions of FFmpeg's demuxers and muxers, and usual ones
of formats that it knows by their content.  Not those of pictures, sound, subtitles and pictures
without a header, nor those that other files have as often (.dat, .bit, .sub, .str, .mod, .ogg)."""


def read_videos(source: Path | str) -> list[Video]:
    """The videos of a manifest (`.csv`), of a folder, or the single video at `source`.

    What a folder holds beside videos is left out, which the logger `vqbank` is told.  No video is
    opened.

    Args:
        source: a manifest as `read_manifest` describes it, a folder, or a video.

    Returns:
        Videos with their ids (`dataset/relative-path`) and paths; of a manifest with scores (the
        column `mos`, in any unit), scenes and parts where it has them.

    Raises:
        ManifestError: naming file and line.

    Example:
        >>> videos = vqbank.read_videos("set.csv")
        >>> len(videos), videos[0].id, videos[0].mos
        (12, 'set/clips/0.mp4', 80.0)
    """
    source = Path(source)
    if source.is_dir():
        return _folder_videos(source)
    if source.suffix.lower() == ".csv":
        return read_manifest(source)
    return [Video(id=f"{source.absolute().parent.name}/{source.name}", path=source)]


def read_manifest(manifest: Path) -> list[Video]:
    """The videos of a CSV file with a header line.

    Columns: `path` (relative to the manifest's folder), and optionally `id` (default: manifest
    name / path), `mos`, `scene`, `part` (train, validation, test, or test-NAME for a further test
    set), `std` and `n_ratings` (of the ratings behind `mos`).

    Raises:
        ManifestError: naming file and line.
    """
    text = file_text(manifest, ManifestError, most_bytes=MOST_BYTES, what="UTF-8 text")
    videos: dict[str, tuple[int, Video]] = {}
    for line, video in _rows(manifest, text):
        if video.id in videos:
            raise ManifestError(
                f"{manifest}:{line}: id {video.id!r} stands in line {videos[video.id][0]} already"
            )
        videos[video.id] = (line, video)
    if not videos:
        raise ManifestError(f"{manifest} names no videos")
    return [video for _, video in videos.values()]


def is_manifest(source: Path) -> bool:
    """Whether a file begins as our manifests do: a header with `path` and no foreign column."""
    try:
        with io.TextIOWrapper(open_ordinary(source), encoding="utf-8-sig") as file:
            header = file.readline(MOST_HEADER_CHARACTERS).strip().split(",")
    except (OSError, UnicodeDecodeError):
        return False  # reading it as what it may be says what is wrong
    return "path" in header and set(header) <= set(COLUMNS)


def _rows(manifest: Path, text: str) -> Iterator[tuple[int, Video]]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(rows, [])
        for column in header:
            if header.count(column) > 1:
                raise ManifestError(f"{manifest}:1: column {column!r} stands there twice")
            if column not in COLUMNS:
                raise ManifestError(f"{manifest}:1: {unknown_name('column', column, COLUMNS)}")
        if "path" not in header:
            raise ManifestError(f"{manifest}:1: no column 'path'; columns are {', '.join(COLUMNS)}")
        for cells in rows:
            if not cells:
                continue
            if len(cells) != len(header):
                raise ManifestError(
                    f"{manifest}:{rows.line_num}: {len(cells)} cells under {len(header)} columns"
                )
            row = dict(zip(header, map(str.strip, cells), strict=True))
            yield rows.line_num, _video(manifest, rows.line_num, row)
    except csv.Error as error:
        raise ManifestError(f"{manifest}:{rows.line_num}: {error}") from error


def _video(manifest: Path, line: int, row: dict[str, str]) -> Video:
    where = f"{manifest}:{line}"
    if not row["path"]:
        raise ManifestError(f"{where}: path is empty")
    part = row.get("part") or None
    if part is not None and not is_part(part):
        raise ManifestError(f"{where}: {unknown_name('part', part, PARTS)}")
    return Video(
        id=row.get("id") or f"{manifest.stem}/{row['path']}",
        path=manifest.parent / row["path"],
        mos=_number(where, "mos", row.get("mos", "")),
        scene=row.get("scene") or None,
        part=part,
        std=_number(where, "std", row.get("std", ""), least=0),
        n_ratings=_count(where, row.get("n_ratings", "")),
    )


def _number(where: str, column: str, text: str, *, least: float = -math.inf) -> float | None:
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        raise ManifestError(f"{where}: {column} {text!r} is not a number") from None
    if not math.isfinite(number):
        raise ManifestError(f"{where}: {column} {text!r} is not a finite number")
    if number < least:
        raise ManifestError(f"{where}: {column} {text!r} is below {least:g}")
    return number


def _count(where: str, text: str) -> int | None:
    if text and (not text.isdecimal() or len(text) > MOST_DIGITS):
        raise ManifestError(f"{where}: n_ratings {text[:20]!r} is not a number of people")
    return int(text) if text else None


def write_manifest(manifest: Path, videos: Sequence[Video]) -> None:
    """Write what `read_manifest` reads; paths are written relative to the manifest's folder.

    A relative path is taken to be below that folder already.  `std` and `n_ratings` are columns
    where any video has them.
    """
    columns = [
        column
        for column in COLUMNS
        if column not in ("std", "n_ratings")
        or any(getattr(video, column) is not None for video in videos)
    ]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for video in videos:
        writer.writerow(_cell(manifest, video, column) for column in columns)
    with naming(manifest):
        manifest.write_text(text.getvalue(), encoding="utf-8")


def _cell(manifest: Path, video: Video, column: str) -> str:
    value = getattr(video, column)
    if value is None:
        return ""
    if column == "path":
        if video.path.is_absolute():
            value = os.path.relpath(video.path, manifest.absolute().parent)
        return Path(value).as_posix()
    return repr(value) if column == "mos" or column == "std" else str(value)


def _folder_videos(folder: Path) -> list[Video]:
    name = folder.resolve().name
    paths, others = [], Counter[str]()
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in VIDEO_SUFFIXES:
            paths.append(path)
        elif not path.is_dir() and not path.name.startswith("."):
            others[path.suffix.lower() or "without a suffix"] += 1
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
    if not paths:
        raise ManifestError(f"{folder} holds no videos, but {kinds or 'nothing'}")
    if others:
        log.info("%s: %d files left out that are no videos: %s", folder, others.total(), kinds)
    return [Video(id=f"{name}/{_text(path.relative_to(folder))}", path=path) for path in paths]


def _text(path: Path) -> str:
    """A file name as text, also where its bytes are no UTF-8."""
    return os.fsencode(path.as_posix()).decode(errors="backslashreplace")


def scores(videos: Sequence[Video]) -> list[float]:
    """The score of every video.

    Raises:
        ManifestError: naming the videos that have none.
    """
    without = [video.id for video in videos if video.mos is None]
    if without:
        raise ManifestError(
            f"{len(without)} of {len(videos)} videos have no mos: {', '.join(without[:3])}"
        )
    return [video.mos for video in videos if video.mos is not None]
