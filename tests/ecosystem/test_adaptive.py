"""adaptive: `BlockingRunner(learner, executor=executor, ntasks=...)`.

Of the executors on its own list adaptive knows how many calls they take at once; for any other it has to be told.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from rush_executor import RushExecutor


@pytest.fixture(scope="module")
def adaptive() -> Any:
    """It takes long to import: not for all who collect tests, but for whoever runs these."""
    return pytest.importorskip("adaptive")


def test_blocking_runner(adaptive: Any, executor: RushExecutor) -> None:
    """It looks most closely where the function is steep."""

    def peak(x: float) -> float:
        return float(0.01**2 / (0.01**2 + (x - 0.3) ** 2))

    learner = adaptive.Learner1D(peak, bounds=(-1, 1))
    adaptive.BlockingRunner(learner, npoints_goal=30, executor=executor, ntasks=2)
    points = sorted(learner.data)
    assert len(points) >= 30
    gaps = [right - left for left, right in itertools.pairwise(points)]
    near = [gap for left, gap in zip(points, gaps, strict=False) if abs(left - 0.3) < 0.05]
    assert sum(near) / len(near) < sum(gaps) / len(gaps) / 2
    assert all(learner.data[x] == peak(x) for x in points)


def test_asynchronous_runner(adaptive: Any, executor: RushExecutor) -> None:
    """The one for notebooks, on an event loop."""

    async def main() -> Any:
        learner = adaptive.Learner2D(sum, bounds=[(-1, 1), (-1, 1)])
        runner = adaptive.AsyncRunner(learner, npoints_goal=20, executor=executor, ntasks=2)
        await runner.task
        return learner

    learner = asyncio.run(main())
    assert learner.npoints >= 20
    assert executor.submit(abs, -1).result(60) == 1
