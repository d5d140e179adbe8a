"""The same extraction in many processes or on many machines, by Dask.

The client hands out portions of the manifest and sees outcomes; workers decode, compute and commit
to the bank, which all of them see under the same path.  Scheduling, lost workers and workers that
join later are Dask's.
"""

import inspect
import logging
import platform
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from distributed import Client, KilledWorker, LocalCluster, as_completed, get_worker
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tornado.ioloop import PeriodicCallback

from extractors.base import Extractor, WeightedExtractor
from pipelines.extract import Extraction, Outcome
from store.bank import FeatureStore, writing
from store.documents import file_text, yaml_value
from store.errors import BankError, RecipeError, unknown_name
from store.ledger import Ledger
from store.schema import Video

PORTION_VIDEOS = (4, 64)
"""Videos that a worker commits together: at least, unless there are fewer, and at most."""
PORTIONS_PER_WORKER = 8
"""Where there are enough videos, so that the last ones end together."""

RENEWAL_SECONDS = 5
"""After which it is looked whether all workers of this machine are there."""

_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Order:
    """What a worker has to know; the same for all portions of a run."""

    bank: Path
    extractors: tuple[Extractor, ...]
    decoder: str
    device: str
    batch_clips: tuple[tuple[str, int], ...]
    patience_seconds: float
    threads: int | None
    """Cores of a worker; None means as many as Dask gives it threads."""
    keys: tuple[str, ...]
    """What is made, so that nothing that is not in an extractor's fields is mistaken."""

    @classmethod
    def of(cls, extraction: Extraction, *, threads: int | None = None) -> "Order":
        """What this extraction does, wherever its worker's working directory is."""
        return cls(
            extraction.store.path.absolute(),
            tuple(map(_with_absolute_paths, extraction.extractors)),
            extraction.decoder,
            str(extraction.device),
            tuple(extraction.batch_clips.items()),
            extraction.patience_seconds,
            threads,
            _keys(extraction),
        )


class ClusterFile(BaseModel):
    """A batch system that starts workers: the file behind `--cluster`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: Literal["slurm", "pbs", "sge", "lsf", "htcondor", "oar", "moab"] = "slurm"
    jobs: int = Field(ge=1)
    """How many are kept running."""
    options: Mapping[str, Any] = {}
    """Of dask_jobqueue's class for this system, such as queue, cores, memory, walltime."""


@contextmanager
def local_workers(count: int) -> Iterator[Client]:
    """Worker processes on this machine; one that dies is started again, or replaced."""
    with (
        LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            memory_limit=0,  # a worker that is paused for its memory would hang the run
            silence_logs=logging.ERROR,  # it warns of workers that take seconds to stop
        ) as cluster,
        Client(cluster) as client,
    ):
        # A worker that dies while it is started is not started again, and the run would wait for
        # ever.  Dask forgets it in time, and puts another in its place if asked for as many again.
        renewal = PeriodicCallback(lambda: cluster.scale(count), RENEWAL_SECONDS * 1000)
        cluster.loop.add_callback(renewal.start)
        try:
            yield client
        finally:
            cluster.loop.add_callback(renewal.stop)


@contextmanager
def batch_system(path: Path) -> Iterator[Client]:
    """Workers that a batch system starts, as a YAML file says.

    Raises:
        RecipeError: if the file is not of this form, or the batch system does not know an option.
    """
    with jobs_of(path) as cluster, Client(cluster) as client:
        cluster.scale(jobs=read_cluster_file(path).jobs)
        yield client


def jobs_of(path: Path) -> Any:
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
        if option not in known:
            raise RecipeError(f"{path}: {unknown_name(f'option of {file.system}', option, known)}")
    try:
        return kind(**file.options)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{path}: {file.system} cannot use these options: {error}") from error


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


def distribute(
    client: Client, order: Order, videos: Sequence[Video]
) -> Generator[Outcome, None, None]:
    """Run an order over videos; yields every video once, a portion at a time, in any order.

    A portion whose workers died again and again is given out video by video; one that still kills
    its worker is a failure of this video.

    Raises:
        VqbankError: as `Extraction.run` in a worker; what was committed is safe.
    """
    videos = [replace(video, path=video.path.absolute()) for video in videos]
    workers = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
    size = min(
        max(len(videos) // (PORTIONS_PER_WORKER * workers), PORTION_VIDEOS[0]), PORTION_VIDEOS[1]
    )
    portions = [tuple(videos[start : start + size]) for start in range(0, len(videos), size)]
    given = {
        client.submit(run_portion, order, portion, pure=False): portion for portion in portions
    }
    waiting = as_completed(list(given))
    for future in waiting:
        portion = given.pop(future)
        if future.status == "error" and isinstance(future.exception(), KilledWorker):
            if len(portion) > 1:
                for video in portion:
                    again = client.submit(run_portion, order, (video,), pure=False)
                    given[again] = (video,)
                    waiting.add(again)
            else:
                yield _killer(order, portion[0])
            continue
        yield from future.result()
        future.release()


def _with_absolute_paths(extractor: Extractor) -> Extractor:
    if not isinstance(extractor, WeightedExtractor) or not Path(extractor.weights).exists():
        return extractor
    return replace(extractor, weights=str(Path(extractor.weights).absolute()))


def _killer(order: Order, video: Video) -> Outcome:
    reason = f"{video.path}: its worker died each time (out of memory?)"
    ledger = Ledger(order.bank)
    failures = {}
    for key in order.keys:
        with writing(order.bank):
            ledger.append(video=video.id, key=key, status="failed", reason=reason)
        failures[key] = reason
    return Outcome(video, failures, cached=False)


def run_portion(order: Order, videos: Sequence[Video]) -> list[Outcome]:
    """What a worker does: extract some videos and commit them.

    Raises:
        VqbankError: as `Extraction.run`.
    """
    with _ONE_AT_A_TIME:  # a worker may have several threads
        worker = get_worker().name
        if order.device == "cuda" and isinstance(worker, int):  # one of `local_workers`
            order = replace(order, device=f"cuda:{worker % torch.cuda.device_count()}")
        try:
            extraction = _extraction(order)
            extraction.take(videos)
            return list(extraction.run())
        except BaseException:  # one that broke off is not used again
            _extraction.cache_clear()
            raise


@lru_cache(maxsize=1)
def _extraction(order: Order) -> Extraction:
    """Kept, so that a worker loads every network once.

    Raises:
        BankError: if this machine would make something else, because its weights differ.
    """
    extraction = Extraction(
        (),
        order.extractors,
        FeatureStore.create(order.bank),
        decoder=order.decoder,
        device=torch.device(order.device),
        batch_clips=dict(order.batch_clips),
        patience_seconds=order.patience_seconds,
        threads=order.threads or get_worker().state.nthreads,
    )
    if _keys(extraction) != order.keys:
        raise BankError(
            f"{platform.node()} would make {', '.join(_keys(extraction))}, but "
            f"{', '.join(order.keys)} are asked for: its weights or its vqbank are others"
        )
    return extraction


def _keys(extraction: Extraction) -> tuple[str, ...]:
    texts = (extractor.text_spec() for extractor in extraction.extractors)
    return tuple(spec.key for spec in [*extraction.specs, *filter(None, texts)])
