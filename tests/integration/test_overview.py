"""What those see who watch a network of either kind from outside, and that watching changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rush_executor._ledger.facts import read_facts
from rush_executor._ledger.overview import Overview, OverviewReader, find_networks
from rush_executor._ledger.tasks import KeptTask, TaskLedger
from rush_executor._ledger.views import NetworkReader
from rush_executor._ledger.worker import Outcome, WorkerLedger
from rush_executor._payload.rows import XS, RowCodec
from rush_executor._protocol.keys import Keys
from rush_executor._protocol.records import KILLED_TAG, Claim, Loss
from rush_executor._protocol.states import KILLED
from rush_executor._view.lookout import Lookout
from tests.integration.rig import Rig


@pytest.fixture
def reader(rig: Rig) -> OverviewReader:
    return OverviewReader(rig.channel(), rig.keys)


@pytest.fixture
def kept(rig: Rig) -> Iterator[TaskLedger]:
    """A network that keeps its tasks."""
    ledger = TaskLedger(rig.channel(), rig.keys)
    ledger.found()
    yield ledger
    ledger.reset()


def join(rig: Rig, ledger: TaskLedger, worker_id: str) -> WorkerLedger:
    agent = rig.agent()
    agent.ledger.announce_worker(worker_id)
    worker = WorkerLedger(rig.channel(), rig.keys, worker_id, ledger.found(), keeps=True)
    worker.register(agent.id, "host", 4711)
    return worker


def claim(worker: WorkerLedger) -> Claim:
    return worker.exchange([], limit=1, wait=False).claims[0]


def counts(found: Overview) -> tuple[int, int, int, int]:
    return found.n_queued, found.n_running, found.n_ended, found.n_failed


def test_no_network(rig: Rig, reader: OverviewReader) -> None:
    """Is none, not an empty one; nothing is made by looking."""
    found = reader.look()
    assert (found.epoch, found.keeps, found.workers, *counts(found)) == ("", False, [], 0, 0, 0, 0)
    assert reader.peek(["c1-1"]) == reader.peek([]) == []
    assert [reader.some_tasks(state, 9) for state in ("queued", "running", "failed", "finished")] == [[]] * 4
    assert find_networks(rig.channel()) == []
    assert rig.dump() == {}


def test_an_executors_network(rig: Rig, reader: OverviewReader) -> None:
    """Counts what has ended, and of that what has failed, though nothing is left of it."""
    client, worker = rig.client(), rig.worker()
    rig.agent().ledger.beat(60_000)
    ids = client.push(12)
    claims = worker.claim(5)
    worker.finish(claims[:2])
    worker.finish(claims[2:3], is_failure=True)
    client.uplink.cancel(ids[11:])
    before = rig.dump()
    found = reader.look()
    assert counts(found) == (6, 2, 4, 1)
    assert (found.epoch, found.keeps, found.is_durable, found.n_clients, found.n_agents) == (
        "epoch-1",
        False,
        False,
        1,
        1,
    )
    assert abs(found.looked_at - rig.now()) < 60
    [look] = found.workers
    assert (look.worker_id, look.host, look.pid, look.is_silent) == (worker.id, "host", 4711, False)
    assert look.task_ids == ids[3:5]
    assert look.joined_at is not None
    assert 0 <= found.looked_at - look.joined_at < 60
    assert sorted(reader.some_tasks("running", 9)) == ids[3:5]
    assert reader.some_tasks("queued", 2) == ids[5:7]
    assert reader.some_tasks("failed", 2) == reader.some_tasks("finished", 2) == []
    running, queued = reader.peek([ids[3], "nothing", ids[5]])
    assert (running.state, running.worker_id, running.client_id, running.n_attempts) == ("running", worker.id, "c1", 1)
    assert running.started_at is not None
    assert 0 <= found.looked_at - running.started_at < 60
    assert (queued.state, queued.worker_id, queued.n_attempts, queued.started_at) == ("queued", "", 0, None)
    assert (queued.head, queued.size) == (b"call", 4)
    assert rig.dump() == before


def test_tasks_that_were_given_back(rig: Rig, reader: OverviewReader) -> None:
    """Do not run any more, whatever their records say of their last claim, which was no attempt."""
    client, worker = rig.client(), rig.worker()
    [task] = client.push()
    for _ in range(3):
        worker.ledger.release(worker.claim())
    [peek] = reader.peek([task])
    assert (peek.state, peek.worker_id, peek.started_at, peek.n_attempts) == ("queued", "", None, 0)
    assert counts(reader.look()) == (1, 0, 0, 0)
    worker.claim()
    assert [peek.n_attempts for peek in reader.peek([task])] == [1]


def test_attempts(rig: Rig, reader: OverviewReader, kept: TaskLedger) -> None:
    """All who look count how often a task was started, not what was claimed and given back."""
    kept.create("queued", [KeptTask("a", b"x", max_retries=3)])
    records = NetworkReader(rig.channel(), rig.keys)

    def attempts() -> int:
        [record], [peek] = records.read(["a"]), reader.peek(["a"])
        assert record.n_attempts == peek.n_attempts
        return peek.n_attempts

    assert attempts() == 0
    one, two, three = (join(rig, kept, name) for name in ("w1", "w2", "w3"))
    for _ in range(2):
        one.release([claim(one)])
        assert attempts() == 0
    assert claim(one).task_id == "a"
    assert attempts() == 1
    rig.agent().ledger.lose_worker(Loss("w1", "host", 4711, -9, "killed"), "a")
    assert attempts() == 1
    assert two.finish([Outcome(claim(two), True, b"failure")]) == []
    assert attempts() == 2
    assert kept.retry([("a", b"")], ignore_max_retries=False) == ["a"]
    assert attempts() == 2
    claim(two)
    assert attempts() == 3
    rig.agent().ledger.lose_worker(Loss("w2", "host", 4711, -9, "killed"), "a", KILLED_TAG, how=KILLED)
    assert (reader.peek(["a"])[0].state, attempts()) == ("failed", 3)
    # The third retry: the end of the worker was one attempt, not two.
    assert kept.retry([("a", b"")], ignore_max_retries=False) == ["a"]
    assert three.finish([Outcome(claim(three), False, b"result")]) == []
    assert (reader.peek(["a"])[0].state, attempts()) == ("finished", 4)
    for worker in (one, two, three):
        worker.close()


def test_a_lost_task_has_failed(rig: Rig, reader: OverviewReader) -> None:
    """One whose worker died on its last attempt counts as failed."""
    client, worker = rig.client(), rig.worker()
    [task] = client.push(max_retries=0)
    worker.claim()
    assert rig.agent().lose(worker, guilty=task) == (0, 1)
    assert counts(reader.look()) == (0, 0, 1, 1)


def test_failures_after_the_end(rig: Rig, reader: OverviewReader) -> None:
    """One that comes when the network is gone does not bring its record back."""
    client, worker = rig.client(), rig.worker()
    client.push()
    claims = worker.claim()
    rig.redis.delete(rig.keys.network)
    worker.finish(claims, is_failure=True)
    assert reader.look().epoch == ""
    assert not rig.redis.exists(rig.keys.network)


def test_a_silent_agent(rig: Rig, reader: OverviewReader) -> None:
    """Its workers are silent."""
    rig.client()
    rig.worker()
    assert [worker.is_silent for worker in reader.look().workers] == [True]
    rig.agent().ledger.beat(60_000)
    assert [worker.is_silent for worker in reader.look().workers] == [False]


def test_large_payloads_stay_where_they_are(rig: Rig, reader: OverviewReader) -> None:
    """However long it is, of a payload the beginning is read."""
    client = rig.client()
    [task] = client.send(client.tasks(1, payload=b"0123456789" * 20_000))
    [peek] = reader.peek([task])
    assert (peek.head, peek.size) == ((b"0123456789" * 205)[:2048], 200_000)


def test_a_network_that_keeps_its_tasks(rig: Rig, reader: OverviewReader, kept: TaskLedger) -> None:
    """All states; those that are queued for one worker count as queued; workers that have ended are counted."""
    one, two = join(rig, kept, "w1"), join(rig, kept, "w2")
    kept.create("queued", [KeptTask(name, name.encode()) for name in "abcd"])
    assert one.finish([Outcome(claim(one), False, b"ys")]) == []
    assert one.finish([Outcome(claim(one), True, b"failure")]) == []
    assert claim(two).task_id == "c"
    kept.create("queued", [KeptTask("e", b"e", worker_id="w1")])
    found = reader.look()
    assert counts(found) == (2, 1, 2, 1)
    assert (found.keeps, found.n_clients) == (True, 0)
    assert [(w.worker_id, w.task_ids, w.n_queued) for w in found.workers] == [("w1", [], 1), ("w2", ["c"], 0)]
    tasks = {state: reader.some_tasks(state, 9) for state in ("queued", "running", "failed", "finished")}
    assert tasks == {"queued": ["d", "e"], "running": ["c"], "failed": ["b"], "finished": ["a"]}
    [failed] = reader.peek(["b"])
    assert (failed.state, failed.worker_id, failed.outcome_tag, failed.client_id) == ("failed", "w1", b"E", "")
    assert None not in (failed.pushed_at, failed.started_at, failed.ended_at)
    rig.agent().ledger.lose_worker(Loss("w2", "host", 4711, -9, "killed"), "", how=KILLED)
    assert reader.look().n_workers_ended == {"terminated": 0, "killed": 1, "lost": 0}
    one.close()
    two.close()


def test_what_workers_run(rig: Rig, kept: TaskLedger) -> None:
    """Of a row the inputs are told, if it is whole, and sealed with the secret that is known here.

    What is of no builtin type is left out.
    """
    codec = RowCodec(rig.keys.network_id, b"secret")
    worker = join(rig, kept, "w1")
    rows = {
        "a": ({"x": 3, "name": "b, c"}, 7),
        "large": {"x": list(range(5000))},
        "object": {"x": Keys("n"), "y": [Keys]},
    }
    kept.create("queued", [KeptTask(name, codec.encode(XS, name, row)) for name, row in rows.items()])
    lookouts = [Lookout(rig.keys.network_id, OverviewReader(rig.channel(), rig.keys), s) for s in (b"secret", b"other")]
    assert [task.what for task in lookouts[0].tasks(["a", "large", "object"])] == [
        "x=3, name='b, c'",
        "",
        "x=..., y=[...]",
    ]
    assert [task.what for task in lookouts[1].tasks(["a"])] == [""]
    assert claim(worker).task_id == "a"
    [line] = lookouts[0].picture().workers
    assert line.task is not None
    assert (line.task.task_id, line.task.what, line.n_held) == ("a", "x=3, name='b, c'", 1)
    worker.close()


def test_many_failed_tasks(rig: Rig, reader: OverviewReader, kept: TaskLedger) -> None:
    """As many as are asked for, each once."""
    kept.create("failed", [KeptTask(f"t{i}", b"x", outcome=b"failure") for i in range(2000)])
    assert len(set(reader.some_tasks("failed", 700))) == 700
    assert set(reader.some_tasks("failed", 5000)) == {f"t{i}" for i in range(2000)}


def test_networks_of_a_server(rig: Rig) -> None:
    """Are found by their records, whatever else is there."""
    ledgers = [TaskLedger(rig.channel(), Keys(name)) for name in ("b*", "a", "c?d")]
    for ledger in ledgers:
        ledger.found()
        ledger.create("queued", [KeptTask("network", b"x")])
    rig.redis.set("another:network", "1")
    assert find_networks(rig.channel()) == ["a", "b*", "c?d"]
    rig.redis.delete("another:network")
    for ledger in ledgers:
        ledger.reset()


def test_facts_of_a_server(rig: Rig) -> None:
    """All that there is to know is told by a server of our own."""
    facts = read_facts(rig.channel())
    assert facts.info["redis_version"]
    assert facts.settings is not None
    assert facts.settings["maxmemory-policy"] == "noeviction"
    assert facts.refusal == ""
    assert len(facts.trips_s) == 50
    assert facts.trips_s == sorted(facts.trips_s)
    assert abs(facts.skew_s) <= facts.skew_error_s + 0.1


def test_facts_of_a_server_that_says_little(rig: Rig) -> None:
    """Where INFO, CONFIG and scripts are refused, that is what is told."""
    rig.redis.acl_setuser(
        "few", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-info", "-config", "-evalsha"]
    )
    try:
        channel = rig.channel()
        channel.call(b"*3\r\n$4\r\nAUTH\r\n$3\r\nfew\r\n$1\r\nx\r\n")
        facts = read_facts(channel)
    finally:
        rig.redis.acl_deluser("few")
    assert facts.info == {}
    assert facts.settings is None
    assert "evalsha" in facts.refusal
