"""Read-only NumPy arrays, which have to arrive writable like all others.

Knows NumPy's array by its name only and never imports it. Called by the pickler's table of reducers; `thaw` is called
by pickles.

Protocol 5 marks the buffer of a read-only array, and the unpickler then hides our writable bytearray behind a
read-only memoryview. Up to Python 3.13 the standard library's pool pickles with protocol 4, under which every array
arrives writable, and compiled code (Cython without `const`) refuses read-only ones: pandas hands them out everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from pickle import PickleBuffer
from typing import Any

__all__ = ["is_array_class", "reduce_array", "thaw"]


def is_array_class(cls: type) -> bool:
    """Tells whether this is exactly `numpy.ndarray`; a subclass may have given its flags a meaning."""
    return cls.__name__ == "ndarray" and cls.__module__ == "numpy"


def reduce_array(array: Any) -> Any:
    """Reduces an array as NumPy does, with `thaw` around it where it is read-only."""
    reduced = array.__reduce_ex__(5)
    if array.flags.writeable:
        return reduced
    rebuild, args = reduced[:2]
    if len(reduced) == 2 and args and type(args[0]) is PickleBuffer:  # noqa: PLR2004 - a reduce tuple without state
        return thaw, (rebuild, *args)
    # Not contiguous, or of objects: such arrays carry a copy of their content and arrive writable by themselves.
    return reduced


def thaw(rebuild: Callable[..., object], buffer: Any, *rest: object) -> object:
    """Rebuilds an array on the writable memory that is behind a read-only view."""
    if type(buffer) is memoryview and type(buffer.obj) is bytearray:
        buffer = buffer.obj
    elif type(buffer) is not bytearray:
        buffer = bytearray(buffer)
    return rebuild(buffer, *rest)
