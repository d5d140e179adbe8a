"""A bank is read where it lies: in memory, or on an S3 server."""

from pathlib import Path

import fsspec
import numpy as np
import pytest

from vqbank.store.bank import FeatureStore
from vqbank.store.errors import BankError
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, Video

VALUES = np.random.default_rng(0).integers(0, 200, (40, 3, 4)).astype("f4")
VIDEOS = [Video("a/b c.mp4", Path("x")), Video("ü", Path("y"))]


@pytest.fixture
def local(tmp_path):
    """A mapped feature and a compressed one."""
    store = FeatureStore.create(tmp_path / "bank")
    for name, dtype in [("clip.tokens", "float16"), ("residual.fragments", "uint8")]:
        spec = FeatureSpec(name, (3, 4), dtype, {})
        writer = store.writer(spec, provenance={})
        for video, values in zip(VIDEOS, [VALUES, VALUES[:7]], strict=True):
            feature = Feature(values, np.arange(len(values)) / 25, np.arange(len(values)))
            writer.add(video.id, feature, fingerprint=Fingerprint(0, ""), probe={})
        writer.commit()
    return store


def check(location):
    store = FeatureStore.at(location)
    assert [spec.name for spec in store.specs()] == ["clip.tokens", "residual.fragments"]
    for spec in store.specs():
        assert store.video_ids(spec) == sorted(video.id for video in VIDEOS)
        read = store.read(spec, "a/b c.mp4")
        np.testing.assert_array_equal(read.values, VALUES)
        np.testing.assert_array_equal(read.frame_index, np.arange(40))
    table = store.table(VIDEOS, {"x": "clip.tokens"})
    np.testing.assert_array_equal(table.read("x", [1, 0])[0], np.concatenate([VALUES[:7], VALUES]))


def test_a_bank_in_memory_is_read(local):
    memory = fsspec.filesystem("memory")
    memory.put(str(local.path), "/copied/bank", recursive=True)

    check("memory://copied/bank")


def test_a_bank_on_s3_is_read(local, monkeypatch):
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    try:
        s3 = fsspec.filesystem("s3")
        s3.mkdir("banks")
        s3.put(str(local.path), "banks/konvid", recursive=True)

        check("s3://banks/konvid")
    finally:
        server.stop()


def test_what_is_no_bank_is_refused_there_too():
    with pytest.raises(BankError, match="is no bank"):
        FeatureStore.at("memory://nowhere")
