"""Golden fixtures: what official code computes, and that a difference is seen."""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from vqbank.pipelines.commands.cli import app
from vqbank.pipelines.golden import PLAYERS, play, play_one
from vqbank.pipelines.golden.fixture import Check, Fixture, array, fill, frames
from vqbank.store.errors import GoldenError

GOLDEN = Path(__file__).parent / "golden"
LIGHT = (
    "cbam.a",
    "hysteresis.a",
    "ksvqe_adapter.a",
    "maxvqa_ema.a",
    "metrics.a",
    "qclip_losses_schedule.a",
    "qclip_train.a",
    "rqvqa_keyframes.a",
    "rqvqa_loss_metrics.a",
    "tadaconv2d.a",
    "vrt_tmsa.a",
    "vsfa_head.a",
    "xclip_cct.a",
)


def assert_passes(name):
    played = play_one(GOLDEN / f"{name}.npz")
    assert played.fault == ""
    assert [check for check in played.checks if not check.passed] == []
    assert played.verdict == "pass"


@pytest.mark.parametrize("name", LIGHT)
def test_light_fixtures_are_what_official_code_computes(name):
    assert_passes(name)


@pytest.mark.golden
@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("*.npz")))
def test_every_fixture_is_what_official_code_computes(name, request):
    if name.startswith("brisque_protocol."):
        request.getfixturevalue("shared_data")  # its features lie there
    assert_passes(name)


