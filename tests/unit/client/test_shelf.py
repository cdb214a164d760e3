"""The shelf: each function travels once, and what no task needs any more is not kept for ever."""

from __future__ import annotations

import gc
import threading
import weakref
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rush_executor._client import shelf as shelf_module
from rush_executor._client.shelf import FunctionShelf
from rush_executor._protocol.records import StoredBody

MOST_IDLE = shelf_module._MOST_IDLE


def send(shelf: FunctionShelf, *digests: str) -> list[str]:
    """What the dispatcher does with a batch of tasks that need these; returns which bodies went out."""
    unsent = shelf.unsent(digests)
    shelf.sent(unsent)
    return sorted(digest for digest, _ in unsent)


def test_a_function_travels_once() -> None:
    """With the first task that needs it, however many there are."""
    shelf = FunctionShelf()
    for _ in range(3):
        shelf.hold("a", b"body")
    assert shelf.unsent(["a", "a", "a"]) == [("a", b"body")]
    assert shelf.unsent(["a"]) == [("a", b"body")], "not yet known to have arrived"
    shelf.sent([("a", b"body")])
    assert shelf.unsent(["a"]) == []
    shelf.hold("a", b"body")
    assert shelf.unsent(["a"]) == []


def test_only_those_of_the_batch() -> None:
    """What the tasks of a batch do not need stays behind."""
    shelf = FunctionShelf()
    for digest in "abc":
        shelf.hold(digest, digest.encode())
    assert send(shelf, "a", "c", "a") == ["a", "c"]
    assert send(shelf, "a", "b", "c") == ["b"]


def test_it_is_kept_after_its_last_task() -> None:
    """The next call of the same lambda does not carry it again."""
    shelf = FunctionShelf()
    shelf.hold("a", b"body")
    send(shelf, "a")
    shelf.release("a")
    shelf.hold("a", b"body")
    assert send(shelf, "a") == []


def test_a_server_that_lost_its_functions_gets_them_again() -> None:
    """Those that were kept, as a task needs them; what no task needs is gone, and carried anew by the next."""
    shelf = FunctionShelf()
    assert shelf.hold("a", b"body", keep=True) == 4
    assert shelf.hold("a", b"body", keep=True) == 0
    assert shelf.hold("b", b"large") == 0
    assert shelf.hold("c", b"idle", keep=True) == 4
    assert send(shelf, "a", "b", "c") == ["a", "b", "c"]
    assert shelf.release("c") == 4
    shelf.forget_sent()
    assert send(shelf, "a", "b", "c") == ["a"]
    assert (shelf.release("a"), shelf.release("a"), shelf.release("b")) == (0, 4, 0)
    shelf.hold("c", b"idle")
    assert send(shelf, "c") == ["c"]


def test_a_task_that_was_never_sent() -> None:
    """Cancelled in the outbox: its function is not sent later, nor kept in memory."""
    shelf = FunctionShelf()
    shelf.hold("a", b"body")
    shelf.release("a")
    assert send(shelf, "a") == []
    assert not shelf._unsent
    shelf.hold("a", b"body")
    assert send(shelf, "a") == ["a"]


def test_a_task_that_ends_while_its_function_is_under_way() -> None:
    """The function has arrived all the same, and is one of those that may be deleted later."""
    shelf = FunctionShelf()
    shelf.hold("a", b"body")
    unsent = shelf.unsent(["a"])
    shelf.release("a")
    shelf.sent(unsent)
    assert list(shelf._idle) == ["a"]


def test_the_excess_goes_least_recently_used_first() -> None:
    """A client that makes closures all day does not fill the server."""
    shelf = FunctionShelf()
    names = [f"f{number}" for number in range(MOST_IDLE + 3)]
    for name in names:
        shelf.hold(name, b"body")
        send(shelf, name)
        shelf.release(name)
        if name == names[-4]:
            shelf.hold(names[0], b"body")
            shelf.release(names[0])
    assert shelf.take_excess() == names[1:4]
    assert shelf.take_excess() == []
    shelf.hold(names[1], b"body")
    assert send(shelf, names[1]) == [names[1]], "it is not there any more: it travels again"


def test_what_is_needed_is_no_excess() -> None:
    """However many functions pending tasks need."""
    shelf = FunctionShelf()
    names = [f"f{number}" for number in range(3 * MOST_IDLE)]
    for name in names:
        shelf.hold(name, b"body")
    send(shelf, *names)
    assert shelf.take_excess() == []


@given(st.integers(0, 200))
def test_at_most_so_many_idle_ones(n: int) -> None:
    """After a look there are no more than the limit."""
    shelf = FunctionShelf()
    for number in range(n):
        shelf.hold(str(number), b"")
        send(shelf, str(number))
        shelf.release(str(number))
    assert len(shelf.take_excess()) == max(0, n - MOST_IDLE)


def stored_body(size: int, n_chunks: int = 0) -> StoredBody:
    body = StoredBody(b"stub")
    body.size = size
    body.chunks = (b"chunk",) * n_chunks
    body.backing = Backing()
    return body


class Backing:
    """Stands for a file."""


def test_a_large_body_is_kept_as_long_as_the_server_has_its_stub() -> None:
    """Also when no task needs it at the moment: the next one finds it there."""
    shelf = FunctionShelf()
    body = stored_body(10 << 20)
    backing = weakref.ref(body.backing)
    shelf.hold("a", body)
    del body
    send(shelf, "a")
    shelf.release("a")
    gc.collect()
    assert backing() is not None
    shelf.forget_sent()
    gc.collect()
    assert backing() is None


def test_a_large_body_that_was_never_sent() -> None:
    """It goes with the last task that needed it."""
    shelf = FunctionShelf()
    body = stored_body(10 << 20)
    backing = weakref.ref(body.backing)
    shelf.hold("a", body, keep=True)
    del body
    shelf.release("a")
    gc.collect()
    assert backing() is None


