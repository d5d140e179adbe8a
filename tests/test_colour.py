"""Pictures are what `ffmpeg -pix_fmt rgb24` gives, to the last bit.

EXPECTED holds the first 16 digits of the SHA-256 of what FFmpeg 5.1.9 (Debian 12) wrote for the
files of `written`, by `ffmpeg -i FILE -pix_fmt rgb24 -f rawvideo - | sha256sum`.
"""

import hashlib
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from vqbank.extractors import make_extractor
from vqbank.extractors.base import RGB
from vqbank.extractors.video import SCALER_FLAGS, decode, probe
from vqbank.extractors.video.rgb import Rgb, Turn
from vqbank.pipelines.extraction.status import _findings as findings

FOLDER = Path(__file__).parent / "data" / "cases"

SPACES = {"bt709": 1, "smpte170m": 6, "bt2020nc": 9}
RANGES = {"limited": 1, "full": 2}
DEPTHS = {"yuv420p": 8, "yuv422p": 8, "yuv444p": 8, "yuv420p10le": 10, "yuv422p10le": 10}
SIZES = [(48, 64), (49, 65)]

EXPECTED = {
    "yuv420p 64x48 bt709 limited": "bf54638cd0b39b93",
    "yuv420p 64x48 bt709 full": "9519e55fa0f7d510",
    "yuv420p 64x48 smpte170m limited": "f3600abcbf7552d7",
    "yuv420p 64x48 smpte170m full": "0893269a98fd348d",
    "yuv420p 64x48 bt2020nc limited": "ed94ef6fe4e559d6",
    "yuv420p 64x48 bt2020nc full": "62fa6640b165be1d",
    "yuv420p 65x49 bt709 limited": "8272bfa6dd98c4f7",
    "yuv420p 65x49 bt709 full": "9df58cc026739c9a",
    "yuv420p 65x49 smpte170m limited": "b30a39eda132c86b",
    "yuv420p 65x49 smpte170m full": "72c2bf1823ce7a61",
    "yuv420p 65x49 bt2020nc limited": "867b36d60f7514a7",
    "yuv420p 65x49 bt2020nc full": "a9671066b2586591",
    "yuv422p 64x48 bt709 limited": "46a53ab839346378",
    "yuv422p 64x48 bt709 full": "c9a517d9531802db",
    "yuv422p 64x48 smpte170m limited": "a1fb94bce44a3db7",
    "yuv422p 64x48 smpte170m full": "9aa3c3da5e11a8d9",
    "yuv422p 64x48 bt2020nc limited": "146e868bb431b375",
    "yuv422p 64x48 bt2020nc full": "859508c4ba3e8fd5",
    "yuv422p 65x49 bt709 limited": "884482362603dfc1",
    "yuv422p 65x49 bt709 full": "e1b473c80992c553",
    "yuv422p 65x49 smpte170m limited": "815f043826f35f5e",
    "yuv422p 65x49 smpte170m full": "7ff746cae83f4151",
    "yuv422p 65x49 bt2020nc limited": "427ad138b9ec0b6c",
    "yuv422p 65x49 bt2020nc full": "960ab278e30cd287",
    "yuv444p 64x48 bt709 limited": "4253a1982536e45d",
    "yuv444p 64x48 bt709 full": "958471b8568a4a2c",
    "yuv444p 64x48 smpte170m limited": "574028bdc60355d0",
    "yuv444p 64x48 smpte170m full": "90557360f0427088",
    "yuv444p 64x48 bt2020nc limited": "5798ab118bda2e18",
    "yuv444p 64x48 bt2020nc full": "b0469110bbcfebf0",
    "yuv444p 65x49 bt709 limited": "bb70299b2b2c8b70",
    "yuv444p 65x49 bt709 full": "161f40165932ad7c",
    "yuv444p 65x49 smpte170m limited": "19614bb11fa04140",
    "yuv444p 65x49 smpte170m full": "25b62a798954dc16",
    "yuv444p 65x49 bt2020nc limited": "2bbd5543f80b20c6",
    "yuv444p 65x49 bt2020nc full": "e758051574630933",
    "yuv420p10le 64x48 bt709 limited": "2b699af3e722a8b2",
    "yuv420p10le 64x48 bt709 full": "127b04e5d6fd168c",
    "yuv420p10le 64x48 smpte170m limited": "ce12cc924c92fb63",
    "yuv420p10le 64x48 smpte170m full": "09b4d8dad51c0d4a",
    "yuv420p10le 64x48 bt2020nc limited": "5053a0e7a0b9f253",
    "yuv420p10le 64x48 bt2020nc full": "19495c9e89c99023",
    "yuv420p10le 65x49 bt709 limited": "3f5e493c8aed0396",
    "yuv420p10le 65x49 bt709 full": "e2d52292b93652fc",
    "yuv420p10le 65x49 smpte170m limited": "fa1a47724f336d68",
    "yuv420p10le 65x49 smpte170m full": "d8162cb87a20e952",
    "yuv420p10le 65x49 bt2020nc limited": "cfb112b6b0929b19",
    "yuv420p10le 65x49 bt2020nc full": "15adb87b49305628",
    "yuv422p10le 64x48 bt709 limited": "91ce89f43cfaeb35",
    "yuv422p10le 64x48 bt709 full": "1a621e1c0f2b9a66",
    "yuv422p10le 64x48 smpte170m limited": "fabe2e2e1efa33fd",
    "yuv422p10le 64x48 smpte170m full": "9179d46c620763ca",
    "yuv422p10le 64x48 bt2020nc limited": "cd4ef7ad3a557bf1",
    "yuv422p10le 64x48 bt2020nc full": "53949f0579d90d28",
    "yuv422p10le 65x49 bt709 limited": "663a59af2e9f780c",
    "yuv422p10le 65x49 bt709 full": "38d1f37e9b5de342",
    "yuv422p10le 65x49 smpte170m limited": "f17a196b64f4a392",
    "yuv422p10le 65x49 smpte170m full": "f5c6fc591edf879d",
    "yuv422p10le 65x49 bt2020nc limited": "e4a06a57f42da01f",
    "yuv422p10le 65x49 bt2020nc full": "0cd07d1fb0fda0c8",
}


