"""What is said of a bank is what its commits and ledgers say, also while they are written."""

import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from vqbank.extractors import make_extractor
from vqbank.extractors import video as decoding
from vqbank.pipelines.extraction import extract, status
from vqbank.pipelines.extraction.extract import Extraction
from vqbank.pipelines.extraction.status import History, failed_videos, show_status
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import MissingFeatureError
from vqbank.store.ledger import Ledger
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, Video

ONE = FeatureSpec("one.values", (2,), "float32", {"weights": "a"})
TWO = FeatureSpec("two.values", (2,), "float32", {"weights": "b"})
PROBE = {
    "frames": 30, "header_frames": 30, "duration_seconds": 1.2, "rate": 25.0, "width": 64,
    "height": 48, "rotation": 0, "codec": "h264", "pixel_format": "yuv420p",
    "colour_space": "bt709", "colour_range": "limited", "interlaced": False,
    "variable_frame_rate": False, "discarded_packets": 0, "shortfall": 0,
}  # fmt: skip


def clip(path, frames=12, seed=0):
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (frames, 24, 32, 3), dtype=np.uint8)
    decoding.encode(path, iter(pictures), rate=10, crf=23)
    return path


def put(store, spec, *videos, **probe):
    writer = store.writer(spec, provenance={"host": "node7"}, durable=False)
    for video in videos:
        feature = Feature(np.ones((3, 2), np.float32), np.arange(3.0), np.arange(3))
        known = {**PROBE, **probe}
        writer.add(video, feature, fingerprint=Fingerprint(7, "ab" * 32), probe=known)
    writer.commit()
    store.refresh()


def ledger(bank, *entries, age=0.0):
    """A writer's file, as if its last line were `age` seconds old."""
    writer = Ledger(bank)
    for entry in entries:
        writer.append(durable=False, **entry)
    path = bank / "ledger" / f"{writer.writer}.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for place, line in enumerate(lines):
        line["time"] = time.time() - age - 10 * (len(lines) - 1 - place)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def failed(video, spec=ONE, reason="it is empty", traceback=None):
    return {"status": "failed", "video": video, "key": spec.key, "reason": reason,
            "traceback": traceback}  # fmt: skip


def started(videos=9, *specs, host="node7"):
    keys = [spec.key for spec in specs]
    return {"status": "started", "host": host, "process": 42, "keys": keys, "videos": videos}


def told(kind, done=0, failed=0, cached=0):
    return {"status": kind, "done": done, "failed": failed, "cached": cached}


@pytest.fixture
def store(tmp_path):
    return FeatureStore.create(tmp_path / "bank")


def said(capsys, *arguments, **options):
    show_status(*arguments, **options)
    return capsys.readouterr().out.splitlines()


def row(lines, first):
    (line,) = [line for line in lines if line.startswith(first)]
    return line.split()


def test_a_real_run_is_told_as_it_was(tmp_path, store, capsys):
    folder = tmp_path / "set"
    folder.mkdir()
    for n in range(2):
        clip(folder / f"{n}.mp4", seed=n)
    (folder / "page.mp4").write_text("<html>not found</html>")
    (folder / "later.mp4").touch()
    videos = [Video(f"set/{n}.mp4", folder / f"{n}.mp4") for n in (0, 1, "page")]
    motion = make_extractor("motion")
    run = Extraction(videos, [motion], store, decoder="pyav", device=torch.device("cpu"))
    list(run.run())

    lines = said(capsys, store.path, videos=folder)

    (spec,) = run.specs
    assert row(lines, "feature") == ["feature", "banked", "failed", "missing"]
    assert row(lines, spec.key) == [spec.key, "2", "1", "1"]
    assert "2 of 4 videos have all of these" in lines
    (writer,) = [line.split() for line in lines if " ended " in line]
    assert writer[4:8] == ["ago", "3", "0", "2"]
    assert "decode health of 2 videos: all as usual" in lines
    assert failed_videos(store, run.specs) == {"set/page.mp4"}


def test_a_failure_that_was_made_since_is_none(store, capsys):
    put(store, ONE, "a", "b")
    ledger(store.path, started(3, ONE, TWO), failed("a"), failed("c"), failed("b", TWO))

    lines = said(capsys, store.path)

    assert row(lines, ONE.key) == [ONE.key, "2", "1"]
    assert row(lines, TWO.key) == [TWO.key, "0", "1"]
    assert failed_videos(store, [ONE]) == {"c"}
    assert failed_videos(store, [ONE, TWO]) == {"b", "c"}
    put(store, ONE, "c")
    assert failed_videos(store, [ONE]) == set()
    assert row(said(capsys, store.path), ONE.key) == [ONE.key, "3", "0"]


