"""Extraction: one decode per video, nothing twice, nothing lost, nothing silent."""

import errno
import gc
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from vqbank.extractors import make_extractor
from vqbank.extractors import video as decoding
from vqbank.extractors.isolated import Decoder
from vqbank.extractors.motion import Motion
from vqbank.extractors.nss import Nss
from vqbank.pipelines.extraction import extract, resources
from vqbank.pipelines.extraction.assembly import Assembly, FullClip
from vqbank.pipelines.extraction.batch import Batch
from vqbank.pipelines.extraction.extract import Extraction
from vqbank.pipelines.extraction.memory import WorkingMemory
from vqbank.pipelines.extraction.one_video import OneVideo
from vqbank.pipelines.extraction.status import History, failed_videos, show_status
from vqbank.pipelines.stopping import ASKED, stopped_by_signals
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import ManifestError, WeightsError
from vqbank.store.schema import Video

CPU = torch.device("cpu")


def clip(path, frames=30, size=(64, 48), seed=0, rate=25):
    """A moving, textured picture."""
    width, height = size
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 256, (height, width + frames, 3), dtype=np.uint8)
    texture = (texture.astype(float) + np.roll(texture, 1, 0) + np.roll(texture, 1, 1)) / 3
    pictures = (texture[:, i : i + width].astype(np.uint8) for i in range(frames))
    path.parent.mkdir(parents=True, exist_ok=True)
    decoding.encode(path, pictures, rate=rate, crf=23)
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    lengths = [30, 26, 51, 9, 30]
    return [
        Video(f"set/{n}.mp4", clip(folder / f"{n}.mp4", length, seed=n))
        for n, length in enumerate(lengths)
    ]


def extraction(videos, store, *names, decoder="pyav", **parameters):
    extractors = [make_extractor(name, **parameters.get(name, {})) for name in names]
    return Extraction(videos, extractors, store, decoder=decoder, device=CPU)


def bank(path, videos, *names, **parameters):
    store = FeatureStore.create(path)
    run = extraction(videos, store, *names, **parameters)
    outcomes = list(run.run())
    return store, run, outcomes


def contents(store):
    """Every stored byte that two banks must share."""
    return {
        (spec.key, video): tuple(
            np.asarray(array).tobytes() for array in (f.values, f.pts_seconds, f.frame_index)
        )
        for spec in store.specs()
        for video in store.video_ids(spec)
        for f in [store.read(spec, video)]
    }


def test_every_frame_is_decoded_once_for_all_extractors(tmp_path, videos):
    """With three samplings at once, two of which share frames."""
    random = {"clip": {"weights": "random"}}
    _, run, outcomes = bank(tmp_path / "bank", videos, "nss", "motion", "clip", **random)

    frames = sum(len(decoding.probe(video.path).pts_seconds) for video in videos)
    assert all(not outcome.failures for outcome in outcomes)
    assert run.decoded_frames == frames
    assert run.decoded_videos == len(videos)


def test_a_second_run_decodes_nothing_and_builds_no_network(tmp_path, videos, monkeypatch):
    store, _, _ = bank(tmp_path / "bank", videos, "nss", "motion")
    before = contents(store)

    monkeypatch.setattr(Decoder, "open", lambda self, path: pytest.fail("opened a banked video"))
    _, run, outcomes = bank(tmp_path / "bank", videos, "nss", "motion")

    assert all(outcome.cached for outcome in outcomes)
    assert run.decoded_frames == 0
    assert contents(FeatureStore(store.path)) == before


def test_only_what_is_missing_is_computed(tmp_path, videos):
    store, _, _ = bank(tmp_path / "bank", videos[:2], "nss")

    _, run, outcomes = bank(tmp_path / "bank", videos, "nss", "motion")

    assert [outcome.cached for outcome in outcomes] == [False] * len(videos)
    key_frames = store.resolve("nss.brisque")
    commits = list((store.path / key_frames.key / "commits").glob("*.json"))
    assert sorted(json.loads(c.read_text())["record"]["videos"] for c in commits) == [2, 3]
    assert store.video_ids(store.resolve("motion.series")) == [video.id for video in videos]
    assert run.decoded_videos == len(videos)


