"""Asynchronous decentralised Bayesian optimisation: every worker proposes its own points, and none waits for another.

The settings of a gradient boosting classifier are tuned on a real data set, by cross-validation. Workers first evaluate
a Latin hypercube of 25 points, which is queued for all of them. Then each goes on by itself: it reads what is new, fits
a random forest to all that has been found so far, proposes the point that looks best, evaluates it and shares the
result. Points that others are still evaluating count as if they had turned out like the mean, so that no two workers
go to the same place; and each worker has its own taste for the unknown (the lambda of its lower confidence bound).

The same budget is then spent the usual way: one process proposes a batch, one point for each worker, and waits until
all of it is done. What is printed, and drawn with `--out`, is how much of the workers' time went into evaluations, and
how good the results were. (Which of the two finds the better point within one run is mostly luck.)

`--objective sleep` puts 0.2 s of sleep in place of the model: with more workers than cores, it shows what the network
and the proposals cost. Needs ``python -m pip install '.[examples]'``.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from scipy.stats import qmc
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.tree import ExtraTreeRegressor

from rush_executor import Rush, RushWorker

# A small forest of which every proposal replaces a part: it costs some milliseconds, however many points there are,
# and an evaluation takes hundreds.
N_TREES = 12
N_NEW_TREES = 3
N_CANDIDATES = 400
# Of them, so many are near the best point.
N_NEAR = 100
# Until the workers have joined and evaluated everything; a run that takes longer hangs.
DEADLINE_S = 3600


# ------------------------------------------------------------------------------------------------------ what is sought


class Parameter(NamedTuple):
    """What is tuned, from its lowest to its highest value."""

    name: str
    low: float
    high: float
    is_log: bool = False
    is_integer: bool = False

    def value(self, unit: float) -> float:
        """Its value for a number between 0 and 1."""
        low, high = (math.log(self.low), math.log(self.high)) if self.is_log else (self.low, self.high)
        value = low + unit * (high - low)
        value = math.exp(value) if self.is_log else value
        return round(value) if self.is_integer else float(value)

    def unit(self, value: float) -> float:
        """The number between 0 and 1 for a value."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


class Objective:
    """What is to be made small. Called with the parameters of `space`; returns a row of results.

    Attributes:
        space: The parameters.
    """

    space: list[Parameter]

    def __call__(self, **xs: float) -> dict[str, float]:
        """Evaluates a point, and says when this was done: the clock is the same in all processes of a machine."""
        began_at = time.monotonic()
        loss = self.loss(**xs)
        return {"loss": loss, "began_at": began_at, "seconds": time.monotonic() - began_at}

    def loss(self, **xs: float) -> float:
        """What is to be made small."""
        raise NotImplementedError


class Boosting(Objective):
    """Log loss of a gradient boosting classifier that tells benign from malignant tumours, in 3-fold validation."""

    space = [  # noqa: RUF012 - read only
        Parameter("n_estimators", 5, 80, is_log=True, is_integer=True),
        Parameter("learning_rate", 0.01, 1, is_log=True),
        Parameter("max_depth", 1, 8, is_integer=True),
        Parameter("subsample", 0.2, 1),
        Parameter("max_features", 0.05, 1, is_log=True),
    ]

    def __init__(self) -> None:
        self.x, self.y = load_breast_cancer(return_X_y=True)

    def loss(self, **xs: float) -> float:
        """Cross-validates; always with the same folds."""
        losses = []
        for train, test in StratifiedKFold(3, shuffle=True, random_state=0).split(self.x, self.y):
            model = GradientBoostingClassifier(**xs, random_state=0).fit(self.x[train], self.y[train])
            losses.append(log_loss(self.y[test], model.predict_proba(self.x[test])))
        return float(np.mean(losses))


class Sleep(Objective):
    """Branin's function, which takes no time, and 0.2 s of sleep, which take no core."""

    space = [Parameter("x1", -5, 10), Parameter("x2", 0, 15)]  # noqa: RUF012 - read only

    def loss(self, **xs: float) -> float:
        """Sleeps."""
        time.sleep(0.2)
        x1, x2 = xs["x1"], xs["x2"]
        bend = x2 - 5.1 * x1**2 / (4 * math.pi**2) + 5 * x1 / math.pi - 6
        return bend**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x1) + 10


