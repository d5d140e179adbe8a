"""Which errors cost one feature of one video, and not the run."""

import errno
from dataclasses import dataclass

import torch

from vqbank.store.errors import InvalidFeatureError, VqbankError

# How libraries say it that raise a RuntimeError: torch on a CPU, C++, CUDA and what is built on it.
_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a video goes without a feature."""

    reason: str
    """One line, for people."""
    traceback: str = ""
    """What a decoder that died had to say; empty where nothing died."""


def is_refusal(error: Exception) -> bool:
    """Whether an error costs one feature of one video, and not the run."""
    return isinstance(error, InvalidFeatureError) or is_out_of_memory(error)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, of the computer's memory or of a device's."""
    if isinstance(error, VqbankError):  # it may quote one
        return False
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY):
        return True
    return isinstance(error, (MemoryError, torch.OutOfMemoryError))


def one_line(error: BaseException) -> str:
    """What an error says, with its kind where that is not one of ours."""
    text = " ".join(str(error).split())
    return text if isinstance(error, VqbankError) else f"{type(error).__name__}: {text}"
