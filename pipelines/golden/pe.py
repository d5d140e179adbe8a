"""Players of the Perception Encoder, with the right and with Q-CLIP's order of rotations."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqbank.extractors.clip_towers import tokens_of
from vqbank.extractors.networks.pe_core import CONTEXT, PeCore, official_keys
from vqbank.extractors.pe import Pe
from vqbank.extractors.views import normalise
from vqbank.pipelines.golden.fixture import Check, Fixture, checkpoint, fill, frames

_CPU = torch.device("cpu")
_HALF = (0.5, 0.5, 0.5)


def play_pe_core_l14(fixture: Fixture) -> Iterator[Check]:
    """Features, pooled rows, states, pixels, tokens and text of PE-Core-L/14."""
    relative = fixture.recipe["tolerance"]["rel_to_max"]
    net, before = (_channels_first(fixture.input[name]) for name in ("net", "pre"))
    prompts = tuple(fixture.input["prompts"])
    with checkpoint(fixture.state_dict(), "PE-Core-L14-336.pt") as path:
        extractor = Pe(weights=str(path), outputs=("pooled", "feature", "tokens"), prompts=prompts)
        network: Any = extractor.load().eval()
        yield fixture.keys(official_keys(network.state_dict()))
        tokens = tokens_of(prompts, CONTEXT)
        yield fixture.equal("tokens", tokens)
        with torch.inference_mode():
            yield fixture.close("text", network.text(tokens), relative)
            found = network.text.forward_intermediates(
                tokens, indices=[17], output_fmt="NLC", intermediates_only=True, stop_early=True
            )
            state = found["text_intermediates"][0][:, :10, ::32]
            yield fixture.close("text_block17", state, relative)
            *_, state = network.states(normalise(extractor.view(net), _HALF, _HALF), 17)
            yield fixture.close("block17", state[:, ::8, ::8], relative)
        del network

        squares = extractor.view(before)
        yield fixture.equal("pre_u8", squares[0].movedim(0, -1)[::12, ::12])
        encode = extractor.build(_CPU)
    with torch.inference_mode():
        rows = encode(extractor.view(net)[:, None])
        resized = encode(squares[:, None])["feature"][:, 0]
    yield fixture.close("image", rows["feature"][:, 0], relative)
    yield fixture.close("pool", rows["pooled"][:, 0], relative)
    state = rows["tokens"][:, 0]  # after block 18, where the cut is
    yield fixture.close("block18", state[:, ::8, ::8], relative)
    values = state.double()
    stats = [values.mean(), values.std(correction=0), values.abs().mean()]
    stats += [values.min(), values.max()]
    yield fixture.close("block18_stats", torch.stack(stats), relative)
    yield fixture.close("pre_image", resized, relative)


def play_pe_core_l14_qclip_rope(fixture: Fixture) -> Iterator[Check]:
    """The feature and the state after block 18 with Q-CLIP's order of rotations."""
    relative = fixture.recipe["tolerance"]["rel_to_max"]
    with filled_pe() as path:
        extractor = Pe(weights=str(path), rope="qclip", outputs=("feature", "tokens"))
        encode = extractor.build(_CPU)
    with torch.inference_mode():
        rows = encode(extractor.view(_channels_first(fixture.input["net"]))[:, None])
    yield fixture.close("image", rows["feature"][:, 0], relative)
    yield fixture.close("block18", rows["tokens"][:, 0, ::8, ::8], relative)


@contextmanager
def filled_pe() -> Iterator[Path]:
    """A weight file of PE-Core-L/14, whose keys are compared by `play_pe_core_l14`."""
    with torch.device("meta"):
        shapes = official_keys(PeCore(Pe(weights="random").sizes).state_dict())
    state = {key: torch.as_tensor(fill(key, tuple(value.shape))) for key, value in shapes.items()}
    with checkpoint(state, "PE-Core-L14-336.pt") as path:
        del state
        yield path


def _channels_first(drawn: list[Any]) -> Tensor:
    return torch.from_numpy(frames(*drawn)).permute(0, 3, 1, 2)
