"""Tails: what continues a network behind its cut, written once beside the states at the cut.

A tail has towers, such as "image" and "text".  In the feature's folder `tail/` every tower is one
safetensors file, named by its sha256, and `tail.json` says which files count and how each is built.
`tail.json` is written last and never changed, so that a tail is either absent or whole, and two
writers at once are harmless.  `towers-HASH.json` names towers that were asked for later: the part
of the network before the cut, for heads that start from it.  `tokens-HASH.json` holds token numbers
of prompts, for heads that learn prompts and have no tokenizer.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, with_config
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from typing_extensions import TypedDict

from vqbank.store.bank import FeatureStore, writing
from vqbank.store.checksums import CHANGED, MISSING
from vqbank.store.errors import BankError, DamagedShardError, MissingFeatureError, in_words
from vqbank.store.files import (
    create_exclusively,
    inside,
    is_there,
    listed,
    opened,
    put_in_place,
    set_aside,
    sync_folder,
    unfinished,
)
from vqbank.store.records import Count, Sha256, Version, read_sealed, seal
from vqbank.store.schema import FeatureSpec, canonical_json

FOLDER = "tail"
_VERSION = 1
_INDEX = "tail.json"
_TOKENS = "tokens-*.json"
_TOWERS = "towers-*.json"
_lenient = with_config(ConfigDict(extra="allow", strict=True))


@_lenient
class _TowerEntry(TypedDict):
    sha256: Sha256
    bytes: Count
    configuration: dict[str, Any]


@_lenient
class _IndexFile(TypedDict):
    version: Version
    towers: dict[str, _TowerEntry]


@_lenient
class _TokensFile(TypedDict):
    version: Version
    tokens: dict[str, list[Annotated[int, Field(ge=0, lt=2**31)]]]


_INDEX_FILE: TypeAdapter[Any] = TypeAdapter(_IndexFile)
_TOKENS_FILE: TypeAdapter[Any] = TypeAdapter(_TokensFile)


@dataclass(frozen=True, eq=False)
class Tower:
    """One tower of a tail."""

    configuration: Mapping[str, Any]
    """JSON values from which the modules are built."""
    tensors: Mapping[str, NDArray[Any]]
    """Weights by the modules' own names."""


