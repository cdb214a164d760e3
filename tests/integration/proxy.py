"""A proxy between a party and its server that loses what passes, when a test says so.

It stands for the network: a request that never arrives, a reply that is lost after the server has acted, half a reply,
a server that is not to be reached for a while, a line on which everything vanishes though it stays open, a slow line.

An event loop on a thread of its own does the passing; what a test calls is done there, and done when the call returns.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import unquote

import hiredis

__all__ = ["Proxy"]

_T = TypeVar("_T")
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
            listener = socket.create_server(("127.0.0.1", 0))
            self.url = f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
        else:
            path = str(Path(self._directory) / "s")
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(path)
            listener.listen(64)
            self.url = f"unix://{path}"
        self.n_cuts = 0
        # All that follows is the loop's.
        self._replies_to_hold: int | None = None
        self._bytes_to_pass = 0
        self._is_request_lost = False
        self._is_refusing = False
        self._is_swallowing = False
        self._chance = 0.0
        self._bytes_per_s = 0.0
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()
        opened = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._accept, sock=listener), self._loop)
        self._listener = opened.result(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        shutil.rmtree(self._directory)

    def lose_reply(self, *, n_replies: int = 1, passing: int = 0) -> None:
        """Cuts the next connection on which a reply comes, once the server has given so many of them.

        Args:
            n_replies: As many as the party sends commands in one go, to know that the server has done them all.
            passing: Bytes of the replies that pass before the cut.
        """
        self._set(_replies_to_hold=n_replies, _bytes_to_pass=passing)

    def lose_request(self) -> None:
        """Cuts the next connection on which a request comes, before the server sees it."""
        self._set(_is_request_lost=True)

    def go_away(self) -> None:
        """Cuts everything and takes no connection, until `come_back`."""
        self._set(_is_refusing=True)
        self._do(self._cut_all)

    def come_back(self) -> None:
        """Passes on again."""
        self._set(_is_refusing=False)

    def lose_by_chance(self, chance: float) -> None:
        """From now on cuts with this probability whenever something passes, in either direction."""
        self._set(_chance=chance)

    def swallow(self) -> None:
        """Lets everything vanish until `stop_swallowing`; connections stay open, and new ones are taken."""
        self._set(_is_swallowing=True)

    def stop_swallowing(self) -> None:
        """Passes on again, but not on a connection that has lost something: what follows would make no sense."""
        self._set(_is_swallowing=False)

    def slow_down(self, bytes_per_s: float) -> None:
        """From now on replies pass at this rate, on each connection; 0 for as fast as they come."""
        self._set(_bytes_per_s=bytes_per_s)

    @property
    def is_armed(self) -> bool:
        """Whether what was asked for has not happened yet."""
        return self._replies_to_hold is not None or self._is_request_lost

    # On the caller's thread.

    def _set(self, **values: Any) -> None:
        self._do(lambda: self.__dict__.update(values))

    def _do(self, call: Callable[[], _T]) -> _T:
        async def do() -> _T:
            return call()

        return asyncio.run_coroutine_threadsafe(do(), self._loop).result(10)

    # On the loop's.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    async def _close(self) -> None:
        self._listener.close()
        self._cut_all()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def _cut_all(self) -> None:
        for link in self._links:
            link.cut()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        near = _End(reader, writer)
        if self._is_refusing:
            near.cut()
            return
        try:
            far = _End(*await asyncio.open_unix_connection(self._server_path))
        except OSError:
            near.cut()
            return
        link = _Link(near, far)
        self._links.add(link)
        try:
            if self._is_refusing:
                return
            pumps = [
                asyncio.create_task(self._pump(link, near, self._pass_request)),
                asyncio.create_task(self._pump(link, far, self._pass_reply)),
            ]
            # One end that is gone is the end of both.
            _, pending = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pending:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            self._links.discard(link)
            link.cut()

    async def _pump(self, link: _Link, source: _End, pass_on: Callable[[_Link, bytes], Any]) -> None:
        try:
            while data := await source.reader.read(_CHUNK):
                if self._is_swallowing or link.is_dead:
                    link.is_dead = True
                elif not await pass_on(link, data):
                    self.n_cuts += 1
                    return
        except OSError:
            # Cut, or given up by one of the ends.
            return

    async def _pass_request(self, link: _Link, data: bytes) -> bool:
        if self._is_request_lost:
            self._is_request_lost = False
            return False
        if random.random() < self._chance:
            return False
        await link.far.send(data)
        return True

    async def _pass_reply(self, link: _Link, data: bytes) -> bool:
        if link.to_hold is None and self._replies_to_hold is not None:
            link.to_hold, self._replies_to_hold = self._replies_to_hold, None
        if link.to_hold is not None:
            link.held += data
            link.replies.feed(data)
            while link.to_hold and link.replies.gets() is not False:
                link.to_hold -= 1
            if link.to_hold:
                return True
            await link.near.send(link.held[: self._bytes_to_pass])
            return False
        if random.random() < self._chance:
            await link.near.send(data[: random.randrange(len(data))])
            return False
        if self._bytes_per_s:
            await asyncio.sleep(len(data) / self._bytes_per_s)
        await link.near.send(data)
        return True


class _End:
    """One end of a connection through the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        # `send` waits until the kernel has it all: what has passed before a cut arrives.
        writer.transport.set_write_buffer_limits(0)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def cut(self) -> None:
        self.writer.transport.abort()


class _Link:
    """One connection through the proxy."""

    def __init__(self, near: _End, far: _End) -> None:
        self.near = near
        self.far = far
        self.to_hold: int | None = None
        self.held = b""
        self.is_dead = False
        # Replies of nil would look like "nothing there yet".
        self.replies = hiredis.Reader(notEnoughData=False)

    def cut(self) -> None:
        self.near.cut()
        self.far.cut()
