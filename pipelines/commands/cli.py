"""The command line.  Libraries are imported inside the commands, so that `--help` is quick."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
import typer.core

from vqbank.pipelines.commands import names
from vqbank.pipelines.commands.ablate import ablate
from vqbank.pipelines.commands.audit import audit
from vqbank.pipelines.commands.bank import compact, diff, merge, prune, verify
from vqbank.pipelines.commands.contents import ls, show, status
from vqbank.pipelines.commands.cost import cost
from vqbank.pipelines.commands.demo import demo
from vqbank.pipelines.commands.doctor import doctor
from vqbank.pipelines.commands.ensemble import challenge, ensemble
from vqbank.pipelines.commands.evaluate import compare, evaluate, results
from vqbank.pipelines.commands.exchange import export, import_app, pack, selection
from vqbank.pipelines.commands.extract import extract
from vqbank.pipelines.commands.golden import golden
from vqbank.pipelines.commands.labels import labels_app
from vqbank.pipelines.commands.options import program
from vqbank.pipelines.commands.predict import predict
from vqbank.pipelines.commands.report import report
from vqbank.pipelines.commands.splits import split_app
from vqbank.pipelines.commands.train import train
from vqbank.pipelines.commands.weights import app as weights_app
from vqbank.pipelines.log import log
from vqbank.pipelines.stopping import STOPPED, left_by_signals
from vqbank.pipelines.terminal import say
from vqbank.store.errors import VqbankError, refusal


class Told(logging.Handler):
    """Prints what runs tell beside their results."""

    def emit(self, record: logging.LogRecord) -> None:
        """On standard error, a warning as such."""
        warning = "warning: " if record.levelno >= logging.WARNING else ""
        say(f"{warning}{record.getMessage()}", err=True)


@contextmanager
def printed() -> Iterator[None]:
    """In here, a whole command, what runs tell is printed."""
    told, before = Told(), log.level
    log.addHandler(told)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(told)
        log.setLevel(before)


class Commands(typer.core.TyperGroup):
    """Whichever is stopped says so."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that is named, and print what it tells."""
        try:
            with printed():
                return super().invoke(ctx)
        except KeyboardInterrupt as stopped:
            say(str(stopped) or "stopped", err=True)
            raise


app = program(cls=Commands, no_args_is_help=True, add_completion=True)
for command in (
    demo, extract, names.recipe, status, evaluate, results, compare, ablate, audit, ensemble,
    challenge, report, train, cost, names.heads, names.extractors, predict, ls, show, golden, diff,
    verify, compact, merge, prune, selection, export, pack, doctor,
):  # fmt: skip
    app.command()(command)
app.add_typer(import_app, name="import")
app.add_typer(weights_app, name="weights")
app.add_typer(labels_app, name="labels")
app.add_typer(split_app, name="split")


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - as Typer calls it
    from importlib.metadata import version

    if wanted:
        say(f"vqbank {version('vqbank')}")
        raise typer.Exit


@app.callback()
def vqbank(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print it and exit."),
    ] = False,
) -> None:
    """Bank frozen video-quality features once; train, ablate and ship light heads from it."""
    from vqbank.store.files import allow_open_files

    allow_open_files()


def main() -> None:
    """Run the command line; an expected error is one line and exit code 2."""
    try:
        with left_by_signals():
            _run()
    except KeyboardInterrupt:  # before a command had begun, or after it
        say("stopped", err=True)
        _leave()


def _run() -> None:
    try:
        app()
    except SystemExit as ended:
        if ended.code == STOPPED:
            _leave()
        raise
    except VqbankError as error:
        say(f"error: {error}", err=True)
        sys.exit(2)
    except ModuleNotFoundError as error:
        say(
            f"error: this command needs {error.name}, which is not installed; extraction needs "
            "`pip install 'vqbank[extract]'`",
            err=True,
        )
        sys.exit(2)
    except OSError as error:
        say(f"error: {refusal(error)}", err=True)
        sys.exit(2)


def _leave() -> NoReturn:
    """At once: threads may be at a batch that nobody wants any more."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(STOPPED)
