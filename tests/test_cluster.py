"""Many processes, many machines: Dask's workers write, the client only hands out work."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import cloudpickle
import dask
import distributed
import numpy as np
import pytest
import torch

from extractors import make_extractor
from extractors import video as decoding
from pipelines import cluster
from pipelines.cluster import Order, distribute, jobs_of, local_workers, read_cluster_file
from pipelines.extract import Extraction
from pipelines.manifest import read_videos
from pipelines.parts import part_of
from store.bank import FeatureStore
from store.compare import diff
from store.errors import RecipeError
from store.schema import Video

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
DASK = Path(sys.executable).with_name("dask")
VQBANK = Path(sys.executable).with_name("vqbank")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    for n in range(24):
        rng = np.random.default_rng(n)
        texture = rng.integers(0, 256, (64, 96 + 60, 3), dtype=np.uint8)
        decoding.encode(
            folder / f"{n:02}.mp4", (texture[:, i : i + 96] for i in range(60)), rate=10, crf=30
        )
    return folder


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory):
    store = FeatureStore.create(tmp_path_factory.mktemp("banks") / "whole")
    run = Extraction(
        read_videos(videos),
        [make_extractor("motion")],
        store,
        decoder="pyav",
        device=torch.device("cpu"),
    )
    assert not any(outcome.failures for outcome in run.run())
    return store


def worker(address, folder):
    """With a working directory of its own, and nobody to start it again."""
    folder.mkdir()
    return subprocess.Popen(
        [DASK, "worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"],
        cwd=folder,
        stderr=subprocess.DEVNULL,
    )


def test_a_cluster_over_tcp_ends_though_a_worker_is_killed_and_another_joins(
    videos, whole, tmp_path
):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    host, port = address.removeprefix("tcp://").split(":")
    scheduler = subprocess.Popen(
        [DASK, "scheduler", "--host", host, "--port", port, "--no-dashboard"],
        stderr=subprocess.DEVNULL,
    )
    processes = [worker(address, tmp_path / "one"), worker(address, tmp_path / "two")]
    command = [VQBANK, "extract", "--extractor", "motion", "--scheduler", address]
    command += ["--videos", videos, "--bank", "bank"]
    client = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        commits = tmp_path / "bank" / next(iter(whole.specs())).key / "commits"
        while not commits.is_dir() or not list(commits.glob("*.json")):
            assert client.poll() is None, client.stderr.read()
            time.sleep(0.05)
        processes[0].kill()
        processes.append(worker(address, tmp_path / "three"))
        _, told = client.communicate()
        assert client.returncode == 0, told
    finally:
        for process in [client, scheduler, *processes]:
            process.kill()
            process.wait()

    bank = FeatureStore(tmp_path / "bank")
    assert list(diff(whole, bank)) == []
    hosts = {path.stem for path in commits.glob("*.json")}
    assert len(hosts) > 1  # several portions


def test_any_number_of_workers_makes_the_same_bank(videos, whole, tmp_path):
    """Half by two workers; then, the manifest in another order, the rest by four."""
    listed = [f"{videos.name}/{path.name},{path}" for path in sorted(videos.iterdir())]
    rows = np.random.default_rng(4).permutation(listed)
    for name, some in (("half", rows[:12]), ("all", rows[::-1])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["id,path", *some]) + "\n")
    command = [VQBANK, "extract", "--extractor", "motion", "--bank", tmp_path / "bank"]

    for name, workers in (("half", "2"), ("all", "4")):
        run = [*command, "--videos", tmp_path / f"{name}.csv", "--workers", workers]
        subprocess.run(run, check=True, stderr=subprocess.PIPE)

    assert list(diff(whole, FeatureStore(tmp_path / "bank"))) == []


def test_a_video_that_kills_its_workers_fails_alone(videos, tmp_path):
    """Out of memory, say: here a worker is told to kill itself over one path."""
    store = FeatureStore.create(tmp_path / "bank")
    some = read_videos(videos)[:3]
    extraction = Extraction(
        some, [make_extractor("motion")], store, decoder="pyav", device=torch.device("cpu")
    )
    order = Order.of(extraction, threads=1)
    killer = Video("set/killer.mp4", Path(f"/proc/self/fd/{os.getpid()}"))

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        local_workers(1) as client,
    ):
        client.register_plugin(_Arming(str(killer.path)))
        outcomes = list(distribute(client, order, [some[0], killer, *some[1:]]))

    failed = {outcome.video.id: outcome.failures for outcome in outcomes if outcome.failures}
    assert list(failed) == [killer.id]
    assert all("its worker died each time" in reason for reason in failed[killer.id].values())
    assert len(outcomes) == 4


def test_a_worker_that_is_not_started_again_is_replaced(monkeypatch):
    """Dask's nannies do not start one again that dies while it starts."""
    monkeypatch.setattr(cluster, "RENEWAL_SECONDS", 0.5)
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1s"}),
        local_workers(1) as client,
    ):
        first = client.submit(os.getpid).result(timeout=60)
        (nanny,) = client.cluster.workers.values()
        nanny.status = distributed.core.Status.failed  # with which it leaves a dead worker alone
        os.kill(first, signal.SIGKILL)

        assert client.submit(os.getpid, pure=False).result(timeout=120) != first


