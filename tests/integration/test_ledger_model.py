"""The ledger against a model of it: whatever is asked, in whatever order, and however late it is asked again.

The model is a queue, what each worker holds, what each inbox holds and, in a durable network, what is kept of those
that have ended, in plain Python. After every step the server must hold exactly the same, and nothing else.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
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

from rush_executor._ledger import agent as agent_module
from rush_executor._ledger import client as client_module
from rush_executor._ledger import scripts
from rush_executor._ledger import worker as worker_module
from rush_executor._ledger.agent import CHARGE_ALL, Reaper
from rush_executor._ledger.client import CancelReply
from rush_executor._ledger.connection import NetworkGone, WorkerGone
from rush_executor._ledger.tasks import TaskLedger
from rush_executor._ledger.worker import Outcome
from rush_executor._protocol.records import KILLED_TAG, LOST_TAG, TIMEOUT_TAG, Claim, NewTask, TaskOptions
from tests.integration.rig import EPOCH, Client, Packets, Rig, Worker

# From here on an outcome is written beside the inbox.
_LARGE = 100
_ATTEMPTS_PER_PUSH = 1 << 20
_AGENTS = ("a1", "a2")
# As long as nothing, at a bell.
_MOMENT_S = 0.001
# What may be left of a durable network when everybody has left it.
_KEPT_KINDS = {"network", "task", "all_tasks", "finished_tasks", "failed_tasks", "ends", "queued_tasks"}
_KEPT_KINDS |= {"functions", "blob"}


@dataclass
class _Task:
    """A task as the model knows it; pushed again, it is a new one."""

    task_id: str
    client_id: str
    rank: tuple[int, int]
    options: TaskOptions
    blob_id: str = ""
    retries: int = 0
    attempt: int = 0
    losses: int = 0
    batch: int = 0
    # Where the network keeps it: how it ended, and in whose hands.
    outcome: str = ""
    worker_id: str = ""

    def claim(self) -> Claim:
        options, payload = self.options, b"" if self.blob_id else b"call"
        return Claim(
            self.task_id, self.attempt, payload, self.blob_id, options.max_retries == 0, options.timeout_s or 0.0
        )


@dataclass
class _Model:
    """What the server must hold."""

    durable: bool
    queue: dict[str, _Task] = field(default_factory=dict)
    running: dict[str, dict[str, _Task]] = field(default_factory=dict)
    inboxes: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    functions: set[str] = field(default_factory=set)
    kills: dict[str, set[str]] = field(default_factory=lambda: {agent: set() for agent in _AGENTS})
    # Told beside the outcome, by client and task.
    losses: dict[tuple[str, str], int] = field(default_factory=dict)
    # Workers that wait, and what lies in the bells: "1", or tasks, with commas between.
    idle: set[str] = field(default_factory=set)
    bells: dict[str, list[str]] = field(default_factory=dict)
    n_pushed: int = 0
    is_broken: bool = False
    # Of a durable network.
    all: list[str] = field(default_factory=list)
    ended: dict[str, _Task] = field(default_factory=dict)
    finished: list[str] = field(default_factory=list)

    def push(self, task: _Task) -> None:
        self.n_pushed += 1
        task.rank = (task.rank[0], self.n_pushed)
        self.queue[task.task_id] = task
        if self.durable:
            before = self.ended.pop(task.task_id, None)
            if before is None:
                self.all.append(task.task_id)
            elif before.outcome[0] in "Ff":
                self.finished.remove(task.task_id)

    def ordered(self) -> list[_Task]:
        return sorted(self.queue.values(), key=lambda task: task.rank)

    def has(self, client_id: str) -> bool:
        """Whether what a client has pushed is still of interest."""
        return self.durable or client_id in self.inboxes

    def held(self) -> dict[str, _Task]:
        return {name: task for tasks in self.running.values() for name, task in tasks.items()}

    def hand(self, task_id: str, worker_id: str) -> None:
        """What was pushed just now is this worker's, which waits."""
        task = self.queue.pop(task_id)
        task.attempt, task.batch, task.worker_id = task.attempt + 1, 1, worker_id
        self.running[worker_id][task_id] = task

    def ring(self, worker_id: str, token: str) -> None:
        self.bells.setdefault(worker_id, []).append(token)

    def rest(self, worker_id: str, limit: int) -> None:
        """It is about to wait."""
        if self.running[worker_id]:
            self.ring(worker_id, "1")
        elif self.queue:
            claims = self.claim(worker_id, limit)
            if claims or self.queue:
                self.ring(worker_id, ",".join(claim.task_id for claim in claims))
            else:
                self.idle.add(worker_id)
        else:
            self.idle.add(worker_id)

    def take_token(self, worker_id: str) -> str | None:
        """What comes out of the bell; None when the time is over."""
        tokens = self.bells.get(worker_id, [])
        token = tokens.pop(0) if tokens else None
        if not tokens:
            self.bells.pop(worker_id, None)
        return token

    def claim(self, worker_id: str, limit: int, known: Sequence[str] = (), *, rests: bool = False) -> list[Claim]:
        held = self.running[worker_id]
        self.idle.discard(worker_id)
        if not held.keys() <= set(known):
            self.bells.pop(worker_id, None)
        elif self.queue:
            share = math.ceil(len(self.queue) / len(self.running))
            popped = self.ordered()[: min(limit, share)]
            for task in popped:
                del self.queue[task.task_id]
                if self.has(task.client_id):
                    task.attempt += 1
                    task.batch = len(popped) + len(known)
                    task.worker_id = worker_id
                    held[task.task_id] = task
        claims = [task.claim() for name, task in held.items() if name not in known]
        if rests and not claims and not self.queue:
            self.idle.add(worker_id)
        return claims

    def holds(self, worker_id: str, claim: Claim) -> bool:
        task = self.running.get(worker_id, {}).get(claim.task_id)
        return task is not None and task.attempt == claim.attempt

    def finish(self, worker_id: str, claims: Sequence[Claim], outcome: str) -> list[str]:
        """Returns the ids that are refused."""
        refused = []
        for claim in claims:
            if self.holds(worker_id, claim):
                self.end(self.running[worker_id].pop(claim.task_id), outcome)
                continue
            task = self.ended.get(claim.task_id)
            same = (worker_id, claim.attempt, outcome)
            # The very same once more; a large one has another name then.
            if task is None or outcome[0] in "fe" or (task.worker_id, task.attempt, task.outcome) != same:
                refused.append(claim.task_id)
        return refused

    def end(self, task: _Task, outcome: str) -> None:
        if self.durable:
            task.outcome, task.blob_id = outcome, ""
            self.ended[task.task_id] = task
            if outcome[0] in "Ff":
                self.finished.append(task.task_id)
        self.tell(task, outcome)

    def go_back(self, task: _Task) -> bool:
        if self.has(task.client_id):
            self.queue[task.task_id] = task
        return self.has(task.client_id)

    def tell(self, task: _Task, outcome: str) -> None:
        if task.client_id in self.inboxes:
            self.inboxes[task.client_id].append((task.task_id, outcome))
            if task.losses and outcome[0] in "FEfe":
                self.losses[task.client_id, task.task_id] = task.losses

    def lose(self, worker_id: str, agent_id: str, guilty: str, tag: str) -> tuple[int, int]:
        """Returns how many go back into the queue, and how many fail."""
        n_queued = n_failed = 0
        self.idle.discard(worker_id)
        unseen = {name for token in self.bells.pop(worker_id, []) for name in token.split(",")}
        for task in sorted(self.running.pop(worker_id, {}).values(), key=lambda task: task.task_id):
            is_guilty = guilty == task.task_id or (guilty == CHARGE_ALL and task.task_id not in unseen)
            task.losses += is_guilty
            is_wanted = task.task_id in self.kills[agent_id]
            self.kills[agent_id].discard(task.task_id)
            if not is_wanted and (not is_guilty or (tag == "L" and task.losses <= task.options.max_retries)):
                n_queued += self.go_back(task)
            elif self.has(task.client_id):
                self.end(task, f"{tag if is_guilty and tag != 'L' else 'K' if is_wanted else 'L'}{task.losses}")
                n_failed += 1
        return n_queued, n_failed

    def forget(self, client_id: str) -> None:
        """A client is no more."""
        del self.inboxes[client_id]
        if not self.durable:
            self.functions.discard(client_id)


