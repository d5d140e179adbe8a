"""Who works at an extraction: processes of this machine, jobs of a batch system, a Dask cluster.

Every scheduler that is started here takes only who has its certificate, which is made anew for each
run, and encrypts; it opens no port that answers anybody else.
"""

import asyncio
import inspect
import logging
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from multiprocessing import resource_tracker
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Literal

import dask
from distributed import Client, LocalCluster, Scheduler, Worker
from distributed.security import Security
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vqbank.store.documents import file_text, yaml_value
from vqbank.store.errors import RecipeError, WorkersError, in_words, naming, unknown_name

START_SECONDS = 180.0
"""A worker of this machine that is not known to the scheduler for so long is replaced."""
STARTS = 5
"""Workers that may end before they have begun, in a row, before the run is given up."""
LOCAL_SECONDS = 600.0
"""Without any worker of this machine, before the run is given up."""
SCHEDULER_SECONDS = 3600.0
"""Likewise, where other people start workers."""
BATCH_SECONDS = 7 * 24 * 3600.0
"""Likewise, where workers wait in the queue of a batch system."""
LEAVING_SECONDS = 4.0
"""For a worker that is told to stop, to commit what is finished."""
CONNECTING_SECONDS = 10.0

LEAVING = threading.Event()
"""In a worker of this machine: it was told to stop."""
AT_WORK = threading.Lock()
"""In a worker: held by the task that computes."""

_LOOKING_SECONDS = 0.2
_SILENT: Mapping[str, Any] = {
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}
"""Web pages that anybody could read: none,"""
_NO_PAGES: Mapping[str, Any] = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
"""and their port is closed again as soon as Dask has opened it."""


@dataclass(frozen=True)
class Workers:
    """Connected, and how to wait for them."""

    client: Client
    expected: int
    """So many are meant to work."""
    wait_seconds: float
    """Without any of them, before the run is given up."""
    failures: list[Exception]
    """Why no more of them are started."""

    @property
    def here(self) -> int:
        """How many the scheduler knows at this moment."""
        return len(self.client.scheduler_info(n_workers=-1)["workers"])


class ClusterFile(BaseModel):
    """A batch system that starts workers: the file behind `--cluster`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: Literal["slurm", "pbs", "sge", "lsf", "htcondor", "oar", "moab"] = "slurm"
    jobs: int = Field(ge=1)
    """How many are kept running."""
    options: Mapping[str, Any] = {}
    """Of dask_jobqueue's class for this system, such as queue, cores, memory, walltime."""


