"""The commands that keep a bank.  Libraries are imported inside them, so that `--help` is quick."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from vqbank.pipelines.terminal import counted, say

if TYPE_CHECKING:
    from vqbank.store.bank import FeatureStore
    from vqbank.store.exchange.incoming import Imported
    from vqbank.store.schema import FeatureSpec, Video

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Bank = Annotated[Path, typer.Argument(help="Folder of the bank.")]
Feature = Annotated[
    list[str] | None,
    typer.Option("--features", metavar="NAME[@KEY]", help="May be repeated (default: all)."),
]
TEXT = "text"
"""The room of text banks, itself a bank; `vqbank.store.text` says so too."""
SHOWN = 10
"""Worst videos that `diff` prints."""


@app.command()
def diff(
    one: Annotated[Path, typer.Argument(metavar="A", help="Folder of a bank.")],
    two: Annotated[
        Path | None, typer.Argument(metavar="[B]", help="Another; or compare two features of A.")
    ] = None,
    feature: Annotated[
        list[str] | None,
        typer.Option("--features", metavar="NAME[@KEY]", help="May be repeated; two without B."),
    ] = None,
) -> None:
    """Compare two banks, or two features of one, video by video; exits 1 where they differ."""
    from vqbank.store.bank import FeatureStore
    from vqbank.store.compare import diff as differences
    from vqbank.store.compare import diff_features, summarise
    from vqbank.store.errors import BankError

    first = FeatureStore(one)
    if two is None:
        if feature is None or len(feature) != 2:
            raise BankError(
                f"one bank: give --features twice, or a second bank to compare {one} to"
            )
        found = diff_features(first, *(first.resolve(name) for name in feature))
    else:
        second = FeatureStore(two)
        specs = [*_named(first, feature), *_named(second, feature)] if feature else None
        for name in feature or ():
            if not _named(first, [name]) and not _named(second, [name]):
                first.resolve(name)  # says which names there are
        found = differences(first, second, specs)
    summary = summarise(found, worst=SHOWN)
    say(
        f"{counted(summary.only_in_one, 'video')} only in the first, "
        f"{summary.only_in_two} only in the second, {summary.differing} differ"
    )
    for worst in summary.worst:
        rows = f"{worst.rows[0]} and {worst.rows[1]} rows"
        say(
            f"largest {worst.largest:.4g}  cosine {worst.cosine:.6f}  {rows}  "
            f"{worst.key}  {worst.video}  ({', '.join(worst.arrays)})"
        )
    if summary.only_in_one or summary.only_in_two or summary.differing:
        raise typer.Exit(1)


@app.command()
def verify(
    bank: Bank,
    mark: Annotated[
        bool, typer.Option("--mark", help="Count damaged rows as missing: `extract` redoes them.")
    ] = False,
    feature: Feature = None,
) -> None:
    """Check lengths, checksums and values of everything in a bank; exits 1 where any is bad."""
    from vqbank.store.bank import FeatureStore
    from vqbank.store.verify import mark as mark_problems
    from vqbank.store.verify import verify as problems

    found: dict[FeatureStore, list[Any]] = {}
    for store in _rooms(bank) if not feature else [FeatureStore(bank)]:
        specs = [store.resolve(name) for name in feature] if feature else None
        for problem in problems(store, specs):
            found.setdefault(store, []).append(problem)
            say(f"{(store.path / problem.key).relative_to(bank)}/{problem.file}: {problem.what}")
            if problem.videos is None and problem.shard:
                say("  redo: every video of this shard")
            for video in problem.videos or ():
                say(f"  redo: {video}")
    if not found:
        say(f"{bank}: everything is as it was committed")
        return
    if mark:
        for store, of_store in found.items():
            mark_problems(store, of_store)
        say("marked: `vqbank extract` makes these videos anew")
    else:
        say("restore these files, or run this again with --mark and then `vqbank extract`")
    raise typer.Exit(1)


@app.command()
def compact(bank: Bank, feature: Feature = None) -> None:
    """Copy many small shards into few large ones, while others read and write."""
    from vqbank.store.bank import FeatureStore
    from vqbank.store.compact import compact as compact_feature

    store = FeatureStore(bank)
    left = False
    for spec in _specs(store, feature):
        done = compact_feature(store, spec, provenance=_provenance("compact"))
        say(
            f"{spec.key}: {counted(len(done.replaced), 'shard')} into {len(done.written)}, "
            f"{counted(done.videos, 'video')}"
        )
        for problem in done.left:
            left = True
            say(f"{problem.key}/{problem.file}: {problem.what}", err=True)
    say("old shards stay for who reads them; `vqbank prune` removes them a day later")
    if left:
        raise typer.Exit(1)


@app.command()
def merge(
    target: Annotated[Path, typer.Argument(help="The bank that grows; made if need be.")],
    sources: Annotated[list[Path], typer.Argument(metavar="SOURCE...", help="Other banks.")],
) -> None:
    """Copy banks into one; keys and duplicates are checked first."""
    from vqbank.store.bank import FeatureStore
    from vqbank.store.files import inside
    from vqbank.store.merge import merge as merge_banks

    others = [FeatureStore(source) for source in sources]
    for source in sources:
        inside(source, source / TEXT)
    report = merge_banks(FeatureStore.create(target), others)
    texts = [room for source in sources for room in _rooms(source)[1:]]
    if texts:
        merge_banks(FeatureStore.create(inside(target, target / TEXT)), texts)
    copied = counted(report.shards, "shard")
    say(f"{copied} copied ({_bytes(report.size)}), {report.present} were there")
    if report.duplicates:
        other = [duplicate for duplicate in report.duplicates if not duplicate.same]
        videos, differing = (
            len({duplicate.video for duplicate in some}) for some in (report.duplicates, other)
        )
        features = len({duplicate.key for duplicate in report.duplicates})
        say(
            f"{counted(videos, 'video')} in more than one bank, with {counted(features, 'feature')}"
            f"; {differing} of them with other bytes; the first that was committed counts"
        )
        for duplicate in other[:SHOWN]:
            say(f"other bytes: {duplicate.key}  {duplicate.video}")


@app.command()
def prune(
    bank: Bank,
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove; else only say what would go.")
    ] = False,
    older_than_hours: Annotated[
        float,
        typer.Option(
            "--older-than-hours",
            min=0,
            help="Keep what changed since: longer than a writer pauses or a reader reads.",
        ),
    ] = 24.0,
) -> None:
    """Remove orphans, superseded shards and unfinished writes; dry unless told."""
    from vqbank.store.prune import prune as prune_bank

    removals = [
        removal
        for store in _rooms(bank)
        for removal in prune_bank(
            store, dry_run=not yes, older_than_seconds=older_than_hours * 3600
        )
    ]
    for removal in removals:
        path = removal.path.relative_to(bank)
        say(f"{path}  {_bytes(removal.size)}  {removal.why}")
    total = _bytes(sum(removal.size for removal in removals))
    did = "removed" if yes else "nothing removed; with --yes would go"
    say(f"{did}: {counted(len(removals), 'item')}, {total}")


@app.command()
def selection(
    bank: Bank,
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


@app.command()
def export(
    bank: Bank,
    target: Annotated[Path, typer.Argument(metavar="FILE.h5|FOLDER", help="New.")],
    feature: Feature = None,
) -> None:
    """Write features to one HDF5 file, or one feature to a tree of .npy files."""
    from vqbank.store.bank import FeatureStore
    from vqbank.store.errors import RecipeError
    from vqbank.store.exchange.hdf5_file import export_hdf5
    from vqbank.store.exchange.npy_tree import export_npy

    store = FeatureStore(bank)
    specs = _specs(store, feature)
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


class _Imports(TyperGroup):
    """`import FILE BANK` stays a command beside `import KIND ...`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of a kind, or the one for what vqbank exports itself."""
        known = args[0] in self.commands
        return super().resolve_command(ctx, args if known else ["exported", *args])


import_app = typer.Typer(
    cls=_Imports,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Bank what `export` wrote (`import FILE BANK`), or caches that others published.",
)
app.add_typer(import_app, name="import")

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
    for folder in [folders[row] for row in found.only_one][:SHOWN]:
        say(f"  no label for {folder}; it keeps its name")
    under = f", as videos of {data_set}" if data_set else ""
    say(f"  {len(ids)} folders of {len(folders)} are labelled{under}")


def labelled_videos(source: Path, dataset: str | None, score: str | None) -> "list[Video]":
    """The rows of a manifest, or of a label file of any layout, in its order.

    Raises:
        ManifestError: naming file, line and column; or if a column is named of a manifest.
    """
    from vqbank.pipelines.labels import read_labels
    from vqbank.pipelines.labels.videos import videos_of
    from vqbank.pipelines.manifest import is_manifest, read_manifest
    from vqbank.store.errors import ManifestError

    if is_manifest(source):
        if score is not None:
            raise ManifestError(f"--score is for label files; the score of {source} is `mos`")
        return read_manifest(source)
    return videos_of(
        read_labels(source, score=score).rows, source.stem if dataset is None else dataset
    )


def _say_imported(done: "list[Imported]") -> None:
    for imported in done:
        banked = counted(imported.banked, "video")
        say(f"{imported.spec.key}: {banked} banked, {imported.skipped} were there")
        for note in imported.notes[:SHOWN]:
            say(f"  {note}")
        if len(imported.notes) > SHOWN:
            say(f"  ... and {len(imported.notes) - SHOWN} more")


@app.command()
def pack(
    bank: Bank,
    folder: Annotated[Path, typer.Argument(help="New or empty.")],
    feature: Feature = None,
    title: Annotated[
        str | None, typer.Option("--title", help="Of the card (default: the folder's name).")
    ] = None,
) -> None:
    """Make a folder that can be published: features, card, hashes, licences."""
    from vqbank.store.bank import FeatureStore
    from vqbank.store.exchange.pack import pack as pack_features

    store = FeatureStore(bank)
    pack_features(
        store, _specs(store, feature), folder, title=folder.name if title is None else title
    )
    say(f"packed: {folder}")


def _specs(store: "FeatureStore", names: list[str] | None) -> "list[FeatureSpec]":
    """Those named, or all; an empty bank is an error."""
    if names:
        return [store.resolve(name) for name in names]
    specs = store.specs()
    if not specs:
        store.resolve("")  # says that the bank is empty
    return specs


def _named(store: "FeatureStore", names: list[str]) -> "list[FeatureSpec]":
    """Every key of these names, also where several share one."""
    return [spec for spec in store.specs() if spec.name in names or spec.key in names]


def roles_of(features: list[str]) -> dict[str, str]:
    """Feature names by role, from `[ROLE=]NAME[@KEY]`; a bare name is its own role.

    Raises:
        RecipeError: if two have one role.
    """
    from vqbank.store.errors import RecipeError

    roles: dict[str, str] = {}
    for feature in features:
        role, _, name = feature.rpartition("=")
        role = role or name.partition("@")[0]
        if role in roles:
            raise RecipeError(f"--features names role {role!r} twice")
        roles[role] = name
    return roles


def _is_hdf5(path: Path) -> bool:
    return path.suffix.lower() in (".h5", ".hdf5")


def _provenance(action: str) -> dict[str, Any]:
    import platform
    from importlib.metadata import version

    software = {name: version(name) for name in ("vqbank", "numpy")}
    return {"software": software, "host": platform.node(), "action": action}


def _rooms(bank: Path) -> "list[FeatureStore]":
    """The bank, and its text banks where it has some."""
    from vqbank.store.bank import BANK_FILE, FeatureStore

    rooms = [FeatureStore(bank)]
    text = bank / TEXT
    if not text.is_symlink() and (text / BANK_FILE).exists():  # else `verify` names the link
        rooms.append(FeatureStore(text))
    return rooms


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count} bytes"
