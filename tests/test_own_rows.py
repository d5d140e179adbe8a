"""Roles that keep rows of their own beside the grid: counts, masks, choices, memory and streams."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from vqbank.regressors.alignment import Align
from vqbank.regressors.layers import linear
from vqbank.regressors.sequence import SequenceHead
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import DamagedShardError, HeadError
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, Video
from vqbank.store.table import FeatureTable

CLIPS = 7
TESTED = np.arange(3)


def table_of(*, n=24, seed=0, clips=CLIPS):
    """Frames of any number, and as many clips of two streams, whose rows say which they are."""
    rng = np.random.default_rng(seed)
    frames = [rng.normal(size=(rng.integers(2, 9), 3)).astype(np.float32) for _ in range(n)]
    parts = [rng.integers(0, 200, size=(clips, 2, 2), dtype=np.uint8) for _ in range(n)]
    both = {"frames": frames, "first": parts, "second": [part.astype(np.int16) for part in parts]}
    videos = [Video(f"set/{row}.mp4", Path(f"{row}.mp4"), scene=str(row)) for row in range(n)]
    return FeatureTable.from_arrays(videos, both), np.array([one.mean() for one in parts])


def first_or_drawn(length, rng):
    """The first three, or in training one of the others."""
    return TESTED if rng is None else rng.integers(3, length, size=1)


class Apart(nn.Module):
    """A line on the mean of each role's real rows; keeps what it saw."""

    def __init__(self, inputs, generator):
        super().__init__()
        self.lines = nn.ModuleDict(
            {role: linear(one.width, 1, generator=generator) for role, one in inputs.items()}
        )
        self.seen = []

    def forward(self, batch):
        self.seen.append((self.training, batch))
        scores = []
        for role, line in self.lines.items():
            real = batch.mask_of(role)
            scores.append((line(batch.series(role))[..., 0] * real).sum(dim=1) / real.sum(dim=1))
        return sum(scores)


@dataclass(kw_only=True, eq=False, repr=False)
class ByRole(SequenceHead):
    name: ClassVar[str] = "by-role"
    stackable: ClassVar[bool] = False
    choose: ClassVar[Mapping] = {}
    made: ClassVar[list] = []
    align: Align = "repeat"
    epochs: int = 3
    patience: int = 9
    batch_size: int = 6
    learning_rate: float = 1e-2
    weight_decay: float = 0.0
    standardise: bool = False

    @property
    def _own_rows(self):
        return ("frames", "first", "second")

    @property
    def _row_choice(self):
        return self.choose

    def _network(self, inputs, generator):
        network = Apart(inputs, generator)
        self.made.append(network)
        return network

    def _loss(self, predicted, target):
        return mse_loss(predicted, target)


def head_of(given=None, **parameters):
    chosen = {} if given is None else given
    kind = type("Own", (ByRole,), {"choose": chosen, "made": []})
    head = kind(**parameters)
    head.processes = 1
    return head


def batches(head, *, training):
    return [seen for one in head.made for was, seen in one.seen if was == training]


def test_a_role_beside_the_grid_has_all_its_rows_and_a_mask_of_its_own():
    table, mos = table_of()
    head = head_of()
    predicted = head.fit(table, mos).predict(table)

    for batch in batches(head, training=False):
        assert batch.values["first"].shape[1:] == (CLIPS, 2, 2)
        assert batch.values["first"].dtype == torch.uint8
        assert batch.mask_of("first").shape == batch.values["first"].shape[:2]
        assert batch.mask_of("frames").shape == batch.values["frames"].shape[:2]
        assert bool(batch.mask_of("second").all())
    alone = [head.predict(table.subset([row]))[0] for row in range(len(table))]
    np.testing.assert_allclose(alone, predicted, atol=1e-4)
    other = table.select(["second", "frames", "first"])  # another role is the grid
    assert np.isfinite(head_of().fit(other, mos).predict(other)).all()


def test_streams_say_what_memory_says():
    table, mos = table_of(n=80)
    expected = head_of().fit(table, mos)
    streamed = head_of(memory_gib=9_500 / 2**30)
    assert not streamed._series(table).fits(np.arange(len(table)))
    streamed.ensemble_, streamed.specs_ = expected.ensemble_, expected.specs_
    streamed.selection_ = expected.selection_

    np.testing.assert_allclose(streamed.predict(table), expected.predict(table), atol=1e-4)
    assert np.isfinite(head_of(memory_gib=9_500 / 2**30).fit(table, mos).predict(table)).all()


