"""The connection breaks: before the server has seen the request, after it has acted, in the middle of the reply.

Whoever asked reconnects and sends the same again, by itself. Nothing is lost, nothing is doubled.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rush_executor._ledger.connection import NetworkGone
from rush_executor._ledger.worker import Outcome, WorkerLedger
from rush_executor._protocol.records import Claim
from rush_executor._worker.signals import LeaveNow
from rush_executor.errors import NetworkLostError
from tests.integration.proxy import Proxy
from tests.integration.rig import Rig


@pytest.fixture(params=["unix", "tcp"])
def proxy(request: pytest.FixtureRequest, server_url: str) -> Iterator[Proxy]:
    with Proxy(server_url, is_tcp=request.param == "tcp") as proxy:
        yield proxy


@pytest.fixture
def rig(server_url: str, proxy: Proxy) -> Iterator[Rig]:
    """Everybody leaves while the proxy is still there."""
    with Rig(server_url) as rig:
        yield rig


@pytest.fixture(params=["request lost", "reply lost", "half a reply"])
def cut(request: pytest.FixtureRequest, proxy: Proxy) -> Iterator[Callable[..., None]]:
    """Arms the proxy; the test must get it to cut."""

    def arm(*, n_replies: int = 1) -> None:
        if request.param == "request lost":
            proxy.lose_request()
        else:
            proxy.lose_reply(n_replies=n_replies, passing=0 if request.param == "reply lost" else 2)

    yield arm
    assert not proxy.is_armed, "the test was to go through a cut"
    assert proxy.n_cuts


def test_push(rig: Rig, proxy: Proxy, cut: Callable[..., None]) -> None:
    """Each task is queued once."""
    client, worker = rig.client(url=proxy.url), rig.worker()
    first = client.push(2)
    cut()
    ids = [*first, *client.push(3)]
    assert rig.queue() == ids
    assert rig.dump()["client:c1"]["pushed"] == "2"
    worker.finish(worker.claim(9))
    assert [task for task, _ in client.drain()] == ids


def test_push_with_functions_and_blobs(rig: Rig, proxy: Proxy, cut: Callable[..., None]) -> None:
    """What goes out along with a batch is there when the batch is."""
    client = rig.client(url=proxy.url)
    cut(n_replies=3)
    client.send(client.tasks(1), [("digest", b"body")])
    large = b"x" * 300_000
    cut(n_replies=2)
    client.send([task._replace(payload=large, blob_id="b1") for task in client.tasks(1)])
    dump = rig.dump()
    assert dump["functions:c1"] == {"digest": "body"}
    assert dump["blob:b1"] == {"0": large.decode()}
    assert rig.ttl_ms(rig.keys.blob("b1")) == -1
    assert len(rig.queue()) == 2


def test_claim(rig: Rig, proxy: Proxy, cut: Callable[..., None]) -> None:
    """The worker gets what the lost reply would have told it: the same tasks, the same attempt, no more."""
    client, worker = rig.client(), rig.worker(url=proxy.url)
    ids = client.push(5)
    cut()
    claims = worker.claim(2)
    assert sorted(claims) == [Claim(task, 1, b"call", "") for task in ids[:2]]
    assert rig.dump()["running_tasks:w1"] == set(ids[:2])
    assert rig.queue() == ids[2:]


@pytest.mark.usefixtures("long_waits")
def test_claim_behind_the_bell(rig: Rig, proxy: Proxy, eventually: Callable[..., object]) -> None:
    """A token whose reply is lost costs the wait for the slow timer, and no task."""
    client, worker = rig.client(), rig.worker(url=proxy.url)
    worker.rest()
    proxy.lose_reply(n_replies=2)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(worker.ledger.exchange, [], limit=1, wait=True)
        while not rig.redis.info("clients")["blocked_clients"]:
            assert not waiting.done()
        ids = client.push(2)
        eventually(lambda: proxy.n_cuts == 1)
        # In the timer's place.
        rig.redis.rpush(rig.keys.worker_bell("w1"), "1")
        claims = waiting.result(timeout=30).claims
    assert [claim.task_id for claim in claims] == ids[:1]
    assert proxy.n_cuts == 1
    assert worker.finish(claims) == []
    claims = worker.claim()
    assert [claim.task_id for claim in claims] == ids[1:]
    worker.finish(claims)
    assert [task for task, _ in client.drain()] == ids


def test_finish(rig: Rig, proxy: Proxy, cut: Callable[..., None]) -> None:
    """Each outcome is in the inbox once, and none of them is said to have come too late."""
    client, worker = rig.client(), rig.worker(url=proxy.url)
    ids = client.push(3)
    claims = worker.claim(3)
    cut()
    assert worker.finish(claims) == []
    assert rig.inbox() == [(task, "Fresult") for task in ids]
    assert client.drain() == [(task, b"Fresult") for task in ids]
    assert worker.claim() == []


def test_a_wait_that_is_broken_off(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was handed in along with it had arrived: handed in again, it is refused, and that is not said to anybody."""
    client, worker = rig.client(), rig.worker()
    client.push(2)
    outcomes = [Outcome(claim, False, b"x") for claim in worker.claim(2)]
    call = worker.channel.call

    def broken_off(*commands: bytes, muted: bytes = b"") -> list[Any]:
        call(*commands, muted=muted)
        raise LeaveNow

    monkeypatch.setattr(worker.channel, "call", broken_off)
    with pytest.raises(LeaveNow):
        worker.ledger.exchange(outcomes, limit=1, wait=False)
    monkeypatch.undo()
    assert len(client.drain()) == 2
    assert worker.ledger.finish(outcomes) == []
    assert worker.ledger.finish(outcomes) == [outcome.claim.task_id for outcome in outcomes], "now it is known"


