"""What is logged of a server that does not answer, so that whoever watches can tell waiting from hanging."""

from __future__ import annotations

import logging

__all__ = ["tell_return", "tell_silence"]

logger = logging.getLogger(__name__)


def tell_silence(silent_s: float, cause: BaseException | None, timeout_s: float) -> None:
    """The server has been silent for some seconds, and is waited for as long as `timeout_s`."""
    logger.warning(
        "the server has not answered for %.0f s (%s); trying again, for up to %g s in all (reconnect timeout). What "
        "runs goes on",
        silent_s,
        cause,
        timeout_s,
    )


def tell_return(silent_s: float) -> None:
    """The server has answered, after that had been told."""
    logger.warning("the server answers again, after %.0f s", silent_s)
