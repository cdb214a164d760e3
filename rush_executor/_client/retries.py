"""Failed tasks that wait to be pushed again."""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import time
from typing import Final, NamedTuple

from rush_executor._client.future import RushFuture
from rush_executor._protocol.records import NewTask

__all__ = ["Parcel", "RetryQueue", "pause_before"]

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 30.0
# From here on the doubling is beyond the longest pause, and in the end beyond a float.
_MOST_DOUBLINGS: Final = 10


class Parcel(NamedTuple):
    """A task on its way out, and its Future."""

    future: RushFuture
    task: NewTask


def pause_before(n: int) -> float:
    """Seconds to wait before the n-th retry. Jitter, so that what failed together does not come back together."""
    pause_s = min(_FIRST_PAUSE_S * 2.0 ** min(n - 1, _MOST_DOUBLINGS), _LONGEST_PAUSE_S)
    return pause_s * random.uniform(0.5, 1.0)  # noqa: S311


class RetryQueue:
    """Parcels by the time at which they are due; shared by the listener, which puts, and the dispatcher, which takes.

    Parcels of Futures that were resolved meanwhile are still in here; whoever sends looks.
    """

    def __init__(self) -> None:
        # Only those two threads come here, and Ctrl-C is the main thread's.
        self._lock = threading.Lock()
        self._heap: list[tuple[float, int, Parcel]] = []
        self._numbers = itertools.count()

    def put(self, parcel: Parcel) -> None:
        """Has the parcel wait for as long as its number of retries says."""
        due_at = time.monotonic() + pause_before(parcel.task.retries)
        with self._lock:
            heapq.heappush(self._heap, (due_at, next(self._numbers), parcel))

    def take_due(self) -> list[Parcel]:
        """Takes what is due by now."""
        due: list[Parcel] = []
        if self._heap:
            now = time.monotonic()
            with self._lock:
                while self._heap and self._heap[0][0] <= now:
                    due.append(heapq.heappop(self._heap)[2])
        return due

    def pause_s(self) -> float | None:
        """How long nothing is due; None when nothing waits."""
        with self._lock:
            return max(0.0, self._heap[0][0] - time.monotonic()) if self._heap else None
