"""The folder that machines share, where a network may keep payloads that are too large for its records.

On the server a blob is then the path of a file. Files are written before their path is, under another name until they
are complete, and deleted with the tasks that they belong to, or when the network is reset: what a process that was
killed has left lies there until then.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from rush_executor._protocol.ids import new_id
from rush_executor.errors import PayloadError

__all__ = ["Folder", "read_file"]

logger = logging.getLogger(__name__)

# Read in such pieces, so that a file can be copied without being in memory.
_PIECE: Final = 16 * 1024 * 1024


class Folder:
    """A network's own part of the shared folder.

    Args:
        root: The shared folder; all machines have it under this path.
        network_id: The network.
    """

    def __init__(self, root: str, network_id: str) -> None:
        self.root = root
        # The name of a network may be none for a file.
        name = hashlib.blake2b(network_id.encode(), digest_size=8).hexdigest()
        self._path = Path(root) / f"rush-{name}"

    def write(self, blob_id: str, payload: bytes) -> bytes:
        """Writes a file and returns its path; empty when that cannot be done here.

        Args:
            blob_id: Its name.
            payload: What goes into it.
        """
        file = self._path / blob_id
        draft = self._path / f".{blob_id}.{new_id()}.part"
        try:
            self._path.mkdir(exist_ok=True)
            draft.write_bytes(payload)
            draft.replace(file)
        except OSError as error:
            # Full, or not there on this machine. The server may have the room.
            logger.warning("%d bytes cannot be kept in %s, and go to the server: %s", len(payload), self.root, error)
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            return b""
        return os.fsencode(file)

    def delete(self, blob_ids: Iterable[str]) -> None:
        """Deletes the files of these blobs, where they have one."""
        for blob_id in blob_ids:
            with contextlib.suppress(OSError):
                (self._path / blob_id).unlink(missing_ok=True)

    def delete_all(self) -> None:
        """Deletes all of the network's files."""
        with contextlib.suppress(OSError):
            self.delete(path.name for path in self._path.iterdir())
            self._path.rmdir()


def read_file(path: bytes) -> Iterator[bytes]:
    """Reads a file piece by piece.

    Raises:
        PayloadError: It cannot be read.
    """
    name = os.fsdecode(path)
    try:
        with Path(name).open("rb") as file:
            while piece := file.read(_PIECE):
                yield piece
    except OSError as error:
        raise PayloadError(
            f"a large value was kept in a file that cannot be read here: {error}. The folder that was given as "
            "large_objects_path must be there under the same path on every machine"
        ) from error
