"""DVLTA-VQA from the bank against the same head fed from videos: `python benchmarks/dvlta.py`.

Real clips are extracted once, and their features stand in a bank under many ids.

- *epoch*: what a video costs in an epoch of training that is fed by decoding, ViFi-CLIP and
  FAST-VQA each time (what extraction took, and a step), against one that reads the bank (a step).
  The bank is larger than `--memory-gib`, so that it is streamed.
- *memory*: what may be held and what training added to the memory of its process.  A window, a
  batch in float32, and what the network keeps for its gradient come on top of what is held.

Weights are random; `--tiny` takes tiny backbones and a narrow head, to try the script.
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table as Shown

import vqbank
from vqbank.regressors import make_head
from vqbank.store.bank import FeatureStore
from vqbank.store.schema import Fingerprint, Video
from vqbank.store.table import FeatureTable

ENTRIES: dict[str, dict[str, object]] = {
    "vificlip": {},
    "fastvqa": {"outputs": ["map"]},
    "frames": {"frames": "consecutive"},
}
FEATURES = {"semantic": "vificlip.feature", "technical": "fastvqa.map", "clip": "frames.pixels"}
CLIPS = Path(__file__).parents[1].parent / "shared" / "clips"


def extracted(clips: list[Path], folder: Path, weights: str) -> tuple[FeatureStore, float]:
    """A bank of the clips, and seconds per clip once the networks are loaded.

    The networks' loading is the difference between a run on one clip and a run on all, after one
    that imports what is needed.
    """
    seconds = []
    for number, some in enumerate((clips[:1], clips[:1], clips)):
        manifest = folder / f"{number}.csv"
        manifest.write_text("path,mos\n" + "".join(f"{clip},1\n" for clip in some))
        begun = time.perf_counter()
        vqbank.extract(
            videos=manifest,
            bank=folder / f"bank{number}",
            extractors=ENTRIES,
            weights={"all": weights},
        )
        seconds.append(time.perf_counter() - begun)
    return FeatureStore(folder / "bank2"), (seconds[2] - seconds[1]) / (len(clips) - 1)


def many(store: FeatureStore, count: int) -> FeatureTable:
    """A table of so many videos, whose features are those of the clips in turn."""
    for spec in store.specs():
        if spec.name not in FEATURES.values():
            continue
        own = sorted(store.video_ids(spec))
        with store.writer(spec, provenance={}, durable=False) as writer:
            for number in range(count):
                video = own[number % len(own)]
                probe = store.video_record(spec, video).probe
                mark = Fingerprint(1, f"{number:064}")
                feature = store.read(spec, video)
                writer.add(f"set/{number}.mp4", feature, fingerprint=mark, probe=probe)
    videos = [Video(f"set/{row}.mp4", Path(f"{row}.mp4"), scene=str(row)) for row in range(count)]
    return FeatureStore(store.path).table(videos, FEATURES)


def trained(table: FeatureTable, *, epochs: int, memory_gib: float, stem: int) -> float:
    """Seconds of that many epochs on all videos."""
    mos = np.random.default_rng(0).normal(size=len(table))
    head = make_head(
        "dvlta", selection="fixed", epochs=epochs, memory_gib=memory_gib, stem=stem, batch_size=8
    )
    begun = time.perf_counter()
    head.fit(table, mos)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=Path, default=CLIPS)
    parser.add_argument("--videos", type=int, default=1200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-gib", type=float, default=2.0)
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    weights, stem = ("random-tiny", 4) if asked.tiny else ("random", 64)
    clips = sorted(asked.clips.glob("*.mp4"))
    with tempfile.TemporaryDirectory() as folder:
        store, from_video = extracted(clips, Path(folder), weights)
        table = many(store, asked.videos)
        banked = sum(table.nbytes(role) for role in table.roles)
        given = {"memory_gib": asked.memory_gib, "stem": stem}
        trained(table.subset(range(16)), epochs=1, **given)  # what any training needs
        before, peak, ended = psutil.Process().memory_info().rss, [0], threading.Event()

        def watch() -> None:
            while not ended.wait(0.01):
                peak.append(psutil.Process().memory_info().rss)

        watcher = threading.Thread(target=watch)
        watcher.start()
        # An epoch more, so that what comes before and after epochs is not counted.
        steps = [
            (trained(table, epochs=2, **given) - trained(table, epochs=1, **given)) / len(table)
            for _ in range(asked.rounds)
        ]
        ended.set()
        watcher.join()
    shown = Shown("what", "measured", "at least", "rounds")
    ratios = [(from_video + step) / step for step in steps]
    shown.add_row(
        f"epoch, of a video: {from_video:.2f} s from the video and a step / a step from the bank",
        f"{np.median(ratios):.1f}",
        "5",
        ", ".join(f"{step:.3f} s" for step in steps),
    )
    shown.add_row(
        f"memory that training of {banked / 2**30:.2f} GiB adds, of {asked.memory_gib:g} GiB",
        f"{(max(peak) - before) / 2**30:.2f} GiB",
        "",
        "",
    )
    Console(width=130).print(shown)


if __name__ == "__main__":
    main()
