"""Shipping a head and scoring with it: which video gets which score, and what a card must say."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vqbank.extractors import make_extractor, make_extractors, specs_of
from vqbank.extractors import video as decoding
from vqbank.extractors.isolated import Decoder
from vqbank.pipelines.commands.cli import app
from vqbank.pipelines.experiments.experiment import Experiment
from vqbank.pipelines.experiments.train import train
from vqbank.pipelines.extraction.extract import Extraction
from vqbank.pipelines.predict import Scorer
from vqbank.pipelines.recipe import Recipe
from vqbank.pipelines.sources import videos_to_score
from vqbank.regressors import load_head
from vqbank.regressors.card import MARK
from vqbank.store.bank import FeatureStore
from vqbank.store.documents import yaml_text, yaml_value
from vqbank.store.errors import (
    BankError,
    HeadError,
    ManifestError,
    MissingFeatureError,
    RecipeError,
    UnknownNameError,
    VqbankError,
    WeightsError,
)
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, Video
from vqbank.store.shard import Shard

CPU = torch.device("cpu")


def clip(path, *, noise, seed=0):
    rng = np.random.default_rng(seed)
    ramp = np.add.outer(np.arange(32), np.arange(48)) + 10 * seed
    pictures = (
        np.clip(ramp[..., None] + 5 * i + rng.normal(0, noise, (32, 48, 3)), 0, 255).astype("uint8")
        for i in range(6)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    decoding.encode(path, pictures, rate=6, crf=10)
    return path


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Twelve clips whose score falls with their noise, banked."""
    folder = tmp_path_factory.mktemp("project")
    lines = ["path,mos,scene"]
    for seed in range(4):
        for noise in (0, 10, 30):
            clip(folder / f"{seed}-{noise}.mp4", noise=noise, seed=seed)
            lines.append(f"{seed}-{noise}.mp4,{80 - noise},{seed}")
    (folder / "set.csv").write_text("\n".join(lines) + "\n")
    recipe = Recipe(
        videos=folder / "set.csv",
        bank=folder / "bank",
        features={"motion": "motion.series"},
        heads={"ridge": {}},
    )
    store = FeatureStore.create(recipe.bank)
    videos = list(videos_to_score([recipe.videos]))
    extraction = Extraction(videos, [make_extractor("motion")], store, decoder="pyav", device=CPU)
    assert not any(outcome.failures for outcome in extraction.run())
    return recipe


@pytest.fixture(scope="module")
def head(recipe, tmp_path_factory):
    """A shipped head."""
    folder = tmp_path_factory.mktemp("shipped") / "head"
    train(Experiment.of(recipe, title="test"), folder, recipe=recipe)
    return folder


def scored(head, sources, bank):
    """Scores by path, as `predict` gets them."""
    scorer = Scorer(head, weights={})
    store = FeatureStore.create(bank)
    videos = list(videos_to_score(sources))
    outcomes = list(scorer.extraction(videos, store, device=CPU).run())
    assert not any(outcome.failures for outcome in outcomes)
    predicted = scorer.scores(videos, store, device=CPU)
    return dict(zip([v.path for v in videos], predicted, strict=True))


# --- which videos, under which ids


def test_files_of_one_name_in_folders_of_one_name_get_their_own_scores(head, tmp_path):
    noisy = clip(tmp_path / "a" / "clips" / "1.mp4", noise=30, seed=7)
    clean = clip(tmp_path / "b" / "clips" / "1.mp4", noise=0, seed=7)

    together = scored(head, [noisy.parent, clean.parent], tmp_path / "bank")
    one_by_one = {
        path: scored(head, [path.parent], tmp_path / "another")[path] for path in (noisy, clean)
    }

    assert together == pytest.approx(one_by_one)
    assert together[clean] > together[noisy] + 10


def test_a_file_alone_and_in_its_folder_is_one_video(tmp_path):
    path = clip(tmp_path / "clips" / "1.mp4", noise=1)
    shutil.copy(path, tmp_path / "copy.mp4")
    (copy,) = videos_to_score([tmp_path / "copy.mp4"])

    (video,) = videos_to_score([path, path.parent, path.parent / ".." / "clips"])

    assert video == Video(f"files/{Fingerprint.of(path).sha256[:16]}/1.mp4", path)
    assert copy.id == video.id.replace("1.mp4", "copy.mp4")


