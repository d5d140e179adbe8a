"""How long A2INet's head trains on a set of the size of KoNViD-1k: `python benchmarks/cagi.py`.

1200 videos of 128 rows (the paper's preprocessed videos), S+S: 1920 and 7680 numbers in float16, in
a bank that is made for it (3 GB).  The features are made up: in 16 hidden directions of each two
series move together as much as the score says, behind levels of every video that say nothing, and
noise.  One split: 768 videos are fitted, 192 choose the epoch, 240 test.

The laptop preset is trained as it is, or for fewer epochs and then extrapolated; the paper preset
is measured on a tenth of the videos for two epochs, and extrapolated.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from vqbank.regressors.cagi import Cagi
from vqbank.regressors.metrics import quality_metrics
from vqbank.regressors.progress import Epoch
from vqbank.store.bank import FeatureStore
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, Video
from vqbank.store.table import FeatureTable

VIDEOS, ROWS, HIDDEN, POOL = 1200, 128, 16, 8192
WIDTHS = {"quality": 1920, "semantic": 7680}
TRAIN = 960


def made_up(folder: Path, videos: int) -> tuple[FeatureTable, np.ndarray[Any, Any]]:
    """The set in a folder, which is written unless it is there."""
    rng = np.random.default_rng(0)
    mos = rng.uniform(1, 5, size=videos)
    specs = {
        role: FeatureSpec(f"made.{role}", (width,), "float16", {"source": "benchmark"})
        for role, width in WIDTHS.items()
    }
    path = folder / f"konvid-{videos}"
    if not path.exists():
        write(FeatureStore.create(path), specs, (mos - 3) / 2, rng)
    chosen = [Video(f"{row}", Path(f"{row}"), scene=None) for row in range(videos)]
    return FeatureStore(path).table(chosen, {role: spec.key for role, spec in specs.items()}), mos


def write(
    store: FeatureStore,
    specs: dict[str, FeatureSpec],
    together: np.ndarray[Any, Any],
    rng: np.random.Generator,
) -> None:
    loadings = {role: rng.normal(size=(HIDDEN, width)) for role, width in WIDTHS.items()}
    # Rows of noise are taken from a pool at random places: drawing all of them would take minutes.
    pools = {
        role: rng.standard_normal((POOL, width), dtype=np.float32) for role, width in WIDTHS.items()
    }
    writers = {role: store.writer(spec, provenance={}) for role, spec in specs.items()}
    for row, share in enumerate(together):
        one = rng.normal(size=(ROWS, HIDDEN))
        rest = np.sqrt(1 - share**2) * rng.normal(size=(ROWS, HIDDEN))
        moves = {"quality": one, "semantic": share * one + rest}
        for role, writer in writers.items():
            hidden = moves[role] + 2 * rng.normal(size=HIDDEN)
            start = rng.integers(POOL - ROWS)
            noise = pools[role][start : start + ROWS]
            values = (hidden @ loadings[role] / HIDDEN**0.5 + noise).astype(np.float16)
            feature = Feature(values, np.arange(ROWS) / 16, np.arange(ROWS))
            writer.add(f"{row}", feature, fingerprint=Fingerprint(1, f"{row:064d}"), probe={})
    for writer in writers.values():
        writer.commit()


def watched(head: Cagi, console: Console) -> list[tuple[float, float]]:
    """Told of every epoch, prints it; gives seconds and processor seconds at the ends of epochs."""
    ends: list[tuple[float, float]] = []

    def watch(epoch: Epoch) -> None:
        ends.append((time.perf_counter(), time.process_time()))
        console.print(f"d = {head.width}, epoch {epoch.epoch}: held-out SRCC {epoch.srcc:.3f}")

    head.watch = watch
    return ends


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=VIDEOS)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--paper-videos", type=int, default=120)
    parser.add_argument("--bank", type=Path, default=None, help="folder where the set is kept")
    arguments = parser.parse_args()
    console = Console()
    columns = ("seconds per epoch", "processor seconds", "epochs", "minutes", "SRCC of test videos")
    shown = Table("preset", *columns)
    with tempfile.TemporaryDirectory() as folder:
        table, mos = made_up(arguments.bank or Path(folder), arguments.videos)
        train = np.arange(arguments.videos * TRAIN // VIDEOS)
        test = np.arange(len(train), arguments.videos)

        head = Cagi(epochs=arguments.epochs, threads=arguments.threads)
        ends = watched(head, console)
        start = time.perf_counter()
        head.fit(table.subset(train), mos[train])
        spent = time.perf_counter() - start
        found = quality_metrics(mos[test], head.predict(table.subset(test))).srcc
        wall, processor = np.median(np.diff(ends, axis=0), axis=0)
        ran = f"{len(ends)} of {arguments.epochs}"
        shown.add_row(
            "laptop", f"{wall:.1f}", f"{processor:.1f}", ran, f"{spent / 60:.1f}", f"{found:.3f}"
        )
        if arguments.epochs < 30:
            whole = spent + (30 - len(ends)) * wall
            shown.add_row("laptop", "", "", "30, extrapolated", f"{whole / 60:.1f}", "")

        few = train[: arguments.paper_videos]
        paper = Cagi(**{**Cagi.paper, "epochs": 2}, threads=arguments.threads)
        ends = watched(paper, console)
        paper.fit(table.subset(few), mos[few])
        wall, processor = np.diff(ends, axis=0)[0] * len(train) / len(few)
        whole = wall * Cagi.paper["epochs"] / 60
        shown.add_row(
            "paper", f"{wall:.0f}", f"{processor:.0f}", "100, extrapolated", f"{whole:.0f}", ""
        )
    console.print(shown)
    console.print(head.selection_)


if __name__ == "__main__":
    main()
