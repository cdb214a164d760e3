"""Which functions, sent by value, and which scattered objects the server has of this client.

One is stored when the first task that needs it is sent, and is kept while a task needs it. A function is kept for a
while longer: the next call of the same lambda should not carry it again. A scattered object is kept until nothing
refers to it. Its bytes are kept here as long as a task needs it that may have to be pushed again to a server that has
lost it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, NamedTuple

from rush_executor._protocol.records import StoredBody, chunk_name

__all__ = ["FunctionShelf"]

# Functions that no pending task needs are kept at the server up to this number, and this size.
_MOST_IDLE: Final = 64
_MOST_IDLE_BYTES: Final = 256 << 20


class _Stored(NamedTuple):
    """What the server has under a name.

    Attributes:
        size: Its bytes, wherever they are.
        n_chunks: How many chunks are stored beside it.
        backing: What has to live as long as it is there.
    """

    size: int
    n_chunks: int = 0
    backing: object = None


class FunctionShelf:
    """Counts the pending tasks of each function; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_pending: dict[str, int] = {}
        self._unsent: dict[str, bytes] = {}
        self._stored: dict[str, _Stored] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()
        self._idle_bytes = 0
        self._kept: dict[str, bytes] = {}
        # Nothing refers to these any more.
        self._unwanted: set[str] = set()

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
            if not n and digest in self._idle:
                del self._idle[digest]
                self._idle_bytes -= self._stored[digest].size
            if digest not in self._stored:
                self._unsent.setdefault(digest, body)
            if not keep or digest in self._kept:
                return 0
            self._kept[digest] = body
            return _weight(body)

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
                self._set_idle(digest)
            return _weight(self._kept.pop(digest, b""))

    def kept(self, name: str) -> bytes | None:
        """What is kept of this, in case that it must be sent again."""
        return self._kept.get(name)

    def replace(self, name: str, body: bytes) -> int:
        """Has something sent again, in another form; returns how many more bytes are kept."""
        with self._lock:
            before = self._kept.get(name)
            if before is None or before is body:
                return 0
            self._stored.pop(name, None)
            self._kept[name] = self._unsent[name] = body
            return _weight(body) - _weight(before)

    def drop(self, name: str) -> None:
        """Nothing refers to this scattered object any more."""
        with self._lock:
            if name in self._stored or name in self._n_pending:
                self._unwanted.add(name)

    def forget_sent(self) -> None:
        """The server has lost its data, and these functions with it."""
        with self._lock:
            self._stored.clear()
            self._idle.clear()
            self._idle_bytes = 0
            self._unsent.update(self._kept)
            self._unwanted.intersection_update(self._n_pending)

    def unsent(self, digests: Iterable[str]) -> list[tuple[str, bytes]]:
        """Those of these functions that must be sent, with their bodies."""
        with self._lock:
            return [(digest, self._unsent[digest]) for digest in set(digests) if digest in self._unsent]

    def sent(self, functions: Iterable[tuple[str, bytes]]) -> None:
        """The server has these functions now."""
        with self._lock:
            for digest, body in functions:
                if self._unsent.get(digest) is body:
                    del self._unsent[digest]
                if isinstance(body, StoredBody):
                    self._stored[digest] = _Stored(body.size, len(body.chunks), body.backing)
                else:
                    self._stored[digest] = _Stored(len(body))
                if digest not in self._n_pending:
                    self._set_idle(digest)

    def has_excess(self) -> bool:
        """Whether there is something to delete at the server."""
        return bool(self._unwanted) or len(self._idle) > _MOST_IDLE or self._idle_bytes > _MOST_IDLE_BYTES

    def take_excess(self) -> list[str]:
        """Names of what is to be deleted at the server, the least recently used first."""
        if not self.has_excess():
            return []
        names: list[str] = []
        with self._lock:
            for name in [name for name in self._unwanted if name in self._idle]:
                names += self._take_idle(name)
            while len(self._idle) > _MOST_IDLE or (self._idle_bytes > _MOST_IDLE_BYTES and len(self._idle) > 1):
                names += self._take_idle(next(iter(self._idle)))
            self._unwanted.intersection_update(self._n_pending)
        return names

    # The lock is held.

    def _set_idle(self, name: str) -> None:
        if name not in self._idle:
            self._idle_bytes += self._stored[name].size
        self._idle[name] = None

    def _take_idle(self, name: str) -> list[str]:
        del self._idle[name]
        stored = self._stored.pop(name)
        self._idle_bytes -= stored.size
        return [name, *(chunk_name(name, number) for number in range(stored.n_chunks))]


def _weight(body: bytes) -> int:
    return len(body) + (sum(map(len, body.chunks)) if isinstance(body, StoredBody) else 0)
