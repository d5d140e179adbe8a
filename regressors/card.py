"""The folder of a saved head: its card, and the model file that the card names.

`card.yaml` says everything of a head but what was learned: its name, its parameters, the keys and
specs of the features that it was fitted on, how it was selected.  What was learned is the model
file beside it, `model-HASH.*`.  A folder may come from a stranger: nothing in it leads out of it,
and no more of it is read than such files have.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vqbank.store.documents import file_bytes, file_text, json_value, yaml_text, yaml_value
from vqbank.store.errors import BankError, HeadError, refusal
from vqbank.store.files import inside, write_atomically

CARD = "card.yaml"
OLD_CARD = "card.json"
"""How cards were written first; such heads still load."""
FORMAT = 1
MARK = 8
"""Characters of a mark: of 40,000 videos two in a million share one by chance."""


class ModelFile(BaseModel):
    """The model file that a card names."""

    file: str = Field(pattern=r"^model-[0-9a-f]{16}\.[a-z]+$")  # never a path out of the folder
    sha256: str


class Card(BaseModel):
    """What every card has; whoever saves a head may add entries."""

    model_config = ConfigDict(extra="allow", strict=True)

    format: Literal[1]
    name: str
    parameters: dict[str, Any]
    selection: str
    keys: dict[str, str]
    random_weights: bool
    model: ModelFile
    record: dict[str, Any] = {}
    features: dict[str, dict[str, Any]] = Field(min_length=1)


def read_card(folder: Path) -> dict[str, Any]:
    """What stands in a saved head's `card.yaml`, or in the `card.json` of one saved long ago.

    Raises:
        HeadError: if it is not there, or not one.
    """
    path = _card_of(folder) or folder / CARD
    refuse_link(folder, path)
    if not path.is_file():
        raise HeadError(f"{folder} holds no head: there is no {CARD}")
    text = file_text(path, HeadError)
    value_of = json_value if path.name == OLD_CARD else yaml_value
    try:
        return Card.model_validate(value_of(text, path, HeadError)).model_dump()
    except ValidationError as error:
        raise HeadError(
            f"{path} is not the card of a head of format {FORMAT}: {first_problem(error)}"
        ) from error


def read_model(folder: Path, card: Mapping[str, Any], *, most_bytes: int) -> tuple[bytes, Path]:
    """The content of the model file that a card names, and its path for messages.

    Args:
        folder: of the head.
        card: what `read_card` read.
        most_bytes: a longer file is refused before it is read.

    Raises:
        HeadError: if it is not there, is a link, is longer, or is not the one that the card tells
            the sha256 of.
    """
    path = folder / card["model"]["file"]
    refuse_link(folder, path)
    content = file_bytes(path, HeadError, most_bytes=most_bytes)
    if hashlib.sha256(content).hexdigest() != card["model"]["sha256"]:
        raise HeadError(f"{path} is damaged: its sha256 is not the one in {CARD}")
    return content, path


def write_head(folder: Path, entries: Mapping[str, Any], content: bytes, *, suffix: str) -> None:
    """Write a card and its model file, in place of the head that is there.

    The model file is named by its content and written first; replacing `card.yaml` is the one act
    that puts the new head in place of the old one.  At every moment the folder holds the old head
    or the new one; a process that is killed may leave a model file that no card names.

    Args:
        folder: a new or empty folder, or that of a head.
        entries: of the card, as JSON values, but for `format` and `model`.
        content: of the model file.
        suffix: of its name.

    Raises:
        HeadError: if the folder holds something else than a head, or it cannot be written.
    """
    check_vacant(folder)
    sha256 = hashlib.sha256(content).hexdigest()
    model = f"model-{sha256[:16]}{suffix}"
    first = {"format": FORMAT, "model": {"file": model, "sha256": sha256}}
    text = yaml_text(_plain({**first, **entries}))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        old = _card_of(folder)
        replaced = model if old is None else read_card(folder)["model"]["file"]
        write_atomically(folder / model, content)
        write_atomically(folder / CARD, text.encode())
        if replaced != model:
            (folder / replaced).unlink(missing_ok=True)
        (folder / OLD_CARD).unlink(missing_ok=True)
    except OSError as error:
        raise HeadError(f"{folder} cannot be written: {refusal(error)}") from error


def check_vacant(folder: Path) -> None:
    """Refuse a folder that holds something else than a head.

    Raises:
        HeadError: if no head may be written there.
    """
    try:
        names = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return
    except OSError as error:
        raise HeadError(f"{folder} is no folder for a head: {error.strerror}") from error
    if CARD in names or OLD_CARD in names:
        read_card(folder)
        return
    # What a killed `save` leaves behind is no obstacle.
    strangers = sorted(
        name for name in names if not re.match(r"\.?(model-|card\.(yaml|json)|companions$)", name)
    )
    if strangers:
        raise HeadError(
            f"{folder} holds no head, but {strangers[0]}; name a new folder, or empty this one"
        )


def model_of(folder: Path) -> str:
    """sha256 of what the head in a folder has learnt.

    Raises:
        HeadError: if there is no head.
    """
    sha256: str = read_card(folder)["model"]["sha256"]
    return sha256


def marks_of(ids: Sequence[str]) -> str:
    """The ids of the videos that a head is trained on, as its card keeps them: eight characters of
    a hash each, because thousands of names are megabytes."""
    return "".join(sorted({_mark(one) for one in ids}))


def seen_is_known(folder: Path) -> bool:
    """Whether a head and all that it was started from say which videos they were trained on.

    Published weights do not, nor do cards that were written before they kept marks.

    Raises:
        HeadError: if there is no head in the folder.
    """
    return all((card.get("trained_on") or {}).get("ids") for card in _chain(folder))


def seen_by(folder: Path, ids: Sequence[str]) -> list[str]:
    """Those of some videos that a head was trained on, or any head that it was started from.

    Of some heads nothing is known: see `seen_is_known`.

    Raises:
        HeadError: if there is no head in the folder.
    """
    seen: set[str] = set()
    for card in _chain(folder):
        marks = (card.get("trained_on") or {}).get("ids", "")
        seen |= {marks[at : at + MARK] for at in range(0, len(marks), MARK)}
    return [one for one in ids if _mark(one) in seen]


def _chain(folder: Path) -> Iterator[Mapping[str, Any]]:
    """The card of a head, and what it tells of the one before, and so on."""
    card: Mapping[str, Any] | None = read_card(folder)
    while card is not None:
        yield card
        card = (card.get("record") or {}).get("started_from")


def _mark(video_id: str) -> str:
    return hashlib.sha256(video_id.encode()).hexdigest()[:MARK]


def first_problem(error: ValidationError) -> str:
    """Where pydantic saw the first problem, and what it was, in a line."""
    first = error.errors()[0]
    return "".join(f"{step}: " for step in first["loc"]) + str(first["msg"]).lower()


def refuse_link(folder: Path, path: Path) -> None:
    """A head may come from a stranger: nothing in its folder leads out of it.

    Raises:
        HeadError: naming the link.
    """
    try:
        inside(folder, path)
    except BankError as error:
        raise HeadError(str(error)) from error


def _card_of(folder: Path) -> Path | None:
    """The card of a folder; the new one where a save was killed before the old one went."""
    return next((folder / name for name in (CARD, OLD_CARD) if (folder / name).exists()), None)


def _plain(value: Any) -> Any:
    """With lists and dicts in place of what YAML has no words for."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(one) for one in value]
    return value
