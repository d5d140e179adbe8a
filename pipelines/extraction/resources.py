"""What all videos of a run share, of which there is only so much."""

import asyncio
import time
from dataclasses import dataclass

import torch

from vqbank.extractors.isolated import Chunk, Decoder, End
from vqbank.extractors.video import Probe
from vqbank.pipelines.extraction.banking import Banking
from vqbank.pipelines.extraction.marks import Marks
from vqbank.pipelines.extraction.memory import Allowance
from vqbank.pipelines.extraction.networks import Networks
from vqbank.pipelines.extraction.threads import InWork, Threads
from vqbank.pipelines.extraction.wanted import Wanted

UNWRITTEN_BYTES = 512 * 2**20
"""Rows of finished videos that may wait for the disk."""
CHECKING_SECONDS = 1.0
"""Between two looks at whether a decoder from which nothing comes is still alive."""


@dataclass
class Counts:
    """What a run has done so far; read for display, too."""

    decoded_videos: int = 0
    """Passes over a video, the extra ones included."""
    extra_passes: int = 0
    """Passes over videos whose frames are chosen by motion and do not fit into memory until it is
    known."""
    decoded_frames: int = 0
    """Frames that came out of a decoder and were looked at."""


@dataclass(frozen=True, eq=False)
class Resources:
    """Decoders, threads, networks, the disk; memory is bounded by waiting for it."""

    wanted: Wanted
    device: torch.device
    counts: Counts
    marks: Marks
    in_work: InWork
    threads: Threads
    networks: Networks
    banking: Banking
    decoders: asyncio.LifoQueue[Decoder]
    """Those that are free."""
    allowance: Allowance
    """For frames that wait until a motion series is known."""
    held_limit: int
    """Bytes of clips that may wait for a network or be in one."""

    async def answer(self, decoder: Decoder) -> Probe | Chunk | End:
        """What a decoder says next, once there is room for it.

        Raises:
            DecodeError: if the video cannot be decoded.
            DecoderDiedError: if the decoder died over it, or gave no sign of life.
        """
        await self._room()
        while not await readable(decoder, min(CHECKING_SECONDS, decoder.seconds_left)):
            decoder.check()
        return decoder.receive()

    async def _room(self) -> None:
        """Wait while clips and rows take all memory that they may."""
        begun = time.monotonic()
        while (
            self.networks.held_bytes > self.held_limit
            or self.banking.unwritten_bytes > UNWRITTEN_BYTES
        ):
            if not self.in_work.count:
                self.networks.flush()  # many half-filled batches
            await self.in_work.changed()
        self.in_work.decoding_waits += time.monotonic() - begun

    def put_back(self, decoder: Decoder) -> None:
        """Let another video have it."""
        self.decoders.put_nowait(decoder)
        self.in_work.wake()


async def readable(decoder: Decoder, seconds: float) -> bool:
    """Whether a decoder has something to say, within so many seconds."""
    loop, file = asyncio.get_running_loop(), decoder.fileno()
    said = asyncio.Event()
    loop.add_reader(file, said.set)
    try:
        async with asyncio.timeout(seconds):
            await said.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(file)
    return True
