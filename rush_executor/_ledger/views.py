"""Networks as those see them who only look: tasks by state, their records, workers, and a wait for ends.

Nothing here changes the ledger.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from rush_executor._ledger.blobs import read_blob
from rush_executor._ledger.connection import Channel
from rush_executor._ledger.facts import parse_info
from rush_executor._ledger.scripts import evalsha, pack
from rush_executor._protocol.keys import Keys
from rush_executor._protocol.records import n_starts
from rush_executor._protocol.states import (
    DRAINING,
    FAILED,
    FINISHED,
    IDLE,
    KILLED,
    LOST,
    RUNNING,
    STARTING,
    TERMINATED,
)

__all__ = ["NetworkReader", "NewlyFinished", "Record", "WorkerRecord", "timeout_left"]

# Records that one script reads: nobody else on the server waits long.
_BATCH: Final = 500
# The longest that one command waits: well below the time after which a silent connection is given up.
_LONGEST_WAIT_S: Final = 1.0
_NEVER: Final = b"0-0"


class Record(NamedTuple):
    """A task's record, as it is kept.

    Attributes:
        task_id: Its id.
        state: Its state.
        payload: Sealed inputs, or call.
        outcome: A tag byte and a body; empty while it has not ended.
        extra: Sealed; empty for none.
        more: Sealed, what came with the outcome; empty for none.
        worker_id: Who runs it or has run it; empty for nobody.
        pushed_at, started_at, ended_at: Seconds since 1970 by the server's clock; None where that has not happened.
        n_attempts: How many times it was started.
        blob_id: Where the payload is, if it was too large for the record.
        is_call: Whether it is an executor's task.
    """

    task_id: str
    state: str
    payload: bytes
    outcome: bytes
    extra: bytes
    more: bytes
    worker_id: str
    pushed_at: float | None
    started_at: float | None
    ended_at: float | None
    n_attempts: int
    blob_id: str
    is_call: bool


class NewlyFinished(NamedTuple):
    """Finished tasks from some index on.

    Attributes:
        n_finished: How many there are in all.
        made_at: Which creation and clearing of the network they are of: with another one, indexes begin anew.
        records: Those that were read: not necessarily all.
    """

    n_finished: int
    made_at: bytes
    records: list[Record]


class WorkerRecord(NamedTuple):
    """A worker.

    Attributes:
        worker_id: Its id.
        state: ``starting``, ``idle``, ``running``, ``draining`` (it was asked to end, and is at its last task), or as
            it ended: ``terminated``, ``killed``, ``lost``.
        agent_id: Who supervises it.
        host: Its machine; empty while it is starting.
        pid: Its process there; 0 while it is starting.
        n_running: How many tasks it holds.
        joined_at: When it joined, in seconds since 1970 by the server's clock; None while it is starting.
        ended_at: When it ended, likewise; None for not yet.
        reason: How it ended, for people; with the exception, if its loop has failed.
    """

    worker_id: str
    state: str
    agent_id: str
    host: str
    pid: int
    n_running: int
    joined_at: float | None
    ended_at: float | None
    reason: str


class NetworkReader:
    """Looks at one network.

    Args:
        channel: A connection; whoever shares it between threads brings a lock.
        keys: Of the network.
    """

    def __init__(self, channel: Channel, keys: Keys) -> None:
        self._channel = channel
        self._keys = keys
        self._prefix = keys.task()
        self._read_keys = (keys.finished_tasks, keys.network)

    def kind(self) -> str | None:
        """``tasks`` for a network that keeps its tasks, ``calls`` for an executor's, None where there is none."""
        epoch, kind = self._channel.call(pack(("HMGET", self._keys.network, "epoch", "kind")))[0]
        return None if epoch is None else (kind or b"calls").decode()

    def count(self, state: str) -> int:
        """How many tasks are in a state."""
        k = self._keys
        if state == FINISHED:
            return int(self._channel.call(pack(("LLEN", k.finished_tasks)))[0])
        if state == FAILED:
            return int(self._channel.call(pack(("SCARD", k.failed_tasks)))[0])
        workers = self.worker_ids()
        if state == RUNNING:
            commands = [pack(("SCARD", k.running_tasks(worker))) for worker in workers]
        else:
            commands = [pack(("ZCARD", k.queued_tasks)), *(pack(("ZCARD", k.worker_queue(w))) for w in workers)]
        return sum(self._channel.call(*commands)) if commands else 0

    def count_all(self) -> int:
        """How many tasks the network keeps."""
        return int(self._channel.call(pack(("LLEN", self._keys.all_tasks)))[0])

    def all_tasks(self) -> list[str]:
        """Ids of all tasks that the network keeps, as they were made."""
        return [raw.decode() for raw in self._channel.call(pack(("LRANGE", self._keys.all_tasks, "0", "-1")))[0]]

    def list_tasks(self, states: Sequence[str], *, first: int = 0) -> tuple[bytes, list[list[str]]]:
        """Ids of the tasks in each of these states, at one moment; before them, see `NewlyFinished.made_at`.

        Args:
            states: Of ``queued``, ``running``, ``finished``, ``failed``.
            first: Index of the first finished task that is asked for.
        """
        k = self._keys
        keys = (k.queued_tasks, k.finished_tasks, k.failed_tasks, k.worker_ids, k.network)
        args: list[str | bytes | float] = [k.worker_queue(), k.running_tasks(), first, *states]
        made_at, *lists = self._channel.call(evalsha("list_tasks", keys, args))[0]
        return made_at, [[raw.decode() for raw in ids] for ids in lists]

    def read(self, task_ids: Sequence[str]) -> list[Record]:
        """Reads records; tasks that are not there are left out."""
        commands = [
            evalsha("read_tasks", self._read_keys, [self._prefix, "", *task_ids[start : start + _BATCH]])
            for start in range(0, len(task_ids), _BATCH)
        ]
        if not commands:
            return []
        return [record for reply in self._channel.call(*commands) for record in _records(reply)]

    def states(self, task_ids: Sequence[str]) -> list[str]:
        """States of tasks; empty for those that are not there."""
        commands = [self._states_command(task_ids[start : start + _BATCH]) for start in range(0, len(task_ids), _BATCH)]
        if not commands:
            return []
        return [state for reply in self._channel.call(*commands) for state in reply[1].decode().split(" ")]

    def read_finished(self, first: int) -> NewlyFinished:
        """Reads records of finished tasks.

        Args:
            first: Index of the first; one call reads at most 500.
        """
        return self._newly(self._channel.call(self._finished_command(first))[0])

    def read_more_finished(self, first: int, end: int, made_at: bytes) -> Iterator[list[Record]]:
        """Reads the finished tasks from one index to before another, some at a time.

        The server prepares the next ones while the caller works on those that have come, so nobody else may use the
        connection meanwhile. What is of another creation or clearing of the network than `made_at` is left out.
        """
        self._channel.ask(self._finished_command(first))
        for at in range(first, end, _BATCH):
            reply = self._channel.answer()[0]
            if reply[1] != made_at:
                return
            if at + _BATCH < end:
                self._channel.ask(self._finished_command(at + _BATCH))
            yield _records(reply)[: end - at]

    def wait_finished(self, ring: bytes, first: int, timeout_s: float) -> tuple[bytes, NewlyFinished]:
        """Waits until tasks end, and looks, in one trip.

        Args:
            ring: The last ring of the bell of which the caller knows; empty for none, and then nothing is waited for.
            first: As for `read_finished`.
            timeout_s: How long to wait; at most a second is waited in one call, and with 0 none at all.

        Returns:
            The last ring from *before* the look, and what was found.
        """
        bell = self._bell(ring, timeout_s)
        replies = self._channel.call(*bell, self._finished_command(first))
        return _ring(replies[0] if bell else None, ring), self._newly(replies[-1])

    def wait_states(self, ring: bytes, task_ids: Sequence[str], timeout_s: float) -> tuple[bytes, list[str], int]:
        """Waits until tasks end, and asks for the states of some, in one trip; see `wait_finished`.

        Returns:
            The last ring from before the look, the states, and how many workers there are.
        """
        bell = self._bell(ring, timeout_s)
        replies = self._channel.call(*bell, self._states_command(task_ids))
        n_workers, states = replies[-1]
        return _ring(replies[0] if bell else None, ring), states.decode().split(" "), n_workers

    def own_queues(self) -> dict[str, int]:
        """For each worker, how many tasks are queued for it alone."""
        workers = self.worker_ids()
        if not workers:
            return {}
        counts = self._channel.call(*(pack(("ZCARD", self._keys.worker_queue(worker))) for worker in workers))
        return dict(zip(workers, counts, strict=True))

    def own_queued_tasks(self) -> list[str]:
        """Ids of the tasks that are queued for one worker alone."""
        workers = self.worker_ids()
        if not workers:
            return []
        lists = self._channel.call(
            *(pack(("ZRANGE", self._keys.worker_queue(worker), "0", "-1")) for worker in workers)
        )
        return [raw.decode() for ids in lists for raw in ids]

    def read_blob(self, blob_id: str) -> bytes:
        """Reads a payload that was too large for its record."""
        return read_blob(self._channel, self._keys, blob_id)

    def worker_ids(self) -> list[str]:
        """Workers that are there."""
        return sorted(raw.decode() for raw in self._channel.call(pack(("SMEMBERS", self._keys.worker_ids)))[0])

    def ended_worker_ids(self, state: str) -> list[str]:
        """Workers that were there and have ended in this way."""
        k = self._keys
        ended = {TERMINATED: k.terminated_worker_ids, KILLED: k.killed_worker_ids, LOST: k.lost_worker_ids}
        return sorted(raw.decode() for raw in self._channel.call(pack(("SMEMBERS", ended[state])))[0])

    def workers(self, expected: Mapping[str, str] | None = None) -> list[WorkerRecord]:
        """All workers, also those that have ended, and those to come.

        Args:
            expected: Workers of which somebody knows that they are to come, and their agents, which may not know yet.
        """
        k = self._keys
        agents = [raw.decode() for raw in self._channel.call(pack(("SMEMBERS", k.agent_ids)))[0]]
        # Those to come first: who joins, or ends, meanwhile is not missed.
        sets = [*(k.agent_workers(agent) for agent in agents), k.worker_ids]
        sets += [k.terminated_worker_ids, k.killed_worker_ids, k.lost_worker_ids]
        found = [{raw.decode() for raw in raws} for raws in self._channel.call(*(pack(("SMEMBERS", s)) for s in sets))]
        announced, here, ended = found[:-4], found[-4], set[str]().union(*found[-3:])
        agent_of = dict(expected or {})
        for agent, workers in zip(agents, announced, strict=True):
            agent_of |= dict.fromkeys(workers, agent)
        starting = agent_of.keys() - here - ended
        ids = sorted(starting | here | ended)
        if not ids:
            return []
        fields = ("agent", "host", "pid", "joined_at", "ended_at", "reason", "state")
        commands = [pack(("HMGET", k.worker(worker), *fields)) for worker in ids]
        commands += [pack(("SCARD", k.running_tasks(worker))) for worker in ids]
        replies = self._channel.call(*commands)
        return [
            _starting(worker, agent_of[worker]) if worker in starting else _worker(worker, values, n, worker in here)
            for worker, values, n in zip(ids, replies[: len(ids)], replies[len(ids) :], strict=True)
        ]

    def info(self) -> dict[str, str]:
        """What the server says of itself."""
        return parse_info(self._channel.call(pack(("INFO",)))[0])

    def _bell(self, ring: bytes, timeout_s: float) -> tuple[bytes, ...]:
        """The command that listens, if there is something to listen for.

        Servers look at their clocks ten times a second only: to wait for a millisecond would take 100.
        """
        if not ring:
            return (pack(("XREVRANGE", self._keys.ends, "+", "-", "COUNT", 1)),)
        if timeout_s <= 0:
            return ()
        block_ms = max(1, int(min(timeout_s, _LONGEST_WAIT_S) * 1000))
        return (pack(("XREAD", "BLOCK", block_ms, "STREAMS", self._keys.ends, ring)),)

    def _finished_command(self, first: int) -> bytes:
        return evalsha("read_tasks", self._read_keys, [self._prefix, first, _BATCH])

    def _states_command(self, task_ids: Sequence[str]) -> bytes:
        return evalsha("read_states", (self._keys.worker_ids,), [self._prefix, *task_ids])

    def _newly(self, reply: list[Any]) -> NewlyFinished:
        return NewlyFinished(reply[0], reply[1], _records(reply))


