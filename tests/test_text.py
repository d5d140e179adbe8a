import subprocess
import sys

import numpy as np
import pytest

from vqbank.store.bank import FeatureStore
from vqbank.store.errors import AmbiguousFeatureError, InvalidFeatureError, MissingFeatureError
from vqbank.store.schema import canonical_json
from vqbank.store.text import FOLDER, TextBank, has_text, read_text, text_spec, write_text
from vqbank.store.verify import mark, verify

PROMPTS = ("a sharp video", "ein unscharfes Video, süß", "", "two\nlines")


def spec_of(prompts=PROMPTS, width=6, name="demo.text", **identity):
    return text_spec(name, prompts, width, {"weights": "random", **identity}, publisher="nobody")


def text_of(prompts=PROMPTS, width=6, seed=0):
    rows = np.random.default_rng(seed).standard_normal((len(prompts), width)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return TextBank(prompts, rows, 14.285714149475098)


@pytest.fixture
def store(tmp_path):
    return FeatureStore.create(tmp_path / "bank")


def commits(store):
    return sorted((store.path / FOLDER).glob("*/commits/*.json"))


def test_a_text_bank_comes_back_as_it_was_written(store):
    text = text_of()
    assert not has_text(store, spec_of())
    write_text(store, spec_of(), text, provenance={})
    assert has_text(store, spec_of())
    for name in ("demo.text", spec_of().key):
        read = read_text(store, name)
        assert read.prompts == PROMPTS
        assert read.values.tobytes() == text.values.tobytes()
        assert read.scale == text.scale


def test_it_is_no_feature_of_videos(store):
    write_text(store, spec_of(), text_of(), provenance={})
    assert store.specs() == []


def test_it_is_committed_once(store):
    for seed in (0, 1):
        write_text(store, spec_of(), text_of(seed=seed), provenance={})
    assert len(commits(store)) == 1
    assert read_text(store, "demo.text").values.tobytes() == text_of().values.tobytes()


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": PROMPTS[:3]},
        {"prompts": PROMPTS[::-1]},
        {"prompts": (*PROMPTS[:3], "two lines")},
        {"width": 7},
        {"weights": "random-tiny"},
        {"context_length": 77},
    ],
)
def test_whatever_changes_a_row_or_its_place_changes_the_key(change):
    assert spec_of(**change).key != spec_of().key


def test_a_prompt_that_stands_there_twice_is_refused():
    with pytest.raises(InvalidFeatureError, match=r"demo\.text: prompt 'b' stands there twice"):
        spec_of(prompts=("a", "b", "c", "b"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (text_of(PROMPTS[::-1]), "not the prompts that its spec names"),
        (text_of(width=7), r"rows have shape \(7,\), not \(6,\)"),
        (
            TextBank(PROMPTS, np.full((4, 6), [[0], [0], [0], [np.nan]], np.float32), 1.0),
            "row 0 .* is not finite",
        ),
    ],
    ids=["order", "width", "nan"],
)
def test_what_is_not_as_the_spec_says_leaves_nothing_behind(store, text, complaint):
    with pytest.raises(InvalidFeatureError, match=complaint):
        write_text(store, spec_of(), text, provenance={})
    assert not has_text(store, spec_of())
    assert commits(store) == []
    assert list((store.path / FOLDER).glob("*/shards/*")) == []


def test_a_missing_text_bank_is_named(store):
    with pytest.raises(MissingFeatureError, match="has no text banks"):
        read_text(store, "demo.text")
    write_text(store, spec_of(), text_of(), provenance={})
    with pytest.raises(MissingFeatureError, match=r"'demo\.txt'.*'demo\.text'\?"):
        read_text(store, "demo.txt")


def test_two_of_one_name_are_told_apart_by_their_keys(store):
    other = spec_of(weights="random-tiny")
    write_text(store, spec_of(), text_of(), provenance={})
    write_text(store, other, text_of(seed=1), provenance={})
    with pytest.raises(AmbiguousFeatureError, match=other.key):
        read_text(store, "demo.text")
    assert read_text(store, other.key).values.tobytes() == text_of(seed=1).values.tobytes()


def test_damage_is_found_marked_and_repaired(store):
    write_text(store, spec_of(), text_of(), provenance={})
    (values,) = (store.path / FOLDER).glob("*/shards/*/values/c/0/0")
    content = bytearray(values.read_bytes())
    content[spec_of().row_bytes] ^= 1  # of the second prompt
    values.write_bytes(content)

    room = FeatureStore(store.path / FOLDER)
    problems = list(verify(room))
    assert [problem.videos for problem in problems] == [(PROMPTS[1],)]
    mark(room, problems)
    assert not has_text(store, spec_of())
    with pytest.raises(MissingFeatureError, match=PROMPTS[1]):
        read_text(store, "demo.text")
    write_text(store, spec_of(), text_of(), provenance={})
    assert read_text(store, "demo.text").values.tobytes() == text_of().values.tobytes()


def test_a_kill_just_before_the_commit_leaves_no_text_bank(store):
    program = """if True:
        import json, os, signal, sys
        from pathlib import Path
        import numpy as np
        from vqbank.store.bank import FeatureStore
        from vqbank.store.text import TextBank, text_spec, write_text

        prompts = tuple(json.loads(sys.argv[2]))
        text = TextBank(prompts, np.frombuffer(bytes.fromhex(sys.argv[3]), "<f4").reshape(4, 6), 2)
        spec = text_spec("demo.text", prompts, 6, {"weights": "random"})

        def watch(event, arguments):
            if event == "os.link" and "/commits/" in str(arguments[1]):
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        write_text(FeatureStore(Path(sys.argv[1])), spec, text, provenance={})
    """
    text = text_of()
    arguments = [str(store.path), canonical_json(list(PROMPTS)), text.values.tobytes().hex()]
    run = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True)
    assert run.returncode == -9, run.stderr
    assert len(list((store.path / FOLDER).glob("*/shards/*"))) == 1  # it was that far
    assert not has_text(store, spec_of())
    with pytest.raises(MissingFeatureError):
        read_text(store, "demo.text")
    write_text(store, spec_of(), text, provenance={})
    assert read_text(store, "demo.text").values.tobytes() == text.values.tobytes()