def test_the_bank_does_not_depend_on_order_company_or_interruption(tmp_path, videos):
    """The same bytes from one run, from a shuffled manifest, and from a run left after two."""
    random = {"clip": {"weights": "random"}}
    names = ("nss", "motion", "clip")
    one, _, _ = bank(tmp_path / "one", videos, *names, **random)
    shuffled, _, _ = bank(tmp_path / "two", videos[::-1], *names, **random)
    left = FeatureStore.create(tmp_path / "three")
    next(itertools.islice(extraction(videos, left, *names, **random).run(), 1, None))
    resumed, _, _ = bank(tmp_path / "three", videos, *names, **random)

    expected = contents(one)
    assert len(expected) == 3 * len(videos)
    assert contents(shuffled) == expected
    assert contents(resumed) == expected


KILLED = """
import sys
import threading
import time
from pathlib import Path
import torch
from vqbank.extractors import make_extractor
from vqbank.pipelines.extraction import banking, extract
from vqbank.pipelines.manifest import read_videos
from vqbank.store.bank import FeatureStore
banking.FLUSH_BYTES = 1
videos = read_videos(Path(sys.argv[1]))
names = [make_extractor("nss"), make_extractor("motion")]
store = FeatureStore.create(Path(sys.argv[2]))
run = extract.Extraction(videos, names, store, decoder="pyav", device=torch.device("cpu"))
for outcome in run.run():
    print(outcome.video.id, flush=True)
"""


def test_a_killed_run_resumes_to_the_same_bank(tmp_path, videos):
    whole, _, _ = bank(tmp_path / "whole", videos, "nss", "motion")
    manifest = tmp_path / "set.csv"
    rows = [f"{video.id},{video.path}" for video in videos]
    manifest.write_text("\n".join(["id,path", *rows]) + "\n")

    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, manifest, tmp_path / "killed"], stdout=subprocess.PIPE
    )
    for _ in range(3):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    store = FeatureStore(tmp_path / "killed")
    committed = contents(store)
    resumed, run, _ = bank(tmp_path / "killed", videos, "nss", "motion")

    assert committed.items() <= contents(whole).items()
    assert committed
    assert contents(resumed) == contents(whole)
    assert run.decoded_videos <= len(videos)
    records = [json.loads(path.read_text())["record"] for path in store.path.glob("*/commits/*")]
    assert sum(record["videos"] for record in records) == len(contents(whole))  # nothing twice


def test_rows_stand_at_their_frames(tmp_path, videos):
    store, _, _ = bank(tmp_path / "bank", videos, "nss", "motion")

    for video in videos:
        pts = decoding.probe(video.path).pts_seconds
        per_frame = store.read(store.resolve("motion.series"), video.id)
        per_second = store.read(store.resolve("nss.brisque"), video.id)
        np.testing.assert_array_equal(per_frame.frame_index, np.arange(len(pts)))
        np.testing.assert_array_equal(per_frame.pts_seconds, pts)
        np.testing.assert_array_equal(per_second.frame_index, np.arange(0, len(pts), 25))


