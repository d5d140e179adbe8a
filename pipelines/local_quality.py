"""Maps of local quality laid over frames."""

import numpy as np
from numpy.typing import NDArray


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
