"""Promises about the interface (15, 16 of docs/explanation/promises.md), and what belongs to it.

That is `map`, options, workers that joined, the seal, threads, recycling, initializers.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from rush_executor import InitializerError, PayloadError, RushExecutor, RushFuture
from rush_executor._payload import Encoder
from rush_executor._protocol.keys import Keys
from tests.acceptance import tasks
from tests.acceptance.programs import DEADLINE_S, environment, family, run_program

Eventually = Callable[..., Any]

# -------------------------------------------------------------------------------------------------- 15: keywords

KEYWORDS = (
    *("self", "fn", "args", "kwargs", "key", "workers", "timeout", "queue", "priority", "max_retries", "options"),
    *("task_id", "function", "executor", "future", "pure", "retries", "resources", "secret", "name", "callback"),
    *("url", "network_id", "chunksize", "buffersize", "initializer"),
)


def test_promise_15_every_keyword_is_the_functions(executor: RushExecutor) -> None:
    """Promise 15: `submit` takes no keyword for itself, nor does that of a view."""
    wanted = {name: i for i, name in enumerate(KEYWORDS)}
    for one in (executor, executor.options(priority=1)):
        assert one.submit(tasks.echo_all, 1, 2, **wanted).result() == ((1, 2), wanted)
        assert one.submit(lambda **kwargs: kwargs, **wanted).result() == wanted
    assert executor.submit(lambda: "nothing").result() == "nothing"
    with pytest.raises(TypeError):
        executor.submit()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        executor.submit(fn=tasks.echo)  # type: ignore[call-arg]


def test_promise_15_any_callable(executor: RushExecutor) -> None:
    """Promise 15: builtins, classes, bound methods, partials, and what is none fails its own Future."""
    import functools

    assert executor.submit(len, "abc").result() == 3
    assert executor.submit(dict, a=1).result() == {"a": 1}
    assert executor.submit("a-b".split, "-").result() == ["a", "b"]
    assert executor.submit(functools.partial(tasks.echo_all, 1, x=2), 3).result() == ((1, 3), {"x": 2})
    failure = executor.submit(5).exception()  # type: ignore[arg-type]
    assert isinstance(failure, TypeError)
    assert "not callable" in str(failure)


# ------------------------------------------------------------------------------------- 16: like the standard library


def test_promise_16_words_of_the_standard_library(server_url: str) -> None:
    """Promise 16: what makes no sense is refused in the same words and with the same types."""
    from concurrent.futures import ProcessPoolExecutor

    for n in (0, -1):
        with pytest.raises(ValueError) as ours:
            RushExecutor(n)
        with pytest.raises(ValueError) as theirs:
            ProcessPoolExecutor(n)
        assert str(ours.value).startswith(str(theirs.value))
        with pytest.raises(ValueError, match="max_tasks_per_child must be >= 1"):
            RushExecutor(1, max_tasks_per_child=n)
    for bad in (1.5, "2"):
        with pytest.raises(TypeError):
            RushExecutor(bad)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="max_tasks_per_child must be an integer"):
            RushExecutor(1, max_tasks_per_child=bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        RushExecutor(-1, url=server_url, network_id="n")
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        RushExecutor(0, url=server_url)
    with RushExecutor(1, url=server_url) as executor:
        for chunksize in (0, -1):
            with pytest.raises(ValueError, match=r"chunksize must be >= 1\."):
                executor.map(tasks.square, [1], chunksize=chunksize)
        for buffersize in (0, -1):
            with pytest.raises(ValueError, match="buffersize must be None or > 0"):
                executor.map(tasks.square, [1], buffersize=buffersize)
        with pytest.raises(TypeError, match="buffersize must be an integer or None"):
            executor.map(tasks.square, [1], buffersize=1.5)  # type: ignore[arg-type]


def test_promise_16_what_others_read_off_an_executor(server_url: str) -> None:
    """Promise 16: `_max_workers`, an Executor, Futures of the standard library."""
    with RushExecutor(3, url=server_url) as executor:
        assert isinstance(executor, Executor)
        assert executor._max_workers == 3
        assert executor.options(priority=1)._max_workers == 3
        future = executor.submit(tasks.square, 3)
        assert isinstance(future, Future)
        assert type(future) is RushFuture
        assert future.result() == 9
        assert "network" in repr(executor)
    with RushExecutor(url=server_url) as executor:
        assert executor._max_workers == n_cpus()


def test_promise_16_futures_of_the_standard_library_in_every_way(executor: RushExecutor) -> None:
    """Promise 16: `wait`, `as_completed` and asyncio take our Futures, mixed with those of other executors."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        futures: list[Future[int]] = [pool.submit(tasks.square, 2), executor.submit(tasks.square, 3)]
        assert sorted(future.result() for future in concurrent.futures.as_completed(futures)) == [4, 9]
        assert concurrent.futures.wait(futures).not_done == set()

    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(executor, tasks.square, x) for x in range(5)]
        calls.append(asyncio.wrap_future(executor.submit(tasks.square, 5)))
        return await asyncio.gather(*calls)

    assert asyncio.run(main()) == [0, 1, 4, 9, 16, 25]


