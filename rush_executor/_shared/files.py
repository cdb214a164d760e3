"""Files in the directory of a client: written once, read without a copy, and written again.

```
 in/    arguments, functions, scattered objects: written by the client
 out/   results: written by workers
 held/  results that the client has read, and on which there are arrays
 idle/  files that nobody needs any more: for whoever writes next
 far/   of an agent: what its workers have fetched from the server (`cache.py`)
```

Any process of the machine may write and read, without a word to the others:

- A file is complete before anybody hears of it, and a name is used once.
- Who reads a file holds a shared lock on it (`flock`). The lock goes with the mapping: a mapping has a descriptor of
  its own, and the kernel gives the lock back when the last one is closed, be it because the last array is gone, or the
  process.
- The client puts aside what is not needed, whether others still read it or not. Who takes it from there must get the
  exclusive lock, so nobody writes what somebody else looks at.

Files are recycled because of their pages: to have the kernel find new ones takes several times as long as to copy into
them.

Mappings are private: a task may write to its arguments, as it could to a copy, and nobody else sees it. What writes to
a file is `pwrite` and not a mapping: it reports a full file system, where a mapping would end the process with SIGBUS.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import io
import math
import mmap
import os
import re
import resource
import secrets
import stat
import sys
import weakref
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final

__all__ = [
    "ARGUMENTS",
    "FETCHED",
    "FOLDERS",
    "HELD",
    "IDLE",
    "RESULTS",
    "ROOT",
    "OpenFile",
    "Piece",
    "SharedFiles",
    "directory_of",
    "remove_file",
    "room_in",
    "size_of_idle",
    "write_all",
]

ROOT: Final = "/dev/shm"  # noqa: S108 - the directories in there are private
_PREFIX: Final = "rush-executor-"
_OWNER_ID: Final = re.compile(r"[0-9A-Za-z]+")
_PLACE: Final = re.compile(r"(in|out|held|far)/[0-9A-Za-z:-]+\.[0-9a-f]+")

ARGUMENTS: Final = "in"
RESULTS: Final = "out"
HELD: Final = "held"
IDLE: Final = "idle"
FETCHED: Final = "far"
FOLDERS: Final = (ARGUMENTS, RESULTS, HELD, IDLE, FETCHED)

# Where a piece of a file stands, and the piece.
Piece = tuple[int, bytes | memoryview]

_PRIVATE_DIRECTORY: Final = stat.S_IFDIR | 0o700
# A worker copies buffers up to here, and maps larger ones. To map costs next to nothing, but then each page costs when
# it is first touched, and much more when it is first written to; the memory for a copy is most often there from the
# last task.
_MAPPED_FROM: Final = 4 << 20
# Each mapping has a descriptor, of which processes have some hundreds: further buffers are copied, whatever their size.
_MOST_MAPPED: Final = 256
# So much of memory that is written for the first time is worth the system call that asks for large pages.
_LARGE: Final = 16 << 20
_MADV_HUGEPAGE: Final = 14
# How many idle files are tried before a new one is made.
_MOST_TRIED: Final = 8
_MOST_LISTED: Final = 64
# Buffers that are smaller are read together.
_SMALL: Final = 16 << 10
_READ_AHEAD: Final = 64 << 10

# The mappings of this process; the bound is the process's.
_mapped: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


class SharedFiles:
    """The files of one client, as a process of its machine sees them.

    Args:
        owner_id: The client.
        root: Where directories of owners are.

    Attributes:
        path: The client's directory.
    """

    def __init__(self, owner_id: str, root: str = ROOT) -> None:
        self.path = directory_of(owner_id, root)

    def is_there(self) -> bool:
        """Whether the directory exists here, belongs to this user, and is private: then the client is here, too."""
        try:
            status = os.lstat(self.path)
        except OSError:
            return False
        return status.st_uid == os.geteuid() and status.st_mode == _PRIVATE_DIRECTORY

    def keep_argument(self, stem: str, pieces: Iterable[Piece], size: int) -> str:
        """Writes what the client sends; see `write`."""
        return self.write(ARGUMENTS, stem, pieces, size)

    def keep_result(self, stem: str, pieces: Iterable[Piece], size: int) -> str:
        """Writes what a worker sends; see `write`."""
        return self.write(RESULTS, stem, pieces, size)

    def write(self, folder: str, stem: str, pieces: Iterable[Piece], size: int) -> str:
        """Writes a file.

        Args:
            folder: `ARGUMENTS` or `RESULTS`.
            stem: What its name begins with.
            pieces: What is in it, and where.
            size: Where the last piece ends.

        Returns:
            Its place: folder, slash, name. Empty where it cannot be written: no directory here, or no room.
        """
        place = f"{folder}/{stem}.{secrets.token_hex(4)}"
        if not _PLACE.fullmatch(place) or not self.is_there():
            return ""
        path = f"{self.path}/{place}"
        try:
            fd = self._reuse(path, size)
            if fd < 0:
                if not self._has_room(size):
                    return ""
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError:
            return ""
        try:
            for offset, piece in pieces:
                write_all(fd, piece, offset)
            # To close it is not enough: a child that another thread forks just now has the descriptor, too.
            fcntl.flock(fd, fcntl.LOCK_UN)
        except OSError:
            # Full, most likely: somebody else was quicker.
            remove_file(path)
            return ""
        except BaseException:
            remove_file(path)
            raise
        finally:
            os.close(fd)
        return place

    def open_place(self, place: str, size: int = 0) -> OpenFile:
        """Opens a file for reading.

        Args:
            place: From `write`.
            size: Bytes that it must have at least.

        Raises:
            OSError: It is not there (any more).
        """
        fd, file_size = self.open_locked(place, size)
        return OpenFile(fd, file_size, mapped_from=_MAPPED_FROM)

    def open_locked(self, place: str, size: int) -> tuple[int, int]:
        """As `open_place`; returns a descriptor with the shared lock, and how large the file is."""
        if not _PLACE.fullmatch(place):
            raise FileNotFoundError(place)
        path = f"{self.path}/{place}"
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            status = os.fstat(fd)
            # Between the first line and the lock somebody may have recycled it.
            if os.lstat(path).st_ino != status.st_ino or status.st_uid != os.geteuid() or status.st_size < size:
                raise FileNotFoundError(path)
        except BlockingIOError:
            os.close(fd)
            raise FileNotFoundError(path) from None
        except BaseException:
            os.close(fd)
            raise
        return fd, status.st_size

    def _reuse(self, path: str, size: int) -> int:
        """Gives an idle file another name; returns its descriptor, with the exclusive lock, or -1."""
        n_tried = 0
        with os.scandir(f"{self.path}/{IDLE}") as entries:
            names = [entry.name for entry in islice(entries, _MOST_LISTED)]
        for name in names:
            if n_tried < _MOST_TRIED and _fits(size_of_idle(name), size):
                n_tried += 1
                fd = _take(f"{self.path}/{IDLE}/{name}", path)
                if fd >= 0:
                    return fd
        return -1

    def _has_room(self, size: int) -> bool:
        """Whether there is room for a file, and as much again for others: a container may have 64 MB in all."""
        if room_in(self.path) >= 2 * size:
            return True
        self._drop_idle()
        return room_in(self.path) >= 2 * size

    def _drop_idle(self) -> None:
        with os.scandir(f"{self.path}/{IDLE}") as entries:
            for entry in entries:
                remove_file(entry.path)


class OpenFile:
    """A file that is read. What is mapped of it outlives this object.

    Args:
        fd: Of the file, with the shared lock.
        size: Its size.
        mapped_from: How large a buffer must be to be mapped and not copied.
        owner: What the mappings hold.
    """

    def __init__(self, fd: int, size: int, *, mapped_from: int, owner: object = None) -> None:
        self._fd = fd
        self._size = size
        self._mapped_from = mapped_from
        self._owner = owner

    def close(self) -> None:
        """Closes it; it stays locked as long as something of it is mapped."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        self._owner = None

    def stream(self) -> io.BufferedReader:
        """The file as a stream, from its start; to be used before this object is closed."""
        os.lseek(self._fd, 0, os.SEEK_SET)
        return io.BufferedReader(_Reader(self._fd, closefd=False), _READ_AHEAD)

    def buffers(self, places: Iterable[tuple[int, int]]) -> list[bytearray | mmap.mmap]:
        """Parts of the file as memory that may be written to: large ones mapped, the others copied.

        Args:
            places: Offset and length of each.

        Raises:
            ValueError: There is no such part.
        """
        found: list[bytearray | mmap.mmap] = []
        ahead, ahead_at = memoryview(b""), 0
        for offset, length in places:
            if offset + length > self._size:
                raise ValueError("the file is too short")
            if length >= _SMALL:
                found.append(self._map(offset, length) or self._copy(offset, length))
                continue
            start = offset - ahead_at
            if not 0 <= start <= len(ahead) - length:
                ahead, ahead_at, start = memoryview(os.pread(self._fd, _READ_AHEAD, offset)), offset, 0
            found.append(bytearray(ahead[start : start + length]))
        return found

    def _map(self, offset: int, length: int) -> mmap.mmap | None:
        if length < self._mapped_from or offset % mmap.ALLOCATIONGRANULARITY or len(_mapped) >= _most_mapped():
            return None
        try:
            mapped = _Mapping(
                self._fd, length, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE, offset=offset
            )
        except OSError:
            # No descriptor, or no address space, is left: a copy needs neither.
            return None
        mapped.owner = self._owner
        _mapped.add(mapped)
        return mapped

    def _copy(self, offset: int, length: int) -> bytearray:
        copy = bytearray(length)
        n_done = 0
        with memoryview(copy) as view:
            while n_done < length:
                n_read = os.preadv(self._fd, [view[n_done:]], offset + n_done)
                if not n_read:
                    raise ValueError("the file is too short")
                n_done += n_read
        return copy


