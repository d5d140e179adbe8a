"""In and out of a bank: what comes back is what went, and nothing else gets in."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqbank.store import files
from vqbank.store.bank import FeatureStore
from vqbank.store.commits import mark_bad
from vqbank.store.errors import (
    BankError,
    DamagedShardError,
    InvalidFeatureError,
    MissingFeatureError,
)
from vqbank.store.exchange.hdf5_file import export_hdf5, import_hdf5
from vqbank.store.exchange.npy_tree import export_npy, import_npy
from vqbank.store.exchange.pack import pack
from vqbank.store.layout import array_names
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, SideSpec, Video

DTYPES = ["float16", "float32", "bfloat16", "uint8", "int16", "int32"]
PROBE = {"width": 640, "rate": 25.0}
ODD_IDS = [
    "../../escape",
    "..",
    ".",
    "",
    "/etc/passwd",
    "set/a b.mp4",
    "set/.hidden",
    "set/A.mp4",
    "set/a.mp4",
    "Видео/影片 🎬.mp4",
    "e\u0301 and \u00e9",
    "n" * 300,
    "N" * 300,
    "/" * 300,
    "%2E%2E%2Fa",
    "con\\trol\n\t\x7f",
    "CON",
]


def spec(name="clip.embedding", shape=(3,), dtype="float16", side=(), **identity):
    return FeatureSpec(name, shape, dtype, identity, side)


def feature(what, rows=5, seed=0):
    """Random rows of `what`, whole numbers where it stores integers."""
    rng = np.random.default_rng(seed)

    def drawn(shape, dtype):
        if np.dtype("f4" if dtype == "bfloat16" else dtype).kind in "iu":
            return rng.integers(0, 100, (rows, *shape))
        return rng.standard_normal((rows, *shape)).astype("f4")

    return Feature(
        drawn(what.shape, what.stored_dtype),
        np.sort(rng.random(rows)),
        np.arange(rows) * 7,
        {side.name: drawn(side.shape, side.dtype) for side in what.side},
    )


def bank_of(path, videos, *, shard_videos=2):
    """A bank of `{spec: [video ids]}`, a commit for every `shard_videos`."""
    store = FeatureStore.create(path)
    for what, ids in videos.items():
        for start in range(0, len(ids), shard_videos):
            provenance = {"host": "here", "software": {"torch": f"2.{start}"}}
            writer = store.writer(what, provenance=provenance, durable=False)
            for number, name in enumerate(ids[start : start + shard_videos], start):
                fingerprint = Fingerprint(number, f"{number:064x}")
                rows = feature(what, 1 + number % 4, seed=number)
                writer.add(name, rows, fingerprint=fingerprint, probe={**PROBE, "number": number})
            writer.commit()
    store.refresh()
    return store


def assert_same_banks(store, other):
    """Equal keys and ids, and of every video equal bytes, fingerprint and probe."""
    assert [s.to_json() for s in store.specs()] == [s.to_json() for s in other.specs()]
    for what in store.specs():
        ids = store.video_ids(what)
        assert ids == other.video_ids(what)
        for (shard, place), (other_shard, other_place) in zip(
            store.find(what, ids), other.find(what, ids), strict=True
        ):
            for name in array_names(what):
                stored, again = shard.stored(place, name), other_shard.stored(other_place, name)
                assert (stored.dtype, stored.shape) == (again.dtype, again.shape)
                assert stored.tobytes() == again.tobytes()
            facts = [
                (v.fingerprint, v.probe)
                for v in (shard.video(place), other_shard.video(other_place))
            ]
            assert facts[0] == facts[1]


def files_under(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


SIDES = (SideSpec("offsets", (2,), "int16"), SideSpec("weight", (), "bfloat16"))
EVERY_KIND = [
    *(spec(f"row.{dtype}", (3,), dtype) for dtype in DTYPES),
    spec("number.float32", (), "float32", SIDES),
    spec("number.bfloat16", (), "bfloat16"),
    spec("table.bfloat16", (2, 5), "bfloat16", SIDES),
    spec("table.uint8", (2, 5), "uint8"),
]


def test_every_kind_of_feature_survives_hdf5_bit_for_bit(tmp_path):
    store = bank_of(tmp_path / "bank", {what: ["b", "a", "c"] for what in EVERY_KIND})
    export_hdf5(store, store.specs(), tmp_path / "bank.h5")
    other = FeatureStore.create(tmp_path / "other")

    done = import_hdf5(tmp_path / "bank.h5", other)

    assert [(d.spec.key, d.banked, d.skipped) for d in done] == [
        (what.key, 3, 0) for what in store.specs()
    ]
    assert_same_banks(store, other)


@pytest.mark.parametrize("what", EVERY_KIND, ids=lambda what: what.name)
def test_every_kind_of_feature_survives_npy_bit_for_bit(tmp_path, what):
    store = bank_of(tmp_path / "bank", {what: ["b", "a", "c"]})
    export_npy(store, what, tmp_path / "tree")
    other = FeatureStore.create(tmp_path / "other")

    done = import_npy(tmp_path / "tree", other, name="x", provenance_note="")

    assert (done.spec.key, done.banked, done.skipped) == (what.key, 3, 0)
    assert_same_banks(store, other)


@settings(max_examples=6)
@given(
    ids=st.lists(st.text(st.characters(codec="utf-8"), max_size=320), unique=True, max_size=6),
)
def test_any_text_is_an_id_on_the_way_there_and_back(tmp_path_factory, ids):
    folder = tmp_path_factory.mktemp("ids")
    store = bank_of(folder / "bank", {spec(): ["one", *(name for name in ids if name != "one")]})

    export_npy(store, spec(), folder / "tree")
    import_npy(folder / "tree", FeatureStore.create(folder / "a"), name="x", provenance_note="")
    assert_same_banks(store, FeatureStore(folder / "a"))

    if any("\0" in name for name in ids):
        with pytest.raises(BankError, match="zero character"):
            export_hdf5(store, [spec()], folder / "bank.h5")
        assert not (folder / "bank.h5").exists()
        return
    export_hdf5(store, [spec()], folder / "bank.h5")
    import_hdf5(folder / "bank.h5", FeatureStore.create(folder / "b"))
    assert_same_banks(store, FeatureStore(folder / "b"))


def test_no_id_leaves_the_folder_or_is_too_long_for_a_file_name(tmp_path):
    store = bank_of(tmp_path / "bank", {spec(): ODD_IDS})
    before = files_under(tmp_path)

    export_npy(store, spec(), tmp_path / "out" / "tree")

    new = set(files_under(tmp_path)) - set(before)
    assert all(name.startswith("out/tree/") and name.count("/") <= 3 for name in new)
    names = [p.name for p in (tmp_path / "out/tree/values").iterdir()]
    assert len({name.casefold() for name in names}) == len(ODD_IDS)
    assert max(len(name) for name in names) <= 255
    assert not any(name.startswith(".") for name in names)
    index = json.loads((tmp_path / "out/tree/index.json").read_text())
    assert {video["id"] for video in index["videos"]} == set(ODD_IDS)

    import_npy(
        tmp_path / "out/tree", FeatureStore.create(tmp_path / "a"), name="x", provenance_note=""
    )
    assert_same_banks(store, FeatureStore(tmp_path / "a"))
    export_hdf5(store, [spec()], tmp_path / "bank.h5")
    import_hdf5(tmp_path / "bank.h5", FeatureStore.create(tmp_path / "b"))
    assert_same_banks(store, FeatureStore(tmp_path / "b"))


def test_an_hdf5_file_is_read_without_vqbank(tmp_path):
    what = spec("nss.brisque", (2,), "bfloat16", SIDES)
    store = bank_of(tmp_path / "bank", {what: ["set/b", "set/a"]})
    export_hdf5(store, [what], tmp_path / "bank.h5")

    with h5py.File(tmp_path / "bank.h5") as file:
        group = file[what.key]
        ids = group["ids"].asstr()[:].tolist()
        start, count = group["index"][ids.index("set/b")]
        bits = group["values"][start : start + count].astype("u4") << 16
        weights = group["side/weight"].attrs["logical_dtype"]
        assert json.loads(group.attrs["spec"])["name"] == "nss.brisque"
        assert json.loads(group["records"].asstr()[0])["probe"]["number"] == 1
        assert json.loads(group["provenance"].asstr()[0])["host"] == "here"

    assert ids == ["set/a", "set/b"]
    np.testing.assert_array_equal(bits.view("f4"), store.read(what, "set/b").values)
    assert weights == "bfloat16"


def test_exports_of_equal_banks_have_equal_bytes(tmp_path):
    """Written and asked for in another order, in other shards, at another time."""
    videos = [f"v{number}" for number in range(7)]
    specs = [spec(), spec("nss.brisque")]
    folders = []
    for name in ("one", "two"):
        store = FeatureStore.create(tmp_path / name / "bank")
        for what in specs:
            for ids in [videos] if name == "one" else [videos[4:], videos[:4]]:
                writer = store.writer(what, provenance={"host": "h"}, durable=False)
                for video in ids:
                    rows = feature(what, seed=int(video[1:]))
                    writer.add(video, rows, fingerprint=Fingerprint(1, "f"), probe={})
                writer.commit()
        store.refresh()
        specs.reverse()
        export_hdf5(store, specs, tmp_path / name / "out/bank.h5")
        export_npy(store, spec(), tmp_path / name / "out/tree")
        folders.append(tmp_path / name / "out")
        time.sleep(1.1 if name == "one" else 0)  # HDF5 keeps times in seconds

    assert len(files_under(folders[0])) == 1 + 1 + 3 * 7
    for file in files_under(folders[0]):
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()


def test_importing_twice_skips_what_is_there(tmp_path):
    store = bank_of(tmp_path / "bank", {spec(): ["a", "b", "c"]})
    export_hdf5(store, [spec()], tmp_path / "bank.h5")
    export_npy(store, spec(), tmp_path / "tree")
    other = bank_of(tmp_path / "other", {spec(): ["a"]})
    before = files_under(other.path)

    (first,) = import_hdf5(tmp_path / "bank.h5", other)
    (second,) = import_hdf5(tmp_path / "bank.h5", other)
    third = import_npy(tmp_path / "tree", other, name="x", provenance_note="")

    assert [(d.banked, d.skipped) for d in (first, second, third)] == [(2, 1), (0, 3), (0, 3)]
    assert_same_banks(store, other)
    commits = [name for name in files_under(other.path) if "/commits/" in name]
    assert len(commits) == len([name for name in before if "/commits/" in name]) + 1


def test_other_bytes_under_the_same_key_are_refused_before_anything_is_committed(tmp_path):
    first, second = spec("a.first"), spec("b.second")
    store = bank_of(tmp_path / "bank", {first: ["x"], second: ["v1", "v2"]})
    export_hdf5(store, [first, second], tmp_path / "bank.h5")
    export_npy(store, second, tmp_path / "tree")
    other = bank_of(tmp_path / "other", {second: ["v2"]})  # rows of v1 under the id v2
    before = files_under(other.path)

    with pytest.raises(BankError, match=rf"1 video .* same key {second.key}: v2;"):
        import_hdf5(tmp_path / "bank.h5", other)
    with pytest.raises(BankError, match=rf"1 video .* same key {second.key}: v2;"):
        import_npy(tmp_path / "tree", other, name="x", provenance_note="")

    assert files_under(other.path) == before


def test_an_import_commits_by_size_and_goes_on_after_a_failure(tmp_path, monkeypatch):
    ids = [f"v{number}" for number in range(6)]
    store = bank_of(tmp_path / "bank", {spec(): ids})
    export_hdf5(store, [spec()], tmp_path / "bank.h5")
    shutil.copy(tmp_path / "bank.h5", tmp_path / "damaged.h5")
    with h5py.File(tmp_path / "damaged.h5", "r+") as file:
        rows = file[spec().key]["values"]
        rows[-1] = rows[-1] + 1
    other = FeatureStore.create(tmp_path / "other")
    monkeypatch.setattr("vqbank.store.exchange.incoming.SHARD_BYTES", 1)

    with pytest.raises(BankError, match=r"damaged\.h5: v5: values of .* has changed"):
        import_hdf5(tmp_path / "damaged.h5", other)
    assert FeatureStore(other.path).video_ids(spec()) == ids[:5]
    assert len(list((other.path / spec().key / "shards").iterdir())) == 5
    (done,) = import_hdf5(tmp_path / "bank.h5", other)

    assert (done.banked, done.skipped) == (1, 5)
    assert_same_banks(store, other)


def test_an_import_keeps_what_the_first_commits_recorded(tmp_path):
    store = bank_of(tmp_path / "bank", {spec(): ["a", "b", "c"]})
    export_hdf5(store, [spec()], tmp_path / "bank.h5")
    other = FeatureStore.create(tmp_path / "other")
    import_hdf5(tmp_path / "bank.h5", other)

    (found,) = other.find(spec(), ["a"])
    provenance = found[0].record["provenance"]

    assert provenance["imported_from"] == "bank.h5"
    assert [p["software"]["torch"] for p in provenance["original"]] == ["2.0", "2.2"]


def test_an_hdf5_file_cut_anywhere_is_refused(tmp_path):
    store = bank_of(tmp_path / "bank", {spec(): [f"v{number}" for number in range(50)]})
    export_hdf5(store, [spec()], tmp_path / "bank.h5")
    whole = (tmp_path / "bank.h5").read_bytes()
    other = FeatureStore.create(tmp_path / "other")

    for length in [0, 1, 8, 40, 96, *range(100, len(whole), 997), len(whole) - 1]:
        (tmp_path / "cut.h5").write_bytes(whole[:length])
        with pytest.raises(BankError, match=r"cut\.h5"):
            import_hdf5(tmp_path / "cut.h5", other)

    assert other.specs() == []


def test_a_foreign_hdf5_file_is_refused(tmp_path):
    other = FeatureStore.create(tmp_path / "other")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["features"] = np.zeros((3, 3))
    (tmp_path / "text.h5").write_text("not HDF5")

    with pytest.raises(BankError, match=r"foreign\.h5 is no export of vqbank"):
        import_hdf5(tmp_path / "foreign.h5", other)
    with pytest.raises(BankError, match=r"text\.h5 is damaged, or no file that vqbank exported"):
        import_hdf5(tmp_path / "text.h5", other)
    with pytest.raises(BankError, match=r"none\.h5"):
        import_hdf5(tmp_path / "none.h5", other)


def _newer(file):
    file.attrs["version"] = 2


def _no_spec(file):
    del file[spec().key].attrs["spec"]


def _other_spec(file):
    file[spec().key].attrs["spec"] = spec(sampling="other").to_json()


def _no_array(file):
    del file[spec().key]["frame_index"]


def _short_array(file):
    group = file[spec().key]
    rows = group["values"][:-1]
    del group["values"]
    group["values"] = rows


def _broken_index(file):
    file[spec().key]["index"][0] = [1, 1]


def _twice(file):
    file[spec().key]["ids"][1] = "a"


def _no_record(file):
    file[spec().key]["records"][1] = "{}"


def _stranger(file):
    file["more"] = np.zeros(3)


def _dangling_link(file):
    file["more"] = h5py.SoftLink("/nowhere")


def _not_finite(file):
    from vqbank.store.checksums import crc32c

    group = file[spec().key]
    rows = group["values"][:]
    rows[-1] = np.nan
    group["values"][:] = rows
    start = group["index"][1, 0]
    group["crc32c"][1, 0] = crc32c(rows[start:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_newer, r"export version 2, this vqbank reads up to 1; install a newer vqbank"),
        (_no_spec, "damaged"),
        (_other_spec, "was changed"),
        (_no_array, "damaged"),
        (_short_array, r"values of .* is float16 \(2, 3\), not float16 \(3, 3\)"),
        (_broken_index, "one after the other"),
        (_twice, "has video 'a' twice"),
        (_no_record, "damaged"),
        (_stranger, "damaged"),
        (_dangling_link, "symbolic link"),
        (_not_finite, r"b: row 1 .* is not finite"),
    ],
)
def test_a_changed_hdf5_file_is_one_clear_error(tmp_path, change, message):
    store = bank_of(tmp_path / "bank", {spec(): ["a", "b"]})
    export_hdf5(store, [spec()], tmp_path / "bank.h5")
    with h5py.File(tmp_path / "bank.h5", "r+") as file:
        change(file)
    other = FeatureStore.create(tmp_path / "other")

    with pytest.raises((BankError, InvalidFeatureError), match=rf"bank\.h5.*{message}"):
        import_hdf5(tmp_path / "bank.h5", other)

    assert FeatureStore(other.path).video_ids(spec()) == []


EXPORT = """
import sys
from pathlib import Path
from vqbank.store.bank import FeatureStore
from vqbank.store.exchange.hdf5_file import export_hdf5
store = FeatureStore(Path(sys.argv[1]))
export_hdf5(store, store.specs(), Path(sys.argv[2]))
"""


def test_a_killed_export_leaves_nothing_under_the_name(tmp_path):
    """SIGKILL while rows are being written."""
    ids = [f"v{number}" for number in range(5000)]
    store = bank_of(tmp_path / "bank", {spec(): ids}, shard_videos=5000)
    out = tmp_path / "out"
    out.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", EXPORT, store.path, out / "bank.h5"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    while not any(out.iterdir()):
        assert process.poll() is None
        time.sleep(0.001)
    time.sleep(0.02)
    process.send_signal(signal.SIGKILL)

    assert process.wait() == -signal.SIGKILL
    (left,) = out.iterdir()
    assert left.name.startswith(".")
    assert left.name.endswith(".tmp")


LIMITED_EXPORT = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
{EXPORT}"""


