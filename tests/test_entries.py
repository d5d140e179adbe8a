"""Several extractors of one kind in a recipe: what is run, and which feature is meant."""

from importlib.resources import files

import numpy as np
import pytest
import torch

from vqbank.extractors import make_extractors, specs_of, without_tiny
from vqbank.extractors import video as decoding
from vqbank.extractors.weights import RANDOM, TINY
from vqbank.pipelines.entries import check_names, check_use, with_keys
from vqbank.pipelines.extraction.extract import Extraction
from vqbank.pipelines.manifest import read_videos
from vqbank.pipelines.recipe import Protocol, Recipe, read_recipe
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import (
    AmbiguousFeatureError,
    MissingFeatureError,
    RecipeError,
    UnknownNameError,
    VqbankError,
)
from vqbank.store.schema import Feature, Fingerprint

CPU = torch.device("cpu")
WITHOUT_WEIGHTS = ("frames", "motion", "nss", "thumbnail")
TWO = {
    "quality": {"weights": RANDOM},
    "patches": {"extractor": "quality", "mode": "preprocessed", "weights": RANDOM},
}


def shipped(tmp_path, name):
    path = tmp_path / f"{name}.yaml"
    path.write_text(files("vqbank.pipelines").joinpath(f"recipes/{name}.yaml").read_text())
    return read_recipe(path)


def weights_of(recipe, tiny=()):
    """Random ones for all entries of an extractor."""
    kinds = {given.get("extractor", entry) for entry, given in recipe.extractors.items()}
    kinds -= set(WITHOUT_WEIGHTS)
    return {kind: TINY if kind in tiny else RANDOM for kind in kinds}


def bank_one_row(store, spec):
    writer = store.writer(spec, provenance={}, durable=False)
    row = Feature(np.ones((1, *spec.shape), "f4"), np.zeros(1), np.zeros(1, "i8"), side_of(spec))
    writer.add("v", row, fingerprint=Fingerprint(1, "0"), probe={})
    writer.commit()
    store.refresh()


def side_of(spec):
    return {side.name: np.zeros((1, *side.shape), side.dtype) for side in spec.side}


# --- what is run


def test_entries_of_one_extractor_have_names_of_their_own():
    full, patches = make_extractors(TWO)
    assert full.name == patches.name == "quality"
    assert (full.mode, patches.mode) == ("full", "preprocessed")


def test_weights_are_given_by_entry_or_for_all_entries_of_an_extractor():
    entries = {"quality": {}, "patches": {"extractor": "quality", "mode": "preprocessed"}}
    every = make_extractors(entries, weights={"quality": TINY})
    assert [one.weights for one in every] == [TINY, TINY]
    apart = make_extractors(entries, weights={"quality": TINY, "patches": RANDOM})
    assert [one.weights for one in apart] == [TINY, RANDOM]


@pytest.mark.parametrize(
    ("entries", "weights", "error", "message"),
    [
        ({"a": {"extractor": "qality"}}, {}, UnknownNameError, "Did you mean 'quality'"),
        ({"patches": {"mode": "full"}}, {}, UnknownNameError, "unknown extractor 'patches'"),
        (TWO, {"qualty": RANDOM}, UnknownNameError, "--weights: unknown extractor 'qualty'"),
        (
            {"nss": {}, "again": {"extractor": "nss", "outputs": ["brisque"]}},
            {},
            RecipeError,
            "'nss' and 'again' compute the same; name all outputs",
        ),
    ],
)
def test_what_entries_cannot_mean_is_refused(entries, weights, error, message):
    with pytest.raises(error, match=message):
        make_extractors(entries, weights=weights)


# --- which feature is meant


@pytest.fixture
def bank(tmp_path):
    """A bank with what each entry of TWO computes; gives it and the keys by entry."""
    store = FeatureStore.create(tmp_path / "bank")
    specs = [specs_of(one, decoder="pyav")["stages"] for one in make_extractors(TWO)]
    for spec in specs:
        bank_one_row(store, spec)
    return store, dict(zip(TWO, (spec.key for spec in specs), strict=True))


def features(store, entries, **features):
    recipe = Recipe(bank=store.path, extractors=entries, features=features)
    return with_keys(recipe).features


def test_a_feature_goes_by_the_name_of_its_entry_whatever_its_weights(bank, tmp_path):
    store, keys = bank
    unweighted = {
        entry: {k: v for k, v in given.items() if k != "weights"} for entry, given in TWO.items()
    }
    for entries in (TWO, unweighted):  # whose weights are not here
        found = features(store, entries, a="quality.stages", b="patches.stages")
        assert found == {"a": keys["quality"], "b": keys["patches"]}


