"""A worker's log: what its loggers and its prints say goes to the network.

The handler hangs on the root logger, so it hears what any logger passes up, and on those named in the settings whose
records never get there. It is there for good: code that configures `logging` anew closes it and takes it off, so it
puts itself back. Nothing here raises into a task, waits for long, or takes a lock: not even that of a handler.
"""

from __future__ import annotations

import functools
import logging
import traceback
from collections.abc import Callable, Mapping
from typing import Final

from rush_executor._config import LogSettings
from rush_executor._ledger.logs import LogWriter
from rush_executor._protocol.logs import LOG, LONGEST_TEXT, STDERR, LogStream, shorten, shorten_middle
from rush_executor._worker.log_buffer import OWN_LOGGERS, LogBuffer
from rush_executor._worker.output import OutputCapture

__all__ = ["NetworkLogHandler", "WorkerLog", "start_logging"]

logger = logging.getLogger(__name__)

# Loggers under which printed lines are read.
_OUTPUT_LOGGER: Final = "rush_executor.worker"
# What was printed to stderr is seen by default where it is printed again, as it would be at a prompt.
_OUTPUT_LEVELS: Final[Mapping[LogStream, int]] = {"stdout": logging.INFO, STDERR: logging.WARNING}
# How long the end of a worker waits for a server that is away.
_CLOSE_S: Final = 2.0


class NetworkLogHandler(logging.Handler):
    """Adds records to the worker's log.

    Args:
        buffer: Takes them.
        levels: Levels of loggers while the handler is attached, by name; the root logger's name is empty.
        current_task: Key of the task that is being run; empty for none.
    """

    def __init__(self, buffer: LogBuffer, *, levels: Mapping[str, int], current_task: Callable[[], str]) -> None:
        super().__init__()
        self._buffer = buffer
        self._levels = levels
        self._current_task = current_task
        self._is_attached = False
        self._loggers: list[logging.Logger] = []
        # Of each logger: the level that it had, and the one that it got.
        self._changed: list[tuple[logging.Logger, int, int]] = []
        buffer.before_sending(self._put_back)

    def attach(self) -> None:
        """Begins to listen, and sets the levels."""
        loggers = [logging.getLogger()]
        for name, level in self._levels.items():
            named = logging.getLogger(name or None)
            self._changed.append((named, named.level, level))
            named.setLevel(level)
            last = _last_of_chain(named)
            if last not in loggers:
                loggers.append(last)
        self._loggers = loggers
        self._is_attached = True
        self._put_back()

    def detach(self) -> None:
        """Ends listening; levels that nobody else has changed are as they were."""
        self._is_attached = False
        for each in self._loggers:
            each.removeHandler(self)
        for changed, old, new in reversed(self._changed):
            if changed.level == new:
                changed.setLevel(old)
        self._changed.clear()

    def handle(self, record: logging.LogRecord) -> bool:
        """As that of any handler, but without its lock: a signal handler, or a child, may find that taken."""
        if self.filters:
            # From Python 3.12 on it may be another record.
            kept: object = self.filter(record)
            if not kept:
                return False
            if isinstance(kept, logging.LogRecord):
                record = kept
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Adds a record."""
        buffer = self._buffer
        try:
            name = record.name
            if buffer.is_sending() and name.startswith(OWN_LOGGERS):
                return
            try:
                message = record.getMessage()
            except Exception as error:  # noqa: BLE001 - the user's arguments do not fit, or their __str__ fails
                message = _unformatted(record, error)
            if len(message) > LONGEST_TEXT:
                message = shorten(message)
            exception = _exception_text(record) if record.exc_info or record.exc_text or record.stack_info else ""
            level = int(record.levelno)
            at = int(float(record.created) * 1e6)
            line = (at, level, str(name), message, self._current_task(), LOG, exception)
            buffer.add(line, is_urgent=level >= logging.ERROR)
        except Exception:  # noqa: BLE001 - what cannot be said is not said; the task goes on
            pass

    def flush(self) -> None:
        """Sends what is there, and waits for the answer, but not for long."""
        self._buffer.flush(_CLOSE_S)

    def close(self) -> None:
        """Called by `logging` when it is configured anew, or ends: that is not the end of the worker's log."""
        self.flush()
        if self._is_attached:
            self._buffer.arm()
        else:
            super().close()

    def _put_back(self) -> None:
        if self._is_attached:
            for each in self._loggers:
                if self not in each.handlers:
                    each.addHandler(self)


