"""`rush-executor logs`: what workers have logged and printed."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rush_executor._cli.output import print_json, printable
from rush_executor._cli.target import Fail, Target, add_target_options, duration

if TYPE_CHECKING:
    from rush_executor._protocol.logs import LogRecord

__all__ = ["DESCRIPTION", "EXAMPLES", "add_arguments", "log_lines", "run"]

DESCRIPTION = (
    "Prints what workers have logged and printed, in order of time, as much as the server keeps of it; with --follow "
    "what is new as well, up to a second later, until Ctrl-C. Of networks that keep their tasks: what an executor's "
    "workers print goes where they were started."
)
EXAMPLES = """\
  rush-executor logs --network demo
  rush-executor logs -f --level WARNING
  rush-executor logs --since 600 --json | jq -r .message
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    parser.add_argument("workers", nargs="*", metavar="WORKER", help="only these workers; ids")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what is new")
    parser.add_argument("--since", type=duration, metavar="S", help="only what is younger than S seconds")
    parser.add_argument("--level", help="only records of this level or above: DEBUG, INFO, WARNING, ...")
    parser.add_argument(
        "--stream",
        action="append",
        choices=("log", "stdout", "stderr"),
        help="only what was logged, or printed; may be given several times",
    )
    add_target_options(parser, json_text="print each record as a line of JSON")


def run(args: argparse.Namespace, fail: Fail) -> int:
    """Runs the command."""
    # ruff: noqa: PLC0415 - not for `--help`
    from rush_executor._cli.errors import NotThere
    from rush_executor._ledger.logs import LogCursor, LogReader
    from rush_executor._ledger.views import NetworkReader
    from rush_executor._view.logs import STREAMS, follow_log, record_filter
    from rush_executor.errors import RushError

    try:
        is_wanted = record_filter(args.level, args.stream or STREAMS)
    except ValueError as error:
        fail(str(error))
    target = Target(args, fail)
    if target.picture().kind != "tasks":
        raise RushError(f"network {target.network_id!r} is an executor's: its workers print where they were started")
    logs, network = LogReader(target.channel, target.keys), NetworkReader(target.channel, target.keys)

    def who() -> list[str]:
        return args.workers or [worker.worker_id for worker in network.workers({})]

    if unknown := set(args.workers).difference(worker.worker_id for worker in network.workers({})):
        raise NotThere(f"there is no worker {', '.join(map(repr, sorted(unknown)))} in network {target.network_id!r}")
    start = logs.now() - args.since if args.since is not None else 0.0
    cursor = LogCursor(start)
    _print((r for r in logs.read(who(), cursor) if r.time >= start and is_wanted(r)), is_json=args.json)
    if args.follow:
        with contextlib.suppress(KeyboardInterrupt):
            news = follow_log(logs, who, cursor=cursor, levels=args.level, streams=args.stream or STREAMS)
            _print(news, is_json=args.json)
    return 0


def _print(records: Iterable[LogRecord], *, is_json: bool) -> None:
    for record in records:
        if is_json:
            print_json(record._asdict(), is_line=True)
        else:
            for line in log_lines(record):
                print(line, flush=True)


def log_lines(record: LogRecord) -> list[str]:
    """A record as lines: when, which level, worker and task, the text; the traceback below it."""
    import logging
    from datetime import datetime

    at = datetime.fromtimestamp(record.time).astimezone().isoformat(" ", "milliseconds")[:23]
    what = record.stream if record.stream != "log" else logging.getLevelName(record.level)
    name = f" {record.logger}:" if record.stream == "log" else ":"
    task = f" {record.task}" if record.task else ""
    head = printable(f"{at} {what:<8} {record.worker_id}{task}{name}")
    first, *others = record.message.splitlines() or [""]
    lines = [f"{head} {printable(first)}"]
    return lines + [f"    {printable(line)}" for line in (*others, *record.exception.splitlines())]
