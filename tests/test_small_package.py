"""A package that adds an extractor and a head: installed by its entry points, tested by contracts.

The package, `tests/data/small_package`, is installed into a folder, as `pip install --target` does.
"""

import csv
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from vqbank.extractors.video import encode
from vqbank.store.bank import FeatureStore

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tests" / "data" / "small_package"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Of a process that has the package: its modules, and the entry points that pip would write."""
    site = tmp_path_factory.mktemp("site")
    (site / "vqbank_brightness").symlink_to(PACKAGE / "vqbank_brightness")
    information = site / "vqbank_brightness-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: vqbank-brightness\nVersion: 1.0\n"
    )
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    (information / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{name} = {place}\n" for name, place in entries.items())
            for group, entries in project["entry-points"].items()
        )
    )
    paths = [str(site), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run(environment, folder, *command):
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


BROKEN = """
import pytest

from vqbank.testing import ExtractorContract
from vqbank_brightness.brightness import Brightness


class Company(Brightness):
    def build(self, device):
        def colours(clips):
            difference = clips.double() - clips.double().mean()  # of the whole batch
            return {"colours": difference.mean((3, 4)).repeat(1, 1, 2).float()}

        return colours


class TestCompany(ExtractorContract):
    @pytest.fixture(scope="class")
    @classmethod
    def extractor(cls):
        return Company()
"""


def test_a_package_of_its_own_passes_the_contracts_and_a_broken_copy_does_not(
    environment, tmp_path
):
    shutil.copy(PACKAGE / "test_contracts.py", tmp_path)
    (tmp_path / "test_broken.py").write_text(BROKEN)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--tb=short",
        "-rfE",
        "-p",
        "no:cacheprovider",
        "-W",
        "error",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )

    failed = re.findall(r"^(?:FAILED|ERROR) (\w+)\.py::\w+::(\w+)", done.stdout, re.MULTILINE)
    assert {file for file, _ in failed} == {"test_broken"}, done.stdout
    assert ("test_broken", "test_a_clip_does_not_depend_on_its_batch") in failed
    assert "where False = <built-in method equal" in done.stdout  # asserts were rewritten
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 35


def test_its_extractor_and_head_stand_in_commands_as_ours_do(environment, tmp_path):
    rng = np.random.default_rng(0)
    with (tmp_path / "videos.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "mos"])
        for index in range(8):
            frames = rng.integers(0, 30 * (index + 1), (4, 32, 48, 3), np.uint8)
            encode(tmp_path / f"{index}.mp4", frames, rate=10, crf=0)
            table.writerow([f"{index}.mp4", index])
    vqbank = [sys.executable, "-m", "vqbank"]

    assert "Mean and deviation of each colour." in run(environment, tmp_path, *vqbank, "extractors")
    assert "Linear, with a penalty by evidence." in run(environment, tmp_path, *vqbank, "heads")
    run(
        environment, tmp_path, *vqbank, "extract", "--videos", "videos.csv", "--bank", "bank",
        "--extractor", "brightness",
    )  # fmt: skip
    found = FeatureStore(tmp_path / "bank")
    assert [spec.name for spec in found.specs()] == ["brightness.colours"]
    told = run(
        environment, tmp_path, *vqbank, "evaluate", "--videos", "videos.csv", "--bank", "bank",
        "--features", "brightness.colours", "--head", "bayes", "--splits", "random2",
    )  # fmt: skip
    assert "bayes" in told