class _Ledger(RuleBasedStateMachine):
    """Steps that clients, workers, agents and those who look for the dead may take."""

    clients = Bundle("clients")
    workers = Bundle("workers")
    # A worker and a claim that it once got; it may have lost it since.
    claims = Bundle("claims")
    tasks = Bundle("tasks")

    def __init__(self, url: str, *, durable: bool) -> None:
        super().__init__()
        self.rig = Rig(url, durable=durable)
        self.model = _Model(durable)
        # It tells agents without a sign of life from clients, and does not take any for dead by itself.
        self.reaper_channel = self.rig.channel()
        self.reaper = Reaper(self.reaper_channel, self.rig.keys, doubt_s=1e9)
        self.delivered: list[tuple[str, int]] = []
        # Failures that their clients have been told, and may want to try again.
        self.failures: list[tuple[Client, _Task]] = []
        self.by_id: dict[str, _Task] = {}
        self.agent_of: dict[str, str] = {}
        self.n_names = 0
        self.beginning: tuple[Any, ...] = ()
        # What changed something when it was sent: sent again at any later time, it must not.
        self.sent: list[list[Packets]] = []

    # How it begins: not with nothing, or most stories would end before anything has happened.

    @initialize(target=clients)
    def first_clients(self) -> Any:
        return multiple(*self.begin()[0])

    @initialize(target=workers)
    def first_workers(self) -> Any:
        return multiple(*self.begin()[1])

    @initialize(target=tasks)
    def first_tasks(self) -> Any:
        return multiple(*self.begin()[2])

    @initialize(target=claims)
    def first_claims(self) -> Any:
        return multiple(*self.begin()[3])

    # Clients.

    @rule(target=clients)
    def another_client(self) -> Client:
        return self.new_client()

    @rule(
        target=tasks,
        client=clients,
        n=st.sampled_from([1, 1, 2, 4]),
        options=st.builds(
            TaskOptions,
            max_retries=st.integers(0, 2),
            priority=st.integers(-1, 1),
            timeout_s=st.sampled_from([None, 2.5]),
            retry_on=st.just(()),
        ),
        is_large=st.booleans(),
        has_function=st.booleans(),
    )
    def push(self, client: Client, n: int, options: TaskOptions, is_large: bool, has_function: bool) -> Any:
        """New tasks, or one whose failure the client was told, and that it wants tried again."""
        if client.id not in self.model.inboxes:
            return multiple()
        # Not always: new ones are to come as well.
        failed = next((task for owner, task in self.failures if owner is client and n < 2), None)
        if failed is not None:
            self.failures.remove((client, failed))
            blob_id, retries = self.name("b") if is_large else "", failed.retries + 1
            self.push_tasks(client, [NewTask(failed.task_id, b"call", options, blob_id, retries)])
            return multiple()
        new = [task._replace(options=options, blob_id=self.name("b") if is_large else "") for task in client.tasks(n)]
        return multiple(*((client, task_id) for task_id in self.push_tasks(client, new, has_function=has_function)))

    @rule(pair=tasks)
    def cancel(self, pair: tuple[Client, str]) -> None:
        client, task_id = pair
        if client.id not in self.model.inboxes:
            return
        expected = CancelReply.GONE
        queue, held = self.model.queue, self.model.held()
        task = queue.get(task_id) or held.get(task_id) or self.model.ended.get(task_id)
        if task is not None and task.client_id == client.id:
            if task_id in queue:
                expected = CancelReply.CANCELLED
                self.model.tell(queue.pop(task_id), "C")
            else:
                expected = CancelReply.RUNNING if task.batch == 1 else CancelReply.HELD
        assert client.uplink.cancel([task_id]) == [expected]
        if expected is CancelReply.CANCELLED:
            self.keep(client.up_channel.sent[-1])
        else:
            # Later it would be a new wish.
            self.send_at_once_again(client.up_channel.sent[-1:])

    @rule(pair=tasks)
    def kill(self, pair: tuple[Client, str]) -> None:
        client, task_id = pair
        if client.id not in self.model.inboxes:
            return
        task = self.model.held().get(task_id)
        if task is not None:
            self.model.kills[self.agent_of[task.worker_id]].add(task_id)
        assert client.uplink.kill(task_id) == (task is not None)
        # Later it would be a new wish.
        self.send_at_once_again(client.up_channel.sent[-1:])

    @rule(client=clients, pairs=st.lists(tasks, min_size=1, max_size=3))
    def attach(self, client: Client, pairs: list[tuple[Client, str]]) -> None:
        model, ids = self.model, list(dict.fromkeys(task_id for _, task_id in pairs))
        if client.id not in model.inboxes:
            return
        there = {**model.queue, **model.held(), **model.ended}
        assert client.uplink.attach(ids) == [task_id in there for task_id in ids]
        for task in [there[task_id] for task_id in ids] if there.keys() >= set(ids) else []:
            if task.client_id != client.id and not task.outcome and task.client_id in model.inboxes:
                model.inboxes[task.client_id].append((task.task_id, "M"))
            task.client_id = client.id
            if task.outcome:
                model.tell(task, task.outcome)

    @rule(client=clients)
    def receive(self, client: Client) -> None:
        if client.id not in self.model.inboxes:
            return
        expected = self.model.inboxes[client.id]
        pairs = client.receive()
        got = [(task_id, short(outcome.decode())) for task_id, outcome in pairs]
        assert got == expected
        for task_id, outcome in got:
            if outcome[0] in "FEfe":
                assert client.losses.pop(task_id, 0) == self.model.losses.pop((client.id, task_id), 0)
            # What has finished may be a chunk of calls, one of which has raised: that is for its client to see.
            is_failure = outcome[0] in ("FEfe" if self.model.durable else "Ee")
            if is_failure and task_id.startswith(f"{client.id}-"):
                self.note_failure(client, self.by_id[task_id])
        if not self.model.durable:
            self.delivered += [(i, self.by_id[i].retries) for i, outcome in got if i and outcome != "M"]
            assert len(self.delivered) == len(set(self.delivered)), "some task was told twice"
        blobs = [] if self.model.durable else [outcome[1:].decode() for _, outcome in pairs if outcome[:1] in b"fe"]
        client.downlink.receive(client.position, done_blobs=blobs, wait=False)
        self.keep(client.down_channel.sent[-1])
        expected.clear()

    @rule(client=clients, leaves=st.booleans())
    def client_goes(self, client: Client, leaves: bool) -> None:
        """It leaves, or its lease ends and somebody sees that."""
        if self.is_gone(client):
            return
        self.rig.forget(client)
        if leaves:
            client.leave()
            self.keep(client.up_channel.sent[-1])
        else:
            k = self.rig.keys
            self.rig.redis.delete(k.client(client.id), k.inbox(client.id))
            if not self.model.durable:
                self.rig.redis.delete(k.functions(client.id))
            self.reaper.look()
        self.model.forget(client.id)

    def note_failure(self, client: Client, task: _Task) -> None:
        """It may be tried again, once: what an attach has told a second time, or too late, is no new failure."""
        is_under_way = task.task_id in self.model.queue or task.task_id in self.model.held()
        if not is_under_way and (client, task) not in self.failures:
            self.failures.append((client, task))

    # Workers.

    @rule(target=workers, agent_id=st.sampled_from(_AGENTS))
    def another_worker(self, agent_id: str) -> Worker:
        return self.new_worker(agent_id)

    @rule(target=claims, worker=workers, limit=st.integers(1, 6), with_known=st.booleans(), rests=st.booleans())
    def claim(self, worker: Worker, limit: int, with_known: bool, rests: bool) -> Any:
        new = self.exchange(worker, [], limit, with_known=with_known, rests=rests)
        return multiple(*((worker, claim) for claim in new))

    @rule(worker=workers, limit=st.integers(1, 6), rests=st.booleans())
    def claim_whose_reply_is_lost(self, worker: Worker, limit: int, rests: bool) -> None:
        self.exchange(worker, [], limit, rests=rests)

    @rule(worker=workers, others=st.lists(workers, max_size=2))
    def run_all(self, worker: Worker, others: list[Worker]) -> None:
        """It runs all that there is, and then it waits, as perhaps others do."""
        model = self.model
        while worker.id in model.running and (model.queue or model.running[worker.id]):
            self.exchange(worker, [], 100)
            claims = [task.claim() for task in model.running[worker.id].values()]
            assert model.finish(worker.id, claims, "Fresult") == []
            assert worker.ledger.finish(outcomes_of(claims, "F")) == []
            self.keep(worker.channel.sent[-1])
        for one in [worker, *others]:
            self.exchange(one, [], 1, rests=True)

    @rule(target=tasks, client=clients, worker=workers, max_retries=st.integers(0, 2))
    def push_to_one_that_waits(self, client: Client, worker: Worker, max_retries: int) -> Any:
        self.run_all(worker, [])
        if client.id not in self.model.inboxes:
            return multiple()
        [task_id] = self.push_tasks(client, client.tasks(1, max_retries=max_retries))
        return client, task_id

    @rule(target=claims, worker=workers, limit=st.integers(1, 6), rests=st.booleans())
    def wait(self, worker: Worker, limit: int, rests: bool) -> Any:
        """At the bell, and then perhaps no longer."""
        model, ledger = self.model, worker.ledger
        was_idle = ledger._is_idle
        expected: list[Claim] = []
        try:
            claimed = ledger.exchange([], limit=limit, wait=True, wait_s=_MOMENT_S, rests=rests)
        except WorkerGone:
            assert worker.id not in model.running
            return multiple()
        if not was_idle:
            expected = model.claim(worker.id, limit, rests=True)
        if was_idle or (not expected and not model.queue):
            model.take_token(worker.id)
            expected = model.claim(worker.id, limit, rests=rests)
        assert sorted(claimed.claims) == sorted(expected)
        return multiple(*((worker, claim) for claim in expected))

    @rule(
        target=claims,
        pairs=st.lists(claims, min_size=1, max_size=4),
        tag=st.sampled_from("FEfe"),
        limit=st.integers(1, 6),
        is_lost=st.booleans(),
    )
    def finish_and_wait(self, pairs: list[tuple[Worker, Claim]], tag: str, limit: int, is_lost: bool) -> Any:
        """Hands in and waits at the bell; the reply may be lost, with what was handed over in it."""
        worker, done = claims_of_one(pairs)
        model, knows = self.model, self.knows_finish()
        is_there = worker.id in model.running
        held = [claim for claim in done if model.holds(worker.id, claim)]
        if knows:
            model.finish(worker.id, done, short(f"{tag}result"))
            if is_there:
                model.rest(worker.id, limit)
        try:
            claimed = worker.ledger.exchange(
                outcomes_of(done, tag), limit=limit, wait=True, wait_s=_MOMENT_S, rests=True
            )
        except WorkerGone:
            assert not is_there
            return multiple()
        token = model.take_token(worker.id)
        if token not in (None, "1"):
            expected = [model.running[worker.id][name].claim() for name in token.split(",") if name]
        else:
            expected = model.claim(worker.id, limit, rests=True)
        if not knows:
            # What was not handed in then is handed in behind the claim, which gave it once more.
            model.finish(worker.id, held, short(f"{tag}result"))
            expected = [claim for claim in expected if claim not in held]
        assert sorted(claimed.claims) == sorted(expected)
        return multiple(*((worker, claim) for claim in expected if not is_lost))

    @rule(pairs=st.lists(claims, min_size=1, max_size=4), tag=st.sampled_from("FEfe"), limit=st.integers(1, 6))
    def finish_and_die(self, pairs: list[tuple[Worker, Claim]], tag: str, limit: int) -> None:
        """Hands in before it waits, and does not come to wait: what it was given lies in its bell."""
        worker, done = claims_of_one(pairs)
        if not self.knows_finish():
            return
        outcomes = outcomes_of(done, tag)
        worker.ledger._hand_in(outcomes)
        refused = worker.channel.call(worker.ledger._finish(outcomes, limit))[0]
        assert worker.ledger._answered(refused) == self.model.finish(worker.id, done, short(f"{tag}result"))
        if worker.id in self.model.running:
            self.model.rest(worker.id, limit)

    @rule(
        target=claims,
        pairs=st.lists(claims, min_size=1, max_size=4),
        tag=st.sampled_from("FEfe"),
        limit=st.integers(1, 6),
        with_known=st.booleans(),
        is_ahead=st.booleans(),
    )
    def finish_and_claim(
        self, pairs: list[tuple[Worker, Claim]], tag: str, limit: int, with_known: bool, is_ahead: bool
    ) -> Any:
        worker, claims = claims_of_one(pairs)
        new = self.exchange(worker, claims, limit, tag, with_known=with_known, is_ahead=is_ahead)
        return multiple(*((worker, claim) for claim in new))

    @rule(pairs=st.lists(claims, min_size=1, max_size=4), tag=st.sampled_from("FEfe"))
    def finish(self, pairs: list[tuple[Worker, Claim]], tag: str) -> None:
        worker, claims = claims_of_one(pairs)
        refused = self.model.finish(worker.id, claims, short(f"{tag}result"))
        assert worker.ledger.finish(outcomes_of(claims, tag)) == refused
        self.keep(worker.channel.sent[-1])

    @rule(pairs=st.lists(claims, min_size=1, max_size=4))
    def release(self, pairs: list[tuple[Worker, Claim]]) -> None:
        worker, claims = claims_of_one(pairs)
        n_back = 0
        for claim in claims:
            if self.model.holds(worker.id, claim):
                n_back += self.model.go_back(self.model.running[worker.id].pop(claim.task_id))
        assert worker.ledger.release(claims) == n_back
        self.keep(worker.channel.sent[-1])
        self.check_woken(n_back)

    # Agents, and who looks for the dead.

    @rule(
        target=workers,
        worker=consumes(workers),
        guilty=st.integers(0, 5),
        tag=st.sampled_from([LOST_TAG, TIMEOUT_TAG, KILLED_TAG]),
    )
    def lose(self, worker: Worker, guilty: int, tag: bytes) -> Worker:
        """Guilty is nobody (0), all that it held (1), or one of them. It has a successor; its claims are remembered."""
        was_there = worker.id in self.model.running
        held = list(self.model.running.get(worker.id, ()))
        culprit = CHARGE_ALL if guilty == 1 else held[guilty % len(held)] if held and guilty else ""
        expected = self.model.lose(worker.id, worker.agent.id, culprit, tag.decode())
        assert worker.agent.lose(worker, culprit, tag) == expected
        self.keep(worker.agent.channel.sent[-1])
        # Nobody for one that was lost with its agent: those that were woken then have not come yet.
        self.check_woken(len(self.model.queue) if was_there else 0)
        return self.new_worker(worker.agent.id)

    @rule(agent_id=st.sampled_from(_AGENTS), what=st.sampled_from(["bury", "end", "break", "flush"]))
    def what_is_seldom(self, agent_id: str, what: str) -> None:
        agent, model = self.rig.agent(agent_id), self.model
        if what == "bury":
            # It is dead, and all that its workers held is charged.
            n_sent = len(self.reaper_channel.sent)
            self.reaper.bury(agent_id)
            self.send_at_once_again(self.reaper_channel.sent[n_sent:])
            lost = [name for name in model.running if self.agent_of[name] == agent_id]
            for worker_id in lost:
                model.lose(worker_id, agent_id, CHARGE_ALL, "L")
            agent.workers.clear()
            # One after the other: each time some are woken, also for what others were woken for before.
            self.check_woken(len(model.queue) if lost else 0, most=len(model.idle) if lost else 0)
            # Nobody is there to do what was wanted of it.
            model.kills[agent_id].clear()
        elif what == "end":
            # It has ended all that somebody wanted it to end.
            assert set(agent.ledger.wanted_ends()) == model.kills[agent_id]
            if model.kills[agent_id]:
                agent.ledger.forget_ends(model.kills[agent_id])
                self.send_at_once_again(agent.channel.sent[-1:])
                model.kills[agent_id].clear()
        elif what == "break":
            agent.ledger.break_network(EPOCH, "text")
            self.keep(agent.channel.sent[-1])
            for inbox in [] if model.is_broken else model.inboxes.values():
                inbox.append(("", "Btext"))
            model.is_broken = True
        else:
            self.rig.redis.script_flush()

    # Anybody.

    @rule(data=st.data())
    def send_again(self, data: st.DataObject) -> None:
        """Something that was sent some time ago arrives once more: nothing changes."""
        if self.sent:
            before = self.rig.dump()
            with contextlib.suppress(NetworkGone, WorkerGone):
                self.rig.send_again(*data.draw(st.sampled_from(self.sent)))
            after = self.rig.dump()
            for blob in kind(after, "blob").keys() - kind(before, "blob").keys():
                # Its client is gone: nobody links it, and it goes by itself.
                assert self.rig.ttl_ms(self.rig.keys.blob(blob)) > 0
                del after[f"blob:{blob}"]
            assert after == before

    # What must hold.

    @invariant()
    def server_and_model_agree(self) -> None:
        dump, model = self.rig.dump(), self.model
        assert [task_id for task_id, _ in dump.pop("queued_tasks", [])] == [t.task_id for t in model.ordered()]
        assert kind(dump, "running_tasks") == {name: set(held) for name, held in model.running.items() if held}
        assert dump.get("worker_ids", set()) == model.running.keys() == kind(dump, "worker").keys()
        assert set(dump.get("idle_workers", [])) == model.idle
        for worker in [worker for agent in map(self.rig.agent, _AGENTS) for worker in agent.workers]:
            if worker.ledger._is_idle:
                assert worker.id in model.idle or model.bells.get(worker.id), "it would wait, and nobody wake it"
        bells = {name: [ids_of(token) for token in tokens] for name, tokens in kind(dump, "worker_bell").items()}
        assert bells == model.bells
        assert dump.get("client_ids", set()) == model.inboxes.keys() == kind(dump, "client").keys()
        assert kind(dump, "kills") == {name: wishes for name, wishes in model.kills.items() if wishes}
        assert kind(dump, "functions").keys() == model.functions
        inboxes = kind(dump, "inbox")
        assert inboxes.keys() <= model.inboxes.keys()
        for client_id, expected in model.inboxes.items():
            raw = inboxes.get(client_id, [])
            assert list(zip(raw[::2], map(short, raw[1::2]), strict=True)) == expected
        self.check_records(kind(dump, "task"))
        self.check_blobs(dump)
        ended = {name: task.outcome[0] for name, task in model.ended.items()}
        assert dump.get("all_tasks", []) == model.all
        assert dump.get("finished_tasks", []) == model.finished
        assert dump.get("failed_tasks", set()) == {name for name, tag in ended.items() if tag not in "Ff"}

    def check_records(self, records: dict[str, Any]) -> None:
        model = self.model
        expected = {name: (task, "queued", None) for name, task in model.queue.items()}
        expected |= {name: (task, "running", task.worker_id) for name, task in model.held().items()}
        for name, task in model.ended.items():
            expected[name] = (task, "finished" if task.outcome[0] in "Ff" else "failed", task.worker_id)
        assert records.keys() == expected.keys()
        for task_id, (task, state, worker) in expected.items():
            record = records[task_id]
            assert (record["state"], record.get("worker"), record["client"]) == (state, worker, task.client_id)
            assert int(record.get("attempt", 0)) == task.attempt
            assert int(record.get("losses", 0)) == task.losses
            assert record.get("blob", "") == task.blob_id
            assert ("payload" in record) == (not task.outcome), "what has ended needs no arguments"
            assert short(record.get("outcome", "")) == task.outcome
            assert self.rig.ttl_ms(self.rig.keys.task(task_id)) == -1

    def check_blobs(self, dump: dict[str, Any]) -> None:
        """Each that somebody may want is there; each that nobody has linked has a TTL."""
        model, records, told = self.model, kind(dump, "task").values(), kind(dump, "inbox").values()
        under_way = [task for task in [*model.queue.values(), *model.held().values()] if task.blob_id]
        linked = {task.blob_id for task in under_way if model.has(task.client_id)}
        # Of a client that is gone: still there as long as nobody has taken the task, but who pushes it again, in vain,
        # gives it a TTL.
        doomed = {task.blob_id for task in under_way} - linked
        linked |= {record["outcome"][1:] for record in records if record.get("outcome", "")[:1] in ("f", "e")}
        unread = {outcome[1:] for inbox in told for outcome in inbox[1::2] if outcome[:1] in ("f", "e")}
        blobs = kind(dump, "blob").keys()
        assert linked | unread <= blobs
        assert {blob for blob in blobs if self.rig.ttl_ms(self.rig.keys.blob(blob)) == -1} - doomed == linked

    def teardown(self) -> None:
        rig = self.rig
        with rig:
            rig.leave()
            left = rig.dump()
            for blob in kind(left, "blob"):
                # Nobody wants it; it would go by itself.
                if rig.ttl_ms(rig.keys.blob(blob)) > 0:
                    del left[f"blob:{blob}"]
                    rig.redis.delete(rig.keys.blob(blob))
            if self.model.durable:
                TaskLedger(rig.channel(), rig.keys).reset()
        assert {key.partition(":")[0] for key in left} <= (_KEPT_KINDS if self.model.durable else set()), left

    # Small things.

    def begin(self) -> tuple[Any, ...]:
        """Clients, workers, tasks and claims with which a story begins; the same whenever it is asked."""
        if not self.beginning:
            clients, workers = [self.new_client() for _ in range(2)], [self.new_worker(agent) for agent in _AGENTS]
            pairs = [(c, task) for c in clients for task in self.push_tasks(c, c.tasks(3, max_retries=1))]
            claims = [(w, claim) for w in workers for claim in self.exchange(w, [], 2)]
            self.beginning = clients, workers, pairs, claims
        return self.beginning

    def name(self, kind: str) -> str:
        self.n_names += 1
        return f"{kind}{self.n_names}"

    def keep(self, *packets: Packets) -> None:
        self.sent.append(list(packets))

    def send_at_once_again(self, packets: list[Packets]) -> None:
        """As when the reply was lost."""
        before = self.rig.dump()
        self.rig.send_again(*packets)
        assert self.rig.dump() == before

    def new_client(self) -> Client:
        client = self.rig.client(self.name("c"))
        self.model.inboxes[client.id] = []
        self.send_at_once_again(client.up_channel.sent[:1])
        return client

    def new_worker(self, agent_id: str) -> Worker:
        worker = self.rig.worker(self.name("w"), agent_id=agent_id)
        self.model.running[worker.id] = {}
        self.agent_of[worker.id] = agent_id
        self.keep(worker.channel.sent[-1])
        return worker

    def is_gone(self, client: Client) -> bool:
        """Whether it is gone. If it is the only one another one comes: the network would end with the last."""
        if client.id in self.model.inboxes and len(self.model.inboxes) == 1:
            self.new_client()
        return client.id not in self.model.inboxes

    def push_tasks(self, client: Client, new: list[NewTask], *, has_function: bool = False) -> list[str]:
        n_sent = len(client.up_channel.sent)
        client.send(new, [("digest", b"body")] if has_function else [])
        for task in new:
            known = _Task(
                task.task_id, client.id, (-task.options.priority, 0), task.options, task.blob_id, task.retries
            )
            known.attempt = task.retries * _ATTEMPTS_PER_PUSH
            self.by_id[task.task_id] = known
            self.model.push(known)
        for worker_id in self.check_woken(len(new)):
            if len(new) == 1:
                self.model.hand(new[0].task_id, worker_id)
                self.model.bells[worker_id][-1] = new[0].task_id
        if has_function:
            self.model.functions.add(client.id)
            # Without the function: it is the client that says when that is needed no more.
            self.keep(*client.up_channel.sent[n_sent:-1], client.up_channel.sent[-1][-1:])
        else:
            self.keep(*client.up_channel.sent[n_sent:])
        return [task.task_id for task in new]

    def check_woken(self, n: int, *, most: int = 0) -> list[str]:
        """As many of those that waited were woken as there was work for, or up to a number; returns which."""
        model = self.model
        idle = {raw.decode() for raw in self.rig.redis.zrange(self.rig.keys.idle_workers, 0, -1)}
        woken = sorted(model.idle - idle)
        assert min(n, len(model.idle)) <= len(woken) <= max(n, most)
        assert idle <= model.idle
        model.idle = idle
        for worker_id in woken:
            model.ring(worker_id, "1")
        return woken

    def knows_finish(self) -> bool:
        """Whether the server knows the scripts that take outcomes in."""
        return all(self.rig.redis.script_exists(scripts._SHAS["finish_tasks"], scripts._SHAS["keep_outcomes"]))

    def exchange(
        self,
        worker: Worker,
        done: list[Claim],
        limit: int,
        tag: str = "",
        *,
        with_known: bool = False,
        is_ahead: bool = False,
        rests: bool = False,
    ) -> list[Claim]:
        """Hands in what is done and claims; `is_ahead`: with the answer later."""
        outcomes, model = outcomes_of(done, tag), self.model
        # Where the server has forgotten how to take it in, that is made good behind the claim, which gives nothing new.
        is_behind = not self.knows_finish() and any(model.holds(worker.id, claim) for claim in done)
        if done:
            model.finish(worker.id, done, short(f"{tag}result"))
        # What it has handed in it does not name.
        held = model.running.get(worker.id, {})
        known = [name for name in held if name not in {claim.task_id for claim in done}] if with_known else []
        try:
            if is_ahead:
                worker.ledger.ask(outcomes, limit=limit, known=known)
                claimed = worker.ledger.answer(outcomes)
            else:
                claimed = worker.ledger.exchange(outcomes, limit=limit, wait=False, rests=rests, known=known)
        except WorkerGone:
            assert worker.id not in model.running
            return []
        if done and not is_ahead:
            # Not the claim: later it would be a new one.
            self.keep(worker.channel.sent[-1][:1])
        expected = model.claim(worker.id, 0 if is_behind else limit, known, rests=rests)
        if is_behind:
            # It was given what it had, as if that were new.
            model.bells.pop(worker.id, None)
        assert sorted(claimed.claims) == sorted(expected)
        return expected


