"""Fetching weights from a server that breaks off, changes its mind, or has something else."""

import functools
import hashlib
import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from vqbank.extractors import EXTRACTORS
from vqbank.extractors.base import WeightedExtractor
from vqbank.extractors.download import Progress, fetch
from vqbank.extractors.loading import load_state_dict
from vqbank.extractors.weights import WeightFile, find_weights, locate, sha256_of
from vqbank.pipelines.commands.cli import app
from vqbank.store.errors import WeightsError

CONTENT = bytes(range(256)) * 20_000  # 5 MB: several pieces
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """What it has, and how it behaves; one request after the other is noted."""

    def __init__(self):
        self.files = {"/net.pth": CONTENT}
        self.requests = []
        self.etags = True
        self.ranges = True
        self.breaks_after = []
        """Bytes after which the next connections break off."""
        self.answers = []
        """Codes that the next requests get in place of a file."""
        self.kind = "application/octet-stream"
        self.ways = []
        """In which the next requests are answered, where it is not the usual one."""

    def handle(self, request):
        self.requests.append((request.path, request.headers.get("Range")))
        way = self.ways.pop(0) if self.ways else None
        if way is not None:
            return way(request)
        if self.answers:
            return request.send_error(self.answers.pop(0))
        if request.path not in self.files:
            return request.send_error(404)
        content = self.files[request.path]
        etag = f'"{hashlib.sha256(content).hexdigest()[:8]}"'
        start = 0
        asked = request.headers.get("Range")
        if asked and self.ranges and request.headers.get("If-Range", etag) == etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(content)}")
            request.end_headers()
            return None
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(content) - start))
        request.send_header("Content-Type", self.kind)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.etags:
            request.send_header("ETag", etag)
        request.end_headers()
        end = self.breaks_after.pop(0) if self.breaks_after else len(content)
        request.wfile.write(content[start : start + end])
        return None


