"""The command line.  Libraries are imported inside the commands, so that `--help` is quick."""

import os
import sys
from collections.abc import Collection
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
import typer.core

from vqbank.pipelines.commands import bank as bank_commands
from vqbank.pipelines.commands import labels as label_commands
from vqbank.pipelines.commands import weights as weight_commands
from vqbank.pipelines.stopping import STOPPED, left_by_signals
from vqbank.pipelines.terminal import counted, say, say_lines
from vqbank.store.errors import VqbankError, naming, refusal

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from vqbank.extractors.base import Extractor
    from vqbank.pipelines.experiments.evaluate import SplitResult, Trial
    from vqbank.pipelines.extraction.extract import Extraction
    from vqbank.pipelines.recipe import Recipe
    from vqbank.pipelines.results.records import Record
    from vqbank.store.bank import FeatureStore
    from vqbank.store.schema import Video


class Commands(typer.core.TyperGroup):
    """Whichever is stopped says so."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that is named."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stopped:
            say(str(stopped) or "stopped", err=True)
            raise


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(bank_commands.app)
app.add_typer(weight_commands.app, name="weights")
app.add_typer(label_commands.labels_app, name="labels")
app.add_typer(label_commands.split_app, name="split")

RecipeFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="[RECIPE]",
        help="YAML file, or a name that `vqbank recipe` lists; options override it.",
    ),
]
Videos = Annotated[
    Path | None, typer.Option("--videos", help="Manifest (.csv), folder of videos, or one video.")
]
Bank = Annotated[Path | None, typer.Option("--bank", help="Folder of the bank.")]
Weights = Annotated[
    list[str] | None,
    typer.Option(
        "--weights",
        metavar="EXTRACTOR=CHOICE",
        help="A file, a published name, or `random`; `all=random` for every one.",
    ),
]
LabelFile = Annotated[
    Path | None,
    typer.Option("--labels", help="Label file of any layout, in place of --videos."),
]
Score = Annotated[str | None, typer.Option("--score", help="Column of --labels that is the MOS.")]
Missing = Annotated[
    str | None,
    typer.Option("--missing", help="Videos of a manifest without a feature: stop, or drop them."),
]
Features = Annotated[
    list[str] | None,
    typer.Option("--features", metavar="[ROLE=]NAME[@KEY]", help="Banked features that heads see."),
]
Device = Annotated[str, typer.Option("--device", help="`cpu`, `cuda`, `cuda:1`, ...")]
SEEN_WEIGHTS = "Of the features, where a bank has those of several: as `extract` was told."


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - as Typer calls it
    from importlib.metadata import version

    if wanted:
        say(f"vqbank {version('vqbank')}")
        raise typer.Exit


@app.callback()
def vqbank(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print it and exit."),
    ] = False,
) -> None:
    """Bank frozen video-quality features once; train, ablate and ship light heads from it."""
    from vqbank.store.files import allow_open_files

    allow_open_files()


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where everything goes.")] = Path("demo"),
) -> None:
    """Make a small data set, bank its features, train heads, write a report, score a new video."""
    from vqbank.pipelines.console import console
    from vqbank.pipelines.demo.demo import run_demo
    from vqbank.pipelines.extraction.display import show_extraction

    run_demo(folder, console(err=True), extract=show_extraction, evaluate=_show_trial)


@app.command()
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
    from vqbank.pipelines.extraction.parts import part_of
    from vqbank.pipelines.manifest import read_videos
    from vqbank.pipelines.recipe import required
    from vqbank.store.bank import FeatureStore
    from vqbank.store.errors import RecipeError

    chosen = _recipe(recipe, videos=videos, bank=bank, decoder=decoder)
    if extractor:
        chosen = chosen.model_copy(
            update={"extractors": {name: chosen.extractors.get(name, {}) for name in extractor}}
        )
    wanted = required(chosen, "extractors", option="--extractor")
    source = read_videos(required(chosen, "videos", option="--videos"))
    folder = required(chosen, "bank", option="--bank")
    _check_device(device)
    if part is not None:
        source = part_of(source, part)
    if sum([workers > 1, scheduler is not None, cluster is not None]) > 1:
        raise RecipeError("--workers, --scheduler and --cluster exclude each other")
    tls = (tls_ca_file, tls_cert, tls_key)
    if scheduler is None and any(file is not None for file in tls):
        raise RecipeError("--tls-ca-file, --tls-cert and --tls-key belong to --scheduler")
    from vqbank.extractors import make_extractors, specs_of  # seconds
    from vqbank.pipelines.entries import check_use
    from vqbank.pipelines.extraction.extract import Extraction

    choices = _pairs(weights, "--weights")
    extractors = make_extractors(wanted, weights=choices)
    check_use(chosen, dict(zip(wanted, extractors, strict=True)))
    _say_without_tiny(choices, extractors)
    for entry, one in zip(wanted, extractors, strict=True):
        specs = specs_of(one, decoder=chosen.decoder)  # missing weights stop before a bank is made
        if entry != one.name:
            say(f"{entry}: {', '.join(spec.key for spec in specs.values())}")
    sizes = _batch_clips(batch, {one.name for one in extractors})

    def extraction_into(store: FeatureStore) -> Extraction:
        return Extraction(
            source,
            extractors,
            store,
            decoder=chosen.decoder,
            device=_device(device),
            batch_clips=sizes,
            patience_seconds=timeout,
        )

    if dry_run:
        from vqbank.pipelines.extraction.dry_run import bank_as_it_is, estimate, show_estimate
        from vqbank.pipelines.stopping import stopped_by_signals

        with stopped_by_signals(), bank_as_it_is(folder) as store:
            show_estimate(estimate(extraction_into(store), workers=workers))
        return
    extraction = extraction_into(FeatureStore.create(folder))
    if retry_failed:
        from vqbank.pipelines.extraction.status import failed_videos

        failed_before = failed_videos(extraction.store, extraction.specs)
        extraction.take([video for video in source if video.id in failed_before])
    try:
        failed = _extract(
            extraction, workers=workers, scheduler=scheduler, tls=tls, cluster=cluster
        )
    except KeyboardInterrupt as stopped:
        raise KeyboardInterrupt(
            "stopped: what was finished is banked; the same command goes on from there"
        ) from stopped
    if len(failed) > allow_failures:
        raise typer.Exit(1)


def _extract(
    extraction: "Extraction",
    *,
    workers: int,
    scheduler: str | None,
    tls: tuple[Path | None, Path | None, Path | None],
    cluster: Path | None,
) -> set[str]:
    """Here, or by Dask; gives the ids of failed videos."""
    import logging

    from vqbank.pipelines.extraction.display import show_extraction

    if workers == 1 and scheduler is None and cluster is None:
        return show_extraction(extraction)
    from joblib import cpu_count

    from vqbank.pipelines.extraction.cluster import Order, distribute
    from vqbank.pipelines.extraction.workers import batch_system, local_workers, scheduler_at
    from vqbank.pipelines.stopping import stopped_by_signals

    def tell(line: str) -> None:
        say(line, err=True)

    for noisy in ("asyncio", "distributed"):  # what fails for good the run itself says
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    if scheduler is not None:
        ca_file, certificate, key = tls
        connected = scheduler_at(scheduler, ca_file=ca_file, certificate=certificate, key=key)
        if ca_file is None and not scheduler.startswith("tls://"):
            tell(
                f"warning: {scheduler} is asked without certificates: whoever reaches it can run "
                "code in its workers and read what is sent; see --tls-ca-file, --tls-cert and "
                "--tls-key"
            )
    elif cluster is not None:
        connected = batch_system(cluster, shared=extraction.store.path.absolute().parent)
    else:
        connected = local_workers(workers)
    with stopped_by_signals(), connected as working:
        threads = max(1, cpu_count() // workers) if workers > 1 else None
        order = Order.of(extraction, threads=threads)
        outcomes = distribute(working, order, extraction.videos, tell=tell)
        return show_extraction(extraction, outcomes)


def _batch_clips(given: list[str] | None, extractors: set[str]) -> dict[str, int]:
    from vqbank.store.errors import RecipeError, UnknownNameError, unknown_name

    sizes = {}
    for name, text in _pairs(given, "--batch").items():
        if name not in extractors:
            raise UnknownNameError(f"--batch: {unknown_name('extractor', name, extractors)}")
        if not text.isdecimal() or int(text) < 1:
            raise RecipeError(f"--batch {name}={text}: a batch has 1 clip or more")
        sizes[name] = int(text)
    return sizes


@app.command("recipe")
def recipe_command(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Which one.")] = None,
) -> None:
    """List the recipes that come with vqbank, or print one, to be changed."""
    from itertools import takewhile

    from vqbank.pipelines.recipe import shipped_recipe, shipped_recipes

    if name is not None:
        say_lines(shipped_recipe(name))
        return
    for each in shipped_recipes():
        comment = " ".join(
            takewhile(lambda line: line[:1] == "#", shipped_recipe(each).split("\n"))
        )
        first, *_ = comment.replace("# ", "").split(". ")
        say(f"{each}: {first.rstrip('.')}")


@app.command()
def status(
    bank: Annotated[Path, typer.Argument(help="Folder of the bank.")],
    videos: Videos = None,
    failed: Annotated[bool, typer.Option("--failed", help="A table of what failed.")] = False,
    video: Annotated[
        str | None, typer.Option("--video", metavar="ID", help="All about one video.")
    ] = None,
) -> None:
    """Say what is done, what failed and who is at work; also while runs are going on."""
    from vqbank.pipelines.extraction.status import show_status

    show_status(bank, videos=videos, failed=failed, video=video)


@app.command()
def evaluate(
    recipe: RecipeFile = None,
    videos: Videos = None,
    bank: Bank = None,
    features: Features = None,
    labels: LabelFile = None,
    score: Score = None,
    missing: Missing = None,
    weights: Annotated[
        list[str] | None,
        typer.Option("--weights", metavar="EXTRACTOR=CHOICE", help=SEEN_WEIGHTS),
    ] = None,
    head: Annotated[
        list[str] | None, typer.Option("--head", help="Name; may be given several times.")
    ] = None,
    splits: Annotated[
        str | None,
        typer.Option(
            "--splits", metavar="NAME", help="scene10, videval100, ...; a wrong one lists all."
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Folder for tables, pictures and a page.")
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="OUT.json", help="Record of the run; .jsonl appends."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Processes (default: all cores).")
    ] = None,
) -> None:
    """Try heads on splits of a bank; prints medians over the test parts."""
    from vqbank.pipelines.console import console
    from vqbank.pipelines.recipe import Protocol
    from vqbank.store.errors import RecipeError

    _check_target(json_file, "--json")
    if report is not None and report.exists() and not report.is_dir():
        raise RecipeError(f"--report {report} is a file; name a folder")
    asked = _recipe(
        recipe,
        videos=videos,
        labels=labels,
        score=score,
        bank=bank,
        features=features,
        heads=head,
        protocol=None if splits is None else Protocol(splits=splits),
        missing=missing,
    )
    chosen = _of_bank(asked, weights)
    from vqbank.pipelines.experiments.evaluate import all_cores  # seconds
    from vqbank.pipelines.results.records import record_of, write_record
    from vqbank.pipelines.results.report import result_table, write_report

    trial = _trial(chosen, title=recipe.stem if recipe is not None else "vqbank")
    results = _show_trial(trial, jobs=all_cores() if jobs is None else jobs)
    record = record_of(trial, results)
    console().print(result_table(record))
    if json_file is not None:
        write_record(record, json_file)
        say(f"record: {json_file}")
    if report is not None:
        say(f"report: {write_report(trial, results, record, report)}")


@app.command()
def results(
    files: Annotated[list[Path], typer.Argument(metavar="RUN.json...", help="Of `evaluate`.")],
    format: Annotated[
        str, typer.Option("--format", help="markdown, csv, latex, or ntire (a submission).")
    ] = "markdown",
    head: Annotated[
        list[str] | None, typer.Option("--head", help="Only these; may be repeated.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File (default: the terminal).")
    ] = None,
) -> None:
    """Make one table of runs: best bold, second underlined, with how each number was selected."""
    from vqbank.pipelines.results.records import FORMATS
    from vqbank.store.errors import UnknownNameError, unknown_name

    if format not in FORMATS:
        raise UnknownNameError(unknown_name("format", format, FORMATS))
    text = FORMATS[format]([record for _, record in _records(files, head)])
    if output is None:
        say_lines(text)
    else:
        with naming(output):
            output.write_text(text, encoding="utf-8")
        say(f"{format}: {output}")


@app.command()
def compare(
    files: Annotated[list[Path], typer.Argument(metavar="RUN.json...", help="Of `evaluate`.")],
    metric: Annotated[str, typer.Option("--metric", help="srcc, krcc, plcc, rmse, ...")] = "srcc",
    head: Annotated[
        list[str] | None, typer.Option("--head", help="Only these; may be repeated.")
    ] = None,
) -> None:
    """Compare runs over the same splits with the first one, by paired tests."""
    from rich.table import Table

    from vqbank.pipelines.console import console
    from vqbank.pipelines.results.compare import compare as compare_runs

    runs = _records(files, head)
    sources = [source for source, _ in runs] if len(runs) > 1 else []
    found = compare_runs([record for _, record in runs], metric=metric, sources=sources)
    table = Table(
        title=f"{metric.upper()} against {found[0].reference}",
        caption="p of Wilcoxon's test, and of the t-test corrected for overlapping training parts. "
        "F-test: splits whose residuals vary less or more, 95 %. Splits are left out where a run "
        "has no value, or an earlier one the same test part. A dash: all splits differ by the "
        "same, which leaves a t-test nothing to go by.",
    )
    for column in ("run", "median gain", "better in", "Wilcoxon p", "corrected p", "F-test"):
        table.add_column(column, justify="left" if column == "run" else "right")
    for one in found:
        table.add_row(
            one.other,
            f"{one.paired.median_gain:+.4f}",
            one.better_in,
            *one.p_values,
            f"{one.less_variance} less, {one.more_variance} more",
        )
    console().print(table)


def _records(files: list[Path], heads: list[str] | None) -> "list[tuple[str, Record]]":
    """Runs with the place that each stands at: a file, and its number there if there are more."""
    from vqbank.pipelines.results.records import read_records

    runs = []
    for file in files:
        records = read_records(file)
        for number, record in enumerate(records, 1):
            place = f"{file}:{number}" if len(records) > 1 else str(file)
            if heads:
                record = record.model_copy(update={"heads": [record.head(name) for name in heads]})
            runs.append((place, record))
    return runs


@app.command()
def train(
    recipe: RecipeFile = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the head; one there is replaced.")
    ] = Path("head"),
    videos: Videos = None,
    labels: LabelFile = None,
    score: Score = None,
    bank: Bank = None,
    features: Features = None,
    missing: Missing = None,
    weights: Annotated[
        list[str] | None,
        typer.Option("--weights", metavar="EXTRACTOR=CHOICE", help=SEEN_WEIGHTS),
    ] = None,
    head: Annotated[str | None, typer.Option("--head", help="Which head; one.")] = None,
    tensorboard: Annotated[
        Path | None, typer.Option("--tensorboard", help="Folder for TensorBoard's event files.")
    ] = None,
    published: Annotated[
        Path | None,
        typer.Option("--published", help="Official weights (VSFA's, RQ-VQA's); nothing is fitted."),
    ] = None,
) -> None:
    """Fit one head on all rows and write a folder that `predict` can use."""
    from vqbank.store.errors import RecipeError

    heads = [head] if head is not None else None
    asked = _recipe(
        recipe,
        videos=videos,
        labels=labels,
        score=score,
        bank=bank,
        features=features,
        heads=heads,
        missing=missing,
    )
    chosen = _of_bank(asked, weights, scored=published is None)
    from vqbank.pipelines.experiments.train import checkpoint_of, take_published  # seconds
    from vqbank.pipelines.experiments.train import train as train_head

    if published is not None:
        given = {"videos": videos, "labels": labels, "score": score, "missing": missing}
        for option, value in {**given, "tensorboard": tensorboard}.items():
            if value is not None:
                raise RecipeError(f"--published fits nothing: leave --{option} out")
        fitted = take_published(published, output, recipe=chosen)
    else:
        trial = _trial(chosen, title=recipe.stem if recipe is not None else "vqbank")
        place = checkpoint_of(output)
        files = f"{escape(place.name)}*"
        left = f"{place} (remove {place.name}* to start anew)"
        has_epochs = any(one.has_epochs for one in trial.heads.values())
        if has_epochs and any(place.parent.glob(files)):
            say(f"going on from {left}", err=True)
        try:
            fitted = train_head(trial, output, recipe=chosen, tensorboard=tensorboard)
        except KeyboardInterrupt as stopped:
            kept = has_epochs and any(place.parent.glob(files))
            more = f"; the same command goes on from {left}" if kept else ""
            raise KeyboardInterrupt(f"stopped{more}") from stopped
    say(f"{fitted.name} on {', '.join(fitted.specs_)}: {fitted.selection_}")
    say(f"head: {output}")


@app.command()
def heads(
    name: Annotated[str | None, typer.Argument(metavar="[HEAD]", help="Which one.")] = None,
) -> None:
    """List the heads, or the parameters of one with their defaults, as recipes take them."""
    import inspect

    from rich.table import Table

    from vqbank.pipelines.console import console
    from vqbank.regressors import HEADS

    if name is None:
        for each in HEADS:
            say(f"{each}: {HEADS.text(each)}")
        return
    kind = HEADS[name]
    say_lines(f"{inspect.getdoc(kind)}\n")
    table = Table("parameter", "default", "preset: paper", "may be")
    defaults = inspect.signature(kind).parameters
    for parameter, type_ in sorted(kind.parameter_types().items()):
        default = defaults[parameter].default
        paper = kind.paper.get(parameter, default) if kind.paper else ""
        table.add_row(parameter, str(default), str(paper), _values(type_))
    console().print(table)


@app.command()
def extractors(
    name: Annotated[str | None, typer.Argument(metavar="[EXTRACTOR]", help="Which one.")] = None,
) -> None:
    """List the extractors, or the outputs and parameters of one, as recipes take them."""
    import inspect
    from dataclasses import MISSING, fields
    from typing import get_type_hints

    from rich.table import Table

    from vqbank.extractors import EXTRACTORS
    from vqbank.pipelines.console import console

    if name is None:
        for each in EXTRACTORS:
            say(f"{each}: {EXTRACTORS.text(each)}")
        return
    kind = EXTRACTORS[name]
    say_lines(f"{inspect.getdoc(kind)}\n")
    types = get_type_hints(kind, include_extras=True)
    parameters = {field.name: field for field in fields(kind)}
    if all(field.default is not MISSING for field in parameters.values()):
        outputs = Table("output", "a row", "stored as", "banked")
        for output in kind().offers:
            usual = "usually" if output.usual else "if asked for"
            row = " x ".join(map(str, output.shape))
            outputs.add_row(f"{name}.{output.name}", row, output.stored_dtype, usual)
        console().print(outputs)
    table = Table("parameter", "default", "may be")
    for parameter, field in sorted(parameters.items()):
        default = "must be given" if field.default is MISSING else str(field.default)
        table.add_row(parameter, default, _values(types[parameter]))
    console().print(table)


@app.command()
def predict(
    head: Annotated[Path, typer.Argument(help="What `train` wrote.")],
    videos: Annotated[
        list[Path],
        typer.Argument(help="Videos, folders, manifests; or, with --bank, a label file."),
    ],
    bank: Annotated[
        Path | None,
        typer.Option("--bank", help="Where features are kept (default: the user's cache)."),
    ] = None,
    weights: Weights = None,
    device: Device = "cpu",
    score: Annotated[
        str | None, typer.Option("--score", help="Column of a label file that is the MOS.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.csv", help="Also into a file, in --format."),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            "--format",
            help="csv: score, id and path of what could be scored; ntire: a submission, of all "
            "videos or none.",
        ),
    ] = "csv",
) -> None:
    """Score videos with a shipped head; prints `score<TAB>id<TAB>path` per video."""
    from vqbank.pipelines.sources import check_sources, labels_of, videos_to_score
    from vqbank.store.bank import FeatureStore
    from vqbank.store.errors import RecipeError, UnknownNameError, unknown_name

    if format not in PREDICTED:
        raise UnknownNameError(unknown_name("format", format, PREDICTED))
    _check_head(head)
    check_sources(videos, from_bank=bank is not None)
    _check_device(device)
    _check_target(output, "--output")
    choices = _pairs(weights, "--weights")
    labels = labels_of(videos, score=score)
    import platformdirs  # and what takes seconds

    from vqbank.pipelines.experiments.evaluate import banked_videos
    from vqbank.pipelines.extraction.display import show_extraction
    from vqbank.pipelines.predict import Scorer, score_table
    from vqbank.pipelines.results.records import submission

    scorer = Scorer(head, weights=choices)
    if scorer.only_banked and bank is None:
        raise RecipeError(f"{head} {scorer.only_banked}: name the bank that has them, by --bank")
    if bank is not None and (scorer.only_banked or labels is not None):
        store = FeatureStore(bank)
    else:
        store = FeatureStore.create(bank or platformdirs.user_cache_path("vqbank") / "predicted")
    if scorer.only_banked:
        say(f"{head} {scorer.only_banked}: only what {bank} holds is scored", err=True)
    if scorer.card["random_weights"]:
        say("warning: this head was trained on features of RANDOM weights", err=True)
    failed: Collection[str] = ()
    if labels is not None:
        wanted = banked = banked_videos(labels, store, list(scorer.head.specs_.values()))
    else:
        wanted = list(videos_to_score(videos))
        banked = scorer.as_banked(wanted, store)
        _say_taken(wanted, banked, store)
        if not scorer.only_banked:
            failed = show_extraction(scorer.extraction(banked, store, device=_device(device)))
    pairs = [pair for pair in zip(wanted, banked, strict=True) if pair[1].id not in failed]
    done = [video for video, _ in pairs]
    if done:
        seen = scorer.card.get("trained_on")  # not of published weights
        scored = scorer.scores([b for _, b in pairs], store, device=_device(device))
        for video, predicted in zip(done, scored, strict=True):
            say(f"{predicted:.4f}", video.id, video.path)
            if seen is not None and not seen["lowest"] <= predicted <= seen["highest"]:
                say(
                    f"warning: {video.id}: {predicted:.4g} lies outside the training scores "
                    f"({seen['lowest']:.4g} to {seen['highest']:.4g})",
                    err=True,
                )
        _say_agreement(done, scored)
        if output is not None and (format == "csv" or not failed):
            ids = [video.id for video in done]
            text = (
                score_table(done, scored)
                if format == "csv"
                else submission(dict(zip(ids, scored.tolist(), strict=True)))
            )
            with naming(output):
                output.write_text(text, encoding="utf-8")
    if failed:
        for video, own in zip(wanted, banked, strict=True):
            if own.id in failed:
                say(f"no score: {video.path} ({video.id})", err=True)
        left = f"{len(done)} of {len(wanted)} videos have a score"
        if output is not None and (format == "ntire" or not done):
            left += f"; {output} was not written"
        say(left, err=True)
        raise typer.Exit(1)


PREDICTED = ("csv", "ntire")
"""How `predict` writes scores."""


def _say_taken(wanted: "list[Video]", banked: "list[Video]", store: "FeatureStore") -> None:
    """Which videos a bank has under other ids."""
    others = [(v.id, b.id) for v, b in zip(wanted, banked, strict=True) if v.id != b.id]
    if others:
        say(
            f"{len(others)} of {len(wanted)} videos are in {store.path} under another id, byte for "
            f"byte, and what is banked is taken: {others[0][0]} is {others[0][1]}"
            f"{', ...' if len(others) > 1 else ''}",
            err=True,
        )


def _say_agreement(videos: "list[Video]", predicted: "NDArray[np.float64]") -> None:
    """How well scores agree with those that people gave, where there are such."""
    import numpy as np

    from vqbank.pipelines.results.records import SHOWN, shown
    from vqbank.regressors.metrics import quality_metrics

    mos = np.array([np.nan if video.mos is None else video.mos for video in videos], np.float64)
    rated = np.isfinite(mos)
    if rated.sum() < 2:
        return
    found = quality_metrics(mos[rated], predicted[rated])
    numbers = (f"{metric.upper()} {shown(getattr(found, metric))}" for metric in SHOWN)
    say(f"against {counted(found.n, 'score')} of people: {', '.join(numbers)}", err=True)


@app.command()
def ls(
    bank: Annotated[str, typer.Argument(help="Folder or URL of the bank.")],
    feature: Annotated[
        str | None, typer.Argument(metavar="[FEATURE]", help="List the ids of its videos instead.")
    ] = None,
) -> None:
    """List the features of a bank, or the videos of one of them."""
    from rich.table import Table

    from vqbank.pipelines.console import console
    from vqbank.store.bank import FeatureStore

    store = FeatureStore.at(bank)
    if feature is not None:
        for video_id in store.video_ids(store.resolve(feature)):
            say(video_id)
        return
    table = Table("feature", "row", "dtype", "weights", "videos", title=bank)
    for spec in store.specs():
        provenance = spec.identity.get("provenance")  # "unknown" of what was imported
        weights = str(provenance or spec.identity.get("weights", "none"))
        row = " x ".join(str(axis) for axis in spec.shape)
        cells = (spec.key, row, spec.stored_dtype, weights[:12])
        table.add_row(*cells, str(len(store.video_ids(spec))))
    console().print(table)


@app.command()
def show(
    bank: Annotated[str, typer.Argument(help="Folder or URL of the bank.")],
    name: Annotated[str, typer.Argument(help="A feature (name or key), or a video id.")],
) -> None:
    """Show what a feature is, or what a bank knows of a video."""
    import json

    from vqbank.store.bank import FeatureStore
    from vqbank.store.errors import MissingFeatureError, similar_ids, unknown_name

    store = FeatureStore.at(bank)
    specs = store.named(name)
    if specs:
        for spec in specs:
            say_lines(json.dumps({"key": spec.key, **json.loads(spec.to_json())}, indent=2))
        return
    banked = {spec: store.video_ids(spec) for spec in store.specs()}
    known = [spec for spec, ids in banked.items() if name in ids]
    if not known:
        ids = set().union(*banked.values())
        near = similar_ids(name, ids)
        if near:
            raise MissingFeatureError(
                f"{bank} has no feature and no video {name!r}. Did you mean the video "
                f"{' or '.join(map(repr, near))}?"
            )
        names = [spec.name for spec in banked]
        raise MissingFeatureError(
            f"{bank}: no video, and {unknown_name('feature', name, names)}  `vqbank ls {bank} "
            "FEATURE` lists the ids of its videos"
        )
    record = store.video_record(known[0], name)
    say_lines(json.dumps({"id": name, **dict(record.probe)}, indent=2))
    for spec in known:
        feature = store.read(spec, name)
        first, last = feature.pts_seconds[[0, -1]]
        say(
            f"{spec.key}: {counted(len(feature.values), 'row')}, {first:.3f} to {last:.3f} s, "
            f"values {feature.values.min():.4g} to {feature.values.max():.4g}"
        )


@app.command()
def golden(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Fixtures: NAME.json, NAME.LETTER.npz.")
    ],
    everything: Annotated[
        bool, typer.Option("--all", help="A fixture that nobody plays counts as failed.")
    ] = False,
) -> None:
    """Compare networks, rules and heads with what official code computed; exits 1 on a failure."""
    from vqbank.pipelines.commands.golden import play_and_print

    play_and_print(folder, everything=everything)


def main() -> None:
    """Run the command line; an expected error is one line and exit code 2."""
    try:
        with left_by_signals():
            _run()
    except KeyboardInterrupt:  # before a command had begun, or after it
        say("stopped", err=True)
        _leave()


def _run() -> None:
    try:
        app()
    except SystemExit as ended:
        if ended.code == STOPPED:
            _leave()
        raise
    except VqbankError as error:
        say(f"error: {error}", err=True)
        sys.exit(2)
    except ModuleNotFoundError as error:
        say(
            f"error: this command needs {error.name}, which is not installed; extraction needs "
            "`pip install 'vqbank[extract]'`",
            err=True,
        )
        sys.exit(2)
    except OSError as error:
        say(f"error: {refusal(error)}", err=True)
        sys.exit(2)


def _leave() -> NoReturn:
    """At once: threads may be at a batch that nobody wants any more."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(STOPPED)


