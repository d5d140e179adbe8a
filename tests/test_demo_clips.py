from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vqbank.extractors.video import decode, probe
from vqbank.pipelines.demo import clips as demo_clips
from vqbank.pipelines.demo.clips import (
    DEGRADATIONS,
    HEIGHT,
    MAX_PICTURE_WIDTH,
    SHOTS,
    UNSEEN_DEGRADATIONS,
    UNSEEN_SHOT,
    WIDTH,
    Degradation,
    Frames,
    degrade,
    make_demo_set,
    open_picture,
    pseudo_score,
    render,
    spatial_information,
    write_clip,
)
from vqbank.pipelines.manifest import read_manifest

ALL_SHOTS = (*SHOTS, UNSEEN_SHOT)
SHOT = SHOTS[1]
NAMED = {one.name: one for one in DEGRADATIONS}


@pytest.fixture(scope="module")
def frames() -> Iterator[Frames]:
    with ThreadPoolExecutor(2) as threads:
        yield render(SHOT, seed=0, threads=threads)


def degraded(frames: Frames, name: str) -> Frames:
    return np.stack(list(degrade(frames, NAMED[name], np.random.default_rng(0))))


def luma(frames: Frames) -> NDArray[np.float64]:
    return frames @ np.array([0.299, 0.587, 0.114])


def fine_detail(frames: Frames) -> float:
    """Energy of what differs from pixel to pixel."""
    return float(np.square(np.diff(luma(frames), axis=2)).mean())


def repeated(frames: Frames) -> NDArray[np.bool_]:
    return (frames[1:] == frames[:-1]).all(axis=(1, 2, 3))


def by_kind() -> dict[str, list[Degradation]]:
    kinds: dict[str, list[Degradation]] = defaultdict(list)
    for one in DEGRADATIONS:
        kinds[one.kind].append(one)
    return kinds


def test_there_are_at_least_12_scenes_and_each_has_a_picture_of_its_own() -> None:
    assert len(SHOTS) >= 12
    assert len({shot.scene for shot in ALL_SHOTS}) == len(ALL_SHOTS)
    assert len({open_picture(shot.picture).tobytes() for shot in ALL_SHOTS}) == len(ALL_SHOTS)


def test_every_scene_comes_pristine_and_in_at_least_9_degradations_of_every_kind() -> None:
    assert len({one.name for one in DEGRADATIONS}) == len(DEGRADATIONS) >= 10
    assert [one.name for one in DEGRADATIONS if one.kind == "pristine"] == ["pristine"]
    assert len(by_kind()) == 7


def test_the_unseen_video_comes_in_several_qualities() -> None:
    assert len(UNSEEN_DEGRADATIONS) >= 2
    assert NAMED["pristine"] in UNSEEN_DEGRADATIONS


@pytest.mark.parametrize("shot", ALL_SHOTS, ids=lambda shot: shot.scene)
def test_a_scene_lasts_3_to_4_seconds_at_25_to_30_frames_a_second(shot: demo_clips.Shot) -> None:
    assert 25 <= shot.rate <= 30
    assert 3 <= shot.frame_count / shot.rate <= 4


@pytest.mark.parametrize("shot", ALL_SHOTS, ids=lambda shot: shot.scene)
def test_the_camera_stays_inside_the_picture_and_hardly_enlarges_it(shot: demo_clips.Shot) -> None:
    picture = open_picture(shot.picture)
    corners = np.array([[0, WIDTH, 0, WIDTH], [0, 0, HEIGHT, HEIGHT], [1, 1, 1, 1]])
    for seed in range(20):
        path = shot.path(np.random.default_rng(seed)).reshape(-1, 2, 3)
        seen = path @ corners
        assert seen.min() >= 0
        assert seen[:, 0].max() <= picture.width
        assert seen[:, 1].max() <= picture.height
        # Output pixels per picture pixel along a line: above it, pristine clips would look soft.
        assert (np.linalg.det(path[:, :, :2]) ** -0.5).max() <= 1.3


@pytest.mark.parametrize("shot", ALL_SHOTS, ids=lambda shot: shot.scene)
def test_the_camera_moves_in_every_frame(shot: demo_clips.Shot) -> None:
    path = shot.path(np.random.default_rng(0)).reshape(-1, 2, 3)
    centre = path @ np.array([WIDTH / 2, HEIGHT / 2, 1])
    assert np.linalg.norm(np.diff(centre, axis=0), axis=1).min() > 0.05
    assert np.linalg.norm(centre[-1] - centre[0]) > 30


def test_a_frame_shows_what_the_path_says() -> None:
    shot = demo_clips.Shot(
        SHOT.picture, 25, 3.0, demo_clips.Pose(256, 200, 500), demo_clips.Pose(256, 300, 500)
    )
    with ThreadPoolExecutor(1) as threads:
        first = render(shot, seed=3, threads=threads)[0]
    row = shot.path(demo_clips._generator(3, shot.scene, "camera"))[0]
    picture = luma(np.asarray(open_picture(shot.picture)))
    y, x = np.mgrid[10 : HEIGHT - 10, 10 : WIDTH - 10]
    nearest_x = np.floor(row[0] * (x + 0.5) + row[1] * (y + 0.5) + row[2]).astype(int)
    nearest_y = np.floor(row[3] * (x + 0.5) + row[4] * (y + 0.5) + row[5]).astype(int)
    shown = luma(first)[10 : HEIGHT - 10, 10 : WIDTH - 10]
    there = np.corrcoef(shown.ravel(), picture[nearest_y, nearest_x].ravel())[0, 1]
    beside = np.corrcoef(shown.ravel(), picture[nearest_y + 3, nearest_x].ravel())[0, 1]
    assert there > 0.95
    assert there > beside


def test_base_scores_fall_with_severity_within_each_kind() -> None:
    for versions in by_kind().values():
        scores = [one.pseudo_score for one in sorted(versions, key=lambda one: abs(one.severity))]
        assert scores == sorted(set(scores), reverse=True)
    assert max(DEGRADATIONS, key=lambda one: one.pseudo_score).kind == "pristine"


@pytest.mark.parametrize("information", [0.0, 70.0, 200.0])
def test_scores_of_a_scene_fall_with_severity_whatever_the_spread(information: float) -> None:
    for versions in by_kind().values():
        versions.sort(key=lambda one: abs(one.severity))
        for seed in range(50):
            scores = [pseudo_score(one, "any", information, seed=seed) for one in versions]
            assert scores == sorted(set(scores), reverse=True)
            assert min(scores) >= 0
            assert max(scores) <= 100


def test_the_spread_is_small_and_depends_on_seed_scene_and_degradation() -> None:
    blur, noise = NAMED["blur_1.2"], NAMED["noise_8"]
    spread = [pseudo_score(blur, "a", 70, seed=seed) - blur.pseudo_score for seed in range(500)]
    assert abs(np.mean(spread)) < 0.3
    assert 1.6 < np.std(spread) < 2.2
    assert np.abs(spread).max() <= 4
    assert pseudo_score(blur, "a", 70, seed=0) == pseudo_score(blur, "a", 70, seed=0)
    assert pseudo_score(blur, "a", 70, seed=0) != pseudo_score(blur, "b", 70, seed=0)
    assert spread[0] != pseudo_score(noise, "a", 70, seed=0) - noise.pseudo_score


def test_a_busy_scene_hides_compression_and_shows_blur() -> None:
    def gain(name: str) -> float:
        busy, plain = (pseudo_score(NAMED[name], "a", si, seed=0) for si in (130, 10))
        return busy - plain

    assert 0 < gain("crf_33") <= 16
    assert -6 <= gain("blur_2.5") < 0
    assert gain("drop_1_2") == 0


def test_spatial_information_is_the_spread_of_the_gradient() -> None:
    flat = np.full((5, HEIGHT, WIDTH, 3), 90, np.uint8)
    step = flat.copy()
    step[:, :, WIDTH // 2 :] = 100
    assert spatial_information(flat) == pytest.approx(0, abs=1e-9)
    # Two columns of 638 inside the border have a gradient of 4 x 10.
    share = 2 / (WIDTH - 2)
    assert spatial_information(step) == pytest.approx(40 * np.sqrt(share * (1 - share)))


def test_every_degradation_keeps_length_and_size(frames: Frames) -> None:
    few = frames[:8]
    for one in DEGRADATIONS:
        assert degraded(few, one.name).shape == few.shape
        assert degraded(few, one.name).dtype == np.uint8


def test_pristine_and_compressed_frames_reach_the_encoder_untouched(frames: Frames) -> None:
    for name in ("pristine", "crf_33", "crf_47"):
        np.testing.assert_array_equal(degraded(frames[:3], name), frames[:3])


def test_more_blur_and_more_scaling_leave_less_detail(frames: Frames) -> None:
    few = frames[::30]
    pristine = fine_detail(few)
    for mild, strong in (("blur_1.2", "blur_2.5"), ("scale_2", "scale_4")):
        remaining = fine_detail(degraded(few, mild)), fine_detail(degraded(few, strong))
        assert pristine > 1.3 * remaining[0] > 2 * remaining[1]


def test_noise_has_its_standard_deviation_and_differs_from_frame_to_frame() -> None:
    grey = np.full((3, HEIGHT, WIDTH, 3), 128, np.uint8)
    for name in ("noise_8", "noise_20"):
        noise = luma(degraded(grey, name)) - 128
        assert noise.std() == pytest.approx(NAMED[name].severity, rel=0.02)
        assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.02


def test_dropped_frames_repeat_the_one_before_and_move_no_other(frames: Frames) -> None:
    assert not repeated(frames).any()
    for name in ("drop_1_4", "drop_1_2"):
        shown = degraded(frames, name)
        frozen = repeated(shown)
        assert frozen.sum() == round(NAMED[name].severity * len(frames))
        np.testing.assert_array_equal(shown[0], frames[0])
        np.testing.assert_array_equal(shown[1:][~frozen], frames[1:][~frozen])


def test_underexposure_by_one_stop_halves_the_light(frames: Frames) -> None:
    dark = degraded(frames[:2], "dark") / 255.0
    light = (frames[:2] / 255.0) ** 2.2
    np.testing.assert_allclose(dark**2.2, light / 2, atol=0.005)


def test_a_clip_has_the_same_bytes_for_a_seed_and_any_number_of_threads(tmp_path: Path) -> None:
    shot = replace(SHOT, seconds=0.6)

    def clip(folder: str, *, seed: int, workers: int) -> bytes:
        (tmp_path / folder).mkdir()
        with ThreadPoolExecutor(workers) as threads:
            rendered = render(shot, seed=seed, threads=threads)
        noise = NAMED["noise_8"]
        return write_clip(tmp_path / folder, shot, rendered, noise, seed=seed).read_bytes()

    first = clip("first", seed=5, workers=1)
    assert first == clip("again", seed=5, workers=3)
    assert first != clip("other", seed=6, workers=1)


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, int]]]:
    """The real thing with two scenes of three versions."""
    folder = tmp_path_factory.mktemp("set")
    calls: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_clips, "SHOTS", SHOTS[:2])
        patch.setattr(
            demo_clips, "DEGRADATIONS", tuple(map(NAMED.get, ("pristine", "crf_40", "drop_1_2")))
        )
        patch.setattr(demo_clips, "UNSEEN_DEGRADATIONS", UNSEEN_DEGRADATIONS[:2])
        manifest = make_demo_set(
            folder, seed=1, progress=lambda done, total: calls.append((done, total))
        )
    return manifest, calls


