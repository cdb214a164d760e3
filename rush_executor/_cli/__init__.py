"""The command `rush-executor`.

argparse, and nothing heavy imported before a subcommand runs: `--help` must come at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rush_executor import __version__

__all__ = ["main"]

_EXAMPLES = """\
examples:
  rush-executor worker --url redis://server:6379/0 --network demo
  RUSH_URL=redis://server:6379/0 RUSH_SECRET=... rush-executor worker --network demo --workers 4
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    from rush_executor._cli.worker import run_worker_command  # noqa: PLC0415 - `--help` needs none of it

    return run_worker_command(args, parser.error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rush-executor",
        description="Workers for RushExecutor, a concurrent.futures.Executor on a Redis or Valkey server.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    worker = commands.add_parser(
        "worker",
        help="start workers on this machine that join a network",
        description=(
            "Starts an agent on this machine, whose workers join a network and run its tasks until the agent is told "
            "to stop: Ctrl-C or SIGTERM once to finish the running tasks first, twice to stop now. It may start before "
            "the network exists, and waits for it. The secret that seals payloads, if there is one, comes from "
            "RUSH_SECRET or a file, never from the command line."
        ),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    worker.add_argument("--url", help="server: redis://, rediss:// or unix:// (default: RUSH_URL)")
    worker.add_argument("--network", help="network to join (default: RUSH_NETWORK)")
    worker.add_argument("--workers", type=int, metavar="N", help="worker processes (default: one per CPU)")
    worker.add_argument("--secret-file", metavar="FILE", help="file that holds the secret (default: RUSH_SECRET)")
    worker.add_argument("--max-tasks-per-child", type=int, metavar="N", help="replace a worker after N tasks")
    worker.add_argument(
        "--inner-max-num-threads",
        type=int,
        metavar="N",
        help="BLAS and OpenMP threads per worker (default: fair share)",
    )
    worker.add_argument(
        "--reconnect-timeout", type=float, default=60.0, metavar="S", help="seconds to wait for a lost server"
    )
    worker.add_argument(
        "--heartbeat-period", type=float, default=3.0, metavar="S", help="seconds between two signs of life"
    )
    worker.add_argument(
        "--heartbeat-expire",
        type=float,
        default=15.0,
        metavar="S",
        help="seconds without a sign of life after which these workers are taken for lost",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
