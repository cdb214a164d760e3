"""Tables of tasks: what rows and columns there are, whichever way one asks."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rush_executor._view.rows import TaskRows
from rush_executor._view.table import TaskRow, TaskTable
from tests.unit.view.tasks import FIXED, failed, finished, holding, queued, with_columns

NAMES = st.sampled_from(["a", "b", "c", "key", "xs", "a_ys", "a_extra", "b_extra", "state_xs", ""])
VALUES = st.dictionaries(NAMES, st.integers(), max_size=4)
ROWS = st.lists(
    st.builds(lambda i, xs, ys, extra: finished(i, xs=xs, ys=ys, extra=extra), st.integers(0), VALUES, VALUES, VALUES),
    max_size=8,
)
CLEAN_ROWS = st.lists(
    st.builds(
        lambda i, xs, ys: finished(i, xs=xs, ys=ys),
        st.integers(0),
        st.dictionaries(st.sampled_from(["x1", "x2", "x3"]), st.integers()),
        st.dictionaries(st.sampled_from(["y1", "y2"]), st.integers()),
    ),
    max_size=8,
)
BOUNDS = st.none() | st.integers(-12, 12)


# ----------------------------------------------------------------------------------------------------------- columns


def test_columns_are_in_order() -> None:
    """Inputs, results, extra values, each as they first appear; around them what every task has."""
    rows = [
        queued(0, xs={"b": 1}, extra={"e": 1}),
        finished(1, xs={"a": 1, "b": 2}, ys={"y2": 3, "y1": 4}),
        finished(2, xs={"b": 1, "c": 2}, ys={"y1": 3}, extra={"d": 5, "e": 6}),
    ]
    table = TaskTable(rows)
    assert table.columns == with_columns("b", "a", "c", "y2", "y1", "e", "d")
    assert table["a"] == [None, 1, None]
    assert table["b"] == [1, 2, 1]
    assert table["y1"] == [None, 4, 3]
    assert table["e"] == [1, None, 6]


def test_columns_of_the_task_itself() -> None:
    """Each is the field of the row."""
    rows = [queued(0), finished(1), failed(2)]
    table = TaskTable(rows)
    for name in FIXED:
        assert table[name] == [getattr(row, name) for row in rows]
    assert table.keys == ["key-0", "key-1", "key-2"]


def test_an_empty_table() -> None:
    """Has the columns of every table, without values."""
    table = TaskTable()
    assert (len(table), table.columns, table.keys, list(table), table.to_dicts()) == (0, FIXED, [], [], [])
    assert table["key"] == table["condition"] == []
    assert not table
    assert table == TaskTable([]) == table[:] == table[[]] == table[5:]


def test_no_such_column() -> None:
    """The error says what there is; xs is a dict of a row, and a group in select()."""
    table = TaskTable([finished()])
    with pytest.raises(KeyError, match="There is no column 'z', but key, state, x1, x2, y, worker_id"):
        table["z"]
    with pytest.raises(KeyError, match="'xs'"):
        table["xs"]


@given(ROWS)
def test_no_value_is_lost(rows: list[TaskRow]) -> None:
    """Whatever the writers called their values, and whatever clashes: each has a column of its own."""
    table = TaskTable(rows)
    columns = table.columns
    assert len(set(columns)) == len(columns)
    assert [*columns[:2], *columns[-6:]] == FIXED
    for name in FIXED:
        assert table[name] == [getattr(row, name) for row in rows]
    stored = [
        [values.get(name) for values in all_values]
        for group in ("xs", "ys", "extra")
        for all_values in [[getattr(row, group) for row in rows]]
        for name in dict.fromkeys(name for values in all_values for name in values)
    ]
    assert [table[label] for label in columns[2:-6]] == stored


def test_a_clash_is_told_by_the_group() -> None:
    """Two writers used one name for different things: inputs keep the name."""
    rows = [finished(0, xs={"a": 1}, ys={"b": 2}), finished(1, xs={"b": 3}, ys={"a": 4}, extra={"a": 5, "state": 6})]
    table = TaskTable(rows)
    assert table.columns == with_columns("a", "b", "b_ys", "a_ys", "a_extra", "state_extra")
    assert (table["b"], table["b_ys"], table["a_ys"]) == ([None, 3], [2, None], [None, 4])
    assert (table["state"], table["state_extra"]) == (["finished"] * 2, [None, 6])


def test_names_that_are_no_text() -> None:
    """They cannot be written through this package, but they can be read."""
    table = TaskTable([finished(0, xs={1: "a", "1": "b", None: "c"}, ys={np.str_("y"): 1})])
    assert table.columns == with_columns("1", "1_xs", "None", "y")
    assert [table[name] for name in ("1", "1_xs", "None", "y")] == [["a"], ["b"], ["c"], [1]]
    assert all(type(name) is str for name in table.columns)


# -------------------------------------------------------------------------------------------------------------- rows


@given(ROWS, st.integers(-10, 10))
def test_a_row_by_its_number(rows: list[TaskRow], i: int) -> None:
    """As in a list, with numbers of all kinds."""
    table = TaskTable(rows)
    if -len(rows) <= i < len(rows):
        assert table[i] is table[np.int64(i)] is rows[i]
    else:
        with pytest.raises(IndexError, match=f"there is no row {i} in a table of {len(rows)}"):
            table[i]
    assert list(table) == [*table] == rows
    assert list(reversed(table)) == rows[::-1]  # type: ignore[call-overload]


@given(CLEAN_ROWS, BOUNDS, BOUNDS, BOUNDS.filter(lambda step: step != 0), st.integers(0, 3))
def test_slices(rows: list[TaskRow], start: int | None, stop: int | None, step: int | None, n_later: int) -> None:
    """A slice of a table is the slice of each of its columns, also when the list has grown since."""
    part = slice(start, stop, step)
    growing = list(rows)
    table = TaskTable(growing)
    growing.extend(finished(100 + i, xs={"late": 1}) for i in range(n_later))
    assert list(table[part]) == rows[part]
    assert table[part].columns == table.columns
    assert all(table[part][name] == table[name][part] for name in table.columns)
    assert table[part].to_dicts() == table.to_dicts()[part]


@given(CLEAN_ROWS.filter(bool), st.data())
def test_lists_of_numbers(rows: list[TaskRow], data: st.DataObject) -> None:
    """Any order, any number of times; arrays and series as well."""
    import pandas as pd
    import polars as pl

    numbers = data.draw(st.lists(st.integers(-len(rows), len(rows) - 1)))
    table = TaskTable(rows)
    expected = [rows[i] for i in numbers]
    assert list(table[numbers]) == list(table[np.array(numbers, dtype=int)]) == expected
    assert list(table[pd.Series(numbers, dtype=int)]) == list(table[pl.Series(numbers, dtype=pl.Int64)]) == expected
    assert list(table[[np.int32(i) for i in numbers]]) == expected
    assert table[numbers].columns == table.columns
    for beyond in (len(rows), -len(rows) - 1):
        with pytest.raises(IndexError, match=f"no row {beyond}"):
            table[[*numbers, beyond]]


@given(CLEAN_ROWS.filter(bool), st.data())
def test_lists_of_truth(rows: list[TaskRow], data: st.DataObject) -> None:
    """True and False choose rows: as numbers they would be the rows 1 and 0, without an error."""
    import pandas as pd
    import polars as pl

    wanted = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    table = TaskTable(rows)
    expected = [row for row, is_wanted in zip(rows, wanted, strict=True) if is_wanted]
    kinds: list[Callable[[list[bool]], Any]] = [
        list,
        np.array,
        pd.Series,
        pl.Series,
        lambda w: [np.bool_(b) for b in w],
    ]
    for kind in kinds:
        assert list(table[kind(wanted)]) == expected
    for wrong in ([*wanted, True], wanted[1:] or [True, True]):
        with pytest.raises(IndexError, match=f"{len(wrong)} times True or False for a table of {len(rows)} rows"):
            table[wrong]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (1.0, "not by float"),
        (None, "not by NoneType"),
        ((1, 2), "not by tuple"),
        (("key",), "not by tuple"),
        ([0, True], "not True"),
        ([0.0], "not 0.0"),
        (np.array([0.0]), "not 0.0"),
        (["key"], r"not 'key': columns are chosen with select\(\)"),
        ([None], "not None"),
    ],
)
def test_what_no_row_has(index: Any, message: str) -> None:
    """A wrong index is an error that says what a right one is."""
    with pytest.raises(TypeError, match=message):
        TaskTable([finished(0), finished(1)])[index]


# ------------------------------------------------------------------------------------------------------ some columns


def test_select() -> None:
    """In the order asked for; rows stay whole."""
    table = TaskTable([queued(0), finished(1)])
    some = table.select(["y", "state", "x1"])
    assert some.columns == ["y", "state", "x1"]
    assert some.to_dicts() == [{"y": None, "state": "queued", "x1": 0}, {"y": 1.25, "state": "finished", "x1": 1}]
    assert list(some) == list(table)
    assert some.keys == table.keys
    with pytest.raises(KeyError, match="There is no column 'key', but y, state, x1"):
        some["key"]
    with pytest.raises(KeyError):
        some.select(["key"])
    assert some.select(iter(["x1"])).columns == ["x1"]
    assert some[1:].to_dicts() == some.to_dicts()[1:]
    assert table.columns == with_columns("x1", "x2", "y")


def test_select_by_group() -> None:
    """xs, ys and extra stand for whatever they hold, which may be nothing yet."""
    table = TaskTable([finished(0, extra={"e": 1}), finished(1, xs={"x3": 1, "y": 2})])
    assert table.select(["ys", "key", "xs"]).columns == ["y_ys", "key", "x1", "x2", "x3", "y"]
    assert table.select(["extra"]).to_dicts() == [{"e": 1}, {"e": None}]
    assert TaskTable().select(["key", "xs", "ys", "extra"]).columns == ["key"]


def test_select_refuses() -> None:
    """What is not there, and what is there twice."""
    table = TaskTable([queued()])
    with pytest.raises(KeyError, match="There is no column 'y', but key, state, x1, x2, worker_id"):
        table.select(["key", "y"])
    for names in (["x1", "x1"], ["xs", "x1"], ["x1", "xs"], ["xs", "xs"]):
        with pytest.raises(ValueError, match=r"'x1'.* twice"):
            table.select(names)
    with pytest.raises(TypeError, match=r"select\(\['key'\]\)"):
        table.select("key")


def test_select_before_anything_has_finished() -> None:
    """Nobody knows yet what the results are called: who does may say so."""
    growing = TaskRows([queued()])
    table = TaskTable(growing).select(["key", "y"], missing_ok=True)
    growing.extend([finished(1)])
    assert table.to_dicts() == [{"key": "key-0", "y": None}]
    assert table.columns == table[:0].columns == ["key", "y"]
    assert TaskTable(growing).select(["y"], missing_ok=True)["y"] == [None, 1.25]


def test_no_columns() -> None:
    """Still as many rows."""
    table = TaskTable([finished(0), finished(1)]).select([])
    assert (len(table), table.columns, table.to_dicts()) == (2, [], [{}, {}])
    assert table.keys == ["key-0", "key-1"]


# ------------------------------------------------------------------------------------------- nothing changes a table


def test_a_table_stays_what_it_is() -> None:
    """The reader's list grows; the tables made of it before have the same rows, columns and labels as ever."""
    growing = [finished(0, xs={}, ys={"a": 1})]
    rows = TaskRows(growing)
    tables = [TaskTable(rows), TaskTable(growing)]
    seen = [(table.columns, table.to_dicts(), repr(table)) for table in tables]
    unseen = [TaskTable(rows), TaskTable(growing), TaskTable(rows, 1), TaskTable(growing, 1)]
    growing.append(finished(1, xs={"a": 5, "b": 6}, ys={}))
    later = TaskTable(rows)
    assert later.columns == with_columns("a", "b", "a_ys")
    assert (later["a"], later["a_ys"]) == ([None, 5], [1, None])
    for table in (*tables, *unseen):
        assert len(table) == 1
        assert table.columns == with_columns("a")
        assert table["a"] == [1]
        assert (table.columns, table.to_dicts(), repr(table)) in seen


