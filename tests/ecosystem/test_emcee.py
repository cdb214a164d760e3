"""emcee: `EnsembleSampler(..., pool=executor.as_pool())`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rush_executor import RushExecutor

emcee: Any = pytest.importorskip("emcee")


def log_normal(x: Any, width: float) -> float:
    return float(-0.5 * np.sum((x / width) ** 2))


def sample(n_steps: int, pool: Any = None) -> Any:
    sampler = emcee.EnsembleSampler(16, 2, log_normal, args=(2.0,), pool=pool)
    sampler.random_state = np.random.RandomState(3).get_state()
    sampler.run_mcmc(np.random.default_rng(1).normal(size=(16, 2)), n_steps)
    return sampler.get_chain()


def test_the_same_chain(executor: RushExecutor) -> None:
    """Step by step, as without a pool."""
    with executor.as_pool() as pool:
        found = sample(20, pool)
    assert (found == sample(20)).all()


def test_the_distribution() -> None:
    """So long a chain, as the test above has shown to be the same, has the moments of the distribution."""
    chain = sample(1500)[100:].reshape(-1, 2)
    assert chain.mean(axis=0) == pytest.approx([0, 0], abs=0.4)
    assert chain.std(axis=0) == pytest.approx([2, 2], rel=0.15)
