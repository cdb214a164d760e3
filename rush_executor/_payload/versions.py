"""The values that clients ship for global names, and which of them is in force.

Knows names, values and versions. Must not know pickles. `arrivals` offers what a load brings; `Decoder` makes a cached
function's versions the ones in force before each call.

The rule, for a global of a namespace and for an attribute of a class alike:

- What a client ships under a name is a *version*, told apart by its fingerprint.
- Shipped again in the same version, it is not touched: the worker's value stays, be it a counter, a cache, or the
  model that an initializer has loaded in place of the client's None.
- Shipped in another version, the client's value wins: a helper was redefined in a notebook.
- Every function remembers the versions that it was shipped with and runs with those: tasks of older and newer versions
  may be queued at the same time (`for SCALE in 1, 2: submit(f)`) and reach a worker in any order.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import Any, Final, NamedTuple

from rush_executor._payload.lru import Lru

__all__ = ["MISSING", "Binding", "ClassSlots", "NamespaceSlots", "Slots"]

MISSING: Final[Any] = object()

# Values that tasks have put in place of versions not in force. They are the workers' doing, so they are few.
_MOST_SET_ASIDE: Final = 64


class Slots:
    """Where shipped values go: read, write, and the version in force of each name."""

    __slots__ = ("__weakref__", "versions")

    def __init__(self) -> None:
        self.versions: dict[str, Hashable] = {}

    def read(self, name: str) -> Any:
        """Returns the current value, or MISSING."""
        raise NotImplementedError

    def write(self, name: str, value: Any) -> None:
        """Sets the current value; MISSING deletes it."""
        raise NotImplementedError

    def settle(self, name: str, version: Hashable, value: Any, current: Any) -> bool:
        """Puts a version in force, if it is not already.

        Args:
            name: The name.
            version: Fingerprint of what the client shipped.
            value: What it shipped.
            current: What the name held before the shipment came.

        Returns:
            Whether another version, or none, was in force until now.
        """
        old_version = self.versions.get(name, MISSING)
        if old_version == version:
            return False
        self.write(name, self.exchange(name, old_version, version, value, current))
        self.versions[name] = version
        return True

    def exchange(self, name: str, old: Hashable, new: Hashable, value: Any, current: Any) -> Any:  # noqa: ARG002
        """Takes leave of one version and returns what to write for the next.

        Args:
            name: The name.
            old: The version that was in force, or MISSING.
            new: The version that comes.
            value: What the client shipped as the new version.
            current: What the name held under the old version.
        """
        return value


class NamespaceSlots(Slots):
    """The globals that all functions by value of one module of one client share.

    Attributes:
        globals: The dict.
    """

    __slots__ = ("_aside", "_shipped", "globals")

    def __init__(self) -> None:
        super().__init__()
        self.globals: dict[str, Any] = {}
        self._shipped: dict[str, Any] = {}
        self._aside: Lru[tuple[str, Hashable], tuple[Any]] = Lru(max_entries=_MOST_SET_ASIDE)

    def read(self, name: str) -> Any:
        return self.globals.get(name, MISSING)

    def write(self, name: str, value: Any) -> None:
        if value is MISSING:
            self.globals.pop(name, None)
        else:
            self.globals[name] = value

    def exchange(self, name: str, old: Hashable, new: Hashable, value: Any, current: Any) -> Any:
        if old is not MISSING and current is not self._shipped[name]:
            # A task, or the initializer, has put its own in place of what was shipped: it comes back with the version.
            self._aside.put((name, old), (current,))
        self._shipped[name] = value
        aside = self._aside.pop((name, new))
        return value if aside is None else aside[0]


class ClassSlots(Slots):
    """The attributes of a class by value.

    Holds the class weakly: this object lives as long as the class and must not be what keeps it alive.
    """

    __slots__ = ("_class",)

    def __init__(self, cls: type) -> None:
        super().__init__()
        self._class = weakref.ref(cls)

    def read(self, name: str) -> Any:
        cls = self._class()
        # Not by getattr: static methods and properties are wanted as they are.
        return MISSING if cls is None else cls.__dict__.get(name, MISSING)

    def write(self, name: str, value: Any) -> None:
        cls = self._class()
        if cls is None:
            return
        if value is not MISSING:
            setattr(cls, name, value)
        elif name in cls.__dict__:
            delattr(cls, name)


class Binding(NamedTuple):
    """One name that a function was shipped with."""

    slots: Slots
    name: str
    version: Hashable
    value: Any
