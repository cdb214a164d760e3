"""Two or more parties decide about one task at the same moment: exactly one of them does, and the other is told.

Each race is run over many rounds, and goes on until each possible winner has won at least once.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor

from rush_executor._ledger.client import CancelReply
from rush_executor._ledger.connection import WorkerGone
from rush_executor._protocol.records import Claim
from tests.integration.rig import Agent, Client, Rig, Worker, race

_ROUNDS = 60
_MOST_ROUNDS = 5000
_LONG_MS = 600_000


def rounds(play: Callable[[int], object], *, winners: Collection[object]) -> None:
    """Plays rounds until there were enough, and every possible winner was seen."""
    seen = set()
    for number in range(_MOST_ROUNDS):
        seen.add(play(number))
        assert seen <= set(winners)
        if number >= _ROUNDS and seen == set(winners):
            return
    raise AssertionError(f"after {_MOST_ROUNDS} rounds only {seen} of {winners} have won: this is no race")


class _Names:
    """New workers for every round."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._numbers = itertools.count()

    def worker(self, agent_id: str = "a1") -> Worker:
        return self._rig.worker(f"w{next(self._numbers)}", agent_id=agent_id)


def test_finish_against_lose_worker(rig: Rig) -> None:
    """A worker hands in a result while its agent takes it for dead: the task ends once, as one of them says."""
    client, agent, names = rig.client(), rig.agent(), _Names(rig)

    def play(number: int) -> str:
        [task] = client.push(max_retries=0)
        worker = names.worker()
        claims = worker.claim()
        refused, lost = race(lambda: worker.finish(claims), lambda: agent.lose(worker, guilty=task))
        [(told, outcome)] = client.drain()
        assert told == task
        if refused:
            assert (refused, lost, outcome[:1]) == ([task], (0, 1), b"L")
            return "agent"
        assert (lost, outcome) == ((0, 0), b"Fresult")
        return "worker"

    rounds(play, winners={"agent", "worker"})
    assert rig.check_places([]) == {}


def test_finish_against_lose_worker_with_attempts_left(rig: Rig) -> None:
    """The same, but the agent queues the task again: it is then either delivered or queued, never both."""
    client, agent, names = rig.client(), rig.agent(), _Names(rig)

    def play(number: int) -> str:
        [task] = client.push()
        worker = names.worker()
        claims = worker.claim()
        refused, lost = race(lambda: worker.finish(claims), lambda: agent.lose(worker, guilty=task))
        places = rig.check_places([task])
        if refused:
            assert (lost, places) == ((1, 0), {task: "queued"})
            assert client.uplink.cancel([task]) == [1]
        else:
            assert (lost, places) == ((0, 0), {task: "Fresult"})
        assert len(client.drain()) == 1
        return "agent" if refused else "worker"

    rounds(play, winners={"agent", "worker"})


def test_claim_against_cancel(rig: Rig) -> None:
    """`cancel` grants exactly those tasks that no worker gets."""
    client, worker = rig.client(), rig.worker()

    def play(number: int) -> str:
        [task] = client.push()
        claims, [reply] = race(worker.claim, lambda: client.uplink.cancel([task]))
        places = rig.check_places([task])
        if claims:
            assert (reply, places) == (0, {task: "w1"})
            assert worker.finish(claims) == []
        else:
            assert (reply, places) == (1, {task: "C"})
        assert len(client.drain()) == 1
        return "worker" if claims else "client"

    rounds(play, winners={"worker", "client"})


def test_batches_of_claims_against_a_batch_of_cancels(rig: Rig) -> None:
    """The same with many tasks and several workers: each task goes to one of them, or is cancelled."""
    client = rig.client()
    workers = [rig.worker("w1"), rig.worker("w2")]

    def play(number: int) -> bool:
        ids = client.push(20)
        shuffled = random.sample(ids, 20)
        one, two, replies = race(
            lambda: workers[0].claim(7), lambda: workers[1].claim(7), lambda: client.uplink.cancel(shuffled)
        )
        places = rig.check_places(ids)
        claimed = {**{c.task_id: "w1" for c in one}, **{c.task_id: "w2" for c in two}}
        assert len(claimed) == len(one) + len(two)
        for task, reply in zip(shuffled, replies, strict=True):
            assert places[task] == claimed.get(task, "C")
            assert (reply == CancelReply.CANCELLED) == (task not in claimed)
            assert reply in (CancelReply.CANCELLED, CancelReply.HELD), "they were claimed by the handful"
        workers[0].finish(one)
        workers[1].finish(two)
        assert sorted(task for task, _ in client.drain()) == sorted(ids)
        return bool(claimed)

    rounds(play, winners={True, False})


