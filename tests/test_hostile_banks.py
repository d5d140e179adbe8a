"""Banks that strangers made: no command follows a link out of one, or believes what one says."""

import json
import os
import resource
import shutil
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from vqbank.pipelines.commands import cli
from vqbank.regressors.card import read_card
from vqbank.store import catalogue
from vqbank.store.bank import FeatureStore
from vqbank.store.checksums import crc32c
from vqbank.store.commits import mark_bad, record_names
from vqbank.store.errors import DamagedShardError, VqbankError
from vqbank.store.files import OPEN_FILES, allow_open_files
from vqbank.store.ledger import Ledger
from vqbank.store.records import seal
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, SideSpec, Video
from vqbank.store.tail import Tail, Tower, read_tower, tail_folder, write_tail
from vqbank.store.text import TextBank, read_text, text_spec, write_text
from vqbank.store.verify import mark, verify

IMAGE = FeatureSpec(
    "clip.image", (4,), "float16", {"weights": "one"}, side=(SideSpec("offsets", (2,), "int16"),)
)
FRAMES = FeatureSpec("frames.raw", (3, 4, 4), "uint8", {})
PROMPTS = ("good", "bad")
TEXT = text_spec("clip.text", PROMPTS, 4, {"weights": "one"})
IDS = ("set/a.mp4", "set/b.mp4")
VIDEOS = [Video(name, Path(name), mos=float(place)) for place, name in enumerate(IDS)]
PROBE = {"frames": 9, "header_frames": 8, "width": 4, "height": 4, "fps": 25.0}


def feature(spec, seed, rows=3):
    rng = np.random.default_rng(seed)
    return Feature(
        rng.integers(0, 100, (rows, *spec.shape)).astype(spec.storage_dtype),
        np.arange(rows) / 25,
        np.arange(rows),
        {side.name: np.zeros((rows, *side.shape), side.dtype) for side in spec.side},
    )


