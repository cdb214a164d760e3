"""`rush-executor server`: what it prints works, only who has the password gets in, and nothing outlives it."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rush_executor import RushExecutor, ServerError
from tests.acceptance.programs import DEADLINE_S, REPOSITORY, Terminal, environment

Eventually = Callable[..., Any]
COMMAND = (sys.executable, "-m", "rush_executor", "server")
PASSWORD = 'correct "horse" \\ battery:@/staple'  # noqa: S105 - of a server that lives as long as a test


def start(*words: str, **more: str) -> subprocess.Popen[str]:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*COMMAND, *words], text=True, env=environment(**more), cwd=REPOSITORY, **pipes)


def told(server: subprocess.Popen[str]) -> dict[str, Any]:
    """What it says of itself once it is there."""
    assert server.stdout is not None
    line = server.stdout.readline()
    assert line, server.communicate(timeout=DEADLINE_S)[1]
    found: dict[str, Any] = json.loads(line)
    return found


@pytest.fixture
def server() -> Iterator[subprocess.Popen[str]]:
    """One with a made-up password, ended after the test."""
    with start("--json") as server:
        yield server
        server.terminate()
        server.communicate(timeout=DEADLINE_S)


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_two_terminals(tmp_path: Path) -> None:
    """The lines that it prints into a terminal are all that is needed: workers, a program, `top`, Ctrl-C."""
    terminal = Terminal([*COMMAND], directory=REPOSITORY)
    try:
        text = terminal.read_until("all that it holds is gone.")
        [url] = re.findall(r"redis://:[\w-]+@127\.0\.0\.1:\d+/0", text)
        [worker, top] = re.findall(r"^    rush-executor (.*)$", text, re.MULTILINE)
        program = "\n".join(line[4:] for line in re.findall(r"^    (?:from|url|with|    ).*$", text, re.MULTILINE))
        env = environment()
        cli = [sys.executable, "-m", "rush_executor"]
        with subprocess.Popen([*cli, *shlex.split(worker), "--workers", "1"], env=env, cwd=REPOSITORY) as agent:
            options: dict[str, Any] = {"env": env, "cwd": REPOSITORY, "capture_output": True, "text": True}
            run = subprocess.run([sys.executable, "-c", program], timeout=DEADLINE_S, check=False, **options)
            assert (run.returncode, run.stdout, run.stderr) == (0, "[3, 2, 1, 0, 1, 2]\n", "")
            with RushExecutor(0, url=url, network_id="demo") as executor:
                assert executor.submit(pow, 2, 3).result(DEADLINE_S) == 8
                words = [*cli, *shlex.split(top), "--once", "--interval", "0.1"]
                run = subprocess.run(words, timeout=DEADLINE_S, check=False, **options)
                assert run.stdout.startswith("network demo (an executor's) on redis://:***@127.0.0.1:"), run.stderr
            agent.terminate()
            assert agent.wait(DEADLINE_S) == 0
        terminal.press_ctrl_c()
        code, text = terminal.finish()
        assert code == 0
        assert text.endswith("The server has ended.\n")
    finally:
        terminal.kill()


def test_a_name_with_quotes(tmp_path: Path) -> None:
    """What it prints is for a shell, and for Python, whatever stands in a name."""
    name, file = "a'b;id", tmp_path / "it's a file"
    with start("--network", name, "--url-file", str(file)) as server:
        assert server.stdout is not None
        lines = []
        while not lines or not lines[-1].startswith("Ctrl-C"):
            lines.append(server.stdout.readline())
        server.terminate()
        server.communicate(timeout=DEADLINE_S)
    [worker, top] = [shlex.split(line) for line in lines if line.startswith("    rush-executor")]
    assert worker == ["rush-executor", "worker", "--url-file", str(file), "--network", name]
    assert top == ["rush-executor", "top", "--url-file", str(file)]
    program = ast.parse(textwrap.dedent("".join(line for line in lines if re.match("    (from|url|with|    )", line))))
    assert {name, str(file)} <= {node.value for node in ast.walk(program) if isinstance(node, ast.Constant)}


def test_who_gets_in(server: subprocess.Popen[str]) -> None:
    """Who has the password, from this machine: it is in a file for this user alone, and nowhere else."""
    found = told(server)
    assert re.fullmatch(r"redis://:\*\*\*@127\.0\.0\.1:\d+/0", found["url"])
    assert found["is_local"] is True
    file = Path(found["url_file"])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    url = file.read_text()
    password = url.partition(":***")[0].removeprefix("redis://:").partition("@")[0]
    assert len(password) >= 32
    family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    assert len(family) == 3
    assert not [process for process in family if password in " ".join(process.cmdline())]
    port = int(found["url"].rpartition(":")[2].partition("/")[0])
    addresses = {c.laddr.ip for p in family for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert addresses == {"127.0.0.1"}
    for wrong, why in (
        (f"redis://127.0.0.1:{port}/0", "does not let us in"),
        (url.replace(password, "wrong"), "Has the URL the right password"),
        (f"unix://{file.with_name('valkey.sock')}", "Authentication required"),
    ):
        with pytest.raises(ServerError, match=why):
            RushExecutor(1, url=wrong)
    with RushExecutor(1, url=url) as executor:
        assert executor.submit(pow, 2, 3).result(DEADLINE_S) == 8


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals(signum: int, tmp_path: Path) -> None:
    """End it, and what it has made: server, files, watcher. That is no failure."""
    file = tmp_path / "server.url"
    with start("--json", "--url-file", str(file)) as server:
        found = told(server)
        assert found["url_file"] == str(file)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        family = psutil.Process(server.pid).children(recursive=True)
        server.send_signal(signum)
        assert server.wait(DEADLINE_S) == 0
        assert all(is_gone(process.pid) for process in family)
        assert not file.exists()


def test_killed(eventually: Eventually) -> None:
    """SIGKILL leaves the command no time; a watcher ends the server."""
    with start("--json") as server:
        found = told(server)
        family = psutil.Process(server.pid).children(recursive=True)
        server.kill()
        server.wait(DEADLINE_S)
        eventually(lambda: all(is_gone(process.pid) for process in family))
        eventually(lambda: not Path(found["url_file"]).parent.exists())


PARENT = """
import signal, subprocess, sys, time
if sys.argv[1] == "nohup":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
server = subprocess.Popen(sys.argv[2:], stdout=subprocess.PIPE, text=True)
print(server.pid, server.stdout.readline(), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("how", ["", "nohup"])
def test_its_parent_ends(how: str, eventually: Eventually) -> None:
    """So does the server, unless it was started under nohup: then it stays, until it is told to end."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, how, *COMMAND, "--json"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=REPOSITORY,
    ) as parent:
        assert parent.stdout is not None
        pid, _, line = parent.stdout.readline().partition(" ")
        server = psutil.Process(int(pid))
        found = json.loads(line)
        parent.kill()
        parent.wait()
        if how == "nohup":
            # Longer than it takes to look at the parent, twice.
            time.sleep(1.2)
            assert server.is_running()
            assert not is_gone(found["pid"])
            server.terminate()
        eventually(lambda: is_gone(server.pid) and is_gone(found["pid"]))


def test_its_terminal_ends(eventually: Eventually) -> None:
    """So does the server."""
    terminal = Terminal([*COMMAND], directory=REPOSITORY)
    terminal.read_until("all that it holds is gone.")
    family = psutil.Process(terminal.pid).children(recursive=True)
    os.close(terminal._fd)
    os.waitpid(terminal.pid, 0)
    eventually(lambda: all(is_gone(process.pid) for process in family))


@pytest.mark.parametrize("source", ["file", "environment"])
def test_a_password_of_ones_own(source: str, tmp_path: Path) -> None:
    """From a file or from the environment; any printable characters."""
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\n")
    words = ["--password-file", str(file)] if source == "file" else []
    more = {} if source == "file" else {"RUSH_PASSWORD": PASSWORD}
    with start("--json", *words, **more) as server:
        url = Path(told(server)["url_file"]).read_text()
        with RushExecutor(1, url=url) as executor:
            assert executor.submit(pow, 2, 3).result(DEADLINE_S) == 8
        server.terminate()
        assert server.wait(DEADLINE_S) == 0


def test_for_other_machines() -> None:
    """What that means is said plainly; the URL says how others call this machine. No password goes into a log."""
    with start("--bind", "0.0.0.0", "--host", "my-host") as server:  # noqa: S104 - as a user may
        assert server.stdout is not None
        lines = []
        while not lines or not lines[-1].startswith("Ctrl-C"):
            lines.append(server.stdout.readline())
            assert lines[-1], server.communicate(timeout=DEADLINE_S)[1]
        text = "".join(lines)
        assert "EVERY MACHINE that reaches this one reaches it too" in text
        assert "RUSH_SECRET" in text
        [file] = re.findall(r"Its URL is also in (\S+),", text)
        url = Path(file).read_text()
        assert re.fullmatch(r"redis://:[\w-]+@my-host:\d+/0", url)
        assert url.removeprefix("redis://:").partition("@")[0] not in text
        server.terminate()
        assert server.wait(DEADLINE_S) == 0


def test_a_port_that_is_taken() -> None:
    """Is told at once, and nothing is started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = start("--port", str(taken.getsockname()[1]))
        _, text = done.communicate(timeout=DEADLINE_S)
    assert done.returncode == 2
    assert "cannot listen on 127.0.0.1" in text


def test_a_server_that_dies() -> None:
    """Is a failure, and told."""
    with start("--json") as server:
        os.kill(told(server)["pid"], signal.SIGKILL)
        _, text = server.communicate(timeout=DEADLINE_S)
        assert server.returncode == 1
        assert "has ended, with exit code -9 (killed" in text
