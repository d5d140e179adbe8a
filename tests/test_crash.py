"""Kill anything at any moment: what was acknowledged is there, and nothing else can be read.

This file is also the program that is killed: `python tests/test_crash.py JSON` runs one of
`OPERATIONS` and says on its standard output what it has begun and what is done.  All content
follows from a video's id and version, so that every row that can be read can be judged.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from vqbank.store.bank import FeatureStore
from vqbank.store.commits import mark_bad
from vqbank.store.compact import compact
from vqbank.store.errors import BankError, DamagedShardError, VqbankError
from vqbank.store.merge import merge
from vqbank.store.prune import prune
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, SideSpec

SPEC = FeatureSpec(
    "clip.embedding",
    (512,),
    "float16",
    {"extractor": "crash"},
    (SideSpec("offsets", (2,), "int16"),),
)
IDS = [f"set/v{number:03}.mp4" for number in range(48)]
MORE = [f"more/v{number:03}.mp4" for number in range(24)]
SHARD_VIDEOS = 12
"""About 1.5 MB, more than the writer's buffer: rows reach the file while others are computed."""

Say = Callable[[str], None]
Versions = Mapping[str, int]


@cache
def content(video_id: str, version: int) -> Feature:
    """20 to 219 rows without a zero among them."""
    seed = zlib.crc32(f"{video_id} {version}".encode())
    rows = 20 + seed % 200
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((rows, 512), "f4").astype("f2").astype("f4")
    offsets = generator.integers(1, 1000, (rows, 2)).astype("i2")
    return Feature(values, np.arange(rows) / 25, np.arange(rows) * 2 + seed, {"offsets": offsets})


def add(
    path: Path,
    versions: Versions,
    *,
    say: Say = lambda line: None,
    durable: bool = True,
    supersedes: Sequence[Mapping[str, Any]] = (),
) -> str:
    """One shard; gives its id."""
    store = FeatureStore.create(path)
    say("begin write")
    writer = store.writer(SPEC, provenance={}, durable=durable)
    for video_id, version in versions.items():
        writer.add(
            video_id,
            content(video_id, version),
            fingerprint=Fingerprint(len(video_id), video_id),
            probe={"version": version},
        )
    say("begin commit")
    writer.commit(supersedes=supersedes)
    say("done " + json.dumps(versions))
    return writer.id


def write(
    folder: Path,
    say: Say,
    *,
    worker: int = 0,
    workers: int = 1,
    ids: Sequence[str] = IDS,
    durable: bool = True,
) -> None:
    """What is missing, a shard at a time; several writers share every sixth video."""
    known = set(FeatureStore.create(folder / "bank").video_ids(SPEC))
    mine = [v for n, v in enumerate(ids) if n % workers == worker or n % 6 == 0]
    missing = [video_id for video_id in mine if video_id not in known]
    for start in range(0, len(missing), SHARD_VIDEOS):
        batch = missing[start : start + SHARD_VIDEOS]
        add(folder / "bank", dict.fromkeys(batch, 1), say=say, durable=durable)


def mark(folder: Path, say: Say, *, shard: str, videos: Sequence[str]) -> None:
    mark_bad(folder / "bank" / SPEC.key, shard, videos)
    say("done {}")


def compacting(folder: Path, say: Say) -> None:
    say("begin compact")
    compact(FeatureStore(folder / "bank"), SPEC, shard_bytes=2**20)
    say("done {}")


def merging(folder: Path, say: Say) -> None:
    sources = [FeatureStore(path) for path in sorted((folder / "sources").iterdir())]
    target = FeatureStore.create(folder / "bank")
    say("begin merge")
    merge(target, sources)
    say("done {}")


def pruning(folder: Path, say: Say) -> None:
    store = FeatureStore(folder / "bank")
    say("begin prune")
    prune(store, dry_run=False, older_than_seconds=0)
    say("done {}")


OPERATIONS: dict[str, Callable[..., None]] = {
    "write": write,
    "mark": mark,
    "compact": compacting,
    "merge": merging,
    "prune": pruning,
}


# The program that is killed


STEPS = {
    *("open", "write", "flush", "truncate", "close", "__exit__", "fsync", "fdatasync", "sendfile"),
    *("link", "rename", "replace", "mkdir", "unlink", "remove", "rmdir", "copy_file_range"),
}


def is_step(function: Any) -> bool:
    """Whether a built-in function changes what is on disk, or may."""
    of_file = isinstance(getattr(function, "__self__", None), io_classes())
    return function.__name__ in STEPS and (of_file or function.__module__ in ("posix", "io", "_io"))


