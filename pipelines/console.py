"""Tables, progress and colours; what others wrote is text, as in `vqbank.pipelines.terminal`."""

from typing import Any

from rich.console import Console
from rich.progress import ProgressColumn, Task
from rich.text import Text

from vqbank.pipelines.terminal import plain

WIDTH = 120
"""Characters of a line into a file or pipe."""


def styled(*lines: str, style: str = "", **options: Any) -> Text:
    """Text for a table, a display or a console, in a colour or with an overflow of its own.

    Args:
        *lines: Each on a line of its own.
        style: As Rich has it.
        **options: Of `rich.text.Text`.
    """
    return Text("\n".join(map(plain, lines)), style, **options)


def console(*, err: bool = False, width: int = WIDTH) -> "PlainConsole":
    """For tables and progress.

    Args:
        err: On standard error.
        width: Where it is no terminal; wide enough that no row is broken.
    """
    made = PlainConsole(stderr=err)
    return made if made.is_terminal else PlainConsole(stderr=err, width=width)


class PlainConsole(Console):
    """Strings, also those in cells, titles and captions, are text."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """As Rich renders a string, without markup and control characters."""
        return super().render_str(plain(text), **options | {"markup": False, "emoji": False})


class Words(ProgressColumn):
    """A column of a progress bar: a template of the task, as `rich.progress.TextColumn` has it."""

    def __init__(self, template: str) -> None:
        super().__init__()
        self._template = template

    def render(self, task: Task) -> Text:
        """The words of a task, on one line."""
        return Text(plain(self._template.format(task=task)))
