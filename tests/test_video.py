"""Decoding finds the right frames, with the right colours, and says what is wrong with a file."""

import hashlib
import json
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vqbank.extractors.video import DECODERS, Probe, decode, encode, packets, probe
from vqbank.extractors.video.decoders import Pictures
from vqbank.store.errors import DecodeError, UnknownNameError

COUNT = 60
EVERYTHING = range(COUNT)
GOP = {"g": "12", "keyint_min": "12", "bf": "2", "b_strategy": "0", "sc_threshold": "0"}


def counting() -> Iterator[NDArray[np.uint8]]:
    """Frame i is flat grey 4 i."""
    for i in range(COUNT):
        yield np.full((48, 64, 3), 4 * i, np.uint8)


def noise(count: int, height: int, width: int) -> Iterator[NDArray[np.uint8]]:
    rng = np.random.default_rng(7)
    for _ in range(count):
        coarse = rng.integers(0, 256, (height // 2, width // 2, 3), np.uint8)
        yield coarse.repeat(2, axis=0).repeat(2, axis=1)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "counting.mp4"
    encode(path, counting(), rate=25, crf=4, options=GOP)
    return path


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packets large enough to be damaged."""
    path = tmp_path_factory.mktemp("video") / "busy.mp4"
    encode(path, noise(40, 96, 128), rate=25, crf=20, options=GOP)
    return path


def packets_of(source: Path, container: av.container.OutputContainer) -> Iterator[av.Packet]:
    """The packets of a clip, self-contained unless they go into another mp4 or Matroska file."""
    with av.open(source) as old:
        stream = old.streams.video[0]
        split = av.BitStreamFilterContext("h264_mp4toannexb", stream)
        whole = {"mp4", "matroska"} & {container.format.name}
        for packet in old.demux(stream):
            if packet.size:
                yield from [packet] if whole else split.filter(packet)


def remux(source: Path, target: Path, *, skip: int = 0, shift: int = 0, **options: str) -> Path:
    """Copy packets, leaving out the first, with times moved by a number of frames."""
    with av.open(source) as old, av.open(target, "w", options=options) as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        step = int(1 / (stream.average_rate * stream.time_base))
        for packet in list(packets_of(source, new))[skip:]:
            packet.pts, packet.dts = packet.pts + shift * step, packet.dts + shift * step
            packet.stream = copy
            new.mux(packet)
    return target


def stored(path: Path, codec: str, pixel_format: str, height: int, width: int) -> Path:
    """Noise, of any pixel format and size, by a codec that has them."""
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=25, width=width, height=height)
        stream.pix_fmt = pixel_format
        for picture in noise(3, height + 1, width + 1):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]))
            container.mux(stream.encode(frame.reformat(format=pixel_format)))
        container.mux(stream.encode(None))
    return path


def avi(path: Path, frames: Iterator[NDArray[np.uint8]]) -> Path:
    """H.264 with B-frames in a container that has no presentation times."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.options = {"crf": "4", **GOP}
        for picture in frames:
            if not stream.codec_context.is_open:
                stream.height, stream.width = picture.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode(None))
    return path


def pixels(path: Path, indices: range | list[int], *, decoder: str = "pyav", **options: int):
    """All wanted frames; skips the test where the decoder cannot be loaded."""
    try:
        chunks = list(decode(path, probe(path), indices, decoder=decoder, **options))
    except DecodeError as error:
        if "cannot be loaded" in str(error):
            pytest.skip(str(error))
        raise
    assert [i for index, _ in chunks for i in index] == list(indices)
    return np.concatenate([frames for _, frames in chunks])


def plainly(path: Path) -> NDArray[np.uint8]:
    """All frames as FFmpeg's own filters turn them into RGB."""
    graph = av.filter.Graph()
    with av.open(path) as container:
        source = graph.add_buffer(template=container.streams.video[0])
        graph.link_nodes(source, graph.add("format", "rgb24"), graph.add("buffersink")).configure()
        frames = []
        for frame in container.decode(video=0):
            graph.push(frame)
            frames.append(graph.pull().to_ndarray())
    return np.stack(frames)


def greys(frames: NDArray[np.uint8]) -> list[int]:
    return np.round(frames.mean(axis=(1, 2, 3)) / 4).astype(int).tolist()


def damaged(source: Path, target: Path, number: int) -> int:
    """Zero the start of the packet that is `number` in decoding order; its presented index."""
    with av.open(source) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        positions = [(p.pos, p.pts) for p in packets]
    content = bytearray(source.read_bytes())
    position, pts = positions[number]
    content[position : position + 16] = bytes(16)
    target.write_bytes(content)
    return sorted(pts for _, pts in positions).index(pts)


# Which frames


def test_the_counting_clip_has_reordered_frames(clip: Path) -> None:
    with av.open(clip) as container:
        pts = [p.pts for p in container.demux(video=0) if p.size]
    assert any(later < earlier for earlier, later in pairwise(pts))
    assert greys(pixels(clip, EVERYTHING)) == list(EVERYTHING)


@settings(max_examples=40, deadline=None)
@given(wanted=st.sets(st.integers(0, COUNT - 1)), chunk=st.integers(1, 2 * COUNT))
def test_any_wanted_frames_come_in_order_in_any_chunks(
    clip: Path, wanted: set[int], chunk: int
) -> None:
    chunks = list(decode(clip, probe(clip), sorted(wanted), chunk=chunk))
    assert all(len(index) == len(frames) <= chunk for index, frames in chunks)
    assert [i for index, _ in chunks for i in index] == sorted(wanted)
    assert [g for _, frames in chunks for g in greys(frames)] == sorted(wanted)


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_finds_frames_by_index(clip: Path, decoder: str) -> None:
    wanted = [0, 1, 7, 30, 31, 59]
    assert greys(pixels(clip, wanted, decoder=decoder, chunk=4)) == wanted


def test_nothing_is_decoded_after_the_last_wanted_frame(busy: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    index = damaged(busy, broken, 30)
    assert np.array_equal(pixels(broken, range(index - 4)), plainly(busy)[: index - 4])


@pytest.mark.parametrize("threads", [1, 3])
def test_every_frame_is_decoded_once(
    busy: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    decoded = []

    def counted(context: av.VideoCodecContext, packet: av.Packet | None) -> list[av.VideoFrame]:
        frames = decoded_frames(context, packet)
        decoded.extend(frame.pts for frame in frames)
        return frames

    decoded_frames = packets.decoded_frames
    monkeypatch.setattr(packets, "decoded_frames", counted)
    told = probe(busy)
    assert len(decoded) == 1
    assert sum(len(index) for index, _ in decode(busy, told, range(40), threads=threads)) == 40
    assert len(decoded) == 1 + 40
    assert len(set(decoded)) == 40


@pytest.mark.parametrize("wanted", [[3, 3], [4, 2], [-1], [COUNT]])
def test_indices_that_cannot_be_are_refused(clip: Path, wanted: list[int]) -> None:
    with pytest.raises(DecodeError, match=r"increase and lie within \[0, 60\)"):
        decode(clip, probe(clip), wanted)


def test_an_unknown_decoder_is_refused_with_the_known_ones(clip: Path) -> None:
    with pytest.raises(UnknownNameError, match="Known: decord, pyav, torchcodec"):
        decode(clip, probe(clip), [0], decoder="opencv")


# Which colours


@pytest.mark.parametrize(
    ("pixel_format", "options"),
    [
        ("yuv420p", {}),
        ("yuvj420p", {}),
        ("yuv444p", {}),
        ("yuv420p", {"colorspace": "bt709", "color_range": "tv"}),
        ("yuvj420p", {"colorspace": "bt709"}),
    ],
)
@pytest.mark.parametrize("decoder", DECODERS)
def test_decoders_give_the_same_bits_on_8_bit_video(
    tmp_path: Path, decoder: str, pixel_format: str, options: dict[str, str]
) -> None:
    path = tmp_path / "coloured.mp4"
    encode(path, noise(6, 54, 74), rate=25, crf=20, pixel_format=pixel_format, options=options)
    assert np.array_equal(pixels(path, range(6), decoder=decoder), plainly(path))
    told = probe(path)
    assert (told.width, told.height, told.pixel_format) == (74, 54, pixel_format)
    assert told.colour_space == options.get("colorspace", "unspecified")


SAME_AT_ANY_SIZE = {"yuv444p", "yuvj444p", "gray", "gbrp"}
SAME_AT_EVEN_SIZES = {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p"}
CODECS = {
    "ffv1": (
        *("yuv420p", "yuv422p", "yuv444p", "gray", "yuv440p", "yuv411p", "yuv410p", "yuva420p"),
        *("bgr0", "yuv420p10le", "yuv422p10le", "yuv444p10le", "gbrp10le", "gray10le", "gray16le"),
        *("yuv420p12le", "yuv444p12le", "yuv444p16le"),
    ),
    "mjpeg": ("yuvj420p", "yuvj422p", "yuvj444p"),
    "libvpx-vp9": ("yuv420p", "yuv422p", "yuv440p", "yuv444p", "gbrp"),
    "rawvideo": ("nv12", "uyvy422", "rgb24"),
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_gives_the_bits_of_pyav_or_refuses(
    tmp_path: Path, decoder: str, codec: str
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV was built without {codec}")
    for pixel_format in CODECS[codec]:
        for height, width in [(54, 74), (6, 34), (53, 74), (54, 75), (53, 75)]:
            path = stored(tmp_path / "stored.nut", codec, pixel_format, height, width)
            told = probe(path)
            assert (told.pixel_format, told.height, told.width) == (pixel_format, height, width)
            even = height % 2 == width % 2 == 0
            same = SAME_AT_ANY_SIZE | (SAME_AT_EVEN_SIZES if even else set())
            if decoder == "pyav" or pixel_format in same:
                assert np.array_equal(pixels(path, range(3), decoder=decoder), plainly(path))
                continue
            reason = rf"{decoder} may give other .* got progressive {pixel_format} of "
            with pytest.raises(DecodeError, match=rf"{reason}{width}x{height} by .*; use the"):
                list(decode(path, told, range(3), decoder=decoder))


SAME_CODECS = {
    "libx264": "mp4", "libx265": "mp4", "libvpx": "webm", "libvpx-vp9": "webm", "libsvtav1": "webm",
    "ffv1": "mkv", "mjpeg": "mkv", "mpeg1video": "mkv", "mpeg2video": "mkv",
}  # fmt: skip
OTHER_CODECS = {
    "mpeg4": "mp4", "wmv1": "wmv", "wmv2": "wmv", "msmpeg4": "avi", "msmpeg4v2": "avi",
    "h263p": "nut", "flv": "flv", "huffyuv": "avi", "utvideo": "avi", "snow": "mkv", "png": "mov",
    "prores": "mov", "dnxhd": "mov", "svq1": "mov",
}  # fmt: skip
OPTIONS = {"dnxhd": {"profile": "dnxhr_hq"}, "libx265": {"x265-params": "log-level=none"}}
PIXELS = {
    "mjpeg": "yuvj420p", "huffyuv": "yuv422p", "png": "rgb24", "prores": "yuv422p10le",
    "dnxhd": "yuv422p", "svq1": "yuv410p",
}  # fmt: skip


def compressed(path: Path, codec: str, bit_rate: int) -> Path:
    """Moving noise by a lossy codec: what differs in one frame adds up in the next."""
    height, width = (144, 256) if codec == "dnxhd" else (80, 96)
    still, fresh = noise(1, 96, 160), noise(24, height, width)
    (scene,) = still
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=25, width=width, height=height)
        stream.pix_fmt = PIXELS.get(codec, "yuv420p")
        stream.bit_rate, stream.codec_context.gop_size = bit_rate, 60
        stream.options = {"strict": "-2", **OPTIONS.get(codec, {})}
        for shift, picture in enumerate(fresh):
            picture[8:72, 8:88] = scene[shift : shift + 64, 2 * shift : 2 * shift + 80]
            frame = av.VideoFrame.from_ndarray(picture).reformat(format=stream.pix_fmt)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("codec", SAME_CODECS | OTHER_CODECS)
def test_other_decoders_give_the_bits_of_pyav_for_some_codecs_and_refuse_others(
    tmp_path: Path, codec: str
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV was built without {codec}")
    for bit_rate in (200_000, 20_000_000):
        ending = (SAME_CODECS | OTHER_CODECS)[codec]
        path = compressed(tmp_path / f"compressed.{ending}", codec, bit_rate)
        told, expected = probe(path), pixels(path, range(24))
        assert np.array_equal(expected, plainly(path))
        for decoder in ("decord", "torchcodec"):
            if codec in OTHER_CODECS:
                with pytest.raises(DecodeError, match=rf"by {told.codec}; use the decoder pyav"):
                    list(decode(path, told, range(24), decoder=decoder))
                continue
            if (decoder, codec) == ("decord", "libsvtav1"):  # its FFmpeg has no decoder
                with pytest.raises(DecodeError, match=r"cannot (read frame 0|be loaded)"):
                    list(decode(path, told, range(24), decoder=decoder))
                continue
            assert np.array_equal(pixels(path, range(24), decoder=decoder), expected)


@pytest.mark.parametrize("decoder", DECODERS)
def test_interlaced_video_is_left_to_pyav(tmp_path: Path, decoder: str) -> None:
    path, options = tmp_path / "fields.mp4", {"flags": "+ildct+ilme", "x264-params": "interlaced=1"}
    encode(path, noise(6, 96, 128), rate=25, crf=20, options=options)
    assert probe(path).interlaced
    if decoder == "pyav":
        assert np.array_equal(pixels(path, range(6)), plainly(path))
        return
    with pytest.raises(DecodeError, match=r"got interlaced yuv420p of 128x96 by h264; use"):
        list(decode(path, probe(path), range(6), decoder=decoder))


def test_colours_without_a_conversion_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ycgco.mp4"
    encode(path, noise(3, 48, 64), rate=25, crf=20, options={"colorspace": "ycgco"})
    with pytest.raises(DecodeError, match=r"ycgco\.mp4: frame 0 cannot be .* colour space ycgco"):
        probe(path)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_real_video_has_the_known_pixels(shared_data: Path, decoder: str) -> None:
    path, golden = shared_data / "clips/bigbuckbunny.mp4", shared_data / "golden/decoders.json"
    known = json.loads(golden.read_text())["clips"]["bigbuckbunny"]["decoders"][decoder]
    for index, frame in zip([0, 10, 59], pixels(path, [0, 10, 59], decoder=decoder), strict=True):
        assert hashlib.sha256(frame.tobytes()).hexdigest() == known[f"sha256_{index}"]


@pytest.mark.parametrize("name", ["bigbuckbunny", "bikes"])
def test_healthy_real_videos_are_read_as_by_plain_pyav(shared_data: Path, name: str) -> None:
    path = shared_data / f"clips/{name}.mp4"
    with av.open(path) as container:
        expected = [hashlib.sha256(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    decoded = decode(path, probe(path), range(len(expected)), threads=2)
    found = [hashlib.sha256(frame) for _, frames in decoded for frame in frames]
    assert [f.digest() for f in found] == [e.digest() for e in expected]
    assert decoded.shortfall == 0


def test_10_bit_video_is_read(tmp_path: Path) -> None:
    path = tmp_path / "deep.mp4"
    encode(path, counting(), rate=25, crf=4, pixel_format="yuv420p10le", options=GOP)
    assert probe(path).pixel_format == "yuv420p10le"
    means = pixels(path, EVERYTHING).mean(axis=(1, 2, 3))
    assert np.all(np.abs(means - 4 * np.arange(COUNT)) <= 3)  # swscale's rounding


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_do_not_change_pixels(busy: Path, threads: int) -> None:
    assert np.array_equal(pixels(busy, range(40), threads=threads), plainly(busy))


@pytest.mark.parametrize("rotation", [90, 180, 270])
@pytest.mark.parametrize("decoder", DECODERS)
def test_the_rotation_tag_is_applied(tmp_path: Path, decoder: str, rotation: int) -> None:
    path = tmp_path / "turned.mp4"
    upright = tmp_path / "upright.mp4"
    encode(upright, noise(4, 96, 128), rate=25, crf=20)
    with av.open(upright) as old, av.open(path, "w") as new:
        copy = new.add_stream_from_template(old.streams.video[0])
        copy.set_display_rotation(rotation)
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = copy
                new.mux(packet)
    told = probe(path)
    assert told.rotation == rotation
    assert (told.width, told.height) == ((128, 96) if rotation == 180 else (96, 128))
    expected = np.rot90(plainly(upright), rotation // 90, axes=(1, 2))
    assert np.array_equal(pixels(path, range(4), decoder=decoder), expected)


def with_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """A copy of an mp4 whose track header shows pixel (x, y) at (a x + c y, b x + d y)."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44  # ISO/IEC 14496-12, section 8.3.2
    one, unit = 1 << 16, 1 << 30
    matrix = (a * one, b * one, 0, c * one, d * one, 0, 0, 0, unit)
    content[start : start + 36] = struct.pack(">9i", *matrix)
    changed = path.with_name("matrix.mp4")
    changed.write_bytes(content)
    return changed


MATRICES = {
    (1, 0, 0, -1): (0, lambda frames: frames[:, ::-1]),
    (-1, 0, 0, 1): (180, lambda frames: frames[:, :, ::-1]),
    (0, 1, 1, 0): (270, lambda frames: frames.swapaxes(1, 2)),
    (0, -1, -1, 0): (90, lambda frames: frames[:, ::-1, ::-1].swapaxes(1, 2)),
}
"""Mirroring display matrices; the rotation that FFmpeg reads in each, and what its command shows,
without the shift by which players bring the picture back onto the screen."""


@pytest.mark.parametrize("matrix", MATRICES, ids=str)
def test_a_display_matrix_that_mirrors_is_followed(tmp_path: Path, matrix: tuple[int, ...]) -> None:
    """As selfie cameras write it."""
    upright = tmp_path / "upright.mp4"
    encode(upright, noise(4, 96, 128), rate=25, crf=20)
    path = with_matrix(upright, *matrix)
    rotation, shown = MATRICES[matrix]

    told = probe(path)

    assert (told.rotation, told.mirrored) == (rotation, True)
    assert np.array_equal(pixels(path, range(4)), shown(plainly(upright)))
    for decoder in DECODERS.keys() - {"pyav"}:
        with pytest.raises(DecodeError, match="does not mirror pictures"):
            pixels(path, range(4), decoder=decoder)


@pytest.mark.parametrize("matrix", [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)])
def test_a_display_matrix_that_only_turns_does_not_mirror(
    tmp_path: Path, matrix: tuple[int, ...]
) -> None:
    upright = tmp_path / "upright.mp4"
    encode(upright, noise(2, 96, 128), rate=25, crf=20)
    told = probe(with_matrix(upright, *matrix))
    assert not told.mirrored
    turns = told.rotation // 90
    expected = np.rot90(plainly(upright), turns, axes=(1, 2))
    assert np.array_equal(pixels(tmp_path / "matrix.mp4", range(2)), expected)


# Times and containers


def test_a_probe_tells_what_the_container_says(clip: Path) -> None:
    told = probe(clip)
    assert np.allclose(told.pts_seconds, np.arange(COUNT) / 25, atol=1e-9)
    assert json.loads(json.dumps(told.record())) == {
        "frames": 60,
        "duration_seconds": pytest.approx(2.4),
        "header_frames": 60,
        "rate": 25.0,
        "width": 64,
        "height": 48,
        "rotation": 0,
        "mirrored": False,
        "codec": "h264",
        "pixel_format": "yuv420p",
        "colour_space": "unspecified",
        "colour_range": "unspecified",
        "interlaced": False,
        "variable_frame_rate": False,
        "discarded_packets": 0,
        "stream": 0,
        "video_streams": 1,
        "colour_transfer": "unspecified",
        "counted_by_decoding": False,
    }


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_variable_frame_rate_keeps_indices_and_times(tmp_path: Path, decoder: str) -> None:
    times = np.cumsum([0, *([0.04, 0.04, 0.12] * 20)])[:COUNT]
    path = tmp_path / "vfr.mp4"
    encode(path, counting(), rate=25, crf=4, pts_seconds=times, options=GOP)
    told = probe(path)
    assert told.variable_frame_rate
    assert np.allclose(told.pts_seconds, times, atol=1e-4)
    assert greys(pixels(path, [0, 10, 33, 59], decoder=decoder)) == [0, 10, 33, 59]


def test_rounding_of_times_is_no_variable_rate(clip: Path, tmp_path: Path) -> None:
    ntsc = tmp_path / "ntsc.mp4"
    encode(ntsc, counting(), rate=Fraction(30_000, 1001), crf=4, options=GOP)
    told = probe(remux(ntsc, tmp_path / "ntsc.mkv"))  # Matroska rounds to milliseconds
    assert len(set(np.round(np.diff(told.pts_seconds), 6))) == 2
    assert not told.variable_frame_rate


@pytest.mark.parametrize("decoder", DECODERS)
def test_an_edit_list_is_followed_or_refused(clip: Path, tmp_path: Path, decoder: str) -> None:
    path = remux(clip, tmp_path / "edited.mp4", shift=-20, avoid_negative_ts="disabled")
    told = probe(path)
    assert told.pts_seconds[0] == 0
    # Frames 12 to 19 are needed to decode, and not shown.
    assert (len(told.pts_seconds), told.header_frames, told.discarded_packets) == (40, 60, 8)
    if decoder == "decord":
        with pytest.raises(DecodeError, match=r"edited\.mp4: decord (sees other|cannot be loaded)"):
            list(decode(path, told, [0, 39], decoder=decoder))
    else:
        assert greys(pixels(path, range(40), decoder=decoder)) == list(range(20, 60))


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_transport_stream_keeps_its_start_or_is_refused(
    clip: Path, tmp_path: Path, decoder: str
) -> None:
    path = remux(clip, tmp_path / "start.ts", shift=30)
    told = probe(path)
    assert told.header_frames == 0
    assert told.pts_seconds[0] > 1
    assert np.allclose(np.diff(told.pts_seconds), 0.04)
    if decoder == "pyav":
        assert greys(pixels(path, EVERYTHING)) == list(EVERYTHING)
    else:
        with pytest.raises(DecodeError, match=rf"start\.ts: {decoder} (sees|cannot)"):
            list(decode(path, told, EVERYTHING, decoder=decoder))


def test_a_stream_that_starts_between_key_frames_begins_at_the_next_one(
    clip: Path, tmp_path: Path
) -> None:
    path = remux(clip, tmp_path / "tail.ts", skip=5)
    told = probe(path)
    assert (len(told.pts_seconds), told.discarded_packets) == (48, 7)
    assert greys(pixels(path, range(48))) == list(range(12, 60))


def test_frames_are_counted_where_the_container_has_no_times(tmp_path: Path) -> None:
    path = avi(tmp_path / "timeless.avi", counting())
    told = probe(path)
    assert not told.has_pts
    assert np.allclose(np.diff(told.pts_seconds), 0.04)
    assert greys(pixels(path, [0, 5, 33, 59])) == [0, 5, 33, 59]


def announced(path: Path, frames: int) -> Path:
    """Write a number of frames into the header of an AVI file."""
    content = bytearray(path.read_bytes())
    length = content.index(b"strh") + 8 + 32  # dwLength of the stream header
    content[length : length + 4] = frames.to_bytes(4, "little")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("frames", [1, 100, 1120])
def test_an_avi_header_that_lies_is_recorded_and_not_believed(tmp_path: Path, frames: int) -> None:
    path = announced(avi(tmp_path / "liar.avi", counting()), frames)
    told = probe(path)
    assert told.record()["header_frames"] == frames
    assert told.record()["frames"] == COUNT
    assert greys(pixels(path, EVERYTHING)) == list(EVERYTHING)


@pytest.mark.parametrize("frames", [1121, 2**31 - 1, 2**32 - 1])
def test_a_header_that_cannot_be_true_is_refused(tmp_path: Path, frames: int) -> None:
    path = announced(avi(tmp_path / "liar.avi", counting()), frames)
    with pytest.raises(DecodeError, match=rf"says {frames} frames, the file holds 60; fetch it"):
        probe(path)


def test_frames_that_vp8_never_shows_are_not_counted(clip: Path, tmp_path: Path) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("libvpx makes such frames in two passes only: needs the ffmpeg program")
    path, moving = tmp_path / "hidden.webm", tmp_path / "moving.mp4"
    scene = np.kron(np.random.default_rng(1).integers(0, 256, (24, 200, 3)), np.ones((4, 4, 1)))
    pans = (scene[:, 4 * i : 4 * i + 128].astype(np.uint8) for i in range(90))
    encode(moving, pans, rate=25, crf=10)
    for step in "12":
        command = ["ffmpeg", "-v", "error", "-y", "-i", moving, "-c:v", "libvpx", "-b:v", "200k"]
        command += ["-auto-alt-ref", "1", "-lag-in-frames", "25", "-pass", step]
        command += ["-passlogfile", tmp_path / "log", path]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("this ffmpeg has no libvpx")
    told = probe(path)
    assert told.discarded_packets > 0
    decoded = decode(path, told, range(90))
    assert sum(len(index) for index, _ in decoded) == len(told.pts_seconds) == 90
    assert decoded.shortfall == 0


# What is wrong


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("first.mp4", {"movflags": "faststart"}, "header says 40 frames, the file ends after"),
        ("last.mp4", {}, "is no video that FFmpeg can open"),
        ("half.mkv", {}, r"header says 1\.60 s, the file ends after 0\."),
        ("half.ts", {}, r"frame \d+ is damaged"),
        ("half.avi", {}, r"frame \d+ of \d+ is cut off"),
    ],
)
def test_half_a_file_is_refused(
    busy: Path, tmp_path: Path, name: str, options: dict[str, str], message: str
) -> None:
    if name.endswith("avi"):
        whole = avi(tmp_path / name, noise(40, 96, 128))
    else:
        whole = remux(busy, tmp_path / name, **options)
    assert len(pixels(whole, range(40))) == 40
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(DecodeError, match=rf"{name}: .*{message}"):
        list(decode(whole, probe(whole), [0, len(probe(whole).pts_seconds) - 1]))


@pytest.mark.parametrize("number", [1, 20, 37, 38, 39])
def test_damage_is_refused_with_its_frame_whatever_the_threads(
    busy: Path, tmp_path: Path, number: int
) -> None:
    broken = tmp_path / "broken.mp4"
    index = damaged(busy, broken, number)
    told = probe(busy)
    for threads in (1, 1, 2, 4):
        with pytest.raises(DecodeError, match=rf"broken\.mp4: frame {index} is damaged"):
            list(decode(broken, told, range(40), threads=threads))


def test_decord_names_the_frame_at_which_it_stops(busy: Path, tmp_path: Path) -> None:
    pytest.importorskip("decord")
    broken, told, chunks = tmp_path / "broken.mp4", probe(busy), []
    damaged(busy, broken, 20)
    with pytest.raises(DecodeError) as caught:
        chunks.extend(decode(broken, told, range(40), decoder="decord", chunk=7))
    seen = sum(len(index) for index, _ in chunks)
    assert 0 < seen < 40
    assert f"broken.mp4: decord cannot read frame {seen} of 40; use" in str(caught.value)


def test_a_decoder_that_ends_early_leaves_no_row_unfilled(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def five(path: Path, probe: Probe, wanted: NDArray[np.int64], threads: int) -> Pictures:
        yield from islice(DECODERS["pyav"](path, probe, wanted, threads), 5)

    monkeypatch.setitem(DECODERS, "five", five)
    chunks = []
    with pytest.raises(DecodeError, match=r"counting\.mp4: the decoder ended before frame 15"):
        chunks.extend(decode(clip, probe(clip), range(10, 50), decoder="five", chunk=4))
    assert [i for index, _ in chunks for i in index] == list(range(10, 15))
    assert [g for _, frames in chunks for g in greys(frames)] == list(range(10, 15))


def test_damage_that_only_a_checksum_shows_is_refused(tmp_path: Path) -> None:
    if "libx265" not in av.codecs_available:
        pytest.skip("this PyAV was built without libx265")
    path = tmp_path / "hashed.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("libx265", rate=25, width=128, height=96)
        stream.options = {"x265-params": "hash=1:log-level=none:bframes=0", "preset": "ultrafast"}
        for picture in noise(12, 96, 128):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode(None))
    told = probe(path)
    assert len(pixels(path, range(12))) == 12
    with av.open(path) as container:
        packet = [p for p in container.demux(video=0) if p.size][5]
    content = bytearray(path.read_bytes())
    content[packet.pos + packet.size // 2] ^= 0xFF
    path.write_bytes(content)
    assert len(plainly(path)) == 12  # FFmpeg's default says nothing
    with pytest.raises(DecodeError, match=r"hashed\.mp4: frame 5 is damaged"):
        list(decode(path, told, range(12)))


def test_frames_missing_at_a_clean_end_repeat_the_last_one(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.mp4"
    with av.open(clip) as old, av.open(path, "w") as new:
        copy = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                last = packet.dts
                packet.stream = copy
                new.mux(packet)
        for extra in range(1, 4):
            empty = av.Packet(b"\0\0\0\1\x0a")  # one NAL unit: end of sequence
            empty.stream, empty.time_base = copy, old.streams.video[0].time_base
            empty.dts = last + extra * 512
            empty.pts = empty.dts + 1024
            new.mux(empty)
    told = probe(path)
    assert (len(told.pts_seconds), told.header_frames) == (63, 63)
    for threads in (1, 3):
        decoded = decode(path, told, [58, 59, 60, 62], chunk=3, threads=threads)
        assert [g for _, frames in decoded for g in greys(frames)] == [58, 59, 59, 59]
        assert decoded.shortfall == 2


def test_a_size_that_changes_is_refused_with_its_frame(tmp_path: Path) -> None:
    path, parts = tmp_path / "grows.ts", [tmp_path / "small.mp4", tmp_path / "large.mp4"]
    for part, (height, width) in zip(parts, [(48, 64), (64, 96)], strict=True):
        encode(part, noise(10, height, width), rate=25, crf=20)
    with av.open(parts[0]) as old, av.open(path, "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, part in enumerate(parts):
            for packet in packets_of(part, new):
                later = int(number * Fraction(10, 25) / packet.time_base)
                packet.pts, packet.dts = packet.pts + later, packet.dts + later
                packet.stream = stream
                new.mux(packet)
    told = probe(path)
    assert len(told.pts_seconds) == 20
    with pytest.raises(
        DecodeError, match=r"grows\.ts: frame 10 has shape \(64, 96, 3\), the video's first"
    ):
        list(decode(path, told, range(20)))


def audio(path: Path, *, cover: bool) -> None:
    with av.open(path, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        if cover:
            picture = container.add_stream("mjpeg")
            picture.width, picture.height, picture.pix_fmt = 32, 32, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
            blank = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
            jpeg = [*picture.encode(blank), *picture.encode(None)]
        for i in range(10):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 8000, 1024 * i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if cover:
            container.mux(jpeg)


def test_files_that_are_no_video_are_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "page.mp4").write_text("<!DOCTYPE html><title>404</title>not found\n" * 50)
    (tmp_path / "folder.mp4").mkdir()
    audio(tmp_path / "sound.m4a", cover=False)
    audio(tmp_path / "album.m4a", cover=True)
    with av.open(tmp_path / "album.m4a") as container:
        assert len(container.streams.video) == 1
    reasons = {
        "missing.mp4": "cannot be read: No such file",
        "empty.mp4": "the file is empty",
        "page.mp4": "is no video that FFmpeg can open",
        "folder.mp4": "the folder has no numbered pictures",
        "sound.m4a": "has no video stream",
        "album.m4a": "has no video stream",
    }
    for name, reason in reasons.items():
        with pytest.raises(DecodeError) as caught:
            probe(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: {reason}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a\0b.mp4", r"a\x00b.mp4: no file can have this name: embedded null byte"),
        ("a\nb.mp4", r"a\nb.mp4: cannot be read: No such file or directory"),
        ("é" * 300, "é: cannot be read: File name too long"),
    ],
)
def test_impossible_names_are_refused_in_one_line(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(DecodeError) as caught:
        probe(tmp_path / name)
    assert str(caught.value).endswith(message)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_a_file_without_permission_is_named(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "secret.mp4"
    path.write_bytes(clip.read_bytes())
    path.chmod(0)
    with pytest.raises(DecodeError, match=r"secret\.mp4: cannot be read: Permission denied"):
        probe(path)


def test_frames_without_any_times_are_refused_with_a_way_out(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match=r"ffmpeg -i raw\.h264 -c copy raw\.mp4"):
        probe(remux(clip, tmp_path / "raw.h264"))


def test_a_colon_in_a_name_is_no_protocol(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "take:1.mp4"
    path.write_bytes(clip.read_bytes())
    assert len(probe(path).pts_seconds) == COUNT


@pytest.mark.parametrize("decoder", DECODERS)
def test_nothing_is_written_to_the_terminal(
    busy: Path, tmp_path: Path, decoder: str, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.mp4"
    damaged(busy, broken, 20)
    for path in (busy, broken):
        try:
            pixels(path, range(40), decoder=decoder)
        except DecodeError:
            assert path == broken
    assert capfd.readouterr() == ("", "")


# Writing


def test_the_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        encode(tmp_path / name, noise(8, 48, 64), rate=25, crf=20)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    encode(tmp_path / "c.mp4", noise(8, 48, 64), rate=25, crf=40)
    assert (tmp_path / "c.mp4").stat().st_size < (tmp_path / "a.mp4").stat().st_size


def test_a_probe_of_one_frame_has_a_duration(tmp_path: Path) -> None:
    path = tmp_path / "one.mp4"
    encode(path, noise(1, 48, 64), rate=25, crf=20)
    told: Probe = probe(path)
    assert len(told.pts_seconds) == 1
    assert told.record()["duration_seconds"] == pytest.approx(0.04)
    assert not told.variable_frame_rate
