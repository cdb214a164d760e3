"""What a command ends with when something goes wrong. Imports the ledger: only for commands that use it in any case."""

from __future__ import annotations

from rush_executor._ledger.connection import NetworkGone, Refused, WorkerGone
from rush_executor.errors import RushError

__all__ = ["FAILED", "NOT_THERE", "NotThere", "error_text", "exit_code_of"]

FAILED = 1
NOT_THERE = 3


class NotThere(RushError):
    """There is no such network, task or worker."""


def exit_code_of(error: BaseException) -> int | None:
    """The exit code for an error that is told in one line; None for one that is a mistake of ours."""
    if isinstance(error, NotThere):
        return NOT_THERE
    return FAILED if isinstance(error, RushError | Refused | NetworkGone | WorkerGone | OSError) else None


def error_text(error: BaseException) -> str:
    """What is told of it."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)
