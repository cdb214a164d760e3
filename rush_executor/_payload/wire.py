"""The layout of a payload: its first byte, and the table of the buffers that travel beside the pickle.

Knows bytes only: it neither pickles nor seals. `Envelope` writes and checks what is laid out here, `Encoder` and
`Decoder` read the flags.

```
 flags  [seal]  [function]  pickle  [buffer 0 | buffer 1 | ... | length 0 | length 1 | ... | count]
 1      32      2 + n               `------------------- only with BUFFERS --------------------'
```
Lengths are u64, so no part is too large.
"""

from __future__ import annotations

import struct
from typing import Final

__all__ = [
    "BUFFERS",
    "CHUNK",
    "ELSEWHERE",
    "HEADS",
    "NO_KWARGS",
    "PLAIN",
    "SEALED",
    "SEAL_SIZE",
    "ZSTD",
    "read_buffers",
    "table_of",
]

# Flags: buffers follow the pickle.
BUFFERS: Final = 0x01
# Made by the plain pickler, of exact builtin scalars and small containers of them.
PLAIN: Final = 0x02
# A call without keyword arguments: the pickle holds the tuple of arguments alone.
NO_KWARGS: Final = 0x04
# Several calls of one function at once, or their results.
CHUNK: Final = 0x08
# In place of the pickle and its buffers a stub, which says where they are (`content`).
ELSEWHERE: Final = 0x10
# The pickle and what follows it may be compressed: then they begin as zstd's frames do, and as no pickle does. In a
# call it also says that its result may be.
ZSTD: Final = 0x20
# A seal follows the flags.
SEALED: Final = 0x80

KNOWN_FLAGS: Final = BUFFERS | PLAIN | NO_KWARGS | CHUNK | ELSEWHERE | ZSTD | SEALED
HEADS: Final = tuple(bytes((flags,)) for flags in range(256))
SEAL_SIZE: Final = 32

_COUNT: Final = struct.Struct("<I")
_LENGTH_SIZE: Final = 8


def table_of(lengths: list[int]) -> bytes:
    """Returns the table that stands behind buffers of these lengths."""
    return struct.pack(f"<{len(lengths)}QI", *lengths, len(lengths))


def read_buffers(payload: bytes, start: int) -> list[bytearray]:
    """Copies the buffers out of a payload.

    They are bytearrays, so an array on top of one is writable: a task may change its arguments, as it could if they
    had been passed by the standard library.

    Args:
        payload: The whole payload.
        start: Where the pickle starts; no buffer reaches before it.

    Raises:
        ValueError: The table does not fit the payload.
    """
    view = memoryview(payload)
    table_end = len(payload) - _COUNT.size
    if table_end < start:
        raise ValueError("too short for a table of buffers")
    (n_buffers,) = _COUNT.unpack_from(payload, table_end)
    table_start = table_end - n_buffers * _LENGTH_SIZE
    if table_start < start:
        raise ValueError("the table of buffers is longer than the payload")
    lengths = struct.unpack_from(f"<{n_buffers}Q", payload, table_start)
    at = table_start - sum(lengths)
    if at < start:
        raise ValueError("the buffers are longer than the payload")
    buffers = []
    for length in lengths:
        buffers.append(bytearray(view[at : at + length]))
        at += length
    return buffers
