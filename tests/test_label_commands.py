"""The commands for label files and splits: what a person types, what they answer, how they exit."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from vqbank.pipelines.commands.cli import app
from vqbank.pipelines.manifest import read_manifest
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import ManifestError, RecipeError
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint

CASES = Path(__file__).parent / "data" / "cases"
KVQ = "filename,score\n" + "".join(f"train/{n:04d}.mp4,{1 + n / 10}\n" for n in range(1, 36))


def vqbank(*arguments):
    """Exit code and output; errors of ours are raised, as `main` expects them."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_import_writes_a_manifest_and_says_what_it_saw(tmp_path):
    labels = write(tmp_path / "labels", KVQ)
    code, answer = vqbank("labels", "import", labels, "-o", tmp_path / "kvq.csv")
    videos = read_manifest(tmp_path / "kvq.csv")

    assert code == 0
    assert "35 rows; mos: score, 35 scores from 1.1 to 4.5" in answer
    assert "5 scenes by KVQ: 7 consecutive numbers are versions of one content" in answer
    assert (videos[7].id, videos[7].mos, videos[7].scene) == (
        "kvq/train/0008.mp4", 1.8, "train-002",
    )  # fmt: skip


def test_import_joins_files_and_takes_name_score_and_scenes(tmp_path):
    one = write(tmp_path / "one.csv", "name,mos,mos_raw\na_1.mp4,1,10\na_2.mp4,2,20\n")
    two = write(tmp_path / "two.csv", "name,mos_raw\nb_1.mp4,30\na_2.mp4,20\n")
    code, answer = vqbank(
        "labels", "import", one, two, "-o", tmp_path / "m.csv", "--name", "set",
        "--score", "mos_raw", "--scene", r"(\w)_\d",
    )  # fmt: skip
    videos = read_manifest(tmp_path / "m.csv")

    assert code == 0
    assert "further scores, by --score: mos" in answer
    assert [(video.id, video.mos, video.scene) for video in videos] == [
        ("set/a_1.mp4", 10.0, "a"), ("set/a_2.mp4", 20.0, "a"), ("set/b_1.mp4", 30.0, "b"),
    ]  # fmt: skip


def test_import_keeps_data_sets_of_different_names_apart(tmp_path):
    one = write(tmp_path / "one.csv", "name,mos,scene\n1.mp4,1,x\n2.mp4,5,x\n")
    two = write(tmp_path / "two.csv", "name,mos,scene\n1.mp4,20,x\n2.mp4,90,x\n")
    more = write(tmp_path / "more.csv", "name,mos,scene\n3.mp4,30,x\n2.mp4,90,x\n")
    names = ("--name", "a", "--name", "b", "--name", "b")
    write(tmp_path / "videos" / "a" / "1.mp4", "")
    write(tmp_path / "videos" / "b" / "1.mkv", "")
    manifest = tmp_path / "m.csv"
    code, _ = vqbank("labels", "import", one, two, more, "-o", manifest, *names)
    videos = read_manifest(manifest)

    assert code == 0
    assert [(video.id, video.mos, video.scene) for video in videos] == [
        ("a/1.mp4", 1, "a/x"), ("a/2.mp4", 5, "a/x"),
        ("b/1.mp4", 20, "b/x"), ("b/2.mp4", 90, "b/x"), ("b/3.mp4", 30, "b/x"),
    ]  # fmt: skip
    vqbank("split", "make", manifest, "--splits", "across", "-o", tmp_path / "s.json")
    assert len(json.loads((tmp_path / "s.json").read_text())["splits"]) == 2

    folder = ("--videos", tmp_path / "videos")
    code, _ = vqbank("labels", "import", one, two, more, "-o", manifest, *names, *folder)
    assert code == 1
    assert [video.id for video in read_manifest(manifest)] == ["a/1.mp4", "b/1.mkv"]
    with pytest.raises(ManifestError, match="2 names for 3 files"):
        vqbank("labels", "import", one, two, more, "-o", manifest, *names[:4])
    with pytest.raises(ManifestError, match="cannot be mixed"):
        vqbank("labels", "import", one, more, "-o", manifest)


def test_import_says_which_files_are_raw_and_which_scales_are_not_shown_to_be_one(tmp_path):
    one = write(tmp_path / "one.csv", "name,mos\na.yuv,1\nb.yuv,5\n")
    two = write(tmp_path / "two.csv", "name,mos\nc.mp4,2\nd.mp4,70\n")
    _, answer = vqbank("labels", "import", one, two, "-o", tmp_path / "m.csv")

    assert "2 are .yuv: frames without their size" in answer
    assert "caution: " in answer
    _, answer = vqbank("labels", "check", one, two)
    assert "nothing shows that both are on one scale" in answer


def test_check_names_what_could_not_be_compared(tmp_path):
    one = write(tmp_path / "one.csv", "name,mos\n1.mp4,3\n2.mp4,4\n")
    two = write(tmp_path / "two.csv", "name,mos\na/1.mp4,3\nb/1.mp4,5\n")

    assert "not compared: 1.mp4 may be a/1.mp4 or b/1.mp4" in vqbank("labels", "check", one, two)[1]


