"""Opening, decoding and writing videos: the only module that knows PyAV, decord and torchcodec.

`probe` says what there is to decode, `decode` gives the pictures, `encode` writes a clip.
PyAV reads whatever FFmpeg reads, and turns it into RGB as `ffmpeg -pix_fmt rgb24` does; decord and
torchcodec decode and convert by other versions and flags, so that they are used only where the bits
were found to be the same.  Pixels are taken as square.
Shape letters: n presented frames, k frames of a chunk, h w pixels.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from fractions import Fraction
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vqbank.store.errors import DecodeError, UnknownNameError, in_words, unknown_name
from vqbank.store.ordinary import open_ordinary

# ITU-T H.273 (2021), table 4, by the names that FFmpeg prints.
_COLOUR_SPACES = {0: "gbr", 1: "bt709", 2: "unspecified", 5: "bt470bg", 6: "smpte170m"}
_COLOUR_SPACES |= {7: "smpte240m", 8: "ycgco", 9: "bt2020nc", 10: "bt2020c"}
_COLOUR_RANGES = {0: "unspecified", 1: "limited", 2: "full"}

# Likewise, table 3: PQ is smpte2084, HLG arib-std-b67.
_COLOUR_TRANSFERS = {0: "reserved", 1: "bt709", 2: "unspecified", 3: "reserved", 4: "bt470m"}
_COLOUR_TRANSFERS |= {5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "linear", 9: "log100"}
_COLOUR_TRANSFERS |= {10: "log316", 11: "iec61966-2-4", 12: "bt1361e", 13: "iec61966-2-1"}
_COLOUR_TRANSFERS |= {14: "bt2020-10", 15: "bt2020-12", 16: "smpte2084", 17: "smpte428"}
_COLOUR_TRANSFERS |= {18: "arib-std-b67"}
_UNSPECIFIED = 2

# Codecs, and pixel formats of progressive video, that the three decoders turn into the same bits:
# measured, and a test measures again.  MPEG-4 ASP and its kin (wmv2, msmpeg4) come out up to 2
# levels apart, by another inverse transform.  Half the chroma is the same at even sizes only.
_SAME_CODECS = {
    *("av1", "ffv1", "h264", "hevc", "mjpeg", "mpeg1video", "mpeg2video", "rawvideo", "vp8", "vp9"),
}
_SAME_AT_EVEN_SIZES = {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p"}
_SAME_AT_ANY_SIZE = {"yuv444p", "yuvj444p", "gray", "gbrp"}

# Of MPEG-4 pictures that say nothing but "as before": MAX_NVOP_SIZE of FFmpeg's
# mpeg4_unpack_bframes.
_EMPTY_MPEG4_BYTES = 19


SCALER_FLAGS = "bicubic"
"""Of swscale, as the `ffmpeg` command and libavfilter set them where nothing is said.  8-bit video
of an even height is not scaled at all: the nearest chroma is taken."""

# Quarter turns, as `ffmpeg -autorotate` makes them.
_TURNS: dict[int, list[tuple[str, ...]]] = {
    0: [],
    90: [("transpose", "cclock")],
    180: [("hflip",), ("vflip",)],
    270: [("transpose", "clock")],
}


def _error(path: Path, message: str) -> DecodeError:
    """One line, whatever the path and the words of a library hold."""
    text = f"{path}: {message}"
    return DecodeError("".join(c if c.isprintable() else repr(c)[1:-1] for c in text))


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
    """Pixels, as displayed: after the rotation tag."""
    height: int
    """Pixels, as displayed."""
    rotation: int
    """Quarter turns of the rotation tag, counter-clockwise: 0, 90, 180 or 270 degrees."""
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


@contextmanager
def _opened(path: Path, *, threads: int = 1) -> Iterator[tuple[Any, Any]]:
    """The container and the video stream of FFmpeg's own choice, were there no cover pictures."""
    try:
        open_ordinary(path).close()
        if path.stat().st_size == 0:
            raise _error(path, "the file is empty (0 bytes); fetch it again")
        # "file:" keeps a colon in a name from being read as a protocol; titles and comments that
        # are not UTF-8 say nothing of the picture.
        container = av.open(f"file:{path}", metadata_errors="replace")
    except OSError as error:
        raise _error(path, f"cannot be read: {error.strerror}") from error
    except av.FFmpegError as error:  # some of them are a ValueError as well
        raise _error(path, f"is no video that FFmpeg can open: {error.strerror}") from error
    except ValueError as error:
        raise _error(path, f"no file can have this name: {error}") from error
    with container:
        streams = _video_streams(container)
        if not streams:
            raise _error(path, "has no video stream")
        best = container.streams.best("video")  # av_find_best_stream
        stream = next((one for one in streams if best and one.index == best.index), streams[0])
        if stream.codec_context is None:
            raise _error(path, f"this FFmpeg has no decoder for its video stream {stream.index}")
        # FFmpeg invents missing presentation times, wrongly for H.264 with B-frames in AVI.
        container.flags &= ~av.container.Flags.gen_pts.value
        context = stream.codec_context
        # Without "explode" FFmpeg hides most damage (of HEVC: all) behind guessed pixels.
        context.options = {"err_detect": "crccheck+explode"}
        context.thread_type = "AUTO"
        context.thread_count = threads
        yield container, stream


