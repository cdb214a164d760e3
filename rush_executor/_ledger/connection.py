"""Connections: how a URL becomes one, and what happens when one breaks.

`Channel` is what the hot loops hold: one redis-py `Connection` (TLS, authentication, unix sockets and the protocol
are the library's), spoken to in packed bytes. `redis.Redis` would cost twice as much per command, and its retries
re-send a command whose reply was lost. Here that is allowed on purpose and in one place: everything that goes through
a channel has the same effect when it is sent twice, so `Channel.call` reconnects and sends again until its grace ends.

A channel belongs to one thread at a time; whoever shares one brings a lock.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)
from redis.retry import Retry

from rush_executor._config import check_url, redact
from rush_executor._ledger.scripts import load_commands, pack
from rush_executor._ledger.silence import tell_return, tell_silence
from rush_executor.errors import NetworkLostError, ServerError

__all__ = [
    "BLOCK_S",
    "IDLE_BLOCK_S",
    "Channel",
    "NetworkGone",
    "Refused",
    "WorkerGone",
    "WrongKind",
    "check_server",
    "connect",
    "end_server",
    "open_pool",
]

# How long a blocking command waits at the server; it is also how often what no bell told is looked for.
BLOCK_S = 1.0
# The same for a worker that has nothing to do, and has looked: there may be thousands of them. No command waits longer.
IDLE_BLOCK_S = 3.0
# A reply that is later than this, beyond what the server was asked to block, means a half-open connection: the longest
# wait plus this is below the 10 s within which one must be found, and far above what a loaded server needs.
REPLY_TIMEOUT_S = 5.0
_FIRST_PAUSE_S = 0.02
# A server that does not answer soon is hung, or gone.
_LAST_WORD_S = 1.0
# How long connecting, or the rest of a reply, may take where something else is to be done meanwhile, and how often that
# is done.
_ASIDE_S = 2.0
_LOOK_ASIDE_S = 0.1
# An absence of the server that lasts for longer is told.
_TELL_S = 5.0
# What the last try gets in any case.
_LEAST_S = 0.1
_LONGEST_PAUSE_S = 2.0
_LARGE = 1 << 18
_MOST_UNANSWERED = 4
_MUTE = pack(("CLIENT", "REPLY", "SKIP"))
_ECHOES = ("heard", "muted")
_OLDEST_REDIS = (6, 2)
# Error replies that say "not now": the server is loading, failing over (who waits at it is UNBLOCKED), full, or runs a
# long script. redis-py has classes for some, and takes the word off their text; Redis 6.2 puts what a script met behind
# "Error running script (...): -".
_NOT_NOW = re.compile(
    r"(?:.*: -)?"
    r"(?:LOADING|BUSY|OOM|READONLY|MISCONF|NOREPLICAS|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|UNBLOCKED)\b"
)
_NOT_NOW_CLASSES = (ReadOnlyError, OutOfMemoryError, ClusterDownError, TryAgainError, NoScriptError)
# Of a private server that has ended.
_NOT_BACK = "It will not be back. A server that is to outlive programs is started by itself, and passed as url=."


class NetworkGone(Exception):
    """The ledger does not hold the network, or this client's part of it, that the caller knew."""


class WorkerGone(Exception):
    """The ledger has taken this worker for lost."""


class Refused(Exception):
    """The server calls a command wrong or forbids it: no later try would fare better."""


class WrongKind(Refused):
    """The network is of the other kind: an executor's, or one that keeps its tasks."""


