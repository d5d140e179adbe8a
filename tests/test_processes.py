"""Work in other processes ends with this one, and at once: signals are really sent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vqbank.pipelines.experiments.processes import in_workers
from vqbank.regressors.progress import Step

SCRIPT = """
import os, sys
from pathlib import Path
import numpy as np
from vqbank.pipelines.experiments.experiment import Experiment, evaluate
from vqbank.pipelines.experiments.fits import Cell
from vqbank.pipelines.experiments.fitting import evaluated
from vqbank.pipelines.experiments.rated import RatedVideos
from vqbank.pipelines.recipe import Protocol
from vqbank.regressors import make_head
from vqbank.store.schema import Video
from vqbank.store.table import FeatureTable

heads = {
    "svr": lambda: make_head("svr", exact_videos=10**6, draws=1),  # libsvm, for hours
    "mlp": lambda: make_head("mlp", epochs=10**6, patience=10**6),
    "large": lambda: make_head("cagi", wiring="concat", epochs=10**6, patience=10**6),
}
name, jobs, n = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = np.random.default_rng(0)
rows = rng.normal(size=(n, 1, 20)).astype(np.float32)
videos = [Video(f"set/{row}.mp4", Path("x")) for row in range(n)]
table = FeatureTable.from_arrays(videos, {"x": list(rows)})
rated = RatedVideos(table, rows[:, 0, 0] + rng.normal(size=n))
cells = [Cell(name, heads[name](), table.roles)]
made = Experiment("t", rated, cells, Protocol(splits="random9"))

def run(watch):
    def told(what):
        print("busy", flush=True)
        watch(what)
    return evaluate(made, jobs=jobs, watch=told)

try:
    evaluated(run, total=9)
finally:
    print("ended", flush=True)  # what the interpreter takes to leave is not ours
"""
SECONDS = 2.0


def family(pid):
    """Its children, theirs, and so on, that are no zombies."""
    children = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:  # it has just ended
                continue
            if state != "Z":
                children.setdefault(int(parent), []).append(int(folder.name))
    found, left = [], [pid]
    while left:
        own = children.get(left.pop(), [])
        found += own
        left += own
    return found


def is_there(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:1]
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
@pytest.mark.parametrize(
    ("name", "jobs", "n", "number"),
    [
        ("svr", 1, 20_000, signal.SIGINT),
        ("large", 2, 200, signal.SIGTERM),
        pytest.param("svr", 2, 20_000, signal.SIGTERM, marks=pytest.mark.soak),
        pytest.param("svr", 2, 20_000, signal.SIGKILL, marks=pytest.mark.soak),
        pytest.param("mlp", 1, 200, signal.SIGINT, marks=pytest.mark.soak),
        pytest.param("large", 2, 200, signal.SIGINT, marks=pytest.mark.soak),
        pytest.param("large", 2, 200, signal.SIGKILL, marks=pytest.mark.soak),
    ],
)
def test_a_signal_ends_an_evaluation_and_all_its_processes(name, jobs, n, number):
    run = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, name, str(jobs), str(n)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    try:
        while True:  # the first thing that is told by a worker
            assert "busy" in run.stdout.readline(), run.stderr.read()
            workers = family(run.pid)
            if workers or jobs == 1:
                break
        if name == "svr":
            run.stdout.readline()  # of the fit itself, after the one that was measured
            workers = family(run.pid)
        time.sleep(0.3)  # inside libsvm
        started = time.monotonic()
        if number == signal.SIGINT:
            os.killpg(run.pid, number)  # as a terminal does
        else:
            run.send_signal(number)
        while run.stdout.readline().strip() not in ("ended", ""):
            pass
        took = time.monotonic() - started
        run.wait(timeout=30)
        left = time.monotonic()
        while any(map(is_there, workers)) and time.monotonic() - left < 20:
            time.sleep(0.05)

        assert took < SECONDS
        assert time.monotonic() - left < SECONDS
        assert bool(workers) == (name != "mlp")
        if number == signal.SIGTERM:
            assert run.returncode != 0
    finally:
        for pid in [run.pid, *family(run.pid)]:
            if is_there(pid):
                os.kill(pid, signal.SIGKILL)
        run.communicate()


def test_results_come_in_order_and_what_workers_tell_is_told_here():
    def double(number, told):
        told(Step("svr", number, 3, "fold"))
        return 2 * number

    told = []

    got = list(in_workers(double, [(3,), (1,), (2,)], jobs=1, watch=told.append))

    assert got == [6, 2, 4]
    assert told == [Step("svr", number, 3, "fold") for number in (3, 1, 2)]


LOST = """
import os, signal, sys, time
from vqbank.pipelines.stopping import left_by_signals, stopped_by_signals

class Going:
    def __del__(self):
        os.kill(os.getpid(), signal.{signal})
        time.sleep(0.01)

with {within}():
    try:
        Going()
        for _ in range(300):
            time.sleep(0.01)
        print("went on")
    except KeyboardInterrupt:
        print("left")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_a_command_has_ended_changes_nothing(number):
    """While Python takes its modules apart, which lasts seconds with large libraries."""
    script = f"""if True:
        import atexit, os
        atexit.register(os.kill, os.getpid(), {int(number)})
        from vqbank.pipelines.commands.cli import main
        main()
    """
    asked = subprocess.run(
        [sys.executable, "-c", script, "heads"], capture_output=True, text=True, timeout=60
    )
    assert (asked.returncode, asked.stderr) == (0, "")
    assert "ridge" in asked.stdout


@pytest.mark.parametrize("within", ["left_by_signals", "stopped_by_signals"])
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_an_interrupt_that_comes_while_an_object_goes_is_not_lost(within, number):
    script = LOST.format(within=within, signal=number)
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("left\n", "", 0)