def written(path: Path, pixels: str, size: tuple[int, int], space: str, range_: str) -> Path:
    """Two frames of noise, lossless."""
    rng = np.random.default_rng(20)
    height, width = size
    with av.open(path, "w") as container:
        stream = container.add_stream("ffv1", rate=25, height=height, width=width)
        stream.pix_fmt = pixels
        stream.codec_context.colorspace = SPACES[space]
        stream.codec_context.color_range = RANGES[range_]
        for _ in range(2):
            frame = av.VideoFrame(width, height, pixels)
            for plane in frame.planes:
                kind = np.uint8 if DEPTHS[pixels] == 8 else np.uint16
                low = rng.integers(0, 2 ** DEPTHS[pixels], (plane.height, plane.line_size), kind)
                plane.update(low.tobytes()[: plane.buffer_size])
            frame.colorspace, frame.color_range = SPACES[space], RANGES[range_]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def decoded(path: Path, **options: str) -> np.ndarray:
    told = probe(path)
    chunks = decode(path, told, range(len(told.pts_seconds)), **options)
    return np.concatenate([pictures for _, pictures in chunks])


@pytest.mark.parametrize("pixels", DEPTHS)
def test_pictures_are_those_of_the_ffmpeg_command(tmp_path: Path, pixels: str) -> None:
    found, told = {}, {}
    for size in SIZES:
        for space in SPACES:
            for range_ in RANGES:
                kind = f"{pixels} {size[1]}x{size[0]} {space} {range_}"
                path = written(tmp_path / "written.mkv", pixels, size, space, range_)
                found[kind] = digest(decoded(path).tobytes())
                told[kind] = probe(path)
                assert (told[kind].colour_space, told[kind].colour_range) == (space, range_)
    assert found == {kind: EXPECTED[kind] for kind in found}
    assert len(set(found.values())) == len(found)  # every tag matters


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program")
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv420p10le"])
def test_the_ffmpeg_at_hand_gives_what_is_written_here(tmp_path: Path, pixels: str) -> None:
    path = written(tmp_path / "written.mkv", pixels, (49, 65), "bt709", "limited")
    command = ["ffmpeg", "-v", "error", "-i", path, "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    content = subprocess.run(command, check=True, capture_output=True).stdout
    assert digest(content) == EXPECTED[f"{pixels} 65x49 bt709 limited"]


# Of all frames, by `ffmpeg -i FILE -pix_fmt rgb24 -vsync passthrough -f rawvideo - | sha256sum`.
CASES = {
    "vp9_hidden_frames.nut": "43ce78d6eb7ab38d",
    "mpeg_ps_start.mpg": "cd4aa24b0318ed8a",
    "odd_size_vp9.webm": "a453aa6f9a8fe844",
    "ten_bit_hevc.mp4": "2a355cb10c2e52bf",
    "two_streams.mp4": "30cfaf992fc53e75",
    "phone.3gp": "887a72d231351d24",
}
TURNED = {90: "81d3a2d306ffc84f", 180: "dbdb337d9500c17c", 270: "041e54b2a2d7396b"}
"""Of ten_bit_hevc.mp4 with a rotation tag."""


@pytest.mark.parametrize("name", CASES)
def test_files_give_the_pictures_of_the_ffmpeg_command(name: str) -> None:
    assert digest(decoded(FOLDER / name).tobytes()) == CASES[name]


@pytest.mark.parametrize("rotation", TURNED)
def test_a_picture_is_turned_before_its_chroma_is_scaled(tmp_path: Path, rotation: int) -> None:
    path = tmp_path / "turned.mp4"
    with av.open(FOLDER / "ten_bit_hevc.mp4") as old, av.open(path, "w") as new:
        copy = new.add_stream_from_template(old.streams.video[0])
        copy.set_display_rotation(rotation)
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = copy
                new.mux(packet)
    assert probe(path).rotation == rotation
    assert digest(decoded(path).tobytes()) == TURNED[rotation]


def tagged(path: Path, **tags: int) -> Path:
    """Ten frames of HEVC whose stream says other things of its colours."""
    with av.open(FOLDER / "ten_bit_hevc.mp4") as old, av.open(path, "w") as new:
        stream = old.streams.video[0]
        metadata = ":".join(f"{name}={value}" for name, value in tags.items())
        copy = new.add_stream_from_template(stream)
        through = av.BitStreamFilterContext(f"hevc_metadata={metadata}", stream, copy)
        for packet in old.demux(stream):
            for one in through.filter(packet if packet.size else None):
                one.stream = copy
                new.mux(one)
    return path


@pytest.mark.parametrize(
    ("transfer", "name", "hdr"),
    [(1, "bt709", False), (16, "smpte2084", True), (18, "arib-std-b67", True)],
)
def test_hdr_is_recorded_told_by_status_and_not_mapped(
    tmp_path: Path, transfer: int, name: str, hdr: bool
) -> None:
    path = tagged(tmp_path / "t.mkv", transfer_characteristics=transfer, colour_primaries=9)
    told = probe(path)
    assert told.record()["colour_transfer"] == name
    assert ("colour_transfer" in set(findings(told.record()))) == hdr
    assert digest(decoded(path).tobytes()) == CASES["ten_bit_hevc.mp4"]


def test_reserved_tags_that_swscale_refuses_do_not_matter(tmp_path: Path) -> None:
    frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 99, np.uint8)).reformat(format="gbrp")
    frame.color_trc = frame.color_primaries = 0
    assert np.all(Rgb(tmp_path, Turn(0, mirrored=False))(0, frame) == 99)


def test_the_key_says_how_pictures_become_rgb() -> None:
    spec = make_extractor("nss").specs(decoder="pyav")["brisque"]
    assert spec.identity["rgb"] == RGB == f"swscale {SCALER_FLAGS}"
    assert spec.key != replace(spec, identity={**spec.identity, "rgb": "bilinear"}).key
