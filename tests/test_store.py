"""The bank: what is committed is there for good and is what was written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from vqbank.store.bank import FeatureStore
from vqbank.store.errors import (
    AmbiguousFeatureError,
    BankError,
    ChangedVideoError,
    DamagedShardError,
    InvalidFeatureError,
    MissingFeatureError,
)
from vqbank.store.layout import rows_per_chunk, rows_per_file
from vqbank.store.schema import (
    Feature,
    FeatureSpec,
    Fingerprint,
    SideSpec,
    Video,
    from_stored,
    to_stored,
)

FINGERPRINT = Fingerprint(123, "ab" * 32)
PROBE = {"width": 640, "height": 360}


def spec(name="clip.embedding", shape=(8,), dtype="float16", **identity):
    return FeatureSpec(name, shape, dtype, {"extractor": name.split(".")[0], **identity})


def feature(rows=5, shape=(8,), seed=0, scale=1.0):
    values = np.random.default_rng(seed).standard_normal((rows, *shape)).astype("f4") * scale
    return Feature(values, np.arange(rows) / 25.0, np.arange(rows) * 2)


def bank_with(path, videos, what=None):
    what = what or spec()
    store = FeatureStore.create(path)
    writer = store.writer(what, provenance={"host": "here"})
    for name, rows in videos.items():
        writer.add(name, rows, fingerprint=FINGERPRINT, probe=PROBE)
    writer.commit()
    store.refresh()
    return store


def test_a_writer_commits_when_its_block_ends_and_removes_its_rows_after_an_error(tmp_path):
    store = FeatureStore.create(tmp_path / "bank")
    with store.writer(spec(), provenance={}) as whole:
        whole.add("a", feature(2), fingerprint=FINGERPRINT, probe=PROBE)
        assert FeatureStore(store.path).video_ids(spec()) == []
    with suppress(KeyboardInterrupt), store.writer(spec(), provenance={}) as cut:
        cut.add("b", feature(2), fingerprint=FINGERPRINT, probe=PROBE)
        raise KeyboardInterrupt
    with store.writer(spec(), provenance={}) as early:
        early.add("c", feature(2), fingerprint=FINGERPRINT, probe=PROBE)
        early.commit(supersedes=[{"shard": whole.id, "videos": "all"}])

    assert FeatureStore(store.path).video_ids(spec()) == ["c"]
    folder = store.path / spec().key
    assert {path.name for path in (folder / "shards").iterdir()} == {whole.id, early.id}
    assert {path.stem for path in (folder / "commits").iterdir()} == {whole.id, early.id}


def test_a_writer_that_has_ended_takes_and_commits_nothing_more(tmp_path):
    store = FeatureStore.create(tmp_path / "bank")
    with store.writer(spec(), provenance={}) as writer:
        writer.add("a", feature(2), fingerprint=FINGERPRINT, probe=PROBE)
        writer.abandon()
    with pytest.raises(ValueError, match="make another writer"):
        writer.add("b", feature(2), fingerprint=FINGERPRINT, probe=PROBE)
    with pytest.raises(ValueError, match="make another writer"):
        writer.commit()

    assert FeatureStore(store.path).video_ids(spec()) == []
    assert list((store.path / spec().key / "shards").iterdir()) == []


def test_what_a_stranger_says_of_a_video_is_of_the_kind_that_is_computed_with(tmp_path):
    store = FeatureStore.create(tmp_path / "bank")
    with store.writer(spec(), provenance={}) as writer:
        writer.add("a", feature(2), fingerprint=FINGERPRINT, probe={"frames": "many"})

    with pytest.raises(DamagedShardError, match=r"probe\.frames"):
        store.video_record(spec(), "a")


def test_what_was_written_is_read(tmp_path):
    written = feature(7)
    store = bank_with(tmp_path / "bank", {"set/a.mp4": written, "set/b.mp4": feature(3, seed=1)})

    read = FeatureStore(store.path).read(spec(), "set/a.mp4")

    np.testing.assert_array_equal(read.values, written.values.astype("f2"))
    np.testing.assert_array_equal(read.pts_seconds, written.pts_seconds)
    np.testing.assert_array_equal(read.frame_index, written.frame_index)
    record = store.video_record(spec(), "set/b.mp4")
    assert (record.fingerprint, record.probe) == (FINGERPRINT, PROBE)


@settings(max_examples=25)
@given(
    rows=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    shape=st.sampled_from([(), (3,), (2, 5)]),
    dtype=st.sampled_from(["float16", "float32", "bfloat16", "uint8", "int16", "int32"]),
    file_rows=st.integers(1, 4),
)
def test_any_rows_survive_any_cut_into_files(tmp_path_factory, rows, shape, dtype, file_rows):
    """Value files of a few chunks each, so that videos straddle them."""
    what = spec(shape=shape, dtype=dtype)
    rng = np.random.default_rng(sum(rows))
    given_values = [rng.integers(0, 100, (count, *shape)).astype("f4") for count in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vqbank.store.layout.CHUNK_BYTES", (64, 256))
        patch.setattr("vqbank.store.layout.FILE_BYTES", 256 * file_rows)
        videos = {
            f"v{number}": Feature(v, np.zeros(len(v)), np.arange(len(v)))
            for number, v in enumerate(given_values)
        }
        store = bank_with(tmp_path_factory.mktemp("bank"), videos, what)

        for number, values in enumerate(given_values):
            np.testing.assert_array_equal(store.read(what, f"v{number}").values, values)
        group = zarr.open_group(next((store.path / what.key / "shards").iterdir()), mode="r")
        stored = from_stored(np.asarray(group["values"][...]), dtype)
        np.testing.assert_array_equal(stored, np.concatenate(given_values))


def test_other_zarr_readers_see_every_array_bit_for_bit(tmp_path):
    what = FeatureSpec("nss.brisque", (36,), "float16", {}, (SideSpec("offsets", (2,), "int16"),))
    given = feature(300, (36,))
    offsets = np.arange(600, dtype=np.int16).reshape(300, 2)
    store = FeatureStore.create(tmp_path / "bank")
    writer = store.writer(what, provenance={})
    with_side = Feature(given.values, given.pts_seconds, given.frame_index, {"offsets": offsets})
    writer.add("a", with_side, fingerprint=FINGERPRINT, probe={})
    writer.commit()
    shard = store.path / what.key / "shards" / writer.id

    expected = {
        "values": given.values.astype("f2"),
        "pts_seconds": given.pts_seconds,
        "frame_index": given.frame_index,
        "side/offsets": offsets,
    }
    group = zarr.open_group(shard, mode="r")
    for name, array in expected.items():
        np.testing.assert_array_equal(group[name][...], array)
        kvstore = {"driver": "file", "path": str(shard / name)}
        opened = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result()
        np.testing.assert_array_equal(opened.read().result(), array)
    np.testing.assert_array_equal(store.read(what, "a").side["offsets"], offsets)


def test_rows_are_not_copied_when_read(tmp_path):
    store = bank_with(tmp_path / "bank", {"a": feature(1000)})

    table = store.table([Video("a", Path("a"))], {"semantic": "clip.embedding"})
    first, again = table.series("semantic", 0), table.series("semantic", 0)

    assert np.shares_memory(first, again)
    assert not first.flags.writeable


def test_nothing_is_visible_before_commit(tmp_path):
    store = FeatureStore.create(tmp_path / "bank")
    writer = store.writer(spec(), provenance={})
    writer.add("a", feature(), fingerprint=FINGERPRINT, probe={})

    assert FeatureStore(store.path).video_ids(spec()) == []
    writer.commit()
    assert FeatureStore(store.path).video_ids(spec()) == ["a"]


def test_an_abandoned_shard_leaves_no_file(tmp_path):
    store = FeatureStore.create(tmp_path / "bank")
    writer = store.writer(spec(), provenance={})
    writer.add("a", feature(), fingerprint=FINGERPRINT, probe={})

    writer.abandon()

    assert not any((store.path / spec().key / "shards").iterdir())


KILLED_WRITER = """
import sys
from pathlib import Path
import numpy as np
from vqbank.store.bank import FeatureStore
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint
store = FeatureStore.create(Path(sys.argv[1]))
what = FeatureSpec("clip.embedding", (512,), "float16", {"extractor": "clip"})
number = len(store.video_ids(what))
while True:
    writer = store.writer(what, provenance={})
    names = [f"v{number + place}" for place in range(5)]
    for name in names:
        value = int(name[1:]) % 1000
        rows = np.full((40, 512), value, "f4")
        feature = Feature(rows, np.arange(40.0), np.arange(40))
        writer.add(name, feature, fingerprint=Fingerprint(value, ""), probe={})
    writer.commit()
    number += 5
    print(names[-1], flush=True)
