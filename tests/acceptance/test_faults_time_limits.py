"""Time limits and kills: the task ends, its worker with it, and nothing else."""

from __future__ import annotations

import ctypes
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, wait
from pathlib import Path
from typing import Any

import pytest
import redis

from rush_executor import RushExecutor, RushFuture, TaskKilledError, TaskTimeoutError, WorkerLostError
from rush_executor._crew import crew
from rush_executor._protocol.keys import Keys
from tests.acceptance import tasks

Eventually = Callable[..., Any]
DEADLINE_S = 60


@pytest.fixture
def pool() -> Iterator[RushExecutor]:
    with RushExecutor(2) as executor:
        yield executor


def backtrack() -> object:
    """Minutes in C code that looks at no signal."""
    return re.match(r"(a+)+$", "a" * 40 + "b")


def note(path: str) -> int:
    """Counts the calls; returns its process."""
    with Path(path).open("a") as file:
        file.write("x")
    return os.getpid()


def note_and_sleep(path: str) -> None:
    note(path)
    time.sleep(600)


def double(x: int) -> int:
    return 2 * x


@pytest.mark.parametrize("stuck", [backtrack, lambda: time.sleep(600)], ids=["regex", "sleep"])
def test_a_stuck_call_ends(pool: RushExecutor, stuck: Callable[[], object]) -> None:
    """Also in C code; the error says what, how long and where; the pool goes on."""
    future = pool.options(timeout=0.5).submit(stuck)
    with pytest.raises(
        TaskTimeoutError, match=r"took longer than its timeout of 0\.5 s and was ended: task "
    ) as caught:
        future.result(DEADLINE_S)
    assert isinstance(caught.value, TimeoutError)
    assert (caught.value.task_id, caught.value.timeout) == (future.task_id, 0.5)
    assert pool.submit(double, 4).result(DEADLINE_S) == 8


def test_it_is_run_once(pool: RushExecutor, tmp_path: Path) -> None:
    """A time limit is no accident: the task is not run again, however many retries it has."""
    path = tmp_path / "runs"
    path.touch()
    future = pool.options(timeout=1, max_retries=5).submit(note_and_sleep, str(path))
    assert isinstance(future.exception(DEADLINE_S), TaskTimeoutError)
    # Nothing if it was ended before it could note.
    assert path.read_text() in ("x", "")


def test_nobody_else_is_harmed(pool: RushExecutor) -> None:
    """Neighbours in the queue, before and behind, are run once each and come out right."""
    short, long = pool.options(timeout=1), pool.options(timeout=60)
    futures = [
        short.submit(time.sleep, 600) if number % 100 == 50 else long.submit(double, number) for number in range(300)
    ]
    wait(futures, timeout=DEADLINE_S)
    for number, future in enumerate(futures):
        if number % 100 == 50:
            assert isinstance(future.exception(0), TaskTimeoutError)
        else:
            assert future.result(0) == 2 * number


def test_the_clock_starts_in_the_worker(pool: RushExecutor) -> None:
    """Waiting in the queue does not count."""
    futures = [pool.options(timeout=5).submit(time.sleep, 0.2) for _ in range(80)]
    assert [future.result(DEADLINE_S) for future in futures] == [None] * 80


