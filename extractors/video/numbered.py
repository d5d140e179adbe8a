"""Folders of numbered pictures, which are videos: Vimeo-90K's sequences, frames that were kept."""

import hashlib
import re
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from vqbank.store.errors import DecodeError
from vqbank.store.schema import Fingerprint

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
RATE_FILE = "rate.txt"
"""States frames per second, in the folder of pictures or in one above it."""
MOST_RATE = 1000
"""Frames per second; more is a mistake."""
_LEVELS = 4  # of folders that are looked into for the rate: Vimeo-90K's sequences lie three deep
_NAME = re.compile(r"(.*?)(\d+)(\.[^.]+)")


class Sequence(NamedTuple):
    """Pictures of one name, numbered without a gap."""

    pattern: str
    """As FFmpeg's image2 takes it."""
    first: int
    """Number of the first picture."""
    files: tuple[Path, ...]
    """In order."""
    rate: Fraction
    """Frames per second."""


def sequence(folder: Path) -> Sequence:
    """What a folder of numbered pictures holds.

    Raises:
        DecodeError: if it holds no pictures, those of several names or with a gap, or no rate is
            stated.
    """
    named: dict[tuple[str, str, int], dict[int, Path]] = {}
    for path in sorted(folder.iterdir()):
        match = _NAME.fullmatch(path.name)
        if match is None or match[3].lower() not in SUFFIXES:
            continue
        # im1.png ... im10.png have numbers of any width, 001.png ... of one.
        width = len(match[2]) if match[2].startswith("0") else 0
        named.setdefault((match[1], match[3], width), {})[int(match[2])] = path
    named = _of_one_width(named)
    if len(named) != 1:
        found = "no numbered pictures" if not named else f"pictures of {len(named)} names"
        raise DecodeError(f"{folder}: the folder has {found}; a video has those of one")
    (((before, suffix, width), numbered),) = named.items()
    first, last = min(numbered), max(numbered)
    if last - first + 1 != len(numbered):
        gap = next(number for number in range(first, last) if number not in numbered)
        raise DecodeError(f"{folder}: picture {gap} is missing between {first} and {last}")
    number = f"%0{width}d" if width else "%d"
    literal = [part.replace("%", "%%") for part in (f"{folder}/{before}", suffix)]
    files = tuple(numbered[number] for number in range(first, last + 1))
    return Sequence(f"{literal[0]}{number}{literal[1]}", first, files, _rate(folder))


def _of_one_width(
    named: dict[tuple[str, str, int], dict[int, Path]],
) -> dict[tuple[str, str, int], dict[int, Path]]:
    """0.png ... 10.png, 001.png ... 1000.png: numbers without a zero are as wide, or wider."""
    joined = dict(named)
    for (before, suffix, width), numbered in named.items():
        plain = joined.get((before, suffix, 0), {})
        alike = {n: p for n, p in plain.items() if len(str(n)) >= width}
        if width and alike and len(alike) == len(plain):
            joined[before, suffix, width] = {**numbered, **alike}
            del joined[before, suffix, 0]
    return joined


def _rate(folder: Path) -> Fraction:
    for place in [folder, *folder.resolve().parents[:_LEVELS]]:
        file = place / RATE_FILE
        if file.is_file():
            text = file.read_text(encoding="utf-8", errors="replace").strip()
            try:
                rate = Fraction(text)
            except (ValueError, ZeroDivisionError):
                rate = Fraction(0)
            if not 0 < rate <= MOST_RATE:
                raise DecodeError(f"{file}: {text[:40]!r} is no number of frames per second")
            return rate.limit_denominator(1_000_000)
    raise DecodeError(
        f"{folder}: pictures tell no frames per second; write them, such as 25 or 30000/1001, into "
        f"{RATE_FILE} in this folder or in one above it"
    )


def fingerprint_of(folder: Path) -> Fingerprint:
    """Which pictures these are, at which rate: of the fingerprints of all of them.

    Raises:
        DecodeError: as `sequence`.
        OSError: if a picture cannot be read.
    """
    found = sequence(folder)
    digest = hashlib.sha256(str(found.rate).encode())
    length = 0
    for file in found.files:
        own = Fingerprint.of(file)
        length += own.length
        digest.update(f"{file.name}\0{own.sha256}".encode())
    return Fingerprint(length, digest.hexdigest())