class LocalWorker(Worker):  # type: ignore[misc]
    """One in a process of this machine."""

    def __init__(self, *arguments: Any, place: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.place = place
        """From 0: where there are several GPUs, which one is its own."""


@contextmanager
def local_workers(number: int) -> Iterator[Workers]:
    """Worker processes on this machine; one that dies is replaced, by one of another name.

    They end with this process, however it ends.
    """
    security = Security.temporary()
    failures: list[Exception] = []
    over = threading.Event()
    with (
        dask.config.set(_SILENT),
        LocalCluster(
            n_workers=0,
            processes=True,
            security=security,
            silence_logs=logging.CRITICAL,
            # One death ends a task: who is to blame is found out by `cluster`.
            scheduler_kwargs={**_NO_PAGES, "allowed_failures": 0},
        ) as cluster,
        Client(cluster) as client,
        tempfile.TemporaryDirectory(prefix="vqbank-workers-", ignore_cleanup_errors=True) as folder,
    ):
        cluster.loop.add_callback(cluster.scheduler.http_server.stop)
        keeper = threading.Thread(
            target=_keep,
            args=(cluster.scheduler, security, number, Path(folder), over, failures),
            name="vqbank-workers",
            daemon=True,
        )
        keeper.start()
        try:
            yield Workers(client, number, LOCAL_SECONDS, failures)
        finally:
            over.set()
            keeper.join()


@dataclass
class _Place:
    """One of the processes that are to be there."""

    number: int
    name: str = ""
    process: ForkServerProcess | None = None
    known: float = 0.0
    """When it was started, or last known to the scheduler."""
    has_begun: bool = False


def _keep(
    scheduler: Scheduler,
    security: Security,
    number: int,
    folder: Path,
    over: threading.Event,
    failures: list[Exception],
) -> None:
    """Keep so many processes running until it is over; then end them."""
    resource_tracker.ensure_running()  # which, where it starts, lets through what is blocked here
    # Children inherit this: Ctrl-C reaches all processes of a terminal, and only the run answers.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    # Forked from a process that has imported everything and done nothing: there in no time.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vqbank.pipelines.extraction.cluster"])
    places = [_Place(place) for place in range(number)]
    starts, in_vain, how = count(), 0, ""
    while not over.wait(_LOOKING_SECONDS):
        for place in places:
            now = time.monotonic()
            if place.process is not None and place.name in scheduler.aliases:
                place.known, place.has_begun, in_vain = now, True, 0
            elif place.process is not None and now - place.known > START_SECONDS:
                place.process.kill()
            if place.process is None or not place.process.is_alive():
                if place.process is not None and not place.has_begun:
                    in_vain, how = in_vain + 1, f"with exit code {place.process.exitcode}"
                if in_vain >= STARTS:
                    failures.append(
                        WorkersError(
                            f"{in_vain} workers in a row ended before they had begun, the last one "
                            f"{how}; what was finished is banked.  Is there memory for as many?  "
                            "See --workers"
                        )
                    )
                    over.set()
                    break
                place.name, place.known, place.has_begun = f"local-{next(starts)}", now, False
                process = context.Process(
                    target=_work,
                    args=(
                        *(scheduler.address, security, place.number, place.name, folder),
                        dict(os.environ),
                    ),
                    daemon=True,
                )
                place.process = None
                try:
                    process.start()
                except (OSError, EOFError) as error:  # no process or no memory is left
                    in_vain, how = in_vain + 1, f"as it could not be started: {in_words(error)}"
                else:
                    place.process = process
    processes = [place.process for place in places if place.process is not None]
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + LEAVING_SECONDS + 1
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        process.kill()
        process.join()


def _work(
    address: str,
    security: Security,
    place: int,
    name: str,
    folder: Path,
    environment: Mapping[str, str],
) -> None:
    """What a process of `local_workers` does."""
    os.environ.clear()  # what it was forked from may have another
    os.environ.update(environment)
    dask.config.refresh()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for noisy in ("distributed", "distributed.worker", "asyncio", "tornado"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL + 1)  # what fails is told to the run

    async def work() -> None:
        worker = LocalWorker(
            address,
            place=place,
            name=name,
            security=security,
            nthreads=1,
            memory_limit=0,  # a worker that is paused for its memory would hang the run
            dashboard=False,
            local_directory=str(folder),
            host="127.0.0.1",  # nobody else has to do with it
            death_timeout=START_SECONDS,
        )
        async with worker:
            worker.http_server.stop()
            leave = threading.Thread(target=_leave, daemon=True)
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, leave.start)
            await worker.finished()

    with dask.config.set(_SILENT):
        asyncio.run(work())


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)


def _leave() -> None:
    """Let the task that is at work commit what is finished, and end this process."""
    LEAVING.set()
    AT_WORK.acquire(timeout=LEAVING_SECONDS)
    os._exit(0)


@contextmanager
def scheduler_at(
    address: str, *, ca_file: Path | None, certificate: Path | None, key: Path | None
) -> Iterator[Workers]:
    """Workers of a Dask cluster that somebody else has started.

    Args:
        address: Of its scheduler.
        ca_file: Certificate of who signed the scheduler's, PEM.
        certificate: Ours, PEM.
        key: Of our certificate, PEM.

    Raises:
        RecipeError: if none answers there, or not to us.
    """
    files = {"--tls-ca-file": ca_file, "--tls-cert": certificate, "--tls-key": key}
    given = {option: file for option, file in files.items() if file is not None}
    if given and len(given) < len(files):
        missing = " and ".join(option for option in files if option not in given)
        raise RecipeError(f"--scheduler {address}: {' and '.join(given)} without {missing}")
    for option, file in given.items():
        if not file.is_file():
            raise RecipeError(f"{option} {file}: there is no such file")
    if given:
        address = address if "://" in address else f"tls://{address}"
        security = Security(
            require_encryption=True,
            tls_ca_file=str(ca_file),
            tls_client_cert=str(certificate),
            tls_client_key=str(key),
        )
    else:
        security = Security()  # what Dask's own configuration says
        if (
            address.startswith("tls://")
            and security.get_tls_config_for_role("client")["cert"] is None
        ):
            raise RecipeError(f"--scheduler {address} needs {', '.join(files)}")
    try:
        connected = Client(address, timeout=CONNECTING_SECONDS, security=security)
    except (OSError, ValueError, RuntimeError) as error:
        raise RecipeError(
            f"--scheduler {address}: none answers there ({in_words(error)})"
        ) from error
    with connected as client:
        yield Workers(client, _count(client), SCHEDULER_SECONDS, [])