def test_two_claims(rig: Rig) -> None:
    """Two workers and one task: one gets it."""
    client, one, two = rig.client(), rig.worker("w1"), rig.worker("w2")

    def play(number: int) -> str:
        [task] = client.push()
        first, second = race(one.claim, two.claim)
        assert sorted([*first, *second]) == [Claim(task, 1, b"call", "")]
        winner = one if first else two
        assert rig.check_places([task]) == {task: winner.id}
        assert winner.finish(first or second) == []
        assert client.drain() == [(task, b"Fresult")]
        return winner.id

    rounds(play, winners={"w1", "w2"})


def test_one_worker_claims_on_two_connections(rig: Rig) -> None:
    """What an old connection still had in its pipe meets the new one: the worker gets no more than it knows of."""
    client, worker = rig.client(), rig.worker()
    again = Worker(rig, "w1", rig.agent(), rig.url, "epoch-1")
    ids = client.push(50)
    for start in range(0, 48, 2):
        first, second = race(lambda: worker.claim(2), lambda: again.claim(2))
        assert sorted(first) == sorted(second)
        assert sorted(claim.task_id for claim in first) == sorted(ids[start : start + 2])
        assert worker.finish(first) == []
    assert worker.claim(2)
    again.ledger.close()


def test_finish_of_an_old_attempt_against_a_new_claim(rig: Rig) -> None:
    """A zombie's late result is refused before, during and after the claim of the next attempt."""
    client, agent, names = rig.client(), rig.agent(), _Names(rig)
    worker = names.worker("a2")

    def play(number: int) -> str:
        [task] = client.push()
        zombie = names.worker()
        old = zombie.claim()
        agent.lose(zombie, guilty=task)
        refused, new = race(lambda: zombie.finish(old, b"late"), worker.claim)
        assert refused == [task]
        assert new == [Claim(task, 2, b"call", "")]
        refused, finished = race(lambda: zombie.finish(old, b"late"), lambda: worker.finish(new, b"good"))
        assert (refused, finished) == ([task], [])
        assert client.drain() == [(task, b"Fgood")]
        return ""

    rounds(play, winners={""})


def test_release_against_lose_worker(rig: Rig) -> None:
    """A worker gives back what its agent takes from it: the task is queued once, at its place, charged or not."""
    client, agent, names = rig.client(), rig.agent(), _Names(rig)

    def play(number: int) -> str:
        task, second = client.push(2)
        worker = names.worker()
        [claim] = worker.claim()
        released, lost = race(lambda: worker.ledger.release([claim]), lambda: agent.lose(worker, guilty=task))
        assert rig.queue() == [task, second]
        assert (released, lost) in ((1, (0, 0)), (0, (1, 0)))
        record = rig.dump()[f"task:{task}"]
        assert record.get("losses", "0") == str(lost[0])
        assert rig.check_places([task, second]) == {task: "queued", second: "queued"}
        client.uplink.cancel([task, second])
        client.drain()
        return "worker" if released else "agent"

    rounds(play, winners={"worker", "agent"})


def test_release_against_finish(rig: Rig) -> None:
    """The courier gives back on one connection what an old one still hands in: one of the two."""
    client, worker = rig.client(), rig.worker()
    again = Worker(rig, "w1", rig.agent(), rig.url, "epoch-1")

    def play(number: int) -> str:
        [task] = client.push()
        claims = worker.claim()
        released, refused = race(lambda: worker.ledger.release(claims), lambda: again.finish(claims))
        assert (released, refused) in ((1, [task]), (0, []))
        assert rig.check_places([task]) == {task: "queued" if released else "Fresult"}
        client.uplink.cancel([task])
        assert len(client.drain()) == 1
        return "release" if released else "finish"

    rounds(play, winners={"release", "finish"})
    again.ledger.close()


