"""Every video ends as done or as failed with a reason that names it, whatever its file is like."""

import shutil
import subprocess

import numpy as np
import pytest
import torch

from extractors import make_extractor
from extractors import video as decoding
from extractors.isolated import Decoder
from pipelines.extract import Extraction
from pipelines.jobs import batch_that_pays
from store.bank import FeatureStore
from store.schema import Video

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

    monkeypatch.setattr("pipelines.jobs.time.perf_counter", lambda: now[0])
    assert batch_that_pays(compute, torch.zeros(3, dtype=torch.uint8), 4, largest=256) == found
