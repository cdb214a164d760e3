"""Helpers of the payload tests: both sides in one process, and functions of a made-up module.

Tests that need a real `__main__`, or classes that are not already known on the other side, use `remote`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from rush_executor._payload import ChunkResult, Decoder, EncodedFunction, Encoder, run_chunk

NETWORK = "test"
CLIENT = "client-1"
TASK = "client-1:7"

SECRET = b"correct horse battery staple"


class Sides:
    """A client and a worker; function bodies go from one to the other through a dict."""

    def __init__(
        self,
        secret: bytes | None = None,
        network_id: str = NETWORK,
        *,
        files: Any = None,
        files_of: Any = None,
        in_chunks: bool = False,
    ) -> None:
        self.bodies: dict[str, bytes] = {}
        self.n_fetched = 0
        self.encoder = Encoder(network_id, secret, files, sends_files=files is not None, in_chunks=in_chunks)
        self.decoder = Decoder(network_id, secret, self._fetch, files_of)

    def _fetch(self, client_id: str, digest: str) -> bytes:
        self.n_fetched += 1
        return self.bodies[digest]

    def encode(self, fn: Any, *args: Any, **kwargs: Any) -> bytes:
        """The payload of a call."""
        return self.encoder.encode_call(TASK, self.function(fn), args, kwargs)

    def function(self, fn: Any) -> EncodedFunction:
        """Encodes a function and stores its body."""
        function = self.encoder.encode_function(fn)
        if function.digest is not None:
            assert function.body is not None
            self.bodies[function.digest] = function.body
        return function

    def run(self, payload: bytes, client_id: str = CLIENT) -> Any:
        """What a worker does with a call, and the client with what comes of it; a failure is raised."""
        try:
            call = self.decoder.decode_call(client_id, TASK, payload)
            if call.is_chunk:
                body = self.decoder.encode_chunk(TASK, *run_chunk(call.fn, call.args[0]))
            else:
                body = self.decoder.encode_result(TASK, call.fn(*call.args, **call.kwargs))
        except BaseException as exc:
            failed = self.decoder.encode_failure(TASK, exc, trim=1)
        else:
            return self.encoder.decode_outcome(TASK, "finished", body)
        raise self.encoder.decode_failure(TASK, failed)

    def call(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        """A call there and back."""
        return self.run(self.encode(fn, *args, **kwargs))

    def chunk(self, fn: Any, items: list[tuple[Any, ...]]) -> ChunkResult:
        """A chunk there and back."""
        payload = self.encoder.encode_call(TASK, self.function(fn), (items,), {}, is_chunk=True)
        result = self.run(payload)
        assert isinstance(result, ChunkResult)
        return result

    def back(self, value: Any) -> Any:
        """A result on its way to the client."""
        return self.encoder.decode_outcome(TASK, "finished", self.decoder.encode_result(TASK, value))

    def fail(self, exc: BaseException, trim: int = 0) -> BaseException:
        """An exception on its way to the client."""
        return self.encoder.decode_failure(TASK, self.decoder.encode_failure(TASK, exc, trim=trim))

    def initialize(self, fn: Any, *initargs: Any, client_id: str = CLIENT) -> None:
        """Runs an initializer."""
        init, args = self.decoder.decode_initializer(client_id, self.encoder.encode_initializer(fn, initargs))
        init(*args)


def module(source: str, name: str = "__main__") -> dict[str, Any]:
    """Runs source as the module of that name would be run; returns its globals."""
    namespace: dict[str, Any] = {"__name__": name}
    exec(source, namespace)
    return namespace


def redefine(namespace: dict[str, Any], source: str) -> None:
    """Runs more source there, as the next cell of a notebook would be run."""
    exec(source, namespace)


def raised(exc: BaseException) -> BaseException:
    """Gives an exception a traceback."""
    try:
        raise exc
    except BaseException as caught:
        return caught


def add(a: Any, b: Any = 0) -> Any:
    return a + b


def echo(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def same(value: Any) -> Any:
    return value


class Outer:
    """A class that has functions to refer to."""

    class Inner:
        @staticmethod
        def twice(value: int) -> int:
            return 2 * value


class Accumulator:
    """A callable with state."""

    def __init__(self) -> None:
        self.total = 0

    def __call__(self, value: int) -> int:
        self.total += value
        return self.total

    def add(self, value: int) -> int:
        return self(value)


class Bomb:
    """Notes in `exploded` that it was unpickled."""

    exploded: ClassVar[list[str]] = []

    def __init__(self, label: str) -> None:
        self.label = label

    def __reduce__(self) -> Any:
        return explode, (self.label,)


def explode(label: str) -> Bomb:
    Bomb.exploded.append(label)
    return Bomb(label)


class Reducing:
    """Raises what it was given when it is pickled."""

    def __init__(self, exc: BaseException) -> None:
        self.exc = exc

    def __reduce__(self) -> Any:
        raise self.exc


class Restoring:
    """Raises what it was given when it is unpickled."""

    def __init__(self, exc: BaseException) -> None:
        self.exc = exc

    def __setstate__(self, state: Any) -> None:
        raise state["exc"]
