"""The worker's side: payloads become calls, results and exceptions become payloads.

Knows functions, arguments and outcomes. Must not know where payloads come from: function bodies are fetched by a
callable that it is given. Single-threaded; the worker's loop calls it from its main thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pickle import UnpicklingError, dumps, loads
from typing import Any, Final

from rush_executor._payload.content import ContentFiles, Piece
from rush_executor._payload.envelope import Envelope
from rush_executor._payload.failure import pack_failure
from rush_executor._payload.function_store import FunctionStore
from rush_executor._payload.loading import load_in_worker
from rush_executor._payload.names import name_of
from rush_executor._payload.outcome import wrap_chunk, wrap_result
from rush_executor._payload.pickler import PROTOCOL
from rush_executor._payload.scalars import is_plain
from rush_executor._payload.wire import CHUNK, NO_KWARGS, PLAIN, SEAL_SIZE, SEALED, ZSTD
from rush_executor._protocol.ids import client_of
from rush_executor.errors import PayloadError

__all__ = ["Call", "Decoder"]

_LENGTH_SIZE: Final = 2


@dataclass(slots=True)
class Call:
    """What a worker is to run.

    Attributes:
        fn: The function.
        args: Positional arguments; of a chunk, a list of tuples of arguments alone.
        kwargs: Keyword arguments.
        is_chunk: Whether `run_chunk` is to run it.
    """

    fn: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    is_chunk: bool


class Decoder:
    """Decodes calls and encodes outcomes.

    Args:
        network_id: The network that the payloads are for.
        secret: Every payload must be sealed with it; None if none may be sealed.
        fetch: Returns the body of a function, given client and digest; KeyError if it is gone.
        files_of: Where the files of a client are; None for nowhere.

    Raises:
        ValueError: The secret is empty.
    """

    def __init__(
        self,
        network_id: str,
        secret: bytes | None,
        fetch: Callable[[str, str], bytes],
        files_of: Callable[[str], ContentFiles] | None = None,
    ) -> None:
        self._envelope = Envelope(network_id, secret)
        self._functions = FunctionStore(self._envelope, fetch, files_of)
        # Whether the client of the last call opens compressed results.
        self._compresses = False

    def function_key(self, payload: bytes) -> bytes:
        """Returns what tells one function's calls from another's.

        Neither verifies nor unpickles, so it is good for statistics and nothing else.

        Returns:
            The function's spec; empty if the payload is damaged.
        """
        if len(payload) < 1 + _LENGTH_SIZE:
            return b""
        start = 1 + SEAL_SIZE if payload[0] & SEALED else 1
        end = start + _LENGTH_SIZE + int.from_bytes(payload[start : start + _LENGTH_SIZE], "big")
        return payload[start:end] if end <= len(payload) else b""

    def decode_call(self, client_id: str, task_id: str, payload: bytes) -> Call:
        """Opens a call.

        Raises:
            PayloadError: The payload does not verify, and was not unpickled; or the function or its arguments cannot
                be unpickled here; or the function's body is gone.
        """
        flags, start = self._envelope.open("call", task_id, payload)
        self._compresses = flags & ZSTD != 0
        try:
            start += _LENGTH_SIZE
            body_start = start + int.from_bytes(payload[start - _LENGTH_SIZE : start], "big")
            fn = self._functions.find(client_id, payload[start:body_start])
            if flags & PLAIN:
                content = loads(payload[body_start:])
            else:
                what = f"an argument of {name_of(fn)}()"
                content, _ = load_in_worker(what, payload, flags, body_start, self._functions.space(client_id))
            if flags & NO_KWARGS:
                return Call(fn, content, {}, flags & CHUNK != 0)
            args, kwargs = content
            return Call(fn, args, kwargs, flags & CHUNK != 0)
        except PayloadError:
            raise
        except (ValueError, LookupError, TypeError, EOFError, UnpicklingError) as damage:
            # What the plain unpickler and the layout say of bytes that are not ours.
            raise PayloadError(f"the call of task {task_id} is damaged: {damage}") from damage

    def decode_initializer(self, client_id: str, payload: bytes) -> tuple[Any, tuple[Any, ...]]:
        """Opens the initializer of a client, which shares its globals with that client's tasks.

        Returns:
            The function and its arguments.

        Raises:
            PayloadError: As `decode_call`.
        """
        flags, start = self._envelope.open("initializer", "", payload)
        space = self._functions.space(client_id, is_home=True)
        (fn, initargs), _ = load_in_worker("the initializer", payload, flags, start, space)
        return fn, initargs

    def encode_result(self, task_id: str, value: Any) -> bytes:
        """Makes the payload of what a task returned.

        Raises:
            PayloadError: It cannot be pickled.
        """
        if is_plain((value,)):
            return self._envelope.wrap("finished", task_id, PLAIN, dumps(value, PROTOCOL))
        return wrap_result(self._envelope, task_id, value, shelter=self._keep_result, compresses=self._compresses)

    def encode_chunk(self, task_id: str, values: list[Any], failure: BaseException | None, *, trim: int = 0) -> bytes:
        """Makes the payload of what `run_chunk` returned; never raises.

        A value that cannot be pickled ends the chunk there, as if its call had raised.

        Args:
            task_id: The task.
            values: Results of the calls before the first that failed.
            failure: What that one raised; None if none failed.
            trim: As for `encode_failure`.
        """
        packed = None if failure is None else pack_failure(failure, trim)
        return wrap_chunk(
            self._envelope, task_id, values, packed, shelter=self._keep_result, compresses=self._compresses
        )

    def encode_failure(self, task_id: str, exc: BaseException, *, trim: int = 0) -> bytes:
        """Makes the payload of how a task failed; never raises.

        Args:
            task_id: The task.
            exc: The exception; its traceback is cut.
            trim: So many of its outermost frames are the worker's own and left out.
        """
        return self._envelope.wrap("failed", task_id, 0, pack_failure(exc, trim))

    def _keep_result(self, task_id: str, pieces: Sequence[Piece], size: int) -> str:
        """Keeps a large result where the client of its task finds it; see `Shelter`."""
        files = self._functions.space(client_of(task_id)).files
        return "" if files is None else files.keep_result(task_id, pieces, size)
