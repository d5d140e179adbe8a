"""The commands for label files: `labels import`, `labels check`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vqbank.pipelines.commands.options import program, say_some
from vqbank.pipelines.terminal import counted, say

if TYPE_CHECKING:
    from vqbank.pipelines.labels import Label, Labels
    from vqbank.pipelines.labels.videos import Reconciled
    from vqbank.store.schema import Video

labels_app = program(
    no_args_is_help=True, help="Read label files of data sets, whatever their layout."
)
Files = Annotated[
    list[Path], typer.Argument(metavar="FILE...", help="Label files; several are joined.")
]
Score = Annotated[
    str | None, typer.Option("--score", metavar="COLUMN", help="Which column is the MOS.")
]
Scene = Annotated[
    list[str] | None,
    typer.Option(
        "--scene",
        metavar="PATTERN",
        help="Regular expression; its first group is the scene.  Of several, the first that fits.",
    ),
]
Fallback = Annotated[
    bool,
    typer.Option("--scene-fallback", help="A name that no --scene fits is a scene of its own."),
]
Folder = Annotated[
    Path | None, typer.Option("--videos", metavar="FOLDER", help="Where the video files are.")
]


@labels_app.command("import")
def import_(
    files: Files,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="MANIFEST.csv", help="What to write.")
    ],
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--name",
            help="Of the data set, in every id (default: the manifest's); or one for each file, "
            "which keeps data sets of other names apart: videos of each lie in FOLDER/NAME.",
        ),
    ] = None,
    videos: Folder = None,
    score: Score = None,
    scene: Scene = None,
    scene_fallback: Fallback = False,
) -> None:
    """Write a manifest; with --videos of those that have a file, and exit 1 if some have none."""
    from vqbank.pipelines.labels.videos import reconcile, videos_of
    from vqbank.pipelines.manifest import write_manifest
    from vqbank.store.errors import ManifestError

    read = [_read(file, score, scene, fallback=scene_fallback) for file in files]
    for labels in read:
        _describe(labels)
    if videos is not None:
        _refuse_unnamed(read, videos)
    data_sets = _data_sets(read, names or [output.stem])
    made: list[Video] = []
    wanted = 0
    for name, of_set in data_sets.items():
        rows = _merged(of_set)
        if len(data_sets) > 1:  # scene 1 of one data set is not scene 1 of another
            rows = tuple(replace(r, scene=r.scene and f"{name}/{r.scene}") for r in rows)
        wanted += len(rows)
        if videos is None:
            made += videos_of(rows, name)
            continue
        folder = videos if len(data_sets) == 1 else videos / name
        found = reconcile(rows, folder, name)
        _report(found, len(rows), folder)
        made += found.videos
    if not made:
        raise ManifestError(f"no video of {files[0]} is in {videos}; nothing was written")
    write_manifest(output, made)
    _say_written(output, made)
    if len(made) < wanted:
        raise typer.Exit(1)


@labels_app.command()
def check(
    files: Files,
    videos: Folder = None,
    score: Score = None,
    scene: Scene = None,
    scene_fallback: Fallback = False,
) -> None:
    """Say what label files hold, whether they agree, and which videos have files."""
    from itertools import combinations

    from vqbank.pipelines.labels.match import near_names
    from vqbank.pipelines.labels.merge import agreement
    from vqbank.pipelines.labels.videos import reconcile

    read = [_read(file, score, scene, fallback=scene_fallback) for file in files]
    for labels in read:
        _describe(labels)
    for one, two in combinations(read, 2):
        both = agreement(one, two)
        say(
            f"{one.path} and {two.path}: {both.shared} of {len(one)} and {len(two)} videos in "
            f"both, {both.compared} scored in both, largest difference {both.largest:.2g}"
        )
        say_some("caution", [both.caution] if both.caution else [])
        say_some("not compared", [both.unclear] if both.unclear else [])
        if both.shared:
            near = near_names(both.only_one, both.only_two)
            say_some("near", [f"{name} and {other}" for name, other in near.items()])
    if videos is None:
        return
    _refuse_unnamed(read, videos)
    rows = _merged(read)
    found = reconcile(rows, videos, videos.name)
    _report(found, len(rows), videos)
    if len(found.videos) < len(rows):
        raise typer.Exit(1)


def _data_sets(read: "list[Labels]", names: list[str]) -> "dict[str, list[Labels]]":
    """Files by the name of their data set; one name is that of all."""
    from vqbank.store.errors import ManifestError

    if len(names) not in (1, len(read)):
        raise ManifestError(
            f"--name: {len(names)} names for {len(read)} files; give one for all, or one for each "
            "in their order"
        )
    found: dict[str, list[Labels]] = {}
    for labels, name in zip(read, names * (len(read) if len(names) == 1 else 1), strict=True):
        found.setdefault(name, []).append(labels)
    return found


def _merged(read: "list[Labels]") -> "tuple[Label, ...]":
    from vqbank.pipelines.labels.merge import merged

    done = merged(read)
    for caution in done.cautions:
        say(f"  caution: {caution}")
    return done.rows


def _read(file: Path, score: str | None, patterns: list[str] | None, *, fallback: bool) -> "Labels":
    from vqbank.pipelines.labels import read_labels
    from vqbank.pipelines.labels.scenes import scenes_by_pattern
    from vqbank.store.errors import RecipeError

    if fallback and not patterns:
        raise RecipeError("--scene-fallback is for names that no --scene fits; give --scene too")
    labels = read_labels(file, score=score)
    if not patterns:
        return labels
    found = scenes_by_pattern(labels.names, patterns, fallback=fallback)
    rows = tuple(
        replace(row, scene=name) for row, name in zip(labels.rows, found.scenes, strict=True)
    )
    return replace(labels, rows=rows, scene_rule=found.rule, scene_note="")


def _refuse_unnamed(read: "list[Labels]", videos: Path) -> None:
    from vqbank.store.errors import ManifestError

    for labels in read:
        if not labels.named:
            raise ManifestError(f"{labels.path} names no videos, so none can be found in {videos}")


def _describe(labels: "Labels") -> None:
    from collections import Counter

    scores = [row.mos for row in labels.rows if row.mos is not None]
    say(f"{labels.path}: {labels.layout}")
    extent = f" from {min(scores):g} to {max(scores):g}" if scores else ""
    kind = f", {labels.kind}" if labels.kind else ""
    say(
        f"  {counted(len(labels), 'row')}; mos: {labels.score}, "
        f"{counted(len(scores), 'score')}{extent}{kind}"
    )
    others = list(dict.fromkeys(name for row in labels.rows for name in row.other_scores))
    if others:
        say(f"  further scores, by --score: {', '.join(others)}")
    scenes = {row.scene for row in labels.rows if row.scene is not None}
    alone = sum(row.scene is None for row in labels.rows)
    if labels.scene_rule:
        rest = f"; {alone} rows have none, and count as one each" if alone else ""
        say(f"  {len(scenes)} scenes by {labels.scene_rule}{rest}")
    else:
        say(
            "  no scenes: no column states them, and no rule of a data set fits the names; splits "
            "by scene need them (--scene PATTERN), others such as random10 do not"
        )
    parts = Counter(row.part for row in labels.rows if row.part is not None)
    if parts:
        say(f"  parts: {', '.join(f'{part} {count}' for part, count in parts.items())}")
    if labels.split_columns:
        say(f"  split columns: {', '.join(labels.split_columns)}")
    if labels.orders is not None:
        orders, groups = labels.orders.orders.shape
        say(f"  index: {orders} orders of {groups} {labels.orders.meaning}")
    for note in filter(None, (labels.scene_note, *labels.notes)):
        say(f"  {note}")


def _report(found: "Reconciled", rows: int, folder: Path) -> None:
    files = len(found.videos) + len(found.without_label)
    unclear_files = {file for _, several in found.unclear for file in several}
    say(
        f"{counted(rows, 'label')}, {counted(files + len(unclear_files), 'file')} in {folder}: "
        f"{len(found.videos)} matched, {counted(len(found.without_file), 'label')} without a file, "
        f"{counted(len(found.without_label), 'file')} without a label, "
        f"{counted(len(found.unclear), 'label')} with several files"
    )

    def label_line(row: "Label") -> str:
        near = found.near.get(row.name)
        return f"{row.name} ({row.place}){f'; near: {near}' if near else ''}"

    say_some("label without a file", [label_line(row) for row in found.without_file])
    say_some("file without a label", list(found.without_label))
    say_some(
        "label with several files",
        [f"{row.name}: {', '.join(several)}" for row, several in found.unclear],
    )


def _say_written(manifest: Path, videos: "list[Video]") -> None:
    from vqbank.pipelines.labels.videos import RAW_SUFFIX

    say(f"manifest: {manifest}: {counted(len(videos), 'video')}")
    raw = sum(video.path.suffix.lower() == RAW_SUFFIX for video in videos)
    if raw:
        say(
            f"  {raw} are {RAW_SUFFIX}: frames without their size, which `extract` cannot read; "
            "convert them without loss and import the labels again"
        )
    if not any(video.path.suffix for video in videos):
        say("  the names have no suffix, so paths are not files; --videos FOLDER finds them")
