"""Ordinary files, at paths where anybody may have put a pipe or a device.

A pipe without a writer is waited for without end, and a device may have no end.
"""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path


def open_ordinary(path: Path) -> BufferedReader:
    """An ordinary file, open for reading.

    Raises:
        OSError: naming the path, if it cannot be read, or is a pipe, a socket, a device or a
            folder; at once.
    """
    return open(path, "rb", opener=_descriptor)


def _descriptor(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK)  # a pipe does not wait for its writer
    if not stat.S_ISREG(mode := os.fstat(descriptor).st_mode) and not stat.S_ISDIR(mode):
        os.close(descriptor)
        raise OSError(
            errno.EINVAL,
            "a pipe, socket or device is no ordinary file; write its content into one",
            path,
        )
    return descriptor  # what opens refuses folders itself
