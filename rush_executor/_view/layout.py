"""A table as lines of text that fit the terminal, and as HTML.

Both show all rows of a short table and both ends of a long one. Where there are more columns than fit, those that say
most stay: key, state and a condition, then inputs and results in turn, and what remains is named below. Only the
cells that are shown are looked at. Used by `TaskTable`.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any, Final

from rush_executor._view.cells import clip, is_number, text_of, time_text
from rush_executor._view.rows import Column, TaskRow

__all__ = ["ENDS", "MOST_ROWS", "html_table", "text_table"]

MOST_ROWS: Final = 20  # as many as fit into a small terminal
ENDS: Final = 5  # of a longer table: how many rows at either end
_CELL: Final = 32
_HTML_CELL: Final = 80
_HTML_COLUMNS: Final = 30
_HTML_OTHERS: Final = 1000  # characters for the names of the others
_GAP: Final = "  "
_ELLIPSIS: Final = "..."
_TIMES: Final = ("pushed_at", "started_at", "ended_at")


def text_table(columns: Mapping[str, Column], rows: Mapping[int, TaskRow], n: int, width: int) -> str:
    """Returns a table as text.

    Args:
        columns: Columns by label.
        rows: The rows that are shown, by their numbers.
        n: How many rows there are.
        width: How many characters fit on a line.
    """
    numbers = [str(i) for i in rows]
    left = max(map(len, (*numbers, _ELLIPSIS)))
    room = width - left
    blocks: dict[str, list[str]] = {}
    for label in _by_weight(columns, rows):
        block = _Cells.of(label, columns[label], rows, _CELL).lines()
        room -= len(_GAP) + len(block[0])
        if room < 0 and blocks:
            break
        blocks[label] = block
    shown = [blocks[label] for label in columns if label in blocks]
    lines = [_shape(columns, n)]
    if rows and columns:
        lines += [
            _GAP.join((number.rjust(left), *cells)).rstrip()
            for number, *cells in zip(["", *numbers], *shown, strict=True)
        ]
        if len(rows) < n:
            lines.insert(2 + ENDS, _ELLIPSIS.rjust(left))
    elif columns:
        blocks = {}  # There is nothing to show below the labels: all of them are named in the last line.
    hidden = [label for label in columns if label not in blocks]
    if hidden:
        lines.append(_others(hidden, is_all=not blocks, limit=width))
    return "\n".join(clip(line, width) for line in lines)


def html_table(columns: Mapping[str, Column], rows: Mapping[int, TaskRow], n: int) -> str:
    """Returns a table as HTML: as `text_table`, with wider cells and more columns. Whatever is in it is escaped."""
    chosen = set(list(_by_weight(columns, rows))[:_HTML_COLUMNS])
    shown = [_Cells.of(label, columns[label], rows, _HTML_CELL) for label in columns if label in chosen]
    hidden = [label for label in columns if label not in chosen]
    lines = [
        "<div>",
        '<table border="1" class="dataframe" style="white-space: nowrap">',
        "<thead>",
        "<tr>",
        "<th></th>",
    ]
    lines += [f'<th style="text-align: {cells.side}">{html.escape(cells.label)}</th>' for cells in shown]
    lines += ["</tr>", "</thead>", "<tbody>"]
    for at, i in enumerate(rows if shown else ()):
        if at == ENDS and len(rows) < n:
            lines.append(_html_row(_ELLIPSIS, [(cells.side, _ELLIPSIS) for cells in shown]))
        lines.append(_html_row(str(i), [(cells.side, cells.texts[at]) for cells in shown]))
    lines += ["</tbody>", "</table>", f"<p>{_shape(columns, n)}</p>"]
    if hidden:
        lines.append(f"<p>{html.escape(_others(hidden, is_all=False, limit=_HTML_OTHERS))}</p>")
    lines.append("</div>")
    return "\n".join(lines)


def _html_row(head: str, cells: Iterable[tuple[str, str]]) -> str:
    data = "".join(f'<td style="text-align: {side}">{html.escape(text)}</td>' for side, text in cells)
    return f"<tr><th>{head}</th>{data}</tr>"


@dataclass(frozen=True, slots=True)
class _Cells:
    """What is shown of a column."""

    label: str
    texts: list[str]
    is_numeric: bool

    @classmethod
    def of(cls, label: str, column: Column, rows: Mapping[int, TaskRow], limit: int) -> _Cells:
        values = column.of(rows.values())
        write: Callable[[Any, int], str] = text_of
        if column.place == "row" and column.name in _TIMES:
            write = time_text
        numbers = [is_number(value) for value in values if value is not None]
        return cls(
            clip(label, limit),
            [write(value, limit) for value in values],
            bool(numbers) and all(numbers) and write is text_of,
        )

    @property
    def side(self) -> str:
        return "right" if self.is_numeric else "left"

    def lines(self) -> list[str]:
        """Label and cells, all of one width."""
        texts = _line_up(self.texts) if self.is_numeric else self.texts
        width = max(map(len, (self.label, *texts)))
        return [text.rjust(width) if self.is_numeric else text.ljust(width) for text in (self.label, *texts)]


def _line_up(texts: Sequence[str]) -> list[str]:
    """Fills up numbers on their right, so that their points stand below each other; None, nan and inf have none."""
    rests = [len(text) - digits.end() if (digits := re.match(r"-?\d+", text)) else None for text in texts]
    longest = max((rest for rest in rests if rest is not None), default=0)
    return [text if rest is None else text + " " * (longest - rest) for text, rest in zip(texts, rests, strict=True)]


def _by_weight(columns: Mapping[str, Column], rows: Mapping[int, TaskRow]) -> Iterator[str]:
    """The labels, those that say most first."""
    places: dict[str, list[str]] = {}
    for label, column in columns.items():
        places.setdefault(column.name if column.place == "row" else column.place, []).append(label)

    def take(*names: str) -> Iterator[str]:
        return chain.from_iterable(places.pop(name, ()) for name in names)

    yield from take("key", "state")
    if any(row.condition is not None for row in rows.values()):
        yield from take("condition")
    for pair in zip_longest(take("xs"), take("ys")):
        yield from (label for label in pair if label is not None)
    yield from take("extra", "nowhere", "worker_id", "condition", "attempts", "ended_at", "started_at", "pushed_at")


def _shape(columns: Mapping[str, Column], n: int) -> str:
    return f"TaskTable: {n} task{'s' * (n != 1)} x {len(columns)} column{'s' * (len(columns) != 1)}"


def _others(labels: Sequence[str], *, is_all: bool, limit: int) -> str:
    few = ", ".join(clip(label, _CELL) for label in labels[:limit])
    count = f"{len(labels)} column{'s' * (len(labels) != 1)}"
    return clip(f"{count}: {few}" if is_all else f"and {count} more: {few}", limit)
