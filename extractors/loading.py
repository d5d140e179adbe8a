"""Tensors out of weight files, without running anything; and weights that nobody trained."""

import pickle
import struct
import threading
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from vqbank.extractors.weights import WeightFile, index_in, shards_of, some_of, weight_map
from vqbank.store.errors import WeightsError, in_words

FILE_MODULES = ("torch.utils.serialization.config", "huggingface_hub.file_download")
"""What finding and reading a file imports first."""

_ONE_AT_A_TIME = threading.RLock()
_RANDOM_SEED = 20260101
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
# Files of FAST-VQA keep their validation results beside the weights: NumPy's numbers, under the
# name of the function before NumPy 2 and since.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_FLOATS: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float16, np.float32, np.float64)),
]


def load_state_dict(path: Path, *files: WeightFile) -> dict[str, Tensor]:
    """All tensors of a weight file at once; arguments and errors as for `stream_state_dict`."""
    return dict(stream_state_dict(path, *files))


def stream_state_dict(path: Path, *files: WeightFile) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a weight file or of all shards, one after the other, on the CPU.

    Nothing in the files is executed, and no more than the tensor at hand is kept in memory.  Reads
    safetensors by that suffix and whatever `torch.load(weights_only=True)` accepts.

    Args:
        path: a file, a folder of shards, or their index.
        *files: what may be there; they say which entry holds the state dict.

    Raises:
        WeightsError: if a file is missing, damaged, holds code, or is no state dict.
    """
    seen: set[str] = set()
    for shard in shards_of(path):
        for key, tensor in _tensors(shard, files):
            if key in seen:
                raise WeightsError(f"{path} holds {key} twice, again in {shard.name}")
            seen.add(key)
            yield key, tensor


def _tensors(path: Path, files: tuple[WeightFile, ...]) -> Iterator[tuple[str, Tensor]]:
    if not path.is_file():
        raise WeightsError(f"there is no weight file {path}")
    advice = f"take {' or '.join(file.url for file in files)}"
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(path, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 - not a dict
                    yield key, opened.get_tensor(key)
        except _UNREADABLE as error:
            raise _unreadable(path, error, advice) from error
        return
    loaded = load_pickled(path, advice)
    entries = [file.entry for file in files if file.entry is not None]
    found = [entry for entry in entries if isinstance(loaded, dict) and entry in loaded]
    if found:
        loaded = loaded[found[0]]
    elif len(entries) == len(files):
        raise WeightsError(f"{path} has no entry {' or '.join(map(repr, entries))}; {advice}")
    if not isinstance(loaded, dict):
        raise WeightsError(f"{path} holds a {type(loaded).__name__}, not a state dict")
    strangers = [str(key) for key, value in loaded.items() if not isinstance(value, Tensor)]
    if strangers:
        raise WeightsError(
            f"{path} is no plain state dict: not tensors are {some_of(strangers)}; {advice}"
        )
    for key, value in loaded.items():
        yield key, value.clone()  # else it would be the file itself


def load_pickled(path: Path, advice: str) -> Any:
    """What torch.save wrote: tensors, plain Python values, NumPy's floats; nothing is executed.

    Args:
        path: a file; where it can be, its tensors are mapped and not read yet.
        advice: what to do about a file that is refused, for messages.

    Raises:
        WeightsError: if the file is missing, damaged or holds code.
    """
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_NUMPY_FLOATS):
            # An unusual pickle protocol or a TorchScript archive either loads or is refused below.
            warnings.simplefilter("ignore")
            # Only zip archives can be mapped; what torch wrote before 1.6 is none.
            mapped = zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except _UNREADABLE as error:
        raise _unreadable(path, error, advice) from error


def _unreadable(path: Path, error: Exception, advice: str) -> WeightsError:
    if isinstance(error, PermissionError):
        return WeightsError(f"cannot read weights {path}: {in_words(error)}")
    if "TorchScript" in str(error):
        why = "is a TorchScript archive, which is a program and is never run"
    elif "Unsupported" in str(error):
        why = "asks for code to be run when it is loaded, which is never done"
    else:
        why = f"is damaged or no weight file ({type(error).__name__})"
    return WeightsError(f"{path} {why}; {advice}")


def check_keys(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights of another network.

    Args:
        expected: the state dict of the network; its tensors may be on the meta device.
        given: what the file holds.
        path: the file, for messages.

    Raises:
        WeightsError: names keys that are missing, unexpected or of another shape.
    """
    shapes = [
        f"{key} {tuple(given[key].shape)} for {tuple(expected[key].shape)}"
        for key in sorted(expected.keys() & given.keys())
        if given[key].shape != expected[key].shape
    ]
    _refuse_others(expected.keys(), given.keys(), path, shapes)


def check_names(expected: Set[str], path: Path) -> None:
    """Refuse weights of another network by their keys alone, before a tensor is read.

    Nothing is refused where only reading would tell: in files of torch.save without an index.

    Args:
        expected: keys of the state dict of the network.
        path: a file, a folder of shards, or their index.

    Raises:
        WeightsError: names keys that are missing or unexpected; also as `shards_of`.
    """
    index = path if path.name.endswith(".index.json") else index_in(path)
    if index is not None:
        _refuse_others(expected, weight_map(index).keys(), path)
        return
    shards = shards_of(path)
    if all(shard.suffix == ".safetensors" for shard in shards):
        given: set[str] = set()
        for shard in shards:
            try:
                with safetensors.safe_open(shard, framework="pt") as opened:
                    given.update(opened.keys())
            except _UNREADABLE as error:
                raise _unreadable(shard, error, "take a whole one") from error
        _refuse_others(expected, given, path)


def _refuse_others(
    expected: Set[str], given: Set[str], path: Path, other_shapes: Sequence[str] = ()
) -> None:
    faults = {
        "missing": sorted(expected - given),
        "unexpected": sorted(given - expected),
        "of another shape": list(other_shapes),
    }
    found = [f"{kind}: {some_of(keys)}" for kind, keys in faults.items() if keys]
    if found:
        raise WeightsError(f"{path} holds the weights of another network; {'; '.join(found)}")


@contextmanager
def random_weights() -> Iterator[None]:
    """Modules built on the CPU in here get the same random weights in every process.

    The global generator is left as it was.
    """
    # One at a time: threads share the generator.
    with _ONE_AT_A_TIME, torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also reseed every GPU.
        torch.default_generator.manual_seed(_RANDOM_SEED)
        yield
