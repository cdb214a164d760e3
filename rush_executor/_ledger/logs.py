"""The logs of workers in the ledger: a capped stream for each worker, written in batches, read by position.

A batch of a hundred records costs a worker and the server a fifth and a tenth of what a hundred entries would. Mostly
it goes out unanswered (docs/decisions/0010): what was posted is kept until a later batch, on the same connection, is
answered, and sent again if the connection broke in between. So a batch may stand in the stream twice; readers know it
by its number.

`LogWriter` is the worker's, `LogReader` anybody's. Neither knows `logging`. Both belong to one thread at a time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Self

from rush_executor._ledger.connection import BLOCK_S, Channel, NetworkGone, open_pool
from rush_executor._ledger.scripts import evalsha, pack
from rush_executor._protocol.ids import new_id
from rush_executor._protocol.keys import Keys
from rush_executor._protocol.logs import LogLine, LogRecord, decode_batch, encode_batch

__all__ = ["DEFAULT_CAP", "LogCursor", "LogReader", "LogWriter"]

# Records that are kept of one worker: 1.5 MB of ordinary lines.
DEFAULT_CAP: Final = 10_000
# How long a connection, a send or an answer may take before the server counts as away: a task may have to wait for it,
# once. Above what a loaded server or a far one needs; one that takes longer gets the same again a second later.
_TIMEOUT_S: Final = 1.0
# One more try, for a connection that was closed while it was idle.
_GRACE_S: Final = 0.1
# Of one entry, if it is not a single record: a reader should not have to take megabytes at once.
_BATCH_BYTES: Final = 1 << 18
# What may be under way unanswered: less than TCP holds, so that sending does not wait for a server that stalls. A Unix
# socket counts about a kilobyte more for each, and is full after some forty: one record waits then, `_TIMEOUT_S` long.
_POSTED_BYTES: Final = 1 << 16
_POSTED_BATCHES: Final = 64
# An answer that took longer says too little about the server's clock.
_CLOCK_TRIP_S: Final = 0.5
# A clock was set, no answer was late: what this process logs stays in order by less than that.
_CLOCK_STEP_S: Final = 1.0
# Entries that a reader gets in one reply, of all workers together: about 10 MB when every batch is full.
_PAGE: Final = 1000
# Batches that a reader remembers of each worker. A repetition comes after those that were under way, and after what
# children of the worker's tasks have written meanwhile.
_REMEMBERED: Final = 512


class _Batch(NamedTuple):
    name: str
    command: bytes


class LogWriter:
    """Appends to the log of one worker.

    Args:
        channel: A connection of its own, with little patience: tasks may have to wait for it. See `connect`.
        keys: Of the network.
        worker_id: The worker.
        epoch: Which creation of the network it was started for.
        cap: How many records are kept, about.

    Attributes:
        worker_id: The worker.
        is_open: Whether `open` was called, and succeeded.
    """

    def __init__(self, channel: Channel, keys: Keys, worker_id: str, epoch: str, *, cap: int = DEFAULT_CAP) -> None:
        self.worker_id = worker_id
        self.is_open = False
        self._channel = channel
        self._network_key = keys.network
        self._key = keys.log(worker_id)
        self._epoch = epoch
        self._cap = cap
        self._can_mute = False
        # This process and its batches.
        self._token = new_id()
        self._n_batches = 0
        # Posted, and no answer since.
        self._posted: list[_Batch] = []
        self._posted_bytes = 0
        self._n_breaks = 0
        # The server's clock less this machine's, and by how much that may be wrong.
        self._offset_s = 0.0
        self._doubt_s = _CLOCK_STEP_S
        # How many records were written when, by the server's clock in ms: the last `cap` of them.
        self._kept: deque[tuple[int, int]] = deque()
        self._n_kept = 0
        self._trim: tuple[str | int, ...] = ()

    @classmethod
    def connect(cls, url: str, keys: Keys, worker_id: str, epoch: str, *, cap: int = DEFAULT_CAP) -> Self:
        """Makes one with a fitting connection; nothing is sent yet."""
        channel = Channel(open_pool(url, timeout_s=_TIMEOUT_S), reconnect_timeout_s=_GRACE_S)
        return cls(channel, keys, worker_id, epoch, cap=cap)

    def open(self) -> None:
        """Begins the log, or goes on with that of an earlier worker of this id.

        Raises:
            NetworkGone: The network is not the one that the worker was started for.
            NetworkLostError, Refused, ServerError: As `Channel.call`.
        """
        self._can_mute = self._channel.can_mute()
        batch = encode_batch(0.0, [])
        command = evalsha("open_log", (self._network_key, self._key), [self._epoch, self._next_name(), batch])
        self._call([command])
        self._n_breaks = self._channel.n_breaks
        self.is_open = True

    @property
    def is_answer_due(self) -> bool:
        """Whether the next `post` would wait for the server: it has not said for long that it has what was posted."""
        return not self._can_mute or self._posted_bytes > _POSTED_BYTES or len(self._posted) >= _POSTED_BATCHES

    def post(self, lines: Sequence[LogLine]) -> bool:
        """Sends lines, mostly without waiting for an answer.

        Returns:
            False when the connection broke: nothing is lost, but `append` is next, as soon as somebody has the time.

        Raises:
            NetworkGone, NetworkLostError, Refused, ServerError: As `append`, if this is the time for an answer.
        """
        if self.is_answer_due:
            self.append(lines)
            return True
        for batch in self._pack(lines):
            self._posted.append(batch)
            self._posted_bytes += len(batch.command)
            if self._channel.n_breaks == self._n_breaks:
                # Otherwise this would open a new connection, which may take its time.
                self._channel.post(batch.command)
        return self._channel.n_breaks == self._n_breaks

    def append(self, lines: Sequence[LogLine] = ()) -> None:
        """Sends lines, and waits until the server has them, and what was posted before.

        After an error they are kept, along with what was posted: call it without lines until it succeeds.

        Raises:
            NetworkGone: The log was deleted.
            NetworkLostError, Refused, ServerError: As `Channel.call`.
        """
        older = len(self._posted)
        new = self._pack(lines)
        self._posted += new
        self._posted_bytes += sum(len(batch.command) for batch in new)
        if not self._posted:
            return
        if self._channel.n_breaks != self._n_breaks:
            self._send_again(self._posted)
        else:
            if new:
                self._call([batch.command for batch in new])
                is_settled = True
            else:
                is_settled = self._is_last_written_here()
            if self._channel.n_breaks != self._n_breaks or not is_settled:
                # Before they were answered, or on the way.
                self._send_again(self._posted[:older])
        self._n_breaks = self._channel.n_breaks
        self._posted.clear()
        self._posted_bytes = 0

    def leave_to_child(self) -> None:
        """In a forked process: the connection, and what was posted, are the parent's; this one is another writer."""
        self._channel.close()
        self._n_breaks = self._channel.n_breaks
        self._token = new_id()
        self._posted = []
        self._posted_bytes = 0
        # It cannot know how much its parent and its siblings have written.
        self._kept.clear()
        self._trim = ("MAXLEN", "~", self._cap)

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def _send_again(self, batches: Sequence[_Batch]) -> None:
        if batches:
            self._call([batch.command for batch in batches])

    def _call(self, commands: Sequence[bytes]) -> None:
        sent_at = time.time()
        replies = self._channel.call(*commands)
        answered_at = time.time()
        if None in replies:
            raise NetworkGone("the log of this worker is gone")
        # An entry's id tells the server's time.
        offset_s = int(replies[-1].partition(b"-")[0]) / 1000 - (sent_at + answered_at) / 2
        is_off = abs(offset_s - self._offset_s) > _CLOCK_STEP_S
        if 0 <= answered_at - sent_at < _CLOCK_TRIP_S and (is_off or not self.is_open):
            self._offset_s, self._doubt_s = offset_s, (answered_at - sent_at) / 2

    def _is_last_written_here(self) -> bool:
        """Whether the last entry is one of those that were posted; if not, a child's may have come behind it."""
        [entries] = self._channel.call(pack(("XREVRANGE", self._key, "+", "-", "COUNT", 1)))
        return bool(entries) and entries[0][1][0].decode() in {batch.name for batch in self._posted}

    def _next_name(self) -> str:
        self._n_batches += 1
        return f"{self._token}-{self._n_batches}"

    def _pack(self, lines: Sequence[LogLine]) -> list[_Batch]:
        if not lines:
            return []
        raw = encode_batch(self._offset_s, lines)
        if len(raw) > _BATCH_BYTES and len(lines) > 1:
            n = max(1, len(lines) * _BATCH_BYTES // len(raw))
            return [batch for start in range(0, len(lines), n) for batch in self._pack(lines[start : start + n])]
        self._count(len(lines))
        name = self._next_name()
        return [_Batch(name, pack(("XADD", self._key, "NOMKSTREAM", *self._trim, "*", name, raw)))]

    def _count(self, n: int) -> None:
        """Counts what is written, and finds from when on `cap` records are: entries hold any number of them."""
        if self._trim and self._trim[0] == "MAXLEN":
            return
        kept = self._kept
        # Too early rather than too late: that would cut off what is to be kept.
        kept.append((n, int((time.time() + self._offset_s - self._doubt_s) * 1000)))
        self._n_kept += n
        is_full = False
        while self._n_kept - kept[0][0] >= self._cap:
            self._n_kept -= kept.popleft()[0]
            is_full = True
        if is_full:
            self._trim = ("MINID", "~", kept[0][1])


class LogCursor:
    """Up to where the logs of a network have been read. A reader moves it on; it may be pickled.

    Args:
        start: Skip what was written before this time of the server's clock, in seconds since 1970.
    """

    def __init__(self, start: float = 0.0) -> None:
        self._start = f"{max(0, int(start * 1000) - 1)}-0"
        self._positions: dict[str, str] = {}
        # For each worker the names of its last batches, in order.
        self._names: dict[str, dict[str, None]] = {}

    def position(self, worker_id: str) -> str:
        """Id of the last entry of a worker that was read."""
        return self._positions.get(worker_id, self._start)

    def take(self, worker_id: str, entries: Sequence[Any]) -> list[LogRecord]:
        """Moves behind entries of a worker, as they came; returns what is in them, and was not in earlier ones."""
        records: list[LogRecord] = []
        names = self._names.setdefault(worker_id, {})
        for _, fields in entries:
            for name, raw in zip(fields[::2], fields[1::2], strict=True):
                if name not in names:
                    names[name] = None
                    records += decode_batch(worker_id, raw)
        if entries:
            self.skip(worker_id, entries[-1][0].decode())
        while len(names) > _REMEMBERED:
            del names[next(iter(names))]
        return records

    def skip(self, worker_id: str, position: str) -> None:
        """Moves behind an entry of a worker without reading."""
        self._positions[worker_id] = position


class LogReader:
    """Reads the logs of workers; changes nothing.

    Args:
        channel: A connection. One that follows should be its own: it waits at the server.
        keys: Of the network.
    """

    def __init__(self, channel: Channel, keys: Keys) -> None:
        self._channel = channel
        self._keys = keys

    def now(self) -> float:
        """The server's time, in seconds since 1970."""
        [[seconds, micros]] = self._channel.call(pack(("TIME",)))
        return int(seconds) + int(micros) / 1e6

    def read(self, worker_ids: Sequence[str], cursor: LogCursor) -> list[LogRecord]:
        """What stands behind a cursor now, in order of time; moves the cursor."""
        records: list[LogRecord] = []
        behind, end = list(worker_ids), "+"
        while behind:
            n = max(1, _PAGE // len(behind))
            commands = [
                pack(("XRANGE", self._keys.log(worker), f"({cursor.position(worker)}", end, "COUNT", n))
                for worker in behind
            ]
            [seconds, micros], *pages = self._channel.call(pack(("TIME",)), *commands)
            if end == "+":
                # Who writes faster than this reads would keep it here for ever.
                end = str(int(seconds) * 1000 + int(micros) // 1000)
            for worker, entries in zip(behind, pages, strict=True):
                records += cursor.take(worker, entries)
            behind = [worker for worker, entries in zip(behind, pages, strict=True) if len(entries) == n]
        return _by_time(records)

    def skip(self, worker_ids: Sequence[str], cursor: LogCursor) -> None:
        """Moves a cursor to the end of these logs."""
        if not worker_ids:
            return
        commands = [pack(("XREVRANGE", self._keys.log(worker), "+", "-", "COUNT", 1)) for worker in worker_ids]
        for worker, entries in zip(worker_ids, self._channel.call(*commands), strict=True):
            if entries:
                cursor.take(worker, entries)

    def follow(self, worker_ids: Sequence[str], cursor: LogCursor, *, wait_s: float = BLOCK_S) -> list[LogRecord]:
        """Waits until something stands behind a cursor, and reads it, in order of time; moves the cursor.

        Args:
            worker_ids: At least one.
            cursor: Where to begin.
            wait_s: How long at most; more than `BLOCK_S` is as much.

        Returns:
            What has come first, and what was there with it; nothing if nothing came in time.
        """
        names = {self._keys.log(worker).encode(): worker for worker in worker_ids}
        block_ms = int(min(wait_s, BLOCK_S) * 1000)
        block = ("BLOCK", block_ms) if block_ms > 0 else ()
        positions = [cursor.position(worker) for worker in names.values()]
        n = max(1, _PAGE // len(names))
        [reply] = self._channel.call(pack(("XREAD", "COUNT", n, *block, "STREAMS", *names, *positions)))
        return _by_time([r for key, entries in reply or () for r in cursor.take(names[key], entries)])

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()


def _by_time(records: list[LogRecord]) -> list[LogRecord]:
    # Stable: what one worker has logged at the same time stays in order.
    return sorted(records, key=lambda record: record.time)
