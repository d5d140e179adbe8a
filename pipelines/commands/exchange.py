"""Features out of a bank and into one: `selection`, `export`, `import`, `pack`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from vqbank.pipelines.commands.options import (
    MOST_LINES,
    OneBank,
    SomeFeatures,
    check_target,
    program,
    specs_named,
)
from vqbank.pipelines.terminal import counted, say

if TYPE_CHECKING:
    from vqbank.store.exchange.incoming import Imported


def selection(
    bank: OneBank,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Lock file, with --check.")
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option("--features", metavar="[ROLE=]NAME[@KEY]", help="May be repeated."),
    ] = None,
    videos: Annotated[
        Path | None, typer.Option("--videos", help="Manifest (.csv), folder, or one video.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Lock file to write.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Whether the bank still gives what FILE names.")
    ] = False,
) -> None:
    """Write down exactly which rows a run uses, or check that they are still the same."""
    from vqbank.pipelines.manifest import read_videos
    from vqbank.pipelines.runs.asked import roles_of
    from vqbank.store.bank import FeatureStore
    from vqbank.store.errors import RecipeError
    from vqbank.store.selection import check_selection, read_selection, write_selection

    store = FeatureStore(bank)
    if check:
        if file is None or features or output is not None:
            raise RecipeError("--check takes BANK, FILE and perhaps --videos")
        read = read_selection(file)
        check_selection(store, read, read_videos(videos) if videos is not None else None)
        say(f"{bank} gives what {file} names: {counted(len(read), 'video')}, {read.snapshot[:12]}")
        return
    if file is not None or not features or videos is None or output is None:
        raise RecipeError("give --features, --videos and -o to write; or FILE --check")
    written = write_selection(output, store, roles_of(features), read_videos(videos))
    for role, key in written.features.items():
        say(f"{role}: {key}")
    say(f"selection: {output}: {counted(len(written), 'video')}, {written.snapshot[:12]}")


def export(
    bank: OneBank,
    target: Annotated[Path, typer.Argument(metavar="FILE.h5|FOLDER|FILE.parquet", help="New.")],
    feature: SomeFeatures = None,
    record: Annotated[
        list[Path] | None,
        typer.Option(
            "--record",
            metavar="RUN.json",
            help="Of a .parquet file: the runs whose predictions it has; may be repeated.",
        ),
    ] = None,
    videos: Annotated[
        Path | None,
        typer.Option("--videos", help="Of a .parquet file: a manifest, for scenes and parts."),
    ] = None,
) -> None:
    """Write features to one HDF5 file, or one feature to a tree of .npy files.

    Or videos to one Parquet file: scores, predictions, a map by their features, pictures.
    """
    if target.suffix.lower() == ".parquet":
        _export_videos(bank, target, feature, record, videos)
        return
    if record or videos is not None:
        from vqbank.store.errors import RecipeError

        raise RecipeError("--record and --videos are of a .parquet file")
    from vqbank.store.bank import FeatureStore
    from vqbank.store.errors import RecipeError
    from vqbank.store.exchange.hdf5_file import export_hdf5
    from vqbank.store.exchange.npy_tree import export_npy

    store = FeatureStore(bank)
    specs = specs_named(store, feature)
    if _is_hdf5(target):
        export_hdf5(store, specs, target)
    elif len(specs) == 1:
        export_npy(store, specs[0], target)
    else:
        raise RecipeError(
            f"a tree of .npy files holds one feature, not {len(specs)}; give one --features, or "
            "name a file that ends in .h5"
        )
    say(f"{', '.join(spec.key for spec in specs)}: {target}")


def _export_videos(
    bank: Path,
    target: Path,
    features: list[str] | None,
    files: list[Path] | None,
    videos: Path | None,
) -> None:
    """A table with a row per video of some runs."""
    from vqbank.pipelines.results.records import read_records
    from vqbank.pipelines.runs.report import write_report_table
    from vqbank.store.errors import RecipeError

    if features:
        raise RecipeError("a .parquet file holds the features of its runs as a map; name none")
    if not files:
        raise RecipeError("a .parquet file is made of runs: give --record RUN.json")
    check_target(target, "FILE.parquet")
    records = [record for file in files for record in read_records(file)]
    columns = write_report_table(records, target, bank=bank, videos=videos)
    say(f"{', '.join(columns)}: {target}")


class _Imports(TyperGroup):
    """`import FILE BANK` stays a command beside `import KIND ...`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of a kind, or the one for what vqbank exports itself."""
        known = args[0] in self.commands
        return super().resolve_command(ctx, args if known else ["exported", *args])


import_app = program(
    cls=_Imports,
    no_args_is_help=True,
    help="Bank what `export` wrote (`import FILE BANK`), or caches that others published.",
)

LabelFile = Annotated[
    Path, typer.Option("--labels", help="Label file or manifest with a row for each video.")
]
IntoBank = Annotated[Path, typer.Option("--bank", help="Folder of the bank; made if need be.")]
Name = Annotated[str, typer.Option("--name", help="The feature becomes `imported.NAME`.")]
Note = Annotated[str, typer.Option("--note", help="Where the features come from; in their key.")]
DataSet = Annotated[
    str | None,
    typer.Option("--dataset", help="First part of every id (default: the label file's name)."),
]
Score = Annotated[
    str | None,
    typer.Option("--score", metavar="COLUMN", help="Which column of the label file is the MOS."),
]


@import_app.command("exported")
def import_(
    source: Annotated[Path, typer.Argument(metavar="FILE.h5|FOLDER", help="What to take in.")],
    bank: Annotated[Path, typer.Argument(help="Folder of the bank; made if need be.")],
    name: Annotated[
        str | None,
        typer.Option("--name", help="A foreign tree of .npy files becomes `imported.NAME`."),
    ] = None,
    note: Annotated[
        str | None, typer.Option("--note", help="Where a foreign tree comes from; in its key.")
    ] = None,
) -> None:
    """Bank what `export` wrote, or anybody's tree of .npy files, one per video."""
    from vqbank.store.bank import FeatureStore
    from vqbank.store.errors import RecipeError
    from vqbank.store.exchange.hdf5_file import import_hdf5
    from vqbank.store.exchange.incoming import refuse_pickle
    from vqbank.store.exchange.npy_tree import import_npy

    if not source.exists():
        raise RecipeError(
            f"{source} is not there; give a .h5 file, a folder of .npy files, or a kind of "
            "published cache: feats-mat, numbered-npy, per-second-npy"
        )
    if source.is_dir():
        given = source.name if name is None else name
        done = [
            import_npy(source, FeatureStore.create(bank), name=given, provenance_note=note or "")
        ]
    elif name is not None or note is not None:
        raise RecipeError("--name and --note are for trees of .npy files; an HDF5 file has its own")
    else:
        refuse_pickle(source)
        done = import_hdf5(source, FeatureStore.create(bank))
    _say_imported(done)


