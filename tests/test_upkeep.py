"""Keeping a bank: what is damaged is found, what is committed is never lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqbank.store import compact as compacting
from vqbank.store import compare as comparing
from vqbank.store.bank import FeatureStore
from vqbank.store.checksums import crc32c
from vqbank.store.commits import mark_bad
from vqbank.store.compare import diff, diff_features, summarise
from vqbank.store.errors import (
    AmbiguousFeatureError,
    BankError,
    ChangedVideoError,
    DamagedShardError,
    MissingFeatureError,
)
from vqbank.store.layout import INDEX_COLUMNS
from vqbank.store.merge import merge
from vqbank.store.prune import prune
from vqbank.store.records import seal
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, SideSpec, Video, canonical_json
from vqbank.store.selection import check_selection, read_selection, write_selection
from vqbank.store.verify import mark, verify

compact = partial(compacting.compact, durable=False)
SIDE = (SideSpec("offsets", (2,), "int16"),)
WHAT = FeatureSpec("clip.embedding", (8,), "float16", {"extractor": "clip"}, SIDE)
OTHER = FeatureSpec("clip.embedding", (8,), "float16", {"extractor": "other"}, SIDE)
PIXELS = FeatureSpec("thumb.pixels", (8,), "uint8", {"extractor": "thumb"}, SIDE)


def feature(seed, rows=5, width=8):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 200, (rows, width)).astype("f4")
    offsets = rng.integers(-99, 99, (rows, 2)).astype("i2")
    return Feature(values, np.arange(rows) / 25, np.arange(rows) * 2, {"offsets": offsets})


def put(path, videos, what=WHAT, *, supersedes=(), durable=False):
    """One shard of videos by seed, or by feature; gives its id."""
    writer = FeatureStore.create(path).writer(what, provenance={"host": "here"}, durable=durable)
    for video, made in videos.items():
        rows = made if isinstance(made, Feature) else feature(made, width=what.shape[0])
        length = made if isinstance(made, int) else 0
        writer.add(video, rows, fingerprint=Fingerprint(length, video), probe={"of": video})
    writer.commit(supersedes=supersedes)
    return writer.id


def winning(path, what=WHAT):
    """Checksums of every array by video: what a reader of the bank gets."""
    store = FeatureStore(path)
    return {v: store.video_record(what, v).crc32c for v in store.video_ids(what)}


def shard_files(path, what=WHAT):
    return sorted(p for p in (path / what.key / "shards").rglob("*") if p.is_file())


def commits(path, what=WHAT):
    return {p.stem for p in (path / what.key / "commits").glob("*.json") if p.name[0] != "."}


def flip(path, at, bit=0):
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


def orphan(path):
    """A shard that was written and not committed; gives its id."""
    shard = put(path, {"z": 1})
    (path / WHAT.key / "commits" / f"{shard}.json").unlink()
    return shard


def copy_of(bank, to):
    return FeatureStore(shutil.copytree(bank, to))


def assert_same_bank(one, two):
    assert list(diff(FeatureStore(one), FeatureStore(two))) == []


@pytest.fixture
def bank(tmp_path):
    """Two shards of one feature, one of another."""
    path = tmp_path / "bank"
    put(path, {"a": 1, "b": 2, "c": 3})
    put(path, {"d": 4})
    put(path, {"a": 5, "b": 6}, OTHER)
    return path


# verify and mark


def test_nothing_is_wrong_with_what_was_just_written(bank):
    put(bank, {"a": 1, "b": 2}, PIXELS)

    assert list(verify(FeatureStore(bank))) == []


@settings(max_examples=40)
@given(
    what=st.sampled_from([WHAT, PIXELS]),
    damage=st.sampled_from(["flip", "cut", "gone"]),
    file=st.integers(0, 99),
    place=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
def test_any_damage_is_named_and_once_marked_and_redone_is_healed(
    tmp_path_factory, what, damage, file, place, bit
):
    """Whatever is not named can still be read, and is what was written."""
    path = tmp_path_factory.mktemp("bank")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vqbank.store.layout.CHUNK_BYTES", (64, 128))
        patch.setattr("vqbank.store.layout.FILE_BYTES", 256)
        put(path, {f"v{n}": feature(n, rows=7) for n in range(9)}, what)
        before = winning(path, what)
        files = shard_files(path, what)
        broken = files[file % len(files)]
        if damage == "flip":
            flip(broken, int(place * broken.stat().st_size), bit)
        elif damage == "cut":
            os.truncate(broken, int(place * broken.stat().st_size))
        else:
            broken.unlink()

        problems = list(verify(FeatureStore(path)))

        assert {path / what.key / problem.file for problem in problems} == {broken}
        mark(FeatureStore(path), problems)
        assert list(verify(FeatureStore(path))) == []
        store = FeatureStore(path)
        whole = store.video_ids(what)
        for video in whole:
            np.testing.assert_array_equal(
                store.read(what, video).values, feature(int(video[1:]), rows=7).values
            )
        lost = before.keys() - whole
        assert lost
        assert lost == {v for p in problems for v in (before if p.videos is None else p.videos)}
        put(path, {video: feature(int(video[1:]), rows=7) for video in lost}, what)
        assert winning(path, what) == before


def test_a_flipped_byte_of_values_spoils_its_own_video_alone(bank):
    first = FeatureStore(bank).find(WHAT, ["b"])[0][0]
    flip(first.value_files.path(0), 5 * 16 + 3)  # the second video's first row

    (problem,) = verify(FeatureStore(bank))

    assert (problem.key, problem.shard, problem.videos) == (WHAT.key, first.id, ("b",))
    assert problem.file == f"shards/{first.id}/values/c/0/0"
    assert "has changed" in problem.what


def test_a_lost_value_file_spoils_the_videos_with_rows_in_it(tmp_path, monkeypatch):
    """Rows of 16 bytes, files of 16 rows, videos of 10 rows: v1 and v3 straddle two files."""
    monkeypatch.setattr("vqbank.store.layout.CHUNK_BYTES", (64, 64))
    monkeypatch.setattr("vqbank.store.layout.FILE_BYTES", 256)
    put(tmp_path, {f"v{n}": feature(n, rows=10) for n in range(5)})
    files = [path for path in shard_files(tmp_path) if "values/c" in str(path)]
    assert len(files) == 4

    flip(files[1], -1)  # of the table that other readers of Zarr need
    (table,) = verify(FeatureStore(tmp_path))
    os.truncate(files[1], 100)
    (cut,) = verify(FeatureStore(tmp_path))
    files[1].unlink()
    (gone,) = verify(FeatureStore(tmp_path))

    assert table.videos == cut.videos == gone.videos == ("v1", "v2", "v3")
    assert "100 bytes" in cut.what
    assert "missing" in gone.what


def test_verify_goes_on_after_a_problem(bank):
    put(bank, {"x": 7}, PIXELS)
    for what in (WHAT, OTHER):
        for index in (bank / what.key).glob("shards/*/index/c/0/0"):
            flip(index, 3)
    (bank / PIXELS.key).rename(bank / "thumb.pixels@000000000000")

    problems = list(verify(FeatureStore(bank)))

    keys = [*sorted([WHAT.key, WHAT.key, OTHER.key]), "thumb.pixels@000000000000"]
    assert [problem.key for problem in problems] == keys
    assert all(p.videos is None for p in problems)
    assert "rename it back" in problems[-1].what


def test_a_feature_that_lost_its_spec_is_no_secret(bank):
    (bank / OTHER.key / "spec.json").unlink()

    (problem,) = verify(FeatureStore(bank))

    assert (problem.key, problem.file) == (OTHER.key, "spec.json")


@pytest.mark.parametrize("damage", ["flipped", "cut", "of another part", "of another feature"])
def test_a_bad_commit_record_is_moved_aside_only_when_asked(bank, damage):
    folder = bank / WHAT.key / "commits"
    kept, broken = (folder / f"{FeatureStore(bank).find(WHAT, [v])[0][0].id}.json" for v in "ad")
    if damage == "flipped":
        flip(broken, 60)
    elif damage == "cut":
        os.truncate(broken, 60)
    elif damage == "of another part":
        shutil.copy(kept, broken)
    else:
        shutil.copy(next((bank / OTHER.key / "commits").iterdir()), broken)

    problems = list(verify(FeatureStore(bank)))
    with pytest.raises(DamagedShardError):
        FeatureStore(bank).video_ids(WHAT)

    assert [(p.shard, p.file, p.videos) for p in problems] == [
        (broken.stem, f"commits/{broken.name}", None)
    ]
    mark(FeatureStore(bank), problems)
    assert FeatureStore(bank).video_ids(WHAT) == ["a", "b", "c"]
    assert list(verify(FeatureStore(bank))) == []
    assert (folder / f".{broken.name}.damaged").exists()


def test_a_damaged_mark_is_moved_aside(bank):
    (shard,) = commits(bank, OTHER)
    mark_bad(bank / OTHER.key, shard, ["a"])
    (bad,) = (bank / OTHER.key / "bad").iterdir()
    flip(bad, 50)

    problems = list(verify(FeatureStore(bank)))
    mark(FeatureStore(bank), problems)

    assert [problem.file for problem in problems] == [f"bad/{bad.name}"]
    assert FeatureStore(bank).video_ids(OTHER) == ["a", "b"]


def test_a_shard_without_its_folder_is_one_problem(bank):
    (shard,) = commits(bank, OTHER)
    shutil.rmtree(bank / OTHER.key / "shards" / shard)

    (problem,) = verify(FeatureStore(bank))

    assert (problem.file, problem.videos) == (f"shards/{shard}", None)
    mark(FeatureStore(bank), [problem])
    assert FeatureStore(bank).video_ids(OTHER) == []


def test_values_that_are_not_finite_are_found_under_right_checksums(tmp_path):
    shard = put(tmp_path, {"a": 1, "b": 2})
    folder, commit = tmp_path / WHAT.key / "shards" / shard, tmp_path / WHAT.key / "commits"
    values, index = folder / "values/c/0/0", folder / "index/c/0/0"
    rows = np.fromfile(values, "<f2")
    rows[(5 + 2) * 8 + 1] = np.nan  # third row of the second video
    rows.tofile(values)
    table = np.fromfile(index, "<i8").reshape(2, -1)
    table[1, len(INDEX_COLUMNS)] = crc32c(rows[40:80])
    table.tofile(index)
    record = json.loads((commit / f"{shard}.json").read_bytes())["record"]
    for name in ("values/c/0/0", "index/c/0/0"):
        record["files"][name]["crc32c"] = crc32c((folder / name).read_bytes())
    (commit / f"{shard}.json").write_bytes(seal(record))

    (problem,) = verify(FeatureStore(tmp_path))

    assert problem.videos == ("b",)
    assert "row 2 is not finite" in problem.what


def test_what_nobody_reads_is_no_problem(bank):
    old = put(bank, {"x": 1, "y": 2})
    put(bank, {"x": 1, "y": 2}, supersedes=[{"shard": old, "videos": "all"}])
    flip(bank / WHAT.key / "shards" / old / "index/c/0/0", 0)
    orphan(bank)

    assert list(verify(FeatureStore(bank))) == []


def test_a_bank_of_a_newer_version_is_refused_and_never_moved_aside(bank):
    (commit,) = (bank / OTHER.key / "commits").iterdir()
    commit.write_bytes(seal({**json.loads(commit.read_bytes())["record"], "version": 2}))

    with pytest.raises(BankError, match="newer vqbank"):
        list(verify(FeatureStore(bank)))
    (bank / "bank.json").write_text('{"format":"vqbank","version":2}')
    with pytest.raises(BankError, match="newer vqbank"):
        FeatureStore(bank)


# diff


@settings(max_examples=20)
@given(cuts=st.lists(st.integers(0, 3), min_size=6, max_size=6), order=st.permutations(range(6)))
def test_the_same_videos_are_the_same_bank_however_they_are_grouped(tmp_path_factory, cuts, order):
    folder = tmp_path_factory.mktemp("banks")
    put(folder / "one", {f"v{n}": n for n in range(6)})
    for group in range(4):
        videos = {f"v{n}": n for n in order if cuts[n] == group}
        if videos:
            put(folder / "two", videos)

    assert_same_bank(folder / "one", folder / "two")


def test_diff_finds_what_is_missing_and_what_is_other(tmp_path):
    changed = feature(2)
    values = changed.values.copy()
    values[3, 1] += 32
    late = Feature(changed.values, changed.pts_seconds + 1, changed.frame_index, changed.side)
    put(tmp_path / "one", {"a": 1, "b": 2, "c": 2, "d": 4, "e": feature(3, rows=4)})
    put(tmp_path / "two", {"b": 2, "d": 4, "e": feature(3, rows=6)})
    put(tmp_path / "two", {"c": Feature(values, *astuple(changed)[1:]), "x": 9})
    put(tmp_path / "two", {"a": 1}, OTHER)
    old = FeatureStore(tmp_path / "two").find(WHAT, ["b"])[0][0].id
    put(tmp_path / "two", {"b": late}, supersedes=[{"shard": old, "videos": ["b"]}])

    found = list(diff(FeatureStore(tmp_path / "one"), FeatureStore(tmp_path / "two")))
    by_video = {(d.key, d.video): d for d in found}

    assert by_video.keys() == {(WHAT.key, v) for v in "abcex"} | {(OTHER.key, "a")}
    assert by_video[WHAT.key, "a"].rows == (5, 0)
    assert by_video[WHAT.key, "x"].rows == by_video[OTHER.key, "a"].rows == (0, 5)
    moved = by_video[WHAT.key, "b"]
    assert (moved.arrays, moved.largest, moved.cosine) == (("pts_seconds",), 0, pytest.approx(1))
    other = by_video[WHAT.key, "c"]
    assert (other.arrays, other.largest) == (("values",), 32)
    flat = changed.values.reshape(-1).astype("f8"), values.reshape(-1).astype("f8")
    cosine = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    assert other.cosine == pytest.approx(cosine, abs=1e-12)
    longer = by_video[WHAT.key, "e"]
    assert longer.rows == (4, 6)
    assert np.isnan(longer.largest)
    summary = summarise(found, worst=2)
    assert (summary.only_in_one, summary.only_in_two, summary.differing) == (1, 2, 3)
    assert [d.video for d in summary.worst] == ["e", "c"]


def astuple(made):
    return made.values, made.pts_seconds, made.frame_index, made.side


def test_diff_compares_two_keys_of_one_bank(bank):
    found = {d.video: d for d in diff_features(FeatureStore(bank), WHAT, OTHER)}

    assert {video: d.rows for video, d in found.items()} == {
        "a": (5, 5), "b": (5, 5), "c": (5, 0), "d": (5, 0)
    }  # fmt: skip
    largest = np.abs(feature(1).values - feature(5).values).max()
    assert found["a"].largest == largest
    assert list(diff_features(FeatureStore(bank), WHAT, WHAT)) == []


def test_long_videos_are_compared_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(comparing, "BLOCK_BYTES", 8 * 8 * 3)
    one, two = feature(1, rows=50), feature(2, rows=50)
    put(tmp_path / "one", {"a": one})
    put(tmp_path / "two", {"a": two})

    (found,) = diff(FeatureStore(tmp_path / "one"), FeatureStore(tmp_path / "two"))

    flat = one.values.reshape(-1).astype("f8"), two.values.reshape(-1).astype("f8")
    assert found.largest == np.abs(flat[0] - flat[1]).max()
    cosine = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    assert found.cosine == pytest.approx(cosine, abs=1e-12)


# compact


@pytest.mark.parametrize("what", [WHAT, PIXELS])
def test_many_small_shards_become_one_in_the_order_of_ids(tmp_path, what):
    bank = tmp_path / "bank"
    for number in (3, 1, 4, 0, 2):
        put(bank, {f"v{number}": number, f"w{number}": number}, what)
    copy_of(bank, tmp_path / "before")
    reader = FeatureStore(bank)
    rows = reader.table([Video("v3", Path("v3"))], {"x": what.name}).series("x", 0)
    files = {path: path.read_bytes() for path in shard_files(bank, what)}

    done = compact(FeatureStore(bank), what, provenance={"host": "there"})

    assert (len(done.written), len(done.replaced), done.videos, done.left) == (1, 5, 10, ())
    assert_same_bank(tmp_path / "before", bank)
    (shard,) = {found[0] for found in FeatureStore(bank).find(what, ["v0", "w4"])}
    assert list(shard.ids()) == [*(f"v{n}" for n in range(5)), *(f"w{n}" for n in range(5))]
    assert shard.record["provenance"] == {"host": "there", "rows_from": [{"host": "here"}]}
    assert all(entry["videos"] == "all" for entry in shard.record["supersedes"])
    assert all(path.read_bytes() == content for path, content in files.items())
    np.testing.assert_array_equal(rows, feature(3).values)
    np.testing.assert_array_equal(reader.read(what, "v4").values, feature(4).values)
    assert list(verify(FeatureStore(bank))) == []
    assert compact(FeatureStore(bank), what).written == ()


def test_a_new_shard_is_closed_when_it_is_full_and_full_ones_are_left(tmp_path):
    bank = tmp_path / "bank"
    for number in range(12):
        put(bank, {f"v{number:02}": number})  # 5 rows of 16 + 16 + 4 bytes: 180 bytes
    copy_of(bank, tmp_path / "before")

    first = compact(FeatureStore(bank), WHAT, shard_bytes=900)
    second = compact(FeatureStore(bank), WHAT, shard_bytes=900)

    shards = [set(FeatureStore(bank)._shard(WHAT, shard).ids()) for shard in first.written]
    assert [len(ids) for ids in shards] == [5, 5, 2]
    assert second.written == ()
    assert_same_bank(tmp_path / "before", bank)
    put(bank, {"x": 1})
    assert len(compact(FeatureStore(bank), WHAT, shard_bytes=900).replaced) == 2


def test_rows_that_do_not_win_are_not_copied(tmp_path):
    bank = tmp_path / "bank"
    first = put(bank, {"a": 1, "b": 2, "bad": 3})
    put(bank, {"a": 10, "c": 4})
    mark_bad(bank / WHAT.key, first, ["bad"])
    put(bank, {"b": 20}, supersedes=[{"shard": first, "videos": ["b"]}])
    before = winning(bank)

    done = compact(FeatureStore(bank), WHAT)

    assert winning(bank) == before
    assert before.keys() == {"a", "b", "c"}
    (shard,) = done.written
    assert list(FeatureStore(bank)._shard(WHAT, shard).ids()) == ["a", "b", "c"]
    prune(FeatureStore(bank), dry_run=False, older_than_seconds=0)
    assert commits(bank) == {shard}
    assert winning(bank) == before


def test_a_lone_shard_is_rewritten_only_to_drop_rows(tmp_path):
    shard = put(tmp_path, {"a": 1, "b": 2})
    assert compact(FeatureStore(tmp_path), WHAT).written == ()

    mark_bad(tmp_path / WHAT.key, shard, ["a"])
    done = compact(FeatureStore(tmp_path), WHAT)

    assert (done.videos, len(done.written)) == (1, 1)


@pytest.mark.parametrize("what", [WHAT, PIXELS])
def test_a_shard_with_a_damaged_row_is_left_and_reported(tmp_path, what):
    shards = [put(tmp_path, {f"v{n}": n, f"w{n}": n}, what) for n in range(4)]
    flip(tmp_path / what.key / "shards" / shards[1] / "values/c/0/0", 20)

    done = compact(FeatureStore(tmp_path), what)

    (problem,) = done.left
    assert problem.shard == shards[1]
    assert set(problem.videos) <= {"v1", "w1"}
    assert set(done.replaced) == {shards[0], shards[2], shards[3]}
    found = FeatureStore(tmp_path).find(what, ["v0", "v1", "v2", "v3"])
    assert [shard.id for shard, _ in found] == [
        done.written[0], shards[1], done.written[0], done.written[0]
    ]  # fmt: skip


@pytest.mark.parametrize("shard_bytes", [400, 2**30])
def test_two_compactions_of_the_same_shards_lose_nothing(tmp_path, shard_bytes):
    """Neither saw the other; together they are what two processes at once leave behind."""
    bank = tmp_path / "bank"
    for number in range(6):
        put(bank, {f"v{number}": number, "twice": 50 + number})
    before = copy_of(bank, tmp_path / "before")
    other = copy_of(bank, tmp_path / "other")
    compact(FeatureStore(bank), WHAT, shard_bytes=shard_bytes)
    compact(other, WHAT, shard_bytes=shard_bytes)

    shutil.copytree(other.path, bank, dirs_exist_ok=True)

    assert_same_bank(before.path, bank)
    prune(FeatureStore(bank), dry_run=False, older_than_seconds=0)
    assert_same_bank(before.path, bank)
    compact(FeatureStore(bank), WHAT)
    prune(FeatureStore(bank), dry_run=False, older_than_seconds=0)
    assert_same_bank(before.path, bank)
    assert len(commits(bank)) == 1


def test_writers_and_compactions_at_once_lose_nothing(tmp_path):
    put(tmp_path, {"v0": 0})
    finished = threading.Event()
    failures = []

    def keep_compacting():
        try:
            while not finished.is_set():
                compact(FeatureStore(tmp_path), WHAT, shard_bytes=1000)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=keep_compacting) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(1, 15):
        put(tmp_path, {f"v{number}": number, f"v{number - 1}": number - 1})
        assert set(winning(tmp_path)) >= {f"v{n}" for n in range(number + 1)}
    finished.set()
    for thread in threads:
        thread.join()

    assert failures == []
    put(tmp_path / "expected", {f"v{n}": n for n in range(15)})
    assert_same_bank(tmp_path / "expected", tmp_path)
    assert list(verify(FeatureStore(tmp_path))) == []


def copying(path, sources):
    """A compaction that stands between its last copied row and its commit."""
    store = FeatureStore(path)
    shards = {shard: store._shard(WHAT, shard) for shard in sources}
    writer = store.writer(WHAT, provenance={}, durable=False)
    copied = {}
    for shard in shards.values():
        for place, video in enumerate(shard.ids()):
            writer.copy(shard, place)
            copied[video] = shard.id
    replacing = compacting._Replacing(path / WHAT.key, WHAT, shards, set(sources))
    return partial(replacing.commit, writer, copied)


def test_what_others_commit_before_a_compaction_does_is_not_lost(tmp_path):
    first, second = put(tmp_path, {"a": 1}), put(tmp_path, {"b": 2})
    underway = copying(tmp_path, [first, second])
    put(tmp_path, {"a": 10, "c": 3})

    underway()

    read = FeatureStore(tmp_path).read
    for video, seed in {"a": 1, "b": 2, "c": 3}.items():
        np.testing.assert_array_equal(read(WHAT, video).values, feature(seed).values)


def test_a_newer_version_that_is_made_while_a_compaction_runs_wins(tmp_path):
    first, second = put(tmp_path, {"a": 1}), put(tmp_path, {"b": 2})
    underway = copying(tmp_path, [first, second])
    put(tmp_path, {"a": 10}, supersedes=[{"shard": first, "videos": ["a"]}])

    underway()

    read = FeatureStore(tmp_path).read
    for video, seed in {"a": 10, "b": 2}.items():
        np.testing.assert_array_equal(read(WHAT, video).values, feature(seed).values)


def test_a_video_called_all_is_one_video(tmp_path):
    shard = put(tmp_path, {"all": 1, "other": 2})
    mark_bad(tmp_path / WHAT.key, shard, ["all"])

    assert FeatureStore(tmp_path).video_ids(WHAT) == ["other"]


def test_merging_keeps_the_targets_words_on_where_weights_come_from(tmp_path):
    put(tmp_path / "one", {"a": 1})
    said = json.loads(WHAT.to_json()) | {"publisher": "somebody else"}
    put(tmp_path / "two", {"b": 2}, FeatureSpec.from_json(canonical_json(said)))

    merge(FeatureStore(tmp_path / "one"), [FeatureStore(tmp_path / "two")])

    store = FeatureStore(tmp_path / "one")
    assert store.video_ids(WHAT) == ["a", "b"]
    assert store.resolve(WHAT.key).publisher == WHAT.publisher


def test_a_repair_that_is_made_while_a_compaction_runs_wins(tmp_path):
    shards = [put(tmp_path, {video: seed}) for seed, video in enumerate("abc")]
    underway = copying(tmp_path, shards)
    mark_bad(tmp_path / WHAT.key, shards[0], ["a"])
    mark_bad(tmp_path / WHAT.key, shards[1], ["b"])
    put(tmp_path, {"a": 10})

    underway()

    store = FeatureStore(tmp_path)
    assert store.video_ids(WHAT) == ["a", "c"]
    np.testing.assert_array_equal(store.read(WHAT, "a").values, feature(10).values)


def test_more_shards_than_may_be_mapped_are_compacted(tmp_path, monkeypatch):
    monkeypatch.setattr("vqbank.store.value_files.MAPPED_FILES", 3)
    bank = tmp_path / "bank"
    for number in range(10):
        put(bank, {f"a{number}": number, f"b{number}": number})
    copy_of(bank, tmp_path / "before")

    compact(FeatureStore(bank), WHAT)

    assert_same_bank(tmp_path / "before", bank)


# prune


def test_prune_is_dry_unless_told_and_keeps_what_is_young(bank):
    store = FeatureStore(bank)
    done = compact(store, WHAT)
    uncommitted = orphan(bank)
    everything = sorted(bank.rglob("*"))

    assert prune(store) == []
    listed = prune(store, older_than_seconds=0)
    assert sorted(bank.rglob("*")) == everything
    removed = prune(store, dry_run=False, older_than_seconds=0)

    assert listed == removed
    assert {removal.path.name for removal in removed} == {*done.replaced, uncommitted}
    assert all(removal.size > 100 for removal in removed if removal.commit)
    assert not any(removal.path.exists() for removal in removed)
    assert prune(store, older_than_seconds=0) == []


def test_a_pruned_bank_is_the_same_bank(bank, tmp_path):
    copy_of(bank, tmp_path / "before")
    compact(FeatureStore(bank), WHAT)
    put(bank, {"d": 40})  # a duplicate that never wins
    files = len(shard_files(bank))

    prune(FeatureStore(bank), dry_run=False, older_than_seconds=0)

    assert len(shard_files(bank)) == files // 4
    assert_same_bank(tmp_path / "before", bank)
    assert list(verify(FeatureStore(bank))) == []


def test_prune_never_brings_a_superseded_row_back(tmp_path):
    """`keeper` wins nothing, but without it the first rows of v would win again."""
    old = put(tmp_path, {"v": 1, "w": 2})
    keeper = put(tmp_path, {"v": 3}, supersedes=[{"shard": old, "videos": ["v"]}])
    put(tmp_path, {"v": 4}, supersedes=[{"shard": keeper, "videos": "all"}])
    before = winning(tmp_path)

    assert prune(FeatureStore(tmp_path), dry_run=False, older_than_seconds=0) == []
    assert winning(tmp_path) == before

    compact(FeatureStore(tmp_path), WHAT)
    prune(FeatureStore(tmp_path), dry_run=False, older_than_seconds=0)
    assert winning(tmp_path) == before
    assert len(commits(tmp_path)) == 1


HISTORY = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from("abcde"), st.integers(1, 50), min_size=1),
        st.sampled_from(["plain", "supersede one", "supersede all", "mark"]),
        st.integers(0, 99),
    ),
    min_size=1,
    max_size=7,
)


@settings(max_examples=25)
@given(history=HISTORY, steps=st.lists(st.sampled_from([200, 500, 2**30, "prune"]), max_size=5))
def test_no_upkeep_changes_which_rows_win(tmp_path_factory, history, steps):
    bank = tmp_path_factory.mktemp("bank")
    shards = []
    for videos, action, number in history:
        supersedes = []
        if action.startswith("supersede") and shards:
            old, ids = shards[number % len(shards)]
            named = "all" if action.endswith("all") else [ids[number % len(ids)]]
            supersedes = [{"shard": old, "videos": named}]
        shards.append((put(bank, videos, supersedes=supersedes), sorted(videos)))
        if action == "mark":
            mark_bad(bank / WHAT.key, shards[-1][0], [sorted(videos)[0]])
    before = winning(bank)

    for step in steps:
        if step == "prune":
            prune(FeatureStore(bank), dry_run=False, older_than_seconds=0)
        else:
            compact(FeatureStore(bank), WHAT, shard_bytes=step)
        assert winning(bank) == before
    compact(FeatureStore(bank), WHAT)
    prune(FeatureStore(bank), dry_run=False, older_than_seconds=0)
    assert winning(bank) == before
    assert list(verify(FeatureStore(bank))) == []


def test_prune_tidies_up_after_kills(bank):
    folder = bank / OTHER.key
    (shard,) = commits(bank, OTHER)
    mark_bad(folder, "0123456789abcdef", ["a"])
    mark_bad(folder, shard, ["a"])
    stray = [bank / ".x.tmp", folder / ".y.tmp", folder / "commits/.z.json.1.tmp",
             folder / "bad/.z.json.damaged", folder / "shards" / "feed"]  # fmt: skip
    for path in stray[:-1]:
        path.write_text("half")
    stray[-1].mkdir()

    removed = prune(FeatureStore(bank), dry_run=False, older_than_seconds=0)

    assert not any(path.exists() for path in stray)
    assert len(removed) == 6
    assert FeatureStore(bank).video_ids(OTHER) == ["b"]


def test_a_copy_that_keeps_old_dates_is_young(bank, tmp_path):
    """What `cp -a` has copied of a shard before its commit record."""
    for path in (bank / WHAT.key / "shards" / orphan(bank)).rglob("*"):
        os.utime(path, (0, 0))

    assert prune(FeatureStore(bank), older_than_seconds=3600) == []


# Kills

KILLED = """
import os, signal, sys
from pathlib import Path
from vqbank.store.bank import FeatureStore
from vqbank.store.compact import compact
from vqbank.store.prune import prune
store, event, left = FeatureStore(Path(sys.argv[1])), sys.argv[3], int(sys.argv[4])
(spec,) = store.specs()
def count(name, _):
    global left
    left -= name == event
    if name == event and left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(count)
