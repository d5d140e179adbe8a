"""The files of a bank, all of which lie in it: no step from its root to a file is a symbolic link.

Banks come from strangers, so a link in one could name any file of whoever reads, copies or deletes
it.  The root itself may be a link: whoever runs the command named it.  Hard links cannot be told
from other files; they reach nothing that their maker could not reach.
"""

import errno
import os
import resource
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from awscrt import checksums

from vqbank.store.errors import BankError, DamagedShardError, naming

OPEN_FILES = 16_384
"""That a command may open at once, where the system allows it: 1,024 are usual, and few."""
SYNCS = 16
"""Files that are flushed to disk at once."""
JSON_BYTES = 16 * 2**20
"""Of the largest JSON file that is read: a commit that supersedes 100,000 videos one by one has
about 6 MiB, and a parsed file takes up to 20 times its length in memory."""

BLOCK_BYTES = 4 * 2**20
"""Files are checked and copied, and rows compared, in blocks of this size."""
CHANGED = "has changed since it was committed"
MISSING = "is missing, though it was committed"


def allow_open_files() -> None:
    """Raise the soft limit of open files up to OPEN_FILES, as far as the hard one allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # macOS refuses some values
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def inside(root: Path, path: Path) -> Path:
    """The path itself, of which every step below `root` that is there is no symbolic link.

    Args:
        root: Of the bank, or of the head.
        path: Below it; it need not be there.

    Raises:
        DamagedShardError: naming the link, or a step that cannot be looked at.
    """
    if not isinstance(path, Path):  # object stores have no links
        return path
    above = len(root.parts)
    if path.parts[:above] != root.parts:
        raise ValueError(f"{path} does not lie in {root}")
    at = str(root)
    for step in path.parts[above:]:
        at = f"{at}{os.sep}{step}"
        try:
            mode = os.lstat(at).st_mode
        except (FileNotFoundError, NotADirectoryError):
            break
        except OSError as error:
            raise DamagedShardError(f"{at} cannot be read ({error.strerror})") from error
        if step == ".." or stat.S_ISLNK(mode):
            raise DamagedShardError(
                f"{at} is a symbolic link, which no command follows; put a copy of what it points "
                "to in its place (in a bank, `vqbank prune --yes` removes links)"
            )
    return path


def is_there(root: Path, path: Path) -> bool:
    """Whether something stands at `path`, which is no link and not reached by one.

    Raises:
        DamagedShardError: naming the link.
    """
    return inside(root, path).exists()


def opened(root: Path, path: Path) -> Any:
    """An ordinary file of a bank, open for reading without a buffer.

    Raises:
        FileNotFoundError: if it is not there.
        DamagedShardError: if it, or a folder on the way to it, is a link; or it is a pipe, a device
            or a folder; or it cannot be read.
    """
    if not isinstance(path, Path):
        remote: Any = path
        return remote.open("rb")
    inside(root, path)
    try:
        # A link that was put there since is refused, and a pipe does not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedShardError(f"{path} cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamagedShardError(f"{path} is no ordinary file; remove it")
    return os.fdopen(descriptor, "rb", buffering=0)


def content(root: Path, path: Path, *, limit: int | None = JSON_BYTES) -> bytes:
    """All bytes of a file of a bank.

    Args:
        root: Of the bank.
        path: Below it.
        limit: More are refused before they are read; None where the length was compared already.

    Raises:
        FileNotFoundError: if it is not there.
        DamagedShardError: as from `opened`, or if it is longer than the limit.
    """
    with opened(root, path) as file:
        if limit is not None:
            length = file.seek(0, os.SEEK_END)
            file.seek(0)
            if length > limit:
                raise DamagedShardError(f"{path} has {length} bytes; vqbank writes up to {limit}")
        try:
            return file.read()
        except OSError as error:
            raise DamagedShardError(f"{path} cannot be read ({error.strerror})") from error


def listed(root: Path, folder: Path) -> list[Path]:
    """What lies in a folder of a bank, by name, links included; nothing where it is not there.

    Raises:
        DamagedShardError: if the folder is a link, or reached by one, or cannot be listed.
    """
    inside(root, folder)
    try:
        return sorted(folder.iterdir(), key=lambda path: path.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DamagedShardError(f"{folder} cannot be read ({error.strerror})") from error


def files_below(root: Path, folder: Path) -> Iterator[Path]:
    """Every file below a folder of a bank, by name.

    Raises:
        DamagedShardError: if something there is a link.
    """
    for path in listed(root, folder):
        if inside(root, path).is_dir():
            yield from files_below(root, path)
        elif not path.name.startswith("."):
            yield path


def links_in(root: Path, folder: Path) -> list[Path]:
    """The symbolic links that lie in a folder, or the folder itself where it is one."""
    if folder.is_symlink():
        return [folder]
    return [path for path in listed(root, folder) if path.is_symlink()]


def create_exclusively(path: Path, content: bytes, *, durable: bool = True) -> bool:
    """Make a file that is either absent or whole; False if it was there already.

    The content is written beside it and linked to the name, which fails if the name is taken.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with naming(path), temporary.open("xb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        # A file system without hard links: names of commits are unique, so renaming is as good.
        if path.exists():
            return False
        temporary.rename(path)
    finally:
        discard(temporary)
    if durable:
        sync_folder(path.parent)
    return True


def create_together(contents: Mapping[Path, bytes]) -> None:
    """As `create_exclusively` for many files of one folder, which cost the disk little more.

    Each is absent or whole at any moment; all have reached the disk when this returns.
    """
    temporaries = {
        path: path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp") for path in contents
    }
    try:
        for path, content in contents.items():
            with naming(path):
                temporaries[path].write_bytes(content)
        sync_files(temporaries.values())
        for path, temporary in temporaries.items():
            if not path.exists():
                temporary.replace(path)
    finally:
        for temporary in temporaries.values():
            discard(temporary)
    for folder in {path.parent for path in contents}:
        sync_folder(folder)


def sync_files(paths: Iterable[Path]) -> None:
    """Wait until files, or the names in folders, have reached the disk.

    A disk takes many of such waits at once hardly later than one.
    """
    with ThreadPoolExecutor(SYNCS) as threads:
        for _ in threads.map(_sync, paths):
            pass


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(temporary: Path) -> None:
    """Remove a file that nobody reads; where that is refused, `prune` removes it later."""
    with suppress(OSError):  # what went wrong before it is what matters
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with naming(folder):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes) -> None:
    """Put a file in its place whole, or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with naming(path), temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        discard(temporary)
    sync_folder(path.parent)


def crc32c(content: Any, start: int = 0) -> int:
    """CRC-32C of bytes, or of an array's bytes, continued from `start`."""
    if isinstance(content, np.ndarray) and not content.flags.c_contiguous:
        content = np.ascontiguousarray(content)
    return int(checksums.crc32c(content, start))


def damage(root: Path, path: Path, entry: Mapping[str, int]) -> str | None:
    """What is wrong with a committed file, if anything is."""
    block = np.empty(min(BLOCK_BYTES, max(1, entry["bytes"])), np.uint8)
    checksum = 0
    try:
        with opened(root, path) as file:
            length = os.fstat(file.fileno()).st_size
            if length != entry["bytes"]:
                return f"has {length} bytes, {entry['bytes']} were committed"
            while count := file.readinto(block.data):
                checksum = crc32c(block[:count], checksum)
    except FileNotFoundError:
        return MISSING
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except BankError as error:
        return str(error).removeprefix(f"{path} ")
    return None if checksum == entry["crc32c"] else CHANGED
