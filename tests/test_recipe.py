"""Recipes say exactly what a run does; anything else in them is refused."""

import re
from importlib.resources import files
from pathlib import Path

import pytest

from vqbank.pipelines.recipe import (
    Recipe,
    read_recipe,
    required,
    shipped_recipe,
    shipped_recipes,
)
from vqbank.pipelines.runs.asked import with_parameters
from vqbank.regressors import make_head
from vqbank.store.errors import RecipeError, VqbankError


def recipe(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_recipe(tmp_path):
    read = read_recipe(recipe(tmp_path, "videos: set.csv\nbank: ../bank\nextractors:\n  nss:\n"))

    assert (read.videos, read.bank) == (tmp_path / "set.csv", tmp_path / "../bank")
    assert read.extractors == {"nss": {}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extractor: {}", r"run.yaml: unknown key 'extractor'. Did you mean 'extractors'"),
        (
            "protocol: {counts: 3}",
            r"run.yaml: protocol: unknown key 'counts'. Did you mean 'count'",
        ),
        (
            "protocol: {count: 0}",
            r"protocol.count: Input should be greater than or equal to 1, got 0",
        ),
        ("protocol: {splits: videval10, count: 5}", "splits videval10 take no count"),
        ('bank: "a\\0b"', r"run.yaml: bank: no file can have this name, got 'a\\x00b'"),
        ('videos: "\\ud800.csv"', r"run.yaml: videos: no file can have this name"),
        ('protocol: {splits: "a\\0.json"}', r"run.yaml: protocol.splits: no file can have this"),
        ("bank: a\nbank: b", r"key 'bank' stands there twice"),
        ("protocol: {seed: -1}", r"protocol.seed: Input should be greater than or equal to 0"),
        ("- a\n- b", r"is not a YAML mapping"),
        ("videos: [", r"run.yaml:1: not YAML"),
        ("heads: svr", r"heads: Input should be a valid dictionary, got 'svr'"),
    ],
)
def test_what_a_recipe_cannot_mean_is_refused(tmp_path, text, message):
    with pytest.raises(RecipeError, match=message):
        read_recipe(recipe(tmp_path, text))


def test_a_recipe_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="cannot be read: No such file"):
        read_recipe(tmp_path / "none.yaml")


def test_a_shipped_recipe_goes_by_its_name_and_a_file_of_that_name_comes_first(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    read = read_recipe(Path("a2inet"))
    assert "motion-blocks" in read.extractors
    assert (read.videos, read.bank) == (None, None)

    Path("a2inet").write_text("bank: mine")
    assert read_recipe(Path("a2inet")).bank == Path("mine")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a2inte", "unknown recipe 'a2inte'. Did you mean 'a2inet'"),
        ("konvid.csv", "is no recipe, .* --videos takes manifests"),
    ],
)
def test_what_is_no_recipe_says_what_would_be(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VqbankError, match=message):
        read_recipe(Path(name))


def test_what_a_command_needs_is_named():
    with pytest.raises(RecipeError, match="no bank given; set `bank:` in the recipe, or --bank"):
        required(Recipe(), "bank", option="--bank")


@pytest.mark.parametrize("shipped", list(files("vqbank.pipelines").joinpath("recipes").iterdir()))
def test_every_shipped_recipe_is_read(tmp_path, shipped):
    read = read_recipe(recipe(tmp_path, shipped.read_text()))

    assert read.features
    assert [make_head(name, **own) for name, own in map(read.head, read.heads)]


@pytest.mark.parametrize("name", shipped_recipes())
def test_heads_that_the_first_lines_of_a_recipe_name_are_its_own(name):
    """`--set LABEL.PARAMETER=VALUE` and `--head LABEL`, as they are to be typed."""
    recipe, text = read_recipe(Path(name)), shipped_recipe(name).replace("\n# ", " ")
    named = re.findall(r"""--set '?([^'=`]+)\.\w+=""", text)
    named += re.findall(r"""--head "([^"]+)\"""", text)
    assert set(named) <= recipe.heads.keys()


def test_one_head_stands_in_several_variants_under_labels_of_their_own(tmp_path):
    read = read_recipe(
        recipe(
            tmp_path,
            "heads: {ridge: , small: {head: mlp, width: 8}, paper: {head: mlp, preset: paper}}",
        )
    )

    assert read.head("ridge") == ("ridge", {})
    assert read.head("small") == ("mlp", {"width": 8})
    assert read.head("paper") == ("mlp", {"preset": "paper"})
    assert "head" in read.heads["small"]  # what is read is not changed by looking


def test_a_head_that_is_no_name_is_refused(tmp_path):
    read = read_recipe(recipe(tmp_path, "heads: {small: {head: [mlp]}}"))

    with pytest.raises(RecipeError, match=r"heads\.small\.head: this should be the name of a head"):
        read.head("small")


# --- parameters of heads beside a recipe


HEADS = Recipe(heads={"ridge": {}, "short gru": {"head": "gru", "epochs": 5}})


def test_parameters_of_heads_are_set_beside_a_recipe():
    settings = ["short gru.epochs=2", "short gru.loss=plcc", "ridge.alphas=[1.0, 2.0]"]

    found = with_parameters(HEADS, settings, device="cuda:1")

    assert found.heads == {
        "ridge": {"alphas": [1.0, 2.0]},
        "short gru": {"head": "gru", "epochs": 2, "loss": "plcc", "device": "cuda:1"},
    }
    assert HEADS.heads["short gru"] == {"head": "gru", "epochs": 5}


@pytest.mark.parametrize(
    ("settings", "more", "message"),
    [
        (["gru.epochs=2"], {}, "unknown head of this run 'gru'"),
        (["epochs=2"], {}, r"--set 'epochs=2' is not of the form HEAD\.PARAMETER=VALUE"),
        (["ridge.folds"], {}, "is not of the form"),
        (["ridge.folds=[1"], {}, r"--set ridge\.folds"),
        ([], {"device": "gpu"}, "a device is cpu, cuda"),
    ],
)
def test_settings_of_another_form_or_head_are_refused(settings, more, message):
    with pytest.raises(VqbankError, match=message):
        with_parameters(HEADS, settings, **more)


def test_a_device_is_refused_where_no_head_trains_networks():
    only = Recipe(heads={"ridge": {}})
    with pytest.raises(RecipeError, match="ridge trains no network; leave it out"):
        with_parameters(only, device="cuda")


def test_the_head_that_another_starts_from_is_found_from_the_recipes_folder(tmp_path):
    path = tmp_path / "sub" / "recipe.yaml"
    path.parent.mkdir()
    path.write_text("heads: { gru: { start: ../large }, ridge: }\n")

    recipe = read_recipe(path)

    assert recipe.heads == {"gru": {"start": str(path.parent / "../large")}, "ridge": {}}


def test_a_preset_goes_to_the_heads_that_have_it():
    found = with_parameters(HEADS, preset="paper").heads
    assert found == {"ridge": {}, "short gru": {"head": "gru", "epochs": 5, "preset": "paper"}}
    with pytest.raises(RecipeError, match="ridge has no such preset"):
        with_parameters(Recipe(heads={"ridge": {}}), preset="paper")
