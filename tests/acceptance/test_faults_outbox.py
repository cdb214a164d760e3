"""A server that takes tasks more slowly than they are submitted: `submit` waits, and memory does not grow."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rush_executor import NetworkLostError, RushExecutor
from rush_executor._client import outbox as outbox_module
from rush_executor._client import session as session_module
from rush_executor.testing import temporary_server
from tests.acceptance import tasks
from tests.integration.proxy import Proxy

Eventually = Callable[..., Any]

ROOM = 20


class Scene:
    """An executor behind a proxy, with little room in its outbox, and no submit that is lone and sends itself."""

    def __init__(self, proxy: Proxy, executor: RushExecutor, held: Future[Any], go: Path) -> None:
        self.proxy = proxy
        self.executor = executor
        self.futures: list[Future[Any]] = []
        # How many waited after each submit.
        self.depths: list[int] = []
        self._held = held
        self._go = go

    @property
    def n_waiting(self) -> int:
        return len(self.executor._session._dispatcher._outbox)

    @property
    def is_full(self) -> bool:
        """For as long as the server is away: the dispatcher has taken out what it cannot send."""
        dispatcher = self.executor._session._dispatcher
        return dispatcher._batch is not None and dispatcher._outbox.is_full

    def submit(self, n: int) -> None:
        for i in range(n):
            # One by one: what was submitted before an error counts.
            self.futures.append(self.executor.submit(abs, -i))
            self.depths.append(self.n_waiting)

    def check(self) -> None:
        """All that were submitted are run."""
        assert [future.result(30) for future in self.futures] == list(range(len(self.futures)))

    def release(self) -> None:
        self._go.touch()
        self._held.exception(30)


@pytest.fixture
def scene(
    server_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> Iterator[Callable[..., Scene]]:
    monkeypatch.setattr(outbox_module, "_MOST_TASKS", ROOM)
    # Not lone: another one is pending, and the one before was a moment ago.
    monkeypatch.setattr(session_module, "_BURST_GAP_S", 1e9)
    with contextlib.ExitStack() as stack:

        def make(url: str = server_url, **options: Any) -> Scene:
            proxy = stack.enter_context(Proxy(url))
            executor = stack.enter_context(RushExecutor(2, url=proxy.url, **options))
            held = executor.submit(tasks.wait_for, str(tmp_path / "go"))
            eventually(held.running)
            scene = Scene(proxy, executor, held, tmp_path / "go")
            stack.callback(scene.release)
            stack.callback(proxy.come_back)
            return scene

        yield make


def test_a_slow_server_slows_submit_down(scene: Callable[..., Scene]) -> None:
    """There is never more in the outbox than it has room for, and every task is run."""
    slow = scene()
    slow.proxy.slow_down(20e3)
    slow.submit(200)
    assert max(slow.depths) <= ROOM
    assert sum(depth >= ROOM - 1 for depth in slow.depths) > 2, "it was to be filled"
    slow.proxy.slow_down(0)
    slow.check()


def test_bytes_count_too(scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch, eventually: Eventually) -> None:
    """Few large tasks fill it as many small ones do; just not so large that they go through shared memory."""
    monkeypatch.setattr(outbox_module, "_MOST_BYTES", 270_000)
    away = scene()
    away.proxy.go_away()
    with ThreadPoolExecutor(1) as thread:
        submitting = thread.submit(lambda: [away.executor.submit(len, bytes(90_000)) for _ in range(12)])
        eventually(lambda: away.is_full)
        assert away.n_waiting == 3
        assert not submitting.done()
        away.proxy.come_back()
        assert [future.result(30) for future in submitting.result(30)] == [90_000] * 12


def test_a_server_that_is_away(scene: Callable[..., Scene], eventually: Eventually) -> None:
    """Whoever submits waits for room, and goes on when the server is back."""
    away = scene()
    away.proxy.go_away()
    thread = threading.Thread(target=away.submit, args=(500,))
    thread.start()
    eventually(lambda: away.is_full)
    thread.join(0.1)
    assert thread.is_alive()
    assert away.n_waiting == ROOM
    away.proxy.come_back()
    thread.join(30)
    away.check()


def test_a_server_that_stays_away(scene: Callable[..., Scene]) -> None:
    """Nobody waits for longer than `reconnect_timeout`: then the Future fails, and the next `submit` raises."""
    # Of its own: nobody is there any more who would delete the network.
    with temporary_server() as url:
        away = scene(url, reconnect_timeout=2)
        away.proxy.go_away()
        with pytest.raises(NetworkLostError):
            away.submit(100_000)
        assert len(away.futures) > ROOM
        for future in away.futures:
            assert isinstance(future.exception(30), NetworkLostError)
        assert away.n_waiting <= ROOM


def test_ctrl_c_breaks_the_wait(scene: Callable[..., Scene], eventually: Eventually) -> None:
    """The task that was about to be submitted is nobody's; the others, and later ones, are run."""
    away = scene()
    away.proxy.go_away()
    pending = away.executor._session._pending

    def interrupt() -> None:
        # One is pending, beside the one that is held, of which the caller has no Future.
        eventually(lambda: away.is_full and len(pending) == len(away.futures) + 2)
        os.kill(os.getpid(), signal.SIGINT)

    with ThreadPoolExecutor(1) as thread:
        interrupting = thread.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            away.submit(100_000)
        interrupting.result()
    assert len(pending) == len(away.futures) + 1
    away.proxy.come_back()
    away.check()
    assert away.executor.submit(abs, -3).result(30) == 3


def test_shutdown_while_somebody_waits(scene: Callable[..., Scene], eventually: Eventually) -> None:
    """What waits for room was submitted before: it is run like the rest; what comes later is refused."""
    away = scene()
    away.proxy.go_away()
    with ThreadPoolExecutor(2) as threads:
        submitting = threads.submit(away.submit, 100_000)
        eventually(lambda: away.is_full)
        closing = threads.submit(away.executor.shutdown)
        eventually(lambda: away.executor._session._why_closed)
        away.proxy.come_back()
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            submitting.result(30)
        away.release()
        closing.result(30)
    away.check()
