"""The integration tests run on every kind of server that is on this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rush_executor._ledger import client as client_module
from rush_executor._ledger import connection as connection_module
from rush_executor._ledger import worker as worker_module
from rush_executor._ledger.server import EmbeddedServer
from tests.integration.rig import Rig
from tests.integration.servers import KINDS, find_server, start_server


@pytest.fixture(scope="session", params=KINDS)
def server_kind(request: pytest.FixtureRequest) -> str:
    """Name of a kind of server, for `start_server`."""
    kind: str = request.param
    _, objection = find_server(kind)
    if objection:
        pytest.skip(f"{kind}: {objection}")
    return kind


@pytest.fixture(scope="session")
def _shared_server(server_kind: str) -> Iterator[str]:
    server = start_server(server_kind)
    yield server.url
    server.stop()


@pytest.fixture(autouse=True)
def _who_waits_is_counted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a test takes."""
    monkeypatch.setattr(worker_module, "_COUNTED_S", "1000000")


@pytest.fixture
def long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """No timer ends a wait at a bell or an inbox before the test gives up. To be made before the rig."""
    seconds = 60.0
    monkeypatch.setattr(connection_module, "IDLE_BLOCK_S", seconds)
    monkeypatch.setattr(worker_module, "BLOCK_S", seconds)
    monkeypatch.setitem(worker_module.WorkerLedger.exchange.__kwdefaults__, "wait_s", seconds)
    monkeypatch.setattr(client_module, "_BLOCK_MS", int(1000 * seconds))


@pytest.fixture
def own_server(server_kind: str) -> Iterator[EmbeddedServer]:
    """A server that the test has for itself."""
    server = start_server(server_kind)
    yield server
    server.stop()


@pytest.fixture
def rig(server_url: str) -> Iterator[Rig]:
    """A network on the shared server; all that take part have left when the test is over, and then no key is left."""
    with Rig(server_url) as rig:
        yield rig
