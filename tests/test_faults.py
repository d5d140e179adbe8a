"""Disks that refuse: the error names file and remedy, and nothing that was committed goes."""

import ast
import builtins
import errno
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from vqbank.extractors import make_extractor
from vqbank.extractors import video as decoding
from vqbank.pipelines.extraction.extract import Extraction
from vqbank.pipelines.manifest import read_videos
from vqbank.store.bank import FeatureStore
from vqbank.store.commits import mark_bad
from vqbank.store.compact import compact
from vqbank.store.compare import diff
from vqbank.store.errors import BankError, DamagedShardError, refusal
from vqbank.store.files import create_together
from vqbank.store.ledger import failures, read_ledger
from vqbank.store.merge import merge
from vqbank.store.prune import prune
from vqbank.store.records import seal
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint
from vqbank.store.shard import committed_shards
from vqbank.store.verify import verify

ROOT = Path(__file__).parents[1]
ROOMS = ("store", "extractors", "regressors", "pipelines")
SPEC = FeatureSpec("clip.embedding", (64,), "float32", {"extractor": "faults"})


def feature(seed, rows=40):
    values = np.random.default_rng(seed).standard_normal((rows, 64), "f4")
    return Feature(values, np.arange(rows) / 25, np.arange(rows))


def put(bank, *videos, rows=40, version=0, supersedes=()):
    """One shard with these videos, each of the number that it is called by."""
    writer = FeatureStore.create(bank).writer(SPEC, provenance={})
    try:
        for video in videos:
            made_of = Fingerprint(1, str(video))
            writer.add(
                f"set/{video}.mp4", feature(video + version, rows), fingerprint=made_of, probe={}
            )
        writer.commit(supersedes=supersedes)
    except OSError:
        writer.abandon()
        raise
    return writer.id


# Every error names its file


def writes(tree):
    """Calls that write a file and whose failure has no name of it by itself, with what is around.

    Opening does have it, so that of `with path.open("w")` only what follows is meant.
    """
    around = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for call in [node for node in ast.walk(tree) if isinstance(node, ast.Call)]:
        name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        given = [ast.unparse(argument) for argument in [*call.args, *call.keywords]]
        opens = name == "open" and isinstance(around[call], ast.withitem)
        opens = opens and ast.unparse(call.func) != "av.open"  # whose errors have it
        if (
            name in ("write_text", "write_bytes", "fsync", "NamedTemporaryFile")
            or (name == "save" and ast.unparse(call.func) == "np.save")
            or (opens and any(re.search(r"'r?[wxa+]b?\+?'|'r\+b'", text) for text in given))
        ):
            inside = [call]
            while inside[-1] in around:
                inside.append(around[inside[-1]])
            yield call, [node for node in inside if isinstance(node, ast.With)]


def is_named(blocks):
    return any("naming(" in ast.unparse(item) for block in blocks for item in block.items)


def test_whoever_writes_a_file_names_it_in_the_error():
    """`write`, `flush`, `fsync` and `close` fail without a name: "File too large" of which file?"""
    found, unnamed = 0, []
    for path in sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        if path.name == "catalogue.py" or path.parent.name == "golden":
            continue  # a copy that may fail in silence; tools of these tests
        for call, blocks in writes(ast.parse(path.read_text(encoding="utf-8"))):
            found += 1
            if not is_named(blocks):
                unnamed.append(f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)}")
    assert unnamed == []
    assert found > 25


@pytest.mark.parametrize("code", ["path.write_text('a')", "with path.open('w') as file: pass"])
def test_who_does_not_name_a_file_is_found(code):
    ((_, blocks),) = writes(ast.parse(code))
    assert not is_named(blocks)


