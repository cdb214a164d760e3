"""concurrent.futures: `wait` and `as_completed` on Futures of several executors."""

from __future__ import annotations

import concurrent.futures
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rush_executor import RushExecutor
from tests.acceptance.tasks import fail, wait_for

DEADLINE_S = 60


def test_as_completed_among_others(executor: RushExecutor) -> None:
    """Futures of threads and of workers are one lot."""
    with ThreadPoolExecutor() as threads:
        futures: dict[Future[Any], int] = {}
        for n in range(60):
            futures[(threads if n % 2 else executor).submit(pow, 2, n)] = n
        found = {futures[future]: future.result() for future in concurrent.futures.as_completed(futures, DEADLINE_S)}
    assert found == {n: 2**n for n in range(60)}


def test_as_completed_in_the_order_of_the_ends(executor: RushExecutor, tmp_path: Path) -> None:
    """What is done comes, whatever it was submitted behind; what is not, raises."""
    gate = tmp_path / "gate"
    slow, quick = executor.submit(wait_for, str(gate)), executor.submit(abs, -1)
    ends = concurrent.futures.as_completed([slow, quick], DEADLINE_S)
    assert next(ends) is quick
    with pytest.raises(TimeoutError, match=r"1 \(of 1\) futures unfinished"):
        list(concurrent.futures.as_completed([slow], 0.05))
    gate.touch()
    assert next(ends) is slow


@pytest.mark.parametrize("until", [FIRST_COMPLETED, FIRST_EXCEPTION, ALL_COMPLETED])
def test_wait(executor: RushExecutor, tmp_path: Path, until: str) -> None:
    """It returns when that has happened, and tells who is done."""
    gate = tmp_path / "gate"
    slow = executor.submit(wait_for, str(gate))
    ended = executor.submit(abs, -1) if until == FIRST_COMPLETED else executor.submit(fail, KeyError("no"))
    if until == ALL_COMPLETED:
        gate.touch()
    done, not_done = concurrent.futures.wait([slow, ended], DEADLINE_S, until)
    assert (done, not_done) == ({slow, ended}, set()) if until == ALL_COMPLETED else ({ended}, {slow})
    gate.touch()
    assert concurrent.futures.wait([slow, ended], DEADLINE_S).not_done == set()
