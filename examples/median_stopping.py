"""Median stopping without waiting: settings that do worse than most others are given up early.

Workers train neural networks that read handwritten digits, in rounds of one pass over the data; a round is a task. The
settings to be tried are queued as first rounds. After each round a worker looks at what the others had reached after as
many, and makes itself the task of the next round only if its own network is at least as good as the median of theirs.
No worker waits for another: what counts is what is known by then.

Needs scikit-learn: ``python -m pip install '.[examples]'``.
"""

from __future__ import annotations

import argparse
import random
import statistics
import warnings
from collections import Counter, defaultdict
from typing import Any

from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from rush_executor import Rush, RushWorker

# The median of fewer others says little.
FEWEST_OTHERS = 4


def draw() -> dict[str, Any]:
    """Settings at random."""
    return {
        "n_units": random.choice([8, 16, 32, 64]),
        "batch_size": random.choice([16, 32, 64, 128]),
        "learning_rate": 10 ** random.uniform(-4, -1),
        "alpha": 10 ** random.uniform(-5, 1),
    }


def train(worker: RushWorker, n_rounds: int) -> None:
    """What each worker does."""
    warnings.simplefilter("ignore", ConvergenceWarning)  # no round is meant to be the last
    x, y = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x / 16, y, test_size=0.4, stratify=y, random_state=0)
    # What each network had reached, by the number of rounds.
    reached: dict[int, dict[str, float]] = defaultdict(dict)

    while (task := worker.pop_task(timeout=0)) is not None:
        settings, key = task.xs, task.key
        network = MLPClassifier(
            settings["n_units"],
            batch_size=settings["batch_size"],
            learning_rate_init=settings["learning_rate"],
            alpha=settings["alpha"],
        )
        for n in range(1, n_rounds + 1):
            if n > 1:
                [key] = worker.push_running_tasks([{**settings, "round": n}])
            network.partial_fit(x, y, classes=range(10))
            accuracy = network.score(x_test, y_test)
            worker.finish_tasks(key, {"accuracy": accuracy}, extra={"network": task.key})
            # Rounds of this worker and of all others; each is read once.
            for done in worker.fetch_new_tasks():
                reached[done.xs["round"]][done.extra["network"]] = done.ys["accuracy"]
            others = [value for name, value in reached[n].items() if name != task.key]
            if len(others) >= FEWEST_OTHERS and accuracy < statistics.median(others):
                break


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--networks", type=int, default=60, metavar="N", help="settings to try (default: 60)")
    parser.add_argument("--rounds", type=int, default=16, metavar="N", help="rounds of the good ones (default: 16)")
    parser.add_argument("--workers", type=int, metavar="N", help="worker processes (default: one per CPU)")
    options = parser.parse_args()
    with Rush() as rush:
        first_rounds = rush.push_tasks([{**draw(), "round": 1} for _ in range(options.networks)])
        rush.start_local_workers(train, n_workers=options.workers, n_rounds=options.rounds)
        rush.wait_for_tasks(first_rounds)
        # The queue is empty, and the workers end with what they are at.
        rush.stop_workers(grace=600)

        table = rush.fetch_finished_tasks()
        rounds = Counter(table["network"])
        n_full = sum(n == options.rounds for n in rounds.values())
        print(f"{len(rounds)} networks, {n_full} of them trained for all {options.rounds} rounds")
        for n in range(1, options.rounds + 1):
            left = sum(had >= n for had in rounds.values())
            print(f"round {n:>2}  {left:>3} networks  {'#' * round(60 * left / len(rounds))}")
        n_without = len(rounds) * options.rounds
        print(f"{len(table)} rounds instead of {n_without}: {1 - len(table) / n_without:.0%} of the work was saved")
        best = max(table, key=lambda task: task.ys["accuracy"])
        of = ", ".join(f"{name} = {value:.3g}" for name, value in best.xs.items() if name != "round")
        print(f"best: {best.ys['accuracy']:.1%} of the digits read, after {best.xs['round']} rounds, with {of}")
        rush.reset()


if __name__ == "__main__":
    main()
