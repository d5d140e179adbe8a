"""Heads against the field's way of training them: `python benchmarks/heads.py`, ratios in a table.

Both sides of a ratio run in the same process, one after the other in every round; a ratio is taken
per round and the median over rounds is shown.  Data are synthetic and of the named size; accuracy
is compared on targets that can be learnt.  The other side is written as the public code is:

- *hysteresis*: VSFA's TP per video, and the definition as a loop over frames;
- *mlp*: RQ-VQA's loop, a DataLoader over .npy files, one for every slot and feature, Adam, batch 6;
- *gru*: VSFA's, the whole set zero-padded in float64, nn.GRU, TP per video, evaluation one by one.

`--memory 300` instead trains `gru` on a bank of LSVQ's size (36 GB, of which all but one shard are
links), for 300 seconds at most, and shows the resident memory.
"""

import argparse
import contextlib
import ctypes
import gc
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table
from sklearn.base import clone
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d, l1_loss, max_pool1d
from torch.utils.data import DataLoader, Dataset

from vqbank.pipelines.experiments.experiment import Experiment
from vqbank.pipelines.experiments.fits import Cell
from vqbank.pipelines.experiments.further import FurtherSet
from vqbank.pipelines.experiments.rated import RatedVideos
from vqbank.pipelines.recipe import Protocol
from vqbank.regressors import make_head
from vqbank.regressors.base import Head
from vqbank.regressors.batches import Input, PaddedBatch
from vqbank.regressors.holdout import hold_out_scenes
from vqbank.regressors.layers import Frozen, linear
from vqbank.regressors.losses import plcc_loss
from vqbank.regressors.metrics import srcc
from vqbank.regressors.score_pooling import POOLINGS, hysteresis
from vqbank.regressors.sequence import SequenceHead
from vqbank.regressors.tail import Block
from vqbank.store.bank import FeatureStore
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, Video
from vqbank.store.table import FeatureTable

SLOTS = 8
RQVQA = {"spatial": 1024, "motion": 256, "qalign": 4096, "liqe": 495, "fastvqa": 768}
PER_SLOT = tuple(RQVQA)[:-1]
VIDEOS = 1200  # of KoNViD-1k


@dataclass(frozen=True)
class Line:
    """One row of the table."""

    check: str
    what: str
    goal: float
    ratios: list[float]


def compared(
    what: str,
    goal: float,
    *,
    slow: Callable[[], object],
    quick: Callable[[], object],
    rounds: int,
    slow_part: float = 1.0,
    quick_part: float = 1.0,
    check: str = "",
) -> Line:
    """Times slow / quick; of each side the seconds are divided by the parts of work it has done."""
    ratios = []
    for _ in range(rounds):
        seconds = []
        for side, part in ((slow, slow_part), (quick, quick_part)):
            begin = time.perf_counter()
            side()
            seconds.append((time.perf_counter() - begin) / part)
        ratios.append(seconds[0] / seconds[1])
        print(f"  {what}: {seconds[0]:.3f} s against {seconds[1]:.3f} s", flush=True)
    return Line(check, what, goal, ratios)


# hysteresis ------------------------------------------------------------------------------------


def vsfa_pooling(scores: Tensor, tau: int = 12, beta: float = 0.5) -> Tensor:
    """TP of VSFA's code, of one video [t]."""
    q = scores[None, None]
    memory = -max_pool1d(torch.cat([torch.full((1, 1, tau - 1), -torch.inf), -q], 2), tau, 1)
    end = torch.full((1, 1, tau - 1), 10000.0)
    top = avg_pool1d(torch.cat([q * torch.exp(-q), end * torch.exp(-end)], 2), tau, 1)
    bottom = avg_pool1d(torch.cat([torch.exp(-q), torch.exp(-end)], 2), tau, 1)
    return beta * memory + (1 - beta) * top / bottom


