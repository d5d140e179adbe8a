"""An ablation in one command against its limits, and against as many `evaluate` runs.

    python benchmarks/ablate.py [--data FOLDER] [--splits 10] [--heads ridge,svr] [--runs 30]

Leave-one-out and all pairs over groups of BRISQUE's and VIDEVAL's columns on KoNViD-1k, from the
published caches of the optional data folder (default ../shared/data): 4 minutes on 2 cores with 10
splits and 3 heads.  Then VIDEVAL without each of `--runs` groups, as one ablation, which may take
half as long as `vqbank evaluate` as many times.  Exits 1 if a goal is missed.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from vqbank.pipelines.sources import labelled_videos
from vqbank.store.bank import FeatureStore
from vqbank.store.exchange.feats_mat import import_feats_mat

SECONDS = 240
"""For leave-one-out and all pairs with 10 splits and 3 heads on 2 cores."""
SHARE = 0.5
"""Of as many `evaluate` runs, at most."""
WIDTH = 60
"""Columns of VIDEVAL."""
GROUPS = ("brisque=18", "videval=10")
"""Two scales, and six groups: 8 without one, 28 pairs."""
FEATURES = ("brisque", "videval")


def vqbank(*arguments: object) -> float:
    """Seconds that a command takes."""
    command = [sys.executable, "-m", "vqbank", *map(str, arguments)]
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def banked(data: Path, folder: Path) -> tuple[Path, Path]:
    """A bank of both caches of KoNViD-1k, and their label file."""
    labels = data / "labels" / "KONVID_1K_metadata.csv"
    store = FeatureStore.create(folder / "bank")
    ids = [video.id for video in labelled_videos(labels)]
    for name in FEATURES:
        file = data / "features" / f"KONVID_1K_{name.upper()}_feats.mat"
        import_feats_mat(file, store, name=name, ids=ids)
    return folder / "bank", labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--heads", default="ridge,gaussian,svr")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    console = Console()
    if not given.data.is_dir():
        console.print(f"{given.data} absent: goals that were not tried")
        sys.exit(1)
    heads = given.heads.split(",")
    missed = False
    with tempfile.TemporaryDirectory() as name:
        bank, labels = banked(given.data, Path(name))
        run = ("--labels", labels, "--bank", bank, "--splits", f"random{given.splits}")
        run += ("--jobs", given.jobs)
        both = [part for feature in FEATURES for part in ("--features", feature)]
        cut = [part for group in GROUPS for part in ("--groups", group)]
        tried = [part for head in heads for part in ("--head", head)]
        ways = ("--by", "without", "--by", "pairs", "--format", "csv")
        seconds = vqbank("ablate", *run, *both, *cut, *tried, *ways)
        late = given.splits >= 10 and len(heads) >= 3 and seconds > SECONDS
        missed |= late
        console.print(
            f"37 sets x {len(heads)} heads x {given.splits} splits: {seconds:.0f} s"
            f"{' MISSED' if late else ''} (goal {SECONDS} s with 3 heads and 10 splits)"
        )
        one = ("--features", "videval", "--head", "ridge")
        size = WIDTH // given.runs
        together = vqbank("ablate", *run, *one, "--groups", f"videval={size}", "--format", "csv")
        # Of all columns each: as many as each set has, but for a group.
        apart = sum(vqbank("evaluate", *run, *one) for _ in range(given.runs))
        share = together / apart
        missed |= share > SHARE
        console.print(
            f"{given.runs} sets of ridge as one ablation: {together:.1f} s, as evaluate runs: "
            f"{apart:.1f} s, {share:.2f} of it{' MISSED' if share > SHARE else ''} (goal {SHARE})"
        )
    sys.exit(missed)


if __name__ == "__main__":
    main()
