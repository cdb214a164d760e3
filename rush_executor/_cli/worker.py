"""`rush-executor worker`: an agent on this machine, without an owner."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from rush_executor._config import (
    NetworkConfig,
    cpu_count,
    default_network_id,
    default_secret,
    default_url,
    redact,
)

__all__ = ["run_worker_command"]


def run_worker_command(args: argparse.Namespace, fail: Callable[[str], NoReturn]) -> int:
    """Runs the command.

    Args:
        args: As parsed.
        fail: Says what is wrong with the command line, and exits with 2.

    Returns:
        Exit code: 0 after it was told to stop, 1 when the server cannot be reached.
    """
    url, network_id = args.url or default_url(), args.network or default_network_id()
    if not url:
        fail("no server: pass --url, or set RUSH_URL")
    if not network_id:
        fail("no network: pass --network with the network_id of the executor, or set RUSH_NETWORK")
    n_workers = cpu_count() if args.workers is None else args.workers
    for option, value in (("--workers", n_workers), ("--max-tasks-per-child", args.max_tasks_per_child)):
        if value is not None and value < 1:
            fail(f"{option} must be >= 1")
    # Not for a command line that is wrong.
    # ruff: noqa: PLC0415
    from rush_executor._crew.alone import run_alone
    from rush_executor.errors import NetworkLostError, ServerError

    def greet() -> None:
        where = f"network {network_id!r} on {redact(url)}"
        noun = "worker" if n_workers == 1 else "workers"
        print(f"{n_workers} {noun} for {where}; Ctrl-C to stop", file=sys.stderr, flush=True)

    try:
        config = NetworkConfig(
            url=url,
            network_id=network_id,
            secret=_secret(args),
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
    except (ValueError, OSError) as error:
        fail(str(error))
    except (ServerError, NetworkLostError) as error:
        print(f"rush-executor: {error}", file=sys.stderr)
        return 1
    return 0


def _secret(args: argparse.Namespace) -> bytes | None:
    if args.secret_file is None:
        return default_secret()
    return Path(args.secret_file).read_bytes().strip()
