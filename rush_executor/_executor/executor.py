"""`RushExecutor`: `concurrent.futures.Executor` on a Redis or Valkey server."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rush_executor._agent.supervisor import AgentSettings
from rush_executor._client.future import RushFuture
from rush_executor._client.session import Session
from rush_executor._config import (
    DEFAULT_MAX_RETRIES,
    HIGHEST_PRIORITY,
    NetworkConfig,
    chosen_secret,
    cpu_count,
    default_url,
    worker_environment,
)
from rush_executor._crew.crew import Crew
from rush_executor._crew.ctrl_c import ctrl_c_held_back
from rush_executor._executor.mapping import Submit, map_results, n_submitted_later
from rush_executor._executor.pool import PoolView
from rush_executor._executor.progress import Progress, ProgressWish
from rush_executor._ledger.connection import check_server
from rush_executor._ledger.server import EmbeddedServer
from rush_executor._payload import EncodedFunction, Encoder, RushReference
from rush_executor._protocol.ids import new_id
from rush_executor._protocol.keys import check_network_id
from rush_executor._protocol.records import TaskOptions
from rush_executor._shared.directory import SharedDirectory
from rush_executor.errors import PayloadError

if TYPE_CHECKING:
    from rush_executor._network.rush import Rush

__all__ = ["OptionsView", "RushExecutor", "TaskExecutor", "make_encoder"]


class TaskExecutor(Executor):
    """`submit` and `map` with the options of a view; shared by the executor and its views."""

    _session: Session
    _options: TaskOptions
    # Shows what is submitted, where that is wanted.
    _progress: Progress | None = None

    @property
    def _max_workers(self) -> int:
        """Number of workers, as dask and others read it off an executor: at least 1."""
        raise NotImplementedError

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> RushFuture:
        """Schedules ``fn(*args, **kwargs)`` on a worker.

        Every keyword is the function's: what concerns the task goes through `RushExecutor.options`.

        Returns:
            A Future. What cannot be pickled is its error, not raised here.

        Raises:
            RuntimeError: The executor was shut down, or is the parent's of this process.
            BrokenExecutor: The initializer failed, or the server was lost.
        """
        future = self._send(self._encode(fn), args, kwargs, self._options)
        # An error of pickling refers to the frames that led to it, and would keep the arguments.
        del args, kwargs
        return future

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """The builtin `map`, with the calls made by workers.

        Args:
            fn: Packed once for all calls.
            *iterables: As many as `fn` takes arguments; read at once unless `buffersize` says otherwise.
            timeout: Seconds from now within which every result must be there; None for no limit.
            chunksize: Items that travel, and are run, as one task.
            buffersize: How many items may be read ahead of the result that was yielded last; None for all.

        Returns:
            An iterator over the results, in the order of the input.

        Raises:
            TimeoutError: From the iterator, when a result comes too late.
            ValueError: `chunksize` or `buffersize` is below 1.
        """
        return map_results(
            self._submitter(fn),
            self._session.cancel_all,
            iterables,
            timeout=timeout,
            chunksize=chunksize,
            buffersize=buffersize,
        )

    def scatter(self, obj: object) -> RushReference:
        """Sends an object once, for any number of tasks.

        Returns:
            A reference. Where a task of this executor has it as an argument, or anywhere inside of one, the function
            gets the object: an equal one of its own, whose large arrays take no memory of their own until the task
            writes to them. The object is kept until the reference is gone, and no task that has it is pending.

        Raises:
            PayloadError: The object cannot be pickled.
            RuntimeError: The executor was shut down, or is the parent's of this process.
        """
        return self._session.scatter(obj)

    def options(
        self,
        *,
        timeout: float | None = None,
        max_retries: int | None = None,
        priority: int | None = None,
        retry_on: type[BaseException] | tuple[type[BaseException], ...] | None = None,
        kill_on_cancel: bool | None = None,
        progress: ProgressWish | None = None,
    ) -> OptionsView:
        """The same executor, with other options for what is submitted through it; what is None stays as it is.

        Args:
            timeout: Seconds that one attempt at a task may take, from its start in the worker. One that overstays is
                killed with its worker, also in C code, and raises `TaskTimeoutError`. `math.inf` for no limit.
            max_retries: How many times a task is run again: because its worker died, or for `retry_on`.
            priority: Higher runs earlier, strictly; -4095 to 4095, 0 by default. Equal ones run as submitted.
            retry_on: Exception types. A task that fails with one of them is run again after a pause that doubles each
                time, with jitter. `()` for none. One that was killed is not; one that exceeded its time limit only
                where `TaskTimeoutError` itself is named.
            kill_on_cancel: Whether `cancel` of a Future ends its task also while it runs, as `RushFuture.kill` does; so
                does asyncio when it cancels what awaits the task, as in a time-out. `cancel` is False all the same.
            progress: Show how far all that is under way through the view is, in a bar on a terminal or in a notebook:
                what is done and failed, how fast, how long it will take. "always": where stderr is neither, too.

        Returns:
            An Executor. Shutting it down shuts down the executor that it is a view of.
        """
        options = _checked_options(self._options, timeout, max_retries, priority, retry_on)
        if kill_on_cancel is not None:
            options = options._replace(is_killed_by_cancel=bool(kill_on_cancel))
        return OptionsView(self, options, progress=_checked_progress(progress, self._progress))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Takes no more tasks; what was submitted is finished.

        Args:
            wait: Return when everything is finished, callbacks have run, and no process is left. False returns at
                once, where the server answers; the same happens all the same, at the latest when the interpreter exits.
            cancel_futures: Cancel what no worker has claimed.
        """
        self._session.shut_down(why="shutdown", cancel_futures=cancel_futures)
        if wait:
            self._session.join()

    def terminate_workers(self) -> None:
        """Ends this executor's workers at once and shuts it down, without waiting (as in Python 3.14).

        What was running fails with `WorkerLostError`; what was not is cancelled. Workers that joined from elsewhere go
        on. Here it is the same as `kill_workers`: a worker that is asked politely finishes its task.
        """
        self._end_now("terminate_workers")

    def kill_workers(self) -> None:
        """Kills this executor's workers at once and shuts it down, without waiting (as in Python 3.14).

        What was running fails with `WorkerLostError`; what was not is cancelled. Workers that joined from elsewhere go
        on.
        """
        self._end_now("kill_workers")

    def _end_now(self, how: str) -> None:
        self._session.end_now(how)

    def as_pool(self) -> PoolView:
        """The same executor with the methods of `multiprocessing.Pool`, for libraries that ask for a pool.

        Returns:
            A view with ``map``, ``starmap``, ``imap``, ``imap_unordered``, ``apply``, ``apply_async``, ``map_async``,
            ``starmap_async``, ``size``, ``close``, ``terminate`` and ``join``. Leaving its ``with`` block, as that of a
            `multiprocessing.Pool`, ends what was submitted through it and is not done; the executor goes on.
        """
        return PoolView(self)

    def _submitter(self, fn: Callable[..., Any]) -> Submit:
        """Packs a function once; what it gives submits calls of it."""
        function = self._encode(fn)

        def submit(args: tuple[Any, ...], *, is_chunk: bool) -> RushFuture:
            return self._send(function, args, {}, self._options, is_chunk=is_chunk)

        return submit

    def _send(
        self,
        function: EncodedFunction | PayloadError,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions,
        *,
        is_chunk: bool = False,
    ) -> RushFuture:
        """Submits a task: every way in leads through here."""
        future = self._session.submit(function, args, kwargs, options, is_chunk=is_chunk)
        # As above.
        del args, kwargs
        return future

    def _encode(self, fn: Callable[..., Any]) -> EncodedFunction | PayloadError:
        try:
            return self._session.encode_function(fn)
        except PayloadError as error:
            return error


