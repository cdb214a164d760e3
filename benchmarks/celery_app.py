"""The Celery application of the benchmarks: one task that calls what it is told to."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from celery import Celery

__all__ = ["app", "make_app"]


def make_app() -> Celery:
    """An application on the server that the environment names."""
    url = os.environ["BENCHMARK_SERVER"]
    made = Celery("benchmarks", broker=url, backend=url, set_as_current=False)
    made.conf.update(task_serializer="pickle", result_serializer="pickle", accept_content=["pickle"])
    made.task(_call, name="call")
    return made


def _call(fn: Callable[..., Any], *args: Any) -> Any:
    return fn(*args)


# The worker's, which finds it under this name.
app = make_app()
