"""Experiments: cells on shared splits, kept one by one; processes are really killed."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import vqbank
from vqbank.pipelines.commands.cli import app
from vqbank.pipelines.experiments.experiment import Experiment, evaluate
from vqbank.pipelines.experiments.fits import Cell, Fits
from vqbank.pipelines.experiments.rated import RatedVideos
from vqbank.pipelines.experiments.train import train
from vqbank.pipelines.recipe import Protocol, Recipe
from vqbank.pipelines.results.records import read_records
from vqbank.regressors import load_head, make_head
from vqbank.regressors.pooling import PooledTable, pooled
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import RecipeError, VqbankError
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, Video
from vqbank.store.table import FeatureTable

N = 40


def experiment(*, seed=0, splits="random3", **changes):
    """Three cells: two heads on all features, and one of them on a part."""
    rng = np.random.default_rng(seed)
    x, y = (rng.normal(size=(N, 2, width)).astype(np.float32) for width in (3, 2))
    videos = [Video(f"set/{row}.mp4", Path("x")) for row in range(N)]
    table = FeatureTable.from_arrays(videos, {"x": list(x), "y": list(y)})
    rated = RatedVideos(table, x[:, :, 0].mean(axis=1) + 0.3 * rng.normal(size=N))
    cells = [
        Cell("both", make_head("ridge"), ("x", "y")),
        Cell("trees", make_head("boosting"), ("x", "y")),
        Cell("half", make_head("ridge"), ("y",)),
    ]
    return replace(Experiment("t", rated, cells, Protocol(splits=splits)), **changes)


def numbers(record):
    """All that another run of the same has to come to."""
    heads = [head.model_copy(update={"seconds": []}) for head in record.heads]
    return record.model_copy(update={"heads": heads}).model_dump_json()


def kept(folder):
    return sorted(path.name for path in folder.glob("*.json"))


SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1])))
from test_experiment import experiment
from vqbank.pipelines.experiments.fitting import Fitted

def watch(told):
    if isinstance(told, Fitted):
        print(told.cell, told.split, flush=True)
        if (told.cell, told.split) == (sys.argv[3], int(sys.argv[4])):
            time.sleep(600)  # until it is killed

for record in experiment().run(watch=watch, keep=Path(sys.argv[2])):
    pass
"""


def killed(folder, cell, split):
    """Run the experiment in a process that is killed once a cell is done with a split."""
    run = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(folder), cell, str(split)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        while (line := run.stdout.readline().split()) != [cell, str(split)]:
            assert line, "ended by itself"
    finally:
        run.send_signal(signal.SIGKILL)
        run.communicate()


def counted_fits(monkeypatch):
    done = []
    on_splits = Fits.on_splits

    def counting(self, label, splits, *arguments, **options):
        done.extend((label, number) for number, _ in splits)
        return on_splits(self, label, splits, *arguments, **options)

    monkeypatch.setattr(Fits, "on_splits", counting)
    return done


@pytest.mark.parametrize(
    ("cell", "split", "finished"), [("trees", 1, ["both"]), ("half", 0, ["both", "trees"])]
)
def test_a_killed_experiment_goes_on_after_the_last_cell_that_it_finished(
    cell, split, finished, tmp_path, monkeypatch
):
    made = experiment()
    whole = {record.heads[0].name: record for record in made.run()}
    killed(tmp_path, cell, split)
    assert [read_records(tmp_path / name)[0].heads[0].name for name in kept(tmp_path)] == sorted(
        finished, key=lambda name: made.key(next(c for c in made.cells if c.label == name))
    )

    done = counted_fits(monkeypatch)
    again = {record.heads[0].name: record for record in made.run(keep=tmp_path)}

    missing = [name for name in ("both", "trees", "half") if name not in finished]
    assert done == [(name, number) for name in missing for number in range(3)]
    assert {name: numbers(r) for name, r in again.items()} == {
        name: numbers(r) for name, r in whole.items()
    }
    assert len(kept(tmp_path)) == 3
    done.clear()
    third = list(made.run(keep=tmp_path))
    assert done == []
    assert sorted(map(numbers, third)) == sorted(map(numbers, again.values()))


