"""The signals of a worker's process: those that ask it to leave, and the one that wakes its agent.

That a worker is to leave stands in its slot, and is looked at before each task and each claim; the agent writes it
there, or the handler of SIGTERM. The signal itself only breaks off a wait for work. So a worker leaves also when a task
has put something else in the handler's place: at once where that was seen, else when its wait is over.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import contextlib
import os
import signal
from types import FrameType
from typing import Final, Protocol

from rush_executor._ledger.connection import Channel
from rush_executor._protocol.slots import Slot

__all__ = ["Interruptible", "LeaveNow", "WorkerSignals", "wake_agent", "watch_forks"]

# Of the module below `signal`, whose own function takes some microseconds to find that a handler is none of its enum.
_handler_of: Final = _signal.getsignal
_TERM: Final = int(signal.SIGTERM)
_INT: Final = int(signal.SIGINT)


class LeaveNow(BaseException):
    """Raised by a signal handler in a worker that is waiting for work."""


class Interruptible(Protocol):
    """What the signals of a worker's process are about.

    Attributes:
        is_waiting: It waits for work: nothing is lost if that is broken off.
        is_in_task: It runs a user's code.
        is_copy: This process is a child that a task has forked, and no worker.
    """

    is_waiting: bool
    is_in_task: bool
    is_copy: bool


class WorkerSignals:
    """Has SIGTERM and SIGINT do what people expect of them.

    Args:
        loop: What they interrupt.
        slot: Where it is written that the worker is to leave.
    """

    def __init__(self, loop: Interruptible, slot: Slot) -> None:
        self._loop = loop
        self._slot = slot
        self._was_told = False
        # Bound once: they are known again by what they are.
        self._on_term, self._on_int = self._leave, self._interrupt

    def install(self) -> None:
        """Sets the handlers; in the main thread."""
        # Whoever left handlers behind may have left a descriptor, too, which may be something else by now.
        signal.set_wakeup_fd(-1)
        signal.signal(_TERM, self._on_term)
        signal.signal(_INT, self._on_int)

    def put_back(self) -> None:
        """Sets them again if the user's code that has just run has left others behind; in the main thread."""
        if _handler_of(_TERM) is not self._on_term or _handler_of(_INT) is not self._on_int:
            self.install()

    def _leave(self, signum: int, _frame: FrameType | None) -> None:
        """SIGTERM: finish the running task, hand back the rest, leave; a second one means now."""
        if self._was_told:
            os._exit(128 + signum)
        self._was_told = True
        self._slot.set_leaving()
        if self._loop.is_waiting:
            raise LeaveNow

    def _interrupt(self, _signum: int, _frame: FrameType | None) -> None:
        """SIGINT: a task that raises it in itself gets its KeyboardInterrupt; between tasks nobody means the worker."""
        if self._loop.is_in_task:
            raise KeyboardInterrupt


def watch_forks(channel: Channel, loop: Interruptible) -> None:
    """Has a process that a task forks be no worker: signals and the connection are not its own.

    The two signals wait meanwhile: one that a child gets while it still has the worker's handlers would be swallowed,
    and whoever sent it (`Process.terminate`, say) would wait for the child's end for ever.
    """
    blocked: list[set[int | signal.Signals]] = []

    def before() -> None:
        blocked.append(signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT)))

    def restore() -> None:
        if blocked:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked.pop())

    def leave_to_child() -> None:
        loop.is_copy = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        channel.close()
        restore()

    os.register_at_fork(before=before, after_in_parent=restore, after_in_child=leave_to_child)


def wake_agent(agent_pid: int) -> None:
    """Has the agent look at the slots now; without that it does within half a second.

    By a signal that it waits for anyway: a descriptor could have been closed by a task, and be something else since.

    Args:
        agent_pid: Its process; 0 for none. Where that is not this process's parent, nobody is told.
    """
    if agent_pid and os.getppid() == agent_pid:
        with contextlib.suppress(OSError):
            os.kill(agent_pid, signal.SIGCHLD)
