"""Heads: features of a FeatureTable to MOS.  They never see pixels, files or backbones."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqbank.store.errors import UnknownNameError, unknown_name
from vqbank.store.registry import Registry

if TYPE_CHECKING:
    from vqbank.regressors.base import Head

HEADS: "Registry[Head]" = Registry(
    "head",
    "vqbank.heads",
    {
        "score": "vqbank.regressors.score:Score",
        "ridge": "vqbank.regressors.ridge:Ridge",
        "svr": "vqbank.regressors.svr:Svr",
        "gaussian": "vqbank.regressors.gaussian:Gaussian",
        "boosting": "vqbank.regressors.boosting:Boosting",
        "blend": "vqbank.regressors.blend:Blend",
        "mlp": "vqbank.regressors.mlp:Mlp",
        "mhsa": "vqbank.regressors.mhsa:Mhsa",
        "gru": "vqbank.regressors.gru:Gru",
        "cagi": "vqbank.regressors.cagi:Cagi",
        "ram": "vqbank.regressors.ram:Ram",
        "mapnet": "vqbank.regressors.mapnet:MapNet",
        "dvlta": "vqbank.regressors.dvlta:Dvlta",
        "qclip": "vqbank.regressors.qclip:QClip",
        "ram-prompts": "vqbank.regressors.ram_prompts:RamPrompts",
    },
)


def make_head(name: str, *, preset: str = "laptop", **parameters: Any) -> "Head":
    """An unfitted head by its name in HEADS.

    Args:
        name: of the head.
        preset: "laptop" for the head's own defaults, "paper" for those of its paper; some heads
            have others.
        parameters: of the head, where they differ from the preset.

    Raises:
        UnknownNameError: if no head has this name, or the head no such preset or parameter.
        HeadError: if a parameter has a value of the wrong type, or out of its range.

    Example:
        >>> head = vqbank.make_head("ridge", folds=3)
        >>> head.fit(table, mos).predict(table).shape
        (12,)
    """
    if not isinstance(name, str):
        raise UnknownNameError(unknown_name("head", repr(name), HEADS))
    kind = HEADS[name]
    presets = kind.all_presets()
    if str(preset) not in presets:
        raise UnknownNameError(unknown_name(f"preset of {name}", str(preset), presets))
    known = kind.parameter_types()
    for parameter in parameters:
        if parameter not in known:
            raise UnknownNameError(unknown_name(f"parameter of {name}", parameter, known))
    head = kind(**{**presets[preset], **parameters})
    head.check_parameters()
    return head


def load_head(folder: Path | str) -> "Head":
    """The head that `Head.save` wrote into `folder`.

    Args:
        folder: as `vqbank train` wrote it.  Nothing in it is executed.

    Returns:
        The fitted head: `head.predict(table)` gives [n] on the scale of the training scores.

    Raises:
        HeadError: if the folder holds no head, or a damaged one.
        UnknownNameError: if no head has the name in `card.yaml`.

    Example:
        >>> head = vqbank.load_head("head")
        >>> head.predict(table).shape
        (12,)
    """
    from vqbank.regressors.card import read_card

    folder = Path(folder)
    return HEADS[read_card(folder)["name"]].load(folder)