OBJECTIVES = {"real": Boosting, "sleep": Sleep}


# ---------------------------------------------------------------------------------------------- which point to try next


class Proposer:
    """Proposes points: those with the lowest lower confidence bound of a random forest.

    Args:
        space: The parameters.
        rng: Draws its lambda, its trees and its candidates.
    """

    def __init__(self, space: list[Parameter], rng: np.random.Generator) -> None:
        self.space = space
        self.rng = rng
        # How many standard deviations are forgiven: low ones look for the best near what is good, high ones far away.
        self.lambda_ = rng.exponential(1.0)
        self.points: list[list[float]] = []
        self.losses: list[float] = []
        self.trees: deque[Any] = deque(maxlen=N_TREES)

    def learn(self, tasks: Iterable[Any]) -> None:
        """Takes in what was found."""
        for task in tasks:
            self.points.append(self.units(task.xs))
            self.losses.append(task.ys["loss"])

    def propose(self, running: Iterable[Mapping[str, float]] = ()) -> dict[str, float]:
        """The point to evaluate next, given those whose results are still to come."""
        pending = [self.units(xs) for xs in running]
        x = np.array(self.points + pending, dtype=np.float32)
        y = np.array(self.losses + [float(np.mean(self.losses))] * len(pending))
        self.grow(x, y)

        candidates = self.rng.random((N_CANDIDATES, len(self.space)), dtype=np.float32)
        best = self.points[int(np.argmin(self.losses))]
        near = best + self.rng.normal(0, 0.1, (N_NEAR, len(self.space)))
        candidates[:N_NEAR] = np.clip(near, 0, 1)
        # `tree_` is what a fitted tree stands on; it spares us scikit-learn's checks of its input, for each tree.
        predicted = np.array([tree.tree_.predict(candidates)[:, 0] for tree in self.trees])
        bound = predicted.mean(axis=0) - self.lambda_ * predicted.std(axis=0)
        chosen = candidates[int(np.argmin(bound))]
        return {p.name: p.value(float(unit)) for p, unit in zip(self.space, chosen, strict=True)}

    def grow(self, x: np.ndarray, y: np.ndarray) -> None:
        """Replaces the oldest trees by some that know all points; at first, grows all of them."""
        for _ in range(N_NEW_TREES if self.trees else N_TREES):
            sample = self.rng.integers(0, len(x), len(x))
            tree = ExtraTreeRegressor(max_depth=8, random_state=int(self.rng.integers(2**31)))
            self.trees.append(tree.fit(x[sample], y[sample], check_input=False))

    def units(self, xs: Mapping[str, float]) -> list[float]:
        """A point in the unit cube."""
        return [p.unit(xs[p.name]) for p in self.space]


def latin_hypercube(space: list[Parameter], n: int, seed: int) -> list[dict[str, float]]:
    """Points that cover the space evenly."""
    units = qmc.LatinHypercube(len(space), rng=seed).random(n)
    return [{p.name: p.value(float(unit)) for p, unit in zip(space, row, strict=True)} for row in units]


# ---------------------------------------------------------------------------------------------------------- both ways


def optimise(worker: RushWorker, objective: Objective, budget: int) -> None:
    """What each worker of the decentralised network does."""
    proposer = Proposer(objective.space, np.random.default_rng())
    # The design is pushed when all workers are there.
    task = worker.pop_task(timeout=DEADLINE_S)
    while task is not None:
        worker.finish_tasks(task.key, objective(**task.xs))
        task = worker.pop_task(timeout=0)
    while worker.n_tasks < budget and not worker.terminated:
        # Both cost what is new, not all that there is.
        proposer.learn(worker.fetch_new_tasks())
        running = [task.xs for task in worker.fetch_running_tasks()]
        xs = proposer.propose(running)
        [key] = worker.push_running_tasks([xs], extra=[{"lambda_": proposer.lambda_}])
        worker.finish_tasks(key, objective(**xs))


class Evaluation(NamedTuple):
    """One evaluation: when, by whom, with what result."""

    worker_id: str
    began_at: float
    ended_at: float
    loss: float
    is_initial: bool


