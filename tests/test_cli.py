"""The command line: what a person types, what it answers, how it exits."""

import ast
import csv
import importlib.metadata
import io
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from vqbank.extractors import EXTRACTORS
from vqbank.extractors import video as decoding
from vqbank.pipelines.commands.cli import main
from vqbank.pipelines.commands.predict import say_agreement
from vqbank.pipelines.recipe import shipped_recipes
from vqbank.pipelines.runs.predict import Predicted
from vqbank.pipelines.stopping import stopped_by_signals
from vqbank.regressors import HEADS
from vqbank.regressors.gru import Gru
from vqbank.store.bank import FeatureStore
from vqbank.store.documents import yaml_value
from vqbank.store.errors import VqbankError
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, Video

ROOT = Path(__file__).parents[1]


class Run(NamedTuple):
    """What a command answered."""

    returncode: int
    stdout: str
    stderr: str


def vqbank(*arguments, cwd=None, **environment):
    """Run the command in this process: importing torch anew each time takes seconds."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["vqbank", *map(str, arguments)])
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        for name, value in environment.items():
            patch.setenv(name, value)
        if cwd is not None:
            patch.chdir(cwd)
        with pytest.raises(SystemExit) as exit_:
            main()
    return Run(exit_.value.code or 0, out.getvalue(), err.getvalue())


def clip(path, *, noise, frames=12, seed=0):
    rng = np.random.default_rng(seed)
    ramp = np.add.outer(np.arange(64), np.arange(96)) + rng.integers(0, 50)
    pictures = (
        np.clip(ramp[..., None] + i + rng.normal(0, noise, (64, 96, 3)), 0, 255).astype(np.uint8)
        for i in range(frames)
    )
    decoding.encode(path, pictures, rate=10, crf=10)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Six scenes with four levels of noise, and the recipe of a whole run."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "clips").mkdir()
    lines = ["path,mos,scene"]
    for scene in range(6):
        for level, noise in enumerate([1, 6, 14, 30]):
            name = f"clips/{scene}-{level}.mp4"
            clip(folder / name, noise=noise, seed=scene)
            lines.append(f"{name},{80 - 20 * level},scene{scene}")
    (folder / "set.csv").write_text("\n".join(lines) + "\n")
    (folder / "run.yaml").write_text(
        "videos: set.csv\nbank: bank\nextractors: {nss: , motion: }\n"
        "features: {quality: nss.brisque, motion: motion.series}\n"
        "heads: {ridge: , svr: }\nprotocol: {count: 3, test_fraction: 0.34}\n"
    )
    run = vqbank("extract", folder / "run.yaml")
    assert run.returncode == 0, run.stderr
    return folder


def test_extract_says_what_it_did_and_a_second_run_does_nothing(project):
    run = vqbank("extract", project / "run.yaml")

    assert run.returncode == 0
    assert "24 videos: 24 banked before, 0 extracted, 0 failed; 0 frames decoded" in run.stderr


def test_evaluate_prints_medians_and_writes_a_report(project, tmp_path):
    run = vqbank("evaluate", project / "run.yaml", "--report", tmp_path / "report")

    assert run.returncode == 0, run.stderr
    row = re.search(r"svr\W+(\d\.\d+) \(", run.stdout)
    assert float(row[1]) > 0.8
    with (tmp_path / "report" / "results.csv").open() as file:
        results = list(csv.DictReader(file))
    assert [(r["head"], r["split"]) for r in results] == [
        (head, str(split)) for split in range(3) for head in ("ridge", "svr")
    ]
    medians = np.median([float(r["srcc"]) for r in results if r["head"] == "svr"])
    assert float(row[1]) == pytest.approx(medians, abs=1e-4)
    assert (tmp_path / "report" / "result.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report" / "report.html").read_text()
    assert "nss.brisque@" in page
    assert "RANDOM WEIGHTS" not in page
    with (tmp_path / "report" / "predictions.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * 3 * 8


def test_a_shipped_head_scores_new_videos_and_banks_what_it_extracts(project, tmp_path):
    run = vqbank("train", project / "run.yaml", "--head", "ridge", "-o", tmp_path / "head")
    assert run.returncode == 0, run.stderr
    clip(tmp_path / "clean.mp4", noise=2, seed=77)
    clip(tmp_path / "noisy.mp4", noise=25, seed=77)
    videos = [tmp_path / "clean.mp4", tmp_path / "noisy.mp4"]

    first = vqbank("predict", tmp_path / "head", *videos, "--bank", tmp_path / "bank")
    again = vqbank(
        "predict", tmp_path / "head", *videos, "--bank", tmp_path / "bank",
        "-o", tmp_path / "submission.csv", "--format", "ntire",
    )  # fmt: skip

    assert first.returncode == again.returncode == 0, first.stderr
    rows = [line.split("\t") for line in first.stdout.splitlines()]
    assert [path for _, _, path, *_ in rows] == [str(video) for video in videos]
    clean, noisy = (float(score) for score, *_ in rows)
    assert clean > noisy + 20
    assert again.stdout == first.stdout
    assert "0 frames decoded" in again.stderr
    with (tmp_path / "submission.csv").open() as file:
        submitted = [(row["filename"], float(row["score"])) for row in csv.DictReader(file)]
    assert submitted == [
        ("clean.mp4", pytest.approx(clean, abs=1e-4)),
        ("noisy.mp4", pytest.approx(noisy, abs=1e-4)),
    ]
    card = yaml_value((tmp_path / "head" / "card.yaml").read_text(), "yaml", VqbankError)
    assert set(card["keys"]) == {"quality", "motion"}


def test_what_could_be_scored_is_written_and_what_could_not_is_named(project, tmp_path):
    run = vqbank("train", project / "run.yaml", "--head", "ridge", "-o", tmp_path / "head")
    assert run.returncode == 0, run.stderr
    (tmp_path / "page.mp4").write_text("<html></html>")
    clips = [project / "clips/0-0.mp4", tmp_path / "page.mp4", project / "clips/0-3.mp4"]
    scored = ("predict", tmp_path / "head", *clips, "--bank", tmp_path / "bank", "-o")

    table = vqbank(*scored, tmp_path / "scores.csv")
    submission = vqbank(*scored, tmp_path / "submission.csv", "--format", "ntire")

    assert table.returncode == submission.returncode == 1
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [str(clips[0]), str(clips[2])]
    line = refused(*scored[:-1], "--weights", "nsss=random", cwd=tmp_path)
    assert "--weights: unknown extractor 'nsss'. Did you mean 'nss'?" in line
    printed = [line.split("\t") for line in table.stdout.splitlines()]
    assert [row["id"] for row in rows] == [id for _, id, *_ in printed]
    assert [f"{float(row['score']):.4f}" for row in rows] == [score for score, *_ in printed]
    assert f"no score: {clips[1]} (files/" in table.stderr
    assert table.stderr.splitlines()[-1] == "2 of 3 videos have a score"
    assert not (tmp_path / "submission.csv").exists()
    assert submission.stderr.endswith("submission.csv was not written\n")


def test_scores_of_people_in_a_manifest_or_a_label_file_are_held_against_the_heads(
    project, tmp_path
):
    run = vqbank("train", project / "run.yaml", "--head", "ridge", "-o", tmp_path / "head")
    assert run.returncode == 0, run.stderr
    with (project / "set.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = {row["path"].rpartition("/")[2]: row["mos"] for row in rows}
    lines = [f"{name},{mos},{-float(mos)}" for name, mos in names.items()]
    (tmp_path / "labels.csv").write_text("\n".join(["name,MOS,other", *lines]) + "\n")
    of_bank = ("--bank", project / "bank")

    manifest = vqbank("predict", tmp_path / "head", project / "set.csv", *of_bank)
    labels = vqbank("predict", tmp_path / "head", tmp_path / "labels.csv", *of_bank)
    other = vqbank(
        "predict", tmp_path / "head", tmp_path / "labels.csv", *of_bank, "--score", "other"
    )

    assert manifest.returncode == labels.returncode == other.returncode == 0, labels.stderr
    told = r"against 24 scores of people: SRCC (-?[\d.]+), KRCC .*, PLCC .*, RMSE [\d.]+"
    found = [re.search(told, run.stderr) for run in (manifest, labels, other)]
    assert all(found), labels.stderr
    srcc = [float(match[1]) for match in found]
    assert srcc[0] == srcc[1] > 0.8
    assert srcc[2] == -srcc[0]
    scores = [
        [line.split("\t")[0] for line in run.stdout.splitlines()] for run in (manifest, labels)
    ]
    assert scores[0] == scores[1]
    (tmp_path / "strange.csv").write_text("name,MOS\nx.mp4,1\ny.mp4,2\n")
    line = refused("predict", tmp_path / "head", tmp_path / "strange.csv", *of_bank, cwd=tmp_path)
    assert "2 of the 2 videos of" in line


def test_an_agreement_that_is_not_defined_is_a_dash_as_in_tables(capsys):
    rated = [Video(f"set/{n}.mp4", Path("x"), mos=float(n)) for n in range(3)]
    say_agreement(Predicted(tuple(rated), np.ones(3)))

    assert "scores of people: SRCC -, KRCC -, PLCC -, RMSE 0.8165" in capsys.readouterr().err


def test_published_weights_of_a_head_score_without_labels(project, tmp_path):
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "ann.fc0.weight": (128, 3), "ann.fc0.bias": (128,),
        "rnn.weight_ih_l0": (96, 128), "rnn.weight_hh_l0": (96, 32),
        "rnn.bias_ih_l0": (96,), "rnn.bias_hh_l0": (96,),
        "q.weight": (1, 32), "q.bias": (1,),
    }  # fmt: skip
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    torch.save(state, tmp_path / "VSFA.pt")
    asked = ("--bank", project / "bank", "--features", "motion.series", "--head", "gru")
    weights = ("--published", tmp_path / "VSFA.pt", "-o", tmp_path / "head")

    made = vqbank("train", *asked, *weights)
    assert made.returncode == 0, made.stderr
    scored = vqbank("predict", tmp_path / "head", project / "set.csv", "--bank", project / "bank")

    assert "published weights, VSFA.pt, not fitted" in made.stdout
    assert scored.returncode == 0, scored.stderr
    assert "outside the training scores" not in scored.stderr
    rows = [line.split("\t") for line in scored.stdout.splitlines()]
    store = FeatureStore(project / "bank")
    videos = [Video(id, Path(path)) for _, id, path in rows]
    table = store.table(videos, {"motion": "motion.series"})
    head = Gru.published(tmp_path / "VSFA.pt", table)
    assert [float(score) for score, *_ in rows] == pytest.approx(head.predict(table), abs=1e-4)
    card = yaml_value((tmp_path / "head" / "card.yaml").read_text(), "yaml", VqbankError)
    assert card["published"]["file"] == "VSFA.pt"
    assert card["trained_on"] is None
    for further, message in [
        (("--head", "svr"), "one head is shipped, not gru, svr"),
        (("--set", "gru.head=svr"), "no official weights of svr are known"),
        (("--set", "gru.head=cagi"), "no official weights of cagi are known"),
        (("--videos", project / "set.csv"), "--published fits nothing: leave --videos out"),
        (("--features", "nss.brisque"), "does not fit this head"),
    ]:
        refused = vqbank("train", *asked, *further, *weights)
        assert refused.returncode == 2
        assert message in refused.stderr


def test_a_table_from_random_weights_says_so(project, tmp_path):
    bank = tmp_path / "bank"
    extract = vqbank(
        "extract", "--videos", project / "set.csv", "--bank", bank,
        "--extractor", "clip", "--weights", "clip=random-tiny",
    )  # fmt: skip
    assert extract.returncode == 0, extract.stderr
    options = ("--videos", project / "set.csv", "--bank", bank)
    options += ("--features", "clip.embedding", "--head", "ridge")

    evaluate = vqbank("evaluate", *options, "--report", tmp_path / "report")
    train = vqbank("train", *options, "-o", tmp_path / "head")
    predict = vqbank("predict", tmp_path / "head", project / "clips/0-0.mp4", "--bank", bank)

    assert evaluate.returncode == train.returncode == predict.returncode == 0, evaluate.stderr
    assert "RANDOM WEIGHTS" in evaluate.stdout
    assert "RANDOM WEIGHTS" in (tmp_path / "report" / "report.html").read_text()
    assert "RANDOM weights" in predict.stderr


def test_without_weights_the_message_names_file_place_and_option(project, tmp_path):
    videos = ("--videos", project / "clips", "--bank", tmp_path / "bank")
    for name, file in [("clip", "open_clip_model.safetensors"), ("slowfast", "SLOWFAST_8x8_R50")]:
        run = vqbank("extract", *videos, "--extractor", name, VQBANK_WEIGHTS=str(tmp_path))

        assert run.returncode == 2
        (line,) = run.stderr.splitlines()
        assert file in line
        assert "https://" in line
        assert f"--weights {name}=PATH" in line


def test_bad_videos_cost_one_line_each_and_the_exit_code(project, tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "page.mp4").write_text("<html></html>")
    whole = (project / "clips/0-0.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    names = ("empty.mp4", "page.mp4", "half.mp4", "gone.mp4")
    good = project / "clips/1-1.mp4"
    manifest = tmp_path / "bad.csv"
    manifest.write_text("path\n" + "\n".join([*names[:2], str(good), *names[2:]]) + "\n")

    run = vqbank("extract", "--videos", manifest, "--bank", tmp_path / "b", "--extractor", "nss")

    assert run.returncode == 1
    lines = [line for line in run.stderr.splitlines() if line.startswith("failed: ")]
    assert sorted(line.split(": ")[1] for line in lines) == sorted(f"bad/{name}" for name in names)
    assert "5 videos: 0 banked before, 1 extracted, 4 failed" in run.stderr
    shown = vqbank("show", tmp_path / "b", f"bad/{good}")
    assert "nss.brisque@" in shown.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,mos\na.mp4,1\na.mp4,2\n", "set.csv:3: id 'set/a.mp4' stands in line 2 already"),
        ("path,mos\na.mp4,good\n", "set.csv:2: mos 'good' is not a number"),
    ],
)
def test_a_bad_manifest_is_one_line_and_nothing_is_written(tmp_path, text, message):
    (tmp_path / "set.csv").write_text(text)

    run = vqbank(
        "extract", "--videos", tmp_path / "set.csv", "--bank", tmp_path / "b", "--extractor", "nss"
    )

    assert run.returncode == 2
    assert run.stderr.splitlines() == [f"error: {tmp_path}/{message}"]
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["extract", "--extractor", "nsss"], "unknown extractor 'nsss'. Did you mean 'nss'?"),
        (["extract"], "no extractors given; set `extractors:` in the recipe, or --extractor"),
        (["evaluate", "--head", "svm"], "no videos given"),
        (["ls", "nowhere"], "nowhere is no bank"),
        (["predict", "nowhere", "a.mp4"], "nowhere holds no head"),
        (["extract", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["extract", "--extractor", "nss", "--device", "cuda:99"], "--device cuda:99: "),
    ],
)
def test_a_command_that_cannot_run_says_why_in_one_line(tmp_path, arguments, message):
    if arguments[0] == "extract" and "--extractor" in arguments:
        (tmp_path / "set.csv").write_text("path\na.mp4\n")
        arguments = [*arguments, "--videos", "set.csv", "--bank", "bank"]
    run = vqbank(*arguments, cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache"))

    assert run.returncode == 2
    (line,) = run.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_the_installed_command_answers():
    vqbank_script = Path(sys.executable).with_name("vqbank")
    run = subprocess.run([vqbank_script, "ls", "nowhere"], capture_output=True, text=True)

    assert run.returncode == 2
    assert run.stderr.startswith("error: nowhere is no bank")


def test_ls_and_show_tell_what_a_bank_holds(project):
    listed = vqbank("ls", project / "bank")
    assert re.search(r"motion\.series@\w{12}.*\b24\b", listed.stdout)

    spec = json.loads(vqbank("show", project / "bank", "nss.brisque").stdout)
    assert spec["identity"]["decoder"] == "pyav"

    video = vqbank("show", project / "bank", "set/clips/0-0.mp4").stdout
    assert '"width": 96' in video
    assert "motion.series@" in video

    ids = vqbank("ls", project / "bank", "nss.brisque").stdout.splitlines()
    assert len(ids) == 24
    assert "set/clips/0-0.mp4" in ids

    unknown = vqbank("show", project / "bank", "nss.brisk")
    assert "Did you mean 'nss.brisque'" in unknown.stderr


def test_heads_and_all_their_parameters_are_listed():
    listed = vqbank("heads").stdout

    assert [line.partition(":")[0] for line in listed.splitlines()] == list(HEADS)
    for name, kind in HEADS.items():
        shown = vqbank("heads", name).stdout
        rows = re.findall(r"^│ (\w+) +│ (.*?) +│ (.*?) +│ (.*?) +│$", shown, re.MULTILINE)
        assert [row[0] for row in rows if row[0]] == sorted(kind.parameter_types())
        assert all(may_be for *_, may_be in rows)
    assert re.search(r"│ width +│ 256 +│ 1024 +│ integer > 0 ", vqbank("heads", "cagi").stdout)
    assert "Did you mean 'gru'?" in vqbank("heads", "GRU").stderr


def test_shipped_recipes_are_listed_by_paper_and_printed(tmp_path):
    lines = vqbank("recipe", VQBANK_WEIGHTS=str(tmp_path), HOME=str(tmp_path)).stdout.splitlines()
    place = lines.index("RQ-VQA (NTIRE 2024):")
    assert lines.index("A2INet (ACM MM 2024):") < place
    table = lines.index("  rqvqa-table6: table 6: which loss")
    assert place < table
    missing, data = lines[table + 1 : table + 3]
    assert "not here: swin=rqvqa, slowfast=kinetics400, qalign=one-align, liqe=liqe" in missing
    assert "to be given: KVQ's training part with scores and contents" in data

    (tmp_path / "SLOWFAST_8x8_R50.pyth").write_text("weights that are at hand")
    here = {"VQBANK_WEIGHTS": str(tmp_path), "HOME": str(tmp_path)}
    documents = {
        one["recipe"]: one for one in json.loads(vqbank("recipe", "--json", **here).stdout)
    }
    assert list(documents) == shipped_recipes()
    assert documents["demo"]["missing_weights"] == []
    lacking = documents["a2inet-table5"]["missing_weights"]
    assert "slowfast=kinetics400" not in lacking
    assert "backbone of torchvision:video/swin3d_t.KINETICS400_V1" in lacking

    text = vqbank("recipe", "rqvqa").stdout
    assert "extractors:" in text
    assert "unknown recipe 'rq'" in vqbank("recipe", "rq").stderr


def test_every_command_stands_in_the_documentation():
    commands = re.findall(r"^  (\w+) ", vqbank("--help").stdout.split("Commands:")[1], re.MULTILINE)
    pages = "".join(
        page.read_text() for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    )

    assert {"demo", "extract", "evaluate", "train", "predict", "ls", "show"} <= set(commands)
    for command in commands:
        assert f"vqbank {command}" in pages, command


def test_every_extractor_and_head_stands_in_the_readme():
    from vqbank.extractors import EXTRACTORS
    from vqbank.regressors import HEADS

    readme = (ROOT / "README.md").read_text()
    for name in (*EXTRACTORS, *HEADS):
        assert f"`{name}`" in readme


# --- words that help


def refused(*arguments, cwd, **environment):
    """The one line of a command that cannot run."""
    run = vqbank(*arguments, cwd=cwd, **environment)
    assert run.returncode == 2, run
    (line,) = run.stderr.splitlines()
    assert line.startswith("error: ")
    assert "[Errno" not in line
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--head", "rigde"], "Did you mean 'ridge'?"),
        (["evaluate", "--head", "ridge", "--splits", "foo"], "unknown splits 'foo'"),
        (["evaluate", "mine.yaml"], "Did you mean 'mlp'?"),
        (["train", "--head", "rigde"], "Did you mean 'ridge'?"),
        (["train", "mine.yaml"], "Did you mean 'mlp'?"),
    ],
)
def test_names_are_checked_before_features(project, tmp_path, arguments, message):
    (tmp_path / "mine.yaml").write_text("heads: {mine: {head: mpl}}\n")
    lacking = ("--videos", project / "set.csv", "--bank", project / "bank")

    line = refused(*arguments, *lacking, "--features", "clip.embedding", cwd=tmp_path)

    assert message in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "a.json"], "a.json cannot be read: No such file or directory"),
        (["results", "none.json"], "none.json cannot be read: No such file or directory"),
        (["results", "."], ". cannot be read: Is a directory"),
        (["golden", "nowhere"], "nowhere"),
        (["extract", "set.csv"], "set.csv is no recipe, which is a .yaml file; --videos takes"),
        (["extract", "--extractor", "nss", "--videos", "a.mp4", "--bank", "b", "--device", "gpu"],
         "--device gpu: a device is cpu, cuda (the first GPU), cuda:1 (the second)"),
        (["predict", "head", "set.csv", "--device", "gpu"], "--device gpu: a device is cpu"),
        (["predict", "nothere", "set.csv"], "nothere holds no head: no such folder; `vqbank train"),
        (["predict", "set.csv", "head"], "set.csv is a file and no head: the head's"),
        (["predict", ".", "set.csv"], ". holds no head: it has no card.yaml"),
        (["predict", "head", "nothere.mp4", "set.csv", "gone.mp4"],
         "there is no such file or folder: nothere.mp4, gone.mp4"),
        (["predict", "head", "labels.txt"], "labels.txt is a label file, whose videos are"),
        (["predict", "head", "labels.txt", "set.csv", "--bank", "b"], "is scored alone"),
        (["predict", "head", "set.csv", "-o", "no/a.csv"], "no/a.csv: there is no folder no"),
        (["predict", "head", "set.csv", "-o", "head"], "--output head is a folder"),
        (["predict", "head", "set.csv", "--format", "cvs"], "Did you mean 'csv'?"),
        (["predict", "head", "set.csv", "--weights", "clip"], "is not of the form NAME=VALUE"),
        (["evaluate", "--json", "no/run.json"], "--json no/run.json: there is no folder no"),
        (["evaluate", "--report", "set.csv"], "--report set.csv is a file; name a folder"),
        (["evaluate", "--report", "no/a.html"], "--report no/a.html: there is no folder no"),
        (["report", "run.json", "-o", "no/a.html"], "--output no/a.html: there is no folder no"),
        (["predict", "head", "set.csv", "--score", "MOS"], "'MOS' is a column of a label file"),
        (["extractors", "slowfats"], "Did you mean 'slowfast'?"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_by_name(tmp_path, arguments, message):
    (tmp_path / "set.csv").write_text("path\na.mp4\n")
    (tmp_path / "labels.txt").write_text("a.mp4 1\nb.mp4 2\n")
    (tmp_path / "head").mkdir()
    (tmp_path / "head" / "card.yaml").touch()

    assert message in refused(*arguments, cwd=tmp_path)


def test_mistakes_that_need_no_network_are_refused_without_loading_any(tmp_path):
    """Torch alone takes seconds."""
    (tmp_path / "set.csv").write_text("path\na.mp4\n")
    (tmp_path / "head").mkdir()
    (tmp_path / "head" / "card.yaml").touch()
    script = """
