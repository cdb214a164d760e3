"""CPython's own executor tests, with RushExecutor as the executor: what they promise, it must keep.

Taken are the suites for executors in general (submit and map, shutdown, wait, as_completed, initializer) and those for
ProcessPoolExecutor (its own, its shutdown, deadlocks). Some run with executors on their private servers, as a newcomer
has them, and must leave no process and no file; the others with executors on a server that `RUSH_URL` names, and must
leave no key. Left out are CPython's tests of other things: of Future itself, of multiprocessing's resource tracker, and
of the threads of ThreadPoolExecutor.

Two tables say what is different: tests in `NOT_APPLICABLE` are skipped; tests in `OTHER_WORDS` run with another name
for what they expect, or with something prepared. An entry that names no test fails, and so does a test that skips
itself and has no entry. The numbers of promises are those of `docs/explanation/promises.md`.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rush_executor import PayloadError, RushFuture, WorkerLostError
from tests.acceptance.cpython_suite import (
    CpythonTests,
    Difference,
    Exclusion,
    MissingTestsError,
    PoolMixin,
    wait_until,
)

_OWN_FAULT = "a payload that fails breaks its own task, not the pool (promises 1-3)"
_ONE_LOST = "a crash is the end of one task, and the executor goes on: no BrokenProcessPool (promise 11)"


def _let_first_task_be_claimed(case: Any) -> None:
    """Has `submit` return its first Future only when a worker has claimed the task."""
    submit, n_submitted = case.executor.submit, itertools.count()

    def submit_and_wait(*args: Any) -> RushFuture:
        future = submit(*args)
        if next(n_submitted) == 0:
            wait_until(lambda: future.running() or future.done())
        return future

    case.executor.submit = submit_and_wait


OTHER_WORDS = {
    "ExecutorShutdownTest.test_cancel_futures": Difference(
        "takes for given that a task is out of reach as soon as it is submitted; ours can all be cancelled while the "
        "workers start",
        prepare=_let_first_task_be_claimed,
    ),
    "ExecutorDeadlockTest.test_exit_at_task_unpickle": Difference(_OWN_FAULT, {"BrokenProcessPool": PayloadError}),
    "ExecutorDeadlockTest.test_error_at_task_unpickle": Difference(_OWN_FAULT, {"BrokenProcessPool": PayloadError}),
    "ExecutorDeadlockTest.test_exit_during_result_pickle_on_worker": Difference(
        _OWN_FAULT, {"SystemExit": PayloadError}
    ),
    "ExecutorDeadlockTest.test_error_during_result_unpickle_in_result_handler": Difference(
        _OWN_FAULT, {"BrokenProcessPool": PayloadError}
    ),
    "ExecutorDeadlockTest.test_exit_during_result_unpickle_in_result_handler": Difference(
        _OWN_FAULT, {"BrokenProcessPool": PayloadError}
    ),
    "ExecutorDeadlockTest.test_crash_at_task_unpickle": Difference(_ONE_LOST, {"BrokenProcessPool": WorkerLostError}),
    "ExecutorDeadlockTest.test_crash_during_func_exec_on_worker": Difference(
        _ONE_LOST, {"BrokenProcessPool": WorkerLostError}
    ),
    "ExecutorDeadlockTest.test_crash_during_result_pickle_on_worker": Difference(
        _ONE_LOST, {"BrokenProcessPool": WorkerLostError}
    ),
    "ExecutorDeadlockTest.test_shutdown_deadlock": Difference(_ONE_LOST, {"BrokenProcessPool": WorkerLostError}),
    "ExecutorDeadlockTest.test_crash_big_data": Difference(
        _ONE_LOST, {"BrokenProcessPool": WorkerLostError}, since=(3, 12)
    ),
}

_ALL_AT_ONCE = "counts processes that ProcessPoolExecutor starts one by one on demand; our agent forks all at once"
_ITS_INSIDE = "mocks or sets private parts of ProcessPoolExecutor that RushExecutor does not have"
_NO_FORCE = "tests terminate_workers() and kill_workers() of ProcessPoolExecutor, which RushExecutor does not have"

NOT_APPLICABLE = {
    "ProcessPoolExecutorTest.test_max_workers_too_large": Exclusion("a limit of ProcessPoolExecutor on Windows"),
    "ProcessPoolExecutorTest.test_killed_child": Exclusion(
        "expects that one killed worker breaks the whole pool; ours replaces it and goes on (promise 11)"
    ),
    "ProcessPoolExecutorTest.test_idle_process_reuse_one": Exclusion(_ALL_AT_ONCE),
    "ProcessPoolExecutorTest.test_idle_process_reuse_multiple": Exclusion(_ALL_AT_ONCE),
    "ProcessPoolExecutorTest.test_max_tasks_per_child_defaults_to_spawn_context": Exclusion(
        "asks for the executor's multiprocessing context; RushExecutor has none"
    ),
    "ProcessPoolExecutorTest.test_python_finalization_error": Exclusion(
        "lets the second thread fail that ProcessPoolExecutor starts at the first submit; ours start with the executor",
        since=(3, 13),
    ),
    "ProcessPoolExecutorTest.test_terminate_workers": Exclusion(_NO_FORCE, since=(3, 14)),
    "ProcessPoolExecutorTest.test_kill_workers": Exclusion(_NO_FORCE, since=(3, 14)),
    "ProcessPoolExecutorTest.test_force_shutdown_workers_invalid_op": Exclusion(_NO_FORCE, since=(3, 14)),
    "ProcessPoolExecutorTest.test_force_shutdown_workers": Exclusion(_NO_FORCE, since=(3, 14)),
    "ProcessPoolExecutorTest.test_force_shutdown_workers_dead_workers": Exclusion(_NO_FORCE, since=(3, 14)),
    "ProcessPoolExecutorTest.test_force_shutdown_workers_not_started_yet": Exclusion(_NO_FORCE, since=(3, 14)),
    "ProcessPoolExecutorTest.test_force_shutdown_workers_stops_pool": Exclusion(_NO_FORCE, since=(3, 14)),
    "ExecutorDeadlockTest.test_gh105829_should_not_deadlock_if_wakeup_pipe_full": Exclusion(_ITS_INSIDE, since=(3, 12)),
}

try:
    CPYTHON = CpythonTests(NOT_APPLICABLE, OTHER_WORDS)
except MissingTestsError as why:
    pytest.skip(str(why), allow_module_level=True)


@pytest.fixture(autouse=True)
def _environment_unaltered() -> Iterator[None]:
    """What CPython's test runner calls an altered environment, such as threads that live on, fails the test."""
    support = CPYTHON.support
    support.environment_altered = False
    yield
    assert not support.environment_altered, "the test left threads or dead children (see its stderr)"


