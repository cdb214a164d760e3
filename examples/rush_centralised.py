"""A network with somebody in charge: this program pushes tasks, two workers take them, and it reads a table of results.

Run it from anywhere: without `RUSH_URL` in the environment there is a private server, for as long as the program runs.
"""

from __future__ import annotations

from rush_executor import Rush


def fun(x1: float, x2: float) -> dict[str, float]:
    """What a worker does with a task: its inputs by name go in, its results by name come out."""
    return {"y": x1 + x2}


def main() -> None:
    with Rush(network_id="test") as rush:
        rush.start_local_workers(fun=fun, n_workers=2)
        keys = rush.push_tasks([{"x1": 3, "x2": 5}, {"x1": 4, "x2": 6}])
        rush.wait_for_tasks(keys)
        # In the order in which they finished; `fetch_tasks(keys)` has them in the order in which they were pushed.
        print(rush.fetch_finished_tasks(fields=["xs", "ys", "state", "worker_id"]))
        # The tasks of a network stay on its server. Were it not a private one, the next run would find them again.
        rush.reset()


if __name__ == "__main__":
    main()
