"""The layout of a worker's slot: the few bytes through which its agent knows what it is at.

The agent maps a page that it shares with each worker it forks. The worker writes the id of the task it is about to
decode and run, and clears it when the outcome is encoded; when the worker dies, the agent reads who was guilty. The
length byte is zeroed first and written last, so that a death between two of the writes reads as "nothing was running"
rather than as half an id.

A worker that dies before it said that it is ready died of its start, not of a task. One that waits says so: its task
has submitted others and they have not all ended, so the agent sees to it that somebody runs them.

One byte goes the other way: that the worker is to leave, which the worker looks at before each task and each claim.
"""

from __future__ import annotations

import struct
from typing import Any, Final

__all__ = ["SLOT_SIZE", "Slot"]

SLOT_SIZE = 280
_LENGTH = 0
_READY = 1
_WAITING = 2
_LEAVING = 3
_LIMITS = 8
_ID = 24
_limits: Final = struct.Struct("<dd")
_NO_LIMITS: Final = _limits.pack(0.0, 0.0)


class Slot:
    """One worker's slot.

    Args:
        buffer: `SLOT_SIZE` writable bytes, shared between agent and worker.

    Attributes:
        begun: The task that this process has begun, empty when there is none: what the worker itself asks for, often.
    """

    __slots__ = ("_buffer", "begun")

    def __init__(self, buffer: Any) -> None:
        self._buffer = buffer
        self.begun = ""

    def set_ready(self) -> None:
        """The worker has done its start: connected, initialised, registered."""
        self._buffer[_READY] = 1

    def is_ready(self) -> bool:
        """Whether the worker has done its start."""
        return bool(self._buffer[_READY])

    def set_waiting(self, *, is_waiting: bool) -> None:
        """Whether the task may be waiting for others, which somebody else must run."""
        self._buffer[_WAITING] = is_waiting

    def is_waiting(self) -> bool:
        """Whether the task may be waiting for others."""
        return bool(self._buffer[_WAITING])

    def set_leaving(self) -> None:
        """The worker is to leave when it has done what it runs; nobody takes that back."""
        self._buffer[_LEAVING] = 1

    def is_leaving(self) -> bool:
        """Whether the worker is to leave."""
        return bool(self._buffer[_LEAVING])

    def begin(self, task_id: str, end_at: float = 0.0, timeout_s: float = 0.0) -> None:
        """The worker starts on this task, which must have ended at a time; zeros for no limit: see `limits`."""
        raw = task_id.encode()
        buffer = self._buffer
        buffer[_LENGTH] = 0
        buffer[_LIMITS:_ID] = _limits.pack(end_at, timeout_s) if timeout_s else _NO_LIMITS
        buffer[_ID : _ID + len(raw)] = raw
        buffer[_LENGTH] = len(raw)
        self.begun = task_id

    def set_limit(self, end_at: float, timeout_s: float) -> None:
        """The task that was begun must have ended at another time."""
        self._buffer[_LIMITS:_ID] = _limits.pack(end_at, timeout_s)

    def end(self) -> None:
        """The task's outcome is encoded."""
        self._buffer[_LENGTH] = 0
        self.begun = ""

    def current(self) -> str:
        """The task that the worker is running, empty when there is none."""
        length = self._buffer[_LENGTH]
        return bytes(self._buffer[_ID : _ID + length]).decode(errors="replace")

    def limits(self) -> tuple[float, float]:
        """When the task must have ended, on the clock that all processes of a machine share, and its time limit.

        In seconds; zeros for no limit. Read from the agent while the worker writes, it may be neither's of two tasks:
        who is about to act on it stops the worker first and reads again.
        """
        limits: tuple[float, float] = _limits.unpack(bytes(self._buffer[_LIMITS:_ID]))
        return limits if self._buffer[_LENGTH] else (0.0, 0.0)
