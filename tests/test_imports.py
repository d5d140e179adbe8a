"""Threads compute, they do not import: two that load a library at once see half of it."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vqbank.extractors import EXTRACTORS
from vqbank.extractors import video as decoding

ROOT = Path(__file__).parents[1]
PARAMETERS = {
    "backbone": {"model": "timm:resnet18.a1_in1k", "weights": "random"},
    "iqa": {"metric": "topiq_nr", "weights": "random"},
    **{
        name: {"weights": "random-tiny"}
        for name, kind in EXTRACTORS.items()
        if getattr(kind, "has_tiny", False)
    },
}
RUN = """
import json
import os
import sys
import threading
from pathlib import Path

import torch

from vqbank.extractors import make_extractor
from vqbank.pipelines.extraction.extract import Extraction
from vqbank.store.bank import FeatureStore
from vqbank.store.schema import Video


class Watch:
    "Sees every first import."

    def find_spec(self, name, path=None, target=None):
        own = name.partition(".")[0] in sys.stdlib_module_names
        if not own and threading.current_thread() is not threading.main_thread():
            seen.append(name)


path, folder, parameters = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
seen = []
sys.meta_path.insert(0, Watch())


def run(names):
    "True if all is well."
    seen.clear()
    try:
        extractors = [make_extractor(name, **parameters.get(name, {})) for name in names]
        store = FeatureStore.create(folder / "-".join([str(os.getpid()), *names]))
        video = Video("video", path)
        extraction = Extraction([video], extractors, store, decoder="pyav",
                                device=torch.device("cpu"))
        failures = [outcome.failures for outcome in extraction.run()]
    except Exception as error:
        print(names, type(error).__name__, error)
        return False
    if failures != [{}]:
        print(names, failures)
    if seen:
        print(names, "a thread imported", *seen[:9])
    return failures == [{}] and not seen


def run_apart(names):
    "In a process of its own, which has imported this file's modules alone."
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        well = run(names)
        sys.stdout.flush()
        os._exit(not well)
    return os.waitpid(child, 0)[1] == 0


for names in sys.argv[4:]:
    apart = "+" in names
    several = [name for name in names.split("+") if name]
    if not (run_apart if apart else run)(several):
        sys.exit(1)
"""


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Large enough for every metric."""
    path = tmp_path_factory.mktemp("clips") / "a.mp4"
    rng = np.random.default_rng(0)
    noise = (rng.integers(0, 255, (128, 160, 3), dtype=np.uint8) for _ in range(8))
    decoding.encode(path, noise, rate=4, crf=30)
    return path


def wrong_in(video, folder, *runs, cache=None):
    """What went wrong in these runs of an interpreter that has imported no library yet."""
    ran = subprocess.run(
        [sys.executable, "-c", RUN, video, folder, json.dumps(PARAMETERS), *runs],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **({"PYTHONPYCACHEPREFIX": str(cache)} if cache else {})},
    )
    return "" if ran.returncode == 0 else f"{ran.returncode}: {ran.stdout}{ran.stderr}"


def test_no_thread_of_a_run_imports_anything(tmp_path, video):
    """Two pairs that used to see half a module, then every extractor after the other."""
    assert not wrong_in(video, tmp_path, "nss+frames", "clip+slowfast", *EXTRACTORS)


AT_A_WORKER = """
import sys
import threading
from contextlib import suppress
from pathlib import Path

import torch

from vqbank.extractors import make_extractor
from vqbank.pipelines.extraction.cluster import Order, _extraction, _Preparation
from vqbank.store.errors import VqbankError

bank, weights = map(Path, sys.argv[1:])
torch.save({"weight": torch.zeros(1)}, weights)
extractor = make_extractor("quality", weights=str(weights))
order = Order(bank, (extractor,), "pyav", "cpu", (), 60.0, 1, ())
_Preparation(order).setup(None)
seen = []


class Watch:
    "Sees every first import."

    def find_spec(self, name, path=None, target=None):
        seen.append(name)


sys.meta_path.insert(0, Watch())
def task():
    with suppress(VqbankError):  # it makes something, and no key was asked for
        _extraction(order)
    with suppress(VqbankError):  # the file is one of another network
        extractor.build(torch.device("cpu"))
    with suppress(VqbankError):  # none of these is at hand
        [make_extractor("quality", weights=file.choice).specs(decoder="pyav")
         for file in extractor.files]


task = threading.Thread(target=task)
task.start()
task.join()
print(*seen)
"""


def test_no_task_of_a_worker_imports_anything(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", AT_A_WORKER, tmp_path / "bank", tmp_path / "weights.pt"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )

    assert ran.stdout.split() == []
    assert ran.stderr == ""


@pytest.mark.soak
def test_no_thread_imports_anything_whichever_extractor_runs_alone(tmp_path, video):
    assert not wrong_in(video, tmp_path, *(f"{name}+" for name in EXTRACTORS))


@pytest.mark.soak
@pytest.mark.parametrize("pair", list(itertools.combinations(EXTRACTORS, 2)), ids="+".join)
def test_all_pairs_run_in_fresh_interpreters_without_bytecode(tmp_path, video, pair):
    assert not wrong_in(video, tmp_path, "+".join(pair), cache=tmp_path / "cache")
