"""What a person sees of a run: every video is counted, nothing is hidden, a log stays a log."""

import os
import re
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from vqbank.extractors import make_extractor
from vqbank.extractors import video as decoding
from vqbank.extractors.base import Extractor, Output
from vqbank.extractors.sampling import Clips
from vqbank.extractors.views import Squash
from vqbank.pipelines.extraction import assembly, extract
from vqbank.pipelines.extraction.display import FAILURES, Display, show_extraction, snapshot
from vqbank.pipelines.extraction.extract import Extraction
from vqbank.pipelines.extraction.memory import Allowance
from vqbank.pipelines.extraction.one_video import Outcome
from vqbank.store.bank import FeatureStore
from vqbank.store.schema import Video


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


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    for n in range(3):
        pictures = rng.integers(0, 256, (12, 24, 32, 3), dtype=np.uint8)
        decoding.encode(folder / f"{n}.mp4", iter(pictures), rate=10, crf=23)
    return [Video(f"set/{n}.mp4", folder / f"{n}.mp4") for n in range(3)]


def extraction(videos, bank, *extractors):
    store = FeatureStore.create(bank)
    return Extraction(videos, extractors, store, decoder="pyav", device=torch.device("cpu"))


def outcome(n, *, reason=None, cached=False, frames=0):
    failures = {"x.y@0": reason, "x.z@0": reason} if reason else {}
    return Outcome(Video(f"set/{n}.mp4", Path(f"{n}.mp4")), failures, cached=cached, frames=frames)


def has_control_characters(text):
    return re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text) is not None


def test_a_run_is_counted_in_the_summary_and_failures_have_a_line(tmp_path, videos, capsys):
    motion = make_extractor("motion")
    show_extraction(extraction(videos[:1], tmp_path / "bank", motion))
    page = tmp_path / "page.mp4"
    page.write_text("<html>not found</html>" * 100)
    mixed = [*videos, Video("bad/\x1b[2Jpage.mp4", page)]

    failed = show_extraction(extraction(mixed, tmp_path / "bank", motion))

    *lines, summary = capsys.readouterr().err.splitlines()
    assert failed == {mixed[-1].id}
    assert summary == "4 videos: 1 banked before, 2 extracted, 1 failed; 24 frames decoded"
    assert lines[0] == "1 video: 0 banked before, 1 extracted, 0 failed; 12 frames decoded"
    assert lines[1].startswith(f"failed: bad/\\x1b[2Jpage.mp4: {page}")
    assert len(lines) == 2


def test_extra_passes_are_in_the_summary(tmp_path, videos, capsys, monkeypatch):
    monkeypatch.setattr(assembly, "RETAINED_BYTES", 0)

    show_extraction(extraction(videos[:2], tmp_path / "bank", Liveliest()))

    summary = "2 extracted, 0 failed; 32 frames decoded, 2 extra passes for frames chosen by motion"
    assert capsys.readouterr().err.strip().endswith(summary)


def test_frames_of_all_videos_that_wait_for_their_motion_share_an_allowance(
    tmp_path, videos, monkeypatch
):
    """Who finds nothing left is decoded again, to the same rows; what was taken comes back."""
    made = []

    class Kept(Allowance):
        def __init__(self, size_bytes):
            super().__init__(size_bytes)
            made.append(self)

    monkeypatch.setattr(extract, "Allowance", Kept)
    wide = extraction(videos, tmp_path / "wide", Liveliest())
    list(wide.run())
    monkeypatch.setattr(Extraction, "_retained_bytes", 0)
    narrow = extraction(videos, tmp_path / "narrow", Liveliest())
    list(narrow.run())

    assert (wide.extra_passes, narrow.extra_passes) == (0, len(videos))
    bound = 2 * len(wide.decoders) * assembly.RETAINED_BYTES
    assert [one._left_bytes for one in made] == [bound, 0]
    (spec,) = wide.specs
    for video in videos:
        rows = [run.store.read(spec, video.id).values.tobytes() for run in (wide, narrow)]
        assert rows[0] == rows[1]


