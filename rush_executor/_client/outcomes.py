"""From an outcome that the ledger wrote itself to the error that its Future raises."""

from __future__ import annotations

import socket

from rush_executor._protocol.records import Loss
from rush_executor.errors import InitializerError, NetworkLostError, WorkerLostError

__all__ = ["initializer_error", "network_lost_error", "worker_lost_error"]


def worker_lost_error(task_id: str, name: str, body: bytes) -> WorkerLostError:
    """The error of a task whose workers died.

    Args:
        task_id: The task.
        name: Its function, for people.
        body: How many workers were lost, a blank, and the last `Loss`.
    """
    n_losses, _, raw = body.partition(b" ")
    attempts, loss = int(n_losses), Loss.from_bytes(raw)
    times = "once" if attempts == 1 else f"{attempts} times"
    host = f"{loss.host} (this machine)" if loss.host == socket.gethostname() else loss.host
    return WorkerLostError(
        f"the worker that ran {name}() died, {times}: task {task_id}, last on worker {loss.worker_id} (process "
        f"{loss.pid} on {host}), which {loss.reason}. If the crash is not the task's fault, raise max_retries.",
        task_id=task_id,
        worker_id=loss.worker_id,
        host=loss.host,
        exitcode=loss.exitcode,
        attempts=attempts,
    )


def initializer_error(text: str) -> InitializerError:
    """The error of an executor whose workers cannot start."""
    return InitializerError(f"no worker could start, the executor is broken:\n{text.rstrip()}")


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
        else "its payload was not kept in this process either, as too many bytes were waiting"
    )
    return NetworkLostError(
        f"the server lost its data (it was restarted without persistence, or flushed), and with it task {task_id}, "
        f"{name}(). It was not submitted again: {why}."
    )
