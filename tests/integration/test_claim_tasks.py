"""claim_tasks.lua: from queued to running."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rush_executor._ledger.connection import NetworkGone, WorkerGone
from rush_executor._ledger.worker import Outcome
from rush_executor._protocol.records import Claim
from tests.integration.rig import Rig


def test_row(rig: Rig) -> None:
    """Queued claim -> running: the record says who runs the task and which attempt it is; the queue has it no more."""
    client, worker = rig.client(), rig.worker()
    [task, other] = client.push(2)
    before = rig.dump()
    claimed = worker.ledger.exchange([], limit=1, wait=False)
    assert claimed.claims == [Claim(task, 1, b"call", "")]
    assert claimed.n_queued == 1
    assert claimed.refused == []
    found = rig.dump()
    # By the server's clock.
    assert 0 <= rig.now() - float(found["task:c1-1"].pop("started_at")) < 60
    after = {
        **before,
        "task:c1-1": {**before["task:c1-1"], "state": "running", "worker": "w1", "attempt": "1", "batch": "1"},
        "queued_tasks": [(other, 2.0)],
        "running_tasks:w1": {task},
    }
    assert found == after


def test_nothing_to_claim(rig: Rig) -> None:
    """An empty queue gives nothing and changes nothing."""
    rig.client()
    worker = rig.worker()
    before = rig.dump()
    claimed = worker.ledger.exchange([], limit=9, wait=False)
    assert (claimed.claims, claimed.n_queued) == ([], 0)
    assert rig.dump() == before


def test_the_attempt_rises_with_every_claim(rig: Rig) -> None:
    """The attempt is the fencing token: never twice the same."""
    client, worker = rig.client(), rig.worker()
    client.push()
    for attempt in range(1, 13):
        [claim] = worker.claim()
        assert claim.attempt == attempt
        worker.ledger.release([claim])


def test_loser_another_network(rig: Rig) -> None:
    """A worker of an older creation of the network gets no task of the new one."""
    client = rig.client()
    worker = rig.worker(epoch="epoch-0")
    client.push()
    before = rig.dump()
    with pytest.raises(NetworkGone):
        worker.claim()
    assert rig.dump() == before


def test_loser_taken_for_lost(rig: Rig) -> None:
    """A worker that has been taken for lost must not run anything any more."""
    client, worker = rig.client(), rig.worker()
    client.push()
    rig.agent().lose(worker)
    before = rig.dump()
    with pytest.raises(WorkerGone):
        worker.claim()
    assert rig.dump() == before


def test_loser_is_told_even_when_it_holds_tasks(rig: Rig) -> None:
    """A worker of a network that is gone is not given again what it holds."""
    client, worker = rig.client(), rig.worker()
    client.push()
    assert worker.claim()
    rig.redis.hset(rig.keys.network, "epoch", "epoch-2")
    with pytest.raises(NetworkGone):
        worker.claim()


def test_a_claim_whose_reply_was_lost_is_given_again(rig: Rig) -> None:
    """What stands in the worker's running_tasks is given again, same attempt, before anything new."""
    client, worker = rig.client(), rig.worker()
    ids = client.push(5)
    first = worker.claim(2)
    before = rig.dump()
    for limit in (2, 1, 5):
        claimed = worker.ledger.exchange([], limit=limit, wait=False)
        assert sorted(claimed.claims) == first
        assert claimed.n_queued == 3
    assert rig.dump() == before
    worker.finish(first)
    assert [claim.task_id for claim in worker.claim(9)] == ids[2:]


def test_a_claim_sent_again_after_its_tasks_ended(rig: Rig) -> None:
    """A claim from an old connection takes tasks that nobody sees: the worker's next claim is given them."""
    client, worker = rig.client(), rig.worker()
    ids = client.push(2)
    [first] = worker.claim()
    [packets] = worker.channel.sent[-1:]
    worker.finish([first])
    rig.send_again(packets, packets)
    assert rig.check_places(ids) == {ids[0]: "Fresult", ids[1]: "w1"}
    assert worker.claim() == [Claim(ids[1], 1, b"call", "")]


@pytest.mark.parametrize(
    ("n_tasks", "n_workers", "limit", "expected"),
    [
        (10, 1, 100, 10),
        (10, 2, 100, 5),
        (10, 3, 100, 4),
        (10, 4, 2, 2),
        (1, 8, 100, 1),
        (9, 8, 100, 2),
        (500, 2, 256, 250),
    ],
)
def test_fair_share(rig: Rig, n_tasks: int, n_workers: int, limit: int, expected: int) -> None:
    """No worker gets more than its share of the queue, rounded up, however much it asks for."""
    rig.client().push(n_tasks)
    workers = [rig.worker(f"w{i}") for i in range(n_workers)]
    assert len(workers[0].claim(limit)) == expected


def test_fair_shares_leave_nothing(rig: Rig) -> None:
    """Workers that ask in turn get all of it, and nobody nothing."""
    ids = rig.client().push(100)
    workers = [rig.worker(f"w{i}") for i in range(3)]
    taken: list[list[str]] = [[], [], []]
    while sum(map(len, taken)) < 100:
        for worker, tasks in zip(workers, taken, strict=True):
            claims = worker.claim(50)
            tasks += [claim.task_id for claim in claims]
            worker.finish(claims)
    assert sorted(task for tasks in taken for task in tasks) == sorted(ids)
    assert min(map(len, taken)) >= 20


