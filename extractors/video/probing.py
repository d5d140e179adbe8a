"""What there is to decode: presented frames and their times, size, colours and health."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vqbank.extractors.video.packets import (
    decode_error,
    decoded,
    opened,
    packets_of,
    seconds_of,
    video_streams,
)
from vqbank.extractors.video.rgb import Rgb, colour_space, turn_of
from vqbank.extractors.video.shown import shown_in

_COLOUR_RANGES = {0: "unspecified", 1: "limited", 2: "full"}

# Likewise, table 3: PQ is smpte2084, HLG arib-std-b67.
_COLOUR_TRANSFERS = {0: "reserved", 1: "bt709", 2: "unspecified", 3: "reserved", 4: "bt470m"}
_COLOUR_TRANSFERS |= {5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "linear", 9: "log100"}
_COLOUR_TRANSFERS |= {10: "log316", 11: "iec61966-2-4", 12: "bt1361e", 13: "iec61966-2-1"}
_COLOUR_TRANSFERS |= {14: "bt2020-10", 15: "bt2020-12", 16: "smpte2084", 17: "smpte428"}
_COLOUR_TRANSFERS |= {18: "arib-std-b67"}

# Of MPEG-4 pictures that say nothing but "as before": MAX_NVOP_SIZE of FFmpeg's
# mpeg4_unpack_bframes.
_EMPTY_MPEG4_BYTES = 19


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """What a file says of its video stream."""

    pts_seconds: NDArray[np.float64]
    """[n]: presented times, increasing, starting where the file starts.  Decoding times where the
    container has no others (AVI); FFmpeg's best effort where some frames have them and some not."""
    stream: int
    """Index in the file of the video stream that is read: FFmpeg's own choice."""
    video_streams: int
    """How many the file has, cover pictures not counted."""
    header_frames: int
    """Frames according to the header; 0 where it says nothing."""
    rate: float
    """Average frames per second according to the container; 0 where it says nothing."""
    width: int
    """Columns of pixels, as displayed: after the display matrix."""
    height: int
    """Rows of pixels, as displayed."""
    rotation: int
    """Quarter turns of the display matrix, counter-clockwise: 0, 90, 180 or 270 degrees."""
    mirrored: bool
    """Whether the display matrix mirrors the picture too, as phones write it for selfies.  What is
    shown is what the `ffmpeg` command shows: the picture turned, then mirrored top to bottom."""
    codec: str
    pixel_format: str
    colour_space: str
    colour_range: str
    colour_transfer: str
    """smpte2084 (PQ) and arib-std-b67 (HLG) are HDR, which is turned into RGB without tone
    mapping."""
    interlaced: bool
    """Whether the first frame is."""
    variable_frame_rate: bool
    """Whether presented intervals differ by more than the rounding of times."""
    discarded_packets: int
    """Packets that are never shown: outside an edit list, undecodable without what came before the
    file's start, or pictures that others refer to and nobody sees (VP8, VP9, AV1)."""
    counted_by_decoding: bool
    """Whether every frame was decoded to tell how many are presented, and when, because the
    packets do not."""
    has_pts: bool
    """Whether decoded frames are recognised by their presentation times, and not by counting."""

    def record(self) -> dict[str, Any]:
        """What is banked of a video, as JSON values."""
        count = len(self.pts_seconds)
        duration = 1 / self.rate if self.rate > 0 else 0.0
        if count > 1:  # the last frame stays for a mean interval
            duration = float(np.ptp(self.pts_seconds)) * count / (count - 1)
        said = {field.name: getattr(self, field.name) for field in fields(self)}
        del said["pts_seconds"], said["has_pts"]
        return {"frames": count, "duration_seconds": duration, **said}


