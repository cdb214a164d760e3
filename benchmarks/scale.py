"""A server with many workers: what they cost while they are idle, and whether a task finds one as soon as among few.

    python -m benchmarks.scale [--workers N,...] [--per-agent N] [--seconds S] [--json FILE] [--publish]
                               [--no-bars]

The workers are simulated, a thousand of them in one process: each has a connection of its own and sends what a real one
sends, made by the same code (`WorkerLedger`), but runs nothing. They belong to agents, one for so many workers as a
machine has, which give signs of life, listen, and look for lost ones as real agents do. The client is the real one's
`Uplink` and `Downlink`, without Futures.

For each number of workers, on a server of its own:
- idle: CPU time of the server, commands and notifications in some seconds; its memory for each worker;
- trip: one task at a time, from the push to the outcome, while all the other workers wait; what it takes of the server;
- shares: 5 tasks for each worker, which take so long that 1,000 start in a second; how many each has got.

Then what it costs to wake one of many who wait, and to look for lost agents among many. What 10,000 workers would take
is worked out from all that.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import multiprocessing
import os
import platform
import resource
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import hiredis
import psutil
import redis

from benchmarks import publish
from benchmarks.clocks import cpu_time
from rush_executor._ledger.agent import AgentLedger, Reaper
from rush_executor._ledger.client import START, Downlink, Uplink
from rush_executor._ledger.connection import IDLE_BLOCK_S, Channel, open_pool
from rush_executor._ledger.notifications import AgentWatch, ensure_notifications
from rush_executor._ledger.scripts import pack
from rush_executor._ledger.worker import Outcome, WorkerLedger
from rush_executor._protocol.ids import new_id, task_id
from rush_executor._protocol.keys import Keys
from rush_executor._protocol.records import NewTask, TaskOptions
from rush_executor.testing import temporary_server

EPOCH: Final = "epoch"
MUTE: Final = pack(("CLIENT", "REPLY", "SKIP"))
# As a call of a function by name, and its result.
CALL, RESULT = bytes(34), bytes(6)
HEARTBEAT_S: Final = 3.0
LEASE_MS: Final = 600_000
TASKS_PER_WORKER: Final = 5
STARTS_PER_S: Final = 1_000
N_TRIPS: Final = 300
WARM_UP: Final = 50
DEADLINE_S: Final = 120.0
# A batch of a real client.
BATCH: Final = 500
AGENTS_LOOKED_AT: Final = (10, 100, 1_000)
WAITING: Final = (100, 300, 1_000, 3_000)
N_RINGS: Final = 20
ON_PAPER: Final = 10_000

# What is asked for, with 1,000 workers.
MOST_IDLE_PERCENT: Final = 3.0
MOST_TIMES_TRIP: Final = 2.0


# ------------------------------------------------------------------------------------------ in the workers' own process


# Of hiredis, in place of False: no answer is complete.
_MORE: Final = object()
# The bell has not rung, and nothing is queued.
_NOTHING: Final[list[Any]] = [None, [0]]


class _Asked(Exception):
    """Instead of an answer that is not here yet."""


class Tape:
    """In the place of a channel: plays what was answered so far, and takes down what is to be sent next."""

    def __init__(self) -> None:
        self.packet = b""
        self.n_replies = 0
        self.answers: list[list[Any]] = []
        self.is_recording = False
        self.n_breaks = 0

    def can_mute(self) -> bool:
        """As all servers that are supported."""
        return True

    def call(self, *commands: bytes, muted: bytes = b"") -> list[Any]:
        """Plays, or takes down."""
        if not self.is_recording:
            return []
        if self.answers:
            return self.answers.pop(0)
        self.packet = b"".join([*([MUTE, muted] if muted else []), *commands])
        self.n_replies = len(commands)
        raise _Asked

    def post(self, command: bytes) -> None:
        """A worker that breaks off its wait would withdraw; this one only waits for an answer."""


class Worker(asyncio.Protocol):
    """A simulated worker: as lean as it can be, for a thousand of them share a processor with the server."""

    def __init__(self, keys: Keys, worker_id: str) -> None:
        self.n_tasks = 0
        self._tape = Tape()
        self._ledger = WorkerLedger(self._tape, keys, worker_id, EPOCH)  # type: ignore[arg-type]
        # It has registered over another connection; this one is to know what it may leave unanswered.
        self._ledger.register("", "", 0)
        self._tape.is_recording = True
        self._parser = hiredis.Reader(notEnoughData=_MORE)
        self._replies: list[Any] = []
        self._transport: asyncio.Transport
        # Of the exchange that is under way: what it began with, and what was answered so far.
        self._outcomes: list[Outcome] = []
        self._waits = self._was_idle = False
        self._answers: list[list[Any]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Waits for a task."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._exchange(0)

    def data_received(self, data: bytes) -> None:
        """Collects answers."""
        self._parser.feed(data)
        while (reply := self._parser.gets()) is not _MORE:
            self._replies.append(reply)
            if len(self._replies) == self._tape.n_replies:
                replies, self._replies = self._replies, []
                if replies == _NOTHING:
                    self._transport.write(self._tape.packet)
                else:
                    self._answers.append(replies)
                    self._go_on()

    def _exchange(self, n_queued: int) -> None:
        self._waits, self._was_idle, self._answers = n_queued == 0, self._ledger._is_idle, []  # noqa: SLF001
        self._go_on()

    def _go_on(self) -> None:
        """Goes through the exchange from its beginning, up to what is not answered yet."""
        self._tape.answers = list(self._answers)
        self._ledger._is_idle = self._was_idle  # noqa: SLF001
        try:
            claimed = self._ledger.exchange(self._outcomes, limit=1, wait=self._waits, rests=True)
        except _Asked:
            self._transport.write(self._tape.packet)
            return
        self._outcomes = [Outcome(claim, is_failure=False, body=RESULT) for claim in claimed.claims]
        self.n_tasks += len(claimed.claims)
        # So the client says how long a task is to take.
        seconds = sum(claim.timeout_s for claim in claimed.claims)
        if seconds:
            asyncio.get_running_loop().call_later(seconds, self._exchange, claimed.n_queued)
        else:
            self._exchange(claimed.n_queued)


class Agents:
    """So many agents, in one thread: heartbeats, and looks for lost ones, spread over time."""

    def __init__(self, url: str, keys: Keys, n_agents: int) -> None:
        self.ids = [new_id() for _ in range(n_agents)]
        self._pool = open_pool(url)
        self._pool.max_connections = 1 << 20
        channels = [Channel(self._pool, reconnect_timeout_s=10) for _ in self.ids]
        self.ledgers = [
            AgentLedger(channel, keys, name, "host") for channel, name in zip(channels, self.ids, strict=True)
        ]
        self._reapers = [Reaper(channel, keys, doubt_s=HEARTBEAT_S / 2) for channel in channels]
        self._watches = [AgentWatch(self._pool, keys, name) for name in self.ids]
        self.is_over = threading.Event()

    def run(self) -> None:
        """Until it is over."""
        for number in itertools.cycle(range(len(self.ids))):
            if self.is_over.wait(HEARTBEAT_S / len(self.ids)):
                return
            self.ledgers[number].beat(int(5 * HEARTBEAT_S * 1000))
            self._watches[number].rang()
            self._reapers[number].look()

    def begin(self) -> None:
        """Joins, and goes on by itself."""
        for ledger, watch in zip(self.ledgers, self._watches, strict=True):
            ledger.beat(int(5 * HEARTBEAT_S * 1000))
            watch.rang()
        threading.Thread(target=self.run, daemon=True).start()


def crowd(url: str, network_id: str, n_workers: int, per_agent: int, pipe: Connection) -> None:
    """Plays agents and workers until it is told to end; then says how many tasks each worker has had."""
    keys = Keys(network_id)
    agents = Agents(url, keys, -(-n_workers // per_agent))
    agents.begin()
    channel = Channel(open_pool(url), reconnect_timeout_s=10)
    workers = []
    for number in range(n_workers):
        worker_id = new_id()
        agent = number // per_agent
        agents.ledgers[agent].announce_worker(worker_id)
        WorkerLedger(channel, keys, worker_id, EPOCH).register(agents.ids[agent], "host", number)
        workers.append(Worker(keys, worker_id))
    path = unquote(url.removeprefix("unix://"))

    async def play() -> None:
        loop = asyncio.get_running_loop()
        for worker in workers:
            await loop.create_unix_connection(lambda it=worker: it, path)  # type: ignore[misc]
        pipe.send("ready")
        await loop.run_in_executor(None, pipe.recv)

    asyncio.run(play())
    agents.is_over.set()
    pipe.send([worker.n_tasks for worker in workers])


# ---------------------------------------------------------------------------------------------- in the client's process


@dataclass(frozen=True)
class Figures:
    """What was measured with so many workers.

    Attributes:
        n_workers: Workers that are connected.
        n_agents: Agents.
        idle_percent: CPU time of the idle server, in percent of a core.
        commands_per_s: Commands that it does then, scripts and what they call.
        notifications_per_s: Keyspace events that it publishes then.
        kb_per_worker: Its memory for each worker.
        trip_p50_us: Of one task at a time.
        trip_p99_us: Of one task at a time.
        lone_us: CPU time of the server for each of them, beyond what it takes in any case.
        task_us: CPU time of the server for each of many tasks, claimed one by one.
        fewest: Tasks of the worker that has got fewest.
        most: Tasks of the worker that has got most.
        busy: Share of the ideal that all have reached.
    """

    n_workers: int
    n_agents: int
    idle_percent: float
    commands_per_s: float
    notifications_per_s: float
    kb_per_worker: float
    trip_p50_us: float
    trip_p99_us: float
    lone_us: float
    task_us: float
    fewest: int
    most: int
    busy: float


class Client:
    """Pushes tasks and reads outcomes."""

    def __init__(self, url: str, network_id: str) -> None:
        keys, self.id = Keys(network_id), new_id()
        pool = open_pool(url)
        self._uplink = Uplink(Channel(pool, reconnect_timeout_s=10), keys, self.id, lease_ms=LEASE_MS)
        self._downlink = Downlink(Channel(pool, reconnect_timeout_s=10), keys, self.id)
        self._position = START
        self._n_batches = self._n_tasks = 0
        self._uplink.open_network(EPOCH, b"")

    def push(self, n: int, seconds: float | None = None) -> None:
        """Submits so many tasks, each of which is to take so long."""
        options = TaskOptions(2, 0, seconds)
        for start in range(0, n, BATCH):
            numbers = range(self._n_tasks, self._n_tasks + min(BATCH, n - start))
            self._n_tasks += len(numbers)
            self._n_batches += 1
            tasks = [NewTask(task_id(self.id, number), CALL, options) for number in numbers]
            self._uplink.push(self._n_batches, tasks, wait=n > 1)

    def receive(self, n: int) -> None:
        """Waits for so many outcomes."""
        end_at = time.monotonic() + DEADLINE_S
        while n > 0:
            outcomes, self._position = self._downlink.receive(self._position, trim=n > 1)
            n -= len(outcomes) // 2
            if time.monotonic() > end_at:
                raise TimeoutError(f"{n} outcomes are missing")


class Watch:
    """Counts the notifications that the server publishes."""

    def __init__(self, client: redis.Redis) -> None:
        ensure_notifications(client)
        self._pubsub = client.pubsub()
        self._pubsub.psubscribe("__key*__:*")
        self._pubsub.get_message(timeout=1.0)

    def count(self) -> int:
        """How many have come since it was asked last."""
        n = 0
        while self._pubsub.get_message(timeout=0):
            n += 1
        return n


@contextlib.contextmanager
def crowded(url: str, network_id: str, n_workers: int, per_agent: int) -> Iterator[list[int]]:
    """Workers for the length of the block; afterwards how many tasks each has had stands in the list."""
    near, far = multiprocessing.Pipe()
    # Not forked: this process has threads and connections.
    process = multiprocessing.get_context("spawn").Process(
        target=crowd, args=(url, network_id, n_workers, per_agent, far), daemon=True
    )
    process.start()
    counts: list[int] = []
    try:
        assert near.recv() == "ready"
        yield counts
        near.send("end")
        counts += near.recv()
    finally:
        process.terminate()
        process.join()


def measure(n_workers: int, per_agent: int, seconds: float) -> Figures:
    network_id = new_id()
    with temporary_server() as url, redis.Redis.from_url(url, protocol=2) as looker:
        client = Client(url, network_id)
        server = psutil.Process(looker.info("server")["process_id"])
        watch = Watch(looker)
        before = looker.info("memory")["used_memory"]
        with crowded(url, network_id, n_workers, per_agent) as counts:
            until(lambda: looker.info("clients")["blocked_clients"] >= n_workers)
            memory = looker.info("memory")["used_memory"] - before
            watch.count()
            idle, commands = server_work(looker, server, seconds)
            notifications = watch.count()
            cpu, began_at = cpu_time(server), time.perf_counter()
            p50, p99 = trips(client)
            lone_s = cpu_time(server) - cpu - idle / seconds * (time.perf_counter() - began_at)
            task_us, busy = shares(client, server, n_workers)
    # The trips are among them: all to the same worker, as a rule.
    return Figures(
        n_workers,
        -(-n_workers // per_agent),
        idle / seconds * 100,
        commands / seconds,
        notifications / seconds,
        memory / n_workers / 1000,
        p50,
        p99,
        lone_s / (N_TRIPS + WARM_UP) * 1e6,
        task_us,
        min(counts),
        max(counts),
        busy,
    )


def server_work(looker: redis.Redis, server: psutil.Process, seconds: float) -> tuple[float, int]:
    """CPU seconds and commands of the server while nobody asks for anything."""
    cpu, commands = cpu_time(server), n_commands(looker)
    time.sleep(seconds)
    return cpu_time(server) - cpu, n_commands(looker) - commands


def n_commands(looker: redis.Redis) -> int:
    return sum(stat["calls"] for stat in looker.info("commandstats").values())


def trips(client: Client) -> tuple[float, float]:
    times = []
    for number in range(N_TRIPS + WARM_UP):
        began_at = time.perf_counter()
        client.push(1)
        client.receive(1)
        if number >= WARM_UP:
            times.append(time.perf_counter() - began_at)
        # So that the worker waits again, and not only it.
        time.sleep(0.001)
    times.sort()
    return times[len(times) // 2] * 1e6, times[len(times) * 99 // 100] * 1e6


def shares(client: Client, server: psutil.Process, n_workers: int) -> tuple[float, float]:
    n, seconds = TASKS_PER_WORKER * n_workers, max(0.05, n_workers / STARTS_PER_S)
    cpu, began_at = cpu_time(server), time.perf_counter()
    client.push(n, seconds)
    client.receive(n)
    took = time.perf_counter() - began_at
    return (cpu_time(server) - cpu) / n * 1e6, TASKS_PER_WORKER * seconds / took


def measure_looks() -> dict[int, float]:
    """CPU time of the server, in microseconds, for one look for lost agents among so many."""
    figures = {}
    for n_agents in AGENTS_LOOKED_AT:
        with temporary_server() as url, redis.Redis.from_url(url) as looker:
            keys = Keys("looks")
            channel = Channel(open_pool(url), reconnect_timeout_s=10)
            for _ in range(n_agents):
                AgentLedger(channel, keys, new_id(), "host").beat(LEASE_MS)
            reaper = Reaper(channel, keys, doubt_s=1.0)
            server = psutil.Process(looker.info("server")["process_id"])
            reaper.look()
            cpu, n = cpu_time(server), 100
            for _ in range(n):
                reaper.look()
            figures[n_agents] = (cpu_time(server) - cpu) / n * 1e6
    return figures


def measure_rings() -> dict[int, tuple[float, float]]:
    """CPU time of the server, in microseconds, for waking one of so many: all at one list, or each at its own."""
    figures = {}
    for n in WAITING:
        with temporary_server() as url, redis.Redis.from_url(url, protocol=2) as looker:
            server = psutil.Process(looker.info("server")["process_id"])
            figures[n] = (
                ring(url, looker, server, ["bell"] * n),
                ring(url, looker, server, [f"bell{i}" for i in range(n)]),
            )
    return figures


def ring(url: str, looker: redis.Redis, server: psutil.Process, bells: Sequence[str]) -> float:
    clients = [socket.socket(socket.AF_UNIX) for _ in bells]
    try:
        for client, bell in zip(clients, bells, strict=True):
            client.connect(unquote(url.removeprefix("unix://")))
            client.sendall(pack(("BLPOP", bell, "0")))
        until(lambda: looker.info("clients")["blocked_clients"] == len(bells))
        cpu = cpu_time(server)
        # Few, so that most of them go on waiting.
        for bell in bells[:N_RINGS]:
            looker.rpush(bell, 1)
        return (cpu_time(server) - cpu) / N_RINGS * 1e6
    finally:
        for client in clients:
            client.close()


def until(condition: Any) -> None:
    end_at = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > end_at:
            raise TimeoutError("waited in vain")
        time.sleep(0.05)


# ------------------------------------------------------------------------------------------------------------- printing

COLUMNS: Final = (
    ("workers", "n_workers", "{:,}"),
    ("agents", "n_agents", "{:,}"),
    ("idle server, % of a core", "idle_percent", "{:.2f}"),
    ("commands/s", "commands_per_s", "{:,.0f}"),
    ("notifications/s", "notifications_per_s", "{:.1f}"),
    ("kB of the server a worker", "kb_per_worker", "{:.1f}"),
    ("trip p50, us", "trip_p50_us", "{:,.0f}"),
    ("p99, us", "trip_p99_us", "{:,.0f}"),
    ("server's us a lone task", "lone_us", "{:,.0f}"),
    ("a task of many, claimed alone", "task_us", "{:,.0f}"),
    ("fewest tasks", "fewest", "{:,}"),
    ("most", "most", "{:,}"),
    ("of the ideal", "busy", "{:.0%}"),
)


def on_paper(
    found: Sequence[Figures], looks: dict[int, float], rings: dict[int, tuple[float, float]], per_agent: int
) -> list[str]:
    """What more workers would take of the server, from what a worker and a look take."""
    most = found[-1]
    look_us = looks[max(looks)] / max(looks)
    n_agents = ON_PAPER // per_agent

    def looking(n: int) -> float:
        return n * n * look_us / HEARTBEAT_S / 1e6 * 100

    waiting = (most.idle_percent - looking(most.n_agents)) / most.n_workers * ON_PAPER
    told = ", ".join(f"{us:.0f} us among {n:,}" for n, us in looks.items())
    return [
        f"One look for lost agents takes the server {told}. Each agent looks every {HEARTBEAT_S:g} s.",
        (
            f"{ON_PAPER:,} workers on {n_agents:,} machines, idle: {waiting:.0f} % of a core for the workers, each of "
            f"which looks every {IDLE_BLOCK_S:g} s, and {looking(n_agents):.0f} % for the agents, whose looks grow "
            f"with their square; {most.kb_per_worker * ON_PAPER / 1000:.0f} MB."
        ),
        (
            f"A lone task is handed to one of those that wait. With {most.n_workers:,} of them it takes the server "
            f"{most.lone_us:,.0f} us, with {found[0].n_workers} {found[0].lone_us:,.0f}. To wake one of many alone: "
            + "; ".join(
                f"{one:,.0f} us with {n:,} clients at one list, {own:,.0f} with a list for each"
                for n, (one, own) in rings.items()
            )
            + "."
        ),
        (
            f"Busy: a task that is claimed alone takes {most.task_us:.0f} us of the server's core, so at most "
            f"{1e6 / most.task_us:,.0f} are possible a second: {ON_PAPER:,} workers are busy when tasks take "
            f"{ON_PAPER * most.task_us / 1e6:.1f} s, or are so short that they are claimed together."
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", default="2,10,100,1000", metavar="N,...", help="how many (2,10,100,1000)")
    parser.add_argument("--per-agent", type=int, default=16, metavar="N", help="workers of a machine (16)")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="how long idle ones are watched (10)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds, of which the medians are told (3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    parser.add_argument("--publish", action="store_true", help="put the figures into the documentation")
    parser.add_argument("--no-bars", action="store_true", help="exit with 0 also when a bar is missed")
    options = parser.parse_args()
    numbers = [int(text) for text in options.workers.split(",")]
    allow_files(max(*numbers, *WAITING) * 2 + 500)
    rounds: dict[int, list[Figures]] = {n: [] for n in numbers}
    for _ in range(options.rounds):
        for n in numbers:
            rounds[n].append(measure(n, options.per_agent, options.seconds))
    found = [median(rounds[n]) for n in numbers]
    lines = [[name for name, _, _ in COLUMNS]]
    lines += [[form.format(getattr(figures, key)) for _, key, form in COLUMNS] for figures in found]
    table = list(zip(*lines, strict=True))
    for cells in table:
        print(f"{cells[0]:32}" + "".join(f"{cell:>10}" for cell in cells[1:]))
    looks = measure_looks()
    rings = measure_rings()
    paper = on_paper(found, looks, rings, options.per_agent)
    print()
    print("\n".join(paper))
    pairs = zip(rounds[numbers[-1]], rounds[numbers[0]], strict=True)
    times = statistics.median(many.trip_p50_us / few.trip_p50_us for many, few in pairs)
    is_ok = found[-1].idle_percent < MOST_IDLE_PERCENT and times <= MOST_TIMES_TRIP
    idle = found[-1].idle_percent
    print(
        f"With {numbers[-1]:,} workers the idle server takes {idle:.2f} % of a core (asked for: below "
        f"{MOST_IDLE_PERCENT:g}), and a trip {times:.2f} times as long as with {numbers[0]} (at most "
        f"{MOST_TIMES_TRIP:g}): {'ok' if is_ok else 'MISSED'}"
    )
    if options.publish:
        notes = "\n".join(f"- {line}" for line in paper)
        told = f"Medians of {options.rounds} rounds, Python {platform.python_version()}, {os.cpu_count()} CPUs."
        publish.replace("scale", f"{told}\n\n{publish.markdown(table)}\n\n{notes}\n")
    if options.json:
        figures = {
            "looks_us": looks,
            "rings_us": rings,
            "rounds": {n: [asdict(figures) for figures in rounds[n]] for n in numbers},
        }
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if is_ok or options.no_bars else 1


def median(rounds: Sequence[Figures]) -> Figures:
    return Figures(
        **{
            key: type(value)(statistics.median(getattr(figures, key) for figures in rounds))
            for key, value in asdict(rounds[0]).items()
        }
    )


def allow_files(n: int) -> None:
    """A connection is a file; so many are more than a process has by default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < n:
        resource.setrlimit(resource.RLIMIT_NOFILE, (n if hard == resource.RLIM_INFINITY else min(n, hard), hard))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted")
