"""What `predict` is told to score: videos, folders, manifests and label files.

No network library is imported here, so that a name that is wrong is refused at once.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from vqbank.pipelines.labels import Labels, read_labels
from vqbank.pipelines.manifest import is_manifest, read_videos
from vqbank.store.errors import ManifestError, RecipeError
from vqbank.store.schema import Fingerprint, Video

LABEL_SUFFIXES = frozenset(
    [".csv", ".txt", ".tsv", ".data", ".mat", ".py", ".json", ".xls", ".xlsx"]
)
"""Of files that may hold labels, and never hold a video."""


def check_sources(sources: Sequence[Path], *, from_bank: bool) -> None:
    """Refuse what is not there, or lists no videos, before any network is loaded.

    Args:
        sources: as the command line has them.
        from_bank: whether a bank is named, whose videos a label file may mean.

    Raises:
        ManifestError: naming all that is not there; also as `read_videos`.
        RecipeError: for a label file without a bank, or beside other sources.
    """
    absent = [str(source) for source in sources if not source.exists()]
    if absent:
        raise ManifestError(f"there is no such file or folder: {', '.join(absent)}")
    for source in sources:
        if not _is_label_file(source):
            if _has_ids(source) or source.is_dir():
                read_videos(source, quiet=True)  # they are read again
        elif len(sources) > 1:
            raise RecipeError(f"{source} is a label file, which is scored alone")
        elif not from_bank:
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
