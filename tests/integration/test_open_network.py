"""open_network.lua, retire_client.lua and break_network.lua: who is in, and what is left when they are out."""

from __future__ import annotations

import pytest

from rush_executor._ledger.agent import break_network
from rush_executor._ledger.client import OpenedNetwork
from rush_executor._ledger.connection import NetworkGone
from rush_executor._protocol.ids import new_id
from tests.integration.rig import EPOCH, LEASE_MS, Rig

# A network with one client that has done nothing yet.
FRESH = {
    "network": {"epoch": EPOCH, "creator": "c1", "initializer": "init"},
    "client_ids": {"c1"},
    "client:c1": {"lease": str(LEASE_MS), "pushed": "0"},
}


# --------------------------------------------------------------------------------------------- clients that come


def test_create(rig: Rig) -> None:
    """The first client makes the network: its epoch, its initializer."""
    client = rig.client(is_open=False)
    assert client.open(initializer=b"init") == OpenedNetwork(EPOCH, "c1", b"", b"init")
    assert rig.dump() == FRESH
    assert 0 < rig.ttl_ms(rig.keys.client("c1")) <= LEASE_MS
    network = rig.agent().ledger.network()
    assert network is not None
    assert (network.epoch, network.creator, network.initializer, network.is_broken) == (EPOCH, "c1", b"init", False)
    client.leave()


def test_join(rig: Rig) -> None:
    """A later client finds the network as it is; its own epoch and initializer are not used."""
    rig.client("c1").push(2)
    before = rig.dump()
    second = rig.client("c2", is_open=False)
    assert second.open(epoch="epoch-2", initializer=b"other") == OpenedNetwork(EPOCH, "c1", b"", b"")
    assert rig.dump() == {
        **before,
        "client_ids": {"c1", "c2"},
        "client:c2": {"lease": str(LEASE_MS), "pushed": "0"},
    }
    second.leave()


def test_another_client_puts_an_initializer_back(rig: Rig) -> None:
    """After the server has lost its data. The network is its first creator's: so are the globals that it sets."""
    client = rig.client("c2")
    rig.redis.flushall()
    opened = client.uplink.open_network("epoch-2", b"init", "c1")
    assert opened == OpenedNetwork("epoch-2", "c1", b"", b"init")
    assert client.uplink.open_network("epoch-3", b"", "c2") == opened


def test_open_sent_twice(rig: Rig) -> None:
    """The second finds the network of the first and answers the same, even after the first tasks."""
    client = rig.client()
    packets = client.up_channel.sent[0]
    before = rig.dump()
    assert rig.send_again(packets, packets) == [[[EPOCH.encode(), b"c1", b"", b"", b""]]] * 2
    assert rig.dump() == before
    client.push(2)
    before = rig.dump()
    rig.send_again(packets)
    assert rig.dump() == before


def test_a_leftover_gets_a_new_epoch(rig: Rig) -> None:
    """A network whose clients are all gone is emptied: queue, records and large payloads; no worker of it goes on."""
    dead = rig.client("dead")
    dead.push(3)
    dead.send([task._replace(payload=b"large", blob_id="b1") for task in dead.tasks(1)])
    dead.send(dead.tasks(1), [("digest", b"body")])
    worker = rig.worker()
    worker.finish(worker.claim())
    rig.agent().leave()
    rig.redis.delete(rig.keys.client("dead"))
    rig.forget(dead)
    client = rig.client("c1", is_open=False)
    assert client.open(epoch="epoch-2", initializer=b"init").epoch == "epoch-2"
    dump = rig.dump()
    assert dump == {**FRESH, "network": {"epoch": "epoch-2", "creator": "c1", "initializer": "init"}}
    client.leave()


