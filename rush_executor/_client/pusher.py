"""Making tasks in a network that keeps them: what `Rush` and a `RushWorker` have in common."""

from __future__ import annotations

import importlib.util
import math
import operator
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from rush_executor._config import HIGHEST_PRIORITY
from rush_executor._ledger.connection import NetworkGone, WrongKind
from rush_executor._ledger.tasks import KeptTask, TaskLedger
from rush_executor._payload.rows import EXTRA, XS, YS, RowCodec
from rush_executor._protocol.ids import new_id
from rush_executor._protocol.names import check_inputs, check_names
from rush_executor._protocol.states import FAILED, FINISHED, QUEUED
from rush_executor.errors import RushError

__all__ = ["TaskPusher", "as_error", "per_task"]

# So few are sent in one go.
_SMALL_BATCH: Final = 500

Row = Mapping[str, Any]


class TaskPusher:
    """Makes tasks, in any state that needs no worker.

    Attributes are set by the class that inherits: the ledger, the lock that guards its connection, the codec.
    """

    network_id: str
    _ledger: TaskLedger
    _ledger_lock: threading.Lock
    _codec: RowCodec
    _is_found: bool

    def push_tasks(
        self,
        xss: Iterable[Row],
        *,
        extra: Iterable[Row] | None = None,
        seeds: Iterable[int] | int | None = None,
        timeouts: Iterable[float | None] | float | None = None,
        max_retries: Iterable[int] | int | None = None,
        terminate_workers: bool = False,
    ) -> list[str]:
        """Queues tasks, in their order.

        Args:
            xss: Inputs of each task: names and values.
            extra: What is to be known beside them, for each task.
            seeds: Seed of each task; one for all: each task gets one of its own that is derived from it and its place.
            timeouts: How long one attempt at a task may take, in seconds; one for all or one for each. None for any
                time.
            max_retries: How many times a task is run again when its worker is lost; one for all or one for each.
            terminate_workers: Workers leave when they find the queue empty.

        Returns:
            Keys of the tasks.

        Raises:
            ValueError, TypeError: A row or an option makes no sense; nothing was sent.
            PayloadError: A value cannot be pickled; nothing was sent.
            RushError: The network is an executor's.
        """
        return self._push(xss, extra, seeds, timeouts, max_retries, terminate_workers=terminate_workers)

    def push_priority_tasks(
        self,
        xss: Iterable[Row],
        priority: Iterable[str | int | None] | str | int,
        *,
        extra: Iterable[Row] | None = None,
        seeds: Iterable[int] | int | None = None,
        timeouts: Iterable[float | None] | float | None = None,
        max_retries: Iterable[int] | int | None = None,
    ) -> list[str]:
        """Queues tasks that are not to wait their turn.

        Args:
            xss: As in `push_tasks`.
            priority: For all or for each: id of the worker that is to run the task, before anything else (any worker
                does, if that one is not there (any more)), or a number: higher runs earlier; None for 0.
            extra: As in `push_tasks`.
            seeds: As in `push_tasks`.
            timeouts: As in `push_tasks`.
            max_retries: As in `push_tasks`.

        Returns:
            Keys of the tasks.
        """
        return self._push(xss, extra, seeds, timeouts, max_retries, priority=priority)

    def push_finished_tasks(
        self, xss: Iterable[Row], yss: Iterable[Row], *, extra: Iterable[Row] | None = None
    ) -> list[str]:
        """Puts tasks with known results into the network, for example those of an earlier run.

        Args:
            xss: Inputs of each task.
            yss: Results of each task.
            extra: What is to be known beside them, for each task.

        Returns:
            Keys of the tasks.
        """
        xs_rows = _rows("xss", xss)
        ys_rows = per_task("yss", yss, len(xs_rows))
        return self._create(
            FINISHED, xs_rows, extra, lambda key, i: self._codec.encode(YS, key, dict(ys_rows[i])), ys_rows
        )

    def push_failed_tasks(
        self,
        xss: Iterable[Row],
        conditions: Iterable[BaseException | str] | BaseException | str,
        *,
        extra: Iterable[Row] | None = None,
    ) -> list[str]:
        """Puts tasks that have failed into the network.

        Args:
            xss: Inputs of each task.
            conditions: Why, for all or for each: an exception, or a text.
            extra: What is to be known beside them, for each task.

        Returns:
            Keys of the tasks.
        """
        xs_rows = _rows("xss", xss)
        errors = per_task("conditions", conditions, len(xs_rows))
        return self._create(FAILED, xs_rows, extra, lambda key, i: self._codec.encode_failure(key, as_error(errors[i])))

    def retry_tasks(
        self, keys: str | Iterable[str], *, ignore_max_retries: bool = False, next_seed: bool = False
    ) -> list[str]:
        """Queues failed tasks again.

        Args:
            keys: The tasks.
            ignore_max_retries: Also those that have no retry left.
            next_seed: Run them with another seed, derived from the one that they had.

        Returns:
            Keys of those that were queued: not of those that have not failed, or have no retry left.
        """
        keys = [keys] if isinstance(keys, str) else list(keys)
        with self._ledger_lock:
            self._find()
            payloads = [(key, self._reseeded(key) if next_seed else b"") for key in keys]
            return self._ledger.retry(payloads, ignore_max_retries=ignore_max_retries)

    def empty_queue(self) -> list[str]:
        """Takes all queued tasks out of the queue: they have failed with "Removed from queue".

        Returns:
            Their keys.
        """
        with self._ledger_lock:
            self._find()
            return self._ledger.remove("Removed from queue")

    # For the classes that inherit.

    def _push(
        self,
        xss: Iterable[Row],
        extra: Iterable[Row] | None,
        seeds: Iterable[int] | int | None,
        timeouts: Iterable[float | None] | float | None,
        max_retries: Iterable[int] | int | None,
        *,
        priority: Iterable[str | int | None] | str | int | None = None,
        terminate_workers: bool = False,
    ) -> list[str]:
        rows = _rows("xss", xss)
        n = len(rows)
        if not n:
            return []
        extras = None if extra is None else per_task("extra", extra, n)
        own_seeds = None if seeds is None else _seeds(seeds, n)
        limits = None if timeouts is None else [_limit(t) for t in per_task("timeouts", timeouts, n)]
        retries = None if max_retries is None else per_task("max_retries", max_retries, n)
        places = None if priority is None else [_place(p) for p in per_task("priority", priority, n)]
        _check_retries(retries)
        if extras:
            for row, more in zip(rows, extras, strict=True):
                check_names(row, {}, more)
        else:
            check_inputs(rows)
        keys = _new_keys(n)
        encode = self._codec.encode

        def plain_tasks() -> Iterator[KeptTask]:
            encode_plain = self._codec.encode_plain
            for key, row in zip(keys, rows, strict=True):
                yield KeptTask(key, encode_plain(XS, key, row))

        def tasks() -> Iterator[KeptTask]:
            for i, key in enumerate(keys):
                xs = dict(rows[i])
                number, worker = places[i] if places else (0, "")
                yield KeptTask(
                    key,
                    encode(XS, key, xs if own_seeds is None else (xs, own_seeds[i])),
                    encode(EXTRA, key, dict(extras[i])) if extras and extras[i] else b"",
                    b"",
                    retries[i] if retries else 0,
                    limits[i] if limits else None,
                    number,
                    worker,
                )

        # What cannot fail is packed while the server takes what was packed before; anything else before the first is
        # sent, so that a value that cannot be pickled fails the call and nothing was sent.
        has_options = any(option is not None for option in (extras, own_seeds, limits, retries, places))
        if not has_options and n > _SMALL_BATCH and self._codec.are_plain(rows):
            self._send(QUEUED, plain_tasks)
        else:
            packed = list(tasks())
            self._send(QUEUED, lambda: packed)
        if terminate_workers:
            with self._ledger_lock:
                self._ledger.set_terminate_on_idle(wanted=True)
        return keys

    def _create(
        self,
        state: str,
        rows: Sequence[Row],
        extra: Iterable[Row] | None,
        outcome: Callable[[str, int], bytes],
        yss: Sequence[Row] | None = None,
    ) -> list[str]:
        if not rows:
            return []
        extras = None if extra is None else per_task("extra", extra, len(rows))
        for i, row in enumerate(rows):
            check_names(row, yss[i] if yss else {}, extras[i] if extras else {})
        keys = _new_keys(len(rows))
        encode = self._codec.encode
        tasks = [
            KeptTask(
                key,
                encode(XS, key, dict(rows[i])),
                encode(EXTRA, key, dict(extras[i])) if extras and extras[i] else b"",
                outcome(key, i),
            )
            for i, key in enumerate(keys)
        ]
        self._send(state, lambda: tasks)
        return keys

    def _send(self, state: str, tasks: Callable[[], Iterable[KeptTask]]) -> None:
        with self._ledger_lock:
            self._find()
            try:
                self._ledger.create(state, tasks())
            except NetworkGone:
                # Somebody has reset the network: these are its first tasks.
                self._is_found = False
                self._find()
                self._ledger.create(state, tasks())

    def _find(self) -> None:
        """Joins the network, or creates it; the lock is held."""
        if self._is_found:
            return
        try:
            self._ledger.found()
        except WrongKind:
            raise RushError(
                f"network {self.network_id!r} is a RushExecutor's, whose tasks are calls: here one can only look. "
                "Choose another network_id for tasks of your own."
            ) from None
        self._is_found = True

    def _reseeded(self, key: str) -> bytes:
        """The payload of a task with the next seed; as it was if it has none."""
        payload = self._ledger.payload(key)
        if not payload:
            return b""
        content = self._codec.decode(XS, key, payload)
        if not isinstance(content, tuple):
            return b""
        xs, seed = content
        return self._codec.encode(XS, key, (xs, derive_seed(seed, 0)))


