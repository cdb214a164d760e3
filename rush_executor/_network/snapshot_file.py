"""The file of a snapshot: sections, compressed, each with a digest that covers all that stands before it.

| part | bytes |
|---|---|
| magic | 8 |
| format | 2: number of the format, little-endian |
| writer | 1 + n: length and text of the version of rush-executor that wrote the file |
| digest | 16 |
| block, for each section: | |
| - head | kind (1), packing (1: 0 stored, 1 deflated), length as packed (8), length unpacked (8), CRC-32 of these (4) |
| - body | number of parts (4), their lengths (8 each), the parts; packed |
| - digest | 16: BLAKE2b over the digest before, head and body |

The last block is of kind END, and nothing follows it. So no byte can be altered, cut off, left out or put elsewhere
without `SnapshotFile` telling; the digest is no seal, though: who wants to can make another file. What must not be
unpickled when it was made by a stranger is sealed by the network's secret, in the payloads themselves.

Knows sections as kinds and byte strings, nothing of what they mean, and no server. Holds one section in memory.
"""

from __future__ import annotations

import contextlib
import functools
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

from rush_executor._protocol.ids import new_id
from rush_executor._protocol.snapshots import END, HEAD, KINDS, Section
from rush_executor.errors import SnapshotError

__all__ = ["FORMAT", "SnapshotFile", "write_snapshot"]

# As in PNG: a byte that is no ASCII, and line ends that a transfer as text would alter.
_MAGIC: Final = b"\x89RUSH\r\n\x1a"
FORMAT: Final = 1
_FORMAT: Final = struct.Struct("<H")
_HEAD: Final = struct.Struct("<ccQQ")
_CRC: Final = struct.Struct("<I")
_DIGEST_SIZE: Final = 16
_STORED: Final = b"\x00"
_DEFLATED: Final = b"\x01"
# 1 packs several times as fast as 6, and what is packed are mostly ids, times and names.
_LEVEL: Final = 1
# If so much of the beginning does not shrink to nine tenths, the rest is not tried: arrays of numbers would cost ten
# times the time of writing them.
_PROBE: Final = 64 * 1024
_WORTH_IT: Final = 0.9
_LONGEST_NAME: Final = 100