@pytest.fixture
def small_files(monkeypatch):
    """Gives a way to let the kernel refuse files of this process that are longer than a limit."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # cut short, it would stay so
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_copy_that_was_cut_short_is_never_committed(tmp_path, small_files):
    """The kernel takes what still fits of a last write, and says so by its length alone."""
    source, target = tmp_path / "source", FeatureStore.create(tmp_path / "target")
    shard = put(source, 1)
    values = source / SPEC.key / "shards" / shard / "values/c/0/0"

    small_files(values.stat().st_size - 1)
    with pytest.raises(BankError, match=r"File too large.*ulimit -f") as refused:
        merge(target, [FeatureStore(source)])
    small_files(resource.RLIM_INFINITY)

    assert f"{target.path / SPEC.key / 'shards' / shard / 'values/c/0/0'}: " in str(refused.value)
    merge(target, [FeatureStore(source)])
    assert list(verify(target)) == []
    assert target.video_ids(SPEC) == ["set/1.mp4"]


def failure_of(call):
    try:
        call()
    except BankError as error:
        return error.__cause__
    except OSError as error:
        return error
    return None


def test_every_length_at_which_a_file_may_be_too_large_is_named_and_costs_nothing(
    tmp_path, small_files
):
    """From no byte on: the header, the spec, the rows, and the table behind them."""
    refused = set()
    for size in [*range(0, 700, 35), *range(1000, 90_000, 3000)]:
        bank = tmp_path / "bank"
        small_files(size)
        error = failure_of(partial(put, bank, 7, rows=1))
        small_files(resource.RLIM_INFINITY)
        if error is None:
            break
        assert error.errno == errno.EFBIG
        assert Path(error.filename).is_relative_to(bank)
        refused.add(Path(error.filename).name[:6])
        if (bank / "bank.json").exists():
            assert FeatureStore(bank).video_ids(SPEC) == []
    assert refused == {"bank.j", "spec.j", "0"}
    assert FeatureStore(bank).video_ids(SPEC) == ["set/7.mp4"]
    assert list(verify(FeatureStore(bank))) == []


# Clocks that jump


def version_of(bank, video):
    """The version of the rows that win."""
    first = FeatureStore(bank).read(SPEC, f"set/{video}.mp4").values[0, 0]
    return next(v for v in range(100, 0, -1) if feature(video + v, 1).values[0, 0] == first)


@pytest.fixture
def clock(monkeypatch):
    """Every time that is asked for is another hour or year, in no order."""
    rng = np.random.default_rng(3)
    now = time.time()
    monkeypatch.setattr(
        "vqbank.store.shard_writer.time.time", lambda: now + rng.uniform(-1, 1) * 1e8
    )


@pytest.mark.parametrize("history", range(2))
def test_whatever_the_clock_says_the_rows_that_superseded_others_win(tmp_path, clock, history):
    """Written, replaced, found bad and repaired, compacted, pruned, merged: by no time at all."""
    rng = np.random.default_rng(history)
    bank, expected, shards = tmp_path / "bank", {}, {}
    for step in range(1, 16):
        video = int(rng.integers(3))
        action = rng.choice(["replace", "repair", "compact", "prune", "merge"])
        if action == "replace" or video not in expected:
            if video in expected:
                (held,) = FeatureStore(bank).find(SPEC, [f"set/{video}.mp4"])
                shards[video] = [{"shard": held[0].id, "videos": [f"set/{video}.mp4"]}]
            put(bank, video, version=step, supersedes=shards.get(video, ()))
            expected[video] = step
        elif action == "repair":
            (held,) = FeatureStore(bank).find(SPEC, [f"set/{video}.mp4"])
            mark_bad(bank / SPEC.key, held[0].id, [f"set/{video}.mp4"])
            put(bank, video, version=step)
            expected[video] = step
        elif action == "compact":
            compact(FeatureStore(bank), SPEC)
        elif action == "prune":
            prune(FeatureStore(bank), dry_run=False, older_than_seconds=-1e9)
        else:
            merge(FeatureStore.create(tmp_path / f"{step}"), [FeatureStore(bank)])
            bank = tmp_path / f"{step}"
        assert {video: version_of(bank, video) for video in expected} == expected
    assert list(verify(FeatureStore(bank))) == []


def test_a_merge_that_is_killed_shows_no_older_rows_whatever_the_clock_said(tmp_path, monkeypatch):
    """The rows that count were committed an hour before those that they replace, it seems."""
    source, target = tmp_path / "source", FeatureStore.create(tmp_path / "target")
    old = put(source, 1, 4, version=1)
    now = time.time()
    monkeypatch.setattr("vqbank.store.shard_writer.time.time", lambda: now - 3600)
    put(source, 1, 2, version=2, supersedes=[{"shard": old, "videos": ["set/1.mp4"]}])
    seen = []

    def looked_at(contents):
        assert len(contents) == 1  # the other one is superseded by it
        create_together(contents)
        found = FeatureStore(target.path).video_ids(SPEC)
        seen.append({v: version_of(target.path, int(v[4])) for v in found}.get("set/1.mp4"))

    monkeypatch.setattr("vqbank.store.merge.create_together", looked_at)
    merge(target, [FeatureStore(source)])

    assert seen == [2, 2]


def test_commits_that_supersede_each_other_in_a_circle_are_named(tmp_path):
    source = tmp_path / "source"
    one = put(source, 1)
    two = put(source, 2, supersedes=[{"shard": one, "videos": "all"}])
    path = source / SPEC.key / "commits" / f"{one}.json"
    record = {
        **json.loads(path.read_bytes())["record"],
        "supersedes": [{"shard": two, "videos": ["set/9.mp4"]}],
    }
    path.write_bytes(seal(record))

    with pytest.raises(DamagedShardError, match="in a circle"):
        merge(FeatureStore.create(tmp_path / "target"), [FeatureStore(source)])


# Each write, sync, rename, mkdir of a run


CODES = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REMEDIES = ("see the system's log", "free space", "quota", "ulimit -f")


class Disk:
    """Counts what is asked of the disk below a folder, and refuses the call of one number.

    Of a write that is refused the disk takes one half first, and says so by its length, as systems
    do; a file that is refused to be closed is closed all the same.
    """

    def __init__(self, folder, patch, *, fatal=0, code=errno.EIO, lasting=False):
        self.asked = []
        self.refused = 0
        self._folder, self._fatal, self._code, self._lasting = str(folder), fatal, code, lasting
        self._lock = threading.Lock()
        for name in ("mkdir", "link", "rename", "replace", "unlink", "rmdir", "fsync"):
            patch.setattr(os, name, self._checked(name, getattr(os, name)))
        self._open = io.open
        patch.setattr(io, "open", self.open)
        patch.setattr(builtins, "open", self.open)

    def ask(self, what, path, *names):
        """Raises OSError when it is its turn; a file that is open has no name then."""
        path = os.fsdecode(path)
        if not path.startswith(self._folder):
            return
        with self._lock:
            self.asked.append((what, path))
            number = len(self.asked)
            if number == self._fatal or (self._lasting and 0 < self._fatal < number):
                self.refused += 1
                raise OSError(self._code, os.strerror(self._code), *names)

    def _checked(self, name, call):
        def checked(*given, **options):
            if name == "fsync":
                self.ask(name, Path(f"/proc/self/fd/{given[0]}").readlink())
            else:
                made = given[1] if name in ("link", "rename", "replace") else given[0]
                self.ask(name, made, os.fspath(made))
            return call(*given, **options)

        return checked

    def open(self, path, mode="r", buffering=-1, encoding=None, errors=None, newline=None, **other):
        """As the built-in, with a file that asks before each write."""
        own = not isinstance(path, int) and os.fsdecode(path).startswith(self._folder)
        if not own or not set(mode) & set("wax+"):
            return self._open(path, mode, buffering, encoding, errors, newline, **other)
        self.ask("open", path, os.fspath(path))
        raw = Raw(path, mode.replace("b", "").replace("t", ""))
        raw.disk = self
        if buffering == 0:
            return raw
        buffered = io.BufferedWriter(raw, buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)


class Raw(io.FileIO):
    disk = None
    _failing = None

    def write(self, content):
        error, self._failing = self._failing, None
        if error is not None:
            raise error
        try:
            self.disk.ask("write", self.name)
        except OSError as refused:
            if len(content) < 2:
                raise
            self._failing = refused
            return super().write(memoryview(content).cast("B")[: len(content) // 2])
        return super().write(content)

    def close(self):
        was_closed = self.closed
        super().close()
        if not was_closed:
            self.disk.ask("close", self.name)


EXTRACTORS = {"motion": {}, "clip": {"weights": "random-tiny"}}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    for n in range(2):
        pictures = np.random.default_rng(n).integers(0, 256, (6, 48, 64, 3), dtype=np.uint8)
        decoding.encode(folder / f"{n}.mp4", pictures, rate=10, crf=30)
    return read_videos(folder)


def extract(videos, bank):
    """A run, every video committed at once; gives the reasons of failures."""
    names = [make_extractor(name, **given) for name, given in EXTRACTORS.items()]
    store = FeatureStore.create(bank)
    run = Extraction(videos, names, store, decoder="pyav", device=torch.device("cpu"), threads=1)
    return [reason for outcome in run.run() for reason in outcome.failures.values()]


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory):
    """The bank of a run that nothing disturbed."""
    bank = tmp_path_factory.mktemp("banks") / "whole"
    assert extract(videos, bank) == []
    return FeatureStore(bank)


def refused_at(step, code, videos, whole, bank, *, lasting):
    """Refuse one step of a run, look at what is left, and let the run go on."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(bank, patch, fatal=step, code=code, lasting=lasting)
        try:
            assert extract(videos, bank) == []
            said = None
        except BankError as error:
            said = str(error)
    assert disk.refused, disk.asked[step - 1 :]
    what, path = disk.asked[step - 1]
    if said is None:  # a copy that nobody needs, or what is removed later
        assert what in ("mkdir", "unlink", "rmdir") or "catalogue" in path, (what, path)
    else:
        assert str(bank) in said
        assert REMEDIES[CODES.index(code)] in said, (what, path, said)
        assert re.search(rf"\({re.escape(str(bank))}/?\S*: |{re.escape(str(bank))}.* made: ", said)
    if (bank / "bank.json").exists():
        store = FeatureStore(bank)
        assert all(is_missing(difference, store) for difference in diff(whole, store))
        assert list(verify(store)) == []
        assert failures(read_ledger(bank)) == {}
    assert extract(videos, bank) == []
    store = FeatureStore(bank)
    assert list(diff(whole, store)) == []
    assert list(verify(store)) == []
    assert committed_rows(store) == len(videos) * len(EXTRACTORS)
    return what


