"""RAM-VQA's first stage: texts learnt from tiers, which its second stage names."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from vqbank.pipelines.runs.train import train
from vqbank.regressors import load_head, make_head
from vqbank.regressors.ram_prompts import CONTEXT
from vqbank.regressors.tail import TextTail
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import HeadError
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, Video
from vqbank.store.tail import Tail, Tower, write_tail
from vqbank.store.text import read_text
from vqbank.testing import HeadContract

FRAMES, EMBEDDING, LENGTH, VOCABULARY = 2, 16, 24, 40
SPEC = FeatureSpec("tiers.embedding", (3, FRAMES, EMBEDDING), "float16", {})
WORDS = ("excellent", "mediocre", "terrible", "good", "bad")
QUICK = {"epochs": 8, "learning_rate": 0.02, "batch_size": 8}


def text_tower(seed=0):
    sizes = {
        "width": 16, "heads": 2, "hidden": 32, "activation": "quick_gelu", "layers": 2,
        "embedding": EMBEDDING, "context": LENGTH, "vocabulary": VOCABULARY,
    }  # fmt: skip
    with torch.device("meta"):
        wanted = TextTail(**sizes).state_dict()
    draw = torch.Generator().manual_seed(seed)
    tensors = {n: (0.3 * torch.randn(v.shape, generator=draw)).numpy() for n, v in wanted.items()}
    return Tower(sizes, tensors)


def tokens():
    """Of prompts with Xs and without: a start, words, an end with the highest number, padding."""
    found = {}
    for number, word in enumerate(WORDS):
        for prompt in (" ".join([*["X"] * CONTEXT, word]), f"a photo of a {word} quality video"):
            middle = [1] * CONTEXT if prompt.startswith("X") else [2, 3, 4, 5]
            own = [30, *middle, 10 + number, 39]
            found[prompt] = own + [0] * (LENGTH - len(own))
    return found


def bank_at(folder, n, *, seed=0, mos=None):
    """Tiers that a direction tells apart from their content, which is larger."""
    store = FeatureStore.create(folder)
    rng = np.random.default_rng([seed, n])
    mos = rng.uniform(20, 80, n) if mos is None else mos
    # Embeddings of CLIP have much in common, too.
    common, quality = np.random.default_rng(7).normal(size=(2, EMBEDDING))
    with store.writer(SPEC, provenance={}, durable=False) as writer:
        for number in range(n):
            content = 2 * common + 0.5 * rng.normal(size=EMBEDDING)
            level = np.array([-1, 0, 1]) + (mos[number] - 50) / 200
            rows = content + level[:, None, None] * quality
            rows = rows + 0.1 * rng.normal(size=(2, 3, FRAMES, EMBEDDING))
            feature = Feature(rows.astype(np.float16), np.arange(2.0), np.arange(2))
            printed = Fingerprint(1, f"{number:064}")
            writer.add(f"set/{number}.mp4", feature, fingerprint=printed, probe={})
    write_tail(store, SPEC, Tail({"text": text_tower()}, tokens()))
    return store, mos


def table_of(store, n, scenes=None):
    names = [f"set/{number}.mp4" for number in range(n)]
    scene = [str(row % scenes) if scenes else None for row in range(n)]
    videos = [Video(name, Path(name), None, scene[row]) for row, name in enumerate(names)]
    return store.table(videos, {"tiers": SPEC.name})


@pytest.fixture(scope="module")
def banked(tmp_path_factory):
    return bank_at(tmp_path_factory.mktemp("prompts") / "bank", 60)


class TestContract(HeadContract):
    """With epochs that are chosen, so that rows are held out as of every head."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path_factory):
        self.folder = tmp_path_factory.mktemp("banks")
        self.made = {}

    def table_of(self, n, *, seed=0, scenes=None):
        if (n, seed) not in self.made:
            self.made[n, seed] = bank_at(self.folder / f"bank-{n}-{seed}", n, seed=seed)
        store, mos = self.made[n, seed]
        return table_of(store, n, scenes), mos.copy()

    @pytest.fixture
    def head(self):
        return make_head("ram-prompts", **{**QUICK, "epochs": 2, "selection": "held-out"})


# --- what is learnt


def test_tiers_that_were_not_seen_are_told_apart(banked):
    """A third of them by chance; what content alone tells is no more than that."""
    table = table_of(banked[0], 60)
    fit, held = table.subset(range(40)), table.subset(range(40, 60))
    begun = make_head("ram-prompts", **{**QUICK, "epochs": 1, "learning_rate": 1e-9})
    learnt = make_head("ram-prompts", **{**QUICK, "epochs": 25})
    none = np.full(40, np.nan)

    assert begun.fit(fit, none).tier_accuracy(held) < 0.5
    assert learnt.fit(fit, none).tier_accuracy(held) > 0.9


