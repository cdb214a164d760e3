"""Functions and classes that the other side can import by name.

Knows `sys.modules` and cloudpickle's registry of modules to send by value. Must not know payloads. `Encoder` asks
whether a callable can go by name, `Decoder` looks the name up, the pickler and the fingerprints ask as well.
"""

from __future__ import annotations

import importlib
import sys
from functools import reduce
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, Final, NamedTuple

import cloudpickle

from rush_executor._payload.cached import CachedFunctionType

__all__ = ["Reference", "find_reference", "is_current", "resolve"]

# The modules that a program runs as: in a worker another program goes by these names.
_MAIN_MODULES: Final = frozenset(("__main__", "__mp_main__"))
_TYPES: Final = (FunctionType, BuiltinFunctionType, CachedFunctionType, type)


class Reference(NamedTuple):
    """The address of an importable object."""

    module: str
    names: tuple[str, ...]


def find_reference(obj: Any) -> Reference | None:
    """Finds the name under which an object can be imported.

    Returns:
        None unless it is a function or class that its module really holds under its qualified name: a decorated
        function's original, a lambda, a local class and a redefined function are not.
    """
    if not isinstance(obj, _TYPES):
        return None
    module_name = getattr(obj, "__module__", None)
    qualname = getattr(obj, "__qualname__", None)
    if type(module_name) is not str or type(qualname) is not str or module_name in _MAIN_MODULES:
        return None
    reference = Reference(module_name, tuple(qualname.split(".")))
    return reference if is_current(reference, obj) else None


def is_current(reference: Reference, obj: object) -> bool:
    """Tells whether the name still leads to this very object."""
    module = sys.modules.get(reference.module)
    # Someone may register or withdraw a module between two calls, so cloudpickle is asked every time.
    by_value = cloudpickle.list_registry_pickle_by_value()
    if by_value and _is_in(reference.module, by_value):
        return False
    found: object = module  # None, if it is not imported, has no such name
    for name in reference.names:
        found = getattr(found, name, None)
    return found is obj


def resolve(reference: Reference) -> Any:
    """Finds the object, importing its module if need be.

    Asked again at every call, as unpickling by name would: a task may have reloaded the module or replaced the name.

    Raises:
        BaseException: Whatever the import raised; AttributeError when the module has no such name.
    """
    module: ModuleType | None = sys.modules.get(reference.module)
    if module is None:
        module = importlib.import_module(reference.module)
    names = reference.names
    if len(names) == 1:
        return getattr(module, names[0])
    return reduce(getattr, names, module)


def _is_in(module_name: str, packages: set[str]) -> bool:
    parts = module_name.split(".")
    return any(".".join(parts[:n]) in packages for n in range(1, len(parts) + 1))
