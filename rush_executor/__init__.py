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
    from rush_executor._executor.executor import RushExecutor
    from rush_executor.errors import (
        InitializerError,
        NetworkLostError,
        PayloadError,
        RemoteError,
        RemoteTraceback,
        RushError,
        ServerError,
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
    "RushError",
    "RushExecutor",
    "RushFuture",
    "ServerError",
    "TaskKilledError",
    "TaskTimeoutError",
    "WorkerLostError",
    "__version__",
]

__version__ = "0.1.0"

_HOMES = {"RushExecutor": "rush_executor._executor.executor", "RushFuture": "rush_executor._client.future"}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: an agent needs no client, `rush-executor --help` neither."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES.get(name, "rush_executor.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
