"""Whatever is killed, and whenever: the same command again ends with the same bank."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from extractors import make_extractor
from extractors import video as decoding
from pipelines.extract import Extraction
from pipelines.manifest import read_videos
from store.bank import FeatureStore
from store.compare import diff
from store.shard import committed_shards

EXTRACTORS = {"motion": {}, "clip": {"weights": "random-tiny"}}

# Imports once and forks a client for every order, so that most of its life can be killed.
ZYGOTE = """
import json, os, sys
from pathlib import Path
import torch
from extractors import make_extractor
import open_clip
from pipelines import extract
from pipelines.manifest import read_videos
from store.bank import FeatureStore
extract.FLUSH_BYTES = 1  # every video is committed at once
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    client = os.fork()
    if client == 0:
        videos = read_videos(Path(order["videos"]))
        names = [make_extractor(name, **given) for name, given in order["extractors"].items()]
        store = FeatureStore.create(Path(order["bank"]))
        run = extract.Extraction(
            videos, names, store, decoder="pyav", device=torch.device("cpu"), threads=1
        )
        for _ in run.run():
            pass
        os._exit(0)
    print(client, flush=True)
    print(os.waitpid(client, 0)[1], flush=True)
"""


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    for n in range(8):
        rng = np.random.default_rng(n)
        texture = rng.integers(0, 256, (48, 64 + 30, 3), dtype=np.uint8)
        pictures = (texture[:, i : i + 64] for i in range(20 + n))
        decoding.encode(folder / f"{n}.mp4", pictures, rate=10, crf=30)
    return folder


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory):
    """The bank of a run that nobody disturbed."""
    store = FeatureStore.create(tmp_path_factory.mktemp("banks") / "whole")
    names = [make_extractor(name, **given) for name, given in EXTRACTORS.items()]
    run = Extraction(read_videos(videos), names, store, decoder="pyav", device=torch.device("cpu"))
    assert not any(outcome.failures for outcome in run.run())
    return store


def children_of(process):
    listed = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in listed]


class Clients:
    """Orders clients from a zygote, one at a time."""

    def __init__(self, videos):
        self._order = {"videos": str(videos), "extractors": EXTRACTORS}
        self._zygote = subprocess.Popen(
            [sys.executable, "-c", ZYGOTE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._zygote.stdout.readline() == "ready\n"

    def start(self, bank):
        """The process id of a new client."""
        self._zygote.stdin.write(json.dumps({**self._order, "bank": str(bank)}) + "\n")
        self._zygote.stdin.flush()
        return int(self._zygote.stdout.readline())

    def end(self):
        """The exit status of the client."""
        return int(self._zygote.stdout.readline())

    def run(self, bank):
        """Undisturbed."""
        self.start(bank)
        return self.end()

    def close(self):
        self._zygote.stdin.close()
        self._zygote.wait()
        self._zygote.stdout.close()


def alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def committed_rows(store):
    """How many videos' rows all commits of a bank hold together, and how many it has."""
    shards = [s for spec in store.specs() for s in committed_shards(store.path / spec.key, spec)]
    return sum(shard.record["videos"] for shard in shards), sum(
        len(store.video_ids(spec)) for spec in store.specs()
    )


def chaos(videos, whole, folder, capsys, *, kills, seed):
    """Kill clients, and decoders under them, in bank after bank; each must end like the whole."""
    rng = np.random.default_rng(seed)
    clients = Clients(videos)
    begun = time.monotonic()
    assert clients.run(folder / "first") == 0
    seconds = time.monotonic() - begun
    killed = {"clients": 0, "decoders": 0}
    banks = 0
    while sum(killed.values()) < kills:
        banks += 1
        bank = folder / str(banks)
        complete = False
        while not complete:
            client = clients.start(bank)
            victim = "nobody"
            if sum(killed.values()) < kills:
                time.sleep(rng.uniform(0, seconds))
                decoders = children_of(client) if alive(client) else []
                if decoders and rng.random() < 0.3:
                    victim = "decoders"
                    os.kill(decoders[0], signal.SIGKILL)
                elif alive(client):
                    victim = "clients"
                    os.kill(client, signal.SIGKILL)
            status = clients.end()
            if victim != "nobody":
                killed[victim] += 1
            complete = status == 0 and victim != "decoders"
        store = FeatureStore(bank)
        assert list(diff(whole, store)) == []
        rows, unique = committed_rows(store)
        assert rows == unique  # nothing that was committed was computed again
    clients.close()
    with capsys.disabled():
        sys.stdout.write(f"\nchaos: {killed} killed in {banks} banks, 0 differ, 0 computed twice\n")


def test_a_bank_is_the_same_whoever_is_killed(videos, whole, tmp_path, capsys):
    chaos(videos, whole, tmp_path, capsys, kills=10, seed=4)


@pytest.mark.soak
def test_a_bank_is_the_same_after_fifty_kills(videos, whole, tmp_path, capsys):
    chaos(videos, whole, tmp_path, capsys, kills=60, seed=5)
