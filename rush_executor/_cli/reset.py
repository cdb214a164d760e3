"""`rush-executor reset`: deletes a network."""

from __future__ import annotations

import argparse
import sys

from rush_executor._cli.output import Line, print_blocks, print_json, printable
from rush_executor._cli.status import count_blocks, title_line
from rush_executor._cli.target import (
    Fail,
    Target,
    add_json_option,
    add_network_option,
    add_server_options,
    required_network,
)

__all__ = ["DESCRIPTION", "EXAMPLES", "add_arguments", "run"]

DESCRIPTION = (
    "Deletes a network with all that it keeps: its tasks, their outcomes, its logs. Its workers are killed first. No "
    "other network and no other key of the server is touched. It asks, unless --yes is given. The network must be "
    "named."
)
EXAMPLES = """\
  rush-executor reset --network search
  rush-executor snapshot search.rush --network search && rush-executor reset --network search --yes
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    add_server_options(parser)
    add_network_option(parser, default="RUSH_NETWORK")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    add_json_option(parser, "print JSON; needs --yes")


def run(args: argparse.Namespace, fail: Fail) -> int:
    """Runs the command."""
    # ruff: noqa: PLC0415 - not for `--help`
    from rush_executor._cli.errors import FAILED
    from rush_executor.errors import RushError

    required_network(args, fail)
    if not args.yes and (args.json or not sys.stdin.isatty()):
        fail("there is nobody to ask: pass --yes")
    target = Target(args, fail)
    picture = target.picture()
    if picture.kind == "calls" and picture.n_clients and not picture.is_durable:
        users = "a program uses" if picture.n_clients == 1 else f"{picture.n_clients} programs use"
        raise RushError(
            f"{users} network {picture.network!r}, and would submit the same tasks again. It ends with the last of them"
        )
    if not args.json:
        print_blocks([title_line(str(target), picture), *count_blocks(picture, None)])
    if not args.yes:
        answer = input(f"Delete network {printable(target.network_id)} and all that it keeps? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            print_blocks([Line("nothing was deleted")])
            return FAILED
    with target.rush() as rush:
        rush.reset()
    if args.json:
        print_json({"network": target.network_id, "n_ended": picture.n_ended, "n_queued": picture.n_queued})
    else:
        print_blocks([Line("deleted")])
    return 0
