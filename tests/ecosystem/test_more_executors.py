"""more-executors: its wrappers around an executor, one in the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rush_executor import RushExecutor
from tests.acceptance.tasks import note

more_executors: Any = pytest.importorskip("more_executors")
Eventually = Callable[..., Any]
DEADLINE_S = 60


def succeed_at_third(path: str) -> int:
    note(path, "x")
    n = len(Path(path).read_text().split())
    if n < 3:
        raise ConnectionError(n)
    return n


def test_wrappers(server_url: str, tmp_path: Path) -> None:
    """A failure is tried again, a result passed through a function, and `shutdown` passed on."""
    executor = RushExecutor(2, url=server_url)
    wrap = more_executors.Executors
    policy = more_executors.ExceptionRetryPolicy(max_attempts=5, sleep=0.01)
    with wrap.with_map(wrap.with_retry(executor, retry_policy=policy), lambda n: n * 10) as wrapped:
        assert wrapped.submit(succeed_at_third, str(tmp_path / "log")).result(DEADLINE_S) == 30
        assert [future.result(DEADLINE_S) for future in [wrapped.submit(abs, -n) for n in range(5)]] == [
            0,
            10,
            20,
            30,
            40,
        ]
    with pytest.raises(RuntimeError, match="cannot schedule new futures"):
        executor.submit(abs, -1)


def test_throttle_and_composed_futures(executor: RushExecutor) -> None:
    """Futures are mapped and gathered by its functions."""
    throttled = more_executors.ThrottleExecutor(executor, count=1)
    futures = [throttled.submit(pow, 2, n) for n in range(5)]
    total = more_executors.f_map(more_executors.f_sequence(futures), sum)
    assert total.result(DEADLINE_S) == 31
    throttled.shutdown()
