import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

from vqbank.extractors.clip import Clip
from vqbank.extractors.pe import Pe
from vqbank.extractors.tail import open_clip_image
from vqbank.extractors.views import CLIP_MEAN, CLIP_STD, normalise
from vqbank.pipelines.commands.bank import verify as verify_command
from vqbank.regressors.tail import ImageTail, load_tail, load_text_tail
from vqbank.store import tail as tail_file
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import DamagedShardError, MissingFeatureError
from vqbank.store.merge import merge
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint
from vqbank.store.tail import (
    Tail,
    Tower,
    has_tail,
    read_tokens,
    read_tower,
    tail_folder,
    write_tail,
)
from vqbank.store.verify import mark, verify

CPU = torch.device("cpu")
BLOCKS = 12  # of ViT-B/32
TENSORS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones(3, np.float32)}
SMALL = Tail({"image": Tower({"width": 3}, TENSORS)}, {"a b": [1, 2, 0]})
SPEC = FeatureSpec("demo.tokens", (2,), "float32", {"weights": "random", "cut": 1})


@pytest.fixture
def store(tmp_path):
    return FeatureStore.create(tmp_path / "bank")


def folder_of(store, spec=SPEC):
    return store.path / spec.key / "tail"


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def with_a_row(store):
    """The bank with a row of SPEC."""
    writer = store.writer(SPEC, provenance={})
    row = Feature(np.ones((1, 2), np.float32), np.zeros(1), np.zeros(1, np.int64))
    writer.add("v", row, fingerprint=Fingerprint(1, "0" * 64), probe={})
    writer.commit()
    return store


# On disk.


def test_a_tail_comes_back_as_it_was_written(store):
    assert not has_tail(store, SPEC)
    write_tail(with_a_row(store), SPEC, SMALL)
    assert has_tail(store, SPEC, ["a b"])
    folder = tail_folder(store, "demo.tokens")
    assert folder == folder_of(store)
    tower = read_tower(folder, "image")
    assert tower.configuration == {"width": 3}
    assert tower.tensors.keys() == TENSORS.keys()
    assert all(np.array_equal(tower.tensors[key], TENSORS[key]) for key in TENSORS)
    assert read_tokens(folder, ["a b"]).tolist() == [[1, 2, 0]]


def test_every_writer_writes_the_same_bytes_and_two_at_once_are_harmless(store, tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: write_tail(store, SPEC, SMALL), range(8)))
    other = FeatureStore.create(tmp_path / "other")
    write_tail(other, SPEC, SMALL)
    assert files(folder_of(store)) == files(folder_of(other))
    assert len(files(folder_of(store))) == 3  # nothing temporary is left


def test_until_its_last_act_a_killed_writer_has_written_no_tail(store):
    """It is killed when all weights are on the disk, and its successor ends as if it had not."""
    program = f"""if True:
        import os, signal
        from pathlib import Path
        import numpy as np
        from vqbank.store import tail
        from vqbank.store.bank import FeatureStore
        from vqbank.store.schema import FeatureSpec
        spec = FeatureSpec("demo.tokens", (2,), "float32", {SPEC.identity!r})
        small = tail.Tail({{"image": tail.Tower({{}}, {{"a": np.ones(3)}})}})
        tail.create_exclusively = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        tail.write_tail(FeatureStore(Path({str(store.path)!r})), spec, small)
    """
    killed = subprocess.run([sys.executable, "-c", program], check=False)
    assert killed.returncode == -9
    assert [path.suffix for path in folder_of(store).iterdir()] == [".safetensors"]
    assert not has_tail(store, SPEC)
    with pytest.raises(MissingFeatureError, match="holds no tail"):
        read_tower(folder_of(store), "image")
    write_tail(store, SPEC, SMALL)
    assert read_tower(folder_of(store), "image").configuration == {"width": 3}


def test_what_is_there_is_kept_and_only_tokens_are_added(store):
    write_tail(store, SPEC, SMALL)
    before = files(folder_of(store))
    other = Tail({"image": Tower({"width": 4}, {})}, {"c": [3], "a b": [9]})
    assert not has_tail(store, SPEC, ["a b", "c"])
    write_tail(store, SPEC, other)
    assert files(folder_of(store)).items() > before.items()
    assert read_tower(folder_of(store), "image").configuration == {"width": 3}
    assert read_tokens(folder_of(store), ["a b"]).tolist() == [[1, 2, 0]]
    assert read_tokens(folder_of(store), ["c"]).tolist() == [[3]]


