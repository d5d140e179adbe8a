"""Player of RealBasicVSR: enlarged videos, clean frames, flows, and the residual of a video."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vqbank.extractors import make_extractor
from vqbank.pipelines.golden.fixture import Check, Fixture, checkpoint, frames

_ABSOLUTE = 5e-5
_RELATIVE = 1e-4  # of values of a hundred thousand
_PREFIX = "generator_ema."
# Entries that the recipe says to keep, in a state dict of the official code.
_CONSTANTS = {
    "generator_ema.basicvsr.spynet.mean": torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1),
    "generator_ema.basicvsr.spynet.std": torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1),
}


def play_realbasicvsr(fixture: Fixture) -> Iterator[Check]:
    """Three clips and a residual with weights made smaller by the recipe's table; one without."""
    with torch.inference_mode():
        yield from _calm(fixture)
        yield from _plain(fixture)


def _calm(fixture: Fixture) -> Iterator[Check]:
    network = _network(fixture, calmed=True)
    state = {f"{_PREFIX}{key}": value for key, value in network.state_dict().items()}
    yield fixture.keys(state)

    def close(what: str, got: Tensor) -> Check:
        return fixture.close(what, got, absolute=_ABSOLUTE)

    small = _frames(fixture, "lr") / 255
    enlarged = torch.stack(list(network.upscaled(small)))
    edges = torch.cat([enlarged[..., -1, :], enlarged[..., :, -1]], dim=-1)
    yield close("lr_sr", enlarged[..., ::8, ::8])
    yield close("lr_sr_edge", edges[..., ::2])
    whole = (1, 2, 3)
    yield close("lr_frame_stats", torch.stack([enlarged.mean(whole), enlarged.std(whole)], dim=1))

    clean, _ = network.clean(small)
    spynet = network.basicvsr.spynet
    yield close("lr_clean", clean[..., ::4, ::4])
    yield close("lr_flow_backward", spynet(clean[:-1], clean[1:])[..., ::8, ::8])
    yield close("lr_flow_forward", spynet(clean[1:], clean[:-1])[..., ::8, ::8])

    from vqbank.extractors.residual import residuals
    from vqbank.extractors.restoration import reduced

    video = _frames(fixture, "hr")
    residual = torch.stack(list(residuals(network, video)))
    sizes = residual.abs().mean()
    extremes = [residual.min(), residual.max()]
    yield close("hr_lr", reduced(video / 255)[..., ::4, ::4])
    yield close("hr_residual", residual[..., ::8, ::8])
    stats = [residual.mean(), residual.std(), sizes, *extremes]
    yield close("hr_residual_stats", torch.stack(stats))

    odd = torch.stack(list(network.upscaled(_frames(fixture, "odd") / 255)))
    yield close("odd_sr", odd[..., ::8, ::8])


def _plain(fixture: Fixture) -> Iterator[Check]:
    """Weights as the rule fills them: values explode, and cleaning never ends of itself."""
    network = _network(fixture, calmed=False)
    small = _frames(fixture, "plain") / 255
    _, sizes = network.clean(small)
    enlarged = torch.stack(list(network.upscaled(small)))
    yield fixture.close("plain_sr", enlarged[..., ::16, ::16], _RELATIVE)
    yield fixture.equal("plain_passes", torch.tensor(len(sizes)))
    yield fixture.close("plain_residue_absmean", torch.tensor(sizes), _RELATIVE)


def _network(fixture: Fixture, *, calmed: bool) -> Any:
    """As the extractor loads it from a checkpoint with these weights."""
    table = fixture.recipe["fill_multiplier"]["table"] if calmed else []

    def factor(key: str) -> float:
        return next((number for text, number in table if text in key), 1)

    state = {key: factor(key) * value for key, value in fixture.state_dict().items()}
    with checkpoint({"state_dict": {**state, **_CONSTANTS}}) as path:
        extractor: Any = make_extractor("residual", weights=str(path))
        return extractor.load()


def _frames(fixture: Fixture, which: str) -> Tensor:
    """uint8 [t, 3, h, w] of one of the inputs."""
    _, *described = fixture.input[which]
    return torch.from_numpy(frames(*described)).permute(0, 3, 1, 2).contiguous()
