"""What an operator does to a network from outside: cancel, end and retry tasks, stop and restart workers.

Works for both kinds of networks, where it can be done: of an executor's task nothing is left that could be run again.
Called by the command line. Whoever shares one between threads brings a lock.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from rush_executor._ledger.client import CancelReply, Uplink
from rush_executor._ledger.connection import Channel
from rush_executor._ledger.overview import OverviewReader, TaskPeek
from rush_executor._ledger.tasks import TaskLedger
from rush_executor._protocol.keys import Keys
from rush_executor._protocol.states import CANCELLED, FAILED, QUEUED, RUNNING

__all__ = ["CANCELLED_TEXT", "KILLED_ANSWER", "Controller"]

CANCELLED_TEXT: Final = "Cancelled from outside"
# What is answered for a task that is being ended.
KILLED_ANSWER: Final = "killed"
# A task that was claimed along with others may be given back in some milliseconds, and then be cancelled.
_HELD_PAUSE_S: Final = 0.01
_MOST_LOOKS: Final = 3


class Controller:
    """Changes one network.

    Args:
        channel: A connection.
        keys: Of the network.
        keeps: Whether it keeps its tasks.
    """

    def __init__(self, channel: Channel, keys: Keys, *, keeps: bool) -> None:
        self._channel = channel
        self._keys = keys
        self._keeps = keeps
        self._reader = OverviewReader(channel, keys)
        self._ledger = TaskLedger(channel, keys)

    def cancel(self, task_ids: Sequence[str], *, kill: bool = False) -> dict[str, str]:
        """Takes tasks out of the queue: an executor's is cancelled, its Future too; one that is kept has failed.

        Args:
            task_ids: The tasks.
            kill: End those that are running, with their workers.

        Returns:
            For each task ``cancelled``, ``killed`` (it ends in a moment), or the state that it is in; empty for one
            that there is not.
        """
        answers: dict[str, str] = {}
        left = list(dict.fromkeys(task_ids))
        for n_looks in range(_MOST_LOOKS):
            if n_looks:
                # One was claimed between the two, or is about to be given back.
                time.sleep(_HELD_PAUSE_S)
            peeks = self._reader.peek(left)
            answers |= dict.fromkeys(left, "") | {peek.task_id: peek.state for peek in peeks}
            answers |= dict.fromkeys(self._take_back([peek for peek in peeks if peek.state == QUEUED]), CANCELLED)
            if kill:
                running = [peek.task_id for peek in peeks if peek.state == RUNNING]
                answers |= dict.fromkeys(filter(self._uplink().kill, running), KILLED_ANSWER)
            left = [task for task in left if answers[task] in (QUEUED, RUNNING)]
            if not left:
                break
        return answers

    def _take_back(self, peeks: Sequence[TaskPeek]) -> list[str]:
        own = [peek.task_id for peek in peeks if not peek.client_id]
        cancelled = self._ledger.remove(CANCELLED_TEXT, own) if own else []
        for client in {peek.client_id for peek in peeks} - {""}:
            ids = [peek.task_id for peek in peeks if peek.client_id == client]
            replies = self._uplink(client).cancel(ids)
            cancelled += [task for task, reply in zip(ids, replies, strict=True) if reply is CancelReply.CANCELLED]
        return cancelled

    def cancel_queued(self) -> list[str]:
        """Cancels all queued tasks; returns their ids."""
        if self._keeps:
            return self._ledger.remove(CANCELLED_TEXT)
        cancelled: list[str] = []
        while ids := self._reader.some_tasks(QUEUED, 1000):
            new = [task for task, answer in self.cancel(ids).items() if answer == CANCELLED]
            if not new:
                break
            cancelled += new
        return cancelled

    def retry(self, task_ids: Sequence[str] | None) -> dict[str, str]:
        """Queues failed tasks again, whether they have a retry left or not.

        Args:
            task_ids: Which; None for all.

        Returns:
            For each task ``queued``, or the state that it is in; empty for one that there is not.
        """
        ids = (
            self._reader.some_tasks(FAILED, self._reader.look().n_failed)
            if task_ids is None
            else list(dict.fromkeys(task_ids))
        )
        states = dict.fromkeys(ids, "") | {peek.task_id: peek.state for peek in self._reader.peek(ids)}
        failed = [(task, b"") for task, state in states.items() if state == FAILED]
        return states | dict.fromkeys(self._ledger.retry(failed, ignore_max_retries=True), QUEUED)

    def ask_worker(self, worker_id: str, agent_id: str, how: str) -> None:
        """Asks that a worker end.

        Args:
            worker_id: The worker.
            agent_id: Its agent.
            how: See `TaskLedger.stop_worker`.
        """
        self._ledger.stop_worker(worker_id, agent_id, how)

    def _uplink(self, client_id: str = "") -> Uplink:
        """On behalf of a client: it is told what becomes of its tasks, as ever."""
        return Uplink(self._channel, self._keys, client_id, lease_ms=0)
