"""What the commits and ledgers of a bank say: what is done, what failed, who is at work.

Only read, so that it can be asked from anywhere at any time; ledgers first and commits after them,
so that nothing is said to have failed that is banked by then.
"""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.table import Table

from vqbank.pipelines.console import console
from vqbank.pipelines.manifest import read_videos
from vqbank.pipelines.terminal import counted, say
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import MissingFeatureError, similar_ids
from vqbank.store.ledger import ROOM, Failure, failures, read_ledger
from vqbank.store.schema import FeatureSpec

SILENT_SECONDS = 150.0
"""A run that works writes a line every half minute."""
RECENT_SECONDS = 24 * 3600.0
"""Older runs are counted and not listed, but for the last one."""
ENDINGS = ("ended", "stopped", "crashed")
"""What the last line of a run says, unless it is at work or was killed."""
HEALTH = {
    "header_frames": "frames by header are not the frames of the file",
    "shortfall": "fewer frames decoded than announced, the last one stands for them",
    "discarded_packets": "packets that are never shown",
    "rotation": "rotated",
    "mirrored": "mirrored",
    "variable_frame_rate": "variable frame rate",
    "colour_range": "full colour range",
    "colour_transfer": "HDR (PQ or HLG), turned into RGB without tone mapping",
    "counted_by_decoding": "frames and times known by decoding only: packets do not tell",
    "video_streams": "several video streams, FFmpeg's choice was taken",
    "interlaced": "interlaced",
    "error": "damaged: decoded up to there",
}
"""What is worth a look, by the field of what is known of a video."""


@dataclass(frozen=True, slots=True)
class Run:
    """One writer of the ledger: a run, or a worker that was given videos several times."""

    host: str
    process: int
    videos: int
    """That it was given."""
    begun: float
    """In Unix seconds, like all times here."""
    last: float
    """When it last wrote."""
    ending: str
    """`ended`, `stopped` by a signal, or `crashed`; empty until it has told, which a run that was
    killed never does."""
    reason: str
    """Of a crash."""
    counts: Mapping[str, int] | None
    """Videos `done`, `failed` and `cached`; None until it has told them."""
    counted: float
    """When it last told them."""

    @classmethod
    def of(cls, entries: Sequence[Mapping[str, Any]], last: float) -> "Run":
        """From its entries that tell of a run, of which one is there.

        They say `started`, `running`, `ended`, `stopped` or `crashed`.
        """
        started = [entry for entry in entries if entry["status"] == "started"]
        told = [entry for entry in entries if entry["status"] != "started"]
        first = (started or entries)[0]
        return cls(
            host=first.get("host", "unknown"),
            process=first.get("process", 0),
            videos=sum(entry["videos"] for entry in started),
            begun=first["time"],
            last=last,
            ending=entries[-1]["status"] if entries[-1]["status"] in ENDINGS else "",
            reason=entries[-1].get("reason", ""),
            counts={name: told[-1][name] for name in ("done", "failed", "cached")}
            if told
            else None,
            counted=told[-1]["time"] if told else first["time"],
        )

    def state(self, now: float) -> str:
        """`running`, how it ended, or for how long nothing has been heard of it."""
        if self.ending:
            return self.ending
        silent = now - self.last
        if silent < -SILENT_SECONDS:  # clocks differ, or this one was set back
            return f"unknown: wrote {_duration(-silent)} ahead of this clock"
        return "running" if silent < SILENT_SECONDS else f"silent for {_duration(silent)}"

    @property
    def videos_per_second(self) -> float | None:
        """Without those that were banked before; None until it has told."""
        if self.counts is None or self.counted <= self.begun:
            return None
        return (self.counts["done"] + self.counts["failed"]) / (self.counted - self.begun)


@dataclass(frozen=True, slots=True)
class History:
    """The ledgers of a bank, each read once."""

    runs: tuple[Run, ...]
    """By when they last wrote."""
    keys: frozenset[str]
    """Features that some run was to make."""
    failures: Mapping[tuple[str, str], Failure]
    """By (video id, key): also those that were made since."""
    decoded: Mapping[str, Mapping[str, Any]]
    """Decode health as it was last told, by video id."""

    @classmethod
    def of(cls, bank: Path) -> "History":
        """Read it; writers may be at work."""
        runs: dict[str, list[Mapping[str, Any]]] = {}
        last: dict[str, float] = {}
        keys: set[str] = set()
        failed: list[Mapping[str, Any]] = []
        decoded: dict[str, Mapping[str, Any]] = {}
        for entry in read_ledger(bank):
            writer, status = entry["writer"], entry["status"]
            last[writer] = entry["time"]
            if status in ("failed", "restored"):
                failed.append(entry)
                keys.add(entry["key"])
            elif status == "decoded":
                known = decoded.get(entry["video"])
                if known is None or entry["time"] >= known["time"]:
                    decoded[entry["video"]] = entry
            elif status != "begun":  # which is for who gave the video out
                keys.update(entry.get("keys", ()))
                runs.setdefault(writer, []).append(entry)
        made = (Run.of(entries, last[writer]) for writer, entries in runs.items())
        return cls(
            runs=tuple(sorted(made, key=lambda run: run.last)),
            keys=frozenset(keys),
            failures=failures(iter(failed)),
            decoded=decoded,
        )

    def open_failures(self, banked: Mapping[str, Collection[str]]) -> list[Failure]:
        """What failed and was not made since, or is another file than was banked.

        By video and key.

        Args:
            banked: Video ids by key.
        """
        found = (
            failure
            for failure in self.failures.values()
            if failure.changed or failure.video not in banked.get(failure.key, ())
        )
        return sorted(found, key=lambda failure: (failure.video, failure.key))