def open_pool(
    url: str, *, timeout_s: float | None = None, while_waiting: Callable[[], None] | None = None
) -> redis.ConnectionPool:
    """Makes the pool from which the connections to a server come; nothing is sent yet.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, as redis-py reads them.
        timeout_s: How long a connection, and what goes over it, may take; None for as long as a wait for a bell needs.
        while_waiting: Called again and again while a reply is waited for, the first ones of a connection too: for
            somebody with one thread, who has more to do, and waits for no bell. What it raises ends the wait, and the
            connection; not to be taken for the connection's failure, it must be none of redis-py's errors.

    Raises:
        ValueError: The URL is of no such kind.
    """
    if while_waiting is not None:
        timeout_s = _ASIDE_S
    settings: dict[str, Any] = {
        # RESP2: on the hot path cheaper than RESP3, and the same on every server from 6.2 on.
        "protocol": 2,
        "decode_responses": False,
        # Who re-sends decides about it: see the module's docstring.
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": timeout_s or IDLE_BLOCK_S + REPLY_TIMEOUT_S,
        "socket_connect_timeout": timeout_s or REPLY_TIMEOUT_S,
        "health_check_interval": 0,
    }
    url = _without_options(check_url(url), settings)
    pool: redis.ConnectionPool = redis.ConnectionPool.from_url(url, **settings, **_driver())
    if while_waiting is not None:
        pool.connection_class = _attentive(pool.connection_class, while_waiting)
    return pool


def _attentive(kind: type[Any], while_waiting: Callable[[], None]) -> type[Any]:
    """A kind of connection that has something done while it waits for a reply; that may take the usual time."""

    def read_response(self: Any, *args: Any, **kwargs: Any) -> Any:
        give_up_at = time.monotonic() + REPLY_TIMEOUT_S
        try:
            while not self.can_read(_LOOK_ASIDE_S):
                while_waiting()
                if time.monotonic() >= give_up_at:
                    raise RedisTimeoutError(f"no reply within {REPLY_TIMEOUT_S:g} s")
        except BaseException:
            self.disconnect()
            raise
        return kind.read_response(self, *args, **kwargs)

    return type(kind.__name__, (kind,), {"read_response": read_response})


@functools.cache
def _driver() -> dict[str, Any]:
    """What redis-py 8 tells the server about itself: it would look that up anew, in files, for every connection."""
    try:
        from redis.driver_info import DriverInfo  # noqa: PLC0415 - not there in older versions
    except ImportError:
        return {}
    return {"driver_info": DriverInfo()}


def _without_options(url: str, names: Collection[str]) -> str:
    """The URL without options of these names: a user's short time-out would break off every wait for a bell."""
    head, _, query = url.partition("?")
    kept = [option for option in query.split("&") if option and option.partition("=")[0] not in names]
    return "?".join([head, *(["&".join(kept)] if kept else [])])


def connect(pool: redis.ConnectionPool) -> redis.Redis:
    """A plain redis-py client for what is not hot, on the same settings."""
    return redis.Redis(connection_pool=pool)


