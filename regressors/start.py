"""Training that goes on from a fitted head: a large set first, then a small one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vqbank.regressors.batches import Input, taken_of
from vqbank.regressors.card import read_card
from vqbank.regressors.plan import Start
from vqbank.store.errors import HeadError
from vqbank.store.schema import FeatureSpec

if TYPE_CHECKING:
    from vqbank.regressors.sequence import SequenceHead

KNOWN = ("name", "selection", "score_name", "trained_on", "random_weights", "record")
"""What a card tells of the head that another was started from; the record has the one before."""


class Begun(NamedTuple):
    """Where the runs of a head start."""

    starts: Sequence[Start | None]
    """Of each run; None where the start is drawn."""
    record: Mapping[str, Any]
    """What the card tells of it, as JSON values."""


def begin(
    head: "SequenceHead", specs: Mapping[str, FeatureSpec], inputs: Mapping[str, Input]
) -> Begun:
    """Where training of a head starts: one network for all runs, or one for each.

    Args:
        head: whose parameter `start` names the folder of another, or is None.
        specs: of the features that it is fitted on.
        inputs: what its networks are told of them.

    Raises:
        HeadError: if the head in the folder is of another kind, of other features, is standardised
            otherwise, or has networks of another form or number.
    """
    if head.start is None:
        return Begun([None] * head.runs, {})
    folder = Path(head.start)
    other = type(head).load(folder)
    if list(other.specs_.items()) != list(specs.items()):
        raise HeadError(
            f"{folder} was fitted on {_named(other.specs_)}; training cannot go on from it on "
            f"{_named(specs)}"
        )
    if other.standardise != head.standardise:
        raise HeadError(
            f"{folder} has standardise = {other.standardise}, which its networks learnt by; take "
            "the same"
        )
    if other.standardise and other.averages_rows != head.averages_rows:
        raise HeadError(
            f"{folder} was standardised by means over rows or by rows, and {head.name} with these "
            "parameters is by the other; take the parameters of that head"
        )
    if other.runs not in (1, head.runs):
        raise HeadError(f"{folder} has {other.runs} networks; take runs = {other.runs}")
    theirs, ours = (one.learnt_shapes(inputs) for one in (other, head))
    if theirs != ours:
        name = min(one for one in theirs | ours if theirs.get(one) != ours.get(one))
        raise HeadError(
            f"the networks of {folder} are of another form: {name} has shape "
            f"{theirs.get(name, 'none')}, not {ours.get(name, 'any')}"
        )
    _check_stands_on_the_same(folder, other, inputs)
    card = read_card(folder)
    model = card["model"]["sha256"]
    starts = []
    for run in range(head.runs):
        which = run if other.runs > 1 else 0
        state = {name: value[which] for name, value in other.ensemble_.state.items()}
        starts.append(Start(state, other.ensemble_.scalings[which], model))
    told = {key: card[key] for key in KNOWN if key in card}
    return Begun(starts, {"started_from": {**told, "model": model}})


def _check_stands_on_the_same(
    folder: Path, other: "SequenceHead", inputs: Mapping[str, Input]
) -> None:
    """Compare the towers and texts of a head with those that are here, of what both take.

    Raises:
        HeadError: naming what differs.
    """
    here = taken_of(inputs).get("companions", {})
    for role, taken in other.record_.get("companions", {}).items():
        for name, sha256 in taken.items():
            own = here.get(role, {}).get(name, sha256)
            if own != sha256:
                raise HeadError(
                    f"{folder} was trained with {name} of {role} with sha256 {sha256[:12]}; here "
                    f"it is {own[:12]}: go on in the bank that it was trained from"
                )


def _named(specs: Mapping[str, FeatureSpec]) -> str:
    return ", ".join(f"{role} = {spec.key}" for role, spec in specs.items())
