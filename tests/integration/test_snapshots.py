"""Snapshots at the ledger: what is made of keys, and which keys are made of it, whatever happens meanwhile."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from rush_executor._ledger.blobs import LARGE_PAYLOAD
from rush_executor._ledger.connection import Channel
from rush_executor._ledger.snapshots import NetworkRestorer, check_sections, read_sections
from rush_executor._ledger.tasks import KeptTask, TaskLedger
from rush_executor._ledger.views import NetworkReader
from rush_executor._ledger.worker import Outcome, WorkerLedger
from rush_executor._protocol.records import Loss
from rush_executor._protocol.snapshots import BLOB, END, HEAD, ORDER, TASKS, Section
from rush_executor.errors import RushError, SnapshotError
from tests.integration.rig import Rig

LARGE = b"x" * LARGE_PAYLOAD
# What belongs to this life of the network, and not to its tasks.
OWN_KEYS = ("network", "ends", "idle_workers", "agent_ids", "agent_workers", "heartbeat")


class Twice(Channel):
    """A channel that loses each reply once: the command is sent again, after it has been carried out."""

    def call(self, *commands: bytes, muted: bytes = b"", **options: Any) -> list[Any]:
        super().call(*commands, muted=muted, **options)
        return super().call(*commands, muted=muted, **options)

    def call_each(self, commands: Iterable[bytes]) -> None:
        sent: list[bytes] = []
        for command in commands:
            sent.append(command)
            # One that comes before its turn is refused, and changes nothing.
            super().call_each(sent[-2:])


class Watched(Channel):
    """A channel that lets something happen before some command."""

    def __init__(self, rig: Rig, happens: Callable[[], object], *, before: bytes) -> None:
        super().__init__(_pool(rig), reconnect_timeout_s=10)
        self._happens: Callable[[], object] | None = happens
        self._before = before

    def call(self, *commands: bytes, muted: bytes = b"", **options: Any) -> list[Any]:
        if self._happens is not None and any(self._before in command for command in commands):
            happens, self._happens = self._happens, None
            happens()
        return super().call(*commands, muted=muted, **options)


def _pool(rig: Rig) -> Any:
    rig.channel()
    return rig._pools[rig.url]


@pytest.fixture
def ledger(rig: Rig) -> Iterator[TaskLedger]:
    ledger = TaskLedger(rig.channel(), rig.keys)
    yield ledger
    ledger.reset()


def join(rig: Rig, ledger: TaskLedger, worker_id: str) -> WorkerLedger:
    agent = rig.agent()
    agent.ledger.announce_worker(worker_id)
    worker = WorkerLedger(rig.channel(), rig.keys, worker_id, ledger.found(), keeps=True)
    worker.register(agent.id, "host", 4711)
    return worker


def read(rig: Rig) -> list[Section]:
    return list(read_sections(rig.channel(), rig.keys))


def restore(rig: Rig, sections: list[Section], channel: Channel | None = None) -> None:
    head = check_sections(sections, rig.keys.network_id)
    NetworkRestorer(channel or rig.channel(), rig.keys, head).restore(sections)


def kept(rig: Rig) -> dict[str, Any]:
    """All that is to be there again, key by key."""
    dump = {key: value for key, value in rig.dump().items() if key.partition(":")[0] not in OWN_KEYS}
    assert dump
    return dump


def fill(rig: Rig, ledger: TaskLedger) -> None:
    """Tasks of every kind, some by blobs; a worker that has left."""
    worker = join(rig, ledger, "w1")
    ledger.write_start("small", b"loop")
    ledger.write_start("large", LARGE)
    ledger.create("queued", [KeptTask(f"q{i}", b"xs", b"extra", max_retries=i, timeout_s=1.5) for i in range(1200)])
    ledger.create("queued", [KeptTask("urgent", LARGE, priority=4095), KeptTask("late", b"xs", priority=-4095)])
    ledger.create("finished", [KeptTask(f"done{i}", b"xs", outcome=b"ys") for i in range(700)], "elsewhere")
    ledger.create("failed", [KeptTask("bad", LARGE, outcome=LARGE), KeptTask("worse", b"", outcome=b"failure")])
    claims = worker.exchange([], limit=1, wait=False).claims
    worker.finish([Outcome(claims[0], False, LARGE, b"more")])
    claims = worker.exchange([], limit=1, wait=False).claims
    worker.finish([Outcome(claims[0], True, b"failure")])
    worker.close()


def leave(rig: Rig, worker_id: str) -> None:
    for agent in rig._agents.values():
        agent.ledger.lose_worker(Loss(worker_id, "host", 4711, 0, "left"), "", how="terminated")


@pytest.mark.parametrize("twice", [False, True])
def test_all_is_there_again(rig: Rig, ledger: TaskLedger, twice: bool) -> None:
    """Every key that says something of a task, byte by byte; also if each command is sent a second time."""
    fill(rig, ledger)
    leave(rig, "w1")
    before, order = kept(rig), rig.redis.zrange(rig.keys.queued_tasks, 0, -1, withscores=True)
    sections = read(rig)
    ledger.reset()
    restore(rig, sections, Twice(_pool(rig), reconnect_timeout_s=10) if twice else None)
    assert kept(rig) == before
    assert rig.redis.zrange(rig.keys.queued_tasks, 0, -1, withscores=True) == order
    assert [key for key in rig.redis.scan_iter() if rig.redis.ttl(key) >= 0] == []
    fields = {"creator", "epoch", "initializer", "kind", "sequence"}
    assert {field.decode() for field in rig.redis.hkeys(rig.keys.network)} == fields
    # What is queued from now on comes behind.
    ledger.found()
    ledger.create("queued", [KeptTask("new", b"xs")])
    assert [*(raw for raw, _ in order[:-1]), b"new", b"late"] == rig.redis.zrange(rig.keys.queued_tasks, 0, -1)


def test_what_was_running(rig: Rig, ledger: TaskLedger) -> None:
    """What was claimed goes back to its place and is not charged; what a worker had made for itself has failed."""
    worker = join(rig, ledger, "w1")
    ledger.create("queued", [KeptTask(f"q{i}", b"xs") for i in range(4)])
    ledger.create("running", [KeptTask("own", b"xs")], "w1")
    [claim] = worker.exchange([], limit=1, wait=False, known=["own"]).claims
    ledger.create("queued", [KeptTask("mine", b"xs", priority=5, worker_id="w1")])
    sections = read(rig)
    leave(rig, "w1")
    ledger.reset()
    restore(rig, sections)
    reader = NetworkReader(rig.channel(), rig.keys)
    assert reader.list_tasks(["queued", "running", "failed"])[1] == [["mine", "q0", "q1", "q2", "q3"], [], ["own"]]
    [q0, own] = reader.read(["q0", "own"])
    assert (q0.state, q0.worker_id, q0.started_at, q0.n_attempts) == ("queued", "", None, 0)
    assert rig.redis.hget(rig.keys.task("q0"), "losses") is None
    assert own.outcome[:1] == b"L"
    assert own.worker_id == "w1"
    assert b"stayed where the snapshot was taken" in own.outcome
    assert b"4711" in own.outcome
    [record] = reader.workers()
    assert (record.worker_id, record.state, record.host) == ("w1", "terminated", "host")
    # The worker from before is told that this is another network.
    other = join(rig, ledger, "w2")
    again = other.exchange([], limit=1, wait=False).claims[0]
    assert again.task_id == "mine"
    second = other.exchange([], limit=1, wait=False, known=["mine"]).claims[0]
    assert (second.task_id, second.attempt) == (claim.task_id, claim.attempt + 1)
    assert worker.finish([Outcome(claim, False, b"late")]) == [claim.task_id]
    worker.close()
    other.close()
    leave(rig, "w2")


def test_while_others_work(rig: Rig, ledger: TaskLedger) -> None:
    """Each task once, in a state of its own record; those that come meanwhile are left out; the order is kept."""
    worker = join(rig, ledger, "w1")
    ledger.create("queued", [KeptTask(f"q{i}", b"xs") for i in range(1500)])
    worker.finish([Outcome(c, False, b"ys") for c in worker.exchange([], limit=100, wait=False).claims])
    sections: list[Section] = []
    n_new = itertools.count()
    for section in read_sections(rig.channel(), rig.keys):
        sections.append(section)
        claims = worker.exchange([], limit=50, wait=False).claims
        worker.finish([Outcome(c, False, b"ys") for c in claims[::-1]])
        ledger.create("finished", [KeptTask(f"new{next(n_new)}", b"xs", outcome=b"ys")])
    leave(rig, "w1")
    worker.close()
    reader = NetworkReader(rig.channel(), rig.keys)
    order = reader.list_tasks(["finished"])[1][0]
    ledger.reset()
    restore(rig, sections)
    assert reader.all_tasks() == [f"q{i}" for i in range(1500)]
    _, (queued, finished, failed) = reader.list_tasks(["queued", "finished", "failed"])
    assert failed == []
    assert sorted(queued + finished) == sorted(reader.all_tasks())
    assert len(finished) > 100
    assert finished == [task for task in order if task in set(finished)]


def test_a_blob_that_goes_meanwhile(rig: Rig, ledger: TaskLedger) -> None:
    """The task was retried: then it is as it is now. Lost otherwise, it is told."""
    ledger.found()
    ledger.create("failed", [KeptTask("bad", b"xs", outcome=LARGE)])
    channel = Watched(rig, lambda: ledger.retry([("bad", b"")], ignore_max_retries=True), before=b"HLEN")
    sections = list(read_sections(channel, rig.keys))
    assert check_sections(sections, rig.keys.network_id).counts.states["queued"] == 1
    ledger.create("failed", [KeptTask("lost", LARGE, outcome=b"failure")])
    rig.redis.delete(*rig.redis.keys("*blob*"))
    with pytest.raises(RushError, match="has lost a part of task lost"):
        read(rig)


def test_a_reset_meanwhile(rig: Rig, ledger: TaskLedger) -> None:
    """Half a network is no snapshot."""
    ledger.found()
    ledger.create("queued", [KeptTask(f"q{i}", b"xs") for i in range(10)])

    def reset() -> None:
        ledger.reset()
        ledger.found()
        ledger.create("queued", [KeptTask(f"q{i}", b"xs") for i in range(10)])

    def clear() -> None:
        ledger.clear()
        ledger.create("queued", [KeptTask(f"r{i}", b"xs") for i in range(10)])

    for happens in (reset, clear, ledger.reset):
        channel = Watched(rig, happens, before=b"start_args")
        with pytest.raises(RushError, match="was reset while a snapshot"):
            list(read_sections(channel, rig.keys))
        reset()


def test_networks_that_are_none(rig: Rig, ledger: TaskLedger) -> None:
    """No network, an executor's, one that is being restored, and one that is there."""
    with pytest.raises(RushError, match="there is no network 'rig'"):
        read(rig)
    client = rig.client()
    with pytest.raises(RushError, match="is a RushExecutor's"):
        read(rig)
    client.push()
    sections = [
        Section(HEAD, [b'{"network": "rig", "taken_at": 1.5, "sequence": 0, "on_idle": ""}']),
        Section(END, [b'{"tasks": 0, "queued": 0, "running": 0, "finished": 0, "failed": 0}']),
    ]
    before = rig.dump()
    with pytest.raises(RushError, match="is there already"):
        restore(rig, sections)
    assert rig.dump() == before


