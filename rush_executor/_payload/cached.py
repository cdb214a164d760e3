"""Functions under `functools.lru_cache`, `functools.cache` and `functools.cached_property`, sent by value.

Knows these wrapper types. cloudpickle sends the first two by name, and in the worker there is no such name when the
function is of `__main__`; the third holds a lock up to Python 3.11. A script whose helper or class uses one of them
would not run. The cache itself stays at home: each worker fills its own. `CloudPickler` reduces here; `make_cached` and
`restore_cached` are called by pickles.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any, Final

from cloudpickle.cloudpickle import _function_setstate

__all__ = [
    "CachedFunctionType",
    "Skeleton",
    "is_cached_function",
    "make_cached",
    "reduce_cached_property",
    "restore_cached",
]

CachedFunctionType: Final = type(functools.lru_cache(maxsize=1)(lambda: None))


class Skeleton:
    """Stands in a pickle for a function whose state comes later.

    The function's globals may hold the wrapper itself (every recursive function does), so it must be possible to
    build the wrapper before the function's state.
    """

    __slots__ = ("function",)

    def __init__(self, function: FunctionType) -> None:
        self.function = function


def is_cached_function(obj: Any) -> bool:
    """Tells whether this is a wrapper around a Python function."""
    return type(obj) is CachedFunctionType and type(getattr(obj, "__wrapped__", None)) is FunctionType


def make_cached(function: FunctionType, maxsize: int | None, typed: bool) -> Any:  # noqa: FBT001 - lru_cache's own
    """Wraps a function that has no state yet."""
    return functools.lru_cache(maxsize, typed)(function)


def restore_cached(
    wrapper: Any, state: Any, set_state: Callable[[FunctionType, Any], object] = _function_setstate
) -> None:
    """Gives the wrapped function its state, and the wrapper its name.

    Args:
        wrapper: What `make_cached` returned.
        state: The wrapped function's state, as cloudpickle makes it, and the wrapper's own attributes.
        set_state: Applies the function's state; our unpicklers give their own.
    """
    function_state, attributes = state
    function = wrapper.__wrapped__
    set_state(function, function_state)
    functools.update_wrapper(wrapper, function)
    wrapper.__dict__.update(attributes)


def reduce_cached_property(prop: Any) -> Any:
    """Reduces a cached property without its lock, but with its name: it is not told again whose attribute it is."""
    state = {key: value for key, value in vars(prop).items() if key not in ("func", "lock")}
    return type(prop), (prop.func,), state
