"""The state table of a task: every legal transition is one row, anything else is refused.

The Lua scripts of the ledger are the rows carried out; `docs/reference/states.md` is printed from this table. In a
ledger the state of a task is where its id stands: in `queued_tasks`, in the `running_tasks` of one worker, or, once
it has ended, in the inbox of the client that waits for it. Whoever removes the id from where it stands writes what
comes next; whoever comes too late is told so.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "ALIVE_STATES",
    "CANCELLED",
    "DRAINING",
    "FAILED",
    "FINISHED",
    "IDLE",
    "KEPT_STATES",
    "KILLED",
    "LOST",
    "QUEUED",
    "RUNNING",
    "STARTING",
    "TERMINAL_STATES",
    "TERMINATED",
    "TRANSITIONS",
    "Transition",
]

QUEUED = "queued"
RUNNING = "running"
FINISHED = "finished"
FAILED = "failed"
CANCELLED = "cancelled"

# What a worker is. It is to come, has joined (RUNNING: it has a task), or was asked to end and is at its last task.
STARTING = "starting"
IDLE = "idle"
DRAINING = "draining"
ALIVE_STATES = frozenset({STARTING, IDLE, RUNNING, DRAINING})
# How a worker has ended, in a network that keeps that: it left; it was stopped without waiting for its task; otherwise.
TERMINATED = "terminated"
KILLED = "killed"
LOST = "lost"

TERMINAL_STATES = frozenset({FINISHED, FAILED, CANCELLED})
# Those in which a network that keeps its tasks may keep one.
KEPT_STATES = (QUEUED, RUNNING, FINISHED, FAILED)


@dataclass(frozen=True, slots=True)
class Transition:
    """One row of the state table.

    Attributes:
        source: State before; empty where the task does not exist yet.
        event: What happens.
        target: State after.
        decider: Who asks for it.
        script: Lua script that carries it out.
    """

    source: str
    event: str
    target: str
    decider: str
    script: str


TRANSITIONS: tuple[Transition, ...] = (
    Transition("", "push", QUEUED, "client", "push_tasks"),
    Transition("", "push, kept", QUEUED, "anybody", "create_tasks"),
    Transition("", "push_running", RUNNING, "worker", "create_tasks"),
    Transition("", "push_finished", FINISHED, "anybody", "create_tasks"),
    Transition("", "push_failed", FAILED, "anybody", "create_tasks"),
    Transition("", "restore", QUEUED, "anybody", "restore_tasks"),
    Transition("", "restore_finished", FINISHED, "anybody", "restore_tasks"),
    Transition("", "restore_failed", FAILED, "anybody", "restore_tasks"),
    Transition(QUEUED, "claim", RUNNING, "worker", "claim_tasks"),
    Transition(QUEUED, "cancel", CANCELLED, "client", "cancel_tasks"),
    Transition(QUEUED, "remove, kept", FAILED, "anybody", "remove_tasks"),
    Transition(RUNNING, "finish", FINISHED, "worker that holds this attempt", "finish_tasks"),
    Transition(RUNNING, "fail", FAILED, "worker that holds this attempt", "finish_tasks"),
    Transition(RUNNING, "finish, kept", FINISHED, "worker that holds this attempt", "keep_outcomes"),
    Transition(RUNNING, "fail, kept", FAILED, "worker that holds this attempt", "keep_outcomes"),
    Transition(FAILED, "retry, kept", QUEUED, "anybody", "retry_tasks"),
    Transition(RUNNING, "release, not started", QUEUED, "worker that holds this attempt", "release_tasks"),
    Transition(RUNNING, "worker lost, not started", QUEUED, "agent or reaper", "lose_worker"),
    Transition(RUNNING, "worker lost, attempts left", QUEUED, "agent or reaper", "lose_worker"),
    Transition(RUNNING, "worker lost, none left", FAILED, "agent or reaper", "lose_worker"),
    Transition(RUNNING, "time limit, kill", FAILED, "agent", "lose_worker"),
)