def test_reaper_against_a_sign_of_life(rig: Rig) -> None:
    """An agent comes back while it is being reaped: its worker either has lost all or nothing, and is told."""
    client, agent, names, reaper = rig.client(), rig.agent(), _Names(rig), rig.reaper()

    def play(number: int) -> str:
        [task] = client.push(max_retries=0)
        worker = names.worker()
        claims = worker.claim()
        agent.ledger.beat(_LONG_MS)
        rig.redis.delete(rig.keys.heartbeat("a1"))
        assert reaper.look() == []
        _, refused, dead = race(lambda: agent.ledger.beat(_LONG_MS), lambda: worker.finish(claims), reaper.look)
        dump = rig.dump()
        assert "a1" in dump["agent_ids"], "it is alive, and if it dies it must be found"
        [(told, outcome)] = client.drain()
        assert told == task
        is_lost = worker.id not in dump.get("worker_ids", set())
        assert bool(refused) == (outcome[:1] == b"L")
        if is_lost:
            try:
                worker.claim()
            except WorkerGone:
                pass
            else:
                raise AssertionError("a worker that was taken for lost may claim")
        else:
            assert (refused, outcome, dead) == ([], b"Fresult", [])
            assert worker.claim() == []
        agent.lose(worker)
        reaper._suspects.clear()
        return (is_lost, bool(refused))

    rounds(play, winners={(True, True), (True, False), (False, False)})


def test_reaper_against_the_agent_itself(rig: Rig) -> None:
    """Both put the same worker right: its task is charged once."""
    client, agent, names, reaper = rig.client(), rig.agent(), _Names(rig), rig.reaper()

    def play(number: int) -> str:
        [task] = client.push(max_retries=5)
        worker = names.worker()
        worker.claim()
        agent.ledger.beat(_LONG_MS)
        rig.redis.delete(rig.keys.heartbeat("a1"))
        reaper.look()
        lost, _ = race(lambda: agent.lose(worker, guilty="c9-1"), reaper.look)
        losses = rig.dump()[f"task:{task}"]["losses"]
        assert (lost, losses) in (((1, 0), "0"), ((0, 0), "1"))
        assert rig.check_places([task]) == {task: "queued"}
        client.uplink.cancel([task])
        client.drain()
        return "agent" if lost == (1, 0) else "reaper"

    rounds(play, winners={"agent", "reaper"})


def test_one_batch_pushed_on_two_connections(rig: Rig) -> None:
    """A batch that is sent again while the first sending is still under way is taken once."""
    client, worker = rig.client(), rig.worker()
    one, two = rig.channel(), rig.channel()

    def play(number: int) -> bool:
        ids = client.push(3)
        packets = client.up_channel.sent[-1]
        # As if the server had not seen it yet.
        rig.redis.delete(rig.keys.queued_tasks, *(rig.keys.task(task) for task in ids))
        rig.redis.hincrby(rig.keys.client("c1"), "pushed", -1)
        first, second = race(lambda: one.call(*packets)[0], lambda: two.call(*packets)[0])
        assert sorted([first, second]) == [0, 3]
        assert rig.queue() == ids
        worker.finish(worker.claim(3))
        assert [task for task, _ in client.drain()] == ids
        return first == 3

    rounds(play, winners={True, False})


def test_the_last_client_leaves_while_another_comes(rig: Rig) -> None:
    """The newcomer has a network that works: the old one, or one of its own."""
    numbers = itertools.count()
    leaving = rig.client(f"c{next(numbers)}")

    def play(number: int) -> str:
        nonlocal leaving
        client = Client(rig, f"c{next(numbers)}", rig.url, 60_000)
        _, opened = race(leaving.leave, lambda: client.open(epoch=f"epoch-of-{client.id}"))
        assert rig.dump()["client_ids"] == {client.id}
        assert rig.dump()["network"]["epoch"] == opened.epoch
        [task] = client.push()
        assert client.uplink.cancel([task]) == [1]
        assert client.drain() == [(task, b"C")]
        leaving = client
        return "new" if opened.creator == client.id else "old"

    rig.forget(leaving)
    rounds(play, winners={"new", "old"})
    leaving.leave()
    assert rig.dump() == {}


def test_a_client_leaves_while_a_worker_works_for_it(rig: Rig) -> None:
    """Whatever the worker does at that moment, nothing of that client is left."""
    keeper, worker = rig.client("keeper"), rig.worker()
    numbers = itertools.count()

    def play(number: int) -> str:
        client = Client(rig, f"d{next(numbers)}", rig.url, 60_000)
        client.open()
        client.push(3)
        claims = worker.claim(2)
        race(client.leave, lambda: worker.finish(claims[:1]), keeper.uplink.n_workers)
        worker.ledger.release(claims[1:])
        assert not worker.claim(5), "what is left in the queue is dropped, not run"
        dump = rig.dump()
        assert not [key for key in dump if client.id in key], dump
        return ""

    rounds(play, winners={""})


