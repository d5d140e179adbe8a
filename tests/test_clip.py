import hashlib
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from vqbank.extractors import clip as module
from vqbank.extractors import make_extractor
from vqbank.extractors.clip import Clip
from vqbank.extractors.clip_towers import architecture
from vqbank.extractors.sampling import EveryNth, KeyFrames
from vqbank.extractors.views import CLIP_MEAN, CLIP_STD, ShortSideCrop, Squash, normalise
from vqbank.store.errors import RecipeError, UnknownNameError, WeightsError

CPU = torch.device("cpu")
BLOCKS = 12  # of the tiny configuration


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VQBANK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VQBANK_WEIGHTS", str(tmp_path))


@pytest.fixture(scope="module")
def clips(frames):
    """uint8 [4, 1, 3, 64, 64]."""
    pictures = torch.from_numpy(frames("clip", 4, 90, 130)).permute(0, 3, 1, 2)
    return Clip(weights="random-tiny").view(pictures)[:, None]


def rows(clips, *outputs, **parameters):
    extractor = Clip(weights="random-tiny", outputs=outputs, **parameters)
    with torch.inference_mode():
        return extractor.build(CPU)(clips)


def keys(**parameters):
    extractor = Clip(**{"weights": "random", **parameters}, outputs=("embedding", "tokens"))
    return {name: spec.key for name, spec in extractor.specs(decoder="pyav").items()}


# The default stays what it was.


def test_the_default_is_what_open_clip_says_of_it():
    import open_clip

    clip = Clip()
    assert clip.configuration == open_clip.get_model_config(clip.model)
    published = open_clip.get_pretrained_cfg(clip.model, clip.weights)
    assert published.items() >= clip.preprocessing.items()
    assert published["quick_gelu"]
    ours = module._file(clip.weights, published["hf_hub"])
    assert (clip.file.url, clip.file.save_as) == (ours.url, ours.save_as)


def test_the_embedding_is_the_image_towers(clips):
    network = Clip(weights="random-tiny").load().eval()
    with torch.inference_mode():
        expected = network.encode_image(normalise(clips[:, 0], CLIP_MEAN, CLIP_STD))
    assert torch.equal(rows(clips)["embedding"][:, 0], expected)


# The cut.


