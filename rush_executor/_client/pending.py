"""The Futures that wait for an outcome, and how an outcome resolves one.

Whoever takes a Future out of here resolves it, and taking is atomic: the listener with an outcome, a `cancel` that the
ledger granted, or the loss of the network. So a Future is resolved exactly once.

The task itself is kept beside its Future, in case it must be pushed again: because it failed and is to be retried, or
because the server came back without its data. Up to a bound: what is beyond it is run as long as the server lives.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import InvalidStateError
from typing import Any, Final

from rush_executor._client.future import RushFuture
from rush_executor._client.outcomes import lost_task_error, moved_task_error, network_lost_error
from rush_executor._client.retries import Parcel
from rush_executor._client.shelf import FunctionShelf
from rush_executor._ledger.blobs import LARGE_PAYLOAD
from rush_executor._payload import ChunkResult, ContentElsewhereError, Encoder
from rush_executor._protocol.ids import new_id
from rush_executor._protocol.records import (
    ATTEMPTS_TAG,
    CANCELLED_TAG,
    FAILED_TAG,
    FINISHED_BLOB_TAG,
    FINISHED_TAG,
    KILLED_TAG,
    LOST_TAG,
    MOVED_TAG,
    TIMEOUT_TAG,
    NewTask,
)
from rush_executor.errors import PayloadError, TaskKilledError, TaskTimeoutError

__all__ = ["MOST_KEPT_BYTES", "PendingFutures"]

logger = logging.getLogger(__name__)

# Payloads and functions of tasks that are not resolved, in memory, in case the server loses them. A task that asks for
# retries is kept in any case.
MOST_KEPT_BYTES: Final = 256 * 1024 * 1024


class PendingFutures:
    """Pending Futures by task id.

    Args:
        encoder: Opens outcomes.
        shelf: Told when a function has one task fewer that needs it.
        send_later: Has a task pushed again after a pause.
        tell: Told, whenever that may have changed, whether any is pending; None if nobody wants to know.
    """

    def __init__(
        self,
        encoder: Encoder,
        shelf: FunctionShelf,
        send_later: Callable[[Parcel], None],
        tell: Callable[[bool], None] | None = None,
    ) -> None:
        self._futures: dict[str, RushFuture] = {}
        self._kept_bytes = 0
        # Guards the sum alone: the dict is changed by one step each.
        self._lock = threading.Lock()
        self._encoder = encoder
        self._shelf = shelf
        self._send_later = send_later
        self._tell = tell
        self._telling = threading.Lock()
        self._has_retries = True
        # Taken by the listener, and not yet resolved: a fork in between must not leave it unresolved in the child.
        self._resolving: RushFuture | None = None

    def __len__(self) -> int:
        return len(self._futures)

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._futures

    def add(self, future: RushFuture, task: NewTask, function_body: bytes | None) -> None:
        """A task was submitted; its function, if it is sent by value, is needed from now on."""
        n_bytes = len(task.payload)
        keep = bool(task.options.retry_on) or self._kept_bytes + n_bytes <= MOST_KEPT_BYTES
        if future._digest is not None and function_body is not None:
            n_bytes += self._shelf.hold(future._digest, function_body, keep=keep)
        for reference in future._references:
            # In memory as long as the reference is.
            self._shelf.hold(reference.ident, reference.body, keep=True)
        if keep:
            with self._lock:
                self._kept_bytes += n_bytes
            future._task = task
        self._futures[future.task_id] = future
        if self._tell is not None:
            self._tell_truth(self._tell)

    def attach(self, future: RushFuture) -> None:
        """A task that was submitted before is waited for again; what it was is not known here."""
        if self._futures.setdefault(future.task_id, future) is not future:
            raise ValueError(f"task {future.task_id} has a Future in this executor already")

    def detach(self, future: RushFuture) -> None:
        """It is waited for no more: nobody was given this Future."""
        if self._futures.get(future.task_id) is future:
            self.take(future.task_id)

    def take(self, task_id: str) -> RushFuture | None:
        """Takes a Future out, to resolve it; None when somebody else has."""
        future = self._futures.pop(task_id, None)
        if future is not None:
            # Not kept as long as somebody keeps the Future.
            task, future._task = future._task, None
            n_bytes = len(task.payload) if task is not None else 0
            if future._digest is not None:
                n_bytes += self._shelf.release(future._digest)
            if future._keep is not None:
                for reference in future._references:
                    self._shelf.release(reference.ident)
                future._references, future._keep = (), None
            with self._lock:
                self._kept_bytes -= n_bytes
            if self._tell is not None:
                self._tell_truth(self._tell)
        return future

    def cancel(self, future: RushFuture) -> bool:
        """Resolves a Future as cancelled; False when somebody else has taken it."""
        try:
            if self.take(future.task_id) is None:
                return False
            future._resolve_cancelled()
        except BaseException:
            # Ctrl-C between two lines: taken, nobody else would ever resolve it.
            if future.task_id not in self._futures:
                future._resolve_cancelled()
            raise
        return True

    def all(self) -> list[RushFuture]:
        """Those that are pending now."""
        return list(self._futures.values())

    def fail_all(self, make_error: Callable[[], BaseException]) -> None:
        """Resolves every Future with an error of its own."""
        for future in self.all():
            self.fail(future, make_error())

    def fail(self, future: RushFuture, error: BaseException) -> None:
        """Resolves a Future with an error, unless somebody else has taken it."""
        try:
            if self.take(future.task_id) is not None:
                future.set_exception(error)
        except BaseException:
            # Ctrl-C between two lines, as in `cancel`.
            if future.task_id not in self._futures and not future.done():
                future.set_exception(error)
            raise

    def let_go(self) -> None:
        """After Ctrl-C on this thread: unlocks the Futures that it was about to wait for."""
        for future in self._unresolved():
            future._let_go()

    def cancel_all(self) -> None:
        """Resolves every Future as cancelled."""
        for future in self.all():
            self.cancel(future)

    def disown(self, make_error: Callable[[], BaseException]) -> None:
        """In a forked child: fails the Futures that were inherited."""
        for future in self._unresolved():
            future._disown()
            if future.done():
                continue
            future.set_exception(make_error())
        self._futures.clear()

    def end_retries(self) -> None:
        """From now on a failure is the end of a task, whatever its options say, and so is that the server loses it."""
        self._has_retries = False

    def recall(self) -> list[Parcel]:
        """What must be pushed again as the server has lost it, in its old order; what cannot be is failed."""
        parcels: list[Parcel] = []
        for future in self.all():
            task = future._task
            # On their way, in the outbox or waiting to be retried; unless they need a function that the server
            # had and that was not kept.
            if not future._is_sent and (task is not None or future._digest is None):
                continue
            if task is not None and task.options.max_retries > 0:
                if self._has_retries and not future._is_to_end:
                    parcels.append(Parcel(future, task))
                else:
                    # Who has shut down, or had it killed, wants no more of it than runs, and nothing does any more.
                    self.cancel(future)
            elif self.take(future.task_id) is not None:
                future.set_exception(network_lost_error(future.task_id, future._name, is_kept=task is not None))
        return parcels

    def resolve(self, task_id: str, tag: bytes, body: bytes | None) -> None:
        """Resolves a Future with an outcome from the inbox, or has its task run again.

        Args:
            task_id: The task; one that is not pending was cancelled a moment ago.
            tag: What kind of outcome.
            body: The rest of it; None when the server has it no more.
        """
        future = self._futures.get(task_id)
        if future is None:
            return
        if tag == ATTEMPTS_TAG:
            future.attempts += int(body or b"0")
            return
        self._resolving = future
        try:
            self._resolve(future, tag, body)
        finally:
            self._resolving = None

    def _unresolved(self) -> set[RushFuture]:
        """Those that are pending, and the one that the listener has taken."""
        futures = set(self.all())
        # Looked at second: what the listener took before the first look is here, or resolved.
        resolving = self._resolving
        return futures if resolving is None else futures | {resolving}

    def _tell_truth(self, tell: Callable[[bool], None]) -> None:
        # Looked at under the lock: who comes last tells what is so.
        with self._telling:
            tell(bool(self._futures))

    def _resolve(self, future: RushFuture, tag: bytes, body: bytes | None) -> None:
        task_id = future.task_id
        task = future._task
        if task is not None and (task.options.retry_on or tag == FAILED_TAG) and tag != MOVED_TAG:
            self._resolve_or_retry(future, task, tag, body)
        elif self.take(task_id) is not None:
            self._set_outcome(future, tag, *self._open(future, tag, body))

    def _resolve_or_retry(self, future: RushFuture, task: NewTask, tag: bytes, body: bytes | None) -> None:
        if not future._is_sent:
            # It waits to be pushed again already. The same outcome came twice, or one from before the server lost it.
            return
        value, error = self._open(future, tag, body)
        failure = value.failure if isinstance(value, ChunkResult) else error
        options = task.options
        again: NewTask | None = None
        if tag == FAILED_TAG and isinstance(failure, ContentElsewhereError):
            if future._is_to_end:
                self.cancel(future)
                return
            # Not a retry: it was not run.
            again = self._move(future, task)
        elif not self._has_retries or future._is_to_end:
            pass
        elif _is_retried(failure, options.retry_on) and task.retries - future._n_moved < options.max_retries:
            # Its blob has ended with its record.
            again = task._replace(retries=task.retries + 1, blob_id=new_id() if task.blob_id else "")
        if again is not None:
            future._task = again
            future._is_sent = False
            self._send_later(Parcel(future, again))
        elif self.take(task.task_id) is not None:
            self._set_outcome(future, tag, value, error)

    def _move(self, future: RushFuture, task: NewTask) -> NewTask | None:
        """The task with all that it needs on its way through the server; None where that cannot be done.

        Its worker cannot read this client's shared memory. Nothing goes there any more: others are beside it.
        """
        encoder, shelf = self._encoder, self._shelf
        if future._n_moved:
            return None
        encoder.send_no_files()
        try:
            payload = encoder.move_call(task.task_id, task.payload)
            n_more = len(payload) - len(task.payload)
            for reference in future._references:
                reference.body = encoder.move_body("scattered", reference.ident, reference.body)
                shelf.replace(reference.ident, reference.body)
            if future._digest is not None:
                body = shelf.kept(future._digest)
                if body is not None:
                    n_more += shelf.replace(future._digest, encoder.move_body("function", future._digest, body))
        except (OSError, PayloadError):
            logger.debug("task %s cannot be sent through the server", task.task_id, exc_info=True)
            return None
        with self._lock:
            self._kept_bytes += n_more
        future._n_moved = 1
        # It was not run.
        future.attempts -= 1
        blob_id = new_id() if len(payload) >= LARGE_PAYLOAD else ""
        return task._replace(payload=payload, retries=task.retries + 1, blob_id=blob_id)

    def _set_outcome(self, future: RushFuture, tag: bytes, value: Any, error: BaseException | None) -> None:
        try:
            if tag == CANCELLED_TAG:
                future._resolve_cancelled()
            elif error is not None:
                future.set_exception(error)
            else:
                future.set_result(value)
        except InvalidStateError:
            logger.warning("task %s: somebody else resolved its Future", future.task_id)

    def _open(self, future: RushFuture, tag: bytes, body: bytes | None) -> tuple[Any, BaseException | None]:
        """What an outcome says: a value or an error; neither for a cancelled one. Counts the attempts."""
        task_id = future.task_id
        if tag in (CANCELLED_TAG, MOVED_TAG):
            return None, moved_task_error(task_id, future._name) if tag == MOVED_TAG else None
        if body is not None and tag in (LOST_TAG, TIMEOUT_TAG, KILLED_TAG):
            n_losses, lost = lost_task_error(task_id, future._name, tag, body)
            future.attempts += n_losses
            return None, lost
        future.attempts += 1
        if body is None:
            return None, PayloadError(f"the outcome of task {task_id} is gone from the server")
        if tag in (FINISHED_TAG, FINISHED_BLOB_TAG):
            try:
                return self._encoder.decode_outcome(task_id, "finished", body), None
            except PayloadError as error:
                return None, error
        return None, self._encoder.decode_failure(task_id, body)


def _is_retried(failure: BaseException | None, kinds: tuple[type[BaseException], ...]) -> bool:
    """Whether a task is run again for this.

    Who killed it does not want it again. What took too long will most likely do so again: only who names that error,
    and not merely a base of it such as `TimeoutError` or `Exception`, has it run once more.
    """
    if isinstance(failure, TaskKilledError):
        return False
    if isinstance(failure, TaskTimeoutError):
        return any(issubclass(kind, TaskTimeoutError) for kind in kinds)
    return isinstance(failure, kinds)
