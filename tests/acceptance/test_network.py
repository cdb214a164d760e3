"""Networks that keep their tasks: managed by `Rush`, worked by workers with a function or with a loop of their own."""

from __future__ import annotations

import functools
import logging
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rush_executor import (
    Rush,
    RushError,
    RushExecutor,
    RushWorker,
    rsh,
    rush_plan,
    with_rng_state,
    worker_loop_default,
    worker_loop_process,
)
from rush_executor._crew import crew
from rush_executor.errors import PayloadError, TaskKilledError, TaskTimeoutError, WorkerLostError
from rush_executor.testing import temporary_server
from tests.acceptance.tasks import wait_for

DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with temporary_server() as url:
        yield url


@pytest.fixture
def rush(url: str) -> Iterator[Rush]:
    with Rush(url=url) as rush:
        yield rush
        rush.reset()


def wait_until(condition: Callable[[], Any]) -> None:
    end_at = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end_at, "waited in vain"
        time.sleep(0.01)


def add(x1: float, x2: float) -> dict[str, float]:
    return {"y": x1 + x2}


def fail_on_two(x: int) -> dict[str, int]:
    if x == 2:
        raise ValueError("two")
    return {"y": x}


def crash_on_two(x: int) -> dict[str, int]:
    if x == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"y": x}


def sleep_on_two(x: int) -> dict[str, int]:
    if x == 2:
        time.sleep(600)
    return {"y": x}


def note_and_sleep(note: str) -> None:
    """Leaves a file behind as it begins: a task whose worker has not begun it yet counts as running too."""
    Path(note).touch()
    time.sleep(600)


class BreaksOnArrival:
    """A loop that cannot be unpickled in a worker."""

    def __call__(self, worker: RushWorker) -> None:
        """Never called."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


def test_the_first_example(rush: Rush) -> None:
    """Two tasks, two workers, a table."""
    rush.start_local_workers(fun=add, n_workers=2)
    keys = rush.push_tasks([{"x1": 3, "x2": 5}, {"x1": 4, "x2": 6}])
    assert rush.wait_for_tasks(keys, timeout=DEADLINE_S)
    table = rush.fetch_finished_tasks()
    assert sorted(table["y"]) == [8, 10]
    assert sorted(zip(table["x1"], table["x2"], strict=True)) == [(3, 5), (4, 6)]
    assert sorted(table.keys) == sorted(keys) == sorted(rush.finished_tasks)
    assert set(table["worker_id"]) <= set(rush.running_worker_ids)
    row = table[0]
    assert row.pushed_at <= row.started_at <= row.ended_at


def test_decentralised(rush: Rush) -> None:
    """Workers make tasks of their own, and see those of all others."""

    def loop(worker: RushWorker, n: int) -> None:
        while worker.n_finished_tasks < n and not worker.terminated:
            seen = worker.fetch_new_tasks()
            [key] = worker.push_running_tasks([{"x": len(seen)}], extra=[{"by": "loop"}])
            assert worker.is_running_task(key)
            assert worker.finish_tasks(key, {"y": 1}, extra={"note": "done"}) == [key]

    ids = rush.start_local_workers(loop, n_workers=4, n=40)
    wait_until(lambda: set(rush.terminated_worker_ids) == set(ids))
    table = rush.fetch_finished_tasks()
    assert len(table) >= 40
    assert set(table["by"]) == {"loop"}
    assert set(table["note"]) == {"done"}
    assert rush.n_running_tasks == 0
    assert rush.worker_states == dict.fromkeys(ids, "terminated")


def test_failures(rush: Rush) -> None:
    """What a function raises is the task's condition; the task can be retried."""
    rush.start_local_workers(fun=fail_on_two, n_workers=1)
    keys = rush.push_tasks([{"x": x} for x in range(4)])
    assert rush.wait_for_tasks(keys, timeout=DEADLINE_S)
    table = rush.fetch_failed_tasks()
    assert table.keys == [keys[2]]
    assert isinstance(table["condition"][0], ValueError)
    assert rush.is_failed_task(keys) == [False, False, True, False]
    assert rush.retry_tasks(keys) == []
    assert rush.retry_tasks(keys, ignore_max_retries=True) == [keys[2]]
    assert rush.wait_for_tasks(keys, timeout=DEADLINE_S)
    assert rush.n_failed_tasks == 1
    assert rush.fetch_tasks([keys[2]])["attempts"] == [2]


def test_a_result_is_a_mapping(rush: Rush) -> None:
    """A function that returns something else fails its task, in words."""
    rush.start_local_workers(fun=lambda x: x, n_workers=1)
    keys = rush.push_tasks([{"x": 1}])
    assert rush.wait_for_tasks(keys, timeout=DEADLINE_S)
    [condition] = rush.fetch_failed_tasks()["condition"]
    assert isinstance(condition, TypeError)
    assert "must return a mapping" in str(condition)


@pytest.mark.parametrize("loop", [worker_loop_default, worker_loop_process])
def test_a_result_that_is_called_like_an_input(rush: Rush, loop: Callable[..., None]) -> None:
    """Fails its task: they would be one column."""
    rush.start_local_workers(loop, fun=lambda x: {"x": x}, n_workers=1)
    keys = rush.push_tasks([{"x": 1}, {"x": 2}], seeds=[1, 2])
    keys += rush.push_tasks([{"x": 3}])
    assert rush.wait_for_tasks(keys, timeout=DEADLINE_S)
    assert ["'x' is an input" in str(row.condition) for row in rush.fetch_failed_tasks()] == [True] * 3


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"timeouts": -1}, "timeouts must be > 0 seconds, not -1"),
        ({"timeouts": [float("nan")]}, "timeouts must be > 0 seconds, not nan"),
        ({"max_retries": -1}, "max_retries must be integers >= 0, not -1"),
        ({"seeds": -1}, "seeds must be integers >= 0, not -1"),
        ({"seeds": [-2]}, "seeds must be integers >= 0, not -2"),
        ({"seeds": 1.5}, "'float' object cannot be interpreted as an integer"),
        ({"priority": 1.5}, "'float' object cannot be interpreted as an integer"),
        ({"priority": 4096}, "priority must be between -4095 and 4095, or a worker's id"),
        ({"priority": [1, 2]}, "priority has 2 values for 1 tasks"),
    ],
)
def test_options_that_make_no_sense(rush: Rush, options: dict[str, Any], error: str) -> None:
    """Are told before anything is sent."""
    with pytest.raises((ValueError, TypeError), match=error):
        rush.push_priority_tasks([{"x": 1}], **{"priority": 0, **options})
    assert rush.n_tasks == 0


