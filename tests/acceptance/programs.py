"""Whole programs that use the package: started by a test, watched, typed at, killed.

A program's processes are found while it lives; when the client is gone they are nobody's children any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

import rush_executor

REPOSITORY = Path(rush_executor.__file__).parents[1]
# A program that has not ended by then hangs.
DEADLINE_S = 60.0


def environment(**more: str) -> dict[str, str]:
    """For a program that finds the package, wherever it stands."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RUSH_")}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), env.get("PYTHONPATH")]))
    return {**env, **more}


def start_program(
    text: str, *args: str, directory: Path, flags: Sequence[str] = (), stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[str]:
    """Starts a program in a session of its own; its standard output and error, and possibly input, are pipes."""
    path = directory / "program.py"
    path.write_text(textwrap.dedent(text))
    return subprocess.Popen(
        [sys.executable, *flags, str(path), *args],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=directory,
        env=environment(),
        start_new_session=True,
    )


def finish(program: subprocess.Popen[str], *, code: int = 0) -> tuple[str, str]:
    """Waits for the end of a program; returns what it wrote to standard output and error."""
    try:
        out, err = program.communicate(timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        program.kill()
        out, err = program.communicate()
        raise AssertionError(f"the program hangs; stdout: {out!r}, stderr: {err!r}") from None
    assert program.returncode == code, f"exit code {program.returncode}; stdout: {out!r}, stderr: {err!r}"
    return out, err


def run_program(
    text: str,
    *args: str,
    directory: Path,
    flags: Sequence[str] = (),
    stdin: int = subprocess.DEVNULL,
    code: int = 0,
) -> tuple[str, str]:
    """Runs a program to its end; returns what it wrote to standard output and error."""
    return finish(start_program(text, *args, directory=directory, flags=flags, stdin=stdin), code=code)


def read_line(program: subprocess.Popen[str], wanted: str) -> str:
    """Reads what a program prints up to a line that starts with `wanted`, and returns the rest of it."""
    assert program.stdout is not None
    end_at = time.monotonic() + DEADLINE_S
    while time.monotonic() < end_at:
        line = program.stdout.readline()
        if not line:
            break
        if line.startswith(wanted):
            return line.removeprefix(wanted).strip()
    program.kill()
    _, err = program.communicate()
    raise AssertionError(f"the program did not print {wanted!r}; stderr: {err!r}")


def family(pid: int) -> list[psutil.Process]:
    """All descendants of a process, not itself."""
    descendants: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    return descendants


def whole_family(pid: int, n: int) -> list[psutil.Process]:
    """All `n` descendants of a process, as soon as they are there: a task may run before the last worker is forked."""
    end_at = time.monotonic() + DEADLINE_S
    while len(found := family(pid)) != n:
        assert time.monotonic() < end_at, f"{n} processes were expected, not {found}"
        time.sleep(0.002)
    return found


def alive(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those that live: a zombie, which only waits for its parent, does not."""
    return [p for p in processes if _is_alive(p)]


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_server(process: psutil.Process) -> bool:
    """Whether a descendant of a client is its private server."""
    return "valkey" in process.name() or "redis" in process.name()


@contextlib.contextmanager
def guarded(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """Ends what a failing test leaves of a program."""
    try:
        yield
    finally:
        for process in alive(processes):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


class Terminal:
    """A program that has a terminal, as one that a user started in a shell: what is typed is typed into that.

    Args:
        command: The program.
        directory: Where it is started.
        screen: Lines and columns, of a terminal that can place its cursor; None for one that only goes on.
        **more: Variables of its environment.
    """

    def __init__(
        self, command: Sequence[str], *, directory: Path, screen: tuple[int, int] | None = None, **more: str
    ) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.chdir(directory)
            env = environment(TERM="dumb" if screen is None else "xterm", PYTHON_BASIC_REPL="1", **more)
            if screen is not None:
                fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", *screen, 0, 0))
                env = {name: value for name, value in env.items() if name not in ("LINES", "COLUMNS")}
            os.execvpe(command[0], list(command), env)  # noqa: S606
        self._bytes, self._text = b"", ""
        self._seen = 0
        self._size = screen or (0, 0)

    def read_until(self, wanted: str) -> str:
        """Waits until the program has printed something new, and returns what it had printed up to then."""
        end_at = time.monotonic() + DEADLINE_S
        while (at := self._text.find(wanted, self._seen)) < 0:
            if not self._read(end_at):
                raise AssertionError(f"the program did not print {wanted!r}, but {self._text!r}")
        begin, self._seen = self._seen, at + len(wanted)
        return self._text[begin : self._seen]

    def screen(self) -> list[str]:
        """What the program has on the screen by now, for one that fills it, in lines without their trailing blanks."""
        while self._read(time.monotonic()):
            pass
        return _lines_on_screen(self._text.rpartition("\x1b[?1049h")[2], *self._size)

    def type(self, text: str) -> None:
        """Types; a final line break is return."""
        os.write(self._fd, text.encode())

    def press_ctrl_c(self) -> None:
        """Has the terminal send SIGINT to the processes in its foreground."""
        os.write(self._fd, b"\x03")

    def finish(self) -> tuple[int, str]:
        """Waits for the end; returns the exit code, negative for a signal, and all that was printed."""
        end_at = time.monotonic() + DEADLINE_S
        while self._read(end_at):
            pass
        status = 0
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > end_at:
                self.kill()
                raise AssertionError(f"the program hangs; it has printed {self._text!r}")
            time.sleep(0.005)
        os.close(self._fd)
        self._fd = -1
        return os.waitstatus_to_exitcode(status), self._text

    def kill(self) -> None:
        """Ends the program, and what it has started, if a test has not come to the end."""
        fd, self._fd = self._fd, -1
        try:
            os.close(fd)
        except OSError:
            return
        for process in [*family(self.pid), psutil.Process(self.pid)]:
            process.kill()
        os.waitpid(self.pid, 0)

    def _read(self, end_at: float) -> bool:
        readable, _, _ = select.select([self._fd], [], [], max(0.0, end_at - time.monotonic()))
        if not readable:
            return False
        try:
            data = os.read(self._fd, 65536)
        except OSError:
            # The last process that had the terminal open is gone.
            return False
        # All of it: the end of what was read before may have been half a line break, or half a character.
        self._bytes += data
        self._text = self._bytes.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)


# Control sequences and what a terminal does with them: letter and number before it.
_WRITTEN = re.compile(r"\x1b\[(?P<number>[?\d;]*)(?P<letter>[A-Za-z])|(?P<newline>\n)|(?P<text>[^\x1b\n]+)")


def _lines_on_screen(written: str, n_lines: int, n_columns: int) -> list[str]:
    """A terminal, as far as programs need it that begin each picture at the top left."""
    lines = [" " * n_columns] * n_lines
    y = x = 0
    for token in _WRITTEN.finditer(written):
        match token["letter"], token["number"]:
            case ("H", ""):
                y = x = 0
            case ("K", ""):
                lines[y] = lines[y][:x].ljust(n_columns)
            case ("J", ""):
                lines[y:] = [lines[y][:x].ljust(n_columns), *[" " * n_columns] * (n_lines - y - 1)]
            case ("m" | "h" | "l", _):
                # Colours; the cursor is shown or not.
                pass
            case (None, _) if token["newline"]:
                y, x = y + 1, 0
                assert y < n_lines, f"the screen is scrolled: {written!r}"
            case (None, _):
                assert x + len(token["text"]) <= n_columns, f"a line does not fit: {token['text']!r}"
                lines[y] = lines[y][:x] + token["text"] + lines[y][x + len(token["text"]) :]
                x += len(token["text"])
            case _:
                raise AssertionError(f"an unknown control sequence: {token[0]!r}")
    return [line.rstrip() for line in lines]
