import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wilcoxon
from torch.nn.functional import l1_loss, mse_loss

from vqbank.regressors import significance
from vqbank.regressors.losses import (
    LOSSES,
    cross_entropy_loss,
    linearity_loss,
    margin_rank_loss,
    mixed_loss,
    monotonicity_loss,
    plcc_loss,
    rank_loss,
)
from vqbank.regressors.metrics import (
    FALLING,
    MosMapping,
    extreme_rows,
    ntire_score,
    pair_accuracy,
    quality_metrics,
    srcc,
)
from vqbank.regressors.significance import (
    better_by_variance,
    confidence_of_median,
    paired_test,
    wilcoxon_p,
)
from vqbank.store.errors import HeadError


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


@given(integers, integers)
def test_rank_correlations_ignore_strictly_increasing_maps(mos, predicted):
    mos, predicted = np.array(mos, float), np.array(predicted, float)

    before = quality_metrics(mos, predicted)
    after = quality_metrics(mos, predicted**3 + 5 * predicted - 2)

    assert (before.srcc, before.krcc) == pytest.approx((after.srcc, after.krcc), nan_ok=True)


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


@given(integers, st.sampled_from([1e-9, 1e-3, 1e3, 1e9]))
def test_the_scale_of_predictions_never_makes_the_mapping_worse_than_a_line(mos, scale):
    mos = np.array(mos, float)
    predicted = scale * (np.arange(12) + np.sin(np.arange(12)))

    got = quality_metrics(mos, predicted)

    if got.mapping != "none":
        line_rmse = mos.std() * np.sqrt(1 - got.plcc_raw**2)
        assert got.rmse <= line_rmse + 2e-6 * mos.std()


def test_a_step_that_the_fit_cannot_leave_is_begun_anew_and_says_so():
    mos = np.linspace(1, 5, 50)

    usual = quality_metrics(mos, mos)
    got = quality_metrics(mos, 1e6 * mos)  # |b4| = 0.5 starts as a step with no slope anywhere

    assert usual.fit == ""
    assert got.fit == "logistic from another start: the usual one did not converge"
    assert got.plcc == pytest.approx(usual.plcc, abs=1e-4)


def test_a_fit_that_converges_from_nowhere_is_a_line_and_says_so(monkeypatch):
    def gives_up(*args, **options):
        raise RuntimeError

    monkeypatch.setattr("vqbank.regressors.metrics.curve_fit", gives_up)
    mos = np.linspace(1, 5, 50)

    got = quality_metrics(mos, mos + np.sin(mos))

    assert (got.mapping, got.fit) == ("linear", "straight line: the logistic did not converge")


@pytest.mark.parametrize("n", [2, 4, 5, 40])
@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_a_head_that_ranks_videos_upside_down_is_told(n, scale):
    mos = np.linspace(1, 5, n)
    predicted = scale * (np.sin(3 * mos) / 10 - mos)

    got = quality_metrics(mos, predicted)

    assert got.srcc < -0.7
    assert got.rmse < np.std(mos) / 2  # which is after the fit, as ever
    if got.mapping == "linear":
        assert got.plcc == pytest.approx(got.plcc_raw)
        assert got.plcc_extremes < -0.7
    else:  # as the field's code reports it
        assert got.plcc > 0.7
        assert got.fit == FALLING


def test_plcc_under_a_straight_line_is_the_raw_one(monkeypatch):
    def gives_up(*args, **options):
        raise RuntimeError

    monkeypatch.setattr("vqbank.regressors.metrics.curve_fit", gives_up)
    for predicted in np.random.default_rng(0).normal(size=(20, 12)):
        got = quality_metrics(np.arange(12.0), predicted)
        assert got.mapping == "linear"
        assert got.plcc == pytest.approx(got.plcc_raw)


def test_the_extreme_set_is_the_worst_and_the_best_fifth():
    assert extreme_rows(np.array([3.0, 1, 4, 2, 5, 9, 8, 7, 6, 0])).tolist() == [1, 5, 6, 9]
    assert extreme_rows(np.array([2.0, 1])).tolist() == [0, 1]


