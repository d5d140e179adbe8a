"""Many processes, many machines: Dask's workers write, the client only hands out work."""

import errno
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import cloudpickle
import distributed
import numpy as np
import psutil
import pytest
import torch
from distributed.security import Security
from typer.testing import CliRunner

from vqbank.extractors import make_extractor
from vqbank.extractors import video as decoding
from vqbank.pipelines.commands.cli import app
from vqbank.pipelines.extraction import cluster, workers
from vqbank.pipelines.extraction.cluster import Order, distribute
from vqbank.pipelines.extraction.extract import Extraction
from vqbank.pipelines.extraction.parts import part_of
from vqbank.pipelines.extraction.workers import (
    Workers,
    batch_system,
    jobs_of,
    local_workers,
    read_cluster_file,
    scheduler_at,
)
from vqbank.pipelines.manifest import read_videos
from vqbank.pipelines.stopping import stopped_by_signals
from vqbank.store.bank import FeatureStore
from vqbank.store.compare import diff
from vqbank.store.errors import RecipeError, WorkersError
from vqbank.store.ledger import read_ledger
from vqbank.store.schema import Video
from vqbank.store.shard import committed_shards

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
DASK = Path(sys.executable).with_name("dask")
VQBANK = Path(sys.executable).with_name("vqbank")
SECONDS = 180
"""For anything, on a machine that has other work."""