def test_a_crash(rush: Rush) -> None:
    """Costs one worker and its task; nobody has to look for it."""
    rush.start_local_workers(fun=crash_on_two, n_workers=2)
    keys = rush.push_tasks([{"x": x} for x in range(20)])
    assert rush.wait_for_tasks(keys, timeout=DEADLINE_S)
    [row] = rush.fetch_failed_tasks()
    assert row.key == keys[2]
    assert isinstance(row.condition, WorkerLostError)
    assert row.condition.exitcode == -signal.SIGKILL
    assert rush.n_finished_tasks == 19
    assert rush.lost_worker_ids == [row.worker_id] == rush.detect_lost_workers()
    assert rush.detect_lost_workers() == []
    assert rush.restart_workers(row.worker_id) == [row.worker_id]
    rush.wait_for_workers(worker_ids=[row.worker_id], timeout=DEADLINE_S)
    assert rush.n_running_workers == 2
    assert rush.lost_worker_ids == []


BY_HAND = """
import sys, time
from rush_executor import RushWorker
worker = RushWorker(sys.argv[1], sys.argv[2], heartbeat_period=0.2, heartbeat_expire=1.5)
worker.push_running_tasks([{"x": 1}])
print(worker.worker_id, flush=True)
time.sleep(600)
"""


