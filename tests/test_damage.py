"""Every video ends as done or as failed with a reason that names it, whatever its file is like."""

import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from vqbank.extractors import make_extractor, specs_of
from vqbank.extractors import video as decoding
from vqbank.extractors.isolated import Decoder
from vqbank.pipelines.extraction.batch import batch_that_pays
from vqbank.pipelines.extraction.extract import Extraction
from vqbank.pipelines.manifest import read_videos
from vqbank.store.bank import FeatureStore
from vqbank.store.ledger import failures, read_ledger
from vqbank.store.schema import Fingerprint, Video

FFMPEG = shutil.which("ffmpeg")


def pictures(frames, size, seed=0):
    width, height = size
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 256, (height, width + frames, 3), dtype=np.uint8)
    return (texture[:, i : i + width] for i in range(frames))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Files by name, and whether a feature can be made of them."""
    folder = tmp_path_factory.mktemp("corpus")
    whole = folder / "whole.mp4"
    decoding.encode(whole, pictures(60, (96, 64)), rate=25, crf=23)
    content = whole.read_bytes()
    start, end = content.index(b"mdat") + 4, content.index(b"moov")
    good = {"whole.mp4"}
    for share in (1, 50, 99):
        (folder / f"cut{share}.mp4").write_bytes(content[: len(content) * share // 100])
    middle = bytearray(content)
    middle[start + (end - start) // 2 : start + (end - start) // 2 + 400] = bytes(400)
    (folder / "zeroed.mp4").write_bytes(middle)
    (folder / "empty.mp4").touch()
    (folder / "page.mp4").write_text("<html>404</html>" * 50)
    (folder / "folder.mp4").mkdir()
    for name, frames, size, rate in [
        ("one.mp4", 1, (96, 64), 25),
        ("fast.mp4", 60, (96, 64), 240),
        ("huge.mp4", 2, (8000, 8000), 25),
        ("dot.mp4", 5, (2, 2), 25),
    ]:
        decoding.encode(folder / name, pictures(frames, size), rate=rate, crf=35)
        good.add(name)
    if FFMPEG is not None:
        for name, options in {
            "vfr.mp4": ["-vf", "select='not(eq(mod(n,7),3))'", "-vsync", "vfr"],
            "rotated.mp4": ["-c", "copy", "-metadata:s:v:0", "rotate=90"],
        }.items():
            command = [FFMPEG, "-v", "error", "-i", whole, *options, folder / name]
            subprocess.run(command, check=True)
            good.add(name)
        sound = ["-f", "lavfi", "-i", "sine=duration=1", folder / "sound.mp4"]
        subprocess.run([FFMPEG, "-v", "error", *sound], check=True)
    return folder, good


def run(videos, bank):
    names = [make_extractor("motion"), make_extractor("clip", weights="random-tiny")]
    extraction = Extraction(
        videos, names, FeatureStore.create(bank), decoder="pyav", device=torch.device("cpu")
    )
    return extraction.run()


def test_every_file_of_a_damaged_corpus_is_done_or_named(corpus, tmp_path):
    folder, good = corpus
    videos = [Video(f"corpus/{path.name}", path) for path in sorted(folder.iterdir())]

    outcomes = {outcome.video.id: outcome for outcome in run(videos, tmp_path / "bank")}

    assert outcomes.keys() == {video.id for video in videos}
    done = {id.partition("/")[2] for id, outcome in outcomes.items() if not outcome.failures}
    assert done == good
    for video in videos:
        for reason in outcomes[video.id].failures.values():
            assert str(video.path) in reason
            assert "\n" not in reason


@pytest.mark.parametrize("moment", ["open", "receive"])  # before it is opened, and once it is
def test_a_file_that_disappears_during_the_run_fails_alone(corpus, moment, tmp_path, monkeypatch):
    folder, _ = corpus
    paths = [tmp_path / f"{n}.mp4" for n in range(4)]
    for path in paths:
        shutil.copy(folder / "whole.mp4", path)
    undisturbed = getattr(Decoder, moment)

    def disturbed(self, *arguments):
        if moment == "receive" and self._path == paths[-1]:
            paths[-1].unlink(missing_ok=True)
        if moment == "open" and arguments == (paths[-1],):
            paths[-1].unlink()
        return undisturbed(self, *arguments)

    monkeypatch.setattr(Decoder, moment, disturbed)

    outcomes = list(run([Video(path.name, path) for path in paths], tmp_path / "bank"))

    failed = [outcome for outcome in outcomes if outcome.failures]
    assert [outcome.video.path for outcome in failed] == [paths[-1]]
    assert all(str(paths[-1]) in reason for reason in failed[0].failures.values())


@pytest.mark.parametrize(
    ("memory", "gains_until", "found"), [(64, 16, 16), (12, 16, 8), (3, 1, 2), (1000, 1000, 256)]
)
def test_the_batch_grows_while_it_pays_and_fits(memory, gains_until, found, monkeypatch):
    """With a clock that the network itself winds on."""
    now = [0.0]

    def compute(clips):
        if len(clips) > memory:
            raise torch.OutOfMemoryError("CUDA out of memory")
        now[0] += max(1.0, len(clips) / gains_until)
        return {"row": clips.float().mean(dim=-1)}

    monkeypatch.setattr("vqbank.pipelines.extraction.batch.time.perf_counter", lambda: now[0])
    assert batch_that_pays(compute, torch.zeros(3, dtype=torch.uint8), 4, largest=256) == found


ROWS = 40_000
"""As many as the largest public set has videos, about."""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A manifest, one file of a hundred damaged, and a bank that has what can be had.

    All whole files are one file under many names, so what is banked of one is banked of each.
    """
    folder = tmp_path_factory.mktemp("large")
    decoding.encode(folder / "whole", pictures(3, (32, 32)), rate=10, crf=30)
    (folder / "cut").write_bytes((folder / "whole").read_bytes()[:200])
    (folder / "set").mkdir()
    names = [f"{n:05}.mp4" for n in range(ROWS)]
    for n, name in enumerate(names):
        os.link(folder / ("cut" if n % 100 == 7 else "whole"), folder / "set" / name)
    (folder / "set.csv").write_text(
        "id,path\n" + "".join(f"set/{name},set/{name}\n" for name in names)
    )
    store = FeatureStore.create(folder / "bank")
    probe, made_of = decoding.probe(folder / "whole"), Fingerprint.of(folder / "whole")
    spec = make_spec()
    (outcome,) = Extraction(
        [Video("set/00000.mp4", folder / "whole")],
        [make_extractor("motion")],
        store,
        decoder="pyav",
        device=torch.device("cpu"),
    ).run()
    assert not outcome.failures
    store.refresh()
    feature = store.read(spec, "set/00000.mp4")
    whole = [name for n, name in enumerate(names) if n % 100 != 7][1:]
    for start in range(0, len(whole), 400):
        writer = store.writer(spec, provenance={}, durable=False)
        for name in whole[start : start + 400]:
            writer.add(f"set/{name}", feature, fingerprint=made_of, probe=probe.record())
        writer.commit()
    return folder


