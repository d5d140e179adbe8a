"""The one training loop, and which rows it holds out."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from sklearn.model_selection import GroupKFold
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.optim.adamw import adamw

from regressors.batches import WINDOW_SHARE, Batch, Scaling, Series, Window
from regressors.metrics import srcc
from store.errors import HeadError, refusal
from store.schema import Video
from store.shard import write_atomically

BUCKET = 16
"""Batches among which videos are sorted by length, so that little of a batch is padding."""
PREDICTED = 64
"""Videos of a batch that is only predicted, at most."""
CHECKPOINT_SHARE = 20
"""Between two checkpoints, at least so many times what writing one takes: a twentieth of the time,
at most, goes into them."""


def scenes_of(videos: Sequence[Video]) -> list[str]:
    """The scene of each video; one without a scene is a scene of its own, called by its id."""
    return [video.id if video.scene is None else video.scene for video in videos]


def hold_out_scenes(
    videos: Sequence[Video], *, fraction: float, rng: np.random.Generator, at_least: int = 1
) -> NDArray[np.bool_]:
    """[n], true for the videos of randomly chosen scenes.

    round(fraction x scenes) scenes are held out, at least `at_least` and never all.  Which ones
    depends on the names of the scenes and on `rng`, not on the order of the videos.

    Raises:
        HeadError: if `fraction` is not between 0 and 1, or there are no more than `at_least`
            scenes.
    """
    if not 0 < fraction < 1:
        raise HeadError(f"a fraction of scenes lies between 0 and 1; got {fraction}")
    scenes = scenes_of(videos)
    names = sorted(set(scenes))
    if len(names) <= at_least:
        raise HeadError(
            f"holding out {at_least} of the scenes needs more than {at_least}; got {len(names)} "
            f"in {len(videos)} videos"
        )
    count = min(max(at_least, round(fraction * len(names))), len(names) - 1)
    held = {names[index] for index in rng.permutation(len(names))[:count]}
    return np.array([scene in held for scene in scenes])


def scene_folds(
    videos: Sequence[Video], count: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows to fit and rows to judge by, for each of `count` folds, no scene on two sides.

    Fewer folds where there are fewer scenes.

    Raises:
        HeadError: if that leaves fewer than 2 folds.
    """
    scenes = scenes_of(videos)
    folds = min(count, len(set(scenes)))
    if folds < 2:
        raise HeadError(
            "choosing hyper-parameters needs at least 2 folds of training scenes; "
            f"got {count} folds and {len(set(scenes))} scenes in {len(videos)} videos"
        )
    return list(GroupKFold(folds).split(np.empty(len(videos)), groups=scenes))


@dataclass(frozen=True)
class Plan:
    """How a network is trained; the parameters of a head that say so."""

    epochs: int
    """The most that are run."""
    patience: int
    """Epochs without a better SRCC after which training ends."""
    batch_size: int
    """Videos per step at least, or all where they are fewer; at least 2."""
    learning_rate: float
    """Of AdamW."""
    weight_decay: float
    decay_epochs: int
    """Epochs after which the learning rate is multiplied by `decay`, again and again."""
    decay: float
    standardise: bool
    """Values of a row by their mean and deviation over the rows that are fitted."""
    threads: int
    """Of PyTorch.  Another number gives other last bits."""


class Job(NamedTuple):
    """One network to be trained."""

    fit: NDArray[np.int64]
    """Rows of the table that are fitted."""
    held: NDArray[np.int64]
    """Rows of the table that choose the epoch."""
    targets: Tensor
    """[n] float32, of every row of the table: what the loss compares with."""
    seed: int
    """Of its start, its batches and its noise."""


class Epoch(NamedTuple):
    """What an epoch came to."""

    member: int
    """Of the jobs that are trained."""
    epoch: int
    """From 1."""
    epochs: int
    """The most that are run."""
    loss: float
    """Mean over the epoch's steps."""
    srcc: float
    """On held-out rows, never on test rows; NaN where all predictions agree."""
    best_epoch: int
    """So far; 0 for none."""
    best_srcc: float


Watch = Callable[[Epoch], None]


class Trained(NamedTuple):
    """What a job came to."""

    state: dict[str, Tensor]
    """Of the network after its best epoch."""
    scaling: Scaling | None
    epoch: int
    """The best one, from 1."""
    srcc: float
    """Of the best epoch, on the held-out rows."""


def train(
    series: Series,
    jobs: Sequence[Job],
    *,
    network: Callable[[torch.Generator], nn.Module],
    loss: Callable[[Tensor, Tensor], Tensor],
    plan: Plan,
    first: int = 0,
    watch: Watch | None = None,
    checkpoint: Path | None = None,
    identity: Mapping[str, Any] = MappingProxyType({}),
) -> list[Trained]:
    """Train one network per job, all at the same time as one stack.

    AdamW on the rows that are fitted, in shuffled batches of videos of like length.  The best epoch
    is the first with the highest SRCC on the held-out rows; training of a job ends `patience`
    epochs after it.  A job's batches, start and noise depend on its own rows and seed alone, so
    that it comes to the same with any company, but for the rounding of sums (below 1e-5).

    Rows beyond the budget of `series` are streamed; one job at a time is then trained, because
    windows follow the rows of a job.

    Args:
        series: n videos.
        jobs: what to train.
        network: makes a module that maps a Batch to scores [b]; called with the job's generator.
        loss: of scores [b] and targets [b].
        plan: how.
        first: number of the first job, where these are some of many; the others follow.
        watch: told of every epoch of every job.
        checkpoint: a file that is written as training goes, and from which it goes on.
        identity: all else that makes a training this one and no other, as JSON values.

    Raises:
        HeadError: if the rows on either side of a job share one target, a value is not finite,
            training diverges or never ranks anything, or the checkpoint is of another training or
            cannot be written.
    """
    every = np.unique(np.concatenate([rows for job in jobs for rows in (job.fit, job.held)]))
    if len(jobs) > 1 and not series.hold(every):
        raise HeadError(f"{len(jobs)} networks are trained at once only from memory")
    series.hold(every)
    with _threads(plan.threads):
        members = [
            _Member(number, job, network(generator), plan, generator, series.device)
            for number, job in enumerate(jobs, start=first)
            for generator in [torch.Generator().manual_seed(job.seed)]
        ]
        for member in members:
            member.refuse_constant()
        if plan.standardise:
            for member, scaling in zip(
                members, _scalings(series, [j.fit for j in jobs]), strict=True
            ):
                member.scaling = scaling
        module = network(torch.Generator()).to(series.device)
        journal = _Journal(checkpoint, members, plan, identity)
        while active := [member for member in members if not member.done]:
            stack = _Stack(module, active, series.device)
            while not any(member.done for member in active):
                _epoch(series, stack, loss, plan)
                for member in active:
                    if watch is not None:
                        watch(member.told(plan))
                journal.keep()
        journal.keep(now=True)
        return [member.result(plan) for member in members]


