import hashlib
import json
import os
import pickle
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from vqbank.extractors import EXTRACTORS, weights
from vqbank.extractors.base import WeightedExtractor
from vqbank.extractors.loading import check_keys, load_state_dict, random_weights, stream_state_dict
from vqbank.extractors.weights import (
    WeightFile,
    find_weights,
    locate,
    recorded_sha256,
    sha256_of,
    shards_of,
    weights_identity,
    weights_origin,
)
from vqbank.store.errors import WeightsError

FILE = WeightFile(
    choice="published",
    url="https://example.org/zoo/net_v1.pth",
    save_as="net.pth",
    publisher="Example",
    licence="MIT",
    trained_on=("Pictures",),
)
ON_THE_HUB = WeightFile(
    choice="published",
    url="https://huggingface.co/owner/net/resolve/main/model.safetensors",
    save_as="owner-net.safetensors",
    publisher="Example",
    licence="MIT",
    trained_on=("Pictures",),
)
IN_AN_ENTRY = WeightFile(
    choice="published",
    url="https://example.org/net.pyth",
    save_as="net.pyth",
    publisher="Example",
    licence="MIT",
    trained_on=("Pictures",),
    entry="model_state",
)
STATE = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2)}


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    for variable, folder in {
        "VQBANK_CACHE": "cache",
        "TORCH_HOME": "torch",
        "HOME": "home",
        "VQBANK_WEIGHTS": "weights",
    }.items():
        (tmp_path / folder).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def put(path, content=b"weights"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_local_path_is_taken_as_given(tmp_path):
    path = put(tmp_path / "anywhere" / "mine.pt")
    assert find_weights(str(path), FILE, extractor="net") == path


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(
        WeightsError, match=r"nothing\.pt' are neither a file nor one of 'published'"
    ):
        find_weights(str(tmp_path / "nothing.pt"), FILE, extractor="net")


def test_a_word_that_is_no_choice_is_answered_with_all_of_them():
    files = (FILE, replace(IN_AN_ENTRY, choice="other"))
    with pytest.raises(WeightsError, match=r"'publishd' are .* 'published', 'other', 'random'$"):
        find_weights("publishd", *files, extractor="net")
    with pytest.raises(WeightsError, match=r"'other', 'random', 'random-tiny'$"):
        find_weights("publishd", *files, extractor="net", has_tiny=True)


def test_each_of_several_published_files_is_found_by_its_choice(tmp_path):
    files = (FILE, replace(FILE, choice="other", url="https://e.org/o.pth", save_as="other.pth"))
    one, other = put(tmp_path / "weights/net.pth"), put(tmp_path / "weights/other.pth")
    assert find_weights("published", *files, extractor="net") == one
    assert find_weights("other", *files, extractor="net") == other


def test_without_a_folder_of_our_own_it_lies_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("VQBANK_WEIGHTS")
    path = put(tmp_path / "cache/weights/net.pth")
    assert find_weights("published", FILE, extractor="net") == path


@pytest.mark.parametrize(
    "place",
    ["weights/net.pth", "torch/hub/checkpoints/net_v1.pth", "home/.cache/clip/net_v1.pth"],
)
def test_a_published_file_is_found_where_it_is_kept(tmp_path, place):
    path = put(tmp_path / place)
    assert find_weights("published", FILE, extractor="net") == path


def test_our_own_folder_comes_before_the_caches(tmp_path):
    put(tmp_path / "torch/hub/checkpoints/net_v1.pth")
    ours = put(tmp_path / "weights/net.pth")
    assert find_weights("published", FILE, extractor="net") == ours


def test_a_hub_file_is_found_in_the_cache_of_its_own_repository(tmp_path):
    for owner in ("owner", "other"):
        repository = tmp_path / "hub" / f"models--{owner}--net"
        put(repository / "refs" / "main", b"c0ffee")
        put(repository / "snapshots" / "c0ffee" / "model.safetensors")
    found = find_weights("published", ON_THE_HUB, extractor="net")
    assert found.parts[-4:] == ("models--owner--net", "snapshots", "c0ffee", "model.safetensors")


@pytest.mark.parametrize("file", [FILE, ON_THE_HUB], ids=["url", "hub"])
def test_missing_weights_name_the_file_its_publisher_and_the_options(file):
    with pytest.raises(WeightsError) as raised:
        find_weights("published", file, extractor="net")
    message = str(raised.value)
    for part in (
        file.url,
        f"$VQBANK_WEIGHTS/{file.save_as}",
        "--weights net=PATH",
        "weights: PATH",
        "`vqbank weights fetch net=published`",
    ):
        assert part in message
    assert "Example" in message
    assert "MIT" in message


def test_a_folder_of_weights_that_is_none_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("VQBANK_WEIGHTS", str(tmp_path / "not there"))
    with pytest.raises(
        WeightsError, match=r"VQBANK_WEIGHTS is '.*not there', which is not a folder"
    ):
        find_weights("published", FILE, extractor="net")


def test_another_file_under_a_published_name_is_refused(tmp_path):
    known = replace(FILE, sha256=hashlib.sha256(b"right").hexdigest())
    path = put(tmp_path / "weights/net.pth", b"right")
    assert find_weights("published", known, extractor="net") == path
    put(path, b"wrong one")
    with pytest.raises(WeightsError, match="is not the file published at"):
        find_weights("published", known, extractor="net")


def test_the_first_digits_of_a_sha256_are_enough_to_refuse_another_file(tmp_path):
    """torchvision's file names hold eight of them."""
    known = replace(FILE, sha256_begins=hashlib.sha256(b"right").hexdigest()[:8])
    path = put(tmp_path / "weights/net.pth", b"right")
    assert find_weights("published", known, extractor="net") == path
    put(path, b"wrong one")
    with pytest.raises(WeightsError, match="is not the file published at"):
        find_weights("published", known, extractor="net")


def test_the_first_digits_of_a_sha256_do_not_attribute_a_file_to_its_publisher(tmp_path):
    known = replace(FILE, sha256_begins=hashlib.sha256(b"right").hexdigest()[:8])
    path = put(tmp_path / "right.pth", b"right")
    assert weights_origin(str(path), known, extractor="net") == UNKNOWN


@pytest.mark.parametrize("given", ["0676ba61", "0" * 63, "g" * 64, ""])
def test_what_is_called_a_sha256_is_a_whole_one(given):
    with pytest.raises(ValueError, match="is no sha256"):
        replace(FILE, sha256=given)


def test_every_published_sha256_is_whole_and_those_in_file_names_are_beginnings():
    files = {
        file
        for name, kind in EXTRACTORS.items()
        if issubclass(kind, WeightedExtractor) and isinstance(kind.files, tuple)
        for file in kind.files
    }
    whole = [file for file in files if file.sha256 is not None]
    begun = [file for file in files if file.sha256_begins is not None]
    assert whole
    assert begun
    assert all(file.sha256_begins in file.save_as for file in begun)


def test_the_identity_of_weights_is_what_they_are_not_where_they_lie(tmp_path):
    digest = hashlib.sha256(b"weights").hexdigest()
    put(tmp_path / "weights/net.pth")
    elsewhere = put(tmp_path / "elsewhere.pth")
    assert weights_identity("published", FILE, extractor="net") == digest
    assert weights_identity(str(elsewhere), FILE, extractor="net") == digest
    assert weights_identity("random", FILE, extractor="net") == "random"


PUBLISHED = {"publisher": "Example", "licence": "MIT", "trained_on": ("Pictures",)}
UNKNOWN = {"publisher": "unknown (local file)", "licence": "unknown", "trained_on": ()}


def test_a_local_file_is_not_attributed_to_the_publisher(tmp_path):
    put(tmp_path / "weights/net.pth")
    mine = put(tmp_path / "mine.pth", b"my own")
    assert weights_origin("published", FILE, extractor="net") == PUBLISHED
    assert weights_origin(str(mine), FILE, extractor="net") == UNKNOWN
    assert weights_origin("random", FILE, extractor="net") == {}


def test_a_local_file_that_is_known_to_be_the_published_one_is_attributed(tmp_path):
    known = replace(FILE, sha256=hashlib.sha256(b"right").hexdigest())
    right, wrong = put(tmp_path / "right.pth", b"right"), put(tmp_path / "wrong.pth", b"wrong")
    assert weights_origin(str(right), known, extractor="net") == PUBLISHED
    assert weights_origin(str(wrong), known, extractor="net") == UNKNOWN


def test_a_local_file_is_attributed_to_whichever_published_file_it_is(tmp_path):
    other = replace(
        FILE, choice="other", publisher="Others", sha256=hashlib.sha256(b"right").hexdigest()
    )
    right = put(tmp_path / "right.pth", b"right")
    origin = weights_origin(str(right), FILE, other, extractor="net")
    assert origin == {**PUBLISHED, "publisher": "Others"}


def test_the_sha256_is_that_of_the_bytes(tmp_path):
    path = put(tmp_path / "file", os.urandom(100_000))
    assert sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_sha256_is_remembered_until_the_file_changes(tmp_path):
    path, other = put(tmp_path / "file", b"one"), put(tmp_path / "other", b"other")
    first = sha256_of(path)
    sha256_of(other)
    memory = tmp_path / "cache" / "weights-sha256.json"
    remembered = json.loads(memory.read_text())
    assert set(remembered) == {str(path), str(other)}
    assert remembered[str(path)][2] == first
    remembered[str(path)][2] = "from memory"
    memory.write_text(json.dumps(remembered))
    assert sha256_of(path) == "from memory"
    put(path, b"two")
    os.utime(path, ns=(0, 1))
    assert sha256_of(path) == hashlib.sha256(b"two").hexdigest() != first


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}'])
def test_a_damaged_memory_is_forgotten(tmp_path, content):
    path = put(tmp_path / "file")
    (tmp_path / "cache" / "weights-sha256.json").write_text(content.replace('"a"', f'"{path}"'))
    assert sha256_of(path) == hashlib.sha256(b"weights").hexdigest()


