"""Q-Align as RQ-VQA runs it, in a tiny configuration of mPLUG-Owl2."""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqbank.extractors.networks.mplug_owl2 import MplugOwl2
from vqbank.extractors.networks.sizes import MplugOwl2Sizes
from vqbank.extractors.qalign import (
    PREFIX_IDS,
    SUFFIX_IDS,
    PaddedHalves,
    QAlign,
    hidden_states,
    level_logits,
    load_network,
    read_prefix,
)
from vqbank.extractors.views import CLIP_MEAN, CLIP_STD, normalise
from vqbank.pipelines.golden.fixture import Check, Fixture, frames
from vqbank.store.errors import GoldenError

_PICTURE = -200  # stands for the picture among the prompt's ids
_SIZE = r"(\d+)x(\d+)"


def play_qalign(fixture: Fixture) -> Iterator[Check]:
    """Halves, ViT, abstractor and language model; the prompt's prefix read once.

    Raises:
        GoldenError: if the recipe does not say how large the frames are.
    """
    prompt = np.array([*PREFIX_IDS, _PICTURE, *SUFFIX_IDS])
    yield fixture.equal("prompt_ids", prompt)
    yield fixture.equal("image_position", np.flatnonzero(prompt == _PICTURE))

    size, odd_size = _sizes(fixture)
    pictures = _pictures(fixture, size)
    odd = _pictures(fixture, odd_size)
    for name, part in zip(("upper", "lower"), pictures, strict=True):
        yield from fixture.sampled(name, part, absolute=1e-5)
    for name, part in zip(("odd_upper", "odd_lower"), odd, strict=True):
        yield from fixture.sampled(name, part[None], absolute=1e-5)

    configuration = _configuration(fixture.recipe["tiny_config"])
    made = MplugOwl2(configuration)
    state = {**dict(made.named_buffers()), **fixture.state_dict()}
    with _folder(state, fixture.recipe["tiny_config"]) as folder:
        network = load_network(
            folder,
            *QAlign.files,
            configuration=configuration,
            device=torch.device("cpu"),
            dtype=torch.float32,
        )
    yield fixture.keys(network.state_dict())
    buffers = dict(network.named_buffers())
    first = "model.visual_abstractor.encoder.layers.0.crossattention.attention"
    for name in ("q_pos_embed", "k_pos_embed"):
        yield from fixture.sampled(name, buffers[f"{first}.{name}"], relative=1e-4)
    with torch.inference_mode():
        seen = network.model["vision_model"](pictures)
        yield from fixture.sampled("vision", seen, relative=1e-4)
        read = network.model["visual_abstractor"](seen)
        yield from fixture.sampled("abstractor", read, relative=1e-4)
        hidden = hidden_states(network, pictures, read_prefix(network))
        yield from fixture.sampled("hidden", hidden, relative=1e-4)
        yield fixture.close("position_means", hidden.mean(dim=2), relative=1e-4)
        yield fixture.close("feature", hidden.mean(dim=(0, 1)), relative=3e-5)
        logits = level_logits(network, hidden)
        yield fixture.close("level_logits_last", logits, relative=1e-4)


def _sizes(fixture: Fixture) -> list[tuple[int, int]]:
    """Height and width of the frame and of the one that is only preprocessed.

    The recipe names them for the letter a, and another size of a letter as "(b: 541x961)".
    """
    text = fixture.recipe["input"]
    sizes = re.findall(rf"frames\('{fixture.name}/\w+/{_SIZE}'", text)
    if len(sizes) != 2:
        raise GoldenError(f"{fixture.name}.json does not name the sizes of two frames")
    other = re.search(rf"\({fixture.letter}: {_SIZE}\)", text)
    odd = other.groups() if other else sizes[1]
    return [(int(height), int(width)) for height, width in (sizes[0], odd)]


def _pictures(fixture: Fixture, size: tuple[int, int]) -> Tensor:
    height, width = size
    drawn = frames(f"{fixture.name}/{fixture.letter}/{height}x{width}", 1, height, width)
    halves = PaddedHalves()(torch.from_numpy(drawn).permute(0, 3, 1, 2))
    return normalise(halves[0], CLIP_MEAN, CLIP_STD)


def _configuration(described: Mapping[str, Any]) -> MplugOwl2Sizes:
    eyes = described["visual_config"]["visual_model"]
    abstractor = described["visual_config"]["visual_abstractor"]
    return MplugOwl2Sizes(
        image_side=eyes["image_size"],
        patch_side=eyes["patch_size"],
        vision_width=eyes["hidden_size"],
        vision_inner=eyes["intermediate_size"],
        vision_layers=eyes["num_hidden_layers"],
        vision_heads=eyes["num_attention_heads"],
        queries=abstractor["num_learnable_queries"],
        abstractor_inner=abstractor["intermediate_size"],
        abstractor_layers=abstractor["num_hidden_layers"],
        abstractor_heads=abstractor["num_attention_heads"],
        vocabulary=described["vocab_size"],
        width=described["hidden_size"],
        inner=described["intermediate_size"],
        layers=described["num_hidden_layers"],
        heads=described["num_attention_heads"],
        rms_norm_eps=described["rms_norm_eps"],
    )


@contextmanager
def _folder(state: Mapping[str, Tensor], described: Mapping[str, Any]) -> Iterator[Path]:
    """Two shards with their index and config.json, as on the hub."""
    names = sorted(state)
    index = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(names)}
    with tempfile.TemporaryDirectory(prefix="vqbank-golden-") as folder:
        for shard in sorted(set(index.values())):
            content = {name: state[name] for name in names if index[name] == shard}
            torch.save(content, Path(folder) / shard)
        described_index = json.dumps({"metadata": {}, "weight_map": index})
        (Path(folder) / "pytorch_model.bin.index.json").write_text(described_index)
        (Path(folder) / "config.json").write_text(json.dumps(described))
        yield Path(folder)
