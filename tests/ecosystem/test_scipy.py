"""scipy: `workers=executor.map`, wherever an option of that name takes a map."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import brute, differential_evolution, rosen

from rush_executor import RushExecutor


def test_differential_evolution(executor: RushExecutor) -> None:
    """The same result, to the last bit, as with the builtin map."""
    settings: dict[str, Any] = {"updating": "deferred", "rng": 7, "maxiter": 30, "popsize": 8, "polish": False}
    found = differential_evolution(rosen, [(0, 2)] * 2, workers=executor.map, **settings)
    expected = differential_evolution(rosen, [(0, 2)] * 2, workers=map, **settings)
    assert (found.x == expected.x).all()
    assert found.fun == expected.fun
    assert found.x == pytest.approx([1, 1], abs=0.05)


def test_brute(executor: RushExecutor) -> None:
    """A grid, with a function that cannot be imported."""
    found = brute(lambda x: float((x[0] - 1) ** 2), ((0, 2),), Ns=21, workers=executor.map, finish=None)
    assert np.isclose(found, 1.0)
