"""A network that keeps its tasks, measured as one would measure it in R: a table, and whether each row reaches its bar.

    python benchmarks/rush_network.py [--quick] [--workers N] [--json FILE] [--no-bars]

Each row is measured in several rounds, each with a network of its own on one private server; a figure is the median,
with the smallest and the largest in brackets. The bars are what ten times the speed of rush 1.2 in R with 2 workers
would be on the same kind of machine, or as much as it takes to be of no concern.

How each is measured:
- push, work, fetch: 10,000 tasks `fun(x1, x2) -> {"y": x1 + x2}`, from `push_tasks` to the table with all of them.
- push: 10,000 tasks at once, with nobody there who would take them.
- one task: `push_tasks` of one and `wait_for_tasks`, one after the other.
- own task: `push_running_tasks` and `finish_tasks` in a worker's loop, one task at a time.
- decentralised: before each of 2,000 tasks of its own a worker reads all results; from the first start to the last end
  by the server's clock.
- fetch: a manager that has read nothing; one that has read 10,000, and nothing is new, or 10 are.
- killed worker: from SIGKILL to the moment at which its task has failed, seen by somebody who waits for it.
- logs: the same tasks, each with one record of the worker's logger, kept by the server, and not.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from rush_executor import Rush, RushWorker
from rush_executor.testing import temporary_server

Figures = dict[str, list[float]]

DEADLINE_S = 120.0
# Beyond this share of the CPUs in other hands a figure says more about them.
QUIET = 0.05

# what, unit, bar, whether more is better
ROWS: dict[str, tuple[str, str, float, bool]] = {
    "throughput": ("push, work and fetch 10,000 tasks", "tasks/s", 12_000, True),
    "push_us": ("push_tasks in one batch, per task", "us", 10, False),
    "trip_ms": ("one task: push and wait, p50", "ms", 0.4, False),
    "own_us": ("own task: push_running_tasks + finish_tasks", "us", 130, False),
    "decentralised": ("decentralised, all results read before each task", "tasks/s", 4_080, True),
    "fetch_us": ("first fetch of 10,000 tasks, per task", "us", 12, False),
    "fetch_none_ms": ("fetch with 10,000 cached, nothing new", "ms", 0.1, False),
    "fetch_ten_ms": ("fetch with 10,000 cached, 10 new", "ms", 0.3, False),
    "killed_s": ("worker killed, until its task has failed", "s", 0.3, False),
    "logs": ("throughput with log records kept, against none", "x", 0.8, True),
}


# ------------------------------------------------------------------------------------------------------ what workers do


def add(x1: float, x2: float) -> dict[str, float]:
    return {"y": x1 + x2}


def add_and_tell(x1: float, x2: float) -> dict[str, float]:
    logging.getLogger("benchmark").info("adding %s and %s", x1, x2)
    return {"y": x1 + x2}


def sleep_long(x: float) -> dict[str, float]:
    time.sleep(600)
    return {"y": x}


def own_tasks(worker: RushWorker, n: int) -> None:
    """One task of its own after the other; the spans are the results."""
    spans = []
    for i in range(n):
        started_at = time.perf_counter()
        keys = worker.push_running_tasks([{"x": i}])
        worker.finish_tasks(keys, [{"y": i}])
        spans.append(time.perf_counter() - started_at)
    worker.push_finished_tasks([{"summary": True}], [{"median_us": statistics.median(spans) * 1e6}])


def read_all_then_work(worker: RushWorker, n: int) -> None:
    """Reads all results before each task."""
    while not worker.terminated:
        table = worker.fetch_finished_tasks()
        if len(table) >= n:
            return
        keys = worker.push_running_tasks([{"x": len(table)}])
        worker.finish_tasks(keys, [{"y": 1.0}])


# ------------------------------------------------------------------------------------------------------------ measuring


def measure_round(url: str, n_workers: int, n_tasks: int, n_trips: int, figures: Figures) -> None:
    rows = [{"x1": float(i), "x2": 1.0} for i in range(n_tasks)]
    measure_centralised(url, n_workers, rows, n_trips, figures)
    measure_push(url, rows, figures)
    measure_own_tasks(url, n_trips, figures)
    measure_decentralised(url, n_workers, n_tasks // 5, figures)
    measure_kill(url, n_workers, figures)
    with_logs, without = (measure_logs(url, n_workers, rows, levels) for levels in ({"benchmark": "INFO"}, None))
    note(figures, "logs", with_logs / without)


def measure_centralised(url: str, n_workers: int, rows: list[dict[str, float]], n_trips: int, figures: Figures) -> None:
    with network(url) as rush:
        rush.start_local_workers(fun=add, n_workers=n_workers)
        rush.wait_for_workers(timeout=DEADLINE_S)
        warm = rush.push_tasks(rows[:200])
        rush.wait_for_tasks(warm, timeout=DEADLINE_S)
        rush.fetch_finished_tasks()
        began_at = time.perf_counter()
        keys = rush.push_tasks(rows)
        assert rush.wait_for_tasks(keys, timeout=DEADLINE_S)
        table = rush.fetch_finished_tasks()
        spent_s = time.perf_counter() - began_at
        assert sum(table["y"]) == sum(table["x1"]) + len(table)
        note(figures, "throughput", len(rows) / spent_s)
        note(figures, "trip_ms", statistics.median(spans(n_trips, lambda: one_trip(rush))) * 1e3)
        rush.stop_workers()

        with Rush(rush.network_id, url) as other:
            began_at = time.perf_counter()
            n_read = len(other.fetch_finished_tasks())
            note(figures, "fetch_us", (time.perf_counter() - began_at) / n_read * 1e6)
            note(figures, "fetch_none_ms", statistics.median(spans(200, other.fetch_finished_tasks)) * 1e3)
            ten = []
            for _ in range(50):
                rush.push_finished_tasks(rows[:10], [{"y": 1.0}] * 10)
                ten += spans(1, other.fetch_finished_tasks)
            assert len(other.fetch_finished_tasks()) == n_read + 500
            note(figures, "fetch_ten_ms", statistics.median(ten) * 1e3)


def measure_push(url: str, rows: list[dict[str, float]], figures: Figures) -> None:
    with network(url) as rush:
        rush.push_tasks(rows[:10])
        note(figures, "push_us", spans(1, lambda: rush.push_tasks(rows))[0] / len(rows) * 1e6)


def measure_own_tasks(url: str, n_trips: int, figures: Figures) -> None:
    with network(url) as rush:
        [worker] = rush.start_local_workers(own_tasks, n_workers=1, n=n_trips)
        until(lambda: rush.terminated_worker_ids == [worker])
        [summary] = [row for row in rush.fetch_finished_tasks() if "summary" in row.xs]
        note(figures, "own_us", summary.ys["median_us"])


def measure_decentralised(url: str, n_workers: int, n_tasks: int, figures: Figures) -> None:
    with network(url) as rush:
        ids = rush.start_local_workers(read_all_then_work, n_workers=n_workers, n=n_tasks)
        until(lambda: len(rush.terminated_worker_ids) == len(ids))
        table = rush.fetch_finished_tasks()
        note(figures, "decentralised", len(table) / (max(table["ended_at"]) - min(table["started_at"])))


def measure_kill(url: str, n_workers: int, figures: Figures) -> None:
    with network(url) as rush:
        rush.start_local_workers(fun=sleep_long, n_workers=n_workers)
        rush.wait_for_workers(timeout=DEADLINE_S)
        [key] = rush.push_tasks([{"x": 1.0}])
        until(lambda: rush.n_running_tasks == 1)
        [row] = rush.fetch_running_tasks()
        # In the task by now, and not between its claim and its start: then another worker would run it.
        time.sleep(0.1)
        pid = next(worker.pid for worker in rush.worker_info if worker.worker_id == row.worker_id)
        began_at = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        assert rush.wait_for_tasks(key, timeout=DEADLINE_S)
        note(figures, "killed_s", time.perf_counter() - began_at)
        assert rush.n_failed_tasks == 1
        rush.stop_workers("kill")


def measure_logs(url: str, n_workers: int, rows: list[dict[str, float]], levels: dict[str, str] | None) -> float:
    with network(url) as rush:
        rush.start_local_workers(fun=add_and_tell, n_workers=n_workers, log_levels=levels)
        rush.wait_for_workers(timeout=DEADLINE_S)
        began_at = time.perf_counter()
        keys = rush.push_tasks(rows)
        assert rush.wait_for_tasks(keys, timeout=DEADLINE_S)
        return len(rows) / (time.perf_counter() - began_at)


class network:  # noqa: N801 - a context manager, used like a function
    """A `Rush` whose network is deleted at the end."""

    def __init__(self, url: str) -> None:
        self.rush = Rush(url=url)

    def __enter__(self) -> Rush:
        return self.rush

    def __exit__(self, *_: object) -> None:
        self.rush.reset()
        self.rush.close()


def one_trip(rush: Rush) -> None:
    assert rush.wait_for_tasks(rush.push_tasks([{"x1": 1.0, "x2": 2.0}]), timeout=DEADLINE_S)


def spans(n: int, call: Callable[[], object]) -> list[float]:
    found = []
    for _ in range(n):
        began_at = time.perf_counter()
        call()
        found.append(time.perf_counter() - began_at)
    return found


def until(condition: Callable[[], object]) -> None:
    end_at = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > end_at:
            raise TimeoutError("waited in vain")
        time.sleep(0.005)


def note(figures: Figures, name: str, value: float) -> None:
    figures.setdefault(name, []).append(value)


# ------------------------------------------------------------------------------------------------------------- printing


def print_table(figures: Figures) -> list[str]:
    """Prints the rows; returns those that miss their bar."""
    missed = []
    print(f"{'what':52} {'measured':>34}   {'bar':>12}")
    for name, (what, unit, bar, is_floor) in ROWS.items():
        values = figures[name]
        median = statistics.median(values)
        is_ok = median >= bar if is_floor else median <= bar
        if not is_ok:
            missed.append(what)
        measured = f"{number(median)} {unit} ({number(min(values))} - {number(max(values))})"
        print(f"{what:52} {measured:>34}   {'>=' if is_floor else '<='} {number(bar):>6} {'ok' if is_ok else 'MISSED'}")
    return missed


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def share_of_others(before: Any, after: Any, own_s: float) -> float:
    """Which share of the CPUs others have had: all that was busy, less what we know of."""
    fields = ("user", "nice", "system", "softirq", "irq")
    busy_s = sum(getattr(after, name, 0.0) - getattr(before, name, 0.0) for name in fields)
    all_s = sum(after) - sum(before)
    return max(0.0, busy_s - own_s) / all_s if all_s else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="workers (2)")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller rounds: to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures of all rounds here")
    parser.add_argument("--no-bars", action="store_true", help="exit with 0 also when a bar is missed")
    options = parser.parse_args()
    n_rounds, n_tasks, n_trips = (1, 500, 50) if options.quick else (5, 10_000, 1_000)

    print(
        f"Python {platform.python_version()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {options.workers} "
        f"workers; median (smallest - largest) of {n_rounds} rounds\n"
    )
    figures: Figures = {}
    before = psutil.cpu_times()
    with temporary_server() as url:
        for i in range(n_rounds):
            if sys.stderr.isatty():
                print(f"\r\033[Kround {i + 1} of {n_rounds}", end="", file=sys.stderr, flush=True)
            measure_round(url, options.workers, n_tasks, n_trips, figures)
        own_s = family_cpu_s()
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    missed = print_table(figures)
    others = share_of_others(before, psutil.cpu_times(), own_s)
    print(f"\nOther processes had {others:.0%} of the CPUs meanwhile", end="")
    print("." if others < QUIET else ": this machine was not quiet enough for good figures.")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if missed and not options.no_bars else 0


def family_cpu_s() -> float:
    """CPU seconds of this process, of its children that are there, and of those that have ended."""
    own = psutil.Process().cpu_times()
    there = sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children(recursive=True))
    return float(own.user + own.system + own.children_user + own.children_system + there)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted")
