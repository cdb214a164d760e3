"""lose_worker.lua: from running back to queued, or to failed; and the reaper, which finds the silent agents."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from rush_executor._ledger import agent as agent_module
from rush_executor._ledger.agent import CHARGE_ALL, Reaper
from rush_executor._ledger.blobs import LARGE_PAYLOAD
from rush_executor._ledger.connection import WorkerGone
from rush_executor._ledger.tasks import TaskLedger
from rush_executor._ledger.worker import Outcome
from rush_executor._protocol.records import LOST_TAG, Claim, Loss
from tests.integration.rig import LEASE_MS, Rig

Eventually = Callable[[Callable[[], object]], object]
# Longer than any test, so that only a test lets a heartbeat end.
_LONG_MS = 600_000


def test_rows_requeued(rig: Rig) -> None:
    """Running, worker lost -> queued: the guilty task is charged, the others are not; all stand where they stood."""
    client, worker = rig.client(), rig.worker()
    ids = client.push(5)
    before = rig.dump()
    worker.claim(3)
    assert rig.agent().lose(worker, guilty=ids[1]) == (3, 0)
    after = rig.dump()
    assert rig.queue() == ids, "at the front, in the old order"
    for task, losses in zip(ids[:3], "010", strict=True):
        assert after[f"task:{task}"] == {**before[f"task:{task}"], "attempt": "1", "batch": "3", "losses": losses}
    assert after.keys() == {
        *("network", "client_ids", "client:c1", "queued_tasks", "agent_ids"),
        *(f"task:{task}" for task in ids),
    }, "the worker is off all lists"


def test_row_failed(rig: Rig) -> None:
    """Running, worker lost, no attempt left -> failed: the inbox says how often, and how the last one ended."""
    client, worker = rig.client(), rig.worker()
    task, innocent = client.push(2, max_retries=0)
    worker.claim(2)
    loss = Loss("w1", "some host", 7, -11, "killed by signal 11, SIGSEGV")
    agent = rig.agent()
    assert agent.ledger.lose_worker(loss, guilty=task) == (1, 1)
    agent.workers.clear()
    [(told, outcome)] = client.drain()
    assert told == task
    assert outcome[:1] == LOST_TAG
    assert rig.dump()["network"]["failed"] == "1"
    n_losses, _, raw = outcome[1:].partition(b" ")
    assert (int(n_losses), Loss.from_bytes(raw)) == (1, loss)
    assert rig.queue() == [innocent]
    assert f"task:{task}" not in rig.dump()


@pytest.mark.parametrize("max_retries", [0, 1, 2, 5])
def test_attempts_are_counted(rig: Rig, max_retries: int) -> None:
    """A task runs on at most max_retries + 1 workers that die of it."""
    client, agent = rig.client(), rig.agent()
    [task] = client.push(max_retries=max_retries)
    for n in range(1, max_retries + 1):
        worker = rig.worker(f"w{n}")
        assert worker.claim() == [Claim(task, n, b"call", "")]
        assert agent.lose(worker, guilty=task) == (1, 0)
    worker = rig.worker("last")
    assert worker.claim()
    assert agent.lose(worker, guilty=task) == (0, 1)
    [(_, outcome)] = client.drain()
    assert outcome.startswith(f"L{max_retries + 1} ".encode())


def test_innocent_losses_are_free(rig: Rig) -> None:
    """A task that was claimed and not started goes back uncharged, as often as it takes."""
    client, agent = rig.client(), rig.agent()
    [task] = client.push(max_retries=0)
    for n in range(10):
        worker = rig.worker(f"w{n}")
        assert worker.claim()
        assert agent.lose(worker, guilty="c9-9") == (1, 0)
    assert rig.queue() == [task]
    assert rig.dump()[f"task:{task}"]["losses"] == "0"


def test_a_worker_that_held_nothing(rig: Rig) -> None:
    """It is taken off the lists, no more."""
    rig.client()
    before = rig.dump()
    worker = rig.worker()
    assert rig.agent().lose(worker) == (0, 0)
    assert rig.dump() == {**before, "agent_ids": {"a1"}}


def test_it_rings(rig: Rig) -> None:
    """What goes back may be the only work for workers that sleep; one that is lost is not rung for."""
    client, agent = rig.client(), rig.agent()
    workers = [rig.worker(f"w{n}") for n in range(4)]
    client.push(2)
    # Their share: one.
    workers[0].claim(2)
    workers[1].claim(2)
    workers[2].rest()
    workers[3].rest()
    agent.lose(workers[0])
    dump = rig.dump()
    assert dump["idle_workers"] == ["w2"]
    assert dump["worker_bell:w3"] == ["1"]
    agent.lose(workers[2])
    agent.lose(workers[3])
    assert not [key for key in rig.dump() if "bell" in key or key == "idle_workers"]


def test_one_that_waits(rig: Rig) -> None:
    """It is not among the idle any more: what is pushed next is not handed to the dead."""
    client, worker = rig.client(), rig.worker()
    worker.rest()
    rig.agent().lose(worker)
    assert "idle_workers" not in rig.dump()
    assert client.push() == rig.queue()


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("guilty", ["", CHARGE_ALL])
def test_one_that_was_woken(rig: Rig, guilty: str, n: int) -> None:
    """It was lost between the bell and its claim: others are woken for what it was to run, and nothing is charged.

    Not even where nobody can tell what it was at, as its whole machine is lost: what lies in the bell it has not begun.
    """
    client, agent = rig.client(), rig.agent()
    one = rig.worker("w1")
    one.rest()
    ids = client.push(n, max_retries=0)
    assert rig.dump().keys() & {"worker_bell:w1", "idle_workers"} == {"worker_bell:w1"}
    # Nothing lies in the queue of one that was handed to it.
    assert len(rig.queue()) == (n if n > 1 else 0)
    two = rig.worker("w2")
    if n == 1:
        two.rest()
    else:
        rig.redis.zadd(rig.keys.idle_workers, {"w2": 1e12})
    assert agent.lose(one, guilty) == (2 - n, 0)
    dump = rig.dump()
    assert dump["worker_bell:w2"] == ["1"]
    assert "worker_bell:w1" not in dump
    assert rig.queue() == ids
    assert {dump[f"task:{task}"].get("losses", "0") for task in ids} == {"0"}


def test_several_in_one_token(rig: Rig) -> None:
    """Of what was given to it along with its last outcomes nothing was begun, whatever the payloads hold."""
    client, worker = rig.client(), rig.worker()
    client.push(max_retries=0)
    [last] = worker.claim()
    given, begun = client.push(3, max_retries=0), "c1-9"
    rig.redis.hset(rig.keys.task(given[0]), "payload", f"a\n{begun}\t1\t\t0\t4\ncall")
    worker.channel.call(worker.ledger._finish([Outcome(last, False, b"F")], 10))
    assert sorted(rig.redis.smembers(rig.keys.running_tasks("w1"))) == [task.encode() for task in given]
    # Had it begun one beside them, that would be charged.
    rig.redis.sadd(rig.keys.running_tasks("w1"), begun)
    rig.redis.hset(rig.keys.task(begun), mapping={"worker": "w1", "client": "c1", "max_retries": "0", "payload": "x"})
    assert rig.agent().lose(worker, CHARGE_ALL) == (3, 1)
    assert rig.queue() == given


def test_a_loss_that_is_told_twice(rig: Rig) -> None:
    """Wakes nobody once more, though what was queued then still is."""
    client, agent, worker = rig.client(), rig.agent(), rig.worker("w1")
    client.push()
    worker.claim()
    for name in ("w2", "w3"):
        rig.worker(name).rest()
    agent.lose(worker)
    before = rig.dump()
    assert len(before["idle_workers"]) == len(rig.queue()) == 1
    rig.send_again(agent.channel.sent[-1])
    assert rig.dump() == before


def test_loser(rig: Rig) -> None:
    """The worker that was taken for lost is refused from then on, whatever it asks."""
    client, worker = rig.client(), rig.worker()
    [task] = client.push()
    claims = worker.claim()
    rig.agent().lose(worker, guilty=task)
    before = rig.dump()
    assert worker.finish(claims) == [task]
    assert worker.ledger.release(claims) == 0
    with pytest.raises(WorkerGone):
        worker.claim()
    assert rig.dump() == before


def test_sent_twice(rig: Rig) -> None:
    """At once; after another worker has claimed the tasks; after they were delivered."""
    client, worker, other = rig.client(), rig.worker(), rig.worker("w2", agent_id="a2")
    a, b = client.push(2, max_retries=0)
    worker.claim(1)
    worker.claim(1)
    assert rig.agent().lose(worker, guilty=a) == (0, 1)
    [packets] = rig.agent().channel.sent[-1:]
    for step in (lambda: None, other.claim, lambda: other.finish(other.claim()), client.drain):
        step()
        before = rig.dump()
        assert rig.send_again(packets) == [[[0, 0, 0]]]
        assert rig.dump() == before
    assert b not in rig.queue()


def test_its_blob_goes_with_a_failed_task(rig: Rig) -> None:
    """And stays with one that is queued again."""
    client, worker = rig.client(), rig.worker()
    for blob_id, max_retries in (("b1", 0), ("b2", 1)):
        client.send([t._replace(payload=b"x", blob_id=blob_id) for t in client.tasks(1, max_retries=max_retries)])
    reaper = rig.reaper()
    worker.claim(2)
    rig.agent().ledger.beat(_LONG_MS)
    rig.redis.delete(rig.keys.heartbeat("a1"))
    assert [reaper.look(), reaper.look()] == [[], ["a1"]]
    rig.agent().workers.clear()
    assert [key for key in rig.dump() if key.startswith("blob")] == ["blob:b2"]
    assert rig.ttl_ms(rig.keys.blob("b2")) == -1


def test_tasks_of_a_dead_client(rig: Rig) -> None:
    """What nobody waits for does not go back: after the last client has left, nobody would ever take it away."""
    client, worker = rig.client(), rig.worker()
    client.push(2)
    client.send([task._replace(payload=b"large", blob_id="b1") for task in client.tasks(1)])
    worker.claim(3)
    client.leave()
    rig.forget(client)
    rig.agent().lose(worker)
    rig.leave()
    assert rig.dump() == {}


# --------------------------------------------------------------------------------------------------- the reaper


def test_reaper_needs_two_looks(rig: Rig) -> None:
    """One look that misses a heartbeat is no death: after a stall of the server all have expired together."""
    client, agent, worker, reaper = rig.client(), rig.agent(), rig.worker(), rig.reaper()
    [task] = client.push()
    worker.claim()
    agent.ledger.beat(_LONG_MS)
    assert reaper.look() == []
    rig.redis.delete(rig.keys.heartbeat("a1"))
    before = rig.dump()
    assert reaper.look() == []
    assert rig.dump() == before, "the first look only suspects"
    agent.ledger.beat(_LONG_MS)
    assert reaper.look() == []
    rig.redis.delete(rig.keys.heartbeat("a1"))
    assert reaper.look() == [], "a sign of life has cleared the suspicion"
    assert reaper.look() == ["a1"]
    assert rig.queue() == [task]
    assert not [key for key in rig.dump() if "agent" in key or "worker" in key]
    assert reaper.look() == []
    agent.workers.clear()


def test_reaper_doubts(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two looks close together are as one: whoever was cut off with all the others may need a moment longer.

    Who has not looked for a while was cut off, too, and waits until everybody must have come back.
    """
    now = [1000.0]
    monkeypatch.setattr(agent_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    reaper = Reaper(rig.channel(), rig.keys, doubt_s=2.0, recovery_s=60.0)
    rig.agent().ledger.beat(_LONG_MS)
    assert reaper.look() == []
    rig.redis.delete(rig.keys.heartbeat("a1"))

    def look(at: float) -> list[str]:
        now[0] = at
        return reaper.look()

    assert [look(at) for at in (1001.0, 1001.001, 1002.9, 1003.1)] == [[], [], [], ["a1"]]
    rig.agent().ledger.beat(_LONG_MS)
    assert reaper.look() == []
    rig.redis.delete(rig.keys.heartbeat("a1"))
    assert [look(at) for at in (1010.0, 1013.0, *range(1018, 1069, 5), 1069.9)] == [[]] * 14
    assert look(1070.0) == ["a1"]


def test_reaper_charges_all(rig: Rig) -> None:
    """Nobody can tell which task a lost machine was running, so all that it held are charged."""
    client, agent, worker, reaper = rig.client(), rig.agent(), rig.worker(), rig.reaper()
    ids = client.push(2, max_retries=0) + client.push(1, max_retries=1)
    worker.claim(3)
    agent.ledger.beat(_LONG_MS)
    rig.redis.delete(rig.keys.heartbeat("a1"))
    assert [reaper.look(), reaper.look()] == [[], ["a1"]]
    outcomes = dict(client.drain())
    assert outcomes.keys() == set(ids[:2])
    loss = json.loads(outcomes[ids[0]].partition(b" ")[2])
    assert (loss["worker_id"], loss["host"], loss["pid"], loss["exitcode"]) == ("w1", "host", 4711, None)
    assert rig.queue() == ids[2:]
    agent.workers.clear()


def test_reaper_reaps_only_the_dead(rig: Rig) -> None:
    """A living agent beside a dead one keeps its workers and what they run."""
    client, reaper = rig.client(), rig.reaper()
    for name in ("a1", "a2", "a3"):
        rig.agent(name).ledger.beat(_LONG_MS)
    workers = [rig.worker("w1", agent_id="a1"), rig.worker("w2", agent_id="a2"), rig.worker("w3", agent_id="a3")]
    ids = client.push(3)
    for worker in workers:
        worker.claim()
    rig.redis.delete(rig.keys.heartbeat("a1"), rig.keys.heartbeat("a3"))
    assert [reaper.look(), reaper.look(), reaper.look()] == [[], ["a1", "a3"], []]
    assert rig.check_places(ids) == {ids[0]: "queued", ids[1]: "w2", ids[2]: "queued"}
    assert rig.dump()["agent_ids"] == {"a2"}
    assert rig.dump()["worker_ids"] == {"w2"}
    for name in ("a1", "a3"):
        rig.agent(name).workers.clear()


def test_reaper_leaves_an_agent_that_comes_back_in_between(rig: Rig) -> None:
    """The script asks for the heartbeat once more: an agent that is alive again keeps what it has."""
    client, agent, worker, reaper = rig.client(), rig.agent(), rig.worker(), rig.reaper()
    [task] = client.push()
    worker.claim()
    agent.ledger.beat(_LONG_MS)
    rig.redis.delete(rig.keys.heartbeat("a1"))
    reaper.look()
    channel = reaper._channel
    real = channel.call

    def call(*commands: bytes) -> list[object]:
        if any(rig.keys.agent_workers("a1").encode() in command for command in commands):
            channel.call = real  # type: ignore[method-assign]
            agent.ledger.beat(_LONG_MS)
        return real(*commands)

    channel.call = call  # type: ignore[method-assign]
    assert reaper.look() == []
    assert rig.check_places([task]) == {task: "w1"}
    assert rig.dump()["agent_ids"] == {"a1"}
    assert worker.finish(worker.claim()) == []


def test_reaper_never_loses_sight_of_a_living_agent(rig: Rig) -> None:
    """An agent that gives a sign of life while it is being reaped stays on the list: if it dies, it is reaped then.

    And so does one of which a worker has registered meanwhile: somebody must look after what that worker holds.
    """
    agent, reaper = rig.agent(), rig.reaper()
    client = rig.client()

    def interrupt(what: Callable[[], object]) -> None:
        """Does something right after the reaper has put right the last worker that it knows of."""
        channel = reaper._channel
        real = channel.call

        def call(*commands: bytes) -> list[object]:
            replies = real(*commands)
            if any(rig.keys.agent_workers("a1").encode() in command for command in commands):
                channel.call = real  # type: ignore[method-assign]
                what()
            return replies

        channel.call = call  # type: ignore[method-assign]

    agent.ledger.beat(_LONG_MS)
    rig.redis.delete(rig.keys.heartbeat("a1"))
    reaper.look()
    interrupt(lambda: agent.ledger.beat(_LONG_MS))
    reaper.look()
    assert rig.dump()["agent_ids"] == {"a1"}
    rig.redis.delete(rig.keys.heartbeat("a1"))
    reaper.look()
    interrupt(lambda: rig.worker("late"))
    reaper.look()
    [task] = client.push()
    assert [claim.task_id for w in agent.workers for claim in w.claim()] == [task]
    reaper.look()
    reaper.look()
    assert rig.check_places([task]) == {task: "queued"}
    agent.workers.clear()
    assert not [key for key in rig.dump() if "agent" in key or "worker" in key]


def test_reaper_finds_a_worker_whose_agent_had_been_reaped_before(rig: Rig) -> None:
    """An agent that was taken for dead and starts another worker is on the list again, and so is that worker."""
    client, agent, reaper = rig.client(), rig.agent(), rig.reaper()
    agent.ledger.beat(_LONG_MS)
    rig.redis.delete(rig.keys.heartbeat("a1"))
    assert [reaper.look(), reaper.look()] == [[], ["a1"]]
    worker = rig.worker()
    [task] = client.push()
    worker.claim()
    assert [reaper.look(), reaper.look()] == [[], ["a1"]]
    assert rig.check_places([task]) == {task: "queued"}
    agent.workers.clear()


def test_an_agent_of_ones_own_that_is_missed(rig: Rig) -> None:
    """Only one that was there, and was taken for dead by whomever; not when it is back, nor before it could be."""
    agent, reaper, patient = rig.agent(), rig.reaper(), Reaper(rig.channel(), rig.keys, doubt_s=1000.0)

    def misses(who: Reaper) -> bool:
        who.look()
        return who.misses("a1")

    assert [misses(reaper), misses(patient)] == [False, False]
    agent.ledger.beat(_LONG_MS)
    assert [misses(reaper), misses(patient)] == [False, False]
    rig.redis.delete(rig.keys.heartbeat("a1"))
    assert [misses(reaper), misses(reaper)] == [False, True]
    assert [misses(patient), misses(patient)] == [False, False]
    agent.ledger.beat(_LONG_MS)
    assert [misses(reaper), misses(patient)] == [False, False]


def test_burying_an_agent(rig: Rig) -> None:
    """The parent of an agent knows that it has ended: no heartbeat is waited for, and twice does no harm."""
    client, agent, worker, reaper = rig.client(), rig.agent(), rig.worker(), rig.reaper()
    once, again = client.push(1, max_retries=0) + client.push(1)
    worker.claim(2)
    agent.ledger.beat(_LONG_MS)
    for _ in range(2):
        reaper.bury("a1")
        assert rig.queue() == [again]
        assert [task for task, _ in rig.inbox()] == [once]
        assert not [key for key in rig.dump() if "agent" in key or "worker" in key or "heartbeat" in key]
    reaper.bury("no-such-agent")
    agent.workers.clear()


def test_two_reapers(rig: Rig) -> None:
    """Clients and agents all look: what one has put right the other leaves alone, and charges nobody twice."""
    client, agent, worker = rig.client(), rig.agent(), rig.worker()
    reapers = [rig.reaper(), rig.reaper()]
    [task] = client.push(max_retries=1)
    worker.claim()
    agent.ledger.beat(_LONG_MS)
    rig.redis.delete(rig.keys.heartbeat("a1"))
    for reaper in reapers:
        reaper.look()
    for reaper in reapers:
        reaper.look()
    assert rig.dump()[f"task:{task}"]["losses"] == "1"
    agent.workers.clear()


def test_a_client_that_is_no_more(rig: Rig) -> None:
    """What a client has left is deleted when its lease is over, also if nobody opens the network again."""
    client, agent, reaper = rig.client(), rig.agent(), rig.reaper()
    agent.ledger.beat(_LONG_MS)
    client.push(600)
    reaper.look()
    assert len(rig.queue()) == 600
    rig.redis.delete(rig.keys.client("c1"), rig.keys.inbox("c1"))
    reaper.look()
    assert set(rig.dump()) == {"agent_ids", "heartbeat:a1"}
    rig.forget(client)


def test_a_client_that_is_no_more_beside_one_that_is(rig: Rig) -> None:
    """Nothing of the others is touched."""
    dead, client, reaper = rig.client("c1"), rig.client("c2"), rig.reaper()
    tasks = client.push(3)
    rig.redis.delete(rig.keys.client("c1"), rig.keys.inbox("c1"))
    reaper.look()
    rig.forget(dead)
    assert rig.dump()["client_ids"] == {"c2"}
    assert [claim.task_id for claim in rig.worker().claim(3)] == tasks


def test_a_heartbeat_expires(rig: Rig, eventually: Eventually) -> None:
    """It is the server's clock that ends a heartbeat, and another beat that prolongs it."""
    agent, reaper = rig.agent(), rig.reaper()
    agent.ledger.beat(_LONG_MS)
    agent.ledger.beat(30)
    assert rig.dump()["agent_ids"] == {"a1"}
    eventually(lambda: not rig.redis.exists(rig.keys.heartbeat("a1")))
    agent.ledger.beat(_LONG_MS)
    assert 0 < rig.ttl_ms(rig.keys.heartbeat("a1")) <= _LONG_MS
    assert [reaper.look(), reaper.look()] == [[], []]


def test_a_lost_outcome_lives_as_long_as_its_client(rig: Rig) -> None:
    """An inbox that the ledger itself writes has a TTL too."""
    client, worker = rig.client(), rig.worker()
    [task] = client.push(max_retries=0)
    worker.claim()
    rig.agent().lose(worker, guilty=task)
    assert 0 < rig.ttl_ms(rig.keys.inbox("c1")) <= LEASE_MS


def test_arguments_of_a_call_that_a_durable_network_keeps(rig: Rig) -> None:
    """A call that has failed with its worker is kept without its arguments, as one that has ended by itself."""
    client = rig.client(is_open=False)
    epoch = client.uplink.open_network("epoch-2", b"", durable=True).epoch
    worker = rig.worker(epoch=epoch)
    large = b"x" * LARGE_PAYLOAD
    [task] = client.send(client.tasks(1, max_retries=0, payload=large, blob_id="b1"))
    worker.claim(1)
    assert "blob:b1" in rig.dump()
    assert rig.agent().lose(worker, guilty=task) == (0, 1)
    record = rig.dump()[f"task:{task}"]
    assert record["state"] == "failed"
    assert not {"payload", "blob"} & record.keys()
    assert "blob:b1" not in rig.dump()
    client.leave()
    rig.leave()
    TaskLedger(rig.channel(), rig.keys).reset()