def changed(made, **rated):
    return replace(made, rated=replace(made.rated, **rated))


def with_videos(made, **change):
    table = made.rated.table
    videos = [replace(video, **change) for video in table.videos[:2]] + list(table.videos[2:])
    series = {role: [table.series(role, row) for row in range(N)] for role in table.roles}
    return changed(made, table=FeatureTable.from_arrays(videos, series))


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (lambda made: replace(made, title="another"), True),
        (lambda made: replace(made, cells=[replace(made.cells[0], label="another")]), True),
        (lambda made: with_videos(made, path=Path("another")), True),
        (lambda made: with_videos(made, scene="one"), False),
        (lambda made: changed(made, mos=made.rated.mos + np.eye(N)[0]), False),
        (lambda made: changed(made, score_name="another"), False),
        (lambda made: replace(made, protocol=Protocol(splits="random4")), False),
        (lambda made: replace(made, cells=[replace(made.cells[0], roles=("y", "x"))]), False),
        (lambda made: replace(made, cells=[replace(made.cells[0], roles=("x",))]), False),
        (
            lambda made: replace(
                made, cells=[replace(made.cells[0], head=make_head("ridge", folds=4))]
            ),
            False,
        ),
        (lambda made: replace(made, rated=experiment(seed=1).rated), False),
        (lambda made: changed(made, files={"memory.x@": []}), True),
    ],
)
def test_a_cell_is_known_by_all_that_changes_its_numbers_and_by_nothing_else(other, same):
    made = experiment()
    changed_one = other(made)

    assert (changed_one.key(changed_one.cells[0]) == made.key(made.cells[0])) == same


def test_another_file_behind_a_banked_video_is_another_cell():
    made = experiment()
    keys = [spec.key for spec in made.rated.table.specs.values()]
    one, other = (
        changed(made, files={key: [f"{row}{last}" for row in range(N)] for key in keys})
        for last in "ab"
    )

    assert one.key(made.cells[0]) != other.key(made.cells[0])


def test_a_kept_cell_has_the_title_and_the_label_of_today(tmp_path):
    made = experiment()
    list(made.run(keep=tmp_path))
    renamed = replace(made, title="u", cells=[replace(made.cells[0], label="new")])

    (record,) = renamed.run(keep=tmp_path)

    assert (record.title, record.heads[0].name) == ("u", "new")


def test_a_kept_cell_says_where_scores_come_from_as_of_today(tmp_path):
    made = experiment(cells=experiment().cells[:1])
    list(made.run(keep=tmp_path))
    today = changed(made, taken_for="KVQ", filled={"memory.x": 3})

    (record,) = today.run(keep=tmp_path)

    assert (record.taken_for, record.filled) == ("KVQ", {"memory.x": 3})
    assert numbers(record) == numbers(next(today.run()))


def test_a_kept_cell_of_other_videos_is_refused(tmp_path):
    made = experiment(cells=experiment().cells[:1])
    list(made.run(keep=tmp_path))
    (name,) = kept(tmp_path)
    content = json.loads((tmp_path / name).read_text())
    content["ids"][0] = "set/another.mp4"
    (tmp_path / name).write_text(json.dumps(content))

    with pytest.raises(RecipeError, match=r"named by: it has other ids; remove it"):
        list(made.run(keep=tmp_path))


def test_a_cell_of_another_kind_of_device_is_another_and_of_another_device_is_the_same():
    made = experiment()
    keys = [
        made.key(Cell("mlp", make_head("mlp", device=device), ("x",)))
        for device in ("cpu", "cuda", "cuda:0", "cuda:1", "mps")
    ]

    assert keys[1] == keys[2] == keys[3]
    assert len(set(keys)) == 3


