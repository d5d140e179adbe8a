"""Writing clips: H.264 in mp4, the same bytes for the same frames."""

from collections.abc import Iterable
from fractions import Fraction
from itertools import count
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray


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