@dataclass(frozen=True, eq=False)
class Tail:
    """What an extractor gives to be written."""

    towers: Mapping[str, Tower]
    tokens: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Token numbers by prompt, padding included."""


def has_tail(
    store: FeatureStore,
    spec: FeatureSpec,
    prompts: Iterable[str] = (),
    towers: Iterable[str] = (),
) -> bool:
    """Whether the tail of this feature is there, the tokens of all these prompts, these towers."""
    folder = inside(store.path, store.path / spec.key / FOLDER)
    if not is_there(folder.parent, folder / _INDEX):
        return False
    return set(prompts) <= _tokens(folder).keys() and set(towers) <= tower_hashes(folder).keys()


def write_tail(store: FeatureStore, spec: FeatureSpec, tail: Tail) -> None:
    """Write what is missing of a tail; what is there is kept.

    If it is killed, call it again: until the last act there is no tail, only files that nobody
    reads.

    Raises:
        BankError: if the bank cannot be written.
    """
    folder = inside(store.path, store.path / spec.key / FOLDER)
    with writing(store.path):
        folder.mkdir(parents=True, exist_ok=True)
        sync_folder(folder.parent)
        known = tower_hashes(folder) if (folder / _INDEX).exists() else {}
        towers = {
            name: {"configuration": dict(tower.configuration), **_write(folder, tower)}
            for name, tower in tail.towers.items()
            if name not in known
        }
        if towers:
            digest = hashlib.sha256(canonical_json(towers).encode()).hexdigest()
            index = f"towers-{digest[:12]}.json" if known else _INDEX
            made = create_exclusively(folder / index, seal({"version": _VERSION, "towers": towers}))
            if not made and not known:  # another writer's, which may lack towers
                write_tail(store, spec, tail)
                return
        new = {prompt: list(tail.tokens[prompt]) for prompt in tail.tokens.keys() - _tokens(folder)}
        if new:
            digest = hashlib.sha256(canonical_json(new).encode()).hexdigest()
            content = seal({"version": _VERSION, "tokens": new})
            create_exclusively(folder / f"tokens-{digest[:12]}.json", content)


def _write(folder: Path, tower: Tower) -> dict[str, Any]:
    """Put the tensors under the name of their sha256; gives the entry of the index."""
    with unfinished(folder / "tower.safetensors") as temporary:
        try:
            save_file({k: np.ascontiguousarray(v) for k, v in tower.tensors.items()}, temporary)
        except SafetensorError as error:  # a full disk, among others
            raise BankError(f"{temporary} cannot be written: {error}") from error
        with temporary.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
        put_in_place(temporary, folder / f"{digest}.safetensors")
    return {"sha256": digest, "bytes": size}


def tail_folder(store: FeatureStore, name: str) -> Path:
    """Where the tail of a feature lies, by its name `extractor.output` or its key.

    Raises:
        AmbiguousFeatureError: if several keys share the name.
        MissingFeatureError: if the bank has no such feature, or it has no tail.
    """
    folder = inside(store.path, store.path / store.resolve(name).key / FOLDER)
    _index(folder)
    return folder


def tower_hashes(folder: Path) -> dict[str, str]:
    """sha256 of the file of each tower of a tail, by its name.

    Args:
        folder: from `tail_folder`, or a copy of it anywhere.

    Raises:
        MissingFeatureError: if there is no tail.
        DamagedShardError: if its index is not what was written.
    """
    return {name: entry["sha256"] for name, entry in _index(folder)["towers"].items()}


def read_tower(folder: Path, name: str) -> Tower:
    """One tower of the tail in a folder, its bytes compared with their sha256.

    Args:
        folder: from `tail_folder`, or a copy of it anywhere.
        name: of the tower.

    Raises:
        MissingFeatureError: if there is no tail, or it has no such tower.
        DamagedShardError: if a file is not what was written.
    """
    towers = _index(folder)["towers"]
    if name not in towers:
        raise MissingFeatureError(f"{folder} has no tower {name!r}; it has {', '.join(towers)}")
    entry = towers[name]
    path = folder / f"{entry['sha256']}.safetensors"
    with _reading(path):
        with opened(folder.parent, path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != entry["sha256"]:
            raise DamagedShardError(
                f"{path} has changed since it was written; remove {folder} and extract again, "
                "which writes the tail and no feature"
            )
        return Tower(entry["configuration"], load_file(path))


def read_tokens(folder: Path, prompts: Sequence[str]) -> NDArray[np.int64]:
    """Token numbers [n, length] of prompts.

    Raises:
        MissingFeatureError: if one of them was not asked for when the tail was written.
        DamagedShardError: if a file is not what was written.
    """
    known = _tokens(folder)
    missing = [prompt for prompt in prompts if prompt not in known]
    if missing:
        raise MissingFeatureError(
            f"{folder} has no tokens of {missing[0]!r}; name it among the extractor's prompts and "
            "extract again, which computes no feature"
        )
    if len({len(known[prompt]) for prompt in prompts}) > 1:
        raise DamagedShardError(f"{folder} has tokens of different length; extract again")
    return np.array([known[prompt] for prompt in prompts], np.int64)


def read_every_token(folder: Path) -> dict[str, list[int]]:
    """Token numbers of every prompt that a tail knows.

    Raises:
        DamagedShardError: if a file is not what was written.
    """
    return _tokens(folder)


def tail_bytes(folder: Path) -> int:
    """Size of all towers; 0 where there is no tail.

    Raises:
        DamagedShardError: if its index is not what was written.
    """
    if not is_there(folder.parent, folder / _INDEX):
        return 0
    return sum(int(entry["bytes"]) for entry in _index(folder)["towers"].values())


def damaged(folder: Path) -> Iterator[tuple[str, str]]:
    """Files of a tail that are not what was written, by name, and what is wrong with each.

    All bytes are read.  Where there is no tail nothing is wrong.

    Args:
        folder: `tail/` of a feature.

    Raises:
        BankError: if a newer vqbank wrote a file, or one cannot be read.
    """
    for path in [folder / _INDEX, *_files(folder, _TOWERS), *_files(folder, _TOKENS)]:
        if path.exists() or path.is_symlink():
            try:
                _read(path, _TOKENS_FILE if path.match(_TOKENS) else _INDEX_FILE)
            except DamagedShardError as error:
                yield path.name, str(error).removeprefix(f"{path} ")
    with suppress(MissingFeatureError, DamagedShardError):  # the latter is told already
        for entry in _index(folder)["towers"].values():
            name = f"{entry['sha256']}.safetensors"
            what = _tower_damage(folder / name, entry)
            if what is not None:
                yield name, what


def set_tail_aside(folder: Path, name: str) -> None:
    """Move a damaged file of a tail to `.NAME.damaged`, and every index with a damaged tower.

    Then there is no tail, or it lacks tokens, and the next extraction writes what is missing.

    Raises:
        BankError: if the bank cannot be written.
    """
    inside(folder.parents[1], folder)
    names = [name]
    if Path(name).suffix != ".json":
        names = [_INDEX, *(path.name for path in _files(folder, _TOWERS)), name]
    with writing(folder):
        for moved in dict.fromkeys(names):
            set_aside(folder / moved)
        sync_folder(folder)


def _tower_damage(path: Path, entry: Mapping[str, Any]) -> str | None:
    if not path.exists():
        return MISSING
    with _reading(path), opened(path.parents[1], path) as file:
        size = os.fstat(file.fileno()).st_size
        if size != entry["bytes"]:
            return f"has {size} bytes, {entry['bytes']} were committed"
        if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
            return CHANGED
    return None


def _index(folder: Path) -> dict[str, Any]:
    path = folder / _INDEX
    if not is_there(folder.parent, path):
        raise MissingFeatureError(
            f"{folder} holds no tail; `vqbank extract` writes it for extractors that bank the "
            "states at a cut"
        )
    index = _read(path, _INDEX_FILE)
    for later in _files(folder, _TOWERS):
        index["towers"].update(_read(later, _INDEX_FILE)["towers"])
    return index


def _tokens(folder: Path) -> dict[str, list[int]]:
    known: dict[str, list[int]] = {}
    for path in _files(folder, _TOKENS):
        known.update(_read(path, _TOKENS_FILE)["tokens"])
    return known


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in listed(folder.parent, folder) if path.match(pattern))


def _read(path: Path, kind: Any) -> dict[str, Any]:
    with _reading(path):
        return read_sealed(path.parents[1], path, kind)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BankError(f"{path} cannot be read: {error.strerror}") from error
    except (SafetensorError, TypeError) as error:  # the latter for numbers that NumPy has none of
        raise DamagedShardError(f"{path} is no file of tensors: {in_words(error)}") from error
