"""Holds Ctrl-C back while a process is being started, so that none is started of which nobody knows.

KeyboardInterrupt may be raised after any call returns: a process can have been forked, and the exception comes before
its number has been stored anywhere. Blocking the signal in this thread (`pthread_sigmask`) does not help: the kernel
gives it to another thread, and Python raises in this one all the same. So for these milliseconds the handler is ours.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["ctrl_c_held_back"]


@contextlib.contextmanager
def ctrl_c_held_back() -> Iterator[None]:
    """Lets SIGINT wait until the block is over. Elsewhere than in the main thread there is nothing to wait for."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    was_pressed = False

    def note(_signum: int, _frame: FrameType | None) -> None:
        nonlocal was_pressed
        was_pressed = True

    try:
        signal.signal(signal.SIGINT, note)
    except ValueError:
        # The main thread of another interpreter than the main one.
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if was_pressed:
            signal.raise_signal(signal.SIGINT)
