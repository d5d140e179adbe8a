"""Caches that others published come into a bank as what they are."""

import contextlib
import shutil
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from typer.testing import CliRunner

from vqbank.pipelines.commands.cli import app
from vqbank.pipelines.experiments.experiment import Experiment, evaluate
from vqbank.pipelines.labels import read_labels
from vqbank.pipelines.labels.videos import videos_of
from vqbank.pipelines.manifest import write_manifest
from vqbank.pipelines.recipe import Protocol, Recipe
from vqbank.pipelines.results.tables import result_table, to_csv, to_latex, to_markdown
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import BankError, InvalidFeatureError, MissingFeatureError, VqbankError
from vqbank.store.exchange.feats_mat import import_feats_mat
from vqbank.store.exchange.incoming import refuse_pickle
from vqbank.store.exchange.numbered_npy import import_numbered_npy, import_per_second_npy

CASES = Path(__file__).parent / "data" / "cases"
IDS = [f"set/{name}.mp4" for name in "abcde"]
ROWS = np.random.default_rng(0).normal(size=(5, 3))


@pytest.fixture
def store(tmp_path):
    return FeatureStore.create(tmp_path / "bank")


def version_5(path, **variables):
    scipy.io.savemat(path, variables)
    return path


def version_73(path, **variables):
    with h5py.File(path, "w") as file:
        for name, value in variables.items():
            if isinstance(value, list):
                refs = [file.create_dataset(f"#refs#/{i}", data=c.T) for i, c in enumerate(value)]
                data = np.array([[cell.ref for cell in refs]], h5py.ref_dtype)
                file.create_dataset(name, data=data, dtype=h5py.ref_dtype)
            else:
                file[name] = value.T
    return path


def banked(store, imported):
    return np.stack([store.read(imported.spec, video_id).values[0] for video_id in IDS])


@pytest.mark.parametrize("write", [version_5, version_73])
@pytest.mark.parametrize("turned", [False, True])
def test_a_matrix_has_a_row_for_each_label_whichever_way_it_lies(tmp_path, store, write, turned):
    path = write(tmp_path / "x.mat", feats_mat=ROWS.T if turned else ROWS)

    got = import_feats_mat(path, store, name="theirs", ids=IDS)

    np.testing.assert_allclose(banked(store, got), ROWS, rtol=1e-6)
    assert got.spec.name == "imported.theirs"
    assert got.spec.identity["provenance"] == "unknown"
    assert any("turned" in note for note in got.notes) == turned


@pytest.mark.parametrize("write", [version_5, version_73])
def test_cells_give_rows_over_time(tmp_path, store, write):
    cells = [np.full((length, 2), length, float) for length in (1, 2, 3, 4, 5)]
    value = cells
    if write is version_5:
        value = np.empty((5, 1), object)
        value[:, 0] = cells

    got = import_feats_mat(write(tmp_path / "x.mat", features=value), store, name="c", ids=IDS)

    assert [len(store.read(got.spec, video_id).values) for video_id in IDS] == [1, 2, 3, 4, 5]
    assert store.read(got.spec, IDS[3]).values.tolist() == cells[3].tolist()


def test_holes_become_the_mean_of_their_column_and_are_named(tmp_path, store):
    rows = ROWS.copy()
    rows[1, 2], rows[3, 2], rows[4, 0] = np.nan, -np.inf, np.inf
    path = version_5(tmp_path / "x.mat", feats_mat=rows)

    got = import_feats_mat(path, store, name="holes", ids=IDS)

    assert banked(store, got)[[1, 3], 2] == pytest.approx([ROWS[[0, 2, 4], 2].mean()] * 2)
    assert banked(store, got)[4, 0] == pytest.approx(ROWS[:4, 0].mean())
    assert any("row 2 (set/b.mp4), column 3" in note for note in got.notes)
    assert store.video_record(got.spec, IDS[1]).probe["filled_columns"] == [2]


