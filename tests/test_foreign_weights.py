"""Weights, tails, texts and checkpoints of strangers end in a line, soon and in little memory."""

import hashlib
import io
import json
import pickle
import resource
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save

from vqbank.regressors import HEADS, make_head
from vqbank.regressors.tail import TextTail, load_text_tail
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import VqbankError
from vqbank.store.records import seal
from vqbank.store.schema import FeatureSpec, Video
from vqbank.store.table import FeatureTable
from vqbank.store.tail import Tail, Tower, write_tail
from vqbank.store.text import TextBank, read_text, text_spec, write_text

N = 24
RNG = np.random.default_rng(0)
TABLE = FeatureTable.from_arrays(
    [Video(f"s/{row}", Path(f"{row}"), scene=str(row)) for row in range(N)],
    {"x": [RNG.normal(size=(3, 4)).astype("f4") for _ in range(N)]},
)
MOS = RNG.normal(size=N)


@contextmanager
def refused():
    """One line of ours, within 5 s of computing and 500 MB."""
    peak, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(VqbankError, match=r"^[^\n]+$"):
        yield
    assert time.process_time() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 500 * 1024


def cut(content):
    return content[: len(content) // 2]


def empty(content):
    return b""


def swapped(content):
    middle = len(content) // 2
    return content[middle:] + content[:middle]


def zeroed(content):
    return content[:20] + bytes(len(content) - 20)


DAMAGES = [cut, empty, swapped, zeroed]


# Official checkpoints.


def official(**changes):
    """A checkpoint of RQ-VQA's head on the features of TABLE, some of it changed."""
    state = {
        "quality.0.weight": torch.randn(128, 4),
        "quality.0.bias": torch.randn(128),
        "quality.1.weight": torch.randn(1, 128),
        "quality.1.bias": torch.randn(1),
    }
    return {**state, **{name.replace("_", "."): value for name, value in changes.items()}}


def published(folder, content):
    path = folder / "official.pth"
    path.write_bytes(content)
    return HEADS["mlp"].published(path, TABLE)


def saved(state, **options):
    file = io.BytesIO()
    torch.save(state, file, **options)
    return file.getvalue()


@pytest.mark.parametrize("legacy", [False, True])
def test_an_official_checkpoint_is_read(tmp_path, legacy):
    state = official()
    head = published(tmp_path, saved(state, _use_new_zipfile_serialization=not legacy))
    assert torch.equal(head.ensemble_.state["hidden.bias"][0], state["quality.0.bias"])


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_official_checkpoint_is_refused(tmp_path, damage, legacy):
    content = saved(official(), _use_new_zipfile_serialization=not legacy)
    with refused():
        published(tmp_path, damage(content))


@pytest.mark.parametrize(
    "state",
    [
        official(quality_1_bias=torch.tensor([float("nan")])),
        official(quality_1_bias=torch.randn(2)),
        official(quality_1_bias=3),
        official(quality_1_bias=torch.empty(1, device="meta")),
        official(quality_0_weight=torch.zeros(1, dtype=torch.half).expand(2**32, 4)),
        {3: torch.zeros(1)},
        [torch.zeros(1)],
        torch.zeros(1),
        None,
    ],
    ids=["nan", "shape", "number", "meta", "expanded", "key", "list", "tensor", "nothing"],
)
def test_an_official_checkpoint_of_other_things_is_refused(tmp_path, state):
    with refused():
        published(tmp_path, saved(state))


def rewritten(content, change, compression=zipfile.ZIP_STORED, **more):
    """An archive with all its parts changed, and others added."""
    archive = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as read,
        zipfile.ZipFile(archive, "w", compression) as written,
    ):
        for name in read.namelist():
            written.writestr(name, change(read.read(name)))
        for name, part in more.items():
            written.writestr(name, part)
    return archive.getvalue()


def test_an_official_checkpoint_that_unfolds_is_refused(tmp_path):
    content = rewritten(saved(official()), bytes, zipfile.ZIP_DEFLATED, more=bytes(2**27))
    with refused():
        published(tmp_path, content)


