"""Those that are compared, each behind the same few methods, each with its own defaults.

A pool is made, warmed up, measured and closed in a process that does nothing else (`measure.py`), which imports only
that pool's library: a pool that forks its workers gives them no burden of another one.

`can` says what a pool is asked for: where it has no such call (joblib has no `submit`, RQ no `map`), or where it is not
made for it, its cell stays empty.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

__all__ = ["POOLS", "Handle", "Pool", "is_installed"]

Fn = Callable[..., Any]

# Submit one by one and get a handle, also from several threads; map with a chunksize; arrays of 1 and 100 MB; closures;
# a queue of 100,000; more workers than CPUs, and workers without work.
ALL = frozenset({"submit", "threads", "map", "data", "closure", "queue", "workers"})


class Handle(Protocol):
    """What `submit` returns."""

    def result(self) -> Any:
        """Waits for the result."""


class Pool:
    """A pool of worker processes.

    Attributes:
        name: In the table.
        package: What has to be installed.
        can: What it is asked for.
        share: How much of the tasks of a burst it is given: those that take long for one get fewer, or the run would
            never end. Their rates do not depend on it.
        by_value: Whether it sends closures.
        server_url: Where its queue is, if that is a server.
    """

    name = ""
    package = ""
    can = ALL
    share = 1.0
    by_value = False
    server_url: str | None = None

    def open(self, n_workers: int) -> None:
        """Starts it; returns when tasks can be submitted."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends it."""
        raise NotImplementedError

    def submit(self, fn: Fn, *args: Any) -> Handle:
        """Schedules a call."""
        raise NotImplementedError

    def results(self, handles: Sequence[Handle]) -> list[Any]:
        """Waits for all."""
        return [handle.result() for handle in handles]

    def run(self, fn: Fn, values: Iterable[Any]) -> list[Any]:
        """One task for each value."""
        return self.results([self.submit(fn, value) for value in values])

    def map(self, fn: Fn, values: Iterable[Any], chunksize: int) -> list[Any]:
        """The builtin `map`, with so many values a task."""
        raise NotImplementedError

    @contextlib.contextmanager
    def opened(self, n_workers: int) -> Iterator[Pool]:
        """Opens it for the length of a block."""
        self.open(n_workers)
        try:
            yield self
        finally:
            self.close()


class Rush(Pool):
    name = "rush"
    package = "rush_executor"
    by_value = True

    def __init__(self, url: str | None = None, network_id: str | None = None) -> None:
        self.server_url = url
        self._network_id = network_id

    def open(self, n_workers: int) -> None:
        from rush_executor import RushExecutor  # noqa: PLC0415

        self._executor = RushExecutor(n_workers, url=self.server_url, network_id=self._network_id)
        self.submit = self._executor.submit

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)

    def map(self, fn: Fn, values: Iterable[Any], chunksize: int) -> list[Any]:
        return list(self._executor.map(fn, values, chunksize=chunksize))


class Standard(Pool):
    """`ProcessPoolExecutor`, with the platform's start method: fork on Linux before Python 3.14."""

    name = "ppe"
    package = "concurrent.futures"

    def open(self, n_workers: int) -> None:
        from concurrent.futures import ProcessPoolExecutor  # noqa: PLC0415

        # Ctrl-C goes to all processes of a terminal; these workers would each print a traceback.
        self._executor = ProcessPoolExecutor(
            n_workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
        )
        self.submit = self._executor.submit

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)

    def map(self, fn: Fn, values: Iterable[Any], chunksize: int) -> list[Any]:
        return list(self._executor.map(fn, values, chunksize=chunksize))


class Loky(Pool):
    name = "loky"
    package = "loky"
    # Each of its workers is an interpreter that starts: 64 of them take longer than all the rest of a round.
    can = ALL - {"workers"}
    by_value = True

    def open(self, n_workers: int) -> None:
        from loky import ProcessPoolExecutor  # noqa: PLC0415

        self._executor = ProcessPoolExecutor(n_workers)
        self.submit = self._executor.submit

    def close(self) -> None:
        self._executor.shutdown(kill_workers=True)

    def map(self, fn: Fn, values: Iterable[Any], chunksize: int) -> list[Any]:
        return list(self._executor.map(fn, values, chunksize=chunksize))


