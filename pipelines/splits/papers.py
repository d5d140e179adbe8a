"""Splits of papers, seed for seed as their code draws them: they go by the order of the rows."""

import math
import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vqbank.pipelines.labels import Labels, Orders
from vqbank.pipelines.splits.split import Split
from vqbank.regressors.holdout import scenes_of
from vqbank.store.errors import RecipeError
from vqbank.store.schema import Video


def columns(videos: Sequence[Video], labels: Labels | None, count: int) -> list[Split]:
    """The split columns that a label file has, as those of pyiqa do."""
    if labels is None or not labels.split_columns:
        where = "a label file" if labels is None else f"{labels.path}, which has none"
        raise RecipeError(f"splits `columns` are columns of {where}; pyiqa's meta files have them")
    return [Split.of_parts(parts) for parts in labels.split_columns.values()]


def videval(videos: Sequence[Video], labels: Labels | None, count: int) -> list[Split]:
    """VIDEVAL's: scikit-learn's, of seeds ceil(8.8 i), i from 1."""
    from sklearn.model_selection import train_test_split  # seconds

    rows = np.arange(len(videos))
    return [
        Split(*(np.sort(side) for side in train_test_split(rows, test_size=0.2, random_state=seed)))
        for seed in (math.ceil(8.8 * number) for number in range(1, count + 1))
    ]


def fastvqa(videos: Sequence[Video], labels: Labels | None, count: int) -> list[Split]:
    """Those of FAST-VQA, DOVER and MaxVQA: Python's shuffle of seeds 42 (k + 1)."""
    splits = []
    for number in range(count):
        order = list(range(len(videos)))
        random.Random(42 * (number + 1)).shuffle(order)
        splits.append(Split.in_order(order, int(0.8 * len(videos))))
    return splits


def minimalistic(videos: Sequence[Video], labels: Labels | None, count: int) -> list[Split]:
    """MinimalisticVQA's 60/20/20: NumPy's permutation of seeds k."""
    n = len(videos)
    return [
        Split.in_order(_permutation(seed, n), int(n * 0.6), int(n * 0.8) - int(n * 0.6))
        for seed in range(count)
    ]


def rqvqa(videos: Sequence[Video], labels: Labels | None, count: int) -> list[Split]:
    """RQ-VQA's, of contents: NumPy's permutation of seeds 10 (k + 1)."""
    alone = [video.id for video in videos if video.scene is None]
    if alone:
        raise RecipeError(
            f"RQ-VQA splits contents, and {len(alone)} videos have no scene, the first is "
            f"{alone[0]}; fill the manifest's scene column"
        )
    contents = {scene: number for number, scene in enumerate(dict.fromkeys(scenes_of(videos)))}
    content = np.array([contents[scene] for scene in scenes_of(videos)])
    m = len(contents)
    return [
        Split.testing(~np.isin(content, _permutation((number + 1) * 10, m)[: int(m * 0.8)]))
        for number in range(count)
    ]


def vsfa(videos: Sequence[Video], labels: Labels | None, count: int) -> list[Split]:
    """VSFA's and MDTVSFA's 60/20/20, cut from the orders in a .mat file."""
    if labels is None or labels.orders is None:
        where = (
            "a .mat label file" if labels is None else f"{labels.path}, which has none to be used"
        )
        raise RecipeError(f"VSFA's splits are cut from the `index` of {where}")
    orders: Orders = labels.orders
    if count > len(orders.orders):
        raise RecipeError(
            f"{labels.path} has {len(orders.orders)} orders in `index`; {count} splits asked for"
        )
    m = orders.orders.shape[1]
    # Floating point as VSFA.py has it: of 1200 groups, 721 are trained on and not 720.
    train, rest = math.ceil((1 - 0.2 - 0.2) * m), math.ceil((1 - 0.2) * m)
    splits = []
    for order in orders.orders[:count]:
        place = np.empty(m, np.int64)
        place[order] = np.arange(m)
        of_row = place[orders.groups]
        test = of_row >= rest
        validation = (of_row >= train) & ~test
        splits.append(
            Split(np.flatnonzero(~test), np.flatnonzero(test), np.flatnonzero(validation))
        )
    return splits


def _permutation(seed: int, count: int) -> NDArray[np.int64]:
    """What `np.random.seed(seed); np.random.permutation(count)` gives, seed for seed."""
    return np.random.RandomState(seed).permutation(count).astype(np.int64)
