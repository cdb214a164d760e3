"""Why a task has failed, from what the ledger keeps of it."""

from __future__ import annotations

from rush_executor._payload.rows import RowCodec
from rush_executor._protocol.records import FAILED_TAG, KILLED_TAG, LOST_TAG, REMOVED_TAG, TIMEOUT_TAG, Loss
from rush_executor.errors import RushError, TaskKilledError, TaskTimeoutError, WorkerLostError

__all__ = ["condition_of"]


def condition_of(codec: RowCodec, task_id: str, tag: bytes, body: bytes) -> BaseException:
    """The exception for a failed task.

    Args:
        codec: Opens what the task itself has raised.
        task_id: The task.
        tag: First byte of the outcome.
        body: What follows it.
    """
    if tag == FAILED_TAG:
        return codec.decode_failure(task_id, body)
    if tag == REMOVED_TAG:
        return RushError(body.decode(errors="replace"))
    if tag not in (LOST_TAG, TIMEOUT_TAG, KILLED_TAG):
        return RushError(f"the outcome of task {task_id} is of another version of rush-executor")
    n_losses, _, raw = body.partition(b" ")
    loss = Loss.from_bytes(raw)
    where = f"worker {loss.worker_id} (process {loss.pid} on {loss.host})"
    if tag == TIMEOUT_TAG:
        return TaskTimeoutError(
            f"the task took longer than its timeout of {loss.timeout_s:g} s and was ended, on {where}",
            task_id=task_id,
            timeout=loss.timeout_s,
        )
    if tag == KILLED_TAG:
        return TaskKilledError(f"Worker was killed: {where}", task_id=task_id)
    said = f"; the last that it wrote to stderr: {loss.stderr.rstrip()}" if loss.stderr else ""
    return WorkerLostError(
        f"Worker was lost: {where} {loss.reason}{said}",
        task_id=task_id,
        worker_id=loss.worker_id,
        host=loss.host,
        exitcode=loss.exitcode,
        attempts=int(n_losses),
        stderr=loss.stderr,
    )