def test_every_bad_video_is_named_and_the_others_are_done(tmp_path, videos):
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "empty.mp4").touch()
    (folder / "page.mp4").write_text("<html>not found</html>" * 100)
    whole = videos[2].path.read_bytes()
    (folder / "half.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "folder.mp4").mkdir()
    names = ("empty.mp4", "page.mp4", "half.mp4", "folder.mp4", "gone.mp4")
    bad = [Video(f"bad/{name}", folder / name) for name in names]
    tiny = Video("bad/tiny.mp4", clip(folder / "tiny.mp4", size=(8, 8)))

    mixed = [bad[0], videos[0], *bad[1:], tiny, videos[1]]
    store, _, outcomes = bank(tmp_path / "bank", mixed, "nss", "motion")

    failures = {outcome.video.id: outcome.failures for outcome in outcomes if outcome.failures}
    assert sorted(failures) == sorted([*(video.id for video in bad), tiny.id])
    for video in bad:
        assert len(failures[video.id]) == 2
        for reason in failures[video.id].values():
            assert str(video.path) in reason
            assert "\n" not in reason
    for of_video in failures.values():  # the id stands before it, once
        assert not any(reason.startswith("bad/") for reason in of_video.values())
    assert list(failures[tiny.id]) == [store.resolve("nss.brisque").key]
    assert store.video_ids(store.resolve("nss.brisque")) == [videos[0].id, videos[1].id]
    assert tiny.id in store.video_ids(store.resolve("motion.series"))
    (ledger,) = (store.path / "ledger").iterdir()
    entries = [json.loads(line) for line in ledger.read_text().splitlines()]
    failed = [entry for entry in entries if entry["status"] == "failed"]
    assert {(entry["video"], entry["key"]) for entry in failed} == {
        (video, key) for video, keys in failures.items() for key in keys
    }


def test_a_video_damaged_late_keeps_the_features_that_were_complete(tmp_path):
    """A key frame at 0 s is whole; the series over all frames is not."""
    path = clip(tmp_path / "late.mp4", 24)
    content = bytearray(path.read_bytes())
    start, end = content.index(b"mdat"), content.index(b"moov")
    late = start + (end - start) * 3 // 4
    content[late : late + 200] = bytes(200)
    path.write_bytes(content)

    store, _, (outcome,) = bank(tmp_path / "bank", [Video("late", path)], "nss", "motion")

    assert [key.partition("@")[0] for key in outcome.failures] == ["motion.series"]
    assert store.video_ids(store.resolve("nss.brisque")) == ["late"]


def test_another_file_under_a_banked_id_fails_alone_until_the_old_one_is_back(
    tmp_path, videos, capsys
):
    """Also where the run asks for a feature more, which must not be made of the other file."""
    path = tmp_path / "a.mp4"
    shutil.copy(videos[0].path, path)
    changed = Video("set/a.mp4", path)
    store, _, _ = bank(tmp_path / "bank", [changed], "nss")
    before = contents(store)
    shutil.copy(videos[1].path, path)

    store, run, (outcome, *others) = bank(
        tmp_path / "bank", [changed, *videos[:2]], "nss", "motion"
    )

    assert outcome.video == changed
    assert outcome.failures.keys() == {spec.key for spec in run.specs}
    (reason,) = set(outcome.failures.values())
    assert re.match(r"/\S*a.mp4 \(\d+ bytes.*give it another id", reason)  # the id stands before it
    assert not any(other.failures for other in others)
    assert {(k, v): c for (k, v), c in contents(store).items() if v == changed.id} == before
    assert failed_videos(store, run.specs) == {changed.id}
    show_status(store.path, video=changed.id)
    shown = capsys.readouterr().out
    name = r"nss\.brisque@\w+"
    assert re.search(rf"{name}: banked .*\n{name}: failed once.* is not the file", shown)

    shutil.copy(videos[0].path, path)
    store, run, (outcome,) = bank(tmp_path / "bank", [changed], "nss", "motion")

    assert not outcome.failures
    assert not failed_videos(store, run.specs)
    shutil.copy(videos[1].path, path)
    bank(tmp_path / "bank", [changed], "nss", "motion")
    assert failed_videos(store, run.specs) == {changed.id}


@pytest.mark.parametrize("moment", ["probed", "decoded"])
def test_a_video_that_is_replaced_while_it_is_read_fails_alone(
    tmp_path, videos, monkeypatch, moment
):
    """With the same number of frames, so that nothing else could tell."""
    path = tmp_path / "a.mp4"
    shutil.copy(videos[0].path, path)
    name = {"probed": "_plan", "decoded": "_bank"}[moment]
    original = getattr(OneVideo, name)

    def after_replacing(self, *arguments):
        # At once, as a half-written file would fail for another reason.
        shutil.copy(videos[4].path, tmp_path / "new.mp4").replace(path)
        return original(self, *arguments)

    monkeypatch.setattr(OneVideo, name, after_replacing)
    replaced = Video("a", path)
    store, _, outcomes = bank(tmp_path / "bank", [replaced, videos[1]], "nss", "motion")

    reasons = {outcome.video.id: set(outcome.failures.values()) for outcome in outcomes}
    (reason,) = reasons.pop("a")
    assert "a.mp4 was replaced, changed or taken away while it was being read" in reason
    assert reasons == {videos[1].id: set()}
    assert {video for _, video in contents(store)} == {videos[1].id}
    monkeypatch.undo()
    assert not bank(tmp_path / "bank", [replaced], "nss", "motion")[2][0].failures


NO_MEMORY = {
    "torch": lambda: torch.empty(1 << 50),
    "numpy": lambda: np.empty(1 << 50),
    "c++": lambda: fail(RuntimeError("std::bad_alloc")),
    "cuda": lambda: fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")),
    "system": lambda: fail(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))),
}


