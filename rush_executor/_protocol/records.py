"""What travels through the ledger beside payloads: claims, outcomes, notices.

An outcome in an inbox is one tag byte and a body. The worker writes FINISHED and FAILED (a sealed payload follows),
the ledger itself writes LOST, TIMEOUT, KILLED, CANCELLED, MOVED and BROKEN (plain JSON or nothing follows: these are
told by parties that never pickle).

What is made once per task is a named tuple: a frozen dataclass takes four times as long to make.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import NamedTuple

from rush_executor._protocol.states import QUEUED

__all__ = [
    "ATTEMPTS_PER_PUSH",
    "ATTEMPTS_TAG",
    "BROKEN_TAG",
    "CANCELLED_TAG",
    "FAILED_BLOB_TAG",
    "FAILED_TAG",
    "FINISHED_BLOB_TAG",
    "FINISHED_TAG",
    "KILL",
    "KILLED_TAG",
    "LOST_TAG",
    "MOVED_TAG",
    "REMOVED_TAG",
    "RESTART",
    "TERMINATE",
    "TIMEOUT_TAG",
    "Claim",
    "Loss",
    "NewTask",
    "StoredBody",
    "TaskOptions",
    "chunk_name",
    "n_starts",
]

# What an agent may be asked to do with a worker: the wish is such a word, a colon and the worker's id. A wish without
# one is a task that is to be ended. Only after the last of these another worker takes the place of this one.
TERMINATE = "terminate"
KILL = "kill"
RESTART = "restart"

FINISHED_TAG = b"F"
FAILED_TAG = b"E"
# As the two above, but the body is a reference to a blob: it was too large for one record.
FINISHED_BLOB_TAG = b"f"
FAILED_BLOB_TAG = b"e"
LOST_TAG = b"L"
# As LOST, but the worker was killed to end the task: it ran for too long, or somebody wanted it to end.
TIMEOUT_TAG = b"T"
KILLED_TAG = b"K"
CANCELLED_TAG = b"C"
# Taken out of the queue of a network that keeps its tasks.
REMOVED_TAG = b"X"
# No end of the task: from now on another client is told of it.
MOVED_TAG = b"M"
# Not the end of one task: the network is broken, e.g. its initializer fails. The task id beside it is empty.
BROKEN_TAG = b"B"
# Not the end of one task either: how many workers were lost over it. It stands before the outcome.
ATTEMPTS_TAG = b"A"
# More claims than one push of a task will ever see.
ATTEMPTS_PER_PUSH = 1 << 20


class TaskOptions(NamedTuple):
    """What a client may ask for one task.

    Attributes:
        max_retries: How many workers may be lost while they run the task. 0: it is run once at most. Otherwise a task
            that has ended is run again, and that does not count, if its worker is lost before the outcome was told.
        priority: Higher runs earlier; within one priority the order is that of submission.
        timeout_s: How long one attempt may take, in seconds; None for any time.
        retry_on: Failures of these types are no end of the task, as long as `max_retries` lasts.
        is_killed_by_cancel: Whether `cancel` of the task's Future ends it also while it runs.
    """

    max_retries: int
    priority: int
    timeout_s: float | None = None
    retry_on: tuple[type[BaseException], ...] = ()
    is_killed_by_cancel: bool = False


class StoredBody(bytes):
    """What is stored under a name for a client and is more than these bytes: a large function, what was scattered.

    Attributes:
        size: Bytes of all of it.
        chunks: What is stored beside them, see `chunk_name`.
        backing: What has to live as long as they are needed.
    """

    size: int = 0
    chunks: tuple[bytes, ...] = ()
    backing: object = None


def chunk_name(name: str, number: int) -> str:
    """The name under which a chunk is stored beside what it belongs to."""
    return f"{name}/{number}"


class NewTask(NamedTuple):
    """A task on its way into the queue.

    Attributes:
        task_id: Its id.
        payload: Sealed call, or a reference to the blob that holds it.
        options: See `TaskOptions`.
        blob_id: The blob that goes with the task and ends with it; empty when there is none.
        retries: How many failures of it were retried: each time it is pushed as a new one.
    """

    task_id: str
    payload: bytes
    options: TaskOptions
    blob_id: str = ""
    retries: int = 0


class Claim(NamedTuple):
    """A task that a worker has claimed.

    Attributes:
        task_id: Its id.
        attempt: The fencing token: rises with every claim of this task.
        payload: As in `NewTask`.
        blob_id: As in `NewTask`.
        is_once: Whether the task must not be run again, whatever happens to its worker.
        timeout_s: How long this attempt may take; 0 for any time.
    """

    task_id: str
    attempt: int
    payload: bytes
    blob_id: str = ""
    is_once: bool = False
    timeout_s: float = 0.0


def n_starts(state: str, n_claims: int, n_losses: int, outcome_tag: bytes) -> int:
    """How many times a task was started, as far as its record tells: what was claimed and given back was not.

    Args:
        state: The task's.
        n_claims: Its attempt number, which a push of it as a new one raises by `ATTEMPTS_PER_PUSH`.
        n_losses: Starts that were charged: failures that were retried, and workers that were lost, the last one too.
        outcome_tag: Empty while it has not ended.
    """
    has_another = n_claims > 0 and state != QUEUED and outcome_tag not in _CHARGED_OR_NOT_STARTED
    return n_losses + n_claims // ATTEMPTS_PER_PUSH + has_another


_CHARGED_OR_NOT_STARTED = (LOST_TAG, TIMEOUT_TAG, KILLED_TAG, REMOVED_TAG)


_LONGEST_LINE = 500


@dataclass(frozen=True, slots=True)
class Loss:
    """How a worker ended that should not have.

    Attributes:
        worker_id: The worker.
        host: Host name of its machine.
        pid: Its process id there.
        exitcode: As `multiprocessing.Process.exitcode`; None when nobody could tell.
        reason: A few words for people, such as "killed by signal 9 (SIGKILL)".
        timeout_s: The time limit that the task has exceeded, in seconds; 0 for none.
        stderr: The last lines that the worker wrote to stderr.
    """

    worker_id: str
    host: str
    pid: int
    exitcode: int | None
    reason: str
    timeout_s: float = 0.0
    stderr: str = ""

    @property
    def ending(self) -> str:
        """For the worker's record: what of an interpreter that has failed comes last on its stderr is the exception."""
        lines = self.stderr.split("\n") if self.exitcode is not None and self.exitcode > 0 else []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"{self.reason}: {last[:_LONGEST_LINE]}" if last else self.reason

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Loss:
        return cls(**json.loads(raw))