def per_task(name: str, values: Any, n: int) -> Sequence[Any]:
    """One value for each of n tasks, of one for all or one for each.

    Raises:
        ValueError: There are more or fewer.
    """
    if isinstance(values, list | tuple):
        each: Sequence[Any] = values
    elif isinstance(values, str | bytes | Mapping | BaseException) or not isinstance(values, Iterable):
        return [values] * n
    else:
        each = list(values)
    if len(each) != n:
        raise ValueError(f"{name} has {len(each)} values for {n} tasks")
    return each


def _limit(timeout: float | None) -> float | None:
    if timeout is None or timeout == math.inf:
        return None
    if not timeout > 0:
        raise ValueError(f"timeouts must be > 0 seconds, not {timeout!r}")
    return float(timeout)


def _check_retries(retries: Sequence[int] | None) -> None:
    for number in set(retries) if retries else ():
        if number < 0 or number != int(number):
            raise ValueError(f"max_retries must be integers >= 0, not {number!r}")


def derive_seed(seed: int, number: int) -> int:
    """A seed for the n-th task of a batch, of its own and the same on every machine."""
    if importlib.util.find_spec("numpy") is None:
        return random.Random(f"{seed}/{number}").getrandbits(128)  # noqa: S311 - reproducible, not secret
    import numpy as np  # noqa: PLC0415 - who wants no seeds need not wait for it

    words = np.random.SeedSequence(seed, spawn_key=(number,)).generate_state(2, dtype=np.uint64)
    return int(words[0]) << 64 | int(words[1])


