"""Text banks: prompts through a frozen text tower, written once into a bank.

They lie in the bank's folder `text/`, which is itself a bank: its videos are prompts, each with one
row.  So they are written, committed, checked and merged as features are.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqbank.store.bank import BANK_FILE, FeatureStore, writing
from vqbank.store.errors import DamagedShardError, InvalidFeatureError, MissingFeatureError
from vqbank.store.files import inside
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, SideSpec

FOLDER = "text"
_SCALE = "scale"


@dataclass(frozen=True, eq=False)
class TextBank:
    """What a text tower makes of prompts."""

    prompts: tuple[str, ...]
    values: NDArray[np.float32]
    """[n, d]: rows of unit length, in the order of the prompts."""
    scale: float
    """What cosines with these rows are multiplied by to give logits: exp(logit_scale) of CLIP."""


def text_spec(
    name: str, prompts: Sequence[str], width: int, identity: Mapping[str, Any], **origin: Any
) -> FeatureSpec:
    """The identity of a text bank: another list of prompts, or another order, is another key.

    Args:
        name: `extractor.output`.
        prompts: each once.
        width: of a row.
        identity: what else changes the numbers: network, weights' sha256, tokenizer, context.
        **origin: publisher, licence and trained_on of the weights.

    Raises:
        InvalidFeatureError: if a prompt stands there twice.
    """
    twice = next((prompt for n, prompt in enumerate(prompts) if prompt in prompts[:n]), None)
    if twice is not None:
        raise InvalidFeatureError(f"{name}: prompt {twice!r} stands there twice; name it once")
    return FeatureSpec(
        name=name,
        shape=(width,),
        stored_dtype="float32",
        identity={**identity, "prompts": list(prompts)},
        side=(SideSpec(_SCALE, (), "float32"),),
        **origin,
    )


def has_text(store: FeatureStore, spec: FeatureSpec) -> bool:
    """Whether every prompt of a text bank is there."""
    return not _missing(store, spec)


def write_text(
    store: FeatureStore, spec: FeatureSpec, text: TextBank, *, provenance: Mapping[str, Any]
) -> None:
    """Commit what is missing of a text bank, in one act.

    Args:
        store: the bank.
        spec: from `text_spec`.
        text: of the prompts that `spec` names, in their order.
        provenance: software, host, device: recorded, never part of a key.

    Raises:
        InvalidFeatureError: if `text` is not what `spec` says; nothing is written then.
        BankError: if the bank cannot be written.
    """
    if list(text.prompts) != spec.identity["prompts"]:
        raise InvalidFeatureError(f"{spec.key}: these are not the prompts that its spec names")
    missing = _missing(store, spec)
    with writing(store.path):
        room = FeatureStore.create(inside(store.path, store.path / FOLDER))
        with room.writer(spec, provenance=provenance) as writer:
            for prompt, row in zip(text.prompts, text.values, strict=True):
                if prompt in missing:
                    feature, printed = _feature(row, text.scale), _fingerprint(prompt)
                    writer.add(prompt, feature, fingerprint=printed, probe={})


def read_text(store: FeatureStore, name: str) -> TextBank:
    """A text bank by its name `extractor.output` or its key.

    Raises:
        AmbiguousFeatureError: if several keys share the name.
        MissingFeatureError: if the bank has no such text bank, or not all of its prompts.
        DamagedShardError: if its bytes have changed since they were committed.
    """
    room, spec = _found(store, name)
    prompts = tuple(_prompts(spec))
    rows = [room.read(spec, prompt) for prompt in prompts]
    return TextBank(
        prompts,
        np.concatenate([row.values for row in rows]),
        _scale(spec, rows),
    )


def text_bank_spec(store: FeatureStore, name: str) -> FeatureSpec:
    """The identity of a text bank, by its name `extractor.output` or its key.

    Raises:
        AmbiguousFeatureError: if several keys share the name.
        MissingFeatureError: if the bank has no such text bank.
    """
    return _found(store, name)[1]


def _found(store: FeatureStore, name: str) -> tuple[FeatureStore, FeatureSpec]:
    """The bank that text banks are, and one of them."""
    room = _room(store)
    if room is None:
        raise MissingFeatureError(
            f"{store.path} has no text banks; `vqbank extract` writes them for extractors that "
            "compare frames with prompts"
        )
    return room, room.resolve(name)


def _room(store: FeatureStore) -> FeatureStore | None:
    folder = inside(store.path, store.path / FOLDER)
    return FeatureStore(folder) if (folder / BANK_FILE).exists() else None


def _missing(store: FeatureStore, spec: FeatureSpec) -> set[str]:
    """Prompts of a text bank that have no committed row."""
    room = _room(store)
    prompts = _prompts(spec)
    if room is None:
        return set(prompts)
    found = room.find(spec, prompts)
    return {prompt for prompt, place in zip(prompts, found, strict=True) if place is None}


def _prompts(spec: FeatureSpec) -> list[str]:
    prompts = spec.identity.get("prompts")
    known = isinstance(prompts, list) and all(isinstance(prompt, str) for prompt in prompts)
    if not prompts or not known:
        raise DamagedShardError(f"{spec.key} names no prompts, so it is no text bank")
    return list(prompts)


def _scale(spec: FeatureSpec, rows: Sequence[Feature]) -> float:
    if any(side.name == _SCALE and side.shape == () for side in spec.side):
        return float(rows[0].side[_SCALE][0])
    raise DamagedShardError(f"{spec.key} has no {_SCALE}, so it is no text bank")


def _feature(row: NDArray[np.float32], scale: float) -> Feature:
    return Feature(
        values=row[None],
        pts_seconds=np.zeros(1),
        frame_index=np.zeros(1, np.int64),
        side={_SCALE: np.array([scale], np.float32)},
    )


def _fingerprint(prompt: str) -> Fingerprint:
    content = prompt.encode()
    return Fingerprint(len(content), hashlib.sha256(content).hexdigest())
