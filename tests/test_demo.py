"""The whole main job, on fewer degradations than `make demo` has."""

import numpy as np
import pytest
import torch
from rich.console import Console

from vqbank.pipelines.demo import clips as demo_clips
from vqbank.pipelines.demo import demo
from vqbank.pipelines.experiments.evaluate import Trial
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

    def evaluate(trial: Trial):
        results.append(list(trial.run()))
        return results[-1]

    results: list = []
    kept = {"pristine", "crf_47", "blur_2.5", "crf_40"}
    fewer = tuple(d for d in demo_clips.DEGRADATIONS if d.name in kept)
    with pytest.MonkeyPatch.context() as patch, (folder / "log.txt").open("w") as log:
        patch.setattr(demo_clips, "DEGRADATIONS", fewer)
        for _ in range(2):
            demo.run_demo(folder, Console(file=log), extract=extract, evaluate=evaluate)
    return folder, runs, results


def test_unseen_scenes_are_ranked_and_the_second_run_decodes_nothing(ran):
    folder, decoded, (first, second) = ran

    assert decoded[0] > 0
    assert decoded[1] > 0
    assert decoded[2:] == [0, 0]
    # Four versions of a scene are fewer to learn from than the demo's thirteen, which reach 0.9.
    by_head = {result.head: [] for result in first}
    for result in first:
        by_head[result.head].append(result.metrics.srcc)
    assert max(np.median(values) for values in by_head.values()) >= 0.7
    assert [r.metrics.srcc for r in first] == [r.metrics.srcc for r in second]
    videos = read_videos(folder / "set" / "manifest.csv")
    for result in first:
        tested = {videos[row].scene for row in result.rows}
        assert len(tested) >= 3
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
