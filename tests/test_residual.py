import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from vqbank.extractors import make_extractor
from vqbank.extractors import video as decoding
from vqbank.extractors.fragments import Fragments
from vqbank.extractors.loading import random_weights
from vqbank.extractors.networks.real_basic_vsr import Architecture, RealBasicVsr, warped
from vqbank.extractors.residual import residuals
from vqbank.extractors.restoration import reduced
from vqbank.extractors.sampling import Timeline
from vqbank.extractors.views import CLIP_MEAN, CLIP_STD, normalise
from vqbank.pipelines.extraction.extract import Extraction
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import InvalidFeatureError, RecipeError, WeightsError
from vqbank.store.schema import Video

CPU = torch.device("cpu")
ALL = ("statistics", "fragments", "residuals", "fragment-tokens", "residual-tokens")


def timeline(height, width, count=40, video="v"):
    return Timeline(np.arange(count) / 30, count, 30.0, video, height, width)


def residual(**parameters):
    chosen = {"weights": "random-tiny", "patch_embedding": "random", "outputs": ALL, **parameters}
    return make_extractor("residual", **chosen)


@pytest.fixture(scope="module")
def network():
    network = residual().load()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= 1.5  # so that random weights leave more than the bilinear base
    return network


def video(frames, height, width, count=32):
    """uint8 [count, 3, height, width]."""
    return torch.from_numpy(frames("residual", count, height, width)).permute(0, 3, 1, 2)


def rows_of(extractor, pictures, clip=0):
    """What the extractor makes of these frames as clip number `clip`: values by output."""
    view = extractor.view.of_clip(timeline(*pictures.shape[-2:]), clip)
    with torch.inference_mode():
        rows = extractor.build(CPU)(view(pictures)[None])
    return {name: values[0, 0] for name, values in rows.items()}


# The network.


def test_it_has_the_parameters_of_the_official_one():
    with torch.device("meta"):
        network = RealBasicVsr(Architecture())
    count = {
        "all": sum(p.numel() for p in network.parameters()),
        "cleaning": sum(p.numel() for p in network.image_cleaning.parameters()),
        "flow": sum(p.numel() for p in network.basicvsr.spynet.parameters()),
    }
    assert count == {"all": 6_294_834, "cleaning": 1_480_643, "flow": 1_440_300}


def test_a_pixel_costs_the_multiply_adds_that_are_stated():
    """0.41 million in each frame of a long clip, where all but one frame have two flows."""
    with random_weights():
        network = RealBasicVsr(Architecture()).eval()
    frames = torch.rand(2, 3, 32, 32)

    def million(function, *inputs):
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            list(function(*inputs))
        return counter.get_total_flops() / 2e6 / (4 * 32) ** 2

    both, flow = (
        million(network.upscaled, frames),
        million(network.basicvsr.spynet, frames[:1], frames[1:]),
    )
    assert both / 2 + flow == pytest.approx(0.41, abs=0.005)  # of the two there are two flows


@pytest.mark.parametrize("strip_rows", [1, 2, 5, 8, 16])
def test_strips_change_nothing_in_an_enlarged_frame(network, strip_rows):
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(1, 8, 17, 13, generator=generator)
    frame = torch.rand(1, 3, 17, 13, generator=generator)
    with torch.inference_mode():
        whole = network.basicvsr.enlarged(states, frame, strip_rows=17)
        strips = network.basicvsr.enlarged(states, frame, strip_rows=strip_rows)
    torch.testing.assert_close(strips, whole, rtol=0, atol=1e-6)


def test_cleaning_ends_once_the_residue_is_small_and_after_three_times_at_most(network):
    last = network.image_cleaning[1]
    weight, bias = last.weight.clone(), last.bias.clone()
    frames = torch.zeros(2, 3, 8, 8)
    try:
        with torch.no_grad():
            last.weight.zero_()
            for residue, times in ((0.0, 1), (0.99, 1), (1.0, 3), (7.0, 3)):
                last.bias.fill_(residue)
                cleaned, sizes = network.clean(frames)
                assert sizes == pytest.approx([residue] * times)
                assert torch.equal(cleaned, torch.full_like(frames, residue * times))
                assert not frames.any()  # what came in is as it was
    finally:
        with torch.no_grad():
            last.weight.copy_(weight)
            last.bias.copy_(bias)


def test_the_whole_clip_decides_whether_to_clean_again(network):
    """One frame with a large residue makes all of them be cleaned again."""
    frames = torch.zeros(4, 3, 8, 8)
    frames[0] = 1e5
    with torch.inference_mode():
        _, alone = network.clean(frames[1:])
        _, together = network.clean(frames)
    assert len(alone) == 1
    assert len(together) > 1


