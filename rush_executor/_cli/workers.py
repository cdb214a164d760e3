"""`rush-executor workers`: list them; stop, kill or restart some."""

from __future__ import annotations

import argparse
import time
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from rush_executor._cli.output import Column, Line, Table, instant_text, print_blocks, print_json, printable
from rush_executor._cli.status import worker_table
from rush_executor._cli.target import Fail, Target, add_target_options, duration

if TYPE_CHECKING:
    from rush_executor._view.lookout import Picture, WorkerLine

__all__ = ["DESCRIPTION", "EXAMPLES", "add_arguments", "run"]

DESCRIPTION = (
    "Lists workers (also without an ACTION), or asks their agents to end some: after the task that they run (stop), "
    "now (kill: the task fails), or after the task and to start others in their place (restart). The workers of a "
    "RushExecutor are started again when none of them is left, as long as its program lives."
)
EXAMPLES = """\
  rush-executor workers list
  rush-executor workers stop 5b1c --network demo --wait 60
  rush-executor workers restart --all
"""

_LOOK_S = 0.05
_HOW = {
    "stop": ("terminate", "have them finish what they run, and leave"),
    "kill": ("kill", "end them now; what they run fails"),
    "restart": ("restart", "have them finish what they run, and others take their place"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="list workers", description="Lists workers, and what each runs.")
    listing.add_argument("--ended", action="store_true", help="those that have ended, where the network keeps that")
    parsers = [listing]
    for name, (_, text) in _HOW.items():
        action = actions.add_parser(name, help=text, description=f"{name.capitalize()} workers: {text}.")
        action.add_argument("workers", nargs="*", metavar="WORKER", help="ids, or beginnings of them")
        action.add_argument("--all", action="store_true", help="all that are there")
        action.add_argument(
            "--wait", type=duration, metavar="S", help="wait until they have ended, for S seconds at most"
        )
        parsers.append(action)
    for action in parsers:
        add_target_options(action, has_secret=action is listing)


def run(args: argparse.Namespace, fail: Fail) -> int:
    """Runs the command."""
    if args.action != "list" and bool(args.workers) == args.all:
        fail("which workers? Name them, or pass --all")
    target = Target(args, fail)
    picture = target.picture()
    if args.action != "list":
        return _end(target, picture, args, fail)
    if args.ended:
        return _list_ended(target, is_json=args.json)
    if args.json:
        print_json(picture.workers)
    else:
        print_blocks([worker_table(picture, picture.workers) if picture.workers else Line("no workers", "dim")])
    return 0


def _list_ended(target: Target, *, is_json: bool) -> int:
    # ruff: noqa: PLC0415 - not for `--help`
    from rush_executor._ledger.views import NetworkReader
    from rush_executor._protocol.states import KILLED, LOST, TERMINATED

    found = NetworkReader(target.channel, target.keys).workers({})
    ended = [worker for worker in found if worker.state in (TERMINATED, KILLED, LOST)]
    if is_json:
        print_json([worker._asdict() for worker in ended])
        return 0
    columns = [Column(name) for name in ("worker", "host", "pid")]
    columns += [Column("state", is_state=True), Column("joined"), Column("ended"), Column("how", gives_way=True)]
    rows = [
        [
            worker.worker_id,
            printable(worker.host),
            str(worker.pid),
            worker.state,
            instant_text(worker.joined_at),
            instant_text(worker.ended_at),
            printable(worker.reason),
        ]
        for worker in sorted(ended, key=lambda worker: worker.ended_at or 0.0)
    ]
    print_blocks([Table(columns, rows) if rows else Line("none, or the network does not keep that", "dim")])
    return 0


def _end(target: Target, picture: Picture, args: argparse.Namespace, fail: Fail) -> int:
    from rush_executor._cli.errors import FAILED, NOT_THERE
    from rush_executor._network.control import Controller

    there = {worker.worker_id: worker for worker in picture.workers}
    names = list(there) if args.all else [_whole_id(given, there, fail) for given in args.workers]
    wanted = {name: there[name] for name in names if name in there}
    controller = Controller(target.channel, target.keys, keeps=picture.kind == "tasks")
    how, _ = _HOW[args.action]
    for worker in wanted.values():
        controller.ask_worker(worker.worker_id, worker.agent_id, how)
    answers = dict.fromkeys(names, "") | dict.fromkeys(wanted, "asked")
    if args.wait is not None:
        left = _wait(target, wanted.values(), args.wait)
        answers |= {name: "still there" if name in left else "ended" for name in wanted}
    if args.json:
        print_json(answers)
    else:
        rows = [[printable(name), answer or "not there"] for name, answer in answers.items()]
        print_blocks([Table((Column("worker"), Column("")), rows) if rows else Line("no workers", "dim")])
    if "still there" in answers.values():
        return FAILED
    return NOT_THERE if "" in answers.values() else 0


def _whole_id(given: str, there: Collection[str], fail: Fail) -> str:
    """The id that begins like this; what was given if there is none."""
    found = [name for name in there if name.startswith(given)]
    if len(found) > 1 and given not in found:
        fail(f"several workers' ids begin with {given!r}: {', '.join(found)}")
    return found[0] if len(found) == 1 else given


def _wait(target: Target, workers: Iterable[WorkerLine], seconds: float) -> set[str]:
    """Waits until workers have ended; returns those that have not. One that came back has another process."""
    leaving = {(worker.worker_id, worker.pid) for worker in workers}
    end_at = time.monotonic() + seconds
    while True:
        left = leaving & {(worker.worker_id, worker.pid) for worker in target.picture().workers}
        if not left or time.monotonic() > end_at:
            return {name for name, _ in left}
        time.sleep(_LOOK_S)