def test_finish_with_a_large_outcome(rig: Rig, proxy: Proxy, cut: Callable[..., None]) -> None:
    """One that travels beside the inbox is read whole."""
    client, worker = rig.client(url=proxy.url), rig.worker(url=proxy.url)
    client.push(1)
    claims = worker.claim()
    body = random.randbytes(700_000)
    cut(n_replies=2)
    worker.finish(claims, body)
    [(_, outcome)] = client.receive()
    assert outcome[:1] == b"f"
    cut()
    assert client.downlink.read_blob(outcome[1:].decode()) == body
    client.downlink.receive(client.position, done_blobs=[outcome[1:].decode()], wait=False)


def test_finish_and_claim(rig: Rig, proxy: Proxy, cut: Callable[..., None]) -> None:
    """The claim that stands behind a finish gives new tasks only, even when both are sent for the second time."""
    client, worker = rig.client(), rig.worker(url=proxy.url)
    ids = client.push(4)
    claims = worker.claim(2)
    cut()
    claimed = worker.ledger.exchange([Outcome(c, False, b"x") for c in claims], limit=2, wait=False)
    assert sorted(claim.task_id for claim in claimed.claims) == ids[2:]
    worker.finish(claimed.claims)
    assert sorted(task for task, _ in client.drain()) == ids


def test_ask_ahead(rig: Rig, proxy: Proxy, cut: Callable[..., None]) -> None:
    """A claim that is answered later gives new tasks only, and not the one that runs meanwhile."""
    client, worker = rig.client(), rig.worker(url=proxy.url)
    ids = client.push(5)
    *done, running = worker.claim(3)
    outcomes = [Outcome(c, False, b"x") for c in done]
    cut()
    worker.ledger.ask(outcomes, limit=2, known=[running.task_id])
    claimed = worker.ledger.answer(outcomes)
    assert sorted(claim.task_id for claim in claimed.claims) == ids[3:]
    assert claimed.refused == []
    worker.finish([running, *claimed.claims])
    assert sorted(task for task, _ in client.drain()) == ids


