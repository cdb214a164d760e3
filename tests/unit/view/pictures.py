"""Pictures of networks, made by hand."""

from __future__ import annotations

from typing import Final

from rush_executor._view.lookout import Picture, TaskLine, WorkerLine

__all__ = ["EMPTY", "worker"]

EMPTY: Final = Picture(
    network="demo",
    kind="calls",
    is_durable=False,
    is_broken=False,
    is_restoring=False,
    looked_at=1_800_000_000.0,
    epoch="e",
    n_queued=0,
    n_running=0,
    n_ended=0,
    n_failed=0,
    n_clients=1,
    n_agents=0,
    n_workers_ended={},
    workers=[],
)


def worker(name: str, *, what: str = "", since: float | None = None, state: str = "idle") -> WorkerLine:
    """A worker; one that runs something if it is said what."""
    task = TaskLine(f"t-{name}", "running", what, name, 2, None, since, None) if what else None
    return WorkerLine(name, "running" if task else state, "host", 7, "agent", None, 1 if task else 0, 0, task)
