"""What goes out without an answer is sent again until something shows that it has arrived, and before anything else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from rush_executor._client import dispatcher as dispatcher_module
from rush_executor._client.dispatcher import Dispatcher, Parcel
from rush_executor._client.future import RushFuture
from rush_executor._client.shelf import FunctionShelf
from rush_executor._ledger.connection import NetworkGone, Refused
from rush_executor._protocol.records import NewTask, TaskOptions
from tests.unit.client.owner import Owner


class Uplink:
    """Takes down what is pushed."""

    def __init__(self) -> None:
        self.pushes: list[tuple[int, list[str], bool]] = []
        self.error: BaseException | None = None

    def push(self, batch: int, tasks: Sequence[NewTask], functions: Sequence[Any] = (), *, wait: bool = True) -> bool:
        self.pushes.append((batch, [task.task_id for task in tasks], wait))
        if wait and self.error is not None:
            raise self.error
        return wait


class Desk:
    """A dispatcher and what it tells."""

    def __init__(self) -> None:
        self.uplink = Uplink()
        self.lost: list[BaseException] = []
        self.refused: list[list[RushFuture]] = []
        self.dispatcher = Dispatcher(
            self.uplink,  # type: ignore[arg-type]
            FunctionShelf(),
            when_lost=self.lost.append,
            when_refused=lambda futures, error: self.refused.append(futures),
        )
        self.dispatcher.start()
        self._until(lambda: self.dispatcher._is_asleep)

    def send(self, task: str, *, is_lone: bool = True) -> RushFuture:
        future = RushFuture(Owner(), task, "f", None)
        self.dispatcher.send(parcel(future), is_lone=is_lone)
        return future

    def until_pushed(self, n: int) -> list[tuple[int, list[str], bool]]:
        self._until(lambda: len(self.uplink.pushes) >= n and self.dispatcher._is_asleep)
        return self.uplink.pushes

    def _until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.001)


def parcel(future: RushFuture, *, retries: int = 0) -> Parcel:
    return Parcel(future, NewTask(future.task_id, b"call", TaskOptions(2, 0), retries=retries))


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    # However long a test takes, its second task comes soon after the first.
    monkeypatch.setattr(dispatcher_module, "_FRESH_S", 1e9)
    desk = Desk()
    yield desk
    desk.dispatcher.close()


def test_the_first_waits_for_its_answer(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so does one after a long pause: the connection may have been cut without our knowledge."""
    desk.send("a").set_result(1)
    desk.send("b").set_result(1)
    monkeypatch.undo()
    desk.dispatcher._sent_at -= 10
    desk.send("c")
    assert desk.uplink.pushes == [(1, ["a"], True), (2, ["b"], False), (3, ["c"], True)]


def test_an_outcome_is_an_answer(desk: Desk) -> None:
    """Sent once each, as long as one is done before the next goes out."""
    for number in range(5):
        desk.send(str(number)).set_result(1)
    desk.dispatcher.nudge()
    assert desk.uplink.pushes == [(n + 1, [str(n)], n == 0) for n in range(5)]


def test_no_outcome_before_the_next(desk: Desk) -> None:
    """It is sent again under its number, and answered, before a batch with a later number goes out."""
    desk.send("a")
    b = desk.send("b")
    c = desk.send("c")
    assert desk.uplink.pushes == [(1, ["a"], True), (2, ["b"], False), (2, ["b"], True), (3, ["c"], False)]
    desk.send("d", is_lone=False)
    assert desk.until_pushed(6)[4:] == [(3, ["c"], True), (4, ["d"], True)]
    del b, c


def test_no_outcome_for_a_while(desk: Desk) -> None:
    """A nudge has the thread ask, once."""
    desk.send("a")
    kept = desk.send("b")
    desk.dispatcher.nudge()
    assert desk.until_pushed(3) == [(1, ["a"], True), (2, ["b"], False), (2, ["b"], True)]
    desk.dispatcher.nudge()
    desk.send("c", is_lone=False)
    assert desk.until_pushed(4)[3:] == [(3, ["c"], True)]
    assert not kept.done()


def test_before_the_uplink_is_used(desk: Desk) -> None:
    """Who cancels or asks for a state settles first."""
    desk.send("a")
    kept = desk.send("b")
    with desk.dispatcher.lock:
        desk.dispatcher.settle()
        desk.dispatcher.settle()
    assert desk.uplink.pushes == [(1, ["a"], True), (2, ["b"], False), (2, ["b"], True)]
    assert not kept.done()