def as_error(condition: BaseException | str) -> BaseException:
    """The exception of a failure that somebody tells."""
    return condition if isinstance(condition, BaseException) else RushError(condition)


def _rows(name: str, rows: Iterable[Row]) -> Sequence[Row]:
    if isinstance(rows, Mapping | str | bytes):
        raise TypeError(f"{name} must be a list of mappings, one for each task, not one {type(rows).__name__}")
    return rows if isinstance(rows, list | tuple) else list(rows)


def _new_keys(n: int) -> list[str]:
    """Fresh keys of tasks: one that was never there before, and numbers."""
    stem = new_id()
    return [f"{stem}-{i}" for i in range(1, n + 1)]


def _seeds(seeds: Iterable[int] | int, n: int) -> Sequence[int]:
    each = [operator.index(seed) for seed in per_task("seeds", seeds, n)]
    if any(seed < 0 for seed in each):
        raise ValueError(f"seeds must be integers >= 0, not {min(each)}")
    if isinstance(seeds, Iterable):
        return each
    return [derive_seed(each[0], i) for i in range(n)]


def _place(priority: str | int | None) -> tuple[int, str]:
    if priority is None:
        return 0, ""
    if isinstance(priority, str):
        return 0, priority
    number = operator.index(priority)
    if abs(number) > HIGHEST_PRIORITY:
        raise ValueError(f"priority must be between -{HIGHEST_PRIORITY} and {HIGHEST_PRIORITY}, or a worker's id")
    return number, ""
