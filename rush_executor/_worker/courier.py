"""The courier: a thread that looks after what lies in the worker while its main thread runs a task.

A batch is claimed when its tasks are expected to be short. When one takes longer all the same, the courier hands in
what is done and gives back what was not started, so that no result is held up and no task waits behind it. It is
asleep unless something lies here while a task runs; then it looks every few milliseconds.

Started and abandoned (daemon) by `main.py`; touches the loop's deques and its connection, under its lock. A task that
keeps the GIL in C code for long keeps the courier waiting too (docs/decisions/0005).
"""

from __future__ import annotations

import logging
import threading
import time

from rush_executor._ledger.connection import NetworkGone, Refused, WorkerGone
from rush_executor._worker.loop import TaskLoop
from rush_executor._worker.pace import BATCH_S
from rush_executor.errors import NetworkLostError, ServerError

__all__ = ["start_courier"]

logger = logging.getLogger(__name__)


def start_courier(loop: TaskLoop) -> None:
    """Starts the thread."""
    threading.Thread(target=_run, args=(loop,), name="rush-courier", daemon=True).start()


def _run(loop: TaskLoop) -> None:
    while True:
        loop.busy.wait()
        n_started = loop.n_started
        time.sleep(BATCH_S)
        if loop.n_started == n_started and loop.busy.is_set():
            loop.busy.clear()
            try:
                loop.hand_over()
            except (NetworkGone, WorkerGone, NetworkLostError, Refused, ServerError):
                # The loop meets the same at its next call, and leaves.
                logger.debug("the courier could not hand over", exc_info=True)
