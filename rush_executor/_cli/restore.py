"""`rush-executor restore`: a network from a file."""

from __future__ import annotations

import argparse

from rush_executor._cli.snapshot import tell
from rush_executor._cli.target import Fail, Target, add_json_option, add_server_options

__all__ = ["DESCRIPTION", "EXAMPLES", "add_arguments", "run"]

DESCRIPTION = (
    "Makes a network from a file that `rush-executor snapshot` or Rush.snapshot has written, under the name that it "
    "had. The file is read to its end before anything is written; a network that is there is left alone. What ran then "
    "is queued again; start workers for it."
)
EXAMPLES = """\
  rush-executor restore search.rush --url redis://server:6379/0
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    parser.add_argument("file", metavar="FILE", help="the file")
    add_server_options(parser)
    add_json_option(parser)


def run(args: argparse.Namespace, fail: Fail) -> int:
    """Runs the command."""
    from rush_executor._network.snapshots import network_of_snapshot  # noqa: PLC0415 - not for `--help`

    args.network = network_of_snapshot(args.file)
    with Target(args, fail).rush() as rush:
        tell(rush.restore(args.file), is_json=args.json)
    return 0
