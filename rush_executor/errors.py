"""Every error that Rush raises on its own behalf.

What a task itself raises reaches its Future as it is; the classes here are for what happens *around* the call: the
payload, the worker, the network, the server. Each inherits from the standard library's class that an old ``except``
clause would name, so code written for ``ProcessPoolExecutor`` goes on working.
"""

from __future__ import annotations

import pickle
from concurrent.futures import BrokenExecutor

__all__ = [
    "InitializerError",
    "NetworkLostError",
    "PayloadError",
    "RemoteError",
    "RemoteTraceback",
    "RushError",
    "ServerError",
    "SnapshotError",
    "TaskKilledError",
    "TaskTimeoutError",
    "WorkerLostError",
]


class RushError(Exception):
    """Base class of all errors of this package."""


class ServerError(RushError, RuntimeError):
    """A Redis or Valkey server could not be found, started, reached at the start, or is too old."""


class SnapshotError(RushError, ValueError):
    """A file is no snapshot of this network: it is damaged or cut off, something else, or of another network.

    It is read to its end before anything is restored, so nothing was written to the server.
    """


class NetworkLostError(RushError, BrokenExecutor):
    """The server is gone for longer than ``reconnect_timeout`` allows; or it was private, and has ended.

    Or it has lost its data, and this task cannot be submitted again: it must not run twice, or was not kept.
    """


class PayloadError(RushError, pickle.PicklingError, pickle.UnpicklingError):
    """A function, argument, result or exception could not be pickled, unpickled or verified.

    Only the task that it belongs to fails. The error that pickle raised, if any, is ``__cause__``.
    """


class WorkerLostError(RushError, BrokenExecutor):
    """The worker process that ran the task died, on every attempt that the task was allowed.

    Attributes:
        task_id: The task.
        worker_id: The worker of the last attempt.
        host: Host name of that worker's machine.
        exitcode: As `multiprocessing.Process.exitcode`: negative is the number of the signal that ended the process;
            None when its machine was lost and nobody could tell.
        attempts: How many workers were lost while they ran this task.
        stderr: The last lines that the worker of the last attempt wrote to stderr, if there are any.
    """

    def __init__(
        self,
        message: str,
        *,
        task_id: str = "",
        worker_id: str = "",
        host: str = "",
        exitcode: int | None = None,
        attempts: int = 0,
        stderr: str = "",
    ) -> None:
        super().__init__(message)
        self.task_id = task_id
        self.worker_id = worker_id
        self.host = host
        self.exitcode = exitcode
        self.attempts = attempts
        self.stderr = stderr


class TaskTimeoutError(RushError, TimeoutError):
    """The task ran for longer than the ``timeout`` of its options, and was ended together with its worker process.

    Attributes:
        task_id: The task.
        timeout: The limit, in seconds.
    """

    def __init__(self, message: str, *, task_id: str = "", timeout: float = 0.0) -> None:
        super().__init__(message)
        self.task_id = task_id
        self.timeout = timeout


class TaskKilledError(RushError):
    """The task was ended by `RushFuture.kill`, together with its worker process.

    Attributes:
        task_id: The task.
    """

    def __init__(self, message: str, *, task_id: str = "") -> None:
        super().__init__(message)
        self.task_id = task_id


class InitializerError(RushError, BrokenExecutor):
    """The ``initializer`` failed in a worker: the executor is broken, as it is in the standard library."""


class RemoteError(RushError):
    """Stands for an exception that could not be carried from the worker.

    Attributes:
        type_name: Qualified name of the original exception's class.
        message: What ``str()`` of the original gave.
        traceback_text: The original's formatted traceback.
    """

    def __init__(self, type_name: str, message: str, traceback_text: str) -> None:
        super().__init__(type_name, message, traceback_text)
        self.type_name = type_name
        self.message = message
        self.traceback_text = traceback_text

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}"


class RemoteTraceback(Exception):
    """The worker's traceback as text; it is the ``__cause__`` of an exception that a task raised.

    Attributes:
        tb: The text.
    """

    def __init__(self, tb: str) -> None:
        super().__init__(tb)
        self.tb = tb

    def __str__(self) -> str:
        return f'\n"""\n{self.tb}"""'