def test_keys_and_names_that_are_alone_stay_as_they_are(bank):
    store, keys = bank
    assert features(store, {}, a="quality.stages", b="other.feature") == {
        "a": "quality.stages",
        "b": "other.feature",
    }
    assert features(store, TWO, a=keys["patches"]) == {"a": keys["patches"]}
    (nss,) = make_extractors({"nss": {}})
    bank_one_row(store, specs_of(nss, decoder="pyav")["brisque"])
    # An entry that computes something else: the bank has one feature of this name.
    entries = {"nss": {"stored_dtype": "float16"}}
    assert features(store, entries, a="nss.brisque") == {"a": "nss.brisque"}


def test_what_an_entry_would_compute_and_is_not_banked_is_missing(bank):
    store, _ = bank
    entries = {"other": {"extractor": "quality", "mode": "preprocessed", "seed": 7}}
    with pytest.raises(MissingFeatureError, match=r"no quality\.stages as entry 'other' of the"):
        features(store, entries, a="other.stages")
    with pytest.raises(UnknownNameError, match=r"unknown output of quality 'stagse'. Did you mean"):
        features(store, TWO, a="patches.stagse")


def test_two_weights_of_one_entry_have_to_be_told_apart_by_key(bank):
    store, _ = bank
    tiny = {name: {**given, "weights": TINY} for name, given in TWO.items()}
    bank_one_row(store, specs_of(make_extractors(tiny)[1], decoder="pyav")["stages"])
    with pytest.raises(
        AmbiguousFeatureError,
        match=r"2 features .* quality\.stages as entry 'patches' .*"
        r"quality\.stages@\w+ \(weights random\).*; choose by --weights patches=CHOICE, or .* key",
    ):
        features(store, TWO, a="patches.stages")


@pytest.mark.parametrize("option", ["patches", "quality", "all"])
def test_features_of_chosen_weights_are_meant_where_weights_are_given(bank, option):
    store, keys = bank
    tiny = {name: {**given, "weights": TINY} for name, given in TWO.items()}
    spec = specs_of(make_extractors(tiny)[1], decoder="pyav")["stages"]
    bank_one_row(store, spec)

    for choice, key in [(TINY, spec.key), (RANDOM, keys["patches"])]:
        recipe = Recipe(bank=store.path, extractors=TWO, features={"a": "patches.stages"})
        assert with_keys(recipe, weights={option: choice}).features == {"a": key}


def test_a_tiny_form_with_other_sizes_is_found_without_weights_being_given(tmp_path):
    store = FeatureStore.create(tmp_path / "bank")
    entries = {"pe": {}, "pe-mixed": {"extractor": "pe", "frames": "mixed"}}
    specs = [
        specs_of(one, decoder="pyav")["pooled"]
        for one in make_extractors(entries, weights={"all": TINY})
    ]
    for spec in specs:
        bank_one_row(store, spec)

    found = features(store, entries, a="pe.pooled", b="pe-mixed.pooled")

    assert found == {"a": specs[0].key, "b": specs[1].key}


def test_what_is_not_of_the_chosen_weights_is_named_by_key_and_weights(bank):
    store, keys = bank
    of_recipe = Recipe(bank=store.path, extractors=TWO, features={"a": "patches.stages"})
    by_name = Recipe(bank=store.path, features={"a": "quality.stages"})
    for recipe in (of_recipe, by_name):
        with pytest.raises(MissingFeatureError, match="of weights 'random-tiny', but") as raised:
            with_keys(recipe, weights={"all": TINY})
        assert all(f"{key} (weights random)" in str(raised.value) for key in keys.values())
    with pytest.raises(UnknownNameError, match="--weights: unknown extractor 'qualty'"):
        with_keys(by_name, weights={"qualty": TINY})
    assert with_keys(by_name, weights={}).features == {"a": "quality.stages"}


# --- names before features


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": {"rigde": {}}}, "Did you mean 'ridge'"),
        ({"heads": {"mine": {"head": "rigde"}}}, "Did you mean 'ridge'"),
        ({"protocol": Protocol(splits="rqvqq")}, "Did you mean 'rqvqa'"),
        ({"protocol": Protocol(splits="none.json")}, "none.json"),
    ],
)
def test_heads_and_splits_that_there_are_not_are_refused_without_a_bank(change, message):
    with pytest.raises(VqbankError, match=message):
        check_names(Recipe().model_copy(update=change))


# --- shipped recipes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": {"x": "nss.series"}}, "unknown output of nss 'series'.*Known: brisque"),
        ({"heads": {"rigde": {}}}, "Did you mean 'ridge'"),
        ({"heads": {"ridge": {"alpha": 1}}}, "parameter of ridge 'alpha'"),
    ],
)
def test_what_evaluate_would_refuse_is_refused_before_extraction(change, message):
    recipe = Recipe(extractors={"nss": {}}, features={"x": "nss.brisque"}, heads={"ridge": {}})
    made = dict(zip(recipe.extractors, make_extractors(recipe.extractors), strict=True))
    check_use(recipe, made)
    with pytest.raises(UnknownNameError, match=message):
        check_use(recipe.model_copy(update=change), made)


