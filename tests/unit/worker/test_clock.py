"""From when the time limit of a task counts, as its agent reads it from the slot."""

from __future__ import annotations

import os
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
def run() -> Callable[[float], tuple[list[tuple[float, float]], bytes]]:
    """Runs a task with a time limit; gives what was left of it, and what woke the agent."""

    def run_one(timeout_s: float) -> tuple[list[tuple[float, float]], bytes]:
        slot = Slot(bytearray(SLOT_SIZE))
        decoder = Decoder(slot)
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        try:
            loop = TaskLoop(cast(Any, None), threading.Lock(), cast(Any, decoder), slot, max_tasks=None, wake_fd=writer)
            loop._run(Claim("client-1", 1, b"", timeout_s=timeout_s))
            try:
                return decoder.seen, os.read(reader, 10)
            except BlockingIOError:
                return decoder.seen, b""
        finally:
            os.close(reader)
            os.close(writer)

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
    assert woken == b""


@pytest.mark.parametrize(("timeout_s", "woken"), [(0.5, b"\0"), (5.0, b"")])
def test_who_looks(run: Callable[[float], Any], timeout_s: float, woken: bytes) -> None:
    """The agent is woken for a limit that is shorter than its own rounds."""
    assert run(timeout_s)[1] == woken
