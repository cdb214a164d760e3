"""What is measured, on every pool the same way; the results of all tasks are checked.

Workloads of one group are measured one after the other on one warm pool, but for those that need pools of their own.
Each returns figures by name; `table.py` says what they are called in words.
"""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.clocks import FamilyClock, resident_bytes
from benchmarks.pools import POOLS, Pool
from benchmarks.tasks import big_closure, big_partial, hold, noop, same, sleep, spin

__all__ = ["FULL", "GROUPS", "QUICK", "WORKLOADS", "Bench", "Figures", "Sizes", "Workload"]

Figures = dict[str, float]

SECONDS_OF_TASK: Final = 0.001
SECONDS_OF_SLEEP: Final = 0.01
N_THREADS: Final = 8
MB: Final = 1_000_000
# For a workload on one pool; whoever takes longer hangs.
DEADLINE_S: Final = 120.0


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        n_noop: No-op tasks in a burst.
        n_items: Items of a map with large chunks.
        n_ms: Tasks of 1 ms in a burst.
        n_trips: Tasks sent one by one.
        n_mb: Arrays of 1 MB.
        n_large: Arrays of 100 MB.
        n_closure: Tasks of one closure of 5 MB.
        n_starts: Pools that are made.
        depths: Tasks in the queue; the first and the last are compared.
        n_sleeping: Tasks of 10 ms for each worker.
        worker_counts: Numbers of workers for them.
        n_idle: Workers without work.
        idle_s: How long they are watched.
        n_memory: Tasks after which memory is looked at.
        settle_s: How long pools put away what they have done.
    """

    n_noop: int = 10_000
    n_items: int = 100_000
    n_ms: int = 1_000
    n_trips: int = 1_000
    n_mb: int = 200
    n_large: int = 3
    n_closure: int = 2_000
    n_starts: int = 3
    depths: tuple[int, ...] = (1_000, 10_000, 100_000)
    n_sleeping: int = 50
    worker_counts: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    n_idle: int = 64
    idle_s: float = 10.0
    n_memory: int = 100_000
    settle_s: float = 2.0


FULL = Sizes()
QUICK = Sizes(
    n_noop=2_000,
    n_items=10_000,
    n_ms=200,
    n_trips=200,
    n_mb=10,
    n_large=1,
    n_closure=20,
    n_starts=1,
    depths=(100, 1_000),
    n_sleeping=10,
    worker_counts=(2, 8),
    n_idle=8,
    idle_s=1.0,
    n_memory=2_000,
    settle_s=0.5,
)


class Bench:
    """One kind of pool under measurement.

    Args:
        name: Which.
        n_workers: Worker processes.
        sizes: How much is measured.
    """

    def __init__(self, name: str, n_workers: int, sizes: Sizes) -> None:
        self.kind = POOLS[name]
        self.n_workers = n_workers
        self.sizes = sizes
        self._stack = contextlib.ExitStack()
        self._pool: Pool | None = None

    @property
    def pool(self) -> Pool:
        """The pool that several workloads share, warm."""
        if self._pool is None:
            self._pool = self._stack.enter_context(self.warm_pool(self.n_workers))
        return self._pool

    def count(self, n: int) -> int:
        """So many tasks of a burst, or fewer for a pool that would take too long for them."""
        return max(1, int(n * self.kind.share))

    @contextlib.contextmanager
    def warm_pool(self, n_workers: int, pool: Pool | None = None) -> Iterator[Pool]:
        """A pool of its own, all of whose workers are there and have seen the functions."""
        with (pool or self.kind()).opened(n_workers) as opened:
            warm_up(opened, self.count(200 * max(1, n_workers // 2)))
            yield opened

    def close(self) -> None:
        """Ends the pool, if there is one."""
        self._stack.close()
        self._pool = None


def warm_up(pool: Pool, n: int) -> None:
    for fn, value in ((sleep, 0.001), (noop, 1), (spin, 0.001), (noop, 1)):
        pool.run(fn, [value] * n)


# ---------------------------------------------------------------------------------------------------------- small tasks


def submit_noop(bench: Bench) -> Figures:
    """Submits n tasks, waits for all of them."""
    pool, n = bench.pool, bench.count(bench.sizes.n_noop)
    gc.collect()
    cpu = FamilyClock()
    began_at = time.perf_counter()
    handles = [pool.submit(noop, i) for i in range(n)]
    submitted_at = time.perf_counter()
    results = pool.results(handles)
    seconds = time.perf_counter() - began_at
    cpu_s = cpu.by_role()
    check(results == list(range(n)))
    return {
        "noop_per_s": n / seconds,
        "noop_cpu_us": sum(cpu_s.values()) / n * 1e6,
        **{f"noop_{role}_us": spent / n * 1e6 for role, spent in cpu_s.items()},
        "noop_submit_us": (submitted_at - began_at) / n * 1e6,
    }


def submit_lambda(bench: Bench) -> Figures:
    """As `submit_noop`, each task a function that is sent by value."""
    pool, n = bench.pool, bench.count(bench.sizes.n_noop)
    factor = 3
    began_at = time.perf_counter()
    results = pool.run(lambda i: i * factor, range(n))
    seconds = time.perf_counter() - began_at
    check(results == [3 * i for i in range(n)])
    return {"lambda_per_s": n / seconds}


def map_noop(bench: Bench) -> Figures:
    pool, figures = bench.pool, {}
    for chunksize, wanted in ((1, bench.sizes.n_noop), (100, bench.sizes.n_items)):
        n = bench.count(wanted)
        # Whoever has workers of its own for map.
        pool.map(noop, range(200), chunksize)
        began_at = time.perf_counter()
        results = pool.map(noop, range(n), chunksize)
        figures[f"map_{chunksize}_per_s"] = n / (time.perf_counter() - began_at)
        check(results == list(range(n)))
    return figures


def round_trips(bench: Bench) -> Figures:
    """`submit` to `result` with nothing else under way."""
    p50, p99, cpu_us = trips(bench.pool, bench.count(bench.sizes.n_trips))
    by_role = {f"trip_{role}_us": us for role, us in cpu_us.items()}
    return {"trip_p50_us": p50, "trip_p99_us": p99, "trip_cpu_us": sum(cpu_us.values()), **by_role}


def trips(pool: Pool, n: int) -> tuple[float, float, dict[str, float]]:
    """Median and 99th percentile in microseconds, and CPU time of one by who has used it."""
    times = []
    cpu = FamilyClock()
    for i in range(n):
        began_at = time.perf_counter()
        result = pool.submit(noop, i).result()
        times.append(time.perf_counter() - began_at)
        check(result == i)
    cpu_s = cpu.by_role()
    times.sort()
    return times[n // 2] * 1e6, times[n * 99 // 100] * 1e6, {role: spent / n * 1e6 for role, spent in cpu_s.items()}


def millisecond_tasks(bench: Bench) -> Figures:
    """How much of the ideal is reached by tasks that sleep for 1 ms, and by such that compute for 1 ms."""
    figures, n = {}, bench.count(bench.sizes.n_ms)
    for name, fn in (("sleep", sleep), ("spin", spin)):
        began_at = time.perf_counter()
        results = bench.pool.run(fn, [SECONDS_OF_TASK] * n)
        seconds = time.perf_counter() - began_at
        check(results == [SECONDS_OF_TASK] * n)
        figures[f"{name}_efficiency"] = n * SECONDS_OF_TASK / seconds / bench.n_workers
    return figures


def many_threads(bench: Bench) -> Figures:
    """8 threads submit at the same time, and each waits for its own."""
    pool, n = bench.pool, bench.count(bench.sizes.n_noop) // N_THREADS
    sums: list[int] = []
    threads = [threading.Thread(target=lambda: sums.append(sum(pool.run(noop, range(n))))) for _ in range(N_THREADS)]
    began_at = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began_at
    check(sums == [sum(range(n))] * N_THREADS)
    return {"threads_per_s": N_THREADS * n / seconds}


# ----------------------------------------------------------------------------------------------------------------- data


def small_arrays(bench: Bench) -> Figures:
    """Arrays of 1 MB to a worker and back, all submitted at once; also bytes, which no pickle keeps out of band."""
    import numpy as np  # noqa: PLC0415

    figures: Figures = {}
    n = bench.sizes.n_mb
    rng = np.random.default_rng(1)
    arrays = [rng.integers(0, 255, MB, dtype=np.uint8) for _ in range(n)]
    for name, values in (("array", arrays), ("bytes", [array.tobytes() for array in arrays])):
        bench.pool.run(same, values[:2])
        began_at = time.perf_counter()
        results = bench.pool.run(same, values)
        seconds = time.perf_counter() - began_at
        check(all(bytes(a) == bytes(b) for a, b in zip(values, results, strict=True)))
        figures[f"mb_{name}_mb_per_s"] = 2 * n / seconds
    return figures


def large_values(bench: Bench) -> Figures:
    """An array, or bytes, of 100 MB to a worker and back, one after the other."""
    import numpy as np  # noqa: PLC0415

    figures: Figures = {}
    array = np.random.default_rng(2).random(100 * MB // 8)
    for name, value in (("large", array), ("large_bytes", array.tobytes())):
        bench.pool.run(same, [value])
        began_at = time.perf_counter()
        for _ in range(bench.sizes.n_large):
            [result] = bench.pool.run(same, [value])
        seconds = time.perf_counter() - began_at
        check(np.array_equal(np.frombuffer(result), array))
        figures[f"{name}_mb_per_s"] = 2 * 100 * bench.sizes.n_large / seconds
        del result
    return figures


def closure(bench: Bench) -> Figures:
    """One function that carries 5 MB, called by many tasks; one value a task."""
    big = os.urandom(5 * MB)
    n = bench.sizes.n_closure
    fn = (big_closure if bench.kind.by_value else big_partial)(big)
    began_at = time.perf_counter()
    if "submit" in bench.kind.can and "map" in bench.kind.can:
        results = bench.pool.map(fn, range(n), 1)
    else:
        results = bench.pool.run(fn, range(n))
    seconds = time.perf_counter() - began_at
    check(results == list(big[:n]))
    return {"closure_s": seconds}


# ---------------------------------------------------------------------------------------------------------------- start


def start(bench: Bench) -> Figures:
    """Constructor to first result, of a process that has imported the library already."""
    times = []
    # Imports what it imports.
    with bench.kind().opened(bench.n_workers) as pool:
        pool.run(noop, [0])
    for _ in range(bench.sizes.n_starts):
        pool = bench.kind()
        began_at = time.perf_counter()
        pool.open(bench.n_workers)
        results = pool.run(noop, [1])
        times.append(time.perf_counter() - began_at)
        check(results == [1])
        pool.close()
    return {"start_s": sorted(times)[len(times) // 2]}


# ---------------------------------------------------------------------------------------------------------------- queue


def queued(bench: Bench) -> Figures:
    """All workers held, n tasks submitted, the workers let go: how fast it empties, and what a task took of memory.

    The largest first, while this process has no memory to use again. Of the smaller ones several in a row.
    """
    figures: Figures = {}
    pool = _on_visible_server(bench)
    with bench.warm_pool(bench.n_workers, pool):
        for n in reversed(bench.sizes.depths):
            n_times = min(10, bench.sizes.depths[-1] // n)
            drained = [drain(pool, bench.n_workers, n) for _ in range(n_times)]
            figures[f"queued_{n}_per_s"] = n * n_times / sum(d.seconds for d in drained)
            if n == bench.sizes.depths[-1]:
                figures["client_bytes"] = drained[0].client_bytes
                if pool.server_url:
                    figures["server_bytes"] = drained[0].server_bytes
    first, last = (figures[f"queued_{n}_per_s"] for n in (bench.sizes.depths[0], bench.sizes.depths[-1]))
    figures["queued_ratio"] = last / first
    return figures


@contextlib.contextmanager
def _visible_server() -> Iterator[str]:
    from rush_executor.testing import temporary_server  # noqa: PLC0415

    with temporary_server() as url:
        yield url


def _on_visible_server(bench: Bench) -> Pool:
    """A pool whose server can be asked: RushExecutor's private one is known to nobody."""
    if bench.kind.name != "rush":
        return bench.kind()
    url = bench._stack.enter_context(_visible_server())  # noqa: SLF001
    return bench.kind(url)  # type: ignore[call-arg]


