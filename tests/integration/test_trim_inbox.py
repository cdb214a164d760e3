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
        raw, position = client.downlink.receive(wait=False)
        assert [entry.decode() for entry in raw[::2]] == ids
    last = finish(rig, 1)
    for trim in (False, True):
        raw, end = client.downlink.receive(position, trim=trim, wait=False)
        assert raw == [last[0].encode(), b"Fresult"]
        assert rig.inbox() == [(task, "Fresult") for task in (last if trim else ids + last)]
    assert client.downlink.receive(end, wait=False) == ([], end)
    assert rig.inbox() == []


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
    ids = [task for n in [3] * 150 + [500] * 2 for task in finish(rig, n)]
    sizes = []
    read: list[str] = []
    while pairs := client.receive():
        sizes.append(len(pairs))
        read += [task for task, _ in pairs]
    assert sizes == [300, 1150]
    assert read == ids


def test_the_lease_is_renewed(rig: Rig) -> None:
    """A client that reads lives on, and with it all that is kept for it; not at every read, but in good time."""
    client = rig.client()
    client.send(client.tasks(1), [("digest", b"body")])
    worker = rig.worker()
    worker.finish(worker.claim())
    kept = [rig.keys.client("c1"), rig.keys.inbox("c1"), rig.keys.functions("c1")]
    for key in kept:
        rig.redis.pexpire(key, LEASE_MS * 3 // 4)
    client.downlink.receive(wait=False)
    assert all(0 < rig.ttl_ms(key) <= LEASE_MS * 3 // 4 for key in kept)
    for key in kept:
        rig.redis.pexpire(key, LEASE_MS // 4)
    client.downlink.receive(wait=False)
    assert all(rig.ttl_ms(key) > LEASE_MS * 3 // 4 for key in kept)


def test_loser(rig: Rig) -> None:
    """A client whose record is gone is told at its next look: its Futures must not wait."""
    client = rig.client()
    ids = finish(rig, 1)
    rig.redis.delete(rig.keys.client("c1"))
    with pytest.raises(NetworkGone):
        client.downlink.receive(wait=False)
    assert rig.inbox() == [(ids[0], "Fresult")]


def test_an_older_record(rig: Rig) -> None:
    """The server does not know a batch that it had taken: it was put back, and newer tasks are gone."""
    client = rig.client()
    client.push()
    client.downlink.receive(n_taken=1, wait=False)
    with pytest.raises(NetworkGone, match="older than it was"):
        client.downlink.receive(n_taken=2, wait=False)


def test_an_inbox_that_was_deleted(rig: Rig) -> None:
    """By somebody else: it gets its TTL back, and what comes later is read."""
    client = rig.client()
    finish(rig, 1)
    client.receive()
    rig.redis.delete(rig.keys.inbox("c1"))
    ids = finish(rig, 1)
    assert [task for task, _ in client.receive()] == ids
    assert 0 < rig.ttl_ms(rig.keys.inbox("c1")) <= LEASE_MS


def test_what_wakes_the_client(rig: Rig) -> None:
    """An outcome, and `ring`, end the wait."""
    client = rig.client()
    ids = finish(rig, 1)
    assert [task for task, _ in client.receive(wait=True)] == ids
    client.uplink.ring()
    assert client.receive(wait=True) == [("", b"")]
    assert client.receive() == []
    client.uplink.ring()
    rig.leave()
    assert rig.dump() == {}, "what rings for a client that has just left must not lie for ever"
