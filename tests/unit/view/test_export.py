"""A table in pandas, polars and Arrow: nothing is lost on the way, and types are what their users expect."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import fractions
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rush_executor._view.same import is_same, plain
from rush_executor._view.table import TaskTable
from tests.unit.view.tasks import FIXED, failed, finished, holding, queued, with_columns

UTC = dt.UTC
INSTANT = dt.datetime(2025, 10, 9, 8, 53, 20, tzinfo=UTC)


class Point:
    """Nothing that any library knows."""


class Colour(enum.StrEnum):
    RED = "red"


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), st.text(), st.binary(),
    st.datetimes(), st.datetimes(timezones=st.just(UTC)), st.dates(), st.times(), st.timedeltas(),
    st.decimals().filter(lambda d: not d.is_snan()), st.fractions(), st.just(Point()), st.just(Colour.RED),
    hnp.from_dtype(np.dtype("float32")), hnp.from_dtype(np.dtype("uint64")), hnp.from_dtype(np.dtype("bool")),
)  # fmt: skip
ARRAYS = hnp.arrays(
    st.sampled_from(["float64", "float32", "int8", "uint64", "bool"]),
    hnp.array_shapes(min_dims=0, min_side=0, max_side=3),
)
ANYTHING = st.recursive(
    SCALARS | ARRAYS | st.frozensets(SCALARS, max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=2) | st.integers(0, 2), inner, max_size=3)
    ),
    max_leaves=6,
)
# Of one kind, as in real tables, and of all kinds at once.
COLUMNS = st.one_of(
    st.lists(ANYTHING, min_size=1, max_size=4),
    st.lists(st.integers() | st.none(), min_size=1, max_size=4),
    st.lists(st.floats() | st.integers(), min_size=1, max_size=4),
    st.lists(st.lists(st.floats() | st.integers(), max_size=2), min_size=1, max_size=4),
    st.lists(st.dictionaries(st.sampled_from("ab"), st.integers() | st.none()), min_size=1, max_size=4),
    st.lists(ARRAYS | st.none(), min_size=1, max_size=4),
)
# Found by search, or seen: one kind of container passes for another.
mixed = example(values=[[], {}])
mixed_names = example(values=[{"a": "a"}, ["a"]])
mixed_sets = example(values=[frozenset({True}), frozenset({1.5})])


@pytest.fixture(scope="module", name="pd")
def _pandas() -> Any:
    """Imported here, so that whoever collects the tests needs not wait for it."""
    import pandas as pd

    return pd


@pytest.fixture(scope="module", name="pl")
def _polars() -> Any:
    import polars as pl

    return pl


@pytest.fixture(scope="module", name="pa")
def _pyarrow() -> Any:
    import pyarrow as pa

    return pa


def sample() -> TaskTable:
    """Rows of all kinds, with different values."""
    return TaskTable(
        [
            finished(0, extra={"seed": 7}),
            failed(1, ValueError("no")),
            queued(2, xs={"x1": 3, "note": "a"}, pushed_at=None),
        ]
    )


def as_lists(value: Any) -> Any:
    """What a value becomes where there are only lists, without the None that a struct fills in."""
    if isinstance(value, np.ndarray):
        return as_lists(value.tolist())
    if isinstance(value, list | tuple | frozenset):
        return [as_lists(item) for item in value]
    if isinstance(value, dict):
        return {name: as_lists(item) for name, item in value.items() if item is not None}
    value = plain(value)
    # A float for an int is no loss, as long as it is the same number; True for 1 would be.
    return float(value) if type(value) is int and abs(value) < 2**53 else value


def are_kept(before: list[Any], after: list[Any]) -> bool:
    return is_same(as_lists(before), as_lists(after))


# ------------------------------------------------------------------------------------------------------------ pandas


def test_pandas(pd: Any) -> None:
    """Columns, their order and types; None is what pandas has for it."""
    frame = sample().to_pandas()
    assert list(frame.columns) == sample().columns == with_columns("x1", "x2", "note", "y", "seed")
    assert list(frame.index) == [0, 1, 2]
    assert str(frame["pushed_at"].dtype) == str(frame["ended_at"].dtype) == "datetime64[us, UTC]"
    assert frame["pushed_at"][0] == INSTANT
    assert frame["pushed_at"].isna().tolist() == [False, False, True]
    assert frame["attempts"].dtype == np.dtype("int64")
    assert frame["x1"].dtype == np.dtype("int64")
    assert frame["y"].dtype == frame["seed"].dtype == np.dtype("float64")
    assert frame["y"][0] == 0
    assert math.isnan(frame["y"][1])
    assert frame["key"].tolist() == ["key-0", "key-1", "key-2"]
    assert (frame["ended_at"] - frame["started_at"])[0] == pd.Timedelta(milliseconds=250)


def test_pandas_keeps_conditions() -> None:
    """The exceptions themselves, and None."""
    table = sample()
    frame = table.to_pandas()
    assert frame["condition"].dtype == np.dtype("object")
    assert all(a is b for a, b in zip(frame["condition"], table["condition"], strict=True))


@mixed
@mixed_names
@mixed_sets
@given(COLUMNS)
def test_pandas_loses_nothing(values: list[Any]) -> None:
    """Whatever is in a column comes out of it: a list as this list, an integer as this number."""
    import pandas as pd

    frame = TaskTable(holding(*values)).to_pandas()
    assert len(frame) == len(values)
    for before, after in zip(values, frame["v"], strict=True):
        if before is None:
            assert pd.isna(after)
        elif not isinstance(plain(before), bool | int | float | complex | str | bytes | dt.date | dt.timedelta):
            assert after is before or (isinstance(before, decimal.Decimal) and before == after)
        else:
            assert is_same(before, after)
            assert isinstance(plain(before), bool) is isinstance(plain(after), bool)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, 2], "int64"),
        ([1, None], "float64"),
        ([2**60 + 1, None], "object"),
        ([2**80], "object"),
        ([1, 2.5], "float64"),
        ([True, False], "bool"),
        ([True, 1], "object"),
        ([[1, 2], [3, 4]], "object"),
        ([np.array([1, 2]), np.array([3, 4])], "object"),
        ([np.eye(2), np.eye(2)], "object"),
        ([{"a": 1}, {"b": 2}], "object"),
        ([np.float32(1), np.float32(2)], "float32"),
        ([np.datetime64("2020-01-01T00:00:00.123456789")], "datetime64[ns]"),
        (["\ud800", "a"], "object"),
        ([Point(), 1], "object"),
        ([None, None], "object"),
    ],
)
def test_types_in_pandas(values: list[Any], dtype: str) -> None:
    """What pandas makes of it by itself, unless that would lose something."""
    assert str(TaskTable(holding(*values)).to_pandas()["v"].dtype) == dtype


def test_strings_in_pandas(pd: Any) -> None:
    """As in any other DataFrame of this pandas."""
    frame = TaskTable(holding("a", "b")).to_pandas()
    assert frame["v"].dtype == pd.Series(["a", "b"]).dtype
    assert frame["key"].dtype == frame["v"].dtype


# ------------------------------------------------------------------------------------------------------------ polars


def test_polars(pl: Any) -> None:
    """Columns, their order and types."""
    frame = sample().to_polars()
    assert frame.columns == sample().columns
    assert dict(frame.schema) == {
        "key": pl.String, "state": pl.String, "x1": pl.Int64, "x2": pl.Float64, "note": pl.String, "y": pl.Float64,
        "seed": pl.Int64, "worker_id": pl.String, "condition": pl.String, "pushed_at": pl.Datetime("us", "UTC"),
        "started_at": pl.Datetime("us", "UTC"), "ended_at": pl.Datetime("us", "UTC"), "attempts": pl.Int64,
    }  # fmt: skip
    assert frame["pushed_at"].to_list() == [INSTANT, INSTANT + dt.timedelta(seconds=1), None]
    assert frame["condition"].to_list() == [None, "ValueError: no", None]
    assert frame["x2"].to_list() == [0.0, 0.25, None]


@mixed
@mixed_names
@mixed_sets
@given(COLUMNS)
def test_polars_loses_nothing(values: list[Any]) -> None:
    """By itself it cuts off what is behind the point, and drops the keys that the first dict does not have."""
    import polars as pl

    column = TaskTable(holding(*values)).to_polars()["v"]
    if column.dtype == pl.Object:
        assert all(a is b for a, b in zip(values, column.to_list(), strict=True))
    else:
        assert are_kept(values, column.to_list())


def test_types_in_polars(pl: Any) -> None:
    """Vectors are lists, whether their lengths are the same or not."""
    for values, dtype in [
        ([1, 2.5, None], pl.Float64),
        ([1, None], pl.Int64),
        ([[1, 2], [3]], pl.List(pl.Int64)),
        ([[1, 2], [2.5], None], pl.List(pl.Float64)),
        ([np.array([1.0, 2.0]), np.array([3.0, 4.0])], pl.List(pl.Float64)),
        ([np.array([1.0, 2.0]), np.array([3.0])], pl.List(pl.Float64)),
        ([np.eye(2), np.eye(2)], pl.List(pl.List(pl.Float64))),
        ([np.bool_(True), False], pl.Boolean),
        ([np.int8(1), 2, None], pl.Int64),
        ([{"a": 1}, {"a": 2}], pl.Struct({"a": pl.Int64})),
        ([{"a": 1}, {"b": 2}], pl.Object),
        ([[], {}], pl.Object),
        ([{"a": "a"}, ["a"]], pl.Object),
        ([{"a": []}, {"a": {}}], pl.Object),
        ([["a"], [1]], pl.Object),
        ([1, "a"], pl.Object),
        ([True, 1], pl.Object),
        ([dt.datetime(2020, 1, 1), INSTANT], pl.Object),  # noqa: DTZ001 - that it has none is the point
        ([Point(), None], pl.Object),
        ([[Point()]], pl.Object),
        ([1j], pl.Object),
        ([decimal.Decimal("Infinity")], pl.Object),
        ([fractions.Fraction(1, 3)], pl.Object),
        (["\ud800"], pl.Object),
    ]:
        assert TaskTable(holding(*values)).to_polars()["v"].dtype == dtype, values


# ------------------------------------------------------------------------------------------------------------- Arrow


def test_arrow(pa: Any) -> None:
    """Columns, their order and types."""
    table = sample().to_arrow()
    assert table.column_names == sample().columns
    instant = pa.timestamp("us", tz="UTC")
    assert table.schema.types == [
        pa.string(), pa.string(), pa.int64(), pa.float64(), pa.string(), pa.float64(), pa.int64(),
        pa.string(), pa.string(), instant, instant, instant, pa.int64(),
    ]  # fmt: skip
    assert table["pushed_at"].to_pylist() == [INSTANT, INSTANT + dt.timedelta(seconds=1), None]
    assert table["condition"].to_pylist() == [None, "ValueError: no", None]


@mixed
@mixed_names
@mixed_sets
@given(COLUMNS)
def test_arrow_loses_nothing(values: list[Any]) -> None:
    """By itself it drops time zones and times of day. What it has no type for is an error that says so."""
    try:
        column = TaskTable(holding(*values)).to_arrow()["v"]
    except TypeError as error:
        assert "Arrow has no type that holds all values of column 'v'" in str(error)  # noqa: PT017
    else:
        assert are_kept(values, column.to_pylist())


def test_types_in_arrow(pa: Any) -> None:
    """Vectors are lists, dicts are structs."""
    for values, dtype in [
        ([1, 2.5, None], pa.float64()),
        ([2**64 - 1, 1, None], pa.uint64()),
        ([[1, 2], [2.5], None], pa.list_(pa.float64())),
        ([np.array([1.0, 2.0]), np.array([3.0])], pa.list_(pa.float64())),
        ([np.array([1, 2], dtype="float32")], pa.list_(pa.float32())),
        ([np.eye(2), np.zeros((3, 1))], pa.list_(pa.list_(pa.float64()))),
        ([np.array(1.5), 2], pa.float64()),
        ([{"a": 1}, {"b": 2}], pa.struct({"a": pa.int64(), "b": pa.int64()})),
        ([INSTANT, None], pa.timestamp("us", tz="UTC")),
    ]:
        assert TaskTable(holding(*values)).to_arrow()["v"].type == dtype, values


@pytest.mark.parametrize(
    ("values", "types"),
    [
        ([1, "a"], "int, str"),
        ([Point(), None], "Point"),
        ([[1], ["a"]], "list"),
        ([2**70], "int"),
        ([1j], "complex"),
        ([dt.date(2020, 1, 1), INSTANT], "date, datetime"),
        ([b"a", "a"], "bytes, str"),
        (["\ud800"], "str"),
        ([[], {}], "dict, list"),
        ([{True}, {1.5}], "set"),
        ([np.array(["2020-01-01"], dtype="datetime64[D]"), np.array([1])], "ndarray"),
        ([[np.datetime64("2020-01-01")], [np.int8(1)]], "list"),
    ],
)
def test_what_arrow_cannot_hold(values: list[Any], types: str) -> None:
    """Arrow has no column for whatever there is in Python: which column it is, and what else to do."""
    table = TaskTable(holding(*values))
    with pytest.raises(TypeError, match=rf"column 'v' \({types}\).*select\(\).*to_pandas\(\)"):
        table.to_arrow()
    assert table.select(["key"]).to_arrow().num_rows == len(values)
    assert len(table.to_pandas()) == len(table.to_polars()) == len(values)


# --------------------------------------------------------------------------------------------------------------- all


def test_empty_tables(pl: Any, pa: Any) -> None:
    """Their columns have the types they would have with rows in them."""
    pandas_types = TaskTable().to_pandas().dtypes.astype(str).to_dict()
    full = TaskTable([finished()]).to_pandas().dtypes.astype(str).to_dict()
    assert pandas_types == {name: full[name] for name in FIXED}
    assert TaskTable().to_polars().schema == TaskTable([failed()]).select(FIXED).to_polars().schema
    assert TaskTable().to_arrow().schema == TaskTable([failed()]).select(FIXED).to_arrow().schema
    none = TaskTable([finished()])[:0].select(["y"])
    assert (none.to_pandas().shape, none.to_polars().shape, none.to_arrow().shape) == ((0, 1),) * 3
    nothing = TaskTable([finished(), finished()]).select([])
    assert nothing.to_pandas().shape == (2, 0)
    assert nothing.to_polars().columns == nothing.to_arrow().column_names == []


def test_values_of_nobody_yet() -> None:
    """A column of None: the results of tasks that have not finished."""
    table = TaskTable([queued(0), queued(1)]).select(["y"], missing_ok=True)
    assert table.to_pandas()["y"].isna().all()
    assert table.to_polars()["y"].to_list() == table.to_arrow()["y"].to_pylist() == [None, None]


def test_microseconds_are_exact() -> None:
    """The server counts microseconds, and a float of seconds since 1970 still tells two of them apart."""
    row = finished(0, pushed_at=1_760_000_000.123457, started_at=1_760_000_000.123458, ended_at=-0.000001)
    table = TaskTable([row])
    for frame in (table.to_pandas(), table.to_polars(), table.to_arrow().to_pandas()):
        assert frame["pushed_at"][0] == INSTANT.replace(microsecond=123457)
        assert frame["started_at"][0] == INSTANT.replace(microsecond=123458)
        assert frame["ended_at"][0] == dt.datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)


def test_conditions_that_are_no_text() -> None:
    """A file's name that is no UTF-8, a failure without a message, one whose str() fails."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    conditions = [OSError("caf\udce9.txt"), KeyError(), Mute(), ValueError("two\nlines")]
    table = TaskTable([failed(i, condition) for i, condition in enumerate(conditions)])
    expected = [
        r"OSError: caf\udce9.txt",
        "KeyError",
        "Mute: <its str() raised RuntimeError>",
        "ValueError: two\nlines",
    ]
    assert table.to_polars()["condition"].to_list() == table.to_arrow()["condition"].to_pylist() == expected