@pytest.mark.parametrize("legacy", [False, True])
def test_an_official_checkpoint_that_lies_of_its_sizes_takes_no_memory(tmp_path, legacy):
    state = official()
    content = saved(state, _use_new_zipfile_serialization=not legacy)
    told = pickle.dumps(512, 2)[2:-1]  # values of the first weight: a number of two bytes
    lies = pickle.dumps(2**31 - 1, 2)[2:-1]
    assert told in content

    def lied(part):
        return part.replace(told, lies)

    if legacy:
        with refused():
            published(tmp_path, lied(content))
    else:  # whose tensors are mapped: there is no more of them than the file has
        head = published(tmp_path, rewritten(content, lied))
        assert torch.equal(head.ensemble_.state["hidden.bias"][0], state["quality.0.bias"])


# Checkpoints of interrupted trainings.


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A head whose training was stopped, and what its checkpoint holds."""
    monkeypatch.setattr("vqbank.regressors.checkpoint.CHECKPOINT_SHARE", 0)
    head = make_head("mlp", width=4, epochs=3)
    head.checkpoint = tmp_path / "training"

    def stop(epoch):
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    head.watch = stop
    with pytest.raises(KeyboardInterrupt):
        head.fit(TABLE, MOS)
    head.watch = None
    with safe_open(head.checkpoint, "pt") as file:
        return head, load(head.checkpoint.read_bytes()), file.metadata()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused(interrupted, damage):
    head, *_ = interrupted
    head.checkpoint.write_bytes(damage(head.checkpoint.read_bytes()))
    with refused():
        head.fit(TABLE, MOS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("0.now.score.bias", None),
        ("0.now.score.bias", torch.zeros(2)),
        ("0.now.hidden.weight", torch.zeros(1)),  # would be copied into every weight
        ("0.best.score.bias", torch.tensor([float("nan")])),
        ("0.second.score.bias", torch.zeros(1, dtype=torch.float64)),
        ("0.generator", torch.zeros(3, dtype=torch.uint8)),
    ],
)
def test_a_checkpoint_of_other_tensors_is_refused(interrupted, name, value):
    head, tensors, metadata = interrupted
    tensors = {one: own for one, own in tensors.items() if one != name}
    if value is not None:
        tensors[name] = value
    head.checkpoint.write_bytes(save(tensors, metadata))
    with refused():
        head.fit(TABLE, MOS)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": -1}, {"epoch": 1e9}, {"epoch": 2**80}, {"best_epoch": 7}, {"best_srcc": None},
        {"best_srcc": float("nan")}, {"order": {}}, {"order": {"bit_generator": "MT19937"}},
        {"order": [1] * 3},
    ],
    ids=str,
)  # fmt: skip
def test_a_checkpoint_of_other_counters_is_refused(interrupted, change):
    head, tensors, metadata = interrupted
    (counters,) = json.loads(metadata["counters"])
    told = json.dumps([counters | change])
    head.checkpoint.write_bytes(save(tensors, metadata | {"counters": told}))
    with refused():
        head.fit(TABLE, MOS)


@pytest.mark.parametrize(
    "told",
    [
        {"identity": "{"}, {"identity": "[]"}, {"identity": '{"parameters": 3}'},
        {"identity": "[" * 100_000}, {"counters": "{"}, {"counters": "[]"}, {"counters": "[[]]"},
        {"counters": "3"}, {"counters": "[" * 100_000},
    ],
    ids=lambda told: str(told)[:24],
)  # fmt: skip
def test_a_checkpoint_that_says_other_things_is_refused(interrupted, told):
    head, tensors, metadata = interrupted
    head.checkpoint.write_bytes(save(tensors, metadata | told))
    with refused():
        head.fit(TABLE, MOS)


@pytest.mark.parametrize("told", [("identity",), ("counters",), ()])
def test_a_checkpoint_that_says_less_is_refused(interrupted, told):
    head, tensors, metadata = interrupted
    head.checkpoint.write_bytes(save(tensors, {name: metadata[name] for name in told} or None))
    with refused():
        head.fit(TABLE, MOS)


def test_a_checkpoint_of_an_endless_header_is_refused(interrupted):
    head, *_ = interrupted
    head.checkpoint.write_bytes((2**30).to_bytes(8, "little"))
    with head.checkpoint.open("r+b") as file:
        file.truncate(2**40)
    with refused():
        head.fit(TABLE, MOS)


# Tails.

SIZES = {
    "width": 4, "heads": 2, "hidden": 8, "activation": "gelu", "layers": 1, "embedding": 3,
    "context": 5, "vocabulary": 7,
}  # fmt: skip
SPEC = FeatureSpec("demo.tokens", (2,), "float32", {"weights": "random"})


@pytest.fixture
def tail(tmp_path):
    """Gives the folder of a tail, changed by a stranger who knows how files are sealed."""
    store = FeatureStore.create(tmp_path / "bank")
    own = TextTail(**SIZES).state_dict()
    tensors = {name: np.zeros(value.shape, np.float32) for name, value in own.items()}
    write_tail(store, SPEC, Tail({"text": Tower(SIZES, tensors)}))
    folder = store.path / SPEC.key / "tail"

    def changed(change=bytes, **configuration):
        (path,) = folder.glob("*.safetensors")
        content = change(path.read_bytes())
        digest = hashlib.sha256(content).hexdigest()
        (folder / f"{digest}.safetensors").write_bytes(content)
        entry = {"configuration": SIZES | configuration, "sha256": digest, "bytes": len(content)}
        (folder / "tail.json").write_bytes(seal({"version": 1, "towers": {"text": entry}}))
        return folder

    return changed


def test_a_tail_is_read(tail):
    tower = load_text_tail(tail())
    assert tower(torch.zeros(1, 5, 4), torch.tensor([4])).shape == (1, 3)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_tail_is_refused(tail, damage):
    with refused():
        load_text_tail(tail(damage))


@pytest.mark.parametrize(
    "configuration",
    [
        {"layers": 10**9}, {"layers": -1}, {"layers": "many"}, {"heads": 0}, {"heads": 3},
        {"width": 10**12}, {"width": 10**30}, {"width": -4}, {"vocabulary": 10**7},
        {"activation": "exec"}, {"activation": []}, {"more": 1}, {"context": None},
        {"hidden": 2.5},
    ],
    ids=str,
)  # fmt: skip
def test_a_tail_of_another_configuration_is_refused(tail, configuration):
    with refused():
        load_text_tail(tail(**configuration))


@pytest.mark.parametrize(
    "value",
    [
        None, torch.zeros(3), torch.full((5, 4), float("nan")),
        torch.zeros(5, 4, dtype=torch.int32), torch.zeros(5, 4, dtype=torch.bfloat16),
    ],
    ids=["missing", "shape", "nan", "whole numbers", "bfloat16"],
)  # fmt: skip
def test_a_tail_of_other_weights_is_refused(tail, value):
    def change(content):
        tensors = load(content)
        del tensors["positional_embedding"]
        if value is not None:
            tensors["positional_embedding"] = value
        return save(tensors)

    with refused():
        load_text_tail(tail(change))


# Text banks.


@pytest.fixture
def text(tmp_path):
    """A bank of prompts."""
    store = FeatureStore.create(tmp_path / "bank")
    prompts = ("sharp", "blurred")
    spec = text_spec("demo.text", prompts, 3, {"weights": "random"})
    write_text(store, spec, TextBank(prompts, np.eye(2, 3, dtype="f4"), 2.0), provenance={})
    return store


def flipped(content):
    return bytes([content[0] ^ 1]) + content[1:]


@pytest.mark.parametrize("damage", [cut, empty, flipped])
@pytest.mark.parametrize(
    "which", ["commits/*.json", "spec.json", "shards/*/values/c/*/*", "shards/*/side/*/c/*"]
)
def test_a_damaged_text_bank_is_refused(text, which, damage):
    (path,) = (text.path / "text").glob(f"*/{which}")
    path.write_bytes(damage(path.read_bytes()))
    with refused():
        read_text(FeatureStore(text.path), "demo.text")
