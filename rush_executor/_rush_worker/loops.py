"""What a worker does that was given a function, and no loop of its own."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn

from rush_executor._agent.workers import describe_exit
from rush_executor._payload import Call
from rush_executor._payload.rows import XS, YS, RowCodec
from rush_executor._protocol.names import check_names
from rush_executor._rush_worker.seeds import with_rng_state
from rush_executor._worker.courier import start_courier
from rush_executor._worker.loop import TaskLoop
from rush_executor._worker.signals import WorkerSignals
from rush_executor.errors import TaskTimeoutError, WorkerLostError

if TYPE_CHECKING:
    from rush_executor._rush_worker.worker import PoppedTask, RushWorker

__all__ = ["worker_loop_default", "worker_loop_process"]

_READ_SIZE: Final = 1 << 20
_FINISHED: Final = b"F"
_FAILED: Final = b"E"


def worker_loop_default(
    rush: RushWorker, fun: Callable[..., Mapping[str, Any]], constants: Mapping[str, Any] | None = None
) -> None:
    """Runs `fun` on the inputs of task after task, until the worker is to end.

    Args:
        rush: The worker.
        fun: Called as ``fun(**xs, **constants)``; returns a mapping of names to results.
        constants: The same for all tasks.
    """
    seat = rush._seat  # noqa: SLF001 - the loops are of the worker's own room
    loop = TaskLoop(
        seat.ledger,
        seat.lock,
        _RowDecoder(seat.codec, fun, constants or {}),
        seat.slot,
        max_tasks=None,
        agent_pid=seat.agent_pid,
        is_over=lambda: rush.terminated_on_idle,
    )
    if seat.slot_is_watched:
        loop.signals = WorkerSignals(loop, seat.slot)
        loop.signals.install()
    start_courier(loop)
    loop.run()


def worker_loop_process(
    rush: RushWorker, fun: Callable[..., Mapping[str, Any]], constants: Mapping[str, Any] | None = None
) -> None:
    """As `worker_loop_default`, but each task runs in a process of its own, forked from the worker.

    A crash or a time limit costs that process, not the worker; what a task changes in memory is gone with it.

    Args:
        rush: The worker.
        fun: As in `worker_loop_default`.
        constants: As in `worker_loop_default`.
    """
    while not rush.terminated_on_idle:
        task = rush.pop_task(is_limited=False)
        if task is not None:
            _run_in_child(rush, task, fun, constants or {})


class _RowDecoder:
    """Makes the task loop of an executor's workers run rows."""

    def __init__(self, codec: RowCodec, fun: Callable[..., Any], constants: Mapping[str, Any]) -> None:
        self._codec = codec
        self._fun = fun
        self._constants = dict(constants)
        # Of the inputs of the task that runs. Not the inputs, which may be large.
        self._names: dict[str, Any] = {}

    def function_key(self, payload: bytes) -> bytes:  # noqa: ARG002
        """All tasks are of one function."""
        return b"fun"

    def decode_call(self, client_id: str, task_id: str, payload: bytes) -> Call:  # noqa: ARG002
        """Opens the inputs of a task."""
        xs = self._codec.decode(XS, task_id, payload)
        if isinstance(xs, tuple):
            xs, seed = xs
            self._names = dict.fromkeys(xs)
            return Call(_seeded, (self._fun, seed, {**xs, **self._constants}), {}, False)  # noqa: FBT003
        self._names = dict.fromkeys(xs)
        return Call(self._fun, (), {**xs, **self._constants} if self._constants else xs, False)  # noqa: FBT003

    def encode_result(self, task_id: str, value: Any) -> bytes:
        """Makes the payload of what `fun` has returned."""
        return self._codec.encode(YS, task_id, checked_result(value, self._names))

    def encode_failure(self, task_id: str, exc: BaseException, *, trim: int = 0) -> bytes:
        """Makes the payload of how it failed."""
        return self._codec.encode_failure(task_id, exc, trim=trim)

    def encode_chunk(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """There are no chunks of rows."""
        raise NotImplementedError


def _seeded(fun: Callable[..., Any], seed: int, xs: dict[str, Any]) -> Any:
    with with_rng_state(seed):
        return fun(**xs)


def checked_result(value: Any, xs: Mapping[str, Any]) -> dict[str, Any]:
    """What a function has returned, if it is a row.

    Raises:
        TypeError: It is no mapping, or has a name that is no string.
        ValueError: A name stands for something else, such as one of the inputs.
    """
    if not isinstance(value, Mapping):
        raise TypeError(
            f"a task's function must return a mapping of names to results, such as {{'y': 1.0}}, "
            f"not {type(value).__name__}"
        )
    check_names(xs, value, {})
    return dict(value)


def _run_in_child(
    rush: RushWorker, task: PoppedTask, fun: Callable[..., Mapping[str, Any]], constants: Mapping[str, Any]
) -> None:
    codec = rush._seat.codec  # noqa: SLF001
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_fd)
        _child(codec, task, fun, constants, write_fd)
    os.close(write_fd)
    end_at = None if task.timeout is None else time.monotonic() + task.timeout
    body, is_late = _read_all(read_fd, end_at)
    os.close(read_fd)
    if is_late:
        os.kill(pid, signal.SIGKILL)
    exitcode = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if is_late:
        text = f"the task took longer than its timeout of {task.timeout:g} s and was ended"
        rush.fail_tasks(task.key, TaskTimeoutError(text, task_id=task.key, timeout=task.timeout or 0.0))
    elif body[:1] in (_FINISHED, _FAILED):
        rush.hand_in_encoded(task.key, body[1:], is_failure=body[:1] == _FAILED)
    else:
        text = f"the process of the task {describe_exit(exitcode)}"
        rush.fail_tasks(task.key, WorkerLostError(text, task_id=task.key, exitcode=exitcode, attempts=1))


def _child(
    codec: RowCodec,
    task: PoppedTask,
    fun: Callable[..., Mapping[str, Any]],
    constants: Mapping[str, Any],
    write_fd: int,
) -> NoReturn:
    code = 1
    try:
        try:
            with with_rng_state(task.seed):
                value = fun(**task.xs, **constants)
            body = _FINISHED + codec.encode(YS, task.key, checked_result(value, task.xs))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the task's outcome
            body = _FAILED + codec.encode_failure(task.key, error, trim=1)
        view = memoryview(body)
        while view:
            view = view[os.write(write_fd, view) :]
        code = 0
    finally:
        # Nothing of the worker may run on in here.
        os._exit(code)


def _read_all(fd: int, end_at: float | None) -> tuple[bytes, bool]:
    """What the child has written until it ended, and whether it has not ended in time."""
    parts: list[bytes] = []
    while True:
        left_s = None if end_at is None else max(0.0, end_at - time.monotonic())
        if not select.select([fd], [], [], left_s)[0]:
            return b"", True
        part = os.read(fd, _READ_SIZE)
        if not part:
            return b"".join(parts), False
        parts.append(part)
