"""Every error that vqbank raises on purpose.

VqbankError
├── ManifestError          a manifest or label file that cannot be read as one (file and line)
├── RecipeError            a recipe that names something unknown or impossible
├── UnknownNameError       a name that no table has; says which names there are
├── DecodeError            a video that cannot be opened, or is damaged (file and frame)
├── WeightsError           weights that are missing, of another model or unsafe
├── InvalidFeatureError    values that may not be banked (video and row)
├── BankError              a bank that is not one, of a newer format, or damaged
│   └── DamagedShardError  what it holds is not what was committed, or cannot be read
├── MissingFeatureError    asked for a feature that the bank does not have
├── AmbiguousFeatureError  a name that several keys share
├── ChangedVideoError      another file under an id that is already banked
├── WorkersError           workers that die before they begin, or never come
└── HeadError              a head that cannot be fitted, loaded or applied

Every class takes one message, so that it survives pickling between processes.
"""

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

_REMEDIES = {
    errno.ENOSPC: "free space on its disk",
    errno.EDQUOT: "free some of your quota there",
    errno.EFBIG: "raise the limit of file sizes (`ulimit -f`), or use a disk that takes such files",
    errno.EIO: "its disk, or the way to it, is failing: see the system's log",
    errno.EROFS: "it lies on a disk that is mounted to be read alone: write to a copy",
    errno.EACCES: "ask its owner for the right to write there, or write to a copy",
    errno.EPERM: "ask its owner for the right to write there, or write to a copy",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
}
"""What to do where the system refuses a file."""


class VqbankError(Exception):
    """The common parent: what the command line prints as one line."""


class ManifestError(VqbankError, ValueError):
    """A manifest or label file that cannot be read; names file and line."""


class RecipeError(VqbankError, ValueError):
    """A recipe that names something unknown or impossible."""


class UnknownNameError(VqbankError, KeyError):
    """A name that no table has; says which names there are."""

    __str__ = VqbankError.__str__  # KeyError's puts a sentence in quotation marks


class DecodeError(VqbankError, RuntimeError):
    """A video that cannot be opened or is damaged; names file and frame."""


class DecoderDiedError(DecodeError):
    """The process that decoded a video crashed, or had to be stopped."""


class WeightsError(VqbankError, RuntimeError):
    """Weights that are missing, of another model or unsafe to load."""


class InvalidFeatureError(VqbankError, ValueError):
    """Values that may not be banked; names the video and the row."""


class BankError(VqbankError, RuntimeError):
    """A folder that is not a bank, or one of a newer format."""


class DamagedShardError(BankError):
    """What a bank holds is not what was committed, leads out of it, or cannot be read."""


class MissingFeatureError(VqbankError, LookupError):
    """A feature, or a video of a feature, that the bank does not have."""


class AmbiguousFeatureError(VqbankError, LookupError):
    """A name that several keys share; lists them."""


class ChangedVideoError(VqbankError, RuntimeError):
    """Another file under an id that is already banked; names both."""


class WorkersError(VqbankError, RuntimeError):
    """Processes that should work die before they begin, or never come."""


class HeadError(VqbankError, ValueError):
    """A head that cannot be fitted, loaded or applied."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Who fails at a file in here says which: writing, syncing and closing alone do not.

    Raises:
        OSError: as it came, with the file's name.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        if error.strerror is None:  # NumPy's, of a write that came to less than it should
            error.strerror = str(error)
        raise


def refusal(error: OSError) -> str:
    """What the system refused, at which file, and what to do, on one line."""
    what = " ".join((error.strerror or str(error)).split())
    named = [str(name) for name in (error.filename, error.filename2) if name is not None]
    where = f"{' -> '.join(named)}: " if named else ""
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{where}{what}{f'; {remedy}' if remedy else ''}"


def in_words(error: Exception) -> str:
    """What an error says on one line, without the `[Errno 2]` and the path of the system's own."""
    inner = getattr(error, "reason", None)  # of urllib's
    if isinstance(inner, OSError):
        return in_words(inner)
    said = error.strerror if isinstance(error, OSError) else None
    return " ".join((said or str(error)).split())


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that is in no table: the nearest known names, then all of them."""
    names = sorted(known)
    folded = {one.casefold(): one for one in names}
    near = [one for one in folded if name.casefold() in one.split(".")[:-1]]  # `nss.brisque` of nss
    near = near or get_close_matches(name.casefold(), folded, n=1)
    hint = f" Did you mean {folded[near[0]]!r}?" if near else ""
    return f"unknown {kind} {name!r}.{hint} Known: {', '.join(names)}."


def similar_ids(name: str, ids: Iterable[str]) -> list[str]:
    """Up to three ids of videos that may be meant: of that file name, else of one like it."""
    by_file: dict[str, list[str]] = {}
    for one in sorted(ids):
        by_file.setdefault(one.rpartition("/")[2].casefold(), []).append(one)
    file = name.rpartition("/")[2].casefold()
    near = [file] if file in by_file else get_close_matches(file, by_file, n=3)
    return [one for own in near for one in by_file[own]][:3]


class GoldenError(VqbankError, ValueError):
    """A golden fixture cannot be read, or asks for what we do not have."""