def test_who_waits_in_a_leftover(rig: Rig) -> None:
    """Is told of its end, and gets nothing of the network that comes in its place."""
    dead, worker = rig.client("dead"), rig.worker()
    worker.rest()
    rig.redis.delete(rig.keys.client("dead"))
    rig.forget(dead)
    client = rig.client("c1", is_open=False)
    client.open(epoch="epoch-2")
    dump = rig.dump()
    assert "idle_workers" not in dump
    assert dump["worker_bell:w1"] == ["1"]
    assert client.push() == rig.queue()
    with pytest.raises(NetworkGone):
        worker.ledger.exchange([], limit=1, wait=True)
    client.leave()


def test_a_large_leftover(rig: Rig) -> None:
    """A network that was left with a long queue opens."""
    dead = rig.client("dead")
    for _ in range(20):
        dead.push(500)
    rig.redis.delete(rig.keys.client("dead"))
    rig.forget(dead)
    client = rig.client("c1", is_open=False)
    client.open(initializer=b"init")
    assert rig.dump() == FRESH
    client.leave()


def test_stale_clients_are_cleared(rig: Rig) -> None:
    """Who opens the network takes a client whose lease has ended off the list, and what was kept for it."""
    dead = rig.client("dead")
    alive = rig.client("alive")
    dead.send(dead.tasks(1), [("digest", b"body")])
    worker = rig.worker()
    worker.finish(worker.claim())
    rig.redis.delete(rig.keys.client("dead"))
    rig.forget(dead)
    rig.client("c1")
    dump = rig.dump()
    assert dump["client_ids"] == {"alive", "c1"}
    assert not [key for key in dump if "dead" in key]
    assert alive.push()


# -------------------------------------------------------------------------------------------- clients that leave


def test_retire_of_one(rig: Rig) -> None:
    """What was kept for the client is gone; the network, and all that is others', stays."""
    client = rig.client("c1")
    other = rig.client("c2")
    other.push(2)
    before = rig.dump()
    client.send(client.tasks(1, priority=1), [("digest", b"body")])
    worker = rig.worker()
    worker.finish(worker.claim())
    rig.agent().leave()
    assert {"inbox:c1", "functions:c1"} <= rig.dump().keys()
    client.leave()
    rig.forget(client)
    after = rig.dump()
    assert after == {
        **{key: value for key, value in before.items() if key != "client:c1"},
        "client_ids": {"c2"},
        "network": {**before["network"], "sequence": "3"},
    }


def test_the_last_one_takes_the_network_with_it(rig: Rig) -> None:
    """Queued tasks and large payloads of a network without clients are of no interest; who waits is told of its end."""
    client = rig.client()
    client.push(3)
    client.send([task._replace(payload=b"large", blob_id="b1") for task in client.tasks(1)])
    worker = rig.worker()
    rig.redis.zadd(rig.keys.idle_workers, {"w1": 1e12})
    client.leave()
    rig.forget(client)
    assert rig.dump().keys() == {"worker_ids", "worker:w1", "worker_bell:w1", "agent_workers:a1", "agent_ids"}
    with pytest.raises(NetworkGone):
        worker.ledger.exchange([], limit=1, wait=True)


def test_retire_sent_twice(rig: Rig) -> None:
    """Deleting what is gone changes nothing, even if somebody has made a new network of this name meanwhile."""
    client = rig.client("c1")
    client.push(2)
    client.leave()
    rig.forget(client)
    [packets] = client.up_channel.sent[-1:]
    assert rig.dump() == {}
    assert rig.send_again(packets) == [[0]]
    assert rig.dump() == {}
    other = rig.client("c2")
    other.push(2)
    before = rig.dump()
    assert rig.send_again(packets) == [[0]]
    assert rig.dump() == before


def test_retire_with_a_long_queue(rig: Rig) -> None:
    """The queue is emptied in several calls, so that no other user of the server waits long."""
    client = rig.client()
    for _ in range(9):
        client.push(500)
    client.leave()
    rig.forget(client)
    assert len([packets for packets in client.up_channel.sent if b"2000" in packets[0]]) >= 3
    assert rig.dump() == {}