def test_a_worker_whose_machine_is_lost(rush: Rush, url: str) -> None:
    """Nobody has reaped it: its heartbeat tells, not before it expires; whoever waits for its task need not look."""
    command = [sys.executable, "-c", BY_HAND, rush.network_id, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        worker_id = process.stdout.readline().strip()
        [key] = rush.running_tasks
        began_at = time.monotonic()
        process.kill()
    assert rush.wait_for_tasks(key, timeout=DEADLINE_S)
    # The last sign of life may be a period old.
    assert time.monotonic() - began_at > 1.5 - 0.2 - 0.1
    [condition] = rush.fetch_failed_tasks()["condition"]
    assert isinstance(condition, WorkerLostError)
    assert "no sign of life" in str(condition)
    assert rush.detect_lost_workers() == rush.lost_worker_ids == [worker_id]


def test_no_worker_is_left(rush: Rush) -> None:
    """Who waits is told."""
    rush.start_local_workers(fun=crash_on_two, n_workers=1)
    keys = rush.push_tasks([{"x": 2}, {"x": 3}])
    with pytest.warns(RuntimeWarning, match="no worker is left"):
        assert not rush.wait_for_tasks(keys, timeout=DEADLINE_S)


def test_lost_workers_and_their_tasks_again(rush: Rush, tmp_path: Path) -> None:
    """Both are started again by who asks for it: the worker under its id, the task also without a retry left."""

    def crash_once(x: int) -> dict[str, int]:
        try:
            (tmp_path / str(x)).touch(exist_ok=False)
        except FileExistsError:
            return {"y": x}
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    [worker_id] = rush.start_local_workers(fun=crash_once, n_workers=1)
    [key] = rush.push_tasks([{"x": 2}])
    wait_until(lambda: rush.failed_tasks == [key] and rush.lost_worker_ids == [worker_id])
    assert rush.detect_lost_workers(restart_workers=True, restart_tasks=True) == [worker_id]
    assert rush.wait_for_tasks(key, timeout=DEADLINE_S)
    [row] = rush.fetch_tasks([key])
    assert (row.state, row.ys, row.worker_id) == ("finished", {"y": 2}, worker_id)


def test_a_time_limit(rush: Rush) -> None:
    """Ends the task; the worker goes on, under its id."""
    ids = rush.start_local_workers(fun=sleep_on_two, n_workers=1)
    keys = rush.push_tasks([{"x": x} for x in range(4)], timeouts=[30, None, 0.3, float("inf")])
    seen: set[str] = set()
    wait_until(lambda: seen.update(rush.worker_states.values()) or rush.n_finished_tasks == 3)
    [row] = rush.fetch_failed_tasks()
    assert row.key == keys[2]
    assert isinstance(row.condition, TaskTimeoutError)
    assert set(rush.fetch_finished_tasks()["worker_id"]) == set(ids)
    # It was ended for its task, not lost, not even for a moment.
    assert seen <= {"starting", "idle", "running"}
    assert rush.detect_lost_workers() == []


def test_a_process_for_each_task(rush: Rush) -> None:
    """A crash and a time limit cost the process of the task alone."""
    rush.start_local_workers(worker_loop_process, fun=crash_on_two, n_workers=1)
    keys = rush.push_tasks([{"x": x} for x in range(4)])
    assert rush.wait_for_tasks(keys, timeout=DEADLINE_S)
    assert isinstance(rush.fetch_failed_tasks()["condition"][0], WorkerLostError)
    rush.stop_workers()
    wait_until(lambda: rush.n_running_workers == 0)
    rush.start_local_workers(worker_loop_process, fun=sleep_on_two, n_workers=1)
    [key] = rush.push_tasks([{"x": 2}], timeouts=0.3)
    assert rush.wait_for_tasks(key, timeout=DEADLINE_S)
    assert isinstance(rush.fetch_tasks([key])["condition"][0], TaskTimeoutError)
    assert rush.lost_worker_ids == []


def test_stopping(rush: Rush) -> None:
    """Terminate lets a task finish, kill does not; unknown workers are told."""
    ids = rush.start_local_workers(fun=sleep_on_two, n_workers=2)
    rush.wait_for_workers(timeout=DEADLINE_S)
    [key] = rush.push_priority_tasks([{"x": 2}], ids[0])
    wait_until(lambda: rush.is_running_task(key))
    assert rush.worker_states == {ids[0]: "running", ids[1]: "idle"}
    rush.stop_workers(worker_ids=ids[1])
    wait_until(lambda: rush.terminated_worker_ids == [ids[1]])
    rush.stop_workers("kill")
    wait_until(lambda: rush.killed_worker_ids == [ids[0]])
    assert isinstance(rush.fetch_tasks([key])["condition"][0], TaskKilledError)
    assert "Worker was killed" in str(rush.fetch_tasks([key])["condition"][0])
    with pytest.warns(RuntimeWarning, match="no such workers: nobody"):
        rush.stop_workers(worker_ids="nobody")


def test_stopping_with_patience(rush: Rush, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who does not come to an end in time is killed, and who does is not."""
    note = tmp_path / "begun"
    ids = rush.start_local_workers(fun=note_and_sleep, n_workers=2)
    rush.wait_for_workers(timeout=DEADLINE_S)
    [key] = rush.push_priority_tasks([{"note": str(note)}], ids[0])
    wait_until(note.exists)
    wait_for_end = rush._wait_for_end

    def wait(worker_ids: Collection[str], grace: float) -> None:
        # In time, however long an idle one takes.
        wait_until(lambda: rush.terminated_worker_ids == [ids[1]])
        wait_for_end(worker_ids, grace)

    monkeypatch.setattr(rush, "_wait_for_end", wait)
    rush.stop_workers(grace=0.5)
    wait_until(lambda: rush.worker_states == {ids[0]: "killed", ids[1]: "terminated"})
    assert isinstance(rush.fetch_tasks([key])["condition"][0], TaskKilledError)


def test_the_states_of_a_worker(rush: Rush, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its start to its end, as its manager sees them, and another one."""
    note, gate = tmp_path / "begun", tmp_path / "gate"
    hold_back = f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\n"
    monkeypatch.setattr(crew, "_BOOT", hold_back + crew._BOOT)
    ids = rush.start_local_workers(fun=note_and_sleep, n_workers=1)
    try:
        assert rush.worker_states == {ids[0]: "starting"}
        assert rush.worker_ids == ids
        assert rush.running_worker_ids == []
    finally:
        gate.touch()
    rush.wait_for_workers(timeout=DEADLINE_S)
    assert rush.worker_states == {ids[0]: "idle"}
    [key] = rush.push_tasks([{"note": str(note)}])
    wait_until(lambda: rush.worker_states == {ids[0]: "running"})
    wait_until(note.exists)
    rush.stop_workers()
    wait_until(lambda: rush.worker_states == {ids[0]: "draining"})
    with Rush(rush.network_id, url) as other:
        assert other.worker_states == {ids[0]: "draining"}
        assert [(worker.n_running, worker.host != "") for worker in other.worker_info] == [(1, True)]
    # It is at its task, so it has not ended, and can still be killed.
    assert rush.running_worker_ids == ids
    rush.stop_workers("kill")
    wait_until(lambda: rush.worker_states == {ids[0]: "killed"})
    assert isinstance(rush.fetch_tasks([key])["condition"][0], TaskKilledError)
    assert [rush.n_workers, rush.n_running_workers, rush.n_killed_workers, rush.n_lost_workers] == [1, 0, 1, 0]


def test_the_states_of_a_worker_by_hand(rush: Rush) -> None:
    """It is asked to end, and says so; it is there as long as whoever made it wants."""
    with RushWorker(rush.network_id, rush._config.url, "w1", heartbeat_period=0.1) as worker:
        assert rush.worker_states == {"w1": "idle"}
        assert not worker.terminated
        rush.stop_workers("kill")
        wait_until(lambda: rush.worker_states == {"w1": "draining"})
        assert worker.terminated
        assert worker.terminated_on_idle
    assert rush.worker_states == {"w1": "terminated"}
    assert rush.n_terminated_workers == 1


@pytest.mark.parametrize(("how", "state"), [("terminate", "terminated"), ("kill", "killed")])
def test_stopping_what_starts(rush: Rush, how: str, state: str) -> None:
    """Workers that were started a moment ago are stopped as well, and are not taken for lost."""
    ids = rush.start_local_workers(fun=add, n_workers=2)
    rush.stop_workers(how)
    wait_until(lambda: rush.worker_states == dict.fromkeys(ids, state))
    # Nobody waits for them any more.
    rush.wait_for_workers(timeout=DEADLINE_S)
    with pytest.warns(RuntimeWarning, match="no worker is left"):
        assert not rush.wait_for_tasks(rush.push_tasks([{"x1": 1, "x2": 2}]))
    rush.restart_workers(ids[0])
    rush.wait_for_workers(timeout=DEADLINE_S)
    assert rush.running_worker_ids == [ids[0]]


def test_a_worker_that_has_ended_had_joined(rush: Rush) -> None:
    """Whoever waits for workers does not wait for ever because they were fast; one that could not start is told."""
    ids = rush.start_local_workers(lambda worker: None, n_workers=1)
    wait_until(lambda: rush.terminated_worker_ids == ids)
    rush.wait_for_workers(timeout=0)
    with pytest.raises(TimeoutError, match="1 more worker has"):
        rush.wait_for_workers(1, timeout=0)
    broken = rush.start_local_workers(BreaksOnArrival(), n_workers=1)
    with pytest.raises(RuntimeError, match=f"ended during their start: {broken[0]}"):
        rush.wait_for_workers(timeout=DEADLINE_S)


def test_priorities(rush: Rush) -> None:
    """Numbers order the queue; a task for one worker is nobody else's, unless that one is not there."""
    order = rush.push_tasks([{"x": 1}]) + rush.push_priority_tasks([{"x": 2}], 5)
    assert rush.queued_tasks == order[::-1]
    with (
        RushWorker(rush.network_id, rush._config.url, "w1") as one,
        RushWorker(rush.network_id, rush._config.url) as two,
    ):
        [own] = rush.push_priority_tasks([{"x": 3}], "w1")
        [shared] = rush.push_priority_tasks([{"x": 4}], "nobody")
        assert rush.priority_info == {"w1": 1, two.worker_id: 0}
        assert rush.fetch_priority_tasks().keys == [own]
        popped = [two.pop_task(0) for _ in range(4)]
        assert [task and task.key for task in popped] == [order[1], order[0], shared, None]
        assert one.pop_task(0).key == own  # type: ignore[union-attr]
        assert sorted(rush.running_tasks) == sorted([*order, own, shared])
    # They have left without finishing anything.
    assert rush.n_failed_tasks == 4


def test_what_was_queued_for_a_worker_that_leaves(rush: Rush) -> None:
    """Is for all."""
    with RushWorker(rush.network_id, rush._config.url, "w1"):
        keys = rush.push_priority_tasks([{"x": 3}], "w1")
        assert rush.priority_info == {"w1": 1}
    assert rush.queued_tasks == keys
    assert rush.priority_info == {}


def test_other_ends(rush: Rush) -> None:
    """Tasks may come with their results or failures; the queue can be emptied."""
    done = rush.push_finished_tasks([{"x": 1}, {"x": 2}], [{"y": 1}, {"y": 4}], extra=[{"from": "archive"}] * 2)
    failed = rush.push_failed_tasks([{"x": 3}], "it was so")
    queued = rush.push_tasks([{"x": 4}, {"x": 5}])
    assert rush.empty_queue() == queued
    assert rush.fetch_finished_tasks(fields=["key", "y"]).to_dicts() == [
        {"key": done[0], "y": 1},
        {"key": done[1], "y": 4},
    ]
    conditions = {row.key: str(row.condition) for row in rush.fetch_failed_tasks()}
    assert conditions == {failed[0]: "it was so", **dict.fromkeys(queued, "Removed from queue")}
    assert rush.tasks == done + failed + queued
    assert rush.fetch_tasks().keys == rush.tasks
    assert [rush.n_tasks, rush.n_queued_tasks, rush.n_finished_tasks, rush.n_failed_tasks] == [5, 0, 2, 3]


def test_new_tasks(rush: Rush) -> None:
    """Each finished task is new once."""
    assert len(rush.fetch_new_tasks()) == 0
    assert not rush.wait_for_new_tasks(timeout=0.05)
    keys = rush.push_finished_tasks([{"x": 1}] * 3, [{"y": 1}] * 3)
    assert rush.wait_for_new_tasks(timeout=DEADLINE_S)
    assert rush.fetch_new_tasks().keys == keys
    assert len(rush.fetch_new_tasks()) == 0
    more = rush.push_finished_tasks([{"x": 1}], [{"y": 1}])
    assert [row.key for row in rush.iter_new_tasks(timeout=0.05)] == more
    assert rush.fetch_finished_tasks().keys == keys + more


def test_reset_cache(rush: Rush) -> None:
    """What was read is forgotten: all of it is read, and new, once more."""
    keys = rush.push_finished_tasks([{"x": 1}] * 2, [{"y": [1]}] * 2)
    first = rush.fetch_new_tasks()
    first["y"][0].append(2)
    assert rush.fetch_finished_tasks()["y"] == [[1, 2], [1]]
    rush.reset_cache()
    assert rush.fetch_new_tasks()["y"] == [[1], [1]]
    assert rush.fetch_new_tasks().keys == []
    assert rush.fetch_finished_tasks().keys == keys


def test_names_of_before(rush: Rush, url: str) -> None:
    """Work still; and a loop of one's own may end in the built-in one."""
    one, two, three = rush.push_tasks([{"x": 1}, {"x": 2}, {"x": 3}])
    with RushWorker(rush.network_id, url) as worker:
        assert [task.key for _ in range(2) if (task := worker.pop_task())] == [one, two]
        assert worker.push_results(one, [{"y": 1}]) == [one]
        assert worker.push_failed([two], "it was so") == [two]

    def loop(worker: RushWorker) -> None:
        worker.finish_tasks(worker.push_running_tasks([{"x": 0}]), {"y": 0})
        worker_loop_default(worker, lambda x: {"y": -x})

    rush.start_local_workers(loop, n_workers=1)
    assert rush.wait_for_tasks(three, timeout=DEADLINE_S)
    assert rush.fetch_finished_tasks()["y"] == [1, 0, -3]
    assert rush.failed_tasks == [two]
    assert [str(row.condition) for row in rush.fetch_failed_tasks()] == ["it was so"]


def test_waiting_wakes_on_an_event(rush: Rush) -> None:
    """Who waits for new tasks is there as soon as one has ended."""
    rush.start_local_workers(fun=add, n_workers=1)
    rush.wait_for_workers(timeout=DEADLINE_S)
    rush.push_tasks([{"x1": 1, "x2": 1}])
    assert len(rush.fetch_new_tasks(timeout=DEADLINE_S)) == 1


def test_states_at_one_moment(rush: Rush) -> None:
    """No task is in two states."""
    queued = rush.push_tasks([{"x": 1}])
    done = rush.push_finished_tasks([{"x": 2}], [{"y": 2}])
    table = rush.fetch_tasks_with_state()
    assert list(zip(table.keys, table["state"], strict=True)) == [(queued[0], "queued"), (done[0], "finished")]
    assert rush.fetch_queued_tasks().keys == queued
    with pytest.raises(ValueError, match="there is no state 'done'"):
        rush.fetch_tasks_with_state(["done"])


def test_terminate_when_the_queue_is_empty(rush: Rush) -> None:
    """Workers leave by themselves."""
    ids = rush.start_local_workers(fun=add, n_workers=2)
    rush.push_tasks([{"x1": 1, "x2": 2}] * 10, terminate_workers=True)
    wait_until(lambda: sorted(rush.terminated_worker_ids) == sorted(ids))
    assert rush.n_finished_tasks == 10


def test_names_that_collide(rush: Rush) -> None:
    """Are refused before anything is sent."""
    with pytest.raises(ValueError, match="'x' is an input"):
        rush.push_tasks([{"x": 1}], extra=[{"x": 2}])
    with pytest.raises(TypeError, match="must be a list of mappings"):
        rush.push_tasks({"x": 1})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="extra has 2 values for 1 tasks"):
        rush.push_tasks([{"x": 1}], extra=[{"a": 1}, {"a": 2}])
    assert rush.push_tasks([]) == []
    assert rush.n_tasks == 0
    with RushWorker(rush.network_id, rush._config.url) as worker:
        [key] = worker.push_running_tasks([{"x": 1}])
        with pytest.raises(ValueError, match="'x' is an input"):
            worker.finish_tasks(key, {"x": 2})
        assert worker.finish_tasks(key, {"y": 2}) == [key]


def test_the_late_loser(rush: Rush, caplog: pytest.LogCaptureFixture) -> None:
    """A result for a task that the worker does not hold is dropped, with a warning."""
    with RushWorker(rush.network_id, rush._config.url) as worker:
        [key] = worker.push_running_tasks([{"x": 1}])
        assert worker.finish_tasks(key, {"y": 1}) == [key]
        assert worker.finish_tasks(key, {"y": 2}) == []
        assert worker.fail_tasks("no-such-task", "reason") == []
    assert caplog.text.count("is dropped") == 2
    assert rush.fetch_finished_tasks()["y"] == [1]


def test_a_network_of_an_executor(url: str, tmp_path: Path) -> None:
    """Can be looked at, and nothing else; nor does an executor take over a network of rows."""
    with RushExecutor(1, url=url, network_id="calls") as executor:
        gate = tmp_path / "gate"
        future = executor.submit(wait_for, str(gate))
        with Rush("calls", url) as rush:
            wait_until(lambda: rush.n_running_tasks == 1)
            assert rush.fetch_running_tasks()["state"] == ["running"]
            assert rush.n_running_workers == 1
            with pytest.raises(RushError, match="is a RushExecutor's"):
                rush.push_tasks([{"x": 1}])
        gate.touch()
        assert future.result() is None
    with Rush("rows", url) as rush:
        rush.push_tasks([{"x": 1}])
        with pytest.raises(ValueError, match="keeps its tasks"):
            RushExecutor(1, url=url, network_id="rows")
        assert rush.n_queued_tasks == 1
        rush.reset()


@pytest.mark.parametrize("secret", [None, "word"])
def test_a_durable_network_of_an_executor(url: str, secret: str | None) -> None:
    """What calls have returned is there to be looked at, as a column; how they failed as ever."""
    with RushExecutor(1, url=url, network_id="night", durable=True, secret=secret) as executor:
        futures = [executor.submit(pow, 2, n) for n in range(3)]
        futures += [executor.submit(int, "x"), executor.submit(bytes, 500_000)]
        assert list(executor.map(abs, [-1, -2], chunksize=2)) == [1, 2]
        with executor.network as rush:
            assert rush.wait_for_tasks([future.task_id for future in futures], timeout=DEADLINE_S)
            table = rush.fetch_finished_tasks()
            assert table["result"] == [1, 2, 4, bytes(500_000), [1, 2]]
            assert table.keys[:3] == [future.task_id for future in futures[:3]]
            assert [str(error) for error in rush.fetch_failed_tasks()["condition"]] == [str(futures[3].exception())]
            rush.reset()


def test_reset(rush: Rush, url: str) -> None:
    """Deletes this network's keys alone, also of one with an odd name."""
    with Rush("od*d[name]?", url) as odd, Rush("other", url) as other:
        odd.push_tasks([{"x": 1}] * 3)
        other.push_tasks([{"x": 1}])
        odd.reset()
        assert odd.n_tasks == 0
        assert other.n_tasks == 1
        assert odd.push_tasks([{"x": 1}]) == odd.tasks
        odd.reset()
        other.reset()


def test_reset_data(rush: Rush, url: str) -> None:
    """Forgets the tasks and keeps the workers; what one of them was at is dropped, whoever had made it."""

    def loop(worker: RushWorker) -> None:
        [own] = worker.push_running_tasks([{"x": 1}])
        while worker.is_running_task(own):
            time.sleep(0.005)
        assert worker.finish_tasks(own, {"y": 1}) == []
        task = None
        while task is None:
            task = worker.pop_task()
        worker.finish_tasks(task.key, {"y": 2})

    with Rush(rush.network_id, url) as other:
        other.reset_data()
        assert other.n_tasks == 0
        other.push_finished_tasks([{"x": 0}] * 3, [{"y": 0}] * 3)
        assert len(rush.fetch_finished_tasks()) == 3
        [worker] = rush.start_local_workers(loop, n_workers=1)
        wait_until(lambda: rush.n_running_tasks == 1)
        other.push_tasks([{"x": 5}], extra=[{"large": b"x" * 300_000}])
        other.reset(workers=False)
        assert [rush.n_tasks, rush.n_running_tasks, len(rush.fetch_tasks_with_state())] == [0] * 3
        assert rush.running_worker_ids == [worker]
        keys = other.push_tasks([{"x": 2}])
        assert other.wait_for_tasks(keys, timeout=DEADLINE_S)
        other.push_finished_tasks([{"x": 3}] * 3, [{"y": 3}] * 3)
        # As many as were read before, and more: they are others.
        assert rush.fetch_finished_tasks()["x"] == [2, 3, 3, 3]
        assert rush.fetch_new_tasks()["x"] == [2, 3, 3, 3]
    with (
        RushExecutor(0, url=url, network_id="calls"),
        Rush("calls", url) as calls,
        pytest.raises(RushError, match="is a RushExecutor's"),
    ):
        calls.reset_data()


def test_what_was_read_of_a_network_that_was_reset(rush: Rush, url: str) -> None:
    """Is forgotten, though the next one of this name has as many tasks."""
    rush.push_finished_tasks([{"x": 1}] * 3, [{"y": 1}] * 3)
    assert rush.fetch_new_tasks()["x"] == [1, 1, 1]
    with Rush(rush.network_id, url) as other:
        other.reset()
        other.push_finished_tasks([{"x": 2}] * 5, [{"y": 2}] * 5)
    assert rush.fetch_new_tasks()["x"] == rush.fetch_finished_tasks()["x"] == [2] * 5


def test_waiting_for_what_there_is_not(rush: Rush) -> None:
    """It is told, though there are workers: nobody would end it."""
    rush.start_local_workers(fun=sleep_on_two, n_workers=1)
    [key] = rush.push_tasks([{"x": 2}])
    with pytest.raises(KeyError, match="has no task 'nothing'"):
        rush.wait_for_tasks([key, "nothing"])
    wait_until(lambda: rush.is_running_task(key))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(rush.wait_for_tasks, key)
        rush.reset_data()
        with pytest.raises(KeyError, match="has no task"):
            waiting.result(DEADLINE_S)


def test_threads_that_wait(rush: Rush) -> None:
    """Do not keep others from looking, or from waiting for less long."""
    [key] = rush.push_tasks([{"x": 1}])
    with ThreadPoolExecutor(2) as pool:
        waiting = [
            pool.submit(rush.wait_for_tasks, key, timeout=DEADLINE_S, detect_lost_workers=False),
            pool.submit(rush.fetch_new_tasks, timeout=DEADLINE_S),
        ]
        assert not rush.wait_for_new_tasks(timeout=0.1)
        assert len(rush.fetch_finished_tasks()) == 0
        assert not any(future.done() for future in waiting)
        with RushWorker(rush.network_id, rush._config.url) as worker:
            task = worker.pop_task()
            assert task is not None
            worker.finish_tasks(task.key, {"y": 1})
        assert waiting[0].result(DEADLINE_S)
        assert waiting[1].result(DEADLINE_S).keys == [key]


def test_it_can_be_pickled(rush: Rush) -> None:
    """And connects anew."""
    keys = rush.push_tasks([{"x": 1}])
    with pickle.loads(pickle.dumps(rush)) as copy:
        assert copy.tasks == keys
    assert rsh is Rush


def test_names_of_both_ages() -> None:
    """What was called otherwise before is called so as well."""
    assert Rush.start_remote_workers is Rush.start_workers
    assert Rush.create_worker_script is Rush.worker_script
    assert RushWorker.push_results is RushWorker.finish_tasks
    assert RushWorker.push_failed is RushWorker.fail_tasks


def test_large_values(rush: Rush) -> None:
    """Beyond what a record holds."""
    rush.start_local_workers(fun=lambda data: {"doubled": data * 2}, n_workers=1)
    keys = rush.push_tasks([{"data": b"x" * 1_000_000}])
    assert rush.wait_for_tasks(keys, timeout=DEADLINE_S)
    assert rush.fetch_finished_tasks()["doubled"] == [b"x" * 2_000_000]
    done = rush.push_finished_tasks([{"a": b"y" * 1_000_000}], [{"b": b"z" * 1_000_000}])
    [row] = rush.fetch_tasks(done)
    assert (len(row.xs["a"]), len(row.ys["b"])) == (1_000_000, 1_000_000)


def test_many_that_have_finished(rush: Rush) -> None:
    """Are read in order, the large ones among them, too, and whatever the worker is called."""
    n, large = 1300, b"x" * 300_000
    keys = rush.push_finished_tasks(
        [{"i": i, "data": large} if i % 400 == 7 else {"i": i} for i in range(n)], [{"y": i} for i in range(n)]
    )
    with RushWorker(rush.network_id, rush._config.url, worker_id="a b  c") as worker:
        keys += worker.push_running_tasks([{"i": n}])
        worker.finish_tasks(keys[-1], {"y": n}, extra={"note": "last"})
        for each in (rush, worker):
            table = each.fetch_finished_tasks()
            assert table.keys == keys
            assert table["i"] == table["y"] == list(range(n + 1))
            assert [i for i, data in enumerate(table["data"]) if data == large] == [7, 407, 807, 1207]
            assert (table[-1].worker_id, table[-1].extra, table[0].worker_id) == ("a b  c", {"note": "last"}, "")
    states = rush.task_states([*keys, "nobody's"])
    assert (set(states), set(states.values()), states["nobody's"]) == ({*keys, "nobody's"}, {"finished", ""}, "")


def test_large_values_in_a_folder(url: str, tmp_path: Path) -> None:
    """Inputs, results and what a loop is given go through files, whoever writes them; reset leaves none."""
    weights = b"w" * 1_000_000
    with Rush("folder", url, large_objects_path=tmp_path) as rush, Rush("folder", url) as other:
        rush.start_local_workers(
            fun=lambda data, weights: {"both": data + weights}, constants={"weights": weights}, n_workers=1
        )
        keys = other.push_tasks([{"data": b"x" * 1_000_000}])
        assert rush.wait_for_tasks(keys, timeout=DEADLINE_S)
        assert other.fetch_finished_tasks()["both"] == [b"x" * 1_000_000 + weights]
        sizes = sorted(file.stat().st_size for file in tmp_path.glob("*/*"))
        assert [round(size / 1e6) for size in sizes] == [1, 1, 2]
        with pickle.loads(pickle.dumps(rush)) as copy:
            assert copy.fetch_finished_tasks()["data"] == [b"x" * 1_000_000]
        rush.reset()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="must be a folder that is there"):
        Rush("folder", url, large_objects_path=tmp_path / "nothing")
    with rush_plan(1, url, large_objects_path=str(tmp_path)), Rush("planned") as rush:
        rush.push_tasks([{"data": b"x" * 1_000_000}])
        assert len(list(tmp_path.glob("*/*"))) == 1
        rush.reset()