@pytest.mark.parametrize("beyond", ["zeros", "border"])
def test_a_flow_of_whole_pixels_is_a_shift(beyond):
    maps = torch.arange(2 * 5 * 7.0).reshape(1, 2, 5, 7)
    flow = torch.zeros(1, 2, 5, 7)
    flow[:, 0], flow[:, 1] = 2, -1  # what is right of and above a pixel
    found = warped(maps, flow, beyond=beyond)
    torch.testing.assert_close(found[..., 1:, :-2], maps[..., :-1, 2:], rtol=1e-5, atol=1e-4)
    outside = found[..., 1:, -1]
    expected = maps[..., :-1, -1] if beyond == "border" else torch.zeros_like(outside)
    torch.testing.assert_close(outside, expected, rtol=1e-5, atol=1e-4)


def test_every_frame_depends_on_all_others(network):
    """So that a clip is enlarged as a whole, and never in shorter ones."""
    generator = torch.Generator().manual_seed(2)
    frames = torch.rand(4, 3, 16, 16, generator=generator)
    with torch.inference_mode():
        before = torch.stack(list(network.upscaled(frames)))
        for place in (0, 3):
            other = frames.clone()
            other[place] = 1 - other[place]
            after = torch.stack(list(network.upscaled(other)))
            assert ((before - after).flatten(1).abs().amax(1) > 0).all()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (5, 33), (32, 32)])
def test_the_smallest_clips_are_enlarged(network, count, size):
    with torch.inference_mode():
        enlarged = torch.stack(list(network.upscaled(torch.rand(count, 3, *size))))
    assert enlarged.shape == (count, 3, 4 * size[0], 4 * size[1])
    assert torch.isfinite(enlarged).all()


# Weights.


def checkpoint_state():
    state = RealBasicVsr(Architecture()).state_dict()
    zeros = {f"generator.{key}": torch.zeros_like(value) for key, value in state.items()}
    others = {"step_counter": torch.zeros(1), "discriminator.conv_0.weight": torch.zeros(2, 2)}
    statistics = {
        f"generator_ema.basicvsr.spynet.{k}": torch.ones(1, 3, 1, 1) for k in ("mean", "std")
    }
    averaged = {f"generator_ema.{key}": value for key, value in state.items()}
    return state, {**zeros, **averaged, **others, **statistics}


def test_the_averaged_generator_of_a_checkpoint_is_used(tmp_path):
    state, content = checkpoint_state()
    torch.save({"state_dict": content, "meta": {"epoch": 1}}, tmp_path / "vsr.pth")
    network = residual(weights=str(tmp_path / "vsr.pth")).load()
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in state.items())


def test_a_checkpoint_without_it_is_refused(tmp_path):
    content = {"generator.image_cleaning.0.main.0.bias": torch.zeros(64)}
    torch.save({"state_dict": content}, tmp_path / "vsr.pth")
    with pytest.raises(WeightsError, match=r"missing: basicvsr\..* more"):
        residual(weights=str(tmp_path / "vsr.pth")).load()


def test_a_clip_without_a_patch_embedding_is_refused(tmp_path):
    torch.save({"visual.proj": torch.zeros(2, 2)}, tmp_path / "clip.pt")
    extractor = residual(patch_embedding=str(tmp_path / "clip.pt"))
    with pytest.raises(WeightsError, match=r"missing: visual\.conv1\.weight"):
        extractor.build(CPU)


def test_random_weights_mean_a_random_patch_embedding_too():
    asked = make_extractor("residual", weights="random-tiny", outputs=ALL)
    named = make_extractor("residual", weights="random-tiny", outputs=ALL, patch_embedding="random")

    keys = [{n: s.key for n, s in e.specs(decoder="pyav").items()} for e in (asked, named)]
    assert keys[0] == keys[1]


def test_the_patch_embedding_is_taken_from_a_whole_clip(tmp_path, frames):
    weight = torch.randn(768, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    torch.save({"visual.conv1.weight": weight, "logit_scale": torch.ones(())}, tmp_path / "clip.pt")
    extractor = residual(patch_embedding=str(tmp_path / "clip.pt"), outputs=ALL)
    rows = rows_of(extractor, video(frames, 224, 224, 32))
    fragment = rows["residuals"][3, :, 64:96, 32:64].float() / 255  # row 2, column 1
    expected = (weight * fragment).sum(dim=(1, 2, 3))
    torch.testing.assert_close(rows["residual-tokens"][3, 15], expected, rtol=1e-4, atol=1e-4)


# Rows.


@pytest.mark.parametrize(
    ("height", "width"),
    [(226, 303), (303, 226), (231, 239)],
    ids=["landscape", "portrait", "odd"],
)
def test_fragments_of_both_lie_at_the_same_places_of_the_cropped_video(height, width, frames):
    extractor = residual(outputs=("fragments", "residuals"))
    pictures = video(frames, height, width)
    cropped = pictures[..., : height // 4 * 4, : width // 4 * 4]
    rows = rows_of(extractor, pictures, clip=1)
    with torch.inference_mode():
        small = reduced(cropped / 255)
        enlarged = torch.stack(list(extractor.load().upscaled(small))).clamp(0, 1)
    expected = (255 * (enlarged - cropped / 255)).round()
    offsets = Fragments().offsets(timeline(*cropped.shape[-2:]), 1)
    rows_of_frame, columns_of_frame = cropped.shape[-2:]
    for row, column in np.ndindex(7, 7):
        top = min(rows_of_frame // 7 * row, rows_of_frame - 32) + offsets[row, column, 0]
        left = min(columns_of_frame // 7 * column, columns_of_frame - 32) + offsets[row, column, 1]
        there = (..., slice(top, top + 32), slice(left, left + 32))
        here = (..., slice(32 * row, 32 * row + 32), slice(32 * column, 32 * column + 32))
        assert torch.equal(rows["fragments"][here], cropped[there])
        # A value that falls on a half may be rounded either way.
        assert (rows["residuals"][here] - expected[there]).abs().max() <= 1
    assert rows["fragments"].dtype == torch.uint8
    assert rows["residuals"].dtype == torch.int16
    assert rows["residuals"].float().std() > 1


def test_reduced_forms_say_what_the_fragments_would(frames):
    extractor = residual()
    rows = rows_of(extractor, video(frames, 228, 232))
    values = rows["residuals"].double() / 255
    columns = [
        values.mean((2, 3)),
        values.flatten(2).std(2, correction=0),
        values.abs().mean((2, 3)),
        values.abs().amax((2, 3)),
    ]
    torch.testing.assert_close(
        rows["statistics"].double(), torch.cat(columns, 1), rtol=1e-5, atol=1e-6
    )
    pixels = normalise(rows["fragments"], CLIP_MEAN, CLIP_STD)
    embedding = extractor._embedding()
    for place in (0, 6, 7, 48):
        y, x = (32 * number for number in divmod(place, 7))
        fragment = pixels[5, :, y : y + 32, x : x + 32]
        expected = torch.tensordot(embedding, fragment, dims=3)
        torch.testing.assert_close(
            rows["fragment-tokens"][5, place], expected, rtol=1e-4, atol=1e-4
        )
    assert {name: tuple(values.shape) for name, values in rows.items()} == {
        output.name: output.shape for output in extractor.offers
    }


def test_a_video_smaller_than_the_fragments_is_enlarged_after_super_resolution(frames):
    extractor = residual(outputs=("fragments", "residuals"))
    pictures = video(frames, 90, 131)
    rows = rows_of(extractor, pictures)
    cropped = pictures[..., :88, :128]
    offsets = Fragments(small_videos="corrected").offsets(timeline(88, 128), 0)
    cut = Fragments(small_videos="corrected").cut
    assert torch.equal(rows["fragments"], cut(cropped, offsets))
    with torch.inference_mode():
        whole = torch.stack(list(residuals(extractor.load(), cropped)))
    expected = cut(255 * whole, offsets).round()
    assert (rows["residuals"] - expected).abs().max() <= 1
    assert rows["residuals"].min() < 0 < rows["residuals"].max()


def test_the_residual_of_a_flat_video_is_small_and_that_of_noise_is_not():
    """A network that adds nothing leaves the bilinear picture: the residual is lost detail."""
    extractor = residual()
    network = extractor.load()
    with torch.inference_mode():
        for layer in (network.image_cleaning[1], network.basicvsr.conv_last):
            layer.weight.zero_()
            layer.bias.zero_()
        flat = torch.full((2, 3, 32, 32), 77, dtype=torch.uint8)
        assert torch.stack(list(residuals(network, flat))).abs().max() < 1e-5
        noise = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
        assert torch.stack(list(residuals(network, noise))).std() > 0.2


@pytest.mark.parametrize("size", [(3, 40), (40, 2), (1, 1)])
def test_frames_of_less_than_four_pixels_are_refused(size):
    extractor = residual()
    clips = extractor.sampling.clips(timeline(*size))
    message = f"frames of {size[1]} x {size[0]} are too small for residual"
    with pytest.raises(InvalidFeatureError, match=message):
        extractor.side(timeline(*size), clips)


# Offsets travel below the frames.


@given(st.integers(4, 90), st.integers(4, 90), st.integers(0, 3), st.integers(0, 9))
def test_frames_and_offsets_come_back_as_they_went_in(height, width, clip, seed):
    view = residual(seed=seed).view
    line = timeline(20 * height, 20 * width)
    pictures = torch.arange(2 * 3 * height * width).remainder(251).to(torch.uint8)
    pictures = pictures.reshape(2, 3, height, width)
    carried = view.of_clip(line, clip)(pictures)
    frames, offsets = view.split(carried)
    assert torch.equal(frames, pictures[..., : height // 4 * 4, : width // 4 * 4])
    np.testing.assert_array_equal(offsets, view.offsets(line, clip))
    assert carried.shape[-2] - frames.shape[-2] <= 17  # 196 bytes


def test_offsets_are_those_of_every_extractor_with_this_stream():
    line = timeline(540, 960)
    view = residual().view
    for clip in range(3):
        np.testing.assert_array_equal(view.offsets(line, clip), Fragments().offsets(line, clip))
    assert view.offsets(line, 0).max() > 0


def test_frames_and_offsets_of_each_row_stand_beside_it():
    extractor = residual(train_clips=2)
    line = timeline(540, 960, count=100)
    clips = extractor.sampling.clips(line)
    side = extractor.side(line, clips)
    assert side["frames"].shape == (5, 1, 32)
    np.testing.assert_array_equal(side["frames"][:, 0], clips.frames)
    for clip in range(5):
        np.testing.assert_array_equal(side["offsets"][clip, 0], extractor.view.offsets(line, clip))


# Keys.


def keys(**parameters):
    specs = residual(**parameters).specs(decoder="pyav")
    return {name: spec.key for name, spec in specs.items()}


def test_the_patch_embedding_is_in_the_keys_of_tokens_alone(tmp_path):
    (tmp_path / "clip.pt").write_bytes(b"weights")
    one, other = keys(), keys(patch_embedding=str(tmp_path / "clip.pt"))
    different = {name for name in one if one[name] != other[name]}
    assert different == {"fragment-tokens", "residual-tokens"}
    assert keys(outputs=("statistics",), patch_embedding="nowhere") == {
        "statistics": one["statistics"]
    }


@pytest.mark.parametrize("change", [{"train_clips": 4}, {"seed": 1}, {"stream": "s"}])
def test_clips_and_offsets_are_in_all_keys(change):
    one, other = keys(), keys(**change)
    assert all(one[name] != other[name] for name in ALL)


def test_less_than_no_training_clips_are_refused():
    with pytest.raises(RecipeError, match="train_clips"):
        residual(train_clips=-1)


# The whole way.


def test_a_bank_holds_what_was_computed_and_frames_too_small_are_failures(tmp_path, frames):
    """A portrait video, shorter than a clip, whose height is no multiple of four."""
    sizes = {"portrait": (70, 46), "tiny": (40, 2)}
    for name, size in sizes.items():
        pictures = frames(name, 5, *size)
        decoding.encode(tmp_path / f"{name}.mp4", iter(pictures), rate=10, crf=10)
    videos = [Video(f"set/{name}.mp4", tmp_path / f"{name}.mp4") for name in sizes]
    extractor = residual(outputs=("fragments", "residuals"))
    store = FeatureStore.create(tmp_path / "bank")
    run = Extraction(videos, [extractor], store, decoder="pyav", device=CPU)
    failures = {outcome.video.id: outcome.failures for outcome in run.run()}
    assert not failures["set/portrait.mp4"]
    assert all("2 x 40 are too small" in why for why in failures["set/tiny.mp4"].values())
    assert len(failures["set/tiny.mp4"]) == 2

    known = decoding.probe(videos[0].path)
    line = Timeline(known.pts_seconds, 5, 10.0, videos[0].id, 70, 46)
    ((_, decoded),) = decoding.decode(videos[0].path, known, range(5))
    clips = extractor.sampling.clips(line)
    clip_fn = extractor.build(CPU)
    banked = {o: store.read(s, videos[0].id) for o, s in extractor.specs(decoder="pyav").items()}
    for clip in range(3):
        pictures = torch.from_numpy(decoded[clips.frames[clip]]).permute(0, 3, 1, 2)
        with torch.inference_mode():
            rows = clip_fn(extractor.view.of_clip(line, clip)(pictures)[None])
        for output, feature in banked.items():
            assert np.abs(feature.values[clip].astype(int) - rows[output][0, 0].numpy()).max() <= (
                output == "residuals"  # a half may be rounded either way by other threads
            )
            np.testing.assert_array_equal(
                feature.side["offsets"][clip], extractor.view.offsets(line, clip)
            )
    assert banked["fragments"].values.dtype == np.uint8
    assert banked["residuals"].values.dtype == np.int16
