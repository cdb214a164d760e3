"""The ledger against a model of it: whatever is asked, in whatever order, and however late it is asked again.

The model is a queue, what each worker holds, and what each inbox holds, in plain Python. After every step the server
must hold exactly the same, and nothing else.
"""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from rush_executor._ledger.client import CancelReply
from rush_executor._ledger.connection import NetworkGone
from rush_executor._protocol.records import KILLED_TAG, LOST_TAG, TIMEOUT_TAG, Claim
from tests.integration.rig import Client, Packets, Rig, Worker

_LEASE_MS = 600_000


@dataclass
class _Task:
    """A task as the model knows it."""

    task_id: str
    client_id: str
    rank: tuple[int, int]
    max_retries: int
    attempt: int = 0
    losses: int = 0
    batch: int = 0


@dataclass
class _Model:
    """What the server must hold."""

    queue: dict[str, _Task] = field(default_factory=dict)
    running: dict[str, dict[str, _Task]] = field(default_factory=dict)
    inboxes: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    n_pushed: int = 0

    def ordered(self) -> list[_Task]:
        return sorted(self.queue.values(), key=lambda task: task.rank)

    def claim(self, worker_id: str, limit: int) -> list[Claim]:
        held = self.running[worker_id]
        if not held and self.queue:
            share = math.ceil(len(self.queue) / len(self.running))
            popped = self.ordered()[: min(limit, share)]
            for task in popped:
                del self.queue[task.task_id]
                if task.client_id in self.inboxes:
                    task.attempt += 1
                    task.batch = len(popped)
                    held[task.task_id] = task
        return [Claim(t.task_id, t.attempt, b"call", "", t.max_retries == 0) for t in held.values()]

    def holds(self, worker_id: str, claim: Claim) -> bool:
        task = self.running.get(worker_id, {}).get(claim.task_id)
        return task is not None and task.attempt == claim.attempt

    def go_back(self, task: _Task) -> bool:
        if task.client_id in self.inboxes:
            self.queue[task.task_id] = task
        return task.client_id in self.inboxes

    def tell(self, task: _Task, outcome: str) -> None:
        if task.client_id in self.inboxes:
            self.inboxes[task.client_id].append((task.task_id, outcome))


