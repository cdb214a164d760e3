"""Tasks that submit tasks: they never wait for ever, and nothing of them is left, however they end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from rush_executor import (
    NetworkLostError,
    RushExecutor,
    TaskKilledError,
    TaskTimeoutError,
    WorkerLostError,
    current_executor,
)
from rush_executor._config import DEFAULT_MAX_RETRIES
from rush_executor._protocol.keys import Keys
from tests.acceptance.tasks import meet, note, tell_and_wait_for, wait_for

Eventually = Callable[..., Any]
DEADLINE_S = 60


# ------------------------------------------------------------------------------------------------------- what waits


def tree(depth: int, width: int) -> int:
    """Counts its nodes."""
    if not depth:
        return 1
    executor = current_executor()
    futures = [executor.submit(tree, depth - 1, width) for _ in range(width)]
    return 1 + sum(future.result() for future in futures)


def wait_by_result() -> list[int]:
    return [current_executor().submit(abs, -n).result() for n in range(3)]


def wait_by_wait() -> list[int]:
    futures = [current_executor().submit(abs, -n) for n in range(3)]
    _, not_done = concurrent.futures.wait(futures)
    assert not not_done
    return [future.result() for future in futures]


def wait_by_as_completed() -> list[int]:
    futures = [current_executor().submit(abs, -n) for n in range(3)]
    return sorted(future.result() for future in concurrent.futures.as_completed(futures))


def wait_by_map() -> list[int]:
    return list(current_executor().map(abs, range(3)))


def wait_by_map_in_chunks() -> list[int]:
    return list(current_executor().map(lambda x: abs(x), range(3), chunksize=2))  # noqa: PLW0108 - by value


def wait_by_pool() -> list[int]:
    with current_executor().as_pool() as pool:
        result: list[int] = pool.map(abs, range(3))
        return result


def wait_by_callback() -> list[int]:
    """Without any Future being asked: the agent cannot know how a task waits."""
    values: list[int] = []
    is_done = threading.Event()

    def take(future: concurrent.futures.Future[int]) -> None:
        values.append(future.result())
        if len(values) == 3:
            is_done.set()

    for n in range(3):
        current_executor().submit(abs, -n).add_done_callback(take)
    assert is_done.wait(DEADLINE_S)
    return sorted(values)


def wait_by_asyncio() -> list[int]:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        return list(await asyncio.gather(*(loop.run_in_executor(current_executor(), abs, -n) for n in range(3))))

    return asyncio.run(main())


def wait_in_a_thread() -> list[int]:
    with concurrent.futures.ThreadPoolExecutor() as threads:
        return threads.submit(wait_by_map).result()


def wait_by_leaving() -> list[int]:
    with current_executor() as executor:
        futures = [executor.submit(abs, -n) for n in range(3)]
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(abs, 1)
    # Another one, of the same task.
    with current_executor() as executor:
        executor.submit(abs, 1)
    return [future.result(0) for future in futures]


def wait_in_options() -> list[int]:
    return list(current_executor().options(priority=-1, timeout=30).map(abs, range(3)))


WAYS = [
    wait_by_result,
    wait_by_wait,
    wait_by_as_completed,
    wait_by_map,
    wait_by_map_in_chunks,
    wait_by_pool,
    wait_by_callback,
    wait_by_asyncio,
    wait_in_a_thread,
    wait_by_leaving,
    wait_in_options,
]


def test_one_worker_is_enough() -> None:
    """However a task waits for its tasks, somebody runs them; also where payloads are sealed."""
    with RushExecutor(1, secret="so be it") as executor:  # noqa: S106 - of a server that lives as long as this
        answers = {way.__name__: executor.submit(way).result(DEADLINE_S) for way in WAYS}
    assert answers == {way.__name__: [0, 1, 2] for way in WAYS}


def test_depth_five_on_one_worker(lone: RushExecutor) -> None:
    """Each level waits for the next one."""
    assert lone.submit(tree, 5, 1).result(DEADLINE_S) == 6
    assert lone.submit(tree, 3, 2).result(DEADLINE_S) == 15


def test_in_a_chunk(lone: RushExecutor) -> None:
    """Tasks that travel together nest as well."""
    assert list(lone.map(tree, [1, 2, 1], [1, 1, 2], chunksize=3)) == [2, 3, 3]


def test_as_many_as_before(lone: RushExecutor, tmp_path: Path, eventually: Eventually) -> None:
    """A worker that waits is made up for, and no longer: then there are `max_workers` again."""

    def parent(directory: str) -> int:
        # All three at once: the worker that was there, and one for each that waits.
        return len(set(current_executor().map(grandparent, [directory])) | {os.getpid()})

    def grandparent(directory: str) -> int:
        return current_executor().submit(meet, directory, 1, "leaf").result()

    assert lone.submit(parent, str(tmp_path)).result(DEADLINE_S) == 2
    eventually(lambda: lone._session.n_workers() == 1)
    assert lone.submit(abs, -1).result(DEADLINE_S) == 1


# ------------------------------------------------------------------------------------------------- in which order


def begin_and_end(n: int, log: str) -> int:
    note(log, f"begin {n}")
    total = sum(current_executor().map(abs, [n, n, n]))
    note(log, f"end {n}")
    return total


def test_a_tree_is_finished_before_the_next_is_begun(executor: RushExecutor, tmp_path: Path) -> None:
    """Two workers and twenty tasks that nest: a few of them are open at a time, and not twenty with a process each."""
    log = tmp_path / "log"
    assert list(executor.map(begin_and_end, range(20), itertools.repeat(str(log)))) == [3 * n for n in range(20)]
    n_open = n_most = 0
    for line in log.read_text().splitlines():
        n_open += 1 if line.startswith("begin") else -1
        n_most = max(n_most, n_open)
    # One for each worker, and for each whose children are done: it counts as waiting until it has heard of that.
    assert n_most <= 15


def read_record(url: str, network_id: str, gate: str) -> tuple[int, int]:
    """What a nested task is in the ledger: priority and retries."""
    future = current_executor().submit(wait_for, gate)
    with redis.Redis.from_url(url) as server:
        while not (record := server.hmget(Keys(network_id).task(future.task_id), "rank", "max_retries"))[0]:
            time.sleep(0.001)
    Path(gate).touch()
    # The usual number of retries is not on the record.
    return -(int(record[0]) >> 40), int(record[1] or DEFAULT_MAX_RETRIES)


@pytest.mark.parametrize(("priority", "max_retries"), [(0, 2), (7, 0), (-3, 5), (4095, 1)])
def test_what_it_inherits(lone: RushExecutor, server_url: str, tmp_path: Path, priority: int, max_retries: int) -> None:
    """A nested task stands in front of what has its task's priority, and may be run again as often."""
    view = lone.options(priority=priority, max_retries=max_retries)
    found = view.submit(read_record, server_url, lone.network_id, str(tmp_path / "gate")).result(DEADLINE_S)
    assert found == (min(priority + 1, 4095), max_retries)