def test_a_disk_too_small_is_one_clear_error_and_leaves_nothing(tmp_path):
    """A limit on the size of files stands for it: HDF5 fails in the same places."""
    ids = [f"v{number}" for number in range(300)]
    store = bank_of(tmp_path / "bank", {spec(): ids}, shard_videos=300)
    (tmp_path / "out").mkdir()

    done = subprocess.run(
        [sys.executable, "-c", LIMITED_EXPORT, store.path, tmp_path / "out" / "bank.h5"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )

    assert done.returncode != 0  # not always 1: the HDF5 library may crash when Python ends
    assert "store.errors.BankError: " in done.stderr
    assert "bank.h5 cannot be written" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_a_failed_export_leaves_nothing_at_all(tmp_path):
    store = bank_of(tmp_path / "bank", {spec(): ["a", "b", "c", "d"]})
    shards = sorted((store.path / spec().key / "shards").iterdir())
    values = shards[0] / "values/c/0/0"
    content = bytearray(values.read_bytes())
    content[0] ^= 1
    values.write_bytes(content)
    store.refresh()

    for export in (
        lambda: export_hdf5(store, [spec()], tmp_path / "out" / "bank.h5"),
        lambda: export_npy(store, spec(), tmp_path / "out" / "tree"),
        lambda: pack(store, [spec()], tmp_path / "out" / "packed", title="t"),
    ):
        with pytest.raises(DamagedShardError, match="has changed since"):
            export()
    assert list((tmp_path / "out").iterdir()) == []


def test_an_export_overwrites_nothing(tmp_path):
    store = bank_of(tmp_path / "bank", {spec(): ["a"]})
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").write_text("mine")

    with pytest.raises(BankError, match="file is there already"):
        export_hdf5(store, [spec()], tmp_path / "taken/file")
    for path in (tmp_path / "taken", tmp_path / "taken/file"):
        with pytest.raises(BankError, match="not empty"):
            export_npy(store, spec(), path)
        with pytest.raises(BankError, match="not empty"):
            pack(store, [spec()], path, title="t")
    with pytest.raises(MissingFeatureError):
        export_hdf5(store, [spec("other.one")], tmp_path / "bank.h5")

    assert (tmp_path / "taken/file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    export_npy(store, spec(), tmp_path / "empty")
    assert (tmp_path / "empty/index.json").exists()


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [("<f2", "float16"), (">f4", "float32"), ("f8", "float32"), ("u1", "uint8"), ("i8", "int32")],
)
def test_a_foreign_tree_is_banked_with_row_numbers_for_times(tmp_path, dtype, stored):
    tree = tmp_path / "tree"
    series = np.arange(12).reshape(4, 3).astype(dtype)
    save(tree / "KoNViD/a.b.mp4.npy", series)
    save(tree / "KoNViD/one row.npy", series[1])
    save(tree / "other.npy", series[:1])
    save(tree / "fortran.npy", np.asfortranarray(series))
    store = FeatureStore.create(tmp_path / "bank")

    done = import_npy(tree, store, name="resnet-50", provenance_note="from a paper")

    what = done.spec
    assert (done.banked, what.name, what.stored_dtype) == (4, "imported.resnet-50", stored)
    assert what.identity == {
        "source": "imported npy tree",
        "provenance": "unknown",
        "note": "from a paper",
        "dtype": np.dtype(dtype).name,
    }
    assert store.video_ids(what) == ["KoNViD/a.b.mp4", "KoNViD/one row", "fortran", "other"]
    expected = {"KoNViD/a.b.mp4": series, "fortran": series, "other": series[:1]}
    for name, rows in {**expected, "KoNViD/one row": series[1:2]}.items():
        read = store.read(what, name)
        np.testing.assert_array_equal(read.values, rows)
        np.testing.assert_array_equal(read.pts_seconds, np.arange(len(rows)))
        np.testing.assert_array_equal(read.frame_index, np.arange(len(rows)))
    record = store.video_record(what, "other")
    assert record.fingerprint == Fingerprint.of(tree / "other.npy")
    assert record.probe == {"times": "row numbers"}
    ((shard, place),) = store.find(what, ["other"])
    assert not shard.has_times(place)


def test_a_foreign_tree_that_grew_is_imported_again_and_one_that_changed_is_not(tmp_path):
    tree = tmp_path / "tree"
    save(tree / "a.npy", np.ones((2, 3)))
    store = FeatureStore.create(tmp_path / "bank")
    import_npy(tree, store, name="x", provenance_note="")
    save(tree / "b.npy", np.ones((3, 3)))

    grown = import_npy(tree, store, name="x", provenance_note="")
    save(tree / "a.npy", np.zeros((2, 3)))
    with pytest.raises(BankError, match=r"other bytes .*: a; nothing was imported"):
        import_npy(tree, store, name="x", provenance_note="")
    elsewhere = import_npy(tree, store, name="x", provenance_note="the second run")

    assert (grown.banked, grown.skipped, elsewhere.banked) == (1, 1, 2)
    assert elsewhere.spec.key != grown.spec.key


def _pickled(tree):
    array = np.array([{"a": 1}, None], dtype=object)
    with (tree / "bad.npy").open("wb") as file:
        np.lib.format.write_array(file, array, allow_pickle=True)


def _cut(tree):
    save(tree / "bad.npy", np.ones((5, 3)))
    content = (tree / "bad.npy").read_bytes()
    (tree / "bad.npy").write_bytes(content[:-1])


def _nan(tree):
    rows = np.ones((5, 3))
    rows[3, 1] = np.nan
    save(tree / "bad.npy", rows)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_pickled, r"bad\.npy cannot be read as a plain \.npy array: .*Python objects"),
        (_cut, r"bad\.npy cannot be read as a plain \.npy array"),
        (lambda tree: (tree / "bad.npy").write_bytes(b""), r"bad\.npy cannot be read"),
        (lambda tree: (tree / "bad.npy").write_bytes(pickle.dumps([1])), r"bad\.npy cannot be"),
        (lambda tree: np.savez(tree / "x.npz", a=1) or (tree / "x.npz").rename(tree / "bad.npy"),
         r"bad\.npy cannot be read"),
        (_nan, r"bad\.npy: row 3 .* is not finite"),
        (lambda tree: save(tree / "bad.npy", np.ones((5, 4))),
         r"a\.npy has .*\(3,\), .*bad\.npy has .*\(4,\)"),
        (lambda tree: save(tree / "bad.npy", np.ones((5, 3), "f4")),
         r"a\.npy has float64 .*bad\.npy has float32"),
        (lambda tree: save(tree / "bad.npy", np.ones((0, 3))), r"bad\.npy: feature has no rows"),
        (lambda tree: save(tree / "bad.npy", np.ones((5, 3), "c8")), r"bad\.npy holds complex64"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_banked_is_named(tmp_path, make, message):
    tree = tmp_path / "tree"
    save(tree / "a.npy", np.ones((2, 3)))
    make(tree)
    store = FeatureStore.create(tmp_path / "bank")

    with pytest.raises(InvalidFeatureError, match=message):
        import_npy(tree, store, name="x", provenance_note="")

    assert [store.video_ids(what) for what in FeatureStore(store.path).specs()] in ([], [[]])


def test_a_tree_of_nothing_is_refused(tmp_path):
    store = FeatureStore.create(tmp_path / "bank")
    (tmp_path / "tree").mkdir()

    with pytest.raises(BankError, match=r"has no \.npy files"):
        import_npy(tmp_path / "tree", store, name="x", provenance_note="")
    with pytest.raises(BankError, match="is no folder"):
        import_npy(tmp_path / "none", store, name="x", provenance_note="")


def _damaged_npy(tree):
    save(tree / "values/a.npy", np.load(tree / "values/a.npy") + 1)


def _reshaped_npy(tree):
    save(tree / "values/a.npy", np.zeros((9, 3), "f2"))


def _cut_index(tree):
    text = (tree / "index.json").read_text()
    (tree / "index.json").write_text(text[: len(text) // 2])


def _edited_index(**change):
    def edit(tree):
        index = json.loads((tree / "index.json").read_text())
        index["videos"][0].update(change.get("video", {}))
        index.update({name: value for name, value in change.items() if name != "video"})
        (tree / "index.json").write_text(json.dumps(index))

    return edit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_damaged_npy, "a: values of .* has changed since it was exported"),
        (_reshaped_npy, r"values/a\.npy is float16 \(9, 3\), not float16 \(1, 3\)"),
        (lambda tree: (tree / "frame_index/a.npy").unlink(), r"frame_index/a\.npy is damaged"),
        (_cut_index, r"index\.json:1: not JSON"),
        (_edited_index(version=2), "export version 2"),
        (_edited_index(videos=[{}]), r"index\.json is damaged"),
        (_edited_index(spec={}), r"index\.json is damaged"),
        (_edited_index(video={"file": "../../outside.npy"}), r"names '\.\./\.\./outside\.npy'"),
        (_edited_index(video={"file": "/etc/x.npy"}), "names '/etc/x.npy'"),
    ],
)
def test_a_changed_tree_of_our_own_is_one_clear_error(tmp_path, change, message):
    store = bank_of(tmp_path / "bank", {spec(): ["a", "b"]})
    export_npy(store, spec(), tmp_path / "tree")
    change(tmp_path / "tree")
    other = FeatureStore.create(tmp_path / "other")

    with pytest.raises(BankError, match=message):
        import_npy(tmp_path / "tree", other, name="x", provenance_note="")

    assert FeatureStore(other.path).video_ids(spec()) == []