def test_a_cache_folder_that_cannot_be_made_costs_only_time(tmp_path, monkeypatch):
    blocked = put(tmp_path / "a file")
    monkeypatch.setenv("VQBANK_CACHE", str(blocked / "below"))
    assert sha256_of(put(tmp_path / "file")) == hashlib.sha256(b"weights").hexdigest()


def test_the_sha256_of_nothing_is_an_error(tmp_path):
    with pytest.raises(WeightsError, match=r"cannot read weights .*nothing\.pt"):
        sha256_of(tmp_path / "nothing.pt")


def test_both_kinds_of_files_are_read(tmp_path):
    torch.save(STATE, tmp_path / "net.pt")
    safetensors.torch.save_file(STATE, tmp_path / "net.safetensors")
    assert same(load_state_dict(tmp_path / "net.pt", FILE), STATE)
    assert same(load_state_dict(tmp_path / "net.safetensors", FILE), STATE)


def test_the_entry_with_the_state_dict_is_taken_out(tmp_path):
    torch.save({"model_state": STATE}, tmp_path / "net.pyth")
    assert same(load_state_dict(tmp_path / "net.pyth", IN_AN_ENTRY), STATE)
    torch.save(STATE, tmp_path / "bare.pyth")
    with pytest.raises(WeightsError, match=r"bare\.pyth has no entry 'model_state'"):
        load_state_dict(tmp_path / "bare.pyth", IN_AN_ENTRY)


