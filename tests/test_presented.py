"""Frames are those that a decoder presents, at FFmpeg's times, of the stream that FFmpeg takes."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vqbank.extractors.video import Probe, decode, encode, packets, probe
from vqbank.extractors.video.shown import shown_in
from vqbank.store.errors import DecodeError

CASES = Path(__file__).parent / "data" / "cases"


def presented(path: Path) -> int:
    """By plain decoding."""
    with av.open(path) as container:
        return sum(1 for _ in container.decode(video=0))


def decoded(path: Path, told: Probe, *, decoder: str = "pyav") -> np.ndarray:
    frames = decode(path, told, range(len(told.pts_seconds)), decoder=decoder)
    pictures = np.concatenate([chunk for _, chunk in frames])
    assert frames.shortfall == 0
    return pictures


def moving(count: int, height: int = 96, width: int = 128) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (height // 4, width + 32, 3), np.uint8)
    scene = coarse.repeat(4, axis=0).repeat(4, axis=1)
    return [scene[:, 4 * i % 500 : 4 * i % 500 + width] for i in range(count)]


def by_codec(path: Path, codec: str, count: int, **options: str) -> Path:
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=25, height=96, width=128)
        stream.pix_fmt, stream.options = "yuv420p", options
        for picture in moving(count):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def refiltered(source: Path, target: Path, bitstream_filter: str) -> int:
    """Copy packets through a bitstream filter, one tick apart; how many there are."""
    with av.open(source) as old, av.open(target, "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream, opaque=True)
        through = av.BitStreamFilterContext(bitstream_filter, stream)
        count = 0
        for packet in old.demux(stream):
            for one in through.filter(packet if packet.size else None):
                one.pts, one.dts, one.duration = count, count, 1
                one.stream, one.time_base = copy, Fraction(1, 25)
                new.mux(one)
                count += 1
    return count


# Pictures that are never shown


def test_vp9_frames_that_are_packets_of_their_own_and_never_shown_do_not_count() -> None:
    told = probe(CASES / "vp9_hidden_frames.nut")
    assert (len(told.pts_seconds), told.discarded_packets) == (90, 7)
    assert not told.counted_by_decoding
    assert not told.variable_frame_rate
    assert np.allclose(told.pts_seconds, np.arange(90) / 30, atol=1e-3)
    decoded(CASES / "vp9_hidden_frames.nut", told)


def test_vp9_frames_that_are_never_shown_within_a_packet_do_not_hide_it(tmp_path: Path) -> None:
    path = tmp_path / "superframes.mkv"
    assert refiltered(CASES / "vp9_hidden_frames.nut", path, "vp9_superframe") == 90
    told = probe(path)
    assert (len(told.pts_seconds), told.discarded_packets) == (90, 0)


def test_av1_frames_that_are_never_shown_do_not_count(tmp_path: Path) -> None:
    if not {"libsvtav1", "libdav1d"} <= av.codecs_available:
        pytest.skip("this PyAV was built without AV1")
    whole, split = tmp_path / "whole.mkv", tmp_path / "split.nut"
    by_codec(whole, "libsvtav1", 24, preset="12")
    packets = refiltered(whole, split, "av1_frame_split")
    assert packets > 24 == presented(split)
    told = probe(split)
    assert (len(told.pts_seconds), told.discarded_packets) == (24, packets - 24)
    assert np.array_equal(decoded(split, told), decoded(whole, probe(whole)))


@pytest.mark.parametrize(
    ("codec", "data", "shown"),
    [
        ("vp8", "10 00", 1),
        ("vp8", "00 00", 0),
        ("vp9", "82 49", 1),  # a shown key frame of profile 0
        ("vp9", "84 00", 0),  # a hidden frame
        ("vp9", "86 00", 1),
        ("vp9", "88", 1),  # an existing frame is shown, in one byte
        ("vp9", "b2 00", 0),  # profile 3 has one bit more
        ("vp9", "b3 00", 1),
        ("vp9", "b4", 1),
        ("vp9", "84 00 86 00 c1 02 02 c1", 1),  # a superframe: hidden, shown
        ("vp9", "86 00 86 00 c1 02 02 c1", 2),
        ("vp9", "84 00 c1 02 02 c0", 0),  # no index, although the last byte is like one
        ("av1", "12 00 32 01 10", 1),  # temporal delimiter, frame
        ("av1", "12 00 32 01 00", 0),
        ("av1", "12 00 1a 01 80", 1),  # header of an existing frame
        ("av1", "32 01 00 32 81 00 10", 1),  # two frames, a length of two bytes
        ("av1", "30 10", 1),  # without a length
        ("av1", "36 00 01 10", 1),  # with an extension
        ("av1", "12 00 7a 02 ff ff", 0),  # padding
    ],
)
def test_headers_tell_how_many_pictures_a_packet_shows(codec: str, data: str, shown: int) -> None:
    assert shown_in(codec, av.Packet(bytes.fromhex(data))) == shown


def test_mpeg4_pictures_that_were_left_out_are_found_by_decoding(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.avi", tmp_path / "dropped.avi"
    by_codec(whole, "mpeg4", 30)
    with av.open(whole) as old, av.open(path, "w") as new:
        copy = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(p for p in old.demux(video=0) if p.size):
            kept = packet
            if number in (7, 8, 20):  # P, no modulo, 5 bits of time increment, vop_coded is 0
                bits = f"01_0_1_{number % 25:05b}_1_0_01111"
                kept = av.Packet(b"\0\0\1\xb6" + int(bits.replace("_", ""), 2).to_bytes(2, "big"))
                kept.pts, kept.dts, kept.time_base = packet.pts, packet.dts, packet.time_base
            kept.stream = copy
            new.mux(kept)
    assert presented(path) == 27
    told = probe(path)
    assert told.counted_by_decoding
    assert told.record()["counted_by_decoding"]
    expected = np.delete(np.arange(30), [7, 8, 20]) / 25
    assert np.allclose(told.pts_seconds, expected)
    assert len(decoded(path, told)) == 27


def test_fields_of_broadcast_video_are_left_to_the_decoder(tmp_path: Path) -> None:
    path, options = tmp_path / "fields.ts", {"x264-params": "interlaced=1", "preset": "ultrafast"}
    by_codec(path, "libx264", 12, flags="+ildct+ilme", **options)
    told = probe(path)
    assert told.interlaced
    assert told.counted_by_decoding
    assert len(told.pts_seconds) == presented(path) == 12
    assert np.allclose(np.diff(told.pts_seconds), 0.04)


def test_most_files_are_not_decoded_to_count(tmp_path: Path, monkeypatch) -> None:
    frames = []
    once = packets.decoded_frames
    monkeypatch.setattr(packets, "decoded_frames", lambda *a: frames.extend(g := once(*a)) or g)
    for name in ("vp9_hidden_frames.nut", "odd_size_vp9.webm", "mpeg4_asp.avi", "phone.3gp"):
        assert not probe(CASES / name).counted_by_decoding
    assert len(frames) < 10


# Times


# ffprobe -show_entries frame=best_effort_timestamp: 48600, 52200, ... 214200, N/A
PS_TICKS = range(48_600, 48_600 + 48 * 3600, 3600)


def test_times_are_ffmpegs_best_effort_where_some_packets_have_only_a_dts() -> None:
    path, beats = CASES / "mpeg_ps_start.mpg", []
    told = probe(path, pulse=lambda: beats.append(0))
    assert told.counted_by_decoding
    assert np.array_equal(told.pts_seconds, np.array(PS_TICKS) / 90_000)
    assert told.pts_seconds[0] == pytest.approx(0.54)
    assert len(beats) == 2 * 48
    assert len(decoded(path, told)) == 48


def test_the_whole_program_stream_has_100_frames(shared_data: Path) -> None:
    told = probe(shared_data / "cases/mpeg_ps_missing_pts.mpg")
    assert np.allclose(told.pts_seconds, 0.54 + 0.04 * np.arange(100))


# Streams


def test_ffmpegs_own_choice_of_stream_is_read_and_told() -> None:
    told = probe(CASES / "two_streams.mp4")
    assert (told.stream, told.video_streams) == (0, 2)
    assert (len(told.pts_seconds), told.width, told.height) == (10, 128, 96)
    assert told.record()["stream"] == 0


@pytest.fixture
def default_last(tmp_path: Path) -> Path:
    """Two streams, of which the second is marked as the usual one."""
    path = tmp_path / "default_last.mkv"
    small, large = tmp_path / "small.mp4", tmp_path / "large.mp4"
    encode(small, moving(6, 48, 64), rate=25, crf=20)
    encode(large, moving(9), rate=25, crf=20)
    with av.open(small) as one, av.open(large) as two, av.open(path, "w") as new:
        copies = [new.add_stream_from_template(old.streams.video[0]) for old in (one, two)]
        copies[1].disposition = av.stream.Disposition.default
        for old, copy in zip((one, two), copies, strict=True):
            for packet in old.demux(video=0):
                if packet.size:
                    packet.stream = copy
                    new.mux(packet)
    return path


def test_the_stream_that_is_marked_as_the_usual_one_is_read(default_last: Path) -> None:
    told = probe(default_last)
    assert (told.stream, told.video_streams) == (1, 2)
    assert (len(told.pts_seconds), told.width) == (9, 128)
    assert decoded(default_last, told).shape == (9, 96, 128, 3)


def test_torchcodec_reads_the_same_stream_and_decord_says_that_it_cannot(
    default_last: Path,
) -> None:
    for path in (default_last, CASES / "two_streams.mp4"):
        told = probe(path)
        reason = rf"which of 2 video streams to take \(FFmpeg's choice is stream {told.stream}\)"
        with pytest.raises(DecodeError, match=rf"decord cannot be (told {reason}|loaded)"):
            decoded(path, told, decoder="decord")
        try:
            found = decoded(path, told, decoder="torchcodec")
        except DecodeError as error:
            if "cannot be loaded" in str(error):
                pytest.skip(str(error))
            raise
        assert np.array_equal(found, decoded(path, told))
