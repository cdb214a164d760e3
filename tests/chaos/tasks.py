"""What the workers run: every start is written down before anything else happens.

One line for each start, in one write to a file opened for appending, so lines of several processes do not mix and none
is lost when the process is killed right after. The instant is of the machine's monotonic clock, which all processes
share.
"""

from __future__ import annotations

import os
import resource
import signal
import time

from rush_executor import current_executor

__all__ = ["INNER", "POISONS", "nest", "poison", "result_of", "work"]

POISONS = ("abort", "kill", "exit")

# Where tasks of a task write their starts: the same path and this. Their number is the pid of who has submitted them.
INNER = "-inner"

_files: dict[str, int] = {}


def work(path: str, index: int, seconds: float, size: int) -> int | bytes:
    """Notes its start, takes its time, and returns `result_of` itself."""
    _note_start(path, index)
    if seconds:
        time.sleep(seconds)
    return result_of(index, size)


def nest(path: str, index: int, seconds: float, width: int) -> int | bytes:
    """Notes its start, submits so many tasks itself, waits for them, and returns `result_of` itself."""
    _note_start(path, index)
    executor = current_executor().options(max_retries=20)
    inner = [executor.submit(work, path + INNER, os.getpid(), seconds, 0) for _ in range(width)]
    results = [future.result() for future in inner]
    if results != [os.getpid()] * width:
        raise ValueError(f"wrong results of its own tasks: {results}")
    return result_of(index, 0)


def result_of(index: int, size: int) -> int | bytes:
    """What `work` returns: its index, or so many bytes that begin with it."""
    return index.to_bytes(8, "big").ljust(size, b"x") if size else index


def poison(path: str, index: int, how: str) -> None:
    """Notes its start and ends its worker."""
    _note_start(path, index)
    if how == "abort":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.abort()
    elif how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(3)


def _note_start(path: str, index: int) -> None:
    if path not in _files:
        _files[path] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(_files[path], b"%d %d %.6f\n" % (index, os.getpid(), time.monotonic()))