@pytest.fixture
def server(monkeypatch):
    one = Server()

    class Handler(BaseHTTPRequestHandler):
        do_GET = functools.partialmethod(lambda self: one.handle(self))

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        one.url = f"http://127.0.0.1:{http.server_port}"
        monkeypatch.setenv("HF_ENDPOINT", one.url)
        yield one
        http.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """VQBANK_WEIGHTS, and caches in which nothing is found."""
    for variable, name in {"VQBANK_CACHE": "cache", "TORCH_HOME": "torch", "HOME": "home"}.items():
        monkeypatch.setenv(variable, str(tmp_path / name))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "weights").mkdir()
    monkeypatch.setenv("VQBANK_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


def weights_at(url, **further):
    return WeightFile(
        choice="published",
        url=url,
        save_as="kept.pth",
        publisher="Example",
        licence="MIT",
        trained_on=("Pictures",),
        **further,
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_checked_and_then_found(server, folder):
    file = weights_at(f"{server.url}/net.pth", sha256=SHA256)
    assert locate(file) is None

    steps = list(fetch(file, folder))

    assert steps[-1] == Progress(folder / "kept.pth", len(CONTENT), len(CONTENT))
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert (folder / "kept.pth").read_bytes() == CONTENT
    assert find_weights("published", file, extractor="net") == folder / "kept.pth"
    assert names(folder) == ["SHA256SUMS", "kept.pth"]


def test_what_is_there_is_not_fetched_again(server, folder):
    file = weights_at(f"{server.url}/net.pth", sha256=SHA256)
    list(fetch(file, folder))
    assert list(fetch(file, folder)) == []
    assert len(server.requests) == 1


@pytest.mark.parametrize("known", [{"sha256": SHA256}, {"sha256_begins": SHA256[:8]}, {}])
def test_a_transfer_that_broke_off_goes_on_where_it_was(server, folder, known):
    server.breaks_after = [2_000_000, 1_000_000]
    list(fetch(weights_at(f"{server.url}/net.pth", **known), folder))
    asked = [asked for _, asked in server.requests]
    assert asked == [None, "bytes=2000000-", "bytes=3000000-"]
    assert (folder / "kept.pth").read_bytes() == CONTENT


def test_a_killed_fetch_goes_on_at_the_next(server, folder):
    file = weights_at(f"{server.url}/net.pth")
    steps = fetch(file, folder)
    next(steps)
    steps.close()
    part = folder / "kept.pth.part"
    begun = part.stat().st_size
    assert 0 < begun < len(CONTENT)
    assert locate(file) is None
    list(fetch(file, folder))
    assert server.requests[1] == ("/net.pth", f"bytes={begun}-")
    assert (folder / "kept.pth").read_bytes() == CONTENT


def test_a_fetch_killed_after_the_last_byte_only_takes_its_name(server, folder):
    steps = fetch(weights_at(f"{server.url}/net.pth"), folder)
    while next(steps).done < len(CONTENT):
        pass
    steps.close()
    list(fetch(weights_at(f"{server.url}/net.pth"), folder))
    assert server.requests[1] == ("/net.pth", f"bytes={len(CONTENT)}-")
    assert (folder / "kept.pth").read_bytes() == CONTENT


def test_what_is_longer_than_the_file_is_thrown_away(server, folder):
    """A server that ignores If-Range."""
    server.etags = False
    file = weights_at(f"{server.url}/net.pth", sha256=SHA256)
    server.files["/net.pth"] = CONTENT + CONTENT
    steps = fetch(file, folder)
    while next(steps).done <= len(CONTENT):
        pass
    steps.close()
    server.files["/net.pth"] = CONTENT
    list(fetch(file, folder))
    assert (folder / "kept.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("etags", [True, False])
def test_two_versions_of_a_file_are_never_joined(server, folder, etags):
    server.etags = etags
    server.breaks_after = [2_000_000] + [0] * 5
    with pytest.raises(WeightsError, match=r"0 of|2000000 of"):
        list(fetch(weights_at(f"{server.url}/net.pth"), folder))
    server.files["/net.pth"] = CONTENT[::-1]
    list(fetch(weights_at(f"{server.url}/net.pth"), folder))
    assert (folder / "kept.pth").read_bytes() == CONTENT[::-1]


def test_another_address_begins_again(server, folder):
    server.files["/other.pth"] = CONTENT[::-1]
    steps = fetch(weights_at(f"{server.url}/net.pth", sha256=SHA256), folder)
    next(steps)
    steps.close()
    list(fetch(weights_at(f"{server.url}/other.pth"), folder))
    assert server.requests[-1] == ("/other.pth", None)
    assert (folder / "kept.pth").read_bytes() == CONTENT[::-1]


def test_a_server_without_ranges_sends_the_file_again(server, folder):
    server.ranges = False
    server.breaks_after = [2_000_000]
    list(fetch(weights_at(f"{server.url}/net.pth"), folder))
    assert (folder / "kept.pth").read_bytes() == CONTENT


OTHER = CONTENT[::-1]


def an_answer(content_range, *, etag=None, length=None, content=OTHER[2_000_000:]):
    """A part that nobody asked for, as 206."""

    def answer(request):
        request.send_response(206)
        request.send_header("Content-Type", "application/octet-stream")
        request.send_header("Content-Length", str(len(content) if length is None else length))
        if content_range is not None:
            request.send_header("Content-Range", content_range)
        if etag is not None:
            request.send_header("ETag", etag)
        request.end_headers()
        request.wfile.write(content)

    return answer


@pytest.mark.parametrize("known", [{"sha256": SHA256}, {}])
@pytest.mark.parametrize(
    "answer",
    [
        an_answer("bytes 0-5119999/5120000", content=CONTENT),
        an_answer("bytes 1999999-5119999/5120000", content=CONTENT[1_999_999:]),
        an_answer("bytes 2000000-2999999/5120000", content=CONTENT[2_000_000:3_000_000]),
        an_answer("bytes 2000000-5119999/5120000", length=10, content=b"0123456789"),
        an_answer("bytes 2000000-6119999/6120000", content=bytes(4_120_000)),
        an_answer("bytes 2000000-5119999/5120000", etag='"another"'),
        an_answer("bytes 2000000-5119999/*"),
        an_answer("pieces 1-2/3"),
        an_answer(None),
    ],
)
def test_a_part_that_was_not_asked_for_is_not_joined(server, folder, answer, known):
    """The whole is asked for instead, and from then on."""
    server.breaks_after = [2_000_000]
    server.ways = [None, answer]

    list(fetch(weights_at(f"{server.url}/net.pth", **known), folder))

    assert [asked for _, asked in server.requests] == [None, "bytes=2000000-", None]
    assert (folder / "kept.pth").read_bytes() == CONTENT


def test_a_part_in_place_of_the_whole_is_refused(server, folder):
    server.ways = [an_answer("bytes 0-5119999/5120000", content=CONTENT)] * 6
    with pytest.raises(WeightsError, match="sent a part, but the whole was asked for"):
        list(fetch(weights_at(f"{server.url}/net.pth"), folder))
    assert names(folder) == []


def test_a_server_that_always_sends_other_parts_is_given_up(server, folder):
    server.breaks_after = [2_000_000] * 20
    server.ways = [None, an_answer("bytes 5-9/10", content=b"12345")] * 20
    with pytest.raises(WeightsError, match="bytes are kept"):
        list(fetch(weights_at(f"{server.url}/net.pth"), folder))


def test_a_connection_that_brings_nothing_is_given_up_with_what_came_kept(server, folder):
    server.breaks_after = [2_000_000] + [0] * 5
    with pytest.raises(WeightsError, match=r"broke off after 2000000 of 5120000 bytes; 2000000 b"):
        list(fetch(weights_at(f"{server.url}/net.pth"), folder))
    assert len(server.requests) == 6
    assert (folder / "kept.pth.part").stat().st_size == 2_000_000


def test_a_busy_server_is_asked_again(server, folder):
    server.answers = [503, 429]
    list(fetch(weights_at(f"{server.url}/net.pth"), folder))
    assert (folder / "kept.pth").exists()


def test_a_wrong_hash_leaves_nothing(server, folder):
    file = weights_at(f"{server.url}/net.pth", sha256="0" * 64)
    with pytest.raises(
        WeightsError, match=f"gave a file with the sha256 {SHA256}, published is 00"
    ):
        list(fetch(file, folder))
    assert names(folder) == []


def test_another_file_in_the_place_is_named_and_kept(server, folder):
    (folder / "kept.pth").write_bytes(b"mine")
    with pytest.raises(WeightsError, match=r"kept\.pth is not the file published at"):
        list(fetch(weights_at(f"{server.url}/net.pth", sha256=SHA256), folder))
    assert (folder / "kept.pth").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("code", "message"),
    [(404, "is not there .HTTP 404"), (401, "is refused .HTTP 401.*by hand"), (403, "by hand")],
)
def test_a_refusal_says_what_to_do(server, folder, code, message):
    server.answers = [code]
    with pytest.raises(WeightsError, match=message):
        list(fetch(weights_at(f"{server.url}/net.pth"), folder))
    assert len(server.requests) == 1


def test_a_web_page_is_no_weight_file(server, folder):
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(
        WeightsError, match=r"a web page and no file.*save the file as .*kept\.pth$"
    ):
        list(fetch(weights_at(f"{server.url}/net.pth"), folder))
    assert names(folder) == []


def test_no_server_is_an_error(folder):
    with pytest.raises(WeightsError, match=r"127\.0\.0\.1:9/net\.pth: no answer"):
        list(fetch(weights_at("http://127.0.0.1:9/net.pth"), folder))


def test_a_sha256_that_is_not_known_is_recorded_and_held_to(server, folder):
    file = weights_at(f"{server.url}/net.pth")
    list(fetch(file, folder))
    assert (folder / "SHA256SUMS").read_text() == f"{SHA256}  kept.pth\n"
    (folder / "kept.pth").write_bytes(CONTENT[::-1])
    with pytest.raises(WeightsError, match="is not the file that was fetched"):
        find_weights("published", file, extractor="net")


# Shards.


@pytest.fixture
def repository(server, tmp_path):
    """Two shards on the hub, whose mirror the server is."""
    base = "/owner/large/resolve/main"
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4).half()}
    for number, (key, tensor) in enumerate(tensors.items(), 1):
        path = tmp_path / "shard"
        safetensors.torch.save_file({key: tensor}, path)
        server.files[f"{base}/model-{number}-of-2.safetensors"] = path.read_bytes()
    places = {key: f"model-{n}-of-2.safetensors" for n, key in enumerate(tensors, 1)}
    server.files[f"{base}/model.safetensors.index.json"] = json.dumps(
        {"metadata": {}, "weight_map": places}
    ).encode()
    server.files[f"{base}/config.json"] = b"{}"
    return weights_at("https://huggingface.co/owner/large"), tensors


