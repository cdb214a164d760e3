"""`map` without workers: how far ahead it reads, what it cancels, what it lets go."""

from __future__ import annotations

import concurrent.futures
import gc
import itertools
import time
import weakref
from collections.abc import Callable, Iterator
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rush_executor._client.future import RushFuture
from rush_executor._executor.mapping import map_results


class Thing:
    """Something that can be watched while it goes."""


class FakeExecutor:
    """Takes submissions; the test says when they end.

    Attributes:
        futures: All that were submitted, unless `forgets` them.
        cancelled: What `map` did not need any more.
    """

    def __init__(self, fn: Callable[..., Any] | None = None, *, forgets: bool = False) -> None:
        self.fn = fn
        self.forgets = forgets
        self.futures: list[concurrent.futures.Future[Any]] = []
        self.submitted: list[tuple[tuple[Any, ...], bool]] = []
        self.cancelled: list[concurrent.futures.Future[Any]] = []

    def submit(self, args: tuple[Any, ...], *, is_chunk: bool) -> Any:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        if not self.forgets:
            self.submitted.append((args, is_chunk))
            self.futures.append(future)
        if self.fn is not None:
            self.run(future, args, is_chunk=is_chunk)
        return future

    def run(self, future: concurrent.futures.Future[Any], args: tuple[Any, ...], *, is_chunk: bool) -> None:
        assert self.fn is not None
        values: list[Any] = []
        failure = None
        try:
            # One by one: what was done before a failure is kept.
            values.extend(itertools.starmap(self.fn, args[0] if is_chunk else [args]))
        except Exception as error:
            # Without this frame, which would keep it.
            failure = error.with_traceback(None)
        if is_chunk:
            future.set_result(SimpleNamespace(values=values, failure=failure))
        elif failure is not None:
            future.set_exception(failure)
        else:
            future.set_result(values[0])

    def cancel(self, futures: list[Any]) -> None:
        self.cancelled += futures
        for future in futures:
            future.cancel()

    def map(
        self, *iterables: Any, timeout: float | None = None, chunksize: int = 1, buffersize: int | None = None
    ) -> Iterator[Any]:
        return map_results(
            self.submit, self.cancel, iterables, timeout=timeout, chunksize=chunksize, buffersize=buffersize
        )


