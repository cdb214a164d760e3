"""Failures that are retried, and a server that comes back without its data (docs/how-to/retries.md)."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from rush_executor import (
    NetworkLostError,
    RushExecutor,
    RushFuture,
    TaskKilledError,
    TaskTimeoutError,
    WorkerLostError,
)
from rush_executor._client import pending
from rush_executor._ledger.server import EmbeddedServer
from rush_executor._protocol.keys import Keys
from rush_executor.testing import keys_left, temporary_server
from tests.acceptance import tasks
from tests.acceptance.programs import DEADLINE_S, run_program
from tests.integration.servers import restart_empty

Eventually = Callable[[Callable[[], object]], Any]


@pytest.fixture
def own_url() -> Iterator[str]:
    """URL of a server of the test's own, which it may flush."""
    with temporary_server() as url:
        yield url


def flush(url: str) -> None:
    """What a restart without persistence does to the data."""
    with redis.Redis.from_url(url) as client:
        client.flushall()


def count_run(path: str) -> int:
    with Path(path).open("ab") as file:
        file.write(b".")
        return file.tell()


def fail_until(path: str, n: int, value: Any = None) -> Any:
    """Fails in its first n runs; each leaves one byte."""
    run = count_run(path)
    if run <= n:
        raise ValueError(run)
    return value