def failed_videos(store: FeatureStore, specs: Sequence[FeatureSpec]) -> set[str]:
    """Ids of the videos of which one of these features failed and was not made since."""
    history = History.of(store.path)
    keys = {spec.key for spec in specs}
    banked = {spec.key: set(store.video_ids(spec)) for spec in specs}
    return {failure.video for failure in history.open_failures(banked) if failure.key in keys}


def show_status(
    bank: Path, *, videos: Path | None = None, failed: bool = False, video: str | None = None
) -> None:
    """Print how far a bank is, while runs are going on or not.

    Args:
        bank: Its folder.
        videos: A manifest, folder or video: only these count, and what is missing can be told.
        failed: Print a table of what failed instead.
        video: Print all that is known of the video with this id instead.

    Raises:
        BankError: if there is no bank, or a commit record is damaged.
        ManifestError: if the manifest cannot be read.
        MissingFeatureError: if nothing is known of the video.
    """
    history = History.of(bank)
    store = FeatureStore(bank)
    specs = {spec.key: spec for spec in store.specs()}
    if video is not None:
        _show_video(video, store, specs, history)
        return
    banked = {key: set(store.video_ids(spec)) for key, spec in specs.items()}
    wanted = {one.id for one in read_videos(videos)} if videos is not None else None
    lasting = [
        failure
        for failure in history.open_failures(banked)
        if wanted is None or failure.video in wanted
    ]
    if failed:
        _show_failures(bank, lasting)
        return
    _show_features(
        {key: banked.get(key, set()) for key in specs.keys() | history.keys}, lasting, wanted
    )
    _show_runs(history.runs)
    known = set().union(history.decoded, *banked.values())
    _show_health(_health(store, specs, history, known if wanted is None else known & wanted))


def _show_features(
    banked: Mapping[str, set[str]], lasting: Sequence[Failure], wanted: set[str] | None
) -> None:
    headings = ("feature", "banked", "failed", *(("missing",) if wanted is not None else ()))
    table = _table(*headings, numbers=headings[1:])
    complete = set(wanted or ())
    for key, ids in sorted(banked.items()):
        failed = {failure.video for failure in lasting if failure.key == key}
        sound = (ids if wanted is None else ids & wanted) - failed
        counts = [len(sound), len(failed)]
        if wanted is not None:
            counts.append(len(wanted - sound - failed))
            complete &= sound
        table.add_row(key, *map(str, counts))
    if not banked:
        say("nothing is banked, and no run has written here")
        return
    console(width=160).print(table)
    if wanted is not None:
        have = "has" if len(wanted) == 1 else "have"
        say(f"{len(complete)} of {counted(len(wanted), 'video')} {have} all of these")
    changed = {failure.video for failure in lasting if failure.changed}
    if changed:
        say(
            f"of {counted(len(changed), 'video')} another file was found than the one that is "
            "banked: counted as failed, and the bank keeps what it has of the old file"
        )


def _show_runs(runs: Sequence[Run]) -> None:
    now = time.time()
    listed = [run for run in runs if run is runs[-1] or now - run.last < RECENT_SECONDS]
    headings = ("host", "process", "state", "last wrote", "videos", "banked before", "extracted",
                "failed", "videos/s")  # fmt: skip
    table = _table(*headings, numbers=headings[4:])
    for run in listed:
        counts = run.counts or {}
        speed = run.videos_per_second
        table.add_row(
            run.host,
            str(run.process),
            run.state(now),
            f"{_duration(now - run.last)} ago",
            str(run.videos),
            *(str(counts.get(name, "-")) for name in ("cached", "done", "failed")),
            "-" if speed is None else f"{speed:.2f}",
        )
    if listed:
        console(width=160).print(table)
    for run in listed:
        if run.reason:
            say(f"crashed: process {run.process} on {run.host}: {run.reason}")
    if len(listed) < len(runs):
        say(f"and {len(runs) - len(listed)} older runs")