@cache
def io_classes() -> tuple[type, ...]:
    import io

    return (io.BufferedIOBase, io.RawIOBase)


def count_steps(fatal: int) -> Callable[[], int]:
    """Count steps that have returned, and die at the one numbered `fatal`."""
    count = 0

    def hook(frame: FrameType, event: str, function: Any) -> None:
        nonlocal count
        if event == "c_return" and is_step(function):
            count += 1
            if count == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(hook)
    return lambda: count


def record_calls() -> list[list[Any]]:
    """What is made, named, synced and removed from now on, in order."""
    calls: list[list[Any]] = []

    def made(path: Any) -> str:
        path = Path(os.fsdecode(path))
        return "known" if path.exists() or path.is_symlink() else "made"

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if (
            event == "open"
            and not isinstance(given[0], int)
            and given[2] & (os.O_WRONLY | os.O_RDWR)
        ):
            calls.append(["open", os.fsdecode(given[0]), made(given[0])])
        elif event == "os.mkdir":
            calls.append(["mkdir", os.fsdecode(given[0]), made(given[0])])
        elif event in ("os.link", "os.rename"):
            calls.append([event[3:], os.fsdecode(given[0]), os.fsdecode(given[1])])
        elif event in ("os.remove", "os.rmdir", "shutil.rmtree"):
            calls.append(["remove", os.fsdecode(given[0])])

    def traced(sync: Callable[[Any], None]) -> Callable[[Any], None]:
        def call(file: Any) -> None:
            sync(file)
            status = os.fstat(file if isinstance(file, int) else file.fileno())
            calls.append(["sync", status.st_ino, status.st_size])

        return call

    os.fsync = traced(os.fsync)
    if hasattr(os, "fdatasync"):
        os.fdatasync = traced(os.fdatasync)
    sys.addaudithook(hook)
    return calls


def main(text: str) -> None:
    order = json.loads(text)

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    operation = OPERATIONS[order["operation"]]
    operation_options = order["options"]
    say("ready")
    sys.stdin.readline()
    if order["trace"]:
        calls = record_calls()
        operation(Path(order["folder"]), say, **operation_options)
        say("trace " + json.dumps(calls))
        return
    steps = count_steps(order["fatal"]) if order["fatal"] is not None else None
    operation(Path(order["folder"]), say, **operation_options)
    if steps is not None:
        sys.setprofile(None)
        say(f"steps {steps()}")


# What kills it and looks at what is left


@dataclass
class Figures:
    """What came of some kills."""

    kills: int = 0
    acknowledged: int = 0
    lost: int = 0
    wrong: int = 0
    repairs: int = 0
    resumed: int = 0

    def report(self, tried: Callable[..., None], what: str, *, kills: int) -> None:
        """Take the figures down, and hold them to what was promised."""
        tried(f"store: {what}", self.kills, self.lost, self.wrong, self.resumed)
        assert self.kills >= kills
        assert self.acknowledged
        assert (self.lost, self.wrong, self.repairs) == (0, 0, 0)


def total(figures: Sequence[Figures]) -> Figures:
    return Figures(*map(sum, zip(*map(astuple, figures), strict=True)))