def test_inputs_that_cannot_be_read(rush: Rush, tmp_path: Path) -> None:
    """Fail their task, not the worker that takes it: not in a loop of one's own either."""
    bad, good = rush.push_tasks([{"x": BreaksOnArrival()}, {"x": 2}])
    with RushWorker(rush.network_id, rush._config.url) as worker:
        task = worker.pop_task(0)
        assert task is not None
        assert task.key == good
        assert rush.is_failed_task(bad)
        assert worker.pop_task(0) is None
        worker.finish_tasks(good, {"y": 4})
    rush.start_local_workers(fun=lambda x: {"y": x}, n_workers=1)
    [again] = rush.push_tasks([{"x": BreaksOnArrival()}])
    assert rush.wait_for_tasks(again, timeout=DEADLINE_S)
    assert rush.n_failed_tasks == 2
    assert rush.n_lost_workers == 0
    for row in rush.fetch_failed_tasks():
        assert isinstance(row.condition, PayloadError)
        assert "cannot be unpickled in the worker" in str(row.condition)


def test_values_that_cannot_be_read_here(rush: Rush) -> None:
    """Are missing in their row, which says why; the other rows are whole, and so is what else is in this one."""
    keys = rush.push_finished_tasks(
        [{"x": 1}, {"x": 2}, {"x": BreaksOnArrival()}],
        [{"y": 1}, {"y": BreaksOnArrival()}, {"y": 3}],
        extra=[{"e": 1}, {"e": 2}, {"e": 3}],
    )
    table = rush.fetch_finished_tasks()
    assert table.keys == keys
    assert [table["x"], table["y"], table["e"]] == [[1, 2, None], [1, None, 3], [1, 2, 3]]
    assert [type(condition) for condition in table["condition"]] == [type(None), PayloadError, PayloadError]
    assert f"ys of task {keys[1]} cannot be unpickled" in str(table["condition"][1])


