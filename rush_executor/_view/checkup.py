"""Whether a server is fit for a network, and a network at work: what `doctor` says.

Pure: it is given the facts, and judges. Each check says what was found and, where something is not as it should be,
what to do. A warning is about speed, safety or what may happen; a failure means that tasks will be lost or not be run.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from rush_executor._config import redact
from rush_executor._ledger.facts import ServerFacts
from rush_executor._view.lookout import SILENT, TASKS, Picture

__all__ = ["FAIL", "OK", "WARN", "Check", "check_network", "check_server_facts", "human_size", "server_text"]

OK: Final = "ok"
WARN: Final = "warn"
FAIL: Final = "fail"

# A task that is waited for takes some round trips: from here on they take longer than all the rest.
_SLOW_TRIP_S: Final = 0.01
# What is shown of times is good to a second; nothing else depends on this machine's clock.
_LARGEST_SKEW_S: Final = 1.0
_MUCH_MEMORY: Final = 0.75
_TOO_MUCH_MEMORY: Final = 0.95
_MANY_CONNECTIONS: Final = 0.9
_LOCAL: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True, slots=True)
class Check:
    """What one look has found.

    Attributes:
        name: What was looked at.
        level: ``ok``, ``warn`` or ``fail``.
        found: What was found.
        advice: What to do; empty where all is well.
    """

    name: str
    level: str
    found: str
    advice: str = ""


def check_server_facts(url: str, facts: ServerFacts, picture: Picture | None) -> list[Check]:
    """Judges a server.

    Args:
        url: Where it is.
        facts: What it says.
        picture: Of the network that is to be looked after; None for none.
    """
    return [
        _version(facts),
        _role(facts),
        _scripts(facts),
        _notifications(facts),
        _eviction(facts),
        _memory(facts),
        _persistence(facts, keeps=picture is not None and (picture.kind == TASKS or picture.is_durable)),
        _connections(facts),
        _latency(facts),
        _clock(facts),
        *_access(url),
    ]


def check_network(picture: Picture, worker_command: str) -> list[Check]:
    """Judges a network.

    Args:
        picture: Of the network.
        worker_command: How workers for it are started, in a shell.
    """
    return list(_network_checks(picture, worker_command))


def server_text(info: Mapping[str, str]) -> str:
    """A server in a line: what it is, and how much it holds.

    Args:
        info: What INFO says.
    """
    kind, version, _ = _kind_of(info)
    memory, connections = info.get("used_memory", "0"), info.get("connected_clients", "0")
    return f"{kind} {version}, {human_size(int(memory))}, {connections} connections"


def human_size(n: float) -> str:
    """A number of bytes, for people."""
    for unit in _UNITS[:-1]:
        if n < 1024:  # noqa: PLR2004
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} {_UNITS[-1]}"


def _version(facts: ServerFacts) -> Check:
    info = facts.info
    if not info:
        return Check("version", WARN, "the server does not say (INFO is refused)", "allow INFO, if you can")
    kind, text, oldest = _kind_of(info)
    if not oldest:
        return Check("version", WARN, f"{kind} {text}", "it is not tested: use Redis or Valkey")
    numbers = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    if numbers < oldest:
        wanted = ".".join(map(str, oldest))
        return Check("version", FAIL, f"{kind} {text}", f"{kind} {wanted} is the oldest that works: update the server")
    return Check("version", OK, f"{kind} {text}")


def _kind_of(info: Mapping[str, str]) -> tuple[str, str, tuple[int, int] | None]:
    """What calls itself what, in which version, and the oldest that works; None for what is not tested."""
    for name in ("Dragonfly", "KeyDB"):
        if version := info.get(f"{name.lower()}_version"):
            return name, version, None
    # It tells old clients that it is Redis 7.2.4.
    if version := info.get("valkey_version"):
        return "Valkey", version, (7, 2)
    return "Redis", info.get("redis_version", ""), (6, 2)


def _role(facts: ServerFacts) -> Check:
    role = facts.info.get("role", "master")
    if role != "master":
        return Check("role", FAIL, "a replica, which takes no writes", "give the URL of its primary")
    if facts.info.get("loading", "0") != "0":
        return Check("role", WARN, "a primary that is still loading its data", "wait for it")
    return Check("role", OK, "a primary")


def _scripts(facts: ServerFacts) -> Check:
    if facts.refusal:
        return Check(
            "scripts", FAIL, f"refused: {facts.refusal}", "allow EVALSHA and SCRIPT LOAD: every transition is a script"
        )
    return Check("scripts", OK, "may run")


def _notifications(facts: ServerFacts) -> Check:
    later = "the loss of a whole machine is found some seconds later, by a timer"
    if facts.settings is None:
        return Check("notifications", WARN, "CONFIG is refused", f"{later}; set notify-keyspace-events Kx, if you can")
    flags = facts.settings.get("notify-keyspace-events", "")
    if "K" in flags and ("x" in flags or "A" in flags):
        return Check("notifications", OK, f"notify-keyspace-events {flags}")
    return Check(
        "notifications",
        WARN,
        f"notify-keyspace-events is {flags!r}, without K and x",
        f"the first worker adds them, if it may; until then {later}",
    )


def _eviction(facts: ServerFacts) -> Check:
    policy = _setting(facts, "maxmemory-policy", "maxmemory_policy")
    if policy in ("", "noeviction"):
        return Check("eviction", OK, policy or "not told")
    advice = "set maxmemory-policy noeviction: an error is better than a lost task"
    if not _number(facts, "maxmemory"):
        return Check("eviction", WARN, f"{policy}, without effect as long as maxmemory is 0", advice)
    return Check("eviction", FAIL, f"{policy}: a full server deletes keys, and tasks with them", advice)


def _memory(facts: ServerFacts) -> Check:
    used, limit = _number(facts, "used_memory"), _number(facts, "maxmemory")
    total = limit or _number(facts, "total_system_memory")
    whose = "of maxmemory" if limit else "of the machine's memory"
    if not total:
        return Check("memory", OK, f"{human_size(used)} used")
    share = used / total
    found = f"{human_size(used)} used, {share:.0%} {whose} ({human_size(total)})"
    if share >= _TOO_MUCH_MEMORY and limit:
        return Check(
            "memory", FAIL, found, "raise maxmemory, or reset networks that nobody needs: a full server refuses"
        )
    if share >= _MUCH_MEMORY:
        return Check("memory", WARN, found, "reset networks that nobody needs, or give the server more")
    return Check("memory", OK, found)


def _persistence(facts: ServerFacts, *, keeps: bool) -> Check:
    broken = [
        name for name in ("rdb_last_bgsave_status", "aof_last_write_status") if facts.info.get(name, "ok") != "ok"
    ]
    if broken:
        return Check(
            "persistence",
            FAIL,
            f"{broken[0]} is {facts.info[broken[0]]}: the server may refuse to write",
            "see the server's log; most often its disk is full",
        )
    schedule = (facts.settings or {}).get("save", "")
    if facts.info.get("aof_enabled") == "1":
        return Check("persistence", OK, "every command is logged (appendonly)")
    if schedule:
        return Check("persistence", OK, f"snapshots (save {schedule})")
    if facts.settings is None:
        return Check("persistence", OK, "not told")
    found = "none: what is on the server ends with it"
    if keeps:
        return Check("persistence", WARN, found, "take snapshots (rush-executor snapshot), or set appendonly yes")
    return Check("persistence", OK, f"{found}; programs push their tasks again, networks that keep tasks are lost")


def _connections(facts: ServerFacts) -> Check:
    used, limit = _number(facts, "connected_clients"), _number(facts, "maxclients")
    limit = limit or int((facts.settings or {}).get("maxclients", "0") or 0)
    found = f"{used} of {limit}" if limit else f"{used}"
    if limit and used >= _MANY_CONNECTIONS * limit:
        return Check("connections", WARN, found, "raise maxclients: a worker without a connection runs nothing")
    return Check("connections", OK, found)


def _latency(facts: ServerFacts) -> Check:
    median, worst = statistics.median(facts.trips_s), facts.trips_s[-1]
    found = f"{_ms(median)} for a round trip, {_ms(worst)} at worst"
    if median > _SLOW_TRIP_S:
        return Check("latency", WARN, found, "use a server that is nearer, or larger tasks (chunksize)")
    return Check("latency", OK, found)


def _clock(facts: ServerFacts) -> Check:
    skew, error = facts.skew_s, facts.skew_error_s
    found = f"the server's is {abs(skew):.3f} s {'ahead of' if skew >= 0 else 'behind'} this machine's, +-{error:.3f} s"
    if abs(skew) - error > _LARGEST_SKEW_S:
        advice = "have both follow a time server; until then, times that are shown are the server's"
        return Check("clock", WARN, found, advice)
    return Check("clock", OK, found)


def _access(url: str) -> Iterator[Check]:
    parts = urlsplit(url)
    has_password = redact(url) != url
    if parts.scheme == "unix":
        yield Check("access", OK, "a socket on this machine")
    elif (parts.hostname or "localhost") in _LOCAL:
        yield Check("access", OK, "this machine" + (", with a password" if has_password else ", without a password"))
    elif not has_password:
        yield Check(
            "access",
            WARN,
            f"{parts.hostname} lets everybody in",
            "who reaches the server can run code in workers and programs: set requirepass, and a RUSH_SECRET",
        )
    elif parts.scheme != "rediss":
        yield Check(
            "access", WARN, "a password, not encrypted", "use TLS (rediss://) or a tunnel where others may listen"
        )
    else:
        yield Check("access", OK, "a password, encrypted")


def _network_checks(picture: Picture, worker_command: str) -> Iterator[Check]:
    if not picture.kind:
        advice = "is the name right? The first program, task or worker makes it"
        yield Check("network", FAIL, f"there is no network {picture.network!r}", advice)
        return
    yield Check("network", OK, f"{picture.network!r}, {picture.description}")
    if picture.is_broken:
        yield Check("workers", FAIL, "none can start", "the program's InitializerError says why")
        return
    silent = [worker for worker in picture.workers if worker.state == SILENT]
    n_there = len(picture.workers) - len(silent)
    found = f"{n_there} there"
    if silent:
        hosts = ", ".join(sorted({worker.host for worker in silent}))
        yield Check("workers", WARN, f"{found}, {len(silent)} silent on {hosts}", "they are taken for lost in a moment")
    elif not n_there and picture.n_queued:
        queued = "1 task is" if picture.n_queued == 1 else f"{picture.n_queued:,} tasks are"
        yield Check("workers", FAIL, f"none, and {queued} queued", f"start some: {worker_command}")
    else:
        yield Check("workers", OK, found)
    if picture.kind != TASKS and not picture.is_durable and not picture.n_clients:
        yield Check("programs", WARN, "nobody waits for tasks", "the network is a leftover, and is cleared away soon")


def _setting(facts: ServerFacts, name: str, info_name: str) -> str:
    return (facts.settings or {}).get(name, facts.info.get(info_name, ""))


def _number(facts: ServerFacts, name: str) -> int:
    text = facts.info.get(name, "0")
    return int(text) if text.isdigit() else 0


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"
