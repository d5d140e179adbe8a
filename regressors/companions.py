"""What a network takes of the bank beside rows: tails, prompts' tokens and text banks, frozen.

A head's card names the sha256 of all that its networks took, and predicting takes the same, from
the bank or from the head's own folder, or refuses.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor, nn

from vqbank.regressors.tail import ImageTail, TextTail, image_tail, tensors_of, text_tail
from vqbank.store.beside import Beside, text_sha256
from vqbank.store.errors import HeadError, MissingFeatureError, VqbankError

FOLDER = "companions"
"""Of a packed head's folder: a bank without features, that has what its networks stand on."""
Found = TypeVar("Found")
Tail = TypeVar("Tail", ImageTail, TextTail)


@dataclass(frozen=True)
class Companions:
    """What lies beside the feature of one role; weights that come from here are frozen.

    Every method raises HeadError where something is not there, or is not what the head was trained
    with.
    """

    feature: str = ""
    """Role and key, for messages."""
    places: tuple[Beside, ...] = ()
    """Where it may lie, in the order in which they are asked."""
    known: Mapping[str, str] = field(default_factory=dict, compare=False)
    """sha256 of what the head was trained with, by name; empty while it is trained."""
    taken: dict[str, str] = field(default_factory=dict, compare=False)
    """sha256 of what was taken, by name, as the card tells it."""

    def image_tail(self) -> ImageTail:
        """The image tower behind the cut, on the CPU."""
        with torch.device("cpu"):
            return self._taken("tail/image", _tower_sha256, _image)

    def early_tower(self) -> dict[str, Tensor]:
        """Weights of the image tower up to the cut, by name, for layers that start from them."""
        with torch.device("cpu"):
            return self._taken("tail/early", _tower_sha256, _early)

    def text_tail(self) -> TextTail:
        """The text tower, whole, on the CPU."""
        with torch.device("cpu"):
            return self._taken("tail/text", _tower_sha256, _text)

    def tower_sha256(self, name: str) -> str:
        """Of the file of a tower of the tail, "image" or "text", without reading its weights."""
        return self._taken(f"tail/{name}", _tower_sha256, lambda one: one.tower_sha256(name))

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """[n, length] int64: token numbers of prompts, padding included."""

        def hashed(place: Beside, name: str) -> str:
            return hashlib.sha256(place.tokens(prompts).tobytes()).hexdigest()

        with torch.device("cpu"):
            return self._taken("tokens", hashed, lambda one: torch.tensor(one.tokens(prompts)))

    def text(self, name: str, prompts: Sequence[str]) -> tuple[Tensor, float]:
        """Rows [n, d] of unit length of prompts in a text bank, and the scale of their cosines.

        Args:
            name: of the text bank, `extractor.output`, or its key.
            prompts: n of those that it has.
        """

        def hashed(place: Beside, _: str) -> str:
            return text_sha256(place.text(name), prompts)

        def read(place: Beside) -> tuple[Tensor, float]:
            bank = place.text(name)
            rows = [bank.prompts.index(prompt) for prompt in prompts]
            return torch.tensor(bank.values[rows]), bank.scale

        with torch.device("cpu"):
            return self._taken(f"text/{name}", hashed, read)

    def prompts(self, name: str) -> tuple[str, ...]:
        """All prompts of a text bank, in its order."""
        for place in self.places:
            try:
                return place.text(name).prompts
            except MissingFeatureError:
                continue
        raise HeadError(f"{self.feature}: {self._lacks(f'text/{name}')}")

    def _taken(
        self,
        name: str,
        hashed: Callable[[Beside, str], str],
        read: Callable[[Beside], Found],
    ) -> Found:
        """From the first place that has it, as it was in training."""
        problem = self._lacks(name)
        for place in self.places:
            try:
                sha256 = hashed(place, name)
                if self.known.get(name, sha256) == sha256:
                    found = read(place)
                    self.taken[name] = sha256
                    return found
            except MissingFeatureError as error:
                problem = str(error)
            except VqbankError as error:
                raise HeadError(f"{self.feature}: {error}") from error
            else:
                problem = (
                    f"{name} in {place.bank} has sha256 {sha256[:12]}, and the head was trained "
                    f"with {self.known[name][:12]}; use the bank that it was trained from"
                )
        raise HeadError(f"{self.feature}: {problem}")

    def _lacks(self, name: str) -> str:
        return (
            f"there is no bank beside these rows that could have {name}, which this head needs; "
            "take the feature from the bank that `vqbank extract` wrote"
        )


def _tower_sha256(place: Beside, name: str) -> str:
    return place.tower_sha256(name.removeprefix("tail/"))


def _image(place: Beside) -> ImageTail:
    return _sharing(_read_image(place, place.tower_state("image")))


def _early(place: Beside) -> dict[str, Tensor]:
    return tensors_of(place.tower("early"), place.bank, "early")


def _text(place: Beside) -> TextTail:
    return _sharing(_read_text(place, place.tower_state("text")))


@lru_cache(maxsize=2)
def _read_image(place: Beside, state: tuple[str, int, int]) -> ImageTail:
    """Read once in a process while its file stays as it is: networks are made often."""
    return image_tail(place.tower("image"), place.bank)


@lru_cache(maxsize=2)
def _read_text(place: Beside, state: tuple[str, int, int]) -> TextTail:
    return text_tail(place.tower("text"), place.bank)


def _sharing(tower: Tail) -> Tail:
    """A tower of its own on the same memory: it can go to a device, and its weights are frozen."""
    same: dict[int, Tensor] = {
        id(value): nn.Parameter(value.detach(), requires_grad=False) for value in tower.parameters()
    }
    same |= {id(value): value.detach() for value in tower.buffers()}
    return deepcopy(tower, same)
