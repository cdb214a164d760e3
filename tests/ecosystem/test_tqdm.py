"""tqdm: bars around what an executor gives."""

from __future__ import annotations

import io
from concurrent.futures import as_completed
from typing import Any

import pytest

from rush_executor import RushExecutor

tqdm: Any = pytest.importorskip("tqdm")


def test_around_as_completed_and_map(executor: RushExecutor) -> None:
    """It counts to the end."""
    text = io.StringIO()
    futures = [executor.submit(abs, -n) for n in range(20)]
    done = tqdm.tqdm(as_completed(futures), total=len(futures), file=text, desc="done")
    assert sum(future.result() for future in done) == 190
    mapped = tqdm.tqdm(executor.map(abs, range(-20, 0)), total=20, file=text, desc="mapped")
    assert list(mapped) == list(range(20, 0, -1))
    for bar in ("done: 100%", "mapped: 100%", "20/20"):
        assert bar in text.getvalue()