def test_a_local_file_may_be_in_the_container_of_any_published_file(tmp_path):
    torch.save({"params": STATE}, tmp_path / "one.pth")
    torch.save({"state_dict": STATE}, tmp_path / "two.pth")
    torch.save(STATE, tmp_path / "bare.pth")
    one, two = (replace(FILE, entry=entry) for entry in ("params", "state_dict"))
    for name in ("one", "two"):
        assert same(load_state_dict(tmp_path / f"{name}.pth", one, two), STATE)
    with pytest.raises(WeightsError, match="has no entry 'params' or 'state_dict'"):
        load_state_dict(tmp_path / "bare.pth", one, two)
    assert same(load_state_dict(tmp_path / "bare.pth", one, FILE), STATE)


# Shards.


def shards(folder, suffix=".safetensors", index=True):
    """STATE in two files, one tensor each, as Hugging Face's libraries write them."""
    folder.mkdir(exist_ok=True)
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    save = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
    places = {}
    for number, (key, tensor) in enumerate(STATE.items(), 1):
        places[key] = f"{stem}-0000{number}-of-00002{suffix}"
        save({key: tensor}, folder / places[key])
    if index:
        text = json.dumps({"metadata": {}, "weight_map": places})
        (folder / f"{stem}{suffix}.index.json").write_text(text)
    return folder


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("index", [True, False])
def test_a_folder_of_shards_is_read_as_one(tmp_path, suffix, index):
    folder = shards(tmp_path / "large", suffix, index)
    assert len(shards_of(folder)) == 2
    assert same(load_state_dict(folder, FILE), STATE)
    assert find_weights(str(folder), FILE, extractor="net") == folder


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_are_found_in_the_cache_of_their_repository(tmp_path, suffix):
    repository = replace(ON_THE_HUB, url="https://huggingface.co/owner/large", save_as="large")
    cached = tmp_path / "hub/models--owner--large"
    put(cached / "refs/main", b"c0ffee")
    (cached / "snapshots").mkdir()
    folder = shards(cached / "snapshots/c0ffee", suffix)
    assert find_weights("published", repository, extractor="net") == folder
    shards_of(folder)[1].unlink()
    with pytest.raises(WeightsError, match="names shards that are not there"):
        find_weights("published", repository, extractor="net")
    ours = shards(tmp_path / "weights/large")
    assert find_weights("published", repository, extractor="net") == ours