def probe(path: Path, *, pulse: Callable[[], None] = lambda: None) -> Probe:
    """Read all packets of a video and decode its first frame, always by PyAV.

    Every frame is decoded where packets do not tell which frames are presented, and when.

    Args:
        path: the file.
        pulse: called at every packet, and every frame that is counted: a sign of life.

    Raises:
        DecodeError: if the file cannot be opened, has no video stream, was cut off, holds packets
            that the container knows to be damaged or gives no time, has a header or colours that
            cannot be, or a damaged frame where all have to be decoded.
    """
    packets = _read(path, pulse)
    clock, ticks = _presented(path, packets)
    time_base = packets.time_base
    has_pts, by_decoding = clock == _PTS, packets.by_decoding
    pts_seconds = np.array([seconds_of(tick, time_base) for tick in ticks])

    first = next((f for _, f in decoded(path, pts_seconds, has_pts=has_pts, threads=1)), None)
    if first is None:
        raise decode_error(path, "no frame can be decoded")
    discarded = packets.discarded + len(packets.shown) - len(ticks)
    if by_decoding or (packets.may_hold_fields and first.interlaced_frame):
        by_decoding, has_pts = True, False
        ticks = _ticks_by_decoding(path, pulse)
        pts_seconds = np.array([seconds_of(tick, time_base) for tick in ticks])

    intervals = np.diff(ticks) if len(ticks) > 1 else np.zeros(1, np.int64)
    _refuse_cut_matroska(path, packets, clock, intervals)
    transfer = first.color_trc
    turn = turn_of(first)
    height, width, _ = Rgb(path, turn)(0, first).shape
    return Probe(
        pts_seconds=pts_seconds,
        stream=packets.stream,
        video_streams=packets.video_streams,
        header_frames=packets.header_frames,
        rate=packets.rate,
        width=width,
        height=height,
        rotation=turn.rotation,
        mirrored=turn.mirrored,
        codec=packets.codec,
        pixel_format=first.format.name,
        colour_space=colour_space(first),
        colour_range=_COLOUR_RANGES.get(first.color_range, str(first.color_range)),
        colour_transfer=_COLOUR_TRANSFERS.get(transfer, str(transfer)),
        interlaced=first.interlaced_frame,
        variable_frame_rate=_varies(intervals, time_base),
        discarded_packets=discarded,
        counted_by_decoding=by_decoding,
        has_pts=has_pts,
    )


_PTS, _DTS = 0, 1
"""Which of a packet's stamps tells when its frame is presented."""


@dataclass(frozen=True)
class _Packets:
    """What the packets of a file tell, and its header."""

    codec: str
    shown: Sequence[tuple[Any, Any, int]]
    """Of packets with a picture that is presented: pts, dts, if known, and duration, in ticks."""
    corrupt: Sequence[tuple[Any, Any]]
    """Stamps of those of them that the container knows to be damaged."""
    discarded: int
    start: tuple[Any, Any]
    """Stamps of the first packet that can be decoded."""
    by_decoding: bool
    """Whether packets do not tell which frames are presented."""
    stream: int
    video_streams: int
    header_frames: int
    header_seconds: float
    """0 where the header's duration is an estimate, or belongs to the sound as well."""
    rate: float
    time_base: Fraction
    may_hold_fields: bool
    """Whether a packet may be a frame, or one of its fields: broadcasts of H.264."""


def _read(path: Path, pulse: Callable[[], None]) -> _Packets:
    """All packets of a video.

    Raises:
        DecodeError: as `probe`, for what can be told by them and the header.
    """
    shown, corrupt, discarded, start, by_decoding = [], [], 0, None, False
    with opened(path) as (container, stream):
        codec = stream.codec_context.codec.canonical_name
        try:
            for packet, decodable in packets_of(container, stream):
                pulse()
                stamps = (packet.pts, packet.dts)
                if decodable and start is None:
                    start = stamps
                pictures = shown_in(codec, packet)
                if packet.is_discard or not pictures or not decodable:
                    discarded += 1
                    continue
                # Layers of one picture; and what a decoder leaves out, or fills with a picture
                # that came before its turn.
                by_decoding |= pictures > 1
                by_decoding |= codec == "mpeg4" and packet.size <= _EMPTY_MPEG4_BYTES
                shown.append((*stamps, packet.duration or 0))
                if packet.is_corrupt:
                    corrupt.append(stamps)
        except av.FFmpegError as error:
            raise decode_error(path, f"cannot be read to its end: {error.strerror}") from error
        _refuse_cut_mp4(path, container, stream)
        if not shown or start is None:
            raise decode_error(path, "has no frame that could be shown")
        _refuse_lying_header(path, stream.frames, len(shown) + discarded)
        # Other containers' durations are estimates, or belong to the sound as well.
        tells_end = "matroska" in container.format.name and len(container.streams) == 1
        timed = sum(pts is not None for pts, _, _ in shown)
        return _Packets(
            codec=codec,
            shown=shown,
            corrupt=corrupt,
            discarded=discarded,
            start=start,
            by_decoding=by_decoding or 0 < timed < len(shown),
            stream=stream.index,
            video_streams=len(video_streams(container)),
            header_frames=stream.frames,
            header_seconds=(container.duration or 0) / av.time_base if tells_end else 0.0,
            rate=float(stream.average_rate or 0),
            time_base=stream.time_base,
            may_hold_fields=codec == "h264" and "mpeg" in container.format.name,
        )


