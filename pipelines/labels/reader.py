"""One file to labels, whatever its layout."""

from dataclasses import replace
from pathlib import Path

from vqbank.pipelines.labels import matlab, text, vmaf
from vqbank.pipelines.labels.columns import EVERY_SCORE, interpret
from vqbank.pipelines.labels.kinds import with_kind
from vqbank.pipelines.labels.label import Labels
from vqbank.pipelines.labels.scenes import likely_pattern
from vqbank.pipelines.labels.sheet import Sheet
from vqbank.store.documents import file_bytes
from vqbank.store.errors import ManifestError

LARGEST_BYTES = 256 * 2**20
"""More than this is no label file: LSVQ's, of 39,000 videos, has 12 MB."""


def read_labels(path: Path, *, score: str | None = None) -> Labels:
    """The labels in a file of any layout that is known, found by its content alone.

    Args:
        path: text, MATLAB 5 or 7.3, or a data set of VMAF.
        score: the column that becomes `mos`; None: the one that the columns' names tell.

    Raises:
        ManifestError: if the file fits no layout or two, or is damaged; names what was seen, and
            line and column.
    """
    labels = with_kind(_only_one(path, read_sheets(path), score))
    pattern = likely_pattern(labels.names) if labels.named and not labels.scene_rule else None
    if pattern is None:
        return labels
    hint = f"names look like versions of contents; if they are, --scene '{pattern}' groups them"
    return replace(labels, scene_note="; ".join(filter(None, (labels.scene_note, hint))))


def score_columns(path: Path) -> list[str]:
    """The columns of a label file that are scores by their names, in its order.

    Raises:
        ManifestError: as `read_labels`.
    """
    labels = read_labels(path, score=EVERY_SCORE)
    others = (name for row in labels.rows for name in row.other_scores)
    return list(dict.fromkeys([labels.score, *others]))


def read_sheets(path: Path) -> list[Sheet]:
    """Every way in which a file is a table, before anybody says what its columns mean: usually one.

    Raises:
        ManifestError: if it is none, or damaged.
    """
    content = file_bytes(path, ManifestError, most_bytes=LARGEST_BYTES)
    if matlab.is_matlab(content):
        return [matlab.sheet(path, content)]
    if content.startswith(b"\x80"):
        raise ManifestError(f"{path} is a pickle; opening one would run it, so export text from it")
    if content.startswith(b"PK\x03\x04"):
        raise ManifestError(f"{path} is a zip archive or a spreadsheet; export it as CSV")
    decoded = text.decode(path, content)
    if vmaf.is_vmaf(decoded):
        return [vmaf.sheet(path, decoded)]
    return text.sheets(path, decoded)


def _only_one(path: Path, sheets: list[Sheet], score: str | None) -> Labels:
    """Where a file is a table in two ways, one must fit a layout and the other none."""
    found, failed = [], []
    for sheet in sheets:
        try:
            found.append(interpret(sheet, score=score))
        except ManifestError as error:
            failed.append(error)
    if len(found) > 1:
        raise ManifestError(
            f"{path} fits two layouts: {' and '.join(labels.layout for labels in found)}"
        )
    if not found:
        raise failed[0]
    return found[0]
