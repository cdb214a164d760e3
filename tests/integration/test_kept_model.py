"""The ledger of a network that keeps its tasks, against a model of it.

The model is a queue for all, one for each worker, what each worker holds, and the order of ends, in plain Python. After
every step the server must hold exactly the same; any script may be sent again at any later time, and changes nothing.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule, run_state_machine_as_test

from rush_executor._ledger.agent import AgentLedger
from rush_executor._ledger.connection import WorkerGone
from rush_executor._ledger.tasks import KeptTask, TaskLedger
from rush_executor._ledger.views import NetworkReader
from rush_executor._ledger.worker import Outcome, WorkerLedger
from rush_executor._protocol.records import KILLED_TAG, LOST_TAG, TIMEOUT_TAG, Claim, Loss
from rush_executor._protocol.states import KILLED, LOST, TERMINATED
from tests.integration.rig import Packets, Recorder, Rig
from tests.integration.test_ledger_model import SETTINGS


@dataclass
class _Task:
    """A task as the model knows it."""

    task_id: str
    state: str
    rank: tuple[int, int] = (0, 0)
    max_retries: int = 0
    losses: int = 0
    attempt: int = 0
    worker_id: str = ""
    outcome: str = ""
    was_running: bool = False


@dataclass
class _Worker:
    """A worker as its process is: it may not know yet that it has been taken for lost."""

    worker_id: str
    channel: Recorder
    ledger: WorkerLedger


@dataclass
class _Model:
    """What the server must hold."""

    tasks: dict[str, _Task] = field(default_factory=dict)
    finished: list[str] = field(default_factory=list)
    own_queue: dict[str, str] = field(default_factory=dict)
    workers: dict[str, str] = field(default_factory=dict)
    # Those that wait.
    idle: set[str] = field(default_factory=set)
    # Tasks that were handed over and lie in a bell.
    unseen: set[str] = field(default_factory=set)
    n_ranks: int = 0

    def alive(self) -> list[str]:
        return [worker for worker, state in self.workers.items() if state == "here"]

    def queue(self, worker_id: str = "") -> list[_Task]:
        queued = [
            t for t in self.tasks.values() if t.state == "queued" and self.own_queue.get(t.task_id, "") == worker_id
        ]
        return sorted(queued, key=lambda task: (task.rank, task.task_id))

    def held(self, worker_id: str) -> list[_Task]:
        return [t for t in self.tasks.values() if t.state == "running" and t.worker_id == worker_id]

    def end(self, task: _Task, outcome: str) -> None:
        task.state = "finished" if outcome[:1] == "F" else "failed"
        task.outcome = outcome
        self.own_queue.pop(task.task_id, None)
        if task.state == "finished":
            self.finished.append(task.task_id)


class _KeptLedger(RuleBasedStateMachine):
    """Steps that managers, workers and agents may take."""

    workers = Bundle("workers")
    # A worker and a claim that it once got; it may have lost it since.
    claims = Bundle("claims")
    tasks = Bundle("tasks")

    def __init__(self, url: str) -> None:
        super().__init__()
        self.rig = Rig(url, "kept")
        self.model = _Model()
        self.n_names = 0
        self.sent: list[Packets] = []
        self.channel = self.rig.channel()
        self.ledger = TaskLedger(self.channel, self.rig.keys)
        self.epoch = self.ledger.found()
        self.agent_channel = self.rig.channel()
        self.agent = AgentLedger(self.agent_channel, self.rig.keys, "a1", "host")
        self.reader = NetworkReader(self.rig.channel(), self.rig.keys)
        self.last_ring = b""

    # Tasks.

    @rule(
        target=tasks,
        n=st.integers(1, 3),
        priority=st.integers(-1, 1),
        max_retries=st.integers(0, 1),
        target_worker=st.none() | workers,
    )
    def push(self, n: int, priority: int, max_retries: int, target_worker: _Worker | None) -> object:
        worker_id = target_worker.worker_id if target_worker else ""
        ids = self.names(n)
        self.ledger.create(
            "queued",
            [KeptTask(i, b"xs", max_retries=max_retries, priority=priority, worker_id=worker_id) for i in ids],
        )
        self.remember(self.channel)
        for i in ids:
            self.model.n_ranks += 1
            self.model.tasks[i] = _Task(i, "queued", (-priority, self.model.n_ranks), max_retries)
            if self.model.workers.get(worker_id) == "here":
                self.model.own_queue[i] = worker_id
        if self.model.own_queue.get(ids[0]) == worker_id:
            assert self.woken(1, {worker_id}) == sorted({worker_id} & self.model.idle)
            self.model.idle.discard(worker_id)
            return multiple(*ids)
        woken = self.woken(n, self.model.idle)
        if n == 1 and not priority and not max_retries:
            # It was handed over.
            for one in woken:
                task = self.model.tasks[ids[0]]
                task.state, task.worker_id, task.attempt = "running", one, 1
                self.model.unseen.add(task.task_id)
        self.model.idle.difference_update(woken)
        return multiple(*ids)

    @rule(target=tasks, worker=workers, n=st.integers(1, 2))
    def push_running(self, worker: _Worker, n: int) -> object:
        ids = self.names(n)
        try:
            self.ledger.create("running", [KeptTask(i, b"xs") for i in ids], worker.worker_id)
        except WorkerGone:
            assert self.model.workers[worker.worker_id] != "here"
            return multiple()
        self.remember(self.channel)
        assert self.model.workers[worker.worker_id] == "here"
        for i in ids:
            self.model.tasks[i] = _Task(i, "running", attempt=1, worker_id=worker.worker_id)
        return multiple(*ids)

    @rule(target=tasks, state=st.sampled_from(["finished", "failed"]))
    def push_ended(self, state: str) -> str:
        [i] = self.names(1)
        self.ledger.create(state, [KeptTask(i, b"xs", outcome=b"known")])
        self.remember(self.channel)
        task = _Task(i, state, attempt=1)
        self.model.tasks[i] = task
        self.model.end(task, ("F" if state == "finished" else "E") + "known")
        return i

    @rule(ids=st.lists(tasks, max_size=3, unique=True), ignore=st.booleans())
    def retry(self, ids: list[str], ignore: bool) -> None:
        expected = []
        for i in ids:
            task = self.model.tasks[i]
            if task.state != "failed":
                continue
            losses = task.losses + (task.outcome[:1] not in "LTK")
            if ignore or losses <= task.max_retries:
                expected.append(i)
                task.state, task.losses, task.outcome, task.worker_id = "queued", losses, "", ""
        assert self.ledger.retry([(i, b"") for i in ids], ignore_max_retries=ignore) == expected
        self.model.idle.difference_update(self.woken(len(expected), self.model.idle))
        if ids:
            self.send_at_once_again(self.channel.sent[-1:])

    @rule()
    def empty_queue(self) -> None:
        expected = {task.task_id for task in self.model.tasks.values() if task.state == "queued"}
        n_sent = len(self.channel.sent)
        assert set(self.ledger.remove("removed")) == expected
        self.send_at_once_again(self.channel.sent[n_sent:])
        for i in expected:
            self.model.end(self.model.tasks[i], "Xremoved")

    @rule()
    def clear(self) -> None:
        """Nothing of what was sent before may come again: it would be a new wish."""
        self.ledger.clear()
        self.sent.clear()
        for task in self.model.tasks.values():
            task.state, task.outcome, task.worker_id = "gone", "", ""
        self.model.finished.clear()
        self.model.own_queue.clear()

    # Workers.

    @rule(target=workers)
    def join(self) -> _Worker:
        self.n_names += 1
        return self.start(f"w{self.n_names}")

    @rule(target=workers, worker=workers)
    def join_again(self, worker: _Worker) -> object:
        """Under its old id, once it is gone."""
        if self.model.workers[worker.worker_id] == "here":
            return multiple()
        return self.start(worker.worker_id)

    @rule(target=claims, worker=workers, limit=st.integers(1, 3), forgets=st.booleans(), rests=st.booleans())
    def claim(self, worker: _Worker, limit: int, forgets: bool, rests: bool) -> object:
        """One that has lost a reply does not know what it holds, and is given it again."""
        model, worker_id = self.model, worker.worker_id
        known = [] if forgets else [task.task_id for task in model.held(worker_id)]
        try:
            got = worker.ledger.exchange([], limit=limit, wait=False, rests=rests, known=known).claims
        except WorkerGone:
            assert model.workers[worker_id] != "here"
            return multiple()
        assert model.workers[worker_id] == "here"
        unknown = [task for task in model.held(worker_id) if task.task_id not in known]
        if unknown:
            model.unseen.difference_update(task.task_id for task in model.held(worker_id))
        else:
            own, shared = model.queue(worker_id), model.queue()
            if own:
                unknown = own[:limit]
            else:
                unknown = shared[: min(limit, math.ceil(len(shared) / len(model.alive())))] if shared else []
            for task in unknown:
                task.state, task.worker_id, task.attempt = "running", worker_id, task.attempt + 1
                model.unseen.discard(task.task_id)
                model.own_queue.pop(task.task_id, None)
        assert {(c.task_id, c.attempt) for c in got} == {(t.task_id, t.attempt) for t in unknown}
        model.idle.discard(worker_id)
        if rests and not got:
            model.idle.add(worker_id)
        return multiple(*((worker, claim) for claim in got))

    @rule(held=claims, is_failure=st.booleans(), with_attempt=st.booleans())
    def finish(self, held: tuple[_Worker, Claim], is_failure: bool, with_attempt: bool) -> None:
        worker, claim = held
        task = self.model.tasks[claim.task_id]
        body = f"{worker.worker_id}/{claim.attempt}"
        is_mine = task.worker_id == worker.worker_id and (not with_attempt or task.attempt == claim.attempt)
        sent = claim if with_attempt else claim._replace(attempt=0)
        refused = worker.ledger.finish([Outcome(sent, is_failure, body.encode())])
        self.remember(worker.channel)
        outcome = ("E" if is_failure else "F") + body
        if is_mine and task.state == "running":
            assert refused == []
            self.model.end(task, outcome)
        else:
            # The very same, once more, counts as handed in.
            assert refused == ([] if is_mine and task.outcome == outcome else [claim.task_id])

    @rule(held=claims)
    def release(self, held: tuple[_Worker, Claim]) -> None:
        worker, claim = held
        task = self.model.tasks[claim.task_id]
        is_mine = task.state == "running" and task.worker_id == worker.worker_id and task.attempt == claim.attempt
        assert worker.ledger.release([claim]) == is_mine
        self.remember(worker.channel)
        if is_mine:
            task.state, task.worker_id = "queued", ""
            self.model.idle.difference_update(self.woken(1, self.model.idle))

    @rule(
        worker=workers,
        how=st.sampled_from([TERMINATED, KILLED, LOST]),
        guilty=st.sampled_from(["", "*", "first"]),
        tag=st.sampled_from([LOST_TAG, TIMEOUT_TAG, KILLED_TAG]),
    )
    def lose(self, worker: _Worker, how: str, guilty: str, tag: bytes) -> None:
        model, worker_id = self.model, worker.worker_id
        held = sorted(model.held(worker_id), key=lambda task: task.task_id)
        seen = [task for task in held if task.task_id not in model.unseen]
        charged = {"": [], "*": seen, "first": held[:1]}[guilty]
        model.unseen.difference_update(task.task_id for task in held)
        name = held[0].task_id if guilty == "first" and held else "" if guilty == "first" else guilty
        result = self.agent.lose_worker(Loss(worker_id, "host", 1, -9, "was killed"), name, tag, how=how)
        self.send_at_once_again(self.agent_channel.sent[-1:])
        n_failed = 0
        for task in held:
            is_guilty = task in charged
            task.losses += is_guilty
            if is_guilty and (tag != LOST_TAG or task.losses > task.max_retries):
                model.end(task, tag.decode() + str(task.losses))
                n_failed += 1
            else:
                task.state, task.worker_id = "queued", ""
        assert result == (len(held) - n_failed, n_failed)
        for i in [i for i, owner in model.own_queue.items() if owner == worker_id]:
            del model.own_queue[i]
        if model.workers[worker_id] == "here":
            model.workers[worker_id] = how
        model.idle.discard(worker_id)
        model.idle.difference_update(self.woken(len(model.queue()), model.idle))

    @rule(target=tasks, worker=workers)
    def push_to_one_that_waits(self, worker: _Worker) -> object:
        """When it has run all that there is."""
        model, worker_id = self.model, worker.worker_id
        while model.workers[worker_id] == "here" and (model.queue() or model.queue(worker_id) or model.held(worker_id)):
            self.claim(worker, 9, forgets=True, rests=False)
            for task in model.held(worker_id):
                self.finish((worker, Claim(task.task_id, task.attempt, b"")), is_failure=False, with_attempt=True)
        self.claim(worker, 1, forgets=True, rests=True)
        return self.push(1, 0, 0, None)

    def woken(self, n: int, those: set[str]) -> list[str]:
        """Who has been woken since: as many of those as there was work for, and nobody else."""
        idle = {raw.decode() for raw in self.rig.redis.zrange(self.rig.keys.idle_workers, 0, -1)}
        woken = sorted(self.model.idle - idle)
        assert len(woken) == min(n, len(self.model.idle & those))
        assert idle <= self.model.idle
        assert set(woken) <= those
        return woken

    def send_at_once_again(self, packets: list[Packets]) -> None:
        """As when the reply was lost. Later it would be a new wish: to retry what has failed once more, say."""
        before = self.rig.dump()
        self.rig.send_again(*packets)
        assert self.rig.dump() == before

    @rule(data=st.data())
    def send_again(self, data: st.DataObject) -> None:
        """What was sent at any time changes nothing when it comes once more; whoever sent it may be gone."""
        if self.sent:
            packets = data.draw(st.sampled_from(self.sent))
            before = self.rig.dump()
            with contextlib.suppress(WorkerGone):
                self.rig.send_again(packets)
            after = self.rig.dump()
            assert after == before

    # What must hold.

    @invariant()
    def the_server_agrees(self) -> None:
        model, dump = self.model, self.rig.dump()
        records = {key.partition(":")[2]: value for key, value in dump.items() if key.startswith("task:")}
        # Of one that was cleared while it ran, the worker is still to be told.
        records = {i: record for i, record in records.items() if record != {"state": "cleared"}}
        kept = {i: task for i, task in model.tasks.items() if task.state != "gone"}
        assert records.keys() == kept.keys() == set(dump.get("all_tasks", []))
        assert len(dump.get("all_tasks", [])) == len(kept)
        assert "cleared_tasks" not in dump
        for i, task in kept.items():
            record = records[i]
            assert (record["state"], int(record.get("losses", 0)), int(record.get("attempt", 0))) == (
                task.state,
                task.losses,
                task.attempt,
            )
            assert record.get("outcome", "").partition(" ")[0] == task.outcome
            assert task.state in ("finished", "failed") or record.get("worker", "") == task.worker_id
        assert [i for i, _ in dump.get("queued_tasks", [])] == [task.task_id for task in model.queue()]
        assert dump.get("finished_tasks", []) == model.finished
        assert dump.get("failed_tasks", set()) == {t.task_id for t in model.tasks.values() if t.state == "failed"}
        for worker_id, state in model.workers.items():
            own = [i for i, _ in dump.get(f"worker_queue:{worker_id}", [])]
            assert own == [task.task_id for task in model.queue(worker_id)]
            assert dump.get(f"running_tasks:{worker_id}", set()) == {t.task_id for t in model.held(worker_id)}
            for end in (TERMINATED, KILLED, LOST):
                assert (worker_id in dump.get(f"{end}_worker_ids", set())) == (state == end)
        assert dump.get("worker_ids", set()) == set(model.alive())
        assert set(dump.get("idle_workers", [])) == model.idle

    @invariant()
    def readers_agree(self) -> None:
        """What a reader is told is the same; and whoever waits for ends has been rung."""
        _, lists = self.reader.list_tasks(["queued", "running", "finished", "failed"])
        n = [sum(t.state == s for t in self.model.tasks.values()) for s in ("queued", "running", "finished", "failed")]
        assert [len(set(ids)) for ids in lists] == [len(ids) for ids in lists] == n
        assert [self.reader.count(s) for s in ("queued", "running", "finished", "failed")] == n

    def teardown(self) -> None:
        self.ledger.reset()
        self.agent.leave()
        with self.rig:
            pass

    # Small things.

    def start(self, worker_id: str) -> _Worker:
        channel = self.rig.channel()
        worker = _Worker(worker_id, channel, WorkerLedger(channel, self.rig.keys, worker_id, self.epoch, keeps=True))
        self.agent.announce_worker(worker_id)
        worker.ledger.register("a1", "host", 1)
        self.model.workers[worker_id] = "here"
        return worker

    def names(self, n: int) -> list[str]:
        self.n_names += n
        return [f"t{number}" for number in range(self.n_names - n + 1, self.n_names + 1)]

    def remember(self, channel: Recorder) -> None:
        self.sent.append(channel.sent[-1])


def test_state_machine_of_kept_tasks(server_url: str) -> None:
    """Any sequence of steps, each of them sent again at any later time, leaves exactly what the state table says."""
    run_state_machine_as_test(
        lambda: _KeptLedger(server_url),
        settings=SETTINGS,
    )