def put(bank, spec, ids, seed=0):
    writer = FeatureStore.create(bank).writer(spec, provenance={"host": "h"}, durable=False)
    for place, name in enumerate(ids):
        printed = Fingerprint(7, f"{place:064x}")
        writer.add(name, feature(spec, seed + place), fingerprint=printed, probe=PROBE)
    writer.commit()
    return writer.id


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A bank with everything in it that a bank may have."""
    bank = tmp_path_factory.mktemp("good") / "bank"
    store = FeatureStore.create(bank)
    bad = put(bank, IMAGE, ["set/c.mp4"])
    mark_bad(bank / IMAGE.key, bad, ["set/c.mp4"])
    put(bank, IMAGE, IDS)
    put(bank, FRAMES, IDS)
    write_text(store, TEXT, TextBank(PROMPTS, np.eye(2, 4, dtype="f4"), 100.0), provenance={})
    tower = Tower({"width": 3}, {"weight": np.ones(3, np.float32)})
    write_tail(store, IMAGE, Tail({"image": tower}, {"good": [1, 2]}))
    ledger = Ledger(bank)
    ledger.append(status="started", host="h", process=1, keys=[IMAGE.key], videos=2)
    ledger.append(status="decoded", video="set/a.mp4", **PROBE)
    kept = ledger.keep_traceback("a traceback\n")
    ledger.append(status="failed", video="set/d.mp4", key=IMAGE.key, reason="r", traceback=kept)
    ledger.append(status="ended", done=1, failed=1, cached=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalogue, "WORTH_KEEPING", 1)
        assert FeatureStore(bank).video_ids(IMAGE) == list(IDS)
    assert (bank / IMAGE.key / catalogue.FILE).exists()
    return bank


def run(*arguments):
    done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def read_table(bank):
    table = FeatureStore(bank).table(VIDEOS, {"image": IMAGE.key, "frames": FRAMES.key})
    for role in table.roles:
        table.read(role, [0, 1])
        table.series(role, 0)


def write_more(bank):
    put(bank, IMAGE, ["set/new.mp4"], seed=9)


def readings(bank, good, out):
    """What reads a bank, by name; each makes its own in `out`."""
    lock = out / "lock.json"
    return {
        "ls": partial(run, "ls", bank),
        "ls image": partial(run, "ls", bank, IMAGE.name),
        "ls frames": partial(run, "ls", bank, FRAMES.name),
        "show feature": partial(run, "show", bank, IMAGE.name),
        "show video": partial(run, "show", bank, IDS[0]),
        "status": partial(run, "status", bank),
        "status failed": partial(run, "status", bank, "--failed"),
        "status video": partial(run, "status", bank, "--video", IDS[0]),
        "diff": partial(run, "diff", bank, good),
        "diff back": partial(run, "diff", good, bank),
        "verify": partial(run, "verify", bank),
        "merge": partial(run, "merge", out / "merged", bank),
        "prune": partial(run, "prune", bank, "--older-than-hours", 0),
        "selection": partial(
            run, "selection", bank, "--features", IMAGE.name, "--videos", out / "videos.csv",
            "-o", lock,
        ),
        "export h5": partial(run, "export", bank, out / "out.h5"),
        "export npy": partial(run, "export", bank, out / "npy", "--features", FRAMES.name),
        "pack": partial(run, "pack", bank, out / "packed"),
        "table": partial(read_table, bank),
        "text": lambda: read_text(FeatureStore(bank), TEXT.name),
        "tail": lambda: read_tower(tail_folder(FeatureStore(bank), IMAGE.name), "image"),
    }  # fmt: skip


def writings(bank, out):
    """What changes a bank, in an order in which each finds something to do."""
    tower = Tower({"width": 3}, {"weight": np.ones(3, np.float32)})
    texts = TextBank(PROMPTS, np.eye(2, 4, dtype="f4"), 100.0)
    return {
        "extract": partial(write_more, bank),
        "ledger": lambda: Ledger(bank).append(status="failed", video="v", key="k", reason="r"),
        "traceback": lambda: Ledger(bank).keep_traceback("text"),
        "tail written": lambda: write_tail(
            FeatureStore(bank), IMAGE, Tail({"image": tower}, {"new": [3, 4]})
        ),
        "text written": lambda: write_text(FeatureStore(bank), TEXT, texts, provenance={}),
        "merge into": partial(run, "merge", bank, out / "source"),
        "compact": partial(run, "compact", bank),
        "mark": partial(run, "verify", bank, "--mark"),
        "prune yes": partial(run, "prune", bank, "--yes", "--older-than-hours", 0),
    }


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    rows = "\n".join(f"{video.id},{video.path},{video.mos}" for video in VIDEOS)
    (folder / "videos.csv").write_text(f"id,path,mos\n{rows}\n")
    put(folder / "source", IMAGE, ["set/e.mp4"], seed=5)
    put(folder / "source", FRAMES, ["set/e.mp4"], seed=5)
    Ledger(folder / "source").append(status="failed", video="v", key="k", reason="r")
    return folder


# Links.

TOUCHED: list[tuple[str, str]] = []
WATCHED: list[str] = []


def _watch(event, arguments):
    """Every file or folder that Python opens, lists or removes, by where it really lies."""
    if not WATCHED or not event.startswith(("open", "os.", "shutil.")):
        return
    for argument in arguments:
        if isinstance(argument, str | os.PathLike):
            path = Path(argument)
            of_link = event in ("os.remove", "os.rename", "os.link", "os.rmdir")
            place = str(path.parent.resolve() / path.name if of_link else path.resolve())
            if place == WATCHED[0] or place.startswith(f"{WATCHED[0]}{os.sep}"):
                TOUCHED.append((event, place))


sys.addaudithook(_watch)


FOUND = {("KEY/shards/ID", "prune yes"), ("KEY/shards/ID", "merge"), ("ledger/*", "merge")}
"""Where commands followed links once."""


def places(bank):
    """One of each kind of entry that a bank has, as paths below it."""
    found = {}
    for path in sorted(bank.rglob("*")):
        name = path.relative_to(bank).as_posix()
        kind = name.replace(IMAGE.key, "KEY").replace(FRAMES.key, "KEY2").replace(TEXT.key, "KEY3")
        steps = [step if len(step) < 16 or "." not in step else "*" for step in kind.split("/")]
        steps = ["ID" if len(s) == 16 and set(s) <= set("0123456789abcdef") else s for s in steps]
        found.setdefault("/".join(steps), name)
    return found


def state(folder):
    return {
        path: (os.lstat(path).st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in [folder, *sorted(folder.rglob("*"))]
    }


def answer(call):
    """What a call that may be refused says, on one line; anything else than a refusal is raised."""
    try:
        call()
    except (VqbankError, FileNotFoundError, FileExistsError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "share", [pytest.param(1, marks=pytest.mark.soak, id="all"), pytest.param(32, id="some")]
)
def test_no_command_follows_a_link_out_of_a_bank(good, tmp_path, out, monkeypatch, share):
    """Every command over a bank for each entry that is a link; which are tried is always the same.

    What the link points to is what stood in its place, so that a follower would find it all right.
    """
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    bank, private = tmp_path / "bank", tmp_path / "private" / "it"
    private.parent.mkdir()
    shutil.copytree(good, bank)
    reading, writing = readings(bank, good, out), writings(bank, out)
    tried = 0
    for kind, name in places(good).items():
        chosen = [
            command
            for command in (*reading, *writing)
            if crc32c(f"{kind} {command}".encode()) % share == 0 or (kind, command) in FOUND
        ]
        (bank / name).rename(private)
        (bank / name).symlink_to(private)
        before = state(private.parent)
        for command in chosen:
            WATCHED[:], TOUCHED[:] = [str(private.parent)], []
            said = answer((reading | writing)[command])
            WATCHED.clear()
            assert "\n" not in said, (kind, command)
            assert TOUCHED == [], (kind, command)
            tried += 1
        assert state(private.parent) == before, kind
        if any(command in writing for command in chosen):
            shutil.rmtree(bank)
            shutil.rmtree(private) if private.is_dir() else private.unlink()
            shutil.copytree(good, bank)
        else:
            (bank / name).unlink()
            private.rename(bank / name)
        for made in ("merged", "packed", "npy"):
            shutil.rmtree(out / made, ignore_errors=True)
        (out / "out.h5").unlink(missing_ok=True)
    assert tried * share > 1000


def test_prune_removes_links_however_deep_they_lie(good, tmp_path):
    bank, private = tmp_path / "bank", tmp_path / "private"
    private.mkdir()
    (private / "kept").write_bytes(b"x")
    shutil.copytree(good, bank)
    (array,) = bank.glob(f"{FRAMES.key}/shards/*/values/c")
    links = [array / "9", array / "deep/er/link", bank / FRAMES.key / "tail/link"]
    for link in links:
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(private)

    told = run("prune", bank)
    assert [str(link.relative_to(bank)) in told for link in links] == [True, True, True]
    run("prune", bank, "--yes")

    assert [link.is_symlink() for link in links] == [False, False, False]
    assert (private / "kept").exists()
    read_table(bank)


def test_a_tree_of_npy_files_and_a_head_lead_nowhere(tmp_path):
    private = tmp_path / "private.npy"
    np.save(private, np.ones((2, 3), np.float32))
    tree, head = tmp_path / "tree", tmp_path / "head"
    tree.mkdir()
    head.mkdir()
    (tree / "a.npy").symlink_to(private)
    (head / "card.yaml").symlink_to(private)

    with pytest.raises(VqbankError, match="symbolic link"):
        run("import", tree, tmp_path / "bank")
    with pytest.raises(VqbankError, match="symbolic link"):
        read_card(head)


# Fields and bytes.

SECONDS, MEBIBYTES = 5.0, 500
WRONG = {
    "missing": None,
    "null": None,
    "text": "x",
    "long": "y" * 10_000,
    "negative": -1,
    "zero": 0,
    "huge": 10**30,
    "beyond int64": 2**63,
    "half": 0.5,
    "infinite": float("inf"),
    "list": [],
    "nested": [[[[{}]]]],
    "object": {"a": 1},
    "out": "../../private",
    "escape": "a[/x]\x1b[31m\n",
}


def fields(value, path=()):
    """Where every field of a JSON value stands; of a list only the first entry."""
    for name, inner in value.items() if isinstance(value, dict) else enumerate(value[:1]):
        yield (*path, name)
        if isinstance(inner, dict | list):
            yield from fields(inner, (*path, name))


def spoiled(value):
    """Where and how a JSON value may be wrong, and what makes it so."""
    for path in fields(value):
        for what in WRONG:
            yield (*path, what), partial(changed, value, path, what)


def changed(value, path, what):
    copy = json.loads(json.dumps(value))
    *way, last = path
    inner = copy
    for step in way:
        inner = inner[step]
    if what == "missing":
        del inner[last]
    else:
        inner[last] = WRONG[what]
    return copy


def json_text(value):
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def resealed(record):
    try:
        return seal(record)
    except ValueError:  # an infinite number has no canonical JSON
        return json_text({"crc32c": 0, "record": record})


def recommitted(bank, name, content):
    """Another content of a file of a shard, of which its commit record says that it is right."""
    (bank / name).write_bytes(content)
    key, _, inner = name.partition("/shards/")
    shard, _, file = inner.partition("/")
    commit = bank / key / "commits" / f"{shard}.json"
    record = json.loads(commit.read_bytes())["record"]
    record["files"][file] = {"bytes": len(content), "crc32c": crc32c(content)}
    commit.write_bytes(seal(record))


def spoilings(bank):
    """By name, what spoils a file of a bank that stands at `bank`."""
    for kind, name in places(bank).items():
        path = bank / name
        if path.is_dir() or path.suffix == ".txt":
            continue
        in_shard = "/shards/" in name
        put_in = partial(recommitted, bank, name) if in_shard else path.write_bytes
        content = path.read_bytes()
        if path.suffix == ".jsonl":
            for number, line in enumerate(content.splitlines()):
                for place, make in spoiled(json.loads(line)):
                    yield (kind, number, *place), lambda f=put_in, m=make: f(json_text(m()) + b"\n")
        elif path.suffix == ".json":
            value = json.loads(content)
            if "record" in value:
                for place, make in spoiled(value["record"]):
                    yield (kind, *place), lambda f=put_in, m=make: f(resealed(m()))
            for place, make in spoiled(value):
                yield (kind, "unsealed", *place), lambda f=put_in, m=make: f(json_text(m()))
        elif name.endswith("index_text/c/0"):
            start = content.index(b"{")
            end = content.index(b"}}", start) + 2

            def put_facts(value, *, put_in=put_in, content=content, start=start, end=end):
                text = json_text(value)[: end - start].ljust(end - start)
                put_in(content[:start] + text + content[end:])

            for place, make in spoiled(json.loads(content[start:end])):
                yield (kind, *place), lambda f=put_facts, m=make: f(m())
        elif name.endswith("index/c/0/0"):
            table = np.frombuffer(content, "<i8")
            for cell in range(len(table) // 2):
                for number in (-1, 0, 10**6, 2**62, -(2**63)):
                    other = table.copy()
                    other[cell] = number
                    yield (kind, cell, number), partial(put_in, other.tobytes())
        for what, other in {
            "empty": b"",
            "odd": content[:-1],
            "half": content[: len(content) // 2],
            "longer": content + b"\1" * 7,
            "zeros": bytes(len(content)),
            "ones": b"\xff" * len(content),
            "deep": b"[" * 5000,
            "digits": b"9" * 5000,
        }.items():
            yield (kind, what), partial(put_in, other)
            if in_shard:
                yield (kind, what, "not committed"), partial(path.write_bytes, other)


@pytest.mark.parametrize(
    "share", [pytest.param(61, marks=pytest.mark.soak, id="many"), pytest.param(2999, id="some")]
)
def test_a_bank_with_any_field_or_byte_wrong_is_one_line_within_bounds(
    good, tmp_path, out, monkeypatch, share
):
    """Of 268,000 pairs of a damage and a command."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    bank = tmp_path / "bank"
    shutil.copytree(good, bank)
    reading = readings(bank, good, out)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tried = refused = 0
    failed = []
    for place, spoil in list(spoilings(bank)):
        chosen = [
            command for command in reading if crc32c(f"{place} {command}".encode()) % share == 0
        ]
        if not chosen:
            continue
        spoil()
        for command in chosen:
            began = time.process_time()
            try:
                said = answer(reading[command])
            except Exception as error:  # noqa: BLE001 - all of them are told at the end
                failed.append((place, command, repr(error)[:300]))
                said = ""
            tried += 1
            refused += bool(said)
            if "\n" in said or time.process_time() - began > SECONDS:
                failed.append((place, command, said[:300]))
        for path in sorted(good.rglob("*")):  # as it was
            copy = bank / path.relative_to(good)
            if path.is_file() and copy.read_bytes() != path.read_bytes():
                copy.write_bytes(path.read_bytes())
        for made in ("merged", "packed", "npy"):
            shutil.rmtree(out / made, ignore_errors=True)
        (out / "out.h5").unlink(missing_ok=True)

    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert failed == []
    assert grown < MEBIBYTES * 1024
    assert refused > tried / 20  # a fifth of them; names of shards are random, and so is the draw
    assert tried * share > 200_000


