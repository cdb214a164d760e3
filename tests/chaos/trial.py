"""One run of one scenario: hands out servers, agents, executors and tasks, counts what becomes of them, and judges.

How the figures come about:
- *submitted*, *resolved* (with the right result), *failed* (with an error): counted by done-callbacks.
- *again*: starts of a task beyond the first that a fault explains: the process of the start before was killed, stopped
  or cut off by the scenario (`excuse`), or the ledger was emptied after it (`excuse_before`).
- *twice*: tasks with a start beyond the first that nothing explains.
- *lost*: tasks that never started, though their Future has a result, or no allowed error.
- *hung*: Futures that are not resolved when the deadline is over.
- *resolved twice*: done-callbacks that ran again, and outcomes that came for a Future that had one.
- *recovery*: the longest time from the end of a fault until a task submitted then had its result.
- *slowest*: the longest time from a task's submission to its result. A task that waits for something beside the load
  and the fault shows here.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from rush_executor import RushExecutor, RushFuture
from rush_executor.testing import keys_left
from tests.chaos import tasks
from tests.chaos.parties import Agent, Server, is_alive
from tests.integration.proxy import Proxy

__all__ = ["NETWORK", "QUICK", "STEADY", "Row", "Trial"]

NETWORK = "chaos"
# A server that comes back late on a busy machine is no failure of the executor; one that does not come back is.
_RECONNECT_S = 45.0
_DEADLINE_S = 60.0
_CLOSE_DEADLINE_S = 30.0
# Short signs of life, and how long without one before an agent is taken for dead: one that is to be found dead, and one
# that is not, though a busy machine may leave it without the CPU for a while.
QUICK = (0.2, 0.8)
STEADY = (0.2, 3.0)
_POLL_S = 0.005
_LARGEST_LOAD = 200
_OF_ALL_SIZES = 3

_SOMEBODY_ELSE = "somebody else resolved"


@dataclass(frozen=True)
class Start:
    """A line that a task has written."""

    index: int
    pid: int
    at: float


@dataclass
class Row:
    """What a scenario showed; see the module's docstring."""

    name: str
    submitted: int = 0
    resolved: int = 0
    failed: int = 0
    again: int = 0
    twice: int = 0
    lost: int = 0
    hung: int = 0
    resolved_twice: int = 0
    recovery_s: float | None = None
    slowest_s: float = 0.0
    took_s: float = 0.0
    notes: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


