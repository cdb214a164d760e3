"""What a worker logs, on its way to the server: collected, sent in batches, never in the way of a task.

Any thread adds lines, in a signal handler or a destructor, too: adding takes no lock that anybody holds for long, and
none that its own thread may hold. Who fills the buffer, or adds an error, sends it, unanswered, which costs about as
much as a system call. All else is done by a thread, `rush-log`, which sleeps until there is a line and then sends what
there is a second later, with an answer; it alone waits for a server that is away. Then lines are kept, up to a bound,
beyond which the oldest are dropped, and the log says how many.

The thread is started by `open`, ended by `close`, and abandoned (daemon) if nobody calls that. A process that a task
forks has no such thread, and may end at any moment: there each line is sent at once, over a connection of its own.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Final

from rush_executor._ledger.connection import NetworkGone
from rush_executor._ledger.logs import LogWriter
from rush_executor._protocol.logs import LOG, LogLine
from rush_executor.errors import NetworkLostError

__all__ = ["OWN_LOGGERS", "LogBuffer"]

logger = logging.getLogger(__name__)

# What these say while a batch is being sent is about the sending: it would be the next batch, for ever.
OWN_LOGGERS: Final = ("rush_executor.", "redis")
# How old a line may get before it is sent: who follows a log would not notice less.
_PERIOD_S: Final = 1.0
# Lines that wait for the server, at least: a few seconds of a talkative worker, and 32 MB at worst.
_FEWEST_KEPT: Final = 1000
# How long a thread waits for another one to send when the buffer is full to the brim. The other one is in the middle
# of a system call, unless the server stalls.
_BRIM_S: Final = 0.2
# Sent at once: more would be sent in several entries anyway.
_MOST_SENT: Final = 2000


class LogBuffer:
    """Collects lines and sends them.

    Args:
        writer: Appends to the worker's log; nobody else uses it.
        size: As many lines are sent by whoever adds them.
    """

    def __init__(self, writer: LogWriter, *, size: int) -> None:
        self._writer = writer
        self._size = size
        self._most_kept = max(_FEWEST_KEPT, 4 * size)
        self._lines: deque[LogLine] = deque()
        self._n_dropped = 0
        # Whoever holds it sends; the owner is the id of that thread.
        self._sending = threading.Lock()
        self._owner = 0
        # The connection is good, as far as anybody knows: whoever adds lines may send them.
        self._is_ready = False
        # It was good once, or it has failed: nobody waits for it to be opened any more.
        self._is_tried = False
        self._is_open = False
        self._is_closed = False
        self._is_copy = False
        # A token wakes the thread; True is for now, False for in a second. The only queue that may be fed by a signal
        # handler that came in the middle of feeding it.
        self._tokens: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._is_armed = False
        # So many lines are sent by whoever adds one; more than are kept while the thread is at it.
        self._due = size
        # By this worker's clock, in us: a line that is later need not wait for others.
        self._quiet_until = 0
        self._tried_at = 0.0
        self._before_sending: list[Callable[[], None]] = []
        self._in_child: list[Callable[[], None]] = []
        own = weakref.ref(self)

        def leave_to_child() -> None:
            buffer = own()
            if buffer is not None:
                buffer._leave_to_child()  # noqa: SLF001 - its own

        os.register_at_fork(after_in_child=leave_to_child)

    def before_sending(self, call: Callable[[], None]) -> None:
        """Has the thread call this each time before it sends."""
        self._before_sending.append(call)

    def in_child(self, call: Callable[[], None]) -> None:
        """Has a process that a task forks call this."""
        self._in_child.append(call)

    def is_sending(self) -> bool:
        """Whether this thread is in the middle of sending."""
        return self._owner != 0 and self._owner == threading.get_ident()

    def add(self, line: LogLine, *, is_urgent: bool = False) -> None:
        """Takes a line; never raises for what becomes of it, and hardly ever waits."""
        if self._is_closed:
            return
        lines = self._lines
        lines.append(line)
        # A line after a quiet time need not wait: it may be the last before a task that keeps the GIL for minutes.
        if is_urgent or len(lines) >= self._due or line[0] > self._quiet_until:
            self._send_from_here(is_urgent=is_urgent)
        if not self._is_armed:
            self.arm()

    def arm(self) -> None:
        """Has the thread send, and call what is to be called before, in a second at the latest."""
        if not self._is_armed:
            self._is_armed = True
            self._tokens.put(False)  # noqa: FBT003 - a token

    def open(self) -> None:
        """From now on lines go out."""
        if not self._is_open:
            self._is_open = True
            threading.Thread(target=self._run, args=(self._tokens,), name="rush-log", daemon=True).start()
            self._tokens.put(True)  # noqa: FBT003 - a token

    def flush(self, timeout_s: float) -> None:
        """Sends all that is there, and waits for the answer."""
        if not self._is_open or not self._sending.acquire(timeout=timeout_s):
            return
        try:
            self._owner = threading.get_ident()
            self._send_answered()
        finally:
            self._owner = 0
            self._sending.release()

    def close(self, timeout_s: float) -> None:
        """Sends what is there, if the server is; takes no more lines."""
        self.flush(timeout_s)
        self._is_closed = True
        self._tokens.put(True)  # noqa: FBT003 - a token
        # Not under the feet of a thread that stands in it.
        if self._sending.acquire(timeout=timeout_s):
            self._writer.close()
            self._sending.release()

    def tick(self) -> None:
        """What the thread does: sends what has come, settles what was posted, tries again what failed."""
        # Before it looks: what comes later arms it again.
        self._is_armed = False
        for call in self._before_sending:
            call()
        with self._sending:
            self._owner = threading.get_ident()
            try:
                is_done = self._send_answered()
            finally:
                self._owner = 0
            self._due = self._size
        if not is_done:
            self.arm()

    def _run(self, tokens: queue.SimpleQueue[bool]) -> None:
        """The thread."""
        while not self._is_closed:
            is_now = tokens.get()
            end_at = time.monotonic() + _PERIOD_S
            while not is_now and (left_s := end_at - time.monotonic()) > 0:
                try:
                    is_now = tokens.get(timeout=left_s)
                except queue.Empty:
                    break
            self.tick()

    # In the hands of whoever holds `_sending`.

    def _send_answered(self) -> bool:
        """Returns whether nothing is left to do."""
        if self._is_closed:
            return True
        self._tried_at = time.monotonic()

        def send() -> None:
            if not self._writer.is_open:
                self._writer.open()
            if not self._is_ready:
                # First what failed: as long as that fails it must not grow.
                self._writer.append()
                self._is_ready = True
            # Not until nothing is there: somebody may log faster than this sends.
            n_left = len(self._lines)
            while n_left > 0 or self._n_dropped:
                taken = self._take()
                n_left -= len(taken)
                self._writer.append(taken)
            self._writer.append()

        return self._try(send)

    def _post(self) -> None:
        def send() -> None:
            n_left = len(self._lines)
            while n_left > 0 and self._is_ready:
                if self._writer.is_answer_due and not self._is_copy and len(self._lines) <= self._most_kept:
                    # That is the thread's to wait for: a task that waits looks like a long one, and its worker gives
                    # away what it had claimed beside it.
                    if self._due == self._size:
                        self._due = self._most_kept + 1
                        self._tokens.put(True)  # noqa: FBT003 - a token
                    return
                taken = self._take()
                n_left -= len(taken)
                self._is_ready = self._writer.post(taken)

        self._try(send)

    def _try(self, send: Callable[[], None]) -> bool:
        """Sends; returns whether it is done, or given up."""
        try:
            send()
            self._is_tried = True
        except (NetworkLostError, OSError):
            self._is_ready = False
            self._is_tried = True
            return False
        except NetworkGone as reason:
            # Or reset; the worker will notice, too.
            self._give_up()
            logger.debug("no more is logged to the network: %s", reason)
        except Exception as reason:  # noqa: BLE001 - whatever it is, it is not the task's
            self._give_up()
            logger.warning("no more is logged to the network: %r", reason)
        else:
            self._quiet_until = int((time.time() + _PERIOD_S) * 1e6)
        return True

    def _give_up(self) -> None:
        self._is_ready = False
        self._is_closed = True
        self._lines.clear()

    def _take(self) -> list[LogLine]:
        taken: list[LogLine] = []
        n_dropped, self._n_dropped = self._n_dropped, 0
        try:
            if n_dropped:
                at = self._lines[0][0] if self._lines else int(time.time() * 1e6)
                text = f"{n_dropped} older log records were dropped: the server was away, or slower than they came"
                taken.append((at, logging.WARNING, __name__, text, "", LOG, ""))
            while len(taken) < _MOST_SENT:
                taken.append(self._lines.popleft())
        except IndexError:
            pass
        return taken

    # In any thread, at any moment.

    def _send_from_here(self, *, is_urgent: bool) -> None:
        if self._owner == threading.get_ident():
            # A signal handler or a destructor, in the middle of it.
            self._drop_surplus()
            return
        is_brimful = len(self._lines) > self._most_kept
        if not self._is_ready:
            if self._is_copy and self._is_open and time.monotonic() - self._tried_at > _PERIOD_S:
                self.flush(_BRIM_S)
            if is_brimful:
                if self._is_open and not self._is_tried:
                    # A burst at the very start: the thread is about to open the connection.
                    self.flush(_BRIM_S)
                self._drop_surplus()
            return
        # In a child nobody else would send it.
        timeout_s = _BRIM_S if is_brimful or self._is_copy else 0.0
        if not self._sending.acquire(timeout=timeout_s):
            if is_brimful:
                # Who sends waits for the server; nobody else shall.
                self._is_ready = False
                self._drop_surplus()
            elif is_urgent:
                self._tokens.put(True)  # noqa: FBT003 - a token
            return
        try:
            self._owner = threading.get_ident()
            self._post()
        finally:
            self._owner = 0
            self._sending.release()

    def _drop_surplus(self) -> None:
        try:
            while len(self._lines) > self._most_kept:
                self._lines.popleft()
                self._n_dropped += 1
        except IndexError:
            # Somebody was quicker.
            return

    def _leave_to_child(self) -> None:
        # What is in the buffer is the parent's, and so is whoever was sending.
        self._lines.clear()
        self._n_dropped = 0
        self._sending = threading.Lock()
        self._owner = 0
        self._tokens = queue.SimpleQueue()
        self._is_ready = False
        self._is_copy = True
        # There is no thread that could be woken.
        self._is_armed = True
        self._size = self._due = 1
        self._tried_at = 0.0
        self._writer.leave_to_child()
        for call in self._in_child:
            call()