# Many shards.


def test_no_command_needs_a_file_for_each_shard(tmp_path, out, monkeypatch):
    """150 shards, and 64 files more than are open already."""
    bank, copy = tmp_path / "bank", tmp_path / "copy"
    for number in range(150):
        put(bank, IMAGE, [f"set/{number}.mp4"], seed=number)
    shutil.copytree(bank, copy)
    videos = [Video(f"set/{number}.mp4", Path("x")) for number in range(150)]
    table = FeatureStore(bank).table(videos, {"image": IMAGE.key})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len([*Path("/proc/self/fd").iterdir()]) if Path("/proc/self/fd").exists() else 64
    monkeypatch.setattr(
        "vqbank.store.files.OPEN_FILES", opened + 64
    )  # commands raise the limit to this
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 64, hard))
    try:
        assert "0 differ" in run("diff", bank, copy)
        run("export", bank, out / "all.h5")
        run("export", bank, out / "all", "--features", IMAGE.name)
        run("verify", bank)
        values, _ = table.read("image", range(150))
        table.prefetch("image", range(150))
        again, _ = table.read("image", range(149, -1, -1))
        run("compact", copy)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    np.testing.assert_array_equal(values[:3], again[-3:])


def test_the_limit_of_open_files_is_raised_where_it_may_be():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, soft), hard))
    try:
        allow_open_files()
        now, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
        assert now == wanted
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Text.


