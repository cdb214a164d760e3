"""What is stored for a client under a name, and read by all of its tasks: functions by value, scattered objects.

Knows envelopes and files. Must not know who stores it. The client's `Encoder` makes bodies and reads scattered objects
back; workers read them by way of `FunctionStore`.

A small body is a payload like any other. Of a large one, the payload is a stub. Its content is in a file where all
workers are on this machine, else in chunks that are stored beside it, and each machine fetches them once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any, Final

from rush_executor._payload.compression import compress, decompress
from rush_executor._payload.content import ContentFiles, ContentInMemory, OwnFiles, Piece, Stub
from rush_executor._payload.envelope import Envelope
from rush_executor._payload.loading import load_in_client
from rush_executor._protocol.records import StoredBody

__all__ = ["Bodies", "place_of_chunks", "read_place_of_chunks"]

# A body without a file is stored in chunks from here on: a machine has many workers, and may be far away.
_CHUNKED_FROM: Final = 1 << 20
_CHUNK_SIZE: Final = 16 << 20


class Backing:
    """What is behind the stub of a large body; lives as long as somebody needs that.

    Attributes:
        payload: The stub.
        size: Bytes of the content.
        chunks: The content, where there is no file.
        file: The object with which the file goes.
    """

    __slots__ = ("__weakref__", "chunks", "file", "payload", "size")

    def __init__(self) -> None:
        self.payload = b""
        self.size = 0
        self.chunks: tuple[bytes, ...] = ()
        self.file: object = None


class Bodies:
    """Makes bodies; thread-safe.

    Args:
        envelope: Wraps them.
        files: Where large ones are kept; None for nowhere.
        in_chunks: Whether those that are not may be stored in chunks.
        compresses: Whether to compress what is in no file, where that is worth it.
    """

    def __init__(
        self, envelope: Envelope, files: OwnFiles | None, *, in_chunks: bool, compresses: bool = False
    ) -> None:
        self._envelope = envelope
        # Where new ones go, and where those are that were kept before.
        self._files = self._kept = files
        self._in_chunks = in_chunks
        self._compresses = compresses
        # Of the large ones that somebody needs, by name: a closure that is submitted again and again is kept once.
        self._backings: weakref.WeakValueDictionary[str, Backing] = weakref.WeakValueDictionary()

    def forgo_files(self) -> None:
        """From now on no large ones are kept in files."""
        self._files = None

    def make(self, kind: str, ident: str, parts: Sequence[bytes], buffers: Sequence[memoryview]) -> bytes:
        """Makes a body.

        Args:
            kind: "function" or "scattered".
            ident: Its name, which no other content has.
            parts: From `dump_parts`.
            buffers: As well.
        """
        backing = self._backings.get(ident)
        if backing is None or (backing.file is not None and self._files is None):
            backing = Backing()

            def shelter(stem: str, pieces: Sequence[Piece], size: int) -> str:
                backing.size = size
                place = self._files.keep_argument(stem, pieces, size) if self._files is not None else ""
                if place and self._files is not None:
                    backing.file = self._files.own(place)
                elif self._in_chunks and size >= _CHUNKED_FROM:
                    chunks = list(_cut(pieces, size))
                    packed = [compress([chunk]) for chunk in chunks] if self._compresses else []
                    is_packed = bool(packed) and None not in packed
                    backing.chunks = tuple(chunk for chunk in (packed if is_packed else chunks) if chunk is not None)
                    place = place_of_chunks(ident, len(chunks), is_packed=is_packed)
                return place

            backing.payload = self._envelope.wrap_parts(
                kind, ident, 0, parts, buffers, shelter=shelter, compresses=self._compresses
            )
            if backing.file is None and not backing.chunks:
                return backing.payload
            self._backings[ident] = backing
        body = StoredBody(backing.payload)
        body.size = backing.size
        body.chunks = backing.chunks
        body.backing = backing
        return body

    def move(self, kind: str, ident: str, body: bytes) -> bytes:
        """The same body with chunks in place of a file, if it has one.

        Raises:
            OSError: The file is gone.
            PayloadError: The body is none of ours.
        """
        if self._kept is None or not isinstance(body, StoredBody) or body.chunks:
            return body
        flags, start = self._envelope.open(kind, ident, body)
        stub = Stub.from_bytes(body[start:])
        with closing(self._kept.open_place(stub.place, stub.size)) as file:
            content = file.stream().read(stub.size)
        chunks = tuple(content[at : at + _CHUNK_SIZE] for at in range(0, stub.size, _CHUNK_SIZE))
        stub = stub._replace(place=place_of_chunks(ident, len(chunks), is_packed=False))
        moved = StoredBody(self._envelope.wrap(kind, ident, flags, stub.to_bytes()))
        moved.size = body.size
        moved.chunks = chunks
        # Workers that have found the file look for it again.
        moved.backing = body.backing
        return moved

    def load(self, kind: str, ident: str, body: bytes, find_scattered: Callable[[str], Any]) -> Any:
        """Reads back what `make` was given.

        Raises:
            PayloadError: It cannot be unpickled here.
        """
        flags, start = self._envelope.open(kind, ident, body)
        files: ContentFiles | None = (
            _Chunks(body.chunks) if isinstance(body, StoredBody) and body.chunks else self._kept
        )
        what = f"what was {kind} as {ident}"
        return load_in_client(what, body, flags, start, files=files, find_scattered=find_scattered)


class _Chunks:
    """Stands for where files are when this process has the content in chunks."""

    def __init__(self, chunks: tuple[bytes, ...]) -> None:
        self._chunks = chunks

    def open_place(self, place: str, _size: int) -> ContentInMemory:
        _, _, is_packed = read_place_of_chunks(place)
        return ContentInMemory(b"".join(map(decompress, self._chunks) if is_packed else self._chunks))

    def keep_result(self, _stem: str, _pieces: Sequence[Piece], _size: int) -> str:
        return ""


def place_of_chunks(ident: str, n_chunks: int, *, is_packed: bool) -> str:
    """The place of a content that is stored in chunks beside its body."""
    return f"far/{'z-' if is_packed else ''}{ident}.{n_chunks:x}"


def read_place_of_chunks(place: str) -> tuple[str, int, bool]:
    """Name, number of chunks, and whether each is compressed.

    Raises:
        ValueError: It is no such place.
    """
    name, _, n_chunks = place.removeprefix("far/").partition(".")
    return name.removeprefix("z-"), int(n_chunks, 16), name.startswith("z-")


def _cut(pieces: Sequence[Piece], size: int) -> Iterator[bytes]:
    """The content as it would stand in a file, in chunks."""
    for start in range(0, size, _CHUNK_SIZE):
        end = min(start + _CHUNK_SIZE, size)
        chunk = bytearray(end - start)
        for offset, piece in pieces:
            first, last = max(start, offset), min(end, offset + len(piece))
            if first < last:
                with memoryview(piece) as view:
                    chunk[first - start : last - start] = view[first - offset : last - offset]
        yield bytes(chunk)