class Joblib(Pool):
    """Its own way: no `submit`, batches of a size that it finds out by itself."""

    name = "joblib"
    package = "joblib"
    can = frozenset({"map", "data", "closure"})
    by_value = True

    def open(self, n_workers: int) -> None:
        import joblib  # noqa: PLC0415

        self._n_workers = n_workers
        self._delayed = joblib.delayed
        self._make = joblib.Parallel
        self._parallel = joblib.Parallel(n_jobs=n_workers)
        self._parallel.__enter__()

    def close(self) -> None:
        from joblib.externals.loky import get_reusable_executor  # noqa: PLC0415

        self._parallel.__exit__(None, None, None)
        get_reusable_executor().shutdown(kill_workers=True)

    def run(self, fn: Fn, values: Iterable[Any]) -> list[Any]:
        delayed = self._delayed(fn)
        return self._parallel(delayed(value) for value in values)

    def map(self, fn: Fn, values: Iterable[Any], chunksize: int) -> list[Any]:
        # The workers are those of the pool, which is one for the whole process.
        delayed = self._delayed(fn)
        return self._make(n_jobs=self._n_workers, batch_size=chunksize)(delayed(value) for value in values)


class Pebble(Pool):
    name = "pebble"
    package = "pebble"

    def open(self, n_workers: int) -> None:
        from pebble import ProcessPool  # noqa: PLC0415

        self._pool = ProcessPool(max_workers=n_workers)
        self._pool.__enter__()

    def close(self) -> None:
        self._pool.stop()
        self._pool.join()

    def submit(self, fn: Fn, *args: Any) -> Handle:
        return self._pool.schedule(fn, args=args)

    def map(self, fn: Fn, values: Iterable[Any], chunksize: int) -> list[Any]:
        return list(self._pool.map(fn, values, chunksize=chunksize).result())


class _Getter:
    """`multiprocessing.pool.AsyncResult` and its like."""

    def __init__(self, pending: Any) -> None:
        self.result = pending.get


class Mpire(Pool):
    name = "mpire"
    package = "mpire"
    # Not to be called by several threads (2.10.2 hangs), and workers that are held hold back what is behind them.
    can = ALL - {"threads", "queue", "workers"}

    def open(self, n_workers: int) -> None:
        from mpire import WorkerPool  # noqa: PLC0415

        # Workers that have served the one call do not serve the other: "map" after "apply" raises.
        self._apply_pool, self._map_pool = (WorkerPool(n_jobs=n_workers, keep_alive=True) for _ in range(2))

    def close(self) -> None:
        self._apply_pool.terminate()
        self._map_pool.terminate()

    def submit(self, fn: Fn, *args: Any) -> Handle:
        return _Getter(self._apply_pool.apply_async(fn, args))

    def map(self, fn: Fn, values: Iterable[Any], chunksize: int) -> list[Any]:
        return self._map_pool.map(fn, list(values), chunk_size=chunksize)


class Dask(Pool):
    """A `LocalCluster`: scheduler in this process, workers with one thread each in processes of their own."""

    name = "dask"
    package = "distributed"
    can = ALL - {"map", "queue", "workers"}
    share = 0.1
    by_value = True

    def open(self, n_workers: int) -> None:
        import warnings  # noqa: PLC0415

        from distributed import Client, LocalCluster  # noqa: PLC0415

        # It says that a large graph is slow. So it is.
        warnings.simplefilter("ignore")
        self._cluster = LocalCluster(
            n_workers=n_workers, threads_per_worker=1, dashboard_address=None, silence_logs=logging.CRITICAL
        )
        self._client = Client(self._cluster)

    def close(self) -> None:
        self._client.close()
        self._cluster.close()

    def submit(self, fn: Fn, *args: Any) -> Handle:
        # Not pure: else a call that was made before is not run again.
        return self._client.submit(fn, *args, pure=False)

    def results(self, handles: Sequence[Handle]) -> list[Any]:
        return self._client.gather(list(handles))

    def run(self, fn: Fn, values: Iterable[Any]) -> list[Any]:
        return self._client.gather(self._client.map(fn, list(values), pure=False))


