"""VSFA's head and its temporal pooling."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vqbank.pipelines.golden.fixture import Check, Fixture, array, checkpoint
from vqbank.regressors.batches import PaddedBatch
from vqbank.regressors.gru import FrameScores, Gru
from vqbank.regressors.score_pooling import POOLINGS, hysteresis
from vqbank.store.errors import GoldenError
from vqbank.store.schema import Video
from vqbank.store.table import FeatureTable

WEIGHTS = "VSFA.pt"


def play_vsfa_head(fixture: Fixture) -> Iterator[Check]:
    """Scores of frames and of videos, alone and as a padded batch.

    With filled weights, and with VSFA's own where VSFA.pt is in $VQBANK_WEIGHTS, or in
    `data/weights` of the optional data that tests read.
    """
    clips = {
        name: _clip(*clip["array"], *clip["gain"])
        for name, clip in fixture.input.items()
        if isinstance(clip, Mapping)
    }
    with checkpoint(fixture.state_dict()) as filled:
        yield from _play_head(fixture, "filled", filled, clips)
    real = _real_weights(fixture.recipe["weights"]["real"]["sha256"])
    if real is not None:
        yield from _play_head(fixture, "real", real, clips)


def _clip(name: str, shape: list[int], gain: str, gain_shape: list[int]) -> NDArray[np.float32]:
    """[t, 4096], by the formula of the recipe."""
    values = np.float32(0.5) * np.abs(array(name, tuple(shape)))
    gains = np.clip(1 + np.float32(0.5) * array(gain, tuple(gain_shape)), 0.2, 2.0)
    return np.minimum(values * gains, 2.0).astype(np.float32)


def _real_weights(sha256: str) -> Path | None:
    """VSFA.pt, if it is at hand.

    Raises:
        GoldenError: if a file of this name is another one.
    """
    beside = Path(__file__).parents[2].parent / "shared"
    shared = Path(os.environ.get("VQBANK_TEST_DATA") or beside)
    folders = [Path(os.environ.get("VQBANK_WEIGHTS") or shared), shared / "data" / "weights"]
    for path in (folder / WEIGHTS for folder in folders):
        if path.is_file():
            if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
                raise GoldenError(f"{path} is not the {WEIGHTS} of the recipe: another sha256")
            return path
    return None


def _play_head(
    fixture: Fixture, weights: str, path: Path, clips: Mapping[str, NDArray[np.float32]]
) -> Iterator[Check]:
    videos = [Video(name, Path(name)) for name in clips]
    table = FeatureTable.from_arrays(videos, {"semantic": list(clips.values())})
    head = Gru.published(path, table)
    absolute = 2e-5  # the recipe's
    yield fixture.close(f"{weights}_batch_score", head.predict(table), absolute=absolute)
    network = FrameScores(
        4096, head.reduction, head.width, pooling=head.pooling, generator=torch.Generator()
    )
    network.load_state_dict({name: value[0] for name, value in head.ensemble_.state.items()})
    for row, (name, clip) in enumerate(clips.items()):
        mask = torch.ones(1, len(clip), dtype=torch.bool)
        batch = PaddedBatch({"semantic": torch.from_numpy(clip)[None]}, mask, torch.tensor(0))
        with torch.inference_mode():
            frames = network.frames(batch)
        pooled = hysteresis(frames, mask)
        alone = head.predict(table.subset([row]))[0]
        yield fixture.close(f"{weights}_{name}_q", frames[0], absolute=absolute)
        yield fixture.close(f"{weights}_{name}_tp", pooled[0], absolute=absolute)
        yield fixture.close(f"{weights}_{name}_score", np.array(alone), absolute=absolute)


def play_hysteresis(fixture: Fixture) -> Iterator[Check]:
    """Pooled scores of every scale and length, one by one and as one padded batch."""
    series = {}
    for name, drawn in fixture.input.items():
        if not isinstance(drawn, Mapping):
            continue
        key, shape = drawn["array"]
        scores = (drawn["offset"] + drawn["scale"] * array(key, tuple(shape))).astype(np.float32)
        # The recipe cuts all but the unit scale.
        series[name] = scores if name.startswith("unit") else np.clip(scores, 0, 90)
    longest = max(map(len, series.values()))
    padded = torch.zeros(len(series), longest)
    mask = torch.zeros(len(series), longest, dtype=torch.bool)
    for row, scores in enumerate(series.values()):
        padded[row, : len(scores)] = torch.from_numpy(scores)
        mask[row, : len(scores)] = True
    rows = hysteresis(padded, mask)
    videos = POOLINGS["hysteresis"](padded, mask)
    for row, (name, scores) in enumerate(series.items()):
        alone = hysteresis(padded[row : row + 1, : len(scores)], mask[row : row + 1, : len(scores)])
        relative, absolute = (1e-6, 0) if name.startswith("hundred") else (0, 2e-6)
        yield fixture.close(f"{name}_tp", alone[0], relative, absolute)
        yield fixture.close(f"{name}_tp", rows[row, : len(scores)], relative, absolute)
        yield fixture.close(f"{name}_score", videos[row], relative, absolute)