def test_towers_that_are_asked_for_later_are_added_and_found_damaged_alone(store):
    write_tail(with_a_row(store), SPEC, SMALL)
    before = files(folder_of(store))
    whole = Tail({**SMALL.towers, "early": Tower({"cut": 1}, {"c": np.zeros(2, np.float32)})}, {})
    assert not has_tail(store, SPEC, (), ["early"])

    write_tail(store, SPEC, whole)
    write_tail(store, SPEC, whole)

    assert has_tail(store, SPEC, ["a b"], ["early", "image"])
    assert files(folder_of(store)).items() > before.items()
    assert len(files(folder_of(store))) == len(before) + 2
    assert read_tower(folder_of(store), "early").tensors["c"].tolist() == [0, 0]
    assert read_tower(folder_of(store), "image").configuration == {"width": 3}
    (index,) = folder_of(store).glob("towers-*.json")
    flip(index)
    problems = list(verify(store))
    assert [problem.file for problem in problems] == [f"tail/{index.name}"]
    mark(store, problems)
    assert has_tail(store, SPEC, ["a b"])
    assert not has_tail(store, SPEC, (), ["early"])
    write_tail(store, SPEC, whole)
    assert has_tail(store, SPEC, (), ["early"])


def test_a_tower_is_not_lost_where_another_writer_without_it_comes_first(store, monkeypatch):
    whole = Tail({**SMALL.towers, "early": Tower({"cut": 1}, {"c": np.zeros(2, np.float32)})}, {})
    create = tail_file.create_exclusively

    def first(path, content):
        monkeypatch.undo()
        write_tail(store, SPEC, SMALL)
        return create(path, content)

    monkeypatch.setattr(tail_file, "create_exclusively", first)

    write_tail(store, SPEC, whole)

    assert has_tail(store, SPEC, ["a b"], ["image", "early"])


def test_a_changed_byte_is_never_used(store):
    write_tail(store, SPEC, SMALL)
    folder = folder_of(store)
    (weights,) = folder.glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(DamagedShardError, match="has changed since it was written"):
        read_tower(folder, "image")
    index = folder / "tail.json"
    index.write_text(index.read_text().replace('"width":3', '"width":4'))
    with pytest.raises(DamagedShardError, match=r"tail\.json has changed"):
        read_tower(folder, "image")


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize("file", ["*.safetensors", "tail.json", "tokens-*.json"])
def test_damage_of_a_tail_is_found_and_what_is_marked_is_written_anew(store, file, damage):
    write_tail(with_a_row(store), SPEC, SMALL)
    before = files(folder_of(store))
    assert list(verify(store)) == []
    (path,) = folder_of(store).glob(file)
    damage(path)

    problems = list(verify(store))
    mark(store, problems)
    write_tail(store, SPEC, SMALL)  # as the next extraction does

    # A tail without its index, or prompts without tokens, are as if nobody had written them.
    named = [f"tail/{path.name}"] if path.name in before and not hidden(file, damage) else []
    assert [problem.file for problem in problems] == named
    now = files(folder_of(store))
    assert {name: content for name, content in now.items() if not name.startswith(".")} == before
    assert list(verify(store)) == []
    assert store.read(SPEC, "v").values.tolist() == [[1, 1]]  # no row was marked


def hidden(file, damage):
    return damage is Path.unlink and file != "*.safetensors"


def test_the_command_names_a_damaged_tail(store, capsys):
    write_tail(with_a_row(store), SPEC, SMALL)
    (path,) = folder_of(store).glob("*.safetensors")
    flip(path)
    with pytest.raises(typer.Exit):
        verify_command(store.path)
    said = capsys.readouterr().out
    assert f"{SPEC.key}/tail/{path.name}: has changed since it was committed" in said


def test_what_is_not_there_is_named(store):
    write_tail(store, SPEC, SMALL)
    with pytest.raises(MissingFeatureError, match="no tower 'text'; it has image"):
        read_tower(folder_of(store), "text")
    with pytest.raises(MissingFeatureError, match="no tokens of 'x'; name it among"):
        read_tokens(folder_of(store), ["a b", "x"])
    with pytest.raises(MissingFeatureError, match="holds no tail"):
        tail_folder(with_a_row(FeatureStore.create(store.path.parent / "other")), "demo.tokens")


