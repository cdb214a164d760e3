"""clear_tasks.lua and delete_tasks.lua: a network forgets its tasks, and keeps its workers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rush_executor._ledger.blobs import LARGE_PAYLOAD
from rush_executor._ledger.tasks import KeptTask, TaskLedger
from rush_executor._ledger.views import NetworkReader
from rush_executor._ledger.worker import Outcome, WorkerLedger
from rush_executor._protocol.records import Claim
from tests.integration.rig import Rig

LARGE = b"x" * LARGE_PAYLOAD
# What is of the workers and of the network, and not of the tasks.
STAYS = {
    "network",
    "ends",
    "worker_ids",
    "worker:w1",
    "agent_workers:a1",
    "agent_ids",
    "start_args",
    "idle_workers",
    "worker_bell:w1",
}


@pytest.fixture
def ledger(rig: Rig) -> Iterator[TaskLedger]:
    ledger = TaskLedger(rig.channel(), rig.keys)
    ledger.found()
    ledger.write_start("s1", b"loop")
    yield ledger
    ledger.reset()


@pytest.fixture
def worker(rig: Rig, ledger: TaskLedger) -> WorkerLedger:
    agent = rig.agent()
    agent.ledger.announce_worker("w1")
    worker = WorkerLedger(rig.channel(), rig.keys, "w1", ledger.found(), keeps=True)
    worker.register(agent.id, "host", 4711)
    return worker


def fill(ledger: TaskLedger, worker: WorkerLedger) -> None:
    """Tasks in every state and place, small and large."""
    ledger.create("queued", [KeptTask("r", LARGE), KeptTask("g", b"xs")])
    claims = worker.exchange([], limit=2, wait=False).claims
    worker.finish([Outcome(claims[1], False, LARGE)])
    ledger.create("running", [KeptTask("own", b"xs")], "w1")
    ledger.create("queued", [KeptTask("q", LARGE), KeptTask("p", b"xs", worker_id="w1")])
    ledger.create("finished", [KeptTask("f", LARGE, outcome=LARGE)])
    ledger.create("failed", [KeptTask("e", b"xs", outcome=LARGE)])


def test_nothing_of_a_task_stays(rig: Rig, ledger: TaskLedger, worker: WorkerLedger) -> None:
    """But for an empty record of what runs, with a TTL; the network is the same, workers and their loop are there."""
    before = rig.dump()
    fill(ledger, worker)
    ledger.clear()
    after = rig.dump()
    running = {key: after.pop(key) for key in ("task:r", "task:own")}
    assert all(record == {"state": "cleared"} for record in running.values())
    assert all(0 < rig.ttl_ms(rig.keys.task(task)) <= 86_400_000 for task in ("r", "own"))
    assert after.keys() <= STAYS
    assert {key: after[key] for key in ("worker:w1", "worker_ids", "start_args")} == {
        key: before[key] for key in ("worker:w1", "worker_ids", "start_args")
    }
    assert after["network"]["epoch"] == before["network"]["epoch"]


def test_the_loser(rig: Rig, ledger: TaskLedger, worker: WorkerLedger) -> None:
    """A worker's outcome for a task that was cleared is refused; so is one that it would make again."""
    fill(ledger, worker)
    ledger.clear()
    assert worker.finish([Outcome(Claim(task, 0, b""), False, b"ys") for task in ("r", "own")]) == ["r", "own"]
    ledger.create("running", [KeptTask("own", b"xs")], "w1")
    assert worker.finish([Outcome(Claim("own", 0, b""), False, b"ys")]) == ["own"]
    assert NetworkReader(rig.channel(), rig.keys).count_all() == 0
    # It goes on with what comes.
    ledger.create("queued", [KeptTask("new", b"xs")])
    [claim] = worker.exchange([], limit=1, wait=False).claims
    assert worker.finish([Outcome(claim, False, b"ys")]) == []


