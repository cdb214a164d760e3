"""The task loop and what it asks of its ledger: nothing that is done waits for long behind what runs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rush_executor._ledger.worker import Claimed, Outcome
from rush_executor._protocol.records import Claim
from rush_executor._protocol.slots import SLOT_SIZE, Slot
from rush_executor._worker.loop import TaskLoop
from rush_executor._worker.pace import Pace
from rush_executor._worker.signals import WorkerSignals
from rush_executor.errors import NetworkLostError


def claim(name: str) -> Claim:
    return Claim(name, 1, b"call")


class Ledger:
    """Gives what a test has laid out for it; takes down what it is told."""

    def __init__(self, *answers: Claimed) -> None:
        self.answers = list(answers)
        self.finished: list[str] = []
        self.n_asked = 0

    def exchange(self, outcomes: Sequence[Outcome], **_: object) -> Claimed:
        self.finish(outcomes)
        return self.answers.pop(0)

    def ask(self, outcomes: Sequence[Outcome], *, limit: int, known: Iterable[str]) -> None:
        self.n_asked += 1

    def answer(self, outcomes: Sequence[Outcome]) -> Claimed:
        return self.exchange(outcomes)

    def finish(self, outcomes: Sequence[Outcome]) -> list[str]:
        self.finished += [outcome.claim.task_id for outcome in outcomes]
        return []

    def release(self, claims: Sequence[Claim]) -> int:
        return len(claims)


class Decoder:
    """All tasks are of one function."""

    def __init__(self, run: Callable[[str], object]) -> None:
        self._run = run

    def function_key(self, _: bytes) -> bytes:
        return b"function"

    def decode_call(self, _client: str, task_id: str, _payload: bytes) -> SimpleNamespace:
        return SimpleNamespace(fn=self._run, args=(task_id,), kwargs={}, is_chunk=False)

    def encode_result(self, *_: object, **__: object) -> bytes:
        return b""

    encode_failure = encode_result


def run(ledger: Ledger, watch: Callable[[TaskLoop, str], None]) -> None:
    """Runs tasks, known to be short, until one is called "last"; `watch` is called in each."""

    def task(name: str) -> None:
        watch(loop, name)
        if name == "last":
            slot.set_leaving()

    slot = Slot(bytearray(SLOT_SIZE))
    loop = TaskLoop(cast(Any, ledger), threading.Lock(), cast(Any, Decoder(task)), slot, max_tasks=None, agent_pid=0)
    loop._pace.ran(b"function", 1e-6)
    loop.run()


def test_an_outcome_does_not_wait_for_a_task_that_was_asked_for() -> None:
    """One that ended before the answer came is looked after by the courier, also if the answer is one task alone."""
    ledger = Ledger(Claimed([claim("a")], 0, []), Claimed([claim("b")], 10, []), Claimed([claim("last")], 0, []))
    waiting: dict[str, tuple[list[str], bool]] = {}

    def watch(loop: TaskLoop, name: str) -> None:
        waiting[name] = ([outcome.claim.task_id for outcome in loop.outcomes], loop.busy.is_set())

    run(ledger, watch)
    assert ledger.n_asked == 1
    assert waiting["last"] == (["b"], True), "nobody hands it in while this one runs"
    assert ledger.finished == ["a", "b", "last"]


@pytest.mark.parametrize(("limit", "is_asked"), [(1, False), (2, True), (16, True), (17, False), (256, False)])
def test_asks_ahead_where_few_make_a_batch(limit: int, is_asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many the worker that never sleeps loses the processor with a batch in its hands."""
    monkeypatch.setattr(Pace, "limit", limit)
    ledger = Ledger(Claimed([claim("a")], 1000, []), Claimed([claim("last")], 0, []))
    run(ledger, lambda *_: None)
    assert ledger.n_asked == is_asked


def test_an_outcome_does_not_wait_because_the_courier_has_just_looked() -> None:
    """It clears its flag, then takes what lies here: a task that ends and one that begins in between are seen next."""
    ledger = Ledger(Claimed([claim("a"), claim("last")], 0, []))
    waiting: list[tuple[list[str], bool]] = []

    def watch(loop: TaskLoop, name: str) -> None:
        waiting.append(([outcome.claim.task_id for outcome in loop.outcomes], loop.busy.is_set()))
        # As the courier does, too early for what this task leaves.
        loop.busy.clear()

    run(ledger, watch)
    assert waiting == [([], True), (["a"], True)]


