"""What a server says of itself, and how fast: read for `doctor`. Nothing here changes the server or a network."""

from __future__ import annotations

import time
from typing import Any, Final, NamedTuple

from rush_executor._ledger.connection import Channel, Refused
from rush_executor._ledger.scripts import evalsha, pack

__all__ = ["ServerFacts", "parse_info", "read_facts"]

# Enough for a median and a worst case, and over before anybody waits for it.
_PINGS: Final = 50
_SETTINGS: Final = ("notify-keyspace-events", "maxmemory-policy", "save", "maxclients")


class ServerFacts(NamedTuple):
    """What there is to know of a server.

    Attributes:
        info: What INFO says; empty where it is refused.
        settings: What CONFIG GET says of a few settings; None where it is refused.
        refusal: Why our scripts may not run; empty if they may.
        trips_s: How long answers took, sorted.
        skew_s: By how much the server's clock is ahead of this machine's.
        skew_error_s: How far off that may be.
    """

    info: dict[str, str]
    settings: dict[str, str] | None
    refusal: str
    trips_s: list[float]
    skew_s: float
    skew_error_s: float


def read_facts(channel: Channel) -> ServerFacts:
    """Asks a server.

    Raises:
        ServerError, NetworkLostError: As `Channel.call`.
    """
    info = _allowed(channel, ("INFO",))
    pairs = [_allowed(channel, ("CONFIG", "GET", name)) for name in _SETTINGS]
    settings = None
    if None not in pairs:
        # Empty for one that the server does not know.
        texts = [[raw.decode(errors="replace") for raw in pair] for pair in pairs]
        settings = {pair[0]: pair[1] for pair in texts if pair}
    refusal = ""
    try:
        channel.call(evalsha("peek_tasks", (), ["", 0]))
    except Refused as error:
        refusal = str(error)
    skew_s, skew_error_s = _skew(channel)
    return ServerFacts(
        parse_info(info) if isinstance(info, bytes) else {}, settings, refusal, _trips(channel), skew_s, skew_error_s
    )


def parse_info(raw: bytes) -> dict[str, str]:
    """Reads the answer of INFO."""
    pairs = (line.partition(":") for line in raw.decode().splitlines() if ":" in line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def _allowed(channel: Channel, command: tuple[str, ...]) -> Any:
    """The answer; None where the command is refused, as by managed servers and for users with few rights."""
    try:
        return channel.call(pack(command))[0]
    except Refused:
        return None


def _trips(channel: Channel) -> list[float]:
    ping = pack(("PING",))
    trips = []
    for _ in range(_PINGS):
        started_at = time.perf_counter()
        channel.call(ping)
        trips.append(time.perf_counter() - started_at)
    return sorted(trips)


def _skew(channel: Channel) -> tuple[float, float]:
    """The best of some tries: the one whose answer came soonest says most."""
    tries = []
    for _ in range(5):
        sent_at = time.time()
        [[seconds, micros]] = channel.call(pack(("TIME",)))
        answered_at = time.time()
        error_s = abs(answered_at - sent_at) / 2
        tries.append((error_s, int(seconds) + int(micros) / 1e6 - (sent_at + answered_at) / 2))
    error_s, skew_s = min(tries)
    return skew_s, error_s
