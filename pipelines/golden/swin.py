"""RQ-VQA's spatial branch: Swin-B, the attention blocks, and the head of its checkpoints."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from vqbank.extractors.networks.spatial_branch import SpatialBranch
from vqbank.extractors.swin import Swin, load_network, our_keys
from vqbank.extractors.views import IMAGENET_MEAN, IMAGENET_STD, normalise
from vqbank.pipelines.golden.fixture import Check, Fixture, array, checkpoint, frames
from vqbank.regressors.mhsa import Mhsa
from vqbank.regressors.mlp import Mlp
from vqbank.store.schema import Video
from vqbank.store.table import FeatureTable

_FUSED = {"motion": 256, "qalign": 4096, "liqe": 495, "fastvqa": 768}  # after the spatial feature


def play_swin(fixture: Fixture) -> Iterator[Check]:
    """Every stage of one frame, the attention blocks on arrays, the feature and the scores."""
    name = f"{fixture.name}/{fixture.letter}"
    slots = len(fixture.expected["spatial_feature"])
    video = torch.from_numpy(frames(name, slots, 384, 384)).permute(0, 3, 1, 2)
    clips = Swin.view(video)[:, None]
    device = torch.device("cpu")
    left = {
        key: torch.zeros(shape, dtype=getattr(torch, dtype))
        for key, (dtype, *shape) in fixture.recipe["not_filled"].items()
    }  # tables that timm computes, and counters
    with checkpoint({**fixture.state_dict(), **left}) as path, torch.inference_mode():
        network = load_network(path, *Swin.files).eval()
        average = Swin(weights=str(path), outputs=("feature", "tokens")).build(device)
        rows = [average(clip[None]) for clip in clips]
        feature, tokens = (
            torch.cat([row[what][0] for row in rows]) for what in ("feature", "tokens")
        )
        scores = list(_scores(fixture, path, name, feature))
        scores.append(_score_of_tokens(fixture, path, name, tokens))
    yield fixture.keys(_official(fixture, network))
    yield fixture.close("spatial_feature", feature, relative=2e-5)

    with torch.inference_mode():
        picture = normalise(clips[0], IMAGENET_MEAN, IMAGENET_STD)
        yield from fixture.sampled("input_frame0", picture[0], absolute=1e-5)
        yield from _stages(fixture, network, picture)
        yield from _arrays(fixture, network, name)
    yield from scores


def _official(fixture: Fixture, network: SpatialBranch) -> dict[str, Tensor]:
    """Our state dict under the names that the official keys have with us."""
    names = [*fixture.recipe["state_dict"], *fixture.recipe["not_filled"]]
    numbered = our_keys({name: torch.tensor(number) for number, name in enumerate(names)})
    official = {ours: names[int(number)] for ours, number in numbered.items()}
    return {official.get(key, key): value for key, value in network.state_dict().items()}


def _stages(fixture: Fixture, network: SpatialBranch, picture: Tensor) -> Iterator[Check]:
    # timm 0.6 ended a stage with the merging that now begins the next one.
    layers = network.swin.layers
    parts = {
        **{f"swin_layer{i}_frame0": layers[i + 1].downsample for i in range(len(layers) - 1)},
        f"swin_layer{len(layers) - 1}_frame0": layers[-1],
        "bot0_mhsa_frame0": network.bot4.net[0].get_submodule("net.3"),
        **{f"bot{i}_frame0": block for i, block in enumerate(network.bot4.net)},
    }
    with _watched(parts) as seen:
        maps = network.see(picture)
        network.bot4(maps)
    tokens = maps.flatten(2).transpose(1, 2)
    yield from fixture.sampled("swin_tokens_frame0", tokens, relative=5e-5)
    for what, value in seen.items():
        value = value.flatten(1, 2) if what.startswith("swin") else value
        yield from fixture.sampled(what, value, relative=5e-5)


@contextmanager
def _watched(parts: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """What each of these modules gives while inside."""
    seen: dict[str, Tensor] = {}
    hooks = [
        part.register_forward_hook(
            lambda module, inputs, output, name=name: seen.__setitem__(name, output)
        )
        for name, part in parts.items()
    ]
    yield seen
    for hook in hooks:
        hook.remove()


def _arrays(fixture: Fixture, network: SpatialBranch, name: str) -> Iterator[Check]:
    """Inputs large enough for attention to be far from uniform."""
    inputs = 3 * torch.from_numpy(array(f"{name}/mhsa_in", (1, 256, 12, 12)))
    attentions = [block.get_submodule("net.3") for block in network.bot4.net]
    for number, attention in enumerate(attentions):
        what = f"mhsa{number}_on_array"
        yield from fixture.sampled(what, attention(inputs), relative=1e-4)
    queries = torch.from_numpy(array(f"{name}/q", (1, 4, 144, 128)))
    logits = attentions[0].get_submodule("pos_emb")(queries)
    yield from fixture.sampled("rel_logits_on_array", logits, relative=1e-4)
    maps = network.bot4(8 * torch.from_numpy(array(f"{name}/bot_in", (1, 1024, 12, 12))))
    yield from fixture.sampled("bot_on_array", maps, relative=1e-4)
    yield fixture.close("bot_on_array_pooled", maps.mean(dim=(2, 3))[0], relative=1e-4)


def _score_of_tokens(fixture: Fixture, path: Path, name: str, tokens: Tensor) -> Check:
    """The same score by `mhsa`, which has the attention blocks of the checkpoint too."""
    others = {part: array(f"{name}/{part}", (len(tokens), own)) for part, own in _FUSED.items()}
    series = {"tokens": [tokens.numpy()], **{role: [own] for role, own in others.items()}}
    table = FeatureTable.from_arrays([Video("full/tokens", Path("full"))], series)
    score = Mhsa.published(path, table).predict(table)
    return fixture.close("full_score", score, absolute=1e-4)


def _scores(fixture: Fixture, path: Path, name: str, feature: Tensor) -> Iterator[Check]:
    """The head of the checkpoint, as `mlp` loads it and as it sees a table."""
    slots, width = feature.shape
    others = {part: array(f"{name}/{part}", (slots, own)) for part, own in _FUSED.items()}
    fused = {"spatial": feature.numpy(), **others}
    drawn = array(f"{name}/head", (slots, width + sum(_FUSED.values())))
    cuts = np.cumsum([width, *_FUSED.values()])[:-1]
    cut = dict(zip(fused, np.split(drawn, cuts, axis=1), strict=True))
    for what, inputs in (("full", fused), ("head", cut)):
        videos = [Video(f"{what}/{slot}", Path(what)) for slot in range(slots + 1)]
        # A video of eight slots, then videos that have one of these slots alone, eight times.
        series = {role: [own, *own[:, None]] for role, own in inputs.items()}
        table = FeatureTable.from_arrays(videos, series)
        head = Mlp.published(path, table)
        scores = head.predict(table)
        yield fixture.close(f"{what}_slots", scores[1:], absolute=1e-4)
        yield fixture.close(f"{what}_score", scores[:1], absolute=1e-4)
    hidden = linear(
        torch.from_numpy(drawn[0]),
        head.ensemble_.state["hidden.weight"][0],
        head.ensemble_.state["hidden.bias"][0],
    )
    yield fixture.close("head_hidden_slot0", hidden, absolute=1e-4)