def _health(
    store: FeatureStore, specs: Mapping[str, FeatureSpec], history: History, videos: set[str]
) -> Iterator[Mapping[str, Any]]:
    """What is known of each of these videos: from the ledger, else from the commits."""
    left = set(videos)
    for video in videos & history.decoded.keys():
        yield history.decoded[video]
        left.discard(video)
    for spec in specs.values():
        ids = sorted(left)
        for video, place in zip(ids, store.find(spec, ids), strict=True):
            if place is not None:
                shard, number = place
                yield shard.video(number).probe
                left.discard(video)


def _show_health(known: Iterator[Mapping[str, Any]]) -> None:
    counts = dict.fromkeys(HEALTH, 0)
    videos = 0
    for probe in known:
        if "frames" not in probe:  # imported: nobody has seen the video
            continue
        videos += 1
        for name in _findings(probe):
            counts[name] += 1
    found = {name: count for name, count in counts.items() if count}
    usual = "" if found else " all as usual"
    say(f"decode health of {counted(videos, 'video')}:{usual}")
    for name, count in found.items():
        say(f"  {count:>6}  {HEALTH[name]}")


def _findings(probe: Mapping[str, Any]) -> Iterator[str]:
    """The names in HEALTH that hold for a video."""
    if probe.get("header_frames") and probe["header_frames"] != probe["frames"]:
        yield "header_frames"
    if probe.get("colour_range") == "full":
        yield "colour_range"
    if probe.get("colour_transfer") in ("smpte2084", "arib-std-b67"):
        yield "colour_transfer"
    if probe.get("video_streams", 1) > 1:
        yield "video_streams"
    told = {"header_frames", "colour_range", "colour_transfer", "video_streams"}
    for name in HEALTH.keys() - told:
        if probe.get(name):
            yield name


def _show_failures(bank: Path, lasting: Sequence[Failure]) -> None:
    """A line per video, however many of its features failed: most fail together, for one reason."""
    if not lasting:
        say("nothing has failed that was not made since")
        return
    headings = ("video", "reason", "features", "times", "last", "traceback")
    table = _table(*headings, numbers=["times"])
    for video, group in groupby(lasting, key=lambda failure: failure.video):
        own = list(group)
        names = [one.key.partition("@")[0] for one in own]
        features = (
            one.key if names.count(name) > 1 else name for one, name in zip(own, names, strict=True)
        )
        tracebacks = (str(bank / ROOM / one.traceback) for one in own if one.traceback)
        cells = (
            video,
            "; ".join(dict.fromkeys(failure.reason for failure in own)),
            ", ".join(features),
            str(max(failure.times for failure in own)),
            _date(max(failure.time for failure in own)),
            ", ".join(dict.fromkeys(tracebacks)) or "-",
        )
        table.add_row(*cells)
    console(width=10_000).print(table)


def _show_video(
    video: str, store: FeatureStore, specs: Mapping[str, FeatureSpec], history: History
) -> None:
    lines = []
    record = None
    for key in sorted(specs.keys() | history.keys):
        (place,) = store.find(specs[key], [video]) if key in specs else [None]
        failure = history.failures.get((video, key))
        if place is not None:
            shard, number = place
            record = shard.video(number)
            host = shard.record["provenance"].get("host", "unknown host")
            lines.append(
                f"{key}: banked {_date(shard.record['time'])} on {host}, "
                f"{counted(record.row_count, 'row')}, shard {shard.id}"
            )
        if failure is not None and (place is None or failure.changed):
            more = f"; {store.path / ROOM / failure.traceback}" if failure.traceback else ""
            times = "once" if failure.times == 1 else f"{failure.times} times"
            lines.append(
                f"{key}: failed {times}, last {_date(failure.time)}: {failure.reason}{more}"
            )
        elif place is None:
            lines.append(f"{key}: missing")
    decoded = history.decoded.get(video)
    if record is None and decoded is None and (video not in {v for v, _ in history.failures}):
        known = {*history.decoded, *(v for v, _ in history.failures)}
        near = similar_ids(video, known.union(*map(store.video_ids, specs.values())))
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise MissingFeatureError(
            f"{store.path} knows nothing of a video {video!r}; {hint}ids are "
            "dataset/relative-path, as the manifest has them"
        )
    say(video)
    if record is not None:
        file = record.fingerprint
        say(f"file: {file.length} bytes, sha256 of its samples {file.sha256}")
    probe = decoded if decoded is not None else record.probe if record is not None else {}
    about = {n: v for n, v in probe.items() if n not in ("writer", "time", "status", "video")}
    for name, value in about.items():
        say(f"{name}: {value}")
    if "frames" in probe:
        for name in _findings(probe):
            say(f"note: {HEALTH[name]}")
    for line in lines:
        say(line)


def _table(*headings: str, numbers: Collection[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        right = heading in numbers
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    return table


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=max(0, round(seconds))))


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat(sep=" ", timespec="seconds")
