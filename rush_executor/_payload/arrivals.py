"""What one load brings to a worker: functions and classes by value, and the globals that came with them.

Stands in for cloudpickle's own constructors while a worker unpickles. Must not know streams. Made by `WorkerUnpickler`
for each load; ends with `commit` or `roll_back`.

Whether a shipped value is a new version can be told only when the load is complete: functions refer to each other, and
one that is still under construction has no defaults and no closure yet. Until then reconstructors and ``__setstate__``
methods may run, so new *code* is put in place at once; data stays the worker's until the end, since threads of earlier
tasks may be reading it.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any, Final

from cloudpickle import cloudpickle as _inside

from rush_executor._payload.cached import CachedFunctionType, restore_cached
from rush_executor._payload.fingerprint import fingerprint
from rush_executor._payload.pickler import NAMESPACE
from rush_executor._payload.space import ClientSpace
from rush_executor._payload.versions import MISSING, Binding, NamespaceSlots, Slots

__all__ = ["Arrivals"]

_CODE: Final = (FunctionType, CachedFunctionType, staticmethod, classmethod, property, type)


class Arrivals:
    """The functions and classes of one load.

    Args:
        space: Where they go.
    """

    def __init__(self, space: ClientSpace) -> None:
        self._space = space
        self._namespaces: dict[int, NamespaceSlots] = {}
        # What each name held before, and what was shipped.
        self._offers: dict[tuple[Slots, str], tuple[Any, Any]] = {}

    def make_function(self, code: Any, base: dict[str, Any], name: Any, argdefs: Any, closure: Any) -> FunctionType:
        """Does cloudpickle's ``_make_function``, with the globals of the namespace."""
        token = base.get(NAMESPACE, 0)
        slots = self._space.namespace(base.get("__name__", ""), token)
        slots.globals.update(base)
        slots.globals["__builtins__"] = __builtins__
        # Where the functions are from, should a task return one or send it on.
        slots.globals[NAMESPACE] = token
        self._namespaces[id(slots.globals)] = slots
        return FunctionType(code, slots.globals, name, argdefs, closure)

    def function_setstate(self, function: FunctionType, state: tuple[Any, dict[str, Any]]) -> None:
        """Does cloudpickle's ``_function_setstate``, but offers the globals in place of setting them."""
        attributes, slot_state = state
        shipped = slot_state["__globals__"]
        _inside._function_setstate(function, (attributes, {**slot_state, "__globals__": {}}))  # noqa: SLF001
        slots = self._namespaces[id(function.__globals__)]
        for name, value in shipped.items():
            if self._offer(slots, name, slots.read(name), value):
                slots.write(name, value)

    def class_setstate(self, cls: type, state: tuple[dict[str, Any], Any]) -> type:
        """Does cloudpickle's ``_class_setstate``, but leaves data alone that a class here already has."""
        attributes, slot_state = state
        slots, is_known = self._space.class_slots(cls)
        now = {}
        for name, value in attributes.items():
            if name == "_abc_impl":
                # Not an attribute: the classes that were registered with this one.
                now[name] = value
            elif self._offer(slots, name, slots.read(name) if is_known else MISSING, value):
                now[name] = value
        _inside._class_setstate(cls, (now, slot_state))  # noqa: SLF001
        return cls

    def restore_cached(self, wrapper: Any, state: Any) -> None:
        """Does `cached.restore_cached` with the function's globals offered."""
        restore_cached(wrapper, state, self.function_setstate)

    def commit(self) -> tuple[Binding, ...]:
        """Puts in force what is new, leaves the rest as it was.

        Returns:
            All that was shipped.
        """
        bindings = []
        for (slots, name), (old, value) in self._offers.items():
            version = fingerprint(value)
            if slots.settle(name, version, value, old):
                self._space.epoch += 1
            else:
                self._take_back(slots, name, old, value)
            bindings.append(Binding(slots, name, version, value))
        self._offers.clear()
        return tuple(bindings)

    def roll_back(self) -> None:
        """Leaves everything as it was before a load that failed.

        What is new under a new name stays where it is: no function that works refers to it.
        """
        for (slots, name), (old, value) in self._offers.items():
            if old is not MISSING:
                self._take_back(slots, name, old, value)
        self._offers.clear()

    @staticmethod
    def _take_back(slots: Slots, name: str, old: Any, value: Any) -> None:
        """Undoes what was put in place for the time of the load; what code has set meanwhile stays."""
        if slots.read(name) is value and value is not old:
            slots.write(name, old)

    def _offer(self, slots: Slots, name: str, current: Any, value: Any) -> bool:
        """Notes a shipped value; returns whether it is to be put in place already now."""
        key = (slots, name)
        if key in self._offers:
            return False
        self._offers[key] = (current, value)
        return current is MISSING or isinstance(value, _CODE)
