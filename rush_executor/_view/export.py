"""A table in pandas, polars and Arrow.

The libraries are imported when they are asked for. They find the types of the columns themselves, but not always
without loss: polars makes ``[[1, 2], [2]]`` of ``[[1, 2], [2.5]]``, drops the keys of a dict that the first one does
not have, and makes dicts of lists beside dicts, Arrow drops time zones, and pandas rounds large integers where one is
missing. So a column is read back, and where it is not what it was, it becomes a column of Python objects, or in Arrow,
which has none, an error.

Used by `TaskTable`.
"""

from __future__ import annotations

import datetime as dt
import decimal
import importlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

from rush_executor._view.cells import condition_text
from rush_executor._view.rows import Column
from rush_executor._view.same import plain

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

__all__ = ["ColumnValues", "to_arrow", "to_pandas", "to_polars"]

_Kind: TypeAlias = Literal["text", "time", "count", "condition", "value"]
_KINDS: Final[dict[str, _Kind]] = {
    "key": "text",
    "state": "text",
    "worker_id": "text",
    "condition": "condition",
    "pushed_at": "time",
    "started_at": "time",
    "ended_at": "time",
    "attempts": "count",
}
# What a type may be looked for. Of lists, arrays and what looks like them pandas might make several columns or rows.
_SCALARS: Final = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    dt.date,
    dt.time,
    dt.timedelta,
    decimal.Decimal,
)


class ColumnValues(NamedTuple):
    """A column on its way out: what it is called, where it comes from, its values."""

    label: str
    column: Column
    values: list[Any]

    @property
    def kind(self) -> _Kind:
        return _KINDS[self.column.name] if self.column.place == "row" else "value"


def to_pandas(columns: Sequence[ColumnValues], n: int) -> pd.DataFrame:
    """Returns the columns, of n rows each, as a DataFrame."""
    pd = _import("pandas", method="to_pandas", extra="pandas")
    np = importlib.import_module("numpy")  # pandas needs it

    def objects(values: list[Any]) -> Any:
        cells = np.empty(len(values), dtype=object)
        for i, value in enumerate(values):  # one by one: numpy would take lists of one length for a second dimension
            cells[i] = value
        return pd.Series(cells, dtype=object)

    def series(kind: _Kind, values: list[Any]) -> Any:
        match kind:
            case "time":
                return pd.Series(np.array(_microseconds(values), dtype="datetime64[us]")).dt.tz_localize("UTC")
            case "count":
                return pd.Series(values, dtype="int64")
            case "condition":
                return objects(values)
        is_scalar = all(isinstance(value, (*_SCALARS, np.generic)) for value in values)
        candidates = [lambda: pd.Series(values, dtype="str" if kind == "text" else None)] if is_scalar else []
        return _first_kept(values, candidates, list, otherwise=lambda: objects(values))

    return pd.DataFrame({c.label: series(c.kind, c.values) for c in columns}, index=pd.RangeIndex(n))


def to_polars(columns: Sequence[ColumnValues]) -> pl.DataFrame:
    """Returns the columns as a DataFrame."""
    pl = _import("polars", method="to_polars", extra="polars")

    def series(label: str, kind: _Kind, values: list[Any]) -> Any:
        match kind:
            case "time":
                return pl.Series(label, _microseconds(values), dtype=pl.Int64).cast(pl.Datetime("us", "UTC"))
            case "count":
                return pl.Series(label, values, dtype=pl.Int64)
            case "condition":
                return pl.Series(label, _texts(values), dtype=pl.String)
        # Of arrays of one length polars would make another type than of others.
        known = [_as_list(value) for value in values]
        types = [pl.String] if kind == "text" else [None, pl.Float64, pl.List(pl.Float64)]
        if not all(map(_is_plain, known)) or _is_mixed(known, {}):
            types = []  # Over a list of what it does not know polars panics, and says so on stderr.
        return _first_kept(
            known,
            [lambda dtype=dtype: pl.Series(label, known, dtype=dtype) for dtype in types],  # type: ignore[misc]
            lambda found: found.to_list(),
            otherwise=lambda: pl.Series(label, values, dtype=pl.Object),
        )

    return pl.DataFrame([series(c.label, c.kind, c.values) for c in columns])


