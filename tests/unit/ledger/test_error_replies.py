"""Which error replies mean "not now", which "no", which are the ledger's own words. And URLs, before they connect."""

from __future__ import annotations

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from rush_executor._ledger import connection
from rush_executor._ledger.connection import NetworkGone, Refused, WorkerGone, open_pool

hiredis_parser = pytest.importorskip("redis._parsers.hiredis")


def parsed(reply: str) -> Exception:
    """What redis-py makes of an error reply."""
    error = hiredis_parser._HiredisParser.parse_error(reply)
    assert isinstance(error, Exception)
    return error


IN_A_SCRIPT = "ERR Error running script (call to f_9c): @user_script:42: @user_script: 42: -"


@pytest.mark.parametrize(
    "reply",
    [
        "OOM command not allowed when used memory > 'maxmemory'.",
        "READONLY You can't write against a read only replica.",
        "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
        "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "CLUSTERDOWN The cluster is down",
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "NOREPLICAS Not enough good replicas to write.",
        "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
        "NOSCRIPT No matching script. Please use EVAL.",
        IN_A_SCRIPT + "OOM command not allowed when used memory > 'maxmemory'.",
        IN_A_SCRIPT + "READONLY You can't write against a read only replica.",
        IN_A_SCRIPT + "MISCONF Redis is configured to save RDB snapshots",
        "OOM command not allowed when used memory > 'maxmemory'. script: 9c, on @user_script:21.",
    ],
)
def test_not_now(reply: str) -> None:
    """A later try may fare better, as Redis 6.2 to 8 and Valkey say it."""
    with pytest.raises(connection._NotNow):
        connection._raise(parsed(reply))


@pytest.mark.parametrize(
    "reply", ["LOADING Redis is loading the dataset in memory", "ERR max number of clients reached"]
)
def test_what_redis_py_takes_for_a_broken_connection(reply: str) -> None:
    """These are tried again, too: like any connection that broke."""
    assert isinstance(parsed(reply), RedisConnectionError)


@pytest.mark.parametrize(
    "reply",
    [
        "ERR unknown command 'EVALSHA', with args beginning with: ",
        "WRONGTYPE Operation against a key holding the wrong kind of value",
        "NOPERM this user has no permissions to run the 'evalsha' command",
        "ERR wrong number of arguments for 'zadd' command",
        "ERR Error running script (call to f_9c): @user_script:42: attempt to index a nil value, which is no -BUSY",
        "BUSYKEY Target key name already exists.",
        "MOVED 3999 127.0.0.1:6381",
    ],
)
def test_no(reply: str) -> None:
    """No later try would fare better."""
    with pytest.raises(Refused):
        connection._raise(parsed(reply))


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        ("NETWORKGONE the record of this client is gone", NetworkGone),
        ("WORKERGONE this worker has been taken for lost", WorkerGone),
    ],
)
def test_the_ledgers_own_words(reply: str, error: type[Exception]) -> None:
    """Scripts speak to clients and workers through error replies."""
    with pytest.raises(error):
        connection._raise(parsed(reply))


def test_the_first_error_counts() -> None:
    """Among several replies the first error is told; none is no error."""
    connection._check([1, b"x", None, []])
    with pytest.raises(NetworkGone):
        connection._check([1, parsed("NETWORKGONE x"), parsed("ERR y")])
    assert isinstance(parsed("ERR y"), RedisError)


# --------------------------------------------------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://localhost", {"host": "localhost"}),
        ("redis://localhost:7000/3", {"host": "localhost", "port": 7000, "db": 3}),
        ("redis://user:p%40ss@host", {"username": "user", "password": "p@ss", "host": "host"}),
        ("unix:///run/a%20b.sock?db=2", {"path": "/run/a b.sock", "db": 2}),
        ("unix:///run/s.sock?password=x%26y", {"path": "/run/s.sock", "password": "x&y"}),
        ("rediss://host?ssl_cert_reqs=none", {"host": "host", "ssl_cert_reqs": "none"}),
    ],
)
def test_urls_are_read_as_redis_py_reads_them(url: str, expected: dict[str, object]) -> None:
    """What is not ours to decide comes through."""
    kwargs = open_pool(url).connection_kwargs
    assert expected.items() <= kwargs.items()


@pytest.mark.parametrize("path", ["redis://h", "unix:///s", "redis://u:p@h:1/2"])
@pytest.mark.parametrize("more", ["", "client_name=x"])
def test_options_of_ours_are_not_taken_from_the_url(path: str, more: str) -> None:
    """Time-outs, protocol and retries are the hot loops' own; the others' options stay."""
    options = "socket_timeout=0.1&decode_responses=true&protocol=3&health_check_interval=1&socket_connect_timeout=9"
    plain = open_pool(path).connection_kwargs
    kwargs = open_pool(f"{path}?{options}&{more}" if more else f"{path}?{options}").connection_kwargs
    for name in ("socket_timeout", "decode_responses", "protocol", "health_check_interval", "socket_connect_timeout"):
        assert kwargs[name] == plain[name]
    assert kwargs.get("client_name") == ("x" if more else None)


@pytest.mark.parametrize("url", ["http://host", "localhost:6379", "", "redis:/host"])
def test_no_url_of_a_server(url: str) -> None:
    """redis-py's ValueError."""
    with pytest.raises(ValueError):
        open_pool(url)
