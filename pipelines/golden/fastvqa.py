"""Players of FAST-VQA: frames, fragments and the network."""

import hashlib
import math
import re
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqbank.extractors.fastvqa import FastVqa
from vqbank.extractors.fragments import Fragments
from vqbank.extractors.sampling import RandomSegments
from vqbank.extractors.views import IMAGENET_MEAN, IMAGENET_STD, normalise
from vqbank.pipelines.golden.fixture import Check, Fixture, array, checkpoint, frames
from vqbank.store.errors import GoldenError

_RELATIVE = 1e-4  # the recipe's for the map, taken for the stages before it too
_LEVEL = 0.018  # the recipe's: one of 256 grey levels after normalisation


def play_fastvqa_b(fixture: Fixture) -> Iterator[Check]:
    """Every stage, the map, its mean and the scores of one clip."""
    name = f"{fixture.name}/{fixture.letter}"
    tables = FastVqa(weights="random").load().state_dict()
    left = {key: tables[key] for key in fixture.recipe["not_filled"] if key in tables}
    state = {**left, **fixture.state_dict()}
    content = {"state_dict": state, "validation_results": [np.float64(0.5)]}
    with checkpoint(content, fixture.recipe["checkpoint_file"]) as path:
        extractor = FastVqa(weights=str(path), model="fast-b", outputs=("feature", "map", "score"))
        network = extractor.load()
    yield fixture.keys(network.state_dict())

    # The frames are fragments already.
    mosaics = _channels_first(frames(name, *extractor.architecture.size))
    seen: list[Tensor] = []
    for stage in network.fragments_backbone.layers:
        stage.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.inference_mode():
        rows = extractor.rows(network, mosaics[None])
        maps = rows["map"][:, 0]
        score_map = network.scores(maps)
    pixels = normalise(mosaics, IMAGENET_MEAN, IMAGENET_STD).transpose(0, 1)[None]
    yield from fixture.sampled("input", pixels, absolute=1e-5)
    for number, tokens in enumerate(seen):
        yield from fixture.sampled(f"stage{number}", tokens.permute(0, 4, 1, 2, 3), _RELATIVE)
    yield from fixture.sampled("map", maps, _RELATIVE)
    yield fixture.close("feature", rows["feature"][0, 0], relative=2e-5)
    # RQ-VQA: the mean over clips, then over width, height and time.
    yield fixture.close("feature_rqvqa", rows["feature"][:, 0].mean(dim=0), relative=2e-5)
    yield fixture.close("score_map", score_map[0], _RELATIVE)
    yield fixture.close("score", rows["score"][0, 0], absolute=1e-5)


def play_fastvqa_sampling(fixture: Fixture) -> Iterator[Check]:
    """Frame indices for some lengths and fragments for some sizes; draws are the recipe's."""
    extractor = FastVqa(weights="random")
    for what in fixture.expected:
        if match := re.fullmatch(r"N(\d+)\.indices", what):
            yield from _play_indices(fixture, extractor, int(match[1]))
        elif match := re.fullmatch(r"(\d+)x(\d+)\.u8_sample", what):
            yield from _play_mosaics(fixture, extractor, int(match[1]), int(match[2]))


def _play_indices(fixture: Fixture, extractor: FastVqa, count: int) -> Iterator[Check]:
    sampling = extractor.sampling
    assert isinstance(sampling, RandomSegments)
    bound = sampling.bound(count)
    name = f"{fixture.name}/{fixture.letter}/N{count}"
    starts = _hashed(f"{name}/t", (sampling.segments,), bound)
    yield fixture.equal(f"N{count}.bound_t", np.array([bound]))
    yield fixture.equal(f"N{count}.draws_t", starts)
    yield fixture.equal(f"N{count}.indices", sampling.frames(count, starts).reshape(-1))


