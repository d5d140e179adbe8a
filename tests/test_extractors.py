import hashlib
import json
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
import scipy.ndimage
import torch

from vqbank.extractors import EXTRACTORS, make_extractor
from vqbank.extractors.motion import Motion
from vqbank.extractors.nss import Nss, asymmetric_statistics
from vqbank.extractors.sampling import Neighbours
from vqbank.store.errors import InvalidFeatureError, RecipeError, UnknownNameError, WeightsError
from vqbank.testing import ExtractorContract
from vqbank.testing.extractors import (
    assert_all_keys_differ,
    clips_of,
    extract,
    in_batches,
    timeline,
)

CPU = torch.device("cpu")
# What has to be said of those that are many.
PARAMETERS = {"backbone": {"model": "timm:resnet10t"}, "iqa": {"metric": "cnniqa"}}
WITH_WEIGHTS = ["clip", "slowfast"]
HEAVY = ["open_clip", "timm", "transformers", "pyiqa", "pytorchvideo"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VQBANK_CACHE", str(tmp_path / "cache"))


def without_training(name):
    """The extractor, with random weights if it has any, in a tiny network if there is one."""
    kind = EXTRACTORS[name]
    parameters = dict(PARAMETERS.get(name, {}))
    if "weights" in {field.name for field in fields(kind)}:
        parameters["weights"] = "random-tiny" if kind.has_tiny else "random"
    return make_extractor(name, **parameters)


@pytest.fixture(scope="module", params=sorted(EXTRACTORS))
def extractor(request):
    return without_training(request.param)


@pytest.fixture(scope="module")
def video(frames):
    """uint8 [n, 3, h, w]: a second at 10 frames per second and a bit, just large enough for all."""
    return torch.from_numpy(frames("contract", 12, 226, 240)).permute(0, 3, 1, 2)


class TestContract(ExtractorContract):
    """Every extractor, with `without_training`'s weights."""


@pytest.mark.parametrize("name", ["motion", "nss"])
def test_without_a_network_even_the_batch_size_changes_nothing(name, video):
    extractor = make_extractor(name)
    clip_fn = extractor.build(CPU)
    clips, _ = clips_of(extractor, video)
    with torch.inference_mode():
        together = clip_fn(clips)
    for output, rows in in_batches(extractor, clip_fn, clips).items():
        assert torch.equal(rows, together[output])


# Keys and weights.


def test_keys_stay_as_they_are(monkeypatch):
    """A change here orphans every banked feature: raise `version` only when numbers change."""
    monkeypatch.setattr("vqbank.extractors.nss.version", {"pyiqa": "0.1.16"}.__getitem__)
    keys = {
        spec.key
        for extractor in (Nss(), Motion())
        for spec in extractor.specs(decoder="pyav").values()
    }
    assert keys == {"nss.brisque@1aff0c1e8b24", "motion.series@420a8fb284e9"}


def test_importing_and_computing_keys_loads_no_model_library():
    """But for those that run any model of a library: it is asked for their shapes."""
    names = sorted(EXTRACTORS.keys() - PARAMETERS.keys())
    program = f"""if True:
        import json, sys
        from vqbank.extractors import EXTRACTORS
        keys = []
        for name in {names}:
            has_weights = "weights" in EXTRACTORS[name].__dataclass_fields__
            made = EXTRACTORS[name](**({{"weights": "random"}} if has_weights else {{}}))
            keys += [spec.key for spec in made.specs(decoder="pyav").values()]
        sys.stdout.write(json.dumps([keys, sorted(sys.modules)]))
    """
    answer = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    keys, modules = json.loads(answer.stdout)
    assert not set(HEAVY) & set(modules)
    has_weights = [name for name in names if "weights" in EXTRACTORS[name].__dataclass_fields__]
    here = [
        spec.key
        for name in names
        for spec in make_extractor(name, **({"weights": "random"} if name in has_weights else {}))
        .specs(decoder="pyav")
        .values()
    ]
    assert keys == here


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_one_byte_of_the_weights_changes_the_key(name, tmp_path):
    def specs(content, file):
        (tmp_path / file).write_bytes(content)
        return make_extractor(name, weights=str(tmp_path / file)).specs(decoder="pyav")

    first, moved = specs(b"weights", "one"), specs(b"weights", "two")
    assert first == moved
    assert_all_keys_differ(first, specs(b"Weights", "three"))
    assert_all_keys_differ(first, without_training(name).specs(decoder="pyav"))


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_only_published_weights_claim_a_publisher(name, tmp_path, monkeypatch):
    def claims(choice):
        extractor = make_extractor(name, weights=choice)
        (spec,) = extractor.specs(decoder="pyav").values()
        assert spec.uses_random_weights == (choice == "random")
        return spec.publisher, spec.licence, spec.trained_on

    monkeypatch.setenv("VQBANK_WEIGHTS", str(tmp_path))
    file = replace(EXTRACTORS[name].files[0], sha256=hashlib.sha256(b"published").hexdigest())
    monkeypatch.setattr(EXTRACTORS[name], "files", (file,))
    (tmp_path / file.save_as).write_bytes(b"published")
    (tmp_path / "mine").write_bytes(b"weights")

    assert claims("random") == ("", "", ())
    assert claims(str(tmp_path / "mine")) == ("unknown (local file)", "unknown", ())
    assert claims(file.choice) == (file.publisher, file.licence, file.trained_on)
    assert all(claims(file.choice))


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_weights_that_are_not_at_hand_stop_before_any_work(name, tmp_path, monkeypatch):
    for variable in ("VQBANK_WEIGHTS", "TORCH_HOME", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=rf"--weights {name}=PATH"):
        make_extractor(name).specs(decoder="pyav")


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_weights_of_another_network_are_refused_by_their_keys(name, tmp_path):
    state = {"features.0.weight": torch.zeros(2)}
    torch.save({"model_state": state} if name == "slowfast" else state, tmp_path / "vgg.pth")
    extractor = make_extractor(name, weights=str(tmp_path / "vgg.pth"))
    with pytest.raises(WeightsError, match=r"missing: .* more; unexpected: features\.0\.weight"):
        extractor.build(CPU)


def test_half_precision_weights_are_computed_in_float32(tmp_path):
    """As OpenAI's own checkpoints are."""
    state = {
        "weight": torch.ones(2, 3).half(),
        "bias": torch.zeros(2).half(),
        "size": torch.ones(1),
    }
    torch.save(state, tmp_path / "half.pt")
    extractor = make_extractor("clip", weights=str(tmp_path / "half.pt"))

    def without_size(state):
        return {key: value for key, value in state.items() if key != "size"}

    network = extractor.network(lambda: torch.nn.Linear(3, 2), renamed=without_size)
    assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.float32}
    assert torch.equal(network(torch.ones(3)), torch.full((2,), 3.0))


