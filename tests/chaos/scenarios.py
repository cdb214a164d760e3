"""The list of scenarios: what is broken, how often, and what may show.

A scenario is a function of a `Trial` and a size; what the size counts is said beside it. `short` is for the run among
the normal tests (None: not part of it), `long` for `make chaos`. Faults come while tasks are under way: a scenario
keeps its executors busy, and goes on when something has happened rather than when some time is over.
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psutil

from rush_executor import RushExecutor
from rush_executor._protocol.keys import Keys
from rush_executor.testing import keys_left
from tests.acceptance.programs import REPOSITORY, environment
from tests.chaos.parties import Agent, Server, is_alive
from tests.chaos.tasks import INNER, POISONS
from tests.chaos.trial import NETWORK, QUICK, STEADY, Trial
from tests.integration.proxy import Proxy

__all__ = ["SCENARIOS", "Scenario"]

_KILL_EVERY_S = 0.3
_GONE_WITHIN_S = 12.0
# Until when what a killed task had submitted may still be started: by who had claimed it before the kill.
_ORPHANS_S = 2.0
_NO_ERRORS: frozenset[str] = frozenset()
_LOST = frozenset({"NetworkLostError"})


@dataclass(frozen=True)
class Scenario:
    """An entry of the list.

    Attributes:
        run: Does it.
        short: Its size among the normal tests; None where it takes too long for them.
        long: Its size in `make chaos`.
        failures: Errors that Futures may have.
    """

    run: Callable[[Trial, int], None]
    short: int | None
    long: int
    failures: frozenset[str] = _NO_ERRORS

    @property
    def name(self) -> str:
        """For the table and the command line."""
        return self.run.__name__.replace("_", "-")

    @property
    def title(self) -> str:
        """What is done, in one line."""
        return (self.run.__doc__ or "").splitlines()[0]


# ------------------------------------------------------------------------------------------------------------- workers


def worker_killed(trial: Trial, n_tasks: int) -> None:
    """A random worker is killed every 0.3 s while tasks of 4 ms run."""
    executor = trial.executor(2)
    calm_s = trial.batch(executor, n_tasks, 0.004)
    with _killer(trial) as kills:
        # More retries than kills can hit: a task that is hit three times would fail, and rightly so.
        stormy_s = trial.batch(executor.options(max_retries=20), n_tasks, 0.004)
    starts = trial.starts()
    delays = []
    for pid, at in kills:
        victim = max((start for start in starts if start.pid == pid), key=lambda start: start.at)
        again = [start.at for start in starts if start.index == victim.index and start.at > victim.at]
        if again:
            delays.append(min(again) - at)
    ratio, delay_s = calm_s / stormy_s, statistics.median(delays or [0.0])
    trial.note(
        f"{len(kills)} kills; throughput {ratio:.2f} of the calm ({_bar(ratio >= 0.6, '0.6')}); kill to running again, "
        f"median of {len(delays)}: {1000 * delay_s:.0f} ms ({_bar(delay_s <= 0.3, '300 ms')})"
    )


def nested_killed(trial: Trial, n_tasks: int) -> None:
    """A random worker is killed every 0.3 s while tasks submit three tasks each and wait for them."""
    executor = trial.executor(2).options(max_retries=20)
    with _killer(trial) as kills:
        for _ in range(n_tasks):
            trial.submit(executor, 0.004, width=3)
        trial.settle()
    killed_at = dict(kills)
    # The pid of who has submitted a task stands for its number.
    orphans = [start.at - killed_at[start.index] for start in trial.starts(INNER) if start.index in killed_at]
    late_s = max(orphans, default=0.0)
    trial.note(f"{len(kills)} kills; last start of a task of a killed task: {late_s:.2f} s after the kill")
    trial.check(late_s <= _ORPHANS_S, "something was run on behalf of the dead")


@contextlib.contextmanager
def _killer(trial: Trial) -> Iterator[list[tuple[int, float]]]:
    """Kills workers of this process's executors; gives their pids, and when."""
    kills: list[tuple[int, float]] = []
    over = threading.Event()

    def kill_one() -> None:
        # One that has never run a task may be at its start; three that die there in a row break the network, rightly.
        seen = {start.pid for start in trial.starts()}
        workers = [child for agent in trial.own_agents() for child in agent.children() if child.pid in seen]
        if workers:
            victim = random.choice(workers)
            trial.excuse(victim.pid)
            at = time.monotonic()
            victim.kill()
            kills.append((victim.pid, at))

    def run() -> None:
        while not over.wait(_KILL_EVERY_S):
            with contextlib.suppress(psutil.NoSuchProcess):
                kill_one()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield kills
    finally:
        over.set()
        thread.join()


