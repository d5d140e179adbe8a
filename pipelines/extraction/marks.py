"""What one run tells the ledger, so that `status` and the next run know."""

import os
import platform
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from vqbank.pipelines.extraction.assembly import OpenVideo
from vqbank.pipelines.extraction.refusals import Refusal, one_line
from vqbank.store.bank import FeatureStore, writing
from vqbank.store.errors import BankError
from vqbank.store.ledger import Failure, Ledger, changed_files
from vqbank.store.schema import FeatureSpec, Video


class Marks:
    """The lines of one writer."""

    def __init__(self, store: FeatureStore) -> None:
        """Nothing is written yet."""
        self._counts = {"done": 0, "failed": 0, "cached": 0}
        """Videos that have ended, by how."""
        self._bank = store.path
        self._ledger = Ledger(store.path)
        self._changed_before: Mapping[tuple[str, str], Failure] = {}

    def started(self, specs: Iterable[FeatureSpec], videos: int) -> None:
        """A run over so many videos.

        Raises:
            BankError: if the bank cannot be written, as all of these.
        """
        keys = [spec.key for spec in specs]
        here = {"host": platform.node(), "process": os.getpid()}
        self._tell("started", {**here, "keys": keys, "videos": videos})
        with suppress(BankError):  # a damaged ledger, as `status` tells, stops no work
            self._changed_before = changed_files(self._bank)

    def running(self, passes: Mapping[str, int]) -> None:
        """How far the run is."""
        self._tell("running", {**self._counts, **passes}, durable=False)

    def ended(self, passes: Mapping[str, int]) -> None:
        """Every video's fate is known."""
        self._tell("ended", {**self._counts, **passes})

    def left(self, error: BaseException, passes: Mapping[str, int]) -> None:
        """The run did not come to its end."""
        if isinstance(error, (GeneratorExit, KeyboardInterrupt)):
            self._tell("stopped", {**self._counts, **passes})
            return
        reason = "; ".join([one_line(error), *getattr(error, "__notes__", [])])
        self._tell("crashed", {"reason": reason, **self._counts, **passes})

    def count(self, *, cached: bool, failed: bool) -> None:
        """A video has ended; told with the next line of progress."""
        self._counts["cached" if cached else "failed" if failed else "done"] += 1

    def begun(self, video: Video, attempt: str) -> None:
        """A decoder is about to open a video, in an attempt of whoever gave it out."""
        self._tell("begun", {"video": video.id, "attempt": attempt}, durable=False)

    def decoded(self, opened: OpenVideo, damage: Refusal | None) -> None:
        """A pass over a video has come to its end, or to damage."""
        error = {"error": damage.reason} if damage is not None else {}
        self._tell("decoded", {"video": opened.video.id, **opened.health, **error}, durable=False)

    def failed(
        self,
        video: Video,
        specs: Iterable[FeatureSpec],
        refusal: Refusal,
        *,
        changed: bool = False,
    ) -> dict[str, str]:
        """A video goes without features; gives the reason by their keys.

        Args:
            video: Which.
            specs: Of the features.
            refusal: Why.
            changed: Whether it is that another file lies where the banked one was.
        """
        # It stands beside the video's id, with which many errors begin.
        reason = refusal.reason.removeprefix(f"{video.id}: ")
        with writing(self._bank):
            kept = self._ledger.keep_traceback(refusal.traceback) if refusal.traceback else None
        about: dict[str, Any] = {"reason": reason, "traceback": kept}
        if changed:
            about["changed"] = True
        keys = [spec.key for spec in specs]
        for key in keys:
            self._tell("failed", {"video": video.id, "key": key, **about})
        return dict.fromkeys(keys, reason)

    def restored(self, video: Video, specs: Iterable[FeatureSpec]) -> None:
        """The banked file lies there: tell it, if another one was found before."""
        for spec in specs:
            before = self._changed_before.get((video.id, spec.key))
            if before is not None:
                about = {"video": video.id, "key": spec.key}
                self._tell("restored", {**about, "changed": False, "until": before.time})

    def _tell(self, status: str, entry: Mapping[str, Any], *, durable: bool = True) -> None:
        with writing(self._bank):
            self._ledger.append(durable=durable, status=status, **entry)
