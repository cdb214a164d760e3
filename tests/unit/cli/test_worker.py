"""The command line as the agent's settings show it."""

from __future__ import annotations

import pytest

from rush_executor import _cli
from rush_executor._agent.supervisor import AgentSettings
from rush_executor._crew import agent_process
from rush_executor._ledger import connection


def test_worker_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `rush-executor worker` is told is what its agent is told."""
    seen: list[AgentSettings] = []
    monkeypatch.setattr(agent_process, "run_agent", seen.append)
    monkeypatch.setattr(connection, "check_server", lambda _url: None)
    monkeypatch.setattr("sys.path", [])
    monkeypatch.setattr("rush_executor._crew.alone.set_worker_environment", lambda *_: None)
    args = "worker --url redis://nowhere/0 --network net --workers 3 --max-tasks-per-child 4 --reconnect-timeout 5"
    assert _cli.main([*args.split(), "--heartbeat-period", "0.5", "--heartbeat-expire", "2"]) == 0
    [settings] = seen
    config = settings.config
    assert (settings.n_workers, settings.max_tasks_per_child, config.network_id) == (3, 4, "net")
    assert (config.reconnect_timeout_s, config.heartbeat_period_s, config.heartbeat_expire_s) == (5, 0.5, 2)


def test_heartbeats_that_make_no_sense(capsys: pytest.CaptureFixture[str]) -> None:
    """Said in words, with the exit code of a wrong command line."""
    with pytest.raises(SystemExit) as exit_info:
        _cli.main(["worker", "--url", "redis://nowhere/0", "--network", "net", "--heartbeat-expire", "4"])
    assert exit_info.value.code == 2
    assert "heartbeat_expire" in capsys.readouterr().err
