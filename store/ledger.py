"""The ledger: what happened to videos, one append-only file of JSON lines per writer.

What is done is never read from here but from the commits.
"""

import io
import os
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired

from pydantic import ConfigDict, TypeAdapter, with_config
from typing_extensions import TypedDict

from vqbank.store.documents import json_value
from vqbank.store.errors import DamagedShardError, naming
from vqbank.store.files import inside, listed, opened
from vqbank.store.records import Count, Time, checked
from vqbank.store.schema import canonical_json

ROOM = "ledger"
LINE_BYTES = 2**20
"""The longest line that is read; reasons and probes have some hundred bytes."""
CHANGED = '"changed":'
"""What stands in every line about a file that is not the banked one, in others by chance only."""


@with_config(ConfigDict(extra="allow", strict=True))
class _Entry(TypedDict):
    """What every line has."""

    time: Time
    status: str


@with_config(ConfigDict(extra="allow", strict=True))
class _OfVideo(_Entry):
    video: str


@with_config(ConfigDict(extra="allow", strict=True))
class _Failed(_OfVideo):
    key: str
    reason: str
    traceback: NotRequired[str | None]
    changed: NotRequired[bool]


@with_config(ConfigDict(extra="allow", strict=True))
class _Restored(_OfVideo):
    key: str
    until: Time


@with_config(ConfigDict(extra="allow", strict=True))
class _Started(_Entry):
    videos: Count
    host: NotRequired[str]
    process: NotRequired[int]
    keys: NotRequired[list[str]]


@with_config(ConfigDict(extra="allow", strict=True))
class _Counted(_Entry):
    done: Count
    failed: Count
    cached: Count


@with_config(ConfigDict(extra="allow", strict=True))
class _Crashed(_Counted):
    reason: str


@with_config(ConfigDict(extra="allow", strict=True))
class _Begun(_OfVideo):
    attempt: str


_KINDS: Mapping[str, TypeAdapter[Any]] = {
    "failed": TypeAdapter(_Failed),
    "begun": TypeAdapter(_Begun),
    "decoded": TypeAdapter(_OfVideo),
    "started": TypeAdapter(_Started),
    "running": TypeAdapter(_Counted),
    "ended": TypeAdapter(_Counted),
    "stopped": TypeAdapter(_Counted),
    "crashed": TypeAdapter(_Crashed),
    "restored": TypeAdapter(_Restored),
}
_OTHER: TypeAdapter[Any] = TypeAdapter(_Entry)


@dataclass(frozen=True, slots=True)
class Failure:
    """What is known of a feature that could not be made."""

    video: str
    key: str
    reason: str
    """The reason of the last failure."""
    times: int
    """How often it was tried in vain."""
    time: float
    """When it failed for the last time, in Unix seconds."""
    traceback: str | None
    """A file in the ledger's room with all that is known, if there is more than the reason."""
    changed: bool = False
    """Whether another file lies where the banked one was: it failed though it is banked."""


class Ledger:
    """One writer's file; it is made with its first line."""

    def __init__(self, bank: Path) -> None:
        self.writer = secrets.token_hex(8)
        self._bank = bank
        self._room = bank / ROOM

    def append(self, *, durable: bool = True, **entry: Any) -> None:
        """Write one line.

        Args:
            durable: whether to wait until it has reached the disk.
            **entry: JSON values; the time is added.

        Raises:
            OSError: if it cannot be written.
        """
        inside(self._bank, self._room).mkdir(exist_ok=True)
        line = canonical_json({"time": time.time(), **entry}) + "\n"
        path = self._room / f"{self.writer}.jsonl"
        try:
            with naming(path), path.open("ab") as file:
                file.write(line.encode(errors="backslashreplace"))  # file names may be no UTF-8
                file.flush()
                if durable:
                    os.fsync(file.fileno())
        except OSError:
            self.writer = secrets.token_hex(8)  # half a line may stand in the other file
            raise

    def keep_traceback(self, text: str) -> str:
        """Write a traceback beside the ledger; returns the name of the file.

        Raises:
            OSError: if it cannot be written.
        """
        inside(self._bank, self._room).mkdir(exist_ok=True)
        name = f"{self.writer}-{secrets.token_hex(4)}.txt"
        path = self._room / name
        with naming(path):
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
        return name


