"""A server that says "not now", stands still, or closes connections: waited out, or one clear error in time."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from rush_executor import (
    NetworkLostError,
    Rush,
    RushExecutor,
    RushWorker,
    ServerError,
    TaskKilledError,
    TaskTimeoutError,
)
from rush_executor._crew import crew as crew_module
from rush_executor._ledger import connection as connection_module
from rush_executor.testing import keys_left
from tests.acceptance import tasks
from tests.acceptance.programs import (
    DEADLINE_S,
    alive,
    guarded,
    is_server,
    read_line,
    start_program,
    whole_family,
)
from tests.chaos.parties import Agent, Server

Eventually = Callable[..., Any]

# How often an agent gives a sign of life here, and how long without one it is taken for dead.
PERIOD_S, EXPIRE_S = 0.5, 1.5
# So often the server has refused something when a fault counts as felt by everybody.
FELT = 8


def note(path: str, number: int, seconds: float = 0.0) -> int:
    """Leaves a line for each start."""
    with Path(path).open("a") as file:
        file.write(f"{number}\n")
    time.sleep(seconds)
    return number * number


def starts(path: Path) -> Counter[int]:
    return Counter(map(int, path.read_text().split())) if path.exists() else Counter()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that the test may maltreat. It would save snapshots, but only when it is told to."""
    with Server({"save": "36000 1000000000"}) as server:
        yield server


# -------------------------------------------------------------------------------------------------------- the faults


def n_errors(server: Server, *names: str) -> int:
    stats = server.ask("INFO", "errorstats")
    return sum(int(stats.get(f"errorstat_{name}", {"count": 0})["count"]) for name in names)


@contextlib.contextmanager
def full(server: Server) -> Iterator[Callable[[], bool]]:
    """OOM."""
    server.ask("CONFIG", "SET", "maxmemory", "1mb")
    yield lambda: n_errors(server, "OOM") >= FELT
    server.ask("CONFIG", "SET", "maxmemory", "0")


@contextlib.contextmanager
def disk_full(server: Server) -> Iterator[Callable[[], bool]]:
    """MISCONF: a snapshot could not be written, here because its name is taken by a directory."""
    in_the_way = Path(server.directory) / "dump.rdb"
    in_the_way.unlink(missing_ok=True)
    (in_the_way / "x").mkdir(parents=True)
    save(server, "err")
    yield lambda: n_errors(server, "MISCONF") >= FELT
    (in_the_way / "x").rmdir()
    in_the_way.rmdir()
    save(server, "ok")


def save(server: Server, expected: str) -> None:
    end_at = time.monotonic() + DEADLINE_S
    while time.monotonic() < end_at:
        with contextlib.suppress(redis.ResponseError):
            server.ask("BGSAVE")
        state = server.ask("INFO", "persistence")
        if not state["rdb_bgsave_in_progress"] and state["rdb_last_bgsave_status"] == expected:
            return
        time.sleep(0.01)
    raise AssertionError(f"no snapshot with the outcome {expected!r}")


@contextlib.contextmanager
def replica(server: Server, *, stale: str) -> Iterator[Callable[[], bool]]:
    """READONLY or MASTERDOWN: another server is the primary for a while, and nobody reaches it."""
    server.ask("CONFIG", "SET", "replica-serve-stale-data", stale)
    server.ask("REPLICAOF", "127.0.0.1", "1")
    yield lambda: n_errors(server, "READONLY", "MASTERDOWN") >= FELT
    server.ask("REPLICAOF", "NO", "ONE")


def read_only(server: Server) -> contextlib.AbstractContextManager[Callable[[], bool]]:
    """READONLY."""
    return replica(server, stale="yes")


def primary_down(server: Server) -> contextlib.AbstractContextManager[Callable[[], bool]]:
    """MASTERDOWN."""
    return replica(server, stale="no")


@contextlib.contextmanager
def crowded(server: Server) -> Iterator[Callable[[], bool]]:
    """Maxclients: everybody is cut off, and there is room for one."""
    with redis.Redis.from_url(server.url, single_connection_client=True) as control:
        limit = control.config_get("maxclients")["maxclients"]
        control.config_set("maxclients", 1)
        for kind in ("normal", "pubsub"):
            control.client_kill_filter(_type=kind, skipme=True)
        yield lambda: control.info("stats")["rejected_connections"] >= FELT
        control.config_set("maxclients", limit)


