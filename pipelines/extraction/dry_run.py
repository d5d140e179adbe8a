"""What a run would cost, from really running a few of its videos into a bank that is thrown away.

All is extrapolated by the size of the video files, which is known without opening them.
"""

import resource
import stat
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate
from math import prod
from pathlib import Path

import torch
from joblib import cpu_count
from rich import filesize
from rich.table import Table

from vqbank.extractors import make_extractor, specs_of
from vqbank.extractors.base import Extractor
from vqbank.extractors.sampling import MotionSampling
from vqbank.extractors.views import ClipView
from vqbank.pipelines.console import console
from vqbank.pipelines.extraction import assembly
from vqbank.pipelines.extraction.extract import Extraction
from vqbank.pipelines.extraction.one_video import Outcome
from vqbank.pipelines.terminal import counted, say
from vqbank.store.bank import BANK_FILE, FeatureStore
from vqbank.store.errors import DecodeError, InvalidFeatureError
from vqbank.store.layout import VideoRecord
from vqbank.store.schema import FeatureSpec, Video, storage_dtype
from vqbank.store.tail import FOLDER as TAIL
from vqbank.store.tail import tail_bytes

SAMPLE_VIDEOS = 3
TRIAL_SECONDS = 60.0
"""No more videos are tried than fit into this by what the first one, the smallest, has taken."""
ENOUGH_SECONDS = 3.0
"""A run that was shorter tells mostly what it takes to begin: decoders that start, batches that are
not full, files that are committed.  More videos are tried then."""
DATA_SETS = {"KoNViD-1k": 1200, "LSVQ": 38811}
"""Videos of two data sets that disk is scaled to (Hosu et al. 2017; Ying et al. 2021)."""
TIMES_BYTES = 16
"""Of a row's `pts_seconds` and `frame_index`."""
GPU_THREADS = 2
"""That call networks on a GPU: their seconds overlap."""


@dataclass(frozen=True, slots=True)
class Disk:
    """Space for one feature; what is compressed takes less."""

    spec: FeatureSpec
    missing: int
    """Videos that have not got it."""
    video_bytes: float | None
    """Of a mean video to do; None where no video of the sample has it."""
    missing_bytes: float | None
    """Of all videos that have not got it."""
    tail_bytes: int
    """Of what continues the network behind its cut, once for all videos; 0 where there is none."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is to do, and what it will cost as far as a sample can tell."""

    videos: int
    missing: int
    """Videos that lack something."""
    absent: int
    """Of these: whose files are not there."""
    empty: int
    """Of these: whose files have no content."""
    sample: tuple[Outcome, ...]
    disk: tuple[Disk, ...]
    seconds: tuple[float, float]
    """Wall clock: if every core or the device is always busy, and if all goes as in the sample,
    where few videos share batches and decoders."""
    device: str
    workers: int
    memory_bytes: int
    """Of a worker and its decoders, at most, in the sample; 0 if nothing was tried."""
    device_bytes: int | None
    """Of a GPU, in the sample; None on a CPU."""
    extra_passes: int
    """Videos that are decoded twice: frames are chosen by a motion series that is neither banked,
    nor can they all wait in memory until it is known."""

    @property
    def machine_seconds(self) -> tuple[float, float]:
        """Of GPUs, all together, or of the one machine where networks run on its CPU."""
        low, high = self.seconds
        count = self.workers if self.on_gpu else 1
        return low * count, high * count

    @property
    def on_gpu(self) -> bool:
        """Whether networks do not run on a CPU."""
        return self.device != "cpu"


@contextmanager
def bank_as_it_is(path: Path) -> Iterator[FeatureStore]:
    """The bank at a path; where there is none yet, an empty one elsewhere that goes afterwards."""
    if (path / BANK_FILE).exists():
        yield FeatureStore(path)
        return
    with tempfile.TemporaryDirectory(prefix="vqbank-") as folder:
        yield FeatureStore.create(Path(folder) / "bank")


