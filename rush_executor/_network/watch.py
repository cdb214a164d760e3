"""The manager's watch: finds workers whose machine was lost, without anybody having to ask."""

from __future__ import annotations

import logging
import threading
import time

from rush_executor._config import NetworkConfig
from rush_executor._ledger.agent import Reaper
from rush_executor._ledger.connection import Channel, NetworkGone, Refused, open_pool
from rush_executor._protocol.keys import Keys
from rush_executor.errors import NetworkLostError

__all__ = ["Watch"]

logger = logging.getLogger(__name__)


class Watch:
    """A thread that looks for agents without a heartbeat, with a connection of its own.

    Args:
        config: The network.
        keys: Of the network.
    """

    def __init__(self, config: NetworkConfig, keys: Keys) -> None:
        self._stopping = threading.Event()
        self._doubt_s = config.doubt_s
        self._pool = open_pool(config.url)
        # One try each: the next look is the next try.
        self._channel = Channel(self._pool, reconnect_timeout_s=0.0, stopping=self._stopping)
        self._reaper = Reaper(self._channel, keys, doubt_s=config.doubt_s)
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="rush-watch", daemon=True)
        self._thread.start()

    def look_closely(self) -> None:
        """Looks now; where there is a suspicion, for as long as it takes to know."""
        for _ in range(2):
            if not self._look():
                return
            time.sleep(self._doubt_s)
        self._look()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopping.set()
        if self._thread is not threading.current_thread():
            self._thread.join()
        self._pool.disconnect()

    def _run(self) -> None:
        # Nobody tells of a heartbeat that has expired: a look costs one trip.
        while not self._stopping.wait(self._reaper.patience_s):
            self._look()

    def _look(self) -> bool:
        """Whether somebody is suspected."""
        with self._lock:
            try:
                self._reaper.look()
            except (NetworkLostError, NetworkGone, Refused) as error:
                logger.debug("no look at the workers' heartbeats: %s", error)
                return False
            return self._reaper.has_suspects