@dataclass(frozen=True)
class Drained:
    """What it took to empty a queue."""

    seconds: float
    client_bytes: float
    server_bytes: float


def drain(pool: Pool, n_workers: int, n: int) -> Drained:
    me = psutil.Process()
    with tempfile.TemporaryDirectory() as folder:
        holds = [pool.submit(hold, folder) for _ in range(n_workers)]
        until(lambda: len(os.listdir(folder)) == n_workers)  # noqa: PTH208
        gc.collect()
        client, server = me.memory_info().rss, server_memory(pool)
        handles = [pool.submit(noop, i) for i in range(n)]
        grown = settled(lambda: server_memory(pool), pause_s=0.05 if n <= 10_000 else 0.5)
        client_bytes, server_bytes = (me.memory_info().rss - client) / n, (grown - server) / n
        began_at = time.perf_counter()
        (Path(folder) / "go").touch()
        results = pool.results(handles)
        seconds = time.perf_counter() - began_at
        check(results == list(range(n)))
        pool.results(holds)
    return Drained(seconds, client_bytes, server_bytes)


def server_memory(pool: Pool) -> int:
    if not pool.server_url:
        return 0
    import redis  # noqa: PLC0415

    with redis.Redis.from_url(pool.server_url) as client:
        return int(client.info("memory")["used_memory"])


