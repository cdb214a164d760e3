"""The crew: the agent process of an executor or a manager, and the private server if it has one.

The client starts both and is the only one that they live for. A pipe from here to the agent stays open as long as this
process lives: when it closes without a word, this process was killed, and the agent ends the workers; a private server
has a watcher.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from rush_executor._agent.supervisor import EXIT_SERVER_LOST, LEAVE, AgentSettings
from rush_executor._client.keeper import NoWorkers
from rush_executor._ledger.server import EmbeddedServer, open_pipe
from rush_executor._protocol.ids import new_id
from rush_executor.errors import NetworkLostError

__all__ = ["Crew"]

logger = logging.getLogger(__name__)

# An agent that dies so soon, so many times in a row, dies of its start.
_SHORT_LIFE_S: Final = 5.0
_MOST_SHORT_LIVES: Final = 3
# How long an agent may take to end its workers and itself when it is to do so now; one that stands still never would.
_END_S: Final = 5.0
# How often, while an agent is waited for, it is asked whether that is in vain.
_ASK_S: Final = 0.5

# The agent must find this package, and later the user's modules, where this process finds them. The path comes through
# the pipe: an argument would be seen by everybody on the machine, and is limited in length. So does the key by which
# the processes of a family know each other in multiprocessing: without it a task could not use a proxy (a queue, an
# event of a Manager) that is among its arguments.
_BOOT = """
import gc, json, os, sys
# Imports make no garbage, and looking for it takes a tenth of their time; `run_agent` enables it again.
gc.disable()
fd = int(sys.argv[1])
# Where the client has closed its standard streams, a connection would get their numbers, and what is printed.
while (free := os.open(os.devnull, os.O_RDWR)) < 3:
    os.set_inheritable(free, True)
os.close(free)
def read(n):
    data = b""
    while len(data) < n:
        data += os.read(fd, n - len(data)) or sys.exit(1)
    return data
