"""What a snapshot of a network consists of: sections, each a kind and some byte strings.

`_ledger/snapshots.py` makes them of a network's keys, and keys of them; `_network/snapshot_file.py` stores them, and
knows no more of them than that the first is HEAD and the last END.

| kind | parts |
|---|---|
| HEAD | one JSON object: `network`, `taken_at`, `sequence`, `on_idle` |
| WORKERS | for each: id, how many strings follow, fields and values of its record |
| BLOB | id of the blob, number of the piece, the piece |
| STARTS | field and value, for each field of `start_args` |
| TASKS | for each: id, how many strings follow, fields and values of its record; its blobs stand before |
| ORDER | ids of finished tasks, in this order; some may be of tasks that are not here, or not as finished ones |
| END | one JSON object: how many tasks in all (`tasks`) and in each state |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from rush_executor._protocol.states import FAILED, FINISHED, QUEUED, RUNNING

__all__ = ["BLOB", "END", "HEAD", "KINDS", "ORDER", "STARTS", "TASKS", "WORKERS", "Counts", "Section"]

HEAD: Final = b"H"
WORKERS: Final = b"W"
BLOB: Final = b"B"
STARTS: Final = b"S"
TASKS: Final = b"T"
ORDER: Final = b"O"
END: Final = b"E"
KINDS: Final = frozenset({HEAD, WORKERS, BLOB, STARTS, TASKS, ORDER, END})


class Section(NamedTuple):
    """A part of a snapshot, small enough for memory.

    Attributes:
        kind: See the module's table.
        parts: Byte strings.
    """

    kind: bytes
    parts: Sequence[bytes]


@dataclass(slots=True)
class Counts:
    """How many tasks there are: in all, and in each state."""

    tasks: int = 0
    states: dict[str, int] = field(default_factory=lambda: dict.fromkeys((QUEUED, RUNNING, FINISHED, FAILED), 0))

    def add(self, state: str) -> None:
        """Counts one more task.

        Raises:
            KeyError: There is no such state.
        """
        self.states[state] += 1
        self.tasks += 1

    def as_dict(self) -> dict[str, int]:
        """For END."""
        return {"tasks": self.tasks, **self.states}