def test_the_manifest_names_every_clip_with_scene_and_pseudo_score(
    small_set: tuple[Path, list[tuple[int, int]]],
) -> None:
    manifest, _ = small_set
    videos = read_manifest(manifest)
    assert [video.scene for video in videos] == [shot.scene for shot in SHOTS[:2] for _ in range(3)]
    assert {video.path for video in videos} == set((manifest.parent / "clips").rglob("*.mp4"))
    assert "PSEUDO-SCORE" in (manifest.parent / "README.txt").read_text()
    for pristine, compressed, dropped in (videos[:3], videos[3:]):
        assert pristine.id == f"demo/{pristine.scene}/pristine"
        scores = [video.mos or 0.0 for video in (pristine, dropped, compressed)]
        assert scores == sorted(scores, reverse=True)


def test_the_unseen_scene_is_not_in_the_manifest(
    small_set: tuple[Path, list[tuple[int, int]]],
) -> None:
    manifest, _ = small_set
    assert UNSEEN_SHOT.scene not in {video.scene for video in read_manifest(manifest)}
    assert len(list((manifest.parent / "unseen").glob("*.mp4"))) == 2


def test_progress_counts_every_clip(small_set: tuple[Path, list[tuple[int, int]]]) -> None:
    assert small_set[1] == [(done, 8) for done in range(1, 9)]


def test_the_clips_are_360p_and_what_their_names_say(
    small_set: tuple[Path, list[tuple[int, int]]],
) -> None:
    manifest, _ = small_set
    details, freezes = {}, {}
    for video in read_manifest(manifest)[:3]:
        found = probe(video.path)
        assert (found.width, found.height, found.codec) == (640, 360, "h264")
        assert found.rate == pytest.approx(SHOTS[0].rate)
        assert len(found.pts_seconds) == SHOTS[0].frame_count
        decoded = decode(video.path, found, np.arange(31))
        pictures = np.concatenate([chunk for _, chunk in decoded])
        details[video.path.stem] = fine_detail(pictures[::30])
        changes = np.square(np.diff(luma(pictures), axis=0)).mean(axis=(1, 2))
        freezes[video.path.stem] = int((changes < 0.1 * changes.max()).sum())
    assert details["crf_40"] < 0.7 * details["pristine"]
    assert freezes["pristine"] == 0
    assert freezes["drop_1_2"] > 5


def test_a_missing_package_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="no_such_package, which is not installed"):
        open_picture("no_such_package/data/picture.png")
    with pytest.raises(FileNotFoundError, match=r"no_such_picture\.png is missing"):
        open_picture("skimage/data/no_such_picture.png")


def test_a_picture_is_found_without_importing_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package_that_must_not_run"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    Image.new("L", (1520, 400)).save(package / "wide.png")
    monkeypatch.syspath_prepend(tmp_path)
    picture = open_picture("package_that_must_not_run/wide.png")
    assert picture.mode == "RGB"
    assert picture.size == (MAX_PICTURE_WIDTH, 200)
