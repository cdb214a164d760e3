"""Pending Futures tell whether there are any: a worker's agent makes up for a worker that waits."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from rush_executor._client.future import RushFuture
from rush_executor._client.pending import PendingFutures
from rush_executor._client.retries import Parcel
from rush_executor._client.shelf import FunctionShelf
from rush_executor._payload import ContentElsewhereError, Decoder, Encoder
from rush_executor._protocol.records import CANCELLED_TAG, FAILED_TAG, NewTask, TaskOptions
from tests.unit.client.owner import Owner


@pytest.fixture
def told() -> list[bool]:
    return []


@pytest.fixture
def pending(told: list[bool]) -> PendingFutures:
    def tell(is_pending: bool) -> None:
        # Whoever can come in between does.
        time.sleep(0)
        told.append(is_pending)

    return PendingFutures(Encoder("net", None), FunctionShelf(), lambda _: None, tell)


@pytest.fixture
def _hasty_threads() -> Iterator[None]:
    """Threads that change places as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def add(pending: PendingFutures, task: str) -> RushFuture:
    future = RushFuture(Owner(), task, "f", None)
    pending.add(future, NewTask(task, b"", TaskOptions(2, 0)), None)
    return future


def test_every_change_is_told(pending: PendingFutures, told: list[bool]) -> None:
    """However a Future comes to its end."""
    first, second, third = (add(pending, task) for task in "abc")
    pending.resolve("a", CANCELLED_TAG, b"")
    assert pending.cancel(second)
    assert told == [True] * 5
    pending.fail_all(lambda: ValueError("lost"))
    assert told == [True] * 5 + [False]
    assert all(future.done() for future in (first, second, third))
    pending.resolve("a", CANCELLED_TAG, b"")
    assert len(told) == 6, "nothing has changed"
    add(pending, "d")
    assert told[-1]


def test_what_an_interrupt_left_locked(pending: PendingFutures) -> None:
    """Ctrl-C while `concurrent.futures.wait` locks its Futures: then others can resolve them, also one that tries."""
    futures = [add(pending, task) for task in "abc"]
    futures += futures[:1]
    for future in futures:
        future._condition.acquire()
    listener = threading.Thread(target=pending.resolve, args=("b", CANCELLED_TAG, b""), daemon=True)
    listener.start()
    deadline = time.monotonic() + 30
    while "b" in pending:
        assert time.monotonic() < deadline, "the listener has not come to it"
        time.sleep(0)
    pending.let_go()
    listener.join(30)
    assert not listener.is_alive()
    other = threading.Thread(target=pending.cancel_all, daemon=True)
    other.start()
    other.join(30)
    assert all(future.cancelled() for future in futures)


@pytest.mark.usefixtures("_hasty_threads")
def test_the_last_word_is_the_truth(pending: PendingFutures, told: list[bool]) -> None:
    """Whoever comes between whatever: when all have done, it was told what is so."""
    for n_left in (0, 1) * 10:
        barrier = threading.Barrier(4)

        def work(me: int, n_left: int = n_left, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            for n in range(30):
                add(pending, f"{me}-{n}")
                if random.random() < 0.5:
                    pending.take(f"{me}-{n}")
            for n in range(n_left if me == 0 else 0, 30):
                pending.take(f"{me}-{n}")

        threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert told[-1] == bool(pending)
        pending.cancel_all()
        assert not told[-1]
        told.clear()


def test_a_task_whose_content_is_elsewhere_is_sent_anew_in_any_case() -> None:
    """It was not run: that shutdown(cancel_futures=True) ended retries does not make a failure of it."""
    sent: list[Parcel] = []
    encoder = Encoder("net", None)
    pending = PendingFutures(encoder, FunctionShelf(), sent.append)
    payload = encoder.encode_call("a", encoder.encode_function(len), ("x",), {})
    future = RushFuture(Owner(), "a", "f", None)
    pending.add(future, NewTask("a", payload, TaskOptions(2, 0)), None)
    future._is_sent = True
    pending.end_retries()
    pending.resolve("a", FAILED_TAG, Decoder("net", None, _nothing).encode_failure("a", ContentElsewhereError("gone")))
    assert [parcel.future for parcel in sent] == [future]
    assert not future.done()
    assert future.attempts == 0
    future._is_sent = True
    pending.resolve("a", FAILED_TAG, Decoder("net", None, _nothing).encode_failure("a", ValueError("its own")))
    assert isinstance(future.exception(0), ValueError)
    assert len(sent) == 1


def _nothing(_client_id: str, _digest: str) -> bytes:
    raise AssertionError("no function is needed")