if sys.argv[2] == "compact":
    compact(store, spec, shard_bytes=100_000)
else:
    prune(store, dry_run=False, older_than_seconds=0)
"""


@pytest.mark.parametrize(
    ("action", "event", "number"), [("compact", "os.link", 3), ("prune", "os.remove", 8)]
)
def test_a_kill_in_the_middle_loses_nothing_and_the_next_run_ends_it(
    tmp_path, action, event, number
):
    """Compacting dies before its third commit, pruning before it removes the eighth record."""
    bank = tmp_path / "bank"
    big = FeatureSpec("clip.tokens", (512,), "float16", {}, SIDE)
    for shard in range(15):
        put(bank, {f"v{place * 15 + shard}": feature(shard, 10, 512) for place in range(4)}, big)
    copy_of(bank, tmp_path / "before")
    if action == "prune":
        compact(FeatureStore(bank), big)
    first = commits(bank, big)
    process = subprocess.run(
        [sys.executable, "-c", KILLED, bank, action, event, str(number)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )

    assert process.returncode == -signal.SIGKILL
    assert len(first ^ commits(bank, big)) == number - 1
    assert_same_bank(tmp_path / "before", bank)
    assert list(verify(FeatureStore(bank))) == []
    compact(FeatureStore(bank), big)
    assert_same_bank(tmp_path / "before", bank)
    prune(FeatureStore(bank), dry_run=False, older_than_seconds=0)
    assert_same_bank(tmp_path / "before", bank)
    assert {path.name for path in (bank / big.key / "shards").iterdir()} == commits(bank, big)


# merge


def test_merging_is_copying_the_folders(bank, tmp_path):
    put(tmp_path / "two", {"c": 3, "e": 8})
    put(tmp_path / "two", {"p": 8}, PIXELS)
    two = FeatureStore(tmp_path / "two")
    (shard,) = commits(two.path, PIXELS)
    mark_bad(two.path / PIXELS.key, shard, ["p"])
    put(tmp_path / "two", {"q": 8}, PIXELS)
    copied = copy_of(bank, tmp_path / "copied")
    shutil.copytree(two.path, copied.path, dirs_exist_ok=True)
    (two.path / "ledger").mkdir()
    line = '{"status":"ended","time":1.0,"done":1,"failed":0,"cached":0}\n'
    (two.path / "ledger" / "w.jsonl").write_text(line)

    report = merge(FeatureStore(bank), [two])

    assert_same_bank(copied.path, bank)
    assert FeatureStore(bank).video_ids(PIXELS) == ["q"]
    assert list(verify(FeatureStore(bank))) == []
    # The pixels of p are marked bad: nobody reads them, so they stay behind.
    assert (report.shards, report.present) == (2, 0)
    assert [(d.video, d.same) for d in report.duplicates] == [("c", True)]
    assert (bank / "ledger" / "w.jsonl").read_text() == line


def test_bad_marks_travel_with_their_shard(bank, tmp_path):
    shard = FeatureStore(bank).find(WHAT, ["a"])[0][0].id
    flip(bank / WHAT.key / "shards" / shard / "values/c/0/0", 0)
    mark(FeatureStore(bank), verify(FeatureStore(bank)))

    merge(FeatureStore.create(tmp_path / "new"), [FeatureStore(bank)])

    assert FeatureStore(tmp_path / "new").video_ids(WHAT) == ["b", "c", "d"]
    assert list(verify(FeatureStore(tmp_path / "new"))) == []


def test_damage_of_one_bank_does_not_hide_rows_that_are_whole_in_the_other(bank, tmp_path):
    source = copy_of(bank, tmp_path / "source")
    shard = source.find(WHAT, ["a"])[0][0].id
    mark_bad(source.path / WHAT.key, shard, ["a"])

    merge(FeatureStore(bank), [source])

    assert "a" in FeatureStore(bank).video_ids(WHAT)


def test_an_interrupted_merge_is_finished_by_the_next(bank, tmp_path):
    """After a kill some files are whole, one is missing, one is cut, and some commits are there."""
    target = merge_target = tmp_path / "target"
    merge(FeatureStore.create(target), [FeatureStore(bank)])
    gone = sorted((target / WHAT.key / "commits").iterdir())
    for commit in gone:
        commit.unlink()
    first, second, *_ = shard_files(target)
    os.truncate(first, 3)
    second.unlink()

    report = merge(FeatureStore(merge_target), [FeatureStore(bank)])

    assert (report.shards, report.present) == (2, 1)
    assert report.size == sum(shard_files(target)[n].stat().st_size for n in (0, 1))
    assert_same_bank(bank, target)
    assert list(verify(FeatureStore(target))) == []
    assert merge(FeatureStore(target), [FeatureStore(bank)]).shards == 0


def test_two_merges_at_once_are_one(bank, tmp_path):
    FeatureStore.create(tmp_path / "target")
    failures = []

    def run():
        try:
            merge(FeatureStore(tmp_path / "target"), [FeatureStore(bank)])
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert_same_bank(bank, tmp_path / "target")
    assert list(verify(FeatureStore(tmp_path / "target"))) == []


def test_merging_a_compacted_bank_with_its_own_past_changes_nothing(bank, tmp_path):
    past = copy_of(bank, tmp_path / "past")
    compact(FeatureStore(bank), WHAT)
    prune(FeatureStore(bank), dry_run=False, older_than_seconds=0)

    merge(FeatureStore(bank), [past])
    assert_same_bank(bank, past.path)
    merge(past, [FeatureStore(bank)])
    assert_same_bank(bank, past.path)


def test_banks_that_contradict_each_other_are_not_merged(bank, tmp_path):
    before = sorted(bank.rglob("*"))
    put(tmp_path / "changed", {"a": 77, "new": 5})
    with pytest.raises(ChangedVideoError, match=r"a: .* of 1 bytes .* of 77 bytes"):
        merge(FeatureStore(bank), [FeatureStore(tmp_path / "changed")])

    with pytest.raises(BankError, match="into itself"):
        merge(FeatureStore(bank), [FeatureStore(bank)])
    assert sorted(bank.rglob("*")) == before


def test_duplicates_with_other_bytes_are_reported(tmp_path):
    put(tmp_path / "one", {"a": feature(1), "b": feature(2)})
    put(tmp_path / "two", {"a": feature(1), "b": feature(3)})

    report = merge(FeatureStore(tmp_path / "one"), [FeatureStore(tmp_path / "two")])

    assert {d.video: d.same for d in report.duplicates} == {"a": True, "b": False}
    read = FeatureStore(tmp_path / "one").read(WHAT, "b").values
    np.testing.assert_array_equal(read, feature(2).values)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_source_is_not_merged_in_silence(bank, tmp_path, damage):
    (shard,) = commits(bank, OTHER)
    path = bank / OTHER.key / "shards" / shard / "pts_seconds/c/0"
    if damage == "flip":
        flip(path, 0)
    elif damage == "cut":
        os.truncate(path, 1)
    else:
        path.unlink()

    with pytest.raises(DamagedShardError, match=r"pts_seconds/c/0 .*verify --mark"):
        merge(FeatureStore.create(tmp_path / "new"), [FeatureStore(bank)])
    assert commits(tmp_path / "new", OTHER) == set()


# Selections


def videos(names):
    return [Video(name, Path(name)) for name in names]


def test_a_selection_names_keys_and_survives_upkeep(bank, tmp_path):
    features = {"semantic": WHAT.key, "other": OTHER.key}
    written = write_selection(tmp_path / "a.json", FeatureStore(bank), features, videos("ba"))
    again = write_selection(tmp_path / "b.json", FeatureStore(bank), features, videos("ab"))

    read = read_selection(tmp_path / "a.json")

    assert read == written == again
    assert dict(read.features) == features
    assert list(read.features) == ["semantic", "other"]
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    compact(FeatureStore(bank), WHAT)
    prune(FeatureStore(bank), dry_run=False, older_than_seconds=0)
    put(bank, {"a": 9, "new": 9})  # a duplicate that does not win, and a stranger
    check_selection(FeatureStore(bank), read, videos("ab"))
    table = FeatureStore(bank).table(videos("ab"), read.features)
    np.testing.assert_array_equal(table.series("semantic", 0), feature(1).values)


def test_other_rows_than_were_selected_are_named(bank, tmp_path):
    store = FeatureStore(bank)
    selection = write_selection(tmp_path / "s", store, {"x": WHAT.key}, videos("abcd"))
    old = store.find(WHAT, ["b"])[0][0].id
    put(bank, {"b": 20}, supersedes=[{"shard": old, "videos": ["b"]}])

    with pytest.raises(BankError, match="other rows than were selected for 1 of 4 videos: b;"):
        check_selection(FeatureStore(bank), selection)
    with pytest.raises(BankError, match="1 video not in the selection: e"):
        check_selection(FeatureStore(bank), selection, videos("abcde"))
    with pytest.raises(BankError, match="2 videos of the selection not among those given: c"):
        check_selection(FeatureStore(bank), selection, videos("ab"))
    mark_bad(bank / WHAT.key, old, ["a"])
    with pytest.raises(MissingFeatureError, match=r"1 of 4 videos have no .*: a"):
        check_selection(FeatureStore(bank), selection)


def test_a_selection_is_made_of_what_is_there_and_unambiguous(bank, tmp_path):
    with pytest.raises(AmbiguousFeatureError):
        write_selection(tmp_path / "s", FeatureStore(bank), {"x": WHAT.name}, videos("a"))
    with pytest.raises(MissingFeatureError, match=r"2 of 3 videos .*: y, z"):
        write_selection(tmp_path / "s", FeatureStore(bank), {"x": WHAT.key}, videos("yaz"))
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{", "not JSON"),
        ("[]", "is not a selection"),
        ('{"format": "vqbank"}', "not a selection: format"),
        ('{"format": "vqbank-selection", "version": 2}', "newer vqbank"),
        (
            '{"format": "vqbank-selection", "version": 1, "videos": 2, "features": {}, '
            '"snapshot": "", "rows": {"a": "00000000"}}',
            "says 2 videos and names 1",
        ),
    ],
)
def test_a_file_that_is_no_selection_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "s").write_text(text)

    with pytest.raises(BankError, match=message):
        read_selection(tmp_path / "s")


# Disks that do not take what is written


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MB; gives its folder and a way to make it read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "none", folder]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    if sys.platform != "linux" or os.geteuid() != 0 or not mount("size=2m"):
        pytest.skip("needs the right to mount a small tmpfs")
    yield folder, lambda: mount("remount,ro")
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_costs_nothing_that_was_committed(small_disk, tmp_path):
    folder, _ = small_disk
    bank = folder / "bank"
    for number in range(3):
        put(bank, {f"v{number}": feature(number, rows=1500)})  # 54 KB
    copy_of(bank, tmp_path / "before")
    free = shutil.disk_usage(folder).free
    (folder / "ballast").write_bytes(b"x" * (free - 80_000))

    with pytest.raises(BankError, match="No space left"):
        compact(FeatureStore(bank), WHAT)
    assert_same_bank(tmp_path / "before", bank)
    put(tmp_path / "other", {"w": feature(9, rows=5000)})
    with pytest.raises(BankError, match="No space left"):
        merge(FeatureStore(bank), [FeatureStore(tmp_path / "other")])
    assert_same_bank(tmp_path / "before", bank)

    (folder / "ballast").unlink()
    prune(FeatureStore(bank), dry_run=False, older_than_seconds=0)
    assert len(compact(FeatureStore(bank), WHAT).written) == 1
    assert_same_bank(tmp_path / "before", bank)


def test_a_read_only_bank_is_verified_and_refuses_the_rest(small_disk):
    folder, make_read_only = small_disk
    bank = folder / "bank"
    shards = [put(bank, {"a": 1}), put(bank, {"b": 2})]
    flip(bank / WHAT.key / "shards" / shards[0] / "values/c/0/0", 0)
    orphan(bank)
    put(bank, {"c": 3})
    assert make_read_only()

    problems = list(verify(FeatureStore(bank)))

    assert [problem.videos for problem in problems] == [("a",)]
    for action in (
        lambda: mark(FeatureStore(bank), problems),
        lambda: compact(FeatureStore(bank), WHAT),
        lambda: prune(FeatureStore(bank), dry_run=False, older_than_seconds=0),
    ):
        with pytest.raises(BankError, match="Read-only file system"):
            action()
