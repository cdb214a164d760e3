"""From when the time limit of a task counts, as its agent reads it from the slot."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rush_executor._protocol.records import Claim
from rush_executor._protocol.slots import SLOT_SIZE, Slot
from rush_executor._worker import loop as loop_module
from rush_executor._worker.loop import TaskLoop


class Decoder:
    """Looks at the slot when a call is loaded, and when it runs."""

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.seen: list[tuple[float, float]] = []

    def look(self) -> None:
        end_at, timeout_s = self.slot.limits()
        self.seen.append((end_at - time.monotonic(), timeout_s))

    def decode_call(self, *_: object) -> SimpleNamespace:
        self.look()
        return SimpleNamespace(fn=self.look, args=(), kwargs={}, is_chunk=False)

    def encode_result(self, *_: object) -> bytes:
        return b""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], tuple[list[tuple[float, float]], list[int]]]:
    """Runs a task with a time limit; gives what was left of it, and which agents were woken."""

    def run_one(timeout_s: float) -> tuple[list[tuple[float, float]], list[int]]:
        slot = Slot(bytearray(SLOT_SIZE))
        decoder = Decoder(slot)
        woken: list[int] = []
        monkeypatch.setattr(loop_module, "wake_agent", woken.append)
        loop = TaskLoop(cast(Any, None), threading.Lock(), cast(Any, decoder), slot, max_tasks=None, agent_pid=4711)
        loop._run(Claim("client-1", 1, b"", timeout_s=timeout_s))
        return decoder.seen, woken

    return run_one


def test_loading_has_time_of_its_own(run: Callable[[float], Any]) -> None:
    """What hangs there is ended as well, though much later; the call has its limit, from its start."""
    [loading, calling], _ = run(5.0)
    assert 5.0 < loading[0] <= 5.0 + loop_module._LOADING_S
    assert calling[0] <= 5.0
    assert loading[1] == calling[1] == 5.0


def test_no_limit(run: Callable[[float], Any]) -> None:
    """Then nobody looks at the clock."""
    seen, woken = run(0.0)
    assert [timeout_s for _, timeout_s in seen] == [0.0, 0.0]
    assert woken == []


@pytest.mark.parametrize(("timeout_s", "woken"), [(0.5, [4711]), (5.0, [])])
def test_who_looks(run: Callable[[float], Any], timeout_s: float, woken: list[int]) -> None:
    """The agent is woken for a limit that is shorter than its own rounds."""
    assert run(timeout_s)[1] == woken
