"""Keyspace notifications: switched on without harm to others, and a bell that rings when a heartbeat expires."""

from __future__ import annotations

import logging
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import redis

from rush_executor._ledger import connection as connection_module
from rush_executor._ledger import notifications
from rush_executor._ledger.connection import connect, open_pool
from rush_executor._ledger.notifications import AgentWatch, ensure_notifications
from rush_executor._ledger.server import EmbeddedServer
from rush_executor._protocol.keys import Keys
from tests.integration.rig import Rig
from tests.integration.servers import start_server

Eventually = Callable[[Callable[[], object]], object]
_FLAGS = "notify-keyspace-events"


@pytest.fixture
def client(server_url: str) -> Iterator[redis.Redis]:
    """A client of the shared server, whose setting is put back."""
    pool = open_pool(server_url)
    client = connect(pool)
    old = client.config_get(_FLAGS)[_FLAGS]
    yield client
    client.config_set(_FLAGS, old)
    pool.disconnect()


@pytest.fixture
def watch(server_url: str, client: redis.Redis) -> Iterator[AgentWatch]:
    client.config_set(_FLAGS, "Kx")
    pool = open_pool(server_url)
    watch = AgentWatch(pool, Keys("rig"), "a1")
    yield watch
    watch.close()
    pool.disconnect()


def flags(client: redis.Redis) -> str:
    raw = client.config_get(_FLAGS)[_FLAGS]
    return raw.decode() if isinstance(raw, bytes) else str(raw)


# --------------------------------------------------------------------------------------------------- the setting


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "Kx"),
        ("K", "Kx"),
        ("Ex", "EKx"),
        ("Klx", "Klx"),
        ("AK", "AK"),
        ("AE", "AKE"),
        ("AKE", "AKE"),
        ("Kg$", "Kg$x"),
        ("KEe", "KExe"),
        ("Elm", "EKlxm"),
    ],
)
def test_what_is_missing_is_added_and_the_rest_is_kept(client: redis.Redis, before: str, after: str) -> None:
    """Others set flags for themselves: none of theirs is removed."""
    client.config_set(_FLAGS, before)
    assert ensure_notifications(client) is True
    assert set(flags(client)) == set(after)
    assert set(before) <= set(flags(client))
    assert ensure_notifications(client) is True
    assert set(flags(client)) == set(after)


def test_nothing_is_set_when_nothing_is_missing(client: redis.Redis) -> None:
    """A server that refuses only CONFIG SET is fine, where the flags are there."""
    client.config_set(_FLAGS, "AKE")
    client.config_resetstat()
    assert ensure_notifications(client) is True
    calls = {name for name in client.info("commandstats") if "config" in name}
    assert not [name for name in calls if "set" in name and "reset" not in name]


