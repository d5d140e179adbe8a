"""The demo: the main job from pictures to a score, on data that it makes itself."""

from collections.abc import Callable
from pathlib import Path

import torch
from rich.progress import Progress

from vqbank.extractors import make_extractors
from vqbank.pipelines.console import PlainConsole
from vqbank.pipelines.demo.clips import make_demo_set
from vqbank.pipelines.experiments.experiment import Experiment
from vqbank.pipelines.experiments.train import train
from vqbank.pipelines.extraction.extract import Extraction
from vqbank.pipelines.manifest import read_videos
from vqbank.pipelines.predict import Scorer
from vqbank.pipelines.recipe import read_recipe, required, shipped_recipe
from vqbank.pipelines.results.record import Record
from vqbank.pipelines.results.report import write_report
from vqbank.pipelines.results.tables import result_table
from vqbank.pipelines.sources import videos_to_score
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import BankError, naming


def run_demo(
    folder: Path,
    console: PlainConsole,
    *,
    extract: Callable[[Extraction], set[str]],
    evaluate: Callable[[Experiment], Record],
) -> None:
    """Make clips, bank features, try heads, write a report, ship a head, score an unseen video.

    Args:
        folder: Where everything goes; what is there already is not made again.
        console: Where to say what happens.
        extract: Runs an extraction to its end and gives the ids of failed videos.
        evaluate: Runs an experiment to its end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    console.print(f"1. A small data set of moving pictures, in {folder / 'set'}")
    _make_set(folder / "set", console)
    recipe_file = folder / "demo.yaml"
    with naming(recipe_file):
        recipe_file.write_text(shipped_recipe("demo"), encoding="utf-8")
    recipe = read_recipe(recipe_file)

    console.print("2. Its features, into a bank: every video is decoded once")
    store = FeatureStore.create(required(recipe, "bank", option="--bank"))
    extractors = make_extractors(recipe.extractors)
    videos = read_videos(required(recipe, "videos", option="--videos"))
    device = torch.device("cpu")
    failed = extract(Extraction(videos, extractors, store, decoder=recipe.decoder, device=device))
    if failed:
        raise BankError(f"{len(failed)} demo clips cannot be read; remove {folder} and try again")

    console.print("3. Heads, each fitted on some scenes and tested on others")
    record = evaluate(Experiment.of(recipe, title="vqbank demo"))
    console.print(result_table(record))
    console.print(f"   report: {write_report(record, folder / 'report')}")

    name = next(iter(recipe.heads))  # the recipe's first: choosing by test scores would be peeking
    console.print(f"4. The {name} head, fitted on all clips, scores a video of an unseen scene")
    one_head = recipe.model_copy(update={"heads": {name: recipe.heads[name]}})
    train(Experiment.of(one_head, title="vqbank demo"), folder / "head", recipe=one_head)
    scorer = Scorer(folder / "head", weights={})
    unseen = list(videos_to_score(sorted((folder / "set" / "unseen").glob("*.mp4"))))
    extract(scorer.extraction(unseen, store, device=device))
    for video, score in zip(unseen, scorer.scores(unseen, store, device=device), strict=True):
        console.print(f"   {video.path.stem}: {score:.1f} of 100")


def _make_set(folder: Path, console: PlainConsole) -> None:
    if (folder / "manifest.csv").exists():  # written last
        console.print("   made before")
        return
    with Progress(console=console) as progress:
        task = progress.add_task("make clips")
        make_demo_set(
            folder,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
