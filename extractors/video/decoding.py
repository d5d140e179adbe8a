"""Decoding a video once, in order, in chunks."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vqbank.extractors.video.decoders import DECODERS, Pictures
from vqbank.extractors.video.packets import decode_error
from vqbank.extractors.video.probing import Probe
from vqbank.store.errors import DecodeError, UnknownNameError, unknown_name


@dataclass(slots=True, eq=False)
class Decoded:
    """The chunks of one decoding, to be looped over once.

    Each chunk is (frame_index int64 [k], RGB uint8 [k, h, w, 3]).
    """

    path: Path
    probe: Probe
    frame_index: NDArray[np.int64]
    chunk: int
    pictures: Pictures
    shortfall: int = 0
    """Wanted frames, so far, in whose place the last frame before them stands: the file ended
    cleanly, or left them out, with fewer frames than it announces."""

    def __iter__(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        with closing(self.pictures):
            for start in range(0, len(self.frame_index), self.chunk):
                yield from self._chunk(self.frame_index[start : start + self.chunk])

    def _chunk(
        self, wanted: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        shape = (self.probe.height, self.probe.width, 3)
        frames = np.empty((len(wanted), *shape), np.uint8)
        given = 0
        try:
            for shown, picture in islice(self.pictures, len(wanted)):
                if picture.shape != shape:
                    raise decode_error(
                        self.path,
                        f"frame {shown} has shape {picture.shape}, the video's first "
                        f"one {shape}; a video has one size",
                    )
                frames[given] = picture
                self.shortfall += int(shown != wanted[given])
                given += 1
            if given < len(wanted):
                raise decode_error(self.path, f"the decoder ended before frame {wanted[given]}")
        except DecodeError:
            if given:  # what came before the damage is whole
                yield wanted[:given], frames[:given]
            raise
        yield wanted, frames


def decode(
    path: Path,
    probe: Probe,
    frame_index: Sequence[int] | NDArray[np.int64],
    *,
    decoder: str = "pyav",
    chunk: int = 32,
    threads: int = 1,
) -> Decoded:
    """Decode a video once, in order, and give the wanted frames in chunks.

    Only wanted frames are converted to RGB, and nothing is decoded after the last of them.  PyAV
    refuses every frame that FFmpeg can tell to be damaged; decord and torchcodec do not tell.

    Args:
        path: the file that was probed.
        probe: what `probe` said of it.
        frame_index: presented indices, strictly increasing, within [0, n).
        decoder: a name of DECODERS.
        chunk: frames in memory at a time.
        threads: FFmpeg's decoding threads; they change neither pictures nor errors.

    Raises:
        DecodeError: while looping, if a frame is damaged or of another size, or the decoder cannot
            be trusted with this file: decord and torchcodec refuse what they may turn into other
            bits than PyAV (codecs whose decoding is not exact, odd sizes of subsampled video, more
            than 8 bits, video that starts interlaced).
        UnknownNameError: if there is no such decoder.
    """
    if decoder not in DECODERS:
        raise UnknownNameError(unknown_name("decoder", decoder, DECODERS))
    wanted = np.array(frame_index, np.int64)
    frames = len(probe.pts_seconds)
    if np.any(np.diff(wanted) <= 0) or np.any((wanted < 0) | (wanted >= frames)):
        raise decode_error(
            path, f"wanted frames must increase and lie within [0, {frames}), got {wanted.tolist()}"
        )
    return Decoded(path, probe, wanted, chunk, DECODERS[decoder](path, probe, wanted, threads))
