"""What a server and a network are at, for those who watch from outside: counts, workers, the heads of tasks.

Nothing here changes the ledger, and nothing grows with the number of tasks: so it can be asked every second. Works for
both kinds of networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from rush_executor._ledger.connection import Channel
from rush_executor._ledger.scripts import evalsha, pack
from rush_executor._protocol.keys import Keys, network_of_key, network_pattern
from rush_executor._protocol.records import n_starts
from rush_executor._protocol.states import DRAINING, FAILED, FINISHED, KILLED, LOST, QUEUED, RUNNING, TERMINATED

__all__ = ["Overview", "OverviewReader", "TaskPeek", "WorkerLook", "find_networks"]

# Bytes of a payload: a call names its function in the first of them, and most rows are not longer.
_HEAD: Final = 2048
# Tasks that one script looks at: nobody else on the server waits long.
_BATCH: Final = 500
_SCANNED: Final = 10_000


class WorkerLook(NamedTuple):
    """A worker that is there.

    Attributes:
        worker_id: Its id.
        agent_id, host, pid: Who supervises it, and where it is.
        joined_at: Seconds since 1970 by the server's clock; None if that is not known.
        is_silent: Whether its agent gives no sign of life.
        is_draining: Whether it was asked to end, and is at its last task.
        task_ids: What it has claimed.
        n_queued: How many tasks are queued for it alone.
    """

    worker_id: str
    agent_id: str
    host: str
    pid: int
    joined_at: float | None
    is_silent: bool
    is_draining: bool
    task_ids: list[str]
    n_queued: int


class Overview(NamedTuple):
    """What a network is at.

    Attributes:
        looked_at: Seconds since 1970 by the server's clock.
        epoch: Which creation of the network this is; empty where there is none.
        keeps: Whether it keeps its tasks.
        is_durable: Whether it is an executor's that keeps calls and their outcomes.
        is_broken: Whether no worker can start.
        is_restoring: Whether it is being restored from a snapshot.
        n_queued, n_running: Tasks in these states.
        n_ended: How many tasks have ended, in whatever way; of a network that keeps nothing, since it was created.
        n_failed: How many of those have failed.
        n_clients: Programs that have joined as clients, and tasks that submit tasks; of an executor's network.
        n_agents: Agents that have joined.
        n_workers_ended: How many workers have left, were killed, and were lost; of a network that keeps its tasks.
        workers: Those that are there, by id.
    """

    looked_at: float
    epoch: str
    keeps: bool
    is_durable: bool
    is_broken: bool
    is_restoring: bool
    n_queued: int
    n_running: int
    n_ended: int
    n_failed: int
    n_clients: int
    n_agents: int
    n_workers_ended: dict[str, int]
    workers: list[WorkerLook]


class TaskPeek(NamedTuple):
    """What a task is at.

    Attributes:
        task_id: Its id.
        state: Its state.
        worker_id: Who runs it or has run it; empty for nobody.
        client_id: The client that waits for it; empty for a task that is the network's own.
        n_attempts: How many times it was started, this time included: again after a worker was lost over it, or after
            a failure.
        pushed_at, started_at, ended_at: Seconds since 1970 by the server's clock; None for not (yet), or not known.
        head: Beginning of its payload, sealed or not.
        size: Length of the payload in the record, in bytes.
        blob_id: Where the payload is, if it was too large for the record.
        outcome_tag: What kind of outcome it has; empty for none.
    """

    task_id: str
    state: str
    worker_id: str
    client_id: str
    n_attempts: int
    pushed_at: float | None
    started_at: float | None
    ended_at: float | None
    head: bytes
    size: int
    blob_id: str
    outcome_tag: bytes


class OverviewReader:
    """Looks at one network.

    Args:
        channel: A connection.
        keys: Of the network.
    """

    def __init__(self, channel: Channel, keys: Keys) -> None:
        self._channel = channel
        self._keys = keys

    def look(self) -> Overview:
        """Counts, and asks after every worker, in two trips."""
        k = self._keys
        fields = ("epoch", "kind", "durable", "broken", "restoring", "sequence", "failed")
        network, time, n_queued, n_finished, n_failed, *rest = self._channel.call(
            pack(("HMGET", k.network, *fields)),
            pack(("TIME",)),
            pack(("ZCARD", k.queued_tasks)),
            pack(("LLEN", k.finished_tasks)),
            pack(("SCARD", k.failed_tasks)),
            *(
                pack(("SCARD", key))
                for key in (k.terminated_worker_ids, k.killed_worker_ids, k.lost_worker_ids, k.client_ids, k.agent_ids)
            ),
            pack(("SMEMBERS", k.worker_ids)),
        )
        n_terminated, n_killed, n_lost, n_clients, n_agents, worker_ids = rest
        epoch, kind, durable, broken, restoring, sequence, n_counted = network
        workers = self._workers(sorted(raw.decode() for raw in worker_ids))
        n_queued += sum(worker.n_queued for worker in workers)
        n_running = sum(len(worker.task_ids) for worker in workers)
        keeps = kind == b"tasks"
        if not keeps and durable is None:
            # Of what has ended nothing is left: it is what was pushed, and is not there any more.
            n_failed = int(n_counted or 0)
            n_finished = max(0, int(sequence or 0) - n_queued - n_running - n_failed)
        return Overview(
            looked_at=int(time[0]) + int(time[1]) / 1e6,
            epoch=(epoch or b"").decode(),
            keeps=keeps,
            is_durable=durable is not None,
            is_broken=broken is not None,
            is_restoring=restoring is not None,
            n_queued=n_queued,
            n_running=n_running,
            n_ended=n_finished + n_failed,
            n_failed=n_failed,
            n_clients=n_clients,
            n_agents=n_agents,
            n_workers_ended={TERMINATED: n_terminated, KILLED: n_killed, LOST: n_lost},
            workers=workers,
        )

    def _workers(self, worker_ids: Sequence[str]) -> list[WorkerLook]:
        if not worker_ids:
            return []
        k, n = self._keys, len(worker_ids)
        replies = self._channel.call(
            *(pack(("HMGET", k.worker(worker), "agent", "host", "pid", "joined_at", "state")) for worker in worker_ids),
            *(pack(("SMEMBERS", k.running_tasks(worker))) for worker in worker_ids),
            *(pack(("ZCARD", k.worker_queue(worker))) for worker in worker_ids),
        )
        records = [[(value or b"").decode() for value in record] for record in replies[:n]]
        agents = sorted({record[0] for record in records})
        beats = self._channel.call(*(pack(("EXISTS", k.heartbeat(agent))) for agent in agents))
        silent = {agent for agent, is_beating in zip(agents, beats, strict=True) if not is_beating}
        return [
            WorkerLook(
                worker,
                agent,
                host,
                int(pid or 0),
                _instant(joined),
                agent in silent,
                state == DRAINING,
                sorted((raw.decode() for raw in held), key=_place),
                n_queued,
            )
            for worker, (agent, host, pid, joined, state), held, n_queued in zip(
                worker_ids, records, replies[n : 2 * n], replies[2 * n :], strict=True
            )
        ]

    def some_tasks(self, state: str, limit: int) -> list[str]:
        """Ids of some tasks in a state: the next of the queue, the last of the finished ones."""
        k = self._keys
        if state == FINISHED:
            return _ids(self._channel.call(pack(("LRANGE", k.finished_tasks, -limit, -1)))[0][::-1])
        if state == FAILED:
            return _ids(self._some_failed(limit))
        workers = _ids(self._channel.call(pack(("SMEMBERS", k.worker_ids)))[0])
        if state == RUNNING:
            commands = [pack(("SMEMBERS", k.running_tasks(worker))) for worker in workers]
        else:
            queues = [k.queued_tasks, *(k.worker_queue(worker) for worker in workers)]
            commands = [pack(("ZRANGE", queue, 0, limit - 1)) for queue in queues]
        lists = self._channel.call(*commands) if commands else []
        return _ids([raw for ids in lists for raw in ids][:limit])

    def _some_failed(self, limit: int) -> list[bytes]:
        failed: dict[bytes, None] = {}
        cursor = b"0"
        while len(failed) < limit:
            cursor, found = self._channel.call(pack(("SSCAN", self._keys.failed_tasks, cursor, "COUNT", _BATCH)))[0]
            failed.update(dict.fromkeys(found))
            if cursor == b"0":
                break
        return list(failed)[:limit]

    def peek(self, task_ids: Sequence[str]) -> list[TaskPeek]:
        """Looks at tasks; those that are not there (any more) are left out."""
        commands = [
            evalsha("peek_tasks", (), [self._keys.task(), _HEAD, *task_ids[start : start + _BATCH]])
            for start in range(0, len(task_ids), _BATCH)
        ]
        if not commands:
            return []
        return [_peek(raw) for reply in self._channel.call(*commands) for raw in reply]


def find_networks(channel: Channel) -> list[str]:
    """Names of the networks on a server, sorted. The server looks through all its keys, some at a time."""
    found: set[str] = set()
    cursor = b"0"
    while True:
        command = pack(("SCAN", cursor, "MATCH", network_pattern(), "COUNT", _SCANNED))
        cursor, keys = channel.call(command)[0]
        found.update(network_of_key(raw.decode(errors="replace")) for raw in keys)
        if cursor == b"0":
            return sorted(found)


def _peek(raw: list[Any]) -> TaskPeek:
    task, state, worker, client, n_claims, losses, pushed, started, ended, head, size, blob, tag = raw
    is_started = state.decode() != QUEUED
    return TaskPeek(
        task.decode(),
        state.decode(),
        worker.decode() if is_started else "",
        client.decode(),
        n_starts(state.decode(), int(n_claims or 0), int(losses or 0), tag),
        _instant(pushed),
        # A task that was given back to the queue still says when it was started.
        _instant(started) if is_started else None,
        _instant(ended),
        head,
        size,
        blob.decode(),
        tag,
    )


def _instant(raw: str | bytes) -> float | None:
    return float(raw) if raw else None


def _ids(raws: Sequence[bytes]) -> list[str]:
    return [raw.decode() for raw in raws]


def _place(task_id: str) -> tuple[int, str]:
    """Sorts the tasks of a client as it has submitted them, 9 before 10; of the others whatever comes."""
    return len(task_id), task_id
