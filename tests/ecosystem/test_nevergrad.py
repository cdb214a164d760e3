"""nevergrad: `optimizer.minimize(..., executor=executor)`."""

from __future__ import annotations

import os
from typing import Any

import pytest

from rush_executor import RushExecutor


@pytest.fixture(scope="module")
def ng() -> Any:
    """It takes long to import: not for all who collect tests, but for whoever runs these."""
    return pytest.importorskip("nevergrad")


@pytest.mark.filterwarnings("ignore:Ignoring since timer was stopped:UserWarning")  # of its own timer
def test_minimize(ng: Any, executor: RushExecutor) -> None:
    """The minimum is found, by calls in the workers, as many as were asked for."""
    parent = os.getpid()

    def square(x: Any) -> float:
        """Has its minimum at 0.5. By value: the workers need not import nevergrad."""
        assert os.getpid() != parent
        return float(sum((x - 0.5) ** 2))

    optimizer = ng.optimizers.OnePlusOne(parametrization=2, budget=80, num_workers=2)
    optimizer.parametrization.random_state.seed(12)
    found = optimizer.minimize(square, executor=executor, batch_mode=False)
    assert optimizer.num_tell == 80
    assert abs(found.value - 0.5).max() < 0.2
