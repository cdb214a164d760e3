"""How long a retry waits, and in what order retries come."""

from __future__ import annotations

import time

import pytest

from rush_executor._client import retries
from rush_executor._client.future import RushFuture
from rush_executor._client.retries import Parcel, RetryQueue, pause_before
from rush_executor._protocol.records import NewTask, TaskOptions
from tests.unit.client.owner import Owner


def parcel(task: str, n: int) -> Parcel:
    return Parcel(RushFuture(Owner(), task, "f", None), NewTask(task, b"", TaskOptions(9, 0), retries=n))


@pytest.mark.parametrize(("n", "longest"), [(1, 0.1), (2, 0.2), (3, 0.4), (9, 25.6), (10, 30.0), (100_000, 30.0)])
def test_pauses_double_and_have_an_end(n: int, longest: float) -> None:
    """Jitter takes off half at most."""
    pauses = [pause_before(n) for _ in range(200)]
    assert longest / 2 <= min(pauses) < max(pauses) <= longest


def test_what_is_due_first_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it was put in; equals come as they were put in."""
    queue = RetryQueue()
    assert (queue.take_due(), queue.pause_s()) == ([], None)
    monkeypatch.setattr(retries, "pause_before", lambda n: n - 50.0)
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    late, soon, other = parcel("late", 60), parcel("soon", 40), parcel("other", 40)
    first = parcel("first", 3)
    for each in (late, soon, other, first):
        queue.put(each)
    assert queue.pause_s() == 0.0
    assert queue.take_due() == [first, soon, other]
    assert queue.take_due() == []
    assert queue.pause_s() == 10.0