def start(
    operation: str, folder: Path, *, fatal: int | None = None, trace: bool = False, **options: Any
) -> subprocess.Popen[str]:
    """A process that has imported everything and waits for one line before it begins."""
    order = {"operation": operation, "folder": str(folder), "fatal": fatal, "trace": trace}
    process = subprocess.Popen(
        [sys.executable, __file__, json.dumps({**order, "options": options})],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def lines_of(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdin
    assert process.stdout
    process.stdin.write("go\n")
    process.stdin.flush()
    for line in process.stdout:
        yield line.rstrip("\n")


def run(process: subprocess.Popen[str]) -> list[str]:
    """Let it end by itself, or by the step that is fatal for it."""
    with process:
        lines = list(lines_of(process))
    assert process.returncode in (0, -signal.SIGKILL)
    return lines


def seconds_between(process: subprocess.Popen[str], begin: str) -> list[float]:
    """How long each stretch took that begins with the line `begin`, and ends with the next one."""
    with process:
        times = [(time.perf_counter(), line) for line in lines_of(process)]
    pairs = pairwise(times)
    return [end - start for (start, line), (end, _) in pairs if line == begin]


def kill_after(process: subprocess.Popen[str], begin: str, count: int, delay: float) -> list[str]:
    """SIGKILL `delay` seconds after it said `begin` for the time numbered `count`, from 0."""
    lines = []
    with process:
        for line in lines_of(process):
            lines.append(line)
            if line == begin and not count:
                time.sleep(delay)
                process.kill()
            count -= line == begin
    assert process.returncode in (0, -signal.SIGKILL)
    return lines


def was_killed(process: subprocess.Popen[str]) -> bool:
    return process.returncode == -signal.SIGKILL


def acknowledged_in(lines: Sequence[str]) -> dict[str, int]:
    done: dict[str, int] = {}
    for line in lines:
        if line.startswith("done "):
            done |= json.loads(line.removeprefix("done "))
    return done


def examine(bank: Path, acknowledged: Versions, expected: Versions) -> Figures:
    """Judge a bank as it lies, by what was acknowledged and by what may be read in it."""
    figures = Figures()
    if not acknowledged and not (bank / "bank.json").exists():
        return figures  # killed before there was a bank
    try:
        store = FeatureStore(bank)
        store.specs()
        ids = store.video_ids(SPEC)
    except VqbankError:
        figures.repairs += 1
        return figures
    figures.lost = len(set(acknowledged) - set(ids))
    figures.wrong = sum(not is_right(store, video_id, expected) for video_id in ids)
    return figures


def is_right(store: FeatureStore, video_id: str, expected: Versions) -> bool:
    if video_id not in expected:
        return False
    given = content(video_id, expected[video_id])
    try:
        read = store.read(SPEC, video_id)
        record = store.video_record(SPEC, video_id)
    except VqbankError:
        return False
    return (
        np.array_equal(read.values, given.values)
        and np.array_equal(read.pts_seconds, given.pts_seconds)
        and np.array_equal(read.frame_index, given.frame_index)
        and np.array_equal(read.side["offsets"], given.side["offsets"])
        and record.probe == {"version": expected[video_id]}
        and record.fingerprint == Fingerprint(len(video_id), video_id)
    )


def rows_of(bank: Path) -> dict[str, bytes]:
    """The set of (video id, bytes) that makes two banks the same."""
    store = FeatureStore(bank)
    return {
        video_id: b"".join(
            np.ascontiguousarray(array).tobytes()
            for read in [store.read(SPEC, video_id)]
            for array in (read.values, read.pts_seconds, read.frame_index, read.side["offsets"])
        )
        for video_id in store.video_ids(SPEC)
    }


def silent(line: str) -> None:
    pass


ALL = dict.fromkeys(IDS, 1)


def test_no_row_that_the_tests_write_is_a_row_of_zeros():
    """A row that was lost and reads as zeros can therefore not pass for what was written."""
    for video_id in IDS:
        assert content(video_id, 1).values.any(axis=1).all()


@pytest.mark.soak
@pytest.mark.parametrize("phase", ["write", "commit"])
def test_a_writer_killed_at_random_moments_loses_nothing(tmp_path, tried, phase):
    """Again and again in one bank, until the run is through."""
    rng = np.random.default_rng(15)
    durations = seconds_between(start("write", tmp_path / "whole"), f"begin {phase}")
    whole = rows_of(tmp_path / "whole" / "bank")
    figures = Figures()
    while figures.kills < 24:
        folder = tmp_path / f"after {figures.kills}"
        acknowledged: dict[str, int] = {}
        for _ in range(4):
            process = start("write", folder)
            count = int(rng.integers(3))
            delay = rng.uniform(0, 1.1 * durations[count])
            acknowledged |= acknowledged_in(kill_after(process, f"begin {phase}", count, delay))
            figures = total([figures, examine(folder / "bank", acknowledged, ALL)])
            figures.kills += was_killed(process)
        before = set(FeatureStore(folder / "bank").video_ids(SPEC))
        again = acknowledged_in(run(start("write", folder)))
        assert not before & set(again)
        assert rows_of(folder / "bank") == whole
        figures.resumed += 1
        figures.acknowledged += len(acknowledged)
        shutil.rmtree(folder)
    figures.report(tried, f"{phase}, 1 writer, random moments", kills=24)


@pytest.mark.soak
@pytest.mark.parametrize("phase", ["write", "commit"])
def test_four_writers_killed_at_random_moments_lose_nothing(tmp_path, tried, phase):
    """They make the bank together, and all of them bank every sixth video."""
    rng = np.random.default_rng(16)
    together = [start("write", tmp_path / "whole", worker=w, workers=4) for w in range(4)]
    with ThreadPoolExecutor(4) as pool:
        measured = list(pool.map(lambda p: seconds_between(p, f"begin {phase}"), together))
    assert all(not process.returncode for process in together)
    whole = rows_of(tmp_path / "whole" / "bank")
    durations = np.median([seconds for writer in measured for seconds in writer])
    figures = Figures()

    while figures.kills < 24:
        folder = tmp_path / f"after {figures.kills}"
        acknowledged: dict[str, int] = {}
        for _ in range(2):
            writers = [start("write", folder, worker=w, workers=4) for w in range(4)]
            with ThreadPoolExecutor(4) as pool:
                said = pool.map(
                    kill_after,
                    writers,
                    [f"begin {phase}"] * 4,
                    rng.integers(2, size=4).tolist(),
                    rng.uniform(0, 1.1 * durations, size=4).tolist(),
                )
                for lines in said:
                    acknowledged |= acknowledged_in(lines)
            figures = total([figures, examine(folder / "bank", acknowledged, ALL)])
            figures.kills += sum(map(was_killed, writers))
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(run, [start("write", folder, worker=w, workers=4) for w in range(4)]))
        assert rows_of(folder / "bank") == whole
        figures.resumed += 1
        figures.acknowledged += len(acknowledged)
        shutil.rmtree(folder)
    figures.report(tried, f"{phase}, 4 writers, random moments", kills=24)


def killed_at_every_step(
    folder: Path,
    operation: str,
    prepare: Callable[[Path], None],
    expected: Versions,
    kills: int,
    **options: Any,
) -> Figures:
    """Kill it after so many of its steps, each in a fresh copy, and then let it run through."""
    prepare(folder / "whole")
    lines = run(start(operation, folder / "whole", fatal=0, **options))
    steps = int(lines[-1].removeprefix("steps "))
    whole = rows_of(folder / "whole" / "bank")

    def killed_at(step: int) -> Figures:
        here = folder / f"step {step}"
        prepare(here)
        before = dict.fromkeys(visible(here / "bank"), 0)
        process = start(operation, here, fatal=step, **options)
        acknowledged = acknowledged_in(run(process))
        assert was_killed(process)
        figures = examine(here / "bank", {**before, **acknowledged}, expected)
        figures.kills = 1
        figures.acknowledged = len({**before, **acknowledged})
        OPERATIONS[operation](here, silent, **options)
        assert rows_of(here / "bank") == whole, f"after a kill at step {step} of {steps}"
        figures.resumed += 1
        shutil.rmtree(here)
        return figures

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        chosen = np.unique(np.linspace(1, steps, kills).round().astype(int)).tolist()
        return total(list(pool.map(killed_at, chosen)))


def visible(bank: Path) -> list[str]:
    return FeatureStore(bank).video_ids(SPEC) if bank.exists() else []


@pytest.mark.soak
def test_a_writer_killed_at_any_step_loses_nothing(tmp_path, tried):
    """From making the bank to two commits; a step is a call that opens, writes, syncs or names."""
    figures = killed_at_every_step(
        tmp_path, "write", lambda folder: None, ALL, kills=80, ids=IDS[:24]
    )
    figures.report(tried, "write and commit, 1 writer, step by step", kills=80)


# A bank with a past, and what keeps it in order


def lived_in(path: Path) -> dict[str, int]:
    """A bank of many small shards in which older rows lie that must never win again.

    Gives the version of each video that counts.
    """
    expected = dict(ALL)
    first = add(path, dict.fromkeys(IDS[:12], 1))
    add(path, dict.fromkeys(IDS[12:24], 1))
    second = add(path, dict.fromkeys(IDS[:6], 2), supersedes=[{"shard": first, "videos": IDS[:6]}])
    add(path, dict.fromkeys(IDS[:3], 3), supersedes=[{"shard": second, "videos": IDS[:3]}])
    expected |= dict.fromkeys(IDS[:6], 2) | dict.fromkeys(IDS[:3], 3)
    add(path, dict.fromkeys(IDS[20:28], 1))  # four of them again
    damaged = add(path, dict.fromkeys(IDS[28:36], 9))
    mark_bad(path / SPEC.key, damaged, IDS[28:36])
    add(path, dict.fromkeys(IDS[28:36], 1))
    for start in range(36, 44, 2):
        add(path, dict.fromkeys(IDS[start : start + 2], 1))
    chain = add(path, dict.fromkeys(IDS[44:], 1))
    for version in (2, 3):
        chain = add(
            path, dict.fromkeys(IDS[44:], version), supersedes=[{"shard": chain, "videos": "all"}]
        )
    return expected | dict.fromkeys(IDS[44:], 3)


def litter(path: Path) -> None:
    """What killed writers leave."""
    folder = path / SPEC.key
    shard = records_of(path)[0].stem
    shutil.copytree(folder / "shards" / shard, folder / "shards" / "0123456789abcdef")
    for room in (path, folder, folder / "commits"):
        (room / ".record.json.0123.tmp").write_bytes(b"{")


@dataclass(frozen=True)
class Past:
    """Banks to begin with, and what may be read once an operation has begun on them."""

    folder: Path
    expected: Versions

    def copy(self, folder: Path) -> None:
        shutil.copytree(self.folder, folder)


@pytest.fixture(scope="module")
def past(tmp_path_factory) -> Callable[[str], Past]:
    @cache
    def made(operation: str) -> Past:
        folder = tmp_path_factory.mktemp(operation)
        if operation != "merge":
            expected = lived_in(folder / "bank")
            litter(folder / "bank")
            return Past(folder, expected)
        expected = lived_in(folder / "sources" / "one")
        others = [f"other/v{number:03}.mp4" for number in range(12)]
        for start in range(0, 12, 4):
            add(folder / "sources" / "two", dict.fromkeys(others[start : start + 4], 1))
        add(folder / "sources" / "two", dict.fromkeys(IDS[36:40], 1))
        own = [f"own/v{number:03}.mp4" for number in range(8)]
        add(folder / "bank", dict.fromkeys(own, 1))
        return Past(folder, expected | dict.fromkeys([*others, *own], 1))

    return made


UPKEEP = ["compact", "merge", "prune"]


@pytest.mark.soak
@pytest.mark.parametrize("operation", UPKEEP)
def test_upkeep_killed_at_any_step_loses_nothing(tmp_path, tried, past, operation):
    begin = past(operation)
    figures = killed_at_every_step(tmp_path, operation, begin.copy, begin.expected, kills=48)
    figures.report(tried, f"{operation}, alone, step by step", kills=48)


@pytest.mark.soak
@pytest.mark.parametrize("operation", UPKEEP)
def test_upkeep_killed_at_random_moments_loses_nothing(tmp_path, tried, past, operation):
    """Again and again in one bank, until it is through."""
    begin = past(operation)
    rng = np.random.default_rng(18)
    begin.copy(tmp_path / "whole")
    (duration,) = seconds_between(start(operation, tmp_path / "whole"), f"begin {operation}")
    whole = rows_of(tmp_path / "whole" / "bank")
    figures = Figures()
    while figures.kills < 16:
        folder = tmp_path / f"after {figures.kills}"
        begin.copy(folder)
        before = dict.fromkeys(visible(folder / "bank"), 0)
        for _ in range(3):
            process = start(operation, folder)
            kill_after(process, f"begin {operation}", 0, rng.uniform(0, duration))
            figures = total([figures, examine(folder / "bank", before, begin.expected)])
            figures.kills += was_killed(process)
        OPERATIONS[operation](folder, silent)
        assert rows_of(folder / "bank") == whole
        figures.resumed += 1
        figures.acknowledged += len(before)
        shutil.rmtree(folder)
    figures.report(tried, f"{operation}, alone, random moments", kills=16)


TOGETHER = {
    "compact": [("compact", {}), ("compact", {})],
    "merge": [("merge", {}), ("merge", {}), ("merge", {})],
    "prune": [("prune", {}), ("prune", {}), ("prune", {}), ("prune", {})],
}
"""What runs at once; writers of more videos make up four.

None write beside `prune`, which is told here that whatever is unfinished belongs to nobody.
"""


@pytest.mark.soak
@pytest.mark.parametrize("operation", UPKEEP)
def test_upkeep_killed_beside_others_loses_nothing(tmp_path, tried, past, operation):
    begin = past(operation)
    rng = np.random.default_rng(19)
    upkeep = TOGETHER[operation]
    writers = 4 - len(upkeep)
    orders = [
        *upkeep,
        *(("write", {"worker": w, "workers": writers, "ids": MORE}) for w in range(writers)),
    ]
    expected = {**begin.expected, **(dict.fromkeys(MORE, 1) if writers else {})}

    def started(folder: Path) -> list[subprocess.Popen[str]]:
        return [start(name, folder, **options) for name, options in orders]

    begin.copy(tmp_path / "whole")
    processes = started(tmp_path / "whole")
    with ThreadPoolExecutor(4) as pool:
        began = time.perf_counter()
        list(pool.map(run, processes))
        duration = time.perf_counter() - began
    assert examine(tmp_path / "whole" / "bank", expected, expected) == Figures()
    whole = rows_of(tmp_path / "whole" / "bank")
    figures = Figures()
    while figures.kills < 16:
        folder = tmp_path / f"after {figures.kills}"
        begin.copy(folder)
        acknowledged = dict.fromkeys(visible(folder / "bank"), 0)
        for _ in range(2):
            processes = started(folder)
            with ThreadPoolExecutor(4) as pool:
                begins = [f"begin {name}" for name, _ in orders]
                delays = rng.uniform(0, duration, 4).tolist()
                for lines in pool.map(kill_after, processes, begins, [0] * 4, delays):
                    acknowledged |= acknowledged_in(lines)
            figures = total([figures, examine(folder / "bank", acknowledged, expected)])
            figures.kills += sum(map(was_killed, processes))
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(run, started(folder)))
        assert rows_of(folder / "bank") == whole
        figures.resumed += 1
        figures.acknowledged += len(acknowledged)
        shutil.rmtree(folder)
    figures.report(tried, f"{operation}, {len(upkeep)} and {writers} writers at once", kills=16)


