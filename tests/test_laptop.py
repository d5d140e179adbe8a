"""From the GPU node to the laptop: copied key folders of a bank are all that heads need.

The laptop is a process in which nothing of extraction can be imported and no socket opened; by
`make soak` it is also an environment that has the base wheel alone.
"""

import csv
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from vqbank.store.bank import FeatureStore
from vqbank.store.documents import yaml_text, yaml_value
from vqbank.store.errors import VqbankError
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint

ROOT = Path(__file__).parents[1]
SHAPES = {"clip.embedding": (6,), "motion.series": (3,), "semantic.frames": (64,)}
HEADS = {
    "ridge": {},
    "mlp": {"epochs": 5, "width": 8},
    "gru": {"epochs": 3, "reduction": 8, "width": 8},
}

LAPTOP = """
import socket, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"{name} is not on this laptop", name=name)

ABSENT = set(sys.argv.pop(1).split(","))
sys.meta_path.insert(0, Absent())

def offline(*arguments, **options):
    raise AssertionError("the laptop is offline")

socket.socket.connect = socket.getaddrinfo = offline
from vqbank.pipelines.commands.cli import app
for line in sys.argv[1:]:
    try:
        app(line.split(), prog_name="vqbank")
    except SystemExit as ended:
        if ended.code:
            raise
"""


@pytest.fixture
def laptop(tmp_path):
    """A manifest, a recipe, and two of the three features that the node has banked."""
    node = FeatureStore.create(tmp_path / "node")
    rng = np.random.default_rng(0)
    content = rng.normal(size=40)
    for name, shape in SHAPES.items():
        spec = FeatureSpec(name, shape, "float32", {"extractor": name.split(".")[0]})
        writer = node.writer(spec, provenance={})
        for row, score in enumerate(content):
            rows = 2 + row % 3 if name == "clip.embedding" else 5
            values = (score + 0.3 * rng.normal(size=(rows, *shape))).astype(np.float32)
            feature = Feature(values, np.arange(rows) / 2, np.arange(rows))
            writer.add(
                f"set/{row}.mp4", feature, fingerprint=Fingerprint(row + 1, f"{row:064x}"), probe={}
            )
        writer.commit()
    folder = tmp_path / "laptop"
    folder.mkdir()
    FeatureStore.create(folder / "bank")
    for name in ("clip.embedding", "motion.series"):
        (key,) = (tmp_path / "node").glob(f"{name}@*")
        shutil.copytree(key, folder / "bank" / key.name)
    with (folder / "set.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "id", "mos", "scene"])
        for row, score in enumerate(content):
            table.writerow([f"set/{row}.mp4", f"set/{row}.mp4", f"{3 + score / 3:.4f}", f"s{row}"])
    recipe = {
        "videos": "set.csv",
        "bank": "bank",
        "features": {"semantic": "clip.embedding", "motion": "motion.series"},
        "heads": HEADS,
        "protocol": {"count": 2, "test_fraction": 0.25},
    }
    (folder / "recipe.yaml").write_text(yaml_text(recipe))
    (tmp_path / "node").rename(tmp_path / "gone")
    return folder


COMMANDS = (
    "evaluate recipe.yaml --report report",
    "train recipe.yaml --head gru -o head",
    "ls bank",
)


def works_on_a_laptop(folder, *commands):
    """Evaluates, reports and ships from what was copied."""
    shown = ""
    for command in commands:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        shown += done.stdout
    assert all(name in shown for name in HEADS)
    assert any((folder / "report").iterdir())
    card = yaml_value((folder / "head" / "card.yaml").read_text(), "yaml", VqbankError)
    assert set(card["keys"]) == {"semantic", "motion"}
    assert set(card["record"]) == {"split", "metrics"}
    assert "torch" in card["software"]
    assert not (folder / "head.checkpoint").exists()
    assert "clip.embedding" in shown


def test_a_head_is_trained_evaluated_and_reported_from_copied_folders_alone(laptop):
    with (ROOT / "pyproject.toml").open("rb") as file:
        extra = tomllib.load(file)["project"]["optional-dependencies"]["extract"]
    assert any(entry.startswith("open_clip") for entry in extra)
    absent = {"av", "decord", "torchcodec", "torchvision", "open_clip", "transformers", "timm",
              "pyiqa", "icecream", "pytorchvideo", "skimage"}  # fmt: skip

    works_on_a_laptop(laptop, [sys.executable, "-c", LAPTOP, ",".join(sorted(absent)), *COMMANDS])


UV = Path(sys.executable).with_name("uv")
ROOMS = ("store", "extractors", "regressors", "pipelines")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of the repository, as what lies in `build/` would go into it."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("vqbank", *ROOMS):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / "tree" / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "tree")
    subprocess.run([UV, "build", "--quiet", "--wheel", "-o", folder, folder / "tree"], check=True)
    (built,) = folder.glob("*.whl")
    return built


def installed(wheel, folder, extras=""):
    """The `bin` of a fresh environment that has the wheel alone."""
    environment = folder / "environment"
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, environment], check=True)
    subprocess.run(
        [
            UV, "pip", "install", "--quiet", "--python", environment / "bin" / "python",
            "--constraint", ROOT / "constraints.txt", f"vqbank{extras} @ {wheel.as_uri()}",
        ],
        check=True,
    )  # fmt: skip
    return environment / "bin"


@pytest.mark.soak
def test_the_base_wheel_is_enough_for_heads(laptop, wheel, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    programs = installed(wheel, tmp_path)
    for module in ("open_clip", "timm", "torchvision", "av", *ROOMS):
        found = subprocess.run(
            [programs / "python", "-P", "-c", f"import {module}"], capture_output=True, check=False
        )
        assert found.returncode != 0, module

    works_on_a_laptop(laptop, *([programs / "vqbank", *line.split()] for line in COMMANDS))


@pytest.mark.soak
def test_the_wheel_with_extract_does_the_demo_beside_folders_of_the_same_names(
    wheel, tmp_path, monkeypatch
):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    programs = installed(wheel, tmp_path, "[extract]")
    beside = tmp_path / "paper"
    for name in ROOMS:
        (beside / name).mkdir(parents=True)
        (beside / name / "__init__.py").write_text("raise ImportError('somebody else's')\n")
    (beside / "script.py").write_text("import vqbank.pipelines.commands.cli as c; c.main()\n")

    subprocess.run([programs / "vqbank", "demo", "demo"], cwd=beside, check=True)
    listed = subprocess.run(
        [programs / "python", "script.py", "ls", "demo/bank"],
        cwd=beside, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "nss.brisque" in listed.stdout
    assert (beside / "demo" / "report" / "report.html").exists()


def test_folders_of_the_same_names_beside_a_script_do_not_disturb_it(tmp_path):
    for name in ROOMS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('somebody else's')\n")
    (tmp_path / "script.py").write_text(
        "from vqbank.pipelines import recipe\nfrom vqbank.extractors import EXTRACTORS\n"
        "print(recipe.shipped_recipe('demo')[:1], len(EXTRACTORS))\n"
    )
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], cwd=tmp_path, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("#")
