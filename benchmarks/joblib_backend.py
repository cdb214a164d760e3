"""scikit-learn on joblib's backends "loky" and "rush": a table of ratios, and whether the bar is reached.

    python benchmarks/joblib_backend.py [--workers N] [--rounds N] [--searches N] [--json FILE] [--no-bars]

How it is measured:
- Each figure comes from a new process for each backend, which searches a grid with `GridSearchCV` several times: the
  first search starts the workers, the others find them. What counts is the sum, so the start counts once.
- The backends take turns, and take turns at being first; a round is one process of each. A figure is the median of the
  rounds, with the smallest and the largest in brackets; a ratio is the median of the rounds' ratios.
- Importing scikit-learn and making the data are not measured in the process that calls `fit`; in the workers they are,
  as part of the first search.
- Both backends must find the same: the process fails if a search gives other scores than the one before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from joblib import parallel_config
from joblib.externals.loky import get_reusable_executor
from sklearn.datasets import load_digits, load_iris
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.svm import SVC

import rush_executor.joblib

BACKENDS = ("loky", "rush")
Figures = list[float]
# By search and backend, one for each round.
Rounds = dict[str, dict[str, list[Figures]]]


# ----------------------------------------------------------------------------------------------------- the searches


def svc() -> tuple[Any, dict[str, list[Any]], Any, Any]:
    """Fits of about a tenth of a second: support vectors on handwritten digits."""
    x, y = load_digits(return_X_y=True)
    return SVC(), {"C": [0.1, 1, 10, 100], "gamma": [1e-4, 3e-4, 1e-3, 3e-3]}, x, y


def short() -> tuple[Any, dict[str, list[Any]], Any, Any]:
    """Fits of some milliseconds: what counts is what is spent on each of them."""
    x, y = load_iris(return_X_y=True)
    return GaussianNB(), {"var_smoothing": [10.0**-n for n in range(100)]}, x, y


def large() -> tuple[Any, dict[str, list[Any]], Any, Any]:
    """Every fit gets an array of 40 MB."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(50_000, 100))
    return Ridge(), {"alpha": [10.0**n for n in range(-4, 4)]}, x, x @ generator.normal(size=100)


@dataclass(frozen=True)
class Search:
    """A grid to be searched.

    Attributes:
        what: Its name in the table.
        make: Estimator, grid, X and y.
        bar: What is asked of the ratio; None: nothing.
    """

    what: str
    make: Callable[[], tuple[Any, dict[str, list[Any]], Any, Any]]
    bar: float | None = None


SEARCHES = {
    "svc": Search("48 fits of 0.1 s", svc, bar=1.05),
    "short": Search("300 fits of 2 ms", short),
    "large": Search("24 fits, X of 40 MB", large),
}


def search(name: str, backend: str, n_workers: int, n_searches: int) -> Figures:
    """Searches a grid again and again in this process.

    Returns:
        The seconds that each search took, and last the CPU time of this process and its workers.
    """
    estimator, grid, x, y = SEARCHES[name].make()
    seconds: list[float] = []
    first = None
    before = cpu_time()
    for _ in range(n_searches):
        began_at = time.perf_counter()
        with parallel_config(backend=backend, n_jobs=n_workers):
            found = GridSearchCV(estimator, grid, cv=3).fit(x, y)
        seconds.append(time.perf_counter() - began_at)
        scores = found.cv_results_["mean_test_score"]
        assert first is None or np.array_equal(scores, first)
        first = scores
    # Their time is this process's when they have ended.
    get_reusable_executor().shutdown() if backend == "loky" else rush_executor.joblib.shutdown()
    return [*seconds, cpu_time() - before]


def cpu_time() -> float:
    """CPU seconds of this process and of those of its descendants that have ended."""
    return sum(sum(resource.getrusage(whose)[:2]) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


# ------------------------------------------------------------------------------------------------------ the rounds


def run(name: str, backend: str, n_workers: int, n_searches: int) -> Figures:
    """`search` in a process of its own."""
    options = ["--search", name, "--backend", backend, "--workers", str(n_workers), "--searches", str(n_searches)]
    done = subprocess.run([sys.executable, __file__, *options], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} on {backend} failed:\n{done.stderr}")
    figures: Figures = json.loads(done.stdout)
    return figures


def measure(n_workers: int, n_rounds: int, n_searches: int) -> Rounds:
    """The figures of all rounds."""
    figures: Rounds = {name: {backend: [] for backend in BACKENDS} for name in SEARCHES}
    for i in range(n_rounds):
        for name, by_backend in figures.items():
            say(f"round {i + 1} of {n_rounds}: {SEARCHES[name].what}")
            for backend in BACKENDS if i % 2 else reversed(BACKENDS):
                by_backend[backend].append(run(name, backend, n_workers, n_searches))
    say("")
    return figures


def print_table(figures: Rounds) -> bool:
    """Prints the table; returns whether all bars are reached."""
    total = "all searches, s"
    parts: dict[str, Callable[[Figures], float]] = {
        total: lambda f: sum(f[:-1]),
        "  the first": lambda f: f[0],
        "  each other": lambda f: statistics.mean(f[1:-1]),
        "CPU time, s": lambda f: f[-1],
    }
    lines = [["what", "loky", "rush", "ratio", "bar", "verdict"]]
    is_reached = True
    for name, by_backend in figures.items():
        searched = SEARCHES[name]
        lines.append([searched.what, "", "", "", "", ""])
        for part, of in parts.items():
            loky, rush = ([of(each) for each in by_backend[backend]] for backend in BACKENDS)
            ratios = [b / a for a, b in zip(loky, rush, strict=True)]
            bar = searched.bar if part == total else None
            verdict = ""
            if bar is not None:
                is_ok = statistics.median(ratios) <= bar
                verdict = "ok" if is_ok else "MISSED"
                is_reached = is_reached and is_ok
            lines.append([f"  {part}", *map(spread, (loky, rush, ratios)), f"<= {bar:g} x" if bar else "", verdict])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        if line is lines[0]:
            print("  ".join("-" * width for width in widths))
    return is_reached


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} - {max(values):.2f})"


def say(text: str) -> None:
    """Tells how far it is, where somebody looks."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="worker processes of each backend (2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    parser.add_argument("--no-bars", action="store_true", help="exit with 0 also when the bar is missed")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="rounds (7)")
    parser.add_argument("--searches", type=int, default=4, metavar="N", help="searches in each process (4)")
    parser.add_argument("--search", choices=SEARCHES, help=argparse.SUPPRESS)
    parser.add_argument("--backend", choices=BACKENDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.search is not None:
        print(json.dumps(search(options.search, options.backend, options.workers, options.searches)))
        return 0
    print(
        f"Python {platform.python_version()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, "
        f"{options.workers} workers, {options.searches} searches in each process\n"
    )
    figures = measure(options.workers, options.rounds, options.searches)
    is_reached = print_table(figures)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1))
    return 0 if is_reached or options.no_bars else 1


if __name__ == "__main__":
    sys.exit(main())