def test_the_table_of_failures_has_a_line_per_video_that_says_why_what_how_often_and_where(
    store, capsys
):
    long = "frame 17 of 240 is damaged: Invalid data found when processing input " * 3
    writer = Ledger(store.path)
    trace = writer.keep_traceback("Segmentation fault")
    ledger(store.path, failed("a", reason="first"), failed("b", TWO), failed("a", TWO, long))
    ledger(
        store.path, failed("a", reason=long, traceback=trace), failed("c", ONE), failed("c", TWO)
    )
    put(store, ONE, "b")

    heading, *lines = said(capsys, store.path, failed=True)

    assert heading.split() == ["video", "reason", "features", "times", "last", "traceback"]
    assert [line.split()[0] for line in lines] == ["a", "b", "c"]
    told = " ".join(lines[0].split())
    assert told.startswith(f"a {long}one.values, two.values 2 20")
    assert lines[0].rstrip().endswith(str(store.path / "ledger" / trace))
    assert lines[1].split()[4:6] == ["two.values", "1"]
    assert lines[2].split()[4:7] == ["one.values,", "two.values", "1"]


def test_features_of_one_name_go_by_their_keys_in_the_table_of_failures(store, capsys):
    other = FeatureSpec("one.values", (2,), "float32", {"weights": "c"})
    ledger(store.path, failed("a", ONE), failed("a", TWO), failed("a", other, "too small"))

    _, line = said(capsys, store.path, failed=True)

    assert "it is empty; too small" in line or "too small; it is empty" in line
    assert all(name in line for name in (ONE.key, other.key, " two.values "))


def test_only_videos_of_the_manifest_count(tmp_path, store, capsys):
    (tmp_path / "set.csv").write_text("id,path\na,a.mp4\nb,b.mp4\nc,c.mp4\nd,d.mp4\n")
    put(store, ONE, "a", "stranger")
    put(store, TWO, "a", "b", rotation=90)
    ledger(store.path, failed("b"), failed("other"))

    lines = said(capsys, store.path, videos=tmp_path / "set.csv")

    assert row(lines, ONE.key) == [ONE.key, "1", "1", "2"]
    assert row(lines, TWO.key) == [TWO.key, "2", "0", "2"]
    assert "1 of 4 videos have all of these" in lines
    assert "decode health of 2 videos:" in lines
    table = said(capsys, store.path, videos=tmp_path / "set.csv", failed=True)
    assert [line.split()[0] for line in table[1:]] == ["b"]


def test_a_video_whose_file_changed_is_counted_once_as_failed(tmp_path, store, capsys):
    manifest = tmp_path / "set.csv"
    manifest.write_text("id,path\n" + "".join(f"{n},{n}.mp4\n" for n in "abcd"))
    put(store, ONE, "a", "b", "c")
    ledger(store.path, {**failed("a"), "changed": True})

    lines = said(capsys, store.path, videos=manifest)

    assert row(lines, ONE.key) == [ONE.key, "2", "1", "1"]
    assert "2 of 4 videos have all of these" in lines
    assert any(line.startswith("of 1 video another file was found") for line in lines)
    assert row(said(capsys, store.path), ONE.key) == [ONE.key, "2", "1"]


def test_writers_run_or_have_ended_or_fell_silent(store, capsys):
    day = 24 * 3600
    ledger(store.path, started(host="gone"), told("running", 1), age=3 * day)
    ledger(store.path, started(host="old"), told("ended", 1), age=2 * day)
    ledger(store.path, started(host="lost"), told("running", 4), age=3600)
    ledger(store.path, started(500, host="busy"), told("running", 3, 1, 96), failed("a"))
    ledger(store.path, started(host="begun"))
    ledger(store.path, failed("b", reason="its worker died"))  # a client's: no run

    lines = said(capsys, store.path)

    busy, begun, lost = (row(lines, host) for host in ("busy", "begun", "lost"))
    assert busy[2:] == ["running", "0:00:00", "ago", "500", "96", "3", "1", "0.40"]
    assert begun[2:] == ["running", "0:00:00", "ago", "9", "-", "-", "-", "-"]
    assert lost[2:6] == ["silent", "for", "1:00:00", "1:00:00"]
    assert "and 2 older runs" in lines
    assert not [line for line in lines if line.startswith(("gone", "old"))]


