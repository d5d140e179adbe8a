"""The dry run: nothing is written to the bank, and what it says is what a run then needs."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from vqbank.extractors import make_extractor
from vqbank.extractors import video as decoding
from vqbank.extractors.base import Extractor, Output
from vqbank.extractors.sampling import Clips, KeyFrames
from vqbank.extractors.views import Native, Squash
from vqbank.pipelines.extraction import assembly, dry_run
from vqbank.pipelines.extraction.dry_run import bank_as_it_is, estimate, show_estimate
from vqbank.pipelines.extraction.extract import Extraction
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import DecodeError
from vqbank.store.schema import SideSpec, Video

CPU = torch.device("cpu")


@dataclass(frozen=True)
class MostMotion:
    """The frames that differ most from their neighbours."""

    count: int

    def clips_by_motion(self, timeline, motion):
        frames = np.sort(np.argsort(-motion, kind="stable")[: self.count])[:, None]
        return Clips(frames, frames)


@dataclass(frozen=True, kw_only=True)
class Liveliest(Extractor):
    """Mean colour of the frames with most motion."""

    name = "liveliest"
    version = 1
    offers = (Output("colour", (3,), "float32"),)
    sampling = MostMotion(4)
    view = Squash(8, 8)

    def build(self, device):
        return lambda clips: {"colour": clips.float().mean((-1, -2))}


@dataclass(frozen=True, kw_only=True)
class Corner(Extractor):
    """The first pixel of every key frame, and the frame's number beside it."""

    name = "corner"
    version = 1
    offers = (Output("pixel", (3,), "float32", (SideSpec("number", (2,), "int32"),)),)
    sampling = KeyFrames()
    view = Native()

    def side(self, timeline, clips):
        return {"number": np.repeat(clips.rows[..., None], 2, axis=-1).astype(np.int32)}

    def build(self, device):
        return lambda clips: {"pixel": clips[..., 0, 0].float()}


def clip(path, frames, seed):
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (frames, 24, 32, 3), dtype=np.uint8)
    decoding.encode(path, iter(pictures), rate=10, crf=23)
    return Video(f"set/{path.name}", path)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return [clip(folder / f"{n}.mp4", frames, n) for n, frames in enumerate([12, 45, 21, 30, 33])]


@pytest.fixture(autouse=True)
def a_sample_is_enough(monkeypatch):
    """However short the runs are."""
    monkeypatch.setattr(dry_run, "ENOUGH_SECONDS", 0.0)


def extraction(videos, store, *extractors):
    return Extraction(videos, extractors, store, decoder="pyav", device=CPU)


