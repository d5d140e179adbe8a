"""What a person sees of fits: what they will cost, how far they are; TensorBoard if asked for."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from rich.progress import BarColumn, Progress, TaskID, TimeRemainingColumn

from vqbank.pipelines.console import PlainConsole, Words, console
from vqbank.pipelines.stopping import stopped_by_signals
from vqbank.pipelines.terminal import counted, say
from vqbank.regressors.progress import Cost, Epoch, Step
from vqbank.store.errors import RecipeError

Result = TypeVar("Result")


class Fitted(NamedTuple):
    """A cell of an experiment that is done with a split."""

    cell: str
    split: int


Telling = Callable[[Epoch | Step | Cost | Fitted], None]
"""Takes what a run tells of itself while it goes on."""
NO_TENSORBOARD = "--tensorboard needs TensorBoard: pip install 'vqbank[tensorboard]'"
LOG_SECONDS = 60.0
"""Between lines where the error stream is no terminal, at least."""


@contextmanager
def watched(title: str) -> Iterator[Telling]:
    """Shows epochs and the SRCC on held-out rows while heads are fitted.

    Where the error stream is no terminal, a line now and then.

    Args:
        title: of the lines.
    """
    with ExitStack() as stack:
        shown_on = console(err=True)
        progress = Progress(
            Words("{task.description}"),
            BarColumn(),
            Words("epoch {task.completed} of {task.total}"),
            Words("{task.fields[judged]}"),
            TimeRemainingColumn(),
            console=shown_on,
            transient=True,
            disable=not shown_on.is_terminal,
        )
        search = Progress(
            Words("{task.description}"),
            BarColumn(),
            console=shown_on,
            transient=True,
            disable=not shown_on.is_terminal,
        )
        stack.enter_context(stopped_by_signals())
        tasks: dict[int, TaskID] = {}
        shown: list[Progress] = []
        say_rarely = _now_and_then(shown_on)

        def watch(epoch: Epoch | Step | Cost | Fitted) -> None:
            if isinstance(epoch, Fitted):
                return
            if isinstance(epoch, Cost):
                say(_text(epoch), err=True)
                return
            display = search if isinstance(epoch, Step) else progress
            if display not in shown:
                shown.append(stack.enter_context(display))  # of one fit, one of the two
            if isinstance(epoch, Step):
                if 0 not in tasks:
                    tasks[0] = search.add_task("")
                search.update(
                    tasks[0], description=_text(epoch), completed=epoch.done, total=epoch.total
                )
                say_rarely(_text(epoch))
                return
            if epoch.member not in tasks:
                tasks[epoch.member] = progress.add_task(
                    f"{title}, run {epoch.member + 1}", total=epoch.epochs, judged=""
                )
            progress.update(
                tasks[epoch.member],
                completed=epoch.epoch,
                judged=_judged(epoch),
            )
            say_rarely(f"{title}: {_text(epoch)}")

        yield watch


def evaluated(run: Callable[[Telling], Result], *, total: int) -> Result:
    """What a run gives, with a line that says how far it is.

    Args:
        run: called with what shall be told of costs, steps, epochs and fits that are done.
        total: fits that will be done.
    """
    shown_on = console(err=True)
    progress = Progress(
        Words("evaluate"),
        BarColumn(),
        Words("{task.completed} of {task.total} fits"),
        Words("{task.fields[network]}"),
        console=shown_on,
        transient=True,
        disable=not shown_on.is_terminal,
    )
    done = 0
    say_rarely = _now_and_then(shown_on)
    with stopped_by_signals(), progress:
        task = progress.add_task("evaluate", total=total, network="")

        def watch(told: Epoch | Step | Cost | Fitted) -> None:
            nonlocal done
            if isinstance(told, Cost):
                shown_on.print(_text(told), soft_wrap=True)
            elif isinstance(told, Fitted):
                done += 1
                progress.update(task, advance=1, network="")
                say_rarely(f"evaluate: {done} of {total} fits", last=done == total)
            else:
                progress.update(task, network=_text(told))
                say_rarely(f"evaluate: {done} of {total} fits; {_text(told)}")

        return run(watch)


def _text(told: Epoch | Step | Cost) -> str:
    if isinstance(told, Cost):
        each = f"a fit on {counted(told.videos, 'video')} takes about {_duration(told.fit_seconds)}"
        if told.fits == 1:
            return f"{told.head}: {each}"
        return f"{told.head}: {each}, all {told.fits} about {_duration(told.seconds)}"
    if isinstance(told, Step):
        return f"{told.head}: {told.what}, {told.done / told.total:.0%} of a fit"
    begun = f"network {told.member + 1}, epoch {told.epoch} of {told.epochs}"
    return f"{begun}, {_judged(told)}"


def _judged(told: Epoch) -> str:
    if math.isinf(told.best_srcc) and math.isnan(told.srcc):
        return f"loss {told.loss:.4g}"  # nothing is held out, or nothing is ranked yet
    return f"held-out SRCC {told.srcc:.3f}, best {told.best_srcc:.3f}"


def _duration(seconds: float) -> str:
    """In the largest unit of which there is one, such as "9 h"."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.2g} {unit}"
    return f"{max(1.0, seconds):.0f} s"


def _now_and_then(shown_on: PlainConsole) -> Callable[..., None]:
    """Prints a line where the console is no terminal, if the last one is long enough ago.

    And the last of all, if there was any before.
    """
    start = said = time.monotonic()

    def now_and_then(text: str, *, last: bool = False) -> None:
        nonlocal said
        now = time.monotonic()
        if not shown_on.is_terminal and (now - said >= LOG_SECONDS or (last and said > start)):
            said = now
            say(text, err=True)

    return now_and_then


@contextmanager
def event_files(folder: Path, watch: Telling | None) -> Iterator[Telling]:
    """Writes loss and SRCC of every epoch of every run for TensorBoard.

    Args:
        folder: made if need be; each run has a folder of its own there.
        watch: also told of everything.

    Raises:
        RecipeError: if TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RecipeError(NO_TENSORBOARD) from error
    with ExitStack() as stack:
        writers: dict[int, SummaryWriter] = {}

        def log(told: Epoch | Step | Cost | Fitted) -> None:
            if watch is not None:
                watch(told)
            if not isinstance(told, Epoch):
                return
            if told.member not in writers:
                writer = SummaryWriter(str(folder / f"run-{told.member + 1}"))
                stack.callback(writer.close)
                writers[told.member] = writer
            writers[told.member].add_scalar("loss", told.loss, told.epoch)
            writers[told.member].add_scalar("held-out SRCC", told.srcc, told.epoch)

        yield log