def draw(x: int, folder: Path) -> dict[str, list[float]]:
    """Some numbers; of every tenth task the first worker is killed when it has drawn half of them."""
    import numpy as np

    numbers = [random.random(), np.random.random()]  # noqa: NPY002 - the one that is seeded
    mark = folder / str(x)
    if x % 10 == 0 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"y": [*numbers, random.gauss(0, 1), np.random.normal()]}  # noqa: NPY002


@pytest.mark.parametrize("n_workers", [1, 2, 4])
def test_seeds(rush: Rush, n_workers: int, tmp_path: Path) -> None:
    """The same numbers for a seed, whoever runs what, in whatever order, at the first attempt or at the second."""
    xss = [{"x": x} for x in range(20)]
    for x in range(20):
        (tmp_path / str(x)).touch()
    with RushWorker(rush.network_id, rush._config.url) as worker:
        by_hand = rush.push_tasks(xss, seeds=123)
        while (task := worker.pop_task(0)) is not None:
            with with_rng_state(task.seed):
                worker.finish_tasks(task.key, draw(**task.xs, folder=tmp_path))
    expected = rush.fetch_tasks(by_hand)["y"]
    assert len({tuple(numbers) for numbers in expected}) == 20
    for x in range(0, 20, 10):
        (tmp_path / str(x)).unlink()
    ids = rush.start_local_workers(fun=draw, constants={"folder": tmp_path}, n_workers=n_workers)
    keys = rush.push_priority_tasks(xss, list(range(20)), seeds=123, max_retries=1)
    for _ in range(2):
        # Each kill takes a worker, and nobody but us starts another.
        wait_until(lambda: rush.n_lost_workers or rush.n_finished_tasks == 40)
        rush.detect_lost_workers(restart_workers=True)
    assert rush.wait_for_tasks(keys, timeout=DEADLINE_S)
    assert rush.fetch_tasks(keys)["y"] == expected
    # Others were claimed along with one that killed its worker, and not started.
    assert all(row.attempts > 1 for row in rush.fetch_tasks(keys[::10]))
    assert set(rush.fetch_tasks(keys)["worker_id"]) <= set(ids)


