import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool1d, max_pool1d

from vqbank.regressors.score_pooling import LAST, POOLINGS, hysteresis


def ragged(lengths=(1, 5, 12, 13, 60), scale=1.0, seed=0):
    """Scores padded with what may not matter, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    scores = scale * torch.randn(len(lengths), max(lengths), generator=generator).double()
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.where(mask, scores, -1e3), mask


def by_the_words(scores, tau=12, beta=0.5):
    """Row by row, as the formula is written."""
    out = []
    for row in range(len(scores)):
        memory = min(scores[max(0, row - tau + 1) : row + 1])
        ahead = scores[row : row + tau]
        weights = np.exp(-(ahead - ahead.min()))
        out.append(beta * memory + (1 - beta) * (weights * ahead).sum() / weights.sum())
    return np.array(out)


def test_hysteresis_is_its_formula():
    scores, mask = ragged()

    pooled = hysteresis(scores, mask)

    for row, real in enumerate(mask):
        expected = by_the_words(scores[row][real].numpy())
        np.testing.assert_allclose(pooled[row][real], expected, rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_hysteresis_has_the_gradient_of_its_formula(scale):
    scores, mask = ragged((1, 5, 14), scale)
    scores.requires_grad_()

    assert torch.autograd.gradcheck(
        lambda q: hysteresis(q, mask)[mask], scores, eps=1e-7 * scale, atol=1e-4
    )
    (gradient,) = torch.autograd.grad(POOLINGS["hysteresis"](scores, mask).sum(), scores)
    assert not gradient[~mask].any()


def test_hysteresis_is_finite_where_the_official_form_is_not():
    """The form of the code: an average of exp(-q), which is 0 in single precision above 104."""
    scores = torch.full((1, 20), 150.0, requires_grad=True)
    mask = torch.ones(1, 20, dtype=torch.bool)
    weights = torch.exp(-scores.detach())
    official = avg_pool1d(scores.detach() * weights, 12, 1) / avg_pool1d(weights, 12, 1)
    assert official.isnan().all()

    pooled = hysteresis(scores, mask)
    pooled.sum().backward()

    assert (pooled == 150).all()
    assert scores.grad.isfinite().all()
    wide = torch.tensor([[1e30, -1e30, 3e4]])
    assert hysteresis(wide, mask[:, :3]).isfinite().all()


def test_hysteresis_of_other_windows():
    scores, mask = ragged((60,))

    assert torch.equal(hysteresis(scores, mask, tau=1), scores)
    memory = -max_pool1d(-scores[:, None], 60)[:, 0]
    assert torch.equal(hysteresis(scores, mask, tau=60, beta=1.0)[:, -1:], memory)


@pytest.mark.parametrize("name", sorted(POOLINGS))
def test_padding_order_and_company_change_nothing(name):
    scores, mask = ragged()
    together = POOLINGS[name](scores, mask)

    for row, real in enumerate(mask):
        alone = POOLINGS[name](scores[row][real][None], real[real][None])[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-12, atol=1e-12)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(POOLINGS[name](scores[order], mask[order]), together[order])


@pytest.mark.parametrize("name", sorted(POOLINGS))
def test_a_pooled_constant_is_the_constant(name):
    _, mask = ragged()
    for value in (-500.0, 0.25, 500.0):
        pooled = POOLINGS[name](torch.full(mask.shape, value), mask)
        torch.testing.assert_close(pooled, torch.full((5,), value))


@pytest.mark.parametrize("name", sorted(POOLINGS))
def test_padding_gets_no_gradient(name):
    scores, mask = ragged()
    scores.requires_grad_()
    POOLINGS[name](scores, mask).sum().backward()

    assert scores.grad.isfinite().all()
    assert not scores.grad[~mask].any()


@pytest.mark.parametrize("rows", [1, 3, 4, 10, 20, 30, 90, 100])
def test_the_worst_tenths_are_counted_exactly(rows):
    scores = torch.arange(float(rows))[None]

    pooled = POOLINGS["percentile"](scores, torch.ones(1, rows, dtype=torch.bool))

    worst = scores[0, : -(-3 * rows // 10)]
    torch.testing.assert_close(pooled, worst.mean()[None])


def test_what_the_others_are():
    scores, mask = ragged()
    real = [row[own] for row, own in zip(scores, mask, strict=True)]
    worst = [row.sort().values[: -(-3 * len(row) // 10)].mean() for row in real]
    expected = {
        "mean": [row.mean() for row in real],
        "min": [row.min() for row in real],
        "softmin": [(torch.softmax(-row, 0) * row).sum() for row in real],
        "last": [row[-LAST:].mean() for row in real],
        "percentile": worst,
    }

    for name, values in expected.items():
        torch.testing.assert_close(POOLINGS[name](scores, mask), torch.stack(values))