def test_retire_when_the_others_are_dead(rig: Rig) -> None:
    """The last *living* client takes the network with it: a dead one's name on the list holds nothing."""
    dead, client = rig.client("dead"), rig.client("c1")
    dead.send(dead.tasks(1), [("digest", b"body")])
    client.push(2)
    rig.redis.delete(rig.keys.client("dead"))
    rig.forget(dead, client)
    client.leave()
    assert rig.dump() == {}


def test_a_task_that_runs_when_the_last_client_leaves(rig: Rig) -> None:
    """Its end leaves nothing."""
    client, worker = rig.client(), rig.worker()
    client.push(1)
    claims = worker.claim()
    client.leave()
    rig.forget(client)
    assert worker.finish(claims) == []
    rig.leave()
    assert rig.dump() == {}


# ---------------------------------------------------------------------------------------------- a broken network


def test_break(rig: Rig) -> None:
    """Every client is told, once; who comes later is told on joining."""
    one, two = rig.client("c1"), rig.client("c2")
    before = rig.dump()
    rig.agent().ledger.break_network(EPOCH, "it fails")
    after = rig.dump()
    assert after["network"] == {**before["network"], "broken": "Bit fails"}
    for client in (one, two):
        assert client.drain() == [("", b"Bit fails")]
    network = rig.agent().ledger.network()
    assert network is not None
    assert network.is_broken
    third = rig.client("c3", is_open=False)
    assert third.open().broken == b"Bit fails"
    assert third.drain() == []
    third.leave()


def test_break_sent_twice(rig: Rig) -> None:
    """Only the first finds a network that is not broken; another worker's text does not replace the first."""
    client, agent = rig.client(), rig.agent()
    agent.ledger.break_network(EPOCH, "it fails")
    [packets] = agent.channel.sent[-1:]
    before = rig.dump()
    assert rig.send_again(packets) == [[0]]
    break_network(rig.channel(), rig.keys, EPOCH, "another text")
    assert rig.dump() == before
    client.drain()
    assert rig.send_again(packets) == [[0]]
    assert client.drain() == []


@pytest.mark.parametrize("epoch", ["epoch-0", ""])
def test_break_loser(rig: Rig, epoch: str) -> None:
    """A worker of an older creation of the network does not break the new one; nor one of a network that is gone."""
    rig.client()
    before = rig.dump()
    rig.agent().ledger.break_network(epoch, "it fails")
    assert rig.dump() == before
    rig.leave()
    rig.agent().ledger.break_network(EPOCH, "it fails")
    assert rig.dump() == {}


def test_outcomes_beside_a_break(rig: Rig) -> None:
    """The notice takes a place in the inbox like an outcome: trimming counts it."""
    client, worker = rig.client(), rig.worker()
    ids = client.push(3)
    claims = worker.claim(3)
    worker.finish(claims[:1])
    rig.agent().ledger.break_network(EPOCH, "")
    worker.finish(claims[1:])
    read = [client.receive()]
    assert [task for task, _ in read[0]] == [ids[0], "", *ids[1:]]
    assert client.receive() == []
    assert rig.inbox() == []


# --------------------------------------------------------------------------------------------------- the agent


def test_agent_comes_and_goes(rig: Rig) -> None:
    """A network that is not there yet is None; an agent that leaves leaves nothing."""
    agent = rig.agent()
    assert agent.ledger.network() is None
    agent.ledger.beat(60_000)
    agent.ledger.beat(60_000)
    dump = rig.dump()
    assert len(dump.pop("heartbeat:a1")) == len(new_id())
    assert dump == {"agent_ids": {"a1"}}
    worker = rig.worker()
    record = rig.dump()["worker:w1"]
    assert float(record.pop("joined_at")) > 0
    assert record == {"agent": "a1", "host": "host", "pid": "4711"}
    rig.agent().lose(worker)
    agent.ledger.leave()
    assert rig.dump() == {}