def test_an_index_means_its_shards(tmp_path):
    folder = shards(tmp_path / "large")
    index = folder / "model.safetensors.index.json"
    put(folder / "stranger.safetensors", b"not in the index")
    assert same(load_state_dict(index, FILE), STATE)
    assert sha256_of(index) == sha256_of(folder)


def test_the_identity_of_shards_is_that_of_their_bytes(tmp_path):
    one, other = shards(tmp_path / "one"), shards(tmp_path / "other", index=False)
    digests = sorted(sha256_of(path) for path in one.glob("*.safetensors"))
    assert sha256_of(one) == hashlib.sha256("".join(digests).encode()).hexdigest()
    assert weights_identity(str(one), FILE, extractor="net") == sha256_of(one)
    first, second = sorted(other.glob("*.safetensors"))
    first.rename(other / "z.safetensors")  # neither names nor places count
    assert sha256_of(other) == sha256_of(one)
    second.write_bytes(second.read_bytes()[:-1] + b"\1")
    assert sha256_of(other) != sha256_of(one)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_are_read_one_tensor_after_the_other(tmp_path, suffix):
    """What comes next is looked at when it is asked for: a broken second shard is met second."""
    folder = shards(tmp_path / "large", suffix)
    put(shards_of(folder)[1], b"broken")
    tensors = stream_state_dict(folder, FILE)
    key, tensor = next(tensors)
    assert torch.equal(tensor, STATE[key])
    with pytest.raises(WeightsError, match=r"-00002-of-00002.* is damaged"):
        next(tensors)


def test_a_tensor_outlives_its_file_and_is_no_view_of_it(tmp_path):
    torch.save(STATE, tmp_path / "net.pt")
    loaded = load_state_dict(tmp_path / "net.pt", FILE)
    content = (tmp_path / "net.pt").read_bytes()
    with (tmp_path / "net.pt").open("r+b") as file:
        file.write(b"\0" * len(content))
    assert same(loaded, STATE)


def test_a_shard_that_is_missing_is_named(tmp_path):
    folder = shards(tmp_path / "large")
    shards_of(folder)[1].unlink()
    with pytest.raises(WeightsError, match="not there: model-00002-of-00002"):
        load_state_dict(folder, FILE)


def test_a_key_in_two_shards_is_refused(tmp_path):
    folder = shards(tmp_path / "large")
    first, second = shards_of(folder)
    second.write_bytes(first.read_bytes())
    with pytest.raises(WeightsError, match=r"holds layer\.\w+ twice, again in model-00002"):
        load_state_dict(folder, FILE)


@pytest.mark.parametrize(
    "index",
    ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../../secret.safetensors"}}'],
)
def test_an_index_that_is_none_is_refused(tmp_path, index):
    put(tmp_path / "large/model.safetensors.index.json", index.encode())
    with pytest.raises(WeightsError, match=r"index\.json (is not an index|names no shards)"):
        shards_of(tmp_path / "large")


def test_a_folder_without_weights_is_refused(tmp_path):
    put(tmp_path / "large/config.json", b"{}")
    with pytest.raises(WeightsError, match=r"large holds no weights: no \*\.safetensors"):
        weights_identity(str(tmp_path / "large"), FILE, extractor="net")


def test_sums_that_somebody_else_wrote_are_read_too(tmp_path):
    path = put(tmp_path / "weights/net.pth")
    digest = hashlib.sha256(b"weights").hexdigest()
    put(tmp_path / "weights/SHA256SUMS", f"{'0' * 64}  other\n{digest}  net.pth\n".encode())
    assert recorded_sha256(path) == digest
    assert find_weights("published", FILE, extractor="net") == path


