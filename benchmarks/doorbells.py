"""How does a waiting client learn that its result is there, and a waiting worker that there is a task?

One task at a time goes from this process to a worker process, and its result comes back, over the same server and with
the same redis-py connections. Queue and inbox are lists; what differs is the way of waiting. Without task records,
owners and attempts, which cost the same in all ways. (The inbox of the ledger is a stream: there XREAD BLOCK is the
client's bell and the reading in one command. It is not among the ways here.)

A client waits
- by notification: one connection is subscribed to the keyspace events of the inbox (RESP2); when one comes, the inbox
  is trimmed and read over a second connection. A push from the server, then a trip.
- at a bell: BLPOP of a list that holds at most one token. The commands that trim and read the inbox lie behind it in
  the same packet, so the server answers them as soon as the bell rings.

A worker waits at a bell and claims
- in a second trip, when the bell's answer is there;
- or in the same packet, behind the bell.

See docs/decisions/ for what was made of it.

    python benchmarks/doorbells.py [--trips N]
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import multiprocessing
import os
import platform
import signal
import statistics
import sys
import time
from typing import Any, Protocol

import hiredis
import redis

from rush_executor.testing import temporary_server

N_ROUNDS = 5
N_WARM_UP = 200
CLIENTS = ("notification", "bell")
CLAIMS = ("second trip", "same packet")

# Append to a list, and see to it that one token lies in its bell.
PUT = (
    "redis.call('RPUSH', KEYS[1], ARGV[1]) if redis.call('LLEN', KEYS[2]) == 0 then redis.call('RPUSH', KEYS[2], 1) end"
)
# Nobody waits at the bell of a client that is notified.
PUT_SILENTLY = "redis.call('RPUSH', KEYS[1], ARGV[1])"
CLAIM = "return redis.call('LPOP', KEYS[1])"
TRIM = "redis.call('LTRIM', KEYS[1], ARGV[1], -1)"

pack = hiredis.pack_command


class Line:
    """A connection of redis-py, spoken to in packed bytes."""

    def __init__(self, url: str) -> None:
        self._connection = redis.ConnectionPool.from_url(url, protocol=2, socket_timeout=None).make_connection()

    def send(self, *commands: bytes) -> None:
        """Sends commands in one packet."""
        self._connection.send_packed_command([b"".join(commands)], check_health=False)

    def read(self) -> Any:
        """Waits for one reply, or one message."""
        return self._connection.read_response(disable_decoding=True)

    def call(self, *commands: bytes) -> list[Any]:
        """Sends commands in one packet and waits for their replies."""
        self.send(*commands)
        return [self.read() for _ in commands]


def script(text: str, *keys: str, arg: str | bytes | int = "") -> bytes:
    return pack(("EVALSHA", hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), len(keys), *keys, arg))


# ---------------------------------------------------------------------------------------------- in the worker's process


def work(url: str, client: str, claiming: str) -> None:
    """Claims, hands back what it has claimed, and waits for the next, until it is ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the client, which ends this process
    line = Line(url)
    put = PUT if client == "bell" else PUT_SILENTLY
    wait, claim = pack(("BLPOP", "bell", "0")), script(CLAIM, "queue")
    commands = [wait]
    while True:
        if claiming == "second trip":
            line.call(*commands)
            task = line.call(claim)[-1]
        else:
            task = line.call(*commands, claim)[-1]
        commands = [script(put, "inbox", "client_bell", arg=task), wait]


# ---------------------------------------------------------------------------------------------- in the client's process


class Inbox(Protocol):
    """A way of waiting for outcomes."""

    def begin(self) -> None:
        """Begins to wait."""

    def end(self) -> list[bytes]:
        """Returns the outcomes, when there are any."""


