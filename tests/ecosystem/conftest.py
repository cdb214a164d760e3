"""What the tests of other people's libraries share."""

from __future__ import annotations

import copyreg
import types
from collections.abc import Iterator

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marks that joblib's tests carry."""
    for mark in ("thread_unsafe", "no_cover"):
        config.addinivalue_line("markers", f"{mark}: joblib's")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of joblib's tests, those that are about other backends are not ours to run."""
    items[:] = [item for item in items if _is_ours(item)]


def pytest_collection_finish() -> None:
    """Some libraries register reducers of exceptions when they are imported."""
    _forget_reducers()


@pytest.fixture(autouse=True)
def reducers() -> Iterator[None]:
    """And some when they are used."""
    yield
    _forget_reducers()


def _forget_reducers() -> None:
    """So that other tests don't run with what dask and others give pickle for the whole process, tblib's reducers.

    With them, pickle rebuilds no BaseExceptionGroup, and writes no exception with a deep traceback.
    """
    for cls in [*copyreg.dispatch_table]:
        if cls is types.TracebackType or issubclass(cls, BaseException):
            del copyreg.dispatch_table[cls]


def _is_ours(item: pytest.Item) -> bool:
    is_about_rush = getattr(getattr(item, "function", None), "is_about_rush", None)
    callspec = getattr(item, "callspec", None)
    return is_about_rush is None or callspec is None or bool(is_about_rush(callspec.params))