import sys
from vqbank.pipelines.commands.cli import main
for arguments in (
    ["extract", "set.csv"], ["extract", "nowhere"], ["extract", "--extractor", "nss"],
    ["extract", "--extractor", "nss", "--videos", "set.csv"],
    ["extract", "--extractor", "nss", "--videos", "no.csv", "--bank", "b"],
    ["predict", "nothere", "set.csv"], ["predict", "head", "nothere.mp4"],
    ["predict", "head", "set.csv", "--device", "gpu"],
    ["evaluate"], ["evaluate", "set.csv"], ["train", "--head", "ridge"],
    ["evaluate", "--videos", "set.csv", "--bank", "nowhere"],
    ["ls", "nowhere"], ["show", "nowhere", "nss"], ["status", "nowhere"], ["recipe", "rq"],
    ["--version"],
):
    sys.argv = ["vqbank", *arguments]
    try:
        main()
    except SystemExit as ended:
        heavy = {"torch", "sklearn", "av", "torchvision"} & set(sys.modules)
        print(ended.code, *arguments[:1], *heavy)
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True
    )

    *refusals, version, ended = run.stdout.splitlines()
    assert [line.split()[0] for line in refusals] == ["2"] * 16, run.stdout
    assert all(len(line.split()) == 2 for line in refusals), run.stdout
    assert version == f"vqbank {importlib.metadata.version('vqbank')}"
    assert ended == "0 --version"


