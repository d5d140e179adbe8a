"""Score new videos with a shipped head.

The card of a head says which features it wants, down to their keys, so that nothing else is needed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from extractors import EXTRACTORS, make_extractor, specs_of
from extractors.base import Extractor
from pipelines.extract import Extraction
from pipelines.manifest import read_videos
from regressors import load_head
from regressors.base import read_card
from store.bank import FeatureStore
from store.errors import HeadError
from store.schema import FeatureSpec, Fingerprint, Video


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
        self.card = read_card(folder)
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
    """The videos of manifests, folders and single files, each once.

    Those of a manifest keep their ids.  All others go by their content, as files/HASH/NAME: names
    of files and folders repeat, and one video must never get the score of another.

    Raises:
        ManifestError: for a manifest that cannot be read, or a folder without videos.
    """
    known: dict[str, Video] = {}
    for source in sources:
        has_ids = source.suffix.lower() == ".csv" and not source.is_dir()
        for video in read_videos(source):
            scored = video if has_ids else Video(id=_content_id(video.path), path=video.path)
            first = known.setdefault(scored.id, scored)
            # Two files under one id of manifests are for the extraction to refuse.
            if first is scored or (has_ids and first != scored):
                yield scored


def _content_id(path: Path) -> str:
    try:
        digest = Fingerprint.of(path).sha256[:16]
    except OSError:
        # No banked video may go by this id: the extraction has to say what is wrong with the file.
        return f"files/unreadable/{path.as_posix()}"
    return f"files/{digest}/{path.name}"


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
    parameters["outputs"] = tuple(spec.name.removeprefix(f"{name}.") for spec in specs)
    offers = make_extractor(name, **parameters).offers
    usual = {f"{name}.{output.name}": output.stored_dtype for output in offers}
    for spec in specs:
        if spec.stored_dtype != usual.get(spec.name):
            parameters["stored_dtype"] = spec.stored_dtype
    extractor = make_extractor(name, **parameters)
    made = {spec.key for spec in specs_of(extractor, decoder=str(identity["decoder"])).values()}
    for spec in specs:
        if spec.key not in made:
            raise HeadError(
                f"{folder}: the head wants {spec.key}, this vqbank makes "
                f"{', '.join(sorted(made))}; its version or the weights differ"
            )
    return extractor
