"""What the workers run. Importable by name, as every kind of pool finds it."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["big_closure", "big_partial", "hold", "noop", "same", "sleep", "spin"]


def noop(value: Any) -> Any:
    return value


# Under another name: in the rows with data nothing else than the data shall differ.
same = noop


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def spin(seconds: float) -> float:
    """Uses so much CPU time: also on a busy machine, where a span on the clock would hold less work."""
    end_at = time.thread_time() + seconds
    while time.thread_time() < end_at:
        pass
    return seconds


def hold(folder: str) -> int:
    """Keeps its worker until somebody puts a file called `go` into the folder; a file with its pid says it is here."""
    path = Path(folder)
    (path / str(os.getpid())).touch()
    while not (path / "go").exists():
        time.sleep(0.005)
    return os.getpid()


def big_closure(big: bytes) -> Callable[[int], int]:
    """A function that carries so many bytes: for pools that can send closures."""
    return lambda index: big[index]


def big_partial(big: bytes) -> Callable[[int], int]:
    """The same for pools that cannot."""
    return functools.partial(_item, big)


def _item(big: bytes, index: int) -> int:
    return big[index]
