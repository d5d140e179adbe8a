"""Disks that refuse: the error names file and remedy, and nothing that was committed goes."""

import ast
import errno
import re
import resource
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from store.bank import FeatureStore
from store.errors import BankError
from store.merge import merge
from store.schema import Feature, FeatureSpec, Fingerprint
from store.verify import verify

ROOT = Path(__file__).parents[1]
ROOMS = ("store", "extractors", "regressors", "pipelines")
SPEC = FeatureSpec("clip.embedding", (64,), "float32", {"extractor": "faults"})


def feature(seed, rows=40):
    values = np.random.default_rng(seed).standard_normal((rows, 64), "f4")
    return Feature(values, np.arange(rows) / 25, np.arange(rows))


def put(bank, *videos, rows=40):
    """One shard with these videos, each of the number that it is called by."""
    writer = FeatureStore.create(bank).writer(SPEC, provenance={})
    try:
        for video in videos:
            made_of = Fingerprint(1, str(video))
            writer.add(f"set/{video}.mp4", feature(video, rows), fingerprint=made_of, probe={})
        writer.commit()
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