# The order of what reaches the disk


Calls = list[list[Any]]


def calls_of(operation: str, folder: Path, **options: Any) -> Calls:
    lines = run(start(operation, folder, trace=True, **options))
    return json.loads(lines[-1].removeprefix("trace "))


def at_risk(calls: Calls, moment: int, path: Path, *, unsynced: Sequence[Path] = ()) -> list[str]:
    """What a power cut at call number `moment` could take of a file or of a name on its way.

    Bytes are safe once their file was synced after the last opening for writing, a name is safe
    once its folder was synced after the name was made.  What was there before the first call is
    safe, but for the names `unsynced`.
    """
    past = list(enumerate(calls[:moment]))
    synced = [(number, call[1], call[2]) for number, call in past if call[0] == "sync"]
    names = [
        str(path),
        *(call[1] for _, call in past if call[0] == "link" and call[2] == str(path)),
    ]
    opened = [number for number, call in past if call[0] == "open" and call[1] in names]
    status = path.stat()
    risks = []
    if opened and not any(
        number > opened[-1] and (inode, size) == (status.st_ino, status.st_size)
        for number, inode, size in synced
    ):
        risks.append(f"the bytes of {path}")
    for name in (path, *path.parents):
        made = [
            number
            for number, call in past
            if (call[0] in ("open", "mkdir") and call[1:] == [str(name), "made"])
            or (call[0] in ("link", "rename") and call[2] == str(name))
        ]
        made = made or [-1] * (name in unsynced)
        folder = name.parent.stat().st_ino
        if made and not any(n > made[-1] and inode == folder for n, inode, _ in synced):
            risks.append(f"the name {name}")
    return risks


