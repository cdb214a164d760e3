"""The pickler: cloudpickle's, with some additions. The only module that knows cloudpickle's inside for writing.

Functions of `__mp_main__` go by value, as those of `__main__`; a function by value says from which namespace it comes;
functions under functools' caches go by value too; code keeps the name of its file; read-only arrays arrive writable.
All of it in a subclass: other users of cloudpickle in this process see nothing of it. Used for everything that
`is_plain` does not take.

cloudpickle's private names that are used here and in `unpickler` are the same in 3.0 and 3.1; a test holds them.
"""

from __future__ import annotations

import copyreg
import functools
import sys
from collections.abc import Callable
from pickle import PickleBuffer
from types import CodeType, FunctionType
from typing import Any, Final

import cloudpickle
from cloudpickle import cloudpickle as _inside

from rush_executor._payload.arrays import is_array_class, reduce_array
from rush_executor._payload.cached import (
    CachedFunctionType,
    Skeleton,
    is_cached_function,
    make_cached,
    reduce_cached_property,
    restore_cached,
)
from rush_executor._payload.reference import find_reference
from rush_executor._payload.scattered import RushReference, find_scattered

__all__ = ["NAMESPACE", "PROTOCOL", "CloudPickler", "dump_parts", "namespace_token"]

# Global name under which a namespace in a worker remembers which of its client's it stands for (see `namespace_token`).
NAMESPACE: Final = "__rush_namespace__"

PROTOCOL: Final = 5

# What cloudpickle writes from 3.1.3 on in place of a file's name.
_NO_FILE: Final = "<dynamic-code>"


def _reduce_code(code: CodeType) -> Any:
    """Reduces code as cloudpickle does, but with its file: a traceback without it names no line of the user's."""
    rebuild, args = _inside._code_reduce(code)  # noqa: SLF001
    return rebuild, tuple(code.co_filename if type(arg) is str and arg == _NO_FILE else arg for arg in args)


class _Reducers(dict[type, Callable[[Any], Any]]):
    """Reducers by class: cloudpickle's, NumPy's arrays, and what others have registered with copyreg since.

    cloudpickle's own ChainMap costs 1.5 us for every object of a class without an entry, a dict with ``__missing__``
    a third of that.
    """

    def __missing__(self, cls: type) -> Callable[[Any], Any]:
        reducer = copyreg.dispatch_table.get(cls)
        if reducer is not None:
            return reducer
        if is_array_class(cls):
            return reduce_array
        raise KeyError(cls)


class CloudPickler(cloudpickle.Pickler):  # type: ignore[misc] # cloudpickle has no type information
    """Pickles one object.

    Args:
        file: Where to.
        buffer_callback: Takes the large buffers; None to have them in the pickle.
    """

    dispatch_table = _Reducers(
        {
            **_inside.Pickler._dispatch_table,  # noqa: SLF001
            CodeType: _reduce_code,
            functools.cached_property: reduce_cached_property,
        }
    )
    # Takes the references that are met, where some may be.
    references: list[RushReference] | None = None

    def __init__(self, file: Any, buffer_callback: Callable[[PickleBuffer], object] | None = None) -> None:
        super().__init__(file, PROTOCOL, buffer_callback)

    def reducer_override(self, obj: Any) -> Any:
        """Reduces functions and classes; called for every object that is no builtin value."""
        cls = type(obj)
        if cls is FunctionType:
            # cloudpickle up to 3.1 takes __mp_main__ for importable, which it is only in children of multiprocessing.
            is_main = obj.__module__ == "__mp_main__"
            return self._dynamic_function_reduce(obj) if is_main else super().reducer_override(obj)
        if issubclass(cls, type):
            is_main = getattr(obj, "__module__", None) == "__mp_main__"
            return _inside._dynamic_class_reduce(obj) if is_main else super().reducer_override(obj)  # noqa: SLF001
        if cls is Skeleton:
            return _inside._make_function, self._function_getnewargs(obj.function)  # noqa: SLF001
        if cls is CachedFunctionType and find_reference(obj) is None and is_cached_function(obj):
            return self._reduce_cached(obj)
        return self._refer(obj) if cls is RushReference else NotImplemented

    def _refer(self, reference: RushReference) -> Any:
        if self.references is None:
            return NotImplemented
        self.references.append(reference)
        return find_scattered, (reference.ident,)

    def _reduce_cached(self, wrapper: Any) -> Any:
        function = wrapper.__wrapped__
        parameters = wrapper.cache_parameters()
        attributes = {k: v for k, v in wrapper.__dict__.items() if k not in ("__wrapped__", "cache_parameters")}
        state = (_inside._function_getstate(function), attributes)  # noqa: SLF001
        skeleton = Skeleton(function)
        args = (skeleton, parameters["maxsize"], parameters["typed"])
        return make_cached, args, state, None, None, restore_cached

    def _function_getnewargs(self, func: FunctionType) -> Any:
        newargs = super()._function_getnewargs(func)
        token = namespace_token(func.__globals__)
        if token:
            # The second of the new arguments: the globals that the function starts with, one dict for all functions
            # of this pickle that share theirs.
            newargs[1][NAMESPACE] = token
        return newargs


def namespace_token(namespace: dict[str, Any]) -> int:
    """Tells namespaces of the same name apart.

    Functions made by exec, doctests and the like have globals that claim a module's name without being that module's:
    they must not be mixed with each other in a worker.

    Returns:
        0 for the namespace of an imported module; else a number that is this namespace's own in this process, or
        wherever the namespace came from.
    """
    token = namespace.get(NAMESPACE)
    if type(token) is int:
        return token
    module = sys.modules.get(namespace.get("__name__", ""))
    return 0 if getattr(module, "__dict__", None) is namespace else id(namespace)


class _Parts:
    """A file for a pickler that keeps what is written as it is: a large bytes object is not copied."""

    __slots__ = ("write",)

    def __init__(self, parts: list[bytes]) -> None:
        self.write = parts.append


def dump_parts(obj: object, references: list[RushReference] | None = None) -> tuple[list[bytes], list[memoryview]]:
    """Pickles an object.

    Args:
        obj: The object.
        references: Takes the references in it; None where there must be none.

    Returns:
        The pickle, in parts, which may be the object's own; and its buffers, which are the object's own.

    Raises:
        BaseException: Whatever pickling raised.
    """
    parts: list[bytes] = []
    buffers: list[PickleBuffer] = []
    pickler = CloudPickler(_Parts(parts), buffers.append)
    pickler.references = references
    pickler.dump(obj)
    return parts, [buffer.raw() for buffer in buffers]
