"""The same tasks on `RushExecutor` and on other pools: tables of figures, ratios and bars, and a file with all of them.

    python -m benchmarks [--quick] [--only WORKLOAD,...] [--against POOL,...] [--rounds N] [--workers N]
                         [--json FILE] [--no-bars]

How it is measured:
- Each pool is measured in a process of its own, which imports nothing but that pool's library. Workloads that belong
  together are measured on one pool, one pool after the other, and all that again in each round: so they meet the same
  weather on this machine. Every pool has its default settings and the same number of workers, and is warm.
- A figure is the median of the rounds, with the smallest and the largest in brackets; a ratio is the median of the
  rounds' ratios, not the ratio of the medians.
- CPU time is that of the whole family of processes: the client, the workers, agents, and the server.
- Every result is checked.

See README.md in this folder for how to read the tables.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import publish
from benchmarks.pools import POOLS, is_installed
from benchmarks.table import render, verdicts
from benchmarks.workloads import DEADLINE_S, FULL, GROUPS, WORKLOADS

__all__ = ["main"]

# Those that `--quick` compares; all others are slower to start than it may take.
QUICK_POOLS = ("rush", "ppe", "floor")
N_ROUNDS = 5
# Share of the CPUs that others may use before the figures are called doubtful.
QUIET = 0.1


def main() -> int:
    options = parse()
    pools = [name for name in POOLS if name in options.against and is_installed(name)]
    for name in options.against:
        if not is_installed(name):
            print(f"{name}: not installed, left out (pip install {POOLS[name].package})")
    machine = describe_machine(options.workers, pools)
    print(
        f"Python {machine['python']}, {machine['cpus']} CPUs, load {machine['load']:.1f}, {options.workers} workers, "
        f"ppe by {machine['start_method']}; median (smallest - largest) of {options.rounds} rounds\n"
    )
    began_at = time.perf_counter()
    run = measure_all(pools, options)
    print(render(run.figures))
    print("\n* the best of the pools; the floor keeps none of the promises that a pool makes (see README.md)")
    if options.quick:
        print("Sizes are smaller than the names of the rows say: this shows that it works, not how fast.")
    others = statistics.median(run.others)
    print(f"{time.perf_counter() - began_at:.0f} s. Other processes had {others:.0%} of the CPUs meanwhile", end="")
    print("." if others < QUIET else ": this machine was not quiet enough for good figures.")
    for line in run.failed:
        print(f"failed: {line}")
    told = verdicts(run.figures)
    missed = [verdict for verdict in told if not verdict.is_reached]
    if missed:
        print(f"Missed: {', '.join(verdict.row.what.strip() for verdict in missed)}")
    result = {
        "machine": machine,
        "others": others,
        "is_quick": options.quick,
        "rounds": run.figures,
        "bars": {f"{v.row.figure} {v.bar.against}".strip(): [v.spread.median, v.text] for v in told},
        "failed": run.failed,
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.publish:
        publish.publish(result)
    ours_failed = any(line.startswith("rush:") for line in run.failed)
    return 1 if (missed and not options.no_bars) or ours_failed else 0


class Run:
    """What was measured: figures of each pool and round, what failed, and the share of the CPUs that others had."""

    def __init__(self, pools: Sequence[str], n_rounds: int) -> None:
        self.figures: dict[str, list[dict[str, float]]] = {name: [{} for _ in range(n_rounds)] for name in pools}
        self.failed: list[str] = []
        self.others: list[float] = []


def measure_all(pools: Sequence[str], options: argparse.Namespace) -> Run:
    run = Run(pools, options.rounds)
    for number, group, name in itertools.product(range(options.rounds), GROUPS, pools):
        chosen = [key for key in workloads_for(name, options.only, number) if WORKLOADS[key].group == group]
        if chosen:
            say(f"round {number + 1} of {options.rounds}: {name}: {', '.join(chosen)}")
            told = measure(name, chosen, is_quick=options.quick, n_workers=options.workers)
            run.figures[name][number].update(told["figures"])
            run.failed += [f"{name}: {key}: {text}" for key, text in told["failed"].items()]
            run.others.append(told["others"])
    say("")
    return run


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small, one round, and few pools: to see that it works")
    parser.add_argument("--only", type=names(WORKLOADS), metavar="WORKLOAD,...", help=", ".join(WORKLOADS))
    parser.add_argument("--against", type=names(POOLS), metavar="POOL,...", help=", ".join(POOLS))
    parser.add_argument("--rounds", type=int, metavar="N", help=f"rounds ({N_ROUNDS}; with --quick 1)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="worker processes of each pool (2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures of all rounds here")
    parser.add_argument("--publish", action="store_true", help="put the figures into the tables of the documentation")
    parser.add_argument("--no-bars", action="store_true", help="exit with 0 also when a bar is missed")
    options = parser.parse_args()
    if options.publish and options.quick:
        parser.error("--publish is for figures of a full run")
    options.rounds = options.rounds or (1 if options.quick else N_ROUNDS)
    options.only = options.only or list(WORKLOADS)
    options.against = list(options.against or (QUICK_POOLS if options.quick else POOLS))
    if "rush" not in options.against:
        options.against.insert(0, "rush")
    return options


def names(known: Iterable[str]) -> Any:
    """A parser of names with commas between them."""

    def parse_names(text: str) -> list[str]:
        unknown = [name for name in text.split(",") if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: none of {', '.join(known)}")
        return text.split(",")

    return parse_names


def workloads_for(pool: str, chosen: Sequence[str], number: int) -> list[str]:
    """What is measured on a pool in the n-th round."""
    kind = POOLS[pool]
    can = kind.can | ({"by_value"} if kind.by_value else frozenset())
    return [key for key in chosen if WORKLOADS[key].needs <= can and number < WORKLOADS[key].most_rounds]


def measure(pool: str, chosen: Sequence[str], *, is_quick: bool, n_workers: int) -> dict[str, Any]:
    """Has workloads measured on one pool by a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "benchmarks.measure", pool, ",".join(chosen)]
        command += ["quick" if is_quick else "full", str(n_workers), str(out)]
        with log.open("wb") as file:
            # A group of its own: a pool that hangs is ended with all its workers.
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, process_group=0)
            try:
                process.wait((0.2 if is_quick else 1.0) * DEADLINE_S * len(chosen))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise
        if out.exists():
            told: dict[str, Any] = json.loads(out.read_text())
        else:
            text = f"exit code {process.returncode}"
            told = {"figures": {}, "failed": dict.fromkeys(chosen, text), "others": 0.0, "seconds": {}}
        if told["failed"]:
            say("")
            print(log.read_text(errors="replace")[-2000:], file=sys.stderr)
        return told


def describe_machine(n_workers: int, pools: Sequence[str]) -> dict[str, Any]:
    versions = {}
    for package in ("rush-executor", "redis", *(POOLS[name].package for name in pools)):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "workers": n_workers,
        "start_method": multiprocessing.get_start_method(),
        "packages": versions,
        "sizes": str(FULL),
    }


def say(text: str) -> None:
    """Tells how far it is, where somebody looks."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted")