def frame_loop(scores: Tensor, tau: int = 12, beta: float = 0.5) -> Tensor:
    """The definition, frame by frame, of one video [t]."""
    out = []
    for row in range(len(scores)):
        ahead = scores[row : row + tau]
        weights = torch.softmax(-ahead, 0)
        memory = scores[max(0, row - tau + 1) : row + 1].min()
        out.append(beta * memory + (1 - beta) * (weights * ahead).sum())
    return torch.stack(out)


def pooling_lines(rounds: int) -> list[Line]:
    scores = torch.rand(64, 240, requires_grad=True)
    mask = torch.ones(64, 240, dtype=torch.bool)

    def ours(times: int) -> Tensor:
        for _ in range(times):
            (gradient,) = torch.autograd.grad(hysteresis(scores, mask).mean(1).sum(), scores)
        return gradient

    def each(pooling: Callable[[Tensor], Tensor]) -> Tensor:
        total = sum(pooling(one).mean() for one in scores)
        return torch.autograd.grad(total, scores)[0]

    ours(3)
    error = max(float((each(way) - ours(1)).abs().max()) for way in (vsfa_pooling, frame_loop))
    check = f"gradients within {error:.0e}"
    return [
        compared(
            f"hysteresis, 64 x 240, {name}",
            goal,
            check=check,
            rounds=rounds,
            slow=lambda way=way: each(way),
            quick=lambda: ours(10),
            quick_part=10,
        )
        for name, way, goal in [("per video", vsfa_pooling, 5), ("per frame", frame_loop, 40)]
    ]


# mlp -------------------------------------------------------------------------------------------


RATE = 1e-5
"""RQ-VQA's learning rate."""


class SlotFiles(Dataset):
    """One .npy per video, slot and feature, as RQ-VQA writes them; FAST-VQA's once per video."""

    def __init__(self, root: Path, mos: np.ndarray) -> None:
        self.root, self.mos = root, mos

    def __len__(self) -> int:
        return len(self.mos)

    def __getitem__(self, video: int) -> tuple[Tensor, float]:
        folder = self.root / str(video)
        once = np.load(folder / "fastvqa.npy")
        slots = [
            np.concatenate([*(np.load(folder / f"{role}_{slot}.npy") for role in PER_SLOT), once])
            for slot in range(SLOTS)
        ]
        return torch.from_numpy(np.stack(slots).astype(np.float32)), float(self.mos[video])


class SlotMemory(Dataset):
    """The same without files: where accuracy, and not time, is compared."""

    def __init__(self, data: "Konvid") -> None:
        self.data = data

    def __len__(self) -> int:
        return VIDEOS

    def __getitem__(self, video: int) -> tuple[Tensor, float]:
        return torch.from_numpy(self.data.slots(video)), float(self.data.mos[video])