def test_the_excess_in_bytes() -> None:
    """Large functions that nobody needs are not kept by the dozen; the last one is, whatever its size."""
    shelf = FunctionShelf()
    third = shelf_module._MOST_IDLE_BYTES // 3
    for name in "abcd":
        shelf.hold(name, stored_body(third))
        send(shelf, name)
        shelf.release(name)
    assert shelf.take_excess() == ["a"]
    shelf.hold("e", stored_body(10 * third))
    send(shelf, "e")
    assert not shelf.has_excess(), "it is needed"
    shelf.release("e")
    assert shelf.take_excess() == ["b", "c", "d"]
    assert shelf.take_excess() == []


def test_chunks_are_deleted_with_what_they_belong_to() -> None:
    """Each by its name."""
    shelf = FunctionShelf()
    shelf.hold("a", stored_body(10, n_chunks=3), keep=True)
    assert send(shelf, "a") == ["a"]
    assert shelf.release("a") == len(b"stub") + 3 * len(b"chunk")
    shelf.drop("a")
    assert shelf.take_excess() == ["a", "a/0", "a/1", "a/2"]


def test_a_scattered_object_goes_when_nothing_refers_to_it() -> None:
    """As soon as no task needs it, and not before."""
    shelf = FunctionShelf()
    shelf.hold("a", b"body")
    shelf.drop("a")
    assert send(shelf, "a") == ["a"]
    assert shelf.take_excess() == []
    shelf.release("a")
    assert shelf.take_excess() == ["a"]
    assert not shelf.has_excess()


def test_a_body_in_another_form_is_sent_again() -> None:
    """Also when the old one was on its way just then; its chunks count."""
    shelf = FunctionShelf()
    old, new = stored_body(10), stored_body(10, n_chunks=3)
    assert shelf.replace("a", new) == 0, "nobody needs it"
    shelf.hold("a", old, keep=True)
    under_way = shelf.unsent(["a"])
    assert shelf.replace("a", new) == 3 * len(b"chunk")
    shelf.sent(under_way)
    assert shelf.unsent(["a"]) == [("a", new)]
    assert shelf.replace("a", new) == 0, "it is being sent"
    send(shelf, "a")
    assert shelf.unsent(["a"]) == []
    shelf.forget_sent()
    assert shelf.unsent(["a"]) == [("a", new)]
    assert shelf.release("a") == len(b"stub") + 3 * len(b"chunk")


def test_a_scattered_object_that_no_task_has_needed() -> None:
    """There is nothing to delete."""
    shelf = FunctionShelf()
    shelf.drop("a")
    assert not shelf.has_excess()
    shelf.hold("b", b"body")
    shelf.drop("b")
    shelf.release("b")
    assert shelf.take_excess() == []
    assert not shelf.has_excess()


class ShelfAgainstServer(RuleBasedStateMachine):
    """Whatever happens, a task finds its function at the server."""

    def __init__(self) -> None:
        super().__init__()
        self.shelf = FunctionShelf()
        self.outbox: list[str] = []
        self.running: list[str] = []
        self.server: set[str] = set()
        self.dropped: set[str] = set()

    @rule(digest=st.integers(0, 90).map(str))
    def submit(self, digest: str) -> None:
        # Something refers to it again: as if it were another one of the same name.
        self.dropped.discard(digest)
        self.shelf._unwanted.discard(digest)
        self.shelf.hold(digest, digest.encode())
        self.outbox.append(digest)

    @rule(first=st.integers(0, 60))
    def submit_many(self, first: int) -> None:
        for number in range(first, first + 40):
            self.submit(str(number))

    @rule()
    def dispatch(self) -> None:
        unsent = self.shelf.unsent(self.outbox)
        assert all(body == digest.encode() for digest, body in unsent)
        self.server |= {digest for digest, _ in unsent}
        self.shelf.sent(unsent)
        self.server -= set(self.shelf.take_excess())
        assert not self.server & self.dropped
        self.running += self.outbox
        self.outbox.clear()

    @precondition(lambda self: self.running)
    @rule(n=st.integers(1, 50))
    def finish(self, n: int) -> None:
        for digest in self.running[:n]:
            self.shelf.release(digest)
        del self.running[:n]

    @rule(digest=st.integers(0, 90).map(str))
    def drop(self, digest: str) -> None:
        if digest not in self.outbox and digest not in self.running:
            self.shelf.drop(digest)
            self.dropped.add(digest)

    @precondition(lambda self: self.outbox)
    @rule()
    def cancel_in_the_outbox(self) -> None:
        self.shelf.release(self.outbox.pop())

    @invariant()
    def a_running_task_has_its_function(self) -> None:
        assert set(self.running) <= self.server

    @invariant()
    def it_knows_what_it_has(self) -> None:
        assert set(self.shelf._stored) == self.server
        assert self.shelf._n_pending == Counter(self.outbox + self.running)


test_shelf_against_server = ShelfAgainstServer.TestCase


def test_from_several_threads() -> None:
    """Submitters hold while the dispatcher sends and the listener releases."""
    shelf, n = FunctionShelf(), 2000
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for number in range(n):
                digest = f"{name}{number % 70}"
                shelf.hold(digest, b"x")
                shelf.sent(shelf.unsent([digest]))
                shelf.take_excess()
                shelf.release(digest)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert shelf._n_pending == {}
    shelf.take_excess()
    assert len(shelf._idle) == len(shelf._stored) == MOST_IDLE


def test_releasing_what_nobody_holds() -> None:
    """A fault of ours: it must not go unnoticed."""
    with pytest.raises(KeyError):
        FunctionShelf().release("a")