def _count(client: Client) -> int:
    return max(1, len(client.scheduler_info(n_workers=-1)["workers"]))


@contextmanager
def batch_system(path: Path, *, shared: Path) -> Iterator[Workers]:
    """Workers that a batch system starts, as a YAML file says.

    Args:
        path: The file.
        shared: A folder that all nodes see; certificates lie in a folder of ours there meanwhile.

    Raises:
        RecipeError: if the file is not of this form, or the batch system does not know an option.
    """
    jobs = read_cluster_file(path).jobs
    with jobs_of(path, shared=shared) as cluster, Client(cluster) as client:
        cluster.scale(jobs=jobs)
        yield Workers(client, jobs, BATCH_SECONDS, [])


@contextmanager
def jobs_of(path: Path, *, shared: Path) -> Iterator[Any]:
    """dask_jobqueue's cluster for a file, without any job yet.

    Raises:
        RecipeError: as `batch_system`.
    """
    import dask_jobqueue

    file = read_cluster_file(path)
    names = {"htcondor": "HTCondorCluster", "moab": "MoabCluster"}
    kind = getattr(dask_jobqueue, names.get(file.system, f"{file.system.upper()}Cluster"))
    # What is refused half-way through making a cluster leaves one that cannot be closed.
    takes = (dask_jobqueue.core.JobQueueCluster, dask_jobqueue.core.Job, kind.job_cls)
    known = {name for each in takes for name in inspect.signature(each.__init__).parameters}
    for option in file.options:
        if option in ("security", "protocol"):
            raise RecipeError(f"{path}: {option}: every run has certificates of its own; leave out")
        if option not in known:
            raise RecipeError(f"{path}: {unknown_name(f'option of {file.system}', option, known)}")
    options = dict(file.options)
    options["scheduler_options"] = {**options.get("scheduler_options", {}), **_NO_PAGES}
    options["job_script_prologue"] = [
        "export DASK_DISTRIBUTED__WORKER__HTTP__ROUTES='[]'",
        *options.get("job_script_prologue", []),
    ]
    given = options.pop("shared_temp_directory", None)
    folder = shared if given is None else Path(os.path.expandvars(given)).expanduser()
    with _certificates(folder) as options["security"]:
        try:
            with dask.config.set(_SILENT):
                cluster = kind(**options)
        except (TypeError, ValueError) as error:
            raise RecipeError(f"{path}: {file.system} cannot use these options: {error}") from error
        with cluster:
            cluster.loop.add_callback(cluster.scheduler.http_server.stop)
            yield cluster


@contextmanager
def _certificates(shared: Path) -> Iterator[Security]:
    """New ones, in files that only this user can read, as long as they are used."""
    made = Security.temporary()
    with tempfile.TemporaryDirectory(prefix=".vqbank-certificates-", dir=shared) as folder:
        files = {}
        for name in ("tls_ca_file", "tls_client_cert", "tls_client_key"):
            files[name] = Path(folder) / f"{name}.pem"
            with naming(files[name]):
                files[name].touch(mode=0o600)
                files[name].write_text(getattr(made, name), encoding="ascii")
        ca_file, certificate, key = map(str, files.values())
        yield Security(
            require_encryption=True,
            tls_ca_file=ca_file,
            **{f"tls_{role}_cert": certificate for role in ("client", "scheduler", "worker")},
            **{f"tls_{role}_key": key for role in ("client", "scheduler", "worker")},
        )


def read_cluster_file(path: Path) -> ClusterFile:
    """The content of a `--cluster` file.

    Raises:
        RecipeError: if it is not of this form.
    """
    try:
        content = yaml_value(file_text(path, RecipeError, what="YAML"), path, RecipeError)
        return ClusterFile.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise RecipeError(f"{path}: {where}: {first['msg'].lower()}") from error
