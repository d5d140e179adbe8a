"""A map of videos by their features, and how alike features are."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vqbank.store.table import FeatureTable

MOST_WIDTH = 16_384
"""Values of a row that is pooled; a map of more than these would cost minutes."""
SAMPLE = 2_000
"""Videos that axes and likenesses are computed on, drawn once; all others are laid between them."""
TSNE_INPUTS = 50
"""Principal components that t-SNE starts from, as its authors advise."""
Kind = Literal["pca", "tsne"]


def map_of(
    table: FeatureTable, *, kind: Kind = "pca", seed: int = 0
) -> tuple[NDArray[np.float32], str]:
    """Two coordinates [n, 2] of every video, and how they came about.

    Every value of a row is averaged over the rows of a video and divided by its deviation over
    videos, so that no feature counts more for its unit.

    Args:
        table: n videos; features with more than MOST_WIDTH values in a row are left out.
        kind: principal components, or t-SNE of these, which takes minutes of thousands of videos.
        seed: of the draw, and of t-SNE.

    Returns:
        Coordinates, all 0 where there is nothing to lay out.
    """
    roles = mapped_roles(table)
    if not roles or len(table) < 3:
        return np.zeros((len(table), 2), np.float32), "no feature is narrow enough for a map"
    chosen = _sample(len(table), seed)
    drawn = np.stack([pooled_row(table, roles, row) for row in chosen])
    centre, deviation = drawn.mean(axis=0), drawn.std(axis=0)
    deviation[deviation == 0] = np.inf
    scaled = (drawn - centre) / deviation
    wanted = min(TSNE_INPUTS if kind == "tsne" else 2, len(chosen) - 1, scaled.shape[1])
    _, sizes, axes = np.linalg.svd(scaled, full_matrices=False)
    axes = axes[:wanted]
    # The sign of an axis is arbitrary: the largest weight is positive.
    axes *= np.sign(axes[np.arange(wanted), np.abs(axes).argmax(axis=1)])[:, None]
    places = np.stack(
        [axes @ ((pooled_row(table, roles, row) - centre) / deviation) for row in range(len(table))]
    )
    names = " + ".join(table.specs[role].name for role in roles)
    if kind == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(table) - 1) / 3)
        places = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(places)
        return places.astype(np.float32), f"t-SNE of {names}: distances far apart say nothing"
    share = float((sizes[:2] ** 2).sum() / max((sizes**2).sum(), 1e-300))
    if wanted < 2:
        places = np.pad(places, ((0, 0), (0, 2 - wanted)))
    return (
        places.astype(np.float32),
        f"two principal components of {names}, with {share:.0%} of the variance",
    )


def likeness(table: FeatureTable, *, seed: int = 0) -> tuple[list[str], NDArray[np.float64]]:
    """Names of features and linear centred kernel alignment [k, k] of each two.

    1: the videos lie alike, but for turning and scaling; 0: nothing in common (Kornblith et al.,
    ICML 2019).

    Args:
        table: n videos, of which some are drawn.
        seed: of the draw.
    """
    roles = mapped_roles(table)
    chosen = _sample(len(table), seed)
    grams = []
    for role in roles:
        rows = np.stack([pooled_row(table, [role], row) for row in chosen])
        rows -= rows.mean(axis=0)
        gram = rows @ rows.T
        grams.append(gram / max(float(np.linalg.norm(gram)), 1e-300))
    alike = np.array([[float((one * other).sum()) for other in grams] for one in grams])
    return [table.specs[role].name for role in roles], alike.reshape(len(roles), len(roles))


def agreement(predicted: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """[k, k]: SRCC of each two heads' predictions, over the videos that both have."""
    from vqbank.regressors.metrics import srcc

    found = np.eye(len(predicted))
    for one in range(len(predicted)):
        for other in range(one):
            both = np.isfinite(predicted[one]) & np.isfinite(predicted[other])
            value = srcc(predicted[one][both], predicted[other][both]) if both.sum() > 2 else np.nan
            found[one, other] = found[other, one] = value
    return found


def mapped_roles(table: FeatureTable) -> list[str]:
    """Those whose rows are narrow enough."""
    widths: Mapping[str, int] = {
        role: int(np.prod(spec.shape, dtype=np.int64)) for role, spec in table.specs.items()
    }
    return [role for role, width in widths.items() if width <= MOST_WIDTH]


def pooled_row(table: FeatureTable, roles: Sequence[str], row: int) -> NDArray[np.float64]:
    """The mean row of each role, one after the other."""
    parts = [table.series(role, row) for role in roles]
    return np.concatenate(
        [part.reshape(len(part), -1).mean(axis=0, dtype=np.float64) for part in parts]
    )


def _sample(count: int, seed: int) -> NDArray[np.int64]:
    if count <= SAMPLE:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, SAMPLE, replace=False))
