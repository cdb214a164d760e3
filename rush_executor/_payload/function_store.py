"""The functions that a worker knows, and the namespaces that they live in.

Knows specs, references and client spaces. Must not know calls. `Decoder` asks it for the function of every call.

What is kept ready: plain functions and classes. Everything else that can be called (a partial, a bound method, an
object) is unpickled for each task, for its state is an argument: a task must not find there what another has left.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from types import FunctionType
from typing import Any, Final

from rush_executor._payload.cached import CachedFunctionType
from rush_executor._payload.content import ContentFiles, Stub
from rush_executor._payload.envelope import Envelope
from rush_executor._payload.function import BY_DIGEST, BY_REFERENCE, digest_of_spec, read_reference
from rush_executor._payload.loading import IN_WORKER, cannot_unpickle, load_in_worker
from rush_executor._payload.reference import Reference, resolve
from rush_executor._payload.space import CachedFunction, ClientSpace
from rush_executor._payload.wire import ELSEWHERE
from rush_executor.errors import PayloadError

__all__ = ["FunctionStore"]

# Clients whose functions and namespaces are remembered at the same time.
_MOST_CLIENTS: Final = 32
_MOST_REFERENCES: Final = 1024
_KINDS: Final = {"function": "function", "scattered": "scattered object"}


class FunctionStore:
    """Finds functions by their specs.

    Args:
        envelope: Opens their bodies.
        fetch: Returns the body of a function, given client and digest; KeyError if it is gone.
        files_of: Where the files of a client are; None for nowhere.
    """

    def __init__(
        self,
        envelope: Envelope,
        fetch: Callable[[str, str], bytes],
        files_of: Callable[[str], ContentFiles] | None = None,
    ) -> None:
        self._envelope = envelope
        self._fetch = fetch
        self._files_of = files_of
        self._references: dict[bytes, Reference] = {}
        self._spaces: OrderedDict[str, ClientSpace] = OrderedDict()
        self._home: str | None = None

    def space(self, client_id: str, *, is_home: bool = False) -> ClientSpace:
        """Returns what is kept of a client.

        Args:
            client_id: The client.
            is_home: Its initializer is about to run here: what that loads must never be forgotten.
        """
        if is_home:
            self._home = client_id
        space = self._spaces.get(client_id)
        if space is None:
            files = None if self._files_of is None else self._files_of(client_id)
            space = ClientSpace(files, functools.partial(self._find_scattered, client_id))
            self._spaces[client_id] = space
            if len(self._spaces) > _MOST_CLIENTS:
                del self._spaces[next(oldest for oldest in self._spaces if oldest != self._home)]
        else:
            self._spaces.move_to_end(client_id)
        return space

    def find(self, client_id: str, spec: bytes) -> Any:
        """Returns a function, ready to be called.

        Args:
            client_id: The client of the call.
            spec: The call's spec without its length.

        Raises:
            PayloadError: It cannot be imported or unpickled here, or its body is gone or does not verify.
        """
        if spec[0] == BY_DIGEST:
            return self._by_digest(self.space(client_id), client_id, digest_of_spec(spec))
        if spec[0] != BY_REFERENCE:
            raise ValueError("the call names no function")
        reference = self._references.get(spec)
        if reference is None:
            reference = self._remember(spec)
        try:
            return resolve(reference)
        except BaseException as error:  # noqa: BLE001 - importing a module may raise anything, even SystemExit
            failure = cannot_unpickle(f"function {reference.module}.{'.'.join(reference.names)}()", IN_WORKER, error)
        raise failure

    def _by_digest(self, space: ClientSpace, client_id: str, digest: str) -> Any:
        cached = space.functions.get(digest)
        if cached is not None:
            if cached.epoch != space.epoch:
                space.activate(cached)
            return cached.fn
        kept = space.bodies.get(digest)
        body, flags, start = kept or self._fetch_body(client_id, "function", digest)
        fn, bindings = load_in_worker(f"the function {digest} of this call", body, flags, start, space)
        if type(fn) is FunctionType or type(fn) is CachedFunctionType or isinstance(fn, type):
            size = Stub.from_bytes(body[start:]).size if flags & ELSEWHERE else len(body)
            space.functions.put(digest, CachedFunction(fn, bindings, space.epoch), weight=size)
        elif kept is None:
            space.bodies.put(digest, (body, flags, start), weight=len(body))
        return fn

    def _find_scattered(self, client_id: str, ident: str) -> Any:
        """What a reference becomes: unpickled for each task, as any argument is."""
        space = self.space(client_id)
        kept = space.bodies.get(ident)
        body = kept or self._fetch_body(client_id, "scattered", ident)
        found, _ = load_in_worker(f"what was scattered as {ident}", *body, space)
        if kept is None:
            space.bodies.put(ident, body, weight=len(body[0]))
        return found

    def _fetch_body(self, client_id: str, kind: str, ident: str) -> tuple[bytes, int, int]:
        try:
            body = self._fetch(client_id, ident)
        except KeyError:
            raise PayloadError(
                f"the {_KINDS[kind]} {ident} of this call is gone from the server: its client has left, or the "
                "server has lost or evicted keys; submit the call again"
            ) from None
        return body, *self._envelope.open(kind, ident, body)

    def _remember(self, spec: bytes) -> Reference:
        reference = read_reference(spec[1:])
        if len(self._references) >= _MOST_REFERENCES:
            self._references.clear()
        self._references[spec] = reference
        return reference