def test_another_file_under_an_old_name_is_another_video(tmp_path):
    path = clip(tmp_path / "1.mp4", noise=1)
    (before,) = videos_to_score([path])
    clip(path, noise=2)
    (after,) = videos_to_score([path])

    assert before.path == after.path
    assert before.id != after.id


def test_videos_of_a_manifest_keep_their_ids(recipe):
    ids = [video.id for video in videos_to_score([recipe.videos, recipe.videos])]

    assert ids == [f"set/{seed}-{noise}.mp4" for seed in range(4) for noise in (0, 10, 30)]


def test_two_files_under_one_id_of_manifests_both_come_out(tmp_path):
    """So that the extraction can refuse them."""
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "set.csv").write_text("path\n1.mp4\n")
    sources = [tmp_path / name / "set.csv" for name in "ab"]

    videos = list(videos_to_score(sources))

    assert [video.id for video in videos] == ["set/1.mp4"] * 2
    assert [video.path for video in videos] == [path.parent / "1.mp4" for path in sources]


def test_files_that_cannot_be_read_go_by_their_path(tmp_path):
    gone = [tmp_path / "a" / "1.mp4", tmp_path / "b" / "1.mp4"]

    ids = [video.id for video in videos_to_score(gone)]
    assert ids == [f"files/unreadable/{path}" for path in gone]  # no banked video has such an id
    with pytest.raises(ManifestError, match="holds no videos"):
        list(videos_to_score([tmp_path]))


def test_what_is_banked_is_found_by_content_too(recipe, head, tmp_path, monkeypatch, capsys):
    """Two copies of one banked video, and a new one, under ids that the bank has never seen."""
    shutil.copytree(recipe.bank, tmp_path / "bank")
    folder = tmp_path / "new"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(recipe.videos.parent / "2-10.mp4", folder / name)
    clip(folder / "c.mp4", noise=3, seed=11)
    (tmp_path / "copies.csv").write_text("path\nnew/a.mp4\n")
    opened = []
    monkeypatch.setattr(Decoder, "open", spied(Decoder.open, opened))
    sources = [tmp_path / "copies.csv", folder]

    with pytest.raises(SystemExit) as ended:
        app(["predict", str(head), *map(str, sources), "--bank", str(tmp_path / "bank")])

    told = capsys.readouterr()
    lines = [line.split("\t") for line in told.out.splitlines()]
    store = FeatureStore(recipe.bank)
    (video,) = [v for v in videos_to_score([recipe.videos]) if v.id == "set/2-10.mp4"]
    expected = Scorer(head, weights={}).scores([video], store, device=CPU)[0]
    assert ended.value.code == 0
    assert opened == [folder / "c.mp4"]
    assert [Path(path).name for _, _, path, *_ in lines] == ["a.mp4", "a.mp4", "b.mp4", "c.mp4"]
    assert lines[0][1] == "copies/new/a.mp4"  # the manifest's, not the bank's
    assert [float(score) for score, *_ in lines[:3]] == pytest.approx([expected] * 3, abs=1e-4)
    assert "3 of 4 videos are in" in told.err
    assert "copies/new/a.mp4 is set/2-10.mp4" in told.err


def test_a_copy_beside_the_banked_video_itself_is_taken_for_it(recipe, head, tmp_path):
    (video,) = [v for v in videos_to_score([recipe.videos]) if v.id == "set/2-10.mp4"]
    copy = Video("new/a.mp4", Path(shutil.copy(video.path, tmp_path / "a.mp4")))
    store, scorer = FeatureStore(recipe.bank), Scorer(head, weights={})

    for given in ([video, copy], [copy, video]):
        banked = scorer.as_banked(given, store)
        assert banked == [video, video]
        assert len(scorer.extraction(banked, store, device=CPU).videos) == 1


def test_each_index_is_read_once_to_find_videos_by_content(recipe, head, tmp_path, monkeypatch):
    for number in range(5):
        clip(tmp_path / "new" / f"{number}.mp4", noise=1, seed=20 + number)
    store = FeatureStore(recipe.bank)
    read = []
    monkeypatch.setattr(Shard, "video", spied(Shard.video, read))
    videos = list(videos_to_score([tmp_path / "new"]))

    assert Scorer(head, weights={}).as_banked(videos, store) == videos
    assert len(read) == 12


def spied(method, seen):
    """The method, which also tells with what it is called."""

    def call(self, argument):
        seen.append(argument)
        return method(self, argument)

    return call


