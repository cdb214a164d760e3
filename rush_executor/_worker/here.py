"""The worker that this process is: for a task of it that submits tasks itself.

Knows what a client of the same network must be told, and sees to it that what a task has opened ends with the task; it
does not know what that is. Set by `main.py`, in a process that is a worker's and nothing else: the variable below is
state of the process, as being a worker is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from rush_executor._config import NetworkConfig
from rush_executor._ledger.agent import NetworkRecord
from rush_executor._ledger.worker import WorkerLedger
from rush_executor._protocol.ids import client_of
from rush_executor._protocol.records import TaskOptions
from rush_executor._protocol.slots import Slot
from rush_executor._worker.loop import TaskClient, TaskLoop

__all__ = ["Here", "here", "settle"]


class Here:
    """A worker, as its task may see it.

    Args:
        config: The network.
        record: The network as the agent found it.
        worker_id: The worker.
        ledger: Its transitions; used under the loop's lock.
        loop: What runs the task.
        slot: Shared with the agent.
    """

    def __init__(
        self,
        config: NetworkConfig,
        record: NetworkRecord,
        worker_id: str,
        *,
        ledger: WorkerLedger,
        loop: TaskLoop,
        slot: Slot,
    ) -> None:
        self.config = config
        self.epoch = record.epoch
        self.worker_id = worker_id
        self._is_durable = record.is_durable
        self._ledger = ledger
        self._loop = loop
        self._slot = slot
        self._lock = threading.Lock()

    def task_client(self, open_client: Callable[[], TaskClient]) -> TaskClient | None:
        """What the running task has opened, or opens now; None when no task is running in this process."""
        loop = self._loop
        with self._lock:
            if not loop.is_in_task or loop.is_copy:
                return None
            if loop.task_client is None:
                loop.task_client = open_client()
            return loop.task_client

    def options(self) -> TaskOptions:
        """Priority and `max_retries` of the running task."""
        with self._loop.lock:
            self._loop.receive()
            return self._ledger.options(self._slot.current())

    def is_awaited(self) -> bool:
        """Whether the client of the running task is there. In a durable network it need not be."""
        client = client_of(self._slot.current())
        with self._loop.lock:
            self._loop.receive()
            return self._is_durable or self._ledger.has_client(client)

    def tell_waiting(self, *, is_waiting: bool) -> None:
        """Tells the agent whether the task may be waiting for others."""
        if self._slot.is_waiting() != is_waiting:
            self._slot.set_waiting(is_waiting=is_waiting)
            # That the wait is over is found soon enough.
            if is_waiting:
                self._loop.wake_agent()


_here: list[Here] = []


def settle(place: Here) -> None:
    """This process is that worker."""
    _here[:] = [place]


def here() -> Here | None:
    """The worker that this process is; None where it is none."""
    return _here[0] if _here else None
