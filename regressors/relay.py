"""Epochs and steps of what is fitted in other processes, told in this one as they come.

By a socket file in a folder that only this user can enter, with a key that only our processes have,
as lines of JSON: nothing that arrives is unpickled.  Whoever connects and says nothing, half of
something or too much is dropped, and nobody else waits for that.
"""

import asyncio
import json
import secrets
import socket
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hmac import compare_digest
from pathlib import Path
from threading import Thread
from typing import Any

from vqbank.regressors.progress import Epoch, Step

WAITING = 64
"""Connections that have not said who they are, at most: the oldest goes for one more."""
MESSAGE_BYTES = 4096
"""Of a line, at most; an epoch has some hundred."""
PATIENCE_SECONDS = 10.0
"""For a whole line from one who has connected."""
_ADDRESS_BYTES = 100
"""Of the path of a socket, which systems limit to 104 or 108."""


@dataclass(frozen=True)
class Told:
    """What `watch` is in other processes: it can be pickled."""

    address: str
    """Path of the socket."""
    key: str
    """By which our processes are known."""

    def __call__(self, epoch: Epoch | Step) -> None:
        """Tell of an epoch or a step, and wait until that is done.

        Raises:
            EOFError: if `watch` failed.
            OSError: if nobody listens any more.
        """
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self.address)
            line = json.dumps([self.key, *epoch], default=lambda number: number.item())
            connection.sendall(f"{line}\n".encode())
            if not connection.recv(1):
                raise EOFError("the process that is told of epochs has failed at one")


@contextmanager
def relayed(watch: Callable[[Any], None]) -> Iterator[Told]:
    """A watch for other processes: what it is told there, `watch` is told here, by a thread.

    Raises:
        Exception: what `watch` raises; processes that go on to tell fail.
    """
    key = secrets.token_hex(32)
    failures: list[Exception] = []
    ours, theirs = socket.socketpair()
    with (
        tempfile.TemporaryDirectory(prefix="vqbank-", dir=_short_folder()) as folder,  # mode 700
        socket.socket(socket.AF_UNIX) as listener,
        ours,
        theirs,
    ):
        address = str(Path(folder) / "epochs")
        listener.bind(address)
        listener.listen(WAITING)
        serving = _serve(listener, theirs, key, watch, failures)
        thread = Thread(target=asyncio.run, args=(serving,), daemon=True)
        thread.start()
        try:
            yield Told(address, key)
        finally:
            ours.send(b"\0")  # there will be no more
            thread.join()
            if failures:
                raise failures[0]


def _short_folder() -> str | None:
    """Where temporary files go, unless a socket there would have too long a name."""
    return None if len(tempfile.gettempdir().encode()) < _ADDRESS_BYTES - 30 else "/tmp"


async def _serve(
    listener: socket.socket,
    over: socket.socket,
    key: str,
    watch: Callable[[Any], None],
    failures: list[Exception],
) -> None:
    loop = asyncio.get_running_loop()
    unknown: dict[asyncio.StreamWriter, None] = {}  # that have not said who they are, oldest first

    def tell(epoch: Epoch | Step) -> None:
        if not failures:
            try:
                watch(epoch)
            except Exception as error:  # noqa: BLE001 (raised where it was asked for)
                failures.append(error)

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(unknown) >= WAITING:
            oldest = next(iter(unknown))
            del unknown[oldest]
            oldest.transport.abort()
        unknown[writer] = None
        epoch = None
        with suppress(OSError, ValueError, TypeError, RecursionError):  # of none of ours, or killed
            async with asyncio.timeout(PATIENCE_SECONDS):
                epoch = _epoch(await reader.readline(), key)
        unknown.pop(writer, None)
        if epoch is not None:
            await loop.run_in_executor(pool, tell, epoch)
            if not failures:  # who gets no answer ends its training
                writer.write(b"\0")
        writer.close()

    with ThreadPoolExecutor(1) as pool:
        server = await asyncio.start_unix_server(hear, sock=listener, limit=MESSAGE_BYTES)
        over.setblocking(False)
        await loop.sock_recv(over, 1)
        server.close()


def _epoch(line: bytes, key: str) -> Epoch | Step | None:
    """What a line says, or None if it is not from one of our processes.

    Raises:
        ValueError: if it is no JSON.
        TypeError: if it is not of this form.
    """
    said, *values = json.loads(line)
    if not compare_digest(str(said).encode(), key.encode()):
        return None
    return Step(*values) if len(values) == len(Step._fields) else Epoch(*values)
