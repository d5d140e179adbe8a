"""Decoding where it can die alone: a child process that opens and decodes one video at a time.

FFmpeg and what is built on it can crash or loop for ever on a damaged file.  Here that costs the
video and not the run: the parent gets an error that names it, and starts another child.  Pictures
come back through shared memory, a few slots of a fixed size, so that the child is never more than
these ahead.  The child imports `vqbank.extractors.video` alone, without the libraries that
networks need.
"""

import faulthandler
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import fields
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqbank.store import errors
from vqbank.store.errors import DecodeError, DecoderDiedError, VqbankError

if TYPE_CHECKING:
    from vqbank.extractors.video import Decoded, Probe

SLOTS = 2
SLOT_BYTES = 32 * 2**20
"""Size of a slot of the memory that is shared with the child, unless one frame is larger."""
PATIENCE_SECONDS = 120.0
"""How long the parent waits for the next sign of life from the child, where nothing is said."""
ABSENT_SECONDS = 2.0
"""The parent looks after its child every second: where it has not for longer than this, it was
itself stopped or suspended for a while."""


class Chunk(NamedTuple):
    """Decoded frames; they are overwritten once `Decoder.release` was called."""

    slot: int
    frame_index: NDArray[np.int64]
    """[k]: presented indices, increasing."""
    pictures: NDArray[np.uint8]
    """RGB [k, h, w, 3], in shared memory."""
    shortfall: int
    """Frames so far in whose place the one before them stands, as `video.Decoded` counts them."""


class End(NamedTuple):
    """Everything that was wanted has come."""

    shortfall: int
    """Frames in whose place the one before them stands."""


class Order(NamedTuple):
    """What the child is to decode of the video that it has probed, and how it hands it over."""

    frame_index: NDArray[np.int64]
    """Presented indices, increasing."""
    decoder: str
    """A name of `video.DECODERS`."""
    threads: int
    """FFmpeg's decoding threads."""
    chunk: int
    """Frames that fit a slot."""
    slot_bytes: int
    """Size of each of the SLOTS slots of the shared file."""


