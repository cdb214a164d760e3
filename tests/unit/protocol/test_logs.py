"""Batches of log lines: whatever was said comes out as it went in, and what is broken does no harm."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rush_executor._protocol.logs import (
    LONGEST_TEXT,
    LogLine,
    decode_batch,
    encode_batch,
    shorten,
    shorten_middle,
)

LINES = st.tuples(
    st.integers(0, 2_000_000_000_000_000),
    st.integers(0, 100),
    # Of the surrogates only those that stand for bytes: a pair would be read as one character.
    *[st.text(st.characters(exclude_categories=["Cs"]) | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF))]
    * 5,
)


@given(st.lists(LINES, max_size=5), st.floats(-1e6, 1e6))
def test_there_and_back(lines: list[LogLine], offset_s: float) -> None:
    """Every text, time and level survives; times are the server's."""
    records = decode_batch("w1", encode_batch(offset_s, lines))
    assert [record[2:] for record in records] == [line[1:] for line in lines]
    for record, line in zip(records, lines, strict=True):
        assert record.time == pytest.approx(line[0] / 1e6 + offset_s, abs=2e-6)


def test_bytes_that_are_no_text() -> None:
    """A file name that is no UTF-8 is in the log as Python shows it."""
    message = b"caf\xe9 \xff".decode(errors="surrogateescape")
    raw = encode_batch(0.0, [(1, 20, "a", message, "", "log", "")])
    assert raw.isascii()
    assert decode_batch("w1", raw)[0].message == message


@pytest.mark.parametrize(
    "raw", [b"", b"\xff", b"5", b"null", b"[]", b"[1]", b'["x",[[1,2]]]', b"[0,5]", b"[0,[7]]", b"[0,[[1]]]"]
)
def test_a_broken_batch(raw: bytes) -> None:
    """Reads as nothing."""
    assert decode_batch("w1", raw) == []


def test_a_broken_line() -> None:
    """The others are read; a line of a newer version may have more to say."""
    good = [1, 20, "a", "m", "", "log", ""]
    bad = [[1, "high", *good[2:]], [1, float("inf"), *good[2:]], [10**400, *good[1:]]]
    raw = json.dumps([0, [good, *bad, [*good, "more"]]]).encode()
    assert len(decode_batch("w1", raw)) == 2


@pytest.mark.parametrize("cut", [shorten, shorten_middle])
@pytest.mark.parametrize("n", [0, 1, LONGEST_TEXT, LONGEST_TEXT + 1, 10_000_000])
def test_the_longest_text(cut: object, n: int) -> None:
    """What is longer than the bound is cut to it, and says so."""
    text = "x" * n
    short = cut(text)  # type: ignore[operator]
    assert len(short) <= LONGEST_TEXT
    assert short == text if n <= LONGEST_TEXT else f"[{n} characters]" in short


def test_both_ends_of_a_traceback() -> None:
    """The beginning says where, the end what."""
    short = shorten_middle("Traceback\n" + "x" * 100_000 + "\nValueError: no")
    assert short.startswith("Traceback\n")
    assert short.endswith("\nValueError: no")