def test_the_smallest_random_weights_of_all_are_random_where_there_is_no_tiny_form():
    entries = {"nss": {}, "clip": {}, "iqa": {"metric": "musiq"}, "slowfast": {}}
    made = make_extractors(entries, weights={"all": TINY})
    assert [getattr(one, "weights", None) for one in made] == [None, TINY, RANDOM, TINY]
    assert without_tiny(made) == ["iqa"]
    (clip,) = make_extractors({"clip": {"cut": 8, "outputs": ["tokens"]}}, weights={"all": TINY})
    assert specs_of(clip, decoder="pyav")["tokens"].identity["cut"] == 8


def test_random_weights_can_be_asked_for_all_at_once():
    made = make_extractors(
        {"motion": {}, "clip": {}, "quality": {}}, weights={"all": RANDOM, "clip": TINY}
    )
    assert [getattr(one, "weights", None) for one in made] == [None, TINY, RANDOM]


@pytest.mark.parametrize("name", ["a2inet", "ramvqa", "dvlta", "qclip", "rqvqa", "demo"])
def test_a_shipped_recipe_computes_what_its_heads_are_to_see(tmp_path, name):
    store = FeatureStore.create(tmp_path / "bank")
    recipe = shipped(tmp_path, name).model_copy(update={"bank": store.path})
    for extractor in make_extractors(recipe.extractors, weights=weights_of(recipe)):
        for spec in specs_of(extractor, decoder=recipe.decoder).values():
            bank_one_row(store, spec)
    for feature in with_keys(recipe).features.values():
        store.resolve(feature)


A2INET = {
    "quality": (1920,),
    "semantic": (7680,),
    "motion-blocks": (512,),
    "quality-patches": (1920,),
    "semantic-540": (7680,),
    "motion-blocks-540": (512,),
}


def bank_a2inet(recipe, videos, tmp_path):
    """Everything of the recipe, from one decode of each video; gives the table by entry."""
    weights = weights_of(recipe, tiny=("semantic", "quality"))
    extractors = make_extractors(recipe.extractors, weights=weights)
    store = FeatureStore.create(tmp_path / "bank")
    run = Extraction(
        videos,
        extractors,
        store,
        decoder="pyav",
        device=CPU,
        threads=2,
        batch_clips={"slowfast": 1},  # nothing is padded
    )
    assert not [failure for outcome in run.run() for failure in outcome.failures.items()]
    assert (run.decoded_videos, run.extra_passes) == (len(videos), 0)
    named = {
        entry: f"{entry}.{'blocks' if 'motion' in entry else 'stages'}"
        for entry in recipe.extractors
        if entry != "thumbnail"
    }
    recipe = recipe.model_copy(update={"bank": store.path, "features": named})
    table = store.table(videos, with_keys(recipe).features)
    assert {role: table.specs[role].shape for role in table.roles} == A2INET
    return table


def assert_branches_fit(table, counts):
    """S+S has rows of all frames; S+M takes those of the motion's frames from the quality."""
    for row, count in enumerate(counts):
        chosen = {"": count, "-540": min(count, 128)}
        for suffix, frames in chosen.items():
            quality = "quality" if not suffix else "quality-patches"
            index = {r: table.frame_index(r, row) for r in (quality, f"semantic{suffix}")}
            assert [len(of_role) for of_role in index.values()] == [frames, frames]
            motion = table.frame_index(f"motion-blocks{suffix}", row)
            assert set(motion) <= set(index[quality])
        for role in table.roles:
            assert np.isfinite(table.series(role, row)).all()


def test_one_decode_gives_everything_that_a2inet_needs(tmp_path):
    counts = [2]
    for count in counts:
        pictures = np.random.default_rng(count).integers(0, 256, (count, 64, 64, 3), np.uint8)
        (tmp_path / "set").mkdir(exist_ok=True)
        decoding.encode(tmp_path / "set" / f"{count}.mp4", iter(pictures), rate=10, crf=20)
    videos = read_videos(tmp_path / "set")
    assert_branches_fit(bank_a2inet(shipped(tmp_path, "a2inet"), videos, tmp_path), counts)


@pytest.mark.golden
def test_one_decode_of_real_videos_gives_everything_that_a2inet_needs(tmp_path, shared_data):
    videos = read_videos(shared_data / "clips")
    table = bank_a2inet(shipped(tmp_path, "a2inet"), videos, tmp_path)
    assert_branches_fit(table, [132, 250])
