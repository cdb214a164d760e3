"""The Futures that wait for an outcome, and how an outcome resolves one.

Whoever takes a Future out of here resolves it, and taking is atomic: the listener with an outcome, a `cancel` that the
ledger granted, or the loss of the network. So a Future is resolved exactly once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import InvalidStateError

from rush_executor._client.future import RushFuture
from rush_executor._client.outcomes import lost_task_error
from rush_executor._client.shelf import FunctionShelf
from rush_executor._payload import Encoder
from rush_executor._protocol.records import (
    CANCELLED_TAG,
    FINISHED_BLOB_TAG,
    FINISHED_TAG,
    KILLED_TAG,
    LOST_TAG,
    TIMEOUT_TAG,
)
from rush_executor.errors import PayloadError

__all__ = ["PendingFutures"]

logger = logging.getLogger(__name__)


class PendingFutures:
    """Pending Futures by task id.

    Args:
        encoder: Opens outcomes.
        shelf: Told when a function has one task fewer that needs it.
    """

    def __init__(self, encoder: Encoder, shelf: FunctionShelf) -> None:
        self._futures: dict[str, RushFuture] = {}
        self._encoder = encoder
        self._shelf = shelf

    def __len__(self) -> int:
        return len(self._futures)

    def add(self, future: RushFuture, function_body: bytes | None) -> None:
        """A task was submitted; its function, if it is sent by value, is needed from now on."""
        if future._digest is not None and function_body is not None:
            self._shelf.hold(future._digest, function_body)
        self._futures[future.task_id] = future

    def take(self, task_id: str) -> RushFuture | None:
        """Takes a Future out, to resolve it; None when somebody else has."""
        future = self._futures.pop(task_id, None)
        if future is not None and future._digest is not None:
            self._shelf.release(future._digest)
        return future

    def all(self) -> list[RushFuture]:
        """Those that are pending now."""
        return list(self._futures.values())

    def fail_all(self, make_error: Callable[[], BaseException]) -> None:
        """Resolves every Future with an error of its own."""
        for future in self.all():
            if self.take(future.task_id) is not None:
                future.set_exception(make_error())

    def cancel_all(self) -> None:
        """Resolves every Future as cancelled."""
        for future in self.all():
            if self.take(future.task_id) is not None:
                future._resolve_cancelled()

    def disown(self, make_error: Callable[[], BaseException]) -> None:
        """In a forked child: fails the Futures that were inherited."""
        for future in self.all():
            future._disown()
            future.set_exception(make_error())
        self._futures.clear()

    def resolve(self, task_id: str, tag: bytes, body: bytes | None) -> None:
        """Resolves a Future with an outcome from the inbox.

        Args:
            task_id: The task; one that is not pending was cancelled a moment ago.
            tag: What kind of outcome.
            body: The rest of it; None when the server has it no more.
        """
        future = self.take(task_id)
        if future is None:
            return
        try:
            self._set_outcome(future, tag, body)
        except InvalidStateError:
            logger.warning("task %s: somebody else resolved its Future", task_id)

    def _set_outcome(self, future: RushFuture, tag: bytes, body: bytes | None) -> None:
        task_id = future.task_id
        if tag == CANCELLED_TAG:
            future._resolve_cancelled()
        elif body is None:
            future.set_exception(PayloadError(f"the outcome of task {task_id} is gone from the server"))
        elif tag in (LOST_TAG, TIMEOUT_TAG, KILLED_TAG):
            future.set_exception(lost_task_error(task_id, future._name, tag, body))
        elif tag in (FINISHED_TAG, FINISHED_BLOB_TAG):
            try:
                value = self._encoder.decode_outcome(task_id, "finished", body)
            except PayloadError as error:
                future.set_exception(error)
            else:
                future.set_result(value)
        else:
            future.set_exception(self._encoder.decode_failure(task_id, body))
