"""What all tests share: a server, and the check that a test leaves nothing behind.

A test that needs executors or ledgers takes `server_url`; when it is over, no key may be left on that server, no
process that the test started may live, and loggers must be as they were. Waiting is done with `eventually`: a condition
and a generous deadline.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from rush_executor import RushExecutor
from rush_executor.testing import keys_left, temporary_server
from tests.leftovers import no_leftovers

_T = TypeVar("_T")
_DEADLINE_S = 30.0
# Linux tells the children of a process's main thread here.
_CHILDREN = Path(f"/proc/self/task/{os.getpid()}/children")
# Beside the root those that tests of several files use. Of others libraries make what they like when they are imported.
_LOGGERS = ("mylib", "rush_executor", "concurrent")


def pytest_configure(config: pytest.Config) -> None:
    """Also in each of xdist's workers."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # So a shell starts what is to run in its background, and so would every program that a test starts, and then
        # sends a Ctrl-C, ignore it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        # By nohup. A handler is not inherited.
        signal.signal(signal.SIGHUP, lambda *_: None)
    if importlib.util.find_spec("hypothesis"):
        # The promises are tested without it.
        from hypothesis import HealthCheck, settings

        # A busy machine is no failure of a property.
        settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
        settings.load_profile("patient")
    guard = contextlib.ExitStack()
    guard.enter_context(no_leftovers())
    config.add_cleanup(guard.close)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """A report of xdist's worker that holds what is no UTF-8 is a report, and not the end of the run."""
    return _encodable((yield))


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_encodable(key): _encodable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_encodable(part) for part in value)
    return value


def eventually(condition: Callable[[], _T], *, deadline_s: float = _DEADLINE_S) -> _T:
    """Waits until the condition gives something true, and returns that."""
    end_at = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < end_at, f"not so after {deadline_s} s: {condition}"
        time.sleep(0.005)
    return value


@pytest.fixture(name="eventually")
def _eventually() -> Callable[..., object]:
    return eventually


@pytest.fixture(scope="session")
def _shared_server() -> Iterator[str]:
    with temporary_server() as url:
        yield url


@pytest.fixture
def server_url(_shared_server: str) -> Iterator[str]:
    """URL of a server on which the test must leave no key."""
    yield _shared_server
    try:
        eventually(lambda: not keys_left(_shared_server))
    except AssertionError:
        left = keys_left(_shared_server)
        _flush(_shared_server)
        pytest.fail(f"the test left keys: {left}")


@pytest.fixture(autouse=True)
def _no_process_left() -> Iterator[None]:
    before = _descendants()
    yield

    def left() -> list[psutil.Process]:
        new = []
        for pid in _descendants() - before:
            with contextlib.suppress(psutil.NoSuchProcess):
                new.append(psutil.Process(pid))
        # The shared server is started by the first test that needs it, and lives on.
        return [process for process in new if not _is_shared_server(process)]

    try:
        eventually(lambda: not left())
    except AssertionError:
        names = [f"{child.pid} {child.cmdline()[:3]}" for child in left()]
        for child in left():
            child.kill()
        pytest.fail(f"the test left processes: {names}")


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    """One that keeps a level or a handler, or passes nothing up any more, decides what a later test hears."""
    before = _loggers()
    yield
    new = (logging.NOTSET, True, False, set(), set())
    changed = sorted(name for name, state in _loggers().items() if state != before.get(name, new))
    assert not changed, f"the test left these loggers other than they were: {changed}"


@pytest.fixture
def executor(server_url: str) -> Iterator[RushExecutor]:
    """An executor with two workers on the shared server."""
    with RushExecutor(2, url=server_url) as executor:
        yield executor


def _loggers() -> dict[str, tuple[object, ...]]:
    """How loggers are, by name."""
    states = {"root": (*_state(logging.root), logging.root.manager.disable, logging.raiseExceptions)}
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and name.partition(".")[0] in _LOGGERS:
            states[name] = _state(logger)
    return states


def _state(logger: logging.Logger) -> tuple[object, ...]:
    return logger.level, logger.propagate, logger.disabled, set(logger.handlers), set(logger.filters)


def _descendants() -> set[int]:
    """Process ids of what this process has started, and what that has started."""
    if not _CHILDREN.exists():
        return {child.pid for child in psutil.Process().children(recursive=True)}
    # As psutil does it takes a look at every process of the machine, 20 ms for each test.
    found: set[int] = set()
    unseen = [os.getpid()]
    while unseen:
        for path in Path(f"/proc/{unseen.pop()}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                pids = [int(pid) for pid in path.read_text().split()]
                found.update(pids)
                unseen += pids
    return found


def _is_shared_server(process: psutil.Process) -> bool:
    try:
        return "valkey" in process.name() or "redis" in process.name()
    except psutil.NoSuchProcess:
        return True


def _flush(url: str) -> None:
    import redis

    with redis.Redis.from_url(url) as client:
        client.flushall()