class OptionsView(TaskExecutor):
    """An executor with other options; see `RushExecutor.options`."""

    def __init__(self, executor: TaskExecutor, options: TaskOptions, *, progress: Progress | None) -> None:
        # Not let go while the view is used. Of a view of a view the executor itself: the options are all here.
        self._executor: TaskExecutor = executor._executor if isinstance(executor, OptionsView) else executor  # noqa: SLF001
        self._progress = progress
        self._session = executor._session  # noqa: SLF001 - a view is of the executor's own kind
        self._options = options

    @property
    def _max_workers(self) -> int:
        return self._executor._max_workers  # noqa: SLF001

    def _send(
        self,
        function: EncodedFunction | PayloadError,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions,
        *,
        is_chunk: bool = False,
    ) -> RushFuture:
        progress = self._progress
        n_calls = len(args[0]) if is_chunk else 1
        future = self._executor._send(function, args, kwargs, options, is_chunk=is_chunk)  # noqa: SLF001
        del args, kwargs
        if progress is not None:
            progress.watch(future, n_calls)
        return future

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """As `RushExecutor.map`."""
        results = super().map(fn, *iterables, timeout=timeout, chunksize=chunksize, buffersize=buffersize)
        if self._progress is None:
            return results
        return self._progress.around(results, n_submitted_later(iterables, chunksize, buffersize))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Shuts down the executor that this is a view of."""
        self._executor.shutdown(wait, cancel_futures=cancel_futures)

    def _end_now(self, how: str) -> None:
        self._executor._end_now(how)  # noqa: SLF001

    def __repr__(self) -> str:
        options = self._options
        names = ", ".join(kind.__name__ for kind in options.retry_on)
        return (
            f"{self._executor!r}.options(timeout={options.timeout_s}, max_retries={options.max_retries}, "
            f"priority={options.priority}, retry_on=({names}))"
        )


class RushExecutor(TaskExecutor):
    """Runs calls on worker processes, here or on any machine that reaches the server.

    Args:
        max_workers: Worker processes to start on this machine; by default one per CPU. 0: only workers that joined
            from elsewhere (`rush-executor worker`) run tasks; needs `url` and `network_id`.
        url: Server: ``redis://``, ``rediss://`` or ``unix://``. By default `RUSH_URL` of the environment; where that
            is not set either, a private server is started, which ends with this process.
        network_id: Name of the network that clients and workers share; by default one of its own.
        initializer: Called in every worker at its start. If it fails, the executor is broken.
        initargs: Its arguments.
        max_tasks_per_child: A worker is replaced after so many tasks; by default never.
        max_retries: How many times a task is run again because the worker that ran it died.
        secret: Seals all payloads: what was not made by somebody who has the secret is never unpickled. By default
            `RUSH_SECRET` of the environment. Workers elsewhere need the same.
        inner_max_num_threads: Threads for BLAS, OpenMP and the like in each worker; by default an even share of the
            CPUs, unless the environment says otherwise.
        reconnect_timeout: Seconds that a lost server is waited for, since it was heard last. That one stands still is
            seen after eight: below that it makes no difference then.
        heartbeat_period: Seconds between two signs of life of an agent (the parent of the workers on one machine).
        heartbeat_expire: Seconds without one after which its workers are taken for lost.
        durable: Whether the network keeps tasks and outcomes when this program ends, however it ends: see `attach`.
            Needs `url` and `network_id`. They stay until ``Rush(network_id, url).reset()``.
        compress: Whether large arguments, functions and results are compressed on their way through the server, where a
            sample of them gets smaller. Needs zstd on every machine: Python 3.14, or ``rush-executor[zstd]``; where
            this program has none, nothing is compressed.

    Raises:
        ValueError, TypeError: An argument makes no sense; the message says which and why.
        ServerError: No server could be found, started or reached.
        PayloadError: The initializer cannot be pickled.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        url: str | None = None,
        network_id: str | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        max_tasks_per_child: int | None = None,
        max_retries: int = DEFAULT_MAX_RETRIES,
        secret: str | bytes | None = None,
        inner_max_num_threads: int | None = None,
        reconnect_timeout: float = 60.0,
        heartbeat_period: float = 3.0,
        heartbeat_expire: float = 15.0,
        durable: bool = False,
        compress: bool = False,
    ) -> None:
        _check_texts(url=url, network_id=network_id)
        if secret is not None and not isinstance(secret, str | bytes):
            raise TypeError(f"secret must be a string or bytes, not {type(secret).__name__}")
        if not isinstance(initargs, Iterable):
            raise TypeError(f"initargs must be a tuple, not {type(initargs).__name__}")
        url = url or default_url()
        self._n_own_workers = _checked_workers(max_workers, is_shared=url is not None and network_id is not None)
        if durable and (url is None or network_id is None):
            raise ValueError("durable needs url and network_id: what is kept must be found again")
        _check_positive_integer("max_tasks_per_child", max_tasks_per_child)
        _check_positive_integer("inner_max_num_threads", inner_max_num_threads)
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._options = _checked_options(TaskOptions(DEFAULT_MAX_RETRIES, 0), None, max_retries, None, None)
        sealed_by = chosen_secret(secret)
        client_id = new_id()
        server: EmbeddedServer | None = None
        crew: Crew | None = None
        session: Session | None = None
        files: SharedDirectory | None = None
        try:
            if url is None:
                with ctrl_c_held_back():
                    server = EmbeddedServer.start()
                url = server.url
            else:
                check_server(url)
            config = NetworkConfig(
                url=url,
                network_id=network_id or new_id(),
                secret=sealed_by,
                reconnect_timeout_s=reconnect_timeout,
                heartbeat_period_s=heartbeat_period,
                heartbeat_expire_s=heartbeat_expire,
                is_durable=durable,
                compresses=compress,
            )
            files = SharedDirectory.make(client_id)
            encoder = make_encoder(config, files)
            sealed = encoder.encode_initializer(initializer, tuple(initargs)) if initializer is not None else b""
            agent = AgentSettings(
                config=config,
                agent_id=new_id(),
                n_workers=self._n_own_workers,
                max_tasks_per_child=max_tasks_per_child,
                client_id=client_id,
                is_server_private=server is not None,
            )
            environment = worker_environment(max(1, self._n_own_workers), inner_max_num_threads)
            with ctrl_c_held_back():
                crew = Crew(agent if self._n_own_workers else None, environment, server)
            if server is not None:
                server.wait_ready()
            with ctrl_c_held_back():
                session = Session(config, encoder, sealed, client_id, crew, files=files)
        except BaseException:
            with ctrl_c_held_back():
                _clear_away(server, crew, session)
                if files is not None:
                    files.remove()
            raise
        self._session = session
        self.network_id = config.network_id
        # An executor that nobody refers to any more finishes what was submitted, and ends.
        weakref.finalize(self, self._session.forget).atexit = False

    @property
    def _max_workers(self) -> int:
        return self._n_own_workers or max(1, self._session.n_workers())

    @property
    def network(self) -> Rush:
        """The network, to be looked at: tasks in the queue and running, workers, the server.

        A `Rush` of its own; close it when it is not needed any more.
        """
        from rush_executor._network.rush import Rush  # noqa: PLC0415 - who does not look need not wait for it

        return Rush._beside(self._session.config, self._session.check_server)  # noqa: SLF001 - it is not for users

    def attach(self, task_ids: Iterable[str]) -> list[RushFuture]:
        """Futures for tasks that were submitted before, in a network that is durable.

        Whoever has submitted them (`RushFuture.task_id` names them) may be gone; if it is not, its own Futures of these
        tasks raise `RushError`: a task has one client.

        Args:
            task_ids: Ids of tasks that have not been cancelled.

        Returns:
            A Future for each, in this order; of those that have ended, it is resolved in a moment.

        Raises:
            KeyError: One of them is no task; nothing was done for the others.
            ValueError: One of them has a Future in this executor already; nothing was done for the others.
        """
        return self._session.attach(list(task_ids))

    @property
    def _broken(self) -> bool:
        """Whether the executor takes no tasks any more because something failed, as in the standard library."""
        return self._session.broken is not None

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        """Shuts down; after Ctrl-C without finishing what was submitted."""
        if exc_type is not None and issubclass(exc_type, KeyboardInterrupt):
            self._session.shut_down(why="shutdown", abort=True)
        self.shutdown(wait=True)

    def __repr__(self) -> str:
        return f"<RushExecutor network={self.network_id!r} max_workers={self._n_own_workers}>"


