import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

from vqbank.extractors import make_extractor
from vqbank.extractors.sampling import ClipPerSecond, EveryClip, EveryNth, KeyFrames
from vqbank.extractors.views import ResizeCrop
from vqbank.store.errors import RecipeError, UnknownNameError, WeightsError

CPU = torch.device("cpu")
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
VISION = {**TINY, "image_size": 32, "patch_size": 8}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
SCALED = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}
PROCESSORS = {
    "dinov2": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 36},
        "crop_size": {"height": 32, "width": 32},
        "do_center_crop": True,
        "resample": 3,
        **SCALED,
        **IMAGENET,
    },
    "siglip": {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": 32, "width": 32},
        "resample": 3,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        **SCALED,
    },
    "videomae": {
        "image_processor_type": "VideoMAEImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
        "do_center_crop": True,
        "resample": 2,
        **SCALED,
        **IMAGENET,
    },
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VQBANK_CACHE", str(tmp_path / "cache"))


def backbone(model, **parameters):
    return make_extractor("backbone", model=model, **{"weights": "random", **parameters})


def spec_of(extractor):
    (spec,) = extractor.specs(decoder="pyav").values()
    return spec


def run(extractor, video):
    """[t, d] of a video [n, 3, h, w], its first two clips."""
    frames = torch.arange(2 * extractor.sampling.length) if is_video(extractor) else [0, 1]
    length = getattr(extractor.sampling, "length", 1)
    clips = extractor.view(video)[frames].unflatten(0, (2, length))
    with torch.inference_mode():
        return extractor.build(CPU)(clips)["pooled"][:, 0]


def is_video(extractor):
    return isinstance(extractor.sampling, ClipPerSecond)


def normalised(pictures, mean, std):
    return (pictures / 255 - torch.tensor(mean).reshape(3, 1, 1)) / torch.tensor(std).reshape(
        3, 1, 1
    )


@pytest.fixture(scope="module")
def video(frames):
    """uint8 [8, 3, 90, 130]."""
    return torch.from_numpy(frames("backbone", 8, 90, 130)).permute(0, 3, 1, 2)


# timm


def test_a_timm_model_gives_what_timm_calls_pooled(video, tmp_path):
    import timm

    torch.manual_seed(2)
    whole = timm.create_model("test_vit").eval()
    save_file(whole.state_dict(), tmp_path / "test_vit.safetensors")
    extractor = backbone("timm:test_vit", weights=str(tmp_path / "test_vit.safetensors"))
    pooled = timm.create_model("test_vit", num_classes=0).eval()
    pooled.load_state_dict(whole.state_dict(), strict=False)
    data = timm.data.resolve_model_data_config(whole)
    pixels = normalised(extractor.view(video[:2]), data["mean"], data["std"])
    with torch.inference_mode():
        expected = pooled(pixels)
    torch.testing.assert_close(run(extractor, video), expected)
    assert spec_of(extractor).shape == expected.shape[1:]


@pytest.mark.parametrize(
    "name", ["test_vit", "vit_small_patch14_dinov2.lvd142m", "vit_base_patch16_siglip_224.webli"]
)
@pytest.mark.parametrize("turned", [False, True])
def test_frames_are_resized_as_timm_does(name, turned, frames):
    import timm

    picture = frames("resize", 1, 311, 467)[0]
    picture = picture.transpose(1, 0, 2).copy() if turned else picture
    ours = backbone(f"timm:{name}").view(torch.from_numpy(picture).permute(2, 0, 1)[None])[0]
    data = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    transform = timm.data.create_transform(**data, is_training=False)
    theirs = transform(Image.fromarray(picture))
    theirs = theirs * torch.tensor(data["std"]).reshape(3, 1, 1)
    theirs = 255 * (theirs + torch.tensor(data["mean"]).reshape(3, 1, 1))
    assert ours.shape == theirs.shape
    # Pillow's weights have 22 bits, torch's 16.
    assert (ours - theirs).abs().max() <= 1.01


def test_the_tag_is_part_of_the_key_also_where_it_is_left_out():
    full, short = backbone("timm:test_vit.r160_in1k"), backbone("timm:test_vit")
    assert spec_of(full).key == spec_of(short).key
    assert spec_of(full).identity["model"] == "timm:test_vit.r160_in1k"
    assert spec_of(full).key != spec_of(backbone("timm:test_vit2")).key


