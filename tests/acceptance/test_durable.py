"""Durable networks: tasks and outcomes outlive the client that submitted them."""

from __future__ import annotations

import operator
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from rush_executor import Rush, RushError, RushExecutor, RushFuture, WorkerLostError
from rush_executor.testing import keys_left, temporary_server

DEADLINE_S = 60.0

# Submits tasks of all kinds on a network whose workers are elsewhere, and waits to be killed.
CLIENT = """
import sys, time
from rush_executor import RushExecutor

url, durable = sys.argv[1], sys.argv[2] == "durable"
offset = 100

def fail(x):
    raise ValueError(x)

executor = RushExecutor(0, url=url, network_id="long", durable=durable)
futures = [executor.submit(lambda x: x + offset, i) for i in range(20)]
futures.append(executor.submit(fail, "so"))
futures.append(executor.submit(bytes, 1_000_000))
futures.append(executor.submit(len, bytes(1_000_000)))
if durable:
    # On the server: `submit` is ahead of that.
    with executor.network as network:
        while network.n_tasks < len(futures):
            time.sleep(0.01)
print(*(future.task_id for future in futures), flush=True)
time.sleep(600)
"""


@pytest.fixture
def url() -> Iterator[str]:
    with temporary_server() as url:
        yield url


def submit_and_die(url: str, kind: str, when: str) -> list[str]:
    """Task ids of a client that was killed."""
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT, url, kind],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as client:
        assert client.stdout is not None
        ids = client.stdout.readline().split()
        if when == "when done":
            wait_for_ends(url, len(ids))
        client.kill()
    return ids


def wait_for_ends(url: str, n: int) -> None:
    with Rush("long", url) as rush:
        end_at = time.monotonic() + DEADLINE_S
        while rush.n_finished_tasks + rush.n_failed_tasks < n:
            assert time.monotonic() < end_at, "waited in vain"
            time.sleep(0.01)


def check(executor: RushExecutor, ids: list[str]) -> None:
    futures = executor.attach(ids)
    assert [future.task_id for future in futures] == ids
    assert [future.result(DEADLINE_S) for future in futures[:20]] == list(range(100, 120))
    assert isinstance(futures[20].exception(DEADLINE_S), ValueError)
    assert futures[21].result(DEADLINE_S) == bytes(1_000_000)
    assert futures[22].result(DEADLINE_S) == 1_000_000


def test_tasks_outlive_their_client(url: str) -> None:
    """Queued when it was killed, they are run as soon as there are workers, and told to whoever asks."""
    ids = submit_and_die(url, "durable", "at once")
    with RushExecutor(2, url=url, network_id="long", durable=True) as executor:
        check(executor, ids)
        assert executor.submit(operator.add, 1, 2).result(DEADLINE_S) == 3


def test_outcomes_outlive_their_client(url: str) -> None:
    """Those that were told to the client that was killed are told again, to one after the other."""
    with RushExecutor(2, url=url, network_id="long", durable=True):
        ids = submit_and_die(url, "durable", "when done")
    for _ in range(2):
        with RushExecutor(1, url=url, network_id="long", durable=True) as executor:
            check(executor, ids)
            with pytest.raises(KeyError, match="has no task none-such"):
                executor.attach(["none-such"])
    with Rush("long", url) as rush:
        assert sorted(rush.finished_tasks + rush.failed_tasks) == sorted(ids) == sorted(rush.tasks)
        assert rush.fetch_tasks([ids[20]])["state"] == ["failed"]
        rush.reset()
    assert not keys_left(url)


def test_others_do_not(url: str) -> None:
    """In a network that is not durable, nothing is left of what a client has submitted once it was run."""
    with RushExecutor(1, url=url, network_id="long") as executor:
        ids = submit_and_die(url, "not", "at once")
        assert executor.submit(operator.add, 1, 2).result(DEADLINE_S) == 3
        with pytest.raises(ValueError, match="exists already and is not durable"):
            RushExecutor(1, url=url, network_id="long", durable=True)
        with pytest.raises(KeyError):
            executor.attach(ids)


