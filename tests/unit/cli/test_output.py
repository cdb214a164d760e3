"""How commands print: plain text for programs and files, tables that fit a terminal, nothing that moves the cursor."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass

import pytest

from rush_executor._cli import output
from rush_executor._cli.output import Block, Column, Line, Table, age_text, plain_lines, printable, rich_renderable

TABLE = Table(
    [Column("name"), Column("what", gives_way=True), Column("n", is_right=True), Column("state", is_state=True)],
    [["a", "something that is rather long", "1", "running"], ["bcd", "short", "1,000", "idle"]],
)


def test_a_table() -> None:
    """Columns stand below their labels; no line ends in blanks; uncut where there is no terminal."""
    assert list(plain_lines([Line("title"), TABLE], None)) == [
        "title",
        "name  what                               n  state",
        "a     something that is rather long      1  running",
        "bcd   short                          1,000  idle",
    ]


def test_a_narrow_table() -> None:
    """The column that may give way does; when that is not enough, lines are cut."""
    assert list(plain_lines([TABLE], 40)) == [
        "name  what                    n  state",
        "a     something that ...      1  running",
        "bcd   short               1,000  idle",
    ]
    assert all(len(line) <= 12 for line in plain_lines([TABLE, Line("a long line of text")], 12))
    assert list(plain_lines([Line("a long line of text")], 12)) == ["a long li..."]


def test_rich_prints_the_same() -> None:
    """With rich the same words stand in the same places, with colours."""
    from rich.console import Console

    file = io.StringIO()
    blocks: list[Block] = [Line("title", "bold"), TABLE]
    Console(file=file, width=80, highlight=False).print(rich_renderable(blocks))
    assert [line.rstrip() for line in file.getvalue().splitlines()] == list(plain_lines(blocks, 80))


def test_rich_reads_no_markup() -> None:
    """What comes from a network is text, whatever it looks like."""
    from rich.console import Console

    file = io.StringIO()
    table = Table([Column("[b]x[/b]")], [["[red]y[/red]"], ["[/]"]])
    Console(file=file, width=80).print(rich_renderable([Line("[bold]z"), table]))
    assert file.getvalue().split() == ["[bold]z", "[b]x[/b]", "[red]y[/red]", "[/]"]


def test_what_is_not_printable() -> None:
    """Is shown as an escape: a name must not move the cursor or colour the screen."""
    assert printable("plain äöü") == "plain äöü"
    assert printable("a\x1b[2Jb\nc\u202e") == "a\\x1b[2Jb\\nc\\u202e"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (-3.0, "0.0 s"),
        (0.26, "0.3 s"),
        (9.94, "9.9 s"),
        (12.3, "12 s"),
        (59.7, "1 min 00 s"),
        (61, "1 min 01 s"),
        (3600, "1 h 00 min"),
        (86_399, "23 h 59 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_ages(seconds: float | None, text: str) -> None:
    """A few characters, whatever the age."""
    assert age_text(seconds) == text


@dataclass
class Thing:
    name: str
    parts: list[object]


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Dataclasses, also in each other, are objects; what JSON does not know is its text."""
    output.print_json(Thing("ä", [Thing("b", []), b"raw"]))
    assert json.loads(capsys.readouterr().out) == {"name": "ä", "parts": [{"name": "b", "parts": []}, "b'raw'"]}
    output.print_json([1, Thing("b", [])], is_line=True)
    assert capsys.readouterr().out == '[1, {"name": "b", "parts": []}]\n'


def test_no_colours_in_a_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Rich is not even imported where nobody sees it."""
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    output.print_blocks([Line("text", "bold red"), TABLE])
    assert capsys.readouterr().out.splitlines() == list(plain_lines([Line("text"), TABLE], None))
