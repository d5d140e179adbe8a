"""The files of a bank, all of which lie in it: no step from its root to a file is a symbolic link.

Banks come from strangers, so a link in one could name any file of whoever reads, copies or deletes
it.  The root itself may be a link: whoever runs the command named it.  Hard links cannot be told
from other files; they reach nothing that their maker could not reach.
"""

import errno
import os
import resource
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from vqbank.store.errors import BankError, DamagedShardError, naming

OPEN_FILES = 16_384
"""Files that a command may open at once, where the system allows it: 1,024 are usual, and few."""
SYNCS = 16
"""Files that are flushed to disk at once."""
JSON_BYTES = 16 * 2**20
"""The longest JSON file of a bank that is read: a commit that supersedes 100,000 videos one by one
has about 6 MiB, and a parsed file takes up to 20 times its length in memory."""

NAME_BYTES = 200
"""The most bytes that a temporary name takes over from a file's own: file systems take 255."""
BLOCK_BYTES = 4 * 2**20
"""Files are checked and copied, and rows compared, in blocks of this size."""


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


def links_below(folder: Path) -> Iterator[Path]:
    """Every symbolic link below a folder, however deep; none is followed, nor the folder itself.

    Raises:
        DamagedShardError: if a folder cannot be listed.
    """
    if folder.is_symlink():
        return
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):  # none, or somebody else removes it
        return
    except OSError as error:
        raise DamagedShardError(f"{folder} cannot be read ({error.strerror})") from error
    for entry in found:  # which knows its kind from the listing, without a look at the file
        if entry.is_symlink():
            yield Path(entry.path)
        elif entry.is_dir(follow_symlinks=False):
            yield from links_below(Path(entry.path))


# A file is written under a hidden name of its own, which `prune` knows, and then put in its place.


@contextmanager
def unfinished(path: Path, *, room: Path | None = None) -> Iterator[Path]:
    """A free name for what will stand at `path` once it is whole; what is left there goes.

    Args:
        path: Its place.
        room: The folder of the name, on the same file system; that of `path` if None.
    """
    start = os.fsdecode(os.fsencode(path.name)[:NAME_BYTES])
    temporary = (room or path.parent) / f".{start}.{secrets.token_hex(8)}.tmp"
    try:
        yield temporary
    finally:
        discard(temporary)


def put_in_place(temporary: Path, path: Path) -> None:
    """Give a whole file its name, over an older file if there is one, once its bytes are safe."""
    sync_file(temporary)
    temporary.replace(path)
    sync_folder(path.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Put a file in its place whole, or not at all."""
    with unfinished(path) as temporary:
        _write(temporary, content, path, durable=True)
        temporary.replace(path)
    sync_folder(path.parent)


def create_exclusively(path: Path, content: bytes, *, durable: bool = True) -> bool:
    """Make a file that is either absent or whole; False if it was there already.

    The content is written beside it and linked to the name, which fails if the name is taken.
    """
    with unfinished(path) as temporary:
        _write(temporary, content, path, durable=durable)
        try:
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
    if durable:
        sync_folder(path.parent)
    return True


def create_together(contents: Mapping[Path, bytes]) -> None:
    """Make many files, as `create_exclusively` makes one; they cost the disk little more.

    Each is absent or whole at any moment; all have reached the disk when this returns.
    """
    with ExitStack() as names:
        temporaries = {path: names.enter_context(unfinished(path)) for path in contents}
        for path, content in contents.items():
            _write(temporaries[path], content, path, durable=False)
        sync_files(temporaries.values())
        for path, temporary in temporaries.items():
            if not path.exists():
                temporary.replace(path)
    for folder in {path.parent for path in contents}:
        sync_folder(folder)


def _write(temporary: Path, content: bytes, path: Path, *, durable: bool) -> None:
    """Errors name the file as it shall be called."""
    with naming(path), temporary.open("xb") as file:
        file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name when the block ends and vanishes if it fails.

    Raises:
        BankError: if something is there already that is not an empty folder.
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BankError(f"{folder} is there and not empty; give a new or an empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{secrets.token_hex(8)}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)
    sync_folder(folder.parent)


def copy_file(root: Path, origin: Path, path: Path, *, room: Path, durable: bool = True) -> int:
    """Put a whole copy of a file of a bank in its place, over an older one; gives its length.

    What is copied is the file that was opened, whatever takes its name meanwhile.  Others may be
    copying the same file: the name always stands for a whole one.

    Args:
        root: Of the bank.
        origin: The file, below `root`.
        path: Where the copy will stand; the folder is there, and is not synced here.
        room: Where it is unfinished: a folder that `prune` looks into.
        durable: Whether to wait until its bytes have reached the disk.

    Raises:
        FileNotFoundError: if `origin` is not there.
        DamagedShardError: if it is a link, is reached by one, or is no ordinary file.
    """
    with unfinished(path, room=room) as temporary:
        with (
            naming(path),
            opened(root, origin) as read,
            temporary.open("xb", buffering=0) as file,
        ):
            block = memoryview(bytearray(min(BLOCK_BYTES, max(1, os.fstat(read.fileno()).st_size))))
            length = 0
            while count := _read_into(block, read, origin):
                rest = block[:count]
                while rest:  # the system may take less than it is given
                    rest = rest[file.write(rest) :]
                length += count
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    return length


def _read_into(block: memoryview, file: BinaryIO, path: Path) -> int:
    with naming(path):
        count: int = file.readinto(block)  # type: ignore[attr-defined]  # it has no buffer
    return count


def set_aside(path: Path) -> None:
    """Move a damaged file to `.NAME.damaged`, which nobody reads and `prune` removes."""
    with suppress(FileNotFoundError):  # it was missing, or somebody else has moved it
        path.replace(path.with_name(f".{path.name}.damaged"))


def discard(temporary: Path) -> None:
    """Remove a file that nobody reads; where that is refused, `prune` removes it later."""
    with suppress(OSError):  # what went wrong before it is what matters
        temporary.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Wait until a file has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_files(paths: Iterable[Path]) -> None:
    """Wait until files, or the names in folders, have reached the disk.

    A disk takes many of such waits at once hardly later than one.
    """
    with ThreadPoolExecutor(SYNCS) as threads:
        for _ in threads.map(sync_file, paths):
            pass


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with naming(folder):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
