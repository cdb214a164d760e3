"""The table of keys in `Keys` is what a server holds: type, fields, and what has a TTL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rush_executor._ledger.blobs import LARGE_PAYLOAD
from rush_executor._ledger.logs import LogWriter
from rush_executor._ledger.snapshots import NetworkRestorer, check_sections, read_sections
from rush_executor._ledger.tasks import KeptTask, TaskLedger
from rush_executor._ledger.worker import Outcome, WorkerLedger
from rush_executor._protocol.records import Claim, Loss
from rush_executor._protocol.snapshots import Section
from rush_executor._protocol.states import KILLED, LOST, TERMINATED
from tests.integration.rig import Rig
from tests.key_table import key_rows

ROWS = key_rows()


def check(rig: Rig, seen: set[str], fields: dict[str, set[str]]) -> None:
    """Every key that is there now has its row, and is as the row says."""
    prefix = rig.keys.prefix
    for raw in rig.redis.scan_iter(match="*"):
        key = raw.decode()
        assert key.startswith(prefix), f"{key} is of no network"
        name, _, of = key.removeprefix(prefix).partition(":")
        row = ROWS[name]
        assert bool(of) == bool(row.of), key
        assert rig.redis.type(key).decode() == row.type, key
        # The fields of the others are ids.
        if row.type == "hash" and name not in ("functions", "blob", "start_args"):
            fields.setdefault(name, set()).update(field.decode() for field in rig.redis.hkeys(key))
        if name in ("client", "inbox", "functions", "heartbeat", "kills"):
            assert row.has_ttl
            is_kept = name == "functions" and rig.redis.hexists(rig.keys.network, "durable")
            assert is_kept or rig.ttl_ms(key) > 0, f"{key} may lie there for ever"
        seen.add(name)


def test_a_server_holds_what_the_table_says(rig: Rig) -> None:
    """Through all that can happen to a task: no key, type or field that the table does not tell, and none missing."""
    seen, fields = executors_story(rig)
    durable_fields = durable_story(rig)
    kept_seen, kept_fields = keepers_story(rig)
    assert seen | kept_seen == ROWS.keys(), "the stories leave out a key, or the table has one too many"
    for name in fields.keys() | kept_fields.keys():
        found = fields.get(name, set()) | kept_fields.get(name, set()) | durable_fields.get(name, set())
        assert found == ROWS[name].fields, f"fields of {name}"


def keepers_story(rig: Rig) -> tuple[set[str], dict[str, set[str]]]:
    """All that can happen to a task that the network keeps."""
    # A folder that cannot be made: what is large goes to the server all the same.
    ledger = TaskLedger(rig.channel(), rig.keys, large_objects="/dev/null")
    seen: set[str] = set()
    fields: dict[str, set[str]] = {}
    agent = rig.agent()
    large = b"x" * LARGE_PAYLOAD
    workers: list[WorkerLedger] = []

    def join(worker_id: str) -> None:
        agent.ledger.announce_worker(worker_id)
        worker = WorkerLedger(rig.channel(), rig.keys, worker_id, ledger.found(), keeps=True)
        worker.register(agent.id, "host", 4711)
        workers.append(worker)

    def claim(worker: int) -> Claim:
        return workers[worker].exchange([], limit=1, wait=False).claims[0]

    def lose(worker_id: str, how: str) -> None:
        agent.ledger.lose_worker(Loss(worker_id, "host", 4711, 1, "reason"), "*", how=how)

    def log(worker_id: str) -> None:
        writer = LogWriter.connect(rig.url, rig.keys, worker_id, ledger.found(), cap=100)
        writer.open()
        writer.append([(0, 20, "logger", "message", "a", "log", "")])
        writer.close()

    def task(name: str, **more: Any) -> list[KeptTask]:
        return [KeptTask(name, b"xs", **more)]

    def restore_half() -> None:
        sections = list(read_sections(rig.channel(), rig.keys))
        ledger.reset()

        def broken_off() -> Iterator[Section]:
            yield from sections[:-1]
            check(rig, seen, fields)
            yield sections[-1]

        head = check_sections(sections, rig.keys.network_id)
        NetworkRestorer(rig.channel(), rig.keys, head).restore(broken_off())

    steps: list[Callable[[], object]] = [
        ledger.found,
        lambda: ledger.set_terminate_on_idle(wanted=True),
        lambda: ledger.write_start("start", b"loop"),
        *(lambda name=name: join(name) for name in ("w1", "w2", "w3")),
        lambda: ledger.create("queued", [KeptTask("a", large, b"extra", timeout_s=9.5)]),
        lambda: workers[0].finish([Outcome(claim(0), False, large, b"more")]),
        lambda: ledger.create("queued", task("b", max_retries=1)),
        lambda: workers[0].finish([Outcome(claim(0), True, b"failure")]),
        lambda: ledger.retry([("b", b"")], ignore_max_retries=False),
        lambda: workers[1].exchange([], limit=1, wait=False, rests=True),
        lambda: ledger.create("queued", task("c", worker_id="w2")),
        lambda: ledger.create("running", task("d"), "w3"),
        lambda: ledger.create("finished", task("e", outcome=b"ys")),
        lambda: ledger.create("failed", task("f", outcome=b"failure")),
        lambda: ledger.remove("removed"),
        lambda: log("w1"),
        lambda: lose("w1", TERMINATED),
        lambda: lose("w2", KILLED),
        lambda: lose("w3", LOST),
        restore_half,
        lambda: clear(ledger, lambda: check(rig, seen, fields)),
    ]
    for step in steps:
        step()
        check(rig, seen, fields)
    for worker in workers:
        worker.close()
    ledger.reset()
    assert not [key for key in rig.dump() if "agent" not in key]
    return seen, fields


def clear(ledger: TaskLedger, look: Callable[[], None]) -> None:
    """Clears the network, and looks when the tasks are gone and their records are not."""
    delete = ledger._delete_cleared

    def look_and_delete() -> None:
        look()
        delete()

    ledger._delete_cleared = look_and_delete  # type: ignore[method-assign]
    ledger.clear()


def durable_story(rig: Rig) -> dict[str, set[str]]:
    """A client that leaves a durable network, and one that is told what its tasks came to."""
    fields: dict[str, set[str]] = {}
    clients = [rig.client(name, is_open=False) for name in ("c2", "c3")]
    epoch = clients[0].uplink.open_network("epoch-2", b"", durable=True).epoch
    worker = rig.worker("w9", agent_id="a9", epoch=epoch)
    ledger = WorkerLedger(rig.channel(), rig.keys, worker.id, epoch, is_durable=True)
    large = b"x" * LARGE_PAYLOAD
    ids = clients[0].send(clients[0].tasks(3), [("digest", b"body")])
    claims = [ledger.exchange([], limit=1, wait=False).claims[0]]
    assert ledger.finish([Outcome(claims[0], False, large)]) == []
    check(rig, set(), fields)
    clients[0].leave()
    assert rig.redis.hgetall(rig.keys.functions("c2")) == {b"digest": b"body"}
    claims += ledger.exchange([], limit=1, wait=False).claims
    assert ledger.finish([Outcome(claims[1], True, b"failure")]) == []
    clients[1].uplink.open_network("epoch-3", b"", durable=True)
    assert clients[1].uplink.attach(ids) == [True, True, True]
    told = dict(clients[1].receive())
    assert {task: outcome[:1] for task, outcome in told.items()} == {ids[0]: b"f", ids[1]: b"E"}
    assert rig.ttl_ms(rig.keys.blob(told[ids[0]][1:].decode())) == -1
    check(rig, set(), fields)
    assert rig.dump()["finished_tasks"] == ids[:1]
    assert rig.dump()["failed_tasks"] == {ids[1]}
    assert rig.dump()["all_tasks"] == ids
    clients[1].leave()
    ledger.close()
    rig.leave()
    TaskLedger(rig.channel(), rig.keys).reset()
    assert not rig.dump()
    return fields


def executors_story(rig: Rig) -> tuple[set[str], dict[str, set[str]]]:
    """All that can happen to an executor's task."""
    client, worker, agent = rig.client(), rig.worker(), rig.agent()
    seen: set[str] = set()
    fields: dict[str, set[str]] = {}
    large = b"x" * LARGE_PAYLOAD
    ids: list[str] = []
    steps: list[Callable[[], object]] = [
        lambda: agent.ledger.beat(60_000),
        lambda: client.send(client.tasks(4, max_retries=1, timeout_s=9.5), [("digest", b"body")]),
        lambda: ids.extend(client.send(client.tasks(1, payload=large, blob_id="b1"))),
        lambda: worker.finish(worker.claim(), is_failure=True),
        lambda: worker.finish(worker.claim(2)[:1], large),
        lambda: worker.ledger.release(worker.claim()),
        lambda: client.uplink.kill(worker.claim(1)[0].task_id),
        lambda: agent.lose(worker, guilty=worker.claim()[0].task_id),
        lambda: client.uplink.cancel(ids),
        lambda: client.uplink.cancel(rig.queue()),
        lambda: rig.worker("w3").rest(),
        lambda: client.send(client.tasks(1)),
        client.uplink.ring,
        # A task that submits tasks itself, and leaves.
        lambda: rig.client("c2", is_open=False).uplink.open_network("epoch-1", b"", worker_id=rig.worker("w2").id),
        lambda: rig.client("c2", is_open=False).leave(),
        lambda: agent.ledger.break_network("epoch-1", "text"),
        lambda: client.downlink.receive(wait=False),
    ]
    for step in steps:
        step()
        check(rig, seen, fields)
    for _, outcome in client.drain():
        if outcome[:1] == b"f":
            client.downlink.receive(client.position, done_blobs=[outcome[1:].decode()], wait=False)
    assert not [key for key in rig.dump() if key.startswith("blob")]
    rig.leave()
    return seen, fields