def make_encoder(config: NetworkConfig, files: SharedDirectory | None) -> Encoder:
    """The encoder of a client.

    Args:
        config: The network.
        files: The client's directory in shared memory, if there is one.
    """
    return Encoder(
        config.network_id,
        config.secret,
        files,
        # Whoever reaches a socket in the file system is on this machine.
        sends_files=config.url.startswith("unix:"),
        in_chunks=True,
        compresses=config.compresses,
    )


def _clear_away(server: EmbeddedServer | None, crew: Crew | None, session: Session | None) -> None:
    """Ends what an interrupted start has started."""
    if session is not None:
        session.shut_down(why="shutdown", abort=True)
        session.join()
        return
    if crew is not None:
        crew.stop(now=True)
    if server is not None:
        server.stop()


def _checked_workers(max_workers: int | None, *, is_shared: bool) -> int:
    if max_workers is None:
        return cpu_count()
    if not isinstance(max_workers, int):
        raise TypeError(f"max_workers must be an integer, not {type(max_workers).__name__}")
    if max_workers < 0 or (max_workers == 0 and not is_shared):
        raise ValueError(
            "max_workers must be greater than 0 (0, for workers that join from elsewhere, needs url and network_id)"
        )
    return max_workers


def _check_texts(*, url: str | None, network_id: str | None) -> None:
    if url is not None and not isinstance(url, str):
        raise TypeError(f"url must be a string, not {type(url).__name__}")
    if url == "":
        raise ValueError("url must not be empty; leave it out for RUSH_URL or a private server")
    if network_id is not None:
        # Before anything is started.
        check_network_id(network_id)


