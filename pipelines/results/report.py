"""The page of a record, with its pictures and its CSV files."""

import base64
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vqbank.pipelines.results.record import KEEPS_PREDICTIONS, SEEN_MARK, HeadRecord, Record
from vqbank.pipelines.results.statistics import NO_INTERVAL, SHOWN, shown
from vqbank.store.errors import RecipeError, naming

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#3b6fb6", "#c1592f", "#4d8f5b", "#8a5aa8", "#8c6d1f", "#5b7083")
"""One per head, in order of appearance."""
INK = "#22262b"
GRID = "#d9dde2"


def write_report(record: Record, folder: Path) -> Path:
    """Write results.csv, predictions.csv, result.png and report.html; gives the page's path.

    Args:
        record: from which every number is taken.
        folder: made if need be.

    Raises:
        RecipeError: if the record is of a format that keeps no predictions per split.
    """
    if record.vqbank_results < KEEPS_PREDICTIONS:
        raise RecipeError(
            f"a record of format {record.vqbank_results} keeps no predictions per split, and a "
            "report shows them; run `vqbank evaluate` again"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _write_results(record, folder / "results.csv")
    _write_predictions(record, folder / "predictions.csv")
    picture = _picture(record)
    with naming(folder / "result.png"):
        (folder / "result.png").write_bytes(picture)
    path = folder / "report.html"
    with naming(path):
        path.write_text(_page(record, picture), encoding="utf-8")
    return path


def _page(record: Record, picture: bytes) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vqbank.pipelines"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("report.html").render(
        record=record,
        metrics=SHOWN,
        mark=SEEN_MARK,
        no_interval=NO_INTERVAL,
        shown=shown,
        picture=base64.b64encode(picture).decode(),
    )


def _write_results(record: Record, path: Path) -> None:
    with naming(path), path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        further = [
            "mapping", "fit", "test_videos", "selection", "random_weights", "provenance_unknown",
            "seen_by_weights",
        ]  # fmt: skip
        rows.writerow(["head", "split", *SHOWN, *further])
        for split, videos in enumerate(record.test_videos):
            for head in record.heads:
                rows.writerow(
                    [
                        head.name,
                        split,
                        *(f"{head.per_split[metric][split]:.6f}" for metric in SHOWN),
                        head.mappings[split].kind,
                        head.fits[split],
                        videos,
                        head.selection[split],
                        record.random_weights,
                        "; ".join(record.provenance_unknown),
                        "; ".join(record.seen_in(split)),
                    ]
                )


def _write_predictions(record: Record, path: Path) -> None:
    with naming(path), path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["head", "split", "id", record.score_name, "predicted"])
        for split, test in enumerate(record.tests):
            for head in record.heads:
                for row, predicted in zip(test, head.predicted[split], strict=True):
                    numbers = f"{record.mos[row]:.4f}", f"{predicted:.6f}"
                    rows.writerow([head.name, split, record.ids[row], *numbers])


def _picture(record: Record) -> bytes:
    """Scatter of each head's test predictions, then the SRCC of every split."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "font.size": 9,
        "axes.edgecolor": INK,
        "text.color": INK,
        "text.parse_math": False,  # names are text: `$` begins no formula
    }
    with mpl.rc_context(style):
        count = len(record.heads)
        figure = Figure(figsize=(3.3 * count + 3.0, 3.6), layout="constrained")
        panels = figure.subplots(1, count + 1, width_ratios=[*[1.0] * count, 0.85])
        tested = [record.mos[row] for test in record.tests for row in test]
        low, high = min(tested), max(tested)
        margin = 0.05 * (high - low)
        for panel, head, colour in zip(panels, record.heads, _colours(count), strict=False):
            _scatter(panel, record, head, colour)
            panel.set_ylim(low - margin, high + margin)
        panels[0].set_ylabel(record.score_name)
        _splits(panels[-1], record)
        if record.random_weights:
            figure.suptitle("RANDOM WEIGHTS", color="#b3261e", fontweight="bold")
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=130, metadata={"Software": None})
    return picture.getvalue()


def _scatter(panel: "Axes", record: Record, head: HeadRecord, colour: str) -> None:
    """Predictions on all test parts, and the curves of which PLCC and RMSE were taken."""
    from vqbank.regressors.metrics import MosMapping

    mos = [record.mos[row] for test in record.tests for row in test]
    panel.scatter(np.concatenate(head.predicted), mos, s=14, color=colour, alpha=0.55, linewidths=0)
    for predicted, mapped in zip(head.predicted, head.mappings, strict=True):
        if mapped.kind != "none":
            mapping = MosMapping(mapped.kind, tuple(mapped.parameters))
            grid = np.linspace(min(predicted), max(predicted), 200)
            fainter = len(record.tests) ** -0.5
            panel.plot(grid, mapping(grid), color=INK, linewidth=1.2, alpha=fainter)
    median = head.statistics["srcc"].median
    panel.set_title(f"{head.name}: median SRCC {shown(median)}", fontsize=10)
    panel.set_xlabel("predicted")
    _plain(panel)


def _splits(panel: "Axes", record: Record) -> None:
    """The SRCC of every split of each head, and the median."""
    count = len(record.heads)
    for place, (head, colour) in enumerate(zip(record.heads, _colours(count), strict=False)):
        values = head.per_split["srcc"]
        spread = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else [0.0]
        panel.scatter(place + np.asarray(spread), values, s=26, color=colour, linewidths=0)
        median = head.statistics["srcc"].median
        panel.hlines(median, place - 0.28, place + 0.28, color=INK, linewidth=1.6)
    panel.set_xticks(range(count), [head.name for head in record.heads])
    panel.set_xlim(-0.6, count - 0.4)
    panel.set_title("SRCC of every split, median", fontsize=10)
    _plain(panel)


def _colours(count: int) -> Sequence[str]:
    return [COLOURS[place % len(COLOURS)] for place in range(count)]


def _plain(panel: "Axes") -> None:
    panel.grid(color=GRID, linewidth=0.6)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