sys.path[:], sys.argv[:], authkey = json.loads(read(int.from_bytes(read(8), "big")))
import multiprocessing
multiprocessing.current_process().authkey = bytes.fromhex(authkey)
from rush_executor._crew.agent_process import main
main(fd)
"""


class Crew:
    """Keeps an agent running for a client.

    Args:
        settings: For the agent; None for no workers of one's own.
        environment: Of the agent and its workers.
        server: The private server, if any; the crew ends it.
    """

    def __init__(
        self, settings: AgentSettings | None, environment: Mapping[str, str], server: EmbeddedServer | None
    ) -> None:
        self._settings = settings
        self._environment = environment
        self._server = server
        self._agent: subprocess.Popen[bytes] | None = None
        self._pipe_w = -1
        self._owner_pid = os.getpid()
        self._is_foreign = False
        self._started_at = 0.0
        self._n_short_lives = 0
        if settings is not None:
            self._start_agent(settings)

    @property
    def agent_id(self) -> str:
        """The agent; empty for none."""
        return self._settings.agent_id if self._settings is not None else ""

    def has_workers(self) -> bool:
        """Whether there are any to be kept."""
        return self._settings is not None

    def check(self) -> str | None:
        """Replaces an agent that has died (killed by the out-of-memory killer, say); its workers died with it.

        Returns:
            Id of the one that died; None when all is well.

        Raises:
            NoWorkers: Agents die as soon as they are started.
            NetworkLostError: It has given up waiting for the server.
        """
        agent, settings = self._agent, self._settings
        if agent is None or settings is None or agent.poll() is None:
            return None
        if agent.returncode == EXIT_SERVER_LOST:
            raise NetworkLostError(
                "the agent of the workers has ended them, as the server did not do what it was asked for "
                f"{settings.config.reconnect_timeout_s:g} s (reconnect_timeout): is it full, or has it no place for "
                "another connection?"
            )
        now = time.monotonic()
        self._n_short_lives = self._n_short_lives + 1 if now - self._started_at < _SHORT_LIFE_S else 0
        if self._n_short_lives >= _MOST_SHORT_LIVES:
            self._close_pipe()
            self._agent = None
            why = "; what it printed to stderr says why" if agent.returncode > 0 else ": somebody has killed it"
            raise NoWorkers(
                f"the agent of the workers ended {self._n_short_lives} times in a row within {_SHORT_LIFE_S:g} s of "
                f"its start, the last time with exit code {agent.returncode}{why}"
            )
        self._close_pipe()
        successor = replace(settings, agent_id=new_id())
        try:
            self._start_agent(successor)
        except OSError as error:
            # No process or no memory to be had now; there may be at the next look.
            logger.warning("the agent of %d workers ended, and none can be started: %s", settings.n_workers, error)
            return None
        logger.warning("the agent of %d workers ended with code %s; started another", settings.n_workers, agent.poll())
        self._settings = successor
        return settings.agent_id

    def is_alive(self) -> bool:
        """Whether the agent is there."""
        return self._agent is not None and self._agent.poll() is None

    def end_agent(self) -> None:
        """Kills an agent that stands still; its workers end with it, and `check` replaces it."""
        agent = self._agent
        if agent is not None and agent.poll() is None:
            logger.warning("the agent (pid %d) of the workers stands still, and is killed", agent.pid)
            agent.kill()
            _ends_within(agent, _END_S)

    def stop(self, *, now: bool, is_in_vain: Callable[[], bool] = bool) -> str | None:
        """Ends the agent and its workers: after what they run, or now.

        Args:
            now: Whether to end what they run.
            is_in_vain: Asked now and then while the agent is waited for: whether it is to end now after all.

        Returns:
            Id of the agent, if it has died in another way: then it is still on the server's lists.
        """
        agent, settings = self._agent, self._settings
        if agent is None or settings is None or self._is_foreign or os.getpid() != self._owner_pid:
            # In a process that was forked from the owner they are not its own.
            return None
        if not now:
            # Gone already, or its successor could not be started.
            with contextlib.suppress(OSError):
                os.write(self._pipe_w, LEAVE)
            while not _ends_within(agent, _ASK_S) and not is_in_vain():
                pass
        self._close_pipe()
        self._agent = None
        if not _ends_within(agent, _END_S):
            agent.kill()
            # Not for ever: it may be deep in the kernel, or frozen.
            _ends_within(agent, _END_S)
        return settings.agent_id if agent.returncode not in (0, EXIT_SERVER_LOST) else None

    def check_server(self) -> None:
        """Does nothing while the private server runs, or where there is none; from any thread.

        Raises:
            ServerError: It has ended.
        """
        if self._server is not None and not self._is_foreign:
            self._server.check()

    def close(self) -> None:
        """Ends the private server."""
        if self._server is not None and not self._is_foreign:
            self._server.stop()

    def disown(self) -> None:
        """In a forked child: closes its copy of the pipe, so that the agent sees the parent's end."""
        self._is_foreign = True
        if self._agent is not None:
            self._close_pipe()
            # Popen would complain, when collected, that the child of another process still runs.
            self._agent.returncode = 0

    def _close_pipe(self) -> None:
        pipe_w, self._pipe_w = self._pipe_w, -1
        if pipe_w >= 0:
            os.close(pipe_w)

    def _start_agent(self, settings: AgentSettings) -> None:
        settings = replace(settings, owner_pid=os.getpid())
        pipe_r, pipe_w = open_pipe()
        try:
            self._agent = subprocess.Popen(
                [sys.executable, *_interpreter_flags(), "-c", _BOOT, str(pipe_r), "rush-agent"],
                stdin=subprocess.DEVNULL,
                pass_fds=(pipe_r,),
                env=self._environment,
                # Out of the terminal's reach: Ctrl-C is for the client, which ends the agent if it is meant to.
                start_new_session=True,
            )
        except BaseException:
            os.close(pipe_w)
            raise
        finally:
            os.close(pipe_r)
        self._pipe_w = pipe_w
        self._started_at = time.monotonic()
        authkey = multiprocessing.current_process().authkey.hex()
        start = json.dumps([sys.path, sys.argv, authkey]).encode()
        # An agent that is dead already is found by `check`.
        with contextlib.suppress(BrokenPipeError):
            _write_all(pipe_w, len(start).to_bytes(8, "big") + start + pickle.dumps(settings))


def _ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _interpreter_flags() -> list[str]:
    """This interpreter's own options, such as -X and -W: the agent's are the same."""
    flags: list[str] = getattr(subprocess, "_args_from_interpreter_flags", list)()
    return flags