def test_columns_with_the_same_name() -> None:
    """Are told apart as they are in the table."""
    table = TaskTable([finished(0, xs={"a": 1}, ys={"b": 2}), finished(1, xs={"b": 3}, ys={"a": 4})])
    expected = with_columns("a", "b", "b_ys", "a_ys")
    assert list(table.to_pandas()) == table.to_polars().columns == table.to_arrow().column_names == expected


@pytest.mark.parametrize(
    ("method", "library", "extra"),
    [("to_pandas", "pandas", "pandas"), ("to_polars", "polars", "polars"), ("to_arrow", "pyarrow", "arrow")],
)
def test_a_library_that_is_not_there(method: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install, in the words of this package; the extra exists."""
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        ImportError, match=rf"TaskTable.{method}\(\) needs {library}.*'rush-executor\[{extra}\]'"
    ) as caught:
        getattr(TaskTable(), method)()
    assert caught.value.name == library
    assert isinstance(caught.value.__cause__, ImportError)
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\n{extra} = ["{library}>=' in text


def test_nothing_is_imported_that_was_not_asked_for() -> None:
    """A table is made, shown and compared without any of the libraries, which take seconds to import."""
    code = """
import sys
from rush_executor._view.table import TaskRow, TaskTable
table = TaskTable([TaskRow("k", "finished", {"x": [1.5]}, {"y": 1}, {}, "", None, 0.0, None, None, 1)])
repr(table), table._repr_html_(), table == table[:], table.to_dicts(), table["x"]
print(*sorted({"numpy", "pandas", "polars", "pyarrow", "redis"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""


def test_an_interrupt_is_no_failure_of_a_library(monkeypatch: pytest.MonkeyPatch, pl: Any) -> None:
    """Ctrl-C while a large table is exported ends it."""

    def interrupt(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(pl, "Series", interrupt)
    with pytest.raises(KeyboardInterrupt):
        TaskTable(holding(1)).to_polars()
