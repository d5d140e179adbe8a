"""The whole job once: `demo`."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    folder: Annotated[Path, typer.Argument(help="Where everything goes.")] = Path("demo"),
) -> None:
    """Make a small data set, bank its features, train heads, write a report, score a new video."""
    from vqbank.pipelines.commands.evaluate import show_experiment
    from vqbank.pipelines.console import console
    from vqbank.pipelines.demo.demo import run_demo
    from vqbank.pipelines.extraction.display import show_extraction

    run_demo(folder, console(err=True), extract=show_extraction, evaluate=show_experiment)