class _OnServer(Pool):
    """One whose queue is on a server: it gets one of its own, of the same binary as RushExecutor's private one."""

    def open(self, n_workers: int) -> None:
        from rush_executor.testing import temporary_server  # noqa: PLC0415

        self._stack = contextlib.ExitStack()
        self.server_url = self._stack.enter_context(temporary_server())
        self._begin(n_workers)

    def close(self) -> None:
        self._end()
        self._stack.close()

    def _begin(self, n_workers: int) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        raise NotImplementedError

    def _start(self, command: Sequence[str], **environment: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


class FloorPool(_OnServer):
    """See `floor.py`."""

    name = "floor"
    package = "redis"
    # Its workers take 100 tasks at once whatever these are.
    can = ALL - {"closure", "queue", "workers"}

    def _begin(self, n_workers: int) -> None:
        from benchmarks.floor import Floor  # noqa: PLC0415

        self._floor = Floor(self.server_url or "", n_workers)
        self.submit = self._floor.submit

    def _end(self) -> None:
        self._floor.close()

    def map(self, fn: Fn, values: Iterable[Any], chunksize: int) -> list[Any]:
        if chunksize == 1:
            return self.run(fn, values)
        items = list(values)
        chunks = [items[i : i + chunksize] for i in range(0, len(items), chunksize)]
        handles = [self.submit(_run_chunk, fn, chunk) for chunk in chunks]
        return [value for chunk in self.results(handles) for value in chunk]


def _run_chunk(fn: Fn, values: list[Any]) -> list[Any]:
    return [fn(value) for value in values]


class _RqHandle:
    def __init__(self, job: Any) -> None:
        self._job = job

    def result(self) -> Any:
        result = self._job.latest_result(timeout=60)
        if result is None or result.type is not result.Type.SUCCESSFUL:
            raise RuntimeError(f"a job has not succeeded: {result}")
        return result.return_value


class Rq(_OnServer):
    """With its SimpleWorker: the default worker forks for each job, which is slower still."""

    name = "rq"
    package = "rq"
    can = frozenset({"submit", "threads"})
    share = 0.1

    def _begin(self, n_workers: int) -> None:
        import redis  # noqa: PLC0415
        import rq  # noqa: PLC0415

        url = self.server_url or ""
        self._queue = rq.Queue(connection=redis.Redis.from_url(url))
        command = ["rq.cli", "worker", "--url", url, "--worker-class", "rq.worker.SimpleWorker", "--quiet"]
        self._workers = [self._start(command) for _ in range(n_workers)]

    def _end(self) -> None:
        _kill(self._workers)

    def submit(self, fn: Fn, *args: Any) -> Handle:
        return _RqHandle(self._queue.enqueue(fn, *args))


class CeleryPool(_OnServer):
    """Prefork workers, the server as broker and as backend, pickle as RushExecutor and the others use it."""

    name = "celery"
    package = "celery"
    can = frozenset({"submit", "threads"})
    share = 0.1

    def _begin(self, n_workers: int) -> None:
        os.environ["BENCHMARK_SERVER"] = f"redis+socket://{(self.server_url or '').removeprefix('unix://')}"
        from benchmarks.celery_app import make_app  # noqa: PLC0415

        self._call = make_app().tasks["call"]
        command = ["celery", "-A", "benchmarks.celery_app", "worker", "-P", "prefork", "-c", str(n_workers)]
        self._workers = [self._start([*command, "--loglevel", "CRITICAL"], C_FORCE_ROOT="1")]

    def _end(self) -> None:
        _kill(self._workers)

    def submit(self, fn: Fn, *args: Any) -> Handle:
        return _Getter(self._call.delay(fn, *args))


def _kill(workers: Iterable[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        worker.terminate()
    end_at = time.monotonic() + 5
    for worker in workers:
        try:
            worker.wait(max(0.0, end_at - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


POOLS: dict[str, type[Pool]] = {
    pool.name: pool for pool in (Rush, Standard, FloorPool, Loky, Joblib, Pebble, Mpire, Dask, CeleryPool, Rq)
}


def is_installed(name: str) -> bool:
    """Whether the library of a pool is there."""
    return importlib.util.find_spec(POOLS[name].package) is not None