def until(condition, seconds=SECONDS):
    """Wait for it; False if it does not come."""
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(autouse=True)
def _bound(request):
    """No test of this file waits for ever: one that does is killed, and says where it was."""
    import faulthandler

    lasts = request.node.get_closest_marker("soak") is not None
    faulthandler.dump_traceback_later((20 if lasts else 3) * SECONDS, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


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


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """What people make for a Dask cluster: the options of its commands, and of ours."""
    folder = tmp_path_factory.mktemp("certificates")
    made = Security.temporary()
    names = {"ca-file": "tls_ca_file", "cert": "tls_client_cert", "key": "tls_client_key"}
    options = []
    for option, name in names.items():
        (folder / f"{option}.pem").write_text(getattr(made, name))
        options += [f"--tls-{option}", str(folder / f"{option}.pem")]
    return options


def worker(address, folder, options):
    """With a working directory of its own, and nobody to start it again."""
    folder.mkdir()
    return subprocess.Popen(
        [DASK, "worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", *options],
        cwd=folder,
        stderr=subprocess.DEVNULL,
    )


def test_a_cluster_with_certificates_ends_though_a_worker_is_killed_and_another_joins(
    videos, whole, tmp_path, certificates
):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"tls://127.0.0.1:{free.getsockname()[1]}"
    host, port = address.removeprefix("tls://").split(":")
    scheduler = subprocess.Popen(
        [DASK, "scheduler", "--host", host, "--port", port, "--no-dashboard", *certificates],
        stderr=subprocess.DEVNULL,
    )
    processes = [worker(address, tmp_path / name, certificates) for name in ("one", "two")]
    command = [VQBANK, "extract", "--extractor", "motion", "--scheduler", address, *certificates]
    command += ["--videos", videos, "--bank", "bank"]
    assert until(lambda: listens(host, int(port)))
    client = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        commits = tmp_path / "bank" / next(iter(whole.specs())).key / "commits"
        assert until(lambda: client.poll() is not None or any(commits.glob("*.json")))
        assert client.poll() is None, client.stderr.read()
        processes[0].kill()
        processes.append(worker(address, tmp_path / "three", certificates))
        _, told = client.communicate(timeout=SECONDS)
        assert client.returncode == 0, told
        assert "warning" not in told
    finally:
        for process in [client, scheduler, *processes]:
            process.kill()
            process.wait()

    bank = FeatureStore(tmp_path / "bank")
    assert list(diff(whole, bank)) == []
    assert len({path.stem for path in commits.glob("*.json")}) > 1  # several portions


def listens(host, port):
    with suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def test_a_scheduler_without_certificates_is_warned_of(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "CONNECTING_SECONDS", 0.2)
    command = ["extract", "--extractor", "motion", "--videos", str(videos)]
    command += ["--bank", str(tmp_path / "bank"), "--scheduler", "tcp://127.0.0.1:9"]

    told = CliRunner().invoke(app, command)

    assert isinstance(told.exception, RecipeError)
    assert "--scheduler tcp://127.0.0.1:9: none answers there" in str(told.exception)
    (line,) = told.stderr.splitlines()
    assert line.startswith("warning: tcp://127.0.0.1:9 is asked without certificates")
    assert "--tls-ca-file" in line


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"key": "key"}, "--tls-key without --tls-ca-file and --tls-cert"),
        ({}, "--scheduler tls://node:8786 needs --tls-ca-file, --tls-cert, --tls-key"),
        ({"ca_file": "ca", "certificate": "no", "key": "key"}, "--tls-cert no: there is no such"),
    ],
)
def test_certificates_are_given_together_and_are_there(tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    for name in ("ca", "key"):
        Path(name).touch()
    files = {"ca_file": None, "certificate": None, "key": None}
    files |= {name: Path(path) for name, path in given.items()}
    with pytest.raises(RecipeError, match=message), scheduler_at("tls://node:8786", **files):
        pass


def test_any_number_of_workers_makes_the_same_bank(videos, whole, tmp_path):
    """Half by two workers; then, the manifest in another order, the rest by three."""
    rows = np.random.default_rng(4).permutation(len(list(videos.iterdir())))
    listed = read_videos(videos)
    order = order_of(listed, tmp_path)

    for count, some in ((2, rows[:12]), (3, rows[::-1])):
        with local_workers(count) as working:
            list(distribute(working, order, [listed[row] for row in some]))

    assert list(diff(whole, FeatureStore(tmp_path / "bank"))) == []


def order_of(videos, folder):
    store = FeatureStore.create(folder / "bank")
    extraction = Extraction(
        videos, [make_extractor("motion")], store, decoder="pyav", device=torch.device("cpu")
    )
    return Order.of(extraction, threads=1)


def test_a_video_that_kills_its_workers_fails_alone(videos, tmp_path, monkeypatch):
    """Out of memory, say: here a worker is told to kill itself over one path."""
    monkeypatch.setattr(cluster, "DEATHS", 2)
    some = read_videos(videos)[:3]
    killer = Video("set/killer.mp4", Path(f"/proc/self/fd/{os.getpid()}"))

    with local_workers(1) as working:
        working.client.register_plugin(_Arming(str(killer.path)))
        order = order_of(some, tmp_path)
        outcomes = list(distribute(working, order, [some[0], killer, *some[1:]]))

    failed = {outcome.video.id: outcome.failures for outcome in outcomes if outcome.failures}
    assert list(failed) == [killer.id]
    assert all("its worker died each time, 2 times" in why for why in failed[killer.id].values())
    assert len(outcomes) == 4


def test_no_video_is_charged_with_a_worker_that_died_before_it_began(videos, tmp_path):
    """More often than a video may kill its workers, each of which holds a task by then."""
    some = read_videos(videos)[:3]
    count = tmp_path / "deaths"
    count.touch()

    with local_workers(1) as working:
        working.client.register_plugin(_Dying(count, cluster.DEATHS + 1))
        outcomes = list(distribute(working, order_of(some, tmp_path), some))

    assert count.stat().st_size == cluster.DEATHS + 1
    assert sorted(outcome.video.id for outcome in outcomes) == [video.id for video in some]
    assert not any(outcome.failures for outcome in outcomes)


def test_a_worker_that_is_told_to_stop_gives_no_half_answer(videos, tmp_path):
    some = read_videos(videos)[:3]
    with local_workers(1) as working:
        working.client.register_plugin(_Leaving(tmp_path / "told"))
        outcomes = list(distribute(working, order_of(some, tmp_path), some))

    assert sorted(outcome.video.id for outcome in outcomes) == [video.id for video in some]
    assert not any(outcome.failures for outcome in outcomes)


class _Leaving(distributed.WorkerPlugin):
    """Tells the first worker to stop, whose answer still arrives."""

    def __init__(self, told):
        self.told = told

    def setup(self, worker):
        from vqbank.pipelines.extraction.workers import LEAVING

        if not self.told.exists():
            self.told.touch()
            LEAVING.set()


class _Dying(distributed.WorkerPlugin):
    """Lets a worker die with a task that it has not begun with, so many times."""

    def __init__(self, count, times):
        self.count = count
        self.times = times

    def setup(self, worker):
        from vqbank.pipelines.extraction import cluster

        def die(order):
            if self.count.stat().st_size < self.times:
                with self.count.open("a") as file:
                    file.write(".")
                os.kill(os.getpid(), signal.SIGKILL)
            return real(order)

        real = cluster._extraction
        cluster._extraction = die


def test_a_worker_that_dies_is_replaced_by_one_of_another_name():
    with local_workers(2) as working:
        known = working.client.cluster.scheduler.aliases
        assert until(lambda: len(known) == 2)
        first = dict(working.client.run(os.getpid))
        before = set(known)
        os.kill(next(iter(first.values())), signal.SIGKILL)

        assert until(lambda: len(known) == 2 and set(known) != before)
        (new,) = set(known) - before
        assert new not in before
        assert working.client.submit(os.getpid).result(timeout=SECONDS) > 0


def test_workers_that_cannot_start_end_the_run(tmp_path, monkeypatch, videos):
    monkeypatch.setattr(workers, "STARTS", 2)
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PRELOAD", "there.is.no.such.module")
    some = read_videos(videos)[:1]
    with (
        pytest.raises(WorkersError, match="2 workers in a row ended before they had begun"),
        local_workers(1) as working,
    ):
        list(distribute(working, order_of(some, tmp_path), some))


def test_workers_for_which_no_process_is_left_end_the_run(tmp_path, monkeypatch, videos):
    def refuse(process):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(workers.ForkServerProcess, "start", refuse)
    some = read_videos(videos)[:1]
    with (
        pytest.raises(WorkersError, match=r"could not be started: .*temporarily unavailable"),
        local_workers(1) as working,
    ):
        list(distribute(working, order_of(some, tmp_path), some))


def test_a_run_does_not_wait_for_ever_for_workers_and_says_that_it_waits(
    tmp_path, monkeypatch, videos
):
    monkeypatch.setattr(cluster, "LOOKING_SECONDS", 0.05)
    monkeypatch.setattr(cluster, "TELLING_SECONDS", 0.2)
    some, told = read_videos(videos)[:1], []
    with local_workers(0) as working:
        nobody = Workers(working.client, 1, 1.0, [])
        with pytest.raises(WorkersError, match="no worker for 0:00:01; what was finished"):
            list(distribute(nobody, order_of(some, tmp_path), some, tell=told.append))
    assert told[0] == "no worker for 0:00:00; given up after 0:00:01"


def test_a_run_stops_though_python_lost_the_interrupt(tmp_path, videos):
    """As it does in the middle of a collection of garbage."""
    some = read_videos(videos)[:1]
    with local_workers(0) as working, stopped_by_signals():
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        nobody = Workers(working.client, 1, SECONDS, [])
        with pytest.raises(KeyboardInterrupt):
            list(distribute(nobody, order_of(some, tmp_path), some))


def test_nobody_without_the_certificate_of_a_run_gets_anything_of_it(tmp_path, caplog):
    """Every port that a run opens, on a scheduler and on a worker, is tried in every way."""
    caplog.set_level(logging.CRITICAL)
    with local_workers(1) as working:
        client = working.client
        assert until(lambda: working.here == 1)
        worker_process = next(iter(client.run(os.getpid).values()))
        listening = {
            one.laddr
            for process in (os.getpid(), worker_process)
            for one in psutil.Process(process).net_connections("inet")
            if one.status == psutil.CONN_LISTEN
        }
        assert {address.ip for address in listening} == {"127.0.0.1"}
        ports = {address.port for address in listening}
        known = {client.scheduler.address, *client.scheduler_info(n_workers=-1)["workers"]}
        assert all(address.startswith("tls://127.0.0.1:") for address in known)
        assert {int(address.rsplit(":", 1)[1]) for address in known} <= ports

        for port in ports:
            for stranger in (None, Security(), Security.temporary()):
                assert not told_by(port, stranger)
            assert not page_of(port)
        address = client.scheduler.address
        with pytest.raises(OSError, match="certificate does not match"):
            distributed.Client(address, security=Security.temporary(), timeout=1)
        with pytest.raises(OSError, match=r"Timed out|reset|closed"):
            distributed.Client(address.replace("tls", "tcp"), timeout=1)
        assert client.submit(sum, [1, 2]).result(timeout=SECONDS) == 3


def told_by(port, security):
    """Bytes that a port sends to one who says something in Dask's own way."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as plain:
        if security is None:
            return said_over(plain)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if security.require_encryption:
            context = security.get_connection_args("client")["ssl_context"]
            context.verify_mode = ssl.CERT_NONE
        with context.wrap_socket(plain) as wrapped:
            return said_over(wrapped)
    return b""


def said_over(connection):
    frame = distributed.protocol.dumps({"op": "identity", "reply": True})
    connection.sendall(b"".join(bytes(part) for part in frame))
    received = connection.recv(4096)
    return b"" if received.startswith(b"\x15\x03") else received  # TLS says what is wrong


def page_of(port):
    """Of a web server."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as plain:
        plain.sendall(b"GET /info/main/workers.html HTTP/1.0\r\n\r\n")
        received = plain.recv(4096)
        return received.startswith(b"HTTP") and b" 404 " not in received.split(b"\r\n")[0]
    return False


# Stopping.


@contextmanager
def run_of_many(videos, folder):
    """`extract --workers 2` over so many videos that it is at work, in a group of its own."""
    rows = [f"{turn}/{path.name},{path}" for turn in range(40) for path in videos.iterdir()]
    (folder / "many.csv").write_text("\n".join(["id,path", *rows]) + "\n")
    command = [VQBANK, "extract", "--extractor", "motion", "--workers", "2"]
    command += ["--videos", folder / "many.csv", "--bank", folder / "bank"]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert until(lambda: run.poll() is not None or len(begun_in(folder / "bank")) > 3)
        assert run.poll() is None, run.stderr.read()
        yield run
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.communicate()


def begun_in(bank):
    with suppress(OSError):
        return [entry for entry in read_ledger(bank) if entry["status"] == "begun"]
    return []


def family_of(process):
    return psutil.Process(process).children(recursive=True)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_run_with_workers_stops_within_seconds_and_leaves_nobody(videos, tmp_path, stop):
    with run_of_many(videos, tmp_path) as run:
        family = family_of(run.pid)
        assert len(family) >= 4  # workers and their decoders

        if stop == signal.SIGINT:
            os.killpg(run.pid, stop)  # as a terminal does
        else:
            run.send_signal(stop)
        begun = time.monotonic()
        _, told = run.communicate(timeout=SECONDS)
        seconds = time.monotonic() - begun

        assert until(lambda: not any(map(is_alive, family)), 10)
    assert run.returncode == 130, told
    assert seconds < 20
    first, *_ = told.splitlines()
    assert first.startswith("stopped: what was finished is banked")
    assert "Traceback" not in told
    store = FeatureStore(tmp_path / "bank")
    assert all(store.video_ids(spec) for spec in store.specs())


def test_workers_and_decoders_end_when_their_run_is_killed(videos, tmp_path):
    with run_of_many(videos, tmp_path) as run:
        family = family_of(run.pid)
        run.kill()
        assert until(lambda: not any(map(is_alive, family)), 20)


@pytest.mark.soak
def test_sixty_kills_of_a_run_with_workers_lose_nothing(videos, tmp_path, capsys):
    """Of the run, its workers and their decoders, several in each run, in bank after bank.

    Nothing that was committed is computed again, and no video is charged with a worker's death.
    """
    listed = [
        Video(f"{turn}/{path.name}", path) for turn in range(6) for path in sorted(videos.iterdir())
    ]
    (tmp_path / "all.csv").write_text("id,path\n" + "".join(f"{v.id},{v.path}\n" for v in listed))
    whole = FeatureStore.create(tmp_path / "whole")
    undisturbed = Extraction(
        listed, [make_extractor("motion")], whole, decoder="pyav", device=torch.device("cpu")
    )
    assert not any(outcome.failures for outcome in undisturbed.run())
    command = [VQBANK, "extract", "--extractor", "motion", "--workers", "2"]
    command += ["--videos", tmp_path / "all.csv", "--bank"]
    rng = np.random.default_rng(15)
    killed = dict.fromkeys(("run", "worker", "decoder"), 0)
    banks = 0
    while sum(killed.values()) < 60:
        banks += 1
        bank = tmp_path / str(banks)
        ended, family = None, []
        while ended != 0:
            run = subprocess.Popen([*command, bank], stderr=subprocess.PIPE, start_new_session=True)
            before = len(begun_in(bank))
            assert until(lambda: run.poll() is not None or len(begun_in(bank)) > before)  # noqa: B023
            for _ in range(int(rng.integers(1, 7))):
                time.sleep(rng.uniform(0, 2))
                if run.poll() is not None or sum(killed.values()) >= 60:
                    break
                family = family_of(run.pid)
                kind, victim = a_victim(run.pid, family, rng)
                with suppress(psutil.NoSuchProcess):
                    victim.kill()
                    killed[kind] += 1
                if kind == "run":
                    break
            _, told = run.communicate(timeout=SECONDS)
            ended = run.returncode
            assert b"Traceback" not in told
            assert until(lambda: not any(map(is_alive, family)))  # noqa: B023
        store = FeatureStore(bank)
        assert list(diff(whole, store)) == []
        (spec,) = store.specs()
        shards = committed_shards(store.path / spec.key, spec)
        assert sum(shard.record["videos"] for shard in shards) == len(listed)
        assert not [e for e in read_ledger(bank) if "its worker died" in e.get("reason", "")]
    with capsys.disabled():
        sys.stdout.write(f"\n{killed} killed in {banks} banks: 0 differ, 0 computed twice\n")


def a_victim(run, family, rng):
    """One of the processes of a run, and what it is; its workers all have one parent."""
    lines = {process: command_line(process) for process in family}
    workers_too = [one for one, line in lines.items() if "forkserver" in line]
    kinds = {
        "run": [psutil.Process(run)],
        "worker": workers_too[1:],
        "decoder": [one for one, line in lines.items() if "isolated.py" in line],
    }
    there = [kind for kind, processes in kinds.items() if processes]
    kind = there[int(rng.integers(len(there)))]
    some = kinds[kind]
    return kind, some[int(rng.integers(len(some)))]


def command_line(process):
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return " ".join(process.cmdline())
    return ""


def is_alive(process):
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _arm(path):
    """Let this process die when it is asked to decode a path."""
    from vqbank.extractors.isolated import Decoder

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
    with jobs_of(file, shared=tmp_path) as jobs:
        script = jobs.job_script()
        words = script.split()
        for option in ("--tls-ca-file", "--tls-cert", "--tls-key"):
            certificate = Path(words[words.index(option) + 1])
            assert certificate.read_text().startswith("-----BEGIN")
            assert certificate.stat().st_mode & 0o077 == 0
            assert certificate.parent.stat().st_mode & 0o077 == 0
        assert jobs.scheduler_address.startswith("tls://")
    assert list(tmp_path.iterdir()) == [file]
    for line in ("#SBATCH -p gpu", "#SBATCH --mem=60G", "#SBATCH -t 12:00:00", "--gres=gpu:1"):
        assert line in script


def test_jobs_of_a_batch_system_get_their_certificates_by_the_shared_folder(
    videos, whole, tmp_path, monkeypatch
):
    """The batch system is two scripts, which start a job's own script; all else is real."""
    programs = {
        "sbatch": 'cp "$1" job.sh; bash job.sh > job.log 2>&1 &\necho "Submitted batch job $!"'
    }
    programs["scancel"] = 'kill "$@"'
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "slurm.yml"
    file.write_text("jobs: 1\noptions: {cores: 1, memory: 4GB, interface: lo}\n")
    some = read_videos(videos)

    with batch_system(file, shared=tmp_path) as working:
        outcomes = list(distribute(working, order_of(some, tmp_path), some))

    assert not any(outcome.failures for outcome in outcomes), (tmp_path / "job.log").read_text()
    assert list(diff(whole, FeatureStore(tmp_path / "bank"))) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jobs: 0", "jobs: input should be greater"),
        ("system: cron\njobs: 1", "system: input should be"),
        ("jobs: 1\nqueue: gpu", "queue: extra inputs"),
        ("- jobs", "the file: input should be a valid"),
        ("jobs: 1\noptions: {colour: blue}", "unknown option of slurm 'colour'"),
        ("jobs: 1\noptions: {security: false}", "security: every run has certificates of its own"),
    ],
)
def test_a_cluster_file_that_says_something_else_is_refused(tmp_path, text, message):
    file = tmp_path / "cluster.yml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=message), jobs_of(file, shared=tmp_path):
        pass
