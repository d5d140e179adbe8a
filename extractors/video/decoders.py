"""The decoders: PyAV, and decord and torchcodec where they give the same bits."""

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqbank.extractors.video.packets import decode_error, decoded
from vqbank.extractors.video.probing import Probe
from vqbank.extractors.video.rgb import Rgb, Turn
from vqbank.store.errors import DecodeError, in_words

# Codecs, and pixel formats of progressive video, that the three decoders turn into the same bits:
# measured, and a test measures again.  MPEG-4 ASP and its kin (wmv2, msmpeg4) come out up to 2
# levels apart, by another inverse transform.  Half the chroma is the same at even sizes only.
_SAME_CODECS = {
    *("av1", "ffv1", "h264", "hevc", "mjpeg", "mpeg1video", "mpeg2video", "rawvideo", "vp8", "vp9"),
}
_SAME_AT_EVEN_SIZES = {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p"}
_SAME_AT_ANY_SIZE = {"yuv444p", "yuvj444p", "gray", "gbrp"}


def _pyav_frames(path: Path, probe: Probe, threads: int) -> Iterator[tuple[int, Any]]:
    """As `packets.decoded`, with results and errors that do not depend on the number of threads."""
    index = -1
    if threads > 1:
        # With frame threads PyAV reports damage late, or not at all among the last frames; what
        # is not in order here is left to one thread.
        try:
            for found, frame in decoded(
                path, probe.pts_seconds, has_pts=probe.has_pts, threads=threads
            ):
                if found != index + 1:
                    break
                index = found
                yield index, frame
        except DecodeError:
            pass
        if index == len(probe.pts_seconds) - 1:
            return
    for found, frame in decoded(path, probe.pts_seconds, has_pts=probe.has_pts, threads=1):
        if found > index:
            yield found, frame


Pictures = Generator[tuple[int, NDArray[np.uint8]], None, None]
"""For each wanted index, in order: the index of the frame that stands for it, and its RGB."""


def _pyav(path: Path, probe: Probe, wanted: NDArray[np.int64], threads: int) -> Pictures:
    rgb = Rgb(path, Turn(probe.rotation, probe.mirrored))
    waiting = wanted[::-1].tolist()
    last: tuple[int, Any] | None = None
    for index, frame in _pyav_frames(path, probe, threads):
        while waiting and waiting[-1] < index:  # frames that the decoder left out
            waiting.pop()
            shown, picture = last or (index, frame)
            yield shown, rgb(shown, picture)
        if waiting and waiting[-1] == index:
            waiting.pop()
            yield index, rgb(index, frame)
        if not waiting:
            return
        last = index, frame
    if last is None:
        raise decode_error(path, "no frame can be decoded")
    shown, picture = last[0], rgb(*last)
    for _ in waiting:
        yield shown, picture


def _refuse_other_pixels(path: Path, decoder: str, probe: Probe) -> None:
    if path.is_dir():
        raise decode_error(path, f"{decoder} reads no folders of pictures; take pyav")
    even = probe.width % 2 == 0 and probe.height % 2 == 0
    same = probe.pixel_format in _SAME_AT_ANY_SIZE
    same |= probe.pixel_format in _SAME_AT_EVEN_SIZES and even
    if probe.mirrored:
        raise decode_error(
            path,
            f"{decoder} does not mirror pictures, as this file's display matrix asks; use the "
            "decoder pyav",
        )
    if not same or probe.interlaced or probe.codec not in _SAME_CODECS:
        scan = "interlaced" if probe.interlaced else "progressive"
        raise decode_error(
            path,
            f"{decoder} may give other pixels than pyav unless video is progressive, its codec "
            f"{', '.join(sorted(_SAME_CODECS))}, and its pixel format "
            f"{', '.join(sorted(_SAME_AT_ANY_SIZE))}, or at even sizes "
            f"{', '.join(sorted(_SAME_AT_EVEN_SIZES))}; got {scan} {probe.pixel_format} of "
            f"{probe.width}x{probe.height} by {probe.codec}; use the decoder pyav",
        )


def _decord(path: Path, probe: Probe, wanted: NDArray[np.int64], threads: int) -> Pictures:
    _refuse_other_pixels(path, "decord", probe)
    try:
        import decord
    except (ImportError, OSError) as error:
        raise decode_error(
            path,
            f"decord cannot be loaded ({in_words(error)}); `pip install decord` (macOS on arm64 "
            "has no wheel), or use the decoder pyav",
        ) from error
    if probe.video_streams > 1:
        raise decode_error(
            path,
            f"decord cannot be told which of {probe.video_streams} video streams to take (FFmpeg's "
            f"choice is stream {probe.stream}); use the decoder pyav",
        )
    decord.logging.set_level(decord.logging.QUIET)
    position = -1
    try:
        reader = decord.VideoReader(str(path), num_threads=threads)
        times = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0]
        # Single precision: 0.25 ms at one hour.
        expected = probe.pts_seconds
        if len(times) != len(expected) or not np.allclose(times, expected, rtol=0, atol=2e-3):
            raise _other_times(path, "decord", probe)
        # Its skipping goes wrong at a variable frame rate, its reading in order does not.
        for index in wanted.tolist():
            while position < index:
                picture = reader.next()
                position += 1
            yield index, picture.asnumpy()
    except DecodeError:
        raise
    except (decord.DECORDError, RuntimeError, ValueError, StopIteration) as error:
        raise decode_error(
            path,
            f"decord cannot read frame {position + 1} of {len(probe.pts_seconds)}; use the decoder "
            "pyav",
        ) from error


def _torchcodec(path: Path, probe: Probe, wanted: NDArray[np.int64], threads: int) -> Pictures:
    _refuse_other_pixels(path, "torchcodec", probe)
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError) as error:
        raise decode_error(
            path,
            "torchcodec cannot be loaded; it needs `pip install torchcodec` and FFmpeg's "
            "shared libraries, as from `conda install ffmpeg` or `apt install ffmpeg`.  Or use "
            "the decoder pyav",
        ) from error
    index = 0
    try:
        reader = VideoDecoder(
            str(path),
            stream_index=probe.stream,
            seek_mode="exact",
            dimension_order="NHWC",
            num_ffmpeg_threads=threads,
        )
        if len(reader) != len(probe.pts_seconds):
            raise _other_times(path, "torchcodec", probe)
        for index in wanted.tolist():
            frame = reader.get_frame_at(index)
            if abs(frame.pts_seconds - probe.pts_seconds[index]) > 1e-3:
                raise _other_times(path, "torchcodec", probe)
            yield index, frame.data.numpy()
    except DecodeError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        raise decode_error(
            path,
            f"torchcodec cannot read frame {index} of {len(probe.pts_seconds)}: the file is "
            f"damaged, or does not start at 0 s (it starts at {probe.pts_seconds[0]:.3f} s); use "
            "the decoder pyav",
        ) from error


def _other_times(path: Path, decoder: str, probe: Probe) -> DecodeError:
    return decode_error(
        path,
        f"{decoder} sees other frames or times than the {len(probe.pts_seconds)} from "
        f"{probe.pts_seconds[0]:.3f} s that the container presents, as with edit lists and "
        "containers that do not start at 0 s; use the decoder pyav",
    )


DECODERS: dict[str, Callable[[Path, Probe, NDArray[np.int64], int], Pictures]] = {
    "pyav": _pyav,
    "decord": _decord,
    "torchcodec": _torchcodec,
}
