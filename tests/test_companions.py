"""What heads take of a bank beside rows: found, named in the card, packed, and refused if other."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from vqbank.pipelines.experiments.experiment import Experiment
from vqbank.pipelines.experiments.fits import Cell
from vqbank.pipelines.experiments.rated import RatedVideos
from vqbank.pipelines.recipe import Protocol
from vqbank.regressors.card import read_card
from vqbank.regressors.companions import Companions
from vqbank.regressors.layers import Frozen, linear
from vqbank.regressors.losses import plcc_loss
from vqbank.regressors.sequence import SequenceHead
from vqbank.regressors.tail import ImageTail, TextTail
from vqbank.store.bank import FeatureStore
from vqbank.store.beside import Beside
from vqbank.store.errors import HeadError, MissingFeatureError
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, Video
from vqbank.store.tail import Tail, Tower, write_tail
from vqbank.store.text import TextBank, text_spec, write_text

WIDTH, TOKENS = 8, 3
PROMPTS = ("bad", "good")
SPEC = FeatureSpec("demo.tokens", (TOKENS, WIDTH), "float16", {"weights": "random", "cut": 1})
SIZES = {"width": WIDTH, "heads": 2, "hidden": 16, "activation": "gelu", "embedding": 6}


def tower(kind, seed, **more):
    draw = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        state = kind(**SIZES, **more).state_dict()
    tensors = {
        name: (torch.randn(value.shape, generator=draw) * 0.3).numpy()
        for name, value in state.items()
    }
    return Tower({**SIZES, **more}, tensors)


def bank_at(folder, *, seed=0, n=24, tail=True):
    """States of n videos, with their tail and a text bank; the MOS is the tail's first value."""
    store = FeatureStore.create(folder)
    rng = np.random.default_rng(3)
    states = rng.normal(size=(n, 2, TOKENS, WIDTH)).astype(np.float16)
    with store.writer(SPEC, provenance={}) as writer:
        for number, rows in enumerate(states):
            feature = Feature(rows, np.arange(2.0), np.arange(2))
            writer.add(f"{number}", feature, fingerprint=Fingerprint(1, "0" * 64), probe={})
    if tail:
        image = tower(ImageTail, seed, cut=1, layers=3)
        text = tower(TextTail, seed, layers=3, context=4, vocabulary=9)
        write_tail(store, SPEC, Tail({"image": image, "text": text}, {"good": [1, 5, 8, 0]}))
    rows = np.random.default_rng(seed).normal(size=(2, 6)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    write_text(
        store, text_spec("demo.text", PROMPTS, 6, {}), TextBank(PROMPTS, rows, 50.0), provenance={}
    )
    return store


def table_of(store, n=24):
    videos = [Video(f"{number}", store.path, scene=f"{number}") for number in range(n)]
    return store.table(videos, {"tokens": "demo.tokens"})


class Behind(nn.Module):
    """An adapter before the frozen rest of a tower, whose feature is compared with a prompt."""

    def __init__(self, beside, generator):
        super().__init__()
        self.tail = Frozen(beside.image_tail())
        self.layer = linear(WIDTH, WIDTH, generator=generator)
        rows, self.scale = beside.text("demo.text", ["good"])
        self.register_buffer("good", rows[0])

    def forward(self, batch):
        state = batch.values["tokens"].float()
        feature = self.tail((state + self.layer(state)).flatten(0, 1)).unflatten(0, state.shape[:2])
        return self.scale * (feature @ self.good).mean(dim=1)


@dataclass(kw_only=True, eq=False, repr=False)
class OnTail(SequenceHead):
    name: ClassVar[str] = "on-tail"
    epochs: int = 3
    patience: int = 9
    batch_size: int = 8
    learning_rate: float = 1e-2
    weight_decay: float = 0.0
    standardise: bool = False
    align: str = "exact"

    def _network(self, inputs, generator):
        return Behind(inputs["tokens"].beside, generator)

    def _loss(self, predicted, target):
        return plcc_loss(predicted, target)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return bank_at(tmp_path_factory.mktemp("companions") / "bank")


@pytest.fixture(scope="module")
def fitted(store):
    return OnTail().fit(table_of(store), np.random.default_rng(1).normal(size=24))


def test_a_head_holds_what_it_learnt_and_names_what_it_stands_on(store, fitted, tmp_path):
    fitted.save(tmp_path)

    place = Beside(store.path, SPEC.key)
    taken = read_card(tmp_path)["record"]["companions"]
    assert taken["tokens"].keys() == {"tail/image", "text/demo.text"}
    assert taken["tokens"]["tail/image"] == place.tower_sha256("image")
    assert set(fitted.ensemble_.state) == {"layer.weight", "layer.bias"}
    loaded = OnTail.load(tmp_path)
    table = table_of(FeatureStore(store.path))
    assert loaded.predict(table).tobytes() == fitted.predict(table).tobytes()


def test_another_tail_or_text_under_the_same_key_is_refused(fitted, tmp_path):
    other = bank_at(tmp_path / "other", seed=1)

    with pytest.raises(
        HeadError, match=r"tokens = demo\.tokens@\w+: tail/image in .* trained with"
    ):
        fitted.predict(table_of(other))


def test_training_goes_on_in_the_bank_that_it_began_in(fitted, store, tmp_path):
    mos = np.random.default_rng(1).normal(size=24)
    fitted.save(tmp_path / "head")
    other = bank_at(tmp_path / "other", seed=1)

    OnTail(start=str(tmp_path / "head")).fit(table_of(store), mos)
    with pytest.raises(HeadError, match=r"was trained with tail/image of tokens with sha256"):
        OnTail(start=str(tmp_path / "head")).fit(table_of(other), mos)


def test_a_tower_is_read_once_and_every_network_has_one_of_its_own_on_the_same_memory(store):
    beside = Companions("tokens", (Beside(store.path, SPEC.key),))

    one, other = beside.image_tail(), beside.image_tail()

    for first, second in zip(one.parameters(), other.parameters(), strict=True):
        assert first is not second
        assert first.data_ptr() == second.data_ptr()
        assert not first.requires_grad
    other.to(torch.float64)
    assert {value.dtype for value in one.parameters()} == {torch.float32}
    assert {value.dtype for value in beside.image_tail().parameters()} == {torch.float32}


def test_without_a_tail_a_head_says_what_it_needs_and_where_it_comes_from(tmp_path):
    store = bank_at(tmp_path / "bare", tail=False)
    mos = np.random.default_rng(1).normal(size=24)

    with pytest.raises(HeadError, match=r"tokens = demo\.tokens@\w+: .* no tail; `vqbank extract`"):
        OnTail().fit(table_of(store), mos)
    from_arrays = type(table_of(store)).from_arrays(
        table_of(store).videos, {"tokens": table_of(store).arrays("tokens")}
    )
    with pytest.raises(HeadError, match=r"no bank beside these rows that could have tail/image"):
        OnTail().fit(from_arrays, mos)


def test_a_packed_head_predicts_without_its_bank(store, fitted, tmp_path):
    table = table_of(store)
    fitted.save(tmp_path)
    fitted.pack(tmp_path, table)
    bare = bank_at(tmp_path / "bare", tail=False)
    (bare.path / "text").rename(tmp_path / "away")

    loaded = OnTail.load(tmp_path)

    assert loaded.predict(table_of(bare)).tobytes() == fitted.predict(table).tobytes()
    OnTail.load(tmp_path).save(tmp_path)  # a head of its own is in the folder, not a stranger
    packed = tmp_path / "companions"
    (tower,) = (packed / SPEC.key / "tail").glob(
        f"{Beside(packed, SPEC.key).tower_sha256('image')}*"
    )
    tower.write_bytes(tower.read_bytes()[:-1] + b"x")
    with pytest.raises(HeadError, match="has changed since it was written"):
        loaded.predict(table_of(bare))


def test_a_folder_of_companions_that_is_a_link_is_no_part_of_a_head(store, fitted, tmp_path):
    (tmp_path / "head").mkdir()
    fitted.save(tmp_path / "head")
    fitted.pack(tmp_path / "head", table_of(store))
    (tmp_path / "head" / "companions").rename(tmp_path / "outside")
    (tmp_path / "head" / "companions").symlink_to(tmp_path / "outside")

    with pytest.raises(HeadError, match="companions"):
        OnTail.load(tmp_path / "head")


def test_prompts_of_a_text_bank_are_known_in_its_order(store):
    place = Beside(store.path, SPEC.key)

    assert place.text("demo.text").prompts == PROMPTS
    assert place.tokens(["good"]).tolist() == [[1, 5, 8, 0]]
    with pytest.raises(MissingFeatureError, match="no tower 'audio'; it has image, text"):
        place.tower_sha256("audio")


def test_a_cell_of_an_experiment_is_known_by_what_its_head_stands_on(tmp_path):
    """Another tail, or another text bank of the name, is another cell, in a bank of equal rows."""

    def key(name, seed):
        table = table_of(bank_at(tmp_path / name, seed=seed))
        rated = RatedVideos(table, np.random.default_rng(1).normal(size=24))
        cell = Cell("on-tail", OnTail(), ("tokens",))
        return Experiment("t", rated, [cell], Protocol(splits="random2")).key(cell)

    assert key("one", 0) == key("two", 0) != key("three", 1)
