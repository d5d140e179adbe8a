"""What is known of where features come from, and what has to be said of it."""

from collections.abc import Iterable, Mapping

from pydantic import BaseModel

from vqbank.pipelines.results.statistics import STRICT
from vqbank.store.schema import FeatureSpec


class Source(BaseModel):
    """Where one feature comes from."""

    model_config = STRICT

    shape: list[int]
    """Of a row."""
    stored_dtype: str
    weights: str
    """The beginning of their hash; or "random", "none", "unknown" of what was imported."""
    licence: str
    """Of the weights; empty where nobody told."""
    trained_on: list[str]
    """Data sets that the weights were trained on, as far as it is known."""

    @classmethod
    def of(cls, spec: FeatureSpec) -> "Source":
        """The source that a feature's identity names."""
        imported = spec.identity.get("provenance")
        known = str(imported or spec.identity.get("weights") or "none")
        return cls(
            shape=list(spec.shape),
            stored_dtype=spec.stored_dtype,
            weights="random" if spec.uses_random_weights else known[:12],
            licence=spec.licence,
            trained_on=list(spec.trained_on),
        )


def seen_by_weights(specs: Mapping[str, FeatureSpec], ids: Iterable[str]) -> list[str]:
    """Which data sets of these videos the weights of a feature were trained on.

    A data set is what stands before the first slash of a video's id; case, hyphens and underscores
    do not count.

    Returns:
        Lines such as "LSVQ (fastvqa.feature)"; none where no weights are known to have seen any.
    """
    lines = []
    for name in dict.fromkeys(video_id.split("/", 1)[0] for video_id in ids):
        trained = [
            spec.name
            for spec in specs.values()
            if bare(name) in {bare(seen) for seen in spec.trained_on}
        ]
        if trained:
            lines.append(f"{name} ({', '.join(dict.fromkeys(trained))})")
    return lines


def unknown_weights(specs: Mapping[str, FeatureSpec]) -> list[str]:
    """Names of the features of whose weights nobody knows what they were trained on."""
    return [
        spec.name
        for spec in specs.values()
        if spec.identity.get("weights", "none") != "none"
        and not spec.uses_random_weights
        and not spec.trained_on
    ]


def unknown_provenance(specs: Mapping[str, FeatureSpec]) -> list[str]:
    """Names of the features that were imported: nobody knows which code and weights made them."""
    return [s.name for s in specs.values() if s.identity.get("provenance") == "unknown"]


def bare(name: str) -> str:
    """A name of a data set as names are compared: without case, hyphens and underscores."""
    return name.replace("-", "").replace("_", "").casefold()


def names_of(features: Mapping[str, str]) -> str:
    """Features without hashes, and with their roles where two have one name.

    Args:
        features: key by role.
    """
    names = {role: key.partition("@")[0] for role, key in features.items()}
    if len(set(names.values())) < len(names):
        return " + ".join(f"{role}={name}" for role, name in names.items())
    return " + ".join(names.values())