def test_who_does_not_wait_for_the_answer(rig: Rig, proxy: Proxy) -> None:
    """What is done before the answer was read costs the connection, and nothing else."""
    client, worker = rig.client(), rig.worker(url=proxy.url)
    ids = client.push(4)
    *done, running = worker.claim(2)
    outcomes = [Outcome(c, False, b"x") for c in done]
    worker.ledger.ask(outcomes, limit=1, known=[running.task_id])
    worker.finish([running])
    assert worker.channel.n_breaks == 1
    claimed = worker.ledger.answer(outcomes)
    assert [claim.task_id for claim in claimed.claims] == ids[2:3]
    worker.finish(claimed.claims)
    worker.finish(worker.claim(1))
    assert sorted(task for task, _ in client.drain()) == ids


def test_release(rig: Rig, proxy: Proxy, cut: Callable[..., None]) -> None:
    """What is given back is queued once."""
    client, worker = rig.client(), rig.worker(url=proxy.url)
    ids = client.push(3)
    claims = worker.claim(3)
    cut()
    worker.ledger.release(claims[1:])
    assert rig.check_places(ids) == {ids[0]: "w1", ids[1]: "queued", ids[2]: "queued"}
    assert rig.queue() == ids[1:]


def test_cancel(rig: Rig, proxy: Proxy, cut: Callable[..., None]) -> None:
    """The reply may say -1; the inbox says what has become of the task, once."""
    client, worker = rig.client(url=proxy.url), rig.worker()
    running, queued = client.push(2)
    claims = worker.claim()
    cut()
    replies = client.uplink.cancel([running, queued])
    assert replies in ([0, 1], [0, -1])
    assert client.drain() == [(queued, b"C")]
    worker.finish(claims)
    assert client.drain() == [(running, b"Fresult")]


def test_receive(rig: Rig, proxy: Proxy, cut: Callable[..., None]) -> None:
    """Trimming and reading again: each outcome is read exactly once, none is trimmed unread."""
    client, worker = rig.client(url=proxy.url), rig.worker()
    read: list[str] = []
    ids: list[str] = []
    for n in (3, 2, 4):
        ids += client.push(n)
        worker.finish(worker.claim(n))
        cut(n_replies=2)
        read += [task for task, _ in client.receive()]
    assert client.receive() == []
    assert read == ids
    assert rig.inbox() == []


@pytest.mark.usefixtures("long_waits")
def test_receive_behind_the_bell(rig: Rig, proxy: Proxy) -> None:
    """An outcome that ends the wait, and whose reply is lost, is read at the next try."""
    client, worker = rig.client(url=proxy.url), rig.worker()
    ids = client.push(1)
    claims = worker.claim()
    proxy.lose_reply(n_replies=2)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.receive, wait=True)
        while not rig.redis.info("clients")["blocked_clients"]:
            assert not waiting.done()
        assert proxy.n_cuts == 0
        worker.finish(claims)
        assert [task for task, _ in waiting.result(timeout=30)] == ids
    assert proxy.n_cuts == 1


def test_open_and_retire(rig: Rig, proxy: Proxy, cut: Callable[..., None]) -> None:
    """A network is made once, and its last client takes all of it along."""
    client = rig.client(url=proxy.url, is_open=False)
    cut()
    assert client.open().creator == "c1"
    client.push(3)
    cut()
    client.leave()
    assert rig.dump() == {}


def test_agent(rig: Rig, proxy: Proxy, cut: Callable[..., None]) -> None:
    """A lost worker is charged once; signs of life, break and leaving do no harm twice."""
    client, agent, worker = rig.client(), rig.agent(url=proxy.url), rig.worker()
    cut(n_replies=2)
    agent.ledger.beat(60_000)
    [task] = client.push(max_retries=5)
    worker.claim()
    cut()
    agent.lose(worker, guilty=task)
    assert rig.dump()[f"task:{task}"]["losses"] == "1"
    assert rig.queue() == [task]
    cut()
    agent.ledger.break_network("epoch-1", "text")
    assert client.drain() == [("", b"Btext")]
    cut(n_replies=2)
    agent.ledger.leave()
    assert not [key for key in rig.dump() if "agent" in key or "heartbeat" in key]


