"""How a task failed: the exception, its causes and its traceback, on their way from worker to client.

Knows chains of exceptions. Must not know seals; `Decoder` wraps what `pack_failure` returns, `Encoder` gives what it
has opened to `unpack_failure`.

A failure is a pickled tuple of builtin values: type name, message, traceback text, number of pickles, pickles (or
None). The text is always there. The pickles hold every exception that can be reached; one that cannot be pickled, or
later not rebuilt, is a `RemoteError`, and the others are what they were.
"""

from __future__ import annotations

import io
import pickle
import traceback
from types import TracebackType
from typing import Any, Final

from rush_executor._payload.exceptions import reduce_exception, stand_in
from rush_executor._payload.names import message_of, type_name
from rush_executor._payload.pickler import PROTOCOL, CloudPickler
from rush_executor._payload.tracebacks import flatten, unflatten
from rush_executor._payload.unpickler import ClientUnpickler
from rush_executor.errors import RemoteError, RemoteTraceback

__all__ = ["describe_packed", "pack_failure", "unpack_failure"]

# Exceptions in a chain that are tried one by one when they cannot be pickled together.
_MOST_TRIED: Final = 100


def pack_failure(exc: BaseException, trim: int = 0) -> bytes:
    """Writes down an exception; never raises.

    Args:
        exc: The exception.
        trim: So many of its outermost frames are the worker's own and left out.
    """
    # Under RecursionError and MemoryError even this can fail at its first line; then the bare name is carried.
    name = type_name(type(exc))
    message = text = ""
    try:
        entry = exc.__traceback__
        for _ in range(trim):
            entry = entry.tb_next if entry is not None else None
        exc.__traceback__ = entry
        message = message_of(exc)
        text = _text_of(exc, f"{name}: {message}\n")
        packed: tuple[int, bytes | None] = _pickle_chain(exc)
    except BaseException:  # noqa: BLE001 - reducers of the user's may raise anything, even SystemExit
        packed = 0, None
    return pickle.dumps((name, message, text, *packed), PROTOCOL)


def unpack_failure(packed: bytes) -> BaseException:
    """Makes the exception that `pack_failure` has written down.

    Returns:
        The exception, with the traceback's text as the last of its causes.

    Raises:
        Exception: These are not bytes of `pack_failure`.
    """
    name, message, text, n_pickles, pickles = pickle.loads(packed)
    exc: BaseException | None = None
    if pickles is not None:
        try:
            exc = _unpickle_chain(pickles, n_pickles)
        except BaseException:  # noqa: BLE001 - the exceptions' own code may raise anything, even SystemExit
            exc = None
    if exc is None:
        exc = RemoteError(name, message, text)
    elif type(exc) is RemoteError and exc.type_name == name:
        exc.traceback_text = text
        exc.args = (name, message, text)
    _append_cause(exc, RemoteTraceback(text))
    return exc


def describe_packed(packed: bytes) -> tuple[str, str]:
    """Says what `pack_failure` has written down: type and message in one line, and the text of the traceback.

    Raises:
        Exception: These are not bytes of `pack_failure`.
    """
    name, message, text, _, _ = pickle.loads(packed)
    return (f"{name}: {message}" if message else str(name)), text


class _ChainPickler(CloudPickler):
    """Pickles exceptions without their causes, and notes them.

    Args:
        file: Where to.
        lost: By id, exceptions that cannot be pickled.
    """

    def __init__(self, file: io.BytesIO, lost: set[int]) -> None:
        super().__init__(file)
        self.found: list[BaseException] = []
        self._lost = lost

    def reducer_override(self, obj: Any) -> Any:
        if issubclass(type(obj), BaseException):
            self.found.append(obj)
            return stand_in(obj) if id(obj) in self._lost else reduce_exception(obj)
        if type(obj) is TracebackType:
            # An attribute of the user's; the exception's own travels with it.
            return unflatten, (flatten(obj),)
        return super().reducer_override(obj)


class _ChainUnpickler(ClientUnpickler):
    """Lets names lead nowhere: the exceptions that need them become `RemoteError`, not the whole chain."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except BaseException as why:  # noqa: BLE001 - importing a module may raise anything
            return _absent(why)


def _absent(why: BaseException) -> Any:
    def raise_why(*_: object, **__: object) -> None:
        raise why

    return raise_why


def _pickle_chain(exc: BaseException) -> tuple[int, bytes]:
    try:
        return _dump(exc, set())
    except BaseException:  # noqa: BLE001 - see pack_failure
        return _dump(exc, _find_lost(exc))


def _dump(exc: BaseException, lost: set[int]) -> tuple[int, bytes]:
    """Pickles an exception, then what caused it, one after the other.

    Not inside each other: a retry loop makes chains longer than the recursion limit. One memo serves all, so an
    exception that is met again, as an attribute or in a cycle, stays the same object.
    """
    file = io.BytesIO()
    pickler = _ChainPickler(file, lost)
    pickler.dump(exc)
    n_pickles = 1
    links = []
    for found in pickler.found:  # grows while more are found
        cause, context = found.__cause__, found.__context__
        if cause is None and context is None and not found.__suppress_context__:
            continue
        for linked in (cause, context):
            if linked is not None:
                pickler.dump(linked)
                n_pickles += 1
        links.append((found, cause, context, found.__suppress_context__))
    pickler.dump(links)
    return n_pickles, file.getvalue()


def _unpickle_chain(pickles: bytes, n_pickles: int) -> BaseException | None:
    unpickler = _ChainUnpickler(io.BytesIO(pickles))
    exc = unpickler.load()
    for _ in range(n_pickles - 1):
        unpickler.load()
    for found, cause, context, is_suppressed in unpickler.load():
        found.__cause__ = cause
        found.__context__ = context
        found.__suppress_context__ = is_suppressed
    return exc if isinstance(exc, BaseException) else None


def _find_lost(exc: BaseException) -> set[int]:
    """Finds the exceptions of a chain that cannot be pickled, innermost first."""
    chain: list[BaseException] = [exc]
    seen = {id(exc)}
    for found in chain:  # grows while it is walked
        members = found.exceptions if isinstance(found, BaseExceptionGroup) else ()
        for linked in (*members, found.__cause__, found.__context__):
            if linked is not None and id(linked) not in seen and len(chain) < _MOST_TRIED:
                seen.add(id(linked))
                chain.append(linked)
    lost: set[int] = set()
    for found in reversed(chain):
        try:
            _ChainPickler(io.BytesIO(), lost).dump(found)
        except BaseException:  # noqa: BLE001 - see pack_failure
            lost.add(id(found))
    return lost


def _text_of(exc: BaseException, fallback: str) -> str:
    try:
        return "".join(traceback.format_exception(exc))
    except BaseException:  # noqa: BLE001 - formatting runs code of the exceptions
        return fallback


def _append_cause(exc: BaseException, last: RemoteTraceback) -> None:
    """Hangs the text at the end of the chain that would be printed."""
    seen = {id(exc)}
    while True:
        cause = exc.__cause__
        if cause is None and not exc.__suppress_context__:
            cause = exc.__context__
        if cause is None or id(cause) in seen:
            break
        exc = cause
        seen.add(id(exc))
    exc.__cause__ = last
