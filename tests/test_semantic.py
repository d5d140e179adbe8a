import numpy as np
import pytest
import torch
import torchvision

from vqbank.extractors import make_extractor
from vqbank.extractors.networks.resnet import spatial_statistics
from vqbank.extractors.sampling import Timeline
from vqbank.extractors.views import ShortSide
from vqbank.store.errors import InvalidFeatureError, WeightsError

CPU = torch.device("cpu")


def timeline(count):
    return Timeline(np.arange(count) / 30, count, 30.0, "v", 90, 130)


def semantic(**parameters):
    return make_extractor("semantic", **{"weights": "random-tiny", **parameters})


@pytest.fixture(scope="module")
def clips(frames):
    """uint8 [2, 1, 3, 90, 130]."""
    return torch.from_numpy(frames("semantic", 2, 90, 130)).permute(0, 3, 1, 2)[:, None]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A file of before batches were counted, and the network that it holds."""
    torch.manual_seed(3)
    network = torchvision.models.resnet50().eval()
    state = {k: v for k, v in network.state_dict().items() if "num_batches" not in k}
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.save(state, path)
    yield path, network
    path.unlink()  # a hundred megabytes


def test_it_is_torchvisions_network_pooled_stage_by_stage(clips, file):
    path, network = file
    maps = []
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        stage.register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    preset = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.transforms()
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (preset.mean, preset.std))
    with torch.inference_mode():
        network((clips[:, 0] / 255 - mean) / std)
        rows = semantic(weights=str(path), outputs=("stages", "last")).build(CPU)(clips)
    expected = []
    for values in maps:
        flat = values.flatten(2).numpy().astype(np.float64)
        expected += [flat.mean(-1), flat.std(-1, ddof=1)]
    assert [part.shape[1] for part in expected[::2]] == [256, 512, 1024, 2048]
    expected = np.concatenate(expected, axis=1)
    assert rows["stages"].shape == (2, 1, 7680)
    np.testing.assert_allclose(rows["stages"][:, 0], expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(rows["last"], rows["stages"][..., -4096:])


def test_the_trunk_has_the_parameters_of_resnet_50():
    with torch.device("meta"):
        network = torchvision.models.resnet50()
    trunk = [weights for name, weights in network.named_parameters() if "fc." not in name]
    assert sum(weights.numel() for weights in trunk) == 23_508_032


def test_only_what_is_asked_for_comes_back(clips):
    with torch.inference_mode():
        assert semantic().build(CPU)(clips[:1]).keys() == {"stages"}
        assert semantic(outputs=("last",)).build(CPU)(clips[:1]).keys() == {"last"}


def test_a_file_that_lacks_a_layer_is_refused_by_its_keys(tmp_path, file):
    state = torch.load(file[0], weights_only=True, mmap=True)
    state["layer5.weight"] = state.pop("layer1.0.conv1.weight")
    other = tmp_path / "other.pth"
    torch.save(state, other)
    with pytest.raises(WeightsError, match=r"missing: layer1\.0\.conv1.* unexpected: layer5"):
        semantic(weights=str(other)).build(CPU)
    other.unlink()


def test_full_videos_give_every_frame_and_preprocessed_ones_128():
    assert len(semantic().sampling.clips(timeline(300)).frames) == 300
    assert len(semantic(mode="preprocessed").sampling.clips(timeline(300)).frames) == 128
    assert len(semantic(frames="blocks").sampling.clips(timeline(300)).frames) == 150
    both = semantic(mode="preprocessed", frames="blocks")
    assert len(both.sampling.clips(timeline(300)).frames) == 64


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(1080, 1920, (540, 960)), (1920, 1080, (960, 540)), (270, 480, (540, 960)), (540, 541, None)],
)
def test_preprocessed_frames_have_a_short_side_of_540(height, width, expected):
    frames = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    full = semantic(weights="random", mode="preprocessed")
    assert full.view(frames).shape[-2:] == (expected or (height, width))
    assert ShortSide(540)(frames[..., :1, :1]).shape[-2:] == (540, 540)


def test_mode_and_frames_are_in_the_key():
    keys = {
        semantic(mode=mode, frames=frames).specs(decoder="pyav")["stages"].key
        for mode in ("full", "preprocessed")
        for frames in ("every", "blocks")
    }
    assert len(keys) == 4


def test_frames_too_small_to_deviate_are_refused():
    with pytest.raises(InvalidFeatureError, match="32 x 32"):
        spatial_statistics(torch.ones(1, 8, 1, 1))
    with torch.inference_mode(), pytest.raises(InvalidFeatureError, match="32 x 32"):
        semantic().build(CPU)(torch.zeros(1, 1, 3, 32, 32, dtype=torch.uint8))
    with torch.inference_mode():
        rows = semantic().build(CPU)(torch.zeros(1, 1, 3, 32, 33, dtype=torch.uint8))
    assert torch.isfinite(rows["stages"]).all()
