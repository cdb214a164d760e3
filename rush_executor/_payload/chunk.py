"""Several calls of one function that travel as one task: `Executor.map` with a chunksize above 1.

Knows how builtin `map` behaves when a call raises: what came before is delivered first. Called by the worker
(`run_chunk`) and the client (`ChunkResult`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

__all__ = ["ChunkResult", "run_chunk"]


class ChunkResult(NamedTuple):
    """What came of a chunk.

    Attributes:
        values: Results of the calls, up to the first that failed.
        failure: What that one raised; None if none failed.
    """

    values: list[Any]
    failure: BaseException | None


def run_chunk(fn: Callable[..., Any], items: Iterable[tuple[Any, ...]]) -> ChunkResult:
    """Calls a function with each tuple of arguments, until a call fails."""
    values = []
    try:
        for args in items:
            values.append(fn(*args))  # noqa: PERF401 - a comprehension would lose the values before a failure
    except BaseException as failure:  # noqa: BLE001 - SystemExit and its kind are the task's outcome too
        own_frame = failure.__traceback__
        # The traceback starts in the user's function, as it does for a single call.
        return ChunkResult(values, failure.with_traceback(own_frame.tb_next if own_frame else None))
    return ChunkResult(values, None)
