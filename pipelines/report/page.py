"""The page: one HTML file that asks for nothing, made of records and of what a bank knows."""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqbank.pipelines.report.feature_map import Kind, agreement, likeness, map_of
from vqbank.pipelines.report.known import (
    FACTS,
    MOST_GROUPS,
    MOTION,
    PICTURES,
    Known,
    known_of,
)
from vqbank.pipelines.report.scored import Scored, scored_over_time
from vqbank.pipelines.report.tried import Drawn, Tried, against_best, best_of, tried_heads
from vqbank.pipelines.results.record import Record
from vqbank.pipelines.results.statistics import NO_INTERVAL, SHOWN, shown
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import MissingFeatureError, RecipeError, naming
from vqbank.store.schema import Video
from vqbank.store.table import FeatureTable
from vqbank.store.words import counted

CARDS = 8
"""Videos that are shown as the worst, and as the best."""
WORST, AT_RANDOM = 500, 300
"""Of many videos, those with a picture: the largest residuals, some at random, one per group."""
MANY_VIDEOS = 1_500
"""Above this many, not all pictures are in the page: they would be most of it."""
NO_NUMBER = 65_535
FACT_NAMES = {
    "mos": "score",
    "lines": "short side, pixels",
    "rate": "frames per second",
    "seconds": "length, seconds",
}