def poison(trial: Trial, n_poisons: int) -> None:
    """Tasks that end their worker (abort, SIGKILL, exit) among good ones: they fail alone, after three attempts."""
    executor = trial.executor(2)
    poisoned = set()
    for i in range(n_poisons):
        for _ in range(30):
            trial.submit(executor, random.choice((0.0, 0.002, 0.01)))
        poisoned.add(trial.submit(executor, poison=POISONS[i % len(POISONS)]))
    trial.settle()
    starts = trial.starts()
    trial.excuse(*(start.pid for start in starts if start.index in poisoned))
    attempts = [sum(start.index == index for start in starts) for index in poisoned]
    trial.note(f"attempts of {n_poisons} poisons: {sorted(set(attempts))}")
    trial.check(set(attempts) == {3}, f"attempts: {attempts}")
    errors = trial.errors()
    trial.check(set(errors) == poisoned, f"failed: {set(errors) ^ poisoned} differ")


def zombie(trial: Trial, n_faults: int) -> None:
    """An agent and its workers are stopped until their tasks were taken over, then they go on: too late."""
    server = trial.server()
    executor = trial.executor(0, server.url, heartbeats=STEADY)
    stopped, _ = trial.agent(server.url, heartbeats=QUICK), trial.agent(server.url, heartbeats=STEADY)
    for _ in range(n_faults):
        with trial.load(executor, 0.05):
            held = _stop_at_work(trial, server, stopped)
            # By somebody else: the stopped ones cannot.
            took_s = trial.wait_for(lambda held=held: trial.are_done(held), "its tasks to be taken over")  # type: ignore[misc]
            trial.wait_for_progress(20)
            stopped.go_on()
            trial.recover(executor)
            n_starts = len(trial.starts())
            trial.wait_for(
                lambda n=n_starts: any(s.pid in stopped.worker_pids() for s in trial.starts()[n:]),  # type: ignore[misc]
                "the agent to be back at work",
            )
        trial.settle()
    n_late = stopped.log.count("came too late") + stopped.log.count("is dropped unless")
    trial.check(n_late, "no late result was refused")
    trial.note(f"{len(held)} tasks were taken over after {took_s:.2f} s, {n_late} late results refused")


def _stop_at_work(trial: Trial, server: Server, agent: Agent) -> set[str]:
    """Stops an agent and its workers while they run tasks, and says which they hold, as the ledger has it.

    What was started last tells nothing: who has just begun to look for the next task holds none, or one that it has not
    started yet. Nor does what they hold: it may have been handed to one that waited, and was stopped.
    """
    keys, held = Keys(NETWORK), set[str]()

    def is_caught() -> bool:
        trial.excuse(*agent.worker_pids())
        agent.stop()
        pids = agent.worker_pids()
        trial.excuse(*pids)
        # What they had sent before they stopped comes before the second answer.
        for _ in range(2):
            held.clear()
            for worker_id in server.ask("SMEMBERS", keys.worker_ids):
                if int(server.ask("HGET", keys.worker(worker_id.decode()), "pid") or 0) in pids:
                    tasks = server.ask("SMEMBERS", keys.running_tasks(worker_id.decode()))
                    held.update(task.decode() for task in tasks)
        is_running = not held.isdisjoint(trial.begun_by(pids))
        if not is_running:
            agent.go_on()
        return is_running

    trial.wait_for(is_caught, "the agent to run a task")
    return held


