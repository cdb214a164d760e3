"""What a user has planned, for packages that start workers on the user's behalf.

A package makes a `Rush` and calls `start_workers()`, and need not know where: the plan says it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

from rush_executor._config import cpu_count, default_url, redact
from rush_executor._view.logs import Levels

__all__ = ["Launcher", "RushPlan", "remove_rush_plan", "rush_available", "rush_config", "rush_plan"]

# Starts what a script says: called with the text, or a command that reads it from its standard input.
Launcher = Callable[[str], Any] | Sequence[str]


@dataclass(frozen=True, kw_only=True)
class RushPlan:
    """A plan; see `rush_plan`.

    Attributes:
        n_workers: How many workers.
        url: The server; None for a private one.
        worker_type: ``"local"`` or ``"remote"``.
        launcher: Starts remote workers.
        large_objects_path: Folder for what is too large for the server.
        log_levels: Levels of loggers in the workers.
        buffer_size: Records that a worker collects before it sends them; None for the usual number.
        start_worker_timeout: How long workers are waited for, in seconds; None for ever.
    """

    n_workers: int
    url: str | None = field(default=None, repr=False)
    worker_type: Literal["local", "remote"] = "local"
    launcher: Launcher | None = None
    large_objects_path: str | None = None
    log_levels: Levels = None
    buffer_size: int | None = None
    start_worker_timeout: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        remove_rush_plan(self)

    def __str__(self) -> str:
        where = redact(self.url) if self.url else "a private server"
        return f"{self.n_workers} {self.worker_type} workers on {where}"


_plans: list[RushPlan] = []


def rush_plan(
    n_workers: int | None = None,
    url: str | None = None,
    *,
    worker_type: Literal["local", "remote"] = "local",
    launcher: Launcher | None = None,
    large_objects_path: str | None = None,
    log_levels: Levels = None,
    buffer_size: int | None = None,
    start_worker_timeout: float | None = None,
) -> RushPlan:
    """Says where a `Rush` of this process works that is not told otherwise.

    Args:
        n_workers: How many workers; by default one per CPU.
        url: The server; by default `RUSH_URL` of the environment, or else a private one.
        worker_type: What `Rush.start_workers` starts: ``"local"`` ones, or ``"remote"`` ones by the launcher.
        launcher: See `Rush.start_workers`.
        large_objects_path: See `Rush`.
        log_levels: See `Rush.start_local_workers`; also for those that are started elsewhere.
        buffer_size: As `log_levels`.
        start_worker_timeout: Timeout of `Rush.wait_for_workers` where none is given.

    Returns:
        The plan. As a context manager it is removed at the end of the block, and the one before is valid again.

    Raises:
        ValueError: Remote workers without a launcher, or without a server that they can reach.
    """
    if worker_type not in ("local", "remote"):
        raise ValueError(f"worker_type must be 'local' or 'remote', not {worker_type!r}")
    url = url or default_url()
    if worker_type == "remote" and (launcher is None or url is None):
        raise ValueError("remote workers need a launcher, and a url that they can reach")
    if n_workers is not None and n_workers < 1:
        raise ValueError("n_workers must be >= 1")
    plan = RushPlan(
        n_workers=n_workers or cpu_count(),
        url=url,
        worker_type=worker_type,
        launcher=launcher,
        large_objects_path=large_objects_path,
        log_levels=log_levels,
        buffer_size=buffer_size,
        start_worker_timeout=start_worker_timeout,
    )
    _plans.append(plan)
    return plan


def rush_config() -> RushPlan | None:
    """The plan that is valid now; None when there is none."""
    return _plans[-1] if _plans else None


def rush_available() -> bool:
    """Whether there is a plan."""
    return bool(_plans)


def remove_rush_plan(plan: RushPlan | None = None) -> None:
    """Removes a plan, by default all."""
    if plan is None:
        _plans.clear()
    else:
        # The very one: another may say the same.
        _plans[:] = [each for each in _plans if each is not plan]
