"""What the process of an agent runs: puts the agent and the workers' task loop together.

An executor starts it as a fresh interpreter (`crew.py`), `rush-executor worker` calls `run_agent` in its own process.
A fresh interpreter, because forking workers from the client would copy its threads' locks and everything that the user
has loaded; from a warm agent a worker costs milliseconds.
"""

from __future__ import annotations

import gc
import os
import pickle
import socket
import sys
from collections.abc import Callable
from dataclasses import replace

from rush_executor._agent.supervisor import EXIT_SERVER_LOST, AgentSettings, Supervisor
from rush_executor._ledger.agent import NetworkRecord
from rush_executor._protocol.slots import Slot
from rush_executor._worker.main import EXIT_INITIALIZER, WorkerSettings, run_worker
from rush_executor.errors import NetworkLostError

__all__ = ["main", "run_agent"]


def main(owner_fd: int) -> None:
    """Runs the agent of an executor.

    Args:
        owner_fd: Pipe from the owner; its settings come first.
    """
    with os.fdopen(os.dup(owner_fd), "rb", buffering=0) as pipe:
        settings: AgentSettings = pickle.load(pipe)  # noqa: S301 - from the process that started this one
    try:
        run_agent(replace(settings, owner_fd=owner_fd))
    except NetworkLostError:
        # Most often the owner's own connections tell it so.
        sys.exit(EXIT_SERVER_LOST)


def run_agent(settings: AgentSettings, when_ready: Callable[[], None] | None = None) -> None:
    """Runs an agent in this process, until it is told to leave.

    Raises:
        NetworkLostError: The server stayed away for longer than the grace.
    """
    # What is here now stays as long as the agent: no collection needs to look at it, and so to copy it, in a worker.
    # Not now either: imports leave next to no garbage, and looking for it took a fifth of their time.
    gc.freeze()
    gc.enable()
    Supervisor(
        settings, _worker_main, initializer_exit=EXIT_INITIALIZER, when_ready=when_ready, warm_up=_import_client
    ).run()


def _import_client() -> None:
    """What a task needs that submits tasks itself, imported here once: most agents need none of it."""
    import rush_executor._client.session  # noqa: F401, PLC0415


def _worker_main(settings: AgentSettings, network: NetworkRecord, worker_id: str, slot: Slot) -> int:
    worker = WorkerSettings(
        config=settings.config,
        record=network,
        agent_id=settings.agent_id,
        worker_id=worker_id,
        host=socket.gethostname(),
        max_tasks=settings.max_tasks_per_child,
        slot=slot,
        agent_pid=os.getppid(),
    )
    if network.keeps:
        from rush_executor._rush_worker.main import run_rush_worker  # noqa: PLC0415 - most agents need none of it

        return run_rush_worker(worker, settings.start_id)
    return run_worker(worker)
