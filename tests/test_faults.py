"""Disks that refuse: the error names file and remedy, and nothing that was committed goes."""

import ast
import errno
import re
import resource
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from store.bank import FeatureStore
from store.compact import compact
from store.errors import BankError, DamagedShardError
from store.merge import merge
from store.prune import prune
from store.schema import Feature, FeatureSpec, Fingerprint
from store.shard import create_exclusively, mark_bad, read_sealed, seal
from store.verify import verify

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
    monkeypatch.setattr("store.shard.time.time", lambda: now + rng.uniform(-1, 1) * 1e8)


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
    old = put(source, 1, version=1)
    now = time.time()
    monkeypatch.setattr("store.shard.time.time", lambda: now - 3600)
    put(source, 1, 2, version=2, supersedes=[{"shard": old, "videos": ["set/1.mp4"]}])
    put(source, 3, version=1, supersedes=[{"shard": old, "videos": "all"}])
    put(source, 2, version=5)
    seen = []

    def looked_at(path, content, **options):
        made = create_exclusively(path, content, **options)
        if path.parent.name == "commits" and target.path in path.parents:
            found = FeatureStore(target.path).video_ids(SPEC)
            seen.append({v: version_of(target.path, int(v[4])) for v in found}.get("set/1.mp4"))
        return made

    monkeypatch.setattr("store.merge.create_exclusively", looked_at)
    merge(target, [FeatureStore(source)])

    assert len(seen) >= 2
    assert 1 not in seen
    assert seen[-1] == 2


def test_commits_that_supersede_each_other_in_a_circle_are_named(tmp_path):
    source = tmp_path / "source"
    one = put(source, 1)
    two = put(source, 2, supersedes=[{"shard": one, "videos": "all"}])
    path = source / SPEC.key / "commits" / f"{one}.json"
    record = {**read_sealed(path), "supersedes": [{"shard": two, "videos": ["set/9.mp4"]}]}
    path.write_bytes(seal(record))

    with pytest.raises(DamagedShardError, match="in a circle"):
        merge(FeatureStore.create(tmp_path / "target"), [FeatureStore(source)])
