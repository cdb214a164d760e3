"""NumPy arrays that need more than NumPy's own pickling: read-only ones, mapped files, and those that go another way.

Knows NumPy's classes by their names only and never imports it. Called by the pickler's table of reducers; `thaw` is
called by pickles.

Protocol 5 marks the buffer of a read-only array, and the unpickler then hides our writable memory behind a
read-only memoryview. Up to Python 3.13 the standard library's pool pickles with protocol 4, under which every array
arrives writable, and compiled code (Cython without `const`) refuses read-only ones: pandas hands them out everywhere.

A mapped file (`numpy.memmap`) travels as the array that it shows. NumPy itself would copy it into the pickle, and make
of it a memmap without a file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import ContextVar
from pickle import PickleBuffer
from typing import Any, Final

__all__ = ["OTHER_WAY", "is_array_class", "reduce_array", "thaw"]

# For who has another way for some arrays than through the pickle, while it submits: takes an array, and returns what
# `__reduce__` would, or None for those that are to go the usual way.
OTHER_WAY: Final[ContextVar[Callable[[Any], Any] | None]] = ContextVar("OTHER_WAY", default=None)


def is_array_class(cls: type) -> bool:
    """Tells whether this is `numpy.ndarray` or a mapped file; another subclass may have given its flags a meaning."""
    return cls.__name__ in ("ndarray", "memmap") and cls.__module__ == "numpy"


def reduce_array(array: Any) -> Any:
    """Reduces an array as NumPy does, with `thaw` around it where it is read-only."""
    other_way = OTHER_WAY.get()
    if other_way is not None and (elsewhere := other_way(array)) is not None:
        return elsewhere
    if type(array).__name__ == "memmap":
        array = array.view(sys.modules["numpy"].ndarray)
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
    if type(buffer) is memoryview:
        # A bytearray, or a mapping. What holds more than this buffer is none of ours.
        with memoryview(buffer.obj) as behind:
            is_ours = not behind.readonly and behind.nbytes == buffer.nbytes
        if is_ours:
            return rebuild(buffer.obj, *rest)
    elif type(buffer) is bytearray:
        return rebuild(buffer, *rest)
    return rebuild(bytearray(buffer), *rest)