class Decoder:
    """The parent's side: `open`, `receive` a Probe, `decode`, `receive` chunks and an End."""

    def __init__(
        self, name: str, *, threads: int = 1, patience_seconds: float = PATIENCE_SECONDS
    ) -> None:
        """The child is started when the first video is opened.

        Args:
            name: of `video.DECODERS`.
            threads: FFmpeg's decoding threads.
            patience_seconds: without a sign of life before the child is given up.
        """
        self.traceback = ""
        """What the last child that died had to say."""
        self._name = name
        self._threads = threads
        self._patience_seconds = patience_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._path = Path()
        self._probe: Probe | None = None
        self._awaited_since: float | None = None
        self._looked = 0.0
        self._pulse = 0
        self._memory = mmap.mmap(-1, 1)
        self._slot_bytes = 0

    def fileno(self) -> int:
        """Becomes readable when there is something to receive."""
        return self._connection.fileno()

    def open(self, path: Path) -> None:
        """Ask for the probe of a video.  Other videos' chunks have all been released."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        self._path = path
        self._errors.seek(0)
        self._errors.truncate()  # what earlier videos were told
        self._send("open", path)

    def decode(self, wanted: NDArray[np.int64]) -> None:
        """Ask for frames of the video that was probed: indices, increasing."""
        assert self._probe is not None
        frame_bytes = self._probe.height * self._probe.width * 3
        self._slot_bytes = max(SLOT_BYTES, frame_bytes)
        if self._slot_bytes * SLOTS != len(self._memory):
            os.ftruncate(self._file, self._slot_bytes * SLOTS)
            # The old map goes once the last picture that lies in it has gone.
            self._memory = mmap.mmap(self._file, self._slot_bytes * SLOTS)
        chunk = self._slot_bytes // frame_bytes
        order = Order(wanted, self._name, self._threads, chunk, self._slot_bytes)
        self._send("decode", order)

    def receive(self) -> "Probe | Chunk | End":
        """The next answer; waits for it.

        Raises:
            DecodeError: if the video cannot be decoded.
            DecoderDiedError: if the child died over it, or gave no sign of life.
        """
        try:
            while not self._connection.poll(min(1.0, self.seconds_left)):
                self.check()
            kind, *answer = self._connection.recv()
        except (EOFError, ConnectionError):
            raise self._died() from None
        self._awaited_since = time.monotonic()
        if kind == "error":
            self._awaited_since = None
            raise DecodeError(answer[0])
        if kind == "probe":
            from vqbank.extractors.video import Probe

            self._awaited_since = None
            self._probe = Probe(**answer[0])
            return self._probe
        if kind == "end":
            self._awaited_since = None
            return End(answer[0])
        assert self._probe is not None
        slot, frame_index, shortfall = answer
        shape = (len(frame_index), self._probe.height, self._probe.width, 3)
        pictures = np.frombuffer(
            self._memory, np.uint8, int(np.prod(shape)), offset=slot * self._slot_bytes
        ).reshape(shape)
        return Chunk(slot, frame_index, pictures, shortfall)

    def release(self, chunk: Chunk) -> None:
        """Let the child use the chunk's slot again."""
        if self._awaited_since is not None:
            self._awaited_since = time.monotonic()  # it may have waited for this slot
        self._send("release", chunk.slot, awaited=self._awaited_since is not None)

    def check(self) -> None:
        """Give up a child that has shown no sign of life for too long; called every second.

        Time in which this process itself was stopped or suspended, as batch systems do with whole
        jobs, is not held against the child.

        Raises:
            DecoderDiedError: then; the child is gone.
        """
        now = time.monotonic()
        absent = now - max(self._looked, self._awaited_since or now)
        self._looked = now
        if absent > ABSENT_SECONDS and self._awaited_since is not None:
            self._awaited_since += absent
        if self.seconds_left > 0:
            return
        pulse = os.fstat(self._file).st_mtime_ns
        if pulse != self._pulse:  # it reads or counts frames, which may take long
            self._awaited_since, self._pulse = now, pulse
            return
        self._errors.seek(0)
        self.traceback = self._errors.read().decode(errors="replace")
        self.close()
        self._awaited_since = None
        raise DecoderDiedError(
            f"{self._path}: the decoder gave no sign of life for {self._patience_seconds:g} s "
            "and was stopped"
        )

    def close(self) -> None:
        """End the child."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self._connection.close()
            os.close(self._file)
            self._errors.close()

    @property
    def seconds_left(self) -> float:
        """Seconds until patience with the child ends."""
        if self._awaited_since is None:
            return self._patience_seconds
        return max(0.0, self._awaited_since + self._patience_seconds - time.monotonic())

    def _send(self, *message: Any, awaited: bool = True) -> None:
        if awaited:
            self._awaited_since = time.monotonic()
        with suppress(ConnectionError):  # it has died: `receive` says so
            self._connection.send(message)

    def _start(self) -> None:
        if self._process is not None:
            self.close()
        ours, theirs = socket.socketpair()
        self._connection = Connection(ours.detach())
        # Not in /dev/shm, which containers limit to 64 MB.
        if hasattr(os, "memfd_create"):
            self._file = os.memfd_create("vqbank-frames")
        else:
            with tempfile.TemporaryFile() as file:
                self._file = os.dup(file.fileno())
        self._memory = mmap.mmap(-1, 1)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the child
        ours_first = [str(Path(errors.__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        found = [path for path in ours_first if path]
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno()), str(self._file)],
                pass_fds=[theirs.fileno(), self._file],
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(found)},
            )

    def _died(self) -> DecoderDiedError:
        assert self._process is not None
        self._process.wait()
        code = self._process.returncode
        self._errors.seek(0)
        self.traceback = self._errors.read().decode(errors="replace")
        self.close()
        self._awaited_since = None
        how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        last = self.traceback.strip().splitlines()[-1:] if code > 0 else []
        return DecoderDiedError(f"{self._path}: the decoder {': '.join([how, *last])}")


def _serve(connection: Connection, file: int) -> None:
    """The child's side, until the parent closes its end."""
    from vqbank.extractors import video

    path, probe = Path(), None
    while True:
        try:
            kind, *order = connection.recv()
        except (EOFError, ConnectionError):
            return
        if kind == "release":  # came after the end
            continue
        try:
            if kind == "open":
                (path,) = order
                probe = video.probe(path, pulse=lambda: os.utime(file))
                told = {field.name: getattr(probe, field.name) for field in fields(probe)}
                connection.send(("probe", told))
            else:
                (order,) = order
                assert probe is not None
                decoded = video.decode(
                    path,
                    probe,
                    order.frame_index,
                    decoder=order.decoder,
                    threads=order.threads,
                    chunk=order.chunk,
                )
                _send_chunks(connection, file, order.slot_bytes, decoded)
                connection.send(("end", decoded.shortfall))
        except VqbankError as error:
            connection.send(("error", str(error)))


def _send_chunks(connection: Connection, file: int, slot_bytes: int, decoded: "Decoded") -> None:
    """Through the slots of the shared file, each used again once the parent has released it."""
    free = list(range(SLOTS))
    with mmap.mmap(file, slot_bytes * SLOTS) as memory:
        for frame_index, pictures in decoded:
            while not free:
                _, slot = connection.recv()
                free.append(slot)
            slot = free.pop()
            memory.seek(slot * slot_bytes)
            memory.write(pictures.data)
            connection.send(("chunk", slot, frame_index, decoded.shortfall))


def _die_with(parent: int) -> None:
    """End this process once the parent has: a looping decoder would outlive it."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


def _main(connection: int, file: int) -> None:
    faulthandler.enable()
    for stop in (signal.SIGINT, signal.SIGTERM):  # the parent's to handle
        signal.signal(stop, signal.SIG_IGN)
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
    _serve(Connection(connection), file)


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]))
