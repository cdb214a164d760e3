"""Measures some workloads on one kind of pool; run by `__main__.py`, in a process of its own for each.

python -m benchmarks.measure POOL WORKLOAD,... SIZES WORKERS FILE
"""

from __future__ import annotations

import json
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import psutil

from benchmarks.clocks import OthersClock
from benchmarks.workloads import FULL, QUICK, WORKLOADS, Bench

__all__ = ["main"]


def main() -> None:
    name, chosen, sizes, n_workers, out = sys.argv[1:]
    others = OthersClock()
    own_before = _own_cpu_s()
    figures: dict[str, float] = {}
    failed: dict[str, str] = {}
    bench = Bench(name, int(n_workers), QUICK if sizes == "quick" else FULL)
    seconds: dict[str, float] = {}
    for workload in chosen.split(","):
        began_at = time.perf_counter()
        try:
            figures.update(WORKLOADS[workload].run(bench))
        except Exception as error:  # noqa: BLE001 - a pool of others may fail as it likes; the others are measured
            traceback.print_exc()
            failed[workload] = f"{type(error).__name__}: {error}"
        seconds[workload] = time.perf_counter() - began_at
    bench.close()
    told: dict[str, Any] = {"figures": figures, "failed": failed, "seconds": seconds}
    told["others"] = others.share(_own_cpu_s() - own_before)
    Path(out).write_text(json.dumps(told))


def _own_cpu_s() -> float:
    """CPU time of this process, of its descendants, and of those that have ended and were waited for."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = sum(psutil.Process().cpu_times()[:2])
    there = sum(sum(child.cpu_times()[:4]) for child in psutil.Process().children(recursive=True))
    return own + ended.ru_utime + ended.ru_stime + there


if __name__ == "__main__":
    main()
