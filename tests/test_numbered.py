"""Folders of numbered pictures are videos: bits, times, rates, and what is refused."""

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vqbank.extractors.video import decode, probe
from vqbank.extractors.video.numbered import fingerprint_of, sequence
from vqbank.pipelines.commands.cli import app
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import DecodeError


def folder_at(path, names, *, rate="25", seed=0):
    path.mkdir(parents=True)
    pictures = np.random.default_rng(seed).integers(0, 256, (len(names), 40, 56, 3), np.uint8)
    for name, picture in zip(names, pictures, strict=True):
        Image.fromarray(picture).save(path / name)
    if rate:
        (path / "rate.txt").write_text(rate + "\n")
    return pictures


@pytest.mark.parametrize(
    "names",
    [
        [f"im{n}.png" for n in range(1, 12)],
        [f"{n:03}.png" for n in range(98, 103)],
        [f"{n}.png" for n in range(12)],
        [f"f{n:02}.png" for n in range(98, 102)],
        [f"{n:02}.png" for n in range(9, 102)],
        [f"a 10% {n:05}.png" for n in range(7)],
    ],
)
def test_pictures_come_back_bit_by_bit_in_the_order_of_their_numbers(tmp_path, names):
    pictures = folder_at(tmp_path / "v 5%d", names, rate="30000/1001")
    found = probe(tmp_path / "v 5%d")
    np.testing.assert_allclose(found.pts_seconds, np.arange(len(names)) * 1001 / 30000)
    wanted = np.arange(len(names))
    shown = decode(tmp_path / "v 5%d", found, wanted, chunk=4)
    got = np.concatenate([frames for _, frames in shown])
    np.testing.assert_array_equal(got, pictures)


def test_a_rate_may_stand_above_and_has_to_stand_somewhere(tmp_path):
    folder_at(tmp_path / "vimeo" / "00001" / "0001", ["im1.png", "im2.png"], rate="")
    folder = tmp_path / "vimeo" / "00001" / "0001"
    with pytest.raises(DecodeError, match=r"no frames per second; write them, .* rate\.txt"):
        sequence(folder)
    (tmp_path / "vimeo" / "rate.txt").write_text("24")
    assert sequence(folder).rate == Fraction(24)
    (folder / "rate.txt").write_text("fast")
    with pytest.raises(DecodeError, match="'fast' is no number of frames per second"):
        sequence(folder)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["im1.png", "im2.png", "im4.png"], "picture 3 is missing between 1 and 4"),
        (["a1.png", "b1.png"], "pictures of 2 names"),
        ([], "no numbered pictures"),
    ],
)
def test_what_is_no_sequence_is_named(tmp_path, names, message):
    folder_at(tmp_path / "v", names)
    with pytest.raises(DecodeError, match=message):
        probe(tmp_path / "v")


def test_another_picture_or_rate_is_another_video(tmp_path):
    prints = set()
    for number, (seed, rate) in enumerate([(0, "25"), (1, "25"), (0, "24")]):
        folder_at(tmp_path / f"{number}", ["1.png", "2.png"], rate=rate, seed=seed)
        prints.add(fingerprint_of(tmp_path / f"{number}"))
    assert len(prints) == 3
    folder_at(tmp_path / "same", ["1.png", "2.png"])
    assert fingerprint_of(tmp_path / "same") in prints


def test_a_manifest_names_folders_beside_files_and_they_are_banked_once(tmp_path):
    for number in range(2):
        folder_at(tmp_path / f"{number}", [f"im{n}.png" for n in range(1, 8)], seed=number)
    (tmp_path / "set.csv").write_text("path\n0\n1\n")
    given = ["extract", "--videos", str(tmp_path / "set.csv"), "--bank", str(tmp_path / "bank"),
             "--extractor", "motion"]  # fmt: skip
    first = CliRunner().invoke(app, given, catch_exceptions=False)
    assert first.exit_code == 0, first.output
    assert "2 extracted, 0 failed" in first.output
    again = CliRunner().invoke(app, given, catch_exceptions=False)
    assert "2 banked before, 0 extracted" in again.output
    store = FeatureStore(tmp_path / "bank")
    (spec,) = (one for one in store.specs() if one.name == "motion.series")
    assert len(store.video_ids(spec)) == 2
