"""What a bank holds and how far it is: `status`, `ls`, `show`."""

from pathlib import Path
from typing import Annotated

import typer

from vqbank.pipelines.commands.options import AsJson, Videos
from vqbank.pipelines.terminal import counted, say, say_lines


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


def ls(
    bank: Annotated[str, typer.Argument(help="Folder or URL of the bank.")],
    feature: Annotated[
        str | None, typer.Argument(metavar="[FEATURE]", help="List the ids of its videos instead.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the features of a bank, or the videos of one of them."""
    import json

    from rich.table import Table

    from vqbank.pipelines.console import console
    from vqbank.store.bank import FeatureStore

    store = FeatureStore.at(bank)
    if feature is not None:
        ids = store.video_ids(store.resolve(feature))
        if as_json:
            say_lines(json.dumps(ids, indent=2))
            return
        for video_id in ids:
            say(video_id)
        return
    if as_json:
        found = [
            {
                "feature": spec.key,
                "row": list(spec.shape),
                "stored_dtype": spec.stored_dtype,
                "weights": spec.identity.get("provenance") or spec.identity.get("weights", "none"),
                "videos": len(store.video_ids(spec)),
            }
            for spec in store.specs()
        ]
        say_lines(json.dumps(found, indent=2))
        return
    table = Table("feature", "row", "dtype", "weights", "videos", title=bank)
    for spec in store.specs():
        provenance = spec.identity.get("provenance")  # "unknown" of what was imported
        weights = str(provenance or spec.identity.get("weights", "none"))
        row = " x ".join(str(axis) for axis in spec.shape)
        cells = (spec.key, row, spec.stored_dtype, weights[:12])
        table.add_row(*cells, str(len(store.video_ids(spec))))
    console().print(table)


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