def test_a_kept_cell_that_was_changed_is_refused(tmp_path):
    made = experiment(cells=experiment().cells[:1])
    (record,) = made.run(keep=tmp_path)
    (name,) = kept(tmp_path)
    content = json.loads((tmp_path / name).read_text())
    content["heads"][0]["per_split"]["srcc"][0] = 0.999
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(RecipeError, match=r"its srcc of both says .*, and its splits come to"):
        list(made.run(keep=tmp_path))

    other = record.model_copy(
        update={"heads": [record.heads[0].model_copy(update={"cell": "another"})]}
    )
    (tmp_path / name).write_text(other.model_dump_json())
    with pytest.raises(RecipeError, match="is not the record of the cell that it is named by"):
        list(made.run(keep=tmp_path))


def test_a_cell_on_some_features_is_the_head_on_a_table_of_these():
    made = experiment()
    alone = changed(made, table=made.rated.table.select(["y"]))
    alone = replace(alone, cells=made.cells[2:])
    half = list(made.run())[-1]

    assert half.heads[0].name == "half"
    assert half.features == {"y": made.rated.table.specs["y"].key}
    assert numbers(next(alone.run())) == numbers(half)


def test_pooled_vectors_of_some_roles_are_those_of_their_table():
    table = experiment().rated.table
    both = PooledTable(table, pooled(table))

    for roles in (("y",), ("x",), ("y", "x"), ("x", "y")):
        assert np.array_equal(both.select(roles).vectors, pooled(table.select(roles)))


def test_cells_of_one_feature_set_are_one_record_in_their_order_and_others_are_refused(
    monkeypatch,
):
    made = experiment()
    record = evaluate(replace(made, cells=made.cells[1::-1]))

    assert [head.name for head in record.heads] == ["trees", "both"]
    monkeypatch.setattr(Fits, "on_splits", None)  # nothing is fitted before the refusal
    with pytest.raises(RecipeError, match=r"cells both and half are on other features \(x, y; y\)"):
        evaluate(made)
    with pytest.raises(RecipeError, match="cells share a label: both, both"):
        list(replace(made, cells=[made.cells[0]] * 2).run())


def test_cells_are_tried_on_the_videos_that_all_of_them_have(tmp_path):
    store = FeatureStore.create(tmp_path / "bank")
    rng = np.random.default_rng(0)
    for name, lacking in (("a", 3), ("b", 7)):
        writer = store.writer(FeatureSpec(f"{name}.f", (2,), "float32", {}), provenance={})
        for row in range(20):
            if row != lacking:
                values = rng.normal(size=(1, 2)).astype(np.float32)
                feature = Feature(values, np.zeros(1), np.zeros(1, np.int64))
                fingerprint = Fingerprint(1, f"{row:064}")
                writer.add(f"set/v{row}.mp4", feature, fingerprint=fingerprint, probe={})
        writer.commit()
    manifest = tmp_path / "set.csv"
    manifest.write_text(
        "path,id,mos\n" + "".join(f"v{row}.mp4,set/v{row}.mp4,{row % 7}\n" for row in range(20))
    )
    recipe = Recipe(
        videos=manifest, bank=tmp_path / "bank", features={"a": "a.f", "b": "b.f"},
        missing="drop", heads={"ridge": {}}, protocol=Protocol(splits="random2"),
    )  # fmt: skip
    made = Experiment.of(recipe, title="t")
    cells = [replace(made.cells[0], label=role, roles=(role,)) for role in "ab"]

    one, other = replace(made, cells=cells).run()

    assert one.ids == other.ids == [f"set/v{row}.mp4" for row in range(20) if row not in (3, 7)]
    assert one.splits_sha256 == other.splits_sha256
    assert made.rated.dropped == ["set/v3.mp4", "set/v7.mp4"]
    assert "2 of 20 videos lack a feature and are left out of every side" in one.splits


