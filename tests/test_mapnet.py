"""FAST-VQA's own head on banked maps: its parts, what it learns, and what changes no score."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vqbank.extractors.fastvqa import FastVqa
from vqbank.regressors import make_head
from vqbank.regressors.batches import PaddedBatch
from vqbank.regressors.mapnet import MapScores
from vqbank.regressors.metrics import srcc
from vqbank.store.schema import Video
from vqbank.store.table import FeatureTable


def network(channels=6, hidden=4, dropout=0.0, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return MapScores({"map": channels}, hidden, dropout=dropout, generator=draw)


def batch_of(maps, lengths=None, noise=0):
    counts = torch.tensor(lengths or [maps.shape[1]] * len(maps))
    mask = torch.arange(maps.shape[1]) < counts[:, None]
    return PaddedBatch({"map": maps}, mask, torch.tensor(noise))


def test_it_has_the_numbers_of_fast_vqas_head_but_for_the_last_bias():
    with torch.device("meta"):
        made = MapScores({"map": 768}, 64, dropout=0.0, generator=torch.Generator())
    assert sum(value.numel() for value in made.parameters()) == 49_281 - 1


def test_with_fast_vqas_weights_it_says_what_the_backbones_own_head_says():
    extractor = FastVqa(weights="random-tiny")
    fastvqa, draw = extractor.load(), torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, *extractor.architecture.map_shape, generator=draw)
    hidden, last = fastvqa.vqa_head.fc_hid, fastvqa.vqa_head.fc_last
    made = network(maps.shape[2], hidden.out_channels).eval()
    (part,) = made.parts
    part.hidden.weight.data.copy_(hidden.weight.flatten(1))
    part.hidden.bias.data.copy_(hidden.bias)
    part.out.weight.data.copy_(last.weight.flatten(1))
    with torch.inference_mode():
        own = fastvqa.scores(maps.flatten(0, 1)).mean(dim=(1, 2, 3)).unflatten(0, (2, 3))
        expected = own.mean(dim=1) - last.bias
        torch.testing.assert_close(made(batch_of(maps)), expected, atol=1e-5, rtol=1e-4)


def test_clips_behind_the_last_one_are_not_seen():
    maps = torch.randn(2, 3, 6, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    made = network().eval()
    alone = made(batch_of(maps[:1, :2]))
    torch.testing.assert_close(made(batch_of(maps, [2, 3]))[0], alone[0], atol=1e-6, rtol=1e-5)


def test_dropout_drops_places_anew_at_every_step_and_none_where_a_video_is_judged():
    maps = torch.randn(2, 3, 6, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    made = network(dropout=0.5)
    one, same, other = (made.train()(batch_of(maps, noise=noise)) for noise in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    longer = torch.cat([maps, torch.ones(2, 2, 6, 2, 2, 2)], dim=1)
    padded = made(batch_of(longer, [3, 3], noise=1))
    torch.testing.assert_close(padded, one, atol=1e-6, rtol=1e-5)
    assert torch.equal(made.eval()(batch_of(maps, noise=1)), made(batch_of(maps, noise=2)))


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_what_stands_at_places_is_learnt_where_means_of_maps_say_nothing(dropout):
    rng = np.random.default_rng(0)
    spread = rng.uniform(0.5, 2, size=200)  # of a channel whose mean is 0 in every clip
    maps = []
    for scale in spread:
        one = rng.normal(size=(rng.integers(1, 5), 6, 2, 4, 4))
        one[:, 0] *= scale
        one[:, 0] -= one[:, 0].mean(axis=(1, 2, 3), keepdims=True)
        maps.append(one.astype(np.float16))
    videos = [Video(f"set/{row}.mp4", Path(f"{row}.mp4"), scene=str(row)) for row in range(200)]
    table = FeatureTable.from_arrays(videos, {"map": maps})
    pooled = FeatureTable.from_arrays(
        videos, {"map": [one.astype(np.float32).mean(axis=(2, 3, 4)) for one in maps]}
    )
    found = []
    for seen in (table, pooled):
        head = make_head("mapnet", hidden=16, learning_rate=1e-2, dropout=dropout, epochs=15)
        head.fit(seen.subset(range(150)), spread[:150])
        found.append(srcc(spread[150:], head.predict(seen.subset(range(150, 200)))))
    assert found[0] > 0.8
    assert found[1] < 0.35


def test_the_paper_form_drops_what_the_official_code_drops():
    made = make_head("mapnet", preset="paper")
    assert (made.dropout, made.hidden, made.loss, made.epochs) == (0.5, 64, "plcc+rank", 30)