def test_what_a_bank_says_is_shown_whole_and_has_no_power(tmp_path, monkeypatch, capsys):
    """Ids, hosts, reasons and weights with markup and escape sequences, through all that prints."""
    monkeypatch.setenv("COLUMNS", "400")
    wild = "set/a[/x][bold]b:smile:\x1b[31m\x9b1A\r\n|.mp4"
    shown = "set/a[/x][bold]b:smile:\\x1b[31m\\x9b1A\\r\\n|.mp4"
    spec = FeatureSpec("clip.image", (4,), "float16", {"weights": "[/x]\x1b[2J"}, publisher=wild)
    bank, other = tmp_path / "bank", tmp_path / "other"
    put(bank, spec, [wild])
    put(other, spec, [wild], seed=3)
    ledger = Ledger(bank)
    ledger.append(status="started", host=wild, process=1, keys=[spec.key], videos=2)
    ledger.append(status="decoded", video=wild, **PROBE, error=wild)
    ledger.append(status="failed", video=f"{wild}2", key=spec.key, reason=wild, traceback=None)
    ledger.append(status="ended", done=1, failed=1, cached=0)
    said = {
        "ls": run("ls", bank),
        "ids": run("ls", bank, spec.name),
        "show": run("show", bank, spec.name),
        "status": run("status", bank),
        "failed": run("status", bank, "--failed"),
        "video": run("status", bank, "--video", wild),
        "diff": run("diff", bank, other),
    }
    (values,) = bank.glob("*/shards/*/values/c/0/0")
    values.write_bytes(bytes(values.stat().st_size))
    said["verify"] = run("verify", bank)
    with pytest.raises(VqbankError) as refused:
        run("export", bank, tmp_path / "out.h5")
    monkeypatch.setattr(cli, "app", lambda: raise_again(refused.value))
    with pytest.raises(SystemExit):
        cli.main()
    said["error"] = capsys.readouterr().err

    for what, text in said.items():
        assert all(letter.isprintable() or letter == "\n" for letter in text), what
    for what in ("ids", "status", "failed", "video", "diff", "verify", "error"):
        assert shown in said[what], what
    assert "[/x]" in said["ls"]


