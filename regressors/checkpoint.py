"""The file from which a training goes on after it was interrupted."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from vqbank.regressors.member import Member, Method
from vqbank.store.errors import HeadError, in_words, refusal
from vqbank.store.files import write_atomically
from vqbank.store.ordinary import open_ordinary

CHECKPOINT_SHARE = 20
"""Between two checkpoints, at least so many times what writing one takes: a twentieth of the time,
at most, goes into them."""


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
                "shapes": {n: list(v.shape) for n, v in members[0].parameters.items()},
                "folds": [
                    [fold.seed, fold.fit.tolist(), fold.held.tolist(), fold.targets.tolist()]
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
            open_ordinary(path).close()
            with safe_open(path, "pt") as file:
                told = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise HeadError(
                f"{path} is no checkpoint, or damaged: {in_words(error)}; remove it"
            ) from error
        if told is None or told.get("identity") != self.identity:
            before = json.loads((told or {}).get("identity", "{}"))
            raise HeadError(
                f"{path} is the checkpoint of another training, with other "
                f"{_differences(before, json.loads(self.identity))}; remove it to start anew"
            )
        for member, counters in zip(self.members, json.loads(told["counters"]), strict=True):
            own = f"{member.number}."
            member.go_on(
                {n.removeprefix(own): t for n, t in tensors.items() if n.startswith(own)}, counters
            )


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """What tells two folds apart, in words."""
    words = {"head": "head", "keys": "features", "videos": "videos"}
    found = [word for key, word in words.items() if one.get(key) != other.get(key)]
    before, now = one.get("parameters", {}), other.get("parameters", {})
    found += [name for name in now if before.get(name) != now[name]]
    return ", ".join(found) or "scores or held-out rows"


def _unwritable(path: Path, error: OSError) -> HeadError:
    return HeadError(f"the checkpoint {path} cannot be written: {refusal(error)}")
