"""The one way into a file: its container, packets and decoded frames, by PyAV."""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vqbank.extractors.video.numbered import sequence
from vqbank.store.errors import DecodeError
from vqbank.store.ordinary import open_ordinary


def decode_error(path: Path, message: str) -> DecodeError:
    """One line, whatever the path and the words of a library hold."""
    text = f"{path}: {message}"
    return DecodeError("".join(c if c.isprintable() else repr(c)[1:-1] for c in text))


@contextmanager
def opened(path: Path, *, threads: int = 1) -> Iterator[tuple[Any, Any]]:
    """The container and the video stream of FFmpeg's own choice, were there no cover pictures."""
    try:
        container = _container(path)
    except OSError as error:
        raise decode_error(path, f"cannot be read: {error.strerror}") from error
    except av.FFmpegError as error:  # some of them are a ValueError as well
        raise decode_error(path, f"is no video that FFmpeg can open: {error.strerror}") from error
    except ValueError as error:
        raise decode_error(path, f"no file can have this name: {error}") from error
    with container:
        streams = video_streams(container)
        if not streams:
            raise decode_error(path, "has no video stream")
        best = container.streams.best("video")  # av_find_best_stream
        stream = next((one for one in streams if best and one.index == best.index), streams[0])
        if stream.codec_context is None:
            raise decode_error(
                path, f"this FFmpeg has no decoder for its video stream {stream.index}"
            )
        # FFmpeg invents missing presentation times, wrongly for H.264 with B-frames in AVI.
        container.flags &= ~av.container.Flags.gen_pts.value
        context = stream.codec_context
        # Without "explode" FFmpeg hides most damage (of HEVC: all) behind guessed pixels.
        context.options = {"err_detect": "crccheck+explode"}
        context.thread_type = "AUTO"
        context.thread_count = threads
        yield container, stream


def _container(path: Path) -> Any:
    """Of a file, or of a folder of numbered pictures."""
    if path.is_dir():
        pictures = sequence(path)
        for picture in pictures.files:
            open_ordinary(picture).close()
        options = {"framerate": str(pictures.rate), "start_number": str(pictures.first)}
        return av.open(f"file:{pictures.pattern}", format="image2", options=options)
    open_ordinary(path).close()
    if path.stat().st_size == 0:
        raise decode_error(path, "the file is empty (0 bytes); fetch it again")
    # "file:" keeps a colon in a name from being read as a protocol; titles and comments that are
    # not UTF-8 say nothing of the picture.
    return av.open(f"file:{path}", metadata_errors="replace")


def video_streams(container: Any) -> list[Any]:
    """The video streams of a container, cover pictures not counted."""
    cover = av.stream.Disposition.attached_pic
    return [one for one in container.streams.video if not one.disposition & cover]


def packets_of(container: Any, stream: Any) -> Iterator[tuple[Any, bool]]:
    """Every packet and whether it can be decoded: broadcasts may begin before a key frame."""
    decodable = "mpeg" not in container.format.name
    for packet in container.demux(stream):
        decodable = decodable or packet.is_keyframe
        if packet.size:  # an empty one would end decoding
            yield packet, decodable
        elif packet.dts is None:
            return  # PyAV's mark of the end; it fails beyond if streams appeared late


def seconds_of(ticks: int, time_base: Fraction) -> float:
    """Ticks of a clock in seconds, rounded once."""
    return ticks * time_base.numerator / time_base.denominator


def decoded_frames(context: Any, packet: Any) -> list[Any]:
    """The one call by which PyAV decodes, so that decoded frames can be counted."""
    return list(context.decode(packet))


def decoded(
    path: Path, pts_seconds: NDArray[np.float64], *, has_pts: bool, threads: int
) -> Iterator[tuple[int, Any]]:
    """Frames in order with their presented indices, by PyAV, until the first damaged one."""
    index = -1
    with opened(path, threads=threads) as (container, stream):
        packets = (packet for packet, decodable in packets_of(container, stream) if decodable)
        packet = None
        try:
            for packet in chain(packets, [None]):
                for frame in decoded_frames(stream.codec_context, packet):
                    index += 1
                    if has_pts and frame.pts is not None:
                        seconds = seconds_of(frame.pts, stream.time_base)
                        if seconds < pts_seconds[0]:  # left out by probe as well
                            index -= 1
                            continue
                        index = max(index, int(np.searchsorted(pts_seconds, seconds)))
                    if frame.is_corrupt:
                        raise decode_error(path, f"frame {index} is damaged")
                    yield index, frame
        except av.FFmpegError as error:
            index += 1
            if has_pts and packet is not None and packet.pts is not None:
                seconds = seconds_of(packet.pts, stream.time_base)
                index = int(np.searchsorted(pts_seconds, seconds))
            raise decode_error(path, f"frame {index} is damaged: {error.strerror}") from error