"""


def test_a_killed_writer_loses_nothing_that_it_committed(tmp_path):
    """SIGKILL at three moments; every acknowledged video is whole, no other is half there."""
    what = FeatureSpec("clip.embedding", (512,), "float16", {"extractor": "clip"})
    committed = 0
    for delay in (0.0, 0.013, 0.05):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED_WRITER, tmp_path / "bank"],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        first = process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        acknowledged = [first, *process.stdout.read().splitlines()]
        process.wait()
        process.stdout.close()
        last = int(acknowledged[-1].strip()[1:])

        store = FeatureStore(tmp_path / "bank")
        ids = store.video_ids(what)
        assert last + 1 <= len(ids) <= last + 6
        for name in ids:
            assert (store.read(what, name).values == int(name[1:]) % 1000).all()
        committed = len(ids)
    assert committed >= 15


@pytest.mark.parametrize(
    "video_id",
    ["set/a b.mp4", "../../escape.mp4", "/etc/passwd", "视频/ü.mp4", "x" * 300, "a.b.c/."],
)
def test_an_id_is_only_a_name(tmp_path, video_id):
    store = bank_with(tmp_path / "bank", {video_id: feature()})

    assert FeatureStore(store.path).video_ids(spec()) == [video_id]
    assert {path.name for path in tmp_path.iterdir()} == {"bank"}


def test_a_flipped_byte_is_noticed_on_the_first_read(tmp_path):
    store = bank_with(tmp_path / "bank", {"a": feature(), "b": feature(seed=1)})
    values = next((store.path / spec().key).glob("shards/*/values/c/0/0"))
    content = bytearray(values.read_bytes())
    content[3] ^= 1
    values.write_bytes(content)

    reopened = FeatureStore(store.path)
    with pytest.raises(DamagedShardError, match=r"a: values in .* has changed"):
        reopened.read(spec(), "a")
    reopened.read(spec(), "b")


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_lost_file_is_noticed(tmp_path, damage):
    store = bank_with(tmp_path / "bank", {"a": feature()})
    values = next((store.path / spec().key).glob("shards/*/values/c/0/0"))
    values.unlink() if damage == "gone" else os.truncate(values, 10)

    with pytest.raises(DamagedShardError, match="missing" if damage == "gone" else "10 bytes"):
        FeatureStore(store.path).read(spec(), "a")


def test_a_foreign_or_damaged_commit_record_is_refused(tmp_path):
    store = bank_with(tmp_path / "bank", {"a": feature()})
    other = spec(weights="other")
    bank_with(tmp_path / "bank", {"b": feature()}, other)
    foreign = next((store.path / other.key / "commits").iterdir())
    copied = store.path / spec().key / "commits" / foreign.name
    shutil.copy(foreign, copied)
    with pytest.raises(DamagedShardError, match="stands in the folder of"):
        FeatureStore(store.path).video_ids(spec())

    record = json.loads(foreign.read_text())
    record["record"]["rows"] += 1
    copied.write_text(json.dumps(record))
    with pytest.raises(DamagedShardError, match="changed since"):
        FeatureStore(store.path).video_ids(spec())


def test_two_banks_merge_by_copying_folders(tmp_path):
    one = bank_with(tmp_path / "one", {"a": feature()})
    two = bank_with(tmp_path / "two", {"b": feature(seed=1)})

    shutil.copytree(two.path, one.path, dirs_exist_ok=True)

    assert FeatureStore(one.path).video_ids(spec()) == ["a", "b"]


def test_of_two_shards_with_one_video_the_first_wins_unless_superseded(tmp_path):
    store = bank_with(tmp_path / "bank", {"a": feature(seed=0)})
    first = store.video_record(spec(), "a")
    bank_with(tmp_path / "bank", {"a": feature(seed=1)})
    assert FeatureStore(store.path).video_record(spec(), "a").crc32c == first.crc32c

    old = [commit.stem for commit in (store.path / spec().key / "commits").iterdir()]
    writer = store.writer(spec(), provenance={})
    writer.add("a", feature(seed=2), fingerprint=FINGERPRINT, probe={})
    writer.commit(supersedes=[{"shard": shard, "videos": "all"} for shard in old])
    read = FeatureStore(store.path).read(spec(), "a").values
    np.testing.assert_array_equal(read, feature(seed=2).values.astype("f2"))


def test_two_keys_of_one_name_are_never_mixed_unasked(tmp_path):
    store = bank_with(tmp_path / "bank", {"a": feature()}, spec(weights="one"))
    bank_with(tmp_path / "bank", {"a": feature()}, spec(weights="two"))

    with pytest.raises(AmbiguousFeatureError, match=r"2 features named clip.embedding"):
        store.resolve("clip.embedding")
    assert store.resolve(spec(weights="two").key) == spec(weights="two")
    with pytest.raises(MissingFeatureError, match=r"Did you mean 'clip.embedding'"):
        store.resolve("clip.embeding")


def test_another_file_under_a_banked_id_is_refused_with_both_named(tmp_path):
    store = bank_with(tmp_path / "bank", {"a": feature()})
    video = Video("a", Path("clips/a.mp4"))

    store.check_file(spec(), video, FINGERPRINT)
    with pytest.raises(ChangedVideoError, match=r"clips/a.mp4 \(9 bytes.*123 bytes"):
        store.check_file(spec(), video, Fingerprint(9, "cd" * 32))


def test_a_table_names_the_videos_that_lack_a_feature(tmp_path):
    store = bank_with(tmp_path / "bank", {"a": feature()})

    with pytest.raises(MissingFeatureError, match=r"1 of 2 videos have no .*: b"):
        store.table([Video("a", Path("a")), Video("b", Path("b"))], {"x": "clip.embedding"})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (feature(scale=1e9), "too large for float16"),
        (feature(shape=(9,)), r"rows have shape \(9,\), not \(8,\)"),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path, given, message):
    store = FeatureStore.create(tmp_path / "bank")
    writer = store.writer(spec(), provenance={})
    writer.add("a", feature(), fingerprint=FINGERPRINT, probe={})

    with pytest.raises(InvalidFeatureError, match=f"b: clip.embedding: .*{message}"):
        writer.add("b", given, fingerprint=FINGERPRINT, probe={})
    writer.add("c", feature(seed=3), fingerprint=FINGERPRINT, probe={})
    writer.commit()

    store.refresh()
    assert store.video_ids(spec()) == ["a", "c"]
    read = store.read(spec(), "c").values
    np.testing.assert_array_equal(read, feature(seed=3).values.astype("f2"))


def test_a_feature_that_is_not_finite_is_refused_with_its_row():
    values = np.zeros((4, 2), "f4")
    values[2, 1] = np.nan

    with pytest.raises(InvalidFeatureError, match=r"row 2 \(frame 4, 0.080 s\) is not finite"):
        Feature(values, np.arange(4) / 25, np.arange(4) * 2)


def test_bfloat16_rounds_to_nearest_even():
    values = np.array([[1.0, 1.00390625, 1.01171875, -3.14159, 3e38]], "f4")

    import torch

    expected = torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(from_stored(to_stored(values, "bfloat16"), "bfloat16"), expected)


def test_a_key_depends_on_everything_that_changes_the_numbers_and_nothing_else():
    base = spec(weights="one", decoder="pyav")

    assert base.key == "clip.embedding@1db590d545a2"
    changed = [
        spec(weights="two", decoder="pyav"),
        spec(weights="one", decoder="decord"),
        spec(weights="one", decoder="pyav", dtype="float32"),
        spec(weights="one", decoder="pyav", shape=(9,)),
    ]
    assert len({base.key, *(other.key for other in changed)}) == 5
    published = FeatureSpec(base.name, base.shape, "float16", base.identity, publisher="someone")
    assert published.key == base.key
    assert FeatureSpec.from_json(published.to_json()).to_json() == published.to_json()


def test_chunks_and_files_follow_from_the_row():
    for row_bytes, chunk in [(2, 32768), (1024, 64), (8192, 64), (15360, 68), (1_204_224, 1)]:
        assert rows_per_chunk(row_bytes) == chunk
        assert rows_per_file(row_bytes) % chunk == 0
        assert rows_per_file(row_bytes) * row_bytes <= 128 * 2**20


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, "is no bank"),
        ("{", "not JSON"),
        ('{"format":"other"}', "not the header"),
        ('{"format":"vqbank","version":99}', "newer vqbank"),
    ],
)
def test_a_folder_that_is_no_readable_bank_is_refused(tmp_path, header, message):
    if header is not None:
        (tmp_path / "bank.json").write_text(header)
    with pytest.raises(BankError, match=message):
        FeatureStore(tmp_path)


def test_a_renamed_feature_folder_is_refused(tmp_path):
    store = bank_with(tmp_path / "bank", {"a": feature()})
    (store.path / spec().key).rename(store.path / "clip.embedding@000000000000")

    with pytest.raises(BankError, match="a folder's name is its key"):
        FeatureStore(store.path).specs()


def test_a_bank_is_not_made_among_other_files(tmp_path):
    (tmp_path / "holiday.jpg").write_text("")

    with pytest.raises(BankError, match=r"holds holiday.jpg and is no bank"):
        FeatureStore.create(tmp_path)


@pytest.mark.parametrize(
    ("name", "dtype"), [("../../leak", "int16"), ("a/b", "int16"), ("", "int16"), ("x", "float64")]
)
def test_a_spec_cannot_write_outside_its_shard(name, dtype):
    with pytest.raises(InvalidFeatureError, match=r"clip.embedding: "):
        FeatureSpec("clip.embedding", (2,), "float16", {}, (SideSpec(name, (), dtype),))


def test_a_commit_record_cannot_name_files_outside_its_shard(tmp_path):
    from vqbank.store.records import seal

    store = bank_with(tmp_path / "bank", {"a": feature()})
    commit = next((store.path / spec().key / "commits").iterdir())
    record = json.loads(commit.read_bytes())["record"]
    record["files"]["../../secret"] = {"bytes": 1, "crc32c": 0}
    commit.write_bytes(seal(record))

    with pytest.raises(DamagedShardError, match="secret"):
        FeatureStore(store.path).video_ids(spec())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_every_kind_of_not_finite_is_seen_in_every_float(value, dtype):
    values = np.full((3, 5), -65504, dtype)
    Feature(values, np.zeros(3), np.arange(3))
    values[1, 4] = value

    with pytest.raises(InvalidFeatureError, match="row 1 "):
        Feature(values, np.zeros(3), np.arange(3))


@pytest.mark.parametrize("features", ["nss.brisque", ["nss.brisque"]])
def test_features_of_a_table_are_named_by_role(tmp_path, features):
    store = FeatureStore.create(tmp_path / "bank")
    with pytest.raises(TypeError, match=r"features by role are wanted, as .*; got .*nss\.brisque"):
        store.table(["a"], features)
