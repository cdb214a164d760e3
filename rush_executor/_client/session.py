"""One client of one network: from `submit` to a resolved Future.

    caller's thread            rush-dispatcher              rush-listener            rush-callbacks
    submit: encode,    ----->  outbox -> batches -> ledger
      register Future                                       inbox -> decode  ----->  done-callbacks
      (a lone task is sent                                  -> resolve Future
       by the caller itself)

A session is open, then draining (nothing new is taken, what was submitted is finished), then closed. The listener
thread does the closing, so that `shutdown(wait=False)`, interpreter exit and a forgotten executor all end the same way.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import logging
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from rush_executor._client import lifecycle
from rush_executor._client.callbacks import CallbackThread
from rush_executor._client.dispatcher import Dispatcher, Parcel
from rush_executor._client.future import RushFuture
from rush_executor._client.keeper import NoWorkers, WorkerKeeper
from rush_executor._client.listener import Listener
from rush_executor._client.outcomes import initializer_error
from rush_executor._client.pending import PendingFutures
from rush_executor._client.shelf import FunctionShelf
from rush_executor._config import NetworkConfig, redact
from rush_executor._ledger.agent import Reaper
from rush_executor._ledger.blobs import LARGE_PAYLOAD
from rush_executor._ledger.client import CancelReply, Downlink, Uplink
from rush_executor._ledger.connection import Channel, NetworkGone, Refused, WorkerGone, WrongKind, open_pool
from rush_executor._payload import EncodedFunction, Encoder, RushReference
from rush_executor._protocol.ids import new_id, task_id
from rush_executor._protocol.keys import Keys
from rush_executor._protocol.records import BROKEN_TAG, NewTask, TaskOptions
from rush_executor._protocol.states import RUNNING
from rush_executor._shared.directory import SharedDirectory
from rush_executor.errors import InitializerError, NetworkLostError, PayloadError, ServerError, WorkerLostError

__all__ = ["Nesting", "Session"]

logger = logging.getLogger(__name__)
# The standard library's pools tell of a failing initializer here, and people look for it here.
_futures_logger = logging.getLogger("concurrent.futures")

# A submit that comes this long after the one before is no part of a burst, even if other tasks are pending.
_BURST_GAP_S: Final = 0.001
_CANCEL_BATCH: Final = 500
_TICK_S: Final = 0.5
_ALONE_S: Final = 3.0
# A worker gives back what it has not started when a task keeps it for longer than expected; see `_worker/courier.py`.
_HELD_PAUSES_S: Final = (0.003, 0.005, 0.007)
_LOOK_AGAIN_S: Final = 0.02
# Why a question may have no answer, which whoever asks need not know: what becomes of the Futures tells.
_NO_ANSWER: Final = (NetworkLostError, NetworkGone, Refused, ServerError)


@dataclass(frozen=True, kw_only=True)
class Nesting:
    """What makes a session that of a task: a worker runs it, and it submits tasks itself.

    Attributes:
        worker_id: The worker. When it is lost, the server forgets this client.
        epoch: The creation of the network that the worker works for: no other is joined, and none again.
        tell_pending: Told, whenever that may have changed, whether Futures are pending.
    """

    worker_id: str
    epoch: str
    tell_pending: Callable[[bool], None]


class Session:
    """A client's part in a network.

    Args:
        config: The network.
        encoder: Packs calls and opens outcomes.
        initializer: Sealed initializer for the network; empty for none.
        client_id: The client.
        keeper: Keeps the workers that belong to this client.
        nesting: For the session of a task.
        files: Its directory in shared memory, which the session removes in the end.

    Raises:
        ServerError: The server cannot be reached.
        NetworkLostError: A task's worker has been taken for lost, or the network is not there any more.
        ValueError: The network exists already, and an initializer was given.
    """

    def __init__(
        self,
        config: NetworkConfig,
        encoder: Encoder,
        initializer: bytes,
        client_id: str,
        keeper: WorkerKeeper,
        *,
        nesting: Nesting | None = None,
        files: SharedDirectory | None = None,
    ) -> None:
        self.client_id = client_id
        self.broken: BaseException | None = None
        self.config = config
        self._encoder = encoder
        self._keeper = keeper
        # Raises when a private server has ended.
        self.check_server = keeper.check_server
        self._nesting = nesting
        self._files = files
        # Scattered objects to which nothing refers any more, for the listener.
        self._dropped: deque[str] = deque()
        self._keys = Keys(config.network_id)
        self._pool = open_pool(config.url)
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._last_submit_at = 0.0
        self._next_tick_at = self._next_look_at = 0.0
        # Since when tasks have waited on a network without workers.
        self._alone_since = math.inf
        self._has_warned = False
        # Why no task is taken any more, as the end of a sentence; empty while the session is open.
        self._why_closed = ""
        self._is_lost = False
        self._is_aborted = False
        self._has_left = False
        # Locked as long as the listener has not taken everything down.
        self._is_open = threading.Lock()
        # An absence of the server is told once: by the listener, which always waits at one of the last two.
        self._channels = [
            self._open_channel(is_telling=is_listeners and nesting is None) for is_listeners in (False, True, True)
        ]
        lease_ms = int(config.client_lease_s * 1000)
        self._uplink = Uplink(self._channels[0], self._keys, client_id, lease_ms=lease_ms)
        self._downlink = Downlink(self._channels[1], self._keys, client_id)
        self._reaper = Reaper(self._channels[2], self._keys, doubt_s=config.doubt_s)
        self._callbacks = CallbackThread()
        self._shelf = FunctionShelf()
        self._dispatcher = Dispatcher(self._uplink, self._shelf, when_lost=self._lose, when_refused=self._refuse)
        self._pending = PendingFutures(
            encoder, self._shelf, self._dispatcher.send_later, nesting.tell_pending if nesting is not None else None
        )
        self._listener = Listener(
            self._downlink,
            resolve=self._resolve,
            is_done=self._is_done,
            n_taken=lambda: self._dispatcher.n_taken,
            rejoin=self._rejoin,
            when_lost=self._lose,
            on_tick=self._tick,
            take_down=self._end,
        )
        self._join_network(initializer)
        self._dispatcher.start()
        self._is_open.acquire()
        self._listener.thread.start()
        lifecycle.register(self)

    # What callers do.

    def encode_function(self, fn: Callable[..., Any]) -> EncodedFunction:
        """Packs a function, once for all calls that follow.

        Raises:
            PayloadError: It cannot be pickled.
        """
        return self._encoder.encode_function(fn)

    def submit(
        self,
        function: EncodedFunction | PayloadError,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions,
        *,
        is_chunk: bool = False,
    ) -> RushFuture:
        """Submits a task.

        Args:
            function: As packed, or why it could not be.
            args: Arguments.
            kwargs: Keyword arguments.
            options: What the client asks for this task.
            is_chunk: Whether `args` holds one list of argument tuples, for all of which the function is to be called.

        Raises:
            RuntimeError: The session takes no tasks any more, or it is the parent's of this process.
        """
        self._check_open()
        task = task_id(self.client_id, next(self._numbers))
        keep: list[Any] = []
        try:
            if isinstance(function, PayloadError):
                raise function
            payload = self._encoder.encode_call(task, function, args, kwargs, is_chunk=is_chunk, keep=keep)
        except PayloadError as error:
            future = RushFuture(self, task, getattr(function, "name", ""), None)
            future.set_exception(error.with_traceback(None))
            # The error's cause refers to the frames that led to it, this one among them.
            del args, kwargs
            return future
        future = RushFuture(self, task, function.name, function.digest)
        if options.is_killed_by_cancel:
            future._is_killed_by_cancel = True
        if keep or function.references:
            future._keep = keep
            future._references = _all_references([*keep, *function.references])
        blob_id = new_id() if len(payload) >= LARGE_PAYLOAD else ""
        new = NewTask(task, payload, options, blob_id)
        now = time.monotonic()
        try:
            with self._lock:
                self._check_open()
                is_lone = not self._pending or now - self._last_submit_at > _BURST_GAP_S
                self._pending.add(future, new, function.body)
            self._last_submit_at = now
            self._dispatcher.send(Parcel(future, new), is_lone=is_lone)
        except BaseException:
            if not future._is_sent:
                # Ctrl-C, and nobody has it: nothing may wait for it.
                self._pending.take(task)
            raise
        return future

    def scatter(self, obj: object) -> RushReference:
        """Makes a reference to an object, which is sent once, with the first task that needs it.

        Raises:
            PayloadError: It cannot be pickled.
            RuntimeError: The session takes no tasks any more, or it is the parent's of this process.
        """
        self._check_open()
        ident = new_id()
        body, nested = self._encoder.encode_scattered(ident, obj)
        return RushReference(ident, body, nested, home=self._encoder, when_dropped=self._dropped.append)

    def attach(self, task_ids: list[str]) -> list[RushFuture]:
        """Makes Futures for tasks that were submitted before, by whomever.

        Raises:
            KeyError: There is no such task.
            ValueError: One of them has a Future here already.
            RuntimeError: The session takes no tasks any more.
        """
        futures = [RushFuture(self, task, f"task {task}", None) for task in task_ids]
        try:
            with self._dispatcher.lock:
                self._dispatcher.settle()
                with self._lock:
                    self._check_open()
                    for future in futures:
                        future._is_sent = True
                        self._pending.attach(future)
                found = self._uplink.attach(task_ids)
            unknown = [task for task, is_there in zip(task_ids, found, strict=True) if not is_there]
            if unknown:
                raise KeyError(f"network {self.config.network_id!r} has no task {', '.join(unknown)}")
        except BaseException:
            # Nobody will ever resolve them, and who shuts down would wait for that.
            for future in futures:
                self._pending.detach(future)
            raise
        return futures

    def shut_down(self, *, why: str, cancel_futures: bool = False, abort: bool = False) -> None:
        """Takes no tasks any more; the listener thread ends the session when what was submitted is finished.

        Args:
            why: End of the sentence "cannot schedule new futures after ...".
            cancel_futures: Cancel what no worker has claimed.
            abort: Cancel everything, and end the workers now.
        """
        with self._lock:
            self._why_closed = self._why_closed or why
            self._is_aborted = self._is_aborted or abort
        if cancel_futures or abort:
            self._pending.end_retries()
        if abort:
            # Nobody is waited for: not a server that is away, nor a push that goes on trying. Leaving tells the server.
            self._stopping.set()
            # It is Ctrl-C that brings us here, and it may have come in `concurrent.futures.wait`.
            self._pending.let_go()
            self._pending.cancel_all()
        elif cancel_futures:
            self.cancel_all(self._pending.all())
        # The listener may be waiting at its inbox: ring, so that it sees that it is done. Not after it has left: a
        # private server is gone then, and would be waited for.
        with contextlib.suppress(*_NO_ANSWER), self._dispatcher.lock:
            self._dispatcher.settle()
            if not self._is_lost and not self._has_left:
                self._uplink.ring()

    def end_now(self, how: str) -> None:
        """Ends the workers without waiting for what they run; the session ends with them.

        Args:
            how: For the error of the tasks that were running.
        """
        # First: with nothing pending the listener would take everything down in peace, and wait for what others run.
        with self._lock:
            self._is_aborted = True
        self.shut_down(why="shutdown", cancel_futures=True)
        self._pending.fail_all(lambda: WorkerLostError(f"the worker that ran the task was ended by {how}()"))
        self.shut_down(why="shutdown")

    def forget(self) -> None:
        """As `shut_down`, for an executor that nobody refers to any more.

        Called wherever the collector runs, so it takes no lock and sends nothing: the listener sees it within a second.
        """
        self._why_closed = self._why_closed or "shutdown"

    def join(self) -> None:
        """Waits until the session is closed and its callbacks have run; at once if a callback of its own calls."""
        if self._callbacks.is_current():
            return
        # Not `Thread.join` alone: before Python 3.13, one that Ctrl-C has interrupted takes the thread for ended.
        with self._is_open:
            pass
        self._listener.thread.join()
        self._callbacks.close()

    def cancel_all(self, futures: list[RushFuture]) -> None:
        """Cancels those of these Futures that no worker has claimed."""
        for start in range(0, len(futures), _CANCEL_BATCH):
            with contextlib.suppress(*_NO_ANSWER):
                self._cancel_batch([future for future in futures[start : start + _CANCEL_BATCH] if not future.done()])

    def n_workers(self) -> int:
        """How many workers have joined the network."""
        with self._dispatcher.lock:
            self._dispatcher.settle()
            return self._uplink.n_workers()

    # What Futures ask (`FutureOwner`).

    def cancel(self, future: RushFuture) -> bool:
        """Takes the task back, if no worker has it."""
        give_up_at = time.monotonic() + self.config.reconnect_timeout_s
        while not future.done() and time.monotonic() < give_up_at:
            try:
                reply = self._try_cancel(future)
            except _NO_ANSWER:
                return False
            if reply is not CancelReply.GONE:
                return reply is CancelReply.CANCELLED
            # It has ended, or somebody else cancels it at this moment: what it was is on its way to the Future. Unless
            # it has failed and is retried, or the server has lost it: then it is there again in a moment.
            concurrent.futures.wait([future], timeout=_LOOK_AGAIN_S)
        return future.cancelled()

    def kill(self, future: RushFuture) -> bool:
        """Takes the task back, or has its worker killed."""
        while not future.done():
            if self.cancel(future):
                return True
            if future.done():
                # It has ended meanwhile, or the server is lost: then it would be waited for once more.
                return False
            # Before: it may fail by itself at this moment.
            before, future._is_to_end = future._is_to_end, True
            try:
                with self._dispatcher.lock:
                    self._dispatcher.settle()
                    is_told = self._uplink.kill(future.task_id)
            except _NO_ANSWER:
                future._is_to_end = before
                return future.cancelled()
            future._is_to_end = before or is_told
            if is_told:
                return True
            # Neither queued nor running: given back between the two, or it has ended and is about to be told.
            concurrent.futures.wait([future], timeout=_HELD_PAUSES_S[0])
        # The server may have lost it meanwhile.
        return future.cancelled()

    def is_running(self, future: RushFuture) -> bool:
        """Whether a worker has the task."""
        if not future._is_sent:
            return False
        try:
            with self._dispatcher.lock:
                self._dispatcher.settle()
                return self._uplink.state(future.task_id) == RUNNING
        except _NO_ANSWER:
            return False

    def expect_callbacks(self) -> None:
        """A callback was added: there must be a thread that runs it."""
        self._callbacks.start()

    def run_callbacks(self, future: RushFuture) -> None:
        """Runs the Future's callbacks on a thread made for them."""
        self._callbacks.run(future)

    # What happens at exit and after a fork (`lifecycle.LiveSession`).

    def close_at_exit(self) -> None:
        """Finishes what was submitted, and ends; after an uncaught Ctrl-C it ends at once."""
        interrupted = getattr(sys, "last_type", None) is KeyboardInterrupt and not hasattr(sys, "ps1")
        try:
            self.shut_down(why="interpreter shutdown", abort=interrupted)
            self.join()
        except KeyboardInterrupt:
            # Ctrl-C while waiting here: nobody wants the rest any more. After a second one the process ends at once,
            # and agent, workers and server end when the pipes close.
            self.shut_down(why="interpreter shutdown", abort=True)
            self.join()

    def disown(self) -> None:
        """In a forked child: closes this process's copies of the parent's connections, and fails inherited Futures."""
        error = self._forked_error()
        self._why_closed = str(error)
        self.broken = error
        self._is_lost = True
        # Threads that are not here any more may have held the locks at the fork.
        self._lock = threading.Lock()
        self._is_open = threading.Lock()
        self._dispatcher.lock = threading.Lock()
        for channel in self._channels:
            channel.close()
        self._keeper.disown()
        if self._files is not None:
            self._files.disown()
        self._pending.disown(self._forked_error)

    # What the threads call.

    def _join_network(self, initializer: bytes) -> None:
        nesting = self._nesting
        try:
            network = self._uplink.open_network(
                nesting.epoch if nesting is not None else new_id(),
                initializer,
                durable=self.config.is_durable,
                worker_id=nesting.worker_id if nesting is not None else "",
            )
        except (NetworkGone, WorkerGone) as error:
            raise NetworkLostError(f"this task cannot submit tasks any more: {error}") from error
        except WrongKind:
            raise ValueError(
                f"network {self.config.network_id!r} keeps its tasks: it belongs to Rush. Choose another network_id"
            ) from None
        if initializer and network.creator != self.client_id:
            self._uplink.retire()
            raise ValueError(
                f"network {self.config.network_id!r} exists already, with an initializer of its own or none: pass "
                "initializer where the network is created, or choose another network_id"
            )
        if self.config.is_durable and not network.is_durable:
            self._uplink.retire()
            raise ValueError(
                f"network {self.config.network_id!r} exists already and is not durable: pass durable=True where the "
                "network is created, or choose another network_id"
            )
        self._network = network
        self._downlink.is_durable = network.is_durable
        if network.is_durable:
            self._encoder.send_no_files()
        if network.broken:
            self._break(network.broken[1:])

    def _rejoin(self, why: NetworkGone) -> None:
        """The server has lost its data: joins the network again, or creates it as it was, and pushes what was lost.

        Called by the listener alone; the dispatcher sends nothing from when it sees the loss until it is resumed here.
        """
        if self._nesting is not None:
            # What runs this task leaves, as the network is not the one that it was started for.
            raise NetworkLostError(f"this task cannot submit tasks any more: {why}")
        before = self._network
        with self._dispatcher.lock:
            network = self._uplink.open_network(new_id(), before.initializer, before.creator, durable=before.is_durable)
            if network.initializer != before.initializer:
                raise NetworkLostError(
                    f"the server lost its data ({why}), and network {self.config.network_id!r} was created again by "
                    "somebody else, with another initializer"
                )
            self._network = network
            self._shelf.forget_sent()
            parcels = self._pending.recall()
            self._dispatcher.resume(parcels)
        logger.warning("the server lost its data (%s): joined again, with %d tasks submitted anew", why, len(parcels))
        if network.broken:
            self._break(network.broken[1:])

    def _resolve(self, task: str, tag: bytes, body: bytes | None) -> None:
        if tag == BROKEN_TAG:
            self._break(body or b"")
        else:
            self._pending.resolve(task, tag, body)

    def _break(self, text: bytes) -> None:
        error = initializer_error(text.decode(errors="replace"))
        if self.broken is None:
            _futures_logger.critical("No worker could start:\n%s", text.decode(errors="replace"))
            # Under the lock: a submit that has not seen it must be among the pending ones that fail now.
            with self._lock:
                self.broken = error
        self._pending.fail_all(lambda: InitializerError(*error.args))

    def _lose(self, error: BaseException) -> None:
        """The network is gone for good: nobody may wait for it any more."""
        if not isinstance(error, NetworkLostError):
            error = NetworkLostError(f"the server does not do what it is asked: {error}")
        args = error.args
        with self._lock:
            self.broken = self.broken or error
            self._is_lost = True
        self._stopping.set()
        self._pending.fail_all(lambda: NetworkLostError(*args))

    def _refuse(self, futures: list[RushFuture], error: BaseException) -> None:
        for future in futures:
            self._pending.fail(future, NetworkLostError(f"the server refuses task {future.task_id}: {error}"))

    def _is_done(self) -> bool:
        return self._is_lost or (bool(self._why_closed) and not self._pending)

    def _tick(self) -> None:
        """What the listener does on the side, at most twice a second."""
        now = time.monotonic()
        if now < self._next_tick_at:
            return
        if self._dispatcher.is_halted:
            raise NetworkGone("a push was refused")
        self._look_after_contents()
        self._dispatcher.nudge()
        try:
            dead = self._keeper.check()
        except NoWorkers as error:
            self._break(str(error).encode())
        else:
            if dead is not None:
                self._reaper.bury(dead)
        if now >= self._next_look_at:
            if self._look_after_agents(now):
                self._keeper.end_agent()
            self._look_for_workers(now)
        self._next_tick_at = now + _TICK_S

    def _look_after_agents(self, now: float) -> bool:
        """Puts right what lost agents held; returns whether our own one is among them, and does not come back.

        Its process may be there, and not run (SIGSTOP, a frozen container): nobody else would replace it.
        """
        reaper, agent_id = self._reaper, self._keeper.agent_id
        reaper.look()
        self._next_look_at = now + (reaper.patience_s if reaper.has_suspects else self.config.heartbeat_period_s)
        return bool(agent_id) and reaper.misses(agent_id)

    def _look_after_contents(self) -> None:
        """Sees to it that what is large is kept no longer than it is needed."""
        while self._dropped:
            self._shelf.drop(self._dropped.popleft())
        if self._files is not None:
            self._files.sweep(self._pending.__contains__)
            self._files.trim()

    def _look_for_workers(self, now: float) -> None:
        """Says so, once, when tasks wait and nobody is there to run them: a name may be misspelt somewhere."""
        if self._keeper.has_workers() or not self._pending or self._reaper.n_workers():
            self._alone_since = math.inf
        elif self._alone_since == math.inf:
            self._alone_since = now
        elif now - self._alone_since > _ALONE_S and not self._has_warned:
            self._has_warned = True
            n = len(self._pending)
            logger.warning(
                "%s, and no worker has joined network %r on %s. Start one there with `rush-executor worker`, or give "
                "max_workers.",
                "1 task waits" if n == 1 else f"{n} tasks wait",
                self.config.network_id,
                redact(self.config.url),
            )

    def _end(self) -> None:
        """The last thing that the listener thread does."""
        try:
            self._take_down()
        finally:
            self._is_open.release()

    def _take_down(self) -> None:
        """Closes the session."""
        with self._lock:
            self._why_closed = self._why_closed or "the network was lost"
        self._dispatcher.close()
        self._pending.fail_all(lambda: NetworkLostError("the network was lost"))
        # In peace, the agent leaves first: it takes its workers off the lists. Killed, it takes a private server along.
        steps = [self._stop_keeper, self._leave_network, self._keeper.close]
        if self._is_aborted:
            steps = [self._leave_network, self._stop_keeper, self._keeper.close]
        for step in steps:
            try:
                step()
            except Exception:
                logger.exception("closing: %s failed", step.__name__)
        self._pool.disconnect()
        if self._files is not None:
            self._files.remove()

    def _stop_keeper(self) -> None:
        dead = self._keeper.stop(now=self._is_aborted or self._is_lost, is_in_vain=self._is_waiting_in_vain)
        if dead is not None and not self._is_lost:
            # Its workers may have held tasks of other clients, which would wait until its heartbeat expires.
            try:
                self._reaper.bury(dead)
            except _NO_ANSWER as error:
                # Not to be waited for twice.
                self._lose(error)
            self._channels[2].close()

    def _is_waiting_in_vain(self) -> bool:
        """Whether the workers, which are to finish what they run for others, will never have done so."""
        now = time.monotonic()
        if self._is_aborted:
            return True
        if now < self._next_look_at:
            return False
        try:
            return self._look_after_agents(now)
        except NetworkGone:
            return False
        except Exception as error:  # noqa: BLE001 - whatever keeps the server from answering
            self._lose(error)
            return True

    def _leave_network(self) -> None:
        with self._dispatcher.lock:
            self._dispatcher.settle()
            self._has_left = True
            try:
                if not self._is_lost:
                    self._uplink.retire()
            except (NetworkLostError, NetworkGone):
                logger.debug("the server is gone, and what it kept for this client with it", exc_info=True)
            # Nobody is to wait for the server from here on; a private one ends in a moment.
            self._stopping.set()
            for channel in self._channels:
                channel.close()

    # Small things.

    def _try_cancel(self, future: RushFuture) -> CancelReply:
        [reply] = self._cancel_batch([future])
        for pause_s in _HELD_PAUSES_S:
            if reply is not CancelReply.HELD:
                break
            # Claimed in a batch: it is being run, or in a few milliseconds it has been, or is queued again.
            time.sleep(pause_s)
            [reply] = self._cancel_batch([future])
        return reply

    def _open_channel(self, *, is_telling: bool) -> Channel:
        return Channel(
            self._pool,
            reconnect_timeout_s=self.config.reconnect_timeout_s,
            stopping=self._stopping,
            check_server=self.check_server,
            is_telling=is_telling,
        )

    def _cancel_batch(self, futures: list[RushFuture]) -> list[CancelReply]:
        """Cancels those of these Futures that no worker has claimed."""
        # All under the lock: what is found unsent here must be cancelled before the dispatcher looks at it.
        with self._dispatcher.lock:
            self._dispatcher.settle()
            sent = [future.task_id for future in futures if future._is_sent]
            replies = dict(zip(sent, self._uplink.cancel(sent) if sent else [], strict=True))
            verdicts = []
            for future in futures:
                reply = replies.get(future.task_id, CancelReply.CANCELLED)
                if reply is CancelReply.CANCELLED and not self._pending.cancel(future):
                    reply = CancelReply.GONE
                verdicts.append(reply)
            return verdicts

    def _check_open(self) -> None:
        if self.broken is not None:
            raise type(self.broken)(*self.broken.args)
        if self._why_closed:
            raise RuntimeError(f"cannot schedule new futures after {self._why_closed}")

    def _forked_error(self) -> RuntimeError:
        return RuntimeError(
            f"this executor belongs to process {os.getppid()}, and this is a fork of it: make a RushExecutor of your "
            "own in the child"
        )


def _all_references(found: Iterable[object]) -> list[RushReference]:
    """The references among these, and those in what they stand for."""
    all_of_them: dict[str, RushReference] = {}
    for one in found:
        if isinstance(one, RushReference) and one.ident not in all_of_them:
            all_of_them[one.ident] = one
            all_of_them.update((inner.ident, inner) for inner in _all_references(one.nested))
    return list(all_of_them.values())