@pytest.fixture
def private_server(monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., object]) -> Iterator[None]:
    """Executors start a server of their own, and leave neither its process nor its directory."""
    me = psutil.Process()
    before = set(me.children())
    # Not tmp_path: it is too long for a socket's address.
    directory = Path(tempfile.mkdtemp(prefix="rush-test-", dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    monkeypatch.setenv("TMPDIR", str(directory))
    monkeypatch.delenv("RUSH_URL", raising=False)
    yield
    try:
        eventually(lambda: not any(directory.iterdir()) and not set(me.children()) - before)
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def shared_server(monkeypatch: pytest.MonkeyPatch, server_url: str) -> None:
    """Executors use the server that the environment names, and leave no key on it."""
    monkeypatch.setenv("RUSH_URL", server_url)


def _case(name: str, suite: str, server: str, *bases: type, **attributes: object) -> None:
    """Makes a TestCase of one of CPython's suites, for pytest to find in this module."""
    case = CPYTHON.case(name, CPYTHON.find(suite), *bases, __module__=__name__, **attributes)
    globals()[name] = pytest.mark.usefixtures(server)(case)


_case("ExecutorOnPrivateServer", "ExecutorTest", "private_server")
_case(
    "ShutdownOnPrivateServer",
    "ExecutorShutdownTest",
    "private_server",
    # Kept from ProcessPoolExecutor, which hangs there.
    test_cancel_futures_wait_false=CPYTHON.find("ThreadPoolShutdownTest").test_cancel_futures_wait_false,
)
_case("InitializerOnPrivateServer", "InitializerMixin", "private_server")
_case("FailingInitializerOnPrivateServer", "FailingInitializerMixin", "private_server")

_case("ProcessPoolOnSharedServer", "ProcessPoolExecutorTest", "shared_server", PoolMixin)
# test_processes_terminate expects as many processes as it has submitted tasks.
_case("ProcessPoolShutdownOnSharedServer", "ProcessPoolShutdownTest", "shared_server", PoolMixin, worker_count=3)
_case("DeadlockOnSharedServer", "ExecutorDeadlockTest", "shared_server", PoolMixin)
_case("WaitOnSharedServer", "WaitTests", "shared_server")
_case("AsCompletedOnSharedServer", "AsCompletedTests", "shared_server")
_case("InitializerOnSharedServer", "InitializerMixin", "shared_server")
_case("FailingInitializerOnSharedServer", "FailingInitializerMixin", "shared_server")


def test_every_entry_of_the_tables_names_a_test() -> None:
    """The tables cannot rot: what CPython has renamed or dropped is dropped here."""
    assert CPYTHON.unmatched() == []
