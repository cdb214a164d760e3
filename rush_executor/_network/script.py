"""The script that starts workers on another machine."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from rush_executor._config import NetworkConfig, redact

__all__ = ["run_script", "worker_script"]


def worker_script(config: NetworkConfig, *, n_workers: int, python: str) -> str:
    """Writes the script.

    Nothing secret is in it: what it needs of that, it takes from the environment, and hands on there. So neither the
    text nor the list of processes tells it.

    Args:
        config: The network.
        n_workers: How many workers it starts.
        python: The interpreter, if the environment names none.
    """
    is_secret = redact(config.url) != config.url
    # In a comment a line break would end the comment.
    lines = [
        "#!/bin/sh",
        f"# Starts {n_workers} workers of network {config.network_id}.",
        "# RUSH_PYTHON names an interpreter that has the Python package.",
    ]
    if is_secret:
        host = urlsplit(config.url).hostname or "the server"
        text = f"set RUSH_URL to the URL of the server ({host}), with its password"
        lines.append(f': "${{RUSH_URL:?{_plain(text)}}}"')
    else:
        lines.append(f"RUSH_URL=${{RUSH_URL:-{shlex.quote(config.url)}}}")
    if config.secret is not None:
        lines.append(': "${RUSH_SECRET:?set RUSH_SECRET to the secret of the network}"')
    lines += [
        f"RUSH_NETWORK={shlex.quote(config.network_id)}",
        "export RUSH_URL RUSH_NETWORK RUSH_SECRET",
        f'exec "${{RUSH_PYTHON:-{_plain(python)}}}" -m rush_executor worker --workers {n_workers} \\',
        f"    --reconnect-timeout {config.reconnect_timeout_s:g} --heartbeat-period {config.heartbeat_period_s:g} \\",
        f"    --heartbeat-expire {config.heartbeat_expire_s:g}",
        "",
    ]
    return "\n".join(lines)


def run_script(command: Sequence[str], script: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Starts a command that reads a script from its standard input, such as ``["ssh", "host", "sh"]``."""
    # A session of its own: Ctrl-C at this terminal is not for the workers.
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True)
    assert process.stdin is not None  # noqa: S101 - for the type checker
    process.stdin.write(script.encode())
    process.stdin.close()
    return process


def _plain(text: str) -> str:
    """The text without what means something to a shell inside double quotes and braces."""
    return "".join(c for c in text if c not in '"$`\\{}' and c.isprintable())
