"""The whole main job, on fewer degradations than `make demo` has."""

import numpy as np
import pytest
import torch
from rich.console import Console

from vqbank.pipelines.demo import clips as demo_clips
from vqbank.pipelines.demo import demo
from vqbank.pipelines.experiments import experiment
from vqbank.pipelines.manifest import read_videos
from vqbank.pipelines.predict import Scorer
from vqbank.store.bank import FeatureStore


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Run the demo twice on all scenes with four versions each."""
    folder = tmp_path_factory.mktemp("demo")
    runs = []

    def extract(extraction):
        assert not [outcome for outcome in extraction.run() if outcome.failures]
        runs.append(extraction.decoded_frames)
        return set()

    def evaluate(made: experiment.Experiment):
        records.append(experiment.evaluate(made))
        return records[-1]

    records: list = []
    kept = {"pristine", "crf_47", "blur_2.5", "crf_40"}
    fewer = tuple(d for d in demo_clips.DEGRADATIONS if d.name in kept)
    with pytest.MonkeyPatch.context() as patch, (folder / "log.txt").open("w") as log:
        patch.setattr(demo_clips, "DEGRADATIONS", fewer)
        for _ in range(2):
            demo.run_demo(folder, Console(file=log), extract=extract, evaluate=evaluate)
    return folder, runs, records


def test_unseen_scenes_are_ranked_and_the_second_run_decodes_nothing(ran):
    folder, decoded, (first, second) = ran

    assert decoded[0] > 0
    assert decoded[1] > 0
    assert decoded[2:] == [0, 0]
    # Four versions of a scene are fewer to learn from than the demo's thirteen, which reach 0.9.
    assert max(head.statistics["srcc"].median for head in first.heads) >= 0.7
    assert [h.per_split["srcc"] for h in first.heads] == [h.per_split["srcc"] for h in second.heads]
    scenes = {v.id: v.scene for v in read_videos(folder / "set" / "manifest.csv")}
    for test in first.tests:
        assert len({scenes[first.ids[row]] for row in test}) >= 3
    assert (folder / "report" / "report.html").exists()


def test_the_demos_head_scores_two_real_videos(ran, shared_data, tmp_path):
    scorer = Scorer(ran[0] / "head", weights={})
    videos = read_videos(shared_data / "clips")
    store = FeatureStore.create(tmp_path / "bank")

    outcomes = list(scorer.extraction(videos, store, device=torch.device("cpu")).run())
    scores = scorer.scores(videos, store, device=torch.device("cpu"))

    assert not any(outcome.failures for outcome in outcomes)
    assert scores.shape == (2,)
    assert np.isfinite(scores).all()
