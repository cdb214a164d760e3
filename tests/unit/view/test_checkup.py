"""What `doctor` makes of what a server says of itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rush_executor._ledger.facts import ServerFacts, parse_info
from rush_executor._view.checkup import Check, check_network, check_server_facts, human_size, server_text
from tests.unit.view.pictures import EMPTY, worker

INFO = {
    "redis_version": "7.2.4",
    "valkey_version": "9.0.0",
    "role": "master",
    "maxmemory": "0",
    "used_memory": "2097152",
    "total_system_memory": "8589934592",
    "connected_clients": "9",
    "aof_enabled": "0",
    "rdb_last_bgsave_status": "ok",
}
SETTINGS = {"notify-keyspace-events": "xK", "maxmemory-policy": "noeviction", "save": "", "maxclients": "100"}
GOOD = ServerFacts(INFO, SETTINGS, "", [0.0001, 0.0002, 0.0009], 0.0004, 0.0002)
KEPT = replace(EMPTY, kind="tasks")


def checked(url: str = "redis://127.0.0.1:6379/0", facts: ServerFacts = GOOD, picture=EMPTY) -> dict[str, Check]:  # type: ignore[no-untyped-def]
    checks = check_server_facts(url, facts, picture)
    assert all(bool(check.advice) == (check.level != "ok") for check in checks), "advice where it is needed, only there"
    found = {check.name: check for check in checks}
    assert len(found) == len(checks)
    return found


def with_info(**info: str) -> ServerFacts:
    return GOOD._replace(info={**INFO, **info})


def with_settings(settings: dict[str, str] | None) -> ServerFacts:
    return GOOD._replace(settings=None if settings is None else {**SETTINGS, **settings})


def test_a_good_server() -> None:
    """Has nothing that is not ok, for an executor."""
    assert {check.level for check in checked().values()} == {"ok"}


WORKER = "rush-executor worker --url-file 'a b' --network demo"


@pytest.mark.parametrize(
    ("name", "level", "facts"),
    [
        ("version", "ok", GOOD._replace(info={"redis_version": "6.2.0"})),
        ("version", "fail", GOOD._replace(info={"redis_version": "6.0.16"})),
        ("version", "fail", with_info(valkey_version="7.0.1")),
        ("version", "warn", with_info(dragonfly_version="df-1")),
        ("version", "warn", GOOD._replace(info={})),
        ("role", "fail", with_info(role="slave")),
        ("role", "warn", with_info(loading="1")),
        ("scripts", "fail", GOOD._replace(refusal="NOPERM")),
        ("notifications", "ok", with_settings({"notify-keyspace-events": "AK"})),
        ("notifications", "warn", with_settings({"notify-keyspace-events": "Ex"})),
        ("notifications", "warn", with_settings({"notify-keyspace-events": ""})),
        ("notifications", "warn", with_settings(None)),
        ("eviction", "warn", with_settings({"maxmemory-policy": "allkeys-lru"})),
        (
            "eviction",
            "fail",
            with_settings({"maxmemory-policy": "allkeys-lru"})._replace(info={**INFO, "maxmemory": "9"}),
        ),
        ("memory", "ok", with_info(maxmemory="4194304")),
        ("memory", "warn", with_info(maxmemory="2500000")),
        ("memory", "fail", with_info(maxmemory="2100000")),
        ("memory", "warn", with_info(total_system_memory="2500000")),
        ("persistence", "ok", with_info(aof_enabled="1")),
        ("persistence", "ok", with_settings({"save": "3600 1"})),
        ("persistence", "ok", with_settings(None)),
        ("persistence", "fail", with_info(rdb_last_bgsave_status="err")),
        ("persistence", "fail", with_info(aof_enabled="1", aof_last_write_status="err")),
        ("connections", "warn", with_info(connected_clients="95")),
        ("latency", "warn", GOOD._replace(trips_s=[0.001, 0.02, 0.03])),
        ("latency", "ok", GOOD._replace(trips_s=[0.001, 0.002, 0.9])),
        ("clock", "warn", GOOD._replace(skew_s=-2.0)),
        ("clock", "ok", GOOD._replace(skew_s=-2.0, skew_error_s=1.5)),
    ],
)
def test_a_check(name: str, level: str, facts: ServerFacts) -> None:
    """Fails where tasks would be lost or not be run, and warns of what is slow, unsafe or unknown."""
    assert checked(facts=facts)[name].level == level


def test_what_is_kept_needs_a_disk() -> None:
    """Without persistence an executor loses nothing, a network that keeps its tasks everything."""
    assert checked()["persistence"].level == "ok"
    assert checked(picture=None)["persistence"].level == "ok"
    assert checked(picture=KEPT)["persistence"].level == "warn"
    assert checked(picture=replace(EMPTY, is_durable=True))["persistence"].level == "warn"


@pytest.mark.parametrize(
    ("url", "level"),
    [
        ("unix:///tmp/s", "ok"),
        ("redis://localhost:1/0", "ok"),
        ("redis://server/0", "warn"),
        ("rediss://server/0", "warn"),
        ("redis://:pw@server/0", "warn"),
        ("rediss://:pw@server/0", "ok"),
    ],
)
def test_access(url: str, level: str) -> None:
    """A server that others reach needs a password and TLS."""
    check = checked(url)["access"]
    assert check.level == level
    assert "pw" not in check.found + check.advice


def test_a_network() -> None:
    """Told is what keeps its tasks from being run."""
    levels = lambda picture: {check.name: check.level for check in check_network(picture, WORKER)}  # noqa: E731
    assert levels(EMPTY) == {"network": "ok", "workers": "ok"}
    assert levels(replace(EMPTY, kind="")) == {"network": "fail"}
    assert levels(replace(EMPTY, n_queued=3))["workers"] == "fail"
    assert levels(replace(EMPTY, is_broken=True))["workers"] == "fail"
    assert levels(replace(EMPTY, n_queued=3, workers=[worker("w")]))["workers"] == "ok"
    assert levels(replace(EMPTY, workers=[worker("w"), worker("v", state="silent")]))["workers"] == "warn"
    assert levels(replace(EMPTY, n_clients=0))["programs"] == "warn"
    assert "programs" not in levels(replace(KEPT, n_clients=0))


@pytest.mark.parametrize(("n", "found"), [(1, "1 task is queued"), (2000, "2,000 tasks are queued")])
def test_nobody_runs_what_is_queued(n: int, found: str) -> None:
    """The advice is the very command that helps."""
    [check] = [check for check in check_network(replace(EMPTY, n_queued=n), WORKER) if check.level == "fail"]
    assert check.found == f"none, and {found}"
    assert check.advice == f"start some: {WORKER}"


def test_a_server_in_a_line() -> None:
    """What it is, and how much it holds."""
    info = parse_info(b"# Server\r\nredis_version:7.0.15\r\nused_memory:3355443\r\nconnected_clients:12\r\n")
    assert server_text(info) == "Redis 7.0.15, 3.2 MiB, 12 connections"
    assert [human_size(n) for n in (0, 1023, 1024, 5 * 2**40, 2**60)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "5.0 TiB",
        "1048576.0 TiB",
    ]
