"""Worker processes as their agent sees them: forking, ending because of a task, reaping, telling how one ended."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from rush_executor._agent.stderr import WorkerStderr
from rush_executor._protocol.slots import SLOT_SIZE, Slot

__all__ = ["WorkerProcess", "ask_to_leave", "describe_exit", "end_task", "fork_worker", "kill", "reap"]

# A process that is deep in the kernel stops late; then it is in no other task either.
_STOP_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """A worker that the agent has forked and not yet reaped.

    Attributes:
        worker_id: Its id.
        pid: Its process.
        slot: Shared with it.
        stderr: What it writes there.
    """

    worker_id: str
    pid: int
    slot: Slot
    stderr: WorkerStderr


def fork_worker(worker_id: str, run: Callable[[Slot], int]) -> WorkerProcess:
    """Forks a worker.

    Args:
        worker_id: Its id.
        run: What it does; returns its exit code.

    Raises:
        OSError: There is no process or no memory to be had.
    """
    slot = Slot(mmap.mmap(-1, SLOT_SIZE))
    sys.stdout.flush()
    sys.stderr.flush()
    agent_pid = os.getpid()
    stderr_r, stderr_w = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(stderr_r)
        os.close(stderr_w)
        raise
    if pid:
        _lead_group(pid)
        os.close(stderr_w)
        os.set_blocking(stderr_r, False)
        return WorkerProcess(worker_id, pid, slot, WorkerStderr(stderr_r))
    code = 1
    try:
        os.close(stderr_r)
        os.dup2(stderr_w, 2)
        os.close(stderr_w)
        _lead_group(0)
        _die_with_parent(agent_pid)
        code = run(slot)
        _end_multiprocessing()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001
        # The frames above this one are the agent's loop: nothing of this process may return into it.
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def kill(pid: int) -> None:
    """Kills a worker, and the processes that its tasks have started."""
    # One that has ended, and started nothing, is no error; nor is it where a system calls that forbidden.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def ask_to_leave(worker: WorkerProcess) -> None:
    """Has a worker leave when it has done what it runs; no harm if it has been asked, or has ended.

    The slot says it. The signal breaks off a wait for work, and ends a worker that has not begun; one that runs a task
    gets none, which the task could take for its own, or have no handler for.
    """
    if worker.slot.is_leaving():
        return
    worker.slot.set_leaving()
    if not worker.slot.current():
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGTERM)


def end_task(worker: WorkerProcess, is_wanted: Callable[[Slot], bool]) -> bool:
    """Kills a worker because of the task that it runs, and no other.

    The worker may be at its next task when the signal arrives: so it is stopped first, looked at, and goes on if it is
    not to be killed.

    Args:
        worker: To be killed.
        is_wanted: Looks at the slot, which does not change meanwhile.

    Returns:
        Whether it was killed.
    """
    if not is_wanted(worker.slot):
        return False
    os.kill(worker.pid, signal.SIGSTOP)
    give_up_at = time.monotonic() + _STOP_S
    while not _has_stopped_or_ended(worker.pid) and time.monotonic() < give_up_at:
        time.sleep(0.001)
    if is_wanted(worker.slot):
        kill(worker.pid)
        return True
    os.kill(worker.pid, signal.SIGCONT)
    return False


def _has_stopped_or_ended(pid: int) -> bool:
    # Without taking the end away from `reap`. The rest of such a process's signals come after the one that stops it.
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _lead_group(pid: int) -> None:
    """Gives a worker a process group of its own.

    A Ctrl-C at the agent's terminal is then the agent's alone, and a task that signals its group hits its own worker
    and nobody else. Agent and worker both ask for it, so that it is done whoever comes first.
    """
    with contextlib.suppress(OSError):
        os.setpgid(pid, 0)


def reap(worker: WorkerProcess) -> int | None:
    """Exit code of a worker that has ended, as `multiprocessing.Process.exitcode`; None while it runs.

    What its tasks have started ends with it, unless it has left in peace: it is not to go on beside the next attempt.
    """
    try:
        end = os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if end is None:
            return None
        if (end.si_code, end.si_status) != (os.CLD_EXITED, 0) or worker.slot.current():
            # Now: until it is reaped, its number is that of no other process or group.
            kill(worker.pid)
        return os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1])
    except ChildProcessError:
        # Somebody else reaped it; how it ended is not to be known.
        return 255


def describe_exit(exitcode: int) -> str:
    """How a process ended, for people."""
    if exitcode >= 0:
        return f"exited with code {exitcode}"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:
        return f"was killed by signal {-exitcode}"
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    return f"was killed by signal {-exitcode}, {name}{hint}"


def _die_with_parent(agent_pid: int) -> None:
    """Has the kernel end this process when the agent ends, however the agent ends (Linux).

    The kernel ties this to the thread that forked; the agent has only one. Elsewhere a worker whose agent was killed
    ends at its next claim, refused by the ledger.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != agent_pid:
        os._exit(1)


def _end_multiprocessing() -> None:
    """Ends the daemonic processes that tasks started with multiprocessing, as its own workers do on exit."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util._exit_function()  # noqa: SLF001 - what multiprocessing's own children call