def test_the_last_run_is_shown_however_old(store, capsys):
    ledger(store.path, started(host="old"), told("ended", 1), age=9e6)

    assert row(said(capsys, store.path), "old")[2] == "ended"


def test_a_worker_that_is_given_more_videos_is_one_writer_at_work(store):
    entries = [started(4), told("ended", 4), started(5), told("running", 4)]
    ledger(store.path, *entries)

    (run,) = History.of(store.path).runs
    assert (run.videos, run.counts["done"], run.state(time.time())) == (9, 4, "running")


def test_a_run_that_works_is_never_called_silent():
    assert status.SILENT_SECONDS > 3 * extract.PROGRESS_SECONDS


def test_decode_health_is_counted_from_ledgers_and_where_there_is_none_from_commits(store, capsys):
    put(store, ONE, "a", rotation=90)
    put(store, TWO, "a", "b", colour_range="full", header_frames=31)
    decoded = {"status": "decoded", **PROBE}
    odd = {"shortfall": 2, "discarded_packets": 1, "variable_frame_rate": True}
    ledger(
        store.path,
        {**decoded, "video": "c", **odd},
        {**decoded, "video": "d", "header_frames": 0},
        {**decoded, "video": "e", "error": "frame 3 is damaged"},
    )

    lines = said(capsys, store.path)

    start = lines.index("decode health of 5 videos:")
    found = dict(reversed(line.split(maxsplit=1)) for line in lines[start + 1 :])
    expected = ("header_frames", "shortfall", "discarded_packets", "rotation")
    expected += ("variable_frame_rate", "colour_range", "error")
    assert found == {status.HEALTH[name]: "1" for name in expected}


def test_everything_known_of_one_video(store, capsys):
    three = FeatureSpec("three.values", (2,), "float32", {})
    put(store, ONE, "a", rotation=90)
    put(store, three, "b")
    ledger(store.path, started(2, ONE, TWO), failed("a", TWO), failed("a", TWO, reason="again"))

    lines = said(capsys, store.path, video="a")

    assert lines[0] == "a"
    assert f"file: 7 bytes, sha256 of its samples {'ab' * 32}" in lines
    assert "rotation: 90" in lines
    assert "note: rotated" in lines
    (banked,) = [line for line in lines if line.startswith(ONE.key)]
    assert ": banked 20" in banked
    assert "on node7, 3 rows" in banked
    (refused,) = [line for line in lines if line.startswith(TWO.key)]
    assert ": failed 2 times, last " in refused
    assert refused.endswith(": again")
    assert f"{three.key}: missing" in lines
    with pytest.raises(MissingFeatureError, match="knows nothing of a video 'zebra'"):
        show_status(store.path, video="zebra")


def test_an_empty_bank_says_so(store, capsys):
    lines = said(capsys, store.path)

    assert lines[0] == "nothing is banked, and no run has written here"
    assert said(capsys, store.path, failed=True) == ["nothing has failed that was not made since"]


def test_torn_lines_of_killed_and_of_present_writers_are_passed_over(store, capsys):
    path = ledger(store.path, started(2, ONE), failed("a"))
    with path.open("a") as file:
        file.write('{"status":"failed","video":"b","key":"')

    lines = said(capsys, store.path)

    assert row(lines, ONE.key) == [ONE.key, "0", "1"]


def test_a_bank_can_be_asked_at_any_moment_of_a_run(store):
    """Every answer adds up, while one thread fails, commits and makes what has failed."""
    names = [f"{n}.mp4" for n in range(40)]
    stop = threading.Event()
    broken = []

    def write():
        writer = Ledger(store.path)
        own = FeatureStore(store.path)
        writer.append(durable=False, **started(len(names), ONE))
        for name in names:
            writer.append(durable=False, status="decoded", video=name, **PROBE)
            writer.append(durable=False, **failed(name))
            put(own, ONE, name)
        stop.set()

    thread = threading.Thread(target=write)
    thread.start()
    answers = []
    while not stop.is_set():
        history = History.of(store.path)
        banked = set(FeatureStore(store.path).video_ids(ONE))
        open_ = {failure.video for failure in history.open_failures({ONE.key: banked})}
        broken += open_ & banked
        answers.append(len(banked) + len(open_))
    thread.join()

    assert not broken
    assert answers == sorted(answers)
    assert failed_videos(FeatureStore(store.path), [ONE]) == set()


def test_asking_loads_no_network_library():
    module = "vqbank.pipelines.extraction.status"
    code = f"import sys, {module}; print('torch' in sys.modules, 'av' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert run.stdout.strip() == "False False"