def test_before_it_is_complete(rig: Rig, ledger: TaskLedger) -> None:
    """Nobody finds it: agents wait, others are told, executors and other restores are kept off."""
    ledger.found()
    ledger.create("queued", [KeptTask("q", b"xs")])
    sections = read(rig)
    ledger.reset()
    agent = rig.agent()
    looked: list[str] = []

    def on_the_way() -> Iterator[Section]:
        for section in sections:
            yield section
            assert agent.ledger.network() is None
            assert NetworkReader(rig.channel(), rig.keys).kind() is None
            with pytest.raises(RushError, match="is being restored"):
                ledger.found()
            with pytest.raises(RushError, match="is being restored"):
                restore(rig, sections)
            with pytest.raises(RushError, match="is being restored"):
                read(rig)
            with pytest.raises(Exception, match="WRONGKIND"):
                rig.client("executor")
            looked.append(section.kind.decode())

    restorer = NetworkRestorer(rig.channel(), rig.keys, check_sections(sections, "rig"))
    restorer.restore(on_the_way())
    assert len(looked) == len(sections)
    network = agent.ledger.network()
    assert network is not None
    assert network.keeps


@pytest.mark.parametrize("error", [KeyboardInterrupt, SnapshotError])
def test_broken_off(rig: Rig, ledger: TaskLedger, error: type[BaseException]) -> None:
    """Nothing is left, wherever it happens."""
    fill(rig, ledger)
    leave(rig, "w1")
    sections = read(rig)
    ledger.reset()
    rig.leave()
    head = check_sections(sections, "rig")
    assert {BLOB, TASKS, ORDER} < {section.kind for section in sections}

    def cut(n: int) -> Iterator[Section]:
        yield from sections[:n]
        raise error

    for n in range(len(sections)):
        with pytest.raises(error):
            NetworkRestorer(rig.channel(), rig.keys, head).restore(cut(n))
        assert rig.dump() == {}
    with pytest.raises(RushError, match="not all tasks were restored"):
        NetworkRestorer(rig.channel(), rig.keys, head).restore([s for s in sections if s.kind != ORDER])
    assert rig.dump() == {}