def test_a_log_gets_plain_lines_also_while_no_video_ends(capsys):
    release = threading.Event()

    def slow():
        yield outcome(0, cached=True)
        yield outcome(1, frames=30)
        yield outcome(2, reason="2.mp4: the file is empty")
        release.wait(0.5)
        yield outcome(3, frames=30)

    failed = Display(4, log_seconds=0.1).show(slow())

    said = capsys.readouterr().err
    assert failed == {"set/2.mp4"}
    assert not has_control_characters(said)
    lines = said.splitlines()
    assert lines[0] == "failed: set/2.mp4: 2.mp4: the file is empty"
    while_waiting = [line for line in lines[1:-1] if line.startswith("3 of 4 videos, 1 failed, ")]
    assert len(while_waiting) >= 2
    assert re.search(r", [\d.]+ videos/s, 0:00:0\d left$", lines[1])
    assert all(len(line) < 80 for line in while_waiting)
    assert lines[-1] == "4 videos: 1 banked before, 2 extracted, 1 failed; 60 frames decoded"


def on_terminal(show, monkeypatch):
    """What a terminal of 120 columns is sent."""
    ours, theirs = os.openpty()
    received = bytearray()

    def read():
        while True:
            try:
                received.extend(os.read(ours, 4096))
            except OSError:  # the other end is closed
                return

    reader = threading.Thread(target=read)
    reader.start()
    with monkeypatch.context() as patch, os.fdopen(theirs, "w", encoding="utf-8") as terminal:
        patch.setattr(sys, "stderr", terminal)
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", "120")
        show()
    reader.join()
    os.close(ours)
    return received.decode()


def test_a_terminal_gets_one_live_display(tmp_path, videos, monkeypatch):
    page = tmp_path / "page.mp4"
    page.write_text("<html>not found</html>" * 100)
    run = extraction(
        [*videos, Video("page.mp4", page)], tmp_path / "bank", make_extractor("motion")
    )

    said = on_terminal(lambda: show_extraction(run), monkeypatch)

    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said)
    assert said != plain
    assert "4 of 4 videos: 0 banked before, 3 extracted, 1 failed" in plain
    assert "networks: motion 100%" in plain
    assert re.search(r"decoders waited \d+% of the time for networks, networks \d+% for", plain)
    assert re.search(r"clips fill \d+% of their memory", plain)
    assert "failed: page.mp4: " in plain
    lines = plain.strip().splitlines()
    assert lines[-1] == "4 videos: 0 banked before, 3 extracted, 1 failed; 36 frames decoded"


def test_many_failures_do_not_flood_a_terminal_and_it_is_said_where_they_are(monkeypatch):
    many = (outcome(n, reason=f"{n}.mp4 is gone") for n in range(200))

    said = on_terminal(lambda: Display(200).show(many), monkeypatch)

    screens = said.split("0 extracted, 200 failed")
    assert len(screens) >= 3  # the last live display, and the summary
    assert screens[-2].count("failed: set/") == FAILURES
    assert "199.mp4 is gone" in screens[-2]
    assert "vqbank status BANK --failed" in screens[-2]


def test_a_dumb_terminal_gets_a_log(monkeypatch):
    def show():
        monkeypatch.setenv("TERM", "dumb")
        Display(1).show(outcome(n, frames=9) for n in range(1))

    said = on_terminal(show, monkeypatch)

    assert said == "1 video: 0 banked before, 1 extracted, 0 failed; 9 frames decoded\r\n"


def test_what_was_banked_before_does_not_promise_a_quick_end():
    display = Display(110)
    for n in range(100):
        display.add(outcome(n, cached=True))
    assert display.seconds_left is None
    time.sleep(0.1)
    display.add(outcome(100, frames=30))

    assert 0.9 < display.seconds_left < 9
    assert "left" in display.line()


def test_an_interrupt_closes_the_run_and_commits_what_is_finished(tmp_path, videos, monkeypatch):
    run = extraction(videos, tmp_path / "bank", make_extractor("motion"))
    outcomes = run.run()
    display = Display(3, lambda: snapshot(run))

    def interrupted(outcome):
        raise KeyboardInterrupt

    monkeypatch.setattr(display, "add", interrupted)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        display.show(outcomes)

    assert outcomes.gi_frame is None
    deadline = time.monotonic() + 60
    while threading.active_count() > before:  # what a thread is at ends by itself
        assert time.monotonic() < deadline
        time.sleep(0.01)
    store = FeatureStore(tmp_path / "bank")
    assert store.video_ids(store.resolve("motion.series")) != []


def test_standard_output_stays_empty(tmp_path, videos, capsys):
    """It belongs to what commands answer."""
    show_extraction(extraction(videos[:1], tmp_path / "bank", make_extractor("motion")))

    assert capsys.readouterr().out == ""
