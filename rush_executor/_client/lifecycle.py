"""Interpreter exit and fork: what all sessions of a process go through together.

At exit, before the interpreter ends its threads, every session finishes what was submitted to it, as the standard
library's pools do; from then on no task is taken. In a forked child the sessions are the parent's: the child closes its
copies of their connections and pipes, and whoever uses one there is told.

The set below is state of the process, as exit and fork are events of the process; nothing else is kept here.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol

__all__ = ["LiveSession", "register"]


class LiveSession(Protocol):
    """What a session must do at exit and after a fork."""

    def close_at_exit(self) -> None:
        """Finishes what was submitted, and ends."""

    def disown(self) -> None:
        """In a forked child: lets go of what is the parent's."""


_sessions: weakref.WeakSet[LiveSession] = weakref.WeakSet()


def register(session: LiveSession) -> None:
    """Has the session take part in exit and fork as long as it lives."""
    _sessions.add(session)


def _at_exit() -> None:
    for session in list(_sessions):
        session.close_at_exit()


def _after_fork() -> None:
    for session in list(_sessions):
        session.disown()
    _sessions.clear()


# The hook that concurrent.futures' own pools use: atexit would come after the threads' end has begun.
threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
