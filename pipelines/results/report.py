"""The page of a record, with its pictures and its CSV files."""

import base64
import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vqbank.pipelines.results.head_record import KEEPS_PREDICTIONS, HeadRecord, Scores
from vqbank.pipelines.results.record import SEEN_MARK, Record
from vqbank.pipelines.results.set_record import SetRecord
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
        tested=_tested(record),
        no_interval=NO_INTERVAL,
        shown=shown,
        picture=base64.b64encode(picture).decode(),
    )


@dataclass(frozen=True, slots=True)
class Tested:
    """What one fitted head came to on the test part of a split, or on a test set."""

    head: HeadRecord
    split: int
    scores: Scores
    test_set: SetRecord | None
    ids: Sequence[str]
    mos: Sequence[float]
    seen: Sequence[str]
    """Data sets in it that weights were trained on."""

    @property
    def label(self) -> str:
        """The head, the test set if it is one, and the mark of what was seen."""
        name = self.head.name if self.test_set is None else f"{self.head.name}, {self.set_name}"
        return f"{name} {SEEN_MARK}" if self.seen else name

    @property
    def set_name(self) -> str:
        """Of the test set; empty of the test parts of the splits."""
        return "" if self.test_set is None else self.test_set.name


def _tested(record: Record) -> Iterator[Tested]:
    """Split by split, every head on the test part and on each test set."""
    for split, test in enumerate(record.tests):
        ids, mos = [record.ids[row] for row in test], [record.mos[row] for row in test]
        for head in record.heads:
            if record.tests_itself:
                yield Tested(head, split, head, None, ids, mos, record.seen_in(split))
            for one, scores in zip(record.test_sets, head.sets, strict=True):
                yield Tested(head, split, scores, one, one.ids, one.mos, one.seen_by_weights)


def _write_results(record: Record, path: Path) -> None:
    with naming(path), path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        further = [
            "mapping", "fit", "test_videos", "selection", "random_weights", "provenance_unknown",
            "seen_by_weights",
        ]  # fmt: skip
        rows.writerow(["head", "split", "test_set", *SHOWN, *further])
        for tested in _tested(record):
            scores, split = tested.scores, tested.split
            rows.writerow(
                [
                    tested.head.name,
                    split,
                    tested.set_name,
                    *(f"{scores.per_split[metric][split]:.6f}" for metric in SHOWN),
                    scores.mappings[split].kind,
                    scores.fits[split],
                    len(tested.ids),
                    tested.head.selection[split],
                    record.random_weights,
                    "; ".join(record.provenance_unknown),
                    "; ".join(tested.seen),
                ]
            )


def _write_predictions(record: Record, path: Path) -> None:
    with naming(path), path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["head", "split", "test_set", "id", record.score_name, "predicted"])
        for tested in _tested(record):
            of_split = tested.scores.predicted[tested.split]
            for video_id, mos, predicted in zip(tested.ids, tested.mos, of_split, strict=True):
                own = tested.head.name, tested.split, tested.set_name
                rows.writerow([*own, video_id, f"{mos:.4f}", f"{predicted:.6f}"])


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
        low, high = min(_pictured(record)), max(_pictured(record))
        margin = 0.05 * (high - low)
        for panel, head, colour in zip(panels, record.heads, _colours(count), strict=False):
            _scatter(panel, record, head, colour)
            panel.set_ylim(low - margin, high + margin)
        names = record.score_name, *(one.score_name for one in record.test_sets)
        panels[0].set_ylabel(names[0] if record.tests_itself else names[1])
        _splits(panels[-1], record)
        if record.random_weights:
            figure.suptitle("RANDOM WEIGHTS", color="#b3261e", fontweight="bold")
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=130, metadata={"Software": None})
    return picture.getvalue()


def _scatter(panel: "Axes", record: Record, head: HeadRecord, colour: str) -> None:
    """Predictions on all test parts, and the curves of which PLCC and RMSE were taken.

    Of a run whose splits test nothing, those on its first test set.
    """
    from vqbank.regressors.metrics import MosMapping

    scores, mos = (head if record.tests_itself else head.sets[0]), _pictured(record)
    panel.scatter(
        np.concatenate(scores.predicted), mos, s=14, color=colour, alpha=0.55, linewidths=0
    )
    for predicted, mapped in zip(scores.predicted, scores.mappings, strict=True):
        if mapped.kind != "none":
            mapping = MosMapping(mapped.kind, tuple(mapped.parameters))
            grid = np.linspace(min(predicted), max(predicted), 200)
            fainter = len(record.tests) ** -0.5
            panel.plot(grid, mapping(grid), color=INK, linewidth=1.2, alpha=fainter)
    row = next(row for row in record.rows if row.head is head and row.direction in ("", "all"))
    number = shown(row.number("srcc"))
    panel.set_title(f"{row.plain_label}: {record.statistic} SRCC {number}", fontsize=10)
    panel.set_xlabel("predicted")
    _plain(panel)


def _pictured(record: Record) -> list[float]:
    """The scores behind the points of each head's scatter."""
    if record.tests_itself:
        return [record.mos[row] for test in record.tests for row in test]
    return record.test_sets[0].mos * len(record.tests)


def _splits(panel: "Axes", record: Record) -> None:
    """The SRCC of every split of each head, and the median or mean."""
    count = len(record.heads)
    for place, (head, colour) in enumerate(zip(record.heads, _colours(count), strict=False)):
        scores = head if record.tests_itself else head.sets[0]
        values = scores.per_split["srcc"]
        spread = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else [0.0]
        panel.scatter(place + np.asarray(spread), values, s=26, color=colour, linewidths=0)
        number = getattr(scores.statistics["srcc"], record.statistic)
        panel.hlines(number, place - 0.28, place + 0.28, color=INK, linewidth=1.6)
    panel.set_xticks(range(count), [head.name for head in record.heads])
    panel.set_xlim(-0.6, count - 0.4)
    panel.set_title(f"SRCC of every split, {record.statistic}", fontsize=10)
    _plain(panel)


def _colours(count: int) -> Sequence[str]:
    return [COLOURS[place % len(COLOURS)] for place in range(count)]


def _plain(panel: "Axes") -> None:
    panel.grid(color=GRID, linewidth=0.6)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
