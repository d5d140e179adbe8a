"""Tiers of restoration: what each is, and the text tower that goes with their embeddings."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from vqbank.extractors.restoration import reduced
from vqbank.extractors.sampling import Timeline
from vqbank.extractors.tiers import PROMPTS, Tiers, WholeFrames, tiers
from vqbank.extractors.views import CLIP_MEAN, CLIP_STD, Squash, normalise
from vqbank.regressors.tail import load_text_tail
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import InvalidFeatureError
from vqbank.store.tail import read_tokens, write_tail

CPU = torch.device("cpu")
TINY = Tiers(weights="random-tiny")


@pytest.fixture(scope="module")
def clip(frames):
    """uint8 [7, 3, 66, 97]."""
    return torch.from_numpy(frames("tiers", 7, 66, 97)).permute(0, 3, 1, 2)


def test_tiers_are_the_enlarged_the_restored_and_the_original(clip):
    network, whole = TINY.load(), WholeFrames()(clip)
    assert whole.shape == (7, 3, 64, 96)
    with torch.inference_mode():
        worst, middle, best = tiers(network, whole)
        small = reduced(whole / 255)
        expected = interpolate(small, size=(64, 96), mode="bicubic", align_corners=False)
        again = torch.stack(list(network.upscaled(small)))

    assert torch.equal(best, whole)
    for tier, made in ((worst, expected), (middle, again)):
        assert tier.dtype == torch.uint8
        assert (tier.float() - 255 * made.clamp(0, 1)).abs().max() <= 0.501


def test_a_row_has_the_embedding_of_every_frame_of_every_tier(clip):
    with torch.inference_mode():
        found = TINY.build(CPU)(TINY.view(clip)[None])["embedding"]
        tower = TINY.load_clip().visual.eval()
        squares = Squash(32, 32, "bicubic")(WholeFrames()(clip))
        expected = tower(normalise(squares, CLIP_MEAN, CLIP_STD))

    assert found.shape == (1, 1, 3, 7, 512)
    torch.testing.assert_close(found[0, 0, 2], expected)
    assert not torch.allclose(found[0, 0, 0], expected)


def test_a_septuplet_is_one_clip_and_a_longer_video_has_as_many_as_asked():
    seven = Timeline(np.arange(7) / 25, 7, 25, "v", 64, 64)
    assert TINY.sampling.clips(seven).frames.tolist() == [list(range(7))]
    many = replace(TINY, clips=3).sampling.clips(Timeline(np.arange(40) / 25, 40, 25, "v", 64, 64))
    assert many.frames.shape == (3, 7)


def test_the_key_changes_with_the_weights_of_either_network(tmp_path):
    key = TINY.specs(decoder="pyav")["embedding"].key
    assert replace(TINY, prompts=("one",)).specs(decoder="pyav")["embedding"].key == key
    assert replace(TINY, clips=2).specs(decoder="pyav")["embedding"].key != key
    assert replace(TINY, weights="random").specs(decoder="pyav")["embedding"].key != key
    assert TINY.specs(decoder="pyav")["embedding"].identity["clip"] == "random-tiny"


def test_frames_without_four_rows_are_refused():
    with pytest.raises(InvalidFeatureError, match="frames of 9 x 3 are too small for tiers"):
        WholeFrames()(torch.zeros(7, 3, 3, 9, dtype=torch.uint8))


def test_the_text_tower_lies_beside_the_embeddings_with_every_prompt(tmp_path):
    store = FeatureStore.create(tmp_path / "bank")
    spec = TINY.specs(decoder="pyav")["embedding"]
    write_tail(store, spec, TINY.tail("embedding"))
    folder = store.path / spec.key / "tail"
    text = load_text_tail(folder)
    tokens = torch.from_numpy(read_tokens(folder, PROMPTS))
    with torch.inference_mode():
        expected = TINY.load_clip().eval().encode_text(tokens)
        found = text(text.embed(tokens), tokens.argmax(dim=1))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert len(PROMPTS) == 18