def test_the_courier_sleeps_while_nothing_waits() -> None:
    """A task that its worker holds alone wakes nobody."""
    ledger = Ledger(Claimed([claim("a")], 1, []), Claimed([claim("last")], 0, []))
    flags: list[bool] = []
    run(ledger, lambda loop, _: flags.append(loop.busy.is_set()))
    assert flags == [False, False]


def test_a_wish_to_leave_that_no_signal_tells() -> None:
    """It is looked at before each task: what was claimed is given back."""
    ran: list[str] = []
    released: list[str] = []

    class Told(Ledger):
        def release(self, claims: Sequence[Claim]) -> int:
            released.extend(claim.task_id for claim in claims)
            return super().release(claims)

    def watch(loop: TaskLoop, name: str) -> None:
        ran.append(name)
        loop._slot.set_leaving()

    ledger = Told(Claimed([claim("a"), claim("b"), claim("c")], 0, []))
    run(ledger, watch)
    assert (ran, released, ledger.finished) == (["a"], ["b", "c"], ["a"])


def test_a_wait_can_be_broken_off_until_it_is_over() -> None:
    """From then on a signal finds the loop taking in the answer, and it leaves a moment later with all that it got."""
    waiting: list[bool] = []

    class Waits(Ledger):
        def exchange(self, outcomes: Sequence[Outcome], **how: Any) -> Claimed:
            waiting.append(loops[0].is_waiting)
            how["when_over"]()
            waiting.append(loops[0].is_waiting)
            return super().exchange(outcomes)

    loops: list[TaskLoop] = []
    slot = Slot(bytearray(SLOT_SIZE))
    ledger = Waits(Claimed([claim("a")], 0, []), Claimed([claim("last")], 0, []))
    decoder = Decoder(lambda name: slot.set_leaving() if name == "last" else None)
    loops += [TaskLoop(cast(Any, ledger), threading.Lock(), cast(Any, decoder), slot, max_tasks=None, agent_pid=0)]
    loops[0].run()
    assert waiting == [True, False] * 2
    assert ledger.finished == ["a", "last"]


def test_each_task_finds_the_handlers_of_the_worker() -> None:
    """Whatever the one before has left in their place, also when it has failed."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    found: list[object] = []

    def watch(loop: TaskLoop, name: str) -> None:
        if name == "a":
            loop.signals = WorkerSignals(loop, loop._slot)
            loop.signals.install()
        found.append(signal.getsignal(signal.SIGTERM))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if name == "b":
            raise LookupError

    try:
        run(Ledger(Claimed([claim("a"), claim("b"), claim("last")], 0, [])), watch)
        found.append(signal.getsignal(signal.SIGTERM))
    finally:
        for signum, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(signum, handler)
    assert len(found) == 4
    assert len(set(found)) == 1


class Door:
    """A lock, and a sign that somebody stands before it."""

    def __init__(self, lock: threading.Lock, is_reached: threading.Event) -> None:
        self.lock = lock
        self.is_reached = is_reached

    def __enter__(self) -> None:
        self.is_reached.set()
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def test_what_the_courier_could_not_give_back_is_not_claimed_again() -> None:
    """It is put back while the loop stands at the lock: a claim would bring it a second time."""
    ran: list[str] = []
    ran_at_exchange: list[list[str]] = []
    is_taken, is_reached = threading.Event(), threading.Event()
    couriers: list[threading.Thread] = []

    class Away(Ledger):
        def exchange(self, outcomes: Sequence[Outcome], **_: object) -> Claimed:
            ran_at_exchange.append([*ran])
            return super().exchange(outcomes)

        def release(self, claims: Sequence[Claim]) -> int:
            is_taken.set()
            assert is_reached.wait(30)
            raise NetworkLostError("away")

    def give_back(loop: TaskLoop) -> None:
        with pytest.raises(NetworkLostError):
            loop.hand_over()

    def watch(loop: TaskLoop, name: str) -> None:
        ran.append(name)
        if name == "a":
            couriers.append(threading.Thread(target=give_back, args=(loop,)))
            couriers[0].start()
            assert is_taken.wait(30)
            loop.lock = cast(Any, Door(loop.lock, is_reached))

    run(Away(Claimed([claim("a"), claim("b"), claim("c")], 0, []), Claimed([claim("last")], 0, [])), watch)
    couriers[0].join()
    assert ran_at_exchange == [[], ["a", "b", "c"]]
    assert ran == ["a", "b", "c", "last"]
