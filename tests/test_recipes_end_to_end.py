"""Every recipe that ships does the main job on three clips: extract, evaluate, train, predict.

Networks are tiny and their weights random, so that the numbers say nothing; that there are numbers,
of every head that the recipe names, is the claim.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from vqbank.extractors import video as decoding
from vqbank.pipelines.commands.cli import app
from vqbank.pipelines.recipe import read_recipe, shipped_recipe, shipped_recipes
from vqbank.pipelines.results.records import read_records
from vqbank.store.bank import FeatureStore
from vqbank.store.schema import Fingerprint
from vqbank.store.verify import verify

SLOW = {"rqvqa"}
"""Whose networks take seconds to be made even where they are tiny: a language model's words."""
COPIES = 5
"""Of each clip in the bank that heads see: networks are fitted on ten videos or more."""
ROW_BYTES = 2**18
"""What no head of a recipe reads is not banked, as far as its rows are larger than this."""
PAPER = "preset: paper"
"""In a recipe: heads of the size of their paper, which want a GPU."""
LARGE = tuple(n for n in shipped_recipes() if n.startswith("ramvqa-") and n != "ramvqa-prompts")
"""These bank clips of pixels, 15 MB each: `make soak` tries them, after the prompts that they name,
and on embeddings of clips where they want no pixels."""
PAPERS = [n for n in shipped_recipes() if PAPER in shipped_recipe(n) and n not in LARGE]
BANKED_TOGETHER = ("a2inet", "dvlta", "rqvqa", "qclip", "ramvqa-t")
"""Recipes whose names begin alike have one bank: their extractors are the same."""
SMALLER = {
    "timm:vit_base_patch16_224.augreg2_in21k_ft_in1k": "timm:test_vit.r160_in1k",
    "torchvision:video/swin3d_t.KINETICS400_V1": "torchvision:video/r3d_18.KINETICS400_V1",
    "length: 32": "length: 2",
    "head: mhsa,": "head: mhsa, slots: 2, blocks: 1, bottleneck: 4, heads: 1, head_channels: 4,",
    "runs: 10": "runs: 2",
    # What another recipe of the same bank wants too, of one forward.
    "semantic: {}": "semantic: { outputs: [stages, last] }",
    "swin: {}": "swin: { outputs: [feature, backbone, tokens] }",
    "qalign: {}": "qalign: { outputs: [feature, score] }",
    "frames: consecutive }": "frames: consecutive, count: 3 }",
    "head: dvlta,": "head: dvlta, stem: 2,",
    "train_clips: 4": "train_clips: 1",
}
EMBEDDED = {
    "outputs: [fragments, residuals]": "outputs: [fragment-tokens, residual-tokens]",
    "residual.fragments": "residual.fragment-tokens",
    "residual.residuals": "residual.residual-tokens",
    "clip_frames: 8, epochs: 7": "clip_frames: 4, part: 2, epochs: 2",
}
"""What stands in the place of what, so that a recipe is tried in seconds."""


