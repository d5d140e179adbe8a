"""The bank against its limits and peers: `python benchmarks/bank.py`, prints a table of ratios.

Both sides of a ratio run in the same process, one after the other in every round; a ratio is taken
per round and the median over rounds is shown.  Sets as in the field: *small* is five kinds of 14
rows or fewer for 1,200 videos, *tokens* 8 rows of 50 x 768 for 1,200, *frames* two per-frame kinds
for 150 videos.  Reads are warm and already verified unless a line says otherwise.
"""

import argparse
import contextlib
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import zarr
from rich.console import Console
from rich.table import Table

from vqbank.store.bank import FeatureStore
from vqbank.store.compact import compact
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, Video

SETS = {
    "small": (
        1200,
        {
            "clip.embedding": (14, (512,)),
            "liqe.logits": (14, (495,)),
            "qalign.hidden": (14, (4096,)),
            "slowfast.fast": (14, (256,)),
            "fastvqa.clip": (4, (768,)),
        },
    ),
    "tokens": (1200, {"clip.tokens": (8, (50, 768))}),
    "frames": (150, {"semantic.stages": (240, (7680,)), "quality.stages": (240, (1920,))}),
}
FINGERPRINT = Fingerprint(0, "")
BATCH = 16


@dataclass(frozen=True)
class Line:
    """One row of the table."""

    check: str
    what: str
    goal: str
    ratios: list[float]
    good: bool