@given(st.lists(CLEAN_ROWS, max_size=4), st.data())
def test_whoever_shares_sees_the_same(batches: list[list[TaskRow]], data: st.DataObject) -> None:
    """What was worked out for one table serves the next, in whatever order they are made and asked."""
    rows = TaskRows()
    everything: list[TaskRow] = []
    tables = []
    for batch in batches:
        rows.extend(batch)
        everything.extend(batch)
        n = data.draw(st.integers(0, len(everything)))
        for table in (TaskTable(rows), TaskTable(rows, n)):
            tables.append((table, TaskTable(everything[: len(table)])))
            if data.draw(st.booleans()):
                assert table.columns == tables[-1][1].columns
    for table, alone in data.draw(st.permutations(tables)):
        assert table.to_dicts() == alone.to_dicts()
        assert table == alone


def test_what_a_table_hands_out_is_no_part_of_it() -> None:
    """Sorting a column sorts nobody else's."""
    table = TaskTable([finished(2), finished(1)])
    for _ in range(2):
        table["x1"].sort()
        table.keys.clear()
        table.columns.clear()
        table.to_dicts()[0].clear()
    assert (table["x1"], table.keys) == ([2, 1], ["key-2", "key-1"])
    assert table.columns == with_columns("x1", "x2", "y")


