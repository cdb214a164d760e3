"""Promises about how a task ends, and who is told (5-7, 11, 14, 20 of docs/explanation/promises.md)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import logging
import os
import random
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, CancelledError
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NoReturn

import pytest

from rush_executor import InitializerError, PayloadError, RushExecutor, RushFuture, WorkerLostError
from tests.acceptance import tasks
from tests.acceptance.programs import DEADLINE_S

Eventually = Callable[[Callable[[], object]], Any]

# ------------------------------------------------------------------------------------------- 5: whatever is raised

ENDS = [
    SystemExit(3),
    KeyboardInterrupt("stop"),
    GeneratorExit("stop"),
    StopIteration("stop"),
    StopAsyncIteration("stop"),
    CancelledError("stop"),
    asyncio.CancelledError("stop"),
    TimeoutError("stop"),
    concurrent.futures.TimeoutError("stop"),
    BrokenExecutor("stop"),
    BrokenProcessPool("stop"),
    concurrent.futures.InvalidStateError("stop"),
    BaseExceptionGroup("stop", [SystemExit(1), ValueError(2)]),
    BaseException("stop"),
    MemoryError("stop"),
    RecursionError("stop"),
    BrokenPipeError(32, "stop"),
]


def test_promise_5_whatever_a_task_raises_is_its_outcome(lone: RushExecutor) -> None:
    """Promise 5: same type and arguments in the Future, which is not cancelled; the worker and the executor live on."""
    worker = lone.submit(tasks.pid).result()
    for error in ENDS:
        future = lone.submit(tasks.fail, error)
        done, _ = concurrent.futures.wait([future], timeout=DEADLINE_S)
        assert done == {future}, error
        assert not future.cancelled(), error
        failure = future.exception()
        assert type(failure) is type(error)
        if not isinstance(error, BaseExceptionGroup):
            assert failure.args == error.args
        with pytest.raises(type(error)) as raised:
            future.result()
        assert raised.value is failure
        assert lone.submit(tasks.pid).result(DEADLINE_S) == worker, error


@pytest.mark.parametrize("chunksize", [1, 3])
@pytest.mark.parametrize("error", [SystemExit("stop"), KeyboardInterrupt("stop"), CancelledError("stop")], ids=repr)
def test_promise_5_in_map(lone: RushExecutor, error: BaseException, chunksize: int) -> None:
    """Promise 5: `map` raises it too, after the results that came before."""
    worker = lone.submit(tasks.pid).result()

    def fail_third(x: int) -> int:
        if x == 2:
            raise error
        return x

    results = lone.map(fail_third, range(5), chunksize=chunksize)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(type(error), match="stop"):
        next(results)
    assert lone.submit(tasks.pid).result() == worker


def test_promise_5_sys_exit_and_a_signal_that_the_task_sends_itself(lone: RushExecutor) -> None:
    """Promise 5: `sys.exit()` and `signal.raise_signal(SIGINT)` in a task are SystemExit and KeyboardInterrupt."""

    def leave() -> NoReturn:
        import sys

        sys.exit("bye")

    def interrupt() -> None:
        signal.raise_signal(signal.SIGINT)

    worker = lone.submit(tasks.pid).result()
    failure = lone.submit(leave).exception(DEADLINE_S)
    assert type(failure) is SystemExit
    assert failure.code == "bye"
    assert type(lone.submit(interrupt).exception(DEADLINE_S)) is KeyboardInterrupt
    assert lone.submit(tasks.pid).result() == worker


# ---------------------------------------------------------------------------------------- 6: who waits is told


class Gate:
    """A task that runs until the test lets it end."""

    def __init__(self, executor: RushExecutor, directory: Path) -> None:
        self._gate = directory / "gate"
        self.future = executor.submit(tasks.wait_for, str(self._gate))

    def open(self) -> None:
        self._gate.touch()
        self.future.result(DEADLINE_S)


@pytest.fixture
def closed(lone: RushExecutor, tmp_path: Path, eventually: Eventually) -> Any:
    """A gate in the only worker: what comes next has to wait."""
    gate = Gate(lone, tmp_path)
    eventually(gate.future.running)
    yield gate
    gate.open()


def test_promise_6_a_cancelled_future_is_done_for_wait(lone: RushExecutor, closed: Gate) -> None:
    """Promise 6: after `cancel()` neither `wait` nor `as_completed` waits for it, though the worker is busy."""
    futures = [lone.submit(tasks.square, x) for x in range(3)]
    assert all(future.cancel() for future in futures)
    assert concurrent.futures.wait(futures, timeout=0).done == set(futures)
    assert set(concurrent.futures.as_completed(futures, timeout=0)) == set(futures)
    for future in futures:
        assert future.cancelled()
        with pytest.raises(CancelledError):
            future.result(timeout=0)
    assert not closed.future.done()


@pytest.mark.parametrize("when", [concurrent.futures.FIRST_COMPLETED, concurrent.futures.ALL_COMPLETED])
def test_promise_6_who_waits_already_is_woken(
    lone: RushExecutor, closed: Gate, eventually: Eventually, when: str
) -> None:
    """Promise 6: who was waiting when the Future was cancelled is told at once."""
    futures = [lone.submit(tasks.square, x) for x in range(3)]
    told: list[object] = []

    def wait() -> None:
        told.append(len(concurrent.futures.wait(futures, return_when=when).done))

    def iterate() -> None:
        told.append(len(list(concurrent.futures.as_completed(futures))))

    def get() -> None:
        try:
            futures[0].result()
        except CancelledError as error:
            told.append(type(error))

    waiters = [threading.Thread(target=target, daemon=True) for target in (wait, iterate, get)]
    for waiter in waiters:
        waiter.start()
    eventually(lambda: all(future._waiters for future in futures))
    for future in futures:
        assert future.cancel()
    for waiter in waiters:
        waiter.join(DEADLINE_S)
        assert not waiter.is_alive()
    assert len(told) == 3
    assert not closed.future.done()


def test_promise_6_shutdown_that_cancels_tells_all(lone: RushExecutor, closed: Gate, eventually: Eventually) -> None:
    """Promise 6: `shutdown(cancel_futures=True)` cancels what waits, and who waits is told while another runs."""
    futures = [lone.submit(tasks.square, x) for x in range(700)]
    called: list[RushFuture] = []
    futures[-1].add_done_callback(called.append)  # type: ignore[arg-type]
    waiter = threading.Thread(target=concurrent.futures.wait, args=(futures,), daemon=True)
    waiter.start()
    eventually(lambda: futures[-1]._waiters)
    lone.shutdown(wait=False, cancel_futures=True)
    waiter.join(DEADLINE_S)
    assert not waiter.is_alive()
    assert all(future.cancelled() for future in futures)
    assert len(list(concurrent.futures.as_completed(futures, timeout=0))) == 700
    assert not closed.future.done()
    eventually(lambda: called == [futures[-1]])


def test_promise_6_map_that_is_given_up_cancels_the_rest(
    lone: RushExecutor, tmp_path: Path, eventually: Eventually
) -> None:
    """Promise 6: an iterator of `map` that is closed, or runs into its time limit, leaves nothing in the queue."""
    told, gate = tmp_path / "told", tmp_path / "gate"
    notes = tmp_path / "notes"

    def task(x: int) -> None:
        if x == 0:
            tasks.tell_and_wait_for(str(told), str(gate))
        tasks.note(str(notes), str(x))

    with pytest.raises(TimeoutError):
        list(lone.map(task, range(50), timeout=0.05))
    # The one that was in the worker, if it had got there, is finished; none of the others comes.
    gate.touch()
    results = lone.map(task, range(100, 150))
    next(results)
    results.close()  # type: ignore[attr-defined]
    lone.submit(tasks.note, str(notes), "end").result()
    lines = notes.read_text().split()
    assert [line for line in lines if line != "0" and int(line.replace("end", "100")) < 100] == []
    assert lines[-1] == "end"


# ------------------------------------------------------------------------------------- 7: cancel tells the truth


def test_promise_7_running_cannot_be_cancelled_waiting_can(lone: RushExecutor, closed: Gate) -> None:
    """Promise 7: False for the running task, whose result still comes; True for the very next one, again and again."""
    following = [lone.submit(tasks.square, x) for x in range(3)]
    assert closed.future.running()
    assert not closed.future.cancel()
    assert not following[0].running()
    assert following[0].cancel()
    assert following[0].cancel()
    assert following[0].cancelled()
    assert not following[0].running()
    closed.open()
    assert not closed.future.cancelled()
    assert not closed.future.running()
    assert not closed.future.cancel()
    assert following[1].result() == 1
    assert not following[1].cancel()


def test_promise_7_what_a_worker_has_taken_in_advance_can_be_cancelled(
    lone: RushExecutor, tmp_path: Path, eventually: Eventually
) -> None:
    """Promise 7: a worker that takes short tasks by the dozen gives back those that it has not started."""
    assert not any(lone.map(tasks.wait_if, [""] * 3000))
    gate = tmp_path / "gate"
    # In one burst, so that they are in the queue together and the worker takes many of them at once.
    futures = [lone.submit(tasks.wait_if, "") for _ in range(200)]
    long = lone.submit(tasks.wait_if, str(gate))
    behind = [lone.submit(tasks.wait_if, "") for _ in range(200)]
    eventually(lambda: all(future.done() for future in futures) and long.running())
    eventually(lambda: all(future.cancel() for future in behind))
    assert not long.cancel()
    gate.touch()
    assert long.result(DEADLINE_S)
    assert concurrent.futures.wait(behind, timeout=0).not_done == set()


def test_promise_7_atomic_against_the_claim(executor: RushExecutor, tmp_path: Path) -> None:
    """Promise 7: in a race between `cancel` and two workers, what was cancelled never runs, all else runs once."""
    notes = tmp_path / "notes"
    notes.touch()
    rng = random.Random(7)
    futures: list[RushFuture] = []
    cancelled: list[int] = []
    is_over = threading.Event()

    def cancel() -> None:
        while not is_over.is_set() or (futures and not futures[-1].done()):
            for i in range(max(0, len(futures) - 40), len(futures)):
                if futures[i].cancel():
                    cancelled.append(i)
                    break
            # Otherwise they take the interpreter for themselves.
            time.sleep(0.0005)

    cancellers = [threading.Thread(target=cancel) for _ in range(2)]
    for canceller in cancellers:
        canceller.start()
    for i in range(1500):
        futures.append(executor.submit(tasks.note, str(notes), str(i)))
        if rng.random() < 0.05:
            concurrent.futures.wait(futures[-20:], timeout=0.01)
    is_over.set()
    for canceller in cancellers:
        canceller.join(DEADLINE_S)
    concurrent.futures.wait(futures, timeout=DEADLINE_S)
    ran = [int(line) for line in notes.read_text().split()]
    granted = {i for i, future in enumerate(futures) if future.cancelled()}
    assert granted == set(cancelled)
    assert sorted(ran) == sorted(set(range(1500)) - granted)
    assert 0 < len(granted) < 1500


# ------------------------------------------------------------------------------------------------- 11: crashes


@pytest.mark.parametrize(
    ("crash", "exitcode", "words"),
    [
        ((tasks.die, signal.SIGKILL), -signal.SIGKILL, "SIGKILL"),
        ((tasks.die, signal.SIGABRT), -signal.SIGABRT, "SIGABRT"),
        ((tasks.segfault,), -signal.SIGSEGV, "SIGSEGV"),
        ((tasks.exit_now, 7), 7, "exited with code 7"),
        ((tasks.exit_now, 0), 0, "exited with code 0"),
    ],
    ids=["SIGKILL", "SIGABRT", "segfault", "exit 7", "exit 0"],
)
def test_promise_11_a_crash_is_the_crash_of_one_task(
    executor: RushExecutor, crash: tuple[Any, ...], exitcode: int, words: str
) -> None:
    """Promise 11: its Future names task, worker, host and reason; those around it keep their results."""
    before = [executor.submit(tasks.square, x) for x in range(20)]
    future = executor.options(max_retries=0).submit(*crash)
    after = [executor.submit(tasks.square, x) for x in range(20)]
    failure = future.exception(DEADLINE_S)
    assert isinstance(failure, WorkerLostError)
    assert isinstance(failure, BrokenExecutor)
    assert failure.attempts == 1
    assert failure.exitcode == exitcode
    assert failure.host == socket.gethostname()
    assert failure.task_id == future.task_id
    assert failure.worker_id
    for word in (words, failure.host, failure.worker_id, failure.task_id, crash[0].__name__, "max_retries is 0"):
        assert word in str(failure)
    assert [f.result(DEADLINE_S) for f in before + after] == 2 * [x * x for x in range(20)]
    assert executor.submit(tasks.square, 9).result(DEADLINE_S) == 81


@pytest.mark.parametrize(
    "end", [functools.partial(os._exit, 3), functools.partial(os._exit, 0), tasks.segfault], ids=["3", "0", "segfault"]
)
def test_promise_11_what_a_crashed_task_has_started_ends(
    lone: RushExecutor, tmp_path: Path, eventually: Eventually, end: Callable[[], object]
) -> None:
    """Promise 11: it is not there beside the next attempt, nor afterwards."""
    notes = tmp_path / "notes"
    future = lone.options(max_retries=1).submit(tasks.start_sleeper, str(notes), end)
    assert isinstance(future.exception(DEADLINE_S), WorkerLostError)
    pids = [int(pid) for pid in notes.read_text().split()]
    assert len(pids) == 2
    eventually(lambda: not any(map(_runs, pids)))


def test_promise_11_what_the_task_of_a_worker_in_peace_has_started_lives(server_url: str, tmp_path: Path) -> None:
    """Promise 11: a worker that leaves by itself has not crashed."""
    notes = tmp_path / "notes"
    with RushExecutor(1, url=server_url, max_tasks_per_child=1) as executor:
        executor.submit(tasks.start_sleeper, str(notes), int).result(DEADLINE_S)
        # It has been reaped when the next one is there.
        executor.submit(tasks.pid).result(DEADLINE_S)
    pid = int(notes.read_text())
    assert _runs(pid)
    os.kill(pid, signal.SIGKILL)


def _runs(pid: int) -> bool:
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_promise_11_tried_three_times_in_all(executor: RushExecutor, tmp_path: Path) -> None:
    """Promise 11: by default three attempts, each in a process of its own; then the error says how many."""
    notes = tmp_path / "notes"
    future = executor.submit(tasks.note_and_die, str(notes))
    failure = future.exception(DEADLINE_S)
    assert isinstance(failure, WorkerLostError)
    assert failure.attempts == 3
    assert "3 times" in str(failure)
    pids = notes.read_text().split()
    assert len(pids) == len(set(pids)) == 3
    assert f"process {pids[-1]}" in str(failure)
    assert executor.submit(tasks.square, 3).result() == 9


def test_promise_11_a_second_attempt_may_succeed(executor: RushExecutor, tmp_path: Path) -> None:
    """Promise 11: a task whose worker was killed once comes back with its result, in order, in `map` too."""
    notes = [str(tmp_path / str(x)) for x in range(4)]
    assert list(executor.map(tasks.die_once, notes)) == ["survived"] * 4
    assert list(executor.map(tasks.die_once, [str(tmp_path / "chunk"), *notes], chunksize=5)) == ["survived"] * 5


def test_promise_11_only_the_guilty_is_charged(lone: RushExecutor, tmp_path: Path) -> None:
    """Promise 11: what the worker had taken in advance and not started goes back uncharged; what had ended, ended."""
    notes = tmp_path / "notes"

    def task(x: int) -> int:
        if x == 100:
            os.kill(os.getpid(), signal.SIGKILL)
        tasks.note(str(notes), str(x))
        return x

    # So that the worker knows the function for a short one, and takes many at once.
    assert list(lone.map(task, range(1000, 3000))) == list(range(1000, 3000))
    futures = [lone.options(max_retries=0).submit(task, x) for x in range(300)]
    concurrent.futures.wait(futures, timeout=DEADLINE_S)
    failure = futures[100].exception()
    assert isinstance(failure, WorkerLostError)
    assert failure.attempts == 1
    assert [future.result() for x, future in enumerate(futures) if x != 100] == [x for x in range(300) if x != 100]
    assert set(notes.read_text().split()) >= {str(x) for x in range(300) if x != 100}


def test_promise_11_without_retries_a_task_runs_at_most_once(lone: RushExecutor, tmp_path: Path) -> None:
    """Promise 11: `max_retries=0` is for what must not be done twice, whoever crashes beside it."""
    notes = tmp_path / "notes"

    def task(x: int) -> int:
        if x == 100:
            os.kill(os.getpid(), signal.SIGKILL)
        tasks.note(str(notes), str(x))
        return x

    assert list(lone.map(task, range(1000, 3000))) == list(range(1000, 3000))
    futures = [lone.options(max_retries=0).submit(task, x) for x in range(300)]
    concurrent.futures.wait(futures, timeout=DEADLINE_S)
    ran = notes.read_text().split()
    assert len(ran) == len(set(ran))


def test_promise_11_a_worker_killed_from_outside(lone: RushExecutor, tmp_path: Path, eventually: Eventually) -> None:
    """Promise 11: an idle worker that is killed costs nothing; a busy one costs its task an attempt."""
    for _ in range(3):
        worker = lone.submit(tasks.pid).result()
        os.kill(worker, signal.SIGKILL)
        assert lone.submit(tasks.pid).result(DEADLINE_S) != worker
    told, gate = tmp_path / "told", tmp_path / "gate"
    future = lone.submit(tasks.tell_and_wait_for, str(told), str(gate), "done")
    eventually(told.exists)
    others = [lone.submit(tasks.square, x) for x in range(10)]
    worker = _only_worker_of(future, lone)
    told.unlink()
    os.kill(worker, signal.SIGKILL)
    eventually(told.exists)
    gate.touch()
    assert future.result(DEADLINE_S) == "done"
    assert [other.result() for other in others] == [x * x for x in range(10)]


def _only_worker_of(future: RushFuture, executor: RushExecutor) -> int:
    import psutil

    agents = [p for p in psutil.Process().children() if "rush-agent" in p.cmdline()]
    workers = [worker for agent in agents for worker in agent.children()]
    assert len(workers) == 1
    return int(workers[0].pid)


# ----------------------------------------------------------------------------------------------- 14: callbacks


def test_promise_14_a_callback_may_wait_for_another_future(executor: RushExecutor, eventually: Eventually) -> None:
    """Promise 14: a done-callback submits and waits, on top of a callback that does the same."""
    by_first: list[int] = []
    by_second: list[int] = []

    def first(future: Any) -> None:
        by_first.append(future.result())
        following = executor.submit(tasks.square, future.result())
        following.add_done_callback(second)
        by_first.append(following.result(DEADLINE_S))

    def second(future: Any) -> None:
        by_second.append(executor.submit(tasks.square, future.result()).result(DEADLINE_S))

    executor.submit(tasks.square, 2).add_done_callback(first)
    # Who waits for a future and the callbacks of it go on side by side.
    eventually(lambda: by_first == [4, 16] and by_second == [256])


def test_promise_14_a_callback_may_wait_for_what_came_with_it(lone: RushExecutor) -> None:
    """Promise 14: also for one whose result is behind its own in the inbox, and for a `map`."""
    futures = [lone.submit(tasks.square, x) for x in range(200)]
    totals: list[int] = []
    is_over = threading.Event()

    def add_up(_: Any) -> None:
        totals.append(sum(future.result(DEADLINE_S) for future in futures))
        totals.append(sum(lone.map(tasks.square, range(200))))
        is_over.set()

    futures[0].add_done_callback(add_up)
    assert is_over.wait(DEADLINE_S)
    assert totals == [2646700, 2646700]


def test_promise_14_a_callback_may_shut_down(server_url: str) -> None:
    """Promise 14: `shutdown` in a callback returns, and the executor is shut down."""
    executor = RushExecutor(1, url=server_url)
    is_over = threading.Event()

    def stop(_: Any) -> None:
        executor.shutdown()
        is_over.set()

    executor.submit(tasks.square, 2).add_done_callback(stop)
    assert is_over.wait(DEADLINE_S)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(tasks.square, 2)
    executor.shutdown()


def test_promise_14_callbacks_are_run_all_and_before_shutdown_ends(
    server_url: str, tmp_path: Path, caplog: Any
) -> None:
    """Promise 14: in order, each once, one that raises does not stop the next, and `shutdown` waits for them."""
    seen: list[int] = []
    gate = tmp_path / "gate"
    with RushExecutor(1, url=server_url) as executor:
        # A callback that is added when all is done is run at once.
        executor.submit(tasks.wait_for, str(gate))
        for x in range(100):
            executor.submit(tasks.echo, x).add_done_callback(lambda future: seen.append(future.result()))
        future = executor.submit(tasks.echo, 100)
        future.add_done_callback(lambda _: 1 / 0)
        future.add_done_callback(lambda f: seen.append(f.result()))
        gate.touch()
    assert seen == list(range(101))
    assert "exception calling callback" in caplog.text
    future.add_done_callback(lambda _: seen.append(-1))
    assert seen[-1] == -1


# --------------------------------------------------------------------------------------------- 20: initializer


def fail_to_initialize(reason: str) -> NoReturn:
    raise ValueError(f"no initialisation: {reason}")


def leave_at_once() -> NoReturn:
    raise SystemExit("I leave")


@pytest.mark.parametrize(
    ("initializer", "initargs", "words"),
    [
        (fail_to_initialize, ("bad weather",), "ValueError: no initialisation: bad weather"),
        (leave_at_once, (), "SystemExit: I leave"),
        (tasks.echo, (tasks.Homebody(LookupError),), "far from home"),
    ],
    ids=["raises", "exits", "does not unpickle"],
)
def test_promise_20_a_failing_initializer_says_why(
    server_url: str, initializer: Any, initargs: tuple[Any, ...], words: str, caplog: Any
) -> None:
    """Promise 20: pending and later tasks raise BrokenExecutor with the initializer's own traceback."""
    executor = RushExecutor(2, url=server_url, initializer=initializer, initargs=initargs)
    with caplog.at_level(logging.CRITICAL, logger="concurrent.futures"):
        try:
            futures = [executor.submit(tasks.square, x) for x in range(3)]
        except BrokenExecutor:
            # The workers were quicker than this loop.
            futures = []
        for future in futures:
            failure = future.exception(DEADLINE_S)
            assert isinstance(failure, InitializerError)
            assert isinstance(failure, BrokenExecutor)
            assert words in str(failure)
            assert "Traceback (most recent call last)" in str(failure)
        concurrent.futures.wait(futures)
    if futures:
        with pytest.raises(InitializerError, match=re.escape(words)):
            executor.submit(tasks.square, 4)
        assert words in caplog.text
    executor.shutdown()
    with pytest.raises(BrokenExecutor, match=re.escape(words)):
        executor.submit(tasks.square, 4)


