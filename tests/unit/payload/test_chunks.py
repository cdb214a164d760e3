"""A chunk of calls behaves as builtin map: what came before a failure is delivered first."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rush_executor._payload import ChunkResult, run_chunk
from rush_executor.errors import PayloadError, RemoteError, RemoteTraceback
from tests.unit.payload import support
from tests.unit.payload.support import SECRET, TASK, Sides


def picky(value: int) -> int:
    if value == 3:
        raise ValueError("three")
    return 10 * value


@given(st.lists(st.integers(0, 5), max_size=8), st.booleans())
def test_as_builtin_map(items: list[int], is_sealed: bool) -> None:
    """The same values before the same exception."""
    expected: list[int] = []
    failed = False
    try:
        expected.extend(map(picky, items))
    except ValueError:
        failed = True
    result = Sides(SECRET if is_sealed else None).chunk(picky, [(item,) for item in items])
    assert result.values == expected
    assert (result.failure is not None) == failed


@pytest.mark.parametrize("exc", [SystemExit(2), KeyboardInterrupt(), GeneratorExit(), StopIteration(4)])
def test_any_failure(exc: BaseException) -> None:
    """SystemExit and its kind end the chunk, not the worker."""

    def raise_it() -> None:
        raise exc

    values, failure = run_chunk(raise_it, [(), ()])
    assert values == []
    assert failure is exc
    assert failure.__traceback__ is not None
    assert failure.__traceback__.tb_frame.f_code.co_name == "raise_it"


def test_failure_is_as_good_as_that_of_one_call() -> None:
    """Type, traceback without frames of ours, remote text."""
    failure = Sides().chunk(picky, [(1,), (3,), (4,)]).failure
    assert type(failure) is ValueError
    assert failure.__traceback__ is not None
    assert failure.__traceback__.tb_frame.f_code.co_name == "picky"
    assert type(failure.__cause__) is RemoteTraceback
    assert "run_chunk" not in failure.__cause__.tb


def test_failure_that_cannot_be_carried() -> None:
    """It becomes a RemoteError, and the values before it are delivered."""

    def fail(n: int) -> int:
        if n:
            raise ValueError(threading.Lock())
        return n

    values, failure = Sides().chunk(fail, [(0,), (1,)])
    assert values == [0]
    assert type(failure) is RemoteError


def test_value_that_cannot_be_pickled() -> None:
    """It fails its own call; the values before it are delivered, the ones after it are not."""
    values, failure = Sides().chunk(support.same, [(1,), (2,), (3,)])
    assert (values, failure) == ([1, 2, 3], None)
    values, failure = Sides().chunk(lambda n: threading.Lock() if n == 2 else n, [(1,), (2,), (3,)])
    assert values == [1]
    assert type(failure) is PayloadError
    assert "the result of call 2 of the chunk (a _thread.lock) cannot be pickled" in str(failure)


class EveryOther:
    """Can be pickled every other time."""

    n = 0

    def __reduce__(self) -> Any:
        EveryOther.n += 1
        if EveryOther.n % 2:
            raise SystemExit("no")
        return EveryOther, ()


@pytest.mark.parametrize("first", [0, 1])
def test_encode_chunk_never_raises(first: int) -> None:
    """Not even for values that can be pickled alone but not together."""
    EveryOther.n = first
    sides = Sides()
    for n in range(1, 5):
        body = sides.decoder.encode_chunk(TASK, [EveryOther() for _ in range(n)], None)
        result = sides.encoder.decode_outcome(TASK, "finished", body)
        assert isinstance(result, ChunkResult)


def test_arrays_in_chunks() -> None:
    """Buffers travel beside the pickle and are writable, in and out."""

    def fill(array: Any) -> Any:
        array[:] = 1
        return array

    values, _ = Sides().chunk(fill, [(np.zeros(100),), (np.zeros(200),)])
    assert [value.sum() for value in values] == [100, 200]
    values[0][:] = 2


def test_items_of_several_arguments() -> None:
    """Each item is the tuple of arguments of one call."""
    assert Sides().chunk(support.add, [(1, 2), (3,)]).values == [3, 3]


def test_flag() -> None:
    """A chunk says so; an ordinary call with the same arguments does not."""
    sides = Sides()
    fn = sides.function(support.same)
    for is_chunk in (True, False):
        payload = sides.encoder.encode_call(TASK, fn, ([(1,)],), {}, is_chunk=is_chunk)
        call = sides.decoder.decode_call("c", TASK, payload)
        assert (call.is_chunk, call.args, call.kwargs) == (is_chunk, ([(1,)],), {})


def test_result_that_is_a_chunk_result() -> None:
    """A task may return what looks like a chunk's result; it stays what it is."""
    value = ChunkResult([1], None)
    assert Sides().back(value) == value
    assert Sides().back(([1], b"x")) == ([1], b"x")