def test_parts_that_are_not_known_are_refused(store):
    write_tail(store, SPEC, SMALL)
    with pytest.raises(DamagedShardError, match="its image tower is damaged, or of parts that"):
        load_tail(folder_of(store))


def test_merging_banks_takes_the_tail_along(store, tmp_path):
    write_tail(with_a_row(store), SPEC, SMALL)
    target = FeatureStore.create(tmp_path / "target")
    merge(target, [store])
    assert files(folder_of(target)) == files(folder_of(store))


def test_no_writer_needs_torch_and_no_reader_an_extractor():
    program = """if True:
        import json, sys
        import vqbank.store.tail
        without = "torch" not in sys.modules
        import vqbank.regressors.tail
        sys.stdout.write(json.dumps([without, sorted(sys.modules)]))
    """
    answer = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    without, modules = json.loads(answer.stdout)
    assert without
    assert not {"vqbank.extractors", "open_clip", "timm", "torchvision"} & set(modules)


# Cut and continued.


def banked(extractor, pictures, tmp_path):
    """What is banked of pictures, by output, and the folder of the tail."""
    store = FeatureStore.create(tmp_path / "bank")
    spec = extractor.specs(decoder="pyav")["tokens"]
    write_tail(store, spec, extractor.tail("tokens"))
    with torch.inference_mode():
        rows = extractor.build(CPU)(extractor.view(pictures)[:, None])
    return {name: values[:, 0] for name, values in rows.items()}, folder_of(store, spec)


@pytest.fixture(scope="module")
def pictures(frames):
    """uint8 [3, 3, 70, 90]."""
    return torch.from_numpy(frames("tail", 3, 70, 90)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def vit_b32(pictures):
    """The image tower of CLIP ViT-B/32, uncut: its states after every block and its embedding."""
    clip = Clip(weights="random")
    tower = clip.load().visual.eval()
    with torch.inference_mode():
        found = tower.forward_intermediates(
            normalise(clip.view(pictures), CLIP_MEAN, CLIP_STD),
            indices=list(range(BLOCKS)),
            output_fmt="NLC",
            output_extra_tokens=True,
        )
    parts = zip(found["image_intermediates_prefix"], found["image_intermediates"], strict=True)
    states = [torch.cat(part, dim=1) for part in parts]
    tail = open_clip_image(
        tower.state_dict(),
        cut=0,
        layers=BLOCKS,
        width=768,
        heads=12,
        hidden=3072,
        activation="quick_gelu",
        embedding=512,
    )
    network = ImageTail(**tail.configuration)
    network.load_state_dict({key: torch.from_numpy(value) for key, value in tail.tensors.items()})
    return network.eval().requires_grad_(False), states, found["image_features"]


def continued(network, state, cut):
    with torch.inference_mode():
        for number in range(cut + 1, BLOCKS):
            state = network.block(number, state)
        return network.project(network.pool(state))


@pytest.mark.parametrize("cut", range(BLOCKS))
def test_vit_b32_goes_on_from_every_block_to_the_last_bit(vit_b32, cut):
    network, states, embedding = vit_b32
    assert torch.equal(continued(network, states[cut], cut), embedding)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 5e-4), (torch.bfloat16, 4e-3)])
def test_states_in_half_precision_cost_what_is_stated(vit_b32, dtype, error):
    """A part of the largest value of the embedding, whatever the cut."""
    network, states, embedding = vit_b32
    for cut in (0, 8, 11):
        found = continued(network, states[cut].to(dtype).float(), cut)
        assert 0 < (found - embedding).abs().max() < error * embedding.abs().max()


@pytest.mark.parametrize("cut", [0, 2, 3])
def test_a_banked_tail_of_clip_goes_on_to_the_last_bit(pictures, tmp_path, cut):
    clip = Clip(weights="random-tiny", cut=cut, outputs=("embedding", "tokens"))
    rows, folder = banked(clip, pictures, tmp_path)
    tail = load_tail(folder)
    assert tail.cut == cut
    with torch.inference_mode():
        assert torch.equal(tail(rows["tokens"]), rows["embedding"])


