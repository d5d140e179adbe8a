"""Q-CLIP from the bank against Q-CLIP from pixels: `python benchmarks/qclip.py`, ratios in a table.

Towers have Perception Encoder's structure (24 blocks, 577 tokens, adapters in the last six of both)
at a reduced width, and random weights; `--width 1024` is the full one.  Both sides take the same
step, with the same adapters, loss and optimiser.  From pixels the blocks before the first adapter
are run without a gradient, as in the official code, on frames that are decoded already: that the
bank saves decoding and resizing, too, is not counted.

- *step*: one of training, forward, backward and AdamW.
- *memory*: what a step adds to that of its process, each in a process of its own.
- *text*: the pass of five prompts through the text tower with its gradient, over the positions that
  matter, against all 32.
- *laptop*: ten splits on `pe.pooled` of 1,200 videos, at full width, in seconds.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vqbank.extractors.base import IMPLIED
from vqbank.extractors.networks.pe_core import PeCore
from vqbank.extractors.networks.sizes import PeSizes
from vqbank.extractors.pe import LEVELS, Pe
from vqbank.pipelines.experiments.experiment import Experiment
from vqbank.pipelines.experiments.fits import Cell
from vqbank.pipelines.experiments.rated import RatedVideos
from vqbank.pipelines.recipe import Protocol
from vqbank.regressors import make_head
from vqbank.regressors.losses import plcc_rank_loss
from vqbank.regressors.scma import QClipNetwork, Wiring
from vqbank.regressors.tail import image_tail, text_tail
from vqbank.store.bank import FeatureStore
from vqbank.store.schema import Feature, Fingerprint, Video
from vqbank.store.tail import write_tail

FRAMES, BATCH = 8, 2
VIDEOS = 1200
FORMS: dict[Wiring, int] = {"parallel": 17, "sequential": 18}
"""The latest cut of each, for six adapted blocks."""


@dataclass(frozen=True, kw_only=True)
class Narrow(Pe):
    """PE-Core-L/14 of another width."""

    width: int = field(default=128, metadata=IMPLIED)

    @property
    def sizes(self) -> PeSizes:
        """As many blocks and tokens as PE-Core-L has, heads of 64."""
        heads = max(1, self.width // 64)
        return PeSizes(336, self.width, heads, self.width, self.width, heads, 24)

    def load(self) -> PeCore:
        """Random weights, always the same."""
        return random_pe(self)


@cache
def random_pe(extractor: Narrow) -> PeCore:
    torch.manual_seed(0)
    return extractor._architecture().eval().requires_grad_(False)


class Step:
    """Training of one form from states at a cut, or from pixels."""

    def __init__(self, width: int, form: Wiring, *, from_pixels: bool) -> None:
        self.cut = FORMS[form]
        extractor = Narrow(weights="random", width=width, cut=self.cut, outputs=("tokens",))
        tail = extractor.tail("tokens")
        where = Path("tail")
        self.network = QClipNetwork(
            image_tail(tail.towers["image"], where),
            text_tail(tail.towers["text"], where),
            torch.tensor([tail.tokens[prompt] for prompt in LEVELS]),
            adapted=6,
            inner=8,
            wiring=form,
            generator=torch.Generator().manual_seed(0),
        )
        learnt = [value for value in self.network.parameters() if value.requires_grad]
        self.optimizer = torch.optim.AdamW(learnt, lr=1e-3)
        self.trunk = extractor.load() if from_pixels else None
        draw = torch.Generator().manual_seed(1)
        sizes = extractor.sizes
        shape = (BATCH, FRAMES, sizes.tokens, sizes.width)
        self.states = torch.randn(shape, generator=draw).half()
        pixels = (BATCH, FRAMES, 3, sizes.side, sizes.side)
        self.pixels = torch.randint(0, 256, pixels, dtype=torch.uint8, generator=draw)

    def given(self) -> Tensor:
        """[n, f, l, d] at the cut."""
        if self.trunk is None:
            return self.states.float()
        with torch.no_grad():
            pictures = self.pixels.flatten(0, 1).float() / 127.5 - 1
            *_, state = self.trunk.states(pictures, self.cut)
        return state.unflatten(0, (BATCH, FRAMES))

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        loss = plcc_rank_loss(self.network(self.given()), torch.arange(float(BATCH)))
        loss.backward()
        self.optimizer.step()


def seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def ratios(slow: Callable[[], object], quick: Callable[[], object], rounds: int) -> list[float]:
    """Of interleaved repeats, after one of each that is not counted."""
    slow(), quick()
    return [seconds(slow) / seconds(quick) for _ in range(rounds)]


def added_by(width: int, form: Wiring, *, from_pixels: bool) -> None:
    """In a process of its own: prints the bytes that making and taking steps adds."""
    extractor = Narrow(weights="random", width=64, cut=20, outputs=("tokens",))
    extractor.tail("tokens")  # what any use of the libraries needs
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = Step(width, form, from_pixels=from_pixels)
    for _ in range(2):
        step()
    print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


def memory_ratio(width: int, form: Wiring) -> float:
    found = []
    for pixels in (True, False):
        asked = [sys.executable, __file__, "--width", str(width), "--added-by", form]
        told = subprocess.run(
            [*asked, *(["--from-pixels"] if pixels else [])],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        found.append(float(told.stdout))
    return found[0] / found[1]


def text_ratios(width: int, rounds: int) -> list[float]:
    """All 32 positions against those up to the last end."""
    step = Step(width, "parallel", from_pixels=False)
    tail = Narrow(weights="random", width=width, outputs=("tokens",)).tail("tokens")
    tower = text_tail(tail.towers["text"], Path("tail"))
    whole = Step(width, "parallel", from_pixels=False).network
    tokens = torch.tensor([tail.tokens[prompt] for prompt in LEVELS])
    whole.prompts = tower.embed(tokens).detach()

    def levels(network: QClipNetwork) -> Callable[[], object]:
        return lambda: network.levels().sum().backward()

    return ratios(levels(whole), levels(step.network), rounds)


def laptop_seconds() -> tuple[float, float]:
    """Ten splits on random pooled frames at full width, and the median SRCC."""
    extractor = Narrow(weights="random", width=1024, outputs=("pooled",))
    draw = np.random.default_rng(0)
    content = draw.normal(size=(VIDEOS, 1, 1024))
    values = (content + 0.2 * draw.normal(size=(VIDEOS, FRAMES, 1024))).astype("f2")
    mos = content[:, 0] @ draw.normal(size=1024) / 32 + 0.3 * draw.normal(size=VIDEOS)
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore.create(Path(folder) / "bank")
        spec = extractor.specs(decoder="pyav")["pooled"]
        videos = [Video(f"set/{row}.mp4", Path(f"{row}.mp4")) for row in range(VIDEOS)]
        with store.writer(spec, provenance={}) as writer:
            for video, rows in zip(videos, values, strict=True):
                feature = Feature(rows, np.arange(float(FRAMES)), np.arange(FRAMES))
                writer.add(video.id, feature, fingerprint=Fingerprint(1, "0" * 64), probe={})
        write_tail(store, spec, extractor.tail("pooled"))
        table = store.table(videos, {"pooled": spec.key})
        rated = RatedVideos(table, mos)
        cell = Cell("qclip", make_head("qclip"), ("pooled",))
        experiment = Experiment("laptop", rated, [cell], Protocol(splits="random10"))
        begun = time.perf_counter()
        (record,) = experiment.run(jobs=2)
        return time.perf_counter() - begun, record.rows[0].number("srcc")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["step", "memory", "text", "laptop"])
    parser.add_argument("--added-by", choices=[*FORMS], help=argparse.SUPPRESS)
    parser.add_argument("--from-pixels", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.added_by is not None:
        added_by(asked.width, asked.added_by, from_pixels=asked.from_pixels)
        return
    table = Table("what", "measured", "goal", "rounds")

    def wanted(name: str) -> bool:
        return asked.only in (None, name)

    for form in FORMS:
        if wanted("step"):
            pixels, bank = (Step(asked.width, form, from_pixels=one) for one in (True, False))
            found = ratios(pixels, bank, asked.rounds)
            shown = ", ".join(f"{one:.2f}" for one in found)
            what = f"step, {form}: from pixels / from the bank"
            table.add_row(what, f"{statistics.median(found):.2f}", "3", shown)
        if wanted("memory"):
            found = [memory_ratio(asked.width, form) for _ in range(min(3, asked.rounds))]
            shown = ", ".join(f"{one:.2f}" for one in found)
            what = f"memory of a step, {form}: from pixels / from the bank"
            table.add_row(what, f"{statistics.median(found):.2f}", "3", shown)
    if wanted("text"):
        found = text_ratios(asked.width, asked.rounds)
        shown = ", ".join(f"{one:.2f}" for one in found)
        what = "text pass: 32 positions / those that matter"
        table.add_row(what, f"{statistics.median(found):.2f}", "2.5", shown)
    if wanted("laptop"):
        took, srcc = laptop_seconds()
        what = f"laptop, ten splits of {VIDEOS} videos (SRCC {srcc:.2f}): seconds"
        table.add_row(what, f"{took:.0f}", "< 180", "")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
