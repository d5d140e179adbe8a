"""Players of Q-CLIP's network, loss, schedule and training."""

import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vqbank.extractors.base import IMPLIED
from vqbank.extractors.networks.pe_core import PeCore, our_keys
from vqbank.extractors.networks.sizes import PeSizes
from vqbank.extractors.pe import Pe
from vqbank.pipelines.golden.fixture import Check, Fixture, array, fill
from vqbank.pipelines.golden.pe import filled_pe
from vqbank.regressors.batches import PaddedBatch, Window
from vqbank.regressors.losses import plcc_loss, plcc_rank_loss, rank_loss
from vqbank.regressors.member import Member
from vqbank.regressors.plan import Fold, Method, Plan
from vqbank.regressors.scma import QClipNetwork
from vqbank.regressors.stack import Stack
from vqbank.regressors.tail import load_tail, load_text_tail
from vqbank.store.bank import FeatureStore
from vqbank.store.tail import read_tokens, write_tail

_INNER = 128  # width inside the adapters of the official code
_SAMPLE = (slice(None, None, 4), slice(None, None, 48), slice(None, None, 16))


def play_qclip_head(fixture: Fixture) -> Iterator[Check]:
    """States, features, texts and scores from a banked tail on; the loss and its gradient."""
    tolerance = fixture.recipe["tolerance"]
    relative, absolute = tolerance["rel_to_max"], tolerance["abs (similarity, Q)"]
    network = _network(tuple(fixture.recipe["input"]["prompts"]))
    assert network.image is not None
    official = fixture.state_dict()
    network.scma.load_official({f"module.{key}": value for key, value in official.items()})
    # The official code has adapters for all blocks, and runs those from the cut on.
    idle = tuple(
        key
        for key in official
        if (match := re.match(r"encoder_adapters\.(\d+)\.", key))
        and int(match[1]) < network.image.cut
    )
    yield fixture.keys(network.scma.state_dict(), ignored=idle)
    _, name, *shape = fixture.input["cached"]
    state = fixture.input["scale"] * torch.from_numpy(array(name, tuple(shape)))
    with torch.inference_mode():
        first, *_, last = network.states(state)
        yield fixture.close("adapter18", first[_SAMPLE], relative)
        yield fixture.close("block23", last[_SAMPLE], relative)
        frames = network.frame(last)
        yield fixture.close("frame_features", frames, relative)
        video, levels = network.video(frames[None])[0], network.levels()
        yield fixture.close("video", video, relative)
        yield fixture.close("text", levels, relative)
        yield fixture.close("similarity", levels @ video, absolute=absolute)
        yield fixture.close("Q", network(state[None]), absolute=absolute)
    yield from _play_loss(fixture, tolerance["loss"])


def _network(prompts: tuple[str, ...]) -> QClipNetwork:
    with filled_pe() as path:
        return _behind(Pe(weights=str(path), prompts=prompts, outputs=("tokens",)), prompts)


def _behind(extractor: Pe, prompts: tuple[str, ...], *, inner: int = _INNER) -> QClipNetwork:
    """By the way of a bank: an extractor writes its tail, a head goes on with it."""
    with tempfile.TemporaryDirectory(prefix="vqbank-golden-") as folder:
        store = FeatureStore.create(Path(folder) / "bank")
        spec = extractor.specs(decoder="pyav")["tokens"]
        write_tail(store, spec, extractor.tail("tokens"))
        tail = store.path / spec.key / "tail"
        tokens = torch.from_numpy(read_tokens(tail, prompts))
        image = load_tail(tail)
        network = QClipNetwork(
            image,
            load_text_tail(tail),
            tokens,
            adapted=image.numbers.stop - image.cut,
            inner=inner,
            wiring="sequential",
            generator=torch.Generator(),
        )
        return network.eval()


def play_qclip_train(fixture: Fixture) -> Iterator[Check]:
    """Three steps of the official optimiser: what is said before, and all that is learnt, after."""
    tolerance = fixture.recipe["tolerance"]
    absolute = tolerance["text, video, similarity, pred_released_rope abs"]
    mos = 50 + 10 * torch.from_numpy(_drawn(fixture, "mos"))  # [3, b]
    for rope in ("qclip", "official"):
        network, states = _small(fixture, rope)  # states [3, b, f, l, d]
        with torch.inference_mode():
            said = network(states[0])
        if rope == "qclip":
            yield fixture.close("pred_released_rope", said, absolute=absolute)
    with torch.inference_mode():
        levels = network.levels()
        *_, last = network.states(states[0].flatten(0, 1))
        video = network.video(network.frame(last).unflatten(0, states.shape[1:3]))
        yield fixture.close("text", levels, absolute=absolute)
        yield fixture.close("video", video, absolute=absolute)
        yield fixture.close("similarity", video @ levels.T, absolute=absolute)
    for variant, settings in fixture.recipe["training"]["variants"].items():
        yield from _play_steps(fixture, variant, settings, network, states, mos)