def write_snapshot(path: str | os.PathLike[str], sections: Iterable[Section]) -> int:
    """Writes a snapshot beside its place and moves it there when it is complete and on the disk; returns its size.

    Args:
        path: Where it goes. A file that is there is replaced; until then, and if anything goes wrong, it stays.
        sections: Made while they are written.

    Raises:
        OSError: The file cannot be written.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise FileExistsError(f"{target} is there, and is no file: a snapshot does not replace it")
    draft = target.with_name(f".{target.name[:_LONGEST_NAME]}.{new_id()}.part")
    try:
        # As any file that a program writes, and not for its owner alone: who may read it, the umask says.
        with draft.open("xb") as file:
            _write(file, sections)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        draft.replace(target)
    except BaseException as error:
        draft.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == os.fspath(draft):
            # What is told is about the file that was asked for.
            error.filename = os.fspath(path)
        raise
    _sync_directory(target.parent)
    return size


class SnapshotFile:
    """A snapshot that was written before, open for reading; may be read several times.

    Args:
        path: The file.

    Attributes:
        written_by: Version of rush-executor that wrote it.

    Raises:
        OSError: It cannot be opened.
        SnapshotError: It is no snapshot, or of a format that is not known here.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        self._file: BinaryIO = Path(path).open("rb")  # noqa: SIM115 - closed by `close`
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            self.written_by, self._digest = self._read_preamble()
            self._start = self._file.tell()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def sections(self) -> Iterator[Section]:
        """Yields all sections, from the first on; each was verified.

        Raises:
            SnapshotError: The file is damaged here, or ends too early.
        """
        self._seek(self._start)
        digest, kind = self._digest, b""
        while kind != END:
            is_first = not kind
            digest, section = self._read_block(digest)
            kind = section.kind
            if is_first != (kind == HEAD):
                raise self._damaged("its sections are in no order that was ever written")
            if kind == END and self._read_some(1):
                raise self._damaged("something stands behind its end")
            yield section

    def _read_preamble(self) -> tuple[str, bytes]:
        if self._read_some(len(_MAGIC)) != _MAGIC:
            raise SnapshotError(f"{self._path} is no snapshot of a network")
        preamble = self._read(_FORMAT.size)
        [number] = _FORMAT.unpack(preamble)
        length = self._read(1)
        text = self._read(length[0])
        preamble = _MAGIC + preamble + length + text
        intact = self._read(_DIGEST_SIZE) == _chained(b"", preamble)
        version = text.decode("ascii", "replace")
        if number != FORMAT:
            raise SnapshotError(
                f"{self._path} is of format {number}, and this version of rush-executor reads format {FORMAT}: "
                + (f"read it with the version that wrote it ({version or 'unknown'})" if intact else "it is damaged")
            )
        if not intact:
            raise self._damaged("its beginning was altered")
        return version, _chained(b"", preamble)

    def _read_block(self, before: bytes) -> tuple[bytes, Section]:
        head = self._read(_HEAD.size + _CRC.size)
        kind, packing, n_packed, n_raw = _HEAD.unpack_from(head)
        if _CRC.unpack_from(head, _HEAD.size)[0] != zlib.crc32(head[: _HEAD.size]):
            raise self._damaged("the head of a section was altered")
        body = self._read(n_packed)
        digest = _chained(before, head, body)
        if self._read(_DIGEST_SIZE) != digest:
            raise self._damaged("a section was altered")
        if packing == _DEFLATED:
            body = self._inflated(body, n_raw)
        if kind not in KINDS or packing not in (_STORED, _DEFLATED) or len(body) != n_raw:
            raise self._damaged("a section is of no kind that was ever written")
        try:
            return digest, Section(kind, _split(body))
        except struct.error as error:
            raise self._damaged(str(error)) from error

    def _inflated(self, body: bytes, n_raw: int) -> bytes:
        unpacker = zlib.decompressobj()
        try:
            # No more than it says there is.
            raw = unpacker.decompress(body, n_raw + 1)
        except zlib.error as error:
            raise self._damaged(str(error)) from error
        return raw

    def _read(self, n: int) -> bytes:
        # First the size: nobody asks for memory because of a number in a damaged file.
        data = self._read_some(n) if n <= self._size else b""
        if len(data) < n:
            raise self._damaged("it ends in the middle: the rest was cut off")
        return data

    def _read_some(self, n: int) -> bytes:
        # An OSError would be taken for one of the connection on which the sections go out.
        try:
            return self._file.read(n)
        except OSError as error:
            raise self._damaged(f"it cannot be read: {error}") from error

    def _seek(self, position: int) -> None:
        try:
            self._file.seek(position)
        except OSError as error:
            raise self._damaged(f"it cannot be read: {error}") from error

    def _damaged(self, how: str) -> SnapshotError:
        return SnapshotError(f"the snapshot {self._path} is damaged: {how}")


def _write(file: BinaryIO, sections: Iterable[Section]) -> None:
    version = _own_version().encode("ascii", "replace")[:255]
    preamble = _MAGIC + _FORMAT.pack(FORMAT) + bytes([len(version)]) + version
    digest = _chained(b"", preamble)
    file.write(preamble + digest)
    for kind, parts in sections:
        raw = b"".join((struct.pack(f"<I{len(parts)}Q", len(parts), *map(len, parts)), *parts))
        packing, body = _packed(raw)
        head = _HEAD.pack(kind, packing, len(body), len(raw))
        head += _CRC.pack(zlib.crc32(head))
        digest = _chained(digest, head, body)
        file.write(head)
        file.write(body)
        file.write(digest)


def _packed(raw: bytes) -> tuple[bytes, bytes]:
    is_long = len(raw) > 2 * _PROBE
    if is_long and len(zlib.compress(memoryview(raw)[:_PROBE], _LEVEL)) > _WORTH_IT * _PROBE:
        return _STORED, raw
    body = zlib.compress(raw, _LEVEL)
    return (_DEFLATED, body) if len(body) < len(raw) else (_STORED, raw)


def _split(body: bytes) -> list[bytes]:
    [n] = struct.unpack_from("<I", body)
    lengths = struct.unpack_from(f"<{n}Q", body, 4)
    parts, at = [], 4 + 8 * n
    for length in lengths:
        parts.append(body[at : at + length])
        at += length
    return parts


def _chained(before: bytes, *parts: bytes) -> bytes:
    state = blake2b(before, digest_size=_DIGEST_SIZE)
    for part in parts:
        state.update(part)
    return state.digest()


def _sync_directory(directory: Path) -> None:
    """The name, too, is on the disk from here on, where directories can be synchronised."""
    with contextlib.suppress(OSError):
        fd = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@functools.cache
def _own_version() -> str:
    try:
        return metadata.version("rush-executor")
    except metadata.PackageNotFoundError:
        return ""