# --- shipping


def test_one_head_is_shipped(recipe, tmp_path):
    two = recipe.model_copy(update={"heads": {"ridge": {}, "svr": {}}})

    with pytest.raises(RecipeError, match="one head is shipped, not ridge, svr"):
        train(Experiment.of(two, title="test"), tmp_path / "head", recipe=two)
    assert not (tmp_path / "head").exists()


def test_a_folder_of_something_else_is_refused_before_anything_is_fitted(recipe, tmp_path):
    (tmp_path / "notes.txt").touch()
    made = Experiment.of(recipe, title="test")

    with pytest.raises(HeadError, match="holds no head, but notes"):
        train(made, tmp_path, recipe=recipe)
    assert not hasattr(made.cells[0].head, "specs_")


def test_a_card_says_what_was_trained_on_what(head):
    card = Scorer(head, weights={}).card

    marks = card["trained_on"].pop("ids")
    percentiles = card["trained_on"].pop("percentiles")
    assert percentiles[::50] == [50.0, 70.0, 80.0]
    assert len(marks) == 12 * MARK
    assert card["trained_on"] == {"videos": 12, "lowest": 50.0, "highest": 80.0}
    assert card["score_name"] == "MOS"
    assert card["recipe"]["features"] == {"motion": "motion.series"}
    assert set(card["software"]) == {"python", "vqbank", "numpy", "torch", "scikit-learn"}