def check_server(url: str) -> None:
    """Says at once, and in words, when a server cannot be used.

    Raises:
        ServerError: It cannot be reached, refuses the credentials, or is too old.
        ValueError: The URL is of no known kind.
    """
    pool = open_pool(url)
    try:
        info: Any = connect(pool).info("server")
    except NoPermissionError:
        # It answers, and does not tell its version: the first command will show.
        return
    except (ResponseError, AuthenticationError, AuthorizationError) as error:
        wanted = ""
        if isinstance(error, AuthenticationError):
            wanted = ". Has the URL the right password? redis://:PASSWORD@host, or redis://USER:PASSWORD@host"
        raise ServerError(
            f"the server at {redact(url)} does not let us in: {str(error).rstrip('.')}{wanted}"
        ) from error
    except RedisError as error:
        if isinstance(error, RedisConnectionError) and "connecting to" not in str(error):
            # Most often the reason comes too late to be read: the line is closed already when something is sent.
            raise ServerError(
                f"the server at {redact(url)} closes the connection at once: {str(error).rstrip('.')}. Most likely it "
                "has no place for another connection (maxclients)."
            ) from error
        raise ServerError(
            f"no server answers at {redact(url)}: {str(error).rstrip('.')}. Is the URL right, and may this machine "
            "reach it?"
        ) from error
    finally:
        pool.disconnect()
    # Valkey calls itself Redis 7.2.4 for old clients; its own versions all are new enough.
    version = str(info.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_REDIS:
        raise ServerError(f"the server at {redact(url)} is Redis {version}; 6.2 is the oldest that works")


def end_server(url: str) -> None:
    """Has a private server end, whose owner is gone; no harm if it has ended."""
    pool = open_pool(url, timeout_s=_LAST_WORD_S)
    with contextlib.suppress(RedisError, OSError):
        connect(pool).shutdown(nosave=True)
    pool.disconnect()


class Channel:
    """One connection, and the patience to restore it.

    Args:
        pool: Where the connection comes from.
        reconnect_timeout_s: How long `call` goes on trying.
        stopping: Set by whoever wants a call that waits for the server to give up now.
        closed_text: For the `RuntimeError` with which everything ends from then on; empty where last words may be sent.
        check_server: Called before a command is sent again; raises `ServerError` where the server will never be back.
        is_telling: Whether it is logged when the server has been away for some seconds, and when it is back.

    Attributes:
        n_breaks: How often the connection was given up: what went out before with `post` may not have arrived.
    """

    def __init__(
        self,
        pool: redis.ConnectionPool,
        *,
        reconnect_timeout_s: float,
        stopping: threading.Event | None = None,
        closed_text: str = "",
        check_server: Callable[[], None] | None = None,
        is_telling: bool = False,
    ) -> None:
        self._connection = pool.make_connection()
        settings = pool.connection_kwargs
        self._usual: tuple[float, float] = settings["socket_timeout"], settings["socket_connect_timeout"]
        self._reconnect_timeout_s = reconnect_timeout_s
        self._stopping = stopping or threading.Event()
        self._closed_text = closed_text
        self._check_server = check_server
        self._is_telling = is_telling
        self.n_breaks = 0
        # Up from before a command is sent until its reply was read.
        self._is_open_question = False
        # What was asked and not answered yet: commands, what goes before them, and whether all of it was sent.
        self._asked: tuple[tuple[bytes, ...], bytes, bool] = ((), b"", False)

    def call(self, *commands: bytes, muted: bytes = b"", lost_at: float = 0.0) -> list[Any]:
        """Sends commands in one go and returns their replies.

        Args:
            commands: Packed commands, each safe to send twice.
            muted: A command that goes first and gets no answer, not even an error: whoever waits for `commands` is not
                woken in between. Only where `can_mute` says so, and where `commands` show what became of it.
            lost_at: Since when the server has been silent, if that is known.

        Raises:
            NetworkGone, WorkerGone: As the ledger says.
            NetworkLostError: The server stayed away, or went on refusing, for longer than the grace; or it has ended.
                That a server is silent is seen after some seconds: with a shorter grace it takes as long.
            Refused: The server calls a command wrong, or forbids it.
            RuntimeError: Whoever this channel belongs to was closed.
        """
        give_up_at = lost_at + self._reconnect_timeout_s if lost_at else 0.0
        began_at, has_told = time.monotonic(), False
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                if give_up_at:
                    self._connect(give_up_at)
                replies = self._exchange(commands, muted)
                if has_told:
                    tell_return(time.monotonic() - lost_at)
                return replies
            except (RedisConnectionError, RedisTimeoutError, _NotNow, OSError) as error:
                self._give_up_connection()
                self._check_end(error)
                now = time.monotonic()
                # A connection that was cut, or an error, is a sign of life of somebody at that moment: the command may
                # have been waiting for a bell until then.
                lost_at = lost_at or (began_at if isinstance(error, RedisTimeoutError) else now)
                give_up_at = lost_at + self._reconnect_timeout_s
                if now >= give_up_at or self._stopping.is_set():
                    raise NetworkLostError(
                        f"the server did not answer for {now - lost_at:.1f} s (reconnect_timeout is "
                        f"{self._reconnect_timeout_s:g} s): {error}"
                    ) from error
                if self._is_telling and not has_told and now - lost_at >= _TELL_S:
                    has_told = True
                    tell_silence(now - lost_at, error, self._reconnect_timeout_s)
                # Full jitter: a thousand workers must not come back in step.
                pause_s = min(pause_s, give_up_at - now)
                self._stopping.wait(random.uniform(0.5, 1.0) * pause_s)  # noqa: S311
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _check_end(self, error: Exception) -> None:
        """Raises what ends a call at once: no later try would fare better."""
        if isinstance(error, AuthenticationError | AuthorizationError):
            raise ServerError(f"the server refuses the credentials of its URL: {error}") from error
        if self._closed_text and self._stopping.is_set():
            raise RuntimeError(self._closed_text) from None
        if self._check_server is not None:
            try:
                self._check_server()
            except ServerError as end:
                raise NetworkLostError(f"{end}\n{_NOT_BACK}") from error

    def ask(self, *commands: bytes, muted: bytes = b"") -> None:
        """Sends as `call` does, and does not wait: `answer` has the replies.

        Whoever uses the channel in between gives up the connection: then `answer` asks again, which does no harm.
        """
        self._asked = (commands, muted, False)
        try:
            self._send((_MUTE, muted, *commands) if muted else commands)
            self._asked = (commands, muted, True)
        except (RedisConnectionError, RedisTimeoutError, OSError):
            self._give_up_connection()

    def answer(self) -> list[Any]:
        """The replies to what was asked last; raises as `call`."""
        commands, muted, is_sent = self._asked
        self._asked = ((), b"", False)
        began_at, lost_at = time.monotonic(), 0.0
        if is_sent and self._is_open_question:
            try:
                replies = self._read(len(commands))
                if not any(isinstance(reply, NoScriptError) for reply in replies):
                    _check(replies)
                    return replies
            except (RedisConnectionError, RedisTimeoutError, _NotNow, OSError) as error:
                self._give_up_connection()
                lost_at = began_at if isinstance(error, RedisTimeoutError) else 0.0
        return self.call(*commands, muted=muted, lost_at=lost_at)

    def call_each(self, commands: Iterable[bytes]) -> None:
        """Sends commands one after the other while they are being made; raises as `call`, when all were sent.

        The server works on one while the next is packed. Each is safe to send twice, and none needs another's answer.
        """
        unanswered: deque[bytes] = deque()
        heard_at = time.monotonic()
        try:
            for command in commands:
                # Before it is sent: should that fail, it must not be forgotten.
                unanswered.append(command)
                self._send((command,))
                # Whatever was answered meanwhile: never so much that both ends wait for the other to read.
                if len(unanswered) > _MOST_UNANSWERED:
                    [reply] = self._read(1)
                    heard_at = time.monotonic()
                    _check([reply])
                    unanswered.popleft()
                self._is_open_question = False
            while unanswered:
                [reply] = self._read(1)
                heard_at = time.monotonic()
                _check([reply])
                unanswered.popleft()
        except (RedisConnectionError, RedisTimeoutError, _NotNow, OSError) as error:
            # One by one, with patience. Answers to what was sent may still come: this connection is of no use.
            self._connection.disconnect()
            lost_at = heard_at if isinstance(error, RedisTimeoutError) else 0.0
            for command in itertools.chain(tuple(unanswered), commands):
                self.call(command, lost_at=lost_at)
                lost_at = 0.0
        except BaseException:
            self._connection.disconnect()
            raise

    def post(self, command: bytes) -> None:
        """Sends a command that gets no answer: nobody is woken by it, and nobody learns whether it arrived.

        Only where `can_mute` says so, and by who calls it later, unless something else shows that it has arrived.
        """
        try:
            self._send((_MUTE, command))
            self._is_open_question = False
        except (RedisConnectionError, RedisTimeoutError, OSError):
            self._give_up_connection()

    def can_mute(self) -> bool:
        """Whether the server, and what stands before it, leaves a command unanswered when it is told to."""
        first, second = (pack(("ECHO", text)) for text in _ECHOES)
        try:
            if self.call(first, muted=second) == [_ECHOES[0].encode()]:
                return True
        except Refused:
            pass
        # CLIENT REPLY was answered, or what stood behind it: more answers are about to come.
        self._connection.disconnect()
        return False

    def close(self) -> None:
        """Ends the connection; a later call opens it again."""
        self._connection.disconnect()

    def _give_up_connection(self) -> None:
        self.n_breaks += 1
        self._connection.disconnect()

    def _connect(self, give_up_at: float) -> None:
        """Connects, if need be, in the time that is left; what is asked then may take the usual time."""
        if self._is_open_question:
            self._give_up_connection()
        # Also that of connecting: broken off in the middle of it, redis-py keeps a connection that owes answers.
        self._is_open_question = True
        connection: Any = self._connection
        left_s = max(give_up_at - time.monotonic(), _LEAST_S)
        connection.socket_timeout, connection.socket_connect_timeout = (min(usual_s, left_s) for usual_s in self._usual)
        try:
            connection.connect()
        finally:
            connection.socket_timeout, connection.socket_connect_timeout = self._usual
        # redis-py has no public name for the socket in all of 6 to 8.
        connection._sock.settimeout(connection.socket_timeout)  # noqa: SLF001
        self._is_open_question = False

    def _exchange(self, commands: Sequence[bytes], muted: bytes) -> list[Any]:
        self._send((_MUTE, muted, *commands) if muted else commands)
        replies = self._read(len(commands))
        first = next((i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)), None)
        if first is not None:
            load = load_commands()
            self._send(load)
            _check(self._read(len(load)))
            # All from there on, not only what was unknown. What stood behind it has run without it, so its answer is
            # wrong: an inbox read before it was trimmed, tasks claimed before the worker's own results were handed in.
            self._send(commands[first:])
            replies[first:] = self._read(len(commands) - first)
        _check(replies)
        return replies

    def _send(self, commands: Sequence[bytes]) -> None:
        connection = self._connection
        if self._closed_text and self._stopping.is_set():
            raise RuntimeError(self._closed_text)
        if self._is_open_question:
            # Ctrl-C broke off the last exchange, maybe in the middle of a command: what comes next here would be the
            # reply to a question that nobody remembers. Seen now, and not mended then, because then the next Ctrl-C
            # could break off the mending.
            self._give_up_connection()
        self._is_open_question = True
        # One send for what is small: each would be a system call, and may be a packet. What is large is not copied.
        small = sum(map(len, commands)) < _LARGE
        connection.send_packed_command([b"".join(commands)] if small else commands, check_health=False)

    def _read(self, n_replies: int) -> list[Any]:
        read = self._connection.read_response
        replies: list[Any] = []
        for _ in range(n_replies):
            try:
                replies.append(read(disable_decoding=True))
            except ResponseError as error:
                replies.append(error)
        self._is_open_question = False
        return replies


class _NotNow(Exception):
    """An error reply that a later try may not meet."""


def _check(replies: Sequence[Any]) -> None:
    for reply in replies:
        if isinstance(reply, RedisError):
            _raise(reply)


def _raise(error: RedisError) -> None:
    text = str(error)
    if text.startswith("NETWORKGONE"):
        raise NetworkGone(text)
    if text.startswith("WORKERGONE"):
        raise WorkerGone(text)
    if text.startswith("WRONGKIND"):
        raise WrongKind(text)
    if isinstance(error, _NOT_NOW_CLASSES) or _NOT_NOW.match(text):
        raise _NotNow(text)
    raise Refused(text) from error
