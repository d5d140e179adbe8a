"""The clips of many videos that wait for one network, and what computes them."""

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from vqbank.extractors.base import ClipFn, Extractor
from vqbank.pipelines.extraction.assembly import FullClip
from vqbank.pipelines.extraction.memory import WorkingMemory
from vqbank.pipelines.extraction.refusals import is_out_of_memory, one_line
from vqbank.store.errors import WeightsError


class Batch:
    """Clips of any videos that wait for one extractor's network."""

    def __init__(
        self,
        extractor: Extractor,
        device: torch.device,
        size: int | None = None,
        *,
        largest_bytes: int,
        memory: WorkingMemory,
    ) -> None:
        """No model is loaded yet.

        Args:
            extractor: Whose clips.
            device: Of the network.
            size: Clips; None means as the extractor says on a CPU, and as pays on a device.
            largest_bytes: Of the clips of a batch whose size is found out.
            memory: What all networks together may take to compute large frames.
        """
        self.extractor = extractor
        self.size = size or extractor.batch_clips
        """Clips; always this many, because another shape could change the last bit of a row."""
        self._size_is_open = size is None and device.type != "cpu"
        self._largest_bytes = largest_bytes
        self._since: dict[tuple[int, ...], float] = {}
        self.held_bytes = 0
        """Bytes of the clips that wait for the network or are in it."""
        self.seconds = 0.0
        """Spent in the network."""
        self._device = device
        self._memory = memory
        self._waiting: dict[tuple[int, ...], list[FullClip]] = {}
        self._clip_fn: ClipFn | None = None
        self._building = threading.Lock()

    def add(self, clip: FullClip) -> list[FullClip]:
        """Queue one clip; returns a full batch, or nothing."""
        shape = tuple(clip.frames.shape)
        waiting = self._waiting.setdefault(shape, [])
        self._since.setdefault(shape, time.monotonic())
        waiting.append(clip)
        self.held_bytes += clip.frames.nbytes
        return self._pop(shape) if len(waiting) >= self.size else []

    def pop(self, *, older_than: float = 0.0) -> list[FullClip]:
        """What waits, though it fills no batch; nothing if nothing has waited for so many seconds.

        The first clip of a rare shape would otherwise wait for the end of the run.
        """
        now = time.monotonic()
        shape = next((s for s, since in self._since.items() if now - since >= older_than), None)
        return self._pop(shape) if shape is not None else []

    def _pop(self, shape: tuple[int, ...]) -> list[FullClip]:
        del self._since[shape]
        return self._waiting.pop(shape)

    def let_go(self, clips: Sequence[FullClip]) -> None:
        """These have come back, as rows or refused."""
        self.held_bytes -= sum(clip.frames.nbytes for clip in clips)

    def clear(self) -> None:
        """Let go whatever waits or is computed: nobody wants it any more."""
        self._since.clear()
        self._waiting.clear()
        self.held_bytes = 0

    def unload(self) -> None:
        """Let the network go, once no thread is in it; it is built anew when next needed."""
        self._clip_fn = None

    def compute(self, waiting: Sequence[FullClip]) -> list[Mapping[str, NDArray[Any]]]:
        """Rows of every clip by output; may run in several threads at once.

        Raises:
            InvalidFeatureError: if clips of this shape cannot be computed.
            WeightsError: if the network cannot be built, or does not fit into memory.
        """
        clip = waiting[0].frames
        clip_fn = self._built(clip)
        needed = self.extractor.working_bytes_per_pixel * clip.shape[-2] * clip.shape[-1]
        with self._memory.reserved(needed if self._device.type == "cpu" else 0):
            return self._rows(clip_fn, waiting)

    def _rows(
        self, clip_fn: ClipFn, waiting: Sequence[FullClip]
    ) -> list[Mapping[str, NDArray[Any]]]:
        begun = time.perf_counter()
        tensors = [clip.frames for clip in waiting]
        clips = torch.stack(tensors) if len(tensors) > 1 else tensors[0][None]
        size = self.size
        if self._device.type != "cpu":  # there the next power of two does, and costs less
            size = min(size, 1 << (len(clips) - 1).bit_length())
        padding = size - len(clips)
        if padding > 0:
            clips = torch.cat([clips, clips.new_zeros((padding, *clips.shape[1:]))])
        with torch.inference_mode(), self.extractor.precision(self._device):
            rows_by_output = clip_fn(clips)
        outputs = {
            name: (rows.float() if rows.is_floating_point() else rows).cpu().numpy()
            for name, rows in rows_by_output.items()
        }
        spent = time.perf_counter() - begun
        self.seconds += spent
        for clip in waiting:
            clip.assembly.seconds += spent / len(waiting)
        return [
            {name: rows[place].copy() for name, rows in outputs.items()}
            for place in range(len(waiting))
        ]

    def _built(self, clip: Tensor) -> ClipFn:
        with self._building:
            if self._clip_fn is None:
                try:
                    self._clip_fn = self.extractor.build(self._device)
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                    raise WeightsError(  # no video is at fault: it would be said of every one
                        f"the network of {self.extractor.name} does not fit into the memory of "
                        f"{self._device}: {one_line(error)}"
                    ) from error
                if self._size_is_open:
                    with torch.inference_mode(), self.extractor.precision(self._device):
                        largest = max(1, min(256, self._largest_bytes // clip.nbytes))
                        self.size = batch_that_pays(
                            self._clip_fn, clip, min(self.size, largest), largest=largest
                        )
            return self._clip_fn


def batch_that_pays(clip_fn: ClipFn, clip: Tensor, size: int, *, largest: int) -> int:
    """The smallest batch beyond which twice as many clips gain less than a twentieth.

    Args:
        clip_fn: Of an extractor.
        clip: One clip, on the device.
        size: To begin with; it is halved where it does not fit into memory.
        largest: Not tried beyond.

    Raises:
        torch.OutOfMemoryError: if one clip does not fit.
    """
    best, best_rate = 0, 0.0
    while size <= largest:
        try:
            rate = _clips_per_second(clip_fn, clip.expand(size, *clip.shape))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if best:
                return best
            if size == 1:
                raise
            size //= 2
            continue
        if rate < best_rate * 1.05:
            return best
        best, best_rate = size, rate
        size *= 2
    return best


def _clips_per_second(clip_fn: ClipFn, clips: Tensor) -> float:
    clips = clips.contiguous()
    for rows in clip_fn(clips).values():  # the first time, kernels are chosen
        rows.cpu()
    begun = time.perf_counter()
    for rows in clip_fn(clips).values():
        rows.cpu()
    return len(clips) / (time.perf_counter() - begun)