# ----------------------------------------------------------------------------------------------------------- map


class Reading:
    """Counts what has been read of it."""

    def __init__(self, n: int | None = None) -> None:
        self.n = 0
        self._items: Iterator[int] = itertools.count() if n is None else iter(range(n))

    def __iter__(self) -> Iterator[int]:
        for item in self._items:
            self.n += 1
            yield item


def test_map_is_the_builtin_map(executor: RushExecutor) -> None:
    """Order, several iterables of unequal length, none, and input that is read at once, whatever the chunks."""
    for chunksize in (1, 2, 7, 1000):
        reading = Reading(100)
        results = executor.map(lambda x, y: x + y, reading, range(50), chunksize=chunksize)
        assert reading.n >= 50
        assert list(results) == [2 * x for x in range(50)]
        assert list(executor.map(tasks.square, [], chunksize=chunksize)) == []
    assert list(executor.map(lambda x: x * x, range(10_000))) == [x * x for x in range(10_000)]
    assert iter(results) is results


@pytest.mark.parametrize(("buffersize", "chunksize"), [(1, 1), (3, 1), (10, 1), (6, 3), (7, 3), (2, 5), (1, 100)])
def test_map_buffersize_is_strict(executor: RushExecutor, buffersize: int, chunksize: int) -> None:
    """At no time more than `buffersize` items have been read and not yielded; the input may be endless."""
    reading = Reading()
    results = executor.map(tasks.square, reading, buffersize=buffersize, chunksize=chunksize)
    assert 1 <= reading.n <= buffersize
    if buffersize % chunksize == 0 or chunksize > buffersize:
        assert reading.n == buffersize
    for i in range(25):
        assert next(results) == i * i
        assert i + 1 <= reading.n <= i + 1 + buffersize
    results.close()  # type: ignore[attr-defined]
    n = reading.n
    assert executor.submit(tasks.square, 3).result() == 9
    assert reading.n == n
    assert list(executor.map(tasks.square, range(30), buffersize=buffersize, chunksize=chunksize)) == [
        x * x for x in range(30)
    ]


def test_map_chunks_are_one_task_each(server_url: str) -> None:
    """`chunksize` items travel and run together, in one worker."""
    with RushExecutor(2, url=server_url, max_tasks_per_child=1) as executor:
        pids = list(executor.map(tasks.pid, range(12), chunksize=4))
    assert [len(set(pids[i : i + 4])) for i in (0, 4, 8)] == [1, 1, 1]
    assert len(set(pids)) == 3


