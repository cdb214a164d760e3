"""Large arrays of joblib's calls: written once to a file, which every worker of this machine maps.

Whoever maps a file copies nothing, and all workers share its memory. Only for executors whose workers are all here: a
worker elsewhere has no such file. Must not know executors and calls. Each backend has one `ArrayFolder`, which its
submitting threads use, and joblib's callbacks.

A folder is removed with its last file, or when the program ends. If the program is killed, the next one that makes a
folder beside it removes it.

This is the place for another way of sending an array once: what the backend asks of it is `lent`, `give_back` and
`forget`.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import shutil
import sys
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from rush_executor._config import joblib_temp_folder
from rush_executor._payload.arrays import OTHER_WAY

__all__ = ["ArrayFile", "ArrayFolder"]

# A file system in memory, which most Linux systems have. joblib's own bound: a smaller one fills up too soon.
_IN_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - the folder made there is private
_LEAST_FREE_BYTES: Final = 2_000_000_000
_PREFIX: Final = "rush-joblib-"
# Locked as long as the program lives.
_LOCK: Final = "lock"


class ArrayFile:
    """The file of one array.

    Attributes:
        path: Where it is.
        n_users: The tasks under way that map it, and one more while its array may be sent again.
    """

    __slots__ = ("n_users", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_users = 1


class ArrayFolder:
    """The files of arrays that are larger than a bound.

    A file goes when its array is gone, or `forget` was called, and no task needs it any more.

    Args:
        root: Where to make the folder; None for a file system in memory that has room, else the system's place for
            temporary files.
        least_bytes: Arrays of more bytes than this are written to files.
        mode: How workers map them: ``r``, ``r+`` or ``c``, as `numpy.memmap` has it.
    """

    def __init__(self, root: str | None, *, least_bytes: float, mode: str) -> None:
        self._root = root
        self._least_bytes = least_bytes
        # The mode that creates a file would empty it.
        self._mode = "r+" if mode == "w+" else mode
        # Reentrant: a collection of garbage may end a call, and so come to `forget`, in the middle of anything.
        self._lock = threading.RLock()
        # By id, arrays that were sent and live; ids of those that do not live any more. A deque, as the collector may
        # run anywhere, too.
        self._files: dict[int, tuple[weakref.ref[Any], ArrayFile]] = {}
        self._gone: deque[int] = deque()
        self._folder: Path | None = None
        self._remove: Callable[[], object] | None = None
        # Files that there are, and that there have been.
        self._n_files = self._n_written = 0
        self._is_wanted = True

    @contextlib.contextmanager
    def lent(self) -> Iterator[list[ArrayFile]]:
        """What is pickled in this block, by this thread, refers to files in place of large arrays.

        Yields:
            A list, which is filled with the files; to be given back when nobody needs the pickle any more.
        """
        used: list[ArrayFile] = []

        def reduce(array: Any) -> Any:
            return self._reduce(array, used)

        token = OTHER_WAY.set(reduce)
        try:
            yield used
        finally:
            OTHER_WAY.reset(token)

    def give_back(self, files: list[ArrayFile]) -> None:
        """A pickle that refers to these files is not needed any more."""
        with self._lock:
            for file in files:
                self._release(file)
            self._release_gone()

    def forget(self) -> None:
        """Arrays that are sent again are written again: their content may have changed."""
        with self._lock:
            known, self._files = self._files, {}
            self._is_wanted = False
            for _, file in known.values():
                self._release(file)
            self._remove_if_unused()

    def _reduce(self, array: Any, used: list[ArrayFile]) -> Any:
        """What `__reduce__` would return for an array in a file; None for an array that is to be pickled."""
        numpy = sys.modules["numpy"]  # where the array has come from
        if array.dtype.hasobject:
            return None
        place = _place_in_memmap(array, numpy)
        if place is not None:
            return numpy.memmap, place
        if array.nbytes <= self._least_bytes:
            return None
        with self._lock:
            self._release_gone()
            file = self._known(array)
            if file is None:
                try:
                    file = self._write(array, numpy)
                except OSError:
                    # No room, for instance.
                    return None
            file.n_users += 1
            used.append(file)
        return numpy.memmap, (str(file.path), array.dtype, self._mode, 0, array.shape, _order(array))

    def _known(self, array: Any) -> ArrayFile | None:
        ref, file = self._files.get(id(array), (None, None))
        return file if ref is not None and ref() is array else None

    def _write(self, array: Any, numpy: Any) -> ArrayFile:
        if self._folder is None:
            self._folder, lock = _make_folder(self._root)
            self._remove = weakref.finalize(self, _remove_folder, self._folder, lock, os.getpid())
        self._is_wanted = True
        self._n_written += 1
        path = self._folder / f"array-{self._n_written}"
        # `tofile` writes in C order, and element by element what does not lie in one piece.
        content = array.T if _order(array) == "F" else numpy.ascontiguousarray(array)
        try:
            content.tofile(path)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        self._n_files += 1
        file = ArrayFile(path)
        key, gone = id(array), self._gone
        self._files[key] = weakref.ref(array, lambda _: gone.append(key)), file
        return file

    def _release_gone(self) -> None:
        while self._gone:
            key = self._gone.popleft()
            ref, file = self._files.get(key, (None, None))
            # The id may be another array's by now.
            if ref is not None and file is not None and ref() is None:
                del self._files[key]
                self._release(file)

    def _release(self, file: ArrayFile) -> None:
        file.n_users -= 1
        if not file.n_users:
            file.path.unlink(missing_ok=True)
            self._n_files -= 1
            self._remove_if_unused()

    def _remove_if_unused(self) -> None:
        if self._remove is not None and not self._n_files and not self._is_wanted:
            self._remove()
            self._folder = self._remove = None


def _order(array: Any) -> str:
    return "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"


def _place_in_memmap(array: Any, numpy: Any) -> tuple[Any, ...] | None:
    """Arguments of `numpy.memmap` for an array that shows a file already, in one piece; None for any other."""
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        return None
    owner = array
    while isinstance(owner, numpy.ndarray) and not isinstance(owner.base, mmap.mmap):
        owner = owner.base
    # What was written to a private copy is not in the file.
    if not isinstance(owner, numpy.memmap) or not array.nbytes or owner.mode == "c":
        return None
    if owner.filename is None or not Path(owner.filename).exists():
        return None
    offset = owner.offset + array.ctypes.data - owner.ctypes.data
    mode = "r+" if owner.mode == "w+" else owner.mode
    return str(owner.filename), array.dtype, mode, offset, array.shape, _order(array)


def _make_folder(root: str | None) -> tuple[Path, int]:
    """Makes a folder that only this user may enter; returns it with a descriptor that holds its lock."""
    root = root or joblib_temp_folder()
    if root is None and _has_room(_IN_MEMORY):
        # Where nobody may write: as without it.
        with contextlib.suppress(OSError):
            return _make_folder(str(_IN_MEMORY))
    parent = Path(root or tempfile.gettempdir())
    for other in parent.glob(f"{_PREFIX}*"):
        _remove_if_abandoned(other)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    # It gets its name when it is locked: otherwise somebody could take it for abandoned before.
    nameless = folder / "nameless"
    lock = os.open(nameless, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    nameless.rename(folder / _LOCK)
    return folder, lock


def _remove_if_abandoned(folder: Path) -> None:
    """Removes the folder of a program that was killed: nobody holds its lock."""
    # Another user's; just made; removed at this moment; locked.
    with contextlib.suppress(OSError):
        lock = os.open(folder / _LOCK, os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def _remove_folder(folder: Path, lock: int, owner_pid: int) -> None:
    # A fork of the program may come here at its exit, too.
    if os.getpid() == owner_pid:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _has_room(path: Path) -> bool:
    try:
        status = os.statvfs(path)
    except OSError:
        return False
    return status.f_bsize * status.f_bavail > _LEAST_FREE_BYTES
