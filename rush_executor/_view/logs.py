"""The workers' logs as users look at them: as records, printed by this process's own loggers, or as they come.

Reads through a `LogReader` that it is given. Which workers there are, and up to where somebody has printed, is its
caller's to know.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final

from rush_executor._config import log_levels
from rush_executor._ledger.logs import LogCursor, LogReader
from rush_executor._protocol.logs import LOG, STDERR, STDOUT, LogRecord

__all__ = ["STREAMS", "Levels", "follow_log", "print_log", "read_log", "record_filter"]

# Levels that records must have to be seen: as for `log_levels` in `_config.py`.
Levels = Mapping[str, int | str] | int | str | None

STREAMS: Final = (LOG, STDOUT, STDERR)
# How often it is asked who is there, as long as nobody is.
_NOBODY_S: Final = 0.2


def read_log(
    reader: LogReader,
    worker_ids: Sequence[str],
    *,
    time_difference: float | None = None,
    levels: Levels = None,
    streams: Collection[str] = STREAMS,
) -> list[LogRecord]:
    """Reads what workers have logged, in order of time.

    Args:
        reader: Of the network.
        worker_ids: Whose log.
        time_difference: Only records younger than this, in seconds; None for all that are kept.
        levels: Only records of at least this level: one for all, or those of loggers, by name; a logger takes that of
            its nearest parent.
        streams: Only what was logged (``log``) or printed (``stdout``, ``stderr``).
    """
    start = 0.0 if time_difference is None else reader.now() - time_difference
    # An entry comes later than what is in it, never earlier.
    records = reader.read(worker_ids, LogCursor(start))
    is_wanted = record_filter(levels, streams)
    return [record for record in records if record.time >= start and is_wanted(record)]


def print_log(
    reader: LogReader,
    worker_ids: Sequence[str],
    cursor: LogCursor,
    *,
    levels: Levels = None,
    streams: Collection[str] = STREAMS,
) -> int:
    """Hands what workers have logged to the loggers of this process that have the same names.

    So this process's handlers, formats and levels decide what is seen. A record keeps its time and level; its
    ``worker_id`` and ``task`` can stand in a format.

    Args:
        reader: Of the network.
        worker_ids: Whose log.
        cursor: Up to where it was printed; moved on.
        levels: As in `read_log`.
        streams: As in `read_log`.

    Returns:
        How many records were handed on to a logger that takes their level.
    """
    is_wanted = record_filter(levels, streams)
    n_printed = 0
    for record in filter(is_wanted, reader.read(worker_ids, cursor)):
        logger = logging.getLogger(record.logger)
        if logger.isEnabledFor(record.level):
            logger.handle(_as_logging(logger, record))
            n_printed += 1
    return n_printed


def follow_log(
    reader: LogReader,
    worker_ids: Sequence[str] | Callable[[], Sequence[str]],
    *,
    cursor: LogCursor | None = None,
    timeout: float | None = None,
    levels: Levels = None,
    streams: Collection[str] = STREAMS,
) -> Iterator[LogRecord]:
    """Yields records as they come, which is up to a second after they were logged.

    Those that come together are in order of time.

    Args:
        reader: Of the network, on a connection of its own.
        worker_ids: Whose log, or who tells whose: asked again and again, so that new workers are heard.
        cursor: Where to begin; None for what comes from now on.
        timeout: Ends after so many seconds; None for when the generator is closed.
        levels: As in `read_log`.
        streams: As in `read_log`.
    """
    end_at = float("inf") if timeout is None else time.monotonic() + timeout
    who = worker_ids if callable(worker_ids) else lambda: worker_ids
    is_wanted = record_filter(levels, streams)
    if cursor is None:
        # What workers that are not there yet will say is all new.
        cursor = LogCursor()
        reader.skip(who(), cursor)
    return _follow(reader, who, cursor, end_at, is_wanted)


def _follow(
    reader: LogReader,
    who: Callable[[], Sequence[str]],
    cursor: LogCursor,
    end_at: float,
    is_wanted: Callable[[LogRecord], bool],
) -> Iterator[LogRecord]:
    while True:
        left_s = max(0.0, end_at - time.monotonic())
        worker_ids = who()
        if worker_ids:
            yield from filter(is_wanted, reader.follow(worker_ids, cursor, wait_s=left_s))
        else:
            time.sleep(min(_NOBODY_S, left_s))
        if not left_s:
            return


def record_filter(levels: Levels, streams: Collection[str]) -> Callable[[LogRecord], bool]:
    """What says whether a record is wanted; see `read_log`."""
    numbers = log_levels(levels)
    unknown = set(streams) - set(STREAMS)
    if unknown:
        raise ValueError(f"streams are {', '.join(STREAMS)}; there is no {', '.join(map(repr, sorted(unknown)))}")
    lowest: dict[str, int] = {}

    def level_of(name: str) -> int:
        if name not in lowest:
            parent = name.rpartition(".")[0]
            lowest[name] = numbers[name] if name in numbers else level_of(parent) if name else logging.NOTSET
        return lowest[name]

    return lambda record: record.stream in streams and record.level >= level_of(record.logger)


def _as_logging(logger: logging.Logger, record: LogRecord) -> logging.LogRecord:
    made = logger.makeRecord(
        record.logger,
        record.level,
        "",
        0,
        _writable(record.message),
        (),
        None,
        extra={"worker_id": record.worker_id, "task": record.task},
    )
    # Where and when it was logged; nothing of it is this process's.
    made.created = record.time
    made.msecs = int(record.time % 1 * 1000) + 0.0
    made.relativeCreated += (record.time - time.time()) * 1000
    made.processName = made.threadName = record.worker_id
    made.process = made.thread = None
    made.exc_text = _writable(record.exception) or None
    return made


def _writable(text: str) -> str:
    """The text, as a stream can write it: what was no UTF-8 in the worker is shown as an escape."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
