"""The large contents of one client, as a worker finds them: in shared memory, or stored in chunks at the server."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

from rush_executor._payload import ContentFile, ContentInMemory, Piece, decompress, read_place_of_chunks
from rush_executor._protocol.records import chunk_name
from rush_executor._shared.cache import HostCache
from rush_executor._shared.files import FETCHED, SharedFiles

__all__ = ["TaskFiles"]

logger = logging.getLogger(__name__)


class TaskFiles:
    """Opens what a client has sent, and keeps what it is sent.

    Args:
        client_id: The client.
        cache: Of this machine.
        fetch: Returns what is stored under a name for a client, given both; KeyError if it is gone.
        keeps_results: Whether results may be left with the client: not where they outlive it.
    """

    def __init__(
        self, client_id: str, cache: HostCache, fetch: Callable[[str, str], bytes], *, keeps_results: bool
    ) -> None:
        self._client_id = client_id
        self._shared = SharedFiles(client_id)
        self._cache = cache
        self._fetch = fetch
        self._keeps_results = keeps_results

    def open_place(self, place: str, size: int) -> ContentFile:
        """Opens a content.

        Raises:
            OSError: It is not there (any more).
            KeyError: It is gone from the server.
        """
        folder, _, name = place.partition("/")
        if folder != FETCHED:
            return self._shared.open_place(place, size)
        ident, n_chunks, is_packed = read_place_of_chunks(place)

        def chunks() -> Iterator[bytes]:
            for number in range(n_chunks):
                chunk = self._fetch(self._client_id, chunk_name(ident, number))
                yield decompress(chunk) if is_packed else chunk

        try:
            return self._cache.open(f"{self._client_id}-{name}", size, chunks)
        except OSError as error:
            logger.debug("%s is not kept for other workers here: %s", place, error)
            return ContentInMemory(b"".join(chunks()))

    def keep_result(self, stem: str, pieces: Sequence[Piece], size: int) -> str:
        """Keeps a result; returns its place, or nothing where it cannot be kept."""
        return self._shared.keep_result(stem, pieces, size) if self._keeps_results else ""