class WorkerLog:
    """What `start_logging` has started.

    Args:
        writer: Appends to the worker's log.
        settings: What to log.
        current_task: Key of the task that is being run; empty for none.
    """

    def __init__(self, writer: LogWriter, settings: LogSettings, current_task: Callable[[], str]) -> None:
        self._buffer = LogBuffer(writer, size=settings.buffer_size)
        self._handler = NetworkLogHandler(self._buffer, levels=settings.levels, current_task=current_task)
        self._output: OutputCapture | None = None
        self._handler.attach()
        if not (settings.is_output_captured or settings.output_dir is not None):
            return
        capture = functools.partial(
            OutputCapture,
            writer.worker_id,
            self._take_printed if settings.is_output_captured else None,
            current_task,
            when_partial=self._buffer.arm,
        )
        try:
            self._output = capture(output_dir=settings.output_dir)
        except OSError as error:
            logger.warning("output of worker %s goes into no files: %s", writer.worker_id, error)
            self._output = capture()
        self._buffer.before_sending(self._take_partials)
        self._buffer.in_child(self._output.leave_to_child)

    def open(self) -> None:
        """Begins to send, once the worker is on the lists of its network: its log is deleted with those.

        What was logged before is sent, too. Returns at once; a server that is away is waited for by a thread.
        """
        self._buffer.open()

    def flush(self, timeout_s: float = _CLOSE_S) -> None:
        """Sends what is there, and waits for the answer; how long for a server that is away is bounded."""
        self._buffer.flush(timeout_s)

    def close(self, timeout_s: float = _CLOSE_S) -> None:
        """Puts loggers and streams back, and sends the last. `os._exit` does not do it."""
        self._handler.detach()
        if self._output is not None:
            self._output.close()
        self._buffer.close(timeout_s)
        self._handler.close()

    def _take_printed(self, at: float, task: str, stream: LogStream, text: str) -> None:
        # A name for each: in the client's configuration they can be told apart.
        self._buffer.add((int(at * 1e6), _OUTPUT_LEVELS[stream], f"{_OUTPUT_LOGGER}.{stream}", text, task, stream, ""))

    def _take_partials(self) -> None:
        if self._output is not None and self._output.take_partials():
            self._buffer.arm()


def start_logging(settings: LogSettings, writer: LogWriter, current_task: Callable[[], str]) -> WorkerLog:
    """Has this process log to its network.

    Records are collected from now on, so that what an initializer says is heard, and go out from `WorkerLog.open` on.

    Args:
        settings: What to log.
        writer: From `LogWriter.connect`; not opened, and used by nobody else.
        current_task: Key of the task that is being run; empty for none. Called from any thread, for each record.
    """
    return WorkerLog(writer, settings, current_task)


def _last_of_chain(named: logging.Logger) -> logging.Logger:
    """The logger at which records of this one stop: the root, or one that does not pass them up."""
    while named.propagate and named.parent is not None:
        named = named.parent
    return named


def _unformatted(record: logging.LogRecord, error: Exception) -> str:
    try:
        return f"{record.msg!s:.1000} (its arguments do not fit: {type(error).__name__}: {error!s:.1000})"
    except Exception:  # noqa: BLE001 - a hostile message
        return f"(a message of type {type(record.msg).__name__} that cannot be written: {type(error).__name__})"


def _exception_text(record: logging.LogRecord) -> str:
    parts: list[str] = []
    if record.exc_text:
        parts.append(record.exc_text)
    elif record.exc_info and record.exc_info[0] is not None:
        try:
            parts.append("".join(traceback.format_exception(*record.exc_info)).rstrip("\n"))
        except Exception as error:  # noqa: BLE001 - an exception may be as hostile as a message
            parts.append(f"{record.exc_info[0]!r} (its traceback cannot be written: {type(error).__name__})")
    if record.stack_info:
        parts.append(str(record.stack_info))
    return shorten_middle("\n".join(parts))
