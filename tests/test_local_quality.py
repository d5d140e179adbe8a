"""Local quality: what fragments and places of maps say alone, and where it lies on a frame."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import vqbank
from vqbank.extractors.video.numbered import fingerprint_of
from vqbank.pipelines.commands.cli import app
from vqbank.pipelines.local_quality import on_frame, overlay
from vqbank.regressors import make_head
from vqbank.regressors.local_quality import local_quality
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import HeadError
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, Video
from vqbank.store.table import FeatureTable


def table_of(rows):
    count = len(next(iter(rows.values())))
    videos = [Video(f"{n}", Path("x"), scene=f"{n}") for n in range(count)]
    return FeatureTable.from_arrays(videos, rows)


def maps(mos, rng):
    """Of two clips, 5 channels at 3 times of 4 x 4 places."""
    return [(one + rng.normal(0, 0.1, (2, 5, 3, 4, 4))).astype(np.float16) for one in mos]


def test_places_of_a_map_have_the_score_of_the_video_as_their_mean():
    rng = np.random.default_rng(0)
    mos = rng.uniform(0, 1, 40)
    table = table_of({"map": maps(mos, rng)})
    head = make_head("mapnet", epochs=20, runs=2, hidden=8).fit(table, mos)

    found = local_quality(head, table.subset(range(5)))

    assert found.shape == (5, 4, 4)
    np.testing.assert_allclose(
        found.mean(axis=(1, 2)), head.predict(table.subset(range(5))), atol=1e-4
    )


def test_a_place_that_is_worse_is_told_apart():
    rng = np.random.default_rng(0)
    mos = rng.uniform(0, 1, 60)
    table = table_of({"map": maps(mos, rng)})
    head = make_head("mapnet", epochs=60, hidden=8).fit(table, mos)
    mixed = np.full((2, 5, 3, 4, 4), 0.9, np.float16)
    mixed[..., 1, 2] = 0.1
    (found,) = local_quality(head, table_of({"map": [mixed]}))
    assert np.unravel_index(found.argmin(), found.shape) == (1, 2)
    assert found[1, 2] < found[0, 0] - 0.2


def test_every_fragment_of_ram_has_a_score_and_a_head_of_whole_videos_none():
    rng = np.random.default_rng(0)
    mos = rng.uniform(0, 1, 16)
    clip = (4, 4, 49, 8)
    rows = {
        "aesthetic": [rng.normal(size=(2, 16)).astype(np.float32) for _ in mos],
        "fragments": [rng.normal(size=clip).astype(np.float16) for _ in mos],
        "residuals": [rng.normal(size=clip).astype(np.float16) for _ in mos],
    }
    table = table_of(rows)
    given = {"clip_frames": 4, "part": 2, "attentions": 2, "prompts": None, "from_clip": False}
    head = make_head("ram", **given, epochs=1).fit(table, mos)
    found = local_quality(head, table.subset([3, 5]))
    assert found.shape == (2, 7, 7)
    assert len(np.unique(found[0])) == 49
    np.testing.assert_allclose(local_quality(head, table.subset([5]))[0], found[1], atol=1e-5)
    frames = table_of({**rows, **{
        role: [one.mean(axis=2) for one in rows[role]] for role in ("fragments", "residuals")
    }})  # fmt: skip
    whole = make_head("ram", **given, epochs=1, usage="residual-concat", width=8)
    with pytest.raises(HeadError, match="sees no 7 x 7 fragments of a frame"):
        local_quality(whole.fit(frames, mos), frames)
    alone = make_head("ram", **given, epochs=1, technical=False).fit(table, mos)
    with pytest.raises(HeadError, match="no technical branch"):
        local_quality(alone, table)
    gru = make_head("gru", epochs=1, standardise=False)
    whole = table.select(["aesthetic"])
    gru.fit(whole, mos)
    with pytest.raises(HeadError, match="sees a video as a whole"):
        local_quality(gru, whole)


def test_cells_are_those_that_fragments_are_cut_from():
    laid = on_frame(np.arange(49.0).reshape(7, 7), 100, 73)
    assert laid.shape == (100, 73)
    assert laid[0, 0] == 0
    assert laid[13, 10] == 1  # cells of 14 x 10
    assert laid[14, 9] == 7
    assert laid[99, 72] == 48  # what is left belongs to the last
    assert on_frame(np.zeros((7, 7)), 3, 3).shape == (3, 3)


def test_low_quality_is_red_and_high_quality_green():
    frame = np.full((20, 20, 3), 100, np.uint8)
    shown = overlay(frame, np.array([[1.0, 5.0], [3.0, 9.0]]), lowest=1, highest=5)
    assert shown[0, 0].tolist() == [178, 50, 50]
    assert shown[0, 19].tolist() == [50, 178, 50]
    assert shown[19, 19].tolist() == shown[0, 19].tolist()  # beyond is as high
    assert np.array_equal(overlay(frame, np.zeros((2, 2)), lowest=0, highest=1, opacity=0), frame)


@pytest.fixture
def project(tmp_path):
    """A bank of maps of twelve videos, of which one is at hand, and a head on them."""
    rng = np.random.default_rng(0)
    store = FeatureStore.create(tmp_path / "bank")
    spec = FeatureSpec("theirs.map", (5, 3, 4, 4), "float16", {"provenance": "unknown"})
    lines = ["id,path,mos,scene"]
    with store.writer(spec, provenance={}, durable=False) as writer:
        for number in range(12):
            values = maps([number / 11], rng)[0]
            feature = Feature(values, np.arange(2.0), np.arange(2))
            printed = Fingerprint(number + 1, f"{number:064x}")
            if number == 0:
                (tmp_path / "0").mkdir()
                (tmp_path / "0" / "rate.txt").write_text("25")
                for frame, level in enumerate((9, 200, 9)):
                    picture = np.full((40, 60, 3), level, np.uint8)
                    Image.fromarray(picture).save(tmp_path / "0" / f"{frame}.png")
                printed = fingerprint_of(tmp_path / "0")
            writer.add(f"set/{number}", feature, fingerprint=printed, probe={})
            lines.append(f"set/{number},{number},{number},{number}")
    (tmp_path / "set.csv").write_text("\n".join(lines))
    for name, parameters in (("mapnet", {"epochs": 5, "hidden": 4}), ("ridge", {})):
        vqbank.train(
            bank=tmp_path / "bank",
            features={"map": "theirs.map"},
            videos=tmp_path / "set.csv",
            head={name: parameters},
            output=tmp_path / name,
        )
    return tmp_path


def test_the_command_keeps_places_and_lays_them_over_the_middle_frame(project):
    given = ["set.csv", "--bank", "bank", "--places"]

    def run(head, *, to):
        line = ["predict", project / head, *(project / one if "-" not in one else one
                for one in given), project / to]  # fmt: skip
        return CliRunner().invoke(app, [str(word) for word in line])

    done = run("mapnet", to="places")
    assert done.exit_code == 0, done.output
    document = json.loads((project / "places" / "places.json").read_text())
    predicted = vqbank.predict(
        project / "mapnet", project / "set.csv", bank=project / "bank", places=True
    )
    told = [one["places"] for one in document["videos"]]
    np.testing.assert_array_equal(told, predicted.places)
    np.testing.assert_allclose(predicted.places.mean(axis=(1, 2)), predicted.scores, atol=1e-4)
    assert (document["red"], document["green"]) == (0, 11)
    assert [one["picture"] for one in document["videos"]] == ["0001.png"] + 11 * [None]
    shown = np.asarray(Image.open(project / "places" / "0001.png"))
    frame = np.full((40, 60, 3), 200, np.uint8)
    expected = overlay(frame, predicted.places[0], lowest=0, highest=11)
    np.testing.assert_array_equal(shown, expected)
    assert "no picture of set/1" in done.stderr

    refused = run("ridge", to="none")
    assert refused.exit_code != 0
    assert "ridge scores no places of a frame; ram and mapnet do" in str(refused.stderr) + str(
        refused.exception
    )
    assert not (project / "none").exists()
