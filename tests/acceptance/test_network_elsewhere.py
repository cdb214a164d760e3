"""Workers that are started by others than the manager: from a shell, from a script, by a launcher, as a plan says."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest
import redis

from rush_executor import (
    Rush,
    RushExecutor,
    RushWorker,
    remove_rush_plan,
    rush_available,
    rush_config,
    rush_plan,
    start_worker,
)
from rush_executor.testing import temporary_server
from tests.acceptance.tasks import wait_for

DEADLINE_S = 60.0
ROOT = Path(__file__).parents[2]
PASSWORD = "pass'w\"o$rd"  # noqa: S105 - of a server that lives as long as a test


@pytest.fixture
def url() -> Iterator[str]:
    with temporary_server() as url:
        yield url


def wait_until(condition: Callable[[], Any]) -> None:
    end_at = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end_at, "waited in vain"
        time.sleep(0.01)


def add(x1: float, x2: float) -> dict[str, float]:
    return {"y": x1 + x2}


def add_and_tell(x1: float, x2: float) -> dict[str, float]:
    logging.getLogger("mylib").info("adding %s and %s", x1, x2)
    return {"y": x1 + x2}


def run(*command: str, **environment: str) -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RUSH_")}
    return subprocess.Popen(
        command, cwd=ROOT, env={**clean, **environment}, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )


def end(process: subprocess.Popen[str], *, code: int = 0) -> str:
    """Waits for a process; returns what it has printed to stderr."""
    _, text = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == code, text
    return text


def worker_command(url: str, network_id: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "rush_executor", "worker", "--url", url, "--network", network_id, "--workers", "2")


def test_a_worker_waits_for_something_to_do(url: str) -> None:
    """It may come before the network, and before anybody has said what to run; it is told to leave at any time."""
    early = run(*worker_command(url, "late"))
    with Rush("late", url) as rush:
        keys = rush.push_tasks([{"x1": 1, "x2": 2}])
        # Workers wait for their loop now: asked to leave, they do.
        wait_until(lambda: len(psutil.Process(early.pid).children()) == 2)
        early.send_signal(signal.SIGTERM)
        end(early)
        assert rush.n_lost_workers == rush.n_running_workers == 0
        again = run(*worker_command(url, "late"))
        rush.set_worker_loop(fun=add)
        assert rush.wait_for_tasks(keys, timeout=DEADLINE_S, detect_lost_workers=False)
        rush.wait_for_workers(2, timeout=DEADLINE_S)
        assert rush.fetch_finished_tasks()["y"] == [3]
        rush.stop_workers()
        end(again)
        assert rush.n_lost_workers == 0
        rush.reset()


def count_up(worker: RushWorker) -> None:
    """Nobody hands out anything: one more than what all have found so far."""
    while not worker.terminated:
        seen = worker.fetch_finished_tasks()
        [key] = worker.push_running_tasks([{"x": len(seen)}], extra=[{"seen_of": len(set(seen["worker_id"]))}])
        time.sleep(0.02)
        worker.finish_tasks(key, {"y": len(seen) + 1})


def test_nobody_is_in_charge(url: str) -> None:
    """Who has said what to run is gone; workers from a shell join and leave, and see each other's results."""
    with Rush("alone", url) as rush:
        rush.set_worker_loop(count_up)
    first = run(*worker_command(url, "alone"))
    with Rush("alone", url) as other:
        wait_until(lambda: len(set(other.fetch_finished_tasks()["worker_id"])) == 2)
        second = run(*worker_command(url, "alone"))
        wait_until(lambda: len(set(other.fetch_finished_tasks()["worker_id"])) == 4)
        first.send_signal(signal.SIGTERM)
        end(first)
        n_then = other.n_finished_tasks
        wait_until(lambda: other.n_finished_tasks > n_then + 10)
        assert max(other.fetch_finished_tasks()["seen_of"]) == 4
        second.send_signal(signal.SIGTERM)
        end(second)
        states = list(other.worker_states.values())
        assert (other.n_running_tasks, other.n_failed_tasks, states) == (0, 0, ["terminated"] * 4)
        other.reset()