@pytest.mark.parametrize(("what", "count"), [("drop", 11), ("mean", 12)])
def test_rows_without_values_stop_an_import_or_are_left_out_or_means(tmp_path, store, what, count):
    path = CASES / "feats_empty_row.mat"
    ids = [row.name for row in read_labels(CASES / "labels_for_feats.csv").rows]

    with pytest.raises(InvalidFeatureError, match=r"row 5 .*\(1004\).*--rows-without-values drop"):
        import_feats_mat(path, store, name="x", ids=ids)
    got = import_feats_mat(path, store, name="x", ids=ids, rows_without_values=what)

    assert got.banked == count
    assert len(store.video_ids(got.spec)) == count
    assert any("1 of 12 rows have no finite value" in note for note in got.notes)
    probe = store.video_record(got.spec, "1007").probe
    assert len(probe["filled_columns"]) == 1
    assert probe.get("dropped_rows", 0) == (what == "drop")
    if what == "mean":
        values = np.concatenate([store.read(got.spec, one).values for one in ids])
        assert len(store.video_record(got.spec, "1004").probe["filled_columns"]) == values.shape[1]
        free = np.arange(values.shape[1]) != probe["filled_columns"][0]
        assert values[4, free] == pytest.approx(
            values[np.arange(12) != 4][:, free].mean(axis=0), rel=1e-5
        )


def test_rows_that_an_import_left_out_are_counted_in_every_table(tmp_path):
    """And whoever names the videos by the label file is told how to go on without these."""
    labels = CASES / "labels_for_feats.csv"
    run = CliRunner().invoke(
        app,
        ["import", "feats-mat", str(CASES / "feats_empty_row.mat"), "--labels", str(labels),
         "--bank", str(tmp_path / "bank"), "--name", "x", "--rows-without-values", "drop"],
    )  # fmt: skip
    assert run.exit_code == 0, run.exception
    by_labels = Recipe(labels=labels, bank=tmp_path / "bank", features={"x": "imported.x"},
                       heads={"ridge": {}})  # fmt: skip
    way = r"`vqbank labels import`, and give it by --videos, with --missing drop"
    with pytest.raises(MissingFeatureError, match=f"1 of the 12 videos of .*{way}"):
        Experiment.of(by_labels, title="t")
    manifest = tmp_path / "labels_for_feats.csv"
    videos = videos_of(read_labels(labels).rows, "labels_for_feats")
    write_manifest(manifest, videos)
    recipe = Recipe(
        videos=manifest, bank=tmp_path / "bank", features={"x": "imported.x"},
        heads={"ridge": {}}, protocol=Protocol(splits="random2"), missing="drop",
    )  # fmt: skip
    made = Experiment.of(recipe, title="t")
    record = evaluate(made)

    assert record.videos == 11
    for table in (to_markdown, to_latex, to_csv):
        assert "imported.x: 1 row of its file had no finite value" in table([record])
    assert "1 of 12 videos lack a feature" in made.splits.text
    assert "imported.x: 1 row of its file had no finite value" in str(result_table(record).caption)


ALL = slice(None)


@pytest.mark.parametrize(("place", "what"), [((0, ALL), "row 1"), ((ALL, 1), "column 2")])
def test_a_row_or_column_of_holes_is_refused(tmp_path, store, place, what):
    rows = ROWS.copy()
    rows[place] = np.nan

    with pytest.raises(InvalidFeatureError, match=f"{what} of feats_mat has no finite value"):
        import_feats_mat(version_5(tmp_path / "x.mat", feats_mat=rows), store, name="x", ids=IDS)


def test_a_tree_of_numbered_files_leads_nowhere_else(tmp_path, store):
    np.save(tmp_path / "private.npy", ROWS)
    for name, imported in (
        ("0_x.npy", partial(import_numbered_npy, ids=["a"], mos=[None])),
        ("v/feature_0_x_feature.npy", partial(import_per_second_npy, ids={})),
    ):
        link = tmp_path / "tree" / name
        link.parent.mkdir(parents=True)
        link.symlink_to(tmp_path / "private.npy")
        with pytest.raises(BankError, match=rf"{link.name} is a symbolic link"):
            imported(tmp_path / "tree", store, name="x")
        shutil.rmtree(tmp_path / "tree")


def test_equal_rows_of_a_file_are_different_videos(tmp_path, store):
    path = version_5(tmp_path / "x.mat", feats_mat=np.ones((5, 2)))

    got = import_feats_mat(path, store, name="same", ids=IDS)

    assert len({store.video_record(got.spec, i).fingerprint.sha256 for i in IDS}) == 5