def _play_steps(
    fixture: Fixture,
    variant: str,
    settings: Mapping[str, Any],
    network: QClipNetwork,
    states: Tensor,
    mos: Tensor,
) -> Iterator[Check]:
    """The steps of one variant, as the training loop of heads does them."""
    tolerance, schedule = fixture.recipe["tolerance"], settings["sched"]
    count, size = mos.shape
    plan = Plan(
        epochs=schedule["num_epochs"] if schedule else 1,
        patience=1,
        batch_size=size,
        learning_rate=settings["lr"],
        weight_decay=settings["wd"],
        decay_epochs=1,
        decay=1.0,
        standardise=False,
        threads=1,
        schedule="cosine" if schedule else "constant",
        warmup_epochs=schedule["warmup_epochs"] if schedule else 0.0,
    )
    fold = Fold(np.arange(count * size), np.arange(0), mos.flatten(), seed=0, epochs=plan.epochs)
    module = _OfTokens(network)
    member = Member(0, fold, module, plan, torch.Generator(), torch.device("cpu"))
    stack = Stack(module, [member], Method(lambda _: module, plcc_rank_loss, plan, {}))
    flat = states.flatten(3).flatten(0, 2)
    frames = states.shape[2]
    spans = {row: (row * frames, (row + 1) * frames) for row in range(count * size)}
    window = Window(fold.fit, {"tokens": flat}, spans, {"tokens": tuple(states.shape[3:])})
    frozen = {name: value.clone() for name, value in module.named_parameters()}
    batches = np.split(fold.fit, count)
    member.expect(batches)
    said, losses, rates, learnt = [], [], [], []
    for number, rows in enumerate(batches):
        with torch.inference_mode():
            said.append(stack.judged(window, [rows])[0])
        rates.append(member.rate)
        losses += stack.step(window, [rows])
        learnt.append(_in_official_order(fixture, member.learnt))
        if variant == "warmup" and number == 0:
            gradients = {name: value.grad for name, value in stack.parameters.items()}
            yield fixture.close(
                "grad0",
                _in_official_order(fixture, gradients, idle=0.0),
                tolerance["grad0 rel_to_max"],
            )
            yield fixture.equal("grad0_present", _present(fixture, gradients))
    close = tolerance["pred, loss abs"]
    yield fixture.close(f"{variant}_pred", torch.stack(said), absolute=close)
    yield fixture.close(f"{variant}_loss", np.array(losses), absolute=close)
    yield fixture.close(f"{variant}_lr", np.array(rates), tolerance["lr rel"])
    params = tolerance["params abs"][variant]
    yield fixture.close(f"{variant}_params", torch.stack(learnt), absolute=params)
    changes = [
        (value - frozen[name]).abs().max()
        for name, value in module.named_parameters()
        if not value.requires_grad
    ]
    largest = torch.stack(changes).max()
    yield fixture.close(f"{variant}_frozen_max_change", largest)


class _OfTokens(nn.Module):
    """Q-CLIP's network as heads have networks."""

    def __init__(self, network: QClipNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: PaddedBatch) -> Tensor:
        """[b]."""
        return self.network(batch.values["tokens"])


_OURS = "network.scma."  # before the official names


def _in_official_order(
    fixture: Fixture, values: Mapping[str, Tensor | None], idle: float | None = None
) -> Tensor:
    """[P]: all trainable tensors, flat; of adapters that never run, their fill or `idle`."""
    official = fixture.state_dict()
    parts = []
    for name, _ in fixture.recipe["trainable"]["order"]:
        value = values.get(f"{_OURS}{name}")
        if value is None:
            value = official[name] if idle is None else torch.full_like(official[name], idle)
        parts.append(value.detach().flatten().clone())
    return torch.cat(parts)


def _present(fixture: Fixture, gradients: Mapping[str, Tensor | None]) -> NDArray[np.int32]:
    order = fixture.recipe["trainable"]["order"]
    return np.array([gradients.get(f"{_OURS}{name}") is not None for name, _ in order], np.int32)


def _drawn(fixture: Fixture, what: str) -> NDArray[np.float32]:
    name, shape = fixture.input[what]["array"]
    return array(name, tuple(shape))


_SIZES = PeSizes(42, 32, 2, 32, 32, 2, 4, 4)
_CUT = 2  # adapters stand behind this block and the next


