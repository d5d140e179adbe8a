import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regressors.losses import linearity_loss, margin_rank_loss, plcc_loss, rank_loss
from regressors.metrics import MosMapping, pair_accuracy, quality_metrics, srcc
from store.errors import HeadError


def test_a_perfect_prediction_has_correlations_of_one_and_no_error():
    mos = np.linspace(1, 5, 40)

    got = quality_metrics(mos, mos)

    assert (got.srcc, got.krcc) == pytest.approx((1, 1), abs=1e-12)
    assert (got.plcc, got.rmse) == pytest.approx((1, 0), abs=1e-5)  # a bent curve through a line


def test_hand_made_ranks_give_hand_made_correlations():
    got = quality_metrics(np.array([1.0, 2, 3, 4]), np.array([10.0, 30, 20, 40]))

    assert got.srcc == pytest.approx(1 - 6 * 2 / (4 * 15))  # two neighbours swapped
    assert got.krcc == pytest.approx(4 / 6)  # one of six pairs discordant
    assert got.plcc == pytest.approx(0.8)
    assert got.rmse == pytest.approx(np.sqrt(1.25 * (1 - 0.64)))
    assert (got.n, got.mapping) == (4, "linear")  # four points do not determine a logistic


integers = st.lists(st.integers(-1000, 1000), min_size=12, max_size=12)


@settings(deadline=None)  # a fit that does not converge takes its time
@given(integers, integers)
def test_rank_correlations_ignore_strictly_increasing_maps(mos, predicted):
    mos, predicted = np.array(mos, float), np.array(predicted, float)

    before = quality_metrics(mos, predicted)
    after = quality_metrics(mos, predicted**3 + 5 * predicted - 2)

    assert (before.srcc, before.krcc) == pytest.approx((after.srcc, after.krcc), nan_ok=True)


@settings(deadline=None)  # a fit that does not converge takes its time
@given(integers, integers)
def test_any_predictions_give_metrics_in_range_without_a_warning(mos, predicted):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = quality_metrics(np.array(mos, float), np.array(predicted, float))

    if got.mapping == "none":
        assert np.isnan([got.srcc, got.krcc, got.plcc, got.plcc_raw]).all()
    else:
        correlations = np.array([got.srcc, got.krcc, got.plcc, got.plcc_raw])
        assert (np.abs(correlations) <= 1 + 1e-9).all()
        assert got.rmse <= np.std(mos) * (1 + 1e-5)  # no mapping is worse than the mean


@settings(deadline=None)  # a fit that does not converge takes its time
@given(integers, st.sampled_from([1e-9, 1e-3, 1e3, 1e9]))
def test_the_scale_of_predictions_never_makes_the_mapping_worse_than_a_line(mos, scale):
    mos = np.array(mos, float)
    predicted = scale * (np.arange(12) + np.sin(np.arange(12)))

    got = quality_metrics(mos, predicted)

    if got.mapping != "none":
        line_rmse = mos.std() * np.sqrt(1 - got.plcc_raw**2)
        assert got.rmse <= line_rmse + 2e-6 * mos.std()


def test_a_step_that_the_fit_cannot_leave_falls_back_to_a_line():
    mos = np.linspace(1, 5, 50)

    got = quality_metrics(mos, 1e6 * mos)  # |b4| = 0.5 starts as a step with no slope anywhere

    assert got.mapping == "linear"
    assert got.plcc == pytest.approx(1)


@pytest.mark.parametrize("value", [0.0, 3.1])
def test_constant_predictions_have_no_correlation_but_an_error(value):
    got = quality_metrics(np.array([1.0, 2, 3, 4, 5]), np.full(5, value))

    assert np.isnan([got.srcc, got.krcc, got.plcc, got.plcc_raw]).all()
    assert got.rmse == pytest.approx(np.sqrt(2 + (3 - value) ** 2))
    assert got.mapping == "none"


def test_rounding_noise_on_a_constant_is_no_ranking():
    predicted = 3.3 + np.array([0, 1, 2, 3]) * 4e-16

    assert np.isnan(srcc(np.array([1.0, 2, 3, 4]), predicted))


def test_uncorrelated_predictions_have_plcc_zero():
    got = quality_metrics(np.array([1.0, 2, 2, 1]), np.array([1.0, 1, 2, 2]))

    assert got.plcc == pytest.approx(0)
    assert got.rmse == pytest.approx(0.5)


