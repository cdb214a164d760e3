"""`rush-executor status`: what a network is at; of a server with several networks, what each is at."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from rush_executor._cli.output import Block, Column, Line, Table, age_text, print_blocks, print_json, printable
from rush_executor._cli.target import Fail, Target, add_target_options

if TYPE_CHECKING:
    from rush_executor._view.lookout import Picture

__all__ = ["DESCRIPTION", "EXAMPLES", "add_arguments", "count_blocks", "rate_text", "run", "title_line", "worker_table"]

DESCRIPTION = (
    "Says what a network is at: tasks in each state, workers and what they run. Without a name, and where there are "
    "several networks on the server: one line about each."
)
EXAMPLES = """\
  rush-executor status
  rush-executor status --network demo
  test "$(rush-executor status --network demo --json | jq .n_queued)" -eq 0
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    add_target_options(parser, has_secret=True)


def run(args: argparse.Namespace, fail: Fail) -> int:
    """Runs the command."""
    target = Target(args, fail, is_network_needed=False)
    if not target.network_id:
        _list(target, is_json=args.json)
        return 0
    picture = target.picture()
    if args.json:
        print_json(picture)
        return 0
    blocks = [title_line(str(target), picture), *count_blocks(picture, None)]
    if picture.workers:
        blocks += [Line(), worker_table(picture, picture.workers)]
    print_blocks(blocks)
    return 0


def _list(target: Target, *, is_json: bool) -> None:
    pictures = [target.picture_of(network) for network in target.networks]
    if is_json:
        print_json(pictures)
        return
    columns = [Column("network"), Column("kind")]
    columns += [Column(name, is_right=True) for name in ("queued", "running", "ended", "failed", "workers", "clients")]
    rows = [
        [printable(p.network), p.kind, *map("{:,}".format, _numbers(p)), f"{len(p.workers)}", f"{p.n_clients}"]
        for p in pictures
    ]
    noun = "network" if len(rows) == 1 else "networks"
    print_blocks([Line(f"{len(rows) or 'no'} {noun} on {target}"), *([Table(columns, rows)] if rows else [])])


def _numbers(picture: Picture) -> tuple[int, ...]:
    return picture.n_queued, picture.n_running, picture.n_ended, picture.n_failed


def title_line(server: str, picture: Picture) -> Line:
    """Which network this is."""
    return Line(f"network {printable(picture.network)} ({picture.description}) on {server}", "bold")


def count_blocks(picture: Picture, rate: float | None) -> list[Block]:
    """How many tasks are in which state, and how many end per second, if that is known."""
    queued, running, ended, failed = map("{:,}".format, _numbers(picture))
    text = f"tasks    {queued} queued, {running} running, {ended} ended"
    if rate is not None:
        text += f", {rate_text(rate)}"
    by_state: dict[str, int] = {}
    for worker in picture.workers:
        by_state[worker.state] = by_state.get(worker.state, 0) + 1
    states = ", ".join(f"{n} {state}" for state, n in sorted(by_state.items()))
    hosts = len({worker.host for worker in picture.workers})
    where = f" on {hosts} host{'s' * (hosts != 1)}" if hosts else ""
    gone = "".join(f", {n} {how}" for how, n in picture.n_workers_ended.items() if n)
    blocks: list[Block] = [
        Line(text),
        Line(f"failed   {failed}", "bold red" if picture.n_failed else ""),
        Line(f"workers  {len(picture.workers)}{where}{': ' if states else ''}{states}{gone and f' ({gone[2:]})'}"),
    ]
    if picture.kind == "calls":
        blocks.append(Line(f"clients  {picture.n_clients}"))
    if picture.is_broken:
        blocks.append(Line("no worker can start: the program's InitializerError says why", "bold red"))
    if picture.is_restoring:
        blocks.append(Line("it is being restored from a snapshot", "yellow"))
    if picture.n_queued and not picture.workers:
        blocks.append(Line("no worker is there to run what is queued", "yellow"))
    return blocks


def rate_text(rate: float) -> str:
    """How many tasks end per second, for people."""
    return f"{rate:,.0f} per second" if rate >= 10 or not rate else f"{rate:.1f} per second"  # noqa: PLR2004


def worker_table(picture: Picture, workers: list[Any]) -> Table:
    """Workers, and what each runs."""
    columns = (
        Column("worker"),
        Column("host", gives_way=True),
        Column("pid", is_right=True),
        Column("state", is_state=True),
        Column("claimed", is_right=True),
        Column("runs", gives_way=True),
        Column("attempt", is_right=True),
        Column("for", is_right=True),
        Column("task"),
    )
    rows = []
    for worker in workers:
        task = worker.task
        since = task.started_at if task is not None else None
        rows.append(
            [
                worker.worker_id,
                printable(worker.host),
                str(worker.pid),
                worker.state,
                f"{worker.n_held:,}" if worker.n_held else "",
                printable(task.what) if task is not None else "",
                str(task.attempt) if task is not None else "",
                age_text(picture.looked_at - since) if since is not None else "",
                task.task_id if task is not None else "",
            ]
        )
    return Table(columns, rows)
