"""Heads that others saved end in a line where they are cut, swapped or lie."""

import hashlib
import io
import json
import shutil
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from vqbank.regressors import load_head, make_head
from vqbank.regressors.card import read_card
from vqbank.store.documents import yaml_text
from vqbank.store.errors import HeadError
from vqbank.store.schema import Video
from vqbank.store.table import FeatureTable

N = 30
RNG = np.random.default_rng(0)
TABLE = FeatureTable.from_arrays(
    [Video(f"s/{row}", Path(f"{row}"), scene=str(row)) for row in range(N)],
    {"x": [RNG.normal(size=(5, 4)).astype("f4") for _ in range(N)]},
)
MOS = RNG.normal(size=N)


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    root = tmp_path_factory.mktemp("heads")
    for name, parameters in (("svr", {}), ("boosting", {}), ("mlp", {"epochs": 1})):
        make_head(name, **parameters).fit(TABLE, MOS).save(root / name)
    return root


@pytest.fixture
def head(heads, tmp_path):
    """A copy of a head, whose model file and card may be changed."""

    def copy(name):
        shutil.copytree(heads / name, tmp_path / name)
        return tmp_path / name

    return copy


def changed(folder, content, **entries):
    """The head with another model file, of which its card says the right sha256."""
    card = read_card(folder) | entries
    (folder / card["model"]["file"]).write_bytes(content)
    card["model"]["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "card.yaml").write_text(yaml_text(card))
    return folder


def model(folder):
    return folder / read_card(folder)["model"]["file"]


def parts(folder):
    with zipfile.ZipFile(model(folder)) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


def archive(parts, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as made:
        for name, content in parts.items():
            made.writestr(name, content)
    return file.getvalue()


def nodes(schema):
    waiting = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node


def huge(own):
    own["more.npy"] = bytes(2**27)


def often(own):
    schema = json.loads(own["schema.json"])
    (first, *_) = [node for node in nodes(schema) if "file" in node]
    own[first["file"]] += bytes(2**20)
    schema["again"] = [first] * 200
    own["schema.json"] = json.dumps(schema).encode()


def deep(own):
    own["schema.json"] = b"[" * 100_000


def digits(own):
    own["schema.json"] = b'{"a":' + b"9" * 5000 + b"}"


def no_schema(own):
    del own["schema.json"]


@pytest.mark.parametrize("change", [huge, often, deep, digits, no_schema])
def test_a_skops_file_that_unfolds_or_nests_is_refused(head, change):
    folder = head("svr")
    own = parts(folder)
    change(own)
    started = time.process_time()
    with pytest.raises(HeadError, match=r"model-[^\n]*$"):
        load_head(changed(folder, archive(own, zipfile.ZIP_DEFLATED)))
    assert time.process_time() - started < 5


def test_support_vectors_that_do_not_fit_each_other_never_reach_libsvm(head):
    folder = head("svr")
    own = parts(folder)
    schema = json.loads(own["schema.json"])
    files = [node["file"] for node in nodes(schema) if "file" in node]
    arrays = {name: np.load(io.BytesIO(own[name])) for name in files}
    refused = 0
    for name, values in arrays.items():
        shorter = io.BytesIO()
        np.save(shorter, values[..., : values.shape[-1] // 2])
        try:
            load_head(changed(folder, archive({**own, name: shorter.getvalue()})))
        except HeadError:
            refused += 1
    assert refused >= 8


@pytest.mark.parametrize("name", ["svr", "boosting", "mlp"])
def test_a_model_file_of_swapped_parts_ends_in_a_line(head, name):
    folder = head(name)
    content = model(folder).read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(25):
        bytes_ = bytearray(content[: rng.integers(len(content))] if rng.random() < 0.3 else content)
        for place in rng.integers(0, max(1, len(bytes_)), 3):
            if bytes_:
                bytes_[place] = rng.integers(256)
        with suppress(HeadError):
            load_head(changed(folder, bytes(bytes_))).predict(TABLE)


@pytest.mark.parametrize(
    "header",
    [
        {"network.hidden.weight": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
         "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}},
        {"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}},
        {},
    ],
    ids=["huge", "overlapping", "negative", "no such type", "empty"],
)  # fmt: skip
def test_a_safetensors_file_that_lies_is_refused(head, header):
    text = json.dumps(header).encode()
    with pytest.raises(HeadError, match="does not fit this head, or is damaged"):
        load_head(changed(head("mlp"), len(text).to_bytes(8, "little") + text + bytes(16)))


def test_a_card_of_a_network_larger_than_its_file_takes_no_memory(head):
    folder = head("mlp")
    card = read_card(folder)
    card["parameters"]["width"] = 10**12
    with pytest.raises(HeadError, match=r"does not fit this head"):
        load_head(changed(folder, model(folder).read_bytes(), parameters=card["parameters"]))


@pytest.mark.parametrize("which", ["card", "model"])
def test_no_link_is_followed_out_of_a_head(head, tmp_path, which):
    folder = head("svr")
    path = folder / "card.yaml" if which == "card" else model(folder)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HeadError, match=r"is a symbolic link, which no command follows"):
        load_head(folder)


@pytest.mark.parametrize("length", [2**26, 2**40])
@pytest.mark.parametrize("name", ["svr", "boosting", "mlp"])
def test_a_model_file_longer_than_its_card_explains_is_not_read(head, name, length):
    folder = head(name)
    with model(folder).open("r+b") as file:
        file.truncate(length)
    started = time.process_time()
    with pytest.raises(HeadError, match=r"has more than [\d,]+ bytes, the most of such a file"):
        load_head(folder)
    assert time.process_time() - started < 5


@pytest.mark.parametrize("name", ["svr", "boosting", "mlp"])
def test_a_card_cannot_explain_more_than_the_longest_file_that_is_read(head, name):
    folder = head(name)
    card = read_card(folder)
    huge = {"svr": "exact_videos", "boosting": "most_trees", "mlp": "width"}[name]
    card["parameters"][huge] = 10**12
    changed(folder, b"", parameters=card["parameters"])
    with model(folder).open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(HeadError, match="has more than 2,147,483,648 bytes, the most"):
        load_head(folder)


def not_finite(own):
    own["network.hidden.bias"][0, 0] = float("nan")


def endless(own):
    own["line"][1] = float("inf")


def no_deviation(own):
    own["scaling.x.deviation"][0, 0] = 0


def flat_reference(own):
    own["reference"] = own["reference"].flatten()


def another_type(own):
    own["line"] = own["line"].bfloat16()


def stranger(own):
    own["network.more"] = own["network.hidden.bias"].clone()


@pytest.mark.parametrize(
    "change", [not_finite, endless, no_deviation, flat_reference, another_type, stranger]
)
def test_networks_that_could_only_give_nonsense_are_refused(head, change):
    folder = head("mlp")
    own = load_tensors(model(folder).read_bytes())
    change(own)
    with pytest.raises(HeadError, match=r"model-[^\n]*damaged[^\n]*$"):
        load_head(changed(folder, save_tensors(own)))
