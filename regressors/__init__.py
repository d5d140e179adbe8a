"""Heads: features of a FeatureTable to MOS.  They never see pixels, files or backbones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regressors.base import Head, read_card
from regressors.blend import Blend
from regressors.boosting import Boosting
from regressors.cagi import Cagi
from regressors.gaussian import Gaussian
from regressors.gru import Gru
from regressors.mlp import Mlp
from regressors.ridge import Ridge
from regressors.svr import Svr
from store.errors import UnknownNameError, unknown_name

__all__ = ["HEADS", "Head", "load_head", "make_head"]

HEADS: dict[str, type[Head]] = {
    "ridge": Ridge,
    "svr": Svr,
    "gaussian": Gaussian,
    "boosting": Boosting,
    "blend": Blend,
    "mlp": Mlp,
    "gru": Gru,
    "cagi": Cagi,
}


def make_head(name: str, *, preset: str = "laptop", **parameters: Any) -> Head:
    """An unfitted head by its name in HEADS.

    Args:
        name: of the head.
        preset: "laptop" for the head's own defaults, "paper" for those of its paper.
        parameters: of the head, where they differ from the preset.

    Raises:
        UnknownNameError: if no head has this name, or the head no such preset or parameter.
        HeadError: if a parameter has a value of the wrong type, or out of its range.
    """
    kind = _kind(name)
    presets: dict[str, Mapping[str, Any]] = {"laptop": {}}
    if kind.paper:
        presets["paper"] = kind.paper
    if str(preset) not in presets:
        raise UnknownNameError(unknown_name(f"preset of {name}", str(preset), presets))
    known = kind.parameter_types()
    for parameter in parameters:
        if parameter not in known:
            raise UnknownNameError(unknown_name(f"parameter of {name}", parameter, known))
    head = kind(**{**presets[preset], **parameters})
    head.check_parameters()
    return head


def load_head(folder: Path) -> Head:
    """The head that `Head.save` wrote into `folder`.

    Raises:
        HeadError: if the folder holds no head, or a damaged one.
        UnknownNameError: if no head has the name in `card.yaml`.
    """
    return _kind(read_card(folder)["name"]).load(folder)


def _kind(name: str) -> type[Head]:
    if name not in HEADS:
        raise UnknownNameError(unknown_name("head", name, HEADS))
    return HEADS[name]
