"""What a channel makes of a server that says no, says "not now", hangs, or closes the connection."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import redis

from rush_executor import Rush, RushExecutor
from rush_executor._ledger import connection as connection_module
from rush_executor._ledger.connection import (
    BLOCK_S,
    Channel,
    NetworkGone,
    Refused,
    WorkerGone,
    check_server,
    connect,
    open_pool,
)
from rush_executor._ledger.scripts import SCRIPT_TEXTS, pack
from rush_executor._ledger.server import EmbeddedServer
from rush_executor._ledger.worker import Claimed, Outcome
from rush_executor.errors import NetworkLostError, ServerError
from tests.integration.rig import Rig

Eventually = Callable[..., Any]
_PING = pack(("PING",))


@pytest.fixture
def own_rig(own_server: EmbeddedServer) -> Iterator[Rig]:
    """A network on a server that the test may maltreat."""
    with Rig(own_server.url) as rig:
        yield rig


@pytest.fixture
def background() -> Iterator[Callable[..., Future[Any]]]:
    """Runs a call in a thread."""
    with ThreadPoolExecutor(2) as pool:
        yield pool.submit


def waits(call: Future[Any]) -> bool:
    """Whether a call goes on trying, and neither is done nor gives up."""
    try:
        call.result(timeout=0.3)
    except TimeoutError:
        return True
    return False


# ------------------------------------------------------------------------------------------------------ not now


def test_a_full_server(own_rig: Rig, background: Callable[..., Future[Any]]) -> None:
    """OOM: what needs room waits for it, what makes room goes through; and nothing is done by halves."""
    client, worker = own_rig.client(), own_rig.worker()
    ids = client.push(6)
    claims = worker.claim(3)
    own_rig.redis.config_set("maxmemory", 1)
    pushing = background(client.push, 2)
    assert waits(pushing)
    assert worker.finish(claims[:1]) == []
    assert client.drain() == [(ids[0], b"Fresult")]
    assert worker.ledger.release(claims[1:2]) == 1
    assert own_rig.agent().lose(worker, guilty=ids[2]) == (1, 0)
    own_rig.redis.config_set("maxmemory", 0)
    pushed = pushing.result(timeout=30)
    own_rig.redis.config_set("maxmemory", 1)
    assert own_rig.client().uplink is client.uplink
    other = own_rig.client("c2", is_open=False)
    opening = background(other.open)
    assert waits(opening)
    own_rig.redis.config_set("maxmemory", 0)
    assert opening.result(timeout=30).epoch == "epoch-1"
    other.leave()
    assert own_rig.queue() == [*ids[1:], *pushed]
    assert own_rig.dump()[f"task:{ids[2]}"]["losses"] == "1"


def test_a_full_server_that_stays_full(own_rig: Rig) -> None:
    """After the grace there is one clear error."""
    own_rig.client()
    own_rig.redis.config_set("maxmemory", 1)
    channel = own_rig.channel(reconnect_timeout_s=0.2)
    with pytest.raises(NetworkLostError, match="used memory"):
        channel.call(pack(("SET", "key", "value")))
    own_rig.redis.config_set("maxmemory", 0)
    assert channel.call(_PING) == [b"PONG"]


@pytest.mark.parametrize("stale", ["yes", "no"], ids=["READONLY", "MASTERDOWN"])
def test_a_failover(own_rig: Rig, background: Callable[..., Future[Any]], stale: str) -> None:
    """A server that is a replica for a while: the call is done when it is a primary again."""
    client, worker = own_rig.client(), own_rig.worker()
    ids = client.push(2)
    own_rig.redis.config_set("replica-serve-stale-data", stale)
    own_rig.redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    calls = [background(client.push, 1), background(worker.claim, 1)]
    assert all(map(waits, calls))
    own_rig.redis.execute_command("REPLICAOF", "NO", "ONE")
    ids += calls[0].result(timeout=30)
    [claim] = calls[1].result(timeout=30)
    assert claim.attempt == 1
    assert own_rig.check_places(ids) == {ids[0]: "w1", ids[1]: "queued", ids[2]: "queued"}


@pytest.mark.parametrize("why", ["full", "read-only", "no replicas"])
def test_a_server_that_lets_nobody_write(own_rig: Rig, eventually: Eventually, why: str) -> None:
    """It lets no heartbeat be set, so all expire: nobody is taken for dead until they could have been set again."""
    server = own_rig.redis

    def refuse(*, wanted: bool) -> None:
        if why == "full":
            server.config_set("maxmemory", int(wanted))
        elif why == "no replicas":
            server.config_set("min-replicas-to-write", int(wanted))
        else:
            server.execute_command("REPLICAOF", *(("127.0.0.1", "1") if wanted else ("NO", "ONE")))

    client, agent, worker, reaper = own_rig.client(), own_rig.agent(), own_rig.worker(), own_rig.reaper()
    [task] = client.push(max_retries=0)
    claims = worker.claim()
    agent.ledger.beat(100)
    refuse(wanted=True)
    eventually(lambda: not server.exists(own_rig.keys.heartbeat("a1")))
    assert [reaper.look() for _ in range(3)] == [[]] * 3
    refuse(wanted=False)
    assert own_rig.check_places([task]) == {task: "w1"}
    assert reaper.look() == [], "what was missed in the meantime does not count"
    agent.ledger.beat(60_000)
    assert [reaper.look() for _ in range(3)] == [[]] * 3
    assert worker.finish(claims) == []
    assert client.drain() == [(task, b"Fresult")]
    reaper._recovery_s = 600.0
    server.delete(own_rig.keys.heartbeat("a1"))
    refuse(wanted=True)
    reaper.look()
    refuse(wanted=False)
    assert [reaper.look() for _ in range(3)] == [[]] * 3, "it takes a while until everybody is back"
    agent.ledger.beat(60_000)


def test_a_busy_server(own_rig: Rig, background: Callable[..., Future[Any]], eventually: Eventually) -> None:
    """A script of somebody else runs for ever: BUSY is no end, somebody will kill it."""
    client = own_rig.client()
    own_rig.redis.config_set("lua-time-limit", 50)
    with redis.Redis.from_url(own_rig.url, protocol=2, socket_timeout=60) as other:
        endless = background(other.eval, "while true do end", 0)

        def is_busy() -> bool:
            try:
                own_rig.redis.ping()
            except redis.ResponseError as error:
                return "BUSY" in str(error)
            return False

        eventually(is_busy)
        pushing = background(client.push, 2)
        assert waits(pushing)
        assert own_rig.redis.script_kill()
        assert isinstance(endless.exception(timeout=30), redis.ResponseError)
        assert len(pushing.result(timeout=30)) == 2
    assert len(own_rig.queue()) == 2


def test_a_server_without_room_for_connections(own_rig: Rig, background: Callable[..., Future[Any]]) -> None:
    """`maxclients`: who comes too late waits for a place."""
    limit = own_rig.redis.config_get("maxclients")["maxclients"]
    own_rig.redis.config_set("maxclients", len(own_rig.redis.client_list()))
    channel = Channel(open_pool(own_rig.url), reconnect_timeout_s=10)
    calling = background(channel.call, _PING)
    assert waits(calling)
    own_rig.redis.config_set("maxclients", limit)
    assert calling.result(timeout=30) == [b"PONG"]
    channel.close()


def test_connections_that_the_server_closes(rig: Rig) -> None:
    """An idle-timeout, a restart of a proxy: the next call opens a new one, and nobody notices."""
    client, worker = rig.client(), rig.worker()
    ids: list[str] = []
    for _ in range(5):
        rig.redis.client_kill_filter(_type="normal", skipme=True)
        ids += client.push(2)
        rig.redis.client_kill_filter(_type="normal", skipme=True)
        claims = worker.claim(2)
        rig.redis.client_kill_filter(_type="normal", skipme=True)
        assert worker.finish(claims) == []
    assert [task for task, _ in client.drain()] == ids


def test_what_could_not_be_sent_is_not_forgotten(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of commands that are made while they are sent: the connection breaks at any of them, and each is carried out."""
    for broken in range(3):
        channel = rig.channel()
        send, n_sent = channel._send, 0

        def break_once(commands: Any, broken: int = broken, send: Any = send) -> None:
            nonlocal n_sent
            n_sent += 1
            if n_sent == broken + 1:
                raise redis.ConnectionError
            send(commands)

        monkeypatch.setattr(channel, "_send", break_once)
        Channel.call_each(channel, (pack(("SADD", rig.keys.worker_ids, f"{broken}{number}")) for number in range(3)))
        assert rig.redis.smembers(rig.keys.worker_ids) == {f"{broken}{number}".encode() for number in range(3)}
        rig.redis.delete(rig.keys.worker_ids)


