"""What to call functions, classes and exceptions in a message.

Knows nothing of payloads. Never raises, whatever the user's classes do. Used wherever the room makes an error.
"""

from __future__ import annotations

import functools
import traceback
from typing import Any, Final

__all__ = ["describe_error", "drop_frames", "message_of", "name_of", "type_name"]

_LONGEST_CHAIN: Final = 8


def name_of(fn: Any) -> str:
    """Returns what to call a callable in a message."""
    if isinstance(fn, functools.partial):
        return f"partial({name_of(fn.func)})"
    try:
        name = fn.__qualname__
    except Exception:  # noqa: BLE001 - the user's own __getattr__
        name = None
    return name if type(name) is str else type(fn).__qualname__


def type_name(cls: type) -> str:
    """Returns a class's name as the traceback module writes it."""
    module = cls.__module__
    if type(module) is not str or module in ("builtins", "__main__"):
        return cls.__qualname__
    return f"{module}.{cls.__qualname__}"


def message_of(error: BaseException) -> str:
    """Returns ``str(error)``, or what there is to say about its failure."""
    try:
        # A __str__ may return a subclass of str, which would be pickled as an object of that class.
        return str.__str__(str(error))
    except BaseException as why:  # noqa: BLE001 - the exception's own code
        return f"<its str() raised {type_name(type(why))}>"


def describe_error(error: BaseException) -> str:
    """Returns type and message of an exception, without a full stop."""
    name, message = type_name(type(error)), message_of(error).rstrip(".")
    return f"{name}: {message}" if message else name


def drop_frames(error: BaseException | None) -> None:
    """Empties the frames that a chain of exceptions holds, so that what they refer to can go; the lines stay."""
    for _ in range(_LONGEST_CHAIN):
        if error is None:
            return
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ if error.__cause__ is not None else error.__context__