def test_workers_that_are_killed_from_afar(url: str) -> None:
    """Have no successors; a command whose workers have all been stopped, or whose network is reset, ends."""
    with Rush("afar", url) as rush:
        rush.set_worker_loop(fun=add)
        command = run(*worker_command(url, "afar"))
        rush.wait_for_workers(2, timeout=DEADLINE_S)
        one, two = rush.running_worker_ids
        rush.stop_workers("kill", one)
        wait_until(lambda: rush.killed_worker_ids == [one])
        rush.stop_workers(worker_ids=two)
        end(command)
        assert rush.worker_states == {one: "killed", two: "terminated"}
        again = run(*worker_command(url, "afar"))
        rush.wait_for_workers(2, timeout=DEADLINE_S)
        rush.reset()
        end(again)


def test_workers_that_have_nothing_to_run_yet(url: str) -> None:
    """Are starting, and can be stopped."""
    with Rush("yet", url) as rush:
        command = run(*worker_command(url, "yet"))
        keys = rush.push_tasks([{"x1": 1, "x2": 2}])
        wait_until(lambda: list(rush.worker_states.values()) == ["starting"] * 2)
        # Nobody is told that no worker is left: these may begin at any time.
        assert not rush.wait_for_tasks(keys, timeout=0.3)
        rush.stop_workers()
        end(command)
        assert list(rush.worker_states.values()) == ["terminated"] * 2
        rush.reset()


def test_a_script(url: str, tmp_path: Path) -> None:
    """Run by `sh`, with a hostile name and url; what is secret is in the environment and nowhere else."""
    network_id = "it's-`a`-$(network);\"#&|*?-"
    secret = "the secret's `name`"  # noqa: S105
    socket = Path(url.removeprefix("unix://"))
    folder = tmp_path / "it's `a` $(folder); \"&|*\\n"
    folder.symlink_to(socket.parent)
    with Rush(network_id, f"unix://{folder / socket.name}", secret=secret) as rush:
        script = rush.create_worker_script(n_workers=2)
        assert secret not in script
        assert str(folder.name.partition("'")[2]) in script
        rush.set_worker_loop(fun=add, log_levels="DEBUG")
        keys = rush.push_tasks([{"x1": 1, "x2": 2}])
        file = tmp_path / "script"
        file.write_text(script, encoding="utf-8")
        assert "set RUSH_SECRET" in end(run("sh", str(file), RUSH_PYTHON=sys.executable), code=2)
        workers = run("sh", str(file), RUSH_PYTHON=sys.executable, RUSH_SECRET=secret)
        assert rush.wait_for_tasks(keys, timeout=DEADLINE_S, detect_lost_workers=False)
        rush.wait_for_workers(2, timeout=DEADLINE_S)
        family = [psutil.Process(workers.pid), *psutil.Process(workers.pid).children(recursive=True)]
        assert len(family) == 3
        assert not [process for process in family if secret in " ".join(process.cmdline())]
        rush.stop_workers()
        assert secret not in end(workers)
        assert not [record for record in rush.read_log() if secret in str(record)]
        rush.reset()


def test_a_password(url: str, tmp_path: Path) -> None:
    """Is not in the script, nor in the list of processes, nor in what they say; who runs it is told what to set."""
    with redis.Redis.from_url(url) as client:
        client.config_set("requirepass", PASSWORD)
    with_password = url.replace("unix://", f"unix://:{quote(PASSWORD)}@")
    with Rush("guarded", with_password) as rush:
        script = rush.worker_script()
        assert not [word for word in (PASSWORD, quote(PASSWORD)) if word in script + repr(rush)]
        assert "set RUSH_URL to the URL of the server" in end(run("sh", "-c", script), code=2)
        rush.set_worker_loop(fun=add, log_levels="DEBUG")
        keys = rush.push_tasks([{"x1": 1, "x2": 2}])
        workers = run("sh", "-c", script, RUSH_URL=with_password, RUSH_PYTHON=sys.executable)
        assert rush.wait_for_tasks(keys, timeout=DEADLINE_S, detect_lost_workers=False)
        family = [psutil.Process(workers.pid), *psutil.Process(workers.pid).children(recursive=True)]
        told = [" ".join(process.cmdline()) for process in family]
        rush.stop_workers()
        told += [end(workers), *map(str, rush.read_log()), *map(str, rush.worker_info)]
        assert len(told) > 3
        assert not [text for text in told if PASSWORD in text or quote(PASSWORD) in text]
        rush.reset()


