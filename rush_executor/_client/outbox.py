"""Tasks that wait to be sent, and how many may.

When the server takes tasks more slowly than they are submitted, they would pile up here until memory is full. So
whoever submits waits while the outbox is full; the dispatcher, which empties it, and what must be sent again never do.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from typing import Final

from rush_executor._client.retries import Parcel

__all__ = ["Outbox"]

# Far more than is sent in one go, so that the server never waits for a submit, and little beside what a program has.
_MOST_TASKS: Final = 100_000
_MOST_BYTES: Final = 64 * 1024 * 1024


class Outbox:
    """First in, first out; thread-safe, but for `take`, which is for one thread at a time."""

    def __init__(self) -> None:
        self._parcels: deque[Parcel] = deque()
        self._n_bytes = 0
        # Guards the sum alone.
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._parcels)

    @property
    def is_full(self) -> bool:
        """Whether whoever submits is to wait."""
        return len(self._parcels) >= _MOST_TASKS or self._n_bytes >= _MOST_BYTES

    def put(self, parcel: Parcel) -> None:
        """Appends a task, full or not."""
        with self._lock:
            # In this order: Ctrl-C in between makes the sum too small by one task, which does no harm. Too large, it
            # would stay so, and have somebody wait for ever.
            self._parcels.append(parcel)
            self._n_bytes += len(parcel.task.payload)

    def put_all(self, parcels: Iterable[Parcel]) -> None:
        """Appends tasks, full or not."""
        for parcel in parcels:
            self.put(parcel)

    def put_first(self, parcels: list[Parcel]) -> None:
        """Puts tasks, in their order, before all others, full or not."""
        with self._lock:
            self._parcels.extendleft(reversed(parcels))
            self._n_bytes += sum(len(parcel.task.payload) for parcel in parcels)

    def take(self, most: int, most_bytes: int) -> list[Parcel]:
        """Takes the first ones, up to so many or until they have so many bytes; those with an outcome are dropped."""
        waiting, n_bytes, n_dropped_bytes = self._parcels, 0, 0
        parcels: list[Parcel] = []
        while waiting and len(parcels) < most and n_bytes < most_bytes:
            parcel = waiting.popleft()
            # Cancelled before it left.
            if parcel.future.done():
                n_dropped_bytes += len(parcel.task.payload)
            else:
                parcels.append(parcel)
                n_bytes += len(parcel.task.payload)
        with self._lock:
            self._n_bytes -= n_bytes + n_dropped_bytes
        return parcels
