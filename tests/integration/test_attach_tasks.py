"""attach_tasks.lua: a client is told the ends of tasks that another one has pushed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rush_executor._ledger.blobs import LARGE_PAYLOAD
from rush_executor._ledger.tasks import TaskLedger
from tests.integration.rig import Rig


@pytest.fixture
def rig(server_url: str) -> Iterator[Rig]:
    """A durable network, which is reset in the end."""
    with Rig(server_url, durable=True) as rig:
        yield rig
        rig.leave()
        TaskLedger(rig.channel(), rig.keys).reset()


def test_what_has_ended_is_told_at_once(rig: Rig) -> None:
    """And the rest when it ends: to the client that has attached last, and to no other."""
    client, other, worker = rig.client(), rig.client("c2"), rig.worker()
    ended, running = client.push(2)
    first, second = worker.claim(2)
    worker.finish([first])
    assert client.drain() == [(ended, b"Fresult")]
    assert other.uplink.attach([ended, running]) == [True, True]
    assert other.receive() == [(ended, b"Fresult")]
    worker.finish([second])
    assert other.receive() == [(running, b"Fresult")]
    assert other.receive() == []


def test_loser(rig: Rig) -> None:
    """The client that was to be told before hears that it is not any more; of what has ended it has been told."""
    client, other, worker = rig.client(), rig.client("c2"), rig.worker()
    ended, running, queued = client.push(3)
    worker.finish(worker.claim())
    worker.claim()
    other.uplink.attach([ended, running, queued])
    assert client.drain() == [(ended, b"Fresult"), (running, b"M"), (queued, b"M")]
    gone = rig.client("c3")
    gone.uplink.attach([queued])
    gone.leave()
    rig.forget(gone)
    before = rig.dump()
    assert other.uplink.attach([running]) == [True]
    assert rig.dump() == before, "it is its own already"
    assert other.uplink.attach([queued]) == [True]
    assert [key for key in rig.dump() if "c3" in key] == [], "nobody is there to be told"


def test_a_large_failure_that_another_client_tries_again_can_still_be_read(rig: Rig) -> None:
    """It is on its way to who has attached, for a minute."""
    client, other, worker = rig.client(), rig.client("c2"), rig.worker()
    [task] = client.tasks(1)
    client.send([task])
    worker.finish(worker.claim(), b"x" * LARGE_PAYLOAD, is_failure=True)
    assert other.uplink.attach([task.task_id]) == [True]
    client.send([task._replace(retries=1)])
    [(told, outcome)] = other.receive()
    assert (told, outcome[:1]) == (task.task_id, b"e")
    blob = outcome[1:].decode()
    assert other.downlink.read_blob(blob) == b"x" * LARGE_PAYLOAD
    assert 0 < rig.ttl_ms(rig.keys.blob(blob)) <= 60_000


def test_losses_are_told_before_the_outcome(rig: Rig) -> None:
    """As when it ended; what a lost worker ended says so itself."""
    client, other = rig.client(), rig.client("c2")
    [task] = client.push()
    [failed] = client.push(max_retries=0)
    for name in ("w1", "w2"):
        worker = rig.worker(name)
        [claim] = worker.claim()
        assert claim.task_id == task
        rig.agent().lose(worker, guilty=task)
    worker = rig.worker("w3")
    worker.finish(worker.claim())
    worker.claim()
    rig.agent().lose(worker, guilty=failed)
    other.uplink.attach([task, failed])
    assert [(name, outcome[:2]) for name, outcome in other.receive()] == [(task, b"Fr"), (failed, b"L1")]
    assert other.losses == {task: 2}
    client.drain()


def test_unknown(rig: Rig) -> None:
    """Where one of them is no task, nothing is done for the others."""
    client, other = rig.client(), rig.client("c2")
    [task] = client.push()
    before = rig.dump()
    assert other.uplink.attach([task, "c1-99"]) == [True, False]
    assert rig.dump() == before
    assert client.receive() == []


def test_sent_twice(rig: Rig) -> None:
    """What has ended is told twice, which a client that has resolved its Future passes over; the loser is told once."""
    client, other, worker = rig.client(), rig.client("c2"), rig.worker()
    ended, running = client.push(2)
    worker.finish(worker.claim())
    worker.claim()
    other.uplink.attach([ended, running])
    assert rig.send_again(other.up_channel.sent[-1]) == [[[1, 1]]]
    assert other.receive() == [(ended, b"Fresult")] * 2
    assert client.drain() == [(ended, b"Fresult"), (running, b"M")]