@import_app.command()
def feats_mat(
    source: Annotated[Path, typer.Argument(metavar="FEATURES.mat", help="MATLAB 5 or 7.3.")],
    labels: LabelFile,
    bank: IntoBank,
    name: Name,
    dataset: DataSet = None,
    score: Score = None,
    variable: Annotated[
        str | None, typer.Option("--variable", help="Of the file (default: the one that fits).")
    ] = None,
    rows_without_values: Annotated[
        Literal["stop", "drop", "mean"],
        typer.Option(
            help="Videos without any finite value: refused, left out, or means of the columns."
        ),
    ] = "stop",
    note: Note = "",
) -> None:
    """Bank a matrix of features, one row per video in the order of a label file."""
    from vqbank.pipelines.sources import labelled_videos
    from vqbank.store.bank import FeatureStore
    from vqbank.store.exchange.feats_mat import import_feats_mat

    videos = labelled_videos(labels, dataset, score)
    ids = [video.id for video in videos]
    store = FeatureStore.create(bank)
    done = import_feats_mat(
        source,
        store,
        name=name,
        ids=ids,
        note=note,
        variable=variable,
        rows_without_values=rows_without_values,
    )
    _say_imported([done])


@import_app.command()
def numbered_npy(
    source: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of ROW_EXTRACTOR.npy files.")],
    labels: LabelFile,
    bank: IntoBank,
    name: Name,
    dataset: DataSet = None,
    score: Score = None,
    note: Note = "",
) -> None:
    """Bank the tree of VSFA, MDTVSFA or TCSVT-2022-BVQA: files numbered as a label file's rows."""
    from vqbank.pipelines.sources import labelled_videos
    from vqbank.store.bank import FeatureStore
    from vqbank.store.exchange.numbered_npy import import_numbered_npy

    videos = labelled_videos(labels, dataset, score)
    done = import_numbered_npy(
        source,
        FeatureStore.create(bank),
        name=name,
        ids=[video.id for video in videos],
        mos=[video.mos for video in videos],
        note=note,
    )
    _say_imported(done)