def test_a_mapping_applies_to_new_predictions():
    logistic = MosMapping("logistic", (5.0, 1.0, 0.0, -2.0))

    assert logistic(np.array([0.0, 1e9, -1e9])) == pytest.approx([3, 5, 1])
    assert MosMapping("linear", (2.0, 1.0))(np.array([3.0])) == pytest.approx([7])


@pytest.mark.parametrize(
    ("mos", "predicted", "message"),
    [
        ([1.0, 2.0], [1.0, 2.0, 3.0], "equal length"),
        ([1.0], [1.0], "at least 2"),
        ([1.0, np.nan], [1.0, 2.0], "mos of row 1 is nan"),
        ([1.0, 2.0], [np.inf, 2.0], "prediction of row 0 is inf"),
    ],
)
def test_metrics_refuse_what_is_no_pair_of_series(mos, predicted, message):
    with pytest.raises(HeadError, match=message):
        quality_metrics(np.array(mos), np.array(predicted))


LOSSES = [plcc_loss, rank_loss, linearity_loss, margin_rank_loss]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("n", [0, 1])
def test_losses_refuse_a_batch_without_pairs(loss, n):
    with pytest.raises(HeadError, match="at least 2"):
        loss(torch.zeros(n), torch.zeros(n))


def test_losses_refuse_columns_which_would_broadcast():
    with pytest.raises(HeadError, match="equal length"):
        plcc_loss(torch.zeros(4, 1), torch.zeros(4))


def test_losses_of_constant_predictions_are_finite_with_finite_gradients():
    for loss in LOSSES:
        predicted = torch.full((5,), 0.25, requires_grad=True)
        value = loss(predicted, torch.arange(5.0))
        value.backward()

        assert torch.isfinite(value)
        assert torch.isfinite(predicted.grad).all()


def test_the_right_order_costs_nothing_and_the_wrong_one_something():
    mos = torch.arange(6.0)

    assert plcc_loss(mos * 7 - 3, mos).item() == pytest.approx(0, abs=1e-6)
    assert rank_loss(mos**3, mos).item() == 0
    assert linearity_loss(mos * 7 - 3, mos).item() == pytest.approx(0, abs=1e-6)
    assert margin_rank_loss(mos * 7 - 3, mos).item() == 0
    assert plcc_loss(-mos, mos).item() == pytest.approx(0.5)
    assert rank_loss(-mos, mos).item() > 0
    assert linearity_loss(-mos, mos).item() == pytest.approx(1)


def test_a_margin_asks_for_differences_as_large_as_those_of_the_scores():
    mos = torch.tensor([1.0, 3, 3])

    assert margin_rank_loss(mos / 2, mos).item() == pytest.approx(4 * 1 / 9)
    assert margin_rank_loss(-mos, mos).item() == pytest.approx(4 * 4 / 9)
    # A tie counts as the first one being better: the other order costs the difference.
    assert margin_rank_loss(torch.tensor([0.0, 5]), torch.zeros(2)).item() == pytest.approx(5 / 4)


def test_pairs_are_right_where_the_better_video_is_predicted_to_be_better():
    predicted = np.array([1.0, 2, 2])

    assert pair_accuracy(predicted, np.array([[0, 1, 2], [1, 0, 1]])) == 1
    assert pair_accuracy(predicted, np.array([[0, 1, 1], [1, 0, 1]])) == 0.5
    assert pair_accuracy(predicted, np.array([[1, 2, 1], [2, 1, 1]])) == 1  # ties: the first one
    assert pair_accuracy(predicted, np.array([[1, 2, 2], [2, 1, 2]])) == 0


@pytest.mark.parametrize("pair", [[0, 3, 1], [-1, 0, 1], [0, 1, 0], [0, 1, 3]])
def test_a_pair_of_what_does_not_exist_is_refused(pair):
    with pytest.raises(HeadError, match="pair 1 is"):
        pair_accuracy(np.zeros(3), np.array([[0, 1, 1], pair]))


def test_no_pairs_have_no_accuracy():
    with pytest.raises(HeadError, match="at least one row"):
        pair_accuracy(np.zeros(3), np.zeros((0, 3), int))
