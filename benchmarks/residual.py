"""How far fragments are compressed without loss: `python benchmarks/residual.py VIDEO ...`.

Bytes of `residual`'s uint8 fragments and int16 residuals before and after the store's own
compression, which takes a row of either as one chunk; and of the residuals with their low and high
bytes apart, which the store does not do.

`--peak` instead computes a made-up clip of 32 frames of 540p by the network of official size, with
random weights, and shows the most memory that this took (goal: below 3 GB).
"""

import argparse
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numcodecs import zstd
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from vqbank.extractors import make_extractor
from vqbank.extractors.sampling import Timeline
from vqbank.extractors.video import decode, probe
from vqbank.store.shard_writer import ZSTD_LEVEL

OUTPUTS = ("fragments", "residuals")


def rows_of(path: Path, weights: str) -> Iterator[dict[str, NDArray[Any]]]:
    extractor = make_extractor("residual", weights=weights, outputs=OUTPUTS)
    clip_fn = extractor.build(torch.device("cpu"))
    known = probe(path)
    pts, height, width = known.pts_seconds, known.height, known.width
    timeline = Timeline(pts, len(pts), 0.0, path.name, height, width)
    for number, wanted in enumerate(extractor.sampling.clips(timeline).frames):
        frame_index, places = np.unique(wanted, return_inverse=True)
        pictures = np.concatenate([chunk for _, chunk in decode(path, known, frame_index)])
        frames = torch.from_numpy(pictures[places]).permute(0, 3, 1, 2)
        with torch.inference_mode():
            rows = clip_fn(extractor.view.of_clip(timeline, number)(frames)[None])
        yield {name: values[0, 0].numpy() for name, values in rows.items()}


def peak_gigabytes() -> float:
    """Of the process while it computes a clip, beyond what it held with the network loaded."""
    extractor = make_extractor("residual", weights="random", outputs=OUTPUTS)
    clip_fn = extractor.build(torch.device("cpu"))
    timeline = Timeline(np.arange(32) / 25, 32, 25.0, "made up", 540, 960)
    source = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (32, 3, 540, 960), dtype=torch.uint8, generator=source)
    before = psutil.Process().memory_info().rss
    with torch.inference_mode():
        clip_fn(extractor.view.of_clip(timeline, 0)(frames)[None])
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 1e9


def ratio(rows: list[NDArray[Any]]) -> float:
    packed = sum(len(zstd.compress(row.tobytes(), level=ZSTD_LEVEL)) for row in rows)
    return sum(row.nbytes for row in rows) / packed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--weights", default="random-tiny")
    parser.add_argument("--peak", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        found = peak_gigabytes()
        print(f"32 frames of 540p: {found:.2f} GB (< 3) {'met' if found < 3 else 'MISSED'}")
        return
    table = Table("video", "array", "bytes of a clip", "compressed", "ratio")
    for path in arguments.videos:
        clips = list(rows_of(path, arguments.weights))
        kinds = {name: [clip[name] for clip in clips] for name in OUTPUTS}
        apart = [row.view(np.uint8).reshape(-1, 2).T.copy() for row in kinds["residuals"]]
        for name, rows in {**kinds, "residuals, bytes apart": apart}.items():
            found = ratio(rows)
            size = rows[0].nbytes
            table.add_row(path.name, name, f"{size:,}", f"{size / found:,.0f}", f"{found:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
