"""The outbox: first in, first out, and a bound in tasks and in bytes."""

from __future__ import annotations

import threading

import pytest

from rush_executor._client import outbox as outbox_module
from rush_executor._client.future import RushFuture
from rush_executor._client.outbox import Outbox
from rush_executor._client.retries import Parcel
from rush_executor._protocol.records import NewTask, TaskOptions
from tests.unit.client.owner import Owner


def parcel(task: str, n_bytes: int = 1) -> Parcel:
    return Parcel(RushFuture(Owner(), task, "f", None), NewTask(task, bytes(n_bytes), TaskOptions(2, 0)))


def ids(parcels: list[Parcel]) -> list[str]:
    return [parcel.task.task_id for parcel in parcels]


def test_first_in_first_out() -> None:
    """What is put first goes before all others, in its own order."""
    outbox = Outbox()
    outbox.put(parcel("a"))
    outbox.put_all([parcel("b"), parcel("c")])
    outbox.put_first([parcel("x"), parcel("y")])
    assert len(outbox) == 5
    assert ids(outbox.take(3, 100)) == ["x", "y", "a"]
    assert ids(outbox.take(3, 100)) == ["b", "c"]
    assert outbox.take(3, 100) == []
    assert not outbox


def test_a_batch_ends_with_the_task_that_fills_it() -> None:
    """So one that is larger than a batch goes alone, and goes."""
    outbox = Outbox()
    outbox.put_all(parcel(task, n) for task, n in (("a", 4), ("b", 4), ("c", 4), ("d", 99), ("e", 1)))
    assert [ids(outbox.take(500, 8)) for _ in range(4)] == [["a", "b"], ["c", "d"], ["e"], []]


def test_what_has_an_outcome_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not count any more, either."""
    monkeypatch.setattr(outbox_module, "_MOST_BYTES", 10)
    outbox = Outbox()
    parcels = [parcel(task, 5) for task in "abc"]
    outbox.put_all(parcels)
    assert outbox.is_full
    for done in parcels[:2]:
        done.future.set_result("cancelled meanwhile")
    assert ids(outbox.take(500, 1000)) == ["c"]
    assert not outbox.is_full
    outbox.put(parcel("d", 9))
    assert not outbox.is_full
    outbox.put(parcel("e", 1))
    assert outbox.is_full


def test_full_of_small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """By number, whatever they weigh; what must go in goes in all the same."""
    monkeypatch.setattr(outbox_module, "_MOST_TASKS", 3)
    outbox = Outbox()
    outbox.put_all([parcel("a", 0), parcel("b", 0)])
    assert not outbox.is_full
    outbox.put(parcel("c", 0))
    assert outbox.is_full
    outbox.put_first([parcel("x", 0)])
    assert ids(outbox.take(2, 1000)) == ["x", "a"]
    assert not outbox.is_full


def test_many_threads() -> None:
    """The sum of bytes is right in the end: nobody waits for room that is there, or finds room that is not."""
    outbox = Outbox()
    threads = [threading.Thread(target=lambda: [outbox.put(parcel("t", 3)) for _ in range(300)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    n_taken = 0
    while n_taken < 1200:
        n_taken += len(outbox.take(50, 100))
    for thread in threads:
        thread.join()
    assert outbox._n_bytes == 0