def test_first_come_first_served(rig: Rig) -> None:
    """A batch is claimed in the order of the queue."""
    client, worker = rig.client(), rig.worker()
    low = client.push(3, priority=-1)
    high = client.push(3, priority=1)
    mid = client.push(3)
    claims = [claim.task_id for claim in worker.claim(5)]
    assert claims == [*high, *mid[:2]]
    worker.ledger.release([Claim(task, 1, b"") for task in claims])
    assert [claim.task_id for claim in worker.claim(9)] == [*high, *mid, *low]


def test_tasks_of_a_dead_client_are_dropped(rig: Rig) -> None:
    """A task whose client is gone is not run: nobody waits for it. Its blob goes with it."""
    dead, client, worker = rig.client("dead"), rig.client("c1"), rig.worker()
    dead.push(3)
    rig.redis.hset(rig.keys.blob("b1"), "0", "large")
    dead.send(dead.tasks(1, payload=b"", blob_id=""))
    dead.send([task._replace(payload=b"large", blob_id="b2") for task in dead.tasks(1)])
    assert "blob:b2" in rig.dump()
    mine = client.push(2)
    rig.redis.delete(rig.keys.client("dead"), rig.keys.blob("b1"))
    claimed = worker.ledger.exchange([], limit=4, wait=False)
    assert (claimed.claims, claimed.n_queued) == ([], 3)
    claimed = worker.ledger.exchange([], limit=4, wait=False)
    assert [claim.task_id for claim in claimed.claims] == mine
    assert not [key for key in rig.dump() if "dead-" in key or key.startswith("blob")]
    rig.forget(dead)


@pytest.mark.usefixtures("long_waits")
def test_a_token_wakes_a_worker_that_waits(rig: Rig) -> None:
    """A worker in the bell has the task well before the slow timer."""
    client, worker = rig.client(), rig.worker()
    worker.claim()
    took: list[float] = []

    def wait() -> None:
        claims = worker.ledger.exchange([], limit=1, wait=True).claims
        took.append(time.monotonic() - pushed_at)
        assert claims

    thread = threading.Thread(target=wait)
    thread.start()
    while not rig.redis.info("clients")["blocked_clients"]:
        assert thread.is_alive()
    pushed_at = time.monotonic()
    client.push()
    thread.join(30)
    assert took
    assert took[0] < 10


@pytest.mark.parametrize("n", [1, 2])
def test_a_lost_token_costs_no_more_than_the_slow_timer(rig: Rig, n: int) -> None:
    """A task that no bell told is found all the same, handed to the worker or queued."""
    client, worker = rig.client(), rig.worker()
    worker.rest()
    ids = client.push(n)
    rig.redis.delete(rig.keys.worker_bell("w1"))
    assert [claim.task_id for claim in worker.ledger.exchange([], limit=2, wait=True).claims] == ids


def test_who_waits_is_told_so(rig: Rig) -> None:
    """Only a worker that has found nothing and says that it waits is among the idle, until it gets something."""
    client, worker = rig.client(), rig.worker()
    worker.claim()
    assert "idle_workers" not in rig.dump()
    worker.rest()
    assert rig.dump()["idle_workers"] == ["w1"]
    worker.claim()
    assert "idle_workers" not in rig.dump(), "it waits no longer"
    client.push(2)
    assert len(worker.ledger.exchange([], limit=1, wait=False, rests=True).claims) == 1
    assert "idle_workers" not in rig.dump(), "it has something to run"


@pytest.mark.usefixtures("long_waits")
def test_handed_to_one_that_had_just_stopped_to_wait(rig: Rig) -> None:
    """The wait is over, and before the claim behind it a task is handed: the claim gives it, and it is given once."""
    client, worker = rig.client(), rig.worker()
    worker.rest()
    [task] = client.push()
    claimed = worker.ledger.exchange([], limit=1, wait=False, rests=True)
    assert claimed.claims == [Claim(task, 1, b"call")]
    assert "worker_bell:w1" not in rig.dump()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(
            worker.ledger.exchange, [Outcome(claimed.claims[0], False, b"x")], limit=1, wait=True, rests=True
        )
        while not rig.redis.info("clients")["blocked_clients"]:
            assert not waiting.done(), waiting.result()
        [other] = client.push()
        assert waiting.result(30).claims == [Claim(other, 1, b"call")]


@pytest.mark.usefixtures("long_waits")
def test_several_workers_wake_for_several_tasks(rig: Rig) -> None:
    """One push of n tasks wakes n sleepers, not one of them."""
    client = rig.client()
    workers = [rig.worker(f"w{i}") for i in range(3)]
    got: list[list[Claim]] = []
    threads = [
        threading.Thread(target=lambda w=worker: got.append(w.ledger.exchange([], limit=1, wait=True).claims))
        for worker in workers
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while rig.redis.info("clients")["blocked_clients"] < 3 and time.monotonic() < deadline:
        pass
    ids = client.push(3)
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert sorted(claim.task_id for claims in got for claim in claims) == ids


def test_what_is_held_and_is_somebody_elses(rig: Rig) -> None:
    """Pushed anew after the server was put back, and claimed by another: it is not given once more, others are."""
    client, worker = rig.client(), rig.worker()
    ids = client.push(2)
    worker.claim()
    rig.redis.hset(rig.keys.task(ids[0]), "worker", "another")
    rig.redis.rpush(rig.keys.worker_bell("w1"), "as it was handed to it")
    assert [claim.task_id for claim in worker.claim()] == ids[1:]
    assert "worker_bell:w1" not in rig.dump()
    assert rig.dump()["running_tasks:w1"] == {ids[1]}
    rig.redis.hset(rig.keys.task(ids[0]), "worker", "w1")
    worker.finish([Claim(task, 1, b"") for task in ids])
    client.drain()
