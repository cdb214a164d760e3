"""The unpicklers of both sides. Together with `pickler` the only place that knows cloudpickle's inside.

`WorkerUnpickler` puts functions by value into their client's namespace; `ClientUnpickler` leaves the client's own
classes and globals alone. Must not know seals, and is given only what a seal has let pass. Used by `Decoder`,
`Encoder` and `failure`.

Hooks are bound to an object that does not refer to the unpickler: the unpickler's memo holds them, and a cycle would
keep a task's arguments alive until the next garbage collection.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable, Iterable
from types import FunctionType, ModuleType
from typing import Any, Final

from cloudpickle import cloudpickle as _inside

from rush_executor._payload.arrivals import Arrivals
from rush_executor._payload.cached import restore_cached
from rush_executor._payload.pickler import NAMESPACE
from rush_executor._payload.scattered import find_scattered
from rush_executor._payload.space import ClientSpace
from rush_executor._payload.versions import Binding

__all__ = ["ClientUnpickler", "HookedUnpickler", "WorkerUnpickler"]

_CLOUDPICKLE: Final = "cloudpickle.cloudpickle"
_CACHED: Final = restore_cached.__module__
_SCATTERED: Final = find_scattered.__module__


class HookedUnpickler(pickle.Unpickler):
    """An unpickler that has some names lead to functions of its own.

    Args:
        stream: Stands at the pickle.
        buffers: The buffers that belong to it.
        hooks: What to return for these (module, name).

    Attributes:
        wanted: Module and name that were looked up last, for error messages.
    """

    def __init__(
        self,
        stream: io.BufferedIOBase,
        buffers: Iterable[Any] | None,
        hooks: dict[tuple[str, str], Callable[..., Any]],
    ) -> None:
        super().__init__(stream, buffers=buffers)
        self._hooks = hooks
        self.wanted: tuple[str, str] | None = None

    def find_class(self, module: str, name: str) -> Any:
        """Finds a global; called for each that the pickle names."""
        hook = self._hooks.get((module, name))
        if hook is not None:
            return hook
        self.wanted = (module, name)
        return super().find_class(module, name)


class WorkerUnpickler(HookedUnpickler):
    """Unpickles what a client has sent.

    Args:
        stream: Stands at the pickle.
        buffers: The buffers that belong to it.
        space: What is kept of that client.
    """

    def __init__(self, stream: io.BufferedIOBase, buffers: Iterable[Any] | None, space: ClientSpace) -> None:
        arrivals = Arrivals(space)
        hooks: dict[tuple[str, str], Callable[..., Any]] = {
            (_CLOUDPICKLE, "_make_function"): arrivals.make_function,
            (_CLOUDPICKLE, "_function_setstate"): arrivals.function_setstate,
            (_CLOUDPICKLE, "_class_setstate"): arrivals.class_setstate,
            (_CACHED, "restore_cached"): arrivals.restore_cached,
            (_SCATTERED, "find_scattered"): space.find_scattered,
        }
        super().__init__(stream, buffers, hooks)
        self._arrivals = arrivals

    def load_all(self) -> tuple[Any, tuple[Binding, ...]]:
        """Unpickles.

        Returns:
            The object, and the globals that came with its functions.

        Raises:
            BaseException: Whatever unpickling raised; then nothing has changed in the client's namespaces.
        """
        try:
            loaded = self.load()
        except BaseException:
            self._arrivals.roll_back()
            raise
        return loaded, self._arrivals.commit()


class ClientUnpickler(HookedUnpickler):
    """Unpickles what a worker has sent.

    Args:
        stream: Stands at the pickle.
        buffers: The buffers that belong to it.
        find: What references become.
    """

    def __init__(
        self,
        stream: io.BufferedIOBase,
        buffers: Iterable[Any] | None = None,
        find: Callable[[str], Any] = find_scattered,
    ) -> None:
        homecoming = _Homecoming()
        super().__init__(
            stream,
            buffers,
            {
                (_CLOUDPICKLE, "_make_function"): homecoming.make_function,
                (_CLOUDPICKLE, "_function_setstate"): homecoming.function_setstate,
                (_CLOUDPICKLE, "_make_skeleton_class"): homecoming.make_class,
                (_CLOUDPICKLE, "_make_skeleton_enum"): homecoming.make_enum,
                (_CLOUDPICKLE, "_class_setstate"): homecoming.class_setstate,
                (_CACHED, "restore_cached"): homecoming.restore_cached,
                (_SCATTERED, "find_scattered"): find,
            },
        )


class _Homecoming:
    """Functions and classes by value that come back to where they may be from.

    cloudpickle finds a class that it has sent out, but then writes the attributes that the worker had over the
    client's. And it gives a returned function of the client's `__main__` a copy of the globals.
    """

    def __init__(self) -> None:
        self._known: set[type] = set()
        self._at_home: set[FunctionType] = set()

    def make_class(self, *args: Any) -> Any:
        return self._noted(_inside._make_skeleton_class, args, args[4])  # noqa: SLF001

    def make_enum(self, *args: Any) -> Any:
        return self._noted(_inside._make_skeleton_enum, args, args[5])  # noqa: SLF001

    def class_setstate(self, cls: type, state: Any) -> type:
        if cls not in self._known:
            _inside._class_setstate(cls, state)  # noqa: SLF001
        return cls

    def make_function(self, code: Any, base: dict[str, Any], *rest: Any) -> FunctionType:
        module = None if base.get(NAMESPACE, 0) else sys.modules.get(base.get("__name__", ""))
        if not isinstance(module, ModuleType):
            made: FunctionType = _inside._make_function(code, base, *rest)  # noqa: SLF001
            return made
        function = FunctionType(code, vars(module), *rest)
        self._at_home.add(function)
        return function

    def function_setstate(self, function: FunctionType, state: Any) -> None:
        if function not in self._at_home:
            _inside._function_setstate(function, state)  # noqa: SLF001
            return
        attributes, slot_state = state
        namespace = function.__globals__
        builtins = namespace.get("__builtins__")
        # cloudpickle would put the worker's values in the client's module, and its own builtins.
        _inside._function_setstate(function, (attributes, {**slot_state, "__globals__": {}}))  # noqa: SLF001
        if builtins is not None:
            namespace["__builtins__"] = builtins

    def restore_cached(self, wrapper: Any, state: Any) -> None:
        restore_cached(wrapper, state, self.function_setstate)

    def _noted(self, make: Callable[..., type], args: tuple[Any, ...], tracker_id: str | None) -> type:
        is_known = tracker_id in _inside._DYNAMIC_CLASS_TRACKER_BY_ID  # noqa: SLF001
        cls = make(*args)
        if is_known:
            self._known.add(cls)
        return cls
