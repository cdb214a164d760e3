"""The client's side: calls become payloads, payloads become results and exceptions.

Knows functions, arguments and outcomes. Must not know where payloads go. `submit` and `map` call it from any thread,
the listener from its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from hashlib import blake2b
from pickle import UnpicklingError, dumps, loads
from typing import Any, Final

from rush_executor._payload.bodies import Bodies
from rush_executor._payload.chunk import ChunkResult
from rush_executor._payload.compression import is_installed
from rush_executor._payload.content import OwnFiles, Piece, Stub, open_content
from rush_executor._payload.culprit import Suspect, cannot_pickle
from rush_executor._payload.envelope import Envelope
from rush_executor._payload.failure import unpack_failure
from rush_executor._payload.function import DIGEST_SIZE, EncodedFunction, end_of_spec, spec_of_digest, spec_of_reference
from rush_executor._payload.loading import IN_CLIENT, cannot_unpickle, load_in_client
from rush_executor._payload.names import name_of
from rush_executor._payload.pickler import PROTOCOL, dump_parts
from rush_executor._payload.reference import Reference, find_reference, is_current
from rush_executor._payload.scalars import is_plain
from rush_executor._payload.scattered import RushReference
from rush_executor._payload.wire import CHUNK, ELSEWHERE, NO_KWARGS, PLAIN, ZSTD
from rush_executor.errors import PayloadError

__all__ = ["Encoder"]

_MOST_REFERENCES: Final = 1024

# Ctrl-C during the pickling of large arguments cannot be told from a KeyboardInterrupt that a `__reduce__` raises; in
# the client the user's Ctrl-C counts. In a worker, where Ctrl-C is not for us, it is the task's error like any other.
_PASSES: Final = (KeyboardInterrupt,)


class Encoder:
    """Encodes calls and decodes outcomes; thread-safe.

    Args:
        network_id: The network that the payloads are for.
        secret: Seals every payload; None for no seal.
        files: Where workers of this machine keep large results; None for nowhere.
        sends_files: Whether large arguments are kept there, too: all workers are on this machine.
        in_chunks: Whether large functions may be stored in chunks.
        compresses: Whether to compress what is in no file, where that can be done and is worth it.

    Raises:
        ValueError: The secret is empty.
    """

    def __init__(
        self,
        network_id: str,
        secret: bytes | None = None,
        files: OwnFiles | None = None,
        *,
        sends_files: bool = False,
        in_chunks: bool = False,
        compresses: bool = False,
    ) -> None:
        self._envelope = Envelope(network_id, secret)
        self._files = files
        self._own_files = files if sends_files else None
        self._compresses = compresses and is_installed()
        self._call_flags = ZSTD if self._compresses else 0
        self._bodies = Bodies(self._envelope, self._own_files, in_chunks=in_chunks, compresses=self._compresses)
        # By id of the function, which is held, so that the id stays its own.
        self._references: dict[int, tuple[Any, Reference, EncodedFunction]] = {}

    def send_no_files(self) -> None:
        """From now on nothing is sent in a file: it is to outlive this process, or to reach another machine."""
        self._own_files = None
        self._bodies.forgo_files()

    def encode_function(self, fn: Callable[..., object]) -> EncodedFunction:
        """Prepares a function for calls.

        A function or class that can be imported by name goes by name; anything else is pickled anew each time, for a
        closure may have changed.

        Raises:
            PayloadError: It cannot be pickled.
        """
        entry = self._references.get(id(fn))
        # A module may have been reloaded, or the function replaced in it.
        if entry is not None and is_current(entry[1], fn):
            return entry[2]
        try:
            reference = find_reference(fn)
            if reference is not None:
                spec = spec_of_reference(reference)
                if spec is not None:
                    return self._remember(fn, reference, EncodedFunction(spec, None, None, name_of(fn)))
            references: list[RushReference] = []
            parts, buffers = self._dump(fn, references)
            state = blake2b(digest_size=DIGEST_SIZE)
            pieces: list[bytes | memoryview] = [*parts, *buffers]
            for piece in pieces:
                state.update(piece)
            digest, name = state.hexdigest(), name_of(fn)
            body = self._bodies.make("function", digest, parts, buffers)
            return EncodedFunction(spec_of_digest(state.digest(), name), digest, body, name, tuple(references))
        except _PASSES:
            raise
        except BaseException as error:  # noqa: BLE001 - reducers of the user's may raise anything, even SystemExit
            name = name_of(fn)
            failure = cannot_pickle(
                [Suspect(f"function {name}()", name, fn)], f"function {name}()", error, passes=_PASSES
            )
        del fn
        raise failure

    def encode_call(
        self,
        task_id: str,
        function: EncodedFunction,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        is_chunk: bool = False,
        keep: list[Any] | None = None,
    ) -> bytes:
        """Makes the payload of one call.

        Args:
            task_id: The task.
            function: From `encode_function`.
            args: Positional arguments; of a chunk, a list of tuples of arguments alone.
            kwargs: Keyword arguments.
            is_chunk: Whether this is a chunk of calls.
            keep: Takes what has to live until the task has ended: references, and what keeps a large content. None to
                have all of it in the payload, and no references.

        Raises:
            PayloadError: An argument cannot be pickled.
        """
        flags = self._call_flags | CHUNK if is_chunk else self._call_flags
        content: Any
        if kwargs:
            content = (args, kwargs)
        else:
            content = args
            flags |= NO_KWARGS
        try:
            if is_plain(args) and (not kwargs or is_plain((kwargs,))):
                return self._envelope.wrap("call", task_id, flags | PLAIN, function.spec + dumps(content, PROTOCOL))
            parts, buffers = self._dump(content, keep)
            shelter = None
            if keep is not None and self._own_files is not None:
                shelter = _Shelter(self._own_files, keep)
            return self._envelope.wrap_parts(
                "call",
                task_id,
                flags,
                parts,
                buffers,
                before=function.spec,
                shelter=shelter,
                compresses=self._compresses,
            )
        except _PASSES:
            raise
        except BaseException as error:  # noqa: BLE001 - reducers of the user's may raise anything, even SystemExit
            name = function.name
            suspects = _chunk_arguments(name, args[0]) if is_chunk else _arguments(name, args, kwargs)
            failure = cannot_pickle(suspects, f"the arguments of {name}()", error, passes=_PASSES)
        # The Future holds the error, the error this frame, and the frame would hold the arguments.
        del args, kwargs, content, suspects
        if keep:
            keep.clear()
        raise failure

    def move_call(self, task_id: str, payload: bytes) -> bytes:
        """The same call with its arguments in it, if they are in a file.

        Raises:
            OSError: The file is gone.
            PayloadError: The payload is none of ours.
        """
        flags, start = self._envelope.open("call", task_id, payload)
        if self._files is None or not flags & ELSEWHERE:
            return payload
        end = end_of_spec(payload, start)
        stub = Stub.from_bytes(payload[end:])
        with closing(self._files.open_place(stub.place, stub.size)) as file:
            stream, buffers = open_content(file, stub)
            return self._envelope.wrap_parts(
                "call",
                task_id,
                flags & ~ELSEWHERE,
                [stream.read(stub.pickle_size)],
                [memoryview(buffer) for buffer in buffers],
                before=payload[start:end],
                compresses=self._compresses,
            )

    def move_body(self, kind: str, ident: str, body: bytes) -> bytes:
        """As `move_call`, of what is stored under a name: a "function", or what was "scattered"."""
        return self._bodies.move(kind, ident, body)

    def encode_initializer(
        self, fn: Callable[..., object], initargs: tuple[Any, ...], *, what: str = "initializer"
    ) -> bytes:
        """Makes the payload of a worker's initializer, or of what else it is to run.

        Args:
            fn: The function.
            initargs: Its arguments.
            what: What to call it in an error.

        Raises:
            PayloadError: The function or one of its arguments cannot be pickled.
        """
        try:
            return self._envelope.wrap_object("initializer", "", 0, (fn, initargs))
        except _PASSES:
            raise
        except BaseException as error:  # noqa: BLE001 - as above
            name = name_of(fn)
            suspects = [Suspect(f"{what} {name}()", name, fn)]
            suspects += [Suspect(f"initarg {i + 1} of {name}()", f"initargs[{i}]", a) for i, a in enumerate(initargs)]
            failure = cannot_pickle(suspects, f"{what} {name}()", error, passes=_PASSES)
        del fn, initargs, suspects
        raise failure

    def encode_scattered(self, ident: str, obj: object) -> tuple[bytes, tuple[RushReference, ...]]:
        """Makes what is stored for an object that is to be scattered.

        Args:
            ident: Its name.
            obj: The object.

        Returns:
            The body, and the references in it.

        Raises:
            PayloadError: It cannot be pickled.
        """
        try:
            references: list[RushReference] = []
            parts, buffers = self._dump(obj, references)
            return self._bodies.make("scattered", ident, parts, buffers), tuple(references)
        except _PASSES:
            raise
        except BaseException as error:  # noqa: BLE001 - as above
            what = "what is to be scattered"
            failure = cannot_pickle([Suspect(what, "obj", obj)], what, error, passes=_PASSES)
        del obj
        raise failure

    def load_scattered(self, reference: RushReference) -> Any:
        """What a reference stands for.

        Raises:
            PayloadError: It cannot be unpickled here.
        """
        nested = {inner.ident: inner for inner in reference.nested}
        return self._bodies.load("scattered", reference.ident, reference.body, lambda ident: nested[ident].result())

    def decode_outcome(self, task_id: str, kind: str, body: bytes) -> Any:
        """Opens what a task returned.

        Args:
            task_id: The task.
            kind: "finished".
            body: The payload.

        Returns:
            The value; of a chunk, a `ChunkResult`.

        Raises:
            PayloadError: The payload does not verify, and was not unpickled; or it cannot be unpickled.
        """
        flags, start = self._envelope.open(kind, task_id, body)
        try:
            if flags & PLAIN:
                return loads(body[start:])
            value = load_in_client(f"the result of task {task_id}", body, flags, start, files=self._files)
            if not flags & CHUNK:
                return value
            values, packed = value
            return ChunkResult(values, None if packed is None else unpack_failure(packed))
        except PayloadError:
            raise
        except (ValueError, LookupError, TypeError, EOFError, UnpicklingError) as damage:
            # What unpicklers and the layout say of bytes that are not ours.
            raise PayloadError(f"the result of task {task_id} is damaged: {damage}") from damage

    def decode_failure(self, task_id: str, body: bytes) -> BaseException:
        """Opens how a task failed; never raises.

        Returns:
            The exception for the Future: the task's own; a `RemoteError` if that cannot be rebuilt; a `PayloadError`
            if the payload does not verify.
        """
        try:
            _, start = self._envelope.open("failed", task_id, body)
        except PayloadError as failure:
            return failure
        try:
            return unpack_failure(body[start:])
        except BaseException as error:  # noqa: BLE001 - whatever damaged bytes lead to
            return cannot_unpickle(f"the failure of task {task_id}", IN_CLIENT, error)

    def _dump(self, obj: object, references: list[RushReference] | None) -> tuple[list[bytes], list[memoryview]]:
        """As `dump_parts`; a caller that has met an error holds nothing that was pickled."""
        dumped = dump_parts(obj, references)
        for reference in references or ():
            if reference.home is not self:
                raise PayloadError(
                    f"{reference!r} is good for tasks of the executor that has scattered it, and for no other"
                )
        return dumped

    def _remember(self, fn: Any, reference: Reference, function: EncodedFunction) -> EncodedFunction:
        if len(self._references) >= _MOST_REFERENCES:
            self._references.clear()
        self._references[id(fn)] = fn, reference, function
        return function


class _Shelter:
    """Keeps the arguments of a task until nobody refers to what it puts into a list."""

    __slots__ = ("_files", "_keep")

    def __init__(self, files: OwnFiles, keep: list[Any]) -> None:
        self._files = files
        self._keep = keep

    def __call__(self, stem: str, pieces: Sequence[Piece], size: int) -> str:
        place = self._files.keep_argument(stem, pieces, size)
        if place:
            self._keep.append(self._files.own(place))
        return place


def _arguments(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Suspect]:
    for i, value in enumerate(args):
        yield Suspect(f"argument {i + 1} of {name}()", f"args[{i}]", value)
    for key, value in kwargs.items():
        yield Suspect(f"keyword argument {key!r} of {name}()", str(key), value)


def _chunk_arguments(name: str, calls: list[tuple[Any, ...]]) -> Iterator[Suspect]:
    for n, args in enumerate(calls):
        for i, value in enumerate(args):
            yield Suspect(f"argument {i + 1} of {name}(), call {n + 1} of its chunk,", f"args[{i}]", value)
