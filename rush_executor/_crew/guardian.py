"""A process that ends a server when the process that has started it dies.

For a command that runs a server and nothing else: an executor's server is ended by its agent. The guardian is a fork
that waits for the end of a pipe; only while one thread runs may it be made.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

from rush_executor._ledger.server import ServerGuard

__all__ = ["guarded"]


@contextlib.contextmanager
def guarded(server: ServerGuard) -> Iterator[None]:
    """Has a server ended at the end of the block, or of this process: also by SIGKILL."""
    pipe_r, pipe_w = os.pipe()
    pid = os.fork()
    if not pid:
        _guard(server, pipe_r, pipe_w)
    os.close(pipe_r)
    try:
        yield
    finally:
        os.close(pipe_w)
        os.waitpid(pid, 0)


def _guard(server: ServerGuard, pipe_r: int, pipe_w: int) -> None:
    try:
        # Whatever ends the other one must not end this one with it.
        os.setsid()
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        os.close(pipe_w)
        # Who waits for the end of what the command prints need not wait for this one.
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(nowhere, descriptor)
        os.read(pipe_r, 1)
        server.end()
    finally:
        os._exit(0)
