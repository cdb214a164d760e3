"""Who takes part besides the executors: a server that can be killed, stalled and restarted, and agents of their own.

Each of them is started here and ended here, by its own process id.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import psutil
import redis

from rush_executor._ledger import server as server_module
from rush_executor._ledger.server import EmbeddedServer
from tests.acceptance.programs import REPOSITORY, environment

__all__ = ["Agent", "Server", "is_alive"]

_LEAVE_DEADLINE_S = 30.0
_STOP_DEADLINE_S = 30.0


def is_alive(process: psutil.Process) -> bool:
    """Whether this very process runs; one that has ended and waits for its parent to notice does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _has_stopped(process: psutil.Process) -> bool:
    try:
        return process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


class Server:
    """A server on a unix socket, with a directory that outlives a restart.

    Attributes:
        url: The same after a restart.
        directory: Its working directory; so is this.
    """

    def __init__(self, config: Mapping[str, str] | None = None) -> None:
        self._server = EmbeddedServer.start(config=config)
        self._server.wait_ready()
        self.url = self._server.url
        self.directory = self._server.directory

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.stop()

    def ask(self, *command: str | int) -> Any:
        """Sends one command, on a connection of its own."""
        with redis.Redis.from_url(self.url) as client:
            return client.execute_command(*command)

    def kill(self) -> None:
        """SIGKILL; the directory stays."""
        self._server._process.kill()
        self._server._process.wait()

    def start_again(self) -> None:
        """Starts it at the same place, with what it has kept on disk."""
        old = self._server
        process = server_module._launch(old.binary, old.directory, old._watcher)
        self._server = EmbeddedServer(process, old._watcher, old.directory, old.binary)
        self._server.wait_ready()

    def stall(self) -> None:
        """SIGSTOP."""
        os.kill(self._server.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        os.kill(self._server.pid, signal.SIGCONT)


class Agent:
    """Workers as on another machine: `rush-executor worker` in a session of its own.

    Args:
        url: Where it finds the server.
        network_id: The network that it joins.
        n_workers: How many workers.
        options: Further ones for the command line.
    """

    def __init__(self, url: str, network_id: str, n_workers: int, options: Sequence[str] = ()) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed at the exit
        command = ["worker", "--url", url, "--network", network_id, "--workers", str(n_workers), *options]
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "rush_executor", *command],
            stdin=subprocess.DEVNULL,
            stderr=self._log,
            cwd=REPOSITORY,
            env=environment(),
            start_new_session=True,
        )
        self._process = psutil.Process(self._popen.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        family = self._family()
        with contextlib.suppress(ProcessLookupError):
            self.go_on()
            self._popen.terminate()
        try:
            self._popen.wait(_LEAVE_DEADLINE_S)
        except subprocess.TimeoutExpired:
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._popen.wait()
            raise
        finally:
            self._log.close()

    @property
    def log(self) -> str:
        """What agent and workers have printed to standard error."""
        self._log.seek(0)
        return self._log.read()

    def worker_pids(self) -> set[int]:
        """Processes of its workers that live now."""
        return {process.pid for process in self._family()} - {self._popen.pid}

    def stop(self) -> None:
        """SIGSTOP for the agent and its workers; they have stopped when this returns."""
        # First the agent: it would see what becomes of a worker.
        self._signal_all(signal.SIGSTOP)
        give_up_at = time.monotonic() + _STOP_DEADLINE_S
        while not all(map(_has_stopped, self._family())):
            assert time.monotonic() < give_up_at, "processes do not stop"
            time.sleep(0.001)

    def go_on(self) -> None:
        """SIGCONT for the agent and its workers."""
        self._signal_all(signal.SIGCONT)

    def leave(self) -> None:
        """SIGTERM for the agent alone: its workers finish what they run."""
        self._popen.terminate()

    def kill(self) -> None:
        """SIGKILL for the agent alone; its workers end with it."""
        self._popen.kill()
        self._popen.wait()

    def _signal_all(self, signum: signal.Signals) -> None:
        for process in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signum)

    def _family(self) -> list[psutil.Process]:
        try:
            return [self._process, *self._process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []
