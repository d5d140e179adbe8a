"""Where commands find videos: single files, folders, manifests and label files.

No network library is imported here, so that a name that is wrong is refused at once.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from vqbank.pipelines.labels import Labels, read_labels
from vqbank.pipelines.labels.videos import videos_of
from vqbank.pipelines.manifest import is_manifest, read_manifest, read_videos
from vqbank.store.errors import ManifestError, RecipeError
from vqbank.store.schema import Fingerprint, Video

LABEL_SUFFIXES = frozenset(
    [".csv", ".txt", ".tsv", ".data", ".mat", ".py", ".json", ".xls", ".xlsx"]
)
"""Of files that may hold labels, and never hold a video."""


def check_sources(sources: Sequence[Path], *, from_bank: bool) -> None:
    """Refuse what is not there, or is a label file where none is scored.

    Args:
        sources: as the command line has them.
        from_bank: whether a bank is named, whose videos a label file may mean.

    Raises:
        ManifestError: naming all that is not there.
        RecipeError: for a label file without a bank, or beside other sources.
    """
    absent = [str(source) for source in sources if not source.exists()]
    if absent:
        raise ManifestError(f"there is no such file or folder: {', '.join(absent)}")
    for source in sources:
        if not _is_label_file(source):
            continue
        if len(sources) > 1:
            raise RecipeError(f"{source} is a label file, which is scored alone")
        if not from_bank:
            if source.suffix.lower() == ".csv":
                read_videos(source)  # says why it is no manifest
            raise RecipeError(
                f"{source} is a label file, whose videos are those of a bank: name it by --bank; "
                "`vqbank labels import` makes a manifest of it"
            )


def labels_of(sources: Sequence[Path], *, score: str | None) -> Labels | None:
    """The label file that stands in place of videos; None where there is none.

    Args:
        sources: as `check_sources` let them through.
        score: its column that is the MOS, where it has several.

    Raises:
        RecipeError: if `score` is given and there is no label file.
        ManifestError: if it cannot be read.
    """
    if _is_label_file(sources[0]):
        return read_labels(sources[0], score=score)
    if score is not None:
        raise RecipeError(f"score {score!r} is a column of a label file, and {sources[0]} is none")
    return None


def videos_to_score(sources: Sequence[Path]) -> Iterator[Video]:
    """The videos of manifests, folders and single files, each once.

    Those of a manifest keep their ids.  All others go by their content, as files/HASH/NAME: names
    of files and folders repeat, and one video must never get the score of another.

    Raises:
        ManifestError: for a manifest that cannot be read, or a folder without videos.
    """
    known: dict[str, Video] = {}
    for source in sources:
        has_ids = _has_ids(source)
        for video in read_videos(source):
            scored = video if has_ids else Video(id=_content_id(video.path), path=video.path)
            first = known.setdefault(scored.id, scored)
            # Two files under one id of manifests are for the extraction to refuse.
            if first is scored or (has_ids and first != scored):
                yield scored


def labelled_videos(
    source: Path, dataset: str | None = None, score: str | None = None
) -> list[Video]:
    """The rows of a manifest, or of a label file of any layout, in its order.

    Args:
        source: the file.
        dataset: the first part of every id of a label file (default: the file's name).
        score: the column of a label file that is the MOS, where it has several.

    Raises:
        ManifestError: naming file, line and column; or if a column is named of a manifest.
    """
    if is_manifest(source):
        if score is not None:
            raise ManifestError(f"--score is for label files; the score of {source} is `mos`")
        return read_manifest(source)
    return videos_of(
        read_labels(source, score=score).rows, source.stem if dataset is None else dataset
    )


def split_videos(
    source: Path, dataset: str | None, labels: Path | None, score: str | None
) -> tuple[list[Video], Labels | None]:
    """The rows of a manifest or of a label file, and what says how to split them.

    Args:
        source: the file.
        dataset: the first part of every id of a label file (default: the file's name).
        labels: a label file with split columns or an index, of the same rows (default: `source`).
        score: a column of `source`, or where that is a manifest, of `labels`.

    Raises:
        ManifestError: naming file, line and column; or if a column is named of a manifest.
    """
    if is_manifest(source):
        if score is not None and labels is None:
            raise ManifestError(f"--score is for label files; the score of {source} is `mos`")
        return read_manifest(source), read_labels(labels, score=score) if labels else None
    own = read_labels(source, score=score)
    stated = own if labels is None else read_labels(labels)
    return videos_of(own.rows, source.stem if dataset is None else dataset), stated


def _has_ids(source: Path) -> bool:
    return source.suffix.lower() == ".csv" and not source.is_dir()


def _is_label_file(source: Path) -> bool:
    may_be = source.suffix.lower() in LABEL_SUFFIXES and not source.is_dir()
    return may_be and not is_manifest(source)


def _content_id(path: Path) -> str:
    try:
        digest = Fingerprint.of(path).sha256[:16]
    except OSError:
        # No banked video may go by this id: the extraction has to say what is wrong with the file.
        return f"files/unreadable/{path.as_posix()}"
    return f"files/{digest}/{path.name}"
