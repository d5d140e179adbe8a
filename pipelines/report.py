"""What a run found: table, CSV files, pictures, one HTML page."""

import base64
import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.table import Table

from pipelines.evaluate import SplitResult, Trial
from regressors.metrics import fit_mapping
from regressors.significance import confidence_of_median
from store.errors import naming

METRICS = ("srcc", "krcc", "plcc", "rmse")
COLOURS = ("#3b6fb6", "#c1592f", "#4d8f5b", "#8a5aa8", "#8c6d1f", "#5b7083")
"""One per head, in order of appearance."""
SEEN_MARK = "*"
"""At a result on data that the weights of a feature were trained on."""
INK = "#22262b"
GRID = "#d9dde2"


@dataclass(frozen=True, slots=True)
class Summary:
    """One head over all splits."""

    head: str
    splits: int
    undefined: int
    """Splits without a correlation, because predictions or scores were constant; they count in no
    median."""
    median: Mapping[str, float]
    """By metric."""
    std: Mapping[str, float]
    """By metric, of the population."""
    interval: tuple[float, float]
    """95 % bootstrap interval of the median SRCC; NaN of one split, which tells of no spread."""
    selection: str

    @property
    def interval_text(self) -> str:
        """The interval for tables."""
        low, high = self.interval
        return "-" if math.isnan(low) else f"{low:.3f} to {high:.3f}"


def summarise(results: Sequence[SplitResult]) -> list[Summary]:
    """Median and standard deviation over splits, per head, in order of appearance."""
    summaries = []
    for head in dict.fromkeys(result.head for result in results):
        own = [result for result in results if result.head == head]
        defined = [result for result in own if np.isfinite(result.metrics.srcc)]
        values = {m: [getattr(result.metrics, m) for result in defined] for m in METRICS}
        rules = list(dict.fromkeys(result.selection for result in own))
        summaries.append(
            Summary(
                head=head,
                splits=len(own),
                undefined=len(own) - len(defined),
                median={m: float(np.median(v)) if v else math.nan for m, v in values.items()},
                std={m: float(np.std(v)) if v else math.nan for m, v in values.items()},
                interval=(
                    confidence_of_median(np.array(values["srcc"]))
                    if len(defined) > 1
                    else (math.nan, math.nan)
                ),
                selection=rules[0] if len(rules) == 1 else f"{rules[0]} (differs by split)",
            )
        )
    return summaries


def seen_by_weights(trial: Trial, rows: NDArray[np.int64]) -> list[str]:
    """Which of the data sets that these rows are of the weights of a feature were trained on.

    A data set is what stands before the first slash of a video's id; case, hyphens and underscores
    do not count.

    Returns:
        Lines such as "LSVQ (fastvqa.feature)"; none where no weights are known to have seen any.
    """
    sets = dict.fromkeys(trial.table.videos[row].id.split("/", 1)[0] for row in rows)
    specs = trial.table.specs.values()
    lines = []
    for name in sets:
        trained = [s.name for s in specs if _bare(name) in {_bare(seen) for seen in s.trained_on}]
        if trained:
            lines.append(f"{name} ({', '.join(dict.fromkeys(trained))})")
    return lines


def unknown_weights(trial: Trial) -> list[str]:
    """Names of the features of whose weights nobody knows what they were trained on."""
    return [
        spec.name
        for spec in trial.table.specs.values()
        if spec.identity.get("weights", "none") != "none"
        and not spec.uses_random_weights
        and not spec.trained_on
    ]


def unknown_provenance(trial: Trial) -> list[str]:
    """Names of the features that were imported: nobody knows which code and weights made them."""
    specs = trial.table.specs.values()
    return [spec.name for spec in specs if spec.identity.get("provenance") == "unknown"]


def _bare(name: str) -> str:
    return name.replace("-", "").replace("_", "").casefold()


def _all_tested(results: Sequence[SplitResult]) -> NDArray[np.int64]:
    return np.unique(np.concatenate([result.rows for result in results]))


