"""`rush-executor tasks`: list them, show one with its traceback, retry or cancel some."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rush_executor._cli.output import (
    Block,
    Column,
    Line,
    Table,
    age_text,
    fields_of,
    instant_text,
    print_blocks,
    print_json,
    printable,
)
from rush_executor._cli.target import Fail, Target, add_target_options

if TYPE_CHECKING:
    from rush_executor._network.control import Controller
    from rush_executor._view.details import TaskDetails
    from rush_executor._view.lookout import Picture, TaskLine

__all__ = ["DESCRIPTION", "EXAMPLES", "add_arguments", "run"]

DESCRIPTION = (
    "Lists tasks (also without an ACTION), shows one, queues failed ones again, takes some out of the queue. Of an "
    "executor's network there are those that are queued or running, unless it is durable: what "
    "has ended is with the program that submitted it."
)
EXAMPLES = """\
  rush-executor tasks list --state running
  rush-executor tasks show 5ydlr566as3fg-12
  rush-executor tasks retry --all-failed --network demo
  rush-executor tasks cancel 5ydlr566as3fg-12 --kill
"""

# As they are listed.
_STATES = ("running", "queued", "failed", "finished")
_LIMIT = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser(
        "list",
        help="list tasks",
        description="Lists tasks: what runs, the next in the queue, failed, the last finished.",
    )
    listing.add_argument(
        "--state", action="append", choices=_STATES, help="only tasks in this state; may be given several times"
    )
    listing.add_argument("--limit", type=int, default=_LIMIT, metavar="N", help="of each state (default: %(default)s)")
    show = actions.add_parser("show", help="show a task", description="Shows a task, with inputs, results, traceback.")
    show.add_argument("task", metavar="TASK", help="its id, or key")
    retry = actions.add_parser(
        "retry",
        help="queue failed tasks again",
        description="Queues failed tasks again, whether they have a retry left or not, in a network that keeps tasks.",
    )
    retry.add_argument("tasks", nargs="*", metavar="TASK", help="ids, or keys")
    retry.add_argument("--all-failed", action="store_true", help="all that have failed")
    cancel = actions.add_parser(
        "cancel",
        help="take tasks out of the queue",
        description="Takes tasks out of the queue. An executor's is cancelled, and so is its Future; one that the "
        "network keeps has failed.",
    )
    cancel.add_argument("tasks", nargs="*", metavar="TASK", help="ids, or keys")
    cancel.add_argument("--all-queued", action="store_true", help="all that are queued")
    cancel.add_argument(
        "--kill", action="store_true", help="also end tasks that are running, with their worker process"
    )
    for action in (listing, show, retry, cancel):
        add_target_options(action, has_secret=action in (listing, show))


def run(args: argparse.Namespace, fail: Fail) -> int:
    """Runs the command."""
    if args.action == "list" and args.limit < 1:
        fail("--limit must be >= 1")
    is_all = getattr(args, "all_failed", False) or getattr(args, "all_queued", False)
    if args.action in ("retry", "cancel") and bool(args.tasks) == is_all:
        fail(f"which tasks? Name them, or pass --all-{'failed' if args.action == 'retry' else 'queued'}")
    target = Target(args, fail)
    picture = target.picture()
    if args.action == "list":
        return _list(target, picture, args)
    if args.action == "show":
        return _show(target, picture, args)
    from rush_executor._network.control import Controller

    controller = Controller(target.channel, target.keys, keeps=picture.kind == "tasks")
    if args.action == "retry":
        return _retry(controller, picture, args)
    return _cancel(controller, args)


def _list(target: Target, picture: Picture, args: argparse.Namespace) -> int:
    states = [state for state in _STATES if not args.state or state in args.state]
    tasks = {state: target.lookout.some_tasks(state, args.limit) for state in states}
    if args.json:
        print_json([task for found in tasks.values() for task in found])
        return 0
    numbers = {
        "running": picture.n_running,
        "queued": picture.n_queued,
        "failed": picture.n_failed,
        "finished": picture.n_ended - picture.n_failed,
    }
    has_ended = picture.kind == "tasks" or picture.is_durable
    columns = (
        Column("task"),
        Column("state", is_state=True),
        Column("what", gives_way=True),
        Column("attempt", is_right=True),
        Column("for", is_right=True),
        Column("worker"),
    )
    rows = [_row(task, picture.looked_at) for found in tasks.values() for task in found]
    blocks: list[Block] = [Table(columns, rows)] if rows else []
    for state, found in tasks.items():
        if state in ("running", "queued") or has_ended:
            more = numbers[state] - len(found)
            if more > 0 and len(found) == args.limit:
                blocks.append(Line(f"and {more:,} more {state}", "dim"))
    if not has_ended and (picture.n_ended or not rows):
        blocks.append(Line(f"{picture.n_ended:,} have ended, and are with their programs", "dim"))
    elif not rows:
        blocks.append(Line("no tasks", "dim"))
    print_blocks(blocks)
    return 0


def _row(task: TaskLine, now: float) -> list[str]:
    age = None if task.since is None else now - task.since
    attempt = str(task.attempt) if task.attempt else ""
    return [printable(task.task_id), task.state, printable(task.what), attempt, age_text(age), task.worker_id]


def _show(target: Target, picture: Picture, args: argparse.Namespace) -> int:
    # ruff: noqa: PLC0415
    from rush_executor._cli.errors import NotThere
    from rush_executor._ledger.views import NetworkReader
    from rush_executor._payload.rows import RowCodec
    from rush_executor._view.details import read_details

    found = target.lookout.tasks([args.task])
    if not found:
        ended = "" if picture.kind == "tasks" else "; if it has ended, its outcome is with its program"
        raise NotThere(f"there is no task {args.task!r} in network {target.network_id!r}{ended}")
    [task] = found
    codec = RowCodec(target.network_id, target.secret)
    details = read_details(NetworkReader(target.channel, target.keys), codec, task.task_id)
    if args.json:
        print_json({**fields_of(task), **fields_of(details)})
        return 0
    workers = {worker.worker_id: worker for worker in picture.workers}
    print_blocks(_shown(task, details, workers.get(task.worker_id), picture.looked_at))
    return 0


def _shown(task: TaskLine, details: TaskDetails, worker: Any, now: float) -> list[Block]:
    where = f" (process {worker.pid} on {printable(worker.host)})" if worker is not None else ""
    age = "" if task.since is None else f", for {age_text(now - task.since)}"
    pairs = {
        "task": printable(task.task_id),
        "state": f"{task.state}{age if task.state in ('queued', 'running') else ''}",
        "calls": printable(task.what) if not details.xs else "",
        "worker": f"{task.worker_id}{where}",
        "attempts": str(task.attempt) if task.attempt else "",
        "pushed": instant_text(task.pushed_at),
        "started": instant_text(task.started_at),
        "ended": instant_text(task.ended_at),
    }
    blocks: list[Block] = [Line(f"{name:<9}{text}") for name, text in pairs.items() if text]
    for name, values in (("inputs", details.xs), ("results", details.ys), ("extra", details.extra)):
        if values:
            blocks += [Line(name, "bold"), *(Line(f"  {line}") for line in _value_lines(values))]
    if details.failure:
        blocks += [Line("failure", "bold"), *(Line(f"  {line}", "red") for line in _lines(details.failure))]
    if details.traceback:
        blocks += [Line("traceback", "bold"), *(Line(f"  {line}") for line in _lines(details.traceback))]
    return blocks + [Line(line, "yellow") for problem in details.problems for line in _lines(problem)]


def _value_lines(values: Mapping[str, Any]) -> Iterable[str]:
    from rush_executor._view.cells import text_of

    return (f"{printable(str(name))} = {text_of(value, 1000)}" for name, value in values.items())


def _lines(text: str) -> list[str]:
    return [printable(line) for line in text.rstrip().splitlines()]


def _retry(controller: Controller, picture: Picture, args: argparse.Namespace) -> int:
    from rush_executor.errors import RushError

    if picture.kind != "tasks":
        raise RushError(
            f"network {picture.network!r} is an executor's: what a task was to do is not kept when it has ended. "
            "executor.options(retry_on=...) has failures tried again"
        )
    return _answer(controller.retry(None if args.all_failed else args.tasks), args, wanted=("queued",))


def _cancel(controller: Controller, args: argparse.Namespace) -> int:
    if args.all_queued:
        return _answer(dict.fromkeys(controller.cancel_queued(), "cancelled"), args, wanted=("cancelled",))
    return _answer(controller.cancel(args.tasks, kill=args.kill), args, wanted=("cancelled", "killed"))


def _answer(answers: dict[str, str], args: argparse.Namespace, *, wanted: tuple[str, ...]) -> int:
    from rush_executor._cli.errors import FAILED, NOT_THERE

    if args.json:
        print_json(answers)
    elif args.tasks:
        columns = (Column("task"), Column("", is_state=True))
        print_blocks([Table(columns, [[printable(t), answer or "not there"] for t, answer in answers.items()])])
        if args.action == "cancel" and "running" in answers.values():
            print_blocks([Line("what runs goes on: --kill ends it, with its worker process", "dim")])
    else:
        noun = "task" if len(answers) == 1 else "tasks"
        print_blocks([Line(f"{len(answers):,} {noun} {wanted[0]}")])
    if all(answer in wanted for answer in answers.values()):
        return 0
    return NOT_THERE if all(answer in (*wanted, "") for answer in answers.values()) else FAILED
