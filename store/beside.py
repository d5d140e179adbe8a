"""What a bank holds beside a feature, for heads that go on from it: its tail, and text banks."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vqbank.store.bank import FeatureStore
from vqbank.store.errors import MissingFeatureError
from vqbank.store.files import create_exclusively, inside
from vqbank.store.tail import (
    Tail,
    Tower,
    read_every_token,
    read_tokens,
    read_tower,
    tail_folder,
    tower_hashes,
    write_tail,
)
from vqbank.store.text import TextBank, read_text, text_bank_spec, write_text


@dataclass(frozen=True)
class Beside:
    """A place where the companions of a feature lie: its bank, or the folder of a packed head.

    Every method raises MissingFeatureError where something is not there, and DamagedShardError
    where it is not what was written.
    """

    bank: Path
    key: str
    """Of the feature."""

    def tower_sha256(self, name: str) -> str:
        """Of the file of one tower of the tail."""
        hashes = tower_hashes(self._tail())
        if name not in hashes:
            raise MissingFeatureError(
                f"the tail of {self.key} in {self.bank} has no tower {name!r}; it has "
                f"{', '.join(hashes)}"
            )
        return hashes[name]

    def tower_state(self, name: str) -> tuple[str, int, int]:
        """What tells whether the file of a tower is still the one that was read: sha256 by the
        index, size in bytes, time of the last change in nanoseconds."""
        sha256 = self.tower_sha256(name)
        path = self._tail() / f"{sha256}.safetensors"
        try:
            found = path.stat()
        except OSError:  # for `tower` to tell
            return sha256, 0, 0
        return sha256, found.st_size, found.st_mtime_ns

    def tower(self, name: str) -> Tower:
        """One tower of the tail."""
        return read_tower(self._tail(), name)

    def tokens(self, prompts: Sequence[str]) -> NDArray[np.int64]:
        """Token numbers [n, length] of prompts."""
        return read_tokens(self._tail(), prompts)

    def text(self, name: str) -> TextBank:
        """A text bank of the same bank, by its name `extractor.output` or its key."""
        return read_text(FeatureStore(self.bank), name)

    def _tail(self) -> Path:
        return tail_folder(FeatureStore(self.bank), self.key)


def text_sha256(text: TextBank, prompts: Sequence[str]) -> str:
    """Of the rows of some prompts, and of the scale: whatever bank they lie in.

    Raises:
        ValueError: naming a prompt that the bank does not have.
    """
    digest = hashlib.sha256(np.float32(text.scale).tobytes())
    for prompt in prompts:
        digest.update(f"{prompt}\0".encode())
        digest.update(np.ascontiguousarray(text.values[text.prompts.index(prompt)]).tobytes())
    return digest.hexdigest()


def pack(places: Mapping[Beside, Sequence[str]], folder: Path) -> None:
    """Copy companions into a folder, which is a bank without features; what is there is kept.

    Args:
        places: where companions lie, and the names of text banks that are wanted from there; a
            tail is taken whole, wherever there is one.
        folder: of a packed head.

    Raises:
        BankError: if something cannot be read or written.
    """
    packed = FeatureStore.create(folder)
    for place, texts in places.items():
        store = FeatureStore(place.bank)
        spec = store.resolve(place.key)
        tail = inside(store.path, store.path / spec.key / "tail")
        if tail.is_dir():
            target = inside(packed.path, packed.path / spec.key)
            target.mkdir(exist_ok=True)
            if not (target / "spec.json").exists():
                create_exclusively(target / "spec.json", spec.to_json().encode())
            towers = {name: read_tower(tail, name) for name in tower_hashes(tail)}
            write_tail(packed, spec, Tail(towers, read_every_token(tail)))
        for name in texts:
            provenance = {"packed_from": name}
            write_text(
                packed, text_bank_spec(store, name), read_text(store, name), provenance=provenance
            )
