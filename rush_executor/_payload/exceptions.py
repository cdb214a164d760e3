"""One exception as a pickle, and what stands in for it where that is impossible.

Knows how exceptions are built. Must not know payloads or chains (`failure`). The pickler of `failure` reduces here; the
other functions are called by pickles, in the client.

Why not tblib's reducer: rebuilding without ``__init__``, it loses `SystemExit.code` and `StopIteration.value`, and
cannot rebuild a `BaseExceptionGroup` (tblib 3.2). Here only what is Python code is left out: the class's builtin base
is initialised as ever.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from types import FunctionType, MethodDescriptorType, WrapperDescriptorType
from typing import Any, Final

from rush_executor._payload.names import message_of, type_name
from rush_executor._payload.tracebacks import Frames, flatten, unflatten
from rush_executor.errors import RemoteError

__all__ = ["rebuild", "reduce_exception", "restore", "stand_in"]

_HEAP_TYPE: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made at run time, as all classes of Python code are
_WITHOUT_STATE: Final = 2  # length of the tuple that __reduce__ returns


def reduce_exception(exc: BaseException) -> Any:
    """Reduces an exception with its traceback and notes, but without its causes.

    Raises:
        BaseException: Whatever its own ``__reduce__`` raised.
    """
    cls = type(exc)
    reduced = exc.__reduce_ex__(5)
    if isinstance(reduced, str) or len(reduced) > _WITHOUT_STATE + 1:
        # A singleton by name, or an exception that is a container too: the class knows what it does.
        return reduced
    make, args, state = (*reduced, None)[: _WITHOUT_STATE + 1]
    if make is cls and _is_reduced_by_builtin(cls):
        if isinstance(exc, BaseExceptionGroup) and not _is_made_by_builtin(cls):
            # `args` is what was given to the class's own constructor.
            make, args = revive, (cls, (exc.message, list(exc.exceptions)), exc.args)
        elif not _is_made_by_builtin(cls):
            make, args = revive, (cls, args, exc.args)
    name = type_name(cls)
    restored = (name, state, flatten(exc.__traceback__), getattr(exc, "__notes__", None))
    return rebuild, (name, message_of(exc), make, args), restored, None, None, restore


def stand_in(exc: BaseException) -> Any:
    """Reduces an exception that cannot be pickled to a `RemoteError`."""
    name = type_name(type(exc))
    restored = (name, None, flatten(exc.__traceback__), None)
    return _stand_in, (name, message_of(exc)), restored, None, None, restore


def rebuild(name: str, message: str, make: Callable[..., Any], args: tuple[Any, ...]) -> BaseException:
    """Makes the exception again; a `RemoteError` if that fails."""
    try:
        exc = make(*args)
    except BaseException:  # noqa: BLE001 - the exception's own code
        return _stand_in(name, message)
    return exc if isinstance(exc, BaseException) else _stand_in(name, message)


def revive(cls: type[BaseException], new_args: tuple[Any, ...], args: tuple[Any, ...]) -> BaseException:
    """Makes an exception without its class's own ``__init__``.

    That wants other arguments than those that the exception keeps in `args` (those it has passed on to its base), so
    calling it would fail, or build another message around the message.
    """
    base = cls
    while base.__flags__ & _HEAP_TYPE:
        assert base.__base__ is not None  # noqa: S101 - for the type checker: BaseException is no heap type
        base = base.__base__
    exc = base.__new__(cls, *new_args)
    try:
        base.__init__(exc, *new_args)
    except Exception:  # noqa: BLE001 - the class has never called its base with such arguments: then there is no need
        pass
    exc.args = args
    return exc


def restore(exc: BaseException, restored: tuple[str, Any, Frames, Any]) -> None:
    """Gives a rebuilt exception its attributes, notes and traceback."""
    name, state, frames, notes = restored
    exc.__traceback__ = unflatten(frames)
    if type_name(type(exc)) != name:
        if type(exc) is RemoteError:
            text = "".join(["Traceback (most recent call last):\n", *traceback.format_tb(exc.__traceback__)])
            exc.traceback_text = f"{text}{exc}\n"
            exc.args = (exc.type_name, exc.message, exc.traceback_text)
        return
    if state is not None:
        try:
            exc.__setstate__(state)
        except BaseException:  # noqa: BLE001 - the exception's own code; without its attributes it is still the right type
            pass
    if notes is not None:
        exc.__notes__ = notes


def _stand_in(name: str, message: str) -> RemoteError:
    return RemoteError(name, message, "")


def _is_reduced_by_builtin(cls: type[BaseException]) -> bool:
    return (
        isinstance(cls.__reduce__, MethodDescriptorType)
        and cls.__reduce_ex__ is object.__reduce_ex__
        and not isinstance(getattr(cls, "__getnewargs__", None), FunctionType)
    )


def _is_made_by_builtin(cls: type[BaseException]) -> bool:
    return isinstance(cls.__init__, WrapperDescriptorType) and not isinstance(cls.__new__, FunctionType)
