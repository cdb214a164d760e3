"""Contents too large for their payload: laid out for a file, and named in the payload by a stub.

Knows bytes, and files as something that is written once and then read. Must not know where files are. `Envelope` lays
out and has it written, `loading` reads back.

```
 payload  flags  [seal]  [function]  stub: size of the pickle, number of buffers, size of all, [digest,] place
 file     offset and length of each buffer | pickle | buffer 0 | buffer 1 | ...
```
Large buffers begin where they can be mapped. All is written from where it is, a large bytes object in the middle of the
pickle too, without a copy in between. The seal of a payload covers its stub; where there is a seal, the stub has a
digest of the content.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from hmac import compare_digest
from typing import Any, Final, NamedTuple, Protocol

from rush_executor.errors import PayloadError

__all__ = [
    "LARGE",
    "ContentElsewhereError",
    "ContentFile",
    "ContentFiles",
    "ContentInMemory",
    "Layout",
    "OwnFiles",
    "Piece",
    "Shelter",
    "Stub",
    "digest_of",
    "lay_out",
    "open_content",
]

# Contents from here on are kept in files, where there are any.
LARGE: Final = 96 << 10

_HEAD: Final = struct.Struct("<QIQB")
_ENTRY: Final = struct.Struct("<QQ")
_DIGEST_SIZE: Final = 32
# For buffers that are mapped: the largest pages that processors have. What is skipped takes no memory.
_MAPPED_ALIGNMENT: Final = 64 << 10
_MAPPED_FROM: Final = 256 << 10
# For the others: what the fastest instructions ask for.
_ALIGNMENT: Final = 64
# What is smaller is written together with its neighbours.
_SMALL: Final = 16 << 10


class ContentElsewhereError(PayloadError):
    """A file is not on this machine, or this process may not read it. Its sender can send it through the server."""


# Where a piece of a content stands, and the piece.
Piece = tuple[int, bytes | memoryview]


class ContentFile(Protocol):
    """A file that is being read."""

    def stream(self) -> io.BufferedIOBase: ...
    def buffers(self, places: Iterable[tuple[int, int]]) -> list[Any]: ...
    def close(self) -> None: ...


class ContentFiles(Protocol):
    """Where the files of a client are."""

    def open_place(self, place: str, size: int) -> ContentFile:
        """Opens a content for reading.

        Args:
            place: Where it is.
            size: How large it is.

        Raises:
            OSError: It is not there (any more).
            KeyError: It is gone from the server.
        """

    def keep_result(self, stem: str, pieces: Sequence[Piece], size: int) -> str:
        """Keeps what a worker sends; see `Shelter`."""


class OwnFiles(ContentFiles, Protocol):
    """This client's own files."""

    def keep_argument(self, stem: str, pieces: Sequence[Piece], size: int) -> str:
        """Keeps what the client sends; see `Shelter`."""

    def own(self, place: str) -> object:
        """Returns an object with which the file goes."""


class Layout(NamedTuple):
    """A content as it is to stand in a file.

    Attributes:
        pieces: Offset and bytes of each piece.
        size: Bytes of all, with what is left out between pieces.
        pickle_size: Bytes of the pickle.
        n_buffers: How many buffers follow it.
        table: Where the buffers are; the first piece.
    """

    pieces: list[Piece]
    size: int
    pickle_size: int
    n_buffers: int
    table: bytes


# Keeps a content for those who will read it: given what it is called after, what it consists of, and where the last
# piece ends, it returns the place of the content, or nothing where it cannot be kept.
Shelter = Callable[[str, Sequence[Piece], int], str]


class Stub(NamedTuple):
    """Stands in a payload for its content.

    Attributes:
        place: Where the content is.
        size: As in `Layout`.
        pickle_size: As in `Layout`.
        n_buffers: As in `Layout`.
        digest: Of the content; empty where nothing is sealed.
    """

    place: str
    size: int
    pickle_size: int
    n_buffers: int
    digest: bytes

    def to_bytes(self) -> bytes:
        head = _HEAD.pack(self.pickle_size, self.n_buffers, self.size, len(self.digest))
        return head + self.digest + self.place.encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Stub:
        """Reads it back.

        Raises:
            ValueError: These bytes are no stub.
        """
        if len(raw) < _HEAD.size:
            raise ValueError("too short for a stub")
        pickle_size, n_buffers, size, digest_size = _HEAD.unpack_from(raw)
        end = _HEAD.size + digest_size
        return cls(raw[end:].decode(), size, pickle_size, n_buffers, raw[_HEAD.size : end])


class ContentInMemory:
    """A content that this process has, in the place of a file."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def stream(self) -> io.BytesIO:
        return io.BytesIO(self._content)

    def buffers(self, places: Iterable[tuple[int, int]]) -> list[bytearray]:
        with memoryview(self._content) as view:
            return [bytearray(view[offset : offset + length]) for offset, length in places]

    def close(self) -> None:
        """Nothing is open."""


def lay_out(parts: Sequence[bytes], buffers: Sequence[memoryview]) -> Layout:
    """Finds a place for the parts of a pickle and for its buffers."""
    table_size = _ENTRY.size * len(buffers)
    pieces: list[Piece] = []
    at = table_size
    for part in parts:
        pieces.append((at, part))
        at += len(part)
    pickle_size = at - table_size
    entries = []
    together: list[bytes | memoryview] = []
    together_at = at
    for buffer in buffers:
        n_bytes = buffer.nbytes
        gap = -at % (_MAPPED_ALIGNMENT if n_bytes >= _MAPPED_FROM else _ALIGNMENT)
        entries.append(_ENTRY.pack(at + gap, n_bytes))
        if n_bytes < _SMALL:
            together += (bytes(gap), buffer)
        else:
            if together:
                pieces.append((together_at, b"".join(together)))
                together = []
            pieces.append((at + gap, buffer))
            together_at = at + gap + n_bytes
        at += gap + n_bytes
    if together:
        pieces.append((together_at, b"".join(together)))
    table = b"".join(entries)
    return Layout([(0, table), *pieces], at, pickle_size, len(buffers), table)


def digest_of(*contents: bytes | memoryview) -> bytes:
    """What tells a content from any other, of its table, its pickle and its buffers."""
    state = blake2b(digest_size=_DIGEST_SIZE)
    for content in contents:
        state.update(content)
    return state.digest()


def open_content(file: ContentFile, stub: Stub) -> tuple[io.BufferedIOBase, list[Any]]:
    """Reads a content back.

    Returns:
        A stream that stands at the pickle, and the buffers, which are memory that may be written to.

    Raises:
        ValueError: The file does not hold what the stub says, and must not be unpickled.
    """
    stream = file.stream()
    table = stream.read(_ENTRY.size * stub.n_buffers)
    if len(table) != _ENTRY.size * stub.n_buffers:
        raise ValueError("the table of buffers is longer than the file")
    buffers = file.buffers(_ENTRY.iter_unpack(table))
    if not stub.digest:
        return stream, buffers
    # Read here, and unpickled from what was read: nobody can exchange it in between.
    pickled = stream.read(stub.pickle_size)
    if not compare_digest(digest_of(table, pickled, *buffers), stub.digest):
        raise ValueError("the content is not the one that was sealed")
    return io.BytesIO(pickled), buffers
