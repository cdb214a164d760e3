"""`rush-executor top`: a network, again and again: a screen in a terminal, else one picture after the other."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rush_executor._cli.output import (
    Block,
    Line,
    fields_of,
    instant_text,
    is_pretty,
    plain_lines,
    print_blocks,
    print_json,
    rich_renderable,
    terminal_width,
)
from rush_executor._cli.status import count_blocks, rate_text, title_line, worker_table
from rush_executor._cli.target import Fail, Target, add_target_options

if TYPE_CHECKING:
    from rush_executor._view.lookout import Meter, Picture

__all__ = ["DESCRIPTION", "EXAMPLES", "add_arguments", "frame_blocks", "run"]

DESCRIPTION = (
    "Shows a network again and again: tasks in each state, how many end per second, failures, and each worker with the "
    "task that it runs. In a terminal it fills the screen, until q or Ctrl-C; elsewhere one picture follows the other."
)
EXAMPLES = """\
  rush-executor top
  rush-executor top --network demo --interval 5
  rush-executor top --once
  rush-executor top --json | jq .rate
"""

# Rates that are drawn, one for each picture.
_HISTORY = 60
_BARS = "▁▂▃▄▅▆▇█"
_SHORTEST_INTERVAL_S = 0.1
# With --once: between the two looks that a rate needs.
_LOOK_TWICE_S = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    parser.add_argument(
        "--interval", type=float, default=1.0, metavar="S", help="seconds between pictures (default: 1)"
    )
    parser.add_argument("--once", action="store_true", help="one picture, after a second; then end")
    add_target_options(parser, has_secret=True, json_text="print each picture as a line of JSON")


def run(args: argparse.Namespace, fail: Fail) -> int:
    """Runs the command."""
    # ruff: noqa: PLC0415 - not for `--help`
    from rush_executor._config import is_dumb_terminal

    if not args.interval >= _SHORTEST_INTERVAL_S:
        fail(f"--interval must be >= {_SHORTEST_INTERVAL_S}")
    source = _Source(Target(args, fail, is_network_needed=args.once))
    if args.once:
        source.look()
        time.sleep(min(args.interval, _LOOK_TWICE_S))
        _print(source, is_json=args.json)
        return 0
    with contextlib.suppress(KeyboardInterrupt):
        if args.json or not sys.stdout.isatty() or is_dumb_terminal():
            while True:
                _print(source, is_json=args.json)
                sys.stdout.flush()
                time.sleep(args.interval)
        _fill_screen(source, args.interval)
    return 0


class _Source:
    """Where the pictures come from; goes on when the server or the network is away."""

    def __init__(self, target: Target) -> None:
        from rush_executor._view.lookout import Meter

        self._target = target
        self._meter = Meter(_HISTORY)

    def look(self) -> tuple[Picture, float | None]:
        """The network now, and how many tasks end per second."""
        picture = self._target.picture()
        return picture, self._meter.note(picture)

    def blocks(self, height: int | None) -> list[Block]:
        """The network now, as blocks that fit on a screen; or why there is none."""
        from rush_executor._cli.errors import NotThere, exit_code_of

        try:
            if not self._target.has_network():
                return [Line(f"waiting for a network on {self._target}", "yellow")]
            picture, rate = self.look()
        except NotThere as error:
            return [Line(f"{error}: waiting for it", "yellow")]
        except Exception as error:
            if exit_code_of(error) is None:
                raise
            return [Line(str(error), "bold red")]
        server, server_text = str(self._target), self._target.server_text()
        return frame_blocks(picture, self._meter, server=server, server_text=server_text, rate=rate, height=height)


def frame_blocks(
    picture: Picture, meter: Meter, *, server: str, server_text: str, rate: float | None, height: int | None
) -> list[Block]:
    """A picture as blocks.

    Args:
        picture: The picture.
        meter: Knows the rates up to now.
        server: Where it was taken.
        server_text: What there is to say of the server.
        rate: How many tasks end per second; None if that is not known yet.
        height: How many lines there is room for; None for any number.
    """
    blocks: list[Block] = [title_line(server, picture)]
    blocks.append(Line(f"{instant_text(picture.looked_at)}  {server_text}", "dim"))
    blocks += count_blocks(picture, rate)
    if len(meter.rates) > 1:
        blocks.append(Line(f"rate     {_drawn(meter.rates)}  at most {rate_text(max(meter.rates))}", "cyan"))
    blocks.append(Line())
    # Title of the table, and a line that says what was left out.
    room = len(picture.workers) if height is None else max(1, height - len(blocks) - 2)
    shown = picture.workers[:room]
    if shown:
        blocks.append(worker_table(picture, shown))
    if len(shown) < len(picture.workers):
        blocks.append(Line(f"and {len(picture.workers) - len(shown):,} more workers", "dim"))
    return blocks


def _drawn(rates: list[float]) -> str:
    highest = max(rates) or 1.0
    return "".join(_BARS[round(rate / highest * (len(_BARS) - 1))] for rate in rates)


def _print(source: _Source, *, is_json: bool) -> None:
    if is_json:
        picture, rate = source.look()
        print_json({**fields_of(picture), "rate": rate}, is_line=True)
    else:
        print_blocks(source.blocks(None))
        print()


def _fill_screen(source: _Source, interval_s: float) -> None:
    import shutil

    with _keys() as wait, _screen() as show:
        while True:
            size = shutil.get_terminal_size()
            show(source.blocks(size.lines - 1))
            if wait(interval_s) in ("q", "Q"):
                return


@contextlib.contextmanager
def _screen() -> Iterator[Callable[[list[Block]], None]]:
    """A screen of our own, whatever was on it before comes back; gives what shows blocks on it."""
    if is_pretty():
        from rich.console import Console
        from rich.live import Live

        with Live(console=Console(highlight=False), screen=True, auto_refresh=False) as live:
            yield lambda blocks: live.update(rich_renderable(blocks), refresh=True)
        return
    import shutil

    write = sys.stdout.write
    # The other screen, and no cursor.
    write("\x1b[?1049h\x1b[?25l")

    def show(blocks: list[Block]) -> None:
        lines = list(plain_lines(blocks, terminal_width()))[: shutil.get_terminal_size().lines - 1]
        # From the top, each line to its end, and nothing below: what stays the same does not flicker.
        write("\x1b[H" + "".join(f"{line}\x1b[K\r\n" for line in lines) + "\x1b[J")
        sys.stdout.flush()

    try:
        yield show
    finally:
        write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Gives what waits for a key, for so many seconds."""
    if not sys.stdin.isatty():

        def sleep(seconds: float) -> str:
            time.sleep(seconds)
            return ""

        yield sleep
        return
    import select
    import termios
    import tty

    terminal = sys.stdin.fileno()
    before: list[Any] = termios.tcgetattr(terminal)

    def wait(seconds: float) -> str:
        readable, _, _ = select.select([terminal], [], [], seconds)
        return sys.stdin.read(1) if readable else ""

    tty.setcbreak(terminal)
    try:
        yield wait
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