@pytest.mark.parametrize("chunksize", [1, 2])
def test_map_an_error_comes_in_its_place_and_cancels_what_follows(
    executor: RushExecutor, tmp_path: Path, chunksize: int
) -> None:
    """Results before the error are yielded; then it is raised, and the rest is not waited for."""
    results = executor.map(tasks.fail_if, range(6), [3] * 6, chunksize=chunksize)
    assert [next(results), next(results), next(results)] == [0, 1, 2]
    with pytest.raises(ValueError, match="3 is bad"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_time_limits(lone: RushExecutor, tmp_path: Path, eventually: Eventually) -> None:
    """`result`, `exception`, `wait`, `as_completed` and `map` give up in time, and the result comes all the same."""
    gate = tmp_path / "gate"
    future = lone.submit(tasks.wait_for, str(gate), "done")
    began_at = time.monotonic()
    for ask in (
        lambda: future.result(timeout=0.05),
        lambda: future.result(timeout=0),
        lambda: future.exception(timeout=0.05),
        lambda: next(concurrent.futures.as_completed([future], timeout=0.05)),
        lambda: next(lone.map(tasks.square, [1], timeout=0.05)),
        lambda: list(lone.map(tasks.square, [1, 2, 3], timeout=0, chunksize=2)),
    ):
        with pytest.raises(TimeoutError):
            ask()
    assert concurrent.futures.wait([future], timeout=0.05).not_done == {future}
    assert time.monotonic() - began_at < DEADLINE_S
    assert not future.done()
    gate.touch()
    assert future.result(timeout=DEADLINE_S) == "done"
    assert list(lone.map(tasks.square, [1, 2], timeout=DEADLINE_S)) == [1, 4]


# -------------------------------------------------------------------------------------------------------- options


def test_options_make_a_view_that_is_an_executor(server_url: str) -> None:
    """A view is an Executor with other options for its tasks; it shares everything else, and options add up."""
    with RushExecutor(1, url=server_url, max_retries=0) as executor:
        view = executor.options(priority=3)
        assert isinstance(view, Executor)
        assert view.submit(tasks.square, 3).result() == 9
        assert list(view.map(tasks.square, range(3), chunksize=2)) == [0, 1, 4]
        assert "max_retries=0, priority=3" in repr(view)
        assert "max_retries=2, priority=3" in repr(view.options(max_retries=2))
        assert executor.submit(tasks.pid).result() == view.submit(tasks.pid).result()
        for bad, error in (({"max_retries": -1}, ValueError), ({"priority": 10_000}, ValueError)):
            with pytest.raises(error):
                executor.options(**bad)
        with pytest.raises(TypeError):
            executor.options(priority="high")  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            executor.options(unknown=1)  # type: ignore[call-arg]
        with view:
            assert view.submit(tasks.square, 2).result() == 4
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(tasks.square, 2)


def test_options_of_a_view_that_outlives_the_name_of_its_executor(server_url: str) -> None:
    """A view keeps its executor."""
    view = RushExecutor(1, url=server_url).options(priority=1)
    assert view.submit(tasks.square, 3).result() == 9
    view.shutdown()


def test_options_priority(lone: RushExecutor, tmp_path: Path, eventually: Eventually) -> None:
    """Higher runs earlier; equal ones run in the order of their submission."""
    gate, notes = tmp_path / "gate", tmp_path / "notes"
    blocker = lone.submit(tasks.wait_for, str(gate))
    eventually(blocker.running)
    futures = [
        lone.options(priority=priority).submit(tasks.note, str(notes), f"{priority}:{n}")
        for n in range(3)
        for priority in (0, -4095, 4095, 1)
    ]
    eventually(lambda: all(future._is_sent for future in futures))
    assert blocker.running(), "asked behind what is being sent: all are queued"
    gate.touch()
    concurrent.futures.wait(futures)
    assert notes.read_text().split() == [f"{p}:{n}" for p in (4095, 1, 0, -4095) for n in range(3)]


def test_options_max_retries(executor: RushExecutor, tmp_path: Path) -> None:
    """As many more attempts as asked for."""
    for n in (0, 1, 4):
        notes = tmp_path / str(n)
        failure = executor.options(max_retries=n).submit(tasks.note_and_die, str(notes)).exception(DEADLINE_S)
        assert failure.attempts == n + 1  # type: ignore[union-attr]
        assert len(notes.read_text().split()) == n + 1


# ----------------------------------------------------------------------------------------- workers that joined


@pytest.fixture
def join(server_url: str, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `rush-executor worker` as on another machine; ended after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(network: str, *args: str, n: int = 1, **env: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "rush_executor", "worker", "--url", server_url, "--network", network]
        started.append(
            subprocess.Popen(
                [*command, "--workers", str(n), *args],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env=environment(**env),
                cwd=tmp_path,
                start_new_session=True,
            )
        )
        return started[-1]

    yield start
    for agent in started:
        if agent.poll() is None:
            agent.terminate()
    for agent in started:
        try:
            _, err = agent.communicate(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            for process in [*family(agent.pid), psutil.Process(agent.pid)]:
                process.kill()
            raise AssertionError("an agent does not end on SIGTERM") from None
        assert "Traceback" not in err


@pytest.fixture
def network() -> str:
    """A name for a network of the test's own."""
    return f"test-{secrets.token_hex(4)}"


def test_joined_workers_alone(server_url: str, join: Any, network: str, eventually: Eventually) -> None:
    """`max_workers=0`: nothing is started here; workers may join before and after, also from two machines."""
    join(network, n=2)
    me = psutil.Process()
    before = set(me.children())
    with RushExecutor(0, url=server_url, network_id=network) as executor:
        assert set(me.children()) <= before
        assert executor._max_workers >= 1
        assert list(executor.map(lambda x: x + 1, range(50))) == list(range(1, 51))
        eventually(lambda: executor._max_workers == 2)
        join(network, n=1)
        eventually(lambda: executor._max_workers == 3)
        assert executor.submit(tasks.square, 3).result() == 9


def test_joined_workers_come_later_and_leave_in_peace(
    server_url: str, join: Any, network: str, tmp_path: Path, eventually: Eventually
) -> None:
    """Tasks wait for workers; a worker that is told to leave finishes its task first, the next one does the rest."""
    told, gate = tmp_path / "told", tmp_path / "gate"
    with RushExecutor(0, url=server_url, network_id=network) as executor:
        future = executor.submit(tasks.tell_and_wait_for, str(told), str(gate), "done")
        others = [executor.submit(tasks.square, x) for x in range(10)]
        first = join(network)
        eventually(told.exists)
        first.send_signal(signal.SIGTERM)
        second = join(network)
        assert [other.result(DEADLINE_S) for other in others] == [x * x for x in range(10)]
        assert not future.done()
        gate.touch()
        assert future.result(DEADLINE_S) == "done"
        assert first.wait(DEADLINE_S) == 0
        assert second.poll() is None
    assert told.exists()


def test_joined_workers_that_are_told_to_leave_twice(
    server_url: str, join: Any, network: str, tmp_path: Path, eventually: Eventually
) -> None:
    """A second signal means now: the task goes back into the queue, and another worker runs it from its start."""
    told, gate = tmp_path / "told", tmp_path / "gate"
    with RushExecutor(0, url=server_url, network_id=network) as executor, executor.network as view:
        first = join(network)
        future = executor.submit(tasks.tell_and_wait_for, str(told), str(gate), "done")
        eventually(told.exists)
        [worker] = view.worker_states
        first.send_signal(signal.SIGTERM)
        eventually(lambda: view.worker_states == {worker: "draining"})
        assert first.poll() is None
        told.unlink()
        first.send_signal(signal.SIGTERM)
        assert first.wait(DEADLINE_S) == 0
        assert not future.done()
        join(network)
        eventually(told.exists)
        gate.touch()
        assert future.result(DEADLINE_S) == "done"
        assert future.attempts == 2


def test_a_signal_for_agent_and_workers_alike(
    server_url: str, join: Any, network: str, tmp_path: Path, eventually: Eventually
) -> None:
    """As whoever stops a service sends it: each hears of it once, so the task is finished, and no further one begun.

    Also if the task before has left the handler behind that ends a process.
    """
    told, gate = tmp_path / "told", tmp_path / "gate"
    with RushExecutor(0, url=server_url, network_id=network) as executor, executor.network as view:
        agent = join(network)
        worker = executor.submit(tasks.leave_behind, "asyncio").result(DEADLINE_S)
        future = executor.options(max_retries=0).submit(tasks.tell_and_wait_for, str(told), str(gate), worker)
        eventually(told.exists)
        os.kill(worker, signal.SIGTERM)
        agent.send_signal(signal.SIGTERM)
        eventually(lambda: "draining" in view.worker_states.values())
        other = executor.submit(tasks.pid)
        gate.touch()
        assert future.result(DEADLINE_S) == worker
        assert agent.wait(DEADLINE_S) == 0
        assert not other.done()
        join(network)
        assert other.result(DEADLINE_S) != worker


def test_a_task_without_a_handler_is_finished(
    server_url: str, join: Any, network: str, tmp_path: Path, eventually: Eventually
) -> None:
    """Where the task itself has left the handler behind that ends a process: the agent's signal is not for it."""
    told, gate = tmp_path / "told", tmp_path / "gate"
    with RushExecutor(0, url=server_url, network_id=network) as executor, executor.network as view:
        agent = join(network)
        once = executor.options(max_retries=0)
        future = once.submit(tasks.leave_behind_and_wait_for, "asyncio", str(told), str(gate))
        eventually(told.exists)
        agent.send_signal(signal.SIGTERM)
        eventually(lambda: "draining" in view.worker_states.values())
        gate.touch()
        assert future.result(DEADLINE_S) == "done"
        assert agent.wait(DEADLINE_S) == 0


def test_a_worker_that_is_told_to_leave_twice(
    server_url: str, join: Any, network: str, tmp_path: Path, eventually: Eventually
) -> None:
    """One process, and not its agent: its task is broken off, and run by the one that comes in its place."""
    told, gate = tmp_path / "told", tmp_path / "gate"
    with RushExecutor(0, url=server_url, network_id=network) as executor:
        join(network)
        worker = psutil.Process(executor.submit(tasks.pid).result(DEADLINE_S))
        future = executor.submit(tasks.tell_and_wait_for, str(told), str(gate), "done")
        eventually(told.exists)
        told.unlink()

        def is_gone() -> bool:
            # When it has heard the first one shows nowhere: two in the same moment count for one.
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.terminate()
            return not worker.is_running()

        eventually(is_gone)
        eventually(told.exists)
        gate.touch()
        assert future.result(DEADLINE_S) == "done"
        assert future.attempts == 2


def test_joined_workers_beside_own_ones_and_two_clients(
    server_url: str, join: Any, network: str, tmp_path: Path
) -> None:
    """Two executors and a joined worker share a network; each client gets its own results."""
    join(network)
    with (
        RushExecutor(1, url=server_url, network_id=network) as one,
        RushExecutor(0, url=server_url, network_id=network) as other,
    ):
        futures = [executor.submit(tasks.echo, (name, x)) for x in range(100) for name, executor in _named(one, other)]
        assert [f.result(DEADLINE_S) for f in futures] == [
            (name, x) for x in range(100) for name, _ in _named(one, other)
        ]
        here, there = tmp_path / "meeting", tmp_path / "meeting"
        here.mkdir()
        meeting = [one.submit(tasks.meet, str(here), 2, "a"), other.submit(tasks.meet, str(there), 2, "b")]
        assert len({future.result(DEADLINE_S) for future in meeting}) == 2


def _named(one: RushExecutor, other: RushExecutor) -> list[tuple[str, RushExecutor]]:
    return [("one", one), ("other", other)]


def test_a_worker_command_that_cannot_work_says_why(tmp_path: Path) -> None:
    """No server, no network, a bad number: a message and an exit code, no traceback."""
    for args, words, code in (
        (["--network", "n"], "no server", 2),
        (["--url", "unix:///nowhere"], "no network", 2),
        (["--url", "unix:///nowhere", "--network", "n"], "no server answers", 1),
        (["--url", "unix:///nowhere", "--network", "n", "--workers", "0"], "--workers must be >= 1", 2),
        (["--url", "http://somewhere", "--network", "n"], "'http://somewhere' is no URL of a server", 2),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "rush_executor", "worker", *args],
            capture_output=True,
            text=True,
            env=environment(),
            cwd=tmp_path,
            timeout=DEADLINE_S,
            check=False,
        )
        assert (done.returncode, words in done.stderr, "Traceback" in done.stderr) == (code, True, False), done.stderr


# ----------------------------------------------------------------------------------------------------------- seal


RIGHT, WRONG = "right secret", "wrong secret"


class Bomb:
    """Goes off where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return tasks.note, (self.path, "boom")


def forge(network: str, kind: str, task_id: str, bomb: Bomb) -> bytes:
    """A payload as somebody makes it who knows everything but the secret."""
    encoder = Encoder(network)
    payload = encoder.encode_call(task_id, encoder.encode_function(len), (bomb,), {})
    if kind == "call":
        return payload
    return encoder._envelope.wrap_object(kind, task_id, 0, bomb)  # type: ignore[arg-type]


def test_seal_with_the_right_secret_everything_works(server_url: str, tmp_path: Path) -> None:
    """Functions by name and by value, large arguments, results, errors, an initializer, `map`: all arrive."""
    secret = "s3cret-" + secrets.token_hex(8)
    with RushExecutor(2, url=server_url, secret=secret, initializer=lambda: os.environ.update(READY="yes")) as executor:
        assert executor.submit(tasks.square, 3).result() == 9
        assert executor.submit(lambda: os.environ["READY"]).result() == "yes"
        assert len(executor.submit(tasks.echo, bytes(1_000_000)).result()) == 1_000_000
        assert list(executor.map(lambda x: x + 1, range(10), chunksize=3)) == list(range(1, 11))
        assert isinstance(executor.submit(tasks.fail, ValueError("x")).exception(), ValueError)
        # Nowhere to be seen: on the server, in the arguments of processes, in what is printed.
        with redis.Redis.from_url(server_url) as client:
            dumps = [client.dump(key) or b"" for key in client.scan_iter()]
        assert not any(secret.encode() in dump for dump in dumps)
        arguments = [p.cmdline() for p in psutil.Process().children(recursive=True)]
        assert not any(secret in " ".join(line) for line in arguments)
        assert secret not in repr(executor) + repr(executor._session) + repr(vars(executor)) + repr(
            vars(executor._session)
        )


@pytest.mark.parametrize(("ours", "theirs"), [(RIGHT, WRONG), (RIGHT, ""), ("", WRONG)])
def test_seal_a_worker_with_another_secret_unpickles_nothing(  # noqa: PLR0917 - fixtures
    server_url: str, join: Any, network: str, tmp_path: Path, ours: str, theirs: str
) -> None:
    """A wrong or missing secret, on either side: PayloadError that says so, and not a byte is unpickled."""
    join(network, **({"RUSH_SECRET": theirs} if theirs else {}))
    marker = tmp_path / "boom"
    with RushExecutor(0, url=server_url, network_id=network, secret=ours or None) as executor:
        futures = [
            executor.submit(tasks.echo, Bomb(marker)),
            executor.submit(lambda: tasks.note(str(marker), "boom")),
            executor.submit(tasks.note, str(marker), "boom"),
        ]
        for future in futures:
            failure = future.exception(DEADLINE_S)
            assert isinstance(failure, PayloadError)
            assert "secret" in str(failure)
        with pytest.raises(PayloadError, match="secret"):
            list(executor.map(tasks.square, range(4), chunksize=2))
    assert not marker.exists()


def test_seal_of_the_initializer(server_url: str, join: Any, network: str, tmp_path: Path) -> None:
    """A worker does not unpickle an initializer that was sealed with another secret; the executor is told why."""
    marker = tmp_path / "boom"
    join(network, RUSH_SECRET=WRONG)
    with RushExecutor(
        0, url=server_url, network_id=network, secret=RIGHT, initializer=tasks.note, initargs=(str(marker), "boom")
    ) as executor:
        failure = executor.submit(tasks.square, 3).exception(DEADLINE_S)
    assert isinstance(failure, InitializerError)
    assert "secret" in str(failure)
    assert not marker.exists()


def test_seal_against_somebody_who_writes_to_the_server(
    server_url: str, join: Any, network: str, tmp_path: Path, eventually: Any
) -> None:
    """Calls, functions and results that were put there without the secret are not unpickled, nor are exchanged ones."""
    marker = tmp_path / "boom"
    bomb = Bomb(marker)
    keys = Keys(network)
    with (
        redis.Redis.from_url(server_url) as client,
        RushExecutor(0, url=server_url, network_id=network, secret=RIGHT) as executor,
    ):
        called = executor.submit(tasks.square, 1)
        moved, from_here = executor.submit(tasks.square, 2), executor.submit(tasks.square, 3)
        function = executor.submit(lambda: "harmless")
        answered = executor.submit(tasks.square, 4)
        failed = executor.submit(tasks.square, 5)
        futures = (called, moved, from_here, function, answered, failed)
        # `submit` is back when a task was sent; it comes on another connection than ours.
        eventually(lambda: client.exists(*(keys.task(future.task_id) for future in futures)) == len(futures))
        assert client.hset(keys.task(called.task_id), "payload", forge(network, "call", called.task_id, bomb)) == 0
        client.hset(keys.task(moved.task_id), "payload", client.hget(keys.task(from_here.task_id), "payload"))
        (shelf,) = client.keys(keys.functions("*"))
        ((digest, _),) = client.hgetall(shelf).items()
        client.hset(shelf, digest, forge(network, "function", digest.decode(), bomb))
        client_id = answered.task_id.split("-")[0]
        inbox = [answered.task_id, b"F" + forge(network, "finished", answered.task_id, bomb)]
        inbox += [failed.task_id, b"E" + forge(network, "failed", failed.task_id, bomb)]
        for task, outcome in zip(inbox[::2], inbox[1::2], strict=True):
            client.xadd(keys.inbox(client_id), {task: outcome})
        for future in (answered, failed):
            assert isinstance(future.exception(DEADLINE_S), PayloadError)
        join(network, RUSH_SECRET=RIGHT)
        for future in (called, moved, function):
            failure = future.exception(DEADLINE_S)
            assert isinstance(failure, PayloadError), failure
            assert re.search(r"has (no|a wrong) seal", str(failure))
        assert from_here.result(DEADLINE_S) == 9
    assert not marker.exists()


def test_seal_an_empty_secret_is_none(server_url: str) -> None:
    """`secret=""` would be a seal that anybody can make."""
    for empty in ("", b""):
        with pytest.raises(ValueError, match="secret must not be empty"):
            RushExecutor(1, url=server_url, secret=empty)


# ------------------------------------------------------------------------------------------------ many at once


def test_submit_from_eight_threads_at_once(executor: RushExecutor) -> None:
    """Each thread gets its own results, whatever the others do: submit, map, cancel, callbacks, wait."""
    start = threading.Barrier(8)
    errors: list[BaseException] = []
    called = itertools.count()

    def work(me: int) -> None:
        try:
            start.wait()
            futures = [executor.submit(tasks.echo, (me, x)) for x in range(200)]
            for future in futures[::10]:
                future.add_done_callback(lambda _: next(called))
            results = list(executor.map(lambda x: (me, x), range(50)))
            chunks = list(executor.map(tasks.echo, [(me, x) for x in range(50)], chunksize=7))
            assert results == chunks == [(me, x) for x in range(50)]
            extra = [executor.submit(tasks.echo, x) for x in range(50)]
            n_cancelled = sum(future.cancel() for future in extra)
            concurrent.futures.wait(extra)
            assert n_cancelled == sum(future.cancelled() for future in extra)
            assert [future.result() for future in futures] == [(me, x) for x in range(200)]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    assert errors == []
    executor.shutdown()
    assert next(called) == 160


def test_shutdown_from_several_threads_while_others_submit(server_url: str) -> None:
    """Every task that `submit` has taken is finished; who comes too late is refused."""
    executor = RushExecutor(2, url=server_url)
    taken: list[RushFuture] = []
    refused: list[BaseException] = []

    def submit() -> None:
        while True:
            try:
                taken.append(executor.submit(tasks.square, 2))
                # Enough for a crowd, and not so many that the rest takes long.
                time.sleep(0.0002)
            except RuntimeError as error:
                refused.append(error)
                return

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(taken) < 500:
        time.sleep(0.001)
    threads += [threading.Thread(target=executor.shutdown) for _ in range(3)]
    for thread in threads[4:]:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    assert all(future.done() for future in taken)
    assert {future.result() for future in taken} == {4}
    assert len(refused) == 4


def test_several_executors_at_once(server_url: str) -> None:
    """Executors share nothing: two private servers, and two networks on one server."""
    executors = [RushExecutor(1), RushExecutor(1), RushExecutor(1, url=server_url), RushExecutor(1, url=server_url)]
    try:
        futures = [executor.submit(tasks.echo, i) for _ in range(20) for i, executor in enumerate(executors)]
        assert [future.result() for future in futures] == [0, 1, 2, 3] * 20
        assert len({executor.submit(tasks.pid).result() for executor in executors}) == 4
    finally:
        for executor in executors:
            executor.shutdown()


# ------------------------------------------------------------------------------------- recycling and initializers


@pytest.mark.parametrize("how", ["submit", "map"])
def test_max_tasks_per_child(server_url: str, how: str) -> None:
    """A worker is replaced after exactly so many tasks, also when short tasks are claimed by the dozen."""
    with RushExecutor(1, url=server_url, max_tasks_per_child=30) as executor:
        if how == "submit":
            pids = [executor.submit(tasks.pid).result() for _ in range(65)]
        else:
            pids = list(executor.map(tasks.pid, range(65)))
    assert [len(list(group)) for _, group in itertools.groupby(pids)] == [30, 30, 5]
    assert len(set(pids)) == 3


def test_max_tasks_per_child_with_an_initializer(server_url: str) -> None:
    """Each new worker runs the initializer, once."""
    with RushExecutor(
        1, url=server_url, max_tasks_per_child=2, initializer=tasks.start_counting, initargs=(10,)
    ) as executor:
        assert [executor.submit(tasks.count_up).result() for _ in range(6)] == [11, 12] * 3


def test_initializer_in_main_sets_what_tasks_read(tmp_path: Path) -> None:
    """An initializer of a script sets a global of the script; its functions, by value, read it in every worker."""
    out, err = run_program(
        """
        import os
        from rush_executor import RushExecutor

        config = None
        table = {}

        def initialize(value, *, extra=1):
            global config
            config = value
            table["pid"] = os.getpid()

        def read(x):
            return config, table["pid"] == os.getpid(), x

        with RushExecutor(2, initializer=initialize, initargs=("ready",)) as executor:
            print(set(executor.map(read, [0] * 40)), executor.submit(read, 1).result())
            print(set(executor.map(lambda x: (config, x), [5] * 40)))
            config = "changed"
            print(executor.submit(read, 2).result())
            print(config, table)
        """,
        directory=tmp_path,
    )
    assert err == ""
    assert out.splitlines() == [
        "{('ready', True, 0)} ('ready', True, 1)",
        "{('ready', 5)}",
        "('changed', True, 2)",
        "changed {}",
    ]


def test_inner_threads(server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """BLAS and OpenMP get an even share of the CPUs per worker, or what the environment says, or what is asked for."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    for name in names:
        monkeypatch.delenv(name, raising=False)

    def look() -> list[str | None]:
        return [os.environ.get(name) for name in names]

    with RushExecutor(url=server_url) as executor:
        assert executor.submit(look).result() == ["1"] * 3
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    with RushExecutor(1, url=server_url) as executor:
        share = str(n_cpus())
        assert executor.submit(look).result() == [share, share, "7"]
    with RushExecutor(1, url=server_url, inner_max_num_threads=3) as executor:
        assert executor.submit(look).result() == ["3"] * 3
    assert os.environ.get("OMP_NUM_THREADS") is None


def n_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
