"""Players of TCSVT-2022-BVQA's motion features, which A2INet takes: blocks of 64 frames."""

from collections.abc import Iterator

import numpy as np
import torch

from vqbank.extractors import make_extractor
from vqbank.extractors.sampling import Blocks, Timeline
from vqbank.extractors.slowfast import SLOW_FRAMES, SlowFast, architecture, pathways
from vqbank.extractors.views import normalise
from vqbank.pipelines.golden.fixture import Check, Fixture, checkpoint, frames
from vqbank.store.errors import GoldenError

_RELATIVE = 1e-5
_CPU = torch.device("cpu")
_COUNTERS = "num_batches_tracked"


def play_slowfast_motion(fixture: Fixture) -> Iterator[Check]:
    """Rows of one block under both normalisations, and what both pathways end with."""
    name, count, height, width = fixture.input["frames"]
    video = torch.from_numpy(frames(name, count, height, width)).permute(0, 3, 1, 2)
    chosen = Blocks().clips(_timeline(count, height, width)).frames
    official = architecture().state_dict()
    counters = {key: value for key, value in official.items() if key.endswith(_COUNTERS)}
    yield fixture.keys({key: value for key, value in official.items() if key not in counters})

    with checkpoint({"model_state": {**fixture.state_dict(), **counters}}) as path:
        m045, imagenet = (
            make_extractor(
                "slowfast", weights=str(path), chunks="blocks-full", normalisation=normalisation
            )
            for normalisation in ("slowfast", "imagenet")
        )
        built = {"m045": m045.build(_CPU), "imagenet": imagenet.build(_CPU)}
        if not isinstance(m045, SlowFast):
            raise GoldenError(f"'slowfast' is a {type(m045).__name__}")
        stages = m045.stages()
    clips = m045.view(video)[chosen]
    statistics = fixture.recipe["input"]["normalisation"]["m045"]
    with torch.inference_mode():
        for what, network in built.items():
            yield fixture.close(what, network(clips)["blocks"][0], _RELATIVE)
        pixels = normalise(clips, tuple(statistics["mean"]), tuple(statistics["std"]))
        slow, fast = pathways(stages, pixels.transpose(1, 2))
    for what, maps in (("slow", slow), ("fast", fast)):
        values = maps.double()
        moments = [values.mean(), values.std(correction=0), values.abs().mean()]
        extremes = [values.min(), values.max()]
        stats = torch.stack([*moments, *extremes])
        yield fixture.close(f"{what}_m045_stats", stats, _RELATIVE)
    yield fixture.close("slow_m045_mean", slow.mean(dim=(2, 3, 4))[0], _RELATIVE)


def play_slowfast_indices(fixture: Fixture) -> Iterator[Check]:
    """Which frames make the blocks and stand for the rows of videos of many lengths."""
    for count in fixture.input["N"]:
        clips = Blocks().clips(_timeline(count, 64, 64))
        yield fixture.equal(f"fast_{count}", clips.rows[clips.rows >= 0])
        yield fixture.equal(f"blocks_{count}", clips.frames)
        yield fixture.equal(f"slow_{count}", clips.frames[:, SLOW_FRAMES])


def _timeline(count: int, height: int, width: int) -> Timeline:
    return Timeline(np.arange(count) / 30, count, 30.0, "fixture", height, width)
