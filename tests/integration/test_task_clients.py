"""The client that a worker's task is, when it submits tasks: open_network.lua, lose_worker.lua and retire_client.lua.

`c1` is the client whose task the worker runs, `t1` the one that the task is.
"""

from __future__ import annotations

import pytest

from rush_executor._ledger.blobs import LARGE_PAYLOAD
from rush_executor._ledger.connection import NetworkGone, WorkerGone
from rush_executor._protocol.records import KILLED_TAG
from tests.integration.rig import EPOCH, LEASE_MS, Client, Rig, Worker


def task_client(rig: Rig, worker: Worker, client_id: str = "t1", epoch: str = EPOCH) -> Client:
    client = rig.client(client_id, is_open=False)
    client.uplink.open_network(epoch, b"", worker_id=worker.id)
    return client


def test_it_joins(rig: Rig) -> None:
    """As any client, and its worker's record names it; twice has the effect of once."""
    rig.client()
    worker = rig.worker()
    before = rig.dump()
    client = task_client(rig, worker)
    after = rig.dump()
    assert after == {
        **before,
        "client_ids": {"c1", "t1"},
        "client:t1": {"lease": str(LEASE_MS), "pushed": "0"},
        "worker:w1": {**before["worker:w1"], "client": "t1"},
    }
    rig.send_again(client.up_channel.sent[0])
    assert rig.dump() == after
    client.leave()
    assert rig.dump() == {**before, "worker:w1": after["worker:w1"]}


def test_it_is_told_what_became_of_its_tasks(rig: Rig) -> None:
    """Its tasks are tasks like any others."""
    rig.client()
    one, other = rig.worker(), rig.worker("w2")
    client = task_client(rig, one)
    [task] = client.push()
    other.finish(other.claim())
    assert client.drain() == [(task, b"Fresult")]
    client.leave()


@pytest.mark.parametrize("why", ["another network", "no network", "nobody's network", "lost worker"])
def test_who_must_not_join(rig: Rig, why: str) -> None:
    """It would be a client that nobody takes away, of a network that nobody needs; nothing is written."""
    parent = rig.client()
    worker = rig.worker()
    epoch = EPOCH
    if why == "another network":
        epoch = "epoch-0"
    elif why == "no network":
        rig.forget(parent)
        parent.leave()
    elif why == "nobody's network":
        rig.redis.delete(rig.keys.client("c1"))
    else:
        rig.agent().lose(worker)
    before = rig.dump()
    with pytest.raises(WorkerGone if why == "lost worker" else NetworkGone):
        task_client(rig, worker, epoch=epoch)
    if why == "nobody's network":
        # Who is gone is taken off the list on the way, as by any other who comes.
        assert before.pop("client_ids") == {"c1"}
        rig.forget(parent)
    assert rig.dump() == before
    rig.client("c9").leave()


def test_it_goes_with_its_worker(rig: Rig) -> None:
    """In one step: who claims what the lost worker held finds no client of it; what that had queued is dropped."""
    parent, worker, other = rig.client(), rig.worker(), rig.worker("w2")
    [task] = parent.push()
    worker.claim()
    client = task_client(rig, worker)
    queued, running, left = client.push(3)
    [claim] = other.claim()
    assert claim.task_id == queued
    other.finish([claim], b"x" * LARGE_PAYLOAD)
    far = rig.worker("w3", agent_id="a2")
    [claim] = far.claim()
    assert claim.task_id == running
    assert rig.agent().lose(worker, guilty=task) == (1, 0)
    assert (rig.agent("a2").ledger.wanted_ends(), rig.agent().ledger.wanted_ends()) == ([running], [])
    assert 0 < rig.ttl_ms(rig.keys.kills("a2")) <= 60_000
    assert rig.agent("a2").lose(far, guilty=running, tag=KILLED_TAG) == (0, 0)
    packets = rig.agent().channel.sent[-2]
    dump = rig.dump()
    assert dump["client_ids"] == {"c1"}
    assert not {name for name in dump if name.startswith(("client:t1", "inbox:t1", "functions:t1", "blob:"))}
    assert rig.queue() == [task, left]
    rig.send_again(packets)
    assert rig.dump() == dump
    # Its late pushes are refused, and its late coming as well.
    with pytest.raises(NetworkGone):
        client.push()
    with pytest.raises(WorkerGone):
        client.uplink.open_network(EPOCH, b"", worker_id=worker.id)
    claims = other.claim(9)
    assert [claim.task_id for claim in claims] == [task]
    other.finish(claims)
    assert {name for name in rig.dump() if name.startswith("task:")} == set()


def test_the_last_client_takes_the_network_along(rig: Rig) -> None:
    """Also where that is a task, and its worker is lost: the clients have left, and nobody else would delete it."""
    parent, worker = rig.client(), rig.worker()
    parent.push(3)
    worker.claim()
    client = task_client(rig, worker)
    client.push(2)
    rig.forget(parent)
    parent.leave()
    assert {"network", "queued_tasks", "client:t1"} <= rig.dump().keys()
    rig.agent().lose(worker)
    assert rig.dump().keys() <= {"agent_ids", "agent_workers:a1"}
    rig.send_again(rig.agent().channel.sent[-2])


def test_one_at_a_time(rig: Rig) -> None:
    """A task that did not leave is forgotten when the next one of its worker joins."""
    rig.client()
    worker = rig.worker()
    task_client(rig, worker).push(1)
    second = task_client(rig, worker, "t2")
    dump = rig.dump()
    assert (dump["client_ids"], dump["worker:w1"]["client"]) == ({"c1", "t2"}, "t2")
    assert "client:t1" not in dump
    second.leave()
    assert rig.worker("w2").claim() == []


def test_the_agent_is_lost_with_both(rig: Rig) -> None:
    """It is asked to end what its other worker runs, and is gone: the request goes with it."""
    parent, worker, other = rig.client(), rig.worker(), rig.worker("w2")
    [task] = parent.push(max_retries=0)
    worker.claim()
    task_client(rig, worker).push()
    other.claim()
    rig.reaper().bury("a1")
    rig.forget(rig.agent())
    assert [told for told, _ in parent.drain()] == [task]
    # If that one was the first to be put right, its task was queued again: it is dropped when it is met.
    assert rig.worker("w3", agent_id="a2").claim() == []
    rig.agent("a2").leave()
    rig.forget(rig.agent("a2"))
    assert rig.dump().keys() <= {"network", "client_ids", "client:c1"}
