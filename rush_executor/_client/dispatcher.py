"""The sending side: an outbox, a thread that empties it, and the shortcut past both.

A lone task is sent by the thread that submits it: handing it to another thread would cost more than sending it. Nor
does that thread wait for an answer, which would wake it for nothing: the outcome shows that the task has arrived. If
there is no outcome when the next task is sent, or after about a second, the same batch is sent again and asked about,
which does no harm (docs/decisions/0004). When
tasks come faster than one by one, sending each by itself would cost a round trip each, so they go into the outbox, and
the dispatcher sends whatever the outbox holds when it gets to it: the busier the process, the larger the batches. Where
the server takes them more slowly still, the outbox is full in the end, and whoever submits waits until there is room.

`lock` guards the uplink, and with it the order of batches. Whoever takes a task out of the outbox holds it, so under
it a task is either still in the outbox or has been sent.

A task that has failed and is retried waits here for its pause, then goes through the outbox like a new one: the thread
that sends is there anyway, and at interpreter exit, where no thread can be started any more.

When the server has lost the network, nothing is sent until `resume`.

The thread is started with the session and ended by `close`; it sleeps while the outbox is empty.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import threading
import time
import weakref
from collections.abc import Callable
from typing import Final, NamedTuple

from rush_executor._client.future import RushFuture
from rush_executor._client.outbox import Outbox
from rush_executor._client.retries import Parcel, RetryQueue
from rush_executor._client.shelf import FunctionShelf
from rush_executor._ledger.client import Uplink
from rush_executor._ledger.connection import NetworkGone, Refused
from rush_executor._protocol.records import NewTask
from rush_executor.errors import NetworkLostError, ServerError

__all__ = ["Dispatcher", "Parcel"]

logger = logging.getLogger(__name__)

_LARGEST_BATCH: Final = 500
# Bytes of payload beyond which a batch is sent as it is.
_LARGEST_BATCH_BYTES: Final = 4 * 1024 * 1024
# After a longer pause the connection may have been cut without our knowledge: then a lone task waits for its answer.
_FRESH_S: Final = 1.0
# How often whoever waits for room in the outbox looks. A full one keeps the server busy for far longer.
_ROOM_PAUSE_S: Final = 0.005


class _Batch(NamedTuple):
    number: int
    parcels: list[Parcel]
    functions: list[tuple[str, bytes]]


class _Posted(NamedTuple):
    """A batch of one task, sent without an answer. Whether it has arrived matters as long as the Future does."""

    number: int
    future: weakref.ref[RushFuture]
    task: NewTask


class _Wakeup:
    """An event that Ctrl-C cannot break.

    `threading.Event` locks in Python code: KeyboardInterrupt can come when the lock is taken and the block that gives
    it back not yet entered, and the next `set` would wait for ever. A queue written in C does it in one step.
    """

    def __init__(self) -> None:
        self._tokens: queue.SimpleQueue[None] = queue.SimpleQueue()

    def set(self) -> None:
        self._tokens.put(None)

    def clear(self) -> None:
        try:
            while True:
                self._tokens.get_nowait()
        except queue.Empty:
            pass

    def wait(self, timeout_s: float | None) -> None:
        """Waits for a `set`, and takes it away."""
        with contextlib.suppress(queue.Empty):
            self._tokens.get(timeout=timeout_s)


class Dispatcher:
    """Sends tasks.

    Args:
        uplink: The ledger.
        shelf: What the server has of this client's functions.
        when_lost: Called when the network is gone for good.
        when_refused: Called with the Futures of a batch that the server will not take.
    """

    def __init__(
        self,
        uplink: Uplink,
        shelf: FunctionShelf,
        *,
        when_lost: Callable[[BaseException], None],
        when_refused: Callable[[list[RushFuture], BaseException], None],
    ) -> None:
        self.lock = threading.Lock()
        self._uplink = uplink
        self._shelf = shelf
        self._when_lost = when_lost
        self._when_refused = when_refused
        self._outbox = Outbox()
        self._retries = RetryQueue()
        # The server does not know the network any more.
        self.is_halted = False
        # Number of the last batch that the server is known to have taken.
        self.n_taken = 0
        # Taken out of the outbox, not yet known to have arrived.
        self._batch: _Batch | None = None
        # What was sent without an answer, and when.
        self._posted: _Posted | None = None
        self._sent_at = -math.inf
        self._n_batches = 0
        self._is_asleep = False
        self._is_closed = False
        self._wakeup = _Wakeup()
        self._thread = threading.Thread(target=self._run, name="rush-dispatcher", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def send(self, parcel: Parcel, *, is_lone: bool) -> None:
        """Sends a task now, or puts it into the outbox, when there is room in it.

        Args:
            parcel: The task.
            is_lone: Whether the caller knows of no other task that is under way.
        """
        if is_lone and self._is_asleep and not self._outbox:
            with self.lock:
                self.settle()
                if self._batch is None and not self._outbox and not self.is_halted:
                    now = time.monotonic()
                    is_fresh = now - self._sent_at < _FRESH_S
                    self._sent_at = now
                    try:
                        self._batch = self._make_batch([parcel])
                        self._send_batch(wait=not is_fresh)
                    except BaseException:
                        # Ctrl-C in the middle: the thread sends it again, under the same number.
                        self._wakeup.set()
                        raise
                    return
        while self._outbox.is_full:
            if parcel.future.done() or self._is_closed:
                # The network is lost, or the session was aborted: whatever is pending is resolved, this one too.
                return
            time.sleep(_ROOM_PAUSE_S)
        self._outbox.put(parcel)
        if self._is_asleep:
            self._wakeup.set()

    def send_later(self, parcel: Parcel) -> None:
        """Sends a task after a pause: one that has failed and is retried."""
        self._retries.put(parcel)
        self._wakeup.set()

    def resume(self, parcels: list[Parcel]) -> None:
        """The network is there again, empty; to be called under the lock.

        Args:
            parcels: What had been sent, and is to be sent again before all that was not.
        """
        # Of the batch in between, what is not among the parcels: Ctrl-C came before it was marked as sent.
        batch = self._batch.parcels if self._batch is not None else []
        parcels = parcels + [parcel for parcel in batch if not parcel.future._is_sent]
        self._batch = self._posted = None
        self.n_taken = 0
        for future, _ in parcels:
            future._is_sent = False
        self._outbox.put_first(parcels)
        self.is_halted = False
        self._wakeup.set()

    def settle(self) -> None:
        """Makes sure that what was sent has arrived; to be called under the lock, before the uplink is used."""
        posted = self._posted
        if posted is not None:
            future = posted.future()
            # Gone, done, or about to be tried again: it has had an outcome, so the task had arrived.
            if future is not None and not future.done() and future._is_sent:
                self._batch = _Batch(posted.number, [Parcel(future, posted.task)], [])
                self._send_batch(is_known_sent=True)
            else:
                self.n_taken = posted.number
            self._posted = None

    def nudge(self) -> None:
        """Has the thread settle what was sent a while ago, which may have been lost, and delete what is not needed."""
        if self._posted is not None or self._shelf.has_excess():
            self._wakeup.set()

    def close(self) -> None:
        """Ends the thread. What is in the outbox stays there."""
        self._is_closed = True
        self._wakeup.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        try:
            self._dispatch()
        except BaseException as error:
            # A fault of ours must not leave Futures that nobody will ever send.
            logger.exception("the dispatcher failed")
            self._when_lost(error)

    def _dispatch(self) -> None:
        while not self._is_closed:
            self._wakeup.clear()
            # The flag goes up before the look: whoever appends after the look sees it and sets the event.
            self._is_asleep = True
            if self.is_halted or (not self._outbox and self._batch is None):
                self._wakeup.wait(self._retries.pause_s())
            self._is_asleep = False
            self._outbox.put_all(self._retries.take_due())
            while self._has_something_to_send() and not self._is_closed:
                with self.lock:
                    # First: after a batch with a later number the server would take this one for seen.
                    self.settle()
                    if self.is_halted:
                        break
                    if self._batch is None:
                        self._outbox.put_all(self._retries.take_due())
                        self._batch = self._make_batch(self._outbox.take(_LARGEST_BATCH, _LARGEST_BATCH_BYTES))
                    self._send_batch()
            if self._shelf.has_excess() and not self.is_halted and not self._is_closed:
                with self.lock:
                    self.settle()
                    self._forget_excess()

    def _has_something_to_send(self) -> bool:
        return not self.is_halted and bool(self._outbox or self._batch is not None or self._posted is not None)

    def _make_batch(self, parcels: list[Parcel]) -> _Batch | None:
        if not parcels:
            return None
        self._n_batches += 1
        digests = [future._digest for future, _ in parcels if future._digest is not None]
        digests += [reference.ident for future, _ in parcels for reference in future._references]
        return _Batch(self._n_batches, parcels, self._shelf.unsent(digests) if digests else [])

    def _send_batch(self, *, wait: bool = True, is_known_sent: bool = False) -> None:
        batch = self._batch
        if batch is None:
            return
        # Not before the batch is in its place, from where the thread sends it if this is broken off. And once only: at
        # this moment the listener may say that the task is to be tried again.
        for future, _ in () if is_known_sent else batch.parcels:
            future._is_sent = True
        try:
            is_answered = self._uplink.push(
                batch.number, [parcel.task for parcel in batch.parcels], batch.functions, wait=wait
            )
            if is_answered:
                self.n_taken = batch.number
            else:
                [(future, task)] = batch.parcels
                self._posted = _Posted(batch.number, weakref.ref(future), task)
            if batch.functions:
                self._shelf.sent(batch.functions)
                self._forget_excess()
        except (NetworkGone, NetworkLostError, ServerError) as error:
            self._gone(error)
        except Refused as error:
            self._when_refused([parcel.future for parcel in batch.parcels], error)
        self._batch = None

    def _gone(self, error: NetworkGone | NetworkLostError | ServerError) -> None:
        if isinstance(error, NetworkGone):
            # The listener sees to it, as it is the one who knows up to where the inbox was read.
            self.is_halted = True
            self._posted = None
        else:
            self._when_lost(error)

    def _forget_excess(self) -> None:
        excess = self._shelf.take_excess()
        try:
            if excess:
                self._uplink.forget_functions(excess)
        except (NetworkGone, NetworkLostError, ServerError) as error:
            self._gone(error)
        except Refused as error:
            # They stay as long as this client does.
            logger.warning("the server will not delete functions that no task needs any more: %s", error)
