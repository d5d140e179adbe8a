"""Videos and weights that are not as they should be: one clear error each, and nothing banked."""

import pickle
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from vqbank.extractors import EXTRACTORS, make_extractor, specs_of
from vqbank.extractors import video as decoding
from vqbank.extractors.clip import Clip
from vqbank.extractors.liqe import Liqe
from vqbank.pipelines.extraction.extract import Extraction
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import WeightsError
from vqbank.store.schema import Video

CPU = torch.device("cpu")
PARAMETERS = {"backbone": {"model": "timm:resnet10t"}, "iqa": {"metric": "cnniqa"}}


def untrained(name):
    parameters = dict(PARAMETERS.get(name, {}))
    kind = EXTRACTORS[name]
    if "weights" in {field.name for field in fields(kind)}:
        parameters["weights"] = "random-tiny" if kind.has_tiny else "random"
    return make_extractor(name, **parameters)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Portrait, smaller than any network's input, two rows too many for a multiple of four."""
    folder = tmp_path_factory.mktemp("small")
    found = []
    for count in (1, 20):
        pictures = np.random.default_rng(count).integers(0, 256, (count, 130, 74, 3), np.uint8)
        path = folder / f"{count}.mp4"
        decoding.encode(path, iter(pictures), rate=30, crf=20)
        found.append(Video(f"set/{path.name}", path))
    return found


def test_one_and_twenty_small_portrait_frames_are_banked(videos, tmp_path):
    """By every extractor, in one run; `residual` has its own."""
    extractors = {name: untrained(name) for name in EXTRACTORS if name != "residual"}
    store = FeatureStore.create(tmp_path / "bank")
    ones = dict.fromkeys(EXTRACTORS, 1)  # clips in a batch: nothing is padded
    run = Extraction(
        videos, list(extractors.values()), store, decoder="pyav", device=CPU, batch_clips=ones
    )
    assert not [failure for outcome in run.run() for failure in outcome.failures.items()]
    for extractor in extractors.values():
        for spec in specs_of(extractor, decoder="pyav").values():
            for video in videos:
                assert store.read(spec, video.id).frame_index.max() < int(video.path.stem)


def test_what_one_extractor_refuses_costs_the_others_nothing(videos, tmp_path):
    liqe, frames = untrained("liqe"), untrained("frames")
    liqe = replace(liqe, weights="random", outputs=("feature",))  # which looks at 224 x 224
    store = FeatureStore.create(tmp_path / "bank")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Liqe, "text_spec", lambda self: None)  # 495 prompts take a minute
        run = Extraction(videos, [liqe, frames], store, decoder="pyav", device=CPU)
        failures = {outcome.video: outcome.failures for outcome in run.run()}
    (refused,), (banked,) = (specs_of(one, decoder="pyav").values() for one in (liqe, frames))
    for video in videos:
        (why,) = failures[video].values()
        assert "frames of 74 x 130 are too small for liqe" in why
        assert len(store.read(banked, video.id).values) == 32
    assert store.missing(refused, videos) == videos


def cut_short(state, path):
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-5000])


def of_another_model(state, path):
    torch.save({"features.0.weight": torch.zeros(2)}, path)


class Code:
    def __reduce__(self):
        return print, ("this was run",)


def with_code(state, path):
    path.write_bytes(pickle.dumps({**state, "extra": Code()}))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (cut_short, r"weights\.pt is damaged or no weight file"),
        (of_another_model, r"weights\.pt holds the weights of another network; missing: "),
        (with_code, r"weights\.pt asks for code to be run when it is loaded, which is never done"),
    ],
)
def test_weights_that_are_none_stop_the_run_and_nothing_is_banked(
    write, message, videos, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("VQBANK_CACHE", str(tmp_path / "cache"))
    state = {f"{n}.weight": torch.zeros(1000) for n in range(9)}
    write(state, tmp_path / "weights.pt")
    store = FeatureStore.create(tmp_path / "bank")
    extractor = Clip(weights=str(tmp_path / "weights.pt"))
    with pytest.raises(WeightsError, match=message):
        list(Extraction(videos, [extractor], store, decoder="pyav", device=CPU).run())
    (spec,) = specs_of(extractor, decoder="pyav").values()
    assert store.missing(spec, videos) == videos
    assert capsys.readouterr().out == ""


def test_a_published_file_with_another_hash_stops_before_any_video_is_opened(
    videos, tmp_path, monkeypatch
):
    monkeypatch.setenv("VQBANK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VQBANK_WEIGHTS", str(tmp_path))
    (tmp_path / Clip.files[0].save_as).write_bytes(b"not these")
    store = FeatureStore.create(tmp_path / "bank")
    with pytest.raises(WeightsError, match=r"is not the file published at https://.* \(sha256 "):
        Extraction(videos, [Clip()], store, decoder="pyav", device=CPU)
    assert store.specs() == []