class Bomb:
    """Its pickle creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("write", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_code_in_a_file_is_never_run(tmp_path, write):
    write({"weight": Bomb(tmp_path / "boom")}, tmp_path / "bomb.pt")
    with pytest.raises(WeightsError, match=r"bomb\.pt .*; take https://example\.org"):
        load_state_dict(tmp_path / "bomb.pt", FILE)
    assert not (tmp_path / "boom").exists()


# What `pickle.dumps(np.float64(0.25), 2)` is by NumPy 1 and by NumPy 2.
@pytest.mark.parametrize("core", ["core", "_core"])
def test_numbers_of_numpy_beside_the_weights_are_no_code(tmp_path, core, monkeypatch):
    scalar = np.float64(0).__reduce__()[0]
    monkeypatch.setattr(scalar, "__module__", f"numpy.{core}.multiarray", raising=False)
    results = [np.float64(0.25), np.float32(0.5)]
    path = tmp_path / "net.pyth"
    torch.save({"model_state": STATE, "validation_results": results}, path)
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read(next(name for name in archive.namelist() if "data.pkl" in name))
    assert f"numpy.{core}.multiarray\nscalar".encode() in pickled
    assert same(load_state_dict(path, IN_AN_ENTRY), STATE)


def test_a_file_on_a_web_page_is_looked_for_in_our_own_folder_only(tmp_path):
    page = replace(FILE, url="https://example.org/net", on_page=True)
    put(tmp_path / "torch/hub/checkpoints/net")
    assert locate(page) is None
    with pytest.raises(
        WeightsError, match="follow its link by hand and save the file as"
    ) as raised:
        find_weights("published", page, extractor="net")
    assert "vqbank weights fetch" not in str(raised.value)
    path = put(tmp_path / "weights/net.pth")
    assert find_weights("published", page, extractor="net") == path


def test_a_torchscript_archive_is_refused_by_its_name(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out; the files stay
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "ViT-B-32.pt")
    with pytest.raises(WeightsError, match=r"ViT-B-32\.pt is a TorchScript archive.*; take https"):
        load_state_dict(tmp_path / "ViT-B-32.pt", FILE)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"a text, and no weights\n", b"\x80\x04."], ids=["empty", "text", "stub"]
)
def test_what_is_no_weight_file_is_refused(tmp_path, suffix, content):
    path = put(tmp_path / f"broken{suffix}", content)
    with pytest.raises(WeightsError, match=r"broken\.\w+ is damaged"):
        load_state_dict(path, FILE)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_truncated_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    save = torch.save if suffix == ".pt" else safetensors.torch.save_file
    save({"weight": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 9):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=f"net{suffix} is damaged"):
            load_state_dict(path, FILE)


def test_a_missing_file_is_named(tmp_path):
    for name in ("gone.pt", "gone.safetensors"):
        with pytest.raises(WeightsError, match=f"there is no weight file .*{name}"):
            load_state_dict(tmp_path / name, FILE)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (torch.zeros(3), "holds a Tensor, not a state dict"),
        ({"epoch": 3, "weight": torch.zeros(3)}, "not tensors are epoch"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, content, fault):
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(WeightsError, match=fault):
        load_state_dict(tmp_path / "net.pt", FILE)


def test_missing_unexpected_and_misshapen_keys_are_named(tmp_path):
    check_keys(STATE, STATE, tmp_path / "net.pt")
    given = {"layer.weight": torch.zeros(3, 2), "other.bias": torch.ones(2)}
    with pytest.raises(WeightsError) as raised:
        check_keys(STATE, given, tmp_path / "net.pt")
    message = str(raised.value)
    assert "net.pt holds the weights of another network" in message
    assert "missing: layer.bias;" in message
    assert "unexpected: other.bias;" in message
    assert "of another shape: layer.weight (3, 2) for (2, 3)" in message


def test_of_many_keys_the_first_few_are_named(tmp_path):
    given = {f"key{number:02}": torch.zeros(1) for number in range(40)}
    with pytest.raises(WeightsError, match=r"unexpected: key00, .*, key04 and 35 more$"):
        check_keys({}, given, tmp_path / "net.pt")


def test_random_weights_are_the_same_wherever_they_are_drawn():
    torch.manual_seed(1)
    with random_weights():
        one = torch.nn.Linear(5, 5)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    with random_weights():
        other = torch.nn.Linear(5, 5)
    assert same(one.state_dict(), other.state_dict())
    assert torch.equal(before, torch.random.get_rng_state())


def test_networks_that_are_built_at_the_same_time_get_their_own_random_weights():
    def build(width):
        with random_weights():
            return [torch.nn.Linear(width, width).weight for _ in range(20)]

    alone = [build(width) for width in (30, 40, 50, 60)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(build, (30, 40, 50, 60)))

    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"XDG_CACHE_HOME": "caches"},
        {"TORCH_HOME": "~/t"},
        {"XDG_CACHE_HOME": "c", "TORCH_HOME": "t"},
    ],
)
def test_torch_hubs_folder_is_known_without_torch(monkeypatch, variables):
    for name in ("XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert weights._torch_hub() == Path(torch.hub.get_dir())