def test_a_repository_of_shards_is_fetched_whole(repository, folder):
    file, tensors = repository
    list(fetch(replace(file, save_as="large"), folder))
    found = find_weights("published", replace(file, save_as="large"), extractor="net")
    assert found == folder / "large"
    assert names(found) == [
        "SHA256SUMS",
        "config.json",
        "model-1-of-2.safetensors",
        "model-2-of-2.safetensors",
        "model.safetensors.index.json",
    ]
    loaded = load_state_dict(found, file)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[key], tensors[key]) for key in tensors)


def test_half_a_repository_is_not_taken_for_all_and_is_completed(repository, server, folder):
    file, _ = repository
    second = "/owner/large/resolve/main/model-2-of-2.safetensors"
    content = server.files.pop(second)
    with pytest.raises(WeightsError, match=r"model-2-of-2\.safetensors is not there"):
        list(fetch(file, folder))
    assert locate(file) is None
    with pytest.raises(WeightsError, match=r"names shards that are not there: model-2-of-2"):
        find_weights("published", file, extractor="net")
    server.files[second] = content
    server.requests.clear()
    list(fetch(file, folder))
    assert [path for path, _ in server.requests] == [second]
    assert locate(file) == folder / "kept.pth"


def test_an_older_repository_has_another_index(repository, server, folder):
    file, tensors = repository
    base = "/owner/large/resolve/main"
    torch.save(tensors, folder / "bin")
    server.files = {
        f"{base}/config.json": b"{}",
        f"{base}/pytorch_model-1.bin": (folder / "bin").read_bytes(),
        f"{base}/pytorch_model.bin.index.json": json.dumps(
            {"weight_map": dict.fromkeys(tensors, "pytorch_model-1.bin")}
        ).encode(),
    }
    list(fetch(file, folder))
    assert load_state_dict(folder / "kept.pth", file).keys() == tensors.keys()
    assert sha256_of(folder / "kept.pth") == sha256_of(folder / "bin")  # one shard is its file


