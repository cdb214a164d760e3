"""What a machine fetches, it fetches once for all its workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rush_executor._shared import cache as cache_module
from rush_executor._shared.cache import HostCache, remove_cache
from rush_executor._shared.files import OpenFile

CONTENT = os.urandom(300_000)
NAME = "c1-abc.3"


class Server:
    """Gives chunks, and counts how often."""

    def __init__(self) -> None:
        self.n_fetched = 0

    def fetch(self) -> Iterator[bytes]:
        self.n_fetched += 1
        for start in range(0, len(CONTENT), 100_000):
            yield CONTENT[start : start + 100_000]


@pytest.fixture(autouse=True)
def _root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_root", lambda: str(tmp_path))


def content(file: OpenFile) -> bytes:
    [found] = file.buffers([(0, len(CONTENT))])
    file.close()
    return bytes(found)


def test_once_for_all(tmp_path: Path) -> None:
    """However many workers ask, one after the other or at the same time."""
    server = Server()
    found: list[bytes] = []

    def ask() -> None:
        found.append(content(HostCache("ag1").open(NAME, len(CONTENT), server.fetch)))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    ask()
    assert found == [CONTENT] * 9
    assert server.n_fetched == 1
    assert [path.name for path in (tmp_path / "rush-executor-ag1" / "far").iterdir()] == [NAME]
    remove_cache("ag1")


def test_its_agent_removes_it(tmp_path: Path) -> None:
    """What is mapped stays readable."""
    file = HostCache("ag1").open(NAME, len(CONTENT), Server().fetch)
    remove_cache("ag1")
    assert list(tmp_path.iterdir()) == []
    assert content(file) == CONTENT


def test_what_a_killed_agent_has_left_is_found_by_the_next(tmp_path: Path) -> None:
    """Also where no client makes a directory at the same place; what somebody holds stays."""
    dead, alive = HostCache("ag1"), HostCache("ag2")
    for cache in (dead, alive):
        cache.open(NAME, len(CONTENT), Server().fetch).close()
    assert dead._directory is not None
    dead._directory.disown()
    HostCache("ag3").open(NAME, len(CONTENT), Server().fetch).close()
    assert {path.name for path in tmp_path.iterdir()} == {"rush-executor-ag2", "rush-executor-ag3"}


def test_a_fetch_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """The next worker fetches it, and the error is that of the one who asked."""

    def gone() -> Iterator[bytes]:
        yield CONTENT[:1000]
        raise KeyError("abc")

    cache = HostCache("ag1")
    with pytest.raises(KeyError):
        cache.open(NAME, len(CONTENT), gone)
    assert list((tmp_path / "rush-executor-ag1" / "far").iterdir()) == []
    assert content(cache.open(NAME, len(CONTENT), Server().fetch)) == CONTENT


def test_who_fetches_is_killed(tmp_path: Path) -> None:
    """Another worker, which has waited for it, fetches it then."""
    program = f"""
import sys
from rush_executor._shared import cache
cache._root = lambda: {str(tmp_path)!r}
def fetch():
    yield b"x" * 1000
    print(flush=True)
    sys.stdin.read()
cache.HostCache("ag1").open({NAME!r}, 10, fetch)
"""
    fetcher = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert fetcher.stdout is not None
    fetcher.stdout.readline()
    server = Server()
    found: list[bytes] = []
    waiter = threading.Thread(
        target=lambda: found.append(content(HostCache("ag1").open(NAME, len(CONTENT), server.fetch)))
    )
    waiter.start()
    waiter.join(0.2)
    assert server.n_fetched == 0
    fetcher.send_signal(signal.SIGKILL)
    fetcher.communicate()
    waiter.join(30)
    assert found == [CONTENT]


def test_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was fetched before makes room; if that is not enough, it is said, and who needs it has it for itself."""
    cache = HostCache("ag1")
    cache.open(NAME, len(CONTENT), Server().fetch).close()
    monkeypatch.setattr(cache_module, "room_in", lambda _path: len(CONTENT))
    with pytest.raises(OSError, match="no room"):
        cache.open("c1-def.3", len(CONTENT), Server().fetch)
    monkeypatch.setattr(cache_module, "room_in", lambda _path: 1e9)
    server = Server()
    cache.open(NAME, len(CONTENT), server.fetch).close()
    assert server.n_fetched == 1, "it had made room"


def test_what_nobody_uses_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """When something else is fetched, after a while."""
    cache, server = HostCache("ag1"), Server()
    cache.open(NAME, len(CONTENT), server.fetch).close()
    cache.open("c1-def.3", len(CONTENT), server.fetch).close()
    cache.open(NAME, len(CONTENT), server.fetch).close()
    assert server.n_fetched == 2
    monkeypatch.setattr(cache_module, "_UNUSED_S", -1.0)
    cache.open("c1-0a.3", len(CONTENT), server.fetch).close()
    cache.open(NAME, len(CONTENT), server.fetch).close()
    assert server.n_fetched == 4


@pytest.mark.parametrize("is_made_anew", [False, True], ids=["gone", "another one's"])
def test_a_lock_that_was_waited_for_is_not_the_one_that_others_ask_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_made_anew: bool
) -> None:
    """Whoever had it has removed its file, and somebody else may hold a new one: that is not touched."""
    lock = tmp_path / "x.lock"
    flock = cache_module.fcntl.flock

    def wait(fd: int, how: int) -> None:
        flock(fd, how)
        if how == cache_module.fcntl.LOCK_EX:
            lock.unlink()
            if is_made_anew:
                lock.write_text("another one's")

    monkeypatch.setattr(cache_module.fcntl, "flock", wait)
    with cache_module._lock(str(lock)) as is_current:
        assert not is_current
    assert lock.exists() == is_made_anew