def raise_again(error):
    raise error


def test_a_catalogue_that_lies_gives_no_video_the_rows_of_another(good, tmp_path):
    bank = tmp_path / "bank"
    shutil.copytree(good, bank)
    folder, path = bank / IMAGE.key, bank / IMAGE.key / catalogue.FILE
    true = catalogue.Catalogue.of(folder, IMAGE)
    assert list(verify(FeatureStore(bank))) == []
    lie = replace(true, _place=true._place[::-1].copy())
    lie._keep(path, record_names(folder))

    for video in IDS:
        with pytest.raises(DamagedShardError, match=f"says that {video} is number .* remove it"):
            FeatureStore(bank).read(IMAGE, video)
    (problem,) = verify(FeatureStore(bank))
    assert problem.file == catalogue.FILE
    mark(FeatureStore(bank), [problem])
    assert not path.exists()
    for video in IDS:
        found, expected = (FeatureStore(one).read(IMAGE, video).values for one in (bank, good))
        assert np.array_equal(found, expected)


def test_a_catalogue_without_end_is_made_anew(good, tmp_path):
    bank = tmp_path / "bank"
    shutil.copytree(good, bank)
    with (bank / IMAGE.key / catalogue.FILE).open("r+b") as file:
        file.truncate(2**40)

    assert FeatureStore(bank).video_ids(IMAGE) == list(IDS)