def test_a_repository_without_an_index_is_an_error(server, folder):
    with pytest.raises(WeightsError, match=r"has no index of shards, neither model\.safetensors"):
        list(fetch(weights_at("https://huggingface.co/owner/none"), folder))


# The commands.


def run(*arguments):
    return CliRunner().invoke(app, ["weights", *arguments], catch_exceptions=False)


def with_weights():
    return {name for name, kind in EXTRACTORS.items() if issubclass(kind, WeightedExtractor)}


def test_the_list_names_every_extractor_with_licence_and_training_data(folder):
    (folder / "SLOWFAST_8x8_R50.pyth").write_bytes(CONTENT)
    listed = run().stdout
    rows = [line for line in listed.splitlines() if line.startswith("│")]
    assert {row.split()[1] for row in rows} >= with_weights()
    (slowfast,) = [row for row in rows if row.split()[1] == "slowfast"]
    for part in ("kinetics400", "Apache-2.0", "Kinetics-400", "5 MB", str(folder)):
        assert part in slowfast
    (clip,) = [row for row in rows if row.split()[1] == "clip"]
    assert clip.rstrip(" │").endswith("no")


def test_what_is_missing_is_exported_for_another_machine(folder):
    (folder / "SLOWFAST_8x8_R50.pyth").write_bytes(CONTENT)
    exported = run("--missing", "--urls").stdout.splitlines()
    lines = [line.split("\t") for line in exported if not line.startswith("#")]
    by_hand = [line for line in exported if line.startswith("# by hand: https://")]
    assert {line.split("\t")[1] for line in by_hand} >= {"LIQE.pt", "rqvqa_kvq_v0.pth"}
    assert len(lines) + len(by_hand) == len(exported)
    assert all(len(line) == 3 for line in lines)
    saved = [name for _, name, _ in lines]
    assert "vit_base_patch32_clip_224.openai.safetensors" in saved
    assert "SLOWFAST_8x8_R50.pyth" not in saved
    assert any(name == "SLOWFAST_8x8_R50.pyth" for name in run("--urls").stdout.split())
    for url, name, sha256 in lines:
        assert url.startswith("https://")
        assert Path(name).name == name.rstrip("/")
        assert sha256 == "-" or int(sha256, 16)


def test_a_choice_is_fetched_by_name(server, folder, monkeypatch):
    """Clip's usual weights are on the hub, whose mirror the server is."""
    (file,) = [file for file in EXTRACTORS["clip"].files if file.choice == "openai"]
    monkeypatch.setattr(EXTRACTORS["clip"], "files", (replace(file, sha256=SHA256),))
    server.files[file.url.removeprefix("https://huggingface.co")] = CONTENT
    result = run("fetch", "clip=openai")
    assert result.exit_code == 0, result.output
    assert str(folder / file.save_as) in result.stdout
    assert (folder / file.save_as).read_bytes() == CONTENT
    again = run("fetch", "clip")
    assert again.exit_code == 0
    assert len(server.requests) == 1


@pytest.mark.parametrize("name", ["klip", "nss", "clip=openia"])
def test_an_unknown_name_is_answered_before_anything_is_fetched(server, name):
    result = CliRunner().invoke(app, ["weights", "fetch", "clip", name])
    assert "unknown" in str(result.exception)
    assert server.requests == []