def test_finishing_while_reading(rig: Rig) -> None:
    """Outcomes come while others are read and trimmed: each is read once, and in order."""
    client, worker = rig.client(), rig.worker()
    ids = [task for _ in range(4) for task in client.push(500)]

    def work() -> None:
        while claims := worker.claim(random.randint(1, 20)):
            assert worker.finish(claims) == []

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        read: list[str] = []
        deadline = time.monotonic() + 60
        while len(read) < 2000 and time.monotonic() < deadline:
            read += [task for task, _ in client.receive(wait=random.random() < 0.5)]
        working.result(timeout=60)
    assert read == ids
    assert client.receive() == []
    assert rig.inbox() == []


class _Crowd:
    """Clients and workers that do what comes to their mind, each on a thread of its own, until they are stopped."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.stop = threading.Event()
        self.names = itertools.count()

    def submit(self, client: Client, n_tasks: int) -> list[str]:
        """Pushes, and cancels some of it; returns all ids."""
        mine: list[str] = []
        while len(mine) < n_tasks:
            n, priority, max_retries = random.randint(1, 20), random.randint(-1, 1), random.choice([0, 0, 1, 3])
            mine += client.push(n, priority=priority, max_retries=max_retries)
            if random.random() < 0.3:
                client.uplink.cancel(random.sample(mine, min(5, len(mine))))
        return mine

    def listen(self, client: Client) -> list[tuple[str, bytes]]:
        """Reads and trims; returns all outcomes."""
        got: list[tuple[str, bytes]] = []
        while not self.stop.is_set():
            got += client.receive()
        return got + client.drain()

    def work(self, agent: Agent) -> None:
        """Claims; hands in one by one, or all, or gives back, or dies of it."""
        worker = self.new_worker(agent)
        while not self.stop.is_set():
            claims = worker.claim(random.randint(1, 8))
            random.shuffle(claims)
            while claims:
                dice = random.random()
                if dice < 0.7:
                    worker.finish([claims.pop()])
                    continue
                if dice < 0.8:
                    worker.finish(claims)
                elif dice < 0.95:
                    worker.ledger.release(claims)
                else:
                    self.die(agent, worker, claims)
                    worker = self.new_worker(agent)
                claims = []

    def new_worker(self, agent: Agent) -> Worker:
        return self.rig.worker(f"w{next(self.names)}", agent_id=agent.id)

    def die(self, agent: Agent, worker: Worker, claims: list[Claim]) -> None:
        """Its agent takes it for dead, every second time while results of it are still under way."""
        guilty = claims[0].task_id
        if random.random() < 0.5:
            race(lambda: agent.lose(worker, guilty=guilty), lambda: worker.finish(claims))
        else:
            agent.lose(worker, guilty=guilty)
        worker.ledger.close()


def test_everything_at_once(rig: Rig) -> None:
    """Clients push and cancel, workers claim, finish, give back and die: each task has exactly one outcome."""
    crowd = _Crowd(rig)
    clients = [rig.client("c1"), rig.client("c2")]
    # One each: an agent's connection belongs to one thread.
    agents = [rig.agent(f"a{number}") for number in range(3)]
    with ThreadPoolExecutor(7) as pool:
        listening = [pool.submit(crowd.listen, client) for client in clients]
        working = [pool.submit(crowd.work, agent) for agent in agents]
        try:
            submitting = [pool.submit(crowd.submit, client, 600) for client in clients]
            ids = [future.result(timeout=60) for future in submitting]
            deadline = time.monotonic() + 60
            while any(key.startswith("task:") for key in rig.dump()) and time.monotonic() < deadline:
                pass
        finally:
            crowd.stop.set()
        for future in working:
            future.result(timeout=60)
        outcomes = [future.result(timeout=60) for future in listening]
    for mine, got in zip(ids, outcomes, strict=True):
        assert len(got) == len({task for task, _ in got}), "some task was told twice"
        assert sorted(task for task, _ in got) == sorted(mine)
    kinds = {outcome[:1] for got in outcomes for _, outcome in got}
    assert kinds == {b"F", b"C", b"L"}, "each way to end was taken"
    assert rig.check_places([]) == {}
