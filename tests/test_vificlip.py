import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as transforms

from vqbank.extractors.sampling import Timeline
from vqbank.extractors.vificlip import ViFiClip, our_keys
from vqbank.store.errors import WeightsError

CPU = torch.device("cpu")


class Small(ViFiClip):
    """Reads files as the official network does, in its tiny configuration."""

    configuration = ViFiClip(weights="random-tiny").configuration


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VQBANK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VQBANK_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


@pytest.fixture
def files(tmp_path):
    """A checkpoint and a file with the token table, of the tiny network's random weights."""
    state = ViFiClip(weights="random-tiny").load(with_table=True).state_dict()
    official = {}
    for key, value in state.items():
        if key.startswith("visual."):
            official[key.replace("visual.", "module.image_encoder.", 1)] = value
        elif key == "logit_scale":
            official["module.logit_scale"] = value
        elif key != "token_embedding.weight":
            official[f"module.text_encoder.{key}"] = value
    official["module.prompt_learner.complete_text_embeddings"] = torch.zeros(2, 77, 16)
    torch.save({"model": official, "epoch": 9}, tmp_path / "vifi.pth")
    table = {key: state[key] for key in ("token_embedding.weight", "visual.proj")}
    torch.save(table, tmp_path / "table.pt")
    return {"weights": str(tmp_path / "vifi.pth"), "token_table": str(tmp_path / "table.pt")}


def test_frames_are_the_middles_of_32_parts():
    for count in (1, 31, 32, 100):
        timeline = Timeline(np.arange(count) / 25, count, 25.0, "v", 64, 64)
        frames = ViFiClip(weights="random").sampling.clips(timeline).frames[:, 0]
        assert frames.tolist() == [int(i * count / 32 + count / 64) for i in range(32)]


@pytest.mark.parametrize("size", [(270, 480), (480, 270), (100, 131), (256, 300), (225, 224)])
def test_frames_are_resized_without_antialiasing(frames, size):
    """Within a level of torchvision's own, which rounds otherwise; the fixture has OpenCV's."""
    height, width = size
    picture = torch.from_numpy(frames("vifi", 1, height, width)).permute(0, 3, 1, 2)
    factor = 256 / min(size)
    target = [int(height * factor + 0.5), int(width * factor + 0.5)]
    whole = transforms.resize(picture, target, antialias=False).int()
    top, left = (target[0] - 224) // 2, (target[1] - 224) // 2
    expected = whole[..., top : top + 224, left : left + 224]
    assert (ViFiClip(weights="random").view(picture).int() - expected).abs().max() <= 1


def test_a_checkpoint_gives_the_rows_and_the_text_of_its_weights(files, frames):
    prompts = ("a photo of a cat.", "a photo of a noisy_blurry video.")
    small, tiny = Small(**files, prompts=prompts), ViFiClip(weights="random-tiny", prompts=prompts)
    clips = tiny.view(torch.from_numpy(frames("vifi", 3, 50, 70)).permute(0, 3, 1, 2))[:, None]
    with torch.inference_mode():
        rows = small.build(CPU)(clips)["feature"]
        assert torch.equal(rows, tiny.build(CPU)(clips)["feature"])
    text, expected = small.text(CPU), tiny.text(CPU)
    assert text.prompts == prompts
    np.testing.assert_array_equal(text.values, expected.values)
    np.testing.assert_allclose(np.linalg.norm(text.values, axis=1), 1, atol=1e-6)
    assert text.scale == expected.scale


def test_the_token_table_is_needed_for_text_alone_and_in_its_key(files, tmp_path):
    without = Small(weights=files["weights"])
    with_table = Small(**files)
    assert without.build(CPU)
    assert without.specs(decoder="pyav") == with_table.specs(decoder="pyav")
    with pytest.raises(WeightsError, match=r"token_table: weights 'openai' not found.*OpenAI"):
        without.text_spec()
    assert Small(weights=files["weights"], prompts=()).text_spec() is None
    other = tmp_path / "other.pt"
    torch.save({"token_embedding.weight": torch.zeros(49408, 16)}, other)
    changed = Small(weights=files["weights"], token_table=str(other))
    assert changed.text_spec().key != with_table.text_spec().key


def test_prompts_are_in_the_key_of_the_text_alone():
    one, other = (ViFiClip(weights="random", prompts=prompts) for prompts in (("a",), ("b",)))
    assert one.specs(decoder="pyav") == other.specs(decoder="pyav")
    assert one.text_spec().key != other.text_spec().key


def test_a_table_of_another_network_is_refused(files, tmp_path):
    torch.save({"token_embedding.weight": torch.zeros(7, 16)}, tmp_path / "table.pt")
    with pytest.raises(WeightsError, match=r"table\.pt holds .* of another shape: token_embedding"):
        Small(**files).text(CPU)


def test_a_checkpoint_of_another_network_is_refused(files, tmp_path):
    torch.save({"model": {"module.fc.weight": torch.zeros(2)}}, tmp_path / "vifi.pth")
    with pytest.raises(WeightsError, match=r"missing: .* more; unexpected: fc\.weight"):
        Small(**files).build(CPU)


def test_class_prompts_that_it_was_trained_on_are_dropped():
    state = {"module.prompt_learner.complete_text_embeddings": torch.zeros(1), "x": torch.ones(1)}
    assert our_keys(state).keys() == {"x"}


def test_places_of_a_frame_are_projected_as_its_feature_which_is_their_first(frames):
    tiny = ViFiClip(weights="random-tiny", outputs=("feature", "tokens"))
    clips = tiny.view(torch.from_numpy(frames("vifi", 3, 50, 70)).permute(0, 3, 1, 2))[:, None]
    with torch.inference_mode():
        both = tiny.build(CPU)(clips)
        usual = ViFiClip(weights="random-tiny").build(CPU)(clips)
        only = ViFiClip(weights="random-tiny", outputs=("tokens",)).build(CPU)(clips)
    assert both["tokens"].shape == (3, 1, 5, 512)
    assert torch.equal(both["feature"], usual["feature"])
    assert torch.equal(only["tokens"], both["tokens"])
    assert only.keys() == {"tokens"}
    first = both["tokens"][:, :, 0]
    torch.testing.assert_close(first, both["feature"], atol=1e-5, rtol=1e-4)
    assert both["tokens"].std(dim=2).min() > 0
    specs = tiny.specs(decoder="pyav")
    assert specs["feature"] == ViFiClip(weights="random-tiny").specs(decoder="pyav")["feature"]
    assert specs["tokens"].shape == (5, 512)


def test_the_choice_of_frames_is_in_the_key():
    keys = {
        ViFiClip(weights="random", frames=frames).specs(decoder="pyav")["feature"].key
        for frames in ("centres", "consecutive")
    }
    assert len(keys) == 2