def to_arrow(columns: Sequence[ColumnValues]) -> pa.Table:
    """Returns the columns as a Table.

    Raises:
        TypeError: Arrow has no type for the values of a column.
    """
    pa = _import("pyarrow", method="to_arrow", extra="arrow")

    def array(label: str, kind: _Kind, values: list[Any]) -> Any:
        def fail() -> Any:
            types = ", ".join(sorted({type(value).__name__ for value in values if value is not None}))
            raise TypeError(
                f"Arrow has no type that holds all values of column {label!r} ({types}) as they are. Leave it out with "
                f"select(), or take to_pandas() or to_polars(), which keep Python objects."
            )

        match kind:
            case "time":
                return pa.array(_microseconds(values), type=pa.timestamp("us", tz="UTC"))
            case "count":
                return pa.array(values, type=pa.int64())
            case "condition":
                return pa.array(_texts(values), type=pa.string())
        # Arrow knows the arrays of numpy, but those of one dimension alone.
        known = [value if getattr(value, "ndim", 1) == 1 else _as_list(value) for value in values]
        types = [pa.string()] if kind == "text" else [None, pa.uint64()]
        if _is_mixed(known, {}):
            types = []  # Behind a datetime64 an integer of numpy ends the process.
        return _first_kept(
            known,
            [lambda dtype=dtype: pa.array(known, type=dtype) for dtype in types],  # type: ignore[misc]
            lambda found: found.to_pylist(),
            otherwise=fail,
        )

    return pa.Table.from_arrays([array(c.label, c.kind, c.values) for c in columns], names=[c.label for c in columns])


def _import(name: str, *, method: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"TaskTable.{method}() needs {name}, which could not be imported: pip install 'rush-executor[{extra}]'",
            name=name,
        ) from error


def _microseconds(instants: Iterable[float | None]) -> list[int | None]:
    """What the server's clock counts: whole microseconds, while a float of seconds is off by a fraction of one."""
    return [None if instant is None else round(instant * 1e6) for instant in instants]


def _texts(conditions: Iterable[BaseException | None]) -> list[str | None]:
    # The name of a file that is no UTF-8 stands in a message as lone surrogates.
    return [
        None if condition is None else condition_text(condition).encode(errors="backslashreplace").decode()
        for condition in conditions
    ]


def _as_list(value: Any) -> Any:
    """A numpy array as lists; anything else, and an array of what plain Python has no type for, as it is."""
    ndarray = getattr(sys.modules.get("numpy"), "ndarray", None)
    if ndarray is not None and isinstance(value, ndarray) and value.dtype.kind in "biufUO":
        return value.tolist()
    return plain(value)


def _is_plain(value: Any) -> bool:
    """Whether there is nothing in a value but scalars that polars knows, lists and dicts of them."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(name, str) for name in value) and all(map(_is_plain, value.values()))
    value = plain(value)
    if isinstance(value, decimal.Decimal):
        return value.is_finite()
    return isinstance(value, _SCALARS) and not isinstance(value, complex)


def _is_mixed(value: Any, kinds: dict[tuple[Any, ...], str], place: tuple[Any, ...] = ()) -> bool:
    """Whether lists, dicts, times of numpy and other scalars stand beside each other, in a list or under one name.

    Args:
        value: Where to look: a column, or what is in it.
        kinds: What was seen so far, by place.
        place: Where the value stands: the names on the way to it, and None for each list.
    """
    if value is None:
        return False
    dtype = getattr(value, "dtype", None)
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        kind, items = "dict", value.items()
    elif isinstance(value, list | tuple | set | frozenset):
        kind, items = "list", ((None, item) for item in value)
    elif dtype is not None and getattr(value, "ndim", 0) > 0:
        # In an array of numbers, or of times, the first stands for all.
        kind, items = "list", ((None, item) for item in (value if dtype.kind == "O" else value[:1]))
    else:
        kind = "time" if getattr(dtype, "kind", "") in ("m", "M") else "scalar"
    if kinds.setdefault(place, kind) != kind:
        return True
    return any(_is_mixed(item, kinds, (*place, name)) for name, item in items)


def _first_kept(
    values: list[Any],
    candidates: Iterable[Callable[[], Any]],
    read: Callable[[Any], list[Any]],
    *,
    otherwise: Callable[[], Any],
) -> Any:
    """Returns the first column that holds the values as they were."""
    for make in candidates:
        try:
            column = make()
            if all(map(_is_kept, values, read(column))):
                return column
        except BaseException as error:
            # Libraries raise errors of many kinds over what they have no type for; that of Rust is no Exception.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
    return otherwise()


def _is_kept(before: Any, after: Any) -> bool:
    """Whether a value has come back: maybe as a list, as a float, or with a None beside it, but all of it."""
    if before is None:
        return after is None or bool(after != after)  # noqa: PLR0124 - pandas has NaN and NaT for what is missing
    before, after = _as_list(before), _as_list(after)
    if isinstance(before, bool) or isinstance(after, bool):
        return before is after
    # A dict has a length, too, and is gone through by its names: an empty one would do for an empty list.
    if isinstance(before, list | tuple | set | frozenset):
        return isinstance(after, list) and len(before) == len(after) and all(map(_is_kept, before, after))
    if isinstance(before, dict):
        return (
            isinstance(after, dict)
            and all(name in after and _is_kept(value, after[name]) for name, value in before.items())
            and all(value is None or name in before for name, value in after.items())
        )
    return bool(before == after) or bool(before != before and after != after)  # noqa: PLR0124 - NaN
