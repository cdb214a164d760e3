"""Which server, network and secret a command is about: the options that commands share, and what they lead to.

No secret stands on a command line, which everybody on a machine can read: a URL with a password is refused there, and
comes from a file or from the environment.

For `--help` most of it is imported and none of it is called, so what costs time is imported where it is used.
"""

# ruff: noqa: PLC0415

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from rush_executor._ledger.connection import Channel
    from rush_executor._network.rush import Rush
    from rush_executor._protocol.keys import Keys
    from rush_executor._view.lookout import Lookout, Picture

__all__ = [
    "Fail",
    "Target",
    "add_json_option",
    "add_network_option",
    "add_secret_option",
    "add_server_options",
    "add_target_options",
    "duration",
    "named_network",
    "read_text",
    "required_network",
    "required_url",
    "secret_of",
]

# Says what is wrong with the command line, and exits with 2.
Fail = Callable[[str], NoReturn]

# Who types a command wants to know soon that the server is away.
_PATIENCE_S = 2.0
_NOT_HERE = (
    "the URL has a password, and others on this machine can read a command line: put it into RUSH_URL, or into a file "
    "for --url-file"
)


def add_target_options(
    parser: argparse.ArgumentParser, *, has_secret: bool = False, json_text: str = "print JSON"
) -> None:
    """Adds what a command about a network takes: which server, which network, JSON.

    Args:
        parser: Where to.
        has_secret: Whether it opens payloads.
        json_text: What is said of the option for JSON.
    """
    add_server_options(parser)
    add_network_option(parser)
    if has_secret:
        add_secret_option(parser)
    add_json_option(parser, json_text)


def add_server_options(parser: argparse.ArgumentParser, *, is_found: bool = True) -> None:
    """Adds the options that say which server.

    Args:
        parser: Where to.
        is_found: Whether the command finds a private server by itself.
    """
    default = "RUSH_URL, else your private server on this machine" if is_found else "RUSH_URL"
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--url", help=f"server: redis://, rediss:// or unix://, without a password (default: {default})")
    group.add_argument("--url-file", metavar="FILE", help="file that holds the URL, with its password if it has one")


def add_network_option(
    parser: argparse.ArgumentParser, what: str = "the network", *, default: str = "RUSH_NETWORK, else the only one"
) -> None:
    """Adds the option that says which network."""
    parser.add_argument("--network", metavar="NAME", help=f"{what} (default: {default})")


def add_secret_option(parser: argparse.ArgumentParser) -> None:
    """Adds the option that says where the secret is."""
    parser.add_argument("--secret-file", metavar="FILE", help="file that holds the secret (default: RUSH_SECRET)")


def add_json_option(parser: argparse.ArgumentParser, what: str = "print JSON") -> None:
    """Adds the option for those who are programs."""
    parser.add_argument("--json", action="store_true", help=what)


def duration(text: str) -> float:
    """The value of an option that is a number of seconds; for argparse."""
    seconds = float(text)
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, 0 or more, not {text}")
    return seconds


def read_secret(path: str, fail: Fail) -> bytes:
    """What is in a file, without white space around it."""
    from pathlib import Path

    try:
        content = Path(path).read_bytes().strip()
    except OSError as error:
        fail(f"{path}: {error.strerror}")
    return content or fail(f"{path} is empty")


def read_text(path: str, fail: Fail) -> str:
    """As `read_secret`, for what is text."""
    try:
        return read_secret(path, fail).decode()
    except ValueError:
        fail(f"{path} is no text")


def secret_of(args: argparse.Namespace, fail: Fail) -> bytes | None:
    """The network's secret; None for none."""
    from rush_executor._config import default_secret

    path = getattr(args, "secret_file", None)
    return default_secret() if path is None else read_secret(path, fail)


def required_url(args: argparse.Namespace, fail: Fail) -> str:
    """The server that was named, on the command line or in the environment."""
    return _named_url(args, fail) or fail("no server: pass --url or --url-file, or set RUSH_URL")


def required_network(args: argparse.Namespace, fail: Fail) -> str:
    """The network that was named, on the command line or in the environment."""
    return named_network(args, fail) or fail(
        "no network: pass --network with its name (network_id), or set RUSH_NETWORK"
    )


def named_network(args: argparse.Namespace, fail: Fail) -> str | None:
    """The network that was named, if one was; one that cannot be is refused."""
    from rush_executor._config import default_network_id
    from rush_executor._protocol.keys import check_network_id

    # Empty, as from a variable of the shell that is not set, is no way to say "the only one".
    network: str | None = args.network if args.network is not None else default_network_id()
    try:
        return None if network is None else check_network_id(network)
    except ValueError as error:
        fail(str(error))


def _named_url(args: argparse.Namespace, fail: Fail) -> str | None:
    from rush_executor._config import URL_FORMS, check_url, default_url, redact

    url: str | None = args.url
    if url is not None and redact(url) != url:
        fail(_NOT_HERE)
    path: str | None = args.url_file
    if path is not None:
        url = read_text(path, fail)
    elif url is None:
        url = default_url()
    try:
        return None if url is None else check_url(url)
    except ValueError as error:
        # Whatever a file holds instead may be a secret.
        fail(str(error) if path is None else f"{path} holds no URL of a server: {URL_FORMS}")