def estimate(extraction: Extraction, sample: int = SAMPLE_VIDEOS, *, workers: int = 1) -> Estimate:
    """Run a few of the missing videos for trial; the bank itself is only read.

    Args:
        extraction: What would be run.
        sample: Videos to try, spread over the missing ones by the size of their files: of three
            the ones at 1/6, 1/2 and 5/6.  Fewer, but one at least, where networks are so slow
            that more would take longer than TRIAL_SECONDS; more where these take less than
            ENOUGH_SECONDS.
        workers: Processes that would share the work, on a CPU its cores, else a GPU each.

    Raises:
        DecodeError: if no video of the sample can be decoded.
    """
    wanted = _wanted(extraction)
    specs = [spec for of_extractor in wanted.values() for spec in of_extractor]
    lacking = {
        spec: {video.id for video in extraction.store.missing(spec, extraction.videos)}
        for spec in specs
    }
    asked = {video for spec in extraction.specs for video in lacking[spec]}
    missing = [video for video in extraction.videos if video.id in asked]
    found = {video.id: _file_bytes(video.path) for video in missing}
    sizes = {video_id: size for video_id, size in found.items() if size}
    there = [video for video in missing if video.id in sizes]
    chosen = _spread(there, sizes, sample)
    with tempfile.TemporaryDirectory(prefix="vqbank-") as folder:
        store = FeatureStore.create(Path(folder) / "bank")
        trial = _Trial(extraction, store, workers)

        def tried(videos: Sequence[Video]) -> list[Outcome]:
            for spec in specs:
                _copy_banked(extraction.store, store, spec, videos)
            store.refresh()
            return trial.run(videos, sizes)

        outcomes = tried(chosen[:1])
        outcomes += tried(trial.affordable(chosen[1:], sizes))
        while (count := trial.worth_trying) and len(outcomes) < len(there):
            ran = {outcome.video.id for outcome in outcomes}
            rest = [video for video in there if video.id not in ran]
            further = trial.affordable(_spread(rest, sizes, count), sizes)
            if not further:
                break
            outcomes += tried(further)
        decoded = [outcome.video for outcome in outcomes if outcome.frames]
        if chosen and not decoded:
            reason = next(iter(outcomes[0].failures.values()))
            raise DecodeError(f"no video of {len(chosen)} that were tried can be decoded: {reason}")
        records = {spec: _records(store, spec, decoded) for spec in specs}
        disk = [
            _disk(
                spec,
                lacking[spec],
                records[spec],
                sizes,
                tail_bytes=tail_bytes(store.path / spec.key / TAIL),
            )
            for spec in specs
        ]
    return Estimate(
        videos=len(extraction.videos),
        missing=len(missing),
        absent=sum(size is None for size in found.values()),
        empty=sum(size == 0 for size in found.values()),
        sample=tuple(outcomes),
        disk=tuple(disk),
        seconds=trial.seconds(sum(sizes.values())),
        device=extraction.device.type,
        workers=workers,
        memory_bytes=trial.memory_bytes if chosen else 0,
        device_bytes=trial.device_bytes,
        extra_passes=len(_decoded_twice(wanted, lacking, records, sizes)),
    )


