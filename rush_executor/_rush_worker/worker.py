"""`RushWorker`: what a worker's loop is given, to take tasks, to make some of its own, and to see those of others."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

from rush_executor._client.pusher import TaskPusher, as_error, per_task
from rush_executor._config import NetworkConfig, chosen_secret, default_url
from rush_executor._ledger.connection import IDLE_BLOCK_S, WrongKind, check_server
from rush_executor._ledger.logs import LogReader
from rush_executor._ledger.tasks import KeptTask
from rush_executor._ledger.views import NetworkReader
from rush_executor._ledger.worker import Outcome
from rush_executor._payload.rows import EXTRA, XS, YS
from rush_executor._protocol.ids import new_id
from rush_executor._protocol.keys import check_network_id
from rush_executor._protocol.names import check_names
from rush_executor._protocol.records import Claim
from rush_executor._protocol.states import RUNNING
from rush_executor._rush_worker.seat import ALL_TASKS, Seat
from rush_executor._view.reader import NetworkView
from rush_executor._worker.signals import LeaveNow
from rush_executor.errors import PayloadError, RushError, ServerError

__all__ = ["PoppedTask", "RushWorker"]

logger = logging.getLogger(__name__)


class PoppedTask(NamedTuple):
    """A task that this worker is to run.

    Attributes:
        key: Its id.
        xs: Its inputs.
        seed: Its seed; None for none. See `with_rng_state`.
        timeout: How long this attempt may take, in seconds; None for any time. The worker is killed when it overstays.
    """

    key: str
    xs: dict[str, Any]
    seed: int | None
    timeout: float | None


class _Held(NamedTuple):
    """A task that this worker holds."""

    claim: Claim
    xs: Mapping[str, Any]
    extra: Mapping[str, Any]
    end_at: float
    # How it was made, as long as nobody knows whether that has arrived.
    unconfirmed: KeptTask | None


class RushWorker(NetworkView, TaskPusher):
    """A worker of a network. Not thread-safe: a worker has one loop.

    A loop that `Rush.start_local_workers` runs is given one. Made by hand, at a prompt or in a script, it joins the
    network as a worker that nobody supervises; `close` it, or use it as a context manager.

    Args:
        network_id: The network.
        url: Server; by default `RUSH_URL` of the environment.
        worker_id: Its id; by default a fresh one.
        secret: See `RushExecutor`.
        heartbeat_period: See `RushExecutor`.
        heartbeat_expire: See `RushExecutor`.
        reconnect_timeout: See `RushExecutor`.

    Raises:
        ServerError: The server does not answer, or there is no url.
        RushError: The network is an executor's.
    """

    def __init__(
        self,
        network_id: str,
        url: str | None = None,
        worker_id: str | None = None,
        *,
        secret: str | bytes | None = None,
        heartbeat_period: float = 3.0,
        heartbeat_expire: float = 15.0,
        reconnect_timeout: float = 60.0,
    ) -> None:
        url = url or default_url()
        if url is None:
            raise ServerError("no server: pass url, or set RUSH_URL")
        check_server(url)
        config = NetworkConfig(
            url=url,
            network_id=check_network_id(network_id),
            secret=chosen_secret(secret),
            heartbeat_period_s=heartbeat_period,
            heartbeat_expire_s=heartbeat_expire,
            reconnect_timeout_s=reconnect_timeout,
        )
        try:
            seat = Seat.alone(config, worker_id or new_id())
        except WrongKind:
            raise RushError(f"network {network_id!r} is a RushExecutor's: choose another network_id") from None
        self._sit(seat)

    @classmethod
    def at(cls, seat: Seat) -> Self:
        """The worker of a seat that was taken already."""
        worker = cls.__new__(cls)
        worker._sit(seat)  # noqa: SLF001
        return worker

    def _sit(self, seat: Seat) -> None:
        self._seat = seat
        self.network_id = seat.config.network_id
        self.worker_id = seat.worker_id
        self._ledger = seat.tasks
        self._ledger_lock = seat.lock
        self._is_found = True
        self._held: dict[str, _Held] = {}
        self._can_mute = seat.channel.can_mute()
        self._open_view(
            seat.reader,
            seat.lock,
            lambda: NetworkReader(seat.open_channel(), seat.keys),
            self._another_log_reader(),
            seat.codec,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the network, if this worker was made by hand. What it holds fails, or is queued again if it may be."""
        self._seat.leave()

    @property
    def terminated(self) -> bool:
        """Whether somebody wants this worker to end: a loop asks before each task, it costs nothing."""
        return self._seat.slot.is_leaving()

    @property
    def terminated_on_idle(self) -> bool:
        """Whether the worker is to end because the queue is empty: see `terminate_workers` of `push_tasks`."""
        if self._seat.slot.is_leaving():
            return True
        with self._ledger_lock:
            return self._ledger.is_terminated_on_idle()

    def pop_task(self, timeout: float = 1.0, *, is_limited: bool = True) -> PoppedTask | None:
        """Takes the next task: of those for this worker alone first. It is running from now on.

        One whose inputs cannot be read here has failed, and the next is taken.

        Args:
            timeout: Seconds to wait for one.
            is_limited: False if the caller sees to the task's own timeout; otherwise the worker is killed for it.

        Returns:
            None when there was none in time, or the worker is to end.

        Raises:
            NetworkGone: The network was reset.
            WorkerGone: This worker has been taken for lost.
        """
        give_up_at = time.monotonic() + timeout
        while True:
            claim = self._claim(max(0.0, give_up_at - time.monotonic()))
            if claim is None:
                return None
            try:
                xs, seed = self._open(claim)
            except PayloadError as error:
                # That task's failure, not the worker's.
                self._hand_in([Outcome(claim, True, self._codec.encode_failure(claim.task_id, error))])  # noqa: FBT003
                continue
            end_at = time.monotonic() + claim.timeout_s if claim.timeout_s and is_limited else math.inf
            self._hold(_Held(claim, xs, {}, end_at, None))
            return PoppedTask(claim.task_id, xs, seed, claim.timeout_s or None)

    def push_running_tasks(
        self, xss: Iterable[Mapping[str, Any]], *, extra: Iterable[Mapping[str, Any]] | None = None
    ) -> list[str]:
        """Makes tasks that this worker has begun to run; the others see them as running.

        Args:
            xss: Inputs of each task.
            extra: What is to be known beside them, for each task.

        Returns:
            Keys of the tasks.

        Raises:
            WorkerGone: This worker has been taken for lost.
        """
        rows = list(xss)
        extras = [{}] * len(rows) if extra is None else per_task("extra", extra, len(rows))
        stem = new_id()
        encode = self._codec.encode
        tasks: list[KeptTask] = []
        for i, (row, more) in enumerate(zip(rows, extras, strict=True), 1):
            check_names(row, {}, more)
            key = f"{stem}-{i}"
            tasks.append(KeptTask(key, encode(XS, key, dict(row)), encode(EXTRA, key, dict(more)) if more else b""))
        # One is made without waiting for an answer: that it has arrived shows when it ends.
        is_muted = self._can_mute and len(tasks) == 1
        with self._ledger_lock:
            self._ledger.create(RUNNING, tasks, self.worker_id, wait=not is_muted)
        for task, row, more in zip(tasks, rows, extras, strict=True):
            claim = Claim(task.task_id, 0, b"")
            self._held[task.task_id] = _Held(claim, row, more, math.inf, task if is_muted else None)
        self._mark()
        return [task.task_id for task in tasks]

    def finish_tasks(
        self,
        keys: str | Iterable[str],
        yss: Iterable[Mapping[str, Any]] | Mapping[str, Any],
        *,
        extra: Iterable[Mapping[str, Any]] | Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Hands in the results of tasks that this worker holds.

        Args:
            keys: The tasks.
            yss: Results of each; one mapping for one task.
            extra: What is to be known beside them.

        Returns:
            Keys of the tasks that are finished now. Others were taken from this worker: their results are dropped.

        Raises:
            ValueError, TypeError: A name is taken, or no string; nothing was sent.
            PayloadError: A result cannot be pickled; nothing was sent.
        """
        keys = [keys] if isinstance(keys, str) else list(keys)
        results = per_task("yss", yss, len(keys))
        extras = [{}] * len(keys) if extra is None else per_task("extra", extra, len(keys))
        encode = self._codec.encode
        outcomes = []
        for key, ys, more in zip(keys, results, extras, strict=True):
            held = self._held.get(key)
            check_names(held.xs if held else {}, ys, {**held.extra, **more} if held else more)
            packed = encode(EXTRA, key, dict(more)) if more else b""
            outcomes.append(Outcome(_claim_of(key, held), False, encode(YS, key, dict(ys)), packed))  # noqa: FBT003
        return self._hand_in(outcomes)

    def fail_tasks(
        self, keys: str | Iterable[str], conditions: Iterable[BaseException | str] | BaseException | str
    ) -> list[str]:
        """Says that tasks that this worker holds have failed.

        Args:
            keys: The tasks.
            conditions: Why, for all or for each: an exception, or a text.

        Returns:
            Keys of the tasks that have failed now. Others were taken from this worker.
        """
        keys = [keys] if isinstance(keys, str) else list(keys)
        errors = per_task("conditions", conditions, len(keys))
        encode = self._codec.encode_failure
        return self._hand_in(
            [
                Outcome(_claim_of(key, self._held.get(key)), True, encode(key, as_error(error)))  # noqa: FBT003
                for key, error in zip(keys, errors, strict=True)
            ]
        )

    def hand_in_encoded(self, key: str, body: bytes, *, is_failure: bool) -> list[str]:
        """Hands in an outcome that was encoded elsewhere."""
        return self._hand_in([Outcome(_claim_of(key, self._held.get(key)), is_failure, body)])

    # As they were called before.
    push_results = finish_tasks
    push_failed = fail_tasks

    def _another_log_reader(self) -> LogReader:
        return LogReader(self._seat.open_channel(), self._seat.keys)

    def _claim(self, timeout: float) -> Claim | None:
        seat, end_at = self._seat, time.monotonic() + timeout
        while True:
            wait_s = min(IDLE_BLOCK_S, end_at - time.monotonic())
            try:
                with seat.lock:
                    seat.is_waiting = wait_s > 0
                    if seat.slot.is_leaving():
                        return None
                    # Nothing is to be handed to this worker after the wait: what its caller does then may take long.
                    claimed = seat.ledger.exchange([], limit=1, wait=wait_s > 0, wait_s=wait_s, known=self._held)
                    seat.is_waiting = False
            except LeaveNow:
                return None
            finally:
                seat.is_waiting = False
            if claimed.claims:
                # One, unless replies were lost: what is left over now is given again at the next claim.
                return claimed.claims[0]
            if time.monotonic() >= end_at:
                return None

    def _open(self, claim: Claim) -> tuple[dict[str, Any], int | None]:
        payload = claim.payload
        if claim.blob_id:
            with self._seat.lock:
                try:
                    payload = self._seat.ledger.read_blob(claim.blob_id)
                except KeyError:
                    raise PayloadError(f"the inputs of task {claim.task_id} are gone from the server") from None
        content = self._codec.decode(XS, claim.task_id, payload)
        return content if isinstance(content, tuple) else (content, None)

    def _hold(self, held: _Held) -> None:
        self._held[held.claim.task_id] = held
        self._mark()

    def _mark(self) -> None:
        """Tells the agent what this worker is at: what it charges, or ends, if there is a reason."""
        slot, held = self._seat.slot, self._held
        if not held:
            slot.end()
            return
        first = min(held.values(), key=lambda one: one.end_at) if len(held) > 1 else next(iter(held.values()))
        name = first.claim.task_id if len(held) == 1 else ALL_TASKS
        if first.end_at < math.inf:
            slot.begin(name, first.end_at, first.claim.timeout_s)
            self._seat.wake_agent()
        else:
            slot.begin(name)

    def _hand_in(self, outcomes: list[Outcome]) -> list[str]:
        if not outcomes:
            return []
        keys = [outcome.claim.task_id for outcome in outcomes]
        with self._ledger_lock:
            refused = set(self._seat.ledger.finish(outcomes))
            unsure = [held.unconfirmed for key in refused if (held := self._held.get(key)) and held.unconfirmed]
            if unsure:
                # They were made without an answer, which may have been lost on the way.
                self._ledger.create(RUNNING, unsure, self.worker_id)
                again = {task.task_id for task in unsure}
                refused -= again
                refused |= set(self._seat.ledger.finish([o for o in outcomes if o.claim.task_id in again]))
        for key in keys:
            self._held.pop(key, None)
        self._mark()
        if refused:
            _warn_refused(refused)
        return [key for key in keys if key not in refused]


def _claim_of(key: str, held: _Held | None) -> Claim:
    return held.claim if held else Claim(key, 0, b"")


def _warn_refused(keys: Iterable[str]) -> None:
    for key in keys:
        logger.warning(
            "the result of task %s is dropped: this worker does not hold the task (any more); it may have been taken "
            "for lost",
            key,
        )
