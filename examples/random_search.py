"""Random search without a controller: workers draw points and evaluate them until enough have been tried.

The simplest loop that a worker can have: ask how many tasks have finished, make one, finish it. No worker waits for
another, so a slow one holds nobody up. The function is Branin's, which has three lowest points.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections import Counter

from rush_executor import Rush, RushWorker

LOWEST = 0.397887


def branin(x1: float, x2: float) -> float:
    """Branin's function, for x1 in [-5, 10] and x2 in [0, 15]."""
    bend = x2 - 5.1 * x1**2 / (4 * math.pi**2) + 5 * x1 / math.pi - 6
    return bend**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x1) + 10


def search(worker: RushWorker, n_tasks: int, duration_s: float) -> None:
    """What each worker does."""
    while worker.n_finished_tasks < n_tasks and not worker.terminated:
        xs = {"x1": random.uniform(-5, 10), "x2": random.uniform(0, 15)}
        [key] = worker.push_running_tasks([xs])
        # What is worth a search takes its time, and not always the same.
        time.sleep(random.expovariate(1 / duration_s))
        worker.finish_tasks(key, {"y": branin(**xs)})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=1000, metavar="N", help="end with so many (default: 1000)")
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="worker processes (default: 4)")
    options = parser.parse_args()
    with Rush() as rush:
        rush.start_local_workers(search, n_workers=options.workers, n_tasks=options.tasks, duration_s=0.01)
        for n, _ in enumerate(rush.iter_new_tasks(), 1):
            if n >= options.tasks:
                break
        # The others were busy when the last one of these finished: theirs come on top, one for each worker at most.
        rush.stop_workers(grace=10)

        table = rush.fetch_finished_tasks()
        best = min(table, key=lambda task: task.ys["y"])
        print(f"{len(table)} points; lowest: y = {best.ys['y']:.4f} at ({best.xs['x1']:.3f}, {best.xs['x2']:.3f})")
        print(f"of all points there are: y = {LOWEST:.4f}")
        for worker_id, n in Counter(table["worker_id"]).most_common():
            print(f"worker {worker_id[:8]}  {n:>5} points  {'#' * round(40 * n / len(table))}")
        rush.reset()


if __name__ == "__main__":
    main()
