"""vqbank: bank frozen video-quality features once; train, ablate and ship light heads from it.

What stands here is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vqbank.pipelines.manifest import read_videos
    from vqbank.pipelines.recipe import read_recipe
    from vqbank.pipelines.runs.ablate import ablate
    from vqbank.pipelines.runs.bank import open_bank
    from vqbank.pipelines.runs.evaluate import evaluate
    from vqbank.pipelines.runs.extract import extract
    from vqbank.pipelines.runs.predict import predict
    from vqbank.pipelines.runs.train import train
    from vqbank.regressors import load_head, make_head
    from vqbank.store.errors import VqbankError
    from vqbank.store.table import FeatureTable

__all__ = [
    "FeatureTable",
    "VqbankError",
    "ablate",
    "evaluate",
    "extract",
    "load_head",
    "make_head",
    "open_bank",
    "predict",
    "read_recipe",
    "read_videos",
    "train",
]

_PLACES = {
    "FeatureTable": "vqbank.store.table",
    "VqbankError": "vqbank.store.errors",
    "ablate": "vqbank.pipelines.runs.ablate",
    "evaluate": "vqbank.pipelines.runs.evaluate",
    "extract": "vqbank.pipelines.runs.extract",
    "load_head": "vqbank.regressors",
    "make_head": "vqbank.regressors",
    "open_bank": "vqbank.pipelines.runs.bank",
    "predict": "vqbank.pipelines.runs.predict",
    "read_recipe": "vqbank.pipelines.recipe",
    "read_videos": "vqbank.pipelines.manifest",
    "train": "vqbank.pipelines.runs.train",
}
"""Of each name, the module that has it."""


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(_PLACES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
