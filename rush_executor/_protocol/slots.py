"""The layout of a worker's slot: the few bytes through which its agent knows what it is at.

The agent maps a page that it shares with each worker it forks. The worker writes the id of the task it is about to
decode and run, and clears it when the outcome is encoded; when the worker dies, the agent reads who was guilty. The
length byte is zeroed first and written last, so that a death between two of the writes reads as "nothing was running"
rather than as half an id.

A worker that dies before it said that it is ready died of its start, not of a task.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import Any

__all__ = ["SLOT_SIZE", "Slot"]

SLOT_SIZE = 264
_LENGTH = 0
_READY = 1
_ID = 8


class Slot:
    """One worker's slot.

    Args:
        buffer: `SLOT_SIZE` writable bytes, shared between agent and worker.
    """

    __slots__ = ("_buffer",)

    def __init__(self, buffer: Any) -> None:
        self._buffer: MutableSequence[Any] = buffer

    def set_ready(self) -> None:
        """The worker has done its start: connected, initialised, registered."""
        self._buffer[_READY] = 1

    def is_ready(self) -> bool:
        """Whether the worker has done its start."""
        return bool(self._buffer[_READY])

    def begin(self, task_id: str) -> None:
        """The worker starts on this task."""
        raw = task_id.encode()
        buffer = self._buffer
        buffer[_LENGTH] = 0
        buffer[_ID : _ID + len(raw)] = raw
        buffer[_LENGTH] = len(raw)

    def end(self) -> None:
        """The task's outcome is encoded."""
        self._buffer[_LENGTH] = 0

    def current(self) -> str:
        """The task that is being run, empty when there is none."""
        length = self._buffer[_LENGTH]
        return bytes(self._buffer[_ID : _ID + length]).decode()