def test_launchers(url: str) -> None:
    """A launcher gets a script for each worker; a command reads it."""
    with Rush("launched", url) as rush:
        scripts: list[str] = []
        assert rush.start_workers(fun=add, n_workers=3, launcher=scripts.append) == [None] * 3
        assert len(scripts) == 3
        processes = rush.start_workers(fun=add, n_workers=2, launcher=["sh"])
        keys = rush.push_tasks([{"x1": 1, "x2": 2}])
        assert rush.wait_for_tasks(keys, timeout=DEADLINE_S, detect_lost_workers=False)
        rush.wait_for_workers(2, timeout=DEADLINE_S)
        rush.stop_workers()
        assert [process.wait(DEADLINE_S) for process in processes] == [0, 0]
        rush.reset()


def test_plans(url: str) -> None:
    """A package that knows nothing of the user's machines asks the plan."""
    assert not rush_available()
    assert rush_config() is None
    with rush_plan(3, url) as plan, rush_plan(1, url, log_levels={"mylib": "INFO"}, start_worker_timeout=0):
        assert rush_available()
        assert plan.n_workers == 3
        assert rush_config().n_workers == 1  # type: ignore[union-attr]
        with Rush("planned") as rush:
            with pytest.raises(TimeoutError, match=r"1 more worker .* within 0 s"):
                rush.wait_for_workers(1)
            [worker] = rush.start_workers(fun=add_and_tell)
            rush.wait_for_workers(timeout=DEADLINE_S)
            assert rush.running_worker_ids == [worker]
            rush.push_tasks([{"x1": 1, "x2": 2}])
            wait_until(lambda: [record.message for record in rush.read_log()] == ["adding 1 and 2"])
            rush.reset()
    assert not rush_available()
    scripts: list[str] = []
    rush_plan(2, url, worker_type="remote", launcher=scripts.append)
    with Rush("planned") as rush:
        assert len(rush.start_workers(fun=add)) == 2
        rush.reset()
    remove_rush_plan()
    assert not rush_available()
    with pytest.raises(ValueError, match="remote workers need a launcher"):
        rush_plan(2, url, worker_type="remote")
    with pytest.raises(ValueError, match="worker_type must be"):
        rush_plan(2, url, worker_type="cloud")  # type: ignore[arg-type]
    assert PASSWORD not in repr(rush_plan(1, f"redis://:{PASSWORD}@host"))
    remove_rush_plan()


START_WORKER = """
import sys
from rush_executor import start_worker
start_worker(sys.argv[1], sys.argv[2], n_workers=1)
print("ended")
"""


def test_start_worker(url: str) -> None:
    """As the command, in one's own program."""
    with Rush("own", url) as rush:
        rush.set_worker_loop(fun=add)
        program = run(sys.executable, "-c", START_WORKER, "own", url)
        rush.wait_for_workers(1, timeout=DEADLINE_S)
        rush.stop_workers()
        out, text = program.communicate(timeout=DEADLINE_S)
        assert (program.returncode, out) == (0, "ended\n"), text
        rush.reset()
    with pytest.raises(ValueError, match="needs network_id and url"):
        start_worker()
    errors: list[BaseException] = []

    def call() -> None:
        try:
            start_worker("own", url)
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])


def test_an_executors_network(tmp_path: Path) -> None:
    """Can be looked at."""
    gate = tmp_path / "gate"
    with RushExecutor(1) as executor, executor.network as rush:
        assert rush.network_id == executor.network_id
        future = executor.submit(wait_for, str(gate))
        wait_until(lambda: rush.n_running_tasks == 1)
        assert rush.fetch_running_tasks().keys == [future.task_id]
        assert [worker.state for worker in rush.worker_info] == ["running"]
        gate.touch()
        future.result()
