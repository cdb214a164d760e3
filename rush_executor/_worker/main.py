"""What a freshly forked worker does: connect, initialise, register, work, leave.

Called by the agent in the child process; returns the exit code. The agent never hears of the worker through a pipe:
the slot says whether it was ready and what it was at, the exit code how it ended.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import traceback
from dataclasses import dataclass, field
from typing import Final

from rush_executor._config import NetworkConfig
from rush_executor._ledger.agent import NetworkRecord, break_network
from rush_executor._ledger.connection import Channel, NetworkGone, WorkerGone, open_pool
from rush_executor._ledger.worker import WorkerLedger
from rush_executor._payload import Decoder
from rush_executor._protocol.keys import Keys
from rush_executor._protocol.slots import Slot
from rush_executor._shared.cache import HostCache
from rush_executor._worker.courier import start_courier
from rush_executor._worker.files import TaskFiles
from rush_executor._worker.here import Here, settle
from rush_executor._worker.loop import TaskLoop
from rush_executor._worker.signals import LeaveNow, WorkerSignals, watch_forks
from rush_executor.errors import NetworkLostError

__all__ = ["EXIT_INITIALIZER", "WorkerSettings", "run_worker"]

logger = logging.getLogger(__name__)

# The initializer failed, and the network has been told.
EXIT_INITIALIZER: Final = 78


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """What one worker must know.

    Attributes:
        config: The network.
        record: The network as the agent found it.
        agent_id: The worker's agent.
        worker_id: The worker.
        host: Host name of this machine.
        max_tasks: Leave after so many tasks; None for never.
        slot: Shared with the agent.
        agent_pid: The process of the agent, which looks at the slot when it is woken.
    """

    config: NetworkConfig
    record: NetworkRecord
    agent_id: str
    worker_id: str
    host: str
    max_tasks: int | None
    slot: Slot = field(repr=False)
    agent_pid: int


def run_worker(settings: WorkerSettings) -> int:
    """Lives the life of a worker.

    Returns:
        Exit code of the process.
    """
    config, keys = settings.config, Keys(settings.config.network_id)
    channel = Channel(open_pool(config.url), reconnect_timeout_s=config.reconnect_timeout_s)
    ledger = WorkerLedger(
        channel, keys, settings.worker_id, settings.record.epoch, is_durable=settings.record.is_durable
    )
    lock = threading.Lock()

    def fetch(client_id: str, digest: str) -> bytes:
        return loop.fetch(lambda: ledger.function(client_id, digest))

    cache = HostCache(settings.agent_id)

    def files_of(client_id: str) -> TaskFiles:
        return TaskFiles(client_id, cache, fetch, keeps_results=not settings.record.is_durable)

    decoder = Decoder(config.network_id, config.secret, fetch, files_of)
    loop = TaskLoop(ledger, lock, decoder, settings.slot, max_tasks=settings.max_tasks, agent_pid=settings.agent_pid)
    try:
        text = _initialize(decoder, settings.record)
        if text is not None:
            break_network(channel, keys, settings.record.epoch, text)
            return EXIT_INITIALIZER
        ledger.register(settings.agent_id, settings.host, os.getpid())
        settings.slot.set_ready()
        if not faulthandler.is_enabled():
            # Where a crash was: the client is told the last lines of stderr.
            faulthandler.enable(2, all_threads=False)
        loop.signals = WorkerSignals(loop, settings.slot)
        loop.signals.install()
        watch_forks(channel, loop)
        start_courier(loop)
        settle(Here(config, settings.record, settings.worker_id, ledger=ledger, loop=loop, slot=settings.slot))
        loop.run()
    except (LeaveNow, NetworkGone, WorkerGone, NetworkLostError) as reason:
        logger.debug("worker leaves: %r", reason)
    return 0


def _initialize(decoder: Decoder, record: NetworkRecord) -> str | None:
    """Runs the network's initializer; returns what went wrong, or None."""
    if not record.initializer:
        return None
    try:
        fn, args = decoder.decode_initializer(record.creator, record.initializer)
        fn(*args)
    except BaseException as error:  # noqa: BLE001 - even SystemExit: the client must learn that no worker starts
        # Without this frame: it is the user's code that failed.
        own = error.__traceback__
        return "".join(traceback.format_exception(type(error), error, own.tb_next if own else None))
    return None
