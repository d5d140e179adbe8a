"""Features of videos into a bank: what is asked for, who works at it, and what came of it."""

import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vqbank.pipelines.log import log
from vqbank.pipelines.manifest import read_videos
from vqbank.pipelines.recipe import Recipe, required
from vqbank.pipelines.runs.asked import AskedRecipe, Entries, check_device, device_of, recipe_of
from vqbank.store.errors import RecipeError, UnknownNameError, unknown_name
from vqbank.store.schema import Video

if TYPE_CHECKING:
    import torch

    from vqbank.extractors.base import Extractor
    from vqbank.pipelines.extraction.extract import Extraction
    from vqbank.pipelines.extraction.one_video import Outcome
    from vqbank.store.bank import FeatureStore


@dataclass(frozen=True, slots=True)
class Scheduler:
    """A Dask scheduler that somebody has started, and the certificates that it asks for."""

    address: str
    """Such as `tls://host:8786`."""
    ca_file: Path | None = None
    """PEM: who signed the scheduler's certificate."""
    certificate: Path | None = None
    """PEM: ours."""
    key: Path | None = None
    """PEM: the key to ours."""


@dataclass(frozen=True, slots=True)
class Work:
    """Who works at an extraction: this process, or at most one of the other three."""

    workers: int = 1
    """Processes of this machine; on GPUs one each."""
    scheduler: Scheduler | None = None
    """Whoever works for a Dask scheduler."""
    cluster: Path | None = None
    """A YAML file: jobs of a batch system."""

    def check(self) -> None:
        """Refuse two at once.

        Raises:
            RecipeError: naming them.
        """
        others = [self.workers > 1, self.scheduler is not None, self.cluster is not None]
        if sum(others) > 1:
            raise RecipeError("--workers, --scheduler and --cluster exclude each other")
        if self.workers < 1:
            raise RecipeError(f"--workers {self.workers}: there is 1 or more")

    @property
    def is_here(self) -> bool:
        """Whether this process does it."""
        return self.workers == 1 and self.scheduler is None and self.cluster is None


@dataclass(frozen=True, slots=True)
class Settings:
    """What changes no number of an extraction."""

    device: str = "cpu"
    """`cpu`, `cuda`, `cuda:1`, ..."""
    batch: Mapping[str, int | str] | None = None
    """Clips in a batch, by extractor, where it is not to be found out."""
    timeout: float = 120.0
    """Seconds without a frame, after which a video has failed."""


@dataclass(frozen=True, slots=True)
class Extracted:
    """What came of an extraction."""

    bank: Path
    """The folder of the bank."""
    features: Mapping[str, str]
    """Keys of what was asked for, by the features' names."""
    done: tuple[str, ...]
    """Ids of the videos that have all of it in the bank."""
    cached: tuple[str, ...]
    """Those of them that had it before."""
    failed: Mapping[str, Mapping[str, str]]
    """Of every other video, by id: the reason by the feature's key."""


