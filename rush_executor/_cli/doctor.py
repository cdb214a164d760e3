"""`rush-executor doctor`: checks a server, and a network if one is named or there is only one."""

from __future__ import annotations

import argparse

from rush_executor._cli.output import Column, Line, Table, print_blocks, print_json, printable
from rush_executor._cli.target import Fail, Target, add_target_options

__all__ = ["DESCRIPTION", "EXAMPLES", "add_arguments", "run"]

DESCRIPTION = (
    "Checks a server: version, role, scripts, notifications, eviction, memory, persistence, connections, latency, "
    "clock, access; and a network: workers, programs. Each check is ok, warn (slow, unsafe, or not as it might be) or "
    "fail (tasks are lost or not run), with what to do. Nothing is changed."
)
EXAMPLES = """\
  rush-executor doctor --url redis://server:6379/0
  rush-executor doctor --network demo --json | jq '.[] | select(.level != "ok")'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    add_target_options(parser)


def run(args: argparse.Namespace, fail: Fail) -> int:
    """Runs the command; 1 when a check has failed."""
    # ruff: noqa: PLC0415 - not for `--help`
    from rush_executor._cli.errors import FAILED
    from rush_executor._ledger.facts import read_facts
    from rush_executor._view.checkup import FAIL, check_network, check_server_facts

    target = Target(args, fail, is_network_needed=False)
    picture = target.lookout.picture() if target.network_id else None
    checks = check_server_facts(target.url, read_facts(target.channel), picture)
    if picture is not None:
        checks += check_network(picture, target.worker_command())
    if args.json:
        print_json(checks)
    else:
        columns = [Column(""), Column("", is_state=True), Column("found"), Column("what to do")]
        rows = [[check.name, check.level, printable(check.found), printable(check.advice)] for check in checks]
        print_blocks([Line(f"server {target}", "bold"), Table(columns, rows)])
    return FAILED if any(check.level == FAIL for check in checks) else 0
