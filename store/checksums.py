"""CRC-32C of what is stored, and whether a file is still what was committed."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from awscrt import checksums

from vqbank.store.errors import BankError
from vqbank.store.files import BLOCK_BYTES, opened

CHANGED = "has changed since it was committed"
MISSING = "is missing, though it was committed"


def crc32c(content: Any, start: int = 0) -> int:
    """CRC-32C of bytes, or of an array's bytes, continued from `start`."""
    if isinstance(content, np.ndarray) and not content.flags.c_contiguous:
        content = np.ascontiguousarray(content)
    return int(checksums.crc32c(content, start))


def damage(root: Path, path: Path, committed: tuple[int, int]) -> str | None:
    """What is wrong with a file of a bank, if anything is.

    Args:
        root: Of the bank.
        path: Of the file.
        committed: Its length in bytes and its CRC-32C.
    """
    expected, crc = committed
    block = np.empty(min(BLOCK_BYTES, max(1, expected)), np.uint8)
    checksum = 0
    try:
        with opened(root, path) as file:
            length = os.fstat(file.fileno()).st_size
            if length != expected:
                return f"has {length} bytes, {expected} were committed"
            while count := file.readinto(block.data):
                checksum = crc32c(block[:count], checksum)
    except FileNotFoundError:
        return MISSING
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except BankError as error:
        return str(error).removeprefix(f"{path} ")
    return None if checksum == crc else CHANGED