def decentralised(
    objective: Objective, design: list[dict[str, float]], n_workers: int, budget: int
) -> list[Evaluation]:
    """Workers that propose by themselves."""
    with Rush() as rush:
        rush.start_local_workers(optimise, n_workers=n_workers, objective=objective, budget=budget)
        rush.wait_for_workers(timeout=DEADLINE_S)
        initial = rush.push_tasks(design)
        for n, _ in enumerate(rush.iter_new_tasks(timeout=DEADLINE_S), 1):
            if n >= budget:
                break
        rush.stop_workers(grace=DEADLINE_S)
        return evaluations(rush, initial)


def centralised(objective: Objective, design: list[dict[str, float]], n_workers: int, budget: int) -> list[Evaluation]:
    """This process proposes a batch, one point for each worker, and waits for all of it."""
    proposers = [Proposer(objective.space, np.random.default_rng()) for _ in range(n_workers)]
    with Rush() as rush:
        rush.start_local_workers(fun=objective, n_workers=n_workers)
        rush.wait_for_workers(timeout=DEADLINE_S)
        initial = rush.push_tasks(design)
        rush.wait_for_tasks(initial)
        while n_left := budget - rush.n_tasks:
            new = rush.fetch_new_tasks()
            batch: list[dict[str, float]] = []
            for proposer in proposers[:n_left]:
                proposer.learn(new)
                # The points that the others have just proposed are as good as running.
                batch.append(proposer.propose(batch))
            rush.wait_for_tasks(rush.push_tasks(batch))
        return evaluations(rush, initial)


def evaluations(rush: Rush, initial: list[str]) -> list[Evaluation]:
    """All that was evaluated, with times from the first start on; the network is deleted."""
    table = rush.fetch_finished_tasks()
    rush.reset()
    first = min(table["began_at"])
    return [
        Evaluation(
            task.worker_id,
            task.ys["began_at"] - first,
            task.ys["began_at"] - first + task.ys["seconds"],
            task.ys["loss"],
            task.key in set(initial),
        )
        for task in sorted(table, key=lambda task: task.ys["began_at"])
    ]


# -------------------------------------------------------------------------------------------------------- what is shown


class Share(NamedTuple):
    """What a worker, or all together, did: evaluations, seconds spent in them, and these as a share of the time."""

    n: int
    busy_s: float
    share: float


def shares(run: list[Evaluation]) -> dict[str, Share]:
    """For each worker, from the first start of any to the last end of any."""
    wall_s = max(e.ended_at for e in run)
    by_worker: dict[str, list[float]] = {}
    for e in run:
        by_worker.setdefault(e.worker_id, []).append(e.ended_at - e.began_at)
    return {worker_id: Share(len(times), sum(times), sum(times) / wall_s) for worker_id, times in by_worker.items()}


def utilisation(run: list[Evaluation], n_workers: int) -> float:
    """The share of all workers' time that was spent in evaluations; also of those that did nothing."""
    return sum(share.share for share in shares(run).values()) / n_workers


def show(title: str, run: list[Evaluation], n_workers: int) -> None:
    """Prints a table of what each worker did."""
    wall_s = max(e.ended_at for e in run)
    print(f"\n{title}: {len(run)} evaluations in {wall_s:.2f} s, lowest loss {min(e.loss for e in run):.5f}")
    print("  worker    evaluations  evaluating  of the time")
    for worker_id, (n, busy_s, share) in shares(run).items():
        print(f"  {worker_id[:8]}  {n:>11}  {busy_s:>8.2f} s  {share:>11.1%}")
    busy_s = sum(e.ended_at - e.began_at for e in run)
    print(f"  all       {len(run):>11}  {busy_s:>8.2f} s  {utilisation(run, n_workers):>11.1%}")


COLORS = ("#2166ac", "#c2570c")
GREY = "#555555"


def draw(runs: dict[str, list[Evaluation]], n_workers: int, folder: Path) -> None:
    """Draws what was found when, and what the workers did when."""
    folder.mkdir(parents=True, exist_ok=True)
    style = {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": GREY,
        "xtick.color": GREY,
        "ytick.color": GREY,
        # Text stays text: smaller, and it can be found. And the same runs give the same file.
        "svg.fonttype": "none",
        "svg.hashsalt": "adbo",
    }
    print()
    with mpl.rc_context(style):
        for name, figure in (("best", draw_best(runs)), ("timeline", draw_timeline(runs, n_workers))):
            path = folder / f"adbo_{name}.svg"
            figure.savefig(path, metadata={"Date": None})
            print(f"drawn: {path}")


