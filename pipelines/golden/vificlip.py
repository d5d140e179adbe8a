"""Player of ViFi-CLIP."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vqbank.extractors.sampling import Timeline
from vqbank.extractors.views import IMAGENET_MEAN, IMAGENET_STD, normalise
from vqbank.extractors.vificlip import ViFiClip, our_keys
from vqbank.pipelines.golden.fixture import Check, Fixture, checkpoint, fill, frames

_CPU = torch.device("cpu")
# In the file beside the network: the token embeddings of classes that it was trained on.
_STRANGER = "module.prompt_learner.complete_text_embeddings"


def play_vificlip(fixture: Fixture) -> Iterator[Check]:
    """Frame, video and text features, tokens, logits, pixels and the choice of frames."""
    import open_clip

    relative = fixture.recipe["tolerance"]["rel_to_max"]
    prompts = tuple(fixture.input["prompts"])
    state = {**fixture.state_dict(), _STRANGER: torch.zeros(len(prompts), 77, 512)}
    table = {
        key: torch.from_numpy(fill(key, tuple(shape)))
        for key, shape in fixture.recipe["extra_state"]["keys"].items()
    }
    with checkpoint({"model": state}) as path, checkpoint(table, "ViT-B-16.pt") as table_path:
        extractor = ViFiClip(weights=str(path), token_table=str(table_path), prompts=prompts)
        network: Any = extractor.load(with_table=True).eval()
        embed = extractor.build(_CPU)
        text = extractor.text(_CPU)
    yield fixture.keys(_official(fixture, network))

    net, pipe = (_channels_first(fixture.input[name]) for name in ("net", "pipe"))
    squares = extractor.view(pipe)
    tokens = open_clip.SimpleTokenizer()(list(prompts), 77)
    with torch.inference_mode():
        seen = embed(net[:, None])["feature"][:, 0]
        seen_whole = embed(squares[:, None])["feature"][:, 0]
        spoken = network.encode_text(tokens)
        found = network.visual.forward_intermediates(
            normalise(net, IMAGENET_MEAN, IMAGENET_STD),
            indices=[5],
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
    first, others = found["image_intermediates_prefix"][0], found["image_intermediates"][0]
    block = torch.cat([first, others], dim=1)
    video = seen.mean(dim=0)
    logits = text.scale * functional.normalize(video, dim=0) @ torch.from_numpy(text.values).T
    yield fixture.close("net_image", seen, relative)
    yield fixture.close("net_video", video, relative)
    yield fixture.close("block5", block[:, ::16, ::16], relative)
    yield fixture.close("text", spoken, relative)
    yield fixture.equal("tokens", tokens)
    yield fixture.close("logits", logits[None], relative)
    yield fixture.equal("pipe_u8", squares.movedim(1, -1)[:, ::8, ::8])
    yield fixture.close("pipe_image", seen_whole, relative)

    for what in fixture.expected:
        if match := re.fullmatch(r"index_(\d+)", what):
            count = int(match[1])
            timeline = Timeline(np.arange(count) / 25, count, 25.0, fixture.name, 270, 480)
            yield fixture.equal(what, extractor.sampling.clips(timeline).frames[:, 0])


def _official(fixture: Fixture, network: torch.nn.Module) -> dict[str, Tensor]:
    """Our state dict under the names that the official keys have with us."""
    names = [*fixture.recipe["state_dict"], *fixture.recipe["extra_state"]["keys"]]
    numbered = our_keys({name: torch.tensor(number) for number, name in enumerate(names)})
    official = {ours: names[int(number)] for ours, number in numbered.items()}
    kept = network.state_dict().items()
    named = {official.get(ours, ours): value for ours, value in kept}
    for key in fixture.recipe["extra_state"]["keys"]:  # of the other file
        del named[key]
    return named


def _channels_first(drawn: list[Any]) -> Tensor:
    return torch.from_numpy(frames(*drawn)).permute(0, 3, 1, 2)
