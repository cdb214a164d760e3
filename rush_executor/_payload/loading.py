"""Unpickling on either side, and the error that says what could not be unpickled and where the user's code failed.

Knows layout and unpicklers; is given only payloads that were opened. Called by `Decoder`, `FunctionStore` and
`Encoder`.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, Final

from rush_executor._payload.compression import MAGIC, decompress
from rush_executor._payload.content import ContentElsewhereError, ContentFile, ContentFiles, Stub, open_content
from rush_executor._payload.names import describe_error, drop_frames
from rush_executor._payload.scattered import find_scattered
from rush_executor._payload.space import ClientSpace
from rush_executor._payload.unpickler import ClientUnpickler, HookedUnpickler, WorkerUnpickler
from rush_executor._payload.versions import Binding
from rush_executor._payload.wire import BUFFERS, ELSEWHERE, ZSTD, read_buffers
from rush_executor.errors import PayloadError

__all__ = ["IN_CLIENT", "IN_WORKER", "cannot_unpickle", "load_in_client", "load_in_worker"]

IN_CLIENT: Final = "in the client"
IN_WORKER: Final = "in the worker"

# Between our call of `load` and the user's code.
_MACHINERY: Final = frozenset(("cloudpickle", "copyreg", "importlib", "pickle"))
_ROOM: Final = __name__.rpartition(".")[0]


def load_in_worker(
    what: str, payload: bytes, flags: int, start: int, space: ClientSpace
) -> tuple[Any, tuple[Binding, ...]]:
    """Unpickles what a client has sent.

    Args:
        what: What to call it in an error.
        payload: The payload.
        flags: Its flags.
        start: Where the pickle starts.
        space: What is kept of that client.

    Returns:
        The object, and the globals that came with its functions.

    Raises:
        PayloadError: It cannot be unpickled; nothing has changed in the client's namespaces.
    """
    content = _open(what, payload, start, space.files) if flags & ELSEWHERE else None
    unpickler: WorkerUnpickler | None = None
    try:
        unpickler = WorkerUnpickler(*_source(payload, flags, start, content), space)
        return unpickler.load_all()
    except ContentElsewhereError as missing:
        # Of a scattered object in it: the client can help.
        raise missing from None
    except BaseException as error:  # noqa: BLE001 - a __setstate__ of the user's may raise anything, even SystemExit
        failure = cannot_unpickle(what, IN_WORKER, error, unpickler)
    finally:
        if content is not None:
            content[0].close()
    del unpickler
    raise failure


def load_in_client(
    what: str,
    payload: bytes,
    flags: int,
    start: int,
    *,
    where: str = IN_CLIENT,
    files: ContentFiles | None = None,
    find_scattered: Callable[[str], Any] = find_scattered,
) -> Any:
    """Unpickles what a worker has sent; or a row, in a worker as well.

    Args:
        what: What to call it in an error.
        payload: The payload.
        flags: Its flags.
        start: Where the pickle starts.
        where: IN_WORKER or IN_CLIENT, for the error.
        files: Where its content is, should it be elsewhere.
        find_scattered: What references become.

    Raises:
        PayloadError: It cannot be unpickled.
    """
    content = _open(what, payload, start, files) if flags & ELSEWHERE else None
    unpickler: ClientUnpickler | None = None
    try:
        unpickler = ClientUnpickler(*_source(payload, flags, start, content), find_scattered)
        return unpickler.load()
    except BaseException as error:  # noqa: BLE001 - a __setstate__ of the user's may raise anything, even SystemExit
        failure = cannot_unpickle(what, where, error, unpickler)
    finally:
        if content is not None:
            content[0].close()
    del unpickler
    raise failure


def _open(what: str, payload: bytes, start: int, files: ContentFiles | None) -> tuple[ContentFile, Stub]:
    stub = Stub.from_bytes(payload[start:])
    try:
        if files is None:
            raise FileNotFoundError(stub.place)
        return files.open_place(stub.place, stub.size), stub
    except KeyError:
        failure = PayloadError(
            f"{what} is gone from the server: its client has left, or the server has lost or evicted keys; submit the "
            "call again"
        )
    except OSError as error:
        failure = ContentElsewhereError(
            f"{what} is not in the shared memory of this machine ({error}): the task has ended meanwhile, or its "
            "sender is in another container; with a url that begins with redis:// in place of unix://, it travels "
            "through the server"
        )
    raise failure


def _source(
    payload: bytes, flags: int, start: int, content: tuple[ContentFile, Stub] | None
) -> tuple[io.BufferedIOBase, list[Any] | None]:
    """A stream that stands at the pickle, and its buffers."""
    if content is not None:
        return open_content(*content)
    if flags & ZSTD and payload.startswith(MAGIC, start):
        payload, start = decompress(memoryview(payload)[start:]), 0
    # BytesIO shares the memory of a bytes object, so a payload of 100 MB is not copied here.
    stream = io.BytesIO(payload)
    stream.seek(start)
    return stream, read_buffers(payload, start) if flags & BUFFERS else None


def cannot_unpickle(
    what: str, where: str, error: BaseException, unpickler: HookedUnpickler | None = None
) -> PayloadError:
    """Makes the error for something that cannot be unpickled.

    Args:
        what: What it is.
        where: IN_WORKER or IN_CLIENT.
        error: What unpickling raised.
        unpickler: Knows which name the pickle has asked for last.

    Returns:
        The error, with `error` as its cause.
    """
    message = f"{what} cannot be unpickled {where}: {describe_error(error)}"
    place = _place_of(error)
    if place is None and unpickler is not None and unpickler.wanted is not None:
        place = ".".join(unpickler.wanted)
    if place is not None:
        message += f" (at {place})"
    failure = PayloadError(f"{message}. {_advice(error, where)}")
    failure.__cause__ = error
    # Frames of the cause hold what was unpickled so far.
    drop_frames(error)
    return failure


def _place_of(error: BaseException) -> str | None:
    """Returns module and function of the first frame that is the user's: ``models.Model.__setstate__``."""
    entry = error.__traceback__
    while entry is not None:
        frame = entry.tb_frame
        module = str(frame.f_globals.get("__name__", ""))
        if not module.startswith(_ROOM) and module.partition(".")[0] not in _MACHINERY:
            return f"{module}.{frame.f_code.co_qualname}"
        entry = entry.tb_next
    return None


def _advice(error: BaseException, where: str) -> str:
    if isinstance(error, ImportError):
        return f"The module must be importable {where} too."
    if isinstance(error, AttributeError):
        return "Client and workers must have the same version of the module."
    return "Both sides need the same versions of Python and of the libraries."
