"""finish_tasks.lua: from running to finished or failed."""

from __future__ import annotations

import pytest

from rush_executor._ledger.worker import Outcome
from rush_executor._protocol.records import Claim
from tests.integration.rig import LEASE_MS, Rig


@pytest.mark.parametrize(("is_failure", "tag"), [(False, "F"), (True, "E")])
def test_row(rig: Rig, is_failure: bool, tag: str) -> None:
    """Running finish -> finished, fail -> failed: the record is gone, the inbox has the outcome."""
    client, worker = rig.client(), rig.worker()
    [task] = client.push()
    before = rig.dump()
    claims = worker.claim()
    assert worker.finish(claims, b"body", is_failure=is_failure) == []
    del before[f"task:{task}"], before["queued_tasks"]
    if is_failure:
        before["network"]["failed"] = "1"
    assert rig.dump() == {**before, "inbox:c1": [task, f"{tag}body"]}
    assert 0 < rig.ttl_ms(rig.keys.inbox("c1")) <= LEASE_MS
    assert client.drain() == [(task, f"{tag}body".encode())]


def test_nothing_is_left_of_a_delivered_task(rig: Rig) -> None:
    """Once delivered and trimmed, the network is what it was before the task, but for its counters and the bell."""
    client, worker = rig.client(), rig.worker()
    before = rig.dump()
    client.push(20)
    worker.finish(worker.claim(20))
    client.drain()
    after = rig.dump()
    assert after.pop("bell") == ["1"]
    assert after == {
        **before,
        "network": {**before["network"], "sequence": "20"},
        "client:c1": {**before["client:c1"], "pushed": "1"},
    }


def test_a_batch_for_several_clients(rig: Rig) -> None:
    """Each client gets its own outcomes, in the order in which they were handed in."""
    one, two, worker = rig.client("c1"), rig.client("c2"), rig.worker()
    a, b, c, d = one.push(1) + two.push(1) + one.push(1) + two.push(1)
    outcomes = [Outcome(claim, claim.task_id == c, claim.task_id.encode()) for claim in worker.claim(4)]
    assert worker.ledger.finish(outcomes) == []
    assert rig.inbox("c1") == [(a, f"F{a}"), (c, f"E{c}")]
    assert rig.inbox("c2") == [(b, f"F{b}"), (d, f"F{d}")]
    assert "running_tasks:w1" not in rig.dump()


def test_one_notification_for_a_batch(rig: Rig) -> None:
    """Results for one inbox go out in one XADD: who watches the inbox is told once, not once per task."""
    client, worker = rig.client(), rig.worker()
    client.push(50)
    claims = worker.claim(50)
    old = rig.redis.config_get("notify-keyspace-events")["notify-keyspace-events"]
    rig.redis.config_set("notify-keyspace-events", "Kt")
    try:
        with rig.redis.pubsub() as pubsub:
            pubsub.psubscribe(f"__keyspace@0__:{rig.keys.inbox('c1')}".replace("{", "?").replace("}", "?"))
            assert pubsub.get_message(timeout=10)
            worker.finish(claims)
            rig.redis.publish("end", "1")
            messages = []
            while (message := pubsub.get_message(timeout=0.2)) is not None:
                messages.append(message["data"])
            assert messages == [b"xadd"]
    finally:
        rig.redis.config_set("notify-keyspace-events", old)


def test_an_entry_holds_no_more_than_is_read_at_once(rig: Rig) -> None:
    """A batch is one entry of the inbox, but for one of many outcomes, or of large ones."""
    client, worker = rig.client(), rig.worker()
    ids = client.push(500) + client.push(500) + client.push(100)
    claims: list[Claim] = worker.claim(1100)
    worker.finish(claims, b"x" * 10)
    sizes = [len(fields) for _, fields in rig.redis.xrange(rig.keys.inbox("c1"))]
    assert sizes == [501, 501, 98]
    assert [task for task, _ in client.drain()] == ids
    client.push(7)
    worker.finish(worker.claim(7), b"x" * 200_000)
    sizes = [len(fields) for _, fields in rig.redis.xrange(rig.keys.inbox("c1"))]
    assert sizes == [6, 1]
    assert len(client.drain()) == 7


def test_loser_another_attempt(rig: Rig) -> None:
    """The result of an attempt that is not the current one is refused, the id is told, nothing changes."""
    client, worker = rig.client(), rig.worker()
    [task] = client.push()
    [old] = worker.claim()
    worker.ledger.release([old])
    [new] = worker.claim()
    assert (old.attempt, new.attempt) == (1, 2)
    before = rig.dump()
    assert worker.finish([old]) == [task]
    assert rig.dump() == before
    assert worker.finish([new]) == []


