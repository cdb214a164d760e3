"""The seal, and everything that is written or checked before a pickle is touched.

Knows one network's name and secret, and the layout (`wire`). Must not know what a payload means. `Encoder` and
`Decoder` wrap and open every payload here; a payload that `open` refuses is never unpickled.

The seal is a keyed BLAKE2b over network, kind, task (or digest, for a function) and the payload with its flags: a
payload that was moved to another task, stored as another kind or taken to another network does not verify. It does
not hide the content, and does not stop an old payload from being put back in its own place.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from hmac import compare_digest
from typing import Final

from rush_executor._payload.compression import compress
from rush_executor._payload.content import LARGE, Shelter, Stub, digest_of, lay_out
from rush_executor._payload.pickler import dump_parts
from rush_executor._payload.scattered import RushReference
from rush_executor._payload.wire import (
    BUFFERS,
    ELSEWHERE,
    HEADS,
    KNOWN_FLAGS,
    SEAL_SIZE,
    SEALED,
    ZSTD,
    table_of,
)
from rush_executor.errors import PayloadError

__all__ = ["Envelope"]

# The kinds of payloads, and what to call one of each.
_SUBJECTS: Final = {
    "call": "the call of task {}",
    "function": "the function {}",
    "initializer": "the initializer",
    "finished": "the result of task {}",
    "failed": "the failure of task {}",
    "xs": "the inputs of task {}",
    "ys": "the results of task {}",
    "extra": "what is to be known of task {}",
    "scattered": "what was scattered as {}",
}


class Envelope:
    """Wraps and opens the payloads of one network; immutable, so threads may share it.

    Args:
        network_id: The network; a seal is good in this network only.
        secret: Key of the seal; None for no seal. Kept only inside the hash state, so no repr can show it.

    Raises:
        ValueError: The secret is empty: BLAKE2b takes an empty key for none, and anybody could make the seal.
    """

    __slots__ = ("_keyed", "is_sealing")

    def __init__(self, network_id: str, secret: bytes | None) -> None:
        if secret is None:
            self._keyed = None
        else:
            if not secret:
                raise ValueError("secret must not be empty: leave it out (None) for payloads without a seal")
            key = secret if len(secret) <= blake2b.MAX_KEY_SIZE else blake2b(secret).digest()
            self._keyed = blake2b(_framed(network_id), digest_size=SEAL_SIZE, key=key)
        self.is_sealing = secret is not None

    def wrap(self, kind: str, ident: str, flags: int, content: bytes) -> bytes:
        """Wraps small content."""
        if self._keyed is None:
            return HEADS[flags] + content
        return self._join(kind, ident, flags, (content,))

    def wrap_object(
        self,
        kind: str,
        ident: str,
        flags: int,
        obj: object,
        *,
        before: bytes = b"",
        shelter: Shelter | None = None,
        compresses: bool = False,
        references: list[RushReference] | None = None,
    ) -> bytes:
        """Pickles an object, its large buffers out of band, and wraps it.

        Args:
            kind: What the payload is.
            ident: Task or digest that it belongs to.
            flags: Without SEALED, BUFFERS and ELSEWHERE.
            obj: The object.
            before: What stands between seal and pickle.
            shelter: Keeps it if it is large; None to have it in the payload in any case.
            compresses: Whether to compress what is in the payload, if that is worth it.
            references: Takes the references in it; None where there must be none.

        Raises:
            BaseException: Whatever pickling raised.
        """
        parts, buffers = dump_parts(obj, references)
        return self.wrap_parts(
            kind, ident, flags, parts, buffers, before=before, shelter=shelter, compresses=compresses
        )

    def wrap_parts(
        self,
        kind: str,
        ident: str,
        flags: int,
        parts: Sequence[bytes],
        buffers: Sequence[memoryview],
        *,
        before: bytes = b"",
        shelter: Shelter | None = None,
        compresses: bool = False,
    ) -> bytes:
        """As `wrap_object`, with what `dump_parts` has returned."""
        if shelter is not None and sum(map(len, parts)) + sum(map(len, buffers)) >= LARGE:
            layout = lay_out(parts, buffers)
            place = shelter(ident, layout.pieces, layout.size)
            if place:
                digest = digest_of(layout.table, *parts, *buffers) if self.is_sealing else b""
                stub = Stub(place, layout.size, layout.pickle_size, layout.n_buffers, digest)
                return self.wrap(kind, ident, flags | ELSEWHERE, before + stub.to_bytes())
        contents: list[bytes | memoryview] = [*parts, *buffers]
        if buffers:
            flags |= BUFFERS
            contents.append(table_of([len(buffer) for buffer in buffers]))
        packed = compress(contents) if compresses else None
        if packed is not None:
            return self._join(kind, ident, flags | ZSTD, (before, packed))
        return self._join(kind, ident, flags, (before, *contents))

    def open(self, kind: str, ident: str, payload: bytes) -> tuple[int, int]:
        """Checks flags and seal.

        Returns:
            The flags, without SEALED, and where the content starts.

        Raises:
            PayloadError: This payload must not be unpickled.
        """
        flags = payload[0] if payload else 0xFF
        if self._keyed is None:
            if flags & ~KNOWN_FLAGS or not payload:
                raise PayloadError(_refusal(kind, ident, "is damaged, or from another version of rush-executor"))
            if flags & SEALED:
                advice = (
                    "is sealed, but there is no secret here: give the secret of the network (secret= or RUSH_SECRET)"
                )
                raise PayloadError(_refusal(kind, ident, advice))
            return flags, 1
        if not flags & SEALED:
            advice = (
                "has no seal, but there is a secret here: give clients and workers the same secret (secret= or "
                "RUSH_SECRET); it was not unpickled"
            )
            raise PayloadError(_refusal(kind, ident, advice))
        start = 1 + SEAL_SIZE
        view = memoryview(payload)
        if not compare_digest(view[1:start], self._seal(kind, ident, view[:1], (view[start:],))):
            advice = (
                "has a wrong seal: it was altered or moved, or it was made with another secret (secret= or "
                "RUSH_SECRET) or for another network; it was not unpickled"
            )
            raise PayloadError(_refusal(kind, ident, advice))
        if flags & ~KNOWN_FLAGS:
            raise PayloadError(_refusal(kind, ident, "is from another version of rush-executor"))
        return flags & ~SEALED, start

    def _join(self, kind: str, ident: str, flags: int, contents: Sequence[bytes | memoryview]) -> bytes:
        if self._keyed is None:
            return b"".join((HEADS[flags], *contents))
        head = HEADS[flags | SEALED]
        return b"".join((head, self._seal(kind, ident, head, contents), *contents))

    def _seal(self, kind: str, ident: str, head: bytes | memoryview, contents: Sequence[bytes | memoryview]) -> bytes:
        assert self._keyed is not None  # noqa: S101 - for the type checker; both callers have looked
        state = self._keyed.copy()
        state.update(_framed(kind) + _framed(ident))
        state.update(head)
        for content in contents:
            state.update(content)
        return state.digest()


def _framed(text: str) -> bytes:
    # With its length before it, so that no shift of letters from one field to the next gives the same bytes. The
    # content comes last and needs none. An id with lone surrogates is odd but must not raise here.
    raw = text.encode("utf-8", "surrogatepass")
    return len(raw).to_bytes(8, "little") + raw


def _refusal(kind: str, ident: str, advice: str) -> str:
    return f"{_SUBJECTS.get(kind, kind).format(ident)} {advice}"
