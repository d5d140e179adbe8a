"""Maps of local quality laid over frames, and their files."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vqbank.pipelines.log import log
from vqbank.store.errors import DecodeError, naming
from vqbank.store.schema import Video


def on_frame(quality: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """[height, width]: the quality of each cell of a grid, at every pixel of it.

    Cells are those that fragments are cut from (FAST-VQA's rule): as large as whole pixels allow,
    and what is left below and to the right belongs to the last ones.

    Args:
        quality: [g, g].
        height: of the frame.
        width: of the frame.
    """
    rows, columns = (
        np.minimum(np.arange(size) // max(1, size // cells), cells - 1)
        for size, cells in zip((height, width), quality.shape, strict=True)
    )
    return quality[rows[:, None], columns]


def overlay(
    frame: NDArray[np.uint8],
    quality: NDArray[np.float64],
    *,
    lowest: float,
    highest: float,
    opacity: float = 0.5,
) -> NDArray[np.uint8]:
    """The frame [h, w, 3] under its local quality: red is low, green is high.

    Args:
        frame: RGB [h, w, 3].
        quality: [g, g].
        lowest: what is wholly red, such as the lowest training score.
        highest: what is wholly green.
        opacity: of the colours, 0 to 1.
    """
    share = np.clip((quality - lowest) / (highest - lowest), 0, 1)
    level = on_frame(share, *frame.shape[:2])
    colour = np.stack([1 - level, level, np.zeros_like(level)], axis=-1) * 255
    mixed = (1 - opacity) * frame + opacity * colour
    return mixed.round().astype(np.uint8)


def write_places(
    folder: Path,
    videos: Sequence[Video],
    places: NDArray[np.float64],
    *,
    score_name: str,
    lowest: float,
    highest: float,
) -> None:
    """Write `places.json`, and `NUMBER.png`, the middle frame under its map, per video at hand.

    Args:
        folder: made if need be.
        videos: n.
        places: [n, g, g], as `local_quality` of heads gives them.
        score_name: what a score is.
        lowest: what is wholly red.
        highest: what is wholly green; where it is no higher, the ends of `places` are taken.
    """
    if not lowest < highest:
        lowest, highest = float(places.min()), float(max(places.max(), places.min() + 1e-9))
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    told = []
    for number, (video, quality) in enumerate(zip(videos, places, strict=True), 1):
        picture = None
        frame = _middle_frame(video)
        if frame is not None:
            picture = f"{number:04}.png"
            with naming(folder / picture):
                shown = overlay(frame, quality, lowest=lowest, highest=highest)
                Image.fromarray(shown).save(folder / picture)
        document = {"id": video.id, "path": str(video.path), "places": quality.tolist()}
        told.append({**document, "picture": picture})
    ends = {"score_name": score_name, "red": lowest, "green": highest}
    with naming(folder / "places.json"):
        text = json.dumps({**ends, "videos": told}, indent=1)
        (folder / "places.json").write_text(f"{text}\n", encoding="utf-8")


def _middle_frame(video: Video) -> NDArray[np.uint8] | None:
    """RGB [h, w, 3]; None, and told, where the file cannot be read: what is banked needs none."""
    from vqbank.extractors.video import decode, probe

    try:
        found = probe(video.path)
        ((_, frames),) = decode(video.path, found, [len(found.pts_seconds) // 2])
    except DecodeError as error:
        log.warning("no picture of %s: %s", video.id, error)
        return None
    frame: NDArray[np.uint8] = frames[0]
    return frame
