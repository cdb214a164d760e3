"""A proxy between a party and its server that loses what passes, when a test says so.

It stands for the network: a request that never arrives, a reply that is lost after the server has acted, half a reply,
a server that is not to be reached for a while, a line on which everything vanishes though it stays open, a slow line.
"""

from __future__ import annotations

import random
import select
import shutil
import socket
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import unquote

import hiredis

__all__ = ["Proxy"]

_CHUNK: Final = 1 << 16


class Proxy:
    """Passes everything on, until it is told to cut.

    Attributes:
        url: Of the proxy, for whoever is to go through it.
        n_cuts: How many connections it has cut.
    """

    def __init__(self, server_url: str, *, is_tcp: bool = False) -> None:
        self._server_path = unquote(server_url.removeprefix("unix://"))
        self._directory = tempfile.mkdtemp(prefix="p-", dir="/tmp")
        if is_tcp:
            self._socket = socket.create_server(("127.0.0.1", 0))
            self.url = f"redis://127.0.0.1:{self._socket.getsockname()[1]}/0"
        else:
            path = str(Path(self._directory) / "s")
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.bind(path)
            self._socket.listen(64)
            self.url = f"unix://{path}"
        self.n_cuts = 0
        self._lock = threading.Lock()
        self._replies_to_hold: int | None = None
        self._bytes_to_pass = 0
        self._is_request_lost = False
        self._is_refusing = False
        self._is_swallowing = False
        self._chance = 0.0
        self._bytes_per_s = 0.0
        self._links: list[_Link] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        # `close` alone does not wake a thread that waits in `accept`.
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for link in self._links:
            link.cut()
        for thread in self._threads:
            thread.join(10)
        shutil.rmtree(self._directory)

    def lose_reply(self, *, n_replies: int = 1, passing: int = 0) -> None:
        """Cuts the next connection on which a reply comes, once the server has given so many of them.

        Args:
            n_replies: As many as the party sends commands in one go, to know that the server has done them all.
            passing: Bytes of the replies that pass before the cut.
        """
        with self._lock:
            self._replies_to_hold, self._bytes_to_pass = n_replies, passing

    def lose_request(self) -> None:
        """Cuts the next connection on which a request comes, before the server sees it."""
        with self._lock:
            self._is_request_lost = True

    def go_away(self) -> None:
        """Cuts everything and takes no connection, until `come_back`."""
        with self._lock:
            self._is_refusing = True
            links = list(self._links)
        for link in links:
            link.cut()

    def come_back(self) -> None:
        """Passes on again."""
        with self._lock:
            self._is_refusing = False

    def lose_by_chance(self, chance: float) -> None:
        """From now on cuts with this probability whenever something passes, in either direction."""
        self._chance = chance

    def swallow(self) -> None:
        """Lets everything vanish until `stop_swallowing`; connections stay open, and new ones are taken."""
        self._is_swallowing = True

    def stop_swallowing(self) -> None:
        """Passes on again, but not on a connection that has lost something: what follows would make no sense."""
        self._is_swallowing = False

    def slow_down(self, bytes_per_s: float) -> None:
        """From now on replies pass at this rate, on each connection; 0 for as fast as they come."""
        self._bytes_per_s = bytes_per_s

    @property
    def is_armed(self) -> bool:
        """Whether what was asked for has not happened yet."""
        return self._replies_to_hold is not None or self._is_request_lost

    def _start(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._socket.accept()
            except OSError:
                return
            with self._lock:
                if self._is_refusing:
                    near.close()
                    continue
            far = socket.socket(socket.AF_UNIX)
            try:
                far.connect(self._server_path)
            except OSError:
                near.close()
                continue
            link = _Link(near, far)
            self._links.append(link)
            self._start(self._pump, link)

    def _pump(self, link: _Link) -> None:
        try:
            while True:
                readable, _, _ = select.select([link.near, link.far], [], [])
                for source in readable:
                    data = source.recv(_CHUNK)
                    if not data:
                        return
                    if self._is_swallowing or link.is_dead:
                        link.is_dead = True
                        continue
                    if not (self._pass_request(link, data) if source is link.near else self._pass_reply(link, data)):
                        with self._lock:
                            self.n_cuts += 1
                        return
        except (OSError, ValueError):
            # Cut by another thread, or given up by one of the ends.
            return
        finally:
            link.cut()

    def _pass_request(self, link: _Link, data: bytes) -> bool:
        with self._lock:
            if self._is_request_lost:
                self._is_request_lost = False
                return False
        if random.random() < self._chance:
            return False
        link.far.sendall(data)
        return True

    def _pass_reply(self, link: _Link, data: bytes) -> bool:
        with self._lock:
            if link.to_hold is None and self._replies_to_hold is not None:
                link.to_hold, self._replies_to_hold = self._replies_to_hold, None
        if link.to_hold is not None:
            link.held += data
            link.reader.feed(data)
            while link.to_hold and link.reader.gets() is not False:
                link.to_hold -= 1
            if link.to_hold:
                return True
            link.near.sendall(link.held[: self._bytes_to_pass])
            return False
        if random.random() < self._chance:
            link.near.sendall(data[: random.randrange(len(data))])
            return False
        if self._bytes_per_s:
            time.sleep(len(data) / self._bytes_per_s)
        link.near.sendall(data)
        return True


class _Link:
    """One connection through the proxy."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.near = near
        self.far = far
        self.to_hold: int | None = None
        self.held = b""
        self.is_dead = False
        # Replies of nil would look like "nothing there yet".
        self.reader = hiredis.Reader(notEnoughData=False)

    def cut(self) -> None:
        for end in (self.near, self.far):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            end.close()