def test_the_score_of_a_label_file_can_be_named_wherever_it_is_read(tmp_path):
    labels = write(tmp_path / "l.csv", "name,mos,score\n" + "".join(f"{n},1,2\n" for n in range(9)))
    made = ("split", "make", labels, "--splits", "random2", "-o", tmp_path / "s.json")

    with pytest.raises(ManifestError, match="'mos' and 'score' may be the score; --score says"):
        vqbank(*made)
    assert vqbank(*made, "--score", "mos")[0] == 0
    audit = ("split", "audit", labels, "--splits", tmp_path / "s.json", "--score", "mos")
    assert vqbank(*audit)[0] == 0
    manifest = tmp_path / "m.csv"
    vqbank("labels", "import", labels, "-o", manifest, "--score", "mos")
    with pytest.raises(ManifestError, match=r"--score is for label files; the score of \S+m.csv"):
        vqbank("split", "make", manifest, *made[3:], "--score", "mos")


def test_fewer_splits_than_asked_for_and_test_parts_that_evaluate_refuses_are_told(tmp_path):
    labels = write(tmp_path / "l.csv", "name,mos\n" + "".join(f"{n},{n % 2}\n" for n in range(6)))
    made = ("split", "make", labels, "-o", tmp_path / "s.json", "--splits")

    _, answer = vqbank(*made, "random10")

    assert "random10: 6 splits in place of 10: 6 videos make no more different" in answer
    assert "refuses these splits: 6 of 6 test parts are too small, the first is that of" in answer
    assert "split 0, with 1 video; 2 or more" in answer
    labels.write_text("name,mos\n" + "".join(f"{n},{n}\n" for n in range(20)))
    _, answer = vqbank(*made, "random10")
    assert "10 splits of 20 videos" in answer
    assert "refuses" not in answer
    assert "in place of" not in answer


def test_import_finds_files_and_tells_what_is_left_over(tmp_path):
    labels = write(tmp_path / "labels.txt", "a.mp4,1\nbee,2\ncolour_1.mp4,3\n")
    for name in ("x/a.mkv", "bee.mp4", "color_1.mp4"):
        write(tmp_path / "videos" / name, "")
    manifest = tmp_path / "out" / "m.csv"
    manifest.parent.mkdir()
    code, answer = vqbank(
        "labels", "import", labels, "-o", manifest, "--videos", tmp_path / "videos"
    )
    videos = read_manifest(manifest)

    assert code == 1
    assert "3 labels, 3 files" in answer
    assert "2 matched, 1 label without a file, 1 file without a label" in answer
    assert f"colour_1.mp4 ({labels}:3); near: color_1.mp4" in answer
    assert [video.id for video in videos] == ["m/x/a.mkv", "m/bee.mp4"]
    assert all(video.path.is_file() for video in videos)


def test_import_without_any_file_or_name_writes_nothing(tmp_path):
    labels = write(tmp_path / "labels.txt", "a.mp4,1\n")
    unnamed = write(tmp_path / "unnamed.csv", "O,A-all,T-all\n3,3,3\n")
    videos = write(tmp_path / "videos" / "b.mp4", "").parent

    for file, message in ((labels, "no video of .* is in"), (unnamed, "names no videos")):
        with pytest.raises(ManifestError, match=message):
            vqbank("labels", "import", file, "-o", tmp_path / "m.csv", "--videos", videos)
    assert not (tmp_path / "m.csv").exists()
    with pytest.raises(ManifestError, match="names no videos"):
        vqbank("labels", "check", unnamed, "--videos", videos)


def test_a_file_without_names_is_imported_by_row_and_says_so(tmp_path):
    unnamed = write(tmp_path / "unnamed.csv", "O,A-all,T-all\n3,3,3\n")
    code, answer = vqbank("labels", "import", unnamed, "-o", tmp_path / "m.csv")

    assert code == 0
    assert "the file names no videos: rows are called row-0001" in answer
    assert read_manifest(tmp_path / "m.csv")[0].id == "m/row-0001"


def test_check_compares_files_and_a_folder(tmp_path):
    one = write(tmp_path / "one.csv", "name,mos\nA012NEW.mp4,1\nB.mp4,2\n")
    two = write(tmp_path / "two.txt", "Video/A012.mp4, 8, 30, 1\nVideo/B.mp4, 8, 30, 2\n")
    write(tmp_path / "videos" / "B.mp4", "")
    code, answer = vqbank("labels", "check", one, two)

    assert code == 0
    assert "1 of 2 and 2 videos in both, 1 scored in both, largest difference 0" in answer
    assert "near: A012NEW.mp4 and Video/A012.mp4" in answer
    code, answer = vqbank("labels", "check", one, "--videos", tmp_path / "videos")
    assert code == 1
    assert "1 matched, 1 label without a file" in answer


