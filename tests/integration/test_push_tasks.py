"""push_tasks.lua: from nothing to queued."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from rush_executor._config import DEFAULT_MAX_RETRIES, HIGHEST_PRIORITY
from rush_executor._ledger.blobs import LARGE_PAYLOAD
from rush_executor._ledger.connection import NetworkGone
from rush_executor._ledger.tasks import TaskLedger
from rush_executor._ledger.worker import Outcome
from rush_executor._protocol.records import ATTEMPTS_PER_PUSH, Claim, TaskOptions
from tests.integration.rig import EPOCH, LEASE_MS, Rig

# Submissions fill the lower 40 bits of a rank.
_PRIORITY_STEP = 2**40


def test_row(rig: Rig) -> None:
    """- push -> queued: record and queue hold exactly this, and nothing else changes but two counters.

    The `max_retries` that nearly all have is not in a record.
    """
    client = rig.client()
    before = rig.dump()
    [first] = client.push(priority=0, max_retries=2)
    [second] = client.push(priority=3, max_retries=0)
    assert (first, second) == ("c1-1", "c1-2")
    task = {"state": "queued", "client": "c1", "payload": "call"}
    low, high = 1, 2 - 3 * _PRIORITY_STEP
    assert rig.dump() == {
        "network": {**before["network"], "sequence": "2"},
        "client_ids": {"c1"},
        "client:c1": {"lease": "600000", "pushed": "2"},
        "task:c1-1": {**task, "rank": str(low)},
        "task:c1-2": {**task, "rank": str(high), "max_retries": "0"},
        "queued_tasks": [("c1-2", high), ("c1-1", low)],
    }


def test_order_of_a_batch(rig: Rig) -> None:
    """Within one priority first come is first served, in a batch and over batches and clients."""
    one, two = rig.client("c1"), rig.client("c2")
    ids = [*one.push(300), *two.push(1), *one.push(500), *two.push(2)]
    assert rig.queue() == ids


def test_priorities_are_strict(rig: Rig) -> None:
    """A higher priority comes before a lower one, whenever it was submitted; within one the order is kept."""
    client = rig.client()
    expected: list[tuple[int, int, str]] = []
    for number, priority in enumerate([0, 5, -3, 5, 0, HIGHEST_PRIORITY, -HIGHEST_PRIORITY, -3, 1, HIGHEST_PRIORITY]):
        expected += [(-priority, number, task) for task in client.push(2, priority=priority)]
    assert rig.queue() == [task for _, _, task in sorted(expected, key=lambda row: row[:2])]


@pytest.mark.parametrize("submitted", [0, 2**39, 2**40 - 10])
@pytest.mark.parametrize("priority", [HIGHEST_PRIORITY, 1, 0, -1, -HIGHEST_PRIORITY])
def test_ranks_are_exact(rig: Rig, submitted: int, priority: int) -> None:
    """The rank is an exact integer at the ends of its range: neighbours stay apart and in order.

    A double is exact up to 2^53; `%.14g`, which Lua uses when left to itself, is not.
    """
    client = rig.client()
    rig.redis.hset(rig.keys.network, "sequence", submitted)
    ids = client.push(8, priority=priority)
    ranks = [submitted + i - priority * _PRIORITY_STEP for i in range(1, 9)]
    queue = rig.redis.zrange(rig.keys.queued_tasks, 0, -1, withscores=True)
    assert [(member.decode(), int(score)) for member, score in queue] == list(zip(ids, ranks, strict=True))
    assert [int(rig.dump()[f"task:{task}"]["rank"]) for task in ids] == ranks
    worker = rig.worker()
    assert [claim.task_id for claim in worker.claim(8)] == ids
    rig.agent().lose(worker)
    assert rig.queue() == ids, "the rank survives the way through a claim"


def test_neighbouring_priorities_never_mix(rig: Rig) -> None:
    """The last possible submission of a priority still comes before the first one of the next lower priority."""
    client = rig.client()
    late: list[str] = []
    early: list[str] = []
    for priority in (HIGHEST_PRIORITY, 0, -HIGHEST_PRIORITY + 1):
        rig.redis.hset(rig.keys.network, "sequence", 2**40 - 3)
        late = client.push(2, priority=priority)
        rig.redis.hset(rig.keys.network, "sequence", 0)
        early = client.push(1, priority=priority - 1)
        queue = rig.queue()
        assert queue.index(late[0]) + 1 == queue.index(late[1])
        assert queue.index(late[1]) + 1 == queue.index(early[0])


def test_loser_network_is_another(rig: Rig) -> None:
    """A client that knows an older creation of the network is told, and nothing is queued."""
    client = rig.client()
    rig.redis.hset(rig.keys.network, "epoch", "epoch-2")
    before = rig.dump()
    with pytest.raises(NetworkGone):
        client.push()
    assert rig.dump() == before


def test_loser_network_is_gone(rig: Rig) -> None:
    """A client whose network was deleted is told."""
    client = rig.client()
    rig.redis.delete(rig.keys.network)
    with pytest.raises(NetworkGone):
        client.push()
    assert rig.dump().keys() == {"client_ids", "client:c1"}


def test_loser_record_is_gone(rig: Rig) -> None:
    """A client whose record has expired is told: nobody would run its tasks."""
    client = rig.client()
    rig.redis.delete(rig.keys.client("c1"))
    before = rig.dump()
    with pytest.raises(NetworkGone):
        client.push()
    assert rig.dump() == before


def test_sent_twice_late(rig: Rig) -> None:
    """A batch that comes again after its tasks were run and delivered is not run again."""
    client, worker = rig.client(), rig.worker()
    ids = client.push(3)
    [packets] = client.up_channel.sent[-1:]
    worker.finish(worker.claim(3))
    assert [task for task, _ in client.drain()] == ids
    before = rig.dump()
    assert rig.send_again(packets) == [[0]]
    assert rig.dump() == before


def test_sent_twice_after_a_cancel(rig: Rig) -> None:
    """A batch that comes again does not bring back what was cancelled."""
    client = rig.client()
    ids = client.push(3)
    [packets] = client.up_channel.sent[-1:]
    assert client.uplink.cancel(ids[1:]) == [1, 1]
    before = rig.dump()
    assert rig.send_again(packets) == [[0]]
    assert rig.dump() == before
    assert rig.queue() == ids[:1]


def test_an_older_batch_after_a_newer_one(rig: Rig) -> None:
    """What an old connection still had in its pipe comes last, and changes nothing."""
    client = rig.client()
    client.push(2)
    client.push(2)
    older, newer = client.up_channel.sent[-2:]
    before = rig.dump()
    assert rig.send_again(older, newer, older) == [[0], [0], [0]]
    assert rig.dump() == before


def test_it_rings(rig: Rig) -> None:
    """As many of those that wait as there are tasks, no matter in how many batches."""
    client = rig.client()
    workers = [rig.worker(f"w{number}") for number in range(5)]
    for worker in workers:
        worker.rest()
    client.push(2)
    dump = rig.dump()
    woken = {key for key in dump if key.startswith("worker_bell:")}
    assert woken == {"worker_bell:w3", "worker_bell:w4"}, "those that began to wait last"
    assert dump["idle_workers"] == ["w0", "w1", "w2"]
    assert all(dump[key] == ["1"] for key in woken)
    client.push(400)
    client.push(400)
    dump = rig.dump()
    assert [dump[f"worker_bell:{worker.id}"] for worker in workers] == [["1"]] * 5, "nobody is woken twice"
    assert "idle_workers" not in dump


@pytest.mark.parametrize("options", [TaskOptions(2, 0), TaskOptions(0, 3, 2.5)], ids=["usual", "unusual"])
@pytest.mark.parametrize("blob_id", ["", "b1"])
@pytest.mark.parametrize("payload", [b"call", b"\n\0\n"])
def test_one_by_itself_is_handed_over(rig: Rig, options: TaskOptions, blob_id: str, payload: bytes) -> None:
    """- push -> queued claim -> running: the worker that waits has it, as by a claim, and needs none."""
    client, worker, other = rig.client(), rig.worker(), rig.worker("w2")
    new = [task._replace(options=options, payload=payload, blob_id=blob_id) for task in client.tasks(2)]
    client.send(new[:1])
    claimed = other.claim()
    by_claim = rig.dump()[f"task:{new[0].task_id}"]
    worker.rest()
    client.send(new[1:])
    dump = rig.dump()
    by_push = dump[f"task:{new[1].task_id}"]
    assert by_claim.keys() == by_push.keys()
    differ = {name for name in by_push if by_push[name] != by_claim[name]}
    assert differ <= {"worker", "rank", "started_at"}
    assert abs(float(by_push["started_at"]) - rig.now()) < 60
    assert dump["running_tasks:w1"] == {new[1].task_id}
    assert dump.keys().isdisjoint({"queued_tasks", "idle_workers"})
    n_sent = len(worker.channel.sent)
    [claim] = worker.ledger.exchange([], limit=1, wait=True, rests=True).claims
    assert claim == claimed[0]._replace(task_id=new[1].task_id)
    assert len(worker.channel.sent) == n_sent + 1


@pytest.mark.usefixtures("long_waits")
def test_a_task_that_is_handed_over_goes_by_the_bell_alone(rig: Rig) -> None:
    """Behind outcomes that are handed in, the wait is one packet and its answer the task: no claim is sent."""
    client, worker = rig.client(), rig.worker()
    client.push()
    claims = worker.claim()
    for _ in range(3):
        n_sent = len(worker.channel.sent)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(
                worker.ledger.exchange, [Outcome(claims[0], False, b"x")], limit=1, wait=True, rests=True
            )
            while not rig.redis.info("clients")["blocked_clients"]:
                assert not waiting.done(), waiting.result()
            [task] = client.push()
            claims = waiting.result(30).claims
        assert claims == [Claim(task, 1, b"call")]
        assert len(worker.channel.sent) == n_sent + 1
    assert [outcome for _, outcome in client.drain()] == [b"Fx"] * 3


def test_a_retried_one_goes_on_with_its_attempts(rig: Rig) -> None:
    """Handed over, a task that has failed and is pushed again has the number that it is to have."""
    client, worker = rig.client(), rig.worker()
    [task] = client.tasks(1)
    client.send([task])
    worker.finish(worker.claim(), is_failure=True)
    client.drain()
    worker.rest()
    client.send([task._replace(retries=1)])
    assert rig.dump()[f"task:{task.task_id}"]["attempt"] == str(ATTEMPTS_PER_PUSH + 1)
    assert [claim.attempt for claim in worker.claim()] == [ATTEMPTS_PER_PUSH + 1]
    assert rig.ttl_ms(rig.keys.task(task.task_id)) == -1


@pytest.mark.parametrize("n", [1, 2])
def test_who_has_not_come_back_is_not_counted_on(rig: Rig, n: int) -> None:
    """A worker whose wait must be over by now may be dead, or busy: nothing is handed to it, and it is not rung for."""
    client = rig.client()
    rig.worker("w1").rest()
    rig.worker("w2").rest()
    rig.redis.zadd(rig.keys.idle_workers, {"w1": rig.now() - 0.001})
    client.push(n)
    dump = rig.dump()
    assert ("worker_bell:w2" in dump, "worker_bell:w1" in dump) == (True, False)
    assert len(rig.queue()) == (n if n > 1 else 0)
    ids = client.push(1)
    dump = rig.dump()
    assert rig.queue()[-1:] == ids
    assert "worker_bell:w1" not in dump


def test_handed_over_sent_twice(rig: Rig) -> None:
    """The second changes nothing, even if another worker waits by now."""
    client, worker = rig.client(), rig.worker()
    worker.rest()
    client.push()
    rig.worker("w2").rest()
    before = rig.dump()
    rig.send_again(client.up_channel.sent[-1])
    assert rig.dump() == before


def test_a_network_of_another_name_is_not_touched(rig: Rig) -> None:
    """Two networks on one server share nothing, even if the name of one begins with that of the other."""
    with Rig(rig.url, "rig2") as other:
        rig.client().push(2)
        before = rig.dump()
        other.client().push(3)
        worker = other.worker()
        worker.finish(worker.claim(3))
        assert rig.dump() == before
        assert rig.worker().claim(5)
        assert len(other.client().drain()) == 3
        other.leave()
        assert other.dump() == {}
        assert len(rig.queue()) == 0


def test_functions_travel_with_the_first_batch_that_needs_them(rig: Rig) -> None:
    """Functions are there before the tasks that need them, live as long as the client, and can be taken back."""
    client, worker = rig.client(), rig.worker()
    client.send(client.tasks(1), [("digest-1", b"body-1"), ("digest-2", b"body-2")])
    client.send(client.tasks(1), [("digest-3", b"body-3")])
    assert rig.dump()["functions:c1"] == {f"digest-{i}": f"body-{i}" for i in (1, 2, 3)}
    assert 0 < rig.ttl_ms(rig.keys.functions("c1")) <= 600_000
    assert worker.ledger.function("c1", "digest-2") == b"body-2"
    client.uplink.forget_functions(["digest-1", "digest-2"])
    assert rig.dump()["functions:c1"] == {"digest-3": "body-3"}
    with pytest.raises(KeyError):
        worker.ledger.function("c1", "digest-2")
    with pytest.raises(KeyError):
        worker.ledger.function("c9", "digest-3")


def test_payloads_are_bytes(rig: Rig) -> None:
    """What is pushed is what is claimed, whatever the bytes."""
    client, worker = rig.client(), rig.worker()
    payloads = [bytes(range(256)) * 20, b"", b"\r\n$5\r\n", b"\xff\x00\xfe"]
    for payload in payloads:
        client.send(client.tasks(1, payload=payload))
    claims = worker.claim(9)
    assert [claim.payload for claim in claims] == payloads
    for claim in claims:
        worker.finish([claim], body=claim.payload)
    assert [outcome for _, outcome in client.drain()] == [b"F" + payload for payload in payloads]


def test_epoch_of_the_rig(rig: Rig) -> None:
    """What these tests take for the epoch is it."""
    assert rig.client().uplink.open_network("another", b"").epoch == EPOCH


def test_a_task_that_failed_is_pushed_again(rig: Rig) -> None:
    """Its attempts are numbered on, so a worker that hands in the old outcome once more is refused; no TTL is left."""
    client, worker = rig.client(), rig.worker()
    [task] = client.tasks(1)
    client.send([task])
    old = worker.claim()
    assert worker.finish(old, b"first", is_failure=True) == []
    client.send([task._replace(retries=1)])
    assert rig.ttl_ms(rig.keys.task(task.task_id)) == -1
    packets = client.up_channel.sent[-1]
    new = worker.claim()
    assert new[0].attempt > old[0].attempt
    rig.send_again(packets)
    assert worker.finish(old, b"first", is_failure=True) == [task.task_id]
    assert worker.finish(new, b"second") == []
    rig.send_again(packets)
    assert client.drain() == [(task.task_id, b"Efirst"), (task.task_id, b"Fsecond")]
    assert rig.queue() == []


def test_a_failed_task_that_is_never_pushed_again(rig: Rig) -> None:
    """The client ends in the middle of a retry: what it wrote goes by itself."""
    client = rig.client()
    [task] = client.tasks(1)
    rig.channel().call(client.uplink._fence(1, [task._replace(retries=1)]))
    key = rig.keys.task(task.task_id)
    assert 0 < rig.ttl_ms(key) <= LEASE_MS
    rig.redis.delete(key)


@pytest.mark.parametrize("is_failure", [False, True], ids=["finished", "failed"])
@pytest.mark.parametrize("size", [1, LARGE_PAYLOAD], ids=["small", "large"])
def test_a_kept_task_is_pushed_again(server_url: str, is_failure: bool, size: int) -> None:
    """A durable network keeps nothing of how it ended before, also where the ledger took it for finished.

    A chunk of calls is, when one of them has raised.
    """
    with Rig(server_url, durable=True) as rig:
        client, worker = rig.client(), rig.worker()
        [task, other] = client.tasks(2, max_retries=0, timeout_s=2.5)
        client.send([task, other])
        worker.finish(worker.claim(2), b"x" * size, is_failure=is_failure)
        client.send([task._replace(retries=1, options=TaskOptions(DEFAULT_MAX_RETRIES, 0))])
        packets = client.up_channel.sent[-1]

        def check(ended: list[str], n_blobs: int) -> None:
            dump = rig.dump()
            assert dump["all_tasks"] == [task.task_id, other.task_id]
            assert (sorted(dump["failed_tasks"]) if is_failure else dump["finished_tasks"]) == ended
            blobs = [key.removeprefix("blob:") for key in dump if key.startswith("blob:")]
            lasting = [blob for blob in blobs if rig.ttl_ms(rig.keys.blob(blob)) == -1]
            assert len(lasting) == (n_blobs if size >= LARGE_PAYLOAD else 0)

        check([other.task_id], 1)
        record = rig.dump()[f"task:{task.task_id}"]
        assert record["state"] == "queued"
        assert record.keys().isdisjoint({"outcome", "worker", "started_at", "ended_at", "losses"})
        assert record.keys().isdisjoint({"max_retries", "timeout"}), "it has other options now"
        assert rig.ttl_ms(rig.keys.task(task.task_id)) == -1
        worker.finish(worker.claim(), b"x" * size, is_failure=is_failure)
        rig.send_again(packets)
        ended = [other.task_id, task.task_id]
        check(sorted(ended) if is_failure else ended, 2)
        rig.leave()
        TaskLedger(rig.channel(), rig.keys).reset()


def test_a_kept_failure_outlives_a_push_that_never_came(server_url: str) -> None:
    """A client that dies between the two commands of one packet: what the network keeps does not expire for it."""
    with Rig(server_url, durable=True) as rig:
        client, worker = rig.client(), rig.worker()
        [task] = client.tasks(1)
        client.send([task])
        worker.finish(worker.claim(1), is_failure=True)
        fence = client.uplink._fence(2, [task._replace(retries=1)])
        assert client.up_channel.call(fence) == [1]
        assert rig.ttl_ms(rig.keys.task(task.task_id)) == -1
        rig.leave()
        TaskLedger(rig.channel(), rig.keys).reset()


def test_a_payload_that_a_durable_network_keeps_outlives_a_push_that_comes_again(server_url: str) -> None:
    """Its client has left meanwhile: the chunks were written with a TTL, and the push behind them is refused."""
    with Rig(server_url, durable=True) as rig:
        client, _ = rig.client(), rig.client("other")
        [task] = client.tasks(1)
        task = task._replace(blob_id="b1", payload=bytes(LARGE_PAYLOAD))
        n_before = len(client.up_channel.sent)
        client.send([task])
        packets = client.up_channel.sent[n_before:]
        client.uplink.retire()
        rig.send_again(*packets[:-1])
        assert rig.ttl_ms(rig.keys.blob("b1")) > 0
        with pytest.raises(NetworkGone):
            rig.send_again(packets[-1])
        assert rig.ttl_ms(rig.keys.blob("b1")) == -1
        stray = client.tasks(1)[0]._replace(blob_id="b2", payload=bytes(LARGE_PAYLOAD))
        with pytest.raises(NetworkGone):
            client.uplink.push(2, [stray])
        assert not rig.redis.exists(rig.keys.blob("b2"))
        rig.leave()
        TaskLedger(rig.channel(), rig.keys).reset()
