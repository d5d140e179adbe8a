"""Label files with several scores: one run of heads for each, on shared features and splits."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import vqbank
from vqbank.pipelines.commands.cli import app
from vqbank.pipelines.commands.train import score_folder
from vqbank.pipelines.labels import read_labels, score_columns
from vqbank.pipelines.recipe import Recipe
from vqbank.pipelines.results.records import read_records
from vqbank.pipelines.runs.asked import by_score
from vqbank.regressors.card import read_card
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import ManifestError, RecipeError
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint

COUNT = 30


def run(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A bank whose first value tells one score and whose second value another one."""
    folder = tmp_path_factory.mktemp("scores")
    rng = np.random.default_rng(0)
    store = FeatureStore.create(folder / "bank")
    spec = FeatureSpec("tells.feature", (2,), "float32", {"provenance": "unknown"})
    writer = store.writer(spec, provenance={}, durable=False)
    lines = ["filename,mos,score,colour"]
    for number in range(COUNT):
        both = rng.uniform(0, 10, 2)
        feature = Feature(both[None].astype(np.float32), np.zeros(1), np.zeros(1, np.int64))
        content = Fingerprint(number + 1, f"{number:064x}")
        writer.add(f"set/{number}.mp4", feature, fingerprint=content, probe={})
        lines.append(f"{number}.mp4,{both[0]:.4f},{both[1]:.4f},{both.sum():.4f}")
    writer.commit()
    (folder / "set.csv").write_text("\n".join(lines))
    return folder


def options(project, score, *further):
    return ("--labels", project / "set.csv", "--bank", project / "bank", "--features",
            "tells.feature", "--head", "ridge", "--score", score, *further)  # fmt: skip


def test_all_are_the_columns_that_are_scores_by_their_names(project):
    assert score_columns(project / "set.csv") == ["mos", "score"]
    with pytest.raises(ManifestError, match="--score"):
        read_labels(project / "set.csv", score="all")


def test_every_score_has_heads_of_its_own_on_the_same_splits(project, tmp_path):
    done = run("evaluate", *options(project, "all", "--splits", "random5", "--jobs", 1,
                                    "--json", tmp_path / "runs.jsonl"))  # fmt: skip
    records = read_records(tmp_path / "runs.jsonl")
    assert [record.score_name for record in records] == ["mos", "score"]
    first, second = records
    assert first.tests == second.tests
    assert first.mos_sha256 != second.mos_sha256
    assert first.features == second.features
    assert all(record.heads[0].statistics["srcc"].median > 0.9 for record in records)
    assert "labels: mos" not in done.stdout
    alone = run("evaluate", *options(project, "score", "--splits", "random5", "--jobs", 1,
                                     "--json", tmp_path / "one.json"))  # fmt: skip
    (one,) = read_records(tmp_path / "one.json")
    assert one.heads[0].predicted == second.heads[0].predicted
    assert alone.exit_code == 0


def test_columns_of_any_name_are_taken_where_they_are_named(project, tmp_path):
    run("evaluate", *options(project, "colour, mos", "--splits", "random5", "--jobs", 1,
                             "--json", tmp_path / "runs.jsonl"))  # fmt: skip
    assert [r.score_name for r in read_records(tmp_path / "runs.jsonl")] == ["colour", "mos"]


def test_a_head_of_each_score_is_shipped(project, tmp_path):
    runs = tmp_path / "runs.jsonl"
    splits = ("--splits", "random10", "--jobs", 1, "--json", runs)
    run("evaluate", *options(project, "mos,colour", *splits))
    run("train", *options(project, "mos,colour", "--record", runs, "-o", tmp_path / "heads"))
    labels = read_labels(project / "set.csv", score="colour")
    for score in ("mos", "colour"):
        folder = tmp_path / "heads" / score
        assert read_card(folder)["score_name"] == score
        assert read_card(folder)["held_out"]["errors"] > 20
    predicted = vqbank.predict(
        tmp_path / "heads" / "colour", project / "set.csv", bank=project / "bank", score="colour"
    )
    mos = {Path(row.name).name: row.mos for row in labels.rows}
    own = [mos[Path(video.id).name] for video in predicted.videos]
    assert np.corrcoef(predicted.scores, own)[0, 1] > 0.99


@pytest.mark.parametrize(
    ("score", "further", "message"),
    [
        ("mos,mos", (), "names a column twice"),
        ("mos,", (), "names a column twice, or none"),
        ("all", ("--json", "runs.json"), "go to a file in .jsonl"),
        ("all", ("--report", "folder"), "name a .html"),
    ],
)
def test_what_cannot_be_of_several_scores_is_refused(
    project, tmp_path, monkeypatch, score, further, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=message):
        run("evaluate", *options(project, score, *further))


def test_several_scores_are_of_a_label_file():
    with pytest.raises(RecipeError, match="--labels"):
        by_score(Recipe(videos=Path("set.csv"), score="all"))
    recipe = Recipe(labels=Path("set.csv"), score="mos")
    assert by_score(recipe) == [recipe]


def test_folders_of_scores_have_plain_names():
    assert score_folder("T-all") == "T-all"
    assert score_folder("../x y") == "---x-y"
    assert json.dumps(score_folder("")) == '"-"'