def test_a_packed_folder_reads_equal_and_passes_sha256sum(tmp_path):
    what = [spec("clip.embedding", (4,), "bfloat16", SIDES), spec("nss.brisque", (36,), "float32")]
    left_out = spec("not.wanted")
    store = bank_of(tmp_path / "bank", {w: ["a", "b", "c"] for w in [*what, left_out]})

    pack(store, what, tmp_path / "out" / "packed", title="Features of\nthree videos")

    packed = tmp_path / "out" / "packed"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["packed"]
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=packed, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    listed = [line[66:] for line in (packed / "SHA256SUMS").read_text().splitlines()]
    assert listed == [name for name in files_under(packed) if name != "SHA256SUMS"]
    again = FeatureStore(packed)
    assert {s.key for s in again.specs()} == {w.key for w in what}
    shutil.rmtree(store.path / left_out.key)
    assert_same_banks(FeatureStore(store.path), again)
    assert again.table([Video("a", Path("a"))], {"r": "nss.brisque"}).series("r", 0).shape[1] == 36


def test_a_packed_folder_holds_the_same_bytes_each_time(tmp_path):
    store = bank_of(
        tmp_path / "bank", {spec(): [f"v{number}" for number in range(300)]}, shard_videos=100
    )
    store.video_ids(spec())  # 300 videos leave a catalogue

    for name in ("one", "two"):
        pack(store, [spec()], tmp_path / name, title="t")

    assert files_under(tmp_path / "one") == files_under(tmp_path / "two")
    for file in files_under(tmp_path / "one"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    own = {f"{spec().key}/{file}" for file in files_under(store.path / spec().key)}
    derived = {name for name in own if name.endswith("catalogue.npz")}
    assert derived
    assert set(files_under(tmp_path / "one")) == (own - derived) | {
        "bank.json", "CARD.md", "SHA256SUMS"
    }  # fmt: skip


def rewrite(store, what, videos, *, seed, hides=()):
    """A shard of other rows for `videos` that hides rows of shards, `[(shard, videos or all)]`."""
    writer = store.writer(what, provenance={}, durable=False)
    for name in videos:
        rows = feature(what, 2, seed=seed)
        writer.add(name, rows, fingerprint=Fingerprint(seed, ""), probe={"seed": seed})
    writer.commit(supersedes=[{"shard": shard, "videos": which} for shard, which in hides])
    return writer.id


def test_a_packed_folder_leaves_dead_shards_behind_and_hides_what_was_hidden(tmp_path):
    store = FeatureStore.create(tmp_path / "bank")
    dead = rewrite(store, spec(), ["x"], seed=0)
    first = rewrite(store, spec(), ["a", "b"], seed=1)
    between = rewrite(store, spec(), ["a"], seed=2, hides=[(first, ["a"])])
    last = rewrite(store, spec(), ["a", "x"], seed=3, hides=[(between, "all"), (dead, "all")])
    marked = rewrite(store, spec(), ["c", "d"], seed=4)
    mark_bad(store.path / spec().key, marked, ["c"])
    mark_bad(store.path / spec().key, dead, ["x"])
    store.refresh()

    pack(store, [spec()], tmp_path / "packed", title="t")

    packed = FeatureStore(tmp_path / "packed")
    shards = {path.name for path in (packed.path / spec().key / "shards").iterdir()}
    assert shards == {first, between, last, marked}  # `between` still hides a row of `first`
    assert len(list((packed.path / spec().key / "bad").iterdir())) == 1
    assert packed.video_ids(spec()) == ["a", "b", "d", "x"]
    assert_same_banks(store, packed)


def test_what_is_packed_is_the_file_that_was_looked_at(tmp_path, monkeypatch):
    """Somebody puts a link in the place of a file between the look at it and the copying."""
    store = bank_of(tmp_path / "bank", {spec(): ["a"]})
    private = tmp_path / "private"
    real = files.inside

    def then_linked(root, path):
        found = real(root, path)
        if path.match("values/c/0/0") and path.is_relative_to(store.path):
            private.write_bytes(path.read_bytes())
            path.unlink()
            path.symlink_to(private)
        return found

    monkeypatch.setattr(files, "inside", then_linked)
    with pytest.raises(DamagedShardError, match="cannot be read"):
        pack(store, [spec()], tmp_path / "packed", title="t")

    assert private.exists()
    assert not (tmp_path / "packed").exists()


def test_the_card_says_aloud_what_may_not_be_done(tmp_path):
    def of(name, licence, **identity):
        return FeatureSpec(
            name, (3,), "float16", identity, (), "a laboratory", licence, ("KoNViD-1k", "LSVQ")
        )

    free = of("a.free", "Apache-2.0", weights="ab")
    closed = of("b.closed", "CC-BY-NC-4.0", weights="cd")
    random = FeatureSpec("c.random", (3,), "float16", {"weights": "random"})
    store = bank_of(tmp_path / "bank", {w: ["a", "b", "c"] for w in (free, closed, random)})
    export_hdf5(store, [free], tmp_path / "free.h5")
    other = FeatureStore.create(tmp_path / "other")
    import_hdf5(tmp_path / "free.h5", other)

    pack(store, [free, closed, random], tmp_path / "packed", title="Three\nfeatures")
    pack(other, [free], tmp_path / "repacked", title="t")

    card = (tmp_path / "packed/CARD.md").read_text()
    sections = dict(zip("_abc", card.split("### "), strict=True))
    assert card.startswith("# Three features\n")
    for key in ("a", "b"):
        for fact in (
            "a laboratory",
            "KoNViD-1k, LSVQ",
            "float16 of shape (3,)",
            "videos: 3, rows: 6",
        ):
            assert fact in sections[key]
    assert "Apache-2.0" in sections["a"]
    assert "COMMERCIAL" not in sections["a"] + sections["c"]
    assert "NO COMMERCIAL USE" in sections["b"]
    assert "CC-BY-NC-4.0" in sections["b"]
    assert "RANDOM WEIGHTS" in sections["c"]
    assert "RANDOM" not in sections["a"] + sections["b"]
    assert [line for line in card.splitlines() if "torch" in line] == ["- torch 2.0", "- torch 2.2"]
    assert "- torch 2.2" in (tmp_path / "repacked/CARD.md").read_text()