def test_a_feature_or_a_video_that_is_not_there_has_a_likeness(project):
    bank = project / "bank"
    for name, message in [
        ("0-0.mp4", "no video '0-0.mp4'. Did you mean the video 'set/clips/0-0.mp4'?"),
        ("clips/0-1.mp4", "Did you mean the video 'set/clips/0-1.mp4'?"),
        ("nss", "Did you mean 'nss.brisque'?"),
    ]:
        assert message in refused("show", bank, name, cwd=project)
    assert "Did you mean 'nss.brisque'?" in refused("ls", bank, "nss", cwd=project)
    line = refused("status", bank, "--video", "0-0.mp4", cwd=project)
    assert "did you mean 'set/clips/0-0.mp4'? ids are dataset/relative-path" in line


def test_what_was_imported_goes_by_its_short_name_in_every_command(tmp_path):
    store = FeatureStore.create(tmp_path / "bank")
    spec = FeatureSpec("imported.videval", (2,), "float32", {"provenance": "unknown"})
    writer = store.writer(spec, provenance={})
    feature = Feature(np.ones((1, 2), np.float32), np.zeros(1), np.zeros(1, np.int64))
    writer.add("set/a.mp4", feature, fingerprint=Fingerprint(1, "0"), probe={})
    writer.commit()

    listed = vqbank("ls", store.path, "videval")
    shown = vqbank("show", store.path, "videval")

    assert listed.stdout == "set/a.mp4\n"
    assert json.loads(shown.stdout)["key"] == spec.key


