"""The same tasks on `ProcessPoolExecutor` and on `RushExecutor`: a table of ratios, and whether they reach their bars.

    python benchmarks/against_stdlib.py [--quick] [--workers N] [--json FILE] [--no-bars]

How it is measured:
- Each round makes a new pool of one kind, measures everything on it, ends it, and does the same with the other kind, so
  that both meet the same weather on this machine. A figure is the median of 5 rounds, with the smallest and the largest
  in brackets; a ratio is the median of the rounds' ratios, not the ratio of the medians.
- CPU time is that of the whole family of processes: this one, the workers, and for `RushExecutor` the agent and the
  private server.
- Constructor to first result: each time a new pool, of a process that has imported the package already (a server and an
  agent process are started, which does its own imports; only this process's import is not in it).
- Both kinds have their default settings. `ProcessPoolExecutor` has the platform's start method: fork on Linux before
  Python 3.14, so its workers begin with everything that this process has imported.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import gc
import json
import multiprocessing
import operator
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import psutil
import redis

import rush_executor
from rush_executor import RushExecutor
from rush_executor.testing import temporary_server

Figures = dict[str, float]


# ------------------------------------------------------------------------------------------------------------ the tasks

# By reference: a worker finds it under its name.
noop = operator.truth
sleep = time.sleep


def noop_of_this_script(value: object) -> bool:
    """Of __main__, so a `RushExecutor` has to send it by value. A forked worker has it already."""
    return bool(value)


def spin(seconds: float) -> None:
    """Uses so much CPU time: also on a busy machine, where a span on the clock would hold less work."""
    end_at = time.thread_time() + seconds
    while time.thread_time() < end_at:
        pass


# ------------------------------------------------------------------------------------------------------------ measuring


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        n_rounds: Rounds.
        n_noop: No-op tasks in a burst.
        n_ms: Tasks of 1 ms in a burst.
        n_trips: Tasks sent one by one.
        n_memory: Tasks after which the server's memory is looked at.
        idle_s: How long an idle executor is watched.
    """

    n_rounds: int = 5
    n_noop: int = 10_000
    n_ms: int = 1_000
    n_trips: int = 1_000
    n_memory: int = 100_000
    idle_s: float = 10.0


QUICK = Sizes(n_rounds=3, n_noop=4_000, n_ms=400, n_trips=300, n_memory=20_000, idle_s=3.0)
SECONDS_OF_TASK = 0.001
# Share of the CPUs that others may use before the figures are called doubtful.
QUIET = 0.1


