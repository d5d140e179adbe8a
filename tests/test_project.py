"""The project's own promises: environments agree, walls stand, what is light stays light."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest

from vqbank.store.documents import yaml_value
from vqbank.store.errors import VqbankError

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
BANNED_FOR_HEADS = (
    "av", "decord", "torchcodec", "torchvision", "open_clip", "timm", "transformers", "pyiqa",
    "pytorchvideo",
)  # fmt: skip
SCIKIT_LEARN_HEADS = ("ridge", "svr", "gaussian", "boosting", "blend")


def names(requirements):
    return {
        re.match(r"[A-Za-z0-9_.-]+", line)[0].lower().replace("_", "-") for line in requirements
    }


def constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {line.split("==")[0].lower().replace("_", "-"): line.split("==")[1] for line in lines}


def test_conda_users_get_this_project_with_the_same_extras_and_constraints():
    environment = yaml_value((ROOT / "environment.yml").read_text(), "yaml", VqbankError)
    packages = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    (editable,) = [line for line in pip if line.startswith("--editable")]
    extras = re.search(r"\[(.*)\]", editable)[1].split(",")

    assert set(extras) == set(PROJECT["project"]["optional-dependencies"])
    assert f".[{','.join(extras)}]" in (ROOT / "Makefile").read_text()
    assert "--constraint constraints.txt" in pip
    assert "--constraint constraints.txt" in (ROOT / "Makefile").read_text()
    (python,) = [entry for entry in packages if entry.startswith("python=")]
    lowest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert python == f"python={lowest}"
    assert "ffmpeg" in packages


def test_every_dependency_has_one_tested_version_within_its_range():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    tested = constraints()
    project = PROJECT["project"]
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    for line in wanted:
        requirement = Requirement(line)
        assert tested[canonicalize_name(requirement.name)] in requirement.specifier, line


def test_no_file_names_a_package_index():
    for name in ("constraints.txt", "pyproject.toml", "Makefile", "environment.yml", ".ci/run"):
        text = (ROOT / name).read_text()
        assert "index-url" not in text
        assert "://" not in text


def test_the_laptop_half_asks_for_no_decoder_and_no_backbone():
    base = names(PROJECT["project"]["dependencies"])

    assert base.isdisjoint(name.replace("_", "-") for name in BANNED_FOR_HEADS)
    assert base.isdisjoint({"open-clip-torch", "scikit-image"})


@pytest.fixture(scope="module")
def loaded():
    """Libraries that one process has loaded after the import of each of these modules in turn."""
    modules = (
        "vqbank.pipelines.commands.cli",
        "vqbank.store.bank",
        "vqbank.regressors",
        *(f"vqbank.regressors.{name}" for name in SCIKIT_LEARN_HEADS),
        "vqbank.pipelines.experiments.experiment",
        "vqbank.pipelines.experiments.train",
        "vqbank.pipelines.results.report",
    )
    code = (
        "import importlib, json, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "    loaded = sorted({one.partition('.')[0] for one in sys.modules})\n"
        "    print(json.dumps([name, loaded]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name: set(found) for name, found in map(json.loads, run.stdout.splitlines())}


def test_the_command_line_imports_no_library_before_a_command_runs(loaded):
    """What keeps `vqbank --help` under half a second."""
    heavy = {"numpy", "torch", "sklearn", "rich", "pydantic", "matplotlib", "zarr"}

    assert loaded["vqbank.pipelines.commands.cli"].isdisjoint({*heavy, *BANNED_FOR_HEADS})


def test_the_store_imports_no_learning_library(loaded):
    assert loaded["vqbank.store.bank"].isdisjoint({"torch", "sklearn"})


def test_heads_and_tables_import_no_decoder_and_no_backbone(loaded):
    for module, found in loaded.items():
        assert found.isdisjoint(BANNED_FOR_HEADS), module


def test_heads_of_scikit_learn_are_tried_and_fitted_without_torch(loaded):
    """What `vqbank evaluate --head ridge` would wait for."""
    heads = [f"vqbank.regressors.{name}" for name in SCIKIT_LEARN_HEADS]
    for module in ("vqbank.regressors", *heads, "vqbank.pipelines.experiments.train"):
        assert "sklearn" in loaded[module] or module == "vqbank.regressors"
        assert "torch" not in loaded[module], module


def test_the_walls_hold_when_somebody_breaks_them(tmp_path):
    broken = {
        "regressors/ridge.py": ("vqbank.extractors.views", "regressors is not allowed to import"),
        "store/schema.py": ("torch", "store is not allowed to import torch"),
        "store/errors.py": (
            "vqbank.store.bank",
            "errors is not allowed to import vqbank.store",
        ),
        "pipelines/splits/split.py": (
            "vqbank.extractors",
            "splits is not allowed to import vqbank.extr",
        ),
        "extractors/nss.py": (
            "vqbank.extractors.motion",
            "nss is not allowed to import vqbank.ex",
        ),
        "extractors/stranger.py": ("math", "not listed as layers"),
    }
    for folder in ("vqbank", "store", "extractors", "regressors", "pipelines"):
        shutil.copytree(
            ROOT / folder,
            tmp_path / folder,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for file, (module, _) in broken.items():
        path = tmp_path / file
        path.write_text(f"import {module}\n" + (path.read_text() if path.exists() else ""))

    lint = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "", "COLUMNS": "200"}
    run = subprocess.run(lint, cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert run.returncode == 1, run.stdout + run.stderr
    for file, (_, complaint) in broken.items():
        assert complaint in run.stdout, file


def test_every_import_is_of_the_one_installed_name():
    """From the repository's root the folders are importable too, as modules of their own."""
    bare = re.compile(
        r"\b(?:from|import) (?:store|extractors|regressors|pipelines)\b", re.MULTILINE
    )
    folders = ("store", "extractors", "regressors", "pipelines", "tests", "benchmarks", "docs")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.[pm][yd]")]

    assert len(files) > 200
    assert [path for path in [*files, ROOT / "README.md"] if bare.search(path.read_text())] == []


def test_a_decoder_may_only_be_imported_in_one_place(tmp_path):
    ruff = [Path(sys.executable).with_name("ruff"), "check", "--no-cache", "--stdin-filename"]
    code = "import av\n"
    outside = subprocess.run(
        [*ruff, "extractors/clip.py", "-"], cwd=ROOT, input=code, capture_output=True, text=True
    )
    inside = subprocess.run(
        [*ruff, "extractors/video/packets.py", "-"],
        cwd=ROOT,
        input=code,
        capture_output=True,
        text=True,
    )

    assert "TID251" in outside.stdout
    assert "TID251" not in inside.stdout


def test_make_alone_prints_every_target():
    run = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)

    for target in ("install", "demo", "test", "check"):
        assert re.search(rf"^{target} ", run.stdout, re.MULTILINE)


def test_the_pages_are_built_without_a_warning_and_list_every_file(tmp_path):
    sphinx = [sys.executable, "-m", "sphinx", "-q", "-W", "-d", tmp_path / "doctrees"]
    run = subprocess.run(
        [*sphinx, ROOT / "docs", tmp_path / "html"], capture_output=True, text=True, check=False
    )

    assert run.returncode == 0, run.stderr
    page = (tmp_path / "html" / "architecture.html").read_text()
    for folder in ("store", "extractors", "regressors", "pipelines"):
        for path in (ROOT / folder).rglob("*.py"):
            assert f"{path.relative_to(ROOT)}" in page, path