def _video_streams(container: Any) -> list[Any]:
    cover = av.stream.Disposition.attached_pic
    return [one for one in container.streams.video if not one.disposition & cover]


def _packets(container: Any, stream: Any) -> Iterator[tuple[Any, bool]]:
    """Every packet and whether it can be decoded: broadcasts may begin before a key frame."""
    decodable = "mpeg" not in container.format.name
    for packet in container.demux(stream):
        decodable = decodable or packet.is_keyframe
        if packet.size:  # an empty one would end decoding
            yield packet, decodable
        elif packet.dts is None:
            return  # PyAV's mark of the end; it fails beyond if streams appeared late


def _seconds(ticks: int, time_base: Fraction) -> float:
    return ticks * time_base.numerator / time_base.denominator


def _shown_in(codec: str, packet: Any) -> int:
    """How many pictures of a packet are presented, by the codec's own headers."""
    if codec not in ("vp8", "vp9", "av1"):
        return 1
    data = memoryview(packet)
    if codec == "vp8":  # show_frame of RFC 6386, section 9.1
        return data[0] >> 4 & 1
    if codec == "vp9":
        return sum(_vp9_shows(frame) for frame in _vp9_frames(data))
    # AV1 bitstream specification, section 5.9.2: show_existing_frame, two bits of frame_type and
    # show_frame begin the header.  Only still pictures have another one.
    headers = (payload for kind, payload in _obus(data) if kind in (3, 6) and payload)
    return sum(payload[0] >> 7 or payload[0] >> 4 & 1 for payload in headers)


def _vp9_frames(data: memoryview) -> Iterator[memoryview]:
    """The frames of a packet: VP9 bitstream specification, annex B."""
    marker = data[-1]
    count, length_bytes = (marker & 7) + 1, (marker >> 3 & 3) + 1
    index = len(data) - 2 - count * length_bytes
    if marker >> 5 != 0b110 or index < 0 or data[index] != marker:
        yield data
        return
    start = 0
    for at in range(index + 1, len(data) - 1, length_bytes):
        end = start + int.from_bytes(data[at : at + length_bytes], "little")
        yield data[start:end]
        start = end


def _vp9_shows(frame: memoryview) -> int:
    """show_existing_frame or show_frame: VP9 bitstream specification, section 6.2."""
    bits = int.from_bytes(bytes(frame[:2]).ljust(2, b"\0"), "big")
    after = 11 - (bits >> 12 & 3 == 3)  # frame_marker, profile, and a zero in profile 3
    return bits >> after & 1 or bits >> after - 2 & 1


