"""The commands for splits: `split make`, `split audit`."""

from pathlib import Path
from typing import Annotated

import typer

from vqbank.pipelines.commands.options import Score, Splits, program, say_some
from vqbank.pipelines.terminal import counted, say

split_app = program(no_args_is_help=True, help="Make splits, and find what they mix.")
Source = Annotated[Path, typer.Argument(metavar="VIDEOS", help="Manifest or label file.")]


@split_app.command()
def make(
    source: Source,
    splits: Splits,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="SPLITS.json", help="What to write.")
    ],
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="Label file with split columns or an index, same rows."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Data set in the ids of a label file (default: its name)."),
    ] = None,
    score: Score = None,
) -> None:
    """Write splits as JSON, by video id."""
    import numpy as np

    from vqbank.pipelines.sources import split_videos
    from vqbank.pipelines.splits.file import write_splits
    from vqbank.pipelines.splits.schemes import named_splits, scheme_of
    from vqbank.pipelines.splits.split import LEAST_TESTED, too_small

    videos, stated = split_videos(source, name, labels, score)
    made = named_splits(splits, videos, labels=stated)
    asked = 0 if splits.endswith(".json") else scheme_of(splits)[1]
    if len(made) < asked:
        say(
            f"{splits}: {len(made)} splits in place of {asked}: {counted(len(videos), 'video')} "
            "make no more different test parts",
            err=True,
        )
    mos = np.array([np.nan if video.mos is None else video.mos for video in videos], np.float64)
    problems = [too_small(split.test, mos, LEAST_TESTED) for split in made]
    small = [number for number, problem in enumerate(problems) if problem]
    if small:
        say(
            f"warning: `vqbank evaluate` refuses these splits: {len(small)} of {len(made)} test "
            f"parts are too small, the first is that of split {small[0]}, with "
            f"{problems[small[0]]}; {LEAST_TESTED} or more with different scores are needed",
            err=True,
        )
    write_splits(output, splits, videos, made)
    sizes = sorted(
        {(len(s.train) - len(s.validation), len(s.validation), len(s.test)) for s in made}
    )
    shown = ", ".join("/".join(map(str, size)) for size in sizes[:3])
    more = " and other sizes" if len(sizes) > 3 else ""
    say(
        f"{output}: {counted(len(made), 'split')} of {counted(len(videos), 'video')}, {shown}{more}"
    )


@split_app.command()
def audit(
    source: Source,
    splits: Splits,
    bank: Annotated[Path | None, typer.Option("--bank", help="Compare features, too.")] = None,
    features: Annotated[
        list[str] | None,
        typer.Option("--features", metavar="NAME[@KEY]", help="Of the bank; may be repeated."),
    ] = None,
    near: Annotated[
        float,
        typer.Option(
            "--near", min=0, help="Distance, relative to the median of all, that is near."
        ),
    ] = 0.05,
    labels: Annotated[
        Path | None, typer.Option("--labels", help="As of `make`; --splits may be its file.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="As of `make`.")] = None,
    score: Score = None,
) -> None:
    """Find scenes and near-duplicates on both sides of splits; exit 1 if there are any."""
    from vqbank.pipelines.audit.sides import near_pairs, shared_scenes
    from vqbank.pipelines.runs.asked import roles_of
    from vqbank.pipelines.sources import split_videos
    from vqbank.pipelines.splits.schemes import named_splits
    from vqbank.regressors.pooling import pooled
    from vqbank.store.bank import FeatureStore
    from vqbank.store.errors import RecipeError

    if (bank is None) != (not features):
        raise RecipeError("give --bank and --features together, or neither")
    videos, stated = split_videos(source, name, labels, score)
    made = named_splits(splits, videos, labels=stated)
    scenes = shared_scenes(made, videos)
    alone = sum(video.scene is None for video in videos)
    if alone == len(videos):
        say(
            "no video has a scene, so that nobody can tell whether splits mix them; give scenes by "
            "a column `scene`, or by `vqbank labels import --scene`"
        )
    else:
        if alone:
            say(f"{alone} of {len(videos)} videos have no scene and count as one each")
        touched = {scene.split for scene in scenes}
        say(f"{len(touched)} of {len(made)} splits have a scene on both sides")
    say_some(
        "on both sides",
        [f"split {s.split}: scene {s.scene}, {s.train} train, {s.test} test" for s in scenes],
    )
    pairs = []
    if bank is not None and features:
        table = FeatureStore(bank).table(videos, roles_of(features))
        pairs = near_pairs(made, videos, pooled(table), below=near)
        say(f"{len(pairs)} pairs of videos are nearer than {near:g} across a split")
        say_some(
            "near",
            [
                f"{p.train} | {p.test}: {p.distance:.4f}, in {counted(len(p.splits), 'split')}"
                for p in pairs
            ],
        )
    if scenes or pairs:
        raise typer.Exit(1)
