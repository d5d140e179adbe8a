"""Tables of names list without importing, and are open to other packages."""

import subprocess
import sys

import pytest

from vqbank.extractors import EXTRACTORS
from vqbank.regressors import HEADS
from vqbank.store.errors import UnknownNameError, VqbankError
from vqbank.store.registry import Registry

HEAVY = ("numpy", "torch", "torchvision", "sklearn", "scipy", "pandas", "av", "transformers")


@pytest.mark.parametrize("table", [EXTRACTORS, HEADS], ids=["extractors", "heads"])
def test_every_name_has_a_class_and_the_first_line_of_its_docstring(table):
    for name, kind in table.items():
        assert kind.name == name
        assert table.text(name) == kind.__doc__.splitlines()[0]
    with pytest.raises(UnknownNameError, match=r"unknown .* 'none of these'"):
        table["none of these"]
    assert table.get("none of these") is None


def test_names_and_their_text_are_told_without_the_libraries_that_classes_need():
    code = f"""
import sys
from vqbank.extractors import EXTRACTORS
from vqbank.regressors import HEADS
for table in (EXTRACTORS, HEADS):
    assert all(table.text(name) for name in table)
print([module for module in {HEAVY!r} if module in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert run.stdout.strip() == "[]"


def test_parameters_outputs_and_weight_files_are_told_without_torch():
    code = f"""
import sys
from vqbank.extractors import EXTRACTORS, make_extractor
from vqbank.extractors.weights import locate
for name in EXTRACTORS:
    extractor = make_extractor(name)
    assert all(output.shape for output in extractor.offers)
    for file in getattr(extractor, "files", ()):
        locate(file)
print([module for module in {HEAVY[1:]!r} if module in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert run.stdout.strip() == "[]"


def package(folder, monkeypatch, place):
    """An installed package with one entry point of a group of its own."""
    (folder / "somebodys.py").write_text(
        'class Head:\n    """A head of somebody else.\n\n    x"""\n'
    )
    information = folder / "somebodys-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[a.group]\ntheirs = {place}\nours = x:X\n")
    monkeypatch.syspath_prepend(folder)
    return Registry("thing", "a.group", {"ours": "vqbank.store.errors:VqbankError"})


def test_another_package_adds_a_name_and_replaces_none_of_ours(tmp_path, monkeypatch):
    table = package(tmp_path, monkeypatch, "somebodys:Head")

    assert list(table) == ["ours", "theirs"]
    assert table["ours"] is VqbankError
    assert table["theirs"].__doc__.startswith("A head of somebody else.")
    assert table.text("theirs") == "A head of somebody else."


def test_a_class_that_its_package_has_from_another_file_is_told_too(tmp_path, monkeypatch):
    (tmp_path / "shelf.py").write_text("from somebodys import Head\n")
    table = package(tmp_path, monkeypatch, "shelf:Head")

    assert table.text("theirs") == table["theirs"].__doc__.splitlines()[0]


def test_what_a_class_of_another_package_lacks_is_named(tmp_path, monkeypatch):
    (tmp_path / "hungry.py").write_text("import no_such_library\n")
    table = package(tmp_path, monkeypatch, "hungry:Head")

    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        table["theirs"]


@pytest.mark.parametrize(
    "place", ["somebodys:Other", "store:Head", "nothing:Head", "no.thing:Head"]
)
def test_a_place_where_nothing_is_names_the_group(tmp_path, monkeypatch, place):
    table = package(tmp_path, monkeypatch, place)

    for ask in (table.__getitem__, table.text):
        with pytest.raises(VqbankError, match=r"thing theirs: there is no class .* of a.group"):
            ask("theirs")