@contextlib.contextmanager
def standard_pool(n_workers: int) -> Iterator[Executor]:
    # Ctrl-C goes to all processes of a terminal; these workers would each print a traceback.
    executor = ProcessPoolExecutor(n_workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


@contextlib.contextmanager
def rush_pool(n_workers: int) -> Iterator[Executor]:
    executor = RushExecutor(n_workers)
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


POOLS = {"stdlib": standard_pool, "rush": rush_pool}


def measure_round(pool: str, n_workers: int, sizes: Sizes) -> Figures:
    """One new pool, everything that is measured on it."""
    figures = {}
    gc.collect()
    began_at = time.perf_counter()
    with POOLS[pool](n_workers) as executor:
        executor.submit(noop, 0).result()
        figures["start_s"] = time.perf_counter() - began_at
        warm_up(executor)
        others = OthersClock()
        figures["noop_per_s"], figures["noop_cpu_us"] = burst(executor, noop, 1, sizes.n_noop)
        figures["own_noop_per_s"], figures["own_noop_cpu_us"] = burst(executor, noop_of_this_script, 1, sizes.n_noop)
        for name, fn in (("sleep", sleep), ("spin", spin)):
            per_s, _ = burst(executor, fn, SECONDS_OF_TASK, sizes.n_ms)
            figures[f"{name}_per_s"] = per_s
            figures[f"{name}_efficiency"] = per_s * SECONDS_OF_TASK / n_workers
        figures["trip_p50_us"], figures["trip_p99_us"] = round_trips(executor, sizes.n_trips)
        figures["others_share"] = others.share()
    return figures


def warm_up(executor: Executor) -> None:
    """Until every worker is there and has seen every function."""
    for fn, value in ((noop, 1), (noop_of_this_script, 1), (spin, 0.001), (sleep, 0.001)):
        wait([executor.submit(fn, value) for _ in range(200)])


def burst(executor: Executor, fn: Callable[..., object], value: float, n_tasks: int) -> tuple[float, float]:
    """Submits n tasks and waits for all of them; returns tasks per second and CPU microseconds per task."""
    cpu = FamilyClock()
    began_at = time.perf_counter()
    futures: list[Future[object]] = [executor.submit(fn, value) for _ in range(n_tasks)]
    for future in futures:
        future.result()
    seconds = time.perf_counter() - began_at
    return n_tasks / seconds, cpu.seconds() / n_tasks * 1e6


def round_trips(executor: Executor, n_tasks: int) -> tuple[float, float]:
    """Median and 99th percentile, in microseconds, of `submit` to `result` with nothing else under way."""
    times = []
    for _ in range(n_tasks):
        began_at = time.perf_counter()
        executor.submit(noop, 1).result()
        times.append(time.perf_counter() - began_at)
    times.sort()
    return times[len(times) // 2] * 1e6, times[len(times) * 99 // 100] * 1e6


class FamilyClock:
    """CPU time of this process and all its descendants, from now on.

    All of them must outlive the measurement: what a process that ended has used is then part of nobody's time.
    """

    def __init__(self) -> None:
        self._began = self._read()

    def seconds(self) -> float:
        """What was used until now."""
        now = self._read()
        gone = self._began.keys() - now.keys()
        if gone:
            raise RuntimeError(f"process {gone} ended during a measurement, and its CPU time with it")
        return sum(now.values()) - sum(self._began.values())

    def _read(self) -> dict[int, float]:
        me = psutil.Process()
        return {process.pid: cpu_time(process) for process in [me, *me.children(recursive=True)]}


class OthersClock:
    """How much of this machine's CPUs processes that are none of ours use, from now on: they spoil what is measured."""

    def __init__(self) -> None:
        self._began_at = time.perf_counter()
        self._family = FamilyClock()
        self._busy_s = self._read()

    def share(self) -> float:
        """Their share of all CPUs until now."""
        busy_s = self._read() - self._busy_s - self._family.seconds()
        return max(0.0, busy_s / (time.perf_counter() - self._began_at) / (os.cpu_count() or 1))

    def _read(self) -> float:
        times = psutil.cpu_times()
        return sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq", "steal"))


def cpu_time(process: psutil.Process) -> float:
    """CPU seconds of all threads of a process: in nanoseconds where the system has a clock for it, else in ticks."""
    clock = ctypes.c_int()
    if sys.platform == "linux" and libc().clock_getcpuclockid(process.pid, ctypes.byref(clock)) == 0:
        return time.clock_gettime(clock.value)
    times = process.cpu_times()
    return times.user + times.system


@functools.cache
def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def measure_idle(pool: str, n_workers: int, seconds: float) -> float:
    """CPU use of a pool that has nothing to do, in percent of one core."""
    with POOLS[pool](n_workers) as executor:
        warm_up(executor)
        # What was just done is put away, within about a second.
        time.sleep(2.0)
        cpu = FamilyClock()
        time.sleep(seconds)
        return cpu.seconds() / seconds * 100


def measure_server_memory(n_workers: int, n_tasks: int) -> float:
    """What a server's memory has grown by when n tasks were delivered, in MB; the executor is still open then."""
    with temporary_server() as url, redis.Redis.from_url(url) as client, RushExecutor(n_workers, url=url) as executor:

        def used_mb() -> float:
            # The last outcomes are trimmed by the next look into the inbox, at most a second later.
            time.sleep(2.0)
            return float(client.info("memory")["used_memory"]) / 1e6

        executor.submit(noop, 1).result()
        before = used_mb()
        burst(executor, noop, 1, n_tasks)
        return used_mb() - before


# ------------------------------------------------------------------------------------------------------------ the table


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: Its name.
        figure: Key in the figures.
        form: How a figure is printed.
        bar: What is asked for, of the ratio, or of the RushExecutor's own figure where `is_absolute`; None: nothing.
        goal: What is hoped for.
        is_floor: Whether more is better.
        is_absolute: See `bar`.
    """

    what: str
    figure: str
    form: str = "{:,.0f}"
    bar: float | None = None
    goal: float | None = None
    is_floor: bool = False
    is_absolute: bool = False


ROWS = [
    Row("no-op, by name: tasks/s", "noop_per_s", bar=2.5, goal=4.0, is_floor=True),
    Row("  CPU per task, us", "noop_cpu_us", "{:,.1f}", bar=0.6),
    Row("no-op of the script: tasks/s", "own_noop_per_s"),
    Row("  CPU per task, us", "own_noop_cpu_us", "{:,.1f}"),
    Row("sleep 1 ms: tasks/s", "sleep_per_s"),
    Row("  share of the ideal", "sleep_efficiency", "{:.0%}"),
    Row("spin 1 ms of CPU: tasks/s", "spin_per_s"),
    Row("  share of the ideal", "spin_efficiency", "{:.0%}"),
    Row("submit().result() p50, us", "trip_p50_us", bar=1.6, goal=1.0),
    Row("submit().result() p99, us", "trip_p99_us"),
    Row("constructor to first result, s", "start_s", "{:.3f}", bar=0.4, is_absolute=True),
    Row("server memory after the tasks, MB", "memory_mb", "{:+.2f}", bar=2.0, is_absolute=True),
    Row("idle, % of a core", "idle_percent", "{:.2f}", bar=0.5, is_absolute=True),
]


@dataclass(frozen=True)
class Spread:
    """Values of one figure, one for each round."""

    values: list[float]

    @property
    def median(self) -> float:
        """Their median."""
        return statistics.median(self.values)

    def text(self, form: str) -> str:
        """Their median, and the smallest and the largest in brackets."""
        if not self.values:
            return ""
        ends = f" ({form.format(min(self.values))} - {form.format(max(self.values))})" if len(self.values) > 1 else ""
        return form.format(self.median) + ends


def print_table(rounds: dict[str, list[Figures]]) -> dict[str, dict[str, object]]:
    """Prints the table; returns each row's verdict."""
    lines = [["what", "ProcessPoolExecutor", "RushExecutor", "ratio", "bar", "verdict"]]
    verdicts: dict[str, dict[str, object]] = {}
    for row in ROWS:
        theirs, ours = (Spread([f[row.figure] for f in rounds[p] if row.figure in f]) for p in ("stdlib", "rush"))
        ratio = Spread([b / a for a, b in zip(theirs.values, ours.values, strict=False) if a > 0])
        judged = ours if row.is_absolute else ratio
        verdict = judge(row, judged.median)
        bar = (
            "" if row.bar is None else f"{'>=' if row.is_floor else '<='} {row.bar:g}{'' if row.is_absolute else ' x'}"
        )
        lines.append([row.what, theirs.text(row.form), ours.text(row.form), ratio.text("{:.2f}"), bar, verdict])
        if row.bar is not None:
            verdicts[row.figure] = {"measured": judged.median, "bar": row.bar, "goal": row.goal, "verdict": verdict}
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        if line is lines[0]:
            print("  ".join("-" * width for width in widths))
    return verdicts


def judge(row: Row, value: float) -> str:
    if row.bar is None:
        return ""
    sign = 1 if row.is_floor else -1
    if sign * value < sign * row.bar:
        return "MISSED"
    if row.goal is None:
        return "ok"
    return "ok, and the goal" if sign * value >= sign * row.goal else f"ok; the goal is {row.goal:g} x"


def describe_machine(n_workers: int) -> dict[str, object]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "workers": n_workers,
        "start_method": multiprocessing.get_start_method(),
        "packages": {"rush-executor": rush_executor.__version__, "redis": redis.__version__},
    }


def measure(n_workers: int, sizes: Sizes) -> dict[str, list[Figures]]:
    rounds: dict[str, list[Figures]] = {"stdlib": [], "rush": []}
    for i in range(sizes.n_rounds):
        say(f"round {i + 1} of {sizes.n_rounds}")
        for pool, figures in rounds.items():
            figures.append(measure_round(pool, n_workers, sizes))
    for pool, figures in rounds.items():
        say(f"{sizes.idle_s:g} s of nothing to do: {pool}")
        figures[0]["idle_percent"] = measure_idle(pool, n_workers, sizes.idle_s)
    say(f"memory of the server after {sizes.n_memory:,} tasks")
    rounds["rush"][0]["memory_mb"] = measure_server_memory(n_workers, sizes.n_memory)
    say("")
    return rounds


def say(text: str) -> None:
    """Tells how far it is, where somebody looks."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="worker processes of each pool (2)")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller rounds: to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures of all rounds here")
    parser.add_argument("--no-bars", action="store_true", help="exit with 0 also when a bar is missed")
    options = parser.parse_args()
    sizes = QUICK if options.quick else Sizes()

    machine = describe_machine(options.workers)
    print(
        f"Python {machine['python']}, {machine['cpus']} CPUs, load {machine['load']:.1f}, {options.workers} workers, ",
        end="",
    )
    print(f"ProcessPoolExecutor by {machine['start_method']}; median (smallest - largest) of {sizes.n_rounds} rounds")
    print()
    began_at = time.perf_counter()
    rounds = measure(options.workers, sizes)
    verdicts = print_table(rounds)
    others = Spread([figures["others_share"] for pool in rounds.values() for figures in pool])
    print(
        f"\n{time.perf_counter() - began_at:.0f} s. Other processes had {others.text('{:.0%}')} of the CPUs meanwhile",
        end="",
    )
    print("." if others.median < QUIET else ": this machine was not quiet enough for good figures.")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "rounds": rounds, "bars": verdicts}, indent=1) + "\n")
    missed = [name for name, verdict in verdicts.items() if verdict["verdict"] == "MISSED"]
    if missed:
        print(f"Missed: {', '.join(missed)}")
    return 1 if missed and not options.no_bars else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted")