def test_loser_taken_for_lost(rig: Rig) -> None:
    """A zombie's late result is refused, before and after somebody else has claimed, run and delivered the task."""
    client, zombie, worker = rig.client(), rig.worker("zombie"), rig.worker("w2", agent_id="a2")
    [task] = client.push()
    old = zombie.claim()
    rig.agent("a1").lose(zombie, guilty=task)
    assert zombie.finish(old, b"late") == [task]
    new = worker.claim()
    assert zombie.finish(old, b"late") == [task]
    assert worker.finish(new, b"good") == []
    assert zombie.finish(old, b"late") == [task]
    assert client.drain() == [(task, b"Fgood")]
    assert zombie.finish(old, b"late") == [task]
    assert client.drain() == []


def test_loser_holds_not_this_task(rig: Rig) -> None:
    """A worker cannot end what another one runs, even with the right attempt."""
    client, one, two = rig.client(), rig.worker("w1"), rig.worker("w2")
    [task] = client.push()
    claims = one.claim()
    before = rig.dump()
    assert two.finish(claims) == [task]
    assert two.finish([Claim("c1-999", 1, b"")]) == ["c1-999"]
    assert rig.dump() == before


def test_a_mixed_batch(rig: Rig) -> None:
    """What came too late does not keep the rest of its batch from being delivered."""
    client, worker = rig.client(), rig.worker()
    a, b, c = client.push(3)
    claims = worker.claim(3)
    worker.ledger.release([claims[1]])
    assert worker.finish(claims) == [b]
    assert [task for task, _ in client.drain()] == [a, c]
    assert rig.queue() == [b]


def test_sent_twice(rig: Rig) -> None:
    """The second sending is refused and changes nothing: not in the inbox, not read, nor after delivery."""
    client, worker = rig.client(), rig.worker()
    ids = client.push(3)
    worker.finish(worker.claim(3))
    [packets] = worker.channel.sent[-1:]
    refused = [[[task.encode() for task in ids]]]
    before = rig.dump()
    assert rig.send_again(packets) == refused
    assert rig.dump() == before
    assert len(client.receive()) == 3
    assert rig.send_again(packets) == refused
    assert client.receive() == []
    before = rig.dump()
    assert rig.send_again(packets) == refused
    assert rig.dump() == before


def test_outcomes_for_a_dead_client_are_dropped(rig: Rig) -> None:
    """Nobody waits for these: no inbox and no bell is made, and the worker is not told that it came too late."""
    dead, client, worker = rig.client("dead"), rig.client("c1"), rig.worker()
    dead.push(1)
    [mine] = client.push(1)
    claims = worker.claim(2)
    rig.redis.delete(rig.keys.client("dead"))
    assert worker.finish(claims) == []
    assert not [key for key in rig.dump() if "dead" in key]
    assert [task for task, _ in client.drain()] == [mine]
    rig.forget(dead)


def test_finish_and_claim_in_one_trip(rig: Rig) -> None:
    """What is handed in along with a claim is not given again by it."""
    client, worker = rig.client(), rig.worker()
    ids = client.push(4)
    claims = worker.claim(2)
    for _ in range(2):
        claimed = worker.ledger.exchange([Outcome(c, False, b"x") for c in claims], limit=2, wait=False)
        assert claimed.refused == []
        claims = claimed.claims
    assert claims == []
    assert [task for task, _ in client.drain()] == ids


def test_very_many_outcomes_at_once(rig: Rig) -> None:
    """A batch beyond what Lua can unpack in one go is delivered whole."""
    client, worker = rig.client(), rig.worker()
    ids = [task for _ in range(4) for task in client.push(500)]
    claims = worker.claim(2000)
    assert len(claims) == 2000
    assert worker.finish(claims) == []
    assert 0 < rig.ttl_ms(rig.keys.inbox("c1")) <= LEASE_MS
    assert [task for task, _ in client.drain()] == ids


def test_losses_are_told_before_the_outcome(rig: Rig) -> None:
    """Only where there were any: otherwise an entry holds nothing but outcomes."""
    client = rig.client()
    charged, uncharged, plain = client.push(3)
    worker = rig.worker()
    worker.claim(2)
    rig.agent().lose(worker, guilty=charged)
    other = rig.worker("w2")
    other.finish(other.claim(3))
    assert [task for task, _ in client.drain()] == [charged, uncharged, plain]
    assert client.losses == {charged: 1}
