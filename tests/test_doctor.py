"""What a machine has and lacks, and lists as JSON documents."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vqbank.extractors import EXTRACTORS
from vqbank.extractors.video import DECODERS, availability
from vqbank.pipelines import doctor
from vqbank.pipelines.commands.cli import app
from vqbank.pipelines.doctor import examined, problems
from vqbank.pipelines.recipe import shipped_recipes
from vqbank.regressors import HEADS
from vqbank.store.bank import FeatureStore
from vqbank.store.schema import FeatureSpec


def listed(*words, code=0):
    run = CliRunner().invoke(app, [*map(str, words), "--json"], catch_exceptions=False)
    assert run.exit_code == code, run.output
    return json.loads(run.stdout)


@pytest.fixture
def wanted(monkeypatch):
    """Says what vqbank asks for."""
    return lambda *lines: monkeypatch.setattr(doctor, "requires", lambda name: list(lines))


def test_this_machine_has_what_its_tests_need(tmp_path):
    found = examined(tmp_path)
    assert set(found["recipes"]) == set(shipped_recipes())
    assert found["recipes"]["demo"] == {"missing_weights": []}
    assert {"pyav", *DECODERS} <= set(found["decoders"])
    assert found["decoders"]["codecs"]["h264"]
    assert found["devices"][0]["name"] == "cpu"
    assert all(place["free_gb"] > 0 for place in found["disk"])
    assert not [line for line in problems(found) if "decoder" in line]


def test_a_library_that_is_absent_or_too_old_is_named(wanted, tmp_path):
    wanted("numpy>=999", "nosuchlibrary>=1", "scipy>=1")
    (line,) = [one for one in problems(examined(tmp_path)) if one.startswith("missing")]
    assert "numpy >=999 (there is " in line
    assert "nosuchlibrary >=1" in line
    assert "scipy" not in line
    assert "pip install 'vqbank'" in line


def test_an_extra_that_nobody_installed_is_no_problem_and_half_of_one_is(wanted, tmp_path):
    nothing = 'nosuchlibrary>=1; extra == "remote"'
    wanted("numpy", nothing)
    assert not [one for one in problems(examined(tmp_path)) if one.startswith("missing")]
    wanted("numpy", nothing, 'scipy; extra == "remote"')
    (line,) = [one for one in problems(examined(tmp_path)) if one.startswith("missing")]
    assert "vqbank[remote]" in line


def test_what_is_for_another_system_is_not_missing(wanted, tmp_path):
    wanted('nosuchlibrary; platform_system == "Plan9"')
    assert examined(tmp_path)["packages"]["base"] == {}


def test_a_decoder_that_does_not_load_says_why(wanted, monkeypatch, tmp_path):
    monkeypatch.setitem(availability._MODULES, "pyav", "nosuchdecoder")
    wanted('av; extra == "extract"')
    (line,) = [one for one in problems(examined(tmp_path)) if "decoder" in one]
    assert "nosuchdecoder" in line


def test_a_folder_of_weights_that_is_not_there_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("VQBANK_WEIGHTS", str(tmp_path / "gone"))
    (place,) = [one for one in examined(tmp_path)["disk"] if one["what"] == "weights"]
    assert place["path"] is None
    assert "gone" in place["why"]


def test_the_command_ends_with_1_where_something_is_to_mend(wanted):
    wanted("numpy>=999")
    run = CliRunner().invoke(app, ["doctor"], catch_exceptions=False)
    assert run.exit_code == 1
    assert "packages, base: 0 of 1, without numpy" in run.stdout
    assert "problem: missing: numpy >=999" in run.stderr
    assert len(listed("doctor", code=1)["problems"]) == 1


def test_a_shell_completes_the_names_of_commands():
    program = Path(sys.executable).with_name("vqbank")
    told = {"_VQBANK_COMPLETE": "complete_bash", "COMP_WORDS": "vqbank ex", "COMP_CWORD": "1"}
    run = subprocess.run(
        [program], env={**os.environ, **told}, capture_output=True, text=True, check=True
    )
    assert set(run.stdout.split()) == {"extract", "extractors", "export"}


def test_lists_are_json_documents_where_asked(tmp_path):
    assert [one["head"] for one in listed("heads")] == list(HEADS)
    assert listed("heads", "gru")["parameters"]["pooling"]["default"] == "hysteresis"
    assert [one["extractor"] for one in listed("extractors")] == list(EXTRACTORS)
    own = listed("extractors", "thumbnail")
    assert own["outputs"][0]["row"] == [3, 96, 96]
    assert own["parameters"]["count"]["default"] == 1
    assert {one["extractor"] for one in listed("weights")} <= set(EXTRACTORS)
    store = FeatureStore.create(tmp_path / "bank")
    spec = FeatureSpec("a.b", (2, 3), "float16", {})
    store.writer(spec, provenance={})
    (feature,) = listed("ls", tmp_path / "bank")
    assert feature == {
        "feature": spec.key, "row": [2, 3], "stored_dtype": "float16", "weights": "none",
        "videos": 0,
    }  # fmt: skip
    assert listed("ls", tmp_path / "bank", "a.b") == []


@pytest.mark.parametrize("name", sorted(HEADS))
def test_every_heads_parameters_are_json(name):
    assert listed("heads", name)["head"] == name


@pytest.mark.parametrize("name", sorted(EXTRACTORS))
def test_every_extractors_parameters_are_json(name):
    assert listed("extractors", name)["extractor"] == name
