"""Values larger than a string of the server may be: there and back, in how much time and memory.

    python benchmarks/large_values.py [--mb 600] [--folder FOLDER]

A value of that many MB (random bytes, which do not compress) goes three ways: as input of a task, as its result, and as
what a worker's loop is given. First in chunks through the server, then through files in a folder (by default a fresh
temporary one), which is what `large_objects_path` is for. What arrives is compared by its digest.

Memory is the largest resident set of each process during that way, looked at every 20 ms; what all processes have in
common is counted in each. All of them together need 8 times the size of the value, and the folder has room for one.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import psutil

from rush_executor import Rush, RushWorker
from rush_executor.testing import temporary_server

MB = 1_000_000
DEADLINE_S = 600.0
LOOK_S = 0.02


def content(n_mb: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(MB) * n_mb


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


# ------------------------------------------------------------------------------------------------------ what workers do


def take(data: bytes) -> dict[str, str]:
    return {"digest": digest(data)}


def give(n_mb: int) -> dict[str, bytes]:
    return {"data": content(n_mb, 2)}


def loop(worker: RushWorker, data: bytes) -> None:
    worker.push_finished_tasks([{}], [{"digest": digest(data)}])


# ------------------------------------------------------------------------------------------------------------ measuring


class Peaks(threading.Thread):
    """The largest resident set of this process, of the server and of the worker, as long as the block lasts."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.mb = {"client": 0, "server": 0, "worker": 0}
        self.over = threading.Event()

    def run(self) -> None:
        """The thread."""
        own = psutil.Process()
        while not self.over.wait(LOOK_S):
            self.look("client", own)
            for child in own.children(recursive=True):
                try:
                    self.look("server" if "-server" in child.name() else "worker", child)
                except psutil.NoSuchProcess:
                    pass

    def look(self, who: str, process: psutil.Process) -> None:
        """Takes in what a process has now."""
        self.mb[who] = max(self.mb[who], process.memory_info().rss // MB)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()


def as_input(rush: Rush, n_mb: int) -> bool:
    rush.start_local_workers(fun=take, n_workers=1)
    data = content(n_mb, 1)
    keys = rush.push_tasks([{"data": data}])
    wait(rush, keys)
    [row] = rush.fetch_finished_tasks()
    return digest(data) == row.ys["digest"] == digest(row.xs["data"])


def as_result(rush: Rush, n_mb: int) -> bool:
    rush.start_local_workers(fun=give, n_workers=1)
    wait(rush, rush.push_tasks([{"n_mb": n_mb}]))
    [row] = rush.fetch_finished_tasks()
    return digest(row.ys["data"]) == digest(content(n_mb, 2))


def as_argument(rush: Rush, n_mb: int) -> bool:
    data = content(n_mb, 3)
    rush.start_local_workers(loop, n_workers=1, data=data)
    [row] = rush.fetch_new_tasks(timeout=DEADLINE_S)
    return bool(row.ys["digest"] == digest(data))


WAYS: dict[str, Callable[[Rush, int], bool]] = {
    "input of a task": as_input,
    "result of a task": as_result,
    "argument of a loop": as_argument,
}


def wait(rush: Rush, keys: list[str]) -> None:
    if not rush.wait_for_tasks(keys, timeout=DEADLINE_S):
        raise TimeoutError(f"not done within {DEADLINE_S:g} s")
    for row in rush.fetch_failed_tasks():
        raise RuntimeError("the task has failed") from row.condition


def measure(name: str, n_mb: int, folder: Path | None) -> bool:
    with temporary_server() as url, Rush(url=url, large_objects_path=folder) as rush, Peaks() as peaks:
        began_at = time.perf_counter()
        is_same = WAYS[name](rush, n_mb)
        spent_s = time.perf_counter() - began_at
        stored = int(rush.redis_info["used_memory"]) // MB
        files = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) // MB if folder else 0
        rush.reset()
        left = list(folder.iterdir()) if folder else []
    found = ("same" if is_same else "DIFFERENT") + (", files left" if left else "")
    sizes = "".join(f" {size:9,}" for size in (stored, files, *peaks.mb.values()))
    print(f"{name:20} {'files' if folder else 'chunks':8} {spent_s:7.1f}{sizes}   {found}", flush=True)
    return is_same and not left


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mb", type=int, default=600, metavar="N", help="size of the value (600)")
    parser.add_argument("--folder", type=Path, help="an empty folder to write in; by default a temporary one")
    options = parser.parse_args()
    print(f"One value of {options.mb} MB; sizes in MB, memory at its largest\n")
    print(f"{'':29} {'seconds':>7} {'on server':>9} {'in files':>9} {'client':>9} {'server':>9} {'worker':>9}")
    with tempfile.TemporaryDirectory(prefix="rush-large-") as temporary:
        folder: Any = options.folder or Path(temporary)
        results = [measure(name, options.mb, where) for where in (None, folder) for name in WAYS]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
