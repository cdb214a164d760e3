"""Tells whether a global that a client ships again is the one that it shipped before.

Knows how to compare what was just unpickled; must not know where it is put (`versions`). Called in a worker, after
each load that brought functions or classes by value.

The digest is taken of a new pickle of the value, made here: in the incoming stream a value's bytes depend on what came
before it. A function by value counts as its code, defaults, closure and attributes, not its globals: those are shared,
compared one by one, and may have become large in the worker. A class by value counts as itself: shipped again, it is
the same object here, and its attributes are compared one by one.
"""

from __future__ import annotations

import pickle
from collections.abc import Hashable
from hashlib import blake2b
from pickle import PickleBuffer
from types import FunctionType
from typing import Any, Final

from cloudpickle import cloudpickle as _inside

from rush_executor._payload.cached import CachedFunctionType, is_cached_function
from rush_executor._payload.pickler import PROTOCOL, CloudPickler
from rush_executor._payload.reference import find_reference

__all__ = ["fingerprint"]

_DIGEST_SIZE: Final = 16

_ATOMS: Final = frozenset((int, bool, type(None)))
_TEXTS: Final = frozenset((str, bytes))
# Short texts are their own fingerprints; long ones would be kept alive by it.
_LONGEST_TEXT: Final = 64


def fingerprint(value: Any) -> Hashable:
    """Returns something that is equal for equal values.

    Returns:
        Something equal to nothing else if the value cannot be pickled again: then what was shipped last wins.
    """
    cls = type(value)
    if cls in _ATOMS or (cls in _TEXTS and len(value) <= _LONGEST_TEXT):
        return cls.__name__, value
    try:
        # Methods come again with every instance of a class by value, so what is usual in a class has ways that are
        # ten times faster than a pickle.
        if cls is FunctionType and find_reference(value) is None:
            return value.__code__, value.__module__, value.__qualname__, _digest_of_rest(value)
        if cls is property:
            return "property", fingerprint(value.fget), fingerprint(value.fset), fingerprint(value.fdel)
        if cls is staticmethod or cls is classmethod:
            return cls.__name__, fingerprint(value.__func__)
        return _digest(value)
    except BaseException:  # noqa: BLE001 - a reducer of the user's may raise anything, even SystemExit
        return object()


def _digest_of_rest(function: FunctionType) -> bytes:
    rest = _rest(function)
    if not any(rest):
        return b""
    if function.__closure__ is None:
        try:
            # Defaults and annotations are mostly importable, and then plain pickle is equal for equal values too.
            return blake2b(pickle.dumps(rest, PROTOCOL), digest_size=_DIGEST_SIZE).digest()
        except Exception:  # noqa: BLE001 - then not
            pass
    return _digest(rest)


def _rest(function: FunctionType) -> tuple[Any, ...]:
    return (
        function.__defaults__,
        function.__kwdefaults__,
        function.__closure__,
        function.__dict__,
        function.__annotations__,
    )


def _digest(value: object) -> bytes:
    sink = _Sink()
    _Fingerprinter(sink, sink.take_buffer).dump(value)
    return sink.digest()


class _Sink:
    """A file that keeps nothing but the digest of what is written."""

    __slots__ = ("_state", "write")

    def __init__(self) -> None:
        self._state = blake2b(digest_size=_DIGEST_SIZE)
        self.write = self._state.update

    def take_buffer(self, buffer: PickleBuffer) -> None:
        self._state.update(buffer.raw())

    def digest(self) -> bytes:
        return self._state.digest()


class _Fingerprinter(CloudPickler):
    """Writes functions and classes by value in short; its pickles are never read."""

    def reducer_override(self, obj: Any) -> Any:
        cls = type(obj)
        if cls is FunctionType:
            if find_reference(obj) is not None:
                return NotImplemented
            # As state, which comes after the object is known: closures may lead back to the function.
            return _function, (), (obj.__code__, obj.__module__, obj.__qualname__, _rest(obj))
        if issubclass(cls, type):
            if find_reference(obj) is not None:
                return super().reducer_override(obj)
            # The mark by which cloudpickle finds the class again. An id() would be given to another class some day.
            return _class, (_inside._get_or_create_tracker_id(obj),)  # noqa: SLF001
        if cls is CachedFunctionType and is_cached_function(obj) and find_reference(obj) is None:
            return _cached, tuple(obj.cache_parameters().values()), obj.__wrapped__
        return super().reducer_override(obj)


def _function() -> None:
    """Stands in a pickle for a function."""


def _class() -> None:
    """Stands in a pickle for a class."""


def _cached() -> None:
    """Stands in a pickle for a function under `functools.lru_cache`."""
