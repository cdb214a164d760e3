"""`rush-executor server`: a server for programs and workers to share, as long as this command runs.

It ends with SIGINT and SIGTERM, and with its terminal or its parent: SIGHUP, or another parent. Under nohup, where
SIGHUP is ignored from the start, the latter two do not count. A second process ends the server when this one is killed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rush_executor._cli.output import print_json
from rush_executor._cli.target import Fail, add_json_option, add_network_option, named_network, read_text

if TYPE_CHECKING:
    import threading

__all__ = ["DESCRIPTION", "EXAMPLES", "add_arguments", "run"]

DESCRIPTION = (
    "Starts a server with a password on a TCP port, and prints how to reach it. It keeps nothing on disk, and ends "
    "with Ctrl-C, SIGTERM, its terminal or the process that has started it (not so under nohup); what it holds is gone "
    "then. By default only programs on this machine reach it. With --bind 0.0.0.0 every machine does that can reach "
    "this one: who has the password can run code in workers and programs, and nothing is encrypted on the way, so do "
    "that only in a network that you trust. The password is made up, or comes from RUSH_PASSWORD or a file."
)
EXAMPLES = """\
  rush-executor server
  rush-executor server --bind 0.0.0.0 --port 6390 --url-file ~/server.url
  nohup rush-executor server --url-file ~/server.url --json > server.json &
