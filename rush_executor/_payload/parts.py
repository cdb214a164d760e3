"""What a value is made of, and how one would write the way to each part.

Knows containers, objects, functions and classes. Must not know pickles. `culprit` walks along here to the part that
cannot be pickled.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from itertools import islice
from types import FunctionType, MethodType
from typing import Any, Final

from rush_executor._payload.names import type_name
from rush_executor._payload.reference import find_reference

__all__ = ["parts_of"]

_MOST_PARTS: Final = 200
_LONGEST_KEY: Final = 60


def parts_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Lists the parts of a value, up to a number, each with the way from the value to it."""
    try:
        yield from islice(_all_parts(value), _MOST_PARTS)
    except (Exception, SystemExit):  # noqa: BLE001 - the user's own classes may do anything when looked at
        return


def _all_parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, FunctionType):
        yield from _parts_of_function(value)
    elif isinstance(value, type):
        yield from _parts_of_class(value)
    else:
        yield from _parts_of_container(value)
        yield from _parts_of_object(value)


def _parts_of_container(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"[{_short(key)}]", item
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield f"[{i}]", item
    elif isinstance(value, set | frozenset):
        for item in value:
            yield "{...}", item


def _parts_of_object(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, functools.partial):
        yield from ((".func", value.func), (".args", value.args), (".keywords", value.keywords))
    elif isinstance(value, MethodType):
        yield from ((".__self__", value.__self__), (".__func__", value.__func__))
        return
    for name, item in (getattr(value, "__dict__", None) or {}).items():
        yield f".{name}", item
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                yield f".{name}", getattr(value, name)


def _parts_of_class(cls: type) -> Iterator[tuple[str, Any]]:
    if find_reference(cls) is not None:
        return
    for name, item in vars(cls).items():
        if name not in ("__dict__", "__weakref__"):
            yield f".{name}", getattr(item, "__func__", item)


def _parts_of_function(function: FunctionType) -> Iterator[tuple[str, Any]]:
    if find_reference(function) is not None:
        return
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield f", variable {name!r} of its closure,", cell.cell_contents
        except ValueError:
            # Not assigned yet.
            continue
    yield ".__defaults__", function.__defaults__
    yield ".__kwdefaults__", function.__kwdefaults__
    for name in _names_in(code):
        if name in function.__globals__:
            yield f", global {name!r},", function.__globals__[name]


def _names_in(code: Any) -> Iterator[str]:
    yield from code.co_names
    for const in code.co_consts:
        if type(const) is type(code):
            yield from _names_in(const)


def _short(key: Any) -> str:
    if type(key) not in (str, bytes, int, float, bool):
        return f"<{type_name(type(key))}>"
    text = repr(key)
    return text if len(text) <= _LONGEST_KEY else text[:_LONGEST_KEY] + "..."
