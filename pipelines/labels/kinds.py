"""CVD2014 is published with two kinds of MOS; which one a file has can be read off its numbers."""

import math
from collections.abc import Sequence
from dataclasses import replace

from vqbank.pipelines.labels.label import Label, Labels, key_of
from vqbank.pipelines.labels.scenes import scenes_by_name
from vqbank.store.errors import ManifestError

ORIGINAL = "CVD2014's original MOS"
CUT = "CVD2014's original MOS, cut to whole numbers"
REALIGNED = "CVD2014's realigned MOS"

# Original and realigned MOS of the first video of every test and content (Nuutinen et al. 2016,
# "Realignment MOS" of the data set): enough to tell the kinds, as realigning moved all of these.
CVD2014 = {
    "test01_city_d01": (71.17, 67.29), "test01_talking_head_d01": (70.18, 69.37),
    "test01_traffic_d01": (65.67, 67.74), "test02_city_d01": (61.68, 53.35),
    "test02_talking_head_d01": (72.18, 64.68), "test02_traffic_d01": (72.83, 69.62),
    "test03_city_d01": (57.75, 34.75), "test03_newspaper_d01": (70.82, 50.49),
    "test03_talking_head_d01": (44.43, 39.03), "test04_city_d01": (77.3, 61.85),
    "test04_newspaper_d01": (72.64, 70.38), "test04_talking_head_d01": (54.09, 51.43),
    "test05_city_d01": (10.07, 26.07), "test05_television_d01": (5.0, 11.45),
    "test05_talking_head_d01": (6.6, 46.8), "test06_city_d01": (22.31, 17.23),
    "test06_television_d01": (15.13, 10.93), "test06_talking_head_d01": (22.41, 14.9),
}  # fmt: skip


def with_kind(labels: Labels) -> Labels:
    """The same labels, with `kind` where they are CVD2014's.

    Raises:
        ManifestError: if some rows hold one kind and some the other.
    """
    known = [row for row in labels.rows if key_of(row.name) in CVD2014 and row.mos is not None]
    kinds = {kind: row for row in known if (kind := _kind(row, known))}
    if len(kinds) > 1:
        (one, first), (two, second) = list(kinds.items())[:2]
        raise ManifestError(
            f"{labels.path} mixes two kinds of MOS: {first.name} ({first.place}) has "
            f"{first.mos:g}, {one}; {second.name} ({second.place}) has {second.mos:g}, {two}"
        )
    if not known:
        by_name = scenes_by_name(labels.names)
        is_cvd2014 = by_name is not None and by_name.rule.startswith("CVD2014")
        hint = "which of CVD2014's two kinds of MOS this is cannot be told: no video is a D01"
        return labels.with_notes(hint if is_cvd2014 else "")
    if not kinds:
        return labels.with_notes(
            "the names are CVD2014's, and the scores neither its original nor its realigned MOS"
        )
    return replace(labels, kind=next(iter(kinds)))


def _kind(row: Label, known: Sequence[Label]) -> str:
    original, realigned = CVD2014[key_of(row.name)]
    mos = row.mos
    assert mos is not None
    whole = all(other.mos is not None and other.mos.is_integer() for other in known)
    if abs(mos - realigned) < 0.005:
        return REALIGNED
    if abs(mos - original) < 0.005:
        return CUT if whole and len(known) > 1 else ORIGINAL
    return CUT if whole and mos == math.floor(original) else ""


def refuse_other_kind(one: Labels, two: Labels) -> None:
    """Two kinds of MOS are two scales.

    Raises:
        ManifestError: if both kinds are known and differ.
    """
    if one.kind and two.kind and one.kind != two.kind:
        raise ManifestError(
            f"{one.path} has {one.kind}, and {two.path} has {two.kind}; they cannot be mixed"
        )
