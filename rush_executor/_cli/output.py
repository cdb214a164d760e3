"""How commands print: blocks (lines and tables), as plain text, or in colours where there is a terminal and `rich`.

rich comes with the extra `cli`; it is imported only when something is printed to a terminal. What goes into a file or
a pipe is always plain text, uncut: it is for other programs. What comes from a network is printed with escapes in place
of control characters: a task's name must not move the cursor.

For `--help` all of it is imported and none of it is called, so what costs time is imported where it is used.
"""

# ruff: noqa: PLC0415

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = [
    "Block",
    "Column",
    "Line",
    "Table",
    "age_text",
    "fields_of",
    "instant_text",
    "is_pretty",
    "plain_lines",
    "print_blocks",
    "print_json",
    "printable",
    "rich_renderable",
    "terminal_width",
]

_GAP = "  "
_DOTS = "..."
_STYLES = {
    "running": "green",
    "finished": "green",
    "ok": "green",
    "queued": "cyan",
    "idle": "dim",
    "terminated": "dim",
    "cancelled": "yellow",
    "killed": "yellow",
    "draining": "yellow",
    "warn": "yellow",
    "silent": "bold red",
    "lost": "bold red",
    "failed": "bold red",
    "fail": "bold red",
}


class Line(NamedTuple):
    """A line of text.

    Attributes:
        text: The text.
        style: As rich names styles; empty for none.
    """

    text: str = ""
    style: str = ""


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        label: What stands above it.
        is_right: Whether it is flush right.
        is_state: Whether its cells are states, which have colours.
        gives_way: Whether its cells are cut where a line is too long.
    """

    label: str
    is_right: bool = False
    is_state: bool = False
    gives_way: bool = False


class Table(NamedTuple):
    """A table.

    Attributes:
        columns: Its columns.
        rows: A text for each column.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]


Block = Line | Table


def is_pretty() -> bool:
    """Whether there is somebody to see colours, and rich to make them."""
    import importlib.util

    from rush_executor._config import is_dumb_terminal

    return sys.stdout.isatty() and not is_dumb_terminal() and importlib.util.find_spec("rich") is not None


def print_blocks(blocks: Iterable[Block]) -> None:
    """Prints to standard output."""
    if is_pretty():
        from rich.console import Console

        Console(highlight=False).print(rich_renderable(blocks))
        return
    for line in plain_lines(blocks, terminal_width()):
        print(line)


def print_json(value: Any, *, is_line: bool = False) -> None:
    """Prints a value as JSON.

    Args:
        value: Of builtin types and dataclasses; anything else is printed as its text.
        is_line: Whether it must be one line, as one of many.
    """
    import json

    print(json.dumps(value, indent=None if is_line else 2, ensure_ascii=False, default=_as_builtin), flush=is_line)


def fields_of(value: Any) -> dict[str, Any]:
    """A dataclass as a dict."""
    from dataclasses import asdict

    return asdict(value)


def _as_builtin(value: Any) -> Any:
    from dataclasses import is_dataclass

    return fields_of(value) if is_dataclass(value) else str(value)


def terminal_width() -> int | None:
    """Characters on a line of the terminal; None where there is no terminal, and nothing is cut."""
    import shutil

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def plain_lines(blocks: Iterable[Block], width: int | None) -> Iterator[str]:
    """Yields the lines of blocks as plain text.

    Args:
        blocks: The blocks.
        width: How many characters fit on a line; None for any number.
    """
    for block in blocks:
        if isinstance(block, Line):
            yield _cut(block.text, width)
        else:
            yield from (_cut(line, width) for line in _table_lines(block, width))


def _table_lines(table: Table, width: int | None) -> Iterator[str]:
    texts = [[column.label for column in table.columns], *table.rows]
    widths = [max(len(row[i]) for row in texts) for i in range(len(table.columns))]
    if width is not None:
        too_much = sum(widths) + len(_GAP) * (len(widths) - 1) - width
        for i, column in enumerate(table.columns):
            if column.gives_way and too_much > 0:
                less = min(too_much, max(0, widths[i] - max(len(column.label), 2 * len(_DOTS))))
                widths[i] -= less
                too_much -= less
    for row in texts:
        cells = [
            _cut(text, n).rjust(n) if column.is_right else _cut(text, n).ljust(n)
            for text, n, column in zip(row, widths, table.columns, strict=True)
        ]
        yield _GAP.join(cells).rstrip()


def _cut(text: str, width: int | None) -> str:
    return text if width is None or len(text) <= width else text[: max(0, width - len(_DOTS))] + _DOTS[:width]


def rich_renderable(blocks: Iterable[Block]) -> RenderableType:
    """Blocks as rich prints them."""
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    parts: list[RenderableType] = []
    for block in blocks:
        if isinstance(block, Line):
            parts.append(Text(block.text, style=block.style, no_wrap=True, overflow="ellipsis"))
            continue
        table = RichTable(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for column in block.columns:
            table.add_column(
                Text(column.label),
                justify="right" if column.is_right else "left",
                no_wrap=True,
                overflow="ellipsis",
                # Columns that do not give way keep their width.
                min_width=None if column.gives_way else max([len(column.label), *map(len, _cells(block, column))]),
            )
        for row in block.rows:
            table.add_row(
                *(
                    Text(text, style=_STYLES.get(text, "") if column.is_state else "")
                    for text, column in zip(row, block.columns, strict=True)
                )
            )
        parts.append(table)
    return Group(*parts)


def _cells(table: Table, column: Column) -> list[str]:
    at = list(table.columns).index(column)
    return [row[at] for row in table.rows]


def printable(text: str) -> str:
    """The text with escapes in place of what is not printable, on one line."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def age_text(seconds: float | None) -> str:
    """How long something has lasted, for people; empty if that is not known."""
    if seconds is None:
        return ""
    seconds = max(0.0, seconds)
    if seconds < 10:  # noqa: PLR2004
        return f"{seconds:.1f} s"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    return f"{days} d {h} h" if days else f"{hours} h {m:02} min" if hours else f"{m} min {s:02} s" if m else f"{s} s"


def instant_text(at: float | None) -> str:
    """When something was, in local time, for people; empty if that is not known."""
    from datetime import datetime

    return "" if at is None else datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