# -------------------------------------------------------------------------------------------------------------- server


def server_killed(trial: Trial, n_faults: int) -> None:
    """The server is killed and started again with what it has on disk (AOF, appendfsync always)."""
    server = trial.server(appendonly="yes", appendfsync="always")
    executor = trial.executor(2, server.url)
    with trial.load(executor):
        for _ in range(n_faults):
            trial.wait_for_progress()
            server.kill()
            server.start_again()
            trial.recover(executor)


def server_stalled(trial: Trial, n_faults: int) -> None:
    """The server stalls for longer than all heartbeats last: nobody is taken for dead, also who is late thereafter."""
    server = trial.server()
    executor = trial.executor(1, server.url, heartbeats=STEADY)
    late = trial.agent(server.url, n_workers=1, heartbeats=STEADY)
    with trial.load(executor, 0.01):
        for _ in range(n_faults):
            trial.wait_for_progress()
            # Before the server: a sign of life that waits for it there would be found as soon as it goes on.
            late.stop()
            server.stall()
            # The fault is this time: heartbeats last less long.
            time.sleep(1.2 * STEADY[1])
            server.go_on()
            trial.recover(executor)
            # Longer than an agent is suspected by who has not been blind.
            time.sleep(1.5 * executor._session.config.doubt_s)
            late.go_on()
            trial.wait_for_progress(100)


def connections_killed(trial: Trial, n_faults: int) -> None:
    """CLIENT KILL of all connections, and of all subscribed ones, again and again."""
    server = trial.server()
    executor = trial.executor(2, server.url, heartbeats=STEADY)
    with trial.load(executor):
        for i in range(n_faults):
            trial.wait_for_progress(random.randrange(1, 40))
            server.ask("CLIENT", "KILL", "TYPE", ("normal", "pubsub")[i % 2])
        trial.recover(executor)


def notifications_off(trial: Trial, n_faults: int) -> None:
    """Notifications are switched off; an agent that is killed then is missed all the same."""
    server = trial.server()
    executor = trial.executor(1, server.url, heartbeats=STEADY)
    for _ in range(n_faults):
        victim = trial.agent(server.url, n_workers=1, heartbeats=QUICK)
        with trial.load(executor, 0.02):
            trial.wait_for(lambda: _has_started(trial, victim), "the agent's first task")  # noqa: B023 - waits here
            server.ask("CONFIG", "SET", "notify-keyspace-events", "")
            pids = victim.worker_pids()
            trial.excuse(*pids)
            victim.kill()
            trial.recover(executor)
        trial.settle()
        server.ask("CONFIG", "SET", "notify-keyspace-events", "Kx")


def _has_started(trial: Trial, agent: Agent) -> bool:
    pids = agent.worker_pids()
    return any(start.pid in pids for start in trial.starts())


def scripts_flushed(trial: Trial, n_faults: int) -> None:
    """SCRIPT FLUSH, again and again."""
    server = trial.server()
    executor = trial.executor(2, server.url)
    with trial.load(executor):
        for _ in range(n_faults):
            trial.wait_for_progress(random.randrange(1, 40))
            server.ask("SCRIPT", "FLUSH")
        trial.recover(executor)


def memory_full(trial: Trial, n_faults: int) -> None:
    """The server is full (maxmemory) until it has refused some commands, then it has room again."""
    server = trial.server()
    executor = trial.executor(2, server.url)
    with trial.load(executor):
        for _ in range(n_faults):
            trial.wait_for_progress()
            server.ask("CONFIG", "RESETSTAT")
            server.ask("CONFIG", "SET", "maxmemory", "1mb")
            trial.wait_for(lambda: _n_refused(server.ask("INFO", "errorstats")) >= 5, "refused commands")
            server.ask("CONFIG", "SET", "maxmemory", "0")
            trial.recover(executor)


