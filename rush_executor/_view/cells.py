"""One value as text that fits into a cell.

Never raises, whatever the value does; never returns control characters, line breaks or more than was asked for; and
does not take long over a list of a million numbers. Used by the layouts and, for conditions, by the exports.
"""

from __future__ import annotations

import reprlib
from datetime import UTC, datetime
from numbers import Complex, Integral
from typing import Any, Final

from rush_executor._payload.names import message_of
from rush_executor._view.same import plain

__all__ = ["clip", "condition_text", "is_number", "text_of", "time_text"]

# For lists in lists and the like: what is cut off here would not fit into a cell anyway.
_SHORT: Final = reprlib.Repr()
_SHORT.maxlevel = 4
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxdict = _SHORT.maxarray = 20
_SHORT.maxstring = _SHORT.maxother = 240


def text_of(value: Any, limit: int) -> str:
    """Returns a value as text of one line, with ``...`` at its end where it was cut.

    Args:
        value: Anything.
        limit: How many characters, at least 4.
    """
    try:
        return clip(_text(plain(value), limit), limit)
    except Exception:  # noqa: BLE001 - the value's own code
        return clip(f"<{type(value).__name__}>", limit)


def time_text(value: Any, limit: int) -> str:
    """Returns an instant (seconds since 1970) as text, in UTC."""
    try:
        return clip(datetime.fromtimestamp(value, UTC).isoformat(" ", "milliseconds").replace("+00:00", "Z"), limit)
    except (TypeError, ValueError, OverflowError, OSError):  # None; a number that is no instant
        return text_of(value, limit)


def condition_text(error: BaseException) -> str:
    """Returns an exception as ``ValueError: text``, the text in full."""
    name, message = type(error).__name__, message_of(error)
    return f"{name}: {message}" if message else name


def is_number(value: Any) -> bool:
    """Whether a value is a number to be lined up with others; True and False are none."""
    try:
        value = plain(value)
        return isinstance(value, Complex) and not isinstance(value, bool)
    except Exception:  # noqa: BLE001 - the value's own code
        return False


def clip(text: str, limit: int) -> str:
    """Returns the text on one line of printable characters, cut to a length."""
    # Cut first: a text may have megabytes. repr() spells what is not printable: line breaks, escape codes, surrogates.
    text = text[: limit + 1]
    if not text.isprintable():
        text = repr(text)[1:-1]
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _text(value: Any, limit: int) -> str:
    if isinstance(value, str):
        return str.__str__(value[: limit + 1])
    if isinstance(value, BaseException):
        return condition_text(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Complex) and not isinstance(value, Integral):
        return str(value)
    # Arrays are written over several lines, indented.
    return " ".join(_SHORT.repr(value).split())
