"""trim_inbox.lua: results are read by range, and trimmed only after their Futures were resolved."""

from __future__ import annotations

import pytest

from rush_executor._ledger.connection import NetworkGone
from tests.integration.rig import LEASE_MS, Rig


def finish(rig: Rig, n: int) -> list[str]:
    """N tasks from push to finish."""
    worker = rig.worker() if not rig.agent().workers else rig.agent().workers[0]
    ids = rig.client().push(n)
    while claims := worker.claim(n):
        worker.finish(claims)
    return ids


def test_reading_takes_nothing(rig: Rig) -> None:
    """No destructive read of what is not delivered: the same again until the client says that it has resolved it."""
    client = rig.client()
    ids = finish(rig, 3)
    for _ in range(3):
        raw = client.downlink.receive(0, wait=False)
        assert [entry.decode() for entry in raw[::2]] == ids
    before = rig.dump()
    assert client.downlink.receive(2, wait=False)[::2] == [ids[2].encode()]
    assert rig.inbox() == [(ids[2], "Fresult")]
    assert rig.dump()["client:c1"] == {**before["client:c1"], "trimmed": "2"}
    assert client.downlink.receive(3, wait=False) == []
    assert "inbox:c1" not in rig.dump()


def test_sent_twice(rig: Rig) -> None:
    """The position is absolute: what came since is not trimmed by a trim that comes again, nor by an older one."""
    client = rig.client()
    finish(rig, 2)
    client.receive()
    client.receive()
    older = client.down_channel.sent[-1]
    ids = finish(rig, 2)
    before = rig.dump()
    assert rig.send_again(older)[0][-2] == 0
    assert rig.dump() == before
    assert [task for task, _ in client.receive()] == ids
    client.receive()
    newer = client.down_channel.sent[-1]
    ids = finish(rig, 3)
    before = rig.dump()
    rig.send_again(older, newer, older)
    assert rig.dump() == before
    assert [task for task, _ in client.drain()] == ids


def test_more_than_one_reading(rig: Rig) -> None:
    """A full inbox is read in parts, in order, each once."""
    client = rig.client()
    ids = finish(rig, 500) + finish(rig, 500) + finish(rig, 201)
    sizes = []
    read: list[str] = []
    while pairs := client.receive():
        sizes.append(len(pairs))
        read += [task for task, _ in pairs]
    assert sizes == [500, 500, 201]
    assert read == ids


def test_the_lease_is_renewed(rig: Rig) -> None:
    """A client that reads lives on, and with it all that is kept for it; not at every read, but in good time."""
    client = rig.client()
    client.send(client.tasks(1), [("digest", b"body")])
    worker = rig.worker()
    worker.finish(worker.claim())
    kept = [rig.keys.client("c1"), rig.keys.inbox("c1"), rig.keys.client_bell("c1"), rig.keys.functions("c1")]
    for key in kept:
        rig.redis.pexpire(key, LEASE_MS * 3 // 4)
    client.downlink.receive(0, wait=False)
    assert all(0 < rig.ttl_ms(key) <= LEASE_MS * 3 // 4 for key in kept)
    for key in kept:
        rig.redis.pexpire(key, LEASE_MS // 4)
    client.downlink.receive(0, wait=False)
    assert all(rig.ttl_ms(key) > LEASE_MS * 3 // 4 for key in kept)


def test_loser(rig: Rig) -> None:
    """A client whose record is gone is told at its next look: its Futures must not wait."""
    client = rig.client()
    ids = finish(rig, 1)
    rig.redis.delete(rig.keys.client("c1"))
    with pytest.raises(NetworkGone):
        client.downlink.receive(0, wait=False)
    assert rig.inbox() == [(ids[0], "Fresult")]


def test_the_bell_wakes_the_client(rig: Rig) -> None:
    """An outcome, and `ring`, end the wait; the token is used up."""
    client = rig.client()
    finish(rig, 1)
    assert len(client.receive(wait=True)) == 1
    assert "client_bell:c1" not in rig.dump()
    client.uplink.ring()
    assert rig.ttl_ms(rig.keys.client_bell("c1")) > 0, "a token for a client that has just left must not lie for ever"
    assert client.receive(wait=True) == []
    assert "client_bell:c1" not in rig.dump()


def test_a_lost_token_costs_no_more_than_the_slow_timer(rig: Rig) -> None:
    """An outcome that no bell told is found all the same."""
    client = rig.client()
    ids = finish(rig, 2)
    rig.redis.delete(rig.keys.client_bell("c1"))
    assert [task for task, _ in client.receive(wait=True)] == ids