class Data:
    """One set in every layout."""

    def __init__(self, root: Path, name: str) -> None:
        self.name = name
        self.count, self.kinds = SETS[name]
        self.root = root / name
        self.videos = [Video(f"set/{number:05}.mp4", Path("x")) for number in range(self.count)]
        rng = np.random.default_rng(0)
        self.base = {
            kind: rng.standard_normal((64, rows, *shape), dtype="f4").astype("f2")
            for kind, (rows, shape) in self.kinds.items()
        }
        self.store = FeatureStore.create(self.root / "bank")
        for kind in self.kinds:
            write_bank(self, self.store, kind, durable=False, per_shard=self.count)
            write_npy(self, self.root / "npy", kind, durable=False)
            flat = np.concatenate([self.rows(kind, n) for n in range(self.count)])
            flat.tofile(self.root / f"{kind}.flat")
            with h5py.File(self.root / f"{kind}.h5", "w") as file:
                chunk = max(1, 2**16 // flat[0].nbytes)
                file.create_dataset("values", data=flat, chunks=(chunk, *flat.shape[1:]))
                for number in range(self.count):
                    file.create_dataset(f"videos/{number}", data=self.rows(kind, number))
        self.store.refresh()
        self.table = self.store.table(self.videos, {kind: kind for kind in self.kinds})
        self.maps = {
            kind: np.memmap(
                self.root / f"{kind}.flat", "f2", "r", shape=(self.count * rows, *shape)
            )
            for kind, (rows, shape) in self.kinds.items()
        }
        self.h5 = {kind: h5py.File(self.root / f"{kind}.h5") for kind in self.kinds}
        self.zarr = {
            kind: zarr.open_array(next(self.store.path.glob(f"{kind}@*/shards/*")) / "values")
            for kind in self.kinds
        }
        self.buffer = {
            kind: np.empty((max(BATCH, self.count // 8) * rows, *shape), "f2")
            for kind, (rows, shape) in self.kinds.items()
        }

    def rows(self, kind: str, number: int) -> np.ndarray:
        return self.base[kind][number % 64]

    @property
    def nbytes(self) -> int:
        return sum(self.table.nbytes(kind) for kind in self.kinds)

    def npy(self, kind: str, number: int) -> Path:
        return self.root / "npy" / kind / f"{number}.npy"

    def batches(self, seed: int, how_many: int) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        return [rng.choice(self.count, BATCH, replace=False) for _ in range(how_many)]

    # one batch of whole videos, every kind, into reused memory ---------------------------------

    def batch_bank(self, rows: np.ndarray) -> None:
        for kind in self.kinds:
            self.table.read(kind, rows, out=self.buffer[kind])

    def batch_fresh(self, rows: np.ndarray) -> None:
        for kind in self.kinds:
            self.table.read(kind, rows)

    def batch_memmap(self, rows: np.ndarray) -> None:
        for kind, (length, _) in self.kinds.items():
            source, out, at = self.maps[kind], self.buffer[kind], 0
            for row in rows.tolist():
                out[at : at + length] = source[row * length : (row + 1) * length]
                at += length

    def batch_npy(self, rows: np.ndarray) -> None:
        for kind, (length, _) in self.kinds.items():
            out, at = self.buffer[kind], 0
            for row in rows.tolist():
                out[at : at + length] = np.load(self.npy(kind, row))
                at += length

    def batch_h5_big(self, rows: np.ndarray) -> None:
        for kind, (length, _) in self.kinds.items():
            source, out, at = self.h5[kind]["values"], self.buffer[kind], 0
            for row in rows.tolist():
                source.read_direct(
                    out, np.s_[row * length : (row + 1) * length], np.s_[at : at + length]
                )
                at += length

    def batch_h5_videos(self, rows: np.ndarray) -> None:
        for kind, (length, _) in self.kinds.items():
            out, at = self.buffer[kind], 0
            for row in rows.tolist():
                out[at : at + length] = self.h5[kind][f"videos/{row}"][...]
                at += length

    def batch_zarr(self, rows: np.ndarray) -> None:
        for kind, (length, _) in self.kinds.items():
            source, out, at = self.zarr[kind], self.buffer[kind], 0
            for row in rows.tolist():
                out[at : at + length] = source[row * length : (row + 1) * length]
                at += length

    # a full scan in order, into reused memory --------------------------------------------------

    def _blocks(self) -> Iterator[np.ndarray]:
        step = self.count // 8
        for start in range(0, self.count, step):
            yield np.arange(start, min(self.count, start + step))

    def scan_bank(self) -> None:
        for rows in self._blocks():
            self.batch_bank(rows)

    def scan_memmap(self) -> None:
        for rows in self._blocks():
            for kind, (length, _) in self.kinds.items():
                first, last = rows[0] * length, (rows[-1] + 1) * length
                self.buffer[kind][: last - first] = self.maps[kind][first:last]

    def scan_npy(self) -> None:
        for rows in self._blocks():
            self.batch_npy(rows)

    def scan_h5(self) -> None:
        for rows in self._blocks():
            for kind, (length, _) in self.kinds.items():
                first, last = int(rows[0]) * length, int(rows[-1] + 1) * length
                self.h5[kind]["values"].read_direct(
                    self.buffer[kind], np.s_[first:last], np.s_[: last - first]
                )

    def scan_zarr(self) -> None:
        for rows in self._blocks():
            for kind, (length, _) in self.kinds.items():
                first, last = int(rows[0]) * length, int(rows[-1] + 1) * length
                self.buffer[kind][: last - first] = self.zarr[kind][first:last]


def write_bank(data: Data, store: FeatureStore, kind: str, *, durable: bool, per_shard: int) -> int:
    """Write one kind; gives the payload's bytes."""
    spec = FeatureSpec(kind, data.kinds[kind][1], "float16", {"extractor": kind})
    length = data.kinds[kind][0]
    pts, index = np.arange(length) / 25.0, np.arange(length)
    payload = 0
    for first in range(0, data.count, per_shard):
        writer = store.writer(spec, provenance={}, durable=durable)
        for number in range(first, min(data.count, first + per_shard)):
            feature = Feature(data.rows(kind, number), pts, index)
            writer.add(data.videos[number].id, feature, fingerprint=FINGERPRINT, probe={})
        payload += writer.payload_bytes
        writer.commit()
    return payload


def write_npy(data: Data, folder: Path, kind: str, *, durable: bool) -> None:
    (folder / kind).mkdir(parents=True)
    for number in range(data.count):
        final = folder / kind / f"{number}.npy"
        if not durable:
            np.save(final, data.rows(kind, number))
            continue
        temporary = final.with_suffix(".tmp")
        with temporary.open("wb") as file:
            np.save(file, data.rows(kind, number))
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(final)


def seconds(work: Callable[[], object], repeats: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - start) / repeats


def compare(
    check: str,
    what: str,
    ours: Callable[[int], object],
    theirs: Callable[[int], object],
    goal: float,
    rounds: int,
    *,
    faster: bool,
) -> Line:
    """Ours against theirs: speed ratio (theirs / ours) if `faster`, else time ratio."""
    ours(0), theirs(0)
    ratios = []
    for number in range(rounds):
        sides = [0.0, 0.0]
        for side in (0, 1) if number % 2 else (1, 0):  # neither side is always the second
            sides[side] = seconds(lambda n=number, side=side: (ours, theirs)[side](n))
        ratios.append(sides[1] / sides[0] if faster else sides[0] / sides[1])
    median = statistics.median(ratios)
    sign, good = (">=", median >= goal) if faster else ("<=", median <= goal)
    return Line(check, what, f"{sign} {goal:g}", ratios, good)


def reading(sets: dict[str, Data], rounds: int) -> Iterator[Line]:
    for data in sets.values():
        data.scan_bank()
        label = f"full scan, {data.name}"
        scan = {"rounds": rounds, "faster": True}
        repeat = max(1, int(4e8 / data.nbytes))

        def many(work: Callable[[], None], times: int = repeat) -> Callable[[int], None]:
            return lambda _: [work() for _ in range(times)]

        yield compare(
            "R1", f"{label} / np.memmap", many(data.scan_bank), many(data.scan_memmap), 0.85, **scan
        )
        goal = {"small": 10, "tokens": 1.5, "frames": 1.5}[data.name]
        yield compare(
            "R2",
            f"{label} / npy per video",
            many(data.scan_bank),
            many(data.scan_npy),
            goal,
            **scan,
        )
        yield compare(
            "R3",
            f"{label} / one HDF5 dataset",
            many(data.scan_bank),
            many(data.scan_h5),
            1.2,
            **scan,
        )
        yield compare(
            "R17", f"zarr-python scan, {data.name} / np.memmap", lambda _: data.scan_zarr(),
            lambda _: data.scan_memmap(), 0.02, **scan,
        )  # fmt: skip

        label = f"batch of 16 videos, {data.name}"
        times = {"small": 60, "tokens": 15, "frames": 6}[data.name]

        def each(
            work: Callable[[np.ndarray], None], data: Data = data, times: int = times
        ) -> Callable[[int], None]:
            return lambda number: [work(rows) for rows in data.batches(number, times)]

        batch = {"rounds": rounds, "faster": False}
        check = "R4" if data.name == "small" else "R5"
        goals = {"small": (1.5, 0.2, 0.45, 0.12), "frames": (1.25, 0.9, None, 0.7)}
        memmap, npy, big, videos = goals.get(data.name, (1.25, 0.9, None, None))
        bank = each(data.batch_bank)
        yield compare(check, f"{label} / np.memmap", bank, each(data.batch_memmap), memmap, **batch)
        yield compare(check, f"{label} / npy per video", bank, each(data.batch_npy), npy, **batch)
        if big:
            rival = each(data.batch_h5_big)
            yield compare(check, f"{label} / one HDF5 dataset", bank, rival, big, **batch)
        if videos:
            rival = each(data.batch_h5_videos)
            yield compare(check, f"{label} / HDF5 dataset per video", bank, rival, videos, **batch)
        if data.name == "frames":
            fresh = each(data.batch_fresh)
            yield compare("R6", f"{label}, reused / fresh memory", bank, fresh, 0.3, **batch)
        faster = {"small": 50, "tokens": 5, "frames": 5}[data.name]
        few = {"small": 2, "tokens": 3, "frames": 2}[data.name]
        yield compare(
            "R9", f"{label} / zarr-python on the same files", each(data.batch_bank, times=few),
            each(data.batch_zarr, times=few), faster, rounds, faster=True,
        )  # fmt: skip

        def verified(number: int, data: Data = data, times: int = times) -> None:
            for kind in data.kinds:
                data.table._columns[kind]._checked[:] = False
                for source in data.table._columns[kind].sources:
                    source._checked.clear()
            order = np.random.default_rng(number).permutation(data.count)
            for start in range(0, min(len(order), times * BATCH), BATCH):
                data.batch_bank(order[start : start + BATCH])

        def trusted(number: int, data: Data = data, times: int = times) -> None:
            data.table.trust()
            # In another order than the other side, which leaves its last in the processor's cache.
            order = np.random.default_rng(number + 999).permutation(data.count)
            for start in range(0, min(len(order), times * BATCH), BATCH):
                data.batch_bank(order[start : start + BATCH])

        yield compare(
            "R14", f"{label}, first read with checksum / without", verified, trusted, 1.2, **batch
        )


def cold(sets: dict[str, Data], rounds: int) -> Iterator[Line]:
    caches = Path("/proc/sys/vm/drop_caches")
    if not os.access(caches, os.W_OK):
        return
    for name in ("small", "tokens"):
        data = sets[name]
        kinds = ["qalign.hidden"] if name == "small" else list(data.kinds)
        for kind in kinds:
            for source in data.table._columns[kind].sources:
                for number in [*source.value_files._maps]:
                    source.value_files.unmap(
                        number
                    )  # pages that a process has mapped are not dropped

        def read(number: int, data: Data = data, kinds: list[str] = kinds, *, ahead: bool) -> float:
            os.sync()
            caches.write_text("3\n")
            store = FeatureStore(data.store.path)
            table = store.table(data.videos, {kind: kind for kind in kinds})
            table.trust()
            rows = data.batches(number, 1)[0]
            for kind in kinds:
                table.read(kind, [0], out=data.buffer[kind])
            start = time.perf_counter()
            for kind in kinds:
                if ahead:
                    table.prefetch(kind, rows)
                table.read(kind, rows, out=data.buffer[kind])
            return time.perf_counter() - start

        ratios = [read(n, ahead=True) / read(n + 999, ahead=False) for n in range(rounds)]
        good = statistics.median(ratios) <= 0.5
        what = f"cold batch, {', '.join(kinds)}, prefetched / plain map"
        yield Line("R7", what, "<= 0.5", ratios, good)


@contextlib.contextmanager
def memory_limit(limit_bytes: int) -> Iterator[bool]:
    """This process in a memory cgroup, if the machine lets us."""
    group = Path("/sys/fs/cgroup/memory/vqbank-benchmark")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
        (group / "cgroup.procs").write_text(str(os.getpid()))
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3\n")  # cached pages belong to no limit
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        (group.parent / "cgroup.procs").write_text(str(os.getpid()))
        (group / "memory.force_empty").write_text("0")
        group.rmdir()


def beyond_memory(data: Data, rounds: int) -> Iterator[Line]:
    """Whole random epochs over per-frame features that do not fit."""
    kind = "semantic.stages"
    length = data.kinds[kind][0]
    total = np.zeros(1)

    table = FeatureStore(data.store.path).table(data.videos, {kind: kind})
    table.trust()

    def bank(number: int) -> None:
        rng = np.random.default_rng(number)
        for rows, window in table.windows(videos=32, rng=rng):
            values, offsets = window[kind]
            for place in rng.permutation(len(rows)).tolist():
                total[0] += values[offsets[place], 0]

    def npy(number: int) -> None:
        for row in np.random.default_rng(number).permutation(data.count).tolist():
            values = np.load(data.npy(kind, row))
            assert len(values) == length
            total[0] += values[0, 0]

    with memory_limit(300 * 2**20) as limited:
        if not limited:
            return
        what = f"{data.table.nbytes(kind) / 1e6:.0f} MB in 300 MB: shuffled windows / npy per video"
        yield compare("R8", what, bank, npy, 1.0, rounds, faster=True)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def writing(sets: dict[str, Data], root: Path, rounds: int) -> Iterator[Line]:
    def fresh(name: str) -> Path:
        shutil.rmtree(root / name, ignore_errors=True)
        return root / name

    frames, small = sets["frames"], sets["small"]
    kind = "semantic.stages"

    def bank(data: Data, kinds: list[str], *, durable: bool, per_shard: int) -> None:
        store = FeatureStore.create(fresh("written"))
        for one in kinds:
            write_bank(data, store, one, durable=durable, per_shard=per_shard)

    def npy(data: Data, kinds: list[str], *, durable: bool) -> None:
        folder = fresh("npys")
        for one in kinds:
            write_npy(data, folder, one, durable=durable)

    os.sync()
    options = {"rounds": rounds, "faster": True}
    yield compare(
        "R10", "write without fsync, frames / np.save",
        lambda _: bank(frames, [kind], durable=False, per_shard=64),
        lambda _: npy(frames, [kind], durable=False), 0.4, **options,
    )  # fmt: skip
    yield compare(
        "R10", "write with fsync, frames / tmp + fsync + rename",
        lambda _: bank(frames, [kind], durable=True, per_shard=64),
        lambda _: npy(frames, [kind], durable=True), 0.5, **options,
    )  # fmt: skip
    kinds = list(small.kinds)
    yield compare(
        "R10", "write with fsync, small kinds / tmp + fsync + rename",
        lambda _: bank(small, kinds, durable=True, per_shard=256),
        lambda _: npy(small, kinds, durable=True), 3.0, **options,
    )  # fmt: skip

    for data, names, per_shard in [(frames, [kind], 64), (small, kinds, 256)]:
        store = FeatureStore.create(fresh("written"))
        before = written_bytes()
        payload = sum(
            write_bank(data, store, one, durable=True, per_shard=per_shard) for one in names
        )
        ratio = (written_bytes() - before) / payload
        what = f"bytes written / payload, {data.name}, {per_shard} videos a shard"
        yield Line("R11", what, "<= 1.02", [ratio], ratio <= 1.02)

    store = FeatureStore.create(fresh("written"))
    spec = FeatureSpec(kind, frames.kinds[kind][1], "float16", {"extractor": kind})
    writer = store.writer(spec, provenance={})
    used, largest = resident_bytes(), 0
    for number in range(frames.count):
        length = frames.kinds[kind][0]
        feature = Feature(frames.rows(kind, number), np.arange(length) / 25.0, np.arange(length))
        writer.add(frames.videos[number].id, feature, fingerprint=FINGERPRINT, probe={})
        largest = max(largest, resident_bytes() - used)
    writer.abandon()
    video = frames.rows(kind, 0).nbytes
    what = "writer's resident memory / (1 MiB + one video)"
    ratio = largest / (2**20 + video)
    yield Line("R11", what, "<= 1", [ratio], ratio <= 1)

    def parts() -> FeatureStore:
        made = FeatureStore.create(fresh("parts"))
        write_bank(frames, made, kind, durable=False, per_shard=16)
        made.refresh()
        return made

    ratios = []
    for _ in range(rounds):
        made = parts()
        for source in made._catalogue(made.resolve(kind)).shards:
            made._shard(made.resolve(kind), source)
        ours = seconds(lambda store=made: compact(store, store.resolve(kind), durable=False))
        theirs = seconds(lambda: npy(frames, [kind], durable=False))
        ratios.append(theirs / ours)
    good = statistics.median(ratios) >= 0.4
    yield Line("R12", "compact, frames / np.save", ">= 0.4", ratios, good)


def written_bytes() -> int:
    os.sync()
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("write_bytes")).split()[1])


def opening(root: Path, rounds: int, count: int = 38_811) -> Iterator[Line]:
    """A bank with as many videos as LSVQ, five kinds of tiny rows."""
    store = FeatureStore.create(root / "large")
    videos = [Video(f"LSVQ/yfcc-batch{n % 30}/{n:06}.mp4", Path("x")) for n in range(count)]
    kinds = [f"kind{number}.rows" for number in range(5)]
    probe = {"width": 1920, "height": 1080, "frames": 240, "rate": 29.97, "codec": "h264"}
    values = np.ones((2, 8), "f2")
    empty: list[float] = []

    def append(kind: str, first: int, many: int = 64) -> float:
        start = time.perf_counter()
        spec = FeatureSpec(kind, (8,), "float16", {"extractor": kind})
        writer = FeatureStore(store.path).writer(spec, provenance={})
        for video in videos[first : first + many]:
            feature = Feature(values, np.arange(2.0), np.arange(2))
            writer.add(video.id, feature, fingerprint=FINGERPRINT, probe=probe)
        writer.commit()
        return time.perf_counter() - start

    append("warm.up", 0)
    for kind in kinds:
        for first in range(0, count, 64):
            spent = append(kind, first)
            if first < 64 * rounds:
                empty.append(spent)
    full = [append(kinds[0], 0) for _ in range(5 * rounds)]
    ratio = statistics.median(full) / statistics.median(empty)
    yield Line("append", f"64 videos at {count} videos / at 0", "<= 1.2", [ratio], ratio <= 1.2)

    for kind in kinds:
        opened = FeatureStore(store.path)
        compact(opened, opened.resolve(kind))
    chosen = [videos[n] for n in np.random.default_rng(0).choice(count, 1200, replace=False)]
    FeatureStore(store.path).table(chosen, {kind: kind for kind in kinds})
    milliseconds, megabytes, one = [], [], []
    for _ in range(rounds):
        pid = os.fork()
        if not pid:  # a fresh process, so that nothing is left in memory
            start = time.perf_counter()
            before = resident_bytes()
            table = FeatureStore(store.path).table(chosen, {kind: kind for kind in kinds})
            spent = time.perf_counter() - start
            table.lengths(kinds[0])
            used = resident_bytes() - before
            start = time.perf_counter()
            FeatureStore(store.path).find(store.resolve(kinds[0]), [videos[7].id])
            first = time.perf_counter() - start
            (root / "opened").write_text(f"{spent} {used} {first}")
            os._exit(0)
        os.waitpid(pid, 0)
        spent, used, first = map(float, (root / "opened").read_text().split())
        milliseconds.append(spent * 1e3)
        megabytes.append(used / 1e6)
        one.append(first * 1e3)
    good = statistics.median(milliseconds) <= 100
    what = f"open and select 1,200 of {count} x 5 kinds, ms"
    yield Line("R13", what, "<= 100", milliseconds, good)
    good = statistics.median(megabytes) <= 300
    yield Line("R13", "the same, MB", "<= 300", megabytes, good)
    good = statistics.median(one) <= 10
    yield Line("R13", "open one kind, ms", "<= 10", one, good)
    live = {
        spec.key: {shard.id for shard, _ in filter(None, store.find(spec, [v.id for v in videos]))}
        for store in [FeatureStore(store.path)]
        for spec in store.specs()
    }
    files = sum(
        1
        for key, shards in live.items()
        for shard in shards
        for path in [*(store.path / key / "shards" / shard).rglob("*"), None]
        if path is None or path.is_file()
    )
    yield Line("R13", "files of live shards after compact", "< 5000", [files], files < 5000)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--folder", type=Path, help="where to put about 6 GB (default: temporary)")
    options.add_argument("--only", help="comma-separated parts: read, cold, memory, write, open")
    given = options.parse_args()
    parts = set((given.only or "read,cold,memory,write,open").split(","))
    root = Path(tempfile.mkdtemp(prefix="vqbank-", dir=given.folder))
    console = Console(width=110)
    table = Table("check", "ours / theirs", "goal", "median", "lowest", "highest", "")
    try:
        sets = {name: Data(root, name) for name in SETS} if parts - {"open"} else {}
        runs: list[Iterator[Line]] = []
        if "read" in parts:
            runs.append(reading(sets, given.rounds))
        if "cold" in parts:
            runs.append(cold(sets, given.rounds))
        if "memory" in parts:
            runs.append(beyond_memory(sets["frames"], given.rounds))
        if "write" in parts:
            runs.append(writing(sets, root, given.rounds))
        if "open" in parts:
            runs.append(opening(root, given.rounds))
        for run in runs:
            for line in run:
                cells = (statistics.median(line.ratios), min(line.ratios), max(line.ratios))
                verdict = "met" if line.good else "MISSED"
                shown = [f"{cell:.3g}" for cell in cells]
                console.print(f"{line.check}: {line.what}: {shown[0]} ({line.goal}) {verdict}")
                table.add_row(line.check, line.what, line.goal, *shown, verdict)
        console.print(table)
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
