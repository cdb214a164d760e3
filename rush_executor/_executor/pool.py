"""`as_pool`: an executor with the methods of `multiprocessing.Pool`, for libraries that ask for one.

The pool is a view, as that of `options`: it has no workers of its own, and its end is not the executor's. Called by
users' code alone. What `multiprocessing.Pool` promises beyond the methods holds here too: after `close` nothing is
taken, `join` waits, leaving the `with` block ends at once what was submitted through the pool.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from rush_executor._client.future import RushFuture
from rush_executor._executor.mapping import submit_calls
from rush_executor._payload import ChunkResult

if TYPE_CHECKING:
    from rush_executor._executor.executor import TaskExecutor

__all__ = ["PoolResult", "PoolResults", "PoolView"]

# As in multiprocessing: enough for workers that are not equally fast, and few enough to save on each.
_CHUNKS_PER_WORKER: Final = 4

_Callback = Callable[[Any], object]


class PoolResult:
    """What is to come of calls that were submitted together, as `multiprocessing.pool.AsyncResult`."""

    def __init__(
        self,
        futures: list[RushFuture],
        cancel: Callable[[list[RushFuture]], None],
        *,
        is_one: bool,
        callback: _Callback | None,
        error_callback: _Callback | None,
    ) -> None:
        self._futures = futures
        self._cancel = cancel
        self._is_one = is_one
        self._callback = callback
        self._error_callback = error_callback
        self._n_left = len(futures)
        self._lock = threading.Lock()
        if callback is not None or error_callback is not None:
            for future in futures:
                future.add_done_callback(self._count)

    def ready(self) -> bool:
        """Whether every call has ended."""
        return all(future.done() for future in self._futures)

    def successful(self) -> bool:
        """Whether none has failed.

        Raises:
            ValueError: They have not all ended.
        """
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return all(_outcome(future).failure is None for future in self._futures)

    def wait(self, timeout: float | None = None) -> None:
        """Waits until every call has ended, or for so many seconds."""
        concurrent.futures.wait(self._futures, timeout)

    def get(self, timeout: float | None = None) -> Any:
        """The result, or the list of results.

        Args:
            timeout: Seconds to wait at most; None for as long as it takes.

        Raises:
            multiprocessing.TimeoutError: They have not all ended by then; they go on.
            Exception: What the first call that failed has raised. What no worker has claimed by then is cancelled.
        """
        end_at = None if timeout is None else time.monotonic() + timeout
        values: list[Any] = []
        for future in self._futures:
            _wait_for(future, None if end_at is None else end_at - time.monotonic())
            outcome = _outcome(future)
            if outcome.failure is not None:
                self._cancel(self._futures)
                try:
                    raise outcome.failure
                finally:
                    # The traceback refers to this frame.
                    del outcome
            values += outcome.values
        return values[0] if self._is_one else values

    def _count(self, _future: object) -> None:
        with self._lock:
            self._n_left -= 1
            if self._n_left:
                return
        try:
            value = self.get()
        except BaseException as error:  # noqa: BLE001 - whatever a task has raised is for the callback
            if self._error_callback is not None:
                self._error_callback(error)
        else:
            if self._callback is not None:
                self._callback(value)


class PoolResults(Iterator[Any]):
    """Results as they are asked for, as the iterators of `multiprocessing.Pool.imap` and `imap_unordered`.

    A call that has failed raises where its result would stand; the iterator goes on behind it.
    """

    def __init__(self, futures: list[RushFuture], *, is_ordered: bool) -> None:
        self._n_left = len(futures)
        self._values: deque[Any] = deque()
        self._failure: BaseException | None = None
        # In their order, or put there when they are done.
        self._futures: deque[RushFuture] = deque(futures if is_ordered else ())
        self._done: queue.SimpleQueue[RushFuture] = queue.SimpleQueue()
        self._is_ordered = is_ordered
        if not is_ordered:
            for future in futures:
                # A callback that takes what it is given: no reference back to this iterator.
                future.add_done_callback(self._done.put)  # type: ignore[arg-type]

    def __next__(self) -> Any:
        return self.next()

    def next(self, timeout: float | None = None) -> Any:
        """The next result.

        Args:
            timeout: Seconds to wait for it at most; None for as long as it takes.

        Raises:
            StopIteration: There is none.
            multiprocessing.TimeoutError: It has not come by then; it may be asked for again.
        """
        while not self._values:
            if self._failure is not None:
                failure, self._failure = self._failure, None
                try:
                    raise failure
                finally:
                    # The traceback refers to this frame.
                    del failure
            if not self._n_left:
                raise StopIteration
            outcome = _outcome(self._take(timeout))
            self._values.extend(outcome.values)
            self._failure = outcome.failure
        return self._values.popleft()

    def _take(self, timeout: float | None) -> RushFuture:
        if self._is_ordered:
            _wait_for(self._futures[0], timeout)
            future = self._futures.popleft()
        else:
            try:
                future = self._done.get(timeout=timeout)
            except queue.Empty:
                raise multiprocessing.TimeoutError from None
        self._n_left -= 1
        return future


class PoolView:
    """An executor with the methods of `multiprocessing.Pool`; see `RushExecutor.as_pool`."""

    def __init__(self, executor: TaskExecutor) -> None:
        self._executor = executor
        self._is_closed = False
        # Those that are pending are referred to by the executor.
        self._futures: weakref.WeakSet[RushFuture] = weakref.WeakSet()

    @property
    def size(self) -> int:
        """Number of workers, at least 1."""
        return self._executor._max_workers  # noqa: SLF001 - a view of it

    @property
    def _processes(self) -> int:
        """The same, as some read it off a `multiprocessing.Pool`."""
        return self.size

    def apply(self, func: Callable[..., Any], args: Iterable[Any] = (), kwds: Mapping[str, Any] | None = None) -> Any:
        """Calls ``func(*args, **kwds)`` in a worker, and returns its result."""
        return self.apply_async(func, args, kwds).get()

    def map(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        """Calls `func` with every item; returns the results in their order."""
        result: list[Any] = self.map_async(func, iterable, chunksize).get()
        return result

    def starmap(
        self, func: Callable[..., Any], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[Any]:
        """As `map`, where every item holds the arguments of a call."""
        result: list[Any] = self.starmap_async(func, iterable, chunksize).get()
        return result

    def imap(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int = 1) -> PoolResults:
        """As `map`, but returns an iterator over the results; the input is read at once."""
        return PoolResults(self._submit(func, ((item,) for item in iterable), chunksize), is_ordered=True)

    def imap_unordered(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int = 1) -> PoolResults:
        """As `imap`, with the results in the order in which they come."""
        return PoolResults(self._submit(func, ((item,) for item in iterable), chunksize), is_ordered=False)

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
        callback: _Callback | None = None,
        error_callback: _Callback | None = None,
    ) -> PoolResult:
        """As `apply`, without waiting.

        Args:
            func: To be called.
            args: Its arguments.
            kwds: Its keyword arguments.
            callback: Called with the result, on a thread made for callbacks.
            error_callback: Called with what the call has raised, instead.
        """
        self._check_open()
        future = self._executor.submit(func, *args, **(kwds or {}))
        self._futures.add(future)
        return self._result([future], callback, error_callback, is_one=True)

    def map_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: _Callback | None = None,
        error_callback: _Callback | None = None,
    ) -> PoolResult:
        """As `map`, without waiting; for the callbacks see `apply_async`."""
        calls = [(item,) for item in iterable]
        futures = self._submit(func, calls, self._chunksize(len(calls), chunksize))
        return self._result(futures, callback, error_callback, is_one=False)

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: _Callback | None = None,
        error_callback: _Callback | None = None,
    ) -> PoolResult:
        """As `starmap`, without waiting; for the callbacks see `apply_async`."""
        calls = [tuple(item) for item in iterable]
        futures = self._submit(func, calls, self._chunksize(len(calls), chunksize))
        return self._result(futures, callback, error_callback, is_one=False)

    def close(self) -> None:
        """Takes no calls any more. The executor does."""
        self._is_closed = True

    def terminate(self) -> None:
        """Takes no calls any more, and ends those that were submitted through this pool, also while they run.

        Only they are ended: see `RushFuture.kill`.
        """
        self._is_closed = True
        pending = [future for future in self._futures if not future.done()]
        self._executor._session.cancel_all(pending)  # noqa: SLF001 - a view of it
        for future in pending:
            future.kill()

    def join(self) -> None:
        """Waits for what was submitted through this pool.

        Raises:
            ValueError: It was not closed.
        """
        if not self._is_closed:
            raise ValueError("Pool is still running")
        concurrent.futures.wait(list(self._futures))

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        """As `terminate`. The executor goes on."""
        self.terminate()

    def __repr__(self) -> str:
        return f"{self._executor!r}.as_pool()"

    def _chunksize(self, n_calls: int, chunksize: int | None) -> int:
        if chunksize is not None:
            return chunksize
        return -(-n_calls // (_CHUNKS_PER_WORKER * self.size)) or 1

    def _submit(self, func: Callable[..., Any], calls: Iterable[tuple[Any, ...]], chunksize: int) -> list[RushFuture]:
        self._check_open()
        if chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize}")
        futures = list(submit_calls(self._executor._submitter(func), calls, chunksize))  # noqa: SLF001 - a view of it
        self._futures.update(futures)
        return futures

    def _result(
        self,
        futures: list[RushFuture],
        callback: _Callback | None,
        error_callback: _Callback | None,
        *,
        is_one: bool,
    ) -> PoolResult:
        return PoolResult(
            futures,
            self._executor._session.cancel_all,  # noqa: SLF001 - a view of it
            is_one=is_one,
            callback=callback,
            error_callback=error_callback,
        )

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError("Pool not running")


def _wait_for(future: RushFuture, timeout: float | None) -> None:
    try:
        # Unlike `result`, it raises TimeoutError for nothing but that.
        future.exception(timeout)
    except TimeoutError:
        raise multiprocessing.TimeoutError from None
    except concurrent.futures.CancelledError:
        pass


def _outcome(future: RushFuture) -> ChunkResult:
    """What came of a task that is done: one call, or a chunk of them."""
    try:
        value = future.result(0)
    except BaseException as failure:  # noqa: BLE001 - SystemExit and its kind are a task's outcome, too
        return ChunkResult([], failure)
    return value if isinstance(value, ChunkResult) else ChunkResult([value], None)
