"""Payloads too large for one record: kept in chunks, in a key of their own, or in a file whose path stands there.

A Redis string ends at 512 MB, and what passes through Lua is copied there; so a large payload travels beside the
scripts. Chunks are fields of a hash, so writing one twice does no harm. Until a transition links the blob to a task it
has a TTL: a process that dies in between leaves nothing for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rush_executor._ledger.connection import Channel
from rush_executor._ledger.folder import Folder, read_file
from rush_executor._ledger.scripts import pack
from rush_executor._protocol.keys import Keys

__all__ = [
    "CHUNK_SIZE",
    "LARGE_PAYLOAD",
    "blob_commands",
    "chunk_commands",
    "delete_command",
    "read_blob",
    "read_chunks",
    "write_blob",
]

# From here on a payload leaves the record. Below, the extra round trip (0.1 ms) costs more than the copies in Lua.
LARGE_PAYLOAD: Final = 256 * 1024
# One command's worth: far below the server's limit of 512 MB, and small enough that a slow link carries one within the
# reply time-out.
CHUNK_SIZE: Final = 16 * 1024 * 1024
# How long a blob may wait for the transition that links it.
_UNLINKED_MS: Final = 3_600_000
# The field that holds a path, in place of the chunks' numbers.
_FILE: Final = "file"


def write_blob(
    channel: Channel,
    keys: Keys,
    blob_id: str,
    payload: bytes,
    *,
    chunk_size: int = CHUNK_SIZE,
    folder: Folder | None = None,
) -> None:
    """Writes a payload in chunks, with a TTL.

    Args:
        channel: Where to.
        keys: Of the network.
        blob_id: Its name.
        payload: Any size.
        chunk_size: Bytes per chunk; tests set it low.
        folder: Where it is to be instead, if it can be.
    """
    for commands in blob_commands(keys, blob_id, payload, chunk_size=chunk_size, folder=folder):
        channel.call(*commands)


def blob_commands(
    keys: Keys, blob_id: str, payload: bytes, *, chunk_size: int = CHUNK_SIZE, folder: Folder | None = None
) -> Iterator[tuple[bytes, ...]]:
    """Packs what writes a payload, chunk by chunk; see `write_blob`."""
    path = folder.write(blob_id, payload) if folder is not None else b""
    if path:
        yield pack(("HSET", keys.blob(blob_id), _FILE, path)), pack(("PEXPIRE", keys.blob(blob_id), _UNLINKED_MS))
        return
    view = memoryview(payload)
    for number, start in enumerate(range(0, len(view), chunk_size)):
        yield from chunk_commands(keys, blob_id, number, view[start : start + chunk_size])


def chunk_commands(keys: Keys, blob_id: str, number: int, chunk: bytes | memoryview) -> Iterator[tuple[bytes, ...]]:
    """Packs what writes one chunk, the first of them first."""
    key = keys.blob(blob_id)
    if not number:
        # The TTL goes first, in one small packet: who is killed in the middle of a chunk leaves nothing without one.
        # NX: a blob that is written again may be being read.
        yield pack(("HSETNX", key, "0", b"")), pack(("PEXPIRE", key, _UNLINKED_MS))
    yield pack(("HSET", key, str(number), chunk)), pack(("PEXPIRE", key, _UNLINKED_MS))


def read_blob(channel: Channel, keys: Keys, blob_id: str) -> bytes:
    """Reads a payload back.

    Raises:
        KeyError: There is no such blob (any more).
        PayloadError: It is a file that cannot be read.
    """
    chunks = list(read_chunks(channel, keys, blob_id))
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def read_chunks(channel: Channel, keys: Keys, blob_id: str) -> Iterator[bytes]:
    """Reads a payload back, one chunk after the other.

    Raises:
        KeyError: There is no such blob (any more).
        PayloadError: It is a file that cannot be read.
    """
    key = keys.blob(blob_id)
    n_chunks, path = channel.call(pack(("HLEN", key)), pack(("HGET", key, _FILE)))
    if path is not None:
        yield from read_file(path)
        return
    if not n_chunks:
        raise KeyError(blob_id)
    for number in range(n_chunks):
        chunk: bytes | None = channel.call(pack(("HGET", key, str(number))))[0]
        if chunk is None:
            raise KeyError(blob_id)
        yield chunk


def delete_command(keys: Keys, blob_id: str) -> bytes:
    """Packs the command that deletes a blob."""
    return pack(("UNLINK", keys.blob(blob_id)))
