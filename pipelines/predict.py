"""Fit a head on all rows and ship it; score new videos with a shipped head.

A head folder holds the head itself and a card that says which features it wants, down to their
keys, so that `predict` needs nothing else.
"""

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from extractors import EXTRACTORS, make_extractor
from extractors.base import Extractor
from pipelines.evaluate import Trial
from pipelines.extract import Extraction
from pipelines.manifest import read_videos
from pipelines.recipe import Recipe
from regressors import Head, load_head
from store.bank import FeatureStore
from store.errors import HeadError, RecipeError
from store.schema import FeatureSpec, Fingerprint, Video

CARD = "card.json"


def train(trial: Trial, folder: Path, *, recipe: Recipe) -> Head:
    """Fit the trial's head on every row of its table and write the head folder.

    Raises:
        RecipeError: if the trial has several heads.
        HeadError: if `folder` exists and holds something else than a head.
    """
    if len(trial.heads) != 1:
        raise RecipeError(f"one head is shipped, not {', '.join(trial.heads)}; choose by --head")
    if folder.exists() and any(folder.iterdir()) and not (folder / CARD).exists():
        raise HeadError(f"{folder} is not empty and holds no head; name a new folder")
    fitted = next(iter(trial.heads.values())).fit(trial.table, trial.mos)
    fitted.save(folder)
    card = {
        "head": fitted.name,
        "selection": fitted.selection_,
        "score_name": trial.score_name,
        "trained_on": {
            "videos": len(trial.table),
            "lowest": float(trial.mos.min()),
            "highest": float(trial.mos.max()),
        },
        "keys": {role: spec.key for role, spec in fitted.specs_.items()},
        "random_weights": trial.has_random_weights,
        "recipe": recipe.model_dump(mode="json"),
        "software": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("vqbank", "numpy", "torch", "scikit-learn")},
        },
    }
    (folder / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    return fitted


class Scorer:
    """A shipped head together with the extractors that its card asks for."""

    def __init__(self, folder: Path, *, weights: Mapping[str, str]) -> None:
        """Load the head and rebuild its extractors; no backbone is loaded yet.

        Args:
            folder: What `train` wrote.
            weights: Local weight files by extractor name, where the published name does not do.

        Raises:
            HeadError: if the folder holds no head, or this vqbank computes other features than
                the head was trained on.
        """
        try:
            self.card = json.loads((folder / CARD).read_text())
        except OSError as error:
            raise HeadError(f"{folder} holds no head: {CARD}: {error.strerror}") from error
        except ValueError as error:
            raise HeadError(f"{folder / CARD} is not JSON: {error}") from error
        self.head = load_head(folder)
        specs = list(self.head.specs_.values())
        self.decoder = _one_decoder(folder, specs)
        self.extractors = [
            _rebuilt(folder, name, [s for s in specs if s.identity["extractor"] == name], weights)
            for name in dict.fromkeys(str(spec.identity["extractor"]) for spec in specs)
        ]

    def extraction(
        self, videos: Sequence[Video], store: FeatureStore, *, device: torch.device
    ) -> Extraction:
        """What has to run before `scores`; banks what it computes."""
        return Extraction(videos, self.extractors, store, decoder=self.decoder, device=device)

    def scores(self, videos: Sequence[Video], store: FeatureStore) -> NDArray[np.float64]:
        """[n]: predicted quality of banked videos, on the scale of the training scores."""
        return self.head.predict(
            store.table(videos, {r: s.key for r, s in self.head.specs_.items()})
        )


def videos_to_score(sources: Sequence[Path]) -> Iterator[Video]:
    """The videos of manifests, folders and single files.

    A single file goes by its content, so that the same file is never extracted twice.
    """
    for source in sources:
        if source.is_dir() or source.suffix.lower() == ".csv" or not source.is_file():
            yield from read_videos(source)
        else:
            digest = Fingerprint.of(source).sha256[:16]
            yield Video(id=f"files/{digest}/{source.name}", path=source)


def _one_decoder(folder: Path, specs: Sequence[FeatureSpec]) -> str:
    decoders = sorted({str(spec.identity.get("decoder")) for spec in specs})
    if len(decoders) != 1 or decoders == ["None"]:
        raise HeadError(
            f"{folder}: its features come from {', '.join(decoders)}, not from one decoder; "
            "vqbank cannot make them for a new video"
        )
    return decoders[0]


def _rebuilt(
    folder: Path, name: str, specs: Sequence[FeatureSpec], weights: Mapping[str, str]
) -> Extractor:
    """The extractor whose outputs are `specs`, checked against their keys."""
    if name not in EXTRACTORS:
        raise HeadError(f"{folder}: this vqbank has no extractor {name!r}")
    identity = specs[0].identity
    names = {field.name for field in fields(EXTRACTORS[name])}
    parameters = {key: identity[key] for key in names & identity.keys() - {"weights"}}
    if "weights" in names and identity["weights"] == "random":
        parameters["weights"] = "random"
    elif name in weights:
        parameters["weights"] = weights[name]
    usual = {f"{name}.{output.name}": output.stored_dtype for output in EXTRACTORS[name].outputs}
    for spec in specs:
        if spec.stored_dtype != usual.get(spec.name):
            parameters["stored_dtype"] = spec.stored_dtype
    extractor = make_extractor(name, **parameters)
    made = {spec.key for spec in extractor.specs(decoder=str(identity["decoder"])).values()}
    for spec in specs:
        if spec.key not in made:
            raise HeadError(
                f"{folder}: the head wants {spec.key}, this vqbank makes "
                f"{', '.join(sorted(made))}; its version or the weights differ"
            )
    return extractor
