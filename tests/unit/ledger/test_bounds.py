"""How long things may take that the documentation gives a number: from the constants as they are."""

from __future__ import annotations

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from rush_executor._agent import supervisor
from rush_executor._ledger import connection
from rush_executor._ledger.connection import BLOCK_S, IDLE_BLOCK_S, REPLY_TIMEOUT_S, open_pool
from rush_executor._ledger.notifications import AgentWatch
from rush_executor._protocol.keys import Keys

# A half-open connection is found within so many seconds, whoever it is that waits at it.
FOUND_S = 10.0
URL = "redis://127.0.0.1:1"


def test_who_waits_for_a_bell() -> None:
    """Clients and workers: the longest wait that the server is asked for, and the time for a late reply."""
    settings = open_pool(URL).connection_kwargs
    assert max(BLOCK_S, IDLE_BLOCK_S) + REPLY_TIMEOUT_S <= settings["socket_timeout"] < FOUND_S
    assert settings["socket_connect_timeout"] < FOUND_S


def test_what_a_new_connection_takes() -> None:
    """That the server stands still is seen after eight seconds, as the documentation says of `reconnect_timeout`."""
    settings = open_pool(URL).connection_kwargs
    assert max(settings["socket_timeout"], settings["socket_connect_timeout"]) == 8.0


def test_an_agent_that_waits_for_a_reply() -> None:
    """It has the rest of its duties done meanwhile, and does without them for as long as connecting takes at most."""
    settings = open_pool(URL, while_waiting=lambda: None).connection_kwargs
    asides = settings["socket_timeout"], settings["socket_connect_timeout"]
    assert REPLY_TIMEOUT_S + connection._LOOK_ASIDE_S + max(asides) < FOUND_S
    assert max(asides) <= 2.0
    assert connection._LOOK_ASIDE_S <= 0.25


def test_an_agent_whose_program_has_died() -> None:
    """It is gone within two seconds: it sees it, passes on what workers wrote, and says its last words."""
    last_s = connection._LOOK_ASIDE_S + supervisor._STDERR_PATIENCE_S + supervisor._LAST_WORDS_S
    assert last_s + connection._LOOK_ASIDE_S < 2.0


def test_a_subscriber(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent's watch, on which nothing comes as long as nothing happens; the agent's loop has it look at the line."""
    watch = AgentWatch(open_pool(URL), Keys("n"), "a1")
    pings: list[float] = []
    now = watch._heard_at = 0.0
    monkeypatch.setattr(watch._pubsub, "ping", lambda: pings.append(now))

    def is_dead() -> bool:
        try:
            watch._check_line(now)
        except RedisConnectionError:
            return True
        return False

    while not is_dead():
        now += supervisor._OWNER_CHECK_S
    assert len(pings) == 1
    assert now <= FOUND_S
