"""What a shipped head says of the seconds of a report's videos."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vqbank.pipelines.over_time import Moments, over_time
from vqbank.regressors import load_head
from vqbank.regressors.card import seen_by
from vqbank.store.bank import FeatureStore
from vqbank.store.words import counted


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Scores over time."""

    moments: Sequence[Moments]
    """Of n videos, in their order."""
    said: str
    """By which head, how, and whether it has seen these videos."""


def scored_over_time(head: Path, store: FeatureStore, ids: Sequence[str]) -> Scored:
    """Scores of the seconds of banked videos.

    Args:
        head: a folder that `train` wrote.
        store: where its features of the videos are.
        ids: n.

    Raises:
        HeadError: if the folder holds no head.
        MissingFeatureError: if the bank lacks a feature of it.
    """
    loaded = load_head(head)
    table = store.table(ids, {role: spec.key for role, spec in loaded.specs_.items()})
    moments = over_time(loaded, table)
    seen = len(seen_by(head, ids))
    said = f"Scores over time by {loaded.name} in {head.name}, {moments[0].how}"
    if seen:
        said += f"; it was trained on {seen} of these {counted(len(ids), 'video')}"
    return Scored(moments, f"{said}.")
