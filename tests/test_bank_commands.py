"""The commands that keep a bank: what a person types, what they answer, how they exit."""

import re
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from vqbank.pipelines.commands.cli import app
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import BankError, MissingFeatureError, RecipeError
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint

WHAT = FeatureSpec("clip.embedding", (8,), "float16", {"weights": "one"})
SWAPPED = FeatureSpec("clip.embedding", (8,), "float16", {"weights": "two"})
MOTION = FeatureSpec("motion.series", (), "float32", {})


def vqbank(*arguments):
    """Exit code and output; errors of ours are raised, as `main` expects them."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def put(path, videos, what=WHAT):
    writer = FeatureStore.create(path).writer(what, provenance={}, durable=False)
    for video, seed in videos.items():
        values = np.random.default_rng(seed).standard_normal((4, *what.shape)).astype("f4")
        made = Feature(values, np.arange(4) / 25, np.arange(4))
        writer.add(video, made, fingerprint=Fingerprint(1, video), probe={})
    writer.commit()
    return writer.id


@pytest.fixture
def bank(tmp_path):
    path = tmp_path / "bank"
    put(path, {"a.mp4": 1, "b.mp4": 2})
    put(path, {"c.mp4": 3})
    put(path, {"a.mp4": 4, "b.mp4": 5}, MOTION)
    return path


def spoil(bank, what, video):
    shard = FeatureStore(bank).find(what, [video])[0][0]
    path = shard.value_files.path(0)
    content = bytearray(path.read_bytes())
    content[shard.span(dict(zip(shard.ids(), range(9), strict=False))[video])[0] * 16] ^= 1
    path.write_bytes(content)


def test_the_commands_stand_beside_those_of_the_command_line():
    _, output = vqbank("--help")

    listed = re.findall(r"^  (\w+) ", output.split("Commands:")[1], re.MULTILINE)
    own = ["diff", "verify", "compact", "merge", "prune", "selection", "export", "pack", "import"]
    assert [name for name in listed if name in own] == own
    assert {"ls", "extract", "evaluate"} <= set(listed)


def test_nothing_heavy_is_imported_before_a_command_runs():
    heavy = ("numpy", "torch", "zarr", "h5py", "rich", "ruamel", "vqbank.store.bank")
    modules = "vqbank.pipelines.commands.bank, vqbank.pipelines.commands.exchange"
    code = f"import sys, {modules}; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert run.stdout.strip() == "[]"


def test_diff_exits_with_one_and_shows_the_worst(bank, tmp_path):
    put(tmp_path / "two", {"a.mp4": 1, "b.mp4": 20, "c.mp4": 30})

    code, output = vqbank("diff", bank, tmp_path / "two")

    assert code == 1
    lines = output.splitlines()
    assert lines[0] == "2 videos only in the first, 0 only in the second, 2 differ"
    assert sorted(line.split()[-2] for line in lines[1:]) == ["b.mp4", "c.mp4"]
    largest = [float(line.split()[1]) for line in lines[1:]]
    assert largest == sorted(largest, reverse=True)
    assert vqbank("diff", bank, bank)[0] == 0
    assert vqbank("diff", bank, tmp_path / "two", "--features", "motion.series")[1].startswith("2 ")


def test_diff_compares_two_features_of_one_bank(bank):
    put(bank, {"a.mp4": 1, "b.mp4": 7, "c.mp4": 3}, SWAPPED)

    code, output = vqbank("diff", bank, "--features", WHAT.key, "--features", SWAPPED.key)

    assert code == 1
    assert output.splitlines()[0].endswith("1 differ")
    assert "b.mp4  (values)" in output
    with pytest.raises(BankError, match="give --features twice"):
        vqbank("diff", bank)
    with pytest.raises(MissingFeatureError, match=r"Did you mean 'clip.embedding'"):
        vqbank("diff", bank, bank, "--features", "clip.embeding")


def test_verify_says_which_videos_to_redo_and_marks_only_when_asked(bank):
    assert vqbank("verify", bank) == (0, f"{bank}: everything is as it was committed\n")
    spoil(bank, WHAT, "b.mp4")

    code, output = vqbank("verify", bank)

    assert code == 1
    assert "values/c/0/0: has changed since it was committed\n  redo: b.mp4\n" in output
    assert FeatureStore(bank).video_ids(WHAT) == ["a.mp4", "b.mp4", "c.mp4"]
    assert vqbank("verify", bank, "--features", "motion.series")[0] == 0
    assert vqbank("verify", bank, "--mark")[0] == 1
    assert FeatureStore(bank).video_ids(WHAT) == ["a.mp4", "c.mp4"]
    assert vqbank("verify", bank)[0] == 0


def test_compact_then_prune(bank):
    code, output = vqbank("compact", bank)
    assert code == 0
    assert f"{WHAT.key}: 2 shards into 1, 3 videos" in output
    assert f"{MOTION.key}: 0 shards into 0, 0 videos" in output

    assert vqbank("prune", bank)[1].startswith("nothing removed")
    _, dry = vqbank("prune", bank, "--older-than-hours", 0)
    assert dry.count("no row of it is read") == 2
    assert "with --yes would go: 2 items" in dry
    _, done = vqbank("prune", bank, "--older-than-hours", 0, "--yes")
    assert "removed: 2 items" in done
    assert len(list((bank / WHAT.key / "shards").iterdir())) == 1
    assert FeatureStore(bank).video_ids(WHAT) == ["a.mp4", "b.mp4", "c.mp4"]


def test_compact_exits_with_one_where_a_shard_is_damaged(bank):
    spoil(bank, WHAT, "b.mp4")

    code, output = vqbank("compact", bank, "--features", "clip.embedding")

    assert code == 1
    assert "was left as it is: b.mp4: values in" in output


def test_merge_makes_a_bank_and_reports_duplicates(bank, tmp_path):
    put(tmp_path / "two", {"a.mp4": 1, "c.mp4": 9})

    code, output = vqbank("merge", tmp_path / "new", bank, tmp_path / "two")

    assert code == 0
    assert re.match(r"4 shards copied \(.*\), 0 were there\n", output)
    assert "2 videos in more than one bank, with 1 feature; 1 of them with other bytes" in output
    assert f"other bytes: {WHAT.key}  c.mp4" in output
    assert vqbank("diff", bank, tmp_path / "new")[0] == 0


def test_merge_counts_videos_however_many_of_their_features_both_banks_have(bank, tmp_path):
    for name in ("one", "two"):
        for spec in (WHAT, MOTION, SWAPPED):
            put(tmp_path / name, {"a.mp4": 1}, spec)

    _, output = vqbank("merge", tmp_path / "new", tmp_path / "one", tmp_path / "two")

    assert "1 video in more than one bank, with 3 features; 0 of them" in output


def test_a_selection_is_written_and_checked(bank, tmp_path):
    manifest = tmp_path / "videos.csv"
    manifest.write_text("id,path\na.mp4,a.mp4\nb.mp4,b.mp4\n")
    options = ["--features", "semantic=clip.embedding", "--features", "motion.series"]
    lock = tmp_path / "lock.json"

    code, output = vqbank("selection", bank, *options, "--videos", manifest, "-o", lock)

    assert code == 0
    assert f"semantic: {WHAT.key}\nmotion.series: {MOTION.key}\n" in output
    assert "gives what" in vqbank("selection", bank, lock, "--check", "--videos", manifest)[1]
    manifest.write_text("id,path\na.mp4,a.mp4\nc.mp4,c.mp4\n")
    with pytest.raises(BankError, match=r"not in the selection: c\.mp4"):
        vqbank("selection", bank, lock, "--check", "--videos", manifest)
    with pytest.raises(RecipeError, match="give --features"):
        vqbank("selection", bank, lock)
    with pytest.raises(RecipeError, match="--check takes"):
        vqbank("selection", bank, "--check")
    with pytest.raises(RecipeError, match="role 'x' twice"):
        vqbank("selection", bank, "--features", "x=a.b", "--features", "x=c.d",
               "--videos", manifest, "-o", lock)  # fmt: skip


def test_what_is_exported_comes_back_the_same(bank, tmp_path):
    assert vqbank("export", bank, tmp_path / "all.h5")[0] == 0
    code, output = vqbank("import", tmp_path / "all.h5", tmp_path / "new")
    assert code == 0
    assert f"{WHAT.key}: 3 videos banked, 0 were there" in output
    assert vqbank("diff", bank, tmp_path / "new")[0] == 0

    vqbank("export", bank, tmp_path / "tree", "--features", "motion.series")
    vqbank("import", tmp_path / "tree", tmp_path / "npy")
    assert vqbank("diff", bank, tmp_path / "npy", "--features", "motion.series")[0] == 0
    with pytest.raises(RecipeError, match="holds one feature, not 2"):
        vqbank("export", bank, tmp_path / "other")
    with pytest.raises(RecipeError, match="is not there"):
        vqbank("import", tmp_path / "nothing", tmp_path / "new")
    with pytest.raises(RecipeError, match="an HDF5 file has its own"):
        vqbank("import", tmp_path / "all.h5", tmp_path / "new", "--name", "x")


def test_a_foreign_tree_is_imported_under_the_given_name(tmp_path):
    (tmp_path / "tree" / "set").mkdir(parents=True)
    np.save(tmp_path / "tree" / "set" / "a.npy", np.ones((3, 4), "f4"))

    options = ["--name", "theirs", "--note", "from a paper"]
    code, output = vqbank("import", tmp_path / "tree", tmp_path / "bank", *options)

    assert code == 0
    assert output.startswith("imported.theirs@")
    (spec,) = FeatureStore(tmp_path / "bank").specs()
    np.testing.assert_array_equal(FeatureStore(tmp_path / "bank").read(spec, "set/a").values, 1)


def test_a_packed_folder_is_a_bank_with_a_card(bank, tmp_path):
    options = ["--features", "clip.embedding", "--title", "Clips of three videos"]
    code, _ = vqbank("pack", bank, tmp_path / "packed", *options)

    assert code == 0
    assert "Clips of three videos" in (tmp_path / "packed" / "CARD.md").read_text()
    assert [spec.key for spec in FeatureStore(tmp_path / "packed").specs()] == [WHAT.key]


@pytest.mark.parametrize(
    "command", [["verify"], ["compact"], ["prune"], ["diff"], ["merge", "new"], ["export"]]
)
def test_a_folder_that_is_no_bank_is_named(tmp_path, command):
    name, *before = command
    after = ["x"] if name in ("diff", "export") else []
    with pytest.raises(BankError, match="is no bank"):
        vqbank(name, *(tmp_path / path for path in before), tmp_path, *after)
    assert list(tmp_path.iterdir()) == []