def vqbank(*arguments):
    """What a command prints on its standard output."""
    run = CliRunner().invoke(app, [str(word) for word in arguments], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    return run.stdout


def clip(path, *, noise, seed):
    rng = np.random.default_rng(seed)
    ramp = np.add.outer(np.arange(48), np.arange(64)) + 10 * seed
    pictures = (
        np.clip(ramp[..., None] + 9 * i + rng.normal(0, noise, (48, 64, 3)), 0, 255).astype("uint8")
        for i in range(3)
    )
    decoding.encode(path, pictures, rate=3, crf=10)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three clips and their manifest."""
    folder = tmp_path_factory.mktemp("recipes")
    lines = ["path,mos"]
    for number, noise in enumerate((1, 10, 30)):
        clip(folder / f"{number}.mp4", noise=noise, seed=number)
        lines.append(f"{number}.mp4,{80 - 20 * number}")
    (folder / "set.csv").write_text("\n".join(lines) + "\n")
    return folder


def grown(folder, bank):
    """Copies of each clip's features, a little off, under ids of their own; gives the manifest.

    Heads want more videos than three, and decoding as many would only cost time.
    """
    store = FeatureStore(bank)
    rows = ["id,path,mos,part"]
    for number in range(3):
        for copy in range(COPIES):
            part = "test" if copy == COPIES - 1 else "train"
            rows.append(f"set/{number}-{copy}.mp4,{number}.mp4,{80 - 20 * number - copy},{part}")
    rng = np.random.default_rng(0)
    for spec in store.specs():
        if len(store.video_ids(spec)) > 3:  # of a recipe before this one
            continue
        writer = store.writer(spec, provenance={}, durable=False)
        for number in range(3):
            probe = store.video_record(spec, f"set/{number}.mp4").probe
            feature = store.read(spec, f"set/{number}.mp4")
            for copy in range(COPIES):
                noise = 1 + 0.01 * rng.normal(size=feature.values.shape)
                values = (feature.values * noise).astype(feature.values.dtype)
                writer.add(
                    f"set/{number}-{copy}.mp4",
                    replace(feature, values=values),
                    fingerprint=Fingerprint(1, f"{number}{copy}"),
                    probe=probe,
                )
        writer.commit()
    (folder / "grown.csv").write_text("\n".join(rows) + "\n")
    return folder / "grown.csv"


def scores(printed):
    """By path."""
    rows = [line.split("\t") for line in printed.splitlines()]
    return {Path(path): float(score) for score, _, path, *_ in rows}


def does_the_main_job(folder, tmp_path, name, *, paper):
    """Extract, evaluate, train, predict.

    Args:
        folder: of the clips.
        tmp_path: for all else.
        name: of a recipe.
        paper: what stands there in place of PAPER.
    """
    recipe = tmp_path / f"{name}.yaml"
    text = shipped_recipe(name).replace(PAPER, paper)
    smaller = SMALLER | EMBEDDED if name in LARGE and "direct" not in text else SMALLER
    for large, small in smaller.items():
        text = text.replace(large, small)
    recipe.write_text(text)
    heads = read_recipe(recipe).heads
    bank = folder / next((begin for begin in BANKED_TOGETHER if name.startswith(begin)), name)
    of_bank = ("--bank", bank, "--weights", "all=random-tiny")

    vqbank("extract", recipe, "--videos", folder / "set.csv", *of_bank)
    assert list(verify(FeatureStore(bank))) == []
    manifest = grown(folder, bank)
    levels = {head["prompts"] for head in heads.values() if head.get("prompts")}
    for level in levels | {"ram-prompts.text"} if name in LARGE else ():
        prompts(folder, tmp_path, bank, level)
    tried = ("--videos", manifest, "--splits", "official", "--jobs", 1)
    vqbank("evaluate", recipe, *tried, *of_bank, "--json", tmp_path / "run.json")
    (record,) = read_records(tmp_path / "run.json")
    assert [head.name for head in record.heads] == list(heads)
    assert record.random_weights == (name != "demo")

    shipped = ("--head", list(heads)[-1], "-o", tmp_path / "head")
    packed = ("--pack",) if name in LARGE else ()
    vqbank("train", recipe, "--videos", manifest, *of_bank, *shipped, *packed)
    known = scores(vqbank("predict", tmp_path / "head", folder / "set.csv", "--bank", bank))
    assert len(known) == 3
    assert np.isfinite(list(known.values())).all()
    if bank.name == name and name not in SLOW:  # else another recipe has these extractors too
        new = clip(tmp_path / "new.mp4", noise=5, seed=7)
        fresh = vqbank("predict", tmp_path / "head", new, "--bank", tmp_path / "another")
        assert np.isfinite(scores(fresh)[new])


def prompts(folder, tmp_path, bank, text):
    """Leave a text bank of this name in the bank, as the first stage of RAM-VQA does."""
    of_bank = ("--bank", bank, "--weights", "all=random-tiny")
    vqbank("extract", "ramvqa-prompts", "--videos", folder / "set.csv", *of_bank)
    named = ("--set", f"ram-prompts.text={text}", "--set", "ram-prompts.epochs=1")
    pristine = grown(folder, bank)
    output = ("-o", tmp_path / text)
    vqbank("train", "ramvqa-prompts", "--videos", pristine, *of_bank, *named, *output)


@pytest.mark.soak
@pytest.mark.parametrize("name", LARGE)
def test_a_recipe_of_large_rows_does_the_main_job(folder, tmp_path, name):
    small = "layers: 1, width: 16, attentions: 2, clip_frames: 4, part: 2, from_clip: false"
    does_the_main_job(folder, tmp_path, name, paper=f"{PAPER}, {small}, epochs: 2")


@pytest.mark.parametrize("name", [n for n in shipped_recipes() if n not in LARGE])
def test_a_shipped_recipe_does_the_main_job(folder, tmp_path, name):
    narrow = ", width: 4" if name.startswith(("a2inet", "rqvqa")) else ""
    does_the_main_job(folder, tmp_path, name, paper=f"{PAPER}{narrow}, epochs: 1, warmup_epochs: 0")


@pytest.mark.soak
@pytest.mark.parametrize("name", PAPERS)
def test_heads_of_the_size_of_their_paper_do_the_main_job(folder, tmp_path, name):
    epochs = 2 if name.startswith("qclip") else 1  # of which one is its warm-up
    does_the_main_job(folder, tmp_path, name, paper=f"{PAPER}, epochs: {epochs}")


@pytest.mark.parametrize("name", shipped_recipes())
def test_no_recipe_banks_what_is_large_and_its_heads_do_not_read(name):
    from vqbank.extractors import make_extractors, specs_of

    recipe = read_recipe(Path(name))
    extractors = make_extractors(recipe.extractors, weights={"all": "random"})
    read = {
        f"{recipe.extractors[entry].get('extractor', entry)}.{output}"
        for entry, _, output in (name.partition(".") for name in recipe.features.values())
    }
    for extractor in extractors:
        for spec in specs_of(extractor, decoder=recipe.decoder).values():
            assert spec.name in read or spec.row_bytes <= ROW_BYTES


@pytest.mark.soak
def test_a_head_on_the_slow_networks_scores_a_new_clip(folder, tmp_path):
    of_bank = ("--bank", folder / "rqvqa", "--weights", "all=random-tiny")
    vqbank("extract", "rqvqa", "--videos", folder / "set.csv", *of_bank)
    manifest = grown(folder, folder / "rqvqa")
    shipped = ("--head", "ridge", "-o", tmp_path / "head")
    vqbank("train", "rqvqa", "--videos", manifest, *of_bank, *shipped)
    new = clip(tmp_path / "new.mp4", noise=5, seed=7)
    printed = vqbank("predict", tmp_path / "head", new, "--bank", tmp_path / "another")
    assert np.isfinite(scores(printed)[new])