class Heavy:
    """Takes its time to be loaded, as a module that is imported for the first time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __reduce__(self) -> tuple[Callable[..., object], tuple[float]]:
        return load_slowly, (self.seconds,)


def load_slowly(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def test_the_clock_starts_with_the_call(pool: RushExecutor) -> None:
    """What a worker must load first does not count: else one that replaces another would endanger its first task."""
    limited = pool.options(timeout=3)
    futures = [limited.submit(time.sleep, 600), limited.submit(double, Heavy(3.5))]  # type: ignore[arg-type]
    assert isinstance(futures[0].exception(DEADLINE_S), TaskTimeoutError)
    assert futures[1].result(DEADLINE_S) == 7.0


def test_many_short_ones(pool: RushExecutor) -> None:
    """A limit that nobody exceeds harms nobody, however close together they are."""
    limited = pool.options(timeout=0.9)
    assert list(limited.map(double, range(3000))) == [2 * x for x in range(3000)]


def test_bad_limits(pool: RushExecutor) -> None:
    """Are told at once."""
    for bad in (0, -1, math.nan):
        with pytest.raises(ValueError, match="timeout must be greater than 0"):
            pool.options(timeout=bad)
    with pytest.raises(TypeError, match="number of seconds"):
        pool.options(timeout="1")  # type: ignore[arg-type]
    assert pool.options(timeout=3).options(timeout=math.inf).submit(double, 1).result(DEADLINE_S) == 2


def test_kill_a_running_task(pool: RushExecutor, tmp_path: Path, eventually: Eventually) -> None:
    """It ends with `TaskKilledError`, once; the next task runs."""
    path = str(tmp_path / "runs")
    future = pool.submit(note_and_sleep, path)
    eventually(lambda: Path(path).exists() and Path(path).read_text())
    assert future.running()
    assert not future.cancel(), "the standard library's cancel leaves a running task alone"
    assert future.kill()
    with pytest.raises(TaskKilledError, match=r"note_and_sleep\(\) was ended by kill\(\)"):
        future.result(DEADLINE_S)
    assert not future.kill()
    assert Path(path).read_text() == "x"
    assert pool.submit(double, 4).result(DEADLINE_S) == 8


def block_or_sleep(block: str = "", seconds: float = 0) -> None:
    """Blocks with the GIL, so that no other thread of the worker gets to anything."""
    if block:
        Path(block).touch()
        ctypes.PyDLL(None).usleep(3_000_000)
    time.sleep(seconds)


def test_kill_what_waits_behind_a_call_that_keeps_the_gil(
    tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks that were claimed along with it, which their worker can neither begin nor give back, end all the same."""
    # The agent does not see them begun in this time, whenever in the three seconds of that call they are killed.
    impatient = "from rush_executor._agent import supervisor\nsupervisor._LOOK_FOR_TASK_S = 0.1\n"
    monkeypatch.setattr(crew, "_BOOT", crew._BOOT.replace("main(fd)", f"{impatient}main(fd)"))
    gate, block = tmp_path / "gate", tmp_path / "block"
    executor = RushExecutor(1)
    try:
        executor.submit(tasks.wait_for, str(gate))
        # Known to be short then: many are claimed at once.
        for _ in range(40):
            executor.submit(block_or_sleep)
        executor.submit(block_or_sleep, str(block))
        futures = [executor.submit(block_or_sleep, seconds=600) for _ in range(100)]
        gate.touch()
        eventually(block.exists)
        assert all(future.kill() for future in futures)
        for future in futures:
            with pytest.raises((CancelledError, TaskKilledError)):
                future.result(DEADLINE_S)
    finally:
        executor.kill_workers()


def submit_wanted(executor: RushExecutor, gate: Path, eventually: Eventually, *, is_told: bool) -> RushFuture:
    """A queued task that is as if its worker had given it back after `kill()`, behind one that waits for a file."""
    running = executor.submit(tasks.wait_for, str(gate))
    eventually(running.running)
    queued = executor.submit(time.sleep, 600)
    eventually(lambda: queued._is_sent)
    keys = Keys(executor.network_id)
    with redis.Redis.from_url(executor._session.config.url) as server:
        [agent_id] = server.smembers(keys.agent_ids)
        name = keys.kills(agent_id.decode())
        server.sadd(name, queued.task_id)
        if is_told:
            server.publish(name, queued.task_id)
    return queued


def test_kill_what_is_given_back(server_url: str, tmp_path: Path, eventually: Eventually) -> None:
    """A moment after its agent was told: the task is cancelled then, and never runs."""
    gate = tmp_path / "gate"
    with RushExecutor(1, url=server_url, heartbeat_period=0.5) as executor:
        try:
            queued = submit_wanted(executor, gate, eventually, is_told=True)
            with pytest.raises(CancelledError):
                queued.result(DEADLINE_S / 2)
        finally:
            gate.touch()
            executor.shutdown(wait=False, cancel_futures=True)


