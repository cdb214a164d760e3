"""From an outcome that the ledger wrote itself to the error that its Future raises."""

from __future__ import annotations

import socket
import textwrap

from rush_executor._protocol.records import KILLED_TAG, TIMEOUT_TAG, Loss
from rush_executor.errors import (
    InitializerError,
    NetworkLostError,
    RushError,
    TaskKilledError,
    TaskTimeoutError,
    WorkerLostError,
)

__all__ = ["initializer_error", "lost_task_error", "moved_task_error", "network_lost_error"]


def lost_task_error(
    task_id: str, name: str, tag: bytes, body: bytes
) -> tuple[int, WorkerLostError | TaskTimeoutError | TaskKilledError]:
    """The error of a task that ended with its worker, and before it how many workers were lost with the task.

    Args:
        task_id: The task.
        name: Its function, for people.
        tag: Why the worker ended: by itself, for the task's time limit, or because somebody ended the task.
        body: How many workers were lost, a blank, and the last `Loss`.
    """
    n_losses, _, raw = body.partition(b" ")
    attempts, loss = int(n_losses), Loss.from_bytes(raw)
    host = f"{loss.host} (this machine)" if loss.host == socket.gethostname() else loss.host
    where = f"worker {loss.worker_id} (process {loss.pid} on {host})"
    if tag == TIMEOUT_TAG:
        return attempts, TaskTimeoutError(
            f"{name}() took longer than its timeout of {loss.timeout_s:g} s and was ended: task {task_id}, on {where}",
            task_id=task_id,
            timeout=loss.timeout_s,
        )
    if tag == KILLED_TAG:
        return attempts, TaskKilledError(f"{name}() was ended by kill(): task {task_id} on {where}", task_id=task_id)
    times = "once" if attempts == 1 else f"{attempts} times"
    said = f"\nThe last that it wrote to stderr:\n{textwrap.indent(loss.stderr, '    ')}" if loss.stderr else ""
    # Lost once, and not tried again: somebody has said so.
    advice = "If the crash is not the task's fault, raise max_retries." if attempts > 1 else "max_retries is 0."
    return attempts, WorkerLostError(
        f"the worker that ran {name}() died, {times}: task {task_id}, last on {where}, which {loss.reason}. "
        f"{advice}{said}",
        task_id=task_id,
        worker_id=loss.worker_id,
        host=loss.host,
        exitcode=loss.exitcode,
        attempts=attempts,
        stderr=loss.stderr,
    )


def initializer_error(text: str) -> InitializerError:
    """The error of an executor whose workers cannot start."""
    return InitializerError(f"no worker could start, the executor is broken:\n{text.rstrip()}")


def moved_task_error(task_id: str, name: str) -> RushError:
    """The error of a task of which another client is told now."""
    return RushError(
        f"another executor has attached to task {task_id}, {name}(), and is told what becomes of it: a task has one "
        "client"
    )


def network_lost_error(task_id: str, name: str, *, is_kept: bool) -> NetworkLostError:
    """The error of a task that the server has lost, and that cannot be pushed again.

    Args:
        task_id: The task.
        name: Its function, for people.
        is_kept: Whether its payload is still there; then it must not run twice.
    """
    why = (
        "it may have been started, and max_retries=0 says that it must not run twice"
        if is_kept
        else "its payload was not kept in this process either: too many bytes were waiting, or it came from another one"
    )
    return NetworkLostError(
        f"the server lost its data (it was restarted without persistence, or flushed), and with it task {task_id}, "
        f"{name}(). It was not submitted again: {why}."
    )