def test_a_whole_tail_begins_at_the_pixels_and_has_the_key_of_the_others(pictures, tmp_path):
    clip = Clip(weights="random-tiny", cut=2, outputs=("tokens",), whole_tail=True)
    plain = Clip(weights="random-tiny", cut=2, outputs=("tokens",))
    assert clip.specs(decoder="pyav") == plain.specs(decoder="pyav")
    rows, folder = banked(clip, pictures, tmp_path)
    early = {n: torch.from_numpy(v) for n, v in read_tower(folder, "early").tensors.items()}
    network = Clip(weights="random-tiny").load().visual
    expected = network.state_dict()
    pixels = normalise(clip.view(pictures), CLIP_MEAN, CLIP_STD)
    with torch.inference_mode():
        maps = torch.nn.functional.conv2d(
            pixels, early["conv1.weight"], stride=early["conv1.weight"].shape[-1]
        )
        state = torch.cat(
            [early["class_embedding"].expand(3, 1, -1), maps.flatten(2).transpose(1, 2)], dim=1
        )
        state = network.ln_pre(state + early["positional_embedding"])
        for block in network.transformer.resblocks[:3]:
            state = block(state)
        torch.testing.assert_close(state, rows["tokens"], atol=1e-5, rtol=1e-5)
    for number in range(3):
        names = [name for name in early if name.startswith(f"blocks.{number}.")]
        assert len(names) == 12
        for name in names:
            theirs = expected[name.replace("blocks.", "transformer.resblocks.")]
            assert torch.equal(early[name], theirs)
    assert not any(name.startswith("blocks.3.") for name in early)


@pytest.mark.parametrize("rope", ["official", "qclip"])
@pytest.mark.parametrize("cut", [0, 17, 18, 23])
def test_a_banked_tail_of_pe_goes_on_to_the_last_bit(pictures, tmp_path, cut, rope):
    """Its depth is the official one."""
    outputs = ("pooled", "feature", "tokens")
    pe = Pe(weights="random-tiny", cut=cut, rope=rope, outputs=outputs)
    rows, folder = banked(pe, pictures, tmp_path)
    tail = load_tail(folder)
    state = rows["tokens"]
    with torch.inference_mode():
        assert torch.equal(tail(state), rows["feature"])
        for dtype, error in ((torch.float16, 3e-4), (torch.bfloat16, 3e-3)):
            found = tail(state.to(dtype).float())
            size = rows["feature"].abs().max()
            assert 0 < (found - rows["feature"]).abs().max() < error * size
        for number in tail.numbers:
            state = tail.block(number, state)
        assert torch.equal(tail.pool(state), rows["pooled"])


@pytest.mark.parametrize("kind", [Clip, Pe])
def test_a_banked_text_tower_is_the_uncut_one(pictures, tmp_path, kind):
    extractor = kind(weights="random-tiny", outputs=("tokens",))
    _, folder = banked(extractor, pictures, tmp_path)
    network = extractor.load().eval()
    tail = load_text_tail(folder)
    tokens = torch.from_numpy(read_tokens(folder, extractor.tail_prompts))
    ends = tokens.argmax(dim=1)
    with torch.inference_mode():
        expected = network.text(tokens) if kind is Pe else network.encode_text(tokens)
        whole = tail(tail.embed(tokens), ends)
        # What lies behind the last end is never looked at.
        short = tail(tail.embed(tokens[:, : ends.max() + 1]), ends)
    assert expected.std(dim=0).max() > 1e-3 * expected.abs().max()
    for found in (whole, short):
        error = (found - expected).abs().max()
        assert error < 2e-6 * expected.abs().max()  # of another order of summing


def test_an_adapter_learns_through_a_frozen_tail(pictures, tmp_path):
    rows, folder = banked(Pe(weights="random-tiny", outputs=("tokens",)), pictures, tmp_path)
    tail = load_tail(folder)
    shift = torch.zeros(rows["tokens"].shape[-1], requires_grad=True)
    tail(rows["tokens"].clone() + shift).square().sum().backward()
    assert shift.grad is not None
    assert shift.grad.abs().min() > 0
    assert all(parameter.grad is None for parameter in tail.parameters())


def test_models_of_other_parts_have_no_tail():
    assert Clip(weights="random").cut_outputs == ("tokens",)
    for model in ("RN50", "ViT-B-16-SigLIP", "EVA02-B-16"):
        assert Clip(weights="random", model=model).cut_outputs == ()