def _play_mosaics(fixture: Fixture, extractor: FastVqa, height: int, width: int) -> Iterator[Check]:
    what = f"{height}x{width}"
    name = f"{fixture.name}/{fixture.letter}/{what}"
    view = extractor.fragments
    sampling = extractor.sampling
    assert isinstance(sampling, RandomSegments)
    clips, length = sampling.segments, sampling.length
    bounds = view.bounds(height, width)
    shape = (view.grid, view.grid, clips)
    drawn = [_hashed(f"{name}/{axis}", shape, b) for axis, b in zip("hw", bounds, strict=True)]
    yield fixture.equal(f"{what}.bounds_hw", np.array(bounds))
    yield fixture.equal(f"{what}.rnd_h", drawn[0])
    yield fixture.equal(f"{what}.rnd_w", drawn[1])

    enlarged = min(height, width) < view.grid * view.side
    offsets = np.stack(drawn, axis=-1)
    pictures = _channels_first(frames(name, 2 * clips, height, width))  # two in turn in each clip
    pairs = torch.stack(
        [view.cut(pictures[2 * clip : 2 * clip + 2], offsets[:, :, clip]) for clip in range(clips)]
    )
    cells = pairs.unflatten(-1, (view.grid, -1)).unflatten(-3, (view.grid, -1))
    means = cells.double().mean(dim=(2, 4, 6))
    # The recipe has no tolerance for means.  One value of a cell off by a level is 3e-4.
    yield fixture.close(f"{what}.cell_mean", means, absolute=1e-2 if enlarged else 1e-4)

    alternating = pairs[:, torch.arange(length) % 2]  # [clips, length, 3, h, w]
    video = alternating.flatten(0, 1).transpose(0, 1).contiguous()
    stride = int(fixture.expected[f"{what}.u8_stride"][0])
    yield fixture.equal(f"{what}.u8_stride", np.array([stride]))
    sample = video.flatten()[::stride]
    if enlarged:
        # One level on less than a thousandth; of the hash nothing is asked.
        yield _levels(fixture, f"{what}.u8_sample", sample, share=1e-3)
    else:
        yield fixture.equal(f"{what}.u8_sample", sample)
        digest = hashlib.sha256(video.numpy().tobytes()).digest()
        yield fixture.equal(f"{what}.u8.sha256", np.frombuffer(digest, np.uint8))
    pixels = normalise(alternating, IMAGENET_MEAN, IMAGENET_STD).transpose(1, 2)
    tolerance = _LEVEL if enlarged else 1e-5
    yield from fixture.sampled(f"{what}.net_input", pixels, absolute=tolerance)


def play_fragments(fixture: Fixture) -> Iterator[Check]:
    """Fragments by both rules for small videos, for some sizes."""
    for what, case in fixture.input.items():
        pictures = _channels_first(frames(*case["frames"]))
        official = Fragments()
        offsets = _modulo(case, official, pictures)
        mosaics = official.cut(pictures, offsets)
        yield fixture.equal(f"{what}_rnd_h", offsets[..., 0])
        yield fixture.equal(f"{what}_rnd_w", offsets[..., 1])
        if min(pictures.shape[-2:]) >= official.grid * official.side:
            yield fixture.equal(f"{what}_u8", _thinned(mosaics))
            video = mosaics[torch.arange(32) % len(mosaics)].transpose(0, 1).contiguous()
            digest = hashlib.sha256(video.numpy().tobytes()).hexdigest()
            yield fixture.equal(f"{what}_u8_sha256", np.frombuffer(digest.encode(), np.uint8))
            continue
        # A level either way is allowed; the hashes are only informative.
        yield _levels(fixture, f"{what}_u8", _thinned(mosaics), share=1)
        floats = official.cut(pictures.float(), offsets)
        yield fixture.close(f"{what}_f32", _thinned(floats), absolute=1e-3)
        corrected = Fragments(small_videos="corrected")
        mosaics = corrected.cut(pictures, _modulo(case, corrected, pictures))
        yield _levels(fixture, f"{what}_fixed_u8", _thinned(mosaics), share=1)


def _modulo(case: Any, view: Fragments, pictures: Tensor) -> NDArray[np.int64]:
    """[grid, grid, 2]: the offsets that the recipe makes of its random arrays."""
    height, width = pictures.shape[-2:]
    offsets = np.zeros((view.grid, view.grid, 2), dtype=np.int64)
    for axis, bound in enumerate(view.bounds(height, width)):
        if bound:
            name, shape = case["hw"[axis]]
            values = np.floor(1000 * np.abs(array(name, tuple(shape)))).astype(np.int64)
            offsets[..., axis] = values[..., 0] % bound
    return offsets


def _hashed(name: str, shape: tuple[int, ...], bound: int) -> NDArray[np.int64]:
    """What the recipe draws below `bound`; zeros where that is 0."""
    if not bound:
        return np.zeros(shape, dtype=np.int64)
    draws = [zlib.crc32(f"{name}/{k}".encode()) % bound for k in range(math.prod(shape))]
    return np.array(draws).reshape(shape)


def _levels(fixture: Fixture, what: str, got: Tensor, *, share: float) -> Check:
    """The share of values that are a grey level off; infinite if one is further off."""
    if what not in fixture.expected or tuple(got.shape) != fixture.expected[what].shape:
        raise GoldenError(f"{fixture.name}.{fixture.letter}.npz has no {what} of this shape")
    off = np.abs(got.numpy().astype(int) - fixture.expected[what].astype(int))
    return Check(what, math.inf if off.max() > 1 else float((off > 0).mean()), share)


def _thinned(mosaics: Tensor) -> Tensor:
    """[3, 4, h / 8, w / 8]: every eighth row and column, as the recipe keeps them."""
    return mosaics[:4, :, ::8, ::8].transpose(0, 1)


def _channels_first(pictures: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2)
