"""Whatever is killed, stopped or told to end, and whenever: the same command again ends with the
same bank.

This file is also the program that runs the commands: it imports everything once, and forks a
process for every order, so that most of the life of each is work that can be disturbed.
"""

import ctypes
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from vqbank.extractors import video as decoding
from vqbank.pipelines.commands import cli
from vqbank.pipelines.extraction import banking
from vqbank.store.bank import FeatureStore
from vqbank.store.compact import compact
from vqbank.store.compare import diff
from vqbank.store.errors import VqbankError
from vqbank.store.ledger import read_ledger
from vqbank.store.merge import merge
from vqbank.store.prune import prune
from vqbank.store.shard import committed_shards
from vqbank.store.verify import verify

VIDEOS = 8
FEATURES = 2
PATIENCE_SECONDS = 240.0
"""For an end that must come, on a machine that does other things too."""
UNUSED_SECONDS = 20.0
"""What upkeep beside a run takes for left behind."""


# The program


def serve() -> None:
    """Start what is ordered; say how it ended when asked."""
    import open_clip  # noqa: F401
    import torch  # noqa: F401

    banking.FLUSH_BYTES = 1  # every video is committed at once
    say({})
    for line in sys.stdin:
        order = json.loads(line)
        if "poll" in order:
            pid, status = os.waitpid(order["poll"], os.WNOHANG)
            say({"status": os.waitstatus_to_exitcode(status) if pid else None})
            continue
        client = os.fork()
        if client == 0:
            obey(order)
        say({"pid": client})


