"""The directory in shared memory that belongs to a process, and goes when that goes, however it ends.

Its owner holds a lock on it (`flock`), which the kernel gives back when the owner is gone. In peace the owner removes
it. When the owner was killed, whoever is told does so: its agent, by `remove_directory`. Where nobody was left to be
told, whoever makes a directory next finds one of this user's that nobody has locked, and removes it.

The owner alone says which files are not needed any more. It may do so in any thread, at any moment: mostly because the
last reference to an object is gone. So that takes no lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable
from typing import Final

from rush_executor._shared.files import (
    FOLDERS,
    HELD,
    IDLE,
    RESULTS,
    ROOT,
    OpenFile,
    SharedFiles,
    directory_of,
    remove_file,
    size_of_idle,
)

__all__ = ["OwnedFile", "SharedDirectory", "remove_directory", "sweep_directories"]

# Also those on their way out, should their remover have been killed.
_NAME: Final = re.compile(r"rush-executor-[0-9A-Za-z]+(\.gone-[0-9a-f]+)?")
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_MOST_TRIES: Final = 5

# Idle files are kept up to this number and so many bytes, and for so long.
_MOST_IDLE: Final = 512
_MOST_IDLE_BYTES: Final = 1 << 30
_IDLE_S: Final = 1.0
# A client maps results from here on. They may stay for long, and then a copy would be one to new memory.
_MAPPED_FROM: Final = 256 << 10


class SharedDirectory(SharedFiles):
    """A directory of this process's own, for others of this user on this machine. Made by `make` or `join`."""

    def __init__(self, owner_id: str, root: str = ROOT) -> None:
        super().__init__(owner_id, root)
        self._lock_fd = -1
        # Of the idle files, as far as is known: others take some, and `trim` counts anew.
        self._n_idle = self._idle_bytes = 0

    @classmethod
    def make(cls, owner_id: str, root: str = ROOT) -> SharedDirectory | None:
        """Makes and locks it, and removes those of owners that are gone.

        Returns:
            The directory; None where there is no shared memory in the form of a file system.
        """
        if not os.access(root, os.W_OK | os.X_OK):
            return None
        sweep_directories(root)
        made = cls(owner_id, root)
        try:
            made._create()
        except OSError:
            made.remove()
            return None
        except BaseException:  # Ctrl-C, too
            made.remove()
            raise
        return made

    @classmethod
    def join(cls, owner_id: str, root: str) -> SharedDirectory:
        """Makes a directory that several processes hold, or becomes one of them; removes those that nobody holds.

        Raises:
            OSError: It cannot be made there.
        """
        sweep_directories(root)
        joined = cls(owner_id, root)
        joined._create()
        return joined

    def own(self, place: str) -> OwnedFile:
        """An object with which the file goes."""
        return OwnedFile(self, place)

    def open_place(self, place: str, size: int = 0) -> OpenFile:
        """As in `SharedFiles`; a result is then the client's, and is kept as long as there is an array on it."""
        if not place.startswith(f"{RESULTS}/"):
            return super().open_place(place, size)
        held = f"{HELD}/{place.rpartition('/')[2]}"
        os.rename(f"{self.path}/{place}", f"{self.path}/{held}")
        owner = self.own(held)
        return OpenFile(*self.open_locked(held, size), mapped_from=_MAPPED_FROM, owner=owner)

    def recycle(self, place: str) -> None:
        """Nobody needs this file any more, though some may still read it; no harm if it is not there."""
        if self._lock_fd < 0:
            # It was removed, or this is a fork, and it is the parent's.
            return
        path, now = f"{self.path}/{place}", time.monotonic_ns()
        with contextlib.suppress(OSError):
            size = os.lstat(path).st_size
            if self._has_idle_room(size):
                os.rename(path, f"{self.path}/{IDLE}/{now:020d}-{size}")
                self._n_idle += 1
                self._idle_bytes += size
            else:
                remove_file(path)

    def trim(self) -> None:
        """Removes files that have been idle for a while; to be called once a second or so."""
        if self._n_idle:
            self._trim_idle(time.monotonic() - _IDLE_S)

    def sweep(self, is_needed: Callable[[str], bool]) -> None:
        """Removes results that nobody will ask for: of workers that were killed, or came too late.

        Args:
            is_needed: Given what the name of a result begins with, whether it may be asked for.
        """
        folder = f"{self.path}/{RESULTS}"
        for name in _names(folder):
            if not is_needed(name.rpartition(".")[0]):
                remove_file(f"{folder}/{name}")

    def remove(self) -> None:
        """Removes it with all that is in it; may be called twice. What is mapped lives as long as its mapping."""
        _remove(self.path)
        self.disown()

    def disown(self) -> None:
        """In a forked child: lets go of the parent's lock."""
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            os.close(fd)

    def _has_idle_room(self, size: int) -> bool:
        for _ in range(2):
            if self._n_idle < _MOST_IDLE and self._idle_bytes + size <= _MOST_IDLE_BYTES:
                return True
            # Workers may have taken some since they were counted.
            self._trim_idle(-math.inf)
        return False

    def _trim_idle(self, before: float) -> None:
        left = []
        for name in _names(f"{self.path}/{IDLE}"):
            if int(name.partition("-")[0]) / 1e9 < before:
                remove_file(f"{self.path}/{IDLE}/{name}")
            else:
                left.append(size_of_idle(name))
        self._n_idle, self._idle_bytes = len(left), sum(left)

    def _create(self) -> None:
        for _ in range(_MOST_TRIES):
            with contextlib.suppress(FileNotFoundError):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(self.path, 0o700)
                self._lock_fd = os.open(self.path, _OPEN_DIRECTORY)
                fcntl.flock(self._lock_fd, fcntl.LOCK_SH)
                # Before it was locked, somebody may have taken it for one that is left over.
                if self.is_there() and os.path.samestat(os.fstat(self._lock_fd), os.lstat(self.path)):
                    for folder in FOLDERS:
                        with contextlib.suppress(FileExistsError):
                            os.mkdir(f"{self.path}/{folder}", 0o700)
                    return
            self.disown()
        raise OSError(f"{self.path} is not to be had")


class OwnedFile:
    """A file that is recycled when nothing refers to this object any more.

    Args:
        directory: Where it is.
        place: Its place there.
    """

    __slots__ = ("_directory", "_place")

    def __init__(self, directory: SharedDirectory, place: str) -> None:
        self._directory = directory
        self._place = place

    def __del__(self) -> None:
        self._directory.recycle(self._place)


def remove_directory(owner_id: str, root: str = ROOT) -> None:
    """Removes the directory of an owner that is gone, if there is one."""
    _remove(directory_of(owner_id, root))


def sweep_directories(root: str = ROOT) -> None:
    """Removes the directories of owners that are gone."""
    for name in _names(root):
        if not _NAME.fullmatch(name):
            continue
        path = f"{root}/{name}"
        with contextlib.suppress(OSError):
            if os.lstat(path).st_uid != os.geteuid():
                continue
            fd = os.open(path, _OPEN_DIRECTORY)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)
            finally:
                os.close(fd)


def _remove(path: str) -> None:
    # Away first: nobody finds the way in any more, and makes another file while this goes on.
    away = f"{path.rpartition('.gone-')[0] or path}.gone-{secrets.token_hex(4)}"
    with contextlib.suppress(OSError):
        os.rename(path, away)
        shutil.rmtree(away, ignore_errors=True)


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