def test_a_file_without_a_matrix_of_that_many_rows_is_refused_with_what_it_has(tmp_path, store):
    path = version_5(tmp_path / "x.mat", feats_mat=ROWS)

    with pytest.raises(
        BankError, match=r"row for each of the 4 labels; it has feats_mat \(5 x 3\)"
    ):
        import_feats_mat(path, store, name="x", ids=IDS[:4])


def test_two_matrices_that_fit_are_refused_until_one_is_named(tmp_path, store):
    path = version_5(tmp_path / "x.mat", one=ROWS, two=2 * ROWS, mos=np.ones((5, 1)))

    with pytest.raises(BankError, match="one and two all have a row"):
        import_feats_mat(path, store, name="x", ids=IDS)
    with pytest.raises(BankError, match="no matrix 'three'"):
        import_feats_mat(path, store, name="x", ids=IDS, variable="three")
    got = import_feats_mat(path, store, name="x", ids=IDS, variable="two")
    np.testing.assert_allclose(banked(store, got), 2 * ROWS, rtol=1e-6)


def test_a_matrix_taken_for_its_name_says_which_others_fit(tmp_path, store):
    path = version_5(tmp_path / "x.mat", feats_mat=ROWS, deep=2 * ROWS, mos=np.ones((5, 1)))

    got = import_feats_mat(path, store, name="x", ids=IDS)

    np.testing.assert_allclose(banked(store, got), ROWS, rtol=1e-6)
    assert any("deep would fit, too; feats_mat was taken" in note for note in got.notes)
    named = import_feats_mat(path, store, name="y", ids=IDS, variable="feats_mat")
    assert not any("would fit" in note for note in named.notes)


def test_a_square_matrix_says_that_its_rows_were_taken(tmp_path, store):
    square = np.random.default_rng(2).normal(size=(5, 5))

    got = import_feats_mat(
        version_5(tmp_path / "x.mat", feats_mat=square), store, name="s", ids=IDS
    )

    np.testing.assert_allclose(banked(store, got), square, rtol=1e-6)
    assert any("feats_mat is 5 x 5, so nothing shows" in note for note in got.notes)


def test_importing_again_banks_nothing_and_other_numbers_are_refused(tmp_path, store):
    path = version_5(tmp_path / "x.mat", feats_mat=ROWS)
    import_feats_mat(path, store, name="x", ids=IDS)

    assert import_feats_mat(path, store, name="x", ids=IDS).skipped == 5
    with pytest.raises(BankError, match="other bytes"):
        import_feats_mat(
            version_5(tmp_path / "y.mat", feats_mat=ROWS + 1), store, name="x", ids=IDS
        )


@pytest.mark.parametrize("write", [version_5, version_73])
def test_a_file_cut_or_changed_anywhere_is_an_error_of_ours_or_still_a_matrix(tmp_path, write):
    content = write(tmp_path / "x.mat", feats_mat=ROWS).read_bytes()
    rng = np.random.default_rng(1)
    for trial in range(60):
        broken = bytearray(content)
        if trial % 2:
            broken = broken[: rng.integers(0, len(content))]
        else:
            broken[rng.integers(0, len(content))] ^= 1 << rng.integers(0, 8)
        (tmp_path / "broken.mat").write_bytes(broken)
        store = FeatureStore.create(tmp_path / f"bank{trial}")
        with contextlib.suppress(VqbankError):  # any other error fails the test
            got = import_feats_mat(tmp_path / "broken.mat", store, name="x", ids=IDS)
            assert got.banked == 5


# Trees of .npy files.


def numbered(folder, *, base=0, scores=None, kind="resnet-50_res5c"):
    folder.mkdir(exist_ok=True)
    for row in range(5):
        np.save(folder / f"{row + base}_{kind}.npy", np.full((row + 1, 4), row, np.float32))
        if scores is not None:
            np.save(folder / f"{row + base}_score.npy", np.float64(scores[row]))
    return folder