def _arm(path):
    """Let this process die when it is asked to decode a path."""
    from extractors.isolated import Decoder

    real = Decoder.open

    def deadly(self, wanted):
        if str(wanted) == path:
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, wanted)

    Decoder.open = deadly


class _Arming(distributed.WorkerPlugin):
    def __init__(self, path):
        self.path = path

    def setup(self, worker):
        _arm(self.path)


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({}, "2/3"),
        (
            {
                "SLURM_ARRAY_TASK_ID": "15",
                "SLURM_ARRAY_TASK_MIN": "10",
                "SLURM_ARRAY_TASK_MAX": "20",
                "SLURM_ARRAY_TASK_STEP": "5",
            },
            "slurm",
        ),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "3"}, "slurm"),
    ],
)
def test_parts_are_read_from_the_option_or_from_slurm(environment, part):
    videos = [Video(str(n), Path(str(n))) for n in range(8)]
    assert [video.id for video in part_of(videos, part, environment)] == ["1", "4", "7"]


@pytest.mark.parametrize("count", [1, 3, 11])
def test_parts_cover_every_video_once(count):
    videos = [Video(str(n), Path(str(n))) for n in range(10)]
    parts = [part_of(videos, f"{i}/{count}") for i in range(1, count + 1)]
    assert sorted(video.id for part in parts for video in part) == sorted(v.id for v in videos)


@pytest.mark.parametrize("part", ["0/3", "4/3", "1", "a/b", "1/0", "slurm"])
def test_a_part_that_is_none_is_refused(part):
    with pytest.raises(RecipeError, match="--part"):
        part_of([], part, {})


def test_a_cluster_file_becomes_the_script_that_slurm_runs(tmp_path):
    file = tmp_path / "slurm.yml"
    file.write_text(
        "system: slurm\njobs: 4\noptions:\n  queue: gpu\n  cores: 8\n  memory: 64GB\n"
        "  walltime: '12:00:00'\n  job_extra_directives: ['--gres=gpu:1']\n"
    )
    assert read_cluster_file(file).jobs == 4
    with jobs_of(file) as cluster:
        script = cluster.job_script()
    for line in ("#SBATCH -p gpu", "#SBATCH --mem=60G", "#SBATCH -t 12:00:00", "--gres=gpu:1"):
        assert line in script


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jobs: 0", "jobs: input should be greater"),
        ("system: cron\njobs: 1", "system: input should be"),
        ("jobs: 1\nqueue: gpu", "queue: extra inputs"),
        ("- jobs", "the file: input should be a valid"),
        ("jobs: 1\noptions: {colour: blue}", "unknown option of slurm 'colour'"),
    ],
)
def test_a_cluster_file_that_says_something_else_is_refused(tmp_path, text, message):
    file = tmp_path / "cluster.yml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=message):
        jobs_of(file)