class Source:
    """An iterable that knows how much of it was read."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.n_read = 0

    def __iter__(self) -> Iterator[int]:
        for number in range(self.n):
            self.n_read += 1
            yield number


# -------------------------------------------------------------------------------------------------------- results


@given(
    n=st.integers(0, 40),
    chunksize=st.integers(1, 50),
    buffersize=st.none() | st.integers(1, 50),
)
def test_it_equals_the_builtin(n: int, chunksize: int, buffersize: int | None) -> None:
    """Same results in the same order, whatever the sizes."""
    results = FakeExecutor(lambda x: x * x).map(range(n), chunksize=chunksize, buffersize=buffersize)
    assert list(results) == [x * x for x in range(n)]


def test_several_iterables_end_with_the_shortest() -> None:
    """As the builtin."""
    fake = FakeExecutor(lambda *args: args)
    assert list(fake.map("abc", itertools.count(), [1, 2])) == [("a", 0, 1), ("b", 1, 2)]
    assert list(fake.map("abc", range(2), chunksize=2)) == [("a", 0), ("b", 1)]


def test_no_iterable_at_all() -> None:
    """As the builtin zip: nothing."""
    assert list(FakeExecutor(lambda: 1).map()) == []


@pytest.mark.parametrize("chunksize", [1, 2, 3, 100])
def test_what_a_call_raises(chunksize: int) -> None:
    """The results before it come first, then the exception itself; what comes after is cancelled."""
    error = ValueError("seven")

    def fn(x: int) -> int:
        if x == 7:
            raise error
        return x

    results = FakeExecutor(fn).map(range(20), chunksize=chunksize)
    assert list(itertools.islice(results, 7)) == list(range(7))
    with pytest.raises(ValueError, match="seven") as caught:
        next(results)
    assert caught.value is error
    assert list(results) == []


# --------------------------------------------------------------------------------------------------- reading ahead


def test_all_is_submitted_at_once() -> None:
    """Before the first result is asked for, as the standard library does."""
    fake, source = FakeExecutor(), Source(50)
    fake.map(source)
    assert source.n_read == len(fake.futures) == 50


def test_chunks() -> None:
    """One task for so many items; the last one may be shorter."""
    fake = FakeExecutor()
    fake.map(range(7), "abcdefg", chunksize=3)
    chunk = [(0, "a"), (1, "b"), (2, "c")]
    assert fake.submitted[0] == ((chunk,), True)
    assert [(len(args[0]), is_chunk) for args, is_chunk in fake.submitted] == [(3, True), (3, True), (1, True)]


@pytest.mark.parametrize("chunksize", [1, 2, 3, 7, 10, 100])
@pytest.mark.parametrize("buffersize", [1, 2, 5, 10])
def test_buffersize_is_strict(buffersize: int, chunksize: int) -> None:
    """At no time have more items been read than were yielded plus `buffersize`."""
    fake, source = FakeExecutor(lambda x: x), Source(60)
    results = fake.map(source, chunksize=chunksize, buffersize=buffersize)
    assert 0 < source.n_read <= buffersize
    for n_yielded, _ in enumerate(results, 1):
        assert source.n_read <= n_yielded + buffersize
    assert source.n_read == 60


@pytest.mark.parametrize(("buffersize", "chunksize", "ahead"), [(1, 1, 1), (4, 1, 4), (4, 2, 4), (5, 2, 4), (3, 9, 3)])
def test_buffersize_is_used(buffersize: int, chunksize: int, ahead: int) -> None:
    """As much is read ahead as whole chunks fit into the buffer; a chunk is never larger than the buffer."""
    fake, source = FakeExecutor(), Source(100)
    fake.map(source, chunksize=chunksize, buffersize=buffersize)
    assert source.n_read == ahead


def test_an_endless_input() -> None:
    """With a buffer it can be mapped over."""
    results = FakeExecutor(lambda x: x).map(itertools.count(), buffersize=3)
    assert list(itertools.islice(results, 20)) == list(range(20))


def test_the_next_item_is_read_when_there_is_room() -> None:
    """Not before the result that makes room has been yielded, and not later than the next one is asked for."""
    fake, source = FakeExecutor(lambda x: x), Source(10)
    results = fake.map(source, buffersize=2)
    assert source.n_read == 2
    next(results)
    assert source.n_read <= 3
    next(results)
    assert 3 <= source.n_read <= 4


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"chunksize": 0}, ValueError, "chunksize must be >= 1"),
        ({"chunksize": -3}, ValueError, "chunksize must be >= 1"),
        ({"buffersize": 0}, ValueError, "buffersize must be None or > 0"),
        ({"buffersize": -1}, ValueError, "buffersize must be None or > 0"),
        ({"buffersize": 1.5}, TypeError, "buffersize must be an integer or None"),
        ({"buffersize": "3"}, TypeError, "buffersize must be an integer or None"),
    ],
)
def test_bad_sizes(arguments: dict[str, Any], error: type[Exception], said: str) -> None:
    """In the words of the standard library, and before anything was read."""
    source = Source(3)
    with pytest.raises(error, match=said):
        FakeExecutor().map(source, **arguments)
    assert source.n_read == 0


# ------------------------------------------------------------------------------------------------------- giving up


def test_closing_cancels_what_is_left() -> None:
    """Who breaks out of the loop does not pay for the rest."""
    fake = FakeExecutor()
    results = fake.map(range(5))
    fake.futures[0].set_result("first")
    assert next(results) == "first"
    results.close()  # type: ignore[attr-defined]
    assert fake.cancelled == fake.futures[1:]


@pytest.mark.parametrize("timeout", [0, -1, 0.01])
def test_a_timeout(timeout: float) -> None:
    """The result that is late is cancelled, and all behind it."""
    fake = FakeExecutor()
    results = fake.map(range(3), timeout=timeout)
    with pytest.raises(TimeoutError):
        next(results)
    assert sorted(map(id, fake.cancelled)) == sorted(map(id, fake.futures))
    assert list(results) == []


def test_a_timeout_counts_from_the_call() -> None:
    """Not from the first `next`, nor anew for each result; what is there in time is given even afterwards."""
    fake = FakeExecutor()
    started_at = time.monotonic()
    results = fake.map(range(3), timeout=0.05)
    for number in range(2):
        fake.futures[number].set_result(number)
    assert next(results) == 0
    while time.monotonic() < started_at + 0.06:
        pass
    assert next(results) == 1
    with pytest.raises(TimeoutError):
        next(results)
    assert time.monotonic() - started_at < 10


def test_cancelled_elsewhere() -> None:
    """A Future that somebody else cancelled raises CancelledError here."""
    fake = FakeExecutor()
    results = fake.map(range(3))
    fake.futures[0].cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        next(results)
    assert fake.cancelled == fake.futures[1:]


def test_an_input_that_raises() -> None:
    """Its exception comes out where it was read."""

    def source() -> Iterator[int]:
        yield 1
        raise LookupError("input")

    with pytest.raises(LookupError, match="input"):
        FakeExecutor(lambda x: x).map(source())
    results = FakeExecutor(lambda x: x).map(source(), buffersize=1)
    assert next(results) == 1
    with pytest.raises(LookupError, match="input"):
        next(results)


# ----------------------------------------------------------------------------------------------------- letting go


@pytest.mark.parametrize("chunksize", [1, 3])
@pytest.mark.parametrize("buffersize", [None, 6])
def test_a_result_is_let_go_once_it_was_yielded(chunksize: int, buffersize: int | None) -> None:
    """Promise 19: the iterator keeps no reference to what it has passed, without the help of the collector."""
    fake = FakeExecutor(lambda _: Thing(), forgets=True)
    results = fake.map(range(12), chunksize=chunksize, buffersize=buffersize)
    gc.collect()
    gc.disable()
    try:
        watched = []
        for result in results:
            watched.append(weakref.ref(result))
            del result
            assert watched[-1]() is None
        assert len(watched) == 12
    finally:
        gc.enable()


@pytest.mark.parametrize("chunksize", [1, 3])
def test_an_exception_is_let_go(chunksize: int) -> None:
    """No cycle through the traceback keeps it, or what its frames hold."""

    class Failure(Exception):
        """One that can be watched."""

    def fn(_: int) -> None:
        raise Failure

    fake = FakeExecutor(fn, forgets=True)
    gc.collect()
    gc.disable()
    try:
        results = fake.map(range(4), chunksize=chunksize)
        watched = []
        try:
            next(results)
        except Failure as error:
            watched.append(weakref.ref(error))
        del results
        assert watched[0]() is None
    finally:
        gc.enable()


def test_arguments_are_let_go_once_submitted() -> None:
    """The iterator does not keep what it has read."""
    fake = FakeExecutor(lambda thing: None, forgets=True)
    watched = []

    def source() -> Iterator[Thing]:
        for _ in range(3):
            thing = Thing()
            watched.append(weakref.ref(thing))
            yield thing
            del thing

    gc.collect()
    gc.disable()
    try:
        results = fake.map(source())
        assert len(watched) == 3
        assert [ref() for ref in watched[:-1]] == [None, None]
        list(results)
        assert watched[-1]() is None
    finally:
        gc.enable()


class Whole:
    """An integer that is no `int`, like those of NumPy."""

    def __index__(self) -> int:
        return 3


def test_numbers_of_all_kinds() -> None:
    """What counts as an integer, or as a number of seconds, is taken; what does not is told by name."""
    sizes: list[int] = []

    def submit(args: tuple[object, ...], *, is_chunk: bool) -> RushFuture:
        sizes.append(len(args[0]))  # type: ignore[arg-type]
        raise _Enough

    def run(chunksize: object = 1, timeout: object = None) -> None:
        list(
            map_results(
                submit, lambda futures: None, (range(9),), timeout=timeout, chunksize=chunksize, buffersize=None
            )
        )  # type: ignore[arg-type]

    with pytest.raises(_Enough):
        run(chunksize=Whole(), timeout=Fraction(60))
    assert sizes == [3]
    for bad in ("a", 1.5):
        with pytest.raises(TypeError, match="chunksize must be an integer"):
            run(chunksize=bad)
    with pytest.raises(TypeError, match="timeout must be a number of seconds or None"):
        run(timeout="a")


class _Enough(Exception):
    pass
