"""Keys stay as they are: another one would orphan what is banked under it."""

import json
from pathlib import Path

import pytest

from vqbank.extractors import make_extractor, specs_of

CASES = json.loads((Path(__file__).parent / "data" / "keys.json").read_text())
"""[extractor, parameters, its keys], as commit 81d42a9 computed them; "FILE" stands for weights.

Those of pe's random-tiny form are newer: it has another text tower since adapters need one."""


@pytest.mark.parametrize("extractor", sorted({name for name, _, _ in CASES}))
def test_keys_are_those_of_banks_that_lie_about(extractor, tmp_path, monkeypatch):
    """A change here orphans every banked feature: raise `version` only when numbers change."""
    file = tmp_path / "weights.pth"
    file.write_bytes(b"no weights: to name them takes only their sha256")
    for name in ("iqa", "nss"):
        monkeypatch.setattr(f"vqbank.extractors.{name}.version", {"pyiqa": "0.1.16"}.__getitem__)
    given = [(parameters, keys) for name, parameters, keys in CASES if name == extractor]

    found = []
    for parameters, _ in given:
        local = {key: str(file) if value == "FILE" else value for key, value in parameters.items()}
        found.append(keys_of(make_extractor(extractor, **local)))

    assert found == [keys for _, keys in given]


def keys_of(extractor):
    """Of all that is wanted, and of the prompts."""
    keys = [spec.key for spec in specs_of(extractor, decoder="pyav").values()]
    prompts = extractor.text_spec()
    return keys if prompts is None else [*keys, prompts.key]