def test_a_living_client(url: str) -> None:
    """It is as any other executor; what it has is kept."""
    with RushExecutor(1, url=url, network_id="long", durable=True) as executor:
        future = executor.submit(operator.add, 1, 2)
        assert future.result(DEADLINE_S) == 3
        with pytest.raises(WorkerLostError):
            executor.options(max_retries=0).submit(os.kill, 0, signal.SIGKILL).result(DEADLINE_S)
        flaky = executor.options(retry_on=ZeroDivisionError, max_retries=1).submit(operator.truediv, 1, 0)
        assert isinstance(flaky.exception(DEADLINE_S), ZeroDivisionError)
        assert flaky.attempts == 2
    with RushExecutor(0, url=url, network_id="long") as other:
        [again, failed] = other.attach([future.task_id, flaky.task_id])
        assert again.result(DEADLINE_S) == 3
        assert isinstance(failed.exception(DEADLINE_S), ZeroDivisionError)
        with pytest.raises(ValueError, match="has a Future"):
            other.attach([other.submit(abs, 1).task_id])
        other.shutdown(wait=False, cancel_futures=True)


def test_a_chunk_that_is_tried_again(url: str, tmp_path: Path) -> None:
    """A call of it raised, once: kept, listed and shown is what came of it in the end, and the other tasks."""
    flag = tmp_path / "flag"

    def fail_once(x: int) -> bytes:
        if x == 3 and not flag.exists():
            flag.touch()
            raise ValueError("once")
        return bytes(300_000)

    with RushExecutor(1, url=url, network_id="long", durable=True) as executor, executor.network as network:
        mapped = executor.options(retry_on=ValueError, max_retries=1).map(fail_once, range(4), chunksize=4)
        # Seen while it stands there as finished, or not: this may not lead past the next one.
        assert network.wait_for_new_tasks(DEADLINE_S)
        assert list(mapped) == [bytes(300_000)] * 4
        last = executor.submit(abs, -1)
        assert last.result(DEADLINE_S) == 1
        [chunk] = set(network.tasks) - {last.task_id}
        assert network.finished_tasks == network.tasks == [chunk, last.task_id]
        assert network.fetch_finished_tasks()["key"] == [chunk, last.task_id]
    with redis.Redis.from_url(url) as server:
        # That of the first try goes by itself.
        assert len([key for key in server.keys("rush:{long}:blob:*") if server.ttl(key) == -1]) == 1


def test_a_task_that_another_client_takes(url: str) -> None:
    """Whoever waited for it before is told so, whatever it would have retried, and its shutdown waits for nothing."""
    with RushExecutor(0, url=url, network_id="long", durable=True) as first:
        waiting = first.options(retry_on=Exception).submit(operator.add, 1, 2)
        with RushExecutor(0, url=url, network_id="long") as second:
            [taken] = eventually_attached(second, [waiting.task_id])
            with pytest.raises(RushError, match="another executor has attached"):
                waiting.result(DEADLINE_S)
            with RushExecutor(1, url=url, network_id="long"):
                assert taken.result(DEADLINE_S) == 3


def test_an_attach_that_fails(url: str) -> None:
    """Leaves nothing to wait for, here or elsewhere."""
    with RushExecutor(0, url=url, network_id="long", durable=True) as first:
        others = [first.submit(operator.add, n, 0) for n in range(2)]
        with RushExecutor(0, url=url, network_id="long") as second:
            [taken] = eventually_attached(second, [others[0].task_id])
            for more, error in ((["none-such"], KeyError), ([taken.task_id], ValueError)):
                with pytest.raises(error):
                    second.attach([others[1].task_id, *more])
            with RushExecutor(1, url=url, network_id="long"):
                assert taken.result(DEADLINE_S) == 0
                assert others[1].result(DEADLINE_S) == 1


def eventually_attached(executor: RushExecutor, ids: list[str]) -> list[RushFuture]:
    """`submit` is ahead of the server."""
    end_at = time.monotonic() + DEADLINE_S
    while True:
        try:
            return executor.attach(ids)
        except KeyError:
            assert time.monotonic() < end_at


def test_a_durable_network_has_a_name(url: str) -> None:
    """What is kept must be found again."""
    with pytest.raises(ValueError, match="durable needs url and network_id"):
        RushExecutor(1, durable=True)
    with pytest.raises(ValueError, match="durable needs url and network_id"):
        RushExecutor(1, url=url, durable=True)
