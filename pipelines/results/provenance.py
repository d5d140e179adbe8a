"""What is known of where the features of a trial come from, and what has to be said of it."""

import numpy as np
from numpy.typing import NDArray

from vqbank.pipelines.experiments.evaluate import Trial


def seen_by_weights(trial: Trial, rows: NDArray[np.int64]) -> list[str]:
    """Which of the data sets that these rows are of the weights of a feature were trained on.

    A data set is what stands before the first slash of a video's id; case, hyphens and underscores
    do not count.

    Returns:
        Lines such as "LSVQ (fastvqa.feature)"; none where no weights are known to have seen any.
    """
    sets = dict.fromkeys(trial.table.videos[row].id.split("/", 1)[0] for row in rows)
    specs = trial.table.specs.values()
    lines = []
    for name in sets:
        trained = [s.name for s in specs if _bare(name) in {_bare(seen) for seen in s.trained_on}]
        if trained:
            lines.append(f"{name} ({', '.join(dict.fromkeys(trained))})")
    return lines


def unknown_weights(trial: Trial) -> list[str]:
    """Names of the features of whose weights nobody knows what they were trained on."""
    return [
        spec.name
        for spec in trial.table.specs.values()
        if spec.identity.get("weights", "none") != "none"
        and not spec.uses_random_weights
        and not spec.trained_on
    ]


def unknown_provenance(trial: Trial) -> list[str]:
    """Names of the features that were imported: nobody knows which code and weights made them."""
    specs = trial.table.specs.values()
    return [spec.name for spec in specs if spec.identity.get("provenance") == "unknown"]


def _bare(name: str) -> str:
    return name.replace("-", "").replace("_", "").casefold()
