"""MaxVQA: a score between two prompts, its losses, and averaged weights, as heads have them."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from vqbank.extractors.clip_towers import CONTEXT, tokens_of
from vqbank.pipelines.golden.fixture import Check, Fixture, array, fill
from vqbank.regressors.batches import PaddedBatch, Window
from vqbank.regressors.dvlta import pair_score
from vqbank.regressors.layers import Frozen
from vqbank.regressors.losses import correlation_loss, plcc_loss, rank_loss
from vqbank.regressors.member import Member
from vqbank.regressors.plan import Fold, Method, Plan
from vqbank.regressors.stack import Stack
from vqbank.regressors.tail import TextTail

_VISUAL = 1024  # of the channels of a place, those of CLIP, the width of the text
_MLP = "implicit_mlp"
_LEARNT = ("ctx", "in_ln.weight", "out_ln.weight")


class _MaxVqa(nn.Module):
    """The official network with one learnt token, whose parts are those of our heads.

    Args of the constructor:
        state: the official entries of text tower and layers.
        prompts: positive ones, and as many negative ones.
        shared: whether prompts share the learnt token, which begins as the first one's.
    """

    embedded: Tensor

    def __init__(
        self, state: Mapping[str, Tensor], prompts: tuple[str, ...], *, shared: bool = True
    ) -> None:
        super().__init__()
        clip = {key.removeprefix("clip."): one for key, one in state.items() if key[:5] == "clip."}
        width = clip["text_projection"].shape[0]
        with torch.device("meta"):
            tower = TextTail(
                width=width,
                heads=2,
                hidden=4 * width,
                activation="quick_gelu",
                layers=2,
                embedding=_VISUAL,
                context=CONTEXT,
                vocabulary=len(clip["token_embedding.weight"]),
            )
        ours = {key.replace("transformer.resblocks.", "blocks."): one for key, one in clip.items()}
        tower.load_state_dict(ours, assign=True)
        self.tower = Frozen(tower)
        self.tokens = tokens_of(prompts, CONTEXT)
        embedded = tower.embed(self.tokens).detach()
        self.register_buffer("embedded", embedded, persistent=False)
        self.ctx = nn.Parameter(embedded[:1, 1:2].clone() if shared else embedded[:, 1:2].clone())
        self.in_ln, self.out_ln = (
            _layer(state[f"maxvqa.{_MLP}.{name}.weight"]) for name in ("in_ln", "out_ln")
        )

    def prompts(self) -> Tensor:
        """[2 k, tokens, d] with the learnt token in the place of the second."""
        context = self.ctx.expand(len(self.embedded), -1, -1)
        return torch.cat([self.embedded[:, :1], context, self.embedded[:, 2:]], dim=1)

    def texts(self) -> Tensor:
        """[2 k, 1024], not scaled."""
        text: Tensor = self.tower(self.prompts(), self.tokens.argmax(dim=1))
        return text

    def implicit(self, places: Tensor) -> Tensor:
        """[..., 1025] of [..., 1792]."""
        return self.out_ln(gelu(self.in_ln(places)))

    def fused(self, places: Tensor) -> Tensor:
        """[..., 1024] of [..., 1792]."""
        return places[..., :_VISUAL] + self.implicit(places)[..., :_VISUAL]

    def local(self, places: Tensor) -> Tensor:
        """[..., k]: of every place and pair of prompts, the probability of the positive one."""
        logits = 2 * self.fused(places) @ self.texts().T
        return pair_score(logits.unflatten(-1, (2, -1)).transpose(-1, -2))

    def scores(self, places: Tensor) -> Tensor:
        """[..., k] of [..., frames, places, 1792]."""
        return self.local(places).mean(dim=(-3, -2))


def play_maxvqa_fusion(fixture: Fixture) -> Iterator[Check]:
    """Prompts, texts, features, scores of places and of videos; a loss and its gradients."""
    tolerance = fixture.recipe["tolerance"]
    close, gradients = tolerance["rel_to_max"], tolerance["gradients rel_to_max"]
    drawn = fixture.input
    network = _MaxVqa(fixture.state_dict(), tuple(drawn["prompts"]))
    own = _MaxVqa(fixture.state_dict(), tuple(drawn["prompts"]), shared=False)
    places, pooled, mos = (_drawn(drawn[name]) for name in ("vis", "pooled", "gt"))
    yield fixture.equal("tokens", network.tokens.int())
    with torch.inference_mode():
        for name, one in (("shared", network), ("own", own)):
            yield fixture.close(f"prompt_emb_{name}", one.prompts()[:, :8, ::4], close)
            yield fixture.close(f"text_{name}", one.texts()[:, ::8], close)
        yield fixture.close("implicit", network.implicit(places)[..., ::16], close)
        yield fixture.close("v", network.fused(places)[..., ::16], close)
        yield fixture.close("local", network.local(places), close)
        yield fixture.close("score", network.scores(places), close)
    scores = network.scores(pooled)
    loss = plcc_loss(scores[:, 0, 0], mos)
    loss.backward()
    yield fixture.close("score_pooled", scores, close)
    yield fixture.close("loss", loss, close)
    yield fixture.close("g_ctx", _gradient(network.ctx), gradients)
    yield fixture.close("g_in", _gradient(network.in_ln.weight)[::8, ::32], gradients)
    yield fixture.close("g_out", _gradient(network.out_ln.weight)[::16, ::4], gradients)


def play_maxvqa_ema(fixture: Fixture) -> Iterator[Check]:
    """Losses and gradients of series, and five steps with averaged weights by our own loop."""
    tolerance = fixture.recipe["tolerance"]
    for name, drawn in fixture.input["vectors"].items():
        yield from _play_vector(fixture, name, drawn, tolerance["vectors abs"])
    yield from _play_line(fixture, tolerance["lin abs"])
    yield from _play_network(fixture, tolerance["mv abs"])


def _play_vector(
    fixture: Fixture, name: str, drawn: Mapping[str, Any], absolute: float
) -> Iterator[Check]:
    said, mos = (_rounded(drawn, which) for which in ("pred", "y"))
    yield fixture.close(f"{name}_rank", rank_loss(said, mos), absolute=absolute)
    if name == "const":
        return
    plcc, linear = plcc_loss(said, mos), correlation_loss(said, mos)
    ranks = rank_loss(_standardised(said), _standardised(mos))
    yield fixture.close(f"{name}_plcc_loss", plcc, absolute=absolute)
    yield fixture.close(f"{name}_plcc_loss_rank", plcc + 0.3 * ranks, absolute=absolute)
    yield fixture.close(f"{name}_r", 1 - linear, absolute=absolute)
    yield fixture.close(f"{name}_one_minus_r", linear, absolute=absolute)
    for what, loss in (("g", plcc), ("g_r", linear)):
        if f"{name}_{what}" in fixture.expected:
            (gradient,) = torch.autograd.grad(loss, said, retain_graph=True)
            yield fixture.close(f"{name}_{what}", gradient, absolute=absolute)


def _play_line(fixture: Fixture, absolute: float) -> Iterator[Check]:
    drawn = fixture.input["linear"]
    rows, mos = (_drawn(drawn[name]) for name in ("x", "y"))
    weight, other = (
        torch.from_numpy(fill(*_named(drawn["keys"][which]))) for which in ("model", "ema")
    )
    steps = [(rows, mos)] * 5
    for kind, start in (("ema_copy", {}), ("ema", {"layer.weight": other})):
        losses, learnt, averaged = _trained(_Line(weight), steps, start)
        yield fixture.close(f"lin_{kind}", _each(averaged, "layer.weight"), absolute=absolute)
    yield fixture.close("lin_loss", np.array(losses), absolute=absolute)
    yield fixture.close("lin_w", _each(learnt, "layer.weight"), absolute=absolute)


def _play_network(fixture: Fixture, absolute: float) -> Iterator[Check]:
    drawn = fixture.input
    network = _OfPooled(_MaxVqa(fixture.state_dict(), tuple(drawn["prompts"])), drawn["pair"])
    pooled, mos = _drawn(drawn["pooled"]), _drawn(drawn["gt"])
    start = {
        f"network.{name}.weight": torch.from_numpy(
            fill(f"maxvqa_ema.{_MLP}.{name}.weight", getattr(network.network, name).weight.shape)
        )
        for name in ("in_ln", "out_ln")
    }
    steps = [(rows.flatten(1), own) for rows, own in zip(pooled, mos, strict=True)]
    losses, learnt, averaged = _trained(network, steps, start)
    every = slice(None, None, 8), slice(None, None, 64)
    outer = slice(None, None, 32), slice(None, None, 8)
    yield fixture.close("mv_loss", np.array(losses), absolute=absolute)
    for name, key, part in (
        ("ctx", "ctx", ()),
        ("in", "in_ln.weight", every),
        ("out", "out_ln.weight", outer),
    ):
        own = [one[f"network.{key}"] for one in learnt]
        last = averaged[-1][f"network.{key}"]
        if name == "ctx":
            own, last = [one.flatten() for one in own], last.flatten()
        yield fixture.close(
            f"mv_{name}", torch.stack([one[part] for one in own]), absolute=absolute
        )
        yield fixture.close(f"mv_ema_{name}", last[part], absolute=absolute)


def _layer(weight: Tensor) -> nn.Linear:
    """Without a bias."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight.clone())
    return layer


