"""Settings: checked at once, and secrets are in no repr and no message."""

from __future__ import annotations

import logging
import os
from typing import Any

import pytest

from rush_executor import _config
from rush_executor._config import (
    LogSettings,
    NetworkConfig,
    check_url,
    chosen_secret,
    cpu_count,
    default_network_id,
    default_secret,
    default_url,
    log_levels,
    redact,
    worker_environment,
)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUSH_URL", "RUSH_NETWORK", "RUSH_SECRET", *_config._THREAD_VARIABLES):
        monkeypatch.delenv(name, raising=False)


# ------------------------------------------------------------------------------------------------ NetworkConfig


def test_defaults_are_good() -> None:
    """What nobody chose passes the checks, and has the values that the documentation tells."""
    config = NetworkConfig(url="redis://h", network_id="n")
    assert (config.reconnect_timeout_s, config.heartbeat_period_s, config.heartbeat_expire_s) == (60, 3, 15)
    assert config.client_lease_s == 86_400
    assert config.secret is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"reconnect_timeout_s": -1}, "reconnect_timeout"),
        ({"heartbeat_period_s": 0}, "heartbeat_period"),
        ({"heartbeat_period_s": -3}, "heartbeat_period"),
        ({"heartbeat_period_s": 0.01}, "heartbeat_period"),
        ({"heartbeat_period_s": 3, "heartbeat_expire_s": 5.9}, "heartbeat_expire"),
        ({"heartbeat_expire_s": 0}, "heartbeat_expire"),
    ],
)
def test_what_cannot_work_is_refused(settings: dict[str, float], said: str) -> None:
    """At once, by the name that the user knows."""
    with pytest.raises(ValueError, match=said):
        NetworkConfig(url="redis://h", network_id="n", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [
        {"reconnect_timeout_s": 0},
        {"heartbeat_period_s": 0.1, "heartbeat_expire_s": 0.2},
        {"heartbeat_period_s": 3, "heartbeat_expire_s": 6},
    ],
)
def test_the_bounds_are_allowed(settings: dict[str, float]) -> None:
    """A bound is a value that works."""
    NetworkConfig(url="redis://h", network_id="n", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(("period", "expire"), [(3, 15), (3, 6), (0.5, 1.5), (0.1, 0.2), (2, 60)])
def test_when_an_agent_is_taken_for_dead(period: float, expire: float) -> None:
    """Not before `heartbeat_expire`, and not much later; one late sign of life does not even make it a suspect."""
    config = NetworkConfig(url="redis://h", network_id="n", heartbeat_period_s=period, heartbeat_expire_s=expire)
    assert config.heartbeat_ttl_s >= 2 * period
    assert expire <= config.heartbeat_ttl_s + config.doubt_s <= expire + 1.5


@pytest.mark.parametrize("name", ["reconnect_timeout_s", "heartbeat_period_s", "heartbeat_expire_s", "client_lease_s"])
def test_nan_is_refused(name: str) -> None:
    """A time-out that is no number compares as neither too small nor too large."""
    with pytest.raises(ValueError):
        NetworkConfig(url="redis://h", network_id="n", **{name: float("nan")})  # type: ignore[arg-type]


@pytest.mark.parametrize("lease", [0, -1])
def test_a_lease_that_has_run_out_before_it_begins_is_refused(lease: float) -> None:
    """PEXPIRE with 0 deletes: the client would be dead when it joins."""
    with pytest.raises(ValueError, match="lease"):
        NetworkConfig(url="redis://h", network_id="n", client_lease_s=lease)


def test_it_is_frozen_and_silent() -> None:
    """Passwords and secrets are in no repr: reprs end up in logs and tracebacks."""
    config = NetworkConfig(url="redis://:geheim@h", network_id="n", secret=b"siegel")
    assert "geheim" not in repr(config)
    assert "siegel" not in repr(config)
    with pytest.raises(AttributeError):
        config.network_id = "m"  # type: ignore[misc]


# ------------------------------------------------------------------------------------------------- environment


def test_the_environment_names_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing set, or set to nothing, is None."""
    for value in (None, ""):
        for name in ("RUSH_URL", "RUSH_NETWORK", "RUSH_SECRET"):
            if value is not None:
                monkeypatch.setenv(name, value)
        assert (default_url(), default_network_id(), default_secret()) == (None, None, None)
    monkeypatch.setenv("RUSH_URL", "redis://h")
    monkeypatch.setenv("RUSH_NETWORK", "net")
    monkeypatch.setenv("RUSH_SECRET", "größe")
    assert (default_url(), default_network_id(), default_secret()) == ("redis://h", "net", "größe".encode())


@pytest.mark.parametrize(
    ("given", "chosen"), [("text", b"text"), (b"raw", b"raw"), ("ü", "ü".encode()), (None, b"env")]
)
def test_the_secret_that_was_given_comes_first(
    monkeypatch: pytest.MonkeyPatch, given: str | bytes | None, chosen: bytes
) -> None:
    """An argument outranks the environment."""
    monkeypatch.setenv("RUSH_SECRET", "env")
    assert chosen_secret(given) == chosen


@pytest.mark.parametrize("secret", ["", b""])
def test_an_empty_secret_is_no_seal(monkeypatch: pytest.MonkeyPatch, secret: str | bytes) -> None:
    """Who passes an empty one has lost it somewhere: not told, all payloads would go unsealed."""
    monkeypatch.setenv("RUSH_SECRET", "env")
    with pytest.raises(ValueError, match="empty"):
        chosen_secret(secret)


def test_threads_of_numerical_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """An even share of the CPUs, unless the user or the environment says otherwise."""
    monkeypatch.setattr(_config, "cpu_count", lambda: 8)
    assert worker_environment(2, None)["OMP_NUM_THREADS"] == "4"
    assert worker_environment(3, None)["MKL_NUM_THREADS"] == "2"
    assert worker_environment(100, None)["OPENBLAS_NUM_THREADS"] == "1"
    assert worker_environment(2, 3)["OMP_NUM_THREADS"] == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert worker_environment(2, None)["OMP_NUM_THREADS"] == "5"
    assert worker_environment(2, None)["MKL_NUM_THREADS"] == "4"
    assert worker_environment(2, 3)["OMP_NUM_THREADS"] == "3"


def test_the_rest_of_the_environment_is_the_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    """And asking for it does not change this process's own."""
    monkeypatch.setenv("SOMETHING_ELSE", "x")
    before = dict(os.environ)
    assert worker_environment(2, 2)["SOMETHING_ELSE"] == "x"
    assert dict(os.environ) == before


def test_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that this process may use, where the system tells; at least one."""
    assert cpu_count() >= 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3}, raising=False)
    assert cpu_count() == 2
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpu_count() == 1


# ------------------------------------------------------------------------------------------------------ redact


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://user@host", "redis://user@host"),
        ("redis://user:geheim@host:6379/0", "redis://user:***@host:6379/0"),
        ("rediss://:geheim@host/3?ssl_cert_reqs=none", "rediss://:***@host/3?ssl_cert_reqs=none"),
        ("redis://u:p%40geheim@host", "redis://u:***@host"),
        ("redis://u:geheim@[::1]:6379", "redis://u:***@[::1]:6379"),
        ("unix://user:geheim@/tmp/s.sock?db=1", "unix://user:***@/tmp/s.sock?db=1"),
        ("unix:///tmp/s.sock", "unix:///tmp/s.sock"),
    ],
)
def test_redact(url: str, shown: str) -> None:
    """A message may name the server, never its password."""
    assert redact(url) == shown


@pytest.mark.parametrize("url", ["unix:///tmp/s.sock?db=1&password=geheim", "redis://host?password=geheim&username=u"])
def test_redact_a_password_in_the_options(url: str) -> None:
    """redis-py's own documentation puts the password of a unix socket there."""
    assert "geheim" not in redact(url)
    assert redact(url).startswith(url.partition("?")[0])


@pytest.mark.parametrize("url", ["redis://u:geheim@h:port", "u:geheim@h", "redis://u:geheim"])
def test_redact_never_raises(url: str) -> None:
    """It is called while a message about a bad URL is made."""
    assert isinstance(redact(url), str)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("foo", "foo"),
        ("http://host", "http://host"),
        ("user:geheim@host", "***@host"),
        ("http://u:geheim@host/x", "http://***@host/x"),
        ("redis://:ge/heim@host:6379/0", "redis://***@host:6379/0"),
        ("redis://u:ge@h/eim@host", "redis://***@host"),
        ("redis://:a://geheim@host", "***@host"),
        ("http://host?password=geheim", "http://host?password=***"),
        ("redis://:geheim@[::1/0", "redis://***@[::1/0"),
        ("redis://:#geheim@host", "redis://***@host"),
        ("redis://:?geheim@host", "redis://***@host"),
        ("rediss://:12?geheim@host/0", "rediss://***@host/0"),
    ],
)
def test_what_is_no_url(url: str, shown: str) -> None:
    """Is refused, with what a URL looks like; what may be a password is not shown."""
    with pytest.raises(ValueError, match="it must be redis://") as raised:
        check_url(url)
    assert repr(shown) in str(raised.value)
    assert "eim" not in str(raised.value)
    assert raised.value.__cause__ is raised.value.__context__ is None


def test_log_levels() -> None:
    """By number or by name, in any case of letters; one alone is the root logger's."""
    assert log_levels(None) == {}
    assert log_levels("debug") == {"": logging.DEBUG}
    assert log_levels(15) == {"": 15}
    assert log_levels({"a.b": "WARNING", "": 5}) == {"a.b": logging.WARNING, "": 5}


@pytest.mark.parametrize(("levels", "error"), [("loud", ValueError), ({"a": 1.5}, TypeError), ({1: "INFO"}, TypeError)])
def test_bad_log_levels(levels: Any, error: type[Exception]) -> None:
    """The message names what is wrong."""
    with pytest.raises(error, match=r"loud|float|int"):
        log_levels(levels)


def test_log_settings() -> None:
    """They travel as bytes, and make sense."""
    settings = LogSettings(levels={"a": 10}, buffer_size=5, output_dir="/x")
    assert LogSettings.from_bytes(settings.to_bytes()) == settings
    for name in ("buffer_size", "cap"):
        with pytest.raises(ValueError, match=name):
            LogSettings(**{name: 0})