@pytest.mark.parametrize("cut", range(BLOCKS))
def test_the_blocks_after_the_cut_make_the_embedding_of_the_tokens(clips, cut):
    tower = Clip(weights="random-tiny").load().eval().visual
    state = rows(clips, "tokens", cut=cut)["tokens"]
    assert state.shape == (4, 1, 17, 32)
    with torch.inference_mode():
        state = state[:, 0]
        for block in tower.transformer.resblocks[cut + 1 :]:
            state = block(state)
        embedding = tower.ln_post(state)[:, 0] @ tower.proj
    torch.testing.assert_close(embedding, rows(clips)["embedding"][:, 0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cut", [0, 2, None])
def test_outputs_are_the_same_bits_whatever_else_is_asked_for(clips, cut):
    both = rows(clips, "embedding", "tokens", cut=cut)
    assert both.keys() == {"embedding", "tokens"}
    assert torch.equal(both["embedding"], rows(clips, "embedding", cut=cut)["embedding"])
    assert torch.equal(both["tokens"], rows(clips, "tokens", cut=cut)["tokens"])


def test_the_block_is_in_the_key_of_the_tokens_alone():
    usual, last, other = keys(), keys(cut=11), keys(cut=8)
    assert usual == last
    assert other["embedding"] == usual["embedding"]
    assert other["tokens"] != usual["tokens"]


def test_tokens_are_banked_only_where_they_are_asked_for():
    clip = Clip(weights="random")
    assert clip.specs(decoder="pyav").keys() == {"embedding"}
    (tokens,) = replace(clip, outputs=("tokens",)).specs(decoder="pyav").values()
    assert (tokens.shape, tokens.stored_dtype, tokens.row_bytes) == ((50, 768), "float16", 76800)


def test_a_cut_behind_the_last_block_is_refused():
    with pytest.raises(RecipeError, match="cut 12, but ViT-B-32-quickgelu has blocks 0 to 11"):
        keys(cut=12)
    with pytest.raises(RecipeError, match="parameter 'cut' cannot be -1"):
        make_extractor("clip", weights="random", cut=-1)


# Frames.


def test_frames_are_taken_as_ram_vqa_does_where_that_is_said():
    usual = Clip(weights="random")
    assert (usual.sampling, usual.view) == (KeyFrames(), ShortSideCrop(224, 224, "bicubic"))
    ram = replace(usual, frame_step=8, resize_mode="squash")
    assert (ram.sampling, ram.view) == (EveryNth(8), Squash(224, 224, "bicubic"))
    named = [keys(), keys(frame_step=8), keys(frame_step=9), keys(resize_mode="squash")]
    assert len({key["embedding"] for key in named}) == 4
    assert keys(resize_mode="shortest") == keys()


# Other models.


def test_another_model_is_seen_as_open_clip_says():
    siglip = Clip(weights="webli", model="ViT-B-16-SigLIP")
    assert siglip.view == Squash(224, 224, "bicubic")
    assert siglip.preprocessing["mean"] == siglip.preprocessing["std"] == (0.5, 0.5, 0.5)
    pe = Clip(weights="random", model="PE-Core-L-14-336")
    assert pe.view == Squash(336, 336, "bilinear")
    # Two ways of preprocessing for one network.
    large = [
        Clip(weights=weights, model="ViT-L-14")
        for weights in ("laion400m_e31", "laion2b_s32b_b82k")
    ]
    assert [clip.preprocessing["mean"][0] for clip in large] == [CLIP_MEAN[0], 0.5]


def test_a_model_and_how_it_is_seen_stand_in_the_key():
    plain, large = keys(model="ViT-B-32"), keys(model="ViT-L-14")
    assert len({keys()["tokens"], plain["tokens"], large["tokens"]}) == 3
    (spec,) = Clip(weights="random", model="ViT-B-16-SigLIP").specs(decoder="pyav").values()
    assert spec.shape == (768,)
    assert spec.identity["model"] == "ViT-B-16-SigLIP"
    assert spec.identity["mean"] == spec.identity["std"] == [0.5, 0.5, 0.5]


def test_every_model_of_open_clip_is_offered_or_refused_with_a_reason():
    import open_clip

    clips = {model: Clip(weights="random", model=model) for model in open_clip.list_models()}
    refused = {model: reason for model, clip in clips.items() if (reason := refusal(clip))}
    assert {"coca_ViT-L-14", "xlm-roberta-base-ViT-B-32"} <= refused.keys()
    assert len(refused) < 20
    for model, reason in refused.items():
        assert f"parts of {model} from elsewhere" in reason


def refusal(clip):
    try:
        return "" if clip.specs(decoder="pyav") else "nothing is offered"
    except RecipeError as error:
        return str(error)


def test_an_unknown_model_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"open_clip model 'ViT-B32'.*'ViT-B-32'"):
        Clip(model="ViT-B32").specs(decoder="pyav")


def test_weights_trained_with_another_activation_are_refused():
    with pytest.raises(RecipeError, match=r"QuickGELU.*take model 'ViT-B-32-quickgelu'"):
        Clip(model="ViT-B-32").specs(decoder="pyav")


def test_weights_of_another_model_are_not_taken_by_their_name(tmp_path, monkeypatch):
    content = b"ViT-B/32 of OpenAI"
    file = replace(Clip().file, sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(Clip, "files", (file,))
    (tmp_path / file.save_as).write_bytes(content)
    assert Clip().specs(decoder="pyav")
    with pytest.raises(
        WeightsError, match=r"'openai' are neither a file nor one of 'webli', 'rand"
    ):
        Clip(model="ViT-B-16-SigLIP").specs(decoder="pyav")


def test_a_model_without_published_weights_has_no_choice_but_its_own_file(tmp_path):
    with pytest.raises(WeightsError, match="'PATH' are neither a file nor one of 'random'"):
        Clip(model="ViT-S-32-alt", weights="PATH").specs(decoder="pyav")


def test_published_weights_of_another_model_are_looked_for_under_their_own_name(tmp_path):
    clip = Clip(model="ViT-B-32", weights="laion2b_s34b_b79k")
    with pytest.raises(WeightsError, match="CLIP-ViT-B-32-laion2B-s34B-b79K"):
        clip.specs(decoder="pyav")
    (tmp_path / clip.file.save_as).write_bytes(b"weights")
    (spec,) = clip.specs(decoder="pyav").values()
    assert spec.publisher == clip.file.publisher == "laion"


@pytest.mark.golden
@pytest.mark.parametrize(("model", "tag"), [("ViT-S-32-alt", ""), ("PE-Core-T-16-384", "meta")])
def test_another_model_gives_what_open_clip_gives(model, tag, frames, tmp_path):
    """One with a tower of open_clip's, and one with timm's that computes tables."""
    import open_clip

    torch.manual_seed(0)
    theirs = open_clip.create_model(model, pretrained_image=False).eval()
    torch.save(theirs.state_dict(), tmp_path / "model.pt")
    clip = Clip(model=model, weights=str(tmp_path / "model.pt"))
    facts = open_clip.get_pretrained_cfg(model, tag)
    described = {key: facts[key] for key in module._PREPROCESSING if key in facts}
    size = theirs.visual.image_size
    transform = open_clip.image_transform(size, is_train=False, **described)
    pictures = frames("model", 2, *size)
    with torch.inference_mode():
        pixels = torch.stack([transform(Image.fromarray(picture)) for picture in pictures])
        expected = theirs.encode_image(pixels)
        seen = clip.view(torch.from_numpy(pictures).permute(0, 3, 1, 2))
        ours = clip.build(CPU)(seen[:, None])["embedding"][:, 0]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


# Size and cost, as RQ-VQA's paper means them.


def test_vit_b_32_has_the_parameters_and_multiplications_of_the_specification():
    with torch.device("meta"):
        network = architecture(Clip(weights="random").configuration).eval()
        network.attn_mask = torch.empty_like(network.attn_mask, device="meta")
        picture, prompt = torch.empty(1, 3, 224, 224), torch.zeros(1, 77, dtype=torch.long)

    def count(part):
        return sum(parameter.numel() for parameter in part.parameters())

    assert count(network) == 151_277_313
    assert count(network.visual) == 87_849_216
    assert count(network.transformer) == 37_828_608
    assert count(network.token_embedding) == 25_296_896
    for function, value, expected in (
        (network.encode_image, picture, 4.41e9),
        (network.encode_text, prompt, 2.98e9),
    ):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            function(value)
        assert counter.get_total_flops() / 2 == pytest.approx(expected, rel=0.01)


@pytest.mark.golden
def test_half_precision_tokens_continue_to_nearly_the_same_embedding(golden, frames, tmp_path):
    """What a head loses that goes on from the banked tokens; measured: 2.3e-4."""
    fixture = golden("clip_b32_tokens")
    torch.save(fixture.state_dict(), tmp_path / "clip.pt")
    clip = Clip(weights=str(tmp_path / "clip.pt"), cut=8, outputs=("embedding", "tokens"))
    pictures = torch.from_numpy(frames(*fixture.input["frames"])).permute(0, 3, 1, 2)
    tower = clip.load().eval().visual
    with torch.inference_mode():
        exact = clip.build(CPU)(clip.view(pictures)[:, None])
        state = exact["tokens"][:, 0].half().float()
        for block in tower.transformer.resblocks[9:]:
            state = block(state)
        embedding = tower.ln_post(state)[:, 0] @ tower.proj
    error = (embedding - exact["embedding"][:, 0]).abs().max() / exact["embedding"].abs().max()
    assert 1e-6 < float(error) < 5e-4