def result_table(trial: Trial, results: Sequence[SplitResult]) -> Table:
    """The table for a terminal."""
    title = f"{trial.title}: median (standard deviation) over test parts"
    if trial.has_random_weights:
        title += "\n[bold]RANDOM WEIGHTS: these numbers say nothing about any network[/bold]"
    seen = seen_by_weights(trial, _all_tested(results))
    caption = f"{trial.protocol_text} 95 %: of the median, by bootstrap over splits."
    if seen:
        caption += f"\n{SEEN_MARK} The weights of a feature were trained on {', '.join(seen)}."
    unknown = unknown_weights(trial)
    if unknown:
        caption += f"\nWhat the weights of {', '.join(unknown)} were trained on is not known."
    imported = unknown_provenance(trial)
    if imported:
        caption += f"\nProvenance unknown, because imported: {', '.join(imported)}."
    if trial.taken_for:
        caption += (
            f"\nThe videos' names do not state {trial.taken_for}; they were taken for its videos "
            "in the bank."
        )
    for name, count in trial.filled.items():
        caption += (
            f"\n{name}: {count} videos had values that were not finite; their import filled these "
            "with means over all videos, tested ones included."
        )
    fits = [result.metrics.fit for result in results if result.metrics.fit]
    for fit in dict.fromkeys(fits):
        caption += f"\nPLCC and RMSE of {fits.count(fit)} of {len(results)} fits: {fit}."
    table = Table(title=title, caption=caption)
    table.add_column("head")
    for metric in METRICS:
        table.add_column(metric.upper(), justify="right")
    table.add_column("SRCC, 95 %", justify="right")
    table.add_column("splits", justify="right")
    for summary in summarise(results):
        cells = [f"{summary.median[m]:.4f} ({summary.std[m]:.4f})" for m in METRICS]
        undefined = f" ({summary.undefined} undefined)" if summary.undefined else ""
        head = f"{summary.head} {SEEN_MARK}" if seen else summary.head
        table.add_row(head, *cells, summary.interval_text, f"{summary.splits}{undefined}")
    return table


def write_report(trial: Trial, results: Sequence[SplitResult], folder: Path) -> Path:
    """Write results.csv, predictions.csv, result.png and report.html; gives the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    summaries = summarise(results)
    _write_results(trial, results, folder / "results.csv")
    _write_predictions(trial, results, folder / "predictions.csv")
    with mpl.rc_context({"font.size": 9, "axes.edgecolor": INK, "text.color": INK}):
        picture = _picture(trial, results, summaries)
    with naming(folder / "result.png"):
        (folder / "result.png").write_bytes(picture)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipelines"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("report.html").render(
        trial=trial,
        results=results,
        summaries=summaries,
        metrics=METRICS,
        mark=SEEN_MARK,
        seen=seen_by_weights(trial, _all_tested(results)),
        unknown=unknown_weights(trial),
        imported=unknown_provenance(trial),
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
        rows.writerow(["head", "split", *METRICS, *further])
        for result in results:
            numbers = [f"{getattr(result.metrics, metric):.6f}" for metric in METRICS]
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


def _picture(trial: Trial, results: Sequence[SplitResult], summaries: Sequence[Summary]) -> bytes:
    """Scatter of each head's test predictions, then the SRCC of every split."""
    count = len(summaries)
    figure = Figure(figsize=(3.3 * count + 3.0, 3.6), layout="constrained")
    panels = figure.subplots(1, count + 1, width_ratios=[*[1.0] * count, 0.85])
    low = min(float(result.mos.min()) for result in results)
    high = max(float(result.mos.max()) for result in results)
    margin = 0.05 * (high - low)
    for panel, summary, colour in zip(panels, summaries, _colours(count), strict=False):
        own = [result for result in results if result.head == summary.head]
        mos = np.concatenate([result.mos for result in own])
        predicted = np.concatenate([result.predicted for result in own])
        panel.scatter(predicted, mos, s=14, color=colour, alpha=0.55, linewidths=0)
        grid = np.linspace(predicted.min(), predicted.max(), 200)
        panel.plot(grid, fit_mapping(mos, predicted)(grid), color=INK, linewidth=1.2)
        panel.set_title(f"{summary.head}: median SRCC {summary.median['srcc']:.3f}", fontsize=10)
        panel.set_xlabel("predicted")
        panel.set_ylim(low - margin, high + margin)
        _plain(panel)
    panels[0].set_ylabel(trial.score_name)

    last = panels[-1]
    for place, (summary, colour) in enumerate(zip(summaries, _colours(count), strict=False)):
        values = [r.metrics.srcc for r in results if r.head == summary.head]
        spread = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else [0.0]
        last.scatter(place + np.asarray(spread), values, s=26, color=colour, linewidths=0)
        last.hlines(summary.median["srcc"], place - 0.28, place + 0.28, color=INK, linewidth=1.6)
    last.set_xticks(range(count), [summary.head for summary in summaries])
    last.set_xlim(-0.6, count - 0.4)
    last.set_title("SRCC of every split, median", fontsize=10)
    _plain(last)
    if trial.has_random_weights:
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
