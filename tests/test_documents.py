"""Documents are what they say, or are refused in a line, whoever wrote them."""

import faulthandler
import math
import os
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqbank.extractors.video import probe
from vqbank.extractors.weights import sha256_of
from vqbank.pipelines.extraction.workers import read_cluster_file
from vqbank.pipelines.labels.reader import read_labels
from vqbank.pipelines.manifest import read_manifest
from vqbank.pipelines.recipe import read_recipe
from vqbank.pipelines.results.records import read_records
from vqbank.pipelines.splits.file import splits_file
from vqbank.regressors.card import read_card
from vqbank.store.documents import file_bytes, json_value, yaml_text, yaml_value
from vqbank.store.errors import BankError, HeadError, RecipeError, VqbankError
from vqbank.store.exchange.incoming import npy_array, refuse_pickle
from vqbank.store.schema import Fingerprint
from vqbank.store.selection import read_selection

CASES = Path(__file__).parent / "data" / "cases"


@pytest.mark.parametrize("text", ["!!bool maybe", "!!null x"])
def test_a_tag_makes_no_truth_and_no_nothing_of_text(text):
    with pytest.raises(RecipeError, match=r"it:1: .* is no value of YAML's core"):
        yaml_value(f"a: {text}", "it", RecipeError)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("-1.5E3", -1500.0),
        ("1_000", 1000),
        ("0x1f", 31),
        ("0o17", 15),
        ("017", 17),
        ("-.inf", -math.inf),
        ("true", True),
        ("~", None),
        ("no", "no"),
        ("on", "on"),
        ("2001-99-99", "2001-99-99"),
        ("1:30", "1:30"),
        ("'1e-5'", "1e-5"),
    ],
)
def test_yaml_is_of_version_1_2(text, value):
    for directive in ("", "%YAML 1.1\n---\n", "%YAML 1.2\n---\n"):
        read = yaml_value(f"{directive}a: {text}", "it", RecipeError)["a"]
        assert read == value
        assert type(read) is type(value)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**200), 10**200)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.sampled_from(["no", "1e-5", "0o17", "null", "2001-01-01", "<<", "=", "~", "a: b", "- a"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(plain)
@settings(max_examples=40)
def test_what_is_written_as_yaml_is_read_as_it_was(value):
    assert yaml_value(yaml_text({"value": value}), "it", RecipeError) == {"value": value}


def test_a_value_that_stands_in_two_places_is_written_twice():
    shared = [1, 2]
    text = yaml_text({"a": shared, "b": shared})
    assert yaml_value(text, "it", RecipeError) == {"a": [1, 2], "b": [1, 2]}


HOSTILE_YAML = [
    ("a: &x [1]\nb: *x", r":2: aliases"),
    ("a: 1\nb: 2\na: 3", r":3: key 'a' stands there twice"),
    ("a: 1\nb: " + "[" * 30_000, r":2: nested more than 64 deep"),
    ("- " * 5000, r":1: nested more than 64 deep"),
    ("? " * 5000, r":1: nested more than 64 deep"),
    ("a: 1\nb: " + "9" * 5000, r":2: a number of more than 300 digits"),
    ("a: 0x" + "f" * 5000, r":1: a number of more than 300 digits"),
    ("[" + "1," * 30_000 + "]", r":1: more than 10,000 keys and values"),
    ("a: b\0", r"not YAML: unacceptable character"),
    ("a: !!python/object/apply:os.system [true]", r":1: .*python/object.* is no value"),
    ("a: !!timestamp 2001-99-99\nb: !mine 1", r":2: !mine is no value"),
    ("[1]: 2", r":1: a key is text"),
    ("a: [", r":1: not YAML"),
    ("--- 1\n--- 2", r":2: not YAML"),
]


@pytest.mark.parametrize(("text", "told"), HOSTILE_YAML)
def test_hostile_yaml_is_refused_with_its_line_in_a_moment(text, told):
    started = time.process_time()
    with pytest.raises(RecipeError, match=told):
        yaml_value(text, "it", RecipeError)
    assert time.process_time() - started < 5


HOSTILE_JSON = [
    (b"[" * 200_000, "nested too deep"),
    (b'{"a":' * 100_000, "nested too deep"),
    (b"[1,\n" + b"9" * 5000 + b"]", "too many digits"),
    (b"[1,\n2,,]", "it:2: not JSON"),
    (b"\xff", "not JSON"),
    (b"[" + b"{}," * 1_100_000 + b"1]", "larger than any that vqbank writes"),
    (b"[" + b"1," * 6_500_000 + b"1]", "larger than any that vqbank writes"),
    (b"\0", "not JSON"),
]


@pytest.mark.parametrize(("text", "told"), HOSTILE_JSON)
def test_hostile_json_is_refused_in_a_moment(text, told):
    started = time.process_time()
    with pytest.raises(RecipeError, match=told):
        json_value(text, "it", RecipeError)
    assert time.process_time() - started < 5


def test_a_file_is_read_no_further_than_it_may_be_long(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(BankError, match=r"sparse has more than 1,000 bytes"):
        file_bytes(tmp_path / "sparse", BankError, most_bytes=1000)
    with pytest.raises(BankError, match="cannot be read"):
        file_bytes(tmp_path, BankError, most_bytes=1000)
    with pytest.raises(BankError, match="cannot be read"):
        file_bytes(Path("a\0b"), BankError, most_bytes=1000)


def pipe(path):
    os.mkfifo(path)
    return path


def device(path):
    path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize("make", [pipe, device])
@pytest.mark.parametrize(
    ("read", "name"),
    [
        (lambda path: file_bytes(path, BankError, most_bytes=1000), "text"),
        (read_labels, "labels.csv"),
        (read_manifest, "manifest.csv"),
        (read_recipe, "recipe.yaml"),
        (read_cluster_file, "slurm.yml"),
        (splits_file, "splits.json"),
        (read_selection, "selection.json"),
        (read_records, "records.json"),
        (Fingerprint.of, "video.mp4"),
        (probe, "video.mp4"),
        (npy_array, "video.npy"),
        (refuse_pickle, "features.mat"),
        (sha256_of, "weights.pth"),
    ],
)
def test_what_is_no_ordinary_file_is_refused_at_once(tmp_path, monkeypatch, make, read, name):
    monkeypatch.setenv("VQBANK_CACHE", str(tmp_path / "cache"))
    faulthandler.dump_traceback_later(60, exit=True)  # who waits for a pipe waits without end
    try:
        _refused(make(tmp_path / name), read)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _refused(path, read):
    with pytest.raises((VqbankError, OSError), match="no ordinary file") as refused:
        read(path)
    assert "\n" not in str(refused.value)


READERS = {
    "recipe.yaml": (lambda path: read_recipe(path), RecipeError),
    "cluster.yml": (lambda path: read_cluster_file(path), RecipeError),
    "card.yaml": (lambda path: read_card(path.parent), HeadError),
    "card.json": (lambda path: read_card(path.parent), HeadError),
    "splits.json": (lambda path: splits_file(path), RecipeError),
    "run.lock": (lambda path: read_selection(path), BankError),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b"a: &x [1]\nb: *x",
        b"[" + b"9" * 5000 + b"]",
        b"\0",
        b"\xff\xfe",
        b"",
        b"[]",
    ],
    ids=["deep", "aliases", "digits", "zero", "utf-16", "empty", "list"],
)
def test_every_reader_of_documents_refuses_what_is_none(tmp_path, name, content):
    read, error = READERS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=name) as raised:
        read(tmp_path / name)
    assert isinstance(raised.value, VqbankError)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", READERS)
def test_every_reader_of_documents_refuses_a_file_without_end(tmp_path, name):
    read, error = READERS[name]
    with (tmp_path / name).open("wb") as file:
        file.truncate(2**40)
    started = time.process_time()
    with pytest.raises(error, match="the most of such a file"):
        read(tmp_path / name)
    assert time.process_time() - started < 5


def test_a_recipe_of_growing_aliases_is_refused_in_a_second(tmp_path):
    shutil.copy(CASES / "recipe_growing_aliases.yaml", tmp_path / "recipe.yaml")
    started = time.process_time()
    with pytest.raises(RecipeError, match=r"recipe.yaml:4: aliases \(\*\) are not read"):
        read_recipe(tmp_path / "recipe.yaml")
    assert time.process_time() - started < 1


def test_a_learning_rate_without_a_point_is_a_number(tmp_path):
    (tmp_path / "recipe.yaml").write_text("heads: {mlp: {learning_rate: 1e-5}}")
    assert read_recipe(tmp_path / "recipe.yaml").heads["mlp"]["learning_rate"] == 1e-5
