"""kill_task.lua, and what an agent that has killed a worker for it tells the ledger."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rush_executor._ledger.agent import CHARGE_ALL
from rush_executor._ledger.connection import open_pool
from rush_executor._ledger.notifications import AgentWatch
from rush_executor._protocol.records import KILLED_TAG, TIMEOUT_TAG
from tests.integration.rig import Rig

Eventually = Callable[..., Any]


def test_the_agent_is_told(rig: Rig, eventually: Eventually) -> None:
    """The agent of the worker that runs the task, and no other; by a message, and by what it finds when it looks."""
    client, worker = rig.client(), rig.worker()
    rig.worker("w2", agent_id="a2")
    pools = [open_pool(rig.url) for _ in range(2)]
    watches = [AgentWatch(pool, rig.keys, agent) for pool, agent in zip(pools, ("a1", "a2"), strict=True)]
    try:
        for watch in watches:
            assert watch.rang().is_called, "who has been blind looks"
            # The reply to the subscription.
            eventually(lambda watch=watch: rig.redis.pubsub_numsub(rig.keys.kills("a1"))[0][1] == 1)
        [task] = client.push()
        worker.claim()
        assert client.uplink.kill(task)
        eventually(lambda: watches[0].rang().is_called)
        assert not watches[1].rang().is_called
        assert rig.agent("a1").ledger.wanted_ends() == [task]
        assert rig.agent("a2").ledger.wanted_ends() == []
        assert 0 < rig.ttl_ms(rig.keys.kills("a1")) <= 60_000
        rig.agent("a1").ledger.forget_ends([task])
        assert rig.agent("a1").ledger.wanted_ends() == []
    finally:
        for watch, pool in zip(watches, pools, strict=True):
            watch.close()
            pool.disconnect()


def test_loser(rig: Rig) -> None:
    """What is not running cannot be killed; what is on a worker that nobody knows neither."""
    client, worker = rig.client(), rig.worker()
    [task] = client.push()
    before = rig.dump()
    assert not client.uplink.kill(task)
    assert not client.uplink.kill("c1-999")
    assert rig.dump() == before
    worker.finish(worker.claim())
    assert not client.uplink.kill(task)
    client.drain()


@pytest.mark.parametrize("guilty", ["", CHARGE_ALL])
def test_its_worker_is_lost_before(rig: Rig, guilty: str) -> None:
    """Who asked was told that it is ended: so it is, though its agent did not come to it, and nobody runs it again."""
    client, worker = rig.client(), rig.worker()
    wanted, other = client.push(2, max_retries=5)
    worker.claim(2)
    assert client.uplink.kill(wanted)
    assert rig.agent().lose(worker, guilty) == (1, 1)
    [packets] = rig.agent().channel.sent[-1:]
    rig.send_again(packets)
    [(task, outcome)] = client.drain()
    assert (task, outcome[:2]) == (wanted, KILLED_TAG + (b"1" if guilty else b"0"))
    assert rig.queue() == [other]
    assert rig.agent().ledger.wanted_ends() == []


def test_its_agent_is_lost_before(rig: Rig) -> None:
    """The same by whoever buries it."""
    client, worker = rig.client(), rig.worker()
    [task] = client.push(max_retries=5)
    worker.claim()
    assert client.uplink.kill(task)
    rig.reaper().bury("a1")
    assert [(name, outcome[:1]) for name, outcome in client.drain()] == [(task, KILLED_TAG)]
    assert rig.queue() == []
    rig.agent().workers.clear()


def test_what_is_not_begun_is_looked_for(rig: Rig) -> None:
    """What a worker holds it may begin yet, and is ended then; what was given back is cancelled; the rest is over."""
    client, worker = rig.client(), rig.worker()
    moved, held, given_back, ended = ids = client.push(4)
    claims = worker.claim(4)
    assert all(map(client.uplink.kill, ids))
    worker.ledger.release([claims[0], claims[2]])
    elsewhere = rig.worker("w2", agent_id="a2")
    assert [claim.task_id for claim in elsewhere.claim(1)] == [moved]
    worker.finish(claims[3:])
    agents = [rig.agent("a1").ledger, rig.agent("a2").ledger]
    assert agents[0].seek(ids) == [moved, held]
    assert agents[1].wanted_ends() == [moved]
    assert {task: outcome[:1] for task, outcome in client.drain()} == {given_back: b"C", ended: b"F"}
    assert rig.queue() == []
    rig.agent("a1").lose(worker, guilty="")
    rig.agent("a2").lose(elsewhere, guilty="")
    assert {task: outcome[:1] for task, outcome in client.drain()} == {held: KILLED_TAG, moved: KILLED_TAG}


def test_what_was_queued_again_on_purpose_is_left_alone(rig: Rig) -> None:
    """The wish has ended with the worker that held it, whatever its agent still remembers."""
    client, worker = rig.client(), rig.worker()
    [new] = client.tasks(1)
    [task] = client.send([new])
    worker.claim()
    assert client.uplink.kill(task)
    rig.agent().lose(worker, guilty="")
    client.drain()
    client.send([new._replace(retries=1)])
    assert rig.agent().ledger.seek([task]) == []
    assert rig.queue() == [task]
    client.uplink.cancel([task])
    client.drain()


def test_sent_twice(rig: Rig) -> None:
    """The wish is there once; and once the task has ended nothing is left of it but what its agent forgets."""
    client, worker = rig.client(), rig.worker()
    [task] = client.push()
    worker.claim()
    client.uplink.kill(task)
    [packets] = client.up_channel.sent[-1:]
    before = rig.dump()
    assert rig.send_again(packets) == [[1]]
    assert rig.dump() == before


@pytest.mark.parametrize("tag", [TIMEOUT_TAG, KILLED_TAG])
def test_a_task_that_was_ended(rig: Rig, tag: bytes) -> None:
    """Running, time limit or kill -> failed, whatever its retries; what the worker held besides goes back uncharged."""
    client, agent, worker = rig.client(), rig.agent(), rig.worker()
    ended, other = client.push(2, max_retries=5)
    worker.claim(2)
    assert agent.lose(worker, guilty=ended, tag=tag) == (1, 1)
    [(task, outcome)] = client.drain()
    assert (task, outcome[:2]) == (ended, tag + b"1")
    assert rig.queue() == [other]
    assert "losses" not in rig.dump()[f"task:{other}"] or rig.dump()[f"task:{other}"]["losses"] == "0"


def test_a_time_limit_comes_with_the_claim(rig: Rig) -> None:
    """Also with one that is given for the second time; and `max_retries` is still known."""
    client, worker = rig.client(), rig.worker()
    client.send(client.tasks(1, timeout_s=2.25) + client.tasks(1, timeout_s=0.5, max_retries=0) + client.tasks(1))
    claims = worker.claim(3)
    assert [(claim.timeout_s, claim.is_once) for claim in claims] == [(2.25, False), (0.5, True), (0.0, False)]
    again = {claim.task_id: claim for claim in worker.claim(3)}
    assert [again[claim.task_id] for claim in claims] == claims
    worker.finish(claims)
    client.drain()