def test_data_of_a_fixture_are_found_by_name_and_hash_and_else_named(tmp_path, monkeypatch):
    monkeypatch.setenv("VQBANK_TEST_DATA", str(tmp_path / "nowhere"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "x.csv").write_bytes(b"1")
    fixture = Fixture("net", "a", {}, {}, tmp_path / "golden")
    right = hashlib.sha256(b"1").hexdigest()

    assert fixture.data("data/x.csv", right) == tmp_path / "data" / "deep" / "x.csv"
    with pytest.raises(GoldenError, match=r"net\.a needs data/x\.csv .* VQBANK_TEST_DATA"):
        fixture.data("data/x.csv", "0" * 64)


def test_every_player_has_its_fixture_here():
    assert PLAYERS.keys() == {path.name.split(".")[0] for path in GOLDEN.glob("*.npz")}


def test_filling_and_drawing_are_the_public_rules():
    """Bytes drawn with the rules' own script."""
    assert fill("a.weight", (2,)).tobytes().hex() == "c88f663f5cf67c3f"
    assert fill("a.running_var", (2,)).tobytes().hex() == "9ecb3d3fbb9c053f"
    assert fill("a.bias", (2,)).tobytes().hex() == "9e252a3c2320693c"
    assert (
        fill("a.weight", (2, 3)).tobytes().hex()
        == "53de12bfbe4d8cbd2df91dbfcf53a6bfb559e13eb0dece3f"
    )
    assert np.asarray(fill("scale", ())).tobytes().hex() == "b21c833f"
    assert frames("a", 2, 9, 5)[1, 8, 4].tolist() == [74, 118, 145]


# What a player sees.


@pytest.fixture
def fixture():
    return Fixture("net", "a", {}, {"x": np.array([1.0, -4.0], np.float32)})


def test_a_relative_error_is_of_the_largest_value_or_of_each(fixture):
    got = np.array([1.1, -4.0])
    assert fixture.close("x", got, relative=0.1).error == pytest.approx(0.1 / 4)
    assert fixture.close("x", got, relative=0.1, each=True).error == pytest.approx(0.1)
    assert fixture.close("x", got, absolute=0.1).error == pytest.approx(0.1)


def test_integers_are_counted_where_they_differ(fixture):
    assert fixture.equal("x", np.array([1, -4])).passed
    assert fixture.equal("x", np.array([1, 4])).error == 1


@pytest.mark.parametrize(("what", "shape"), [("x", (3,)), ("y", (2,))])
def test_another_shape_or_key_is_an_error(fixture, what, shape):
    with pytest.raises(GoldenError, match=r"has shape|has no output"):
        fixture.close(what, np.zeros(shape), absolute=1)


def test_what_is_no_number_is_out_of_any_tolerance(fixture):
    check = fixture.close("x", np.array([np.nan, -4]), absolute=1e9)
    assert not check.passed
    assert check.excess == float("inf")


def test_the_excess_is_the_error_in_tolerances():
    assert Check("x", 0.5, 2).excess == 0.25
    assert Check("x", 0, 0).excess == 0
    assert Check("x", 1, 0).excess == float("inf")


def test_a_sampled_tensor_is_compared_in_shape_values_and_statistics():
    values = torch.from_numpy(array("sampled", (3, 5)))
    size = values.double().abs()
    expected = {
        "x.sample": values.flatten()[::4].numpy(),
        "x.shape_stride": np.array([3, 5, 4], np.int32),
        "x.stats": np.array(
            [values.mean(), values.double().std(correction=0), size.mean(), size.max()], np.float32
        ),
    }
    fixture = Fixture("net", "a", {}, expected)
    assert all(check.passed for check in fixture.sampled("x", values, absolute=1e-6))
    wrong = list(fixture.sampled("x", values.roll(1), absolute=1e-6))
    assert [check.what for check in wrong if not check.passed] == ["x.sample"]
    assert not all(check.passed for check in fixture.sampled("x", values.T, absolute=1e-6))


def test_a_key_set_differs_by_names_and_by_shapes():
    recipe = {"state_dict": {"a": [2], "b": [3]}, "not_filled": {"count": ["int64"]}}
    fixture = Fixture("net", "a", recipe, {})
    same = {"a": torch.zeros(2), "b": torch.zeros(3), "count": torch.zeros(())}
    assert fixture.keys(same).passed
    assert fixture.keys({**same, "b": torch.zeros(4)}).error == 1
    assert fixture.keys({"a": torch.zeros(2), "c": torch.zeros(3)}).error == 2


# The command.


def copied(folder, name, **changes):
    """A fixture of this folder, with some of its output replaced."""
    folder.mkdir(exist_ok=True)
    shutil.copy(GOLDEN / f"{name}.json", folder)
    with np.load(GOLDEN / f"{name}.a.npz") as arrays:
        np.savez(folder / f"{name}.a.npz", **{**arrays, **changes})
    return folder


def vqbank_golden(folder, *options):
    return CliRunner().invoke(app, ["golden", str(folder), *options])


def test_a_wrong_output_fails_and_is_named(tmp_path):
    wrong = np.array([0.7, 0.7, 0.7, 0.7], np.float32)
    copied(tmp_path, "metrics", ties_rescale=wrong)
    copied(tmp_path, "rqvqa_loss_metrics")
    run = vqbank_golden(tmp_path)
    assert run.exit_code == 1
    lines = run.stdout.splitlines()
    assert lines[0].split()[:2] == ["fail", "metrics.a"]
    assert "out of tolerance: ties_rescale" in lines[1]
    assert any(line.split()[:2] == ["pass", "rqvqa_loss_metrics.a"] for line in lines)
    assert lines[-1] == "1 pass, 1 fail, 0 not played"


def test_a_square_that_is_a_pixel_off_is_seen(tmp_path):
    with np.load(GOLDEN / "rqvqa_keyframes.a.npz") as arrays:
        off = arrays["resize_200x300"] + np.array([0, 0, 0, 1])
    copied(tmp_path, "rqvqa_keyframes", resize_200x300=off)
    (played,) = play(tmp_path)
    assert [check.what for check in played.checks if not check.passed] == ["resize_200x300"]
    assert played.worst.what == "resize_200x300"


def test_another_letter_is_played_with_its_own_input(tmp_path):
    copied(tmp_path, "metrics")
    (tmp_path / "metrics.a.npz").rename(tmp_path / "metrics.b.npz")
    (played,) = play(tmp_path)
    assert played.letter == "b"
    assert played.fault == ""
    assert not any(check.passed for check in played.checks if check.what.endswith("_metrics"))


def test_what_nobody_plays_counts_only_where_all_is_asked_for(tmp_path):
    (tmp_path / "stranger.json").write_text("{}")
    np.savez(tmp_path / "stranger.a.npz", x=np.zeros(1))
    run = vqbank_golden(tmp_path)
    assert run.exit_code == 0
    assert run.stdout.startswith("not played  stranger.a")
    assert vqbank_golden(tmp_path, "--all").exit_code == 1


def test_outputs_that_nothing_was_compared_with_fail_and_are_named(tmp_path):
    run = vqbank_golden(copied(tmp_path, "metrics", stranger=np.zeros(1)))
    assert run.exit_code == 1
    assert run.stdout.startswith("fail")
    assert "not compared: stranger\n" in run.stdout  # and not linear_popt, which is informative


@pytest.mark.parametrize("name", ["metrics", "stranger"])
def test_outputs_without_a_recipe_fail(tmp_path, name):
    copied(tmp_path, "metrics")
    (tmp_path / "metrics.a.npz").rename(tmp_path / f"{name}.b.npz")
    (tmp_path / "metrics.json").unlink()
    (played,) = play(tmp_path)
    assert played.verdict == "fail"
    assert played.fault == f"there is no {name}.json beside {name}.b.npz"


@pytest.mark.parametrize("error", [ImportError("cannot import"), AssertionError("not so")])
def test_a_player_that_breaks_leaves_the_others_to_be_played(tmp_path, monkeypatch, error):
    def broken(_fixture):
        raise error
        yield

    copied(tmp_path, "metrics")
    copied(tmp_path, "rqvqa_loss_metrics")
    monkeypatch.setitem(PLAYERS, "metrics", broken)
    one, other = play(tmp_path)
    assert (one.verdict, other.verdict) == ("fail", "pass")
    assert str(error) in one.fault


class Bomb:
    """Its pickle makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_folder_of_fixtures_is_never_run(tmp_path):
    folder = copied(
        tmp_path / "golden", "metrics", bomb=np.array([Bomb(tmp_path / "boom")], object)
    )
    (folder / "fill.py").write_text(f"import os; os.mkdir({str(tmp_path / 'boom')!r})")
    run = vqbank_golden(folder)
    assert run.exit_code == 1
    assert "metrics.a.npz cannot be read: Object arrays" in run.stdout
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.json", b"{"),
        ("metrics.json", b"[]"),
        ("metrics.json", b"\xff"),
        ("metrics.a.npz", b""),
        ("metrics.a.npz", b"no archive"),
        ("metrics.a.npz", (GOLDEN / "metrics.a.npz").read_bytes()[:500]),
    ],
)
def test_a_damaged_fixture_fails_and_the_others_are_played(tmp_path, file, content):
    copied(tmp_path, "metrics")
    copied(tmp_path, "rqvqa_loss_metrics")
    (tmp_path / file).write_bytes(content)
    one, other = play(tmp_path)
    assert one.verdict == "fail"
    assert file in one.fault
    assert other.verdict == "pass"


def test_a_recipe_of_other_entries_fails_with_what_is_missing(tmp_path):
    copied(tmp_path, "metrics")
    recipe = json.loads((tmp_path / "metrics.json").read_text())
    (tmp_path / "metrics.json").write_text(json.dumps({**recipe, "input": {"a": {"new": {}}}}))
    (played,) = play(tmp_path)
    assert played.verdict == "fail"
    assert played.fault


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorchvideo.models.slowfast", None)
    run = vqbank_golden(copied(tmp_path, "slowfast_fast256"))
    assert run.exit_code == 1
    assert "pytorchvideo.models.slowfast is not installed; extraction needs" in run.stdout


def test_a_folder_without_fixtures_is_an_error(tmp_path):
    (tmp_path / "README.md").touch()
    with pytest.raises(GoldenError, match=r"holds no fixture: no NAME\.json with a NAME"):
        list(play(tmp_path))