def settled(read: Callable[[], int], *, pause_s: float) -> int:
    """A figure, when it has stopped to grow: what was submitted may still be on its way."""
    before = -1
    while (now := read()) > before:
        before = now
        time.sleep(pause_s)
    return now


def memory(bench: Bench) -> Figures:
    """What has grown by when so many tasks were delivered."""
    pool = _on_visible_server(bench)
    with bench.warm_pool(bench.n_workers, pool):
        n = bench.sizes.n_memory
        pool.run(noop, range(n // 10))
        time.sleep(bench.sizes.settle_s)
        before, server = resident_bytes(), server_memory(pool)
        check(pool.run(noop, range(n)) == list(range(n)))
        time.sleep(bench.sizes.settle_s)
        after = resident_bytes()
        figures = {"worker_growth_mb": max((after[pid] - before[pid]) / MB for pid in after.keys() & before.keys())}
        if pool.server_url:
            figures["server_growth_mb"] = (server_memory(pool) - server) / MB
    return figures


# -------------------------------------------------------------------------------------------------------------- workers


def sleeping(bench: Bench) -> Figures:
    """More workers than CPUs, with tasks that sleep for 10 ms: how much of the ideal is reached."""
    figures = {}
    for n_workers in bench.sizes.worker_counts:
        n = bench.sizes.n_sleeping * n_workers
        with bench.kind().opened(n_workers) as pool:
            pool.run(sleep, [SECONDS_OF_SLEEP] * n_workers * 2)
            began_at = time.perf_counter()
            pool.run(sleep, [SECONDS_OF_SLEEP] * n)
            seconds = time.perf_counter() - began_at
        figures[f"workers_{n_workers}_efficiency"] = n * SECONDS_OF_SLEEP / seconds / n_workers
    return figures


def idle(bench: Bench) -> Figures:
    """CPU time of a pool that has nothing to do, with few workers and with many; a round trip with many."""
    figures = {}
    for name, n_workers in (("idle", bench.n_workers), ("many_idle", bench.sizes.n_idle)):
        with bench.warm_pool(n_workers) as pool:
            time.sleep(bench.sizes.settle_s)
            cpu = FamilyClock()
            time.sleep(bench.sizes.idle_s)
            figures[f"{name}_percent"] = cpu.seconds() / bench.sizes.idle_s * 100
            figures[f"{name}_p50_us"] = trips(pool, bench.count(bench.sizes.n_trips))[0]
    return figures


# ---------------------------------------------------------------------------------------------------------------- lists


@dataclass(frozen=True)
class Workload:
    """One thing that is measured.

    Attributes:
        run: Measures it.
        needs: What a pool must be able to do.
        group: Workloads that share a process and a pool.
        most_rounds: It takes long, or hardly varies.
    """

    run: Callable[[Bench], Figures]
    needs: frozenset[str]
    group: str
    most_rounds: int = 100


def _workload(run: Callable[[Bench], Figures], group: str, *needs: str, most_rounds: int = 100) -> Workload:
    return Workload(run, frozenset(needs), group, most_rounds)


WORKLOADS: dict[str, Workload] = {
    "submit": _workload(submit_noop, "small", "submit"),
    "lambda": _workload(submit_lambda, "small", "submit", "by_value"),
    "map": _workload(map_noop, "small", "map"),
    "trip": _workload(round_trips, "small", "submit"),
    "ms": _workload(millisecond_tasks, "small"),
    "threads": _workload(many_threads, "small", "threads"),
    "mb": _workload(small_arrays, "data", "data"),
    "large": _workload(large_values, "data", "data"),
    "closure": _workload(closure, "data", "closure", most_rounds=2),
    "start": _workload(start, "start"),
    "queued": _workload(queued, "queue", "queue", most_rounds=3),
    "memory": _workload(memory, "queue", "queue", most_rounds=1),
    "sleeping": _workload(sleeping, "workers", "workers", most_rounds=2),
    "idle": _workload(idle, "workers", "workers", most_rounds=1),
}
GROUPS: tuple[str, ...] = ("small", "data", "start", "queue", "workers")


def check(is_right: Any) -> None:
    if not is_right:
        raise RuntimeError("a pool gave a wrong result")


def until(condition: Callable[[], object]) -> None:
    end_at = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > end_at:
            raise TimeoutError("waited in vain")
        time.sleep(0.005)