class Trial:
    """One run of one scenario.

    Args:
        name: The scenario.
        failures: Names of the errors that Futures may have.
    """

    def __init__(self, name: str, failures: frozenset[str]) -> None:
        self.row = Row(name)
        self.path = ""
        self._failures = failures
        self._began_at = time.monotonic()
        self._changed = threading.Condition()
        self._pending: dict[int, Future[Any]] = {}
        self._done_ids: set[str] = set()
        self._sizes: dict[int, int] = {}
        self._submitted_at: dict[int, float] = {}
        self._n_calls: Counter[int] = Counter()
        self._errors: dict[int, str] = {}
        self._n_wrong = 0
        self._excused_pids: set[int] = set()
        self._excused_before = 0.0
        self._recoveries: list[float] = []
        self._executors: list[RushExecutor] = []
        self._servers: list[Server] = []
        self._agents = contextlib.ExitStack()
        self._rest = contextlib.ExitStack()
        self._records = _Records()
        self._children_before = set(psutil.Process().children(recursive=True))

    def __enter__(self) -> Self:
        directory = self._rest.enter_context(tempfile.TemporaryDirectory(prefix="chaos-"))
        self.path = str(Path(directory) / "starts")
        Path(self.path).touch()
        for name in ("rush_executor", "concurrent.futures"):
            logger = logging.getLogger(name)
            logger.addHandler(self._records)
            self._rest.callback(logger.removeHandler, self._records)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with self._rest:
            self.settle()
            self._close_executors()
            try:
                self._agents.close()
            except Exception as leaving:
                self.row.complaints.append(f"an agent did not leave: {leaving!r}")
            self._check_keys()
            self._judge()
        self._check_processes()
        self.row.took_s = time.monotonic() - self._began_at

    # Who takes part.

    def server(self, **config: str) -> Server:
        """A server; options of its configuration with underscores."""
        server = Server({name.replace("_", "-"): value for name, value in config.items()})
        self._servers.append(server)
        return self._rest.enter_context(server)

    def proxy(self, server: Server) -> Proxy:
        """A proxy before a server, on TCP."""
        return self._rest.enter_context(Proxy(server.url, is_tcp=True))

    def agent(self, url: str, *, n_workers: int = 2, heartbeats: tuple[float, float] | None = None) -> Agent:
        """Workers of the trial's network, by the command line."""
        options = ["--reconnect-timeout", str(_RECONNECT_S)]
        if heartbeats is not None:
            options += ["--heartbeat-period", str(heartbeats[0]), "--heartbeat-expire", str(heartbeats[1])]
        return self._agents.enter_context(Agent(url, NETWORK, n_workers, options))

    def executor(
        self, n_workers: int, url: str | None = None, *, heartbeats: tuple[float, float] | None = None
    ) -> RushExecutor:
        """An executor, on a private server or in the trial's network."""
        more: dict[str, Any] = {}
        if url is not None:
            more |= {"url": url, "network_id": NETWORK}
        if heartbeats is not None:
            more |= {"heartbeat_period": heartbeats[0], "heartbeat_expire": heartbeats[1]}
        executor = RushExecutor(n_workers, reconnect_timeout=_RECONNECT_S, **more)
        self._executors.append(executor)
        return executor

    def own_agents(self) -> list[psutil.Process]:
        """Agents of this process's executors."""
        found = []
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if "rush-agent" in child.cmdline():
                    found.append(child)
        return found

    # What is submitted.

    def submit(
        self, executor: Executor, seconds: float = 0.0, *, size: int = 0, poison: str = "", width: int = 0
    ) -> int:
        """Submits a task; returns its number.

        Args:
            executor: Where to.
            seconds: How long it takes.
            size: Bytes of its result.
            poison: How it ends its worker; empty if it does not.
            width: How many tasks it submits itself, each of which takes `seconds`; 0 for none.
        """
        with self._changed:
            index = self.row.submitted
            self.row.submitted += 1
        began_at = time.monotonic()
        future: Future[Any]
        try:
            if poison:
                future = executor.submit(tasks.poison, self.path, index, poison)
            elif width:
                future = executor.submit(tasks.nest, self.path, index, seconds, width)
            else:
                future = executor.submit(tasks.work, self.path, index, seconds, size)
        except BaseException as error:
            # Not taken is not lost. It keeps its number.
            with self._changed:
                self._errors[index] = type(error).__name__
            raise
        with self._changed:
            self._sizes[index] = size
            self._submitted_at[index] = began_at
            self._pending[index] = future
        future.add_done_callback(functools.partial(self._done, index))
        return index

    def batch(self, executor: Executor, n: int, seconds: float, *, size: int = 0) -> float:
        """Submits so many tasks at once and waits for all; returns the seconds that it took."""
        began_at = time.monotonic()
        for _ in range(n):
            self.submit(executor, seconds, size=size)
        self.settle()
        return time.monotonic() - began_at

    @contextlib.contextmanager
    def load(self, executor: Executor, seconds: float = 0.002) -> Iterator[None]:
        """Keeps an executor busy during the block: bursts from one thread, single tasks one by one from another."""
        over = threading.Event()
        # About half a second of work for one worker: enough to be always under way, and soon done at the end.
        most = min(_LARGEST_LOAD, max(10, int(0.5 / seconds)))

        def bursts() -> None:
            while not over.is_set():
                with self._changed:
                    self._changed.wait_for(lambda: over.is_set() or len(self._pending) < most // 2, 1.0)
                    n = min(random.randrange(1, most // 2), most - len(self._pending))
                for _ in range(n):
                    self.submit(executor, random.choice((0.0, seconds, 2 * seconds)))

        def singles() -> None:
            while not over.is_set():
                index = self.submit(executor, seconds)
                with self._changed:
                    self._changed.wait_for(lambda index=index: over.is_set() or index not in self._pending)  # type: ignore[misc]
                # So that some find the line idle and some do not.
                over.wait(random.random() * 0.01)

        def run(target: Callable[[], None]) -> None:
            # An executor that has given up.
            with contextlib.suppress(BrokenExecutor, RuntimeError):
                target()

        threads = [threading.Thread(target=run, args=(target,), daemon=True) for target in (bursts, singles)]
        for thread in threads:
            thread.start()
        try:
            self.wait_for(lambda: self.n_done() > 0, "the first result")
            yield
        finally:
            over.set()
            with self._changed:
                self._changed.notify_all()
            for thread in threads:
                thread.join(_DEADLINE_S)
            self.check(not any(thread.is_alive() for thread in threads), "submit hangs")

    # What is waited for.

    def wait_for(self, condition: Callable[[], object], what: str, *, deadline_s: float = _DEADLINE_S) -> float:
        """Waits until a condition holds, and complains if it never does; returns the seconds that it took."""
        began_at = time.monotonic()
        while not condition():
            if time.monotonic() - began_at > deadline_s:
                self.row.complaints.append(f"waited {deadline_s:g} s in vain for {what}")
                break
            time.sleep(_POLL_S)
        return time.monotonic() - began_at

    def wait_for_progress(self, n: int = 50) -> None:
        """Waits until so many more tasks have ended."""
        goal = self.n_done() + n
        self.wait_for(lambda: self.n_done() >= goal, f"{n} more results")

    def recover(self, executor: RushExecutor) -> None:
        """A fault is over: measures how long it takes until a task that is submitted now is done."""
        began_at = time.monotonic()
        index = self.submit(executor.options(priority=1))
        with self._changed:
            if not self._changed.wait_for(lambda: index not in self._pending, _DEADLINE_S):
                self.row.complaints.append(f"no recovery within {_DEADLINE_S:g} s")
        self._recoveries.append(time.monotonic() - began_at)

    def settle(self) -> None:
        """Waits until every Future is resolved; complains after a minute without any progress."""
        with self._changed:
            while self._pending:
                n = len(self._pending)
                if not self._changed.wait_for(lambda n=n: len(self._pending) < n, _DEADLINE_S):  # type: ignore[misc]
                    return

    def n_done(self) -> int:
        """Futures that were resolved."""
        return len(self._n_calls)

    def are_done(self, task_ids: Collection[str]) -> bool:
        """Whether the Futures of these tasks were resolved."""
        return self._done_ids.issuperset(task_ids)

    def starts(self, more: str = "") -> list[Start]:
        """What tasks have written so far, in the order of their starts.

        Args:
            more: `tasks.INNER` for the tasks that tasks have submitted.
        """
        lines = Path(self.path + more).read_text().splitlines()
        return [Start(int(index), int(pid), float(at)) for index, pid, at in map(str.split, lines)]

    def begun_by(self, pids: Collection[int]) -> set[str]:
        """Ids of the tasks under way that these processes have started."""
        started = {start.index for start in self.starts() if start.pid in pids}
        with self._changed:
            return {future.task_id for index, future in self._pending.items() if index in started}  # type: ignore[attr-defined]

    # What is judged.

    def excuse(self, *pids: int) -> None:
        """What these processes had started may be started again: the scenario ends, stops or cuts them off."""
        self._excused_pids.update(pids)

    def excuse_before(self) -> None:
        """What was started until now may be started again: the ledger has forgotten it.

        Also what its workers have claimed and not started: they may run that before they hear of it.
        """
        self._excused_before = time.monotonic()
        self.excuse(*{start.pid for start in self.starts()})

    def check(self, is_so: object, complaint: str) -> None:
        """Complains unless it is so."""
        if not is_so:
            self.row.complaints.append(complaint)

    def note(self, text: str) -> None:
        """A figure of this scenario's own."""
        self.row.notes.append(text)

    def errors(self) -> Mapping[int, str]:
        """Names of the errors of the tasks that failed, by number."""
        return self._errors

    def _done(self, index: int, future: Future[Any]) -> None:
        assert isinstance(future, RushFuture)
        # Not kept: results may be large.
        error = "CancelledError" if future.cancelled() else type(future.exception()).__name__
        is_right = error == "NoneType" and future.result() == tasks.result_of(index, self._sizes[index])
        with self._changed:
            self._n_calls[index] += 1
            self._done_ids.add(future.task_id)
            self.row.slowest_s = max(self.row.slowest_s, time.monotonic() - self._submitted_at[index])
            if self._n_calls[index] == 1:
                if error != "NoneType":
                    self._errors[index] = error
                elif is_right:
                    self.row.resolved += 1
                else:
                    self._n_wrong += 1
            self._pending.pop(index, None)
            self._changed.notify_all()

    def _judge(self) -> None:
        row = self.row
        by_index: dict[int, list[Start]] = {}
        for start in sorted(self.starts(), key=lambda start: start.at):
            by_index.setdefault(start.index, []).append(start)
        for history in by_index.values():
            again = [self._is_excused(*pair) for pair in itertools.pairwise(history)]
            row.again += sum(again)
            row.twice += not all(again)
        row.failed = len(self._errors)
        allowed = {index for index, error in self._errors.items() if error in self._failures}
        row.lost = sum(i not in by_index and i not in allowed for i in range(row.submitted))
        row.hung = len(self._pending)
        row.resolved_twice = sum(n - 1 for n in self._n_calls.values()) + self._records.n_resolved_twice
        row.recovery_s = max(self._recoveries, default=None)
        unexpected = Counter(error for error in self._errors.values() if error not in self._failures)
        self.check(not unexpected, f"Futures failed: {dict(unexpected)}")
        self.check(not self._n_wrong, f"{self._n_wrong} wrong results")
        for name in ("twice", "lost", "hung", "resolved_twice"):
            self.check(not getattr(row, name), f"{name} is {getattr(row, name)}")
        row.complaints += [f"logged: {text}" for text in self._records.errors[:3]]

    def _is_excused(self, before: Start, after: Start) -> bool:
        # Also where the excused process is the second: one that was stopped goes on with what it held.
        return bool(self._excused_pids & {before.pid, after.pid}) or before.at <= self._excused_before

    def _close_executors(self) -> None:
        for executor in self._executors:
            if self._pending:
                executor._session.shut_down(why="shutdown", abort=True)
            thread = threading.Thread(target=executor.shutdown, daemon=True)
            thread.start()
            thread.join(_CLOSE_DEADLINE_S)
            self.check(not thread.is_alive(), "shutdown hangs")

    def _check_keys(self) -> None:
        if self._pending:
            return
        for server in self._servers:
            self.wait_for(lambda server=server: not keys_left(server.url), "no key left", deadline_s=12.0)  # type: ignore[misc]
            left = keys_left(server.url)
            self.check(not left, f"keys left: {left[:_OF_ALL_SIZES]}")

    def _check_processes(self) -> None:
        def left() -> list[psutil.Process]:
            return [
                child
                for child in psutil.Process().children(recursive=True)
                if child not in self._children_before and is_alive(child)
            ]

        self.wait_for(lambda: not left(), "no process left", deadline_s=10.0)
        for child in left():
            child.kill()


class _Records(logging.Handler):
    """Hears what the client complains of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.n_resolved_twice = 0
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if _SOMEBODY_ELSE in text:
            self.n_resolved_twice += 1
        elif record.levelno >= logging.ERROR:
            error = record.exc_info[1] if record.exc_info else None
            self.errors.append(f"{text}: {error!r}" if error else text)
