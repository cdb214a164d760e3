"""A network at a glance: what `status` and `top` show of it, and single tasks.

Works for both kinds of networks. Of an executor's tasks it tells the function, of those that are kept the inputs, but
imports nothing of the user's for it. Reads through an `OverviewReader`; remembers nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from rush_executor._ledger.overview import OverviewReader, TaskPeek, WorkerLook
from rush_executor._payload.function import describe_call
from rush_executor._payload.rows import XS, RowCodec
from rush_executor._protocol.states import DRAINING, IDLE, QUEUED, RUNNING
from rush_executor._view.cells import text_of

__all__ = ["CALLS", "SILENT", "TASKS", "Lookout", "Meter", "Picture", "TaskLine", "WorkerLine"]

# Kinds of networks, as their record and docs/decisions/0014 call them.
CALLS: Final = "calls"
TASKS: Final = "tasks"
# A worker whose agent gives no sign of life, besides the states that a worker is in for everybody.
SILENT: Final = "silent"
_LONGEST_WHAT: Final = 200
_LONGEST_VALUE: Final = 40


@dataclass(frozen=True, slots=True)
class TaskLine:
    """A task.

    Attributes:
        task_id: Its id.
        state: Its state.
        what: The function that it calls, or its inputs, as text; empty if that is not known.
        worker_id: The worker that has it, or had it last; empty for none.
        attempt: Which attempt at it this is, or was the last; 0 if it has not been started.
        pushed_at, started_at, ended_at: Seconds since 1970 by the server's clock; None for not (yet), or not known.
    """

    task_id: str
    state: str
    what: str
    worker_id: str
    attempt: int
    pushed_at: float | None
    started_at: float | None
    ended_at: float | None

    @property
    def since(self) -> float | None:
        """Since when it is in its state; None if that is not known."""
        return self.pushed_at if self.state == QUEUED else self.started_at if self.state == RUNNING else self.ended_at


@dataclass(frozen=True, slots=True)
class WorkerLine:
    """A worker that is there.

    Attributes:
        worker_id: Its id.
        state: ``running``, ``idle``, ``draining``; ``silent`` if its agent gives no sign of life.
        host, pid: Where it is.
        agent_id: Its agent.
        joined_at: Seconds since 1970 by the server's clock; None if it is not known.
        n_held: How many tasks it has claimed; it runs one of them.
        n_queued: How many are queued for it alone.
        task: The one that it runs, most likely; None for none.
    """

    worker_id: str
    state: str
    host: str
    pid: int
    agent_id: str
    joined_at: float | None
    n_held: int
    n_queued: int
    task: TaskLine | None


@dataclass(frozen=True, slots=True)
class Picture:
    """A network at one moment.

    Attributes:
        network: Its name.
        kind: ``calls`` for an executor's, ``tasks`` for one that keeps its tasks, empty where there is none.
        is_durable: Whether an executor's keeps calls and outcomes.
        is_broken: Whether its workers cannot start.
        is_restoring: Whether it is being restored from a snapshot.
        looked_at: Seconds since 1970 by the server's clock.
        epoch: Which creation of the network it is.
        n_queued, n_running: Tasks in these states.
        n_ended: Tasks that have ended, in whatever way; of an executor's network since it was created.
        n_failed: How many of those have failed.
        n_clients: How many programs, and tasks that have submitted tasks, wait for tasks.
        n_agents: How many agents there are.
        n_workers_ended: Workers that were there, by how they ended; of a network that keeps its tasks.
        workers: Those that are there: who has run for longest first, then those that run nothing.
    """

    network: str
    kind: str
    is_durable: bool
    is_broken: bool
    is_restoring: bool
    looked_at: float
    epoch: str
    n_queued: int
    n_running: int
    n_ended: int
    n_failed: int
    n_clients: int
    n_agents: int
    n_workers_ended: dict[str, int]
    workers: list[WorkerLine]

    @property
    def description(self) -> str:
        """What kind of network it is, for people."""
        durable = "durable, " if self.is_durable else ""
        return durable + ("keeps its tasks" if self.kind == TASKS else "an executor's")


class Lookout:
    """Looks at one network.

    Args:
        network_id: The network.
        reader: Asks the ledger.
        secret: Of the network; None for none. With a wrong one less is told.
    """

    def __init__(self, network_id: str, reader: OverviewReader, secret: bytes | None) -> None:
        self._network_id = network_id
        self._reader = reader
        self._codec = RowCodec(network_id, secret)

    def picture(self) -> Picture:
        """Looks now."""
        found = self._reader.look()
        first = [worker.task_ids[0] for worker in found.workers if worker.task_ids]
        tasks = {task.task_id: task for task in self.tasks(first)}
        workers = [_worker_line(worker, tasks) for worker in found.workers]
        kind = TASKS if found.keeps else CALLS if found.epoch else ""
        return Picture(
            network=self._network_id,
            kind=kind,
            is_durable=found.is_durable,
            is_broken=found.is_broken,
            is_restoring=found.is_restoring,
            looked_at=found.looked_at,
            epoch=found.epoch,
            n_queued=found.n_queued,
            n_running=found.n_running,
            n_ended=found.n_ended,
            n_failed=found.n_failed,
            n_clients=found.n_clients,
            n_agents=found.n_agents,
            n_workers_ended=found.n_workers_ended if found.keeps else {},
            workers=sorted(workers, key=_by_patience),
        )

    def tasks(self, task_ids: Sequence[str]) -> list[TaskLine]:
        """Looks at tasks; those that are not there (any more) are left out."""
        return [self._task_line(peek) for peek in self._reader.peek(task_ids)]

    def some_tasks(self, state: str, limit: int) -> list[TaskLine]:
        """Some tasks in a state: the next of the queue, the last of the finished ones."""
        # One that has moved on since is another state's.
        return [task for task in self.tasks(self._reader.some_tasks(state, limit)) if task.state == state]

    def _task_line(self, peek: TaskPeek) -> TaskLine:
        if peek.client_id:
            what = describe_call(peek.head)
        else:
            what = _inputs(self._codec.peek(XS, peek.task_id, peek.head) if peek.size == len(peek.head) else None)
        return TaskLine(
            peek.task_id,
            peek.state,
            what,
            peek.worker_id,
            peek.n_attempts,
            peek.pushed_at,
            peek.started_at,
            peek.ended_at,
        )


class Meter:
    """How many tasks end per second, from one picture to the next.

    Attributes:
        rates: The last of them, tasks per second, oldest first; as many as there are places for.
    """

    def __init__(self, n_places: int) -> None:
        self.rates: list[float] = []
        self._n_places = n_places
        self._last: Picture | None = None

    def note(self, picture: Picture) -> float | None:
        """Takes a picture; returns the rate since the one before, None if that was of another network, or none."""
        last, self._last = self._last, picture
        if last is None or last.epoch != picture.epoch:
            self.rates.clear()
            return None
        passed_s = picture.looked_at - last.looked_at
        if passed_s <= 0:
            # The server's clock was put back.
            return None
        # Failed tasks that are queued again have not ended any more.
        rate = max(0, picture.n_ended - last.n_ended) / passed_s
        self.rates = [*self.rates, rate][-self._n_places :]
        return rate


def _worker_line(look: WorkerLook, tasks: dict[str, TaskLine]) -> WorkerLine:
    state = RUNNING if look.task_ids else IDLE
    if look.is_silent or look.is_draining:
        state = SILENT if look.is_silent else DRAINING
    task = tasks.get(look.task_ids[0]) if look.task_ids else None
    return WorkerLine(
        look.worker_id,
        state,
        look.host,
        look.pid,
        look.agent_id,
        look.joined_at,
        len(look.task_ids),
        look.n_queued,
        # It may have been given to another one between the two looks.
        task if task is not None and task.worker_id == look.worker_id else None,
    )


def _by_patience(worker: WorkerLine) -> tuple[bool, float, str]:
    since = worker.task.started_at if worker.task is not None else None
    return since is None, since or 0.0, worker.worker_id


def _inputs(content: Any) -> str:
    """Inputs as ``x1=3, x2='a'``."""
    # Inputs may come with what else the worker is to know of the task, such as a seed.
    row = content[0] if isinstance(content, tuple) and content else content
    if not isinstance(row, dict):
        return ""
    # Texts in quotes: they may look like numbers, or have commas.
    values = {name: repr(value) if isinstance(value, str) else value for name, value in row.items()}
    texts = (f"{name}={text_of(value, _LONGEST_VALUE)}" for name, value in values.items())
    return text_of(", ".join(texts), _LONGEST_WHAT)
