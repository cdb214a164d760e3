"""Finds CPython's own executor tests, and makes classes of them that test RushExecutor.

The tests are imported from the running interpreter (`test.test_concurrent_futures`, a package or, before 3.12, a single
module), never copied. They were written for the standard library's pools, so three things are put in between here:
scripts for a second interpreter import RushExecutor instead of a pool; where a test asks a pool for its processes and
threads, it is given ours (`PoolLike`); and `multiprocessing` contexts, which a RushExecutor has no use for, are
swallowed (`ContextLike`). Used by `test_cpython.py` alone, which holds the tables of what cannot apply.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import multiprocessing
import re
import sys
import time
import unittest
from collections.abc import Callable, Mapping
from concurrent import futures
from multiprocessing import resource_tracker
from multiprocessing.managers import SyncManager
from pathlib import Path
from types import MappingProxyType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import psutil

import rush_executor
from rush_executor import RemoteTraceback, RushExecutor

__all__ = [
    "ContextLike",
    "CpythonTests",
    "Difference",
    "Exclusion",
    "MissingTestsError",
    "PoolLike",
    "PoolMixin",
    "wait_until",
]

_HOME = "test.test_concurrent_futures"
_SUBMODULES = (
    "util",
    "executor",
    "test_as_completed",
    "test_deadlock",
    "test_init",
    "test_process_pool",
    "test_shutdown",
    "test_wait",
)
_DEADLINE_S = 30.0


def wait_until(condition: Callable[[], object]) -> None:
    """Waits until the condition is true."""
    end_at = time.monotonic() + _DEADLINE_S
    while not condition():
        assert time.monotonic() < end_at, f"not so after {_DEADLINE_S} s: {condition}"
        time.sleep(0.005)


class MissingTestsError(Exception):
    """The running interpreter does not bring the tests."""


class Exclusion(NamedTuple):
    """A test of CPython's that cannot apply.

    Attributes:
        reason: Why.
        since: First Python version of which every release has the test; it must exist there.
    """

    reason: str
    since: tuple[int, int] = (3, 11)


class Difference(NamedTuple):
    """A test that applies, but for the name of what it expects, or for what it takes for given.

    Attributes:
        reason: Why RushExecutor does otherwise.
        names: What to put in the place of these globals of the test's module.
        prepare: Called with the test before it runs, after its `setUp`.
        since: As for `Exclusion`.
    """

    reason: str
    names: Mapping[str, Any] = MappingProxyType({})
    prepare: Callable[[Any], None] = lambda case: None
    since: tuple[int, int] = (3, 11)


_NO_DIFFERENCE = Difference("")


class CpythonTests:
    """CPython's executor tests, as this interpreter has them.

    Args:
        exclusions: By `Class.test_name`, with the class that defines the test.
        differences: By the same.

    Raises:
        MissingTestsError: It has none; the message says which interpreter this is.
    """

    def __init__(self, exclusions: Mapping[str, Exclusion], differences: Mapping[str, Difference]) -> None:
        self._exclusions = exclusions
        self._differences = differences
        self._seen: set[str] = set()
        try:
            self.support = importlib.import_module("test.support")
            # None enables every resource: without them the slow tests (`walltime`) would be skipped. Decorators read
            # it when the modules are imported.
            self.support.use_resources = None
            home = importlib.import_module(_HOME)
            if home.__file__ is None:
                raise ModuleNotFoundError(f"{list(home.__path__)} is empty")
        except (ModuleNotFoundError, unittest.SkipTest) as why:
            version = ".".join(map(str, sys.version_info[:3]))
            raise MissingTestsError(
                f"Python {version} ({sys.executable}) does not bring CPython's own executor tests, {_HOME}: {why}"
            ) from why
        # From here on nothing may be missing: a suite that was renamed must not go unnoticed.
        names = [f"{_HOME}.{name}" for name in _SUBMODULES] if hasattr(home, "__path__") else [_HOME]
        self._modules = [importlib.import_module(name) for name in names]

    def find(self, name: str) -> Any:
        """A class of the tests, by name."""
        return getattr(self.module_of(name), name)

    def case(self, name: str, suite: type, *bases: type, **attributes: Any) -> type:
        """Makes a TestCase.

        Args:
            name: Its name.
            suite: CPython's class with the tests.
            *bases: Further bases, before CPython's own.
            **attributes: Of the class.
        """
        base_names = ("ExecutorMixin", "BaseTestCase")
        case = type(name, (suite, *bases, _RushMixin, *map(self.find, base_names)), {"cpython": self, **attributes})
        for test_name in unittest.TestLoader().getTestCaseNames(case):
            owner = next(cls for cls in case.__mro__ if test_name in vars(cls))
            setattr(case, test_name, self._adapted(f"{owner.__name__}.{test_name}", owner, getattr(case, test_name)))
        return case

    def unmatched(self) -> list[str]:
        """Entries of the tables that name no test, though this version of Python should have it."""
        entries = [*self._exclusions.items(), *self._differences.items()]
        return sorted(key for key, entry in entries if sys.version_info[:2] >= entry.since and key not in self._seen)

    def module_of(self, name: str) -> ModuleType:
        """The module that has a global of this name."""
        for module in self._modules:
            if hasattr(module, name):
                return module
        raise AttributeError(f"CPython's executor tests have no {name}")

    def _adapted(self, key: str, owner: type, test: Callable[..., None]) -> Callable[..., None]:
        self._seen.add(key)
        if key in self._exclusions:
            return unittest.skip(self._exclusions[key].reason)(test)
        difference = self._differences.get(key, _NO_DIFFERENCE)
        module = sys.modules[owner.__module__]

        @functools.wraps(test)
        def adapted(case: unittest.TestCase) -> None:
            with contextlib.ExitStack() as stack:
                difference.prepare(case)
                for name, value in difference.names.items():
                    # A builtin has no place in the module yet.
                    stack.enter_context(mock.patch.object(module, name, value, create=not hasattr(module, name)))
                try:
                    test(case)
                except unittest.SkipTest as skip:
                    case.fail(f"CPython skips {key} ({skip}): it needs an entry in the table of exclusions")

        # A decorator that skips has marked the test; run, it raises SkipTest all the same, which fails above.
        adapted.__dict__.pop("__unittest_skip__", None)
        return adapted


class _RushMixin:
    """What CPython's mixins for its pools are for them."""

    executor_type: type = RushExecutor
    cpython: CpythonTests

    def setUp(self) -> None:
        patch = mock.patch.object(self.cpython.module_of("assert_python_ok"), "assert_python_ok", self._run_script)
        self.enterContext(patch)
        super().setUp()

    def _run_script(self, option: str, script: str, **env_vars: str) -> Any:
        """`assert_python_ok` of CPython's test support, with RushExecutor for the pool that the script imports."""
        assert option == "-c"
        script, n_imports = re.subn(
            r"from concurrent\.futures import (\w+)", r"from rush_executor import RushExecutor as \1", script
        )
        assert n_imports == 1, f"the script does not import the executor as expected:\n{script}"
        # In isolated mode the script would not find a package that is not installed, as in a bare checkout.
        place = str(Path(rush_executor.__file__).parents[1])
        path = f"import sys; {place!r} in sys.path or sys.path.insert(0, {place!r})\n"
        helper = importlib.import_module("test.support.script_helper")
        return helper.assert_python_ok(option, path + script, **env_vars)


