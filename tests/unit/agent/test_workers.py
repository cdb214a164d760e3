"""How an agent asks a worker to leave."""

from __future__ import annotations

import os
import signal
from typing import Any, cast

import pytest

from rush_executor._agent.workers import WorkerProcess, ask_to_leave
from rush_executor._protocol.slots import SLOT_SIZE, Slot


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Signals that were sent: process and number."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, signum: sent.append((pid, signum)))
    return sent


def worker_at(task_id: str) -> WorkerProcess:
    slot = Slot(bytearray(SLOT_SIZE))
    if task_id:
        slot.begin(task_id)
    return WorkerProcess("w1", 4711, slot, cast(Any, None))


def test_a_worker_that_waits_is_woken(sent: list[tuple[int, int]]) -> None:
    """By one signal, however often it is asked: a second one means now."""
    worker = worker_at("")
    ask_to_leave(worker)
    ask_to_leave(worker)
    assert worker.slot.is_leaving()
    assert sent == [(4711, signal.SIGTERM)]


def test_a_worker_that_runs_a_task_is_left_alone(sent: list[tuple[int, int]]) -> None:
    """What the task makes of signals is the task's: the slot says what is to be after it."""
    worker = worker_at("task")
    ask_to_leave(worker)
    worker.slot.end()
    ask_to_leave(worker)
    assert worker.slot.is_leaving()
    assert sent == []


def test_a_worker_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not there any more, and nobody minds."""

    def kill(_pid: int, _signum: int) -> None:
        raise ProcessLookupError

    monkeypatch.setattr(os, "kill", kill)
    ask_to_leave(worker_at(""))