@pytest.mark.parametrize("base", [0, 1])
def test_numbered_files_are_rows_of_the_label_file(tmp_path, store, base):
    mos = [3.0, 1, 4, 1, 5]
    folder = numbered(tmp_path / "tree", base=base, scores=np.array(mos) / 5)

    (got,) = import_numbered_npy(folder, store, name="vsfa", ids=IDS, mos=mos)

    assert [len(store.read(got.spec, video_id).values) for video_id in IDS] == [1, 2, 3, 4, 5]
    assert store.read(got.spec, IDS[2]).values[0].tolist() == [2] * 4
    assert "5 of 5 score files agree" in got.notes[0]


@pytest.mark.parametrize("mos", [[None] * 5, [3.0, 1, None, None, None], [2.0] * 5])
def test_scores_that_cannot_be_compared_do_not_agree(tmp_path, store, mos):
    folder = numbered(tmp_path / "tree", scores=[3.0, 1, 4, 1, 5])

    (got,) = import_numbered_npy(folder, store, name="vsfa", ids=IDS, mos=mos)

    assert "5 score files could not be compared with the label file" in got.notes[0]
    assert not any("agree" in note for note in got.notes)


def test_only_rows_with_a_score_count_as_compared(tmp_path, store):
    folder = numbered(tmp_path / "tree", scores=[3.0, 1, 4, 1, 5])

    (got,) = import_numbered_npy(folder, store, name="x", ids=IDS, mos=[3.0, 1, 4, None, None])

    assert "3 of 5 score files agree" in got.notes[0]


def test_scores_of_another_order_are_refused(tmp_path, store):
    folder = numbered(tmp_path / "tree", scores=[1, 2, 3, 4, 5])

    with pytest.raises(BankError, match="those of other rows than the label file's"):
        import_numbered_npy(folder, store, name="x", ids=IDS, mos=[2, 1, 3, 4, 5])


def test_a_missing_number_is_named(tmp_path, store):
    folder = numbered(tmp_path / "tree")
    (folder / "3_resnet-50_res5c.npy").unlink()

    with pytest.raises(BankError, match="resnet-50_res5c number 3 is missing"):
        import_numbered_npy(folder, store, name="x", ids=IDS, mos=[None] * 5)


def test_two_extractors_become_two_features(tmp_path, store):
    numbered(tmp_path / "tree", kind="ResNet-50_last_conv")
    numbered(tmp_path / "tree", kind="AlexNet_last_conv")

    got = import_numbered_npy(tmp_path / "tree", store, name="m", ids=IDS, mos=[None] * 5)

    names = [imported.spec.name for imported in got]
    assert names == ["imported.m-alexnet_last_conv", "imported.m-resnet-50_last_conv"]


def test_seconds_become_rows_and_kinds_become_features(tmp_path, store):
    for video in ("a", "b"):
        (tmp_path / "tree" / video).mkdir(parents=True)
        for k in (0, 1, 10, *range(2, 10)):
            for kind, width in (("fast", 4), ("slow", 6)):
                rows = np.full((1, width, 1, 1, 1), k, np.float32)
                np.save(tmp_path / "tree" / video / f"feature_{k}_{kind}_feature.npy", rows)

    fast, slow = import_per_second_npy(
        tmp_path / "tree", store, name="simplevqa", ids={"a": "set/a.mp4"}
    )

    assert (fast.spec.name, fast.spec.shape) == ("imported.simplevqa-fast", (4,))
    assert slow.spec.shape == (6,)
    assert store.video_ids(slow.spec) == ["b", "set/a.mp4"]
    assert store.read(fast.spec, "set/a.mp4").values[:, 0].tolist() == list(range(11))


def test_a_missing_second_is_named(tmp_path, store):
    (tmp_path / "tree" / "a").mkdir(parents=True)
    for k in (0, 2):
        np.save(tmp_path / "tree" / "a" / f"{k:03d}.npy", np.ones((1, 4096), np.float32))

    with pytest.raises(BankError, match="number 1 is missing"):
        import_per_second_npy(tmp_path / "tree", store, name="qalign", ids={})


def test_arrays_of_objects_are_refused_and_never_opened(tmp_path, store):
    (tmp_path / "tree").mkdir()
    np.save(tmp_path / "tree" / "0_x.npy", np.array([{}], object), allow_pickle=True)

    with pytest.raises(InvalidFeatureError, match=r"0_x\.npy"):
        import_numbered_npy(tmp_path / "tree", store, name="x", ids=IDS[:1], mos=[None])