def test_reset_on_the_way(rig: Rig, ledger: TaskLedger) -> None:
    """Whoever resets a network that is being restored ends that; the next one has the name for itself."""
    fill(rig, ledger)
    leave(rig, "w1")
    sections = read(rig)
    ledger.reset()

    def on_the_way() -> Iterator[Section]:
        for section in sections:
            yield section
            if section.kind == TASKS:
                ledger.reset()
                ledger.found()

    with pytest.raises(RushError, match="was reset while it was being restored"):
        NetworkRestorer(rig.channel(), rig.keys, check_sections(sections, "rig")).restore(on_the_way())
    assert ledger.found()


def test_another_network(rig: Rig, ledger: TaskLedger) -> None:
    """Its name is told; and a snapshot that lacks tasks is none."""
    ledger.found()
    ledger.create("queued", [KeptTask("q", b"xs")])
    sections = read(rig)
    with pytest.raises(SnapshotError, match="a snapshot of network 'rig', and not of 'other'"):
        check_sections(sections, "other")
    with pytest.raises(SnapshotError, match="tasks are missing"):
        check_sections([s for s in sections if s.kind != TASKS], "rig")


def test_sections_are_small(rig: Rig, ledger: TaskLedger) -> None:
    """Whatever tasks are: a megabyte and one record, or a piece of a blob."""
    ledger.found()
    ledger.create("queued", [KeptTask(f"q{i}", b"x" * 200_000) for i in range(30)])
    ledger.create("queued", [KeptTask("large", b"x" * 40_000_000)])
    sizes = dict.fromkeys((BLOB, TASKS), 0)
    for kind, parts in read_sections(rig.channel(), rig.keys):
        if kind in sizes:
            sizes[kind] = max(sizes[kind], sum(map(len, parts)))
    assert sizes[TASKS] < 1_300_000
    assert sizes[BLOB] < 4_200_000
