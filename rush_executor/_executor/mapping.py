"""`map`: submits calls, one by one or in chunks, and yields their results in order.

The function is packed once. With `buffersize` the input is read only as far ahead as that many items, strictly: an
item is read when the one that makes room for it has been yielded. References to results are dropped as they are
yielded.
"""

from __future__ import annotations

import itertools
import operator
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, Protocol, SupportsIndex

from rush_executor._client.future import RushFuture

__all__ = ["Submit", "map_results", "n_submitted_later", "submit_calls"]


class Submit(Protocol):
    """Submits one task."""

    def __call__(self, args: tuple[Any, ...], *, is_chunk: bool) -> RushFuture:
        """Submits one call, or, with `is_chunk`, one list of calls: ``args`` holds the list alone."""


def map_results(
    submit: Submit,
    cancel: Callable[[list[RushFuture]], None],
    iterables: tuple[Iterable[Any], ...],
    *,
    timeout: float | None,
    chunksize: int,
    buffersize: int | None,
) -> Iterator[Any]:
    """Submits and yields.

    Args:
        submit: Submits one task.
        cancel: Cancels Futures that are not needed any more.
        iterables: As for `map`.
        timeout: Seconds from now within which every result must be there; None for no limit.
        chunksize: Items per task.
        buffersize: Items that may have been read and not yielded; None for all.
    """
    # What counts as a number: those of NumPy do.
    if not isinstance(chunksize, SupportsIndex):
        raise TypeError(f"chunksize must be an integer, not {type(chunksize).__name__}")
    chunksize = operator.index(chunksize)
    try:
        end_at = None if timeout is None else time.monotonic() + timeout
    except TypeError:
        raise TypeError(f"timeout must be a number of seconds or None, not {type(timeout).__name__}") from None
    if chunksize < 1:
        raise ValueError("chunksize must be >= 1.")
    if buffersize is not None:
        if not isinstance(buffersize, SupportsIndex):
            raise TypeError("buffersize must be an integer or None")
        buffersize = operator.index(buffersize)
        if buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        chunksize = min(chunksize, buffersize)
    calls = zip(*iterables, strict=False)
    tasks = submit_calls(submit, calls, chunksize)
    n_ahead = None if buffersize is None else buffersize // chunksize
    # Submitted now, not when the first result is asked for.
    futures = deque(itertools.islice(tasks, n_ahead))
    return _results(futures, tasks if buffersize is not None else iter(()), cancel, end_at, is_chunked=chunksize > 1)


def n_submitted_later(iterables: tuple[Iterable[Any], ...], chunksize: int, buffersize: int | None) -> int | None:
    """How many calls `map_results` will submit while its results are asked for; None if the input does not tell."""
    if buffersize is None:
        return 0
    sizes = [len(iterable) if isinstance(iterable, Sized) else None for iterable in iterables]
    if None in sizes or not sizes:
        return None
    chunksize = min(chunksize, buffersize)
    return max(0, min(size or 0 for size in sizes) - buffersize // chunksize * chunksize)


def submit_calls(submit: Submit, calls: Iterable[tuple[Any, ...]], chunksize: int) -> Iterator[RushFuture]:
    """Submits calls, one or `chunksize` of them as one task, whenever the next Future is asked for."""
    if chunksize == 1:
        for args in calls:
            yield submit(args, is_chunk=False)
        return
    rest = iter(calls)
    while chunk := list(itertools.islice(rest, chunksize)):
        yield submit((chunk,), is_chunk=True)


def _results(
    futures: deque[RushFuture],
    more: Iterator[RushFuture],
    cancel: Callable[[list[RushFuture]], None],
    end_at: float | None,
    *,
    is_chunked: bool,
) -> Iterator[Any]:
    try:
        while futures:
            if is_chunked:
                yield from _chunk(_result(futures.popleft(), cancel, end_at))
            else:
                yield _result(futures.popleft(), cancel, end_at)
            futures.extend(itertools.islice(more, 1))
    finally:
        cancel(list(futures))


def _result(future: RushFuture, cancel: Callable[[list[RushFuture]], None], end_at: float | None) -> Any:
    """The result of a Future to which no reference is left here afterwards."""
    try:
        try:
            return future.result(None if end_at is None else end_at - time.monotonic())
        finally:
            if not future.done():
                cancel([future])
    finally:
        # The exception that it raises has this frame in its traceback: break the cycle.
        del future


def _chunk(result: Any) -> Iterator[Any]:
    values, failure = result.values, result.failure
    del result
    values.reverse()
    while values:
        yield values.pop()
    if failure is not None:
        try:
            raise failure
        finally:
            del failure