def _recipe(
    path: Path | None,
    *,
    features: list[str] | None = None,
    heads: list[str] | None = None,
    **overrides: Any,
) -> "Recipe":
    from vqbank.pipelines.recipe import Recipe, read_recipe
    from vqbank.store.errors import UnknownNameError, unknown_name

    recipe = read_recipe(path) if path is not None else Recipe()
    update = {key: value for key, value in overrides.items() if value is not None}
    if update.get("missing", "stop") not in ("stop", "drop"):
        raise UnknownNameError(unknown_name("--missing", update["missing"], ("stop", "drop")))
    if features:
        update["features"] = bank_commands.roles_of(features)
    if heads:
        update["heads"] = {name: recipe.heads.get(name, {}) for name in heads}
    return recipe.model_copy(update=update)


def _trial(recipe: "Recipe", *, title: str) -> "Trial":
    """What a recipe names; says which videos are dropped."""
    from vqbank.pipelines.experiments.evaluate import Trial

    trial = Trial.of(recipe, title=title)
    if dropped := trial.dropped:
        more = ", ..." if len(dropped) > 3 else ""
        say(
            f"dropped {len(dropped)} of {len(trial.stated)} videos, which lack a feature: "
            f"{', '.join(dropped[:3])}{more}",
            err=True,
        )
    return trial