@pytest.mark.parametrize("n", [-1, 3])
def test_more_rows_than_there_are(n: int) -> None:
    """A table of rows that may come one day is a mistake."""
    with pytest.raises(ValueError, match=f"n is {n}, but there are 2 rows"):
        TaskTable([finished(0), finished(1)], n)


def test_any_iterable_will_do() -> None:
    """Where it is no list, its rows are copied."""
    rows = [finished(0), finished(1)]
    assert TaskTable(rows) == TaskTable(tuple(rows)) == TaskTable(iter(rows)) == TaskTable(TaskTable(rows))


# ---------------------------------------------------------------------------------------------------------- equality


def test_equal_tables() -> None:
    """Read twice, a table is the same: with NaN in it, arrays, data frames, and failures."""
    import pandas as pd
    import polars as pl

    def read() -> TaskTable:
        values = {
            "nan": float("nan"),
            "vector": np.array([1.0, np.nan]),
            "matrix": np.eye(2),
            "nested": [1, (np.array([1, 2]), {"a": [np.float64("nan")]})],
            "pandas": pd.DataFrame({"a": [1, None]}),
            "polars": pl.DataFrame({"a": [1, None]}),
            "scalar": np.float32(0.1),
        }
        return TaskTable([finished(0, ys=values), failed(1, ValueError("no", 3))])

    assert read() == read()
    assert read() == copy.deepcopy(read()) == read()[:]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (1, 2),
        (1, None),
        (float("nan"), None),
        (float("nan"), 0.0),
        ([1], [1, 2]),
        ([1], (1,)),
        ({"a": 1}, {"b": 1}),
        ({"a": 1}, {"a": 2}),
        ({}, None),
        (np.array([1, 2]), np.array([1, 3])),
        (np.array([1, 2]), np.array([[1, 2]])),
        (np.array([1, 2]), [1, 2]),
        ([1, 2], np.array([1, 2])),
        (np.array([1, 2]), None),
        (np.array([1]), np.array([1.0])),
        (ValueError("a"), ValueError("b")),
        (ValueError("a"), TypeError("a")),
        (ValueError("a"), "a"),
        ("a", ValueError("a")),
        (np.float64(1.0), 2.0),
    ],
)
def test_different_values(a: Any, b: Any) -> None:
    """One different value makes another table, and comparing never fails."""
    assert TaskTable(holding(a)) != TaskTable(holding(b))
    assert TaskTable(holding(b)) != TaskTable(holding(a))