def committed_rows(store):
    shards = [s for spec in store.specs() for s in committed_shards(store.path / spec.key, spec)]
    return sum(shard.record["videos"] for shard in shards)


def is_missing(difference, store):
    spec = next((s for s in store.specs() if s.key == difference.key), None)
    return spec is None or difference.video not in store.video_ids(spec)


def calls_of_a_run(videos, bank):
    """What it asks of the disk, in order: what, and of which path."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(bank, patch)
        assert extract(videos, bank) == []
    return disk.asked


def refused_again_and_again(videos, whole, folder, tried, *, times, lasting):
    steps = len(calls_of_a_run(videos, folder / "steps"))
    assert steps > 150
    chosen = np.unique(np.linspace(1, steps, times).round().astype(int)).tolist()
    kinds = set()
    for number, step in enumerate(chosen):
        code = CODES[number % len(CODES)]
        kinds.add(refused_at(step, code, videos, whole, folder / str(step), lasting=lasting))
        shutil.rmtree(folder / str(step))
    what = "and every one after it" if lasting else "once"
    tried(f"extract: a call to the disk refused, {what}", len(chosen), resumed=len(chosen))
    return kinds


def test_a_run_that_the_disk_refuses_names_the_file_and_goes_on(videos, whole, tmp_path):
    """At lines of the ledger and at the name of a commit; the soak tries every kind of call."""
    calls = list(enumerate(calls_of_a_run(videos, tmp_path / "steps"), start=1))
    lines = [n for n, (what, path) in calls if what == "write" and "/ledger/" in path]
    names = [n for n, (what, path) in calls if what == "link" and "/commits/" in path]
    for number, step in enumerate([*lines[1:4], names[0]]):
        refused_at(step, CODES[number], videos, whole, tmp_path / str(step), lasting=step in names)


@pytest.mark.soak
@pytest.mark.parametrize("lasting", [False, True])
def test_a_run_that_the_disk_refuses_at_any_step_loses_nothing(
    videos, whole, tmp_path, tried, lasting
):
    """EIO, ENOSPC, EDQUOT, EFBIG: at opening, writing, syncing, closing, naming, making folders."""
    times = 32 if lasting else 64
    kinds = refused_again_and_again(videos, whole, tmp_path, tried, times=times, lasting=lasting)
    assert kinds >= {"open", "write", "close", "fsync", "mkdir"}


@pytest.fixture
def small_disk(tmp_path):
    """Gives a way to mount an empty disk of so many KB, or to let the one that is mounted grow."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(kilobytes, *options):
        how = ",".join([*options, f"size={kilobytes}k"])
        command = ["mount", "-t", "tmpfs", "-o", how, "none", folder]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("needs the right to mount a small tmpfs")
        return folder

    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs the right to mount a small tmpfs")
    yield mount
    while folder.is_mount():
        subprocess.run(["umount", folder], check=True)


