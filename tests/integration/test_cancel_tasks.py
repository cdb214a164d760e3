"""cancel_tasks.lua: from queued to cancelled."""

from __future__ import annotations

from rush_executor._protocol.records import Claim
from tests.integration.rig import LEASE_MS, Rig


def test_row(rig: Rig) -> None:
    """Queued cancel -> cancelled: the record is gone, the inbox says so."""
    client = rig.client()
    task, other = client.push(2)
    before = rig.dump()
    assert client.uplink.cancel([task]) == [1]
    del before[f"task:{task}"]
    assert rig.dump() == {
        **before,
        "queued_tasks": [(other, 2.0)],
        "inbox:c1": [task, "C"],
    }
    assert 0 < rig.ttl_ms(rig.keys.inbox("c1")) <= LEASE_MS
    assert client.drain() == [(task, b"C")]


def test_loser(rig: Rig) -> None:
    """After the claim it is too late (0); after the end, and of what never was, there is nothing to cancel (-1).

    What was claimed along with others may not have been started: 2, ask again in a moment.
    """
    client, worker = rig.client(), rig.worker()
    ended, running, queued = client.push(3)
    worker.finish(worker.claim())
    worker.claim()
    before = rig.dump()
    assert client.uplink.cancel([ended, running, "c1-999"]) == [-1, 0, -1]
    assert rig.dump() == before
    assert client.uplink.cancel([ended, queued, running]) == [-1, 1, 0]
    assert rig.inbox() == [(ended, "Fresult"), (queued, "C")]
    worker.finish([Claim(running, 1, b"")])
    both = client.push(2)
    claims = worker.claim(2)
    assert client.uplink.cancel(both) == [2, 2]
    worker.finish(claims[:1])
    worker.ledger.release(claims[1:])
    assert client.uplink.cancel(both) == [-1, 1]


def test_what_went_back_can_be_cancelled(rig: Rig) -> None:
    """A task that was claimed and given back is queued like any other."""
    client, worker = rig.client(), rig.worker()
    [task] = client.push()
    worker.ledger.release(worker.claim())
    assert client.uplink.cancel([task]) == [1]
    assert worker.claim() == []


def test_sent_twice(rig: Rig) -> None:
    """The second finds no task; what the first wrote into the inbox tells the client what it was."""
    client = rig.client()
    ids = client.push(3)
    client.uplink.cancel(ids)
    [packets] = client.up_channel.sent[-1:]
    before = rig.dump()
    assert rig.send_again(packets) == [[[-1, -1, -1]]]
    assert rig.dump() == before
    assert client.drain() == [(task, b"C") for task in ids]
    before = rig.dump()
    assert rig.send_again(packets) == [[[-1, -1, -1]]]
    assert rig.dump() == before


def test_twice_in_one_batch(rig: Rig) -> None:
    """An id that stands twice in one call is cancelled, and told, once."""
    client = rig.client()
    [task] = client.push()
    assert client.uplink.cancel([task, task]) == [1, -1]
    assert client.drain() == [(task, b"C")]


def test_what_another_client_is_told_now(rig: Rig) -> None:
    """Is that one's to cancel: who has given it away gets no such task, and its outcome tells it why."""
    client, other = rig.client(), rig.client("c2")
    queued, running = client.push(2)
    worker = rig.worker()
    [claim] = worker.claim()
    assert other.uplink.attach([queued, running]) == [True, True]
    before = rig.dump()
    assert client.uplink.cancel([queued, running]) == [-1, -1]
    assert rig.dump() == before
    left = {queued, running} - {claim.task_id}
    assert other.uplink.cancel([claim.task_id, *left]) == [0, 1]
    worker.finish([claim])
    assert {task: outcome[:1] for task, outcome in other.drain()} == {claim.task_id: b"F", left.pop(): b"C"}
    assert {outcome for _, outcome in client.drain()} == {b"M"}


def test_its_blob_goes_with_it(rig: Rig) -> None:
    """A large payload ends with its task."""
    client = rig.client()
    [task] = client.send([task._replace(payload=b"large", blob_id="b1") for task in client.tasks(1)])
    assert rig.dump()["blob:b1"] == {"0": "large"}
    client.uplink.cancel([task])
    assert "blob:b1" not in rig.dump()


def test_of_a_dead_client(rig: Rig) -> None:
    """Nobody is told, and nothing is left."""
    client = rig.client()
    ids = client.push(2)
    rig.redis.delete(rig.keys.client("c1"))
    assert client.uplink.cancel(ids) == [1, 1]
    assert rig.dump().keys() == {"network", "client_ids"}


def test_a_full_batch(rig: Rig) -> None:
    """As many as a client cancels at once."""
    client = rig.client()
    ids = client.push(500)
    assert client.uplink.cancel(ids) == [1] * 500
    assert [task for task, _ in client.drain()] == ids
    assert rig.queue() == []


def test_state(rig: Rig) -> None:
    """What `Future.running` asks: queued, running, and nothing once it has ended."""
    client, worker = rig.client(), rig.worker()
    [task] = client.push()
    assert client.uplink.state(task) == "queued"
    claims = worker.claim()
    assert client.uplink.state(task) == "running"
    worker.finish(claims)
    assert client.uplink.state(task) == ""
    assert client.uplink.n_workers() == 1
