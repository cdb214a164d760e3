"""Payloads too large for one record: in chunks, beside the scripts, and never left behind."""

from __future__ import annotations

import random

import pytest

from rush_executor._ledger import blobs
from rush_executor._ledger.blobs import LARGE_PAYLOAD, delete_command, read_blob, write_blob
from tests.integration.rig import LEASE_MS, Rig

_HOUR_MS = 3_600_000


@pytest.mark.parametrize("size", [1, 9, 10, 11, 20, 105])
def test_chunks(rig: Rig, size: int) -> None:
    """What is written is read, whatever the chunks; until it is linked it has a TTL."""
    channel, payload = rig.channel(), random.randbytes(size)
    write_blob(channel, rig.keys, "b1", payload, chunk_size=10)
    n_chunks = -(-size // 10)
    assert rig.dump()["blob:b1"].keys() == {str(number) for number in range(n_chunks)}
    assert 0 < rig.ttl_ms(rig.keys.blob("b1")) <= _HOUR_MS
    assert read_blob(channel, rig.keys, "b1") == payload
    write_blob(channel, rig.keys, "b1", payload, chunk_size=10)
    assert read_blob(channel, rig.keys, "b1") == payload, "twice does no harm"
    channel.call(delete_command(rig.keys, "b1"))
    assert rig.dump() == {}


def test_one_that_is_gone(rig: Rig) -> None:
    """A blob that has expired, or lost a chunk, is not there: half a payload is none."""
    channel = rig.channel()
    with pytest.raises(KeyError):
        read_blob(channel, rig.keys, "b1")
    write_blob(channel, rig.keys, "b1", b"0123456789", chunk_size=3)
    rig.redis.hdel(rig.keys.blob("b1"), "1")
    with pytest.raises(KeyError):
        read_blob(channel, rig.keys, "b1")
    channel.call(delete_command(rig.keys, "b1"))


def test_a_call(rig: Rig) -> None:
    """From push to finish: linked to its task it has no TTL, and it ends with the task."""
    client, worker = rig.client(), rig.worker()
    payload = random.randbytes(LARGE_PAYLOAD)
    client.send(client.tasks(1, payload=payload, blob_id="b1"))
    assert rig.ttl_ms(rig.keys.blob("b1")) == -1
    assert rig.dump()["task:c1-1"]["payload"] == ""
    [claim] = worker.claim()
    assert (claim.payload, claim.blob_id) == (b"", "b1")
    assert worker.ledger.read_blob("b1") == payload
    worker.ledger.release([claim])
    assert rig.ttl_ms(rig.keys.blob("b1")) == -1
    worker.finish(worker.claim())
    assert "blob:b1" not in rig.dump()
    client.drain()


@pytest.mark.parametrize("is_failure", [False, True])
def test_an_outcome(rig: Rig, is_failure: bool) -> None:
    """From finish to delivery: it lives as long as the inbox that names it, and is deleted once it was resolved."""
    client, worker = rig.client(), rig.worker()
    client.push(2)
    body = random.randbytes(LARGE_PAYLOAD)
    assert worker.finish(worker.claim(2), body, is_failure=is_failure) == []
    outcomes = client.receive()
    names = [outcome[1:].decode() for _, outcome in outcomes]
    assert {outcome[:1] for _, outcome in outcomes} == {b"e" if is_failure else b"f"}
    assert len(set(names)) == 2
    for name in names:
        assert client.downlink.read_blob(name) == body
        assert LEASE_MS / 2 < rig.ttl_ms(rig.keys.blob(name)) <= LEASE_MS, "as long as the client's lease"
    client.downlink.receive(client.position, done_blobs=names, wait=False)
    assert not [key for key in rig.dump() if key.startswith("blob")]


def test_what_is_just_not_large(rig: Rig) -> None:
    """Below the threshold the outcome itself is in the inbox."""
    client, worker = rig.client(), rig.worker()
    client.push(1)
    worker.finish(worker.claim(), b"x" * (LARGE_PAYLOAD - 1))
    [(_, outcome)] = client.receive()
    assert outcome == b"F" + b"x" * (LARGE_PAYLOAD - 1)
    client.receive()


def test_an_outcome_in_chunks(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outcome of many chunks, whole."""
    monkeypatch.setattr(blobs.write_blob, "__kwdefaults__", {"chunk_size": 100_000})
    client, worker = rig.client(), rig.worker()
    client.push(1)
    body = random.randbytes(1_050_001)
    worker.finish(worker.claim(), body)
    [(_, outcome)] = client.receive()
    name = outcome[1:].decode()
    assert len(rig.dump()[f"blob:{name}"]) == 11
    assert client.downlink.read_blob(name) == body
    client.downlink.receive(client.position, done_blobs=[name], wait=False)


def test_a_refused_outcome(rig: Rig) -> None:
    """Its blob is left to its TTL: if the refusal is that of a second sending, the client is about to read it."""
    client, worker = rig.client(), rig.worker()
    client.push(1)
    claims = worker.claim()
    worker.finish(claims, b"x" * LARGE_PAYLOAD)
    [packets] = worker.channel.sent[-1:]
    [(_, outcome)] = client.receive()
    name = outcome[1:].decode()
    rig.send_again(packets)
    assert client.downlink.read_blob(name) == b"x" * LARGE_PAYLOAD
    client.downlink.receive(client.position, done_blobs=[name], wait=False)
    assert worker.finish(claims, b"x" * LARGE_PAYLOAD) == ["c1-1"]
    [key] = [key for key in rig.dump() if key.startswith("blob")]
    assert 0 < rig.ttl_ms(rig.keys.prefix + key) <= _HOUR_MS
    rig.redis.delete(rig.keys.prefix + key)


def test_an_outcome_for_nobody(rig: Rig) -> None:
    """Where the client is gone, its blob is deleted at once."""
    client, worker = rig.client(), rig.worker()
    client.push(2)
    claims = worker.claim(2)
    client.leave()
    rig.forget(client)
    assert worker.finish(claims, b"x" * LARGE_PAYLOAD) == []
    assert not [key for key in rig.dump() if key.startswith("blob")]


def test_an_outcome_that_the_client_did_not_read(rig: Rig) -> None:
    """A client that leaves takes along what lies in its inbox, and what that refers to."""
    client, worker = rig.client(), rig.worker()
    client.push(350)
    claims = worker.claim(350)
    worker.finish(claims[:300])
    worker.finish(claims[300:302], b"x" * LARGE_PAYLOAD)
    worker.finish(claims[302:])
    assert len([key for key in rig.dump() if key.startswith("blob")]) == 2
    client.leave()
    rig.forget(client)
    assert not [key for key in rig.dump() if "blob" in key or "inbox" in key]


def test_a_push_that_was_broken_off_and_starts_again(rig: Rig) -> None:
    """Ctrl-C in a push: the dispatcher does the whole of it again, blobs first. They must not be left with a TTL."""
    client, worker = rig.client(), rig.worker()
    tasks = client.tasks(1, payload=b"x" * LARGE_PAYLOAD, blob_id="b1")
    tasks += client.tasks(1, payload=b"y" * LARGE_PAYLOAD, blob_id="b2")
    client.send(tasks)
    worker.finish(worker.claim(1))
    client.uplink.push(client.n_batches, tasks)
    dump = rig.dump()
    assert "blob:b1" not in dump, "its task has ended"
    assert "blob:b2" in dump
    assert rig.ttl_ms(rig.keys.blob("b2")) == -1, "its task waits, however long"
    claims = worker.claim()
    assert worker.ledger.read_blob("b2") == b"y" * LARGE_PAYLOAD
    worker.finish(claims)
    client.drain()
