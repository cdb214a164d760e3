"""dask: `scheduler=executor`."""

from __future__ import annotations

import os
from typing import Any

import pytest

from rush_executor import RushExecutor


@pytest.fixture(scope="module")
def dask() -> Any:
    """It takes long to import: not for all who collect tests, but for whoever runs these."""
    return pytest.importorskip("dask")


def test_delayed_and_bag(dask: Any, executor: RushExecutor) -> None:
    """A graph, and a collection, are computed by the workers."""
    import dask.bag

    squares = [dask.delayed(pow)(n, 2) for n in range(20)]
    pids = [dask.delayed(os.getpid)() for _ in range(4)]
    total, found = dask.compute(dask.delayed(sum)(squares), pids, scheduler=executor)
    assert total == sum(n * n for n in range(20))
    assert os.getpid() not in found
    bag = dask.bag.from_sequence(range(100), npartitions=4)
    assert bag.map(lambda n: n * n).filter(lambda n: n % 2).sum().compute(scheduler=executor) == 166650


def test_as_the_configured_one(dask: Any, executor: RushExecutor) -> None:
    """For all that follows; dask sees how many workers there are."""
    with dask.config.set(scheduler=executor):
        assert dask.delayed(max)([dask.delayed(abs)(n) for n in (-3, 2)]).compute() == 3
    assert executor._max_workers == 2


def test_a_failure(dask: Any, executor: RushExecutor) -> None:
    """It is raised by `compute`."""
    with pytest.raises(ZeroDivisionError):
        dask.delayed(divmod)(1, 0).compute(scheduler=executor)