def tell(x: int) -> dict[str, int]:
    logging.getLogger("mylib").info("x is %d", x)
    print("printed", x)
    return {"y": x}


def test_logs(rush: Rush, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """What workers log and print is kept, with the task; it can be read, printed and followed."""
    rush.start_local_workers(fun=tell, n_workers=1, log_levels={"mylib": "INFO"}, output_dir=tmp_path)
    [key] = rush.push_tasks([{"x": 7}])
    rush.wait_for_tasks(key, timeout=DEADLINE_S)
    wait_until(lambda: len(rush.read_log()) >= 2)
    found = {(record.logger, record.stream, record.message, record.task) for record in rush.read_log()}
    assert ("mylib", "log", "x is 7", key) in found
    assert ("rush_executor.worker.stdout", "stdout", "printed 7", key) in found
    assert rush.read_log(levels="ERROR") == rush.read_log(time_difference=0.0) == []
    with caplog.at_level("INFO", "mylib"):
        assert rush.print_log(streams=["log"]) == 1
        assert rush.print_log(streams=["log"]) == 0
    assert "x is 7" in caplog.text
    follow = rush.follow_log(timeout=DEADLINE_S, streams=["log"])
    [key] = rush.push_tasks([{"x": 8}])
    assert next(follow).message == "x is 8"
    follow.close()
    # It logs before it prints.
    rush.wait_for_tasks(key, timeout=DEADLINE_S)
    [file] = tmp_path.glob("*.out")
    assert file.read_text().splitlines() == ["printed 7", "printed 8"]


def test_a_loop_that_fails(rush: Rush) -> None:
    """Its traceback is in the log, with whose it is, and the worker is lost; its record says why."""

    def loop(worker: RushWorker) -> None:
        raise ValueError("nothing works")

    [worker] = rush.start_local_workers(loop, n_workers=1)
    wait_until(lambda: rush.lost_worker_ids == [worker])
    text = "\n".join(record.message for record in rush.read_log())
    assert "ValueError: nothing works" in text
    assert "run_rush_worker" not in text
    assert text.startswith(f"worker {worker} has ended, its loop has failed\nTraceback")
    [record] = rush.worker_info
    assert record.reason == "exited with code 1: ValueError: nothing works"


def test_workers_that_do_not_come(rush: Rush) -> None:
    """A timeout of 0 looks once; the error says how many are missing."""
    for options, text in (
        ({"n": 1}, "1 more worker has not joined"),
        ({"n": 2}, "2 more workers have not joined"),
        ({"worker_ids": ["w"]}, "1 worker has not joined"),
        ({"worker_ids": ["v", "w"]}, "2 workers have not joined"),
    ):
        with pytest.raises(TimeoutError, match=f"^{text} network"):
            rush.wait_for_workers(timeout=0, **options)


@pytest.mark.parametrize("start", [Rush.start_local_workers, Rush.set_worker_loop])
def test_a_loop_that_cannot_be_called(rush: Rush, start: Callable[..., Any]) -> None:
    """Is refused here, before there is a worker; what does not tell what it takes, or takes anything, is not."""

    def loop(worker: RushWorker, n: int) -> None:
        """Never called."""

    @functools.wraps(loop)
    def given(worker: RushWorker) -> None:
        loop(worker, 3)

    for arguments in ({"fun": add, "n": 1}, {}, {"n": 1, "constants": {}}, {"m": 1}):
        with pytest.raises(TypeError, match=r"worker_loop cannot be called as .*loop\(worker"):
            start(rush, loop, **arguments)
    assert rush.n_workers == 0
    rush.set_worker_loop(loop, n=1)
    rush.set_worker_loop(given)
    rush.set_worker_loop(worker_loop_process, fun=add, constants={"x2": 1})
    rush.set_worker_loop(lambda *args, **kwargs: None, fun=add)
    rush.set_worker_loop(print, sep=" ")


def test_another_seed(rush: Rush) -> None:
    """A task that is retried with the next seed draws other numbers, whatever the size of its inputs."""

    def draw(data: bytes) -> dict[str, float]:
        raise ValueError(random.random())

    rush.start_local_workers(fun=draw, n_workers=1)
    keys = rush.push_tasks([{"data": b"x" * n} for n in (1, 1_000_000)], seeds=[1, 2])
    seen: list[list[float]] = []
    for _ in range(3):
        assert rush.wait_for_tasks(keys, timeout=DEADLINE_S)
        seen.append([error.args[0] for error in rush.fetch_tasks(keys)["condition"]])
        again = rush.retry_tasks(keys, ignore_max_retries=True, next_seed=len(seen) == 2)
        assert again == keys
    assert seen[0] == seen[1]
    assert all(old != new for old, new in zip(seen[1], seen[2], strict=True))


# What needs the server, of a `Rush`.
ASKING: dict[str, Callable[[Rush], Any]] = {
    "push": lambda rush: rush.push_tasks([{"x": 1}]),
    "push many": lambda rush: rush.push_tasks([{"x": x} for x in range(1000)]),
    "priority": lambda rush: rush.push_priority_tasks([{"x": 1}], 5),
    "finished": lambda rush: rush.push_finished_tasks([{"x": 1}], [{"y": 1}]),
    "retry": lambda rush: rush.retry_tasks("key"),
    "empty": lambda rush: rush.empty_queue(),
    "count": lambda rush: rush.n_tasks,
    "fetch": lambda rush: rush.fetch_finished_tasks(),
    "new": lambda rush: rush.fetch_new_tasks(timeout=60),
    "iterate": lambda rush: next(rush.iter_new_tasks()),
    "wait": lambda rush: rush.wait_for_tasks(["key"]),
    "workers": lambda rush: rush.worker_info,
    "start": lambda rush: rush.start_local_workers(fun=add, n_workers=1),
    "wait for workers": lambda rush: rush.wait_for_workers(1),
    "stop": lambda rush: rush.stop_workers(),
    "lost": lambda rush: rush.detect_lost_workers(),
    "log": lambda rush: rush.read_log(["worker"]),
    "print": lambda rush: rush.print_log(),
    "follow": lambda rush: next(rush.follow_log()),
    "info": lambda rush: rush.redis_info,
    "reset": lambda rush: rush.reset(),
    "reset_data": lambda rush: rush.reset_data(),
    "snapshot": lambda rush: rush.snapshot("closed.rush"),
    "schedule": lambda rush: rush.snapshot_schedule,
}


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_rush_that_was_closed(url: str, is_shared: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Says so at once, whatever it is asked, and writes nothing; what needs no server goes on."""
    monkeypatch.chdir(tmp_path)
    rush = Rush("closed", url if is_shared else None)
    rush.push_tasks([{"x": 1}])
    rush.close()
    rush.close()
    threads, start = set(threading.enumerate()), time.monotonic()
    for name, ask in ASKING.items():
        with pytest.raises(RuntimeError, match="this Rush is closed, and nothing can be asked of network 'closed'"):
            print(name, ask(rush))
    assert time.monotonic() - start < 10
    assert set(threading.enumerate()) <= threads
    assert not list(tmp_path.iterdir())
    assert rush.network_id in repr(rush)
    if is_shared:
        with Rush("closed", url) as other:
            assert (other.n_tasks, other.n_workers) == (1, 0)
            other.reset()


@pytest.mark.parametrize("is_shared", [False, True])
def test_what_is_under_way_when_a_rush_is_closed(url: str, is_shared: bool) -> None:
    """Ends with the same error, and does not wait for a server that will not come back."""
    rush = Rush("closed", url if is_shared else None)
    [key] = rush.push_tasks([{"x": 1}])
    rush.push_finished_tasks([{"x": 1}], [{"y": 1}])
    begun = rush.iter_new_tasks()
    assert next(begun).ys == {"y": 1}
    waits: list[Callable[[], Any]] = [
        lambda: next(rush.iter_new_tasks()),
        lambda: rush.wait_for_tasks([key], detect_lost_workers=False),
        lambda: rush.wait_for_workers(1),
        lambda: next(rush.follow_log()),
        lambda: next(begun),
    ]
    with ThreadPoolExecutor(len(waits)) as threads:
        futures = [threads.submit(wait) for wait in waits]
        wait_until(lambda: all(future.running() for future in futures))
        rush.close()
        for future in futures:
            with pytest.raises(RuntimeError, match="this Rush is closed"):
                future.result(DEADLINE_S)
    if is_shared:
        with Rush("closed", url) as other:
            other.reset()


def test_a_child_that_was_forked_beside_it(url: str) -> None:
    """It ends as it likes: workers and connections of a Rush are the parent's."""
    with Rush("forked", url) as rush:
        rush.start_local_workers(fun=add, n_workers=1)
        rush.wait_for_workers(1, timeout=DEADLINE_S)
        child = os.fork()
        if not child:
            try:
                rush.close()
            finally:
                os._exit(0)
        assert os.waitpid(child, 0) == (child, 0)
        keys = rush.push_tasks([{"x1": 1, "x2": 2}] * 3)
        assert rush.wait_for_tasks(keys, timeout=DEADLINE_S)
        assert {worker.state for worker in rush.worker_info} <= {"idle", "running"}


def test_a_private_server() -> None:
    """Without a url there is one, as long as the object."""
    with warnings.catch_warnings(), Rush() as rush:
        rush.start_local_workers(fun=add, n_workers=1)
        keys = rush.push_tasks([{"x1": 1, "x2": 2}])
        assert rush.wait_for_tasks(keys, timeout=DEADLINE_S)
        assert "redis_version" in rush.redis_info