# ----------------------------------------------------------------------------------------------------- how it ends


def leave_at_once(log: str) -> str:
    for n in range(5):
        current_executor().submit(note, log, str(n))
    return "left"


def test_a_task_ends_after_what_it_has_submitted(executor: RushExecutor, tmp_path: Path) -> None:
    """Also where it has not waited itself: who waits for a task waits for all of it."""
    log = tmp_path / "log"
    assert executor.submit(leave_at_once, str(log)).result(DEADLINE_S) == "left"
    assert sorted(log.read_text().split()) == list("01234")


class OwnError(Exception):
    pass


def fail_below(depth: int) -> None:
    if not depth:
        raise OwnError("at the bottom")
    try:
        current_executor().submit(fail_below, depth - 1).result()
    except OwnError as error:
        error.add_note(f"seen at {depth}")
        raise


def test_a_failure_arrives(executor: RushExecutor) -> None:
    """As it is, at every level."""
    error = executor.submit(fail_below, 3).exception(DEADLINE_S)
    assert isinstance(error, OwnError)
    assert error.__notes__ == ["seen at 1", "seen at 2", "seen at 3"]


def sleep_and_note(log: str, text: str) -> None:
    time.sleep(0.05)
    note(log, text)


def fail_with_others(log: str, gate: str) -> None:
    executor = current_executor()
    executor.submit(tell_and_wait_for, f"{log}.told", gate)
    wait_for(f"{log}.told")
    for n in range(200):
        executor.options(priority=-1).submit(sleep_and_note, log, str(n))
    Path(gate).touch()
    wait_for(log)
    raise OwnError("the others are not needed")