# The commands.


def vqbank(*arguments):
    run = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return run.exception if isinstance(run.exception, VqbankError) else run.output


def test_a_pickle_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "maxvqa.pkl").write_bytes(b"\x80\x04]\x94.")

    with pytest.raises(BankError, match=r"maxvqa\.pkl is a pickle, .* one \.npy file"):
        refuse_pickle(tmp_path / "maxvqa.pkl")
    assert "is a pickle" in str(vqbank("import", tmp_path / "maxvqa.pkl", tmp_path / "bank"))


def test_a_matrix_is_imported_and_evaluated_by_name(tmp_path):
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(40, 4))
    lines = [f"{row}.mp4,{3 + rows[row, 0]}" for row in range(40)]
    (tmp_path / "labels.csv").write_text("\n".join(["filename,score", *lines]) + "\n")
    version_5(tmp_path / "x.mat", feats_mat=rows)
    bank = tmp_path / "bank"
    labels = ("--labels", tmp_path / "labels.csv")

    said = vqbank("import", "feats-mat", tmp_path / "x.mat", *labels, "--bank", bank, "--name", "x")
    assert "40 videos banked" in said
    said = vqbank(
        "evaluate", "--bank", bank, "--features", "x", *labels, "--head", "ridge",
        "--splits", "videval3", "--json", tmp_path / "out.json",
    )  # fmt: skip
    assert "Provenance unknown, because imported: imported.x." in said
    assert (tmp_path / "out.json").exists()
    assert "unknown" in vqbank("ls", bank)


def per_second(tmp_path, *videos):
    for video in videos:
        folder = tmp_path / "tree" / video
        folder.mkdir(parents=True)
        for second in range(2):
            np.save(folder / f"{second}.npy", np.full((1, 3), second, np.float32))
    return tmp_path / "tree"


def import_seconds(tmp_path, labels, *more):
    (tmp_path / "l.csv").write_text(labels)
    return str(
        vqbank(
            "import", "per-second-npy", tmp_path / "tree", "--labels", tmp_path / "l.csv",
            "--bank", tmp_path / "bank", "--name", "x", *more,
        )
    )  # fmt: skip


def test_a_folder_that_may_be_one_of_two_videos_is_refused(tmp_path):
    per_second(tmp_path, "a")
    said = import_seconds(tmp_path, "filename,mos\ntrain/a.mp4,1\ntest/a.mp4,2\n")

    assert "a may be l/train/a.mp4 or l/test/a.mp4 of" in said


def test_folders_say_of_which_data_set_they_were_taken_to_be(tmp_path):
    per_second(tmp_path, "a", "b")
    said = import_seconds(tmp_path, "filename,mos\na.mp4,1\nc.mp4,2\n")
    assert "1 folders of 2 are labelled, as videos of l" in said

    said = import_seconds(tmp_path, "id,path,mos\none/a.mp4,a.mp4,1\ntwo/b.mp4,b.mp4,2\n")
    assert "a fits one/a.mp4, and b fits two/b.mp4" in said


@pytest.mark.parametrize("kind", ["feats-mat", "numbered-npy", "per-second-npy"])
def test_every_import_takes_the_column_of_the_score(tmp_path, kind):
    per_second(tmp_path, *"abcde")
    numbered(tmp_path / "numbered", scores=[3.0, 1, 4, 1, 5])
    version_5(tmp_path / "x.mat", feats_mat=ROWS)
    rows = zip("abcde", [3, 1, 4, 1, 5], strict=True)
    (tmp_path / "l.csv").write_text(
        "filename,mos,score\n" + "".join(f"{name}.mp4,{mos},7\n" for name, mos in rows)
    )
    source = {"feats-mat": "x.mat", "numbered-npy": "numbered", "per-second-npy": "tree"}[kind]
    arguments = (
        "import", kind, tmp_path / source, "--labels", tmp_path / "l.csv",
        "--bank", tmp_path / "bank", "--name", "x",
    )  # fmt: skip

    assert "'mos' and 'score' may be the score; --score says which" in str(vqbank(*arguments))
    assert "5 videos banked" in vqbank(*arguments, "--score", "mos")