@pytest.mark.parametrize("context", ["words", "random"])
@pytest.mark.parametrize("words", [None, WORDS[:2], WORDS])
def test_every_number_of_levels_is_learnt(banked, context, words):
    table = table_of(banked[0], 60)
    given = {"context": context, "words": words and list(words)}
    head = make_head("ram-prompts", **QUICK, **given).fit(table, np.full(60, np.nan))
    count = len(words or WORDS[:3])
    ((spec, text),) = head.texts(table)
    assert text.values.shape == (count, EMBEDDING)
    assert head.tier_accuracy(table) > 1.5 / count
    learnt = head.ensemble_.state["learner.context"]
    assert learnt.shape == (1, count, CONTEXT + (context == "random"), 16)
    assert spec.name == "ram-prompts.text"


def test_of_fixed_prompts_nothing_is_learnt(banked):
    table = table_of(banked[0], 60)
    head = make_head("ram-prompts", **QUICK, context="fixed").fit(table, np.full(60, np.nan))
    ((_, text),) = head.texts(table)
    own = TextTail(**text_tower().configuration)
    own.load_state_dict({k: torch.from_numpy(v) for k, v in text_tower().tensors.items()})
    numbers = torch.tensor([tokens()[f"a photo of a {w} quality video"] for w in WORDS[:3]])
    with torch.inference_mode():
        expected = normalize(own(own.embed(numbers), numbers.argmax(dim=1)), dim=1)
    np.testing.assert_allclose(text.values, expected, atol=1e-6)


def test_prompts_of_reversed_words_are_like_the_other_end(banked):
    table = table_of(banked[0], 60)
    none = np.full(60, np.nan)
    words = list(WORDS[:3])
    ((_, usual),) = make_head("ram-prompts", **QUICK).fit(table, none).texts(table)
    head = make_head("ram-prompts", **QUICK, words=words[::-1]).fit(table, none)
    ((_, other),) = head.texts(table)
    assert other.prompts == tuple(words[::-1])
    assert head.tier_accuracy(table) > 0.5
    assert not np.allclose(usual.values, other.values[::-1], atol=1e-2)


def test_levels_between_tiers_are_half_way(banked):
    table = table_of(banked[0], 60)
    given = {"words": list(WORDS), "scale": 1.0}
    head = make_head("ram-prompts", **QUICK, **given).fit(table, np.full(60, np.nan))
    rows = torch.tensor(table.arrays("tiers")[0]).float()
    logits = head._fitted_network(table).logits(rows[None])[0]
    ((_, text),) = head.texts(table)
    tiers = normalize(rows.mean(dim=2), dim=2)
    between = normalize(tiers[:, 2] + tiers[:, 1], dim=1)
    torch.testing.assert_close(logits[:, 1], between @ torch.from_numpy(text.values).T)
    torch.testing.assert_close(logits[:, 4], tiers[:, 0] @ torch.from_numpy(text.values).T)


@pytest.mark.parametrize("words", [["good"], ["a", "b", "c", "d"], ["good", "good"]])
def test_other_numbers_of_levels_are_refused(words):
    with pytest.raises(HeadError, match="two, three or five levels"):
        make_head("ram-prompts", words=words)


def test_without_scores_no_epoch_is_chosen_by_them(banked):
    head = make_head("ram-prompts", **QUICK, selection="held-out")
    with pytest.raises(HeadError, match="without scores choose no epoch; leave selection 'held-o"):
        head.fit(table_of(banked[0], 60), np.full(60, np.nan))


def test_a_score_of_some_videos_alone_is_refused(banked):
    mos = banked[1].copy()
    mos[3] = np.nan
    with pytest.raises(HeadError, match=r"the MOS of set/3\.mp4 is nan"):
        make_head("ram-prompts", **QUICK).fit(table_of(banked[0], 60), mos)


# --- where it goes


def test_train_needs_no_scores_and_leaves_a_text_bank_in_the_bank(tmp_path):
    store, _ = bank_at(tmp_path / "bank", 20)
    lines = ["id,path", *(f"set/{n}.mp4,{n}.mp4" for n in range(20))]
    (tmp_path / "pristine.csv").write_text("\n".join(lines) + "\n")
    head = train(
        bank=tmp_path / "bank",
        features={"tiers": "tiers.embedding"},
        videos=tmp_path / "pristine.csv",
        head={"ram-prompts": QUICK},
        output=tmp_path / "head",
    )
    text = read_text(store, "ram-prompts.text")
    assert text.prompts == WORDS[:3]
    np.testing.assert_allclose(np.linalg.norm(text.values, axis=1), 1, atol=1e-5)
    ((_, again),) = load_head(tmp_path / "head").texts(table_of(store, 20))
    np.testing.assert_array_equal(again.values, text.values)
    assert head.record_["companions"]["tiers"].keys() == {"tokens", "tail/text"}
