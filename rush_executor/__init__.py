"""RushExecutor: `concurrent.futures.Executor` on a Redis or Valkey server.

from rush_executor import RushExecutor

with RushExecutor() as executor:
    print(list(executor.map(lambda x: x * x, range(10))))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rush_executor._client.future import RushFuture
    from rush_executor._crew.alone import start_worker
    from rush_executor._executor.executor import RushExecutor
    from rush_executor._executor.nested import current_executor
    from rush_executor._executor.progress import progress
    from rush_executor._network.plan import remove_rush_plan, rush_available, rush_config, rush_plan
    from rush_executor._network.rush import Rush
    from rush_executor._network.rush import Rush as rsh  # noqa: N813 - as it is called in R
    from rush_executor._payload import RushReference
    from rush_executor._rush_worker.loops import worker_loop_default, worker_loop_process
    from rush_executor._rush_worker.seeds import with_rng_state
    from rush_executor._rush_worker.worker import RushWorker
    from rush_executor._view.table import TaskTable
    from rush_executor.errors import (
        InitializerError,
        NetworkLostError,
        PayloadError,
        RemoteError,
        RemoteTraceback,
        RushError,
        ServerError,
        SnapshotError,
        TaskKilledError,
        TaskTimeoutError,
        WorkerLostError,
    )

__all__ = [
    "InitializerError",
    "NetworkLostError",
    "PayloadError",
    "RemoteError",
    "RemoteTraceback",
    "Rush",
    "RushError",
    "RushExecutor",
    "RushFuture",
    "RushReference",
    "RushWorker",
    "ServerError",
    "SnapshotError",
    "TaskKilledError",
    "TaskTable",
    "TaskTimeoutError",
    "WorkerLostError",
    "__version__",
    "current_executor",
    "progress",
    "remove_rush_plan",
    "rsh",
    "rush_available",
    "rush_config",
    "rush_plan",
    "start_worker",
    "with_rng_state",
    "worker_loop_default",
    "worker_loop_process",
]

__version__ = "0.1.0"

_HOMES = {
    "Rush": "rush_executor._network.rush",
    "RushExecutor": "rush_executor._executor.executor",
    "RushFuture": "rush_executor._client.future",
    "RushReference": "rush_executor._payload",
    "RushWorker": "rush_executor._rush_worker.worker",
    "TaskTable": "rush_executor._view.table",
    "current_executor": "rush_executor._executor.nested",
    "progress": "rush_executor._executor.progress",
    "remove_rush_plan": "rush_executor._network.plan",
    "rsh": "rush_executor._network.rush",
    "rush_available": "rush_executor._network.plan",
    "rush_config": "rush_executor._network.plan",
    "rush_plan": "rush_executor._network.plan",
    "start_worker": "rush_executor._crew.alone",
    "with_rng_state": "rush_executor._rush_worker.seeds",
    "worker_loop_default": "rush_executor._rush_worker.loops",
    "worker_loop_process": "rush_executor._rush_worker.loops",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: an agent needs no client, `rush-executor --help` neither."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(_HOMES.get(name, "rush_executor.errors"))
    value = getattr(home, "Rush" if name == "rsh" else name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