def _n_refused(stats: object) -> int:
    count = stats.get("errorstat_OOM", {}) if isinstance(stats, dict) else {}
    return int(count.get("count", 0)) if isinstance(count, dict) else 0


def data_flushed(trial: Trial, n_faults: int) -> None:
    """FLUSHALL: every Future has a result or NetworkLostError, soon."""
    server = trial.server()
    for _ in range(n_faults):
        executor = trial.executor(2, server.url)
        with trial.load(executor):
            trial.wait_for_progress()
            trial.excuse_before()
            server.ask("FLUSHALL")
            _outlive(trial, executor)
        executor.shutdown()


def server_empty(trial: Trial, n_faults: int) -> None:
    """The server is killed and comes back without any data: every Future has a result or NetworkLostError, soon."""
    server = trial.server()
    for _ in range(n_faults):
        executor = trial.executor(2, server.url)
        with trial.load(executor):
            trial.wait_for_progress()
            server.kill()
            trial.excuse_before()
            server.start_again()
            _outlive(trial, executor)
        executor.shutdown()


def _outlive(trial: Trial, executor: RushExecutor) -> None:
    """Waits until an executor has either given up or got over the loss of its data."""
    began_at, n_before = time.monotonic(), trial.row.submitted
    with contextlib.suppress(Exception):
        trial.recover(executor)
    trial.wait_for(lambda: executor._broken or trial.n_done() >= n_before, "an answer")
    if executor._broken:
        trial.settle()
        trial.note(f"NetworkLostError for all after {time.monotonic() - began_at:.2f} s")
    else:
        trial.note("re-submitted")


# ---------------------------------------------------------------------------------------------------------------- wire


def client_cut(trial: Trial, n_faults: int) -> None:
    """The client's connections are cut and none is taken for a while."""
    executor, proxy = _behind_proxy(trial, is_client=True)
    _cut(trial, executor, proxy, n_faults)


def workers_cut(trial: Trial, n_faults: int) -> None:
    """The same on the side of the workers and their agent."""
    executor, proxy = _behind_proxy(trial, is_client=False)
    _cut(trial, executor, proxy, n_faults)


def client_cut_mid_reply(trial: Trial, n_cuts: int) -> None:
    """The client's connections are cut at random, in the middle of replies too."""
    executor, proxy = _behind_proxy(trial, is_client=True)
    _cut_by_chance(trial, executor, proxy, n_cuts)


def workers_cut_mid_reply(trial: Trial, n_cuts: int) -> None:
    """The same on the side of the workers and their agent."""
    executor, proxy = _behind_proxy(trial, is_client=False)
    _cut_by_chance(trial, executor, proxy, n_cuts)


def client_black_hole(trial: Trial, n_faults: int) -> None:
    """What the client and the server send to each other vanishes for a while; connections stay open."""
    executor, proxy = _behind_proxy(trial, is_client=True)
    _swallow(trial, executor, proxy, n_faults)


def workers_black_hole(trial: Trial, n_faults: int) -> None:
    """The same on the side of the workers and their agent."""
    executor, proxy = _behind_proxy(trial, is_client=False)
    _swallow(trial, executor, proxy, n_faults)


def _behind_proxy(trial: Trial, *, is_client: bool) -> tuple[RushExecutor, Proxy]:
    """An executor without workers and an agent with two; one of them behind a proxy."""
    server = trial.server()
    proxy = trial.proxy(server)
    urls = (proxy.url, server.url) if is_client else (server.url, proxy.url)
    executor = trial.executor(0, urls[0])
    trial.agent(urls[1])
    return executor, proxy


