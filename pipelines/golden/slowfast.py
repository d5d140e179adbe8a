"""Player of RQ-VQA's motion branch."""

import re
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqbank.extractors.slowfast import SLOW_FRAMES, SlowFast, architecture
from vqbank.extractors.views import normalise
from vqbank.pipelines.golden.fixture import Check, Fixture, checkpoint, frames

_CPU = torch.device("cpu")
_COUNTERS = "num_batches_tracked"
_RELATIVE = 2e-5


def play_slowfast_fast256(fixture: Fixture) -> Iterator[Check]:
    """The features of one clip, and every stage of both pathways."""
    # `fast_only_max_abs_diff`, the rounding of the official run, is not compared.
    name = f"{fixture.name}/{fixture.letter}"
    clip = _channels_first(frames(name, 32, 224, 224))
    network = architecture()
    counters = {
        key: value for key, value in network.state_dict().items() if key.endswith(_COUNTERS)
    }
    yield fixture.keys(network.state_dict())
    with checkpoint({"model_state": {**fixture.state_dict(), **counters}}) as path:
        alone, both = (
            SlowFast(weights=str(path), outputs=outputs) for outputs in ((), ("fast", "slowfast"))
        )
        fast, slowfast = alone.build(_CPU), both.build(_CPU)
        stages = alone.stages()
    with torch.inference_mode():
        batch = alone.view(clip)[None]
        feature = fast(batch)["fast"][0, 0]
        yield fixture.close("fast_only_feature", feature, _RELATIVE)
        rows = slowfast(batch)
        yield fixture.close("fast_feature", rows["fast"][0, 0], _RELATIVE)
        first = torch.stack([rows["fast"][0, 0, :4], feature[:4]])
        yield fixture.close("fast_numbers_first4", first, _RELATIVE)
        yield fixture.close("slow_feature", rows["slowfast"][0, 0, :2048], _RELATIVE)

        pixels = _normalised(batch).transpose(1, 2)  # [1, 3, 32, h, w]
        yield from fixture.sampled("input", pixels, absolute=1e-5)
        yield fixture.equal("slow_frames", np.array(SLOW_FRAMES))
        maps = [pixels[:, :, SLOW_FRAMES], pixels]
        for number, stage in enumerate(stages):
            maps = stage(maps)
            yield from fixture.sampled(f"block{number}.fast", maps[1], _RELATIVE)
        yield from fixture.sampled("block4.slow", maps[0], _RELATIVE)
    for what in fixture.expected:
        match = re.fullmatch(r"(resize_(\d+)x(\d+))\.sample", what)
        if match is not None:
            yield from _play_resize(fixture, match[1], int(match[2]), int(match[3]))


def _play_resize(fixture: Fixture, what: str, height: int, width: int) -> Iterator[Check]:
    name = f"{fixture.name}/{fixture.letter}/{height}x{width}"
    ours = _normalised(SlowFast().view(_channels_first(frames(name, 1, height, width))))[0]
    yield from fixture.sampled(what, ours, absolute=1e-5)


def _channels_first(pictures: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2)


def _normalised(pictures: Tensor) -> Tensor:
    return normalise(pictures, (0.45, 0.45, 0.45), (0.225, 0.225, 0.225))
