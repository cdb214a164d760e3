"""drain_workers.lua, and what a reader is told of workers that are to come, are there, or have ended."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rush_executor._ledger.tasks import KeptTask, TaskLedger
from rush_executor._ledger.views import NetworkReader
from rush_executor._ledger.worker import WorkerLedger
from rush_executor._protocol.records import Loss
from rush_executor._protocol.states import LOST, STARTING
from tests.integration.rig import Rig


@pytest.fixture
def ledger(rig: Rig) -> Iterator[TaskLedger]:
    ledger = TaskLedger(rig.channel(), rig.keys)
    ledger.found()
    yield ledger
    ledger.reset()


def register(rig: Rig, ledger: TaskLedger, worker_id: str = "w1") -> WorkerLedger:
    worker = WorkerLedger(rig.channel(), rig.keys, worker_id, ledger.found(), keeps=True)
    worker.register(rig.agent().id, "host", 4711)
    return worker


def test_through_all_states(rig: Rig, ledger: TaskLedger) -> None:
    """Expected, announced, there, at a task, asked to end, lost."""
    agent, reader = rig.agent(), NetworkReader(rig.channel(), rig.keys)

    def states(**expected: str) -> dict[str, tuple[str, str]]:
        return {record.worker_id: (record.state, record.agent_id) for record in reader.workers(expected)}

    # Others tell nothing of one that only somebody else expects; agents are known once they give signs of life.
    agent.ledger.beat(60_000)
    assert states() == {}
    assert states(w1="a1") == {"w1": ("starting", "a1")}
    agent.ledger.announce_worker("w1")
    assert states() == states(w1="a1") == {"w1": ("starting", "a1")}
    worker = register(rig, ledger)
    assert states(w1="a1") == {"w1": ("idle", "a1")}
    ledger.create("running", [KeptTask("t", b"xs")], "w1")
    assert states() == {"w1": ("running", "a1")}
    agent.ledger.drain(["w1"])
    assert states() == {"w1": ("draining", "a1")}
    agent.ledger.lose_worker(Loss("w1", "host", 4711, 1, "reason"), "*", how=LOST)
    assert states(w1="a1") == {"w1": ("lost", "a1")}
    # Under its old id: what it was is forgotten.
    ledger.forget_workers(["w1"])
    assert states() == {}
    agent.ledger.announce_worker("w1")
    assert states() == {"w1": ("starting", "a1")}
    register(rig, ledger)
    assert states() == {"w1": ("idle", "a1")}
    worker.close()


def test_one_that_is_started_again_at_once(rig: Rig, ledger: TaskLedger) -> None:
    """Is on no list of those that have ended; what it held is put right."""
    agent, reader = rig.agent(), NetworkReader(rig.channel(), rig.keys)
    agent.ledger.announce_worker("w1")
    register(rig, ledger)
    loss = Loss("w1", "host", 4711, -9, "was killed")
    assert agent.ledger.lose_worker(loss, "", how=STARTING) == (0, 0)
    assert reader.workers() == []
    agent.ledger.announce_worker("w1")
    assert [record.state for record in reader.workers()] == ["starting"]


def test_one_that_is_not_there(rig: Rig) -> None:
    """Of it nothing is written, as nobody would delete it: neither before it is there nor when it has ended."""
    agent = rig.agent()
    agent.ledger.drain(["w1"])
    assert rig.dump() == {}
    worker = rig.worker("w1")
    agent.ledger.drain(["w1"])
    assert rig.dump()["worker:w1"]["state"] == "draining"
    agent.lose(worker)
    agent.ledger.drain(["w1"])
    assert rig.dump() == {"agent_ids": {"a1"}}