def test_extractors_and_all_their_parameters_are_listed():
    listed = vqbank("extractors").stdout

    assert [line.partition(":")[0] for line in listed.splitlines()] == list(EXTRACTORS)
    for name, kind in EXTRACTORS.items():
        run = vqbank("extractors", name)
        assert run.returncode == 0, run.stderr
        rows = re.findall(r"^│ ([\w]+) +│ (.*?) +│ (.*?) +│$", run.stdout, re.MULTILINE)
        assert [row[0] for row in rows] == sorted(field.name for field in fields(kind))
        assert all(may_be for *_, may_be in rows), rows
    slowfast = vqbank("extractors", "slowfast").stdout
    assert re.search(r"│ slowfast\.fast +│ 256 +│ float16 +│ usually +│", slowfast)
    assert re.search(r"│ slowfast\.slowfast +│ 2304 +│ float16 +│ if asked for +│", slowfast)
    assert re.search(r"│ chunks +│ rq-vqa +│ rq-vqa, simplevqa, ", slowfast)


def test_no_error_of_the_system_is_shown_with_its_number():
    """`[Errno 2] No such file or directory: 'a.json'` stands nowhere but in Python's own words."""
    of_the_system = {"OSError", "PermissionError", "FileNotFoundError"}
    shown = []
    for room in ("store", "extractors", "regressors", "pipelines"):
        for path in (ROOT / room).rglob("*.py"):
            for handler in ast.walk(ast.parse(path.read_text())):
                if not isinstance(handler, ast.ExceptHandler) or handler.type is None:
                    continue
                caught = {n.id for n in ast.walk(handler.type) if isinstance(n, ast.Name)}
                shown += [
                    f"{path.relative_to(ROOT)}:{node.lineno}"
                    for node in ast.walk(handler)
                    if caught & of_the_system
                    and isinstance(node, ast.FormattedValue)
                    and isinstance(node.value, ast.Name)
                    and node.value.id == handler.name
                ]
    assert shown == []


