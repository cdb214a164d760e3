"""What workers log, as it travels: lines, batches of lines, and the records that readers get.

A worker hands in its lines in batches: one entry of its stream, one field. The field's name says which batch it is, so
that one that was sent twice is read once; its value is JSON: by how much the worker's clock is behind the server's, and
the lines. JSON, and not pickle: whoever may read the log need not trust who wrote it. Escaped to ASCII, it also carries
the lone surrogates that stand for bytes which are no UTF-8.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

__all__ = [
    "LOG",
    "LONGEST_TEXT",
    "STDERR",
    "STDOUT",
    "LogLine",
    "LogRecord",
    "LogStream",
    "decode_batch",
    "encode_batch",
    "shorten",
    "shorten_middle",
]

LogStream: TypeAlias = Literal["log", "stdout", "stderr"]
LOG: Final = "log"
STDOUT: Final = "stdout"
STDERR: Final = "stderr"

# Characters of one message, and of the text of its exception. Ten thousand records, as many as a log keeps, are 80 MB
# then, if somebody logs nothing but whole data sets.
LONGEST_TEXT: Final = 8192
# Room for saying that there was more.
_NOTE: Final = 40

# As in `LogRecord`, without the worker, and in microseconds by the worker's clock. A plain tuple, and no float, which
# takes long to write: it is made for each record, in the user's thread.
LogLine: TypeAlias = tuple[int, int, str, str, str, str, str]


_encode: Final = json.JSONEncoder(check_circular=False, separators=(",", ":")).encode


class LogRecord(NamedTuple):
    """What a worker has logged or printed.

    Attributes:
        worker_id: The worker.
        time: When, in seconds since 1970 by the server's clock: those of several machines can be compared.
        level: As in `logging`.
        logger: Name of the logger.
        message: The text; a very long one is shortened.
        task: Key of the task that was running; empty for none.
        stream: ``log``, or ``stdout`` or ``stderr`` for a line that was printed.
        exception: Traceback of the exception that was logged along, as text; empty for none.
    """

    worker_id: str
    time: float
    level: int
    logger: str
    message: str
    task: str
    stream: str
    exception: str


def shorten(text: str) -> str:
    """The text, or its beginning if it is longer than `LONGEST_TEXT`."""
    if len(text) <= LONGEST_TEXT:
        return text
    return f"{text[: LONGEST_TEXT - _NOTE]}... [{len(text)} characters]"


def shorten_middle(text: str) -> str:
    """The text, or both its ends: those of a traceback say more than what is between them."""
    if len(text) <= LONGEST_TEXT:
        return text
    kept = LONGEST_TEXT - _NOTE
    return f"{text[: kept // 4]}\n... [{len(text)} characters] ...\n{text[-(kept - kept // 4) :]}"


def encode_batch(offset_s: float, lines: Sequence[LogLine]) -> bytes:
    """Packs lines.

    Args:
        offset_s: To be added to their times to have the server's.
        lines: Lines.
    """
    return _encode([round(offset_s * 1e6), lines]).encode()


def decode_batch(worker_id: str, raw: bytes) -> list[LogRecord]:
    """Unpacks the lines of a worker; what is none is left out: the log of a broken worker is there to be read, too."""
    try:
        offset_us, lines = json.loads(raw)
        return [record for line in lines if (record := _record(worker_id, offset_us, line)) is not None]
    except (TypeError, ValueError):
        return []


def _record(worker_id: str, offset_us: int, line: list[Any]) -> LogRecord | None:
    try:
        at, level, *texts = line
        logger, message, task, stream, exception = map(str, texts[:5])
        return LogRecord(worker_id, (at + offset_us) / 1e6, int(level), logger, message, task, stream, exception)
    except (TypeError, ValueError, OverflowError):
        return None