def test_config_refused_by_acl(client: redis.Redis, server_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A managed server: one warning in words, and a plain False."""
    client.acl_setuser(
        "tenant", enabled=True, passwords=["+pw"], keys=["*"], channels=["*"], commands=["+@all", "-config"]
    )
    pool = open_pool(server_url.replace("unix://", "unix://tenant:pw@"))
    try:
        with caplog.at_level(logging.DEBUG):
            assert ensure_notifications(connect(pool)) is False
        [record] = [record for record in caplog.records if record.name.startswith("rush_executor")]
        assert record.levelno == logging.WARNING
        assert "keyspace notifications" in record.getMessage()
        assert "timer" in record.getMessage()
        assert "pw" not in record.getMessage().split()
        watch = AgentWatch(pool, Keys("rig"), "a1")
        assert watch.rang().has_expired is True, "who cannot be told looks now, and later by the timer"
        assert watch.rang().has_expired is False
        watch.close()
    finally:
        pool.disconnect()
        client.acl_deluser("tenant")


def test_config_renamed(server_kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """A server that does not even know CONFIG."""
    server = start_server(server_kind, {"rename-command": 'CONFIG ""'})
    try:
        with Rig(server.url) as rig:
            assert ensure_notifications(rig.redis) is False
            assert len(caplog.records) == 1
            client, worker = rig.client(), rig.worker()
            ids = client.push(2)
            worker.finish(worker.claim(2))
            assert [task for task, _ in client.receive(wait=True)] == ids, "the ledger does not ride on notifications"
    finally:
        server.stop()


# ----------------------------------------------------------------------------------------------------- the watch


def test_it_rings_at_first(watch: AgentWatch) -> None:
    """What expired before anybody watched must be looked for; then it is silent."""
    assert watch.fileno() is None
    assert watch.rang().has_expired is True
    assert watch.fileno() is not None
    assert [watch.rang().has_expired for _ in range(3)] == [False] * 3


def test_it_rings_when_a_heartbeat_expires(rig: Rig, watch: AgentWatch, eventually: Eventually) -> None:
    """The descriptor turns readable, and `rang` says that it is time to look."""
    watch.rang()
    watch.rang()
    rig.agent().ledger.beat(20)
    assert select.select([watch.fileno()], [], [], 30)[0]
    eventually(lambda: watch.rang().has_expired)
    assert watch.rang().has_expired is False


def test_it_rings_for_nothing_else(rig: Rig, watch: AgentWatch, client: redis.Redis, eventually: Eventually) -> None:
    """Beats, other keys and other networks do not ring."""
    client.config_set(_FLAGS, "KEA")
    watch.rang()
    watch.rang()
    with Rig(rig.url, "rig2") as other:
        for name in ("a1", "a2"):
            rig.agent(name).ledger.beat(600_000)
            other.agent(name).ledger.beat(20)
        rig.redis.set(rig.keys.blob("b1"), "x", px=20)
        eventually(lambda: not other.redis.exists(other.keys.heartbeat("a1"), other.keys.heartbeat("a2")))
        eventually(lambda: not rig.redis.exists(rig.keys.blob("b1")))
        assert watch.rang().has_expired is False
        # The server tells in order: when this one is there, whatever else there was has come.
        rig.agent("a3").ledger.beat(20)
        eventually(lambda: watch.rang().has_expired)


@pytest.mark.parametrize("network_id", ["a*b", "a?b", "a[bc]", "a\\b", "a^b", "ä-ö", "a b".replace(" ", "_")])
def test_names_that_look_like_patterns(
    server_url: str, client: redis.Redis, network_id: str, eventually: Eventually
) -> None:
    """A network's name is matched as it is written."""
    client.config_set(_FLAGS, "Kx")
    pool = open_pool(server_url)
    watch = AgentWatch(pool, Keys(network_id), "a1")
    watch.rang()
    watch.rang()
    with Rig(server_url, network_id) as rig, Rig(server_url, "axb") as other, Rig(server_url, "ab") as third:
        for others in (other, third):
            others.agent().ledger.beat(20)
            eventually(lambda r=others: not r.redis.exists(r.keys.heartbeat("a1")))
        assert watch.rang().has_expired is False
        rig.agent().ledger.beat(20)
        eventually(lambda: watch.rang().has_expired)
    watch.close()
    pool.disconnect()


def test_it_rings_after_a_reconnect(rig: Rig, watch: AgentWatch, client: redis.Redis, eventually: Eventually) -> None:
    """While the connection was broken nothing was told, so it is time to look; and then it watches again."""
    watch.rang()
    watch.rang()
    for _ in range(3):
        assert client.client_kill_filter(_type="pubsub") == 1
        eventually(lambda: watch.rang().has_expired)
        assert watch.rang().has_expired is False
        assert watch.fileno() is not None
        rig.agent().ledger.beat(20)
        eventually(lambda: watch.rang().has_expired)


def test_it_never_raises_without_a_server(own_server: EmbeddedServer) -> None:
    """It is one of many timers of a loop: a server that is gone is somebody else's to tell."""
    pool = open_pool(own_server.url)
    watch = AgentWatch(pool, Keys("rig"), "a1")
    assert watch.rang().has_expired is True
    own_server.stop()
    assert [watch.rang().has_expired for _ in range(3)] == [False] * 3
    assert watch.fileno() is None
    watch.close()
    watch.close()
    pool.disconnect()


def test_it_has_something_else_done_while_it_connects(
    own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a server that stands still, which takes connections: the loop it is part of has more to do than to wait."""
    looks: list[None] = []
    pool = open_pool(own_server.url, while_waiting=lambda: looks.append(None))
    watch = AgentWatch(pool, Keys("rig"), "a1")
    os.kill(own_server.pid, signal.SIGSTOP)
    try:
        began_at = time.monotonic()
        with monkeypatch.context() as patch:
            # However long a look takes, it is a second.
            patch.setattr(connection_module, "time", SimpleNamespace(monotonic=lambda: len(looks)))
            assert watch.rang() == (False, False)
        assert time.monotonic() - began_at < 10
    finally:
        os.kill(own_server.pid, signal.SIGCONT)
    assert len(looks) == connection_module.REPLY_TIMEOUT_S
    assert watch.rang() == (True, True)
    assert watch.rang() == (False, False)
    watch.close()
    pool.disconnect()


def test_another_database(own_server: EmbeddedServer, eventually: Eventually) -> None:
    """Notifications name the database: a URL with one watches that one."""
    url = own_server.url + "?db=3"
    pool = open_pool(url)
    ensure_notifications(connect(pool))
    watch = AgentWatch(pool, Keys("rig"), "a1")
    watch.rang()
    watch.rang()
    with Rig(url) as rig, Rig(own_server.url) as other:
        other.agent().ledger.beat(20)
        eventually(lambda: not other.redis.exists(other.keys.heartbeat("a1")))
        assert watch.rang().has_expired is False
        rig.agent().ledger.beat(20)
        eventually(lambda: watch.rang().has_expired)
    watch.close()
    pool.disconnect()


def test_a_line_that_has_gone_dead(rig: Rig, watch: AgentWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody tells when the other end vanishes: it is asked for a sign of life, and given up when none comes."""
    watch.rang()
    connections: list[object] = []

    def answers() -> bool:
        watch.rang()
        connections.append(watch._pubsub.connection)
        return watch._asked_at is None

    monkeypatch.setattr(notifications, "_QUIET_S", 0.05)
    deadline = time.monotonic() + 30
    while answers():
        assert time.monotonic() < deadline, "it was not asked"
    monkeypatch.setattr(notifications, "_QUIET_S", 60.0)
    while not answers():
        assert time.monotonic() < deadline, "the answer did not come"
    assert len(set(map(id, connections))) == 1, "a line that lives is kept"
    monkeypatch.setattr(notifications, "_QUIET_S", 0.05)
    monkeypatch.setattr(watch._pubsub, "ping", lambda: None)
    while not watch.rang().is_called:
        assert time.monotonic() < deadline, "a dead line was not given up"


@pytest.mark.parametrize("n_bytes", [100, 100_000])
def test_a_subscriber_that_is_cut_off(
    own_server: EmbeddedServer, eventually: Eventually, monkeypatch: pytest.MonkeyPatch, n_bytes: int
) -> None:
    """Who does not read is cut off when the server's buffer for it is full: it connects again, looks, and hears.

    What the server had sent before is read on the way, and then the line ends in the middle of a message.
    """
    # A line that is silent is not what this is about.
    monkeypatch.setattr(notifications, "_QUIET_S", 600.0)
    pool = open_pool(own_server.url)
    with Rig(own_server.url) as rig:
        watch = AgentWatch(pool, rig.keys, "a1")
        watch.rang()
        assert watch.rang() == (False, False)
        rig.redis.config_set("client-output-buffer-limit", "pubsub 65536 65536 0")
        for _ in range(3):
            first = watch.fileno()
            # Some servers close the line by themselves a moment later.
            eventually(lambda: [rig.redis.publish(rig.keys.kills("a1"), "x" * n_bytes) for _ in range(200)][-1] == 0)
            rings = [watch.rang()]
            eventually(lambda rings=rings: rings.append(watch.rang()) or rings[-1] == (True, True))
            assert first is not None
            assert watch.fileno() is not None
            eventually(lambda: watch.rang() == (False, False))
            rig.agent().ledger.beat(20)
            eventually(lambda: watch.rang() == (True, False))
            assert rig.redis.publish(rig.keys.kills("a1"), "task") == 1
            eventually(lambda: watch.rang() == (False, True))
        watch.close()
    pool.disconnect()
