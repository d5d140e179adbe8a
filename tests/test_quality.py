import numpy as np
import pytest
import torch

from vqbank.extractors import make_extractor
from vqbank.extractors.networks.unique import Unique
from vqbank.extractors.sampling import Timeline
from vqbank.extractors.views import AlignedPatches
from vqbank.store.errors import UnknownNameError, WeightsError

CPU = torch.device("cpu")


def timeline(height=90, width=130, count=200, video="v"):
    return Timeline(np.arange(count) / 30, count, 30.0, video, height, width)


def quality(**parameters):
    return make_extractor("quality", **{"weights": "random-tiny", **parameters})


@pytest.fixture(scope="module")
def clips(frames):
    """uint8 [2, 1, 3, 90, 130]."""
    return torch.from_numpy(frames("quality", 2, 90, 130)).permute(0, 3, 1, 2)[:, None]


# Weights.


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(4)
    return Unique().state_dict()


def loaded(content, path):
    torch.save(content, path)
    try:
        return make_extractor("quality", weights=str(path))._network().state_dict()
    finally:
        path.unlink()  # ninety megabytes


@pytest.mark.parametrize(
    "packed",
    [
        lambda state: state,
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"params": state},
        lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
    ],
    ids=["pyiqa's", "the authors'", "in an entry", "without counters"],
)
def test_the_known_layouts_of_the_file_are_one_network(packed, state, tmp_path):
    network = loaded(packed(state), tmp_path / "UNIQUE.pt")
    assert all(torch.equal(value, network[key]) for key, value in state.items())


def test_a_file_without_its_trunk_is_refused(state, tmp_path):
    head = {key: value for key, value in state.items() if key.startswith("fc.")}
    with pytest.raises(WeightsError, match=r"missing: backbone\."):
        loaded(head, tmp_path / "UNIQUE.pt")


def test_the_trunk_has_the_parameters_of_resnet_34():
    with torch.device("meta"):
        network = Unique()
    weights = {name: value.numel() for name, value in network.named_parameters()}
    assert sum(n for name, n in weights.items() if "fc." not in name) == 21_284_672
    assert weights["fc.weight"] == 2 * 512 * 512


# Full frames.


def test_the_score_is_a_linear_function_of_the_bilinear_vector(clips):
    extractor = quality(outputs=("stages", "score"))
    head = extractor._network().fc
    with torch.inference_mode():
        rows = extractor.build(CPU)(clips)
    assert rows["stages"].shape == (2, 1, 1920)
    assert rows["score"].shape == (2, 1, 2)
    maps = torch.rand(2, 512, 3, 5, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        scores = extractor._network().score(maps).numpy()
        for values, score in zip(maps.double().flatten(2), scores, strict=True):
            vector = torch.einsum("ip,jp->ij", values, values).flatten() / values.shape[1]
            vector = vector.sign() * (vector.abs() + 1e-8).sqrt()
            mean, spread = head.double()(vector / vector.norm())
            variance = torch.log1p(spread.exp())
            np.testing.assert_allclose(score, [mean, variance], rtol=1e-4)
            head.float()


def test_only_what_is_asked_for_comes_back(clips):
    with torch.inference_mode():
        assert quality().build(CPU)(clips[:1]).keys() == {"stages"}
        assert quality(outputs=("score",)).build(CPU)(clips[:1]).keys() == {"score"}
    with pytest.raises(UnknownNameError, match="'score'"):
        quality(mode="preprocessed", outputs=("score",)).specs(decoder="pyav")


# Patches.


def test_patches_lie_at_the_same_places_in_all_frames_of_a_video():
    extractor = quality(mode="preprocessed")
    video = torch.arange(3 * 1000 * 1200).reshape(3, 1000, 1200).remainder(251).byte()
    seen = [
        extractor.view.of_clip(timeline(1000, 1200), clip)(video[None].roll(clip, dims=0))
        for clip in (0, 7)
    ]
    assert seen[0].shape == (1, 4, 3, 768, 768)
    assert torch.equal(seen[0], seen[1])


def test_the_places_are_kept_and_are_where_the_patches_come_from():
    extractor = quality(mode="preprocessed")
    line = timeline(1000, 1200)
    clips = extractor.sampling.clips(line)
    offsets = extractor.side(line, clips)["offsets"]
    assert offsets.dtype == np.int32
    assert offsets.shape == (128, 1, 4, 2)
    assert (offsets == offsets[:1]).all()
    (output,) = extractor.wanted
    assert [(side.name, side.shape, side.dtype) for side in output.side] == [
        ("offsets", (4, 2), "int32")
    ]
    rows = torch.arange(1000)[:, None].expand(1000, 1200)
    columns = torch.arange(1200)[None].expand(1000, 1200)
    seen = extractor.view.of_clip(line, 3)(torch.stack([rows, columns, rows])[None])
    assert seen[0, :, :2, 0, 0].tolist() == offsets[0, 0].tolist()


def test_places_depend_on_the_video_and_the_seed_alone():
    def places(video="v", seed=0, count=200):
        return AlignedPatches(seed=seed).offsets(timeline(2000, 3000, count, video)).tolist()

    assert places() == places(count=50)
    assert places() != places(video="w")
    assert places() != places(seed=1)
    assert len({tuple(place) for place in places()}) == 4


def test_every_place_can_be_drawn_and_none_is_outside():
    drawn = np.concatenate(
        [AlignedPatches().offsets(timeline(770, 769, video=f"v{i}")) for i in range(60)]
    )
    assert set(drawn[:, 0]) == {0, 1, 2}
    assert set(drawn[:, 1]) == {0, 1}


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(540, 960, (540, 768)), (960, 540, (768, 540)), (270, 480, (270, 480))],
)
def test_a_frame_smaller_than_a_patch_gives_patches_of_its_own_size(height, width, expected):
    frames = torch.zeros(2, 3, height, width, dtype=torch.uint8)
    view = AlignedPatches().of_clip(timeline(height, width), 0)
    assert view(frames).shape == (2, 4, 3, *expected)


def test_the_row_of_a_frame_is_the_mean_over_its_patches(clips):
    patches = torch.stack([clips, clips.flip(-1), clips.flip(-2), clips.roll(9, -1)], dim=2)
    full, preprocessed = quality().build(CPU), quality(mode="preprocessed").build(CPU)
    with torch.inference_mode():
        together = preprocessed(patches)["stages"]
        alone = torch.stack([full(patches[:, :, patch])["stages"] for patch in range(4)])
    assert together.shape == (2, 1, 1920)
    torch.testing.assert_close(together, alone.mean(dim=0), rtol=1e-4, atol=1e-5)


def test_the_seed_is_in_the_key_where_it_changes_anything():
    def key(**parameters):
        return quality(**parameters).specs(decoder="pyav")["stages"].key

    assert key() == key(seed=1)
    assert key(mode="preprocessed") != key(mode="preprocessed", seed=1)
    assert (
        len({key(mode=m, frames=f) for m in ("full", "preprocessed") for f in ("every", "blocks")})
        == 4
    )