def test_noise_in_the_middle_costs_the_extreme_set_nothing():
    mos = np.arange(100.0)
    middle = (mos >= 20) & (mos < 80)
    predicted = np.where(middle, np.random.default_rng(0).permutation(mos), mos)

    got = quality_metrics(mos, predicted)

    assert got.plcc_extremes > 0.99 > got.plcc + 0.1


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


EVERY_LOSS = {plcc_loss, rank_loss, linearity_loss, margin_rank_loss, *LOSSES.values()}


@pytest.mark.parametrize(
    "loss",
    sorted(EVERY_LOSS - {l1_loss, mse_loss, cross_entropy_loss}, key=lambda loss: loss.__name__),
)
@pytest.mark.parametrize("n", [0, 1])
def test_losses_refuse_a_batch_without_pairs(loss, n):
    with pytest.raises(HeadError, match="at least 2"):
        loss(torch.zeros(n), torch.zeros(n))


def test_losses_refuse_columns_which_would_broadcast():
    with pytest.raises(HeadError, match="equal length"):
        plcc_loss(torch.zeros(4, 1), torch.zeros(4))


def test_losses_of_constant_predictions_are_finite_with_finite_gradients():
    for loss in EVERY_LOSS:
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


def test_cross_entropy_is_least_where_predictions_are_the_log_odds_of_the_scores():
    mos = torch.tensor([0.1, 0.5, 0.9, -0.2])
    predicted = torch.logit(mos.clamp(1e-6, 1)).requires_grad_()

    cross_entropy_loss(predicted, mos).backward()

    assert predicted.grad.abs().max() < 1e-6


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


def test_a_challenge_score_is_what_its_parts_weigh():
    mos = np.arange(8.0)
    pairs = np.array([[0, 1, 2], [1, 0, 1]])

    got = ntire_score(mos, mos, nonsource=pairs, source=np.array([[0, 1, 1], [1, 0, 1]]))

    assert got["rank1"] == 1
    assert got["rank2"] == 0.5
    assert got["score"] == pytest.approx(0.9 + 0.05 * 1.5)


def test_mdtvsfas_losses_by_hand():
    mos, predicted = torch.tensor([0.0, 1, 2]), torch.tensor([0.5, 0, 1])

    # One pair of three stands in the wrong order, by a half; counted from both sides.
    assert monotonicity_loss(predicted, mos).item() == pytest.approx(2 * 0.5 / 6)
    r = 0.5  # covariance 0.5 against deviations of 1 and 0.5, by hand
    expected = (1 - r) / 2 + 1 / 6 + (0.5 + 1 + 1) / 3
    assert mixed_loss(predicted, mos).item() == pytest.approx(expected)


# Two runs over the same splits.


def test_a_small_steady_gain_is_significant_and_noise_is_not():
    rng = np.random.default_rng(0)
    reference = 0.78 + 0.02 * rng.normal(size=100)

    steady = paired_test(
        reference, reference + 0.01 + 0.002 * rng.normal(size=100), test_share=0.25
    )
    noise = paired_test(reference, reference + 0.01 * rng.normal(size=100), test_share=0.25)

    assert steady.median_gain == pytest.approx(0.01, abs=1e-3)
    assert steady.wilcoxon_p < 1e-10
    assert steady.corrected_p < 1e-10
    assert steady.wins == 100
    assert noise.wilcoxon_p > 0.05 < noise.corrected_p


def test_overlap_of_training_parts_makes_a_gain_less_sure():
    gains = 0.01 + 0.03 * np.random.default_rng(1).normal(size=50)

    got = paired_test(np.zeros(50), gains, test_share=0.25)

    assert got.wilcoxon_p < 0.05 < got.corrected_p


def test_equal_runs_differ_by_nothing():
    got = paired_test(np.ones(5), np.ones(5), test_share=0.25)

    assert (got.median_gain, got.wilcoxon_p, got.corrected_p) == (0, 1, 1)