MEASURED = """
import sys
from pathlib import Path
from vqbank.pipelines.commands.cli import main
try:
    main()
finally:
    status = Path("/proc/self/status").read_text()
    print(status.partition("VmHWM:")[2].split()[0], file=sys.stderr)
"""


def measured(*arguments):
    """Exit code, standard output, seconds, MB at most, of a command in a process of its own."""
    begun = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    most = int(ran.stderr.splitlines()[-1]) / 1024
    return ran.returncode, ran.stdout, time.monotonic() - begun, most


@pytest.mark.soak
def test_forty_thousand_videos_one_in_a_hundred_damaged_cost_seconds(large, tried, tmp_path):
    """To begin with nothing banked, to ask how far it is, and to go on with all of it done."""
    extract = ["extract", "--extractor", "motion", "--decoder", "pyav", "--bank"]
    few = tmp_path / "few.csv"
    few.write_text(f"id,path\nset/1.mp4,{large / 'whole'}\n")
    _, _, least_seconds, least_mb = measured(*extract, tmp_path / "few", "--videos", few)

    resumed = measured(*extract, large / "bank", "--videos", large / "set.csv")
    asked = measured("status", large / "bank", "--videos", large / "set.csv")

    assert resumed[0] == 1  # 400 have failed
    assert asked[0] == 0
    assert len(FeatureStore(large / "bank").video_ids(make_spec())) == ROWS * 99 // 100
    assert len(failures(read_ledger(large / "bank"))) == ROWS // 100
    assert f"{ROWS * 99 // 100} of {ROWS} videos have all of these" in asked[1]
    start = first_outcome_seconds(large, tmp_path / "new")
    what = "40,000 rows, 400 damaged"
    tried(f"{what}: begun in {start:.1f} s", 1)
    tried(f"{what}: gone on with in {resumed[2]:.0f} s, {resumed[3]:.0f} MB", 1)
    tried(f"{what}: status in {asked[2]:.1f} s, {asked[3]:.0f} MB", 1)
    tried(f"one video: extract in {least_seconds:.0f} s, {least_mb:.0f} MB", 1)
    assert start < 30
    assert asked[2] < 60
    assert resumed[2] < least_seconds + 150
    assert asked[3] < 300
    assert resumed[3] < least_mb + 200


def make_spec():
    (spec,) = specs_of(make_extractor("motion"), decoder="pyav").values()
    return spec


def first_outcome_seconds(large, bank):
    """From a manifest and no bank to the first video that is done."""
    begun = time.monotonic()
    outcomes = run(read_videos(large / "set.csv"), bank)
    next(outcomes)
    seconds = time.monotonic() - begun
    outcomes.close()
    return seconds