def fail(error):
    raise error


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        *(("torch", place) for place in ("chunk", "view", "rows")),
        *((k, "network") for k in NO_MEMORY),
    ],
)
def test_memory_that_is_not_there_costs_one_video(tmp_path, videos, monkeypatch, kind, place):
    large = Video("large", clip(tmp_path / "large.mp4", 3, size=(96, 64)))
    owner, name = {
        "chunk": (OneVideo, "_look"),
        "view": (Assembly, "take"),
        "network": (Batch, "_rows"),
        "rows": (Assembly, "feature"),
    }[place]
    original = getattr(owner, name)

    def starved(self, *arguments, **options):
        if any(id_of(argument) == "large" for argument in (self, *arguments)):
            NO_MEMORY[kind]()
        return original(self, *arguments, **options)

    monkeypatch.setattr(owner, name, starved)
    store, run, outcomes = bank(tmp_path / "bank", [large, *videos[:2]], "nss")

    failures = {outcome.video.id: set(outcome.failures.values()) for outcome in outcomes}
    (reason,) = failures.pop("large")
    assert "memory" in reason or "alloc" in reason
    assert failures == {video.id: set() for video in videos[:2]}
    assert store.video_ids(store.resolve("nss.brisque")) == [v.id for v in videos[:2]]
    assert all(batch.size == e.batch_clips for e, batch in run.batches.items())


def id_of(thing):
    """Of the video that an argument is about."""
    match thing:
        case Assembly():
            return thing.opened.video.id
        case [FullClip(assembly=assembly), *_]:
            return assembly.opened.video.id
        case _:
            video = getattr(thing, "video", None)
            return getattr(video, "id", None)


def test_a_batch_that_finds_no_memory_is_tried_again_alone(tmp_path, videos, monkeypatch):
    """In the same shape on a CPU, so that the bank is the same."""
    whole, _, _ = bank(tmp_path / "whole", videos, "nss", "motion")
    rows, at_work, tried, beside = Batch._rows, [], [], []

    def starved(self, clip_fn, waiting):
        at_work.append(self)
        try:
            if not any(waiting is one for one in tried):
                tried.append(waiting)
                torch.empty(1 << 50)
            beside.append(len(at_work))
            return rows(self, clip_fn, waiting)
        finally:
            at_work.remove(self)

    monkeypatch.setattr(Batch, "_rows", starved)
    store, _, outcomes = bank(tmp_path / "bank", videos, "nss", "motion")

    assert not any(outcome.failures for outcome in outcomes)
    assert beside == [1] * len(tried)
    assert contents(store) == contents(whole)


def test_a_network_that_does_not_fit_stops_the_run_and_blames_no_video(
    tmp_path, videos, monkeypatch
):
    monkeypatch.setattr(Nss, "build", lambda self, device: torch.empty(1 << 50))
    store = FeatureStore.create(tmp_path / "bank")

    with pytest.raises(
        WeightsError, match="the network of nss does not fit into the memory of cpu"
    ):
        list(extraction(videos, store, "nss").run())
    assert not failed_videos(store, extraction(videos, store, "nss").specs)


