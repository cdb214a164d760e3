"""Snapshots: a network in a file, and a network of a file, with real workers on both sides."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from rush_executor import (
    PayloadError,
    Rush,
    RushError,
    RushExecutor,
    RushWorker,
    ServerError,
    SnapshotError,
    WorkerLostError,
)
from rush_executor._ledger.server import EmbeddedServer
from rush_executor.testing import keys_left, temporary_server

DEADLINE_S = 60.0
WORD = "swordfish"


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[str, str]]:
    with temporary_server() as one, temporary_server() as two:
        yield one, two


@pytest.fixture
def rush(servers: tuple[str, str]) -> Iterator[Rush]:
    """Where the snapshot is taken."""
    with Rush("net", servers[0]) as rush:
        yield rush
        rush.reset()


@pytest.fixture
def fresh(servers: tuple[str, str]) -> Iterator[Rush]:
    """Where it is restored."""
    with Rush("net", servers[1]) as fresh:
        yield fresh
        fresh.reset()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.rush"


def wait_until(condition: Callable[[], Any]) -> None:
    end_at = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end_at, "waited in vain"
        time.sleep(0.01)


def slow_square(x: int, pad: bytes = b"") -> dict[str, Any]:
    if x == 13:
        raise ValueError("unlucky")
    time.sleep(0.01)
    return {"y": x * x, "padded": pad + pad}


def table(rush: Rush) -> list[dict[str, Any]]:
    rows = rush.fetch_tasks().to_dicts()
    for row in rows:
        row["condition"] = repr(row["condition"])
    return rows


def test_a_run_in_the_middle(rush: Rush, fresh: Rush, path: Path) -> None:
    """Goes on elsewhere from the file, and comes to the same end; the first one is not disturbed."""
    pad, gate = os.urandom(300_000), path.with_name("gate")

    def square(x: int, pad: bytes) -> dict[str, Any]:
        while x >= 100 and not gate.exists():
            time.sleep(0.01)
        return slow_square(x, pad)

    rush.start_local_workers(fun=square, n_workers=2)
    keys = rush.push_tasks([{"x": x, "pad": pad if x % 10 == 0 else b""} for x in range(200)])
    wait_until(lambda: rush.n_finished_tasks > 40)
    told = rush.snapshot(path)
    gate.touch()
    assert told.n_tasks == 200
    assert told.n_queued > 0
    assert told.n_finished > 40
    assert told.n_queued + told.n_running + told.n_finished + told.n_failed == 200

    again = fresh.restore(path)
    assert (again.n_tasks, again.n_running, again.taken_at) == (200, told.n_running, told.taken_at)
    assert fresh.tasks == keys
    assert fresh.n_queued_tasks == told.n_queued + told.n_running
    assert fresh.n_running_tasks == 0
    assert fresh.n_finished_tasks == told.n_finished
    assert fresh.queued_tasks == sorted(fresh.queued_tasks, key=keys.index), "what was running stands in front"
    fresh.start_local_workers(fun=slow_square, n_workers=2)
    for network in (rush, fresh):
        assert network.wait_for_tasks(keys, timeout=DEADLINE_S)
        done = network.fetch_finished_tasks()
        assert sorted(done["y"]) == [x * x for x in range(200) if x != 13]
        assert sum(len(padded) for padded in done["padded"]) == 20 * 2 * len(pad)
        [failed] = network.fetch_failed_tasks()
        assert (failed.key, str(failed.condition)) == (keys[13], "unlucky")
    before = rush.finished_tasks[: told.n_finished]
    assert fresh.finished_tasks[: told.n_finished] == before
    assert fresh.fetch_tasks(before[:40]).to_dicts() == rush.fetch_tasks(before[:40]).to_dicts()


def test_every_kind_of_task(rush: Rush, fresh: Rush, path: Path) -> None:
    """Is as it was: inputs, results, conditions, times, workers, order."""
    rush.push_finished_tasks(
        [{"x": 1}, {"x": b"a" * 1_000_000}], [{"y": 2}, {"y": b"b" * 1_000_000}], extra=[{"from": "archive"}] * 2
    )
    rush.push_failed_tasks([{"x": 3}], [ValueError("three")])
    with RushWorker("net", rush._config.url, "w1") as worker:
        [own] = rush.push_priority_tasks([{"x": 4}], "w1", max_retries=1, timeouts=5.0)
        queued = rush.push_tasks([{"x": x} for x in range(3)], seeds=7)
        [urgent] = rush.push_priority_tasks([{"x": 9}], 10)
        [done] = worker.push_running_tasks([{"x": 5}])
        worker.finish_tasks(done, {"y": 6}, extra={"note": "n"})
        [running] = worker.push_running_tasks([{"x": 7}])
        popped = worker.pop_task(0)
        assert popped is not None
        assert popped.key == own
        rush.snapshot(path)
        before = {row["key"]: row for row in table(rush)}
        order = rush.tasks
    fresh.restore(path)
    after = {row["key"]: row for row in table(fresh)}
    for key in (own, running):
        before.pop(key)
        after.pop(key)
    assert after == before
    assert fresh.tasks == order
    assert fresh.queued_tasks == [urgent, own, *queued]
    assert fresh.finished_tasks[-1] == done
    [condition] = fresh.fetch_tasks([running])["condition"]
    assert isinstance(condition, WorkerLostError)
    assert condition.worker_id == "w1"
    assert "stayed where the snapshot was taken" in str(condition)
    assert fresh.retry_tasks([running], ignore_max_retries=True) == [running]
    assert fresh.worker_states == {"w1": "terminated"}
    assert fresh.detect_lost_workers() == []


def test_workers_from_a_shell_go_on(rush: Rush, fresh: Rush, path: Path) -> None:
    """What they are to run is in the file, whatever its size; those that wait begin when all is there."""
    weights = os.urandom(400_000)

    def fun(x: int) -> dict[str, int]:
        return {"y": x + len(weights)}

    rush.set_worker_loop(fun=fun)
    keys = rush.push_tasks([{"x": 1}, {"x": 2}])
    rush.snapshot(path)
    command = [sys.executable, "-m", "rush_executor", "worker", "--network", "net", "--workers", "1"]
    command += ["--url", fresh._config.url]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as agent:
        try:
            wait_until(lambda: any("agent" in key for key in keys_left(fresh._config.url)))
            fresh.restore(path)
            assert fresh.wait_for_tasks(keys, timeout=DEADLINE_S, detect_lost_workers=False)
        finally:
            agent.terminate()
    assert sorted(fresh.fetch_finished_tasks()["y"]) == [400_001, 400_002]


def test_sealed_networks(servers: tuple[str, str], path: Path) -> None:
    """Stay sealed: neither the secret nor a value is in the file, and without the secret nothing can be read."""
    with Rush("sealed", servers[0], secret=WORD) as one:
        one.push_tasks([{"x": "in-the-clear"}])
        one.snapshot(path)
        one.reset()
    assert WORD.encode() not in path.read_bytes()
    with Rush("sealed", servers[1], secret=WORD) as two:
        two.restore(path)
        assert two.fetch_tasks()["x"] == ["in-the-clear"]
        with Rush("sealed", servers[1]) as three, pytest.raises(PayloadError, match="is sealed"):
            three.fetch_tasks()
        two.reset()


def test_what_is_refused_changes_nothing(rush: Rush, fresh: Rush, servers: tuple[str, str], path: Path) -> None:
    """Damage, another network's file, and a network that is there."""
    rush.push_finished_tasks([{"x": os.urandom(1000)} for _ in range(3000)], [{"y": 1}] * 3000)
    rush.snapshot(path)
    raw = path.read_bytes()
    assert len(raw) > 3_000_000
    for damaged in (raw[:-100], raw[: len(raw) // 2], raw[:-5] + b"?" + raw[-4:], b"REDIS0009", raw + raw):
        path.write_bytes(damaged)
        with pytest.raises(SnapshotError):
            fresh.restore(path)
        assert keys_left(servers[1]) == []
    path.write_bytes(raw)
    with Rush("other", servers[1]) as other, pytest.raises(SnapshotError, match=r"Rush\('net', \.\.\.\)"):
        other.restore(path)
    assert keys_left(servers[1]) == []
    with pytest.raises(FileNotFoundError):
        fresh.restore(path.with_name("nothing"))
    with pytest.raises(RushError, match="is there already"):
        rush.restore(path)
    assert rush.n_finished_tasks == 3000
    rush.reset()
    rush.restore(path)
    assert rush.n_finished_tasks == 3000


def test_networks_without_snapshots(fresh: Rush, servers: tuple[str, str], path: Path) -> None:
    """One that is not there, and an executor's: the file that was there stays."""
    path.write_text("old")
    with pytest.raises(RushError, match="there is no network 'net'"):
        fresh.snapshot(path)
    with RushExecutor(1, url=servers[1], network_id="net"), pytest.raises(RushError, match="is a RushExecutor's"):
        fresh.snapshot(path)
    assert path.read_text() == "old"
    assert [other.name for other in path.parent.iterdir()] == [path.name]


def test_in_the_same_place(rush: Rush, path: Path) -> None:
    """After a reset, by the same object: what it had read is forgotten, what it does next goes on."""
    keys = rush.push_finished_tasks([{"x": 1}], [{"y": 1}])
    assert len(rush.fetch_new_tasks()) == 1
    rush.snapshot(path)
    rush.reset()
    rush.restore(path)
    assert rush.fetch_new_tasks().keys == keys
    more = rush.push_tasks([{"x": 2}])
    assert rush.tasks == keys + more
    rush.start_local_workers(fun=slow_square, n_workers=1)
    assert rush.wait_for_tasks(more, timeout=DEADLINE_S)


def test_several_threads(rush: Rush, path: Path) -> None:
    """One may go on while another takes snapshots."""
    rush.push_finished_tasks([{"x": 0}] * 5000, [{"y": 0}] * 5000)
    stop = threading.Event()

    def push() -> None:
        while not stop.is_set():
            rush.push_tasks([{"x": 1}])

    thread = threading.Thread(target=push)
    thread.start()
    try:
        sizes = [5000]
        for _ in range(3):
            wait_until(lambda: rush.n_tasks > sizes[-1])
            sizes.append(rush.snapshot(path).n_tasks)
    finally:
        stop.set()
        thread.join()
    assert sizes[0] < sizes[1] < sizes[2] < sizes[3]


def test_killed_while_it_is_written(rush: Rush, path: Path) -> None:
    """The old file stays under its name."""
    rush.push_finished_tasks([{"x": 0}], [{"y": 0}])
    rush.snapshot(path)
    raw = path.read_bytes()
    rush.push_finished_tasks([{"x": 0}] * 20_000, [{"y": 0}] * 20_000)
    # The file does not get its name if this test is slow.
    code = (
        "import os, time; os.fsync = lambda fd: time.sleep(600)\n"
        f"from rush_executor import Rush; print(Rush('net', {rush._config.url!r}).snapshot({str(path)!r}), flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        try:
            wait_until(lambda: len(list(path.parent.iterdir())) == 2)
        finally:
            process.kill()
        assert process.communicate()[0] == b""
    assert path.read_bytes() == raw


PEAK = """
import re, sys
from pathlib import Path
from rush_executor import Rush

def peak_kb():
    # Not ru_maxrss, which begins with that of the parent.
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

network, url, verb, path = sys.argv[1:]
with Rush(network, url) as rush:
    rush.n_tasks
    before = peak_kb()
    getattr(rush, verb)(path)
    print(peak_kb() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory(rush: Rush, fresh: Rush, path: Path) -> None:
    """Of a network of 200 MB, a few are in memory at a time."""
    if shutil.disk_usage(path.parent).free < 1_000_000_000:
        pytest.skip("needs a gigabyte of disk")
    for _ in range(10):
        rush.push_tasks([{"x": os.urandom(10_000)} for _ in range(1000)])
    for _ in range(2):
        rush.push_finished_tasks([{"x": os.urandom(30_000_000)}], [{"y": os.urandom(20_000_000)}])

    def peak_mb(network: Rush, verb: str) -> float:
        command = [sys.executable, "-c", PEAK, network.network_id, network._config.url, verb, str(path)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1e3

    taken, restored = peak_mb(rush, "snapshot"), peak_mb(fresh, "restore")
    assert path.stat().st_size > 200_000_000
    print(f"snapshot {taken:.0f} MB, restore {restored:.0f} MB")
    assert taken < 90
    assert restored < 90
    assert fresh.n_tasks == 10_002
    [row] = fresh.fetch_tasks(fresh.finished_tasks[:1])
    assert (len(row.xs["x"]), len(row.ys["y"])) == (30_000_000, 20_000_000)


def test_the_servers_own_schedule(rush: Rush) -> None:
    """Can be read and set, in the words of the server; nonsense is told before it is sent."""
    assert rush.snapshot_schedule is None
    rush.snapshot_schedule = (60, 1000)
    assert rush.snapshot_schedule == (60, 1000)
    assert redis.Redis.from_url(rush._config.url).config_get("save") == {"save": "60 1000"}
    rush.snapshot_schedule = [(3600, 1), (60, 1000)]
    assert rush.snapshot_schedule == ((3600, 1), (60, 1000))
    for wrong in ((60,), (60, 0), (60, 1000, 1), (-1, 5), 60, "60 1000", (60.5, 3), [(60, 1), (3,)], (), (True, 1)):
        with pytest.raises(ValueError, match="snapshot_schedule must be"):
            rush.snapshot_schedule = wrong  # type: ignore[assignment]
    assert rush.snapshot_schedule == ((3600, 1), (60, 1000))
    rush.snapshot_schedule = None
    assert rush.snapshot_schedule is None


def test_a_server_that_forbids_config(path: Path) -> None:
    """Is told, with the way that works there; and that one works."""
    server = EmbeddedServer.start(config={"rename-command": 'CONFIG ""'})
    try:
        server.wait_ready()
        with warnings.catch_warnings(), Rush("net", server.url) as rush:
            with pytest.raises(ServerError, match=r"forbid CONFIG; Rush.snapshot\(path\)"):
                _ = rush.snapshot_schedule
            with pytest.raises(ServerError, match="forbid CONFIG"):
                rush.snapshot_schedule = (60, 1000)
            rush.push_tasks([{"x": 1}])
            assert rush.snapshot(path).n_queued == 1
    finally:
        server.stop()


def test_a_rush_that_was_pickled(rush: Rush, path: Path) -> None:
    """Takes snapshots as well."""
    rush.push_tasks([{"x": 1}])
    with pickle.loads(pickle.dumps(rush)) as copy:
        assert copy.snapshot(path).n_tasks == 1
