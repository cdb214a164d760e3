"""The handlers of a worker, which tasks may replace, and the signal that wakes its agent."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from rush_executor._protocol.slots import SLOT_SIZE, Slot
from rush_executor._worker import signals as signals_module
from rush_executor._worker.signals import LeaveNow, WorkerSignals, wake_agent

BOTH = (signal.SIGTERM, signal.SIGINT)


class Worker:
    """What the handlers are about."""

    def __init__(self) -> None:
        self.is_waiting = self.is_in_task = self.is_copy = False
        self.slot = Slot(bytearray(SLOT_SIZE))
        self.signals = WorkerSignals(self, self.slot)


@pytest.fixture
def worker() -> Iterator[Worker]:
    """With its handlers; those of the tests come back."""
    before = {signum: signal.getsignal(signum) for signum in BOTH}
    fd = signal.set_wakeup_fd(-1)
    worker = Worker()
    worker.signals.install()
    yield worker
    for signum, handler in before.items():
        signal.signal(signum, handler)
    signal.set_wakeup_fd(fd)


async def listen() -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: None)


LEAVINGS: dict[str, Callable[[], object]] = {
    "nothing": lambda: None,
    "SIGTERM": lambda: signal.signal(signal.SIGTERM, lambda *_: None),
    "SIGTERM ignored": lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
    "SIGINT": lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    "asyncio": lambda: asyncio.run(listen()),
}


@pytest.mark.parametrize("leave_behind", LEAVINGS.values(), ids=LEAVINGS)
def test_they_are_put_back(worker: Worker, leave_behind: Callable[[], object]) -> None:
    """Both of them, whatever a task has left in their place."""
    installed = [signal.getsignal(signum) for signum in BOTH]
    leave_behind()
    worker.signals.put_back()
    assert [signal.getsignal(signum) for signum in BOTH] == installed


def test_so_is_the_descriptor_for_signals(worker: Worker) -> None:
    """A byte would be written to it, whatever it is by then."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        signal.set_wakeup_fd(ours.fileno())
        signal.signal(signal.SIGTERM, lambda *_: None)
        worker.signals.put_back()
        assert signal.set_wakeup_fd(-1) == -1


def test_leave_and_now(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first SIGTERM is written down, and breaks off a wait; a second one ends the process."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    signal.raise_signal(signal.SIGTERM)
    assert worker.slot.is_leaving()
    assert codes == []
    signal.raise_signal(signal.SIGTERM)
    assert codes == [128 + signal.SIGTERM]


def test_a_wait_is_broken_off(worker: Worker) -> None:
    """Also when the agent has written already that the worker is to leave: that is no second signal."""
    worker.slot.set_leaving()
    worker.is_waiting = True
    with pytest.raises(LeaveNow):
        signal.raise_signal(signal.SIGTERM)


def test_an_interrupt_is_a_tasks(worker: Worker) -> None:
    """One that raises it in itself gets it; between tasks nobody does."""
    signal.raise_signal(signal.SIGINT)
    worker.is_in_task = True
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert not worker.slot.is_leaving()


def test_who_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent, if that is the agent: a process that a task has forked, or an orphan, has another one."""
    sent: list[tuple[int, int]] = []
    fake = SimpleNamespace(getppid=lambda: 4711, kill=lambda *what: sent.append(what))
    monkeypatch.setattr(signals_module, "os", fake)
    for agent_pid in (0, 1, 4712):
        wake_agent(agent_pid)
    assert sent == []
    wake_agent(4711)
    assert sent == [(4711, signal.SIGCHLD)]


def test_an_agent_that_may_not_be_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task has changed the user: the agent looks by itself."""

    def kill(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(signals_module, "os", SimpleNamespace(getppid=lambda: 4711, kill=kill))
    wake_agent(4711)
