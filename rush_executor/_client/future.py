"""The Future of a task: the standard library's, but `cancel` and `running` tell the truth of the ledger."""

from __future__ import annotations

import operator
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures._base import CANCELLED, PENDING, RUNNING
from typing import Any, Final, Protocol

from rush_executor._payload import RushReference
from rush_executor._protocol.records import NewTask

__all__ = ["FutureOwner", "RushFuture"]

_PENDING_STATES: Final = (PENDING, RUNNING)


class _Condition(threading.Condition):
    """A condition that Ctrl-C in a `result()` does not leave locked, and that costs a third of the standard one.

    That one locks in a Python function: KeyboardInterrupt can come when the lock is taken and the `with` block not yet
    entered, and the listener would wait for that lock for ever. Looked up as properties, the methods that `with` calls
    are those of the lock, written in C: between them and the block nothing can come.

    And it keeps each of these methods: objects that the garbage collector goes through as long as a task is pending.
    """

    __enter__ = property(operator.attrgetter("_lock.__enter__"))
    __exit__ = property(operator.attrgetter("_lock.__exit__"))
    acquire = property(operator.attrgetter("_lock.acquire"))
    release = property(operator.attrgetter("_lock.release"))
    _release_save = property(operator.attrgetter("_lock._release_save"))
    _acquire_restore = property(operator.attrgetter("_lock._acquire_restore"))
    _is_owned = property(operator.attrgetter("_lock._is_owned"))
    # Python 3.14's; before, no lock has it.
    locked = property(operator.attrgetter("_lock.locked"))

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._waiters: deque[Any] = deque()


class FutureOwner(Protocol):
    """What a Future asks of its session."""

    def cancel(self, future: RushFuture) -> bool:
        """Takes the task back, if no worker has it."""

    def kill(self, future: RushFuture) -> bool:
        """Has the task ended, running or not."""

    def is_running(self, future: RushFuture) -> bool:
        """Whether a worker has the task."""

    def expect_callbacks(self) -> None:
        """A callback was added."""

    def run_callbacks(self, future: RushFuture) -> None:
        """Runs the Future's callbacks on a thread made for them."""


class RushFuture(Future[Any]):
    """A task's outcome to come.

    Attributes:
        task_id: The task's id in the ledger.
        attempts: How many times the task was started, as far as is known: 1 after a plain success, one more for each
            failure that was retried and for each worker that was lost over it. 0 as long as nothing is known: none of
            its attempts has ended, or it was cancelled before the first.
    """

    attempts: int = 0
    # This room's: whether the task has left this process; the task itself while it is kept (`PendingFutures`).
    _is_sent: bool = False
    _task: NewTask | None = None
    _is_killed_by_cancel: bool = False
    # Somebody has been told that it ends: it is not retried.
    _is_to_end: bool = False
    # What has to live until the task has ended: what was scattered and is among its arguments, and what keeps the
    # others where they are large.
    _references: Sequence[RushReference] = ()
    _keep: object = None
    # Pushed again because its worker did not find what had been left for it in shared memory.
    _n_moved: int = 0

    def __init__(self, owner: FutureOwner, task_id: str, name: str, digest: str | None) -> None:
        # In place of the base's `__init__`, which would make a condition of the standard kind first: half of what a
        # submit costs.
        self._condition = _Condition()
        self._state = PENDING
        self._result: Any = None
        self._exception: BaseException | None = None
        self._waiters: list[Any] = []
        self._done_callbacks: list[Any] = []
        self._owner = owner
        self.task_id = task_id
        # The function's name for messages, and its digest if it was sent by value.
        self._name = name
        self._digest = digest

    def done(self) -> bool:
        """Whether the task has ended, or was cancelled."""
        # In place of the base's, which takes the lock to look at what changes in one step.
        return self._state not in _PENDING_STATES

    def cancel(self) -> bool:
        """Cancels the task unless a worker has claimed it; with the option `kill_on_cancel`, ends one that runs.

        Returns:
            True when the task is cancelled, and `concurrent.futures.wait` knows it; False when it runs, or has run.
        """
        if self.done():
            return self.cancelled()
        return self._owner.cancel(self) or (self._is_killed_by_cancel and self.kill() and self.cancelled())

    def kill(self) -> bool:
        """Ends the task, also while it runs: its worker process is killed, and another one takes its place.

        Returns:
            False when the task has ended already. Else True, at once: a task that no worker has claimed is cancelled; a
            running one fails with `TaskKilledError` in a moment, if it does not end by itself before.
        """
        return not self.done() and self._owner.kill(self)

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Has `fn` called with this Future when it is done, on a thread made for callbacks; at once if it is done."""
        self._owner.expect_callbacks()
        super().add_done_callback(fn)

    def running(self) -> bool:
        """Whether a worker has claimed the task: asks the ledger."""
        return not self.done() and self._owner.is_running(self)

    def _resolve_cancelled(self) -> None:
        """Puts the Future into its final cancelled state, which `wait` and `as_completed` see; may be done again."""
        super().cancel()
        if self._state == CANCELLED:
            self.set_running_or_notify_cancel()

    def _let_go(self) -> None:
        """Gives up this thread's hold on the lock, if it has one.

        `concurrent.futures.wait` and `as_completed` lock all their Futures in a loop, one after the other, before they
        enter a block that would unlock them: Ctrl-C in that loop leaves those that it has come to locked for good, and
        whoever resolves one of them, the listener first of all, waits for ever.
        """
        while self._condition._is_owned():  # type: ignore[attr-defined]
            self._condition.release()

    def _disown(self) -> None:
        """In a forked child: lets go of the parent's callbacks, and of a lock that a thread of the parent may hold."""
        self._condition = _Condition()
        self._done_callbacks = []

    def _invoke_callbacks(self) -> None:
        if self._done_callbacks:
            self._owner.run_callbacks(self)

    def _run_callbacks(self) -> None:
        """Runs the callbacks, on this thread."""
        super()._invoke_callbacks()  # type: ignore[misc]
