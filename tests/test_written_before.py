"""What commit 2f42a74 wrote, kept in tests/data/2f42a74, is read and scored as it was then."""

import csv
import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from vqbank.pipelines.commands.cli import app
from vqbank.pipelines.manifest import read_videos
from vqbank.pipelines.predict import Scorer
from vqbank.pipelines.results.records import read_records
from vqbank.regressors import load_head
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import ChangedVideoError, MissingFeatureError, RecipeError
from vqbank.store.schema import Fingerprint, Video
from vqbank.store.verify import verify

WRITTEN = Path(__file__).parent / "data" / "2f42a74"

SHA256 = {
    "clip.embedding@cda1396e1ce7": "5dbcf5b55a0d7bc7",
    "motion.series@4b9adabec7a9": "556515e9ac0c7ff3",
    "nss.brisque@f6f65b2a2966": "3941d7a2953e9bd1",
}
"""Of ids, values, times and indices of all videos in order, the first 16 digits, taken then."""


@pytest.fixture(scope="module")
def bank():
    return FeatureStore.at(str(WRITTEN / "bank"))


def test_a_bank_of_before_is_read_to_the_last_byte(bank):
    found = {}
    for spec in bank.specs():
        digest = hashlib.sha256()
        for video in sorted(bank.video_ids(spec)):
            feature = bank.read(spec, video)
            digest.update(video.encode())
            for array in (feature.values, feature.pts_seconds, feature.frame_index):
                digest.update(array.tobytes())
        found[spec.key] = digest.hexdigest()[:16]

    assert found == SHA256
    assert list(verify(bank)) == []


@pytest.mark.parametrize("name", ["ridge", "svr", "gaussian", "mlp", "gru"])
def test_a_head_of_before_gives_the_scores_of_before(bank, name):
    head = load_head(WRITTEN / "heads" / name)
    videos = read_videos(WRITTEN / "set.csv")
    table = bank.table(videos, {role: spec.key for role, spec in head.specs_.items()})

    with (WRITTEN / "scores.csv").open(newline="") as file:
        expected = [float(row[name]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(head.predict(table), expected, atol=2e-5)


def test_a_record_of_before_is_read():
    records = read_records(WRITTEN / "run.json")

    assert [head.name for record in records for head in record.heads] == ["ridge", "svr"]


def test_a_head_of_before_scores_what_is_banked_and_no_new_video(tmp_path, capsys):
    """Its pictures were turned into RGB by another conversion, which vqbank no longer has."""
    head, bank = str(WRITTEN / "heads" / "ridge"), tmp_path / "bank"
    shutil.copytree(WRITTEN / "bank", bank)
    with pytest.raises(SystemExit) as ended:
        app(["predict", head, str(WRITTEN / "set.csv"), "--bank", str(bank)])
    assert not ended.value.code
    with (WRITTEN / "scores.csv").open(newline="") as file:
        expected = [float(row["ridge"]) for row in csv.DictReader(file)]
    shown = capsys.readouterr()
    found = [float(line.split("\t")[0]) for line in shown.out.splitlines()]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    why = r"RGB by bilinear, and this vqbank does it by swscale bicubic \(to score new videos"
    assert re.search(why, shown.err)

    phone = str(WRITTEN.parent / "cases" / "phone.3gp")
    with pytest.raises(RecipeError, match=why):
        app(["predict", head, phone])
    with pytest.raises(MissingFeatureError, match=r"phone\.3gp"):
        app(["predict", head, phone, "--bank", str(bank)])


def test_a_head_of_before_knows_banked_files_by_content_and_refuses_others(tmp_path):
    scorer = Scorer(WRITTEN / "heads" / "ridge", weights={})
    assert scorer.only_banked
    shutil.copytree(WRITTEN / "bank", tmp_path / "bank")
    store = FeatureStore(tmp_path / "bank")
    path = tmp_path / "renamed.mp4"
    path.write_bytes(b"a video")
    for spec in scorer.head.specs_.values():
        writer = store.writer(spec, provenance={}, durable=False)
        feature = store.read(spec, store.video_ids(spec)[0])
        writer.add("set/first.mp4", feature, fingerprint=Fingerprint.of(path), probe={})
        writer.commit()
    store.refresh()

    (taken,) = scorer.as_banked([Video("set/renamed.mp4", path)], store)
    assert taken == Video("set/first.mp4", path)
    assert scorer.as_banked([taken], store) == [taken]
    path.write_bytes(b"another")
    with pytest.raises(ChangedVideoError, match=r"set/first.mp4: .*renamed.mp4"):
        scorer.as_banked([taken], store)
