"""What a freshly forked worker does: connect, initialise, register, work, leave.

Called by the agent in the child process; returns the exit code. The agent never hears of the worker through a pipe:
the slot says whether it was ready and what it was at, the exit code how it ended.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import threading
import traceback
from dataclasses import dataclass, field
from types import FrameType
from typing import Final, Protocol

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
from rush_executor._worker.loop import LeaveNow, TaskLoop
from rush_executor.errors import NetworkLostError

__all__ = [
    "EXIT_INITIALIZER",
    "Interruptible",
    "WorkerSettings",
    "install_signal_handlers",
    "run_worker",
    "watch_forks",
]

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
        wake_fd: A byte written here has the agent look at the slot.
    """

    config: NetworkConfig
    record: NetworkRecord
    agent_id: str
    worker_id: str
    host: str
    max_tasks: int | None
    slot: Slot = field(repr=False)
    wake_fd: int


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
    loop = TaskLoop(ledger, lock, decoder, settings.slot, max_tasks=settings.max_tasks, wake_fd=settings.wake_fd)
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
        install_signal_handlers(loop)
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


class Interruptible(Protocol):
    """What the signals of a worker's process are about.

    Attributes:
        is_leaving: It was told to end.
        is_waiting: It waits for work: nothing is lost if that is broken off.
        is_in_task: It runs a user's code.
        is_copy: This process is a child that a task has forked, and no worker.
    """

    is_leaving: bool
    is_waiting: bool
    is_in_task: bool
    is_copy: bool


def install_signal_handlers(loop: Interruptible) -> None:
    """Has SIGTERM and SIGINT do what people expect of them."""

    def leave(signum: int, _frame: FrameType | None) -> None:
        """SIGTERM: finish the running task, hand back the rest, leave; a second one means now."""
        if loop.is_leaving:
            os._exit(128 + signum)
        loop.is_leaving = True
        if loop.is_waiting:
            raise LeaveNow

    def interrupt(_signum: int, _frame: FrameType | None) -> None:
        """SIGINT: a task that raises it in itself gets its KeyboardInterrupt; between tasks nobody means the worker."""
        if loop.is_in_task:
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, interrupt)


def watch_forks(channel: Channel, loop: Interruptible) -> None:
    """Has a process that a task forks be no worker: signals and the connection are not its own.

    The two signals wait meanwhile: one that a child gets while it still has the worker's handlers would be swallowed,
    and whoever sent it (`Process.terminate`, say) would wait for the child's end for ever.
    """
    blocked: list[set[int | signal.Signals]] = []

    def before() -> None:
        blocked.append(signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT)))

    def restore() -> None:
        if blocked:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked.pop())

    def leave_to_child() -> None:
        loop.is_copy = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        channel.close()
        restore()

    os.register_at_fork(before=before, after_in_parent=restore, after_in_child=leave_to_child)
