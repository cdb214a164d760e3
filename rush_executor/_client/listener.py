"""The receiving side: a thread that reads the inbox and resolves Futures.

Started by the session. It waits at the client's inbox and reads what comes (see `Downlink`). An outcome is trimmed from
the inbox only after its Future was resolved, so a lost reply loses nothing. It ends when the session drains and nothing
is pending, or when the network is lost; then it takes everything down, whoever has asked for it.

It is also the one who joins the network again when the server has lost its data: the inbox is a new one then, to be
read from its start.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from rush_executor._ledger.client import START, Downlink
from rush_executor._ledger.connection import NetworkGone, Refused
from rush_executor._protocol.records import FAILED_BLOB_TAG, FINISHED_BLOB_TAG
from rush_executor.errors import NetworkLostError

__all__ = ["Listener"]

logger = logging.getLogger(__name__)

# What was resolved is memory of the server until it is trimmed. Doing it with every read would cost more than reading.
_TRIM_AFTER: Final = 100
_TRIM_AFTER_BYTES: Final = 1 << 20
_TRIM_EVERY_S: Final = 0.5


class Listener:
    """Resolves Futures.

    Args:
        downlink: The inbox.
        resolve: Called with a task's id and its outcome: tag, and body, or None where the body is gone; must
            not raise.
        is_done: Whether the thread may end.
        n_taken: Number of the last batch that the server is known to have taken.
        rejoin: Called when the server does not know the network any more; may raise.
        when_lost: Called when the network is gone for good.
        on_tick: Called after every read, at least about once a second; may raise NetworkGone.
        take_down: Called once, last.
    """

    def __init__(
        self,
        downlink: Downlink,
        *,
        resolve: Callable[[str, bytes, bytes | None], None],
        is_done: Callable[[], bool],
        n_taken: Callable[[], int],
        rejoin: Callable[[NetworkGone], None],
        when_lost: Callable[[BaseException], None],
        on_tick: Callable[[], None],
        take_down: Callable[[], None],
    ) -> None:
        self._downlink = downlink
        self._resolve = resolve
        self._is_done = is_done
        self._n_taken = n_taken
        self._rejoin = rejoin
        self._when_lost = when_lost
        self._on_tick = on_tick
        self._take_down = take_down
        self.thread = threading.Thread(target=self._run, name="rush-listener", daemon=True)

    def _run(self) -> None:
        try:
            self._listen_on()
        except (NetworkGone, NetworkLostError, Refused) as error:
            self._when_lost(error)
        except BaseException as error:
            # A fault of ours must not leave Futures that nobody will ever resolve.
            logger.exception("the listener failed")
            self._when_lost(error)
        finally:
            self._take_down()

    def _listen_on(self) -> None:
        """Listens, in one network after the other if need be."""
        while True:
            try:
                self._listen()
            except NetworkGone as error:
                if not self._is_done():
                    self._rejoin(error)
                    continue
            return

    def _listen(self) -> None:
        position = START
        done_blobs: list[str] = []
        n_read = n_bytes = 0
        trim_at = 0.0
        while not self._is_done():
            now = time.monotonic()
            trim = now >= trim_at or n_read >= _TRIM_AFTER or n_bytes >= _TRIM_AFTER_BYTES or bool(done_blobs)
            if trim:
                n_read = n_bytes = 0
                trim_at = now + _TRIM_EVERY_S
            outcomes, position = self._downlink.receive(
                position, trim=trim, n_taken=self._n_taken(), done_blobs=done_blobs
            )
            done_blobs = []
            for task_id, outcome in zip(outcomes[::2], outcomes[1::2], strict=True):
                if not outcome:
                    # Only to wake us: see whether we are done.
                    continue
                n_bytes += len(outcome)
                tag, body = outcome[:1], outcome[1:]
                if tag in (FINISHED_BLOB_TAG, FAILED_BLOB_TAG):
                    blob_id = body.decode()
                    self._resolve(task_id.decode(), tag, self._fetch(blob_id))
                    done_blobs.append(blob_id)
                else:
                    self._resolve(task_id.decode(), tag, body)
            n_read += len(outcomes) // 2
            # Not kept while waiting for the next ones.
            outcomes, outcome, body = [], b"", b""
            self._on_tick()
        self._downlink.receive(position, done_blobs=done_blobs, wait=False)

    def _fetch(self, blob_id: str) -> bytes | None:
        try:
            return self._downlink.read_blob(blob_id)
        except KeyError:
            return None