IMPORTING = """
import signal, sys
from vqbank.pipelines.commands import cli

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "vqbank.pipelines.extraction.status":
            try:
                signal.raise_signal(number)
            except BaseException:
                pass  # as libraries do

sys.meta_path.insert(0, Finder())
number = int(sys.argv[1])
sys.argv[:] = ["vqbank", "status", "absent"]
cli.main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_stopped_while_it_imports_says_so(number):
    run = subprocess.run(
        [sys.executable, "-c", IMPORTING, str(int(number))], capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (130, "stopped\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_stopped_says_so_in_one_line(monkeypatch, number):
    def ended(code):
        raise SystemExit(code)

    monkeypatch.setattr(
        "vqbank.pipelines.extraction.status.show_status",
        lambda *_, **__: signal.raise_signal(number),
    )
    monkeypatch.setattr(os, "_exit", ended)
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    run = vqbank("status", "absent")
    assert (run.returncode, run.stderr) == (130, "stopped\n")
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_interrupt_that_is_ignored_stays_so(monkeypatch):
    seen = []

    def look(*_, **__):
        with stopped_by_signals():
            seen.extend(signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM))

    monkeypatch.setattr("vqbank.pipelines.extraction.status.show_status", look)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        vqbank("status", "absent")
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen[0] == signal.SIG_IGN
    assert callable(seen[1])
