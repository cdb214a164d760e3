"""Which rows plain pickle may write."""

from __future__ import annotations

import enum
from typing import Any

import pytest

from rush_executor._payload.rows import XS, RowCodec
from rush_executor._payload.scalars import is_plain, is_plain_row


class Name(str):
    __slots__ = ()


class Level(enum.IntEnum):
    LOW = 1


PLAIN: list[dict[Any, Any]] = [
    {},
    {"x": 1, "y": 2.0, "z": None, "b": True, "c": 1j},
    {"x": "text", "y": b"bytes"},
    {f"x{i}": i for i in range(40)},
]
OTHER: list[Any] = [
    {Name("x"): 1},
    {"x": Level.LOW},
    {"x": Name("text")},
    {"x": [1]},
    {"x": lambda: 1},
    {"x": "t" * 10_000},
    [("x", 1)],
]


@pytest.mark.parametrize("row", PLAIN[:-1])
def test_plain_rows(row: dict[Any, Any]) -> None:
    """The short way to tell says what the general one does."""
    assert is_plain_row(row)
    assert is_plain((row,))


@pytest.mark.parametrize("row", OTHER)
def test_other_rows(row: Any) -> None:
    """A subclass of a builtin type is not that type: cloudpickle may write it in its own way."""
    assert not is_plain_row(row)


@pytest.mark.parametrize("row", PLAIN)
def test_what_is_packed_is_the_same(row: dict[Any, Any]) -> None:
    """Whichever way it goes."""
    codec = RowCodec("network", b"secret")
    assert codec.are_plain([row])
    packed = codec.encode_plain(XS, "task", row)
    assert codec.decode(XS, "task", packed) == codec.decode(XS, "task", codec.encode(XS, "task", row)) == row
