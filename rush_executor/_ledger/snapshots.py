"""Networks that keep their tasks, as sections of a snapshot: made of the keys of one, and keys made of them.

Payloads stay as they are, sealed or not. What a snapshot is of: the tasks that there were when it began, and each
once, in the state that its own record was in when it was read, in one step; so tasks that were made later are left
out, and one that ended meanwhile may be there with its end or without. Queue and failed tasks are made of the records
again. Only the order in which tasks have finished stands in no record: it is read when all records have been, so every
task that was read as finished is in it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rush_executor._ledger.blobs import chunk_commands, read_chunks
from rush_executor._ledger.connection import Channel, NetworkGone
from rush_executor._ledger.scripts import evalsha, pack
from rush_executor._ledger.tasks import TaskLedger, being_restored
from rush_executor._protocol.ids import new_id
from rush_executor._protocol.keys import Keys
from rush_executor._protocol.records import FAILED_BLOB_TAG, FINISHED_BLOB_TAG, LOST_TAG, Loss
from rush_executor._protocol.snapshots import BLOB, END, HEAD, ORDER, STARTS, TASKS, WORKERS, Counts, Section
from rush_executor._protocol.states import FAILED, FINISHED, KILLED, LOST, QUEUED, RUNNING, TERMINATED
from rush_executor.errors import NetworkLostError, RushError, SnapshotError

__all__ = [
    "NetworkRestorer",
    "SnapshotHead",
    "check_sections",
    "head_of",
    "network_of_head",
    "read_save",
    "read_sections",
    "write_save",
]

# Tasks that one script reads or makes, unless it comes to so many bytes first: nobody else on the server waits long.
_BATCH: Final = 500
_BATCH_BYTES: Final = 1024 * 1024
# Ids of an order that go into one section.
_IDS: Final = 2000
# Blobs are cut into smaller pieces than their chunks: each is in memory a few times, on both sides.
_PIECE: Final = 4 * 1024 * 1024

_Fields = dict[bytes, bytes]


@dataclass(frozen=True, slots=True)
class SnapshotHead:
    """What a snapshot is of.

    Attributes:
        network_id: The network.
        taken_at: Seconds since 1970 by its server's clock.
        sequence: How many tasks had been queued in it.
        on_idle: See `Keys`; empty for nothing.
        counts: How many tasks are in it.
    """

    network_id: str
    taken_at: float
    sequence: int
    on_idle: str
    counts: Counts


# Reading.


def read_sections(channel: Channel, keys: Keys) -> Iterator[Section]:
    """Yields a network as sections, while everybody goes on working in it.

    Raises:
        RushError: There is no such network, it is an executor's, or it was reset meanwhile.
    """
    k = keys
    # How many tasks there are before the sequence: the ranks of all of them are below it.
    (epoch, kind, restoring, cleared), n_tasks, (sequence, on_idle), (seconds, micros) = channel.call(
        pack(("HMGET", k.network, "epoch", "kind", "restoring", "cleared")),
        pack(("LLEN", k.all_tasks)),
        pack(("HMGET", k.network, "sequence", "on_idle")),
        pack(("TIME",)),
    )
    if restoring:
        raise being_restored(k)
    if epoch is None:
        raise RushError(f"there is no network {k.network_id!r} to take a snapshot of: nobody has made a task in it")
    if kind != b"tasks":
        raise RushError(f"network {k.network_id!r} is a RushExecutor's: its tasks are calls, of which nothing is kept")
    yield _json_section(
        HEAD,
        {
            "network": k.network_id,
            "taken_at": float(f"{seconds.decode()}.{int(micros):06d}"),
            "sequence": int(sequence or 0),
            "on_idle": (on_idle or b"").decode(),
        },
    )
    known: set[bytes] = set()
    yield from _read_workers(channel, k, known)
    yield from _read_starts(channel, k)
    counts = Counts()
    yield from _read_tasks(channel, k, n_tasks, counts)
    # Those that have come meanwhile, and may have run tasks.
    yield from _read_workers(channel, k, known)
    n_finished = channel.call(pack(("LLEN", k.finished_tasks)))[0]
    for first in range(0, n_finished, _IDS):
        yield Section(ORDER, channel.call(pack(("LRANGE", k.finished_tasks, first, first + _IDS - 1)))[0])
    if channel.call(pack(("HMGET", k.network, "epoch", "cleared")))[0] != [epoch, cleared]:
        raise _was_reset(k)
    yield _json_section(END, counts.as_dict())


def _read_tasks(channel: Channel, keys: Keys, n_tasks: int, counts: Counts) -> Iterator[Section]:
    while counts.tasks < n_tasks:
        args: list[str | bytes | float] = [
            keys.task(),
            counts.tasks,
            min(_BATCH, n_tasks - counts.tasks),
            _BATCH_BYTES,
        ]
        reply = channel.call(evalsha("dump_tasks", (keys.all_tasks,), args))[0]
        parts: list[bytes] = []
        for task_id, flat in _pairs(reply):
            record = yield from _read_blobs(channel, keys, task_id, flat)
            counts.add(record[b"state"].decode())
            parts += (task_id, b"%d" % (2 * len(record)), *itertools.chain.from_iterable(record.items()))
        if not parts:
            raise _was_reset(keys)
        yield Section(TASKS, parts)


def _read_blobs(channel: Channel, keys: Keys, task_id: bytes, flat: list[bytes]) -> Generator[Section, None, _Fields]:
    """Yields the blobs of a task and returns its record, which is another one if the task was retried meanwhile."""
    record = dict(_pairs(flat))
    while record:
        blob_ids = _blobs_of(record)
        try:
            for blob_id in blob_ids:
                yield from _read_blob(channel, keys, blob_id)
        except KeyError as error:
            before, record = record, dict(_pairs(channel.call(pack(("HGETALL", keys.task(task_id.decode()))))[0]))
            if record == before:
                raise RushError(f"the server has lost a part of task {task_id.decode()}: blob {error}") from None
        else:
            return record
    raise _was_reset(keys)


def _read_blob(channel: Channel, keys: Keys, blob_id: str) -> Iterator[Section]:
    number = itertools.count()
    for chunk in read_chunks(channel, keys, blob_id):
        for start in range(0, len(chunk), _PIECE):
            yield Section(BLOB, [blob_id.encode(), b"%d" % next(number), chunk[start : start + _PIECE]])


def _read_starts(channel: Channel, keys: Keys) -> Iterator[Section]:
    for name in channel.call(pack(("HKEYS", keys.start_args)))[0]:
        value = channel.call(pack(("HGET", keys.start_args, name)))[0]
        if value is None:
            continue
        if value[:1] == b"b" and name != b"latest":
            yield from _read_blob(channel, keys, value[1:].decode())
        yield Section(STARTS, [name, value])


def _read_workers(channel: Channel, keys: Keys, known: set[bytes]) -> Iterator[Section]:
    sets = (keys.worker_ids, keys.terminated_worker_ids, keys.killed_worker_ids, keys.lost_worker_ids)
    here = set[bytes]().union(*channel.call(*(pack(("SMEMBERS", name)) for name in sets)))
    new = sorted(here - known)
    known |= here
    for start in range(0, len(new), _BATCH):
        batch = new[start : start + _BATCH]
        records = channel.call(*(pack(("HGETALL", keys.worker(worker.decode()))) for worker in batch))
        parts: list[bytes] = []
        for worker, record in zip(batch, records, strict=True):
            parts += (worker, b"%d" % len(record), *record)
        yield Section(WORKERS, parts)


# Checking.


def check_sections(sections: Iterable[Section], network_id: str) -> SnapshotHead:
    """Reads all sections, and looks whether they are this network, and whole; nothing is sent.

    Raises:
        SnapshotError: They are not; or as reading them raises.
    """
    head = end = Section(HEAD, [])
    counts = Counts()
    for section in sections:
        if section.kind == HEAD:
            head = section
            found = network_of_head(head)
            if found != network_id:
                raise SnapshotError(
                    f"this is a snapshot of network {found!r}, and not of {network_id!r}: payloads are sealed for the "
                    f"network that they were made in. Restore it with Rush({found!r}, ...)"
                )
        elif section.kind == TASKS:
            for _, record in _records(section.parts):
                counts.add(record[b"state"].decode())
        end = section
    told = head_of(head, end)
    if told.counts != counts:
        raise SnapshotError(
            f"tasks are missing in the snapshot: {counts.as_dict()} of {told.counts.as_dict()} are there"
        )
    return told


def network_of_head(head: Section) -> str:
    """The network that the first section of a snapshot names."""
    return str(json.loads(head.parts[0])["network"])


def head_of(head: Section, end: Section) -> SnapshotHead:
    """What the first section and the last say of a snapshot."""
    found, numbers = json.loads(head.parts[0]), json.loads(end.parts[0])
    counts = Counts(numbers.pop("tasks"), numbers)
    return SnapshotHead(found["network"], found["taken_at"], found["sequence"], found["on_idle"], counts)


# Writing.


class NetworkRestorer:
    """Makes a network from sections: for others it is not there until it is complete.

    Args:
        channel: A connection of its own.
        keys: Of the network.
        head: As `check_sections` has found it.
    """

    def __init__(self, channel: Channel, keys: Keys, head: SnapshotHead) -> None:
        self._channel = channel
        self._keys = keys
        self._head = head
        # Names this restore, whatever is sent twice.
        self._name = new_id()
        self._number = 0
        self._made = Counts()
        self._places: dict[str, tuple[str, int]] = {}

    def restore(self, sections: Iterable[Section]) -> None:
        """Writes everything; if that breaks off, nothing is left.

        Raises:
            RushError: There is such a network already, or it was reset meanwhile.
            NetworkLostError: The server stayed away: what was written so far may be there, until it is reset.
        """
        k, channel = self._keys, self._channel
        begun = channel.call(evalsha("begin_restore", (k.network, k.all_tasks), [self._name]))[0]
        if begun < 0:
            raise being_restored(k)
        if not begun:
            raise RushError(
                f"network {k.network_id!r} is there already: a snapshot is restored where there is none. Restore it on "
                "another server, or reset() the network first"
            )
        try:
            # Batches of tasks follow each other without waiting for the answers; the other sections are answered first.
            for in_batches, group in itertools.groupby(sections, lambda section: section.kind in (TASKS, ORDER)):
                if in_batches:
                    channel.call_each(self._batch(section) for section in group)
                else:
                    for section in group:
                        self._write(section)
            self._open()
        except NetworkLostError:
            raise
        except NetworkGone:
            raise RushError(f"network {k.network_id!r} was reset while it was being restored") from None
        except BaseException:
            self._abandon()
            raise

    def _write(self, section: Section) -> None:
        k, channel, parts = self._keys, self._channel, section.parts
        if section.kind == BLOB:
            for commands in chunk_commands(k, parts[0].decode(), int(parts[1]), parts[2]):
                channel.call(*commands)
        elif section.kind == STARTS:
            channel.call(evalsha("restore_fields", (k.network, k.start_args), [self._name, "", *parts]))
            if parts[1][:1] == b"b" and parts[0] != b"latest":
                channel.call(pack(("PERSIST", k.blob(parts[1][1:].decode()))))
        elif section.kind == WORKERS:
            for worker, record in _records(parts):
                self._write_worker(worker.decode(), record)

    def _write_worker(self, worker_id: str, record: _Fields) -> None:
        k = self._keys
        ended = {TERMINATED: k.terminated_worker_ids, KILLED: k.killed_worker_ids, LOST: k.lost_worker_ids}
        state = record.get(b"state", b"").decode()
        if state not in ended:
            # It was there, and is not here: nothing has gone wrong with it.
            state = TERMINATED
            self._places[worker_id] = record.get(b"host", b"").decode(), int(record.get(b"pid", 0))
            record |= {
                b"state": state.encode(),
                b"ended_at": self._taken_at(),
                b"reason": b"stayed where the snapshot was taken",
            }
        fields = itertools.chain.from_iterable(record.items())
        keys = (k.network, k.worker(worker_id), ended[state])
        self._channel.call(evalsha("restore_fields", keys, [self._name, worker_id, *fields]))

    def _batch(self, section: Section) -> bytes:
        k = self._keys
        self._number += 1
        args: list[str | bytes | float] = [self._name, self._number, k.task()]
        if section.kind == ORDER:
            return evalsha("order_finished", (k.network, k.finished_tasks), [*args, *section.parts])
        args.append(k.blob())
        for task_id, record in _records(section.parts):
            state = self._put_right(record)
            self._made.add(state)
            del record[b"state"]
            blobs = " ".join(_blobs_of(record))
            args += (task_id, state, record[b"rank"], blobs, 2 * len(record))
            args += itertools.chain.from_iterable(record.items())
        return evalsha("restore_tasks", (k.network, k.all_tasks, k.queued_tasks, k.failed_tasks), args)

    def _put_right(self, record: _Fields) -> str:
        """The state in which a task is restored; its record is changed, if it was running."""
        state = record[b"state"].decode()
        if state != RUNNING:
            return state
        worker_id = record[b"worker"].decode()
        if b"batch" in record:
            # Claimed from the queue: it goes back, to the place that it had. Nobody is to blame.
            for name in (b"worker", b"started_at"):
                record.pop(name, None)
            return QUEUED
        # A worker has made it for itself, in a loop that looks at no queue: it has ended with this worker.
        losses = int(record.get(b"losses", 0)) + 1
        host, pid = self._places.get(worker_id, ("", 0))
        loss = Loss(worker_id, host, pid, None, "stayed where the snapshot was taken from which the task was restored")
        outcome = LOST_TAG + b"%d " % losses + loss.to_bytes()
        record |= {b"losses": b"%d" % losses, b"outcome": outcome, b"ended_at": self._taken_at()}
        return FAILED

    def _taken_at(self) -> bytes:
        return f"{self._head.taken_at:.6f}".encode()

    def _open(self) -> None:
        k, made = self._keys, self._made
        numbers = (made.tasks, made.states[QUEUED], made.states[FINISHED], made.states[FAILED])
        keys = (k.network, k.all_tasks, k.queued_tasks, k.finished_tasks, k.failed_tasks, k.ends)
        args: list[str | bytes | float] = [
            self._name,
            new_id(),
            self._head.sequence,
            self._head.on_idle,
            *numbers,
        ]
        is_complete, *found = self._channel.call(evalsha("open_restored", keys, args))[0]
        if not is_complete:
            raise RushError(f"not all tasks were restored: there should be {numbers}, and there are {tuple(found)}")

    def _abandon(self) -> None:
        """Deletes what was written, unless the name belongs to somebody else by now."""
        with contextlib.suppress(NetworkLostError):
            if self._channel.call(pack(("HGET", self._keys.network, "restoring")))[0] == self._name.encode():
                TaskLedger(self._channel, self._keys).reset()


# The server's own snapshots.


def read_save(channel: Channel) -> str:
    """The server's setting `save`.

    Raises:
        Refused: It does not tell.
    """
    reply = channel.call(pack(("CONFIG", "GET", "save")))[0]
    return str(reply[1].decode()) if reply else ""


def write_save(channel: Channel, value: str) -> None:
    """Sets the server's `save`.

    Raises:
        Refused: It does not let us, or the value is wrong.
    """
    channel.call(pack(("CONFIG", "SET", "save", value)))


# Small things.


def _pairs(flat: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _records(parts: Sequence[bytes]) -> Iterator[tuple[bytes, _Fields]]:
    """Ids and records, from id, number of strings that follow, fields and values."""
    at = 0
    while at < len(parts):
        end = at + 2 + int(parts[at + 1])
        yield parts[at], dict(_pairs(parts[at + 2 : end]))
        at = end


def _blobs_of(record: _Fields) -> list[str]:
    blobs = [record[b"blob"].decode()] if record.get(b"blob") else []
    outcome = record.get(b"outcome", b"")
    if outcome[:1] in (FINISHED_BLOB_TAG, FAILED_BLOB_TAG):
        blobs.append(outcome[1:].decode())
    return blobs


def _json_section(kind: bytes, content: dict[str, Any]) -> Section:
    return Section(kind, [json.dumps(content).encode()])


def _was_reset(keys: Keys) -> RushError:
    return RushError(f"network {keys.network_id!r} was reset while a snapshot was being taken of it")
