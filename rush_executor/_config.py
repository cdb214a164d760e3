"""Settings, checked once and frozen; the only reader of the environment.

| variable | meaning |
|---|---|
| `RUSH_URL` | server to use when no `url` is given |
| `RUSH_NETWORK` | network that the commands of `rush-executor` are about when none is named |
| `RUSH_SECRET` | secret that seals payloads when none is given |
| `RUSH_PASSWORD` | password of the server that `rush-executor server` starts |
| `JOBLIB_TEMP_FOLDER` | joblib's: where to put large arrays when no folder is given |
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

__all__ = [
    "DEFAULT_MAX_RETRIES",
    "HIGHEST_PRIORITY",
    "URL_FORMS",
    "LogSettings",
    "NetworkConfig",
    "check_url",
    "chosen_secret",
    "cpu_count",
    "default_network_id",
    "default_password",
    "default_secret",
    "default_url",
    "is_dumb_terminal",
    "joblib_temp_folder",
    "launcher_environment",
    "log_levels",
    "redact",
    "set_worker_environment",
    "thread_settings",
    "worker_environment",
]

# Three attempts: one crash may be bad luck, two a coincidence, the third is the task's own doing.
DEFAULT_MAX_RETRIES = 2
# A queue rank is a double: 53 bits, of which 40 count submissions.
HIGHEST_PRIORITY = 4095

# Libraries read these at import; the names are those that joblib sets as well.
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
_SHORTEST_HEARTBEAT_S = 0.1
_SHORTEST_DOUBT_S = 1.0
_SCHEMES = ("redis://", "rediss://", "unix://")
# What a URL looks like, to end a sentence.
URL_FORMS = "it must be redis://[[USER]:PASSWORD@]HOST[:PORT][/DB], rediss:// and the same, or unix:///PATH"


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """How a process takes part in a network.

    Attributes:
        url: Server, as redis-py reads URLs.
        network_id: The network.
        secret: Key that seals payloads; None for no seal.
        reconnect_timeout_s: How long a lost server is waited for.
        heartbeat_period_s: How often an agent gives a sign of life.
        heartbeat_expire_s: After how long without one it is taken for dead.
        client_lease_s: How long what the server keeps for a client outlives the client's last sign of life, when
            nobody is left to clean up after it. A day: a laptop may sleep over night.
        is_durable: Whether the network, if it is created, is to keep tasks and outcomes when its clients leave.
        compresses: Whether a client compresses what passes through the server.
    """

    url: str = field(repr=False)
    network_id: str
    secret: bytes | None = field(default=None, repr=False)
    reconnect_timeout_s: float = 60.0
    heartbeat_period_s: float = 3.0
    heartbeat_expire_s: float = 15.0
    client_lease_s: float = 86_400.0
    is_durable: bool = False
    compresses: bool = False

    def __post_init__(self) -> None:
        for name in ("reconnect_timeout_s", "heartbeat_period_s", "heartbeat_expire_s", "client_lease_s"):
            if math.isnan(getattr(self, name)):
                raise ValueError(f"{name.removesuffix('_s')} must be a number of seconds, not NaN")
        if self.client_lease_s <= 0:
            raise ValueError("client_lease must be > 0 seconds")
        if self.reconnect_timeout_s < 0:
            raise ValueError("reconnect_timeout must be >= 0 seconds")
        if self.heartbeat_period_s < _SHORTEST_HEARTBEAT_S:
            raise ValueError(f"heartbeat_period must be >= {_SHORTEST_HEARTBEAT_S} seconds")
        if self.heartbeat_expire_s < 2 * self.heartbeat_period_s:
            raise ValueError("heartbeat_expire must be at least twice heartbeat_period: one late beat is no death")

    @property
    def doubt_s(self) -> float:
        """How long an agent without a heartbeat is only suspected: it may be about to give a sign of life."""
        return max(self.heartbeat_period_s / 2, _SHORTEST_DOUBT_S)

    @property
    def heartbeat_ttl_s(self) -> float:
        """How long one sign of life lasts: when the doubt is over, too, `heartbeat_expire_s` are, and not much more."""
        return max(self.heartbeat_expire_s - self.doubt_s, 2 * self.heartbeat_period_s)


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """What a worker logs to its network.

    Attributes:
        levels: Level of each logger that is to have another one than it has, by its name; see `log_levels`.
        buffer_size: Records that are collected before they are sent; an error, or a second, sends them earlier.
        cap: How many records of a worker the server keeps, about.
        is_output_captured: Whether what is printed is logged, too.
        output_dir: Folder for files with what is printed, ``<worker>.out`` and ``<worker>.err``; None for no files.
    """

    levels: Mapping[str, int] = field(default_factory=dict)
    buffer_size: int = 100
    cap: int = 10_000
    is_output_captured: bool = True
    output_dir: str | None = None

    def __post_init__(self) -> None:
        for name in ("buffer_size", "cap"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, not {getattr(self, name)}")

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> LogSettings:
        return cls(**json.loads(raw))


def log_levels(levels: Mapping[str, int | str] | int | str | None) -> dict[str, int]:
    """Levels of loggers as numbers, by name.

    Args:
        levels: ``{"mylib": "DEBUG", "": logging.WARNING}``; the root logger's name is empty. One level alone is the
            root logger's.

    Raises:
        TypeError: A level is neither a number nor a name, or a logger's name no string.
        ValueError: `logging` knows no level of this name.
    """
    if levels is None:
        return {}
    if not isinstance(levels, Mapping):
        levels = {"": levels}
    numbers: dict[str, int] = {}
    for name, level in levels.items():
        if not isinstance(name, str):
            raise TypeError(f"the name of a logger must be a string, not {type(name).__name__}")
        if isinstance(level, str):
            known = logging.getLevelNamesMapping()
            if level.upper() not in known:
                raise ValueError(f"log level {level!r} is none of {', '.join(known)}")
            numbers[name] = known[level.upper()]
        elif isinstance(level, int):
            numbers[name] = int(level)
        else:
            raise TypeError(f"a log level must be a number or a name, not {type(level).__name__}")
    return numbers


def default_url() -> str | None:
    """Server named by the environment."""
    return os.environ.get("RUSH_URL") or None


def default_network_id() -> str | None:
    """Network named by the environment."""
    return os.environ.get("RUSH_NETWORK") or None


def default_secret() -> bytes | None:
    """Secret named by the environment."""
    secret = os.environ.get("RUSH_SECRET")
    return secret.encode() if secret else None


def default_password() -> str | None:
    """Password for a server that is started, named by the environment."""
    return os.environ.get("RUSH_PASSWORD") or None


def is_dumb_terminal() -> bool:
    """Whether the terminal says that it cannot move its cursor, or nothing at all."""
    return os.environ.get("TERM", "dumb") in ("", "dumb", "unknown")


def joblib_temp_folder() -> str | None:
    """Folder that joblib's users have named for large arrays."""
    return os.environ.get("JOBLIB_TEMP_FOLDER") or None


