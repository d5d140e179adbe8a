"""Finished rows on their way to the disk: one thread writes, and commits what is due."""

import asyncio
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vqbank.extractors.video.numbered import fingerprint_of
from vqbank.pipelines.extraction.assembly import Assembly, OpenVideo
from vqbank.pipelines.extraction.refusals import is_refusal, one_line
from vqbank.pipelines.extraction.threads import InWork
from vqbank.store.bank import FeatureStore, writing
from vqbank.store.errors import DecodeError, InvalidFeatureError
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint
from vqbank.store.shard_writer import ShardWriter

FLUSH_BYTES = 256 * 2**20
FLUSH_SECONDS = 300.0
"""A shard is committed once it holds this much or is this old: what a kill costs at most."""


class Banking:
    """One writer per feature, all in one thread."""

    def __init__(self, store: FeatureStore, provenance: Mapping[str, Any], in_work: InWork) -> None:
        """Nothing is written yet.

        Args:
            store: The bank.
            provenance: As commits record it.
            in_work: Counts what the thread is at.
        """
        self.unwritten_bytes = 0
        """Bytes of finished rows that wait for the disk."""
        self._store = store
        self._provenance = provenance
        self._in_work = in_work
        self._writers: dict[FeatureSpec, ShardWriter] = {}
        self._thread = ThreadPoolExecutor(1, "vqbank-write")

    async def bank(self, assembly: Assembly) -> dict[str, str]:
        """Write all outputs of an assembly; gives the reason by the output that was refused.

        Raises:
            BankError: if the bank cannot be written.
        """
        self.unwritten_bytes += assembly.nbytes
        try:
            return await self._in_thread(self._write_all, assembly)
        finally:
            self.unwritten_bytes -= assembly.nbytes

    async def commit_old(self) -> None:
        """Commit what has been written long ago, though not much followed.

        Raises:
            BankError: if the bank cannot be written.
        """
        if any(_is_due(writer) for writer in list(self._writers.values())):
            await self._in_thread(self._commit_due)

    async def drained(self) -> None:
        """Wait until nothing waits for the disk."""
        await self._in_thread(bool)

    def commit(self) -> None:
        """Commit all that was written, once the thread has nothing left.

        Raises:
            BankError: if the bank cannot be written.
        """
        self._thread.shutdown()
        self._commit(list(self._writers))

    def abandon(self) -> None:
        """Remove what was written and is not committed."""
        self._thread.shutdown(cancel_futures=True)
        for writer in self._writers.values():
            writer.abandon()
        self._writers.clear()

    async def _in_thread(self, call: Any, *arguments: Any) -> Any:
        with self._in_work.one():
            loop = asyncio.get_running_loop()
            # What is finished is kept, also where whoever waits for it is stopped.
            return await asyncio.shield(loop.run_in_executor(self._thread, call, *arguments))

    def _write_all(self, assembly: Assembly) -> dict[str, str]:
        opened = assembly.opened
        if fingerprint(opened.video.path) != opened.fingerprint:
            reason = (
                f"{opened.video.path} was replaced, changed or taken away while it was being read; "
                "nothing of it is banked, run the same command again once it stays as it is"
            )
            return dict.fromkeys(assembly.specs, reason)
        refused = {}
        for output, spec in assembly.specs.items():
            try:
                feature = assembly.feature(output)
            except Exception as error:
                if not is_refusal(error):
                    error.add_note(f"in {spec.name}, at {opened.video.id}")
                    raise
                refused[output] = one_line(error)
                continue
            try:
                self._write(opened, spec, feature, assembly.seconds)
            except InvalidFeatureError as error:
                refused[output] = str(error)
        self._commit_due()
        return refused

    def _write(
        self, opened: OpenVideo, spec: FeatureSpec, feature: Feature, seconds: float
    ) -> None:
        with writing(self._store.path):
            if spec not in self._writers:
                self._writers[spec] = self._store.writer(spec, provenance=self._provenance)
            try:
                self._writers[spec].add(
                    opened.video.id,
                    feature,
                    fingerprint=opened.fingerprint,
                    probe=opened.health,
                )
                told = self._writers[spec].provenance
                told["network_seconds"] = told.get("network_seconds", 0.0) + seconds
            except InvalidFeatureError:
                raise  # before anything was written
            except BaseException:  # half a row may lie there
                self._writers.pop(spec).abandon()
                raise

    def _commit_due(self) -> None:
        self._commit([spec for spec, writer in self._writers.items() if _is_due(writer)])

    def _commit(self, specs: Iterable[FeatureSpec]) -> None:
        for spec in specs:
            writer = self._writers.pop(spec)
            try:
                with writing(self._store.path):
                    writer.commit()
            except BaseException:
                writer.abandon()
                raise


def _is_due(writer: ShardWriter) -> bool:
    age = time.monotonic() - writer.started
    return writer.payload_bytes >= FLUSH_BYTES or age >= FLUSH_SECONDS


def fingerprint(path: Path) -> Fingerprint | None:
    """Of a video's file, or folder of numbered pictures; None where it cannot be read."""
    try:
        if path.is_dir():
            return fingerprint_of(path)
        return Fingerprint.of(path)
    except DecodeError:
        return None  # what is wrong with the folder is told where it is opened
    except (OSError, ValueError):  # ValueError: a path with a NUL
        return None
