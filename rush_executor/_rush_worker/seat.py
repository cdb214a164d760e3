"""Where a worker sits: its connections, its place among its network's workers, and who supervises it.

A worker that an agent has forked is supervised by it. One that somebody has made at a prompt stands alone: a thread
gives its signs of life, and hears what others want of it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from typing import Final, Self

from rush_executor._config import NetworkConfig
from rush_executor._ledger.agent import CHARGE_ALL, AgentLedger
from rush_executor._ledger.connection import Channel, NetworkGone, Refused, WorkerGone, open_pool
from rush_executor._ledger.tasks import TaskLedger
from rush_executor._ledger.views import NetworkReader
from rush_executor._ledger.worker import WorkerLedger
from rush_executor._payload.rows import RowCodec
from rush_executor._protocol.keys import Keys
from rush_executor._protocol.records import KILL, RESTART, TERMINATE, Loss
from rush_executor._protocol.slots import SLOT_SIZE, Slot
from rush_executor._protocol.states import TERMINATED
from rush_executor._worker.signals import wake_agent
from rush_executor.errors import NetworkLostError

__all__ = ["ALL_TASKS", "Seat"]

logger = logging.getLogger(__name__)

# In the slot of a worker that is at several tasks.
ALL_TASKS: Final = CHARGE_ALL
_LISTEN_S: Final = 0.5


class Seat:
    """A worker's place in a network.

    Args:
        config: The network.
        worker_id: The worker.
        epoch: Which creation of the network it works for.
        slot: Shared with the agent; None for a worker that stands alone.
        agent_pid: The process of the agent, which looks at the slot when it is woken; 0 for none.
    """

    def __init__(
        self, config: NetworkConfig, worker_id: str, epoch: str, slot: Slot | None = None, agent_pid: int = 0
    ) -> None:
        self.config = config
        self.worker_id = worker_id
        self.keys = Keys(config.network_id)
        self.pool = open_pool(config.url)
        self.channel = self.open_channel()
        self.lock = threading.Lock()
        self.codec = RowCodec(config.network_id, config.secret, is_worker=True)
        self.ledger = WorkerLedger(self.channel, self.keys, worker_id, epoch, keeps=True)
        self.tasks = TaskLedger(self.channel, self.keys)
        self.reader = NetworkReader(self.channel, self.keys)
        self.slot = slot or Slot(bytearray(SLOT_SIZE))
        self.agent_pid = agent_pid
        # Whether this process is a worker's and nothing else, so that its signals are meant for the worker.
        self.slot_is_watched = False
        # For the signal handlers, as in `TaskLoop`.
        self.is_waiting = False
        self.is_in_task = True
        self.is_copy = False
        self._pulse: _Pulse | None = None

    @classmethod
    def alone(cls, config: NetworkConfig, worker_id: str) -> Self:
        """Takes a seat for a worker without an agent; the network is created if there is none.

        Raises:
            WrongKind: The network does not keep its tasks.
        """
        epoch = TaskLedger(Channel(open_pool(config.url), reconnect_timeout_s=0.0), Keys(config.network_id)).found()
        seat = cls(config, worker_id, epoch)
        seat._pulse = _Pulse(seat)
        seat.register(worker_id)
        return seat

    def open_channel(self) -> Channel:
        """Makes another connection for this worker."""
        return Channel(self.pool, reconnect_timeout_s=self.config.reconnect_timeout_s)

    def register(self, agent_id: str) -> None:
        """Joins the network.

        Raises:
            WorkerGone: The agent has not announced this worker, or has taken it off the lists.
        """
        self.tasks.found()
        self.ledger.folder = self.tasks.folder
        self.ledger.register(agent_id, socket.gethostname(), os.getpid())
        self.slot.set_ready()

    def current_task(self) -> str:
        """The task that this worker is at; empty for none, or for several."""
        task = self.slot.begun
        return "" if task == ALL_TASKS else task

    def wake_agent(self) -> None:
        """Has the agent look at the slot now."""
        wake_agent(self.agent_pid)

    def leave(self) -> None:
        """Ends a worker that stands alone; what it holds is put right."""
        pulse, self._pulse = self._pulse, None
        if pulse is not None:
            pulse.end()
        self.pool.disconnect()


class _Pulse:
    """The signs of life of a worker that stands alone: it is its own agent."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._channel = Channel(seat.pool, reconnect_timeout_s=0.0)
        self._ledger = AgentLedger(self._channel, seat.keys, seat.worker_id, socket.gethostname())
        self._is_over = threading.Event()
        self._pid = os.getpid()
        self._ledger.beat(int(seat.config.heartbeat_ttl_s * 1000))
        self._ledger.announce_worker(seat.worker_id)
        self._thread = threading.Thread(target=self._run, name="rush-worker-pulse", daemon=True)
        self._thread.start()

    def end(self) -> None:
        if os.getpid() != self._pid:
            # A fork of the worker is no worker.
            return
        self._is_over.set()
        self._thread.join()
        loss = Loss(self._seat.worker_id, socket.gethostname(), os.getpid(), 0, "left")
        with contextlib.suppress(NetworkLostError):
            held = self._seat.slot.current()
            self._ledger.lose_worker(loss, held, how=TERMINATED)
            self._ledger.leave()
        self._channel.close()

    def _run(self) -> None:
        config = self._seat.config
        period_s = min(_LISTEN_S, config.heartbeat_period_s)
        left_s = config.heartbeat_period_s
        while not self._is_over.wait(period_s):
            left_s -= period_s
            try:
                if left_s <= 0:
                    self._ledger.beat(int(config.heartbeat_ttl_s * 1000))
                    left_s = config.heartbeat_period_s
                # Nobody can kill the process that somebody sits in front of: any wish is a request to end.
                wishes = {f"{how}:{self._seat.worker_id}" for how in (TERMINATE, KILL, RESTART)}
                if wishes & set(self._ledger.wanted_ends()):
                    self._seat.slot.set_leaving()
                    self._ledger.drain([self._seat.worker_id])
            except (NetworkLostError, NetworkGone, WorkerGone, Refused) as error:
                logger.debug("no sign of life could be given: %s", error)
