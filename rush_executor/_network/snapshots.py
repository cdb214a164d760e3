"""What `Rush.snapshot`, `Rush.restore` and `Rush.snapshot_schedule` do: files on one side, the ledger on the other."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rush_executor._ledger.connection import Channel, Refused
from rush_executor._ledger.snapshots import (
    NetworkRestorer,
    SnapshotHead,
    check_sections,
    head_of,
    network_of_head,
    read_save,
    read_sections,
    write_save,
)
from rush_executor._network.snapshot_file import SnapshotFile, write_snapshot
from rush_executor._protocol.keys import Keys
from rush_executor._protocol.snapshots import END, HEAD, Section
from rush_executor._protocol.states import FAILED, FINISHED, QUEUED, RUNNING
from rush_executor.errors import ServerError

__all__ = [
    "NetworkSnapshot",
    "Schedule",
    "network_of_snapshot",
    "read_schedule",
    "restore_snapshot",
    "take_snapshot",
    "write_schedule",
]

Schedule = tuple[int, int] | tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class NetworkSnapshot:
    """What is in a snapshot.

    Attributes:
        path: The file.
        network_id: The network.
        taken_at: When, in seconds since 1970 by the server's clock.
        n_tasks: How many tasks, in all.
        n_queued: How many were queued.
        n_running: How many were running.
        n_finished: How many had finished.
        n_failed: How many had failed.
    """

    path: str
    network_id: str
    taken_at: float
    n_tasks: int
    n_queued: int
    n_running: int
    n_finished: int
    n_failed: int


def take_snapshot(channel: Channel, keys: Keys, path: str | os.PathLike[str]) -> NetworkSnapshot:
    """Writes a network into a file."""
    ends: list[Section] = []

    def sections() -> Iterator[Section]:
        for section in read_sections(channel, keys):
            if section.kind in (HEAD, END):
                ends.append(section)
            yield section

    write_snapshot(path, sections())
    return _told(path, head_of(*ends))


def restore_snapshot(channel: Channel, keys: Keys, path: str | os.PathLike[str]) -> NetworkSnapshot:
    """Makes a network from a file: reads it to its end, and then once more, and writes."""
    with SnapshotFile(path) as file:
        head = check_sections(file.sections(), keys.network_id)
        NetworkRestorer(channel, keys, head).restore(file.sections())
    return _told(path, head)


def network_of_snapshot(path: str | os.PathLike[str]) -> str:
    """The network that a file is a snapshot of; the rest of it is not read.

    Raises:
        SnapshotError: The file is no snapshot.
        OSError: It cannot be opened.
    """
    with SnapshotFile(path) as file:
        return next((network_of_head(section) for section in file.sections() if section.kind == HEAD), "")


def read_schedule(channel: Channel) -> Schedule | None:
    """When the server writes its own snapshots; None for never."""
    try:
        numbers = [int(word) for word in read_save(channel).split()]
    except Refused as error:
        raise _no_config(error) from error
    pairs = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    return pairs[0] if len(pairs) == 1 else pairs or None


def write_schedule(channel: Channel, schedule: Iterable[int] | Iterable[Iterable[int]] | None) -> None:
    """Says when the server is to write its own snapshots."""
    numbers = _numbers(schedule)
    try:
        write_save(channel, " ".join(map(str, numbers)))
    except Refused as error:
        raise _no_config(error) from error


def _numbers(schedule: Iterable[int] | Iterable[Iterable[int]] | None) -> list[int]:
    if schedule is None:
        return []
    try:
        given: list[Any] = list(schedule)
        # One pair, or several.
        pairs = [tuple(pair) for pair in ([given] if given and isinstance(given[0], int) else given)]
    except TypeError:
        pairs = []
    is_right = all(len(pair) == 2 and all(type(n) is int and n > 0 for n in pair) for pair in pairs)  # noqa: PLR2004
    if not pairs or not is_right:
        raise ValueError(
            "snapshot_schedule must be (seconds, changes), several such pairs, or None for no snapshots; both numbers "
            f"are integers > 0. It was {schedule!r}"
        )
    return [number for pair in pairs for number in pair]


def _told(path: str | os.PathLike[str], head: SnapshotHead) -> NetworkSnapshot:
    states = head.counts.states
    return NetworkSnapshot(
        os.fspath(path),
        head.network_id,
        head.taken_at,
        head.counts.tasks,
        states[QUEUED],
        states[RUNNING],
        states[FINISHED],
        states[FAILED],
    )


def _no_config(error: Refused) -> ServerError:
    return ServerError(
        f"the server does not let us see or set when it writes snapshots: {error}. Managed servers forbid CONFIG; "
        "Rush.snapshot(path) needs nothing of the kind"
    )
