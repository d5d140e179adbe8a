"""Files of scores over time: a CSV line per moment, all in one JSON document, a picture a video."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vqbank.pipelines.over_time import Moments
from vqbank.store.errors import naming
from vqbank.store.schema import Video

if TYPE_CHECKING:
    from numpy.typing import NDArray

INK = "#22262b"
LINE = "#2f63a8"
WARN = "#9c1c14"


def write_curves(
    folder: Path,
    videos: Sequence[Video],
    moments: Sequence[Moments],
    *,
    score_name: str,
    context: Sequence[dict[str, float]] = (),
) -> None:
    """Write `moments.csv`, `moments.json` and `NUMBER.png` per video.

    Args:
        folder: made if need be.
        videos: n.
        moments: of each.
        score_name: what a score is.
        context: what else is told of each video's score, by name.
    """
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    told = []
    for number, (video, own) in enumerate(zip(videos, moments, strict=True), 1):
        picture = f"{number:04}.png"
        with naming(folder / picture):
            (folder / picture).write_bytes(curve(video.id, own, score_name))
        beside = context[number - 1] if context else {}
        told.append({**_document(video, own), **beside, "picture": picture})
    with naming(folder / "moments.json"):
        text = json.dumps({"score_name": score_name, "videos": told}, indent=1)
        (folder / "moments.json").write_text(f"{text}\n", encoding="utf-8")
    path = folder / "moments.csv"
    with naming(path), path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["id", "path", "unit", "start", "score", "pooled_score"])
        for video, own in zip(videos, moments, strict=True):
            for start, score in zip(own.starts, own.scores, strict=True):
                numbers = f"{start:g}", f"{score:.6f}", f"{own.pooled:.6f}"
                rows.writerow([video.id, str(video.path), own.unit, *numbers])


def _document(video: Video, own: Moments) -> dict[str, Any]:
    return {
        "id": video.id,
        "path": str(video.path),
        "score": own.pooled,
        "unit": own.unit,
        "how": own.how,
        "moments": [
            {"start": float(start), "score": float(score)}
            for start, score in zip(own.starts, own.scores, strict=True)
        ],
        "worst": [
            {"start": float(own.starts[place]), "score": float(own.scores[place])}
            for place in own.worst
        ],
    }


def curve(title: str, own: Moments, score_name: str) -> bytes:
    """A picture, PNG, of a video's scores over time, the pooled one and the worst moments."""
    import io

    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {"font.size": 9, "text.parse_math": False, "axes.edgecolor": INK}
    with mpl.rc_context(style):
        figure = Figure(figsize=(7.0, 2.6), layout="constrained")
        panel = figure.subplots()
        edges: NDArray[np.float64] = np.append(own.starts, own.starts[-1] + 1)
        panel.stairs(own.scores, edges, baseline=None, color=LINE, linewidth=1.8)
        panel.hlines(own.pooled, 0, edges[-1], color=INK, linewidth=1.0, linestyle="--")
        panel.text(edges[-1], own.pooled, f" {own.pooled:.1f}, whole video", va="center", color=INK)
        for place in own.worst:
            at, score = own.starts[place] + 0.5, own.scores[place]
            panel.plot(at, score, marker="v", color=WARN, markersize=6)
            panel.annotate(
                f"{score:.1f}", (at, score), (0, -11), textcoords="offset points", ha="center"
            )
        panel.margins(y=0.2)
        panel.set_xlabel(f"{own.unit}s; {own.how}")
        panel.set_ylabel(score_name)
        panel.set_title(title, fontsize=9, loc="left")
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=120, metadata={"Software": None})
    return picture.getvalue()