def _presented(path: Path, packets: _Packets) -> tuple[int, list[int]]:
    """Which stamps tell the time, and when frames are presented, sorted, in ticks.

    Raises:
        DecodeError: if frames carry no times, or one is damaged.
    """
    clock = _PTS if all(stamps[_PTS] is not None for stamps in packets.shown) else _DTS
    if any(stamps[clock] is None for stamps in packets.shown):
        raise decode_error(
            path,
            f"its frames carry no times; put it into a container, as by "
            f"`ffmpeg -i {path.name} -c copy {path.stem}.mp4`",
        )
    # What is presented before the first key frame refers to frames that the file does not hold.
    start = packets.start[clock]
    ticks = sorted(stamps[clock] for stamps in packets.shown if stamps[clock] >= start)
    if packets.corrupt:
        index = int(np.searchsorted(ticks, packets.corrupt[0][clock]))
        raise decode_error(path, f"frame {index} of {len(ticks)} is cut off or damaged")
    return clock, ticks


def _varies(intervals: NDArray[np.int64], time_base: Fraction) -> bool:
    """Whether frames are shown for longer and shorter.

    Rounding, also that to milliseconds of a Matroska file that it was copied from, is no spread,
    unless it is nearly as long as frames.
    """
    spread = int(np.ptp(intervals))
    ticks_per_ms = Fraction(1, 1000) / time_base
    rounding = 1 if ticks_per_ms <= 1 else 2 + int(ticks_per_ms)
    return bool(spread > rounding or 4 * spread > np.median(intervals))


def _refuse_lying_header(path: Path, header_frames: int, found: int) -> None:
    """Headers of sound files may be somewhat wrong, from dropped or hidden frames; this far off the
    file was cut, or its writer did not know, and rules that believe the header have no bound.

    Raises:
        DecodeError: with both numbers.
    """
    if header_frames > 2 * found + 1000:
        raise decode_error(
            path,
            f"header says {header_frames} frames, the file holds {found}; fetch it again, or "
            f"correct the header, as by `ffmpeg -i {path.name} -c copy {path.stem}.mp4`",
        )


def _refuse_cut_matroska(
    path: Path, packets: _Packets, clock: int, intervals: NDArray[np.int64]
) -> None:
    """A file that ends earlier than its header says.

    Raises:
        DecodeError: with both times.
    """
    time_base = packets.time_base
    end = max(seconds_of(stamps[clock] + stamps[2], time_base) for stamps in packets.shown)
    if packets.header_seconds - end > max(0.5, 2 * seconds_of(int(intervals.max()), time_base)):
        raise decode_error(
            path,
            f"header says {packets.header_seconds:.2f} s, the file ends after {end:.2f} s; fetch "
            "it again",
        )


def _refuse_cut_mp4(path: Path, container: Any, stream: Any) -> None:
    entries = stream.index_entries if "mp4" in container.format.name else ()
    whole = sum(entry.pos + entry.size <= container.size for entry in entries)
    if whole < len(entries):
        raise decode_error(
            path, f"header says {len(entries)} frames, the file ends after {whole}; fetch it again"
        )


def _ticks_by_decoding(path: Path, pulse: Callable[[], None]) -> list[int]:
    """The time of each presented frame, as FFmpeg guesses it (best_effort_timestamp).

    The rule is guess_correct_pts of libavcodec/decode.c, which PyAV does not pass on.

    Raises:
        DecodeError: if a frame is damaged, or there is no time to begin with.
    """
    ticks: list[int] = []
    faults, last = [0, 0], [-(2**63), -(2**63)]
    for _, frame in decoded(path, np.empty(0), has_pts=False, threads=1):
        pulse()
        stamps = (frame.pts, frame.dts)
        for clock, (stamp, other) in enumerate([stamps, stamps[::-1]]):
            if stamp is not None:
                faults[clock] += stamp <= last[clock]
                last[clock] = stamp
            elif other is not None:
                last[clock] = other
        pts, dts = stamps
        tick = pts if pts is not None and (dts is None or faults[0] <= faults[1]) else dts
        if tick is None and ticks:  # what comes out after the last packet may have neither
            tick = ticks[-1] + frame.duration
        if tick is None:
            raise decode_error(path, "its first frame carries no time")
        ticks.append(tick)
    return sorted(ticks)
