"""CPU time and memory of this process and all that it has started, and what others take meanwhile."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import time
from collections.abc import Iterator

import psutil

__all__ = ["FamilyClock", "OthersClock", "cpu_time", "family", "resident_bytes"]


def family() -> list[psutil.Process]:
    """This process and all its descendants."""
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def resident_bytes() -> dict[int, int]:
    """Resident memory of this process's descendants by process id; without servers, which keep data for others."""
    return dict(_resident(process for process in family()[1:] if not _is_server(process)))


def _resident(processes: Iterator[psutil.Process]) -> Iterator[tuple[int, int]]:
    for process in processes:
        try:
            yield process.pid, process.memory_info().rss
        except psutil.NoSuchProcess:
            continue


def _is_server(process: psutil.Process) -> bool:
    try:
        return any(name in process.name() for name in ("valkey", "redis"))
    except psutil.NoSuchProcess:
        return False


class FamilyClock:
    """CPU time of this process and all its descendants (a private server is one of them), from now on.

    All of them must outlive the measurement: what a process that ended has used is then part of nobody's time.
    """

    def __init__(self) -> None:
        self._began = self._read()

    def seconds(self) -> float:
        """What was used until now."""
        return sum(self.by_role().values())

    def by_role(self) -> dict[str, float]:
        """What was used until now by the client (this process), by servers, and by all others: workers and agents."""
        now = self._read()
        gone = self._began.keys() - now.keys()
        if gone:
            raise RuntimeError(f"process {gone} ended during a measurement, and its CPU time with it")
        spent = {"client": 0.0, "server": 0.0, "workers": 0.0}
        for pid, (role, seconds) in now.items():
            spent[role] += seconds - self._began.get(pid, (role, 0.0))[1]
        return spent

    def _read(self) -> dict[int, tuple[str, float]]:
        me = os.getpid()
        return {
            process.pid: (
                "client" if process.pid == me else "server" if _is_server(process) else "workers",
                cpu_time(process),
            )
            for process in family()
        }


class OthersClock:
    """How much of this machine's CPUs processes that are none of ours use, from now on: they spoil what is measured."""

    def __init__(self) -> None:
        self._began_at = time.perf_counter()
        self._busy_s = self._read()

    def share(self, own_s: float) -> float:
        """Their share of all CPUs until now.

        Args:
            own_s: CPU seconds that this process and its descendants have used meanwhile, also those that have ended.
        """
        busy_s = self._read() - self._busy_s - own_s
        return max(0.0, busy_s / (time.perf_counter() - self._began_at) / (os.cpu_count() or 1))

    def _read(self) -> float:
        times = psutil.cpu_times()
        return sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq", "steal"))


def cpu_time(process: psutil.Process) -> float:
    """CPU seconds of all threads of a process: in nanoseconds where the system has a clock for it, else in ticks."""
    clock = ctypes.c_int()
    if sys.platform == "linux" and _libc().clock_getcpuclockid(process.pid, ctypes.byref(clock)) == 0:
        return time.clock_gettime(clock.value)
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
