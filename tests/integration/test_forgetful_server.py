"""The server forgets: its scripts (SCRIPT FLUSH), its data (FLUSHALL), or both (a restart without persistence)."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from rush_executor._ledger.connection import NetworkGone
from rush_executor._ledger.server import EmbeddedServer
from rush_executor._ledger.worker import Outcome
from tests.integration.rig import Rig
from tests.integration.servers import restart_empty

# ------------------------------------------------------------------------------------------------------ scripts


def test_scripts_are_loaded_again(rig: Rig) -> None:
    """A server that does not know a script has done nothing: all are loaded, and the call is sent again."""
    client, worker, agent = rig.client(), rig.worker(), rig.agent()
    flush = rig.redis.script_flush
    flush()
    ids = client.push(5)
    flush()
    claims = worker.claim(3)
    assert len(claims) == 3
    flush()
    assert worker.finish(claims[:1]) == []
    flush()
    assert worker.ledger.release(claims[1:]) == 2
    flush()
    assert client.uplink.cancel(ids[4:]) == [1]
    flush()
    assert client.receive() == [(ids[0], b"Fresult"), (ids[4], b"C")]
    flush()
    assert client.receive() == []
    worker.claim()
    flush()
    assert agent.lose(worker, guilty=ids[1]) == (1, 0)
    flush()
    agent.ledger.break_network("epoch-1", "text")
    flush()
    other = rig.client("c2")
    flush()
    other.leave()
    rig.forget(other)
    assert client.receive() == [("", b"Btext")]
    assert rig.queue() == ids[1:4]


def test_an_inbox_is_not_read_before_it_is_trimmed(rig: Rig) -> None:
    """Trimming and reading go out together. If only the first is unknown, what the second read counts for nothing.

    It would bring outcomes that were resolved; they would be counted twice, and as many others trimmed unread.
    """
    client, worker = rig.client(), rig.worker()
    ids: list[str] = []
    read: list[str] = []
    for _ in range(4):
        ids += client.push(3)
        worker.finish(worker.claim(3))
        rig.redis.script_flush()
        read += [task for task, _ in client.receive()]
    assert read == ids
    assert client.receive() == []
    assert rig.inbox() == []


@pytest.mark.usefixtures("long_waits")
def test_a_worker_is_not_given_again_what_it_hands_in(rig: Rig) -> None:
    """Finish is unknown, the bell is waited for, and meanwhile somebody else loads the scripts: now claim is known.

    The finish has no answer. That its task is given once more shows that it did not arrive, and it is done again.
    """
    client, worker = rig.client(), rig.worker()
    ids = client.push(1)
    claims = worker.claim()
    rig.redis.script_flush()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(worker.ledger.exchange, [Outcome(claims[0], False, b"x")], limit=1, wait=True)
        while not rig.redis.info("clients")["blocked_clients"]:
            assert not waiting.done()
        ids += client.push(1)
        # In the timer's place: nobody else rings for one whose outcomes have not arrived.
        rig.redis.rpush(rig.keys.worker_bell("w1"), "1")
        claimed = waiting.result(timeout=30)
    assert claimed.refused == []
    assert claimed.claims == []
    assert claimed.n_queued == 1, "the next exchange does not wait"
    assert client.drain() == [(ids[0], b"Fx")]
    assert [claim.task_id for claim in worker.claim()] == ids[1:]


# --------------------------------------------------------------------------------------------------------- data


def test_a_new_start(own_server: EmbeddedServer) -> None:
    """The server was restarted and knows nothing: client and worker are told, the agent sees it, nobody does harm."""
    with Rig(own_server.url) as rig:
        client, worker, agent, reaper = rig.client(), rig.worker(), rig.agent(), rig.reaper()
        agent.ledger.beat(60_000)
        client.push(3)
        claims = worker.claim(2)
        assert agent.ledger.network() is not None
        server = restart_empty(own_server)
        try:
            check_all_are_told(rig, claims)
            assert reaper.look() == []
            assert rig.dump() == {}
        finally:
            rig.leave()
            server.stop()


def test_flushall(rig: Rig) -> None:
    """The same when somebody deletes all keys."""
    client, worker, agent = rig.client(), rig.worker(), rig.agent()
    client.push(3)
    claims = worker.claim(2)
    agent.ledger.beat(60_000)
    rig.redis.flushall()
    check_all_are_told(rig, claims)
    assert rig.dump() == {}
    agent.ledger.beat(60_000)
    assert rig.dump()["agent_ids"] == {"a1"}, "an agent is seen again with its next sign of life"


def test_a_new_network_under_the_same_name(rig: Rig) -> None:
    """What the old parties ask is refused: it must not get into the new network."""
    client, worker, agent = rig.client(), rig.worker(), rig.agent()
    client.push(3)
    claims = worker.claim(2)
    rig.redis.flushall()
    other = rig.client("c2", is_open=False)
    other.open(epoch="epoch-2")
    other.push(1)
    before = rig.dump()
    check_all_are_told(rig, claims, is_new=True)
    agent.ledger.break_network("epoch-1", "text")
    assert rig.dump() == before
    other.leave()


def test_joining_anew(rig: Rig) -> None:
    """A client that opens the network once more after a loss works on; its numbers begin at 1 again."""
    client, worker = rig.client(), rig.worker()
    client.push(3)
    worker.finish(worker.claim(3))
    client.drain()
    rig.redis.flushall()
    again = rig.client("c3")
    fresh = rig.worker("w2")
    ids = again.push(2)
    fresh.finish(fresh.claim(2))
    assert [task for task, _ in again.drain()] == ids


def check_all_are_told(rig: Rig, claims: list, *, is_new: bool = False) -> None:
    """Everything that the old client, worker and agent may ask of a network that is not theirs any more."""
    client, agent = rig.client(), rig.agent()
    [worker] = agent.workers
    refused: list[Callable[[], object]] = [client.push, client.receive, worker.claim]
    for ask in refused:
        with pytest.raises(NetworkGone):
            ask()
    assert worker.finish(claims) == [claim.task_id for claim in claims]
    assert worker.ledger.release(claims) == 0
    assert client.uplink.cancel([claim.task_id for claim in claims]) == [-1, -1]
    assert client.uplink.state(claims[0].task_id) == ""
    network = agent.ledger.network()
    assert (network.epoch if network else None) == ("epoch-2" if is_new else None)
    agent.ledger.break_network("epoch-1", "text")
    agent.lose(worker, guilty=claims[0].task_id)
