"""A table as text and as HTML: it fits, it says what matters, and nothing in it does any harm."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rush_executor._view.table import TaskRow, TaskTable
from tests.unit.view.tasks import failed, finished, holding, queued, with_columns


class Failing:
    """Its repr is a task's own code, which may do anything."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Shape:
    """Looks like what is asked for by attribute, and is not."""

    shape = dtype = ndim = 3

    @property
    def __class__(self) -> Any:
        raise RuntimeError("no class")


HOSTILE = ["\n\r\t\0", "\x1b[31m", "\u202egnp", "\ud800", "\u2028", "<script>alert(1)</script>", "a" * 1000, "é漢🎉"]
HARMFUL = [*HOSTILE, *(s.encode(errors="replace") for s in HOSTILE[4:]), 10**5000, Failing(), [Failing()], Failing]
TEXTS = st.text() | st.sampled_from(HOSTILE)
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), TEXTS, st.binary(), st.lists(TEXTS),
    st.dictionaries(TEXTS, st.integers()), st.decimals(), st.fractions(),
    st.integers(0, len(HARMFUL) - 1).map(HARMFUL.__getitem__), st.builds(np.array, st.lists(st.floats())),
    st.builds(ValueError, TEXTS),
)  # fmt: skip
ROWS = st.lists(
    st.builds(
        lambda i, xs, ys, condition, at: finished(i, xs=xs, ys=ys, condition=condition, started_at=at, key=str(i)),
        st.integers(0),
        st.dictionaries(TEXTS, VALUES, max_size=4),
        st.dictionaries(TEXTS, VALUES, max_size=4),
        st.none() | st.builds(ValueError, TEXTS),
        st.none() | st.floats(),
    ),
    max_size=30,
)


@pytest.fixture
def width(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the width of the terminal."""

    def set_width(width: int) -> None:
        monkeypatch.setenv("COLUMNS", str(width))

    set_width(80)
    return set_width


def shown(rows: list[TaskRow]) -> list[str]:
    return repr(TaskTable(rows)).split("\n")


# -------------------------------------------------------------------------------------------------------------- text


def test_what_a_table_looks_like(width: Any) -> None:
    """The whole of it, once."""
    width(60)
    rows = [finished(i, xs={"x1": 10**i, "name": f"n{i}"}, ys={"y": 1 / 3 ** (i - 1)}) for i in range(3)]
    rows += [queued(3, xs={"x1": None, "name": "a\nb"})]
    assert shown(rows) == [
        "TaskTable: 4 tasks x 11 columns",
        "     key    state       x1  name         y  worker_id",
        "  0  key-0  finished     1  n0    3         worker-1",
        "  1  key-1  finished    10  n1    1         worker-1",
        "  2  key-2  finished   100  n2    0.333333  worker-1",
        "  3  key-3  queued    None  a\\nb      None",
        "and 5 columns more: condition, pushed_at, started_at, end...",
    ]


def test_a_long_table_shows_its_ends() -> None:
    """Twenty rows are shown, of more the first and last five, by their numbers."""
    assert len(shown([finished(i) for i in range(20)])) == 1 + 1 + 20 + 1
    lines = shown([finished(i) for i in range(1000)])
    assert lines[0] == "TaskTable: 1000 tasks x 11 columns"
    assert [line.split()[0] for line in lines[2:13]] == [*"01234", "...", "995", "996", "997", "998", "999"]
    assert "key-999" in lines[12]
    lines = shown([finished(i) for i in range(21)])
    assert [line.split()[0] for line in lines[2:13]] == [*"01234", "...", "16", "17", "18", "19", "20"]


def test_numbers_are_lined_up() -> None:
    """Their points stand below each other, also if they are of numpy; a column with anything else is text."""
    numbers = [1, 22.5, np.float64(-333.25), 1e-7, np.int8(4), None, float("nan"), float("inf"), 1234567.0]
    lines = repr(TaskTable(holding(*numbers)).select(["v"])).split("\n")
    assert lines[1:] == [
        "                  v",
        "  0     1",
        "  1    22.5",
        "  2  -333.25",
        "  3     1e-07",
        "  4     4",
        "  5            None",
        "  6             nan",
        "  7             inf",
        "  8     1.23457e+06",
    ]
    assert repr(TaskTable(holding(1, "22")).select(["v"])).split("\n")[2:] == ["  0  1", "  1  22"]
    assert repr(TaskTable(holding(True, 22)).select(["v"])).split("\n")[2:] == ["  0  True", "  1  22"]


def test_what_says_most_stays(width: Any) -> None:
    """Key, state and a failure first, then inputs and results in turn; the others are named."""
    many = {f"x{i}": 1 for i in range(50)}
    lines = shown([finished(0, xs=many, ys={"y": 2, "z": 3})])
    assert lines[1].split() == ["key", "state", *(f"x{i}" for i in range(12)), "y", "z"]
    assert lines[3].startswith("and 44 columns more: x12, x13, x14")
    width(45)
    lines = shown([finished(0, xs=many), failed(1, KeyError("nothing"), xs=many)])
    assert lines[1].split() == ["key", "state", "x0", "condition"]
    assert "KeyError: 'nothing'" in lines[3]
    width(400)
    lines = shown([finished(), failed()])
    assert lines[1].split() == with_columns("x1", "x2", "y")
    assert len(lines) == 4


def test_conditions_and_times(width: Any) -> None:
    """A failure is its type and text, an instant is a date in UTC; both may be missing."""
    width(400)
    lines = shown([failed(0, ValueError("it is\nwrong")), failed(1, KeyboardInterrupt()), queued(2)])
    assert r"ValueError: it is\nwrong" in lines[2]
    assert "KeyboardInterrupt " in lines[3]
    assert "2025-10-09 08:53:20.000Z  2025-10-09 08:53:20.250Z  2025-10-09 08:53:20.500Z" in lines[2]
    assert re.search(r"None +2025-10-09 08:53:22.000Z +None +None", lines[4])


def test_values_are_shortened() -> None:
    """Long ones are cut, and looking at a long list does not take long."""
    lines = repr(
        TaskTable(holding("a" * 10**7, list(range(10**6)), np.zeros((500, 500)), {"a": "b" * 100})).select(["v"])
    )
    assert lines.split("\n")[2:] == [
        "  0  " + "a" * 29 + "...",
        "  1  [0, 1, 2, 3, 4, 5, 6, 7, 8, 9...",
        "  2  array([[0., 0., 0., ..., 0., ...",
        "  3  {'a': '" + "b" * 22 + "...",
    ]


def test_values_that_cannot_be_shown() -> None:
    """A table can always be looked at."""
    lines = repr(TaskTable(holding(Failing(), 10**5000, Shape(), [Failing()])).select(["v"])).split("\n")
    assert lines[2].startswith("  0  <Failing instance at 0x")
    assert lines[3:5] == ["  1  <int>", "  2  <Shape>"]


def test_empty_tables() -> None:
    """No rows: the columns are named. No columns: the rows are counted."""
    assert shown([]) == [
        "TaskTable: 0 tasks x 8 columns",
        "8 columns: key, state, worker_id, condition, pushed_at, started_at, ended_at,...",
    ]
    table = TaskTable([finished()])
    assert repr(table[:0].select(["y"])) == "TaskTable: 0 tasks x 1 column\n1 column: y"
    assert repr(table.select([])) == "TaskTable: 1 task x 0 columns"
    assert repr(table[:0].select([])) == "TaskTable: 0 tasks x 0 columns"
    assert table.select([])._repr_html_().count("<tr>") == 1
    assert "<p>TaskTable: 0 tasks x 8 columns</p>" in TaskTable()._repr_html_()


@given(ROWS, st.integers(1, 200))
def test_lines_fit_and_are_printable(rows: list[TaskRow], n_columns: int) -> None:
    """Whatever the values are: no line is too long, none has control characters or breaks in two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(n_columns))
        lines = shown(rows)
    assert all(len(line) <= max(n_columns, 20) and line.isprintable() for line in lines)
    assert len(lines) <= 1 + 1 + 20 + 1
    assert len(repr(TaskTable(rows)).splitlines()) == len(repr(TaskTable(rows)).split("\n"))


