"""Compression of what travels through a server: with zstd, where that is installed, and where it is worth it.

Knows bytes only. zstd comes with Python 3.14; before, with the package zstandard. It is looked for when it is first
needed: most programs have nothing to compress.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from typing import Any, Final

__all__ = ["MAGIC", "compress", "decompress", "is_installed"]

# How a frame begins.
MAGIC: Final = b"\x28\xb5\x2f\xfd"
# Faster than most networks; what higher levels spare is less than what they cost.
_LEVEL: Final = 1
# Smaller ones are not worth the call.
_SMALLEST: Final = 64 << 10
# A look at so many places of so many bytes tells whether to go on.
_N_SAMPLES: Final = 8
_SAMPLE_SIZE: Final = 16 << 10
_MOST_LEFT: Final = 0.8


def is_installed() -> bool:
    """Whether there is zstd here."""
    return _zstd() is not None


def compress(pieces: Sequence[bytes | memoryview]) -> bytes | None:
    """Compresses pieces, one after the other.

    Returns:
        None where that is not worth it: they are few bytes, a sample of them does not get much smaller, or there is no
        zstd here.
    """
    size = sum(map(len, pieces))
    if size < _SMALLEST or not is_installed():
        return None
    sample = _sample(pieces, size)
    if len(_compressed([sample])) > _MOST_LEFT * len(sample):
        return None
    return _compressed(pieces)


def decompress(packed: bytes | memoryview) -> bytes:
    """Gives back what `compress` has taken.

    Raises:
        ImportError: There is no zstd here.
        Exception: What zstd raises for bytes that are not its own.
    """
    zstd = _zstd()
    if zstd is None:
        raise ImportError("it is compressed with zstd, and that is not installed here: pip install rush-executor[zstd]")
    if zstd.__name__ == "zstandard":
        # The frame does not say how large it is.
        state = zstd.ZstdDecompressor().decompressobj()
    else:
        state = zstd.ZstdDecompressor()
    unpacked: bytes = state.decompress(packed)
    if not state.eof:
        raise EOFError("the compressed bytes are not complete")
    return unpacked


def _compressed(pieces: Sequence[bytes | memoryview]) -> bytes:
    zstd: Any = _zstd()
    if zstd.__name__ == "zstandard":
        state = zstd.ZstdCompressor(level=_LEVEL).compressobj()
    else:
        state = zstd.ZstdCompressor(level=_LEVEL)
    return b"".join([*map(state.compress, pieces), state.flush()])


def _sample(pieces: Sequence[bytes | memoryview], size: int) -> bytes:
    """Some bytes from all over the pieces."""
    starts = [size * number // _N_SAMPLES for number in range(_N_SAMPLES)]
    samples: list[bytes | memoryview] = []
    at = 0
    for piece in pieces:
        samples += [piece[start - at : start - at + _SAMPLE_SIZE] for start in starts if at <= start < at + len(piece)]
        at += len(piece)
    return b"".join(samples)


@functools.cache
def _zstd() -> Any:
    for name in ("compression.zstd", "zstandard"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None