def test_different_data_frames() -> None:
    """They compare themselves, in their own way."""
    import pandas as pd
    import polars as pl

    for frame in (pd.DataFrame, pl.DataFrame):
        assert TaskTable(holding(frame({"a": [1]}))) == TaskTable(holding(frame({"a": [1]})))
        assert TaskTable(holding(frame({"a": [1]}))) != TaskTable(holding(frame({"a": [2]})))
    assert TaskTable(holding(pd.Series([1]))) != TaskTable(holding(pl.Series([1])))
    assert TaskTable(holding(pd.Series([1]))) != TaskTable(holding([1]))


@pytest.mark.parametrize(("a", "b"), [(np.float64(1.5), 1.5), (np.int8(3), 3), (1, 1.0), (np.str_("a"), "a")])
def test_equal_scalars(a: Any, b: Any) -> None:
    """A number is a number, whoever made it."""
    assert TaskTable(holding(a)) == TaskTable(holding(b))
    assert TaskTable(holding(b)) == TaskTable(holding(a))


def test_different_tables() -> None:
    """Other rows, another order, other columns; or no table at all."""
    rows = [finished(0), finished(1)]
    table = TaskTable(rows)
    assert table != TaskTable(rows[:1])
    assert table != TaskTable(rows[::-1])
    assert table != table.select(["key"])
    assert table.select(["key", "y"]) != table.select(["y", "key"])
    assert table.select(["key"]) != table
    assert table != rows
    assert table != "x"
    with pytest.raises(TypeError, match="unhashable"):
        hash(table)


