"""Score new videos with a shipped head.

The card of a head says which features it wants, down to their keys, so that nothing else is needed.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqbank.extractors import EXTRACTORS, make_extractor, specs_of, weights_for
from vqbank.extractors.base import RGB, Extractor
from vqbank.pipelines.extraction.banking import fingerprint
from vqbank.pipelines.extraction.extract import Extraction
from vqbank.pipelines.over_time import Moments, over_time
from vqbank.regressors import load_head
from vqbank.regressors.card import read_card
from vqbank.regressors.local_quality import local_quality
from vqbank.regressors.sequence import SequenceHead
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import HeadError, UnknownNameError, WeightsError, unknown_name
from vqbank.store.schema import FeatureSpec, Video
from vqbank.store.table import FeatureTable

WITH_PLACES = ("ram", "mapnet")
"""Heads that look at places of a frame."""


class Scorer:
    """A shipped head together with the extractors that its card asks for."""

    def __init__(self, folder: Path, *, weights: Mapping[str, str]) -> None:
        """Load the head and rebuild its extractors; no backbone is loaded yet.

        Args:
            folder: What `train` wrote.
            weights: Local weight files by extractor, or by its entry in the head's recipe, where
                the published name does not do.

        Raises:
            HeadError: if the folder holds no head, or this vqbank computes other features than
                the head was trained on.
            WeightsError: if weights that the head needs are not at hand.
            UnknownNameError: if `weights` names no extractor of the head.
        """
        self.card = read_card(folder)
        self.head = load_head(folder)
        specs = list(self.head.specs_.values())
        self.only_banked = _why_only_banked(specs)
        """Why only videos that are banked can be scored; empty where new ones can, too."""
        self.decoder, self.extractors = "", list[Extractor]()
        if not self.only_banked:
            self.decoder = _one_decoder(folder, specs)
            entries = self.card.get("recipe", {}).get("extractors", {})
            known = {*(str(spec.identity["extractor"]) for spec in specs), *entries, "all"}
            for name in weights.keys() - known:
                raise UnknownNameError(f"--weights: {unknown_name('extractor', name, known)}")
            self.extractors = _rebuilt(folder, specs, entries, weights)

    def as_banked(self, videos: Sequence[Video], store: FeatureStore) -> list[Video]:
        """The same videos, each under the id under which the bank has most of it.

        A file that is banked under another id, byte for byte, need not be decoded again.

        Raises:
            ChangedVideoError: if only banked videos can be scored, and a file at hand is not the
                one that is banked under its id; where new ones can be, the extraction tells it.
        """
        specs = list(self.head.specs_.values())
        banked = [_as_banked(video, store, specs) for video in videos]
        own = [taken for taken, video in zip(banked, videos, strict=True) if taken is video]
        if self.only_banked:
            for video in own:
                _check_file(video, store, specs)
        # The bytes of several files may be those of one banked video, which may be among them.
        known = {video.id: video for video in own}
        return [
            taken if taken is video else known.setdefault(taken.id, taken)
            for taken, video in zip(banked, videos, strict=True)
        ]

    def extraction(
        self, videos: Sequence[Video], store: FeatureStore, *, device: torch.device
    ) -> Extraction:
        """What has to run before `scores`; banks what it computes."""
        return Extraction(videos, self.extractors, store, decoder=self.decoder, device=device)

    def scores(
        self, videos: Sequence[Video], store: FeatureStore, *, device: torch.device
    ) -> NDArray[np.float64]:
        """[n]: predicted quality of banked videos, on the scale of the training scores.

        Args:
            videos: n.
            store: where they are banked.
            device: for heads that are networks.
        """
        return self.head.predict(self._table(videos, store, device))

    def moments(
        self, videos: Sequence[Video], store: FeatureStore, *, device: torch.device
    ) -> list[Moments]:
        """The scores of the seconds of banked videos, as `over_time` gives them."""
        return over_time(self.head, self._table(videos, store, device))

    def places(
        self, videos: Sequence[Video], store: FeatureStore, *, device: torch.device
    ) -> NDArray[np.float64]:
        """[n, g, g]: the scores of the places of banked videos, as `local_quality` gives them."""
        self.check_places()
        assert isinstance(self.head, SequenceHead)
        return local_quality(self.head, self._table(videos, store, device))

    def check_places(self) -> None:
        """Refuse a head that looks at no places, before anything is extracted.

        Raises:
            HeadError: naming those that do.
        """
        if self.head.name not in WITH_PLACES:
            raise HeadError(
                f"{self.head.name} scores no places of a frame; {' and '.join(WITH_PLACES)} do"
            )

    def _table(
        self, videos: Sequence[Video], store: FeatureStore, device: torch.device
    ) -> FeatureTable:
        if isinstance(self.head, SequenceHead):
            self.head.device = str(device)
        return store.table(videos, {r: s.key for r, s in self.head.specs_.items()})


def score_table(
    videos: Sequence[Video],
    scores: NDArray[np.float64],
    beside: Sequence[Mapping[str, float]] = (),
) -> str:
    """A CSV file of scored videos: `score`, `id` and `path` of each, and what is told beside.

    Args:
        videos: n.
        scores: [n].
        beside: n, as `Predicted.beside`; a column is there where all know it.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    names = list(beside[0]) if beside else []
    writer.writerow(["score", "id", "path", *names])
    told = beside or [{}] * len(videos)
    for video, score, own in zip(videos, scores, told, strict=True):
        numbers = [f"{own[name]:.6f}" for name in names]
        writer.writerow([f"{score:.6f}", video.id, video.path, *numbers])
    return text.getvalue()


