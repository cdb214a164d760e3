"""What an agent without an owner says of itself while it waits.

Somebody sits at its terminal, or reads its log, and cannot tell waiting from hanging. An agent that has an owner is
silent: the owner logs an absence of the server itself, and knows when it ends its workers.
"""

from __future__ import annotations

import logging
import math
import time
from typing import Final

from rush_executor._ledger.silence import tell_return, tell_silence

__all__ = ["Notices"]

logger = logging.getLogger(__name__)

# What is over sooner is not worth a word.
_PATIENCE_S: Final = 1.0


class Notices:
    """Says each thing once, when it has lasted.

    Args:
        is_silent: Say nothing.
    """

    def __init__(self, *, is_silent: bool) -> None:
        self._is_silent = is_silent
        self._has_said_lost = False
        self._leaving_at: float | None = None

    def server_lost(self, lost_at: float, timeout_s: float, cause: BaseException | None) -> None:
        """The server has not answered since `lost_at`, and is waited for as long as `timeout_s`."""
        lost_s = time.monotonic() - lost_at
        if self._is_silent or self._has_said_lost or lost_s < _PATIENCE_S:
            return
        self._has_said_lost = True
        tell_silence(lost_s, cause, timeout_s)

    def server_answered(self, lost_at: float) -> None:
        """The server has answered, for the first time since `lost_at`."""
        if self._has_said_lost:
            self._has_said_lost = False
            tell_return(time.monotonic() - lost_at)

    def leaving(self, n_workers: int) -> None:
        """The agent was told to leave, and so many workers have not yet ended."""
        if self._is_silent or not n_workers:
            return
        if self._leaving_at is None:
            self._leaving_at = time.monotonic() + _PATIENCE_S
        elif self._leaving_at <= time.monotonic():
            self._leaving_at = math.inf
            logger.warning(
                "told to leave: waiting for %s to finish what runs and hand it in; a second Ctrl-C or SIGTERM ends it "
                "now",
                "1 worker" if n_workers == 1 else f"{n_workers} workers",
            )