def timeout_left(end_at: float | None) -> float:
    """Seconds until a moment of the monotonic clock, at most what one command waits."""
    return _LONGEST_WAIT_S if end_at is None else max(0.0, min(_LONGEST_WAIT_S, end_at - time.monotonic()))


def _ring(reply: list[Any] | None, ring: bytes) -> bytes:
    """The last ring, from an answer of XREVRANGE (entries) or XREAD (streams and their entries)."""
    if not reply:
        return ring or _NEVER
    name = reply[-1][0] if ring == b"" else reply[0][1][-1][0]
    return bytes(name)


def _records(reply: list[Any]) -> list[Record]:
    records = []
    for i in range(2, len(reply), 5):
        head, payload, outcome, extra, more = reply[i : i + 5]
        # The worker's id may be anybody's choice, and have blanks in it.
        task, state, pushed, started, ended, claims, losses, blob, client, worker = head.decode().split(" ", 9)
        records.append(
            Record(
                task,
                state,
                payload,
                outcome,
                extra,
                more,
                worker,
                float(pushed) if pushed else None,
                float(started) if started else None,
                float(ended) if ended else None,
                n_starts(state, int(claims or 0), int(losses or 0), outcome[:1]),
                blob,
                client != "",
            )
        )
    return records


def _starting(worker_id: str, agent_id: str) -> WorkerRecord:
    return WorkerRecord(worker_id, STARTING, agent_id, "", 0, 0, None, None, "")


def _worker(worker_id: str, values: list[bytes | None], n_running: int, is_here: bool) -> WorkerRecord:  # noqa: FBT001
    agent, host, pid, joined, ended, reason, state = ((value or b"").decode() for value in values)
    if is_here and state != DRAINING:
        state = RUNNING if n_running else IDLE
    return WorkerRecord(
        worker_id,
        state,
        agent,
        host,
        int(pid or 0),
        n_running,
        float(joined) if joined else None,
        float(ended) if ended else None,
        reason,
    )
