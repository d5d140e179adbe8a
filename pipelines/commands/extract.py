"""Features of videos into a bank: `extract`."""

from pathlib import Path
from typing import Annotated

import typer

from vqbank.pipelines.commands.options import Bank, Device, RecipeFile, Videos, Weights, pairs
from vqbank.pipelines.terminal import say


def extract(
    recipe: RecipeFile = None,
    videos: Videos = None,
    bank: Bank = None,
    extractor: Annotated[
        list[str] | None, typer.Option("--extractor", help="Name; may be given several times.")
    ] = None,
    weights: Weights = None,
    decoder: Annotated[
        str | None, typer.Option("--decoder", help="pyav (default), decord or torchcodec.")
    ] = None,
    device: Device = "cpu",
    batch: Annotated[
        list[str] | None,
        typer.Option("--batch", metavar="EXTRACTOR=CLIPS", help="Clips in a batch."),
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="Processes here; on GPUs one each.")
    ] = 1,
    scheduler: Annotated[
        str | None,
        typer.Option("--scheduler", metavar="ADDRESS", help="Dask scheduler, tls://host:8786."),
    ] = None,
    tls_ca_file: Annotated[
        Path | None, typer.Option("--tls-ca-file", help="PEM: who signed the scheduler's.")
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", help="PEM: our certificate for --scheduler.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="PEM: the key to it.")] = None,
    cluster: Annotated[
        Path | None,
        typer.Option("--cluster", metavar="FILE", help="YAML: workers by SLURM, PBS, ..."),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option("--part", metavar="I/N", help="One part of the videos; or `slurm`."),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Only videos that failed before.")
    ] = False,
    allow_failures: Annotated[
        int, typer.Option("--allow-failures", min=0, help="So many do not fail the command.")
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Try a few videos and say what all would cost.")
    ] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, help="Seconds without a frame of a video.")
    ] = 120.0,
) -> None:
    """Run extractors over videos into a bank.  Run it again to go on where it stopped."""
    from vqbank.pipelines.runs.asked import recipe_of
    from vqbank.pipelines.runs.extract import ExtractPlan, Scheduler, Settings, Work, outcomes
    from vqbank.pipelines.stopping import stopped_by_signals
    from vqbank.store.errors import RecipeError

    chosen = recipe_of(recipe, videos=videos, bank=bank, extractors=extractor, decoder=decoder)
    if scheduler is None and any(file is not None for file in (tls_ca_file, tls_cert, tls_key)):
        raise RecipeError("--tls-ca-file, --tls-cert and --tls-key belong to --scheduler")
    asked = None if scheduler is None else Scheduler(scheduler, tls_ca_file, tls_cert, tls_key)
    work = Work(workers, asked, cluster)
    work.check()
    settings = Settings(device, pairs(batch, "--batch"), timeout)
    plan = ExtractPlan.of(chosen, settings, weights=pairs(weights, "--weights"), part=part)
    for entry, keys in plan.keys.items():
        if entry != plan.extractors[entry].name:
            say(f"{entry}: {', '.join(keys)}")
    if dry_run:
        from vqbank.pipelines.extraction.dry_run import bank_as_it_is, estimate, show_estimate

        with stopped_by_signals(), bank_as_it_is(plan.bank) as store:
            show_estimate(estimate(plan.into(store), workers=workers))
        return
    from vqbank.pipelines.extraction.display import show_extraction

    extraction = plan.begin(retry_failed=retry_failed)
    try:
        with stopped_by_signals():
            elsewhere = None if work.is_here else outcomes(extraction, work)
            failed = show_extraction(extraction, elsewhere)
    except KeyboardInterrupt as stopped:
        raise KeyboardInterrupt(
            "stopped: what was finished is banked; the same command goes on from there"
        ) from stopped
    if len(failed) > allow_failures:
        raise typer.Exit(1)