@pytest.mark.parametrize(
    ("scenes", "head", "message"),
    [
        (["a"] * 30 + ["b"] * 10, "ridge", r"30 training videos are of one scene, 'a', .* 2 or"),
        (["a"] * 30 + ["b"] * 10, "mlp", r"mlp chooses its epoch on training scenes: to hold out"),
        (
            ["a"] * 29 + ["c"] + ["b"] * 10,
            "mlp",
            r"its held-out \(whole scenes, by mlp\) part has 1 video \(set/29.mp4\)",
        ),
    ],
)
def test_a_training_part_that_leaves_nothing_to_choose_by_is_refused_before_any_fit(
    scenes, head, message
):
    made = experiment()
    table = made.rated.table
    videos = [replace(v, scene=s) for v, s in zip(table.videos, scenes, strict=True)]
    series = {"x": [table.series("x", row) for row in range(N)]}
    made = changed(made, table=FeatureTable.from_arrays(videos, series))
    seed = next(s for s in range(99) if np.random.default_rng(s).permutation(2)[0] == 1)
    parameters = {"seed": seed} if head == "mlp" else {}
    made = replace(made, cells=[Cell(head, make_head(head, **parameters), ("x",))])
    test = np.array([scene == "b" for scene in scenes])
    first = made.splits.rows[0].testing(test)
    made.__dict__["splits"] = replace(made.splits, rows=[first])

    with pytest.raises(RecipeError, match=message):
        next(made.run())


def small_bank(folder):
    store = FeatureStore.create(folder / "bank")
    writer = store.writer(FeatureSpec("a.f", (3,), "float32", {}), provenance={})
    rng = np.random.default_rng(0)
    lines = ["path,id,mos"]
    for row in range(30):
        values = rng.normal(size=(1, 3)).astype(np.float32)
        writer.add(
            f"set/{row}.mp4",
            Feature(values, np.zeros(1), np.zeros(1, np.int64)),
            fingerprint=Fingerprint(1, f"{row:064}"),
            probe={},
        )
        lines.append(f"{row}.mp4,set/{row}.mp4,{values[0, 0]}")
    writer.commit()
    (folder / "set.csv").write_text("\n".join(lines) + "\n")
    return {"bank": folder / "bank", "features": "a.f", "videos": folder / "set.csv"}


KILLED = """
import os, signal, sys
from pathlib import Path
import vqbank
from vqbank.pipelines.experiments.fitting import Fitted

def watch(told):
    if told == Fitted("gaussian", 1):
        os.kill(os.getpid(), signal.SIGKILL)

folder = Path(sys.argv[1])
vqbank.evaluate(bank=folder / "bank", features="a.f", videos=folder / "set.csv", jobs=1,
                heads=["ridge", "gaussian"], splits="random3", keep=folder / "kept", watch=watch)
"""


def test_an_evaluation_that_was_killed_goes_on_from_the_folder_that_it_was_given(
    tmp_path, monkeypatch
):
    asked = small_bank(tmp_path) | {"heads": ["ridge", "gaussian"], "splits": "random3", "jobs": 1}
    whole = vqbank.evaluate(**asked)
    run = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert run.returncode == -signal.SIGKILL
    assert len(kept(tmp_path / "kept")) == 1

    done = counted_fits(monkeypatch)
    options = [f"--{name}={asked[name]}" for name in ("bank", "features", "videos", "splits")]
    result = CliRunner().invoke(
        app,
        ["evaluate", *options, "--head=ridge", "--head=gaussian", "--jobs=1",
         f"--keep={tmp_path / 'kept'}", f"--json={tmp_path / 'run.json'}"],
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    assert done == [("gaussian", number) for number in range(3)]
    (record,) = read_records(tmp_path / "run.json")
    assert numbers(record) == numbers(whole)
    assert len(kept(tmp_path / "kept")) == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"jobs": 0}, "jobs cannot be 0; it is a number of processes, 1 or more"),
        ({"jobs": -1}, "jobs cannot be -1"),
        ({"jobs": "2"}, "jobs cannot be '2'"),
        ({"jobs": True}, "jobs cannot be True"),
        ({"heads": 3}, "heads cannot be 3; it is a name, several, or parameters by name"),
        ({"heads": {"ridge": None}}, "heads cannot be"),
        ({"features": [1]}, r"features cannot be \[1\]"),
        ({"videos": 1.5}, "videos cannot be 1.5; it is a path"),
        ({"bank": b"x"}, "bank cannot be b'x'"),
        ({"splits": 10}, "splits cannot be 10; it is a text"),
        ({"missing": 0}, "missing cannot be 0"),
        ({"weights": "random"}, "weights cannot be 'random'"),
        ({"recipe": 7}, "recipe cannot be 7; it is a Recipe, its file, or the name of one"),
        ({"keep": 1}, "keep cannot be 1"),
        ({"keep": __file__}, "is a file; name a folder"),
        ({"videos": "none.csv"}, "none.csv cannot be read: No such file or directory"),
    ],
)
def test_what_evaluate_cannot_take_is_refused_before_a_learning_library_is_imported(
    wrong, message, tmp_path, monkeypatch
):
    asked = {"bank": tmp_path, "features": "a.f", "videos": __file__, "heads": "ridge", **wrong}
    monkeypatch.setitem(sys.modules, "sklearn", None)  # importing it fails

    with pytest.raises(VqbankError, match=message):
        vqbank.evaluate(**asked)