def test_a_run_that_crashes_says_so_and_where(tmp_path, videos, monkeypatch, capsys):
    def bug(self, clip_fn, waiting):
        raise IndexError("a bug")

    monkeypatch.setattr(Batch, "_rows", bug)
    store = FeatureStore.create(tmp_path / "bank")
    with pytest.raises(IndexError, match="a bug"):
        list(extraction(videos[:1], store, "nss").run())

    show_status(store.path)
    shown = capsys.readouterr().out
    assert " crashed " in shown
    assert f"crashed: process {os.getpid()} on" in shown
    assert "IndexError: a bug; in nss, at set/0.mp4" in shown


def test_a_run_that_crashed_keeps_no_network(tmp_path, videos, monkeypatch):
    """Also where the error is kept, as a notebook does, and no garbage is collected."""
    built, rows = [], Batch._rows

    def kept(self, device, build=Motion.build):
        network = build(self, device)

        def compute(clips):
            return network(clips)

        built.append(weakref.ref(compute))
        return compute

    def bug(self, clip_fn, waiting):
        if self.extractor.name == "nss":
            computed.wait()
            raise IndexError("a bug")
        made = rows(self, clip_fn, waiting)
        computed.set()
        return made

    computed = threading.Event()
    monkeypatch.setattr(Motion, "build", kept)
    monkeypatch.setattr(Batch, "_rows", bug)
    run = extraction(videos, FeatureStore.create(tmp_path / "bank"), "motion")
    list(run.run())
    assert built[0]() is not None  # the next run needs it
    computed.clear()
    run = extraction(videos, FeatureStore.create(tmp_path / "other"), "motion", "nss")
    gc.disable()
    try:
        with pytest.raises(IndexError, match="a bug"):
            list(run.run())
        give_up = time.monotonic() + 10
        while built[1]() is not None and time.monotonic() < give_up:
            time.sleep(0.01)  # a thread may be in it
        assert built[1]() is None
    finally:
        gc.enable()


def test_a_run_stops_also_where_python_lost_the_interrupt(tmp_path, videos):
    """As it does where it comes in the middle of a collection of garbage."""
    store = FeatureStore.create(tmp_path / "bank")
    with stopped_by_signals():
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            list(extraction(videos, store, "motion").run())

    assert not ASKED.is_set()
    assert History.of(store.path).runs[-1].ending == "stopped"


def again_and_again(videos, count=400):
    """So many that a run over them takes seconds, under ids of their own."""
    return [Video(f"{n}", videos[n % len(videos)].path) for n in range(count)]


@pytest.mark.parametrize("step", ["start", "add_done_callback"])
def test_an_interrupt_while_a_run_sets_out_is_answered_at_once(tmp_path, videos, monkeypatch, step):
    """Just after the event loop's thread has started, and just after it got its work."""
    place = threading.Thread if step == "start" else Future
    real, interrupts = getattr(place, step), itertools.count()

    def interrupted(self, *arguments):
        if step == "start":
            real(self)
        ours = [getattr(self, "name", ""), *(call.__qualname__ for call in arguments)]
        if any("vqbank-loop" in one or "_outcomes" in one for one in ours) and not next(interrupts):
            raise KeyboardInterrupt
        return None if step == "start" else real(self, *arguments)

    monkeypatch.setattr(place, step, interrupted)
    store = FeatureStore.create(tmp_path / "bank")
    run = extraction(again_and_again(videos), store, "motion")

    with pytest.raises(KeyboardInterrupt):
        list(run.run())
    assert next(interrupts) == 1
    assert run.decoded_videos < len(run.videos) / 2
    assert History.of(store.path).runs[-1].ending == "stopped"


def test_a_run_that_is_to_end_ends_while_nobody_asks_it_for_more(tmp_path, videos, monkeypatch):
    """As where the interrupt is lost, or comes while the caller waits for the run's threads."""
    monkeypatch.setattr(extract, "TENDING_SECONDS", 0.01)
    leaving = threading.Event()
    store, many = FeatureStore.create(tmp_path / "bank"), again_and_again(videos)
    run = Extraction(
        many, [make_extractor("motion")], store, decoder="pyav", device=CPU, leaving=leaving
    )
    outcomes = run.run()
    taken = [next(outcomes)]
    leaving.set()
    with pytest.raises(KeyboardInterrupt):
        taken.extend(outcomes)

    assert len(taken) < len(many)
    assert run.decoded_videos < len(many)


