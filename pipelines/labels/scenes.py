"""Which videos show the same content, by rules that a data set's names allow.

LIVE-WC and TaoLive have versions of contents, too, and no rule here: their names were not available
to check one against.  `--scene` groups them, and `likely_pattern` offers an expression.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.labels.label import stem_of
from store.errors import RecipeError


@dataclass(frozen=True, slots=True)
class Scenes:
    """A scene per name, and the rule that gave it."""

    scenes: tuple[str, ...]
    rule: str
    caution: str = ""
    """What a reader of the import should know where the names alone do not prove the data set."""


# CVD2014 (Nuutinen et al. 2016): Test01_Talking_Head_D01.avi; five contents, filmed again by the
# cameras of six tests.  Some files write Talking_head.
_CVD2014 = re.compile(
    r"test0?[1-6]_(city|newspaper|talking_head|television|traffic)_d\d{2}", re.IGNORECASE
)
# LIVE-Qualcomm (Ghadiyaram et al. 2018): 0723_ManUnderTree_GS5_03_20150723_130016.yuv and
# 0911panGarden_Note4_20150911_152420.yuv are month and day, content, phone and what the phone
# called it.  Letters differ in case within one content; there are 54.
_QUALCOMM = re.compile(
    r"(\d{4}_?[a-z][a-z0-9]*)_(?:htc|lg|g2|oppo|notes?4|gs[56]|iphone|5s|nokia|lumia|1020).*",
    re.IGNORECASE,
)
# KVQ (Lu et al. 2024): seven versions of one content follow each other; RQ-VQA's loader groups
# them so.
_KVQ = re.compile(r"(train|val|test)/(\d{4})\.mp4")
KVQ_VERSIONS = 7


def scenes_by_name(names: Sequence[str]) -> Scenes | None:
    """The scenes of a data set whose names tell them; None where no rule fits every name."""
    for rule in (_cvd2014, _qualcomm, _kvq):
        found = rule(names)
        if found is not None:
            return found
    return None


def scenes_by_pattern(names: Sequence[str], pattern: str) -> Scenes:
    """What the first group of a regular expression finds in each name.

    Raises:
        RecipeError: if it is no such expression, or finds nothing in a name.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise RecipeError(f"--scene {pattern!r} is no regular expression: {error}") from error
    if expression.groups < 1:
        raise RecipeError(f"--scene {pattern!r} has no group; put the scene's part in parentheses")
    found = [expression.search(name) for name in names]
    for name, match in zip(names, found, strict=True):
        if match is None or not match[1]:
            raise RecipeError(f"--scene {pattern!r} finds no scene in {name!r}")
    return Scenes(tuple(match[1] for match in found if match), f"--scene {pattern!r}")


def _all(names: Sequence[str], pattern: re.Pattern[str]) -> list[str] | None:
    found = [pattern.fullmatch(stem_of(name)) for name in names]
    return [match[1] for match in found if match] if all(found) else None


def _cvd2014(names: Sequence[str]) -> Scenes | None:
    contents = _all(names, _CVD2014)
    if contents is None:
        return None
    scenes = tuple(content.replace("_", " ").capitalize() for content in contents)
    return Scenes(scenes, "CVD2014: the content in the name, whatever the test")


def _qualcomm(names: Sequence[str]) -> Scenes | None:
    contents = _all(names, _QUALCOMM)
    if contents is None:
        return None
    scenes = tuple(content[:4] + content[4:].lstrip("_").lower() for content in contents)
    return Scenes(scenes, "LIVE-Qualcomm: date and content in the name, whatever the phone")


def _kvq(names: Sequence[str]) -> Scenes | None:
    found = [_KVQ.fullmatch(name) for name in names]
    if not all(found):
        return None
    parts = {match[1] for match in found if match}
    numbers = [int(match[2]) for match in found if match]
    if len(parts) > 1 or numbers != list(range(1, len(names) + 1)) or len(names) % KVQ_VERSIONS:
        return None
    (part,) = parts
    return Scenes(
        tuple(f"{part}-{(number - 1) // KVQ_VERSIONS + 1:03d}" for number in numbers),
        f"KVQ: {KVQ_VERSIONS} consecutive numbers are versions of one content",
        "these scenes are a guess from names that any data set may have; if this is not KVQ, a "
        "column of scenes or --scene says otherwise (--scene '(.+)': each video its own)",
    )


def likely_pattern(names: Sequence[str]) -> str | None:
    """A pattern for `--scene` where names look like CONTENT_VERSION with as many versions of each.

    For a hint only: nothing is grouped by it unless somebody says so.
    """
    for mark in ("_", "-"):
        heads = [stem_of(name).rpartition(mark)[0] for name in names]
        if not all(heads):
            continue
        sizes = set(Counter(heads).values())
        if len(sizes) == 1 and 1 < sizes.pop() < len(names):
            return rf"([^/]+){mark}[^{mark}/]+$"
    return None
