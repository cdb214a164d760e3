"""What an operator does to tasks and workers, in networks of both kinds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rush_executor._ledger.tasks import KeptTask, TaskLedger
from rush_executor._ledger.worker import WorkerLedger
from rush_executor._network.control import CANCELLED_TEXT, Controller
from rush_executor._protocol.records import CANCELLED_TAG, KILL, RESTART
from tests.integration.rig import Rig


@pytest.fixture
def kept(rig: Rig) -> Iterator[TaskLedger]:
    """A network that keeps its tasks, with two workers' queues."""
    ledger = TaskLedger(rig.channel(), rig.keys)
    ledger.found()
    agent = rig.agent()
    for worker_id in ("w1", "w2"):
        agent.ledger.announce_worker(worker_id)
        WorkerLedger(rig.channel(), rig.keys, worker_id, ledger.found(), keeps=True).register(agent.id, "host", 1)
    yield ledger
    ledger.reset()


def controller(rig: Rig, *, keeps: bool) -> Controller:
    return Controller(rig.channel(), rig.keys, keeps=keeps)


def test_cancelling_calls(rig: Rig) -> None:
    """The client of each is told; what runs goes on, unless it is to be killed; what is not there is not there."""
    one, two, worker = rig.client("c1"), rig.client("c2"), rig.worker()
    running, *ids = one.push(3)
    [other] = two.push(1)
    worker.claim()
    control = controller(rig, keeps=False)
    answers = control.cancel([ids[0], other, running, "nothing", ids[0]])
    assert answers == {ids[0]: "cancelled", other: "cancelled", running: "running", "nothing": ""}
    assert one.drain() == [(ids[0], CANCELLED_TAG)]
    assert two.drain() == [(other, CANCELLED_TAG)]
    assert rig.queue() == [ids[1]]
    assert rig.agent().ledger.wanted_ends() == []
    assert control.cancel([running, ids[1]], kill=True) == {running: "killed", ids[1]: "cancelled"}
    assert rig.agent().ledger.wanted_ends() == [running]


def test_cancelling_all_calls(rig: Rig) -> None:
    """Of all clients; what runs goes on."""
    clients, worker = [rig.client("c1"), rig.client("c2")], rig.worker()
    for client in clients:
        client.push(4)
    worker.claim()
    cancelled = controller(rig, keeps=False).cancel_queued()
    assert len(cancelled) == len(set(cancelled)) == 7
    assert rig.queue() == []
    assert sorted(task for client in clients for task, _ in client.drain()) == sorted(cancelled)


def test_cancelling_tasks_that_are_kept(rig: Rig, kept: TaskLedger) -> None:
    """They have failed, and say why; also those in the queue of one worker."""
    kept.create("queued", [KeptTask("a", b"x"), KeptTask("b", b"x"), KeptTask("c", b"x", worker_id="w2")])
    kept.create("running", [KeptTask("r", b"x")], "w1")
    kept.create("finished", [KeptTask("f", b"x", outcome=b"ys")])
    control = controller(rig, keeps=True)
    answers = control.cancel(["a", "c", "r", "f", "nothing"])
    assert answers == {"a": "cancelled", "c": "cancelled", "r": "running", "f": "finished", "nothing": ""}
    assert rig.queue() == ["b"]
    assert rig.dump()["failed_tasks"] == {"a", "c"}
    assert rig.dump()["task:c"]["outcome"] == f"X{CANCELLED_TEXT}"
    assert control.cancel_queued() == ["b"]
    assert rig.queue() == []


def test_retrying(rig: Rig, kept: TaskLedger) -> None:
    """What has failed is queued again, retries left or not; the rest is told."""
    kept.create("failed", [KeptTask(name, b"x", outcome=b"failure") for name in "abc"])
    kept.create("queued", [KeptTask("q", b"x")])
    control = controller(rig, keeps=True)
    assert control.retry(["a", "q", "nothing"]) == {"a": "queued", "q": "queued", "nothing": ""}
    assert set(rig.queue()) == {"a", "q"}
    assert control.retry(None) == {"b": "queued", "c": "queued"}
    assert control.retry(None) == {}


def test_asking_workers(rig: Rig, kept: TaskLedger) -> None:
    """Their agent finds what it is asked for."""
    control = controller(rig, keeps=True)
    control.ask_worker("w1", rig.agent().id, RESTART)
    control.ask_worker("w2", rig.agent().id, KILL)
    assert set(rig.agent().ledger.wanted_ends()) == {"restart:w1", "kill:w2"}