def test_the_laptop_half_alone_can_train(recipe, tmp_path):
    """Rule 6: with neither the extractors nor anything of theirs to import."""
    script = """
import sys
from pathlib import Path

BANNED = {"av", "decord", "torchcodec", "torchvision", "open_clip", "timm", "transformers",
          "pyiqa", "pytorchvideo", "vqbank.extractors"}

class Absent:
    def find_spec(self, name, path=None, target=None):
        if {name, name.partition(".")[0]} & BANNED:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
from vqbank.pipelines.entries import with_keys
from vqbank.pipelines.experiments.experiment import Experiment
from vqbank.pipelines.recipe import Recipe
from vqbank.pipelines.experiments.train import train

recipe = Recipe.model_validate_json(sys.argv[1])
train(Experiment.of(recipe, title="test"), Path(sys.argv[2]), recipe=recipe)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, recipe.model_dump_json(), str(tmp_path / "head")],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )

    assert done.returncode == 0, done.stderr
    assert load_head(tmp_path / "head").name == "ridge"


def test_a_head_on_several_entries_of_an_extractor_makes_them_all_again(recipe, tmp_path):
    """Whose parameters do not stand in keys by their names."""
    entries = {"few": {"extractor": "frames", "count": 2}, "frames": {"count": 3}}
    features = {"few": "few.pixels", "frames": "frames.pixels"}
    recipe = recipe.model_copy(update={"extractors": entries, "features": features})
    store = FeatureStore(recipe.bank)
    videos = list(videos_to_score([recipe.videos]))
    run = Extraction(videos, make_extractors(entries), store, decoder="pyav", device=CPU)
    assert not any(outcome.failures for outcome in run.run())
    made = Experiment.of(recipe, title="test")
    train(made, tmp_path / "head", recipe=recipe)

    scorer = Scorer(tmp_path / "head", weights={})

    assert [extractor.count for extractor in scorer.extractors] == [2, 3]
    new = clip(tmp_path / "new.mp4", noise=10, seed=9)
    assert scored(tmp_path / "head", [new], tmp_path / "bank").keys() == {new}


def test_weights_of_another_entry_are_not_asked_for(head, tmp_path, monkeypatch):
    """A recipe may name an extractor several times, with weights that are not at hand here."""
    card = yaml_value((head / "card.yaml").read_text(), "yaml", VqbankError)
    entries = {"motion": {}, "other": {"extractor": "motion"}}
    asked, lacking = [], []

    def specs_or_error(extractor, *, decoder):
        asked.append(extractor)
        if len(asked) in lacking:
            raise WeightsError("weights of motion are not at hand")
        return specs_of(extractor, decoder=decoder)

    monkeypatch.setattr("vqbank.pipelines.predict.specs_of", specs_or_error)
    shutil.copytree(head, tmp_path / "head")
    card["recipe"]["extractors"] = entries
    (tmp_path / "head" / "card.yaml").write_text(yaml_text(card))
    for number, expected in ((2, 1), (1, 2)):
        asked.clear()
        lacking[:] = [number]
        assert len(Scorer(tmp_path / "head", weights={}).extractors) == 1
        assert len(asked) == expected
    older = changed(head, tmp_path / "older", lambda identity: identity.update(version=0))
    asked.clear()
    with pytest.raises(WeightsError, match="not at hand"):
        Scorer(older, weights={})


def test_a_head_on_imported_features_scores_what_is_banked(tmp_path, capsys):
    store = FeatureStore.create(tmp_path / "bank")
    spec = FeatureSpec("imported.x", (2,), "float32", {"provenance": "unknown"})
    writer = store.writer(spec, provenance={})
    lines = ["path,mos"]
    for row in range(12):
        values = np.array([[row, -row]], np.float32)
        feature = Feature(values, np.zeros(1), np.zeros(1, np.int64))
        writer.add(f"set/{row}.mp4", feature, fingerprint=Fingerprint(1, f"{row:064}"), probe={})
        lines.append(f"{row}.mp4,{row}")
    writer.commit()
    (tmp_path / "set.csv").write_text("\n".join(lines) + "\n")
    features = ("--bank", tmp_path / "bank", "--features", "imported.x")
    made = ("train", "--videos", tmp_path / "set.csv", *features, "--head", "ridge")
    scored = ("predict", tmp_path / "head", tmp_path / "set.csv")
    for command in ((*made, "-o", tmp_path / "head"), (*scored, "--bank", tmp_path / "bank")):
        with pytest.raises(SystemExit) as ended:
            app([str(word) for word in command])
        assert ended.value.code == 0

    scores = [float(line.split("\t")[0]) for line in capsys.readouterr().out.splitlines()[2:]]
    assert scores == pytest.approx(range(12), abs=0.5)
    (tmp_path / "other.csv").write_text("path,id\n1.mp4,other/1.mp4\n")
    for command, error, message in [
        ((*scored[:2], tmp_path / "other.csv", *features[:2]), MissingFeatureError, "other/1.mp4"),
        ((*scored, "--bank", tmp_path / "nowhere"), BankError, "nowhere"),
        (scored, RecipeError, "name the bank that has them, by --bank"),
    ]:
        with pytest.raises(error, match=message):
            app([str(word) for word in command])
    assert not (tmp_path / "nowhere").exists()


# --- heads that cannot score


@pytest.mark.parametrize("text", ["{}", "[]", "nothing"])
def test_a_card_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "card.yaml").write_text(text)

    with pytest.raises(HeadError, match=r"card\.yaml is not the card of a head"):
        Scorer(tmp_path, weights={})


def changed(head, folder, change):
    """A copy of a head with another identity of its feature, and the key that goes with it."""
    shutil.copytree(head, folder)
    card = yaml_value((folder / "card.yaml").read_text(), "yaml", VqbankError)
    fitted = load_head(folder)
    change(card["features"]["motion"]["identity"])
    spec = type(fitted.specs_["motion"]).from_json(json.dumps(card["features"]["motion"]))
    card["keys"]["motion"] = spec.key
    (folder / "card.yaml").write_text(yaml_text(card))
    return folder


def test_a_head_of_another_version_of_an_extractor_is_refused(head, tmp_path):
    older = changed(head, tmp_path / "head", lambda identity: identity.update(version=0))

    with pytest.raises(HeadError, match=r"wants motion\.series@.*its version or the weights"):
        Scorer(older, weights={})


def test_a_head_on_an_unknown_extractor_or_decoder_is_refused(head, tmp_path):
    strange = changed(head, tmp_path / "1", lambda identity: identity.update(extractor="optics"))
    with pytest.raises(HeadError, match="no extractor 'optics'"):
        Scorer(strange, weights={})
    imported = changed(head, tmp_path / "2", lambda identity: identity.pop("decoder"))
    with pytest.raises(HeadError, match="not from one decoder"):
        Scorer(imported, weights={})


def test_a_head_of_an_unknown_kind_is_refused(head, tmp_path):
    shutil.copytree(head, tmp_path / "head")
    card = tmp_path / "head" / "card.yaml"
    card.write_text(card.read_text().replace("name: ridge", "name: forest"))

    with pytest.raises(UnknownNameError, match="unknown head 'forest'"):
        Scorer(tmp_path / "head", weights={})
