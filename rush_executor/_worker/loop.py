"""The loop of one worker: claim, run, hand in.

Runs in the main thread of its process, so that signals, C libraries and profilers in a task behave as users expect. A
second thread, the `Courier`, looks after what lies here while a task takes long. Both take claims and outcomes from
deques with `popleft`, which is atomic: a claim is either started by the loop or given back by the courier, never both.
The connection is shared under `lock`.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NoReturn, Protocol, TypeVar

from rush_executor._ledger.blobs import LARGE_PAYLOAD
from rush_executor._ledger.connection import NetworkGone, Refused, WorkerGone
from rush_executor._ledger.worker import Claimed, Outcome, WorkerLedger
from rush_executor._payload import Call, run_chunk
from rush_executor._protocol.ids import client_of
from rush_executor._protocol.records import Claim
from rush_executor._protocol.slots import Slot
from rush_executor._worker.pace import BATCH_S, Pace
from rush_executor._worker.signals import LeaveNow, WorkerSignals, wake_agent
from rush_executor.errors import NetworkLostError, PayloadError

__all__ = ["TaskClient", "TaskLoop"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

# Frames of this module that stand above the user's code in a traceback: _run and _call.
_OWN_FRAMES: Final = 2


# The agent looks at every slot this often, or a little more often.
_LOOKED_AT_S: Final = 1.0
# How long it may take to load a call that has a time limit, beyond that limit: to fetch it, and to import for the first
# time what it needs. Far above what that takes on a busy machine; what takes longer hangs.
_LOADING_S: Final = 60.0


# How many tasks are claimed at most while the last one runs: each takes at least BATCH_S / 16.
_FEW: Final = 16


class PayloadDecoder(Protocol):
    """What opens the tasks of a worker and packs their outcomes: `Decoder`, or what makes rows of them."""

    def function_key(self, payload: bytes) -> bytes: ...
    def decode_call(self, client_id: str, task_id: str, payload: bytes) -> Call: ...
    def encode_result(self, task_id: str, value: Any) -> bytes: ...
    def encode_chunk(self, task_id: str, values: list[Any], failure: BaseException | None) -> bytes: ...
    def encode_failure(self, task_id: str, exc: BaseException, *, trim: int = 0) -> bytes: ...


class TaskClient(Protocol):
    """What a task has opened to submit tasks itself."""

    def end(self, *, is_failure: bool) -> None:
        """The task has ended: waits for what it has submitted; after a failure only for what is being run."""


class TaskLoop:
    """Claims and runs tasks until told to leave.

    Args:
        ledger: This worker's transitions.
        lock: Guards the ledger's connection.
        decoder: Opens calls and packs results.
        slot: Where the agent reads what is being run, and this loop whether the worker is to leave.
        max_tasks: Leave after so many tasks; None for never.
        agent_pid: The process of the agent, which looks at the slot when it is woken; 0 for none.
        is_over: Asked when the queue was found empty: whether the worker is to leave; None for never.
    """

    def __init__(
        self,
        ledger: WorkerLedger,
        lock: threading.Lock,
        decoder: PayloadDecoder,
        slot: Slot,
        *,
        max_tasks: int | None,
        agent_pid: int,
        is_over: Callable[[], bool] | None = None,
    ) -> None:
        self.lock = lock
        self.held: deque[Claim] = deque()
        self.outcomes: deque[Outcome] = deque()
        self.n_started = 0
        self.is_waiting = False
        self.is_in_task = False
        # This process is a child that a task has forked, and no worker.
        self.is_copy = False
        self.busy = threading.Event()
        self.fetch_error: Exception | None = None
        # Of the running task, if it submits tasks itself.
        self.task_client: TaskClient | None = None
        # Put back after each task, where this process has handlers of its own.
        self.signals: WorkerSignals | None = None
        self._ledger = ledger
        self._decoder = decoder
        self._slot = slot
        self._tasks_left = max_tasks
        self._agent_pid = agent_pid
        self._is_over = is_over
        self._pace = Pace()
        self._n_queued = 1
        # Outcomes that were handed in with a claim that is not answered yet; None when there is none.
        self._asked: list[Outcome] | None = None
        self._oldest_outcome_at = 0.0

    def run(self) -> None:
        """Works until the worker is told to leave, has done its number of tasks, or the ledger disowns it."""
        try:
            while not self._slot.is_leaving() and self._tasks_left != 0:
                if self.held:
                    self._run_next()
                else:
                    self._refill()
            self.hand_over()
        except LeaveNow:
            self.hand_over()
        except WorkerGone:
            # These were handed in without an answer just before, or would have been now.
            for outcome in self.outcomes:
                logger.warning(
                    "the result of task %s is dropped unless it had arrived before: this worker has been taken for "
                    "lost",
                    outcome.claim.task_id,
                )
        except (NetworkGone, NetworkLostError) as reason:
            # What stands in running_tasks under this worker's name is put right by the agent.
            logger.debug("worker leaves: %r", reason)

    def fetch(self, read: Callable[[], bytes]) -> bytes:
        """Reads from the ledger what a call needs; remembers if it is the ledger that fails, and not the call."""
        try:
            with self.lock:
                self.receive()
                return read()
        except (NetworkGone, WorkerGone, NetworkLostError, Refused) as error:
            self.fetch_error = error
            raise

    def hand_over(self) -> None:
        """Hands in every outcome, and gives back every claim that was not started."""
        with self.lock:
            self.receive()
            outcomes, claims = _take(self.outcomes), _take(self.held)
            try:
                if outcomes:
                    _tell_refused(self._ledger.finish(outcomes))
                    outcomes = []
                if claims:
                    self._ledger.release(claims)
                    claims = []
            except BaseException:
                # Not lost: the loop's next call may succeed.
                self.outcomes.extendleft(reversed(outcomes))
                self.held.extendleft(reversed(claims))
                raise

    def _refill(self) -> None:
        """Hands in what is done and claims more; where few were queued at the last claim, it waits if there is none.

        That takes one trip also if there is something; for many an ordinary claim is cheaper to read.
        """
        self.busy.clear()
        limit = self._limit()
        waits = self._n_queued <= _FEW
        with self.lock:
            if self.held:
                # The courier could not give them back. A claim would bring them a second time.
                return
            if self._asked is not None:
                self.receive()
                return
            outcomes = _take(self.outcomes)
            try:
                if waits and any(len(outcome.body) >= LARGE_PAYLOAD for outcome in outcomes):
                    # Not along with the wait: broken off while it writes a blob, it would leave one that nobody links.
                    _tell_refused(self._ledger.finish(outcomes))
                    outcomes = []
                self.is_waiting = waits
                if self._slot.is_leaving():
                    # The signal came before the line above: nobody would end the wait.
                    raise LeaveNow
                claimed = self._ledger.exchange(
                    outcomes, limit=limit, wait=waits, rests=self._is_over is None, when_over=self._end_wait
                )
            except BaseException:
                self.is_waiting = False
                self.outcomes.extendleft(reversed(outcomes))
                raise
            self.is_waiting = False
        if self._is_over is not None and not claimed.claims and self._is_over():
            self._slot.set_leaving()
        self._took(claimed)

    def _end_wait(self) -> None:
        self.is_waiting = False

    def _limit(self) -> int:
        return self._pace.limit if self._tasks_left is None else min(self._pace.limit, self._tasks_left)

    def _ask(self, running: str, limit: int) -> None:
        """Hands in what is done and claims more, while the last of the tasks at hand runs: its answer is there then.

        What is claimed so is in nobody's hands while that task runs. Should it take long, the courier gives it back.
        """
        with self.lock:
            if self.held:
                # As in `_refill`.
                return
            outcomes = _take(self.outcomes)
            self._asked = outcomes
            try:
                self._ledger.ask(outcomes, limit=limit, known=[running])
            except BaseException:
                self._asked = None
                self.outcomes.extendleft(reversed(outcomes))
                raise

    def receive(self) -> None:
        """Takes the answer to what was asked; under the lock, before the ledger is used for anything else."""
        asked, self._asked = self._asked, None
        if asked is None:
            return
        try:
            claimed = self._ledger.answer(asked)
        except BaseException:
            self.outcomes.extendleft(reversed(asked))
            raise
        self._took(claimed)

    def _took(self, claimed: Claimed) -> None:
        self._n_queued = claimed.n_queued
        if claimed.refused:
            _tell_refused(claimed.refused)
        if claimed.claims:
            self.held.extend(claimed.claims)
            self._pace.claimed()

    def _run_next(self) -> None:
        try:
            claim = self.held.popleft()
        except IndexError:
            # The courier was quicker.
            return
        key = self._decoder.function_key(claim.payload)
        # The call of a large payload is not here yet, and moving it takes time: it counts as unknown.
        if (self.held or self.outcomes) and (claim.blob_id or not self._pace.is_short(key)):
            # Nothing that is done, or could be had elsewhere, waits behind a task of unknown length.
            self.hand_over()
        self.n_started += 1
        if self._tasks_left is not None:
            self._tasks_left -= 1
        # Only where there is plenty: not the last tasks, which another worker could start at once. And only where few
        # make a batch: a worker that never sleeps is no longer preferred by the operating system, which on a busy
        # machine takes the processor from it in the middle of a batch; the courier then gives that back.
        if self._n_queued > 1 and not self.held and not claim.blob_id and self._pace.is_short(key):
            limit = self._limit()
            if 1 < limit <= _FEW and self._n_queued > limit:
                self._ask(claim.task_id, limit)
        if (self.held or self.outcomes or self._asked is not None) and not self.busy.is_set():
            # Should this task take long, the courier looks after the rest. Said anew for each: it may have looked a
            # moment ago, when what lies here now was not here yet.
            self.busy.set()
        started_at = time.perf_counter()
        outcome = self._run(claim)
        ended_at = time.perf_counter()
        self._pace.ran(key, ended_at - started_at)
        if claim.is_once:
            # Until the outcome is told this worker's death is the task's: otherwise it would be run a second time.
            with self.lock:
                self.receive()
                _tell_refused(self._ledger.finish([outcome]))
            self._slot.end()
            return
        self._slot.end()
        if not self.outcomes:
            self._oldest_outcome_at = ended_at
        self.outcomes.append(outcome)
        if self.held and ended_at - self._oldest_outcome_at > BATCH_S:
            with self.lock:
                self.receive()
                _tell_refused(self._ledger.finish(_take(self.outcomes)))

    def _run(self, claim: Claim) -> Outcome:
        decoder, task_id = self._decoder, claim.task_id
        if claim.timeout_s:
            self._slot.begin(task_id, time.monotonic() + _LOADING_S + claim.timeout_s, claim.timeout_s)
        else:
            self._slot.begin(task_id)
        try:
            body = self._call(claim)
            is_failure = False
        except BaseException as error:  # noqa: BLE001
            if self.is_copy:
                _end_copy(error)
            self.is_in_task = False
            self._end_client(is_failure=True)
            if self.fetch_error is not None:
                # It was not run, and what hinders it is not its own: somebody else may run it.
                self._slot.end()
                raise self.fetch_error from None
            # SystemExit, KeyboardInterrupt and their kind are the task's outcome, not the worker's end.
            body = decoder.encode_failure(task_id, error, trim=_OWN_FRAMES)
            is_failure = True
        if self.is_copy:
            _end_copy(None)
        _flush_streams()
        if self.signals is not None:
            self.signals.put_back()
        return Outcome(claim, is_failure, body)

    def _call(self, claim: Claim) -> bytes:
        payload = claim.payload
        if claim.blob_id:
            try:
                payload = self.fetch(lambda: self._ledger.read_blob(claim.blob_id))
            except KeyError:
                raise PayloadError(f"the payload of task {claim.task_id} is gone from the server") from None
        task_id = claim.task_id
        call = self._decoder.decode_call(client_of(task_id), task_id, payload)
        if claim.timeout_s:
            self._start_clock(claim.timeout_s)
        self.is_in_task = True
        if call.is_chunk:
            values, failure = run_chunk(call.fn, call.args[0])
            self.is_in_task = False
            self._end_client(is_failure=failure is not None)
            return self._decoder.encode_chunk(task_id, values, failure)
        value = call.fn(*call.args, **call.kwargs)
        self.is_in_task = False
        if self.task_client is not None:
            self._end_client(is_failure=False)
        return self._decoder.encode_result(task_id, value)

    def _end_client(self, *, is_failure: bool) -> None:
        """What the task has submitted ends before the task does: a client that knows its end knows that of all."""
        client = self.task_client
        if client is not None and not self.is_copy:
            self.task_client = None
            client.end(is_failure=is_failure)

    def wake_agent(self) -> None:
        """Has the agent look at the slot."""
        wake_agent(self._agent_pid)

    def _start_clock(self, timeout_s: float) -> None:
        """The time limit is the call's. A new worker, in the place of one that was killed, loads everything anew.

        Were that the call's time, a task would pay for the one before, and, killed for it, have the next one pay.
        """
        self._slot.set_limit(time.monotonic() + timeout_s, timeout_s)
        if timeout_s < _LOOKED_AT_S:
            # It looks by itself, but not so often.
            self.wake_agent()


def _take(queue: deque[_T]) -> list[_T]:
    taken: list[_T] = []
    try:
        while True:
            taken.append(queue.popleft())
    except IndexError:
        return taken


def _end_copy(error: BaseException | None) -> NoReturn:
    """Ends a process that a task has forked, and that came back here, as Python ends one."""
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    _flush_streams()
    os._exit(code)


def _flush_streams() -> None:
    """What a task printed is out before its outcome is."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            # Closed or replaced by the task: its own doing.
            continue


def _tell_refused(refused: list[str]) -> None:
    for task_id in refused:
        logger.warning(
            "the result of task %s came too late and is dropped: the task was taken from this worker, which had been "
            "taken for lost",
            task_id,
        )
