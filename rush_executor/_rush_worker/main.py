"""What a freshly forked worker of a network that keeps its tasks does: find out what to run, join, run it, leave."""

from __future__ import annotations

import faulthandler
import logging
import random
import sys
import time
import traceback
from typing import Any, Final

from rush_executor._config import LogSettings
from rush_executor._ledger.connection import NetworkGone, WorkerGone
from rush_executor._ledger.logs import LogWriter
from rush_executor._ledger.tasks import TaskLedger
from rush_executor._payload import Decoder
from rush_executor._rush_worker.seat import Seat
from rush_executor._rush_worker.worker import RushWorker
from rush_executor._worker.logs import WorkerLog, start_logging
from rush_executor._worker.main import WorkerSettings
from rush_executor._worker.signals import LeaveNow, WorkerSignals, watch_forks
from rush_executor.errors import NetworkLostError, PayloadError

__all__ = ["run_rush_worker"]

logger = logging.getLogger(__name__)

_LOOK_FOR_START_S: Final = 0.2
_EXIT_LOOP_FAILED: Final = 1
# Frames between the process's begin and the user's loop.
_OWN_FRAMES: Final = 1


def run_rush_worker(settings: WorkerSettings, start_id: str) -> int:
    """Lives the life of a worker.

    Args:
        settings: As for any worker.
        start_id: What to run; empty for the latest that somebody has said, which is waited for.

    Returns:
        Exit code of the process: 0 when the loop has returned, 1 when it has failed.
    """
    seat = Seat(settings.config, settings.worker_id, settings.record.epoch, settings.slot, settings.agent_pid)
    seat.slot_is_watched = True
    log: WorkerLog | None = None
    try:
        loop, kwargs, logs = _wait_for_start(seat, start_id)
        writer = LogWriter.connect(seat.config.url, seat.keys, seat.worker_id, settings.record.epoch, cap=logs.cap)
        log = start_logging(logs, writer, seat.current_task)
        seat.register(settings.agent_id)
        log.open()
        return _run_loop(seat, loop, kwargs)
    except (NetworkGone, WorkerGone, NetworkLostError) as reason:
        logger.debug("worker leaves: %r", reason)
        return 0
    except PayloadError as error:
        _tell(settings.worker_id, error)
        return _EXIT_LOOP_FAILED
    finally:
        if log is not None:
            log.close()


def _run_loop(seat: Seat, loop: Any, kwargs: dict[str, Any]) -> int:
    if not faulthandler.is_enabled():
        faulthandler.enable(2, all_threads=False)
    WorkerSignals(seat, seat.slot).install()
    watch_forks(seat.channel, seat)
    # Forked from one process, all workers would draw the same numbers.
    random.seed()
    worker = RushWorker.at(seat)
    try:
        loop(worker, **kwargs)
    except LeaveNow:
        pass
    except (NetworkGone, WorkerGone, NetworkLostError) as reason:
        logger.debug("worker leaves: %r", reason)
    except BaseException as error:  # noqa: BLE001 - even SystemExit: a loop that ends so has not been asked to
        if isinstance(error, SystemExit) and not error.code:
            return 0
        error.__traceback__ = _without_own(error.__traceback__)
        _tell(seat.worker_id, error)
        return _EXIT_LOOP_FAILED
    return 0


def _tell(worker_id: str, error: BaseException) -> None:
    """To stderr, where other workers write as well, and so into the log; the agent keeps the last line."""
    text = "".join(traceback.format_exception(error))
    sys.stderr.write(f"worker {worker_id} has ended, its loop has failed\n{text}")
    sys.stderr.flush()


def _wait_for_start(seat: Seat, start_id: str) -> tuple[Any, dict[str, Any], LogSettings]:
    ledger = TaskLedger(seat.channel, seat.keys)
    while (body := ledger.read_start(start_id)) is None:
        time.sleep(_LOOK_FOR_START_S)
    decoder = Decoder(seat.config.network_id, seat.config.secret, _no_functions)
    loop, (kwargs, logs) = decoder.decode_initializer("", body)
    return loop, kwargs, LogSettings.from_bytes(logs)


def _no_functions(_client_id: str, digest: str) -> bytes:
    raise KeyError(digest)


def _without_own(tb: Any) -> Any:
    for _ in range(_OWN_FRAMES):
        tb = tb.tb_next if tb is not None else None
    return tb
