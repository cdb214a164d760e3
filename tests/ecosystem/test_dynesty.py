"""dynesty: `NestedSampler(..., pool=executor.as_pool(), queue_size=...)`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rush_executor import RushExecutor

WIDTH = 0.1


@pytest.fixture(scope="module")
def dynesty() -> Any:
    """It takes long to import: not for all who collect tests, but for whoever runs these."""
    return pytest.importorskip("dynesty")


def log_likelihood(x: Any) -> float:
    return float(-0.5 * np.sum((x / WIDTH) ** 2))


def prior_transform(u: Any) -> Any:
    return 2 * u - 1


def test_evidence(dynesty: Any, executor: RushExecutor) -> None:
    """The evidence of a normal distribution in a box is known."""
    with executor.as_pool() as pool:
        sampler = dynesty.NestedSampler(
            log_likelihood,
            prior_transform,
            2,
            nlive=40,
            rstate=np.random.default_rng(4),
            pool=pool,
            queue_size=pool.size,
        )
        sampler.run_nested(print_progress=False, dlogz=2.0)
    expected = np.log(2 * np.pi * WIDTH**2 / 4)
    results = sampler.results
    assert results.logz[-1] == pytest.approx(expected, abs=5 * results.logzerr[-1])