def naming(calls: Calls, record: Path) -> int:
    """The number of the call that gives a commit record its name."""
    (number,) = (
        number
        for number, call in enumerate(calls)
        if call[0] in ("link", "rename") and call[2] == str(record)
    )
    return number


def records_of(bank: Path) -> list[Path]:
    records = [path for path in bank.glob("*@*/commits/*.json") if not path.name.startswith(".")]
    assert records
    return records


@pytest.fixture(scope="module")
def first_commit(tmp_path_factory) -> tuple[Path, Calls]:
    """A bank in a folder that did not exist either, and the calls that made it."""
    folder = tmp_path_factory.mktemp("trace") / "runs" / "new"
    return folder / "bank", calls_of("write", folder, ids=IDS[:3])


def test_all_of_a_shard_is_on_disk_before_its_commit_record_has_its_name(first_commit):
    """Bytes and names, of files and of every folder down to them."""
    bank, calls = first_commit
    for record in records_of(bank):
        shard = bank / SPEC.key / "shards" / record.stem
        files = [path for path in shard.rglob("*") if path.is_file()]
        assert len(files) > 10
        moment = naming(calls, record)
        risks = {risk for path in files for risk in at_risk(calls, moment, path)}
        assert not risks


def test_bank_and_spec_are_on_disk_before_the_first_commit_record_has_its_name(first_commit):
    bank, calls = first_commit
    moment = min(naming(calls, record) for record in records_of(bank))
    for path in (bank / "bank.json", bank / SPEC.key / "spec.json"):
        assert not at_risk(calls, moment, path)