class _Line(nn.Module):
    """A linear layer without a bias, as heads have networks."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.layer = _layer(weight)

    def forward(self, batch: PaddedBatch) -> Tensor:
        """[b]."""
        return self.layer(batch.rows[:, 0])[:, 0]


class _OfPooled(nn.Module):
    """MaxVQA's score of one pair, of places that were averaged before."""

    def __init__(self, network: _MaxVqa, pair: int) -> None:
        super().__init__()
        self.network = network
        self.pair = pair

    def forward(self, batch: PaddedBatch) -> Tensor:
        """[b]."""
        return self.network.scores(batch.rows[:, :, None])[:, self.pair]


State = dict[str, Tensor]


def _trained(
    module: nn.Module, steps: list[tuple[Tensor, Tensor]], averaged: Mapping[str, Tensor]
) -> tuple[list[float], list[State], list[State]]:
    """Losses, and after each step what is learnt and its average.

    Args:
        module: as heads have networks.
        steps: rows [b, d] and scores [b] of each.
        averaged: from where averages begin; a copy of the start, where nothing is said.
    """
    rows = torch.cat([one for one, _ in steps])
    size = len(steps[0][0])
    plan = Plan(
        epochs=1,
        patience=1,
        batch_size=size,
        learning_rate=1e-3,
        weight_decay=0.01,
        decay_epochs=1,
        decay=1.0,
        standardise=False,
        threads=1,
        schedule="constant",
        averaging=0.999,
    )
    places = np.arange(len(rows))
    fold = Fold(places, places[:0], torch.cat([mos for _, mos in steps]), seed=0, epochs=1)
    member = Member(0, fold, module, plan, torch.Generator(), torch.device("cpu"))
    for name, value in averaged.items():
        member.averaged[name] = value.clone()
    stack = Stack(module.eval(), [member], Method(lambda _: module, plcc_loss, plan, {}))
    spans = {row: (row, row + 1) for row in places.tolist()}
    window = Window(places, {"x": rows}, spans, {"x": (rows.shape[1],)})
    batches = np.split(places, len(steps))
    member.expect(batches)
    losses, learnt, means = [], [], []
    for batch in batches:
        losses += [one for one in stack.step(window, [batch]) if one is not None]
        learnt.append({name: one.clone() for name, one in member.learnt.items()})
        means.append({name: one.clone() for name, one in member.averaged.items()})
    return losses, learnt, means


def _each(states: list[State], name: str) -> Tensor:
    return torch.stack([state[name].flatten() for state in states])


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _named(key: tuple[str, list[int]]) -> tuple[str, tuple[int, ...]]:
    name, shape = key
    return name, tuple(shape)


def _drawn(said: Mapping[str, Any]) -> Tensor:
    values = array(*_named(said["array"])) * np.float32(said.get("scale", 1))
    return torch.from_numpy(values + np.float32(said.get("offset", 0)))


def _rounded(drawn: Mapping[str, Any], which: str) -> Tensor:
    values = _drawn(drawn[which])
    step = drawn.get(f"{which}_round_to")
    if step is not None:
        values = torch.from_numpy(np.round(values.numpy() / np.float32(step)) * np.float32(step))
    return values.requires_grad_(which == "pred")


def _standardised(values: Tensor) -> Tensor:
    return (values - values.mean()) / (values.std(correction=0) + 1e-8)
