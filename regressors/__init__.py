"""Heads: features of a FeatureTable to MOS.  They never see pixels, files or backbones."""

from pathlib import Path
from typing import Any

from regressors.base import Head, read_card
from regressors.mlp import Mlp
from regressors.ridge import Ridge
from regressors.svr import Svr
from store.errors import HeadError, UnknownNameError, unknown_name

__all__ = ["HEADS", "Head", "load_head", "make_head"]

HEADS: dict[str, type[Head]] = {"ridge": Ridge, "svr": Svr, "mlp": Mlp}


def make_head(name: str, **parameters: Any) -> Head:
    """An unfitted head by its name in HEADS.

    Raises:
        UnknownNameError: if no head has this name, or the head no such parameter.
        HeadError: if a parameter has a value of the wrong type.
    """
    head = _head(name)
    defaults = head.parameters()
    for parameter, value in parameters.items():
        if parameter not in defaults:
            raise UnknownNameError(unknown_name(f"parameter of {name}", parameter, defaults))
        if not _is_like(value, defaults[parameter]):
            raise HeadError(
                f"{name}: {parameter} = {value!r} is not like its default, {defaults[parameter]!r}"
            )
    return head(**parameters)


def load_head(folder: Path) -> Head:
    """The head that `Head.save` wrote into `folder`.

    Raises:
        HeadError: if the folder holds no head, or a damaged one.
        UnknownNameError: if no head has the name in `head.json`.
    """
    return _head(read_card(folder)["name"]).load(folder)


def _head(name: str) -> type[Head]:
    if name not in HEADS:
        raise UnknownNameError(unknown_name("head", name, HEADS))
    return HEADS[name]


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value read from a recipe can stand for `default`: whole numbers pass as floats."""
    if isinstance(default, tuple):
        return isinstance(value, list | tuple) and all(_is_like(v, default[0]) for v in value)
    if isinstance(value, bool):
        return isinstance(default, bool)
    return isinstance(value, int | float if isinstance(default, float) else type(default))
