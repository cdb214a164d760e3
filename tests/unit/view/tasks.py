"""Rows to make tables of."""

from __future__ import annotations

from typing import Any

from rush_executor._view.table import TaskRow

BEGAN = 1_760_000_000.0  # 2025-10-09 08:53:20 UTC
FIXED = ["key", "state", "worker_id", "condition", "pushed_at", "started_at", "ended_at", "attempts"]


def with_columns(*names: str) -> list[str]:
    """All columns of a table that has these besides those that every table has."""
    return [*FIXED[:2], *names, *FIXED[2:]]


def finished(i: int = 0, **fields: Any) -> TaskRow:
    """A finished task: x1, x2 and y."""
    row = TaskRow(
        key=f"key-{i}",
        state="finished",
        xs={"x1": i, "x2": i / 4},
        ys={"y": i + i / 4},
        extra={},
        worker_id="worker-1",
        condition=None,
        pushed_at=BEGAN + i,
        started_at=BEGAN + i + 0.25,
        ended_at=BEGAN + i + 0.5,
        attempts=1,
    )
    return row._replace(**fields)


def queued(i: int = 0, **fields: Any) -> TaskRow:
    """A task that nobody has begun yet."""
    waiting = {"state": "queued", "ys": {}, "worker_id": "", "started_at": None, "ended_at": None, "attempts": 0}
    return finished(i, **waiting)._replace(**fields)


def failed(i: int = 0, condition: BaseException | None = None, **fields: Any) -> TaskRow:
    """A task that failed."""
    return finished(i, state="failed", ys={}, condition=condition or ValueError(f"no {i}"))._replace(**fields)


def holding(*values: Any) -> list[TaskRow]:
    """Tasks with these as their input v."""
    return [finished(i, xs={"v": value}, ys={}) for i, value in enumerate(values)]
