"""release_tasks.lua: from running back to queued, not started."""

from __future__ import annotations

from rush_executor._protocol.records import Claim
from tests.integration.rig import Rig


def test_row(rig: Rig) -> None:
    """Running release -> queued: uncharged, at the place in the queue that the task had."""
    client, worker = rig.client(), rig.worker()
    ids = client.push(4)
    before = rig.dump()
    claims = worker.claim(3)
    assert worker.ledger.release(claims[1:]) == 2
    after = rig.dump()
    assert rig.queue() == ids[1:], "they stand before what came after them"
    assert after["running_tasks:w1"] == {ids[0]}
    for task in ids[1:3]:
        assert after[f"task:{task}"] == {**before[f"task:{task}"], "attempt": "1", "batch": "3"}
    assert worker.ledger.release(claims[:1]) == 1
    assert "running_tasks:w1" not in rig.dump()
    assert rig.queue() == ids


def test_a_priority_is_kept(rig: Rig) -> None:
    """What goes back stands where its priority and its submission put it, not simply in front."""
    client, worker = rig.client(), rig.worker()
    [low] = client.push(priority=-5)
    claims = worker.claim(1)
    [mid] = client.push()
    [high] = client.push(priority=7)
    worker.ledger.release(claims)
    assert rig.queue() == [high, mid, low]


def test_it_rings(rig: Rig) -> None:
    """What goes back may be the only work for a worker that sleeps."""
    client, one = rig.client(), rig.worker("w1")
    client.push(2)
    claims = one.claim(2)
    two, three = rig.worker("w2"), rig.worker("w3")
    two.rest()
    one.ledger.release(claims[:1])
    assert rig.dump()["worker_bell:w2"] == ["1"]
    rig.redis.zadd(rig.keys.idle_workers, {three.id: 1e12})
    one.ledger.release(claims[1:])
    dump = rig.dump()
    assert (dump["worker_bell:w2"], dump["worker_bell:w3"]) == (["1"], ["1"])


def test_loser(rig: Rig) -> None:
    """What the worker does not hold is passed over: another's, an old attempt, what has ended, what never was."""
    client, one, two = rig.client(), rig.worker("w1"), rig.worker("w2")
    client.push(3)
    [old] = one.claim()
    one.ledger.release([old])
    [new] = one.claim()
    [other] = two.claim()
    [ended] = [c for c in one.claim(2) if c != new] or [None]
    assert ended is None, "the worker is given what it holds"
    one.finish([new])
    [ended] = [new]
    before = rig.dump()
    assert one.ledger.release([other, old, ended, Claim("c1-999", 1, b"")]) == 0
    assert rig.dump() == before


def test_sent_twice(rig: Rig) -> None:
    """Again at once, again after another worker has claimed it, again after it was delivered."""
    client, one, two = rig.client(), rig.worker("w1"), rig.worker("w2")
    [task] = client.push()
    one.ledger.release(one.claim())
    [packets] = one.channel.sent[-1:]
    for step in (lambda: None, two.claim, lambda: two.finish(two.claim()), client.drain):
        step()
        before = rig.dump()
        assert rig.send_again(packets) == [[0]]
        assert rig.dump() == before
    assert "running_tasks:w2" not in rig.dump()
    assert f"task:{task}" not in rig.dump()


def test_sent_twice_after_the_same_worker_has_claimed_again(rig: Rig) -> None:
    """The attempt tells the claim that was given back from the one that runs now."""
    client, worker = rig.client(), rig.worker()
    [task] = client.push()
    worker.ledger.release(worker.claim())
    [packets] = worker.channel.sent[-1:]
    assert worker.claim() == [Claim(task, 2, b"call", "")]
    assert rig.send_again(packets) == [[0]]
    assert rig.check_places([task]) == {task: "w1"}


def test_of_a_dead_client(rig: Rig) -> None:
    """What nobody waits for does not go back: after the last client has left, nobody would ever take it away."""
    client, worker = rig.client(), rig.worker()
    client.push(2)
    client.send([task._replace(payload=b"large", blob_id="b1") for task in client.tasks(1)])
    claims = worker.claim(3)
    client.leave()
    rig.forget(client)
    assert worker.ledger.release(claims) == 0
    assert rig.dump().keys() == {"worker_ids", "worker:w1", "agent_workers:a1", "agent_ids"}
