"""What workers write to stderr: passed on to the agent's own, and the end of it kept for the day the worker dies.

Each worker has a pipe to its agent. The agent must never wait for its own stderr (a terminal that was stopped, a pipe
that nobody reads): it reads from the workers only what it can pass on, so that the one who waits is the worker, as it
would be if it wrote there itself.
"""

from __future__ import annotations

import contextlib
import os
import select
from typing import Final

__all__ = ["StderrRelay", "WorkerStderr"]

_TAIL_BYTES: Final = 8192
_TAIL_LINES: Final = 40
# What can be written without waiting when `select` says so: the least that POSIX allows PIPE_BUF to be, and more does
# not fit into a terminal either.
_PIECE: Final = 512


class WorkerStderr:
    """The agent's end of one worker's stderr.

    Args:
        fd: To read from; does not block.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._tail = b""

    def read(self, size: int = 65536) -> bytes | None:
        """What has come; None at the end, nothing when there is nothing yet."""
        try:
            data = os.read(self.fd, size)
        except BlockingIOError:
            return b""
        if not data:
            return None
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        return data

    def last_lines(self) -> str:
        """The last lines, for people."""
        return "\n".join(self._tail.decode(errors="replace").splitlines()[-_TAIL_LINES:])


class StderrRelay:
    """Passes on what workers write to stderr."""

    def __init__(self) -> None:
        self._streams: dict[int, WorkerStderr] = {}
        self._unwritten = b""

    def add(self, stream: WorkerStderr) -> None:
        """A worker was forked."""
        self._streams[stream.fd] = stream

    def wanted(self) -> tuple[list[int], list[int]]:
        """Descriptors to wait for: to read from, and to write to."""
        return ([], [2]) if self._unwritten else (list(self._streams), [])

    def step(self, readable: list[int], writable: list[int]) -> None:
        """Does what can be done without waiting."""
        if writable:
            self._write(_PIECE)
        for fd in readable:
            if fd in self._streams and not self._unwritten:
                self._take(self._streams[fd])

    def finish(self, stream: WorkerStderr) -> str:
        """The worker has ended: reads the rest; returns its last lines."""
        while stream.fd in self._streams and self._take(stream):
            pass
        return stream.last_lines()

    def close(self, patience_s: float) -> None:
        """Passes on what is left, unless nobody takes it for so long."""
        for stream in list(self._streams.values()):
            self.finish(stream)
        while self._unwritten and select.select([], [2], [], patience_s)[1]:
            self._write(_PIECE)

    def disown(self) -> None:
        """In a forked worker: closes its copies."""
        for fd in self._streams:
            os.close(fd)
        self._streams.clear()
        self._unwritten = b""

    def _take(self, stream: WorkerStderr) -> bool:
        data = stream.read()
        if data is None:
            # Everybody who could write has ended: the worker, and what its tasks started.
            del self._streams[stream.fd]
            os.close(stream.fd)
            return False
        self._unwritten += data
        with contextlib.suppress(OSError, ValueError):
            while self._unwritten and select.select([], [2], [], 0)[1]:
                self._write(_PIECE)
        return bool(data)

    def _write(self, size: int) -> None:
        try:
            n = os.write(2, self._unwritten[:size])
        except OSError:
            # Closed, or the other end is: nobody wants to read it.
            self._unwritten = b""
        else:
            self._unwritten = self._unwritten[n:]
