"""Rows of networks that keep their tasks: what goes into a task and what comes out, as bytes.

A row is a dict with names as keys. Knows the envelope and the unpicklers. Must not know where a row is kept. One codec
serves a process, client or worker, whatever it does with rows; thread-safe.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pickle import Unpickler, UnpicklingError, dumps, loads
from typing import Any, Final, Self

from rush_executor._payload.chunk import ChunkResult
from rush_executor._payload.culprit import Suspect, cannot_pickle
from rush_executor._payload.encoder import Encoder
from rush_executor._payload.envelope import Envelope
from rush_executor._payload.failure import describe_packed, pack_failure
from rush_executor._payload.loading import IN_CLIENT, IN_WORKER, load_in_client
from rush_executor._payload.pickler import PROTOCOL
from rush_executor._payload.scalars import is_plain_row
from rush_executor._payload.wire import PLAIN
from rush_executor.errors import PayloadError

__all__ = ["EXTRA", "XS", "YS", "RowCodec"]

# The kinds of rows; a seal is good for one kind of one task.
XS: Final = "xs"
YS: Final = "ys"
EXTRA: Final = "extra"


class _Unnamed(type):
    def __repr__(cls) -> str:
        return "..."


class _Something(metaclass=_Unnamed):
    """Stands for a class that is not imported, or for what it would make."""

    def __new__(cls, *_: object, **__: object) -> Self:
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        """Whatever it was."""

    def __repr__(self) -> str:
        return "..."


class _ShyUnpickler(Unpickler):
    """Makes nothing but builtin values."""

    def find_class(self, *_: str) -> Any:
        return _Something


class RowCodec:
    """Encodes and decodes rows and failures.

    Args:
        network_id: The network that they are for.
        secret: Seals every payload; None for no seal.
        is_worker: Whether this is a worker's process, for what errors say.

    Raises:
        ValueError: The secret is empty.
    """

    def __init__(self, network_id: str, secret: bytes | None, *, is_worker: bool = False) -> None:
        self._where = IN_WORKER if is_worker else IN_CLIENT
        self._envelope = Envelope(network_id, secret)
        self._calls = Encoder(network_id, secret)

    def are_plain(self, rows: Iterable[Mapping[str, Any]]) -> bool:
        """Whether these rows hold nothing but numbers, texts and the like, so that `encode_plain` can pack them."""
        return all(is_plain_row(row) for row in rows)

    def encode_plain(self, kind: str, task_id: str, row: Mapping[str, Any]) -> bytes:
        """As `encode`, of a row of which `are_plain` has said that it is; cannot fail."""
        return self._envelope.wrap(kind, task_id, PLAIN, dumps(row, PROTOCOL))

    def encode(self, kind: str, task_id: str, content: Any) -> bytes:
        """Makes the payload of a row, or of a row and what goes with it.

        Args:
            kind: `XS`, `YS` or `EXTRA`.
            task_id: The task.
            content: The row, or a tuple that begins with it.

        Raises:
            PayloadError: A value cannot be pickled; the message names it.
        """
        try:
            if is_plain_row(content):
                return self._envelope.wrap(kind, task_id, PLAIN, dumps(content, PROTOCOL))
            return self._envelope.wrap_object(kind, task_id, 0, content)
        except Exception as error:  # noqa: BLE001 - reducers of the user's may raise anything
            row: Mapping[str, Any] = content[0] if isinstance(content, tuple) else content
            suspects = [Suspect(f"value {name!r} of {kind}", str(name), value) for name, value in row.items()]
            failure = cannot_pickle(suspects, f"{kind} of a task", error)
        # The error's frames would keep the values.
        del content, row, suspects
        raise failure

    def decode(self, kind: str, task_id: str, payload: bytes) -> Any:
        """Opens what `encode` has made.

        Raises:
            PayloadError: It does not verify, and was not unpickled; or it cannot be unpickled here.
        """
        flags, start = self._envelope.open(kind, task_id, payload)
        try:
            if flags & PLAIN:
                return loads(payload[start:])
            return load_in_client(f"{kind} of task {task_id}", payload, flags, start, where=self._where)
        except PayloadError:
            raise
        except (ValueError, LookupError, TypeError, EOFError, UnpicklingError) as damage:
            raise PayloadError(f"{kind} of task {task_id} is damaged: {damage}") from damage

    def peek(self, kind: str, task_id: str, payload: bytes) -> Any:
        """Opens a row to show it: imports nothing, and puts ``...`` in place of what is of no builtin type.

        Returns:
            The row, or a tuple that begins with it; None if it does not verify, or is no row.
        """
        try:
            _, start = self._envelope.open(kind, task_id, payload)
            return _ShyUnpickler(io.BytesIO(payload[start:])).load()
        except Exception:  # noqa: BLE001 - of bytes that are not ours
            return None

    def encode_failure(self, task_id: str, error: BaseException, *, trim: int = 0) -> bytes:
        """Makes the payload of how a task failed; never raises.

        Args:
            task_id: The task.
            error: The exception; its traceback is cut.
            trim: So many of its outermost frames are ours and left out.
        """
        return self._envelope.wrap("failed", task_id, 0, pack_failure(error, trim))

    def describe_failure(self, task_id: str, payload: bytes) -> tuple[str, str]:
        """Says how a task failed without making its exception, and so without importing anything of the user's.

        Returns:
            Type and message in one line; the text of the traceback.

        Raises:
            PayloadError: It does not verify, and was not unpickled; or it is damaged.
        """
        _, start = self._envelope.open("failed", task_id, payload)
        try:
            return describe_packed(payload[start:])
        except (ValueError, LookupError, TypeError, EOFError, UnpicklingError) as damage:
            raise PayloadError(f"the failure of task {task_id} is damaged: {damage}") from damage

    def decode_failure(self, task_id: str, payload: bytes) -> BaseException:
        """Opens how a task failed; never raises: what cannot be opened is told by the error that comes back."""
        return self._calls.decode_failure(task_id, payload)

    def decode_result(self, task_id: str, payload: bytes) -> tuple[dict[str, Any], BaseException | None]:
        """Opens what an executor's call has returned, as a row; and how a chunk of calls has failed, if it has.

        Raises:
            PayloadError: As `decode`.
        """
        value = self._calls.decode_outcome(task_id, "finished", payload)
        if isinstance(value, ChunkResult):
            return {"result": value.values}, value.failure
        return {"result": value}, None