def _check_positive_integer(name: str, value: int | None) -> None:
    if value is None:
        return
    if not isinstance(value, int):
        raise TypeError(f"{name} must be an integer")
    if value < 1:
        raise ValueError(f"{name} must be >= 1")


def _checked_options(
    base: TaskOptions,
    timeout: float | None,
    max_retries: int | None,
    priority: int | None,
    retry_on: type[BaseException] | tuple[type[BaseException], ...] | None,
) -> TaskOptions:
    if max_retries is None:
        max_retries = base.max_retries
    if priority is None:
        priority = base.priority
    for name, value in (("max_retries", max_retries), ("priority", priority)):
        if not isinstance(value, int):
            raise TypeError(f"{name} must be an integer, not {type(value).__name__}")
    if max_retries < 0:
        raise ValueError("max_retries must be >= 0")
    if abs(priority) > HIGHEST_PRIORITY:
        raise ValueError(f"priority must be between -{HIGHEST_PRIORITY} and {HIGHEST_PRIORITY}")
    timeout_s = base.timeout_s if timeout is None else _checked_timeout(timeout)
    kinds = base.retry_on if retry_on is None else _checked_kinds(retry_on)
    return base._replace(max_retries=max_retries, priority=priority, timeout_s=timeout_s, retry_on=kinds)


def _checked_progress(wish: ProgressWish | None, inherited: Progress | None) -> Progress | None:
    if wish is None:
        return inherited
    if wish not in (True, False, "always"):
        raise ValueError(f'progress must be True, False or "always", not {wish!r}')
    return Progress(wish) if wish else None


def _checked_timeout(timeout: float) -> float | None:
    try:
        is_valid = timeout > 0
    except TypeError:
        raise TypeError(f"timeout must be a number of seconds, not {type(timeout).__name__}") from None
    if not is_valid:
        raise ValueError("timeout must be greater than 0")
    return None if math.isinf(timeout) else float(timeout)


def _checked_kinds(retry_on: object) -> tuple[type[BaseException], ...]:
    kinds = retry_on if isinstance(retry_on, tuple) else (retry_on,)
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise TypeError(f"retry_on must be an exception class or a tuple of them, not {kind!r}")
    return kinds
