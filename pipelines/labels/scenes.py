"""Which videos show the same content, by rules that a data set's names allow.

LIVE-WC and TaoLive have versions of contents, too, and no rule here: their names were not available
to check one against.  `--scene` groups them, and `likely_pattern` offers an expression.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vqbank.pipelines.labels.label import stem_of
from vqbank.store.errors import RecipeError


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
# them so.  Label files call one video train/0001.mp4, train_video/0001, KVQ/0001.mp4 or 0001.mp4.
_KVQ = re.compile(r"(?:(.*)/)?(\d{4})(?:\.[a-z0-9]{2,4})?", re.IGNORECASE)
KVQ_VERSIONS = 7
# LIVE-YT-Gaming (Yu et al. 2023): Chess-001, Chess-002, ...; the game, and which of its clips.
_GAMING = re.compile(r"(.*[a-z].*)-(\d{3})", re.IGNORECASE)


_GUESS = (
    "these scenes are a guess from names that any data set may have; if this is not {}, a column "
    "of scenes or --scene says otherwise (--scene '(.+)': each video its own)"
)


def scenes_by_name(names: Sequence[str]) -> Scenes | None:
    """The scenes of a data set whose names tell them; None where no rule fits every name."""
    for rule in (_cvd2014, _qualcomm, _kvq, _gaming):
        found = rule(names)
        if found is not None:
            return found
    return None


def scenes_by_pattern(
    names: Sequence[str], patterns: Sequence[str], *, fallback: bool = False
) -> Scenes:
    """What the first group of a regular expression finds in each name.

    Args:
        names: of the videos.
        patterns: tried in their order; the first that finds something gives the scene.
        fallback: whether a name in which none finds anything is a scene of its own.

    Raises:
        RecipeError: if one is no such expression, or none finds anything in some names and they
            have no fallback; names them all.
    """
    expressions = []
    for pattern in patterns:
        try:
            expression = re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise RecipeError(f"--scene {pattern!r} is no regular expression: {error}") from error
        if expression.groups < 1:
            raise RecipeError(
                f"--scene {pattern!r} has no group; put the scene's part in parentheses"
            )
        expressions.append(expression)
    found = [_first_group(expressions, name) for name in names]
    alone = [name for name, scene in zip(names, found, strict=True) if scene is None]
    told = " ".join(f"--scene '{pattern}'" for pattern in patterns)
    if alone and not fallback:
        raise RecipeError(
            f"{told} finds no scene in {len(alone)} of {len(names)} names: {', '.join(alone)}; "
            "give another --scene for these, or --scene-fallback, by which each is its own"
        )
    return Scenes(
        tuple(name if scene is None else scene for name, scene in zip(names, found, strict=True)),
        f"{told}{f'; {len(alone)} names are scenes of their own' if alone else ''}",
    )


def _first_group(expressions: Sequence[re.Pattern[str]], name: str) -> str | None:
    for expression in expressions:
        match = expression.search(name)
        if match is not None and match[1]:
            return match[1]
    return None


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
    found = [_KVQ.fullmatch(name.replace("\\", "/")) for name in names]
    if not all(found):
        return None
    numbers: dict[str, list[int]] = {}
    for match in found:
        if match:
            numbers.setdefault(match[1] or "", []).append(int(match[2]))
    for own in numbers.values():
        if len(own) % KVQ_VERSIONS or sorted(own) != list(range(1, len(own) + 1)):
            return None
    return Scenes(
        tuple(
            f"{match[1] or 'kvq'}-{(int(match[2]) - 1) // KVQ_VERSIONS + 1:03d}"
            for match in found
            if match
        ),
        f"KVQ: {KVQ_VERSIONS} consecutive numbers are versions of one content",
        _GUESS.format("KVQ"),
    )


def _gaming(names: Sequence[str]) -> Scenes | None:
    found = [_GAMING.fullmatch(stem_of(name)) for name in names]
    if not all(found):
        return None
    numbers: dict[str, list[int]] = {}
    for match in found:
        if match:
            numbers.setdefault(match[1], []).append(int(match[2]))
    # Which clips of a game were kept may differ; that games have several is what tells.
    if len(numbers) < 2 or 2 * len(numbers) > len(names):
        return None
    return Scenes(
        tuple(match[1] for match in found if match),
        "LIVE-YT-Gaming: the game in the name",
        _GUESS.format("LIVE-YT-Gaming"),
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
