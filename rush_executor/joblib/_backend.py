"""joblib's backend: batches of a `Parallel` call become tasks of an executor.

    joblib                     this backend                          executor
    configure            ----> settings -> a pool is open
    submit(batch)        ----> large arrays to files, the rest ----> run_batch(batch) in a worker
    callback(future)     <--------------------------------------     outcome
    abort_everything     ----> thread: cancel, kill, wait     ---->  queued tasks go, workers that run one are replaced
    terminate            ----> files of arrays go; the pool stays open for the next call

joblib calls `submit` from the thread that runs `Parallel` and, through the callback, from the executor's thread for
callbacks. One backend object serves all calls inside a ``with parallel_config(...)``, possibly several at once
(``return_as="generator"``), and nothing tells it which of them asks.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, wait
from contextlib import nullcontext
from typing import Any, Final

from joblib import ParallelBackendBase, cpu_count
from joblib.parallel import AutoBatchingMixin

from rush_executor._client.future import RushFuture
from rush_executor.errors import TaskKilledError
from rush_executor.joblib._arrays import ArrayFile, ArrayFolder
from rush_executor.joblib._pools import POOLS, Pool, Settings

__all__ = ["RushBackend", "run_batch"]

# As long as loky's workers stay.
_IDLE_S: Final = 300.0
_LARGE_ARRAY: Final = 1 << 20
# How long an aborted call waits for the end of its tasks, which takes milliseconds unless the machine or the server is
# in trouble; they end all the same. It must not wait for ever: see `abort_everything`.
_ABORT_S: Final = 3.0


def run_batch(batch: Callable[[], list[Any]]) -> list[Any]:
    """Runs in a worker. That its module is imported there registers the backend for nested calls that name it."""
    return batch()


class _Workers:
    """What is sent through this object was submitted by calls with the same settings, between two aborts.

    Args:
        settings: Of the executor.
        arrays: Where large arrays are kept; None to send them with each task.
        under_way: Every Future is entered here until it is done.
    """

    def __init__(self, settings: Settings, arrays: ArrayFolder | None, under_way: dict[RushFuture, Pool]) -> None:
        self.settings = settings
        self._arrays = arrays
        self._under_way = under_way

    def submit(self, batch: Callable[[], list[Any]]) -> RushFuture:
        """Submits a batch."""
        pool = POOLS.take(self.settings)
        files: list[ArrayFile] = []
        try:
            with self._arrays.lent() if self._arrays is not None else nullcontext(files) as files:
                future = pool.executor.submit(run_batch, batch)
        except BaseException:
            self._give_back(pool, files)
            raise
        self._under_way[future] = pool
        future.add_done_callback(functools.partial(self._end, pool, files))
        return future

    def close(self) -> None:
        """A call has ended."""
        if self._arrays is not None:
            self._arrays.forget()

    def _end(self, pool: Pool, files: list[ArrayFile], future: Future[Any]) -> None:
        self._under_way.pop(future, None)  # type: ignore[call-overload] # it is a RushFuture
        self._give_back(pool, files)

    def _give_back(self, pool: Pool, files: list[ArrayFile]) -> None:
        POOLS.give_back(pool)
        if self._arrays is not None:
            self._arrays.give_back(files)


class RushBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc] # joblib has no type information
    """The backend "rush": joblib's tasks on a `RushExecutor`.

    Args:
        nesting_level: How many parallel calls this one is inside of; joblib sets it.
        inner_max_num_threads: As for `RushExecutor`; joblib sets it.
        **options: Arguments of `RushExecutor`: ``url``, ``network_id``, ``secret``, ``max_retries`` and so on, and
            ``idle_worker_timeout``: after how many seconds without a task the executor is closed, 300 by default.
            ``max_workers`` is ``n_jobs`` unless given, and then ``n_jobs`` is -1 unless given; with 0, only workers
            that joined from elsewhere are used.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True

    def __init__(
        self, *, nesting_level: int | None = None, inner_max_num_threads: int | None = None, **options: Any
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        # As joblib's own backends, one task at a time unless the user says otherwise, here or by a number of workers.
        self.default_n_jobs = -1 if "max_workers" in options else 1
        self._options = options
        self._is_parallel = True
        self._under_way: dict[RushFuture, Pool] = {}
        self._open: Callable[[], _Workers] | None = None
        # None between calls.
        self._workers: _Workers | None = None

    @property
    def supports_timeout(self) -> bool:
        """Whether a call can be given a time limit: not when joblib runs its tasks itself."""
        return self._is_parallel

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many tasks run at once; negative numbers count from all CPUs, or from all workers: -1 is all."""
        return self._n_jobs(n_jobs, self._options)

    def configure(
        self,
        n_jobs: int | None = 1,
        parallel: Any = None,
        prefer: str | None = None,  # noqa: ARG002 - joblib has looked at it
        require: str | None = None,  # noqa: ARG002 - likewise
        *,
        max_nbytes: float | None = _LARGE_ARRAY,
        mmap_mode: str | None = "r",
        temp_folder: str | os.PathLike[str] | None = None,
        verbose: int = 0,  # noqa: ARG002 - how much loky is to tell
        context: object = None,  # noqa: ARG002 - how multiprocessing is to start processes
        **options: Any,
    ) -> int:
        """Prepares a call, and opens the executor if it is not open.

        Returns:
            How many tasks run at once. With 1 joblib runs them itself.

        Raises:
            ValueError, TypeError: An argument makes no sense.
            ServerError: The server cannot be found, started or reached.
        """
        options = {**self._options, **options}
        n_jobs = self._n_jobs(n_jobs, options)
        self.parallel = parallel
        self._is_parallel = n_jobs > 1
        if not self._is_parallel:
            return n_jobs
        settings = self._settings({"max_workers": n_jobs, **options})

        def open_workers() -> _Workers:
            arrays = None
            # With a name, workers may join from machines that do not have the file.
            if options.get("network_id") is None:
                arrays = ArrayFolder(
                    None if temp_folder is None else os.fspath(temp_folder),
                    least_bytes=math.inf if max_nbytes is None or mmap_mode is None else max_nbytes,
                    mode=mmap_mode or "r",
                )
            return _Workers(settings, arrays, self._under_way)

        POOLS.give_back(POOLS.take(settings))
        self._close()
        self._open = open_workers
        self._workers = open_workers()
        return n_jobs

    def submit(self, func: Callable[[], list[Any]], callback: Callable[[Any], object] | None = None) -> Future[Any]:
        """Submits a batch.

        Returns:
            A Future. What goes wrong here is its error: in the callback's thread nobody would hear of it, and the call
            would wait for ever.
        """
        future: Future[Any]
        try:
            future = self._current_workers().submit(func)
        except Exception as error:  # noqa: BLE001 - see above
            future = Future()
            future.set_exception(error)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    # What joblib before 1.5 calls it.
    apply_async = submit

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """The results of a batch.

        Raises:
            BaseException: What a task raised.
        """
        try:
            return out.result()
        except (CancelledError, TaskKilledError) as error:
            # A call that was aborted asks for nothing any more.
            raise RuntimeError(_STOPPED) from error

    def abort_everything(self, ensure_ready: bool = True) -> None:  # noqa: FBT001, FBT002 - as joblib has it
        """Stops what was submitted: queued tasks are cancelled, the workers of running ones killed and replaced."""
        self._close()
        under_way = self._under_way.copy()
        if under_way:
            # On a thread of its own: a generator that is collected as garbage is aborted wherever that happens, maybe
            # in the middle of a submit, which holds locks that are needed here. Then it has to go on without waiting.
            thread = threading.Thread(target=_stop, args=(under_way,), name="rush-joblib-abort", daemon=True)
            # At the very end of the interpreter there are no threads any more, and the executors have ended.
            with contextlib.suppress(RuntimeError):
                thread.start()
                thread.join(_ABORT_S)
        if ensure_ready and self._open is not None:
            self._workers = self._open()
        else:
            self._open = None

    def terminate(self) -> None:
        """Ends a call; the executor stays open for the next one."""
        self._close()
        self.reset_batch_stats()

    def _n_jobs(self, n_jobs: int | None, options: dict[str, Any]) -> int:
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            n_jobs = self.default_n_jobs
        if n_jobs > 0:
            return n_jobs
        n_workers = options.get("max_workers")
        if n_workers == 0:
            pool = POOLS.take(self._settings(options))
            n_workers = pool.executor._max_workers  # noqa: SLF001 - the standard library's name for it
            POOLS.give_back(pool)
            # Not 1: joblib would run the tasks here, where nothing is to run.
            return max(2, n_workers + 1 + n_jobs)
        return max(1, int(n_workers or cpu_count()) + 1 + n_jobs)

    def _settings(self, options: dict[str, Any]) -> Settings:
        arguments = {"inner_max_num_threads": self.inner_max_num_threads, **options}
        idle_s = arguments.pop("idle_worker_timeout", None)
        return Settings.now(arguments, _IDLE_S if idle_s is None else float(idle_s))

    def _current_workers(self) -> _Workers:
        workers = self._workers
        if workers is None:
            if self._open is None:
                raise RuntimeError(_STOPPED)
            # Another call with this backend object has ended, this one has not.
            workers = self._workers = self._open()
        return workers

    def _close(self) -> None:
        workers, self._workers = self._workers, None
        if workers is not None:
            workers.close()


_STOPPED: Final = "this call was stopped: it, or another one with the same backend object, was aborted"


def _stop(under_way: dict[RushFuture, Pool]) -> None:
    """Stops tasks, and waits for their end."""
    for pool in set(under_way.values()):
        futures = [future for future, its_pool in under_way.items() if its_pool is pool]
        # First what is queued, all at once: otherwise the place of a task that is killed is taken by the next one.
        pool.executor._session.cancel_all(futures)  # noqa: SLF001 - for one after the other, `Future.cancel`
    for future in under_way:
        future.kill()
    wait(under_way)
