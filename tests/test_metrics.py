import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regressors.losses import plcc_loss, rank_loss
from regressors.metrics import MosMapping, fit_mapping, quality_metrics, srcc
from store.errors import HeadError

CASES = ("linear", "saturating", "ties", "unit_scale", "anti", "small")


def draw(name, shape):
    """The fixtures' `array`: standard normal, by name."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return generator.standard_normal(shape, dtype=np.float32)


def bvqa_case(recipe, case):
    """Scores and predictions of one case, by the preprocessing that metrics.json describes."""
    entry = recipe["input"]["a"][case]
    z, e = (draw(entry[name][1], (entry[name][2],)).astype(np.float64) for name in ("z", "e"))
    y = 50 + 15 * z
    if case == "saturating":
        return y, 100 / (1 + np.exp(-(z + 0.4 * e)))
    if case == "ties":
        y = np.round(y / 5) * 5
        return y, np.round((y + 12 * e) / 4) * 4
    if case == "unit_scale":
        return 3 + 0.6 * z, 0.5 + 0.15 * z + 0.1 * e
    if case == "anti":
        return y, -y + 12 * e
    return y, y + 12 * e


def rqvqa_case(n):
    label = 3 + 0.7 * draw(f"rqvqa_loss_metrics/a/label{n}", (n,))
    noise = draw(f"rqvqa_loss_metrics/a/pred{n}", (n,))
    return label, 0.3 * np.tanh((label - 3) / 0.8) - 0.1 + 0.12 * noise


@pytest.mark.golden
@pytest.mark.parametrize("case", CASES)
def test_metrics_are_those_of_bvqa_benchmark(golden, case):
    recipe, expected = golden("metrics")
    mos, predicted = bvqa_case(recipe, case)

    got = quality_metrics(mos, predicted)

    assert got.mapping == "logistic"
    np.testing.assert_allclose(
        [got.srcc, got.krcc, got.plcc, got.rmse], expected[f"{case}_metrics"], rtol=1e-4
    )
    np.testing.assert_allclose(got.plcc_raw, expected[f"{case}_plcc_raw"], rtol=1e-4)


@pytest.mark.golden
@pytest.mark.parametrize("n", [64, 420])
def test_metrics_are_those_of_rq_vqa(golden, n):
    expected = golden("rqvqa_loss_metrics").expected
    mos, predicted = rqvqa_case(n)

    got = quality_metrics(mos, predicted)

    np.testing.assert_allclose(
        [got.plcc, got.srcc, got.krcc, got.rmse], expected[f"performance_fit.n{n}"], rtol=1e-4
    )
    mapped = fit_mapping(mos.astype(np.float64), predicted.astype(np.float64))(predicted[:64])
    np.testing.assert_allclose(mapped, expected[f"fit_function.n{n}"], rtol=1e-4)


@pytest.mark.golden
@pytest.mark.parametrize("case", ["small", "linear"])
def test_losses_are_those_of_fast_vqa(golden, case):
    recipe, expected = golden("metrics")
    mos, predicted = (torch.from_numpy(values).float() for values in bvqa_case(recipe, case))

    got = [plcc_loss(predicted, mos).item(), rank_loss(predicted, mos).item()]

    np.testing.assert_allclose(got, expected[f"loss_{case}"][:2], rtol=1e-6)


@pytest.mark.golden
@pytest.mark.parametrize("n", [2, 6, 64])
def test_plcc_loss_is_that_of_rq_vqa(golden, n):
    expected = golden("rqvqa_loss_metrics").expected
    mos, predicted = (torch.from_numpy(values) for values in rqvqa_case(n))
    predicted.requires_grad_()

    loss = plcc_loss(predicted, mos)
    loss.backward()

    assert loss.item() == pytest.approx(float(expected[f"plcc_loss.n{n}"][0]), abs=2e-6)
    if n > 2:  # two points always lie on a line: the gradient is rounding
        grad = expected[f"plcc_loss.n{n}.grad"]
        np.testing.assert_allclose(
            predicted.grad.numpy(), grad, rtol=0, atol=1e-5 * np.abs(grad).max()
        )


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


@pytest.mark.parametrize("loss", [plcc_loss, rank_loss])
@pytest.mark.parametrize("n", [0, 1])
def test_losses_refuse_a_batch_without_pairs(loss, n):
    with pytest.raises(HeadError, match="at least 2"):
        loss(torch.zeros(n), torch.zeros(n))


def test_losses_refuse_columns_which_would_broadcast():
    with pytest.raises(HeadError, match="equal length"):
        plcc_loss(torch.zeros(4, 1), torch.zeros(4))


def test_losses_of_constant_predictions_are_finite_with_finite_gradients():
    for loss in (plcc_loss, rank_loss):
        predicted = torch.full((5,), 0.25, requires_grad=True)
        value = loss(predicted, torch.arange(5.0))
        value.backward()

        assert torch.isfinite(value)
        assert torch.isfinite(predicted.grad).all()


def test_the_right_order_costs_nothing_and_the_wrong_one_something():
    mos = torch.arange(6.0)

    assert plcc_loss(mos * 7 - 3, mos).item() == pytest.approx(0, abs=1e-6)
    assert rank_loss(mos**3, mos).item() == 0
    assert plcc_loss(-mos, mos).item() == pytest.approx(0.5)
    assert rank_loss(-mos, mos).item() > 0