def test_a_run_whose_outcomes_nobody_takes_stands_still(tmp_path, videos, monkeypatch):
    monkeypatch.setattr(extract, "UNTAKEN_OUTCOMES", 3)
    store, many = FeatureStore.create(tmp_path / "bank"), again_and_again(videos, 60)
    run = extraction(many, store, "motion")
    outcomes = run.run()
    next(outcomes)
    decoded = -1
    while decoded != run.decoded_videos:
        decoded = run.decoded_videos
        time.sleep(0.2)

    assert decoded < len(many) / 2  # what nobody takes, and what was under way
    assert len([*outcomes]) == len(many) - 1


def test_an_extraction_that_was_left_holds_no_clip_and_can_go_on(tmp_path, videos, monkeypatch):
    whole, _, _ = bank(tmp_path / "whole", videos, "nss")
    store, _, _ = bank(tmp_path / "bank", videos[:1], "nss")
    begun = threading.Event()

    def endless(self, clip_fn, waiting):
        begun.set()
        over.wait()
        return []

    over = threading.Event()
    run = extraction(videos, store, "nss")
    with monkeypatch.context() as patch:
        patch.setattr(Batch, "_rows", endless)
        outcomes = run.run()
        assert next(outcomes).cached
        begun.wait()
        assert run.held_bytes
        outcomes.close()
        over.set()
    assert run.held_bytes == 0

    run.held_limit = 1  # where a stale clip counted, nothing would ever be asked of a decoder
    assert not any(outcome.failures for outcome in run.run())
    assert run.held_bytes == 0
    assert contents(FeatureStore(store.path)) == contents(whole)


def test_a_video_whose_end_is_not_told_is_called_a_bug(tmp_path, videos, monkeypatch):
    real = Extraction._extract

    async def silent(self, video, decoder, resources, tell):
        await real(self, video, decoder, resources, tell if video is not videos[1] else str)

    monkeypatch.setattr(Extraction, "_extract", silent)
    run = extraction(videos, FeatureStore.create(tmp_path / "bank"), "motion")
    with pytest.raises(AssertionError, match="4 of 5 videos ended: this is a bug in vqbank"):
        list(run.run())


def test_the_clock_of_a_run_stands_still_before_and_after_it(tmp_path, videos):
    run = extraction(videos, FeatureStore.create(tmp_path / "bank"), "motion")
    time.sleep(0.02)
    assert run.run_seconds == run.networks_wait == 0
    begun = time.monotonic()
    list(run.run())
    taken = time.monotonic() - begun
    time.sleep(0.02)

    assert 0 < run.networks_wait < run.run_seconds < taken
    seconds = run.run_seconds
    list(run.run())  # everything is banked
    assert run.networks_wait <= run.run_seconds < seconds


def test_a_run_that_is_left_says_that_it_was_stopped(tmp_path, videos):
    store = FeatureStore.create(tmp_path / "bank")
    left = extraction(videos, store, "nss").run()
    next(left)
    left.close()

    assert History.of(store.path).runs[-1].state(time.time()) == "stopped"


def test_a_pause_of_parent_and_child_counts_as_no_silence(tmp_path, videos, monkeypatch):
    """As by Ctrl-Z: the clock goes on, and a child that was stopped too has nothing to say yet."""
    original, clock, pauses = resources.readable, time.monotonic, [0.0]

    async def readable(decoder, seconds):
        if sum(pauses) == 0 and decoder.seconds_left < 120:
            pauses.append(1000.0)
            return False
        return await original(decoder, seconds)

    monkeypatch.setattr(resources, "readable", readable)
    monkeypatch.setattr(time, "monotonic", lambda: clock() + sum(pauses))
    run = extraction(videos[:1], FeatureStore.create(tmp_path / "bank"), "motion")

    assert [outcome.failures for outcome in run.run()] == [{}]
    assert sum(pauses) == 1000


