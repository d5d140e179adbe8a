"""Fetching published weights: only where a person asks for it, resumed where it broke off."""

import hashlib
import http.client
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from extractors.weights import (
    HUB,
    INDEXES,
    WeightFile,
    record_sha256,
    remember_sha256,
    sha256_of,
    shard_names,
)
from store.errors import WeightsError, in_words, naming

_CONFIGURATION = "config.json"  # what a repository of shards says of its network
_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 60
_ATTEMPTS = 5  # in a row that bring nothing


class Progress(NamedTuple):
    """How far a file has come."""

    path: Path
    """Where it will lie."""
    done: int
    """In bytes."""
    total: int | None
    """In bytes; None where the server does not say it."""


class _NotThereError(WeightsError):
    """The server has no such file."""


class _BrokenOffError(Exception):
    """The connection failed; trying again may help."""


def fetch(file: WeightFile, folder: Path) -> Iterator[Progress]:
    """Download a published file, or all shards of a repository, as `folder / file.save_as`.

    A file that is there already stays.  What has come of a transfer stays too, is resumed if the
    server still has the same file, and takes its name only when it is whole.  HF_ENDPOINT names a
    mirror of Hugging Face, as for its own libraries.

    Args:
        file: what to fetch.
        folder: where published files lie.

    Yields:
        How far the current file has come.

    Raises:
        WeightsError: if the server has no such file, the connection failed for good, or the sha256
            is not the published one.
        OSError: if the disk cannot be written.
    """
    target = folder / file.save_as
    if not file.is_folder:
        yield from _fetch_file(file.url, target, file.sha256)
        return
    base = f"{file.url}/resolve/main"
    # The index first: without it a folder of some shards would look like one of all.
    for name in INDEXES:
        try:
            yield from _fetch_file(f"{base}/{name}", target / name)
            break
        except _NotThereError:
            continue
    else:
        raise WeightsError(f"{file.url} has no index of shards, neither {' nor '.join(INDEXES)}")
    for shard in (_CONFIGURATION, *shard_names(target / name)):
        yield from _fetch_file(f"{base}/{shard}", target / shard)
    if file.sha256 is not None and not sha256_of(target).startswith(file.sha256):
        raise WeightsError(
            f"{target} is not what was published at {file.url} (sha256 {sha256_of(target)}, "
            f"published {file.sha256}); delete the folder and fetch it again"
        )


def _fetch_file(url: str, target: Path, sha256: str | None = None) -> Iterator[Progress]:
    if target.is_file():
        if sha256 is not None and not sha256_of(target).startswith(sha256):
            raise WeightsError(
                f"{target} is not the file published at {url} (sha256 {sha256_of(target)}, "
                f"published {sha256}); delete it and fetch it again"
            )
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    for done, total in _transfer(url, part, same=sha256 is not None):
        yield Progress(target, done, total)
    with part.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if sha256 is not None and not digest.startswith(sha256):
        _discard(part)
        raise WeightsError(
            f"{url} gave a file with the sha256 {digest}, published is {sha256}; it was thrown "
            "away.  Fetch it again; if that gives the same, the file there is another one now"
        )
    part.replace(target)
    _discard(part)
    record_sha256(target, digest)
    remember_sha256(target, digest)


def _transfer(url: str, part: Path, *, same: bool) -> Iterator[tuple[int, int | None]]:
    """Bring `part` to its full length, again and again while that brings anything."""
    idle = 0
    while True:
        before = _length(part)
        try:
            yield from _attempt(url, part, same=same)
            return
        except _BrokenOffError as error:
            idle = 0 if _length(part) > before else idle + 1
            if idle == _ATTEMPTS:
                raise WeightsError(
                    f"{url}: {error}; {_length(part)} bytes are kept, fetch it again to go on"
                ) from error


def _attempt(url: str, part: Path, *, same: bool) -> Iterator[tuple[int, int | None]]:
    """One connection.

    Args:
        url: of the file.
        part: what has come of it.
        same: whether the server's file is known to be the one that `part` was begun with, because
            a sha256 will tell in the end.
    """
    start = _length(part)
    origin = _origin(part)
    headers = {"User-Agent": "vqbank"}
    if start and origin.get("url") == url and (same or origin["validator"]):
        headers["Range"] = f"bytes={start}-"
        if origin["validator"]:
            headers["If-Range"] = origin["validator"]  # else the server sends the whole new file
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(_mirrored(url), headers=headers), timeout=_TIMEOUT_SECONDS
        )
    except urllib.error.HTTPError as error:
        with error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                whole = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
                if whole is not None and int(whole[1]) == start:
                    return  # killed after the last byte
                _discard(part)  # longer than the file, so of another one
        raise _refusal(url, error) from error
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOffError(f"no answer ({in_words(error)})") from error
    with response:
        if response.headers.get_content_type() == "text/html":
            raise WeightsError(
                f"{url} gives a web page and no file: open it in a browser, and save the file as "
                f"{part.with_name(part.name.removesuffix('.part'))}"
            )
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None else None
        with naming(part), part.open("r+b" if start else "wb") as opened:
            if not start:
                _write_origin(part, url, response.headers)
            done = opened.seek(start)
            while chunk := _read(response):
                done += opened.write(chunk)
                yield done, total
            opened.flush()
            os.fsync(opened.fileno())
    if total is not None and done != total:
        raise _BrokenOffError(f"the connection broke off after {done} of {total} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOffError(f"the connection broke off ({in_words(error)})") from error


def _refusal(url: str, error: urllib.error.HTTPError) -> Exception:
    said = f"HTTP {error.code} {error.reason}"
    if error.code in (404, 410):
        return _NotThereError(f"{url} is not there ({said}); see what its publisher says")
    if error.code in (416, 429) or error.code >= 500:
        return _BrokenOffError(said)
    return WeightsError(f"{url} is refused ({said}); fetch the file by hand, in a browser")


def _mirrored(url: str) -> str:
    mirror = os.environ.get("HF_ENDPOINT")
    if not mirror or not url.startswith(HUB):
        return url
    return f"{mirror.rstrip('/')}/{url.removeprefix(HUB)}"


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _origin_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _write_origin(part: Path, url: str, headers: Mapping[str, str]) -> None:
    etag = headers.get("ETag") or ""
    # A weak tag means equal content, not equal bytes.
    validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
    with naming(_origin_file(part)):
        _origin_file(part).write_text(json.dumps({"url": url, "validator": validator}))


def _origin(part: Path) -> dict[str, Any]:
    """The url that `part` comes from, and what tells that its file is still the same."""
    try:
        return {"url": "", "validator": None, **json.loads(_origin_file(part).read_text())}
    except (OSError, ValueError, TypeError):
        return {"url": "", "validator": None}  # absent or damaged: begin again


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _origin_file(part).unlink(missing_ok=True)