def test_an_idle_worker_of_a_full_server(own_rig: Rig) -> None:
    """It goes on waiting: what is only read or noted is not refused, or it would leave in the end."""
    _, worker = own_rig.client(), own_rig.worker()
    own_rig.redis.config_set("maxmemory", 1)
    for _ in range(2):
        claimed = worker.ledger.exchange([], limit=1, wait=True, wait_s=0.01, rests=True)
        assert claimed == Claimed([], 0, [])
    own_rig.redis.config_set("maxmemory", 0)
    assert own_rig.dump()["idle_workers"] == ["w1"]


def test_a_server_that_hangs(
    own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    """No reply within its time: the connection is given up. What the server does later all the same does no harm."""
    monkeypatch.setattr(connection_module, "IDLE_BLOCK_S", 0.05)
    monkeypatch.setattr(connection_module, "REPLY_TIMEOUT_S", 0.1)
    with Rig(own_server.url) as rig, ThreadPoolExecutor(2) as pool:
        client, worker = rig.client(), rig.worker()
        ids = client.push(3)
        os.kill(own_server.pid, signal.SIGSTOP)
        try:
            calls = [pool.submit(client.push, 2), pool.submit(worker.claim, 2)]
            eventually(lambda: min(client.up_channel.n_breaks, worker.channel.n_breaks) > 0)
        finally:
            os.kill(own_server.pid, signal.SIGCONT)
        ids += calls[0].result(timeout=30)
        claims = calls[1].result(timeout=30)
        assert sorted(claim.task_id for claim in claims) == ids[:2]
        assert {claim.attempt for claim in claims} == {1}
        places = rig.check_places(ids)
        assert list(places.values()) == ["w1", "w1", "queued", "queued", "queued"]
        worker.finish(claims)
        worker.finish(worker.claim(9))
        assert sorted(task for task, _ in client.drain()) == ids


@contextlib.contextmanager
def standing_still(server: EmbeddedServer) -> Iterator[None]:
    """It takes connections, and what is sent, and does not answer."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@pytest.mark.parametrize("is_asked", [False, True], ids=["call", "answer"])
def test_a_server_that_hangs_for_good(
    own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, is_asked: bool
) -> None:
    """The grace counts from when the server was heard last, and is not overrun by one more wait for a reply."""
    monkeypatch.setattr(connection_module, "IDLE_BLOCK_S", 0.5)
    monkeypatch.setattr(connection_module, "REPLY_TIMEOUT_S", 0.5)
    channel = Channel(open_pool(own_server.url), reconnect_timeout_s=1.3)
    assert channel.call(_PING) == [b"PONG"]
    connection: Any = channel._connection
    connect, timeouts_s = connection._connect, [0.0]

    def note_timeout() -> Any:
        timeouts_s.append(connection.socket_timeout)
        return connect()

    monkeypatch.setattr(connection, "_connect", note_timeout)
    with standing_still(own_server):
        began_at = time.monotonic()
        if is_asked:
            channel.ask(_PING)
        with pytest.raises(NetworkLostError, match=r"for \d+\.\d s \(reconnect_timeout is 1\.3 s\)"):
            channel.answer() if is_asked else channel.call(_PING)
        assert time.monotonic() - began_at >= 1.3
    assert max(timeouts_s) < 0.4, "more than the first wait, of 1 s, has left of the grace"
    assert channel.call(_PING) == [b"PONG"]
    channel.close()


def test_a_connection_that_is_made_in_the_last_moment(
    own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked over it may take its time: the server is there again."""
    channel = Channel(open_pool(own_server.url), reconnect_timeout_s=30)
    connection: Any = channel._connection
    connect = connection.connect

    def connect_in_the_last_moment() -> None:
        connect()
        # So much was left.
        connection._sock.settimeout(0.2)

    monkeypatch.setattr(connection, "connect", connect_in_the_last_moment)
    assert channel.call(pack(("BLPOP", "nothing", 0.7)), lost_at=time.monotonic()) == [None]
    assert channel.n_breaks == 0
    channel.close()


def test_a_wait_that_is_broken_off(
    own_server: EmbeddedServer, background: Callable[..., Future[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a connection is cut, the server has been there until then, however long it was asked to wait."""
    # However long it takes to connect.
    monkeypatch.setattr(connection_module, "_LEAST_S", 20.0)
    channel = Channel(open_pool(own_server.url), reconnect_timeout_s=0.2)
    with redis.Redis.from_url(own_server.url) as other:
        waiting = background(channel.call, pack(("BLPOP", "list", 30)))
        assert waits(waiting)
        other.client_kill_filter(_type="normal", skipme=True)
        assert waits(waiting)
        other.rpush("list", "value")
        assert waiting.result(30) == [[b"list", b"value"]]
    channel.close()


def test_ctrl_c_while_it_connects_again(own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the new connection was asked before is answered to nobody."""
    channel = Channel(open_pool(own_server.url), reconnect_timeout_s=30)
    channel.call(_PING)
    channel.close()
    connection: Any = channel._connection
    connect = connection.connect

    def break_off() -> None:
        connect()
        connection.send_command("ECHO", "old")
        raise KeyboardInterrupt

    monkeypatch.setattr(connection, "connect", break_off)
    with pytest.raises(KeyboardInterrupt):
        channel.call(pack(("ECHO", "broken off")), lost_at=time.monotonic())
    monkeypatch.undo()
    assert channel.call(pack(("ECHO", "new"))) == [b"new"]
    channel.close()


class _Broken(Exception):
    """Raised by what is done while a reply is waited for."""


@pytest.mark.parametrize("is_connected", [True, False])
def test_something_else_is_done_meanwhile(
    own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, is_connected: bool
) -> None:
    """While a reply is waited for, that of a new connection too; and a server that is merely slow is not given up."""
    monkeypatch.setattr(connection_module, "_ASIDE_S", 0.1)
    monkeypatch.setattr(connection_module, "REPLY_TIMEOUT_S", 60.0)
    n_looks = 0
    error: Exception | None = None

    def look() -> None:
        nonlocal n_looks
        n_looks += 1
        if n_looks == 5:
            os.kill(own_server.pid, signal.SIGCONT)
        if error is not None:
            raise error

    pool = open_pool(own_server.url, while_waiting=look)
    channel = Channel(pool, reconnect_timeout_s=0)
    if is_connected:
        channel.call(_PING)
    n_looks = 0
    with standing_still(own_server):
        assert channel.call(pack(("ECHO", "late"))) == [b"late"]
    assert channel.n_breaks == 0
    error = _Broken()
    if not is_connected:
        channel.close()
    with standing_still(own_server), pytest.raises(_Broken):
        channel.call(pack(("ECHO", "old")))
    error = None
    assert channel.call(pack(("ECHO", "new"))) == [b"new"], "the answer to what was broken off is nobody's"
    monkeypatch.setattr(connection_module, "REPLY_TIMEOUT_S", 0.3)
    with standing_still(own_server), pytest.raises(NetworkLostError, match=r"no reply within 0\.3 s"):
        channel.call(_PING)
    channel.close()
    pool.disconnect()


# ---------------------------------------------------------------------------------------------------------- no


def test_a_command_that_is_forbidden(rig: Rig) -> None:
    """No later try would fare better: `Refused` at once, and the connection still works."""
    rig.redis.acl_setuser("tenant", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-evalsha"])
    try:
        other = Rig(rig.url.replace("unix://", "unix://tenant:pw@"))
        client = other.client(is_open=False)
        started_at = time.monotonic()
        with pytest.raises(Refused, match=r"no permissions|NOPERM"):
            client.open()
        assert time.monotonic() - started_at < 5
        assert client.uplink.n_workers() == 0
        with other:
            other.forget(client)
    finally:
        rig.redis.acl_deluser("tenant")


def test_scripts_that_may_not_be_loaded(rig: Rig) -> None:
    """What is said is that SCRIPT is forbidden, not that the script is unknown."""
    rig.redis.script_flush()
    rig.redis.acl_setuser("tenant", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-script"])
    try:
        other = Rig(rig.url.replace("unix://", "unix://tenant:pw@"))
        client = other.client(is_open=False)
        with pytest.raises(Refused, match=r"no permissions|NOPERM"):
            client.open()
        with other:
            other.forget(client)
    finally:
        rig.redis.acl_deluser("tenant")


def test_a_command_that_is_wrong(rig: Rig) -> None:
    """An error reply does not put the following replies out of step."""
    channel = rig.channel()
    for _ in range(3):
        with pytest.raises(Refused):
            channel.call(_PING, pack(("NO-SUCH-COMMAND",)), _PING)
        assert channel.call(pack(("ECHO", "a")), pack(("ECHO", "b"))) == [b"a", b"b"]


@pytest.mark.parametrize("credentials", ["tenant:wrong", "nobody:pw"])
def test_wrong_credentials(rig: Rig, credentials: str) -> None:
    """They don't become right by waiting: told at once, and the password is in no message."""
    rig.redis.acl_setuser("tenant", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all"])
    url = rig.url.replace("unix://", f"unix://{credentials}@")
    channel = Channel(open_pool(url), reconnect_timeout_s=30)
    try:
        for ask in (lambda: channel.call(_PING), lambda: check_server(url)):
            with pytest.raises(ServerError) as caught:
                ask()
            assert credentials.partition(":")[2] not in str(caught.value).replace("WRONGPASS", "").split()
            assert credentials not in str(caught.value)
    finally:
        channel.close()
        rig.redis.acl_deluser("tenant")


def test_what_the_ledger_says_is_no_failure_of_the_connection(rig: Rig) -> None:
    """NetworkGone among other commands: told at once, the others were done, the connection is in step."""
    client = rig.client()
    rig.redis.delete(rig.keys.client("c1"))
    with pytest.raises(NetworkGone):
        client.send(client.tasks(1), [("digest", b"body")])
    assert client.uplink.n_workers() == 0
    assert "functions:c1" in rig.dump()
    assert client.up_channel.call(pack(("ECHO", "a"))) == [b"a"]


# ------------------------------------------------------------------------------------------------------- itself


def test_ctrl_c_between_question_and_answer(rig: Rig) -> None:
    """The next call must not take the answer to the question that was broken off for its own."""
    channel = rig.channel()
    real = channel._connection.read_response
    broken_off = KeyboardInterrupt("Ctrl-C")

    def read_response(*args: Any, **kwargs: Any) -> Any:
        raise broken_off

    for _ in range(3):
        channel._connection.read_response = read_response  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            channel.call(pack(("ECHO", "old")), _PING)
        channel._connection.read_response = real  # type: ignore[method-assign]
        assert channel.call(pack(("ECHO", "new"))) == [b"new"]


def test_stopping(own_server: EmbeddedServer) -> None:
    """Who stops a session does not wait for the grace of a call that waits for the server."""
    stopping = threading.Event()
    channel = Channel(open_pool(own_server.url), reconnect_timeout_s=600, stopping=stopping)
    channel.call(_PING)
    own_server.stop()
    with ThreadPoolExecutor(1) as pool:
        calling = pool.submit(channel.call, _PING)
        assert waits(calling)
        stopping.set()
        assert isinstance(calling.exception(timeout=30), NetworkLostError)


def test_no_grace(own_server: EmbeddedServer) -> None:
    """An agent has a loop of its own to come back: one try, and an answer at once."""
    channel = Channel(open_pool(own_server.url), reconnect_timeout_s=0)
    channel.call(_PING)
    own_server.stop()
    with pytest.raises(NetworkLostError):
        channel.call(_PING)


def test_large_commands(rig: Rig) -> None:
    """What is small goes out in one piece, what is large in many; the replies are the same."""
    channel = rig.channel()
    values = [os.urandom(n) for n in (1, 1000, (1 << 18) + 1, 3_000_000)]
    replies = channel.call(*(pack(("ECHO", value)) for value in values))
    assert replies == values


def test_the_url_cannot_take_away_what_the_hot_loops_rely_on(rig: Rig) -> None:
    """Options in the URL are for the rest: a socket time-out of the user's would end every wait for a bell.

    DESIGN.md: blocking connections get their own settings.
    """
    url = f"{rig.url}?socket_timeout=0.2&decode_responses=true&health_check_interval=1&protocol=3"
    worker = rig.worker(url=url)
    client = rig.client(url=url)
    started_at = time.monotonic()
    assert worker.ledger.exchange([], limit=1, wait=True).claims == []
    assert time.monotonic() - started_at > BLOCK_S / 2, "the wait was not broken off"
    client.push(1)
    worker.finish(worker.claim(), b"\xff\x00")
    assert client.receive() == [("c1-1", b"F\xff\x00")]
    client.receive()
    assert len([packets for packets in worker.channel.sent if any(b"BLPOP" in packet for packet in packets)]) == 1
    pool = open_pool(url)
    assert connect(pool).echo("x") == b"x"
    pool.disconnect()


# ------------------------------------------------------------------------------------------------- check_server


def test_a_server_that_will_do(server_url: str) -> None:
    """Nothing is said of a server that works."""
    check_server(server_url)


def test_nobody_there() -> None:
    """The message names the server, without its password."""
    with pytest.raises(ServerError, match=r"no server answers at redis://:\*\*\*@127\.0\.0\.1:1/0"):
        check_server("redis://:geheim@127.0.0.1:1/0")


def test_no_url_of_a_server() -> None:
    """Said with what it was, and with what a URL looks like, wherever one is given."""
    words = r"'http://\*\*\*@127\.0\.0\.1' is no URL of a server: it must be redis://"
    for take in (check_server, open_pool, RushExecutor, Rush):
        with pytest.raises(ValueError, match=words):
            take(url="http://u:geheim@127.0.0.1")


@pytest.mark.parametrize(
    ("version", "is_fine"), [("6.0.16", False), ("5.0.14", False), ("6.2.0", True), ("10.0", True)]
)
def test_the_oldest_server(server_url: str, monkeypatch: pytest.MonkeyPatch, version: str, is_fine: bool) -> None:
    """Redis before 6.2 is refused at once, with its version."""
    monkeypatch.setattr(redis.Redis, "info", lambda self, section: {"redis_version": version})
    if is_fine:
        check_server(server_url)
    else:
        with pytest.raises(ServerError, match=rf"{version}; 6\.2 is the oldest"):
            check_server(server_url)


# -------------------------------------------------------------------------------------------------- without an answer


@pytest.fixture
def talkative_url(rig: Rig) -> Iterator[str]:
    """A user whom the server always answers: CLIENT REPLY is forbidden, as some managed servers and proxies have it."""
    commands = ["+@all", "-client|reply"]
    rig.redis.acl_setuser("talkative", enabled=True, nopass=True, commands=commands, keys=["*"], channels=["*"])
    scheme, _, place = rig.url.partition("://")
    yield f"{scheme}://talkative:x@{place}"
    rig.leave()
    rig.redis.acl_deluser("talkative")


def test_muted(rig: Rig) -> None:
    """What is muted is done, and has no answer, not even an error; what stands behind it has its own."""
    channel = rig.channel()
    assert channel.can_mute()
    assert channel.call(pack(("GET", "k")), muted=pack(("SET", "k", "1"))) == [b"1"]
    assert channel.call(pack(("GET", "k")), _PING, muted=pack(("NO", "such", "command"))) == [b"1", b"PONG"]
    channel.post(pack(("INCR", "k")))
    channel.post(pack(("LPUSH", "k", "a hash it is not")))
    assert channel.call(pack(("GETDEL", "k"))) == [b"2"]


def test_a_server_that_always_answers(rig: Rig, talkative_url: str) -> None:
    """Then everything is answered, and the refused are told one by one."""
    channel = rig.channel(talkative_url)
    assert not channel.can_mute()
    assert channel.call(pack(("ECHO", "1")), pack(("ECHO", "2"))) == [b"1", b"2"], "no answer is left over"
    client, worker = rig.client(url=talkative_url), rig.worker(url=talkative_url)
    tasks = client.tasks(2)
    assert client.uplink.push(1, tasks[:1], wait=False)
    assert client.uplink.push(2, tasks[1:], wait=False)
    outcomes = [Outcome(claim, False, b"x") for claim in worker.claim(1)]
    claimed = worker.ledger.exchange(outcomes, limit=1, wait=False)
    assert [claim.task_id for claim in claimed.claims] == [tasks[1].task_id]
    assert worker.ledger.exchange(outcomes, limit=1, wait=False).refused == [tasks[0].task_id]
    worker.finish(claimed.claims)
    assert [task for task, _ in client.drain()] == [task.task_id for task in tasks]


def test_a_push_without_an_answer(rig: Rig) -> None:
    """It arrives; sent once more, with an answer, it changes nothing."""
    client = rig.client()
    tasks = client.tasks(2)
    assert not client.uplink.push(1, tasks[:1], wait=False)
    assert client.uplink.push(1, tasks[:1])
    assert not client.uplink.push(2, tasks[1:], wait=False)
    assert client.uplink.push(2, tasks[1:])
    assert rig.queue() == [task.task_id for task in tasks]


def test_a_hand_in_that_the_server_did_not_take(rig: Rig) -> None:
    """Nobody is told. But the task is given once more, and that tells."""
    client, worker = rig.client(), rig.worker()
    ids = client.push(2)
    claims = worker.claim(2)
    rig.redis.script_flush()
    # Only the claim is known: as if somebody had begun to load the scripts again.
    rig.redis.script_load(SCRIPT_TEXTS["claim_tasks"])
    claimed = worker.ledger.exchange([Outcome(claim, False, b"x") for claim in claims], limit=2, wait=False)
    assert claimed.claims == []
    assert claimed.refused == []
    assert [task for task, _ in client.drain()] == ids


def test_a_server_that_forgets_its_scripts_before_the_answer(rig: Rig) -> None:
    """They are loaded again, and it is asked again. What it did not take is given once more, and that tells."""
    client, worker = rig.client(), rig.worker()
    ids = client.push(3)
    *done, running = worker.claim(2)
    outcomes = [Outcome(claim, False, b"x") for claim in done]
    rig.redis.script_flush()
    worker.ledger.ask(outcomes, limit=2, known=[running.task_id])
    claimed = worker.ledger.answer(outcomes)
    assert claimed.claims == []
    assert claimed.refused == []
    worker.finish([running])
    worker.finish(worker.claim(1))
    assert sorted(task for task, _ in client.drain()) == ids


def test_a_hand_in_of_a_worker_that_was_taken_for_lost(rig: Rig) -> None:
    """It is refused, and the claim behind it says why."""
    client, agent, worker = rig.client(), rig.agent(), rig.worker()
    [task] = client.push()
    [claim] = worker.claim()
    agent.lose(worker)
    with pytest.raises(WorkerGone):
        worker.ledger.exchange([Outcome(claim, False, b"x")], limit=1, wait=False)
    assert rig.queue() == [task]
    assert client.drain() == []