def _pairs(given: list[str] | None, option: str) -> dict[str, str]:
    from vqbank.store.errors import RecipeError

    pairs = {}
    for text in given or []:
        name, separator, value = text.partition("=")
        if not separator or not value:
            raise RecipeError(f"{option} {text!r} is not of the form NAME=VALUE")
        pairs[name] = value
    return pairs


def _values(type_: Any) -> str:
    """What a parameter may be, in words."""
    from pydantic import TypeAdapter

    def words(schema: dict[str, Any]) -> str:
        if "anyOf" in schema:
            return " or ".join(dict.fromkeys(words(one) for one in schema["anyOf"]))
        if "$ref" in schema:
            return words(definitions[schema["$ref"].rsplit("/", 1)[-1]])
        if "enum" in schema or "const" in schema:
            return ", ".join(str(one) for one in schema.get("enum", [schema.get("const")]))
        if schema.get("type") == "array":
            return f"list of {words(schema['items'])}"
        if schema.get("type") == "object":
            return f"role: {words(schema.get('additionalProperties', {}))}"
        bounds = {
            "exclusiveMinimum": ">",
            "minimum": ">=",
            "exclusiveMaximum": "<",
            "maximum": "<=",
        }
        limits = [f"{sign} {schema[key]}" for key, sign in bounds.items() if key in schema]
        return " ".join([str(schema.get("type", "")), *limits]).strip()

    schema = TypeAdapter(type_).json_schema()
    definitions = schema.get("$defs", {})
    return words(schema)