@contextlib.contextmanager
def forgetful(server: Server) -> Iterator[Callable[[], bool]]:
    """SCRIPT FLUSH, again and again."""
    n_flushes = 0

    def flush() -> bool:
        nonlocal n_flushes
        server.ask("SCRIPT", "FLUSH")
        n_flushes += 1
        return n_flushes > 50

    yield flush


@contextlib.contextmanager
def silent(server: Server) -> Iterator[Callable[[], bool]]:
    """Notifications are switched off, and subscribers cut off."""
    server.ask("CONFIG", "SET", "notify-keyspace-events", "")
    server.ask("CLIENT", "KILL", "TYPE", "pubsub")
    yield lambda: True
    server.ask("CONFIG", "SET", "notify-keyspace-events", "Kx")


@contextlib.contextmanager
def stalled(server: Server) -> Iterator[Callable[[], bool]]:
    """It stands still."""
    server.stall()
    try:
        yield lambda: True
    finally:
        server.go_on()


FAULTS = (full, disk_full, read_only, primary_down, crowded, forgetful, silent, stalled)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_it_is_waited_out(
    server: Server,
    tmp_path: Path,
    eventually: Eventually,
    caplog: pytest.LogCaptureFixture,
    fault: Callable[[Server], contextlib.AbstractContextManager[Callable[[], bool]]],
) -> None:
    """By clients, agents and workers: every task runs once, and every Future has its result.

    Two clients, one of them without workers; the workers of the other one, and those of an agent of its own.
    """
    path = tmp_path / "starts"
    beats = {"heartbeat_period": PERIOD_S, "heartbeat_expire": EXPIRE_S}
    options = ["--heartbeat-period", str(PERIOD_S), "--heartbeat-expire", str(EXPIRE_S)]
    futures: list[Future[int]] = []

    def submit(n: int, seconds: float) -> None:
        for _ in range(n):
            executor = (one, other)[len(futures) % 2]
            futures.append(executor.submit(note, str(path), len(futures), seconds))

    with (
        RushExecutor(1, url=server.url, network_id="n", **beats) as one,
        RushExecutor(0, url=server.url, network_id="n", **beats) as other,
        Agent(server.url, "n", 1, options),
    ):
        submit(100, 0.01)
        eventually(lambda: sum(future.done() for future in futures) > 20)
        with ThreadPoolExecutor(1) as meanwhile:
            began_at = time.monotonic()
            with fault(server) as is_felt:
                # Not from this thread: a lone task is sent by whoever submits it, who may wait for the server.
                submitting = meanwhile.submit(submit, 100, 0.0)
                # For longer than all heartbeats last.
                eventually(lambda: is_felt() and time.monotonic() - began_at > 1.5 * EXPIRE_S)
            submitting.result(DEADLINE_S)
        submit(100, 0.0)
        wait(futures, timeout=DEADLINE_S)
        assert [future.result(0) for future in futures] == [number * number for number in range(len(futures))]
        assert starts(path) == Counter(range(len(futures)))
        endless = other.submit(time.sleep, 600)
        eventually(endless.running)
        assert endless.kill()
        assert isinstance(endless.exception(DEADLINE_S), TaskKilledError)
    assert keys_left(server.url) == []
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize(
    "fault", [full, disk_full, read_only, primary_down, crowded, stalled], ids=lambda fault: fault.__name__
)
def test_it_does_not_end(
    server: Server,
    eventually: Eventually,
    fault: Callable[[Server], contextlib.AbstractContextManager[Callable[[], bool]]],
) -> None:
    """After `reconnect_timeout` there is one clear error for all that is pending, running or not, and nobody hangs."""
    with RushExecutor(1, url=server.url, reconnect_timeout=2) as executor:
        futures = [executor.submit(time.sleep, 600) for _ in range(3)]
        eventually(futures[0].running)
        with fault(server):
            for future in futures:
                with pytest.raises(NetworkLostError, match=r"2 s \(reconnect_timeout\)|\(reconnect_timeout is 2 s\)"):
                    future.result(DEADLINE_S)
            with pytest.raises(NetworkLostError):
                executor.submit(pow, 2, 2)
            executor.shutdown()