@pytest.mark.soak
def test_a_disk_of_any_size_that_is_full_loses_nothing(videos, whole, small_disk, tried):
    """The kernel itself refuses: at every few KB of what a run writes."""
    refused = 0
    for kilobytes in range(16, 160, 8):
        bank = small_disk(kilobytes) / "bank"
        said = refusal_of(extract, videos, bank)
        if said is not None:
            refused += 1
            assert re.search(rf"{re.escape(str(bank))}\S*: No space left on device", said)
            assert "free space on its disk" in said
        if list(bank.glob("*@*/commits/*.json")):
            assert list(verify(FeatureStore(bank))) == []
        small_disk(4096, "remount")
        assert extract(videos, bank) == []
        assert list(diff(whole, FeatureStore(bank))) == []
        assert committed_rows(FeatureStore(bank)) == len(videos) * len(EXTRACTORS)
        subprocess.run(["umount", bank.parent], check=True)
    tried("extract: a disk of 16 to 150 KB is full, and grows", refused, resumed=refused)
    assert refused > 5


# Each step of what keeps a bank in order


def compacting(bank, source):
    compact(FeatureStore(bank), SPEC)


def merging(bank, source):
    merge(FeatureStore(bank), [FeatureStore(source)])


def pruning(bank, source):
    prune(FeatureStore(bank), dry_run=False, older_than_seconds=0)