@dataclass(frozen=True, slots=True)
class ExtractPlan:
    """An extraction that can begin: all names and weights are there, no model is loaded yet."""

    videos: Sequence[Video]
    extractors: "Mapping[str, Extractor]"
    """By the recipe's entry."""
    keys: Mapping[str, tuple[str, ...]]
    """Of the features of each entry."""
    bank: Path
    decoder: str
    device: "torch.device"
    batch_clips: Mapping[str, int]
    patience_seconds: float

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        settings: Settings,
        *,
        videos: Sequence[Video] | None = None,
        weights: Mapping[str, str] | None = None,
        part: str | None = None,
    ) -> "ExtractPlan":
        """Look up all that a recipe names.

        Args:
            recipe: of the run.
            settings: of the run.
            videos: in place of the recipe's.
            weights: as `vqbank.extractors.make_extractors` takes them.
            part: `i/n` of the videos, or `slurm`.

        Raises:
            RecipeError: if it names no videos, bank or extractors, or an impossible value.
            UnknownNameError: if a name of it is in no table.
            ManifestError: if the manifest cannot be read.
            WeightsError: if weights are not at hand.
        """
        from vqbank.pipelines.extraction.parts import part_of

        entries = required(recipe, "extractors", option="--extractor")
        if videos is None:
            videos = read_videos(required(recipe, "videos", option="--videos"))
        bank = required(recipe, "bank", option="--bank")
        check_device(settings.device)
        if part is not None:
            videos = part_of(videos, part)
        _check_extractors(entries)
        from vqbank.extractors import make_extractors, specs_of, without_tiny  # seconds
        from vqbank.extractors.weights import TINY
        from vqbank.pipelines.entries import check_use

        made = make_extractors(entries, weights=weights)
        extractors = dict(zip(entries, made, strict=True))
        check_use(recipe, extractors)
        lacking = without_tiny(made) if weights and weights.get("all") == TINY else []
        if lacking:
            log.info("no tiny form: %s, of which random weights are taken", ", ".join(lacking))
        keys = {}
        for entry, one in extractors.items():
            specs = specs_of(one, decoder=recipe.decoder)
            keys[entry] = tuple(spec.key for spec in specs.values())
        return cls(
            videos=videos,
            extractors=extractors,
            keys=keys,
            bank=bank,
            decoder=recipe.decoder,
            device=device_of(settings.device),
            batch_clips=_batch_clips(settings.batch or {}, {one.name for one in made}),
            patience_seconds=settings.timeout,
        )

    def into(self, store: "FeatureStore") -> "Extraction":
        """The extraction into a bank."""
        from vqbank.pipelines.extraction.extract import Extraction

        return Extraction(
            self.videos,
            list(self.extractors.values()),
            store,
            decoder=self.decoder,
            device=self.device,
            batch_clips=self.batch_clips,
            patience_seconds=self.patience_seconds,
        )

    def begin(self, *, retry_failed: bool = False) -> "Extraction":
        """The extraction into its bank, made if need be.

        Args:
            retry_failed: only of the videos that failed before.

        Raises:
            BankError: if the bank cannot be made, or is none.
        """
        from vqbank.pipelines.extraction.status import failed_videos
        from vqbank.store.bank import FeatureStore
        from vqbank.store.files import allow_open_files

        allow_open_files()
        extraction = self.into(FeatureStore.create(self.bank))
        if retry_failed:
            failed_before = failed_videos(extraction.store, extraction.specs)
            extraction.take([video for video in self.videos if video.id in failed_before])
        return extraction