def _next_claims(ledger: WorkerLedger, outcomes: list[Outcome], running: list[Claim]) -> list[Claim]:
    """What the worker holds after it has handed in these outcomes: what runs is among it, and not given again."""
    if not running:
        return ledger.exchange(outcomes, limit=8, wait=False).claims
    ledger.ask(outcomes, limit=8, known=[claim.task_id for claim in running])
    return running + ledger.answer(outcomes).claims


def test_a_long_story_on_a_bad_line(rig: Rig, proxy: Proxy) -> None:
    """Everybody's connection breaks again and again, at any byte: each task is delivered once."""
    n_tasks = 400
    clients = [rig.client("c1", url=proxy.url), rig.client("c2", url=proxy.url)]
    workers = [rig.worker(f"w{number}", url=proxy.url) for number in range(3)]
    stop = threading.Event()
    proxy.lose_by_chance(0.02)

    def work(number: int) -> None:
        worker = workers[number]
        outcomes: list[Outcome] = []
        running: list[Claim] = []
        while not stop.is_set():
            claims = _next_claims(worker.ledger, outcomes, running)
            if len(claims) > 4:
                worker.ledger.release(claims[4:])
                claims = claims[:4]
            running = [claims.pop()] if claims and random.random() < 0.5 else []
            outcomes = [Outcome(claim, False, claim.task_id.encode()) for claim in claims]

    def submit(number: int) -> list[str]:
        ids: list[str] = []
        while len(ids) < n_tasks:
            ids += clients[number].push(min(random.randint(1, 5), n_tasks - len(ids)))
        return ids

    def listen(number: int) -> list[tuple[str, bytes]]:
        pairs: list[tuple[str, bytes]] = []
        deadline = time.monotonic() + 60
        while len(pairs) < n_tasks and time.monotonic() < deadline:
            pairs += clients[number].receive()
        return pairs

    with ThreadPoolExecutor(7) as pool:
        working = [pool.submit(work, number) for number in range(3)]
        listening = [pool.submit(listen, number) for number in range(2)]
        try:
            ids = [future.result(timeout=60) for future in [pool.submit(submit, number) for number in range(2)]]
            got = [future.result(timeout=60) for future in listening]
        finally:
            stop.set()
            proxy.lose_by_chance(0)
        for future in working:
            future.result(timeout=60)
    for client, mine, pairs in zip(clients, ids, got, strict=True):
        assert client.drain() == []
        assert sorted(pairs) == sorted((task, b"F" + task.encode()) for task in mine)
    assert proxy.n_cuts > 20


# ------------------------------------------------------------------------------------------- the server is away


def test_a_server_that_comes_back(rig: Rig, proxy: Proxy) -> None:
    """A call waits for it, and is done then."""
    client = rig.client(url=proxy.url)
    proxy.go_away()
    with ThreadPoolExecutor(1) as pool:
        pushing = pool.submit(client.push, 2)
        with pytest.raises(TimeoutError):
            pushing.result(timeout=0.2)
        proxy.come_back()
        ids = pushing.result(timeout=30)
    assert rig.queue() == ids


def test_a_server_that_stays_away(rig: Rig, proxy: Proxy) -> None:
    """After the grace the caller is told, in words; when the server is back later, the same channel works."""
    channel = rig.channel(proxy.url, reconnect_timeout_s=0.2)
    proxy.go_away()
    started_at = time.monotonic()
    with pytest.raises(NetworkLostError, match=r"did not answer for \d\.\d s \(reconnect_timeout is 0\.2 s\)"):
        channel.call(*rig.client().up_channel.sent[0])
    assert 0.2 <= time.monotonic() - started_at < 10
    proxy.come_back()
    assert channel.call(*rig.client().up_channel.sent[0])


def test_a_record_that_ran_out_meanwhile(rig: Rig, proxy: Proxy) -> None:
    """A client that was away for longer than its lease is told so when it is back."""
    client = rig.client(url=proxy.url)
    client.push()
    proxy.go_away()
    rig.redis.delete(rig.keys.client("c1"))
    proxy.come_back()
    with pytest.raises(NetworkGone):
        client.push()
    with pytest.raises(NetworkGone):
        client.receive()
