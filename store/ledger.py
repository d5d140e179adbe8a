"""The ledger: what happened to videos, one append-only file of JSON lines per writer.

What is done is never read from here but from the commits.
"""

import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from store.errors import BankError, naming
from store.schema import canonical_json

ROOM = "ledger"


@dataclass(frozen=True, slots=True)
class Failure:
    """What is known of a feature that could not be made."""

    video: str
    key: str
    reason: str
    """The last one."""
    times: int
    """How often it was tried in vain."""
    time: float
    """Of the last time, in Unix seconds."""
    traceback: str | None
    """A file in the ledger's room with all that is known, if there is more than the reason."""


class Ledger:
    """One writer's file; it is made with its first line."""

    def __init__(self, bank: Path) -> None:
        self.writer = secrets.token_hex(8)
        self._room = bank / ROOM

    def append(self, *, durable: bool = True, **entry: Any) -> None:
        """Write one line.

        Args:
            durable: whether to wait until it has reached the disk.
            **entry: JSON values; the time is added.

        Raises:
            OSError: if it cannot be written.
        """
        self._room.mkdir(exist_ok=True)
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
        self._room.mkdir(exist_ok=True)
        name = f"{self.writer}-{secrets.token_hex(4)}.txt"
        path = self._room / name
        with naming(path):
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
        return name


def read_ledger(bank: Path) -> Iterator[dict[str, Any]]:
    """Every entry of every writer, each with its writer; oldest first within a writer.

    The torn last line of a writer that was killed is passed over, and so is one that a writer is
    just writing.

    Raises:
        BankError: if another line is damaged.
    """
    for path in sorted((bank / ROOM).glob("*.jsonl")):
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n") or b"\0" in line:  # NFS shows zeros for a while
                    break
                try:
                    entry = json.loads(line)
                except ValueError as error:
                    raise BankError(f"{path}: {line[:80]!r} is no line of a ledger") from error
                yield {"writer": path.stem, **entry}


def failures(entries: Iterator[Mapping[str, Any]]) -> dict[tuple[str, str], Failure]:
    """By (video id, key): what failed, also if it was made since.

    Args:
        entries: from `read_ledger`.
    """
    found: dict[tuple[str, str], Failure] = {}
    for entry in entries:
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
        )
    return found
