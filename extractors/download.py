"""Fetching published weights: only where a person asks for it, resumed where it broke off."""

import hashlib
import http.client
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from email.message import Message
from pathlib import Path
from typing import Any, NamedTuple

from vqbank.extractors.weights import (
    HUB,
    INDEXES,
    WeightFile,
    record_sha256,
    remember_sha256,
    sha256_of,
    shard_names,
)
from vqbank.store.errors import WeightsError, in_words, naming
from vqbank.store.files import put_in_place

_CONFIGURATION = "config.json"  # what a repository of shards says of its network
_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 60
_ATTEMPTS = 5  # in a row that bring nothing


class Progress(NamedTuple):
    """How far a file has come."""

    path: Path
    """Where the file will lie when it is whole."""
    done: int
    """Bytes that have come."""
    total: int | None
    """Bytes of the whole file; None where the server does not say it."""


class _NotThereError(WeightsError):
    """The server has no such file."""


class _BrokenOffError(Exception):
    """The connection failed; trying again may help."""


class _OtherRangeError(_BrokenOffError):
    """The server sent another part than was asked for, or one of another file."""


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
        yield from _fetch_file(file.url, target, file)
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
    if file.published is not None and not file.may_be(sha256_of(target)):
        raise WeightsError(
            f"{target} is not what was published at {file.url} (sha256 {sha256_of(target)}, "
            f"published {file.published}); delete the folder and fetch it again"
        )


def _fetch_file(url: str, target: Path, file: WeightFile | None = None) -> Iterator[Progress]:
    """One file; `file` says what is published of it, where it is not one of several."""
    published = file.published if file is not None else None
    if target.is_file():
        if file is not None and published is not None and not file.may_be(sha256_of(target)):
            raise WeightsError(
                f"{target} is not the file published at {url} (sha256 {sha256_of(target)}, "
                f"published {published}); delete it and fetch it again"
            )
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    for done, total in _transfer(url, part, same=published is not None):
        yield Progress(target, done, total)
    with part.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if file is not None and not file.may_be(digest):
        _discard(part)
        raise WeightsError(
            f"{url} gave a file with the sha256 {digest}, published is {published}; it was thrown "
            "away.  Fetch it again; if that gives the same, the file there is another one now"
        )
    put_in_place(part, target)
    _discard(part)
    record_sha256(target, digest)
    remember_sha256(target, digest)


def _transfer(url: str, part: Path, *, same: bool) -> Iterator[tuple[int, int | None]]:
    """Bring `part` to its full length, again and again while that brings anything."""
    idle, in_parts = 0, True
    while True:
        before = _length(part)
        try:
            yield from _attempt(url, part, same=same, in_parts=in_parts)
            return
        except _BrokenOffError as error:
            in_parts &= not isinstance(error, _OtherRangeError)
            idle = 0 if _length(part) > before else idle + 1
            if idle == _ATTEMPTS:
                raise WeightsError(
                    f"{url}: {error}; {_length(part)} bytes are kept, fetch it again to go on"
                ) from error


def _attempt(
    url: str, part: Path, *, same: bool, in_parts: bool
) -> Iterator[tuple[int, int | None]]:
    """One connection.

    Args:
        url: of the file.
        part: what has come of it.
        same: whether the server's file is known to be the one that `part` was begun with, because
            a sha256 will tell in the end.
        in_parts: whether the server may be asked for the rest alone.
    """
    start = _length(part)
    origin = _origin(part)
    headers = {"User-Agent": "vqbank"}
    if in_parts and start and origin["url"] == url and (same or origin["validator"]):
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
                if whole and int(whole[1]) == start and _is_of(origin, error.headers):
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
        length = response.headers.get("Content-Length")
        total = int(length) if length is not None else None
        if response.status == http.HTTPStatus.PARTIAL_CONTENT:
            if "Range" not in headers:
                raise _OtherRangeError("the server sent a part, but the whole was asked for")
            total = _total_of_rest(response.headers, start, origin)
        else:
            start = 0
        with naming(part), part.open("r+b" if start else "wb") as opened:
            if not start:
                _write_origin(part, url, response.headers, total)
            done = opened.seek(start)
            while chunk := _read(response):
                done += opened.write(chunk)
                yield done, total
            opened.flush()
            os.fsync(opened.fileno())
    if total is not None and done != total:
        raise _BrokenOffError(f"the connection broke off after {done} of {total} bytes")


def _total_of_rest(headers: Message, start: int, origin: Mapping[str, Any]) -> int:
    """The length of the whole file of which an answer 206 brings the rest.

    Raises:
        _OtherRangeError: if it brings something else, or the rest of another file.
    """
    said = headers.get("Content-Range", "")
    sent = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", said)
    if sent is None:
        raise _OtherRangeError(f"the server sent a part and does not say which ({said!r})")
    first, last, total = map(int, sent.groups())
    if (first, last) != (start, total - 1):
        raise _OtherRangeError(f"asked for the bytes from {start}, the server sent {said}")
    if headers.get("Content-Length", str(total - start)) != str(total - start):
        raise _OtherRangeError(f"the server sent {headers['Content-Length']} bytes as {said}")
    if origin["total"] not in (None, total) or not _is_of(origin, headers):
        raise _OtherRangeError("the server has another file by now")
    return total


def _is_of(origin: Mapping[str, Any], headers: Message) -> bool:
    """Whether an answer speaks of the file that was begun with, as far as both say which."""
    now = _validator(headers)
    return now is None or origin["validator"] is None or now == origin["validator"]


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


def _write_origin(part: Path, url: str, headers: Message, total: int | None) -> None:
    origin = {"url": url, "validator": _validator(headers), "total": total}
    with naming(_origin_file(part)):
        _origin_file(part).write_text(json.dumps(origin))


def _validator(headers: Message) -> str | None:
    etag = headers.get("ETag") or ""
    # A weak tag means equal content, not equal bytes.
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def _origin(part: Path) -> dict[str, Any]:
    """The url that `part` comes from, its length, and what tells that its file is the same."""
    unknown = {"url": "", "validator": None, "total": None}
    try:
        return {**unknown, **json.loads(_origin_file(part).read_text())}
    except (OSError, ValueError, TypeError):
        return unknown  # absent or damaged: begin again


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _origin_file(part).unlink(missing_ok=True)
