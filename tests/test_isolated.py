"""Decoding in a child: the same pictures, and a death costs one video."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vqbank.extractors import video
from vqbank.extractors.isolated import SLOT_BYTES, Decoder, End
from vqbank.extractors.video import Probe
from vqbank.store.errors import DecodeError, DecoderDiedError


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("isolated") / "clip.mp4"
    rng = np.random.default_rng(1)
    video.encode(path, rng.integers(0, 256, (20, 48, 64, 3), dtype=np.uint8), rate=25, crf=23)
    return path


@pytest.fixture
def decoder():
    decoder = Decoder("pyav", patience_seconds=30)
    yield decoder
    decoder.close()


def frames_of(decoder, path, wanted=None):
    """All that a child gives: index by index, copies."""
    decoder.open(path)
    probe = decoder.receive()
    assert isinstance(probe, Probe)
    decoder.decode(np.arange(len(probe.pts_seconds)) if wanted is None else wanted)
    found = {}
    while not isinstance(answer := decoder.receive(), End):
        found |= dict(zip(answer.frame_index.tolist(), answer.pictures.copy(), strict=True))
        decoder.release(answer)
    return found


def drain(decoder):
    while not isinstance(answer := decoder.receive(), End):
        decoder.release(answer)


def test_a_child_gives_the_pictures_of_this_process(decoder, path):
    ours = {}
    for index, pictures in video.decode(path, video.probe(path), np.arange(20)):
        ours |= dict(zip(index.tolist(), pictures, strict=True))

    found = frames_of(decoder, path)

    assert found.keys() == ours.keys()
    assert all(np.array_equal(found[index], ours[index]) for index in ours)


def test_one_child_decodes_video_after_video_and_only_what_is_wanted(decoder, path, tmp_path):
    large = tmp_path / "large.mp4"
    video.encode(large, np.full((2, 2000, 6000, 3), 7, np.uint8), rate=25, crf=40)
    assert SLOT_BYTES < 2000 * 6000 * 3

    assert list(frames_of(decoder, path, np.array([3, 11]))) == [3, 11]
    process = decoder._process.pid
    assert frames_of(decoder, large)[1].shape == (2000, 6000, 3)
    assert len(frames_of(decoder, path)) == 20
    assert decoder._process.pid == process


def test_what_a_child_says_of_a_bad_file_is_what_decoding_says(decoder, tmp_path):
    bad = tmp_path / "page.mp4"
    bad.write_text("<html>" * 100)
    with pytest.raises(DecodeError) as here:
        video.probe(bad)

    decoder.open(bad)
    with pytest.raises(DecodeError) as there:
        decoder.receive()

    assert str(there.value) == str(here.value)
    assert not isinstance(there.value, DecoderDiedError)


def test_a_child_that_crashes_costs_one_video_and_leaves_a_traceback(decoder, path):
    decoder.open(path)
    decoder.receive()
    decoder._process.send_signal(signal.SIGSEGV)
    decoder.decode(np.arange(20))
    with pytest.raises(DecoderDiedError, match=r"clip.mp4: the decoder died of SIGSEGV"):
        drain(decoder)
    assert "Segmentation fault" in decoder.traceback

    assert len(frames_of(decoder, path)) == 20


def test_a_child_that_shows_no_sign_of_life_is_stopped(path):
    decoder = Decoder("pyav", patience_seconds=3)
    frames_of(decoder, path)
    decoder._process.send_signal(signal.SIGSTOP)
    begun = time.monotonic()

    decoder.open(path)
    with pytest.raises(DecoderDiedError, match=r"clip.mp4: .* no sign of life for 3 s"):
        decoder.receive()

    assert 2.5 < time.monotonic() - begun < 20
    assert len(frames_of(decoder, path)) == 20
    decoder.close()


def test_a_stop_of_parent_and_child_is_not_held_against_the_child(path):
    """As a batch system stops a whole job: nobody looked meanwhile, so nobody knows."""
    decoder = Decoder("pyav", patience_seconds=2.1)
    frames_of(decoder, path)
    decoder._process.send_signal(signal.SIGSTOP)
    decoder.open(path)
    time.sleep(2.4)
    decoder.check()
    decoder._process.send_signal(signal.SIGCONT)
    assert isinstance(decoder.receive(), Probe)
    decoder.close()


def test_a_child_does_not_outlive_its_parent(path):
    script = f"""
import os, signal
from pathlib import Path
from vqbank.extractors.isolated import Decoder
decoder = Decoder("pyav")
decoder.open(Path({str(path)!r}))
decoder.receive()
print(decoder._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    child = int(run.stdout)

    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the child is still there")


def test_a_child_that_counts_frames_for_long_is_not_taken_for_dead(decoder, tmp_path):
    program = Path(__file__).parent / "data" / "cases" / "mpeg_ps_start.mpg"
    long = tmp_path / "long.mpg"
    long.write_bytes(program.read_bytes() * 600)
    frames_of(decoder, program)
    decoder._patience_seconds = 0.2
    begun = time.monotonic()

    decoder.open(long)
    probe = decoder.receive()

    assert time.monotonic() - begun > 2 * decoder._patience_seconds
    assert probe.counted_by_decoding
    assert len(probe.pts_seconds) > 3000
