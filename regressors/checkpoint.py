"""The file from which a training goes on after it was interrupted."""

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from vqbank.regressors.member import Member
from vqbank.regressors.plan import Method
from vqbank.store.documents import json_value
from vqbank.store.errors import HeadError, in_words, refusal
from vqbank.store.files import write_atomically
from vqbank.store.ordinary import open_ordinary

CHECKPOINT_SHARE = 20
"""After a checkpoint, the next one waits until training has gone on for so many times as long as
writing it took: checkpoints then take a twentieth of the time at most."""
MOST_HEADER_BYTES = 2**26
"""The length of a checkpoint's header at most: the identity of a training on 39,000 videos takes
some megabytes for each of the networks that are trained together."""


SECOND = ".refit"
"""Behind the name of a checkpoint, that of the training which follows a first one."""


def remove(checkpoint: Path) -> None:
    """Remove the checkpoints of a fit that is done: one for each stack or process of a training.

    Not before: a second training begins with what the first one came to.

    Args:
        checkpoint: of the head.
    """
    ours = re.compile(rf"{re.escape(checkpoint.name)}({re.escape(SECOND)})?(\.\d+)?")
    for path in checkpoint.parent.iterdir():
        if ours.fullmatch(path.name):
            path.unlink()


class Journal:
    """The checkpoint of a training, if there is to be one."""

    def __init__(
        self,
        path: Path | None,
        members: Sequence[Member],
        method: Method,
    ) -> None:
        self.path = path
        self.members = members
        self.written = time.monotonic()
        self.took_seconds = 0.0
        if path is None:
            return
        self.identity = json.dumps(
            {
                **method.identity,
                "plan": repr(method.plan),
                "shapes": {n: list(v.shape) for n, v in members[0].learnt.items()},
                "folds": [
                    [
                        fold.seed,
                        fold.fit.tolist(),
                        fold.held.tolist(),
                        fold.targets.tolist(),
                        fold.epochs,
                        fold.start and fold.start.model,
                    ]
                    for fold in (member.fold for member in members)
                ],
            },
            sort_keys=True,
        )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)  # before training, which may take long
        except OSError as error:
            raise _unwritable(path, error) from error
        if path.exists():
            self._go_on(path)

    def keep(self, *, now: bool = False) -> None:
        """Write the state of all members, if the last time is long enough ago."""
        if self.path is None:
            return
        start = time.monotonic()
        if not now and start - self.written < CHECKPOINT_SHARE * self.took_seconds:
            return
        tensors = {
            f"{member.number}.{name}": tensor
            for member in self.members
            for name, tensor in member.state().items()
        }
        counters = json.dumps([member.counters() for member in self.members])
        content = save(tensors, {"identity": self.identity, "counters": counters})
        try:
            write_atomically(self.path, content)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self.written = time.monotonic()
        self.took_seconds = self.written - start

    def _go_on(self, path: Path) -> None:
        try:
            _check_header(path)
            with safe_open(path, "pt") as file:
                told = file.metadata() or {}
                if told.get("identity") != self.identity:
                    raise HeadError(
                        f"{path} is the checkpoint of another training, with other "
                        f"{_differences(told.get('identity'), self.identity)}; remove it to start "
                        "anew"
                    )
                counters = json_value(told["counters"], f"{path}: counters", HeadError)
                for member, own in zip(self.members, counters, strict=True):
                    wanted = {name: f"{member.number}.{name}" for name in member.state()}
                    member.go_on({n: file.get_tensor(key) for n, key in wanted.items()}, own)
        except HeadError:
            raise
        except (
            OSError, SafetensorError, LookupError, ValueError, TypeError, RuntimeError,
            OverflowError, AttributeError,
        ) as error:  # fmt: skip
            raise HeadError(
                f"{path} is no checkpoint, or damaged: {in_words(error)}; remove it"
            ) from error


def _check_header(path: Path) -> None:
    """Refuse a file that says that its names alone take most of the memory.

    Raises:
        OSError: if the file cannot be read, or is a pipe or a device.
        ValueError: if its header is longer than any that is written here.
    """
    with open_ordinary(path) as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MOST_HEADER_BYTES:
        raise ValueError(f"its header would have {length:,} bytes")


def _differences(one: str | None, other: str) -> str:
    """What tells the identities of two trainings apart, in words."""
    words = {"head": "head", "keys": "features", "videos": "videos"}
    try:
        before, now = json_value(one or "{}", "identity", HeadError), json.loads(other)
        found = [word for key, word in words.items() if before.get(key) != now.get(key)]
        parameters = before.get("parameters", {})
        own = now.get("parameters", {})
        found += [name for name in own if parameters.get(name) != own[name]]
    except (HeadError, AttributeError):  # somebody else's file
        return "contents"
    return ", ".join(found) or "scores, held-out rows or start"


def _unwritable(path: Path, error: OSError) -> HeadError:
    return HeadError(f"the checkpoint {path} cannot be written: {refusal(error)}")