def _cut(trial: Trial, executor: RushExecutor, proxy: Proxy, n_faults: int) -> None:
    with trial.load(executor):
        for _ in range(n_faults):
            trial.wait_for_progress()
            proxy.go_away()
            # The fault is this time: some attempts to connect are refused.
            time.sleep(0.3)
            proxy.come_back()
            trial.recover(executor)


def _cut_by_chance(trial: Trial, executor: RushExecutor, proxy: Proxy, n_cuts: int) -> None:
    with trial.load(executor):
        proxy.lose_by_chance(0.02)
        trial.wait_for(lambda: proxy.n_cuts >= n_cuts, f"{n_cuts} cuts")
        proxy.lose_by_chance(0.0)
        trial.recover(executor)


def _swallow(trial: Trial, executor: RushExecutor, proxy: Proxy, n_faults: int) -> None:
    with trial.load(executor):
        for _ in range(n_faults):
            trial.wait_for_progress()
            proxy.swallow()
            # The fault is this time: long enough for everybody to send something.
            time.sleep(1.5)
            proxy.stop_swallowing()
            trial.recover(executor)


# ------------------------------------------------------------------------------------------------------------- clients

_CLIENT = """
import sys, time
from rush_executor import RushExecutor, _config
from tests.chaos import tasks
path, n_workers, lease_s, *shared = sys.argv[1:]
# No argument of the executor: a day, which nobody waits for here.
_config.NetworkConfig.__init__.__kwdefaults__["client_lease_s"] = float(lease_s)
more = {"url": shared[0], "network_id": shared[1]} if shared else {}
executor = RushExecutor(int(n_workers), **more)
futures = [executor.submit(tasks.work, path, i, 0.01, 0) for i in range(2000)]
futures[20].result()
print("ready", flush=True)
time.sleep(600)
"""
_DAY_S = 86_400.0
_LEASE_S = 1.0


def client_killed(trial: Trial, n_faults: int) -> None:
    """A client is killed: its agent, workers and private server are gone soon."""
    for _ in range(n_faults):
        _kill_client(trial, "processes gone", 2, _DAY_S)


def client_killed_shared(trial: Trial, n_faults: int) -> None:
    """A client of a shared server is killed: its processes are gone soon, and its agent has deleted its keys."""
    server = trial.server()
    for _ in range(n_faults):
        _kill_client(trial, "processes gone", 2, _DAY_S, server.url, NETWORK)
        took_s = trial.wait_for(lambda: not keys_left(server.url), "its keys to go", deadline_s=_GONE_WITHIN_S)
        trial.note(f"keys {took_s:.2f} s later")


def client_killed_alone(trial: Trial, n_faults: int) -> None:
    """A client without an agent of its own is killed: its keys are gone when its lease of 1 s is over."""
    server = trial.server()
    trial.agent(server.url, heartbeats=STEADY)
    for _ in range(n_faults):
        _kill_client(trial, "process gone", 0, _LEASE_S, server.url, NETWORK)

        def has_keys() -> bool:
            # Agent and workers live on.
            return any("agent" not in key and "worker" not in key and "heartbeat" not in key for key in keys())

        def keys() -> list[str]:
            return [key.rpartition("}")[2] for key in keys_left(server.url)]

        took_s = trial.wait_for(lambda: not has_keys(), "its keys to go", deadline_s=_LEASE_S + 10)
        trial.note(f"keys gone after {took_s:.2f} s (lease {_LEASE_S:g} s)")