# -------------------------------------------------------------------------------------------------------------- HTML


class Page(HTMLParser):
    """The rows of all tables of a page, and the tags that are there."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.open.append(tag)
        assert {name for name, _ in attrs} <= {"style", "class", "border"}
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("th", "td"):
            self.rows[-1][-1] += data


def test_html() -> None:
    """A header, a row for each task, and the size."""
    html = TaskTable([finished(0), failed(1, ValueError("a < b"))])._repr_html_()
    page = Page(html)
    assert page.rows[0] == ["", *with_columns("x1", "x2", "y")]
    assert page.rows[2] == [
        "1", "key-1", "failed", "1", "0.25", "None", "worker-1", "ValueError: a < b",
        "2025-10-09 08:53:21.000Z", "2025-10-09 08:53:21.250Z", "2025-10-09 08:53:21.500Z", "1",
    ]  # fmt: skip
    assert "<p>TaskTable: 2 tasks x 11 columns</p>" in html
    assert "ValueError: a &lt; b" in html
    assert '<td style="text-align: right">0.25</td>' in html
    assert '<td style="text-align: left">key-1</td>' in html


def test_html_of_a_long_table() -> None:
    """Both ends, and as many columns as fit on a page."""
    page = Page(TaskTable([finished(i, xs={f"x{j}": j for j in range(99)}) for i in range(1000)])._repr_html_())
    assert [row[0] for row in page.rows] == ["", *"01234", "...", "995", "996", "997", "998", "999"]
    assert {len(row) for row in page.rows} == {31}
    html = TaskTable([finished(0, xs={f"<{j}>": j for j in range(99)})])._repr_html_()
    assert "and 78 columns more: &lt;27&gt;, " in html


@given(ROWS)
def test_everything_in_html_is_escaped(rows: list[TaskRow]) -> None:
    """Values, names and failures of others cannot put anything into somebody's notebook."""
    page = Page(TaskTable(rows)._repr_html_())
    assert page.tags <= {"div", "table", "thead", "tbody", "tr", "th", "td", "p"}
    assert page.open == []
    assert len({len(row) for row in page.rows}) == 1
    assert all(text.isprintable() for row in page.rows for text in row)


@pytest.mark.parametrize("text", ["<b>", "&amp;", '"><img src=x onerror=alert(1)>', "'", "</td>"])
def test_markup_is_shown_as_it_is(text: str) -> None:
    """In a value, in a name, in a failure, in a key."""
    row = failed(0, ValueError(text), xs={text: text}, key=text, worker_id=text, state=text)
    head, cells = Page(TaskTable([row])._repr_html_()).rows
    assert head[3] == cells[1] == cells[2] == cells[3] == cells[4] == text
    assert cells[5] == f"ValueError: {text}"