def draw_best(runs: dict[str, list[Evaluation]]) -> Figure:
    """The lowest loss so far over time, and each evaluation as a dot."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    end = max(e.ended_at for run in runs.values() for e in run)
    lows = []
    for (title, run), color in zip(runs.items(), COLORS, strict=True):
        by_end = sorted(run, key=lambda e: e.ended_at)
        times = [e.ended_at for e in by_end]
        losses = [e.loss for e in by_end]
        best = np.minimum.accumulate(losses)
        lows += losses
        axes.plot(times, losses, "o", color=color, alpha=0.3, markersize=3.5, markeredgewidth=0)
        axes.step([*times, end], [*best, best[-1]], where="post", color=color, linewidth=2, label=title)
        axes.plot(times[-1], best[-1], "o", color=color, markersize=7)
    axes.set_yscale("log")
    # A few points are so bad that nothing else could be told apart.
    low, high = min(lows), float(np.quantile(lows, 0.9))
    axes.set_ylim(low / (high / low) ** 0.08, high * (high / low) ** 0.05)
    axes.set_xlim(0, end * 1.02)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="seconds since the first evaluation began", ylabel="loss (the lower, the better)")
    legend = axes.legend(
        loc="upper right", title="lowest so far (dots: each evaluation)", edgecolor="none", framealpha=1
    )
    legend.set_zorder(5)
    return figure


def draw_timeline(runs: dict[str, list[Evaluation]], n_workers: int) -> Figure:
    """For each worker a row with a bar for each evaluation; between them it has waited, or proposed."""
    figure = Figure(figsize=(8, 1.2 + 0.55 * n_workers), layout="constrained")
    panels = figure.subplots(len(runs), 1, sharex=True)
    end = max(e.ended_at for run in runs.values() for e in run)
    for (title, run), color, axes in zip(runs.items(), COLORS, panels, strict=True):
        draw_workers(axes, run, color, end)
        last = max(e.ended_at for e in run)
        share = utilisation(run, n_workers)
        what = f"{title}: {len(run)} evaluations in {last:.1f} s, {share:.0%} of the time spent in them"
        axes.set_title(what, loc="left", fontsize=10)
    panels[-1].set_xlabel("seconds since the first evaluation began (pale: points of the Latin hypercube)")
    return figure


def draw_workers(axes: Axes, run: list[Evaluation], color: str, end: float) -> None:
    """One panel of the timeline."""
    last = max(e.ended_at for e in run)
    rows = shares(run)
    for i, (worker_id, share) in enumerate(rows.items()):
        for is_initial, alpha in ((True, 0.45), (False, 1.0)):
            bars = [
                (e.began_at, e.ended_at - e.began_at)
                for e in run
                if e.worker_id == worker_id and e.is_initial == is_initial
            ]
            axes.broken_barh(bars, (i - 0.38, 0.76), color=color, alpha=alpha, edgecolor="white", linewidth=0.4)
        axes.text(end * 1.01, i, f"{share.share:.0%}", va="center", color=GREY)
    axes.axvline(last, color=GREY, linewidth=1, linestyle=":")
    axes.set(yticks=range(len(rows)), yticklabels=[f"worker {i}" for i in range(1, len(rows) + 1)])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, end * 1.06)
    axes.tick_params(left=False)
    axes.spines["left"].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="worker processes (default: 4)")
    parser.add_argument("--budget", type=int, default=100, metavar="N", help="evaluations (default: 100)")
    parser.add_argument("--initial", type=int, default=25, metavar="N", help="points of the hypercube (default: 25)")
    parser.add_argument("--objective", choices=OBJECTIVES, default="real", help="what is evaluated (default: real)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the hypercube (default: 1)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="draw adbo_best.svg and adbo_timeline.svg there")
    options = parser.parse_args()

    objective = OBJECTIVES[options.objective]()
    design = latin_hypercube(objective.space, min(options.initial, options.budget), options.seed)
    runs = {}
    for title, way in (("Asynchronous, decentralised", decentralised), ("Batches, centralised", centralised)):
        runs[title] = way(objective, design, options.workers, options.budget)
        show(title, runs[title], options.workers)
    if options.out:
        draw(runs, options.workers, options.out)


if __name__ == "__main__":
    main()
