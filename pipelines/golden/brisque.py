"""Player of the protocol of BVQA_Benchmark: splits, scaling, SVR, fit and metrics."""

import csv
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.io
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.svm import SVR

from vqbank.pipelines.golden.fixture import Check, Fixture
from vqbank.pipelines.splits.schemes import named_splits
from vqbank.regressors.metrics import quality_metrics, usual_logistic
from vqbank.store.errors import GoldenError
from vqbank.store.schema import Video


def play_brisque_protocol(fixture: Fixture) -> Iterator[Check]:
    """The published protocol with one C and gamma in place of its random search."""
    tolerance = fixture.recipe["tolerance"]
    for name, given in fixture.input.items():
        inputs = _inputs(fixture.data(given["features"], given["features_sha256"]))
        mos = _second_column(fixture.data(given["mos"], given["mos_sha256"]))
        if len(inputs) != len(mos):
            raise GoldenError(f"{name}: {len(inputs)} rows of features and {len(mos)} scores")
        first, last = given["splits"]
        videos = [Video(str(row), Path(str(row))) for row in range(len(mos))]
        splits = named_splits(f"videval{last}", videos)[first - 1 :]
        # Rows ascend in our splits; there they come as drawn, on which libsvm's stopping depends.
        drawn = fixture.expected[f"{name}_test_index"]
        wrong = sum(
            np.count_nonzero(np.sort(rows) != split.test)
            for rows, split in zip(drawn, splits, strict=True)
        )
        yield Check(f"{name}_test_index", float(wrong), 0)
        metrics = np.empty((len(splits), 8))
        for row, number in enumerate(range(first, last + 1)):
            sides = train_test_split(
                np.arange(len(mos)), test_size=0.2, random_state=math.ceil(8.8 * number)
            )
            model = make_pipeline(MinMaxScaler(), SVR(C=given["C"], gamma=given["gamma"]))
            model.fit(inputs[sides[0]], mos[sides[0]])
            for side, rows in enumerate(sides):
                metrics[row, 4 * side : 4 * side + 4] = _as_official(
                    mos[rows], model.predict(inputs[rows])
                )
        yield fixture.close(f"{name}_metrics", metrics, absolute=tolerance["metrics abs"])
        for what, statistic in (("median", np.median), ("std", np.std)):
            got_statistic = statistic(metrics, axis=0)
            yield fixture.close(f"{name}_{what}", got_statistic, absolute=tolerance["median abs"])


def _as_official(
    mos: NDArray[np.float64], predicted: NDArray[np.float64]
) -> tuple[float, float, float, float]:
    """SRCC, KRCC, PLCC and RMSE with the official fit, also where it got stuck.

    On LIVE-VQC it does in many splits, where ours begins anew and finds the better curve.
    """
    got = quality_metrics(mos, predicted)
    official = usual_logistic(mos, predicted)
    if official is None:
        raise GoldenError("the logistic did not end, where official code's did")
    mapped = official(predicted)
    rmse = float(np.sqrt(np.mean((mos - mapped) ** 2)))
    return got.srcc, got.krcc, float(np.corrcoef(mos, mapped)[0, 1]), rmse


def _inputs(path: Path) -> NDArray[np.float64]:
    """[n, d]; what is not finite is the mean of its column."""
    inputs = np.asarray(scipy.io.loadmat(path)["feats_mat"], np.float64)
    finite = np.isfinite(inputs)
    means = np.where(finite, inputs, 0).sum(axis=0) / finite.sum(axis=0)
    return np.where(finite, inputs, means)


def _second_column(path: Path) -> NDArray[np.float64]:
    with path.open(newline="", encoding="utf-8") as file:
        return np.array([float(row[1]) for row in list(csv.reader(file))[1:]])
