"""RQ-VQA's trained attention: the official blocks, statistics of real rows, what it learns."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vqbank.extractors.networks.bottleneck_transformer import BottleneckStack
from vqbank.regressors import load_head, make_head
from vqbank.regressors.batches import Input, PaddedBatch
from vqbank.regressors.bottleneck import Stack
from vqbank.regressors.metrics import srcc
from vqbank.regressors.mhsa import Mhsa
from vqbank.store.errors import HeadError
from vqbank.store.schema import Video
from vqbank.store.table import FeatureTable

SIZES = {"blocks": 2, "channels": 12, "bottleneck": 8, "heads": 2, "head_channels": 4}
SMALL = {"blocks": 1, "bottleneck": 8, "heads": 2, "head_channels": 4, "width": 8}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def tokens_table(n=60, *, slots=2, seed=0):
    """Maps of 3 x 3 places; the MOS is how like two places of a map are, which no mean tells."""
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=(n, slots, 9, 6)).astype(np.float32)
    mos = rng.uniform(1, 5, n)
    maps[..., 0] = np.sign(rng.normal(size=(n, slots, 9))) * mos[:, None, None]
    videos = [Video(f"set/{row}.mp4", Path(f"{row}.mp4")) for row in range(n)]
    series = {"tokens": list(maps), "motion": list(rng.normal(size=(n, slots, 4)))}
    return FeatureTable.from_arrays(videos, series), mos


def test_the_blocks_are_those_that_extraction_runs():
    """Weight for weight under the same names, in evaluation and by the statistics of a batch."""
    ours = Stack(**SIZES, size=(3, 3), generator=generator())
    theirs = BottleneckStack(**SIZES, side=3)
    with torch.no_grad():
        for value in ours.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=generator(1)))
    theirs.load_state_dict(ours.state_dict())
    maps = torch.randn(5, 12, 3, 3, generator=generator(2))
    for training in (True, False):
        expected = theirs.train(training)(maps)
        torch.testing.assert_close(ours.train(training)(maps), expected, rtol=0, atol=1e-6)


def test_it_has_the_official_number_of_weights():
    """RQ-VQA: 3.567 M in three blocks, 0.850 M in the two layers on 6639 values."""
    inputs = {"tokens": Input((144, 1024), torch.float16), "others": Input((5615,), torch.float16)}
    network = Mhsa()._network(inputs, generator())
    counts = {
        name: sum(value.numel() for value in part.parameters())
        for name, part in network.named_children()
    }
    assert counts == {"bot4": 3_567_360, "quality": 850_049}


def test_at_its_start_it_is_a_linear_layer_on_the_mean_of_what_is_positive():
    inputs = {"tokens": Input((9, 6), torch.float32)}
    network = make_head("mhsa", **SMALL)._network(inputs, generator()).eval()
    maps = torch.randn(2, 3, 9, 6, generator=generator(1))
    batch = PaddedBatch({"tokens": maps}, torch.ones(2, 3, dtype=torch.bool), torch.tensor(0))
    rows = network.quality(maps.clamp(min=0).mean(dim=2))[..., 0]
    torch.testing.assert_close(network(batch), rows.mean(dim=1))


def test_statistics_of_a_batch_are_of_real_rows_alone():
    inputs = {"tokens": Input((9, 6), torch.float32), "motion": Input((4,), torch.float32)}
    network = make_head("mhsa", **SMALL)._network(inputs, generator()).train()
    torch.nn.init.ones_(network.bot4.net[0].net[8].weight)  # else nothing of the norms is seen
    values = {
        "tokens": torch.randn(2, 4, 9, 6, generator=generator(1)),
        "motion": torch.randn(2, 4, 4, generator=generator(2)),
    }
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    scores, padded = [], []
    for filler in (0.0, 100.0):
        for value in values.values():
            value[1, 2:] = filler
        network.load_state_dict(network.state_dict())
        scores.append(network(PaddedBatch(dict(values), mask, torch.tensor(0))))
        everything = torch.ones_like(mask)
        padded.append(network(PaddedBatch(dict(values), everything, torch.tensor(0))))
    torch.testing.assert_close(*scores)
    assert not torch.allclose(*padded)


def test_it_learns_and_keeps_its_statistics(tmp_path):
    table, mos = tokens_table()
    head = make_head("mhsa", **SMALL, epochs=30, patience=30, learning_rate=1e-2)
    head.fit(table, mos)
    unseen, theirs = tokens_table(seed=5)
    predicted = head.predict(unseen)
    assert srcc(predicted, theirs) > 0.8
    kept = head.ensemble_.state
    assert {"bot4.net.0.net.8.running_mean", "bot4.net.0.net.8.running_var"} <= kept.keys()
    assert kept["bot4.net.0.net.1.running_var"].std() > 0
    head.save(tmp_path / "head")
    np.testing.assert_array_equal(load_head(tmp_path / "head").predict(unseen), predicted)


def test_places_that_make_no_square_stand_in_one_row():
    inputs = {"tokens": Input((5, 6), torch.float32)}
    network = make_head("mhsa", **SMALL)._network(inputs, generator())
    positions = network.bot4.net[0].net[3].pos_emb
    assert positions.rel_height.shape == (1, 4)
    assert positions.rel_width.shape == (9, 4)
    batch = PaddedBatch({"tokens": torch.randn(2, 1, 5, 6)}, torch.ones(2, 1, dtype=torch.bool), 0)
    assert network(batch).shape == (2,)


def test_rows_that_are_no_map_are_refused():
    videos = [Video(f"set/{row}.mp4", Path(f"{row}.mp4")) for row in range(12)]
    table = FeatureTable.from_arrays(videos, {"frames": [np.zeros((2, 3, 3, 6))] * 12})
    with pytest.raises(HeadError, match=r"frames, has rows of 3 x 3 x 6; it takes those of a map"):
        make_head("mhsa", **SMALL).fit(table, np.arange(12.0))
