"""`import vqbank`: every public name, its examples in order, and that nothing is printed."""

import ast
import asyncio
import csv
import doctest
import inspect
import logging
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

import vqbank
from vqbank.extractors import video as decoding

EXAMPLES = (
    "read_videos", "read_recipe", "extract", "open_bank", "FeatureTable", "make_head", "evaluate",
    "ablate", "train", "load_head", "predict",
)  # fmt: skip
"""In the order of a first session: each may use what those before it left."""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Twelve clips whose score falls with their noise."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "clips").mkdir()
    with (folder / "set.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "mos", "scene"])
        for number in range(12):
            noise = (1, 10, 30)[number % 3]
            rng = np.random.default_rng(number)
            ramp = np.add.outer(np.arange(32), np.arange(48))[..., None]
            pictures = (
                np.clip(ramp + 5 * at + rng.normal(0, noise, (32, 48, 3)), 0, 255).astype("uint8")
                for at in range(6)
            )
            decoding.encode(folder / "clips" / f"{number}.mp4", pictures, rate=6, crf=10)
            rows.writerow([f"clips/{number}.mp4", 81 - noise - number / 10, number // 3])
    (folder / "clips" / "notes.txt").touch()
    return folder


@pytest.fixture(scope="module")
def session(project):
    """What the examples left behind, what they failed at, and what was printed meanwhile."""
    names = {"vqbank": vqbank, "np": np}
    said: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        for name in EXAMPLES:
            text = inspect.getdoc(getattr(vqbank, name)) or ""
            test = doctest.DocTestParser().get_doctest(text, names, name, None, None)
            assert test.examples, f"vqbank.{name} has no example"
            runner.run(test, out=said.append, clear_globs=False)
            names = test.globs
    after = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    return names, "".join(said), handlers == after


def test_every_example_of_a_public_name_gives_what_it_says(session):
    _, failed, _ = session

    assert not failed, failed


def test_every_public_function_and_noun_has_an_example():
    assert {*EXAMPLES, "VqbankError"} == set(vqbank.__all__)
    assert set(vqbank.__all__) <= set(dir(vqbank))
    with pytest.raises(AttributeError, match="has no attribute 'extrakt'"):
        _ = vqbank.extrakt


def test_type_checkers_see_the_names_that_there_are():
    tree = ast.parse(inspect.getsource(vqbank))
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: one.module
        for one in checked.body
        if isinstance(one, ast.ImportFrom)
        for alias in one.names
    }

    assert {name: seen[name] for name in vqbank.__all__} == vqbank._PLACES


def test_import_vqbank_imports_no_other_package():
    code = "import sys, vqbank; print({one.partition('.')[0] for one in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    loaded = set(ast.literal_eval(run.stdout))
    assert loaded.isdisjoint({"numpy", "torch", "typer", "pydantic", "rich", "sklearn"})


def test_a_run_leaves_the_signal_handlers_of_whoever_calls_it(session):
    assert session[2]


def test_nothing_is_printed_and_a_logger_is_told(session, project, tmp_path, capfd, caplog):
    caplog.set_level(logging.INFO, logger="vqbank")
    bank, told = tmp_path / "bank", []
    seen = {"bank": bank, "features": "motion.series", "videos": project / "set.csv"}

    done = vqbank.extract(
        videos=vqbank.read_videos(project / "set.csv"),
        extractors="motion",
        bank=bank,
        watch=lambda outcome: told.append(outcome.video.id),
    )
    again = vqbank.extract(videos=project / "clips", extractors="motion", bank=bank)
    record = vqbank.evaluate(**seen, heads={"linear": {"head": "ridge"}}, splits="kfold2")
    head = vqbank.train(**seen, head="ridge", output=tmp_path / "head")
    predicted = vqbank.predict(tmp_path / "head", project / "set.csv", bank=bank)

    assert capfd.readouterr() == ("", "")
    assert sorted(told) == sorted(done.done)
    assert done.cached == ()
    assert not again.failed
    assert [one.name for one in record.heads] == ["linear"]
    table = vqbank.open_bank(bank).table(predicted.videos, {"motion.series": "motion.series"})
    assert predicted.scores.tolist() == head.predict(table).tolist()
    assert predicted.agreement.n == 12
    assert not predicted.random_weights
    assert "1 files left out that are no videos: 1 .txt" in caplog.text


def test_scores_of_a_head_on_random_weights_say_so(session, project, tmp_path):
    """A caller of Python sees no warning unless a logger is set up."""
    shutil.copytree(project / "head", tmp_path / "head")
    card = tmp_path / "head" / "card.yaml"
    card.write_text(card.read_text().replace("random_weights: false", "random_weights: true"))

    found = [
        vqbank.predict(head, project / "set.csv", bank=project / "bank")
        for head in (tmp_path / "head", project / "head")
    ]

    assert [one.random_weights for one in found] == [True, False]


def test_what_cannot_be_decoded_is_told_and_has_no_score(session, project, tmp_path):
    (tmp_path / "page.mp4").write_text("<html></html>")
    good = project / "clips" / "0.mp4"

    done = vqbank.extract(videos=tmp_path, extractors=["motion"], bank=tmp_path / "bank")
    predicted = vqbank.predict(project / "head", [tmp_path / "page.mp4", good], bank=tmp_path / "b")

    ((video_id, reasons),) = done.failed.items()
    assert video_id.endswith("/page.mp4")
    assert list(reasons) == [done.features["motion.series"]]
    assert done.done == ()
    assert [video.path for video in predicted.videos] == [good]
    assert [video.path for video in predicted.failed] == [tmp_path / "page.mp4"]
    assert [list(why) for why in predicted.reasons.values()] == [list(reasons)]


@pytest.mark.parametrize("where", ["in a thread", "in an event loop"])
def test_a_notebook_may_extract(project, tmp_path, where):
    def run():
        videos = vqbank.read_videos(project / "set.csv")[:2]
        found.append(vqbank.extract(videos=videos, extractors="motion", bank=tmp_path / "bank"))

    async def cell():
        run()

    found: list = []
    if where == "in a thread":
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    else:
        asyncio.run(cell())

    assert len(found[0].done) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vqbank.extract(videos="set.csv", extractors="motoin", bank="b"), "'motion'"),
        (lambda: vqbank.extract(videos="set.csv", extractors="motion"), "no bank given"),
        (lambda: vqbank.extract(videos="set.csv", extractors="motion", bank="b", workers=0),
         "--workers 0"),
        (lambda: vqbank.evaluate(bank="bank", features="motion", videos="set.csv", heads="ridge"),
         "Did you mean 'motion.series'"),
        (lambda: vqbank.evaluate("nowhere.yaml"), "nowhere.yaml cannot be read"),
        (lambda: vqbank.train(output="x", bank="bank", videos="set.csv", head="rigde",
                              features="motion.series"), "Did you mean 'ridge'"),
        (lambda: vqbank.predict("nowhere", "clips"), "nowhere holds no head"),
        (lambda: vqbank.predict("head", "nothing.mp4"), "no such file or folder: nothing.mp4"),
        (lambda: vqbank.open_bank("nowhere"), "nowhere is no bank"),
    ],
)  # fmt: skip
def test_a_mistake_is_an_error_of_ours(session, project, monkeypatch, call, message):
    monkeypatch.chdir(project)

    with pytest.raises(vqbank.VqbankError, match=message):
        call()
    assert not (project / "b").exists()
