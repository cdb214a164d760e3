"""pipefunc: `pipeline.map(inputs, executor=executor)`."""

from __future__ import annotations

import os
from typing import Any

import pytest

from rush_executor import RushExecutor


@pytest.fixture(scope="module")
def pipefunc() -> Any:
    """It takes long to import: not for all who collect tests, but for whoever runs these."""
    return pytest.importorskip("pipefunc")


def test_map_and_reduce(pipefunc: Any, executor: RushExecutor) -> None:
    """What maps is computed by the workers, element by element; what reduces gets it all."""

    @pipefunc.pipefunc(output_name="y", mapspec="x[i] -> y[i]")
    def double(x: int) -> tuple[int, int]:
        return 2 * x, os.getpid()

    @pipefunc.pipefunc(output_name="total")
    def total(y: Any) -> int:
        return sum(value for value, _ in y)

    pipeline = pipefunc.Pipeline([double, total])
    # Chunks of its own making it has for the executors that it knows.
    found = pipeline.map({"x": list(range(12))}, executor=executor, chunksizes=3, storage="dict")
    assert found["total"].output == 132
    assert os.getpid() not in {pid for _, pid in found["y"].output}
