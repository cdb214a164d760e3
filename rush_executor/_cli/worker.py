"""`rush-executor worker`: an agent on this machine, without an owner."""

from __future__ import annotations

import argparse
import sys

from rush_executor._cli.target import (
    Fail,
    add_json_option,
    add_network_option,
    add_secret_option,
    add_server_options,
    required_network,
    required_url,
    secret_of,
)

__all__ = ["DESCRIPTION", "EXAMPLES", "add_arguments", "run"]

DESCRIPTION = (
    "Starts an agent on this machine, whose workers join a network and run its tasks until the agent is told to stop: "
    "Ctrl-C or SIGTERM once to finish the running tasks first, twice to stop now. It may start before the network "
    "exists, and waits for it. The directory in which it is started is on the path from which tasks import."
)
EXAMPLES = """\
  rush-executor worker --url redis://server:6379/0 --network demo
  rush-executor worker --url-file server.url --secret-file demo.secret --network demo --workers 4
  RUSH_URL=redis://:PASSWORD@server:6379/0 RUSH_SECRET=... rush-executor worker --network demo
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command."""
    add_server_options(parser, is_found=False)
    add_network_option(parser, "network to join; it need not exist yet", default="RUSH_NETWORK")
    parser.add_argument("--workers", type=int, metavar="N", help="worker processes (default: one per CPU)")
    add_secret_option(parser)
    parser.add_argument("--max-tasks-per-child", type=int, metavar="N", help="replace a worker after N tasks")
    parser.add_argument(
        "--inner-max-num-threads",
        type=int,
        metavar="N",
        help="BLAS and OpenMP threads per worker (default: fair share)",
    )
    parser.add_argument(
        "--reconnect-timeout", type=float, default=60.0, metavar="S", help="seconds to wait for a lost server"
    )
    parser.add_argument(
        "--heartbeat-period", type=float, default=3.0, metavar="S", help="seconds between two signs of life"
    )
    parser.add_argument(
        "--heartbeat-expire",
        type=float,
        default=15.0,
        metavar="S",
        help="seconds without a sign of life after which these workers are taken for lost",
    )
    add_json_option(parser, "when the server has answered, print a line of JSON")


def run(args: argparse.Namespace, fail: Fail) -> int:
    """Runs the command.

    Args:
        args: As parsed.
        fail: Says what is wrong with the command line, and exits with 2.

    Returns:
        Exit code: 0 after it was told to stop; errors of the server are raised.
    """
    # ruff: noqa: PLC0415 - not for `--help`
    from rush_executor._config import NetworkConfig, cpu_count, redact

    url, network_id = required_url(args, fail), required_network(args, fail)
    n_workers = cpu_count() if args.workers is None else args.workers
    for option, value in (("--workers", n_workers), ("--max-tasks-per-child", args.max_tasks_per_child)):
        if value is not None and value < 1:
            fail(f"{option} must be >= 1")
    secret = secret_of(args, fail)
    # Not for a command line that is wrong.
    from rush_executor._cli.output import print_json
    from rush_executor._crew.alone import run_alone

    def greet() -> None:
        if args.json:
            print_json({"network": network_id, "url": redact(url), "workers": n_workers}, is_line=True)
            return
        where = f"network {network_id!r} on {redact(url)}"
        noun = "worker" if n_workers == 1 else "workers"
        print(f"{n_workers} {noun} for {where}; Ctrl-C to stop", file=sys.stderr, flush=True)

    try:
        config = NetworkConfig(
            url=url,
            network_id=network_id,
            secret=secret,
            reconnect_timeout_s=args.reconnect_timeout,
            heartbeat_period_s=args.heartbeat_period,
            heartbeat_expire_s=args.heartbeat_expire,
        )
        run_alone(
            config,
            n_workers,
            max_tasks=args.max_tasks_per_child,
            n_threads=args.inner_max_num_threads,
            when_reached=greet,
        )
    except ValueError as error:
        fail(str(error))
    return 0
