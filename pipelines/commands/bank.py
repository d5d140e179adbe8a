"""The commands that keep a bank: `diff`, `verify`, `compact`, `merge`, `prune`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqbank.pipelines.commands.options import MOST_LINES, OneBank, SomeFeatures, specs_named
from vqbank.pipelines.terminal import counted, say

if TYPE_CHECKING:
    from vqbank.store.bank import FeatureStore
    from vqbank.store.schema import FeatureSpec

TEXT = "text"
"""The room of text banks, itself a bank; `vqbank.store.text` says so too."""


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
    summary = summarise(found, worst=MOST_LINES)
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


def verify(
    bank: OneBank,
    mark: Annotated[
        bool, typer.Option("--mark", help="Count damaged rows as missing: `extract` redoes them.")
    ] = False,
    feature: SomeFeatures = None,
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


def compact(bank: OneBank, feature: SomeFeatures = None) -> None:
    """Copy many small shards into few large ones, while others read and write."""
    from vqbank.store.bank import FeatureStore
    from vqbank.store.compact import compact as compact_feature

    store = FeatureStore(bank)
    left = False
    for spec in specs_named(store, feature):
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
        for duplicate in other[:MOST_LINES]:
            say(f"other bytes: {duplicate.key}  {duplicate.video}")


def prune(
    bank: OneBank,
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


def _named(store: "FeatureStore", names: list[str]) -> "list[FeatureSpec]":
    """Every key of these names, also where several share one."""
    return [spec for spec in store.specs() if spec.name in names or spec.key in names]


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