def outcomes(extraction: "Extraction", work: Work) -> "Generator[Outcome, None, None]":
    """Do the work; gives every video once, when its fate is known.

    What was computed is committed when the loop over it ends, also when it is left early.

    Args:
        extraction: what is done.
        work: who does it.

    Raises:
        WorkersError: if nobody comes to work, or workers die before they begin.
        VqbankError: as `Extraction.run`.
    """
    if work.is_here:
        yield from extraction.run()
        return
    from joblib import cpu_count

    from vqbank.pipelines.extraction.cluster import Order, distribute
    from vqbank.pipelines.extraction.workers import batch_system, local_workers, scheduler_at

    if work.scheduler is not None:
        at = work.scheduler
        connected = scheduler_at(
            at.address, ca_file=at.ca_file, certificate=at.certificate, key=at.key
        )
        if at.ca_file is None and not at.address.startswith("tls://"):
            log.warning(
                "%s is asked without certificates: whoever reaches it can run code in its workers "
                "and read what is sent; see --tls-ca-file, --tls-cert and --tls-key",
                at.address,
            )
    elif work.cluster is not None:
        connected = batch_system(work.cluster, shared=extraction.store.path.absolute().parent)
    else:
        connected = local_workers(work.workers)
    threads = max(1, cpu_count() // work.workers) if work.workers > 1 else None
    with _quiet_dask(), connected as working:
        order = Order.of(extraction, threads=threads)
        yield from distribute(working, order, extraction.videos, tell=log.info)


def extract(
    recipe: AskedRecipe = None,
    *,
    videos: Sequence[Video] | Path | str | None = None,
    bank: Path | str | None = None,
    extractors: Entries | None = None,
    weights: Mapping[str, str] | None = None,
    decoder: str | None = None,
    device: str = "cpu",
    batch: Mapping[str, int | str] | None = None,
    workers: int = 1,
    scheduler: Scheduler | None = None,
    cluster: Path | None = None,
    part: str | None = None,
    retry_failed: bool = False,
    timeout: float = 120.0,
    watch: "Callable[[Outcome], None] | None" = None,
) -> Extracted:
    """Run extractors over videos into a bank; what is banked already is not computed again.

    Every video is decoded once, whatever is asked of it.  What was finished is banked also where
    this ends by an error or by Ctrl-C; the same call goes on from there.

    Args:
        recipe: a `Recipe`, its file, or the name of one that comes with vqbank.  What is given
            beside it replaces what it says.
        videos: a manifest (.csv), a folder, one video, or `Video`s.
        bank: a folder, made if need be.
        extractors: names, such as "nss" or ["nss", "motion"], or parameters by name.
        weights: a file, a published name or "random", by extractor; by "all" of all.
        decoder: "pyav" (default), "decord" or "torchcodec".
        device: "cpu", "cuda", "cuda:1", ...
        batch: clips in a batch, by extractor; found out by default.
        workers: processes of this machine that share the work; on GPUs one each.
        scheduler: a Dask scheduler whose workers do it instead.
        cluster: a YAML file that says how to start workers by a batch system instead.
        part: only one part of the videos: "i/n", or "slurm" in a job array.
        retry_failed: only those videos that failed before.
        timeout: seconds without a frame, after which a video has failed.
        watch: told of every video, when its fate is known, in this thread.

    Returns:
        Which videos are banked, and why others are not: a video that cannot be decoded raises
        nothing.

    Raises:
        RecipeError: if something is not given, or an impossible value is.
        UnknownNameError: if an extractor, a parameter, a decoder or a batch is of no such name.
        ManifestError: if the manifest cannot be read.
        WeightsError: if weights are not at hand.
        BankError: if the bank cannot be made or written.
        WorkersError: if workers never come, or die before they begin.

    Example:
        >>> done = vqbank.extract(videos="set.csv", extractors=["motion"], bank="bank")
        >>> len(done.done), dict(done.failed)
        (12, {})
        >>> list(done.features)
        ['motion.series']
    """
    work = Work(workers, scheduler, None if cluster is None else Path(cluster))
    work.check()
    path = videos if isinstance(videos, str | Path) else None
    chosen = recipe_of(recipe, videos=path, bank=bank, extractors=extractors, decoder=decoder)
    plan = ExtractPlan.of(
        chosen,
        Settings(device, batch, timeout),
        videos=None if isinstance(videos, str | Path) else videos,
        weights=weights,
        part=part,
    )
    extraction = plan.begin(retry_failed=retry_failed)
    done, cached, failed = [], [], {}
    with closing(outcomes(extraction, work)) as ended:
        for outcome in ended:
            if outcome.failures:
                failed[outcome.video.id] = dict(outcome.failures)
            else:
                done.append(outcome.video.id)
            if outcome.cached:
                cached.append(outcome.video.id)
            if watch is not None:
                watch(outcome)
    return Extracted(
        bank=plan.bank,
        features={spec.name: spec.key for spec in extraction.specs},
        done=tuple(done),
        cached=tuple(cached),
        failed=failed,
    )


def _check_extractors(entries: Mapping[str, Mapping[str, object]]) -> None:
    """Refuse names that there are not, before torch is imported."""
    from vqbank.extractors import EXTRACTORS

    for entry, parameters in entries.items():
        kind = str(parameters.get("extractor", entry))
        if kind not in EXTRACTORS:
            raise UnknownNameError(unknown_name("extractor", kind, EXTRACTORS))


def _batch_clips(given: Mapping[str, int | str], extractors: set[str]) -> dict[str, int]:
    sizes = {}
    for name, clips in given.items():
        if name not in extractors:
            raise UnknownNameError(f"--batch: {unknown_name('extractor', name, extractors)}")
        if not str(clips).isdecimal() or int(clips) < 1:
            raise RecipeError(f"--batch {name}={clips}: a batch has 1 clip or more")
        sizes[name] = int(clips)
    return sizes


@contextmanager
def _quiet_dask() -> Iterator[None]:
    """What fails for good the run itself says."""
    loggers = [logging.getLogger(name) for name in ("asyncio", "distributed")]
    before = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for one, level in zip(loggers, before, strict=True):
            one.setLevel(level)