def test_one_that_is_to_be_tried_again_has_arrived(desk: Desk) -> None:
    """It is not sent again, nor marked as sent: `cancel` would ask the server for what waits here."""
    desk.send("a")
    future = desk.send("b")
    # As the listener does when the task has failed.
    future._is_sent = False
    with desk.dispatcher.lock:
        desk.dispatcher.settle()
    assert desk.uplink.pushes == [(1, ["a"], True), (2, ["b"], False)]
    assert desk.dispatcher.n_taken == 2
    assert not future._is_sent


def test_what_is_no_longer_needed_is_no_reason_to_end(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that will not delete functions goes on taking tasks."""

    def refuse(digests: Sequence[str]) -> None:
        raise Refused("no")

    monkeypatch.setattr(desk.uplink, "forget_functions", refuse, raising=False)
    monkeypatch.setattr(desk.dispatcher._shelf, "take_excess", lambda: ["digest"])
    with desk.dispatcher.lock:
        desk.dispatcher._forget_excess()
    desk.send("a")
    assert (desk.lost, desk.uplink.pushes) == ([], [(1, ["a"], True)])


def test_a_future_that_was_resolved_is_not_kept(desk: Desk) -> None:
    """Its result may be large, and nobody wants it any more."""
    desk.send("a").set_result(1)
    desk.send("b").set_result(bytearray(1000))
    assert desk.dispatcher._posted is not None
    assert desk.dispatcher._posted.future() is None
    assert desk.dispatcher._batch is None


def test_what_went_wrong_is_told_when_asked(desk: Desk) -> None:
    """An error that had no answer is met by the second sending."""
    desk.send("a")
    future = desk.send("b")
    desk.uplink.error = Refused("no")
    desk.dispatcher.nudge()
    desk.until_pushed(3)
    assert desk.lost == []
    assert desk.refused == [[future]]


def test_nothing_is_sent_while_the_network_is_gone(desk: Desk) -> None:
    """From the first refusal until somebody has joined again; then what was sent goes first, under new numbers."""
    a, b = desk.send("a"), desk.send("b")
    desk.uplink.error = NetworkGone("gone")
    c = desk.send("c")
    assert desk.dispatcher.is_halted
    assert desk.uplink.pushes == [(1, ["a"], True), (2, ["b"], False), (2, ["b"], True)]
    desk.send("d", is_lone=False)
    desk.dispatcher.nudge()
    desk.uplink.error = None
    assert [future._is_sent for future in (a, b, c)] == [True, True, False]
    with desk.dispatcher.lock:
        desk.dispatcher.resume([parcel(a), parcel(b)])
    pushes = desk.until_pushed(4)
    assert pushes[3:] == [(3, ["a", "b", "c", "d"], True)]
    assert desk.lost == []


def test_a_retry_is_sent_by_the_thread_after_its_pause(desk: Desk) -> None:
    """One that is cancelled meanwhile is not."""
    future, cancelled = desk.send("a"), RushFuture(Owner(), "b", "f", None)
    # Nothing is sent before it is cancelled. It is due first.
    with desk.dispatcher.lock:
        for retries, each in enumerate((cancelled, future), start=1):
            each._is_sent = False
            desk.dispatcher.send_later(parcel(each, retries=retries))
        cancelled.set_result("resolved meanwhile")
    assert desk.until_pushed(2) == [(1, ["a"], True), (2, ["a"], True)]
    assert not future.done()


def test_many_threads(desk: Desk) -> None:
    """Numbers go out in their order, whatever is settled in between; nothing is left out."""

    def submit(name: str) -> None:
        for number in range(100):
            future = desk.send(f"{name}{number}")
            if number % 3:
                future.set_result(1)
            futures.append(future)
            if not number % 7:
                desk.dispatcher.nudge()

    futures: list[RushFuture] = []
    threads = [threading.Thread(target=submit, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with desk.dispatcher.lock:
        desk.dispatcher.settle()
    desk.until_pushed(1)
    numbers = [number for number, _, _ in desk.uplink.pushes]
    assert numbers == sorted(numbers)
    sent = {task for _, tasks, _ in desk.uplink.pushes for task in tasks}
    wanted = {future.task_id for future in futures if not future.done()}
    assert wanted <= sent
    answered = {task for _, tasks, wait in desk.uplink.pushes if wait for task in tasks}
    assert wanted <= answered, "one that has no outcome was not asked about"
