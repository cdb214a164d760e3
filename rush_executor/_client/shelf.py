"""Which functions, sent by value, the server has of this client.

A function is stored when the first task that needs it is sent, and is kept while a task needs it, and then for a
while: the next call of the same lambda should not carry it again. Its body is kept here as long as a task needs it that
may have to be pushed again to a server that has lost it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

__all__ = ["FunctionShelf"]

# Functions that no pending task needs are kept at the server up to this number.
_MOST_IDLE: Final = 64


class FunctionShelf:
    """Counts the pending tasks of each function; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_pending: dict[str, int] = {}
        self._unsent: dict[str, bytes] = {}
        self._stored: set[str] = set()
        self._idle: OrderedDict[str, None] = OrderedDict()
        self._kept: dict[str, bytes] = {}

    def hold(self, digest: str, body: bytes, *, keep: bool = False) -> int:
        """A task that needs this function was submitted.

        Args:
            digest: The function.
            body: Its bytes.
            keep: Whether to keep them until no task needs the function any more.

        Returns:
            How many bytes are kept from now on that were not before.
        """
        with self._lock:
            n = self._n_pending.get(digest, 0)
            self._n_pending[digest] = n + 1
            self._idle.pop(digest, None)
            if digest not in self._stored:
                self._unsent.setdefault(digest, body)
            if not keep or digest in self._kept:
                return 0
            self._kept[digest] = body
            return len(body)

    def release(self, digest: str) -> int:
        """A task that needed this function has ended; returns how many bytes are kept no more."""
        with self._lock:
            n = self._n_pending[digest] - 1
            if n:
                self._n_pending[digest] = n
                return 0
            del self._n_pending[digest]
            self._unsent.pop(digest, None)
            if digest in self._stored:
                self._idle[digest] = None
            return len(self._kept.pop(digest, b""))

    def forget_sent(self) -> None:
        """The server has lost its data, and these functions with it."""
        with self._lock:
            self._stored.clear()
            self._idle.clear()
            self._unsent.update(self._kept)

    def unsent(self, digests: Iterable[str]) -> list[tuple[str, bytes]]:
        """Those of these functions that must be sent, with their bodies."""
        with self._lock:
            return [(digest, self._unsent[digest]) for digest in set(digests) if digest in self._unsent]

    def sent(self, digests: Iterable[str]) -> None:
        """The server has these functions now."""
        with self._lock:
            for digest in digests:
                self._unsent.pop(digest, None)
                self._stored.add(digest)
                if digest not in self._n_pending:
                    self._idle[digest] = None

    def take_excess(self) -> list[str]:
        """Functions to delete at the server, the least recently used first."""
        if len(self._idle) <= _MOST_IDLE:
            return []
        with self._lock:
            excess = [self._idle.popitem(last=False)[0] for _ in range(len(self._idle) - _MOST_IDLE)]
            self._stored.difference_update(excess)
            return excess