def tree(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_dry_run_writes_nothing_to_the_bank(tmp_path, videos):
    store = FeatureStore.create(tmp_path / "bank")
    list(extraction(videos[:2], store, Corner()).run())
    before = tree(tmp_path)

    found = estimate(extraction(videos, store, Corner(), make_extractor("motion")), sample=1)

    assert tree(tmp_path) == before
    assert (found.videos, found.missing, found.absent) == (5, 5, 0)
    assert [disk.missing for disk in found.disk] == [3, 5]


def test_a_bank_that_is_not_there_is_not_made(tmp_path):
    with bank_as_it_is(tmp_path / "bank") as store:
        assert store.specs() == []
    assert not store.path.exists()
    assert not list(tmp_path.iterdir())

    FeatureStore.create(tmp_path / "bank")
    with bank_as_it_is(tmp_path / "bank") as store:
        assert store.path == tmp_path / "bank"
    assert store.path.exists()


def test_disk_of_a_whole_sample_is_what_the_writer_then_writes(tmp_path, videos):
    """Values, times and side arrays, byte for byte where no video is left to extrapolate to."""
    store = FeatureStore.create(tmp_path / "bank")
    run = extraction(videos, store, Corner(), make_extractor("motion"))

    found = estimate(run, sample=len(videos))
    list(run.run())

    for disk in found.disk:
        (shard,) = store.winners(disk.spec)
        names = (
            "values",
            "pts_seconds",
            "frame_index",
            *(f"side/{s.name}" for s in disk.spec.side),
        )
        stored = sum(shard.stored(n, name).nbytes for n in range(len(shard)) for name in names)
        assert disk.missing_bytes == pytest.approx(stored)
        assert disk.video_bytes == pytest.approx(stored / len(videos))


def test_only_what_is_missing_is_run(tmp_path, videos, monkeypatch):
    store = FeatureStore.create(tmp_path / "bank")
    list(extraction(videos, store, make_extractor("motion")).run())

    built = []
    for kind in (Corner, type(make_extractor("motion"))):
        real = kind.build
        monkeypatch.setattr(
            kind,
            "build",
            lambda self, device, real=real: built.append(self.name) or real(self, device),
        )
    found = estimate(extraction(videos, store, make_extractor("motion"), Corner()), sample=1)
    nothing = estimate(extraction(videos, store, make_extractor("motion")))

    assert built == ["corner"]
    assert all(disk.video_bytes for disk in found.disk)
    assert (nothing.missing, nothing.sample, nothing.seconds) == (0, (), (0.0, 0.0))


def test_the_sample_is_spread_over_sizes_and_costs_no_more_than_itself(tmp_path, videos):
    run = extraction(videos, FeatureStore.create(tmp_path / "bank"), Corner())
    by_size = sorted(videos, key=lambda video: video.path.stat().st_size)

    found = estimate(run)

    assert {outcome.video for outcome in found.sample} == {by_size[0], by_size[2], by_size[4]}
    assert run.decoded_videos == 0
    assert 0 < found.seconds[0] <= found.seconds[1]
    assert found.machine_seconds == found.seconds
    assert found.memory_bytes > 50e6


def test_more_workers_share_the_work(tmp_path, videos):
    """All but what each of them needs to begin."""
    store = FeatureStore.create(tmp_path / "bank")
    trial = dry_run._Trial(extraction(videos, store, Corner()), store, workers=4)
    trial._runs = [(10, 5.0, 1.0), (100, 20.0, 8.0)]

    assert trial.seconds(1000) == pytest.approx((3.0 + 80 / 4, 3.0 + 200 / 4))


def test_what_every_run_takes_to_begin_is_not_taken_for_speed(tmp_path, videos):
    """Of files of 10 bytes: 6 s to load, 2 s to begin, 0.1 s a video, half of it busy."""
    trial = dry_run._Trial(
        extraction(videos, FeatureStore.create(tmp_path / "bank"), Corner()),
        FeatureStore(tmp_path / "bank"),
        workers=1,
    )
    trial._runs = [(10, 8.1, 7.0), (20, 2.2, 1.1), (200, 4.0, 2.0)]

    assert trial.seconds(10_000) == pytest.approx((8 + 50, 8 + 100))


def test_short_runs_are_followed_by_longer_ones(tmp_path, videos, monkeypatch):
    """Also over videos that have some of the features, which are not made again."""
    store = FeatureStore.create(tmp_path / "bank")
    list(extraction(videos, store, make_extractor("motion")).run())
    monkeypatch.setattr(dry_run, "ENOUGH_SECONDS", 100.0)
    run = extraction(videos, store, make_extractor("motion"), Corner())

    found = estimate(run, sample=3)

    assert sorted(outcome.video.id for outcome in found.sample) == [v.id for v in videos]
    assert not any(outcome.failures for outcome in found.sample)
    assert 0 < found.seconds[0] <= found.seconds[1]


def test_extra_passes_are_counted_where_frames_cannot_wait_for_the_motion(
    tmp_path, videos, monkeypatch
):
    store = FeatureStore.create(tmp_path / "bank")
    run = extraction(videos, store, Liveliest(), Corner())

    assert estimate(run, sample=1).extra_passes == 0
    monkeypatch.setattr(assembly, "RETAINED_BYTES", 28 * 3 * 8 * 8)
    announced = estimate(run, sample=len(videos)).extra_passes
    outcomes = list(run.run())
    assert announced == run.decoded_videos - len(videos) == 3
    assert not any(outcome.failures for outcome in outcomes)

    again = extraction(videos, store, Liveliest(stored_dtype="float16"))
    assert estimate(again, sample=1).extra_passes == 0  # the series is banked by now


def test_files_that_are_not_there_are_counted_and_not_tried(tmp_path, videos, capsys):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "empty.mp4").touch()
    names = ("folder.mp4", "empty.mp4", "gone.mp4")
    absent = [Video(name, tmp_path / name) for name in names]
    store = FeatureStore.create(tmp_path / "bank")

    found = estimate(extraction([*absent, *videos], store, Corner()), sample=1)
    show_estimate(found)

    assert (found.missing, found.absent, found.empty) == (8, 2, 1)
    assert all(not outcome.failures for outcome in found.sample)
    said = capsys.readouterr().out
    assert "8 to do, the files of 2 of these are not there, the files of 1 are empty" in said
    assert found.disk[0].spec.key in said
    assert "LSVQ (38,811)" in said
    assert "machine hours" in said


def test_slow_networks_are_tried_on_one_video_and_a_whole_sample_is_not_waited_for(
    tmp_path, videos, monkeypatch
):
    by_size = sorted(videos, key=lambda video: video.path.stat().st_size)
    run = extraction(videos, FeatureStore.create(tmp_path / "bank"), Corner())
    monkeypatch.setattr(dry_run, "TRIAL_SECONDS", 0.0)

    found = estimate(run, sample=len(videos))

    assert [outcome.video for outcome in found.sample] == by_size[:1]
    assert found.seconds[1] > 0
    assert all(disk.video_bytes for disk in found.disk)


def test_a_damaged_video_in_the_sample_is_named_and_says_nothing_of_the_rest(
    tmp_path, videos, capsys
):
    page = tmp_path / "page.mp4"
    page.write_text("<html>not found</html>" * 10_000)
    store = FeatureStore.create(tmp_path / "bank")
    run = extraction([*videos[:2], Video("page.mp4", page)], store, Corner())

    found = estimate(run)
    show_estimate(found)

    assert "failed: page.mp4: " in capsys.readouterr().out
    whole = sum(video.path.stat().st_size for video in videos[:2])
    row = 3 * 4 + 2 * 4 + 8 + 8
    rows = 2 + 5  # 12 and 45 frames at 10 a second
    expected = row * rows * (whole + page.stat().st_size) / whole
    assert found.disk[0].missing_bytes == pytest.approx(expected)
    with pytest.raises(DecodeError, match=r"no video of 1 that were tried can be decoded: .*page"):
        estimate(extraction([Video("page.mp4", page)], store, Corner()))


def test_what_continues_a_cut_network_is_counted_once(tmp_path, videos, capsys):
    clip_tokens = make_extractor("clip", weights="random-tiny", cut=1, outputs=["tokens"])
    store = FeatureStore.create(tmp_path / "bank")
    run = extraction(videos[:1], store, clip_tokens, Corner())

    found = estimate(run, sample=1)
    show_estimate(found)
    list(run.run())

    tokens, pixel = found.disk
    written = [path.stat().st_size for path in store.path.glob("*/tail/*.safetensors")]
    assert (tokens.tail_bytes, pixel.tail_bytes) == (sum(written), 0)
    assert f"beside {tokens.spec.key}, once: " in capsys.readouterr().out
