"""Decoded frames into RGB, as `ffmpeg -pix_fmt rgb24` shows them."""

from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from vqbank.extractors.video.packets import decode_error

# ITU-T H.273 (2021), table 4, by the names that FFmpeg prints.
_COLOUR_SPACES = {0: "gbr", 1: "bt709", 2: "unspecified", 5: "bt470bg", 6: "smpte170m"}
_COLOUR_SPACES |= {7: "smpte240m", 8: "ycgco", 9: "bt2020nc", 10: "bt2020c"}
_UNSPECIFIED = 2

SCALER_FLAGS = "bicubic"
"""Flags of swscale, as `ffmpeg` and libavfilter set them where nothing is said.  8-bit video
of an even height is not scaled at all: the nearest chroma is taken."""

# Filters by quarter turns and mirroring, as `ffmpeg -autorotate` sets them: configure_input_video
# of fftools/ffmpeg_filter.c.
_TURNS: dict[tuple[int, bool], list[tuple[str, ...]]] = {
    (0, False): [],
    (90, False): [("transpose", "cclock")],
    (180, False): [("hflip",), ("vflip",)],
    (270, False): [("transpose", "clock")],
    (0, True): [("vflip",)],
    (90, True): [("transpose", "clock_flip")],
    (180, True): [("hflip",)],
    (270, True): [("transpose", "cclock_flip")],
}


class Turn(NamedTuple):
    """What a display matrix does to the picture before it is shown."""

    rotation: int
    """Degrees counter-clockwise: 0, 90, 180 or 270."""
    mirrored: bool
    """Whether it mirrors as well, as phones write it for their front camera."""


def turn_of(frame: Any) -> Turn:
    """The nearest quarter turn of a frame's display matrix, and whether that mirrors."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    mirrored = False
    if matrix is not None:
        a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32).astype(float)
        mirrored = bool(a * d < b * c)
    return Turn(90 * (round(frame.rotation / 90) % 4), mirrored)


def colour_space(frame: Any) -> str:
    """The colour space of a frame of PyAV, by FFmpeg's name where it has one."""
    return _COLOUR_SPACES.get(frame.colorspace, str(frame.colorspace))


class Rgb:
    """Turns frames of PyAV into what is displayed, by the filters of `ffmpeg -pix_fmt rgb24`.

    That is swscale with SCALER_FLAGS, by the colour space and range of each frame (unspecified:
    BT.601, limited), without regard to transfer, chroma location and interlacing, and after the
    picture was turned.
    """

    def __init__(self, path: Path, turn: Turn) -> None:
        self._path = path
        self._turn = turn
        self._kind: tuple[Any, ...] = ()

    def __call__(self, index: int, frame: Any) -> NDArray[np.uint8]:
        """The frame of this index: [h, w, 3]."""
        # Tags of no meaning here, whose reserved values swscale refuses.
        frame.color_trc = frame.color_primaries = _UNSPECIFIED
        size, pixels = f"{frame.width}x{frame.height}", frame.format.name
        kind = (size, pixels, int(frame.colorspace), int(frame.color_range))
        try:
            if kind != self._kind:
                self._graph, self._kind = _filters(*kind, self._turn), kind
            self._graph.push(frame)
            return np.asarray(self._graph.pull().to_ndarray())
        except av.FFmpegError as error:
            raise decode_error(
                self._path,
                f"frame {index} cannot be turned into RGB by this FFmpeg (pixel format {pixels}, "
                f"colour space {colour_space(frame)}): {error.strerror}",
            ) from error


def _filters(size: str, pixels: str, colour_space: int, colour_range: int, turn: Turn) -> Any:
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
    turns = [graph.add(*turn) for turn in _TURNS[turn]]
    rgb = [graph.add("format", "rgb24"), graph.add("buffersink")]
    graph.link_nodes(source, *turns, *rgb).configure()
    return graph
