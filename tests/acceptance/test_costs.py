"""What a task costs with real workers, counted, not timed: a busy machine makes it slower, not more expensive.

A figure that goes up is a change of design: explain it, and then write it here. What each transition costs is in
`tests/integration/test_costs.py`; here is what comes of batches, of what is sent in one packet, and of what goes
unanswered.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from rush_executor import RushExecutor

# What is done by the clock, whatever the tasks: idle workers and clients look, inboxes are trimmed, agents live.
PER_SECOND = 30
BYTES_PER_SECOND = 10_000


class Meter:
    """What the server has done since."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._before = self._read()
        self._began_at = time.monotonic()

    def check(self, n: int, **bounds: float) -> None:
        """Asserts that for each of n tasks no more was done than these."""
        now, seconds = self._read(), time.monotonic() - self._began_at
        spent = {name: now.get(name, 0) - self._before.get(name, 0) for name in bounds}
        slack = {name: seconds * (BYTES_PER_SECOND if "bytes" in name else PER_SECOND) for name in bounds}
        over = {name: count for name, count in spent.items() if count > bounds[name] * n + slack[name]}
        told = {name: round(count / n, 3) for name, count in spent.items()}
        assert not over, f"for each of {n} tasks, in {seconds:.1f} s: {told}"

    def _read(self) -> dict[str, int]:
        stats: Any = self._client.info("commandstats")
        counts = {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()}
        traffic: Any = self._client.info("stats")
        return {
            **counts,
            "commands": sum(counts.values()),
            "packets_in": traffic["total_reads_processed"],
            "packets_out": traffic["total_writes_processed"],
            "bytes_in": traffic["total_net_input_bytes"],
            "bytes_out": traffic["total_net_output_bytes"],
        }


@pytest.fixture
def client(server_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server_url) as client:
        yield client


def test_one_by_one(lone: RushExecutor, client: redis.Redis) -> None:
    """Three packets to the server, and two back: the push, the outcome with the next wait, the look into the inbox."""
    for i in range(20):
        assert lone.submit(abs, -i).result() == i
    n = 200
    meter = Meter(client)
    for i in range(n):
        assert lone.submit(abs, -i).result() == i
    meter.check(n, evalsha=2.02, commands=27.5, packets_in=3.1, packets_out=2.1, bytes_in=1410, bytes_out=295)


def test_a_burst(lone: RushExecutor, client: redis.Redis) -> None:
    """Scripts and packets are shared by many tasks.

    Five commands are a task's own. On a busy machine the worker gives back what it has claimed and could not start in
    time, which costs three more each time.
    """
    n = 3000
    for _ in range(2):
        assert [f.result() for f in [lone.submit(abs, -i) for i in range(n)]] == list(range(n))
    meter = Meter(client)
    assert [f.result() for f in [lone.submit(abs, -i) for i in range(n)]] == list(range(n))
    meter.check(n, evalsha=0.1, zadd=0.1, xadd=0.1, hset=4, commands=12, packets_in=0.15, packets_out=0.15)
    meter.check(n, bytes_in=250, bytes_out=250)