def test_splits_are_made_from_a_label_file_or_its_manifest_alike(tmp_path):
    labels = write(tmp_path / "kvq.txt", KVQ)
    vqbank("labels", "import", labels, "-o", tmp_path / "kvq.csv")
    for source, target in ((labels, "a.json"), (tmp_path / "kvq.csv", "b.json")):
        code, answer = vqbank(
            "split", "make", source, "--splits", "rqvqa10", "-o", tmp_path / target
        )
        assert code == 0
        assert f"{target}: 10 splits of 35 videos, 28/0/7" in answer

    one, other = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert one == other


def test_audit_finds_scenes_on_both_sides(tmp_path):
    labels = write(tmp_path / "kvq.txt", KVQ)
    code, answer = vqbank("split", "audit", labels, "--splits", "random2")

    assert code == 1
    assert "2 of 2 splits have a scene on both sides" in answer
    assert "on both sides: split 0: scene train-001" in answer
    vqbank("split", "make", labels, "--splits", "scene", "-o", tmp_path / "s.json")
    assert vqbank("split", "audit", labels, "--splits", tmp_path / "s.json")[0] == 0


def test_audit_finds_near_duplicates_in_a_bank(tmp_path):
    manifest = write(
        tmp_path / "m.csv", "id,path\n" + "".join(f"v{n},v{n}.mp4\n" for n in range(20))
    )
    what = FeatureSpec("clip.embedding", (8,), "float32", {"weights": "one"})
    writer = FeatureStore.create(tmp_path / "bank").writer(what, provenance={}, durable=False)
    for number in range(20):
        seed = 3 if number == 4 else number  # v4 is v3 once more
        values = np.random.default_rng(seed).standard_normal((4, 8)).astype("f4")
        made = Feature(values, np.arange(4) / 25, np.arange(4))
        writer.add(f"v{number}", made, fingerprint=Fingerprint(1, str(number)), probe={})
    writer.commit()
    rows = list(range(20))
    sides = {"train": [row for row in rows if row != 4], "validation": [], "test": [4]}
    splits = {
        "vqbank_splits": 1,
        "name": "own",
        "videos": [f"v{row}" for row in rows],
        "splits": [sides],
    }
    file = write(tmp_path / "s.json", json.dumps(splits))
    arguments = ("split", "audit", manifest, "--splits", file, "--bank", tmp_path / "bank")
    code, answer = vqbank(*arguments, "--features", "clip.embedding")

    assert code == 1
    assert "no video has a scene, so that nobody can tell whether splits mix them" in answer
    assert "1 pairs of videos are nearer than 0.05 across a split" in answer
    assert "near: v3 | v4: 0.0000, in 1 split" in answer
    with pytest.raises(RecipeError, match="--bank and --features together"):
        vqbank(*arguments)


def test_every_scheme_stands_in_the_documentation():
    from vqbank.pipelines.splits.schemes import SCHEMES

    page = Path(__file__).parents[1] / "docs" / "labels-and-splits.md"
    text = page.read_text(encoding="utf-8")
    for name in SCHEMES:
        assert f"`{name}" in text, name


def test_import_says_how_scenes_were_found_or_that_they_were_not(tmp_path):
    for name, told in (
        ("labels_kvq_names.csv", "2 scenes by KVQ: 7 consecutive"),
        ("labels_game_names.csv", "2 scenes by LIVE-YT-Gaming: the game in the name"),
        ("labels_for_feats.csv", "no scenes: no column states them, and no rule"),
    ):
        code, answer = vqbank("labels", "import", CASES / name, "-o", tmp_path / name)
        assert code == 0
        assert told in answer
    labels = CASES / "labels_for_feats.csv"
    manifest = tmp_path / "labels_for_feats.csv"
    for scheme in ("scene10", "threeway", "kfold5"):
        with pytest.raises(RecipeError, match=r"by scene, and none.* --scene .* random10"):
            vqbank("split", "make", manifest, "--splits", scheme, "-o", tmp_path / "s")
        assert not (tmp_path / "s").exists()
    some = ("labels", "import", labels, "-o", manifest, "--scene", r"(\d{3})0", "--scene", "1(00)5")
    with pytest.raises(RecipeError, match=r"finds no scene in 9 of 12 names: 1001, 1002.*, 1011;"):
        vqbank(*some)
    code, answer = vqbank(*some, "--scene-fallback")
    assert "12 scenes by --scene" in answer
    assert "no rule of a data set" not in answer
    assert "9 names are scenes of their own" in answer
    assert [v.scene for v in read_manifest(manifest)][:6] == [
        "100", "1001", "1002", "1003", "1004", "00",
    ]  # fmt: skip
    assert (
        vqbank("split", "make", manifest, "--splits", "scene10", "-o", tmp_path / "s.json")[0] == 0
    )
    named = ("labels", "check", CASES / "labels_kvq_names.csv")
    assert "these scenes are a guess" in vqbank(*named)[1]
    assert "these scenes are a guess" not in vqbank(*named, "--scene", "(.+)")[1]
    with pytest.raises(RecipeError, match="give --scene too"):
        vqbank("labels", "import", labels, "-o", manifest, "--scene-fallback")