def test_promise_20_pending_tasks_are_told(server_url: str, tmp_path: Path) -> None:
    """Promise 20: tasks that were in the queue before the initializer failed are told, each."""
    gate = tmp_path / "gate"

    def fail_later() -> NoReturn:
        tasks.wait_for(str(gate))
        raise ValueError("too late")

    with RushExecutor(2, url=server_url, initializer=fail_later) as executor:
        futures = [executor.submit(tasks.square, x) for x in range(50)]
        called: list[object] = []
        futures[-1].add_done_callback(called.append)
        gate.touch()
        for future in futures:
            with pytest.raises(BrokenExecutor, match="ValueError: too late"):
                future.result(DEADLINE_S)
        with pytest.raises(BrokenExecutor, match="ValueError: too late"):
            executor.map(tasks.square, range(3))
    assert called == [futures[-1]]


@pytest.mark.parametrize(
    ("crash", "words"),
    [(lambda: os._exit(5), "exited with code 5"), (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL")],
    ids=["exit", "killed"],
)
def test_promise_20_an_initializer_that_kills_its_worker(
    server_url: str, crash: Callable[[], object], words: str
) -> None:
    """Promise 20: a worker that dies of its initializer is tried some times, then the executor is broken."""
    with RushExecutor(1, url=server_url, initializer=crash) as executor:
        failure = executor.submit(tasks.square, 2).exception(DEADLINE_S)
    assert isinstance(failure, BrokenExecutor)
    assert words in str(failure)
    assert "initializer" in str(failure)


def test_promise_20_one_that_cannot_be_pickled_is_refused_at_once(server_url: str) -> None:
    """Promise 20: there is no Future to fail yet, so the constructor raises, and nothing is left."""
    with pytest.raises(PayloadError, match="initarg 1 of echo"):
        RushExecutor(1, url=server_url, initializer=tasks.echo, initargs=(threading.Lock(),))
    with pytest.raises(TypeError, match="initializer must be a callable"):
        RushExecutor(1, url=server_url, initializer=5)  # type: ignore[arg-type]