def test_roles_of_one_choice_see_the_same_rows():
    table, mos = table_of()
    head = head_of({"first": first_or_drawn, "second": first_or_drawn})
    head.fit(table, mos)

    drawn = batches(head, training=True)
    assert {batch.values["first"].shape[1] for batch in drawn} == {1}
    for batch in drawn:
        assert torch.equal(batch.values["first"].short(), batch.values["second"])
        assert batch.values["frames"].shape[1] > 1
    different = {
        row.numpy().tobytes() for batch in drawn for row in batch.values["first"].flatten(0, 1)
    }
    trained = {row.tobytes() for one in table.arrays("first") for row in one[3:]}
    assert different <= trained
    assert {batch.values["first"].shape[1] for batch in batches(head, training=False)} == {3}


def test_a_role_is_standardised_by_its_own_rows():
    table, mos = table_of()
    head = head_of(standardise=True, runs=1, selection="fixed")
    head.fit(table, mos)

    (scaling,) = head.ensemble_.scalings
    for role in table.roles:
        rows = np.concatenate(table.arrays(role)).reshape(-1, scaling.mean[role].shape[0])
        np.testing.assert_allclose(scaling.mean[role], rows.mean(axis=0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(scaling.deviation[role], rows.std(axis=0), rtol=1e-4)


def test_rows_that_stand_as_they_are_cannot_be_aligned():
    table, mos = table_of()
    head = head_of()
    head.align = {"first": "mean"}
    with pytest.raises(HeadError, match="first, whose rows this head takes as they are"):
        head.fit(table, mos)


# --- rows that are read as steps come


def banked_at(folder, *, n=24, side=64, stored=("uint8", "int16")):
    """As `table_of`, on disk, with larger clips."""
    store = FeatureStore.create(folder)
    rng = np.random.default_rng(0)
    clip = (side, side)
    shapes = {"frames": ((3,), "float32"), "first": (clip, stored[0]), "second": (clip, stored[1])}
    mos = rng.uniform(0, 1, n)
    for role, (shape, dtype) in shapes.items():
        spec = FeatureSpec(f"demo.{role}", shape, dtype, {})
        with store.writer(spec, provenance={}, durable=False) as writer:
            for number in range(n):
                count = 2 + number % 3 if role == "frames" else CLIPS
                values = rng.uniform(0, 9, (count, *shape)) + 90 * mos[number]
                feature = Feature(values.astype(dtype), np.arange(float(count)), np.arange(count))
                printed = Fingerprint(1, f"{number:064}")
                writer.add(f"{number}", feature, fingerprint=printed, probe={})
    videos = [Video(f"{number}", Path("x"), scene=f"{number}") for number in range(n)]
    return store.table(videos, {role: f"demo.{role}" for role in shapes}), mos


CHOICE = {"first": first_or_drawn, "second": first_or_drawn}


def test_rows_that_are_read_as_steps_come_teach_what_held_ones_teach(tmp_path):
    table, mos = banked_at(tmp_path / "bank")
    held = head_of(CHOICE).fit(table, mos)
    head = head_of(CHOICE, memory_gib=1e-4)
    assert not head._series(table).fits(np.arange(len(table)))
    head.fit(table, mos)

    for name, value in held.ensemble_.state.items():
        assert torch.equal(head.ensemble_.state[name], value)
    np.testing.assert_allclose(head.predict(table), held.predict(table), atol=1e-5)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the kernel counts no bytes here")
def test_a_step_reads_the_clip_that_it_sees_and_no_other(tmp_path):
    """Of compressed rows whole chunks are read, which are rows of half a MiB and more: pixels."""
    table, mos = banked_at(tmp_path / "bank", stored=("float16", "float16"))

    def bytes_read(epochs):
        head = head_of(CHOICE, memory_gib=1e-4, selection="fixed", epochs=epochs)
        table.trust()  # else the first read of a video is of all its rows
        before = read_bytes()
        head.fit(table, mos)
        return read_bytes() - before

    def read_bytes():
        return int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])

    of_clips = len(table) * 64 * 64 * (2 + 2)
    of_frames = int(table.lengths("frames").sum()) * 3 * 4
    per_epoch = (bytes_read(5) - bytes_read(1)) / 4
    assert of_clips + of_frames <= per_epoch <= 1.2 * (of_clips + of_frames)


def test_what_is_not_finite_or_has_changed_is_noticed_as_it_is_read(tmp_path):
    table, mos = banked_at(tmp_path / "bank")
    (file,) = (tmp_path / "bank").glob("demo.second@*/shards/*/values/c/*/*/*")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DamagedShardError):
        head_of(CHOICE, memory_gib=1e-4).fit(table, mos)