def test_a_commit_record_is_whole_on_disk_before_it_has_its_name(first_commit):
    bank, calls = first_commit
    for record in records_of(bank):
        moment = naming(calls, record)
        status = record.stat()
        assert ["sync", status.st_ino, status.st_size] in calls[:moment]


def test_folders_reach_the_disk_from_the_bottom_up(first_commit):
    """A folder's names are synced only when what they name is complete."""
    bank, calls = first_commit
    synced = [call[1] for call in calls if call[0] == "sync"]
    for record in records_of(bank):
        shard = bank / SPEC.key / "shards" / record.stem
        for folder in [path for path in shard.rglob("*") if path.is_dir()]:
            assert synced.index(folder.stat().st_ino) < synced.index(folder.parent.stat().st_ino)


def test_when_commit_returns_nothing_of_it_is_at_risk(first_commit):
    bank, calls = first_commit
    for record in records_of(bank):
        assert not at_risk(calls, len(calls), record)


@pytest.mark.parametrize("left", ["folder of the feature", "spec", "commits"])
def test_a_commit_does_not_trust_what_a_killed_writer_may_not_have_synced(tmp_path, left):
    """It was killed after it made the last of these names, and before it synced the folder."""
    bank = tmp_path / "bank"
    FeatureStore.create(bank)
    unsynced = [bank / SPEC.key]
    unsynced[0].mkdir()
    if left != "folder of the feature":
        unsynced.append(bank / SPEC.key / "spec.json")
        unsynced[1].write_text(SPEC.to_json())
    if left == "commits":
        unsynced += [bank / SPEC.key / "shards", bank / SPEC.key / "commits"]
        unsynced[2].mkdir()
        unsynced[3].mkdir()

    calls = calls_of("write", tmp_path, ids=IDS[:3])

    (record,) = records_of(bank)
    moment = naming(calls, record)
    values = bank / SPEC.key / "shards" / record.stem / "values" / "zarr.json"
    for path in (values, bank / SPEC.key / "spec.json", record.parent):
        assert not at_risk(calls, moment, path, unsynced=unsynced)


