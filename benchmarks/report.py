"""Size and time of the page of a run: 1,200 videos within 8 MB, 38,811 within 12 MB.

    python benchmarks/report.py               # 1,200 videos
    python benchmarks/report.py --large       # and 38,811: 1.2 GB of temporary disk
    python benchmarks/report.py --keep FOLDER # leaves the pages there, to be opened

Features, scores and pictures are made up; a picture has the detail of a JPEG of some 2 kB.
How soon a browser is ready with a page is not measured here.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from vqbank.pipelines.experiments.experiment import Experiment, evaluate
from vqbank.pipelines.experiments.fits import Cell
from vqbank.pipelines.experiments.rated import RatedVideos
from vqbank.pipelines.recipe import Protocol
from vqbank.pipelines.report.page import Page, write_page
from vqbank.regressors import make_head
from vqbank.store.bank import FeatureStore
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, Video

LIMITS_MB = {1_200: 8, 38_811: 12}
HEADS = ("ridge", "score")
WIDTH = 64
SECONDS = 8
RATE = 25
PICTURES = 64
"""Different ones; videos take turns."""


def banked(folder, count, rng):
    """A bank of features, motion and pictures; ids as long as those of LSVQ."""
    ids = [f"lsvq/ia-batch{row % 20}/{row:08d}-{row % 977:05d}.mp4" for row in range(count)]
    mos = rng.uniform(0, 100, count)
    store = FeatureStore.create(folder)
    small = rng.integers(0, 256, (PICTURES, 3, 14, 24)).astype(np.uint8)
    detailed = np.zeros((PICTURES, 3, 96, 96), np.uint8)
    detailed[:, :, 20:76] = small.repeat(4, axis=2).repeat(4, axis=3)
    rows = {
        "made.feature": ((WIDTH,), "float32"),
        "motion.series": ((3,), "float32"),
        "thumbnail.pixels": ((3, 96, 96), "uint8"),
    }
    for name, (shape, dtype) in rows.items():
        spec = FeatureSpec(name, shape, dtype, {"extractor": name.partition(".")[0]})
        writer = store.writer(spec, provenance={}, durable=False)
        for row, video_id in enumerate(ids):
            if name == "made.feature":
                values = mos[row] + rng.normal(0, 20, (SECONDS, WIDTH))
            elif name == "motion.series":
                values = rng.gamma(2, 10, (SECONDS * RATE, 3))
            else:
                values = detailed[row % PICTURES][None]
            step = SECONDS / len(values)
            feature = Feature(
                values.astype(dtype), step * np.arange(len(values)), np.arange(len(values))
            )
            width, height = ((960, 540), (1920, 1080))[row % 2]
            probe = {
                "frames": SECONDS * RATE,
                "width": width,
                "height": height,
                "rate": float(RATE),
                "duration_seconds": float(SECONDS),
            }
            content = Fingerprint(row + 1, f"{row:064x}")
            writer.add(video_id, feature, fingerprint=content, probe=probe)
        writer.commit()
    store.refresh()
    return store, ids, mos


def record_of(store, ids, mos):
    videos = [
        Video(one, Path(one), mos=float(own), scene=one) for one, own in zip(ids, mos, strict=True)
    ]
    table = store.table(videos, {"made": "made.feature"})
    cells = [Cell(name, make_head(name), table.roles) for name in HEADS]
    protocol = Protocol(count=6)
    return evaluate(Experiment("benchmark", RatedVideos(table, mos), cells, protocol))


def measured(count, folder, keep):
    rng = np.random.default_rng(0)
    store, ids, mos = banked(folder / f"bank{count}", count, rng)
    record = record_of(store, ids, mos)
    path = (keep or folder) / f"page{count}.html"
    start = time.perf_counter()
    page = Page.of([record], bank=store.path)
    write_page(page, path)
    seconds = time.perf_counter() - start
    megabytes = path.stat().st_size / 1e6
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    limit = LIMITS_MB.get(count)
    held = "" if limit is None else f" of at most {limit}"
    print(
        f"{count:,} videos: {megabytes:.1f} MB{held}, {len(page.known.pictures):,} pictures, "
        f"{seconds:.1f} s, at most {memory:.1f} GB of memory in all"
    )
    return limit is None or megabytes <= limit


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=1_200)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--keep", type=Path)
    asked = parser.parse_args()
    if asked.keep is not None:
        asked.keep.mkdir(parents=True, exist_ok=True)
    counts = [asked.videos, *([38_811] if asked.large else [])]
    with tempfile.TemporaryDirectory() as folder:
        held = [measured(count, Path(folder), asked.keep) for count in counts]
    sys.exit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
