"""Ends what a run of tests leaves behind when it is killed in the middle: servers, programs, agents.

Fixtures and `finally` blocks do that for a run that ends by itself. For one that is killed, a guardian does: a small
process that waits for the run's end and then kills whatever carries the run's mark, a variable of the environment that
all its descendants inherit. Not the pipe and the watcher by which the package itself ends private servers: those are
what the tests try to break.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator

import psutil

__all__ = ["no_leftovers"]

_MARK = "TESTS_OF_RUSH_EXECUTOR"
_POLL_S = 0.5


@contextlib.contextmanager
def no_leftovers() -> Iterator[None]:
    """Has what this process starts during the block killed when this process dies in the middle of it.

    What a test runner's own worker processes start ends with them: they have marks of their own, and guardians.
    """
    before = os.environ.get(_MARK)
    mark = uuid.uuid4().hex
    command = [sys.executable, __file__, str(os.getpid()), mark]
    # Started before the mark is set, and out of reach of the signals that end a run. It must not hold the run's output
    # open.
    silent = subprocess.DEVNULL
    guardian = subprocess.Popen(command, stdin=silent, stdout=silent, stderr=silent, start_new_session=True)
    os.environ[_MARK] = mark
    try:
        yield
    finally:
        if before is None:
            del os.environ[_MARK]
        else:
            os.environ[_MARK] = before
        guardian.kill()
        guardian.wait()


def _guard(owner: int, mark: str) -> None:
    while os.getppid() == owner:
        time.sleep(_POLL_S)
    # Twice: one of them may have started another one in between.
    for _ in range(2):
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(_MARK) == mark:
                    process.kill()


if __name__ == "__main__":
    _guard(int(sys.argv[1]), sys.argv[2])