# ------------------------------------------------------------------------------------------------- to other processes


def test_a_table_travels() -> None:
    """With its own rows alone, not those that came later; with its choice of columns."""
    rows = TaskRows([finished(i) for i in range(3)])
    table = TaskTable(rows)
    rows.extend([finished(i) for i in range(1000)])
    for one in (table, table.select(["y", "z"], missing_ok=True), table[:0], TaskTable()):
        again = pickle.loads(pickle.dumps(one))
        assert again == one == copy.copy(one)
        assert again.columns == one.columns
        assert list(again) == list(one)
    assert len(pickle.dumps(table)) < 1000


# ------------------------------------------------------------------------------------------------------------- speed


def test_a_table_of_many_rows_costs_nothing() -> None:
    """Making a table of 10,000 rows copies and looks at none of them; a new row is looked at once, by one table.

    Counted, and not timed: rows that must not be looked at would raise.
    """

    class Untouchable(dict[str, Any]):
        looks = 0

        def __iter__(self) -> Any:
            type(self).looks += 1
            return super().__iter__()

        def get(self, *args: Any) -> Any:
            type(self).looks += 1
            return super().get(*args)

    n = 10_000
    rows = TaskRows([finished(i, xs=Untouchable(x=i), ys={}) for i in range(n)])
    table = TaskTable(rows)
    assert len(table) == n
    assert table[5].key == "key-5"
    assert Untouchable.looks == 0
    assert table["x"] == list(range(n))
    assert Untouchable.looks == 2 * n
    rows.extend([finished(n, xs=Untouchable(x=n), ys={})])
    assert TaskTable(rows)["x"] == list(range(n + 1))
    assert Untouchable.looks == 2 * n + 2