def _small(fixture: Fixture, rope: Literal["official", "qclip"]) -> tuple[QClipNetwork, Tensor]:
    """The network by the way of a bank, and the states behind the cut of all videos."""
    prompts = tuple(fixture.recipe["input"]["prompts"])
    keys = fixture.recipe["encoder_state_dict"].items()
    weights = {key: torch.as_tensor(fill(key, tuple(shape))) for key, shape in keys}
    extractor = _Small(
        weights="random-tiny", rope=rope, prompts=prompts, outputs=("tokens",), cut=_CUT
    )
    extractor.filled.update(our_keys(weights))
    inner = fixture.recipe["state_dict"]["shared_core.0.bias"][0]
    network = _behind(extractor, prompts, inner=inner)
    network.scma.load_official(fixture.state_dict())
    pictures = 0.5 * torch.from_numpy(_drawn(fixture, "video"))
    pictures += 0.5 * torch.from_numpy(_drawn(fixture, "video_shift"))
    tower = extractor.load()
    with torch.no_grad():
        *_, state = tower.states(pictures.flatten(0, 2), _CUT)
    return network, state.unflatten(0, pictures.shape[:3])


@dataclass(frozen=True, kw_only=True)
class _Small(Pe):
    """The fixture's towers, of four blocks."""

    filled: dict[str, Tensor] = field(default_factory=dict, compare=False, metadata=IMPLIED)

    @property
    def sizes(self) -> PeSizes:
        """The fixture's."""
        return _SIZES

    def load(self) -> PeCore:
        """Both towers, filled."""
        network = PeCore(self.sizes, self.rope)
        network.load_state_dict(self.filled)
        return network.eval().requires_grad_(False)


def _play_loss(fixture: Fixture, absolute: float) -> Iterator[Check]:
    predicted, drawn = (
        torch.from_numpy(array(name, tuple(shape))).flatten()
        for _, name, *shape in (fixture.input["loss_pred"], fixture.input["loss_y"])
    )
    mos = 50 + 10 * drawn
    free = predicted.clone().requires_grad_()
    total = plcc_rank_loss(free, mos)
    (gradient,) = torch.autograd.grad(total, free)
    yield fixture.close("loss_plcc", plcc_loss(predicted, mos), absolute=absolute)
    yield fixture.close("loss_rank", rank_loss(predicted, mos), absolute=absolute)
    yield fixture.close("loss_total", total, absolute=absolute)
    yield fixture.close("loss_grad", gradient, absolute=absolute)
    ties = rank_loss(predicted, 5 * (mos / 5).round())
    yield fixture.close("loss_rank_ties", ties, absolute=absolute)


def play_qclip_losses_schedule(fixture: Fixture) -> Iterator[Check]:
    """The loss with its gradients, ties and extremes, and the learning rate of every step."""
    tolerance = fixture.recipe["tolerance"]
    losses, gradients = tolerance["loss abs"], tolerance["grad abs"]
    for name, vector in fixture.input["vectors"].items():
        mos, predicted = (torch.from_numpy(one) for one in _vectors(vector))
        if len(mos) > 1 and name != "const":
            free = predicted.clone().requires_grad_()
            plcc, rank = plcc_loss(free, mos), rank_loss(free, mos)
            yield fixture.close(f"{name}_plcc", plcc, absolute=losses)
            yield fixture.close(f"{name}_rank", rank, absolute=losses)
            total = plcc_rank_loss(free, mos)
            yield fixture.close(f"{name}_total", total, absolute=losses)
            of_rank = torch.autograd.grad(rank, free, retain_graph=True)[0]
            yield fixture.close(f"{name}_grad_rank", of_rank, absolute=gradients)
            of_total = torch.autograd.grad(total, free)[0]
            yield fixture.close(f"{name}_grad", of_total, absolute=gradients)
    for name, schedule in fixture.input["schedules"].items():
        steps, epochs = schedule["steps_per_epoch"], schedule["num_epochs"]
        plan = Plan(
            epochs=epochs, patience=1, batch_size=2, learning_rate=schedule["lr"], weight_decay=0.0,
            decay_epochs=1, decay=1.0, standardise=False, threads=1, schedule="cosine",
            warmup_epochs=schedule["warmup_epochs"],
        )  # fmt: skip
        every = np.array([plan.rate(step / steps, steps) for step in range(epochs * steps + 2)])
        yield fixture.close(f"{name}_lr", every, tolerance["lr rel"])


def _vectors(vector: Mapping[str, Any]) -> Iterator[NDArray[np.float32]]:
    """Scores, then predictions, by the formulas of the recipe."""
    drawn = {}
    for what in ("y", "pred"):
        if what in vector:
            name, shape = vector[what]["array"]
            scale, offset = vector[what].get("scale", 1.0), vector[what].get("offset", 0.0)
            drawn[what] = np.float32(scale) * array(name, tuple(shape)) + np.float32(offset)
        if f"{what}_round_to" in vector:
            unit = np.float32(vector[f"{what}_round_to"])
            drawn[what] = np.round(drawn[what] / unit) * unit
    yield drawn["y"]
    if "pred_from_y" in vector:
        slope, intercept = map(np.float32, vector["pred_from_y"])
        drawn["pred"] = slope * drawn["y"] + intercept
    yield drawn["pred"]