class _Mapping(mmap.mmap):
    """A mapping that something else lives with."""

    owner: object = None


class _Reader(io.FileIO):
    """Reads large bytes objects faster: they are memory that was never touched."""

    def readinto(self, buffer: Any) -> int:
        if len(buffer) >= _LARGE:
            _advise_large_pages(buffer)
        return super().readinto(buffer)


def directory_of(owner_id: str, root: str = ROOT) -> str:
    """The directory of a client's files.

    Raises:
        ValueError: The id is none that could be a name.
    """
    if not _OWNER_ID.fullmatch(owner_id):
        raise ValueError(f"{owner_id!r} owns no files")
    return f"{root}/{_PREFIX}{owner_id}"


def size_of_idle(name: str) -> int:
    """The size of an idle file, by its name."""
    return int(name.partition("-")[2])


def _take(old: str, new: str) -> int:
    """Takes a file that is not needed any more, under another name.

    Returns:
        Its descriptor, with the exclusive lock; -1 when it is still read, or somebody else was quicker.
    """
    try:
        fd = os.open(old, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return -1
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(old, new)
    except OSError:
        os.close(fd)
        return -1
    return fd


def _fits(file_size: int, size: int) -> bool:
    """Whether a file is neither much too large, nor would need more new pages than it has."""
    return size // 2 <= file_size <= 2 * size


def room_in(path: str) -> float:
    """Bytes that can be written there."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize if status.f_blocks else math.inf


def write_all(fd: int, piece: bytes | memoryview, offset: int) -> None:
    """Writes all of it, there.

    Raises:
        OSError: There is no room.
    """
    n_done = os.pwrite(fd, piece, offset)
    if n_done < len(piece):
        # One call takes no more than 2 GB.
        with memoryview(piece) as view:
            while n_done < len(piece):
                n_done += os.pwrite(fd, view[n_done:], offset + n_done)


def remove_file(path: str) -> None:
    """Removes a file; no harm if it is not there."""
    with suppress(OSError):
        Path(path).unlink()


@functools.cache
def _most_mapped() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_MAPPED if soft == resource.RLIM_INFINITY else min(_MOST_MAPPED, soft // 4)


def _advise_large_pages(buffer: Any) -> None:
    """Asks for memory in large pages, of which the kernel has to find fewer; as NumPy does for its arrays."""
    if sys.platform == "linux":
        page = mmap.PAGESIZE
        start = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        first = -(-start // page) * page
        length = (start + len(buffer)) // page * page - first
        # Refused where the kernel has none: then it is as it would have been.
        _libc().madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), _MADV_HUGEPAGE)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