def _kill_client(trial: Trial, what: str, n_workers: int, lease_s: float, *shared: str) -> None:
    client = subprocess.Popen(
        [sys.executable, "-c", _CLIENT, trial.path + "-elsewhere", str(n_workers), str(lease_s), *shared],
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
        env=environment(),
        start_new_session=True,
    )
    with client:
        trial.check(client.stdout is not None and client.stdout.readline() == b"ready\n", "the client did not start")
        family = psutil.Process(client.pid).children(recursive=True)
        trial.check(len(family) >= n_workers, f"only {len(family)} processes")
        client.kill()
    took_s = trial.wait_for(lambda: not any(map(is_alive, family)), what, deadline_s=_GONE_WITHIN_S)
    for process in filter(is_alive, family):
        process.kill()
    trial.note(f"{len(family) + 1} {what} after {took_s:.2f} s ({_bar(took_s <= 2.0, '2 s')})")


def slow_consumer(trial: Trial, n_tasks: int) -> None:
    """Results of 10 kB come much faster than the client's line carries them; they wait at the server."""
    server = trial.server()
    proxy = trial.proxy(server)
    executor = trial.executor(0, proxy.url)
    trial.agent(server.url)
    proxy.slow_down(30e6)
    for _ in range(n_tasks):
        trial.submit(executor, size=10_000)
    trial.wait_for(lambda: trial.n_done() >= n_tasks // 10, "the first results")
    peak = _memory(server.ask("INFO", "memory"))
    proxy.slow_down(0)
    trial.recover(executor)
    trial.settle()
    trial.note(f"server's memory then {peak / 1e6:.0f} MB")


def _memory(info: object) -> float:
    return float(info["used_memory_peak"]) if isinstance(info, dict) else 0.0


def two_executors(trial: Trial, n_faults: int) -> None:
    """Two executors share a network; the agent of one is killed, and one of them leaves before the other."""
    server = trial.server()
    for _ in range(n_faults):
        first = trial.executor(1, server.url)
        [agent] = trial.own_agents()
        second = trial.executor(1, server.url)
        with trial.load(second):
            with trial.load(first):
                trial.wait_for(agent.children, "its worker")
                trial.wait_for(lambda: _is_at_work(trial, agent), "its first task")  # noqa: B023 - waits here
                trial.excuse(*(child.pid for child in agent.children()))
                os.kill(agent.pid, 9)
                trial.recover(first)
            first.shutdown()
            trial.wait_for_progress()
        second.shutdown()


def _is_at_work(trial: Trial, agent: psutil.Process) -> bool:
    pids = {child.pid for child in agent.children()}
    return any(start.pid in pids for start in trial.starts())


def _bar(is_met: bool, bar: str) -> str:
    return f"bar {bar}" if is_met else f"bar {bar}: MISSED"


SCENARIOS = (
    # The size counts tasks, cuts or poisons where the parameter says so, else how often the fault comes.
    Scenario(worker_killed, short=200, long=2000),
    Scenario(nested_killed, short=30, long=400),
    Scenario(poison, short=3, long=12, failures=frozenset({"WorkerLostError"})),
    Scenario(zombie, short=1, long=3),
    Scenario(server_killed, short=2, long=10),
    Scenario(server_stalled, short=1, long=4),
    Scenario(server_empty, short=None, long=2, failures=_LOST),
    Scenario(data_flushed, short=1, long=2, failures=_LOST),
    Scenario(client_cut, short=None, long=6),
    Scenario(workers_cut, short=None, long=6),
    Scenario(client_black_hole, short=None, long=1),
    Scenario(workers_black_hole, short=None, long=1),
    Scenario(client_cut_mid_reply, short=10, long=150),
    Scenario(workers_cut_mid_reply, short=10, long=150),
    Scenario(connections_killed, short=6, long=60),
    Scenario(notifications_off, short=1, long=3),
    Scenario(scripts_flushed, short=6, long=100),
    Scenario(memory_full, short=1, long=4),
    Scenario(client_killed, short=None, long=3),
    Scenario(client_killed_shared, short=1, long=3),
    Scenario(client_killed_alone, short=None, long=2),
    Scenario(slow_consumer, short=2000, long=50_000),
    Scenario(two_executors, short=1, long=3),
)
