"""Players of metrics and losses."""

import re
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import l1_loss

from vqbank.pipelines.golden.fixture import Check, Fixture, array
from vqbank.regressors.losses import linearity_loss, margin_rank_loss, plcc_loss, rank_loss
from vqbank.regressors.metrics import MosMapping, fit_mapping, ntire_score, quality_metrics
from vqbank.store.errors import GoldenError


def play_metrics(fixture: Fixture) -> Iterator[Check]:
    """Correlations of BVQA_Benchmark, losses of FAST-VQA, MDTVSFA, SimpleVQA and A2INet."""
    for case, drawn in fixture.input.items():
        normal = [array(name, (length,)).astype(np.float64) for _, name, length in drawn.values()]
        mos, predicted = _scores(case, *normal)
        got = quality_metrics(mos, predicted)
        # `popt` is not compared: several parameters give the same curve.
        values = np.array([got.srcc, got.krcc, got.plcc, got.rmse])
        yield fixture.close(f"{case}_metrics", values, relative=1e-4, each=True)
        yield fixture.close(f"{case}_plcc_raw", np.array(got.plcc_raw), relative=1e-4)
        # Q-CLIP gives predictions the mean and spread of the scores instead of fitting a curve.
        spread = float(mos.std() / predicted.std())
        rescaled = MosMapping("linear", (spread, float(mos.mean() - spread * predicted.mean())))
        rmse = np.sqrt(np.mean((mos - rescaled(predicted)) ** 2))
        values = np.array([got.srcc, got.plcc_raw, got.krcc, rmse])
        yield fixture.close(f"{case}_rescale", values, relative=1e-4, each=True)
        if f"loss_{case}" in fixture.expected:
            yield from _play_losses(fixture, case, mos, predicted)


def _scores(
    case: str, z: NDArray[np.float64], e: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """MOS and predictions [n] of a case, by the formulas of the recipe."""
    mos = 50 + 15 * z
    match case:
        case "linear" | "small":
            return mos, mos + 12 * e
        case "saturating":
            return mos, 100 / (1 + np.exp(-(z + 0.4 * e)))
        case "ties":
            mos = np.round(mos / 5) * 5
            return mos, np.round((mos + 12 * e) / 4) * 4
        case "unit_scale":
            return 3 + 0.6 * z, 0.5 + 0.15 * z + 0.1 * e
        case "anti":
            return mos, -mos + 12 * e
    raise GoldenError(f"metrics: no formula for the case {case!r}")


def _play_losses(
    fixture: Fixture, case: str, mos: NDArray[np.float64], predicted: NDArray[np.float64]
) -> Iterator[Check]:
    # As float32, which official code is given, but computed in float64.
    y = torch.from_numpy(mos).float().double()
    p = torch.from_numpy(predicted).float().double().requires_grad_()
    mae, margin = l1_loss(p, y), margin_rank_loss(p, y)
    total = mae + margin
    losses = [plcc_loss(p, y), rank_loss(p, y), linearity_loss(p, y), mae, margin, total]
    got = torch.stack(losses).detach()
    yield fixture.close(f"loss_{case}", got, relative=1e-6, each=True)
    pairs = len(mos) ** 2
    yield fixture.close(f"loss_{case}_simplevqa_margin_sum", pairs * margin.detach(), relative=1e-6)
    total.backward()
    if p.grad is None:
        raise GoldenError(f"metrics: the losses of {case} have no gradient")
    yield fixture.close(f"grad_{case}_a2inet", p.grad, relative=1e-6)


def play_rqvqa_loss_metrics(fixture: Fixture) -> Iterator[Check]:
    """RQ-VQA's loss and metrics, and the NTIRE challenge's score."""
    # The losses of constant series are not compared: official code standardises with 1e-8 added,
    # which makes a constant prediction better than a weak one; here its correlation counts as 0.
    for what in fixture.expected:
        match = re.fullmatch(r"(\w+)\.n(\d+)(\.grad)?", what)
        if match is None:
            continue
        kind = match[1] + (match[3] or "")
        mos, predicted = _rqvqa(fixture, int(match[2]))
        wide = mos.astype(np.float64), predicted.astype(np.float64)
        metrics = quality_metrics(*wide)
        if kind == "plcc_loss":
            rho = metrics.plcc_raw
            one, two = torch.from_numpy(mos), torch.from_numpy(predicted)
            got = [plcc_loss(one, two), plcc_loss(two, one), rho, (1 - rho) / 4 + (1 - rho**2) / 8]
            yield fixture.close(what, np.array(got, np.float64), absolute=2e-6)
        elif kind == "plcc_loss.grad":
            free = torch.from_numpy(predicted).requires_grad_()
            (gradient,) = torch.autograd.grad(plcc_loss(free, torch.from_numpy(mos)), free)
            yield fixture.close(what, gradient, relative=1e-5)
        elif kind == "performance_fit":
            values = np.array([metrics.plcc, metrics.srcc, metrics.krcc, metrics.rmse])
            yield fixture.close(what, values, absolute=1e-4)
        elif kind == "performance_no_fit":
            rmse = np.sqrt(np.mean((wide[0] - wide[1]) ** 2))
            values = np.array([metrics.plcc_raw, metrics.srcc, metrics.krcc, rmse])
            yield fixture.close(what, values, absolute=1e-5)
        elif kind == "fit_function":
            mapped = fit_mapping(*wide)(wide[1])[: len(fixture.expected[what])]
            yield fixture.close(what, mapped, absolute=1e-4)
    if "ntire" in fixture.expected:
        yield _ntire(fixture)


def _rqvqa(fixture: Fixture, n: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Labels and predictions [n], by the formulas of the recipe."""
    name = f"{fixture.name}/{fixture.letter}"
    label = 3 + 0.7 * array(f"{name}/label{n}", (n,))
    noise = array(f"{name}/pred{n}", (n,))
    return label, 0.3 * np.tanh((label - 3) / 0.8) - 0.1 + 0.12 * noise


def _ntire(fixture: Fixture) -> Check:
    example = {name: fixture.expected[f"ntire_example.{name}"] for name in ("gt", "pr")}
    predicted = example["pr"].astype(np.float64)
    pairs = {kind: fixture.expected[f"ntire_example.{kind}"] for kind in ("nonsource", "source")}
    score = ntire_score(example["gt"].astype(np.float64), predicted, **pairs)
    got = np.array([score[what] for what in ("score", "srcc", "plcc", "rank1", "rank2")])
    return fixture.close("ntire", got, absolute=1e-6)