def test_a_task_that_fails_cancels_what_waits(lone: RushExecutor, tmp_path: Path) -> None:
    """And waits for what runs: nothing of it goes on after its end."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    error = lone.submit(fail_with_others, str(log), str(gate)).exception(DEADLINE_S)
    assert isinstance(error, OwnError)
    n = len(log.read_text().split())
    assert n < 200
    # For longer than one of the others takes.
    lone.submit(time.sleep, 0.1).result(DEADLINE_S)
    assert n == len(log.read_text().split())


def keep_and_leave(kept: list[Any] = []) -> str:  # noqa: B006 - the state of a worker, for the next call
    """Uses what the call before has left behind."""
    if not kept:
        kept.append(current_executor())
        return str(kept[0].submit(abs, -1).result())
    try:
        kept[0].submit(abs, -1)
    except RuntimeError as error:
        return str(error)
    return "it was taken"


def test_an_executor_is_its_tasks(lone: RushExecutor, eventually: Eventually) -> None:
    """What the next task has it submit would end with a task that has ended."""
    assert lone.submit(keep_and_leave).result(DEADLINE_S) == "1"
    # The next one may be run by the worker that has made up for the waiting one.
    answers = iter(lambda: lone.submit(keep_and_leave).result(DEADLINE_S), None)
    assert eventually(lambda: (answer := next(answers)) != "1" and answer) == (
        "cannot schedule new futures after the end of the task"
    )


def ask_outside() -> str:
    with pytest.raises(RuntimeError, match="for code that a RushExecutor runs as a task") as caught:
        current_executor()
    return str(caught.value)


def ask_in_a_fork() -> int:
    current_executor().submit(abs, -1).result()
    pid = os.fork()
    if not pid:
        code = 1
        with contextlib.suppress(BaseException):
            ask_outside()
            code = 0
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_outside_of_a_task(server_url: str) -> None:
    """It says what to do instead: in a program, in an initializer, in a process that a task has forked."""
    assert "make an executor: RushExecutor()" in ask_outside()
    with RushExecutor(1, url=server_url, initializer=ask_outside) as executor:
        assert executor.submit(ask_in_a_fork).result(DEADLINE_S) == 0


def crash_once(log: str) -> int:
    total = sum(current_executor().map(abs, range(10)))
    if note(log, str(os.getpid())) and len(Path(log).read_text().split()) == 1:
        current_executor().submit(time.sleep, 600)
        for _ in range(50):
            current_executor().submit(note, log, "never")
        os._exit(3)
    return total


def test_a_worker_that_dies_in_the_middle(executor: RushExecutor, tmp_path: Path) -> None:
    """The task is run again, with tasks of its own; those of the first attempt end with it, and hold up no shutdown."""
    log = tmp_path / "log"
    assert executor.submit(crash_once, str(log)).result(DEADLINE_S) == 45


def wait_for_others(directory: str, gate: str) -> None:
    """One runs, the others wait."""
    executor = current_executor()
    executor.submit(tell_and_wait_for, f"{directory}/told", gate)
    wait_for(f"{directory}/told")
    executor.options(priority=-10).map(note, itertools.repeat(f"{directory}/log"), "abcdefgh")
    Path(directory, "ready").touch()
    time.sleep(600)


def clients(url: str, network_id: str) -> int:
    with redis.Redis.from_url(url) as server:
        return int(server.scard(Keys(network_id).client_ids))


@pytest.mark.parametrize("how", ["kill", "timeout", "crash", "agent"])
def test_the_parent_is_killed_in_the_middle(server_url: str, tmp_path: Path, eventually: Eventually, how: str) -> None:
    """What it has submitted ends with it; nothing of it is left on the server, while the executor goes on."""
    gate = tmp_path / "gate"
    with RushExecutor(1, url=server_url) as executor:
        view = executor.options(max_retries=0, timeout=6 if how == "timeout" else None)
        parent = view.submit(wait_for_others, str(tmp_path), str(gate))
        eventually((tmp_path / "ready").exists)
        assert clients(server_url, executor.network_id) == 2
        # All that is queued from here on comes after it.
        last = executor.options(priority=-11).submit(abs, -1)
        kinds: dict[str, type[Exception]] = {"kill": TaskKilledError, "timeout": TaskTimeoutError}
        if how == "kill":
            assert parent.kill()
        elif how == "crash":
            running = executor._session._keys.running_tasks
            with redis.Redis.from_url(server_url, decode_responses=True) as server:
                for worker in server.smembers(executor._session._keys.worker_ids):
                    if server.sismember(running(worker), parent.task_id):
                        os.kill(int(server.hget(executor._session._keys.worker(worker), "pid") or 0), signal.SIGKILL)
        elif how == "agent":
            [agent] = [child for child in psutil.Process().children() if "rush-agent" in child.cmdline()]
            agent.kill()
        assert isinstance(parent.exception(DEADLINE_S), kinds.get(how, WorkerLostError))
        # What runs of it is ended, too: it waits for a gate that stays shut.
        assert last.result(DEADLINE_S) == 1
        eventually(lambda: clients(server_url, executor.network_id) == 1)
        with redis.Redis.from_url(server_url) as server:
            assert not server.exists(Keys(executor.network_id).queued_tasks)
            eventually(lambda: not list(server.scan_iter(match=f"{Keys(executor.network_id).task()}*")))
        assert not (tmp_path / "log").exists()
        assert executor.submit(tree, 1, 1).result(DEADLINE_S) == 2


# ------------------------------------------------------------------------------------------------ workers elsewhere


@contextlib.contextmanager
def worker_elsewhere(url: str, network_id: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "rush_executor", "worker", "--url", url, "--network", network_id, "--workers", "1"]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True) as agent:
        try:
            yield agent
            if agent.poll() is None:
                agent.send_signal(signal.SIGTERM)
            _, text = agent.communicate(timeout=DEADLINE_S)
            # One that has not said a word has not begun: the signal ends it, as it ends any program.
            is_unborn = not text and agent.returncode == -signal.SIGTERM
            assert is_unborn or agent.returncode == 0, text
        finally:
            agent.kill()


def test_on_another_machine(server_url: str) -> None:
    """Nobody but `rush-executor worker --workers 1` is there."""
    with (
        worker_elsewhere(server_url, "far"),
        RushExecutor(0, url=server_url, network_id="far") as executor,
    ):
        assert executor.submit(tree, 3, 1).result(DEADLINE_S) == 4


def test_a_worker_that_is_told_to_leave(server_url: str, tmp_path: Path, eventually: Eventually) -> None:
    """It finishes what it runs, with all that this has submitted, though nobody else is there to run it."""
    told, gate = tmp_path / "told", tmp_path / "gate"

    def parent(told: str, gate: str) -> int:
        tell_and_wait_for(told, gate)
        return current_executor().submit(tree, 2, 2).result()

    with RushExecutor(0, url=server_url, network_id="far") as executor:
        with worker_elsewhere(server_url, "far") as agent:
            future = executor.submit(parent, str(told), str(gate))
            eventually(told.exists)
            # What waits behind it is not its business.
            other = executor.submit(abs, -1)
            agent.send_signal(signal.SIGTERM)
            gate.touch()
            assert future.result(DEADLINE_S) == 7
            agent.wait(DEADLINE_S)
        with RushExecutor(1, url=server_url, network_id="far"):
            assert other.result(DEADLINE_S) == 1


def wait_in_vain(directory: str, depth: int) -> str:
    """Each level waits for the next, the last one for a task that nobody runs."""
    if depth:
        future = current_executor().submit(wait_in_vain, directory, depth - 1)
    else:
        future = current_executor().submit(tell_and_wait_for, f"{directory}/told", f"{directory}/gate")
    try:
        future.result()
    except BaseException as error:
        note(f"{directory}/log", f"{depth} {type(error).__name__}")
        raise
    return "in vain"


def test_nobody_waits_for_the_tree_any_more(server_url: str, tmp_path: Path, eventually: Eventually) -> None:
    """Its client is gone: level by level the tree gives up, on the machines where it is run; what runs, ends."""
    network_id = "far"
    with worker_elsewhere(server_url, network_id), RushExecutor(1, url=server_url, network_id=network_id) as other:
        client = RushExecutor(0, url=server_url, network_id=network_id)
        client.submit(wait_in_vain, str(tmp_path), 2)
        eventually((tmp_path / "told").exists)
        client.kill_workers()
        client.shutdown()
        log = tmp_path / "log"
        eventually(lambda: log.exists() and len(log.read_text().splitlines()) == 3)
        assert [line.split()[1] for line in log.read_text().splitlines()] == ["CancelledError"] * 3
        (tmp_path / "gate").touch()
        eventually(lambda: clients(server_url, network_id) == 1)
        assert other.submit(abs, -1).result(DEADLINE_S) == 1


def test_the_server_loses_its_data(tmp_path: Path, eventually: Eventually) -> None:
    """What waits for nested tasks gives up at once; its client has it run again, in the network that it makes anew."""
    told, gate = tmp_path / "told", tmp_path / "gate"

    def parent(told: str, gate: str) -> str:
        try:
            return str(current_executor().submit(tell_and_wait_for, told, gate, "done").result())
        except (NetworkLostError, concurrent.futures.CancelledError):
            note(f"{told}.lost", "lost")
            raise

    with RushExecutor(1) as executor:
        future = executor.submit(parent, str(told), str(gate))
        eventually(told.exists)
        with redis.Redis.from_url(executor._session.config.url) as server:
            server.flushall()
        eventually(Path(f"{told}.lost").exists)
        gate.touch()
        assert future.result(DEADLINE_S) == "done"


def test_in_a_durable_network(server_url: str) -> None:
    """It keeps nested tasks as it keeps all others."""
    from rush_executor import Rush

    with RushExecutor(1, url=server_url, network_id="kept", durable=True) as executor:
        assert executor.submit(tree, 2, 2).result(DEADLINE_S) == 7
    with Rush("kept", server_url) as rush:
        assert rush.n_finished_tasks == 7
        rush.reset()


def test_with_recycled_workers(server_url: str) -> None:
    """One task for each process, and each of them nests."""
    with RushExecutor(1, url=server_url, max_tasks_per_child=1) as executor:
        assert list(executor.map(tree, [1, 1], [2, 1])) == [3, 2]
