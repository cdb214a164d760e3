"""A dict that forgets what was not used for longest.

Knows nothing of payloads; for one thread. Used by the worker's side of the room for functions, their bytes and
namespaces.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["Lru"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Lru(Generic[K, V]):
    """Holds entries up to a number and a total weight; the newest is kept whatever it weighs.

    Args:
        max_entries: Number of entries.
        max_weight: Sum of the weights given to `put`.
    """

    __slots__ = ("_entries", "_max_entries", "_max_weight", "_weight")

    def __init__(self, *, max_entries: int, max_weight: int = 0) -> None:
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._max_entries = max_entries
        self._max_weight = max_weight
        self._weight = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """Returns the entry and makes it the newest."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: K, value: V, *, weight: int = 0) -> None:
        """Adds or replaces an entry, and forgets the oldest as long as there are too many or too heavy ones."""
        self.pop(key)
        self._entries[key] = (value, weight)
        self._weight += weight
        while len(self._entries) > 1 and (
            len(self._entries) > self._max_entries or self._weight > self._max_weight > 0
        ):
            self._weight -= self._entries.popitem(last=False)[1][1]

    def pop(self, key: K) -> V | None:
        """Removes an entry and returns it; None if there is none."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        self._weight -= entry[1]
        return entry[0]
