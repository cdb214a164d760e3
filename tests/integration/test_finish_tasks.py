"""finish_tasks.lua: from running to finished or failed."""

from __future__ import annotations

from typing import Any

import pytest

from rush_executor._ledger.connection import NetworkGone, WorkerGone
from rush_executor._ledger.scripts import pack
from rush_executor._ledger.worker import Claimed, Outcome
from rush_executor._protocol.records import Claim
from tests.integration.rig import LEASE_MS, Rig, Worker


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
    """Once delivered and trimmed, the network is what it was before the task, but for its counters."""
    client, worker = rig.client(), rig.worker()
    before = rig.dump()
    client.push(20)
    worker.finish(worker.claim(20))
    client.drain()
    assert rig.dump() == {
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


class _BrokenOff(BaseException):
    """As a signal has it."""


@pytest.mark.parametrize("is_there_more", [True, False])
def test_a_worker_that_is_broken_off_when_its_wait_is_over(rig: Rig, is_there_more: bool) -> None:
    """It hands in again what it does not know to have arrived; what it was given meanwhile goes back."""
    client, worker = rig.client(), rig.worker()
    first, *more = client.push(1 + is_there_more)
    [claim] = worker.claim()

    def break_off() -> None:
        raise _BrokenOff

    with pytest.raises(_BrokenOff):
        worker.ledger.exchange([Outcome(claim, False, b"x")], limit=1, wait=True, when_over=break_off)
    assert worker.finish([claim]) == [], "it did not come too late"
    assert rig.queue() == more
    assert [task for task, _ in client.drain()] == [first]


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


# --------------------------------------------------------------------------------------------------- and then it waits


def hand_in_and_wait(worker: Worker, claims: list[Claim], *, limit: int = 1) -> Claimed:
    outcomes = [Outcome(claim, False, b"x") for claim in claims]
    return worker.ledger.exchange(outcomes, limit=limit, wait=True, wait_s=0.01, rests=True)


def test_what_is_queued_comes_with_the_wait(rig: Rig) -> None:
    """As a claim gives it, fair share and all, and in the same trip."""
    client, worker = rig.client(), rig.worker()
    rig.worker("w2")
    client.push(1)
    claims = worker.claim()
    ids = client.send([task._replace(payload=b"a\n\tb") for task in client.tasks(5, timeout_s=2.5, max_retries=0)])
    n_sent = len(worker.channel.sent)
    claimed = hand_in_and_wait(worker, claims, limit=9)
    assert claimed == Claimed([Claim(task, 1, b"a\n\tb", "", True, 2.5) for task in ids[:3]], 2, [])
    assert len(worker.channel.sent) == n_sent + 1
    dump = rig.dump()
    assert dump["running_tasks:w1"] == set(ids[:3])
    assert {dump[f"task:{task}"]["batch"] for task in ids[:3]} == {"3"}
    assert dump.keys().isdisjoint({"idle_workers", "worker_bell:w1"})


def test_nothing_is_queued(rig: Rig) -> None:
    """It is among the idle from then on, also if the same comes once more."""
    client, worker = rig.client(), rig.worker()
    client.push(1)
    assert hand_in_and_wait(worker, worker.claim()) == Claimed([], 0, [])
    before = rig.dump()
    assert before["idle_workers"] == ["w1"]
    rig.send_again(worker.channel.sent[-2])
    assert rig.dump() == before
    client.drain()


def test_a_reply_with_tasks_is_lost(rig: Rig) -> None:
    """Sent again, the same tasks come, same attempt, each once, and nothing else."""
    client, worker = rig.client(), rig.worker()
    client.push(1)
    claims = worker.claim()
    ids = client.push(3)
    assert len(hand_in_and_wait(worker, claims).claims) == 1
    # As after a reconnect, by which the answer was lost.
    again = hand_in_and_wait(worker, claims, limit=3)
    assert (again.claims, again.refused) == ([Claim(ids[0], 1, b"call")], [])
    assert [claim.task_id for claim in hand_in_and_wait(worker, again.claims, limit=3).claims] == ids[1:]
    assert "worker_bell:w1" not in rig.dump()


def test_what_is_queued_is_of_nobody(rig: Rig) -> None:
    """It is dropped; the worker has nothing, and is among the idle all the same: it is woken for what comes next."""
    client, dead, worker = rig.client(), rig.client("dead"), rig.worker()
    client.push(1)
    claims = worker.claim()
    dead.push(1)
    rig.redis.delete(rig.keys.client("dead"), rig.keys.inbox("dead"))
    rig.forget(dead)
    assert hand_in_and_wait(worker, claims) == Claimed([], 0, [])
    dump = rig.dump()
    assert dump["idle_workers"] == ["w1"]
    assert "worker_bell:w1" not in dump
    rig.reaper().look()


def test_what_another_network_left_in_the_bell(rig: Rig) -> None:
    """It is for another worker of this name, in a network that came after; this one asks what it has."""
    client, worker = rig.client(), rig.worker()
    client.push(1)
    claims = worker.claim()
    rig.redis.rpush(rig.keys.worker_bell("w1"), "epoch-2\t0\nc9-1\t1\t\t2\t4\ncall")
    assert hand_in_and_wait(worker, claims) == Claimed([], 0, [])


@pytest.mark.parametrize("n_known", [0, 1])
def test_a_wait_that_is_broken_off(rig: Rig, monkeypatch: pytest.MonkeyPatch, n_known: int) -> None:
    """By Ctrl-C, or the end: what was handed to the worker meanwhile goes to another, and it is counted on no more."""
    client, worker, other = rig.client(), rig.worker(), rig.worker("w2")
    known = client.push(n_known) if n_known else []
    assert [claim.task_id for claim in worker.claim()] == known
    assert not worker.ledger.exchange([], limit=1, wait=False, rests=True, known=known).claims
    call = worker.channel.call
    handed: list[str] = []

    def broken_off(*commands: bytes, muted: bytes = b"") -> list[Any]:
        call(*commands, muted=muted)
        if not handed:
            handed.extend(client.push())
            assert rig.dump()["running_tasks:w1"] == {*known, *handed}
            other.rest()
            raise KeyboardInterrupt
        return []

    with monkeypatch.context() as patch:
        patch.setattr(worker.channel, "call", broken_off)
        with pytest.raises(KeyboardInterrupt):
            worker.ledger.exchange([], limit=1, wait=True, wait_s=0.01, rests=True, known=known)
    assert rig.redis.ping()
    worker.channel.call(pack(("PING",)))
    dump = rig.dump()
    assert rig.queue() == handed
    assert dump.get("running_tasks:w1", set()) == set(known)
    assert dump.keys().isdisjoint({"idle_workers", "worker_bell:w1"})
    assert dump["worker_bell:w2"] == ["1"]
    assert dump[f"task:{handed[0]}"].get("losses", "0") == "0"


@pytest.mark.parametrize("n", [0, 3])
def test_who_is_lost_does_not_wait(rig: Rig, n: int) -> None:
    """Nothing is given to a worker that has been taken for lost; it is told so, and leaves no key behind."""
    client, worker = rig.client(), rig.worker()
    client.push(1)
    claims = worker.claim()
    rig.agent().lose(worker)
    rig.worker("w2").finish(rig.agent().workers[0].claim())
    ids = client.push(n) if n else []
    with pytest.raises(WorkerGone):
        hand_in_and_wait(worker, claims)
    assert rig.queue() == ids
    assert not [key for key in rig.dump() if "w1" in key or key == "idle_workers"]


@pytest.mark.parametrize("n", [0, 3])
def test_who_is_of_an_earlier_network_does_not_wait(rig: Rig, n: int) -> None:
    """Deleted and made anew under the same name, while old workers are still on the list: they get nothing of it."""
    client, worker = rig.client(), rig.worker()
    client.push(1)
    claims = worker.claim()
    client.leave()
    rig.forget(client)
    new = rig.client("c2", is_open=False)
    new.open(epoch="epoch-2")
    ids = new.push(n) if n else []
    assert "w1" in rig.dump()["worker_ids"]
    with pytest.raises(NetworkGone):
        hand_in_and_wait(worker, claims)
    assert rig.queue() == ids
    assert rig.dump().keys().isdisjoint({"idle_workers", "worker_bell:w1"})
    new.leave()
