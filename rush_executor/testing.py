"""For tests of code that uses RushExecutor: a throw-away server, and a look at what is left on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rush_executor._ledger.connection import connect, open_pool
from rush_executor._ledger.server import EmbeddedServer

__all__ = ["keys_left", "temporary_server"]


@contextlib.contextmanager
def temporary_server() -> Iterator[str]:
    """Starts a private server, for executors and workers that are to share one.

    Yields:
        Its URL, for ``RushExecutor(url=...)``. The server ends with the block, or with this process.

    Raises:
        ServerError: No server could be started.
    """
    server = EmbeddedServer.start()
    try:
        server.wait_ready()
        yield server.url
    finally:
        server.stop()


def keys_left(url: str) -> list[str]:
    """Keys of all networks on a server, sorted: none once every executor was shut down and every worker has left."""
    pool = open_pool(url)
    try:
        return sorted(key.decode(errors="replace") for key in connect(pool).scan_iter(match="rush:*", count=1000))
    finally:
        pool.disconnect()