# Making one by name.


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown extractor 'slow-fast'.*'slowfast'"):
        make_extractor("slow-fast")


def test_an_unknown_parameter_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"parameter of clip 'weight'\. .* 'weights'\?"):
        make_extractor("clip", weight="random")


@pytest.mark.parametrize(
    "parameters", [{"weights": 3}, {"weights": None}, {"stored_dtype": "float15"}]
)
def test_a_parameter_of_another_type_is_refused(parameters):
    with pytest.raises(RecipeError, match=f"clip: parameter '{next(iter(parameters))}'"):
        make_extractor("clip", **parameters)


# motion


def blocked(block):
    return type("Blocked", (Motion,), {"sampling": Neighbours(block)})()


def series(video, block=8):
    return extract(blocked(block), video)["series"]


def test_motion_is_what_the_formulas_say(video):
    values = series(video)
    pictures = video.double().numpy()
    luma = np.tensordot(pictures, (0.299, 0.587, 0.114), axes=(1, 0))
    for index in range(len(video)):
        before = index - 1 if index > 0 else 1
        after = index + 1 if index + 1 < len(video) else index - 1
        change = [((pictures[index] - pictures[other]) ** 2).mean() for other in (before, after)]
        across, down = (scipy.ndimage.sobel(luma[index], axis) for axis in (0, 1))
        detail = np.hypot(across, down)[1:-1, 1:-1].std()
        motion = (luma[index] - luma[before]).std()
        np.testing.assert_allclose(values[index], [sum(change) / 2, detail, motion], rtol=1e-6)


def test_motion_of_a_frame_is_the_same_bits_in_whatever_block_it_falls(video):
    expected = series(video, 8)
    assert len(expected) == len(video)
    for block in (1, 3, 23, 40):
        np.testing.assert_array_equal(series(video, block), expected)


def test_a_block_size_is_not_in_the_key():
    assert blocked(3).specs(decoder="pyav") == Motion().specs(decoder="pyav")


def test_squares_are_summed_exactly():
    """One level in one of three million values: a sum in float32 would lose it."""
    video = torch.zeros(3, 3, 720, 1280, dtype=torch.uint8)
    video[1] = 255
    video[2] = 255
    video[2, 0, 0, 0] = 254
    frames, _ = Neighbours(3).clips(timeline(video))
    values = Motion().build(CPU)(video[frames])["series"][0, :, 0].double()
    count = 3 * 720 * 1280
    assert values[2] == np.float32(1 / count)
    assert values[1] == np.float32((255**2 + 1 / count) / 2)


