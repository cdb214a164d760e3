"""What a worker keeps of one client: its namespaces and its functions.

Knows cached functions and the versions they run with. Must not know payloads. `Decoder` holds one for each client that
it has lately worked for; `arrivals` asks for the namespaces.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Final

from rush_executor._payload.content import ContentFiles
from rush_executor._payload.lru import Lru
from rush_executor._payload.scattered import find_scattered
from rush_executor._payload.versions import Binding, ClassSlots, NamespaceSlots

__all__ = ["CachedFunction", "ClientSpace"]

_MOST_FUNCTIONS: Final = 256
# Bytes of pickles. A closure that holds data weighs about as much again in memory.
_MOST_BYTES: Final = 64 << 20
# Namespaces that are no module's: made by exec, and made anew with every function by some libraries.
_MOST_ANONYMOUS: Final = 64


class CachedFunction:
    """An unpickled function and the globals that it was shipped with."""

    __slots__ = ("bindings", "epoch", "fn")

    def __init__(self, fn: Any, bindings: tuple[Binding, ...], epoch: int) -> None:
        self.fn = fn
        self.bindings = bindings
        self.epoch = epoch


class ClientSpace:
    """Namespaces and functions of one client.

    Attributes:
        epoch: Counts how often another version of a name was put in force. A function that ran in this epoch finds
            its globals as it left them.
        functions: By digest, ready to be called.
        bodies: By digest, the pickles of what has to be unpickled for each call: partials, bound methods, callable
            objects, scattered ones. Their state is an argument, and a task must not see what another has done to it.
        files: Where the client's files are found.
        find_scattered: What the client's references become.
    """

    def __init__(
        self, files: ContentFiles | None = None, find_scattered: Callable[[str], Any] = find_scattered
    ) -> None:
        self.files = files
        self.find_scattered = find_scattered
        self.epoch = 0
        self.functions: Lru[str, CachedFunction] = Lru(max_entries=_MOST_FUNCTIONS, max_weight=_MOST_BYTES)
        self.bodies: Lru[str, tuple[bytes, int, int]] = Lru(max_entries=_MOST_FUNCTIONS, max_weight=_MOST_BYTES)
        self._modules: dict[str, NamespaceSlots] = {}
        self._anonymous: Lru[tuple[str, int], NamespaceSlots] = Lru(max_entries=_MOST_ANONYMOUS)
        self._classes: weakref.WeakKeyDictionary[type, ClassSlots] = weakref.WeakKeyDictionary()

    def namespace(self, module_name: str, token: int) -> NamespaceSlots:
        """Returns the namespace of a module of the client, or of what goes by the module's name there."""
        if not token:
            slots = self._modules.get(module_name)
            if slots is None:
                slots = self._modules[module_name] = NamespaceSlots()
            return slots
        anonymous = self._anonymous.get((module_name, token))
        if anonymous is None:
            anonymous = NamespaceSlots()
            self._anonymous.put((module_name, token), anonymous)
        return anonymous

    def class_slots(self, cls: type) -> tuple[ClassSlots, bool]:
        """Returns the slots of a class by value, and whether the class was here before."""
        slots = self._classes.get(cls)
        if slots is not None:
            return slots, True
        slots = self._classes[cls] = ClassSlots(cls)
        return slots, False

    def activate(self, function: CachedFunction) -> None:
        """Puts the versions in force that a function was shipped with."""
        for slots, name, version, value in function.bindings:
            if slots.settle(name, version, value, slots.read(name)):
                self.epoch += 1
        function.epoch = self.epoch