"""

_LOOPBACK = ("127.", "::1")
_ANY = ("0.0.0.0", "::")  # noqa: S104 - what a user may ask for
_HIGHEST_PORT = 65_535
# How often its parent and the server are looked at.
_LOOK_S = 0.5
_DEFAULT_NETWORK = "demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    parser.add_argument(
        "--bind",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on (default: %(default)s, this machine)",
    )
    parser.add_argument("--port", type=int, default=0, metavar="N", help="port (default: one that is free)")
    parser.add_argument(
        "--host", metavar="NAME", help="what others call this machine, for the URL (default: the address, or its name)"
    )
    parser.add_argument(
        "--password-file", metavar="FILE", help="file that holds the password (default: RUSH_PASSWORD, or a new one)"
    )
    parser.add_argument(
        "--url-file", metavar="FILE", help="file to write the URL into, readable for you alone; removed at the end"
    )
    add_network_option(
        parser, "network that the printed lines are about", default=f"RUSH_NETWORK, else {_DEFAULT_NETWORK!r}"
    )
    add_json_option(parser, "print a line of JSON in place of all else")


def run(args: argparse.Namespace, fail: Fail) -> int:
    """Runs the command."""
    # ruff: noqa: PLC0415 - not for `--help`
    import socket

    from rush_executor._ledger.server import EmbeddedServer, Listen

    # First of all: who waits for what is printed below may end then.
    parent = os.getppid()
    if not 0 <= args.port <= _HIGHEST_PORT:
        fail(f"--port must be between 0 and {_HIGHEST_PORT}")
    # Host names as they are, with the underscore that some have; IPv6 addresses.
    if args.host is not None and not _is_host(args.host):
        fail(f"--host must be a name or an address, to stand in a URL, not {args.host!r}")
    network_id = named_network(args, fail) or _DEFAULT_NETWORK
    password = _password(args, fail)
    try:
        address, port = _free_address(args.bind, args.port)
    except OSError as error:
        fail(f"cannot listen on {args.bind}, port {args.port or 'any'}: {error}")
    host = args.host or (socket.gethostname() if address in _ANY else address)
    with _told_to_stop() as stop:
        server = EmbeddedServer.start(listen=Listen(address, port, host, password))
        try:
            server.wait_ready()
            with _written(args.url_file, server.url, fail):
                url_file = os.path.abspath(args.url_file) if args.url_file else server.url_path  # noqa: PTH100
                _tell(args, server, url_file, network_id, is_local=address.startswith(_LOOPBACK))
                while not stop.wait(_LOOK_S) and (_is_to_stay() or os.getppid() == parent):
                    server.check()
        finally:
            server.stop()
    if not args.json:
        print("The server has ended.", file=sys.stderr)
    return 0


def _is_host(text: str) -> bool:
    """Whether it is a name, or an address."""
    import ipaddress

    if re.fullmatch(r"[\w.-]+", text):
        return True
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        return False


def _password(args: argparse.Namespace, fail: Fail) -> str:
    import secrets

    from rush_executor._config import default_password

    if args.password_file:
        password = read_text(args.password_file, fail)
    else:
        password = default_password() or secrets.token_urlsafe(24)
    if not password.isprintable():
        fail("a password must be one line of printable characters")
    return password


def _free_address(bind: str, port: int) -> tuple[str, int]:
    """The address and a port on which nobody listens."""
    import socket

    [(family, _, _, _, where), *_] = socket.getaddrinfo(bind, port, type=socket.SOCK_STREAM)
    with socket.socket(family) as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(where)
        address: tuple[Any, ...] = found.getsockname()
    return str(address[0]), int(address[1])


@contextlib.contextmanager
def _told_to_stop() -> Iterator[threading.Event]:
    """Set by the signals that end this command."""
    import threading

    stop = threading.Event()
    handled = [signal.SIGINT, signal.SIGTERM, *([] if _is_to_stay() else [signal.SIGHUP])]
    before = {signum: signal.signal(signum, lambda _signum, _frame: stop.set()) for signum in handled}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _is_to_stay() -> bool:
    """Whether it is to outlive its terminal and its parent, as under nohup."""
    return signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@contextlib.contextmanager
def _written(path: str | None, url: str, fail: Fail) -> Iterator[None]:
    from rush_executor._ledger.server import write_private

    if path is None:
        yield
        return
    try:
        write_private(path, url)
    except OSError as error:
        fail(f"{path}: {error.strerror}")
    try:
        yield
    finally:
        # Another server may have put its own there.
        with contextlib.suppress(OSError), open(path, encoding="utf-8") as file:  # noqa: PTH123
            if file.read() == url:
                os.unlink(path)  # noqa: PTH108


def _tell(args: argparse.Namespace, server: Any, url_file: str, network_id: str, *, is_local: bool) -> None:
    import shlex

    from rush_executor._config import default_secret, redact

    shown = redact(server.url)
    if args.json:
        print_json({"url": shown, "url_file": url_file, "pid": server.pid, "is_local": is_local}, is_line=True)
        return
    # Not into a log: whoever reads that could run code here.
    is_shown = sys.stdout.isatty()
    password = "with its password" if is_shown else "without its password"
    lines = [
        f"A server is running, at {server.url if is_shown else shown} ({password}).",
        f"Its URL is also in {url_file}, which you alone can read.",
        "Only programs on this machine reach it." if is_local else _OPEN,
    ]
    if not is_local and default_secret() is None:
        lines.append(_SEAL_IT)
    lines += [
        "",
        "Start workers, in another terminal:",
        "",
        f"    {shlex.join(['rush-executor', 'worker', '--url-file', url_file, '--network', network_id])}",
        "",
        "use them, from a program,",
        "",
        "    from rush_executor import RushExecutor",
        f"    url = open({url_file!r}).read()",
        f"    with RushExecutor(0, url=url, network_id={network_id!r}) as executor:",
        "        print(list(executor.map(abs, range(-3, 3))))",
        "",
        "and watch:",
        "",
        f"    {shlex.join(['rush-executor', 'top', '--url-file', url_file])}",
        "",
        "Ctrl-C ends the server, and all that it holds is gone.",
    ]
    print("\n".join(lines), flush=True)


_OPEN = (
    "EVERY MACHINE that reaches this one reaches it too. Who has the password can run code in your workers and\n"
    "programs, and nothing is encrypted on the way: only for networks that you trust. On other machines put the URL\n"
    "into a file of your own (--url-file), or into RUSH_URL."
)
_SEAL_IT = "Set the same RUSH_SECRET for workers and programs: then what others put on the server is never unpickled."