def cpu_count() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def worker_environment(n_workers: int, n_threads: int | None) -> Mapping[str, str]:
    """Environment for workers: this process's, and how many threads a numerical library may start in each.

    Args:
        n_workers: Workers that share this machine.
        n_threads: Threads for each; None for an even share of the CPUs, where the environment says nothing.
    """
    environment = dict(os.environ)
    for name in _THREAD_VARIABLES:
        if n_threads is not None:
            environment[name] = str(n_threads)
        else:
            environment.setdefault(name, str(max(1, cpu_count() // n_workers)))
    return environment


def thread_settings() -> Mapping[str, str]:
    """What the environment says about threads of numerical libraries."""
    return {name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ}


def set_worker_environment(n_workers: int, n_threads: int | None) -> None:
    """Gives this process, and so the workers that it forks, the environment of `worker_environment`."""
    os.environ.update(worker_environment(n_workers, n_threads))


def launcher_environment(config: NetworkConfig) -> Mapping[str, str]:
    """Environment for a command that starts workers elsewhere: this process's, and what the script reads there."""
    environment = {**os.environ, "RUSH_URL": config.url, "RUSH_PYTHON": sys.executable}
    if config.secret is not None:
        environment["RUSH_SECRET"] = os.fsdecode(config.secret)
    return environment


def chosen_secret(secret: str | bytes | None) -> bytes | None:
    """The secret that was given, or the one that the environment names.

    Raises:
        ValueError: The one that was given is empty, which would be no seal.
    """
    if secret is None:
        return default_secret()
    if not secret:
        raise ValueError("secret must not be empty; leave it out for no seal")
    return secret.encode() if isinstance(secret, str) else secret


def check_url(url: str) -> str:
    """Returns the URL of a server, or raises.

    Raises:
        ValueError: It is none that could be used; its password does not stand in the message.
    """
    if not _is_url(url):
        raise ValueError(f"{redact(url)!r} is no URL of a server: {URL_FORMS}")
    return url


def redact(url: str) -> str:
    """The URL without its password, for messages; of what is no URL, all that may be one is left out."""
    # redis-py takes a password among the options as well.
    url = re.sub(r"(?<=[?&])(password=)[^&#]*", r"\1***", url)
    if not _is_url(url):
        # A password with a slash in it, say, would be taken for host and path.
        scheme, mark, rest = url.rpartition("://") if url.count("://") == 1 else ("", "", url)
        return f"{scheme}{mark}***@{rest.rpartition('@')[2]}" if "@" in rest else url
    parts = urlsplit(url)
    if parts.password is None:
        return url
    location = parts.netloc.rpartition("@")[2]
    return url.replace(parts.netloc, f"{parts.username or ''}:***@{location}", 1)


def _is_url(url: str) -> bool:
    """Whether redis-py could read it as it is meant."""
    if not url.startswith(_SCHEMES):
        return False
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    # Behind the host there is the number of a database, and options: an "@" elsewhere is the end of a password.
    stray = [option for option in parts.query.split("&") if "=" not in option]
    return parts.scheme == "unix" or "@" not in "".join([parts.path, parts.fragment, *stray])