def read_ledger(bank: Path, *, holding: str = "") -> Iterator[dict[str, Any]]:
    """Every entry of every writer, each with its writer; oldest first within a writer.

    Args:
        bank: Its folder.
        holding: Only lines with this text; the others are not even parsed.

    The torn last line of a writer that was killed is passed over, and so is one that a writer is
    just writing.

    Raises:
        BankError: if another line is damaged.
    """
    for path in listed(bank, bank / ROOM):
        if path.suffix == ".jsonl" and not path.name.startswith("."):
            for entry in _read(bank, path, holding.encode()):
                yield {"writer": path.stem, **entry}


def damaged_ledgers(bank: Path) -> Iterator[tuple[str, str]]:
    """Files of ledgers with a line that is none, by name, and what is wrong with the first one."""
    if (bank / ROOM).is_symlink():
        return  # there is none, then
    for path in listed(bank, bank / ROOM):
        try:
            if path.suffix == ".jsonl" and not path.name.startswith("."):
                for _ in _read(bank, path):
                    pass
        except DamagedShardError as error:
            yield path.name, str(error)


def _read(bank: Path, path: Path, holding: bytes = b"") -> Iterator[dict[str, Any]]:
    with opened(bank, path) as raw, naming(path), io.BufferedReader(raw) as file:
        number = 0
        while line := file.readline(LINE_BYTES):
            number += 1
            if b"\0" in line or (not line.endswith(b"\n") and len(line) < LINE_BYTES):
                break  # torn; NFS shows zeros for a while
            place = f"{path}:{number}"
            what = f"{place}: {line[:80]!r} is no line of a ledger"
            if not line.endswith(b"\n"):
                raise DamagedShardError(f"{what}: it has more than {LINE_BYTES} bytes")
            if holding not in line:
                continue
            entry = json_value(line, place, DamagedShardError)
            status = entry.get("status") if isinstance(entry, dict) else None
            kind = _KINDS.get(status, _OTHER) if isinstance(status, str) else _OTHER
            yield checked(entry, kind, what)


def begun_with(bank: Path, attempts: Set[str]) -> Counter[str]:
    """How many writers had begun with a video, by its id, in any of these attempts.

    Raises:
        BankError: as `read_ledger`.
    """
    begun = {
        (entry["video"], entry["writer"], entry["attempt"])
        for entry in read_ledger(bank, holding='"begun"')
        if entry["status"] == "begun" and entry["attempt"] in attempts
    }
    return Counter(video for video, _, _ in begun)


def failures(entries: Iterator[Mapping[str, Any]]) -> dict[tuple[str, str], Failure]:
    """By (video id, key): what failed, also if it was made since.

    Args:
        entries: from `read_ledger`.
    """
    found: dict[tuple[str, str], Failure] = {}
    restored: dict[tuple[str, str], float] = {}
    for entry in entries:
        if entry.get("status") == "restored":
            at = (entry["video"], entry["key"])
            restored[at] = max(entry["until"], restored.get(at, entry["until"]))
        if entry.get("status") != "failed":
            continue
        at = (entry["video"], entry["key"])
        before = found.get(at)
        latest = before is None or entry["time"] >= before.time
        found[at] = Failure(
            *at,
            reason=entry["reason"] if latest or before is None else before.reason,
            times=1 + (before.times if before is not None else 0),
            time=max(entry["time"], before.time if before is not None else 0.0),
            traceback=entry.get("traceback") if latest or before is None else before.traceback,
            changed=entry.get("changed", False) if latest or before is None else before.changed,
        )
    return {
        at: failure
        for at, failure in found.items()
        if not failure.changed or at not in restored or failure.time > restored[at]
    }


def changed_files(bank: Path) -> dict[tuple[str, str], Failure]:
    """By (video id, key): where another file was found and the banked one not yet again."""
    found = failures(read_ledger(bank, holding=CHANGED))
    return {at: failure for at, failure in found.items() if failure.changed}
