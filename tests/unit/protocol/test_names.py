"""Names of values: a clash is refused before anything is stored."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rush_executor._protocol.names import GROUPS, RESERVED, check_inputs, check_names
from rush_executor._view.table import TaskRow

NAMES = st.text(st.characters(codec="utf-8")).filter(lambda name: name not in RESERVED)


def task(**groups: Any) -> tuple[Any, Any, Any]:
    return groups.get("xs", {}), groups.get("ys", {}), groups.get("extra", {})


def test_reserved_is_what_a_row_has() -> None:
    """A field that a row gets is a column of every table, and no value may be called so."""
    assert set(TaskRow._fields) == RESERVED


@given(st.lists(NAMES, unique=True), st.integers(0, 9), st.integers(0, 9))
def test_different_names_pass(names: list[str], i: int, j: int) -> None:
    """However they are spread over the groups, and each time they come."""
    i, j = sorted((i, j))
    for _ in range(2):
        check_names(dict.fromkeys(names[:i]), dict.fromkeys(names[i:j]), dict.fromkeys(names[j:]))


@given(NAMES, st.sampled_from([("xs", "ys"), ("xs", "extra"), ("ys", "extra")]), st.lists(NAMES))
def test_a_name_in_two_groups_is_refused(name: str, groups: tuple[str, str], others: list[str]) -> None:
    """The message says which name, and where both are; also the second time, when the cache might know better."""
    values = {groups[0]: {name: 1}, groups[1]: {**dict.fromkeys(others), name: 2}}
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"in {groups[0]}\).*in {groups[1]}\)") as caught:
            check_names(*task(**{groups[0]: {name: 1}, groups[1]: {name: 2}}))
        assert repr(name) in str(caught.value)
        with pytest.raises(ValueError):
            check_names(*task(**values))


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("name", sorted(RESERVED))
def test_names_of_every_table_are_refused(group: str, name: str) -> None:
    """A column by that name is there already."""
    with pytest.raises(ValueError, match=rf"'{name}' \(in {group}\).*attempts, condition"):
        check_names(*task(**{group: {"x": 1, name: 2}}))


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("name", [1, None, True, b"x", ("x",), 1.5, frozenset()])
def test_names_are_text(group: str, name: Any) -> None:
    """A number would be taken for a row's place."""
    with pytest.raises(TypeError, match=f"Names in {group} must be str, not {type(name).__name__}"):
        check_names(*task(**{group: {name: 1}}))


def test_names_can_be_written() -> None:
    """A lone surrogate fails in pandas, polars, Arrow and on the terminal, but not before."""
    with pytest.raises(ValueError, match=r"'\\ud800' in ys cannot be written as UTF-8"):
        check_names({}, {"\ud800": 1}, {})


@pytest.mark.parametrize("values", [[1], ["x"], "x", None, 3])
def test_values_have_names(values: Any) -> None:
    """A list of names is no mapping, nor is a str, though both can be iterated like one."""
    for group in GROUPS:
        with pytest.raises(TypeError, match=f"^{group} must be a mapping of names to values, not a "):
            check_names(*task(**{group: values}))


def test_all_mappings_will_do() -> None:
    """And so will all kinds of str."""
    check_names(MappingProxyType({"x": 1}), {np.str_("y"): 2}, {})
    with pytest.raises(ValueError, match=r"'x'.* is an input"):
        check_names(MappingProxyType({"x": 1}), {np.str_("x"): 2}, {})


def test_all_rows_of_a_batch_are_checked() -> None:
    """Not only the first of each kind, and not only dicts."""
    rows: list[Any] = [{"x": 1}, {"x": 2}, MappingProxyType({"y": 1})]
    check_inputs(rows)
    for bad, error in (({"state": 1}, ValueError), ({1: 1}, TypeError), ([1], TypeError), ([[]], TypeError)):
        with pytest.raises(error, match=r"state|Names in xs must be str|xs must be a mapping"):
            check_inputs([*rows, bad, {"x": 3}])
