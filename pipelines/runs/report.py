"""The page of records: which files it is made of, and where it goes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vqbank.pipelines.log import log
from vqbank.store.errors import VqbankError

if TYPE_CHECKING:
    from vqbank.pipelines.results.record import Record
    from vqbank.store.schema import Video


def write_report_page(
    records: "Sequence[Record]",
    output: Path,
    *,
    bank: Path | None = None,
    videos: Path | None = None,
    map_kind: Literal["pca", "tsne"] = "pca",
    head: Path | None = None,
    test: str | None = None,
) -> None:
    """Write one HTML file that opens anywhere.

    Args:
        records: of runs.
        output: the file, in a folder that is there.
        bank: of their features, for pictures, sizes, the map and time lines.
        videos: a manifest, for scenes and parts.
        map_kind: how videos are laid out by their features.
        head: a folder that `train` wrote, whose scores of seconds stand on time lines.
        test: the test set that is drawn; None for the splits' own test parts.

    Raises:
        VqbankError: if Bokeh is not installed, a record keeps no predictions, or bank, manifest or
            head cannot be read.
    """
    check_bokeh()
    from vqbank.pipelines.report.page import Page, write_page

    known = _described(videos)
    page = Page.of(records, bank=bank, videos=known, map_kind=map_kind, head=head, test=test)
    if page.why_no_table and bank is not None:
        log.warning("no map of features: %s", page.why_no_table)
    write_page(page, output)


def write_report_table(
    records: "Sequence[Record]",
    output: Path,
    *,
    bank: Path,
    videos: Path | None = None,
    map_kind: Literal["pca", "tsne"] = "pca",
) -> list[str]:
    """Write what a page shows of its videos as one Parquet file; gives the names of its columns.

    Args:
        records: as of `write_report_page`.
        output: as of `write_report_page`.
        bank: as of `write_report_page`.
        videos: as of `write_report_page`.
        map_kind: as of `write_report_page`.

    Raises:
        VqbankError: if pyarrow is not installed, or as `write_report_page`, but for Bokeh.
    """
    from vqbank.pipelines.report.page import Page
    from vqbank.pipelines.report.parquet import write_parquet

    known = _described(videos)
    page = Page.of(records, bank=bank, videos=known, map_kind=map_kind, every_picture=True)
    return write_parquet(page, output)


def _described(videos: Path | None) -> "list[Video]":
    """The videos of a manifest; of a folder or a video, which describe nothing, none.

    Raises:
        ManifestError: if it is not there, or cannot be read.
    """
    from vqbank.pipelines.manifest import is_manifest, read_videos

    if videos is None or (videos.exists() and not is_manifest(videos)):
        return []
    return read_videos(videos)


def is_page(report: Path) -> bool:
    """Whether `--report` names the one file, and no folder."""
    return report.suffix.lower() == ".html"


def check_bokeh() -> None:
    """Refuse where the page cannot be drawn, before anything that takes long.

    Raises:
        VqbankError: saying what to install.
    """
    try:
        import bokeh  # noqa: F401 - all that is asked is whether it is there
    except ModuleNotFoundError as error:
        raise VqbankError("a page needs Bokeh: `pip install bokeh`") from error
