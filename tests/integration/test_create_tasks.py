"""Who is woken in a network that keeps its tasks: for tasks that are made, and for what all are to know."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from rush_executor._ledger.tasks import KeptTask, TaskLedger
from rush_executor._ledger.worker import Outcome, WorkerLedger
from rush_executor._protocol.records import Claim
from tests.integration.rig import Rig

Join = Callable[[str], WorkerLedger]


@pytest.fixture
def ledger(rig: Rig) -> Iterator[TaskLedger]:
    ledger = TaskLedger(rig.channel(), rig.keys)
    yield ledger
    ledger.reset()


@pytest.fixture
def join(rig: Rig, ledger: TaskLedger) -> Join:
    """Makes a worker that waits."""

    def make(worker_id: str) -> WorkerLedger:
        agent = rig.agent()
        agent.ledger.announce_worker(worker_id)
        worker = WorkerLedger(rig.channel(), rig.keys, worker_id, ledger.found(), keeps=True)
        worker.register(agent.id, "host", 1)
        assert rest(worker) == []
        return worker

    return make


def rest(worker: WorkerLedger) -> list[Claim]:
    return worker.exchange([], limit=1, wait=False, rests=True).claims


def test_one_by_itself_is_handed_over(rig: Rig, ledger: TaskLedger, join: Join) -> None:
    """As by a claim: it needs none."""
    one = join("w1")
    ledger.create("queued", [KeptTask("t1", b"a\nb")])
    dump = rig.dump()
    assert dump["running_tasks:w1"] == {"t1"}
    assert (dump["task:t1"]["state"], dump["task:t1"]["attempt"], dump["all_tasks"]) == ("running", "1", ["t1"])
    assert dump.keys().isdisjoint({"queued_tasks", "idle_workers"})
    [claim] = one.exchange([], limit=1, wait=True, wait_s=0.01).claims
    assert claim == Claim("t1", 1, b"a\nb")


@pytest.mark.parametrize("options", [{"max_retries": 1}, {"timeout_s": 5.0}, {"priority": 1}, {"extra": b"more"}])
def test_one_with_options_is_not(rig: Rig, ledger: TaskLedger, join: Join, options: dict[str, float]) -> None:
    """Somebody is woken for it."""
    one = join("w1")
    ledger.create("queued", [KeptTask("t1", b"xs", **options)])  # type: ignore[arg-type]
    assert rig.dump()["worker_bell:w1"] == ["1"]
    assert rig.queue() == ["t1"]
    assert [claim.task_id for claim in rest(one)] == ["t1"]


def test_for_one_and_for_all(rig: Rig, ledger: TaskLedger, join: Join) -> None:
    """The worker for which there is a task of its own is not the one that is woken for that of all."""
    for name in ("w1", "w2"):
        join(name)
    ledger.create("queued", [KeptTask("all", b"xs"), KeptTask("own", b"xs", worker_id="w2")])
    dump = rig.dump()
    assert (dump["worker_bell:w1"], dump["worker_bell:w2"]) == (["1"], ["1"])


def test_woken_for_all_and_given_its_own(rig: Rig, ledger: TaskLedger, join: Join) -> None:
    """Then it wakes another, by its claim or by what it hands in."""
    one, two = join("w1"), join("w2")
    # The last one that began to wait is woken.
    ledger.create("queued", [KeptTask("t1", b"xs", max_retries=1)])
    assert rig.dump()["idle_workers"] == ["w1"]
    ledger.create("queued", [KeptTask("own", b"xs", worker_id="w2")])
    assert [claim.task_id for claim in rest(two)] == ["own"]
    assert rig.dump()["worker_bell:w1"] == ["1"]
    [claim] = rest(one)
    ledger.create("queued", [KeptTask("t2", b"xs", max_retries=1), KeptTask("mine", b"xs", worker_id="w1")])
    got = one.exchange([Outcome(claim, False, b"ys")], limit=1, wait=True, wait_s=0.01)
    assert [claim.task_id for claim in got.claims] == ["mine"]


def test_reset(rig: Rig, ledger: TaskLedger, join: Join) -> None:
    """Who waits learns that the network is gone, and leaves no key."""
    join("w1")
    pushed: list[bytes] = []
    call = ledger._channel.call

    def watch(*commands: bytes, muted: bytes = b"") -> object:
        pushed.extend(command for command in commands if b"RPUSH" in command)
        return call(*commands, muted=muted)

    ledger._channel.call = watch  # type: ignore[method-assign, assignment]
    ledger.reset()
    assert len(pushed) == 1
    assert b"worker_bell:w1" in pushed[0]
    assert not rig.dump()


def test_who_is_to_leave_an_empty_queue(rig: Rig, ledger: TaskLedger, join: Join) -> None:
    """Is woken, and does not find it out when its wait is over."""
    for name in ("w1", "w2"):
        join(name)
    ledger.set_terminate_on_idle(wanted=False)
    assert "worker_bell:w1" not in rig.dump()
    ledger.set_terminate_on_idle(wanted=True)
    dump = rig.dump()
    assert (dump["worker_bell:w1"], dump["worker_bell:w2"]) == (["1"], ["1"])