@pytest.fixture
def kill_private_server() -> Iterator[Callable[[], None]]:
    """Kills the server that the test has started by the way; at the end neither processes nor a directory are left."""
    me = psutil.Process()
    before = set(me.children(recursive=True))
    started: list[psutil.Process] = []
    directories: list[Path] = []

    def kill() -> None:
        started.extend(set(me.children(recursive=True)) - before)
        [server] = filter(is_server, started)
        directories.append(Path(server.cwd()))
        server.kill()

    yield kill
    assert not any(directory.exists() for directory in directories)
    assert alive(started) == []


def test_a_private_server_that_is_killed_is_not_waited_for(kill_private_server: Callable[[], None]) -> None:
    """Nobody would ever start it again: the error comes at once, and says how it ended."""
    with RushExecutor(1, reconnect_timeout=100 * DEADLINE_S) as executor:
        executor.submit(pow, 2, 2).result(DEADLINE_S)
        pending = [executor.submit(time.sleep, 600) for _ in range(3)]
        kill_private_server()
        for future in pending:
            failure = future.exception(DEADLINE_S)
            assert isinstance(failure, NetworkLostError)
            assert_says_how_it_ended(failure)
        with pytest.raises(NetworkLostError, match="has ended"):
            executor.submit(pow, 2, 2)
        with executor.network as rush, pytest.raises(NetworkLostError) as error_info:
            rush.push_tasks([{"x": 1}])
        assert_says_how_it_ended(error_info.value)


def assert_says_how_it_ended(failure: BaseException | None) -> None:
    assert isinstance(failure, NetworkLostError)
    text = str(failure)
    assert "has ended, with exit code -9 (killed by SIGKILL: out of memory?)" in text
    assert "url=" in text
    # What it says at each start explains nothing.
    assert "log" not in text


def wait_for_the_end(worker: RushWorker, started: str) -> None:
    Path(started).touch()
    time.sleep(600)


def test_the_same_of_a_rush(kill_private_server: Callable[[], None], tmp_path: Path, eventually: Eventually) -> None:
    """Also when it is closed: nobody takes any more what a worker is at."""
    started = tmp_path / "started"
    with Rush(reconnect_timeout=100 * DEADLINE_S) as rush:
        rush.start_workers(wait_for_the_end, n_workers=1, started=str(started))
        rush.push_tasks([{"x": 1}])
        eventually(started.exists)
        kill_private_server()
        with pytest.raises(NetworkLostError) as error_info:
            rush.push_tasks([{"x": 2}])
        assert_says_how_it_ended(error_info.value)


def test_what_runs_for_a_network_that_is_lost_is_in_nobodys_way(tmp_path: Path, eventually: Eventually) -> None:
    """The server comes back empty: the only worker is at a task that was submitted again, and will not finish."""
    told, gate = tmp_path / "told", tmp_path / "gate"
    with Server() as server, RushExecutor(1, url=server.url) as executor:
        future = executor.submit(tasks.tell_and_wait_for, str(told), str(gate), "done")
        eventually(told.exists)
        told.unlink()
        server.kill()
        server.start_again()
        eventually(told.exists)
        gate.touch()
        assert future.result(DEADLINE_S) == "done"
        assert executor.submit(pow, 2, 2).result(DEADLINE_S) == 4


def wait_and_leave_a_trace(told: str, gate: str, trace: str) -> None:
    Path(told).touch()
    while not Path(gate).exists():
        time.sleep(0.01)
    Path(trace).touch()


def test_what_runs_for_nobody_finishes(server: Server, tmp_path: Path, eventually: Eventually) -> None:
    """Another client creates a network in the place of one that all have left: what a worker is at is not ended."""
    told, gate, trace = tmp_path / "told", tmp_path / "gate", tmp_path / "trace"
    with Agent(server.url, "n", 2):
        with RushExecutor(0, url=server.url, network_id="n") as executor:
            executor.submit(wait_and_leave_a_trace, str(told), str(gate), str(trace))
            eventually(told.exists)
            executor.kill_workers()
        with RushExecutor(0, url=server.url, network_id="n") as executor:
            assert executor.submit(pow, 2, 2).result(DEADLINE_S) == 4, "the agent has seen the new network"
            gate.touch()
            eventually(trace.exists)


# ------------------------------------------------------------------------------------ an agent that stands still


def stop_the_agent() -> psutil.Process:
    """SIGSTOP, for that of the only executor."""
    [agent] = [child for child in psutil.Process().children() if "rush-agent" in child.cmdline()]
    agent.suspend()
    return agent


