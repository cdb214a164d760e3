"""The agent's loop.

One thread over `select`: signals (children that ended, requests to leave), the pipe to the owner, the watch on other
agents' heartbeats and on calls for this one, what workers write to stderr, and timers: signs of life, time limits. What
needs no server is seen to while a reply is waited for as well: the server may stand still.
Started by the process that `_crew/agent_process.py` makes; ends when told to, when its owner is gone, or when the
network is broken.

How it ends:
- the owner says "leave" through the pipe, or SIGTERM / SIGINT comes: workers finish what they run, hand back the rest,
  and leave; a second signal means now;
- the pipe closes without a word, or the agent gets a new parent: the owner was killed. Workers are killed, what the
  server keeps for the client is deleted; a private server is told to end, should its watcher not have ended it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Final

from rush_executor._agent.notices import Notices
from rush_executor._agent.stderr import StderrRelay
from rush_executor._agent.workers import WorkerProcess, ask_to_leave, describe_exit, end_task, fork_worker, kill, reap
from rush_executor._config import NetworkConfig
from rush_executor._ledger.agent import CHARGE_ALL, AgentLedger, NetworkRecord, Reaper
from rush_executor._ledger.client import retire_client
from rush_executor._ledger.connection import Channel, Refused, connect, end_server, open_pool
from rush_executor._ledger.notifications import AgentWatch, ensure_notifications
from rush_executor._protocol.ids import new_id
from rush_executor._protocol.keys import Keys
from rush_executor._protocol.records import KILL, KILLED_TAG, LOST_TAG, RESTART, TERMINATE, TIMEOUT_TAG, Loss
from rush_executor._protocol.slots import Slot
from rush_executor._protocol.states import KILLED, LOST, STARTING, TERMINATED
from rush_executor._shared.cache import remove_cache
from rush_executor._shared.directory import remove_directory, sweep_directories
from rush_executor.errors import NetworkLostError

__all__ = ["EXIT_SERVER_LOST", "LEAVE", "AgentSettings", "Supervisor", "WorkerMain"]

logger = logging.getLogger(__name__)

# What the owner writes into the pipe to end the agent in peace; it closes the pipe only when the agent is gone.
LEAVE: Final = b"leave"
# Exit code of an agent that has given up waiting for the server (EX_TEMPFAIL of sysexits.h).
EXIT_SERVER_LOST: Final = 75
# How often the owner's death is looked for besides the pipe: a process that the owner forked may hold the pipe open.
_OWNER_CHECK_S: Final = 0.5
# A worker that dies before it is ready, this many times in a row, dies of its start: no further one would fare better.
_MOST_FAILED_STARTS: Final = 3
_NETWORK_CHECK_S: Final = 0.2
# How long a task that is to be ended is looked for before the ledger is asked whether it is there, and how often.
_LOOK_FOR_TASK_S: Final = 2.0
_LOOK_AGAIN_S: Final = 0.05
# How often an agent that leaves looks for tasks that are to end: others may be about to claim them.
_LAST_LOOKS: Final = 3
# What somebody wants of a worker; other wishes are ids of tasks.
_WORKER_WISHES: Final = (TERMINATE, KILL, RESTART)
# How long there may be a worker too many, as one that waited for others goes on: what waits again in this time needs no
# new one.
_LINGER_S: Final = 1.0
# How soon another one is tried when no process could be made.
_FORK_AGAIN_S: Final = 1.0
# How long, when the owner is gone or somebody has no patience, the last words wait for a server that stands still.
_LAST_WORDS_S: Final = 1.0
# How long, at the end, somebody must take what workers have written to stderr.
_STDERR_PATIENCE_S: Final = 0.5
_FIRST_PAUSE_S: Final = 0.005
_LONGEST_PAUSE_S: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class AgentSettings:
    """What an agent must know.

    Attributes:
        config: The network.
        agent_id: The agent.
        n_workers: Workers to keep alive that do not wait for others.
        max_tasks_per_child: A worker is replaced after so many tasks; None for never.
        worker_ids: Ids of the workers, where they were given beforehand: each is started once, and the agent ends with
            the last one.
        start_id: What the workers are to run, where the network keeps its tasks; empty for the latest.
        owner_fd: Read end of the pipe to the owner; None for an agent that stands alone.
        owner_pid: The owner.
        client_id: The owner's client id: what the server keeps for it is deleted when the owner is killed.
        is_server_private: Whether the server ends with the owner.
    """

    config: NetworkConfig
    agent_id: str
    n_workers: int
    max_tasks_per_child: int | None = None
    worker_ids: tuple[str, ...] = ()
    start_id: str = ""
    owner_fd: int | None = None
    owner_pid: int | None = None
    client_id: str | None = None
    is_server_private: bool = False


_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)

# It left, or somebody ended it.
_NO_TASKS_FAULT: Final = (0, -signal.SIGTERM, -signal.SIGKILL, 128 + signal.SIGTERM)

# What a worker does in its process: agent's settings, network, worker id, slot -> exit code.
WorkerMain = Callable[[AgentSettings, NetworkRecord, str, Slot], int]


class Supervisor:
    """Keeps workers alive.

    Args:
        settings: See `AgentSettings`.
        worker_main: What a worker does.
        initializer_exit: Exit code of a worker whose initializer failed and who has told so.
        when_ready: Called once, when the network was found and the first workers were forked.
        warm_up: Called once, before a worker is forked because another one waits for tasks that its task has submitted:
            those that are forked from now on may be about to do so, too.
    """

    def __init__(
        self,
        settings: AgentSettings,
        worker_main: WorkerMain,
        *,
        initializer_exit: int,
        when_ready: Callable[[], None] | None = None,
        warm_up: Callable[[], None] | None = None,
    ) -> None:
        self._settings = settings
        self._worker_main = worker_main
        self._initializer_exit = initializer_exit
        self._when_ready = when_ready or _nothing
        self._warm_up = warm_up or _nothing
        self._host = socket.gethostname()
        self._keys = Keys(settings.config.network_id)
        self._pool = open_pool(settings.config.url, while_waiting=self._attend)
        # One try each: the agent must not sit in a call while its owner dies; its loop is what tries again.
        self._channel = Channel(self._pool, reconnect_timeout_s=0.0)
        self._ledger = AgentLedger(self._channel, self._keys, settings.agent_id, self._host)
        self._reaper = Reaper(self._channel, self._keys, doubt_s=settings.config.doubt_s)
        self._watch = AgentWatch(self._pool, self._keys, settings.agent_id)
        self._network: NetworkRecord | None = None
        # That which was found last, though it may not be there any more.
        self._last_network: NetworkRecord | None = None
        self._workers: dict[int, WorkerProcess] = {}
        self._ready_pids: set[int] = set()
        # Those that were told to leave when they have done what they run.
        self._leaving_pids: set[int] = set()
        # Since when there have been more than are needed.
        self._surplus_at = math.inf
        self._fork_at = 0.0
        self._losses: list[tuple[Loss, str, bytes, str]] = []
        # Workers that were killed to end a task: which task, with which tag, and its time limit.
        self._verdicts: dict[int, tuple[str, bytes, float]] = {}
        # Tasks to be ended, and until when they are looked for: they may be claimed and not yet started.
        self._wanted_ends: dict[str, float] = {}
        # Workers to be started under ids of their own, and those that were told to end now.
        self._unstarted = list(settings.worker_ids)
        self._killed: set[str] = set()
        # Those that were asked to end when they have finished their task, those of them in whose place others are to
        # come, and those of which it is known that they end.
        self._asked: set[str] = set()
        self._restarting: set[str] = set()
        self._draining: set[str] = set()
        # How many need no successor: they were stopped, or, in a network that keeps its tasks, have done what they were
        # started for.
        self._n_done = 0
        self._wakeup = (-1, -1)
        self._relay = StderrRelay()
        self._notices = Notices(is_silent=settings.owner_fd is not None)
        self._n_failed_starts = 0
        self._last_failed_start = ""
        self._is_leaving = False
        self._is_killing = False
        self._is_owner_gone = False
        # Since when there is nothing left to do but to say so.
        self._departs_at: float | None = None
        self._has_notifications = False
        self._beat_at = self._look_at = self._network_at = 0.0
        self._lost_at: float | None = None
        self._pause_s = _FIRST_PAUSE_S

    def run(self) -> None:
        """Runs until the agent is to end; then no worker is left.

        Raises:
            NetworkLostError: The server stayed away for longer than the grace; the workers have been ended.
        """
        lost: NetworkLostError | None = None
        self._wakeup = wakeup_r, wakeup_w = os.pipe()
        os.set_blocking(wakeup_r, False)
        os.set_blocking(wakeup_w, False)
        signal.set_wakeup_fd(wakeup_w, warn_on_full_buffer=False)
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._on_signal)
        signal.signal(signal.SIGCHLD, lambda _signum, _frame: None)
        try:
            while not self._is_finished():
                self._step(wakeup_r)
        except NetworkLostError as error:
            lost_s = time.monotonic() - (self._lost_at or time.monotonic())
            lost = NetworkLostError(
                f"the server did not answer for {lost_s:.1f} s (reconnect_timeout is "
                f"{self._settings.config.reconnect_timeout_s:g} s): {error.__cause__ or error}"
            )
            self._kill_workers()
        except _OwnerGone:
            self._end_with_owner()
        is_told = self._depart()
        if lost is not None:
            raise lost
        if not is_told and self._settings.owner_fd is not None:
            # The owner, if it is there, sees that, and tells the ledger itself when the server answers.
            raise SystemExit(1)

    def _step(self, wakeup_r: int) -> None:
        self._reap()
        if self._is_killing:
            self._kill_workers()
        # Before all that needs the server, which may be away.
        local_at = min(self._end_overdue(), self._shed())
        began_at = time.monotonic()
        try:
            due_at = self._tend()
        except NetworkLostError as error:
            now, timeout_s = time.monotonic(), self._settings.config.reconnect_timeout_s
            self._lost_at = self._lost_at or began_at
            if now - self._lost_at >= timeout_s:
                raise
            self._notices.server_lost(self._lost_at, timeout_s, error.__cause__)
            due_at = now + self._pause_s
            # Back before those that are back already take this agent for dead.
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S, self._settings.config.doubt_s / 2)
        else:
            if self._lost_at is not None:
                self._notices.server_answered(self._lost_at)
            self._lost_at, self._pause_s = None, _FIRST_PAUSE_S
        if self._is_leaving:
            self._notices.leaving(len(self._workers))
        if not self._is_finished():
            self._wait(wakeup_r, min(due_at, local_at))

    def _is_finished(self) -> bool:
        return self._is_leaving and not self._workers

    def _tend(self) -> float:
        """Does what is due at the ledger, and forks what is missing; returns when it must be called again."""
        config, now = self._settings.config, time.monotonic()
        self._report_losses()
        if now >= self._beat_at:
            self._ledger.beat(int(config.heartbeat_ttl_s * 1000))
            self._beat_at = now + config.heartbeat_period_s
        if not self._is_leaving and now >= self._network_at:
            self._find_network()
            self._network_at = now + (config.heartbeat_period_s if self._network else _NETWORK_CHECK_S)
        if now >= self._fork_at:
            self._fill_up()
        rings = self._watch.rang()
        if rings.is_called or now >= self._look_at:
            self._hear_wishes(now)
        if rings.has_expired or now >= self._look_at:
            self._reaper.look()
            self._look_at = now + (self._reaper.patience_s if self._reaper.has_suspects else config.heartbeat_period_s)
        self._tell_draining()
        due_at = min(self._end_wanted(), self._beat_at, self._look_at)
        return due_at if self._is_leaving else min(due_at, self._network_at)

    def _hear_wishes(self, now: float) -> None:
        """Stops the workers that somebody wants to stop; remembers the tasks that somebody wants to end."""
        wishes = self._ledger.wanted_ends()
        stops = [wish for wish in wishes if wish.startswith(_WORKER_WISHES)]
        for wish in stops:
            how, _, worker_id = wish.partition(":")
            self._stop_worker(worker_id, how)
        if stops:
            self._ledger.forget_ends(stops)
        under_way = {task_id for task_id, _, _ in self._verdicts.values()}
        new = set(wishes) - set(stops) - under_way - self._wanted_ends.keys()
        self._wanted_ends |= dict.fromkeys(new, now + _LOOK_FOR_TASK_S)

    def _stop_worker(self, worker_id: str, how: str) -> None:
        for worker in self._workers.values():
            if worker.worker_id == worker_id and how == KILL:
                self._killed.add(worker_id)
                kill(worker.pid)
            elif worker.worker_id == worker_id:
                ask_to_leave(worker)
                self._asked.add(worker_id)
                if how == RESTART:
                    self._restarting.add(worker_id)
                else:
                    self._restarting.discard(worker_id)
        if worker_id in self._unstarted and how != RESTART:
            # It ends before it has begun.
            self._ledger.announce_worker(worker_id)
            self._unstarted.remove(worker_id)
            loss = Loss(worker_id, self._host, 0, None, "was not started any more")
            self._losses.append((loss, "", LOST_TAG, KILLED if how == KILL else TERMINATED))

    def _tell_draining(self) -> None:
        """Tells who has been asked to end: that may take as long as a task does."""
        here = {worker.worker_id for worker in self._workers.values()}
        new = (here if self._is_leaving else here & self._asked) - self._draining
        if new:
            self._ledger.drain(new)
            self._draining |= new

    def _end_overdue(self) -> float:
        """Ends tasks that have exceeded their time limit; returns when the next one will have."""
        next_at = math.inf
        for worker in self._workers.values():
            end_at, timeout_s = worker.slot.limits()
            if not end_at or worker.pid in self._verdicts:
                continue
            if end_at <= time.monotonic():
                if end_task(worker, lambda slot: 0 < slot.limits()[0] <= time.monotonic()):
                    self._verdicts[worker.pid] = (worker.slot.current(), TIMEOUT_TAG, timeout_s)
                    continue
                end_at, _ = worker.slot.limits()
            next_at = min(next_at, end_at or math.inf)
        return next_at

    def _end_wanted(self) -> float:
        """Ends tasks that somebody wants to end; returns when to look for the rest of them again."""
        now = time.monotonic()
        for worker in self._workers.values():
            task_id = worker.slot.current()
            if task_id not in self._wanted_ends or worker.pid in self._verdicts:
                continue
            if end_task(worker, lambda slot, task_id=task_id: slot.current() == task_id):  # type: ignore[misc]
                self._verdicts[worker.pid] = (task_id, KILLED_TAG, 0.0)
                # The wish goes with the worker: should this agent die now, whoever buries it still knows.
                del self._wanted_ends[task_id]
        not_found = [task_id for task_id, until in self._wanted_ends.items() if now > until]
        if not_found:
            # Claimed along with one that takes long and keeps the GIL: its worker cannot give the others back. Or given
            # back, or over.
            held = self._ledger.seek(not_found)
            self._wanted_ends |= dict.fromkeys(held, time.monotonic() + _LOOK_FOR_TASK_S)
            if over := set(not_found).difference(held):
                self._ledger.forget_ends(over)
                for task_id in over:
                    del self._wanted_ends[task_id]
        return now + _LOOK_AGAIN_S if self._wanted_ends else math.inf

    def _find_network(self) -> None:
        """Looks for the network; a new creation of it needs new workers, for the initializer that it brings."""
        network = self._ledger.network()
        if network is not None and network.keeps and self._settings.client_id is not None:
            # Its client is being told that this is no network for an executor.
            network = None
        before = self._last_network
        if network is not None and (before is None or network.epoch != before.epoch):
            self._last_network = network
            self._n_failed_starts = 0
            if before is not None and network.creator == before.creator and not network.keeps:
                self._end_obsolete()
            if not self._has_notifications:
                self._has_notifications = True
                ensure_notifications(connect(self._pool))
        self._network = network

    def _end_obsolete(self) -> None:
        """Ends the workers of a network that was lost with the server's data, and has been made again as it was.

        What they run was submitted again, and their results are refused: until they had finished they would be in the
        way. (One that another client has created is a new one, and what they run may finish for nobody.)
        """
        for pid in self._workers:
            # By no fault of theirs.
            self._leaving_pids.add(pid)
            kill(pid)

    def _able(self) -> list[WorkerProcess]:
        """Workers that take tasks, now or when they have done what they run."""
        return [
            worker
            for worker in self._workers.values()
            if worker.pid not in self._leaving_pids and not worker.slot.is_waiting()
        ]

    def _n_wanted(self) -> int:
        """How many of them there are to be."""
        if not self._is_leaving:
            return self._settings.n_workers - self._n_done
        # What is being finished may wait for others, and maybe nobody else is there to run them.
        return int(any(worker.slot.is_waiting() for worker in self._workers.values()))

    def _shed(self) -> float:
        """Has workers leave that are more than are needed; returns when to look again."""
        able = self._able()
        n_surplus = len(able) - self._n_wanted()
        # Workers that were given their ids beforehand are not counted by the settings.
        if n_surplus <= 0 or (self._settings.worker_ids and not self._is_leaving):
            self._surplus_at = math.inf
            return math.inf
        now = time.monotonic()
        self._surplus_at = min(self._surplus_at, now)
        if not self._is_leaving and now < self._surplus_at + _LINGER_S:
            return self._surplus_at + _LINGER_S
        # The youngest of those that run nothing, then the youngest.
        idle_last = sorted(able, key=lambda worker: not worker.slot.current())
        for worker in idle_last[-n_surplus:]:
            self._leaving_pids.add(worker.pid)
            ask_to_leave(worker)
        return math.inf

    def _fill_up(self) -> None:
        if not self._has_work():
            self._is_leaving = True
            return
        network = self._network
        if network is None or network.is_broken:
            return
        if self._n_failed_starts >= _MOST_FAILED_STARTS and not self._settings.worker_ids:
            return
        while self._is_short():
            if any(worker.slot.is_waiting() for worker in self._workers.values()):
                self._warm_up()
                self._warm_up = _nothing
            worker_id = self._unstarted[0] if self._unstarted else new_id()
            self._ledger.announce_worker(worker_id)

            def run(slot: Slot, worker_id: str = worker_id, network: NetworkRecord = network) -> int:
                self._become_worker()
                return self._worker_main(self._settings, network, worker_id, slot)

            # A signal must never find our handler in the new worker.
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            try:
                if not self._is_short():
                    return
                worker = fork_worker(worker_id, run)
                if self._unstarted:
                    del self._unstarted[0]
                self._workers[worker.pid] = worker
                self._relay.add(worker.stderr)
            except OSError as error:
                # Too many processes, or no memory: there may be room in a while.
                logger.warning("no worker can be started now, beside %d: %s", len(self._workers), error)
                self._fork_at = time.monotonic() + _FORK_AGAIN_S
                return
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        self._when_ready()
        self._when_ready = _nothing

    def _has_work(self) -> bool:
        """Whether a worker is there or to be started."""
        return bool(self._workers or self._unstarted) or self._settings.n_workers > self._n_done

    def _is_short(self) -> bool:
        """Whether a worker is to be started."""
        return (bool(self._unstarted) and not self._is_leaving) or len(self._able()) < self._n_wanted()

    def _become_worker(self) -> None:
        """In the child: nothing of the agent is the worker's."""
        signal.set_wakeup_fd(-1)
        for signum in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(signum, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        for fd in self._wakeup:
            os.close(fd)
        if self._settings.owner_fd is not None:
            os.close(self._settings.owner_fd)
        # Closes this process's copies; the agent's connections live on.
        self._channel.close()
        self._watch.close()
        self._relay.disown()
        self._workers.clear()

    def _reap(self) -> None:
        for worker in list(self._workers.values()):
            exitcode = reap(worker)
            if worker.slot.is_ready() and worker.pid not in self._ready_pids:
                self._ready_pids.add(worker.pid)
                self._n_failed_starts = 0
            if exitcode is None:
                continue
            del self._workers[worker.pid]
            guilty = worker.slot.current()
            if not guilty and worker.slot.is_ready() and exitcode not in _NO_TASKS_FAULT:
                # It broke while it handled its tasks, not while it ran one. Charging all that it held is hard on most
                # of them; charging none would have it break over the same task for ever.
                guilty = CHARGE_ALL
            was_wanted = (
                self._is_leaving or worker.pid in self._leaving_pids or worker.worker_id in self._killed | self._asked
            )
            if not worker.slot.is_ready():
                self._note_failed_start(exitcode, was_wanted=was_wanted)
            was_killed = worker.worker_id in self._killed
            was_stopped = was_killed or worker.worker_id in self._asked - self._restarting
            task_id, tag, timeout_s = self._verdicts.pop(worker.pid, ("", LOST_TAG, 0.0))
            loss = Loss(
                worker.worker_id,
                self._host,
                worker.pid,
                exitcode,
                "was killed on request" if was_killed else describe_exit(exitcode),
                timeout_s,
                self._relay.finish(worker.stderr),
            )
            how = self._how_ended(worker, exitcode, for_task=task_id)
            if how == KILLED and not task_id:
                tag = KILLED_TAG
            self._losses.append((loss, task_id or guilty, tag, how))
            if how == STARTING:
                self._unstarted.append(worker.worker_id)
            is_restarted = worker.worker_id in self._restarting and not was_killed
            self._restarting.discard(worker.worker_id)
            keeps = self._network is not None and self._network.keeps
            if was_stopped or ((was_wanted or how == TERMINATED) and keeps and not is_restarted):
                self._n_done += 1
            self._ready_pids.discard(worker.pid)
            self._leaving_pids.discard(worker.pid)
            if exitcode == 0 and not guilty:
                # It left by itself: recycled, or the network is not what it was.
                self._network_at = 0.0

    def _note_failed_start(self, exitcode: int, *, was_wanted: bool) -> None:
        if exitcode == self._initializer_exit:
            self._n_failed_starts = _MOST_FAILED_STARTS
        elif exitcode != 0 and not was_wanted:
            self._n_failed_starts += 1
            self._last_failed_start = describe_exit(exitcode)

    def _how_ended(self, worker: WorkerProcess, exitcode: int, *, for_task: str = "") -> str:
        """What the worker is from now on; `for_task` is the task for which it was killed."""
        worker_id = worker.worker_id
        was_asked = self._is_leaving or worker.pid in self._leaving_pids or worker_id in self._asked
        is_restarted = worker_id in self._restarting and not self._is_leaving
        was_killed = worker_id in self._killed
        for ids in (self._killed, self._asked, self._draining):
            ids.discard(worker_id)
        if was_killed:
            return KILLED
        if is_restarted and self._settings.worker_ids:
            return STARTING
        if for_task and not was_asked:
            # Not by its own fault: it goes on with the next task, or another worker does in its place.
            return STARTING if self._settings.worker_ids else KILLED
        if for_task:
            return TERMINATED
        # One that has not begun yet has no handler for the signal that asks it to leave.
        return TERMINATED if exitcode == 0 or (was_asked and exitcode == -signal.SIGTERM) else LOST

    def _report_losses(self) -> None:
        """Tells the ledger of workers that ended; what cannot be told now is kept for the next step."""
        while self._losses:
            loss, guilty, tag, how = self._losses[0]
            self._ledger.lose_worker(loss, guilty, tag, how=how)
            if self._wanted_ends:
                # Some have ended with the worker, and may be queued again on purpose: all are heard anew.
                self._wanted_ends.clear()
                self._look_at = 0.0
            if guilty:
                # A task that submits tasks has files of its own.
                sweep_directories()
            del self._losses[0]
        if (
            self._last_failed_start
            and self._n_failed_starts >= _MOST_FAILED_STARTS
            and self._network is not None
            and not self._network.keeps
        ):
            text = (
                f"{_MOST_FAILED_STARTS} workers in a row ended during their start on {self._host}, "
                f"the last one {self._last_failed_start}; does the initializer crash?"
            )
            self._ledger.break_network(self._network.epoch, text)
            self._last_failed_start = ""

    def _wait(self, wakeup_r: int, due_at: float) -> None:
        """Sleeps until something happens or the next timer is due."""
        watch_fd = self._watch.fileno()
        fds = [wakeup_r] if watch_fd is None else [wakeup_r, watch_fd]
        if wakeup_r in self._select(fds, max(0.0, min(due_at - time.monotonic(), _OWNER_CHECK_S))):
            with contextlib.suppress(BlockingIOError):
                os.read(wakeup_r, 4096)

    def _select(self, fds: list[int], timeout_s: float) -> list[int]:
        """Sleeps until one of these is readable; sees to the owner and to what workers write."""
        owner_fd = self._settings.owner_fd
        stderr_r, stderr_w = self._relay.wanted()
        owner_r = [owner_fd] if owner_fd is not None else []
        readable, writable, _ = select.select([*fds, *owner_r, *stderr_r], stderr_w, [], timeout_s)
        self._relay.step(readable, writable)
        if owner_fd is not None:
            self._heed_owner(owner_fd, is_readable=owner_fd in readable)
        return readable

    def _attend(self) -> None:
        """What is done while a reply is waited for: all that needs no server, and cannot wait."""
        now = time.monotonic()
        if self._departs_at is not None:
            if (self._is_owner_gone or self._is_killing) and now - self._departs_at > _LAST_WORDS_S:
                raise NetworkLostError("nobody waits for the server any more")
            return
        self._end_overdue()
        self._select([], 0.0)
        if self._is_killing:
            self._kill_workers()
        if self._is_killing or now - (self._lost_at or now) > self._settings.config.reconnect_timeout_s:
            raise NetworkLostError("nobody waits for the server any more")

    def _heed_owner(self, owner_fd: int, *, is_readable: bool) -> None:
        if is_readable:
            if os.read(owner_fd, len(LEAVE)) != LEAVE:
                raise _OwnerGone
            self._is_leaving = True
        elif os.getppid() != self._settings.owner_pid:
            raise _OwnerGone

    def _on_signal(self, _signum: int, _frame: FrameType | None) -> None:
        if self._is_leaving:
            self._is_killing = True
        else:
            self._is_leaving = True

    def _kill_workers(self) -> None:
        for pid in self._workers:
            kill(pid)

    def _end_with_owner(self) -> None:
        self._is_owner_gone = True
        self._kill_workers()
        if self._settings.is_server_private:
            # Where there is no shell that could, or somebody has killed it: see `EmbeddedServer`.
            end_server(self._settings.config.url)

    def _hand_over_wishes(self) -> None:
        """Ends tasks that somebody wants to end, and that workers here have given back; tells the agents of others."""
        with contextlib.suppress(Refused):
            for _ in range(_LAST_LOOKS):
                ends = [wish for wish in self._ledger.wanted_ends() if not wish.startswith(_WORKER_WISHES)]
                if not ends or not self._ledger.seek(ends):
                    break

    def _depart(self) -> bool:
        """Waits for the last workers, which have been told, and takes the agent off the lists.

        Returns:
            Whether the ledger knows.
        """
        self._departs_at = time.monotonic()
        while self._workers:
            for worker in list(self._workers.values()):
                _, status = os.waitpid(worker.pid, 0)
                del self._workers[worker.pid]
                exitcode = os.waitstatus_to_exitcode(status)
                loss = Loss(worker.worker_id, self._host, worker.pid, exitcode, describe_exit(exitcode))
                # Killed, it was running something: on a shared network that may be a task of others, which goes on.
                how = self._how_ended(worker, exitcode)
                tag = KILLED_TAG if how == KILLED else LOST_TAG
                self._losses.append((loss, worker.slot.current(), tag, how))
        remove_cache(self._settings.agent_id)
        if self._is_owner_gone and self._settings.client_id is not None:
            remove_directory(self._settings.client_id)
            sweep_directories()
        self._relay.close(_STDERR_PATIENCE_S)
        is_told = True
        if not (self._is_owner_gone and self._settings.is_server_private):
            try:
                self._report_losses()
                self._hand_over_wishes()
                self._ledger.leave()
                if self._is_owner_gone and self._settings.client_id is not None:
                    retire_client(self._channel, self._keys, self._settings.client_id)
            except NetworkLostError:
                is_told = False
        self._watch.close()
        self._channel.close()
        return is_told


def _nothing() -> None:
    """Nobody wants to know."""


class _OwnerGone(Exception):
    """The process for which this agent works was killed."""
