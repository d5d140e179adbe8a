"""Finding weight files, telling what they are, and loading them without running anything."""

import hashlib
import json
import os
import pickle
import struct
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import safetensors
import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from store.errors import WeightsError

RANDOM = "random"
"""The choice that asks for weights that nobody trained."""
TINY = "random-tiny"
"""The choice that asks for them in a small network of the same kind, for tests and demos."""

_RANDOM_SEED = 20260101
_NAMED_KEYS = 5  # how many keys an error spells out
# What safetensors and torch.load(weights_only=True) raise for damaged files, found by trying.
_UNREADABLE = (
    safetensors.SafetensorError,
    pickle.UnpicklingError,
    struct.error,
    RuntimeError,
    OSError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
)
_HUB = "https://huggingface.co/"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile:
    """A published weight file."""

    choice: str
    """What a recipe calls it, such as "openai"."""
    url: str
    """Where it is published."""
    save_as: str
    """Its name in the folder VQBANK_WEIGHTS."""
    publisher: str
    licence: str
    trained_on: tuple[str, ...]
    """Data sets."""
    entry: str | None = None
    """The entry of the file that holds the state dict; None where the file is one."""
    sha256: str | None = None
    """Of the published file, where it is known."""


def find_weights(choice: str, file: WeightFile, *, extractor: str) -> Path:
    """The local file that `choice` means.

    The published choice is looked for in the folder VQBANK_WEIGHTS, then where the libraries keep
    what they downloaded: Hugging Face's cache, torch.hub's checkpoints, ~/.cache/clip.  Anything
    else is the path of a local file.  Nothing is downloaded.

    Args:
        choice: `file.choice`, or a path.
        file: the published file of this extractor.
        extractor: its name, for messages.

    Raises:
        WeightsError: if there is no such file, or one under the published name is another file.
    """
    if choice != file.choice:
        path = Path(choice).expanduser()
        if not path.is_file():
            raise WeightsError(
                f"extractor {extractor}: weights {choice!r} are neither a file nor one of "
                f"{file.choice!r}, {RANDOM!r}"
            )
        return path
    places = _places(file)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        looked = ", ".join(map(str, places)) or "nowhere, as VQBANK_WEIGHTS is not set"
        raise WeightsError(
            f"extractor {extractor}: weights {choice!r} not found. They are published by "
            f"{file.publisher} ({file.licence}) at {file.url}; save the file as "
            f"$VQBANK_WEIGHTS/{file.save_as}, or give its path: --weights {extractor}=PATH on the "
            f"command line, weights: PATH in the recipe. Looked for: {looked}"
        )
    if file.sha256 is not None and sha256_of(found) != file.sha256:
        raise WeightsError(
            f"extractor {extractor}: {found} is not the file published at {file.url} "
            f"(sha256 {sha256_of(found)}, published {file.sha256}); fetch it again, or give its "
            f"path if it is meant: --weights {extractor}={found}"
        )
    return found


def _places(file: WeightFile) -> list[Path]:
    places = []
    folder = os.environ.get("VQBANK_WEIGHTS")
    if folder:
        if not Path(folder).expanduser().is_dir():
            raise WeightsError(f"VQBANK_WEIGHTS is {folder!r}, which is not a folder")
        places.append(Path(folder).expanduser() / file.save_as)
    if file.url.startswith(_HUB):
        # Cached by repository: many of them have a file of this very name.
        from huggingface_hub import try_to_load_from_cache

        owner, repository, _, _, name = file.url.removeprefix(_HUB).split("/")
        cached = try_to_load_from_cache(f"{owner}/{repository}", name)
        return [*places, Path(cached)] if isinstance(cached, str) else places
    name = file.url.rsplit("/", 1)[-1]
    return [
        *places,
        Path(torch.hub.get_dir()) / "checkpoints" / name,
        Path.home() / ".cache" / "clip" / name,
    ]


def weights_identity(choice: str, file: WeightFile, *, extractor: str) -> str:
    """What stands for the weights in a key: the sha256 of the file; random ones go by their name.

    Raises:
        WeightsError: as `find_weights`.
    """
    if choice in (RANDOM, TINY):
        return choice
    return sha256_of(find_weights(choice, file, extractor=extractor))


def weights_origin(choice: str, file: WeightFile, *, extractor: str) -> dict[str, Any]:
    """Publisher, licence and training data of the weights, as a FeatureSpec takes them.

    Claimed for the published choice, and for a local file only if it is known to be the published
    one; random weights have none.

    Raises:
        WeightsError: as `find_weights`.
    """
    if choice in (RANDOM, TINY):
        return {}
    # Where `file.sha256` is not known, the published file given by its path goes by "unknown".
    # Its key is that of the published choice all the same, and a bank keeps the spec.json that was
    # written first.
    path = find_weights(choice, file, extractor=extractor)
    if choice == file.choice or sha256_of(path) == file.sha256:
        return {
            "publisher": file.publisher,
            "licence": file.licence,
            "trained_on": file.trained_on,
        }
    return {"publisher": "unknown (local file)", "licence": "unknown", "trained_on": ()}


def sha256_of(path: Path) -> str:
    """The sha256 of a file in hexadecimal.

    Remembered by path, size and modification time in the folder VQBANK_CACHE (by default the
    user's cache folder), so that a file of gigabytes is read once.

    Raises:
        WeightsError: if the file cannot be read.
    """
    path = path.resolve()
    try:
        status = path.stat()
        seen = (status.st_size, status.st_mtime_ns)
        cache = _cache_file()
        known = _read_cache(cache)
        if str(path) in known and known[str(path)][:2] == seen:
            return known[str(path)][2]
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"cannot read weights {path}: {error}") from error
    # A cache that cannot be written, on a read-only home, costs time and nothing else.
    with suppress(OSError):
        _write_atomically(cache, json.dumps({**known, str(path): [*seen, digest]}, indent=0))
    return digest


def _cache_file() -> Path:
    folder = os.environ.get("VQBANK_CACHE") or platformdirs.user_cache_dir("vqbank")
    return Path(folder) / "weights-sha256.json"


def _read_cache(cache: Path) -> dict[str, tuple[int, int, str]]:
    try:
        return TypeAdapter(dict[str, tuple[int, int, str]]).validate_json(cache.read_bytes())
    except (OSError, ValidationError):
        return {}  # absent or damaged: hash again


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=path.name, delete=False, encoding="utf-8"
    ) as file:
        file.write(text)
    Path(file.name).replace(path)


def load_state_dict(path: Path, file: WeightFile) -> dict[str, Tensor]:
    """The tensors of a weight file, on the CPU; nothing in the file is executed.

    Reads safetensors by that suffix and whatever `torch.load(weights_only=True)` accepts.

    Args:
        path: the file.
        file: what is expected there; says which entry holds the state dict.

    Raises:
        WeightsError: if the file is missing, damaged, holds code, or is no state dict.
    """
    if not path.is_file():
        raise WeightsError(f"there is no weight file {path}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            # An unusual pickle protocol or a TorchScript archive either loads or is refused below.
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise WeightsError(f"cannot read weights {path}: {error}") from error
    except _UNREADABLE as error:
        if "TorchScript" in str(error):
            why = "is a TorchScript archive, which is a program and is never run"
        elif "Unsupported" in str(error):
            why = "asks for code to be run when it is loaded, which is never done"
        else:
            why = f"is damaged or no weight file ({type(error).__name__})"
        raise WeightsError(f"{path} {why}; take {file.url}") from error
    if file.entry is not None:
        if not isinstance(loaded, dict) or file.entry not in loaded:
            raise WeightsError(f"{path} has no entry {file.entry!r}; take {file.url}")
        loaded = loaded[file.entry]
    if not isinstance(loaded, dict):
        raise WeightsError(f"{path} holds a {type(loaded).__name__}, not a state dict")
    strangers = [str(key) for key, value in loaded.items() if not isinstance(value, Tensor)]
    if strangers:
        raise WeightsError(
            f"{path} is no plain state dict: not tensors are {_some(strangers)}; take {file.url}"
        )
    return dict(loaded)


def check_keys(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights of another network.

    Args:
        expected: the state dict of the network; its tensors may be on the meta device.
        given: what the file holds.
        path: the file, for messages.

    Raises:
        WeightsError: names keys that are missing, unexpected or of another shape.
    """
    shared = expected.keys() & given.keys()
    faults = {
        "missing": sorted(expected.keys() - given.keys()),
        "unexpected": sorted(given.keys() - expected.keys()),
        "of another shape": [
            f"{key} {tuple(given[key].shape)} for {tuple(expected[key].shape)}"
            for key in sorted(shared)
            if given[key].shape != expected[key].shape
        ],
    }
    found = [f"{kind}: {_some(keys)}" for kind, keys in faults.items() if keys]
    if found:
        raise WeightsError(f"{path} holds the weights of another network; {'; '.join(found)}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED_KEYS} more" if len(names) > _NAMED_KEYS else ""
    return ", ".join(names[:_NAMED_KEYS]) + more


@contextmanager
def random_weights() -> Iterator[None]:
    """Modules built on the CPU in here get the same random weights in every process.

    The global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also reseed every GPU.
        torch.default_generator.manual_seed(_RANDOM_SEED)
        yield