class _Ledger(RuleBasedStateMachine):
    """Steps that clients, workers and agents may take."""

    clients = Bundle("clients")
    workers = Bundle("workers")
    # A worker and a claim that it once got; it may have lost it since.
    claims = Bundle("claims")
    tasks = Bundle("tasks")
    # What changed something when it was sent: sent again, it must not.
    packets = Bundle("packets")

    def __init__(self, url: str) -> None:
        super().__init__()
        self.rig = Rig(url)
        self.model = _Model()
        self.delivered: list[str] = []
        self.n_names = 0

    @initialize(target=clients)
    def first_client(self) -> Client:
        return self.new_client()

    @rule(target=clients)
    def another_client(self) -> Client:
        return self.new_client()

    @rule(target=workers)
    def another_worker(self) -> Worker:
        self.n_names += 1
        worker = self.rig.worker(f"w{self.n_names}")
        self.model.running[worker.id] = {}
        return worker

    @rule(
        target=tasks,
        client=clients,
        n=st.integers(1, 4),
        priority=st.integers(-1, 1),
        max_retries=st.integers(0, 2),
        data=st.data(),
    )
    def push(self, client: Client, n: int, priority: int, max_retries: int, data: st.DataObject) -> Any:
        ids = client.push(n, priority=priority, max_retries=max_retries)
        for task_id in ids:
            self.model.n_pushed += 1
            self.model.queue[task_id] = _Task(task_id, client.id, (-priority, self.model.n_pushed), max_retries)
        self.keep(client.up_channel.sent[-1])
        return multiple(*((client, task_id) for task_id in ids))

    @rule(target=claims, worker=workers, limit=st.integers(1, 6))
    def claim(self, worker: Worker, limit: int) -> Any:
        expected = self.model.claim(worker.id, limit)
        assert sorted(worker.claim(limit)) == sorted(expected)
        return multiple(*((worker, claim) for claim in expected))

    @rule(worker=workers, limit=st.integers(1, 6))
    def claim_whose_reply_is_lost(self, worker: Worker, limit: int) -> None:
        self.model.claim(worker.id, limit)
        worker.claim(limit)

    @rule(pairs=st.lists(claims, min_size=1, max_size=4), is_failure=st.booleans())
    def finish(self, pairs: list[tuple[Worker, Claim]], is_failure: bool) -> None:
        worker = pairs[0][0]
        claims = list(dict.fromkeys(claim for other, claim in pairs if other is worker))
        refused = [claim.task_id for claim in claims if not self.model.holds(worker.id, claim)]
        for claim in claims:
            if self.model.holds(worker.id, claim):
                task = self.model.running[worker.id].pop(claim.task_id)
                self.model.tell(task, "Eresult" if is_failure else "Fresult")
        assert worker.finish(claims, is_failure=is_failure) == refused
        self.keep(worker.channel.sent[-1])

    @rule(pairs=st.lists(claims, min_size=1, max_size=4))
    def release(self, pairs: list[tuple[Worker, Claim]]) -> None:
        worker = pairs[0][0]
        claims = list(dict.fromkeys(claim for other, claim in pairs if other is worker))
        n_back = 0
        for claim in claims:
            if self.model.holds(worker.id, claim):
                n_back += self.model.go_back(self.model.running[worker.id].pop(claim.task_id))
        assert worker.ledger.release(claims) == n_back
        self.keep(worker.channel.sent[-1])

    @rule(pair=tasks)
    def cancel(self, pair: tuple[Client, str]) -> None:
        client, task_id = pair
        if client.id not in self.model.inboxes:
            return
        held = {name: task for tasks in self.model.running.values() for name, task in tasks.items()}
        expected = CancelReply.GONE
        if task_id in self.model.queue:
            expected = CancelReply.CANCELLED
            self.model.tell(self.model.queue.pop(task_id), "C")
        elif task_id in held:
            expected = CancelReply.RUNNING if held[task_id].batch == 1 else CancelReply.HELD
        assert client.uplink.cancel([task_id]) == [expected]
        self.keep(client.up_channel.sent[-1])

    @rule(worker=consumes(workers), guilty=st.integers(0, 5), tag=st.sampled_from([LOST_TAG, TIMEOUT_TAG, KILLED_TAG]))
    def lose(self, worker: Worker, guilty: int, tag: bytes) -> None:
        held = list(self.model.running.pop(worker.id).values())
        culprit = held[guilty % len(held)].task_id if held and guilty else ""
        n_queued = n_failed = 0
        for task in held:
            is_guilty = task.task_id == culprit
            task.losses += is_guilty
            has_ended = task.losses > task.max_retries or (is_guilty and tag != LOST_TAG)
            if has_ended and task.client_id in self.model.inboxes:
                self.model.tell(task, f"{tag.decode()}{task.losses}")
                n_failed += 1
            elif not has_ended:
                n_queued += self.model.go_back(task)
        assert self.rig.agent().lose(worker, culprit, tag) == (n_queued, n_failed)
        self.keep(self.rig.agent().channel.sent[-1])

    @rule(client=clients)
    def receive(self, client: Client) -> None:
        expected = self.model.inboxes[client.id]
        got = [(task_id, short(outcome.decode())) for task_id, outcome in client.receive()]
        assert got == expected
        self.delivered += [task_id for task_id, _ in got]
        assert len(self.delivered) == len(set(self.delivered)), "some task was told twice"
        client.receive()
        self.keep(client.down_channel.sent[-1])
        expected.clear()

    @rule(client=consumes(clients))
    def client_leaves(self, client: Client) -> None:
        if len(self.model.inboxes) == 1:
            # Somebody must stay: the network would end with the last one.
            self.first_client()
        self.rig.forget(client)
        client.leave()
        del self.model.inboxes[client.id]

    @rule()
    def script_flush(self) -> None:
        self.rig.redis.script_flush()

    @rule(data=st.data())
    def send_again(self, data: st.DataObject) -> None:
        """Something that was sent some time ago arrives once more: nothing changes."""
        if self.sent:
            before = self.rig.dump()
            with contextlib.suppress(NetworkGone):
                self.rig.send_again(data.draw(st.sampled_from(self.sent)))
            assert self.rig.dump() == before

    @invariant()
    def server_and_model_agree(self) -> None:
        dump, model = self.rig.dump(), self.model
        assert [task_id for task_id, _ in dump.pop("queued_tasks", [])] == [t.task_id for t in model.ordered()]
        running = {key: value for key, value in dump.items() if key.startswith("running_tasks")}
        assert running == {f"running_tasks:{name}": set(held) for name, held in model.running.items() if held}
        for client_id, expected in model.inboxes.items():
            raw = dump.pop(f"inbox:{client_id}", [])
            assert list(zip(raw[::2], map(short, raw[1::2]), strict=True)) == expected
        records = {key.partition(":")[2]: value for key, value in dump.items() if key.startswith("task:")}
        expected_records = {t.task_id: (t, "queued", None) for t in model.queue.values()}
        for name, held in model.running.items():
            expected_records |= {t.task_id: (t, "running", name) for t in held.values()}
        assert records.keys() == expected_records.keys()
        for task_id, (task, state, worker) in expected_records.items():
            record = records[task_id]
            assert (record["state"], record.get("worker")) == (state, worker)
            assert int(record.get("attempt", 0)) == task.attempt
            assert int(record.get("losses", 0)) == task.losses

    def teardown(self) -> None:
        with self.rig:
            pass
        left = self.rig.dump()
        self.rig.redis.close()
        assert left == {}

    @property
    def sent(self) -> list[Packets]:
        return self.__dict__.setdefault("_sent", [])

    def keep(self, packets: Packets) -> None:
        self.sent.append(packets)

    def new_client(self) -> Client:
        self.n_names += 1
        client = self.rig.client(f"c{self.n_names}")
        self.model.inboxes[client.id] = []
        return client


def short(outcome: str) -> str:
    """An outcome without the ledger's own words on how a worker ended."""
    return outcome.partition(" ")[0] if outcome[:1] in ("L", "T", "K") else outcome


# For a long run: RUSH_TEST_EXAMPLES=2000 pytest -k state_machine --timeout 0
N_EXAMPLES = int(os.environ.get("RUSH_TEST_EXAMPLES", "20"))


def test_state_machine(server_url: str) -> None:
    """Any sequence of steps, each of them sent again at any later time, leaves exactly what the state table says."""
    run_state_machine_as_test(
        lambda: _Ledger(server_url),
        settings=settings(
            max_examples=N_EXAMPLES,
            stateful_step_count=50,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