def scores(
    series: Series,
    rows: NDArray[np.int64],
    *,
    module: nn.Module,
    state: Mapping[str, Tensor],
    scalings: Sequence[Scaling | None],
    threads: int,
    stacked: bool,
) -> NDArray[np.float64]:
    """[k, n]: what k networks say of n videos.

    Args:
        series: where the videos are.
        rows: of its table.
        module: a network of the right shape; its own parameters are not used.
        state: the k networks' parameters, [k, ...] each.
        scalings: k.
        threads: of PyTorch.
        stacked: whether the networks run as one, or one after the other.
    """
    members = list(range(len(scalings)))
    groups = [members] if stacked else [[member] for member in members]
    with _threads(threads), torch.inference_mode():
        series.hold(rows)
        out = np.empty((len(scalings), len(rows)))
        place = {row: number for number, row in enumerate(rows.tolist())}
        module.eval()
        for window in series.windows(rows, rng=np.random.default_rng(0)):
            wanted = _inside(window, rows)
            for own in groups:
                parameters = {name: value[own] for name, value in state.items()}
                scaled = [scalings[member] for member in own]
                for batches in _by_length(series, [wanted] * len(own)):
                    columns = [place[row] for row in batches[0].tolist()]
                    predicted = _stacked(module, parameters, window, batches, scaled)
                    out[np.ix_(own, columns)] = predicted.double().cpu().numpy()
    return out


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Small networks gain nothing from threads, and beside other work lose twentyfold.

    Besides, another number of threads would give other bits.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Member:
    """One network under training: all that differs between those of a stack."""

    def __init__(
        self,
        number: int,
        job: Job,
        module: nn.Module,
        plan: Plan,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.number = number
        self.job = job
        self.targets = job.targets.to(device)
        self.parameters = {
            name: value.detach().to(device) for name, value in module.named_parameters()
        }
        self.moments = {
            name: tuple(torch.zeros_like(value) for _ in range(2))
            for name, value in self.parameters.items()
        }
        self.counts = {name: torch.zeros((), device=device) for name in self.parameters}
        self.generator = generator
        self.order = np.random.default_rng(job.seed)
        self.plan = plan
        self.scaling: Scaling | None = None
        self.steps = 0
        self.epoch = 0
        self.loss = self.srcc = math.nan
        self.best_epoch, self.best_srcc = 0, -math.inf
        self.best = {name: value.clone() for name, value in self.parameters.items()}

    @property
    def done(self) -> bool:
        """Whether its epochs or its patience are over."""
        return self.epoch >= self.plan.epochs or self.epoch - self.best_epoch >= self.plan.patience

    def refuse_constant(self) -> None:
        """A split that leaves nothing to rank."""
        for name, rows in (("training", self.job.fit), ("held-out", self.job.held)):
            if len(self.job.targets[rows].unique()) < 2:
                raise HeadError(
                    f"the {len(rows)} {name} rows share one MOS, which leaves nothing to rank; "
                    "use more videos, another seed or another validation_fraction"
                )

    def batches(
        self, rows: NDArray[np.int64], lengths: Callable[[NDArray[np.int64]], NDArray[np.int64]]
    ) -> list[NDArray[np.int64]]:
        """Shuffled batches of at least `batch_size` rows, those of a batch of like length."""
        shuffled = rows[torch.randperm(len(rows), generator=self.generator).numpy()]
        bucket = BUCKET * self.plan.batch_size
        parts = np.array_split(shuffled, max(1, len(rows) // bucket))
        batches = [
            batch
            for part in parts
            for batch in np.array_split(
                part[np.argsort(lengths(part), kind="stable")],
                max(1, len(part) // self.plan.batch_size),
            )
        ]
        order = torch.randperm(len(batches), generator=self.generator)
        return [batches[number] for number in order.tolist()]

    def noise(self) -> int:
        """Of the step that comes; the last of many runs may have a seed beyond 31 bits."""
        return (self.job.seed * 2**32 + self.steps) % 2**63

    def judge(self, loss: float, held_srcc: float) -> None:
        """Close an epoch; SRCC of NaN, where all predictions agree, is never better."""
        self.epoch += 1
        self.loss, self.srcc = loss, held_srcc
        if held_srcc > self.best_srcc:
            self.best_epoch, self.best_srcc = self.epoch, held_srcc
            for name, value in self.parameters.items():
                self.best[name].copy_(value)

    def told(self, plan: Plan) -> Epoch:
        """What its last epoch came to."""
        return Epoch(
            self.number,
            self.epoch,
            plan.epochs,
            self.loss,
            self.srcc,
            self.best_epoch,
            self.best_srcc,
        )

    def result(self, plan: Plan) -> Trained:
        """After training."""
        if self.best_epoch == 0:
            raise HeadError(
                f"predictions stayed constant for {self.epoch} epochs; raise the learning rate"
            )
        return Trained(self.best, self.scaling, self.best_epoch, self.best_srcc)

    def state(self) -> dict[str, Tensor]:
        """All that going on needs, but for `counters`."""
        state = {"generator": self.generator.get_state()}
        for name, value in self.parameters.items():
            first, second = self.moments[name]
            own = {
                "now": value,
                "best": self.best[name],
                "first": first,
                "second": second,
                "count": self.counts[name],
            }
            state |= {f"{kind}.{name}": tensor.clone() for kind, tensor in own.items()}
        return state

    def counters(self) -> dict[str, Any]:
        """What `state` has no tensors for."""
        return {
            "steps": self.steps,
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "best_srcc": self.best_srcc,
            "order": self.order.bit_generator.state,
        }

    def go_on(self, state: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        """Be as it was when `state` and `counters` were taken."""
        self.generator.set_state(state["generator"])
        self.order.bit_generator.state = counters["order"]
        for name, value in self.parameters.items():
            first, second = self.moments[name]
            value.copy_(state[f"now.{name}"])
            self.best[name].copy_(state[f"best.{name}"])
            first.copy_(state[f"first.{name}"])
            second.copy_(state[f"second.{name}"])
            self.counts[name].copy_(state[f"count.{name}"])
        for name in ("steps", "epoch", "best_epoch", "best_srcc"):
            setattr(self, name, counters[name])


class _Stack:
    """The parameters of several members in one tensor each; the members' own are views of it."""

    def __init__(self, module: nn.Module, members: Sequence[_Member], device: torch.device) -> None:
        self.module = module
        self.members = members
        self.parameters: dict[str, Tensor] = {}
        for name in members[0].parameters:
            stacked = torch.stack([member.parameters[name] for member in members])
            for member, view in zip(members, stacked, strict=True):
                member.parameters[name] = view  # without a gradient of its own
            self.parameters[name] = stacked.detach().requires_grad_()

    def scores(self, window: Window, rows: Sequence[NDArray[np.int64]]) -> Tensor:
        """[k, b] of b videos for each member."""
        scalings = [member.scaling for member in self.members]
        noise = [member.noise() for member in self.members]
        return _stacked(self.module, self.parameters, window, rows, scalings, noise)

    def step(
        self,
        window: Window,
        batches: Sequence[NDArray[np.int64] | None],
        loss: Callable[[Tensor, Tensor], Tensor],
    ) -> list[float]:
        """One step of every member that has a batch; the loss of each, NaN for the others."""
        some = next(batch for batch in batches if batch is not None)
        filled = _of_one_size([some if batch is None else batch for batch in batches])
        predicted = self.scores(window, filled)
        losses = [
            None
            if rows is None
            else loss(predicted[number, : len(rows)], self.members[number].targets[rows])
            for number, rows in enumerate(batches)
        ]
        for value in self.parameters.values():
            value.grad = None
        total: Tensor = sum(one for one in losses if one is not None)  # type: ignore[assignment]
        total.backward()
        self._follow([number for number, one in enumerate(losses) if one is not None])
        return [math.nan if one is None else one.item() for one in losses]

    def _follow(self, numbers: Sequence[int]) -> None:
        """AdamW for some members, with the gradients that the stack has."""
        parameters, gradients, firsts, seconds, counts = [], [], [], [], []
        for number in numbers:
            member = self.members[number]
            member.steps += 1
            for name, value in member.parameters.items():
                gradient = self.parameters[name].grad
                if gradient is None:
                    continue  # of a layer that the network does not use
                parameters.append(value)
                gradients.append(gradient[number])
                firsts.append(member.moments[name][0])
                seconds.append(member.moments[name][1])
                counts.append(member.counts[name])
        plan, epoch = self.members[0].plan, self.members[0].epoch
        # The function, because making a torch.optim.Optimizer imports torch's compiler: seconds.
        adamw(
            parameters,
            gradients,
            firsts,
            seconds,
            [],
            counts,
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=plan.learning_rate * plan.decay ** (epoch // plan.decay_epochs),
            weight_decay=plan.weight_decay,
            eps=1e-8,
            maximize=False,
        )


def _epoch(
    series: Series,
    stack: _Stack,
    loss: Callable[[Tensor, Tensor], Tensor],
    plan: Plan,
) -> None:
    members = stack.members
    losses: list[list[float]] = [[] for _ in members]
    stack.module.train()
    # A window of many is the whole of one member's rows; of one member, whatever is streamed.
    fitted = np.unique(np.concatenate([member.job.fit for member in members]))
    for window in series.windows(fitted, rng=members[0].order, at_least=plan.batch_size):
        batches = [
            member.batches(_inside(window, member.job.fit), series.lengths) for member in members
        ]
        for step in range(max(map(len, batches))):
            some = [own[step] if step < len(own) else None for own in batches]
            for own, value in zip(losses, stack.step(window, some, loss), strict=True):
                if not math.isnan(value):
                    own.append(value)
    stack.module.eval()
    with torch.inference_mode():
        predicted = _held_out(series, stack)
    for member, own, values in zip(members, losses, predicted, strict=True):
        if not np.isfinite(values).all():
            raise HeadError(
                f"training diverged in epoch {member.epoch + 1}; lower the learning rate"
            )
        held = member.job.targets[member.job.held].double().numpy()
        member.judge(float(np.mean(own)), srcc(held, values))


def _held_out(series: Series, stack: _Stack) -> list[NDArray[np.float64]]:
    """Scores of each member's held-out rows."""
    members = stack.members
    out = [np.empty(len(member.job.held)) for member in members]
    places = [
        {row: number for number, row in enumerate(member.job.held.tolist())} for member in members
    ]
    every = np.unique(np.concatenate([member.job.held for member in members]))
    for window in series.windows(every, rng=np.random.default_rng(0)):
        wanted = [_inside(window, member.job.held) for member in members]
        for some in _by_length(series, wanted):
            predicted = stack.scores(window, _of_one_size(some)).double().cpu().numpy()
            for values, place, rows, own in zip(predicted, places, some, out, strict=True):
                own[[place[row] for row in rows.tolist()]] = values[: len(rows)]
    return out


def _inside(window: Window, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of the rows that the window has, in their own order."""
    return rows[np.isin(rows, window.rows)]


def _by_length(
    series: Series, rows: Sequence[NDArray[np.int64]]
) -> Iterator[list[NDArray[np.int64]]]:
    """Batches to be predicted, one for each member at a time, which share memory for one window.

    A member whose rows are all done gets its last one again.
    """
    ordered = [own[np.argsort(series.lengths(own), kind="stable")] for own in rows]
    count = max(map(len, ordered))
    filled = [np.pad(own, (0, count - len(own)), mode="edge") for own in ordered]
    longest = np.max([series.lengths(own) for own in filled], axis=0)
    row_bytes = len(rows) * sum(series.widths.values()) * 4  # float32
    most = series.budget_bytes // WINDOW_SHARE // row_bytes
    start = 0
    while start < count:
        reach = longest[start : start + PREDICTED]
        fitting = int((np.arange(1, len(reach) + 1) * reach <= most).sum())  # reach ascends
        stop = start + max(1, fitting)
        yield [own[start:stop] if start < len(own) else own[-1:] for own in ordered]
        start = stop


def _of_one_size(batches: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """Filled up with their last video, whose further scores are dropped."""
    size = max(map(len, batches))
    return [
        batch if len(batch) == size else np.pad(batch, (0, size - len(batch)), mode="edge")
        for batch in batches
    ]


def _stacked(
    module: nn.Module,
    parameters: Mapping[str, Tensor],
    window: Window,
    rows: Sequence[NDArray[np.int64]],
    scalings: Sequence[Scaling | None],
    noise: Sequence[int] | None = None,
) -> Tensor:
    """Scores [k, b] of k networks, each with its own b videos."""
    values, mask = window.padded(rows, scalings)
    numbers = torch.tensor(noise or [0] * len(rows), device=mask.device)
    batch = Batch(values, mask, numbers)
    if len(rows) == 1:
        alone = Batch({role: one[0] for role, one in values.items()}, mask[0], numbers[0])
        own = {name: value.squeeze(0) for name, value in parameters.items()}
        return functional_call(module, own, (alone,))[None]
    return vmap(lambda own, its: functional_call(module, own, (its,)))(dict(parameters), batch)


def _scalings(series: Series, fits: Sequence[NDArray[np.int64]]) -> list[Scaling]:
    """Mean and deviation over the rows of each job's training videos, in one pass."""
    every = np.unique(np.concatenate(fits))
    member = np.stack([np.isin(every, fit) for fit in fits]).astype(np.float64)  # [k, n]
    number = {row: place for place, row in enumerate(every.tolist())}
    counts = torch.from_numpy(member @ series.lengths(every))[:, None]
    shift: dict[str, Tensor] = {}
    sums = {
        role: torch.zeros(len(fits), width, dtype=torch.float64)
        for role, width in series.widths.items()
    }
    squares = {role: torch.zeros_like(total) for role, total in sums.items()}
    for window in series.windows(every, rng=np.random.default_rng(0)):
        rows = _inside(window, every).tolist()
        shares = torch.from_numpy(member[:, [number[row] for row in rows]])
        for role in series.widths:
            own = [_moments(block) for block in window.blocks(role, rows)]
            means, spread = (torch.cat(one).double().cpu() for one in zip(*own, strict=True))
            lengths = torch.from_numpy(series.lengths(np.array(rows))).double()[:, None]
            # Around some value, because squares of large means would swallow small deviations.
            means -= shift.setdefault(role, means[0].clone())
            sums[role] += shares @ (lengths * means)
            squares[role] += shares @ (lengths * (spread + means**2))
    scalings = []
    for place in range(len(fits)):
        mean, deviation = {}, {}
        for role, total in sums.items():
            centre = total[place] / counts[place]
            variance = (squares[role][place] / counts[place] - centre**2).clamp(min=0)
            # What is left of a value that never changes is rounding.
            constant = variance <= 1e-12 * (centre + shift[role]) ** 2
            mean[role] = (centre + shift[role]).float().to(series.device)
            deviation[role] = variance.sqrt().masked_fill(constant, 1).float().to(series.device)
        scalings.append(Scaling(mean, deviation))
    return scalings


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance [v, d] of v videos [v, t, d], in float32.

    The variance is `Tensor.var` without correction, which takes five times as long.
    """
    rows = rows.float()
    mean = rows.mean(dim=1)
    return mean, (rows - mean[:, None]).square_().mean(dim=1)


class _Journal:
    """The checkpoint of a training, if there is to be one."""

    def __init__(
        self,
        path: Path | None,
        members: Sequence[_Member],
        plan: Plan,
        identity: Mapping[str, Any],
    ) -> None:
        self.path = path
        self.members = members
        self.written = time.monotonic()
        self.took_seconds = 0.0
        if path is None:
            return
        self.identity = json.dumps(
            {
                **identity,
                "plan": repr(plan),
                "shapes": {n: list(v.shape) for n, v in members[0].parameters.items()},
                "jobs": [
                    [m.job.seed, m.job.fit.tolist(), m.job.held.tolist(), m.job.targets.tolist()]
                    for m in members
                ],
            },
            sort_keys=True,
        )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)  # before training, which may take long
        except OSError as error:
            raise _unwritable(path, error) from error
        if path.exists():
            self._go_on(path)

    def keep(self, *, now: bool = False) -> None:
        """Write the state of all members, if the last time is long enough ago."""
        if self.path is None:
            return
        start = time.monotonic()
        if not now and start - self.written < CHECKPOINT_SHARE * self.took_seconds:
            return
        tensors = {
            f"{member.number}.{name}": tensor
            for member in self.members
            for name, tensor in member.state().items()
        }
        counters = json.dumps([member.counters() for member in self.members])
        content = save(tensors, {"identity": self.identity, "counters": counters})
        try:
            write_atomically(self.path, content)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self.written = time.monotonic()
        self.took_seconds = self.written - start

    def _go_on(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as file:
                told = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise HeadError(f"{path} is no checkpoint, or damaged: {error}; remove it") from error
        if told is None or told.get("identity") != self.identity:
            before = json.loads((told or {}).get("identity", "{}"))
            raise HeadError(
                f"{path} is the checkpoint of another training, with other "
                f"{_differences(before, json.loads(self.identity))}; remove it to start anew"
            )
        for member, counters in zip(self.members, json.loads(told["counters"]), strict=True):
            own = f"{member.number}."
            member.go_on(
                {n.removeprefix(own): t for n, t in tensors.items() if n.startswith(own)}, counters
            )


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """What tells two trainings apart, in words."""
    words = {"head": "head", "keys": "features", "videos": "videos"}
    found = [word for key, word in words.items() if one.get(key) != other.get(key)]
    before, now = one.get("parameters", {}), other.get("parameters", {})
    found += [name for name in now if before.get(name) != now[name]]
    return ", ".join(found) or "scores or held-out rows"


def _unwritable(path: Path, error: OSError) -> HeadError:
    return HeadError(f"the checkpoint {path} cannot be written: {refusal(error)}")
