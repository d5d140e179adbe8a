"""What others wrote reaches the terminal as text: whole, on its line, and without any power."""

import io
import re

import pytest
from rich.table import Table

from vqbank.pipelines.console import console, styled
from vqbank.pipelines.terminal import plain, say, say_lines

HOSTILE = "a[/x][bold]b:smile:\x1b[31m\x9b1A\r\n\t\x07\u202e\ud800"
SHOWN = "a[/x][bold]b:smile:\\x1b[31m\\x9b1A\\r\\n\\t\\x07\\u202e\\ud800"


def test_control_characters_are_shown_as_escapes_and_all_else_as_it_is():
    assert plain(HOSTILE) == SHOWN
    assert plain("Grünes Tal 视频/0001.mp4") == "Grünes Tal 视频/0001.mp4"


def test_a_line_stays_one_line(capsys):
    say(f"failed: {HOSTILE}")
    say("0.5", HOSTILE, "b\tc")
    say_lines("one\ntwo\t\x1b\n")

    assert capsys.readouterr().out == (f"failed: {SHOWN}\n0.5\t{SHOWN}\tb\\tc\none\ntwo\t\\x1b\n")


@pytest.mark.parametrize("terminal", [True, False])
def test_cells_titles_and_captions_are_text(terminal, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR" if terminal else "NO_COLOR", "1")
    table = Table(HOSTILE, title=HOSTILE, caption=HOSTILE)
    table.add_row(HOSTILE)
    table.add_row(styled(HOSTILE, "second", style="red"))
    made = console(width=200)
    made.width = 200
    made.file = io.StringIO()
    made.print(table)
    made.print(HOSTILE)
    got = made.file.getvalue()

    assert made.is_terminal == terminal
    assert ("\x1b[" in got) == terminal
    colours_of_rich = re.compile(r"\x1b\[[0-9;]*m")
    left = colours_of_rich.sub("", got)
    assert left.count(SHOWN) == 6
    assert all(letter.isprintable() or letter == "\n" for letter in left)