class _Trial:
    """Runs videos in this process as a worker would, and takes the time."""

    def __init__(self, extraction: Extraction, store: FeatureStore, workers: int) -> None:
        self._extraction = Extraction(
            (),
            extraction.extractors,
            store,
            decoder=extraction.decoder,
            device=extraction.device,
            batch_clips=extraction.batch_clips,
            patience_seconds=extraction.patience_seconds,
            threads=max(1, cpu_count() // workers),
        )
        self._workers = workers
        self._runs: list[tuple[int, float, float]] = []
        """Bytes of the files that were decoded, seconds, and seconds if nothing had waited."""
        self._last_videos = 0
        if extraction.device.type == "cuda":
            torch.cuda.init()
            torch.cuda.reset_peak_memory_stats(extraction.device)

    def run(self, videos: Sequence[Video], sizes: Mapping[str, int]) -> list[Outcome]:
        """Run over some videos; networks are loaded the first time."""
        if not videos:
            return []
        self._extraction.take(videos)
        begun, cpu, networks = time.perf_counter(), _cpu_seconds(), self._network_seconds
        outcomes = list(self._extraction.run())
        seconds = time.perf_counter() - begun
        busy = (_cpu_seconds() - cpu) / max(1, cpu_count() // self._workers)
        if self._extraction.device.type != "cpu":
            busy = max(busy, (self._network_seconds - networks) / GPU_THREADS)
        size = sum(sizes[outcome.video.id] for outcome in outcomes if outcome.frames)
        self._runs.append((size, seconds, min(busy, seconds)))
        self._last_videos = len(videos)
        return outcomes

    @property
    def worth_trying(self) -> int:
        """Videos that would make the next run long enough to tell the speed; 0 if the last was."""
        size, seconds, _ = self._runs[-1] if self._runs else (0, 0.0, 0.0)
        if len(self._runs) < 2 or not size or seconds >= ENOUGH_SECONDS:
            return 0
        # Twice as long as need be, if beginning cost nothing; so at least twice as many.
        return max(2 * self._last_videos, int(2 * ENOUGH_SECONDS / seconds * self._last_videos))

    def affordable(self, videos: Sequence[Video], sizes: Mapping[str, int]) -> list[Video]:
        """The first of these that can be expected to end within TRIAL_SECONDS of all runs.

        All where nothing was decoded yet: what cannot be decoded costs little.
        """
        told = [run for run in self._runs if run[0]]
        if not told:
            return list(videos)
        speed = sum(size for size, *_ in told) / sum(seconds for _, seconds, _ in told)
        left = TRIAL_SECONDS - sum(seconds for _, seconds, _ in self._runs)
        ends = accumulate(sizes[video.id] / speed for video in videos)
        return [video for video, end in zip(videos, ends, strict=True) if end <= left]

    def seconds(self, size: int) -> tuple[float, float]:
        """For files of so many bytes: if nothing waits, and as it went.

        What the last run took longer than the one before tells the speed, where there are three:
        every run has to begin, and the first has to load networks too.
        """
        told = [run for run in self._runs if run[0]]
        if not told:
            return 0.0, 0.0
        (first_size, first, _), (last_size, slow, quick) = told[0], told[-1]
        slow, quick = slow / last_size, quick / last_size
        if len(told) > 2 and last_size > told[-2][0]:
            longer, of_slow, of_quick = (a - b for a, b in zip(told[-1], told[-2], strict=True))
            slow = of_slow / longer if of_slow > 0 else slow
            quick = min(of_quick / longer if of_quick > 0 else quick, slow)
        begin = max(0.0, first - slow * first_size)
        share = size / self._workers
        return begin + quick * share, begin + slow * share

    @property
    def memory_bytes(self) -> int:
        """Peak of this process and, as if all were like the largest one, of its decoders."""
        this = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        decoder = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * (this + decoder * len(self._extraction.decoders))

    @property
    def device_bytes(self) -> int | None:
        """Peak on the GPU."""
        device = self._extraction.device
        return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None

    @property
    def _network_seconds(self) -> float:
        return sum(batch.seconds for batch in self._extraction.batches.values())


def show_estimate(found: Estimate) -> None:
    """Print an estimate."""
    absent = f", the files of {found.absent} of these are not there" if found.absent else ""
    absent += f", the files of {found.empty} are empty" if found.empty else ""
    say(
        f"{counted(found.videos, 'video')}: {found.videos - found.missing} done, "
        f"{found.missing} to do{absent}"
    )
    if not found.sample:
        return
    for outcome in found.sample:
        for reason in dict.fromkeys(outcome.failures.values()):
            say(f"failed: {outcome.video.id}: {reason}")
    table = Table(box=None, pad_edge=False)
    table.add_column("feature", overflow="fold")
    headings = [f"{name} ({count:,})" for name, count in DATA_SETS.items()]
    for heading in ("missing", "a video", "all missing", *headings):
        table.add_column(heading, justify="right")
    for disk in found.disk:
        table.add_row(disk.spec.key, str(disk.missing), *map(_size, _columns(disk)))
    totals = [[size or 0.0 for size in _columns(disk)] for disk in found.disk]
    table.add_row("all features", "", *(_size(sum(column)) for column in zip(*totals, strict=True)))
    console(width=160).print(table)
    for disk in found.disk:
        if disk.tail_bytes:
            say(
                f"beside {disk.spec.key}, once: {_size(disk.tail_bytes)} of what continues the "
                "network behind its cut"
            )
    what = "GPU hours" if found.on_gpu else "machine hours"
    low, high = (seconds / 3600 for seconds in found.machine_seconds)
    device = f", {_size(found.device_bytes)} of the GPU" if found.device_bytes is not None else ""
    say(
        f"time: {_clock(found.seconds[0])} to {_clock(found.seconds[1])}, "
        f"{low:.2f} to {high:.2f} {what}, workers: {found.workers}"
    )
    say(f"memory of a worker: {_size(found.memory_bytes)}{device}")
    say(f"extra passes for frames chosen by motion: {counted(found.extra_passes, 'video')}")
    sample = counted(len(found.sample), "video")
    say(f"extrapolated by bytes of the video files, from {sample} that ran")


def _wanted(extraction: Extraction) -> dict[Extractor, list[FeatureSpec]]:
    """Features by extractor, the motion series included where frames are chosen by it."""
    extractors = list(extraction.extractors)
    motion = make_extractor("motion")
    if motion not in extractors and any(_chooses_by_motion(one) for one in extractors):
        extractors.append(motion)
    return {one: list(specs_of(one, decoder=extraction.decoder).values()) for one in extractors}


def _chooses_by_motion(extractor: Extractor) -> bool:
    return isinstance(extractor.sampling, MotionSampling)


def _file_bytes(path: Path) -> int | None:
    """None where no file is."""
    try:
        found = path.stat()
    except (OSError, ValueError):  # ValueError: a path with a NUL
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _spread(videos: Sequence[Video], sizes: Mapping[str, int], count: int) -> list[Video]:
    """In the middle of `count` equal parts of the videos, ordered by size."""
    ordered = sorted(videos, key=lambda video: (sizes[video.id], video.id))
    count = min(count, len(ordered))
    return [ordered[(2 * part + 1) * len(ordered) // (2 * count)] for part in range(count)]


def _copy_banked(
    bank: FeatureStore, copy: FeatureStore, spec: FeatureSpec, videos: Sequence[Video]
) -> None:
    """So that no more is run than would be."""
    found = [place for place in bank.find(spec, [video.id for video in videos]) if place]
    if found:
        with copy.writer(spec, provenance={}, durable=False) as writer:
            for shard, place in found:
                writer.copy(shard, place)


def _records(
    store: FeatureStore, spec: FeatureSpec, videos: Sequence[Video]
) -> dict[str, VideoRecord]:
    """Of the videos that have the feature, by id."""
    found = store.find(spec, [video.id for video in videos])
    return {
        video.id: place.source.video(place.place)
        for video, place in zip(videos, found, strict=True)
        if place is not None
    }


def _disk(
    spec: FeatureSpec,
    lacking: Collection[str],
    records: Mapping[str, VideoRecord],
    sizes: Mapping[str, int],
    *,
    tail_bytes: int,
) -> Disk:
    if not records:
        return Disk(spec, len(lacking), None, None, tail_bytes)
    sides = (prod(side.shape) * storage_dtype(side.dtype).itemsize for side in spec.side)
    row = spec.row_bytes + TIMES_BYTES + sum(sides)
    rows = sum(record.row_count for record in records.values())
    ratio = row * rows / sum(sizes[video] for video in records)
    return Disk(
        spec,
        len(lacking),
        video_bytes=ratio * sum(sizes.values()) / len(sizes),
        missing_bytes=ratio * sum(sizes.get(video, 0) for video in lacking),
        tail_bytes=tail_bytes,
    )


def _decoded_twice(
    wanted: Mapping[Extractor, Sequence[FeatureSpec]],
    lacking: Mapping[FeatureSpec, set[str]],
    records: Mapping[FeatureSpec, Mapping[str, VideoRecord]],
    sizes: Mapping[str, int],
) -> set[str]:
    """As `HeldFrames` decides, with the sample's frames per byte and its largest picture."""
    probes = {
        video: record.probe
        for found in records.values()
        for video, record in found.items()
        if "frames" in record.probe  # else it was imported
    }
    if not probes:
        return set()
    frames_per_byte = sum(p["frames"] for p in probes.values()) / sum(sizes[v] for v in probes)
    height, width = max((p["height"], p["width"]) for p in probes.values())
    motion_key = make_extractor("motion")
    without_motion = {v for spec in wanted.get(motion_key, ()) for v in lacking[spec]}
    twice: set[str] = set()
    for extractor, specs in wanted.items():
        if not _chooses_by_motion(extractor):
            continue
        todo = {video for spec in specs for video in lacking[spec]} & without_motion
        held = _view_bytes(extractor, height, width) * frames_per_byte
        twice |= {v for v in todo if sizes.get(v, 0) * held > assembly.RETAINED_BYTES}
    return twice


def _view_bytes(extractor: Extractor, height: int, width: int) -> float:
    """Of a frame that waits; without end where none can wait."""
    if isinstance(extractor.view, ClipView):
        return float("inf")
    try:
        return extractor.view(torch.zeros(1, 3, height, width, dtype=torch.uint8))[0].nbytes
    except InvalidFeatureError:  # such a video is refused
        return 0.0


def _cpu_seconds() -> float:
    """Of this process and of its decoders that have ended, over all cores."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, who))


def _columns(disk: Disk) -> list[float | None]:
    one = disk.video_bytes
    scaled = [None if one is None else one * count for count in DATA_SETS.values()]
    return [one, disk.missing_bytes, *scaled]


def _size(size: float | None) -> str:
    return "unknown" if size is None else filesize.decimal(round(size))


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
