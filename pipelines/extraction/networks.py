"""The networks of a run: full clips go in, rows come back to where the clips are from."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray

from vqbank.extractors.base import Extractor
from vqbank.pipelines.extraction.assembly import FullClip
from vqbank.pipelines.extraction.batch import Batch
from vqbank.pipelines.extraction.refusals import (
    Refusal,
    is_out_of_memory,
    is_refusal,
    one_line,
)
from vqbank.pipelines.extraction.threads import Threads


class Networks:
    """One batch per extractor that clips of all videos fill, computed in threads."""

    def __init__(
        self,
        batches: Mapping[Extractor, Batch],
        device: torch.device,
        threads: Threads,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._batches = batches
        self._on_cpu = device.type == "cpu"
        self._threads = threads
        self._tasks = tasks

    @property
    def held_bytes(self) -> int:
        """Bytes of the clips that wait for a network or are in one."""
        return sum(batch.held_bytes for batch in self._batches.values())

    def add(self, clips: Sequence[FullClip]) -> None:
        """Let clips wait until they fill a batch, which is computed then."""
        for clip in clips:
            clip.assembly.clips_to_fill -= 1
            batch = self._batches[clip.assembly.extractor]
            if full := batch.add(clip):
                self._tasks.create_task(self._compute(batch, full))

    def flush(self, *, older_than: float = 0.0) -> None:
        """Compute half-filled batches in which a clip has waited for so many seconds."""
        for batch in self._batches.values():
            while waiting := batch.pop(older_than=older_than):
                self._tasks.create_task(self._compute(batch, waiting))

    async def _compute(self, batch: Batch, clips: list[FullClip]) -> None:
        """Bring every clip's rows to its assembly, or the reason why there are none."""
        size = batch.size
        try:
            rows = await self._rows(batch, clips)
        except Exception as error:
            assemblies = list(dict.fromkeys(clip.assembly for clip in clips))
            if not is_refusal(error):
                videos = ", ".join(assembly.opened.video.id for assembly in assemblies)
                error.add_note(f"in {batch.extractor.name}, at {videos}")
                raise
            if is_out_of_memory(error) and not self._on_cpu and len(clips) > 1:
                batch.size = min(batch.size, max(1, size // 2))  # another may have halved it
                half = len(clips) // 2
                for some in (clips[:half], clips[half:]):
                    self._tasks.create_task(self._compute(batch, some))
                return
            for assembly in assemblies:  # all clips of a batch have the same shape
                assembly.refuse(Refusal(self._reason(batch, error)))
        else:
            for clip, of_clip in zip(clips, rows, strict=True):
                clip.assembly.put(clip.number, of_clip)
        batch.let_go(clips)

    async def _rows(self, batch: Batch, clips: list[FullClip]) -> list[Mapping[str, NDArray[Any]]]:
        """Rows of every clip by output; on a CPU, a batch that finds no memory is tried once more.

        There it keeps its shape, so that no bit changes: it can only be tried while nothing else
        needs memory, and if it fails then, no clip of this shape fits.
        """
        try:
            return await self._threads(batch.compute, clips)
        except Exception as error:
            if not (self._on_cpu and is_out_of_memory(error)):
                raise
        return await self._threads.alone(batch.compute, clips)

    def _reason(self, batch: Batch, error: Exception) -> str:
        if not is_out_of_memory(error):
            return str(error)
        what = f"a batch of {batch.size} clips" if self._on_cpu else "one clip"
        return f"{what} of {batch.extractor.name} does not fit into memory: {one_line(error)}"
