"""What a worker prints: on its way to where it went before, line by line into the log, and into files.

`sys.stdout` and `sys.stderr` are replaced by streams that pass everything on. What bypasses them is not in the log: C
code, child processes that do not fork, `sys.stdout.buffer`. With a folder for files, all that goes to stdout goes
there, from C code too; what Python code writes to stderr goes there as well, and on to the agent, which tells the
last lines of a worker that dies.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple, TextIO, cast
from urllib.parse import quote

from rush_executor._protocol.logs import LONGEST_TEXT, STDERR, STDOUT, LogStream, shorten

__all__ = ["OutputCapture", "OutputTee", "TakeLine"]

# When it was written, in seconds since 1970; what was being run; where to; the line.
TakeLine = Callable[[float, str, LogStream, str], None]

# After so long the beginning of a line is logged without its end.
_PARTIAL_S: Final = 1.0


class _Partial(NamedTuple):
    at: float
    task: str
    text: str


class OutputTee:
    """A text stream that passes on to another one, and tells its lines.

    It takes no lock: each thread collects its own line, and the dictionary that holds those is changed by atomic
    operations alone. So a signal handler may print in the middle of a print, and a fork finds nothing locked.

    Args:
        stream: Where everything goes; all that is not about writing is asked of it.
        kind: Which one it is.
        take: Gets the lines; None if nobody wants them.
        current_task: The task that is being run.
        when_partial: Called when a line has no end yet: somebody is to call `take_partials` later.
        copy: Where everything goes as well.
        is_line_flushed: Whether `stream` is flushed behind each line.
    """

    def __init__(
        self,
        stream: TextIO,
        kind: LogStream,
        take: TakeLine | None,
        current_task: Callable[[], str],
        *,
        when_partial: Callable[[], None],
        copy: TextIO | None = None,
        is_line_flushed: bool = False,
    ) -> None:
        self._stream = stream
        self._kind = kind
        self._take = take
        self._current_task = current_task
        self._when_partial = when_partial
        self._copy = copy
        self._is_line_flushed = is_line_flushed
        self._is_child = False
        # By thread: the line that has no end yet.
        self._partials: dict[int, _Partial] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As that of a text stream."""
        n_written = self._stream.write(text)
        try:
            if self._copy is not None:
                self._copy.write(text)
            if self._is_line_flushed and "\n" in text:
                self._stream.flush()
            if self._take is not None:
                self._collect(text, self._take)
        except Exception:  # noqa: BLE001 - a full disk, or whatever it is: it was printed, and the task goes on
            pass
        return n_written

    def writelines(self, lines: Iterable[str]) -> None:
        """As that of a text stream."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """As that of a text stream."""
        self._stream.flush()
        if self._is_child:
            # It may be its last chance.
            self.take_partials(0.0)

    def take_partials(self, age_s: float) -> bool:
        """Tells lines without an end that are older than this; returns whether others are left."""
        if self._take is None:
            return False
        now = time.time()
        for thread, partial in list(self._partials.items()):
            if now - partial.at >= age_s and self._partials.pop(thread, None) is not None:
                self._tell(self._take, partial.at, partial.task, partial.text)
        return bool(self._partials)

    def leave_to_child(self) -> None:
        """In a forked process: what has no end yet is its parent's."""
        self._partials.clear()
        self._is_child = True

    def end(self) -> None:
        """From now on only passes on."""
        self.take_partials(0.0)
        self._take = self._copy = None

    def _collect(self, text: str, take: TakeLine) -> None:
        thread, task, at = threading.get_ident(), self._current_task(), time.time()
        partial = self._partials.pop(thread, None)
        if partial is not None and partial.task != task:
            self._tell(take, partial.at, partial.task, partial.text)
        elif partial is not None:
            at, text = partial.at, partial.text + text
        *lines, rest = text.split("\n")
        for line in lines:
            self._tell(take, at, task, line)
        if len(rest) > LONGEST_TEXT:
            self._tell(take, at, task, rest)
        elif rest:
            self._partials[thread] = _Partial(at, task, rest)
            self._when_partial()

    def _tell(self, take: TakeLine, at: float, task: str, line: str) -> None:
        # Of a line that was written over, what a terminal would show.
        take(at, task, self._kind, shorten(line.rstrip("\r").rpartition("\r")[2]))


class OutputCapture:
    """Stands between this process and its stdout and stderr, until `close`.

    Args:
        worker_id: Names the files.
        take: Gets the lines; None if nobody wants them.
        current_task: The task that is being run.
        when_partial: Called when a line has no end yet: somebody is to call `take_partials` later.
        output_dir: Folder for the files; it is made if it is not there. None for no files.

    Raises:
        OSError: The files cannot be written.
    """

    def __init__(
        self,
        worker_id: str,
        take: TakeLine | None,
        current_task: Callable[[], str],
        *,
        when_partial: Callable[[], None],
        output_dir: str | None = None,
    ) -> None:
        self._files: list[TextIO] = []
        self._saved_fd: int | None = None
        if output_dir is not None:
            folder = Path(output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            for ending in ("out", "err"):
                # An id may be anybody's: it names a file in the folder and nowhere else.
                path = folder / f"{quote(worker_id, safe='')}.{ending}"
                self._files.append(path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1))
        self._tees: list[tuple[str, OutputTee]] = []
        out, err = self._files or (None, None)
        tee = functools.partial(OutputTee, take=take, current_task=current_task, when_partial=when_partial)
        if sys.stdout is not None:
            is_moved = out is not None and self._move_stdout(out)
            copy = None if is_moved else out
            self._replace("stdout", tee(sys.stdout, STDOUT, copy=copy, is_line_flushed=is_moved))
        if sys.stderr is not None:
            self._replace("stderr", tee(sys.stderr, STDERR, copy=err))

    def take_partials(self) -> bool:
        """Tells lines that have had no end for a while; returns whether there are younger ones."""
        # All of them, also behind one of which something is left.
        left = [tee.take_partials(_PARTIAL_S) for _, tee in self._tees]
        return any(left)

    def leave_to_child(self) -> None:
        """In a forked process."""
        for _, tee in self._tees:
            tee.leave_to_child()

    def close(self) -> None:
        """Puts everything back."""
        for name, tee in self._tees:
            with contextlib.suppress(OSError, ValueError):
                tee.flush()
            tee.end()
            if getattr(sys, name) is tee:
                setattr(sys, name, tee._stream)  # noqa: SLF001 - as it was
        if self._saved_fd is not None:
            os.dup2(self._saved_fd, 1)
            os.close(self._saved_fd)
            self._saved_fd = None
        for file in self._files:
            file.close()

    def _replace(self, name: str, tee: OutputTee) -> None:
        self._tees.append((name, tee))
        setattr(sys, name, cast("TextIO", tee))

    def _move_stdout(self, file: TextIO) -> bool:
        """Has the descriptor lead to the file; returns whether that moves `sys.stdout`, too."""
        stdout = sys.stdout
        with contextlib.suppress(OSError, ValueError):
            stdout.flush()
        try:
            is_moved = stdout.fileno() == 1
        except (OSError, ValueError, AttributeError):
            # Not backed by a descriptor.
            is_moved = False
        self._saved_fd = os.dup(1)
        os.dup2(file.fileno(), 1)
        return is_moved
