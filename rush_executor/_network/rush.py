"""`Rush`: a network of workers that share tasks and results, seen from where it is managed."""

from __future__ import annotations

import inspect
import itertools
import logging
import math
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from rush_executor._agent.supervisor import AgentSettings
from rush_executor._client.pusher import TaskPusher
from rush_executor._config import (
    LogSettings,
    NetworkConfig,
    chosen_secret,
    cpu_count,
    default_url,
    launcher_environment,
    redact,
    worker_environment,
)
from rush_executor._config import log_levels as log_level_numbers
from rush_executor._crew.crew import Crew
from rush_executor._crew.ctrl_c import ctrl_c_held_back
from rush_executor._ledger.connection import Channel, check_server, open_pool
from rush_executor._ledger.logs import LogReader
from rush_executor._ledger.server import EmbeddedServer
from rush_executor._ledger.tasks import TaskLedger
from rush_executor._ledger.views import NetworkReader, timeout_left
from rush_executor._network.plan import Launcher, rush_config
from rush_executor._network.script import run_script
from rush_executor._network.script import worker_script as make_worker_script
from rush_executor._network.snapshots import (
    NetworkSnapshot,
    Schedule,
    read_schedule,
    restore_snapshot,
    take_snapshot,
    write_schedule,
)
from rush_executor._network.watch import Watch
from rush_executor._payload import Encoder
from rush_executor._payload.rows import RowCodec
from rush_executor._protocol.ids import new_id
from rush_executor._protocol.keys import Keys, check_network_id
from rush_executor._protocol.records import KILL, TERMINATE
from rush_executor._protocol.states import ALIVE_STATES, FAILED, FINISHED, KEPT_STATES, LOST, STARTING
from rush_executor._rush_worker.loops import worker_loop_default
from rush_executor._view.logs import Levels
from rush_executor._view.reader import NetworkView