@pytest.mark.parametrize("wrong", [{"output": 1}, {"head": 3}, {"tensorboard": 1}, {"weights": 1}])
def test_what_train_cannot_take_is_refused(wrong, tmp_path):
    asked = {"bank": tmp_path, "features": "a.f", "videos": __file__, "head": "ridge"}
    with pytest.raises(RecipeError, match="cannot be"):
        vqbank.train(**({"output": tmp_path / "head"} | asked | wrong))


# --- heads that start from others


def started(folder, *, own=False):
    """An experiment of a head that starts from one on other videos, or on its own ones."""
    made = experiment()
    table, mos = made.rated.table, made.rated.mos
    if not own:
        videos = [replace(video, id=f"large/{video.id}") for video in table.videos]
        table = FeatureTable(videos, table._columns)
    large = Experiment("large", RatedVideos(table, mos), [], made.protocol)
    head = make_head("gru", epochs=1, align="repeat")
    cells = [Cell("gru", head, ("x", "y"))]
    train(replace(large, cells=cells), folder, recipe=Recipe())
    start = make_head("gru", epochs=1, align="repeat", start=str(folder))
    return replace(made, cells=[Cell("gru", start, ("x", "y"))])


def test_a_cell_is_known_by_the_networks_that_it_starts_from(tmp_path):
    made = started(tmp_path / "large")
    first = made.key(made.cells[0])
    fresh = replace(
        made, cells=[Cell("gru", make_head("gru", epochs=1, align="repeat"), ("x", "y"))]
    )
    assert first != fresh.key(fresh.cells[0])

    head = load_head(tmp_path / "large")
    head.ensemble_.state["score.bias"].add_(1)
    head.save(tmp_path / "large", {"trained_on": None})
    assert made.key(made.cells[0]) != first
    (record,) = made.run()
    assert record.heads[0].name == "gru"


def test_a_head_that_was_trained_on_tested_videos_is_no_start(tmp_path):
    (record,) = started(tmp_path / "other").run()
    assert record.heads[0].name == "gru"
    seen = started(tmp_path / "own", own=True)
    message = r"gru starts from a head that was trained on 2\d of the 2\d videos .* set/"
    with pytest.raises(RecipeError, match=message):
        list(seen.run())
    # So is one that was started from such a head.
    second = make_head("gru", epochs=1, align="repeat", start=str(tmp_path / "own"))
    second.fit(seen.rated.table, seen.rated.mos).save(tmp_path / "second")
    third = make_head("gru", epochs=1, align="repeat", start=str(tmp_path / "second"))
    with pytest.raises(RecipeError, match="starts from a head that was trained on"):
        list(replace(seen, cells=[Cell("gru", third, ("x", "y"))]).run())
