"""A network without its processes: client, worker and agent are objects in the hands of the test.

Each has connections of its own and does what its process would ask of the ledger, nothing more. `Rig.dump` is the
state of the network, exactly: every key and what is in it. At the end everybody leaves through the transitions that
their processes use, so `server_url`, which then finds no key, says that nothing is left behind.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final, Self

import redis

from rush_executor._ledger.agent import AgentLedger, Reaper
from rush_executor._ledger.client import START, Downlink, OpenedNetwork, Uplink
from rush_executor._ledger.connection import Channel, open_pool
from rush_executor._ledger.scripts import pack
from rush_executor._ledger.worker import Claimed, Outcome, WorkerLedger
from rush_executor._protocol.ids import task_id
from rush_executor._protocol.keys import Keys
from rush_executor._protocol.records import ATTEMPTS_TAG, LOST_TAG, Claim, Loss, NewTask, TaskOptions

__all__ = ["EPOCH", "LEASE_MS", "Agent", "Client", "Packets", "Recorder", "Rig", "Worker", "race"]

EPOCH: Final = "epoch-1"
LEASE_MS: Final = 600_000

# What went out in one go.
Packets = tuple[bytes, ...]


class Recorder(Channel):
    """A channel that remembers what it sent, so that a test can send the very same bytes again."""

    def __init__(self, pool: redis.ConnectionPool, *, reconnect_timeout_s: float) -> None:
        super().__init__(pool, reconnect_timeout_s=reconnect_timeout_s)
        self.sent: list[Packets] = []

    def call(self, *commands: bytes, muted: bytes = b"", **options: Any) -> list[Any]:
        self.sent.append((muted, *commands) if muted else commands)
        return super().call(*commands, muted=muted, **options)

    def call_each(self, commands: Iterable[bytes]) -> None:
        packed = list(commands)
        self.sent += [(command,) for command in packed]
        super().call_each(packed)


class Client:
    """A client: what a session, its dispatcher and its listener ask of the ledger."""

    def __init__(self, rig: Rig, client_id: str, url: str, lease_ms: int) -> None:
        self.id = client_id
        self.up_channel = rig.channel(url)
        self.down_channel = rig.channel(url)
        self._durable = rig.durable
        self.uplink = Uplink(self.up_channel, rig.keys, client_id, lease_ms=lease_ms)
        self.downlink = Downlink(self.down_channel, rig.keys, client_id)
        self.n_batches = 0
        self.position = START
        # Told beside the outcomes: how many workers were lost over a task.
        self.losses: dict[str, int] = {}
        self._numbers = itertools.count(1)

    def open(self, *, epoch: str = EPOCH, initializer: bytes = b"") -> OpenedNetwork:
        return self.uplink.open_network(epoch, initializer, durable=self._durable)

    def tasks(
        self,
        n: int,
        *,
        priority: int = 0,
        max_retries: int = 2,
        payload: bytes = b"call",
        blob_id: str = "",
        timeout_s: float | None = None,
    ) -> list[NewTask]:
        """New tasks, not yet sent."""
        options = TaskOptions(max_retries, priority, timeout_s)
        return [NewTask(task_id(self.id, next(self._numbers)), payload, options, blob_id) for _ in range(n)]

    def send(self, tasks: Sequence[NewTask], functions: Sequence[tuple[str, bytes]] = ()) -> list[str]:
        """Sends tasks as the next batch; returns their ids."""
        self.n_batches += 1
        self.uplink.push(self.n_batches, tasks, functions)
        return [task.task_id for task in tasks]

    def push(self, n: int = 1, *, priority: int = 0, max_retries: int = 2) -> list[str]:
        """Sends n new tasks in one batch; returns their ids."""
        return self.send(self.tasks(n, priority=priority, max_retries=max_retries))

    def receive(self, *, wait: bool = False) -> list[tuple[str, bytes]]:
        """Trims what the last call read, and reads what is there: pairs of task id and outcome."""
        raw, self.position = self.downlink.receive(self.position, wait=wait)
        pairs = [(raw[i].decode(), raw[i + 1]) for i in range(0, len(raw), 2)]
        self.losses.update({task: int(body[1:]) for task, body in pairs if body[:1] == ATTEMPTS_TAG})
        return [(task, body) for task, body in pairs if body[:1] != ATTEMPTS_TAG]

    def drain(self) -> list[tuple[str, bytes]]:
        """Reads and trims until nothing is left."""
        pairs: list[tuple[str, bytes]] = []
        while got := self.receive():
            pairs += got
        return pairs

    def leave(self) -> None:
        self.uplink.retire()
        self.uplink.close()
        self.downlink.close()


class Worker:
    """A worker that has registered."""

    def __init__(self, rig: Rig, worker_id: str, agent: Agent, url: str, epoch: str) -> None:
        self.id = worker_id
        self.agent = agent
        self.channel = rig.channel(url)
        self.ledger = WorkerLedger(self.channel, rig.keys, worker_id, epoch, is_durable=rig.durable)

    def register(self) -> Self:
        self.agent.ledger.announce_worker(self.id)
        self.ledger.register(self.agent.id, "host", 4711)
        self.agent.workers.append(self)
        return self

    def claim(self, limit: int = 1) -> list[Claim]:
        return self.ledger.exchange([], limit=limit, wait=False).claims

    def rest(self, limit: int = 1) -> None:
        """It has found nothing, and is about to wait at its bell."""
        claimed = self.ledger.exchange([], limit=limit, wait=False, rests=True)
        assert claimed == Claimed([], 0, [])

    def finish(self, claims: Sequence[Claim], body: bytes = b"result", *, is_failure: bool = False) -> list[str]:
        return self.ledger.finish([Outcome(claim, is_failure, body) for claim in claims])


class Agent:
    """An agent; it gives no sign of life unless the test lets it."""

    def __init__(self, rig: Rig, agent_id: str, url: str) -> None:
        self.id = agent_id
        self.channel = rig.channel(url)
        self.ledger = AgentLedger(self.channel, rig.keys, agent_id, "host")
        self.workers: list[Worker] = []

    def lose(self, worker: Worker, guilty: str = "", tag: bytes = LOST_TAG) -> tuple[int, int]:
        if worker in self.workers:
            self.workers.remove(worker)
        return self.ledger.lose_worker(Loss(worker.id, "host", 4711, -9, "killed by signal 9"), guilty, tag)

    def leave(self) -> None:
        for worker in list(self.workers):
            self.lose(worker)
            worker.ledger.close()
        self.ledger.leave()
        self.ledger.close()


class Rig:
    """One network and those that take part in it.

    Attributes:
        url: The server.
        keys: Of the network.
        redis: A client that looks, and sets what no transition can.
        durable: Whether the network is durable: who makes the rig resets it when it is over.
    """

    def __init__(self, url: str, network_id: str = "rig", *, durable: bool = False) -> None:
        self.url = url
        self.durable = durable
        self.keys = Keys(network_id)
        self.redis = redis.Redis.from_url(url, protocol=2)
        self._pools: dict[str, redis.ConnectionPool] = {}
        self._channels: list[Channel] = []
        self._clients: dict[str, Client] = {}
        self._agents: dict[str, Agent] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if error is None:
                self.leave()
            else:
                self.redis.flushall()
        finally:
            for channel in self._channels:
                channel.close()
            for pool in self._pools.values():
                pool.disconnect()
            self.redis.close()

    # Who takes part.

    def channel(self, url: str = "", *, reconnect_timeout_s: float = 10.0) -> Recorder:
        """A connection of its own to the server, or to what stands before it."""
        url = url or self.url
        if url not in self._pools:
            self._pools[url] = open_pool(url)
            # It counts those that were closed, too; a process of ours makes a handful, a test hundreds.
            self._pools[url].max_connections = 1 << 20
        pool = self._pools[url]
        channel = Recorder(pool, reconnect_timeout_s=reconnect_timeout_s)
        # Connected from the start: what a test cuts is a command, not the greeting.
        channel.call(pack(("PING",)))
        channel.sent.clear()
        self._channels.append(channel)
        return channel

    def client(self, client_id: str = "c1", *, url: str = "", is_open: bool = True, lease_ms: int = LEASE_MS) -> Client:
        """The client with this id; it joins the network when it is first asked for."""
        if client_id not in self._clients:
            client = Client(self, client_id, url, lease_ms)
            if is_open:
                client.open()
                self._clients[client_id] = client
            return client
        return self._clients[client_id]

    def agent(self, agent_id: str = "a1", *, url: str = "") -> Agent:
        """The agent with this id."""
        return self._agents.setdefault(agent_id, Agent(self, agent_id, url))

    def worker(self, worker_id: str = "w1", *, agent_id: str = "a1", url: str = "", epoch: str = EPOCH) -> Worker:
        """A new worker."""
        return Worker(self, worker_id, self.agent(agent_id), url, epoch).register()

    def reaper(self) -> Reaper:
        """A reaper with a connection of its own."""
        return Reaper(self.channel(), self.keys, doubt_s=0.0, recovery_s=0.0)

    def leave(self) -> None:
        """Everybody leaves."""
        for agent in self._agents.values():
            agent.leave()
        for client in self._clients.values():
            client.leave()
        self._agents.clear()
        self._clients.clear()

    def forget(self, *parties: Client | Agent) -> None:
        """These will not leave by themselves: they have left, or they are dead."""
        for party in parties:
            self._clients = {name: client for name, client in self._clients.items() if client is not party}
            self._agents = {name: agent for name, agent in self._agents.items() if agent is not party}

    def send_again(self, *packets: Packets) -> list[list[Any]]:
        """Sends what was sent before, on another connection; returns what the server said."""
        channel = self.channel()
        try:
            return [channel.call(*commands) for commands in packets]
        finally:
            channel.close()

    # What the server holds.

    def dump(self) -> dict[str, Any]:
        """Every key of the network, without the prefix that they share, and what is in it."""
        found: dict[str, Any] = {}
        prefix = self.keys.prefix.encode()
        for key in sorted(self.redis.scan_iter(match=_escape(prefix) + b"*", count=1000)):
            value = self._read(key)
            if value is not None:
                found[key[len(prefix) :].decode()] = value
        if "idle_workers" in found:
            # Who waits; until when that counts is another time each time.
            found["idle_workers"] = sorted(name for name, _ in found["idle_workers"])
        return found

    def now(self) -> float:
        """The server's clock, in seconds since 1970."""
        seconds, micros = self.redis.time()  # type: ignore[misc]
        return float(seconds + micros / 1e6)

    def ttl_ms(self, key: str) -> int:
        """What is left of a key's life; -1 for ever, -2 no such key."""
        return int(self.redis.pttl(key))  # type: ignore[arg-type]

    def queue(self) -> list[str]:
        """The queue, first come first."""
        return [_text(raw) for raw in self.redis.zrange(self.keys.queued_tasks, 0, -1)]

    def inbox(self, client_id: str = "c1") -> list[tuple[str, str]]:
        """Pairs of task id and outcome."""
        raw = self._read(self.keys.inbox(client_id).encode()) or []
        return [pair for pair in zip(raw[::2], raw[1::2], strict=True) if not _tells_losses(pair[1])]

    def check_places(self, task_ids: Sequence[str]) -> dict[str, str]:
        """Each task stands in exactly one place, and its record says the same.

        Returns:
            For each task where it stands: "queued", the worker that runs it, or its outcome.
        """
        dump = self.dump()
        places: dict[str, list[str]] = {task: [] for task in task_ids}
        for task, rank in dump.get("queued_tasks", []):
            record = dump[f"task:{task}"]
            assert (record["state"], record.get("worker")) == ("queued", None), (task, record)
            assert float(record["rank"]) == rank
            places[task].append("queued")
        for key, value in dump.items():
            kind, _, owner = key.partition(":")
            if kind == "running_tasks":
                for task in value:
                    record = dump[f"task:{task}"]
                    assert (record["state"], record["worker"]) == ("running", owner), (task, record)
                    places[task].append(owner)
            if kind == "inbox":
                for task, outcome in zip(value[::2], value[1::2], strict=True):
                    if _tells_losses(outcome):
                        continue
                    assert f"task:{task}" not in dump, f"{task} has ended, but its record is there"
                    places[task].append(outcome)
            if kind == "task":
                assert owner in places, f"{owner} is no task of this test"
        assert {task: len(where) for task, where in places.items()} == dict.fromkeys(task_ids, 1), places
        return {task: where for task, [where] in places.items()}

    def _read(self, key: bytes) -> Any:
        kind = self.redis.type(key)
        if kind == b"hash":
            return {_text(name): _text(value) for name, value in self.redis.hgetall(key).items()}  # type: ignore[union-attr]
        if kind == b"list":
            return [_text(entry) for entry in self.redis.lrange(key, 0, -1)]
        if kind == b"set":
            return {_text(entry) for entry in self.redis.smembers(key)}  # type: ignore[union-attr]
        if kind == b"zset":
            return [(_text(member), score) for member, score in self.redis.zrange(key, 0, -1, withscores=True)]
        if kind == b"stream":
            # As one list of fields and values. Nobody would miss an inbox in which nothing is.
            entries: Any = self.redis.xrange(key)
            return [_text(part) for _, fields in entries for pair in fields.items() for part in pair] or None
        raw = self.redis.get(key) if kind == b"string" else None
        # A heartbeat may have expired since it was asked what it is.
        return None if raw is None else _text(raw)


def race(*calls: Callable[[], Any]) -> list[Any]:
    """Lets these run at the same moment, each in a thread of its own; returns their results.

    Each starts some microseconds late, drawn by chance: over some dozen rounds each comes first, and last.
    """
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        barrier.wait()
        # A sleep, not a spin: who spins holds the GIL, and so keeps the others from starting.
        time.sleep(random.random() * 200e-6)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(timeout=30) for future in [pool.submit(run, call) for call in calls]]


def _tells_losses(outcome: str) -> bool:
    return outcome.encode()[:1] == ATTEMPTS_TAG


def _text(raw: Any) -> str:
    return raw.decode("latin-1")


def _escape(raw: bytes) -> bytes:
    return b"".join(b"\\" + bytes([c]) if c in b"*?[]\\^" else bytes([c]) for c in raw)