class NotifiedInbox:
    """Waits for an event, then looks over a second connection."""

    def __init__(self, url: str) -> None:
        self._subscribed, self._line = Line(url), Line(url)
        self._subscribed.call(pack(("SUBSCRIBE", "__keyspace@0__:inbox")))
        self._n_read = 0

    def begin(self) -> None:
        """It is subscribed all the time."""

    def end(self) -> list[bytes]:
        """Returns the outcomes, when there are any."""
        # Trimming is an event too.
        while self._subscribed.read()[2] != b"rpush":
            pass
        outcomes: list[bytes] = self._line.call(
            script(TRIM, "inbox", arg=self._n_read), pack(("LRANGE", "inbox", "0", "-1"))
        )[-1]
        self._n_read = len(outcomes)
        return outcomes


class BellInbox:
    """Waits and looks in one packet."""

    def __init__(self, url: str) -> None:
        self._line = Line(url)
        self._n_read = 0

    def begin(self) -> None:
        """Begins to wait."""
        self._line.send(
            pack(("BLPOP", "client_bell", "0")),
            script(TRIM, "inbox", arg=self._n_read),
            pack(("LRANGE", "inbox", "0", "-1")),
        )

    def end(self) -> list[bytes]:
        """Returns the outcomes, when there are any."""
        self._line.read()
        self._line.read()
        outcomes: list[bytes] = self._line.read()
        self._n_read = len(outcomes)
        return outcomes


def measure(url: str, client: str, claiming: str, n_trips: int) -> tuple[float, float]:
    """Median and 99th percentile of a round trip, in microseconds."""
    line = Line(url)
    line.call(pack(("FLUSHALL",)), *(pack(("SCRIPT", "LOAD", text)) for text in (PUT, PUT_SILENTLY, CLAIM, TRIM)))
    inbox: Inbox = BellInbox(url) if client == "bell" else NotifiedInbox(url)
    worker = multiprocessing.Process(target=work, args=(url, client, claiming), daemon=True)
    worker.start()
    times = []
    try:
        for number in range(N_WARM_UP + n_trips):
            task = b"%d" % number
            inbox.begin()
            began_at = time.perf_counter()
            line.call(script(PUT, "queue", "bell", arg=task))
            outcomes = inbox.end()
            times.append(time.perf_counter() - began_at)
            assert outcomes == [task]
    finally:
        worker.terminate()
        worker.join()
    times = sorted(times[N_WARM_UP:])
    return times[n_trips // 2] * 1e6, times[n_trips * 99 // 100] * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trips", type=int, default=2000, metavar="N", help="round trips in each of the rounds (2000)")
    n_trips = parser.parse_args().trips
    ways = list(itertools.product(CLIENTS, CLAIMS))
    figures: dict[tuple[str, str], list[tuple[float, float]]] = {way: [] for way in ways}
    with temporary_server() as url:
        # On for all ways: others may want to watch.
        Line(url).call(pack(("CONFIG", "SET", "notify-keyspace-events", "Klx")))
        for _ in range(N_ROUNDS):
            for way in ways:
                figures[way].append(measure(url, *way, n_trips))
    print(f"Python {platform.python_version()}, redis-py {redis.__version__}, {os.cpu_count()} CPUs, ", end="")
    print(f"load {os.getloadavg()[0]:.1f}; microseconds of a round trip, ", end="")
    print(f"median (smallest - largest) of {N_ROUNDS} rounds of {n_trips}\n")
    print(f"{'client waits by':<16}{'worker claims in':<18}{'p50':<20}{'p99':<22}p50 against the first")
    first = [p50 for p50, _ in figures[ways[0]]]
    for (client, claiming), rounds in figures.items():
        cells = [f"{statistics.median(v):.0f} ({min(v):.0f} - {max(v):.0f})" for v in zip(*rounds, strict=True)]
        ratio = statistics.median(ours / theirs for (ours, _), theirs in zip(rounds, first, strict=True))
        print(f"{client:<16}{claiming:<18}{cells[0]:<20}{cells[1]:<22}{ratio:.2f}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