def _of_bank(recipe: "Recipe", weights: list[str] | None, *, scored: bool = True) -> "Recipe":
    """With keys for its features; what is missing or has no such name is refused first.

    Args:
        recipe: of the command.
        weights: of features, as the command line has them.
        scored: whether videos with scores are wanted.
    """
    from vqbank.pipelines.recipe import required
    from vqbank.store.bank import FeatureStore

    if scored and recipe.labels is None:
        required(recipe, "videos", option="--videos or --labels")
    FeatureStore(required(recipe, "bank", option="--bank"))
    required(recipe, "features", option="--features")
    required(recipe, "heads", option="--head")
    from vqbank.pipelines.entries import check_names, with_keys  # seconds

    check_names(recipe)
    return with_keys(recipe, weights=_pairs(weights, "--weights"))


def _say_without_tiny(weights: dict[str, str], extractors: "list[Extractor]") -> None:
    """For which extractors `all=random-tiny` means `random`."""
    from vqbank.extractors import without_tiny
    from vqbank.extractors.weights import TINY

    lacking = without_tiny(extractors) if weights.get("all") == TINY else []
    if lacking:
        say(f"no tiny form: {', '.join(lacking)}, of which random weights are taken", err=True)


def _check_head(folder: Path) -> None:
    """Refuse what holds no head, before anything that takes seconds is imported.

    Raises:
        HeadError: if it is no folder, or has no card.
    """
    from vqbank.store.errors import HeadError

    if not any((folder / card).is_file() for card in ("card.yaml", "card.json")):
        if folder.is_file():
            raise HeadError(
                f"{folder} is a file and no head: the head's folder comes first, and the videos "
                "after it: vqbank predict HEAD VIDEOS"
            )
        why = "no such folder" if not folder.exists() else "it has no card.yaml"
        raise HeadError(
            f"{folder} holds no head: {why}; `vqbank train -o HEAD` writes one, and its folder "
            "comes before the videos"
        )