def _check_file(video: Video, store: FeatureStore, specs: Sequence[FeatureSpec]) -> None:
    content = fingerprint(video.path)
    if content is None:  # for the extraction to tell
        return
    for spec in specs:
        imported = spec.identity.get("provenance") == "unknown"  # nobody has seen the video
        if not imported and not store.missing(spec, [video]):
            store.check_file(spec, video, content)


def _as_banked(video: Video, store: FeatureStore, specs: Sequence[FeatureSpec]) -> Video:
    lacking = [spec for spec in specs if store.missing(spec, [video])]
    content = fingerprint(video.path) if lacking else None
    if content is None:
        return video
    others = {store.ids_by_content(spec).get(content, video.id) for spec in lacking}
    known = [video, *(replace(video, id=other) for other in sorted(others - {video.id}))]
    return min(known, key=lambda one: sum(bool(store.missing(spec, [one])) for spec in specs))


def _why_only_banked(specs: Sequence[FeatureSpec]) -> str:
    if all(spec.identity.get("provenance") == "unknown" for spec in specs):
        return "sees imported features, and nobody knows how to make them of a video"
    made = [spec for spec in specs if spec.identity.get("provenance") != "unknown"]
    others = sorted({str(spec.identity.get("rgb", "bilinear")) for spec in made} - {RGB})
    if others:
        return (
            f"was trained on pictures turned into RGB by {', '.join(others)}, and this vqbank does "
            f"it by {RGB} (to score new videos, extract those of the training and train again)"
        )
    return ""


def _one_decoder(folder: Path, specs: Sequence[FeatureSpec]) -> str:
    decoders = sorted({str(spec.identity.get("decoder")) for spec in specs})
    imported = [s.name for s in specs if s.identity.get("provenance") == "unknown"]
    if imported:
        raise HeadError(
            f"{folder}: {', '.join(imported)} came by an import, and nobody knows how to make it "
            "of a video"
        )
    if len(decoders) != 1 or decoders == ["None"]:
        raise HeadError(
            f"{folder}: its features come from {', '.join(decoders)}, not from one decoder; "
            "vqbank cannot make them for a new video"
        )
    return decoders[0]


def _rebuilt(
    folder: Path,
    specs: Sequence[FeatureSpec],
    entries: Mapping[str, Mapping[str, Any]],
    weights: Mapping[str, str],
) -> list[Extractor]:
    """The extractors whose outputs are `specs`, by their keys."""
    outputs: dict[Extractor, list[str]] = {}
    for spec in specs:
        extractor = _maker(folder, spec, entries, weights)
        outputs.setdefault(extractor, []).extend(extractor.outputs)
    return [replace(one, outputs=tuple(names)) for one, names in outputs.items()]


def _maker(
    folder: Path,
    spec: FeatureSpec,
    entries: Mapping[str, Mapping[str, Any]],
    weights: Mapping[str, str],
) -> Extractor:
    """The first candidate with the key of `spec`.

    Weights that a candidate lacks are asked for only if no other one will do.
    """
    others: set[str] = set()
    lacking: list[WeightsError] = []
    for candidate in _candidates(folder, spec, entries, weights):
        try:
            (own,) = specs_of(candidate, decoder=str(spec.identity["decoder"])).values()
        except WeightsError as error:
            lacking.append(error)
            continue
        if own.key == spec.key:
            return candidate
        others.add(own.key)
    if lacking:
        raise lacking[0]
    raise HeadError(
        f"{folder}: the head wants {spec.key}, this vqbank makes {', '.join(sorted(others))}; "
        "its version or the weights differ"
    )


def _candidates(
    folder: Path,
    spec: FeatureSpec,
    entries: Mapping[str, Mapping[str, Any]],
    weights: Mapping[str, str],
) -> Iterator[Extractor]:
    """By what the recipe of the head says of this extractor, then by what the key holds alone.

    Not every parameter stands in a key by its name: some name a sampling or a view.
    """
    kind = str(spec.identity["extractor"])
    if kind not in EXTRACTORS:
        raise HeadError(f"{folder}: this vqbank has no extractor {kind!r}")
    output = spec.name.removeprefix(f"{kind}.")
    names = {field.name for field in fields(EXTRACTORS[kind])}
    given = {
        entry: {name: value for name, value in parameters.items() if name in names}
        for entry, parameters in entries.items()
        if parameters.get("extractor", entry) == kind
    }
    given[""] = {name: spec.identity[name] for name in names & spec.identity.keys() - {"weights"}}
    for entry, parameters in given.items():
        if "weights" in names and spec.uses_random_weights:
            parameters["weights"] = spec.identity["weights"]
        elif "weights" in names and (chosen := weights_for(entry, kind, weights)) is not None:
            parameters["weights"] = chosen
        parameters |= {"outputs": (output,), "stored_dtype": None}
        with suppress(UnknownNameError):  # an entry without this output
            made = make_extractor(kind, **parameters)
            (usual,) = made.wanted
            if usual.stored_dtype != spec.stored_dtype:
                made = make_extractor(kind, **parameters | {"stored_dtype": spec.stored_dtype})
            yield made