class Target:
    """A server and a network, for a command that looks at them or changes them.

    Args:
        args: As parsed.
        fail: Says what is wrong with the command line.
        is_network_needed: Whether it must be clear which network; otherwise `network_id` may be empty.
    """

    def __init__(self, args: argparse.Namespace, fail: Fail, *, is_network_needed: bool = True) -> None:
        self._args = args
        self._fail = fail
        self.network_id = named_network(args, fail) or ""
        # What has another command find the same server, where its environment does not.
        self._server_options = [] if args.url is None else ["--url", args.url]
        if args.url_file is not None:
            self._server_options = ["--url-file", args.url_file]
        self.url = _named_url(args, fail) or self._private_server()
        self.networks: list[str] = []
        if not self.network_id:
            self._find_network(is_needed=is_network_needed)
        try:
            _ = self.keys
        except ValueError as error:
            fail(str(error))

    def __str__(self) -> str:
        from rush_executor._config import redact

        return redact(self.url)

    @cached_property
    def keys(self) -> Keys:
        """The network's keys."""
        from rush_executor._protocol.keys import Keys

        return Keys(self.network_id or "none")

    @cached_property
    def channel(self) -> Channel:
        """A connection to the server.

        Raises:
            ServerError: It cannot be used.
        """
        from rush_executor._ledger.connection import Channel, check_server, open_pool

        try:
            check_server(self.url)
        except ValueError as error:
            self._fail(str(error))
        return Channel(open_pool(self.url), reconnect_timeout_s=_PATIENCE_S)

    @cached_property
    def secret(self) -> bytes | None:
        """The network's secret; None for none."""
        return secret_of(self._args, self._fail)

    @cached_property
    def lookout(self) -> Lookout:
        """Looks at the network."""
        return self._lookout(self.network_id)

    def worker_command(self) -> str:
        """How workers for this network are started, in a shell."""
        import shlex

        return shlex.join(["rush-executor", "worker", *self._server_options, "--network", self.network_id])

    def has_network(self) -> bool:
        """Whether it is clear by now which network; looks again if it was not."""
        if not self.network_id:
            self._find_network(is_needed=False)
            self.__dict__.pop("keys", None)
            self.__dict__.pop("lookout", None)
        return bool(self.network_id)

    def server_text(self) -> str:
        """What there is to say of the server: kind, memory, connections; empty where it says nothing."""
        from rush_executor._ledger.connection import Refused
        from rush_executor._ledger.views import NetworkReader
        from rush_executor._view.checkup import server_text

        try:
            return server_text(NetworkReader(self.channel, self.keys).info())
        except Refused:
            return ""

    def picture(self) -> Picture:
        """The network now.

        Raises:
            NotThere: There is none.
        """
        from rush_executor._cli.errors import NotThere

        picture = self.lookout.picture()
        if not picture.kind and not picture.is_restoring:
            raise NotThere(f"there is no network {self.network_id!r} on {self}")
        return picture

    def picture_of(self, network_id: str) -> Picture:
        """Another network of this server now."""
        return self._lookout(network_id).picture()

    def _lookout(self, network_id: str) -> Lookout:
        from rush_executor._ledger.overview import OverviewReader
        from rush_executor._protocol.keys import Keys
        from rush_executor._view.lookout import Lookout

        return Lookout(network_id, OverviewReader(self.channel, Keys(network_id)), self.secret)

    def rush(self) -> Rush:
        """The network, for whom the rest is too little; to be closed."""
        from rush_executor._network.rush import Rush

        return Rush(self.network_id, self.url, secret=self.secret, reconnect_timeout=_PATIENCE_S)

    def _private_server(self) -> str:
        """The only one of this user's on this machine."""
        from rush_executor._ledger.server import private_servers

        servers = private_servers()
        if len(servers) == 1:
            [(url, path)] = servers.items()
            self._server_options = ["--url-file", path] if path else ["--url", url]
            return url
        if servers:
            ways = [f"\n  --url-file {path}" if path else f"\n  --url {url}" for url, path in servers.items()]
            self._fail(f"which server? Several private ones of yours are running on this machine:{''.join(ways)}")
        return self._fail(
            "no server: pass --url or --url-file, or set RUSH_URL. No private one of yours is running on this machine"
        )

    def _find_network(self, *, is_needed: bool) -> None:
        """The only one on the server."""
        from rush_executor._cli.errors import NotThere
        from rush_executor._ledger.overview import find_networks

        self.networks = find_networks(self.channel)
        if len(self.networks) == 1:
            self.network_id = self.networks[0]
        elif is_needed and not self.networks:
            raise NotThere(f"there is no network on {self}")
        elif is_needed:
            self._fail(f"which network? Pass --network or set RUSH_NETWORK. There are {', '.join(self.networks)}")