@pytest.mark.parametrize("operation", ["compact", "merge"])
def test_copied_rows_are_on_disk_before_the_record_that_names_them(tmp_path, operation):
    bank = tmp_path / "bank"
    origin = bank if operation == "compact" else tmp_path / "sources" / "one"
    old = {add(origin, {video_id: 1}) for video_id in IDS[:2]}
    calls = calls_of(operation, tmp_path)
    new = [record for record in records_of(bank) if operation == "merge" or record.stem not in old]
    assert len(new) == {"compact": 1, "merge": 2}[operation]
    for record in new:
        moment = naming(calls, record)
        shard = bank / SPEC.key / "shards" / record.stem
        files = [path for path in shard.rglob("*") if path.is_file()]
        assert len(files) > 10
        assert not {risk for path in files for risk in at_risk(calls, moment, path)}
        assert not at_risk(calls, moment, bank / SPEC.key / "spec.json")
        assert not at_risk(calls, len(calls), record)


def test_prune_removes_a_record_for_good_before_it_removes_rows(tmp_path):
    bank = tmp_path / "bank"
    old = add(bank, {IDS[0]: 1})
    add(bank, {IDS[0]: 2}, supersedes=[{"shard": old, "videos": "all"}])
    calls = calls_of("prune", tmp_path)
    commits, shards = bank / SPEC.key / "commits", bank / SPEC.key / "shards"
    removed = calls.index(["remove", str(commits / f"{old}.json")])
    of_rows = [
        number
        for number, call in enumerate(calls)
        if call[0] == "remove" and str(shards / old) in call[1]
    ]
    assert not (shards / old).exists()
    between = [call[1] for call in calls[removed : min(of_rows)] if call[0] == "sync"]
    assert commits.stat().st_ino in between


def test_rows_that_were_marked_bad_stay_so_after_a_power_cut(tmp_path):
    shard = add(tmp_path / "bank", {IDS[0]: 1})
    calls = calls_of("mark", tmp_path, shard=shard, videos=[IDS[0]])
    (mark,) = (tmp_path / "bank" / SPEC.key / "bad").glob("*.json")
    assert not at_risk(calls, len(calls), mark)


def test_the_trace_notices_a_writer_that_does_not_sync(tmp_path):
    calls = calls_of("write", tmp_path, ids=IDS[:3], durable=False)
    (record,) = records_of(tmp_path / "bank")
    values = tmp_path / "bank" / SPEC.key / "shards" / record.stem / "values/c/0/0"
    risks = at_risk(calls, naming(calls, record), values)
    assert f"the bytes of {values}" in risks
    assert f"the name {values}" in risks
    assert at_risk(calls, len(calls), record)