@import_app.command()
def per_second_npy(
    source: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Of VIDEO/feature_SECOND_KIND_feature.npy.")
    ],
    labels: LabelFile,
    bank: IntoBank,
    name: Name,
    dataset: DataSet = None,
    score: Score = None,
    note: Note = "",
) -> None:
    """Bank the tree of SimpleVQA or RQ-VQA: a folder per video, a file per second."""
    from vqbank.pipelines.labels.match import assumed_data_set, match, unclear_pair
    from vqbank.pipelines.sources import labelled_videos
    from vqbank.store.bank import FeatureStore
    from vqbank.store.errors import ManifestError
    from vqbank.store.exchange.numbered_npy import import_per_second_npy

    videos = labelled_videos(labels, dataset, score)
    folders = sorted({path.parent.relative_to(source).as_posix() for path in source.rglob("*.npy")})
    known = [video.id for video in videos]
    found = match(folders, known)
    if found.unclear:
        raise ManifestError(
            f"{source}: {unclear_pair(found, folders, known)} of {labels}; give a manifest with "
            f"the ids, or folders as the labels have them ({len(found.unclear)} are so)"
        )
    data_set = assumed_data_set(found, folders, known)
    ids = {folders[row]: videos[video].id for row, video in found.pairs}
    done = import_per_second_npy(source, FeatureStore.create(bank), name=name, ids=ids, note=note)
    _say_imported(done)
    for folder in [folders[row] for row in found.only_one][:MOST_LINES]:
        say(f"  no label for {folder}; it keeps its name")
    under = f", as videos of {data_set}" if data_set else ""
    say(f"  {len(ids)} folders of {len(folders)} are labelled{under}")


def _say_imported(done: "list[Imported]") -> None:
    for imported in done:
        banked = counted(imported.banked, "video")
        say(f"{imported.spec.key}: {banked} banked, {imported.skipped} were there")
        for note in imported.notes[:MOST_LINES]:
            say(f"  {note}")
        if len(imported.notes) > MOST_LINES:
            say(f"  ... and {len(imported.notes) - MOST_LINES} more")


def pack(
    bank: OneBank,
    folder: Annotated[Path, typer.Argument(help="New or empty.")],
    feature: SomeFeatures = None,
    title: Annotated[
        str | None, typer.Option("--title", help="Of the card (default: the folder's name).")
    ] = None,
) -> None:
    """Make a folder that can be published: features, card, hashes, licences."""
    from vqbank.store.bank import FeatureStore
    from vqbank.store.exchange.pack import pack as pack_features

    store = FeatureStore(bank)
    pack_features(
        store, specs_named(store, feature), folder, title=folder.name if title is None else title
    )
    say(f"packed: {folder}")


def _is_hdf5(path: Path) -> bool:
    return path.suffix.lower() in (".h5", ".hdf5")