def test_equal_changes_give_equal_numbers():
    picture = torch.randint(0, 200, (3, 40, 50), dtype=torch.uint8)
    video = torch.stack([picture + 2 * index for index in range(9)])
    assert series(video)[:, 0].tolist() == [4.0] * 9
    np.testing.assert_allclose(series(video)[:, 2], 0, atol=1e-4)


def test_a_lonely_frame_does_not_move(video):
    values = series(video[:1])
    assert values.shape == (1, 3)
    assert values[0, 0] == values[0, 2] == 0
    assert values[0, 1] > 0


def test_tiny_frames_have_no_detail():
    video = torch.randint(0, 256, (4, 3, 2, 2), dtype=torch.uint8)
    values = series(video)
    assert (values[:, 1] == 0).all()
    assert np.isfinite(values).all()


# nss


def brisque(picture):
    """[3, h, w] to [36]."""
    with torch.inference_mode():
        return Nss().build(CPU)(picture[None, None])["brisque"][0, 0]


def pyiqas(picture):
    from pyiqa.archs.brisque_arch import natural_scene_statistics
    from pyiqa.matlab_utils import imresize
    from pyiqa.utils.color_util import to_y_channel

    luma = to_y_channel(picture[None].float() / 255, 255)
    half = imresize(luma, scale=0.5, antialiasing=True)
    return torch.cat([natural_scene_statistics(luma), natural_scene_statistics(half)], dim=-1)[0]


def flat(value, height=72, width=96):
    return torch.full((3, height, width), value, dtype=torch.uint8)


def test_nss_are_pyiqas_numbers_bit_for_bit(frames):
    for name, height, width in (("a", 90, 130), ("b", 131, 97), ("c", 16, 16), ("d", 360, 640)):
        picture = torch.from_numpy(frames(name, 1, height, width)[0]).permute(2, 0, 1)
        assert torch.equal(brisque(picture), pyiqas(picture))


def test_a_letterboxed_picture_is_pyiqas_too(frames):
    picture = torch.from_numpy(frames("film", 1, 120, 160)[0]).permute(2, 0, 1).clone()
    picture[:, :20], picture[:, -20:] = 0, 0
    assert torch.equal(brisque(picture), pyiqas(picture))


def test_a_black_frame_is_the_limit_of_emptier_and_emptier_frames():
    values = brisque(flat(0))
    shapes = [0, 2, 6, 10, 14, 18, 20, 24, 28, 32]
    assert torch.equal(values[shapes], torch.full((10,), 0.2))
    assert (values[[i for i in range(36) if i not in shapes]] == 0).all()
    with pytest.raises(AssertionError, match="non zero variance"):
        pyiqas(flat(0))


@pytest.mark.parametrize("value", [1, 16, 127, 128, 235, 255])
def test_a_flat_frame_has_finite_statistics(value):
    values, theirs = brisque(flat(value)), pyiqas(flat(value))
    assert torch.isfinite(values).all()
    defined = torch.isfinite(theirs)
    defined[[2, 6, 10, 14, 20, 24, 28, 32]] = False  # they look NaN up in their table of shapes
    assert torch.equal(values[defined], theirs[defined])
    variances = values[[1, 4, 5, 8, 9, 12, 13, 16, 17]]
    assert (variances >= 0).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_a_side_without_samples_is_the_limit_of_a_side_that_vanishes(sign):
    generator = torch.Generator().manual_seed(3)
    products = sign * torch.rand((1, 1, 64, 64), generator=generator)
    empty = asymmetric_statistics(products)
    products[0, 0, 0, 0] = -sign * 1e-6
    vanishing = asymmetric_statistics(products)
    for limit, near in zip(empty, vanishing, strict=True):
        assert torch.isfinite(limit).all()
        torch.testing.assert_close(limit, near, rtol=2e-3, atol=1e-5)


def test_a_video_that_starts_black_keeps_all_its_rows(video):
    faded = video.clone()
    faded[:10] = 0
    values = extract(Nss(), faded)["brisque"]
    assert len(values) == 2
    assert np.isfinite(values).all()
    np.testing.assert_array_equal(values[1:], extract(Nss(), video)["brisque"][1:])


def test_frames_too_small_for_nss_are_refused():
    with pytest.raises(InvalidFeatureError, match="frames of 40 x 15 are too small for nss"):
        brisque(flat(9, 15, 40))
