"""A table gives the same rows whatever way they are read."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqbank.regressors.pooling import pooled
from vqbank.regressors.tensors import tensor_of
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import DamagedShardError
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, Video
from vqbank.store.table import FeatureTable

LENGTHS = [3, 1, 7, 12, 2, 5, 9, 4, 6, 8]
VIDEOS = [Video(f"v{number}", Path(f"v{number}.mp4")) for number in range(len(LENGTHS))]


def rows_of(number, shape):
    return np.random.default_rng(number).integers(0, 90, (LENGTHS[number], *shape)).astype("f4")


def table_of(path, dtype="float16", shape=(6,), shards=3):
    """Videos spread over shards, value files of a few rows."""
    spec = FeatureSpec("clip.embedding", shape, dtype, {"extractor": "clip"})
    store = FeatureStore.create(path)
    for first in range(shards):
        writer = store.writer(spec, provenance={}, durable=False)
        for number in range(first, len(VIDEOS), shards):
            count = LENGTHS[number]
            feature = Feature(rows_of(number, shape), np.arange(count) / 5, np.arange(count))
            writer.add(f"v{number}", feature, fingerprint=Fingerprint(0, ""), probe={})
        writer.commit()
    store.refresh()
    return store.table(VIDEOS, {"semantic": "clip.embedding"})


@settings(max_examples=40)
@given(
    rows=st.lists(st.integers(0, len(VIDEOS) - 1), min_size=1, max_size=12),
    dtype=st.sampled_from(["float16", "float32", "bfloat16", "uint8"]),
    file_rows=st.integers(2, 30),
    mapped=st.booleans(),
    shape=st.sampled_from([(), (6,), (2, 3)]),
)
def test_any_videos_in_any_order_are_read_as_they_were_written(
    tmp_path_factory, rows, dtype, file_rows, mapped, shape
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vqbank.store.layout.CHUNK_BYTES", (8, 24))
        patch.setattr("vqbank.store.layout.FILE_BYTES", 12 * file_rows)
        table = table_of(tmp_path_factory.mktemp("bank"), dtype, shape)
        expected = np.concatenate([rows_of(row, shape) for row in rows])

        values, offsets = table.read("semantic", rows, mapped=mapped)
        buffer = np.full((sum(LENGTHS) * 12, *shape), 77, values.dtype)
        filled, _ = table.read("semantic", rows, out=buffer, mapped=mapped)

        np.testing.assert_array_equal(values, expected)
        np.testing.assert_array_equal(np.diff(offsets), [LENGTHS[row] for row in rows])
        np.testing.assert_array_equal(filled, expected)
        assert np.shares_memory(filled, buffer)
        np.testing.assert_array_equal(
            np.concatenate([table.series("semantic", row) for row in rows]), expected
        )


def test_windows_give_every_video_once_and_keep_to_one_buffer(tmp_path):
    table = table_of(tmp_path)
    seen, buffers = [], set()

    for rows, window in table.windows(videos=3, rng=np.random.default_rng(0)):
        values, offsets = window["semantic"]
        for place, row in enumerate(rows):
            np.testing.assert_array_equal(
                values[offsets[place] : offsets[place + 1]], rows_of(row, (6,))
            )
        seen += rows.tolist()
        buffers.add(values.__array_interface__["data"][0])

    assert sorted(seen) == list(range(len(VIDEOS)))
    assert seen != sorted(seen)
    assert len(buffers) <= 2


def test_windows_may_have_numbers_of_videos_of_their_own(tmp_path):
    table = table_of(tmp_path)
    counts = [1, len(VIDEOS) - 3, 2]

    windows = [
        rows.tolist() for rows, _ in table.windows(videos=counts, rng=np.random.default_rng(0))
    ]

    expected = np.split(table.neighbours, np.cumsum(counts)[:-1])
    assert sorted(windows) == sorted(own.tolist() for own in expected)


def test_a_table_goes_to_memory_only_within_the_budget(tmp_path):
    table = table_of(tmp_path)
    size = sum(LENGTHS) * 6 * 2

    assert table.nbytes("semantic") == size
    assert table.in_memory(budget_bytes=size - 1) is table
    loaded = table.in_memory(budget_bytes=size)
    assert loaded.specs == table.specs
    for row in range(len(VIDEOS)):
        np.testing.assert_array_equal(loaded.series("semantic", row), rows_of(row, (6,)))
        np.testing.assert_array_equal(
            loaded.pts_seconds("semantic", row), np.arange(LENGTHS[row]) / 5
        )


def test_statistics_of_a_bank_beyond_memory_come_from_dask(tmp_path, monkeypatch):
    from sklearn.decomposition import IncrementalPCA
    from sklearn.preprocessing import StandardScaler

    monkeypatch.setattr("vqbank.store.table.BLOCK_BYTES", 120)
    array = table_of(tmp_path).dask_array("semantic")
    everything = np.concatenate([rows_of(row, (6,)) for row in range(len(VIDEOS))])

    assert array.numblocks[0] > 3
    np.testing.assert_array_equal(array.compute(), everything)
    np.testing.assert_allclose(array.astype("f8").mean(axis=0).compute(), everything.mean(axis=0))
    scaler, pca = StandardScaler(), IncrementalPCA(2)
    for block in array.blocks:
        rows = block.compute().astype("f8")
        scaler.partial_fit(rows)
        pca.partial_fit(rows)
    np.testing.assert_allclose(scaler.var_, everything.var(axis=0, dtype="f8"), rtol=1e-6)
    assert pca.components_.shape == (2, 6)


def test_a_table_can_be_sent_to_another_process(tmp_path):
    table = pickle.loads(pickle.dumps(table_of(tmp_path)))

    np.testing.assert_array_equal(table.series("semantic", 3), rows_of(3, (6,)))


def test_a_tensor_borrows_the_map_and_cannot_reach_the_file(tmp_path):
    table = table_of(tmp_path)
    series = table.series("semantic", 2)

    tensor = tensor_of(series)
    assert tensor.data_ptr() == series.__array_interface__["data"][0]
    tensor.zero_()

    fresh = FeatureStore(tmp_path).table(VIDEOS, {"semantic": "clip.embedding"})
    np.testing.assert_array_equal(fresh.series("semantic", 2), rows_of(2, (6,)))


@pytest.mark.parametrize("mapped", [True, False])
def test_a_changed_byte_is_noticed_on_a_batchs_first_read(tmp_path, mapped):
    table_of(tmp_path)
    changed = next(tmp_path.glob("*@*/shards/*/values/c/0/0"))
    content = bytearray(changed.read_bytes())
    content[0] ^= 1
    changed.write_bytes(content)
    table = FeatureStore(tmp_path).table(VIDEOS, {"semantic": "clip.embedding"})

    with pytest.raises(DamagedShardError, match=r"v\d: values in"):
        table.read("semantic", range(len(VIDEOS)), mapped=mapped)

    table.trust()
    table.read("semantic", range(len(VIDEOS)), mapped=mapped)


def test_arrays_in_memory_make_the_same_table(tmp_path):
    arrays = [rows_of(number, (6,)) for number in range(len(VIDEOS))]
    table = FeatureTable.from_arrays(VIDEOS, {"semantic": arrays})

    values, _ = table.read("semantic", [4, 1])

    np.testing.assert_array_equal(values, np.concatenate([arrays[4], arrays[1]]))


@pytest.mark.parametrize(("given", "held"), [("f8", "f4"), ("f4", "f4"), ("f2", "f2")])
def test_a_table_of_arrays_has_the_type_that_it_says(given, held):
    arrays = [(rows_of(row, (6,)) / 7).astype(given) for row in range(len(VIDEOS))]
    table = FeatureTable.from_arrays(VIDEOS, {"semantic": arrays})

    values, _ = table.read("semantic", [3, 0])
    assert table.specs["semantic"].stored_dtype == np.dtype(held).name
    assert table.series("semantic", 3).dtype == values.dtype == np.dtype(held)
    assert table.nbytes("semantic") == sum(LENGTHS) * 6 * np.dtype(held).itemsize
    np.testing.assert_array_equal(table.series("semantic", 3), arrays[3].astype(held))


# For people.


def test_a_table_and_a_bank_show_what_they_hold_and_what_others_named_is_only_text(tmp_path):
    role = "<script>alert(1)</script>\x1b[2J"
    table_of(tmp_path)
    store = FeatureStore(tmp_path)
    table = store.table([Video("v0", Path("v0.mp4"), 3.5), *VIDEOS[1:]], {role: "clip.embedding"})

    assert "10 videos, 1 with a score" in repr(table)
    assert re.search(r"clip\.embedding@\w{12}  float16 \[6\]  57, 1 to 12$", repr(table))
    assert re.search(r"clip\.embedding@\w{12}  float16 \[6\]  10$", repr(store))
    assert "\x1b" not in repr(table) + table._repr_html_()
    assert "<script>" not in table._repr_html_()
    assert "&lt;script&gt;" in table._repr_html_()
    assert table._repr_html_().count("<tr>") == store._repr_html_().count("<tr>") == 2


def test_a_bank_that_is_damaged_says_so_where_it_is_shown(tmp_path):
    table_of(tmp_path)
    commit = next(tmp_path.glob("*/commits/*.json"))
    commit.write_bytes(b"{}")

    assert "it has no record" in repr(FeatureStore(tmp_path))
    assert "it has no record" in FeatureStore(tmp_path)._repr_html_()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_arrays_tensors_and_a_frame_hold_the_same_rows(tmp_path, dtype):
    table = table_of(tmp_path, dtype, shape=(2, 3))
    arrays, tensors, frame = table.arrays("semantic"), table.tensors("semantic"), table.frame()

    for row, (array, tensor) in enumerate(zip(arrays, tensors, strict=True)):
        expected = rows_of(row, (2, 3))
        np.testing.assert_array_equal(array, expected)
        np.testing.assert_array_equal(tensor.numpy(), expected)
        flat = expected.reshape(len(expected), -1).astype("f8")
        assert frame.loc[f"v{row}", "semantic.mean.5"] == flat[:, 5].mean()
        assert frame.loc[f"v{row}", "semantic.deviation.1"] == pytest.approx(flat[:, 1].std())
    assert list(frame.index) == [video.id for video in VIDEOS]
    assert frame.shape == (10, 13)
    assert frame["mos"].isna().all()
    np.testing.assert_array_equal(frame.to_numpy()[:, 1:].astype("f4"), pooled(table))
    tensors[0].zero_()
    np.testing.assert_array_equal(table.series("semantic", 0), rows_of(0, (2, 3)))


def test_a_table_is_asked_for_by_ids_too_but_not_by_one_name(tmp_path):
    table_of(tmp_path)
    store = FeatureStore(tmp_path)

    by_ids = store.table(["v3", "v1"], {"semantic": "clip.embedding"})

    assert [(video.id, video.mos) for video in by_ids.videos] == [("v3", None), ("v1", None)]
    np.testing.assert_array_equal(by_ids.series("semantic", 1), rows_of(1, (6,)))
    for name in ("v3", Path("videos.csv")):
        with pytest.raises(TypeError, match="is one name"):
            store.table(name, {"semantic": "clip.embedding"})
