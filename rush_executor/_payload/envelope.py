"""The seal, and everything that is written or checked before a pickle is touched.

Knows one network's name and secret, and the layout (`wire`). Must not know what a payload means. `Encoder` and
`Decoder` wrap and open every payload here; a payload that `open` refuses is never unpickled.

The seal is a keyed BLAKE2b over network, kind, task (or digest, for a function) and the payload with its flags: a
payload that was moved to another task, stored as another kind or taken to another network does not verify. It does
not hide the content, and does not stop an old payload from being put back in its own place.
"""

from __future__ import annotations

import io
from hashlib import blake2b
from hmac import compare_digest
from pickle import PickleBuffer
from typing import Final

from rush_executor._payload.pickler import CloudPickler
from rush_executor._payload.wire import BUFFERS, HEADS, KNOWN_FLAGS, SEAL_SIZE, SEALED, table_of
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
}


class Envelope:
    """Wraps and opens the payloads of one network; immutable, so threads may share it.

    Args:
        network_id: The network; a seal is good in this network only.
        secret: Key of the seal; None for no seal. Kept only inside the hash state, so no repr can show it.

    Raises:
        ValueError: The secret is empty: BLAKE2b takes an empty key for none, and anybody could make the seal.
    """

    __slots__ = ("_keyed", "_room", "is_sealing")

    def __init__(self, network_id: str, secret: bytes | None) -> None:
        if secret is None:
            self._keyed = None
        else:
            if not secret:
                raise ValueError("secret must not be empty: leave it out (None) for payloads without a seal")
            key = secret if len(secret) <= blake2b.MAX_KEY_SIZE else blake2b(secret).digest()
            self._keyed = blake2b(_framed(network_id), digest_size=SEAL_SIZE, key=key)
        self.is_sealing = secret is not None
        # What stands before the content until flags and seal are known.
        self._room = bytes(1 + SEAL_SIZE) if self.is_sealing else bytes(1)

    def wrap(self, kind: str, ident: str, flags: int, content: bytes) -> bytes:
        """Wraps small content."""
        if self._keyed is None:
            return HEADS[flags] + content
        head = HEADS[flags | SEALED]
        return b"".join((head, self._seal(kind, ident, head, content), content))

    def wrap_object(self, kind: str, ident: str, flags: int, obj: object, *, before: bytes = b"") -> bytes:
        """Pickles an object, its large buffers out of band, and wraps it.

        Args:
            kind: What the payload is.
            ident: Task or digest that it belongs to.
            flags: Without SEALED and BUFFERS.
            obj: The object.
            before: What stands between seal and pickle.

        Raises:
            BaseException: Whatever pickling raised.
        """
        file = io.BytesIO()
        file.write(self._room + before)
        buffers: list[PickleBuffer] = []
        CloudPickler(file, buffers.append).dump(obj)
        if buffers:
            flags |= BUFFERS
            raws = [buffer.raw() for buffer in buffers]
            for raw in raws:
                file.write(raw)
            file.write(table_of([raw.nbytes for raw in raws]))
        if self._keyed is not None:
            flags |= SEALED
        with file.getbuffer() as view:
            view[0] = flags
            if self._keyed is not None:
                view[1 : 1 + SEAL_SIZE] = self._seal(kind, ident, HEADS[flags], view[1 + SEAL_SIZE :])
        return file.getvalue()

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
        if not compare_digest(view[1:start], self._seal(kind, ident, view[:1], view[start:])):
            advice = (
                "has a wrong seal: it was altered or moved, or it was made with another secret (secret= or "
                "RUSH_SECRET) or for another network; it was not unpickled"
            )
            raise PayloadError(_refusal(kind, ident, advice))
        if flags & ~KNOWN_FLAGS:
            raise PayloadError(_refusal(kind, ident, "is from another version of rush-executor"))
        return flags & ~SEALED, start

    def _seal(self, kind: str, ident: str, head: bytes | memoryview, content: bytes | memoryview) -> bytes:
        assert self._keyed is not None  # noqa: S101 - for the type checker; both callers have looked
        state = self._keyed.copy()
        state.update(_framed(kind) + _framed(ident))
        state.update(head)
        state.update(content)
        return state.digest()


def _framed(text: str) -> bytes:
    # With its length before it, so that no shift of letters from one field to the next gives the same bytes. The
    # content comes last and needs none. An id with lone surrogates is odd but must not raise here.
    raw = text.encode("utf-8", "surrogatepass")
    return len(raw).to_bytes(8, "little") + raw


def _refusal(kind: str, ident: str, advice: str) -> str:
    return f"{_SUBJECTS.get(kind, kind).format(ident)} {advice}"
