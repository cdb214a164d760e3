"""joblib's own tests of `Parallel`, with the backend "rush" in loky's place, also as the default: what loky passes.

Two tables say what is different: tests in `NOT_APPLICABLE` are skipped; tests in `OTHER_WORDS` run with other words for
what they expect. An entry that names no test fails, and so does a test that skips itself and has no entry. Of tests
that joblib runs with several backends only those are run that are about this one.

The executors stay open from test to test, as they do in a program; a test that is given another number of workers or
an initializer starts its own.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import psutil
import pytest

import rush_executor.joblib
from tests.ecosystem.joblib_suite import Difference, JoblibTests

OTHER_WORDS = {
    "test_nested_parallel_warnings": Difference(
        "loky warns, and runs one task at a time, below threads and in children of multiprocessing; this backend works "
        "there, and multiprocessing works in its workers: there is nothing to warn of",
        {True: False},
    ),
    "test_parallel_pickling": Difference(
        "the error is a PicklingError as well, and says what cannot be pickled",
        {"the task to send": "argument 1 of run_batch.. cannot be pickled"},
    ),
    "test_parallel_with_interactively_defined_bound_method_loky": Difference(
        "looks in the log of multiprocessing for the name of loky's processes; no process here is multiprocessing's",
        {"LokyProcess": ""},
    ),
    "test_warning_about_timeout_not_supported_by_backend": Difference(
        "with one task at a time loky has another backend take its place; this one stays, and says the same of itself",
        {"SequentialBackend": "RushBackend"},
    ),
    "test_multiple_generator_call_separated_gc": Difference(
        "letting go of a generator ends loky's workers for all calls; here it ends the tasks of that call alone",
        {True: False},
    ),
    "test_parallel_timeout_fail_with_generator": Difference(
        "what a timeout has stopped is started anew for the next call, which may take a while on a busy machine",
        {10: 60},
    ),
}

NOT_APPLICABLE = {
    "test_backend_no_multiprocessing": "for a Python without multiprocessing",
    "test_parallel_thread_limit": "needs a helper that is compiled with joblib's sources and not in its wheel; "
    "test_threadpool_limitation_in_child_loky looks at the same",
    "test_dask_backend_when_dask_not_installed": "about dask",
}

JOBLIB = JoblibTests(NOT_APPLICABLE, OTHER_WORDS)
globals().update(JOBLIB.tests)

# joblib warns of results that nobody fetched, wherever a test lets go of a generator, and multiprocessing of forks.
pytestmark = [pytest.mark.filterwarnings("default")]


@pytest.fixture(autouse=True, scope="module")
def _no_process_left() -> Iterator[None]:
    """As for all tests, but for all of these together."""
    me = psutil.Process()
    before = _workers(me)
    yield
    rush_executor.joblib.shutdown()
    # multiprocessing's managers end with the last reference; joblib's calls are cycles.
    gc.collect()
    _, alive = psutil.wait_procs(_workers(me) - before, timeout=10)
    assert not alive, f"the tests left processes: {alive}"


def _workers(me: psutil.Process) -> set[psutil.Process]:
    """What was started, but for the process by which joblib looks after its folders: that ends with the interpreter."""
    return {child for child in me.children(recursive=True) if "resource_tracker" not in " ".join(child.cmdline())}


@pytest.fixture(autouse=True)
def _in_lokys_place() -> Iterator[None]:
    with JOBLIB.in_lokys_place():
        yield


def test_every_entry_of_the_tables_names_a_test() -> None:
    """The tables cannot rot: what joblib has renamed or dropped is dropped here."""
    assert JOBLIB.unmatched() == []
