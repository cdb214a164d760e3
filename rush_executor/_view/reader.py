"""Looking at a network: what `Rush` and a `RushWorker` have in common.

Finished tasks never change again, so each is read and decoded once; a look costs what is new. What was read is
forgotten when the network is reset or cleared. Threads may wait while others look, or wait: each wait has its own
connection.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from rush_executor._ledger.logs import LogCursor, LogReader
from rush_executor._ledger.views import NetworkReader, Record, WorkerRecord, timeout_left
from rush_executor._payload.rows import EXTRA, XS, YS, RowCodec
from rush_executor._protocol.logs import LogRecord
from rush_executor._protocol.records import FAILED_BLOB_TAG, FAILED_TAG, FINISHED_BLOB_TAG, FINISHED_TAG
from rush_executor._protocol.states import FAILED, FINISHED, KEPT_STATES, KILLED, LOST, QUEUED, RUNNING, TERMINATED
from rush_executor._view.conditions import condition_of
from rush_executor._view.logs import STREAMS, Levels, follow_log, print_log, read_log
from rush_executor._view.rows import TaskRow, TaskRows
from rush_executor._view.table import TaskTable
from rush_executor.errors import PayloadError

__all__ = ["NetworkView"]

_T = TypeVar("_T")
_Row = dict[str, Any]


class NetworkView:
    """Everything that one can ask a network. Tasks are told by their keys."""

    network_id: str
    _codec: RowCodec
    _reader: NetworkReader
    _reader_lock: threading.Lock
    _n_shown: int

    def _open_view(
        self,
        reader: NetworkReader,
        lock: threading.Lock,
        new_waiter: Callable[[], NetworkReader],
        log_reader: LogReader,
        codec: RowCodec,
    ) -> None:
        self._reader = reader
        self._reader_lock = lock
        self._new_waiter = new_waiter
        self._idle_waiters: list[NetworkReader] = []
        self._log_reader = log_reader
        self._log_lock = threading.Lock()
        self._printed = LogCursor()
        self._codec = codec
        self._cache_lock = threading.RLock()
        self.reset_cache()

    # Which tasks there are.

    @property
    def tasks(self) -> list[str]:
        """Keys of all tasks, as they were made."""
        return self._ask(lambda reader: reader.all_tasks())

    @property
    def queued_tasks(self) -> list[str]:
        """Keys of the tasks that wait, in the order in which they will be run."""
        return self._list(QUEUED)

    @property
    def running_tasks(self) -> list[str]:
        """Keys of the tasks that workers hold."""
        return self._list(RUNNING)

    @property
    def finished_tasks(self) -> list[str]:
        """Keys of the finished tasks, in the order in which they finished."""
        return self._list(FINISHED)

    @property
    def failed_tasks(self) -> list[str]:
        """Keys of the tasks that have failed."""
        return self._list(FAILED)

    @property
    def n_tasks(self) -> int:
        """How many tasks there are."""
        return self._ask(lambda reader: reader.count_all())

    @property
    def n_queued_tasks(self) -> int:
        """How many tasks wait."""
        return self._ask(lambda reader: reader.count(QUEUED))

    @property
    def n_running_tasks(self) -> int:
        """How many tasks workers hold."""
        return self._ask(lambda reader: reader.count(RUNNING))

    @property
    def n_finished_tasks(self) -> int:
        """How many tasks have finished."""
        return self._ask(lambda reader: reader.count(FINISHED))

    @property
    def n_failed_tasks(self) -> int:
        """How many tasks have failed."""
        return self._ask(lambda reader: reader.count(FAILED))

    def task_states(self, keys: Iterable[str]) -> dict[str, str]:
        """The state of each task; empty for one that there is not."""
        keys = list(keys)
        return dict(zip(keys, self._ask(lambda reader: reader.states(keys)), strict=True))

    def is_running_task(self, keys: str | Iterable[str]) -> bool | list[bool]:
        """Whether a task is running; of several: of each."""
        return self._is_state(keys, RUNNING)

    def is_failed_task(self, keys: str | Iterable[str]) -> bool | list[bool]:
        """Whether a task has failed; of several: of each."""
        return self._is_state(keys, FAILED)

    @property
    def priority_info(self) -> dict[str, int]:
        """For each worker, how many tasks are queued for it alone."""
        return self._ask(lambda reader: reader.own_queues())

    # What is in them.

    def fetch_tasks(self, keys: Iterable[str] | None = None, *, fields: Iterable[str] | None = None) -> TaskTable:
        """The tasks with these keys, in this order; by default all, as they were made.

        Args:
            keys: The tasks; those that there are not (any more) are left out. `Rush.wait_for_tasks`, which would
                wait for ever, refuses them.
            fields: Columns; by default all. ``xs``, ``ys`` and ``extra`` stand for all of their kind. A name that no
                task has gives a column of None: before the first task has finished nobody knows those of the results.
        """
        wanted = self.tasks if keys is None else list(keys)
        return _select(TaskTable(self._rows(wanted)), fields)

    def fetch_queued_tasks(self, *, fields: Iterable[str] | None = None) -> TaskTable:
        """The tasks that wait."""
        return self.fetch_tasks_with_state((QUEUED,), fields=fields)

    def fetch_running_tasks(self, *, fields: Iterable[str] | None = None) -> TaskTable:
        """The tasks that workers hold."""
        return self.fetch_tasks_with_state((RUNNING,), fields=fields)

    def fetch_failed_tasks(self, *, fields: Iterable[str] | None = None) -> TaskTable:
        """The tasks that have failed."""
        return self.fetch_tasks_with_state((FAILED,), fields=fields)

    def fetch_priority_tasks(self, *, fields: Iterable[str] | None = None) -> TaskTable:
        """The tasks that are queued for one worker alone."""
        return _select(TaskTable(self._rows(self._ask(lambda reader: reader.own_queued_tasks()))), fields)

    def fetch_finished_tasks(self, *, fields: Iterable[str] | None = None) -> TaskTable:
        """The finished tasks, in the order in which they finished. Only those that are new are read."""
        with self._cache_lock:
            self._read_news()
            return _select(TaskTable(self._finished, len(self._finished)), fields)

    def fetch_tasks_with_state(
        self, states: Iterable[str] = KEPT_STATES, *, fields: Iterable[str] | None = None
    ) -> TaskTable:
        """The tasks in these states, as they were at one moment: no task twice.

        Args:
            states: Of ``queued``, ``running``, ``finished``, ``failed``.
            fields: As in `fetch_tasks`.
        """
        states = [states] if isinstance(states, str) else list(states)
        for state in states:
            if state not in KEPT_STATES:
                raise ValueError(f"there is no state {state!r}; those of a task are {', '.join(KEPT_STATES)}")
        with self._cache_lock:
            while True:
                if FINISHED in states:
                    self._read_news()
                n_known = len(self._finished)
                made_at, lists = self._ask(lambda reader: reader.list_tasks(states, first=n_known))  # noqa: B023
                if made_at == self._made_at or FINISHED not in states:
                    break
            rows: list[TaskRow] = []
            for state, keys in zip(states, lists, strict=True):
                if state == FINISHED:
                    rows += self._finished.part(slice(0, n_known))
                rows += [_as_of(row, state) for row in self._rows(keys, use_cache=False)]
        return _select(TaskTable(rows), fields)

    # What is new.

    def fetch_new_tasks(self, timeout: float = 0.0, *, fields: Iterable[str] | None = None) -> TaskTable:
        """The finished tasks that no earlier call of this method has returned.

        Args:
            timeout: Seconds to wait for at least one.
            fields: As in `fetch_tasks`.

        Returns:
            A table; empty when there was none in time.
        """
        end_at = time.monotonic() + timeout
        while True:
            is_there = self._wait_for_news(max(0.0, end_at - time.monotonic()))
            with self._cache_lock:
                first, self._n_shown = self._n_shown, len(self._finished)
                # None, though there were some: another thread was faster.
                if first < self._n_shown or not is_there:
                    return _select(TaskTable(self._finished.part(slice(first, self._n_shown))), fields)

    def wait_for_new_tasks(self, timeout: float | None = None) -> bool:
        """Waits until `fetch_new_tasks` has something to return.

        Args:
            timeout: Seconds; None for ever.

        Returns:
            Whether it has.
        """
        return self._wait_for_news(timeout)

    def iter_new_tasks(self, timeout: float | None = None) -> Iterator[TaskRow]:
        """Yields finished tasks as they come, each once; shares with `fetch_new_tasks` what was returned.

        Args:
            timeout: Ends when none has come for so many seconds; None to go on for ever.
        """
        while True:
            table = self.fetch_new_tasks(timeout=1e9 if timeout is None else timeout)
            if not len(table):
                return
            yield from table

    def reset_cache(self) -> None:
        """Forgets what was read: the next look reads everything again."""
        with self._cache_lock:
            self._finished = TaskRows()
            self._made_at = b""
            self._places: dict[str, int] = {}
            self._n_placed = 0
            self._n_shown = 0

    # Workers.

    @property
    def worker_info(self) -> list[WorkerRecord]:
        """All workers: id, state, agent, host, process, tasks held, when joined and ended, and how.

        States are ``starting``, ``idle``, ``running`` (it has a task), ``draining`` (it was asked to end, and is at its
        last task), or as the worker ended: ``terminated``, ``killed``, ``lost``.
        """
        return self._ask(lambda reader: reader.workers(self._expected_workers()))

    @property
    def worker_states(self) -> dict[str, str]:
        """The state of each worker."""
        return {worker.worker_id: worker.state for worker in self.worker_info}

    @property
    def worker_ids(self) -> list[str]:
        """Ids of all workers, also of those that are still starting, and of those that have ended."""
        return [worker.worker_id for worker in self.worker_info]

    @property
    def running_worker_ids(self) -> list[str]:
        """Ids of the workers that have joined and not ended, whether they have a task or not."""
        return self._ask(lambda reader: reader.worker_ids())

    @property
    def terminated_worker_ids(self) -> list[str]:
        """Ids of the workers that have left."""
        return self._ask(lambda reader: reader.ended_worker_ids(TERMINATED))

    @property
    def killed_worker_ids(self) -> list[str]:
        """Ids of the workers that were killed: by `stop_workers`, or to end their task."""
        return self._ask(lambda reader: reader.ended_worker_ids(KILLED))

    @property
    def lost_worker_ids(self) -> list[str]:
        """Ids of the workers that have crashed, or whose machine was lost."""
        return self._ask(lambda reader: reader.ended_worker_ids(LOST))

    @property
    def n_workers(self) -> int:
        """How many workers there are, were, and are starting."""
        return len(self.worker_ids)

    @property
    def n_running_workers(self) -> int:
        """How many workers have joined and not ended."""
        return len(self.running_worker_ids)

    @property
    def n_terminated_workers(self) -> int:
        """How many workers have left."""
        return len(self.terminated_worker_ids)

    @property
    def n_killed_workers(self) -> int:
        """How many workers were killed: by `stop_workers`, or to end their task."""
        return len(self.killed_worker_ids)

    @property
    def n_lost_workers(self) -> int:
        """How many workers were lost."""
        return len(self.lost_worker_ids)

    # What workers have logged.

    def read_log(
        self,
        worker_ids: Iterable[str] | None = None,
        *,
        time_difference: float | None = None,
        levels: Levels = None,
        streams: Collection[str] = STREAMS,
    ) -> list[LogRecord]:
        """What workers have logged and printed, in order of time: as much as the server keeps of it.

        Args:
            worker_ids: Whose log; by default all workers'.
            time_difference: Only records younger than so many seconds.
            levels: Only records of at least this level: one for all, or by logger: ``{"mylib": "DEBUG"}``.
            streams: Only what was logged (``log``) or printed (``stdout``, ``stderr``).
        """
        wanted = self.worker_ids if worker_ids is None else list(worker_ids)
        with self._log_lock:
            return read_log(self._log_reader, wanted, time_difference=time_difference, levels=levels, streams=streams)

    def print_log(self, *, levels: Levels = None, streams: Collection[str] = STREAMS) -> int:
        """Hands what workers have logged since the last call to the loggers of this process with the same names.

        So this process's handlers, formats and levels say what is seen; ``worker_id`` and ``task`` can stand in a
        format.

        Args:
            levels: As in `read_log`.
            streams: As in `read_log`.

        Returns:
            How many records a logger here has taken.
        """
        wanted = self.worker_ids
        with self._log_lock:
            return print_log(self._log_reader, wanted, self._printed, levels=levels, streams=streams)

    def follow_log(
        self, timeout: float | None = None, *, levels: Levels = None, streams: Collection[str] = STREAMS
    ) -> Iterator[LogRecord]:
        """Yields what workers log from now on, as it comes; also that of workers that join later.

        Args:
            timeout: Ends after so many seconds; None for when the generator is closed.
            levels: As in `read_log`.
            streams: As in `read_log`.
        """
        return follow_log(
            self._another_log_reader(), lambda: self.worker_ids, timeout=timeout, levels=levels, streams=streams
        )

    @property
    def redis_info(self) -> dict[str, str]:
        """What the server says of itself."""
        return self._ask(lambda reader: reader.info())

    # Small things.

    def _another_log_reader(self) -> LogReader:
        """A reader that may wait while others read."""
        raise NotImplementedError

    def _expected_workers(self) -> dict[str, str]:
        """Workers that are to come, and their agents, as far as is known here."""
        return {}

    def _ask(self, question: Callable[[NetworkReader], _T]) -> _T:
        with self._reader_lock:
            return question(self._reader)

    def _list(self, state: str) -> list[str]:
        return self._ask(lambda reader: reader.list_tasks((state,)))[1][0]

    def _is_state(self, keys: str | Iterable[str], state: str) -> bool | list[bool]:
        if isinstance(keys, str):
            return self.task_states([keys])[keys] == state
        return [found == state for found in self.task_states(keys).values()]

    @contextlib.contextmanager
    def _waiter(self) -> Iterator[NetworkReader]:
        """A reader that may wait while others read, and wait."""
        try:
            waiter = self._idle_waiters.pop()
        except IndexError:
            waiter = self._new_waiter()
        try:
            yield waiter
        finally:
            self._idle_waiters.append(waiter)

    def _wait_for_news(self, timeout: float | None) -> bool:
        """Reads what is new; waits for it, if there is nothing."""
        with self._cache_lock:
            self._read_news()
            if len(self._finished) > self._n_shown or timeout == 0:
                return len(self._finished) > self._n_shown
        end_at = None if timeout is None else time.monotonic() + timeout
        ring, wait_s = b"", 0.0
        with self._waiter() as waiter:
            while True:
                first = len(self._finished)
                ring, news = waiter.wait_finished(ring, first, wait_s)
                with self._cache_lock:
                    if first == len(self._finished) and news.made_at == self._made_at:
                        self._add(news.records)
                    else:
                        # Somebody else has read meanwhile, or there is something to be forgotten.
                        self._read_news()
                    if len(self._finished) > self._n_shown:
                        return True
                wait_s = timeout_left(end_at)
                if not wait_s:
                    return False

    def _read_news(self) -> None:
        """Reads what is new; the cache's lock is held."""
        while True:
            first = len(self._finished)
            news = self._ask(lambda reader: reader.read_finished(first))  # noqa: B023 - asked at once
            if first and (news.made_at != self._made_at or news.n_finished < first):
                # The network was reset or cleared, or its server has lost what it had.
                self.reset_cache()
                continue
            self._made_at = news.made_at
            self._add(news.records)
            if not news.records or len(self._finished) >= news.n_finished:
                return
            # On a connection of its own: others may ask meanwhile, and decoding may ask for what is large.
            with self._waiter() as reader:
                for records in reader.read_more_finished(len(self._finished), news.n_finished, news.made_at):
                    self._add(records)

    def _add(self, records: Sequence[Record]) -> None:
        self._finished.extend([self._row(record) for record in records])

    def _rows(self, keys: Sequence[str], *, use_cache: bool = True) -> list[TaskRow]:
        """Rows of these tasks; those that have finished and were read before are not read again."""
        if not use_cache:
            return [self._row(record) for record in self._ask(lambda reader: reader.read(keys))]
        with self._cache_lock:
            for place, row in enumerate(self._finished.part(slice(self._n_placed, None)), self._n_placed):
                self._places[row.key] = place
            self._n_placed = len(self._finished)
            missing = [key for key in keys if key not in self._places]
            read = {row.key: row for row in self._rows(missing, use_cache=False)}
            known = {key: self._places[key] for key in keys if key in self._places}
            read |= zip(known, self._finished.pick(known.values()), strict=True)
        return [read[key] for key in keys if key in read]

    def _row(self, record: Record) -> TaskRow:
        try:
            xs, (ys, condition), extra = self._xs(record), self._outcome(record), self._extra(record)
        except PayloadError as error:
            if error.__cause__ is None:
                # It does not verify. That is no matter of this row: probably nothing of this network can be read here.
                raise
            xs, ys, condition, extra = self._readable(record, error)
        return TaskRow(
            record.task_id,
            record.state,
            xs,
            ys,
            extra,
            record.worker_id,
            condition,
            record.pushed_at,
            record.started_at,
            record.ended_at,
            record.n_attempts,
        )

    def _readable(self, record: Record, error: PayloadError) -> tuple[_Row, _Row, BaseException | None, _Row]:
        """What can be read of a row where not all can: a module is not there, say, or a file."""
        parts: list[Any] = [{}, ({}, None), {}]
        for i, read in enumerate((self._xs, self._outcome, self._extra)):
            with contextlib.suppress(PayloadError):
                parts[i] = read(record)
        xs, (ys, condition), extra = parts
        return xs, ys, condition or error, extra

    def _xs(self, record: Record) -> _Row:
        # An executor's task is a call: nothing that could be shown as a row.
        if record.is_call or not (record.payload or record.blob_id):
            return {}
        payload = self._blob(record.blob_id) if record.blob_id else record.payload
        content: _Row | tuple[_Row, int] = self._codec.decode(XS, record.task_id, payload)
        return content[0] if isinstance(content, tuple) else content

    def _outcome(self, record: Record) -> tuple[_Row, BaseException | None]:
        if not record.outcome:
            return {}, None
        key, tag, body = record.task_id, record.outcome[:1], record.outcome[1:]
        if tag in (FINISHED_BLOB_TAG, FAILED_BLOB_TAG):
            tag, body = (FINISHED_TAG if tag == FINISHED_BLOB_TAG else FAILED_TAG), self._blob(body.decode())
        if tag != FINISHED_TAG:
            return {}, condition_of(self._codec, key, tag, body)
        return self._codec.decode_result(key, body) if record.is_call else (self._codec.decode(YS, key, body), None)

    def _extra(self, record: Record) -> _Row:
        decode, key = self._codec.decode, record.task_id
        extra: _Row = decode(EXTRA, key, record.extra) if record.extra else {}
        return extra | decode(EXTRA, key, record.more) if record.more else extra

    def _blob(self, blob_id: str) -> bytes:
        try:
            return self._ask(lambda reader: reader.read_blob(blob_id))
        except KeyError as error:
            raise PayloadError("a large value is gone from the server") from error


def _select(table: TaskTable, fields: Iterable[str] | None) -> TaskTable:
    return table if fields is None else table.select(fields, missing_ok=True)


def _as_of(row: TaskRow, state: str) -> TaskRow:
    """The row as it was when its task was in this state, a moment before it was read."""
    if row.state == state or state in (FINISHED, FAILED):
        return row
    if state == QUEUED:
        return row._replace(
            state=state, ys={}, worker_id="", condition=None, started_at=None, ended_at=None, attempts=0
        )
    return row._replace(state=state, ys={}, condition=None, ended_at=None)
