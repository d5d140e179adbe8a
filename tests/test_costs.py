"""What recipes cost: counted on networks of official size, beside what papers and banks say."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from vqbank.extractors import video as decoding
from vqbank.pipelines.commands.cli import app
from vqbank.pipelines.costs import Shape, extractor_costs, head_costs, seconds_banked, summed
from vqbank.pipelines.recipe import Recipe
from vqbank.store.bank import FeatureStore
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint

HD = Shape(1920, 1080, 8, 30)


def vqbank(*arguments):
    return CliRunner().invoke(app, [str(word) for word in arguments])


def costs(extractors, shape=HD, **parts):
    recipe = Recipe(extractors=extractors, **parts)
    return {one.name: one for one in extractor_costs(recipe, shape)}


def test_extraction_costs_what_was_counted_by_hand():
    """Of eight seconds at 1080p, in multiply-adds: Swin-B at 384 with three attention blocks 382.2
    G, the fast pathway of SlowFast 43.0 G, Video Swin on four clips 352.2 G, each with
    normalisations that are not counted here."""
    found = costs({"swin": {}, "slowfast": {}, "fastvqa": {}})
    expected = {
        "swin": (90_445_944, 382.2e9),
        "slowfast": (510_832, 43.0e9),
        "fastvqa": (28_127_901, 352.2e9),
    }
    for name, (parameters, multiply_adds) in expected.items():
        assert found[name].parameters == parameters
        assert found[name].multiply_adds == pytest.approx(multiply_adds, rel=0.02)
        assert found[name].multiply_adds < multiply_adds
    assert summed(list(found.values())).multiply_adds == sum(
        one.multiply_adds for one in found.values()
    )


def test_prompts_are_no_cost_of_a_video():
    (liqe,) = costs({"liqe": {"outputs": ["logits"]}}).values()
    assert liqe.parameters == 87_849_216  # the image tower of CLIP ViT-B/32
    assert liqe.multiply_adds == pytest.approx(529.1e9, rel=0.01)
    assert liqe.note == "of its usual outputs"


def test_a_longer_and_a_larger_video_cost_as_much_more_as_the_rule_says():
    full, preprocessed = {"semantic": {}}, {"semantic": {"mode": "preprocessed"}}

    def of(extractors, *shape):
        return costs(extractors, Shape(*shape))["semantic"]

    short, long = of(full, 960, 540, 8, 30), of(full, 960, 540, 16, 30)
    assert long.multiply_adds == 2 * short.multiply_adds
    assert long.bytes == 2 * short.bytes == 2 * 240 * (7680 * 2 + 16)
    large = of(full, 1920, 1080, 8, 30)
    assert large.multiply_adds == pytest.approx(4 * short.multiply_adds, rel=0.02)
    assert of(preprocessed, 1920, 1080, 8, 30).bytes == 128 * (7680 * 2 + 16)
    same = [of(preprocessed, *size, 8, 30).multiply_adds for size in ((960, 540), (1920, 1080))]
    assert same[0] == same[1]


def test_what_has_no_network_has_no_multiply_adds_but_bytes():
    (motion,) = costs({"motion": {}}, Shape(64, 48, 2, 10)).values()
    assert (motion.parameters, motion.multiply_adds) == (0, 0)
    assert motion.bytes == 20 * (3 * 4 + 16)


def test_weights_that_say_which_model_they_are_of_are_counted_as_that_one():
    few = costs({"fastvqa": {"weights": "fast-m"}})["fastvqa"]
    assert few == costs({"fastvqa": {"model": "fast-m", "weights": "random"}})["fastvqa"]
    assert few.multiply_adds < 60e9


def test_heads_cost_what_they_learn_and_multiply():
    recipe = Recipe(
        extractors={
            "semantic": {"outputs": ["last"]},
            "quality": {},
            "motion": {"extractor": "slowfast", "chunks": "blocks-full"},
        },
        features={"last": "semantic.last", "quality": "quality.stages", "motion": "motion.blocks"},
        heads={
            "VSFA": {"head": "gru", "preset": "paper", "roles": ["last"]},
            "S+M": {"head": "cagi", "preset": "paper", "roles": ["quality", "motion"]},
            "ridge": {"roles": ["motion"]},
        },
    )
    found = {one.name: one for one in head_costs(recipe, Shape(960, 540, 4, 30))}
    assert found["VSFA"].parameters == 4096 * 128 + 128 + 3 * 32 * (128 + 32 + 2) + 33
    # The layer before is taken into the GRU's, once; then 120 rows, of 96 gates each.
    expected = 96 * 128 * 4096 + 120 * 96 * (4096 + 32)
    assert found["VSFA"].multiply_adds == pytest.approx(expected, rel=0.01)
    assert found["S+M"].parameters == 28_213_729
    assert found["S+M"].seconds > 0
    assert found["ridge"].parameters is None


def test_a_head_that_cannot_take_the_features_says_why_it_is_not_counted():
    recipe = Recipe(
        extractors={"nss": {}}, features={"quality": "nss.brisque"}, heads={"x": {"head": "cagi"}}
    )
    (one,) = head_costs(recipe, Shape(64, 48, 1, 2))
    assert one.multiply_adds is None
    assert one.note.startswith("not counted: cagi: the wiring 'full' takes two roles")


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """Two clips, whose frame differences and statistics are banked."""
    folder = tmp_path_factory.mktemp("costs")
    (folder / "set").mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        pictures = iter(rng.integers(0, 256, (4, 48, 64, 3), np.uint8))
        decoding.encode(folder / "set" / f"{number}.mp4", pictures, rate=4, crf=10)
    run = vqbank(
        "extract", "--videos", folder / "set", "--bank", folder / "bank", "--extractor", "nss"
    )
    assert run.exit_code == 0, run.output
    return folder / "bank"


def test_commits_tell_what_a_video_took_in_the_network(bank):
    store = FeatureStore(bank)
    (spec,) = store.named("nss.brisque")
    told = [shard.record for shard in store.winners(spec)]
    seconds = sum(one["provenance"]["network_seconds"] for one in told)
    assert sum(one["videos"] for one in told) == 2
    assert 0 < seconds < 60
    assert seconds_banked(store, ["nss.brisque"]) == pytest.approx(seconds / 2)
    assert seconds_banked(store, ["motion.series"]) is None


def test_the_command_shows_costs_beside_those_of_the_paper(bank, tmp_path):
    recipe = tmp_path / "small.yaml"
    recipe.write_text(
        "extractors: {nss: }\nfeatures: {quality: nss.brisque}\nheads: {mlp: }\n"
        "paper: {name: A method, shows: its cost, data: [8 s], metrics: [seconds, parameters],"
        " rows: {nss: [0.25, 1.5e+6]}}\n"
    )
    run = vqbank("cost", recipe, "--size", "64x48", "--seconds", 2, "--bank", bank)
    assert run.exit_code == 0
    assert "one video of 64 x 48, 2 s at 30 frames/s" in run.stdout
    (line,) = (line for line in run.stdout.splitlines() if line.startswith("│ nss"))
    cells = [cell.strip() for cell in line.split("│")[1:-1]]
    assert cells[:3] == ["nss", "0", "0"]
    assert cells[5:] == ["0.25", "1.5 M"]

    run = vqbank("cost", recipe, "--size", "64x48", "--bank", bank, "--json")
    document = json.loads(run.stdout)
    assert document["video"] == {"width": 64, "height": 48, "seconds": 8.0, "rate": 30.0}
    (nss,) = document["extractors"]
    assert nss["seconds"] == pytest.approx(seconds_banked(FeatureStore(bank), ["nss.brisque"]))
    assert document["published"][0] == {
        "row": "nss", "data": "8 s", "metric": "seconds", "value": 0.25,
    }  # fmt: skip
    assert [head["name"] for head in document["heads"]] == ["mlp"]


def test_of_a_curve_the_point_of_this_height_is_shown_also_of_what_is_not_built(tmp_path):
    recipe = tmp_path / "curve.yaml"
    recipe.write_text(
        "extractors: {motion: }\nfeatures: {motion: motion.series}\nheads: {ridge: }\n"
        "paper: {name: A method, shows: its cost, data: [48P, 96P], metrics: [seconds],"
        " rows: {theirs: [1.25, 2.5]}}\n"
    )

    def line_of(size):
        run = vqbank("cost", recipe, "--size", size)
        assert run.exit_code == 0, run.output
        return [line for line in run.stdout.splitlines() if line.startswith("│ theirs")]

    assert [line.split("│")[-2].strip() for line in line_of("64x96")] == ["2.5"]
    assert line_of("64x72") == []


@pytest.mark.parametrize("size", ["1920", "axb", "0x20", "99999x3"])
def test_what_is_no_size_is_refused(size):
    from vqbank.store.errors import RecipeError

    run = vqbank("cost", "demo", "--size", size)
    assert isinstance(run.exception, RecipeError)
    assert f"--size {size}" in str(run.exception).replace("'", "")


@pytest.mark.parametrize(("weights", "seconds"), [("random-tiny", None), ("0" * 64, 3.0)])
def test_networks_of_random_weights_tell_no_seconds(tmp_path, weights, seconds):
    """A tiny form is another network than the one whose arithmetic stands beside it."""
    store = FeatureStore.create(tmp_path / "bank")
    spec = FeatureSpec("demo.feature", (2,), "float32", {"extractor": "demo", "weights": weights})
    with store.writer(spec, provenance={"network_seconds": 3.0}) as writer:
        row = Feature(np.ones((1, 2), np.float32), np.zeros(1), np.zeros(1, np.int64))
        writer.add("v", row, fingerprint=Fingerprint(1, "0" * 64), probe={})

    assert seconds_banked(FeatureStore(store.path), ["demo.feature"]) == seconds
