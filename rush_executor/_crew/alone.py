"""Workers without an owner: an agent in this process, until it is told to stop."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable

from rush_executor._config import (
    NetworkConfig,
    chosen_secret,
    default_network_id,
    default_url,
    set_worker_environment,
)

__all__ = ["run_alone", "start_worker"]


def start_worker(
    network_id: str | None = None,
    url: str | None = None,
    *,
    n_workers: int = 1,
    secret: str | bytes | None = None,
    reconnect_timeout: float = 60.0,
    heartbeat_period: float = 3.0,
    heartbeat_expire: float = 15.0,
) -> None:
    """Runs workers in child processes of this one, and waits for their end: as `rush-executor worker` does.

    It may be called before the network exists, and waits for it. SIGTERM or Ctrl-C has the workers finish what they
    run and leave, a second one ends them now.

    Args:
        network_id: The network; by default `RUSH_NETWORK` of the environment.
        url: The server; by default `RUSH_URL` of the environment.
        n_workers: How many.
        secret: See `RushExecutor`.
        reconnect_timeout: See `RushExecutor`.
        heartbeat_period: See `RushExecutor`.
        heartbeat_expire: See `RushExecutor`.

    Raises:
        ServerError: The server cannot be reached.
        NetworkLostError: It was away for longer than `reconnect_timeout`.
        ValueError: There is no url or network, or this is not the main thread, which alone gets signals.
    """
    network_id, url = network_id or default_network_id(), url or default_url()
    if not network_id or not url:
        raise ValueError("start_worker needs network_id and url, or RUSH_NETWORK and RUSH_URL in the environment")
    if threading.current_thread() is not threading.main_thread():
        raise ValueError("start_worker must be called in the main thread, which alone gets signals")
    config = NetworkConfig(
        url=url,
        network_id=network_id,
        secret=chosen_secret(secret),
        reconnect_timeout_s=reconnect_timeout,
        heartbeat_period_s=heartbeat_period,
        heartbeat_expire_s=heartbeat_expire,
    )
    run_alone(config, n_workers)


def run_alone(
    config: NetworkConfig,
    n_workers: int,
    *,
    max_tasks: int | None = None,
    n_threads: int | None = None,
    when_reached: Callable[[], object] | None = None,
) -> None:
    """Runs an agent in this process.

    Args:
        config: The network.
        n_workers: How many workers.
        max_tasks: A worker is replaced after so many tasks; None for never.
        n_threads: Threads for BLAS, OpenMP and the like in each worker; None for an even share of the CPUs.
        when_reached: Called when the server has answered.

    Raises:
        ServerError, NetworkLostError: As `start_worker`.
    """
    # Read by numerical libraries when a task imports them, in processes forked from this one.
    set_worker_environment(n_workers, n_threads)
    # After the environment is set. What is imported stays: looking for garbage in it took a tenth of the time.
    # ruff: noqa: PLC0415
    gc.disable()
    from rush_executor._agent.supervisor import AgentSettings
    from rush_executor._crew.agent_process import run_agent
    from rush_executor._ledger.connection import check_server
    from rush_executor._protocol.ids import new_id

    gc.enable()
    check_server(config.url)
    if when_reached is not None:
        when_reached()
    # Modules beside the user's code are found as they are by `python -m`.
    if "" not in sys.path:
        sys.path.insert(0, "")
    run_agent(AgentSettings(config=config, agent_id=new_id(), n_workers=n_workers, max_tasks_per_child=max_tasks))
