"""The executors that joblib's calls share: one for each set of arguments, kept for the next call, closed when idle.

    Parallel call ----- take -----> open pool of the same settings, or a new one
                  <---- give_back   the pool is idle as soon as nothing of it is taken
    rush-joblib-idle                a timer, one for each open pool: closes it when it has been idle for long enough

Must not know joblib. Backends take a pool for each batch that they submit. At interpreter exit the executors end by
themselves; in a forked child there are none, as the parent's are the parent's.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from rush_executor._config import thread_settings

if TYPE_CHECKING:
    from rush_executor._executor.executor import RushExecutor

__all__ = ["POOLS", "Pool", "Pools", "Settings"]

# Pools that are kept idle besides the one that a call asks for. With none, two that are asked for by turns would be
# started each time; with many, a program that varies an argument would fill the machine with idle workers.
_MOST_OTHERS: Final = 1


@dataclass(frozen=True)
class Settings:
    """What an executor is made with. Two calls with equal settings share one.

    Attributes:
        arguments: Of `RushExecutor`.
        idle_s: After how many seconds without a task it is closed.
        threads: What the environment says about threads of numerical libraries, which workers learn at their start.
    """

    arguments: Mapping[str, Any] = field(repr=False)  # a secret may be among them
    idle_s: float
    threads: Mapping[str, str]

    @classmethod
    def now(cls, arguments: Mapping[str, Any], idle_s: float) -> Settings:
        """Settings in the environment as it is now."""
        return cls(arguments, idle_s, thread_settings())

    def is_same(self, other: Settings) -> bool:
        """Whether both are equal; what cannot be compared, such as an array in ``initargs``, is not."""
        try:
            return bool(self == other)
        except Exception:  # noqa: BLE001 - the arguments are the user's, and may raise anything when compared
            return False


class Pool:
    """An open executor.

    Attributes:
        settings: What it was made with.
        executor: It.
        n_taken: How many times it was taken and not given back.
        idle_at: Since when that has been 0.
        timer: Will look whether it is still needed.
    """

    timer: threading.Timer

    def __init__(self, settings: Settings) -> None:
        # Not above: this module is imported by workers as well, which need no client.
        from rush_executor._executor.executor import RushExecutor  # noqa: PLC0415

        self.settings = settings
        self.executor: RushExecutor = RushExecutor(**settings.arguments)
        self.n_taken = 0
        self.idle_at = time.monotonic()


class Pools:
    """The open pools of a process; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[Pool] = []

    def take(self, settings: Settings) -> Pool:
        """Returns an open pool, which stays open until it is given back.

        Raises:
            Exception: What `RushExecutor` raises when it cannot be made.
        """
        with self._lock:
            for pool in self._open.copy():
                if pool.executor._broken:  # noqa: SLF001 - the standard library's name for it
                    self._close(pool)
            found = next((pool for pool in self._open if pool.settings.is_same(settings)), None)
            if found is None:
                self._close_others()
                found = Pool(settings)
                self._open.append(found)
                self._look_later(found, settings.idle_s)
            found.n_taken += 1
            return found

    def give_back(self, pool: Pool) -> None:
        """The caller does not need the pool any more."""
        with self._lock:
            pool.n_taken -= 1
            pool.idle_at = time.monotonic()

    def close_all(self) -> None:
        """Closes what is open, when its tasks have ended, and waits for that."""
        with self._lock:
            pools, self._open = self._open, []
        for pool in pools:
            pool.timer.cancel()
            pool.executor.shutdown()

    def disown(self) -> None:
        """In a forked child: none of these is the child's, and a thread of the parent may have held the lock."""
        self._lock = threading.Lock()
        self._open = []

    def _close_others(self) -> None:
        idle = sorted((pool for pool in self._open if not pool.n_taken), key=lambda pool: pool.idle_at)
        for pool in idle[: len(idle) - _MOST_OTHERS]:
            self._close(pool)

    def _close_if_idle(self, pool: Pool) -> None:
        with self._lock:
            if pool not in self._open:
                return
            idle_s = 0.0 if pool.n_taken else time.monotonic() - pool.idle_at
            if idle_s >= pool.settings.idle_s:
                self._close(pool)
            else:
                self._look_later(pool, pool.settings.idle_s - idle_s)

    def _close(self, pool: Pool) -> None:
        self._open.remove(pool)
        pool.timer.cancel()
        pool.executor.shutdown(wait=False)

    def _look_later(self, pool: Pool, pause_s: float) -> None:
        pool.timer = threading.Timer(min(pause_s, threading.TIMEOUT_MAX), self._close_if_idle, (pool,))
        pool.timer.name = "rush-joblib-idle"
        pool.timer.daemon = True
        pool.timer.start()


# State of the process: calls that know nothing of each other share its pools.
POOLS: Final = Pools()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=POOLS.disown)