def runs(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def is_paused(future: RushFuture) -> bool:
    return future.attempts > 0 and not future._is_sent


# ----------------------------------------------------------------------------------------------------- retry_on


def test_a_failure_is_retried(executor: RushExecutor, tmp_path: Path) -> None:
    """Each run counts once, and the last one's value is the Future's."""
    view = executor.options(retry_on=ValueError)
    futures = [view.submit(fail_until, str(tmp_path / str(n)), n, n) for n in (2, 1, 0)]
    assert [future.result(DEADLINE_S) for future in futures] == [2, 1, 0]
    assert [future.attempts for future in futures] == [3, 2, 1]
    assert [runs(tmp_path / str(n)) for n in range(3)] == [1, 2, 3]
    assert executor.submit(tasks.square, 2).result(DEADLINE_S) == 4


def test_retries_have_an_end(executor: RushExecutor, tmp_path: Path) -> None:
    """After `max_retries` of them the failure is the outcome, and other failures are so at once."""
    future = executor.options(retry_on=(OSError, ValueError), max_retries=1).submit(fail_until, str(tmp_path / "a"), 99)
    assert str(future.exception(DEADLINE_S)) == "2"
    assert (future.attempts, runs(tmp_path / "a")) == (2, 2)
    other = executor.options(retry_on=OSError).submit(fail_until, str(tmp_path / "b"), 99)
    assert isinstance(other.exception(DEADLINE_S), ValueError)
    never = executor.options(retry_on=ValueError, max_retries=0).submit(fail_until, str(tmp_path / "c"), 99)
    assert isinstance(never.exception(DEADLINE_S), ValueError)
    assert (runs(tmp_path / "b"), runs(tmp_path / "c")) == (1, 1)


def test_every_retry_is_a_run(lone: RushExecutor, tmp_path: Path) -> None:
    """One worker is given again what it has just handed in; handing that in once more would count as a run."""
    lone.submit(tasks.pid).result(DEADLINE_S)
    alone = lone.options(retry_on=ValueError, max_retries=4).submit(fail_until, str(tmp_path / "a"), 4, "done")
    assert alone.result(DEADLINE_S) == "done"
    assert (alone.attempts, runs(tmp_path / "a")) == (5, 5)
    view = lone.options(retry_on=ValueError, max_retries=4)
    futures = [view.submit(fail_until, str(tmp_path / str(n)), 4, n) for n in range(5)]
    assert [future.result(DEADLINE_S) for future in futures] == list(range(5))
    assert [runs(tmp_path / str(n)) for n in range(5)] == [5] * 5


def test_closures_large_arguments_and_chunks_are_retried(executor: RushExecutor, tmp_path: Path) -> None:
    """Whatever goes beside the task's record goes again."""
    view = executor.options(retry_on=ValueError)
    large, path, extra = os.urandom(400_000), str(tmp_path / "a"), 3

    def closure(data: bytes) -> int:
        return fail_until(path, 2, len(data) + extra)

    assert view.submit(closure, large).result(DEADLINE_S) == 400_003
    assert runs(tmp_path / "a") == 3
    chunk = str(tmp_path / "b")
    assert list(view.map(fail_until, [chunk] * 3, [1] * 3, range(3), chunksize=3)) == [0, 1, 2]
    assert runs(tmp_path / "b") == 4


def test_lost_workers_are_counted_and_retried(executor: RushExecutor, tmp_path: Path) -> None:
    """A worker lost over the task is an attempt; the error that ends it is a failure like others."""
    future = executor.submit(tasks.die_once, str(tmp_path / "a"))
    future.result(DEADLINE_S)
    assert future.attempts == 2
    retried = executor.options(retry_on=WorkerLostError, max_retries=1).submit(die_until, str(tmp_path / "b"), 3)
    assert retried.result(DEADLINE_S) == 4
    assert retried.attempts == 4
    lost = executor.options(max_retries=1).submit(tasks.die)
    assert isinstance(lost.exception(DEADLINE_S), WorkerLostError)
    assert lost.attempts == 2
    assert executor.submit(tasks.square, 2).exception(DEADLINE_S) is None


def die_until(path: str, n: int) -> int:
    """Dies in its first n runs."""
    run = count_run(path)
    if run <= n:
        os.kill(os.getpid(), signal.SIGKILL)
    return run


def test_while_it_pauses(
    executor: RushExecutor, tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not done, not running; a cancel takes it at once, and its task does not run again."""
    monkeypatch.setattr("rush_executor._client.retries.pause_before", lambda n: 1000.0)
    view = executor.options(retry_on=ValueError)
    paused = [view.submit(fail_until, str(tmp_path / str(n)), 99) for n in range(2)]
    eventually(lambda: all(map(is_paused, paused)))
    assert [future.done() for future in paused] == [False, False]
    assert [future.running() for future in paused] == [False, False]
    assert paused[0].cancel()
    assert paused[0].cancelled()
    executor.shutdown(cancel_futures=True)
    assert paused[1].cancelled()
    assert [future.attempts for future in paused] == [1, 1]


def test_shutdown_waits_for_retries(server_url: str, tmp_path: Path) -> None:
    """It returns when nothing is left to retry."""
    with RushExecutor(1, url=server_url) as executor:
        future = executor.options(retry_on=ValueError).submit(fail_until, str(tmp_path / "a"), 2, "done")
    assert future.result(0) == "done"


def test_cancel_never_waits_for_long(executor: RushExecutor, tmp_path: Path) -> None:
    """Asked at any moment of run and pause, it says what is so, and True means that it does not run again."""
    view = executor.options(retry_on=ValueError, max_retries=1000)
    futures = [view.submit(fail_until, str(tmp_path / str(n)), 1000) for n in range(20)]
    for future in futures:
        end_at = time.monotonic() + DEADLINE_S
        while not future.cancel():
            assert time.monotonic() < end_at
        assert future.cancelled()


def test_interpreter_exit_finishes_retries(tmp_path: Path) -> None:
    """Without a shutdown, when no thread can be started any more."""
    out, err = run_program(
        """
        from pathlib import Path
        from rush_executor import RushExecutor

        def flaky():
            with open("runs", "ab") as file:
                file.write(b".")
                if file.tell() < 3:
                    raise ValueError
            return file.name

        executor = RushExecutor(1)
        future = executor.options(retry_on=ValueError).submit(flaky)
        future.add_done_callback(lambda future: print(future.result(), future.attempts, flush=True))
        """,
        directory=tmp_path,
    )
    assert (out, err) == ("runs 3\n", "")


def fail_behind(gate: str) -> None:
    tasks.wait_for(gate)
    raise OSError("not now")


def test_who_was_to_be_killed_is_not_retried(
    executor: RushExecutor, tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails by itself before its worker's agent comes to it."""
    gate = tmp_path / "gate"
    future = executor.options(retry_on=OSError, max_retries=5).submit(fail_behind, str(gate))
    eventually(future.running)
    monkeypatch.setattr(executor._session._uplink, "kill", lambda _: True)
    assert future.kill()
    gate.touch()
    assert isinstance(future.exception(DEADLINE_S), OSError)
    assert future.attempts == 1


def test_a_fork_has_no_retries(executor: RushExecutor, tmp_path: Path, eventually: Eventually) -> None:
    """The child fails its copy of a Future that pauses; the parent's is retried."""
    future = executor.options(retry_on=ValueError, max_retries=6).submit(fail_until, str(tmp_path / "a"), 6, "done")
    eventually(lambda: is_paused(future))
    pid = os.fork()
    if pid == 0:
        os._exit(0 if isinstance(future.exception(0), RuntimeError) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert future.result(DEADLINE_S) == "done"


# ------------------------------------------------------------------------------------------ a server without its data


def slowly(x: int) -> int:
    time.sleep(0.02)
    return x * x


@pytest.mark.parametrize("n_flushes", [1, 4])
def test_tasks_survive_the_loss_of_the_data(own_url: str, n_flushes: int, eventually: Eventually) -> None:
    """FLUSHALL in the middle of a burst, once and again: all are resolved, and right."""
    extra = 1
    with RushExecutor(2, url=own_url) as executor:
        futures = [executor.submit(lambda x: slowly(x) + extra, x) for x in range(200)]
        for n in range(n_flushes):
            eventually(lambda n=n: sum(future.done() for future in futures) > 10 * n)
            flush(own_url)
        assert [future.result(DEADLINE_S) for future in futures] == [x * x + 1 for x in range(200)]
        assert executor.submit(slowly, 3).result(DEADLINE_S) == 9


def test_flushes_in_quick_succession(own_url: str) -> None:
    """Also in the middle of joining again."""
    with RushExecutor(2, url=own_url) as executor:
        futures = [executor.submit(slowly, x) for x in range(100)]
        for _ in range(60):
            time.sleep(0.03)
            flush(own_url)
            futures.append(executor.submit(slowly, len(futures)))
        assert [future.result(DEADLINE_S) for future in futures] == [x * x for x in range(160)]


def set_level(value: int) -> None:
    tasks.kept["level"] = value


def level(_: int) -> int:
    time.sleep(0.02)
    return tasks.kept["level"]


def test_the_initializer_is_put_back(own_url: str, eventually: Eventually) -> None:
    """By whichever of two clients comes first; both work on."""
    with (
        RushExecutor(1, url=own_url, network_id="n", initializer=set_level, initargs=(7,)) as one,
        RushExecutor(1, url=own_url, network_id="n") as other,
    ):
        for _ in range(2):
            futures = [executor.submit(level, x) for x in range(50) for executor in (one, other)]
            eventually(lambda futures=futures: sum(future.done() for future in futures) > 10)
            flush(own_url)
            assert {future.result(DEADLINE_S) for future in futures} == {7}


def test_large_arguments_survive(own_url: str, tmp_path: Path, eventually: Eventually) -> None:
    """And the task that was running when it happened is run again."""
    told, gate = tmp_path / "told", tmp_path / "gate"
    large = os.urandom(300_000)
    with RushExecutor(1, url=own_url) as executor:
        first = executor.submit(tasks.tell_and_wait_for, str(told), str(gate), large)
        second = executor.submit(tasks.echo, large)
        eventually(told.exists)
        flush(own_url)
        gate.touch()
        assert first.result(DEADLINE_S) == large
        assert second.result(DEADLINE_S) == large


def test_what_must_not_run_twice_fails(own_url: str, tmp_path: Path, eventually: Eventually) -> None:
    """max_retries=0: it may have run, and nobody knows. The executor takes new ones."""
    told, gate = tmp_path / "told", tmp_path / "gate"
    with RushExecutor(1, url=own_url) as executor:
        once = executor.options(max_retries=0).submit(tasks.tell_and_wait_for, str(told), str(gate))
        eventually(told.exists)
        flush(own_url)
        with pytest.raises(NetworkLostError, match="may have been started, and max_retries=0"):
            once.result(DEADLINE_S)
        gate.touch()
        assert executor.options(max_retries=0).submit(tasks.square, 2).result(DEADLINE_S) == 4


def test_what_was_not_kept_fails(
    own_url: str, tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the bound; what asks for retries is kept all the same. Room is there again when tasks have ended."""
    monkeypatch.setattr(pending, "MOST_KEPT_BYTES", 1000)
    told, gate = tmp_path / "told", tmp_path / "gate"
    with RushExecutor(1, url=own_url) as executor:
        kept = executor.submit(tasks.tell_and_wait_for, str(told), str(gate), "kept")
        eventually(told.exists)
        too_large = executor.submit(tasks.echo, b"x" * 2000)
        retried = executor.options(retry_on=OSError).submit(tasks.echo, b"y" * 2000)
        eventually(lambda: too_large._is_sent)
        flush(own_url)
        with pytest.raises(NetworkLostError, match="not kept in this process"):
            too_large.result(DEADLINE_S)
        gate.touch()
        assert kept.result(DEADLINE_S) == "kept"
        assert retried.result(DEADLINE_S) == b"y" * 2000
        assert executor._session._pending._kept_bytes == 0


def test_retries_and_lost_data_together(own_url: str, tmp_path: Path, eventually: Eventually) -> None:
    """What waits for its retry when the data is lost is retried; a flush is no failure."""
    with RushExecutor(2, url=own_url) as executor:
        view = executor.options(retry_on=ValueError, max_retries=3)
        futures = [view.submit(fail_until, str(tmp_path / str(n)), 3, n) for n in range(10)]
        eventually(lambda: any(map(is_paused, futures)))
        flush(own_url)
        assert [future.result(DEADLINE_S) for future in futures] == list(range(10))


def test_cancel_and_shutdown_after_the_loss(own_url: str, tmp_path: Path, eventually: Eventually) -> None:
    """Before the client has noticed: cancel takes back what has not started anew, shutdown waits for the rest."""
    gate = tmp_path / "gate"
    with RushExecutor(1, url=own_url) as executor:
        futures = [executor.submit(tasks.wait_for, str(gate), n) for n in range(5)]
        eventually(futures[0].running)
        flush(own_url)
        assert futures[4].cancel()
        threading.Timer(0.5, gate.touch).start()
    assert [future.result(0) for future in futures[:4]] == [0, 1, 2, 3]


def test_shutdown_that_cancels_after_the_loss(own_url: str, tmp_path: Path, eventually: Eventually) -> None:
    """Before the client has noticed, mostly: nothing is begun any more."""
    gate = tmp_path / "gate"
    executor = RushExecutor(1, url=own_url)
    once = executor.options(max_retries=0).submit(tasks.wait_for, str(gate))
    futures = [executor.submit(tasks.wait_for, str(gate), n) for n in range(5)]
    eventually(once.running)
    flush(own_url)
    executor.shutdown(wait=False, cancel_futures=True)
    gate.touch()
    executor.shutdown()
    assert all(future.cancelled() for future in futures)
    # It may have been run.
    assert isinstance(once.exception(), NetworkLostError)


def test_a_server_that_is_restarted_empty(eventually: Eventually) -> None:
    """All connections break, and then nothing is known: both are mended."""
    server = EmbeddedServer.start()
    server.wait_ready()
    try:
        with RushExecutor(2, url=server.url) as executor:
            futures = [executor.submit(slowly, x) for x in range(100)]
            eventually(futures[10].done)
            server = restart_empty(server)
            assert [future.result(DEADLINE_S) for future in futures] == [x * x for x in range(100)]
    finally:
        server.stop()


def test_a_client_whose_record_is_gone(own_url: str, tmp_path: Path, eventually: Eventually) -> None:
    """Its lease has run out, in a process that was stopped for a day, say; the network is still there."""
    told, gate = tmp_path / "told", tmp_path / "gate"
    with RushExecutor(2, url=own_url, network_id="n") as executor, redis.Redis.from_url(own_url) as client:
        futures = [executor.submit(tasks.tell_and_wait_for, str(told), str(gate), "large" * 100_000)]
        futures += [executor.submit(slowly, x) for x in range(50)]
        eventually(told.exists)
        client.delete(*client.keys("rush:{n}:client:*"), *client.keys("rush:{n}:inbox:*"))
        gate.touch()
        assert futures[0].result(DEADLINE_S) == "large" * 100_000
        assert [future.result(DEADLINE_S) for future in futures[1:]] == [x * x for x in range(50)]
    assert keys_left(own_url) == []


def test_a_server_that_was_put_back_to_an_older_state(server_url: str, tmp_path: Path, eventually: Eventually) -> None:
    """A snapshot was restored, or a replica that was behind has taken over: the newest tasks are pushed again."""
    gate = tmp_path / "gate"
    with RushExecutor(1, url=server_url) as executor, redis.Redis.from_url(server_url) as client:
        keys = Keys(executor.network_id)
        executor.submit(pow, 2, 2).result(DEADLINE_S)
        [record] = client.keys(keys.client("*"))
        older = client.hgetall(record)
        blocker = executor.submit(tasks.wait_for, str(gate))
        eventually(blocker.running)
        futures = [executor.submit(pow, 2, number) for number in range(50)]
        eventually(lambda: client.zcard(keys.queued_tasks) == 50)
        queued = client.zrange(keys.queued_tasks, 0, -1)
        with client.pipeline(transaction=True) as restore:
            restore.delete(keys.queued_tasks, *(keys.task(task.decode()) for task in queued))
            restore.hset(record, mapping=older)
            restore.execute()
        gate.touch()
        assert [future.result(DEADLINE_S) for future in futures] == [2**number for number in range(50)]
        blocker.result(DEADLINE_S)


def test_kills_and_time_limits_are_no_failures(executor: RushExecutor, eventually: Eventually) -> None:
    """Who killed a task does not want it again; what took too long is tried again only by its own name."""
    killed = executor.options(retry_on=(Exception, TaskKilledError)).submit(time.sleep, 600)
    eventually(killed.running)
    assert killed.kill()
    assert isinstance(killed.exception(DEADLINE_S), TaskKilledError)
    limited = executor.options(timeout=0.3, retry_on=(Exception, TimeoutError)).submit(time.sleep, 600)
    assert isinstance(limited.exception(DEADLINE_S), TaskTimeoutError)
    assert limited.attempts == 1
    named = executor.options(timeout=0.3, max_retries=1, retry_on=TaskTimeoutError).submit(time.sleep, 600)
    assert isinstance(named.exception(DEADLINE_S), TaskTimeoutError)
    assert named.attempts == 2
