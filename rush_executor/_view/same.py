"""Whether two values are the same, whatever they are.

``==`` alone does not tell: NaN is not itself, an array answers with an array, and an exception that was read twice is
two exceptions. Also what a numpy scalar is in plain Python. Knows no tables; imports no library of its own accord: of
one that nobody has imported there are no values.
"""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["is_same", "plain"]


def plain(value: Any) -> Any:
    """Returns a numpy scalar as bool, int, float or str; anything else as it is."""
    generic = getattr(sys.modules.get("numpy"), "generic", None)
    if generic is not None and isinstance(value, generic) and value.dtype.kind in "biufU":
        return value.item()
    return value


def is_same(a: Any, b: Any) -> bool:
    """Whether two values are the same: NaN is NaN, arrays by their elements, exceptions by their type and arguments."""
    if a is b:
        return True
    if isinstance(a, BaseException):
        return type(a) is type(b) and is_same(a.args, b.args)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(is_same, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(is_same(a[name], b[name]) for name in a)
    if hasattr(a, "shape") or hasattr(b, "shape"):
        return _is_same_array(plain(a), plain(b))
    return bool(a == b) or bool(a != a and b != b)  # noqa: PLR0124 - NaN


def _is_same_array(a: Any, b: Any) -> bool:
    if not hasattr(a, "shape") and not hasattr(b, "shape"):  # two numpy scalars, or one and a number
        return is_same(a, b)
    if type(a) is not type(b) or a.shape != b.shape or getattr(a, "dtype", None) != getattr(b, "dtype", None):
        return False
    for attribute in ("equals", "tolist"):  # data frames and series; arrays and tensors
        method = getattr(a, attribute, None)
        if method is not None:
            return bool(method(b)) if attribute == "equals" else is_same(method(), b.tolist())
    return bool(a == b)
