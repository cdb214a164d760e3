"""scikit-learn on joblib's backends "loky" and "rush": a table of ratios, and whether the bar is reached.

    python benchmarks/joblib_backend.py [--workers N] [--rounds N] [--only NAME] [--json FILE] [--no-bars]

How it is measured:
- A grid is searched with `GridSearchCV` in one process, on one backend and then on the other, by turns at being first.
  What another program does at that time slows down both.
- The first search on each backend starts its workers, which then import scikit-learn; it stands apart, and is one
  figure. All others find the workers there. A figure of theirs is the median, with the smallest and the largest in
  brackets; a ratio is the median of the ratios of neighbours.
- CPU time is that of this process and all its descendants: workers, agent and server.
- All searches must find the same scores: the program fails if they do not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from joblib import parallel_config
from sklearn.datasets import load_digits, load_iris
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.svm import SVC

import rush_executor.joblib  # noqa: F401 - registers the backend

BACKENDS = ("loky", "rush")
# Seconds and CPU seconds of a search.
Cost = tuple[float, float]


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


def search(backend: str, n_workers: int, grid: tuple[Any, ...]) -> tuple[Cost, np.ndarray]:
    """Searches a grid once; returns what it took, and the scores."""
    estimator, settings, x, y = grid
    cpu, began_at = cpu_time(), time.perf_counter()
    with parallel_config(backend=backend, n_jobs=n_workers):
        found = GridSearchCV(estimator, settings, cv=3).fit(x, y)
    seconds = time.perf_counter() - began_at
    return (seconds, cpu_time() - cpu), found.cv_results_["mean_test_score"]


def cpu_time() -> float:
    """CPU seconds of this process and its descendants, which all live on."""
    me = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in (me, *me.children(recursive=True)))


def measure(name: str, n_workers: int, n_rounds: int) -> dict[str, list[Cost]]:
    """By backend, what the first search took, and then each other."""
    grid = SEARCHES[name].make()
    costs: dict[str, list[Cost]] = {backend: [] for backend in BACKENDS}
    expected = None
    for i in range(n_rounds + 1):
        say(f"{SEARCHES[name].what}: {i} of {n_rounds}")
        for backend in BACKENDS if i % 2 else reversed(BACKENDS):
            cost, scores = search(backend, n_workers, grid)
            costs[backend].append(cost)
            assert expected is None or np.array_equal(scores, expected)
            expected = scores
    say("")
    return costs


# ------------------------------------------------------------------------------------------------------- the table


def print_table(figures: dict[str, dict[str, list[Cost]]]) -> bool:
    """Prints the table; returns whether all bars are reached."""
    parts: dict[str, Callable[[list[Cost]], list[float]]] = {
        "the first, s": lambda costs: [costs[0][0]],
        "each other, s": lambda costs: [seconds for seconds, _ in costs[1:]],
        "CPU time, s": lambda costs: [cpu for _, cpu in costs[1:]],
    }
    lines = [["what", "loky", "rush", "ratio", "bar", "verdict"]]
    is_reached = True
    for name, costs in figures.items():
        searched = SEARCHES[name]
        lines.append([searched.what, "", "", "", "", ""])
        for part, of in parts.items():
            loky, rush = (of(costs[backend]) for backend in BACKENDS)
            ratios = [b / a for a, b in zip(loky, rush, strict=True)]
            bar = searched.bar if part == "each other, s" else None
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
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="searches on each backend (10)")
    parser.add_argument("--only", choices=SEARCHES, action="append", help="only this search")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    parser.add_argument("--no-bars", action="store_true", help="exit with 0 also when the bar is missed")
    options = parser.parse_args()
    print(
        f"Python {platform.python_version()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, "
        f"{options.workers} workers, {options.rounds} searches on each backend\n"
    )
    figures = {name: measure(name, options.workers, options.rounds) for name in options.only or SEARCHES}
    is_reached = print_table(figures)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1))
    return 0 if is_reached or options.no_bars else 1


if __name__ == "__main__":
    sys.exit(main())