def test_a_clock_that_is_set_back_changes_no_bank(tmp_path, videos, monkeypatch):
    whole, _, _ = bank(tmp_path / "whole", videos[:3], "nss", "motion")
    now = itertools.count(2e9, -3600)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: next(now))
        bank(tmp_path / "bank", videos[:2], "nss", "motion")
        store, run, _ = bank(tmp_path / "bank", videos[:3], "nss", "motion")

    assert run.decoded_videos == 1
    assert contents(store) == contents(whole)
    assert History.of(store.path).runs[-1].state(time.time()) == "ended"


def test_a_banked_video_needs_no_file(tmp_path, videos):
    path = tmp_path / "a.mp4"
    shutil.copy(videos[0].path, path)
    bank(tmp_path / "bank", [Video("a", path)], "nss")
    path.unlink()

    _, _, (outcome,) = bank(tmp_path / "bank", [Video("a", path)], "nss")

    assert outcome.cached


def test_all_decoders_give_their_own_key_and_the_same_numbers(tmp_path, videos):
    store = FeatureStore.create(tmp_path / "bank")
    for decoder in decoding.DECODERS:
        run = extraction(videos[:1], store, "nss", decoder=decoder)
        (outcome,) = run.run()
        if any("FFmpeg" in reason for reason in outcome.failures.values()):
            pytest.skip(next(iter(outcome.failures.values())))
        assert not outcome.failures

    store.refresh()
    specs = store.specs()
    assert sorted(spec.identity["decoder"] for spec in specs) == sorted(decoding.DECODERS)
    values = [store.read(spec, videos[0].id).values.tobytes() for spec in specs]
    assert len(set(values)) == 1


def test_nothing_half_written_stays_after_an_error(tmp_path, videos, monkeypatch):
    """A disk that fills up while rows are written."""
    from vqbank.store.errors import BankError
    from vqbank.store.shard_writer import ShardWriter

    store, _, _ = bank(tmp_path / "bank", videos[:1], "nss")
    before = contents(store)

    def full(self, values):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(ShardWriter, "_write_rows", full)
    with pytest.raises(BankError, match="cannot be written"):
        bank(tmp_path / "bank", videos, "nss")

    reopened = FeatureStore(store.path)
    assert contents(reopened) == before
    shards = store.path / store.resolve("nss.brisque").key / "shards"
    assert len(list(shards.iterdir())) == 1


def test_both_real_clips_are_extracted_alike_twice(tmp_path, shared_data):
    """Four extractors, two of them networks of random weights; bit for bit the same again."""
    from vqbank.pipelines.manifest import read_videos

    real = read_videos(shared_data / "clips")
    random = {"clip": {"weights": "random-tiny"}, "slowfast": {"weights": "random-tiny"}}
    names = ("nss", "motion", "clip", "slowfast")
    one, run, outcomes = bank(tmp_path / "one", real, *names, **random)
    two, _, _ = bank(tmp_path / "two", real, *names, **random)

    assert [dict(outcome.failures) for outcome in outcomes] == [{}, {}]
    assert run.decoded_frames == sum(len(decoding.probe(v.path).pts_seconds) for v in real)
    assert len(contents(one)) == 8
    assert contents(one) == contents(two)
    assert {spec.uses_random_weights for spec in one.specs()} == {True, False}


def test_two_files_under_one_id_are_refused_and_one_named_twice_is_read_once(tmp_path, videos):
    with pytest.raises(ManifestError, match=r"0.mp4 and .*1.mp4 both have the id 'a'"):
        bank(tmp_path / "bank", [Video("a", videos[0].path), Video("a", videos[1].path)], "nss")

    _, run, outcomes = bank(tmp_path / "bank", [videos[0], videos[0]], "nss")
    assert (len(outcomes), run.decoded_videos) == (1, 1)


