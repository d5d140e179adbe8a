"""The extraction engine against its limits and the peers' way: `python benchmarks/extract.py`.

Ratios in one run, both sides in turn in every round, medians over rounds.  Videos are made here:
1280 x 720, 25 frames per second, a few seconds each.  With `--device cuda` the same lines run there
with the published architectures.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vqbank.extractors import make_extractor
from vqbank.extractors import video as decoding
from vqbank.extractors.base import ClipFn, Extractor, Output
from vqbank.extractors.sampling import KeyFrames, Timeline, Uniform
from vqbank.extractors.views import Squash
from vqbank.pipelines.extraction.extract import Extraction
from vqbank.store.bank import FeatureStore
from vqbank.store.schema import Video

LIGHT = [
    ("clip", {"weights": "random-tiny"}),
    ("liqe", {"weights": "random-tiny"}),
    ("backbone", {"model": "timm:resnet10t", "weights": "random"}),
    ("backbone", {"model": "torchvision:resnet18", "weights": "random"}),
]
REAL = {
    "motion": {},
    "clip": {"weights": "random"},
    "slowfast": {"weights": "random"},
    "backbone": {"model": "torchvision:resnet50", "weights": "random"},
}
_DEVICE_IS_BUSY = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class StandIn(Extractor):
    """Waits as long as a device would compute; one batch at a time, whoever asks."""

    seconds: float
    name = "stand-in"
    version = 1
    offers = (Output("nothing", (1,)),)
    view = Squash(224, 224)
    batch_clips = 8

    @property
    def sampling(self) -> Uniform | KeyFrames:
        return Uniform(32)

    def build(self, device: torch.device) -> ClipFn:
        def wait(clips: Tensor) -> Mapping[str, Tensor]:
            with _DEVICE_IS_BUSY:
                time.sleep(self.seconds * len(clips))
            return {"nothing": clips.float().mean(dim=(1, 2, 3, 4))[:, None, None]}

        return wait


@dataclass(frozen=True)
class Line:
    what: str
    goal: str
    ratios: list[float]
    good: bool


class Run:
    """An extraction whose networks are loaded, over the same files again and again."""

    def __init__(self, folder: Path, extractors: Sequence[Extractor], device: torch.device) -> None:
        self._store = FeatureStore.create(folder)
        self._extraction = Extraction((), extractors, self._store, decoder="pyav", device=device)
        self._count = 0

    def __call__(self, paths: Sequence[Path]) -> None:
        """Under new ids, so that nothing is banked before."""
        self._count += 1
        self._extraction.take([Video(f"{self._count}/{path.name}", path) for path in paths])
        for outcome in self._extraction.run():
            assert not outcome.failures, outcome.failures


def seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def overhead_of_waiting(root: Path, paths: Sequence[Path], rounds: int) -> Iterator[Line]:
    """Decoding and weight-free work must hide behind a device, or the other way round."""
    device = torch.device("cpu")
    free = [make_extractor("motion"), make_extractor("nss")]
    alone = Run(root / "free", free, device)
    alone(paths)
    base = seconds(lambda: alone(paths))
    clips = 2 * 32 * len(paths)
    standins = [StandIn(seconds=base / clips), StandIn(seconds=base / clips * 0.99)]
    waiting = Run(root / "waiting", standins, device)
    both = Run(root / "both", [*free, *standins], device)
    waiting(paths)
    both(paths)
    ratios = []
    for _ in range(rounds):
        first = seconds(lambda: alone(paths))
        second = sum(one.seconds * 32 * len(paths) for one in standins)
        together = seconds(lambda: both(paths))
        ratios.append(together / max(first, second))
    yield line("two stand-ins and weight-free work / the larger alone", "<= 1.15", ratios)


def overhead_of_computing(
    root: Path, paths: Sequence[Path], rounds: int, device: torch.device
) -> Iterator[Line]:
    """All together against the sum of the parts, each alone with all cores at its best batch."""
    extractors = [make_extractor(name, **given) for name, given in REAL.items()]
    together = Run(root / "real", extractors, device)
    together(paths)
    parts = [Part(extractor, paths, device) for extractor in extractors]
    ratios, against_slower = [], []
    for _ in range(rounds):
        decode = seconds(lambda: [decode_all(path) for path in paths])
        networks = [part.seconds() for part in parts]
        whole = seconds(lambda: together(paths))
        ratios.append(whole / (decode + sum(networks)))
        against_slower.append(max(decode, sum(networks)) / whole)
    if device.type == "cpu":
        yield line("real networks and weight-free work / sum of the parts", "<= 1.15", ratios)
    else:
        yield line("slower of decoding and networks alone / all", ">= 0.9", against_slower)


class Part:
    """One extractor alone, on clips that lie in memory."""

    def __init__(self, extractor: Extractor, paths: Sequence[Path], device: torch.device) -> None:
        self._extractor = extractor
        self._device = device
        self._clip_fn = extractor.build(device)
        self._videos = [self._frames(path) for path in paths]
        tried = {size: self._timed(size) for size in (1, 2, 4, 8)}
        self._best = min(tried, key=lambda size: tried[size])

    def _frames(self, path: Path) -> tuple[Tensor, np.ndarray[Any, Any]]:
        probe = decoding.probe(path)
        timeline = Timeline(
            probe.pts_seconds,
            probe.header_frames,
            probe.rate,
            video_id=path.name,
            height=probe.height,
            width=probe.width,
        )
        clips = self._extractor.sampling.clips(timeline).frames
        wanted = np.unique(clips)
        pictures = [frames for _, frames in decoding.decode(path, probe, wanted, threads=2)]
        frames = torch.from_numpy(np.concatenate(pictures)).permute(0, 3, 1, 2)
        return frames, np.searchsorted(wanted, clips)

    def _timed(self, size: int) -> float:
        begun = time.perf_counter()
        with torch.inference_mode():
            waiting: list[Tensor] = []
            for frames, clips in self._videos:
                seen = self._extractor.view(frames.to(self._device))
                waiting.extend(seen[clip] for clip in clips)
                while len(waiting) >= size:
                    self._clip_fn(torch.stack(waiting[:size]))
                    del waiting[:size]
            if waiting:
                self._clip_fn(torch.stack(waiting))
        if self._device.type != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    def seconds(self) -> float:
        return self._timed(self._best)


def decode_all(path: Path) -> None:
    probe = decoding.probe(path)
    wanted = np.arange(len(probe.pts_seconds))
    for _ in decoding.decode(path, probe, wanted, threads=2):
        pass


def against_peers(
    root: Path, paths: Sequence[Path], rounds: int, device: torch.device
) -> Iterator[Line]:
    """One run per extractor, which loads its model, decodes every file, and computes it alone."""
    light = LIGHT if device.type == "cpu" else list(REAL.items())
    ratios = []
    peers_way(light, paths[:1], device)  # libraries are imported once
    for number in range(rounds):
        theirs = seconds(lambda: peers_way(light, paths, device))
        ours = seconds(lambda: bank(root / f"peers{number}", light, paths, device))
        ratios.append(theirs / ours)
    yield line("the peers' way / one run of four extractors", ">= 2.5", ratios)


def bank(
    folder: Path, extractors: Sequence[Any], paths: Sequence[Path], device: torch.device
) -> None:
    Run(folder, [make_extractor(name, **given) for name, given in extractors], device)(paths)


def peers_way(extractors: Sequence[Any], paths: Sequence[Path], device: torch.device) -> list[Any]:
    kept = []
    for name, given in extractors:
        extractor = make_extractor(name, **given)
        clip_fn = extractor.build(device)
        for path in paths:
            probe = decoding.probe(path)
            timeline = Timeline(
                probe.pts_seconds,
                probe.header_frames,
                probe.rate,
                video_id=path.name,
                height=probe.height,
                width=probe.width,
            )
            clips = extractor.sampling.clips(timeline).frames
            wanted = np.unique(clips)
            pictures = [frames for _, frames in decoding.decode(path, probe, wanted, threads=2)]
            frames = torch.from_numpy(np.concatenate(pictures)).permute(0, 3, 1, 2).to(device)
            with torch.inference_mode():
                seen = extractor.view(frames)
                places = np.searchsorted(wanted, clips)
                kept += [{k: v.cpu() for k, v in clip_fn(seen[p][None]).items()} for p in places]
    return kept


def memory(root: Path, device: torch.device) -> Iterator[Line]:
    """Peak beyond what the process holds with its models, children included."""
    large = root / "4k.mp4"
    ffmpeg = "ffmpeg -v error -f lavfi -i testsrc2=size=3840x2160:rate=10:duration=60 -preset"
    subprocess.run([*ffmpeg.split(), "ultrafast", "-pix_fmt", "yuv420p", large], check=True)
    small = root / "small.mp4"
    make_video(small, 12, (96, 64))
    extractors = [make_extractor(name, **given) for name, given in REAL.items()]
    run = Run(root / "memory", [*extractors, make_extractor("nss")], device)
    run([small])
    before = resident()
    with Peak() as peak:
        run([large])
    yield line("60 s of 4K, GB beyond the models", "<= 1.5", [(peak.bytes - before) / 1e9])
    many = Run(root / "many", [make_extractor("motion"), make_extractor("nss")], device)
    many([small] * 1)
    held = []
    for _ in range(4):
        for number in range(50):
            copy = root / f"copy{number}.mp4"
            if not copy.exists():
                os.link(small, copy)
        many([root / f"copy{number}.mp4" for number in range(50)])
        held.append(resident())
    yield line("resident after 200 videos / after 50", "<= 1.05", [held[3] / held[0]])


def resident() -> int:
    """Of this process and its children, shared pages counted once."""
    process = psutil.Process()
    total = 0
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total += one.memory_full_info().pss
    return total


class Peak:
    """The largest `resident` while inside."""

    def __enter__(self) -> "Peak":
        self.bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            self.bytes = max(self.bytes, resident())


def make_video(path: Path, frames: int, size: tuple[int, int], seed: int = 0) -> None:
    width, height = size
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1 + frames, 3), dtype=np.uint8)
    texture = coarse.repeat(8, axis=0).repeat(8, axis=1)
    grain = rng.integers(0, 24, (height, width, 3), dtype=np.uint8)
    pictures = (
        np.minimum(texture[:height, 4 * i : 4 * i + width], 230) + np.roll(grain, 5 * i, axis=1)
        for i in range(frames)
    )
    decoding.encode(path, pictures, rate=25, crf=23)


def copies(root: Path, paths: Sequence[Path], count: int) -> list[Path]:
    """So many files of the same contents: a run has more to do than to start."""
    found = []
    for number in range(count):
        path = root / f"copy-{number}.mp4"
        if not path.exists():
            os.link(paths[number % len(paths)], path)
        found.append(path)
    return found


def line(what: str, goal: str, ratios: list[float]) -> Line:
    sign, limit = goal.split()
    median = statistics.median(ratios)
    good = median <= float(limit) if sign == "<=" else median >= float(limit)
    print(f"{what}: {median:.3g} ({goal}) {'met' if good else 'MISSED'}", flush=True)
    return Line(what, goal, ratios, good)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="waiting,computing,peers,memory")
    options = parser.parse_args()
    device, only = torch.device(options.device), options.only.split(",")
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="vqbank-benchmark-") as folder:
        root = Path(folder)
        paths = [root / f"{number}.mp4" for number in range(4)]
        for number, path in enumerate(paths):
            make_video(path, 75 + 25 * (number % 3), (1280, 720), number)
        if "waiting" in only:
            lines += overhead_of_waiting(root, copies(root, paths, 12), options.rounds)
        if "computing" in only:
            lines += overhead_of_computing(root, paths, options.rounds, device)
        if "peers" in only:
            lines += against_peers(root, copies(root, paths, 16), options.rounds, device)
        if "memory" in only:
            lines += memory(root, device)
    table = Table("what", "goal", "median", "smallest", "largest", "")
    for one in lines:
        cells = (f"{f(one.ratios):.3g}" for f in (statistics.median, min, max))
        table.add_row(one.what, one.goal, *cells, "met" if one.good else "MISSED")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
