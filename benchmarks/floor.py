"""The floor: the least that a program with redis-py can do and still give Futures over a server.

    submit: pickle (number, function, arguments), and push what has come together with one RPUSH
    each of the worker processes: pop up to 100, run them, push the pickled results back with one RPUSH
    a thread: pop results, resolve Futures

No records, no owners, no attempts, no cancelling, no errors: a worker that dies takes its tasks along, a lost reply
loses them, an exception ends the worker. So it is no queue to be used, but what a server and pickled tuples cost
whatever is built on them.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

import redis

__all__ = ["Floor"]

_BATCH: Final = 100


def _connect(url: str) -> redis.Redis:
    # redis-py breaks off a wait after 5 s by itself.
    return redis.Redis.from_url(url, protocol=2, socket_timeout=None)


def _pop(client: redis.Redis, key: str) -> list[bytes]:
    """Waits for one, and takes what else is there."""
    _, first = client.blpop(key)
    return [first, *(client.lpop(key, _BATCH - 1) or ())]


def _work(url: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    client = _connect(url)
    while True:
        results = []
        for raw in _pop(client, "queue"):
            number, fn, args = pickle.loads(raw)  # noqa: S301 - of a server that this program has started
            results.append(pickle.dumps((number, fn(*args)), 5))
        client.rpush("results", *results)


class _Future(Future):
    """Sends what waits to be sent before it waits itself."""

    def __init__(self, flush: Callable[[], None]) -> None:
        super().__init__()
        self._flush = flush

    def result(self, timeout: float | None = None) -> Any:
        if not self.done():
            self._flush()
        return super().result(timeout)


class Floor:
    """Two loops, a queue, and a thread that reads.

    Args:
        url: Of a server that nobody else uses.
        n_workers: Worker processes.
    """

    def __init__(self, url: str, n_workers: int) -> None:
        self._client = _connect(url)
        self._n = 0
        self._futures: dict[int, Future[Any]] = {}
        self._outbox: list[bytes] = []
        self._lock = threading.Lock()
        self._workers = [multiprocessing.Process(target=_work, args=(url,), daemon=True) for _ in range(n_workers)]
        for worker in self._workers:
            worker.start()
        threading.Thread(target=self._read, args=(url,), daemon=True).start()

    def submit(self, fn: Callable[..., Any], *args: Any) -> Future[Any]:
        """Schedules a call."""
        future = _Future(self._flush)
        with self._lock:
            self._n += 1
            self._futures[self._n] = future
            self._outbox.append(pickle.dumps((self._n, fn, args), 5))
            is_full = len(self._outbox) >= _BATCH
        if is_full:
            self._flush()
        return future

    def close(self) -> None:
        """Ends the workers."""
        for worker in self._workers:
            worker.terminate()
            worker.join()

    def _flush(self) -> None:
        with self._lock:
            batch, self._outbox = self._outbox, []
            if batch:
                self._client.rpush("queue", *batch)

    def _read(self, url: str) -> None:
        client = _connect(url)
        try:
            while True:
                for raw in _pop(client, "results"):
                    number, value = pickle.loads(raw)  # noqa: S301 - as above
                    self._futures.pop(number).set_result(value)
        except redis.ConnectionError:
            # The server has ended.
            return
