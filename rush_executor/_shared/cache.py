"""What this machine has fetched of scattered objects and large functions, for all workers of an agent.

A worker that needs what is not here fetches it, while the others wait for it. The directory is made by the first
worker that fetches; all that do hold it, and their agent removes it in the end. Should the agent be killed, too,
whoever makes a directory next finds that nobody holds this one.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from rush_executor._shared.directory import SharedDirectory, remove_directory
from rush_executor._shared.files import FETCHED, ROOT, OpenFile, room_in, write_all

__all__ = ["HostCache", "remove_cache"]

# What nobody has opened for so long goes when something else is fetched.
_UNUSED_S: Final = 600.0


class HostCache:
    """Fetches what is not here yet.

    Args:
        agent_id: The agent whose workers share it.
    """

    def __init__(self, agent_id: str) -> None:
        self._agent_id = agent_id
        self._directory: SharedDirectory | None = None

    def open(self, name: str, size: int, fetch: Callable[[], Iterable[bytes]]) -> OpenFile:
        """Opens a content.

        Args:
            name: What it is called by everybody here.
            size: How large it is.
            fetch: Gives its chunks.

        Raises:
            OSError: It cannot be kept here.
        """
        if self._directory is None:
            self._directory = SharedDirectory.join(self._agent_id, _root())
        files, place = self._directory, f"{FETCHED}/{name}"
        path = Path(files.path, place)
        while True:
            with suppress(FileNotFoundError):
                # For `_make_room`.
                os.utime(path)
                return files.open_place(place)
            with _lock(f"{path}.lock") as is_current:
                # Otherwise whoever had it has fetched this, or failed to.
                if is_current:
                    with suppress(FileNotFoundError):
                        return files.open_place(place)
                    self._fetch(path, size, fetch)
                    return files.open_place(place)

    def _fetch(self, path: Path, size: int, fetch: Callable[[], Iterable[bytes]]) -> None:
        _make_room(path.parent, size)
        part = path.with_name(f"{path.name}.part")
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            at = 0
            for chunk in fetch():
                write_all(fd, chunk, at)
                at += len(chunk)
            part.rename(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)


@contextmanager
def _lock(path: str) -> Iterator[bool]:
    """Holds a lock, and removes its file in the end.

    Yields:
        Whether it is still the one that others ask for. One that was waited for has been removed by who had it.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # Given back by the kernel, should whoever has it be killed.
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            is_current = os.path.samestat(os.stat(path), os.fstat(lock))
        except FileNotFoundError:
            is_current = False
        try:
            yield is_current
        finally:
            if is_current:
                with suppress(FileNotFoundError):
                    os.unlink(path)
    finally:
        # Also where a child that was forked meanwhile has the descriptor, too.
        fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)


def remove_cache(agent_id: str) -> None:
    """Removes what the workers of an agent have fetched."""
    remove_directory(agent_id, _root())


def _make_room(folder: Path, size: int) -> None:
    """Removes what was not used for long; the rest, too, where there is no room. What is mapped stays."""
    now = time.time()
    for unused_s in (_UNUSED_S, 0.0):
        for path in folder.iterdir():
            with suppress(OSError):
                if path.suffix not in (".lock", ".part") and now - path.stat().st_mtime >= unused_s:
                    path.unlink()
        if room_in(str(folder)) >= 2 * size:
            return
    raise OSError(f"no room for {size} bytes in {folder}")


def _root() -> str:
    return ROOT if os.access(ROOT, os.W_OK | os.X_OK) else tempfile.gettempdir()