def say(answer: dict[str, int | None]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def obey(order: dict[str, object]) -> None:
    """In a process, and a group, of its own; never returns."""
    os.setsid()
    errors = os.open(order["errors"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(errors, 1)
    os.dup2(errors, 2)
    real = time.time
    time.time = lambda: real() + order["clock"]
    if order.get("powerless"):
        give_up_power()
    code = 1
    try:
        if "upkeep" in order:
            keep_in_order(Path(order["upkeep"]))
        sys.argv = ["vqbank", *order["arguments"]]
        cli.main()
        code = 0
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except KeyboardInterrupt:  # before there was a command to tell
        code = 128 + signal.SIGINT
    finally:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)


def give_up_power() -> None:
    """Let modes and owners of files count for this process also where it is root's."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    held = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    assert libc.capget(header, held) == 0
    for number in (0, 1):
        held[number] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, held) == 0


def keep_in_order(bank: Path) -> None:
    """Compact, prune and merge a bank into another, again and again, until it is killed."""
    for turn in itertools.count():
        with suppress(VqbankError):  # what it reads may be pruned by another at the same time
            store = FeatureStore(bank)
            for spec in store.specs():
                compact(store, spec)
            prune(store, dry_run=False, older_than_seconds=UNUSED_SECONDS)
            if turn % 4 == 0:
                merge(FeatureStore.create(bank.with_name(f"{bank.name}-merged")), [store])
        time.sleep(0.2)


# Who orders, and disturbs


class Program:
    """Starts commands, each in a process of its own."""

    def __init__(self, videos, folder):
        self._videos = videos
        self._errors = folder / "errors"
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self.answer()

    def ask(self, order):
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self):
        return json.loads(self._process.stdout.readline())

    def arguments(self, bank, *more):
        names = ["--extractor", "motion", "--extractor", "clip", "--weights", "clip=random-tiny"]
        where = ["--videos", str(self._videos), "--bank", str(bank), "--decoder", "pyav"]
        return ["extract", *names, *where, *more]

    def start(self, bank, *more, clock=0.0):
        """`vqbank extract`, whose clock goes wrong by so many seconds."""
        self._errors.unlink(missing_ok=True)
        arguments = self.arguments(bank, *more)
        order = {"arguments": arguments, "clock": clock, "errors": str(self._errors)}
        return Client(self, self.ask(order)["pid"], self._errors)

    def powerless(self, *arguments):
        """A command for which modes and owners of files count."""
        self._errors.unlink(missing_ok=True)
        given = [str(argument) for argument in arguments]
        order = {"arguments": given, "clock": 0, "errors": str(self._errors), "powerless": True}
        return Client(self, self.ask(order)["pid"], self._errors)

    def upkeep(self, bank, *, clock=0.0):
        """What keeps a bank in order, until it is killed."""
        errors = self._errors.with_name("upkeep")
        order = {"upkeep": str(bank), "clock": clock, "errors": str(errors)}
        return Client(self, self.ask(order)["pid"], errors)

    def close(self):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


class Client:
    """One command at work."""

    def __init__(self, program, pid, errors):
        self.pid = pid
        self.status = None
        self._program = program
        self._errors = errors
        self._family = {}

    @property
    def errors(self):
        return self._errors.read_text(errors="replace")

    def works(self):
        """Whether it has not ended."""
        if self.status is None:
            self.status = self._program.ask({"poll": self.pid})["status"]
        return self.status is None

    def family(self):
        """Command lines of its children and theirs, by process; each after its parent."""
        found, left = {}, [self.pid]
        while left:
            with suppress(FileNotFoundError, ProcessLookupError):
                parent = left.pop()
                threads = Path(f"/proc/{parent}/task").glob("*/children")
                for child in [int(one) for thread in threads for one in thread.read_text().split()]:
                    found[child] = Path(f"/proc/{child}/cmdline").read_bytes()
                    left.append(child)
        self._family |= found
        return found

    def decoders(self):
        return [pid for pid, line in self.family().items() if b"isolated.py" in line]

    def workers(self):
        """All but the first are forked from it, which only waits."""
        return [pid for pid, line in self.family().items() if b"forkserver" in line][1:]

    def end(self):
        """Its exit status, once it and all that it started have gone."""
        begun = time.monotonic()
        while (self.family() is not None and self.works()) or any(map(is_alive, self._family)):
            left = [pid for pid in self._family if is_alive(pid)]
            what = "has not ended" if self.status is None else f"left {left} behind"
            assert time.monotonic() - begun < PATIENCE_SECONDS, f"{what}: {self.errors}"
            time.sleep(0.03)
        return self.status


def is_alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def send(process, *signals, gap=0.0):
    """Whether it was there to get the first of them."""
    sent = 0
    for number, one in enumerate(signals):
        time.sleep(gap * bool(number))
        with suppress(ProcessLookupError):
            os.kill(process, one)
            sent += 1
    return sent > 0


def send_to_all(client, *signals, gap=0.0):
    """To the process group, as a terminal and a batch system do."""
    sent = False
    for number, one in enumerate(signals):
        time.sleep(gap * bool(number))
        with suppress(ProcessLookupError):
            os.killpg(client.pid, one)
            sent = True
    return sent


def to_one(processes, rng, *signals, gap=0.0):
    return bool(processes) and send(int(rng.choice(processes)), *signals, gap=gap)


STOP = (signal.SIGSTOP, signal.SIGCONT)
ACCIDENTS = {
    "SIGKILL of the parent": lambda c, rng: send(c.pid, signal.SIGKILL),
    "SIGKILL of a decoder": lambda c, rng: to_one(c.decoders(), rng, signal.SIGKILL),
    "SIGKILL of all at once": lambda c, rng: send_to_all(c, signal.SIGKILL),
    "SIGTERM": lambda c, rng: send(c.pid, signal.SIGTERM),
    "SIGTERM twice": lambda c, rng: send(c.pid, *[signal.SIGTERM] * 2, gap=rng.uniform(0, 0.2)),
    "SIGTERM of all at once": lambda c, rng: send_to_all(c, signal.SIGTERM),
    "SIGINT": lambda c, rng: send(c.pid, signal.SIGINT),
    "SIGINT twice": lambda c, rng: send(c.pid, *[signal.SIGINT] * 2, gap=rng.uniform(0, 0.2)),
    "Ctrl-C: SIGINT of all at once": lambda c, rng: send_to_all(c, signal.SIGINT),
    "SIGSTOP of the parent, 3 s": lambda c, rng: send(c.pid, *STOP, gap=3),
    "SIGSTOP of a decoder, 3 s": lambda c, rng: to_one(c.decoders(), rng, *STOP, gap=3),
}
IN_WORKERS = {
    **ACCIDENTS,
    "SIGKILL of a worker": lambda c, rng: to_one(c.workers(), rng, signal.SIGKILL),
    "SIGTERM of a worker": lambda c, rng: to_one(c.workers(), rng, signal.SIGTERM),
    "SIGSTOP of a worker, 3 s": lambda c, rng: to_one(c.workers(), rng, *STOP, gap=3),
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    for n in range(VIDEOS):
        rng = np.random.default_rng(n)
        texture = rng.integers(0, 256, (48, 64 + 30, 3), dtype=np.uint8)
        pictures = (texture[:, i : i + 64] for i in range(20 + n))
        decoding.encode(folder / f"{n}.mp4", pictures, rate=10, crf=30)
    return folder


@pytest.fixture(scope="module")
def program(videos, tmp_path_factory):
    program = Program(videos, tmp_path_factory.mktemp("program"))
    yield program
    program.close()


@pytest.fixture(scope="module")
def whole(program, tmp_path_factory):
    """The bank of a run that nobody disturbed."""
    bank = tmp_path_factory.mktemp("banks") / "whole"
    client = program.start(bank)
    assert client.end() == 0, client.errors
    store = FeatureStore(bank)
    assert rows_of(store) == (VIDEOS * FEATURES, VIDEOS * FEATURES)
    return store


def rows_of(store):
    """How many videos' rows all commits of a bank hold together, and how many it has."""
    shards = [s for spec in store.specs() for s in committed_shards(store.path / spec.key, spec)]
    return sum(shard.record["videos"] for shard in shards), sum(
        len(store.video_ids(spec)) for spec in store.specs()
    )


def progress(bank):
    """Lines of ledgers and commits: they grow while videos are decoded and banked."""
    with suppress(FileNotFoundError):
        lines = sum(path.read_bytes().count(b"\n") for path in bank.glob("ledger/*.jsonl"))
        return lines + len(list(bank.glob("*@*/commits/*.json")))
    return 0


def wait_for(client, bank, steps):
    """Until it has made so many steps, or has ended."""
    before = progress(bank)
    while client.works() and progress(bank) < before + steps:
        time.sleep(0.005)


def committed(bank):
    """(key, video) of everything that can be read in a bank."""
    try:
        store = FeatureStore(bank)
        return {(spec.key, video) for spec in store.specs() for video in store.video_ids(spec)}
    except VqbankError:
        assert not list(bank.glob("*@*/commits/*.json"))  # else it is a bank and must be one
        return set()


class Chaos:
    """Banks that are made while something goes wrong again and again; counts what came of it."""

    def __init__(self, program, whole, folder, seed):
        self.rng = np.random.default_rng(seed)
        self.times = {}
        self.resumed = {}
        self.lost = 0
        self.wrong = 0
        self._program = program
        self._whole = whole
        self._folder = folder
        self._banks = 0

    def new_bank(self):
        self._banks += 1
        return self._folder / str(self._banks)

    def disturb(self, accidents, client, bank, name):
        """Let a run come to some point of its work, and let it happen; whether it did."""
        steps = int(self.rng.integers(0, VIDEOS + VIDEOS * FEATURES))
        wait_for(client, bank, steps)
        time.sleep(self.rng.uniform(0, 0.05))
        happened = client.works() and accidents[name](client, self.rng)
        self.times[name] = self.times.get(name, 0) + happened
        return happened

    def until_complete(self, accidents, left, *options, clock=lambda: 0.0, once=True):
        """One bank, from the first run to the one that ends with everything."""
        bank, before, happened = self.new_bank(), set(), set()
        while True:
            client = self._program.start(bank, *options, clock=clock())
            if left and self.disturb(accidents, client, bank, left[-1]):
                happened.add(left.pop())
            status = client.end()
            self.check(client)
            now = committed(bank)
            self.lost += len(before - now)
            before = now
            if status == 0:
                break
        self.compare(bank)
        if once:
            rows, unique = rows_of(FeatureStore(bank))
            assert rows == unique  # nothing that was committed was computed again
        for name in happened:
            self.resumed[name] = self.resumed.get(name, 0) + 1
        return bank

    def check(self, client):
        """However it ended, a person is told so and not shown code."""
        assert "Traceback" not in client.errors, client.errors

    def compare(self, bank):
        store = FeatureStore(bank)
        self.wrong += len(list(diff(self._whole, store)))
        assert list(verify(store)) == []
        assert list(read_ledger(bank))

    def report(self, tried, where):
        for name, times in self.times.items():
            tried(f"extract{where}: {name}", times, resumed=self.resumed.get(name, 0))
        assert (self.lost, self.wrong) == (0, 0)


def shuffled(rng, names, times):
    left = [name for name in names for _ in range(times)]
    rng.shuffle(left)
    return left


def test_a_bank_is_the_same_whatever_happened_to_its_run(program, whole, tmp_path):
    chaos = Chaos(program, whole, tmp_path, seed=4)
    left = ["SIGKILL of the parent", "SIGTERM", "SIGKILL of a decoder", "SIGINT twice"]
    while left:
        chaos.until_complete(ACCIDENTS, left)
    assert sum(chaos.times.values()) == 4
    assert (chaos.lost, chaos.wrong) == (0, 0)


@pytest.mark.soak
def test_whatever_happens_to_a_run_loses_nothing(program, whole, tmp_path, tried):
    chaos = Chaos(program, whole, tmp_path, seed=5)
    left = shuffled(chaos.rng, ACCIDENTS, 5)
    while left:
        chaos.until_complete(ACCIDENTS, left)
    chaos.report(tried, "")


@pytest.mark.soak
def test_whatever_happens_to_workers_loses_nothing(program, whole, tmp_path, tried):
    chaos = Chaos(program, whole, tmp_path, seed=6)
    left = shuffled(chaos.rng, IN_WORKERS, 2)
    while left:
        chaos.until_complete(IN_WORKERS, left, "--workers", "2", once=False)
    chaos.report(tried, " --workers 2")


@pytest.mark.soak
def test_clocks_that_jump_back_between_runs_lose_nothing(program, whole, tmp_path, tried):
    """Each run begins up to a week before the one before it, or after."""
    chaos = Chaos(program, whole, tmp_path, seed=7)
    left = ["SIGKILL of the parent"] * 12
    while left:
        chaos.until_complete(ACCIDENTS, left, clock=lambda: chaos.rng.uniform(-6e5, 0))
    chaos.report(tried, ", each at another time")


@pytest.mark.soak
@pytest.mark.parametrize(("seconds", "timeout"), [(12, 8), (16, 10), (61, 30)])
def test_a_stop_of_the_whole_job_is_charged_to_no_video(
    program, whole, tmp_path, tried, seconds, timeout
):
    """Batch systems stop all processes of a job, and let them go on, longer than --timeout."""
    client = program.start(tmp_path / "bank", "--timeout", str(timeout))
    while client.works() and not client.decoders():
        time.sleep(0.005)
    wait_for(client, tmp_path / "bank", 2)
    assert client.works()
    send_to_all(client, *STOP, gap=seconds)
    assert client.end() == 0, client.errors
    assert list(diff(whole, FeatureStore(tmp_path / "bank"))) == []
    tried(f"extract: SIGSTOP of all at once, {seconds} s at --timeout {timeout}", 1, resumed=1)


@pytest.mark.soak
def test_two_runs_into_one_bank_lose_nothing(program, whole, tmp_path, tried):
    """Both do all videos, and both are killed."""
    chaos = Chaos(program, whole, tmp_path, seed=8)
    kinds = ["SIGKILL of the parent", "SIGKILL of a decoder", "SIGTERM", "SIGINT twice"]
    left = shuffled(chaos.rng, kinds, 4)
    while left:
        bank, before, done = chaos.new_bank(), set(), False
        while not done:
            both = [program.start(bank) for _ in range(2)]
            for client in both:
                if left and chaos.disturb(ACCIDENTS, client, bank, left[-1]):
                    left.pop()
            done = [client.end() for client in both] == [0, 0]
            now = committed(bank)
            chaos.lost += len(before - now)
            before = now
        chaos.compare(bank)
        chaos.resumed["SIGKILL of the parent"] = chaos.resumed.get("SIGKILL of the parent", 0) + 1
    chaos.report(tried, " twice into one bank")


@pytest.mark.soak
def test_upkeep_beside_a_run_loses_nothing(program, whole, tmp_path, tried):
    """Compacting, pruning and merging go on while videos are banked; both sides are killed."""
    chaos = Chaos(program, whole, tmp_path, seed=9)
    kinds = ["SIGKILL of the parent", "SIGKILL of a decoder", "SIGTERM", "SIGINT"]
    left = shuffled(chaos.rng, kinds, 4)
    while left:
        bank, before, done = chaos.new_bank(), set(), False
        FeatureStore.create(bank)
        while not done:
            upkeep = [program.upkeep(bank, clock=-chaos.rng.uniform(0, 3600)) for _ in range(2)]
            client = program.start(bank)
            if left and chaos.disturb(ACCIDENTS, client, bank, left[-1]):
                left.pop()
            done = client.end() == 0
            for one in upkeep:
                killed = one.works() and send(one.pid, signal.SIGKILL)
                chaos.times["SIGKILL of upkeep"] = chaos.times.get("SIGKILL of upkeep", 0) + killed
                one.end()
                assert "Traceback" not in one.errors, one.errors
            now = committed(bank)
            chaos.lost += len(before - now)
            before = now
        chaos.compare(bank)
        store = FeatureStore(bank)
        for spec in store.specs():
            compact(store, spec)
        prune(store, dry_run=False, older_than_seconds=0)
        chaos.compare(bank)
        merged = FeatureStore.create(bank.with_name(f"{bank.name}-merged"))
        merge(merged, [store])
        chaos.compare(merged.path)
        chaos.resumed["SIGKILL of upkeep"] = chaos.resumed.get("SIGKILL of upkeep", 0) + 1
    chaos.report(tried, " beside compact, prune and merge")


def states(folder):
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


def owned_by_another(bank):
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs root, to give files away")
    for path in [bank, *bank.rglob("*")]:
        os.chown(path, 65534, 65534)


def without_modes(bank):
    if sys.platform != "linux" and os.geteuid() == 0:
        pytest.skip("root's files cannot be kept from root here")
    for path in [bank, *bank.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)


@pytest.mark.parametrize("taken", [owned_by_another, without_modes])
def test_a_bank_that_may_only_be_read_is_read_and_a_run_is_refused_by_name(
    program, whole, tmp_path, taken
):
    bank = tmp_path / "bank"
    shutil.copytree(whole.path, bank)
    (feature,) = bank.glob("motion.series@*")
    next(feature.glob("commits/*.json")).unlink()  # so that there is something to do
    taken(bank)
    before = states(bank)

    refused = program.powerless(*program.arguments(bank))
    assert refused.end() == 2
    assert refused.errors.count("error: ") == 1
    assert "Traceback" not in refused.errors
    assert f"error: {bank} cannot be written ({bank}/ledger/" in refused.errors
    assert "Permission denied; ask its owner for the right to write there" in refused.errors
    for arguments in (["status"], ["ls"], ["verify"]):
        asked = program.powerless(*arguments, bank)
        assert asked.end() == 0, asked.errors
    assert states(bank) == before
    for path in [bank, *bank.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o200)


FRESH = "from vqbank.pipelines.commands.cli import main; print(flush=True); main()"


@pytest.mark.soak
def test_a_signal_from_the_first_millisecond_on_ends_a_command(program, whole, tmp_path, tried):
    """Of a new interpreter, which imports for most of its life."""
    rng = np.random.default_rng(10)
    bank, seconds = tmp_path / "bank", 0.0
    for number in range(13):
        if number in (0, 12):
            bank = tmp_path / f"bank {number}"
        begun = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-c", FRESH, *program.arguments(bank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        if number:
            time.sleep(rng.uniform(0, seconds))
            process.send_signal([signal.SIGINT, signal.SIGTERM][number % 2])
        begun_by_it, told = process.communicate(timeout=PATIENCE_SECONDS)
        seconds = seconds or time.monotonic() - begun
        if begun_by_it:  # before that there is only Python
            assert process.returncode in (0, 130), told
            assert (process.returncode == 130) == ("stopped" in told)
    client = program.start(bank)
    assert client.end() == 0, client.errors
    assert list(diff(whole, FeatureStore(bank))) == []
    tried("extract: SIGINT or SIGTERM of a new process, also while it imports", 12, resumed=1)


if __name__ == "__main__":
    serve()
