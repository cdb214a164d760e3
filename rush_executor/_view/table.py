"""`TaskTable`: the tasks that were read, as rows and as columns.

What a table of tasks needs to be looked at and handed on, and nothing that pandas, polars or Arrow do well. Knows no
server and no ledger: `Rush` and its workers read rows, and make tables of them.
"""

from __future__ import annotations

import operator
import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, overload

from rush_executor._protocol.names import GROUPS
from rush_executor._view import export, layout
from rush_executor._view.rows import Column, TaskRow, TaskRows
from rush_executor._view.same import is_same, plain

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

__all__ = ["TaskRow", "TaskTable"]

_NARROWEST: Final = 20
_KEYS: Final = Column("row", "key")


class TaskTable:
    """Tasks as a table: a row for each task, a column for each of its values. Does not change.

    ```
    table = rush.fetch_finished_tasks()
    table["y"]                                          # a column: a list, None where a task has no such value
    table[0].xs, table[-1].condition                    # a row: a TaskRow
    table[:10], table[[3, 5]]                           # a table of some rows
    table[[y is not None and y < 1 for y in table["y"]]]
    table.select(["key", "xs", "y"]).to_pandas()        # a table of some columns
    ```

    The columns are ``key``, ``state``, then inputs (xs), results (ys) and extra values by their own names, each in the
    order in which they first appear, then ``worker_id``, ``condition``, ``pushed_at``, ``started_at``, ``ended_at`` (in
    seconds since 1970-01-01 UTC by the server's clock) and ``attempts``. The attributes of a `TaskRow` say what they
    mean.

    One task cannot have an input and a result of the same name: that is refused when it is written. Different tasks
    can. Then the inputs keep the name, the results appear as ``name_ys``, the extra values as ``name_extra``.

    Two tables are equal if they have the same columns with the same values in them, in the same order: NaN is equal
    to NaN, arrays are compared by their elements, conditions by type and arguments.

    Args:
        rows: The tasks. A list, or a `TaskRows`, is not copied, and may grow: the table stays what it is now.
        n: How many of the rows belong to the table: the first n. None for all that there are now.
    """

    __slots__ = ("_columns", "_n", "_rows")
    __hash__ = None  # type: ignore[assignment] # what is compared by its values, and holds lists, cannot be a key

    def __init__(self, rows: Iterable[TaskRow] | TaskRows = (), n: int | None = None) -> None:
        self._rows = rows if isinstance(rows, TaskRows) else TaskRows(rows)
        self._n = len(self._rows) if n is None else n
        if not 0 <= self._n <= len(self._rows):
            raise ValueError(f"n is {n}, but there are {len(self._rows)} rows")
        self._columns: dict[str, Column] | None = None

    # ------------------------------------------------------------------------------------------------ rows, columns

    @property
    def columns(self) -> list[str]:
        """The names of the columns, in order."""
        return list(self._by_label())

    @property
    def keys(self) -> list[str]:
        """The keys of the tasks, in the order of the rows."""
        return self._rows.values(_KEYS, self._n)

    def __len__(self) -> int:
        return self._n

    def __iter__(self) -> Iterator[TaskRow]:
        return iter(self._rows.part(slice(self._n)))

    @overload
    def __getitem__(self, index: str) -> list[Any]: ...
    @overload
    def __getitem__(self, index: int) -> TaskRow: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int] | Sequence[bool]) -> TaskTable: ...
    def __getitem__(self, index: Any) -> list[Any] | TaskRow | TaskTable:
        """Returns a column (by its name), a row (by its number) or a table of some rows.

        Args:
            index: A name; a number, negative ones count from the end; or a slice, a list of numbers, or a list that
                has True or False for each row (arrays and series of these will do as well).

        Raises:
            KeyError: There is no such column.
            IndexError: There is no such row, or not one True or False for each.
        """
        if isinstance(index, str):
            columns = self._by_label()
            if index not in columns:
                raise KeyError(_no_column(index, columns))
            return self._rows.values(columns[index], self._n)
        if isinstance(index, slice):
            # Not the slice itself: the list may have grown, and its end is not the table's.
            numbers = range(self._n)[index]
            is_run = numbers.step == 1
            rows = self._rows
            return self._of(rows.part(slice(numbers.start, numbers.stop)) if is_run else rows.pick(numbers))
        if hasattr(index, "__index__") and not _is_list(index):
            return self._rows.part(slice(i := self._number(index), i + 1))[0]
        if _is_list(index):
            return self._of(self._rows.pick(self._numbers(index)))
        raise TypeError(
            f"A table of tasks is indexed by a column's name, a row's number, a slice or a list of numbers, "
            f"not by {type(index).__name__}"
        )

    def select(self, names: Iterable[str], *, missing_ok: bool = False) -> TaskTable:
        """Returns a table with some of the columns, in the given order. Its rows still are whole: each a `TaskRow`.

        Args:
            names: The columns. ``"xs"``, ``"ys"`` and ``"extra"`` stand for all of that kind that there are.
            missing_ok: Whether a name that no row has gives a column of None. For those who look before the first
                task has finished, when nobody knows yet what the results are called.

        Raises:
            KeyError: There is no such column.
            ValueError: A column is there twice.
        """
        if isinstance(names, str):
            raise TypeError(f"select() takes a list of names: select([{names!r}])")
        columns = self._by_label()
        chosen: dict[str, Column] = {}
        for name in names:
            if name in GROUPS:
                found = {label: column for label, column in columns.items() if column.place == name}
            elif name in columns:
                found = {name: columns[name]}
            elif missing_ok:
                found = {name: Column("nowhere", name)}
            else:
                raise KeyError(_no_column(name, columns))
            if twice := chosen.keys() & found.keys():
                raise ValueError(f"select() was given {', '.join(sorted(map(repr, twice)))} twice")
            chosen |= found
        return _with_columns(self._rows, self._n, chosen)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TaskTable):
            return NotImplemented
        if self._rows is other._rows and self._n == other._n and self._columns is other._columns is None:
            return True
        return (
            len(self) == len(other)
            and self.columns == other.columns
            and all(is_same(self[label], other[label]) for label in self.columns)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # As few rows as are needed: the list has those of later tables, too.
        return _with_columns, (list(self), self._n, self._columns)

    # ------------------------------------------------------------------------------------------------------ hand on

    def to_dicts(self) -> list[dict[str, Any]]:
        """Returns a dict for each row, from the names of the columns to their values."""
        labels = self.columns
        if not labels:
            return [{} for _ in range(self._n)]
        return [dict(zip(labels, row, strict=True)) for row in zip(*map(self.__getitem__, labels), strict=True)]

    def to_pandas(self) -> pd.DataFrame:
        """Returns a pandas DataFrame.

        Times are aware of their time zone (UTC). Lists, arrays and whatever else is no plain value stay as they are,
        each in one cell, and so do conditions.

        Raises:
            ImportError: pandas is not there: ``pip install 'rush-executor[pandas]'``.
        """
        return export.to_pandas(self._values(), self._n)

    def to_polars(self) -> pl.DataFrame:
        """Returns a polars DataFrame.

        Times are aware of their time zone (UTC), conditions are text. Lists and numpy arrays become lists, dicts of
        one shape structs. What polars has no type for stays what it is, in a column of Python objects.

        Raises:
            ImportError: polars is not there: ``pip install 'rush-executor[polars]'``.
        """
        return export.to_polars(self._values())

    def to_arrow(self) -> pa.Table:
        """Returns an Arrow table.

        Times are aware of their time zone (UTC), conditions are text. Lists and numpy arrays become lists, dicts
        structs.

        Raises:
            ImportError: pyarrow is not there: ``pip install 'rush-executor[arrow]'``.
            TypeError: Arrow has no type for the values of a column, such as numbers and text in one.
        """
        return export.to_arrow(self._values())

    def __repr__(self) -> str:
        width = max(shutil.get_terminal_size().columns, _NARROWEST)
        return layout.text_table(self._by_label(), self._ends(), self._n, width)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return layout.html_table(self._by_label(), self._ends(), self._n)

    # ------------------------------------------------------------------------------------------------------- inside

    def _by_label(self) -> dict[str, Column]:
        if self._columns is None:
            self._columns = self._rows.columns(self._n)
        return self._columns

    def _of(self, rows: list[TaskRow]) -> TaskTable:
        """A table of some of the rows, which has all columns, also those that none of these rows has a value in."""
        return _with_columns(rows, len(rows), self._by_label())

    def _number(self, index: Any) -> int:
        i = operator.index(index)
        if not -self._n <= i < self._n:
            raise IndexError(f"there is no row {i} in a table of {self._n}")
        return i + self._n if i < 0 else i

    def _numbers(self, index: Any) -> list[int]:
        # What compares numbers that came from numpy are its own True and False.
        items = [plain(i) for i in index]
        if items and all(isinstance(i, bool) for i in items):
            if len(items) != self._n:
                raise IndexError(f"{len(items)} times True or False for a table of {self._n} rows")
            return [i for i, is_wanted in enumerate(items) if is_wanted]
        for i in items:
            if isinstance(i, bool) or not hasattr(i, "__index__"):
                hint = ": columns are chosen with select()" if isinstance(i, str) else ""
                raise TypeError(f"A list of rows has numbers, or True or False for each row, not {i!r}{hint}")
        return [self._number(i) for i in items]

    def _ends(self) -> dict[int, TaskRow]:
        """The rows that are shown."""
        n, ends = self._n, layout.ENDS
        numbers = range(n) if n <= layout.MOST_ROWS else (*range(ends), *range(n - ends, n))
        return dict(zip(numbers, self._rows.pick(numbers), strict=True))

    def _values(self) -> list[export.ColumnValues]:
        return [export.ColumnValues(label, column, self[label]) for label, column in self._by_label().items()]


def _is_list(index: Any) -> bool:
    # numpy gives its arrays an __index__, too. A tuple is what table[1, 2] means, of which we have none.
    return isinstance(index, list | range) or (hasattr(index, "__iter__") and hasattr(index, "__array__"))


def _no_column(name: str, columns: Iterable[str]) -> str:
    return f"There is no column {name!r}, but {', '.join(map(str, columns)) or 'none at all'}"


def _with_columns(rows: list[TaskRow] | TaskRows, n: int, columns: dict[str, Column] | None) -> TaskTable:
    table = TaskTable(rows, n)
    table._columns = columns  # noqa: SLF001 - the constructor is public, this is not
    return table
