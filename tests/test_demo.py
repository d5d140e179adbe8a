"""The whole main job, on fewer degradations than `make demo` has, and the documentation on it."""

import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import torch
import typer
from rich.console import Console

from vqbank.pipelines.commands.cli import app, main
from vqbank.pipelines.demo import clips as demo_clips
from vqbank.pipelines.demo import demo
from vqbank.pipelines.experiments import experiment
from vqbank.pipelines.manifest import read_videos
from vqbank.pipelines.predict import Scorer
from vqbank.store.bank import FeatureStore

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Run the demo twice on nine scenes with four versions each."""
    folder = tmp_path_factory.mktemp("demo")
    runs = []

    def extract(extraction):
        assert not [outcome for outcome in extraction.run() if outcome.failures]
        runs.append(extraction.decoded_frames)
        return set()

    def evaluate(made: experiment.Experiment):
        records.append(experiment.evaluate(made))
        return records[-1]

    records: list = []
    kept = {"pristine", "crf_47", "blur_2.5", "crf_40"}
    fewer = tuple(d for d in demo_clips.DEGRADATIONS if d.name in kept)
    with pytest.MonkeyPatch.context() as patch, (folder / "log.txt").open("w") as log:
        patch.setattr(demo_clips, "DEGRADATIONS", fewer)
        patch.setattr(demo_clips, "SHOTS", demo_clips.SHOTS[:9])
        for _ in range(2):
            demo.run_demo(folder, Console(file=log), extract=extract, evaluate=evaluate)
    return folder, runs, records


def test_unseen_scenes_are_ranked_and_the_second_run_decodes_nothing(ran):
    folder, decoded, (first, second) = ran

    assert decoded[0] > 0
    assert decoded[1] > 0
    assert decoded[2:] == [0, 0]
    # Four versions of a scene are fewer to learn from than the demo's thirteen, which reach 0.9.
    assert max(head.statistics["srcc"].median for head in first.heads) >= 0.7
    assert [h.per_split["srcc"] for h in first.heads] == [h.per_split["srcc"] for h in second.heads]
    scenes = {v.id: v.scene for v in read_videos(folder / "set" / "manifest.csv")}
    for test in first.tests:
        assert len({scenes[first.ids[row]] for row in test}) >= 3
    assert (folder / "report" / "report.html").exists()


def test_the_demos_head_scores_two_real_videos(ran, shared_data, tmp_path):
    scorer = Scorer(ran[0] / "head", weights={})
    videos = read_videos(shared_data / "clips")
    store = FeatureStore.create(tmp_path / "bank")

    outcomes = list(scorer.extraction(videos, store, device=torch.device("cpu")).run())
    scores = scorer.scores(videos, store, device=torch.device("cpu"))

    assert not any(outcome.failures for outcome in outcomes)
    assert scores.shape == (2,)
    assert np.isfinite(scores).all()


# The pages of documentation, on the demo's set.

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page):
    """The shell commands of a page: (what follows `sh` in the fence, the lines)."""
    for told, text in re.findall(r"^```sh *(.*)\n([\s\S]*?)^```$", page.read_text(), re.MULTILINE):
        yield told, text.splitlines()


def parsed(line):
    """Whether the command line knows every command and option of a line."""
    arguments = shlex.split(line, comments=True)[1:]
    command = typer.main.get_command(app)
    context = click.Context(command)
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        _, command, arguments = command.resolve_command(context, arguments)
        context = click.Context(command, parent=context)
    command.make_parser(context).parse_args(list(arguments))


def run(line, folder):
    """The exit code and output of one line, of which `vqbank` runs in this process."""
    if not line.startswith("vqbank "):
        done = subprocess.run(
            ["bash", "-ec", line], cwd=folder, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr
    told = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", shlex.split(line, comments=True))
        patch.setattr(sys, "stdout", told)
        patch.setattr(sys, "stderr", told)
        with pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code or 0, told.getvalue()


def commands(lines):
    """Lines, those of a here-document with the line that begins it."""
    lines = iter(lines)
    for line in lines:
        if "<<'END'" in line:
            line = "\n".join([line, *iter(lambda: next(lines), "END"), "END"])
        yield line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_does_what_the_page_says(page, ran, tmp_path, monkeypatch):
    monkeypatch.setenv("VQBANK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VQBANK_WEIGHTS", str(tmp_path))
    (tmp_path / "demo").symlink_to(ran[0])
    for told, lines in blocks(page):
        for line in commands(lines):
            if told == "elsewhere":
                parsed(line)
                continue
            code, output = run(line, tmp_path)
            expected = int(told.removeprefix("exit=") or 0) if line.startswith("vqbank ") else 0
            assert code == expected, f"{line}\n{output}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_in_a_sentence_exists(page):
    for line in re.findall(r"`(vqbank [a-z][^`]*)`", page.read_text()):
        parsed(line)