def test_an_own_agent_that_stands_still_is_replaced(
    server: Server, tmp_path: Path, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    """Its process is there, so nobody else would do it: what its worker held is run by a worker of the next one."""
    told, gate = tmp_path / "told", tmp_path / "gate"
    with RushExecutor(1, url=server.url, heartbeat_period=PERIOD_S, heartbeat_expire=EXPIRE_S) as executor:
        future = executor.submit(tasks.tell_and_wait_for, str(told), str(gate), "done")
        eventually(told.exists)
        told.unlink()
        first = stop_the_agent()
        eventually(told.exists)
        assert not first.is_running()
        gate.touch()
        assert future.result(DEADLINE_S) == "done"
    assert "stands still" in caplog.text


def test_an_agent_that_stands_still_is_not_waited_for_at_the_end(
    server: Server, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by one who shuts down in peace, whose workers may be at the tasks of others, nor by one who ends them."""
    monkeypatch.setattr(crew_module, "_END_S", 0.5)
    beats = {"heartbeat_period": PERIOD_S, "heartbeat_expire": EXPIRE_S}
    with RushExecutor(1, url=server.url, **beats) as executor:
        executor.submit(pow, 2, 2).result(DEADLINE_S)
        first = stop_the_agent()
    eventually(lambda: not alive([first]))
    with RushExecutor(1, url=server.url, **beats) as executor:
        executor.submit(pow, 2, 2).result(DEADLINE_S)
        second = stop_the_agent()
        executor.kill_workers()
    eventually(lambda: not alive([second]))


# ------------------------------------------------------------------------------------- a server that refuses for good


def test_credentials_that_hold_no_more(server: Server) -> None:
    """Whoever asks for a task's state, or wants its end, is not bothered with that: the Futures tell."""
    server.ask("CONFIG", "SET", "requirepass", "before")
    url = server.url.replace("unix://", "unix://:before@")
    with RushExecutor(1, url=url, reconnect_timeout=100 * DEADLINE_S) as executor:
        running, queued = (executor.submit(time.sleep, 600) for _ in range(2))
        with redis.Redis.from_url(url) as control:
            control.config_set("requirepass", "after")
            control.client_kill_filter(_type="normal", skipme=True)
        assert not queued.cancel()
        assert not running.running()
        assert not running.kill()
        executor.shutdown(wait=False, cancel_futures=True)
        for future in (running, queued):
            with pytest.raises(NetworkLostError, match="refuses the credentials"):
                future.result(DEADLINE_S)


def note_pid_and_sleep(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)


def test_while_it_is_full(server: Server, tmp_path: Path, eventually: Eventually) -> None:
    """For longer than heartbeats last, as they cannot be set: a long task is left alone, a time limit is kept."""
    path, pid_file = tmp_path / "starts", tmp_path / "pid"
    beats = {"heartbeat_period": PERIOD_S, "heartbeat_expire": EXPIRE_S}
    with (
        RushExecutor(2, url=server.url, network_id="n", **beats) as executor,
        RushExecutor(0, url=server.url, network_id="n", **beats),
    ):
        once = executor.options(max_retries=0)
        long = once.submit(note, str(path), 7, EXPIRE_S + 4)
        stuck = executor.options(timeout=4).submit(note_pid_and_sleep, str(pid_file))
        eventually(lambda: path.exists() and pid_file.exists() and pid_file.read_text())
        worker = psutil.Process(int(pid_file.read_text()))
        with full(server) as is_felt:
            began_at = time.monotonic()
            # Its agent reaps it; when the ledger is told is another matter.
            eventually(lambda: not worker.is_running())
            # Until two looks have missed the heartbeats, and longer.
            eventually(lambda: is_felt() and time.monotonic() - began_at > EXPIRE_S + 2.5)
        assert long.result(DEADLINE_S) == 49
        assert isinstance(stuck.exception(DEADLINE_S), TaskTimeoutError)
        assert starts(path) == Counter([7])


@contextlib.contextmanager
def agents_feel(server: Server) -> Iterator[None]:
    """The server stands still, for so long already that every agent has asked it for something."""
    with stalled(server):
        time.sleep(2 * PERIOD_S)
        yield


def test_a_time_limit_while_it_stands_still(server: Server, tmp_path: Path, eventually: Eventually) -> None:
    """The agent ends the task in time, though it waits for an answer of the server; the Future is told later."""
    pid_file = tmp_path / "pid"
    with RushExecutor(1, url=server.url, heartbeat_period=PERIOD_S, heartbeat_expire=EXPIRE_S) as executor:
        stuck = executor.options(timeout=3).submit(note_pid_and_sleep, str(pid_file))
        eventually(lambda: pid_file.exists() and pid_file.read_text())
        began_at = time.monotonic()
        worker = psutil.Process(int(pid_file.read_text()))
        with agents_feel(server):
            eventually(lambda: not alive([worker]))
            assert time.monotonic() - began_at < 3 + 2
        assert isinstance(stuck.exception(DEADLINE_S), TaskTimeoutError)


def test_a_program_that_dies_while_it_stands_still(server: Server, tmp_path: Path, eventually: Eventually) -> None:
    """Its workers and its agent do not wait for the server: they end within two seconds."""
    program = start_program(
        f"""
        import sys, time
        from rush_executor import RushExecutor

        with RushExecutor(1, url=sys.argv[1], heartbeat_period={PERIOD_S}, heartbeat_expire={EXPIRE_S}) as executor:
            future = executor.submit(time.sleep, 600)
            while not future.running():
                pass
            print("runs", flush=True)
            future.result()
        """,
        server.url,
        directory=tmp_path,
    )
    read_line(program, "runs")
    processes = whole_family(program.pid, 2)
    with guarded(processes), agents_feel(server):
        program.kill()
        # And as many for a busy machine.
        eventually(lambda: not alive(processes), deadline_s=2 + 2)
    program.communicate()
    server.ask("FLUSHALL")


def test_an_agent_that_is_told_twice_while_it_stands_still(server: Server, eventually: Eventually) -> None:
    """`rush-executor worker`: the second signal means now, for its workers and for itself."""
    options = ["--heartbeat-period", str(PERIOD_S), "--heartbeat-expire", str(EXPIRE_S)]
    with (
        RushExecutor(0, url=server.url, network_id="n") as executor,
        Agent(server.url, "n", 1, options) as agent,
    ):
        future = executor.submit(time.sleep, 600)
        eventually(future.running)
        processes = [agent._process, *map(psutil.Process, agent.worker_pids())]
        with agents_feel(server):
            for signum in (signal.SIGTERM, signal.SIGINT):
                agent._process.send_signal(signum)
            # It tries for a second to say so.
            eventually(lambda: not alive(processes), deadline_s=1 + 3)
        # Until the agent is taken for dead the task counts as running.
        executor.kill_workers()


def test_questions_to_one_that_stands_still(
    server: Server, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait as long as anybody does, and then say False; nothing is raised but by what waits for a result."""
    for name in ("IDLE_BLOCK_S", "REPLY_TIMEOUT_S"):
        monkeypatch.setattr(connection_module, name, 1.0)
    with RushExecutor(1, url=server.url, reconnect_timeout=3) as executor:
        running, queued = (executor.submit(time.sleep, 600) for _ in range(2))
        eventually(running.running)
        assert not queued.running(), "all that was sent has arrived"
        with stalled(server):
            for question in (queued.cancel, running.running, running.kill):
                assert question() is False
            executor.shutdown(wait=False, cancel_futures=True)
            executor.kill_workers()
            for future in (running, queued):
                with pytest.raises(NetworkLostError):
                    future.result(DEADLINE_S)
    server.ask("FLUSHALL")


def test_idle_connections_are_closed(
    server: Server,
    tmp_path: Path,
    eventually: Eventually,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """`timeout 1`: nobody notices, neither workers that wait nor who calls them, kills a task, or misses an agent."""
    server.ask("CONFIG", "SET", "timeout", "1")
    told, gate = tmp_path / "told", tmp_path / "gate"
    # The signs of life are far enough apart for the agents' connections to be closed in between.
    beats = {"heartbeat_period": 3.0, "heartbeat_expire": 6.0}
    options = ["--heartbeat-period", "3", "--heartbeat-expire", "6"]
    with (
        RushExecutor(1, url=server.url, network_id="n", **beats) as executor,
        Agent(server.url, "n", 1, options) as agent,
    ):
        assert executor.submit(pow, 2, 2).result(DEADLINE_S) == 4
        be_idle(server, eventually)
        assert executor.submit(pow, 2, 3).result(DEADLINE_S) == 8
        endless = executor.submit(time.sleep, 600)
        eventually(endless.running)
        be_idle(server, eventually)
        assert endless.kill()
        assert isinstance(endless.exception(DEADLINE_S), TaskKilledError)
        tasks_of_both = [
            executor.submit(tasks.tell_and_wait_for, f"{told}-{n}", str(gate), os.getpid()) for n in range(2)
        ]
        eventually(lambda: all(Path(f"{told}-{n}").exists() for n in range(2)))
        be_idle(server, eventually)
        agent.kill()
        gate.touch()
        assert [future.result(DEADLINE_S) for future in tasks_of_both] == [os.getpid()] * 2
    assert keys_left(server.url) == []
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert capfd.readouterr().err == ""


def be_idle(server: Server, eventually: Eventually) -> None:
    """Waits until the server has closed a connection that was there before, and some more time."""
    with redis.Redis.from_url(server.url, single_connection_client=True) as control:

        def present() -> set[str]:
            return {client["id"] for client in control.client_list()}

        before = present()
        eventually(lambda: before - present())
    time.sleep(1.5)


def test_no_place_at_the_start(server: Server) -> None:
    """Maxclients: told at once, and that it is this; and it may be tried again."""
    with crowded(server), pytest.raises(ServerError, match="has no place for another connection"):
        RushExecutor(1, url=server.url)
    with RushExecutor(1, url=server.url) as executor:
        assert executor.submit(pow, 2, 2).result(DEADLINE_S) == 4


def test_no_place_for_the_workers(server: Server, eventually: Eventually) -> None:
    """The client has its connections, and its agent and workers come in when there is room."""
    with redis.Redis.from_url(server.url, single_connection_client=True) as control:
        limit = control.config_get("maxclients")["maxclients"]
        with RushExecutor(0, url=server.url, network_id="n") as client:
            futures = [client.submit(pow, 2, n) for n in range(10)]
            # Sender, receiver, and the one for what is seldom.
            eventually(lambda: len(control.client_list()) == 1 + 3)
            control.config_set("maxclients", 1 + 3 + 1)
            with Agent(server.url, "n", 2):
                eventually(lambda: control.info("stats")["rejected_connections"] >= FELT)
                control.config_set("maxclients", limit)
                assert [future.result(DEADLINE_S) for future in futures] == [2**n for n in range(10)]


def test_who_waits_is_told_so(
    tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`rush-executor worker` says that the server is away, that it is back, and why it does not leave; once each.

    Executors say the first two in the log.
    """
    monkeypatch.setattr(connection_module, "_TELL_S", 1.0)
    told, gate = tmp_path / "told", tmp_path / "gate"
    with (
        Server({"appendonly": "yes", "appendfsync": "always"}) as server,
        RushExecutor(0, url=server.url, network_id="n") as executor,
        Agent(server.url, "n", 1) as agent,
    ):
        future = executor.submit(tasks.tell_and_wait_for, str(told), str(gate), "done")
        eventually(told.exists)
        server.kill()
        eventually(lambda: "the server has not answered for" in agent.log)
        eventually(lambda: "the server has not answered for" in caplog.text)
        server.start_again()
        eventually(lambda: "the server answers again" in agent.log)
        agent.leave()
        eventually(lambda: "waiting for 1 worker to finish what runs" in agent.log)
        assert not future.done()
        gate.touch()
        assert future.result(DEADLINE_S) == "done"
        eventually(lambda: not agent.worker_pids())
        assert len(agent.log.splitlines()) == 4, agent.log
    told_here = [record.getMessage() for record in caplog.records if "the server" in record.getMessage()]
    assert [" ".join(text.split()[:4]) for text in told_here] == ["the server has not", "the server answers again,"]


def test_whatever_a_client_waits_at(
    server: Server, eventually: Eventually, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its inbox, or its look for lost agents: that the server stands still is told once each time, and its return."""
    for name, seconds in (("IDLE_BLOCK_S", 0.5), ("REPLY_TIMEOUT_S", 1.0), ("_TELL_S", 1.0)):
        monkeypatch.setattr(connection_module, name, seconds)

    def n_told(text: str) -> int:
        return sum(text in record.getMessage() for record in caplog.records)

    with RushExecutor(0, url=server.url, network_id="n", heartbeat_period=PERIOD_S, heartbeat_expire=EXPIRE_S):
        for n in range(1, 4):
            with stalled(server):
                eventually(lambda n=n: n_told("the server has not answered for") == n)
            eventually(lambda n=n: n_told("the server answers again") == n)
