"""Rows of tasks, and their columns.

A reader appends the tasks that are new to a list, and makes a table of it each time somebody asks. So a table must
cost nothing, and what has been worked out about the rows of one table must serve the next: `TaskRows` holds the list
and, beside it, the columns that were asked for so far, and makes good only what is missing.

No locks: the list only grows, what is remembered is replaced as a whole and never changed in place, and at worst two
threads work out the same thing. So a fork at any moment does no harm either. Used by `TaskTable` and by readers.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from operator import attrgetter
from typing import Any, Final, Literal, NamedTuple

from rush_executor._protocol.names import GROUPS, RESERVED

__all__ = ["Column", "TaskRow", "TaskRows", "label_columns"]


class TaskRow(NamedTuple):
    """A task, as it was when it was read.

    Attributes:
        key: Its id.
        state: ``"queued"``, ``"running"``, ``"finished"``, ``"failed"`` or ``"cancelled"``.
        xs: Its inputs, by name.
        ys: Its results, by name; empty until it is finished.
        extra: What else was stored with it, by name.
        worker_id: The worker that has it, or had it last; empty when there was none.
        condition: Why it failed, or why some of its values cannot be read here; None otherwise.
        pushed_at: When it was created, in seconds since 1970-01-01 UTC by the server's clock; so are the next two.
        started_at: When its last attempt began; None before.
        ended_at: When it ended; None before.
        attempts: How often it was started: once more each time that its worker was lost over it, or it was retried.
    """

    key: str
    state: str
    xs: dict[str, Any]
    ys: dict[str, Any]
    extra: dict[str, Any]
    worker_id: str
    condition: BaseException | None
    pushed_at: float | None
    started_at: float | None
    ended_at: float | None
    attempts: int


class Column(NamedTuple):
    """Where the values of a column are.

    Attributes:
        place: ``"xs"``, ``"ys"``, ``"extra"``; ``"row"`` for a field of the row itself; ``"nowhere"`` for a column
            that was asked for and that no row has.
        name: Its name there: a str, where the writer has checked the names.
    """

    place: Literal["xs", "ys", "extra", "row", "nowhere"]
    name: Any

    def of(self, rows: Iterable[TaskRow]) -> list[Any]:
        """Returns its values; None for a row that has none."""
        name = self.name
        if self.place == "row":
            return list(map(attrgetter(name), rows))
        if self.place == "nowhere":
            return [None for _ in rows]
        return [values.get(name) for values in map(attrgetter(self.place), rows)]


_GROUPS: Final[tuple[Literal["xs", "ys", "extra"], ...]] = ("xs", "ys", "extra")
_FIRST: Final = ("key", "state")
_LAST: Final = tuple(name for name in TaskRow._fields if name not in (*_FIRST, *GROUPS))


def label_columns(found: Iterable[Column]) -> dict[str, Column]:
    """Returns all columns of a table by their labels, in order.

    Args:
        found: The columns in xs, ys and extra, in this order. One whose name is taken gets its place appended.
    """
    labels: dict[str, Column] = {name: Column("row", name) for name in _FIRST}
    taken = set(RESERVED)
    for column in found:
        label = str.__str__(column.name) if isinstance(column.name, str) else str(column.name)
        while label in taken:
            label = f"{label}_{column.place}"
        taken.add(label)
        labels[label] = column
    labels.update((name, Column("row", name)) for name in _LAST)
    return labels


class _Names(NamedTuple):
    """What the first rows are called: how many were looked at, the sets of names there were, and where each began."""

    n: int
    shapes: set[tuple[tuple[str, ...], ...]]
    began: dict[Column, int]


class TaskRows:
    """Rows that only grow, and what has been worked out about them: what a reader keeps of the tasks it has read.

    Args:
        rows: The rows to begin with. A list is used as it is, not copied: whoever else holds it may append to it, and
            must not do anything else with it.
    """

    __slots__ = ("_columns", "_names", "_rows")

    def __init__(self, rows: Iterable[TaskRow] = ()) -> None:
        self._rows = rows if isinstance(rows, list) else list(rows)
        self._names = _Names(0, set(), {})
        self._columns: dict[Column, list[Any]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def extend(self, rows: Iterable[TaskRow]) -> None:
        """Appends rows. Tables that were made before stay as they are."""
        self._rows.extend(rows)

    def part(self, index: slice) -> list[TaskRow]:
        """Returns some rows."""
        return self._rows[index]

    def pick(self, indices: Iterable[int]) -> list[TaskRow]:
        """Returns the rows at these places."""
        rows = self._rows
        return [rows[i] for i in indices]

    def columns(self, n: int) -> dict[str, Column]:
        """Returns the columns of the first n rows by their labels, in order."""
        began = self._began(n)
        return label_columns(
            column for group in _GROUPS for column, i in began.items() if column.place == group and i < n
        )

    def values(self, column: Column, n: int) -> list[Any]:
        """Returns the first n values of a column, in a list that is the caller's own."""
        known = self._columns.get(column, [])
        if len(known) < n:
            # Not appended in place: another thread may do the same, or be copying.
            known = known + column.of(self._rows[len(known) : n])
            self._columns[column] = known
        return known[:n]

    def _began(self, n: int) -> dict[Column, int]:
        names = self._names
        if names.n >= n:
            return names.began
        shapes, began = set(names.shapes), dict(names.began)
        for i, row in enumerate(islice(self._rows, names.n, n), names.n):
            shape = (tuple(row.xs), tuple(row.ys), tuple(row.extra))
            if shape not in shapes:
                shapes.add(shape)
                for group, members in zip(_GROUPS, shape, strict=True):
                    for name in members:
                        began.setdefault(Column(group, name), i)
        self._names = _Names(n, shapes, began)
        return began