__all__ = ["Rush"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

# Of the tasks that are waited for, how many are asked for at once: the rest are still to come, whatever these say.
_ASKED_FIRST: Final = 32
_MOST_ASKED: Final = 512
_LOOK_FOR_WORKERS_S: Final = 0.02


class Rush(NetworkView, TaskPusher):
    """A network of workers that share tasks and results.

    Making one writes nothing: the network is there from its first task or worker on, and until `reset`, whoever comes
    and goes. Several may manage one network. A `Rush` can be pickled, and then connects anew; the secret does not go
    along, it comes from `RUSH_SECRET` again.

    Args:
        network_id: The network; by default a fresh one.
        url: Server: ``redis://``, ``rediss://`` or ``unix://``. By default that of the plan (`rush_plan`), or
            `RUSH_URL` of the environment; where that is not set either, a private server is started, which ends with
            this object or process, and all that it keeps.
        secret: Seals all payloads, as for `RushExecutor`.
        reconnect_timeout: Seconds that a lost server is waited for: see `RushExecutor`.
        heartbeat_period: Seconds between two signs of life of the workers' agents.
        heartbeat_expire: Seconds without one after which workers are taken for lost.
        large_objects_path: Folder that all machines share under this path. The network keeps values of 256 KiB or more
            there, and not on the server; all who join it do so, without being told again. By default as the plan says.

    Raises:
        ServerError: No server could be found, started or reached.
        ValueError, TypeError: An argument makes no sense.
    """

    def __init__(
        self,
        network_id: str | None = None,
        url: str | None = None,
        *,
        secret: str | bytes | None = None,
        reconnect_timeout: float = 60.0,
        heartbeat_period: float = 3.0,
        heartbeat_expire: float = 15.0,
        large_objects_path: str | os.PathLike[str] | None = None,
    ) -> None:
        if network_id is not None:
            check_network_id(network_id)
        plan = rush_config()
        if large_objects_path is None and plan is not None:
            large_objects_path = plan.large_objects_path
        large_objects = _checked_folder(large_objects_path)
        url = url or (plan.url if plan is not None else None) or default_url()
        server: EmbeddedServer | None = None
        try:
            if url is None:
                with ctrl_c_held_back():
                    server = EmbeddedServer.start()
                url = server.url
            if server is not None:
                server.wait_ready()
            check_server(url)
            config = NetworkConfig(
                url=url,
                network_id=network_id or new_id(),
                secret=chosen_secret(secret),
                reconnect_timeout_s=reconnect_timeout,
                heartbeat_period_s=heartbeat_period,
                heartbeat_expire_s=heartbeat_expire,
            )
            self._connect(config, server, large_objects, None if server is None else server.check)
        except BaseException:
            if server is not None:
                server.stop()
            raise

    @classmethod
    def _beside(cls, config: NetworkConfig, check_server: Callable[[], None]) -> Rush:
        """For an executor: on its network, whose server it may have started, and then knows the end of."""
        rush = cls.__new__(cls)
        rush._connect(config, None, "", check_server)  # noqa: SLF001 - its own
        return rush

    def _connect(
        self,
        config: NetworkConfig,
        server: EmbeddedServer | None,
        large_objects: str,
        check_server: Callable[[], None] | None,
    ) -> None:
        self.network_id = config.network_id
        self._config = config
        self._large_objects = large_objects
        self._is_server_private = server is not None
        self._is_found = False
        self._keys = keys = Keys(config.network_id)
        pool = open_pool(config.url)
        self._is_closed = is_closed = threading.Event()
        self._closed_text = closed_text = (
            f"this Rush is closed, and nothing can be asked of network {keys.network_id!r} through it: make another one"
        )

        def channel() -> Channel:
            # Whatever is asked of the network, now or by an iterator that is under way, comes by here.
            patience_s = config.reconnect_timeout_s
            return Channel(
                pool,
                reconnect_timeout_s=patience_s,
                stopping=is_closed,
                closed_text=closed_text,
                check_server=check_server,
            )

        self._open_channel = channel
        self._ledger_lock = threading.Lock()
        shared = channel()
        self._ledger = TaskLedger(shared, keys, large_objects=large_objects)
        self._watches: list[Watch] = []
        self._crews: list[Crew] = []
        self._last_crew_of: dict[str, tuple[Crew, str]] = {}
        self._told_lost: set[str] = set()
        self._close = weakref.finalize(self, _close_all, self._crews, self._watches, server, pool)
        self._open_view(
            NetworkReader(shared, keys),
            self._ledger_lock,
            lambda: NetworkReader(channel(), keys),
            LogReader(channel(), keys),
            RowCodec(config.network_id, config.secret),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        config = self._config
        options = {
            "reconnect_timeout": config.reconnect_timeout_s,
            "heartbeat_period": config.heartbeat_period_s,
            "heartbeat_expire": config.heartbeat_expire_s,
            "large_objects_path": self._large_objects or None,
        }
        return _reconnected, (config.network_id, config.url, options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Rush network={self.network_id!r} on {redact(self._config.url)}>"

    def close(self) -> None:
        """Ends the workers that this object has started, after what they run, and its private server.

        The network stays, on a server that stays. So do workers that came from elsewhere. From then on what needs the
        server raises a `RuntimeError`; a wait or an iterator that is under way does so within about a second.
        """
        self._is_closed.set()
        self._close()

    # Workers.

    def start_local_workers(
        self,
        worker_loop: Callable[..., Any] | None = None,
        *,
        fun: Callable[..., Any] | None = None,
        constants: Mapping[str, Any] | None = None,
        n_workers: int | None = None,
        log_levels: Levels = None,
        buffer_size: int | None = None,
        output_dir: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Starts workers on this machine. They end with this process.

        Args:
            worker_loop: Called in each worker as ``worker_loop(rush_worker, **kwargs)``; the worker ends with it.
            fun: Instead of a loop: called for each task as ``fun(**xs, **constants)``; returns a mapping of names to
                results. With a loop, it is handed on to the loop, which must take it: as `worker_loop_process` does.
            constants: What is the same for all tasks; handed on likewise.
            n_workers: By default as many as the plan says (`rush_plan`), or one per CPU.
            log_levels: Levels that loggers are to have in the workers: one for all, or by name, ``{"mylib": "DEBUG"}``.
                By default as the plan says, or as Python has them. What is logged, and printed, is kept: see
                `read_log`.
            buffer_size: Records that a worker collects before it sends them; errors, and a second, send them earlier.
                By default as the plan says, or 100.
            output_dir: Folder for files with what workers print, ``<worker>.out`` and ``<worker>.err``.
            **kwargs: Arguments of `worker_loop`.

        Returns:
            Ids of the workers, at once; `wait_for_workers` waits until they are there.

        Raises:
            TypeError: The loop does not take what it would be called with; no worker was started.
            PayloadError: The loop, the function or an argument cannot be pickled.
            RushError: The network is an executor's.
        """
        n = _checked_number(n_workers)
        logs = _log_settings(log_levels, buffer_size, output_dir)
        start_id = self._write_start(worker_loop, fun, constants, kwargs, logs)
        worker_ids = [new_id() for _ in range(n)]
        self._start_crew(worker_ids, start_id)
        return worker_ids

    def start_workers(
        self,
        worker_loop: Callable[..., Any] | None = None,
        *,
        fun: Callable[..., Any] | None = None,
        constants: Mapping[str, Any] | None = None,
        n_workers: int | None = None,
        launcher: Launcher | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """Starts workers where the launcher, or else the plan, says; see `rush_plan`.

        Args:
            worker_loop: As in `start_local_workers`.
            fun: As in `start_local_workers`.
            constants: As in `start_local_workers`.
            n_workers: By default as many as the plan says.
            launcher: Is called with the text of a script for each worker, see `worker_script`; or a command that reads
                it from its standard input, such as ``["ssh", "host", "sh"]``. By default that of the plan; workers on
                this machine if there is none.
            **kwargs: As in `start_local_workers`.

        Returns:
            Ids of local workers; of others what the launcher has returned, or a `subprocess.Popen`, for each.
        """
        plan = rush_config()
        if launcher is None and plan is not None and plan.worker_type == "remote":
            launcher = plan.launcher
        if launcher is None:
            return self.start_local_workers(worker_loop, fun=fun, constants=constants, n_workers=n_workers, **kwargs)
        n = _checked_number(n_workers)
        self.set_worker_loop(worker_loop, fun=fun, constants=constants, **kwargs)
        script = self.worker_script(n_workers=1)
        if callable(launcher):
            return [launcher(script) for _ in range(n)]
        environment = launcher_environment(self._config)
        return [run_script(launcher, script, environment) for _ in range(n)]

    start_remote_workers = start_workers

    def worker_script(self, *, n_workers: int = 1, python: str = "python3") -> str:
        """A script for `sh` that starts workers on another machine; they run what `set_worker_loop` says, or will say.

        It holds no secret: a server's password and the network's secret come from the environment of the machine where
        it is run (`RUSH_URL`, `RUSH_SECRET`), and it says so if they are missing.

        Args:
            n_workers: How many workers it starts.
            python: Interpreter that has the package, if `RUSH_PYTHON` names none there.
        """
        return make_worker_script(self._config, n_workers=_checked_number(n_workers), python=python)

    create_worker_script = worker_script

    def set_worker_loop(
        self,
        worker_loop: Callable[..., Any] | None = None,
        *,
        fun: Callable[..., Any] | None = None,
        constants: Mapping[str, Any] | None = None,
        log_levels: Levels = None,
        buffer_size: int | None = None,
        output_dir: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Says what workers run that are started elsewhere: with `rush-executor worker`, or from a `worker_script`.

        Args:
            worker_loop: As in `start_local_workers`.
            fun: As in `start_local_workers`.
            constants: As in `start_local_workers`.
            log_levels: As in `start_local_workers`.
            buffer_size: As in `start_local_workers`.
            output_dir: As in `start_local_workers`.
            **kwargs: As in `start_local_workers`.
        """
        logs = _log_settings(log_levels, buffer_size, output_dir)
        self._write_start(worker_loop, fun, constants, kwargs, logs)

    def wait_for_workers(
        self, n: int | None = None, worker_ids: Iterable[str] | None = None, timeout: float | None = None
    ) -> None:
        """Waits until workers have joined.

        Args:
            n: So many, which are there at the same time.
            worker_ids: These; by default those that this object has started. They may have ended meanwhile.
            timeout: Seconds; 0 looks once. By default as long as the plan says, or for ever.

        Raises:
            TimeoutError: They had not joined in time.
            RuntimeError: Some of them were lost before they had joined.
        """
        wanted = set(self._last_crew_of if n is None and worker_ids is None else worker_ids or ())
        if timeout is None and (plan := rush_config()) is not None:
            timeout = plan.start_worker_timeout
        end_at = None if timeout is None else time.monotonic() + timeout
        while True:
            workers = {worker.worker_id: worker for worker in self.worker_info}
            gone = [w for w in wanted & workers.keys() if workers[w].state == LOST and workers[w].joined_at is None]
            if gone:
                raise RuntimeError(
                    f"{len(gone)} of the workers ended during their start: {', '.join(sorted(gone))}. What they "
                    "printed to stderr says why"
                )
            starting = {worker for worker, record in workers.items() if record.state == STARTING}
            missing = wanted - workers.keys() | wanted & starting
            n_here = sum(worker.state in ALIVE_STATES for worker in workers.values()) - len(starting)
            if not missing and n_here >= (n or 0):
                return
            if end_at is not None and time.monotonic() >= end_at:
                n_missing = len(missing) or (n or 0) - n_here
                more = "" if missing else " more"
                what = f"1{more} worker has" if n_missing == 1 else f"{n_missing}{more} workers have"
                raise TimeoutError(f"{what} not joined network {self.network_id!r} within {timeout:g} s")
            time.sleep(_LOOK_FOR_WORKERS_S)

    def stop_workers(
        self,
        type: str = "terminate",  # noqa: A002 - as it is called in R
        worker_ids: str | Iterable[str] | None = None,
        *,
        grace: float | None = None,
    ) -> None:
        """Stops workers.

        Args:
            type: ``"terminate"``: they finish what they run, and leave. ``"kill"``: now; their tasks fail with
                "Worker was killed".
            worker_ids: By default all that are there, or starting.
            grace: Seconds after which workers that were to terminate and have not are killed; waits so long.
        """
        if type not in ("terminate", "kill"):
            raise ValueError(f"type must be 'terminate' or 'kill', not {type!r}")
        known = self.worker_states
        wanted = set(known if worker_ids is None else [worker_ids] if isinstance(worker_ids, str) else worker_ids)
        unknown = wanted - known.keys()
        if unknown:
            warnings.warn(f"no such workers: {', '.join(sorted(unknown))}", RuntimeWarning, stacklevel=2)
        wanted = self._stop(wanted, KILL if type == "kill" else TERMINATE)
        if grace is not None and type == "terminate":
            self._wait_for_end(wanted, grace)
            self._stop(wanted, KILL)

    def restart_workers(self, worker_ids: str | Iterable[str]) -> list[str]:
        """Starts workers again, under their old ids, that this object had started on this machine; ends them first.

        Returns:
            Their ids.

        Raises:
            ValueError: One of them was not started here.
        """
        wanted = [worker_ids] if isinstance(worker_ids, str) else list(worker_ids)
        unknown = [worker for worker in wanted if worker not in self._last_crew_of]
        if unknown:
            raise ValueError(f"these workers were not started here: {', '.join(unknown)}")
        self._wait_for_end(self._stop(wanted, KILL))
        with self._ledger_lock:
            self._ledger.forget_workers(wanted)
        by_start = itertools.groupby(sorted(wanted, key=self._start_of), key=self._start_of)
        for start_id, workers in by_start:
            self._start_crew(list(workers), start_id)
        return wanted

    def detect_lost_workers(self, *, restart_workers: bool = False, restart_tasks: bool = False) -> list[str]:
        """Looks for workers that have crashed or whose machine was lost. This happens by itself as well.

        Args:
            restart_workers: Start those again that this object had started.
            restart_tasks: Queue their tasks again, even if they have no retry left.

        Returns:
            Ids of workers of which no earlier call has told.
        """
        self._watch().look_closely()
        lost = [worker for worker in self.lost_worker_ids if worker not in self._told_lost]
        self._told_lost |= set(lost)
        if restart_tasks and lost:
            table = self.fetch_failed_tasks(fields=["key", "worker_id"])
            self.retry_tasks([row.key for row in table if row.worker_id in lost], ignore_max_retries=True)
        if restart_workers:
            self.restart_workers([worker for worker in lost if worker in self._last_crew_of])
            self._told_lost -= set(lost) & set(self._last_crew_of)
        return lost

    # Tasks.

    def wait_for_tasks(
        self, keys: str | Iterable[str], timeout: float | None = None, *, detect_lost_workers: bool = True
    ) -> bool:
        """Waits until tasks have finished or failed.

        Args:
            keys: The tasks.
            timeout: Seconds; None for ever.
            detect_lost_workers: Look after the workers meanwhile; return when none is there or starting, with a
                warning.

        Returns:
            Whether all of them have ended.

        Raises:
            KeyError: There is no such task, or not any more: nobody would end it.
        """
        left = [keys] if isinstance(keys, str) else list(keys)
        left.reverse()
        end_at = None if timeout is None else time.monotonic() + timeout
        ring, wait_s, n_asked = b"", 0.0, _ASKED_FIRST
        with self._waiter() as waiter:
            while left:
                asked = left[-n_asked:]
                ring, states, n_workers = waiter.wait_states(ring, asked, wait_s)
                gone = [key for key, state in zip(asked, states, strict=True) if state not in KEPT_STATES]
                if gone:
                    raise KeyError(f"network {self.network_id!r} has no task {gone[0]!r} (any more)")
                pending = [key for key, state in zip(asked, states, strict=True) if state not in (FINISHED, FAILED)]
                left[-n_asked:] = pending
                # Some that are still to come are waited for: the others are asked for once these have ended.
                n_asked = min(2 * n_asked, _MOST_ASKED) if not pending else _ASKED_FIRST
                wait_s = 0.0 if not pending else timeout_left(end_at)
                if not pending:
                    continue
                if wait_s <= 0:
                    return False
                if detect_lost_workers and not self._has_workers(n_workers):
                    warnings.warn(
                        f"no worker is left in network {self.network_id!r}: {len(left)} of the tasks that are waited "
                        "for will not end",
                        RuntimeWarning,
                        stacklevel=2,
                    )
                    return False
        return True

    def reset(self, *, workers: bool = True) -> None:
        """Kills the network's workers and deletes all that it keeps: this network's keys alone.

        Args:
            workers: False to keep the workers, and what they are to run: see `reset_data`.
        """
        if not workers:
            self.reset_data()
            return
        self._wait_for_end(self._stop(self.worker_ids, KILL), self._config.heartbeat_expire_s)
        with self._ledger_lock:
            self._ledger.reset()
            self._is_found = False
        self._last_crew_of.clear()
        self._told_lost.clear()
        self.reset_cache()

    def reset_data(self) -> None:
        """Deletes all tasks, in whatever state; workers go on, with those that come.

        What a worker is at it brings to its end, but its result is dropped, with a warning in the worker's log.

        Raises:
            RushError: The network is an executor's.
        """
        if self._ask(lambda reader: reader.kind()) is None:
            return
        with self._ledger_lock:
            self._find()
            self._ledger.clear()
        self.reset_cache()

    # Snapshots.

    def snapshot(self, path: str | os.PathLike[str]) -> NetworkSnapshot:
        """Writes the network into a file, from which `restore` makes it again, on this server or another one.

        Workers may go on meanwhile. The file has all tasks that there were when it was begun, each as it was at some
        moment since then: queued, running, finished or failed. A file of this name is replaced when the new one is
        complete. Payloads stay sealed; the secret is not in the file.

        Args:
            path: The file; by custom its name ends in ``.rush``.

        Returns:
            What is in it.

        Raises:
            RushError: There is no such network (yet), it is a RushExecutor's, or it was reset meanwhile.
            OSError: The file cannot be written.
        """
        return self._on_own_channel(take_snapshot, Keys(self.network_id), path)

    def restore(self, path: str | os.PathLike[str]) -> NetworkSnapshot:
        """Makes the network from a file that `snapshot` has written.

        What has finished or failed is there as it was. What was queued, or had been claimed from the queue, is queued,
        in its old place; what a worker had made for itself by `push_running_tasks` has failed with a `WorkerLostError`.
        What workers are to run is there, too, so that they can be started from a shell; none of the old ones is.

        Args:
            path: The file. It is read to its end before anything is written.

        Returns:
            What was in it, in the states that tasks had there.

        Raises:
            SnapshotError: The file is no snapshot of a network of this name, or it is damaged.
            RushError: There is such a network already.
            OSError: The file cannot be opened.
        """
        told = self._on_own_channel(restore_snapshot, Keys(self.network_id), path)
        with self._ledger_lock:
            # Of the network, if there was one that is gone now.
            self._is_found = False
        self.reset_cache()
        return told

    @property
    def snapshot_schedule(self) -> Schedule | None:
        """When the *server* writes its own snapshots, of all that is on it: `(seconds, changes)`; None for never.

        ``(60, 1000)``: a minute after the last one, if there were 1000 changes since. It may be several such pairs.
        What is set replaces what the server was told before, until it is restarted.

        Raises:
            ServerError: The server does not let us see or set it, as managed servers do.
            ValueError: What it is set to makes no sense.
        """
        return self._on_own_channel(read_schedule)

    @snapshot_schedule.setter
    def snapshot_schedule(self, schedule: Iterable[int] | Iterable[Iterable[int]] | None) -> None:
        self._on_own_channel(write_schedule, schedule)

    # Small things.

    def _on_own_channel(self, action: Callable[..., _T], *args: Any) -> _T:
        """What takes its time: others may use the shared connection meanwhile."""
        channel = self._open_channel()
        try:
            return action(channel, *args)
        finally:
            channel.close()

    def _write_start(
        self,
        worker_loop: Callable[..., Any] | None,
        fun: Callable[..., Any] | None,
        constants: Mapping[str, Any] | None,
        kwargs: dict[str, Any],
        logs: LogSettings,
    ) -> str:
        if worker_loop is None:
            if fun is None:
                raise ValueError("give the workers something to do: worker_loop or fun")
            worker_loop = worker_loop_default
        if not callable(worker_loop):
            raise TypeError(f"worker_loop must be callable, not {type(worker_loop).__name__}")
        if fun is not None:
            kwargs = {"fun": fun, **kwargs}
        if constants is not None:
            kwargs = {"constants": dict(constants), **kwargs}
        _check_call(worker_loop, kwargs)
        body = Encoder(self._config.network_id, self._config.secret).encode_initializer(
            worker_loop, (kwargs, logs.to_bytes()), what="worker loop"
        )
        start_id = new_id()
        with self._ledger_lock:
            self._find()
            self._ledger.set_terminate_on_idle(wanted=False)
            self._ledger.write_start(start_id, body)
        return start_id

    def _start_crew(self, worker_ids: list[str], start_id: str) -> None:
        settings = self._agent_settings(tuple(worker_ids), start_id)
        with ctrl_c_held_back():
            crew = Crew(settings, worker_environment(len(worker_ids), None), None)
            self._crews.append(crew)
        self._last_crew_of.update(dict.fromkeys(worker_ids, (crew, start_id)))
        if self._is_closed.is_set():
            # A moment ago, in another thread, which may not have seen this one.
            crew.stop(now=True)
            raise RuntimeError(self._closed_text)

    def _agent_settings(self, worker_ids: tuple[str, ...], start_id: str) -> AgentSettings:
        return AgentSettings(
            config=self._config,
            agent_id=new_id(),
            n_workers=0,
            worker_ids=worker_ids,
            start_id=start_id,
            is_server_private=self._is_server_private,
        )

    def _start_of(self, worker_id: str) -> str:
        return self._last_crew_of[worker_id][1]

    def _alive(self) -> dict[str, str]:
        """Workers that have not ended, those that are starting as well, and their agents."""
        return {worker.worker_id: worker.agent_id for worker in self.worker_info if worker.state in ALIVE_STATES}

    def _stop(self, worker_ids: Iterable[str], how: str) -> set[str]:
        """Asks that these workers end; returns those that have not ended yet."""
        wanted = set(worker_ids)
        agent_of = {worker: agent for worker, agent in self._alive().items() if worker in wanted}
        with self._ledger_lock:
            for worker_id, agent_id in agent_of.items():
                self._ledger.stop_worker(worker_id, agent_id, how)
        return set(agent_of)

    def _wait_for_end(self, worker_ids: Collection[str], timeout: float = math.inf) -> None:
        """Waits until these workers have ended."""
        end_at = time.monotonic() + timeout
        while self._alive().keys() & worker_ids and time.monotonic() < end_at:
            time.sleep(_LOOK_FOR_WORKERS_S)

    def _expected_workers(self) -> dict[str, str]:
        # Their agent may not have begun yet.
        return {worker: crew.agent_id for worker, (crew, _) in self._last_crew_of.items() if crew.is_alive()}

    def _has_workers(self, n_joined: int) -> bool:
        """Whether a worker is there, or about to come; sees to it that those that are silent are found."""
        self._watch()
        return n_joined > 0 or any(crew.is_alive() for crew in self._crews) or bool(self._alive())

    def _another_log_reader(self) -> LogReader:
        return LogReader(self._open_channel(), self._keys)

    def _watch(self) -> Watch:
        """The watch over the workers, from when it is first needed."""
        if self._is_closed.is_set():
            # Nobody would stop its thread.
            raise RuntimeError(self._closed_text)
        if not self._watches:
            self._watches.append(Watch(self._config, self._keys))
            if self._is_closed.is_set():
                # As in `_start_crew`.
                self._watches[-1].stop()
                raise RuntimeError(self._closed_text)
        return self._watches[0]

    def _find(self) -> None:
        super()._find()
        self._watch()


def _check_call(worker_loop: Callable[..., Any], kwargs: Mapping[str, Any]) -> None:
    """Raises what each worker would, before there is one."""
    try:
        # Of the very object: a decorator may add arguments to what it wraps.
        signature = inspect.signature(worker_loop, follow_wrapped=False)
    except (TypeError, ValueError):
        # It does not tell.
        return
    try:
        signature.bind(None, **kwargs)
    except TypeError as error:
        name = getattr(worker_loop, "__qualname__", repr(worker_loop))
        given = ", ".join(["worker", *(f"{argument}=..." for argument in kwargs)])
        hint = ". With fun alone, a loop that calls it for each task is run" if "fun" in kwargs else ""
        raise TypeError(f"worker_loop cannot be called as {name}({given}): {error}{hint}") from None


def _log_settings(levels: Levels, buffer_size: int | None, output_dir: str | os.PathLike[str] | None) -> LogSettings:
    plan = rush_config()
    if plan is not None:
        levels = plan.log_levels if levels is None else levels
        buffer_size = plan.buffer_size if buffer_size is None else buffer_size
    return LogSettings(
        levels=log_level_numbers(levels),
        buffer_size=LogSettings.buffer_size if buffer_size is None else buffer_size,
        output_dir=None if output_dir is None else os.path.abspath(output_dir),  # noqa: PTH100 - text
    )


def _checked_number(n_workers: int | None) -> int:
    if n_workers is None:
        plan = rush_config()
        return cpu_count() if plan is None else plan.n_workers
    if not isinstance(n_workers, int):
        raise TypeError(f"n_workers must be an integer, not {type(n_workers).__name__}")
    if n_workers < 1:
        raise ValueError("n_workers must be >= 1")
    return n_workers


def _checked_folder(path: str | os.PathLike[str] | None) -> str:
    if path is None:
        return ""
    # Not `resolve`: what is a link here may be something else elsewhere.
    folder = os.path.abspath(os.fspath(path))  # noqa: PTH100
    if not os.path.isdir(folder):  # noqa: PTH112
        raise ValueError(f"large_objects_path must be a folder that is there: {folder!r} is none")
    return folder


def _reconnected(network_id: str, url: str, options: dict[str, Any]) -> Rush:
    return Rush(network_id, url, **options)


def _close_all(crews: list[Crew], watches: list[Watch], server: EmbeddedServer | None, pool: Any) -> None:
    for watch in watches:
        watch.stop()
    for crew in crews:
        # Nobody takes what workers finish after the end of the server; they would wait for it.
        crew.stop(now=False, is_in_vain=lambda: server is not None and server.has_ended())
    if server is not None:
        server.stop()
    pool.disconnect()
