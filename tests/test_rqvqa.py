"""The whole set of features of RQ-VQA, over real videos, with weights that nobody trained."""

from importlib.resources import files

import numpy as np
import pytest
import torch

from vqbank.extractors import EXTRACTORS, make_extractor
from vqbank.pipelines.extraction.extract import Extraction
from vqbank.pipelines.manifest import read_videos
from vqbank.pipelines.recipe import read_recipe
from vqbank.store.bank import FeatureStore

# RQ-VQA's `model/RQ_VQA.py`: the spatial feature, then the others as they are given.
OFFICIAL = {"spatial": 1024, "motion": 256, "qalign": 4096, "liqe": 495, "fastvqa": 768}
SLOTS = 8
TINY = ("swin", "qalign", "liqe")  # in the width that is published


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "rqvqa.yaml"
    path.write_text(files("vqbank.pipelines").joinpath("recipes/rqvqa.yaml").read_text())
    return read_recipe(path)


def extractors(recipe):
    return [
        make_extractor(name, weights="random-tiny" if name in TINY else "random", **parameters)
        for name, parameters in recipe.extractors.items()
        if name != "thumbnail"
    ]


def slots(table, role, row):
    """[8, d]: the first eight, the last one repeated; of fragments the mean, in every slot."""
    values = table.series(role, row).astype(np.float32)
    if role == "fastvqa":
        values = values.mean(axis=0, keepdims=True)
    return values[np.minimum(np.arange(SLOTS), len(values) - 1)]


def test_the_recipe_names_the_official_features_in_their_order(recipe):
    offered = {
        spec.name: spec.shape
        for extractor in extractors(recipe)
        for spec in extractor.specs(decoder="pyav").values()
    }
    shapes = {role: offered[feature] for role, feature in recipe.features.items()}
    assert list(shapes.items()) == [(role, (width,)) for role, width in OFFICIAL.items()]
    assert sum(OFFICIAL.values()) == 6639
    assert all(EXTRACTORS[name].has_tiny for name in TINY)


@pytest.mark.golden
def test_real_videos_get_the_official_row(recipe, shared_data, tmp_path):
    videos = read_videos(shared_data / "clips")
    store = FeatureStore.create(tmp_path / "bank")
    run = Extraction(
        videos, extractors(recipe), store, decoder="pyav", device=torch.device("cpu"), threads=2
    )
    assert not [failure for outcome in run.run() for failure in outcome.failures.items()]
    table = store.table(videos, recipe.features)
    assert table.roles == tuple(OFFICIAL)
    fused = []
    for row in range(len(videos)):
        seconds = len(table.series("spatial", row))
        assert len(table.series("qalign", row)) == len(table.series("liqe", row)) == seconds
        assert len(table.series("motion", row)) in (seconds, seconds - 1)
        assert len(table.series("fastvqa", row)) == 4
        fused.append(np.concatenate([slots(table, role, row) for role in table.roles], axis=1))
    fused = np.stack(fused)
    assert fused.shape == (len(videos), SLOTS, 6639)
    assert np.isfinite(fused).all()
    # Every feature has something to say of every slot, and of different videos different things.
    ends = np.cumsum(list(OFFICIAL.values()))
    for part in np.split(fused, ends[:-1], axis=2):
        assert (part.std(axis=2) > 0).all()
        assert not np.array_equal(part[0], part[-1])