def _check_target(file: Path | None, option: str) -> None:
    """Refuse a file that could not be written in the end.

    Raises:
        RecipeError: if it is a folder, or its own folder is not there.
    """
    from vqbank.store.errors import RecipeError

    if file is None:
        return
    if file.is_dir():
        raise RecipeError(f"{option} {file} is a folder; name a file in it")
    if not file.absolute().parent.is_dir():
        raise RecipeError(f"{option} {file}: there is no folder {file.parent}; make it first")


def _check_device(name: str) -> None:
    """Refuse what is no name of a device.

    Raises:
        RecipeError: naming those that are.
    """
    import re

    from vqbank.store.errors import RecipeError

    if not re.fullmatch(r"(cpu|cuda|mps|xpu)(:\d+)?", name):
        raise RecipeError(
            f"--device {name}: a device is cpu, cuda (the first GPU), cuda:1 (the second), mps or "
            "xpu"
        )


def _device(name: str) -> "torch.device":
    import torch

    from vqbank.store.errors import RecipeError

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise RecipeError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return device


def _show_trial(trial: "Trial", *, jobs: int = 1) -> "list[SplitResult]":
    """Run with a progress bar; results by split, then in the order of heads."""
    from vqbank.pipelines.experiments.fitting import evaluated

    total = len(trial.splits) * len(trial.heads)
    results = evaluated(lambda watch: trial.run(jobs=jobs, watch=watch), total=total)
    order = list(trial.heads)
    return sorted(results, key=lambda result: (result.split, order.index(result.head)))
