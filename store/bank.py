"""A bank: a folder of committed shards.  What listing it shows is its state."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from vqbank.store.catalogue import FILE as CATALOGUE_FILE
from vqbank.store.catalogue import Catalogue
from vqbank.store.column import Column, Located
from vqbank.store.errors import (
    AmbiguousFeatureError,
    BankError,
    ChangedVideoError,
    DamagedShardError,
    MissingFeatureError,
    VqbankError,
    refusal,
    unknown_name,
)
from vqbank.store.files import content, create_exclusively, inside, listed, sync_folder
from vqbank.store.layout import VideoRecord
from vqbank.store.records import FORMAT_VERSION, Version, parsed
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, Video, canonical_json
from vqbank.store.shard import Shard
from vqbank.store.shard_writer import ShardWriter
from vqbank.store.table import FeatureTable
from vqbank.store.words import few, html_table, text_table

BANK_FILE = "bank.json"
_HEAD = ("feature", "row", "videos")


class _Header(TypedDict):
    format: Literal["vqbank"]
    version: Version


_HEADER: TypeAdapter[Any] = TypeAdapter(_Header)


class FeatureStore:
    """A bank on disk: list, resolve, read, missing, write."""

    def __init__(self, path: Path) -> None:
        """Open an existing bank.

        Raises:
            BankError: if `path` is no bank, or a bank of a newer format.
        """
        self.path = path
        self._shards: dict[tuple[str, str], Shard] = {}
        self._catalogues: dict[str, Catalogue] = {}
        self._by_content: dict[str, dict[Fingerprint, str]] = {}
        try:
            text = content(path, path / BANK_FILE)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BankError(
                f"{path} is no bank: it has no {BANK_FILE}; `vqbank extract` makes one"
            ) from error
        header = parsed(text, _HEADER, f"{path / BANK_FILE} is not the header of a bank")
        if header["version"] > FORMAT_VERSION:
            raise BankError(
                f"{path} is a bank of format version {header['version']}, this vqbank reads up to "
                f"{FORMAT_VERSION}; install a newer vqbank"
            )

    @classmethod
    def at(cls, location: str) -> "FeatureStore":
        """Open a bank by path, or by a URL that fsspec knows, such as `s3://bucket/bank`.

        Raises:
            BankError: if there is no bank, or the package for URLs is not installed.
        """
        if "://" not in location:
            return cls(Path(location))
        try:
            from upath import UPath
        except ImportError as error:
            raise BankError(
                f"{location}: banks at URLs need `pip install 'vqbank[remote]'`"
            ) from error
        remote: Any = UPath(location)
        return cls(remote)

    @classmethod
    def create(cls, path: Path) -> "FeatureStore":
        """Open the bank at `path`, made if it is not there.

        Raises:
            BankError: if it cannot be made, or the folder holds something else.
        """
        if not (path / BANK_FILE).exists():
            header = canonical_json({"format": "vqbank", "version": FORMAT_VERSION})
            try:
                _make_folder(path)
                strangers = [one.name for one in path.iterdir() if not one.name.startswith(".")]
                if strangers and not (path / BANK_FILE).exists():  # not just made by somebody else
                    raise BankError(
                        f"{path} holds {strangers[0]} and is no bank; give an empty or new folder"
                    )
                create_exclusively(path / BANK_FILE, header.encode())
            except OSError as error:
                raise BankError(f"{path} cannot be made: {refusal(error)}") from error
        return cls(path)

    def __repr__(self) -> str:
        return text_table(f"FeatureStore: {self.path}", _HEAD, self._lines())

    def _repr_html_(self) -> str:
        return html_table(f"FeatureStore: {self.path}", _HEAD, self._lines())

    def _lines(self) -> Iterator[tuple[str, str, str]]:
        """Key, row and number of videos of every feature; what is damaged says so."""
        try:
            specs = self.specs()
        except VqbankError as error:
            yield "", "", str(error)
            return
        for spec in specs:
            try:
                videos = str(len(self._catalogue(spec)))
            except VqbankError as error:
                videos = str(error)
            yield spec.key, f"{spec.stored_dtype} {list(spec.shape)}", videos

    def refresh(self) -> None:
        """Look at the disk again: other writers may have committed."""
        self._shards.clear()
        self._catalogues.clear()
        self._by_content.clear()

    def specs(self) -> list[FeatureSpec]:
        """Every feature that has a spec file, by key."""
        folders = [path for path in listed(self.path, self.path) if is_key(path.name)]
        specs = []
        for folder in folders:
            with suppress(FileNotFoundError):  # not a feature yet
                specs.append(self.read_spec(folder / "spec.json"))
        return specs

    def named(self, name: str) -> list[FeatureSpec]:
        """The features of a name or key; what was imported also goes without `imported.`."""
        return [
            spec
            for spec in self.specs()
            if name in (spec.key, spec.name, spec.name.removeprefix("imported."))
        ]

    def resolve(self, name: str) -> FeatureSpec:
        """The feature of a name `extractor.output` or a key `extractor.output@hash`.

        What was imported also goes by its own name, without `imported.`.

        Raises:
            AmbiguousFeatureError: if several keys share the name.
            MissingFeatureError: if the bank has no such feature.
        """
        found = self.named(name)
        if len(found) == 1:
            return found[0]
        if found:
            raise AmbiguousFeatureError(
                f"{self.path} has {len(found)} features named {name}: "
                f"{', '.join(spec.key for spec in found)}; ask for one by its key"
            )
        known = [spec.name for spec in self.specs()]
        if not known:
            raise MissingFeatureError(f"{self.path} has no features; run `vqbank extract` first")
        raise MissingFeatureError(f"{self.path}: {unknown_name('feature', name, known)}")

    def video_ids(self, spec: FeatureSpec) -> list[str]:
        """Ids of the videos that have this feature, sorted."""
        return sorted(self._catalogue(spec).ids())

    def video_record(self, spec: FeatureSpec, video_id: str) -> VideoRecord:
        """What the winning shard knows of a video."""
        found = self._located(spec, video_id)
        return found.source.video(found.place)

    def missing(self, spec: FeatureSpec, videos: Sequence[Video]) -> list[Video]:
        """The videos that have no committed rows of this feature."""
        found = self._catalogue(spec).find([video.id for video in videos])
        return [video for video, place in zip(videos, found, strict=True) if place is None]

    def find(self, spec: FeatureSpec, video_ids: Sequence[str]) -> list[Located[Shard] | None]:
        """The winning shard of each video and the video's place in it; None where there is none."""
        return [
            None if found is None else self._found(spec, *found, video_id)
            for found, video_id in zip(
                self._catalogue(spec).find(video_ids), video_ids, strict=True
            )
        ]

    def ids_by_content(self, spec: FeatureSpec) -> Mapping[Fingerprint, str]:
        """Under which id the bytes of a file are banked; of several ids the first by name.

        Every index of this feature is read once, and remembered until `refresh`.
        """
        if spec.key not in self._by_content:
            found = self._by_content[spec.key] = {}
            for shard, places in self.winners(spec).items():
                for video_id, place in places.items():
                    content = shard.video(place).fingerprint
                    if content.sha256:  # else it was imported: nobody has seen the video
                        found[content] = min(video_id, found.get(content, video_id))
        return self._by_content[spec.key]

    def read_spec(self, path: Path) -> FeatureSpec:
        """The identity at `path`, the spec.json of a feature's folder.

        Raises:
            FileNotFoundError: if it is not there.
            BankError: if it is damaged, or the folder has another name than its key.
        """
        text = content(self.path, path)
        try:
            spec = FeatureSpec.from_json(text)
        except (ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise DamagedShardError(f"{path} is not a feature's spec: {reason}") from error
        if spec.key != path.parent.name:
            raise BankError(
                f"{path.parent} holds {spec.key}; a folder's name is its key, rename it back"
            )
        return spec

    def winners(self, spec: FeatureSpec) -> dict[Shard, dict[str, int]]:
        """Place of every video by the shard that wins it."""
        winners: dict[Shard, dict[str, int]] = {}
        ids = self.video_ids(spec)
        for video, found in zip(ids, self.find(spec, ids), strict=True):
            if found is not None:
                shard, place = found
                winners.setdefault(shard, {})[video] = place
        return winners

    def check_file(self, spec: FeatureSpec, video: Video, fingerprint: Fingerprint) -> None:
        """Compare the file at hand with the one that was banked under the same id.

        Raises:
            ChangedVideoError: if they differ.
        """
        banked = self.video_record(spec, video.id)
        if banked.fingerprint != fingerprint:
            raise ChangedVideoError(
                f"{video.id}: {video.path} ({fingerprint.length} bytes, "
                f"{fingerprint.sha256[:12]}) is not the file whose {spec.key} is banked "
                f"({banked.fingerprint.length} bytes, {banked.fingerprint.sha256[:12]}); "
                "give it another id or use another bank"
            )

    def read(self, spec: FeatureSpec, video_id: str) -> Feature:
        """One feature of one video.

        Raises:
            MissingFeatureError: if it is not banked.
            DamagedShardError: if its bytes have changed since.
        """
        found = self._located(spec, video_id)
        return found.source.feature(found.place)

    def table(self, videos: Iterable[Video | str], features: Mapping[str, str]) -> FeatureTable:
        """Chosen features of chosen videos, memory-mapped.

        Args:
            videos: Rows of the table, in this order: videos of a manifest, or mere ids, whose
                scores are not known.
            features: Feature name or key by role; the order of roles is that of concatenation.

        Raises:
            MissingFeatureError: naming the videos that lack a feature.
            TypeError: if `videos` is one name: a manifest has to be read first; or `features` are
                not by role.
        """
        if isinstance(videos, str | Path):
            raise TypeError(f"{videos!r} is one name; give a list of ids or of Videos")
        if not isinstance(features, Mapping):
            raise TypeError(
                f"features by role are wanted, as {{'quality': 'nss.brisque'}}; got {features!r}"
            )
        chosen = [one if isinstance(one, Video) else Video(one, Path(one)) for one in videos]
        columns = {}
        for role, name in features.items():
            spec = self.resolve(name)
            found = self.find(spec, [video.id for video in chosen])
            places = [place for place in found if place is not None]
            if len(places) < len(chosen):
                lacking = [v.id for v, place in zip(chosen, found, strict=True) if place is None]
                raise MissingFeatureError(
                    f"{len(lacking)} of {len(chosen)} videos have no {spec.key} in {self.path}: "
                    f"{few(lacking)}; run `vqbank extract` on them, or compare ids with "
                    f"`vqbank ls BANK {spec.name}`"
                )
            columns[role] = Column(spec, places, bank=self.path)
        return FeatureTable(chosen, columns)

    def writer(
        self, spec: FeatureSpec, *, provenance: Mapping[str, Any], durable: bool = True
    ) -> ShardWriter:
        """A writer of a new shard of `spec`; its folder and spec file are made if need be."""
        folder = inside(self.path, self.path / spec.key)
        folder.mkdir(exist_ok=True)
        if not (folder / "spec.json").exists():
            create_exclusively(folder / "spec.json", spec.to_json().encode())
        return ShardWriter(folder, spec, provenance=provenance, durable=durable)

    def _catalogue(self, spec: FeatureSpec) -> Catalogue:
        if spec.key not in self._catalogues:
            self._catalogues[spec.key] = Catalogue.of(self.path / spec.key, spec)
        return self._catalogues[spec.key]

    def _found(self, spec: FeatureSpec, shard_id: str, place: int, video_id: str) -> Located[Shard]:
        shard = self._shard(spec, shard_id)
        if not shard.holds(place, video_id):  # a catalogue is a stranger's word
            kept = self.path / spec.key / CATALOGUE_FILE
            raise DamagedShardError(
                f"{kept} says that {video_id} is number {place} of {shard.id}, where it is not; "
                "remove it"
            )
        return Located(shard, place)

    def _shard(self, spec: FeatureSpec, shard_id: str) -> Shard:
        key = (spec.key, shard_id)
        if key not in self._shards:
            folder = self.path / spec.key
            self._shards[key] = Shard(folder, folder / "commits" / f"{shard_id}.json", spec)
        return self._shards[key]

    def _located(self, spec: FeatureSpec, video_id: str) -> Located[Shard]:
        (found,) = self.find(spec, [video_id])
        if found is None:
            raise MissingFeatureError(f"{video_id} has no {spec.key} in {self.path}")
        return found


def is_key(name: str) -> bool:
    """Whether a name in a bank is that of a feature's folder."""
    return "@" in name and not name.startswith(".")


def _make_folder(path: Path) -> None:
    """Make a folder and its parents, so that their names survive a power cut."""
    if not path.absolute().parent.exists():
        _make_folder(path.absolute().parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.absolute().parent)


@contextmanager
def writing(bank: Path) -> Iterator[None]:
    """Failures of the disk in here become one clear error.

    Raises:
        BankError: for every OSError.
    """
    try:
        yield
    except OSError as error:
        raise BankError(
            f"{bank} cannot be written ({refusal(error)}); what was committed is safe, run the "
            "same command again once it can be"
        ) from error
