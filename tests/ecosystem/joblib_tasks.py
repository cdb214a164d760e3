"""What the tests of the joblib backend run in workers: imported there by name, so nothing heavy is imported here."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed, parallel_config

# A task that waits for its test gives up after this long, so that a failing test leaves no worker behind.
_PATIENCE_S = 60.0


def square(x: int) -> int:
    return x * x


def worker(_: Any = None) -> int:
    return os.getpid()


def worker_of_two(_: Any = None) -> int:
    """Takes long enough for the other worker to take the next one."""
    time.sleep(0.05)
    return os.getpid()


def parent_worker(_: Any = None) -> int:
    """Pid of the worker's agent."""
    time.sleep(0.05)
    return os.getppid()


def fail(x: Any) -> None:
    raise ValueError(f"no {x}")


def touch_and_sleep(folder: Path, name: Any) -> None:
    (folder / str(name)).touch()
    time.sleep(_PATIENCE_S)


def fail_when_there_are(folder: Path, n: int) -> None:
    """Raises as soon as so many tasks have begun, this one among them."""
    (folder / "failing").touch()
    give_up_at = time.monotonic() + _PATIENCE_S
    while len(list(folder.iterdir())) < n and time.monotonic() < give_up_at:
        time.sleep(0.01)
    raise ValueError("enough")


def wait_for(path: Path, value: Any) -> Any:
    give_up_at = time.monotonic() + _PATIENCE_S
    while not path.exists():
        if time.monotonic() > give_up_at:
            raise TimeoutError(str(path))
        time.sleep(0.01)
    return value


def die_once(mark: Path, value: Any) -> Any:
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def environment(name: str) -> str | None:
    return os.environ.get(name)


def file_of(array: Any) -> tuple[str, str | None, float]:
    """Type of an array, the file that it is mapped from, if it is, and its sum."""
    return type(array).__name__, getattr(array, "filename", None), float(array.sum())


def file_of_values(frame: Any) -> str | None:
    """The file that the values of a data frame, or of a sparse matrix, are mapped from."""
    values = frame.data if hasattr(frame, "tocsr") else frame.to_numpy()
    while values is not None and not hasattr(values, "filename"):
        values = values.base
    return None if values is None else str(values.filename)


def give_back(array: Any) -> Any:
    return array


def nested(depth: int) -> list[Any]:
    """Parallel calls inside of each other, all with this backend by name."""
    if not depth:
        return [os.getpid()]
    with parallel_config(backend="rush", n_jobs=2):
        return [pid for pids in Parallel()(delayed(nested)(depth - 1) for _ in range(2)) for pid in pids]