def test_weights_of_another_timm_model_are_refused(tmp_path):
    save_file({"other.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    extractor = backbone("timm:test_vit", weights=str(tmp_path / "other.safetensors"))
    with pytest.raises(WeightsError, match=r"missing: .* more; unexpected: other\.weight"):
        extractor.build(CPU)


# torchvision


def test_a_torchvision_model_gives_what_its_classifier_sees(video, tmp_path):
    torch.manual_seed(6)
    whole = torchvision.models.resnet18().eval()
    path = tmp_path / "resnet18.pth"
    torch.save(whole.state_dict(), path)
    seen = []
    whole.fc.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    preset = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    extractor = backbone("torchvision:resnet18", weights=str(path))
    pixels = normalised(extractor.view(video[:2]), preset.mean, preset.std)
    # The preset's resize rounds a few values to the next level.
    assert (pixels - preset(video[:2])).abs().max() <= 1.01 / 255 / min(preset.std)
    with torch.inference_mode():
        whole(pixels)
    torch.testing.assert_close(run(extractor, video), seen[0])
    assert spec_of(extractor).shape == (512,)
    path.unlink()


def test_a_torchvision_video_model_sees_clips(video):
    extractor = backbone("torchvision:video/r3d_18", length=4)
    assert extractor.sampling == ClipPerSecond(4)
    spec = spec_of(extractor)
    assert spec.shape == (512,)
    assert spec.identity["model"] == "torchvision:video/r3d_18.KINETICS400_V1"
    preset = torchvision.models.video.R3D_18_Weights.DEFAULT.transforms()
    clip = extractor.view(video[:4])
    ours = normalised(clip, preset.mean, preset.std).transpose(0, 1)
    assert (ours - preset(video[:4])).abs().max() <= 1.01 / 255 / min(preset.std)
    network = extractor._library.network().eval()
    with torch.inference_mode():
        assert network(ours[None]).shape == (1, 512)


@pytest.mark.parametrize("name", ["swin_t", "vit_b_16", "efficientnet_b0", "convnext_tiny"])
def test_many_torchvision_models_are_known(name):
    assert spec_of(backbone(f"torchvision:{name}")).shape in [(768,), (1280,)]


def test_weights_have_a_size_of_their_own():
    large = backbone("torchvision:vit_b_16.IMAGENET1K_SWAG_E2E_V1")
    assert large.view.crop == (384, 384)
    assert spec_of(large).key != spec_of(backbone("torchvision:vit_b_16")).key


def test_a_model_without_a_linear_classifier_is_refused():
    with pytest.raises(RecipeError, match=r"squeezenet1_0.* has no linear classifier"):
        spec_of(backbone("torchvision:squeezenet1_0"))


def test_weights_of_another_torchvision_model_are_refused(tmp_path):
    torch.save({"other.weight": torch.ones(2)}, tmp_path / "other.pth")
    extractor = backbone("torchvision:resnet18", weights=str(tmp_path / "other.pth"))
    with pytest.raises(WeightsError, match=r"unexpected: other\.weight"):
        extractor.build(CPU)


def test_old_keys_of_a_densenet_are_renamed_and_missing_counts_are_zero(tmp_path):
    path = tmp_path / "densenet.pth"
    state = torchvision.models.densenet121().state_dict()
    old = {
        re.sub(r"(denselayer\d+\.(norm|conv))([12])", r"\1.\3", key): value
        for key, value in state.items()
        if not key.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, path)
    filled = backbone("torchvision:densenet121")._library.filled(path).state_dict()
    assert filled.keys() == state.keys() - {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(filled[key], state[key]) for key in filled)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_inceptions_scale_their_input_as_their_published_weights_want(name):
    assert backbone(f"torchvision:{name}")._library.network().transform_input


@pytest.mark.parametrize(
    ("model", "data_sets"),
    [
        ("timm:vit_base_patch16_224.augreg_in21k_ft_in1k", ("ImageNet-21k", "ImageNet-1k")),
        ("timm:vit_small_patch14_dinov2.lvd142m", ("LVD-142M",)),
        ("timm:test_vit.r160_in1k", ("ImageNet-1k",)),
        ("timm:vit_base_patch16_clip_224.metaclip_400m", ()),
        ("torchvision:resnet18", ("ImageNet-1k",)),
        (
            "torchvision:video/swin3d_b.KINETICS400_IMAGENET22K_V1",
            ("Kinetics-400", "ImageNet-22k"),
        ),
    ],
)
def test_training_data_are_data_sets_and_no_tags(model, data_sets):
    assert backbone(model).files[0].trained_on == data_sets


# transformers


def configuration(kind, **changes):
    from transformers import Dinov2Config, SiglipConfig, VideoMAEConfig

    if kind == "dinov2":
        return Dinov2Config(**{**VISION, **changes})
    if kind == "siglip":
        text = {**TINY, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        return SiglipConfig(vision_config={**VISION, **changes}, text_config=text)
    return VideoMAEConfig(**{**VISION, "num_frames": 4, "tubelet_size": 2, **changes})


@pytest.fixture
def folder(tmp_path):
    """Writes a tiny model as transformers does; gives its folder and the model."""
    from transformers import AutoModel

    def write(kind, **changes):
        torch.manual_seed(9)
        network = AutoModel.from_config(configuration(kind, **changes)).eval()
        place = tmp_path / f"{kind}{len(list(tmp_path.iterdir()))}"
        network.save_pretrained(place)
        (place / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[kind]))
        return place, network

    return write


@pytest.mark.parametrize("kind", ["dinov2", "siglip", "videomae"])
def test_a_folder_of_transformers_gives_its_pooled_output(kind, folder, video):
    place, network = folder(kind)
    is_clip = kind == "videomae"
    extractor = backbone(
        f"transformers:{place}", weights="published", **({"length": 4} if is_clip else {})
    )
    mean, std = PROCESSORS[kind]["image_mean"], PROCESSORS[kind]["image_std"]
    pixels = normalised(extractor.view(video), mean, std)
    with torch.inference_mode():
        if is_clip:
            tokens = network(pixel_values=pixels.unflatten(0, (2, 4))).last_hidden_state
            expected = tokens.mean(dim=1)
        elif kind == "siglip":
            expected = network.vision_model(pixel_values=pixels[:2]).pooler_output
        else:
            expected = network(pixel_values=pixels[:2]).pooler_output
    torch.testing.assert_close(run(extractor, video), expected)
    assert spec_of(extractor).shape == (32,)
    assert is_video(extractor) == is_clip


@pytest.mark.parametrize("kind", ["dinov2", "siglip", "videomae"])
def test_frames_are_resized_as_transformers_does(kind, folder, frames):
    from transformers import AutoImageProcessor

    place, _ = folder(kind)
    picture = frames("resize", 1, 61, 97)[0]
    extractor = backbone(f"transformers:{place}", length=4)
    ours = extractor.view(torch.from_numpy(picture).permute(2, 0, 1)[None])[0]
    processor = AutoImageProcessor.from_pretrained(place)
    picture = [picture] if kind == "videomae" else picture
    theirs = processor(picture, return_tensors="pt")["pixel_values"].reshape(ours.shape)
    mean, std = PROCESSORS[kind]["image_mean"], PROCESSORS[kind]["image_std"]
    assert (normalised(ours, mean, std) - theirs).abs().max() <= 1.01 / 255 / min(std)


def test_a_folder_is_known_by_what_is_in_it_and_not_by_where_it_lies(folder):
    first, _ = folder("dinov2")
    second, _ = folder("dinov2")
    third, _ = folder("dinov2", num_hidden_layers=3)
    keys = [
        spec_of(backbone(f"transformers:{place}", weights="published")).key
        for place in (first, second, third)
    ]
    assert keys[0] == keys[1] != keys[2]
    before = spec_of(backbone(f"transformers:{first}")).key
    described = json.loads((first / "preprocessor_config.json").read_text())
    (first / "preprocessor_config.json").write_text(json.dumps({**described, "resample": 2}))
    assert spec_of(backbone(f"transformers:{first}")).key != before


def test_weights_that_lack_a_layer_are_refused(folder):
    place, network = folder("dinov2")
    state = network.state_dict()
    del state["layernorm.weight"]
    save_file(state, place / "model.safetensors")
    with pytest.raises(WeightsError, match=r"missing.*layernorm\.weight"):
        backbone(f"transformers:{place}", weights="published").build(CPU)


def test_keys_of_a_model_with_a_head_are_read(folder, video):
    """As published: a prefix before the backbone's keys, and the head's keys beside them."""
    place, network = folder("videomae")
    expected = run(backbone(f"transformers:{place}", weights="published", length=4), video)
    state = {f"videomae.{key}": value for key, value in network.state_dict().items()}
    save_file({**state, "classifier.bias": torch.ones(2)}, place / "model.safetensors")
    again = run(backbone(f"transformers:{place}", weights="published", length=4), video)
    assert torch.equal(again, expected)


def test_code_beside_a_model_is_not_run(folder, tmp_path, monkeypatch):
    """transformers would ask, and here somebody says yes to everything."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    place, _ = folder("dinov2")
    run_anyway = tmp_path / "run"
    (place / "code.py").write_text(f"import pathlib; pathlib.Path({str(run_anyway)!r}).touch()")
    autos = ("AutoConfig", "AutoModel", "AutoImageProcessor")
    code = {"auto_map": {auto: f"code.{auto}" for auto in autos}}
    kinds = {
        "config.json": {"model_type": "of-its-own"},
        "preprocessor_config.json": {"image_processor_type": "OfItsOwn"},
    }
    for file, kind in kinds.items():
        described = json.loads((place / file).read_text())
        (place / file).write_text(json.dumps({**described, **code, **kind}))
        with pytest.raises(RecipeError, match="no model of transformers"):
            spec_of(backbone(f"transformers:{place}"))
        assert not run_anyway.exists()
        (place / file).write_text(json.dumps(described))


def test_a_clip_has_as_many_frames_as_the_model_wants(folder):
    place, _ = folder("videomae")
    with pytest.raises(RecipeError, match="takes clips of 4 frames, not 16; set length: 4"):
        spec_of(backbone(f"transformers:{place}"))


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"config\.json cannot be read"):
        spec_of(backbone(f"transformers:{tmp_path}"))


# All of them.


@pytest.mark.parametrize(
    ("model", "answer"),
    [
        ("tim:test_vit", r"library of backbone 'tim'\. Did you mean 'timm'"),
        ("timm:test_vitt", r"no model 'test_vitt'; near it is .*test_vit"),
        ("timm:test_vit.r161_in1k", r"near it is test_vit\.r160_in1k"),
        ("torchvision:resnet19", "near it is resnet1"),
        ("torchvision:r3d_18", "near it is .*video/r3d_18"),
        ("torchvision:resnet18.V7", r"weights of resnet18\.V7 'V7'.* IMAGENET1K_V1"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(model, answer):
    with pytest.raises(UnknownNameError, match=answer):
        spec_of(backbone(model))


def test_only_video_models_have_a_length():
    image, video = "torchvision:resnet18", "torchvision:video/r3d_18"
    assert backbone(image).sampling == KeyFrames()
    assert spec_of(backbone(image)).key == spec_of(backbone(image, length=8)).key
    assert spec_of(backbone(video)).key != spec_of(backbone(video, length=8)).key


def test_every_frame_or_clips_that_follow_each_other_are_seen_if_asked_for():
    image, video = "torchvision:resnet18", "torchvision:video/r3d_18"
    assert backbone(image, frames="every").sampling == EveryNth(1)
    assert backbone(video, frames="every", length=8).sampling == EveryClip(8)
    for model in (image, video):
        assert spec_of(backbone(model)).key == spec_of(backbone(model, frames="seconds")).key
        assert spec_of(backbone(model)).key != spec_of(backbone(model, frames="every")).key


def test_published_weights_are_named_by_their_address(tmp_path, monkeypatch):
    for variable in ("VQBANK_WEIGHTS", "TORCH_HOME", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for model, address in (
        ("timm:test_vit", "huggingface.co/timm/test_vit.r160_in1k/resolve/main/model.safetensors"),
        ("torchvision:video/r3d_18", "download.pytorch.org/models/r3d_18-b3b3357e.pth"),
    ):
        with pytest.raises(WeightsError, match=address):
            spec_of(backbone(model, weights="published"))


def test_a_picture_smaller_than_the_crop_gets_a_black_border():
    view = ResizeCrop((4, 6), (6, 6), "bilinear")
    seen = view(torch.full((1, 3, 8, 12), 200, dtype=torch.uint8))[0, 0]
    assert seen.shape == (6, 6)
    assert (seen[[0, -1]] == 0).all()
    assert (seen[1:-1] == 200).all()


def test_random_weights_are_the_same_in_every_build(video):
    extractor = backbone("timm:test_vit")
    torch.manual_seed(1)
    first = run(extractor, video)
    torch.manual_seed(2)
    assert torch.equal(run(replace(extractor), video), first)
    assert np.isfinite(first.numpy()).all()


def test_what_is_said_of_the_default_model_is_what_its_library_says():
    default = make_extractor("backbone")
    assert default.files == (default._library.file,)
    assert default.offers[0].shape == (default._library.width,)