def claims_of_one(pairs: list[tuple[Worker, Claim]]) -> tuple[Worker, list[Claim]]:
    """The claims of the first one's worker, each once."""
    worker = pairs[0][0]
    return worker, list(dict.fromkeys(claim for other, claim in pairs if other is worker))


def outcomes_of(claims: Sequence[Claim], tag: str) -> list[Outcome]:
    body = b"result".ljust(_LARGE if tag in "fe" else 0, b"x")
    return [Outcome(claim, tag in "Ee", body) for claim in claims]


def ids_of(entry: str) -> str:
    """What lies in a bell, as the model tells it."""
    if entry == "1":
        return entry
    ids, rest = [], entry.partition("\n")[2]
    while rest:
        head, _, rest = rest.partition("\n")
        task_id, *_, length = head.split("\t")
        ids.append(task_id)
        rest = rest[int(length) :]
    return ",".join(ids)


def kind(dump: dict[str, Any], name: str) -> dict[str, Any]:
    """What is in the keys of a kind, by what they are of."""
    return {key.partition(":")[2]: value for key, value in dump.items() if key.startswith(f"{name}:")}


def short(outcome: str) -> str:
    """An outcome without the ledger's own words on how a worker ended, and without the name of a blob."""
    if outcome[:1] in ("f", "e"):
        return outcome[:1]
    return outcome.partition(" ")[0] if outcome[:1] in ("L", "T", "K") else outcome


# For a long run: RUSH_TEST_EXAMPLES=2000 pytest -k state_machine --timeout 0
_USUAL = 20
_N_EXAMPLES = int(os.environ.get("RUSH_TEST_EXAMPLES", _USUAL))
SETTINGS = settings(
    max_examples=_N_EXAMPLES,
    stateful_step_count=50,
    database=None,
    print_blob=True,
    # To find a shorter failure takes longer than a test may: what is said of it would be lost.
    phases=[phase for phase in Phase if _N_EXAMPLES > _USUAL or phase is not Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("durable", [False, True], ids=["ends", "durable"])
def test_state_machine(server_url: str, monkeypatch: pytest.MonkeyPatch, durable: bool) -> None:
    """Any sequence of steps, each of them sent again at any later time, leaves exactly what the state table says."""
    monkeypatch.setattr(worker_module, "LARGE_PAYLOAD", _LARGE)
    # However long the test takes: who is to end a task can be told so.
    for module in (client_module, agent_module):
        monkeypatch.setattr(module, "KILL_MS", 1_000_000_000)
    run_state_machine_as_test(
        lambda: _Ledger(server_url, durable=durable),
        settings=SETTINGS,
    )