class Konvid:
    """1200 videos with RQ-VQA's features; what can be learnt is a line in their slots' means."""

    def __init__(self, root: Path) -> None:
        rng = np.random.default_rng(0)
        self.root = root
        content = rng.normal(size=(VIDEOS, 40))
        self.mos = 3 + content @ rng.normal(size=40) / 10 + 0.1 * rng.normal(size=VIDEOS)
        series = {}
        for role, width in RQVQA.items():
            mixing = rng.normal(size=(40, width)).astype(np.float32) / 6
            slots = 1 if role == "fastvqa" else SLOTS
            means = (content @ mixing).astype(np.float32)[:, None]
            values = means + rng.normal(size=(VIDEOS, slots, width)).astype(np.float32)
            series[role] = list(values.astype(np.float16))
        for video in range(VIDEOS):
            folder = root / str(video)
            folder.mkdir()
            np.save(folder / "fastvqa.npy", series["fastvqa"][video][0])
            for role in PER_SLOT:
                for slot in range(SLOTS):
                    np.save(folder / f"{role}_{slot}.npy", series[role][video][slot])
        self.table = FeatureTable.from_arrays(named(VIDEOS), series)
        orders = [rng.permutation(VIDEOS) for _ in range(10)]
        self.train, self.test = [one[:960] for one in orders], [one[960:] for one in orders]

    def slots(self, video: int) -> np.ndarray:
        """[8, 6639] float32."""
        parts = [self.table.series(role, video) for role in RQVQA]
        parts[-1] = np.repeat(parts[-1], SLOTS, axis=0)
        return np.concatenate(parts, axis=1).astype(np.float32)

    def fit_and_held(self, split: int) -> tuple[np.ndarray, np.ndarray]:
        """The training rows, parted as our head parts them."""
        train = self.train[split]
        held = hold_out_scenes(
            [self.table.videos[row] for row in train], fraction=0.2, rng=np.random.default_rng(0)
        )
        return train[~held], train[held]

    def moments(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Mean and deviation of slot means, which our affine head standardises by."""
        means = np.stack([self.slots(row).mean(axis=0) for row in rows])
        return torch.from_numpy(means.mean(axis=0)), torch.from_numpy(means.std(axis=0))


def named(count: int) -> list[Video]:
    return [Video(f"set/{number:05}.mp4", Path("x")) for number in range(count)]


class TwoLayers(nn.Module):
    """RQ-VQA's head on standardised rows [b, 8, 6639]."""

    def __init__(self, activation: nn.Module, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        width = sum(RQVQA.values())
        self.layers = nn.Sequential(nn.Linear(width, 128), activation, nn.Linear(128, 1))
        self.mean, self.deviation = mean, deviation

    def forward(self, slots: Tensor) -> Tensor:
        return self.layers((slots - self.mean) / self.deviation).mean(dim=1)[:, 0]


def slots_loop(
    data: Konvid,
    split: int,
    dataset: Dataset,
    moments: tuple[Tensor, Tensor],
    *,
    activation: nn.Module,
    epochs: int,
) -> float:
    """RQ-VQA's loop on a DataLoader; the SRCC of test rows after the best epoch.

    Statistics are those that our affine head has, and cost nothing here.
    """
    torch.manual_seed(split)
    fit, held = data.fit_and_held(split)
    network = TwoLayers(activation, *moments)
    adam = torch.optim.Adam(network.parameters(), lr=RATE, weight_decay=0)
    best, tested = -1.0, -1.0
    loader = DataLoader(torch.utils.data.Subset(dataset, fit), batch_size=6, shuffle=True)
    for _ in range(epochs):
        network.train()
        for slots, mos in loader:
            loss = plcc_loss(network(slots), mos.float())
            adam.zero_grad()
            loss.backward()
            adam.step()
        network.eval()
        value = evaluated(network, dataset, held, data.mos)
        if value > best:
            best = value
            tested = (
                -1.0 if epochs == 1 else evaluated(network, dataset, data.test[split], data.mos)
            )
    return tested


def evaluated(network: nn.Module, dataset: Dataset, rows: np.ndarray, mos: np.ndarray) -> float:
    loader = DataLoader(torch.utils.data.Subset(dataset, rows), batch_size=6)
    with torch.inference_mode():
        predicted = torch.cat([network(slots) for slots, _ in loader]).double().numpy()
    return srcc(mos[rows], predicted)


def our_mlp(epochs: int, activation: str) -> Head:
    return make_head(
        "mlp",
        activation=activation,
        slots=SLOTS,
        align="repeat",
        batch_size=6,
        epochs=epochs,
        patience=epochs,
        learning_rate=RATE,
        weight_decay=0.0,
        memory_gib=4.0,
    )


ACTIVATIONS = (("none", nn.Identity(), 15), ("gelu", nn.GELU(), 4))


def mlp_lines(rounds: int) -> list[Line]:
    """An epoch of the loop over files against an epoch of a split, of ten splits of 30 epochs.

    Starting our processes and reading the table are among our seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = Konvid(Path(folder))
        files, moments = SlotFiles(data.root, data.mos), data.moments(data.fit_and_held(0)[0])
        # Once, so that no round of it reads from disk.
        slots_loop(data, 0, files, moments, activation=nn.Identity(), epochs=1)
        lines = []
        for activation, module, goal in ACTIVATIONS:

            def ours(activation=activation) -> None:
                heads = [our_mlp(30, activation) for _ in range(10)]
                type(heads[0]).fit_many(heads, data.table, data.mos, data.train)

            lines.append(
                compared(
                    f"RQ-VQA's mlp, activation {activation}, per epoch of a split",
                    goal,
                    slow=lambda module=module: slots_loop(
                        data, 0, files, moments, activation=module, epochs=1
                    ),
                    quick=ours,
                    quick_part=300,
                    rounds=rounds,
                )
            )
        return lines


def accuracy_lines(_: int) -> list[Line]:
    """The same batches and updates, 30 epochs of two splits: by how much the test SRCC differs."""
    with tempfile.TemporaryDirectory() as folder:
        data = Konvid(Path(folder))
        lines = []
        for activation, module, _ in ACTIVATIONS:
            ours, theirs = [], []
            for split in range(2):
                train, test = data.train[split], data.test[split]
                head = our_mlp(30, activation).fit(data.table.subset(train), data.mos[train])
                ours.append(srcc(data.mos[test], head.predict(data.table.subset(test))))
                moments = data.moments(data.fit_and_held(split)[0])
                memory = SlotMemory(data)
                theirs.append(
                    slots_loop(data, split, memory, moments, activation=module, epochs=30)
                )
            difference = float(np.mean(ours) - np.mean(theirs))
            check = f"ours {np.mean(ours):.4f}, theirs {np.mean(theirs):.4f}"
            what = f"RQ-VQA's mlp, activation {activation}: test SRCC above the loop's"
            lines.append(Line(check, what, -0.005, [difference]))
        return lines


# gru -------------------------------------------------------------------------------------------


class Frames:
    """1200 videos of 240 rows of 128; quality is a hysteresis-pooled hidden channel."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        values = rng.normal(size=(VIDEOS, 240, 128)).astype(np.float32)
        values[..., 0] += rng.normal(size=(VIDEOS, 1)) + np.repeat(
            rng.normal(size=(VIDEOS, 12)), 20, axis=1
        )
        mask = torch.ones(VIDEOS, 240, dtype=torch.bool)
        self.mos = POOLINGS["hysteresis"](torch.from_numpy(values[..., 0]), mask).double().numpy()
        values = values @ np.linalg.qr(rng.normal(size=(128, 128)))[0].astype(np.float32)
        self.table = FeatureTable.from_arrays(named(VIDEOS), {"x": list(values.astype(np.float16))})
        self.rows = [rng.permutation(VIDEOS)[:960] for _ in range(10)]


class Vsfa(nn.Module):
    """VSFA's network, as its code has it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc0 = nn.Linear(128, 128)
        self.rnn = nn.GRU(128, 32, batch_first=True)
        self.q = nn.Linear(32, 1)

    def forward(self, padded: Tensor, lengths: Tensor) -> Tensor:
        states, _ = self.rnn(self.fc0(padded))
        frames = self.q(states)[..., 0]
        scores = [
            vsfa_pooling(own[: int(length)]).mean()
            for own, length in zip(frames, lengths, strict=True)
        ]
        return torch.stack(scores)


class PaddedSet(Dataset):
    """The whole set, zero-padded."""

    def __init__(self, data: Frames, rows: np.ndarray, dtype: str) -> None:
        self.values = np.zeros((len(rows), 240, 128), dtype)
        for number, row in enumerate(rows):
            self.values[number] = data.table.series("x", row)
        self.mos = data.mos[rows] / data.mos.max()

    def __len__(self) -> int:
        return len(self.mos)

    def __getitem__(self, number: int) -> tuple[np.ndarray, int, float]:
        return self.values[number], 240, self.mos[number]


def vsfa_epoch(fit: PaddedSet, held: PaddedSet, *, held_batch: int) -> None:
    """One epoch as VSFA's main loop runs it, testing aside."""
    torch.manual_seed(0)
    network = Vsfa()
    adam = torch.optim.Adam(network.parameters(), lr=1e-3)
    for values, lengths, mos in DataLoader(fit, batch_size=16, shuffle=True):
        loss = l1_loss(network(values.float(), lengths), mos.float())
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.inference_mode():
        for values, lengths, _ in DataLoader(held, batch_size=held_batch):
            network(values.float(), lengths)


def gru_lines(rounds: int) -> list[Line]:
    data = Frames()
    train = data.rows[0]
    fit, held = train[:768], train[768:]
    doubles = PaddedSet(data, fit, "f8"), PaddedSet(data, held, "f8")
    singles = PaddedSet(data, fit, "f4"), PaddedSet(data, held, "f4")

    def ours(splits: int, epochs: int) -> None:
        heads = [
            make_head("gru", epochs=epochs, patience=epochs, weight_decay=0.0)
            for _ in range(splits)
        ]
        type(heads[0]).fit_many(heads, data.table, data.mos, data.rows[:splits])

    ours(2, 1)
    return [
        compared(
            "gru, 1200 x 240 x 128, an epoch, against VSFA's way",
            4,
            rounds=rounds,
            slow=lambda: vsfa_epoch(*doubles, held_batch=1),
            quick=lambda: ours(1, 10),
            quick_part=10,
        ),
        compared(
            "gru, ten splits stacked, per split, against VSFA's pooling one after another",
            3.5,
            slow=lambda: vsfa_epoch(*singles, held_batch=64),
            quick=lambda: ours(10, 5),
            quick_part=50,
            rounds=rounds,
        ),
    ]


# memory ----------------------------------------------------------------------------------------

LSVQ, ROWS, WIDTH = 38_811, 240, 1920
PER_SHARD = 512


def lsvq_bank(folder: Path) -> None:
    """36 GB by every measure but the disk's: all shards of one size are one file of values."""
    store = FeatureStore.create(folder)
    spec = FeatureSpec("semantic.frames", (WIDTH,), "float16", {"source": "noise"})
    rng = np.random.default_rng(0)
    values = rng.standard_normal((PER_SHARD, ROWS, WIDTH), dtype="f4").astype("f2")
    times, frames = np.arange(ROWS) / 25, np.arange(ROWS)
    first: dict[str, Path] = {}
    for start in range(0, LSVQ, PER_SHARD):
        writer = store.writer(spec, provenance={}, durable=False)
        chosen = named(LSVQ)[start : start + PER_SHARD]
        for video, rows in zip(chosen, values, strict=False):
            feature = Feature(rows, times, frames)
            writer.add(video.id, feature, fingerprint=Fingerprint(0, ""), probe={})
        writer.commit()
        newest = max(folder.glob("*/shards/*"), key=lambda shard: shard.stat().st_mtime_ns)
        for path in (
            path for path in (newest / "values").rglob("*") if path.stat().st_size > 2**20
        ):
            name = f"{len(chosen)}/{path.relative_to(newest)}"
            if name in first:
                path.unlink()
                path.hardlink_to(first[name])
            first.setdefault(name, path)


def train_lsvq(folder: Path) -> None:
    """In a process of its own, as a user does it."""
    videos = named(LSVQ)
    table = FeatureStore(folder).table(videos, {"semantic": "semantic.frames"})
    mos = np.random.default_rng(0).normal(size=LSVQ)
    head = make_head("gru", epochs=1, batch_size=32, threads=2)
    head.watch = print
    head.fit(table, mos)
    print(head.selection_)


def memory_lines(seconds: float) -> list[Line]:
    """Peak of the resident memory, mapped pages included, sampled ten times a second."""
    with tempfile.TemporaryDirectory() as folder:
        bank = Path(folder) / "bank"
        lsvq_bank(bank)
        command = [sys.executable, __file__, "--train-lsvq", str(bank)]
        peak, read, begin = 0, 0, time.perf_counter()
        with subprocess.Popen(command) as child:
            process = psutil.Process(child.pid)
            while child.poll() is None and time.perf_counter() - begin < seconds:
                with contextlib.suppress(psutil.NoSuchProcess):
                    peak = max(peak, process.memory_info().rss)
                    read = process.io_counters().read_chars
                time.sleep(0.1)
            if child.poll():
                raise SystemExit(f"the training failed with {child.returncode}")
            state = "epoch ended" if child.poll() == 0 else "cut"
            child.kill()
        took = time.perf_counter() - begin
        what = f"gru on LSVQ's size: GiB of memory in {took:.0f} s ({state})"
        return [Line(f"{read / 2**30:.0f} GiB read", what, 4, [peak / 2**30])]


# frozen ----------------------------------------------------------------------------------------


class OnTower(nn.Module):
    """140,000 numbers to learn behind the blocks of ViT-B/32, which are frozen."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        with torch.device("meta"):
            sizes = {"width": 768, "heads": 12, "hidden": 3072, "activation": "gelu"}
            blocks = nn.Sequential(*(Block(**sizes) for _ in range(12)))
        blocks.to_empty(device="cpu")
        for value in blocks.parameters():
            nn.init.normal_(value, std=0.02, generator=draw)
        self.tower = Frozen(blocks)
        self.hidden = linear(768, 182, generator=generator)
        self.score = linear(182, 1, generator=generator)

    def forward(self, batch: PaddedBatch) -> Tensor:
        """[b] of the states [b, t, 50, 768]."""
        states = self.tower(batch.values["tokens"].flatten(0, 1).float())
        scores = self.score(self.hidden(states[:, 0]).relu())
        return scores.unflatten(0, batch.mask.shape)[..., 0].mean(dim=1)


@dataclass(kw_only=True, eq=False, repr=False)
class FrozenHead(SequenceHead):
    """A head that stands on a tower of 85 million numbers."""

    name = "frozen"
    stackable = False
    standardise: bool = False
    align: str = "exact"
    epochs: int = 2
    patience: int = 2
    batch_size: int = 2
    forward_videos: int = 2
    learning_rate: float = 1e-3
    weight_decay: float = 0.0

    def _network(self, inputs: Mapping[str, Input], generator: torch.Generator) -> nn.Module:
        return OnTower(generator)

    def _loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        return plcc_loss(predicted, target)


def train_frozen(folder: Path) -> None:
    """In a process of its own; prints what it added to memory, in parts of tower and learnt."""
    draw = np.random.default_rng(0)
    tokens = [draw.normal(size=(1, 50, 768)).astype("f2") for _ in range(16)]
    table = FeatureTable.from_arrays(named(16), {"tokens": tokens})
    mos = draw.normal(size=16)
    # What any training needs, and any use of the tower: products keep room for themselves.
    make_head("mlp", epochs=1, width=8).fit(table, mos)
    made = OnTower(torch.Generator())
    made.tower(torch.zeros(4, 50, 768))
    tower = sum(value.nbytes for value in made.tower.parameters())
    learnt = sum(value.nbytes for value in made.parameters() if value.requires_grad)
    del made
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before, ended = psutil.Process().memory_info().rss, threading.Event()
    peak = [before]

    def watch() -> None:
        while not ended.wait(0.005):
            peak.append(psutil.Process().memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    head = FrozenHead().fit(table, mos)
    ended.set()
    watcher.join()
    head.save(folder)
    (model,) = folder.glob("model-*")
    count = sum(value.numel() for value in head.ensemble_.state.values())
    added = max(peak) - before
    print((tower + 4 * learnt) / added, count, model.stat().st_size)  # weights, best, two moments


def frozen_lines(rounds: int) -> list[Line]:
    """Memory of training behind a frozen tower, and what is kept of it."""
    found = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--train-frozen", folder]
            told = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append([float(number) for number in told.stdout.split()])
    ratios, (count, *_), sizes = zip(*found, strict=True)
    what = "tower of ViT-B/32 and what is learnt / memory that training adds"
    return [
        Line(f"{count:,.0f} learnt", what, 1 / 1.1, list(ratios)),
        Line("", "a megabyte / the file of this head", 1, [1e6 / size for size in sizes]),
    ]


# test sets -------------------------------------------------------------------------------------


SETS = {"test": 700, "1080p": 350, "KoNViD-1k": VIDEOS, "LIVE-VQC": 585}
"""Videos of LSVQ's test parts, scaled as its training part is here, and of two sets."""
TRAINED = 2800


def sets_lines(rounds: int) -> list[Line]:
    """One training with four test sets against one with one, and three predictions by hand.

    What an experiment does whatever it tests (a process for a fit that takes long) is on both
    sides; metrics and logistics of three sets are among our seconds alone.
    """
    rng = np.random.default_rng(0)
    direction = rng.normal(size=64)

    def rated(name: str, videos: int) -> RatedVideos:
        values = rng.normal(size=(videos, SLOTS, 64)).astype(np.float32)
        mos = values.mean(axis=1) @ direction + 0.3 * rng.normal(size=videos)
        own = [Video(f"{name}/{number:05}.mp4", Path("x")) for number in range(videos)]
        return RatedVideos(FeatureTable.from_arrays(own, {"x": list(values)}), mos)

    trained = rated("LSVQ", TRAINED)
    sets = [FurtherSet(name, rated(name, videos)) for name, videos in SETS.items()]
    heads = {
        "svr": make_head("svr"),
        "mlp": make_head("mlp", epochs=30, patience=30),
        "gru": make_head("gru", epochs=10, patience=10),
    }
    lines = []
    for name, head in heads.items():
        cell = Cell(name, head, ("x",))
        made = Experiment("sets", trained, [cell], Protocol(splits="all"), sets)

        fitted = clone(head).fit(trained.table, trained.mos)

        def by_hand(made: Experiment = made, fitted: Head = fitted) -> None:
            list(replace(made, sets=sets[:1]).run())
            for one in sets[1:]:
                fitted.predict(one.rated.table)

        lines.append(
            compared(
                f"{name}: one training and four predictions / the same as test sets",
                1 / 1.1,
                slow=by_hand,
                quick=lambda made=made: list(made.run()),
                rounds=rounds,
            )
        )
    return lines


KINDS = {
    "hysteresis": pooling_lines,
    "mlp": mlp_lines,
    "gru": gru_lines,
    "accuracy": accuracy_lines,
    "frozen": frozen_lines,
    "sets": sets_lines,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of the other side; ours has one")
    parser.add_argument("--only", choices=[*KINDS])
    parser.add_argument("--memory", type=float, metavar="SECONDS", help="train gru on LSVQ's size")
    parser.add_argument("--train-lsvq", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--train-frozen", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train_lsvq is not None:
        train_lsvq(arguments.train_lsvq)
        return
    if arguments.train_frozen is not None:
        train_frozen(arguments.train_frozen)
        return
    table = Table("what", "measured", "at least", "rounds", "check")
    if arguments.memory is not None:
        for line in memory_lines(arguments.memory):
            table.add_row(line.what, f"{line.ratios[0]:.2f}", f"< {line.goal:g}", "", line.check)
        Console(width=150).print(table)
        return
    torch.set_num_threads(arguments.threads)
    for name, lines in KINDS.items():
        if arguments.only not in (None, name):
            continue
        for line in lines(arguments.rounds):
            median = statistics.median(line.ratios)
            missed = "" if median >= line.goal else "  missed"
            spread = ", ".join(f"{ratio:.4g}" for ratio in line.ratios)
            table.add_row(line.what, f"{median:.4g}{missed}", f"{line.goal:g}", spread, line.check)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