def test_sent_twice(rig: Rig, ledger: TaskLedger, worker: WorkerLedger) -> None:
    """The second time, what was made since stays."""
    fill(ledger, worker)
    channel = ledger._channel
    channel.sent.clear()  # type: ignore[attr-defined]
    ledger.clear()
    [clear, *_] = [packets for packets in channel.sent if b"cleared_tasks" in packets[0]]  # type: ignore[attr-defined]
    ledger.create("queued", [KeptTask("new", b"xs")])
    before = rig.dump()
    assert rig.send_again(clear) == [[[1]]]
    assert rig.dump() == before


def test_one_that_broke_off(rig: Rig, ledger: TaskLedger, worker: WorkerLedger) -> None:
    """The tasks are gone all the same; the next clearing deletes what was left of them, however much that is."""
    n = 1200
    ledger.create("finished", [KeptTask(f"t{i}", b"xs", outcome=b"ys") for i in range(n)])
    delete = ledger._delete_cleared
    ledger._delete_cleared = lambda: None  # type: ignore[method-assign]
    ledger.clear()
    reader = NetworkReader(rig.channel(), rig.keys)
    assert (reader.count_all(), reader.count("finished")) == (0, 0)
    assert len(rig.dump()["cleared_tasks"]) == n
    ledger._delete_cleared = delete  # type: ignore[method-assign]
    ledger.create("finished", [KeptTask("new", b"xs", outcome=b"ys")])
    ledger.clear()
    assert not [key for key in rig.dump() if key.startswith(("task", "cleared", "all"))]


def test_a_reader_of_many_stops(rig: Rig, ledger: TaskLedger) -> None:
    """Tasks of before and after are not mixed, though the reader asks ahead."""
    ledger.create("finished", [KeptTask(f"t{i}", b"xs", outcome=b"ys") for i in range(1700)])
    reader = NetworkReader(rig.channel(), rig.keys)
    made_at = reader.read_finished(0).made_at
    ids = [record.task_id for records in reader.read_more_finished(1, 1699, made_at) for record in records]
    assert ids == [f"t{i}" for i in range(1, 1699)]
    parts = reader.read_more_finished(1, 1700, made_at)
    found = [record.task_id for record in next(parts)]
    ledger.clear()
    ledger.create("finished", [KeptTask(f"new{i}", b"xs", outcome=b"ys") for i in range(1700)])
    found += [record.task_id for records in parts for record in records]
    assert found == [f"t{i}" for i in range(1, len(found) + 1)]
    assert len(found) < 1699


def test_who_waits_is_rung(rig: Rig, ledger: TaskLedger, worker: WorkerLedger) -> None:
    """Whoever waits for the end of a task looks again, and sees that there is none."""
    fill(ledger, worker)
    reader = NetworkReader(rig.channel(), rig.keys)
    ring, states, _ = reader.wait_states(b"", ["q"], 0)
    assert states == ["queued"]
    ledger.clear()
    new_ring, states, _ = reader.wait_states(ring, ["q", "r"], 1.0)
    assert new_ring != ring
    assert states == ["", "cleared"]


def test_what_was_handed_over(rig: Rig, ledger: TaskLedger, worker: WorkerLedger) -> None:
    """To a worker whose wait had just ended: cleared before it has looked, it is never run."""
    assert worker.exchange([], limit=1, wait=False, rests=True).claims == []
    ledger.create("queued", [KeptTask("old", b"old")])
    assert "old" in rig.dump()["worker_bell:w1"][0]
    ledger.clear()
    assert rig.dump()["worker_bell:w1"] == ["1"], "it was woken: nobody else will wake it"
    ledger.create("queued", [KeptTask("new", b"new"), KeptTask("other", b"new")])
    ran = []
    claims = worker.exchange([], limit=1, wait=False, rests=True).claims
    while claims:
        ran += [claim.task_id for claim in claims]
        outcomes = [Outcome(claim, False, b"ys") for claim in claims]
        claims = worker.exchange(outcomes, limit=1, wait=True, wait_s=0.01, rests=True).claims
    assert ran == ["new", "other"]
