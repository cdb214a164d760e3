"""What an agent is told by the server: keyspace notifications of heartbeats that expire, and calls.

Fire and forget: a notification is lost on reconnect, may be switched off by others, and is not to be had where CONFIG
is refused. So it only ever says "look now"; whoever watches looks on every ring, after every (re)connect, and on a slow
timer. The hot path does not ride on it (docs/decisions/0003): a task wakes its worker through a bell that is a list,
and an outcome its client, who waits at a stream. On the same connection an agent is told, by a message, that somebody
wants a task of its workers to end.
"""

from __future__ import annotations

import logging
import time
from typing import Any, NamedTuple

import redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from rush_executor._protocol.keys import Keys

__all__ = ["AgentWatch", "Rings", "ensure_notifications"]

logger = logging.getLogger(__name__)

# K: events by key; x: expiry.
_NEEDED = "Kx"
# After so long without a word the other end is asked for one, and after as long again given up: 10 s together.
_QUIET_S = 4.5


def ensure_notifications(client: redis.Redis) -> bool:
    """Switches on the notifications that are missing; what others have set stays.

    Returns:
        Whether expiries will be told. False on servers that refuse CONFIG: then the timer alone finds them.
    """
    try:
        settings: Any = client.config_get("notify-keyspace-events")
        raw = settings.get("notify-keyspace-events", settings.get(b"notify-keyspace-events", ""))
        flags = raw.decode() if isinstance(raw, bytes) else str(raw)
        # A stands for all classes of events, x among them.
        missing = [f for f in _NEEDED if f not in flags and not (f != "K" and "A" in flags)]
        if missing:
            client.config_set("notify-keyspace-events", flags + "".join(missing))
    except RedisError as error:
        logger.warning(
            "the server does not let us switch on keyspace notifications (%s): a lost machine is found by a timer, "
            "some seconds later",
            error,
        )
        return False
    return True


class Rings(NamedTuple):
    """What has rung.

    Attributes:
        has_expired: A heartbeat of the network has expired.
        is_called: Somebody wants this agent to end a task.
    """

    has_expired: bool
    is_called: bool


class AgentWatch:
    """Rings when a heartbeat of the network expires, and when somebody calls this agent.

    Made for a loop over `select`: `fileno` turns readable, then `rang` reads what came. It waits for nothing but a
    connection, and never raises for one that broke: it says "look now" and connects again.

    Args:
        pool: Where the connection comes from.
        keys: Of the network.
        agent_id: The agent.
    """

    def __init__(self, pool: redis.ConnectionPool, keys: Keys, agent_id: str) -> None:
        db = pool.connection_kwargs.get("db", 0)
        self._pattern = f"__keyspace@{db}__:{_escape(keys.heartbeat())}*"
        self._channel = keys.kills(agent_id)
        self._pubsub = redis.Redis(connection_pool=pool).pubsub(ignore_subscribe_messages=True)
        self._is_connected = False
        # When something came last, and since when an answer is waited for.
        self._heard_at = 0.0
        self._asked_at: float | None = None

    def fileno(self) -> int | None:
        """Descriptor to wait on; None while there is no connection."""
        if not self._is_connected:
            return None
        # redis-py has no public name for the socket in all of 6 to 8.
        sock = getattr(self._pubsub.connection, "_sock", None)
        return sock.fileno() if sock is not None else None

    def rang(self) -> Rings:
        """Reads what came; all rings when the watch had been blind."""
        has_expired = is_called = False
        now = time.monotonic()
        try:
            if not self._is_connected:
                self._pubsub.psubscribe(self._pattern)
                self._pubsub.subscribe(self._channel)
                self._is_connected = True
                self._heard_at, self._asked_at = now, None
                has_expired = is_called = True
            while (message := self._pubsub.get_message(timeout=0)) is not None:
                is_called = is_called or message["type"] == "message"
                has_expired = has_expired or message["data"] == b"expired"
                self._heard_at, self._asked_at = now, None
            self._check_line(now)
        except (RedisError, OSError):
            self.close()
            self._is_connected = False
        return Rings(has_expired, is_called)

    def _check_line(self, now: float) -> None:
        """Asks for a sign of life now and then: nobody is told when the other end of a connection vanishes."""
        if self._asked_at is None:
            if now - self._heard_at > _QUIET_S:
                self._pubsub.ping()
                self._asked_at = now
        elif now - self._asked_at > _QUIET_S:
            raise RedisConnectionError("no sign of life")

    def close(self) -> None:
        """Ends the connection."""
        try:
            self._pubsub.close()
        except (RedisError, OSError):
            logger.debug("closing the subscription failed", exc_info=True)


def _escape(text: str) -> str:
    return "".join(f"\\{c}" if c in "*?[]\\^" else c for c in text)
