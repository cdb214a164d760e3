"""`rush-executor snapshot`: a network into a file."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rush_executor._cli.output import Line, instant_text, print_blocks, print_json, printable
from rush_executor._cli.target import Fail, Target, add_target_options

if TYPE_CHECKING:
    from rush_executor._network.snapshots import NetworkSnapshot

__all__ = ["DESCRIPTION", "EXAMPLES", "add_arguments", "run", "tell"]

DESCRIPTION = (
    "Writes a network that keeps its tasks into a file, from which `rush-executor restore` makes it again, on this "
    "server or another one. Workers may go on meanwhile. A file of this name is replaced when the new one is complete. "
    "What is sealed stays sealed; the secret is not in the file."
)
EXAMPLES = """\
  rush-executor snapshot search.rush --network search
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    parser.add_argument("file", metavar="FILE", help="the file; by custom its name ends in .rush")
    add_target_options(parser)


def run(args: argparse.Namespace, fail: Fail) -> int:
    """Runs the command."""
    target = Target(args, fail)
    # One that is not there is told as by other commands.
    target.picture()
    with target.rush() as rush:
        tell(rush.snapshot(args.file), is_json=args.json)
    return 0


def tell(snapshot: NetworkSnapshot, *, is_json: bool) -> None:
    """Says what is in a snapshot."""
    if is_json:
        print_json(snapshot)
        return
    s = snapshot
    states = f"{s.n_queued:,} queued, {s.n_running:,} running, {s.n_finished:,} finished, {s.n_failed:,} failed"
    taken = f"network {printable(s.network_id)} of {instant_text(s.taken_at)}"
    noun = "task" if s.n_tasks == 1 else "tasks"
    print_blocks([Line(f"{printable(s.path)}: {taken}, {s.n_tasks:,} {noun}: {states}")])
