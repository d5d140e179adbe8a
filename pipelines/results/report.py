"""What a run found: table, CSV files, pictures, one HTML page."""

import base64
import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import jinja2
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from vqbank.pipelines.console import styled
from vqbank.pipelines.experiments.evaluate import SplitResult, Trial
from vqbank.pipelines.results.provenance import seen_by_weights, unknown_provenance
from vqbank.pipelines.results.records import (
    NO_INTERVAL,
    SEEN_MARK,
    SHOWN,
    Record,
    Row,
    cautions,
    mapping_text,
    rows_of,
    selection_text,
    shown,
)
from vqbank.regressors.metrics import fit_mapping
from vqbank.store.errors import naming

COLOURS = ("#3b6fb6", "#c1592f", "#4d8f5b", "#8a5aa8", "#8c6d1f", "#5b7083")
"""One per head, in order of appearance."""
INK = "#22262b"
GRID = "#d9dde2"


def result_table(record: Record) -> Table:
    """The table for a terminal."""
    seen = bool(record.seen_by_weights)
    title = [f"{record.title}: median (standard deviation) over test parts"]
    if record.random_weights:
        title.append("RANDOM WEIGHTS: these numbers say nothing about any network")
    caption = [
        f"{record.splits} 95 %: of the median, by bootstrap over splits; - where that says "
        f"nothing ({NO_INTERVAL}).",
        *cautions(record),
    ]
    caption += [f"{head.name}: {selection_text(head)}." for head in record.heads]
    table = Table(title=styled(*title), caption=styled(*caption))
    table.add_column("head")
    for metric in SHOWN:
        table.add_column(metric.upper(), justify="right")
    table.add_column("SRCC, 95 %", justify="right")
    table.add_column("splits", justify="right")
    for row in rows_of([record]):
        label = f"{row.label} {SEEN_MARK}" if seen else row.label
        table.add_row(label, *map(_cell(row), SHOWN), row.interval("srcc"), splits_text(row))
    return table


def _cell(row: Row) -> Callable[[str], str]:
    def text(metric: str) -> str:
        own = row.statistics[metric]
        return f"{shown(own.median)} ({shown(own.std)})"

    return text


def splits_text(row: Row) -> str:
    """How many splits a row has, and of how many no correlation is defined."""
    return f"{row.splits} ({row.undefined} undefined)" if row.undefined else f"{row.splits}"


def write_report(
    trial: Trial, results: Sequence[SplitResult], record: Record, folder: Path
) -> Path:
    """Write results.csv, predictions.csv, result.png and report.html; gives the page's path.

    Args:
        trial: what was tried.
        results: of its run.
        record: of the same, from which every number is taken.
        folder: made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_results(trial, results, folder / "results.csv")
    _write_predictions(trial, results, folder / "predictions.csv")
    with mpl.rc_context(
        {
            "font.size": 9,
            "axes.edgecolor": INK,
            "text.color": INK,
            "text.parse_math": False,  # names are text: `$` begins no formula
        }
    ):
        picture = _picture(results, record)
    with naming(folder / "result.png"):
        (folder / "result.png").write_bytes(picture)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vqbank.pipelines"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("report.html").render(
        trial=trial,
        record=record,
        results=results,
        rows=rows_of([record]),
        metrics=SHOWN,
        mark=SEEN_MARK,
        notes=cautions(record),
        mapping_text=mapping_text(record),
        no_interval=NO_INTERVAL,
        shown=shown,
        splits_text=splits_text,
        selection_text=selection_text,
        seen_in=[seen_by_weights(trial, result.rows) for result in results],
        picture=base64.b64encode(picture).decode(),
    )
    path = folder / "report.html"
    with naming(path):
        path.write_text(page, encoding="utf-8")
    return path


def _write_results(trial: Trial, results: Sequence[SplitResult], path: Path) -> None:
    with naming(path), path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        further = [
            "mapping", "fit", "test_videos", "selection", "random_weights", "provenance_unknown",
            "seen_by_weights",
        ]  # fmt: skip
        rows.writerow(["head", "split", *SHOWN, *further])
        for result in results:
            numbers = [f"{getattr(result.metrics, metric):.6f}" for metric in SHOWN]
            rows.writerow(
                [
                    result.head,
                    result.split,
                    *numbers,
                    result.metrics.mapping,
                    result.metrics.fit,
                    len(result.rows),
                    result.selection,
                    trial.has_random_weights,
                    "; ".join(unknown_provenance(trial)),
                    "; ".join(seen_by_weights(trial, result.rows)),
                ]
            )


def _write_predictions(trial: Trial, results: Sequence[SplitResult], path: Path) -> None:
    with naming(path), path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["head", "split", "id", trial.score_name, "predicted"])
        for result in results:
            for row, mos, predicted in zip(result.rows, result.mos, result.predicted, strict=True):
                video = trial.table.videos[row].id
                rows.writerow([result.head, result.split, video, f"{mos:.4f}", f"{predicted:.6f}"])


def _picture(results: Sequence[SplitResult], record: Record) -> bytes:
    """Scatter of each head's test predictions, then the SRCC of every split.

    The curves are those of which PLCC and RMSE were taken: one per split, over its predictions.
    """
    count = len(record.heads)
    figure = Figure(figsize=(3.3 * count + 3.0, 3.6), layout="constrained")
    panels = figure.subplots(1, count + 1, width_ratios=[*[1.0] * count, 0.85])
    low = min(float(result.mos.min()) for result in results)
    high = max(float(result.mos.max()) for result in results)
    margin = 0.05 * (high - low)
    for panel, head, colour in zip(panels, record.heads, _colours(count), strict=False):
        own = [result for result in results if result.head == head.name]
        mos = np.concatenate([result.mos for result in own])
        predicted = np.concatenate([result.predicted for result in own])
        panel.scatter(predicted, mos, s=14, color=colour, alpha=0.55, linewidths=0)
        for result in own:
            mapping = fit_mapping(result.mos, result.predicted)
            if mapping.kind != "none":
                grid = np.linspace(result.predicted.min(), result.predicted.max(), 200)
                panel.plot(grid, mapping(grid), color=INK, linewidth=1.2, alpha=len(own) ** -0.5)
        median = head.statistics["srcc"].median
        panel.set_title(f"{head.name}: median SRCC {shown(median)}", fontsize=10)
        panel.set_xlabel("predicted")
        panel.set_ylim(low - margin, high + margin)
        _plain(panel)
    panels[0].set_ylabel(record.score_name)

    last = panels[-1]
    for place, (head, colour) in enumerate(zip(record.heads, _colours(count), strict=False)):
        values = head.per_split["srcc"]
        spread = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else [0.0]
        last.scatter(place + np.asarray(spread), values, s=26, color=colour, linewidths=0)
        last.hlines(
            head.statistics["srcc"].median, place - 0.28, place + 0.28, color=INK, linewidth=1.6
        )
    last.set_xticks(range(count), [head.name for head in record.heads])
    last.set_xlim(-0.6, count - 0.4)
    last.set_title("SRCC of every split, median", fontsize=10)
    _plain(last)
    if record.random_weights:
        figure.suptitle("RANDOM WEIGHTS", color="#b3261e", fontweight="bold")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130, metadata={"Software": None})
    return picture.getvalue()


def _colours(count: int) -> list[str]:
    return [COLOURS[place % len(COLOURS)] for place in range(count)]


def _plain(panel: "mpl.axes.Axes") -> None:
    panel.grid(color=GRID, linewidth=0.6)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
