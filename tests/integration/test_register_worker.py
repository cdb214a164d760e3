"""register_worker.lua: a worker that its agent has announced joins the network."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rush_executor._ledger.connection import WorkerGone
from rush_executor._protocol.records import Loss
from tests.integration.rig import EPOCH, Rig, Worker


def announced(rig: Rig) -> Worker:
    """A worker that its agent has announced and that has not registered."""
    worker = Worker(rig, "w1", rig.agent(), rig.url, EPOCH)
    worker.agent.ledger.announce_worker("w1")
    return worker


def be_killed(rig: Rig, worker: Worker) -> None:
    worker.agent.ledger.lose_worker(Loss("w1", "host", 4711, -15, "killed by signal 15, SIGTERM"), "")


def be_killed_and_agent_leaves(rig: Rig, worker: Worker) -> None:
    be_killed(rig, worker)
    worker.agent.ledger.leave()


def agent_is_reaped(rig: Rig, worker: Worker) -> None:
    reaper = rig.reaper()
    assert [reaper.look(), reaper.look()] == [[], ["a1"]]


def test_it_writes_what_others_look_for(rig: Rig) -> None:
    """A worker is on the lists of all workers and of its agent, and says where it runs; sent twice, the same."""
    worker = announced(rig)
    for _ in range(2):
        worker.ledger.register("a1", "host", 4711)
        dump = rig.dump()
        assert float(dump["worker:w1"].pop("joined_at")) > 0
        assert dump == {
            "agent_ids": {"a1"},
            "agent_workers:a1": {"w1"},
            "worker:w1": {"agent": "a1", "host": "host", "pid": "4711"},
            "worker_ids": {"w1"},
        }
    worker.agent.workers.append(worker)


def test_no_worker_that_was_not_announced(rig: Rig) -> None:
    """Nobody would look after what it claims."""
    with pytest.raises(WorkerGone):
        Worker(rig, "w1", rig.agent(), rig.url, EPOCH).ledger.register("a1", "host", 4711)
    assert rig.dump() == {}


@pytest.mark.parametrize("end", [be_killed, be_killed_and_agent_leaves, agent_is_reaped])
def test_what_a_worker_sent_before_it_was_killed_comes_too_late(rig: Rig, end: Callable[[Rig, Worker], None]) -> None:
    """It may lie in the worker's socket until the server has heard of the worker's end: nothing may be left of it."""
    worker = announced(rig)
    end(rig, worker)
    before = rig.dump()
    assert "agent_workers:a1" not in before
    with pytest.raises(WorkerGone):
        worker.ledger.register("a1", "host", 4711)
    assert rig.dump() == before
