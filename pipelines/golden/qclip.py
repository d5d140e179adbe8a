"""Player of Q-CLIP's network and loss."""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from vqbank.extractors.pe import Pe
from vqbank.pipelines.golden.fixture import Check, Fixture, array
from vqbank.pipelines.golden.pe import filled_pe
from vqbank.regressors.losses import plcc_loss, rank_loss
from vqbank.regressors.qclip import QClip
from vqbank.regressors.tail import load_tail, load_text_tail
from vqbank.store.bank import FeatureStore
from vqbank.store.tail import read_tokens, write_tail

_SAMPLE = (slice(None, None, 4), slice(None, None, 48), slice(None, None, 16))
_RANK_WEIGHT = 0.3  # of train.py


def play_qclip_head(fixture: Fixture) -> Iterator[Check]:
    """States, features, texts and scores from a banked tail on; the loss and its gradient."""
    tolerance = fixture.recipe["tolerance"]
    relative, absolute = tolerance["rel_to_max"], tolerance["abs (similarity, Q)"]
    network = _network(tuple(fixture.recipe["input"]["prompts"]))
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


def _network(prompts: tuple[str, ...]) -> QClip:
    """Filled, and by the way of a bank: an extractor writes its tail, a head goes on with it."""
    with tempfile.TemporaryDirectory(prefix="vqbank-golden-") as folder:
        with filled_pe() as path:
            extractor = Pe(weights=str(path), prompts=prompts, outputs=("tokens",))
            spec = extractor.specs(decoder="pyav")["tokens"]
            store = FeatureStore.create(Path(folder) / "bank")
            write_tail(store, spec, extractor.tail())
        tail = store.path / spec.key / "tail"
        tokens = torch.from_numpy(read_tokens(tail, prompts))
        return QClip(load_tail(tail), load_text_tail(tail), tokens).eval()


def _play_loss(fixture: Fixture, absolute: float) -> Iterator[Check]:
    predicted, drawn = (
        torch.from_numpy(array(name, tuple(shape))).flatten()
        for _, name, *shape in (fixture.input["loss_pred"], fixture.input["loss_y"])
    )
    mos = 50 + 10 * drawn
    free = predicted.clone().requires_grad_()
    total = _loss(free, mos)
    (gradient,) = torch.autograd.grad(total, free)
    yield fixture.close("loss_plcc", plcc_loss(predicted, mos), absolute=absolute)
    yield fixture.close("loss_rank", rank_loss(predicted, mos), absolute=absolute)
    yield fixture.close("loss_total", total, absolute=absolute)
    yield fixture.close("loss_grad", gradient, absolute=absolute)
    ties = rank_loss(predicted, 5 * (mos / 5).round())
    yield fixture.close("loss_rank_ties", ties, absolute=absolute)


def _loss(predicted: Tensor, mos: Tensor) -> Tensor:
    return plcc_loss(predicted, mos) + _RANK_WEIGHT * rank_loss(predicted, mos)