def test_kill_what_a_leaving_agent_gives_back(server_url: str, tmp_path: Path, eventually: Eventually) -> None:
    """It ends, though its agent leaves before it has heard of that; it has begun only if a worker was quicker."""
    gate = tmp_path / "gate"
    with RushExecutor(0, url=server_url, network_id="n") as executor:
        leaving = RushExecutor(1, url=server_url, network_id="n")
        try:
            queued = submit_wanted(executor, gate, eventually, is_told=False)
            leaving.shutdown(wait=False)
            gate.touch()
            with pytest.raises((CancelledError, TaskKilledError)):
                queued.result(DEADLINE_S / 2)
        finally:
            gate.touch()
            leaving.kill_workers()
            executor.shutdown(wait=False, cancel_futures=True)


def test_kill_a_queued_task(pool: RushExecutor, tmp_path: Path, eventually: Eventually) -> None:
    """It is cancelled and never runs; what runs is not disturbed."""
    path = str(tmp_path / "runs")
    gate = tmp_path / "gate"
    running = [pool.submit(tasks.wait_for, str(gate)) for _ in range(2)]
    eventually(lambda: all(future.running() for future in running))
    queued = pool.submit(note, path)
    assert queued.kill()
    with pytest.raises(CancelledError):
        queued.result(DEADLINE_S)
    gate.touch()
    assert [future.result(DEADLINE_S) for future in running] == [None, None]
    assert not Path(path).exists()


def test_kill_at_any_moment(pool: RushExecutor) -> None:
    """Each ends in exactly one way, and those that were not meant are run."""
    futures = [pool.submit(time.sleep, 0.003) for _ in range(400)]
    for future in futures[::20]:
        future.kill()
    ends = []
    for number, future in enumerate(futures):
        try:
            ends.append(future.result(DEADLINE_S))
        except (TaskKilledError, CancelledError) as error:
            assert number % 20 == 0
            ends.append(error)
    assert len(ends) == 400


@pytest.mark.parametrize("how", ["terminate_workers", "kill_workers"])
def test_end_all_workers(how: str, eventually: Eventually) -> None:
    """As in Python 3.14: at once; what ran fails, what waited is cancelled, nothing more is taken."""
    executor = RushExecutor(2)
    running = [executor.submit(time.sleep, 600) for _ in range(2)]
    queued = [executor.submit(double, 1) for _ in range(5)]
    eventually(lambda: all(future.running() for future in running))
    getattr(executor, how)()
    for future in running:
        with pytest.raises(WorkerLostError, match=how):
            future.result(DEADLINE_S)
    # The listener may be about to say so.
    wait(queued, DEADLINE_S)
    assert all(future.cancelled() for future in queued)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(double, 1)
    executor.shutdown()


def crash(text: str) -> None:
    print(text, file=sys.stderr)
    os.abort()


def test_the_last_words_of_a_worker(capfd: pytest.CaptureFixture[str]) -> None:
    """What it wrote to stderr is in the error, with the place of the crash, and where it was written to."""
    with RushExecutor(1) as executor:
        error = executor.options(max_retries=0).submit(crash, "the last words").exception(DEADLINE_S)
    assert isinstance(error, WorkerLostError)
    assert "the last words" in error.stderr
    assert "in crash" in error.stderr
    assert error.stderr.splitlines()[0] in str(error)
    assert "the last words" in capfd.readouterr().err


def shout(n_bytes: int) -> int:
    line = "y" * 99 + "\n"
    for _ in range(n_bytes // 100):
        sys.stderr.write(line)
    return n_bytes


def test_much_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    """All of it arrives, and nobody gets stuck."""
    with RushExecutor(2) as executor:
        assert list(executor.map(shout, [1_000_000] * 3)) == [1_000_000] * 3
    assert capfd.readouterr().err.count("y" * 99) == 30_000


def test_stderr_that_nobody_reads(tmp_path: Path) -> None:
    """The worker waits, as it would if it wrote there itself. Its agent does not: other tasks, and kills, go on."""
    reader, writer = os.pipe()
    old = os.dup(2)
    os.dup2(writer, 2)
    try:
        executor = RushExecutor(2)
    finally:
        os.dup2(old, 2)
        os.close(old)
        os.close(writer)
    try:
        stuck = executor.submit(shout, 1_000_000)
        assert list(executor.map(double, range(100))) == [2 * x for x in range(100)]
        assert not stuck.done()
        assert stuck.kill()
        assert isinstance(stuck.exception(DEADLINE_S), TaskKilledError)
        assert executor.submit(double, 1).result(DEADLINE_S) == 2
    finally:
        executor.shutdown()
        os.close(reader)