def marking(bank, source):
    """What `verify --mark` does, and the repair after it."""
    (held,) = FeatureStore(bank).find(SPEC, ["set/2.mp4"])
    if held is not None and version_of(bank, 2) != 20:
        mark_bad(bank / SPEC.key, held[0].id, ["set/2.mp4"])
        held = None
    if held is None:
        put(bank, 2, version=20)


UPKEEP = {
    "compact": (compacting, {}),
    "merge": (merging, {6: 4, 7: 4}),
    "prune": (pruning, {}),
    "mark": (marking, {2: 20}),
}
"""What it does, and the versions that count after it."""
LIVED = {1: 2, 2: 3, 3: 1, 4: 1, 5: 1}


def lived_in(bank, source):
    """Rows that were replaced, found bad and written twice; and another bank to merge."""
    old = put(bank, 1, 3, version=1)
    put(bank, 1, version=2, supersedes=[{"shard": old, "videos": ["set/1.mp4"]}])
    bad = put(bank, 2, version=1)
    mark_bad(bank / SPEC.key, bad, ["set/2.mp4"])
    put(bank, 2, version=3)
    put(bank, 4, 5, version=1)
    put(bank, 5, version=1)
    (bank / SPEC.key / "commits" / ".left.json.tmp").write_bytes(b"{")
    put(source, 6, 7, version=4)
    put(source, 4, version=1)


@pytest.mark.parametrize("name", UPKEEP)
def test_upkeep_that_the_disk_refuses_at_a_step_loses_nothing(tmp_path, name):
    refuse_upkeep(tmp_path, name, times=3, lasting=name in ("compact", "merge"))


@pytest.mark.soak
@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("name", UPKEEP)
def test_upkeep_that_the_disk_refuses_at_any_step_loses_nothing(tmp_path, tried, name, lasting):
    times = refuse_upkeep(tmp_path, name, times=40, lasting=lasting)
    what = "and every one after it" if lasting else "once"
    tried(f"{name}: a call to the disk refused, {what}", times, resumed=times)


def refuse_upkeep(folder, name, *, times, lasting):
    operation, changed = UPKEEP[name]
    lived_in(folder / "begin", folder / "source")
    shutil.copytree(folder / "begin", folder / "steps")
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(folder / "steps", patch)
        operation(folder / "steps", folder / "source")
    steps = len(disk.asked)
    chosen = np.unique(np.linspace(1, steps, times).round().astype(int)).tolist()
    for number, step in enumerate(chosen):
        bank, code = folder / str(step), CODES[number % len(CODES)]
        shutil.copytree(folder / "begin", bank)
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(bank, patch, fatal=step, code=code, lasting=lasting)
            said = refusal_of(operation, bank, folder / "source")
        assert disk.refused
        what, path = disk.asked[step - 1]
        if said is None:  # a folder that was there, a copy that nobody needs, what is removed later
            assert what in ("mkdir", "unlink") or "catalogue" in path, (what, path)
        assert said is None or (str(bank) in said and REMEDIES[CODES.index(code)] in said), said
        for video, version in LIVED.items():
            if f"set/{video}.mp4" in FeatureStore(bank).video_ids(SPEC) or video not in changed:
                assert version_of(bank, video) in (version, changed.get(video))
        assert list(verify(FeatureStore(bank))) == []
        operation(bank, folder / "source")
        for video, version in {**LIVED, **changed}.items():
            assert version_of(bank, video) == version
        assert list(verify(FeatureStore(bank))) == []
        shutil.rmtree(bank)
    return len(chosen)


def refusal_of(operation, *given):
    try:
        operation(*given)
    except BankError as error:
        return str(error)
    except OSError as error:
        return refusal(error)
    return None