def test_splits_without_a_correlation_are_left_out_and_two_are_needed():
    reference = np.array([0.5, np.nan, 0.6, 0.7])

    got = paired_test(reference, reference + 0.1, test_share=0.25)
    assert (got.splits, got.undefined) == (3, 1)
    with pytest.raises(HeadError, match="only 1 splits"):
        paired_test(reference[:2], reference[:2], test_share=0.25)
    with pytest.raises(HeadError, match="the same splits"):
        paired_test(reference, reference[:2], test_share=0.25)


def test_residuals_that_vary_less_are_found_by_the_f_test():
    # 240 videos: a ratio of variances above 1.24 is significant.
    got = better_by_variance(np.array([1.2, 1.05, 1.0]), np.array([1.0, 1.0, 1.2]), np.full(3, 240))

    assert got == (1, 1)


def test_the_interval_of_the_median_holds_it_and_shrinks_with_splits():
    values = np.random.default_rng(0).normal(0.78, 0.02, size=100)

    low, high = confidence_of_median(values)
    few = confidence_of_median(values[:10])

    assert low < np.median(values) < high
    assert high - low < few[1] - few[0]
    assert np.isnan(confidence_of_median(np.array([np.nan]))).all()


def test_an_interval_is_drawn_in_blocks_that_change_no_bit_and_bound_memory(monkeypatch):
    values = np.random.default_rng(0).normal(size=2001)
    tracemalloc.start()
    try:
        whole = confidence_of_median(values)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert most < 2**26  # at once it takes 10,000 x 2,001 values of 8 bytes, and more than twice
    few = confidence_of_median(values[:20])
    monkeypatch.setattr(significance, "BLOCK_VALUES", 333)
    assert confidence_of_median(values[:20]) == few
    drawn = np.random.default_rng(0).choice(values, (significance.RESAMPLES, len(values)))
    assert whole == tuple(np.quantile(np.median(drawn, axis=1), [0.025, 0.975]))


@pytest.mark.parametrize("values", [[1.0, 1.0], [0.5, 0.6, 0.7, 0.8, 0.9], [1.0, 1.0 - 1e-16] * 10])
def test_few_values_or_equal_ones_have_no_interval(values):
    assert np.isnan(confidence_of_median(np.array(values))).all()
    assert not np.isnan(confidence_of_median(np.array([*values, 0.1, 0.2, 0.3, 0.4]))).any()


@pytest.mark.parametrize("spread", [0.0, 1e-17, 1e-9])
def test_no_p_is_0_however_steady_a_gain_is(spread):
    gains = 0.1 + spread * np.random.default_rng(0).normal(size=1000)

    got = paired_test(np.zeros(1000), gains, test_share=0.25)

    assert 0 < got.wilcoxon_p < 1e-9
    assert np.isnan(got.corrected_p) if spread < 1e-12 else 0 < got.corrected_p < 1e-9
    assert (got.splits, got.undefined, got.wins) == (1000, 0, 1000)


@pytest.mark.parametrize("count", [2, 5, 6, 13, 30, 50, 51, 300])
@pytest.mark.parametrize("digits", [0, 9])
def test_wilcoxons_p_is_that_of_scipy_also_where_differences_are_equal_or_0(count, digits):
    rng = np.random.default_rng(count)
    for _ in range(3):
        gains = np.round(rng.normal(0.4, 1, size=count), digits)
        gains[0] = 1.0
        tied = len(np.unique(np.abs(gains))) < count or not gains.all()
        # Of more than 13 equal ones SciPy takes the normal distribution, which errs a little.
        slack = 0.05 if tied and 13 < count <= 2 * 50 else 1e-9

        assert wilcoxon_p(gains) == pytest.approx(wilcoxon(gains).pvalue, abs=slack)


def test_wilcoxons_p_by_hand():
    # Of 2 ** 3 choices of signs two are as far from the middle: all up, all down.
    assert wilcoxon_p(np.array([1.0, 2.0, 3.0])) == pytest.approx(2 / 8)
    # Ranks 1.5, 1.5 and 3, one of 1.5 down: three of eight choices come to 1.5 or less.
    assert wilcoxon_p(np.array([1.0, -1.0, 2.0])) == pytest.approx(2 * 3 / 8)