@dataclass(frozen=True, slots=True, eq=False)
class Page:
    """What the page is made of."""

    records: Sequence[Record]
    drawn: Drawn
    """What is drawn; tables have all."""
    tried: Sequence[Tried]
    best: Tried
    known: Known
    table: FeatureTable | None
    """The features of the best head's record; None where the bank lacks one, or none is named."""
    why_no_table: str
    map_kind: Kind
    scored: Scored | None = None
    """What a shipped head says of every second, where one is named."""

    @classmethod
    def of(
        cls,
        records: Sequence[Record],
        *,
        bank: Path | None = None,
        videos: Sequence[Video] = (),
        map_kind: Kind = "pca",
        head: Path | None = None,
        test: str | None = None,
        every_picture: bool = False,
    ) -> "Page":
        """Look up all that the page shows.

        Args:
            records: of runs, at least one.
            bank: of their features, for pictures, facts and the map; None goes without.
            videos: of a manifest, for scenes and parts.
            map_kind: of the map.
            head: a folder that `train` wrote, whose scores of seconds stand on time lines.
            test: the test set of the first record that is drawn; None for the splits' own test
                parts, or, where there are none, the first test set.
            every_picture: whether of many videos all have a picture.

        Raises:
            RecipeError: if a record keeps no predictions, or there is none; if there is no such
                test set; or if a head is named and no bank.
            BankError: if there is no bank.
            HeadError: if the head cannot be read.
            MissingFeatureError: if the bank lacks a feature of the head.
        """
        if not records:
            raise RecipeError("no record is given; `vqbank evaluate --json RUN.json` writes one")
        drawn = Drawn.of(records[0], test)
        tried = tried_heads(records, drawn)
        best = best_of(tried)
        if bank is None and head is not None:
            raise RecipeError("scores over time are made of a bank: name it by --bank")
        if bank is None:
            known = known_of(drawn.ids, None, (), videos=videos)
            why = "no bank is named"
            return cls(records, drawn, tried, best, known, None, why, map_kind)
        store = FeatureStore(bank)
        known = known_of(
            drawn.ids,
            store,
            list(records[0].features.values()),
            videos=videos,
            pictured=None if every_picture else pictured(best, drawn),
        )
        try:
            table, why = store.table(drawn.ids, best.record.features), ""
        except MissingFeatureError as error:
            table, why = None, str(error)
        scored = None if head is None else scored_over_time(head, store, drawn.ids)
        return cls(records, drawn, tried, best, known, table, why, map_kind, scored)

    def html(self) -> str:
        """The file."""
        import jinja2
        from bokeh.resources import Resources

        from vqbank.pipelines.report.figures import COLOURS, MARKERS, plots

        points, facts, groups = self._points()
        script, elements = plots(points)
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("vqbank.pipelines"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        lengths, pictures = joined_pictures(self.known.pictures, len(points.ids))
        names, alike = likeness(self.table) if self.table is not None else ([], np.empty((0, 0)))
        labels = [one.label for one in self.tried]
        return environment.get_template("page.html").render(
            page=self,
            first=self.records[0],
            said=conclusion(self.best, self.tried, self.drawn),
            others=against_best(self.best, self.tried),
            metrics=SHOWN,
            shown=shown,
            no_interval=NO_INTERVAL,
            counted=counted,
            bokeh="\n".join(
                Resources(mode="inline", components=["bokeh"], log_level="error").js_raw
            ),
            script=script,
            elements=elements,
            data=as_script(self._data(lengths, facts, groups)),
            pictures=pictures,
            groups=[
                (name, COLOURS[place], MARKERS[place], groups.count(name))
                for place, name in enumerate(dict.fromkeys(groups))
            ]
            if len(set(groups)) <= MOST_GROUPS
            else [],
            many_groups=sorted(set(groups)) if len(set(groups)) > MOST_GROUPS else [],
            facts={name: text for name, text in FACT_NAMES.items() if name in facts},
            bins=residual_bins(self.best, self.drawn, facts),
            cards=self._cards(),
            bars=bars(self.tried),
            likeness=(names, alike.tolist()) if len(names) > 1 else None,
            agreement=(labels, agreement([one.predicted for one in self.tried]).tolist())
            if len(labels) > 1
            else None,
            map_text=points.map_text,
            pictures_of=PICTURES,
            motion_of=MOTION,
            has_motion=bool(self.known.motion),
        )

    def _points(self) -> "tuple[Any, dict[str, NDArray[np.float64]], list[str]]":
        """What is drawn; what residuals may be drawn over; the group of each video."""
        from vqbank.pipelines.report.figures import Points

        drawn, best = self.drawn, self.best
        mos = drawn.mos
        facts = {"mos": mos}
        facts |= {fact: self.known.facts[fact] for fact in FACTS if self.known.knows(fact)}
        groups = list(self.known.groups)
        names = list(dict.fromkeys(groups))
        codes = [names.index(name) for name in groups] if len(names) <= MOST_GROUPS else []
        places, map_text = (
            map_of(self.table, kind=self.map_kind)
            if self.table is not None
            else (np.full((len(mos), 2), np.nan, np.float32), self.why_no_table)
        )
        points = Points(
            ids=drawn.ids,
            mos=mos,
            predicted=best.predicted,
            mapped=best.mapped,
            places=places,
            fact=mos,
            groups=codes or [0] * len(mos),
            score_name=drawn.score_name,
            curve=best.curve(),
            predicted_by=best.label,
            over=drawn.score_name,
            map_text=map_text,
        )
        return points, facts, groups

    def _data(
        self, lengths: list[int], facts: Mapping[str, NDArray[np.float64]], groups: list[str]
    ) -> dict[str, Any]:
        """What the page's own JavaScript reads."""
        names = list(dict.fromkeys(groups))
        codes = np.array([names.index(name) for name in groups], np.float64)
        motion = [self.known.motion.get(row, np.empty(0)) for row in range(len(lengths))]
        return {
            "score_name": self.drawn.score_name,
            "best": self.tried.index(self.best),
            "heads": [
                {
                    "label": one.label,
                    "predicted": packed(one.predicted),
                    "mapped": packed(one.mapped),
                    "curve": [axis.tolist() for axis in one.curve()],
                }
                for one in self.tried
            ],
            "facts": {
                name: {"text": FACT_NAMES[name], **packed(values)} for name, values in facts.items()
            },
            "groups": {"names": names, **packed(codes)} if names else None,
            "grouped_by": self.known.grouped_by,
            "picture_lengths": lengths,
            "motion_counts": [len(series) for series in motion],
            "motion": packed(np.concatenate(motion) if motion else np.empty(0)),
            "scores": self._scores(),
        }

    def _scores(self) -> dict[str, Any] | None:
        """Scores over time as the page's JavaScript reads them."""
        if self.scored is None:
            return None
        moments = self.scored.moments
        return {
            "counts": [len(own.scores) for own in moments],
            "worst": [own.worst for own in moments],
            "pooled": packed(np.array([own.pooled for own in moments])),
            **packed(np.concatenate([own.scores for own in moments])),
        }

    def _cards(self) -> dict[str, list[dict[str, Any]]]:
        """The worst and the best predicted videos of the best head."""
        drawn, best = self.drawn, self.best
        residual = best.mapped - drawn.mos
        order = np.argsort(np.abs(np.nan_to_num(residual, nan=np.inf)), kind="stable")
        order = order[: int(np.isfinite(residual).sum())]
        count = min(CARDS, max(1, len(order) // 2))
        picked = {"worst": order[::-1][:count], "best": order[:count]} if len(order) else {}
        return {
            which: [
                {
                    "row": row,
                    "id": drawn.ids[row],
                    "mos": float(drawn.mos[row]),
                    "mapped": float(best.mapped[row]),
                    "residual": float(residual[row]),
                    "picture": _data_url(self.known.pictures.get(row)),
                }
                for row in rows.tolist()
            ]
            for which, rows in picked.items()
        }


def write_page(page: Page, path: Path) -> None:
    """Write the file, in a folder that is there."""
    text = page.html()
    with naming(path):
        path.write_text(text, encoding="utf-8")


def pictured(best: Tried, drawn: Drawn) -> list[int] | None:
    """Of many videos those whose pictures are in the page; None for all."""
    ids = drawn.ids
    if len(ids) <= MANY_VIDEOS:
        return None
    residual = np.abs(best.mapped - drawn.mos)
    worst = np.argsort(-np.nan_to_num(residual, nan=-1.0), kind="stable")[:WORST]
    some = np.random.default_rng(0).choice(len(ids), AT_RANDOM, replace=False)
    return sorted({*worst.tolist(), *some.tolist()})


def conclusion(best: Tried, tried: Sequence[Tried], drawn: Drawn) -> list[str]:
    """What was found, in a sentence or two."""
    record, row = best.record, best.row
    splits = counted(len(record.test_videos), "split")
    interval = row.interval("srcc")
    between = "" if interval == "-" else f" (95 % of the median: {interval})"
    on = f"on {drawn.name}, " if drawn.name else ""
    which = record.statistic
    lines = [
        f"{best.label} reaches a {which} SRCC of {shown(best.srcc)}{between} and a {which} PLCC of "
        f"{shown(row.number('plcc'))} {on}over {splits} of {counted(len(drawn.ids), 'video')}."
    ]
    same = record.splits_sha256
    alike = sum(one.record.splits_sha256 == same for one in tried)
    if alike > 1:
        lines.append(
            f"It is the highest of {alike} heads that were tried on the same test parts; who "
            "quotes it as the result has chosen by these."
        )
    return lines


def bars(tried: Sequence[Tried]) -> dict[str, Any] | None:
    """The medians as bars with their intervals, in per cent of the width; None of one head."""
    same = tried[0].record.splits_sha256
    alike = [one for one in tried if one.record.splits_sha256 == same]
    if len(alike) < 2:
        return None
    lines, known = list[dict[str, Any]](), [0.0]
    for one in alike:
        low, high = one.row.confidence("srcc")
        known += [value for value in (one.srcc, low) if math.isfinite(value)]
        seconds = float(np.median(one.head.seconds))
        lines.append(
            {"label": one.label, "srcc": one.srcc, "low": low, "high": high, "seconds": seconds}
        )
    start = min(known)
    return {"lines": lines, "start": start, "span": 1.0 - start}


def residual_bins(
    best: Tried, drawn: Drawn, facts: Mapping[str, NDArray[np.float64]]
) -> list[dict[str, Any]]:
    """Of every fact up to five ranges: how far predictions lie from the scores there."""
    residual = best.mapped - drawn.mos
    found = []
    for name, values in facts.items():
        both = np.isfinite(values) & np.isfinite(residual)
        if not both.any():
            continue
        edges = np.unique(np.quantile(values[both], np.linspace(0, 1, 6)))
        distinct = np.unique(values[both])
        if len(distinct) <= 5:
            edges = np.append(distinct, np.inf)
        place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
        ranges = []
        for number in range(len(edges) - 1):
            own = residual[both & (place == number)]
            if len(own):
                inside = values[both & (place == number)]
                low, high = inside.min(), inside.max()
                text = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
                ranges.append(
                    {
                        "range": text,
                        "videos": len(own),
                        "mean": float(own.mean()),
                        "absolute": float(np.abs(own).mean()),
                    }
                )
        found.append({"name": FACT_NAMES[name], "ranges": ranges})
    return found


def packed(values: NDArray[np.float64]) -> dict[str, Any]:
    """Numbers as uint16 steps between their ends, little-endian, in base64; NO_NUMBER for NaN."""
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    step = (high - low) / (NO_NUMBER - 1) or 1.0
    steps = np.full(len(values), NO_NUMBER, "<u2")
    finite = np.isfinite(values)
    steps[finite] = np.round((values[finite] - low) / step).astype("<u2")
    return {"low": low, "step": step, "u16": base64.b64encode(steps.tobytes()).decode()}


def joined_pictures(pictures: Mapping[int, bytes], count: int) -> tuple[list[int], str]:
    """Characters of each video's picture in base64, 0 where there is none, and all joined."""
    texts = [base64.b64encode(pictures.get(row, b"")).decode() for row in range(count)]
    return [len(text) for text in texts], "".join(texts)


def as_script(value: object) -> str:
    """JSON that may stand in a `<script>`: no `<` in it, so that no text ends it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _data_url(picture: bytes | None) -> str:
    if picture is None:
        return ""
    return f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
