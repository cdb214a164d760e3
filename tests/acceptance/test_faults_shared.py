"""Workers of one client run tasks of another: what becomes of these when the first one dies."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rush_executor import RushExecutor, WorkerLostError
from tests.acceptance.programs import alive, family

Eventually = Callable[..., Any]
DEADLINE_S = 60
OWNER = """
import sys, time
from rush_executor import RushExecutor

with RushExecutor(1, url=sys.argv[1], network_id="shared"):
    print("ready", flush=True)
    time.sleep(600)
"""


def note_and_wait(path: str, gate: str) -> str:
    with Path(path).open("a") as file:
        file.write("x")
    while not Path(gate).exists():
        time.sleep(0.01)
    return "done"


@pytest.fixture
def owner(server_url: str) -> Iterator[subprocess.Popen[str]]:
    """Another client, with the only worker of the network."""
    process = subprocess.Popen([sys.executable, "-c", OWNER, server_url], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()
        process.wait()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=lambda how: how.name)
@pytest.mark.parametrize("max_retries", [0, 2])
def test_the_owner_of_the_workers_dies(  # noqa: PLR0917 - fixtures
    server_url: str,
    owner: subprocess.Popen[str],
    tmp_path: Path,
    eventually: Eventually,
    how: signal.Signals,
    max_retries: int,
) -> None:
    """A task that may be run once is not run again; any other is, by the next worker that comes."""
    path, gate = tmp_path / "runs", tmp_path / "gate"
    with RushExecutor(0, url=server_url, network_id="shared") as client:
        future = client.options(max_retries=max_retries).submit(note_and_wait, str(path), str(gate))
        eventually(lambda: path.exists() and path.read_text())
        workers = family(owner.pid)
        owner.send_signal(how)
        owner.wait(DEADLINE_S)
        # Until then the task may end well.
        eventually(lambda: not alive(workers))
        gate.touch()
        with RushExecutor(1, url=server_url, network_id="shared"):
            if max_retries:
                assert future.result(DEADLINE_S) == "done"
            else:
                assert isinstance(future.exception(DEADLINE_S), WorkerLostError)
        assert path.read_text() == "x" * (2 if max_retries else 1)


def test_nobody_is_there(server_url: str, caplog: pytest.LogCaptureFixture, eventually: Eventually) -> None:
    """Tasks wait for the first worker, and meanwhile a warning says what they wait for: a name may be misspelt."""
    with RushExecutor(0, url=server_url, network_id="lonely", heartbeat_period=0.5) as client:
        future = client.submit(pow, 2, 3)
        eventually(lambda: "no worker has joined network 'lonely'" in caplog.text)
        with RushExecutor(1, url=server_url, network_id="lonely"):
            assert future.result(DEADLINE_S) == 8
    assert caplog.text.count("no worker has joined") == 1


def test_own_workers_may_take_their_time(server_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """No warning while they start: they come."""
    with RushExecutor(1, url=server_url, heartbeat_period=0.5, initializer=time.sleep, initargs=(4.5,)) as executor:
        assert executor.submit(pow, 2, 3).result(DEADLINE_S) == 8
    assert caplog.text == ""
