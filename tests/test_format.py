"""A bank of format version 1, written once and kept in tests/data, is readable for ever."""

from pathlib import Path

import numpy as np
import pytest

from vqbank.store.bank import FeatureStore
from vqbank.store.commits import mark_bad
from vqbank.store.errors import MissingFeatureError
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, SideSpec, Video
from vqbank.store.verify import verify

VERSION_1 = Path(__file__).parent / "data" / "bank-1"

VECTORS = FeatureSpec("demo.vectors", (4,), "float16", {"extractor": "demo", "version": 1})
STATES = FeatureSpec("demo.states", (2, 3), "bfloat16", {"extractor": "demo", "version": 1})
PICTURES = FeatureSpec(
    "demo.pictures",
    (3, 8, 8),
    "uint8",
    {"extractor": "demo", "version": 1},
    side=(SideSpec("offsets", (2,), "int16"),),
    publisher="nobody",
    licence="CC0-1.0",
    trained_on=("nothing",),
)
IDS = ("set/a.mp4", "set/b c.mp4", "set/ä.mp4")


def feature(spec, place, generation=0):
    """Numbers that every dtype of the bank holds exactly."""
    rows = place + 2
    count = rows * int(np.prod(spec.shape))
    values = (np.arange(count) * 7 + place * 31 + generation * 13) % 128
    side = {side.name: np.arange(rows * 2).reshape(rows, 2) - place for side in spec.side}
    return Feature(
        values.reshape(rows, *spec.shape).astype("u1" if spec.stored_dtype == "uint8" else "f4"),
        pts_seconds=np.arange(rows) / 8 + place,
        frame_index=np.arange(rows, dtype=np.int64) * 3 + place,
        side=side,
    )


def write(path):
    """How tests/data/bank-1 was made: `write(VERSION_1)`.  Never again: that is its point."""
    store = FeatureStore.create(path)
    for spec in (VECTORS, STATES, PICTURES):
        writer = store.writer(spec, provenance={"host": "a host"})
        for place, video in enumerate(IDS):
            writer.add(
                video,
                feature(spec, place),
                fingerprint=Fingerprint(1000 + place, f"{place:064x}"),
                probe={"width": 64, "height": 48},
            )
        writer.commit()
    store.refresh()
    (shard, place) = store.find(VECTORS, IDS[:1])[0]
    writer = store.writer(VECTORS, provenance={"host": "another"})
    writer.add(IDS[0], feature(VECTORS, 0, 1), fingerprint=Fingerprint(1000, f"{0:064x}"), probe={})
    writer.commit(supersedes=[{"shard": shard.id, "videos": [IDS[0]]}])
    store.refresh()
    (shard, place) = store.find(STATES, IDS[1:2])[0]
    mark_bad(path / STATES.key, shard.id, [IDS[1]])


def test_a_bank_of_version_1_is_read_to_the_last_byte():
    store = FeatureStore(VERSION_1)

    assert {spec.key for spec in store.specs()} == {VECTORS.key, STATES.key, PICTURES.key}
    for spec in (VECTORS, STATES, PICTURES):
        (stored,) = (other for other in store.specs() if other.key == spec.key)
        assert stored == spec
        for place, video in enumerate(IDS):
            if (spec, video) == (STATES, IDS[1]):
                continue
            newer = (spec, video) == (VECTORS, IDS[0])
            expected, read = feature(spec, place, int(newer)), store.read(spec, video)
            np.testing.assert_array_equal(read.values, expected.values)
            np.testing.assert_array_equal(read.pts_seconds, expected.pts_seconds)
            np.testing.assert_array_equal(read.frame_index, expected.frame_index)
            for side in spec.side:
                np.testing.assert_array_equal(read.side[side.name], expected.side[side.name])
            record = store.video_record(spec, video)
            assert record.fingerprint == Fingerprint(1000 + place, f"{place:064x}")
            assert record.probe == ({} if newer else {"width": 64, "height": 48})
    assert list(verify(store)) == []


def test_what_version_1_marked_as_bad_is_still_missing():
    store = FeatureStore(VERSION_1)
    videos = [Video(id=video, path=Path(video)) for video in IDS]

    assert [video.id for video in store.missing(STATES, videos)] == [IDS[1]]
    with pytest.raises(MissingFeatureError):
        store.read(STATES, IDS[1])


def test_version_1_is_still_what_is_written(tmp_path):
    """The files of the old bank, but for random names, times and what follows from them."""
    write(tmp_path / "bank")
    for name in ("bank.json", *(f"{spec.key}/spec.json" for spec in (VECTORS, STATES, PICTURES))):
        assert (tmp_path / "bank" / name).read_bytes() == (VERSION_1 / name).read_bytes()
    assert shape_of(tmp_path / "bank") == shape_of(VERSION_1)


def shape_of(bank):
    """Names, without those that are random, and contents of the arrays' files."""
    found = []
    for path in bank.glob("*/shards/*/**/*"):
        if path.is_file():
            key, _, _, *rest = path.relative_to(bank).parts
            name = "/".join(rest)
            found.append((key, name, b"" if rest == ["zarr.json"] else path.read_bytes()))
    return sorted(found)