@pytest.mark.parametrize("step", ["before", "after"])
def test_an_interrupt_at_any_step_of_a_commit_loses_nothing(tmp_path, videos, monkeypatch, step):
    """Ctrl-C just before the commit record is made, and just after."""
    from vqbank.store import shard_writer

    real = shard_writer.create_exclusively

    def interrupted(path, content, *, durable=True):
        if path.parent.name != "commits":
            return real(path, content, durable=durable)
        if step == "after":
            real(path, content, durable=durable)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer, "create_exclusively", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bank(tmp_path / "bank", videos[:2], "nss")

    store, run, _ = bank(tmp_path / "bank", videos[:2], "nss")
    whole, _, _ = bank(tmp_path / "whole", videos[:2], "nss")
    assert contents(store) == contents(whole)
    assert run.decoded_videos == (2 if step == "before" else 0)


def test_a_real_full_disk_is_one_error_and_leaves_the_bank_usable(tmp_path, videos):
    """A file size limit stands in for the disk: the kernel refuses the write itself."""
    import resource

    store = FeatureStore.create(tmp_path / "bank")
    script = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from pathlib import Path
import torch
from vqbank.extractors import make_extractor
from vqbank.pipelines.extraction.extract import Extraction
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import BankError
from vqbank.store.schema import Video
videos = [Video("a", Path({str(videos[2].path)!r}))]
names = [make_extractor("motion"), make_extractor("nss")]
store = FeatureStore(Path({str(store.path)!r}))
run = Extraction(videos, names, store, decoder="pyav", device=torch.device("cpu"))
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
try:
    list(run.run())
except BankError as error:
    print(error)
"""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert "cannot be written (" in ran.stdout
    assert ": File too large; raise the limit of file sizes (`ulimit -f`)" in ran.stdout
    assert not ran.stderr
    assert not list(store.path.glob("*@*/shards/*"))
    again, _, (outcome,) = bank(store.path, [Video("a", videos[2].path)], "motion", "nss")
    assert not outcome.failures
    assert len(contents(again)) == 2


def test_the_callers_torch_is_left_as_it_was(tmp_path, videos):
    threads = torch.get_num_threads()
    run = extraction(videos[:1], FeatureStore.create(tmp_path / "bank"), "nss")
    for _ in run.run():
        assert not torch.is_inference_mode_enabled()

    assert torch.get_num_threads() == threads


def test_large_computations_share_their_memory_and_come_in_turn():
    memory = WorkingMemory(100)
    order, inside, most = [], [], []

    def compute(number, needed):
        with memory.reserved(needed):
            order.append(number)
            inside.append(needed)
            most.append(sum(inside))
            time.sleep(0.02)
            inside.remove(needed)

    threads = []
    with memory.reserved(60):
        for number, needed in enumerate([60, 500, 40, 60]):
            threads.append(threading.Thread(target=compute, args=(number, needed)))
            threads[-1].start()
            while len(memory._turns) <= number:
                time.sleep(0.001)
        with memory.reserved(0):  # who needs none never waits
            assert not order
    for thread in threads:
        thread.join()

    assert order[:2] == [0, 1]  # a large one waits for no more than was there before it
    assert set(most) <= {40, 60, 100, 500}


SLOW = """
import sys
import time
from vqbank.extractors.motion import Motion
from vqbank.pipelines.commands import cli

def build(self, device):
    print("computing", flush=True)
    time.sleep(120)

Motion.build = build
sys.argv[0] = "vqbank"
cli.main()
"""


@pytest.mark.parametrize(
    "stop", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.soak)]
)
def test_a_run_that_is_stopped_waits_for_no_network_and_leaves_no_child(tmp_path, videos, stop):
    arguments = ["extract", "--videos", videos[0].path.parent, "--bank", tmp_path / "bank"]
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments, "--extractor", "motion"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout.readline() == "computing\n"
        threads = Path(f"/proc/{run.pid}/task").iterdir()
        children = [child for one in threads for child in (one / "children").read_text().split()]
        begun = time.monotonic()
        run.send_signal(stop)
        _, told = run.communicate(timeout=60)

    assert time.monotonic() - begun < 10
    assert run.returncode == 130
    assert "stopped: what was finished is banked" in told
    assert children
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert History.of(tmp_path / "bank").runs[-1].ending == "stopped"
