"""A network with nobody in charge: four workers make tasks of their own, and build on what the others have found.

All look for the lowest point of a valley. Each worker reads what is new, takes the best point that anybody knows, tries
another one nearby, and shares what it found. There is no queue and nobody who hands out work: the program that starts
the workers only watches. With `RUSH_URL` in the environment, workers on other machines could join in; without it there
is a private server.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter

from rush_executor import Rush, RushWorker


def valley(x1: float, x2: float) -> float:
    """Zero at (1, 1), at the end of a bent valley (Rosenbrock's function)."""
    return (1 - x1) ** 2 + 100 * (x2 - x1**2) ** 2


def climb_down(worker: RushWorker, n_tasks: int) -> None:
    """What each worker does: the same loop, and what the others have found makes it go elsewhere."""
    best = None
    while worker.n_finished_tasks < n_tasks and not worker.terminated:
        # Its own results and those of the others; each is read once.
        for task in worker.fetch_new_tasks():
            if best is None or task.ys["y"] < best.ys["y"]:
                best = task
        if best is None:
            xs, found_by = {"x1": random.uniform(-2, 2), "x2": random.uniform(-1, 3)}, None
        else:
            step = 10 ** random.uniform(-3, 0)
            xs, found_by = {name: random.gauss(x, step) for name, x in best.xs.items()}, best.worker_id
        # From here on the others see it as running, and below as finished.
        [key] = worker.push_running_tasks([xs], extra=[{"found_by": found_by}])
        worker.finish_tasks(key, {"y": valley(**xs)})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=2000, metavar="N", help="end with so many (default: 2000)")
    n_tasks = parser.parse_args().tasks
    with Rush() as rush:
        worker_ids = rush.start_local_workers(climb_down, n_workers=4, n_tasks=n_tasks)
        lowest = float("inf")
        for n, task in enumerate(rush.iter_new_tasks(), 1):
            if task.ys["y"] < lowest / 10:
                lowest = task.ys["y"]
                print(f"task {n:>4}  y = {lowest:<9.2g} at ({task.xs['x1']:+.4f}, {task.xs['x2']:+.4f})")
            if n >= n_tasks:
                break
        # They end by themselves. This waits for what they are still at.
        rush.stop_workers(grace=10)

        table = rush.fetch_finished_tasks()
        best = min(table, key=lambda task: task.ys["y"])
        shared = sum(task.extra["found_by"] not in (None, task.worker_id) for task in table)
        by = Counter(table["worker_id"])
        print(f"\n{len(table)} tasks, {shared} of them began where another worker had been")
        print("by worker:", ", ".join(str(by[worker_id]) for worker_id in worker_ids))
        print(f"lowest: y = {best.ys['y']:.2g} at ({best.xs['x1']:.4f}, {best.xs['x2']:.4f})")
        rush.reset()


if __name__ == "__main__":
    main()