def _obus(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The open bitstream units of a packet, by type: AV1 bitstream specification, section 5.3."""
    at = 0
    while at < len(data):
        header = data[at]
        at += 2 if header & 4 else 1
        length = len(data) - at
        if header & 2:
            length = shift = 0
            for byte in data[at : at + 8]:
                length |= (byte & 127) << shift
                at, shift = at + 1, shift + 7
                if byte < 128:
                    break
        yield header >> 3 & 15, data[at : at + length]
        at += length


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
    shown, corrupt, discarded, start, by_decoding = [], [], 0, None, False
    with _opened(path) as (container, stream):
        codec = stream.codec_context.codec.canonical_name
        try:
            for packet, decodable in _packets(container, stream):
                pulse()
                stamps = (packet.pts, packet.dts)
                if decodable and start is None:
                    start = stamps
                pictures = _shown_in(codec, packet)
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
            raise _error(path, f"cannot be read to its end: {error.strerror}") from error
        _refuse_cut_mp4(path, container, stream)
        index, streams = stream.index, len(_video_streams(container))
        header_frames, rate = stream.frames, float(stream.average_rate or 0)
        time_base = stream.time_base
        # A broadcast packet of interlaced H.264 may be a frame, or one of its fields.
        may_hold_fields = codec == "h264" and "mpeg" in container.format.name
        # Other containers' durations are estimates, or belong to the sound as well.
        tells_end = "matroska" in container.format.name and len(container.streams) == 1
        header_seconds = (container.duration or 0) / av.time_base if tells_end else 0.0

    if not shown or start is None:
        raise _error(path, "has no frame that could be shown")
    # Headers of sound files may be somewhat wrong, from dropped or hidden frames; this far off the
    # file was cut, or its writer did not know, and rules that believe the header have no bound.
    if header_frames > 2 * (len(shown) + discarded) + 1000:
        raise _error(
            path,
            f"header says {header_frames} frames, the file holds {len(shown) + discarded}; fetch "
            f"it again, or correct the header, as by `ffmpeg -i {path.name} -c copy "
            f"{path.stem}.mp4`",
        )
    timed = sum(pts is not None for pts, _, _ in shown)
    has_pts = timed == len(shown)
    by_decoding |= 0 < timed < len(shown)
    clock = 0 if has_pts else 1
    if any(stamps[clock] is None for stamps in shown):
        raise _error(
            path,
            f"its frames carry no times; put it into a container, as by "
            f"`ffmpeg -i {path.name} -c copy {path.stem}.mp4`",
        )
    # What is presented before the first key frame refers to frames that the file does not hold.
    ticks = sorted(stamps[clock] for stamps in shown if stamps[clock] >= start[clock])
    discarded += len(shown) - len(ticks)
    pts_seconds = np.array([_seconds(tick, time_base) for tick in ticks])
    if corrupt:
        index = int(np.searchsorted(ticks, corrupt[0][clock]))
        raise _error(path, f"frame {index} of {len(ticks)} is cut off or damaged")

    first = next((f for _, f in _decoded(path, pts_seconds, has_pts=has_pts, threads=1)), None)
    if first is None:
        raise _error(path, "no frame can be decoded")
    if by_decoding or (may_hold_fields and first.interlaced_frame):
        by_decoding, has_pts = True, False
        ticks = _ticks_by_decoding(path, pulse)
        pts_seconds = np.array([_seconds(tick, time_base) for tick in ticks])

    intervals = np.diff(ticks) if len(ticks) > 1 else np.zeros(1, np.int64)
    end = max(_seconds(stamps[clock] + stamps[2], time_base) for stamps in shown)
    if header_seconds - end > max(0.5, 2 * _seconds(int(intervals.max()), time_base)):
        raise _error(
            path,
            f"header says {header_seconds:.2f} s, the file ends after {end:.2f} s; fetch it again",
        )
    # Rounding, also that to milliseconds of a Matroska file that it was copied from, is no spread,
    # unless it is nearly as long as frames.
    spread = int(np.ptp(intervals))
    ticks_per_ms = Fraction(1, 1000) / time_base
    rounding = 1 if ticks_per_ms <= 1 else 2 + int(ticks_per_ms)

    transfer = first.color_trc
    rotation = 90 * (round(first.rotation / 90) % 4)
    height, width, _ = _Rgb(path, rotation)(0, first).shape
    return Probe(
        pts_seconds=pts_seconds,
        stream=index,
        video_streams=streams,
        header_frames=header_frames,
        rate=rate,
        width=width,
        height=height,
        rotation=rotation,
        codec=codec,
        pixel_format=first.format.name,
        colour_space=_colour_space(first),
        colour_range=_COLOUR_RANGES.get(first.color_range, str(first.color_range)),
        colour_transfer=_COLOUR_TRANSFERS.get(transfer, str(transfer)),
        interlaced=first.interlaced_frame,
        variable_frame_rate=bool(spread > rounding or 4 * spread > np.median(intervals)),
        discarded_packets=discarded,
        counted_by_decoding=by_decoding,
        has_pts=has_pts,
    )


def _refuse_cut_mp4(path: Path, container: Any, stream: Any) -> None:
    entries = stream.index_entries if "mp4" in container.format.name else ()
    whole = sum(entry.pos + entry.size <= container.size for entry in entries)
    if whole < len(entries):
        raise _error(
            path, f"header says {len(entries)} frames, the file ends after {whole}; fetch it again"
        )


def _colour_space(frame: Any) -> str:
    return _COLOUR_SPACES.get(frame.colorspace, str(frame.colorspace))


class _Rgb:
    """Turns frames of PyAV into what is displayed, by the filters of `ffmpeg -pix_fmt rgb24`.

    That is swscale with SCALER_FLAGS, by the colour space and range of each frame (unspecified:
    BT.601, limited), without regard to transfer, chroma location and interlacing, and after the
    picture was turned.
    """

    def __init__(self, path: Path, rotation: int) -> None:
        self._path = path
        self._rotation = rotation
        self._kind: tuple[Any, ...] = ()

    def __call__(self, index: int, frame: Any) -> NDArray[np.uint8]:
        """The frame of this index: [h, w, 3]."""
        # Tags of no meaning here, whose reserved values swscale refuses.
        frame.color_trc = frame.color_primaries = _UNSPECIFIED
        size, pixels = f"{frame.width}x{frame.height}", frame.format.name
        kind = (size, pixels, int(frame.colorspace), int(frame.color_range))
        try:
            if kind != self._kind:
                self._graph, self._kind = _filters(*kind, self._rotation), kind
            self._graph.push(frame)
            return np.asarray(self._graph.pull().to_ndarray())
        except av.FFmpegError as error:
            raise _error(
                self._path,
                f"frame {index} cannot be turned into RGB by this FFmpeg (pixel format {pixels}, "
                f"colour space {_colour_space(frame)}): {error.strerror}",
            ) from error


def _filters(size: str, pixels: str, colour_space: int, colour_range: int, rotation: int) -> Any:
    graph = av.filter.Graph()
    graph.threads = 1
    source = graph.add(
        "buffer",
        video_size=size,
        pix_fmt=pixels,
        time_base="1/1",  # nobody asks for times
        colorspace=str(colour_space),
        range=str(colour_range),
    )
    turns = [graph.add(*turn) for turn in _TURNS[rotation]]
    rgb = [graph.add("format", "rgb24"), graph.add("buffersink")]
    graph.link_nodes(source, *turns, *rgb).configure()
    return graph


def _ticks_by_decoding(path: Path, pulse: Callable[[], None]) -> list[int]:
    """The time of each presented frame, as FFmpeg guesses it (best_effort_timestamp).

    The rule is guess_correct_pts of libavcodec/decode.c, which PyAV does not pass on.

    Raises:
        DecodeError: if a frame is damaged, or there is no time to begin with.
    """
    ticks: list[int] = []
    faults, last = [0, 0], [-(2**63), -(2**63)]
    for _, frame in _decoded(path, np.empty(0), has_pts=False, threads=1):
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
            raise _error(path, "its first frame carries no time")
        ticks.append(tick)
    return sorted(ticks)


def _decoded_frames(context: Any, packet: Any) -> list[Any]:
    """The one call by which PyAV decodes, so that decoded frames can be counted."""
    return list(context.decode(packet))


def _decoded(
    path: Path, pts_seconds: NDArray[np.float64], *, has_pts: bool, threads: int
) -> Iterator[tuple[int, Any]]:
    """Frames in order with their presented indices, by PyAV, until the first damaged one."""
    index = -1
    with _opened(path, threads=threads) as (container, stream):
        packets = (packet for packet, decodable in _packets(container, stream) if decodable)
        packet = None
        try:
            for packet in chain(packets, [None]):
                for frame in _decoded_frames(stream.codec_context, packet):
                    index += 1
                    if has_pts and frame.pts is not None:
                        seconds = _seconds(frame.pts, stream.time_base)
                        if seconds < pts_seconds[0]:  # left out by probe as well
                            index -= 1
                            continue
                        index = max(index, int(np.searchsorted(pts_seconds, seconds)))
                    if frame.is_corrupt:
                        raise _error(path, f"frame {index} is damaged")
                    yield index, frame
        except av.FFmpegError as error:
            index += 1
            if has_pts and packet is not None and packet.pts is not None:
                seconds = _seconds(packet.pts, stream.time_base)
                index = int(np.searchsorted(pts_seconds, seconds))
            raise _error(path, f"frame {index} is damaged: {error.strerror}") from error


def _pyav_frames(path: Path, probe: Probe, threads: int) -> Iterator[tuple[int, Any]]:
    """As `_decoded`, with results and errors that do not depend on the number of threads."""
    index = -1
    if threads > 1:
        # With frame threads PyAV reports damage late, or not at all among the last frames; what
        # is not in order here is left to one thread.
        try:
            for found, frame in _decoded(
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
    for found, frame in _decoded(path, probe.pts_seconds, has_pts=probe.has_pts, threads=1):
        if found > index:
            yield found, frame


Pictures = Generator[tuple[int, NDArray[np.uint8]], None, None]
"""For each wanted index, in order: the index of the frame that stands for it, and its RGB."""


def _pyav(path: Path, probe: Probe, wanted: NDArray[np.int64], threads: int) -> Pictures:
    rgb = _Rgb(path, probe.rotation)
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
        raise _error(path, "no frame can be decoded")
    shown, picture = last[0], rgb(*last)
    for _ in waiting:
        yield shown, picture


def _refuse_other_pixels(path: Path, decoder: str, probe: Probe) -> None:
    even = probe.width % 2 == 0 and probe.height % 2 == 0
    same = probe.pixel_format in _SAME_AT_ANY_SIZE
    same |= probe.pixel_format in _SAME_AT_EVEN_SIZES and even
    if not same or probe.interlaced or probe.codec not in _SAME_CODECS:
        scan = "interlaced" if probe.interlaced else "progressive"
        raise _error(
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
        raise _error(
            path,
            f"decord cannot be loaded ({in_words(error)}); `pip install decord` (macOS on arm64 "
            "has no wheel), or use the decoder pyav",
        ) from error
    if probe.video_streams > 1:
        raise _error(
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
        raise _error(
            path,
            f"decord cannot read frame {position + 1} of {len(probe.pts_seconds)}; use the decoder "
            "pyav",
        ) from error


def _torchcodec(path: Path, probe: Probe, wanted: NDArray[np.int64], threads: int) -> Pictures:
    _refuse_other_pixels(path, "torchcodec", probe)
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError) as error:
        raise _error(
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
        raise _error(
            path,
            f"torchcodec cannot read frame {index} of {len(probe.pts_seconds)}: the file is "
            f"damaged, or does not start at 0 s (it starts at {probe.pts_seconds[0]:.3f} s); use "
            "the decoder pyav",
        ) from error


def _other_times(path: Path, decoder: str, probe: Probe) -> DecodeError:
    return _error(
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
                    raise _error(
                        self.path,
                        f"frame {shown} has shape {picture.shape}, the video's first "
                        f"one {shape}; a video has one size",
                    )
                frames[given] = picture
                self.shortfall += int(shown != wanted[given])
                given += 1
            if given < len(wanted):
                raise _error(self.path, f"the decoder ended before frame {wanted[given]}")
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
        raise _error(
            path, f"wanted frames must increase and lie within [0, {frames}), got {wanted.tolist()}"
        )
    return Decoded(path, probe, wanted, chunk, DECODERS[decoder](path, probe, wanted, threads))


def encode(
    path: Path,
    frames: Iterable[NDArray[np.uint8]],
    *,
    rate: int | Fraction,
    crf: float,
    preset: str = "veryfast",
    pixel_format: str = "yuv420p",
    pts_seconds: Iterable[float] | None = None,
    options: dict[str, str] | None = None,
) -> None:
    """Write an H.264 mp4 by libx264; the same frames and options give the same bytes.

    Args:
        path: the file to write.
        frames: RGB [h, w, 3], h and w even, all of one size.
        rate: frames per second.
        crf: libx264's constant rate factor; 0 is lossless, 51 the worst.
        preset: libx264's preset.
        pixel_format: of the file, as FFmpeg names it.
        pts_seconds: a time for each frame, for a variable frame rate.
        options: further options of libx264 by FFmpeg's names, such as {"g": "12", "bf": "2"}.
    """
    clock = Fraction(1, 90_000) if pts_seconds is not None else 1 / Fraction(rate)
    ticks = (round(t / clock) for t in pts_seconds) if pts_seconds is not None else count()
    with av.open(str(path), "w", format="mp4", options={"fflags": "bitexact"}) as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.pix_fmt = pixel_format
        stream.time_base = stream.codec_context.time_base = clock
        # The number of threads changes what x264 writes.
        stream.options = {"crf": str(crf), "preset": preset, "threads": "1", **(options or {})}
        for tick, picture in zip(ticks, frames, strict=pts_seconds is not None):
            if not stream.codec_context.is_open:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = tick, clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