class PoolLike(RushExecutor):
    """A RushExecutor that can be asked for its processes and threads as a ProcessPoolExecutor can."""

    def __init__(self, max_workers: int | None = None, mp_context: ContextLike | None = None, **options: Any) -> None:
        super().__init__(max_workers, **options)

    @property
    def _processes(self) -> dict[int, _WorkerProcess]:
        """The workers, once all of them have been forked: the agent does so at its start, not on demand."""
        agent = psutil.Process(self._session._keeper._agent.pid)
        workers: list[psutil.Process] = []

        def are_all_there() -> bool:
            workers[:] = agent.children()
            return len(workers) >= self._max_workers

        wait_until(are_all_there)
        return {worker.pid: _WorkerProcess(worker.pid) for worker in workers}

    @property
    def _executor_manager_thread(self) -> Any:
        """The thread that takes everything down."""
        return self._session._listener.thread

    @property
    def _call_queue(self) -> Any:
        """What feeds the workers, with the thread that does it."""
        return SimpleNamespace(join_thread=self._session._dispatcher._thread.join)


class _WorkerProcess(psutil.Process):
    """A process with the names of `multiprocessing.Process`."""

    def join(self, timeout: float | None = None) -> None:
        with contextlib.suppress(psutil.TimeoutExpired):
            self.wait(timeout)

    def is_alive(self) -> bool:
        return self.is_running()


class ContextLike:
    """What tests ask of a `multiprocessing` context.

    A semaphore of a real one could be inherited by workers, but not sent to them, so tests that send one would only
    see their tasks fail, as they do with ProcessPoolExecutor; one of a manager can be sent.

    Args:
        case: The test that asks; its manager ends with it.
    """

    def __init__(self, case: unittest.TestCase) -> None:
        self._case = case

    def get_start_method(self, *, allow_none: bool = False) -> str:
        """Not "fork": with that, the tests expect ProcessPoolExecutor to refuse `max_tasks_per_child`."""
        return "spawn"

    def Manager(self) -> SyncManager:  # noqa: N802 - multiprocessing's name
        # Not forked from this process, which has threads.
        manager = multiprocessing.get_context("spawn").Manager()
        # The process that multiprocessing keeps to clean up after such children waits for their end.
        self._case.addCleanup(resource_tracker._resource_tracker._stop)
        self._case.addCleanup(manager.shutdown)
        return manager

    def Semaphore(self, value: int) -> Any:  # noqa: N802 - as above
        return self.Manager().Semaphore(value)


class PoolMixin:
    """For the suites that were written for ProcessPoolExecutor alone."""

    executor_type: type = PoolLike

    def setUp(self) -> None:
        # Where tests name the pool themselves. Not PoolLike itself: a test that is given this very class skips itself.
        self.enterContext(mock.patch.object(futures, "ProcessPoolExecutor", functools.partial(self.executor_type)))
        # The text of the worker's traceback, `__cause__` of what a task raised, is a class of our own.
        self.enterContext(mock.patch.object(futures.process, "_RemoteTraceback", RemoteTraceback))
        super().setUp()

    def get_context(self) -> ContextLike:
        return ContextLike(self)