# A power cut: the disk is what had reached it, the page cache is gone


@pytest.fixture
def disk(tmp_path) -> Iterator["Disk"]:
    disk = Disk(tmp_path)
    try:
        disk.mount()
        yield disk
    finally:
        disk.unmount()


class Disk:
    """A file with an ext4 file system in it, mounted through a loop device."""

    def __init__(self, folder: Path) -> None:
        self.image = folder / "disk"
        self.folder = folder / "mounted"
        self.folder.mkdir()
        with self.image.open("wb") as file:
            file.truncate(96 * 2**20)
        try:
            subprocess.run(["mkfs.ext4", "-q", self.image], check=True, capture_output=True)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no ext4 file system can be made here: {error}")

    def mount(self) -> None:
        # Without a sync the journal is written once in ten minutes: what a test writes in between
        # is in memory alone, as it may be on any machine.
        order = ["mount", "-o", "loop,commit=600", self.image, self.folder]
        try:
            subprocess.run(order, check=True, capture_output=True)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            pytest.skip(f"loop devices cannot be mounted here (needs root): {error}")

    def unmount(self) -> None:
        if self.folder.is_mount():
            subprocess.run(["umount", self.folder], check=True, capture_output=True)

    def cut(self) -> None:
        """Take the power and give it back: what was only in memory is gone."""
        survived = self.image.with_name("survived")
        written = -1
        while written != self._sectors_written():  # a copy of a disk at rest is of one moment
            written = self._sectors_written()
            shutil.copyfile(self.image, survived)
        self.unmount()
        survived.replace(self.image)
        self.mount()  # replays the journal

    def _sectors_written(self) -> int:
        device = Path(f"/sys/dev/block/{os.major(self._device)}:{os.minor(self._device)}")
        return int((device / "stat").read_text().split()[6])

    @property
    def _device(self) -> int:
        return self.folder.stat().st_dev


def cut_while_writing(disk: Disk, rng: np.random.Generator, **options: Any) -> dict[str, int]:
    """Cut the power at a random moment of a run; gives what had been acknowledged."""
    count, delay = int(rng.integers(3)), rng.uniform(0, 0.08)
    phase = str(rng.choice(["begin write", "begin commit"]))
    acknowledged = acknowledged_in(
        kill_after(start("write", disk.folder, **options), phase, count, delay)
    )
    disk.cut()
    return acknowledged


@pytest.mark.soak
def test_a_power_cut_loses_nothing_that_was_acknowledged(disk, tmp_path, tried):
    rng = np.random.default_rng(17)
    write(tmp_path / "whole", silent)
    whole = rows_of(tmp_path / "whole" / "bank")
    figures = Figures()
    while figures.kills < 16:
        acknowledged: dict[str, int] = {}
        for _ in range(4):
            acknowledged |= cut_while_writing(disk, rng)
            figures = total([figures, examine(disk.folder / "bank", acknowledged, ALL)])
            figures.kills += 1
        figures.acknowledged += len(acknowledged)
        write(disk.folder, silent)
        assert rows_of(disk.folder / "bank") == whole
        figures.resumed += 1
        shutil.rmtree(disk.folder / "bank")
    figures.report(tried, "power cuts", kills=16)


@pytest.mark.soak
def test_a_power_cut_takes_what_was_never_synced_and_shows_nothing_wrong(disk, tried):
    """So the cuts are real; and a bank that was not synced is a smaller bank, or damaged aloud."""
    rng = np.random.default_rng(18)
    bank = disk.folder / "bank"
    lost = 0
    for _ in range(4):
        acknowledged = cut_while_writing(disk, rng, durable=False)
        try:
            left = FeatureStore(bank).video_ids(SPEC)
        except BankError:
            left = []
        lost += len(set(acknowledged) - set(left))
        assert all(is_right_or_damaged(FeatureStore(bank), video_id) for video_id in left)
        if bank.exists():
            shutil.rmtree(bank)
    tried("store: power cuts of a bank that was told not to sync, which may lose", 4)
    assert lost


def is_right_or_damaged(store: FeatureStore, video_id: str) -> bool:
    try:
        store.read(SPEC, video_id)
    except DamagedShardError:
        return True
    return is_right(store, video_id, ALL)


if __name__ == "__main__":
    main(sys.argv[1])
